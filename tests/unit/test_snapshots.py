"""The snapshots of a run: the host's own classes, or the same shapes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import Any, cast

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import EndSnapshot, NodeSnapshot, build_snapshot_list_type_adapter
from graphkeep._host import HAS_RUNNER, node_types


@dataclass
class Ask(BaseNode[int, None, str]):
    """A node."""

    text: str = ''

    async def run(self, ctx: GraphRunContext[int, None]) -> End[str]:
        return End(self.text)


def test_ends():
    """An end's `node` is the result, so that `[s.node for s in history]` works; it ended now, in UTC."""
    end = EndSnapshot[int, str](state=1, result=End('x'))
    assert end.node is end.result
    assert end.ts.tzinfo is UTC
    assert (end.kind, end.id.partition(':')[0]) == ('end', 'end')


def test_ids():
    """Two snapshots of one node have its id, unless another is given; two nodes have two."""
    node = Ask()
    first, second = NodeSnapshot[int, str](state=1, node=node), NodeSnapshot[int, str](state=2, node=node)
    assert first.id == second.id
    assert first.id.startswith('Ask:')
    assert NodeSnapshot[int, str](state=1, node=Ask()).id != first.id
    assert NodeSnapshot[int, str](state=1, node=node, id='mine').id == 'mine'


def test_adapter():
    """The type adapter carries a run to JSON and back, where the node types are known."""
    with node_types((Ask,)):
        adapter = build_snapshot_list_type_adapter(int, str)
    history: Any = [
        NodeSnapshot[int, str](state=1, node=Ask('x')),
        EndSnapshot[int, str](state=1, result=End('x')),
    ]
    assert adapter.validate_json(adapter.dump_json(history)) == history


@pytest.mark.skipif(HAS_RUNNER, reason="the host's own")
def test_adapter_without_a_graph():
    """Where the node types are not known that is said, with where to build the adapter."""
    with pytest.raises(RuntimeError, match='in `set_types`'):
        build_snapshot_list_type_adapter(cast(Any, int), str)
