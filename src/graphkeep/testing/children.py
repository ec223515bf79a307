"""Child processes that use the store under test: what they do, and how they are told and watched."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import anyio
from pydantic_graph import BaseNode, End, GraphRunContext

from ..commit import Commit, Receipt
from ..errors import OwnershipLostError, RunOwnedError, SnapshotStatusError
from ..graph import Graph
from ..resume import run_or_resume
from ..store import Store
from .clock import LEASE, Clock
from .stores import StoreClauses

__all__ = (
    'LENGTH',
    'PROCESSES',
    'Link',
    'Trail',
    'chain',
    'child',
    'claim_all',
    'finish',
    'heard',
    'logged',
    'run_chain',
    'start_each',
)

LENGTH = 4
"""How many nodes the chain has."""

PROCESSES: Final = multiprocessing.get_context(
    'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
)
"""Starts children that have no threads of their parent's; from a warm process where that is possible."""
if 'forkserver' in multiprocessing.get_all_start_methods():
    cast('Any', PROCESSES).set_forkserver_preload([__name__, 'pytest'])


@dataclass
class Trail:
    """Which nodes made this state."""

    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Link(BaseNode[Trail, Path, list[int]]):
    """Leaves a line in the log and in the state, and goes on to the next link."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Trail, Path]) -> Link | End[list[int]]:
        """Leave the line."""
        log(ctx.deps, f'ran {self.number}')
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == LENGTH else Link(self.number + 1)


chain = Graph(nodes=(Link,), name='chain')


def log(file: Path, line: str) -> None:
    """Append a line in one call into the operating system, so that it outlives the process."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, f'{line}\n'.encode())
    finally:
        os.close(fd)


def logged(file: Path) -> Counter[str]:
    """Return how often each line is in the log."""
    return Counter(file.read_text(encoding='utf-8').splitlines()) if file.exists() else Counter()


async def run_chain(store: Store, run_id: str, file: Path) -> list[int]:
    """Run the chain to its end from wherever it is; log each commit once it is acknowledged."""
    persistence = store.run(run_id)
    hidden = cast('Any', persistence)
    commit = hidden._commit

    async def logging(commit_: Commit) -> Receipt:
        receipt = await commit(commit_)
        for row in commit_.rows:
            log(file, f'stored {row.record.id}')
        for change in commit_.changes:
            log(file, f'{change.transition.name} {change.snapshot_id}')
        return receipt

    hidden._commit = logging
    result = await run_or_resume(chain, Link(), state=Trail(), deps=file, persistence=persistence)
    return result.output


# --------------------------------------------------------------------------------------------- for the parent


@contextmanager
def child(target: Callable[..., None], *args: object) -> Generator[tuple[BaseProcess, Connection]]:
    """Start a child with the far end of a pipe as its last argument, and kill it at the end if it lives."""
    near, far = PROCESSES.Pipe()
    process = cast('Any', PROCESSES).Process(target=target, args=(*args, far))
    process.start()
    far.close()
    try:
        yield process, near
    finally:
        process.kill()
        process.join()
        process.close()
        near.close()


def heard(near: Connection, patience: float = 60) -> Any:
    """Return what the child sends next; fail rather than wait for ever."""
    if not near.poll(patience):
        raise AssertionError(f'the child said nothing for {patience:g} s')
    return near.recv()


# ---------------------------------------------------------------------------------------------- for the child


class Doom:
    """Counts the calls of a process into C functions, and kills it at one of them.

    The calls of this library and of the store count, and what they call; not those of the event loop.
    """

    def __init__(self, at: int | None):
        self.count = 0
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Count, and die."""
        if not event.startswith('c_') or frame.f_globals.get('__name__', '').startswith(_SPARED):
            return
        self.count += 1
        if self.count == self._at:
            os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))


_SPARED: Final = (
    __name__,
    'anyio',
    'asyncio',
    'concurrent',
    'dataclasses',
    'enum',
    'functools',
    'graphkeep.codec',
    'graphkeep.faithful',
    'importlib',
    'inspect',
    'pydantic',
    'selectors',
    'threading',
    'typing',
)


def finish(
    contract: type[StoreClauses],
    directory: Path,
    clock: Clock,
    file: Path,
    at: int | None,
    parent: Connection,
) -> None:
    """Run the chain to its end, and die at one call on the way; else tell how many there were."""
    doom = Doom(at)

    async def main() -> list[int]:
        store = contract().open_store(directory, clock, LEASE)
        try:
            return await run_chain(store, 'run', file)
        finally:
            await store.aclose()

    threading.setprofile(doom)
    sys.setprofile(doom)
    output = anyio.run(main)
    sys.setprofile(None)
    threading.setprofile(None)
    parent.send((output, doom.count))


def start_each(
    contract: type[StoreClauses],
    directory: Path,
    clock: Clock,
    runs: dict[str, str],
    together: Barrier,
    parent: Connection,
) -> None:
    """Start the first snapshot of each of the runs at the same moment as the others; tell what came of it."""

    async def start(store: Store, run_id: str, snapshot_id: str) -> str:
        persistence = store.run(run_id)
        persistence.set_graph_types(chain)
        together.wait(60)
        try:
            async with persistence.record_run(snapshot_id):
                pass
            await persistence.snapshot_node(Trail([1]), Link(2))
        except (SnapshotStatusError, RunOwnedError, OwnershipLostError) as exc:
            return type(exc).__name__
        return 'won'

    async def main() -> list[str]:
        store = contract().open_store(directory, clock, LEASE)
        try:
            return [await start(store, run_id, snapshot_id) for run_id, snapshot_id in runs.items()]
        finally:
            await store.aclose()

    parent.send(anyio.run(main))


def claim_all(
    contract: type[StoreClauses],
    directory: Path,
    clock: Clock,
    file: Path,
    together: Barrier,
    parent: Connection,
) -> None:
    """Claim runs and finish them until there are none left; tell which."""

    async def main() -> list[str]:
        store = contract().open_store(directory, clock, LEASE)
        found: list[str] = []
        try:
            together.wait(60)
            while (persistence := await store.claim()) is not None:
                log_ = file.with_name(f'{persistence.run_id}.log')
                await run_or_resume(chain, deps=log_, persistence=persistence)
                found.append(persistence.run_id)
            return found
        finally:
            await store.aclose()

    parent.send(anyio.run(main))
