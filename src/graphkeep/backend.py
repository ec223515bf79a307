"""What a store has to provide for one run, and what stores that keep a run at hand have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from .commit import NAMELESS, UNOWNED, About, Commit, Ownership, Receipt, Row, StepRecord, Tail, admit
from .errors import RunOwnedError, SnapshotStatusError, StorageError, UnknownSnapshotError
from .offload import submit
from .promise import Work
from .runinfo import RunInfo, describe, last_change
from .turns import Turns

__all__ = (
    'Applied',
    'LockBusy',
    'LoggedRun',
    'RunBackend',
    'RunLog',
    'TryAgain',
    'Turn',
    'apply',
)


class LockBusy(Exception):
    """Somebody else is writing this very moment. Nothing was done."""


class TryAgain(LockBusy):
    """Nothing was done, and there is nothing to wait for any more."""


class Turn(ABC):
    """A write that one holder of a run wants to make, up to the moment when its turn comes.

    With its mutex in hand a storage opens it, makes the commit, and settles it or lets it fail. (A storage
    that knows what opening it comes to may do that and write it in one go, see `sqlstep`.)
    """

    __slots__ = ('commit', 'mutex')

    def __init__(self, mutex: threading.Lock, commit: Commit):
        self.mutex = mutex
        """Of the holder, one of whose writes is under way at a time."""
        self.commit = commit
        """The write; who makes it is known once it is opened."""

    @abstractmethod
    def open(self) -> Commit:
        """Return the commit as it is to be made now, or refuse it with an error of ours."""

    @abstractmethod
    def settle(self, receipt: Receipt) -> None:
        """Learn that the commit was made."""

    @abstractmethod
    def fail(self, exc: Exception) -> None:
        """Learn that the commit was not made."""


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
    """Whether writes and the reading of the tail are quicker than a switch of threads; an event loop then
    calls them directly."""
    queues = False
    """Whether a write that finds the storage locked is better queued than tried again and again."""

    def write(self, turn: Turn) -> Receipt | Work[Receipt]:
        """Make one commit when its turn comes.

        Returns:
            What it did; as work, if it is made but has to wait until it lasts.

        Raises:
            StorageError: as `commit`; with a receipt if it was made, and only may not last.
            LockBusy: if somebody else is writing.
        """
        return self._write(turn)

    def _write(self, turn: Turn) -> Receipt:
        with turn.mutex:
            commit = turn.open()
            try:
                receipt = self.commit(commit)
            except StorageError as exc:
                if exc.receipt is None:
                    turn.fail(exc)
                else:
                    turn.settle(exc.receipt)
                raise
            except Exception as exc:
                turn.fail(exc)
                raise
            turn.settle(receipt)
            return receipt

    def gathers(self, turns: Turns) -> bool:
        """Whether writes are better made together with others just now, at the end of a round."""
        return False

    def gather(self, turn: Turn, turns: Turns) -> Work[Receipt]:
        """Have one commit made at the end of this round, together with others; only if it `gathers`.

        What comes of it is what `write` returns, or raises: `LockBusy` if there is anything to wait for.
        """
        raise NotImplementedError

    def queue(self, turn: Turn) -> Work[Receipt]:
        """Have one commit made by another thread; `TryAgain` comes of it if it is as well made here."""
        return submit(partial(self._write, turn))

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

    @property
    def tail_is_prompt(self) -> bool:
        """Whether `tail` may be called on an event loop's own thread."""
        return self.prompt

    def tail_elsewhere(self) -> Callable[[], Tail]:
        """Return what another thread is to call in the place of `tail`, for the thread that calls this."""
        return self.tail

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """Return every row, oldest first."""

    def records(self) -> Sequence[Row]:
        """Return every row, oldest first; all but tasks may be without their bodies."""
        return self.rows()


class RunView(Protocol):
    """What has to be known of a run to tell what a commit makes of it."""

    run_id: str
    """The run."""
    ownership: Ownership
    """Who has the run."""

    @property
    def last(self) -> int:
        """The number of the newest snapshot, 0 if there is none."""
        ...

    def find(self, snapshot_id: str) -> StepRecord | None:
        """Return the record of the newest snapshot with this id."""
        ...


@dataclass(slots=True)
class Applied:
    """What a commit makes of a run: computed first, accepted when it is stored."""

    changed: dict[int, StepRecord]
    """The records that changed, by their number."""
    appended: list[Row]
    """The new rows."""
    ownership: Ownership
    """Who has the run after it."""
    receipt: Receipt
    """What is told of it."""
    begins: About | None = None
    """What to record of the run, if this begins it."""


