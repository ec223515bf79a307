"""Blocking work in threads: it ends before anything else goes on, and no cancellation is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest

from graphkeep.offload import finished, pause, redeliver, submit

pytestmark = pytest.mark.anyio


@pytest.mark.both_backends
async def test_in_thread():
    """The work is done in another thread, and its result is handed over."""
    work = submit(threading.get_ident)
    interrupted = await finished(work)
    assert work.result() != threading.get_ident()
    assert interrupted is None


@pytest.mark.both_backends
async def test_failing_work():
    """What the work raises is for whoever asks for its result."""
    work = submit(lambda: int('x'))
    assert await finished(work) is None
    with pytest.raises(ValueError, match='invalid literal'):
        work.result()


@pytest.mark.both_backends
async def test_scope_waits_for_the_work():
    """A cancelled scope does not abandon the work: its end is awaited, and the next await is cancelled."""
    go, done = threading.Event(), threading.Event()

    def func() -> None:
        go.wait(5)
        done.set()

    with anyio.CancelScope() as scope:
        scope.cancel()
        threading.Timer(0.02, go.set).start()
        await finished(submit(func))
        assert done.is_set()
        await anyio.lowlevel.checkpoint()
        pytest.fail('the cancellation was swallowed')
    assert scope.cancelled_caught


@pytest.mark.parametrize('times', [1, 3])
@pytest.mark.parametrize('fails', [False, True])
async def test_task_cancel_waits_for_the_work(times: int, fails: bool):
    """`Task.cancel()`, once or often, does not abandon the work and is handed over at its end."""
    begun, go, done = threading.Event(), threading.Event(), threading.Event()

    def func() -> str:
        begun.set()
        go.wait(5)
        done.set()
        if fails:
            raise ValueError('failed')
        return 'done'

    work = submit(func)
    task = asyncio.create_task(finished(work))
    await asyncio.sleep(0)  # it waits from here on, though the work may have begun before
    while not begun.is_set():  # noqa: ASYNC110 -- what is waited for happens in a thread
        await asyncio.sleep(0.001)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    interrupted = await task
    assert done.is_set()
    assert isinstance(interrupted, asyncio.CancelledError)
    assert isinstance(work.exception(), ValueError) if fails else work.result() == 'done'


@pytest.mark.both_backends
async def test_pause():
    """A pause may be cancelled; a stubborn one goes on to its end."""
    with anyio.move_on_after(0.01) as scope:
        await pause(5, stubborn=False)
    assert scope.cancelled_caught
    with anyio.move_on_after(0.01) as scope:
        await pause(0.02, stubborn=True)
    assert not scope.cancelled_caught


async def test_stubborn_pause_of_a_task():
    """A stubborn pause catches `Task.cancel()`, which comes once, and returns it for later."""
    task = asyncio.create_task(pause(5, stubborn=True))
    await asyncio.sleep(0)
    task.cancel()
    assert isinstance(await task, asyncio.CancelledError)


async def refused() -> None:
    """Wait for work, be cancelled meanwhile, and raise the error of the work."""
    interrupted = await finished(submit(partial(time.sleep, 0.05)))
    redeliver(interrupted)
    raise ValueError('it failed')


async def test_cancellation_after_an_error():
    """A cancellation that an error goes before is raised at the next await."""
    reached = list[str]()

    async def main() -> None:
        with pytest.raises(ValueError, match='it failed'):
            await refused()
        reached.append('the error')
        await asyncio.sleep(0)
        reached.append('what comes then')

    task = asyncio.create_task(main())
    await asyncio.sleep(0.01)
    task.cancel('stop')
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached == ['the error']


@pytest.mark.parametrize('outer', [True, False])
@pytest.mark.parametrize('inner', [asyncio.timeout, anyio.fail_after, anyio.move_on_after])
async def test_cancelled_beside_a_timeout(inner: Callable[[float], Any], outer: bool):
    """What else was asked for while an inner timeout ran out is not taken back with that when it is left."""
    reached = list[str]()

    async def refused_within() -> None:
        with pytest.raises(ValueError, match='it failed'):
            await within(inner(0.01))
        reached.append('the error')
        await asyncio.sleep(5)
        reached.append('what comes then')

    async def timed() -> None:
        async with asyncio.timeout(0.03):
            await refused_within()

    task = asyncio.create_task(timed() if outer else refused_within())
    if not outer:
        await asyncio.sleep(0.03)
        task.cancel()
    with pytest.raises(TimeoutError if outer else asyncio.CancelledError):
        await task
    assert reached == ['the error']


async def within(limit: Any) -> None:
    """Be refused within this limit, whichever library it is of."""
    if isinstance(limit, asyncio.Timeout):
        async with limit:
            await refused()
    else:
        with limit:
            await refused()


@pytest.mark.parametrize('limit', [asyncio.timeout, anyio.fail_after, anyio.move_on_after])
async def test_timeout_that_was_left(limit: Callable[[float], Any]):
    """A timeout that ran out cancels nothing any more once it was left with an error."""
    with pytest.raises(ValueError, match='it failed'):
        await within(limit(0.01))
    for _ in range(3):
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
