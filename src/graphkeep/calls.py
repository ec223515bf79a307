"""Calls into a storage that block: on the event loop's thread where they are quick, in another where not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, NamedTuple, TypeVar

from .backend import LockBusy
from .errors import LockTimeoutError
from .offload import finished, pause, redeliver

__all__ = ('Calling', 'call')

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


async def call(
    func: Callable[[], T], elsewhere: Callable[[], Future[S]], how: Calling
) -> tuple[T | S, BaseException | None]:
    """Call `func`, or have it called `elsewhere`; return the result and a cancellation that came meanwhile.

    Raises:
        LockTimeoutError: if the storage was locked for longer than `lock_timeout`.
    """
    interrupted: BaseException | None = None
    waited, wait = 0.0, _POLL[0]
    while True:
        try:
            if how.inline:
                return func(), interrupted
            work = elsewhere()
            interrupted = await finished(work) or interrupted
            return work.result(), interrupted
        except LockBusy:
            if interrupted is not None and not how.stubborn:
                raise interrupted from None
            if waited >= how.lock_timeout:
                redeliver(interrupted)
                raise LockTimeoutError(how.place, how.lock_timeout) from None
        except Exception:
            # the error says what became of the work; the cancellation comes right after it
            redeliver(interrupted)
            raise
        interrupted = await pause(wait, stubborn=how.stubborn) or interrupted
        waited += wait
        wait = min(wait * 1.5, _POLL[1])
