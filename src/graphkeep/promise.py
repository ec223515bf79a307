"""`Promise`: what one thread will come to, for another to learn without waiting in the meantime."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from typing import Any, Final, Generic, Protocol, TypeVar, cast

__all__ = ('Promise', 'Work')

T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)


class Work(Protocol[T_co]):
    """What is done elsewhere: a `Promise`, or a `concurrent.futures.Future`."""

    def done(self) -> bool:
        """Whether it has come to an end."""
        ...

    def result(self) -> T_co:
        """Return what it came to, or raise that; to be called once it has ended."""
        ...

    def exception(self) -> BaseException | None:
        """Return what it raised; to be called once it has ended."""
        ...

    def add_done_callback(self, func: Callable[[Any], object], /) -> object:
        """Have `func` called with this, once, as soon as it has ended: by whoever ends it, or now."""
        ...


_log = logging.getLogger('graphkeep')

_UNKNOWN: Final = InvalidStateError('it has not ended')


class Promise(Generic[T]):
    """Work that is ended by `resolve`.

    A `concurrent.futures.Future` could do the same. It can be waited for as well, and makes a lock and a
    condition for that, which a step that waits for the disk feels.
    """

    __slots__ = ('_funcs', '_outcome')

    def __init__(self) -> None:
        self._outcome: object = _UNKNOWN
        self._funcs: list[Callable[[Any], object]] = []

    def resolve(self, outcome: T | BaseException) -> None:
        """Be what it came to, or what it raised; to be called once, by any thread."""
        self._outcome = outcome
        self._call()

    def done(self) -> bool:
        """Whether it has come to an end."""
        return self._outcome is not _UNKNOWN

    def result(self) -> T:
        """Return what it came to, or raise that; to be called once it has ended."""
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return cast(T, self._outcome)

    def exception(self) -> BaseException | None:
        """Return what it raised; to be called once it has ended."""
        return self._outcome if isinstance(self._outcome, BaseException) else None

    def add_done_callback(self, func: Callable[[Any], object], /) -> None:
        """Have `func` called with this, once, as soon as it has ended: by whoever ends it, or now.

        What it raises is logged.
        """
        self._funcs.append(func)
        if self._outcome is not _UNKNOWN:
            self._call()

    def _call(self) -> None:
        # each side writes before it looks what the other has written, so at least one calls; `pop` lets one
        while self._funcs:
            try:
                func = self._funcs.pop(0)
            except IndexError:
                return
            try:
                func(self)
            except Exception:
                _log.exception('%r could not be told what came of its work', func)
