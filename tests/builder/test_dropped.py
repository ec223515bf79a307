"""What a run goes on without: streams, ends and failures that whoever drives it, or a join, has done with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from pydantic_graph import (
    BaseNode,
    End,
    GraphBuilder,
    GraphRunContext,
    ReduceFirstValue,
    StepContext,
    reduce_list_append,
)
from pydantic_graph.graph_builder import EndMarker, Graph, GraphTaskRequest
from pydantic_graph.id_types import NodeID

from graphkeep import MemoryStore, PersistentGraph, StepRecord, run_or_resume
from tests.builder.corpus.cases import HOST
from tests.builder.trails import Trail, chain, on, record

pytestmark = pytest.mark.anyio


def names_of(event: Any) -> list[str]:
    """Return the nodes of the tasks that an event tells; none if it is an end."""
    return [] if isinstance(event, EndMarker) else [task.node_id for task in event]


def of(history: list[StepRecord], node_id: str) -> list[StepRecord]:
    """Return the tasks of a node."""
    return [r for r in history if r.kind == 'task' and r.node_id == node_id]


# ------------------------------------------------------------------------------------- streams, stopped early


async def settle() -> None:
    """Let all that is under way come to where it waits to be received."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


def racing(steps: int, whole: bool, carried: bool, changing: bool) -> Graph[Trail, object, None, str]:
    """A step `quick`, and so many after it, and a stream `slow` race to a join; then come three steps.

    The stream is a whole step, or what a step returns; it may be carried on by a decision, and may change the
    state.
    """
    g = GraphBuilder(state_type=Trail, deps_type=object, output_type=str)

    async def numbers(ctx: StepContext[Trail, object, int]) -> AsyncIterator[int]:
        await on(ctx.deps, 'slow')
        if changing:
            ctx.state.steps.append('slow')
        for number in range(3):
            yield number

    async def return_numbers(ctx: StepContext[Trail, object, int]) -> Any:
        return numbers(ctx)

    @g.step
    async def quick(ctx: StepContext[Trail, object, Any]) -> str:
        return 'quick'

    @g.step
    async def before(ctx: StepContext[Trail, object, Any]) -> int:
        return 1

    @g.step
    async def look(ctx: StepContext[Trail, object, int]) -> str:
        await anyio.sleep_forever()
        return 'slow'

    async def pass_on(ctx: StepContext[Trail, object, str]) -> str:
        return ctx.inputs

    def called(name: str) -> Any:
        async def go_on(ctx: StepContext[Trail, object, str]) -> str:
            await on(ctx.deps, name)
            ctx.state.steps.append(name)
            return ctx.inputs

        return g.step(go_on, node_id=name)

    slow = g.stream(numbers, node_id='slow') if whole else g.step(return_numbers, node_id='slow')
    first = g.join(ReduceFirstValue[str](), initial='', node_id='first')
    racers: list[Any] = [quick, *(g.step(pass_on, node_id=f'quick {n}') for n in range(steps))]
    way: list[Any] = [first, *map(called, ('one', 'two', 'three')), g.end_node]
    chained = [*pairwise([*racers, first]), *pairwise(way)]
    decision: Any = g.decision(node_id='carry')
    to_look = decision.branch(g.match(cast('Any', object), matches=lambda _: True).map().to(look))
    g.add(
        g.edge_from(g.start_node).to(quick, before),
        g.edge_from(before).to(slow),
        g.edge_from(slow).to(to_look) if carried else g.edge_from(slow).map().to(look),
        g.edge_from(look).to(first),
        *(g.edge_from(one).to(next_) for one, next_ in chained),
    )
    return g.build()


