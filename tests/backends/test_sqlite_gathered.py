"""Many runs of one event loop: what they commit in one round is made in one transaction."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    Graph,
    GraphkeepError,
    MemoryStore,
    OwnershipLostError,
    SqliteStore,
    StorageError,
    Store,
    run_or_resume,
)
from graphkeep.claims import Commitment
from graphkeep.snapshots import now_utc
from graphkeep.sqldb import Database
from graphkeep.sqldisk import Disk
from graphkeep.sqlrun import SqlRun
from tests.backends.sqlfaults import Statements, failing, watch

pytestmark = pytest.mark.anyio

RUNS = 30
LENGTH = 24


def ignore(run_id: str, number: int) -> None:
    """Do nothing."""


@dataclass
class Trail:
    """Which nodes made this state."""

    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Log:
    """What the nodes of all runs leave behind."""

    ran: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    """How often each node of each run was run."""
    reach: Callable[[str, int], object] = ignore
    """Called in each node."""


@dataclass
class Go(BaseNode[Trail, tuple[str, Log], list[int]]):
    """A node that never waits for anything."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Trail, tuple[str, Log]]) -> Go | End[list[int]]:
        run_id, log = ctx.deps
        log.ran[run_id, self.number] += 1
        log.reach(run_id, self.number)
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == LENGTH else Go(self.number + 1)


graph = Graph(nodes=(Go,), name='go')


async def run(store: Store, run_id: str, log: Log) -> list[int]:
    """Run the graph to its end, from wherever it is."""
    deps = run_id, log
    persistence = store.run(run_id)
    return (await run_or_resume(graph, Go(), state=Trail(), deps=deps, persistence=persistence)).output


async def run_all(store: Store, log: Log, *, runs: int = RUNS) -> dict[str, GraphkeepError]:
    """Run many at once; return what those that failed have raised."""
    failed: dict[str, GraphkeepError] = {}

    async def run_one(run_id: str) -> None:
        try:
            assert await run(store, run_id, log) == list(range(1, LENGTH + 1))
        except GraphkeepError as exc:
            failed[run_id] = exc

    async with anyio.create_task_group() as tasks:
        for number in range(runs):
            tasks.start_soon(run_one, f'run-{number}')
    return failed


async def check_all(store: Store, log: Log, *, runs: int = RUNS) -> None:
    """Check that every run has ended, with every node run once and on record as a success."""
    for number in range(runs):
        *steps, end = await store.history(f'run-{number}')
        assert [(step.seq, step.status) for step in steps] == [(n, 'success') for n in range(1, LENGTH + 1)]
        assert end.kind == 'end'
    assert log.ran == {(f'run-{n}', m): 1 for n in range(runs) for m in range(1, LENGTH + 1)}


async def still(log: Log) -> None:
    """Wait until no node is run any more."""
    ran = -1
    while ran != log.ran.total():
        ran = log.ran.total()
        await anyio.sleep(0.1)


class Rounds:
    """How many commits were made together in each round, and what is done before one of their statements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, statements: Statements | None = None):
        self.sizes: list[int] = []
        self.hook: Callable[[int, str], None] = lambda number, sql: None
        """Called before each statement of such a round, with its number among all of those."""
        self.statements = 0
        self._here: threading.Thread | None = None
        real = Database._write_here

        def write_here(database: Database, writes: Any, told: Any, in_loop: Any) -> Any:
            self._here = threading.current_thread()
            before = tuple(told)
            try:
                return real(database, writes, told, in_loop)
            finally:
                self._here = None
                self.sizes.append(0 if tuple(told) == before else len(writes))

        def reach(sql: str) -> None:
            if self._here is threading.current_thread():
                self.statements += 1
                self.hook(self.statements, sql)

        monkeypatch.setattr(Database, '_write_here', write_here)
        if statements is not None:
            statements.hook = reach


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Be the path of a store that does not exist yet."""
    return tmp_path / 'runs.db'


# ------------------------------------------------------------------------------------------- who is together


