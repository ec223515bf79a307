"""Streaming steps, whose items are mapped over as they come, and other async iterables."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass

import anyio
from pydantic_graph import GraphBuilder, ReduceFirstValue, StepContext, reduce_list_append, reduce_sum
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@dataclass
class Word:
    """What is streamed."""

    text: str
    number: int


@case('streaming', 'async map', 'map', 'join', state=Counts, inputs=4, normalise=in_any_order)
def stream_of_numbers() -> Graph[Counts, None, int, list[int]]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=list[int])

    @g.stream
    async def numbers(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        for number in range(ctx.inputs):
            await pause()
            yield number

    @g.step
    async def square(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('squared')
        return ctx.inputs**2

    joined = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(square),
        g.edge_from(square).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case('streaming', 'async map', 'changes before an await', 'dataclass', state=Counts, inputs='a b c')
def stream_beside_items_that_change_the_state() -> Graph[Counts, None, str, int]:
    """While the stream goes on, its first items are through with changing the state."""
    g = GraphBuilder(state_type=Counts, input_type=str, output_type=int)

    @g.step
    async def clean(ctx: StepContext[Counts, None, str]) -> str:
        ctx.state.add('clean')
        await pause()
        return ctx.inputs.strip()

    @g.stream
    async def words(ctx: StepContext[Counts, None, str]) -> AsyncGenerator[Word]:
        for number, text in enumerate(ctx.inputs.split()):
            yield Word(text, number)
            for _ in range(4):
                await pause()

    @g.step
    async def first(ctx: StepContext[Counts, None, Word]) -> Word:
        ctx.state.add(ctx.inputs.text)
        await pause()
        ctx.inputs.number += 10
        return ctx.inputs

    @g.step
    async def second(ctx: StepContext[Counts, None, Word]) -> int:
        await pause()
        ctx.state.add(ctx.inputs.text)
        return ctx.inputs.number

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(clean),
        g.edge_from(clean).to(words),
        g.edge_from(words).map().to(first),
        g.edge_from(first).to(second),
        g.edge_from(second).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('streaming', 'async map', 'changes between awaits', state=Counts, inputs=3)
def stream_that_changes_the_state() -> Graph[Counts, None, int, int]:
    """Run again from its start, it would change the state again."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.stream
    async def numbers(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        ctx.state.add('streams')
        for number in range(ctx.inputs):
            await pause()
            ctx.state.add('streamed', number)
            yield number
        await pause()
        ctx.state.add('through')

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('work')
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(work),
        g.edge_from(work).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('streaming', 'async map', 'empty map', state=Counts, inputs=0)
def empty_stream() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.stream
    async def numbers(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        await pause()
        for number in range(ctx.inputs):
            yield number

    @g.step
    async def never(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('never')
        return ctx.inputs

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('after')
        await pause()
        return ctx.inputs

    total = g.join(reduce_sum, initial=17, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map(downstream_join_id=total.id).to(never),
        g.edge_from(never).to(total),
        g.edge_from(total).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case(
    'streaming',
    'async map',
    'nested map',
    'join inside join',
    state=Counts,
    inputs=[2, 0, 3],
    resumes_since=(2, 50),
)
def streams_in_a_map() -> Graph[Counts, None, list[int], int]:
    """A stream for each item, joined for itself."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.stream
    async def numbers(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        for number in range(1, ctx.inputs + 1):
            yield number
            await pause()

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work', ctx.inputs)
        await pause()
        return ctx.inputs

    @g.step
    async def summed(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('summed')
        return 10 * ctx.inputs

    subtotal = g.join(reduce_sum, initial=0, node_id='subtotal', parent_fork_id='inner')
    total = g.join(reduce_sum, initial=0, node_id='total', parent_fork_id='outer')
    g.add(
        g.edge_from(g.start_node).map(fork_id='outer').to(numbers),
        g.edge_from(numbers).map(fork_id='inner', downstream_join_id=subtotal.id).to(work),
        g.edge_from(work).to(subtotal),
        g.edge_from(subtotal).to(summed),
        g.edge_from(summed).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case(
    *('streaming', 'async map', 'nested map', 'join inside join'),
    state=Counts,
    inputs=[2, 0, 1],
    resumes_since=(2, 50),
)
def streams_that_hesitate() -> Graph[Counts, None, list[int], list[int]]:
    """Streams that have opened their joins and yielded nothing, while others go on."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])

    @g.stream
    async def numbers(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        for _ in range(3 * ctx.inputs + 1):
            await pause()
        for number in range(1, ctx.inputs + 1):
            yield number
            await pause()

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        return ctx.inputs

    @g.step
    async def counted(ctx: StepContext[Counts, None, list[int]]) -> int:
        await pause()
        ctx.state.add('counted')
        return len(ctx.inputs)

    @g.step
    async def in_order(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        return sorted(ctx.inputs)

    some = g.join(reduce_list_append, initial_factory=list[int], node_id='some', parent_fork_id='inner')
    total = g.join(reduce_list_append, initial_factory=list[int], node_id='total', parent_fork_id='outer')
    g.add(
        g.edge_from(g.start_node).map(fork_id='outer').to(numbers),
        g.edge_from(numbers).map(fork_id='inner', downstream_join_id=some.id).to(work),
        g.edge_from(work).to(some),
        g.edge_from(some).to(counted),
        g.edge_from(counted).to(total),
        g.edge_from(total).to(in_order),
        g.edge_from(in_order).to(g.end_node),
    )
    return g.build()


@case('streaming', 'async map', 'first value', 'cancel siblings', state=Counts, inputs=1)
def stream_that_is_stopped() -> Graph[Counts, None, int, int]:
    """A stream without an end: the join that has seen the first item cancels it."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.stream
    async def endless(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        yield ctx.inputs
        await anyio.sleep_forever()

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        return ctx.inputs + 1

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('after')
        await pause()
        return ctx.inputs

    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')
    g.add(
        g.edge_from(g.start_node).to(endless),
        g.edge_from(endless).map().to(work),
        g.edge_from(work).to(first),
        g.edge_from(first).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


async def _counted(to: int) -> AsyncIterator[int]:
    for number in range(to):
        await pause()
        yield number


class Countdown:
    """An async iterable that is no generator."""

    def __init__(self, start: int):
        self.left = start

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        await pause()
        self.left -= 1
        return self.left


@case('async map', 'broadcast', state=Counts, inputs=3)
def other_async_iterables() -> Graph[Counts, None, int, int]:
    """Async iterables that plain steps return: a generator, and an object."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def generator(ctx: StepContext[Counts, None, int]) -> AsyncIterable[int]:
        ctx.state.add('generator')
        await pause()
        return _counted(ctx.inputs)

    @g.step
    async def iterable(ctx: StepContext[Counts, None, int]) -> AsyncIterable[int]:
        await pause()
        ctx.state.add('iterable')
        return Countdown(ctx.inputs)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('work')
        await pause()
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(generator, iterable),
        g.edge_from(generator).map(fork_id='generated').to(work),
        g.edge_from(iterable).map(fork_id='iterated').to(work),
        g.edge_from(work).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('async map', 'transform', state=Counts, inputs=3)
def stream_made_by_a_transform() -> Graph[Counts, None, int, int]:
    """What is mapped over is made on the way from one step to the next, of a value that can be stored."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def before(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('before')
        await pause()
        return ctx.inputs

    def counted(ctx: StepContext[Counts, None, int]) -> AsyncIterator[int]:
        return _counted(ctx.inputs)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('work')
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(before),
        g.edge_from(before).transform(counted).map().to(work),
        g.edge_from(work).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
