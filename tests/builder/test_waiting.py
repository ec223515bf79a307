"""When a step's commit waits for others, and when it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from pydantic_graph import GraphBuilder, StepContext, reduce_list_append

from graphkeep import MemoryStore, PersistentGraph

pytestmark = pytest.mark.anyio


@dataclass
class Done:
    """The state: who has done something."""

    by: list[str] = field(default_factory=lambda: list[str]())


def beside_one_another(*, quick_first: bool, changes_early: bool) -> PersistentGraph[Any, Any, Any, Any]:
    """Return a graph of a quick step beside a slow one, whose dependency is awaited when it is half way."""
    g = GraphBuilder(state_type=Done, deps_type=object, output_type=list[str])

    @g.step
    async def quick(ctx: StepContext[Done, Any, None]) -> str:
        ctx.state.by.append('quick')
        return 'quick'

    @g.step
    async def slow(ctx: StepContext[Done, Any, None]) -> str:
        if changes_early:
            ctx.state.by.append('slow')
        await anyio.sleep(0.02)
        await ctx.deps()
        if not changes_early:
            ctx.state.by.append('slow')
        return 'slow'

    both = g.join(reduce_list_append, initial_factory=list[str])
    steps = (quick, slow) if quick_first else (slow, quick)
    g.add(
        g.edge_from(g.start_node).to(*steps),
        g.edge_from(quick, slow).to(both),
        g.edge_from(both).to(g.end_node),
    )
    return PersistentGraph(g.build())


@pytest.mark.parametrize('quick_first', [True, False])
@pytest.mark.parametrize('changes_early', [True, False])
async def test_a_step_waits_for_one_that_has_changed_the_state(quick_first: bool, changes_early: bool):
    """What a quick step has come to is stored while a slow one goes on, unless that has changed the state."""
    store = MemoryStore()
    on_record: list[str] = []

    async def look() -> None:
        on_record.extend(r.node_id for r in await store.history('r') if r.status == 'success')

    graph = beside_one_another(quick_first=quick_first, changes_early=changes_early)
    output = await graph.run(state=Done(), deps=look, persistence=store.run('r'))
    assert sorted(output) == ['quick', 'slow']
    assert ('quick' in on_record) is not changes_early
