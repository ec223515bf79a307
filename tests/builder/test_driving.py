"""Driving a persisted run: all that `GraphRun` can do, and what is seen is on record."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import logfire_api
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from pydantic_graph import GraphBuilder, StepContext
from pydantic_graph.graph_builder import EndMarker, Graph, GraphRun, GraphTask, GraphTaskRequest
from pydantic_graph.id_types import NodeID
from pydantic_graph.node import Fork

from graphkeep import MemoryStore, PersistentGraph, RunFailedError, StepRecord, iter_or_resume, run_or_resume
from graphkeep.tracking import is_immutable
from tests.builder.graphs import CASES, Case, delays
from tests.builder.trails import (
    STORES,
    Trail,
    chain,
    crash_after,
    crashed,
    events_of,
    looping,
    mapped,
    memory,
    nowhere,
    raising,
    record,
    resumed,
    told,
)

pytestmark = pytest.mark.anyio

HERE = [case for case in CASES.values() if case.runs_here]
ALL = ['one', 'two', 'three']


def tasks_of(history: list[StepRecord]) -> dict[str, str]:
    """Return the status of the newest task of each node."""
    return {record.node_id: record.status for record in history if record.kind == 'task'}


# --------------------------------------------------------------------------------------------------- running


@pytest.mark.both_backends
async def test_run():
    """`run` returns the output, and the end is on record with it and the state."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    persistence = store.run('r')
    assert await graph.run(state=Trail(), inputs=1, persistence=persistence) == 'came to 3'
    last = await persistence.load_last()
    assert cast('Any', last).result.data == 'came to 3'
    assert last.state == Trail(ALL)


@pytest.mark.parametrize('name', STORES)
def test_run_sync(tmp_path: Path, name: str):
    """`run_sync` does the same in an event loop of its own, in every store."""
    graph = PersistentGraph(mapped())
    store = anyio.run(nowhere, tmp_path, name)[0]
    state = Trail()
    assert graph.run_sync(state=state, inputs=[1, 2, 3], persistence=store.run('r')) == 6
    assert len(state.steps) == 4
    history = anyio.run(store.history, 'r')
    assert tasks_of(history)['item'] == 'success'
    anyio.run(store.aclose)


async def test_without_persistence():
    """Without a persistence the plain graph is run, by the host's own run."""
    graph = PersistentGraph(chain())
    state = Trail()
    assert await graph.run(state=state, inputs=1) == 'came to 3'
    assert state == Trail(ALL)
    async with graph.iter(state=Trail(), inputs=1) as run:
        assert type(run) is GraphRun
    assert graph.run_sync is not None


@pytest.mark.both_backends
@pytest.mark.parametrize('case', HERE, ids=repr)
async def test_same_events(case: Case):
    """What is yielded is what the plain graph yields; in the same order, where nothing runs in parallel."""
    plain, graph = case.build(), PersistentGraph(case.build(), types=case.types)
    how = {'state': case.state(), 'inputs': case.inputs(), 'deps': case.deps()}
    mine = {'state': case.state(), 'inputs': case.inputs(), 'deps': case.deps()}
    with anyio.fail_after(20), delays(1):
        async with plain.iter(**how) as run:
            expected = await events_of(run)
        async with graph.iter(**mine, persistence=MemoryStore().run('r')) as run:
            events = await events_of(run)
    if not any(isinstance(node, Fork) for node in plain.nodes.values()):
        assert events == expected
    elif not case.kinds & {'cancel siblings', 'first value', 'race to the end'}:
        assert Counter(nodes_of(events)) == Counter(nodes_of(expected))


def nodes_of(events: list[Any]) -> Generator[str]:
    """Yield the nodes that are run."""
    for event in events:
        yield from (node_id for node_id, *_ in event if event[0] != 'end')


async def test_is_a_graph_run():
    """A persisted run is one of the host's runs, for code that asks."""
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=MemoryStore().run('r')) as run:
        assert isinstance(run, GraphRun)
        assert (run.inputs, cast('Any', run).graph) == (1, graph.graph)


# --------------------------------------------------------------------------------------- one event by another


