"""One run in a SQLite store: what is read of it, and what a commit writes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from pydantic_core import to_json

from .backend import Applied, RunBackend, Turn, apply
from .codec import Body
from .commit import NAMELESS, UNOWNED, About, Attempt, Commit, Ownership, Receipt, Row, StepRecord, Tail
from .errors import CorruptSnapshotError, GraphkeepError, RunOwnedError
from .jsonrun import dump_attempts, dump_owner, is_plain, load_attempts, load_owner
from .runinfo import last_change, run_status
from .sqldb import Database

__all__ = ('SqlRun', 'bound', 'delete', 'insert', 'moment', 'read_all', 'stamp', 'trim')

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_IN_HAND: Final = ('pending', 'running')
_KNOWN: Final = 16  # records of a run that are kept at hand; others are looked up

# ---------------------------------------------------------------------------------------------- statements

_FIND_RUN: Final = """
SELECT
    run, version, steps, updated, fence, owner, expires, in_hand, graph, created, parent, parent_seq
FROM runs WHERE id = ?
"""
_BEGIN_RUN: Final = """
INSERT OR IGNORE INTO runs
    (id, graph, created, parent, parent_seq, status, finished, steps, updated, fence, owner, expires, in_hand)
VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGE_RUN: Final = """
UPDATE runs SET
    version = version + 1, status = ?, steps = ?, updated = ?, fence = ?, owner = ?, expires = ?, in_hand = ?
WHERE run = ? AND version = ?
"""
_FINISH_RUN: Final = 'UPDATE runs SET finished = 1 WHERE run = ?'
_ADD_TAG: Final = 'INSERT INTO tags (run, tag) VALUES (?, ?)'

