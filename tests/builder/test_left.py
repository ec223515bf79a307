"""What a run leaves behind however it ends: nobody has it, nothing is lost, and others can go on with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic_graph import GraphBuilder, ReduceFirstValue, StepContext, reduce_sum
from pydantic_graph.graph_builder import EndMarker, Graph, GraphTaskRequest
from pydantic_graph.id_types import NodeID

from graphkeep import (
    MemoryStore,
    PersistentGraph,
    RunFailedError,
    StorageError,
    Store,
    UnfaithfulSnapshotError,
    iter_or_resume,
    run_or_resume,
)
from graphkeep.claims import Commitment
from graphkeep.commit import Receipt
from graphkeep.status import START
from tests.backends.stores import Shelf
from tests.builder.graphs import CASES, Case
from tests.builder.trails import Trail, chain, early, looping, mapped, raising, record

pytestmark = pytest.mark.anyio


# ---------------------------------------------------------------------------------------------------- storage


@pytest.mark.both_backends
@pytest.mark.parametrize('make', [chain, mapped, looping, early], ids=lambda make: make.__name__)
async def test_disk_full(make: Callable[[], Any]):
    """If the storage fails at any commit, that error comes out, nothing is lost, and the run goes on."""
    inputs: Any = [1, 2] if make is mapped else 2
    expected = await make().run(state=Trail(), inputs=inputs)
    graph, failing, failed = PersistentGraph(make()), 0, True
    while failed:
        failing += 1
        store = MemoryStore()
        persistence = store.run('r')
        disk = FullDisk(persistence, failing)
        how: dict[str, Any] = {'state': Trail(), 'inputs': inputs}
        if failed := await disk.fills(graph, persistence=persistence, **how):
            done: list[str] = []
            for info in await store.runs():
                assert (info.status, info.owner) == ('created', None), f'commit {failing} failed'
                done = (await persistence.last_state()).steps
            again: list[str] = []
            how = {'state': Trail(), 'inputs': inputs, 'deps': record(again)}
            assert await run_or_resume(graph, persistence=store.run('r'), **how) == expected
            assert not set(done) & set(again), f'commit {failing} failed'
    assert failing > 5


class FullDisk:
    """Lets one commit of a persistence fail."""

    def __init__(self, persistence: Any, failing: int):
        self.commit = persistence._commit
        self.left = failing
        persistence._commit = self

    async def __call__(self, write: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise StorageError('the disk', 'write', OSError(28, 'No space left on device'))
        return await self.commit(write)

    async def fills(self, graph: Any, **how: Any) -> bool:
        """Run the graph, and return whether the commit failed; then that is the error that comes out."""
        with anyio.fail_after(5):
            try:
                await run_or_resume(graph, **how)
            except StorageError:
                return True
        assert self.left > 0, 'the error should come out'
        return False


# ----------------------------------------------------------------------------------------------- cancellation

CANCELLED = [
    CASES[name]
    for name in (
        *('chain_of_steps', 'map_of_every_change', 'nested_maps_into_one_join', 'stream_of_numbers'),
        *('join_that_numbers_its_items', 'nodes_in_a_map', 'map_and_join_in_a_loop', 'empty_map'),
    )
]


class Turns:
    """Cancels a call after so many turns of the event loop."""

    def __init__(self, turns: int):
        self.turns = turns
        self.scope = anyio.CancelScope()

    async def finishes(self, run: Callable[..., Any], given: dict[str, Any], **how: Any) -> bool:
        """Call it, and return whether it ended before."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._cancel)
            with self.scope:
                await run(**given, **how)
                return True
        return False

    async def _cancel(self) -> None:
        for _ in range(self.turns):
            await anyio.lowlevel.checkpoint()
        self.scope.cancel()


