"""Graphs that were changed while their runs were under way: what was renamed, or is gone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from pydantic_graph import GraphBuilder, StepContext, reduce_list_append
from pydantic_graph.graph_builder import Graph
from pydantic_graph.join import ReducerContext

from graphkeep import CorruptSnapshotError, MemoryStore, PersistentGraph, iter_or_resume, run_or_resume
from tests.builder.corpus.cases import HOST
from tests.builder.trails import Trail

pytestmark = pytest.mark.anyio


def joining(join_id: str, telling: bool, empty: bool) -> Graph[Trail, None, list[int], list[int]]:
    """Return a map whose join has this id, and three steps after it; its reducer may change the state."""
    g = GraphBuilder(state_type=Trail, input_type=list[int], output_type=list[int])

    @g.step
    async def item(ctx: StepContext[Trail, None, int]) -> int:
        return ctx.inputs

    def tell(ctx: ReducerContext[Trail, None], current: list[int], value: int) -> list[int]:
        ctx.state.steps.append(f'item {value}')
        return [*current, value]

    def called(name: str) -> Any:
        async def go_on(ctx: StepContext[Trail, None, list[int]]) -> list[int]:
            ctx.state.steps.append(name)
            return ctx.inputs

        return g.step(go_on, node_id=name)

    joined: Any = g.join(tell if telling else reduce_list_append, initial_factory=list[int], node_id=join_id)
    way: list[Any] = [joined, *map(called, ('one', 'two', 'three')), g.end_node]
    # with items, early hosts would close it too often
    closing = joined.id if empty or HOST >= (2, 50) else None
    g.add(
        g.edge_from(g.start_node).map(fork_id='each', downstream_join_id=closing).to(item),
        g.edge_from(item).to(joined),
        *(g.edge_from(one).to(next_) for one, next_ in pairwise(way)),
    )
    return g.build()


async def leave(run: Any, events: int) -> None:
    """Drive a run for so many events."""
    async with run as running:
        async for _ in running:
            events -= 1
            if not events:
                break


@pytest.mark.both_backends
@pytest.mark.parametrize('telling', [False, True], ids=['plain', 'with context'])
@pytest.mark.parametrize('items', [list[int](), [1, 2]], ids=['empty', 'items'])
async def test_renamed_join_closes_once(items: list[int], telling: bool):
    """A join that was renamed while it was open closes once, wherever the run is left before and after."""
    old = joining('joined', telling, empty=not items)
    new = PersistentGraph(joining('put', telling, empty=not items), nodes={'joined': 'put'})
    told = [f'item {item}' for item in items] if telling else []
    for before in range(1, 6):
        for after in range(1, 6):
            store = MemoryStore()
            how: dict[str, Any] = {'state': Trail(), 'inputs': items}
            await leave(PersistentGraph(old).iter(**how, persistence=store.run('r')), before)
            await leave(iter_or_resume(new, persistence=store.run('r')), after)
            persistence = store.run('r')
            assert sorted(await run_or_resume(new, persistence=persistence)) == items
            steps = (await persistence.last_state()).steps
            assert sorted(steps[:-3]) == told, f'left at {before} and {after}'
            assert steps[-3:] == ['one', 'two', 'three'], f'left at {before} and {after}'


@dataclass
class Order:
    """What the graph was given at first."""

    number: int


def adding(*, old: bool) -> PersistentGraph[None, None, Any, int]:
    """Return a graph that begins with an `Order`, or since then with a number."""
    g: Any = GraphBuilder(input_type=Order if old else int, output_type=int)

    @g.step
    async def add(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs + 1

    if old:

        @g.step
        async def read(ctx: StepContext[None, None, Order]) -> int:
            return ctx.inputs.number

        g.add(g.edge_from(g.start_node).to(read), g.edge_from(read).to(add))
    else:
        g.add(g.edge_from(g.start_node).to(add))
    g.add(g.edge_from(add).to(g.end_node))
    return PersistentGraph(g.build())


async def test_type_of_the_inputs_is_gone():
    """A run is gone on with in a graph that no longer has the type it began with, once it is past that."""
    store = MemoryStore()
    for events in (0, 1, 2):
        async with adding(old=True).iter(inputs=Order(3), persistence=store.run(f'r{events}')) as run:
            for _ in range(events):
                await anext(run)
    for run_id in ('r0', 'r1'):
        with pytest.raises(CorruptSnapshotError):
            await run_or_resume(adding(old=False), persistence=store.run(run_id))
        assert await run_or_resume(adding(old=True), persistence=store.run(run_id)) == 4
    assert await run_or_resume(adding(old=False), persistence=store.run('r2')) == 4
