"""Runs of `BaseNode` graphs that go on in a builder graph of the same nodes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic_graph import BaseNode, End, GraphBuilder, GraphRunContext, StepContext

from graphkeep import (
    CorruptSnapshotError,
    FileStatePersistence,
    Graph,
    MemoryStore,
    PersistentGraph,
    iter_or_resume,
    run_or_resume,
)

pytestmark = pytest.mark.anyio


@dataclass
class Trail:
    """The state: the numbers that were seen."""

    numbers: list[int] = field(default_factory=lambda: list[int]())


@dataclass
class Halve(BaseNode[Trail, None, int]):
    """Halve a number until it is odd."""

    number: int

    async def run(self, ctx: GraphRunContext[Trail, None]) -> Halve | End[int]:
        """Halve it once."""
        ctx.state.numbers.append(self.number)
        return End(self.number) if self.number % 2 else Halve(self.number // 2)


def nodes_graph() -> Graph[Trail, None, int]:
    """Return the `BaseNode` graph."""
    return Graph(nodes=(Halve,), state_type=Trail, run_end_type=int)


def builder_graph() -> PersistentGraph[Any, Any, Any, Any]:
    """Return a builder graph with the same node, whose start is another one."""
    g = GraphBuilder(state_type=Trail, input_type=int, output_type=int)

    @g.step
    async def begin(ctx: StepContext[Trail, None, int]) -> Halve:
        raise AssertionError('the run began long ago')

    g.add(g.edge_from(g.start_node).to(begin), g.node(Halve))
    return PersistentGraph(g.build())


async def test_a_run_goes_on_in_a_builder_graph():
    """Where a run of nodes was left, the builder graph goes on, with its state."""
    store = MemoryStore()
    async with iter_or_resume(nodes_graph(), Halve(40), state=Trail(), persistence=store.run('r')) as run:
        await run.next()
        await run.next()
    persistence = store.run('r')
    assert await run_or_resume(builder_graph(), persistence=persistence) == 5
    assert await persistence.last_state() == Trail([40, 20, 10, 5])
    history = await store.history('r')
    assert [(r.kind, r.node_id) for r in history[:3]] == [('node', 'Halve')] * 3
    assert [r.kind for r in history[3:]] == ['task', 'task', 'task', 'task', 'end'][-len(history[3:]) :]
    assert {r.status for r in history} == {'success'}


async def test_a_file_of_1_x_goes_on_in_a_builder_graph(tmp_path: Path):
    """So does a run in a file as pydantic-graph 1.x writes it."""
    file = tmp_path / 'run.json'
    done = {'start_ts': '2026-01-31T12:00:00Z', 'duration': 0.1, 'status': 'success'}
    due = {'start_ts': None, 'duration': None, 'status': 'created'}
    nodes: list[tuple[int, list[int], dict[str, Any]]] = [(12, [], done), (6, [12], due)]
    file.write_text(
        json.dumps(
            [
                {
                    'kind': 'node',
                    'id': f'Halve:{number}',
                    'state': {'numbers': numbers},
                    'node': {'number': number, 'node_id': 'Halve'},
                    **times,
                }
                for number, numbers, times in nodes
            ]
        )
    )
    persistence = FileStatePersistence[Trail, int](file)
    assert await run_or_resume(builder_graph(), persistence=persistence) == 3
    assert await persistence.last_state() == Trail([12, 6, 3])


async def test_the_way_back_is_refused():
    """A run that has gone on in a builder graph is not taken up by the `BaseNode` graph."""
    store = MemoryStore()
    await nodes_graph().initialize(Halve(12), store.run('r'), state=Trail())
    async with builder_graph().iter_from_persistence(store.run('r')) as run:
        await run.next()
    before = await store.history('r')
    assert any(record.kind == 'task' for record in before)
    with pytest.raises(CorruptSnapshotError, match='go on with its PersistentGraph'):
        await run_or_resume(nodes_graph(), persistence=store.run('r'))
    assert await store.history('r') == before
    assert await run_or_resume(builder_graph(), persistence=store.run('r')) == 3
