"""What is known of a builder run's tasks: in its history, in its diagram, and within its steps."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic_graph import BaseNode, End, GraphBuilder, GraphRunContext, ReduceFirstValue, StepContext
from pydantic_graph.graph_builder import Graph

from graphkeep import (
    MemoryStore,
    NoCurrentStepError,
    PersistentGraph,
    RunFailedError,
    Step,
    StepRecord,
    current_step,
    run_or_resume,
)
from tests.builder.graphs import CASES
from tests.builder.trails import (
    STORES,
    Trail,
    chain,
    crash_after,
    crashed,
    looping,
    mapped,
    memory,
    nowhere,
    raising,
    record,
    resumed,
    waiting,
)

pytestmark = pytest.mark.anyio


def of(history: list[StepRecord], node_id: str) -> list[StepRecord]:
    """Return the tasks of a node."""
    return [r for r in history if r.kind == 'task' and r.node_id == node_id]


def first_wins() -> Graph[Trail, object, list[int], int]:
    """Of mapped items the first one that returns wins; the others are cancelled."""
    g = GraphBuilder(state_type=Trail, deps_type=object, input_type=list[int], output_type=int)

    @g.step
    async def race(ctx: StepContext[Trail, object, int]) -> int:
        if ctx.inputs:
            await anyio.sleep_forever()
        return ctx.inputs

    @g.step
    async def after(ctx: StepContext[Trail, object, int]) -> int:
        return ctx.inputs

    first = g.join(ReduceFirstValue[int](), initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(race),
        g.edge_from(race).to(first),
        g.edge_from(first).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


# --------------------------------------------------------------------------------------------------- history


async def test_tasks():
    """The history has the run, each of its tasks with node, status and times, and the end."""
    store = MemoryStore()
    await PersistentGraph(mapped()).run(state=Trail(), inputs=[1, 2], persistence=store.run('r'))
    history = await store.history('r')
    assert (history[0].node_id, history[0].kind, history[0].status) == ('__start__', 'node', 'success')
    assert (history[-1].node_id, history[-1].kind, history[-1].status) == ('End', 'end', 'success')
    tasks = [r for r in history if r.kind == 'task']
    assert history[1:-1] == tasks
    assert Counter(r.node_id for r in tasks) == Counter(
        {'each': 1, 'item': 2, 'added': 2, 'total': 1, '__end__': 1}
    )
    for task in tasks:
        assert (task.status, task.attempt) == ('success', 1)
        (attempt,) = task.attempts
        assert (attempt.outcome, attempt.reason, attempt.error) == ('success', None, None)
    for task in [*of(history, 'item'), *of(history, 'total')]:
        assert task.start_ts is not None
        assert task.duration is not None
        assert task.duration >= 0
    assert [r.seq for r in history] == sorted(r.seq for r in history)


@pytest.mark.parametrize('name', STORES)
async def test_attempts(tmp_path: Path, name: str):
    """How often a task was attempted is the same in every store, and so it is told after a move."""
    (store, _), graph = await nowhere(tmp_path, name), PersistentGraph(mapped())
    async with store:
        with pytest.raises(OverflowError):
            await graph.run(state=Trail(), inputs=[1], deps=raising('total'), persistence=store.run('r'))
        await store.retry('r')
        assert await run_or_resume(graph, persistence=store.run('r')) == 1
        history = await store.history('r')
        assert {r.node_id: r.attempt for r in history} == {
            **{'__start__': 2, 'each': 1, 'item': 1, 'added': 1, 'total': 2},
            **{'__end__': 1, 'End': 0},
        }
        for other in (store, MemoryStore()):
            await other.import_run(await store.export('r'), run_id='moved')
            assert await other.history('moved') == history


async def test_paths():
    """A task's path says which item of which map it is, outermost first, also after a crash."""
    case = CASES['nested_maps_into_one_join']
    store, graph = MemoryStore(), PersistentGraph(case.build())
    await graph.run(state=case.state(), inputs=case.inputs(), persistence=store.run('r'))
    paths = {r.path for r in await store.history('r')}
    assert () in paths
    deepest = max(len(path) for path in paths)
    assert deepest == 2
    assert len({path for path in paths if len(path) == 2}) > 1
    store, clock = memory()
    await crashed(PersistentGraph(mapped()), store.run('s'), 4, state=Trail(), inputs=[5, 6, 7])
    await resumed(PersistentGraph(mapped()), store, clock, 's')
    history = await store.history('s')
    assert [r.path for r in of(history, 'item')] == [(('each', n),) for n in range(3)]
    assert sorted(r.path for r in of(history, 'added')) == [(('each', n),) for n in range(3)]
    assert [r.path for r in of(history, 'total')] == [()]


