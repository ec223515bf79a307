"""`Graph` for hosts that have none for `BaseNode`: pydantic-graph 1.x's API on 2.x's nodes."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Generic, Literal, cast

from . import naming
from ._event_loop import run_until_complete
from ._graph_run import GraphRun, GraphRunResult, id_within
from ._host import BaseNode, GraphRuntimeError, GraphSetupError, set_snapshot_id
from ._mermaid import DEFAULT_HIGHLIGHT_CSS, NodeIdent, StateDiagramDirection, mermaid_code
from ._node_defs import (
    DepsT,
    NodeDef,
    RunEndT,
    StateT,
    check_edges,
    define_node,
    infer_types,
    namespace_of_caller,
)
from ._spans import new_span, traceparent_of
from .leaving import Leaving
from .memory import SimpleStatePersistence
from .naming import skip_context_manager
from .persistence import StatePersistence
from .unset import UNSET, Unset

__all__ = ('Graph',)


_NO_STATE: Final = cast(Any, None)
_NO_DEPS: Final = cast(Any, None)


@dataclass(init=False)
class Graph(Generic[StateT, DepsT, RunEndT]):
    """A set of node types that run one after the other; what their `run` methods may return are its edges.

    ```python
    never_42 = Graph(nodes=(Increment, Check42))
    result = await never_42.run(Increment(), state=MyState(1), persistence=FileStatePersistence('run.json'))
    ```
    """

    name: str | None
    """The graph's name; by default that of the variable that holds it where it is first used."""
    node_defs: dict[str, NodeDef[StateT, DepsT, RunEndT]]
    """What is known of each node, by node id."""
    _state_type: type[StateT] | Unset = field(repr=False)
    _run_end_type: type[RunEndT] | Unset = field(repr=False)
    auto_instrument: bool = field(repr=False)
    """Whether a span is made for every run and every node."""

    def __init__(
        self,
        *,
        nodes: Sequence[type[BaseNode[StateT, DepsT, RunEndT]]],
        name: str | None = None,
        state_type: type[StateT] | Unset = UNSET,
        run_end_type: type[RunEndT] | Unset = UNSET,
        auto_instrument: bool = True,
    ):
        """Make a graph and check that every node which may come next is in it.

        Args:
            nodes: The node types, each with an id of its own, all with the same state type.
            name: The graph's name, see `Graph.name`.
            state_type: The type of the state, where the nodes do not tell it.
            run_end_type: The type of the result, where the nodes do not tell it.
            auto_instrument: Whether to make a span for every run and every node.

        Raises:
            GraphSetupError: if two nodes have the same id, a node's `run` has no return annotation or one
                that is neither a node nor an `End`, or a node is referred to and not in the graph.
        """
        self.name = name
        self._state_type = state_type
        self._run_end_type = run_end_type
        self.auto_instrument = auto_instrument
        self.node_defs = {}
        namespace = namespace_of_caller(inspect.currentframe())
        for node in nodes:
            node_id = node.get_node_id()
            if known := self.node_defs.get(node_id):
                raise GraphSetupError(f'Node ID `{node_id}` is not unique — found on {known.node} and {node}')
            self.node_defs[node_id] = define_node(node, namespace)
        check_edges(self.node_defs)

    async def run(
        self,
        start_node: BaseNode[StateT, DepsT, RunEndT],
        *,
        state: StateT = _NO_STATE,
        deps: DepsT = _NO_DEPS,
        persistence: StatePersistence[StateT, RunEndT] | None = None,
        infer_name: bool = True,
    ) -> GraphRunResult[StateT, RunEndT]:
        """Run the graph from a node to its end.

        Args:
            start_node: The first node.
            state: The state at the start.
            deps: What the nodes find as `ctx.deps`; it is not stored.
            persistence: Where the run is recorded; by default in memory, the last snapshot only.
            infer_name: Whether to take the graph's name from the caller's variables if it has none.
        """
        if infer_name:
            naming.infer_name(self, inspect.currentframe())
        opened = self.iter(start_node, state=state, deps=deps, persistence=persistence, infer_name=False)
        async with opened as run:
            async for _ in run:
                pass
        # the iteration stops at an `End` only, and that is what makes a result
        return cast('GraphRunResult[StateT, RunEndT]', run.result)

    def run_sync(
        self,
        start_node: BaseNode[StateT, DepsT, RunEndT],
        *,
        state: StateT = _NO_STATE,
        deps: DepsT = _NO_DEPS,
        persistence: StatePersistence[StateT, RunEndT] | None = None,
        infer_name: bool = True,
    ) -> GraphRunResult[StateT, RunEndT]:
        """Do what `run` does, from code that is not async, on the thread's asyncio event loop.

        Interrupted (Ctrl-C), it cancels the run and waits for it, so that the interrupted node is given back.

        Raises:
            GraphRuntimeError: if an event loop is running in this thread.
        """
        if infer_name:
            naming.infer_name(self, inspect.currentframe())
        return run_until_complete(
            self.run(start_node, state=state, deps=deps, persistence=persistence, infer_name=False)
        )

    @asynccontextmanager
    async def iter(
        self,
        start_node: BaseNode[StateT, DepsT, RunEndT],
        *,
        state: StateT = _NO_STATE,
        deps: DepsT = _NO_DEPS,
        persistence: StatePersistence[StateT, RunEndT] | None = None,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> AsyncGenerator[GraphRun[StateT, DepsT, RunEndT]]:
        """Open a run of the graph, to be iterated over or driven with `GraphRun.next`.

        Args:
            start_node: The first node.
            state: The state at the start.
            deps: What the nodes find as `ctx.deps`; it is not stored.
            persistence: Where the run is recorded; by default in memory, the last snapshot only.
            span: The span of the run, instead of one made for it.
            infer_name: Whether to take the graph's name from the caller's variables if it has none.
        """
        if infer_name:
            naming.infer_name(self, skip_context_manager(inspect.currentframe()))
        if persistence is None:
            persistence = SimpleStatePersistence()
        persistence.set_graph_types(self)
        with self._traced(span) as traceparent:
            yield GraphRun(
                graph=self,
                start_node=start_node,
                persistence=persistence,
                state=state,
                deps=deps,
                traceparent=traceparent,
            )

    @asynccontextmanager
    async def iter_from_persistence(
        self,
        persistence: StatePersistence[StateT, RunEndT],
        *,
        deps: DepsT = _NO_DEPS,
        span: AbstractContextManager[Any] | None = None,
        infer_name: bool = True,
    ) -> AsyncGenerator[GraphRun[StateT, DepsT, RunEndT]]:
        """Open a recorded run where it stopped: at the snapshot that is to be run next, which is claimed.

        If that snapshot has not been run when the run is left, it is given back: anybody may claim it then.

        Args:
            persistence: Where the run is recorded.
            deps: What the nodes find as `ctx.deps`.
            span: The span of the run, instead of one made for it.
            infer_name: Whether to take the graph's name from the caller's variables if it has none.

        Raises:
            GraphRuntimeError: if there is nothing to run next; its class tells whether the run finished,
                failed, is unknown, or is owned elsewhere.
        """
        if infer_name:
            naming.infer_name(self, skip_context_manager(inspect.currentframe()))
        persistence.set_graph_types(self)
        if (snapshot := await persistence.load_next()) is None:
            if isinstance(persistence, StatePersistence):
                raise await persistence.why_unresumable()
            raise GraphRuntimeError('Unable to restore snapshot from state persistence.')
        set_snapshot_id(snapshot.node, snapshot.id)
        leaving = Leaving(persistence) if isinstance(persistence, StatePersistence) else nullcontext()
        async with leaving:
            with self._traced(span) as traceparent:
                yield GraphRun(
                    graph=self,
                    start_node=cast('BaseNode[StateT, DepsT, RunEndT]', snapshot.node),
                    persistence=persistence,
                    state=snapshot.state,
                    deps=deps,
                    traceparent=traceparent,
                    snapshot_id=snapshot.id,
                )

    async def initialize(
        self,
        node: BaseNode[StateT, DepsT, RunEndT],
        persistence: StatePersistence[StateT, RunEndT],
        *,
        state: StateT = _NO_STATE,
        infer_name: bool = True,
    ) -> None:
        """Record the first node of a run without running it; `iter_from_persistence` starts it, anywhere.

        Args:
            node: The first node.
            persistence: Where the run is recorded.
            state: The state at the start.
            infer_name: Whether to take the graph's name from the caller's variables if it has none.

        Raises:
            GraphRuntimeError: if the node is not in the graph; nothing is stored then.
        """
        if infer_name:
            naming.infer_name(self, inspect.currentframe())
        id_within(self, node)
        persistence.set_graph_types(self)
        await persistence.snapshot_node(state, node)

    def mermaid_code(
        self,
        *,
        start_node: Sequence[NodeIdent] | NodeIdent | None = None,
        title: str | Literal[False] | None = None,
        edge_labels: bool = True,
        notes: bool = True,
        highlighted_nodes: Sequence[NodeIdent] | NodeIdent | None = None,
        highlight_css: str = DEFAULT_HIGHLIGHT_CSS,
        infer_name: bool = True,
        direction: StateDiagramDirection | None = None,
    ) -> str:
        """Draw the graph as a [mermaid](https://mermaid.js.org) state diagram.

        On pydantic-graph 2.x there is no `mermaid_image` or `mermaid_save`, which send the diagram to a web
        service. Editors, forges and notebooks draw this text themselves.

        Args:
            start_node: The node or nodes at which the graph may be entered.
            title: The title, by default the graph's name; `False` for none.
            edge_labels: Whether to write the labels of `Edge` annotations.
            notes: Whether to write the nodes' notes: what their `get_note` returns, or their docstrings where
                `docstring_notes` is true.
            highlighted_nodes: The node or nodes to highlight.
            highlight_css: How they look.
            infer_name: Whether to take the graph's name from the caller's variables if it has none.
            direction: The direction in which the diagram runs.

        Raises:
            LookupError: if a start node or a node to highlight is not in the graph.
        """
        if infer_name:
            naming.infer_name(self, inspect.currentframe())
        return mermaid_code(
            self.node_defs,
            start_node=start_node,
            title=self.name if title is None else title or None,
            edge_labels=edge_labels,
            notes=notes,
            highlighted_nodes=highlighted_nodes,
            highlight_css=highlight_css,
            direction=direction,
        )

    def get_nodes(self) -> Sequence[type[BaseNode[StateT, DepsT, RunEndT]]]:
        """Return the node types, in the order in which they were given."""
        return [defined.node for defined in self.node_defs.values()]

    @cached_property
    def inferred_types(self) -> tuple[type[StateT], type[RunEndT]]:
        """The types of state and result: as given, otherwise as the nodes have them, otherwise `None`."""
        given = cast('tuple[Any, Any]', (self._state_type, self._run_end_type))
        inferred = infer_types(self.node_defs)
        state_type, run_end_type = (i if g is UNSET else g for g, i in zip(given, inferred, strict=True))
        return state_type, run_end_type

    @contextmanager
    def _traced(self, span: AbstractContextManager[Any] | None) -> Generator[str | None]:
        if span is None and self.auto_instrument:
            span = new_span(f'run graph {self.name}', graph=self)
        if span is None:
            yield None
        else:
            with span as entered:
                yield traceparent_of(entered)
