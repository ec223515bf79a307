"""What a user's type checker accepts on pydantic-graph 1.x: ours wherever the host takes a persistence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import assert_type

from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.graph import Graph as HostGraph
from pydantic_graph.graph import GraphRun, GraphRunResult
from pydantic_graph.persistence import BaseStatePersistence

from graphkeep import (
    FileStatePersistence,
    FullStatePersistence,
    MemoryStore,
    SimpleStatePersistence,
    StatePersistence,
)


@dataclass
class Counter:
    value: int = 0


@dataclass
class Count(BaseNode[Counter, None, str]):
    async def run(self, ctx: GraphRunContext[Counter]) -> Count | End[str]:
        ctx.state.value += 1
        return Count() if ctx.state.value < 3 else End('done')


graph = HostGraph(nodes=[Count])


async def the_host_takes_ours(path: Path) -> None:
    file = FileStatePersistence[Counter, str](path)
    assert_type(await graph.run(Count(), state=Counter(), persistence=file), GraphRunResult[Counter, str])
    await graph.run(Count(), state=Counter(), persistence=FileStatePersistence(path))
    await graph.run(Count(), state=Counter(), persistence=SimpleStatePersistence())
    await graph.run(Count(), state=Counter(), persistence=FullStatePersistence(deep_copy=False))
    await graph.run(Count(), state=Counter(), persistence=MemoryStore().run('order-17'))
    await graph.initialize(Count(), file, state=Counter())
    async with graph.iter(Count(), state=Counter(), persistence=file) as run:
        assert_type(run, GraphRun[Counter, None, str])
    async with graph.iter_from_persistence(file) as run:
        assert_type(run, GraphRun[Counter, None, str])


def ours_are_what_the_host_calls_persistences(ours: StatePersistence[Counter, str]) -> None:
    theirs: BaseStatePersistence[Counter, str] = ours
    print(theirs)