async def test_error():
    """A task that raised has the error in its history, also after a retry."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    with pytest.raises(OverflowError):
        await graph.run(state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('r'))
    history = await store.history('r')
    (two,) = of(history, 'two')
    assert (two.status, two.error and two.error.message) == ('error', 'two is too much')
    assert history[0].status == 'error'
    await store.retry('r')
    await run_or_resume(graph, persistence=store.run('r'))
    (two,) = of(await store.history('r'), 'two')
    assert (two.status, two.attempt) == ('success', 2)
    assert [a.outcome for a in two.attempts] == ['error', 'success']
    assert two.attempts[0].error is not None
    assert 'in hook' in two.attempts[0].error.traceback


async def test_interrupted():
    """A step that was interrupted has an attempt that was released, with the reason, and how long it took."""
    store, graph = MemoryStore(), PersistentGraph(mapped())
    async with graph.iter(
        state=Trail(), inputs=[1, 2], deps=waiting('item 2'), persistence=store.run('r')
    ) as run:
        with anyio.move_on_after(0.05):
            async for _ in run:
                pass
    history = await store.history('r')
    one, two = of(history, 'item')
    assert (one.status, two.status, two.attempt) == ('success', 'created', 1)
    (attempt,) = two.attempts
    assert attempt.outcome == 'released'
    assert attempt.reason is not None
    assert attempt.duration is not None
    assert history[0].attempts[-1].outcome == 'released'
    await run_or_resume(graph, persistence=store.run('r'))
    two = of(await store.history('r'), 'item')[1]
    assert [a.outcome for a in two.attempts] == ['released', 'success']


async def test_interrupted_by():
    """The reason says what the run was interrupted by."""
    store, graph = MemoryStore(), PersistentGraph(mapped())

    async def leave() -> None:
        async with graph.iter(
            state=Trail(), inputs=[1, 2], deps=waiting('item 2'), persistence=store.run('r')
        ) as run:
            await run.next()
            await run.next()  # the first item has ended, and the second one is in flight
            raise LookupError

    with pytest.raises(LookupError):
        await leave()
    item = of(await store.history('r'), 'item')[1]
    assert [a.reason for a in item.attempts] == ['interrupted by LookupError']


@pytest.mark.parametrize('by_store', [False, True])
async def test_recovered(by_store: bool):
    """After a crash a step that was in flight has an attempt that was recovered, and says from whom."""
    store, clock = memory()
    graph = PersistentGraph(mapped())
    await crashed(graph, store.run('r'), 5, state=Trail(), inputs=[1, 2], deps=record([]))
    clock.forward(100)
    if by_store:
        assert await store.recover('r') == 1
    await run_or_resume(graph, persistence=store.run('r'))
    history = await store.history('r')
    again = [r for r in history if r.kind == 'task' and r.attempt > 1]
    assert again
    assert history[0].attempts[0].outcome == 'recovered'
    for task in again:
        assert [a.outcome for a in task.attempts] == ['recovered', 'success']
        assert task.attempts[0].reason is not None
        assert 'gone' in task.attempts[0].reason


async def test_cancelled():
    """A task that the run went on without is cancelled, and stays so."""
    store = MemoryStore()
    graph = PersistentGraph(first_wins())
    await graph.run(state=Trail(), inputs=[1, 0, 2], persistence=store.run('r'))
    history = await store.history('r')
    assert [r.status for r in of(history, 'race')] == ['cancelled', 'success', 'cancelled']
    assert [a.outcome for a in of(history, 'race')[0].attempts] in (['cancelled'], [])
    assert not [r for r in history if r.status in ('created', 'running', 'pending')]


async def test_loop():
    """Each round of a loop has tasks of its own."""
    store = MemoryStore()
    await PersistentGraph(looping()).run(state=Trail(), inputs=3, persistence=store.run('r'))
    history = await store.history('r')
    assert [len(of(history, node)) for node in ('again', 'letter', 'count')] == [3, 6, 3]
    assert len({r.id for r in history}) == len(history)


# --------------------------------------------------------------------------------------------------- diagrams


def notes_of(text: str) -> dict[str, str]:
    """Return the notes of a diagram of one line each."""
    return dict(re.findall(r'^  note right of (\S+): (.+)$', text, re.M))


async def test_drawn():
    """Each node is drawn with how many of its tasks there were, by their status."""
    store, graph = MemoryStore(), PersistentGraph(mapped())
    with pytest.raises(OverflowError):
        await graph.run(state=Trail(), inputs=[1, 2, 3], deps=raising('total'), persistence=store.run('r'))
    text = graph.render(title='t', direction='LR', run=await store.history('r'))
    assert text.startswith(mapped().render(title='t', direction='LR'))
    assert notes_of(text) == {
        'each': '1 success',
        'item': '3 success',
        'added': '3 success',
        'total': '1 error',
    }


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case.runs_here])
async def test_drawn_as_mermaid_permits(name: str):
    """Notes are beside nodes that the diagram has, each once, and not in the way of the host's own."""
    case = CASES[name]
    store, graph = MemoryStore(), PersistentGraph(case.build(), types=case.types)
    await graph.run(state=case.state(), inputs=case.inputs(), deps=case.deps(), persistence=store.run('r'))
    text = graph.render(run=await store.history('r'))
    plain = case.build().render()
    assert '__start__' not in text
    assert '__end__' not in text
    if 'end note' in plain:
        assert set(plain.split('\n')) <= set(text.split('\n'))
        return
    assert text.startswith(plain)
    drawn = set(re.findall(r'^  (?:state )?([\w-]+)(?: <<\w+>>|: .*)?$', plain, re.M))
    added = text.removeprefix(plain).split('\n')
    assert added[0] == ''
    for line in added[1:]:
        assert (found := re.fullmatch(r'  note right of ([\w-]+): \d+ \w+(, \d+ \w+)*', line)), line
        assert found[1] in drawn
    assert len(set(added)) == len(added)


