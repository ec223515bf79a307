"""A SQLite store where somebody waits: for a lock, a thread, a turn, or a connection."""

from __future__ import annotations

import _thread
import os
import sqlite3
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from graphkeep import LockTimeoutError, SqliteStore, StorageError, sqldisk
from graphkeep.backend import TryAgain, Turn
from graphkeep.codec import Body
from graphkeep.commit import Commit, Receipt, Row, StepRecord
from graphkeep.offload import finished
from graphkeep.sqldb import Database
from tests.backends.sqlfaults import Statements, failing, watch
from tests.backends.stores import Count, Tally, begin, count_up

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Be the path of a store that does not exist yet."""
    return tmp_path / 'runs.db'


def database(store: SqliteStore) -> Database:
    """Return what is below a store."""
    return cast('Any', store)._database


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the file's lock from another connection."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute('BEGIN IMMEDIATE')
        yield
        other.execute('ROLLBACK')


# ------------------------------------------------------------------------------------------------- the lock


@pytest.mark.parametrize('seconds', [0, 0.1])
async def test_wait_for_this_process(path: Path, seconds: float):
    """Who waits for another thread of this process waits no longer than for another process."""
    async with SqliteStore(path, busy_timeout=seconds) as store:
        await begin(store, 'run')
        begun = time.monotonic()
        with database(store)._writer.mutex, anyio.fail_after(5), pytest.raises(LockTimeoutError):
            await store.delete('run')
        assert seconds <= time.monotonic() - begun < seconds + 2
        assert await store.delete('run')


async def test_one_wait_for_both(path: Path):
    """What was waited for this process's threads is not waited once more for another process."""
    async with SqliteStore(path, busy_timeout=0.6) as store:
        await begin(store, 'run')
        mutex, begun = database(store)._writer.mutex, time.monotonic()
        with locked(path):
            mutex.acquire()
            threading.Timer(0.4, mutex.release).start()
            with pytest.raises(LockTimeoutError):
                await store.delete('run')
        assert time.monotonic() - begun < 0.95


async def test_wait_without_end(path: Path):
    """A store may be told to wait for ever."""
    async with SqliteStore(path, busy_timeout=float('inf')) as store:
        await begin(store, 'run')
        assert await store.delete('run')


# ----------------------------------------------------------------------------------------------- the threads


async def test_other_stores_do_not_wait(path: Path):
    """However many verbs wait for one store, others go on, and so does what reads that one."""
    async with SqliteStore(path) as store, SqliteStore(path.with_name('other.db')) as other:
        await begin(store, 'run')
        await begin(other, 'run')
        async with anyio.create_task_group() as tasks:
            with locked(path):
                for number in range(50):
                    tasks.start_soon(store.delete, f'{number}')
                await anyio.sleep(0.05)
                with anyio.fail_after(3):
                    assert [info.id for info in await other.runs()] == ['run']
                    assert await other.delete('run')
                    assert [info.id for info in await store.runs()] == ['run']


# ------------------------------------------------------------------------------------------ the connections


async def test_connection_opened_while_closing(path: Path):
    """A connection that a thread opens while the store is closed is closed with the next closing."""
    async with SqliteStore(path) as store:
        await begin(store, 'run')
        readers = database(store).readers
        with readers.reading():
            pass
        reader = cast('Any', readers)._reader(threading.current_thread())
        await store.aclose()
        assert reader.db is None
        with readers.reading():
            pass
        assert cast('Any', readers)._reader(threading.current_thread()) is reader
        await store.aclose()
        assert readers.connections() == [None]


async def test_connections_of_dead_threads(path: Path):
    """The connection of a thread that has ended is closed, and that of one that lives never is."""
    async with SqliteStore(path) as store:
        await begin(store, 'run')
        readers = database(store).readers
        await store.aclose()
        cast('Any', readers)._readers.clear()
        used, go, ended = threading.Event(), threading.Event(), threading.Event()
        outcomes: list[object] = []

        def foreign() -> None:  # one that `threading` has not started, as an embedding program has
            try:
                with readers.reading() as db:
                    used.set()
                    go.wait(10)
                    outcomes.append(db.execute('SELECT id FROM runs').fetchall())
            except Exception as exc:
                outcomes.append(exc)
            ended.set()

        def read() -> None:
            with readers.reading():
                pass

        _thread.start_new_thread(foreign, ())
        assert used.wait(10)
        for _ in range(3):
            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            thread.join(5)
            assert not thread.is_alive(), 'it waits for a connection that is in use'
        assert len(readers.connections()) == 2
        go.set()
        assert ended.wait(10)
        assert outcomes == [[('run',)]]


