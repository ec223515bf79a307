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

__all__ = ('in_thread', 'pause')

T = TypeVar('T')


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix='graphkeep')


def _in_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False


async def in_thread(func: Callable[[], T]) -> tuple[T, BaseException | None]:
    """Run `func` in a thread to its end, and return what it returned with the cancellation that came meanwhile.

    A cancellation of an anyio or trio scope is left to the caller's next checkpoint. asyncio's own `Task.cancel()`
    passes through anyio's shields and comes once: it is caught, the end awaited, and handed to the caller to raise.
    """
    with anyio.CancelScope(shield=True):
        if not _in_asyncio():
            return await anyio.to_thread.run_sync(func), None
        return await _in_asyncio_thread(func)


async def _in_asyncio_thread(func: Callable[[], T]) -> tuple[T, BaseException | None]:
    work: Future[T] = _threads().submit(func)
    waiter = asyncio.wrap_future(work)
    interrupted: BaseException | None = None
    while True:
        try:
            return await asyncio.shield(waiter), interrupted
        except asyncio.CancelledError as exc:
            if waiter.cancelled():
                raise
            interrupted = exc


async def pause(seconds: float, *, stubborn: bool) -> BaseException | None:
    """Sleep; a stubborn sleeper is not woken by a cancellation but returns it, for the caller to raise later."""
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
