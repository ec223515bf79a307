"""Joins that accumulate this and that, with and without access to the state."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic_graph import (
    GraphBuilder,
    ReducerContext,
    StepContext,
    reduce_list_append,
    reduce_null,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause


@dataclass
class Tally:
    """What a join accumulates."""

    number: int = 0
    sum: int = 0
    names: set[str] = field(default_factory=set[str])


@case('join', 'map', 'dataclass', state=Counts, inputs=[3, 4, 5])
def join_into_a_dataclass() -> Graph[Counts, None, list[int], Tally]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=Tally)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    def tally(current: Tally, inputs: int) -> Tally:
        current.number += 1
        current.sum += inputs
        return current

    joined = g.join(tally, initial_factory=Tally)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case('join', 'None', 'map', state=Counts, inputs=[1, 2])
def join_that_drops_everything() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('work', ctx.inputs)
        return ctx.inputs

    @g.step
    async def counted(ctx: StepContext[Counts, None, None]) -> int:
        await pause()
        return ctx.state.of('work')

    joined = g.join(reduce_null, initial=None)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(counted),
        g.edge_from(counted).to(g.end_node),
    )
    return g.build()


@case('join with state access', 'changes before an await', 'map', state=Counts, inputs=[1, 2, 3, 4])
def join_that_changes_the_state() -> Graph[Counts, None, list[int], int]:
    """Reduced again, an item would be counted again."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    def add(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('reduced')
        ctx.state.add('sum', inputs)
        return current + inputs

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('after', ctx.state.of('reduced'))
        await pause()
        return ctx.inputs

    joined = g.join(add, initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case('join with state access', 'changes after an await', 'tuple', state=Counts, inputs=[5, 6, 7])
def join_that_numbers_its_items() -> Graph[Counts, None, list[int], list[tuple[int, str]]]:
    """What it accumulates depends on the state at the moment of each reduction; in number the same always."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[tuple[int, str]])

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> str:
        await pause()
        ctx.state.add('work')
        await pause()
        return 'item'

    def number(
        ctx: ReducerContext[Counts, None], current: list[tuple[int, str]], inputs: str
    ) -> list[tuple[int, str]]:
        ctx.state.add('reduced')
        return [*current, (ctx.state.of('reduced'), inputs)]

    joined = g.join(number, initial_factory=list[tuple[int, str]])
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case(
    'join with state access', 'deps', 'dataclass', state=Counts, inputs=[1, 2, 3], deps=lambda: {'base': 100}
)
def join_that_reads_deps() -> Graph[Counts, dict[str, int], list[int], Tally]:
    g = GraphBuilder(state_type=Counts, deps_type=dict[str, int], input_type=list[int], output_type=Tally)

    @g.step
    async def work(ctx: StepContext[Counts, dict[str, int], int]) -> int:
        ctx.state.add('work', ctx.deps['base'])
        await pause()
        return ctx.inputs

    def tally(ctx: ReducerContext[Counts, dict[str, int]], current: Tally, inputs: int) -> Tally:
        current.number += 1
        current.sum += inputs + ctx.deps['base']
        current.names.add(f'item {inputs}')
        return current

    joined = g.join(tally, initial_factory=Tally)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case('join', 'map', 'reads state', state=Counts, inputs=[1, 2, 3])
def map_after_join() -> Graph[Counts, None, list[int], int]:
    """The joined list is mapped over again; what was counted before the join is read after it."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def before(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('before', ctx.inputs)
        await pause()
        return ctx.inputs

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('after')
        return ctx.inputs * ctx.state.of('before')

    middle = g.join(reduce_list_append, initial_factory=list[int], node_id='middle', parent_fork_id='one')
    total = g.join(reduce_sum, initial=0, node_id='total', parent_fork_id='two')
    g.add(
        g.edge_from(g.start_node).map(fork_id='one').to(before),
        g.edge_from(before).to(middle),
        g.edge_from(middle).map(fork_id='two').to(after),
        g.edge_from(after).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
