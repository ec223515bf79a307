"""Runs blocking work in threads and waits for its end, whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar, overload

import anyio

from .promise import Work

__all__ = (
    'Threads',
    'asked',
    'asyncio_task',
    'caller',
    'caught',
    'current_task',
    'finished',
    'later',
    'once',
    'outcome',
    'pause',
    'redeliver',
    'submit',
)

P = ParamSpec('P')
T = TypeVar('T')


class Threads:
    """Threads of somebody's own, so that what waits there keeps nobody else waiting."""

    def __init__(self, name: str = 'graphkeep'):
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._mutex = threading.Lock()
        _all.add(self)

    def submit(self, func: Callable[[], T]) -> Future[T]:
        """Run `func` in one of them."""
        with self._mutex:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix=self._name)
            return self._pool.submit(func)

    def forked(self) -> None:
        """Begin anew: the parent's threads do not exist in the child."""
        self._mutex = threading.Lock()
        self._pool = None


_all: weakref.WeakSet[Threads] = weakref.WeakSet()
_shared = Threads()


def asyncio_task() -> asyncio.Task[Any] | None:
    """Return the current task of asyncio, `None` on trio, also where trio runs as asyncio's guest."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def current_task() -> object:
    """Return the current task of the event loop, of asyncio or trio."""
    if (task := asyncio_task()) is not None:
        return task
    import trio  # the library that is running, so it is there

    return trio.lowlevel.current_task()


def once(func: Callable[P, object]) -> Callable[P, None]:
    """Return what calls `func` the first time that it is called, by whatever thread, and not again.

    A pool of threads that can start none keeps what it was given all the same, for the next one it starts.
    """
    first = threading.Lock()

    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        if first.acquire(blocking=False):
            func(*args, **kwargs)

    return called


def submit(func: Callable[[], T]) -> Future[T]:
    """Run `func`, which waits for nobody, in a thread that all of this process share."""
    return _shared.submit(func)


async def finished(work: Work[Any]) -> BaseException | None:
    """Wait until the work is done, whatever is cancelled; return a cancellation that came meanwhile.

    On trio a cancellation is left to the caller's next checkpoint. On asyncio it is caught, the end awaited,
    and handed to the caller to raise, or to `redeliver`: `Task.cancel()` comes only once, and passes through
    anyio's shields.
    """
    if work.done():
        return None
    if asyncio_task() is not None:
        return await _finished_in_asyncio(work)
    call = caller()
    with anyio.CancelScope(shield=True):
        while not work.done():
            event = anyio.Event()
            work.add_done_callback(_waker(call, event.set))
            await event.wait()
    return None


async def outcome(work: Work[T]) -> T:
    """Wait until the work is done; return what it came to, unless a cancellation came meanwhile: raise that.

    If it came to an error, that is raised, and the cancellation comes at the next await.
    """
    interrupted = await finished(work)
    try:
        value = work.result()
    except Exception:
        redeliver(interrupted)
        raise
    if interrupted is not None:
        raise interrupted
    return value


async def _finished_in_asyncio(work: Work[Any]) -> BaseException | None:
    loop, before = asyncio.get_running_loop(), asked()
    waiter = loop.create_future()
    work.add_done_callback(
        _waker(loop.call_soon_threadsafe, lambda: waiter.done() or waiter.set_result(None))
    )
    try:
        await waiter
    except asyncio.CancelledError as exc:
        interrupted: BaseException = caught(exc, before)
    else:
        return None
    with anyio.CancelScope(shield=True):  # not before: it costs more than all the rest
        while not work.done():
            event = asyncio.Event()
            work.add_done_callback(_waker(loop.call_soon_threadsafe, event.set))
            try:
                await event.wait()
            except asyncio.CancelledError as exc:
                interrupted = later(interrupted, exc)
    return interrupted


def _waker(call: Callable[[Callable[[], object]], object], wake: Callable[[], object]) -> Callable[..., None]:
    def done(work: Work[Any]) -> None:
        with suppress(RuntimeError):  # the event loop has ended, and whoever waited in it
            call(wake)

    return done


def redeliver(interrupted: BaseException | None) -> None:
    """Cancel the current task with a cancellation that was caught, so that its next await raises it.

    Unless whoever asked for it takes that back before, as a timeout does when it is left, or the task ends.
    """
    task = asyncio.current_task() if interrupted is not None else None
    if task is not None and interrupted is not None:
        # not now: before Python 3.13 a task that is to be cancelled is, even if that is taken back
        asyncio.get_running_loop().call_soon(_cancel_again, task, interrupted)


def _cancel_again(task: asyncio.Task[Any], interrupted: BaseException) -> None:
    if not task.done() and task.cancelling() > vars(interrupted).get(_BEFORE, 0):
        task.uncancel()
        task.cancel(*interrupted.args)


_BEFORE: Final = '_graphkeep_before'
# how often a task had been asked to be cancelled, and not taken that back, before a cancellation


def asked() -> int:
    """Return how often this task was asked to be cancelled, and that was not taken back."""
    task = asyncio_task()
    return 0 if task is None else task.cancelling()


def caught(exc: BaseException, before: int) -> BaseException:
    """Return a cancellation that was caught, with what `redeliver` has to know of it."""
    # what was asked for before and is caught only now counts as well
    vars(exc)[_BEFORE] = max(0, min(before, asked() - 1))
    return exc


@overload
def later(first: BaseException, second: BaseException | None) -> BaseException: ...


@overload
def later(first: BaseException | None, second: BaseException | None) -> BaseException | None: ...


def later(first: BaseException | None, second: BaseException | None) -> BaseException | None:
    """Return the second of two cancellations, which stands for both; one of them, if there is no other."""
    if first is not None and second is not None:
        vars(second)[_BEFORE] = vars(first).get(_BEFORE, 0)
    return second or first


def caller() -> Callable[[Callable[[], object]], object]:
    """Return what has a function called in the running event loop, from any thread, without waiting."""
    if asyncio_task() is not None:
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio  # the library that is running, so it is there

    return trio.lowlevel.current_trio_token().run_sync_soon


async def pause(seconds: float, *, stubborn: bool) -> BaseException | None:
    """Sleep; a stubborn sleeper returns a cancellation instead of raising it."""
    if not stubborn:
        await anyio.sleep(seconds)
        return None
    before = asked()
    try:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class() as exc:
        return caught(exc, before)
    return None


def _after_fork() -> None:
    for threads in tuple(_all):
        threads.forked()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
