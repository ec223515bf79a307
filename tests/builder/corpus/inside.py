"""Several joins under one fork, and joins inside one another."""

from __future__ import annotations

from pydantic_graph import (
    GraphBuilder,
    ReducerContext,
    StepContext,
    reduce_dict_update,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@case(
    'join with state access',
    'nested map',
    'parent fork id',
    state=Counts,
    inputs=[[1, 2], [3], [4, 5]],
    resumes_since=(2, 50),
)
def joins_that_change_the_state_inside_one_another() -> Graph[Counts, None, list[list[int]], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[list[int]], output_type=int)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        await pause()
        return ctx.inputs

    @g.step
    async def between(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('between', ctx.inputs)
        return ctx.inputs

    def inner(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('inner')
        return current + inputs

    def outer(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('outer')
        return current + inputs

    inner_join = g.join(inner, initial=0, parent_fork_id='inner-map')
    outer_join = g.join(outer, initial=0, parent_fork_id='outer-map')
    g.add(
        g.edge_from(g.start_node).map(fork_id='outer-map').map(fork_id='inner-map').to(work),
        g.edge_from(work).to(inner_join),
        g.edge_from(inner_join).to(between),
        g.edge_from(between).to(outer_join),
        g.edge_from(outer_join).to(g.end_node),
    )
    return g.build()


@case(
    'several joins under one fork',
    'join inside join',
    'broadcast',
    'map',
    state=Counts,
    inputs=[1, 2, 3],
    resumes_since=(2, 50),
)
def two_joins_of_one_map() -> Graph[Counts, None, list[int], dict[str, list[int]]]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=dict[str, list[int]])

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    @g.step
    async def listed(ctx: StepContext[Counts, None, list[int]]) -> dict[str, list[int]]:
        await pause()
        ctx.state.add('listed')
        return {'listed': sorted(ctx.inputs)}

    @g.step
    async def summed(ctx: StepContext[Counts, None, int]) -> dict[str, list[int]]:
        ctx.state.add('summed')
        await pause()
        return {'summed': [ctx.inputs]}

    all_items = g.join(reduce_list_append, initial_factory=list[int], node_id='all_items')
    total = g.join(reduce_sum, initial=0, node_id='total')
    both = g.join(reduce_dict_update, initial_factory=dict[str, list[int]], node_id='both')
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(all_items, total),
        g.edge_from(all_items).to(listed),
        g.edge_from(total).to(summed),
        g.edge_from(listed, summed).to(both),
        g.edge_from(both).to(g.end_node),
    )
    return g.build()


@case(
    'several joins under one fork',
    'typed decision',
    'union',
    state=Counts,
    inputs=[1, 2, 3, 4, 5],
    resumes_since=(2, 50),
)
def a_join_for_each_branch() -> Graph[Counts, None, list[int], int]:
    """Items that a decision sends to one join or the other."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def sort(ctx: StepContext[Counts, None, int]) -> int | str:
        await pause()
        return ctx.inputs if ctx.inputs < 4 else str(ctx.inputs)

    @g.step
    async def read(ctx: StepContext[Counts, None, list[str]]) -> int:
        ctx.state.add('read', len(ctx.inputs))
        await pause()
        return sum(int(text) for text in ctx.inputs)

    numbers = g.join(reduce_sum, initial=0, node_id='numbers')
    texts = g.join(reduce_list_append, initial_factory=list[str], node_id='texts')
    total = g.join(reduce_sum, initial=0, node_id='total')
    kind = g.decision().branch(g.match(int).to(numbers)).branch(g.match(str).to(texts))
    g.add(
        g.edge_from(g.start_node).map().to(sort),
        g.edge_from(sort).to(kind),
        g.edge_from(texts).to(read),
        g.edge_from(numbers, read).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case(
    'join inside join',
    'nested map',
    'parent fork id',
    state=Counts,
    inputs=[[1, 2], [3, 4, 5]],
    resumes_since=(2, 50),
)
def joins_by_their_parent_forks() -> Graph[Counts, None, list[list[int]], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[list[int]], output_type=int)

    @g.step
    async def row(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        ctx.state.add('row')
        await pause()
        return ctx.inputs

    @g.step
    async def cell(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('cell', ctx.inputs)
        return ctx.inputs

    @g.step
    async def product(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('product')
        return ctx.inputs

    def times(current: int, inputs: int) -> int:
        return current * inputs

    of_row = g.join(times, initial=1, parent_fork_id='cells', node_id='of_row')
    of_all = g.join(reduce_sum, initial=0, parent_fork_id='rows', node_id='of_all')
    g.add(
        g.edge_from(g.start_node).map(fork_id='rows').to(row),
        g.edge_from(row).map(fork_id='cells').to(cell),
        g.edge_from(cell).to(of_row),
        g.edge_from(of_row).to(product),
        g.edge_from(product).to(of_all),
        g.edge_from(of_all).to(g.end_node),
    )
    return g.build()


@case(
    'join inside join',
    'preferred parent fork',
    'nested map',
    state=Counts,
    inputs=[[[1], [2, 3]], [[4, 5]]],
    resumes_since=(2, 50),
)
def three_joins_inside_one_another() -> Graph[Counts, None, list[list[list[int]]], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[list[list[int]]], output_type=int)

    @g.step
    async def plane(ctx: StepContext[Counts, None, list[list[int]]]) -> list[list[int]]:
        await pause()
        return ctx.inputs

    @g.step
    async def row(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        ctx.state.add('row')
        await pause()
        return ctx.inputs

    @g.step
    async def cell(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('cell')
        await pause()
        return ctx.inputs

    of_row = g.join(reduce_sum, initial=0, preferred_parent_fork='closest', node_id='of_row')
    of_plane = g.join(reduce_sum, initial=100, parent_fork_id='rows', node_id='of_plane')
    of_all = g.join(reduce_sum, initial=1000, preferred_parent_fork='farthest', node_id='of_all')
    g.add(
        g.edge_from(g.start_node).map(fork_id='planes').to(plane),
        g.edge_from(plane).map(fork_id='rows').to(row),
        g.edge_from(row).map(fork_id='cells').to(cell),
        g.edge_from(cell).to(of_row),
        g.edge_from(of_row).to(of_plane),
        g.edge_from(of_plane).to(of_all),
        g.edge_from(of_all).to(g.end_node),
    )
    return g.build()


@case(
    'preferred parent fork',
    'several ends',
    'map',
    state=Counts,
    inputs=[2, 2],
    normalise=in_any_order,
    resumes_since=(2, 50),
)
def join_for_each_of_a_broadcast() -> Graph[Counts, None, list[int], list[int]]:
    """Two maps side by side, each with its join, joined in turn."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])

    @g.step
    async def left(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('left')
        return ctx.inputs

    @g.step
    async def right(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('right')
        await pause()
        return 10 * ctx.inputs

    of_left = g.join(reduce_sum, initial=0, preferred_parent_fork='closest', node_id='of_left')
    of_right = g.join(reduce_sum, initial=0, preferred_parent_fork='closest', node_id='of_right')
    joined = g.join(reduce_list_append, initial_factory=list[int], node_id='joined')
    g.add(
        g.edge_from(g.start_node).broadcast(lambda b: [b.map().to(left), b.map().to(right)]),
        g.edge_from(left).to(of_left),
        g.edge_from(right).to(of_right),
        g.edge_from(of_left, of_right).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()
