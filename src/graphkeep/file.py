"""Runs in JSON files, one file a run, in pydantic-graph 1.x's own format."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, unquote

from ._host import RunEndT, StateT
from .commit import About, Row
from .errors import CorruptSnapshotError, InvalidRunIdError, StorageError
from .names import check_path, check_run_id
from .runfile import Mark, RunFile
from .runinfo import RunInfo, RunQuery, check_clock, damaged
from .snapshots import now_utc
from .store import Store
from .stored import LEASE, LOCK_TIMEOUT, Durability, StoredStatePersistence, check_durability

__all__ = ('FileStatePersistence', 'FileStore')

_OF_ONE_FILE: Final = (errno.EACCES, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EPERM)
# what is wrong with one file, and not with the directory or this process
_SUFFIX: Final = '.json'
_MAX_NAME: Final = 240  # bytes, of the 255 that file systems allow, so that the lock's name fits as well


class FileStatePersistence(StoredStatePersistence[StateT, RunEndT]):
    """Keeps one run in one readable JSON file.

    The format is pydantic-graph 1.x's, both ways. What is stored, and the end of a step, writes a new file
    beside the old one and puts it in its place, so whoever reads sees the run as it was before or after.
    Several processes may use one file, but not together with pydantic-graph's own class. The file is readable
    by its owner only, and parent directories are made as needed.

    While a commit is made, a lock is held on a file beside it, `.<name>.lock`, which stays. The lock is the
    operating system's and goes with its process. That file also tells which node is claimed or running, by
    whom and until when, up to 4 KB; the run's own file tells how it ended, and usually has a running node as
    `created`. To delete the lock file is to forget what is in hand.

    Commits are made on the event loop's own thread if the last write or reading of the whole file took less
    than a millisecond and `durability` is `'normal'`, otherwise in a worker thread.
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
        tags: Iterable[str] = (),
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
            tags: What the run is to be found by in a `FileStore`; recorded when it begins.
            clock: What leases are measured with (UTC); the same for all that use the file.

        Raises:
            ValueError: if an option is not of that kind.
            TypeError: if `json_file` is no path, `clock` no function, or `tags` not several things at all.
        """
        durable = check_durability(durability)
        path = check_path('json_file', json_file)
        backend = RunFile(path, run_id or path.stem, check_clock(clock), durable=durable)
        super().__init__(backend, lease=lease, lock_timeout=lock_timeout, verify=verify, tags=tags)
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
            tags=self._about.tags,
            clock=self._backend.clock,
        )
        return make, (cast(RunFile, self._backend).path,)

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

        Raises:
            ValueError: if an option is not of that kind.
            TypeError: if `directory` is no path, or `clock` no function.
        """
        self.directory = check_path('directory', Path(directory))  # '' is the current one
        self._root = self.directory.absolute()  # whatever the current one is later
        self.clock = clock
        self._lock_timeout = lock_timeout
        self._durability: Durability = durability
        self._options: dict[str, Any] = {
            'durability': durability,
            'lease': lease,
            'lock_timeout': lock_timeout,
            'verify': verify,
            'clock': clock,
        }
        self._seen: dict[str, tuple[Mark, RunInfo]] = {}  # when runs were last listed
        self._open('check', ())  # the options are wrong here, not where the first run is asked for

    def path(self, run_id: str) -> Path:
        """Return the file of a run: its id, percent-encoded but for letters, digits and `_.-~`, and `.json`.

        Raises:
            InvalidRunIdError: if it is no run id, or one with too long a file name.
        """
        name = f'{quote(check_run_id(run_id), safe="")}{_SUFFIX}'
        if len(name) > _MAX_NAME:
            raise InvalidRunIdError(
                run_id, f'its file name would have {len(name)} bytes, more than {_MAX_NAME}.'
            )
        return self._root / name

    def __repr__(self) -> str:
        return f'FileStore({str(self.directory)!r})'

    def _open(self, run_id: str, tags: tuple[str, ...]) -> FileStatePersistence[Any, Any]:
        return FileStatePersistence(self.path(run_id), run_id=run_id, tags=tags, **self._options)

    def _file(self, run_id: str) -> RunFile:
        return RunFile(self.path(run_id), run_id, self.clock, durable=self._durability == 'full')

    def _list(self, query: RunQuery) -> list[RunInfo]:
        infos: list[RunInfo] = []
        seen: dict[str, tuple[Mark, RunInfo]] = {}
        for run_id in self._run_ids():
            try:
                info = self._look(run_id, seen)
            except CorruptSnapshotError as exc:
                info = damaged(run_id, exc)
            except StorageError as exc:
                if exc.errno not in _OF_ONE_FILE:
                    raise
                info = damaged(run_id, exc)
            if info is not None:
                infos.append(info)
        self._seen = seen
        return query.select(infos)

    def _look(self, run_id: str, seen: dict[str, tuple[Mark, RunInfo]]) -> RunInfo | None:
        """Return what is known of a run, read anew only if it was written since; note what was `seen`."""
        file = self._file(run_id)
        mark = file.mark()  # before it is read: what is written meanwhile is seen the next time
        known = self._seen.get(run_id)
        if known is not None and known[0] == mark:
            seen[run_id] = known
            return known[1].at(self.clock())
        info = file.look()
        if mark is not None and info is not None:
            seen[run_id] = mark, info
        return info

    def _run_ids(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                # no pipes: they would be waited for
                names = [e.name for e in entries if e.is_file(follow_symlinks=False) or e.is_symlink()]
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise StorageError(str(self.directory), 'list', exc) from exc
        found: list[str] = []
        for name in names:
            run_id = unquote(name.removesuffix(_SUFFIX))
            # not a lock, nor a new file, nor something that somebody else keeps here
            with suppress(InvalidRunIdError):
                if self.path(run_id).name == name:
                    found.append(run_id)
        return found

    def _rows(self, run_id: str) -> tuple[list[Row], About]:
        return self._file(run_id).everything()

    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        return self._file(run_id).insert(rows, about)

    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        return self.path(run_id).exists() and self._file(run_id).delete(ended_before)

    def _trim(self, run_id: str, before: datetime) -> int:
        return self._file(run_id).trim(before) if self.path(run_id).exists() else 0
