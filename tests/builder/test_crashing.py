"""The crashing itself, tried on what is known to be right: a graph of `BaseNode`s on every store."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph, StoredStatePersistence, run_or_resume
from graphkeep.commit import Commit
from tests.builder.corpus.cases import pause
from tests.builder.crashing import STORES, Died, Place, crash_points, dying, places

Persistence = StoredStatePersistence[Any, Any]


@dataclass
class Sum:
    """A state."""

    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Add(BaseNode[Sum, None, int]):
    """Adds before its await and after it."""

    number: int = 0

    async def run(self, ctx: GraphRunContext[Sum, None]) -> Add | End[int]:
        ctx.state.numbers.append(self.number)
        await pause()
        ctx.state.numbers.append(10 * self.number)
        return End(sum(ctx.state.numbers)) if self.number == 3 else Add(self.number + 1)


class Adding:
    """Runs of a graph that adds up."""

    name = 'adding'
    same_tasks = True

    def __init__(self, answer: tuple[int, list[int]] = (66, [0, 0, 1, 10, 2, 20, 3, 30])):
        self.answer = answer

    async def expected(self) -> Any:
        return self.answer

    async def go_on(self, persistence: Persistence) -> Any:
        graph = Graph(nodes=(Add,), name='adding')
        run = await run_or_resume(graph, Add(), state=Sum(), persistence=persistence)
        return run.output, deepcopy(run.state.numbers)

    async def recorded(self, persistence: Persistence) -> Any:
        return await self.go_on(persistence)


@pytest.mark.anyio
@pytest.mark.both_backends
@pytest.mark.parametrize('name', list(STORES))
async def test_nothing_differs(name: str, tmp_path: Path, anyio_backend: str):
    """A run that dies before a commit, and again, is gone on with to the same end."""
    report = await crash_points(Adding(), places(name, tmp_path))
    report.check()
    assert report.points > 20


@pytest.mark.anyio
async def test_difference_is_found(tmp_path: Path):
    """Where the end is another than expected, the report says after which crash."""
    report = await crash_points(Adding((1, [])), places('memory', tmp_path))
    assert report.differences
    with pytest.raises(AssertionError, match='adding without a crash: expected'):
        report.check()


@pytest.mark.anyio
async def test_dead_run_stores_nothing(tmp_path: Path):
    """After its death nothing of a run is stored: no later commit, and not that it was given up."""
    place = Place('memory', tmp_path)
    async with place.open() as store:
        persistence = store.run('run')
        backend = dying(persistence, 5)
        with pytest.raises(Died):
            await Adding().go_on(persistence)
        assert (backend.commits, backend.died) == (5, True)
        before = await store.export('run')
        with pytest.raises(Died):
            backend.commit(Commit())
        assert await store.export('run') == before
        assert [record.status for record in await store.history('run')] == ['success', 'running']
