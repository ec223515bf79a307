"""What one instance has in hand of its run: who makes a commit, and what a commit leaves in hand."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar
from weakref import WeakMethod

import anyio

from . import heartbeat
from .backend import LockBusy, RunBackend, TryAgain, Turn
from .commit import Commit, Ownership, Receipt, Tail, Writer, quick
from .errors import GraphkeepError, OwnershipLostError, RunOwnedError
from .guard import Guard
from .offload import asyncio_task, caller
from .owner import new_owner
from .promise import Work
from .status import CANCEL, CLAIM, FAIL, RECOVER, RELEASE, START, SUCCEED

__all__ = ('Claims', 'Commitment', 'node_guard')

P = ParamSpec('P')
T = TypeVar('T')

_ENDS = (SUCCEED, FAIL, RELEASE)
_writer: Final = quick(Writer)


class Claims:
    """What one instance has in hand of its run, and under which fence."""

    def __init__(self, backend: RunBackend, lease: float):
        self.backend = backend
        self.lease = lease
        self.owner = new_owner(self)
        self.mutex = threading.Lock()
        self.in_hand: set[str] = set()
        self.fence: int | None = None
        self.keeping = False  # the run, also between two of its steps
        self._process = _processes[0]
        self._hold: heartbeat.Hold | None = None
        self._renewing: Work[Receipt] | None = None
        self.guards: set[Guard] = set()
        """What cancels the nodes that run, if the run is lost."""
        # weakly: a persistence that nobody has any more must not keep its run
        self._beat = _weakly(self._renew), _weakly(self._lost)

    def has(self, ownership: Ownership) -> bool:
        """Whether this instance has a run that is so owned."""
        owner = ownership.owner
        return owner is not None and self.fence == ownership.fence and owner.id == self.owner.id

    def keep(self, in_hand: set[str], fence: int) -> None:
        """Know what is in hand now, and renew the lease from now on."""
        self.in_hand, self.fence = in_hand, fence
        if self._hold is None:
            self._hold = heartbeat.Hold(self.lease / 3, *self._beat)
        elif heartbeat.keeper.beats:
            return
        heartbeat.keeper.hold(self._hold)

    def rest(self) -> None:
        """Have nothing in hand any more. The heartbeat finds that out when it is due: a next step is near."""
        self.in_hand = set()
        self.fence = None
        self.keeping = False

    def find_out(self, tail: Tail) -> bool | None:
        """Know what is in hand from what is stored.

        Returns:
            Whether this instance has the run; `None` if a write of it is under way, and nothing was done.
        """
        owner, has = tail.ownership.owner, False
        if not self.mutex.acquire(blocking=False):
            return None
        try:
            if owner is not None and owner.id == self.owner.id:
                # what no owner is on record with may be in another's hands, who does not know of owners
                self.in_hand = {row.record.id for row in tail.open if row.record.owner is not None}
                self.fence, has = tail.ownership.fence, True
            else:
                self.forget()
        finally:
            self.mutex.release()
        return has

    def forget(self) -> None:
        """Have nothing in hand any more, and no heartbeat."""
        self.rest()
        self.hush()

    def hush(self) -> None:
        """Have no heartbeat any more; to be called with the mutex."""
        if self._hold is not None:
            heartbeat.keeper.drop(self._hold)
            self._hold = None

    def _rests(self) -> bool:
        """Whether nothing is in hand, in the heartbeat's thread; there is no heartbeat any more then."""
        if not self.mutex.acquire(blocking=False):
            return False  # a write is under way
        try:
            if self.fence is None:
                self.hush()
            return self.fence is None
        finally:
            self.mutex.release()

    def _renew(self) -> bool:
        """Renew the lease, in the heartbeat's thread; return whether there still is something to keep."""
        if self._renewing is not None and not self._renewing.done():
            return True  # it waits for its turn
        if self._rests():  # asked first, for the storage may be closed by now
            return False
        turn = _Renewal(self, Commit())
        try:
            self.backend.write(turn)
        except _NothingInHandError:
            return False
        except LockBusy:
            if not self.backend.queues:
                raise
            self._renewing = self.backend.queue(turn)  # and the heartbeat goes on meanwhile
            self._renewing.add_done_callback(self._renewed)
        return True

    def _renewed(self, done: Work[Receipt]) -> None:
        exc = done.exception()
        if isinstance(exc, OwnershipLostError):
            self._lost(exc)
        elif isinstance(exc, TryAgain) and (hold := self._hold) is not None:
            heartbeat.keeper.beat(hold)

    def here(self) -> None:
        """Be somebody else in a process that was forked: what the parent has in hand is not the child's."""
        if self._process != _processes[0]:
            self._process = _processes[0]
            self.owner = new_owner(self)
            self._hold = self._renewing = None
            self.forget()

    def _lost(self, exc: OwnershipLostError) -> None:
        with self.mutex:
            self.forget()
        for guard in tuple(self.guards):
            guard.cancel(exc)


class _Write(Turn):
    """A write by one instance; its other ones, and its heartbeat's, wait meanwhile."""

    __slots__ = ('claims',)

    def __init__(self, claims: Claims, commit: Commit):
        self.mutex = claims.mutex  # and not by the base class: a step makes two of these
        self.commit = commit
        self.claims = claims
        """Of the instance."""

    def settle(self, receipt: Receipt) -> None:
        pass

    def fail(self, exc: Exception) -> None:
        pass


