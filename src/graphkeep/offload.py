"""Runs blocking work in a thread and waits for its end, whatever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import anyio
import anyio.to_thread

__all__ = ('caller', 'in_thread', 'pause', 'redeliver')

T = TypeVar('T')


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix='graphkeep')


def _in_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


async def in_thread(func: Callable[[], T]) -> tuple[Future[T], BaseException | None]:
    """Run `func` in a thread to its end; return how it went, and a cancellation that came meanwhile.

    A cancellation of an anyio or trio scope is left to the caller's next checkpoint. asyncio's own
    `Task.cancel()` passes through anyio's shields and comes once: it is caught, the end awaited, and handed
    to the caller to raise, or to `redeliver`.
    """
    work: Future[T] = Future()
    interrupted: BaseException | None = None
    with anyio.CancelScope(shield=True):
        if _in_asyncio():
            work, interrupted = await _in_asyncio_thread(func)
        else:
            await anyio.to_thread.run_sync(_settle, work, func)
    return work, interrupted


def _settle(work: Future[T], func: Callable[[], T]) -> None:
    try:
        work.set_result(func())
    except BaseException as exc:  # whatever it is, it belongs to whoever asks for the result
        work.set_exception(exc)


async def _in_asyncio_thread(func: Callable[[], T]) -> tuple[Future[T], BaseException | None]:
    work = _threads().submit(func)
    waiter = asyncio.wrap_future(work)
    interrupted: BaseException | None = None
    while not waiter.done():
        try:
            await asyncio.wait([waiter])
        except asyncio.CancelledError as exc:
            interrupted = exc
    waiter.exception()  # is the caller's to see, in `work`
    return work, interrupted


def redeliver(interrupted: BaseException | None) -> None:
    """Cancel the current task with a cancellation that was caught, so that its next await raises it."""
    task = asyncio.current_task() if interrupted is not None else None
    if task is not None and interrupted is not None:
        task.uncancel()
        task.cancel(*interrupted.args)


def caller() -> Callable[[Callable[[], object]], object]:
    """Return what has a function called in the running event loop, from any thread, without waiting."""
    if _in_asyncio():
        return asyncio.get_running_loop().call_soon_threadsafe
    import trio  # the library that is running, so it is there

    return trio.lowlevel.current_trio_token().run_sync_soon


async def pause(seconds: float, *, stubborn: bool) -> BaseException | None:
    """Sleep; a stubborn sleeper returns a cancellation instead of raising it."""
    if not stubborn:
        await anyio.sleep(seconds)
        return None
    try:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class() as exc:
        return exc
    return None


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # the parent's threads do not exist in the child
