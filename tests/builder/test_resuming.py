"""Starting, leaving and going on with persisted runs: by this process or another, in every store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import anyio
import pytest
from pydantic_graph import GraphBuilder, StepContext

from graphkeep import (
    FileStatePersistence,
    MemoryStore,
    OwnershipLostError,
    PersistentGraph,
    RunExistsError,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    SqliteStore,
    UnknownRunError,
    iter_or_resume,
    run_or_resume,
)
from tests.backends.stores import STORES, Shelf
from tests.builder.trails import (
    LEASE,
    Clock,
    Trail,
    chain,
    crashed,
    looping,
    mapped,
    memory,
    raising,
    record,
    resumed,
    waiting,
)

pytestmark = pytest.mark.anyio


def begin(ran: list[str] | None = None) -> dict[str, Any]:
    """Return what a run of `mapped` is begun with."""
    return {'state': Trail(), 'inputs': [1, 2, 3], 'deps': record([] if ran is None else ran)}


# ------------------------------------------------------------------------------------------------- beginning


async def test_initialize(shelf: Shelf):
    """A run that was initialized is not run yet; whoever goes on with it later runs it from its start."""
    store, graph = await shelf.open(), PersistentGraph(mapped())
    await graph.initialize(state=Trail(['before']), inputs=[1, 2], persistence=store.run('r'))
    (info,) = await store.runs()
    assert (info.status, info.resumable, info.graph) == ('created', True, 'mapped')
    other = await shelf.open()
    async with graph.iter_from_persistence(other.run('r')) as run:
        assert (run.state, run.inputs) == (Trail(['before']), [1, 2])
        async for _ in run:
            pass
        assert run.output == 3
    assert sorted((await run_state(other)).steps) == ['before', 'item 1', 'item 2', 'total']


async def run_state(store: Any) -> Trail:
    """Return the recorded state of the run `r` of `mapped`."""
    persistence = store.run('r')
    assert await run_or_resume(PersistentGraph(mapped()), persistence=persistence) is not None
    return await persistence.last_state()


async def test_initialize_twice():
    """A run is initialized once; the first one stays."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    await graph.initialize(state=Trail(), inputs=1, persistence=store.run('r'))
    with pytest.raises(RunExistsError, match="'r'"):
        await graph.initialize(state=Trail(), inputs=2, persistence=store.run('r'))
    assert await run_or_resume(graph, persistence=store.run('r')) == 'came to 3'


