"""Waiting for the disk: in one thread, which is kept for a moment, for all that was committed meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest

from graphkeep import StorageError, sqldisk
from graphkeep.commit import Receipt
from graphkeep.promise import Promise
from graphkeep.sqldisk import Disk

PATIENCE = 10.0


class Log:
    """Stands for the log: tells how often it was waited for, and whether by two threads at once."""

    def __init__(self) -> None:
        self.synced = 0
        self.threads: list[int] = []
        self.crowded = False
        self.let_go = threading.Event()
        self.let_go.set()
        self.fails_with: BaseException | None = None
        self._one = threading.Lock()

    def sync(self) -> None:
        """Wait until let go."""
        if not self._one.acquire(blocking=False):
            self.crowded = True
            return
        try:
            assert self.let_go.wait(PATIENCE)
            self.synced += 1
            self.threads.append(threading.get_ident())
            if self.fails_with is not None:
                raise self.fails_with
        finally:
            self._one.release()


class Made:
    """A disk with its log and its threads."""

    def __init__(self, tmp_path: Path):
        self.pool = ThreadPoolExecutor(4)
        self.submitted = 0
        self.log = Log()
        self.disk = Disk(tmp_path / 'runs.db', self._submit)
        self.disk.log = cast(Any, self.log)

    def _submit(self, func: Callable[[], None]) -> object:
        self.submitted += 1
        return self.pool.submit(func)


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """A disk, and no thread of it left at the end."""
    made = Made(tmp_path)
    yield made
    made.log.let_go.set()
    made.disk.rest()
    made.pool.shutdown()
    assert not made.disk.busy


def ended(*promises: Promise[Receipt]) -> None:
    """Wait until they are resolved."""
    until = time.monotonic() + PATIENCE
    while not all(promise.done() for promise in promises):
        assert time.monotonic() < until, 'somebody waits for ever'
        time.sleep(0.0005)


def test_together(made: Made):
    """What is committed while a thread waits is waited for next, all of it at once; busy until then."""
    assert not made.disk.busy
    made.log.let_go.clear()
    first = made.disk.lasting(Receipt(1))
    others = [made.disk.lasting(Receipt(n)) for n in range(2, 10)]
    assert made.disk.busy
    assert not any(promise.done() for promise in (first, *others))
    made.log.let_go.set()
    ended(first, *others)
    assert [promise.result().fence for promise in (first, *others)] == list(range(1, 10))
    assert made.log.synced <= 2


def test_thread_is_kept(made: Made, monkeypatch: pytest.MonkeyPatch):
    """The thread waits for more to be made: what comes soon has it at hand."""
    monkeypatch.setattr(sqldisk, '_LINGERS', PATIENCE)
    for number in range(20):
        ended(made.disk.lasting(Receipt(number)))
    assert made.submitted == 1
    assert len(set(made.log.threads)) == 1


def test_thread_ends(made: Made, monkeypatch: pytest.MonkeyPatch):
    """It does not wait for long, and not at all when it is told to; then another one is asked for."""
    monkeypatch.setattr(sqldisk, '_LINGERS', 0.001)
    disk: Any = made.disk
    ended(disk.lasting(Receipt()))
    while disk.busy or disk._lingers:
        time.sleep(0.001)
    ended(disk.lasting(Receipt()))
    assert made.submitted == 2
    monkeypatch.setattr(sqldisk, '_LINGERS', 1000 * PATIENCE)
    ended(made.disk.lasting(Receipt()))
    made.disk.rest()
    made.pool.shutdown()  # which waits for its threads


class Wake:
    """Stands for what wakes the thread, so that something happens at a moment that is hard to meet."""

    def __init__(self, wake: threading.Lock, disk: Disk):
        self._wake = wake
        self._disk = disk
        self.late: list[Promise[Receipt]] = []

    def acquire(self, timeout: float = -1) -> bool:
        """Wait; the first time nobody comes, but for a commit right after that."""
        if timeout > 0 and not self.late:
            self.late.append(self._disk.lasting(Receipt(9)))
            return False
        return self._wake.acquire(timeout=timeout)

    def release(self) -> None:
        """Wake it; so that nobody asks for another thread, or takes the file away, it is busy by then."""
        assert self._disk.busy
        self._wake.release()


def test_made_at_the_last_moment(made: Made, monkeypatch: pytest.MonkeyPatch):
    """What is made just when the thread has waited long enough is waited for, and so is what comes then."""
    disk: Any = made.disk
    wake = Wake(disk._wake, disk)
    monkeypatch.setattr(disk, '_wake', wake)
    monkeypatch.setattr(sqldisk, '_LINGERS', PATIENCE)
    ended(disk.lasting(Receipt()))
    while not wake.late:
        time.sleep(0.001)
    ended(*wake.late)
    for _ in range(5):
        ended(disk.lasting(Receipt()))
    disk.rest()
    made.pool.shutdown()
    assert not made.log.crowded


def test_interrupted_before_the_thread_is_woken(made: Made, monkeypatch: pytest.MonkeyPatch):
    """Where a thread is interrupted just before it wakes the one that waits, nobody waits for ever."""
    disk: Any = made.disk
    ended(disk.lasting(Receipt()))
    while not disk._lingers:
        time.sleep(0.0005)

    def rouse() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, '_rouse', rouse)
        with pytest.raises(KeyboardInterrupt):
            disk.lasting(Receipt())
    for _ in range(5):
        ended(disk.lasting(Receipt()))


def test_thread_is_not_kept_for_ever(made: Made, monkeypatch: pytest.MonkeyPatch):
    """If more is made again and again, another thread is asked for: at the end there is none any more."""
    monkeypatch.setattr(sqldisk, '_STAYS', 0.0)
    for number in range(3):
        ended(made.disk.lasting(Receipt(number)))
        while made.disk.busy:
            time.sleep(0.001)
    assert made.submitted == 3


def test_without_threads(tmp_path: Path):
    """Where no thread is to be had it is waited for at once, and for nothing more."""

    def submit(func: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    disk, log = Disk(tmp_path / 'runs.db', submit), Log()
    disk.log = cast(Any, log)
    cast(Any, disk)._wake = None  # which whoever lingers would wait for
    assert all(disk.lasting(Receipt()).done() for _ in range(3))
    assert log.synced == 3
    assert not disk.busy


@pytest.mark.parametrize('error', [OSError(5, 'bad disk'), MemoryError()])
def test_failures(made: Made, error: BaseException):
    """If it fails, whoever waits is told, and what is committed later is not lost from sight."""
    made.log.fails_with = error
    promises = [made.disk.lasting(Receipt(n)) for n in range(5)]
    ended(*promises)
    for promise in promises:
        found = promise.exception()
        assert isinstance(found, StorageError if isinstance(error, OSError) else MemoryError)
        if isinstance(found, StorageError):
            assert found.receipt is not None, 'it was made'
    made.log.fails_with = None
    last = made.disk.lasting(Receipt(7))
    ended(last)
    assert last.result().fence == 7


def test_race(made: Made, monkeypatch: pytest.MonkeyPatch):
    """Whatever comes between the moments of its thread, everybody is told, and one thread waits at a time."""
    monkeypatch.setattr(sqldisk, '_LINGERS', 0.0003)
    promises: list[Promise[Receipt]] = []

    def commit(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 -- nothing is secret
        for _ in range(300):
            promises.append(made.disk.lasting(Receipt()))
            if chance.random() < 0.3:
                made.disk.rest()
            if chance.random() < 0.5:
                time.sleep(chance.choice((0.0001, 0.0003, 0.0006)))

    threads = [threading.Thread(target=commit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended(*promises)
    assert len(promises) == 1_200
    assert not made.log.crowded
