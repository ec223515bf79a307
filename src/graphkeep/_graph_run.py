"""`GraphRun` and its result for hosts that have no runner of `BaseNode` graphs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, cast, overload

from ._host import BaseNode, End, GraphRunContext, GraphRuntimeError, ensure_snapshot_id
from ._node_defs import DepsT, RunEndT, StateT
from ._spans import new_span

if TYPE_CHECKING:
    from ._graph import Graph
    from .persistence import StatePersistence

__all__ = ('GraphRun', 'GraphRunResult', 'id_within')


class GraphRun(Generic[StateT, DepsT, RunEndT]):
    """One run of a graph: iterate over it, or drive it node by node with `next`.

    Iteration gives the start node first, not yet run, and then what each node returned; the last is an `End`.

    ```python
    async with graph.iter(Increment(), state=MyState(1)) as run:
        async for node in run:
            print(node, run.state)
    print(run.result.output)
    ```
    """

    graph: Graph[StateT, DepsT, RunEndT]
    """The graph."""
    persistence: StatePersistence[StateT, RunEndT]
    """Where the run is recorded."""
    state: StateT
    """The state, as the nodes see and change it."""
    deps: DepsT
    """What the nodes find as `ctx.deps`."""

    def __init__(
        self,
        *,
        graph: Graph[StateT, DepsT, RunEndT],
        start_node: BaseNode[StateT, DepsT, RunEndT],
        persistence: StatePersistence[StateT, RunEndT],
        state: StateT,
        deps: DepsT,
        traceparent: str | None,
        snapshot_id: str | None = None,
    ):
        """Make a run; `Graph.iter` and `Graph.iter_from_persistence` do this.

        Args:
            graph: The graph.
            start_node: The first node to run.
            persistence: Where the run is recorded.
            state: The state at the start.
            deps: What the nodes find as `ctx.deps`.
            traceparent: The trace context of the run's span.
            snapshot_id: The id of the stored snapshot that the start node is from, if it is stored already.
        """
        self.graph = graph
        self.persistence = persistence
        self.state = state
        self.deps = deps
        self._trace = traceparent
        self._snapshot_id = snapshot_id
        self._next_node: BaseNode[StateT, DepsT, RunEndT] | End[RunEndT] = start_node
        self._is_iterated = False

    @property
    def next_node(self) -> BaseNode[StateT, DepsT, RunEndT] | End[RunEndT]:
        """The node that `next` and the iteration run next, or the `End` of a finished run."""
        return self._next_node

    @property
    def result(self) -> GraphRunResult[StateT, RunEndT] | None:
        """The result, `None` until a node has returned an `End`."""
        if not isinstance(self._next_node, End):
            return None
        return GraphRunResult(self._next_node.data, self.state, self.persistence, self._trace)

    async def next(
        self, node: BaseNode[StateT, DepsT, RunEndT] | None = None
    ) -> BaseNode[StateT, DepsT, RunEndT] | End[RunEndT]:
        """Run one node, record it together with what comes next, and return what comes next.

        Args:
            node: The node to run, instead of `next_node`.

        Raises:
            GraphRuntimeError: if there is no next node, the node is not in the graph, or what it returned is
                neither an `End` nor a node of the graph; this last is recorded as the node's error.
            GraphNodeStatusError: if the node was run before, or is running elsewhere.
            TypeError: if `node` is not a node.
        """
        if node is None:
            if isinstance(self._next_node, End):
                raise GraphRuntimeError(f'The run has ended with {self._next_node!r}: no node is next.')
            node = self._next_node
        if not isinstance(node, BaseNode):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f'`next` must be called with a `BaseNode` instance, got {node!r}.')
        node_id = id_within(self.graph, node)
        snapshot_id = ensure_snapshot_id(node)
        if snapshot_id != self._snapshot_id:
            await self.persistence.snapshot_node_if_new(snapshot_id, self.state, node)
            self._snapshot_id = snapshot_id
        if not self.graph.auto_instrument:
            return await self._step(node, snapshot_id)
        with new_span(f'run node {node_id}', node_id=node_id, node=node):
            return await self._step(node, snapshot_id)

    async def _step(
        self, node: BaseNode[StateT, DepsT, RunEndT], snapshot_id: str
    ) -> BaseNode[StateT, DepsT, RunEndT] | End[RunEndT]:
        async with self.persistence.record_run(snapshot_id):
            following = await node.run(GraphRunContext(state=self.state, deps=self.deps))
            following_id = self._accept(following)
        # No await before the snapshot: the persistence holds the node's success to commit both in one write,
        # and a cancellation in between would separate them.
        self._next_node, self._snapshot_id = following, following_id
        if isinstance(following, End):
            await self.persistence.snapshot_end(self.state, following)
        else:
            await self.persistence.snapshot_node(self.state, following)
        return following

    def _accept(self, following: object) -> str:
        if isinstance(following, End):
            return ensure_snapshot_id(cast('End[Any]', following))
        if not isinstance(following, BaseNode):
            raise GraphRuntimeError(
                f'Invalid node return type: `{type(following).__name__}`. Expected `BaseNode` or `End`.'
            )
        node = cast('BaseNode[Any, Any, Any]', following)
        id_within(self.graph, node)
        return ensure_snapshot_id(node)

    @overload
    def _traceparent(self, *, required: Literal[False]) -> str | None: ...
    @overload
    def _traceparent(self) -> str: ...
    def _traceparent(self, *, required: bool = True) -> str | None:
        return _known(self._trace, required=required)

    def __aiter__(self) -> AsyncIterator[BaseNode[StateT, DepsT, RunEndT] | End[RunEndT]]:
        return self

    async def __anext__(self) -> BaseNode[StateT, DepsT, RunEndT] | End[RunEndT]:
        if not self._is_iterated:
            self._is_iterated = True
            return self._next_node
        if isinstance(self._next_node, End):
            raise StopAsyncIteration
        return await self.next(self._next_node)

    def __repr__(self) -> str:
        return f'<GraphRun graph={self.graph.name or "[unnamed]"}>'


@dataclass(init=False)
class GraphRunResult(Generic[StateT, RunEndT]):
    """What a finished run came to."""

    output: RunEndT
    """What the last node returned in its `End`."""
    state: StateT
    """The state at the end."""
    persistence: StatePersistence[StateT, RunEndT] = field(repr=False)
    """Where the run is recorded."""

    def __init__(
        self,
        output: RunEndT,
        state: StateT,
        persistence: StatePersistence[StateT, RunEndT],
        traceparent: str | None = None,
    ):
        self.output = output
        self.state = state
        self.persistence = persistence
        self._trace = traceparent

    @overload
    def _traceparent(self, *, required: Literal[False]) -> str | None: ...
    @overload
    def _traceparent(self) -> str: ...
    def _traceparent(self, *, required: bool = True) -> str | None:
        return _known(self._trace, required=required)


def _known(traceparent: str | None, *, required: bool) -> str | None:
    if traceparent is None and required:
        raise GraphRuntimeError('No span was created for this graph run.')
    return traceparent


def id_within(graph: Graph[Any, Any, Any], node: BaseNode[Any, Any, Any]) -> str:
    """Return the node's id, or raise a `GraphRuntimeError` if the graph has no node with this id."""
    node_id = node.get_node_id()
    if node_id not in graph.node_defs:
        raise GraphRuntimeError(f'Node `{node}` is not in the graph.')
    return node_id