@pytest.mark.parametrize('ended', [False, True])
async def test_run_of_a_run_that_is_there(ended: bool):
    """`run` and `iter` begin runs only; the one that is there stays as it is."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    await graph.initialize(state=Trail(), inputs=1, persistence=store.run('r'))
    if ended:
        await run_or_resume(graph, persistence=store.run('r'))
    before = await store.export('r')
    with pytest.raises(RunExistsError):
        await graph.run(state=Trail(), inputs=1, persistence=store.run('r'))
    with pytest.raises(RunExistsError):
        async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')):
            pass
    assert await store.export('r') == before


async def test_unknown_run():
    """`iter_from_persistence` begins no run, nor does who gives a graph neither its state nor its inputs."""
    store = MemoryStore()
    with pytest.raises(UnknownRunError, match="'r'"):
        async with PersistentGraph(chain()).iter_from_persistence(store.run('r')):
            pass
    with pytest.raises(UnknownRunError, match='with its state and inputs'):
        await run_or_resume(PersistentGraph(chain()), persistence=store.run('r'))
    assert await store.runs() == []


async def test_nothing_to_give():
    """A graph without state and inputs needs none to begin; one that takes `None` is given it."""
    store = MemoryStore()
    g: Any = GraphBuilder(input_type=cast(Any, int | None), output_type=str)

    @g.step
    async def tell(ctx: StepContext[None, None, int | None]) -> str:
        return repr(ctx.inputs)

    g.add(g.edge_from(g.start_node).to(tell), g.edge_from(tell).to(g.end_node))
    graph: Any = PersistentGraph(g.build())
    with pytest.raises(UnknownRunError):
        await run_or_resume(graph, persistence=store.run('r'))
    assert await run_or_resume(graph, inputs=None, persistence=store.run('r')) == 'None'
    nothing = GraphBuilder(output_type=str)

    @nothing.step
    async def speak(ctx: StepContext[None, None, None]) -> str:
        return 'here'

    nothing.add(
        nothing.edge_from(nothing.start_node).to(speak), nothing.edge_from(speak).to(nothing.end_node)
    )
    assert await run_or_resume(PersistentGraph(nothing.build()), persistence=store.run('s')) == 'here'


async def test_wrong_graph():
    """What `GraphBuilder.build()` returned has to be wrapped, and has no first node; both is said."""
    store, graph = MemoryStore(), chain()
    with pytest.raises(TypeError, match='in a PersistentGraph'):
        await run_or_resume(cast(Any, graph), persistence=store.run('r'))
    with pytest.raises(TypeError, match='give `inputs`, not `start_node`'):
        await cast(Any, run_or_resume)(PersistentGraph(graph), object(), persistence=store.run('r'))
    assert await store.runs() == []


@pytest.mark.both_backends
async def test_several_begin():
    """Of several that begin one run exactly one does; nothing is run twice."""
    store, graph, ran, outcomes = MemoryStore(), PersistentGraph(mapped()), list[str](), list[object]()

    async def call() -> None:
        try:
            outcomes.append(await run_or_resume(graph, persistence=store.run('r'), **begin(ran)))
        except RunOwnedError:
            outcomes.append('owned')

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
    assert 6 in outcomes
    assert set(outcomes) <= {6, 'owned'}
    assert sorted(ran) == ['item 1', 'item 2', 'item 3', 'total']


# ---------------------------------------------------------------------------------------------- run_or_resume


async def test_run_or_resume(shelf: Shelf):
    """`run_or_resume` begins a run, goes on with it after a crash, and returns what it came to."""
    graph, clock = PersistentGraph(mapped()), shelf.clock
    commits = 0
    while True:
        store = await shelf.open()
        run_id, ran, again = f'r{commits}', list[str](), list[str]()
        if not await crashed(graph, store.run(run_id), commits, **begin(ran)):
            break
        clock.forward(LEASE + 1)
        succeeded = [
            r for r in await store.run(run_id).load_history() if (r.node_id, r.status) == ('item', 'success')
        ]
        persistence = (await shelf.open()).run(run_id)
        assert await run_or_resume(graph, persistence=persistence, **begin(again)) == 6
        assert len([name for name in again if 'item' in name]) == 3 - len(succeeded)
        steps = sorted((await persistence.last_state()).steps)
        assert steps == ['item 1', 'item 2', 'item 3', 'total']
        assert await run_or_resume(graph, persistence=persistence, **begin(again)) == 6
        commits += 1
    assert commits > 3


@pytest.mark.parametrize('commits', range(9))
async def test_crashed_twice(commits: int):
    """A run that crashes while it is gone on with is gone on with again; ids of tasks do not recur."""
    store, clock = memory()
    graph = PersistentGraph(looping())
    await crashed(graph, store.run('r'), 3, state=Trail(), inputs=2)
    clock.forward(LEASE + 1)
    await crashed(graph, store.run('r'), commits, state=Trail(), inputs=2)
    assert await resumed(graph, store, clock) == ['a1', 'b1']
    ids = [r.id for r in await store.history('r') if r.kind == 'task']
    assert len(ids) == len(set(ids))
    persistence = store.run('r')
    await run_or_resume(graph, persistence=persistence)
    assert (await persistence.last_state()).steps == ['again 2', 'again 1']


async def test_finished():
    """A finished run gives its result, or says that it has finished if that is wanted."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    await graph.run(state=Trail(), inputs=1, persistence=store.run('r'))
    assert await run_or_resume(graph, persistence=store.run('r'), state=Trail(), inputs=50) == 'came to 3'
    async with iter_or_resume(graph, persistence=store.run('r')) as run:
        assert (run.output, run.state.steps) == ('came to 3', ['one', 'two', 'three'])
        assert [event async for event in run] == []
    for resume in (
        iter_or_resume(graph, persistence=store.run('r'), on_finished='raise'),
        graph.iter_from_persistence(store.run('r')),
    ):
        with pytest.raises(RunFinishedError):
            async with resume:
                pass