async def test_drawn_within_a_note():
    """A decision that has a note of its own keeps it; the counts are added to that, its only one."""
    g = GraphBuilder(input_type=int, output_type=int)

    @g.step
    async def one(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs

    way = g.decision(note='which way', node_id='way').branch(g.match(int).to(g.end_node))
    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(way))
    plain: Graph[None, None, int, int] = g.build()
    store, graph = MemoryStore(), PersistentGraph(plain)
    await graph.run(inputs=1, persistence=store.run('r'))
    text = graph.render(run=await store.history('r'))
    assert '  note right of way\n    which way\n    1 success\n  end note\n' in text
    assert text.count('note right of way') == 1
    assert notes_of(text) == {'one': '1 success'}


async def test_drawn_before_it_has_begun():
    """A run of which nothing has been run is drawn as the graph is."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    await graph.initialize(state=Trail(), inputs=1, persistence=store.run('r'))
    assert graph.render(run=await store.history('r')) == chain().render()


async def test_drawn_without_nodes_that_are_gone():
    """A run is drawn on the graph that there is: of nodes that this does not have, nothing is told."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    await PersistentGraph(mapped()).run(state=Trail(), inputs=[1], persistence=store.run('r'))
    assert graph.render(run=await store.history('r')) == chain().render()
    await graph.run(state=Trail(), inputs=1, persistence=store.run('s'))
    notes = notes_of(graph.render(run=[*await store.history('r'), *await store.history('s')]))
    assert notes == dict.fromkeys(('one', 'two', 'three'), '1 success')


# ---------------------------------------------------------------------------------------------- current_step


async def test_current_step():
    """Within a step it is known which task of which run it is; the key is each task's own."""
    store, steps = MemoryStore(), list[Step]()

    async def hook(name: str) -> None:
        await anyio.lowlevel.checkpoint()
        steps.append(current_step())

    await PersistentGraph(looping()).run(state=Trail(), inputs=2, deps=hook, persistence=store.run('r'))
    tasks = [r for r in await store.history('r') if r.node_id in ('again', 'letter')]
    assert {step.snapshot_id for step in steps} == {task.id for task in tasks}
    assert {(step.run_id, step.attempt) for step in steps} == {('r', 1)}
    assert len({step.idempotency_key for step in steps}) == len(steps) == 6
    with pytest.raises(NoCurrentStepError):
        current_step()


