"""Broadcasts and maps: over iterables of many kinds, nested, and empty."""

from __future__ import annotations

from collections.abc import Iterable
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
from pydantic_graph.id_types import ForkID, JoinID

from .cases import Counts, case, in_any_order, pause


@dataclass
class Item:
    """What is mapped over."""

    number: int
    marks: list[str]


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


@case('map', 'broadcast', 'several joins under one fork', state=Counts, inputs=[1, 2, 3])
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
