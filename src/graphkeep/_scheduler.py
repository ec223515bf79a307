"""The host's scheduler of builder graphs, and what has to be known of it to record what it does.

This module and `_builder_run` are the only ones that reach into it. They need `GraphRun` and `_GraphIterator`
as they have been since pydantic-graph 1.97; others are refused when this is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import fields
from typing import Any, Final, cast

from anyio import BrokenResourceError, ClosedResourceError

from ._host import HOST_VERSION
from ._scheduling import Ids, Results, Resumed
from .commit import Row
from .errors import UnfaithfulSnapshotError, UnsupportedHostError
from .inplace import has_room, in_place
from .offload import current_task
from .step import running
from .taskflight import TaskFlight
from .taskrows import Branch
from .taskrun import TaskRun
from .turns import Stint

_NEEDS: Final = 'graph builder of pydantic-graph 1.97 to 2.x'

try:
    from pydantic_graph.decision import Decision
    from pydantic_graph.graph_builder import (
        EndMarker,
        ErrorMarker,
        Graph,
        GraphRun,
        GraphTask,
        JoinItem,
        _GraphIterator,
        _GraphTaskAsyncIterable,
        _GraphTaskResult,
    )
    from pydantic_graph.id_types import ForkStackItem, NodeID, NodeRunID, TaskID
    from pydantic_graph.join import Join, JoinState
    from pydantic_graph.node import EndNode, Fork, StartNode
    from pydantic_graph.step import NodeStep, Step
except ImportError as exc:
    raise UnsupportedHostError(HOST_VERSION, _NEEDS, str(exc)) from exc

__all__ = (
    'Decision',
    'EndMarker',
    'EndNode',
    'ErrorMarker',
    'Fork',
    'ForkStackItem',
    'Graph',
    'GraphRun',
    'GraphTask',
    'Join',
    'NodeID',
    'NodeRunID',
    'NodeStep',
    'Scheduler',
    'StartNode',
    'Step',
    'TaskID',
    'stack_of',
)

_METHODS: Final = (
    '_run_task',
    '_run_tracked_task',
    '_handle_execution_request',
    '_finish_task',
    '_cancel_sibling_tasks',
    'iter_graph',
)
_FIELDS: Final = (
    'get_next_node_run_id',
    'get_next_task_id',
    'active_tasks',
    'active_reducers',
    'cancel_scopes',
    'iter_stream_receiver',
    'task_group',
)
_RESULT: Final = ('source', 'result', 'error')


def _lacking(kind: Any, needed: Sequence[str]) -> list[str]:
    return sorted({*needed} - {field.name for field in fields(kind)})


if missing := [
    *(name for name in _METHODS if not hasattr(_GraphIterator, name)),
    *_lacking(_GraphIterator, _FIELDS),
    *_lacking(_GraphTaskResult, _RESULT),
]:
    raise UnsupportedHostError(HOST_VERSION, _NEEDS, f'its scheduler has no {missing[0]!r}')


def stack_of(stack: Sequence[Any]) -> tuple[Any, ...]:
    """Return the host's fork stack of these branches."""
    return tuple(
        ForkStackItem(NodeID(fork), NodeRunID(run), index)
        for fork, run, index in cast('Sequence[Branch]', stack)
    )


def _branches(stack: Sequence[ForkStackItem]) -> list[Branch]:
    return [(item.fork_id, item.node_run_id, item.thread_index) for item in stack]


class _Nothing:
    """In the place of the scope of a task that has ended."""

    def cancel(self) -> None:
        """Do nothing."""


_NOTHING_TO_CANCEL: Final = cast(Any, _Nothing())