# a stream that the host leaves to the garbage collector, which tells that on trio
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.both_backends
@pytest.mark.parametrize('case', CANCELLED, ids=repr)
async def test_cancelled(case: Case):
    """A run that is cancelled after any number of turns is in nobody's hands, and comes to its result."""
    expected_state = case.state()
    output = await case.build().run(state=expected_state, inputs=case.inputs(), deps=case.deps())
    expected = case.normalise(output, expected_state)
    graph = PersistentGraph(case.build(), types=case.types)
    turn, finished = 0, False
    while not finished:
        store = MemoryStore()
        with anyio.fail_after(20):
            finished = await Turns(turn).finishes(
                graph.run,
                {'state': case.state(), 'inputs': case.inputs(), 'deps': case.deps()},
                persistence=store.run('r'),
            )
        await check_free(store, f'after {turn} turns')
        persistence = store.run('r')
        result = await run_or_resume(
            graph, state=case.state(), inputs=case.inputs(), deps=case.deps(), persistence=persistence
        )
        assert case.normalise(result, await persistence.last_state()) == expected, f'after {turn} turns'
        turn += 1
        assert turn < 2000
    assert turn > 5 or case.name == 'empty_map'  # it has nothing to wait for


async def test_task_cancelled():
    """The same with `Task.cancel` of asyncio; and the cancellation comes out."""
    turn = 0
    while True:
        store, graph = MemoryStore(), PersistentGraph(mapped())
        task = asyncio.create_task(graph.run(state=Trail(), inputs=[1, 2], persistence=store.run('r')))
        for _ in range(turn):
            await asyncio.sleep(0)
        if not task.cancel():
            break
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [info.owner for info in await store.runs()] in ([], [None])
        persistence = store.run('r')
        assert await run_or_resume(graph, state=Trail(), inputs=[1, 2], persistence=persistence) == 3
        assert len((await persistence.last_state()).steps) == 3
        turn += 1
    assert turn > 5
    assert task.result() == 3


async def check_free(store: Store, when: str) -> None:
    """Nobody has a run that is there, and nothing of it is in hand."""
    for info in await store.runs():
        assert (info.status, info.owner) in (('created', None), ('success', None)), when
        assert not [r for r in await store.history(info.id) if r.status in ('running', 'pending')], when


@pytest.mark.both_backends
@pytest.mark.parametrize('begun', [False, True])
async def test_cancelled_service(begun: bool, shelf: Shelf):
    """The call of a service, cancelled after any number of turns, leaves the run to whoever comes next."""
    store, graph, turn, finished = await shelf.open(), PersistentGraph(mapped()), 0, False
    how: dict[str, Any] = {'inputs': [1, 2], 'state': Trail()}
    while not finished:
        run_id, turn = f'r{turn}', turn + 1
        if begun:
            await graph.initialize(**how, persistence=store.run(run_id))
        with anyio.fail_after(20):
            finished = await Turns(turn).finishes(
                run_or_resume, {}, graph=graph, **how, persistence=store.run(run_id)
            )
        await check_free(store, f'after {turn} turns')
        persistence = store.run(run_id)
        assert await run_or_resume(graph, **how, persistence=persistence) == 3
        assert len((await persistence.last_state()).steps) == 3
        await store.delete(run_id)
        how['state'] = Trail()
    assert turn > 5


@pytest.mark.both_backends
async def test_timed_out_within():
    """A run whose iteration is timed out can be left at once, and gone on with."""
    store, graph = MemoryStore(), PersistentGraph(mapped())

    async def wait(name: str) -> None:
        if name == 'item 2':
            await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with graph.iter(state=Trail(), inputs=[1, 2], deps=wait, persistence=store.run('r')) as run:
            with anyio.move_on_after(0.02):
                async for _ in run:
                    pass
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('created', None)
    assert await run_or_resume(graph, persistence=store.run('r')) == 3


# --------------------------------------------------------------------------------------- tasks that end oddly


