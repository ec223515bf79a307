"""The contract of persistence and of stores, on everything that implements it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from graphkeep import (
    FileStatePersistence,
    FileStore,
    FullStatePersistence,
    MemoryStore,
    NodeSnapshot,
    Owner,
    SimpleStatePersistence,
    SqliteStore,
    Store,
)
from graphkeep.commit import Commit, Receipt
from graphkeep.stored import Durability
from graphkeep.testing import (
    Corruptible,
    Durable,
    FailsOnDemand,
    KeepsCopies,
    KeepsHistory,
    KeptInStore,
    ManyProcesses,
    PersistenceContract,
    RawRun,
    RawSnapshot,
    RunUnderTest,
    StoreContract,
)
from tests import rawsqlite
from tests.backends import sqlfaults
from tests.backends.faults import Call, FaultyOs, put_os
from tests.counts import FULL, count
from tests.rawfile import stored

__all__ = ()


# ---------------------------------------------------------------------------------------------- single runs


def live(persistence: Any) -> RunUnderTest:
    """Return a run in live objects: its one instance is its storage."""

    def raw() -> list[RawSnapshot]:
        if isinstance(persistence, FullStatePersistence):
            snapshots: Sequence[Any] = cast('Any', persistence).history
        else:
            snapshots = [] if persistence.last_snapshot is None else [persistence.last_snapshot]
        return [
            RawSnapshot(s.id, s.kind, s.status if isinstance(s, NodeSnapshot) else 'success')
            for s in snapshots
        ]

    return RunUnderTest(lambda: persistence, raw, persistence._commit)


class TestSimple(PersistenceContract):
    """`SimpleStatePersistence` keeps the last snapshot, of live objects."""

    def make_run(self, directory: Path) -> RunUnderTest:
        return live(SimpleStatePersistence())


class TestFull(KeepsHistory, KeepsCopies):
    """`FullStatePersistence` keeps deep copies of all."""

    def make_run(self, directory: Path) -> RunUnderTest:
        return live(FullStatePersistence())


class TestFullByReference(KeepsHistory):
    """`FullStatePersistence(deep_copy=False)` keeps all snapshots, of live objects."""

    def make_run(self, directory: Path) -> RunUnderTest:
        return live(FullStatePersistence(deep_copy=False))


def read_file(path: Path) -> RawRun:
    """Read a run's file and its lock file as the JSON that they are."""
    rows = stored(path)
    owners = [row['graphkeep']['held_by']['id'] for row in rows if 'held_by' in row.get('graphkeep', {})]
    return RawRun(
        [RawSnapshot(row['id'], row['kind'], row.get('status', 'success')) for row in rows],
        owners[-1] if owners else None,
    )


class TestFile(KeptInStore):
    """`FileStatePersistence` keeps one run in one file."""

    def make_run(self, directory: Path) -> RunUnderTest:
        path = directory / 'run.json'

        async def commit(commit_: Commit) -> Receipt:
            return cast('Any', FileStatePersistence(path))._backend.commit(commit_)

        return RunUnderTest(lambda: FileStatePersistence(path), lambda: read_file(path).snapshots, commit)


# --------------------------------------------------------------------------------------------------- stores


class Examples(StoreContract):
    """Few examples of what the state machine may do, and very many when the full counts are asked for."""

    examples = 2000 if FULL else 25


class TestMemoryStore(Examples):
    """`MemoryStore` keeps encoded rows; it is its own storage, so there is one for each directory."""

    stores: ClassVar[dict[Path, MemoryStore]] = {}

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return self.stores.setdefault(directory, MemoryStore(clock=clock, lease=lease))

    def read_raw(self, directory: Path, run_id: str) -> RawRun:
        held: dict[str, Any] = cast('Any', self.stores[directory])._held if directory in self.stores else {}
        if (run := held.get(run_id)) is None:
            return RawRun([], None)
        rows = [RawSnapshot(row.id, row.kind, row.status) for row in run.log.records]
        owner: Owner | None = run.log.ownership.owner
        return RawRun(rows, owner and owner.id)


class InFiles(Examples, Durable, ManyProcesses, FailsOnDemand, Corruptible):
    """`FileStore` keeps each run in a file."""

    kills = count(120)
    races = count(100)
    durability: Durability = 'normal'

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return FileStore(directory / 'runs', clock=clock, lease=lease, durability=self.durability)

    def read_raw(self, directory: Path, run_id: str) -> RawRun:
        return read_file(FileStore(directory / 'runs').path(run_id))

    @contextmanager
    def failing(self, directory: Path) -> Generator[None]:
        def fail(call: Call) -> Any:
            if call.name in ('write', 'unlink'):
                raise OSError(28, 'No space left on device')
            return call()

        with pytest.MonkeyPatch.context() as patch:
            put_os(patch, FaultyOs(fail))
            yield

    def corrupt(self, directory: Path, run_id: str) -> None:
        path = FileStore(directory / 'runs').path(run_id)
        path.write_bytes(path.read_bytes()[:-10])


class TestFileStore(InFiles):
    """`FileStore` as it comes."""


class TestDurableFileStore(InFiles):
    """`FileStore(durability='full')` waits for the disk, in worker threads."""

    durability = 'full'


class InSqlite(Examples, Durable, ManyProcesses, FailsOnDemand, Corruptible):
    """`SqliteStore` keeps all runs in one file."""

    kills = count(120)
    races = count(100)
    durability: Durability = 'normal'

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return SqliteStore(directory / 'runs.db', clock=clock, lease=lease, durability=self.durability)

    def read_raw(self, directory: Path, run_id: str) -> RawRun:
        path = directory / 'runs.db'
        rows = rawsqlite.stored(path, run_id)
        return RawRun(
            [RawSnapshot(row['id'], row['kind'], row['status']) for row in rows],
            rawsqlite.owner(path, run_id),
        )

    @contextmanager
    def failing(self, directory: Path) -> Generator[None]:
        def fail(*_: object) -> Any:
            raise sqlfaults.failing(sqlite3.SQLITE_FULL, 'database or disk is full')

        with pytest.MonkeyPatch.context() as patch:
            for where in ('sqlrun.write_step', 'sqlrun._run_values'):
                patch.setattr(f'graphkeep.{where}', fail)
            for verb in ('insert', 'delete', 'trim'):
                patch.setattr(f'graphkeep.sqlite.{verb}', fail)
            yield

    def corrupt(self, directory: Path, run_id: str) -> None:
        with closing(sqlite3.connect(directory / 'runs.db')) as db, db:
            db.execute("UPDATE runs SET owner = '{', in_hand = '[[' WHERE id = ?", (run_id,))


class TestSqliteStore(InSqlite):
    """`SqliteStore` as it comes."""


class TestDurableSqliteStore(InSqlite):
    """`SqliteStore(durability='full')` waits for the disk, in worker threads."""

    durability = 'full'


def test_contract_is_abstract():
    """Who takes over the contract without saying how to open and read a store is told so."""

    class Incomplete(StoreContract):
        pass

    with pytest.raises(TypeError, match=r'Incomplete.*open_store.*read_raw'):
        Incomplete()  # pyright: ignore[reportAbstractUsage]


def test_no_clause_hides_another():
    """The clauses have names of their own, so that none takes the place of another where they are mixed."""
    owners: dict[str, str] = {}
    for class_ in InFiles.__mro__:
        for name in vars(class_):
            if name.startswith('test_'):
                assert owners.setdefault(name, class_.__name__) == class_.__name__, name
    assert len(owners) > 100
