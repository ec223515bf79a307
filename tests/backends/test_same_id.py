"""A node that returns itself keeps its snapshot id; what is meant is known by its number all the same."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph, SnapshotStatusError, Store, iter_or_resume, run_or_resume

pytestmark = pytest.mark.anyio


@dataclass
class Done:
    """Who ran the node, each time."""

    by: list[str] = field(default_factory=list[str])


@dataclass
class Again(BaseNode[Done, str, list[str]]):
    """Returns itself three times."""

    left: int = 3

    async def run(self, ctx: GraphRunContext[Done, str]) -> Again | End[list[str]]:
        ctx.state.by.append(f'{ctx.deps}{self.left}')
        if self.left == 0:
            return End(ctx.state.by)
        self.left -= 1
        return self


again = Graph(nodes=(Again,))


async def test_overtaken_between_steps(store: Store):
    """Of two who go on with one run the slower is refused, and no step is run twice."""
    async with iter_or_resume(again, Again(), state=Done(), deps='a', persistence=store.run('run')) as slow:
        await slow.next()
        async with iter_or_resume(again, deps='b', persistence=store.run('run')) as quick:
            await quick.next()
        with pytest.raises(SnapshotStatusError):
            await slow.next()
    result = await run_or_resume(again, deps='c', persistence=store.run('run'))
    assert result.output == ['a3', 'b2', 'c1', 'c0']
    assert [record.status for record in await store.history('run')] == ['success'] * 5
    assert [record.attempt for record in await store.history('run')][:4] == [1] * 4


async def test_newer_one_beside_one_that_runs(store: Store):
    """While a node runs, a newer snapshot with its id is the one that is meant, whoever looks at the run."""
    mine, node = store.run('run'), Again()
    mine.set_graph_types(again)
    await mine.snapshot_node(Done(), node)
    (record,) = await store.history('run')
    async with mine.record_run(record.id):
        await mine.snapshot_node(Done(), node)
        for number in range(40):  # more than are kept at hand
            await mine.snapshot_node(Done(), Again(number))
    with pytest.raises(SnapshotStatusError):
        await mine.load_next()
    assert [r.status for r in await store.history('run')] == ['running', *['created'] * 41]
