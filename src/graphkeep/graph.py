"""`BaseNode` graphs: pydantic-graph 1.x's own classes where it is installed, the same API elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import _host

if not TYPE_CHECKING and _host.HAS_RUNNER:
    # from its module: importing these from the package itself warns that 2.x has no runner
    from pydantic_graph.graph import Graph, GraphRun, GraphRunResult
else:
    from ._graph import Graph
    from ._graph_run import GraphRun, GraphRunResult

__all__ = ('Graph', 'GraphRun', 'GraphRunResult')
