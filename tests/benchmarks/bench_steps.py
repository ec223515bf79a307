"""What a step costs, on a linear graph; run by run.py, which makes the tables of docs/benchmarks.md of it.

Each round is a whole run of the graph on a fresh persistence, whose types are set before: building type
adapters is a cost of the graph, not of a step.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

import graphkeep
from graphkeep import Graph
from graphkeep._host import HAS_RUNNER


def peer(module: str, name: str) -> Any:
    """Return pydantic-graph 1.x's own class, which only that host has."""
    return getattr(import_module(f'pydantic_graph.persistence.{module}'), name)


Base: Any = graphkeep.BaseStatePersistence


@dataclass
class State:
    """What each run has: a number and a text."""

    number: int
    text: str


@dataclass
class Odd(BaseNode[State, None, int]):
    """Counts one step."""

    until: int

    async def run(self, ctx: GraphRunContext[State, None]) -> Even | End[int]:
        """Count."""
        ctx.state.number += 1
        return End(ctx.state.number) if ctx.state.number >= self.until else Even(self.until)


@dataclass
class Even(BaseNode[State, None, int]):
    """Counts one step."""

    until: int

    async def run(self, ctx: GraphRunContext[State, None]) -> Odd | End[int]:
        """Count."""
        ctx.state.number += 1
        return End(ctx.state.number) if ctx.state.number >= self.until else Odd(self.until)


graph = Graph(nodes=(Odd, Even), auto_instrument=False)


class Nothing(Base):
    """Records nothing: what the runner itself costs."""

    async def snapshot_node(self, state: Any, next_node: Any) -> None:
        """Record nothing."""

    async def snapshot_node_if_new(self, snapshot_id: str, state: Any, next_node: Any) -> None:
        """Record nothing."""

    async def snapshot_end(self, state: Any, end: Any) -> None:
        """Record nothing."""

    @asynccontextmanager
    async def record_run(self, snapshot_id: str) -> AsyncGenerator[None]:
        """Record nothing."""
        yield

    async def load_next(self) -> None:
        """Load nothing."""

    async def load_all(self) -> list[Any]:
        """Load nothing."""
        return []

    def set_graph_types(self, graph: Any) -> None:
        """Learn nothing."""


@dataclass
class BareFile:
    """The limit of a file: per step, a claim written in place, and a file as large as the run by then."""

    path: Path
    full: bool
    apart: float = 0.0
    """Seconds of computing after each write, not counted: a graph does not write without a pause."""

    def run(self, steps: int, size: int) -> None:
        """Write what a run of this many steps writes."""
        snapshot = b'x' * (size + 330)
        text = b''
        claims = os.open(f'{self.path}.claims', os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for _ in range(steps):
                text += snapshot
                os.lseek(claims, 0, os.SEEK_SET)
                os.write(claims, b'x' * 500)
                self._compute()
                self._replace(text)
                self._compute()
        finally:
            os.close(claims)

    def _compute(self) -> None:
        until = perf_counter() + self.apart
        while perf_counter() < until:
            pass

    def _replace(self, text: bytes) -> None:
        temporary = f'{self.path}.tmp'
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, text)
            if self.full:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, self.path)
        if self.full:
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


Make = Callable[[Path], Any]

PAUSE = 0.0001
APART = f'bare files, {PAUSE * 1000:g} ms apart'

