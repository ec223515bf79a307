"""What a graph may return, as its nodes declare it."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Never,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from ._host import BaseNode, End

__all__ = ('NodeType', 'result_type_of')

NodeType: TypeAlias = type[BaseNode[Any, Any, Any]]
"""A type of nodes."""


def result_type_of(nodes: Iterable[NodeType], declared: Any) -> Any:
    """Return the union of the graph's declared result type and those that its nodes declare."""
    found = [declared]
    localns = {node.get_node_id(): node for node in nodes}  # nodes of a local scope name each other
    for node in nodes:
        for type_ in (*_base_arguments(node), *_returned(node, localns)):
            # `Any` beside a type would take from it what that type has to convert
            if type_ not in (Never, Any, object, *found) and not isinstance(type_, TypeVar | ForwardRef):
                found.append(type_)
    return Union[tuple(found)] if len(found) > 1 else declared  # noqa: UP007


def _base_arguments(node: NodeType) -> Iterator[Any]:
    for cls in (get_origin(node) or node).__mro__:
        for base in cls.__dict__.get('__orig_bases__', ()):
            if get_origin(base) is BaseNode:
                yield from get_args(base)[2:]


def _returned(node: NodeType, localns: dict[str, Any]) -> Iterator[Any]:
    try:
        hint = get_type_hints(node.run, localns=localns, include_extras=True).get('return')
    except Exception:  # names of a scope that is gone; the declared type remains
        return
    for member in _members(hint):
        if get_origin(member) is End:
            yield from get_args(member)


def _members(hint: Any) -> Iterator[Any]:
    if hasattr(hint, '__value__'):  # `type X = ...`
        yield from _members(hint.__value__)
    elif get_origin(hint) is Annotated:
        yield from _members(hint.__origin__)
    elif get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint
