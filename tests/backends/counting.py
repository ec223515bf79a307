"""A graph that counts to three, in a file, for the tests of what is in hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import FileStatePersistence, Graph, run_or_resume
from graphkeep.snapshots import now_utc
from tests.rawfile import lock_file

__all__ = (
    'FIRST_SLOT',
    'SECOND_SLOT',
    'Count',
    'Persistence',
    'Tally',
    'begun',
    'ended',
    'finish',
    'graph',
    'opened',
    'overwrite',
    'statuses',
)

Persistence = FileStatePersistence[Any, Any]
FIRST_SLOT, SECOND_SLOT = 4096, 8192


@dataclass
class Tally:
    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Count(BaseNode[Tally, list[int] | None, list[int]]):
    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, list[int] | None]) -> Count | End[list[int]]:
        if ctx.deps is not None:
            ctx.deps.append(self.number)
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == 3 else Count(self.number + 1)


graph = Graph(nodes=(Count,))


def later(hours: float) -> datetime:
    """Be the clock of somebody for whom it is so much later."""
    return now_utc() + timedelta(hours=hours)


def opened(path: Path, hours: float = 0) -> Persistence:
    """Return a persistence that knows the graph."""
    persistence: Persistence = FileStatePersistence(path, clock=partial(later, hours))
    persistence.set_graph_types(graph)
    return persistence


async def finish(path: Path, ran: list[int] | None = None, hours: float = 0) -> list[int]:
    """Run the graph to its end from wherever it is."""
    run = await run_or_resume(graph, Count(), state=Tally(), deps=ran, persistence=opened(path, hours))
    return run.output


async def statuses(path: Path) -> list[str]:
    """Return what somebody sees who opens the file now."""
    return [record.status for record in await opened(path).load_history()]


async def begun(path: Path) -> Persistence:
    """Begin a run and take its first node in hand."""
    persistence = opened(path)
    await persistence.snapshot_node(Tally(), Count())
    assert await persistence.load_next()
    return persistence


async def ended(persistence: Persistence) -> None:
    """End the step of the only snapshot there is."""
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id):
        pass
    await persistence.snapshot_node(Tally(), Count(2))


def overwrite(file: Path, at: int, data: bytes) -> None:
    """Write into the lock file."""
    with open(lock_file(file), 'r+b') as lock:
        lock.seek(at)
        lock.write(data)
