"""Every annotation of a builder graph that tells what values may flow through it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ._scheduler import Decision, Graph, GraphRun, Join, NodeStep, Step
from .namedtypes import signature_hints

__all__ = ('hints_in',)


def hints_in(graph: Graph[Any, Any, Any, Any], caller: FrameType | None) -> Iterator[Any]:
    """Yield the annotations; `caller` is who asks, see `signature_hints`.

    Raises:
        UnsupportedTypeError: if one of them cannot be resolved.
    """
    yield from (graph.state_type, graph.input_type, graph.output_type)
    node_types = [node.node_type for node in graph.nodes.values() if isinstance(node, NodeStep)]
    known = [graph.state_type, graph.deps_type, graph.input_type, graph.output_type, *node_types]
    names = {getattr(type_, '__name__', ''): type_ for type_ in known}
    for node in graph.nodes.values():
        if isinstance(node, NodeStep):
            yield node.node_type
            yield from signature_hints(f'node {node.id!r}', node.node_type.run, names, caller).values()
        elif isinstance(node, Step):
            yield from signature_hints(f'step {node.id!r}', _function_of(node), names, caller).values()
        elif isinstance(node, Join):
            yield from signature_hints(f'reducer of join {node.id!r}', node.reducer, names, caller).values()
            yield node.initial_factory
        elif isinstance(node, Decision):
            yield from (branch.source for branch in node.branches)
    for transform in _transforms(graph):
        yield from signature_hints('transform', transform, names, caller).values()


def _function_of(step: Step[Any, Any, Any, Any]) -> Callable[..., Any]:
    """Return the function that the user gave for a step; a streaming one is wrapped by the host."""
    call: Any = step.call
    if getattr(call, '__module__', None) == GraphRun.__module__:
        return inspect.getclosurevars(call).nonlocals.get('call', call)
    return call


def _transforms(graph: Graph[Any, Any, Any, Any]) -> Iterator[Callable[..., Any]]:
    paths = [path for paths in graph.edges_by_source.values() for path in paths]
    for node in graph.nodes.values():
        if isinstance(node, Decision):
            paths += [branch.path for branch in node.branches]
    for path in paths:
        for item in path.items:
            if (transform := getattr(item, 'transform', None)) is not None:
                yield transform
