"""What the children of the crash tests do: run graphs that leave traces, and stop where they are told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import anyio
from pydantic_graph import BaseNode, End, GraphRunContext

import graphkeep.directories
import graphkeep.runfile
from graphkeep import (
    FileStatePersistence,
    Graph,
    GraphkeepError,
    SqliteStore,
    StatePersistence,
    run_or_resume,
)
from graphkeep.snapshots import now_utc
from tests.backends.faults import Call, FaultyOs

__all__ = (
    'ANSWER',
    'LENGTH',
    'PROCESSES',
    'Hang',
    'Step',
    'Trail',
    'chain',
    'child',
    'finish',
    'finish_crowd',
    'finish_dying',
    'hang_graph',
    'hang_in_lock',
    'hang_in_node',
    'heard',
    'hour_later',
    'logged',
    'opened',
    'run_chain',
    'run_quick',
)

LENGTH = 12
"""How many nodes the chain has."""
ANSWER = list(range(1, LENGTH + 1))
"""What it ends with."""

PROCESSES = multiprocessing.get_context('forkserver')
"""Starts children from a warm process: a child costs milliseconds and has no threads of its parent's."""
PROCESSES.set_forkserver_preload([__name__, 'pytest'])


@dataclass
class Trail:
    """Which nodes made this state, and some weight."""

    numbers: list[int] = field(default_factory=list[int])
    weight: str = ''


@dataclass
class Step(BaseNode[Trail, Path, list[int]]):
    """Leaves a line in the log, changes the state, and takes a moment over it."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Trail, Path]) -> Step | End[list[int]]:
        _log(ctx.deps, self.number)
        ctx.state.numbers.append(self.number)
        await anyio.sleep(0.001)
        return End(ctx.state.numbers) if self.number == LENGTH else Step(self.number + 1)


chain = Graph(nodes=(Step,), name='chain')


def _log(log: Path, line: object) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f'{line}\n'.encode())
    finally:
        os.close(fd)


def logged(log: Path) -> Counter[int]:
    """Return how often each node of the chain was run."""
    return Counter(int(line) for line in log.read_text().split()) if log.exists() else Counter()


def hour_later(hours: float = 1) -> datetime:
    """Be the clock of somebody for whom every lease has run out."""
    return now_utc() + timedelta(hours=hours)


# --------------------------------------------------------------------------------------------- for the parent


@contextmanager
def child(target: Callable[..., None], *args: object) -> Generator[tuple[ForkServerProcess, Connection]]:
    """Start a child with the far end of a pipe as its last argument, and kill it at the end if it lives."""
    near, far = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(*args, far))
    process.start()
    far.close()
    try:
        yield process, near
    finally:
        process.kill()
        process.join()
        process.close()
        near.close()


def heard(near: Connection, patience: float = 30) -> Any:
    """Return what the child sends next; fail rather than wait for ever."""
    if not near.poll(patience):
        raise AssertionError(f'the child said nothing for {patience:g} s')
    return near.recv()


# ---------------------------------------------------------------------------------------------- for the child


def opened(place: Path, **options: Any) -> StatePersistence[Any, Any]:
    """Return the persistence of the run in a file or, with a `.db` in its path, in that store."""
    if place.parent.suffix == '.db':
        return SqliteStore(place.parent, **options).run(place.name)
    return FileStatePersistence(place, **options)


async def run_chain(place: Path, log: Path, weight: int, **options: Any) -> list[int]:
    """Run the chain to its end from wherever it is; see `opened` for the place."""
    state = Trail(weight='x' * weight)
    persistence = opened(place, **options)
    result = await run_or_resume(chain, Step(), state=state, deps=log, persistence=persistence)
    return result.output


def finish(file: Path, log: Path, weight: int, ready: Connection) -> None:
    """Say that it begins, run the chain, and say how long that took."""
    ready.send('begins')
    begun = time.perf_counter()
    anyio.run(run_chain, file, log, weight)
    ready.send(time.perf_counter() - begun)


@dataclass
class Quick(BaseNode[Trail, Path, list[int]]):
    """Leaves a line in the log, changes the state, and waits for nothing."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Trail, Path]) -> Quick | End[list[int]]:
        _log(ctx.deps, self.number)
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == LENGTH else Quick(self.number + 1)


quick = Graph(nodes=(Quick,), name='quick')


async def run_quick(store: SqliteStore, run_id: str, log: Path) -> list[int]:
    """Run the quick nodes to their end from wherever they are."""
    persistence = store.run(run_id)
    result = await run_or_resume(quick, Quick(), state=Trail(), deps=log, persistence=persistence)
    return result.output


def finish_crowd(file: Path, logs: Mapping[str, Path], durability: Any, ready: Connection) -> None:
    """Say that it begins, run the quick nodes of many runs at once, and say how long that took."""

    async def main() -> None:
        store = SqliteStore(file, durability=durability)
        async with anyio.create_task_group() as tasks:
            for run_id, log in logs.items():
                tasks.start_soon(run_quick, store, run_id, log)

    ready.send('begins')
    begun = time.perf_counter()
    anyio.run(main)
    ready.send(time.perf_counter() - begun)


def finish_dying(file: Path, log: Path, at: int, how: str, ready: Connection) -> None:
    """Run the chain, and die at one call into the operating system: before, after or (a write) within it."""

    def die(call: Call) -> Any:
        if call.index != at:
            return call()
        if how == 'within' and call.name == 'write':
            os.write(call.args[0], call.args[1][: len(call.args[1]) // 2])
        try:
            return call() if how == 'after' else None
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    graphkeep.runfile.os = graphkeep.directories.os = FaultyOs(die)
    anyio.run(run_chain, file, log, 0)
    ready.send('survived')


@dataclass
class Hang(BaseNode[Trail, Connection | None, str]):
    """Tells its parent that it runs and, having a parent, waits for an answer."""

    async def run(self, ctx: GraphRunContext[Trail, Connection | None]) -> End[str]:
        ctx.state.numbers.append(1)
        if ctx.deps is None:
            return End('taken over')
        ctx.deps.send('in the node')
        try:
            while not ctx.deps.poll():  # noqa: ASYNC110 - the parent has only a pipe
                await anyio.sleep(0.01)
        except anyio.get_cancelled_exc_class():
            ctx.deps.send('cancelled')
            raise
        return End(ctx.deps.recv())


hang_graph = Graph(nodes=(Hang,), name='hang')


def hang_in_node(file: Path, lease: float, parent: Connection) -> None:
    """Run a node that waits for its parent, and tell the parent how the run ended."""

    async def main() -> str:
        persistence = opened(file, lease=lease)
        try:
            result = await run_or_resume(
                hang_graph, Hang(), state=Trail(), deps=parent, persistence=persistence
            )
        except GraphkeepError as exc:
            return type(exc).__name__
        return result.output

    parent.send(anyio.run(main))


def hang_in_lock(file: Path, log: Path, parent: Connection) -> None:
    """Run the chain, but stop at the first new file that is to take its place, with the lock held."""

    def stop(call: Call) -> Any:
        if call.name == 'replace' and not told:
            told.append(True)
            parent.send('in the lock')
            parent.recv()
        return call()

    told: list[bool] = []
    graphkeep.runfile.os = graphkeep.directories.os = FaultyOs(stop)
    parent.send(anyio.run(partial(run_chain, file, log, 0)))
