"""Async code run to its end from code that is not async."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Coroutine
from typing import Any, TypeVar

from ._host import GraphRuntimeError

__all__ = ('run_until_complete',)

T = TypeVar('T')


def run_until_complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine on the thread's event loop; interrupted, cancel it and wait until it has cleaned up.

    Raises:
        GraphRuntimeError: if an event loop is running in this thread.
    """
    loop = _event_loop()
    if loop.is_running():
        coroutine.close()
        raise GraphRuntimeError('`run_sync` cannot be used while an event loop is running: await `run`.')
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except BaseException as exc:
        if not task.done():
            # an interrupted loop leaves the task as it is, its node recorded as running
            task.cancel()
            try:
                loop.run_until_complete(task)
            except asyncio.CancelledError:
                pass
            except Exception as other:  # the interruption must get through all the same
                exc.add_note(f'Cancelled for this, the run raised {other!r}.')
        raise


def _event_loop() -> asyncio.AbstractEventLoop:
    # not `asyncio.run`: what the deps hold, such as an HTTP client, belongs to the loop of the call before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            loop = asyncio.get_event_loop()
    except RuntimeError:
        loop = None
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop
