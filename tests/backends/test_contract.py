"""The contract of persistence, on everything that implements it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from graphkeep import (
    FileStatePersistence,
    FileStore,
    FullStatePersistence,
    MemoryStore,
    NodeSnapshot,
    SimpleStatePersistence,
    StatePersistence,
)
from graphkeep.backend import RunBackend
from graphkeep.commit import Commit, Receipt
from tests.backends.contract import (
    KeepsCopies,
    KeepsHistory,
    KeptInStore,
    PersistenceContract,
    Raw,
    RunUnderTest,
)
from tests.rawfile import stored

__all__ = ()


def live(persistence: Any) -> RunUnderTest:
    """Return a run in live objects: its one instance is its storage."""

    def raw() -> list[Raw]:
        if isinstance(persistence, FullStatePersistence):
            snapshots: Sequence[Any] = cast('Any', persistence).history
        else:
            snapshots = [] if persistence.last_snapshot is None else [persistence.last_snapshot]
        return [Raw(s.id, s.kind, s.status if isinstance(s, NodeSnapshot) else 'success') for s in snapshots]

    return RunUnderTest(lambda: persistence, raw, persistence._commit)


def backend_of(persistence: StatePersistence[Any, Any]) -> RunBackend:
    """Return the storage below a persistence."""
    return cast('Any', persistence)._backend


def in_file(open_: Any, path: Path) -> RunUnderTest:
    """Return a run in a file, which the raw reader reads as the JSON that it and its lock file are."""

    async def commit(commit_: Commit) -> Receipt:
        return backend_of(open_()).commit(commit_)

    def raw() -> list[Raw]:
        return [Raw(row['id'], row['kind'], row.get('status', 'success')) for row in stored(path)]

    return RunUnderTest(open_, raw, commit)


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


class TestMemoryStore(KeptInStore):
    """`MemoryStore` keeps encoded rows."""

    def make_run(self, directory: Path) -> RunUnderTest:
        store = MemoryStore()
        backend = backend_of(store.run('run'))

        async def commit(commit_: Commit) -> Receipt:
            return backend.commit(commit_)

        def raw() -> list[Raw]:
            return [Raw(row.record.id, row.record.kind, row.record.status) for row in backend.rows()]

        return RunUnderTest(lambda: store.run('run'), raw, commit)


class TestFile(KeptInStore):
    """`FileStatePersistence` keeps one run in one file."""

    def make_run(self, directory: Path) -> RunUnderTest:
        path = directory / 'run.json'
        return in_file(lambda: FileStatePersistence[Any, Any](path), path)


class TestFileInThread(KeptInStore):
    """`FileStatePersistence(durability='full')` waits for the disk, in worker threads."""

    def make_run(self, directory: Path) -> RunUnderTest:
        path = directory / 'run.json'
        return in_file(lambda: FileStatePersistence[Any, Any](path, durability='full'), path)


class TestFileStore(KeptInStore):
    """`FileStore` keeps each run in a file."""

    def make_run(self, directory: Path) -> RunUnderTest:
        store = FileStore(directory / 'runs')
        return in_file(lambda: store.run('a run'), store.path('a run'))


def test_contract_is_abstract():
    """Who takes over the contract without saying how to make a run is told so."""

    class Incomplete(KeptInStore):
        pass

    with pytest.raises(TypeError, match='make_run'):
        Incomplete()  # pyright: ignore[reportAbstractUsage]
