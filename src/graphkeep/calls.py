"""Calls into a storage that block: on the event loop's thread where they are quick, in another where not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import anyio
import anyio.lowlevel

from .backend import LockBusy, TryAgain
from .errors import LockTimeoutError
from .offload import asyncio_task, finished, later, pause, redeliver
from .promise import Promise, Work

__all__ = ('Calling', 'answer', 'call', 'whole')

P = ParamSpec('P')
S = TypeVar('S')
T = TypeVar('T')

_POLL: Final = 0.002, 0.05  # seconds between two tries for a lock: the first and the longest wait


class Calling(NamedTuple):
    """How to call."""

    place: str
    """What is called, for the error."""
    lock_timeout: float
    """How long to wait while somebody else is writing, in seconds."""
    inline: bool
    """Whether to call on the event loop's own thread."""
    stubborn: bool
    """Whether a cancellation is put off while the storage is locked, and not only while the call is made."""
    inline_again: bool = False
    """Whether to call on the event loop's own thread what need not wait elsewhere any more."""


async def call(
    func: Callable[[], T], elsewhere: Callable[[], Work[S]], how: Calling
) -> tuple[T | S, BaseException | None]:
    """Call `func`, or have it called `elsewhere`; return the result and a cancellation that came meanwhile.

    Raises:
        LockTimeoutError: if the storage was locked for longer than `lock_timeout`.
    """
    interrupted: BaseException | None = None
    waited, wait = 0.0, _POLL[0]
    inline = how.inline
    while True:
        try:
            if inline:
                return func(), interrupted
            work = elsewhere()
            interrupted = later(interrupted, await finished(work))
            return work.result(), interrupted
        except LockBusy as busy:
            if interrupted is not None and not how.stubborn:
                raise interrupted from None
            if isinstance(busy, TryAgain):
                if not how.stubborn:
                    await anyio.lowlevel.checkpoint_if_cancelled()
                inline = how.inline_again
                continue
            if inline and not how.inline:  # there is something to wait for again
                inline = False
                continue
            if waited >= how.lock_timeout:
                redeliver(interrupted)
                raise LockTimeoutError(how.place, how.lock_timeout) from None
        except Exception:
            # the error says what became of the work; the cancellation comes right after it
            redeliver(interrupted)
            raise
        interrupted = later(interrupted, await pause(wait, stubborn=how.stubborn))
        waited += wait
        wait = min(wait * 1.5, _POLL[1])


async def answer(func: Callable[[], T], submit: Callable[[Callable[[], T]], Work[T]], how: Calling) -> T:
    """Call `func`, or have it called by `submit`; raise a cancellation that came meanwhile when it has ended.

    Raises:
        LockTimeoutError: if the storage was locked for longer than `lock_timeout`.
    """
    value, interrupted = await call(func, partial(submit, func), how)
    if interrupted is not None:
        raise interrupted
    return value


def whole(verb: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have a verb that was called carried out, whatever is cancelled meanwhile.

    The cancellation is raised when that is done. So who is cancelled knows that it was made; if it could not
    be, its error is raised, and the cancellation comes at the next await.
    """

    @wraps(verb)
    async def called(*args: P.args, **kwargs: P.kwargs) -> T:
        if asyncio_task() is not None:
            return await _whole_in_asyncio(verb(*args, **kwargs))
        return await _whole_in_trio(verb(*args, **kwargs))

    return called


async def _whole_in_trio(verb: Coroutine[Any, Any, T]) -> T:
    values: list[T] = []
    with anyio.CancelScope(shield=True):
        values.append(await verb)
    await anyio.lowlevel.checkpoint_if_cancelled()
    return values[0]


async def _whole_in_asyncio(verb: Coroutine[Any, Any, T]) -> T:
    task, done = asyncio.create_task(verb), Promise[None]()
    task.add_done_callback(lambda _: done.resolve(None))
    interrupted = await finished(done)
    if interrupted is not None:
        if task.cancelled() or task.exception() is None:
            raise interrupted
        redeliver(interrupted)
    return task.result()
