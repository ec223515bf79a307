"""Decisions: by type, by literal, and by functions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic_graph import GraphBuilder, StepContext, TypeExpression, reduce_sum
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause
from .values import Card, Order


@case('typed decision', 'union', 'map', 'join', state=Counts, inputs=[1, 2, 3, 4])
def decision_on_type() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def text_of_even(ctx: StepContext[Counts, None, int]) -> int | str:
        await pause()
        return ctx.inputs if ctx.inputs % 2 else 'x' * ctx.inputs

    @g.step
    async def number(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('numbers')
        await pause()
        return ctx.inputs

    @g.step
    async def text(ctx: StepContext[Counts, None, str]) -> int:
        await pause()
        ctx.state.add('texts')
        return 10 * len(ctx.inputs)

    total = g.join(reduce_sum, initial=0, node_id='total')
    kind = g.decision(node_id='kind').branch(g.match(int).to(number)).branch(g.match(str).to(text))
    g.add(
        g.edge_from(g.start_node).map().to(text_of_even),
        g.edge_from(text_of_even).to(kind),
        g.edge_from(number, text).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('typed decision', 'dataclass', 'pydantic model', 'union', inputs=2)
def decision_on_class() -> Graph[None, None, int, str]:
    g = GraphBuilder(input_type=int, output_type=str)

    @g.step
    async def make(ctx: StepContext[None, None, int]) -> Order | Card:
        return Order(ctx.inputs, [])

    @g.step
    async def ordered(ctx: StepContext[None, None, Order]) -> str:
        await pause()
        return f'order {ctx.inputs.number}'

    @g.step
    async def carded(ctx: StepContext[None, None, Card]) -> str:
        return f'card {ctx.inputs.colour}'

    what = g.decision(note='what is it?').branch(g.match(Card).to(carded)).branch(g.match(Order).to(ordered))
    g.add(
        g.edge_from(g.start_node).to(make),
        g.edge_from(make).to(what),
        g.edge_from(ordered, carded).to(g.end_node),
    )
    return g.build()


@case('literal decision', 'several ends', state=Counts, inputs=12)
def decision_on_literal() -> Graph[Counts, None, int, str]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=str)

    @g.step
    async def size(ctx: StepContext[Counts, None, int]) -> Literal['small', 'large']:
        ctx.state.add('sized')
        await pause()
        return 'large' if ctx.inputs > 10 else 'small'

    @g.step
    async def small(ctx: StepContext[Counts, None, object]) -> str:
        return 'it is small'

    @g.step
    async def large(ctx: StepContext[Counts, None, object]) -> str:
        await pause()
        ctx.state.add('large')
        return 'it is large'

    sized = (
        g.decision(node_id='sized')
        .branch(g.match(TypeExpression[Literal['small']]).label('small').to(small))
        .branch(g.match(TypeExpression[Literal['large']]).label('large').to(large))
    )
    g.add(
        g.edge_from(g.start_node).to(size),
        g.edge_from(size).to(sized),
        g.edge_from(small).to(g.end_node),
        g.edge_from(large).to(g.end_node),
    )
    return g.build()


@case('custom match', 'transform', 'several ends', state=Counts, inputs=[2, 9])
def decision_by_function() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    def is_long(value: Any) -> bool:
        return len(value) > 2

    def length(ctx: StepContext[Counts, None, list[int]]) -> int:
        return len(ctx.inputs)

    @g.step
    async def whole(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        await pause()
        ctx.state.add('whole')
        return ctx.inputs

    @g.step
    async def counted(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('counted', ctx.inputs)
        await pause()
        return ctx.inputs

    how = (
        g.decision(node_id='how')
        .branch(g.match(TypeExpression[list[int]], matches=is_long).transform(length).to(g.end_node))
        .branch(g.match(TypeExpression[list[int]], matches=lambda _: True).transform(length).to(counted))
    )
    g.add(
        g.edge_from(g.start_node).to(whole),
        g.edge_from(whole).to(how),
        g.edge_from(counted).to(g.end_node),
    )
    return g.build()


@case('custom match', 'typed decision', inputs=4)
def decision_after_decision() -> Graph[None, None, int, str]:
    g = GraphBuilder(input_type=int, output_type=str)

    @g.step
    async def step_to(ctx: StepContext[None, None, int]) -> int | str:
        await pause()
        return ctx.inputs + 1

    @g.step
    async def odd(ctx: StepContext[None, None, int]) -> str:
        await pause()
        return f'odd {ctx.inputs}'

    @g.step
    async def even(ctx: StepContext[None, None, int]) -> str:
        return f'even {ctx.inputs}'

    parity = (
        g.decision(node_id='parity')
        .branch(g.match(int, matches=lambda value: value % 2 == 0).to(even))
        .branch(g.match(int).to(odd))
    )
    kind = g.decision(node_id='kind').branch(g.match(str).to(g.end_node)).branch(g.match(int).to(parity))
    g.add(
        g.edge_from(g.start_node).to(step_to),
        g.edge_from(step_to).to(kind),
        g.edge_from(odd, even).to(g.end_node),
    )
    return g.build()
