"""Steps one after another."""

from __future__ import annotations

from pydantic_graph import GraphBuilder, StepContext
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause


@case('step', 'no await', state=Counts, inputs=3)
def one_step() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def double(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('doubled')
        return 2 * ctx.inputs

    g.add(g.edge_from(g.start_node).to(double), g.edge_from(double).to(g.end_node))
    return g.build()


@case('step', 'changes before an await', 'changes between awaits', 'changes after an await', state=Counts)
def chain_of_steps() -> Graph[Counts, None, None, int]:
    g = GraphBuilder(state_type=Counts, output_type=int)

    @g.step
    async def before(ctx: StepContext[Counts, None, None]) -> int:
        ctx.state.add('before')
        await pause()
        return 1

    @g.step
    async def between(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('between', ctx.inputs)
        await pause()
        return ctx.inputs + ctx.state.of('before')

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('after', ctx.inputs)
        return ctx.inputs + ctx.state.of('between')

    @g.step
    async def throughout(ctx: StepContext[Counts, None, int]) -> int:
        for _ in range(3):
            ctx.state.add('throughout', ctx.inputs)
            await pause()
        return ctx.state.of('throughout')

    g.add(
        g.edge_from(g.start_node).to(before),
        g.edge_from(before).to(between),
        g.edge_from(between).to(after),
        g.edge_from(after).to(throughout),
        g.edge_from(throughout).to(g.end_node),
    )
    return g.build()


@case('step', 'stateless', inputs='graph')
def stateless_steps() -> Graph[None, None, str, list[str]]:
    g = GraphBuilder(input_type=str, output_type=list[str])

    @g.step
    async def split(ctx: StepContext[None, None, str]) -> list[str]:
        await pause()
        return list(ctx.inputs)

    @g.step
    async def turn(ctx: StepContext[None, None, list[str]]) -> list[str]:
        return ctx.inputs[::-1]

    g.add(
        g.edge_from(g.start_node).to(split),
        g.edge_from(split).to(turn),
        g.edge_from(turn).to(g.end_node),
    )
    return g.build()


@case('None', 'step', state=Counts)
def nothing_from_anything() -> Graph[Counts, None, None, None]:
    g = GraphBuilder(state_type=Counts)

    @g.step
    async def first(ctx: StepContext[Counts, None, None]) -> None:
        await pause()
        ctx.state.add('first')

    @g.step
    async def second(ctx: StepContext[Counts, None, None]) -> None:
        ctx.state.add('second', ctx.state.of('first') + 1)
        await pause()

    g.add(
        g.edge_from(g.start_node).to(first),
        g.edge_from(first).to(second),
        g.edge_from(second).to(g.end_node),
    )
    return g.build()


@case('deps', state=Counts, inputs=5, deps=lambda: {'factor': 7})
def steps_with_deps() -> Graph[Counts, dict[str, int], int, int]:
    g = GraphBuilder(state_type=Counts, deps_type=dict[str, int], input_type=int, output_type=int)

    @g.step
    async def times(ctx: StepContext[Counts, dict[str, int], int]) -> int:
        await pause()
        ctx.state.add('times')
        return ctx.inputs * ctx.deps['factor']

    @g.step
    async def plus(ctx: StepContext[Counts, dict[str, int], int]) -> int:
        ctx.state.add('plus', ctx.deps['factor'])
        return ctx.inputs + ctx.deps['factor']

    g.add(
        g.edge_from(g.start_node).to(times),
        g.edge_from(times).to(plus),
        g.edge_from(plus).to(g.end_node),
    )
    return g.build()