def race(stubborn: bool) -> Graph[None, None, list[float], float]:
    """Who is first wins; what the others say when they are cancelled is of no account."""
    g = GraphBuilder(input_type=list[float], output_type=float)

    @g.step
    async def run(ctx: StepContext[None, None, float]) -> float:
        try:
            await anyio.sleep(ctx.inputs)
        except BaseException:
            if not stubborn:
                raise
        return ctx.inputs

    @g.step
    async def cheer(ctx: StepContext[None, None, float]) -> float:
        return ctx.inputs

    @g.step
    async def bow(ctx: StepContext[None, None, float]) -> float:
        return ctx.inputs

    first = g.join(ReduceFirstValue[float](), initial=0.0)
    g.add(
        g.edge_from(g.start_node).map().to(run),
        g.edge_from(run).to(first),
        g.edge_from(first).to(cheer),
        g.edge_from(cheer).to(bow),
        g.edge_from(bow).to(g.end_node),
    )
    return g.build()


@pytest.mark.both_backends
@pytest.mark.parametrize('stubborn', [False, True])
async def test_stopped_early(stubborn: bool, shelf: Shelf):
    """A run whose join has cancelled tasks is nobody's when it has ended or is left; they lead to nothing."""
    store, graph = await shelf.open(), PersistentGraph(race(stubborn))
    kept = store.run('ended'), store.run('left')  # or their going would free the runs
    assert await graph.run(inputs=[60.0, 0.01, 70.0], persistence=kept[0]) == 0.01
    async with graph.iter(inputs=[60.0, 0.01, 70.0], persistence=kept[1]) as run:
        async for event in run:
            if not isinstance(event, EndMarker) and event[0].node_id == 'bow':
                break
    assert [(i.status, i.owner) for i in await store.runs()] == [('success', None), ('created', None)]
    runners = [record for record in await store.history('left') if record.node_id == 'run']
    assert [record.status for record in runners] == ['cancelled', 'success', 'cancelled']
    assert await run_or_resume(graph, persistence=store.run('left')) == 0.01
    assert len(await store.history('left')) == len(await store.history('ended'))
    assert await store.delete('ended')


async def test_leaked_cancellation():
    """A step that lets a cancellation of something else out has failed; whoever drives the run may go on."""
    g = GraphBuilder(state_type=Trail, output_type=str)

    @g.step
    async def ask(ctx: StepContext[Trail, None, None]) -> str:
        ctx.state.steps.append('ask')
        question = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(question.cancel)
        await question
        return 'answer'

    @g.step
    async def tell(ctx: StepContext[Trail, None, Any]) -> str:
        ctx.state.steps.append('tell')
        return 'told'

    g.add(g.edge_from(g.start_node).to(ask), g.edge_from(ask).to(tell), g.edge_from(tell).to(g.end_node))
    store, graph = MemoryStore(), PersistentGraph(g.build())
    persistence = store.run('r')
    async with graph.iter(state=Trail(), persistence=persistence) as run:
        (asked,) = await anext(run)
        with suppress(asyncio.CancelledError):
            await anext(run)
        run.override_next([GraphTaskRequest(NodeID('tell'), None, asked.fork_stack)])
        (told,) = await anext(run)
        assert told.node_id == '__end__'
    statuses = {record.node_id: record.status for record in await store.history('r')}
    assert (statuses['ask'], statuses['tell']) == ('cancelled', 'success')
    assert (await persistence.last_state()).steps == ['ask', 'tell']


@pytest.mark.both_backends
@pytest.mark.parametrize('call', ['run', 'run_or_resume'])
async def test_leaked_end_of_iteration(call: str):
    """A step that lets `StopAsyncIteration` out has failed; it is not the end of the run."""
    graph, store = PersistentGraph(mapped()), MemoryStore()
    how: dict[str, Any] = {'deps': raising('item 2', StopAsyncIteration()), 'persistence': store.run('r')}
    how |= {'state': Trail(), 'inputs': [1, 2]}
    with pytest.raises(RuntimeError, match='a step raised StopAsyncIteration'):
        await (graph.run(**how) if call == 'run' else run_or_resume(graph, **how))
    with pytest.raises(RunFailedError, match='StopAsyncIteration'):
        await run_or_resume(graph, persistence=store.run('r'))
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 3


