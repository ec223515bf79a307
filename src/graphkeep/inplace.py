"""Runs work where it is awaited, where it would otherwise get a task of the event loop to itself."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import ContextVar, copy_context
from typing import Any, Final, TypeVar

import anyio.lowlevel

from .offload import asyncio_task

__all__ = ('has_room', 'in_place')

T = TypeVar('T')

_DEEPEST: Final = 10
_depth: Final[ContextVar[int]] = ContextVar('graphkeep_in_place', default=0)


def has_room() -> bool:
    """Whether this is not yet deep within such work: all of it is on one stack of Python, which ends."""
    return _depth.get() < _DEEPEST


@types.coroutine
def in_place(work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run the work, which raises nothing, in the current task of the event loop, and return what it returns.

    As in a task of its own, the context variables that it sets are its own.

    - *Cancelling* the current task cancels the work. When that has ended the cancellation goes on, also if
      the work has caught it.
    - A cancellation that comes from elsewhere, such as a future that was cancelled, is the work's business.
    """
    task = asyncio_task()
    cancelled = task.cancelling() if task is not None else 0
    run, resume = copy_context().run, work.send
    run(_depth.set, _depth.get() + 1)
    value: Any = None
    raised: BaseException | None = None
    while True:
        try:
            waiting = run(resume, value)
        except StopIteration as stop:
            result: T = stop.value
            break
        try:
            value, resume = (yield waiting), work.send
        except GeneratorExit:
            run(work.close)
            raise
        except BaseException as exc:
            value, resume = exc, work.throw
            if raised is None and task is not None and _is_cancellation(exc, task, cancelled):
                raised = exc  # and not what is raised by anything that the work awaits after it
    if task is None:
        yield from anyio.lowlevel.checkpoint_if_cancelled().__await__()
    elif raised is not None and task.cancelling() > cancelled:
        raise raised
    return result


def _is_cancellation(exc: BaseException, task: asyncio.Task[Any], before: int) -> bool:
    """Whether this is the task's own cancellation: asyncio throws what any awaited future raises."""
    return isinstance(exc, asyncio.CancelledError) and task.cancelling() > before
