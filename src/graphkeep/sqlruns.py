"""Whole runs in a SQLite store: what is put there, and what is deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from .commit import UNOWNED, About, Ownership, Row, StepRecord
from .errors import RunOwnedError
from .jsonrun import load_owner
from .runinfo import last_change, latest_steps, newest_step, run_status
from .sqlopen import damaged
from .sqlrun import add_step, begin_run
from .sqlview import UNREADABLE, moment, stamp, unreadable, view_run

__all__ = ('delete', 'deleted', 'insert', 'remove', 'sweep', 'trim')

# What is damaged can be deleted, too: the owner need not be a text, nor the version be one that can grow.
_FIND: Final = """
SELECT run, status = 'success' AND updated < ?, CAST(owner AS BLOB), expires FROM runs WHERE id = ?
"""
_HIDE: Final = """
UPDATE runs SET id = '/' || run, version = (version & 0xFFFFFFFFFFFFFF) + 1, finished = 2 WHERE run = ?
"""


def insert(db: sqlite3.Connection, run_id: str, rows: Sequence[Row], about: About) -> bool:
    """Store a whole run that nobody has in hand; return whether there was none with this id."""
    records = [row.record for row in rows]
    newest = newest_step(records)
    moments = [about.created, *map(last_change, latest_steps(records))]
    updated = max(stamp(moment) or 0 for moment in moments)
    finishes = newest.kind == 'end'
    values = (run_status(newest, ()), finishes, rows[-1].record.seq, updated, 0, None, None, '[]')
    if (run := begin_run(db, run_id, about, values)) is None:
        return False
    for row in rows:
        add_step(db, run, row)
    return True


def delete(db: sqlite3.Connection, run_id: str, now: datetime, ended_before: datetime | None) -> int | None:
    """Make a run unknown, so that its rows may go bit by bit, see `sweep`.

    Returns:
        Its number, `None` if there is no such run.

    Raises:
        RunOwnedError: if a living owner has it in hand.
    """
    if (values := db.execute(_FIND, (stamp(ended_before), run_id)).fetchone()) is None:
        return None
    run, ended, holder, expires = values
    if ended_before is not None and not ended:
        return None
    ownership = UNOWNED
    with suppress(*UNREADABLE):  # what cannot be read may go
        ownership = Ownership(0, load_owner(holder.decode()) if holder else None, moment(expires))
    if not ownership.is_free(now):
        raise RunOwnedError(run_id, ownership.owner, ownership.expires)
    # no run id has a slash; and who still has the run at hand finds another version
    db.execute(_HIDE, (run,))
    return int(run)


def deleted(db: sqlite3.Connection) -> list[int]:
    """Return the numbers of the runs that were made unknown, and of which there still is something."""
    return [run for (run,) in db.execute("SELECT run FROM runs WHERE id > '/' AND id < '0' AND finished = 2")]


def sweep(db: sqlite3.Connection, run: int, limit: int) -> bool:
    """Delete at most so many snapshots of a deleted run; with the last of them, all there is of it.

    Returns:
        Whether there may be more to delete.
    """
    if db.execute('SELECT 1 FROM runs WHERE run = ? AND finished = 2', (run,)).fetchone() is None:
        return False  # somebody else has done it
    first, last, count = db.execute(
        'SELECT min(seq), max(seq), count(*) FROM (SELECT seq FROM steps WHERE run = ? ORDER BY seq LIMIT ?)',
        (run, limit),
    ).fetchone()
    if count:
        remove(db, run, first, last)
    if count < limit:
        db.execute('DELETE FROM tags WHERE run = ?', (run,))
        _delete(db, 'DELETE FROM runs WHERE run = ?', (run,))
    return bool(count == limit)


def trim(db: sqlite3.Connection, run_id: str, before: datetime, limit: int) -> int:
    """Delete at most so many of the oldest snapshots that ended before and that the run has gone past."""
    view = view_run(run_id, db)
    if view.run is None:
        return 0
    needed = min([view.tail()[-1].seq, *view.in_hand])
    passed = 0
    rows = db.execute(
        'SELECT seq, start_ts, duration FROM steps WHERE run = ? AND seq < ? ORDER BY seq LIMIT ?',
        (view.run, needed, limit),
    ).fetchall()
    for seq, start_ts, duration in rows:
        try:
            ended = last_change(StepRecord('', '', start_ts=moment(start_ts), duration=duration))
        except UNREADABLE as exc:
            raise unreadable(run_id, exc) from exc
        if ended is not None and ended >= before:
            break
        remove(db, view.run, seq, seq)
        passed += 1
    if passed:  # whoever has the run at hand looks again
        db.execute('UPDATE runs SET version = version + 1 WHERE run = ?', (view.run,))
    return passed


def remove(db: sqlite3.Connection, run: int, first: int, last: int) -> None:
    """Delete the snapshots from one number to another, of which at least one was found."""
    which = run, first, last
    db.execute(
        'DELETE FROM bodies WHERE body IN (SELECT body FROM steps WHERE run = ? AND seq BETWEEN ? AND ?)',
        which,
    )
    _delete(db, 'DELETE FROM steps WHERE run = ? AND seq BETWEEN ? AND ?', which)


def _delete(db: sqlite3.Connection, statement: str, which: tuple[int, ...]) -> None:
    """Delete what was found; in a damaged file it may still be there, and would be found for ever."""
    if not db.execute(statement, which).rowcount:
        raise damaged('what was found there cannot be deleted')