@pytest.mark.both_backends
async def test_next():
    """`next()` goes on by one event; the first one is what the start leads to."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    seen: list[object] = []
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        while not isinstance(event := await run.next(), EndMarker):
            seen.append(told(event))
        assert run.output == cast('Any', event).value == 'came to 3'
    async with chain().iter(state=Trail(), inputs=1) as plain:
        while not isinstance(event := await plain.next(), EndMarker):
            assert told(event) == seen.pop(0)
    assert seen == []
    assert tasks_of(await store.history('r')) == dict.fromkeys([*ALL, '__end__'], 'success')


async def test_next_with_other_inputs():
    """`next(value)` runs these tasks instead; the ones that they replace are on record as cancelled."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        (two,) = cast('list[GraphTask]', await run.next())  # the first call also goes past the start
        assert (two.node_id, two.inputs) == ('two', 2)
        await run.next([GraphTaskRequest(two.node_id, 10, two.fork_stack)])
        async for _ in run:
            pass
        assert run.output == 'came to 11'
    history = await store.history('r')
    assert [r.status for r in history if r.node_id == 'two'] == ['cancelled', 'success']


async def test_next_task():
    """`next_task` tells what is next: at first the start, later what was yielded, at last the end."""
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=MemoryStore().run('r')) as run:
        assert [task.node_id for task in run.next_task] == ['__start__']
        async for event in run:
            assert run.next_task is event
            assert run.output == (cast('Any', event).value if isinstance(event, EndMarker) else None)
        assert isinstance(run.next_task, EndMarker)


async def test_next_task_of_a_resumed_run():
    """`next_task` of a run that goes on is what it goes on with."""
    store, clock = memory()
    graph = PersistentGraph(chain())
    assert await crashed(graph, store.run('r'), 4, state=Trail(), inputs=1)
    clock.forward(100)
    async with graph.iter_from_persistence(store.run('r')) as run:
        waiting = [(task.node_id, task.inputs) for task in run.next_task]
        assert len(waiting) == 1
        assert waiting[0][0] in ALL
        assert run.output is None


# --------------------------------------------------------------------------------------------- override_next


@pytest.mark.both_backends
async def test_override_after_end():
    """After an end `override_next` lets the run go on, in the plain graph and in a persisted one alike."""

    async def drive(run: Any) -> str:
        async for event in run:
            if isinstance(event, EndMarker) and cast('Any', event).value == 'came to 3':
                run.override_next([GraphTaskRequest(NodeID('two'), 50, run.first_stack)])
        return run.output

    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        run.first_stack = run.next_task[0].fork_stack
        assert await drive(run) == 'came to 51'
    persistence = store.run('r')
    assert await run_or_resume(graph, persistence=persistence) == 'came to 51'
    last = await persistence.load_last()
    assert last.state == Trail([*ALL, 'two', 'three'])


@pytest.mark.both_backends
async def test_override_with_end():
    """`override_next` with an `EndMarker` ends the run with its value; what was next is cancelled."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        async for event in run:
            if not isinstance(event, EndMarker) and event[0].node_id == 'two':
                run.override_next(EndMarker('enough'))
        assert run.output == 'enough'
    assert await run_or_resume(graph, persistence=store.run('r')) == 'enough'
    statuses = tasks_of(await store.history('r'))
    assert (statuses['one'], statuses['two']) == ('success', 'cancelled')


@pytest.mark.both_backends
async def test_override_with_end_and_leave():
    """An end that was given and never reached again is recorded when the run is left."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        await run.next()
        run.override_next(EndMarker('enough'))
    assert await run_or_resume(graph, persistence=store.run('r')) == 'enough'


@pytest.mark.both_backends
@pytest.mark.parametrize('kept', [[1, 2], [3]])
async def test_override_with_fewer(kept: list[int]):
    """Of the items of a map only those that are kept are run; the others are cancelled, for good."""
    graph = PersistentGraph(mapped())
    store, ran = MemoryStore(), list[str]()
    async with graph.iter(
        state=Trail(), inputs=[1, 2, 3], deps=record(ran), persistence=store.run('r')
    ) as run:
        assert await only(kept, run) == sum(kept)
    assert sorted(ran) == [*(f'item {n}' for n in kept), 'total']
    statuses = [r.status for r in await store.history('r') if r.node_id == 'item']
    assert sorted(statuses) == ['cancelled'] * (3 - len(kept)) + ['success'] * len(kept)


async def only(kept: list[int], run: Any) -> Any:
    """Drive a run of `mapped` to its end with these items alone."""
    async for event in run:
        if not isinstance(event, EndMarker) and event[0].node_id == 'item':
            run.override_next([task for task in event if task.inputs in kept])
    return run.output


