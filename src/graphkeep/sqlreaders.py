"""The connections that read one SQLite file: one for each thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .backend import LockBusy
from .sqlfork import remaining
from .sqlopen import open_file, translated

__all__ = ('Readers', 'roll_back')


class Readers:
    """A connection for each thread that reads."""

    def __init__(self, path: Path, *, durable: bool):
        self._path = path
        self._durable = durable
        # by the thread itself: its number may be another one's as soon as it has ended
        self._readers: dict[threading.Thread, _Reader] = {}
        self._opening = threading.Lock()  # who may open one
        self._paused = False  # whether nobody may because of a fork

    def ready(self, thread: threading.Thread) -> bool:
        """Whether this thread has a connection that nobody is using, so that there is nothing to wait for."""
        reader = self._readers.get(thread)
        return reader is not None and reader.db is not None and not reader.mutex.locked()

    @contextmanager
    def reading(self, thread: threading.Thread | None = None) -> Generator[sqlite3.Connection]:
        """Give a connection that reads the store as it is at one moment.

        Args:
            thread: Whose connection to use, and to leave open; the calling thread's unless told otherwise.
        """
        with self.connected(thread or threading.current_thread()) as db, translated(self._path, 'read'):
            db.execute('BEGIN')
            try:
                yield db
            finally:
                roll_back(db)

    @contextmanager
    def connected(self, thread: threading.Thread) -> Generator[sqlite3.Connection]:
        """Give the connection of a thread, alone."""
        reader = self._reader(thread)
        with reader.mutex:
            if (db := reader.db) is None:
                with self._opening, translated(self._path, 'read'):
                    # so that it is known; unless somebody else has opened one for a thread that has ended
                    if self._readers.setdefault(thread, reader) is not reader:
                        raise LockBusy
                    db = reader.db = open_file(self._path, durable=self._durable)
            yield db

    def close(self, until: float | None = None) -> bool:
        """Close every connection; each is opened again when its thread reads again.

        Returns:
            Whether all were by the given moment, of `monotonic`; however long that takes unless one is given.
        """
        return all(reader.close(until) for reader in list(self._readers.values()))

    def pause(self, until: float) -> bool:
        """Close every connection, and keep everybody from opening one, until `resume`.

        Returns:
            Whether that was so by the given moment; if not, they can be opened.
        """
        if not self._opening.acquire(timeout=remaining(until)):
            return False
        self._paused = True
        closed = False
        try:
            closed = self.close(until)
        finally:
            if not closed:
                self.resume()
        return closed

    def resume(self) -> None:
        """Let connections be opened again; idempotent."""
        if self._paused:
            self._paused = False
            self._opening.release()

    def connections(self) -> list[sqlite3.Connection | None]:
        """Return the connections."""
        return [reader.db for reader in list(self._readers.values())]

    def _reader(self, thread: threading.Thread) -> _Reader:
        if (reader := self._readers.get(thread)) is None:
            for gone in [thread for thread in list(self._readers) if not thread.is_alive()]:
                if (reader := self._readers.get(gone)) is not None:  # another thread may be faster
                    reader.close()
                    self._readers.pop(gone, None)
            reader = self._readers.setdefault(thread, _Reader())
        return reader


class _Reader:
    """A connection of one thread, for reading."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.db: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self.db is not None

    def close(self, until: float | None = None) -> bool:
        """Close it when nobody uses it; unless that is later than the given moment."""
        if not self.is_open:  # whoever has it in hand may be waiting to open it
            return True
        if not self.mutex.acquire(timeout=-1 if until is None else remaining(until)):
            return False
        try:
            if self.db is not None:
                self.db.close()  # it counts as open until it is closed
                self.db = None
            return True
        finally:
            self.mutex.release()


def roll_back(db: sqlite3.Connection) -> None:
    """Undo what was begun, if anything was."""
    if db.in_transaction:
        with suppress(sqlite3.Error):
            db.execute('ROLLBACK')
