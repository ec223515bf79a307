"""Commits to a SQLite store that are made together with others, and what is told of them."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar

from .backend import Turn
from .commit import Commit, Receipt
from .errors import GraphkeepError
from .promise import Promise
from .status import RELEASE

__all__ = ('Stageable', 'Ticket', 'Told', 'Write', 'enter', 'tell')


class Stageable(Protocol):
    """A run, as far as its commits are written: one at a time, accepted before the next if it is made."""

    def make(self, db: sqlite3.Connection, turn: Turn) -> Receipt:
        """Open the turn, and write what its commit makes of the run, or refuse it before anything is written.

        In a transaction, which it begins if there is none and one statement is not enough.
        """
        ...

    def accept(self) -> None:
        """Learn that the transaction was made."""
        ...

    @staticmethod
    def settles(commit: Commit) -> bool:
        """Whether a commit has to wait for the disk where the store is durable."""
        ...


class Write(Promise[Receipt]):
    """A commit that is made together with others."""

    __slots__ = ('of', 'turn')

    def __init__(self, run: Stageable, turn: Turn):
        super().__init__()
        self.of = run
        self.turn = turn

    def run(self, db: sqlite3.Connection) -> Receipt | GraphkeepError:
        """Write it, or return why it is refused."""
        try:
            return self.of.make(db, self.turn)
        except GraphkeepError as exc:
            self.turn.fail(exc)
            return exc

    def made(self, receipt: Receipt) -> Receipt | Exception:
        """Learn that the transaction was made; return what to tell whoever waits."""
        try:
            self.of.accept()
            self.turn.settle(receipt)
        except Exception as exc:  # which the others are not to hear of
            return exc
        return receipt

    @property
    def settles(self) -> bool:
        """Whether it has to wait for the disk where the store is durable."""
        return self.of.settles(self.turn.commit)


class Ticket(Write):
    """A commit that waits for a thread."""

    __slots__ = ('until',)

    def __init__(self, run: Stageable, turn: Turn, until: float):
        super().__init__(run, turn)
        self.until = until  # when to give up, where its turn cannot be entered

    @property
    def stores(self) -> bool:
        """Whether it stores something: more than that a run is kept or given back."""
        commit = self.turn.commit
        return bool(commit.rows) or any(change.transition is not RELEASE for change in commit.changes)


Told: TypeAlias = deque[tuple[Write, Receipt | BaseException]]
"""Commits, and what is to be told of each."""
_W = TypeVar('_W', bound=Write)


def tell(told: Told) -> None:
    """Tell all of them; whatever interrupts that, nobody may wait for ever."""
    try:
        while told:
            write, outcome = told.popleft()
            write.resolve(outcome)
    finally:
        if told:
            tell(told)


def enter(writes: Sequence[_W], entered: list[_W], others: list[_W]) -> None:
    """Enter the turns of these writes, and sort out whose turn it is not."""
    for write in writes:
        (entered if write.turn.mutex.acquire(blocking=False) else others).append(write)