@pytest.mark.both_backends
async def test_failed_meanwhile():
    """A step that raises while whoever drives the run is busy has failed, and is not lost."""
    graph, store = PersistentGraph(mapped()), MemoryStore()

    async def hook(name: str) -> None:
        if name == 'item 2':
            await anyio.sleep(0.02)
            raise OverflowError(name)

    async def drive_slowly() -> None:
        how: dict[str, Any] = {'state': Trail(), 'inputs': [1, 2], 'persistence': store.run('r')}
        async with graph.iter(deps=hook, **how) as run:
            async for _ in run:
                await anyio.sleep(0.05)

    with pytest.raises(OverflowError):
        await drive_slowly()
    with pytest.raises(RunFailedError, match='item 2'):
        await run_or_resume(graph, persistence=store.run('r'))
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 3


# -------------------------------------------------------------------------------- what runs between the steps


def joined_by(
    reducer: Callable[[int, int], int], first: Callable[[], int], after: Any
) -> Graph[None, None, list[int], int]:
    """Return a graph with a join."""
    g = GraphBuilder(input_type=list[int], output_type=int)

    @g.step
    async def item(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs

    joined = g.join(reducer, initial_factory=first, node_id='joined')
    g.add(
        g.edge_from(g.start_node).map().to(item),
        g.edge_from(item).to(joined),
        g.edge_from(joined).transform(after).to(g.end_node),
    )
    return g.build()


@pytest.mark.both_backends
@pytest.mark.parametrize('where', ['reducer', 'first value', 'transform'])
async def test_failed_between_steps(where: str):
    """A reducer, or what else runs between the steps, that raises: the run has failed, and can be retried."""
    broken = where

    def add(current: int, value: int) -> int:
        check('reducer')
        return current + value

    def zero() -> int:
        check('first value')
        return 0

    def double(ctx: StepContext[None, None, int]) -> int:
        check('transform')
        return 2 * ctx.inputs

    def check(here: str) -> None:
        if here == broken:
            raise OverflowError(here)

    store, graph = MemoryStore(), PersistentGraph(joined_by(add, zero, double))
    with pytest.raises(OverflowError, match=where):
        await graph.run(inputs=[1, 2], persistence=store.run('r'))
    (info,) = await store.runs()
    assert (info.status, info.owner, info.resumable) == ('error', None, False)
    assert info.error is not None
    assert info.error.type == 'OverflowError'
    assert await store.claim() is None
    broken = ''
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 6
    items = [record for record in await store.history('r') if record.node_id == 'item']
    assert [record.attempt for record in items] == [1, 1]


# ------------------------------------------------------------------------------------------- ends that fail


class FailingEnd(MemoryStore):
    """Fails to store the end of a run, or that it was left, as often as it is told to."""

    failures = 0

    def fail(self, persistence: Any, *, leaving: bool) -> None:
        """Let this persistence fail once."""
        commit = persistence._commit

        async def commit_or_fail(write: Any) -> Any:
            leaves = any(change.transition.name in ('fail', 'release') for change in write.changes)
            ends = any(row.record.kind == 'end' for row in write.rows)
            if not self.failures and (leaves if leaving else ends):
                self.failures += 1
                raise StorageError('the disk', 'write', OSError(28, 'No space left on device'))
            return await commit(write)

        persistence._commit = commit_or_fail


@pytest.mark.both_backends
async def test_end_not_stored():
    """If the end of a run cannot be stored, the run was left before; what had succeeded is not run again."""
    store, graph, again = FailingEnd(), PersistentGraph(mapped()), list[str]()
    persistence = store.run('r')
    store.fail(persistence, leaving=False)
    with pytest.raises(StorageError):
        await graph.run(state=Trail(), inputs=[1, 2], persistence=persistence)
    await check_free(store, 'the end failed')
    assert await run_or_resume(graph, deps=record(again), persistence=store.run('r')) == 3
    assert again == []


@pytest.mark.both_backends
@pytest.mark.parametrize('failed', [False, True])
async def test_leaving_not_stored(failed: bool):
    """If it cannot be stored that a run was left, the next use of its persistence makes up for that."""
    store, graph = FailingEnd(), PersistentGraph(mapped())
    persistence = store.run('r')
    store.fail(persistence, leaving=True)
    how: dict[str, Any] = {'state': Trail(), 'inputs': [1, 2], 'persistence': persistence}
    if failed:
        with pytest.raises(OverflowError, match='item 2') as raised:
            await graph.run(deps=raising('item 2'), **how)
        assert 'That the run was left could not be recorded' in raised.value.__notes__[0]
    else:
        with pytest.raises(StorageError):
            async with graph.iter(**how):
                pass
    (info,) = await store.runs()
    assert info.status == 'running'
    await persistence.release()
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('error' if failed else 'created', None)
    if failed:
        await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 3


@pytest.mark.both_backends
async def test_end_refused():
    """A state that is spoilt after the last step, by whoever drives the run: the run has failed."""
    g = GraphBuilder(state_type=dict[str, Any], output_type=int)

    @g.step
    async def one(ctx: StepContext[dict[str, Any], None, None]) -> int:
        return 1

    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(g.end_node))
    store, graph, state = MemoryStore(), PersistentGraph(g.build()), dict[str, Any]()

    async def spoil() -> None:
        async with graph.iter(state=state, persistence=store.run('r')) as run:
            async for _ in run:
                state['spoilt'] = object()

    with pytest.raises(UnfaithfulSnapshotError, match='object'):
        await spoil()
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('error', None)


