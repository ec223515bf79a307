"""A `BaseNode` graph drawn as text: a mermaid state diagram, the same as pydantic-graph 1.x draws.

The renderer that pydantic-graph 2.x has (`MermaidGraph`) is made for builder graphs and cannot draw this one:
it knows no highlighted nodes, writes notes beside decisions only, declares each node in a line of its own and
orders the edges otherwise. A diagram that a project keeps in its docs would change with the host: so it is
drawn here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import Any, Final, Literal, TypeAlias

from ._host import BaseNode, Edge
from ._node_defs import NodeDef

__all__ = ('DEFAULT_HIGHLIGHT_CSS', 'NodeIdent', 'StateDiagramDirection', 'mermaid_code')

DEFAULT_HIGHLIGHT_CSS: Final = 'fill:#fdff32'
"""How a highlighted node looks unless told otherwise."""

StateDiagramDirection: TypeAlias = Literal['TB', 'LR', 'RL', 'BT']
"""In which direction a diagram runs: top to bottom (mermaid's default), left to right, or their reverse."""

NodeIdent: TypeAlias = type[BaseNode[Any, Any, Any]] | BaseNode[Any, Any, Any] | str
"""What names a node of a graph: its class, an instance of it, or its id."""


def mermaid_code(
    node_defs: Mapping[str, NodeDef[Any, Any, Any]],
    *,
    start_node: Sequence[NodeIdent] | NodeIdent | None,
    title: str | None,
    edge_labels: bool,
    notes: bool,
    highlighted_nodes: Sequence[NodeIdent] | NodeIdent | None,
    highlight_css: str,
    direction: StateDiagramDirection | None,
) -> str:
    """Return the diagram of a graph with these nodes; the parameters are those of `Graph.mermaid_code`.

    Raises:
        LookupError: if a start node or a node to highlight is not in the graph.
    """
    start_ids = _known_ids('Start', start_node, node_defs)
    lines = ['---', f'title: {title}', '---'] if title else []
    lines.append('stateDiagram-v2')
    if direction is not None:
        lines.append(f'  direction {direction}')
    for node_id, defined in node_defs.items():
        if node_id in start_ids:
            lines.append(f'  [*] --> {node_id}')
        lines += _edge_lines(defined, node_defs, edge_labels)
        if notes and defined.note:
            # mermaid shows an empty line in a note as a break in the diagram's text
            note = indent(re.sub('\n{2,}', '\n', defined.note), '    ')
            lines += [f'  note right of {node_id}', note, '  end note']
    if highlighted_nodes:
        highlighted_ids = _known_ids('Highlighted', highlighted_nodes, node_defs)
        lines += ['', f'classDef highlighted {highlight_css}']
        lines += [f'class {node_id} highlighted' for node_id in highlighted_ids]
    return '\n'.join(lines)


def _edge_lines(defined: NodeDef[Any, Any, Any], node_ids: Iterable[str], edge_labels: bool) -> Iterator[str]:
    targets: Iterable[tuple[str, Edge | None]] = defined.next_node_edges.items()
    if defined.returns_base_node:
        targets = [(node_id, None) for node_id in node_ids]
    if defined.end_edge:
        targets = [*targets, ('[*]', defined.end_edge)]
    for target, edge in targets:
        label = f': {edge.label}' if edge_labels and edge and edge.label else ''
        yield f'  {defined.node_id} --> {target}{label}'


def _known_ids(
    role: str, nodes: Sequence[NodeIdent] | NodeIdent | None, known: Mapping[str, NodeDef[Any, Any, Any]]
) -> list[str]:
    if isinstance(nodes, str) or not isinstance(nodes, Sequence):
        nodes = () if nodes is None else (nodes,)
    ids = [node if isinstance(node, str) else node.get_node_id() for node in nodes]
    for node_id in ids:
        if node_id not in known:
            raise LookupError(f'{role} node "{node_id}" is not in the graph.')
    return ids
