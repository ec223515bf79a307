"""The write-ahead log beside a SQLite store's file: how long it is, and its way to the disk.

See https://sqlite.org/fileformat2.html#the_write_ahead_log for its format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from .directories import sync_directory
from .errors import another

__all__ = ('WriteAheadLog',)

_HEADER: Final = 32  # bytes, of the log; in them:
_PAGE_SIZE: Final = slice(8, 12)
_SALT: Final = slice(16, 24)  # another one each time that the log begins anew
_FRAME: Final = 24  # bytes before each page; in them:
_FRAME_SALT: Final = slice(8, 16)


class WriteAheadLog:
    """The log while a connection is open; SQLite has no locks on its file that closing it would drop."""

    def __init__(self, path: Path):
        """Open it.

        Args:
            path: The database; it is open, so there is a log.

        Raises:
            OSError: if it cannot be opened.
        """
        self.path = f'{os.path.realpath(path)}-wal'
        self._file = os.open(self.path, os.O_RDWR)
        self._doubtful: OSError | None = None  # why what is in it may not be on the disk

    def reaches(self, size: int) -> bool:
        """Whether it has more than about so many bytes; what is left of older logs does not count."""
        header = os.pread(self._file, _HEADER, 0)
        frame = _FRAME + int.from_bytes(header[_PAGE_SIZE], 'big')
        at = _HEADER + size // frame * frame
        return len(header) == _HEADER and os.pread(self._file, _FRAME, at)[_FRAME_SALT] == header[_SALT]

    def sync_name(self) -> None:
        """Wait until it is on the disk that there is this file."""
        sync_directory(os.path.dirname(self.path))

    def sync(self) -> None:
        """Wait until what is in it is on the disk.

        Raises:
            OSError: if that cannot be relied on, this time or since.
        """
        if self._doubtful is not None:
            # the system says once that something is not on the disk, and then no more
            raise another(self._doubtful)
        try:
            getattr(os, 'fdatasync', os.fsync)(self._file)
        except OSError as exc:
            self._doubtful = exc
            raise

    def close(self) -> None:
        """Look at it no more."""
        os.close(self._file)