@pytest.mark.both_backends
@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_many(path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str, durability: Any):
    """What many runs commit in a round shares a transaction, and is all there."""
    rounds, log = Rounds(monkeypatch), Log()
    async with SqliteStore(path, durability=durability) as store:
        assert await run_all(store, log) == {}
        await check_all(store, log)
    if (anyio_backend, durability) == ('trio', 'normal'):
        assert rounds.sizes == [], 'to wait for others costs more there'
        return
    together = [size for size in rounds.sizes if size > 1]
    assert sum(together) > RUNS * LENGTH / 2, 'of about four times as many commits'
    assert sum(together) / len(together) > 3


@pytest.mark.both_backends
async def test_few(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few runs do not wait for each other: it would take longer than what is spared by it."""
    rounds, log = Rounds(monkeypatch), Log()
    async with SqliteStore(path) as store:
        assert await run_all(store, log, runs=4) == {}
        await check_all(store, log, runs=4)
    assert rounds.sizes == []


async def test_few_that_were_many(path: Path, monkeypatch: pytest.MonkeyPatch):
    """When most runs have ended the last ones do not go on waiting for others."""
    rounds, log = Rounds(monkeypatch), Log()
    async with SqliteStore(path) as store:
        for number in range(10):
            await run(store, f'run-{number}', log)
        assert await run_all(store, log) == {}
        before = len(rounds.sizes)
        assert before
        await run(store, 'other', log)
        assert len(rounds.sizes) - before <= 1


async def test_stores_side_by_side(path: Path):
    """Runs in several stores, of several kinds, go on beside each other in one event loop."""
    logs = [Log() for _ in range(3)]
    async with SqliteStore(path) as one, SqliteStore(path.with_name('two.db'), durability='full') as two:
        stores: list[Store] = [one, two, MemoryStore()]
        async with anyio.create_task_group() as tasks:
            for store, log in zip(stores, logs, strict=True):
                tasks.start_soon(run_all, store, log)
        for store, log in zip(stores, logs, strict=True):
            await check_all(store, log)


def test_event_loops_in_threads(path: Path):
    """Two event loops have rounds of their own in one store."""
    store = SqliteStore(path)
    logs = [Log(), Log()]
    failed: list[object] = []

    async def run_some(log: Log, first: int) -> None:
        await asyncio.gather(*(run(store, f'run-{n}', log) for n in range(first, first + RUNS)))

    def main(number: int) -> None:
        try:
            asyncio.run(run_some(logs[number], number * RUNS))
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=main, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []

    async def check() -> None:
        async with store:
            await check_all(store, Log(logs[0].ran + logs[1].ran), runs=2 * RUNS)

    asyncio.run(check())


@pytest.mark.parametrize('backend', ['asyncio', 'trio'])
def test_one_event_loop_after_another(path: Path, backend: str):
    """Runs that were left in the middle of a round go on in the next event loop, with what they were."""
    store, log = SqliteStore(path), Log()
    persistences: dict[str, Any] = {f'run-{number}': store.run(f'run-{number}') for number in range(RUNS)}

    async def go_on(run_id: str) -> None:
        persistence = persistences[run_id]
        deps = run_id, log
        result = await run_or_resume(graph, Go(), state=Trail(), deps=deps, persistence=persistence)
        assert result.output == list(range(1, LENGTH + 1))

    async def main(steps: int) -> None:
        def reach(run_id: str, number: int) -> None:
            if log.ran.total() >= steps:
                scope.cancel()

        log.reach = reach
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                for run_id in persistences:
                    tasks.start_soon(go_on, run_id)

    for steps in (5 * RUNS, 10 * RUNS, 10**6):
        anyio.run(main, steps, backend=backend)

    async def check() -> None:
        async with store:
            await check_all(store, log)

    anyio.run(check, backend=backend)


# ------------------------------------------------------------------------------------------------ what fails


async def check_failure(
    path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[int, str], None]
) -> None:
    """Check that nothing of a round that fails is made, and that a thread makes what can be made."""
    statements = watch(monkeypatch)
    rounds, log = Rounds(monkeypatch, statements), Log()
    rounds.hook = fail
    async with SqliteStore(path) as store:
        assert await run_all(store, log) == {}
        await check_all(store, log)
    assert rounds.sizes.count(0) >= 1


@pytest.mark.parametrize('number', [1, 2, 3, 5, 8, 21, 55, 144, 300, 600])
async def test_statement_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    """If a statement fails, none of its round counts."""

    def fail(count: int, sql: str) -> None:
        if count == number:
            raise failing(sqlite3.SQLITE_FULL, 'database or disk is full')

    await check_failure(path, monkeypatch, fail)


@pytest.mark.parametrize('number', [1, 2, 3, 9])
async def test_commit_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    """The same, if it is the transaction itself that cannot be made."""
    commits = 0

    def fail(count: int, sql: str) -> None:
        nonlocal commits
        commits += sql == 'COMMIT'
        if sql == 'COMMIT' and commits == number:
            raise failing(sqlite3.SQLITE_IOERR, 'disk I/O error')

    await check_failure(path, monkeypatch, fail)


@pytest.mark.parametrize('where', ['accept', 'settle'])
async def test_error_when_it_was_made(path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    """What goes wrong with one of them when all were made is told to that one alone."""
    rounds, log = Rounds(monkeypatch), Log()
    kept = {'accept': (SqlRun, 'accept'), 'settle': (Commitment, 'settle')}[where]
    real = getattr(*kept)
    failed: list[str] = []

    def fail_once(self: Any, *args: Any) -> None:
        real(self, *args)
        if len(rounds.sizes) == 9 and not failed:
            failed.append(where)
            raise MemoryError

    monkeypatch.setattr(*kept, fail_once)
    async with SqliteStore(path) as store:
        outcomes = await asyncio.gather(
            *(run(store, f'run-{number}', log) for number in range(RUNS)), return_exceptions=True
        )
    assert failed
    assert Counter(type(outcome) for outcome in outcomes) == {list: RUNS - 1, MemoryError: 1}


@pytest.mark.parametrize('sql', ['BEGIN IMMEDIATE', 'UPDATE', 'COMMIT'])
@pytest.mark.parametrize('after', [False, True])
def test_interrupted(path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, after: bool):
    """An interrupt in a round is raised there, and everybody knows what was made and what was not."""
    statements = watch(monkeypatch)
    rounds, log = Rounds(monkeypatch, statements), Log()
    store = SqliteStore(path)
    interrupted = 0

    def interrupt(count: int, made: str) -> None:
        nonlocal interrupted
        if made.startswith(sql) and len(rounds.sizes) >= 9 and not interrupted:
            interrupted = count
            raise KeyboardInterrupt

    if after:
        hook, statements.hook = statements.hook, statements.nothing
        statements.after = lambda made: hook(' '.join(made.split()))
    rounds.hook = interrupt

    async def main() -> None:
        await asyncio.gather(*(run(store, f'run-{number}', log) for number in range(RUNS)))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert interrupted

    async def finish() -> None:
        async with store:
            gc.collect()
            assert await store.runs(status=('running', 'pending')) == []
            assert await run_all(store, log) == {}
            await check_all(store, log)

    asyncio.run(finish())


async def test_disk_that_is_full(path: Path, monkeypatch: pytest.MonkeyPatch):
    """If nothing can be written for a while each run is told by an error of its own, and goes on later."""
    statements = watch(monkeypatch)
    log, full, hours = Log(), False, 0

    def fail(sql: str) -> None:
        if full and sql.startswith(('COMMIT', 'UPDATE', 'INSERT')):
            raise failing(sqlite3.SQLITE_FULL, 'database or disk is full')

    def reach(run_id: str, number: int) -> None:
        nonlocal full
        full = full or number == LENGTH // 2

    statements.hook = fail
    log.reach = reach
    async with SqliteStore(path, clock=lambda: now_utc() + timedelta(hours=hours)) as store:
        failed = await run_all(store, log)
        assert len(failed) == RUNS
        assert {type(exc) for exc in failed.values()} == {StorageError}
        assert len({id(exc) for exc in failed.values()}) == RUNS
        log.reach, full, hours = ignore, False, 1  # their leases have run out
        before = log.ran.copy()
        log.ran.clear()
        for number in range(RUNS):
            await run(store, f'run-{number}', log)
            done = await store.history(f'run-{number}')
            assert {step.status for step in done} == {'success'}
    again = {key for key in log.ran if key in before}
    # a node of which the end could not be written runs again, and no other one
    assert Counter(run_id for run_id, _ in again).most_common(1)[0][1] == 1


async def test_refused(path: Path):
    """A commit that is refused in a round is refused alone."""
    log = Log()

    def reach(run_id: str, number: int) -> None:
        if (run_id, number) == ('run-7', 11):  # somebody takes it over
            with closing(sqlite3.connect(path)) as other, other:
                taken = 'fence = fence + 1, version = version + 1, owner = NULL'
                other.execute(f"UPDATE runs SET {taken} WHERE id = 'run-7'")  # noqa: S608 -- a constant

    log.reach = reach
    async with SqliteStore(path) as store:
        failed = await run_all(store, log)
        assert {run_id: type(exc) for run_id, exc in failed.items()} == {'run-7': OwnershipLostError}
        assert [info.id for info in await store.runs(status='success')] == sorted(
            f'run-{number}' for number in range(RUNS) if number != 7
        )


@pytest.mark.both_backends
@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_lock_that_is_held(path: Path, durability: Any):
    """While another process writes all wait for it, not on the event loop's thread, and none fails."""
    log = Log()
    held, locked = anyio.Event(), False
    other = sqlite3.connect(path, isolation_level=None)

    def reach(run_id: str, number: int) -> None:
        nonlocal locked
        if number == 5 and not locked:
            other.execute('BEGIN IMMEDIATE')
            locked = True
            held.set()

    async def let_go() -> None:
        await held.wait()
        await still(log)
        assert log.ran.total() < RUNS * LENGTH
        other.execute('ROLLBACK')

    log.reach = reach
    async with SqliteStore(path, durability=durability) as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(let_go)
            assert await run_all(store, log) == {}
        await check_all(store, log)
    other.close()


async def test_closed_meanwhile(path: Path):
    """A store that is closed while many runs go on is opened again by them, and nothing is lost."""
    log = Log()
    store = SqliteStore(path)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_all, store, log)
        while log.ran.total() < 2 * RUNS * LENGTH // 3:
            await store.aclose()
            await anyio.sleep(0.001)
    await check_all(store, log)
    await store.aclose()


