"""What a join or an iterator comes to that cannot be stored: it is refused, and who it concerns is named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_graph import GraphBuilder, StepContext, reduce_sum

from graphkeep import MemoryStore, PersistentGraph, RunFailedError, UnfaithfulSnapshotError, run_or_resume

pytestmark = pytest.mark.anyio


class Unknown:
    """What no graph names."""


@pytest.mark.both_backends
@pytest.mark.parametrize('items', [list[int](), [1, 2]], ids=['empty', 'items'])
async def test_join_that_cannot_be_stored(items: list[int]):
    """A join that comes to what cannot be stored fails the run, and is named."""
    g = GraphBuilder(input_type=list[int], output_type=int)

    @g.step
    async def item(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs

    @g.step
    async def use(ctx: StepContext[None, None, Any]) -> int:
        return 1

    def spoil(current: Any, value: int) -> Any:
        return current

    odd = g.join(spoil, initial_factory=Unknown, node_id='odd')
    g.add(
        g.edge_from(g.start_node).map(downstream_join_id=odd.id).to(item),
        g.edge_from(item).to(odd),
        g.edge_from(odd).to(use),
        g.edge_from(use).to(g.end_node),
    )
    store, graph = MemoryStore(), PersistentGraph(g.build())
    with pytest.raises(UnfaithfulSnapshotError, match="node 'odd'"):
        await graph.run(inputs=items, persistence=store.run('r'))
    (info,) = await store.runs()
    assert (info.status, info.owner, info.resumable) == ('error', None, False)
    with pytest.raises(RunFailedError, match="node 'odd'"):
        await run_or_resume(graph, persistence=store.run('r'))


async def test_iterator_for_two_maps():
    """An iterator that goes to two maps at once is refused, and both are named: one would take all of it."""
    g = GraphBuilder(output_type=int)

    @g.step
    async def numbers(ctx: StepContext[None, None, None]) -> Any:
        return iter([1, 2])

    @g.step
    async def item(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs

    added = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).broadcast(
            lambda edge: [edge.map(fork_id='left').to(item), edge.map(fork_id='right').to(item)]
        ),
        g.edge_from(item).to(added),
        g.edge_from(added).to(g.end_node),
    )
    store, graph = MemoryStore(), PersistentGraph(g.build())
    both = "('left' and 'right'|'right' and 'left')"
    with pytest.raises(UnfaithfulSnapshotError, match=f'an iterator, which goes to {both}: only one'):
        await graph.run(persistence=store.run('r'))
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('error', None)
