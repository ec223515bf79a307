"""Maps over nothing: alone, nested, and beside others."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic_graph import (
    GraphBuilder,
    StepContext,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph
from pydantic_graph.id_types import ForkID, JoinID

from .cases import Counts, case, in_any_order, pause


@case('empty map', 'map', state=Counts, inputs=[], normalise=in_any_order)
def empty_map() -> Graph[Counts, None, list[int], list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])

    @g.step
    async def never(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('never')
        return ctx.inputs

    @g.step
    async def after(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        ctx.state.add('after')
        await pause()
        return [*ctx.inputs, 7]

    joined = g.join(reduce_list_append, initial_factory=list[int], node_id='joined')
    g.add(
        g.edge_from(g.start_node).map(downstream_join_id=JoinID('joined')).to(never),
        g.edge_from(never).to(joined),
        g.edge_from(joined).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case('empty map', 'changes after an await', state=Counts)
def empty_map_after_a_step() -> Graph[Counts, None, None, int]:
    g = GraphBuilder(state_type=Counts, output_type=int)

    @g.step
    async def none(ctx: StepContext[Counts, None, None]) -> list[int]:
        await pause()
        ctx.state.add('none')
        return []

    @g.step
    async def never(ctx: StepContext[Counts, None, int]) -> int:
        return ctx.inputs

    total = g.join(reduce_sum, initial=5, node_id='total')
    g.add(g.edge_from(g.start_node).to(none), g.edge_from(never).to(total), g.edge_from(total).to(g.end_node))
    g.add_mapping_edge(none, never, downstream_join_id=JoinID('total'))
    return g.build()


@case(
    'nested empty map',
    'nested map',
    'join inside join',
    state=Counts,
    inputs=[[1, 2], [], [3], []],
    since=(2, 2),
)
def nested_maps_some_empty() -> Graph[Counts, None, list[list[int]], list[int]]:
    """An item that is empty still has its sum, which is 0."""
    return _nested_sums()


@case('nested empty map', 'nested map', 'join inside join', state=Counts, inputs=[[], []], since=(2, 2))
def nested_maps_all_empty() -> Graph[Counts, None, list[list[int]], list[int]]:
    return _nested_sums()


@case('nested empty map', 'empty map', state=Counts, inputs=[])
def nested_maps_none_at_all() -> Graph[Counts, None, list[list[int]], list[int]]:
    return _nested_sums()


def _nested_sums() -> Graph[Counts, None, list[list[int]], list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=list[list[int]], output_type=list[int])

    @g.step
    async def outer(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        await pause()
        ctx.state.add('outer')
        return ctx.inputs

    @g.step
    async def inner(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('inner')
        await pause()
        return ctx.inputs

    @g.step
    async def ordered(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        await pause()
        return sorted(ctx.inputs)

    # closest: of each inner map, once; and the outer one of all of them
    subtotal = g.join(reduce_sum, initial=0, node_id='subtotal', preferred_parent_fork='closest')
    subtotals = g.join(reduce_list_append, initial_factory=list[int], node_id='subtotals')
    g.add(
        g.edge_from(g.start_node).map(downstream_join_id=JoinID('subtotals')).to(outer),
        g.edge_from(outer).map(downstream_join_id=JoinID('subtotal')).to(inner),
        g.edge_from(inner).to(subtotal),
        g.edge_from(subtotal).to(subtotals),
        g.edge_from(subtotals).to(ordered),
        g.edge_from(ordered).to(g.end_node),
    )
    return g.build()


@case('one of several maps empty', 'empty map', 'broadcast', state=Counts, inputs=3)
def one_of_two_maps_empty() -> Graph[Counts, None, int, list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=list[int])

    @g.step
    async def some(ctx: StepContext[Counts, None, int]) -> list[int]:
        await pause()
        return list(range(ctx.inputs))

    @g.step
    async def none(ctx: StepContext[Counts, None, int]) -> Iterable[int]:
        ctx.state.add('none')
        await pause()
        return ()

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    @g.step
    async def ordered(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        return sorted(ctx.inputs)

    joined = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).to(some, none),
        g.edge_from(some).map(fork_id='map-some').to(work),
        g.edge_from(none).map(fork_id='map-none').to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(ordered),
        g.edge_from(ordered).to(g.end_node),
    )
    return g.build()


@case('one of several maps empty', 'empty map', 'broadcast', state=Counts, inputs=4, since=(2, 2))
def empty_map_with_its_join_beside_a_full_one() -> Graph[Counts, None, int, list[int]]:
    """The join that the empty map opens is the one that the items of the other map go to."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=list[int])

    @g.step
    async def some(ctx: StepContext[Counts, None, int]) -> list[int]:
        ctx.state.add('some')
        await pause()
        return list(range(ctx.inputs))

    @g.step
    async def none(ctx: StepContext[Counts, None, int]) -> list[int]:
        await pause()
        return []

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('work')
        return ctx.inputs

    @g.step
    async def ordered(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        ctx.state.add('ordered')
        return sorted(ctx.inputs)

    joined = g.join(reduce_list_append, initial_factory=list[int], node_id='joined')
    g.add(
        g.edge_from(g.start_node).to(some, none),
        g.edge_from(some).map(fork_id=ForkID('a'), downstream_join_id=JoinID('joined')).to(work),
        g.edge_from(none).map(fork_id=ForkID('b'), downstream_join_id=JoinID('joined')).to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(ordered),
        g.edge_from(ordered).to(g.end_node),
    )
    return g.build()
