"""Maps over iterables of many kinds, also inside one another."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_graph import (
    GraphBuilder,
    StepContext,
    TypeExpression,
    reduce_dict_update,
    reduce_list_append,
    reduce_list_extend,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@dataclass
class Item:
    """What is mapped over."""

    number: int
    marks: list[str]


@case('map', 'join', 'list', state=Counts, inputs=[1, 2, 3, 4, 5], normalise=in_any_order)
def map_over_a_list() -> Graph[Counts, None, list[int], list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])

    @g.step
    async def square(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('squared')
        return ctx.inputs**2

    squares = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).map().to(square),
        g.edge_from(square).to(squares),
        g.edge_from(squares).to(g.end_node),
    )
    return g.build()


@case('map', 'changes before an await', 'changes between awaits', 'changes after an await', state=Counts)
def map_of_every_change() -> Graph[Counts, None, None, int]:
    """Items change the state before, between and after their awaits, and some of them never."""
    g = GraphBuilder(state_type=Counts, output_type=int)

    @g.step
    async def numbers(ctx: StepContext[Counts, None, None]) -> list[int]:
        return list(range(8))

    @g.step
    async def change(ctx: StepContext[Counts, None, int]) -> int:
        if ctx.inputs & 1:
            ctx.state.add('before', ctx.inputs)
        await pause()
        if ctx.inputs & 2:
            ctx.state.add('between', ctx.inputs)
        await pause()
        if ctx.inputs & 4:
            ctx.state.add('after', ctx.inputs)
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(change),
        g.edge_from(change).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('map', 'tuple', 'changes before an await', state=Counts, inputs=('a', 'b', 'c'))
def map_then_steps() -> Graph[Counts, None, tuple[str, ...], str]:
    """Each item goes through several steps before the join, and the joined value through one more."""
    g = GraphBuilder(state_type=Counts, input_type=tuple[str, ...], output_type=str)

    @g.step
    async def first(ctx: StepContext[Counts, None, str]) -> str:
        ctx.state.add(ctx.inputs)
        await pause()
        return ctx.inputs + '1'

    @g.step
    async def second(ctx: StepContext[Counts, None, str]) -> str:
        await pause()
        ctx.state.add(ctx.inputs)
        return ctx.inputs + '2'

    @g.step
    async def third(ctx: StepContext[Counts, None, str]) -> str:
        ctx.state.add(ctx.inputs)
        return ctx.inputs + '3'

    @g.step
    async def together(ctx: StepContext[Counts, None, list[str]]) -> str:
        await pause()
        ctx.state.add('together', len(ctx.inputs))
        return ' '.join(sorted(ctx.inputs))

    words = g.join(reduce_list_append, initial_factory=list[str])
    g.add(
        g.edge_from(g.start_node).map(fork_id='words').to(first),
        g.edge_from(first).to(second),
        g.edge_from(second).to(third),
        g.edge_from(third).to(words),
        g.edge_from(words).to(together),
        g.edge_from(together).to(g.end_node),
    )
    return g.build()


@case('map', 'dataclass', 'changes inputs', state=Counts, inputs=[Item(1, []), Item(2, ['old']), Item(3, [])])
def map_that_changes_its_items() -> Graph[Counts, None, list[Item], dict[int, list[str]]]:
    g = GraphBuilder(state_type=Counts, input_type=list[Item], output_type=dict[int, list[str]])

    @g.step
    async def mark(ctx: StepContext[Counts, None, Item]) -> Item:
        ctx.inputs.marks.append(f'mark {len(ctx.inputs.marks)}')
        await pause()
        ctx.inputs.marks.append(f'mark {len(ctx.inputs.marks)}')
        ctx.state.add('marked')
        await pause()
        return ctx.inputs

    @g.step
    async def collect(ctx: StepContext[Counts, None, Item]) -> dict[int, list[str]]:
        await pause()
        ctx.inputs.marks.append(f'collected {len(ctx.inputs.marks)}')
        await pause()
        return {ctx.inputs.number: ctx.inputs.marks}

    marks = g.join(reduce_dict_update, initial_factory=dict[int, list[str]])
    g.add(
        g.edge_from(g.start_node).map().to(mark),
        g.edge_from(mark).to(collect),
        g.edge_from(collect).to(marks),
        g.edge_from(marks).to(g.end_node),
    )
    return g.build()


@case('map', 'transform', 'label', state=Counts, inputs={'a': 1, 'b': 2})
def map_over_what_a_transform_made() -> Graph[Counts, None, dict[str, int], int]:
    """Transforms before and after the map, and an iterable that is no list; items of a type of ours."""
    g = GraphBuilder(state_type=Counts, input_type=dict[str, int], output_type=int)

    def items(ctx: StepContext[Counts, None, dict[str, int]]) -> list[Item]:
        return [Item(number, [name]) for name, number in sorted(ctx.inputs.items())]

    def doubled(ctx: StepContext[Counts, None, Item]) -> Item:
        return Item(2 * ctx.inputs.number, ctx.inputs.marks)

    @g.step
    async def weigh(ctx: StepContext[Counts, None, Item]) -> int:
        ctx.state.add(ctx.inputs.marks[0])
        await pause()
        return ctx.inputs.number

    @g.step
    async def keys(ctx: StepContext[Counts, None, dict[str, int]]) -> dict[str, int]:
        await pause()
        return ctx.inputs

    @g.step
    async def key(ctx: StepContext[Counts, None, str]) -> int:
        ctx.state.add('keys')
        await pause()
        return 100

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).broadcast(
            lambda b: [
                b.label('items').transform(items).label('each').map().transform(doubled).to(weigh),
                b.to(keys),
            ]
        ),
        g.edge_from(keys).map().to(key),
        g.edge_from(weigh, key).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('map', 'wide', 'changes before an await', state=Counts, inputs=24)
def wide_map() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def spread(ctx: StepContext[Counts, None, int]) -> list[int]:
        return list(range(ctx.inputs))

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        if ctx.inputs % 3 == 0:
            ctx.state.add('early')
        for _ in range(ctx.inputs % 5):
            await pause()
        if ctx.inputs % 3 == 1:
            ctx.state.add('late')
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(spread), g.edge_from(work).to(total), g.edge_from(total).to(g.end_node)
    )
    g.add_mapping_edge(spread, work, pre_map_label='all', post_map_label='each')
    return g.build()


@case('nested map', 'map', state=Counts, inputs=[[1, 2], [3], [4, 5, 6]], normalise=in_any_order)
def nested_maps_into_one_join() -> Graph[Counts, None, list[list[int]], list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=list[list[int]], output_type=list[int])

    @g.step
    async def outer(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        ctx.state.add('outer')
        await pause()
        return ctx.inputs

    @g.step
    async def inner(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('inner', ctx.inputs)
        return 10 * ctx.inputs

    joined = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).map().to(outer),
        g.edge_from(outer).map().to(inner),
        g.edge_from(inner).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case('nested map', 'map', 'stateless', inputs=[[[1], [2, 3]], [[4]]])
def maps_on_one_path() -> Graph[None, None, list[list[list[int]]], int]:
    """Three maps one after another, with nothing between them."""
    g = GraphBuilder(input_type=list[list[list[int]]], output_type=int)

    @g.step
    async def work(ctx: StepContext[None, None, int]) -> int:
        await pause()
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).map().map().map().to(work),
        g.edge_from(work).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('map', 'typed decision', 'nested map', 'union', state=Counts, inputs=[[1, 2], 3, [4]])
def map_in_a_decision() -> Graph[Counts, None, list[list[int] | int], int]:
    """What a decision finds to be a list is mapped over in its branch; broadcast there too."""
    g = GraphBuilder(state_type=Counts, input_type=list[list[int] | int], output_type=int)

    @g.step
    async def look(ctx: StepContext[Counts, None, list[int] | int]) -> list[int] | int:
        await pause()
        return ctx.inputs

    @g.step
    async def one(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('one')
        await pause()
        return ctx.inputs

    @g.step
    async def again(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('again')
        return 100

    def is_list(value: object) -> bool:
        return isinstance(value, list)

    total = g.join(reduce_sum, initial=0)
    kind = (
        g.decision()
        .branch(g.match(TypeExpression[list[int]], matches=is_list).map().to(one))
        .branch(g.match(int).broadcast(lambda b: [b.to(one), b.to(again)]))
    )
    g.add(
        g.edge_from(g.start_node).map().to(look),
        g.edge_from(look).to(kind),
        g.edge_from(one, again).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('map', 'list', inputs=[[1], [2, 3]], normalise=in_any_order)
def joined_by_extending() -> Graph[None, None, list[list[int]], list[int]]:
    g = GraphBuilder(input_type=list[list[int]], output_type=list[int])

    @g.step
    async def twice(ctx: StepContext[None, None, list[int]]) -> list[int]:
        await pause()
        return 2 * ctx.inputs

    joined = g.join(reduce_list_extend, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).map().to(twice),
        g.edge_from(twice).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()
