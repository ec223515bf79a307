"""A task that is alone runs within the wait for its result, and yet as if it had one of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic_graph import GraphBuilder, StepContext, reduce_sum
from pydantic_graph.graph_builder import EndMarker, Graph, GraphTaskRequest
from pydantic_graph.id_types import JoinID, NodeID

from graphkeep import MemoryStore, PersistentGraph, StepRecord, current_step, run_or_resume
from graphkeep.offload import current_task
from tests.builder.trails import Trail, chain, early, events_of, mapped, raising, record, told, waiting

pytestmark = pytest.mark.anyio

Hook = Callable[[str], Awaitable[None]]


@dataclass
class Places:
    """Writes down in which task of the event loop each step runs."""

    seen: dict[str, object] = field(default_factory=dict[str, object])

    async def __call__(self, name: str) -> None:
        self.seen[name] = current_task()

    def away_from(self, driver: object) -> list[str]:
        """Return the steps that ran in another task than this one."""
        return sorted(name for name, task in self.seen.items() if task is not driver)


def alone(history: list[StepRecord], node_id: str) -> StepRecord:
    """Return the one task of a node."""
    (one,) = (r for r in history if r.node_id == node_id)
    return one


async def drive(run: Any) -> Any:
    """Drive a run to its end."""
    async for _ in run:
        pass
    return run.output


# ---------------------------------------------------------------------------------------------- where it runs


@pytest.mark.both_backends
async def test_line():
    """The steps of a line run in the task of whoever drives the run; also when the run goes on."""
    graph, store, places, again = PersistentGraph(chain()), MemoryStore(), Places(), Places()
    await graph.run(state=Trail(), inputs=1, deps=places, persistence=store.run('r'))
    assert set(places.seen) == {'one', 'two', 'three'}
    assert places.away_from(current_task()) == []
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('s')) as run:
        await run.next()
    assert await run_or_resume(graph, deps=again, persistence=store.run('s')) == 'came to 3'
    assert again.seen
    assert again.away_from(current_task()) == []


@pytest.mark.both_backends
async def test_several():
    """Tasks beside others have tasks of the event loop; what is behind their join has none."""
    places = Places()
    graph = PersistentGraph(mapped())
    persistence = MemoryStore().run('r')
    assert await graph.run(state=Trail(), inputs=[1, 2], deps=places, persistence=persistence) == 3
    assert places.away_from(current_task()) == ['item 1', 'item 2']
    assert places.seen['item 1'] is not places.seen['item 2']


@pytest.mark.both_backends
async def test_beside_another():
    """One task that is to begin while another one goes on is not alone."""
    places = Places()
    graph = PersistentGraph(early())
    await graph.run(state=Trail(), inputs=1, deps=places, persistence=MemoryStore().run('r'))
    assert places.away_from(current_task()) == ['follow', 'quick', 'slow']


@pytest.mark.both_backends
async def test_one_item():
    """The only item of a map is alone."""
    places = Places()
    graph = PersistentGraph(mapped())
    persistence = MemoryStore().run('r')
    assert await graph.run(state=Trail(), inputs=[5], deps=places, persistence=persistence) == 5
    assert places.away_from(current_task()) == []


@pytest.mark.both_backends
async def test_driven_elsewhere():
    """A step is not run in a task that did not enter the run: that may end, or be cancelled, before it."""
    graph, store, places, events = PersistentGraph(chain()), MemoryStore(), Places(), list[Any]()
    here = current_task()
    async with graph.iter(state=Trail(), inputs=1, deps=places, persistence=store.run('r')) as run:

        async def ask() -> None:
            events.append(await anext(run))
            assert current_task() is not here
            assert current_task() not in places.seen.values()

        while not events or not isinstance(events[-1], EndMarker):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
    assert places.away_from(here) == ['one', 'three', 'two']
    async with chain().iter(state=Trail(), inputs=1) as plain:
        assert [told(event) for event in events] == await events_of(plain)


@pytest.mark.both_backends
async def test_waited_for_in_vain():
    """Who waits elsewhere and gives up does not cancel the step."""
    graph, store, ended = PersistentGraph(chain()), MemoryStore(), anyio.Event()

    async def hook(name: str) -> None:
        if name == 'one':
            await anyio.sleep(0.03)
            ended.set()

    async with graph.iter(state=Trail(), inputs=1, deps=hook, persistence=store.run('r')) as run:
        await anext(run)

        async def ask() -> None:
            with anyio.move_on_after(0.01):
                await anext(run)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
        with anyio.fail_after(5):
            await ended.wait()
    assert await run_or_resume(graph, persistence=store.run('r')) == 'came to 3'


def closing_two() -> Graph[None, Places, int, int]:
    """Two joins that nothing comes to are closed one after the other; behind each is a step."""
    g = GraphBuilder(deps_type=Places, input_type=int, output_type=int)

    @g.step
    async def nothing(ctx: StepContext[None, Places, int]) -> list[int]:
        return []

    @g.step
    async def behind(ctx: StepContext[None, Places, int]) -> int:
        await ctx.deps(f'behind {len(ctx.deps.seen)}')
        return ctx.inputs

    one, two = (
        g.join(reduce_sum, initial=0, node_id=name, preferred_parent_fork='closest')
        for name in ('first', 'second')
    )
    last = g.join(reduce_sum, initial=0, node_id='last')
    g.add(
        g.edge_from(g.start_node).to(nothing),
        g.edge_from(nothing).broadcast(
            lambda b: [
                b.map(downstream_join_id=JoinID('first')).to(one),
                b.map(downstream_join_id=JoinID('second')).to(two),
            ]
        ),
        g.edge_from(one, two).to(behind),
        g.edge_from(behind).to(last),
        g.edge_from(last).to(g.end_node),
    )
    return g.build()


@pytest.mark.both_backends
async def test_begun_while_told():
    """What a join leads to begins when whoever drives the run is told of it, not when the next is closed."""
    begun: list[list[int]] = []
    for graph in (closing_two(), PersistentGraph(closing_two())):
        places = Places()
        how: dict[str, Any] = {} if isinstance(graph, Graph) else {'persistence': MemoryStore().run('r')}
        begun.append([])
        async with graph.iter(inputs=1, deps=places, **how) as run:
            async for _ in run:
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                begun[-1].append(len(places.seen))
        assert len(places.seen) == 2
    plain, persisted = begun
    assert 1 in plain
    assert plain == persisted


@pytest.mark.both_backends
async def test_stream():
    """A map over a stream goes on while its items run, as in the plain graph."""
    order: list[str] = []
    g = GraphBuilder(output_type=int)

    @g.stream
    async def numbers(ctx: StepContext[None, None, None]) -> AsyncIterator[int]:
        for n in range(3):
            order.append(f'yields {n}')
            yield n
            await anyio.sleep(0.01)

    @g.step
    async def item(ctx: StepContext[None, None, int]) -> int:
        order.append(f'item {ctx.inputs}')
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(item),
        g.edge_from(item).to(total),
        g.edge_from(total).to(g.end_node),
    )
    assert await PersistentGraph(g.build()).run(persistence=MemoryStore().run('r')) == 3
    assert order == [f'{what} {n}' for n in range(3) for what in ('yields', 'item')]


# ------------------------------------------------------------------------------------------ context variables

colour: ContextVar[str] = ContextVar('colour', default='none')


@pytest.mark.both_backends
async def test_context():
    """A context variable that a step sets is neither the next step's nor whoever drives the run's."""
    seen: list[str] = []

    async def hook(name: str) -> None:
        seen.append(colour.get())
        colour.set(name)
        await anyio.lowlevel.checkpoint()
        assert colour.get() == name  # in its next slice, too
        assert current_step().run_id == 'r'

    graph = PersistentGraph(chain())
    token = colour.set('mine')
    try:
        async with graph.iter(state=Trail(), inputs=1, deps=hook, persistence=MemoryStore().run('r')) as run:
            async for _ in run:
                assert colour.get() == 'mine'
    finally:
        colour.reset(token)
    assert seen == ['mine'] * 3


# ----------------------------------------------------------------------------------------------- cancellation


async def check_interrupted(store: MemoryStore) -> None:
    """The step `two` was interrupted: it is free, and its attempt is on record; then go on with the run."""
    (info,) = await store.runs()
    assert (info.status, info.resumable, info.owner) == ('created', True, None)
    history = await store.history('r')
    assert not [r for r in history if r.kind == 'task' and r.status in ('running', 'pending')]
    two = alone(history, 'two')
    assert two.status == 'created'
    assert [attempt.outcome for attempt in two.attempts] == ['released']
    ran: list[str] = []
    graph = PersistentGraph(chain())
    assert await run_or_resume(graph, deps=record(ran), persistence=store.run('r')) == 'came to 3'
    assert ran == ['two', 'three']


@pytest.mark.both_backends
async def test_cancelled_scope():
    """A scope that is cancelled cancels the step that runs within it; the run is to be gone on with."""
    graph, store = PersistentGraph(chain()), MemoryStore()
    with anyio.fail_after(5):
        async with graph.iter(
            state=Trail(), inputs=1, deps=waiting('two'), persistence=store.run('r')
        ) as run:
            with anyio.move_on_after(0.02) as scope:
                await drive(run)
            assert scope.cancelled_caught
            with pytest.raises(StopAsyncIteration):
                await anext(run)  # as in the host: a wait that was cancelled is not repeated
    await check_interrupted(store)


def refuse() -> None:
    """Fail, as a connection does that is closed and was lost before."""
    raise ConnectionResetError('it is gone already')


async def given_up_meanwhile() -> None:
    """Await what somebody else cancels."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.cancel)
    with suppress(asyncio.CancelledError):
        await future