# a stream that the host leaves to the garbage collector, which tells that on trio
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.both_backends
@pytest.mark.parametrize('changing', [False, True], ids=['pure', 'changing'])
@pytest.mark.parametrize('carried', [False, True], ids=['mapped', 'carried'])
@pytest.mark.parametrize('whole', [False, True], ids=['returned', 'whole'])
@pytest.mark.parametrize('steps', range(3))
async def test_stream_stopped_early(steps: int, whole: bool, carried: bool, changing: bool):
    """A stream that a join has stopped, at whatever point, is done with: what comes later is committed.

    When the run is gone on with, the stream does not run again, and the join does not fire again.
    """
    store, graph = MemoryStore(), PersistentGraph(racing(steps, whole, carried, changing))
    how: dict[str, Any] = {'state': Trail(), 'deps': record(ran := [])}
    async with graph.iter(**how, persistence=store.run('r')) as run:
        async for event in run:
            await settle()
            if names_of(event) == ['three']:
                break
    history = await store.history('r')
    assert [[r.status for r in of(history, name)] for name in ('one', 'two')] == [['success']] * 2
    assert not {'created', 'running'} & {r.status for r in history[1:] if r.node_id != 'three'}
    persistence = store.run('r')
    assert await run_or_resume(graph, deps=record(ran), persistence=persistence) == 'quick'
    assert [name for name in ran if name != 'slow'] == ['one', 'two', 'three']
    assert ran.count('slow') <= 1
    steps_taken = (await persistence.last_state()).steps
    assert steps_taken == [name for name in ran if changing or name != 'slow']


# ------------------------------------------------------------------------------------- ends that were not one


@pytest.mark.both_backends
@pytest.mark.parametrize('left_at', ['three', '__end__', 'end'])
async def test_overridden_end(left_at: str):
    """An end that was overridden is none: the run comes to the later one, wherever it is left before."""
    store, graph = MemoryStore(), PersistentGraph(chain())

    async def drive(run: Any) -> None:
        overridden, stack = False, run.next_task[0].fork_stack
        async for event in run:
            if overridden and left_at in (names_of(event) or ['end']):
                return
            if isinstance(event, EndMarker):
                run.override_next([GraphTaskRequest(NodeID('two'), 50, stack)])
                overridden = True

    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        await drive(run)
    persistence = store.run('r')
    assert await run_or_resume(graph, persistence=persistence) == 'came to 51'
    assert (await persistence.last_state()).steps == ['one', 'two', 'three', 'two', 'three']
    ends = of(await store.history('r'), '__end__')
    assert [end.status for end in ends] == ['cancelled', 'success']


@dataclass
class Count(BaseNode[None, None, str]):
    """Ends at once, or after one more."""

    number: int

    async def run(self, ctx: GraphRunContext[None, None]) -> Count | End[str]:
        return End(f'end {self.number}') if self.number else Count(5)


@pytest.mark.both_backends
async def test_overridden_end_of_a_node():
    """So it is with the `End` that a `BaseNode` returns."""
    g = GraphBuilder(input_type=Count, output_type=str)
    g.add(g.edge_from(g.start_node).to(Count), g.node(Count))
    store, graph = MemoryStore(), PersistentGraph(g.build())

    async def drive(run: Any) -> None:
        overridden, stack = False, run.next_task[0].fork_stack
        async for event in run:
            if overridden:
                return
            if isinstance(event, EndMarker):
                run.override_next([GraphTaskRequest(NodeID('Count'), Count(0), stack)])
                overridden = True

    async with graph.iter(inputs=Count(1), persistence=store.run('r')) as run:
        await drive(run)
    ends = of(await store.history('r'), '__end__')
    assert [end.status for end in ends] == ['cancelled']
    assert await run_or_resume(graph, persistence=store.run('r')) == 'end 5'


@pytest.mark.both_backends
async def test_two_ends_at_once():
    """Of two tasks that are at the end at once, the one whose output came out is the success on record."""
    g = GraphBuilder(output_type=str)

    @g.step
    async def a(ctx: StepContext[None, None, None]) -> str:
        return 'a'

    @g.step
    async def b(ctx: StepContext[None, None, None]) -> str:
        return 'b'

    g.add(
        g.edge_from(g.start_node).to(a, b),
        g.edge_from(a).to(g.end_node),
        g.edge_from(b).to(g.end_node),
    )
    store, graph = MemoryStore(), PersistentGraph(g.build())
    async with graph.iter(persistence=store.run('r')) as run:
        async for _ in run:
            await settle()
        output = run.output
    history = await store.history('r')
    ends = of(history, '__end__')
    assert sorted(end.status for end in ends) == ['cancelled', 'success']
    (path,) = (end.path for end in ends if end.status == 'success')
    assert [r.path for r in of(history, output)] == [path]
    assert await run_or_resume(graph, persistence=store.run('r')) == output


