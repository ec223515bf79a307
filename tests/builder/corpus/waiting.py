"""Steps that do more than wait in turn: cancel scopes, child tasks, threads, and what is no coroutine."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread
from pydantic_graph import GraphBuilder, StepContext, reduce_sum
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause


@case('awaitable', 'step', state=Counts, inputs=3)
def step_that_is_no_coroutine_function() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    async def slow(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('slow')
        return ctx.inputs + 1

    @g.step
    def later(ctx: StepContext[Counts, None, int]) -> Awaitable[int]:
        ctx.state.add('later')
        return slow(ctx)

    g.add(g.edge_from(g.start_node).to(later), g.edge_from(later).to(g.end_node))
    return g.build()


@dataclass
class Log:
    """What steps found, in the order of their number."""

    found: dict[int, str] = field(default_factory=dict[int, str])


@case('cancel scope', 'broadcast', 'join', state=Log, inputs=2)
def steps_with_cancel_scopes() -> Graph[Log, None, int, int]:
    """Steps that cancel and time out within, which is seen from outside as more slices and nothing else."""
    g = GraphBuilder(state_type=Log, input_type=int, output_type=int)

    @g.step
    async def cancelled(ctx: StepContext[Log, None, int]) -> int:
        ctx.state.found[1] = 'begun'
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        ctx.state.found[1] = 'cancelled within' if scope.cancelled_caught else 'not cancelled'
        await pause()
        return ctx.inputs

    @g.step
    async def timed_out(ctx: StepContext[Log, None, int]) -> int:
        try:
            with anyio.fail_after(0.001):
                await anyio.sleep_forever()
        except TimeoutError:
            ctx.state.found[2] = 'timed out within'
        await pause()
        return ctx.inputs

    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(cancelled, timed_out),
        g.edge_from(cancelled, timed_out).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('child task', 'thread', 'broadcast', 'join', state=Counts, inputs=2)
def steps_with_children_and_threads() -> Graph[Counts, None, int, int]:
    """The state is changed outside of the steps' own slices."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def children(ctx: StepContext[Counts, None, int]) -> int:
        async def child(number: int) -> None:
            await pause()
            ctx.state.add('child', number)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(child, number)
        await pause()
        return ctx.inputs

    @g.step
    async def thread(ctx: StepContext[Counts, None, int]) -> int:
        await anyio.to_thread.run_sync(ctx.state.add, 'thread', 1)
        await pause()
        return ctx.inputs

    @g.step
    async def quick(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('quick')
        return ctx.inputs

    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(children, thread, quick),
        g.edge_from(children, thread, quick).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
