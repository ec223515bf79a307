"""What a store has to provide for one run, and what stores that keep a run at hand have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .commit import UNOWNED, Commit, Ownership, Receipt, Row, StepRecord, Tail, admit
from .errors import UnknownSnapshotError
from .snapshots import now_utc

__all__ = ('Applied', 'LockBusy', 'LoggedRun', 'RunBackend', 'RunLog')


class LockBusy(Exception):
    """Somebody else is writing this very moment. Nothing was done."""


class RunBackend(ABC):
    """Storage of one run. It knows no graph; bodies of rows are opaque to it.

    Its methods block, may be called from any thread, and are each atomic towards every other process and
    thread. Those that find the storage locked raise `LockBusy` at once instead of waiting.
    """

    run_id: str
    """The run."""
    clock: Callable[[], datetime]
    """The clock that leases are measured with (UTC)."""
    prompt: bool
    """Whether its methods are quicker than a switch of threads; an event loop then calls them directly."""

    @abstractmethod
    def commit(self, commit: Commit) -> Receipt:
        """Apply the commit whole, or raise and change nothing.

        Raises:
            SnapshotStatusError: if a change finds a status from which it is not permitted.
            UnknownSnapshotError: if a change names a snapshot that the run does not have.
            RunOwnedError: if the writer does not have the run and a living owner does.
            OwnershipLostError: if the writer had the run and has it no more.
            StorageError: if the storage fails.
            LockBusy: if somebody else is writing.
        """

    @abstractmethod
    def tail(self) -> Tail:
        """Return the end of the run, at a cost that does not depend on its length."""

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """Return every row, oldest first."""


@dataclass(slots=True)
class Applied:
    """What a commit makes of a run: computed first, accepted when it is stored."""

    changed: dict[int, StepRecord]
    """The records that changed, by position."""
    appended: list[Row]
    """The new rows."""
    ownership: Ownership
    """Who has the run after it."""
    receipt: Receipt


class RunLog:
    """The records of one run at hand, in order, with what finds them; and what a commit makes of them."""

    def __init__(self, run_id: str, clock: Callable[[], datetime] = now_utc):
        self.run_id = run_id
        self.clock = clock
        self.records: list[StepRecord] = []
        self.ownership = UNOWNED
        self._newest: dict[str, int] = {}
        self._open: set[int] = set()

    def load(self, records: Iterable[StepRecord], ownership: Ownership) -> None:
        """Replace everything."""
        self.records = []
        self._newest = {}
        self._open = set()
        self.ownership = ownership
        for record in records:
            self._add(record)

    def apply(self, commit: Commit) -> Applied:
        """Compute what the commit makes of the run, changing nothing, or refuse it."""
        ownership = admit(self.run_id, self.ownership, commit, self.clock())
        changed: dict[int, StepRecord] = {}
        seq = attempt = 0
        owner = str(commit.writer.take) if commit.writer.take else None
        for change in commit.changes:
            index = self._newest.get(change.snapshot_id)
            if index is None:
                raise UnknownSnapshotError(self.run_id, change.snapshot_id)
            record = changed.get(index, self.records[index]).changed(self.run_id, change, owner)
            changed[index] = record
            seq, attempt = record.seq, record.attempt
        appended: list[Row] = []
        if not (commit.unless_exists in self._newest or (commit.unless_any and self.records)):
            appended = [
                Row(row.record.numbered(len(self.records) + n), row.body)
                for n, row in enumerate(commit.rows, start=1)
            ]
        return Applied(changed, appended, ownership, Receipt(ownership.fence, seq, attempt))

    def accept(self, applied: Applied) -> None:
        """Take over what `apply` computed."""
        for index, record in applied.changed.items():
            self.records[index] = record
            self._file_open(index, record)
        for row in applied.appended:
            self._add(row.record)
        self.ownership = applied.ownership

    def tail_positions(self) -> list[int]:
        """Return the positions from the newest record back to the newest reached one, that one included."""
        positions: list[int] = []
        for index in range(len(self.records) - 1, -1, -1):
            positions.append(index)
            if self.records[index].reached:
                break
        return positions

    def open_positions(self) -> list[int]:
        """Return the positions of the records that are pending or running, oldest first."""
        return sorted(self._open)

    def _add(self, record: StepRecord) -> None:
        index = len(self.records)
        self.records.append(record)
        self._newest[record.id] = index
        self._file_open(index, record)

    def _file_open(self, index: int, record: StepRecord) -> None:
        if record.status in ('pending', 'running'):
            self._open.add(index)
        else:
            self._open.discard(index)


class LoggedRun(RunBackend):
    """A backend that keeps the whole run at hand in a `RunLog`."""

    log: RunLog

    @abstractmethod
    def body(self, index: int) -> Any:
        """Return the body of the row at this position."""

    def _tail(self) -> Tail:
        row = self._row
        return Tail(
            [row(i) for i in self.log.tail_positions()],
            [row(i) for i in self.log.open_positions()],
            self.log.ownership,
        )

    def _rows(self) -> list[Row]:
        return [self._row(i) for i in range(len(self.log.records))]

    def _row(self, index: int) -> Row:
        return Row(self.log.records[index], self.body(index))
