"""`StatePersistence`: what a graph run may rely on, written once over a few storage primitives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import anyio.lowlevel
from anyio import CancelScope

from . import _host
from ._host import (
    BaseNode,
    BaseStatePersistence,  # pyright: ignore
    End,
    RunEndT,
    StateT,
)
from .commit import Commit, Parts, Receipt, Row, StatusChange, StepRecord, Tail
from .errors import (
    CorruptSnapshotError,
    GraphkeepError,
    LockTimeoutError,
    OwnershipLostError,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    SnapshotStatusError,
    StorageError,
    UnknownRunError,
    UnknownSnapshotError,
)
from .guard import Guard
from .snapshots import EndSnapshot, NodeSnapshot, Snapshot, now_utc
from .status import CLAIM, RECOVER, RELEASE, RETRY
from .steprun import StepRun, breaking, broken, undone
from .taskrows import path_of

if TYPE_CHECKING:
    from .graph import Graph

__all__ = ('StatePersistence',)

T = TypeVar('T')


class StatePersistence(
    BaseStatePersistence[StateT, RunEndT],  # pyright: ignore[reportUntypedBaseClass]
    ABC,
    Generic[StateT, RunEndT],
):
    """The durable record of one graph run; what to pass as `persistence=`.

    - *Atomic*: every write is one commit, applied whole or not at all.
    - *Step commit*: that a node succeeded and what comes next are one write, so that storage never holds a
      run whose last node succeeded and whose next one is missing.
    - *Cancellation* never leaves a snapshot `running`: a write that was begun is finished, and a node that
      was interrupted is released, before the cancellation goes on.
    - *At least once*: a node that succeeded is never run again; one that was interrupted runs again, with the
      state from before it. See `current_step` for the key that makes its side effects idempotent.

    One instance serves one run, in one thread; another thread uses an instance of its own. Subclasses provide
    storage; the contract itself is here, and the same for all.
    """

    run_id: str
    """Names the run, in errors and to the node's code."""

    # a node's success, on its way into one write with what comes next
    _ended: StatusChange | None = None
    # a write that ends a step and failed, for the next use of this instance to try again
    _failed: Commit | None = None
    # what `load_next` handed out and nobody has started
    _claimed: frozenset[str] = frozenset()
    # what `claim` has taken for the next `load_next` to hand out
    _offered: str | None = None
    # the snapshot that this instance stored or was handed last: its id may recur
    _latest: tuple[str, int] | None = None

    if TYPE_CHECKING:
        # where the host has no persistence the base is unknown to a type checker, which then takes a class
        # attribute that holds a persistence for a descriptor that may return anything
        def __get__(self, instance: object, owner: type | None = None) -> Self: ...

    # ------------------------------------------------------------------------------------ storage primitives

    @abstractmethod
    async def _commit(self, commit: Commit) -> Receipt:
        """Apply the commit whole, or raise and change nothing; see `RunBackend.commit`.

        A cancellation before it is begun may be raised, unless it must land; one that comes while it is made
        is returned in the receipt.
        """

    @abstractmethod
    async def _tail(self) -> Tail:
        """Return the end of the run."""

    @abstractmethod
    async def _rows(self) -> Sequence[Row]:
        """Return every row, oldest first."""

    async def _records(self) -> Sequence[Row]:
        """Return every row, oldest first; all but tasks may be without their bodies."""
        return await self._rows()

    @abstractmethod
    def _freeze(self, snapshot: Snapshot[StateT, RunEndT]) -> Any:
        """Return the body of the row that is to hold this snapshot, independent of the live objects.

        Raises:
            UnfaithfulSnapshotError: if it would not be loaded as it was given.
        """

    @abstractmethod
    def _thaw(self, row: Row) -> Snapshot[StateT, RunEndT]:
        """Return the snapshot that a row holds.

        Raises:
            CorruptSnapshotError: if it cannot be read, or is not of this graph.
        """

    @abstractmethod
    def _thaw_state(self, row: Row) -> StateT:
        """Return the state that a row holds, whatever its node."""

    # ----------------------------------------------------------------- pydantic-graph's persistence contract

    async def snapshot_node(self, state: StateT, next_node: BaseNode[StateT, Any, RunEndT]) -> None:
        """Store that `next_node` comes next, with this state, in one write with the end of the step before.

        Raises:
            UnfaithfulSnapshotError: if it would not be loaded as it was given. The step before it, which made
                it, is then recorded as failed with this error.
        """
        await self._append(NodeSnapshot(state=state, node=next_node))

    async def snapshot_node_if_new(
        self, snapshot_id: str, state: StateT, next_node: BaseNode[StateT, Any, RunEndT]
    ) -> None:
        """Store that `next_node` is to be run, unless the run has a snapshot with this id; atomic.

        Raises:
            UnfaithfulSnapshotError: if it would not be loaded as it was given. Nothing is stored.
        """
        await self._flush()
        row = self._row(cast('Snapshot[StateT, RunEndT]', NodeSnapshot(state=state, node=next_node)))
        _deliver(await self._commit(Commit(rows=(row,), unless_exists=snapshot_id)))

    async def snapshot_end(self, state: StateT, end: End[RunEndT]) -> None:
        """Store the end of the run, in one write with the end of its last step.

        Raises:
            UnfaithfulSnapshotError: as `snapshot_node`.
        """
        snapshot = EndSnapshot(state=state, result=end, ts=self._now())
        await self._append(cast('Snapshot[StateT, RunEndT]', snapshot))

    def record_run(self, snapshot_id: str) -> AbstractAsyncContextManager[None]:
        """Record the run of a node: `running`, then `success`, `error`, or `created` if interrupted.

        `success` is not written on leaving but by the `snapshot_node` or `snapshot_end` that follows,
        together with it; or, if something else follows, before that.

        Raises:
            SnapshotStatusError: (also known as `GraphNodeRunningError`) if the snapshot is not `created` or
                `pending`. Of several starters of one snapshot exactly one does not get it.
            UnknownSnapshotError: (a `LookupError`) if the run has no such snapshot.
            RunOwnedError: if another living owner has the run.
            OwnershipLostError: if another owner took the run while the node ran; the node is cancelled then.
        """
        return StepRun(self, snapshot_id)

    async def load_next(self) -> NodeSnapshot[StateT, RunEndT] | None:
        """Hand out the next node: the oldest `created` snapshot not gone past, which is `pending` then.

        If the run's owner is gone, what it had pending or running is recovered first. Of several callers one
        gets a snapshot. A snapshot that cannot be read is not handed out and stays as it is.

        Returns:
            The snapshot, or `None` if there is none; `why_unresumable` says why.

        Raises:
            RunOwnedError: if there is one, and another living owner has the run.
            CorruptSnapshotError: if it cannot be read, or is not of this graph.
        """
        await self._flush()
        if (offered := self._offered) is not None:
            self._offered = None
            tail = await self._tail()
            row = next((row for row in tail.open if row.record.id == offered), None)
            if row is not None:
                try:
                    return self._thaw_node(row, tail)
                except Exception:
                    await self.release()
                    raise
        row, snapshot = await self._claim(self._thaw_node)
        if snapshot is not None:
            snapshot.status = 'pending'
        return snapshot

    async def claim(self) -> StepRecord | None:
        """Take the next node in hand without decoding it, for the next `load_next` to hand out.

        What `Store.claim` does with a run. While it is in hand the run is this instance's.

        Returns:
            What is known of the node, or `None` if there is none; `why_unresumable` says why.

        Raises:
            RunOwnedError: if there is one, and another living owner has the run.
        """
        await self._flush()
        row, _ = await self._claim(lambda row, tail: None)
        if row is None:
            return None
        self._offered = row.record.id
        return row.record

    async def _claim(self, read: Callable[[Row, Tail], T]) -> tuple[Row, T] | tuple[None, None]:
        """Claim the oldest node not gone past; `read` it first, so that what cannot be read stays."""
        refused: tuple[object, ...] = ()
        while True:
            tail = await self._tail()
            abandoned = self._abandoned(tail)
            claimable = ('created', 'pending', 'running') if abandoned else ('created',)
            row = next((row for row in reversed(tail.rows) if row.record.status in claimable), None)
            if row is None:
                return None, None
            found = read(row, tail)
            changes = [self._recovery(row) for row in abandoned]
            changes.append(StatusChange(row.record.id, CLAIM))
            try:
                receipt = await self._commit(Commit(changes=changes))
            except (KeyboardInterrupt, SystemExit) as exc:
                await self.make_certain(exc)
                raise
            except (SnapshotStatusError, UnknownSnapshotError) as exc:
                # somebody else was faster, or has deleted the run: look again
                seen = [row.record for row in tail.rows], tail.ownership
                if seen == refused:
                    exc.add_note('The storage shows what it refuses: its tail and its commits disagree.')
                    raise
                refused = seen
                await anyio.lowlevel.checkpoint()
                continue
            except StorageError as exc:
                if not undone(exc):
                    self._claimed |= {row.record.id}
                    await self.release()
                raise
            self._claimed |= {row.record.id}
            self._latest = row.record.id, row.record.seq
            if receipt.interrupted:
                await self.release()
                raise receipt.interrupted
            return row, found

    def _thaw_node(self, row: Row, tail: Tail) -> NodeSnapshot[StateT, RunEndT]:
        if tail.has_parts:
            raise CorruptSnapshotError(
                f'run {self.run_id!r}',
                'is where a builder graph went on, which has run more than this node: go on with its '
                'PersistentGraph',
                snapshot_id=row.record.id,
            )
        return cast('NodeSnapshot[StateT, RunEndT]', self._thaw(row))

    async def load_all(self) -> list[Snapshot[StateT, RunEndT]]:
        """Load every snapshot of the run, in the order of writing.

        Raises:
            CorruptSnapshotError: if one cannot be read, or is not of this graph.
        """
        await self._flush()
        return [self._thaw(row) for row in await self._rows() if not row.record.is_part]

    def set_graph_types(self, graph: Graph[StateT, Any, RunEndT]) -> None:
        """Learn the node, state and result types from a graph; every verb of `Graph` does this first.

        Raises:
            UnsupportedTypeError: if pydantic cannot write or read one of them.
        """
        if self.should_set_types():
            with _host.node_types(graph.get_nodes()):
                self.set_types(*graph.inferred_types)

    def should_set_types(self) -> bool:
        """Whether `set_types` is still needed; `False` unless a subclass says otherwise."""
        return False

    def set_types(self, state_type: type[StateT], run_end_type: type[RunEndT]) -> None:
        """Learn the state and result types; to be called by `set_graph_types`, which knows the node types."""

    # --------------------------------------------------------------------------------- beyond that contract

    async def snapshot_start(self, state: StateT, start_node: BaseNode[StateT, Any, RunEndT]) -> None:
        """Store that the run begins with `start_node`, unless anything is stored of it; atomic.

        Of several that start one run exactly one stores its first node.

        Raises:
            UnfaithfulSnapshotError: if it would not be loaded as it was given. Nothing is stored.
        """
        await self._flush()
        if (await self._tail()).rows:
            return
        row = self._row(cast('Snapshot[StateT, RunEndT]', NodeSnapshot(state=state, node=start_node)))
        _deliver(await self._commit(Commit(rows=(row,), unless_any=True)))

    async def load_history(self) -> list[StepRecord]:
        """Load what is known of every snapshot without decoding it: status, attempts, errors, times.

        Of a run of a builder graph that is: the run, its tasks with the forks that they are under, its end.
        """
        await self._flush()
        return [_told(row) for row in await self._records() if row.record.kind not in ('join', 'image')]

    async def last_state(self) -> StateT:
        """Load the state of the newest snapshot: where the run is, or how it ended.

        Raises:
            UnknownRunError: if nothing is stored of the run.
            CorruptSnapshotError: if it cannot be read.
        """
        await self._flush()
        tail = await self._known_tail()
        image = Parts.of(await self._rows()).image if tail.has_parts else None
        return self._thaw_state(image or tail.rows[0])

    async def load_last(self) -> Snapshot[StateT, RunEndT]:
        """Load the newest snapshot: the end with the result, if the run has finished.

        Raises:
            UnknownRunError: if nothing is stored of the run.
            CorruptSnapshotError: if it cannot be read, or is not of this graph.
        """
        await self._flush()
        return self._thaw((await self._known_tail()).rows[0])

    async def recover(self) -> int:
        """Set what an owner that is gone had pending or running back to `created`. Idempotent.

        `load_next` does this by itself where a gone owner is on record. This is for where none is, such as a
        file that pydantic-graph's own class left behind: call it when you know that nobody is at the run any
        more.

        Returns:
            How many snapshots were set back.

        Raises:
            RunOwnedError: if the owner lives, as far as can be known.
        """
        await self._flush()
        abandoned = (await self._tail()).open
        while abandoned:
            try:
                _deliver(await self._commit(Commit(changes=[self._recovery(row) for row in abandoned])))
                break
            except SnapshotStatusError:
                tried, abandoned = abandoned, (await self._tail()).open
                if abandoned == tried:
                    raise  # it was not that somebody else was faster
        return len(abandoned)

    async def retry(self) -> None:
        """Set the failed snapshot at which the run stopped back to `created`, with the state from before it.

        Raises:
            UnknownRunError: if nothing is stored of the run.
            RunFinishedError: if the run has ended.
            SnapshotStatusError: if the run's newest snapshot is not `error`.
            RunOwnedError: if another living owner has the run.
        """
        await self._flush()
        tail = await self._known_tail()
        record = tail.rows[0].record
        if record.kind == 'end':
            raise RunFinishedError(self.run_id, record.start_ts)
        failed = [record]
        if tail.has_parts:  # and the tasks of a builder graph that it failed because of
            open_ = Parts.of(await self._rows()).open
            failed += [row.record for row in open_ if row.record.status == 'error']
        _deliver(await self._commit(Commit(changes=[StatusChange(one.id, RETRY) for one in failed])))

    async def release(self) -> None:
        """Give back what `load_next` handed to this instance and was never run, for anybody to run."""
        await self._flush()
        claimed, self._claimed, self._offered = self._claimed, frozenset(), None
        if claimed:
            changes = [StatusChange(i, RELEASE, reason='never run') for i in sorted(claimed)]
            # what somebody else has taken over, or gone past, is no longer this instance's to give back
            with suppress(OwnershipLostError, SnapshotStatusError, UnknownSnapshotError):
                await self._land(Commit(changes=changes, must_land=True))

    async def why_unresumable(self) -> GraphkeepError:
        """Return the error that says why `load_next` has nothing: unknown, finished, failed, owned."""
        await self._flush()
        tail = await self._tail()
        if not tail.rows:
            return UnknownRunError(self.run_id)
        newest = tail.rows[0].record
        if newest.kind == 'end':
            return RunFinishedError(self.run_id, newest.start_ts)
        if newest.status in ('error', 'success'):
            return RunFailedError(self.run_id, newest.id, newest.error, status=newest.status)
        return RunOwnedError(self.run_id, tail.ownership.owner, tail.ownership.expires)

    # -------------------------------------------------------------------------------------- how it is done

    def _now(self) -> datetime:
        return now_utc()

    def _guard(self) -> Guard | None:
        """Return what cancels a node when its run is lost, `None` where a run cannot be lost."""
        return None

    def _abandoned(self, tail: Tail) -> Sequence[Row]:
        """Return the rows that an owner who is gone, and on record, has pending or running, oldest first."""
        ownership = tail.ownership
        return tail.open if ownership.owner is not None and ownership.is_free(self._now()) else ()

    async def _known_tail(self) -> Tail:
        tail = await self._tail()
        if not tail.rows:
            raise UnknownRunError(self.run_id)
        return tail

    def _recovery(self, row: Row) -> StatusChange:
        owner = row.record.owner
        reason = f'{owner} is gone' if owner else 'its owner is gone'
        return StatusChange(row.record.id, RECOVER, reason=reason)

    def _row(self, snapshot: Snapshot[StateT, RunEndT]) -> Row:
        if isinstance(snapshot, NodeSnapshot):
            record = StepRecord(snapshot.id, snapshot.node.get_node_id())
        else:
            record = StepRecord(
                id=snapshot.id, kind='end', node_id='End', status='success', start_ts=snapshot.ts
            )
        return Row(record, self._freeze(snapshot))

    async def _append(self, snapshot: Snapshot[StateT, RunEndT]) -> None:
        ended, self._ended = self._ended, None  # before the first await: it is this caller's own step
        self._latest = None
        if self._failed is not None:
            await self._flush()
        try:
            row = self._row(snapshot)
        except BaseException as exc:
            if ended is not None:
                await self._fail(ended, exc)
            raise
        if ended is None:
            receipt = await self._commit(Commit(rows=(row,)))
            _deliver(receipt)
        else:
            receipt = await self._land(Commit((ended,), (row,), must_land=True))
        self._latest = snapshot.id, receipt.last

    async def _flush(self) -> None:
        """Write what is still to be written of the step before."""
        if (failed := self._failed) is not None:
            self._failed = None
            await self._land(failed)
        if (ended := self._ended) is not None:
            self._ended = None
            await self._land(Commit((ended,), must_land=True))

    async def _land(self, commit: Commit) -> Receipt:
        """Make a commit that ends a step; if the storage fails, keep it for the next use of this instance."""
        try:
            receipt = await self._commit(commit)
        except (StorageError, LockTimeoutError) as exc:
            if undone(exc):
                self._failed = commit
            raise
        if receipt.interrupted is not None:
            raise receipt.interrupted
        return receipt

    async def leave(self, exc: BaseException | None) -> None:
        """Leave nothing in hand when a run is left, whatever is cancelled meanwhile.

        A node that has returned, and whose next is not recorded, has failed: the 1.x host finds only then
        that what it returned is no node. If `exc` is no `Exception` it was interrupted, and runs again.

        Args:
            exc: Why it is left, `None` at its end.
        """
        with CancelScope(shield=True):
            if exc is not None and self._ended is not None:
                ended, self._ended = self._ended, None
                await self._fail(ended, exc)
            await self.make_certain(exc)
            await self.release()

    async def make_certain(self, exc: BaseException | None) -> None:
        """Give back what is in hand, whatever this instance knows of it, if `exc` is an interrupt.

        Where nobody else can have the run there is nothing to give back.
        """

    async def _fail(self, ended: StatusChange, exc: BaseException) -> None:
        change = broken(ended.snapshot_id, ended.duration, breaking(exc), exc)
        try:
            await self._land(Commit((change,), must_land=True))
        except GraphkeepError as other:
            exc.add_note(f'This could not be recorded: {other}')


def _told(row: Row) -> StepRecord:
    record = row.record
    return record._replace(path=path_of(row)) if record.kind == 'task' else record


def _deliver(receipt: Receipt) -> None:
    """Raise the cancellation that came while the commit was made, now that it is made."""
    if receipt.interrupted is not None:
        raise receipt.interrupted
