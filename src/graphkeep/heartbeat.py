"""Renews the leases of the runs that this process holds: one thread, whatever the event loops are doing.

A thread, so that a node that computes for a minute without awaiting does not lose its run.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .backend import LockBusy
from .errors import GraphkeepError, OwnershipLostError

__all__ = ('Hold', 'Keeper', 'keeper')

_log = logging.getLogger('graphkeep')

_IDLE = 5.0  # seconds after which a thread without work ends


@dataclass(eq=False)
class Hold:
    """A run that is held, and how to go on holding it."""

    interval: float
    """Seconds between two renewals."""
    renew: Callable[[], bool | None]
    """Renews the lease; false if nobody holds the run any more. Called in the keeper's thread."""
    lost: Callable[[OwnershipLostError], None]
    """Called once, in the keeper's thread, when the run turns out to be somebody else's; must not wait."""
    due: float = field(default=0.0, init=False)
    """When the next renewal is due, on the monotonic clock."""


class Keeper:
    """Renews every hold in time, in one thread that lives while there is something to renew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._holds: set[Hold] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes = 0.0

    @property
    def beats(self) -> bool:
        """Whether there is a thread, which there is while there is something to renew, if one can be had."""
        return self._thread is not None

    def hold(self, hold: Hold) -> None:
        """Renew this one from now on, until it is dropped or lost."""
        hold.due = self._clock() + hold.interval
        with self._changed:
            self._holds.add(hold)
            if self._thread is None:
                self._start()
            elif hold.due < self._wakes:
                self._changed.notify()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name='graphkeep-heartbeat', daemon=True)
        try:
            thread.start()
        except RuntimeError:  # too many threads: the lease may run out, and the next hold tries again
            _log.exception('No thread could be started to renew leases')
        else:
            self._thread = thread

    def drop(self, hold: Hold) -> None:
        """Renew this one no more; harmless if it is not held."""
        with self._changed:
            self._holds.discard(hold)

    def _run(self) -> None:
        while due := self._wait():
            for hold in due:
                self.beat(hold)

    def _wait(self) -> list[Hold]:
        """Return the holds that are due, sooner or later; nothing once there are none for a while."""
        with self._changed:
            while True:
                now = self._clock()
                if due := [hold for hold in self._holds if hold.due <= now]:
                    return due
                idle = not self._holds
                self._wakes = min((hold.due for hold in self._holds), default=now + _IDLE)
                self._changed.wait(self._wakes - now)
                if idle and not self._holds:
                    self._thread = None
                    return []

    def beat(self, hold: Hold) -> None:
        """Renew one hold now."""
        hold.due = self._clock() + hold.interval
        try:
            if not hold.renew():
                self.drop(hold)
        except OwnershipLostError as exc:
            with self._changed:
                was_held = hold in self._holds
                self._holds.discard(hold)
            if was_held:
                hold.lost(exc)
        except (LockBusy, GraphkeepError):
            # the storage is busy or refuses: the lease outlasts a missed renewal, so try again soon
            hold.due = self._clock() + hold.interval / 10
        except Exception:
            _log.exception('A lease could not be renewed')  # the thread goes on: it serves other runs too


keeper = Keeper()
"""The keeper of this process."""


def _after_fork() -> None:
    global keeper  # the parent's thread and its lock do not exist in the child
    keeper = Keeper()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
