"""The write-ahead log beside a SQLite store's file: how long it is, and its way to the disk.

See https://sqlite.org/fileformat2.html#the_write_ahead_log for its format.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Final

from .directories import sync_directory
from .errors import another

__all__ = ('DELETED', 'WriteAheadLog')

DELETED: Final = 'its write-ahead log was deleted while it was in use'

_HEADER: Final = 32  # bytes, of the log; in them:
_PAGE_SIZE: Final = slice(8, 12)
_SALT: Final = slice(16, 24)  # another one each time that the log begins anew
_FRAME: Final = 24  # bytes before each page; in them:
_FRAME_SALT: Final = slice(8, 16)


class WriteAheadLog:
    """The log while a connection is open; SQLite has no locks on its file that closing it would drop."""

    def __init__(self, path: Path, *, sync_name: bool = False):
        """Open it.

        Args:
            path: The database; it is open, so there is a log.
            sync_name: Whether to wait until it is on the disk that there is this file.

        Raises:
            OSError: if it cannot be opened.
        """
        self.path = f'{os.path.realpath(path)}-wal'
        if sync_name:
            sync_directory(os.path.dirname(self.path))
        self._file = os.open(self.path, os.O_RDWR | getattr(os, 'O_BINARY', 0))
        weakref.finalize(self, os.close, self._file)  # for a thread may be in `sync` until then
        self._was_there = os.fstat(self._file).st_nlink > 0  # not every file system tells
        self._closed = False
        self._doubtful: OSError | None = None  # why what is in it may not be on the disk

    def reaches(self, size: int) -> bool:
        """Whether it has more than about so many bytes; what is left of older logs does not count.

        To be called by one thread at a time. Where the file cannot be read it reaches nowhere.
        """
        try:
            header = self._read(0, _HEADER)
            frame = _FRAME + int.from_bytes(header[_PAGE_SIZE], 'big')
            salt = self._read(_HEADER + size // frame * frame, _FRAME)[_FRAME_SALT]
        except OSError:
            return False
        return len(header) == _HEADER and salt == header[_SALT]

    def _read(self, at: int, size: int) -> bytes:
        os.lseek(self._file, at, os.SEEK_SET)  # not every system has `pread`
        return os.read(self._file, size)

    @property
    def is_gone(self) -> bool:
        """Whether somebody has deleted it, and with it all that is written to it from then on.

        Not to be asked by a thread that syncs: to have the interpreter once more takes as long as a step.
        """
        try:
            links = os.fstat(self._file).st_nlink
        except OSError:  # then that is not known
            return False
        return self._was_there and not links and not self._closed

    def sync(self) -> None:
        """Wait until what is in it is on the disk; not any more when it is closed.

        Raises:
            OSError: if that cannot be relied on, this time or since.
        """
        if self._closed:
            return
        self.check()
        try:
            getattr(os, 'fdatasync', os.fsync)(self._file)
        except OSError as exc:
            self._doubtful = exc
            raise

    def check(self) -> None:
        """Refuse if what is in it may not have come to the disk.

        Raises:
            OSError: if that is so.
        """
        if self._doubtful is not None:
            # the system says once that something is not on the disk, and then no more
            raise another(self._doubtful)

    def close(self) -> None:
        """Look at it no more; to be called when all in it is on the disk, before its connection is closed."""
        self._closed = True