class Scheduler(_GraphIterator[Any, Any, Any]):
    """The host's scheduler, which tells a `TaskRun` what becomes of its tasks.

    Tasks begin when it next waits for a result, or when whoever drives the run is told of one. A task that
    is alone then is run within that wait, and not in a task of the event loop of its own: nothing else could
    happen until it has ended, and that would take much of the time of a step.
    """

    def attach(self, task_run: TaskRun, resumed: Resumed | None) -> None:
        """Tell this run, which the current task of the event loop enters, and go on with what was resumed."""
        self._task_run = task_run
        self._resumed = resumed
        self._first = True
        self._source: GraphTask | None = None  # of the result that is being handled
        self._returned: dict[str, str] = {}  # join items on their way: source task, recorded task
        self._reduced: dict[tuple[str, str], list[str]] = {}  # by join: the recorded items that it holds
        self._opened: dict[str, Any] = {}  # by task: the join that it has opened
        self._begun: set[tuple[str, str]] = set()  # joins that are on record as begun
        self._origins: dict[str, TaskFlight] = {}  # of tasks that carry a stream: the task it comes from
        self._sent: dict[str, list[str]] = {}  # what a result on its way leads to, by the task it is of
        self._plain: dict[str, bool] = {}  # whether the reducer of a join is one
        self._idle: TaskID | None = None  # the task that does nothing
        self._ends: dict[str, str] = {}  # of tasks that have come to the end: the task that stands for it
        self._items: dict[str, Any] = {}  # of nodes that have returned an item of a join: the join
        self._ready: list[GraphTask] = []  # to begin
        self._entered_in = current_task() if has_room() else None
        self._stint = Stint()
        self._stream_receiver = self.iter_stream_receiver
        self.iter_stream_receiver = cast(Any, Results(self._stream_receiver, self._take, self._receive))

    # ------------------------------------------------------------------------------------ what is called

    def _handle_execution_request(self, request: Sequence[GraphTask]) -> None:
        if self._first:
            self._first = False
            if self._resumed is not None:
                for task in request:
                    self.active_tasks.pop(task.task_id, None)
                request = self._restore(self._resumed)
            self._streams = dict(self._resumed.streams) if self._resumed else {}
        else:
            self._create_unknown(request)
            self._task_run.due.update(task.task_id for task in request)
        self.active_tasks.update((task.task_id, task) for task in request)
        self._ready += request

    def begin(self) -> None:
        """Begin the tasks that are ready, each in a task of the event loop."""
        ready, self._ready = self._ready, []
        for task in ready:
            self.task_group.start_soon(self._run_tracked_task, task)

    async def _take(self) -> Any:
        """Begin the tasks that are ready, and return the next result."""
        if self._ready:
            if self._is_alone():
                return await self._run_alone(self._ready.pop())
            self.begin()
        return await self._stream_receiver.__anext__()

    def _is_alone(self) -> bool:
        """Whether what is ready can run in place: nothing else can come to a result, or goes on afterwards.

        Another task of the event loop than the one that has entered the run may be gone, or be cancelled,
        while the run goes on: there a step would not be the run's.
        """
        return (
            len(self._ready) == 1
            and self.active_tasks.keys() == {self._ready[0].task_id}
            and not _is_stream(self._ready[0].inputs)
            and current_task() is self._entered_in
        )

    async def _run_alone(self, task: GraphTask) -> Any:
        if self._stint.is_over:
            await self._stint.give_way()
        return await in_place(self._result_of(task))

    async def _result_of(self, task: GraphTask) -> Any:
        """Return what comes of a task, as the host does for one that it runs beside others."""
        try:
            return _GraphTaskResult(task, await self._run_task(task))
        except BaseException as exc:
            return _GraphTaskResult(task, [], error=exc)

    async def see(self, tasks: Sequence[GraphTask]) -> None:
        """Have the tasks recorded that whoever drives the run is about to see."""
        if self._unknown(tasks):
            self._create_unknown(tasks)
            await self._task_run.settle()

    def _create_unknown(self, tasks: Sequence[GraphTask]) -> None:
        """Have tasks recorded that come from no other one: those behind a join, or the caller's own."""
        closed = self._close_joins()
        if new := self._unknown(tasks):
            source = self._source.node_id if self._source is not None else StartNode.id
            self._create(new, by=closed or source)
        self._task_run.tracker.settle()  # what a transform behind a join has changed belongs to no task

    def _unknown(self, tasks: Sequence[GraphTask]) -> list[GraphTask]:
        return [t for t in tasks if not self._task_run.knows(t.task_id) and t.task_id not in self._origins]

    def _restore(self, resumed: Resumed) -> Sequence[GraphTask]:
        for join in resumed.joins:
            node = self.graph.nodes[NodeID(join.join_id)]
            current = (
                join.value[0]
                if join.value is not None
                else cast('Join[Any, Any, Any, Any]', node).initial_factory()
            )
            key: Any = join.join_id, join.fork_run
            self.active_reducers[key] = JoinState(current, join.stack, join.stopped)
            self._begun.add(key)
            self._task_run.stored_join(join.row_id, *key)
        if resumed.tasks:
            return resumed.tasks
        # joins alone are closed when a task has ended; so let there be one
        self._idle = self.get_next_task_id()
        return [GraphTask(StartNode.id, None, (), self._idle)]

    async def _run_task(self, task: GraphTask) -> Any:
        task_run = self._task_run
        task_run.due.discard(task.task_id)
        if task.task_id == self._idle:
            return []
        await task_run.recorded(task.task_id)
        node = self.graph.nodes[task.node_id]
        if isinstance(node, Join):
            self._returned[task.task_id] = task.task_id
            return await super()._run_task(task)
        origin = self._origins.get(task.task_id)
        flight = origin or task_run.begin(task.task_id, task.node_id)
        if isinstance(node, Fork):
            self._pin(task, origin)
        joins = len(self.active_reducers)
        running.set(flight)
        try:
            result = await task_run.tracker.drive(flight, super()._run_task(task), ends=origin is None)
            if isinstance(node, Fork) and node.is_map and len(self.active_reducers) > joins:
                # a map opens its join, which closes even if nothing comes to it; no other task ran meanwhile
                self._opened[task.task_id] = next(reversed(self.active_reducers))
            return await self._record(task, node, flight, result)
        except BaseException as exc:
            self._stop(task, flight, exc)
            raise

    async def _run_tracked_task(self, t_: GraphTask) -> None:
        try:
            await super()._run_tracked_task(t_)
        except (BrokenResourceError, ClosedResourceError):
            if not cast(Results, self.iter_stream_receiver).closed:
                raise
            # older hosts let this out if the run is left just when a task has ended
        else:
            if t_.task_id in self.cancel_scopes:
                # it is cancelled when its result is handled, which takes the host long to do nothing
                self.cancel_scopes[t_.task_id] = _NOTHING_TO_CANCEL

    async def _finish_task(self, task_id: TaskID) -> None:
        runs = task_id in self.cancel_scopes
        await super()._finish_task(task_id)
        task_run = self._task_run
        task_run.due.discard(task_id)
        for child in self._sent.pop(task_id, ()):  # its result is lost
            if (origin := self._origins.pop(child, None)) is not None:
                task_run.dropped(origin)
            else:
                task_run.cancel(child)
        if (end := self._ends.pop(task_id, None)) is not None and not task_run.finished:
            task_run.cancel(end)  # whoever drives the run goes on from it
        if (item := self._returned.pop(task_id, None)) is not None:
            self._take_item(task_id, item)
        elif (origin := self._origins.pop(task_id, None)) is not None:
            if runs:
                task_run.cancel(origin.task_id)
            else:
                task_run.dropped(origin)
        elif self._source is None or self._source.task_id != task_id:
            task_run.cancel(task_id)
        self._close_joins()

    def _receive(self, result: Any) -> bool:
        """A result is about to be handled; return whether it is one of a task that was not cancelled.

        On trio the result of a task that was cancelled while it was sent may arrive all the same.
        """
        if result.source.task_id not in self.active_tasks:
            return False
        self._source = source = result.source
        if (error := result.error) is not None:
            origin = self._origins.get(source.task_id)
            self._task_run.raised(origin.task_id if origin else source.task_id, error)
        elif isinstance(result.result, EndMarker):
            self._task_run.ending = self._ends.get(source.task_id)
        self._sent.pop(source.task_id, None)
        self._task_run.tracker.check()
        return True

    # ------------------------------------------------------------------------------------------- results

    async def _record(self, task: GraphTask, node: Any, flight: TaskFlight, result: Any) -> Any:
        """Have what a task has come to recorded, before the scheduler learns of it."""
        task_run = self._task_run
        by = task.node_id
        if task.task_id not in self.active_tasks:
            self._stop(task, flight)  # it was cancelled, and has returned all the same
            return []
        if isinstance(result, _GraphTaskAsyncIterable):
            return self._streaming(task, flight, result)
        if isinstance(node, EndNode):
            task_run.stays(flight)  # until the end itself is recorded
            self._ends[task.task_id] = task.task_id
            return result
        if isinstance(result, EndMarker):
            output = cast('EndMarker[Any]', result).value
            end = GraphTask(EndNode.id, output, task.fork_stack, self.get_next_task_id())
            self._create([end], by=by)
            self._sent[task.task_id] = [end.task_id]
            self._ends[task.task_id] = end.task_id
        elif isinstance(result, JoinItem):
            item = GraphTask(result.join_id, result.inputs, result.fork_stack, self.get_next_task_id())
            self._create([item], by=by)
            self._returned[task.task_id] = item.task_id
            self._items[task.task_id] = item.node_id
        else:
            tasks: Sequence[GraphTask] = result
            if any(_is_stream(one.inputs) for one in tasks):
                self._carry(task, flight, tasks)
                return result
            self._create(tasks, by=by)
            self._sent[task.task_id] = [one.task_id for one in tasks]
            self._begin_join(task)
        self._origins.pop(task.task_id, None)
        task_run.succeeded(flight)
        await task_run.settle()
        return cast(Any, result)

    def _carry(self, task: GraphTask, flight: TaskFlight, tasks: Sequence[GraphTask]) -> None:
        """Let a stream go on; until it has ended, so has not the task that it comes from."""
        (one, *others) = tasks
        if others or not isinstance(self.graph.nodes[one.node_id], Fork | Decision):
            leads = ' and '.join(repr(one.node_id) for one in tasks)
            raise UnfaithfulSnapshotError(
                self._task_run.run_id,
                task.node_id,
                'its result',
                f'is an iterator, which goes to {leads}: only one map can take it, and nothing else; '
                'return a list, or map over the iterator',
            )
        flight.dirty = flight.dirty or flight.changed  # it has not ended
        self._origins.pop(task.task_id, None)
        self._origins[one.task_id] = flight
        self._sent[task.task_id] = [one.task_id]

    async def _stream(
        self, task: GraphTask, flight: TaskFlight, iterable: AsyncIterable[Any]
    ) -> AsyncIterator[Any]:
        task_run = self._task_run
        skipped = self._streams.pop((flight.task_id, task.node_id), ('', 0))[1]
        items = aiter(iterable)
        try:
            while True:
                try:
                    tasks = await task_run.tracker.drive(flight, anext(items), ends=False)
                except StopAsyncIteration:
                    break
                if tasks and tasks[0].fork_stack[len(task.fork_stack)].thread_index < skipped:
                    continue  # it is on record: it has ended, or is one of those that the run goes on with
                if task.task_id not in self.active_tasks:
                    break  # it was cancelled, and goes on all the same
                self._create(tasks, by=task.node_id, origin=flight.task_id)
                self._sent[task.task_id] = [one.task_id for one in tasks]
                await task_run.settle()
                flight.at_rest = True
                yield tasks
                flight.at_rest = False
            if task.task_id not in self.active_tasks:
                self._stop(task, flight)
                return
            self._begin_join(task)  # and not before: if it runs again it opens another one
            self._origins.pop(task.task_id, None)
            task_run.succeeded(flight)
            await task_run.settle()
        except BaseException as exc:
            self._stop(task, flight, exc)
            raise

    def _stop(self, task: GraphTask, flight: TaskFlight, exc: BaseException | None = None) -> None:
        """A task has raised, or the run has gone on without it, and what it has come to does not count."""
        if exc is not None and task.task_id in self.active_tasks:
            self._task_run.stopped(flight, exc)
        else:
            self._task_run.dropped(flight)

    def _streaming(self, task: GraphTask, flight: TaskFlight, result: Any) -> Any:
        return _GraphTaskAsyncIterable(self._stream(task, flight, result.iterable), result.fork_stack)

    def _pin(self, task: GraphTask, origin: TaskFlight | None) -> None:
        """Let a fork over a stream that goes on be the run of it that its recorded items are of."""
        if origin is not None and (known := self._streams.get((origin.task_id, task.node_id))) is not None:
            cast(Ids, self.get_next_node_run_id).pinned = known[0]

    def _create(self, tasks: Sequence[GraphTask], *, by: str, origin: str | None = None) -> None:
        """Have new tasks recorded, all of them or none."""
        rows: list[Row] = []
        for task in tasks:
            if task.node_id == EndNode.id:
                self._task_run.encode_end(task.inputs, by=by)
            stack = _branches(task.fork_stack)
            rows.append(
                self._task_run.task(task.task_id, task.node_id, task.inputs, stack, origin=origin, by=by)
            )
        self._task_run.create(rows)

    # --------------------------------------------------------------------------------------------- joins

    def _begin_join(self, task: GraphTask) -> None:
        """Record the join that a map has opened, if nothing has come to it yet."""
        key: Any = self._opened.pop(task.task_id, None)
        if key in self.active_reducers and key not in self._begun and key not in self._reduced:
            self._begun.add(key)
            stack = _branches(self.active_reducers[key].downstream_fork_stack)
            self._task_run.join(key[0], key[1], stack, None, stopped=False)

    def _take_item(self, task_id: str, item: str) -> None:
        """An item of a join was reduced, or dropped."""
        source = self._source
        if source is None or source.task_id != task_id:
            self._task_run.cancel(item)
            return
        node = self.graph.nodes[source.node_id]
        # a node of the graph may return the item itself
        join_id, key = self._join_of(source, node)
        join = cast('Join[Any, Any, Any, Any]', self.graph.nodes[join_id])
        if join_id not in self._plain:
            self._plain[join_id] = _is_plain(join)
        if self._plain[join_id]:
            self._reduced.setdefault(key, []).append(item)
            return
        self._task_run.tracker.settle()  # what the reducer has changed belongs to no task
        self._task_run.close(item)
        if (state := self.active_reducers.get(cast(Any, key))) is not None:
            self._begun.add(key)
            stack = _branches(state.downstream_fork_stack)
            self._task_run.join(*key, stack, (state.current,), stopped=state.cancelled_sibling_tasks)

    def _join_of(self, source: GraphTask, node: Any) -> tuple[Any, tuple[str, str]]:
        join_id: Any = source.node_id if isinstance(node, Join) else self._items.pop(source.task_id)
        parent = self.graph.get_parent_fork(join_id).fork_id
        run = next(item.node_run_id for item in reversed(source.fork_stack) if item.fork_id == parent)
        return join_id, (join_id, run)

    def _close_joins(self) -> str | None:
        """Record the end of the joins that have closed since, and of what they hold; return one of them."""
        closed: str | None = None
        active: dict[Any, Any] = self.active_reducers
        for key in [key for key in self._reduced if key not in active]:
            closed = key[0]
            for item in self._reduced.pop(key):
                self._task_run.close(item)
        for key in [key for key in self._begun if key not in active]:
            closed = key[0]
            self._begun.discard(key)
            self._task_run.close_join(*key)
        return closed


def _is_stream(value: Any) -> bool:
    return hasattr(value, '__aiter__') or hasattr(value, '__next__')


def _is_plain(join: Join[Any, Any, Any, Any]) -> bool:
    """Whether reducing again comes to the same: the reducer is not given the state."""
    return len(inspect.signature(join.reducer).parameters) == 2