@pytest.mark.parametrize('how', ['cancel', 'timeout', 'group'])
async def test_clean_up_that_fails(how: str):
    """A step that is cancelled may handle errors while it cleans up; they are not what comes out."""
    graph, store, begun = PersistentGraph(chain()), MemoryStore(), asyncio.Event()

    async def hook(name: str) -> None:
        if name == 'two':
            try:
                begun.set()
                await asyncio.sleep(60)
            finally:
                with suppress(OSError):
                    await asyncio.to_thread(refuse)
                await given_up_meanwhile()

    async def go() -> None:
        await graph.run(state=Trail(), inputs=1, deps=hook, persistence=store.run('r'))

    async def fail() -> None:
        await begun.wait()
        raise LookupError('the sibling')

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(go())
            tasks.create_task(fail())

    if how == 'cancel':
        task = asyncio.create_task(go())
        await begun.wait()
        task.cancel('enough')
        with pytest.raises(asyncio.CancelledError, match='enough'):
            await task
    elif how == 'timeout':
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await go()
    else:
        with pytest.raises(ExceptionGroup) as caught:
            await both()
        assert [str(exc) for exc in caught.value.exceptions] == ['the sibling']
    await check_interrupted(store)


async def test_cancelled_after_an_error():
    """What a step has handled before it cancels whoever drives the run does not come out."""
    graph, store = PersistentGraph(chain()), MemoryStore()
    loops: list[asyncio.Task[Any]] = []

    async def hook(name: str) -> None:
        if name == 'two':
            with suppress(OSError):
                await asyncio.to_thread(refuse)
            loops[0].cancel('shutting down')
            await asyncio.sleep(60)

    loops.append(
        asyncio.create_task(graph.run(state=Trail(), inputs=1, deps=hook, persistence=store.run('r')))
    )
    with pytest.raises(asyncio.CancelledError, match='shutting down'):
        await loops[0]
    await check_interrupted(store)


