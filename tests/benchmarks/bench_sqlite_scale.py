"""How a SQLite store behaves in a very long run, and while another process holds its lock; run by run.py."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from graphkeep import SqliteStore
from tests.benchmarks.bench_steps import Odd, State, graph

STEPS = 100_000
PART = 1_000


def measured(benchmark: Any, group: str, subject: str, run: Callable[[], dict[str, float]]) -> None:
    """Measure, and have run.py show these figures in a table of their own."""
    benchmark.group = group
    figures = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(subject=subject, figures=figures)


def memory() -> float:
    """Return how much memory this process has now, in MB."""
    if sys.platform == 'linux':
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE') / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


async def stepped(persistence: Any, counts: list[int]) -> list[float]:
    """Run the graph to its end, and return how long each step took, in microseconds."""
    took: list[float] = []
    async with graph.iter(Odd(counts[0]), state=State(0, 'x' * 100), persistence=persistence) as run:
        begun = perf_counter()
        async for _ in run:
            now = perf_counter()
            took.append((now - begun) * 1e6)
            begun = now
    return took


def test_long_run(benchmark: Any, tmp_path: Path) -> None:
    """A run of 100,000 steps costs as much at its end as at its beginning, and takes no memory."""

    async def run() -> dict[str, float]:
        async with SqliteStore(tmp_path / 'runs.db') as store:
            await stepped(store.run('warm'), [PART])
            before = memory()
            took = await stepped(store.run('long'), [STEPS])
            grown = memory() - before
            return {
                'first 1,000 steps, µs a step': sorted(took[:PART])[PART // 2],
                'last 1,000 steps, µs a step': sorted(took[-PART:])[PART // 2],
                'memory grown by, MB': grown,
            }

    group = 'SQLite, one run of 100,000 steps (medians)'
    measured(benchmark, group, 'graphkeep', lambda: asyncio.run(run()))


@asynccontextmanager
async def waiting(store: SqliteStore, steps: int) -> AsyncGenerator[None]:
    """Have a run of so many steps in the store, whose next node waits to be loaded."""
    async with graph.iter(
        Odd(steps + 2), state=State(0, 'x' * 100), persistence=store.run(f'{steps}')
    ) as run:
        for _ in range(steps):
            await run.next()
    yield


def test_load_next(benchmark: Any, tmp_path: Path) -> None:
    """What it takes to go on with a run does not depend on its length."""

    async def loaded(store: SqliteStore, steps: int) -> float:
        best = 1e9
        for _ in range(50):
            persistence = store.run(f'{steps}')
            persistence.set_graph_types(graph)
            begun = perf_counter()
            assert await persistence.load_next() is not None
            best = min(best, perf_counter() - begun)
            await persistence.release()
        return best * 1e6

    async def run() -> dict[str, float]:
        async with SqliteStore(tmp_path / 'runs.db') as store:
            for steps in (100, STEPS):
                async with waiting(store, steps):
                    pass
            return {
                '`load_next` on a run of 100 steps, µs': await loaded(store, 100),
                '`load_next` on a run of 100,000 steps, µs': await loaded(store, STEPS),
            }

    measured(benchmark, 'SQLite, going on with a run', 'graphkeep', lambda: asyncio.run(run()))


def hold(path: Path, held: Any, seconds: float) -> None:
    """Hold the write lock of the file for so long, in a process of its own."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute('BEGIN IMMEDIATE')
        held.set()
        time.sleep(seconds)
        db.execute('ROLLBACK')


@pytest.mark.parametrize('durability', ['normal', 'full'])
def test_held_lock(benchmark: Any, tmp_path: Path, durability: Any) -> None:
    """While another process holds the lock for a second, the event loop goes on, and no call fails."""

    async def run() -> dict[str, float]:
        late: list[float] = []
        async with SqliteStore(tmp_path / 'runs.db', durability=durability) as store:
            await stepped(store.run('warm'), [100])
            context = multiprocessing.get_context('spawn')
            held = context.Event()
            process = context.Process(target=hold, args=(tmp_path / 'runs.db', held, 1.0))
            process.start()
            await asyncio.to_thread(held.wait)
            runs = [asyncio.create_task(stepped(store.run(f'run-{n}'), [50])) for n in range(20)]
            begun = perf_counter()
            while not all(task.done() for task in runs):
                due = perf_counter() + 0.001
                await asyncio.sleep(0.001)
                late.append(perf_counter() - due)
            waited = perf_counter() - begun
            await asyncio.gather(*runs)  # raises if a call failed
            process.join()
        assert waited > 0.9, 'nothing had to wait, so nothing was measured'
        return {'latest by, ms': max(late) * 1e3, 'calls that failed': 0.0}

    group = 'SQLite, an event loop with 20 runs while another process holds the lock for 1 s'
    subject = f'graphkeep, durability={durability!r}'
    measured(benchmark, group, subject, lambda: asyncio.run(run()))


def test_disk(benchmark: Any, tmp_path: Path) -> None:
    """What the disk under all of this takes to have 4 KB written over for good."""

    def run() -> dict[str, float]:
        took: list[float] = []
        fd = os.open(tmp_path / 'file', os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for _ in range(300):
                os.pwrite(fd, b'x' * 4096, 0)
                begun = perf_counter()
                os.fdatasync(fd)
                took.append((perf_counter() - begun) * 1e6)
        finally:
            os.close(fd)
        took.sort()
        return {'median, µs': took[150], 'fastest, µs': took[0]}

    measured(benchmark, 'The disk', 'fdatasync of 4 KB written over', run)