# ------------------------------------------------------------------------------- failures that were recovered


def failing(make: Callable[[StepContext[Trail, object, Any]], Any]) -> Graph[Trail, object, None, list[int]]:
    """Return a graph with a map over what a step `numbers` makes; `mend` is for whoever drives it."""
    g = GraphBuilder(state_type=Trail, deps_type=object, output_type=list[int])

    @g.step
    async def numbers(ctx: StepContext[Trail, object, None]) -> Any:
        await on(ctx.deps, 'numbers')
        return make(ctx)

    @g.step
    async def look(ctx: StepContext[Trail, object, int]) -> int:
        ctx.state.steps.append(f'look {ctx.inputs}')
        return ctx.inputs

    @g.step
    async def mend(ctx: StepContext[Trail, object, int]) -> int:
        ctx.state.steps.append('mend')
        return ctx.inputs

    @g.step
    async def last(ctx: StepContext[Trail, object, list[int]]) -> list[int]:
        ctx.state.steps.append('last')
        return sorted(ctx.inputs)

    listed = g.join(reduce_list_append, initial_factory=list[int], node_id='listed')
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(look),
        g.edge_from(look, mend).to(listed),
        g.edge_from(listed).to(last),
        g.edge_from(last).to(g.end_node),
    )
    return g.build(validate_graph_structure=False)


RECOVERABLE = pytest.mark.skipif(HOST < (2, 50), reason='early hosts end when a stream raises')


def stream(ctx: StepContext[Trail, object, Any]) -> AsyncIterator[int]:
    """Return a stream that fails after two items."""

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise OverflowError('too many')

    return numbers()


def changing(ctx: StepContext[Trail, object, Any]) -> AsyncIterator[int]:
    """Return the same, of a step that has changed the state."""
    ctx.state.steps.append('numbers')
    return stream(ctx)


def iterator(ctx: StepContext[Trail, object, Any]) -> Iterator[int]:
    """Return an iterator that fails before its first item gets out."""

    def numbers() -> Iterator[int]:
        yield 1
        raise OverflowError('too many')

    return numbers()


@pytest.mark.both_backends
@pytest.mark.parametrize('left_at', ['listed', 'last', '__end__'])
@pytest.mark.parametrize(
    'make',
    [pytest.param(stream, marks=RECOVERABLE), pytest.param(changing, marks=RECOVERABLE), iterator],
    ids=lambda make: make.__name__,
)
async def test_recovered_stream(make: Any, left_at: str):
    """What a stream raised is recovered with `override_next`: the run has not failed, and goes on from there.

    The step that made the stream is cancelled, with its error; what came later is committed.
    """
    store, graph = MemoryStore(), PersistentGraph(failing(make))
    state, ran = Trail(), list[str]()

    async def drive(run: Any) -> None:
        stack, failed = run.next_task[0].fork_stack, False
        while True:
            try:
                event = await anext(run)
            except OverflowError:
                run.override_next([GraphTaskRequest(NodeID('mend'), 99, stack)])
                failed = True
                continue
            names = names_of(event)
            if 'look' in names:
                stack = event[0].fork_stack
            if failed and left_at in names and (left_at != 'listed' or event[0].inputs == 99):
                return

    async with graph.iter(state=state, deps=record(ran), persistence=store.run('r')) as run:
        await drive(run)
    (info,) = await store.runs()
    assert (info.status, info.owner, info.error) == ('created', None, None)
    history = await store.history('r')
    (numbers,) = of(history, 'numbers')
    assert numbers.status == 'cancelled'
    assert [(a.outcome, a.error and a.error.type) for a in numbers.attempts] == [('error', 'OverflowError')]
    if left_at in ('last', '__end__'):
        assert [r.status for r in of(history, 'mend')] == ['success']
    persistence = store.run('r')
    expected = [99] if make is iterator else [1, 2, 99]
    assert await run_or_resume(graph, deps=record(ran), persistence=persistence) == expected
    assert ran == ['numbers']
    looked = [] if make is iterator else ['look 1', 'look 2']
    steps = (await persistence.last_state()).steps
    assert sorted(steps) == sorted([*looked, 'mend', 'last', *(ran if make is changing else [])])
    assert steps[-1] == 'last'