async def test_cancelled_before():
    """Where whoever drives the run was cancelled before, and goes on, what a step awaits is its own."""
    graph, outputs = PersistentGraph(chain()), list[str]()

    async def hook(name: str) -> None:
        await given_up_meanwhile()

    async def go() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        persistence = MemoryStore().run('r')
        outputs.append(await graph.run(state=Trail(), inputs=1, deps=hook, persistence=persistence))

    task = asyncio.create_task(go())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert outputs == ['came to 3']


@pytest.mark.parametrize('stubborn', [False, True])
async def test_task_cancelled(stubborn: bool):
    """`Task.cancel` cancels the step and comes out, also if the step catches it, which then counts."""
    graph, store, begun = PersistentGraph(chain()), MemoryStore(), asyncio.Event()

    async def hook(name: str) -> None:
        if name == 'two':
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if not stubborn:
                    raise

    task = asyncio.create_task(graph.run(state=Trail(), inputs=1, deps=hook, persistence=store.run('r')))
    await begun.wait()
    task.cancel('enough')
    with pytest.raises(asyncio.CancelledError, match='enough'):
        await task
    if not stubborn:
        await check_interrupted(store)
        return
    assert (alone(await store.history('r'), 'two')).status == 'success'
    ran: list[str] = []
    assert await run_or_resume(graph, deps=record(ran), persistence=store.run('r')) == 'came to 3'
    assert ran == ['three']


