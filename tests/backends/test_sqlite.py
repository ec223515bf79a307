"""`SqliteStore` on a file that is missing, foreign, damaged, full, locked or read-only."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import sqlite3
import stat
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    CorruptSnapshotError,
    Graph,
    LockTimeoutError,
    SqliteStore,
    StorageError,
    StoredStatePersistence,
    UnusableStoreError,
    run_or_resume,
)
from graphkeep.snapshots import now_utc
from tests.backends.sqlfaults import Statements, failing, watch

pytestmark = pytest.mark.anyio

Persistence = StoredStatePersistence[Any, Any]


@dataclass
class Tally:
    numbers: list[int] = field(default_factory=list[int])
    weight: str = ''


@dataclass
class Count(BaseNode[Tally, list[int] | None, list[int]]):
    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, list[int] | None]) -> Count | End[list[int]]:
        if ctx.deps is not None:
            ctx.deps.append(self.number)
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == 3 else Count(self.number + 1)


graph = Graph(nodes=(Count,), name='graph')


async def finish(store: SqliteStore, run_id: str = 'run', ran: list[int] | None = None) -> list[int]:
    """Run the graph to its end from wherever it is."""
    run = await run_or_resume(graph, Count(), state=Tally(), deps=ran, persistence=store.run(run_id))
    return run.output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Be the path of a store that does not exist yet."""
    return tmp_path / 'runs.db'


@asynccontextmanager
async def used(path: Path, **options: Any) -> AsyncGenerator[SqliteStore]:
    """Give a store in which a run has ended, and close it."""
    async with SqliteStore(path, **options) as store:
        assert await finish(store, 'ended') == [1, 2, 3]
        yield store


# ------------------------------------------------------------------------------------------------- the file


async def test_made_when_needed(path: Path):
    """Nothing is made before the store is used; then its directory is, and only its owner may read it."""
    below = path.parent / 'new' / 'runs.db'
    store = SqliteStore(below)
    persistence = store.run('run')
    persistence.set_graph_types(graph)
    assert not below.parent.exists()
    assert await finish(store) == [1, 2, 3]
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in below.parent.iterdir()}
    assert modes == {'runs.db': 0o600, 'runs.db-wal': 0o600, 'runs.db-shm': 0o600}
    await store.aclose()
    assert [p.name for p in below.parent.iterdir()] == ['runs.db']


async def test_used_again_after_closing(path: Path):
    """Closing is idempotent, and a store that is asked for something later opens its file again."""
    async with used(path) as store:
        await store.aclose()
        await store.aclose()
        assert [info.id for info in await store.runs()] == ['ended']
        assert await finish(store, 'later') == [1, 2, 3]
    assert await SqliteStore(path).export('later')


@pytest.mark.parametrize(
    'wrong',
    [{'durability': 'some'}, {'lease': 0}, *({'busy_timeout': timeout} for timeout in (-1, 'x', None, True))],
    ids=str,
)
def test_wrong_options(path: Path, wrong: dict[str, Any]):
    """A wrong option is refused by name where it is given."""
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f'{name} must be .*, got {value!r}'):
        SqliteStore(path, **wrong)


@pytest.mark.parametrize(
    'content', [b'Not a database, but text. ' * 100, b'\0' * 4096, b'SQLite format 3\0' * 40]
)
async def test_no_database(path: Path, content: bytes):
    """A file that is no database is refused, and left as it is."""
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(UnusableStoreError, match=r'runs\.db is not a database: use another path'):
            await SqliteStore(path).runs()
        with pytest.raises(UnusableStoreError, match='left as it is'):
            await finish(SqliteStore(path))
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ['runs.db']


@pytest.mark.parametrize('what', ['tables', 'application', 'version'])
async def test_database_of_another_application(path: Path, what: str):
    """Another application's database is refused, and left as it is."""
    made = {
        'tables': 'CREATE TABLE runs (id TEXT)',
        'application': 'PRAGMA application_id = 7',
        'version': 'PRAGMA user_version = 7',
    }
    with closing(sqlite3.connect(path)) as db:
        db.execute(made[what])
        db.commit()
    before = path.read_bytes()
    with pytest.raises(UnusableStoreError, match='another application'):
        await finish(SqliteStore(path))
    assert path.read_bytes() == before