@pytest.mark.parametrize('how', ['crashed', 'left', 'failed'])
async def test_same_key(how: str):
    """The key is the same in every attempt at a task, however the last one ended; attempts are counted."""
    keys: dict[str, set[str]] = {}
    attempts: dict[str, list[int]] = {}
    store, clock = memory()
    graph = PersistentGraph(mapped())

    async def note(name: str) -> None:
        keys.setdefault(name, set()).add(current_step().idempotency_key)
        attempts.setdefault(name, []).append(current_step().attempt)

    async def hook(name: str) -> None:
        await note(name)
        if name == 'item 2':
            if how == 'failed':
                raise OverflowError
            await anyio.sleep_forever()

    async def leave() -> None:
        persistence = store.run('r')
        async with graph.iter(state=Trail(), inputs=[1, 2], deps=hook, persistence=persistence) as run:
            with anyio.move_on_after(0.05):
                async for _ in run:
                    pass
            if how == 'crashed':
                crash_after(persistence, 0)

    for _ in range(2):
        try:
            if not await store.runs():
                await leave()
            else:
                await run_or_resume(graph, deps=note, persistence=store.run('r'))
        except BaseException:  # noqa: S110 -- it failed or crashed
            pass
        clock.forward(100)
        if how == 'failed' and (await store.runs())[0].status == 'error':
            await store.retry('r')
    assert {name: len(of_one) for name, of_one in keys.items()} == {
        'item 1': 1,
        'item 2': 1,
        'total': 1,
    }
    assert len({key for found in keys.values() for key in found}) == 3
    assert attempts['item 2'] == [1, 2]
    assert attempts['item 1'] == [1]


async def test_keys_of_runs():
    """Tasks of two runs have no key in common, nor have those of a run and its fork."""
    store, keys = MemoryStore(), list[str]()
    graph = PersistentGraph(chain())

    async def hook(name: str) -> None:
        keys.append(current_step().idempotency_key)

    for run_id in ('r', 's'):
        await graph.run(state=Trail(), inputs=1, deps=hook, persistence=store.run(run_id))
    assert len(set(keys)) == len(keys) == 6


async def test_in_a_node():
    """It is known in a `BaseNode`'s `run`, too."""
    seen: list[Step] = []

    @dataclass
    class Only(BaseNode[None, None, int]):
        async def run(self, ctx: GraphRunContext[None, None]) -> End[int]:
            seen.append(current_step())
            return End(1)

    g = GraphBuilder(output_type=int)

    @g.step
    async def begin(ctx: StepContext[None, None, None]) -> Only:
        return Only()

    g.add(g.edge_from(g.start_node).to(begin), g.node(Only))
    graph: Any = PersistentGraph(g.build())
    await graph.run(persistence=MemoryStore().run('r'))
    assert [step.run_id for step in seen] == ['r']


async def test_without_persistence():
    """A plain run within a step of a persisted one does not change what is known there."""
    store, seen = MemoryStore(), list[Step]()

    async def hook(name: str) -> None:
        before = current_step()
        await chain().run(state=Trail(), inputs=1)
        assert current_step() == before
        seen.append(before)

    await PersistentGraph(chain()).run(state=Trail(), inputs=1, deps=hook, persistence=store.run('r'))
    assert len(seen) == 3


async def test_run_within_a_run():
    """A persisted run within a step is a run of its own, and the step's own is there again afterwards."""
    store, seen = MemoryStore(), list[str]()

    async def inner(name: str) -> None:
        seen.append(current_step().run_id)

    async def hook(name: str) -> None:
        await PersistentGraph(chain()).run(
            state=Trail(), inputs=1, deps=inner, persistence=store.run(f'inner {name}')
        )
        seen.append(current_step().run_id)

    await PersistentGraph(chain()).run(state=Trail(), inputs=1, deps=hook, persistence=store.run('r'))
    assert seen[:4] == ['inner one', 'inner one', 'inner one', 'r']
    assert Counter(seen)['r'] == 3


@pytest.mark.both_backends
async def test_failed_run_within_a_run():
    """A step that lets out that another run has failed has failed itself."""
    store = MemoryStore()
    with pytest.raises(OverflowError):
        await PersistentGraph(chain()).run(
            state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('inner')
        )

    async def hook(name: str) -> None:
        if name == 'two':
            await run_or_resume(PersistentGraph(chain()), persistence=store.run('inner'))

    graph = PersistentGraph(chain())
    with pytest.raises(RunFailedError, match="'inner'"):
        await graph.run(state=Trail(), inputs=1, deps=hook, persistence=store.run('r'))
    infos = {info.id: info for info in await store.runs()}
    assert (infos['r'].status, infos['r'].owner, infos['r'].resumable) == ('error', None, False)
    (two,) = of(await store.history('r'), 'two')
    (attempt,) = two.attempts
    assert (two.status, attempt.outcome) == ('error', 'error')
    with pytest.raises(RunFailedError, match="'r'"):
        await run_or_resume(graph, deps=hook, persistence=store.run('r'))
    await store.retry('inner')
    await store.retry('r')
    assert await run_or_resume(graph, deps=hook, persistence=store.run('r')) == 'came to 3'