@pytest.mark.both_backends
async def test_group_with_cancellation():
    """A cancellation that leaves the step in a group of exceptions is one all the same."""
    graph, store = PersistentGraph(chain()), MemoryStore()

    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise OverflowError

    async def hook(name: str) -> None:
        if name == 'two':
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class() as exc:
                    raise BaseExceptionGroup('all', [exc]) from None

    with anyio.fail_after(5):
        async with graph.iter(state=Trail(), inputs=1, deps=hook, persistence=store.run('r')) as run:
            with anyio.move_on_after(0.02) as scope:
                await drive(run)
            assert scope.cancel_called
    assert [info.owner for info in await store.runs()] == [None]


@pytest.mark.both_backends
async def test_timeouts_within():
    """A step's own scopes and task groups are its own: what they cancel is not whoever drives the run."""

    async def hook(name: str) -> None:
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(0.001):
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                pass  # a bad habit, which is no reason to cancel the run

    graph = PersistentGraph(chain())
    persistence = MemoryStore().run('r')
    assert await graph.run(state=Trail(), inputs=1, deps=hook, persistence=persistence) == 'came to 3'


async def test_asyncio_timeout_within():
    """So are `asyncio.timeout` and `asyncio.TaskGroup`."""

    async def hook(name: str) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(60)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))

    graph = PersistentGraph(chain())
    persistence = MemoryStore().run('r')
    assert await graph.run(state=Trail(), inputs=1, deps=hook, persistence=persistence) == 'came to 3'
    assert (current := asyncio.current_task()) is not None
    assert current.cancelling() == 0


async def test_background_task():
    """A task that a step starts, and leaves, goes on."""
    tasks: list[asyncio.Task[str]] = []

    async def later() -> str:
        await asyncio.sleep(0.01)
        return current_step().snapshot_id

    async def hook(name: str) -> None:
        tasks.append(asyncio.create_task(later()))

    graph = PersistentGraph(chain())
    await graph.run(state=Trail(), inputs=1, deps=hook, persistence=MemoryStore().run('r'))
    assert len(set(await asyncio.gather(*tasks))) == 3


# ----------------------------------------------------------------------------------------------------- errors


