"""The two commits of a step in a SQLite store: that it begins, and that it ended, with what comes next.

They could be made like all others, opened, computed, taken over and written, each with loops over what a
commit may hold. But nearly all commits are of these two, and made in one go they take less time. So what the
rules (`Commitment.open`, `admit` and `StepRecord.changed`) make of the plain ones is here once more: of a run
at hand, of which nothing else is in hand, and its newest snapshot, at its first attempt. What is not plain,
and what may have to be refused, is left to the rules. A test makes the same commits both ways and compares
all there is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from pydantic_core import to_json

from .claims import Commitment
from .codec import Body
from .commit import Attempt, Ownership, Receipt, Row, StatusChange, StepRecord, quick, span
from .jsonrun import dump_attempts, dump_owner, is_plain
from .sqlschema import CHANGED, END_STEP
from .sqlview import SqlView, bound, end_stamp, stamp
from .status import START, SUCCEED

__all__ = ('CHANGE_RUN', 'dump_in_hand', 'end_step', 'holder_values', 'is_new', 'step_values', 'write_step')

CHANGE_RUN: Final = """
UPDATE runs SET
    version = version + 1, status = ?, steps = ?, updated = ?, fence = ?, owner = ?, expires = ?, in_hand = ?
WHERE run = ? AND version = ?
"""

_attempt: Final = quick(Attempt)
_ownership: Final = quick(Ownership)
_step_record: Final = quick(StepRecord)


def write_step(
    db: sqlite3.Connection, view: SqlView, turn: Commitment, clock: Callable[[], datetime]
) -> Receipt | None:
    """Open a turn and write its commit, if that begins a plain step, or ends it and adds what comes next.

    Returns:
        What it did, and the view shows it; `None`, and nothing was done, if it is another commit, may have to
        be refused, or the run is not as it was looked at.
    """
    claims, commit = turn.claims, turn.commit
    if len(commit.changes) != 1:
        return None
    claims.here()
    (change,) = commit.changes
    record = view.newest
    if (
        record is None
        or view.known.get(change.snapshot_id) is not record
        or record.attempts
        or (change.seq is not None and change.seq < record.seq)
    ):
        return None
    if change.transition is START:
        return None if commit.rows else _write_start(db, view, turn, record, change.at, clock())
    plain = len(commit.rows) == 1 and not commit.unless_any and commit.unless_exists is None
    if change.transition is SUCCEED and plain:
        return _write_end(db, view, turn, record, change, commit.rows[0])
    return None


def _write_start(
    db: sqlite3.Connection,
    view: SqlView,
    turn: Commitment,
    record: StepRecord,
    at: datetime | None,
    now: datetime,
) -> Receipt | None:
    claims, held = turn.claims, view.ownership
    id_, node_id, kind, status, seq, _, _, attempt, attempts, _, path = record
    takes = claims.fence is None and held.owner is None
    if status != 'created' or view.in_hand or claims.in_hand or not (takes or claims.has(held)):
        return None
    fence = held.fence + 1 if takes else held.fence
    take, last = claims.owner, view.last
    began, attempt, expires, owner = at or now, attempt + 1, now + span(claims.lease), str(take)
    moved = stamp(began) or 0
    updated = max(moved, view.updated)
    in_hand = f'[[{seq},"running",{moved},null,{attempt},{_quoted(owner)},null]]'
    values = 'running', last, updated, fence, dump_owner(take), stamp(expires), in_hand
    if not begin_step(db, (*values, view.run, view.version)):
        return None
    running = id_, node_id, kind, 'running', seq, began, None, attempt, attempts, owner, path
    view.took(_step_record(running), _ownership((fence, take, expires, None)), updated)
    turn.in_hand, turn.gives_up = {id_}, False
    return Receipt(fence, seq, attempt, last)


def _write_end(
    db: sqlite3.Connection,
    view: SqlView,
    turn: Commitment,
    record: StepRecord,
    change: StatusChange,
    row: Row,
) -> Receipt | None:
    claims, held = turn.claims, view.ownership
    comes, last, duration = row.record, view.last + 1, change.duration
    id_, node_id, kind, status, seq, start_ts, _, attempt, _, owner, path = record
    began = stamp(start_ts)
    if status != 'running' or not began or len(view.in_hand) != 1 or claims.in_hand != {id_}:
        return None
    if not claims.has(held) or comes.kind != 'node' or not is_new(comes):
        return None
    if not claims.keeping:
        held = _ownership((held.fence, None, None, None))
    moved = end_stamp(began, duration)
    if moved <= 0 or attempt != 1 or change.error is not None or change.reason is not None:
        return None
    values = 'created', last, moved, *holder_values(held), '[]', view.run, view.version
    step = 'success', began, duration, attempt, owner, None, seq
    if not end_step(db, (*values, *step), comes, row.body):
        return None
    attempts = (_attempt((start_ts, duration, 'success', None, None, owner)),)
    ended = id_, node_id, kind, 'success', seq, start_ts, duration, attempt, attempts, None, path
    view.passed(_step_record(ended), comes.numbered(last), held, moved)
    turn.in_hand, turn.gives_up = set(), not claims.keeping
    return Receipt(held.fence, seq, attempt, last)


def holder_values(ownership: Ownership) -> tuple[int, str | None, int | None]:
    """Return who has the run, as its row holds it."""
    fence, owner, expires, _ = ownership
    return fence, None if owner is None else dump_owner(owner), None if expires is None else stamp(expires)


def is_new(record: StepRecord) -> bool:
    """Whether a snapshot was never run nor handed out."""
    return record.status == 'created' and not record.attempt


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
        if str(exc) != CHANGED:
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