async def test_no_output():
    """A run that came to nothing has finished all the same."""
    from pydantic_graph import GraphBuilder
    from pydantic_graph.graph_builder import Graph

    g = GraphBuilder(output_type=type(None))

    @g.step
    async def nothing(ctx: StepContext[None, None, None]) -> None:
        pass

    g.add(g.edge_from(g.start_node).to(nothing), g.edge_from(nothing).to(g.end_node))
    plain: Graph[None, None, None, None] = g.build()
    store, graph = MemoryStore(), PersistentGraph(plain)
    assert await graph.run(persistence=store.run('r')) is None
    assert await run_or_resume(graph, persistence=store.run('r')) is None
    with pytest.raises(RunFinishedError):
        await run_or_resume(graph, persistence=store.run('r'), on_finished='raise')


@pytest.mark.parametrize('by_store', [False, True])
async def test_failed(shelf: Shelf, by_store: bool):
    """A failed run is gone on with after a retry only, and then from the step that failed."""
    store, graph, ran = await shelf.open(), PersistentGraph(chain()), list[str]()
    with pytest.raises(OverflowError):
        await run_or_resume(graph, state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('r'))
    for _ in range(2):
        with pytest.raises(RunFailedError, match='two is too much') as caught:
            await run_or_resume(graph, state=Trail(), inputs=1, persistence=store.run('r'))
        assert caught.value.error is not None
    if by_store:
        await store.retry('r')
    else:
        await store.run('r').retry()
    assert await run_or_resume(graph, deps=record(ran), persistence=store.run('r')) == 'came to 3'
    assert ran == ['two', 'three']


async def test_several_items_failed():
    """A retry gives every task that failed another attempt, and what was beside them goes on."""
    store, graph, ran = MemoryStore(), PersistentGraph(mapped()), list[str]()

    async def fail(name: str) -> None:
        if name != 'item 2':
            raise OverflowError(name)

    with pytest.raises(OverflowError):
        await graph.run(state=Trail(), inputs=[1, 2, 3], deps=fail, persistence=store.run('r'))
    await store.retry('r')
    assert await run_or_resume(graph, deps=record(ran), persistence=store.run('r')) == 6
    assert {'item 1', 'item 3', 'total'} <= set(ran)


# -------------------------------------------------------------------------------------------------- ownership


@pytest.mark.both_backends
async def test_second_opener():
    """While a run is open, nobody else opens, retries, recovers or deletes it."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
        await run.next()
        with pytest.raises(RunOwnedError):
            await run_or_resume(graph, persistence=store.run('r'))
        with pytest.raises(RunOwnedError):
            async with graph.iter_from_persistence(store.run('r')):
                pass
        with pytest.raises(RunOwnedError):
            await store.recover('r')
        with pytest.raises(RunOwnedError):
            await store.delete('r')
        assert await store.claim() is None
        async for _ in run:
            pass
    assert await run_or_resume(graph, persistence=store.run('r')) == 'came to 3'


@pytest.mark.both_backends
async def test_second_opener_of_one_persistence():
    """Nor does anybody with the same persistence object."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    persistence = store.run('r')
    async with graph.iter(state=Trail(), inputs=1, persistence=persistence) as run:
        await run.next()
        with pytest.raises(RunOwnedError):
            async with graph.iter_from_persistence(persistence):
                pass
        async for _ in run:
            pass
        assert run.output == 'came to 3'


@pytest.mark.both_backends
async def test_taken_over():
    """A run whose lease has run out is taken over; the next commit of the former owner is refused."""
    store, clock = memory()
    graph = PersistentGraph(mapped())
    cancelled: list[str] = []
    finish = anyio.Event()

    async def hook(name: str) -> None:
        if name == 'item 1':
            await finish.wait()
            return
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(name)

    async def be_taken_over() -> None:
        async with graph.iter(state=Trail(), inputs=[1, 2, 3], deps=hook, persistence=store.run('r')) as run:
            await run.next()
            assert await resumed(graph, store, clock) == 6
            finish.set()
            async for _ in run:
                pass

    with pytest.raises(OwnershipLostError, match="'r'"):
        await be_taken_over()
    assert sorted(cancelled) == ['item 2', 'item 3']
    (info,) = await store.runs()
    assert info.status == 'success'
    assert sorted((await run_state(store)).steps) == ['item 1', 'item 2', 'item 3', 'total']