async def test_first_look_is_not_on_the_loop(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The connection with which an event loop's thread reads is opened by another thread, once."""
    opened: list[threading.Thread] = []
    real = cast('Any', sqlite3).connect

    def connect(*args: Any, **options: Any) -> Any:
        opened.append(threading.current_thread())
        return real(*args, **options)

    watch(monkeypatch)
    monkeypatch.setattr('graphkeep.sqlopen.sqlite3.connect', connect)
    async with SqliteStore(path) as store:
        await begin(store, 'run')
        persistence: Any = store.run('run')
        read: list[threading.Thread] = []
        tail = persistence._backend._tail

        def noted(thread: threading.Thread) -> Any:
            read.append(threading.current_thread())
            return tail(thread)

        monkeypatch.setattr(persistence._backend, '_tail', noted)
        await store.aclose()
        await store.delete('other')  # the writer is open again
        for _ in range(3):
            await persistence._tail()
        here = threading.current_thread()
        assert here not in opened
        assert [thread is here for thread in read] == [False, True, True]


# ------------------------------------------------------------------------------------------------- the queue


async def test_errors_of_their_own(path: Path):
    """Each of those who waited in vain together gets an error of its own."""
    async with SqliteStore(path, busy_timeout=0.1) as store:
        await begin(store, 'run')
        errors: list[BaseException] = []

        async def append(number: int) -> None:
            persistence = store.run(f'{number}')
            persistence.set_graph_types(count_up)
            try:
                await persistence.snapshot_node(Tally(), Count())
            except LockTimeoutError as exc:
                errors.append(exc)

        with locked(path):
            async with anyio.create_task_group() as tasks:
                for number in range(5):
                    tasks.start_soon(append, number)
        assert len({id(exc) for exc in errors}) == 5
        lengths = [len(traceback.extract_tb(exc.__traceback__)) for exc in errors]
        assert max(lengths) == min(lengths)
        assert len({str(exc) for exc in errors}) == 1


async def test_doubts_of_their_own(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that has failed once is told to each with an error of its own."""

    def fdatasync(fd: int) -> None:
        raise OSError(5, 'Input/output error')

    async with SqliteStore(path, durability='full') as store:
        await begin(store, 'run')
        monkeypatch.setattr('graphkeep.sqllog.os.fdatasync', fdatasync)
        causes: list[BaseException | None] = []
        for number in range(4):
            with pytest.raises(StorageError) as caught:
                await store.fork('run', into=f'{number}')
            causes.append(caught.value.__cause__)
        assert len({id(cause) for cause in causes}) == 4
        assert {(type(cause), cast('Any', cause).errno) for cause in causes} == {(OSError, 5)}


class Barred(Turn):
    """A turn whose mutex cannot be had before it is let in."""

    def __init__(self) -> None:
        super().__init__(cast('Any', self), Commit())
        self.tries = 0
        self.barred = True

    def acquire(self, *, blocking: bool) -> bool:
        assert not blocking
        self.tries += 1
        return not self.barred

    def release(self) -> None:
        pass

    def open(self) -> Commit:
        return self.commit

    def settle(self, receipt: Receipt) -> None:
        pass

    def fail(self, exc: Exception) -> None:
        pass


class Nothing:
    """A run of which no commit writes anything."""

    def make(self, db: sqlite3.Connection, turn: Turn) -> Receipt:
        return Receipt()

    def accept(self) -> None:
        pass

    @staticmethod
    def settles(commit: Commit) -> bool:
        return True


@pytest.mark.parametrize('barred', [True, False])
async def test_turn_that_does_not_come(path: Path, barred: bool):
    """A commit whose turn does not come is tried again in peace, and given up in time; others are made."""
    async with SqliteStore(path, busy_timeout=0.5) as store:
        await begin(store, 'run')
        turn = Barred()
        waiting = database(store).queue(Nothing(), turn)
        await anyio.sleep(0.1)
        assert await store.delete('run'), 'others should not wait for it'
        turn.barred = barred
        assert await finished(waiting) is None
        assert isinstance(waiting.exception(), LockTimeoutError if barred else type(None))
        assert turn.tries < 60, 'it is tried again and again without a pause'


# -------------------------------------------------------------------------------- what need not wait any more


class Busy:
    """Has the store's thread stand still in its transaction, and knows which thread writes which step."""

    def __init__(self, statements: Statements):
        self.entered, self.go = threading.Event(), threading.Event()
        self.by_loop: list[bool] = []
        self._loop = threading.current_thread()
        statements.hook = self.reach

    def reach(self, sql: str) -> None:
        """Reach this statement."""
        by_loop = threading.current_thread() is self._loop
        if sql == 'COMMIT' and not by_loop and not self.entered.is_set():
            self.entered.set()
            assert self.go.wait(10)
        if sql.startswith('INSERT INTO steps'):
            self.by_loop.append(by_loop)

    async def begin(self, store: SqliteStore, path: Path, tasks: TaskGroup) -> None:
        """Have a run begin that waits for the lock, so that the thread writes it; return once it does."""
        with locked(path):
            tasks.start_soon(begin, store, 'first')
            await anyio.wait_all_tasks_blocked()
        assert await anyio.to_thread.run_sync(self.entered.wait, 10)


@asynccontextmanager
async def busy_store(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[tuple[SqliteStore, Busy, TaskGroup]]:
    """Give a store whose thread stands still while it writes a run; in the end all is made."""
    statements = watch(monkeypatch)
    async with SqliteStore(path) as store:
        await begin(store, 'opens')
        busy = Busy(statements)
        async with anyio.create_task_group() as tasks:
            await busy.begin(store, path, tasks)
            yield store, busy, tasks
            busy.go.set()


async def test_what_comes_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What comes while a thread writes is made where it comes from, and does not keep the thread at it."""
    async with busy_store(path, monkeypatch) as (store, busy, tasks):
        tasks.start_soon(begin, store, 'second')
        tasks.start_soon(begin, store, 'third')
        await anyio.wait_all_tasks_blocked()
    assert busy.by_loop == [False, True, True]
    assert len(await store.runs()) == 4


async def test_much_that_comes_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A commit of very many rows is made by the thread in any case: the event loop goes on."""
    async with busy_store(path, monkeypatch) as (store, busy, tasks):
        many: Any = store.run('many')
        many.set_graph_types(count_up)
        row = many._row(_node(Tally(), Count(2)))
        tasks.start_soon(many._commit, Commit(rows=[row] * 300))
        await anyio.wait_all_tasks_blocked()
    assert busy.by_loop == [False] * 301


async def test_closed_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What waits when the store is closed is made before it is, and does not open it again."""
    async with busy_store(path, monkeypatch) as (store, busy, tasks):
        tasks.start_soon(begin, store, 'second')
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as closing_:
            closing_.start_soon(store.aclose)
            await anyio.wait_all_tasks_blocked()
            busy.go.set()
            time.sleep(0.05)  # noqa: ASYNC251 -- while the event loop is busy
        assert busy.by_loop == [False, False]
        assert database(store)._writer.db is None
    assert len(await store.runs()) == 3


async def test_closing_ends_the_thread_at_hand(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The thread that waits for the disk does not wait for more once the store is closed."""
    monkeypatch.setattr(sqldisk, '_LINGERS', 1000)
    async with SqliteStore(path, durability='full') as store:
        await begin(store, 'opens')
        await begin(store, 'run')
        pool = database(store)._threads
    await anyio.to_thread.run_sync(pool.shutdown)  # which waits for its threads


async def test_disk_that_fails_oddly(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever goes wrong while the thread waits for the disk, whoever waits for that is told."""

    def fdatasync(fd: int) -> None:
        raise MemoryError

    async with SqliteStore(path, durability='full') as store:
        await begin(store, 'opens')
        with monkeypatch.context() as patch:
            patch.setattr(os, 'fdatasync', fdatasync)
            turn = Barred()
            turn.barred = False
            waiting = database(store).queue(Nothing(), turn)
            assert await finished(waiting) is None
            assert isinstance(waiting.exception(), MemoryError)
            with anyio.fail_after(5), pytest.raises(MemoryError):
                await begin(store, 'run')


async def test_writing_back_while_somebody_waits(path: Path):
    """Who writes the log back waits for nobody who may wait for it, by way of somebody's checkpoint."""
    async with SqliteStore(path) as store:
        await begin(store, 'run')
        with database(store)._writer.mutex:
            database(store)._writer.backed.clear()
            database(store)._back()
            assert await anyio.to_thread.run_sync(database(store)._writer.backed.wait, 5)
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                assert other.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone()[0] == 0, 'it still reads'


@pytest.mark.both_backends
async def test_what_comes_meanwhile_and_is_cancelled(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of what came while a thread wrote, and was cancelled, nothing is made; the rest is."""
    async with busy_store(path, monkeypatch) as (store, busy, tasks):
        tasks.start_soon(begin, store, 'second')
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(begin, store, 'third')
            await anyio.wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
            busy.go.set()
    assert [info.id for info in await store.runs()] == ['first', 'opens', 'second']


async def test_lease_that_is_renewed_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A renewal that comes while a thread writes is made as soon as that is done."""
    statements = watch(monkeypatch)
    async with SqliteStore(path) as store:
        await begin(store, 'run')
        persistence: Any = store.run('run')
        persistence.set_graph_types(count_up)
        snapshot = await persistence.load_next()
        before = await store.runs(status='pending')
        busy = Busy(statements)
        async with anyio.create_task_group() as tasks:
            await busy.begin(store, path, tasks)
            await anyio.to_thread.run_sync(persistence._claims._renew)
            assert not persistence._claims._renewing.done()
            busy.go.set()
        assert await finished(persistence._claims._renewing) is None
        assert isinstance(persistence._claims._renewing.exception(), TryAgain)
        after = await store.runs(status='pending')
        assert cast('Any', after[0]).expires > before[0].expires
        async with persistence.record_run(snapshot.id):
            pass
        await persistence.snapshot_node(Tally(), Count())


# ---------------------------------------------------------------------------------------------- what is known


async def test_view_of_a_transaction_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a commit that writes nothing has seen within a transaction counts only if that is made."""
    statements = watch(monkeypatch)
    async with SqliteStore(path) as store:
        await begin(store, 'run')
        one, two = cast('Any', store.run('run')), cast('Any', store.run('run'))
        two.set_graph_types(count_up)
        row = two._row(_node(Tally(), Count(2)))

        def fail(sql: str) -> None:
            if sql == 'COMMIT':
                raise failing(sqlite3.SQLITE_FULL, 'database or disk is full')

        def both(db: sqlite3.Connection) -> None:
            two._backend.stage(db, Commit(rows=[row]))
            one._backend.stage(db, Commit())

        statements.hook = fail
        with pytest.raises(StorageError):
            database(store).write(both)
        statements.hook = statements.nothing
        assert one._backend._view is None, 'it knows what was never made'
        database(store).write(lambda db: one._backend.stage(db, Commit()))
        one._backend.accept()
        made: Any = one._backend._view
        assert made.last == 1


def test_known_before_others_write(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was committed is at hand before the disk is waited for, and so before anybody else may write."""
    known: list[int] = []
    backend: Any = SqliteStore(path, durability='full').run('run')._backend

    def fdatasync(_: int) -> None:
        known.append(backend._view.last)

    monkeypatch.setattr(os, 'fdatasync', fdatasync)
    backend.commit(Commit(rows=[Row(StepRecord('node', 'Node'), Body(b'1', b'{"node_id":"Node"}'))]))
    assert known == [1]
    backend._database.close_soon()
    backend._database.close()


def _node(state: Any, node: Any) -> Any:
    from graphkeep import NodeSnapshot

    return NodeSnapshot(state=state, node=node)


async def test_thread_that_comes_late(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was made here because no thread was to be had is not made again by the next thread that is."""
    async with SqliteStore(path) as store:
        here, drains, refused = database(store), list[str](), list[str]()
        drain, start = here._drain, threading.Thread.start

        def count() -> None:
            drains.append(threading.current_thread().name)
            drain()

        def start_not_the_first(thread: threading.Thread) -> None:
            if not refused:
                refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(here, '_drain', count)
        monkeypatch.setattr(threading.Thread, 'start', start_not_the_first)
        for _ in range(2):
            turn = Barred()
            turn.barred = False
            waiting = here.queue(Nothing(), turn)
            assert await finished(waiting) is None
            waiting.result()
        assert drains[0] == threading.current_thread().name
        assert len(drains) == 2
