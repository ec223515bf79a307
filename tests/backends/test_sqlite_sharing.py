"""A SQLite store that is busy, closed, pruned or forked while somebody has a run of it in hand."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph, RunOwnedError, SqliteStore, UnknownSnapshotError, run_or_resume, steprun
from graphkeep._host import ensure_snapshot_id
from graphkeep.backend import LockBusy
from graphkeep.claims import Commitment
from graphkeep.commit import Commit, StatusChange
from graphkeep.offload import finished
from graphkeep.status import START
from graphkeep.turns import Stint
from tests.backends.stores import Clock

pytestmark = pytest.mark.anyio


@dataclass
class Tally:
    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Count(BaseNode[Tally, None, list[int]]):
    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, None]) -> Count | End[list[int]]:
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == 3 else Count(self.number + 1)


graph = Graph(nodes=(Count,))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Be the path of a store that does not exist yet."""
    return tmp_path / 'runs.db'


async def in_hand(store: SqliteStore) -> Any:
    """Begin a run and take its first node in hand."""
    persistence: Any = store.run('run')
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(Tally(), Count())
    assert await persistence.load_next()
    return persistence


async def renewed(persistence: Any) -> None:
    """Let the heartbeat beat once, and wait until that was made."""
    assert persistence._claims._renew()
    if (renewing := persistence._claims._renewing) is not None:
        await finished(renewing)
        renewing.result()


@pytest.mark.parametrize('trouble', ['locked', 'closed', 'long'])
async def test_heartbeat(path: Path, trouble: str):
    """A lease is renewed while the store is locked for a moment, was closed, or has a long log."""
    clock = Clock()
    store = SqliteStore(path, clock=clock, lease=30)
    persistence = await in_hand(store)
    clock.forward(20)
    if trouble == 'closed':
        await store.aclose()
    elif trouble == 'long':
        cast('Any', store)._database._writer._long = True
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        if trouble == 'locked':
            other.execute('BEGIN IMMEDIATE')
            timer = threading.Timer(0.05, other.execute, ['ROLLBACK'])
            timer.start()
        await renewed(persistence)
        if trouble == 'locked':
            timer.join()  # pyright: ignore[reportPossiblyUnboundVariable]
    (info,) = await store.runs()
    assert info.expires == clock() + timedelta(seconds=30)
    clock.forward(20)
    with pytest.raises(RunOwnedError):
        await run_or_resume(graph, persistence=SqliteStore(path, clock=clock).run('run'))
    await store.aclose()


@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_closed_while_in_hand(path: Path, durability: Any):
    """Keeping a run, or giving it back, opens a closed store only for that; storing something, to stay."""
    clock = Clock()
    store = SqliteStore(path, clock=clock, lease=30, durability=durability)
    database = cast('Any', store)._database
    persistence = await in_hand(store)
    await store.aclose()
    for _ in range(2):
        clock.forward(20)
        await renewed(persistence)
        await is_closed(store)
    async with SqliteStore(path, clock=clock) as other:
        (info,) = await other.runs()
        assert info.expires == clock() + timedelta(seconds=30)
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id):
        pass
    await persistence.snapshot_node(Tally([1]), Count(2))
    assert database.ready
    await store.aclose()
    claimed = await store.claim()
    assert claimed
    await store.aclose()
    await claimed.release()
    await is_closed(store)
    async with SqliteStore(path, clock=clock) as other:
        assert await other.claim()


async def is_closed(store: SqliteStore) -> None:
    """Wait until no connection of a store is open."""
    database = cast('Any', store)._database
    for _ in range(5_000):
        if database._writer.db is None and not any(database.readers.connections()):
            break
        await anyio.sleep(0.001)
    else:
        pytest.fail('a connection is still open')
    assert not database.ready


async def test_pruned_while_at_hand(path: Path):
    """An instance that has a run at hand notices that a part of it was pruned."""
    clock = Clock()
    async with SqliteStore(path, clock=clock) as store:
        persistence: Any = store.run('run')
        persistence.set_graph_types(graph)
        for number in (1, 2):
            await persistence.snapshot_node(Tally(), Count(number))
        first, second = await persistence.load_history()
        async with persistence.record_run(second.id):
            pass
        await persistence.snapshot_node(Tally(), Count(3))
        clock.forward(days=1)
        pruned = await store.prune(older_than=timedelta(hours=1), only_finished=False)
        assert pruned.snapshots == 1
        with pytest.raises(LookupError):
            async with persistence.record_run(first.id):
                pass
        assert [record.seq for record in await store.history('run')] == [2, 3]
        assert await SqliteStore(path, clock=clock).run('run').load_history()


async def test_deleted_while_at_hand(path: Path, monkeypatch: pytest.MonkeyPatch):
    """An instance that has a run at hand notices that it was deleted, also while its rows are still there."""

    def interrupted(run: int) -> None:
        """Delete nothing, as if that were interrupted at once."""

    async with SqliteStore(path) as store, SqliteStore(path) as other:
        monkeypatch.setattr(other, '_sweep', interrupted)
        with pytest.raises(UnknownSnapshotError):  # noqa: PT012 -- from the step after the deletion on
            async with graph.iter(Count(), state=Tally(), persistence=store.run('run')) as run:
                await run.next()
                assert await other.delete('run')
                await run.next()
        with closing(sqlite3.connect(path)) as db:
            assert db.execute('SELECT status, finished, steps FROM runs').fetchall() == [('created', 2, 2)]
            monkeypatch.undo()
            assert not await other.delete('run')
            assert db.execute('SELECT count(*) FROM steps').fetchone() == (0,)
        assert await store.runs() == []