@pytest.mark.both_backends
async def test_told_of_the_take_over():
    """The former owner's steps are cancelled when its heartbeat finds out, if it writes nothing."""
    store, clock = memory()
    store._lease = 0.3  # so that the heart beats soon
    graph = PersistentGraph(chain())
    outcomes: list[object] = []

    async def take() -> None:
        await anyio.sleep(0.05)
        outcomes.append(await resumed(graph, store, clock))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            with pytest.raises(OwnershipLostError):
                await graph.run(state=Trail(), inputs=1, deps=waiting('two'), persistence=store.run('r'))
    assert outcomes == ['came to 3']


async def test_left_after_a_take_over():
    """Whoever leaves a run that was taken over meanwhile is told so, if it is not told something else."""
    store, clock = memory()
    graph = PersistentGraph(chain())

    async def leave(run_id: str, exc: Exception | None) -> None:
        async with graph.iter(state=Trail(), inputs=1, persistence=store.run(run_id)) as run:
            await run.next()
            assert await resumed(graph, store, clock, run_id) == 'came to 3'
            if exc is not None:
                raise exc

    with pytest.raises(OwnershipLostError):
        await leave('r', None)
    with pytest.raises(RuntimeError, match='of the caller'):
        await leave('s', RuntimeError('of the caller'))


async def test_claim(shelf: Shelf):
    """`claim` hands out builder runs that wait, crashed or were retried, each to one, to be gone on with."""
    store, graph = await shelf.open(), PersistentGraph(mapped())
    await graph.initialize(state=Trail(), inputs=[1, 2, 3], persistence=store.run('waits'))
    owner = store.run('crashed')  # which lives as long as it is held
    assert await crashed(graph, owner, 4, **begin())
    with pytest.raises(OverflowError):
        await graph.run(
            state=Trail(), inputs=[1, 2, 3], deps=raising('total'), persistence=store.run('failed')
        )
    assert {run_id for run_id, _ in [await take(store, graph)]} == {'waits'}
    shelf.clock.forward(LEASE + 1)
    await store.retry('failed')
    assert {run_id for run_id, _ in [await take(store, graph), await take(store, graph)]} == {
        'crashed',
        'failed',
    }
    assert await store.claim() is None


async def take(store: Any, graph: Any) -> tuple[str, object]:
    """Claim a run and go on with it; others cannot have it meanwhile."""
    persistence = await store.claim(graph='mapped')
    assert persistence is not None
    with pytest.raises(RunOwnedError):
        await run_or_resume(graph, persistence=store.run(persistence.run_id))
    assert await run_or_resume(graph, persistence=persistence) == 6
    return persistence.run_id, None


async def test_claimed_and_released():
    """A builder run that was claimed and released waits for anybody."""
    store, graph = MemoryStore(), PersistentGraph(mapped())
    await graph.initialize(state=Trail(), inputs=[1], persistence=store.run('r'))
    persistence = await store.claim()
    assert persistence is not None
    await persistence.release()
    assert await run_or_resume(graph, persistence=store.run('r')) == 1


# ------------------------------------------------------------------------------------------- a store's verbs


async def test_recover(shelf: Shelf):
    """A crashed run is running until it is recovered, also by `recover_all`; then it waits."""
    store, graph = await shelf.open(), PersistentGraph(mapped())
    owners = [store.run('one'), store.run('two')]  # which live as long as they are held
    for owner in owners:
        assert await crashed(graph, owner, 4, **begin())
    assert [info.status for info in await store.runs()] == ['running', 'running']
    assert await store.recover_all() == 0
    shelf.clock.forward(LEASE + 1)
    assert await store.recover('one') == 1
    assert await store.recover('one') == 0
    assert await store.recover_all() == 1
    assert [(info.status, info.resumable) for info in await store.runs()] == [('created', True)] * 2
    for run_id in ('one', 'two'):
        assert await run_or_resume(graph, persistence=store.run(run_id)) == 6


