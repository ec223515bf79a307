"""The persistence of a run in a store: encoded snapshots, one owner at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from . import _host
from ._host import RunEndT, StateT
from .backend import LockBusy, RunBackend
from .calls import Calling, answer, call
from .claims import Claims, Commitment, node_guard
from .codec import Codec
from .commit import About, Commit, Receipt, Row, StatusChange, StepRecord, Tail
from .errors import GraphkeepError, LockTimeoutError, OwnershipLostError
from .guard import Guard
from .names import check_tags
from .offload import later, pause, redeliver, submit
from .persistence import StatePersistence
from .promise import Work
from .runinfo import check_moment, is_number
from .snapshots import Snapshot
from .status import RELEASE
from .turns import Stint, Turns

__all__ = ('LEASE', 'LOCK_TIMEOUT', 'Durability', 'StoredStatePersistence', 'check_durability')

T = TypeVar('T')

_LONGEST: Final = 10**9
# seconds: some thirty years, so that there is a date when a lease runs out
_AGAIN: Final = 0.01  # seconds after which to look again whether a write is still under way
_MANY: Final = 200
# rows and changes of a commit: with more the event loop goes on while a thread writes

Durability: TypeAlias = Literal['normal', 'full']
"""What a commit survives, of what is kept on a disk.

- `'normal'`: the death of the process at any moment, by `kill -9` too. After a loss of power or a crash of
  the system what is stored is as it was some moments before; a JSON file, on a file system that orders writes
  loosely, may be damaged.
- `'full'`: a loss of power too, on a disk that keeps what it has acknowledged. What is stored, and the end
  of each step, waits for the disk. That a node is claimed or running, and a renewal of the lease, does not:
  a loss of power ends what they are about, and may take the attempt off the record.
"""

LEASE = 30.0
"""How long a run stays its owner's without a renewal, in seconds, unless told otherwise."""
LOCK_TIMEOUT = 10.0
"""How long a call waits while somebody else is writing, in seconds, unless told otherwise."""


def check_durability(durability: object) -> bool:
    """Return whether the disk is waited for.

    Raises:
        ValueError: if it is no `Durability`.
    """
    if durability not in ('normal', 'full'):
        raise ValueError(f"durability must be 'normal' or 'full', got {durability!r}")
    return durability == 'full'


