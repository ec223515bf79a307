"""What is stored of one run in a SQLite store, as values of ours."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from .backend import Applied
from .codec import Body
from .commit import NAMELESS, UNOWNED, About, Attempt, Ownership, Row, StepRecord
from .errors import CorruptSnapshotError
from .jsonrun import load_attempts, load_owner

__all__ = (
    'COLUMNS',
    'IN_HAND',
    'RECORDS',
    'UNREADABLE',
    'SqlView',
    'bodiless',
    'bound',
    'end_stamp',
    'last_stamp',
    'moment',
    'read_all',
    'stamp',
    'unreadable',
    'view_run',
)

IN_HAND: Final = ('pending', 'running')
"""The statuses of what somebody has in hand; it is in the row of the run."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
UNREADABLE: Final = (
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What is raised where something else is stored than what we write."""
_MOST: Final = 2**53  # of what is counted: the file has no exact numbers beyond
_KNOWN: Final = 16  # records of a run that are kept at hand; others are looked up

_FIND_RUN: Final = """
SELECT
    run, version, steps, updated, fence, owner, expires, in_hand, graph, created, parent, parent_seq
FROM runs WHERE id = ?
"""
COLUMNS: Final = 'seq, id, node_id, kind, status, start_ts, duration, attempt, owner, attempts'
"""The columns of a snapshot, in the order of `StepRecord`'s making."""
# From the newest on: it is nearly always the one that is meant.
_FIND_STEP: Final = (
    f'SELECT {COLUMNS} FROM steps WHERE run = ? AND id = CAST(? AS TEXT) ORDER BY seq DESC LIMIT 1'  # noqa: S608
)
_NEWEST_STEPS: Final = f"""
SELECT {COLUMNS} FROM steps WHERE run = ? AND kind IN ('node', 'end') ORDER BY seq DESC
"""  # noqa: S608
_STEP: Final = f'SELECT {COLUMNS} FROM steps WHERE run = ? AND seq = ?'  # noqa: S608
_ALL: Final = f"""
SELECT {COLUMNS}, state, node FROM steps LEFT JOIN bodies USING (body) WHERE run = ? ORDER BY seq
"""  # noqa: S608
RECORDS: Final = _ALL.replace('state, node', "x'', iif(kind = 'task' OR bodies.body IS NULL, node, x'')")
"""What `read_all` finds if of all but tasks it need only be known that there is a body."""


def stamp(moment: datetime | None) -> int | None:
    """Return a moment as SQLite keeps it: microseconds since 1970, UTC."""
    return None if moment is None else (moment - _EPOCH) // _MICROSECOND


def moment(stamp: int | None) -> datetime | None:
    """Return the moment that SQLite keeps as this number."""
    return None if stamp is None else _EPOCH + timedelta(microseconds=stamp)


def bound(text: str | None) -> str | bytes | None:
    """Return a text as it can be given to SQLite, to be cast to TEXT there: lone surrogates have no UTF-8."""
    if text is None or text.isascii():
        return text
    return text.encode('utf-8', 'surrogatepass')


def _record(values: Sequence[Any]) -> StepRecord:
    seq, id_, node_id, kind, status, start_ts, duration, attempt, owner, attempts = values
    _check_counts(seq, attempt)
    started = moment(start_ts)
    if attempts is not None:
        ended = load_attempts(attempts)
    elif status == 'success' and kind != 'end':
        ended, owner = (Attempt(started, duration, 'success', owner=owner),), None
    else:
        ended = ()
    return StepRecord(id_, node_id, kind, status, seq, started, duration, attempt, ended, owner)


def _check_counts(*counts: int) -> None:
    if not all(0 <= count < _MOST for count in counts):
        raise ValueError(f'{counts} where numbers from 0 on were expected')


def last_stamp(record: StepRecord) -> int:
    """Return when the latest attempt at a snapshot began or, if it has ended, when that was; 0 if never."""
    began = stamp(record.start_ts)
    return 0 if began is None else end_stamp(began, record.duration)


def end_stamp(began: int, duration: float | None) -> int:
    """Return when what began then ended, as `last_change` tells it; if it has not, when it began."""
    if duration is None:
        return began
    try:
        # `timedelta` rounds a part of a second like this
        took = round(duration * 1e6) if 0 <= duration < 1 else timedelta(0, duration) // _MICROSECOND
    except (OverflowError, ValueError):
        return began
    return began + took if _FIRST <= began + took <= _LAST else began


class SqlView:
    """What is at hand of a run: all that a commit needs, however long the run is."""

    def __init__(self, run_id: str, db: sqlite3.Connection):
        self.run_id = run_id
        self.db = db
        self.run: int | None = None
        self.version = self.last = self.updated = 0
        self.ownership = UNOWNED
        self.about = NAMELESS
        self.in_hand: dict[int, StepRecord] = {}
        self.newest: StepRecord | None = None
        self.known: dict[str, StepRecord] = {}  # by id: of those that are asked for, the newest with that id
        self._room = _KNOWN
        if (values := db.execute(_FIND_RUN, (run_id,)).fetchone()) is not None:
            self._read(*values)

    def _read(
        self,
        run: int,
        version: int,
        last: int,
        updated: int,
        fence: int,
        owner: str | None,
        expires: int | None,
        in_hand: str,
        graph: str | None,
        created: int | None,
        parent: str | None,
        parent_seq: int,
    ) -> None:
        _check_counts(version, last, fence)
        moment(updated)
        self.run, self.version, self.last, self.updated = run, version, last, updated
        self.ownership = Ownership(fence, load_owner(owner) if owner else None, moment(expires))
        self.about = About(graph, (), moment(created), (parent, parent_seq) if parent else None)
        for seq, status, started, duration, attempt, holder, attempts in json.loads(in_hand):
            if (values := self.db.execute(_STEP, (run, seq)).fetchone()) is None:
                continue
            filed = _record(values)
            self.in_hand[seq] = filed._replace(
                status=status,
                start_ts=moment(started),
                duration=duration,
                attempt=attempt,
                owner=holder,
                attempts=load_attempts(attempts) if attempts else (),
            )
        self.newest = self.tail()[0]

    def tail(self) -> list[StepRecord]:
        """Return the records from the newest back to the newest reached one, that one included."""
        records: list[StepRecord] = []
        # closed, for the traceback of an error would keep it, and so the read
        with closing(self.db.execute(_NEWEST_STEPS, (self.run,))) as found:
            for values in found:
                records.append(self.in_hand.get(values[0]) or _record(values))
                if records[-1].reached:
                    break
        return records

    def find(self, snapshot_id: str) -> StepRecord | None:
        """Return the record of the newest snapshot with this id."""
        if (record := self.known.get(snapshot_id)) is not None or self.run is None:
            return record
        try:
            values = self.db.execute(_FIND_STEP, (self.run, bound(snapshot_id))).fetchone()
            return None if values is None else self.in_hand.get(values[0]) or _record(values)
        except UNREADABLE as exc:
            raise unreadable(self.run_id, exc) from exc

    def took(self, record: StepRecord, ownership: Ownership, updated: int) -> None:
        """Know that the newest step has begun."""
        self.newest = self.known[record.id] = self.in_hand[record.seq] = record
        self.ownership, self.updated = ownership, updated
        self.version += 1

    def passed(self, ended: StepRecord, comes: StepRecord, ownership: Ownership, updated: int) -> None:
        """Know that the newest step has ended, the only one in hand, and what comes next."""
        known = self.known
        known[ended.id], known[comes.id] = ended, comes
        self.in_hand.clear()
        self.newest, self.last = comes, comes.seq
        self.ownership, self.updated = ownership, updated
        self.version += 1
        if len(known) > self._room:
            self._forget()

    def accept(self, applied: Applied) -> None:
        """Take over what a commit makes of the run."""
        known, in_hand, newest = self.known, self.in_hand, self.newest
        # when a step last began or ended, or the run did or changed hands
        updated = 0 if applied.begins is None else stamp(applied.begins.created) or 0
        for seq, record in applied.changed.items():
            known[record.id] = record
            if record.status in IN_HAND:
                in_hand[seq] = record
            else:
                in_hand.pop(seq, None)
            if newest is not None and seq == newest.seq:
                newest = record
            if record.start_ts is not None and (moved := last_stamp(record)) > updated:
                updated = moved
        for row in applied.appended:
            record = row.record
            known[record.id] = record
            if not record.is_part:
                newest = record
            if record.start_ts is not None and (moved := last_stamp(record)) > updated:
                updated = moved
        self.ownership, self.last, self.newest = applied.ownership, applied.receipt.last, newest
        if not (applied.appended and updated):  # else what ended with something appended, ended last
            updated = max(updated, self.updated)
            if (since := applied.ownership.since) is not None:
                updated = max(updated, stamp(since) or 0)
        self.updated = updated
        self.version += 1
        if len(known) > self._room:
            self._forget()

    def _forget(self) -> None:
        """Keep at hand what will be asked for."""
        # and not what a newer one with the same id hides
        kept = [r for r in (*self.in_hand.values(), self.newest) if r and self.known.get(r.id) is r]
        # tasks that are to be run will be asked for
        kept += [r for r in self.known.values() if r.is_part and r.status == 'created']
        self.known = {record.id: record for record in kept}
        self._room = max(_KNOWN, 2 * len(kept))


def view_run(run_id: str, db: sqlite3.Connection) -> SqlView:
    """Look at a run.

    Raises:
        CorruptSnapshotError: if what is stored of it cannot be read.
    """
    alone = not db.in_transaction
    if alone:
        db.execute('BEGIN')  # to see the run as it is at one moment
    try:
        return SqlView(run_id, db)
    except UNREADABLE as exc:
        raise unreadable(run_id, exc) from exc
    finally:
        if alone:
            db.execute('COMMIT')


def unreadable(run_id: str, exc: Exception) -> CorruptSnapshotError:
    """Return the error that says that what is stored of a run cannot be read."""
    return CorruptSnapshotError(
        f'run {run_id!r}', f'is stored in a way that cannot be read: {exc!r}. It is left as it is'
    )


def bodiless(run_id: str, snapshot_id: str) -> CorruptSnapshotError:
    """Return the error that says that a snapshot is stored without its body."""
    return CorruptSnapshotError(
        f'run {run_id!r}', 'has no state and node stored. It is left as it is', snapshot_id=snapshot_id
    )


def read_all(db: sqlite3.Connection, run_id: str, which: str = _ALL) -> tuple[list[Row], About]:
    """Return every row of a run, oldest first, and what else is known of it; no rows if there is none.

    Raises:
        CorruptSnapshotError: if what is stored of it cannot be read.
    """
    view = view_run(run_id, db)
    if view.run is None:
        return [], NAMELESS
    try:
        # all of it before any is decoded: the traceback of an error would keep the cursor, and so the read
        found = db.execute(which, (view.run,)).fetchall()
        tags = db.execute('SELECT tag FROM tags WHERE run = ? ORDER BY tag', (view.run,)).fetchall()
        rows = [
            Row(view.in_hand.get(values[0]) or _record(values), Body(state, node))
            for *values, state, node in found
        ]
    except UNREADABLE as exc:
        raise unreadable(run_id, exc) from exc
    for _, id_, *_, node in found:
        if node is None:
            raise bodiless(run_id, id_)
    return rows, view.about._replace(tags=tuple(tag for (tag,) in tags))