# ----------------------------------------------------------------------------------------------- the disk


@pytest.mark.both_backends
async def test_nobody_goes_on_before_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch):
    """With `durability='full'` nobody goes on before the end of its step is on the disk."""
    log, go = Log(), threading.Event()
    real, syncs = os.fdatasync, 0

    def fdatasync(fd: int) -> None:
        nonlocal syncs
        syncs += 1
        assert go.wait(20)
        real(fd)

    def reach(run_id: str, number: int) -> None:
        if number == 7 and not slow.is_set():
            monkeypatch.setattr('graphkeep.sqllog.os.fdatasync', fdatasync)
            slow.set()
        if slow.is_set() and not go.is_set():
            ran[run_id] += 1

    slow, ran = anyio.Event(), Counter[str]()
    log.reach = reach
    async with SqliteStore(path, durability='full') as store:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_all, store, log)
            await slow.wait()
            await still(log)
            # one whose end was on its way to the disk before runs the next node, of which the end is not
            assert set(ran.values()) <= {1, 2}
            go.set()
        await check_all(store, log)
    assert 0 < syncs < RUNS * LENGTH / 2


async def test_starts_do_not_wait_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch):
    """That a node begins is not waited for: only the end of its step is."""
    log, go = Log(), threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        assert go.wait(20)
        real(fd)

    def reach(run_id: str, number: int) -> None:
        if log.ran.total() == RUNS:
            monkeypatch.setattr('graphkeep.sqllog.os.fdatasync', real)
            go.set()

    async with SqliteStore(path, durability='full') as store:
        for number in range(RUNS):
            await graph.initialize(Go(), store.run(f'run-{number}'), state=Trail())
        log.reach = reach
        monkeypatch.setattr('graphkeep.sqllog.os.fdatasync', fdatasync)
        with anyio.fail_after(10):
            assert await run_all(store, log) == {}
        await check_all(store, log)


