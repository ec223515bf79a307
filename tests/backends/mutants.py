"""Stores that each break one promise, under the kit; `test_mutants` runs this file and wants it rejected.

Nothing here is collected by itself: the file's name is not that of a test.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from graphkeep import FileStore, MemoryStore, RunInfo, SnapshotStatusError, Store, StoredStatePersistence
from graphkeep.backend import Applied, apply
from graphkeep.commit import UNOWNED, About, Commit, Receipt, Row, Tail
from graphkeep.errors import RunOwnedError, UnknownSnapshotError
from graphkeep.file import FileStatePersistence
from graphkeep.memory import _MemoryRun
from graphkeep.runfile import RunFile
from graphkeep.runinfo import RunQuery, describe, last_change
from graphkeep.snapshots import now_utc
from graphkeep.status import CLAIM
from graphkeep.testing import Durable, RawRun
from tests.backends import test_contract

__all__ = ('MUTANTS',)

MUTANTS: dict[str, str] = {}
"""The clause that has to reject each of the test classes here, among others that may."""


class Mutant(test_contract.TestMemoryStore):
    """The contract on a store in memory with runs of a class of its own."""

    __test__ = False
    run_type: ClassVar[type[_MemoryRun]] = _MemoryRun
    store_type: ClassVar[type[MemoryStore]] = MemoryStore
    rejected_by: ClassVar[str] = ''

    def __init_subclass__(cls) -> None:
        """Put the class on the list."""
        cls.__test__ = True
        cls.stores = {}
        if cls.rejected_by:
            MUTANTS[cls.__name__] = cls.rejected_by

    @pytest.fixture
    def anyio_backend(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One event loop is enough."""
        return 'asyncio'

    def make_store(self, clock: Callable[[], datetime], lease: float) -> MemoryStore:
        run_type = self.run_type

        class Store_(self.store_type):
            def _run(self, run_id: str) -> _MemoryRun:
                return self._held.get(run_id) or self._held.setdefault(run_id, run_type(run_id, self.clock))

        return Store_(clock=clock, lease=lease)

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        if directory not in self.stores:
            self.stores[directory] = self.make_store(clock, lease)
        return self.stores[directory]


class TestUnbroken(Mutant):
    """Nothing is wrong with this one."""


# ------------------------------------------------------------------------------------------------ the commit


