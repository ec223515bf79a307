"""Opens the file of a SQLite store, and turns what SQLite says into errors of ours."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from .backend import LockBusy
from .directories import make_directory
from .errors import CorruptSnapshotError, StorageError, UnusableStoreError
from .sqlfork import refuse_carried
from .sqlschema import APPLICATION_ID, MIGRATIONS, STEP_ENDS, TABLES

__all__ = ('damaged', 'leave', 'open_file', 'ours', 'translated')

_OLDEST: Final = 3, 37  # the first that has STRICT tables
_MODE: Final = 0o600
_PAGE: Final = 2048  # bytes: a step changes little, and what it changes is written in whole pages
_ERRNO: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_AUTH: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
    sqlite3.SQLITE_TOOBIG: errno.EFBIG,
}


def open_file(path: Path, *, durable: bool = False) -> sqlite3.Connection:
    """Open a store, made first if there is none, and brought up to this version.

    Args:
        path: The file; its directory is made, too.
        durable: Whether the directories that are made for it are to survive a loss of power.

    Raises:
        UnusableStoreError: if it is something else, of a later version, or not whole. It is left as it is.
        StorageError: if it cannot be opened.
        LockBusy: if somebody else is making or changing it this very moment.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        needed = '.'.join(map(str, _OLDEST))
        found = f'this Python has SQLite {sqlite3.sqlite_version}, and a store needs {needed} or newer'
        raise StorageError(str(path), 'open', OSError(errno.ENOSYS, found))
    refuse_carried(path)
    _make(path, durable=durable)
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    db.text_factory = _decoded
    try:
        db.execute('BEGIN')  # somebody else may be making it this very moment
        _look(db, path)
        db.execute('COMMIT')
        _set_up(db, path)
    except UnusableStoreError:
        with suppress(sqlite3.Error):
            if _has_log(path):
                leave(db, path)
            else:
                db.close()
        raise
    except BaseException:
        with suppress(sqlite3.Error):
            db.close()
        raise
    return db


def leave(db: sqlite3.Connection, path: Path) -> None:
    """Close the connection, and leave what is in the log where it is.

    The last connection of all writes the log back and deletes it, unless it may only read.
    """
    with closing(sqlite3.connect(f'{path.as_uri()}?mode=ro', timeout=0, uri=True)) as last:
        try:
            last.execute('SELECT count(*) FROM sqlite_schema').fetchone()
        finally:
            db.close()


def _has_log(path: Path) -> bool:
    try:
        return os.stat(f'{os.path.realpath(path)}-wal').st_size > 0
    except OSError:
        return False


def _decoded(text: bytes) -> str:
    return text.decode('utf-8', 'surrogatepass')  # see `bound` for where such come from


def _make(path: Path, *, durable: bool) -> None:
    """Make an empty file for its owner only, with its directory, if there is none."""
    try:
        if path.is_dir():
            raise IsADirectoryError(
                errno.EISDIR, 'Is a directory: give the path of a file, such as runs.db in it'
            )
        if path.exists():
            return  # and not opened: to close it again would drop every lock that this process has on it
        path = Path(os.path.realpath(path))  # of a link to nowhere, as SQLite would make it
        make_directory(path.parent, durable=durable)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _MODE))
    except OSError as exc:
        raise StorageError(str(path), 'open', exc) from exc


def _look(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, or not whole, before anything is written."""
    (application,) = db.execute('PRAGMA application_id').fetchone()
    (version,) = db.execute('PRAGMA user_version').fetchone()
    if application == APPLICATION_ID:
        if version > len(MIGRATIONS):
            raise UnusableStoreError(
                str(path),
                f'has version {version} of the schema, and this graphkeep knows versions up to '
                f'{len(MIGRATIONS)}: use the graphkeep that wrote it, or a newer one. It is left as it is.',
            )
        there = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        lacking = [f'no table {name!r}' for name in TABLES if name not in there]
        if version < 1 or lacking:
            raise UnusableStoreError(
                str(path),
                f'is damaged: it has {", ".join(lacking) or f"version {version} of the schema"}, and no '
                'graphkeep writes such a store. Restore it from a copy, or use another path. It is left as '
                'it is.',
            )
        return
    (tables,) = db.execute('SELECT count(*) FROM sqlite_schema').fetchone()
    if application or version or tables:
        raise UnusableStoreError(
            str(path),
            f'is a database of another application (application_id {application}, {tables} tables and '
            'indices): use another path for the store. It is left as it is.',
        )


def _set_up(db: sqlite3.Connection, path: Path) -> None:
    db.execute(f'PRAGMA page_size = {_PAGE}')  # of a new file
    (mode,) = db.execute('PRAGMA journal_mode = WAL').fetchone()
    if mode != 'wal':
        raise UnusableStoreError(
            str(path),
            f'cannot have a write-ahead log (its journal mode is {mode!r}), as on some network file systems: '
            'use a path on a local disk.',
        )
    db.execute('PRAGMA synchronous = NORMAL')
    db.execute('PRAGMA wal_autocheckpoint = 0')  # see `Database`, which does it in a thread
    (version,) = db.execute('PRAGMA user_version').fetchone()
    if version < len(MIGRATIONS):
        _migrate(db, path)
    db.execute('PRAGMA temp_store = MEMORY')
    for statement in STEP_ENDS:
        db.execute(statement)


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to this version: wholly or not at all, and once if several processes come."""
    db.execute('PRAGMA synchronous = FULL')
    db.execute('BEGIN IMMEDIATE')
    try:
        _look(db, path)  # again: it may be somebody else's by now
        (version,) = db.execute('PRAGMA user_version').fetchone()
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        db.execute(f'PRAGMA application_id = {APPLICATION_ID}')
        db.execute(f'PRAGMA user_version = {len(MIGRATIONS)}')
        db.execute('COMMIT')
    except BaseException:
        if db.in_transaction:
            db.execute('ROLLBACK')
        raise
    db.execute('PRAGMA synchronous = NORMAL')


@contextmanager
def translated(path: Path, doing: str) -> Generator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as exc:
        raise ours(exc, path, doing) from exc


def ours(exc: sqlite3.Error, path: Path, doing: str) -> Exception:
    """Return what an error of SQLite's is to us.

    - `LockBusy`: somebody else holds the lock.
    - `UnusableStoreError`: the file is no database.
    - `CorruptSnapshotError`: it is damaged.
    - `StorageError`: the system refused what was asked.
    """
    code = (getattr(exc, 'sqlite_errorcode', None) or sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LockBusy()
    if code == sqlite3.SQLITE_NOTADB:
        return UnusableStoreError(
            str(path), 'is not a database: use another path for the store. It is left as it is.'
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return CorruptSnapshotError(
            str(path),
            f'is damaged ({exc}): restore it from a copy, or save what can be read with '
            '`sqlite3 FILE .recover`',
        )
    return StorageError(str(path), doing, OSError(_ERRNO.get(code, errno.EIO), str(exc)))


def damaged(problem: str) -> sqlite3.DatabaseError:
    """Return what SQLite would raise if it had found this damage itself."""
    exc = sqlite3.DatabaseError(problem)
    exc.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return exc
