"""Tells whether the state of a run holds what a task has done that has not ended.

A task is driven slice by slice, from one of its awaits to the next, and what the state would be stored as is
compared before and after each slice. So it is known which task has changed the state. What changes it between
two slices, such as a thread or a child task, may belong to any task in flight.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import types
import uuid
from collections.abc import Awaitable, Callable, Generator
from enum import Enum
from typing import Any, Final, Literal, TypeVar, cast

__all__ = ('Flight', 'Tracker', 'Tracking', 'is_immutable')

T = TypeVar('T')

Tracking = Literal['exact', 'barrier']
"""How it is known whether the state may be stored while tasks are in flight.

- `'exact'`: by looking at what each slice of each task changes.
- `'barrier'`: it is stored only while no task is in flight; costs nothing, for very large states.
"""

_SCALARS: Final = (
    *(str, bytes, int, float, complex, bool, types.NoneType, type, Enum, range),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID),
)


def is_immutable(value: object) -> bool:
    """Whether nothing can change a value, nor anything that it holds, by ordinary means."""
    if isinstance(value, _SCALARS):
        return True
    if isinstance(value, tuple | frozenset):
        return all(map(is_immutable, cast('tuple[object, ...]', value)))
    parameters = getattr(type(value), '__dataclass_params__', None)
    return (
        parameters is not None
        and parameters.frozen
        and all(
            is_immutable(getattr(value, field.name, None)) for field in dataclasses.fields(cast(Any, value))
        )
    )


class Flight:
    """A task that has begun and not ended."""

    __slots__ = ('changed', 'dirty')

    def __init__(self) -> None:
        self.dirty = False
        """Whether the state holds something that it has done so far."""
        self.changed = False
        """The same, the slice in which it ends included."""


class Tracker:
    """Knows of each task in flight whether the state holds something that it has done so far.

    While there is one task, and nothing waits to be stored, nothing is compared: what the state was stored as
    last tells the same, when that changes.
    """

    def __init__(self, dump: Callable[[], bytes] | None, tracking: Tracking, stored: bytes):
        """Make the tracker.

        Args:
            dump: What the state would be stored as now; `None` if nothing can change it.
            tracking: How to know.
            stored: What it was stored as last.
        """
        self._dump = dump
        self._exact = tracking == 'exact'
        self._flights: set[Flight] = set()
        self._seen: object = None
        self._watching = False
        self.stored: object = stored
        """What the state was stored as last."""

    @property
    def matters(self) -> bool:
        """Whether anything can change the state."""
        return self._dump is not None

    @property
    def in_flight(self) -> int:
        """How many tasks are in flight."""
        return len(self._flights)

    def may_store(self) -> bool:
        """Whether the state holds nothing that a task in flight has done."""
        if self._dump is None:
            return True
        if not self._exact:
            return not self._flights
        if self._flights:
            self.watch()
            self._look_between()
        return not any(flight.dirty for flight in self._flights)

    def enter(self, flight: Flight) -> None:
        """A task begins."""
        if self._flights:
            self.watch()
        self._flights.add(flight)

    def leave(self, flight: Flight) -> None:
        """A task has ended."""
        self._flights.discard(flight)

    def watch(self) -> None:
        """Compare from now on; what a task that was alone has done so far is seen by what was stored last."""
        if self._watching or self._dump is None or not self._exact:
            return
        self._watching = True
        self._seen = self.image()
        if self._seen != self.stored:
            for flight in self._flights:
                flight.dirty = flight.changed = True

    def relax(self) -> None:
        """Everything that had to be stored is; compare no more if there is at most one task."""
        if len(self._flights) < 2:
            self._watching = False

    def settle(self) -> None:
        """What has changed just now was changed by no task in flight."""
        if self._watching:
            self._seen = self.image()

    def check(self) -> None:
        """See whether something has changed since the last slice."""
        if self._watching and self._flights:
            self._look_between()

    def has_changed(self) -> bool:
        """Whether the state is not what was stored last; for a task that ended alone."""
        return self._dump is not None and self.image() != self.stored

    @property
    def watching(self) -> bool:
        """Whether slices are compared now."""
        return self._watching

    @types.coroutine
    def drive(self, flight: Flight, work: Awaitable[T], *, ends: bool) -> Generator[Any, Any, T]:
        """Await the work, slice by slice; `ends` tells whether the task ends with it."""
        steps = work.__await__()
        if self._dump is None or not self._exact:
            return (yield from steps)
        resume: Callable[[Any], Any] = steps.send
        value: Any = None
        while True:
            if self._watching:
                self._look_between()
            try:
                waiting = resume(value)
            except StopIteration as stop:
                self._look_after(flight, ended=ends)
                return stop.value
            except BaseException:
                self._look_after(flight, ended=True)
                raise
            self._look_after(flight, ended=False)
            try:
                value = yield waiting
                resume = steps.send
            except GeneratorExit:
                steps.close()
                raise
            except BaseException as exc:
                value, resume = exc, steps.throw

    def _look_between(self) -> None:
        now = self.image()
        if now != self._seen:
            self._seen = now
            for flight in self._flights:
                flight.dirty = flight.changed = True

    def _look_after(self, flight: Flight, *, ended: bool) -> None:
        if not self._watching:
            return
        now = self.image()
        if now != self._seen:
            self._seen = now
            flight.changed = True
            flight.dirty = flight.dirty or not ended

    def image_to_store(self) -> object:
        """Return the same right after `may_store` has said yes, which has looked already."""
        return self._seen if self._watching and self._flights else self.image()

    def image(self) -> object:
        """Return what the state would be stored as now; if that cannot be known, what equals nothing."""
        if self._dump is None:
            return b''
        try:
            return self._dump()
        except Exception:
            return object()  # it differs from everything: whether it has changed cannot be known
