"""The persistence of a run in a store: encoded snapshots, one owner at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, ParamSpec, TypeVar
from weakref import WeakMethod

import anyio

from . import _host, heartbeat
from ._host import RunEndT, StateT
from .backend import LockBusy, RunBackend
from .codec import Codec
from .commit import Commit, Receipt, Row, Tail, Writer
from .errors import LockTimeoutError, OwnershipLostError, RunOwnedError, StorageError
from .guard import Guard
from .offload import caller, in_thread, pause, redeliver
from .owner import new_owner
from .persistence import StatePersistence
from .snapshots import Snapshot
from .status import CLAIM, FAIL, RECOVER, RELEASE, START, SUCCEED

__all__ = ('LEASE', 'LOCK_TIMEOUT', 'StoredStatePersistence')

P = ParamSpec('P')
T = TypeVar('T')

LEASE = 30.0
"""How long a run stays its owner's without a renewal, in seconds, unless told otherwise."""
LOCK_TIMEOUT = 10.0
"""How long a call waits while somebody else is writing, in seconds, unless told otherwise."""

_POLL = 0.002, 0.05  # seconds between two tries for a lock: the first and the longest wait
_BEGINS = (CLAIM, START)
_ENDS = (SUCCEED, FAIL, RELEASE)


class StoredStatePersistence(StatePersistence[StateT, RunEndT]):
    """The persistence of one run over a `RunBackend`.

    - *Ownership*: starting a node, or being handed one, takes the run; the end of the step gives it up. While
      it is held the lease is renewed in the background. A write by a former owner is refused with
      `OwnershipLostError`.
    - *Faithful*: with `verify=True` every snapshot is decoded again before it is written, and refused with
      `UnfaithfulSnapshotError` if that is not what was given.
    """

    def __init__(
        self,
        backend: RunBackend,
        *,
        lease: float = LEASE,
        lock_timeout: float = LOCK_TIMEOUT,
        verify: bool = True,
    ):
        """Make the persistence of the run that `backend` holds.

        Args:
            backend: Storage of the run.
            lease: How long the run stays this owner's without a renewal, in seconds. It is renewed three
                times as often while a node runs.
            lock_timeout: How long a call waits while somebody else is writing, in seconds; then
                `LockTimeoutError`.
            verify: Whether to check before each write that the snapshot would be loaded as it was given.
        """
        if not lease > 0:
            raise ValueError(f'lease must be more than 0 seconds, got {lease!r}')
        if not lock_timeout >= 0:
            raise ValueError(f'lock_timeout must be 0 seconds or more, got {lock_timeout!r}')
        self.run_id = backend.run_id
        self.lease = lease
        self.lock_timeout = lock_timeout
        self.verify = verify
        self._backend = backend
        self._codec: Codec[StateT, RunEndT] | None = None
        self._claims = _Claims(backend, lease)

    # ----------------------------------------------------------------------------------------------- types

    def should_set_types(self) -> bool:
        """Whether no graph, or another one, was named before."""
        return self._codec is None

    def set_graph_types(self, graph: Any) -> None:
        """Learn the node, state and result types from a graph.

        Raises:
            UnsupportedTypeError: if pydantic cannot write or read one of them.
        """
        if (codec := self._codec) is not None:
            types = (tuple(graph.get_nodes()), *graph.inferred_types)
            if types != (codec.nodes, codec.state_type, codec.run_end_type):
                self._codec = None
        super().set_graph_types(graph)

    def set_types(self, state_type: type[StateT], run_end_type: type[RunEndT]) -> None:
        """Learn the state and result types; `set_graph_types` calls this with the node types in place.

        Raises:
            UnsupportedTypeError: if pydantic cannot write or read one of them.
        """
        self._codec = Codec.of(_host.current_node_types() or (), state_type, run_end_type)

    @property
    def _typed(self) -> Codec[StateT, RunEndT]:
        if self._codec is None:
            raise RuntimeError(
                f'The types of run {self.run_id!r} are not known yet: '
                'call `persistence.set_graph_types(graph)` first.'
            )
        return self._codec

    def _freeze(self, snapshot: Snapshot[StateT, RunEndT]) -> Any:
        return self._typed.encode(snapshot, run_id=self.run_id, verify=self.verify)

    def _thaw(self, row: Row) -> Snapshot[StateT, RunEndT]:
        return self._typed.decode(row.record, row.body, place=self._place)

    def _thaw_state(self, row: Row) -> StateT:
        return self._typed.decode_state(row.record, row.body, place=self._place)

    @property
    def _place(self) -> str:
        return f'run {self.run_id!r}'

    # --------------------------------------------------------------------------------------------- storage

    async def _commit(self, commit: Commit) -> Receipt:
        receipt, interrupted = await self._call(
            lambda: self._claims.commit(commit), stubborn=commit.must_land
        )
        return receipt if interrupted is None else replace(receipt, interrupted=interrupted)

    async def _tail(self) -> Tail:
        return await self._read(self._backend.tail)

    async def _rows(self) -> Sequence[Row]:
        return await self._read(self._backend.rows)

    async def _read(self, func: Callable[[], T]) -> T:
        value, interrupted = await self._call(func, stubborn=False)
        if interrupted is not None:
            raise interrupted
        return value

    async def _call(self, func: Callable[[], T], *, stubborn: bool) -> tuple[T, BaseException | None]:
        """Call into the backend, directly if it is prompt, and wait while somebody else is writing."""
        interrupted: BaseException | None = None
        waited, wait = 0.0, _POLL[0]
        while True:
            try:
                if self._backend.prompt:
                    return func(), interrupted
                work, cancelled = await in_thread(func)
                interrupted = cancelled or interrupted
                return work.result(), interrupted
            except LockBusy:
                if interrupted is not None and not stubborn:
                    raise interrupted from None
                if waited >= self.lock_timeout:
                    redeliver(interrupted)
                    raise LockTimeoutError(self._place, self.lock_timeout) from None
            except Exception:
                # the error says what became of the work; the cancellation comes right after it
                redeliver(interrupted)
                raise
            interrupted = await pause(wait, stubborn=stubborn) or interrupted
            waited += wait
            wait = min(wait * 1.5, _POLL[1])

    # ------------------------------------------------------------------------------------------- ownership

    def _now(self) -> datetime:
        return self._backend.clock()

    def _guard(self) -> Guard:
        return _NodeGuard(self._claims)


