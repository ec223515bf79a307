"""One run under test, and what the clauses do with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

import anyio
import pytest

from ..commit import Commit, Receipt, StatusChange
from ..persistence import StatePersistence
from ..snapshots import now_utc
from ..status import TRANSITIONS, SnapshotStatus, TaskStatus, Transition
from .graphs import Ask, State, graph

__all__ = (
    'LOOPS',
    'PAIRS',
    'STATUSES',
    'Clauses',
    'Persistence',
    'RawSnapshot',
    'RunClauses',
    'RunUnderTest',
    'fail',
    'in_20_tasks',
    'observed',
    'opened',
    'with_status',
)


Persistence = StatePersistence[Any, Any]

LOOPS: Final = ('asyncio', 'trio') if find_spec('trio') else ('asyncio',)
"""The event loops that the clauses are run on: trio's too, where it is installed."""
STATUSES: Final[tuple[SnapshotStatus, ...]] = get_args(SnapshotStatus)
"""Every status."""
PAIRS: Final = [(transition, status) for transition in TRANSITIONS for status in STATUSES]
"""Every change that can be asked for, permitted or not."""


class RawSnapshot(NamedTuple):
    """One stored snapshot as the storage shows it, read without the persistence."""

    id: str
    """The snapshot's id."""
    kind: str
    """`'node'` or `'end'`; or what part of a run of a builder graph it is, see `commit.Kind`."""
    status: str
    """Its status; `'success'` for an end."""


async def _nothing() -> None:
    """Close nothing."""


@dataclass
class RunUnderTest:
    """One run in one storage."""

    open: Callable[[], Persistence]
    """Opens the run: again from the storage where that is possible, else the one instance there is."""
    raw: Callable[[], list[RawSnapshot]]
    """Reads what is stored, oldest first, without the persistence."""
    commit: Callable[[Commit], Awaitable[Receipt]]
    """Commits below the persistence, where the table of transitions is applied."""
    now: Callable[[], datetime] = now_utc
    """The clock that the storage has (UTC)."""
    close: Callable[[], Awaitable[None]] = _nothing
    """Closes what was opened for it."""

    async def change(self, snapshot_id: str, *transitions: Transition) -> None:
        """Commit these changes one after another, as somebody who leaves no name."""
        for transition in transitions:
            await self.commit(Commit(changes=[StatusChange(snapshot_id, transition, self.now())]))

    def statuses(self) -> list[str]:
        """Return the stored statuses, oldest first."""
        return [raw.status for raw in self.raw()]


@pytest.mark.anyio
class Clauses(ABC):  # noqa: B024 -- those derived from it have
    """What every clause starts from.

    A test class, one whose name begins with `Test`, that lacks a method cannot be defined: pytest passes over
    abstract classes in silence.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found = (getattr(cls, name, None) for name in dir(cls))
        missing = [method for method in found if getattr(method, '__isabstractmethod__', False)]
        if missing and cls.__name__.startswith('Test'):
            wanted = ' and '.join(f'`{method.__name__}`' for method in missing if method is not None)
            raise TypeError(
                f'{cls.__name__} lacks {wanted}, which {missing[0].__qualname__.partition(".")[0]} asks for: '  # pyright: ignore[reportOptionalMemberAccess]
                'give what is missing, or call the class something that does not begin with Test.'
            )

    @pytest.fixture(params=LOOPS)
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        """The event loop that a clause is run on."""
        return request.param


class RunClauses(Clauses):
    """What every clause about one run starts from."""

    @abstractmethod
    def make_run(self, directory: Path) -> RunUnderTest:
        """Make a run of which nothing is stored yet; `directory` is empty, and its own."""

    @pytest.fixture
    async def run(self, tmp_path: Path, anyio_backend: str) -> AsyncGenerator[RunUnderTest]:
        """A run of which nothing is stored yet."""
        run = self.make_run(_made(tmp_path / 'one'))
        yield run
        await run.close()

    @pytest.fixture
    async def other_run(self, tmp_path: Path, anyio_backend: str) -> AsyncGenerator[RunUnderTest]:
        """Another one."""
        run = self.make_run(_made(tmp_path / 'other'))
        yield run
        await run.close()


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _way_to(status: SnapshotStatus) -> list[Transition]:
    """Return the shortest way to a status, as the table has it."""
    ways: dict[TaskStatus, list[Transition]] = {'created': []}
    while status not in ways:
        for source, way in tuple(ways.items()):
            for transition in TRANSITIONS:
                if source in transition.sources:
                    ways.setdefault(transition.target, [*way, transition])
    return ways[status]


async def with_status(run: RunUnderTest, status: SnapshotStatus) -> tuple[Persistence, str]:
    """Store a snapshot, and bring it to this status below the persistence."""
    persistence = opened(run)
    await persistence.snapshot_node(State(), Ask())
    (stored,) = run.raw()
    await run.change(stored.id, *_way_to(status))
    return persistence, stored.id


def opened(run: RunUnderTest) -> Persistence:
    """Open the run and tell it the graph."""
    persistence = run.open()
    persistence.set_graph_types(graph)
    return persistence


@contextmanager
def observed(persistence: Persistence, observe: Callable[[Commit], None]) -> Generator[None]:
    """Call `observe` after each commit that the instance makes."""
    hidden = cast('Any', persistence)
    commit = hidden._commit

    async def spy(commit_: Commit) -> Receipt:
        receipt = await commit(commit_)
        observe(commit_)
        return receipt

    hidden._commit = spy
    try:
        yield
    finally:
        del hidden._commit


async def fail(persistence: Persistence, snapshot_id: str, exc: Exception | None = None) -> None:
    """Run a node that raises."""
    with suppress(type(exc) if exc else ValueError):
        async with persistence.record_run(snapshot_id):
            raise exc or ValueError('bad luck')


async def in_20_tasks(func: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Call `func` from 20 tasks at once, and return what each got."""
    results: list[Any] = []

    async def call() -> None:
        results.append(await func())

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call)
    return results
