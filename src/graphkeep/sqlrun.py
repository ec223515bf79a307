"""One run in a SQLite store: what a commit writes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import Any, Final, cast

from .backend import Applied, RunBackend, Turn, apply
from .claims import Commitment
from .codec import Body
from .commit import NAMELESS, About, Commit, Receipt, Row, StepRecord, Tail
from .errors import GraphkeepError
from .promise import Promise
from .runinfo import run_status
from .sqldb import Database
from .sqlopen import damaged
from .sqlstep import CHANGE_RUN, dump_in_hand, end_step, holder_values, is_new, step_values, write_step
from .sqlview import COLUMNS, IN_HAND, RECORDS, SqlView, bodiless, bound, read_all, stamp, view_run
from .turns import Turns

__all__ = ('SqlRun', 'add_step', 'begin_run')

_BEGIN_RUN: Final = """
INSERT OR IGNORE INTO runs
    (id, graph, created, parent, parent_seq, status, finished, steps, updated, fence, owner, expires, in_hand)
VALUES (?, CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_FINISH_RUN: Final = 'UPDATE runs SET finished = ? WHERE run = ?'
_ADD_TAG: Final = 'INSERT INTO tags (run, tag) VALUES (?, ?)'
_ADD_BODY: Final = 'INSERT INTO bodies (state, node) VALUES (?, ?)'
_ADD_STEP: Final = f"""
INSERT INTO steps (run, {COLUMNS}, body)
VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608 -- of constants
_CHANGE_STEP: Final = """
UPDATE steps SET status = ?, start_ts = ?, duration = ?, attempt = ?, owner = ?, attempts = ?
WHERE run = ? AND seq = ?
"""
_BODY: Final = """
SELECT state, node FROM steps JOIN bodies USING (body) WHERE run = ? AND seq = ?
"""


class SqlRun(RunBackend):
    """One run of a SQLite store."""

    prompt = True  # what would have to wait is refused, and then queued
    queues = True

    def __init__(self, database: Database, run_id: str, clock: Callable[[], datetime]):
        self.run_id = run_id
        self.clock = clock
        self._database = database
        self._view: SqlView | None = None  # what is at hand of it
        self._staged: SqlView | None = None  # what will be, once the transaction is made

    def write(self, turn: Turn) -> Receipt | Promise[Receipt]:
        """Make one commit here and now, unless there is a lock or a checkpoint to wait for."""
        return self._database.write_now(self, turn)

    def gathers(self, turns: Turns) -> bool:
        """Whether many wait for their turns, and to wait costs less than what is spared by it."""
        # on trio it costs more; but where the disk is waited for many do so in any case
        return turns.crowded and (not turns.on_trio or self._database.durable)

    def gather(self, turn: Turn, turns: Turns) -> Promise[Receipt]:
        """Have one commit made at the end of this round, in one transaction with others."""
        return self._database.gather(self, turn, turns)

    def queue(self, turn: Turn) -> Promise[Receipt]:
        """Have one commit made by a thread, together with others that wait."""
        return self._database.queue(self, turn)

    def commit(self, commit: Commit) -> Receipt:
        """Apply the commit whole, or raise and change nothing."""
        return self._database.write(lambda db: self.stage(db, commit), made=self.accept)

    # -------------------------------------------- one commit of it, within a transaction

    def make(self, db: sqlite3.Connection, turn: Turn) -> Receipt:
        """Open a turn, and write what its commit makes of the run, or refuse it; see `stage`."""
        view, self._view = self._view, None
        if view is not None and isinstance(turn, Commitment):
            receipt = write_step(db, view, turn, self.clock)
            if receipt is not None:
                self._staged = view
                return receipt
        self._view = view
        return self.stage(db, turn.open())

    def stage(self, db: sqlite3.Connection, commit: Commit) -> Receipt:
        """Write what the commit makes of its run, or refuse it before anything is written.

        What is at hand of the run is used as it is, and looked at again if somebody else has written: the
        first statement finds that out, and then writes nothing. Until the transaction is made nothing is at
        hand.
        """
        now = self.clock()
        view, self._view, certain = self._view, None, False
        if view is not None:
            view.db = db
        while True:
            if fresh := view is None:
                certain = db.in_transaction
                view = view_run(self.run_id, db)
            try:
                applied = apply(view, commit, now)
            except GraphkeepError:
                if fresh:
                    raise
            else:
                if applied.changed or applied.appended or applied.ownership != view.ownership:
                    version = view.version
                    view.accept(applied)
                    if _write(db, view, applied, version):
                        self._staged = view
                        return applied.receipt
                elif fresh:
                    self._staged = view
                    return applied.receipt
            if fresh and certain:  # with the lock in hand
                raise damaged(f'the row of run {self.run_id!r} cannot be written')
            view = None  # somebody else has written, or may have
            if not db.in_transaction:
                db.execute('BEGIN IMMEDIATE')

    def accept(self) -> None:
        """Learn that the transaction was made."""
        self._view, self._staged = self._staged, None

    @staticmethod
    def settles(commit: Commit) -> bool:
        """Whether a loss of power must not undo a commit: it stores something, or ends something."""
        return bool(commit.rows) or not all(c.transition.target in IN_HAND for c in commit.changes)

    # --------------------------------------------------------- what is stored of it

    def tail(self) -> Tail:
        """Return the end of the run, at a cost that does not depend on its length."""
        return self._tail(threading.current_thread())

    @property
    def tail_is_prompt(self) -> bool:
        """Whether this thread has a connection to read with; to open one may take a while."""
        return self._database.readers.ready(threading.current_thread())

    def tail_elsewhere(self) -> Callable[[], Tail]:
        """Return what reads the tail in another thread, and opens this thread's connection by it."""
        return partial(self._tail, threading.current_thread())

    def _tail(self, thread: threading.Thread) -> Tail:
        with self._database.readers.reading(thread) as db:
            view = view_run(self.run_id, db)
            if view.run is None:
                return Tail(())

            def row(record: StepRecord) -> Row:
                if (body := db.execute(_BODY, (view.run, record.seq)).fetchone()) is None:
                    raise bodiless(self.run_id, record.id)
                return Row(record, Body(*body))

            tail = [row(record) for record in view.tail()]
            open_ = [row(view.in_hand[seq]) for seq in sorted(view.in_hand)]
            return Tail(tail, open_, view.ownership, view.last)

    def rows(self) -> list[Row]:
        """Return every row, oldest first."""
        with self._database.readers.reading() as db:
            return read_all(db, self.run_id)[0]

    def records(self) -> list[Row]:
        """Return every row, oldest first; only those of tasks with their bodies, which may be large."""
        with self._database.readers.reading() as db:
            return read_all(db, self.run_id, RECORDS)[0]


def _write(db: sqlite3.Connection, view: SqlView, applied: Applied, version: int) -> bool:
    """Write what has become of a run, unless somebody else has written since it was looked at."""
    if view.run is not None and len(applied.changed) == len(applied.appended) == 1:
        (ended,) = applied.changed.values()
        (row,) = applied.appended
        if is_new(row.record) and ended.status not in IN_HAND:
            step = *step_values(ended, stamp(ended.start_ts)), ended.seq
            return end_step(db, (*_run_values(view), view.run, version, *step), row.record, row.body)
    return _write_all(db, view, applied, version)


def _write_all(db: sqlite3.Connection, view: SqlView, applied: Applied, version: int) -> bool:
    """Write any commit, unless the run is not as it was looked at."""
    appended = applied.appended
    # what somebody has in hand is in the row of the run
    settled = [record for record in applied.changed.values() if record.status not in IN_HAND]
    if (settled or appended) and not db.in_transaction:
        db.execute('BEGIN IMMEDIATE')
    kinds = [row.record.kind for row in appended if not row.record.is_part]
    finishes = kinds[-1:] == ['end']
    if view.run is None:
        status, *values = _run_values(view)
        view.run = begin_run(db, view.run_id, applied.begins or NAMELESS, (status, finishes, *values))
        if view.run is None:
            return False
    elif not db.execute(CHANGE_RUN, (*_run_values(view), view.run, version)).rowcount:
        return False
    elif kinds:  # one that has ended may be begun again
        db.execute(_FINISH_RUN, (finishes, view.run))
    for record in settled:
        db.execute(_CHANGE_STEP, (*step_values(record, stamp(record.start_ts)), view.run, record.seq))
    for row in appended:
        add_step(db, view.run, row)
    return True


def _run_values(view: SqlView) -> tuple[Any, ...]:
    """Return the columns of the row of the run that change, in the order of `CHANGE_RUN`."""
    in_hand = view.in_hand.values()
    return (
        run_status(cast(StepRecord, view.newest), in_hand),
        view.last,
        view.updated,
        *holder_values(view.ownership),
        dump_in_hand(in_hand) if in_hand else '[]',
    )


def begin_run(db: sqlite3.Connection, run_id: str, about: About, values: tuple[Any, ...]) -> int | None:
    """Write the first row of a run; return its number, or `None` if there is one with this id."""
    parent, parent_seq = about.parent or (None, None)
    began = run_id, bound(about.graph), stamp(about.created), parent, parent_seq, *values
    with closing(db.execute(_BEGIN_RUN, began)) as cursor:
        if not cursor.rowcount:
            return None
        run = cast(int, cursor.lastrowid)
    db.executemany(_ADD_TAG, [(run, tag) for tag in about.tags])
    return run


def add_step(db: sqlite3.Connection, run: int, row: Row) -> None:
    """Write the rows of a new snapshot."""
    record, body = row.record, row.body
    at = db.execute(_ADD_BODY, (body.state, body.node)).lastrowid
    values = step_values(record, stamp(record.start_ts))
    db.execute(
        _ADD_STEP, (run, record.seq, bound(record.id), bound(record.node_id), record.kind, *values, at)
    )
