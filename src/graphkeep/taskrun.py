"""`TaskRun`: an open run of a builder graph; what of its tasks is to be written, and when that may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from time import perf_counter
from typing import Any, TypeGuard

import anyio
import anyio.lowlevel

from ._host import End
from .codec import Body, Codec, Refusal
from .commit import Commit, Receipt, Row, StatusChange, StepError, StepRecord
from .errors import GraphkeepError, OwnershipLostError, UnfaithfulSnapshotError
from .snapshots import EndSnapshot
from .status import CANCEL, FAIL, RELEASE, START, SUCCEED, Transition
from .stored import StoredStatePersistence
from .taskflight import TaskFlight
from .taskrows import Branch, join_body, task_body
from .tracking import Tracker
from .values import ValueCodec

__all__ = ('TaskRun',)


class _Batch:
    """What is to be written next, all of it at once."""

    __slots__ = ('by', 'changes', 'ended', 'error', 'over', 'rows')

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.changes: list[StatusChange] = []
        self.ended: dict[str, int] = {}  # the stored tasks that have ended, with the attempts on record
        self.by = 'the graph'  # the node of the task that ended last
        self.over = False
        self.error: Exception | None = None

    def __bool__(self) -> bool:
        return bool(self.rows or self.changes)


class TaskRun:
    """An open run of a builder graph.

    What its tasks do is gathered here, and written in commits that hold the state as it is in the same
    moment: the tasks that ended, what they lead to, and the state. So a commit waits while the state holds
    something that a task in flight has done, and goes with the next one that may.
    """

    def __init__(
        self,
        persistence: StoredStatePersistence[Any, Any],
        *,
        snapshot_id: str,
        state: Any,
        codec: Codec[Any, Any],
        values: ValueCodec,
        tracker: Tracker,
        stored: Iterable[StepRecord],
    ):
        """Make the run that `persistence` has begun.

        Args:
            persistence: Where it is recorded.
            snapshot_id: The snapshot that stands for the whole run; it is running.
            state: The state of the run.
            codec: Writes the state and the result.
            values: Writes what the tasks are given.
            tracker: Knows what of the state belongs to tasks in flight.
            stored: The tasks and joins that have not ended.
        """
        self.run_id = persistence.run_id
        self.persistence = persistence
        self.tracker = tracker
        self.finished = False
        self.ending: str | None = None  # the task that ends the run, if it is carried out
        self.due: set[str] = set()  # tasks that are to begin at once
        self.snapshot_id = snapshot_id
        self._begun = perf_counter()
        self._state = state
        self._codec = codec
        self._values = values
        self._verify = persistence.verify
        self._stored: dict[str, int] = {record.id: record.attempt for record in stored}
        self._joins: dict[tuple[str, str], str] = {}  # the ids of joins that were stored before
        self._flights: dict[str, TaskFlight] = {}
        self._failed: dict[str, tuple[TaskFlight, BaseException]] = {}
        self._told: set[str] = set()  # failed, and whoever drives the run was told so
        self._cancelled: set[str] = set()  # in flight, and the run goes on without them
        self._pending = _Batch()
        self._committing = False
        self._writing: _Batch | None = None
        self._waiting: list[anyio.Event] = []
        self._broken: BaseException | None = None  # why nothing more can be written
        self._fault: Exception | None = None

    def now(self) -> datetime:
        """Return the present moment, by the store's clock (UTC)."""
        return self.persistence._now()

    # ----------------------------------------------------------------------------- what is to be written

    def task(
        self, task_id: str, node_id: str, inputs: Any, stack: Iterable[Branch], *, origin: str | None, by: str
    ) -> Row:
        """Return the row of a new task; `by` is the node that leads to it.

        Raises:
            UnfaithfulSnapshotError: if its inputs would not be loaded as they are.
        """
        text = self._written(inputs, 'its result', by)
        return Row(StepRecord(task_id, node_id, 'task'), task_body(node_id, text, stack, origin))

    def create(self, rows: Iterable[Row]) -> None:
        """Have new tasks recorded."""
        self._pending.rows.update((row.record.id, row) for row in rows)

    def join(
        self, join_id: str, fork_run: str, stack: Iterable[Branch], value: tuple[Any] | None, *, stopped: bool
    ) -> None:
        """Have it recorded that a join has begun, and what it has come to if reducing again cannot tell."""
        text = None if value is None else self._written(value[0], 'what it has come to', join_id)
        key = self._join_key(join_id, fork_run)
        self._pending.rows[key] = Row(
            StepRecord(key, join_id, 'join'), join_body(join_id, fork_run, stack, text, stopped)
        )

    def close_join(self, join_id: str, fork_run: str) -> None:
        """Have it recorded that a join has closed."""
        self._end(self._join_key(join_id, fork_run), SUCCEED, None, None)

    def stored_join(self, row_id: str, join_id: str, fork_run: str) -> None:
        """Know under which id a join is stored: it may have had another name."""
        self._joins[join_id, fork_run] = row_id

    def _join_key(self, join_id: str, fork_run: str) -> str:
        return self._joins.get((join_id, fork_run)) or f'{join_id}:{fork_run}'

    def knows(self, task_id: str) -> bool:
        """Whether a task is recorded, or to be, and has not ended."""
        return task_id in self._stored or task_id in self._pending.rows

    async def recorded(self, task_id: str) -> None:
        """Wait until it is written that there is this task, unless that has to wait; errors as `settle`."""
        if task_id in self._pending.rows:
            await self.settle()
        elif (writing := self._writing) is not None and task_id in writing.rows:
            await self._turn()
            if writing.error is not None:
                raise writing.error

    def close(self, task_id: str) -> None:
        """Have it recorded that a task has ended which runs no code of its own."""
        self._end(task_id, SUCCEED, None, None)

    def cancel(self, task_id: str) -> None:
        """Have it recorded that the run goes on without this task, once it has ended."""
        if (flight := self._flights.get(task_id)) is not None:
            if self.tracker.matters and not flight.at_rest:
                self._cancelled.add(task_id)
                return  # what it does to the state until it ends belongs to it
            self._leave(flight)
            self._end(task_id, CANCEL, flight.started, flight.duration)
        else:
            self._end(task_id, CANCEL, None, None)

    def _end(
        self,
        task_id: str,
        transition: Transition,
        started: datetime | None,
        duration: float | None,
        error: StepError | None = None,
    ) -> None:
        if transition is CANCEL and started is None:
            changes = [StatusChange(task_id, CANCEL)]
        else:
            changes = [
                StatusChange(task_id, START, started),
                StatusChange(task_id, transition, None, duration, error),
            ]
        self._change(task_id, changes)

    def _change(self, task_id: str, changes: Sequence[StatusChange]) -> None:
        rows = self._pending.rows
        if (row := rows.get(task_id)) is not None:
            record = row.record
            if record.status not in ('created', 'error'):
                return  # it has ended before
            for change in changes:
                record = record.changed(self.run_id, change)
            rows[task_id] = Row(record, row.body)
            if task_id in self._stored and row.record.kind == 'join':
                self._pending.changes += changes  # the one that is stored already has the same id
                del rows[task_id]
        elif task_id in self._stored:
            self._pending.changes += changes
        else:
            return
        if changes[-1].transition in (SUCCEED, CANCEL) and task_id in self._stored:
            self._pending.ended[task_id] = self._stored.pop(task_id)

    def _written(self, value: Any, root: str, node_id: str) -> bytes:
        try:
            return self._values.write(value, root=root, verify=self._verify)
        except Refusal as refusal:
            raise UnfaithfulSnapshotError(
                self.run_id, node_id, refusal.field, refusal.problem
            ) from refusal.__cause__

    # ----------------------------------------------------------------------------------- tasks in flight

    def begin(self, task_id: str, node_id: str) -> TaskFlight:
        """A task begins."""
        flight = TaskFlight(self, task_id, node_id, self._stored.get(task_id, 0) + 1)
        self._flights[task_id] = flight
        if self._pending or self._committing:
            self.tracker.watch()  # or what others have done, and is not stored yet, would count as this one's
        self.tracker.enter(flight)
        return flight

    def succeeded(self, flight: TaskFlight) -> None:
        """A task has returned: have that recorded, with what was created since."""
        self._leave(flight)
        self._pending.by = flight.node_id
        self._end(flight.task_id, SUCCEED, flight.started, flight.duration)

    def stays(self, flight: TaskFlight) -> None:
        """A task has done its part, but is not to be recorded as ended yet."""
        self._leave(flight)

    def stopped(self, flight: TaskFlight, exc: BaseException) -> None:
        """A task has raised, or was interrupted together with the run."""
        if isinstance(exc, Exception):
            self._fail(flight, exc)
        else:
            flight.at_rest = True

    def raised(self, task_id: str, exc: BaseException) -> None:
        """Whoever drives the run is about to learn what a task has raised, which may be no `Exception`."""
        if (flight := self._flights.get(task_id)) is not None:
            self._fail(flight, exc)
        self._told.add(task_id)

    def _fail(self, flight: TaskFlight, exc: BaseException) -> None:
        self._leave(flight)
        if not self.tracker.watching:
            flight.changed = self.tracker.has_changed()
        self._failed[flight.task_id] = flight, exc

    def dropped(self, flight: TaskFlight) -> None:
        """A task has ended that the run has gone on without."""
        self._cancelled.discard(flight.task_id)
        self._leave(flight)
        self._end(flight.task_id, CANCEL, flight.started, flight.duration)

    def _leave(self, flight: TaskFlight) -> None:
        self._flights.pop(flight.task_id, None)
        self.tracker.leave(flight)

    def fault(self, exc: Exception) -> None:
        """What runs between the tasks has raised, such as a reducer; the run cannot go on."""
        self._fault = exc

    def recovered(self) -> None:
        """Whoever drives the run goes on from what it was told of; the state is taken as it is."""
        if not self._told:
            return
        for task_id in self._told & self._failed.keys():
            flight, exc = self._failed.pop(task_id)
            self._end(task_id, FAIL, flight.started, flight.duration, StepError.of(exc))
            self._change(task_id, [StatusChange(task_id, CANCEL)])
        self._told.clear()
        self.tracker.settle()

    # ---------------------------------------------------------------------------------------- the writing

    async def settle(self) -> None:
        """Write what is to be written, if that may be now; together with what others have meanwhile.

        Raises:
            UnfaithfulSnapshotError: if the state would not be loaded as it is.
            OwnershipLostError: if another owner has taken the run.
            StorageError: if the storage fails.
        """
        batch = self._pending
        while batch and not batch.over:
            if self._committing:
                await self._turn()
                continue
            self._committing = True
            try:
                if self.tracker.in_flight or self.due:
                    await anyio.lowlevel.checkpoint()  # others may be about to end, too
                if not self._may_commit():
                    return
                await self._commit(batch)
            finally:
                self._committing = False
                waiting, self._waiting = self._waiting, []
                for event in waiting:
                    event.set()
        if batch.error is not None:
            raise batch.error

    async def _turn(self) -> None:
        """Wait until the commit under way is made, or is found to have to wait."""
        event = anyio.Event()
        self._waiting.append(event)
        await event.wait()

    def _may_commit(self) -> bool:
        if self.finished:
            return False
        if self._broken is not None:
            raise self._broken
        if self.tracker.matters and (self._cancelled or any(f.changed for f, _ in self._failed.values())):
            return False
        return self.tracker.may_store()

    async def _commit(self, batch: _Batch) -> None:
        self._pending = _Batch()
        batch.over = True
        new = {
            task_id: row.record.attempt
            for task_id, row in batch.rows.items()
            if _is_open(row) and task_id not in self._stored
        }
        try:
            image = self.tracker.image_to_store()
            commit = Commit(batch.changes, self._rows(batch, image), must_land=True)
            # now, for what becomes of these tasks while this is written is for the commit after it
            self._stored |= new
            self._writing = batch
            receipt = await self.persistence._commit(commit)
        except GraphkeepError as exc:
            batch.error = self._broken = exc
            self._stored |= batch.ended  # they have not
            for task_id in new:  # there are none such
                self._stored.pop(task_id, None)
                self._pending.ended.pop(task_id, None)
            raise
        finally:
            self._writing = None
        self.tracker.stored = image
        self.tracker.relax()
        if receipt.interrupted is not None:
            raise receipt.interrupted

    def _rows(self, batch: _Batch, image: object) -> list[Row]:
        """Return the rows of a batch, and in one of them the state if it is not what was stored last."""
        rows = list(batch.rows.values())
        changed = image != self.tracker.stored
        if not changed and not (self._verify and self.tracker.matters):
            return rows
        text = self._state_text(image, batch.by)  # what looks as before may still not be loaded as it is
        if not changed:
            return rows
        if rows:
            rows[0] = Row(rows[0].record, Body(text, rows[0].body.node))
            return rows
        return [Row(StepRecord('image', '', 'image', 'success'), Body(text, b'{"node_id":""}'))]

    def _state_text(self, image: object, by: str) -> bytes:
        text = image if isinstance(image, bytes) else None
        try:
            return self._codec.write_state(self._state, self._verify, text)
        except Refusal as refusal:
            raise UnfaithfulSnapshotError(
                self.run_id, by, refusal.field, refusal.problem
            ) from refusal.__cause__

    # ------------------------------------------------------------------------------------------- the end

    def encode_end(self, output: Any, *, by: str) -> None:
        """Refuse a result that could not be stored at the end.

        Raises:
            UnfaithfulSnapshotError: if it would not be loaded as it is.
        """
        try:
            self._codec.write_result(output, self._verify)
        except Refusal as refusal:
            raise UnfaithfulSnapshotError(
                self.run_id, by, refusal.field, refusal.problem
            ) from refusal.__cause__

    async def finish(self, output: Any) -> None:
        """Write the end of the run: the result, the state as it is, and that nothing is open any more.

        Raises:
            UnfaithfulSnapshotError: if the state or the result would not be loaded as it is.
        """
        if self.finished:
            return
        while self._committing:
            await self._turn()
        if self._broken is not None:
            raise self._broken
        self._told.update(self._failed)
        self.recovered()
        self.finished = True  # no other commit from here on
        try:
            receipt = await self._commit_end(output)
        except BaseException as exc:
            self.finished, self._broken = False, exc
            raise
        if receipt.interrupted is not None:
            raise receipt.interrupted

    async def _commit_end(self, output: Any) -> Receipt:
        end = self.persistence._row(EndSnapshot(state=self._state, result=End(output), ts=self.now()))
        batch = self._pending
        for task_id in [*self._stored, *(row.record.id for row in batch.rows.values() if _is_open(row))]:
            flight = self._flights.get(task_id)
            how = SUCCEED if task_id == self.ending else CANCEL
            self._end(task_id, how, flight and flight.started, flight and flight.duration)
        done = StatusChange(self.snapshot_id, SUCCEED, None, perf_counter() - self._begun)
        rows = [*batch.rows.values(), end]
        return await self.persistence._commit(Commit([*batch.changes, done], rows, must_land=True))

    async def leave(self, exc: BaseException | None) -> None:
        """Write that the run was left before its end: what was in flight is to be run again.

        It has failed if a task has raised and nobody has gone on from there; else anybody may go on with it.
        If the storage fails this is made up for by the next use of the persistence.
        """
        if self.finished:
            return
        self.finished = True
        batch, self._pending = self._pending, _Batch()
        self._pending.changes += _taken_back(batch)
        reason = f'interrupted by {type(exc).__name__}' if exc is not None else 'the run was left'
        failed: StepError | None = None
        for error in (self._broken, self._fault):
            if self._is_failure(error):
                failed = StepError.of(error)
        for task_id, flight in self._flights.items():
            if task_id in self._stored:
                self._pending.changes += [
                    StatusChange(task_id, START, flight.started),
                    StatusChange(task_id, RELEASE, None, flight.duration, reason=reason),
                ]
        for task_id, (flight, error) in self._failed.items():
            if not self._is_failure(error):
                continue
            failed = StepError.of(error)
            if task_id in self._stored:
                self._end(task_id, FAIL, flight.started, flight.duration, failed)
        duration = perf_counter() - self._begun
        if failed is not None:
            last = StatusChange(self.snapshot_id, FAIL, None, duration, failed)
        else:
            last = StatusChange(self.snapshot_id, RELEASE, None, duration, reason=reason)
        try:
            await self.persistence._land(Commit([*self._pending.changes, last], must_land=True))
        except OwnershipLostError:
            if exc is None:
                raise
        except GraphkeepError as other:
            if exc is None:
                raise
            exc.add_note(f'That the run was left could not be recorded: {other}')

    def _is_failure(self, error: BaseException | None) -> TypeGuard[Exception]:
        """Whether it is the graph that failed, and neither an interruption nor the storage of this run."""
        if isinstance(error, UnfaithfulSnapshotError):
            return True
        if isinstance(error, OwnershipLostError) and error.run_id == self.run_id:
            return False
        return isinstance(error, Exception) and error is not self._broken


def _taken_back(batch: _Batch) -> Iterator[StatusChange]:
    """Return that tasks were run, instead of what became of them: that was not committed."""
    for begun, ended in pairwise(batch.changes):
        if begun.snapshot_id in batch.ended and begun.transition is START and begun.at is not None:
            yield begun
            yield StatusChange(
                ended.snapshot_id, RELEASE, None, ended.duration, reason='its commit had to wait'
            )


def _is_open(row: Row) -> bool:
    return row.record.status == 'created'
