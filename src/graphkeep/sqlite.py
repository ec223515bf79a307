"""Runs in one SQLite file: what to take for anything real on one machine."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

from .backend import LockBusy
from .commit import About, Ownership, Row
from .errors import CorruptSnapshotError, GraphkeepError, InvalidRunIdError, LockTimeoutError, StorageError
from .jsonrun import load_attempts, load_owner
from .names import check_path, check_run_id
from .offload import outcome
from .runinfo import (
    RunInfo,
    RunQuery,
    check_clock,
    check_statuses,
    damaged,
    is_count,
    is_number,
    is_resumable,
)
from .snapshots import now_utc
from .sqldb import Database
from .sqlrun import SqlRun
from .sqlruns import delete, deleted, insert, sweep, trim
from .sqlview import UNREADABLE, bound, moment, read_all, stamp, unreadable
from .store import Store
from .stored import LEASE, LOCK_TIMEOUT, Durability, StoredStatePersistence, check_durability

__all__ = ('SqliteStore',)

_CHUNK: Final = 500  # snapshots deleted in one transaction, so that nobody else waits for long


class SqliteStore(Store):
    """Keeps many runs in one SQLite file; any number of processes, threads and event loops may use it.

    - *Atomic and isolated*: every write is one transaction, and whoever reads sees the store as it is at one
      moment.
    - *Without blocking*: a commit is made on the event loop's own thread only if there is nothing to wait
      for: no lock, no disk, no checkpoint; of many runs that go on side by side, in one transaction for all
      that commit in one round of the loop. Otherwise a thread makes it, together with others that wait. The
      one exception is the first commit after *another* process has written the log back: SQLite itself has
      the disk take the beginning of the new one. A commit that was begun is finished whatever is cancelled,
      and it is known afterwards that it was.
    - *Readable*: the tables are described in the documentation, and may be read with any SQLite client.

    The file has mode 0600 and a write-ahead log beside it (`-wal` and `-shm`), so it has to be on a
    local disk.
    Nothing has to be closed for what was committed to be there, but see `aclose`.
    """

    path: Path
    """The file; made when it is first used."""

    def __init__(
        self,
        path: Path | str,
        *,
        durability: Durability = 'normal',
        lease: float = LEASE,
        busy_timeout: float = LOCK_TIMEOUT,
        verify: bool = True,
        clock: Callable[[], datetime] = now_utc,
    ):
        """Make the store in this file; nothing is read or written yet.

        Args:
            path: The file; it need not exist.
            durability: What a commit survives: the death of the process (`'normal'`), or also a loss of power
                (`'full'`), where what is stored and the end of each step waits for the disk. After a loss of
                power a store with `'normal'` is as it was some moments before.
            lease: How long a run stays its owner's without a renewal, in seconds.
            busy_timeout: How long a call waits while somebody else is writing, in seconds; then
                `LockTimeoutError`.
            verify: Whether to check before each write that the snapshot would be loaded as it was given.
            clock: What leases are measured with (UTC); the same for all that use the file.

        Raises:
            ValueError: if an option is not of that kind.
            TypeError: if `path` is no path, or `clock` no function.
        """
        durable = check_durability(durability)
        if not (is_number(busy_timeout) and busy_timeout >= 0):
            raise ValueError(f'busy_timeout must be 0 seconds or more, got {busy_timeout!r}')
        if str(path) == ':memory:':
            raise ValueError("SqliteStore keeps a file, and ':memory:' names none: take MemoryStore()")
        self.path = check_path('path', path)
        self.clock = check_clock(clock)
        self._lock_timeout = busy_timeout
        self._lease = lease
        self._verify = verify
        self._database = Database(self.path.absolute(), durable=durable, busy_timeout=busy_timeout)
        self._open('check', ())  # the options are wrong here, not where the first run is asked for

    def __repr__(self) -> str:
        return f'SqliteStore({str(self.path)!r})'

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f'{self!r} cannot be pickled or copied, for its connections are those of this process: make a '
            'store in each process, from the same path'
        )

    async def aclose(self) -> None:
        """Make what still waits, and close the connections; the last one of all writes the log back.

        Idempotent. A run that is still in hand stays so: each time that its lease is renewed, and when it is
        given back, the file is opened for as long as that takes. What else is asked for later opens the file
        again, and it stays open until the store is closed once more.

        Raises:
            CorruptSnapshotError: if the write-ahead log was deleted meanwhile. It is closed all the same.
            StorageError: if SQLite could not close it.
        """
        self._database.close_soon()
        work = self._threads.submit(self._database.close)
        await outcome(work)

    def _open(self, run_id: str, tags: tuple[str, ...]) -> StoredStatePersistence[Any, Any]:
        return StoredStatePersistence(
            SqlRun(self._database, run_id, self.clock),
            lease=self._lease,
            lock_timeout=self._lock_timeout,
            verify=self._verify,
            tags=tags,
        )

    def _rows(self, run_id: str) -> tuple[list[Row], About]:
        with self._database.readers.reading() as db:
            return read_all(db, run_id)

    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        return self._database.write(lambda db: insert(db, run_id, rows, about))

    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        run = self._database.write(lambda db: delete(db, run_id, self.clock(), ended_before))
        if run is not None:
            try:
                self._sweep(run)
            except (LockTimeoutError, StorageError):  # it is deleted; what is left goes the next time
                return True
        with suppress(GraphkeepError, LockBusy):
            self._sweep_others()
        return run is not None

    def _sweep(self, run: int) -> None:
        """Delete, bit by bit, what is left of a deleted run."""
        while self._database.write(partial(sweep, run=run, limit=_CHUNK)):
            pass

    def _sweep_others(self) -> None:
        """Delete what is left of those whose deleting was interrupted."""
        with self._database.readers.reading() as db:
            runs = deleted(db)
        for run in runs:
            with suppress(CorruptSnapshotError):  # it stays where it is
                self._sweep(run)

    def _trim(self, run_id: str, before: datetime) -> int:
        trimmed, some = 0, _CHUNK
        while some == _CHUNK:
            some = self._database.write(partial(trim, run_id=run_id, before=before, limit=_CHUNK))
            trimmed += some
        return trimmed

    def _list(self, query: RunQuery) -> list[RunInfo]:
        # closed before the connection is given back: a statement that has not ended keeps the file open
        with self._database.readers.reading() as db, closing(self._found(db, query)) as infos:
            return list(islice(infos, None if query.limit is None else min(query.limit, sys.maxsize)))

    def _found(self, db: sqlite3.Connection, query: RunQuery) -> Generator[RunInfo]:
        now = self.clock()
        statuses = None if query.statuses is None else sorted(query.statuses)
        values = {
            'statuses': None if statuses is None else ' '.join(statuses),
            'failed': statuses is not None and 'error' in statuses,
            'graph': bound(query.graph),
            'tag': query.tag,
            'updated_before': stamp(query.updated_before),
            'after': bound(query.after),
        }
        if query.resumable:  # of all that wait only a few are asked for
            statement, chosen = _ONE, db.execute(_RESUMABLE, values).fetchall()
        else:
            statement, chosen = _LIST, [values]
        for parameters in chosen:
            for found in db.execute(statement, parameters):
                info = _listed(found, now)
                if info is not None and query.admits(info):
                    yield info


# Texts as bytes: to SQLite's module one that is none would be the end of all that is found.
_FOUND: Final = """
SELECT
    CAST(id AS BLOB), CAST(graph AS BLOB), CAST(status AS BLOB), steps, created, updated,
    CAST(owner AS BLOB), expires, CAST(parent AS BLOB), parent_seq,
    CASE WHEN status = 'error' THEN (
        SELECT CAST(attempts AS BLOB)
        FROM steps WHERE steps.run = runs.run AND kind = 'node' ORDER BY seq DESC LIMIT 1
    ) END,
    (
        SELECT CAST(json_group_array(CAST(tag AS TEXT)) AS BLOB)
        FROM (SELECT tag FROM tags WHERE tags.run = runs.run ORDER BY tag)
    )