async def raised_at(graph: Any, exc: BaseException, **how: Any) -> tuple[list[Any], BaseException, Any]:
    """Have the step `two` raise; go on from there; return the events, the error, and the output."""
    events: list[Any] = []
    caught: BaseException | None = None

    async def hook(name: str) -> None:
        if name == 'two':
            raise exc

    async with graph.iter(state=Trail(), inputs=1, deps=hook, **how) as run:
        stack = run.next_task[0].fork_stack
        while not isinstance(run.next_task, EndMarker):
            try:
                events.append(told(await anext(run)))
            except BaseException as error:
                caught = error
                run.override_next([GraphTaskRequest(NodeID('three'), 7, stack)])
        output = run.output
    assert caught is not None
    return events, caught, output


@pytest.mark.parametrize(
    'kind', [OverflowError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
async def test_same_errors(kind: type[BaseException]):
    """Whatever a step raises, whoever drives the run is told, and may go on, as in the plain graph."""
    store = MemoryStore()
    expected = await raised_at(chain(), kind('oh'))
    events = await raised_at(PersistentGraph(chain()), kind('oh'), persistence=store.run('r'))
    assert (events[0], type(events[1]), events[2]) == (expected[0], type(expected[1]), expected[2])
    assert events[2] == 'came to 7'
    assert (alone(await store.history('r'), 'two')).status == 'cancelled'
    assert (await store.runs())[0].status == 'success'


@pytest.mark.both_backends
@pytest.mark.parametrize('exc', [StopAsyncIteration(), StopIteration()], ids=repr)
async def test_end_of_iteration(exc: Exception):
    """A step that lets an end of iteration out has failed; it ends neither the run nor the step."""
    graph, store = PersistentGraph(chain()), MemoryStore()
    with pytest.raises(RuntimeError, match=type(exc).__name__):
        await graph.run(state=Trail(), inputs=1, deps=raising('two', exc), persistence=store.run('r'))
    assert (alone(await store.history('r'), 'two')).status == 'error'
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 'came to 3'


# -------------------------------------------------------------------------------------------- fairness, depth


def counting(steps: int) -> Graph[None, None, int, int]:
    """A step that awaits nothing, run so many times."""
    g = GraphBuilder(input_type=int, output_type=int, auto_instrument=False)

    @g.step
    async def count(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs + 1

    g.add(
        g.edge_from(g.start_node).to(count),
        g.edge_from(count).to(
            g.decision()
            .branch(g.match(int, matches=lambda n: n < steps).to(count))
            .branch(g.match(int).to(g.end_node))
        ),
    )
    return g.build()


@pytest.mark.both_backends
async def test_others_have_their_turn():
    """Steps that await nothing, recorded where nothing has to be waited for, let others have their turn."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    graph = PersistentGraph(counting(1000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_turns)
        assert await graph.run(inputs=0, persistence=MemoryStore().run('r')) == 1000
        tasks.cancel_scope.cancel()
    assert turns > 20


@pytest.mark.both_backends
async def test_cancelled_between_steps():
    """So they can be timed out."""
    graph = PersistentGraph(counting(10**9))
    with anyio.fail_after(5), anyio.move_on_after(0.02) as scope:
        await graph.run(inputs=0, persistence=MemoryStore().run('r'))
    assert scope.cancelled_caught


@pytest.mark.both_backends
async def test_deep():
    """Runs within steps of runs do not use up Python's stack."""
    store = MemoryStore()
    g = GraphBuilder(input_type=int, output_type=int, auto_instrument=False)

    @g.step
    async def down(ctx: StepContext[None, None, int]) -> int:
        await anyio.lowlevel.checkpoint()
        if not ctx.inputs:
            return 0
        below = ctx.inputs - 1
        return 1 + await graph.run(inputs=below, persistence=store.run(f'r{below}'))

    g.add(g.edge_from(g.start_node).to(down), g.edge_from(down).to(g.end_node))
    graph: PersistentGraph[None, None, int, int] = PersistentGraph(g.build())
    assert await graph.run(inputs=150, persistence=store.run('r')) == 150