async def test_override_with_none():
    """A run of which nothing is left has no result: it fails with the host's error, and can be retried."""
    async with mapped().iter(state=Trail(), inputs=[1, 2]) as plain:
        with pytest.raises(RuntimeError, match='no result'):
            await only([], plain)
    store, graph = MemoryStore(), PersistentGraph(mapped())
    with pytest.raises(RuntimeError, match='no result'):
        async with graph.iter(state=Trail(), inputs=[1, 2], persistence=store.run('r')) as run:
            await only([], run)
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('error', None)
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 3


@pytest.mark.both_backends
async def test_override_with_more():
    """Tasks of the caller's own are run, and recorded before: a crash right after does not lose them."""
    graph = PersistentGraph(mapped())
    overridden = False
    for commits in range(2, 12):
        store, clock = memory()
        persistence = crash_after(store.run('r'), commits)
        output = None
        try:
            async with graph.iter(state=Trail(), inputs=[1, 2], persistence=persistence) as run:
                async for event in run:
                    if not isinstance(event, EndMarker) and event[0].node_id == 'item':
                        task = event[1]
                        run.override_next([*event, GraphTaskRequest(task.node_id, 30, task.fork_stack)])
                        overridden = True
                output = run.output
        except BaseException:  # noqa: S110 -- it crashed
            pass
        names = [r for r in await store.history('r') if r.node_id == 'item']
        result = await resumed(graph, store, clock)
        assert output in (None, 33)
        if len(names) >= 3:
            assert result == 33
        else:
            assert result == 3
    assert overridden


# --------------------------------------------------------------------------------------- errors and recovery


async def test_error():
    """What a step raises comes out as it is, and is on record; the run has failed, until it is retried."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    with pytest.raises(OverflowError, match='two is too much'):
        await graph.run(state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('r'))
    assert tasks_of(await store.history('r'))['two'] == 'error'
    with pytest.raises(RunFailedError, match='OverflowError: two is too much'):
        await run_or_resume(graph, persistence=store.run('r'))
    await store.retry('r')
    ran: list[str] = []
    assert await run_or_resume(graph, deps=record(ran), persistence=store.run('r')) == 'came to 3'
    assert ran == ['two', 'three']


@pytest.mark.both_backends
@pytest.mark.parametrize('end', [False, True])
async def test_recovery(end: bool):
    """After an error `override_next` lets the run go on; the failed task is on record with its error."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    persistence = store.run('r')
    async with graph.iter(state=Trail(), inputs=1, deps=raising('two'), persistence=persistence) as run:
        stack = run.next_task[0].fork_stack
        with pytest.raises(OverflowError):
            async for _ in run:
                pass
        run.override_next(EndMarker('mended') if end else [GraphTaskRequest(NodeID('three'), 7, stack)])
        async for _ in run:
            pass
        assert run.output == ('mended' if end else 'came to 7')
    assert await run_or_resume(graph, persistence=store.run('r')) == run.output
    history = await store.history('r')
    (two,) = (r for r in history if r.node_id == 'two')
    assert two.status == 'cancelled'
    assert [(a.outcome, a.error and a.error.type) for a in two.attempts] == [('error', 'OverflowError')]


@pytest.mark.both_backends
async def test_recovery_and_crash():
    """A run that went on after an error goes on so after a crash, with the state as it was."""
    graph = PersistentGraph(chain())
    for commits in range(2, 12):
        store, clock = memory()
        persistence = crash_after(store.run('r'), commits)
        recovered = False
        try:
            async with graph.iter(
                state=Trail(), inputs=1, deps=raising('two'), persistence=persistence
            ) as run:
                stack = run.next_task[0].fork_stack
                try:
                    async for _ in run:
                        pass
                except OverflowError:
                    run.state.steps.append('mended')
                    run.override_next([GraphTaskRequest(NodeID('three'), 7, stack)])
                    recovered = True
                    async for event in run:
                        del event
        except BaseException:  # noqa: S110 -- it crashed
            pass
        tasks = [r.node_id for r in await store.history('r')]
        if 'three' not in tasks:
            assert await resumed(graph, store, clock) == 'came to 3'
        else:
            assert recovered
            assert await resumed(graph, store, clock) == 'came to 7'
            assert (await store.run('r').load_history())[-1].kind == 'end'
            persistence = store.run('r')
            await run_or_resume(graph, persistence=persistence)
            assert (await persistence.load_last()).state == Trail(['one', 'mended', 'three'])


