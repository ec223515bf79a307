"""One run in one JSON file: what is read, replaced and locked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from itertools import repeat
from pathlib import Path
from time import perf_counter, time_ns
from typing import Final, NamedTuple

from filelock import lock_descriptor, unlock_descriptor

from .backend import Applied, LockBusy, LoggedRun, RunLog, apply
from .codec import Body
from .commit import UNOWNED, About, Commit, Ownership, Receipt, Row, StepRecord, Tail
from .directories import make_directory, sync_directory
from .errors import CorruptSnapshotError, StorageError
from .inhand import AT, LENGTH, InHand, read_entry
from .jsonrun import parse_body, parse_run, render
from .runinfo import RunInfo

__all__ = ('Mark', 'RunFile')

Mark = tuple[int, ...]
"""Tells whether anything was written between two looks at a run."""

_MODE: Final = 0o600
_PROMPT: Final = 0.001
# seconds: what is quicker is not worth a switch of threads, which costs about a tenth of it
_LATER: Final = (1_000, 1_000_000, 2_000_000_000)
# nanoseconds: as finely as file systems tell time, or do not
_TICK: Final = 100_000_000
# nanoseconds: two writes that are further apart have different times on any file system
_BINARY: Final = getattr(os, 'O_BINARY', 0)
_NOFOLLOW: Final = getattr(os, 'O_NOFOLLOW', 0)
_GLANCES: Final = 3
# how often to read at most, without the lock, what is written at the same time
_IN_HAND: Final = frozenset({'pending', 'running'})


class _Version(NamedTuple):
    """Tells one content of a file from another; writers see to it that the time grows with every one."""

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, stat: os.stat_result) -> _Version:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


class RunFile(LoggedRun):
    """One run in one file.

    Its text is kept at hand, so that a commit renders only what it changes and never parses; it is read anew
    when somebody else has written. What is in hand is kept in the lock file, see `inhand`: written in place,
    never synced. All else replaces the file, and waits for the disk if that is asked for.

    Everything at hand counts for the version of the file, and for the slots, that are set last. So whatever
    is interrupted in between, by Ctrl-C too, is read anew.
    """

    path: Path
    """The file, from wherever it is looked at."""

    def __init__(self, path: Path, run_id: str, clock: Callable[[], datetime], *, durable: bool):
        self.run_id = run_id
        self.clock = clock
        self.prompt = False
        self.log = RunLog(run_id)
        self._given = path
        self.path = path.absolute()
        self._durable = durable
        self._mutex = threading.Lock()
        self._version: _Version | None = None
        self._forget()

    @cached_property
    def _path(self) -> str:
        # through links, so that a commit replaces the file and not a link to it
        return os.path.realpath(self.path)

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
        with self._mutex, self._reporting('write'), self._lock() as lock:
            self._refresh(lock)
            applied = apply(self.log, commit, self.clock())
            changes = applied.changed or applied.appended or applied.ownership != self.log.ownership
            if changes and not self._note(lock, applied):
                with self._timed():
                    self._store(applied, lock)
            return applied.receipt

    def tail(self) -> Tail:
        """Return the end of the run."""
        with self._mutex, self._reporting('read'):
            self._refresh_unlocked()
            return self._tail()

    def rows(self) -> list[Row]:
        """Return every row, oldest first."""
        with self._mutex, self._reporting('read'):
            self._refresh_unlocked()
            return self._rows()

    def mark(self) -> Mark | None:
        """Return what differs after every write, `None` if that is not certain of the next one yet."""
        with self._reporting('read'), self._lock_file() as lock:
            try:
                stat = os.stat(self._path)
            except FileNotFoundError:
                return None
            settled = time_ns() - max(stat.st_ctime_ns, stat.st_mtime_ns) > _TICK
            return (*_Version.of(stat), stat.st_ctime_ns, hash(_read_slots(lock))) if settled else None

    def look(self) -> RunInfo | None:
        """Return what is known of the whole run, `None` if nothing is stored of it."""
        with self._mutex, self._reporting('read'):
            self._refresh_unlocked()
            return self.info()

    def everything(self) -> tuple[list[Row], About]:
        """Return every row, oldest first, and what else is known of the run."""
        return self.rows(), self.log.about

    def insert(self, rows: Sequence[Row], about: About) -> bool:
        """Store a whole run, unless there is one."""
        with self._mutex, self._reporting('write'), self._lock() as lock:
            self._refresh(lock)
            if self.log.last:
                return False
            self._rewrite(rows, UNOWNED, about, lock)
            return True

    def delete(self, ended_before: datetime | None = None) -> bool:
        """Delete the files, if the run ended before this moment; return whether there was a run."""
        with self._mutex, self._reporting('delete'), self._lock() as lock:
            try:
                self._refresh(lock)
                there = self._may_be_deleted(ended_before)
            except CorruptSnapshotError:
                there = ended_before is None
            if not there and ended_before is not None:
                return False
            for name in (self._path, self._temporary):
                with suppress(FileNotFoundError):
                    os.unlink(name)
            os.unlink(self._lock_name)  # whoever waits for it finds out that it is not the one any more
            self._forget()
            self._version = None
            return there

    def trim(self, before: datetime) -> int:
        """Delete the oldest rows, those that ended before and that the run has gone past."""
        with self._mutex, self._reporting('write'), self._lock() as lock:
            self._refresh(lock)
            if passed := self.log.passed(before):
                others = [self._content(i)[1] for i in range(passed, len(self.log.records))]
                self._rewrite(self._rows()[passed:], self.log.ownership, self.log.about, lock, others)
            return passed

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
        self._filed = UNOWNED  # that ownership
        self._slots = b''
        self._number = 0  # of the newest entry in them
        self._ended = True  # whether that says that nothing is in hand
        self._held: dict[int, tuple[StepRecord, StepRecord]] = {}  # see `InHand.held`

    def _content(self, index: int) -> tuple[Body, bytes]:
        content = self._contents.get(index)
        return content if content is not None else parse_body(self._element(index))

    def _element(self, index: int) -> bytes:
        end = self._begins[index + 1] - 2 if index + 1 < len(self._begins) else len(self._text)
        return bytes(self._text[self._begins[index] : end])

    def _after(self, applied: Applied) -> InHand | None:
        """Return what is in hand after the commit, if that is all that it changes."""
        if applied.appended or applied.ownership.fence <= self._filed.fence:
            return None
        if any(record.status not in _IN_HAND for record in applied.changed.values()):
            return None
        held = dict(self._held)
        for seq, record in applied.changed.items():
            was = held[seq][0] if seq in held else self.log.records[self.log.index(seq)]
            held[seq] = was, record
        return InHand(self._number + 1, self.log.last, applied.ownership, held) if held else None

    def _note(self, lock: int, applied: Applied) -> bool:
        """Write what the commit makes of the run into the lock file; return whether that is the place."""
        if (in_hand := self._after(applied)) is None or (written := in_hand.write(self._slots)) is None:
            return False
        at, line, slots = written
        os.lseek(lock, at, os.SEEK_SET)
        _write_all(lock, memoryview(line), len(line))
        # Ctrl-C may come between any two of these: with the slots last, they are read again, and what is
        # held first, so that it is known then what the file says
        self._held = dict(in_hand.held)
        self.log.accept(applied)
        self._number, self._ended = in_hand.number, False
        self._slots = slots
        return True

    def _store(self, applied: Applied, lock: int) -> None:
        """Write what the commit makes of the run, and only then take it over."""
        owned_at = self._owned_at
        changed_records = {seq: record for seq, (_, record) in self._held.items()} | applied.changed
        dirty = {self.log.index(seq): record for seq, record in changed_records.items()}
        if applied.ownership != self._filed:
            # it is on record with one snapshot: with one that changes, or that was in hand already
            if owned_at is not None and self._filed.owner is not None:
                dirty.setdefault(owned_at, self.log.records[owned_at])
            owned_at = next(map(self.log.index, reversed(applied.changed or self._held)), owned_at)
            if owned_at is not None:
                dirty.setdefault(owned_at, self.log.records[owned_at])
        first = min(dirty, default=len(self.log.records))
        elements: list[bytes] = []
        for index in range(first, len(self.log.records)):
            if (record := dirty.get(index)) is None:
                elements.append(self._element(index))
            else:
                body, others = self._content(index)
                ownership = applied.ownership if index == owned_at else UNOWNED
                elements.append(render(record, body, ownership, others, None if index else self.log.about))
        about = applied.begins
        for row in applied.appended:
            elements.append(render(row.record, row.body, about=about))
            about = None
        keep = self._begins[first] if first < len(self._begins) else len(self._text)
        changed = b',\n'.join(elements)
        if 0 < first >= len(self._begins):
            changed = b',\n' + changed
        version = self._replace(keep, changed)
        self._take_over(applied, first, keep, changed, elements)
        self._owned_at, self._filed, self._held = owned_at, applied.ownership, {}
        self._version = version  # last: if this was interrupted, the file is read again
        self._end_entry(lock)
        if self._durable:
            try:
                sync_directory(os.path.dirname(self._path))
            except OSError as exc:
                raise StorageError(str(self._given), 'make durable', exc, receipt=applied.receipt) from exc

    def _end_entry(self, lock: int) -> None:
        """Say in the lock file, too, that nothing is in hand of what the file was."""
        if self._ended or (written := InHand(self._number + 1, 0, UNOWNED, {}).write(self._slots)) is None:
            return
        at, line, slots = written
        # it counts no more as it is: this is for the case that an older file is put in the place of this
        with suppress(OSError):
            os.lseek(lock, at, os.SEEK_SET)
            _write_all(lock, memoryview(line), len(line))
            self._number, self._ended = self._number + 1, True
            self._slots = slots

    def _rewrite(
        self,
        rows: Sequence[Row],
        ownership: Ownership,
        about: About,
        lock: int,
        others: Sequence[bytes] = (),
    ) -> None:
        """Write a whole run in the place of what is there, with what `others` adds to each snapshot."""
        in_hand = [row for row in rows if row.record.status in _IN_HAND]
        owned = (in_hand or [rows[-1]])[-1]
        elements = [
            render(
                row.record,
                row.body,
                ownership if row is owned else UNOWNED,
                more,
                about if row is rows[0] else None,
            )
            for row, more in zip(rows, others or repeat(b''), strict=False)
        ]
        text = b',\n'.join(elements)
        version = self._replace(len(b'[\n'), text)
        self._end_entry(lock)
        self._load(b'[\n' + text + b'\n]\n')
        self._version = version
        if self._durable:
            sync_directory(os.path.dirname(self._path))

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
        for seq, record in applied.changed.items():
            if record.status in ('success', 'error', 'cancelled'):
                self._contents.pop(self.log.index(seq), None)
        for index, row in enumerate(applied.appended, start=count):
            if row.record.kind != 'end':
                self._contents[index] = (row.body, b'')

    # ---------------------------------------------------------------------------------------------- the file

    def _refresh_unlocked(self) -> None:
        for _ in range(_GLANCES):
            with self._lock_file() as lock:
                self._refresh(lock)
            try:
                if _Version.of(os.stat(self._path)) == self._version:
                    return
            except FileNotFoundError:
                if self._version is None:
                    return
            # written between the reading of the one and of the other: what was in hand has ended

    @contextmanager
    def _lock_file(self) -> Generator[int | None]:
        """Open the lock file for reading; `None` if there is none, or it is not for this user to read."""
        try:
            lock = os.open(self._lock_name, os.O_RDONLY | _BINARY | _NOFOLLOW)
        except (FileNotFoundError, PermissionError):
            yield None
            return
        try:
            yield lock
        finally:
            os.close(lock)

    def _refresh(self, lock: int | None) -> None:
        """Read what is not at hand as it is.

        The file first: what is in hand of a later one does not count, and what was in hand of it may have
        ended since. So whoever does not hold the lock looks at the file once more, afterwards.
        """
        changed = self._refresh_file()
        slots = _read_slots(lock)
        if changed or slots != self._slots:
            self._take_in_hand(slots)

    def _refresh_file(self) -> bool:
        """Read the file if it is not the one that is at hand; return whether it was not."""
        try:
            stat = os.stat(self._path)
        except FileNotFoundError:
            if self._version is None:
                return False
            self._forget()
            self._version = None
            return True
        if _Version.of(stat) == self._version:
            return False
        try:
            with self._timed():
                with open(self._path, 'rb') as file:
                    version = _Version.of(os.fstat(file.fileno()))
                    data = file.read()
                self._load(data)
        except FileNotFoundError:
            return self._refresh_file()  # it was deleted this very moment
        self._version = version
        return True

    def _take_in_hand(self, slots: bytes) -> None:
        """Replace what is in hand by what the slots say."""
        self._set({seq: was for seq, (was, _) in self._held.items()}, self._filed)
        self._held = {}
        try:
            entry = read_entry(slots)
            in_hand = entry.in_hand(self.log.records, self._filed.fence)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as exc:
            self._version = None  # so that the next use looks again
            self._forget()
            raise CorruptSnapshotError(
                self._lock_name,
                f'is no lock file of this version: {exc!r}. Delete it once no process uses the run any more',
            ) from exc
        if in_hand is not None:
            self._held = dict(in_hand.held)
            self._set({seq: record for seq, (_, record) in self._held.items()}, in_hand.ownership)
        self._number, self._ended = entry.number, not entry.rows
        self._slots = slots  # last: see `_note`

    def _set(self, records: dict[int, StepRecord], ownership: Ownership) -> None:
        self.log.accept(Applied(records, [], ownership, Receipt()))

    def _load(self, data: bytes) -> None:
        run = parse_run(data, place=str(self._given))
        self._forget()
        self._owned_at = run.owned_at
        self._filed = UNOWNED if run.owned_at is None else run.elements[run.owned_at].ownership
        self.log.load((element.row.record for element in run.elements), self._filed, run.about)
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
    def _lock(self) -> Generator[int]:
        name = self._lock_name
        flags = os.O_RDWR | os.O_CREAT | _BINARY | _NOFOLLOW
        try:
            fd = os.open(name, flags, _MODE)
        except FileNotFoundError:
            make_directory(Path(os.path.dirname(self._path)), durable=self._durable)
            fd = os.open(name, flags, _MODE)
        try:
            if not lock_descriptor(fd, blocking=False):
                raise LockBusy
            try:
                if not os.path.samestat(os.fstat(fd), _stat(name)):
                    raise LockBusy  # it was deleted meanwhile: there is another one
                yield fd
            finally:
                unlock_descriptor(fd)  # a child that was forked meanwhile has the descriptor too
        finally:
            os.close(fd)

    @contextmanager
    def _timed(self) -> Generator[None]:
        """Learn from what reads or writes the whole file whether that is quick."""
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


def _read_slots(lock: int | None) -> bytes:
    if lock is None:
        return b''
    os.lseek(lock, AT, os.SEEK_SET)
    return os.read(lock, LENGTH)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        raise LockBusy from None