async def test_listed(shelf: Shelf):
    """A builder run is listed as what it is as a whole, with its graph, its error and when it changed."""
    store, graph, clock = await shelf.open(), PersistentGraph(chain()), shelf.clock
    await graph.initialize(state=Trail(), inputs=1, persistence=store.run('created'))
    with pytest.raises(OverflowError):
        await graph.run(state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('failed'))
    clock.forward(1)
    await graph.run(state=Trail(), inputs=1, persistence=store.run('finished', tags=['t']))
    async with graph.iter(state=Trail(), inputs=1, persistence=store.run('left')) as run:
        await run.next()
        open_ = {info.id: info for info in await store.runs()}['left']
        assert (open_.status, open_.resumable, open_.owner is not None) == ('running', False, True)
    infos = {info.id: info for info in await store.runs(graph='chain')}
    assert {run_id: info.status for run_id, info in infos.items()} == {
        'created': 'created',
        'failed': 'error',
        'finished': 'success',
        'left': 'created',
    }
    failed = infos['failed']
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ('OverflowError', 'two is too much')
    assert [info.id for info in await store.runs(status='error')] == ['failed']
    assert [info.id for info in await store.runs(tag='t')] == ['finished']
    if shelf.name != 'file':  # of a file it is when the file was written
        ended, created = infos['finished'].updated, infos['created'].updated
        assert ended is not None
        assert ended >= clock.now
        assert created == clock.now - timedelta(seconds=1)


async def test_deleted_and_pruned(shelf: Shelf):
    """Builder runs are deleted whole; pruning takes finished ones, and of others nothing that they need."""
    store, graph, clock = await shelf.open(), PersistentGraph(mapped()), shelf.clock
    assert await graph.run(persistence=store.run('finished'), **begin()) == 6
    assert await graph.run(persistence=store.run('deleted'), **begin()) == 6
    for commits in range(1, 6):
        assert await crashed(graph, store.run(f'crashed {commits}'), commits, **begin())
    assert await store.delete('deleted')
    assert not await store.delete('deleted')
    clock.forward(days=1)
    pruned = await store.prune(older_than=timedelta(seconds=-1_000_000_000), only_finished=False)
    assert pruned.runs == 1
    infos = await store.runs()
    assert [info.id for info in infos] == [f'crashed {commits}' for commits in range(1, 6)]
    for info in infos:
        persistence = store.run(info.id)
        assert await run_or_resume(graph, persistence=persistence) == 6
        assert sorted((await persistence.last_state()).steps)[:3] == ['item 1', 'item 2', 'item 3']


async def test_forked(shelf: Shelf):
    """A fork of a builder run goes on by itself from where that is; each comes to its own end."""
    store, graph = await shelf.open(), PersistentGraph(mapped())
    assert await crashed(graph, store.run('r'), 4, **begin())
    forked = await store.fork('r', into='s')
    ran: list[str] = []
    assert await run_or_resume(graph, deps=record(ran), persistence=forked) == 6
    shelf.clock.forward(LEASE + 1)
    again: list[str] = []
    assert await run_or_resume(graph, deps=record(again), persistence=store.run('r')) == 6
    assert sorted(ran) == sorted(again)
    infos = {info.id: info for info in await store.runs()}
    assert infos['s'].parent is not None
    assert infos['s'].parent[0] == 'r'
    with pytest.raises(ValueError, match='builder graph'):
        await store.fork('r', into='t', at=1)


async def test_failed_and_forked(shelf: Shelf):
    """A fork of a builder run that failed runs again what failed, and that run stays as it is."""
    store, graph = await shelf.open(), PersistentGraph(chain())
    with pytest.raises(OverflowError):
        await graph.run(state=Trail(), inputs=1, deps=raising('two'), persistence=store.run('r'))
    before = await store.history('r')
    forked = await store.fork('r', into='s')
    infos = {info.id: info for info in await store.runs()}
    assert (infos['r'].status, infos['s'].status, infos['s'].error) == ('error', 'created', None)
    ran: list[str] = []
    output = await run_or_resume(graph, deps=record(ran), persistence=forked)
    assert ran[0] == 'two'
    assert await store.history('r') == before
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == output


async def test_exported(shelf: Shelf, tmp_path: Path):
    """A builder run goes from any store through JSON to any other, and into a file, and goes on there."""
    store, graph = await shelf.open(), PersistentGraph(mapped())
    assert await crashed(graph, store.run('r'), 5, **begin())
    data = await store.export('r')
    for number, make in enumerate(STORES.values()):
        clock = Clock()
        async with make(tmp_path / str(number), clock) as other:
            await other.import_run(data, run_id='new')
            persistence = other.run('new')
            assert await run_or_resume(graph, persistence=persistence) == 6
            assert sorted((await persistence.last_state()).steps)[:3] == ['item 1', 'item 2', 'item 3']
            await other.import_run(await other.export('new'), run_id='again')
            assert await run_or_resume(graph, persistence=other.run('again')) == 6