# ------------------------------------------------------------------------------------------------- attempts


@pytest.mark.both_backends
async def test_attempts_whose_commit_had_to_wait():
    """A step that has returned, and was not committed when the run was left, was run: the history tells."""
    g = GraphBuilder(state_type=Trail, output_type=int, deps_type=object)

    @g.step
    async def slow(ctx: StepContext[Trail, object, None]) -> int:
        ctx.state.steps.append('slow')
        if ctx.deps is None:
            await anyio.sleep_forever()
        return 1

    @g.step
    async def quick(ctx: StepContext[Trail, object, None]) -> int:
        return 2

    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(slow, quick),
        g.edge_from(slow, quick).to(total),
        g.edge_from(total).to(g.end_node),
    )
    store, graph = MemoryStore(), PersistentGraph(g.build())
    with anyio.move_on_after(0.05):
        await graph.run(state=Trail(), persistence=store.run('r'))
    attempts = {r.node_id: [(a.outcome, a.reason) for a in r.attempts] for r in await store.history('r')}
    assert attempts['quick'] == [('released', 'its commit had to wait')]
    assert [outcome for outcome, _ in attempts['slow']] == ['released']
    async with iter_or_resume(graph, deps=object(), persistence=store.run('r')) as run:
        async for _ in run:
            pass
    assert [r.attempt for r in await store.history('r') if r.node_id in ('slow', 'quick')] == [2, 2]


@pytest.mark.parametrize('begun', [True, False])
async def test_interrupted_unawares(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, begun: bool):
    """An interrupt after the start of a run is stored, and before that is known, leaves nothing in hand."""
    store, graph, settle = await shelf.open(), PersistentGraph(chain()), Commitment.settle
    if begun:
        await graph.initialize(persistence=store.run('r'), state=Trail(), inputs=2)
    persistence = store.run('r')

    def interrupt(turn: Commitment, receipt: Receipt) -> None:
        if any(change.transition is START for change in turn.commit.changes):
            raise KeyboardInterrupt
        settle(turn, receipt)

    monkeypatch.setattr(Commitment, 'settle', interrupt)
    with pytest.raises(KeyboardInterrupt):
        await run_or_resume(graph, persistence=persistence, state=Trail(), inputs=2)
    monkeypatch.undo()
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('created', None)
    expected = await chain().run(state=Trail(), inputs=2)
    assert await run_or_resume(graph, persistence=store.run('r'), state=Trail(), inputs=2) == expected
