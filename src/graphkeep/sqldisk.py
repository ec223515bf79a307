"""The way of what was committed in a SQLite store to the disk, and who waits for that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Final, TypeAlias

from .commit import Receipt
from .errors import StorageError, another
from .offload import once
from .promise import Promise
from .sqllog import WriteAheadLog

__all__ = ('Disk',)

_LINGERS: Final = 0.05
# seconds that a thread waits for more to wait for: it is at hand sooner than another one
_STAYS: Final = 1.0
# seconds after which another one is asked for all the same: at the end of the process there is none any more

_Outcome: TypeAlias = Receipt | BaseException
_Made: TypeAlias = tuple[Sequence[Receipt], Callable[[Sequence[_Outcome]], object]]


class Disk:
    """What a durable store waits for after a commit.

    SQLite would do it within the transaction (`PRAGMA synchronous = FULL`). Here nobody else is kept from
    writing meanwhile, and commits that need not wait do not. What was committed before lasts with it.
    """

    log: WriteAheadLog | None = None
    """The log, while the store's file is open."""
    busy = False
    """Whether a thread waits for it."""

    def __init__(self, path: Path, submit: Callable[[Callable[[], None]], object]):
        """Make it.

        Args:
            path: The store's file.
            submit: Has a function called in a thread; raises `RuntimeError` if none is to be had.
        """
        self.path = path
        self._submit = submit
        self._mutex = threading.Lock()
        self._made: list[_Made] = []  # and not yet on the disk
        self._lingers = False  # whether the thread waits for something to be made
        self._wake = threading.Lock()  # taken, but to wake it
        self._wake.acquire()

    def lasting(self, receipt: Receipt) -> Promise[Receipt]:
        """Have a thread wait for it, and then say so."""
        promise = Promise[Receipt]()
        self.await_disk([receipt], lambda outcomes: promise.resolve(outcomes[0]))
        return promise

    def await_disk(self, receipts: Sequence[Receipt], tell: Callable[[Sequence[_Outcome]], object]) -> None:
        """Have a thread wait for it, for all that was committed meanwhile at once.

        Args:
            receipts: Of what was committed.
            tell: Called in that thread with what to tell whoever has committed them.
        """
        with self._mutex:
            self._made.append((receipts, tell))
            if self.busy:
                return
            self.busy = True
            lingered, self._lingers = self._lingers, False
        if lingered:
            self._rouse()
            return
        wait = once(self._wait)
        try:
            self._submit(partial(wait, monotonic() + _STAYS))
        except RuntimeError:
            wait(0.0)

    def rest(self) -> None:
        """Have no thread wait for more to be made."""
        with self._mutex:
            if not self._lingers:
                return
            self.busy, self._lingers = True, False
        self._rouse()

    def _rouse(self) -> None:
        with suppress(RuntimeError):  # it has been roused once too often, too late for the last time
            self._wake.release()

    def _wait(self, until: float) -> None:
        while made := self._take(until):
            outcomes = iter(self.synced([receipt for receipts, _ in made for receipt in receipts]))
            for receipts, tell in made:
                tell(list(islice(outcomes, len(receipts))))

    def _take(self, until: float) -> list[_Made]:
        """Take what was made, or what is made within a moment; nothing, if this thread is not to go on."""
        with self._mutex:
            if self._made or monotonic() > until:
                return self._taken()
            self.busy, self._lingers = False, True
        self._wake.acquire(timeout=_LINGERS)
        with self._mutex:
            self._lingers = False
            return self._taken()

    def _taken(self) -> list[_Made]:
        made, self._made = self._made, []
        self.busy = bool(made)
        return made

    def synced(self, outcomes: Sequence[_Outcome]) -> Sequence[_Outcome]:
        """Wait for it, and return what to tell whoever has committed something."""
        if not any(isinstance(outcome, Receipt) for outcome in outcomes):
            return outcomes
        try:
            self.sync()
        except BaseException as exc:  # whatever it is, nobody may wait for ever
            return [
                self._not_lasting(outcome, exc) if isinstance(outcome, Receipt) else outcome
                for outcome in outcomes
            ]
        return outcomes

    def _not_lasting(self, receipt: Receipt, exc: BaseException) -> BaseException:
        if isinstance(exc, OSError):
            return StorageError(str(self.path), 'make durable', exc, receipt=receipt)
        return another(exc)

    def check(self) -> None:
        """Refuse if what was committed before may not have come to it.

        Raises:
            OSError: if that is so.
        """
        if (log := self.log) is not None:
            log.check()

    def sync(self) -> None:
        """Wait until all that was committed is on it.

        Raises:
            OSError: if that cannot be relied on.
        """
        if (log := self.log) is not None:  # which may be closed meanwhile
            log.sync()