KILLED = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('PRAGMA journal_mode = WAL')
db.execute(sys.argv[2])
os._exit(0)
"""


@pytest.mark.parametrize('what', ['CREATE TABLE runs (id TEXT)', 'PRAGMA user_version = 99'])
async def test_log_of_another_application(path: Path, what: str):
    """What is refused is left with its log, too, as whoever was killed there has left it."""
    if '99' in what:
        async with used(path):
            pass
    await anyio.run_process([sys.executable, '-c', KILLED, str(path), what])
    files = [path, path.with_name('runs.db-wal')]
    before = [file.read_bytes() for file in files]
    assert before[1]
    for _ in range(2):
        async with SqliteStore(path) as store:
            with pytest.raises(UnusableStoreError, match='left as it is'):
                await store.runs()
            with pytest.raises(UnusableStoreError, match='left as it is'):
                await finish(store)
    assert [file.read_bytes() for file in files] == before


async def test_schema_of_the_future(path: Path):
    """A store that a later version has written is refused, and left as it is."""
    async with used(path):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute('PRAGMA user_version = 99')
    before = path.read_bytes()
    with pytest.raises(UnusableStoreError, match='version 99 of the schema'):
        await SqliteStore(path).runs()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    'damage, told',
    [
        ('PRAGMA user_version = 0', 'it has version 0 of the schema'),
        ('PRAGMA user_version = -1', 'it has version -1 of the schema'),
        ('DROP TABLE runs', "it has no table 'runs'"),
        ('DROP TABLE steps', "it has no table 'steps'"),
        ('DROP TABLE bodies', "it has no table 'bodies'"),
        ('DROP TABLE tags', "it has no table 'tags'"),
    ],
)
async def test_schema_of_no_version(path: Path, damage: str, told: str):
    """A store with a schema that no version writes is told from one that is whole, and left as it is."""
    async with used(path):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute(damage)
        db.commit()
    before = path.read_bytes()
    store = SqliteStore(path)
    for use in (store.runs, store.claim, partial(store.delete, 'run'), partial(finish, store)):
        with pytest.raises(
            UnusableStoreError, match=rf'runs\.db is damaged: {told}.*left as it is'
        ) as caught:
            await use()
        assert 'intact' not in str(caught.value)
    await store.aclose()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['runs.db']


async def test_directory(path: Path):
    """A directory in the place of the file is named."""
    path.mkdir()
    with pytest.raises(StorageError, match=r'runs\.db: Is a directory') as caught:
        await SqliteStore(path).runs()
    assert caught.value.errno == errno.EISDIR


async def test_file_in_the_place_of_the_directory(path: Path):
    """A file in the place of the directory is named."""
    path.write_text('')
    with pytest.raises(StorageError, match=r'Not a directory|File exists'):
        await SqliteStore(path / 'runs.db').runs()


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='this user may write everywhere')
async def test_read_only_file(path: Path):
    """A file that may only be read is reported when something is to be written."""
    async with used(path):
        pass
    path.chmod(0o400)
    with pytest.raises(StorageError):
        await finish(SqliteStore(path), 'other')


async def test_read_only_database(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What SQLite says of a file that may only be read is reported, and what is in it can still be read."""
    statements = watch(monkeypatch)
    async with used(path) as store:
        statements.hook = only(
            'BEGIN IMMEDIATE', sqlite3.SQLITE_READONLY, 'attempt to write a readonly database'
        )
        with pytest.raises(StorageError, match='readonly database') as caught:
            await finish(store, 'other')
        assert caught.value.errno == errno.EROFS
        assert [info.id for info in await store.runs()] == ['ended']


def database(store: SqliteStore) -> Any:
    """Return what is below a store."""
    return cast('Any', store)._database


def only(name: str, code: int, message: str) -> Any:
    """Return a hook that fails the statements that begin like this."""

    def hook(sql: str) -> None:
        if sql.startswith(name):
            raise failing(code, message)

    return hook


@pytest.mark.parametrize('damage', ['truncated', 'zeros', 'bits'])
async def test_damaged(path: Path, damage: str):
    """Damage is reported as damage wherever it is found; what is not reported is all there, as it was."""
    run_ids = [f'run-{number:02}' for number in range(30)]
    async with SqliteStore(path) as store:
        for run_id in run_ids:
            await finish(store, run_id)
        exported = {run_id: await store.export(run_id) for run_id in run_ids}
    whole = path.read_bytes()
    pages, reported = 0, 0
    page = int.from_bytes(whole[16:18], 'big')
    for at in range(page, len(whole), page):
        hurt = {
            'truncated': whole[:at],
            'zeros': whole[:at] + bytes(page) + whole[at + page :],
            'bits': whole[:at] + bytes(255 - b for b in whole[at : at + 16]) + whole[at + 16 :],
        }[damage]
        path.write_bytes(hurt)
        async with SqliteStore(path) as store:
            before = reported
            for run_id in run_ids:
                reported += await damage_of(path, partial(store.export, run_id), exported[run_id])
            reported += await damage_of(path, partial(listed, store), run_ids)
            reported += await damage_of(path, partial(finish, store, 'new'), [1, 2, 3])
            pages += reported > before
        for name in ('-wal', '-shm'):
            path.with_name(path.name + name).unlink(missing_ok=True)
    # all that is in use but for the tables of what is not stored here: tags, and what was deleted
    assert pages >= len(whole) / page - 5


