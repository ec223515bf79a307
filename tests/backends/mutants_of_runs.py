"""Stores whose runs break a promise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from graphkeep import MemoryStore, SnapshotStatusError
from graphkeep.backend import Applied, apply
from graphkeep.codec import Body
from graphkeep.commit import Commit, Receipt, Row, Tail
from graphkeep.errors import RunOwnedError, UnknownSnapshotError
from graphkeep.memory import _MemoryRun
from graphkeep.runinfo import last_change
from graphkeep.snapshots import now_utc
from graphkeep.status import CLAIM
from tests.backends.mutants import Mutant

__all__ = ()

# ------------------------------------------------------------------------------------------------ the commit


class WithoutFence(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        if commit.writer.fence is not None:
            commit.writer = commit.writer._replace(fence=self.log.ownership.fence, holder=None)
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
        commit.writer = commit.writer._replace(give_up=False)
        return super().commit(commit)


class TestForgetsToGiveUp(Mutant):
    """The end of a step does not free the run."""

    run_type = NeverFree
    rejected_by = 'test_raw_owner'


class Unmoved(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        receipt = super().commit(commit)
        self.log.ownership = self.log.ownership._replace(since=None)
        return receipt


class TestForgetsWhoWasTried(Mutant):
    """A run that is given back is not remembered to have been handed out."""

    run_type = Unmoved
    rejected_by = 'test_claim_passes_over'


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


class FirstRow(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        commit.rows = commit.rows[:1]
        return super().commit(commit)


class TestStoresTheFirstRow(Mutant):
    """Of several rows of a commit the first one is stored."""

    run_type = FirstRow
    rejected_by = 'test_rows_of_a_commit'


class WithoutParts(_MemoryRun):
    def tail(self) -> Tail:
        tail = super().tail()
        return tail._replace(last=tail.rows[0].record.seq if tail.rows else 0)


class TestTailLeavesOutParts(Mutant):
    """The number of the newest snapshot is told without the parts of a run of a builder graph."""

    run_type = WithoutParts
    rejected_by = 'test_tail_of_a_run_with_parts'


class Cutting(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        for row in commit.rows:
            row.body = Body(row.body.state[:60_000], row.body.node[:60_000])
        return super().commit(commit)


class TestCutsBigBodies(Mutant):
    """Of a big snapshot only the beginning is stored."""

    run_type = Cutting
    rejected_by = 'test_big_snapshots'


class OnePage(_MemoryRun):
    def _rows(self) -> list[Row]:
        return super()._rows()[:300]


class TestReadsAPageOfRows(Mutant):
    """Of a long run only the beginning is read."""

    run_type = OnePage
    rejected_by = 'test_very_many_rows'


# ----------------------------------------------------------------------------------- time, tags and trimming


class LongLease(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        commit.writer = commit.writer._replace(lease=1e6)
        return super().commit(commit)


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


class WithoutTimes(_MemoryRun):
    def _rows(self) -> list[Row]:
        rows = super()._rows()
        for row in rows:
            attempts = tuple(a._replace(start_ts=None, duration=None) for a in row.record.attempts)
            row.record = row.record._replace(attempts=attempts)
        return rows


class TestForgetsTimesOfAttempts(Mutant):
    """When the attempts at a node began, and how long they took, is not kept."""

    run_type = WithoutTimes
    rejected_by = 'test_times_are_exact'


class Milliseconds(_MemoryRun):
    def commit(self, commit: Commit) -> Receipt:
        for change in commit.changes:
            if change.at is not None:
                change.at = change.at.replace(microsecond=change.at.microsecond // 1000 * 1000)
        return super().commit(commit)


class TestKeepsMilliseconds(Mutant):
    """Of times the microseconds are lost."""

    run_type = Milliseconds
    rejected_by = 'test_times_are_exact'


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


class Unfenced(_MemoryRun):
    def trim(self, before: datetime) -> int:
        trimmed = super().trim(before)
        if trimmed and self.log.ownership.owner is None:
            self.log.ownership = self.log.ownership._replace(fence=0)
        return trimmed


class TestTrimResetsTheFence(Mutant):
    """How many times a run was taken is forgotten when it is pruned."""

    run_type = Unfenced
    rejected_by = 'test_trim_leaves_the_fence'
