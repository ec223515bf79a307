"""The stores whose verbs are under test, the graphs whose runs they keep, and ways to get somewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    FileStore,
    Graph,
    MemoryStore,
    RunInfo,
    SnapshotStatus,
    SqliteStore,
    Store,
    StoredStatePersistence,
    current_step,
    iter_or_resume,
    run_or_resume,
)
from graphkeep.commit import Commit, StatusChange
from graphkeep.status import START

__all__ = (
    'ANSWER',
    'STORES',
    'Again',
    'Clock',
    'Count',
    'Persistence',
    'Shelf',
    'Tally',
    'again',
    'begin',
    'count_up',
    'fail',
    'finish',
    'in_hand',
    'info',
    'keys',
    'nowhere',
    'statuses',
    'with_status',
)

Persistence = StoredStatePersistence[Any, Any]
LEASE = 30.0


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float = 0, **much: float) -> datetime:
        """Go on, and return what time it is then."""
        self.now += timedelta(seconds=seconds, **much)
        return self.now


STORES: dict[str, Callable[[Path, Clock], Store]] = {
    'memory': lambda directory, clock: MemoryStore(lease=LEASE, clock=clock),
    'file': lambda directory, clock: FileStore(directory / 'runs', lease=LEASE, clock=clock),
    'sqlite': lambda directory, clock: SqliteStore(directory / 'runs.db', lease=LEASE, clock=clock),
}
"""Every store, by name; each is made in a directory of its own."""


@dataclass
class Shelf:
    """One storage, and the stores that are opened on it."""

    name: str
    clock: Clock
    directory: Path
    stack: AsyncExitStack
    stores: list[Store] = field(default_factory=list[Store])

    async def open(self) -> Store:
        """Open one more store on the same storage; what is in memory only is opened once."""
        if self.name == 'memory' and self.stores:
            return self.stores[0]
        store = await self.stack.enter_async_context(STORES[self.name](self.directory, self.clock))
        self.stores.append(store)
        return store


# ------------------------------------------------------------------------------------------------- the graphs


@dataclass
class Tally:
    """What has been counted."""

    numbers: list[int] = field(default_factory=list[int])
    keys: list[str] = field(default_factory=list[str])


Hook = Callable[[int], Awaitable[None]]


@dataclass
class Count(BaseNode[Tally, Hook | None, list[int]]):
    """Counts from 1 to 4, and does before each what `deps` says."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, Hook | None]) -> Count | End[list[int]]:
        if ctx.deps is not None:
            await ctx.deps(self.number)
        ctx.state.numbers.append(self.number)
        ctx.state.keys.append(current_step().idempotency_key)
        return End(ctx.state.numbers) if self.number == len(ANSWER) else Count(self.number + 1)


@dataclass
class Again(BaseNode[Tally, Hook | None, list[int]]):
    """Returns itself three times, so that its snapshot's id recurs."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, Hook | None]) -> Again | End[list[int]]:
        ctx.state.numbers.append(self.number)
        self.number += 1
        return self if self.number < 4 else End(ctx.state.numbers)


ANSWER = [1, 2, 3, 4]
"""What counting ends with."""
count_up = Graph(nodes=(Count,), name='count')
again = Graph(nodes=(Again,), name='again')


# ----------------------------------------------------------------------------------------- to get somewhere


async def begin(
    store: Store, run_id: str, *, steps: int = 0, tags: Iterable[str] = (), graph: Any = count_up
) -> None:
    """Begin a run, take so many steps (four are all), and leave it there."""
    start: Any = Again() if graph is again else Count()
    persistence = store.run(run_id, tags=tags)
    await graph.initialize(start, persistence, state=Tally())
    if steps:
        async with iter_or_resume(graph, persistence=persistence) as run:
            for _ in range(steps):
                await run.next()


async def finish(run: Persistence, *, deps: Hook | None = None, graph: Any = count_up) -> list[int]:
    """Go on with a run to its end, and return its result."""
    return (await run_or_resume(graph, deps=deps, persistence=run)).output


async def fail(store: Store, run_id: str, at: int, message: str = 'bad luck') -> None:
    """Go on with a run, and let the node with this number raise."""

    async def bad_luck(number: int) -> None:
        if number == at:
            raise ValueError(message)

    with suppress(ValueError):
        await finish(store.run(run_id), deps=bad_luck)


async def in_hand(store: Store, run_id: str, status: SnapshotStatus = 'running') -> Persistence:
    """Return an instance that has the run's next node in hand, and never lets go of it."""
    persistence = store.run(run_id)
    record = await persistence.claim()
    assert record is not None
    if status == 'running':
        await persistence._commit(Commit(changes=[StatusChange(record.id, START, store.clock())]))
    return persistence


async def with_status(
    store: Store, run_id: str, status: SnapshotStatus, *, graph: Any = count_up, tags: Iterable[str] = ()
) -> Persistence | None:
    """Bring a new run to this status, and return who has it in hand then."""
    await begin(store, run_id, steps=4 if status == 'success' else 1, graph=graph, tags=tags)
    if status == 'error':
        await fail(store, run_id, at=2)
    return await in_hand(store, run_id, status) if status in ('pending', 'running') else None


# --------------------------------------------------------------------------------------------------- to look


async def info(store: Store, run_id: str) -> RunInfo:
    """Return what the store lists of this run."""
    (found,) = [run for run in await store.runs(limit=10_000) if run.id == run_id]
    return found


async def statuses(store: Store, run_id: str) -> list[str]:
    """Return the statuses of the run's snapshots, oldest first."""
    return [record.status for record in await store.history(run_id)]


async def keys(store: Store, run_id: str) -> list[str]:
    """Return the idempotency keys that the run's nodes were told."""
    persistence = store.run(run_id)
    persistence.set_graph_types(count_up)
    return (await persistence.last_state()).keys


async def nowhere(store: Store, run_id: str) -> bool:
    """Whether nothing is stored of this run."""
    return run_id not in [run.id for run in await store.runs(limit=10_000)]