async def listed(store: SqliteStore) -> list[str]:
    """Return the ids of all runs."""
    return [info.id for info in await store.runs()]


async def damage_of(path: Path, call: Callable[[], Awaitable[object]], expected: object) -> bool:
    """Whether a call reports damage; otherwise it has to return what it returned before."""
    try:
        found = await call()
    except CorruptSnapshotError as exc:
        assert str(path) in str(exc) or "run 'run-" in str(exc)  # noqa: PT017 -- any of them may
        return True
    assert found == expected
    return False


OF_RUNS: dict[str, str] = {
    'owner of another kind': """owner = '{"x": 1}'""",
    'owner that is no JSON': "owner = '{'",
    'owner that is no text': "owner = CAST(x'ff' AS TEXT)",
    'status': "status = 'paused'",
    'status that is no text': "status = CAST(x'ff' AS TEXT)",
    'graph that is no text': "graph = CAST(x'ff' AS TEXT)",
    'expires': "owner = '{}', expires = 9223372036854775807",
    'created': 'created = 9223372036854775807',
    'updated': 'updated = -9223372036854775807',
    'steps': 'steps = -1',
}
"""What may be wrong with the row of a run, and is seen when runs are listed."""
WITHIN: dict[str, str] = {
    'in hand': "UPDATE runs SET in_hand = '[[1, 2]]' WHERE id = 'b hurt'",
    'in hand, no JSON': "UPDATE runs SET in_hand = '[' WHERE id = 'b hurt'",
    'fence': "UPDATE runs SET fence = 9223372036854775807 WHERE id = 'b hurt'",
    'version': "UPDATE runs SET version = 9223372036854775807 WHERE id = 'b hurt'",
    'number of steps': "UPDATE runs SET steps = 9223372036854775807 WHERE id = 'b hurt'",
    'attempt': 'UPDATE steps SET attempt = 9223372036854775807 WHERE run = {run}',
    'start': 'UPDATE steps SET start_ts = 9223372036854775807 WHERE run = {run}',
    'no body': 'DELETE FROM bodies WHERE body IN (SELECT body FROM steps WHERE run = {run})',
    'no steps': 'DELETE FROM steps WHERE run = {run}',
}
"""What may be wrong with a run, and is seen when it is to be gone on with."""


async def hurt(path: Path, statement: str) -> None:
    """Store three runs that wait, one that has failed, and two that have ended; and hurt the second one."""
    async with used(path) as store:
        await finish(store, 'z ended')
        for run_id in ('a waits', 'b hurt', 'c waits'):
            await graph.initialize(Count(), store.run(run_id), state=Tally())
    with closing(sqlite3.connect(path)) as db:
        (run,) = db.execute("SELECT run FROM runs WHERE id = 'b hurt'").fetchone()
        assert db.execute(statement.replace('{run}', str(run))).rowcount
        db.commit()


async def work_around(store: SqliteStore) -> None:
    """Do with all other runs what can be done with a store."""
    (left,) = [run for run in [await store.claim()] if run is not None]
    assert left.run_id in ('a waits', 'c waits')
    store.clock = lambda: now_utc() + timedelta(days=1)  # so that its owner is gone
    assert await store.recover_all() == 1
    claimed: list[str] = []
    while (run := await store.claim()) is not None:
        claimed.append(run.run_id)
        assert (await run_or_resume(graph, deps=None, persistence=run)).output == [1, 2, 3]
    assert sorted(claimed) == ['a waits', 'c waits']
    assert len(await store.history('z ended')) == 4
    assert await finish(store, 'z ended') == [1, 2, 3]
    assert await finish(store, 'new') == [1, 2, 3]
    assert await store.prune(older_than=timedelta(0), keep_last=1, only_finished=False) == (4, 0)
    assert len(await store.runs(status='success')) == 1


@pytest.mark.parametrize('what', OF_RUNS)
async def test_damaged_row_of_a_run(path: Path, what: str):
    """A run whose row cannot be read is listed as failed, with the reason, and harms no other one."""
    await hurt(path, f"UPDATE runs SET {OF_RUNS[what]} WHERE id = 'b hurt'")  # noqa: S608 -- as given above
    async with SqliteStore(path) as store:
        listed = await store.runs()
        assert [run.id for run in listed] == ['a waits', 'b hurt', 'c waits', 'ended', 'z ended']
        told = listed[1]
        assert (told.status, told.resumable) == ('error', False)
        assert told.error is not None
        assert told.error.type == 'graphkeep.errors.CorruptSnapshotError'
        assert "run 'b hurt'" in told.error.message
        assert [run.id for run in await store.runs(graph='graph')] == [
            'a waits',
            'c waits',
            'ended',
            'z ended',
        ]
        if 'owner' in OF_RUNS[what]:
            assert await store.runs(status='error') == [told]
        await work_around(store)
        assert await store.delete('b hurt')


