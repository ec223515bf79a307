"""`PersistentGraph`: builder graphs whose runs are recorded, and go on from where they stopped."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncGenerator, Container, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import FrameType, NoneType
from typing import Any, Final, Generic, Literal, cast
from uuid import uuid4

import anyio
from typing_extensions import TypeVar

from . import naming
from ._builder_run import PersistentGraphRun, ended_run
from ._graph_types import hints_in
from ._host import StateT
from ._scheduler import EndNode, Graph, NodeID, NodeStep
from ._spans import new_span, traceparent_of
from .codec import Codec, Refusal
from .commit import START_NODE, Commit, Row, StatusChange, StepRecord
from .errors import (
    OwnershipLostError,
    RunExistsError,
    RunFinishedError,
    UnfaithfulSnapshotError,
    UnknownRunError,
)
from .namedtypes import named_in
from .naming import skip_context_manager
from .reopening import Opening, Reader, start_body
from .snapshots import EndSnapshot
from .status import START
from .stored import StoredStatePersistence
from .taskrun import TaskRun
from .tracking import Tracker, Tracking, is_immutable
from .unset import UNSET
from .values import ValueCodec

__all__ = ('PersistentGraph',)

DepsT = TypeVar('DepsT', default=Any)
"""Type variable for the dependencies of a graph."""
InputT = TypeVar('InputT', default=Any)
"""Type variable for what the first step of a graph gets."""
OutputT = TypeVar('OutputT', default=Any)
"""Type variable for what a graph comes to."""

_NOTHING: Final[Any] = None


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
            UnsupportedTypeError: if an annotation of a step cannot be resolved, two classes cannot be told
                apart by their names, or the type of the state or the result cannot be stored.
            ValueError: if one of the new ids is not one of the graph's nodes.
        """
        given: object = graph
        if not isinstance(given, Graph):
            raise TypeError(f'graph must be what GraphBuilder.build() returns, got {given!r}')
        if tracking not in ('exact', 'barrier'):
            raise ValueError(f"tracking must be 'exact' or 'barrier', got {tracking!r}")
        for stored_id, new_id in (nodes or {}).items():
            if new_id not in graph.nodes:
                has = ', '.join(map(repr, graph.nodes))
                raise ValueError(
                    f'nodes must lead to nodes of the graph, got {stored_id!r}: {new_id!r}; it has {has}'
                )
        self.graph = graph
        self.tracking: Tracking = tracking
        self._values = ValueCodec(named_in([*hints_in(graph, _caller(inspect.currentframe())), *types]))
        node_types = [node.node_type for node in graph.nodes.values() if isinstance(node, NodeStep)]
        self._codec: Codec[Any, Any] = Codec.of(node_types, graph.state_type, graph.output_type)
        self._reader = Reader(graph, self._codec, self._values, dict(nodes or {}))

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
        state: StateT = _NOTHING,
        deps: DepsT = _NOTHING,
        inputs: InputT = _NOTHING,
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
            self._infer_name(inspect.currentframe())
        if persistence is None:
            return await self.graph.run(state=state, deps=deps, inputs=inputs, span=span, infer_name=False)
        iterating = self.iter(
            state=state, deps=deps, inputs=inputs, persistence=persistence, span=span, infer_name=False
        )
        async with iterating as run:
            async for _ in run:
                pass
            return run.output

    def run_sync(
        self,
        *,
        state: StateT = _NOTHING,
        deps: DepsT = _NOTHING,
        inputs: InputT = _NOTHING,
        persistence: StoredStatePersistence[Any, Any] | None = None,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> OutputT:
        """Run the graph from its start to its end, in an event loop of its own; see `run`."""
        if infer_name:
            self._infer_name(inspect.currentframe())

        async def run() -> OutputT:
            return await self.run(
                state=state, deps=deps, inputs=inputs, persistence=persistence, span=span, infer_name=False
            )

        return anyio.run(run)

    @asynccontextmanager
    async def iter(
        self,
        *,
        state: StateT = _NOTHING,
        deps: DepsT = _NOTHING,
        inputs: InputT = _NOTHING,
        persistence: StoredStatePersistence[Any, Any] | None = None,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> AsyncGenerator[Any]:
        """Iterate over what the graph does from its start on; yields the run, as `Graph.iter` does.

        The run is the caller's while it is open. A run that is left before its end can be gone on with.
        Arguments and errors are those of `run`.
        """
        if infer_name:
            self._infer_name(skip_context_manager(inspect.currentframe()))
        if persistence is None:
            plain = self.graph.iter(state=state, deps=deps, inputs=inputs, span=span, infer_name=False)
            async with plain as run:
                yield run
            return
        snapshot_id = await self._start(persistence, state, inputs)
        if snapshot_id is None:
            raise RunExistsError(persistence.run_id)
        begun = StatusChange(snapshot_id, START, persistence._now())
        opening = Opening(snapshot_id, state, (START_NODE, inputs), (begun,))
        async with self._open(persistence, opening, deps, span) as run:
            yield run

    async def initialize(
        self,
        *,
        persistence: StoredStatePersistence[Any, Any],
        state: StateT = _NOTHING,
        inputs: InputT = _NOTHING,
        infer_name: bool = True,
    ) -> None:
        """Record a run that is to be run later, by anybody; atomic.

        Raises:
            RunExistsError: if there is a run already.
            UnfaithfulSnapshotError: if the state or the inputs would not be loaded as they are.
        """
        if infer_name:
            self._infer_name(inspect.currentframe())
        if await self._start(persistence, state, inputs) is None:
            raise RunExistsError(persistence.run_id)

    @asynccontextmanager
    async def iter_from_persistence(
        self,
        persistence: StoredStatePersistence[Any, Any],
        *,
        deps: DepsT = _NOTHING,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> AsyncGenerator[Any]:
        """Go on with a recorded run, from what is stored of it.

        What was in flight when it stopped is run again. A run of `BaseNode`s goes on, too, in a graph that
        has its next node.

        Raises:
            UnknownRunError: if nothing is stored of the run.
            RunFinishedError: if it has ended.
            RunFailedError: if it stopped at a step that raised; `await persistence.retry()` gives it another
                attempt.
            RunOwnedError: if another living owner has the run.
            CorruptSnapshotError: if what is stored cannot be read, or is not of this graph. It stays.
        """
        if infer_name:
            self._infer_name(skip_context_manager(inspect.currentframe()))
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
            body = start_body(self._codec.write_state(state, persistence.verify), text)
        except Refusal as refusal:
            raise UnfaithfulSnapshotError(
                persistence.run_id, START_NODE, refusal.field, refusal.problem
            ) from refusal.__cause__
        record = StepRecord(f'{START_NODE}:{uuid4().hex}', START_NODE)
        receipt = await persistence._commit(Commit(rows=[Row(record, body)], unless_any=True))
        if receipt.interrupted is not None:
            raise receipt.interrupted
        rows = (await persistence._tail()).rows
        if rows[0].record.id != record.id:
            rows = await persistence._rows()  # somebody may have gone on with it this very moment
        return record.id if any(row.record.id == record.id for row in rows) else None

    async def _claim(self, persistence: StoredStatePersistence[Any, Any]) -> Opening:
        await persistence._flush()
        try:
            if persistence._offered is None:
                await persistence.release()
                row, _ = await persistence._claim(lambda row, tail: None)
            else:
                offered, persistence._offered = persistence._offered, None
                row = next((r for r in (await persistence._tail()).open if r.record.id == offered), None)
            if row is None:
                raise await persistence.why_unresumable()
            rows = await persistence._rows()
            current = next(r for r in rows if r.record.id == row.record.id and not r.record.is_part)
            return self._reader.opening(current, rows, now=persistence._now(), place=persistence._place)
        except BaseException as exc:
            await persistence.leave(exc)
            raise

    @asynccontextmanager
    async def _open(
        self,
        persistence: StoredStatePersistence[Any, Any],
        opening: Opening,
        deps: Any,
        span: AbstractContextManager[Any] | None,
    ) -> AsyncGenerator[Any]:
        persistence._claimed -= {opening.snapshot_id}
        try:
            receipt = await persistence._commit(Commit(changes=opening.changes))
        except BaseException as exc:  # nothing has begun, so what was claimed is given back
            persistence._claimed |= {opening.snapshot_id}
            await persistence.leave(exc)
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
                await persistence.make_certain(failure)

    def _task_run(self, persistence: StoredStatePersistence[Any, Any], opening: Opening) -> TaskRun:
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
    def _traced(self, span: AbstractContextManager[Any] | None) -> Generator[str | None]:
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
            await self._start_or_find(persistence, state, inputs)
        try:
            opening = await self._claim(persistence)
        except RunFinishedError:
            if on_finished == 'raise':
                raise
            yield await self._ended(persistence, deps)
            return
        async with self._open(persistence, opening, deps, span) as run:
            yield run

    async def _start_or_find(
        self, persistence: StoredStatePersistence[Any, Any], state: Any, inputs: Any
    ) -> None:
        if state is UNSET and inputs is UNSET and self._takes_something:
            if not (await persistence._tail()).rows:
                raise UnknownRunError(persistence.run_id)
            return
        given: list[Any] = [None if value is UNSET else value for value in (state, inputs)]
        await self._start(persistence, given[0], given[1])

    @property
    def _takes_something(self) -> bool:
        """Whether a run has a state, or its first step gets something."""
        return {self.graph.state_type, self.graph.input_type} - {None, NoneType} != set()

    async def _ended(self, persistence: StoredStatePersistence[Any, Any], deps: Any) -> Any:
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
        return (
            text if run is None else _with_statuses(text, run, {str(node_id) for node_id in self.graph.nodes})
        )

    def _infer_name(self, frame: FrameType | None) -> None:
        naming.infer_name(self.graph, frame, self)


def _caller(frame: FrameType | None) -> FrameType | None:
    return frame and frame.f_back


def _with_statuses(text: str, run: Sequence[StepRecord], nodes: Container[str]) -> str:
    """Return the diagram with a note beside each node that has tasks."""
    counts: dict[str, Counter[str]] = {}
    text = text.rstrip('\n')
    for record in run:
        if record.kind == 'task':
            counts.setdefault(record.node_id, Counter())[record.status] += 1
    for node_id, statuses in counts.items():
        if node_id in (START_NODE, EndNode.id) or node_id not in nodes:
            continue  # they are drawn as `[*]`, which has no note, or not at all
        told = ', '.join(f'{count} {status}' for status, count in sorted(statuses.items()))
        if (noted := text.find(f'\n  note right of {node_id}\n')) >= 0:  # a node has one note only
            end = text.index('\n  end note', noted)
            text = f'{text[:end]}\n    {told}{text[end:]}'
        else:
            text = f'{text}\n  note right of {node_id}: {told}'
    return text