_COLUMNS: Final = 'seq, id, node_id, kind, status, start_ts, duration, attempt, owner, attempts'
_ADD_BODY: Final = 'INSERT INTO bodies (state, node) VALUES (?, ?)'
_ADD_STEP: Final = f"""
INSERT INTO steps (run, {_COLUMNS}, body)
VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608 -- of constants
_CHANGE_STEP: Final = """
UPDATE steps SET status = ?, start_ts = ?, duration = ?, attempt = ?, owner = ?, attempts = ?
WHERE run = ? AND seq = ?
"""
# From the newest on: it is nearly always the one that is meant.
_FIND_STEP: Final = (
    f'SELECT {_COLUMNS} FROM steps WHERE run = ? AND id = CAST(? AS TEXT) ORDER BY seq DESC LIMIT 1'  # noqa: S608
)
_NEWEST_STEPS: Final = f'SELECT {_COLUMNS} FROM steps WHERE run = ? ORDER BY seq DESC'  # noqa: S608
_STEP: Final = f'SELECT {_COLUMNS} FROM steps WHERE run = ? AND seq = ?'  # noqa: S608
_ALL: Final = f"""
SELECT {_COLUMNS}, state, node FROM steps JOIN bodies USING (body) WHERE run = ? ORDER BY seq
"""  # noqa: S608
_BODY: Final = """
SELECT state, node FROM steps JOIN bodies USING (body) WHERE run = ? AND seq = ?
"""

# ------------------------------------------------------------------------------------------------- values


def stamp(moment: datetime | None) -> int | None:
    """Return a moment as SQLite keeps it: microseconds since 1970, UTC."""
    return None if moment is None else round(moment.timestamp() * 1_000_000)


def moment(stamp: int | None) -> datetime | None:
    """Return the moment that SQLite keeps as this number."""
    return None if stamp is None else _EPOCH + timedelta(microseconds=stamp)


def bound(text: str | None) -> str | bytes | None:
    """Return a text as it can be given to SQLite, to be cast to TEXT there: lone surrogates have no UTF-8."""
    if text is None or text.isascii():
        return text
    return text.encode('utf-8', 'surrogatepass')


def _step_values(record: StepRecord) -> tuple[Any, ...]:
    """Return the columns of a snapshot that change, in the order of `_CHANGE_STEP`."""
    plain = is_plain(record)
    return (
        record.status,
        stamp(record.start_ts),
        record.duration,
        record.attempt,
        record.attempts[-1].owner if plain else record.owner,
        None if plain or not record.attempts else dump_attempts(record.attempts),
    )


def _record(values: Sequence[Any]) -> StepRecord:
    seq, id_, node_id, kind, status, start_ts, duration, attempt, owner, attempts = values
    started = moment(start_ts)
    if attempts is not None:
        ended = load_attempts(attempts)
    elif status == 'success' and kind == 'node':
        ended, owner = (Attempt(started, duration, 'success', owner=owner),), None
    else:
        ended = ()
    return StepRecord(id_, node_id, kind, status, seq, started, duration, attempt, ended, owner)


def _dump_in_hand(records: Iterable[StepRecord]) -> str:
    return to_json(
        [
            (
                record.seq,
                record.status,
                stamp(record.start_ts),
                record.duration,
                record.attempt,
                record.owner,
                dump_attempts(record.attempts) if record.attempts else None,
            )
            for record in records
        ]
    ).decode()


def _last_change(record: StepRecord) -> int:
    """Return when the latest attempt at a snapshot began or, if it ended, when that was."""
    return cast(int, stamp(record.start_ts if record.duration is None else last_change(record)))


class _View:
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
        self._known: dict[str, StepRecord] = {}  # by id: of those that are asked for, the newest with that id
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
        self.run, self.version, self.last, self.updated = run, version, last, updated
        self.ownership = Ownership(fence, load_owner(owner) if owner else None, moment(expires))
        self.about = About(graph, (), moment(created), (parent, parent_seq) if parent else None)
        for seq, status, started, duration, attempt, holder, attempts in json.loads(in_hand):
            filed = _record(self.db.execute(_STEP, (run, seq)).fetchone())
            self.in_hand[seq] = filed._replace(
                status=status,
                start_ts=moment(started),
                duration=duration,
                attempt=attempt,
                owner=holder,
                attempts=load_attempts(attempts) if attempts else (),
            )
        self._known = {record.id: record for record in self.in_hand.values()}
        self.newest = self.tail()[0]

    def tail(self) -> list[StepRecord]:
        """Return the records from the newest back to the newest reached one, that one included."""
        records: list[StepRecord] = []
        for values in self.db.execute(_NEWEST_STEPS, (self.run,)):
            records.append(self.in_hand.get(values[0]) or _record(values))
            if records[-1].reached:
                break
        return records

    def find(self, snapshot_id: str) -> StepRecord | None:
        """Return the record of the newest snapshot with this id."""
        if (record := self._known.get(snapshot_id)) is not None or self.run is None:
            return record
        values = self.db.execute(_FIND_STEP, (self.run, bound(snapshot_id))).fetchone()
        return None if values is None else self.in_hand.get(values[0]) or _record(values)

    def in_hand_after(self, applied: Applied) -> dict[int, StepRecord]:
        """Return what is in hand after a commit."""
        in_hand = self.in_hand.copy()
        for seq, record in applied.changed.items():
            if record.status in _IN_HAND:
                in_hand[seq] = record
            else:
                in_hand.pop(seq, None)
        return in_hand

    def updated_after(self, applied: Applied) -> int:
        """Return when a step last began or ended after a commit, or the run did."""
        stamps = [_last_change(record) for record in applied.changed.values() if record.start_ts]
        stamps += [_last_change(row.record) for row in applied.appended if row.record.start_ts]
        if applied.begins is not None:
            stamps.append(stamp(applied.begins.created) or 0)
        if not (applied.appended and stamps):  # else what ended, ended last
            stamps.append(self.updated)
        return max(stamps)

    def advance(self, run: int, applied: Applied, in_hand: dict[int, StepRecord], updated: int) -> None:
        """Take over what was committed."""
        self.run, self.updated = run, updated
        self.version += 1
        self.ownership, self.in_hand = applied.ownership, in_hand
        known, newest = self._known, self.newest
        for seq, record in applied.changed.items():
            known[record.id] = record
            if newest is not None and seq == newest.seq:
                newest = record
        if applied.appended:
            for row in applied.appended:
                newest = row.record
                known[newest.id] = newest
            self.last = row.record.seq
        self.newest = newest
        if len(known) > _KNOWN:
            kept = [*in_hand.values(), *([newest] if newest else ())]
            self._known = {record.id: record for record in kept}


# ------------------------------------------------------------------------------------------------ the run


class SqlRun(RunBackend):
    """One run of a SQLite store."""

    queues = True

    def __init__(self, database: Database, run_id: str, clock: Callable[[], datetime]):
        self.run_id = run_id
        self.clock = clock
        self._database = database
        self._view: _View | None = None

    @property
    def prompt(self) -> bool:  # type: ignore[override]
        """Whether the file is open; what would have to wait is refused all the same, and then queued."""
        return self._database.ready

    def write(self, turn: Turn) -> Receipt | Future[Receipt]:
        """Make one commit here and now, unless there is a lock or a checkpoint to wait for."""
        return self._database.write_now(_Staged(self, turn), settles=_settles)

    def queue(self, turn: Turn) -> Future[Receipt]:
        """Have one commit made by a thread, together with others that wait."""
        return self._database.queue(_Staged(self, turn))

    def commit(self, commit: Commit) -> Receipt:
        """Apply the commit whole, or raise and change nothing."""
        staged = _Staged(self, None)
        try:
            receipt = self._database.write(lambda db: staged.run(db, commit))
        except BaseException:
            staged.reject()
            raise
        staged.accept()
        return receipt

    def tail(self) -> Tail:
        """Return the end of the run, at a cost that does not depend on its length."""
        with self._database.reading() as db:
            view = _viewed(self.run_id, db)
            if view.run is None:
                return Tail(())

            def row(record: StepRecord) -> Row:
                return Row(record, Body(*db.execute(_BODY, (view.run, record.seq)).fetchone()))

            tail = [row(record) for record in view.tail()]
            open_ = [row(view.in_hand[seq]) for seq in sorted(view.in_hand)]
            return Tail(tail, open_, view.ownership)

    def rows(self) -> list[Row]:
        """Return every row, oldest first."""
        with self._database.reading() as db:
            return read_all(db, self.run_id)[0]


def _viewed(run_id: str, db: sqlite3.Connection) -> _View:
    """Look at a run.

    Raises:
        CorruptSnapshotError: if what is stored of it cannot be read.
    """
    alone = not db.in_transaction
    if alone:
        db.execute('BEGIN')  # to see the run as it is at one moment
    try:
        return _View(run_id, db)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as exc:
        raise CorruptSnapshotError(
            f'run {run_id!r}', f'is stored in a way that cannot be read: {exc!r}. It is left as it is'
        ) from exc
    finally:
        if alone:
            db.execute('COMMIT')


def _settles(commit: Commit) -> bool:
    """Whether a commit is one that a loss of power must not undo: it stores something, or ends something."""
    return bool(commit.rows) or any(change.transition.target not in _IN_HAND for change in commit.changes)


class _Staged:
    """One commit of a run on its way into a transaction."""

    __slots__ = ('_made', '_run', 'turn')

    def __init__(self, run: SqlRun, turn: Turn | None):
        self.turn = cast(Turn, turn)
        self._run = run
        self._made: tuple[_View, int, Applied, dict[int, StepRecord], int] | None = None

    def run(self, db: sqlite3.Connection, commit: Commit) -> Receipt:
        """Write what the commit makes of its run, or refuse it before anything is written.

        What is at hand of the run is used as it is, and looked at again if somebody else has written: the
        first statement finds that out, and then writes nothing.
        """
        run, view = self._run, self._run._view
        now = run.clock()
        while True:
            if fresh := view is None:
                view = _viewed(run.run_id, db)
            view.db = db
            try:
                applied = apply(view, commit, now)
            except GraphkeepError:
                if fresh:
                    raise
            else:
                if applied.changed or applied.appended or applied.ownership != view.ownership:
                    if self._write(db, view, applied):
                        return applied.receipt
                elif fresh:
                    run._view = view
                    return applied.receipt
            view = None  # somebody else has written, or may have

    def accept(self) -> None:
        """Learn that the transaction was made."""
        if self._made is not None:
            view, *made = self._made
            view.advance(*made)
            self._run._view = view

    def reject(self) -> None:
        """Learn that this is not part of a transaction."""
        self._made = None  # what is at hand of the run was not touched

    def _write(self, db: sqlite3.Connection, view: _View, applied: Applied) -> bool:
        """Write it, unless somebody else has written since the run was looked at."""
        in_hand, updated = view.in_hand_after(applied), view.updated_after(applied)
        if (run := _write_run(db, view, applied, in_hand, updated)) is None:
            return False
        for seq, record in applied.changed.items():
            if record.status not in _IN_HAND:
                db.execute(_CHANGE_STEP, (*_step_values(record), run, seq))
        for row in applied.appended:
            _add_step(db, run, row)
        self._made = view, run, applied, in_hand, updated
        return True


def _write_run(
    db: sqlite3.Connection, view: _View, applied: Applied, in_hand: dict[int, StepRecord], updated: int
) -> int | None:
    """Write the row of the run; return its number, or `None` if it is not as it was looked at."""
    newest = applied.appended[-1].record if applied.appended else cast(StepRecord, view.newest)
    newest = applied.changed.get(newest.seq, newest)
    ownership = applied.ownership
    values = (
        run_status(newest, in_hand.values()),
        newest.seq,
        updated,
        ownership.fence,
        dump_owner(ownership.owner) if ownership.owner else None,
        stamp(ownership.expires),
        _dump_in_hand(in_hand.values()) if in_hand else '[]',
    )
    finishes = newest.kind == 'end'
    if view.run is not None:
        if not db.execute(_CHANGE_RUN, (*values, view.run, view.version)).rowcount:
            return None
        if finishes:
            db.execute(_FINISH_RUN, (view.run,))
        return view.run
    about = applied.begins or NAMELESS
    return _begin_run(db, view.run_id, about, (values[0], finishes, *values[1:]))


def _begin_run(db: sqlite3.Connection, run_id: str, about: About, values: tuple[Any, ...]) -> int | None:
    parent, parent_seq = about.parent or (None, None)
    cursor = db.execute(
        _BEGIN_RUN, (run_id, bound(about.graph), stamp(about.created), parent, parent_seq, *values)
    )
    if not cursor.rowcount:
        return None
    run = cast(int, cursor.lastrowid)
    db.executemany(_ADD_TAG, [(run, tag) for tag in about.tags])
    return run


def _add_step(db: sqlite3.Connection, run: int, row: Row) -> None:
    record, body = row.record, row.body
    at = db.execute(_ADD_BODY, (body.state, body.node)).lastrowid
    db.execute(
        _ADD_STEP,
        (run, record.seq, bound(record.id), bound(record.node_id), record.kind, *_step_values(record), at),
    )


# -------------------------------------------------------------------------------------------- whole runs


def read_all(db: sqlite3.Connection, run_id: str) -> tuple[list[Row], About]:
    """Return every row of a run, oldest first, and what else is known of it; no rows if there is none."""
    view = _viewed(run_id, db)
    if view.run is None:
        return [], NAMELESS
    try:
        rows = [
            Row(view.in_hand.get(values[0]) or _record(values), Body(state, node))
            for *values, state, node in db.execute(_ALL, (view.run,))
        ]
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as exc:
        raise CorruptSnapshotError(
            f'run {run_id!r}', f'is stored in a way that cannot be read: {exc!r}. It is left as it is'
        ) from exc
    tags = db.execute('SELECT tag FROM tags WHERE run = ? ORDER BY tag', (view.run,))
    return rows, view.about._replace(tags=tuple(tag for (tag,) in tags))


def insert(db: sqlite3.Connection, run_id: str, rows: Sequence[Row], about: About) -> bool:
    """Store a whole run that nobody has in hand; return whether there was none with this id."""
    newest = rows[-1].record
    moments = [about.created, *(last_change(row.record) for row in rows[-2:])]
    updated = max(stamp(moment) or 0 for moment in moments)
    finishes = newest.kind == 'end'
    values = (run_status(newest, ()), finishes, newest.seq, updated, 0, None, None, '[]')
    if (run := _begin_run(db, run_id, about, values)) is None:
        return False
    for row in rows:
        _add_step(db, run, row)
    return True


def delete(db: sqlite3.Connection, run_id: str, now: datetime, ended_before: datetime | None) -> bool:
    """Make a run unknown, so that its rows may go bit by bit; return whether there was one.

    Raises:
        RunOwnedError: if a living owner has it in hand.
    """
    found = db.execute('SELECT run, status, updated, owner, expires FROM runs WHERE id = ?', (run_id,))
    if (values := found.fetchone()) is None:
        return False
    run, status, updated, holder, expires = values
    if ended_before is not None and not (status == 'success' and updated < cast(int, stamp(ended_before))):
        return False
    with suppress(
        AttributeError, KeyError, OverflowError, TypeError, ValueError
    ):  # what cannot be read may go
        owner = load_owner(holder) if holder else None
        if not Ownership(0, owner, moment(expires)).is_free(now):
            raise RunOwnedError(run_id, owner, moment(expires))
    # no run id has a slash; and who still has the run at hand finds another version
    db.execute("UPDATE runs SET id = '/' || run, version = version + 1, finished = 2 WHERE run = ?", (run,))
    return True


def trim(db: sqlite3.Connection, run_id: str, before: datetime, limit: int) -> int:
    """Delete at most so many of the oldest snapshots that ended before and that the run has gone past."""
    view = _viewed(run_id, db)
    if view.run is None:
        return 0
    needed = min([view.tail()[-1].seq, *view.in_hand])
    passed = 0
    rows = db.execute(
        'SELECT seq, start_ts, duration FROM steps WHERE run = ? AND seq < ? ORDER BY seq LIMIT ?',
        (view.run, needed, limit),
    ).fetchall()
    for seq, start_ts, duration in rows:
        if start_ts is not None and start_ts + round((duration or 0) * 1_000_000) >= cast(int, stamp(before)):
            break
        remove(db, view.run, seq)
        passed += 1
    return passed


def remove(db: sqlite3.Connection, run: int, seq: int) -> None:
    """Delete one snapshot."""
    db.execute(
        'DELETE FROM bodies WHERE body = (SELECT body FROM steps WHERE run = ? AND seq = ?)', (run, seq)
    )
    db.execute('DELETE FROM steps WHERE run = ? AND seq = ?', (run, seq))
