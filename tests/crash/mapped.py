"""What the children of the kill test run: a map whose steps change the state early and late."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio
from pydantic_graph.graph_builder import GraphBuilder
from pydantic_graph.join import reduce_sum
from pydantic_graph.step import StepContext

from graphkeep import PersistentGraph, SqliteStore, current_step, run_or_resume

__all__ = ('ITEMS', 'Tally', 'finish_map', 'run_map', 'runs_of')

ITEMS = 16
"""How many items are mapped over."""


@dataclass
class Tally:
    """What the steps have done, twice for each item; half done it is wrong."""

    early: Counter[int] = field(default_factory=Counter[int])
    """How often a step has begun with an item."""
    late: Counter[int] = field(default_factory=Counter[int])
    """How often it has ended with it."""
    checked: int = 0
    """How many items were looked at again."""


def _mapped() -> PersistentGraph[Tally, Path, int, int]:
    g = GraphBuilder(state_type=Tally, deps_type=Path, input_type=int, output_type=int, auto_instrument=False)

    @g.step
    async def numbers(ctx: StepContext[Tally, Path, int]) -> list[int]:
        return list(range(ctx.inputs))

    @g.step
    async def work(ctx: StepContext[Tally, Path, int]) -> int:
        _log(ctx.deps, current_step().idempotency_key, ctx.inputs)
        if ctx.inputs % 4 == 0:  # and these wait for nothing after they have changed the state
            await anyio.sleep(0.001 * (ctx.inputs % 3))
        ctx.state.early[ctx.inputs] += 1
        if ctx.inputs % 4:
            await anyio.sleep(0.001 * (ctx.inputs % 5))
        ctx.state.late[ctx.inputs] += 1
        return ctx.inputs

    @g.step
    async def check(ctx: StepContext[Tally, Path, int]) -> int:
        await anyio.sleep(0.001)
        ctx.state.checked += 1
        return ctx.inputs * 2

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(work),
        g.edge_from(work).to(check),
        g.edge_from(check).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return PersistentGraph(g.build())


mapped = _mapped()


def _log(log: Path, key: str, item: int) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f'{item} {key}\n'.encode())
    finally:
        os.close(fd)


def runs_of(log: Path) -> tuple[Counter[int], dict[int, set[str]]]:
    """Return how often each item was begun with, and under which keys."""
    times: Counter[int] = Counter()
    keys: dict[int, set[str]] = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        item, key = line.split()
        times[int(item)] += 1
        keys.setdefault(int(item), set()).add(key)
    return times, keys


async def run_map(path: Path, run_id: str, log: Path) -> tuple[int, Tally]:
    """Run the graph to its end from wherever the run is; return what it came to, and its state."""
    async with SqliteStore(path) as store:
        persistence: Any = store.run(run_id)
        output = await run_or_resume(mapped, state=Tally(), inputs=ITEMS, deps=log, persistence=persistence)
        return output, await persistence.last_state()


def finish_map(path: Path, run_id: str, log: Path, ready: Connection) -> None:
    """Say that it begins, run the graph, and say how long that took."""
    ready.send('begins')
    begun = time.perf_counter()
    anyio.run(run_map, path, run_id, log)
    ready.send(time.perf_counter() - begun)
