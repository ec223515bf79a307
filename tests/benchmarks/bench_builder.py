"""What recording a builder graph costs, next to LangGraph's fan-out and the plain run; run by run.py."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pytest
from pydantic_graph.graph_builder import Graph, GraphBuilder
from pydantic_graph.join import reduce_list_append, reduce_null
from pydantic_graph.step import StepContext

from graphkeep import PersistentGraph, SqliteStore
from graphkeep.tracking import Tracking
from tests.benchmarks.bench_sqlite_scale import measured
from tests.benchmarks.bench_steps import Odd, State, graph
from tests.benchmarks.langgraph_peer import fanned_out

ROUNDS = 7

Timed = Callable[[Path | None], Awaitable[float]]
"""Run something once, recorded in this file or not at all; return how long it took, in seconds."""


def mapped() -> Graph[None, None, int, list[int]]:
    """Build a map over so many trivial steps."""
    g = GraphBuilder(input_type=int, output_type=list[int], auto_instrument=False)

    @g.step
    async def numbers(ctx: StepContext[None, None, int]) -> list[int]:
        return list(range(ctx.inputs))

    @g.step
    async def double(ctx: StepContext[None, None, int]) -> int:
        return ctx.inputs * 2

    doubled = g.join(reduce_list_append, initial_factory=list[int])
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(double),
        g.edge_from(double).to(doubled),
        g.edge_from(doubled).to(g.end_node),
    )
    return g.build()


@dataclass
class Counting:
    """A state as small as that of the other benchmarks."""

    number: int
    text: str


def linear(steps: int) -> Graph[Counting, None, None, int]:
    """Build so many steps in a line."""
    g = GraphBuilder(state_type=Counting, output_type=int, auto_instrument=False)

    async def count(ctx: StepContext[Counting, None, int]) -> int:
        ctx.state.number += 1
        return ctx.state.number

    before: Any = g.start_node
    for n in range(steps):
        step = g.step(count, node_id=f'step_{n}')
        g.add(g.edge_from(before).to(step))
        before = step
    g.add(g.edge_from(before).to(g.end_node))
    return g.build()


@dataclass
class Large:
    """A state of about a megabyte."""

    texts: list[str] = field(default_factory=lambda: [f'{n:0100}' for n in range(10_000)])
    done: int = 0


def sliced(slices: int) -> Graph[Large, None, None, None]:
    """Build eight parallel steps of so many slices each, which change the state at their end."""
    g = GraphBuilder(state_type=Large, auto_instrument=False)

    @g.step
    async def numbers(ctx: StepContext[Large, None, None]) -> list[int]:
        return list(range(8))

    @g.step
    async def work(ctx: StepContext[Large, None, int]) -> None:
        for _ in range(slices - 1):
            await asyncio.sleep(0)
        ctx.state.done += 1

    done = g.join(reduce_null, initial=None)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(work),
        g.edge_from(work).to(done),
        g.edge_from(done).to(g.end_node),
    )
    return g.build()


async def _best(path: Path, *subjects: tuple[Timed, bool], rounds: int = ROUNDS) -> list[float]:
    """Run each of these in turn, several times, recorded if told so; return the best times, in seconds."""
    best = [1e9] * len(subjects)
    for _ in range(rounds):
        for n, (timed, recorded) in enumerate(subjects):
            with TemporaryDirectory(dir=path) as scratch:
                best[n] = min(best[n], await timed(Path(scratch) / 'runs.db' if recorded else None))
    return best


def timed_run(
    built: Graph[Any, Any, Any, Any],
    *,
    tracking: Tracking = 'exact',
    during: Callable[[], AbstractContextManager[None]] = nullcontext,
    **start: Any,
) -> Timed:
    """Return what runs the graph, recorded in the file if one is given, and tells the seconds it took.

    What `during` returns is entered for as long.
    """
    persistent = PersistentGraph(built, tracking=tracking)
    state = start.pop('state', lambda: None)

    async def timed(path: Path | None) -> float:
        if path is None:
            begun = perf_counter()
            await built.run(state=state(), **start)
            return perf_counter() - begun
        async with SqliteStore(path) as store:
            await store.runs()  # which opens the file
            persistence = store.run('run')
            with during():
                begun = perf_counter()
                await persistent.run(state=state(), persistence=persistence, **start)
                return perf_counter() - begun

    return timed


@pytest.mark.parametrize('tasks', [100, 1_000, 10_000])
def test_map(benchmark: Any, tmp_path: Path, tasks: int) -> None:
    """What recording adds to each task of a map, to ours and to LangGraph's."""

    async def run() -> dict[str, float]:
        ours, theirs = timed_run(mapped(), inputs=tasks), fanned_out(tasks)
        subjects = [(ours, False), (ours, True)]
        rounds = ROUNDS if tasks < 10_000 else 2
        if tasks == 1_000:
            subjects += [(theirs, False), (theirs, True)]
        plain, recorded, *peer = [t / tasks * 1e6 for t in await _best(tmp_path, *subjects, rounds=rounds)]
        figures = {
            'plain builder run, µs a task': plain,
            'graphkeep adds, µs a task': recorded - plain,
        }
        if peer:
            figures['LangGraph 1.2 without a saver, µs a task'] = peer[0]
            figures['LangGraph 1.2 adds, µs a task'] = peer[1] - peer[0]
        return figures

    group = f'Builder graph, a map over {tasks:,} trivial steps'
    measured(benchmark, group, 'SqliteStore', lambda: asyncio.run(run()))


def test_linear(benchmark: Any, tmp_path: Path) -> None:
    """A linear builder graph costs about what the same graph of `BaseNode`s costs on the same store."""

    async def base_nodes(path: Path | None) -> float:
        assert path is not None
        async with SqliteStore(path) as store:
            await store.runs()
            persistence = store.run('run')
            begun = perf_counter()
            await graph.run(Odd(1_000), state=State(0, 'x' * 100), persistence=persistence)
            return perf_counter() - begun

    async def run() -> dict[str, float]:
        ours = timed_run(linear(1_000), state=lambda: Counting(0, 'x' * 100))
        plain, builder, nodes = await _best(tmp_path, (ours, False), (ours, True), (base_nodes, True))
        return {
            'plain builder run, µs a step': plain * 1e3,
            'recorded builder run, µs a step': builder * 1e3,
            'recorded run of `BaseNode`s, µs a step': nodes * 1e3,
        }

    measured(benchmark, 'Builder graph, 1,000 steps in a line', 'SqliteStore', lambda: asyncio.run(run()))


def test_slices(benchmark: Any, tmp_path: Path) -> None:
    """What it costs to look at a state of a megabyte after each of 1,600 slices."""

    async def run() -> dict[str, float]:
        exact = timed_run(sliced(200), state=Large)
        barrier = timed_run(sliced(200), state=Large, tracking='barrier')
        plain, looked, waited = await _best(
            tmp_path, (exact, False), (exact, True), (barrier, True), rounds=3
        )
        return {
            'plain builder run, ms': plain * 1e3,
            "tracking='exact', ms": looked * 1e3,
            "tracking='barrier', ms": waited * 1e3,
        }

    group = 'Builder graph, 8 parallel steps of 200 slices over a state of 1 MB'
    measured(benchmark, group, 'SqliteStore', lambda: asyncio.run(run()))
