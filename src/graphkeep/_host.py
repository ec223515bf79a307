"""Which pydantic-graph is installed, and what this library needs of it.

The only module that finds out which of the two hosts is here. pydantic-graph 1.x has a runner for `BaseNode`
graphs and a persistence interface; 2.x kept `BaseNode` and `End` and removed both. What the host has is taken
from it, so that `isinstance` and equality hold in users' code; what it lacks is in `snapshots` and `graph`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Generic, cast
from uuid import uuid4

from pydantic_graph import BaseNode, Edge, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError, GraphSetupError
from typing_extensions import TypeVar

__all__ = (
    'HAS_RUNNER',
    'HOST_VERSION',
    'BaseNode',
    'BaseStatePersistence',
    'Edge',
    'End',
    'GraphNodeStatusError',
    'GraphRunContext',
    'GraphRuntimeError',
    'GraphSetupError',
    'RunEndT',
    'StateT',
    'current_node_types',
    'ensure_snapshot_id',
    'node_types',
    'set_snapshot_id',
)

StateT = TypeVar('StateT', default=Any)
"""Type variable for the state of a graph."""
RunEndT = TypeVar('RunEndT', default=Any)
"""Type variable for the result of a graph run."""

HOST_VERSION: Final = version('pydantic-graph')
"""The installed version of pydantic-graph."""

HAS_RUNNER: Final = find_spec('pydantic_graph.persistence') is not None
"""Whether the host brings its own `BaseNode` runner and persistence interface (pydantic-graph 1.x)."""

if TYPE_CHECKING:
    # Static only, and unresolved on 2.x, where it then counts as an unknown base: `StatePersistence` declares
    # every member itself, so nothing is lost there, and on 1.x a type checker accepts it as the host's
    # `persistence=`.
    from pydantic_graph.persistence import (  # pyright: ignore[reportMissingImports]
        BaseStatePersistence,  # pyright: ignore[reportUnknownVariableType]
    )

    class GraphNodeStatusError(GraphRuntimeError):
        """Error caused by an attempt to run a node whose snapshot is not `'created'` or `'pending'`."""

        actual_status: str
        """The status that was found."""

    @contextmanager
    def node_types(nodes: Sequence[type[BaseNode[Any, Any, Any]]]) -> Generator[None]:
        """Name the node types of the graph whose persistence types are set in this context."""
        yield

    def current_node_types() -> Sequence[type[BaseNode[Any, Any, Any]]] | None:
        """Return the node types named by the innermost `node_types`, `None` outside of it."""

elif HAS_RUNNER:
    from pydantic_graph.exceptions import GraphNodeStatusError
    from pydantic_graph.persistence import BaseStatePersistence
    from pydantic_graph.persistence._utils import nodes_type_context
    from pydantic_graph.persistence._utils import set_nodes_type_context as node_types

    def current_node_types():
        return nodes_type_context.get(None)

else:
    _node_types: ContextVar[Sequence[type[BaseNode[Any, Any, Any]]] | None] = ContextVar(
        'node_types', default=None
    )

    @contextmanager
    def node_types(nodes):
        token = _node_types.set(nodes)
        try:
            yield
        finally:
            _node_types.reset(token)

    def current_node_types():
        return _node_types.get()

    class BaseStatePersistence(ABC, Generic[StateT, RunEndT]):
        """The interface that pydantic-graph 1.x has: what `Graph` needs of anybody's persistence."""

        @abstractmethod
        async def snapshot_node(self, state, next_node):
            """Store that `next_node` is to be run with this state."""

        @abstractmethod
        async def snapshot_node_if_new(self, snapshot_id, state, next_node):
            """Store that `next_node` is to be run, unless there is a snapshot with this id."""

        @abstractmethod
        async def snapshot_end(self, state, end):
            """Store the end of the run."""

        @abstractmethod
        def record_run(self, snapshot_id):
            """Return an async context manager that records the run of a node."""

        @abstractmethod
        async def load_next(self):
            """Hand out a snapshot that is `'created'` and set it to `'pending'`; `None` if there is none."""

        @abstractmethod
        async def load_all(self):
            """Load every snapshot, in order."""

        def set_graph_types(self, graph):
            """Learn the types of the state and the result from a graph."""
            if self.should_set_types():
                with node_types(graph.get_nodes()):
                    self.set_types(*graph.inferred_types)

        def should_set_types(self):
            """Whether `set_types` is still needed."""
            return False

        def set_types(self, state_type, run_end_type):
            """Learn the types of the state and the result."""

    class GraphNodeStatusError(GraphRuntimeError):
        """Error caused by an attempt to run a node whose snapshot is not `'created'` or `'pending'`."""

        def __init__(self, actual_status: str):
            self.actual_status = actual_status
            super().__init__(f"Incorrect snapshot status {actual_status!r}, must be 'created' or 'pending'.")


_SNAPSHOT_ID = '__snapshot_id'  # the attribute that pydantic-graph 1.x uses; a deep copy carries it along


def ensure_snapshot_id(node: BaseNode[Any, Any, Any] | End[Any]) -> str:
    """Return the snapshot id that the node or end carries; give it one first if it has none."""
    if HAS_RUNNER:
        return cast(Any, node).get_snapshot_id()
    if snapshot_id := getattr(node, _SNAPSHOT_ID, None):
        return cast(str, snapshot_id)
    name = node.get_node_id() if isinstance(node, BaseNode) else 'end'
    snapshot_id = f'{name}:{uuid4().hex}'
    set_snapshot_id(node, snapshot_id)
    return snapshot_id


def set_snapshot_id(node: BaseNode[Any, Any, Any] | End[Any], snapshot_id: str) -> None:
    """Make the node or end carry this snapshot id; works on frozen dataclasses too."""
    object.__setattr__(node, _SNAPSHOT_ID, snapshot_id)
