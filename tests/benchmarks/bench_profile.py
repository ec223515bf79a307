"""Where the time of a step goes, sampled while it is measured; run by run.py.

A sample is taken when Python comes to it: of what is called in C, and takes longer than the time between two
samples, some are lost.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.benchmarks.bench_builder import Counting, linear, timed_run
from tests.benchmarks.bench_sqlite import ours
from tests.benchmarks.bench_sqlite_scale import measured

EVERY = 0.001  # seconds between two samples
ROUNDS = 40
STEPS = 1_000
OURS = Path(__file__).resolve().parents[2] / 'src' / 'graphkeep'

PARTS = {
    'sqlstep.end_step': 'SQLite: the end of a step',
    'sqlstep.begin_step': 'SQLite: its start, and other commits',
    'sqlstep': 'the commits of a step, and what they make of the run at hand',
    'sqlrun._write_all': 'SQLite: its start, and other commits',
    'sqlrun': 'the commits of a step, and what they make of the run at hand',
    'sqlview': 'the commits of a step, and what they make of the run at hand',
    'sqldb': 'whose turn it is to write',
    'sqlwriter': 'whose turn it is to write',
    'stored': 'whose turn it is to write',
    'offload': 'whose turn it is to write',
    'promise': 'whose turn it is to write',
    'sqldisk': 'whose turn it is to write',
    'turns': 'whose turn it is to write',
    'codec': 'encoding and the faithfulness check',
    'certain': 'encoding and the faithfulness check',
    'faithful': 'encoding and the faithfulness check',
    'values': 'encoding and the faithfulness check',
    'taskrows': 'encoding and the faithfulness check',
    'commit': 'the rules of status and ownership',
    'backend': 'the rules of status and ownership',
    'runinfo': 'the rules of status and ownership',
    'jsonrun': 'the rules of status and ownership',
    'owner': 'the rules of status and ownership',
    'claims': 'what is in hand, and the heartbeat',
    'heartbeat': 'what is in hand, and the heartbeat',
    'persistence': "the persistence's contract",
    'steprun': "the persistence's contract",
    'step': "the persistence's contract",
    'snapshots': "the persistence's contract",
    '_builder_run': 'what becomes of tasks',
    '_scheduler': 'what becomes of tasks',
    '_scheduling': 'what becomes of tasks',
    'inplace': 'what becomes of tasks',
    'taskrun': 'what becomes of tasks',
    'taskflight': 'what becomes of tasks',
    'tracking': 'what becomes of tasks',
    'builder': 'what becomes of tasks',
}
WAITING = 'waiting, for the disk or for nothing'
REST = 'opening and the rest'
HOST = "pydantic-graph's runner, the event loop and the nodes"
HOSTS = ('pydantic_graph', 'asyncio', 'anyio', '_core', '_backends', 'benchmarks')


def part_of(frame: FrameType | None) -> str:
    """Return what the innermost code of ours, or of the host, is about."""
    while frame is not None:
        if (part := _part(frame.f_code)) is not None:
            return part
        frame = frame.f_back
    return HOST


@cache  # so that a sample costs next to nothing
def _part(code: CodeType) -> str | None:
    file = Path(code.co_filename)
    if file.parent == OURS:
        return PARTS.get(f'{file.stem}.{code.co_name}') or PARTS.get(file.stem, REST)
    if code.co_name == 'select':
        return WAITING
    return HOST if file.parent.name in HOSTS else None


@contextmanager
def sampled(parts: Counter[str]) -> Generator[None]:
    """Count, again and again while this lasts, what the main thread is at."""

    def sample(_: int, frame: FrameType | None) -> None:
        parts[part_of(frame)] += 1

    before = signal.signal(signal.SIGALRM, sample)
    signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def spent(run: Callable[[int, Counter[str]], float]) -> dict[str, float]:
    """Return how long a step takes in each part, in microseconds; and in all, which the samples add to."""
    parts: Counter[str] = Counter()
    took = sum(run(number, parts) for number in range(ROUNDS)) / ROUNDS / STEPS * 1e6
    return {
        **{name: count / parts.total() * took for name, count in parts.most_common()},
        'all, with the sampling': took,
    }


@pytest.mark.parametrize('durability', ['normal', 'full'])
def test_step(benchmark: Any, tmp_path: Path, durability: str) -> None:
    """Where the time of a `BaseNode`'s step goes."""

    def run(number: int, parts: Counter[str]) -> float:
        with ours(tmp_path / f'{number}.db', STEPS, 100, durability=durability) as run, sampled(parts):
            begun = perf_counter()
            run()
            return perf_counter() - begun

    group = f'SQLite, where the time of a step goes, in µs, state of 100 bytes, durability={durability!r}'
    measured(benchmark, group, 'graphkeep', lambda: spent(run))


def test_line(benchmark: Any, tmp_path: Path) -> None:
    """Where the time of a builder graph's step goes."""

    def run(number: int, parts: Counter[str]) -> float:
        timed = timed_run(linear(STEPS), state=lambda: Counting(0, 'x' * 100), during=lambda: sampled(parts))

        async def one() -> float:
            return await timed(tmp_path / f'{number}.db')

        return asyncio.run(one())

    group = 'Builder graph, where the time of a step in a line goes, in µs'
    measured(benchmark, group, 'SqliteStore', lambda: spent(run))