@pytest.mark.both_backends
async def test_error_seen_and_left():
    """A run whose error was seen, and which is then left without another word, has failed."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('r')) as run:
        with pytest.raises(OverflowError):
            async for _ in run:
                pass
    assert [info.status for info in await store.runs()] == ['error']


# ------------------------------------------------------------------------------------------- leaving, durable


@pytest.mark.both_backends
@pytest.mark.parametrize('events', range(6))
async def test_left_early(events: int):
    """A run that is left after any event can be gone on with; nothing runs twice that had succeeded."""
    store = MemoryStore()
    graph = PersistentGraph(mapped())
    ran: list[str] = []
    async with graph.iter(state=Trail(), inputs=[1, 2], deps=record(ran), persistence=store.run('r')) as run:
        for _ in range(events):
            await run.next()
    (info,) = await store.runs()
    assert (info.status, info.resumable, info.owner) == ('created', True, None)
    succeeded = [r for r in await store.history('r') if r.node_id == 'item' and r.status == 'success']
    again: list[str] = []
    assert await run_or_resume(graph, deps=record(again), persistence=store.run('r')) == 3
    assert sum(name.startswith('item') for name in again) == 2 - len(succeeded)
    assert (await store.runs())[0].status == 'success'


NEVER_WAITING = [case for case in HERE if is_immutable(case.state())] + [
    Case('chain', chain, frozenset(), state=Trail, given=1),
    Case('mapped', mapped, frozenset(), state=Trail, given=[1, 2, 3]),
    Case('looping', looping, frozenset(), state=Trail, given=2),
]
"""Graphs whose steps never change the state and then await: a commit does not have to wait for them."""


@pytest.mark.both_backends
@pytest.mark.parametrize('case', NEVER_WAITING, ids=repr)
async def test_seen_is_stored(case: Case):
    """The tasks that an event tells of are stored by then."""
    graph = PersistentGraph(case.build(), types=case.types)
    store = MemoryStore()
    with anyio.fail_after(20):
        async with graph.iter(
            state=case.state(), inputs=case.inputs(), deps=case.deps(), persistence=store.run('r')
        ) as run:
            async for event in run:
                stored = {r.id for r in await store.history('r')}
                for task in () if isinstance(event, EndMarker) else event:
                    if not isinstance(task.inputs, AsyncIterable | Iterator):  # these are no data
                        assert task.task_id in stored, f'{task.node_id} should be on record'
    assert (await store.runs())[0].status == 'success'


async def test_end_is_stored():
    """Once the end has been seen and asked past, it is stored; after `run` in any case."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        async for _ in run:
            pass
        assert (await store.runs())[0].status == 'success'


# ----------------------------------------------------------------------------------------------------- spans

SPAN_CONTEXT = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
TRACEPARENT = f'00-{0xABC:032x}-{0xDEF:016x}-01'


@dataclass
class Recorder:
    """Stands in for logfire and writes down what is opened and closed."""

    events: list[str]

    @contextmanager
    def span(self, template: str, **attributes: Any) -> Generator[Any]:
        """Stand in for `Logfire.span`."""
        name = template.format(**attributes)
        self.events.append(f'+ {name}')
        yield NonRecordingSpan(SPAN_CONTEXT)
        self.events.append(f'- {name}')


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Put a recorder in logfire's place."""
    recorder = Recorder([])

    def span(_: Any, template: str, **attributes: Any) -> Any:
        return recorder.span(template, **attributes)

    monkeypatch.setattr(logfire_api.Logfire, 'span', span)
    return recorder


async def test_spans(recorder: Recorder):
    """A persisted run has the spans that the plain one has; so has one that goes on, of what it runs."""
    await chain().run(state=Trail(), inputs=1)
    plain = recorder.events.copy()
    recorder.events.clear()
    store = MemoryStore()
    graph = PersistentGraph(chain())
    await graph.run(state=Trail(), inputs=1, persistence=store.run('r'))
    assert recorder.events == plain
    recorder.events.clear()
    await graph.initialize(state=Trail(), inputs=1, persistence=store.run('s'))
    assert recorder.events == []
    await run_or_resume(graph, persistence=store.run('s'))
    assert recorder.events == plain


async def test_span_given(recorder: Recorder):
    """A span that is given takes the place of the run's, and the run knows its trace context."""
    store = MemoryStore()
    graph = PersistentGraph(chain())
    async with graph.iter(
        state=Trail(), inputs=1, persistence=store.run('r'), span=recorder.span('mine')
    ) as run:
        assert run._traceparent() == TRACEPARENT
        await run.next()
    async with graph.iter_from_persistence(store.run('r'), span=recorder.span('again')) as run:
        assert run._traceparent() == TRACEPARENT
        await run.next()
    async with iter_or_resume(graph, persistence=store.run('r'), span=recorder.span('third')) as run:
        assert run._traceparent() == TRACEPARENT
    assert [event for event in recorder.events if 'node' not in event] == [
        *('+ mine', '- mine', '+ again', '- again', '+ third', '- third')
    ]


