"""Runs in JSON files, one file a run, in pydantic-graph 1.x's own format."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

from filelock import lock_descriptor, unlock_descriptor

from ._host import RunEndT, StateT
from .backend import Applied, LockBusy, LoggedRun, RunLog
from .codec import Body
from .commit import UNOWNED, Commit, Receipt, Row, Tail
from .errors import InvalidRunIdError, StorageError
from .jsonrun import parse_body, parse_run, render
from .snapshots import now_utc
from .store import Store, check_run_id
from .stored import LEASE, LOCK_TIMEOUT, StoredStatePersistence

__all__ = ('Durability', 'FileStatePersistence', 'FileStore')

Durability = Literal['normal', 'full']
"""What a commit survives.

- `'normal'`: the death of the process at any moment, by `kill -9` too. After a loss of power or a crash of
  the system the file may be an older one or, on file systems that order writes loosely, damaged.
- `'full'`: a loss of power too, on a disk that keeps what it has acknowledged. Each commit waits for the disk
  twice.
"""

_MODE: Final = 0o600
_MAX_NAME: Final = 240  # bytes, of the 255 that file systems allow, so that the lock's name fits as well
_PROMPT: Final = (
    0.001  # seconds: what is quicker is not worth a switch of threads, which costs about a tenth of it
)
_LATER: Final = (
    1_000,
    1_000_000,
    2_000_000_000,
)  # nanoseconds: as finely as file systems tell time, or do not
_BINARY: Final = getattr(os, 'O_BINARY', 0)
_NOFOLLOW: Final = getattr(os, 'O_NOFOLLOW', 0)


class FileStatePersistence(StoredStatePersistence[StateT, RunEndT]):
    """Keeps one run in one readable JSON file.

    The format is pydantic-graph 1.x's, both ways. A commit writes a new file beside the old one and puts it
    in its place, so whoever reads sees the run as it was before the commit or after it. Several processes may
    use one file. The file is readable by its owner only, and parent directories are made as needed.

    While a commit is made, a lock is held on a file beside it, `.<name>.lock`, which stays. The lock is the
    operating system's and goes with its process. A commit that took less than a millisecond the last time is
    made on the event loop's own thread, any other in a worker thread.
    """

    def __init__(
        self,
        json_file: Path | str,
        *,
        run_id: str | None = None,
        durability: Durability = 'normal',
        lease: float = LEASE,
        lock_timeout: float = LOCK_TIMEOUT,
        verify: bool = True,
        clock: Callable[[], datetime] = now_utc,
    ):
        """Make the persistence of the run in this file; nothing is read or written yet.

        Args:
            json_file: Path to the JSON file; it need not exist.
            run_id: What to call the run in errors and to the node's code; by default the file's name without
                suffix.
            durability: What a commit survives: the death of the process (`'normal'`), or a loss of power
                (`'full'`).
            lease: How long the run stays its owner's without a renewal, in seconds.
            lock_timeout: How long a call waits while somebody else is writing, in seconds; then
                `LockTimeoutError`.
            verify: Whether to check before each write that the snapshot would be loaded as it was given.
            clock: What leases are measured with (UTC); the same for all that use the file.
        """
        if durability not in ('normal', 'full'):
            raise ValueError(f"durability must be 'normal' or 'full', got {durability!r}")
        path = Path(json_file)
        backend = _RunFile(path, run_id or path.stem, durability, clock)
        super().__init__(backend, lease=lease, lock_timeout=lock_timeout, verify=verify)
        self._json_file = path
        self._durability: Durability = durability

    @property
    def json_file(self) -> Path:
        """Path to the JSON file."""
        return self._json_file

    @property
    def durability(self) -> Durability:
        """What a commit survives."""
        return self._durability

    def __reduce__(self) -> tuple[Any, ...]:
        # what a copy, here or in another process, is made of; it has nothing in hand
        if self.__class__ is not FileStatePersistence:
            raise TypeError('a subclass of FileStatePersistence has to say what a copy of it is made of')
        make = partial(
            FileStatePersistence,
            run_id=self.run_id,
            durability=self.durability,
            lease=self.lease,
            lock_timeout=self.lock_timeout,
            verify=self.verify,
            clock=self._backend.clock,
        )
        return make, (self.json_file,)

    def __repr__(self) -> str:
        return f'FileStatePersistence(json_file={self.json_file!r})'

    @property
    def _place(self) -> str:
        return str(self.json_file)


class FileStore(Store):
    """Keeps many runs in a directory, each in a JSON file of its own as `FileStatePersistence` writes it."""

    directory: Path
    """The directory; made when the first run is stored."""

    def __init__(
        self,
        directory: Path | str,
        *,
        durability: Durability = 'normal',
        lease: float = LEASE,
        lock_timeout: float = LOCK_TIMEOUT,
        verify: bool = True,
        clock: Callable[[], datetime] = now_utc,
    ):
        """Make the store in this directory; nothing is read or written yet.

        Args:
            directory: The directory; it need not exist.
            durability: What a commit survives: the death of the process (`'normal'`), or a loss of power
                (`'full'`).
            lease: How long a run stays its owner's without a renewal, in seconds.
            lock_timeout: How long a call waits while somebody else is writing, in seconds; then
                `LockTimeoutError`.
            verify: Whether to check before each write that the snapshot would be loaded as it was given.
            clock: What leases are measured with (UTC); the same for all that use the directory.
        """
        self.directory = Path(directory)
        self._options: dict[str, Any] = {
            'durability': durability,
            'lease': lease,
            'lock_timeout': lock_timeout,
            'verify': verify,
            'clock': clock,
        }
        self._open('check')  # the options are wrong here, not where the first run is asked for

    def path(self, run_id: str) -> Path:
        """Return the file of a run: its id, percent-encoded but for letters, digits and `_.-~`, and `.json`.

        Raises:
            InvalidRunIdError: if it is no run id, or one with too long a file name.
        """
        name = f'{quote(check_run_id(run_id), safe="")}.json'
        if len(name) > _MAX_NAME:
            raise InvalidRunIdError(
                run_id, f'its file name would have {len(name)} bytes, more than {_MAX_NAME}.'
            )
        return self.directory / name

    def _open(self, run_id: str) -> FileStatePersistence[Any, Any]:
        return FileStatePersistence(self.path(run_id), run_id=run_id, **self._options)


class _Version(NamedTuple):
    """Tells one content of a file from another; writers see to it that the time grows with every one."""

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, stat: os.stat_result) -> _Version:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


class _RunFile(LoggedRun):
    """One run in one file.

    Its text is kept at hand, so that a commit renders only what it changes and never parses; it is read anew
    when somebody else has written.
    """

    def __init__(self, path: Path, run_id: str, durability: Durability, clock: Callable[[], datetime]):
        self.run_id = run_id
        self.clock = clock
        self.prompt = False
        self.log = RunLog(run_id, clock)
        self._given = path
        self._durable = durability == 'full'
        self._mutex = threading.Lock()
        self._version: _Version | None = None
        self._forget()

    @cached_property
    def _path(self) -> str:
        # through links, so that a commit replaces the file and not a link to it
        return os.path.realpath(self._given)

    @cached_property
    def _temporary(self) -> str:
        return self._beside('tmp')

    @cached_property
    def _lock_name(self) -> str:
        return self._beside('lock')

    def _beside(self, suffix: str) -> str:
        directory, name = os.path.split(self._path)
        return os.path.join(directory, f'.{name}.{suffix}')

    # ------------------------------------------------------------------------------------------- the backend

    def commit(self, commit: Commit) -> Receipt:
        """Apply the commit whole, or raise and change nothing."""
        with self._mutex, self._timed(), self._reporting('write'), self._lock():
            self._refresh()
            applied = self.log.apply(commit)
            if applied.changed or applied.appended or applied.ownership != self.log.ownership:
                self._store(applied)
            return applied.receipt

    def tail(self) -> Tail:
        """Return the end of the run."""
        with self._mutex, self._timed(), self._reporting('read'):
            self._refresh()
            return self._tail()

    def rows(self) -> list[Row]:
        """Return every row, oldest first."""
        with self._mutex, self._timed(), self._reporting('read'):
            self._refresh()
            return self._rows()

    def body(self, index: int) -> Body:
        """Return the body of the row at this position."""
        return self._content(index)[0]

    # ---------------------------------------------------------------------------------------------- the text

    def _forget(self) -> None:
        self.log.load((), UNOWNED)
        self._text = bytearray(b'[\n')
        self._begins: list[int] = []
        self._contents: dict[int, tuple[Body, bytes]] = {}  # of rows that may still change
        self._owned_at: int | None = None  # the row that the ownership is on record with

    def _content(self, index: int) -> tuple[Body, bytes]:
        content = self._contents.get(index)
        return content if content is not None else parse_body(self._element(index))

    def _element(self, index: int) -> bytes:
        end = self._begins[index + 1] - 2 if index + 1 < len(self._begins) else len(self._text)
        return bytes(self._text[self._begins[index] : end])

    def _store(self, applied: Applied) -> None:
        """Write what the commit makes of the run, and only then take it over."""
        owned_at = self._owned_at
        dirty = dict(applied.changed)
        if applied.ownership != self.log.ownership:
            if owned_at is not None and self.log.ownership.owner is not None:
                dirty.setdefault(owned_at, self.log.records[owned_at])
            owned_at = next(reversed(applied.changed), owned_at)
        first = min(dirty, default=len(self.log.records))
        elements: list[bytes] = []
        for index in range(first, len(self.log.records)):
            if (record := dirty.get(index)) is None:
                elements.append(self._element(index))
            else:
                body, others = self._content(index)
                elements.append(
                    render(record, body, applied.ownership if index == owned_at else UNOWNED, others)
                )
        elements += [render(row.record, row.body) for row in applied.appended]
        keep = self._begins[first] if first < len(self._begins) else len(self._text)
        changed = (
            b',\n'.join(elements)
            if first < len(self._begins) or not first
            else b',\n' + b',\n'.join(elements)
        )
        version = self._replace(keep, changed)
        self._take_over(applied, first, keep, changed, elements)
        self._owned_at = owned_at
        self._version = version
        if self._durable:
            try:
                _sync_directory(os.path.dirname(self._path))
            except OSError as exc:
                raise StorageError(str(self._given), 'make durable', exc, receipt=applied.receipt) from exc

    def _take_over(
        self, applied: Applied, first: int, keep: int, changed: bytes, elements: Sequence[bytes]
    ) -> None:
        at = keep + len(changed) - sum(map(len, elements)) - 2 * (len(elements) - 1)
        self._text[keep:] = changed
        del self._begins[first:]
        for element in elements:
            self._begins.append(at)
            at += len(element) + 2
        count = len(self.log.records)
        self.log.accept(applied)
        for index, record in applied.changed.items():
            if record.status in ('success', 'error'):
                self._contents.pop(index, None)
        for index, row in enumerate(applied.appended, start=count):
            if row.record.kind == 'node':
                self._contents[index] = (row.body, b'')

    # ---------------------------------------------------------------------------------------------- the file

    def _refresh(self) -> None:
        """Read the file if it is not the one that is at hand."""
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            if self._version is not None:
                self._version = None
                self._forget()
            return
        if _Version.of(stat) == self._version:
            return
        with open(self._path, 'rb') as file:
            version = _Version.of(os.fstat(file.fileno()))
            data = file.read()
        self._load(data)
        self._version = version

    def _load(self, data: bytes) -> None:
        run = parse_run(data, place=str(self._given))
        self._forget()
        self._owned_at = run.owned_at
        owned = UNOWNED if run.owned_at is None else run.elements[run.owned_at].ownership
        self.log.load((element.row.record for element in run.elements), owned)
        at = len(self._text)
        for element in run.elements:
            self._begins.append(at)
            at += len(element.text) + 2
        self._text += b',\n'.join(element.text for element in run.elements)

    def _replace(self, keep: int, changed: bytes) -> _Version:
        """Replace the file by one with the first `keep` bytes of the text at hand and the changed rest."""
        temporary = self._temporary
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | _NOFOLLOW
        try:
            fd = os.open(temporary, flags, _MODE)
        except FileExistsError:
            # left by a process that was killed; nobody else is here, for the lock is held
            os.unlink(temporary)
            fd = os.open(temporary, flags, _MODE)
        try:
            try:
                version = self._fill(fd, keep, changed)
            finally:
                os.close(fd)
            os.replace(temporary, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return version

    def _fill(self, fd: int, keep: int, changed: bytes) -> _Version:
        with memoryview(self._text) as text:
            _write_all(fd, text, keep)
        with memoryview(changed + b'\n]\n') as rest:
            _write_all(fd, rest, len(rest))
        stat = os.fstat(fd)
        for step in _LATER:
            if self._version is None or stat.st_mtime_ns > self._version.modified:
                break
            # the clock of the file system is coarser than two commits are apart; see _Version
            later = self._version.modified + step
            os.utime(fd, ns=(later, later))
            stat = os.fstat(fd)
        if self._durable:
            os.fsync(fd)
        return _Version.of(stat)

    @contextmanager
    def _lock(self) -> Generator[None]:
        name = self._lock_name
        flags = os.O_RDWR | os.O_CREAT | _BINARY | _NOFOLLOW
        try:
            fd = os.open(name, flags, _MODE)
        except FileNotFoundError:
            _make_directory(os.path.dirname(self._path), durable=self._durable)
            fd = os.open(name, flags, _MODE)
        try:
            if not lock_descriptor(fd, blocking=False):
                raise LockBusy
            try:
                yield
            finally:
                unlock_descriptor(fd)  # a child that was forked meanwhile has the descriptor too
        finally:
            os.close(fd)

    @contextmanager
    def _timed(self) -> Generator[None]:
        begun = perf_counter()
        yield
        self.prompt = not self._durable and perf_counter() - begun < _PROMPT

    @contextmanager
    def _reporting(self, doing: str) -> Generator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as exc:
            raise StorageError(str(self._given), doing, exc) from exc


def _write_all(fd: int, data: memoryview, end: int) -> None:
    at = 0
    while at < end:
        with data[
            at:end
        ] as rest:  # released even if an error keeps this frame, so that the text can go on growing
            at += os.write(fd, rest)


def _make_directory(directory: str, *, durable: bool) -> None:
    path = Path(directory)
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    if durable:
        for made in missing:
            _sync_directory(str(made.parent))


def _sync_directory(path: str) -> None:
    if os.name == 'nt':
        return  # there is no such thing there; a rename is as durable as the file system makes it
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
