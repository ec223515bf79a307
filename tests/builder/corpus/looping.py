"""Loops: back edges of decisions, within maps, and around forks and joins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic_graph import (
    GraphBuilder,
    StepContext,
    TypeExpression,
    reduce_dict_update,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@dataclass
class Draft:
    """What goes round."""

    text: str
    rounds: int = 0


@case('loop', 'custom match', state=Counts, inputs=5)
def loop_until_zero() -> Graph[Counts, None, int, str]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=str)

    @g.step
    async def less(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('before')
        await pause()
        ctx.state.add('after')
        return ctx.inputs - 1

    @g.step
    async def done(ctx: StepContext[Counts, None, int]) -> str:
        return f'{ctx.state.of("after")} rounds'

    again = (
        g.decision(node_id='again')
        .branch(g.match(int, matches=lambda n: n > 0).label('again').to(less))
        .branch(g.match(int).label('done').to(done))
    )
    g.add(
        g.edge_from(g.start_node).to(less),
        g.edge_from(less).to(again),
        g.edge_from(done).to(g.end_node),
    )
    return g.build()


@case('loop', 'typed decision', 'dataclass', 'changes inputs', 'union', state=Counts, inputs=Draft('a'))
def loop_of_what_is_changed() -> Graph[Counts, None, Draft, str]:
    """The same object goes round, and each round changes it."""
    g = GraphBuilder(state_type=Counts, input_type=Draft, output_type=str)

    @g.step
    async def write(ctx: StepContext[Counts, None, Draft]) -> Draft:
        ctx.inputs.rounds += 1
        await pause()
        ctx.inputs.text += str(ctx.inputs.rounds)
        ctx.state.add('written')
        return ctx.inputs

    @g.step
    async def review(ctx: StepContext[Counts, None, Draft]) -> Draft | str:
        ctx.state.add('reviewed', ctx.inputs.rounds)
        await pause()
        return ctx.inputs.text if ctx.inputs.rounds == 3 else ctx.inputs

    verdict = g.decision().branch(g.match(Draft).to(write)).branch(g.match(str).to(g.end_node))
    g.add(
        g.edge_from(g.start_node).to(write),
        g.edge_from(write).to(review),
        g.edge_from(review).to(verdict),
    )
    return g.build()


@case('loop', 'reads state', 'literal decision', state=Counts)
def loop_that_the_state_decides() -> Graph[Counts, None, None, int]:
    g = GraphBuilder(state_type=Counts, output_type=int)

    @g.step
    async def count(ctx: StepContext[Counts, None, object]) -> Literal['more', 'enough']:
        await pause()
        ctx.state.add('counted')
        return 'more' if ctx.state.of('counted') < 4 else 'enough'

    @g.step
    async def tell(ctx: StepContext[Counts, None, object]) -> int:
        return ctx.state.of('counted')

    which = (
        g.decision()
        .branch(g.match(TypeExpression[Literal['more']]).to(count))
        .branch(g.match(TypeExpression[Literal['enough']]).to(tell))
    )
    g.add(
        g.edge_from(g.start_node).to(count),
        g.edge_from(count).to(which),
        g.edge_from(tell).to(g.end_node),
    )
    return g.build()


@case('loop in map', 'loop', 'map', 'join', state=Counts, inputs=[1, 3, 2], normalise=in_any_order)
def loop_in_a_map() -> Graph[Counts, None, list[int], list[int]]:
    """Each item goes round a number of times of its own."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])

    @g.step
    async def less(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('rounds')
        await pause()
        return ctx.inputs - 1

    @g.step
    async def done(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('done')
        return ctx.inputs

    again = g.decision().branch(g.match(int, matches=lambda n: n > 0).to(less)).branch(g.match(int).to(done))
    joined = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).map().to(less),
        g.edge_from(less).to(again),
        g.edge_from(done).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case('loop in map', 'nested map', 'changes inputs', 'dataclass', state=Counts, inputs=[['a', 'b'], ['c']])
def loop_in_a_nested_map() -> Graph[Counts, None, list[list[str]], dict[str, int]]:
    g = GraphBuilder(state_type=Counts, input_type=list[list[str]], output_type=dict[str, int])

    def draft(ctx: StepContext[Counts, None, str]) -> Draft:
        return Draft(ctx.inputs)

    @g.step
    async def grow(ctx: StepContext[Counts, None, Draft]) -> Draft:
        ctx.inputs.rounds += 1
        await pause()
        ctx.inputs.text += '!'
        ctx.state.add(ctx.inputs.text)
        await pause()
        return ctx.inputs

    @g.step
    async def grown(ctx: StepContext[Counts, None, Draft]) -> dict[str, int]:
        ctx.state.add('grown')
        await pause()
        return {ctx.inputs.text: ctx.inputs.rounds}

    def is_short(value: object) -> bool:
        return isinstance(value, Draft) and len(value.text) < 4

    again = g.decision().branch(g.match(Draft, matches=is_short).to(grow)).branch(g.match(Draft).to(grown))
    joined = g.join(reduce_dict_update, initial_factory=dict[str, int])
    g.add(
        g.edge_from(g.start_node).map().map().transform(draft).to(grow),
        g.edge_from(grow).to(again),
        g.edge_from(grown).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case('join in loop', 'loop', 'map', 'join', state=Counts, inputs=2)
def map_and_join_in_a_loop() -> Graph[Counts, None, int, int]:
    """A fork and its join run again and again, each time as another run of the fork."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def spread(ctx: StepContext[Counts, None, int]) -> list[int]:
        ctx.state.add('spread')
        await pause()
        return list(range(1, ctx.inputs + 1))

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    total = g.join(reduce_sum, initial=0, node_id='total')
    enough = (
        g.decision()
        .branch(g.match(int, matches=lambda n: n >= 20).to(g.end_node))
        .branch(g.match(int).to(spread))
    )
    g.add(
        g.edge_from(g.start_node).to(spread),
        g.edge_from(spread).map(fork_id='spread-map').to(work),
        g.edge_from(work).to(total),
        g.edge_from(total).to(enough),
    )
    return g.build()


@case('join in loop', 'loop', 'broadcast', 'reads state', state=Counts, inputs=1)
def broadcast_and_join_in_a_loop() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def begin(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('rounds')
        await pause()
        return ctx.inputs

    @g.step
    async def left(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('left')
        await pause()
        await pause()
        return ctx.inputs

    @g.step
    async def right(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('right')
        return 2 * ctx.inputs

    @g.step
    async def look(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        return ctx.inputs + ctx.state.of('rounds')

    total = g.join(reduce_sum, initial=0, node_id='total')
    enough = (
        g.decision()
        .branch(g.match(int, matches=lambda n: n > 40).to(g.end_node))
        .branch(g.match(int).to(begin))
    )
    g.add(
        g.edge_from(g.start_node).to(begin),
        g.edge_from(begin).to(left, right),
        g.edge_from(left, right).to(total),
        g.edge_from(total).to(look),
        g.edge_from(look).to(enough),
    )
    return g.build()


@case(
    'loop in map',
    'join in loop',
    'nested map',
    'join inside join',
    'loop',
    state=Counts,
    inputs=[1, 2],
    resumes_since=(2, 50),
)
def map_and_join_in_a_loop_in_a_map() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def spread(ctx: StepContext[Counts, None, int]) -> list[int]:
        await pause()
        ctx.state.add('spread')
        return [ctx.inputs, ctx.inputs]

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    subtotal = g.join(reduce_sum, initial=0, node_id='subtotal', parent_fork_id='inner')
    total = g.join(reduce_sum, initial=0, node_id='total', parent_fork_id='outer')
    enough = (
        g.decision().branch(g.match(int, matches=lambda n: n >= 6).to(total)).branch(g.match(int).to(spread))
    )
    g.add(
        g.edge_from(g.start_node).map(fork_id='outer').to(spread),
        g.edge_from(spread).map(fork_id='inner').to(work),
        g.edge_from(work).to(subtotal),
        g.edge_from(subtotal).to(enough),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