@pytest.mark.parametrize('what', WITHIN)
async def test_damage_within_a_run(path: Path, what: str):
    """What cannot be read of a run is reported with the run by whoever needs it, and harms no other one."""
    await hurt(path, WITHIN[what])
    async with SqliteStore(path) as store:
        with pytest.raises(CorruptSnapshotError, match="run 'b hurt'"):
            await finish(store, 'b hurt')
        for verb in (store.recover, store.retry):
            with pytest.raises(CorruptSnapshotError, match="run 'b hurt'"):
                await verb('b hurt')
        await work_around(store)
        assert await store.delete('b hurt')


@pytest.mark.parametrize('run_id', ["'a/b'", "''", "CAST(x'ff' AS TEXT)", "'a' || char(10)"])
async def test_damaged_id(path: Path, run_id: str):
    """A run of which the id is none any more is no run: nobody can ask for it."""
    await hurt(path, f"UPDATE runs SET id = {run_id} WHERE id = 'b hurt'")  # noqa: S608 -- as given above
    async with SqliteStore(path) as store:
        assert [run.id for run in await store.runs()] == ['a waits', 'c waits', 'ended', 'z ended']
        await work_around(store)


async def test_damaged_body(path: Path):
    """A state that cannot be read is reported with its run and snapshot, and harms no other one."""
    await hurt(
        path, "UPDATE bodies SET state = x'7b' WHERE body = (SELECT max(body) FROM steps WHERE run = {run})"
    )
    async with SqliteStore(path) as store:
        for _ in range(2):
            with pytest.raises(CorruptSnapshotError, match=r"run 'b hurt', snapshot 'Count:"):
                await finish(store, 'b hurt')
        assert await store.delete('b hurt')
        await work_around(store)