class Commitment(_Write):
    """A commit of the instance, to which it is added who makes it."""

    __slots__ = ('gives_up', 'in_hand')

    in_hand: set[str]
    """What will be in hand once it is made; known once it is opened."""
    gives_up: bool
    """Whether it gives the run up; known once it is opened."""

    def open(self) -> Commit:
        """Add who makes it, or refuse what this instance does not have in hand."""
        claims, commit = self.claims, self.commit
        claims.here()
        in_hand = claims.in_hand.copy()
        begun: list[str] = []
        recovers = False
        for change in commit.changes:
            snapshot_id, transition = change.snapshot_id, change.transition
            if transition is START or transition is CLAIM:
                in_hand.add(snapshot_id)
                begun.append(snapshot_id)
            elif transition in _ENDS:
                if snapshot_id not in in_hand:
                    raise OwnershipLostError(claims.backend.run_id, None)
                in_hand.discard(snapshot_id)
            elif transition is CANCEL:
                in_hand.discard(snapshot_id)  # if it had begun
            elif transition is RECOVER:
                if claims.fence is not None and snapshot_id in claims.in_hand:
                    # by this very instance, which lives
                    raise RunOwnedError(claims.backend.run_id, claims.owner, None)
                in_hand.discard(snapshot_id)
                recovers = True
        # what begins and ends in one commit is part of what is in hand already
        take = claims.owner if recovers or (begun and not in_hand.isdisjoint(begun)) else None
        self.in_hand = in_hand
        has = claims.fence is not None or take is not None
        self.gives_up = has and not in_hand and not (claims.keeping and self._goes_on())
        commit.writer = _writer((claims.fence, take, claims.lease, self.gives_up, claims.owner.id))
        return commit

    def _goes_on(self) -> bool:
        """Whether there is something to go on with after this."""
        rows, changes = self.commit.rows, self.commit.changes
        ends = any(row.record.kind == 'end' for row in rows)
        return not ends and bool(rows or any(change.transition is SUCCEED for change in changes))

    def settle(self, receipt: Receipt) -> None:
        """Know what is in hand now."""
        if self.gives_up or not (self.in_hand or self.claims.keeping):
            self.claims.rest()
        else:
            self.claims.keep(self.in_hand, receipt.fence)

    def fail(self, exc: Exception) -> None:
        """Have nothing in hand any more if the run is lost."""
        if isinstance(exc, OwnershipLostError):
            self.claims.forget()


class _Renewal(_Write):
    """The renewal of the lease."""

    def open(self) -> Commit:
        claims = self.claims
        claims.here()
        if claims.fence is None:
            claims.hush()
            raise _NothingInHandError
        self.commit.writer = Writer(claims.fence, claims.owner, claims.lease, holder=claims.owner.id)
        return self.commit


class _NothingInHandError(GraphkeepError):
    """There is no lease to renew any more."""


def _weakly(method: Callable[P, T]) -> Callable[P, T | None]:
    """Return a function that calls the method while its object is there, and then returns `None`."""
    reference = WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        alive = reference()
        return None if alive is None else alive(*args, **kwargs)

    return call


class _NodeGuard(Guard):
    """Cancels the node that runs within it, from any thread."""

    def __init__(self, claims: Claims):
        self._claims = claims


class _TaskGuard(_NodeGuard):
    """On asyncio: cancels the task, and takes that back at the end, as `asyncio.timeout` does.

    A scope of anyio's would do, too, but costs as much as a write to the storage; every node has one.
    """

    def __init__(self, claims: Claims, task: asyncio.Task[Any]):
        self._claims = claims
        self._task = task
        self._inside = self._cancelled = False

    def __enter__(self) -> None:
        self._before = self._task.cancelling()
        self._inside = True
        self._claims.guards.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        self._claims.guards.discard(self)
        self._inside = False
        if not self._cancelled:
            return False
        return self._task.uncancel() <= self._before and isinstance(exc, asyncio.CancelledError)

    def cancel(self, exc: OwnershipLostError) -> None:
        """Cancel the node."""
        self.lost = exc
        with suppress(RuntimeError):  # the event loop has ended, and the node with it
            self._task.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._inside:
            self._cancelled = True
            self._task.cancel()


class _ScopeGuard(_NodeGuard):
    """On trio: cancels a scope."""

    def __init__(self, claims: Claims):
        super().__init__(claims)
        self._scope = anyio.CancelScope()
        self._call = caller()

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._claims.guards.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        self._claims.guards.discard(self)
        swallowed = self._scope.__exit__(kind, exc, tb)
        return bool(swallowed) and self.lost is not None

    def cancel(self, exc: OwnershipLostError) -> None:
        """Cancel the node."""
        self.lost = exc
        with suppress(RuntimeError):  # the event loop has ended, and the node with it
            self._call(self._scope.cancel)


_processes: Final = [os.getpid()]  # the one that this is


def _after_fork() -> None:
    _processes[0] = os.getpid()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def node_guard(claims: Claims) -> Guard:
    """Return what cancels the node that runs within it when the run is lost."""
    task = asyncio_task()
    return _ScopeGuard(claims) if task is None else _TaskGuard(claims, task)