class WithoutFence(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        if commit.writer.fence is not None:
            commit = commit.by(commit.writer._replace(fence=self.log.ownership.fence, holder=None))
        return super().commit(commit)


class TestIgnoresTheFence(Mutant):
    """A stale owner's writes are taken."""

    run_type = WithoutFence
    rejected_by = 'test_take_over'


class WithoutCompare(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        for change in commit.changes:
            record = self.log.find(change.snapshot_id)
            if record is not None and record.status not in change.transition.sources:
                status = min(change.transition.sources)
                self.log.records[self.log.index(record.seq)] = record._replace(status=status)
        return super().commit(commit)


class TestForgetsTheCompareAndSet(Mutant):
    """A change is made whatever status it finds."""

    run_type = WithoutCompare
    rejected_by = 'test_table'


class Halfway(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        try:
            return super().commit(commit)
        except (SnapshotStatusError, UnknownSnapshotError):
            for change in commit.changes:
                record = self.log.find(change.snapshot_id)
                if record is None or record.status not in change.transition.sources:
                    break
                changed = {record.seq: record.changed(self.run_id, change)}
                self.log.accept(Applied(changed, [], self.log.ownership, Receipt()))
            raise


class TestWritesHalfOfACommit(Mutant):
    """Of a commit that is refused the part before the wrong change is made."""

    run_type = Halfway
    rejected_by = 'test_refused_commit'


class OutOfOrder(_MemoryRun):
    def rows(self) -> list[Row]:
        return sorted(super().rows(), key=lambda row: row.record.id)


class TestLosesTheOrder(Mutant):
    """Snapshots are given in another order than they were written in."""

    run_type = OutOfOrder
    rejected_by = 'test_load_all'


class NeverFree(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        return super().commit(commit.by(commit.writer._replace(give_up=False)))


class TestForgetsToGiveUp(Mutant):
    """The end of a step does not free the run."""

    run_type = NeverFree
    rejected_by = 'test_raw_owner'


class ForAll(_MemoryRun):
    def tail(self) -> Tail:
        rows, open_, ownership, last = super().tail()
        shown = [
            Row(
                row.record._replace(status='created') if row.record.status == 'pending' else row.record,
                row.body,
            )
            for row in rows
        ]
        return Tail(shown, open_, ownership, last)

    def commit(self, commit: Commit) -> Receipt:
        try:
            return super().commit(commit)
        except (RunOwnedError, SnapshotStatusError):
            if [change.transition for change in commit.changes] != [CLAIM]:
                raise
            return Receipt(self.log.ownership.fence, self.log.last)


class TestGivesAClaimToTwo(Mutant):
    """A node that somebody has claimed is handed out again."""

    run_type = ForAll
    rejected_by = 'test_one_claim_among_20_instances'


class FirstForAll(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        commit.unless_any = False
        return super().commit(commit)


class TestBeginsTwice(Mutant):
    """Of two that begin a run both store its first node."""

    run_type = FirstForAll
    rejected_by = 'test_conditional_rows'


class OneFence(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        receipt = super().commit(commit)
        self.log.ownership = self.log.ownership._replace(fence=min(self.log.ownership.fence, 1))
        return replace(receipt, fence=self.log.ownership.fence)


class TestFenceStandsStill(Mutant):
    """Taking a run over leaves the fence as it was."""

    run_type = OneFence
    rejected_by = 'test_fence_grows'


class Unlocked(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        applied = apply(self.log, commit, self.clock())
        time.sleep(0.001)
        self.log.accept(applied)
        self._bodies.extend(row.body for row in applied.appended)
        return applied.receipt


class TestForgetsTheLock(Mutant):
    """Between the comparison and the write another thread may write."""

    run_type = Unlocked
    rejected_by = 'test_race_for_a_start'


class Quiet(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        try:
            return super().commit(commit)
        except UnknownSnapshotError:
            return Receipt(self.log.ownership.fence)


class TestSwallowsAnError(Mutant):
    """A change to a snapshot that is not there is acknowledged."""

    run_type = Quiet
    rejected_by = 'test_unknown_snapshot'


class Forgetful(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        receipt = super().commit(commit)
        self.log.records[:] = [record._replace(attempts=record.attempts[-1:]) for record in self.log.records]
        return receipt


class TestForgetsAttempts(Mutant):
    """Of the attempts at a node only the last one is kept."""

    run_type = Forgetful
    rejected_by = 'test_attempts'


# --------------------------------------------------------------------------------------------- time and tags


class LongLease(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        return super().commit(commit.by(commit.writer._replace(lease=1e6)))


class TestNeverExpires(Mutant):
    """A lease lasts much longer than it was asked to."""

    run_type = LongLease
    rejected_by = 'test_owned_until_the_lease_ends'


class TestClockOnTheWall(Mutant):
    """Leases are measured with another clock than the one that was given."""

    rejected_by = 'test_owned_until_the_lease_ends'

    def make_store(self, clock: Callable[[], datetime], lease: float) -> MemoryStore:
        return super().make_store(now_utc, lease)


class Untagged(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        commit.about = commit.about._replace(tags=())
        return super().commit(commit)


class TestDropsTags(Mutant):
    """What a run is to be found by is not recorded."""

    run_type = Untagged
    rejected_by = 'test_tags'


# ------------------------------------------------------------------------------------------ the whole store


class LivePersistence(StoredStatePersistence[Any, Any]):
    def _freeze(self, snapshot: Any) -> Any:
        super()._freeze(snapshot)
        return snapshot

    def _thaw(self, row: Row) -> Any:
        return row.body

    def _thaw_state(self, row: Row) -> Any:
        return row.body.state


class LiveStore(MemoryStore):
    def _open(self, run_id: str, tags: tuple[str, ...]) -> StoredStatePersistence[Any, Any]:
        return LivePersistence(self._run(run_id), lease=self._lease, tags=tags)


class TestReturnsLiveObjects(Mutant):
    """State and node are the run's own objects, not copies."""

    store_type = LiveStore
    rejected_by = 'test_snapshot_is_independent'


class Remembering(_MemoryRun):
    __slots__ = ('_seen',)  # not in the dictionary, which all have in common

    def __init__(self, run: _MemoryRun):
        object.__setattr__(self, '__dict__', vars(run))
        self._seen: Tail | None = None

    def commit(self, commit: Commit) -> Receipt:
        receipt = super().commit(commit)
        self._seen = super().tail()
        return receipt

    def tail(self) -> Tail:
        if self._seen is None or not self._seen.last:
            self._seen = super().tail()
        return self._seen


class RememberingStore(MemoryStore):
    def _open(self, run_id: str, tags: tuple[str, ...]) -> StoredStatePersistence[Any, Any]:
        backend = Remembering(self._run(run_id))
        return StoredStatePersistence(backend, lease=self._lease, tags=tags)


class TestNeverLooksAgain(Mutant):
    """Who has seen where a run is does not see that somebody else has gone on with it."""

    store_type = RememberingStore
    rejected_by = 'test_taking_turns'


class TestLosesAllOnReopening(Mutant):
    """A store that is opened does not see what others have committed."""

    rejected_by = 'test_stores_share_a_storage'

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        store = self.make_store(clock, lease)
        self.stores.setdefault(directory, store)
        return store


class Childless(MemoryStore):
    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        return super()._insert(run_id, rows, about._replace(parent=None))


class TestForgetsLineage(Mutant):
    """A fork does not know what it was forked from."""

    store_type = Childless
    rejected_by = 'test_lineage'


class Family(MemoryStore):
    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        for other in tuple(self._held.values()):
            if other.log.about.parent and other.log.about.parent[0] == run_id:
                other.delete(None)
        return super()._delete(run_id, ended_before)


class TestDeletesForks(Mutant):
    """With a run goes what was forked from it."""

    store_type = Family
    rejected_by = 'test_fork_outlives_its_source'


class Overwriting(MemoryStore):
    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        self._run(run_id)._replace(rows, about)
        return True


class TestOverwrites(Mutant):
    """A fork or an import takes the place of a run that is there."""

    store_type = Overwriting
    rejected_by = 'test_refused_forks'


class Unfiltered(MemoryStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        return super()._list(replace(query, updated_before=None))


class TestIgnoresAFilter(Mutant):
    """Runs are listed that were changed later than was asked for."""

    store_type = Unfiltered
    rejected_by = 'test_filters'


class Repeating(MemoryStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        return super()._list(replace(query, after=query.after[:-1]))


class TestPagesTwice(Mutant):
    """A page begins with what the page before ended with."""

    store_type = Repeating
    rejected_by = 'test_pages'


class Phantoms(MemoryStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        listed = super()._list(query)
        real = [run for run in self._held.values() if run.log.last]
        blank = [run.run_id for run in self._held.values() if not run.log.last]
        if not listed or not real or not blank:
            return listed
        log = real[0].log
        return [*listed, describe(blank[0], log.about, log.records, UNOWNED, self.clock())]


class TestListsPhantoms(Mutant):
    """A run that is not there any more is listed."""

    store_type = Phantoms
    rejected_by = 'test_delete'


class Ruthless(MemoryStore):
    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        run = self._run(run_id)
        run.log.ownership = UNOWNED
        return super()._delete(run_id, ended_before)


class TestDeletesWhatIsInHand(Mutant):
    """A run is deleted though somebody has it in hand."""

    store_type = Ruthless
    rejected_by = 'test_delete_what_is_in_hand'


class Pruner(_MemoryRun):
    def trim(self, before: datetime) -> int:
        rows = self._rows()
        kept = [row for row in rows if (at := last_change(row.record)) is None or at >= before]
        ownership = self.log.ownership
        self._replace(kept, self.log.about)
        self.log.ownership = ownership
        return len(rows) - len(kept)


class TestPrunesWhatIsNeeded(Mutant):
    """Of an unfinished run everything old is pruned, what it goes on from too."""

    run_type = Pruner
    rejected_by = 'test_trim_after_a_failure'


class Shared(_MemoryRun):
    bodies: ClassVar[dict[str, Any]] = {}

    def commit(self, commit: Commit) -> Receipt:
        receipt = super().commit(commit)
        self.bodies.update((row.record.id, row.body) for row in commit.rows)
        return receipt

    def body(self, index: int) -> Any:
        record = self.log.records[index]
        return self.bodies.get(record.id, self._bodies[index])


class TestMixesRuns(Mutant):
    """Snapshots of two runs with the same id are taken for one."""

    run_type = Shared
    rejected_by = 'test_runs_do_not_mix'


# ---------------------------------------------------------------------------------------------- its process


class LateFile(RunFile):
    """Writes to a directory of its own; the one that lasts gets a commit with the next one."""

    lasting: Path

    def commit(self, commit: Commit) -> Receipt:
        old = {path.name: path.read_bytes() for path in Path(self._path).parent.iterdir()}
        receipt = super().commit(commit)
        for name, data in old.items():
            (self.lasting / name).write_bytes(data)
        return receipt


class LateStore(FileStore):
    def __init__(self, directory: Path, **options: Any):
        self._lasting = directory / 'lasting'
        working = directory / f'working {time.monotonic_ns()}'
        self._lasting.mkdir(exist_ok=True)
        shutil.copytree(self._lasting, working)
        super().__init__(working, **options)

    def _open(self, run_id: str, tags: tuple[str, ...]) -> FileStatePersistence[Any, Any]:
        persistence = super()._open(run_id, tags)
        backend = LateFile(self.path(run_id), run_id, self.clock, durable=False)
        backend.lasting = self._lasting
        StoredStatePersistence.__init__(persistence, backend, lease=persistence.lease, tags=tags)
        return persistence

    async def aclose(self) -> None:
        shutil.copytree(self.directory, self._lasting, dirs_exist_ok=True)


class TestAcknowledgesBeforeStoring(Durable):
    """A commit is acknowledged, and stored a little later."""

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return LateStore(directory, clock=clock, lease=lease)

    def read_raw(self, directory: Path, run_id: str) -> RawRun:
        return test_contract.read_file(directory / 'lasting' / f'{run_id}.json')


MUTANTS['TestAcknowledgesBeforeStoring'] = 'test_killed'