@pytest.mark.parametrize('damage', ['step', 'tag', 'text'])
async def test_error_that_is_kept(path: Path, damage: str):
    """While somebody keeps the error of a damaged run, all else is read as it is now, and the log goes on."""
    async with used(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(
                {
                    'step': 'UPDATE steps SET start_ts = 9e18 WHERE seq = 1',
                    'tag': "INSERT INTO tags VALUES (1, CAST(x'ff' AS TEXT)), (1, CAST(x'fe' AS TEXT))",
                    'text': "UPDATE steps SET id = CAST(x'ff' AS TEXT) WHERE seq = 1",
                }[damage]
            )
            with pytest.raises(CorruptSnapshotError, match="run 'ended'") as kept:
                await store.history('ended')
            await finish(store, 'new')
            assert other.execute('PRAGMA wal_checkpoint(RESTART)').fetchone()[0] == 0
            for _ in range(2):
                assert len(await store.history('new')) == 4
        assert kept.value.__traceback__


async def test_deletion_of_a_damaged_run(path: Path):
    """A run that cannot be read may be deleted, also where not even its texts are texts."""
    async with used(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("UPDATE runs SET status = CAST(x'ff' AS TEXT), owner = CAST(x'fe' AS TEXT)")
        assert await store.delete('ended')
        assert await store.runs() == []


async def test_history_of_large_states(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is known of the snapshots of a run is read without their states and nodes, however large."""
    statements = watch(monkeypatch)
    async with SqliteStore(path) as store:
        run = await run_or_resume(
            graph, Count(), state=Tally(weight='x' * 1_000_000), persistence=store.run('run')
        )
        assert run.output == [1, 2, 3]
        await store.history('run')
        statements.made.clear()
        tracemalloc.start()
        try:
            assert [record.seq for record in await store.history('run')] == [1, 2, 3, 4]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 500_000
        selects = [sql for sql in statements.made if sql.startswith('SELECT')]
        assert selects
        assert not [sql for sql in selects if re.search(r'\bstate\b', sql)]


async def test_snapshot_without_a_body(path: Path):
    """A snapshot whose state and node are gone is reported, and its run is not taken for an unknown one."""
    async with used(path) as store:
        await finish(store, 'other')
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            found = other.execute('SELECT id, body FROM steps WHERE run = 1 AND seq = 2')
            snapshot_id, body = found.fetchone()
            other.execute('DELETE FROM bodies WHERE body = ?', (body,))
            for call in (store.history('ended'), store.export('ended'), store.fork('ended', into='fork')):
                with pytest.raises(CorruptSnapshotError, match='has no state and node') as caught:
                    await call
                assert (caught.value.place, caught.value.snapshot_id) == ("run 'ended'", snapshot_id)
            other.execute('DELETE FROM bodies')
        with pytest.raises(CorruptSnapshotError, match="run 'other'"):
            await store.history('other')


@pytest.mark.parametrize('table', ['steps', 'runs'])
async def test_rows_that_stay(path: Path, table: str):
    """What is found and cannot be deleted, as in a damaged file, is reported, and not tried for ever."""
    async with used(path) as store:
        await finish(store, 'other')
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(f'CREATE TRIGGER stay BEFORE DELETE ON {table} BEGIN SELECT RAISE(IGNORE); END')
        with anyio.fail_after(5):
            with pytest.raises(CorruptSnapshotError, match=r'runs\.db: is damaged'):
                await store.delete('ended')
            assert not await store.delete('unknown')
        assert len(await store.history('other')) == 4
        assert await finish(store, 'new') == [1, 2, 3]


async def test_run_that_stays(path: Path):
    """A run of which something stays when it is deleted, as in a damaged file, keeps no other from going."""
    async with used(path) as store:
        for run_id in ('a', 'b', 'c', 'd'):
            await finish(store, run_id)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            (run,) = other.execute("SELECT run FROM runs WHERE id = 'a'").fetchone()
            other.execute(
                f'CREATE TRIGGER stay BEFORE DELETE ON steps WHEN OLD.run = {run} '
                'BEGIN SELECT RAISE(IGNORE); END'
            )
            with pytest.raises(CorruptSnapshotError, match=r'runs\.db: is damaged'):
                await store.delete('a')
            assert await store.delete('b')
            tomorrow = datetime.now(UTC) + timedelta(days=1)
            assert await store.prune(older_than=tomorrow, keep_last=1) == (2, 0)
            assert [info.id for info in await store.runs()] == ['d']
            assert other.execute('SELECT count(*) FROM runs WHERE finished = 2').fetchone() == (1,)
            other.execute('DROP TRIGGER stay')
            assert not await store.delete('a')
            assert other.execute('SELECT count(*) FROM runs WHERE finished = 2').fetchone() == (0,)


async def test_snapshots_that_stay(path: Path):
    """Snapshots that cannot be pruned, as in a damaged file, are left, and not tried for ever."""
    async with SqliteStore(path) as store:
        persistence: Any = store.run('run')
        persistence.set_graph_types(graph)
        await persistence.snapshot_node(Tally(), Count())
        for number in (2, 3):
            async with persistence.record_run((await persistence.load_next()).id):
                pass
            await persistence.snapshot_node(Tally(), Count(number))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute('CREATE TRIGGER stay BEFORE DELETE ON steps BEGIN SELECT RAISE(IGNORE); END')
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        with anyio.fail_after(5):
            assert (await store.prune(older_than=tomorrow, only_finished=False)).snapshots == 0
        assert len(await store.history('run')) == 3


@pytest.mark.parametrize(
    'trigger, run_id, problem',
    [
        ("AFTER INSERT ON steps BEGIN SELECT RAISE(ABORT, 'no')", 'begun', 'could not write .*: no'),
        ("AFTER INSERT ON steps BEGIN SELECT RAISE(ABORT, 'no')", 'new', 'could not write .*: no'),
        ('BEFORE UPDATE ON runs BEGIN SELECT RAISE(IGNORE)', 'begun', 'is damaged .*cannot be written'),
        ('BEFORE INSERT ON runs BEGIN SELECT RAISE(IGNORE)', 'new', 'is damaged .*cannot be written'),
    ],
)
async def test_rows_that_are_refused(path: Path, trigger: str, run_id: str, problem: str):
    """What the file itself refuses is reported, and not tried for ever, with others kept from writing."""
    async with SqliteStore(path) as store:
        await graph.initialize(Count(), persistence=store.run('begun'), state=Tally())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(f'CREATE TRIGGER refuse {trigger}; END')
            with pytest.raises((StorageError, CorruptSnapshotError), match=problem):
                await finish(store, run_id)
            other.execute('DROP TRIGGER refuse')
        assert await finish(store, 'other') == [1, 2, 3]


# ------------------------------------------------------------------------------------------- a failing disk


FAILURES = {
    'full': (sqlite3.SQLITE_FULL, 'database or disk is full', errno.ENOSPC),
    'broken': (sqlite3.SQLITE_IOERR, 'disk I/O error', errno.EIO),
}


@pytest.mark.parametrize('durability', ['normal', 'full'])
@pytest.mark.parametrize('failure', FAILURES)
async def test_failing_disk(path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, durability: Any):
    """Whichever statement fails: an error says so, nothing half is stored, and later the run goes on."""
    code, message, number = FAILURES[failure]
    statements = watch(monkeypatch)
    async with used(path, durability=durability) as store:
        statements.made.clear()
        await finish(store, 'whole')
        count = len(statements.made)
        for at in range(count):
            run_id, ran = f'run-{at}', list[int]()
            left = [at]

            def fail(sql: str, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == -1 and not sql.startswith(('PRAGMA', 'ROLLBACK')):
                    raise failing(code, message)

            persistence = store.run(run_id)
            statements.hook = fail
            caught = await _caught(persistence, ran)
            statements.hook = statements.nothing
            assert caught is None or caught.errno == number
            run = await run_or_resume(graph, Count(), state=Tally(), deps=ran, persistence=persistence)
            assert (run.output, ran) == ([1, 2, 3], [1, 2, 3]), (at, statements.made[at])
            assert [record.status for record in await store.history(run_id)] == ['success'] * 4


async def _caught(persistence: Persistence, ran: list[int]) -> StorageError | None:
    try:
        await run_or_resume(graph, Count(), state=Tally(), deps=ran, persistence=persistence)
    except StorageError as exc:
        return exc
    return None


@asynccontextmanager
async def locked(path: Path) -> AsyncGenerator[None]:
    """Hold the file's lock from another connection."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute('BEGIN IMMEDIATE')
        yield
        other.execute('ROLLBACK')


async def test_one_failure_of_many(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What cannot be written of one run does not take along the others that are written with it."""
    statements = watch(monkeypatch)
    async with used(path) as store:
        async with anyio.create_task_group() as group, locked(path):
            for number in range(8):
                persistence = store.run(f'run-{number}')
                persistence.set_graph_types(graph)
                group.start_soon(persistence.snapshot_node, Tally(), Count())
            await anyio.sleep(0.01)
            statements.made.clear()
            statements.hook = _fail_third_body(statements)
        statements.hook = statements.nothing
        assert 'ROLLBACK' in statements.made
        # the failure passed, and each was made again by itself
        assert {info.id for info in await store.runs()} == {'ended'} | {f'run-{n}' for n in range(8)}


def _fail_third_body(statements: Statements) -> Any:
    failed: list[str] = []

    def hook(sql: str) -> None:
        bodies = sum(made.startswith('INSERT INTO bodies') for made in statements.made)
        if sql.startswith('INSERT INTO bodies') and bodies == 3 and not failed:
            failed.append(sql)
            raise failing(sqlite3.SQLITE_FULL, 'database or disk is full')

    return hook


async def test_claim_among_many(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of many runs that wait, a claim gathers what is told of a run only for those that it chooses from."""
    statements = watch(monkeypatch)
    async with SqliteStore(path) as store:
        for number in range(40):
            await graph.initialize(Count(), store.run(f'run-{number}'), state=Tally())
        statements.made.clear()
        claimed = await store.claim()
        assert claimed is not None
        told = [sql for sql in statements.made if 'FROM tags WHERE tags.run' in sql]
        assert len(told) == 16
        assert all(sql.endswith('FROM runs WHERE run = ?') for sql in told)


# ------------------------------------------------------------------------------------------------ the lock


async def test_locked_for_too_long(path: Path):
    """Who waits for the lock in vain is told so, and loses nothing by it."""
    async with used(path, busy_timeout=0.05) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute('BEGIN IMMEDIATE')
            for call in (finish(store), store.delete('ended'), store.fork('ended', into='fork')):
                with pytest.raises(LockTimeoutError, match=r'runs\.db.*locked by somebody else for 0\.05 s'):
                    await call
            assert [info.id for info in await store.runs()] == ['ended']
            other.execute('ROLLBACK')
        assert await finish(store) == [1, 2, 3]


async def test_locked_for_a_while(path: Path):
    """A lock that is let go in time only delays: all that waited is made, and no other task waits."""
    async with used(path) as store:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            other.execute('BEGIN IMMEDIATE')
            turns = 0
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(finish, store, f'run-{number}')
                for turns in range(100):  # noqa: B007 -- counted
                    await anyio.sleep(0.001)
                assert [info.id for info in await store.runs()] == ['ended']
                other.execute('ROLLBACK')
            assert turns == 99
        assert len(await store.runs()) == 21


async def test_group_commit(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Commits of different runs that wait together go into one transaction."""
    statements = watch(monkeypatch)
    async with used(path) as store:
        async with anyio.create_task_group() as group, locked(path):
            for number in range(50):
                persistence = store.run(f'run-{number}')
                persistence.set_graph_types(graph)
                group.start_soon(persistence.snapshot_node, Tally(), Count())
                if number == 10:
                    await anyio.sleep(0.01)  # these wait for the lock already, and the others come meanwhile
            await anyio.sleep(0.01)
            statements.made.clear()
        written = [sql for sql in statements.made if sql == 'COMMIT' or sql.startswith('INSERT INTO steps')]
        assert written.count('COMMIT') == 1
        assert len(written) - written.count('COMMIT') == 50


async def test_group_sync(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Commits of different runs that are made together wait for the disk together, and each of them waits."""
    async with used(path, durability='full') as store:
        synced: list[int] = []
        go = threading.Event()
        real = os.fdatasync

        def fdatasync(fd: int) -> None:
            go.wait(10)
            real(fd)
            synced.append(fd)

        monkeypatch.setattr(os, 'fdatasync', fdatasync)
        tasks: list[asyncio.Task[None]] = []
        for number in range(50):
            persistence = store.run(f'run-{number}')
            persistence.set_graph_types(graph)
            tasks.append(asyncio.create_task(persistence.snapshot_node(Tally(), Count())))
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        go.set()
        await asyncio.gather(*tasks)
        assert 1 <= len(synced) <= 3


async def test_disk_that_does_not_sync(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A commit of which it is not certain that it lasts is reported as made, and is not made again."""

    def fdatasync(fd: int) -> None:
        raise OSError(errno.EIO, 'Input/output error')

    async with used(path, durability='full') as store:
        persistence = store.run('run')
        persistence.set_graph_types(graph)
        with monkeypatch.context() as patch:
            patch.setattr(os, 'fdatasync', fdatasync)
            with pytest.raises(StorageError, match='may not survive a loss of power') as caught:
                await persistence.snapshot_node(Tally(), Count())
            assert caught.value.receipt is not None
            with pytest.raises(StorageError, match='may not survive a loss of power'):
                await store.fork('ended', into='fork')
        assert {info.id for info in await store.runs()} == {'ended', 'run', 'fork'}
        with pytest.raises(StorageError, match='may not survive'):  # what was not synced is still in the log
            await finish(store)
        await store.aclose()  # which writes the log back
        assert await finish(store) == [1, 2, 3]


async def test_two_stores_on_one_file(path: Path):
    """Stores on one file see what the other has committed, and are not harmed when the other closes."""
    async with used(path) as one, SqliteStore(path) as other:
        for number in range(5):
            assert await finish(one, f'one-{number}') == [1, 2, 3]
            assert await finish(other, f'one-{number}') == [1, 2, 3]
            assert len(await other.runs()) == number + 2
            await one.aclose()
            one, other = other, one


@pytest.mark.both_backends
async def test_loops_and_threads(path: Path):
    """Any number of threads with event loops of their own may use one store."""
    store = SqliteStore(path)
    results: list[list[int]] = []

    def work(number: int) -> None:
        for n in range(5):
            results.append(asyncio.run(finish(store, f'run-{number}-{n}')))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert results == [[1, 2, 3]] * 30
    assert len(await store.runs()) == 30
    await store.aclose()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the platform does not fork')
@pytest.mark.filterwarnings('ignore:This process:DeprecationWarning')
async def test_fork(path: Path):
    """A child that was forked uses connections of its own, and harms neither the store nor its parent."""
    async with used(path) as store:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                code = 0 if _in_child(store) == [1, 2, 3] else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + 30
        while (waited := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:  # noqa: ASYNC222
            assert await finish(store, f'parent-{time.monotonic_ns()}') == [1, 2, 3]
        assert waited[1] == 0
        assert 'child' in {info.id for info in await store.runs(limit=10_000)}
    with closing(sqlite3.connect(path)) as db:
        assert db.execute('PRAGMA integrity_check').fetchone() == ('ok',)


def _in_child(store: SqliteStore) -> list[int]:
    result: list[list[int]] = []
    thread = threading.Thread(target=lambda: result.append(asyncio.run(finish(store, 'child'))))
    thread.start()
    thread.join(20)
    return result[0]


async def test_checkpoints(path: Path):
    """The log does not grow for ever, and what was in it is in the file afterwards."""
    async with SqliteStore(path) as store:
        persistence = store.run('run')
        persistence.set_graph_types(graph)
        longest = 0
        for number in range(1_500):
            await persistence.snapshot_node(Tally(weight='x' * 100_000), Count(number))
            longest = max(longest, path.with_name('runs.db-wal').stat().st_size)
        assert longest < 80 * 2**20, 'of 150 MB that were written'
        assert path.stat().st_size > 30 * 2**20
        assert len(await store.history('run')) == 1_500


async def test_log_that_grows_faster_than_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who writes more than can be written back meanwhile waits for that, and others have their turn."""
    monkeypatch.setattr('graphkeep.sqlwriter._LONG', {False: 2**20, True: 2**20})
    statements, slow, ended = watch(monkeypatch), threading.Event(), threading.Event()

    def wait_once(sql: str) -> None:
        if 'PASSIVE' in sql and not slow.is_set():
            slow.set()
            assert ended.wait(20)

    statements.hook = wait_once
    written: list[int] = []
    async with SqliteStore(path) as store, anyio.create_task_group() as group:
        persistence = store.run('run')
        persistence.set_graph_types(graph)

        async def write() -> None:
            for number in range(600):
                await persistence.snapshot_node(Tally(weight='x' * 20_000), Count(number))
                written.append(number)

        group.start_soon(write)
        before = -1
        while not (slow.is_set() and len(written) == before):
            before = len(written)
            await anyio.sleep(0.05)
        assert path.with_name('runs.db-wal').stat().st_size < 6 * 2**20
        assert before < 600
        ended.set()
    assert len(written) == 600


async def test_log_of_many_short_processes(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The log does not grow for ever if each of those who write ends soon, and the file stays open."""
    monkeypatch.setattr('graphkeep.sqlwriter._LONG', {False: 2**19, True: 2**19})
    async with used(path):
        for number in range(20):
            async with SqliteStore(path) as store:
                persistence = store.run(f'run-{number}')
                persistence.set_graph_types(graph)
                for _ in range(10):
                    await persistence.snapshot_node(Tally(weight='x' * 10_000), Count())
            assert path.with_name('runs.db-wal').stat().st_size < 2**20


async def test_beginning_of_the_log(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The log begins anew, which waits for the disk, in the thread that writes it back, not on the loop."""
    statements, written_back, go_on = watch(monkeypatch), threading.Event(), threading.Event()

    def pause(sql: str) -> None:
        if 'PASSIVE' in sql and not written_back.is_set():
            written_back.set()
            assert go_on.wait(20)

    def log() -> bytes:
        with path.with_name('runs.db-wal').open('rb') as file:
            return file.read(16)[12:]  # how many there were before

    async with used(path) as store:
        persistence = store.run('run')
        persistence.set_graph_types(graph)
        statements.after, first = pause, log()
        database(store)._writer.backed.clear()
        database(store)._back()
        await anyio.to_thread.run_sync(written_back.wait, 20)
        statements.made.clear()
        await persistence.snapshot_node(Tally(), Count())
        assert 'BEGIN IMMEDIATE' in statements.made
        assert log() == first
        go_on.set()
        await anyio.to_thread.run_sync(database(store)._writer.backed.wait, 20)
        assert log() != first, 'it begins anew in the thread, without another commit'


async def test_dropped(path: Path):
    """A store that nobody has closed is closed when nobody has it any more, so Python warns of nothing."""
    store = SqliteStore(path)
    assert await finish(store, 'run') == [1, 2, 3]
    assert len(await store.runs()) == 1
    here = database(store)
    connections = [db for db in (here._writer.db, *here.readers.connections()) if db is not None]
    assert len(connections) > 1
    del store, here
    gc.collect()
    for db in connections:
        with pytest.raises(sqlite3.ProgrammingError, match='closed'):
            db.execute('SELECT 1')


@pytest.mark.parametrize('anyio_backend', ['asyncio'])
async def test_cancelled_while_closing_fails(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who is cancelled while a store is closed is cancelled, also if the closing failed."""
    begun, go_on = threading.Event(), threading.Event()

    def close() -> None:
        begun.set()
        assert go_on.wait(20)
        raise StorageError(str(path), 'close', OSError(errno.EIO, 'no'))

    reached: list[str] = []

    async def leave(store: SqliteStore) -> None:
        with pytest.raises(StorageError):
            await store.aclose()
        reached.append('the error')
        await asyncio.sleep(0)
        reached.append('what comes then')

    async with used(path) as store:
        monkeypatch.setattr(database(store), 'close', close)
        task = asyncio.create_task(leave(store))
        await anyio.to_thread.run_sync(begun.wait, 20)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reached == ['the error']
        monkeypatch.undo()


async def test_writes_that_change_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    """What has nothing to delete does not wait for the disk, and a short run is deleted by two writes."""
    real, syncs = os.fdatasync, list[int]()

    def count(fd: int) -> None:
        syncs.append(fd)
        real(fd)

    async with used(path, durability='full') as store:
        for number in range(5):
            await finish(store, f'{number}')
        persistence = store.run('begun')
        persistence.set_graph_types(graph)
        await persistence.snapshot_node(Tally(), Count())
        monkeypatch.setattr(os, 'fdatasync', count)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        assert await store.prune(older_than=tomorrow, keep_last=6, only_finished=False) == (0, 0)
        assert not await store.delete('unknown')
        assert syncs == []
        assert await store.prune(older_than=tomorrow) == (6, 0)
        assert len(syncs) == 12


async def test_deleting_that_may_not_last(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who asks for a run to be deleted whose deleting may not have come to the disk is told so each time."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, 'no')

    async with used(path, durability='full') as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'fdatasync', fail)
            with pytest.raises(StorageError, match='make durable'):
                await store.delete('ended')
        for _ in range(2):
            with pytest.raises(StorageError, match='make durable'):
                await store.delete('ended')


async def test_symbolic_link(path: Path):
    """A link to a file that does not exist yet is followed: the file is made, for its owner only."""
    real = path.parent / 'new' / 'real.db'
    path.symlink_to(real)
    async with used(path, durability='full'):
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in real.parent.iterdir()}
        assert modes == {'real.db': 0o600, 'real.db-wal': 0o600, 'real.db-shm': 0o600}
    async with SqliteStore(real) as store:
        assert [info.id for info in await store.runs()] == ['ended']
