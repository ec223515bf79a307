"""What a type checker makes of builder graphs; mypy does not know the variance of the host's own types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from pydantic_graph.graph_builder import GraphBuilder

from graphkeep import PersistentGraph, SqliteStore, StatePersistence, iter_or_resume, run_or_resume


@dataclass
class Tally:
    count: int = 0


async def a_builder_graph_keeps_its_types(persistence: StatePersistence[Tally, int]) -> None:
    builder = GraphBuilder(state_type=Tally, input_type=str, output_type=int)
    graph = PersistentGraph(builder.build())
    assert_type(graph, PersistentGraph[Tally, None, str, int])
    assert_type(await graph.run(state=Tally(), inputs='a', persistence=SqliteStore('a').run('run')), int)
    output = await run_or_resume(graph, state=Tally(), inputs='a', persistence=persistence)
    assert_type(output, int)
    async with iter_or_resume(graph, persistence=persistence) as run:
        async for event in run:
            print(event)