async def test_in_a_file(tmp_path: Path):
    """A builder run is kept in one readable file as well."""
    graph, path = PersistentGraph(mapped()), tmp_path / 'run.json'
    async with graph.iter(persistence=FileStatePersistence[Any, Any](path), **begin()) as run:
        await run.next()
    assert b'"each"' in path.read_bytes()
    assert await run_or_resume(graph, persistence=FileStatePersistence[Any, Any](path)) == 6


# --------------------------------------------------------------------------------- loops, threads, processes


def test_another_event_loop(tmp_path: Path):
    """A run that was left in one event loop goes on in another, of either library, with the same objects."""
    store, graph = SqliteStore(tmp_path / 'runs.db'), PersistentGraph(mapped())
    persistence = store.run('r')

    async def leave() -> None:
        async with graph.iter(persistence=persistence, **begin()) as run:
            for _ in range(3):
                await run.next()

    async def go_on() -> int:
        return await run_or_resume(graph, persistence=persistence)

    async def close() -> None:
        await store.aclose()

    anyio.run(leave, backend='asyncio')
    assert anyio.run(go_on, backend='trio') == 6
    asyncio.run(close())


def test_two_event_loops_at_once(tmp_path: Path):
    """While a run is open in one thread's event loop, one in another thread is refused."""
    store, graph = SqliteStore(tmp_path / 'runs.db'), PersistentGraph(chain())
    opened, done, errors = threading.Event(), threading.Event(), list[BaseException]()

    async def hold() -> None:
        async with graph.iter(state=Trail(), inputs=1, persistence=store.run('r')) as run:
            await run.next()
            opened.set()
            await anyio.to_thread.run_sync(done.wait)
            async for _ in run:
                pass

    async def try_it() -> None:
        try:
            await run_or_resume(graph, persistence=store.run('r'))
        except RunOwnedError as exc:
            errors.append(exc)

    thread = threading.Thread(target=lambda: anyio.run(hold))
    thread.start()
    assert opened.wait(10)
    anyio.run(try_it)
    done.set()
    thread.join(10)
    assert len(errors) == 1
    assert anyio.run(lambda: run_or_resume(graph, persistence=store.run('r'))) == 'came to 3'
    anyio.run(store.aclose)


@pytest.mark.parametrize('store', ['sqlite', 'file'])
async def test_another_process(tmp_path: Path, store: str):
    """A run goes on in another process after its own was killed, without waiting for the lease."""
    script = dedent(
        """
        import os, sys, anyio
        from graphkeep import FileStore, PersistentGraph, SqliteStore, run_or_resume
        from tests.builder.trails import Trail, mapped

        async def hook(name):
            if name == sys.argv[3]:
                os.kill(os.getpid(), 9)
            print(name)

        async def main():
            make = SqliteStore if sys.argv[1] == 'sqlite' else FileStore
            async with make(sys.argv[2]) as store:
                graph = PersistentGraph(mapped())
                print(await run_or_resume(
                    graph, state=Trail(), inputs=[1, 2], deps=hook, persistence=store.run('r')
                ))

        anyio.run(main)
        """
    )
    printed: list[str] = []
    for killed_in in ('total', 'nowhere'):
        done = await anyio.to_thread.run_sync(
            lambda where=killed_in: subprocess.run(
                [sys.executable, '-u', '-c', script, store, str(tmp_path / 'runs'), where],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        )
        printed.append(done.stdout)
        assert 'Traceback' not in done.stderr
    assert sorted(printed[0].split('\n')) == ['', 'item 1', 'item 2']
    assert printed[1] == 'total\n3\n'


async def test_nothing_is_in_hand_afterwards():
    """Whether a run was left, failed or ended, its persistence holds nothing afterwards."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    persistence = store.run('r')
    async with graph.iter(state=Trail(), inputs=1, persistence=persistence) as run:
        await run.next()
    assert persistence._claims.fence is None
    with pytest.raises(OverflowError):
        await run_or_resume(graph, deps=raising('three'), persistence=persistence)
    assert persistence._claims.fence is None
    await persistence.retry()
    await run_or_resume(graph, persistence=persistence)
    assert persistence._claims.fence is None
