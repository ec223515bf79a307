"""Broadcasts."""

from __future__ import annotations

from pydantic_graph import (
    GraphBuilder,
    StepContext,
    reduce_dict_update,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@case('broadcast', 'join', 'list', state=Counts, inputs=5, normalise=in_any_order)
def broadcast_to_three() -> Graph[Counts, None, int, list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=list[int])

    @g.step
    async def once(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('once')
        await pause()
        return ctx.inputs

    @g.step
    async def twice(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('twice')
        await pause()
        return 2 * ctx.inputs

    @g.step
    async def thrice(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        await pause()
        ctx.state.add('thrice')
        return 3 * ctx.inputs

    all_of_them = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).to(once, twice, thrice),
        g.edge_from(once, twice, thrice).to(all_of_them),
        g.edge_from(all_of_them).to(g.end_node),
    )
    return g.build()


@case('broadcast', 'transform', 'label', 'changes before an await', state=Counts, inputs=5)
def broadcast_of_paths() -> Graph[Counts, None, int, dict[str, int]]:
    """The paths of a broadcast differ in more than where they lead; some lead to the same step."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=dict[str, int])

    @g.step
    async def ready(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        return ctx.inputs

    @g.step
    async def named(ctx: StepContext[Counts, None, tuple[str, int]]) -> dict[str, int]:
        name, number = ctx.inputs
        ctx.state.add(name)
        await pause()
        ctx.state.add('all', number)
        return {name: number}

    def low(ctx: StepContext[Counts, None, int]) -> tuple[str, int]:
        return 'low', ctx.inputs - 1

    def high(ctx: StepContext[Counts, None, int]) -> tuple[str, int]:
        return 'high', ctx.inputs + 1

    @g.step
    async def straight(ctx: StepContext[Counts, None, int]) -> dict[str, int]:
        await pause()
        return {'straight': ctx.inputs}

    together = g.join(reduce_dict_update, initial_factory=dict[str, int])
    g.add(
        g.edge_from(g.start_node).to(ready),
        g.edge_from(ready).broadcast(
            lambda b: [
                b.label('low').transform(low).to(named),
                b.transform(high).label('high').to(named),
                b.to(straight),
            ],
            fork_id='three-ways',
        ),
        g.edge_from(named, straight).to(together),
        g.edge_from(together).to(g.end_node),
    )
    return g.build()


@case('broadcast', 'join', 'stateless', inputs='ab')
def broadcast_straight_into_joins() -> Graph[None, None, str, int]:
    """No step at all: only what the scheduler does by itself."""
    g = GraphBuilder(input_type=str, output_type=int)

    def length(ctx: StepContext[None, None, str]) -> int:
        return len(ctx.inputs)

    total = g.join(reduce_sum, initial=1)
    g.add(
        g.edge_from(g.start_node).transform(length).to(total, total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case(
    'map', 'broadcast', 'several joins under one fork', state=Counts, inputs=[1, 2, 3], resumes_since=(2, 50)
)
def broadcast_within_map() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def plus(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('plus', ctx.inputs)
        await pause()
        return ctx.inputs

    @g.step
    async def minus(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('minus', ctx.inputs)
        return -ctx.inputs

    @g.step
    async def both(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('both')
        await pause()
        return ctx.inputs + 10

    pair = g.join(reduce_sum, initial=0, node_id='pair', preferred_parent_fork='closest')
    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).map().to(plus, minus),
        g.edge_from(plus, minus).to(pair),
        g.edge_from(pair).to(both),
        g.edge_from(both).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