def apply(run: RunView, commit: Commit, now: datetime) -> Applied:
    """Compute what the commit makes of the run, changing nothing, or refuse it.

    Raises:
        SnapshotStatusError: if a change finds a status from which it is not permitted.
        UnknownSnapshotError: if a change names a snapshot that the run does not have.
        RunOwnedError: if the writer does not have the run and a living owner does.
        OwnershipLostError: if the writer had the run and has it no more.
    """
    run_id = run.run_id
    ownership = admit(run_id, run.ownership, commit, now)
    owner = commit.writer.take or ownership.owner
    changed: dict[int, StepRecord] = {}
    seq = attempt = 0
    for change in commit.changes:
        record = run.find(change.snapshot_id)
        if record is None:
            raise UnknownSnapshotError(run_id, change.snapshot_id)
        seq = record.seq
        if change.seq is not None and change.seq < seq:
            # a node that returned itself: somebody else has run it, and what is there now comes after that
            raise SnapshotStatusError(run_id, change.snapshot_id, change.transition, 'success')
        changed[seq] = record = changed.get(seq, record).changed(run_id, change, owner, now)
        attempt = record.attempt
    last = begun_at = run.last
    appended: list[Row] = []
    if commit.rows and not _is_there(commit, run):
        for row in commit.rows:
            last += 1
            appended.append(Row(row.record.numbered(last), row.body))
    begins = commit.about._replace(created=now) if appended and not begun_at else None
    return Applied(changed, appended, ownership, Receipt(ownership.fence, seq, attempt, last), begins)


def _is_there(commit: Commit, run: RunView) -> bool:
    """Whether there is what the rows of the commit are not to be added to."""
    if commit.unless_any and run.last:
        return True
    return commit.unless_exists is not None and run.find(commit.unless_exists) is not None


class RunLog:
    """The records of one run at hand, in order, with what finds them."""

    def __init__(self, run_id: str):
        self.run_id = run_id
        self.load((), UNOWNED)

    def load(self, records: Iterable[StepRecord], ownership: Ownership, about: About = NAMELESS) -> None:
        """Replace everything."""
        self.records: list[StepRecord] = []
        self._newest: dict[str, int] = {}
        self._open: set[int] = set()
        self.ownership = ownership
        self.about = about
        for record in records:
            self._add(record)

    @property
    def last(self) -> int:
        """The number of the newest snapshot, 0 if there is none."""
        return self.records[-1].seq if self.records else 0

    def find(self, snapshot_id: str) -> StepRecord | None:
        """Return the record of the newest snapshot with this id."""
        index = self._newest.get(snapshot_id)
        return None if index is None else self.records[index]

    def index(self, seq: int) -> int:
        """Return the position of the record with this number; the first ones may have been pruned."""
        return seq - self.records[0].seq

    def accept(self, applied: Applied) -> None:
        """Take over what `apply` computed."""
        for seq, record in applied.changed.items():
            index = self.index(seq)
            self.records[index] = record
            self._file_open(index, record)
        for row in applied.appended:
            self._add(row.record)
        self.ownership = applied.ownership
        self.about = applied.begins or self.about

    def tail_positions(self) -> list[int]:
        """Return the positions from the newest record back to the newest reached one, that one included."""
        positions: list[int] = []
        for index in range(len(self.records) - 1, -1, -1):
            if not self.records[index].is_part:
                positions.append(index)
                if self.records[index].reached:
                    break
        return positions

    def passed(self, before: datetime) -> int:
        """Return how many of the oldest records ended before this moment and are not needed to go on."""
        needed = min([*self.tail_positions()[-1:], *self._open], default=0)
        for count, record in enumerate(self.records[:needed]):
            moment = last_change(record)
            if moment is not None and moment >= before:
                return count
        return needed

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

    def info(self) -> RunInfo | None:
        """Return what is known of the whole run, `None` if nothing is stored of it."""
        log = self.log
        return (
            describe(self.run_id, log.about, log.records, log.ownership, self.clock()) if log.last else None
        )

    def _may_be_deleted(self, ended_before: datetime | None) -> bool:
        """Whether there is such a run, or refuse because of who has it in hand."""
        info, ownership = self.info(), self.log.ownership
        if info is None or (ended_before is not None and not info.ended_before(ended_before)):
            return False
        if not ownership.is_free(self.clock()):
            raise RunOwnedError(self.run_id, ownership.owner, ownership.expires)
        return True

    def _tail(self) -> Tail:
        row = self._row
        return Tail(
            [row(i) for i in self.log.tail_positions()],
            [row(i) for i in self.log.open_positions()],
            self.log.ownership,
            self.log.last,
        )

    def _rows(self) -> list[Row]:
        return [self._row(i) for i in range(len(self.log.records))]

    def _row(self, index: int) -> Row:
        return Row(self.log.records[index], self.body(index))
