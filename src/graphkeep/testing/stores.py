"""A store under test: what its author has to give, and what the clauses do with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import anyio
import anyio.to_thread
import pytest

from ..backend import LockBusy, RunBackend
from ..commit import Commit, Ownership, Receipt, Row, Tail
from ..owner import Owner
from ..runinfo import RunInfo
from ..store import Store
from ..stored import StoredStatePersistence
from .clock import LEASE, Clock
from .graphs import graph
from .runs import Clauses, RawSnapshot, RunUnderTest

__all__ = (
    'RawRun',
    'StoreClauses',
    'StoreUnderTest',
    'backend_of',
    'commit_below',
    'delete_below',
    'known',
    'owner_of',
    'ownership_of',
    'rows_of',
    'tail_of',
)


class RawRun(NamedTuple):
    """One run as the storage shows it, read without the store."""

    snapshots: list[RawSnapshot]
    """Its snapshots, oldest first; empty if nothing is stored of it."""
    owner: str | None
    """The `id` of the `Owner` who has it in hand, `None` if nobody has."""


class StoreUnderTest:
    """One storage, and the stores that are opened on it."""

    def __init__(self, contract: StoreClauses, directory: Path):
        self.directory = directory
        self.clock = Clock()
        self.kept: list[object] = []  # an owner that nobody has any more is gone
        self._contract = contract
        self._opened: list[Store] = []

    def another(self) -> Store:
        """Open one more store on the same storage."""
        store = self._contract.open_store(self.directory, self.clock, LEASE)
        self._opened.append(store)
        return store

    @property
    def store(self) -> Store:
        """The store that was opened first."""
        return self._opened[0] if self._opened else self.another()

    def run(self, run_id: str = 'run', *, tags: tuple[str, ...] = ()) -> StoredStatePersistence[Any, Any]:
        """Open a run as one more owner, who knows the graph."""
        return known(self.store.run(run_id, tags=tags))

    def raw(self, run_id: str = 'run') -> RawRun:
        """Read a run without the store."""
        return self._contract.read_raw(self.directory, run_id)

    def statuses(self, run_id: str = 'run') -> list[str]:
        """Return the stored statuses of a run, oldest first."""
        return [snapshot.status for snapshot in self.raw(run_id).snapshots]

    async def info(self, run_id: str = 'run') -> RunInfo:
        """Return a run as the store lists it."""
        found = [info for info in await self.store.runs() if info.id == run_id]
        assert len(found) == 1, f'the store should list run {run_id!r} once; it listed {found}'
        return found[0]

    def under_test(self, run_id: str) -> RunUnderTest:
        """Return one run of it."""

        async def commit(commit_: Commit) -> Receipt:
            return await commit_below(self.store.run(run_id), commit_)

        return RunUnderTest(
            lambda: self.store.run(run_id),
            lambda: self.raw(run_id).snapshots,
            commit,
            self.clock,
            self.aclose,
        )

    async def aclose(self) -> None:
        """Close what was opened."""
        while self._opened:
            await self._opened.pop().aclose()


class StoreClauses(Clauses):
    """What every clause about whole stores starts from; its two methods are what an author has to give."""

    @abstractmethod
    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        """Open the store that is kept in this directory.

        Each call is one more store on the same storage, as in another process, if there can be several; else
        it returns the one there is. The test closes it.

        Args:
            directory: An empty directory at first; it tells one storage from another.
            clock: The clock to give to the store (UTC).
            lease: The lease to give to the store, in seconds.
        """

    @abstractmethod
    def read_raw(self, directory: Path, run_id: str) -> RawRun:
        """Read what is stored of a run without the store, so that the store cannot tell what it only hopes.

        Args:
            directory: As given to `open_store`.
            run_id: The run; perhaps one of which nothing is stored.
        """

    @pytest.fixture
    async def place(self, tmp_path: Path, anyio_backend: str) -> AsyncGenerator[StoreUnderTest]:
        """A storage of which nothing is used yet."""
        directory = tmp_path / 'store'
        directory.mkdir()
        place = StoreUnderTest(self, directory)
        yield place
        await place.aclose()


def known(persistence: StoredStatePersistence[Any, Any]) -> StoredStatePersistence[Any, Any]:
    """Return the persistence, which knows the graph now."""
    persistence.set_graph_types(graph)
    return persistence


def backend_of(persistence: StoredStatePersistence[Any, Any]) -> RunBackend:
    """Return the storage below a persistence."""
    return cast('Any', persistence)._backend


async def commit_below(persistence: StoredStatePersistence[Any, Any], commit: Commit) -> Receipt:
    """Commit below the persistence, as whom the commit names."""
    backend = backend_of(persistence)
    for _ in range(1000):
        try:
            if backend.prompt:
                return backend.commit(commit)
            return await anyio.to_thread.run_sync(backend.commit, commit)
        except LockBusy:
            await anyio.sleep(0.005)
    raise AssertionError(f'the storage of run {persistence.run_id!r} should not be locked for so long')


async def delete_below(store: Store, run_id: str, ended_before: datetime) -> bool:
    """Delete a run on the condition under which one is pruned; return whether it was."""
    return await cast('Any', store)._change(partial(store._delete, run_id, ended_before))


async def tail_of(persistence: StoredStatePersistence[Any, Any]) -> Tail:
    """Return the end of the run, as the storage tells."""
    return await cast('Any', persistence)._tail()


async def rows_of(persistence: StoredStatePersistence[Any, Any]) -> Sequence[Row]:
    """Return every row of the run, as the storage tells."""
    return await cast('Any', persistence)._rows()


async def ownership_of(persistence: StoredStatePersistence[Any, Any]) -> Ownership:
    """Return who has the run, as the storage tells."""
    return (await tail_of(persistence)).ownership


def owner_of(persistence: StoredStatePersistence[Any, Any]) -> Owner:
    """Return who the persistence is."""
    return cast('Any', persistence)._claims.owner
