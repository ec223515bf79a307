"""What a user's type checker makes of the API on pydantic-graph 2.x, which has no runner itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import BaseStatePersistence, Graph, GraphRunResult, SimpleStatePersistence, StatePersistence


@dataclass
class Count(BaseNode[int, None, str]):
    async def run(self, ctx: GraphRunContext[int, None]) -> End[str]:
        return End(str(ctx.state))


async def a_1x_import_may_be_kept_under_its_name(persistence: StatePersistence[int, str]) -> None:
    kept: BaseStatePersistence[int, str] = persistence
    print(kept)
    graph = Graph(nodes=(Count,), name='count', state_type=int, run_end_type=str)
    result = await graph.run(Count(), state=1, persistence=SimpleStatePersistence())
    assert_type(result, GraphRunResult[int, str])
    assert_type(graph.mermaid_code(start_node=Count), str)