async def test_disk_is_asked_before_the_file_may_be_closed(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who waits for the disk is known before anybody else may close the file, and the log with it."""
    asked: list[bool] = []
    real = Disk.await_disk

    def await_disk(disk: Disk, *args: Any) -> None:
        asked.append(cast(Any, store)._database._writer.mutex.locked())
        real(disk, *args)

    monkeypatch.setattr(Disk, 'await_disk', await_disk)
    async with SqliteStore(path, durability='full') as store:
        assert await run_all(store, Log()) == {}
    assert set(asked) == {True}


async def test_disk_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch):
    """If the disk cannot be relied on each run is told so by an error of its own, with what was committed."""
    log = Log()

    def fdatasync(fd: int) -> None:
        raise OSError(5, 'Input/output error')

    def reach(run_id: str, number: int) -> None:
        if number == 7:
            monkeypatch.setattr('graphkeep.sqllog.os.fdatasync', fdatasync)

    log.reach = reach
    async with SqliteStore(path, durability='full') as store:
        failed = await run_all(store, log)
        assert len(failed) == len({id(exc) for exc in failed.values()}) == RUNS
        for exc in failed.values():
            assert isinstance(exc, StorageError)
            assert exc.receipt is not None


# ------------------------------------------------------------------------------------------- cancellation


@pytest.mark.both_backends
@pytest.mark.parametrize('durability', ['normal', 'full'])
@pytest.mark.parametrize('runs', [1, RUNS])
async def test_cancelled(path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, runs: int):
    """Runs that never wait for anything else can be cancelled at any moment, and nothing is made twice."""
    log, now = Log(), 0.0
    monkeypatch.setattr('graphkeep.turns.perf_counter', lambda: now)

    async def run_scoped(run_id: str, at: int) -> None:
        def cancel(ran: str, number: int) -> None:
            if ran == run_id and number == at:
                scope.cancel()

        with anyio.CancelScope() as scope:
            hooks.append(cancel)
            await run(store, run_id, log)

    def reach(run_id: str, number: int) -> None:
        nonlocal now
        now += 0.0004  # so that a turn is five nodes long
        for hook in hooks:
            hook(run_id, number)

    hooks: list[Callable[[str, int], None]] = []
    log.reach = reach
    async with SqliteStore(path, durability=durability) as store:
        for first in (3, 14):
            hooks.clear()
            async with anyio.create_task_group() as tasks:
                for number in range(runs):
                    tasks.start_soon(run_scoped, f'run-{number}', first + number % 3)
            assert max(number for _, number in log.ran) <= first + 2 + 6, 'it was raised in the next turn'
        hooks.clear()
        assert await run_all(store, log, runs=runs) == {}
        await check_all(store, log, runs=runs)


@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_cancelled_by_asyncio(path: Path, durability: Any):
    """The same with what asyncio has: a cancellation that comes once, at whatever moment."""
    log = Log()
    async with SqliteStore(path, durability=durability) as store:
        for loop in range(1, 100):
            running = [asyncio.ensure_future(run(store, f'run-{n}', log)) for n in range(RUNS)]
            for _ in range(3 * loop):
                await asyncio.sleep(0)
            for number, task in enumerate(running):
                if number % 2 or loop % 2:
                    task.cancel()
            outcomes = await asyncio.gather(*running, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError, list}
            if all(isinstance(outcome, list) for outcome in outcomes):
                break
            assert await store.runs(status=('running', 'pending')) == []
        assert await run_all(store, log) == {}
        await check_all(store, log)


@pytest.mark.parametrize('seconds', [0.05, 0.2])
async def test_timeout(path: Path, seconds: float):
    """`asyncio.timeout` ends runs that never wait, however many."""
    log = Log()

    async def endless(number: int) -> None:
        for again in range(10**6):
            await run(store, f'run-{number}-{again}', log)

    async with SqliteStore(path) as store:
        with anyio.fail_after(20), pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(endless(number) for number in range(RUNS)))
        assert [info.id for info in await store.runs(status='running')] == []