class _Claims:
    """What one instance has in hand of its run, and under which fence; every write goes through here.

    Blocking and safe in threads, like the backend: the heartbeat renews from its own thread.
    """

    def __init__(self, backend: RunBackend, lease: float):
        self._backend = backend
        self._lease = lease
        self._owner = new_owner(self)
        self._mutex = threading.Lock()
        self._in_hand: set[str] = set()
        self._fence: int | None = None
        self._hold: heartbeat.Hold | None = None
        self._guards: set[_NodeGuard] = set()
        # weakly: a persistence that nobody has any more must not keep its run
        self._beat = _weakly(self._renew), _weakly(self._lost)

    def commit(self, commit: Commit) -> Receipt:
        """Add who writes, and commit; know afterwards what is in hand."""
        with self._mutex:
            in_hand, take = self._in_hand.copy(), None
            for change in commit.changes:
                snapshot_id, transition = change.snapshot_id, change.transition
                if transition in _BEGINS:
                    in_hand.add(snapshot_id)
                    take = self._owner
                elif transition in _ENDS:
                    if snapshot_id not in self._in_hand:
                        raise OwnershipLostError(self._backend.run_id, None)
                    in_hand.discard(snapshot_id)
                elif transition is RECOVER:
                    if self._fence is not None and snapshot_id in self._in_hand:
                        # by this very instance, which lives
                        raise RunOwnedError(self._backend.run_id, self._owner, None)
                    take = self._owner
            give_up = not in_hand and (self._fence is not None or take is not None)
            commit = commit.by(Writer(self._fence, take, self._lease, give_up))
            undurable: StorageError | None = None
            try:
                receipt = self._backend.commit(commit)
            except OwnershipLostError:
                self._forget()
                raise
            except StorageError as exc:
                if exc.receipt is None:
                    raise
                receipt, undurable = exc.receipt, exc
            self._in_hand = in_hand
            if in_hand:
                self._fence = receipt.fence
                self._keep()
            else:
                self._forget()
            if undurable is not None:
                raise undurable
            return receipt

    def enter(self, guard: _NodeGuard) -> None:
        self._guards.add(guard)

    def leave(self, guard: _NodeGuard) -> None:
        self._guards.discard(guard)

    def _keep(self) -> None:
        if self._hold is None:
            self._hold = heartbeat.Hold(self._lease / 3, *self._beat)
            heartbeat.keeper.hold(self._hold)

    def _forget(self) -> None:
        self._in_hand = set()
        self._fence = None
        if self._hold is not None:
            heartbeat.keeper.drop(self._hold)
            self._hold = None

    def _renew(self) -> bool:
        with self._mutex:
            if self._fence is None:
                return False
            self._backend.commit(Commit(writer=Writer(self._fence, self._owner, self._lease)))
            return True

    def _lost(self, exc: OwnershipLostError) -> None:
        with self._mutex:
            self._forget()
        for guard in tuple(self._guards):
            guard.cancel(exc)


def _weakly(method: Callable[P, T]) -> Callable[P, T | None]:
    """Return a function that calls the method while its object is there, and then returns `None`."""
    reference = WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        alive = reference()
        return None if alive is None else alive(*args, **kwargs)

    return call


class _NodeGuard(Guard):
    """Cancels the node that runs within it, from any thread."""

    def __init__(self, claims: _Claims):
        self._claims = claims
        self._scope = anyio.CancelScope()
        self._call = caller()

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._claims.enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        self._claims.leave(self)
        swallowed = self._scope.__exit__(kind, exc, tb)
        return bool(swallowed) and self.lost is not None

    def cancel(self, exc: OwnershipLostError) -> None:
        self.lost = exc
        with suppress(RuntimeError):  # the event loop has ended, and the node with it
            self._call(self._scope.cancel)
