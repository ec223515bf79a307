"""The heartbeat: what is held is renewed in time, by a thread that lives as long as it is needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from graphkeep import OwnershipLostError, StorageError, heartbeat
from graphkeep.backend import LockBusy
from graphkeep.heartbeat import Hold, Keeper


def nothing(*_: object) -> None:
    """Do nothing."""


def renewed() -> bool:
    """Say that the lease was renewed."""
    return True


def raising(exc: Exception) -> Callable[[], bool]:
    """Return a function that raises."""

    def func() -> bool:
        raise exc

    return func


def holding(keeper: Keeper, hold: Hold) -> bool:
    """Whether the keeper still has this hold."""
    return hold in cast('Any', keeper)._holds


def test_next_renewal():
    """After a renewal the next one is due an interval later."""
    now = 100.0
    keeper = Keeper(lambda: now)
    times: list[float] = []
    hold = Hold(10, lambda: not times.append(now), nothing)
    keeper.beat(hold)
    assert (times, hold.due) == ([100.0], 110.0)


@pytest.mark.parametrize(
    'exc', [LockBusy(), StorageError('file', 'write', OSError(28, 'No space left on device'))]
)
def test_missed_renewal(exc: Exception):
    """If the storage is busy or refuses, the renewal is tried again soon and the run is not given up."""
    keeper = Keeper(lambda: 100.0)
    lost: list[OwnershipLostError] = []
    hold = Hold(10, raising(exc), lost.append)
    cast('Any', keeper)._holds.add(hold)
    keeper.beat(hold)
    assert hold.due == 101.0
    assert holding(keeper, hold)
    assert not lost


def test_lost_once():
    """Who has lost the run is told so once, and it is renewed no more."""
    keeper = Keeper(lambda: 100.0)
    lost: list[OwnershipLostError] = []
    loss = OwnershipLostError('run', None)
    hold = Hold(10, raising(loss), lost.append)
    cast('Any', keeper)._holds.add(hold)
    keeper.beat(hold)
    keeper.beat(hold)
    assert lost == [loss]
    assert not holding(keeper, hold)


def test_dropped_before_lost():
    """What was dropped while its renewal was under way is not told that it is lost."""
    keeper = Keeper(lambda: 100.0)
    lost: list[OwnershipLostError] = []
    keeper.beat(Hold(10, raising(OwnershipLostError('run', None)), lost.append))
    assert not lost


def test_nobody_holds_it():
    """What nobody holds any more is renewed no more, and nobody is told."""
    keeper = Keeper(lambda: 100.0)
    lost: list[OwnershipLostError] = []
    hold = Hold(10, lambda: False, lost.append)
    cast('Any', keeper)._holds.add(hold)
    keeper.beat(hold)
    assert not holding(keeper, hold)
    assert not lost


def test_thread_renews_until_dropped():
    """A thread renews what is held, again and again, sooner things first, until it is dropped."""
    keeper = Keeper()
    beats, slow = threading.Semaphore(0), threading.Event()
    late = Hold(60, lambda: not slow.set(), nothing)
    hold = Hold(0.01, lambda: not beats.release(), nothing)
    keeper.hold(late)
    keeper.hold(hold)
    for _ in range(3):
        assert beats.acquire(timeout=5)
    keeper.drop(hold)
    keeper.drop(hold)
    keeper.drop(late)
    assert not slow.is_set()


def test_thread_ends_and_comes_back(monkeypatch: pytest.MonkeyPatch):
    """Without work the thread ends after a while, and a later hold has one again."""
    monkeypatch.setattr(heartbeat, '_IDLE', 0.01)
    keeper = Keeper()
    for beaten in (threading.Event(), threading.Event()):
        hold = Hold(0.01, lambda event=beaten: not event.set(), nothing)
        keeper.hold(hold)
        thread = cast('Any', keeper)._thread
        assert thread.daemon
        assert beaten.wait(5)
        keeper.drop(hold)
        thread.join(5)
        assert not thread.is_alive()
        assert cast('Any', keeper)._thread is None


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
def test_fork(tmp_path: Path):
    """A forked child has a keeper of its own: the parent's thread is not there."""
    hold = Hold(60, renewed, nothing)
    heartbeat.keeper.hold(hold)
    try:
        pid = os.fork()
        if pid == 0:
            beaten = threading.Event()
            fresh = not holding(heartbeat.keeper, hold)
            heartbeat.keeper.hold(Hold(0.01, lambda: not beaten.set(), nothing))
            os._exit(0 if fresh and beaten.wait(5) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        heartbeat.keeper.drop(hold)
