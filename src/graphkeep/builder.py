"""`PersistentGraph`: graphs of pydantic-graph's builder, whose runs are recorded and go on from where they stopped."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, cast
from uuid import uuid4

import anyio
from typing_extensions import TypeVar

from ._host import StateT
from ._spans import new_span, traceparent_of
from .codec import Body, Codec, Refusal
from .commit import Commit, Parts, Row, StatusChange, StepRecord
from .errors import (
    CorruptSnapshotError,
    GraphkeepError,
    OwnershipLostError,
    RunExistsError,
    RunFinishedError,
    SnapshotStatusError,
    UnfaithfulSnapshotError,
    UnknownRunError,
    UnsupportedTypeError,
)
from .namedtypes import named_in, signature_hints
from .snapshots import EndSnapshot, NodeSnapshot
from .status import RECOVER, START
from .stored import StoredStatePersistence
from .taskrows import read_join, read_task
from .taskrun import TaskRun
from .tracking import Tracker, Tracking, is_immutable
from .values import ValueCodec

if TYPE_CHECKING:
    from ._scheduler import Graph, PersistentGraphRun, Resumed

__all__ = ('PersistentGraph',)

DepsT = TypeVar('DepsT', default=Any)
"""Type variable for the dependencies of a graph."""
InputT = TypeVar('InputT', default=Any)
"""Type variable for what the first step of a graph gets."""
OutputT = TypeVar('OutputT', default=Any)
"""Type variable for what a graph comes to."""

_START: Final = '__start__'


class _Opening(NamedTuple):
    """What is known of a stored run that is to go on."""

    snapshot_id: str
    number: int
    """How many times the run was opened, this time included."""
    state: Any
    first: tuple[str, Any]
    """The node that the run begins with, and its inputs."""
    resumed: Resumed | None
    """What to go on with; `None` to begin."""
    stored: Sequence[StepRecord]
    changes: Sequence[StatusChange]


class PersistentGraph(Generic[StateT, DepsT, InputT, OutputT]):
    """A builder graph whose runs are recorded as they go.

    - *Atomic*: that a step returned, what comes next, and the state as it is then are one write.
    - *Consistent*: what is stored of the state never holds what a step has done that is not on record as
      ended; see `tracking`.
    - *Durable first*: whoever drives the run sees a result once it is recorded, unless its commit has to wait
      for a step that has changed the state and goes on.
    - *At least once*: a step that succeeded is never run again; one that was interrupted is, with the inputs
      that it had. See `current_step` for the key that makes its side effects idempotent.
    - *One owner*: an open run is its opener's; what somebody else has taken over can no longer be written.

    All else is as the graph itself is, and can be reached through this object.
    """

    def __init__(
        self,
        graph: Graph[StateT, DepsT, InputT, OutputT],
        *,
        types: Iterable[Any] = (),
        tracking: Tracking = 'exact',
        nodes: Mapping[str, str] | None = None,
    ):
        """Make runs of the graph recordable.

        Args:
            graph: What `GraphBuilder.build()` returned.
            types: Types that values may have which neither the graph nor its steps name.
            tracking: How it is known that the state holds nothing of a step that goes on: `'exact'`, by
                looking at what each step does between two of its awaits; or `'barrier'`, by storing only
                while no step runs, for very large states.
            nodes: New ids of nodes that were renamed, by the ids that stored runs have.

        Raises:
            UnsupportedHostError: if the installed pydantic-graph has no such graph builder.
            UnsupportedTypeError: if an annotation of a step cannot be resolved, or the type of the state or
                the result cannot be stored.
        """
        from . import _scheduler

        if not isinstance(graph, _scheduler.Graph):
            raise TypeError(f'graph must be what GraphBuilder.build() returns, got {graph!r}')
        if tracking not in ('exact', 'barrier'):
            raise ValueError(f"tracking must be 'exact' or 'barrier', got {tracking!r}")
        self.graph = graph
        self.tracking: Tracking = tracking
        self._renamed = dict(nodes or {})
        frame = inspect.currentframe()
        named = named_in([*_hints(graph, _names(frame)), *types])
        self._values = ValueCodec(named)
        nodes_ = [n.node_type for n in graph.nodes.values() if isinstance(n, _scheduler.NodeStep)]
        self._codec: Codec[Any, Any] = Codec.of(nodes_, graph.state_type, graph.output_type)

    def __getattr__(self, name: str) -> Any:
        if name == 'graph':  # not made yet
            raise AttributeError(name)
        return getattr(self.graph, name)

    def __repr__(self) -> str:
        return f'PersistentGraph({self.graph.name or "a nameless graph"!r})'

    # -------------------------------------------------------------------------------------------- running

    async def run(
        self,
        *,
        state: StateT = cast(Any, None),
        deps: DepsT = cast(Any, None),
        inputs: InputT = cast(Any, None),
        persistence: StoredStatePersistence[Any, Any] | None = None,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> OutputT:
        """Run the graph from its start to its end.

        Args:
            state: The state.
            deps: The dependencies of the steps; never stored.
            inputs: What the first step gets.
            persistence: Where to record the run; nothing is recorded without it.
            span: The span of the run, instead of one made for it.
            infer_name: Whether to name a nameless graph after the caller's variable.

        Raises:
            RunExistsError: if there is a run already; `run_or_resume` goes on with it.
            UnfaithfulSnapshotError: if a value or the state would not be loaded as it is.
        """
        if infer_name:
            self._name(inspect.currentframe())
        iterating = self.iter(
            state=state, deps=deps, inputs=inputs, persistence=persistence, span=span, infer_name=False
        )
        async with iterating as run:
            return await _driven(run)

    def run_sync(
        self,
        *,
        state: StateT = cast(Any, None),
        deps: DepsT = cast(Any, None),
        inputs: InputT = cast(Any, None),
        persistence: StoredStatePersistence[Any, Any] | None = None,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> OutputT:
        """Run the graph from its start to its end, in an event loop of its own; see `run`."""
        if infer_name:
            self._name(inspect.currentframe())

        async def run() -> OutputT:
            return await self.run(
                state=state, deps=deps, inputs=inputs, persistence=persistence, span=span, infer_name=False
            )

        return anyio.run(run)

    @asynccontextmanager
    async def iter(
        self,
        *,
        state: StateT = cast(Any, None),
        deps: DepsT = cast(Any, None),
        inputs: InputT = cast(Any, None),
        persistence: StoredStatePersistence[Any, Any] | None = None,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> AsyncGenerator[Any]:
        """Iterate over what the graph does from its start on; yields the run, as `Graph.iter` does.

        The run is the caller's while it is open. A run that is left before its end can be gone on with.
        Arguments and errors are those of `run`.
        """
        if infer_name:
            self._name(_caller(inspect.currentframe()))
        if persistence is None:
            plain = self.graph.iter(state=state, deps=deps, inputs=inputs, span=span, infer_name=False)
            async with plain as run:
                yield run
            return
        snapshot_id = await self._start(persistence, state, inputs)
        if snapshot_id is None:
            raise RunExistsError(persistence.run_id)
        begun = StatusChange(snapshot_id, START, persistence._now())
        opening = _Opening(snapshot_id, 1, state, (_START, inputs), None, (), (begun,))
        async with self._open(persistence, opening, deps, span) as run:
            yield run

    async def initialize(
        self,
        *,
        persistence: StoredStatePersistence[Any, Any],
        state: StateT = cast(Any, None),
        inputs: InputT = cast(Any, None),
        infer_name: bool = True,
    ) -> None:
        """Record a run that is to be run later, by anybody; atomic.

        Raises:
            RunExistsError: if there is a run already.
            UnfaithfulSnapshotError: if the state or the inputs would not be loaded as they are.
        """
        if infer_name:
            self._name(inspect.currentframe())
        if await self._start(persistence, state, inputs) is None:
            raise RunExistsError(persistence.run_id)

    @asynccontextmanager
    async def iter_from_persistence(
        self,
        persistence: StoredStatePersistence[Any, Any],
        *,
        deps: DepsT = cast(Any, None),
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> AsyncGenerator[Any]:
        """Go on with a recorded run, from what is stored of it.

        What was in flight when it stopped is run again. A run of `BaseNode`s goes on, too, in a graph that has
        its next node.

        Raises:
            UnknownRunError: if nothing is stored of the run.
            RunFinishedError: if it has ended.
            RunFailedError: if it stopped at a step that raised; `await persistence.retry()` gives it another
                attempt.
            RunOwnedError: if another living owner has the run.
            CorruptSnapshotError: if what is stored cannot be read, or is not of this graph. It stays as it is.
        """
        if infer_name:
            self._name(_caller(inspect.currentframe()))
        self._prepare(persistence)
        opening = await self._claim(persistence)
        async with self._open(persistence, opening, deps, span) as run:
            yield run

    # -------------------------------------------------------------------------------------------- opening

    def _prepare(self, persistence: object) -> StoredStatePersistence[Any, Any]:
        if not isinstance(persistence, StoredStatePersistence):
            raise TypeError(
                f'persistence must be one of a store, got {persistence!r}: give `store.run(run_id)`, or a '
                'FileStatePersistence.'
            )
        stored = cast('StoredStatePersistence[Any, Any]', persistence)
        stored.set_builder_types(self._codec, self.graph.name)
        return stored

    async def _start(
        self, persistence: StoredStatePersistence[Any, Any], state: StateT, inputs: InputT
    ) -> str | None:
        """Record the start of a run; return its snapshot, or `None` if there is a run already."""
        self._prepare(persistence)
        await persistence._flush()
        if (await persistence._tail()).rows:
            return None
        try:
            text = self._values.write(inputs, root='inputs', verify=persistence.verify)
            body = Body(
                self._codec.write_state(state, persistence.verify),
                b'{"node_id":"__start__","inputs":%b}' % text,
            )
        except Refusal as refusal:
            raise UnfaithfulSnapshotError(
                persistence.run_id, _START, refusal.field, refusal.problem
            ) from refusal.__cause__
        record = StepRecord(f'{_START}:{uuid4().hex}', _START)
        receipt = await persistence._commit(Commit(rows=[Row(record, body)], unless_any=True))
        if receipt.interrupted is not None:
            raise receipt.interrupted
        newest = (await persistence._tail()).rows[0].record
        return record.id if newest.id == record.id else None

    async def _claim(self, persistence: StoredStatePersistence[Any, Any]) -> _Opening:
        await persistence._flush()
        if persistence._offered is None:
            await persistence.release()
            row, _ = await persistence._claim(lambda row: None)
        else:
            offered, persistence._offered = persistence._offered, None
            row = next((r for r in (await persistence._tail()).open if r.record.id == offered), None)
        if row is None:
            raise await persistence.why_unresumable()
        try:
            rows = await persistence._rows()
            current = next(r for r in rows if r.record.id == row.record.id and not r.record.is_part)
            return self._opening(persistence, current, rows)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await persistence.release()
            raise

    def _opening(
        self, persistence: StoredStatePersistence[Any, Any], row: Row, rows: Sequence[Row]
    ) -> _Opening:
        place, record = persistence._place, row.record
        parts = Parts.of(rows)
        if record.node_id == _START:
            state = self._codec.decode_state(record, row.body, place=place)
            first = _START, self._decoded(record, read_inputs(row, place), place)
        else:
            snapshot = persistence._thaw(row)  # a run of `BaseNode`s, which goes on here
            state = snapshot.state
            first = record.node_id, cast('NodeSnapshot[Any, Any]', snapshot).node
        if parts.image is not None:
            state = self._codec.decode_state(parts.image.record, parts.image.body, place=place)
        changes = [StatusChange(record.id, START, persistence._now())]
        if record.attempts and record.attempts[-1].outcome == 'recovered':
            # whoever had the run is gone, and with it what it had in flight
            reason = record.attempts[-1].reason
            for task in parts.open:
                if self._runs_code(task.record):
                    changes.append(StatusChange(task.record.id, START))
                    changes.append(StatusChange(task.record.id, RECOVER, reason=reason))
        return _Opening(
            record.id,
            record.attempt + 1,
            state,
            first,
            self._resumed(parts, rows, place) if parts.newest is not None else None,
            [task.record for task in parts.open],
            changes,
        )

    def _runs_code(self, record: StepRecord) -> bool:
        from ._scheduler import NodeID, Step

        return record.kind == 'task' and isinstance(
            self.graph.nodes.get(NodeID(self._renamed.get(record.node_id, record.node_id))), Step
        )

    def _resumed(self, parts: Parts, rows: Sequence[Row], place: str) -> Resumed:
        from ._scheduler import Begun, GraphTask, NodeID, Resumed, TaskID, stack_of

        tasks: list[GraphTask] = []
        joins: list[Begun] = []
        for row in parts.open:
            if row.record.kind == 'task':
                task = read_task(row, self._renamed, place=place)
                self._check(task.record, task.stack, place)
                inputs = self._decoded(row.record, task.inputs, place)
                tasks.append(
                    GraphTask(
                        NodeID(task.record.node_id), inputs, stack_of(task.stack), TaskID(task.record.id)
                    )
                )
            elif row.record.kind == 'join':
                join = read_join(row, self._renamed, place=place)
                self._check(join.record, join.stack, place)
                value = None
                if join.value is not None:
                    value = (self._decoded(row.record, join.value[0], place),)
                joins.append(
                    Begun(join.record.node_id, join.fork_run, stack_of(join.stack), value, join.stopped)
                )
        open_ids = {task.task_id for task in tasks}
        streams: dict[tuple[str, str], tuple[str, int]] = {}
        for row in rows:
            if row.record.kind == 'task' and b'"from":' in row.body.node:
                task = read_task(row, self._renamed, place=place)
                if task.origin in open_ids:
                    depth = len(next(t for t in tasks if t.task_id == task.origin).fork_stack)
                    fork, run, index = task.stack[depth]
                    streams[cast(str, task.origin), fork] = run, index + 1
        return Resumed(tasks, joins, streams)

    def _check(self, record: StepRecord, stack: Iterable[tuple[str, str, int]], place: str) -> None:
        for node_id in (record.node_id, *(fork for fork, _, _ in stack)):
            if node_id not in cast('dict[str, Any]', self.graph.nodes):
                raise CorruptSnapshotError(
                    place,
                    f'node {node_id!r} is not in the graph, which has '
                    f'{", ".join(repr(str(n)) for n in self.graph.nodes)}: resume with the graph that the run was '
                    f"started with, or tell its new id, `PersistentGraph(..., nodes={{{node_id!r}: 'new id'}})`",
                    snapshot_id=record.id,
                )

    def _decoded(self, record: StepRecord, found: Any, place: str) -> Any:
        try:
            return self._values.read(found)
        except Exception as exc:  # pydantic's, or one of the user's own
            raise CorruptSnapshotError(
                place,
                f'does not fit the types of the graph: {type(exc).__name__}: {exc}. '
                'Mend what is stored, or let the types accept it',
                snapshot_id=record.id,
            ) from exc

    @asynccontextmanager
    async def _open(
        self,
        persistence: StoredStatePersistence[Any, Any],
        opening: _Opening,
        deps: Any,
        span: AbstractContextManager[Any] | None,
    ) -> AsyncGenerator[Any]:
        from ._scheduler import NodeID, PersistentGraphRun

        persistence._claimed -= {opening.snapshot_id}
        try:
            receipt = await persistence._commit(Commit(changes=opening.changes))
        except GraphkeepError:
            persistence._claimed |= {opening.snapshot_id}
            with anyio.CancelScope(shield=True):
                await persistence.release()
            raise
        task_run = self._task_run(persistence, opening)
        guard = persistence._guard()
        failure: BaseException | None = receipt.interrupted
        try:
            if failure is not None:
                raise failure
            guard.__enter__()
            try:
                with self._traced(span) as traceparent:
                    running = PersistentGraphRun(
                        self.graph,
                        task_run,
                        state=opening.state,
                        deps=deps,
                        inputs=opening.first[1],
                        traceparent=traceparent,
                        opening=opening.number,
                        first=NodeID(opening.first[0]),
                        resumed=opening.resumed,
                    )
                    async with running:
                        try:
                            yield running
                        finally:
                            with anyio.CancelScope(shield=True):
                                await running.finish()
            except BaseException as exc:
                if guard.__exit__(type(exc), exc, exc.__traceback__):
                    raise guard.lost or OwnershipLostError(persistence.run_id, None) from exc
                raise
            else:
                if guard.__exit__(None, None, None):
                    raise guard.lost or OwnershipLostError(persistence.run_id, None)
        except BaseException as exc:
            failure = exc
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await task_run.leave(failure)

    def _task_run(self, persistence: StoredStatePersistence[Any, Any], opening: _Opening) -> TaskRun:
        state = opening.state
        dump = None if is_immutable(state) else lambda: self._codec.dump_state(state)
        return TaskRun(
            persistence,
            snapshot_id=opening.snapshot_id,
            state=state,
            codec=self._codec,
            values=self._values,
            tracker=Tracker(dump, self.tracking, dump() if dump is not None else b''),
            stored=opening.stored,
        )

    @contextmanager
    def _traced(self, span: AbstractContextManager[Any] | None) -> Iterator[str | None]:
        if span is None and self.graph.auto_instrument:
            span = new_span(f'run graph {self.graph.name}', graph=self.graph)
        if span is None:
            yield None
        else:
            with span as entered:
                yield traceparent_of(entered)

    # ------------------------------------------------------------------------------ to be called by resume

    @asynccontextmanager
    async def iter_or_resume(
        self,
        persistence: object,
        *,
        state: Any,
        inputs: Any,
        deps: Any,
        on_finished: Literal['return', 'raise'],
        span: AbstractContextManager[Any] | None,
    ) -> AsyncGenerator[Any]:
        """Start a run, or go on with it, or yield it at its end; see `graphkeep.iter_or_resume`."""
        persistence = self._prepare(persistence)
        if persistence._offered is None:
            await self._start(persistence, state, inputs)
        try:
            opening = await self._claim(persistence)
        except RunFinishedError:
            if on_finished == 'raise':
                raise
            yield await self._ended(persistence, deps)
            return
        async with self._open(persistence, opening, deps, span) as run:
            yield run

    async def _ended(self, persistence: StoredStatePersistence[Any, Any], deps: Any) -> Any:
        from ._scheduler import ended_run

        last = await persistence.load_last()
        if not isinstance(last, EndSnapshot):
            raise await persistence.why_unresumable()  # somebody has gone on with it this very moment
        return ended_run(self.graph, last.state, deps, last.result.data)

    # -------------------------------------------------------------------------------------------- drawing

    def render(
        self,
        *,
        title: str | None = None,
        direction: Any = None,
        run: Sequence[StepRecord] | None = None,
    ) -> str:
        """Draw the graph as a mermaid diagram.

        Args:
            title: The title.
            direction: In which direction it runs, as pydantic-graph has it.
            run: The history of a run, as `await store.history(run_id)` returns it: each node is then drawn
                with how many of its tasks there were, by their status.
        """
        text = self.graph.render(title=title, direction=direction)
        return text if run is None else _with_statuses(text, run)

    def _name(self, frame: FrameType | None) -> None:
        """Name a nameless graph after the variable that holds it where the caller of `frame` is."""
        if self.graph.name is None and frame is not None and frame.f_back is not None:
            for variables in (frame.f_back.f_locals, frame.f_back.f_globals):
                held = (name for name, value in variables.items() if value is self or value is self.graph)
                if (name := next(held, None)) is not None:
                    self.graph.name = name
                    return


async def _driven(run: Any) -> Any:
    from ._scheduler import EndMarker

    event: Any = None
    while True:
        try:
            event = await run.next(event)
        except StopAsyncIteration:
            if not isinstance(event, EndMarker):
                raise RuntimeError('the run has stopped without an end') from None
            return event.value


def read_inputs(row: Row, place: str) -> Any:
    """Return the JSON of the inputs of a run, from the row that stands for it."""
    from pydantic_core import from_json

    try:
        return from_json(row.body.node)['inputs']
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptSnapshotError(
            place, f'is no start of a builder graph: {exc!r}', snapshot_id=row.record.id
        ) from exc


def _caller(frame: FrameType | None) -> FrameType | None:
    """Return the frame below the context manager's own machinery."""
    return frame.f_back if frame else None


