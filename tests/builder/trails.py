"""Small graphs whose steps leave a trail, the stores that keep their runs, and ways to crash and go on."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio.lowlevel
from pydantic_graph import GraphBuilder, StepContext, reduce_list_append, reduce_sum
from pydantic_graph.graph_builder import EndMarker, Graph

from graphkeep import MemoryStore, PersistentGraph, Store, StoredStatePersistence, run_or_resume
from tests.backends.stores import LEASE, STORES, Clock

__all__ = (
    'LEASE',
    'STORES',
    'Clock',
    'Crash',
    'Deps',
    'Persistence',
    'Trail',
    'chain',
    'crash_after',
    'crashed',
    'early',
    'events_of',
    'looping',
    'mapped',
    'memory',
    'nowhere',
    'on',
    'raising',
    'record',
    'resumed',
    'told',
    'waiting',
)

Persistence = StoredStatePersistence[Any, Any]
Deps = Callable[[str], Awaitable[None]] | None
"""What a step does before it goes on its trail; it is told the name of the step."""


@dataclass
class Trail:
    """Which steps ended, in order."""

    steps: list[str] = field(default_factory=list[str])


async def on(deps: object, name: str) -> None:
    """Do what is to be done in a step of this name."""
    await anyio.lowlevel.checkpoint()
    if deps is not None:
        await cast('Callable[[str], Awaitable[None]]', deps)(name)


def chain() -> Graph[Trail, object, int, str]:
    """One step after another: `one`, `two`, `three`."""
    g = GraphBuilder(name='chain', state_type=Trail, deps_type=object, input_type=int, output_type=str)

    @g.step
    async def one(ctx: StepContext[Trail, object, int]) -> int:
        await on(ctx.deps, 'one')
        ctx.state.steps.append('one')
        return ctx.inputs + 1

    @g.step
    async def two(ctx: StepContext[Trail, object, int]) -> int:
        await on(ctx.deps, 'two')
        ctx.state.steps.append('two')
        return ctx.inputs + 1

    @g.step
    async def three(ctx: StepContext[Trail, object, int]) -> str:
        await on(ctx.deps, 'three')
        ctx.state.steps.append('three')
        return f'came to {ctx.inputs}'

    g.add(
        g.edge_from(g.start_node).to(one),
        g.edge_from(one).to(two),
        g.edge_from(two).to(three),
        g.edge_from(three).to(g.end_node),
    )
    return g.build()


def mapped() -> Graph[Trail, object, list[int], int]:
    """A step `item` for each item, called `item 1` for the item 1, and then `total` for their sum."""
    g = GraphBuilder(name='mapped', state_type=Trail, deps_type=object, input_type=list[int], output_type=int)

    @g.step
    async def item(ctx: StepContext[Trail, object, int]) -> int:
        await on(ctx.deps, f'item {ctx.inputs}')
        ctx.state.steps.append(f'item {ctx.inputs}')
        return ctx.inputs

    @g.step
    async def total(ctx: StepContext[Trail, object, int]) -> int:
        await on(ctx.deps, 'total')
        ctx.state.steps.append('total')
        return ctx.inputs

    added = g.join(reduce_sum, initial=0, node_id='added')
    g.add(
        g.edge_from(g.start_node).map(fork_id='each').to(item),
        g.edge_from(item).to(added),
        g.edge_from(added).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


def looping() -> Graph[Trail, object, int, list[str]]:
    """A step `again` until its number is 0, and in each round a nested map over two letters."""
    g = GraphBuilder(
        name='looping', state_type=Trail, deps_type=object, input_type=int, output_type=list[str]
    )

    @g.step
    async def again(ctx: StepContext[Trail, object, int]) -> list[str]:
        await on(ctx.deps, f'again {ctx.inputs}')
        ctx.state.steps.append(f'again {ctx.inputs}')
        return [f'{letter}{ctx.inputs}' for letter in 'ab']

    @g.step
    async def letter(ctx: StepContext[Trail, object, str]) -> str:
        await on(ctx.deps, ctx.inputs)
        return ctx.inputs

    @g.step
    async def count(ctx: StepContext[Trail, object, list[str]]) -> int | list[str]:
        left = int(ctx.inputs[0][1:]) - 1
        return left if left else sorted(ctx.inputs)

    letters = g.join(reduce_list_append, initial_factory=list[str], node_id='letters')
    g.add(
        g.edge_from(g.start_node).to(again),
        g.edge_from(again).map(fork_id='each').to(letter),
        g.edge_from(letter).to(letters),
        g.edge_from(letters).to(count),
        g.edge_from(count).to(
            g.decision(node_id='more')
            .branch(g.match(int).to(again))
            .branch(g.match(list[str], matches=lambda value: isinstance(value, list)).to(g.end_node))
        ),
    )
    return g.build()


def early() -> Graph[Trail, object, int, list[str]]:
    """A step `slow` that changes the state before it ends, so that the commit of `quick` waits for it."""
    g = GraphBuilder(name='early', state_type=Trail, deps_type=object, input_type=int, output_type=list[str])

    @g.step
    async def slow(ctx: StepContext[Trail, object, int]) -> str:
        await on(ctx.deps, 'slow')
        ctx.state.steps.append('slow')
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        ctx.state.steps.append('slow again')
        return 'slow'

    @g.step
    async def quick(ctx: StepContext[Trail, object, int]) -> str:
        await on(ctx.deps, 'quick')
        return 'quick'

    @g.step
    async def follow(ctx: StepContext[Trail, object, str]) -> str:
        await on(ctx.deps, 'follow')
        for _ in range(40):
            await anyio.lowlevel.checkpoint()
        return 'follow'

    @g.step
    async def order(ctx: StepContext[Trail, object, list[str]]) -> list[str]:
        return sorted(ctx.inputs)

    listed = g.join(reduce_list_append, initial_factory=list[str], node_id='listed')
    g.add(
        g.edge_from(g.start_node).to(slow, quick),
        g.edge_from(quick).to(follow),
        g.edge_from(slow, follow).to(listed),
        g.edge_from(listed).to(order),
        g.edge_from(order).to(g.end_node),
    )
    return g.build()


# ----------------------------------------------------------------------------------------------------- hooks


def raising(name: str, exc: Exception | None = None) -> Deps:
    """Return what raises in the step of this name."""

    async def hook(step: str) -> None:
        if step == name:
            raise exc or OverflowError(f'{name} is too much')

    return hook


def waiting(*names: str) -> Deps:
    """Return what never returns in the steps of these names."""

    async def hook(step: str) -> None:
        if step in names:
            await anyio.sleep_forever()

    return hook


def record(ran: list[str]) -> Deps:
    """Return what writes down which steps ran."""

    async def hook(step: str) -> None:
        ran.append(step)

    return hook


# ---------------------------------------------------------------------------------------- crashing, going on


def memory() -> tuple[MemoryStore, Clock]:
    """Return a store, and the clock that its leases are measured with."""
    clock = Clock()
    return MemoryStore(lease=LEASE, clock=clock), clock


class Crash(BaseException):
    """Stands for the end of the process."""


def crash_after(persistence: Any, commits: int) -> Persistence:
    """Let nothing be written through `persistence` after so many commits."""
    commit, left = persistence._commit, commits

    async def commit_or_crash(write: Any) -> Any:
        nonlocal left
        if left <= 0:
            raise Crash
        left -= 1
        return await commit(write)

    persistence._commit = commit_or_crash
    return persistence


async def crashed(
    graph: PersistentGraph[Any, Any, Any, Any], persistence: Persistence, commits: int, **how: Any
) -> bool:
    """Run or go on with a run, until it crashes after so many commits; return whether it did."""
    try:
        with suppress(BaseExceptionGroup):
            await run_or_resume(graph, persistence=crash_after(persistence, commits), **how)
            return False
    except Crash:
        pass
    return True


async def resumed(
    graph: PersistentGraph[Any, Any, Any, Any], store: Store, clock: Clock, run_id: str = 'r', **how: Any
) -> Any:
    """Go on with a run in another process, once the lease of the one that had it has run out."""
    clock.forward(LEASE + 1)
    return await run_or_resume(graph, persistence=store.run(run_id), **how)


# ------------------------------------------------------------------------------------------- what is compared


async def nowhere(directory: Path, name: str) -> tuple[Store, Clock]:
    """Return a store of this name in a directory, and its clock."""
    clock = Clock()
    return STORES[name](directory, clock), clock


def told(event: Any) -> object:
    """Return what an event of a run tells, without the ids that no two runs have in common."""
    if isinstance(event, EndMarker):
        return 'end', _shown(cast('EndMarker[Any]', event).value)
    tasks: Sequence[Any] = event
    return [
        (task.node_id, _shown(task.inputs), [(item.fork_id, item.thread_index) for item in task.fork_stack])
        for task in tasks
    ]


def _shown(value: object) -> str:
    return re.sub('0x[0-9a-f]+', '', repr(value))


async def events_of(run: Any) -> list[object]:
    """Drive a run to its end, and return what its events told."""
    return [told(event) async for event in run]
