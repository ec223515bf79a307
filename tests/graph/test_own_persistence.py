"""A persistence of a user's own, written for pydantic-graph 1.x's contract alone, works with `Graph`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError

import graphkeep
from graphkeep import EndSnapshot, Graph, NodeSnapshot, StatePersistence, run_or_resume
from graphkeep._host import HAS_RUNNER

pytestmark = pytest.mark.anyio

# to a type checker it is `StatePersistence`, which has more to say; what it is when run is tested here
Base: Any = graphkeep.BaseStatePersistence


@dataclass
class Count:
    """A state."""

    number: int = 0


@dataclass
class Up(BaseNode[Count, int, str]):
    """Counts up to `deps`."""

    async def run(self, ctx: GraphRunContext[Count, int]) -> Up | End[str]:
        ctx.state.number += 1
        return Up() if ctx.state.number < ctx.deps else End(f'reached {ctx.state.number}')


graph = Graph(nodes=(Up,), name='up')


class Listed(Base):
    """Keeps snapshots in a list, and nothing else that the contract does not ask for."""

    def __init__(self) -> None:
        self.snapshots: list[Any] = []

    async def snapshot_node(self, state: Any, next_node: Any) -> None:
        self.snapshots.append(NodeSnapshot(state=state, node=next_node))

    async def snapshot_node_if_new(self, snapshot_id: str, state: Any, next_node: Any) -> None:
        if all(snapshot.id != snapshot_id for snapshot in self.snapshots):
            await self.snapshot_node(state, next_node)

    async def snapshot_end(self, state: Any, end: Any) -> None:
        self.snapshots.append(EndSnapshot(state=state, result=end))

    @asynccontextmanager
    async def record_run(self, snapshot_id: str) -> AsyncGenerator[None]:
        snapshot = next(s for s in reversed(self.snapshots) if s.id == snapshot_id)
        snapshot.status = 'running'
        yield
        snapshot.status = 'success'

    async def load_next(self) -> Any:
        for snapshot in self.snapshots:
            if isinstance(snapshot, NodeSnapshot) and snapshot.status == 'created':
                snapshot.status = 'pending'
                return cast(Any, snapshot)
        return None

    async def load_all(self) -> Any:
        return self.snapshots


class Typed(Listed):
    """Wants to know the types, as a persistence that encodes does."""

    def __init__(self) -> None:
        super().__init__()
        self.types: tuple[Any, ...] | None = None

    def should_set_types(self) -> bool:
        return self.types is None

    def set_types(self, state_type: Any, run_end_type: Any) -> None:
        self.types = (state_type, run_end_type)


def test_base():
    """The base is the host's own where the host has one, and the base of this library's own everywhere."""
    assert issubclass(StatePersistence, Base)
    if HAS_RUNNER:
        from pydantic_graph import persistence as host_s  # pyright: ignore

        assert Base is host_s.BaseStatePersistence  # pyright: ignore
    with pytest.raises(TypeError, match='abstract'):
        Base()


@pytest.mark.both_backends
@pytest.mark.parametrize('make', [Listed, Typed])
async def test_run(make: Any):
    """A run is recorded in it."""
    persistence = make()
    result = await graph.run(Up(), state=Count(), deps=2, persistence=persistence)
    assert (result.output, result.persistence) == ('reached 2', persistence)
    nodes = [snapshot.node for snapshot in await persistence.load_all()]
    assert nodes == [Up(), Up(), End('reached 2')]
    assert [s.status for s in persistence.snapshots[:2]] == ['success'] * 2


async def test_types():
    """One that asks for the types is told them once, one that does not is not told."""
    persistence: Any = Typed()
    await graph.initialize(Up(), persistence, state=Count())
    assert persistence.types == (Count, str)
    persistence.types = ('set',)
    async with graph.iter_from_persistence(persistence, deps=1):
        assert persistence.types == ('set',)
    plain: Any = Listed()
    assert not plain.should_set_types()
    plain.set_types(Count, str)


async def test_iter_from_persistence():
    """A run that is recorded in it goes on, whether it was left between two steps or only begun."""
    persistence: Any = Listed()
    await graph.initialize(Up(), persistence, state=Count(5))
    async with graph.iter_from_persistence(persistence, deps=7) as run:
        assert await run.next() == Up()
    async with graph.iter_from_persistence(persistence, deps=7) as run:
        assert [node async for node in run] == [Up(), End('reached 7')]
    assert [s.status for s in persistence.snapshots[:2]] == ['success'] * 2


async def test_nothing_to_resume():
    """Where it hands out nothing, to go on is refused with the error that pydantic-graph 1.x raises."""
    persistence: Any = Listed()
    for _ in range(2):  # unknown, then finished
        with pytest.raises(GraphRuntimeError, match='Unable to restore snapshot'):
            async with graph.iter_from_persistence(persistence, deps=1):
                pytest.fail('it should have nothing to run')
        await graph.run(Up(), state=Count(), deps=1, persistence=persistence)


async def test_run_or_resume():
    """`run_or_resume`, which needs more than that contract, says so."""
    persistence: Any = Listed()
    with pytest.raises(TypeError, match=r'graphkeep\.StatePersistence'):
        await run_or_resume(graph, Up(), state=Count(), deps=1, persistence=persistence)
    assert persistence.snapshots == []
