"""Runs that stop early: siblings that a join cancels, the first value, and ends reached while others run.

Who is first is no matter of luck in these graphs: those who are to lose sleep for ever, or all say the same.
That also keeps out of two races of the host. On trio a sibling that is cancelled while it waits to hand its
item to the join may be received all the same, and the join closes twice. And a join that cancels its siblings
closes together with the joins around it, before these have what it leads to, unless something else keeps them
open.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
from pydantic_graph import (
    GraphBuilder,
    ReduceFirstValue,
    ReducerContext,
    StepContext,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@case('first value', 'map', 'cancel siblings', state=Counts, inputs=[1, 2, 3, 4])
def first_value_of_a_map() -> Graph[Counts, None, list[int], int]:
    """The even ones never come to an end."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def race(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        if ctx.inputs != 3:
            await anyio.sleep_forever()
        await pause()
        ctx.state.add('won')
        return ctx.inputs

    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')
    g.add(
        g.edge_from(g.start_node).map().to(race),
        g.edge_from(race).to(first),
        g.edge_from(first).to(g.end_node),
    )
    return g.build()


@case('first value', 'map', inputs=[1, 2, 3, 4, 5])
def first_value_when_all_say_the_same() -> Graph[None, None, list[int], str]:
    """A true race, of which the result shows nothing."""
    g = GraphBuilder(input_type=list[int], output_type=str)

    @g.step
    async def race(ctx: StepContext[None, None, int]) -> str:
        for _ in range(ctx.inputs):
            await pause()
        return 'the same'

    @g.step
    async def after(ctx: StepContext[None, None, str]) -> str:
        await pause()
        return ctx.inputs.upper()

    first = g.join(ReduceFirstValue[str](), initial='', node_id='first')
    g.add(
        g.edge_from(g.start_node).map().to(race),
        g.edge_from(race).to(first),
        g.edge_from(first).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case('first value', 'broadcast', 'changes before an await', state=Counts, inputs=3)
def losers_that_change_the_state() -> Graph[Counts, None, int, int]:
    """What those who are cancelled have done to the state stays done, and is done once."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def loser(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('lost', ctx.inputs)
        await anyio.sleep_forever()
        return 0

    @g.step
    async def winner(ctx: StepContext[Counts, None, int]) -> int:
        while ctx.state.of('lost') < 2 * ctx.inputs:
            await pause()
        ctx.state.add('won')
        return ctx.inputs

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('after')
        return ctx.inputs + ctx.state.of('lost')

    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')
    g.add(
        g.edge_from(g.start_node).broadcast(lambda b: [b.to(loser), b.to(winner), b.to(loser)]),
        g.edge_from(loser, winner).to(first),
        g.edge_from(first).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case('first value', 'broadcast', 'changes after an await', state=Counts, inputs=3)
def loser_that_cleans_up() -> Graph[Counts, None, int, int]:
    """A loser that changes the state while it is being cancelled: in its `finally`."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def loser(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('begun')
        try:
            await anyio.sleep_forever()
        finally:
            ctx.state.add('cleaned')
        return 0

    @g.step
    async def winner(ctx: StepContext[Counts, None, int]) -> int:
        while not ctx.state.of('begun'):
            await pause()
        return ctx.inputs

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        while not ctx.state.of('cleaned'):
            await pause()
        ctx.state.add('after')
        return ctx.inputs

    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')
    g.add(
        g.edge_from(g.start_node).to(loser, winner),
        g.edge_from(loser, winner).to(first),
        g.edge_from(first).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


def _race_of_the_stubborn(
    lose: Callable[[Counts | None, int], Awaitable[int]], state: Any
) -> Graph[Any, None, Any, Any]:
    """Those who lose a race do not end when they are cancelled; what they come to is of no account."""
    g = GraphBuilder(state_type=state, input_type=list[int], output_type=int)

    @g.step
    async def race(ctx: StepContext[Any, None, int]) -> int:
        await pause()
        if ctx.inputs != 3:
            return await lose(ctx.state, ctx.inputs)
        return ctx.inputs

    @g.step
    async def rated(ctx: StepContext[Any, None, int]) -> int:
        if ctx.state is not None:
            ctx.state.add('rated')
        return ctx.inputs

    @g.step
    async def paid(ctx: StepContext[Any, None, int]) -> int:
        await pause()
        if ctx.state is not None:
            ctx.state.add('paid')
        return ctx.inputs

    @g.step
    async def told(ctx: StepContext[Any, None, int]) -> int:
        await pause()
        return ctx.inputs

    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')
    g.add(
        g.edge_from(g.start_node).map().to(race),
        g.edge_from(race).to(rated),
        g.edge_from(rated).to(first),
        g.edge_from(first).to(paid),
        g.edge_from(paid).to(told),
        g.edge_from(told).to(g.end_node),
    )
    return g.build()


async def _returns(state: Counts | None, number: int) -> int:
    with suppress(BaseException):  # stubborn, and wrong, but there are such steps
        await anyio.sleep_forever()
    return -number


async def _finishes(state: Counts | None, number: int) -> int:
    with anyio.CancelScope(shield=True):
        await pause()
        await pause()
    return 3


async def _fails(state: Counts | None, number: int) -> int:
    try:
        await anyio.sleep_forever()
    except BaseException as exc:
        raise ValueError('not to be cancelled') from exc
    return 0


@case('first value', 'map', state=Counts, inputs=[1, 2, 3, 4])
def losers_that_return() -> Graph[Any, None, Any, Any]:
    """Losers that catch their cancellation and return something else."""
    return _race_of_the_stubborn(_returns, Counts)


@case('first value', 'map', 'stateless', inputs=[1, 2, 3, 4])
def losers_that_return_without_a_state() -> Graph[Any, None, Any, Any]:
    """The same without a state."""
    return _race_of_the_stubborn(_returns, type(None))


@case('first value', 'map', 'stateless', inputs=[1, 2, 3, 4])
def losers_that_finish() -> Graph[Any, None, Any, Any]:
    """Losers that cannot be cancelled, and may win as well."""
    return _race_of_the_stubborn(_finishes, type(None))


@case('first value', 'map', state=Counts, inputs=[1, 2, 3, 4])
def losers_that_fail() -> Graph[Any, None, Any, Any]:
    """Losers that raise something else when they are cancelled."""
    return _race_of_the_stubborn(_fails, Counts)


@case('first value', 'map', 'stateless', inputs=[1, 2, 3, 4])
def losers_that_fail_without_a_state() -> Graph[Any, None, Any, Any]:
    """The same without a state."""
    return _race_of_the_stubborn(_fails, type(None))


@case('cancel siblings', 'join with state access', 'map', state=Counts, inputs=[0, 1, 1, 0, 1, 0])
def enough_of_them() -> Graph[Counts, None, list[int], int]:
    """The join stops its siblings when it has three, in whichever order they come."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def work(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        if not ctx.inputs:
            await anyio.sleep_forever()
        await pause()
        return ctx.inputs

    def three(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        current += inputs
        ctx.state.add('reduced')
        if current == 3:
            ctx.cancel_sibling_tasks()
        return current

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('after', ctx.state.of('reduced'))
        await pause()
        return ctx.inputs

    joined = g.join(three, initial=0, node_id='three')
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case('cancel siblings', 'map', 'list', state=Counts, inputs=[5, 1, 9, 2])
def sought_and_found() -> Graph[Counts, None, list[int], list[int]]:
    """Items that are no match are joined too, before the match stops those that go on for ever."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])

    @g.step
    async def seek(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        if ctx.inputs == 9:
            while ctx.state.of('passed') < 2:
                await pause()
            ctx.state.add('found')
        elif ctx.inputs == 5:
            await anyio.sleep_forever()
        return ctx.inputs

    @g.step
    async def passed(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        return ctx.inputs

    def until_nine(ctx: ReducerContext[Counts, None], current: list[int], inputs: int) -> list[int]:
        if inputs == 9:
            ctx.cancel_sibling_tasks()
        else:
            ctx.state.add('passed')
        return sorted([*current, inputs])

    joined = g.join(until_nine, initial_factory=list[int], node_id='until_nine')
    g.add(
        g.edge_from(g.start_node).map().to(seek),
        g.edge_from(seek).to(passed),
        g.edge_from(passed).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@case(
    'first value',
    'nested map',
    'parent fork id',
    state=Counts,
    inputs=[[1, 2], [3, 4], [5]],
    normalise=in_any_order,
)
def first_value_of_each_inner_map() -> Graph[Counts, None, list[list[int]], list[int]]:
    """Of each inner map the odd number; the other inner maps go on."""
    g = GraphBuilder(state_type=Counts, input_type=list[list[int]], output_type=list[int])

    @g.step
    async def race(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        if ctx.inputs % 2 == 0:
            await anyio.sleep_forever()
        for _ in range(ctx.inputs):
            await pause()
        ctx.state.add('won', ctx.inputs)
        return ctx.inputs

    def first_of_them(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('first')
        ctx.cancel_sibling_tasks()
        return inputs

    @g.step
    async def won(ctx: StepContext[Counts, None, int]) -> int:
        while ctx.state.of('first') < 3:
            await pause()
        ctx.state.add('after')
        return ctx.inputs

    first = g.join(first_of_them, initial=0, node_id='first', parent_fork_id='inner')
    all_of_them = g.join(reduce_list_append, initial_factory=list[int], node_id='all', parent_fork_id='outer')
    g.add(
        g.edge_from(g.start_node).map(fork_id='outer').map(fork_id='inner').to(race),
        g.edge_from(race).to(first),
        g.edge_from(first).to(won),
        g.edge_from(won).to(all_of_them),
        g.edge_from(all_of_them).to(g.end_node),
    )
    return g.build()


@case('first value', 'nested map', 'broadcast', state=Counts, inputs=[1, 2])
def a_winner_cancels_what_is_nested() -> Graph[Counts, None, list[int], int]:
    """What the losers have forked in turn is cancelled with them."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def slow(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        ctx.state.add('slow')
        return ctx.inputs

    @g.step
    async def endless(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('endless')
        await anyio.sleep_forever()
        return ctx.inputs

    @g.step
    async def quick(ctx: StepContext[Counts, None, list[int]]) -> int:
        while ctx.state.of('endless') < len(ctx.inputs):
            await pause()
        return 42

    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')
    g.add(
        g.edge_from(g.start_node).to(slow, quick),
        g.edge_from(slow).map().to(endless),
        g.edge_from(endless, quick).to(first),
        g.edge_from(first).to(g.end_node),
    )
    return g.build()


@case(
    'cancel siblings',
    'join with state access',
    'broadcast',
    'several joins under one fork',
    state=Counts,
    inputs=2,
)
def stopped_beside_others() -> Graph[Counts, None, int, int]:
    """One branch stops what it has forked itself; the branch beside it goes on to its end."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def many(ctx: StepContext[Counts, None, int]) -> list[int]:
        await pause()
        return [0, ctx.inputs, 0]

    @g.step
    async def race(ctx: StepContext[Counts, None, int]) -> int:
        if not ctx.inputs:
            await anyio.sleep_forever()
        await pause()
        ctx.state.add('race')
        return ctx.inputs

    @g.step
    async def beside(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('beside')
        while not ctx.state.of('first'):
            await pause()
        ctx.state.add('beside')
        return 10 * ctx.inputs

    def first_of_them(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('first')
        ctx.cancel_sibling_tasks()
        return inputs

    first = g.join(first_of_them, initial=0, node_id='first', parent_fork_id='many-map')
    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(many, beside),
        g.edge_from(many).map(fork_id='many-map').to(race),
        g.edge_from(race).to(first),
        g.edge_from(first, beside).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
