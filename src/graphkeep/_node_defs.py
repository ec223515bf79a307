"""What a graph knows of its nodes: ids, notes and edges, read from the annotations of their `run` methods.

Needed where the host no longer reads them itself (pydantic-graph 2.x).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from types import FrameType
from typing import Any, Generic, Never, cast, get_args, get_origin, get_type_hints

from typing_extensions import TypeVar
from typing_inspection import typing_objects
from typing_inspection.introspection import is_union_origin

from ._host import BaseNode, Edge, End, GraphSetupError

__all__ = (
    'DepsT',
    'NodeDef',
    'RunEndT',
    'StateT',
    'check_edges',
    'define_node',
    'infer_types',
    'namespace_of_caller',
)

StateT = TypeVar('StateT', default=None)
"""Type variable for the state of a graph."""
DepsT = TypeVar('DepsT', default=None, contravariant=True)
"""Type variable for the dependencies of a graph and its nodes."""
RunEndT = TypeVar('RunEndT', default=None, covariant=True)
"""Type variable for the result of a graph run."""
NodeRunEndT = TypeVar('NodeRunEndT', default=Never, covariant=True)
"""Type variable for the result that a node can end a run with."""


@dataclass(kw_only=True)
class NodeDef(Generic[StateT, DepsT, NodeRunEndT]):
    """What a graph knows of one node type."""

    node: type[BaseNode[StateT, DepsT, NodeRunEndT]]
    """The node type."""
    node_id: str
    """Its id in the graph."""
    note: str | None
    """What is written beside it in a diagram."""
    next_node_edges: dict[str, Edge]
    """The edges to the nodes that may come next, by node id."""
    end_edge: Edge | None
    """The edge to the end, `None` if the node never ends a run."""
    returns_base_node: bool
    """Whether it is annotated as returning any node, so that every node of the graph may come next."""


def define_node(
    node: type[BaseNode[StateT, DepsT, NodeRunEndT]], namespace: Mapping[str, Any] | None
) -> NodeDef[StateT, DepsT, NodeRunEndT]:
    """Read the edges of a node type from the return annotation of its `run` method.

    Args:
        node: The node type; a parametrised one counts as the class that it parametrises.
        namespace: Names beyond the module's that annotations may use: the local ones where the graph is made.

    Raises:
        GraphSetupError: if there is no return annotation, or one that is neither a node nor an `End`.
    """
    cls = cast('type[BaseNode[StateT, DepsT, NodeRunEndT]]', get_origin(node) or node)
    hints = get_type_hints(cls.run, localns=namespace, include_extras=True)
    if 'return' not in hints:
        raise GraphSetupError(f'Node {cls} is missing a return type hint on its `run` method')
    defined = NodeDef(
        node=cls,
        node_id=cls.get_node_id(),
        note=_note_of(cls),
        next_node_edges={},
        end_edge=None,
        returns_base_node=False,
    )
    for returned, edge in _edges(hints['return'], Edge(None)):
        origin = get_origin(returned) or returned
        if origin is End:
            defined.end_edge = edge
        elif origin is BaseNode:
            defined.returns_base_node = True
        elif isinstance(origin, type) and issubclass(origin, BaseNode):
            defined.next_node_edges[origin.get_node_id()] = edge
        else:
            raise GraphSetupError(f'Invalid return type: {returned}')
    return defined


def check_edges(node_defs: Mapping[str, NodeDef[Any, Any, Any]]) -> None:
    """Raise a `GraphSetupError` that names every node which is referred to and is not in the graph."""
    sources: dict[str, list[str]] = {}
    for node_id, defined in node_defs.items():
        for target in defined.next_node_edges:
            if target not in node_defs:
                sources.setdefault(target, []).append(f'`{node_id}`')
    missing = [f'`{target}` is referenced by {_listed(found)}' for target, found in sources.items()]
    if len(missing) == 1:
        raise GraphSetupError(f'{missing[0]} but not included in the graph.')
    if missing:
        lines = '\n'.join(f' {line}' for line in missing)
        raise GraphSetupError(f'Nodes are referenced in the graph but not included in the graph:\n{lines}')


def infer_types(node_defs: Mapping[str, NodeDef[Any, Any, Any]]) -> tuple[Any, Any]:
    """Return the types of state and result with which the nodes parametrise `BaseNode`, `None` if none does.

    The first node that names a type decides. A type that reaches a node through a generic class in between is
    not seen: give the graph `state_type` and `run_end_type` then.
    """
    found: list[tuple[Any, ...]] = []
    for defined in node_defs.values():
        bases = getattr(defined.node, '__orig_bases__', ())
        found.extend(get_args(base) for base in bases if get_origin(base) is BaseNode)
    state_type = next((args[0] for args in found if args), None)
    ends = (args[2] for args in found if len(args) > 2)
    return state_type, next((end for end in ends if not typing_objects.is_never(end)), None)


def namespace_of_caller(frame: FrameType | None) -> dict[str, Any] | None:
    """Return the local names of the code that called the function whose frame this is."""
    caller = frame and frame.f_back
    # `Graph[State, Deps, Result](...)` is called through `typing`, which adds frames of its own
    while caller and caller.f_globals.get('__name__') == 'typing':
        caller = caller.f_back
    return dict(caller.f_locals) if caller else None


def _edges(hint: Any, edge: Edge) -> Iterator[tuple[Any, Edge]]:
    """Take unions, type aliases and `Annotated` apart, into single types and the edge that leads to each."""
    origin = get_origin(hint)
    if typing_objects.is_typealiastype(hint):
        yield from _edges(hint.__value__, edge)
    elif typing_objects.is_annotated(origin):
        hint, *annotations = get_args(hint)
        yield from _edges(hint, next((a for a in annotations if isinstance(a, Edge)), edge))
    elif is_union_origin(origin):
        for member in get_args(hint):
            yield from _edges(member, edge)
    else:
        yield hint, edge


def _note_of(cls: type[BaseNode[Any, Any, Any]]) -> str | None:
    # `BaseNode` of 2.x has neither of the two, but the nodes of somebody who comes from 1.x may
    if get_note := getattr(cls, 'get_note', None):
        return cast('str | None', get_note())
    doc = cls.__doc__
    if not getattr(cls, 'docstring_notes', False) or not doc:
        return None
    generated = is_dataclass(cls) and doc.startswith(f'{cls.__name__}(')
    return None if generated else inspect.cleandoc(doc)


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f'{", ".join(items[:-1])}, and {items[-1]}'
