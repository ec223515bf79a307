"""The connection that writes to a SQLite file, and how long the write-ahead log is that it fills."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from .backend import LockBusy
from .errors import CorruptSnapshotError, GraphkeepError, StorageError
from .sqllog import DELETED, WriteAheadLog
from .sqlopen import leave, open_file
from .sqlreaders import Readers
from .sqlschema import APPLICATION_ID

__all__ = ('BRIEFLY', 'Writer')

BRIEFLY: Final = 0.05
"""Seconds to wait for another thread of this process in any case."""
_LOOK: Final = 64  # commits between two looks at how long the log is
# Bytes of the log from which on it is written back into the file. Where the disk is waited for, a short one
# pays, of which more is kept than is used: what is written over is on the disk sooner than what makes the log
# longer.
_LONG: Final = {False: 32 * 2**20, True: 2 * 2**20}
_KEPT: Final = {False: 32 * 2**20, True: 8 * 2**20}


class Writer:
    """The one connection of this process that writes, for whoever has `mutex`, and the log that it fills."""

    db: sqlite3.Connection | None = None
    """The connection, while it is open."""
    log: WriteAheadLog | None = None
    """The log, while it is open."""

    def __init__(self, path: Path, *, durable: bool):
        """Make it, for the store's file; `open` opens it."""
        self.mutex = threading.Lock()
        """Who may use it."""
        self.backed = threading.Event()
        """Set unless the log is being written back."""
        self.backed.set()
        self._path = path
        self._durable = durable
        self._commits = 0  # since the last look at the log
        self._long = False

    def open(self) -> sqlite3.Connection:
        """Open it.

        Raises:
            LockBusy: if somebody else is making or changing the file this very moment.
            GraphkeepError: if it cannot be opened, see `open_file`.
        """
        db = open_file(self._path, durable=self._durable)
        # what the log is cut to when it begins anew
        db.execute(f'PRAGMA journal_size_limit = {_KEPT[self._durable]}')
        try:
            # its name is new with the first connection of all
            log = WriteAheadLog(self._path, sync_name=self._durable)
        except OSError as exc:
            db.close()
            raise StorageError(str(self._path), 'open', exc) from exc
        if log.reaches(_LONG[self._durable]):  # all others end before they have looked at it
            _begin_log_anew(db)
        self.db, self.log, self._long = db, log, False
        return db

    def close(self) -> None:
        """Close it; to be called when all that was committed is on the disk, where that is waited for."""
        db, log, gone = self.db, self.log, self.log_is_gone
        self.db = self.log = None
        if log is not None:
            log.close()
        if db is not None and gone:
            with suppress(sqlite3.Error):  # else it would write that over what others have written since
                leave(db, self._path)
        elif db is not None:
            db.close()

    @property
    def log_is_gone(self) -> bool:
        """Whether somebody has deleted the log, and with it what is committed from then on."""
        return self.log is not None and self.log.is_gone

    def without_log(self) -> CorruptSnapshotError:
        """Return what to tell of that."""
        return CorruptSnapshotError(
            str(self._path), f'is damaged: {DELETED}, and what was committed since may be lost'
        )

    def must_wait(self, back: Callable[[], object], commits: int = 1) -> bool:
        """Whether so many commits have to wait, for the log grows faster than it is written back, or is gone.

        Args:
            back: Called every now and then, if the log is long: has a thread call `write_back`.
            commits: How many.
        """
        self._commits += commits
        if self._commits < _LOOK:
            return self._long
        self._commits = 0
        if self.log_is_gone:
            self._long = True  # until `wait`, which will tell
        elif self.log is not None and self.log.reaches(_LONG[self._durable]):
            if self.backed.is_set():
                self.backed.clear()
                back()
            elif self.log.reaches(2 * _LONG[self._durable]):
                self._long = True
        return self._long

    def wait(self) -> None:
        """Wait until the log is not too long; to be called in a thread, before it has the mutex."""
        if self._long:
            self.backed.wait()

    def go_on(self, back: Callable[[], object]) -> None:
        """Count a commit after `wait`, which need not wait any more.

        Raises:
            CorruptSnapshotError: if the log is gone.
        """
        if self.log_is_gone:
            raise self.without_log()
        self._long = False
        self.must_wait(back)

    def write_back(self, readers: Readers) -> None:
        """Write the log back while others go on writing, then what they added, and begin it anew.

        Here, for the first commit in a log waits for the disk. Then `backed` is set.

        Args:
            readers: Those of the same file, of which the calling thread's does it.
        """
        try:
            reader = readers.connected(threading.current_thread())
            failures = sqlite3.Error, LockBusy, GraphkeepError
            with suppress(*failures), reader as db, closing(open_file(self._path)) as pin:
                pin.execute('BEGIN')  # while somebody reads in it, nobody begins it anew
                pin.execute('SELECT count(*) FROM sqlite_schema').fetchone()
                db.execute('PRAGMA wal_checkpoint(PASSIVE)')
                # not for long: who has it may wait for somebody's checkpoint, which waits for all who read
                if self.mutex.acquire(timeout=BRIEFLY):
                    try:
                        pin.close()
                        if self.db is not None:
                            _begin_log_anew(self.db)
                    finally:
                        self.mutex.release()
        finally:
            self.backed.set()


def _begin_log_anew(db: sqlite3.Connection) -> None:
    """Write the log back, and make the first write of a new one, which waits for the disk."""
    with suppress(sqlite3.Error):  # nothing is lost if it cannot be done now
        db.execute('PRAGMA wal_checkpoint(PASSIVE)')  # most of it: whoever writes need not wait for that
        db.execute('PRAGMA wal_checkpoint(RESTART)')
        db.execute(f'PRAGMA application_id = {APPLICATION_ID}')  # as it is