SUBJECTS: dict[str, dict[str, Make]] = {
    'Simple': {
        'graphkeep': lambda path: graphkeep.SimpleStatePersistence(),
        'pydantic-graph 1.x': lambda path: peer('in_mem', 'SimpleStatePersistence')(),
        'no persistence': lambda path: Nothing(),
    },
    'Full': {
        'graphkeep': lambda path: graphkeep.FullStatePersistence(),
        'pydantic-graph 1.x': lambda path: peer('in_mem', 'FullStatePersistence')(),
        'no persistence': lambda path: Nothing(),
    },
    'File': {
        'graphkeep': lambda path: graphkeep.FileStatePersistence(path),
        'graphkeep, verify=False': lambda path: graphkeep.FileStatePersistence(path, verify=False),
        "graphkeep, durability='full'": lambda path: graphkeep.FileStatePersistence(path, durability='full'),
        'pydantic-graph 1.x': lambda path: peer('file', 'FileStatePersistence')(path),
        'bare files': lambda path: BareFile(path, full=False),
        APART: lambda path: BareFile(path, full=False, apart=PAUSE),
        'bare files, fsync': lambda path: BareFile(path, full=True),
    },
    'MemoryStore': {
        'graphkeep': lambda path: graphkeep.MemoryStore().run('run'),
        'graphkeep, verify=False': lambda path: graphkeep.MemoryStore(verify=False).run('run'),
    },
}

MEMORY = Path('/dev/shm')  # noqa: S108 -- a file system in memory, where there is one: what a disk adds is left out
if MEMORY.is_dir():
    SUBJECTS['File in memory'] = SUBJECTS['File']

SCALES: dict[str, list[tuple[int, int]]] = {
    # steps, bytes of text in the state
    'Simple': [(100, 100), (1_000, 100), (100, 10_000)],
    'Full': [(100, 100), (10_000, 100), (100, 10_000)],
    'File': [(100, 100), (1_000, 100), (100, 10_000), (1_000, 10_000)],
    'MemoryStore': [(100, 100), (10_000, 100), (100, 10_000)],
}


if MEMORY.is_dir():
    SCALES['File in memory'] = [(100, 100), (1_000, 100)]


def cases() -> Iterator[Any]:
    """Yield every case, those that are compared one after another."""
    for kind, scales in SCALES.items():
        for steps, size in scales:
            for subject in SUBJECTS[kind]:
                if subject != 'pydantic-graph 1.x' or HAS_RUNNER:
                    yield pytest.param(kind, steps, size, subject, id=f'{kind}-{steps}-{size}-{subject}')


def rounds(kind: str, steps: int, size: int, subject: str) -> int:
    """How often to run the graph: what takes minutes once, what takes a moment many times."""
    if kind.startswith('File'):
        slow = subject == 'pydantic-graph 1.x'
        if steps * size >= 10_000_000:
            return 1 if slow else 2
        return {100: 5 if slow else 20, 1_000: 2 if slow else 5}[steps]
    return 10 if steps >= 10_000 else 50 if steps >= 1_000 else 200


@pytest.mark.parametrize('kind,steps,size,subject', list(cases()))
def test_step(benchmark: Any, tmp_path: Path, kind: str, steps: int, size: int, subject: str) -> None:
    """A linear graph runs to its end."""
    benchmark.group = f'{kind}, {steps:,} steps, state of {size:,} bytes'
    idle = 2 * PAUSE if subject == APART else 0.0
    benchmark.extra_info.update(kind=kind, steps=steps, size=size, subject=subject, idle=idle)
    make = SUBJECTS[kind][subject]
    base = MEMORY if kind == 'File in memory' else tmp_path

    with asyncio.Runner() as runner, TemporaryDirectory(dir=base) as scratch:
        directory = Path(scratch) / 'run'

        def prepare() -> tuple[tuple[Any], dict[str, Any]]:
            with suppress(FileNotFoundError):
                shutil.rmtree(directory)
            directory.mkdir()
            persistence = make(directory / 'run.json')
            if not isinstance(persistence, BareFile):
                persistence.set_graph_types(graph)
            return (persistence,), {}

        def run(persistence: Any) -> int:
            if isinstance(persistence, BareFile):
                persistence.run(steps, size)
                return steps
            running = graph.run(Odd(steps), state=State(0, 'x' * size), persistence=persistence)
            return runner.run(running).output

        count = rounds(kind, steps, size, subject)
        output = benchmark.pedantic(run, setup=prepare, rounds=count, warmup_rounds=min(1, count - 1))
    assert output == steps