async def test_no_spans(recorder: Recorder):
    """A graph with `auto_instrument=False` makes none."""
    g = GraphBuilder(output_type=int, auto_instrument=False)

    @g.step
    async def one(ctx: StepContext[None, None, None]) -> int:
        return 1

    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(g.end_node))
    await PersistentGraph(g.build()).run(persistence=MemoryStore().run('r'))
    assert recorder.events == []


# ----------------------------------------------------------------------------------------- names, the surface


def nameless() -> Graph[None, None, None, int]:
    """Return a graph without a name."""
    g = GraphBuilder(output_type=int)

    @g.step
    async def one(ctx: StepContext[None, None, None]) -> int:
        return 1

    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(g.end_node))
    graph = g.build()
    graph.name = None
    return graph


async def test_name_inferred():
    """A nameless graph is named after the caller's variable by every verb, and recorded under it."""
    store = MemoryStore()
    by_run = PersistentGraph(nameless())
    await by_run.run(persistence=store.run('run'))
    by_iter = PersistentGraph(nameless())
    async with by_iter.iter(persistence=store.run('iter')):
        pass
    by_initialize = PersistentGraph(nameless())
    await by_initialize.initialize(persistence=store.run('initialize'))
    by_persistence = PersistentGraph(nameless())
    async with by_persistence.iter_from_persistence(store.run('initialize')):
        pass
    by_run_or_resume = PersistentGraph(nameless())
    await run_or_resume(by_run_or_resume, persistence=store.run('run_or_resume'))
    by_iter_or_resume = PersistentGraph(nameless())
    async with iter_or_resume(by_iter_or_resume, persistence=store.run('iter_or_resume')):
        pass
    plain = nameless()
    assert await PersistentGraph(plain).run(persistence=store.run('plain')) == 1
    names = {info.id: info.graph for info in await store.runs()}
    assert names == {
        'run': 'by_run',
        'iter': 'by_iter',
        'initialize': 'by_initialize',
        'run_or_resume': 'by_run_or_resume',
        'iter_or_resume': 'by_iter_or_resume',
        'plain': 'plain',
    }
    assert by_persistence.name == 'by_persistence'


def test_name_inferred_by_run_sync():
    """So it is by `run_sync`; and not if that is not wanted."""
    by_run_sync = PersistentGraph(nameless())
    by_run_sync.run_sync(infer_name=False)
    assert by_run_sync.name is None
    by_run_sync.run_sync()
    assert by_run_sync.name == 'by_run_sync'


def test_surface():
    """The rest of the graph is reachable, and drawn the same."""
    plain = chain()
    graph = PersistentGraph(plain)
    assert graph.nodes is plain.nodes
    assert graph.edges_by_source is plain.edges_by_source
    assert (graph.name, graph.state_type, graph.output_type) == ('chain', Trail, str)
    assert graph.render(title='t', direction='LR') == plain.render(title='t', direction='LR')
    assert repr(graph) == "PersistentGraph('chain')"
    with pytest.raises(AttributeError, match='nothing'):
        _ = graph.nothing


@pytest.mark.parametrize('given', [None, 1, PersistentGraph])
def test_no_graph(given: Any):
    """What is no graph is refused."""
    with pytest.raises(TypeError, match=r'GraphBuilder\.build'):
        PersistentGraph(given)


def test_unknown_tracking():
    """So is a tracking that there is not."""
    wrong: Any = 'none'
    with pytest.raises(ValueError, match="'exact' or 'barrier'"):
        PersistentGraph(chain(), tracking=wrong)


async def test_foreign_persistence():
    """What is no persistence of a store is refused by every verb, before anything is done."""
    from graphkeep import FullStatePersistence

    graph = PersistentGraph(chain())
    wrong: Any
    for wrong in ('r', FullStatePersistence()):
        with pytest.raises(TypeError, match=r'store\.run'):
            await graph.run(state=Trail(), inputs=1, persistence=wrong)
        with pytest.raises(TypeError, match=r'store\.run'):
            await graph.initialize(state=Trail(), inputs=1, persistence=wrong)
        with pytest.raises(TypeError, match=r'store\.run'):
            async with graph.iter_from_persistence(wrong):
                pass
