"""Several ends, reached while others run."""

from __future__ import annotations

import anyio
from pydantic_graph import (
    GraphBuilder,
    ReducerContext,
    StepContext,
    TypeExpression,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause


@case('several ends', 'broadcast', 'race to the end', state=Counts, inputs=4)
def first_to_the_end() -> Graph[Counts, None, int, int]:
    """The end is reached while others are running, who have changed the state."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def endless(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('endless')
        await anyio.sleep_forever()
        return 0

    @g.step
    async def short(ctx: StepContext[Counts, None, int]) -> int:
        while not ctx.state.of('endless'):
            await pause()
        ctx.state.add('short')
        return ctx.inputs

    g.add(
        g.edge_from(g.start_node).to(endless, short),
        g.edge_from(endless).to(g.end_node),
        g.edge_from(short).to(g.end_node),
    )
    return g.build()


@case('several ends', 'map', 'race to the end', 'stateless', inputs=['x'] * 4)
def all_to_the_same_end() -> Graph[None, None, list[str], str]:
    g = GraphBuilder(input_type=list[str], output_type=str)

    @g.step
    async def work(ctx: StepContext[None, None, str]) -> str:
        await pause()
        return 2 * ctx.inputs

    @g.step
    async def more(ctx: StepContext[None, None, str]) -> str:
        await pause()
        await pause()
        return 2 * ctx.inputs

    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(more),
        g.edge_from(more).to(g.end_node),
    )
    return g.build()


@case('several ends', 'typed decision', 'loop', 'map', state=Counts, inputs=[0, 0, 3])
def end_from_within_a_map() -> Graph[Counts, None, list[int], str]:
    """Who has something to say ends the run, past the join for which the others wait."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=str)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int | str:
        if not ctx.inputs:
            ctx.state.add('idle')
            await pause()
            return 1
        while ctx.state.of('joined') < 2:
            await pause()
        ctx.state.add('said')
        return 'said'

    def joined(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('joined')
        return current + inputs

    @g.step
    async def never(ctx: StepContext[Counts, None, int]) -> str:
        # the join has all that it waits for when the decision has been taken, just before the end
        await anyio.sleep_forever()
        ctx.state.add('never')
        return 'never'

    total = g.join(joined, initial=0, node_id='joined')
    said = g.decision().branch(g.match(str).to(g.end_node)).branch(g.match(TypeExpression[int]).to(total))
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(said),
        g.edge_from(total).to(never),
        g.edge_from(never).to(g.end_node),
    )
    return g.build()
