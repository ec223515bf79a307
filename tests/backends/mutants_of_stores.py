"""Stores that break a promise, whatever their runs do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from graphkeep import FileStore, MemoryStore, RunInfo, Store, StoredStatePersistence
from graphkeep.commit import UNOWNED, About, Commit, Receipt, Row, Tail
from graphkeep.file import FileStatePersistence
from graphkeep.memory import _MemoryRun
from graphkeep.runfile import RunFile
from graphkeep.runinfo import RunQuery, describe
from graphkeep.testing import Durable, RawRun
from tests.backends import test_contract
from tests.backends.mutants import MUTANTS, Mutant

__all__ = ()

# ------------------------------------------------------------------------------------------------- in memory


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


class Newborn(MemoryStore):
    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        return super()._insert(run_id, rows, about._replace(created=self.clock()))


class TestImportsAsNew(Mutant):
    """When a run that is imported began is not kept."""

    store_type = Newborn
    rejected_by = 'test_export_and_import'


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


class Unconditional(MemoryStore):
    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        return super()._delete(run_id)


class TestDeletesWithoutAsking(Mutant):
    """A run is pruned though by then another one has its id, which has not ended."""

    store_type = Unconditional
    rejected_by = 'test_delete_what_has_ended'


class OnePage(MemoryStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        return super()._list(query)[:200]


class TestListsAPage(Mutant):
    """Of very many runs only the first are listed, however many are asked for."""

    store_type = OnePage
    rejected_by = 'test_prune_many'


class Timeless(MemoryStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        return [replace(info, expires=None) for info in super()._list(query)]


class TestListsNoExpiry(Mutant):
    """It is not told until when somebody has a run."""

    store_type = Timeless
    rejected_by = 'test_what_is_told_of_a_run'


# -------------------------------------------------------------------------------------------------- in files


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

    kills = 20  # not each of them is between the two

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return LateStore(directory, clock=clock, lease=lease)

    def read_raw(self, directory: Path, run_id: str) -> RawRun:
        return test_contract.read_file(directory / 'lasting' / f'{run_id}.json')


class Strict(FileStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        for run_id in self._run_ids():
            self._rows(run_id)
        return super()._list(query)


class TestFailsByOneRun(test_contract.InFiles):
    """Where one run cannot be read none is listed."""

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return Strict(directory / 'runs', clock=clock, lease=lease)


class Hiding(FileStore):
    def _list(self, query: RunQuery) -> list[RunInfo]:
        return [info for info in super()._list(query) if info.steps]


class TestHidesWhatIsCorrupt(test_contract.InFiles):
    """A run that cannot be read is not listed."""

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        return Hiding(directory / 'runs', clock=clock, lease=lease)


MUTANTS.update(
    {
        TestAcknowledgesBeforeStoring: 'test_killed',
        TestFailsByOneRun: 'test_corrupt_run_harms_no_other',
        TestHidesWhatIsCorrupt: 'test_corrupt_run',
    }
)