FROM runs
"""
_MEANT: Final = """
WHERE id > CAST(:after AS TEXT)
    AND (:graph IS NULL OR graph = CAST(:graph AS TEXT))
    AND (
        :statuses IS NULL OR instr(' ' || :statuses || ' ', ' ' || status || ' ')
        OR :failed AND owner IS NOT NULL -- one that cannot be read counts as failed
    )
    AND (:updated_before IS NULL OR updated < :updated_before)
    AND (:tag IS NULL OR run IN (SELECT run FROM tags WHERE tag = :tag))
"""
_ONE: Final = f'{_FOUND} WHERE run = ?'
_LIST: Final = f'{_FOUND} {_MEANT} AND finished < 2 ORDER BY id'
# Whether an owner is gone is for Python to find out.
_RESUMABLE: Final = f"""
SELECT run FROM runs
{_MEANT} AND finished = 0 AND (status = 'created' OR in_hand <> '[]' AND owner IS NOT NULL)
ORDER BY updated, id
"""  # noqa: S608 -- of constants


def _listed(found: Sequence[Any], now: datetime) -> RunInfo | None:
    """Return what is known of a run, `None` if no run can have that id."""
    try:
        run_id = check_run_id(_text(found[0]))
    except (InvalidRunIdError, UnicodeDecodeError):
        return None
    try:
        return _info(run_id, found, now)
    except UNREADABLE as exc:
        return damaged(run_id, unreadable(run_id, exc))


def _text(value: Any) -> Any:
    return None if value is None else value.decode('utf-8', 'surrogatepass')


def _info(run_id: str, found: Sequence[Any], now: datetime) -> RunInfo:
    _, graph, status, steps, created, updated, owner, expires, parent, parent_seq, attempts, tags = found
    check_statuses([status := _text(status)])
    if not is_count(steps):
        raise ValueError(f'{steps!r} steps')
    ownership = Ownership(0, load_owner(_text(owner)) if owner else None, moment(expires))
    return RunInfo(
        id=run_id,
        graph=_text(graph),
        status=status,
        steps=steps,
        created=moment(created),
        updated=moment(updated),
        owner=ownership.owner,
        expires=ownership.expires,
        error=load_attempts(_text(attempts))[-1].error if attempts else None,
        tags=tuple(json.loads(_text(tags))),
        parent=(_text(parent), parent_seq) if parent is not None else None,
        resumable=is_resumable(status, ownership, now),
    )