def _names(frame: FrameType | None) -> dict[str, Any]:
    caller = frame and frame.f_back
    return dict(caller.f_locals) if caller else {}


def _hints(graph: Graph[Any, Any, Any, Any], names: Mapping[str, Any]) -> Iterator[Any]:
    """Yield every annotation that tells what values may flow through the graph."""
    from ._scheduler import Decision, Join, NodeStep, Step, paths_of, step_function

    known = {getattr(t, '__name__', ''): t for t in (graph.state_type, graph.deps_type, graph.input_type)}
    known |= {n.node_type.__name__: n.node_type for n in graph.nodes.values() if isinstance(n, NodeStep)}
    names = {**known, **names}
    yield from (graph.state_type, graph.input_type, graph.output_type)
    for node in graph.nodes.values():
        if isinstance(node, NodeStep):
            yield node.node_type
            yield from signature_hints(f'node {node.id!r}', node.node_type.run, names).values()
        elif isinstance(node, Step):
            yield from signature_hints(f'step {node.id!r}', step_function(node), names).values()
        elif isinstance(node, Join):
            yield from signature_hints(f'reducer of join {node.id!r}', node.reducer, names).values()
            yield node.initial_factory
        elif isinstance(node, Decision):
            for branch in node.branches:
                yield branch.source
    for transform in paths_of(graph):
        yield from signature_hints('transform', transform, names).values()


def _with_statuses(text: str, run: Sequence[StepRecord]) -> str:
    """Return the diagram with a note beside each node that has tasks."""
    counts: dict[str, Counter[str]] = {}
    for record in run:
        if record.kind == 'task':
            counts.setdefault(record.node_id, Counter())[record.status] += 1
    lines = [text.rstrip('\n')]
    for node_id, statuses in counts.items():
        told = ', '.join(f'{count} {status}' for status, count in sorted(statuses.items()))
        lines.append(f'  note right of {node_id}: {told}')
    return '\n'.join(lines)