@pytest.mark.parametrize('waits', [False, True])
async def test_step_that_ends_after_another_write(path: Path, waits: bool):
    """That somebody has written meanwhile is noticed at the end of a step, which is made all the same."""
    async with SqliteStore(path) as store:
        persistence = await in_hand(store)
        (record,) = await persistence.load_history()
        async with persistence.record_run(record.id):
            pass
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute('UPDATE runs SET version = version + 1')
            if waits:
                other.execute('BEGIN IMMEDIATE')
                timer = threading.Timer(0.05, other.execute, ['ROLLBACK'])
                timer.start()
            await persistence.snapshot_node(Tally([1]), Count(2))
            if waits:
                timer.join()  # pyright: ignore[reportPossiblyUnboundVariable]
        steps = [(step.seq, step.status, step.attempt) for step in await store.history('run')]
        assert steps == [(1, 'success', 1), (2, 'created', 0)]
        assert (await run_or_resume(graph, persistence=persistence)).output == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the platform does not fork')
@pytest.mark.filterwarnings('ignore:This process:DeprecationWarning')
async def test_owner_after_a_fork(path: Path):
    """What the parent has in hand a child that was forked does not have, and it is an owner of its own."""
    async with SqliteStore(path) as store:
        persistence = await in_hand(store)
        before = persistence._claims.owner
        if (pid := os.fork()) == 0:
            claims = persistence._claims
            claims.here()
            os._exit(0 if (claims.fence, claims.owner.pid) == (None, os.getpid()) else 1)
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
        assert status == 0
        persistence._claims.here()
        assert persistence._claims.owner is before
        assert persistence._claims.fence == 1


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the platform does not fork')
@pytest.mark.filterwarnings('ignore:This process:DeprecationWarning')
@pytest.mark.parametrize('in_hand', [False, True])
async def test_step_after_a_fork(path: Path, in_hand: bool):
    """A step in a child is the child's own, and not one of what its parent has in hand."""

    def start(persistence: Any, snapshot_id: str) -> None:
        turn = Commitment(persistence._claims, Commit((StatusChange(snapshot_id, START),)))
        try:
            persistence._backend.write(turn)
        except LockBusy:  # the child has not opened the file yet
            made = persistence._backend.queue(turn)
            while not made.done():
                time.sleep(0.001)
            made.result()

    def child() -> bool:
        start(runs[0], ids[0])
        try:
            start(runs[1], ids[1])
        except RunOwnedError:
            return in_hand
        with closing(sqlite3.connect(path)) as db:
            ((owner,),) = db.execute("SELECT owner FROM runs WHERE id = 'run-1'").fetchall()
        return not in_hand and json.loads(owner)['pid'] == os.getpid()

    async with SqliteStore(path) as store:
        runs: list[Any] = [store.run(f'run-{number}') for number in range(2)]
        ids: list[str] = []
        for run in runs:
            run.set_graph_types(graph)
            first, second = Count(), Count()
            await run.snapshot_node(Tally(), first)
            async with run.record_run(ensure_snapshot_id(first)):
                pass
            await run.snapshot_node(Tally(), second)
            ids.append(ensure_snapshot_id(second))
        if in_hand:
            runs[1]._claims.keeping = True  # what a worker has claimed it keeps between its steps
            async with runs[1].record_run(ids[1]):
                pass
            node = Count()
            await runs[1].snapshot_node(Tally(), node)
            ids[1] = ensure_snapshot_id(node)
        if (pid := os.fork()) == 0:
            os._exit(0 if child() else 1)
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
        assert status == 0


async def test_waiting_for_a_turn_is_no_part_of_a_node(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What passes before a node is recorded as started does not count as its duration."""
    now = 0.0

    async def turn_comes(stint: Stint) -> None:
        nonlocal now
        now += 100

    monkeypatch.setattr(steprun, 'perf_counter', lambda: now)
    monkeypatch.setattr(Stint, 'is_over', True)
    monkeypatch.setattr(Stint, 'give_way', turn_comes)
    async with SqliteStore(path) as store:
        persistence: Any = await in_hand(store)
        (snapshot,) = await persistence.load_history()
        async with persistence.record_run(snapshot.id):
            now += 1
        await persistence.snapshot_node(Tally(), Count())
        assert now >= 101
        assert (await persistence.load_history())[0].duration == 1


async def test_closed_while_in_use(path: Path):
    """Closing waits for what is under way: no commit fails by it, and none is lost."""
    async with SqliteStore(path, durability='full') as store:
        async with anyio.create_task_group() as group:
            for number in range(30):
                persistence: Any = store.run(f'run-{number}')
                persistence.set_graph_types(graph)
                group.start_soon(persistence.snapshot_node, Tally(), Count())
                if number % 5 == 0:
                    group.start_soon(store.aclose)
        assert len(await store.runs()) == 30


async def test_without_threads(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where no thread is to be had a commit is made all the same."""
    async with SqliteStore(path, durability='full') as store:
        await store.runs()
        await in_hand(store)

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(cast('Any', store)._database._threads, 'submit', refuse)
        persistence: Any = store.run('other')
        persistence.set_graph_types(graph)
        await persistence.snapshot_node(Tally(), Count())
        assert {info.id for info in await store.runs()} == {'run', 'other'}
