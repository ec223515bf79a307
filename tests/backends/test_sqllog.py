"""What is told of SQLite's write-ahead log from outside is what SQLite has in it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from graphkeep.sqllog import WriteAheadLog

PAGE = 1024


@pytest.fixture
def db(tmp_path: Path) -> Generator[sqlite3.Connection]:
    """Give a connection to a database with a log, which nobody writes back."""
    with closing(sqlite3.connect(tmp_path / 'a.db', isolation_level=None)) as db:
        db.execute(f'PRAGMA page_size = {PAGE}')
        db.execute('PRAGMA journal_mode = WAL')
        db.execute('PRAGMA synchronous = OFF')
        db.execute('PRAGMA wal_autocheckpoint = 0')
        db.execute('CREATE TABLE t (x)')
        yield db


def frames(db: sqlite3.Connection) -> int:
    """Return how many pages there are in the log, as SQLite says; they are written back."""
    return cast('int', db.execute('PRAGMA wal_checkpoint(PASSIVE)').fetchone()[1])


def reached(log: WriteAheadLog) -> int:
    """Return how many pages the log says that it has."""
    return next(n for n in range(10_000) if not log.reaches(n * (PAGE + 24)))


def write(db: sqlite3.Connection, times: int) -> None:
    """Add this many rows, each in a transaction of its own."""
    for _ in range(times):
        db.execute('INSERT INTO t VALUES (randomblob(2000))')


def test_how_long_it_is(db: sqlite3.Connection, tmp_path: Path) -> None:
    """It grows with what is written, begins anew, and grows again over what is left of the one before."""
    log = WriteAheadLog(tmp_path / 'a.db')
    with closing(log):
        write(db, 10)
        assert reached(log) == frames(db) > 10
        write(db, 10)
        before = frames(db)
        assert reached(log) == before > 30
        size = os.stat(log.path).st_size
        db.execute('PRAGMA wal_checkpoint(RESTART)')
        write(db, 1)
        assert os.stat(log.path).st_size == size, 'nothing is left, so the test tests nothing'
        assert reached(log) == frames(db) < 10
        write(db, 30)
        assert reached(log) == frames(db) > before


def test_empty(db: sqlite3.Connection, tmp_path: Path) -> None:
    """A log that was cut to nothing reaches nowhere."""
    with closing(WriteAheadLog(tmp_path / 'a.db')) as log:
        db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        assert os.stat(log.path).st_size == 0
        assert not log.reaches(0)


def test_unreadable(db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be read it reaches nowhere: its length only tells when to write it back."""

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, 'Input/output error')

    with closing(WriteAheadLog(tmp_path / 'a.db')) as log:
        assert log.reaches(0)
        with monkeypatch.context() as patch:
            patch.setattr(os, 'read', fail)
            assert not log.reaches(0)


def test_link(db: sqlite3.Connection, tmp_path: Path) -> None:
    """The log is beside the file, and not beside a link to it."""
    (tmp_path / 'links').mkdir()
    link = tmp_path / 'links' / 'b.db'
    link.symlink_to(tmp_path / 'a.db')
    with closing(WriteAheadLog(link, sync_name=True)) as log:
        assert log.reaches(0)
        log.sync()


def test_none(tmp_path: Path) -> None:
    """Where there is no log that is said."""
    with pytest.raises(FileNotFoundError):
        WriteAheadLog(tmp_path / 'a.db')


@pytest.mark.parametrize('tells', [True, False])
def test_log_that_is_gone(
    db: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    """It says so, where the file system tells how many names a file has; not of one that was closed."""
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        status = list(real(fd))
        if not tells:
            status[3] = 0
        return os.stat_result(status)

    monkeypatch.setattr(os, 'fstat', fstat)
    write(db, 1)
    log = WriteAheadLog(tmp_path / 'a.db')
    log.sync()
    assert not log.is_gone
    os.unlink(log.path)
    assert log.is_gone is tells
    log.close()
    assert not log.is_gone
    log.sync()
