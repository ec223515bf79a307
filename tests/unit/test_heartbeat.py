"""The heartbeat: what is held is renewed in time, by a thread that lives as long as it is needed."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph, MemoryStore, OwnershipLostError, StorageError, heartbeat
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


def test_unexpected_error(caplog: pytest.LogCaptureFixture):
    """An error that nobody expects in one renewal is logged, and the thread goes on renewing all runs."""
    keeper = Keeper()
    failed, beats = threading.Semaphore(0), threading.Semaphore(0)

    def fail() -> bool:
        failed.release()
        raise ZeroDivisionError('a bug')

    holds = [Hold(0.01, fail, nothing), Hold(0.01, lambda: not beats.release(), nothing)]
    for hold in holds:
        keeper.hold(hold)
    thread = cast('Any', keeper)._thread
    for _ in range(3):
        assert failed.acquire(timeout=5), 'the run whose renewal failed is not tried again'
        assert beats.acquire(timeout=5), 'the other run is not renewed any more'
    assert thread.is_alive()
    for hold in holds:
        keeper.drop(hold)
    assert {(record.name, record.levelname) for record in caplog.records if record.name != 'asyncio'} == {
        ('graphkeep', 'ERROR')
    }
    assert 'ZeroDivisionError: a bug' in caplog.text


@dataclass
class Blocked(BaseNode[None, asyncio.Event, str]):
    """Waits in the event loop."""

    async def run(self, ctx: GraphRunContext[None, asyncio.Event]) -> End[str]:
        await ctx.deps.wait()
        return End('done')


blocked = Graph(nodes=(Blocked,), name='blocked', state_type=type(None), auto_instrument=False)


@pytest.mark.anyio
async def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """If no thread can be started that is logged, the commit stands, and the next hold starts the thread."""
    keeper = Keeper()
    monkeypatch.setattr(heartbeat, 'keeper', keeper)
    persistence = MemoryStore(lease=0.03).run('run')
    persistence.set_graph_types(blocked)
    await persistence.snapshot_node(None, Blocked())

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, 'start', refuse)
        assert await persistence.load_next()
    assert [record.status for record in await persistence.load_history()] == ['pending']
    # other keepers of this process may have something to say, too
    (logged,) = (record for record in caplog.records if "can't start" in str(record.exc_info))
    assert (logged.name, logged.levelname) == ('graphkeep', 'ERROR')
    assert "can't start new thread" in caplog.text
    assert cast('Any', keeper)._thread is None

    renewed_first = threading.Event()
    first: Hold = cast('Any', persistence)._claims._hold
    renew = first.renew
    first.renew = lambda: renewed_first.set() or renew()
    second = Hold(60, renewed, nothing)
    keeper.hold(second)
    assert cast('Any', keeper)._thread.is_alive()
    assert renewed_first.wait(5), 'what was held without a thread is not renewed by the next one'
    await persistence.release()
    keeper.drop(second)


def test_lost_while_the_loop_is_stopped():
    """A loss is told to a stopped loop without waiting, and cancels the node when the loop goes on."""
    persistence = MemoryStore().run('run')

    async def run() -> str:
        return (await blocked.run(Blocked(), deps=asyncio.Event(), persistence=persistence)).output

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(run())
        while (hold := cast('Any', persistence)._claims._hold) is None:
            loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))  # into the node
        teller = threading.Thread(target=hold.lost, args=(OwnershipLostError('run', None),), daemon=True)
        teller.start()
        teller.join(5)
        assert not teller.is_alive(), 'who tells of the loss waits for the loop'
        with pytest.raises(OwnershipLostError):
            loop.run_until_complete(task)
    finally:
        loop.close()


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