class StoredStatePersistence(StatePersistence[StateT, RunEndT]):
    """The persistence of one run over a `RunBackend`.

    - *Ownership*: starting a node, or being handed one, takes the run; the end of the step gives it up. While
      it is held the lease is renewed in the background. A write by a former owner is refused with
      `OwnershipLostError`.
    - *Faithful*: with `verify=True` every snapshot that would not be loaded as it was given is refused with
      `UnfaithfulSnapshotError` before it is written.
    """

    def __init__(
        self,
        backend: RunBackend,
        *,
        lease: float = LEASE,
        lock_timeout: float = LOCK_TIMEOUT,
        verify: bool = True,
        tags: Iterable[str] = (),
    ):
        """Make the persistence of the run that `backend` holds.

        Args:
            backend: Storage of the run.
            lease: How long the run stays this owner's without a renewal, in seconds. It is renewed three
                times as often while a node runs.
            lock_timeout: How long a call waits while somebody else is writing, in seconds; then
                `LockTimeoutError`.
            verify: Whether to check before each write that the snapshot would be loaded as it was given.
            tags: What the run is to be found by; recorded when it begins.

        Raises:
            ValueError: if an option is not of that kind, or the clock of `backend` tells no aware time.
            TypeError: if `tags` is not several things at all.
        """
        if not (is_number(lease) and 0 < lease <= _LONGEST):
            raise ValueError(f'lease must be more than 0 and at most {_LONGEST} seconds, got {lease!r}')
        if not (is_number(lock_timeout) and lock_timeout >= 0):
            raise ValueError(f'lock_timeout must be 0 seconds or more, got {lock_timeout!r}')
        check_moment('what `clock` returns', backend.clock())
        self.run_id = backend.run_id
        self.lease = lease
        self.lock_timeout = lock_timeout
        self.verify = verify
        self._backend = backend
        self._codec: Codec[StateT, RunEndT] | None = None
        self._claims = Claims(backend, lease)
        self._about = About(tags=check_tags(tags))
        self._stint = Stint()

    # ----------------------------------------------------------------------------------------------- types

    def should_set_types(self) -> bool:
        """Whether no graph, or another one, was named before."""
        return self._codec is None

    def set_graph_types(self, graph: Any) -> None:
        """Learn the node, state and result types from a graph, a `PersistentGraph` as well.

        Raises:
            UnsupportedTypeError: if pydantic cannot write or read one of them.
        """
        if (prepare := getattr(graph, '_prepare', None)) is not None:
            prepare(self)
            return
        if (codec := self._codec) is not None:
            types = (tuple(graph.get_nodes()), *graph.inferred_types)
            if types != (codec.nodes, codec.state_type, codec.run_end_type):
                self._codec = None
        self._about = self._about._replace(graph=graph.name)
        super().set_graph_types(graph)

    def set_builder_types(self, codec: Codec[StateT, RunEndT], graph: str | None) -> None:
        """Learn the types of a builder graph; every verb of `PersistentGraph` does this first."""
        self._codec = codec
        self._about = self._about._replace(graph=graph)

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
        if commit.rows:
            commit.about = self._about
        turn, backend, stint = Commitment(self._claims, commit), self._backend, self._stint
        many = backend.queues and len(commit.rows) + len(commit.changes) > _MANY
        inline = backend.prompt and not many
        together: Turns | None = None
        if stint.is_over:
            turns = stint.turns
            if not commit.must_land and not (inline and backend.gathers(turns)):
                await stint.give_way()
            if inline and backend.gathers(turns):  # asked again, for by now there may be many
                together = turns
                if not commit.must_land:
                    await checkpoint_if_cancelled()
        if inline:
            try:
                made = backend.write(turn) if together is None else backend.gather(turn, together)
                if isinstance(made, Receipt):
                    return made
                return _lasting(made, await stint.ended(made, together or stint.turns))
            except LockBusy:
                inline = not backend.queues
        made, interrupted = await call(
            partial(backend.write, turn),
            partial(backend.queue, turn),
            Calling(self._place, self.lock_timeout, inline, commit.must_land, backend.prompt and not many),
        )
        if isinstance(made, Receipt):
            return _interrupted(made, interrupted)
        return _lasting(made, later(interrupted, await stint.ended(made, stint.turns)))

    async def _tail(self) -> Tail:
        backend = self._backend
        if backend.tail_is_prompt:
            return await self._read(backend.tail, inline=True)
        return await self._read(backend.tail_elsewhere(), inline=False)

    async def _rows(self) -> Sequence[Row]:
        return await self._read_all(self._backend.rows)

    async def _records(self) -> Sequence[Row]:
        return await self._read_all(self._backend.records)

    async def _read_all(self, func: Callable[[], Sequence[Row]]) -> Sequence[Row]:
        # a database may have very many of them
        return await self._read(func, inline=self._backend.prompt and not self._backend.queues)

    async def _read(self, func: Callable[[], T], *, inline: bool) -> T:
        return await answer(func, submit, Calling(self._place, self.lock_timeout, inline, stubborn=False))

    # ------------------------------------------------------------------------------------------- ownership

    async def claim(self) -> StepRecord | None:
        """Take the run and its next node in hand, without decoding it, for the next `load_next` to hand out.

        What `Store.claim` does with a run. The run is this instance's from here on, also between its steps:
        until it ends, fails or is interrupted, until `release`, or until this object or its process is gone.

        Returns:
            What is known of the node, or `None` if there is none; `why_unresumable` says why.

        Raises:
            RunOwnedError: if there is one, and another living owner has the run.
        """
        claims, record = self._claims, None
        kept, claims.keeping = claims.keeping, True
        try:
            record = await super().claim()
        finally:
            if record is None:
                claims.keeping = kept
                if not claims.in_hand:
                    await self._give_up()
        return record

    async def release(self) -> None:
        """Give back what `load_next` handed out and was never run, and a run that was claimed."""
        self._claims.keeping = False
        await super().release()
        await self._give_up()

    async def make_certain(self, exc: BaseException | None) -> None:
        """Give back what is in hand, whatever this instance knows of it, if `exc` is an interrupt.

        Ctrl-C, and `sys.exit` in a signal handler, may come between what is written and what is known of it.
        """
        if exc is None or not _interrupts(exc):
            return
        with anyio.CancelScope(shield=True):
            try:
                interrupted = await self._give_back()
            except GraphkeepError as other:
                exc.add_note(f'What was in hand could not be given back: {other}')
            else:
                redeliver(interrupted)

    async def _give_back(self) -> BaseException | None:
        """Give back what is stored as being in this instance's hands; return what was cancelled meanwhile."""
        claims, read = self._claims, self._backend.tail
        interrupted: BaseException | None = None
        waited = 0.0
        while True:
            # in another thread, for this one may have been interrupted while it read
            how = Calling(self._place, self.lock_timeout, inline=False, stubborn=True)
            tail, again = await call(read, partial(submit, read), how)
            interrupted = later(interrupted, again)
            if (has := claims.find_out(tail)) is not None:
                break
            if waited >= self.lock_timeout:
                raise LockTimeoutError(self._place, self.lock_timeout)
            interrupted = later(interrupted, await pause(_AGAIN, stubborn=True))
            waited += _AGAIN
        if not has:
            return interrupted
        changes = [
            StatusChange(snapshot_id, RELEASE, reason='its owner was interrupted')
            for snapshot_id in sorted(claims.in_hand)
        ]
        with suppress(OwnershipLostError):
            receipt = await self._commit(Commit(changes=changes, must_land=True))
            interrupted = later(interrupted, receipt.interrupted)
        return interrupted

    async def _give_up(self) -> None:
        """Keep the run no more, if nothing of it is in hand."""
        self._claims.keeping = False
        if self._claims.fence is not None and not self._claims.in_hand:
            with suppress(OwnershipLostError):  # then it is not this instance's to give back
                await self._land(Commit(must_land=True))

    def _now(self) -> datetime:
        return self._backend.clock()

    def _guard(self) -> Guard:
        return node_guard(self._claims)


def _lasting(made: Work[Receipt], interrupted: BaseException | None) -> Receipt:
    """Return what was made, now that it lasts; if it does not, the error, and the cancellation after it."""
    try:
        return _interrupted(made.result(), interrupted)
    except Exception:
        redeliver(interrupted)
        raise


def _interrupted(receipt: Receipt, interrupted: BaseException | None) -> Receipt:
    return receipt if interrupted is None else replace(receipt, interrupted=interrupted)


def _interrupts(exc: BaseException) -> bool:
    """Whether this came from a signal, or ends the process."""
    if isinstance(exc, BaseExceptionGroup):
        return any(map(_interrupts, cast('BaseExceptionGroup[BaseException]', exc).exceptions))
    return isinstance(exc, (KeyboardInterrupt, SystemExit))
