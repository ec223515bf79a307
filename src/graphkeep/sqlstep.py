"""The two commits of a step in a SQLite store: that it begins, and that it ended, with what comes next.

They could be made like all others, computed, taken over and written, each with loops over what a commit may
hold. But nearly all commits are of these two, and made in one go they take less time. The rules are not
here: they are `admit` and `StepRecord.changed`, and what those refuse is left to be refused where all is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from pydantic_core import to_json

from .codec import Body
from .commit import Commit, Ownership, Receipt, Row, StepRecord, admit
from .errors import GraphkeepError
from .jsonrun import dump_attempts, dump_owner, is_plain
from .sqlschema import END_STEP
from .sqlview import SqlView, bound, end_stamp, stamp
from .status import START, SUCCEED

__all__ = ('CHANGE_RUN', 'dump_in_hand', 'end_step', 'holder_values', 'is_new', 'step_values', 'write_step')

CHANGE_RUN: Final = """
UPDATE runs SET
    version = version + 1, status = ?, steps = ?, updated = ?, fence = ?, owner = ?, expires = ?, in_hand = ?
WHERE run = ? AND version = ?
"""


def write_step(db: sqlite3.Connection, view: SqlView, commit: Commit, now: datetime) -> Receipt | None:
    """Write a commit that begins a step, or ends it and adds what comes next.

    Returns:
        What it did, and the view shows it; `None`, and nothing was done, if it is another commit, is refused,
        or the run is not as it was looked at.
    """
    if len(commit.changes) != 1 or commit.unless_any or commit.unless_exists is not None:
        return None
    (change,) = commit.changes
    transition, rows = change.transition, commit.rows
    if not (transition is START and not rows) and not (transition is SUCCEED and len(rows) == 1):
        return None
    try:
        record = view.find(change.snapshot_id)
        if (
            record is None
            or record is not view.newest
            or (change.seq is not None and change.seq < record.seq)
        ):
            return None
        ownership = admit(view.run_id, view.ownership, commit, now)
        record = record.changed(view.run_id, change, commit.writer.take or ownership.owner, now)
    except GraphkeepError:
        return None
    write = _write_start if transition is START else _write_end
    return write(db, view, record, ownership, rows)


def _write_start(
    db: sqlite3.Connection, view: SqlView, record: StepRecord, ownership: Ownership, _: Sequence[Row]
) -> Receipt | None:
    if view.in_hand:
        return None
    began = stamp(record.start_ts) or 0
    updated = max(began, view.updated)
    in_hand = _begun(record, began)
    values = 'running', view.last, updated, *holder_values(ownership), in_hand, view.run, view.version
    if not begin_step(db, values):
        return None
    view.took(record, ownership, began, updated)
    return Receipt(ownership.fence, record.seq, record.attempt, view.last)


def _write_end(
    db: sqlite3.Connection, view: SqlView, record: StepRecord, ownership: Ownership, rows: Sequence[Row]
) -> Receipt | None:
    (row,) = rows
    began, comes = view.began or stamp(record.start_ts), row.record.numbered(view.last + 1)
    if not began or len(view.in_hand) != 1 or comes.kind != 'node' or not is_new(comes):
        return None
    moved = end_stamp(began, record.duration)
    values = 'created', comes.seq, moved, *holder_values(ownership), '[]', view.run, view.version
    if not end_step(db, (*values, *step_values(record, began), record.seq), comes, row.body):
        return None
    view.passed(record, comes, ownership, moved)
    return Receipt(ownership.fence, record.seq, record.attempt, comes.seq)


def holder_values(ownership: Ownership) -> tuple[int, str | None, int | None]:
    """Return who has the run, as its row holds it."""
    fence, owner, expires, _ = ownership
    return fence, None if owner is None else dump_owner(owner), None if expires is None else stamp(expires)


def is_new(record: StepRecord) -> bool:
    """Whether a snapshot was never run nor handed out."""
    return record.status == 'created' and not record.attempt


def _begun(record: StepRecord, started: int) -> str:
    """Return what `dump_in_hand` does, of one node that has just begun."""
    attempts = to_json(dump_attempts(record.attempts)).decode() if record.attempts else 'null'
    owner = _quoted(record.owner)
    return f'[[{record.seq},"running",{started},null,{record.attempt},{owner},{attempts}]]'


@lru_cache(maxsize=1024)
def _quoted(text: str | None) -> str:
    return to_json(text).decode()


def begin_step(db: sqlite3.Connection, values: tuple[Any, ...]) -> bool:
    """Write what begins a step, unless the run is not as it was looked at."""
    return db.execute(CHANGE_RUN, values).rowcount != 0


def end_step(db: sqlite3.Connection, values: tuple[Any, ...], comes: StepRecord, body: Body) -> bool:
    """Write what ends a step, in one statement, unless the run is not as it was looked at."""
    try:
        db.execute(END_STEP, (*values, bound(comes.id), bound(comes.node_id), comes.kind, *body))
    except sqlite3.IntegrityError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_TRIGGER:
            raise
        return False
    return True


def step_values(record: StepRecord, began: int | None) -> tuple[Any, ...]:
    """Return the columns of a snapshot that change, in the order in which they are written."""
    _, _, _, status, _, _, duration, attempt, attempts, owner, _ = record
    if is_plain(record):
        return status, began, duration, attempt, attempts[-1].owner, None
    return status, began, duration, attempt, owner, dump_attempts(attempts) if attempts else None


def dump_in_hand(records: Iterable[StepRecord]) -> str:
    """Return the JSON of what somebody has in hand, in the row of the run."""
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
