"""Crashes after each commit: a run dies, and is gone on with from what its store holds, by somebody new.

Nothing of the dead run is left to the one who goes on: the store is opened anew, the graph is built anew, the
deps are new, and of state and inputs there is what can be decoded.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

import anyio
import pytest

import graphkeep
from graphkeep import FileStore, MemoryStore, SqliteStore, Store, StoredStatePersistence
from graphkeep.backend import RunBackend, Turn
from graphkeep.commit import Commit, Receipt, Row, Tail
from graphkeep.testing.clock import LEASE, Clock
from graphkeep.tracking import Tracker
from tests.builder.corpus.cases import Case, delays, plain

__all__ = (
    'STORES',
    'UNCLOSED',
    'BuilderRuns',
    'Died',
    'Dying',
    'Place',
    'Report',
    'Runs',
    'crash_points',
    'dying',
    'places',
    'rule_off',
)

Persistence = StoredStatePersistence[Any, Any]

UNCLOSED: Final = pytest.mark.filterwarnings('ignore:Async generator .*:ResourceWarning')
"""What a test is marked with that lets runs die: the host does not close what is being streamed then."""

_SECONDS: Final = 20
"""How long one run may take before it counts as hanging."""


# ------------------------------------------------------------------------------------------ how a run dies


class Died(BaseException):
    """What a process that has died would not live to see: nobody is meant to catch it."""


class Dying(RunBackend):
    """A run's backend that lets so many commits through, and stores nothing after that."""

    def __init__(self, backend: RunBackend, after: int | None):
        self.backend = backend
        self.after = after
        self.run_id, self.clock = backend.run_id, backend.clock
        self.commits = 0
        """How many commits were made."""
        self.died = False
        """Whether one more was tried."""

    @property
    def prompt(self) -> bool:  # type: ignore[override]
        """As the backend that dies."""
        return self.backend.prompt

    @property
    def queues(self) -> bool:  # type: ignore[override]
        """As the backend that dies."""
        return self.backend.queues

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def write(self, turn: Turn) -> Receipt | Future[Receipt]:
        """Make one commit, or die."""
        return self._counted(lambda: self.backend.write(turn))

    def queue(self, turn: Turn) -> Future[Receipt]:
        """Have one commit made, or die."""
        return self._counted(lambda: self.backend.queue(turn))

    def commit(self, commit: Commit) -> Receipt:
        """Make one commit, or die."""
        return self._counted(lambda: self.backend.commit(commit))

    def tail(self) -> Tail:
        """Return the end of the run."""
        return self.backend.tail()

    def rows(self) -> Any:
        """Return every row."""
        rows: list[Row] = list(self.backend.rows())
        return rows

    def _counted(self, made: Callable[[], Any]) -> Any:
        if self.died or (self.after is not None and self.commits >= self.after):
            self.died = True
            raise Died(f'the process died at its commit {self.commits + 1}')
        outcome = made()
        self.commits += 1
        return outcome


def dying(persistence: Persistence, after: int | None) -> Dying:
    """Let a persistence make so many commits and then die; with `None`, only count them.

    The seam: the one place that knows where a persistence has its backend.
    """
    backend = Dying(persistence._backend, after)
    persistence._backend = backend
    persistence._claims.backend = backend
    return backend


# --------------------------------------------------------------------------------------- where it is stored


class _Opening(Protocol):
    def __call__(self, directory: Path, clock: Clock, /) -> Store: ...


def _memory(directory: Path, clock: Clock) -> Store:
    return MemoryStore(lease=LEASE, clock=clock)


def _file(directory: Path, clock: Clock) -> Store:
    return FileStore(directory / 'runs', lease=LEASE, clock=clock)


def _sqlite(directory: Path, clock: Clock) -> Store:
    return SqliteStore(directory / 'runs.db', lease=LEASE, clock=clock)


STORES: Final[dict[str, _Opening]] = {'memory': _memory, 'file': _file, 'sqlite': _sqlite}
"""Every store, by its name."""


@dataclass
class Place:
    """A storage of its own for one run, which outlives the stores that are opened on it."""

    name: str
    directory: Path
    clock: Clock = field(default_factory=Clock)
    _memory: Store | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Store]:
        """Open a store; one in memory, which holds encoded runs only, is the same one each time."""
        store = self._memory or STORES[self.name](self.directory, self.clock)
        if self.name == 'memory':
            self._memory = store
        try:
            yield store
        finally:
            if self.name != 'memory':
                with anyio.CancelScope(shield=True):
                    await store.aclose()

    def mourn(self) -> None:
        """Let so much time go by that the owner, which renews nothing any more, has lost the run."""
        self.clock.forward(2 * LEASE)


def places(name: str, directory: Path) -> Callable[[], Place]:
    """Return what makes another place of this kind, each in a directory of its own."""
    numbers = count()

    def place() -> Place:
        own = directory / f'{next(numbers)}'
        own.mkdir(parents=True)
        return Place(name, own)

    return place


# ------------------------------------------------------------------------------------------- what is crashed


class Runs(Protocol):
    """Something whose runs are crashed."""

    @property
    def name(self) -> str:
        """What they are runs of."""
        ...

    async def expected(self) -> Any:
        """Return what a run comes to that nothing interferes with."""
        ...

    async def go_on(self, persistence: Persistence) -> Any:
        """Start the run or go on with it, to its end; return what it comes to."""
        ...

    async def recorded(self, persistence: Persistence) -> Any:
        """Return the same of a run that has finished, without running anything."""
        ...

    @property
    def same_tasks(self) -> bool:
        """Whether each run has the same tasks, however they are scheduled."""
        ...


@dataclass
class BuilderRuns:
    """The runs of a case of the corpus, each by a graph that was built for it alone."""

    case: Case
    tracking: str = 'exact'
    seed: int = 0
    """Of the delays; each run has others."""

    @property
    def name(self) -> str:
        """The case's."""
        return self.case.name

    @property
    def same_tasks(self) -> bool:
        """Unless chance decides which tasks are cancelled before they end."""
        return not self.case.kinds & {'cancel siblings', 'first value', 'several ends', 'race to the end'}

    async def expected(self) -> Any:
        """Return what the plain host's graph comes to."""
        return await plain(self.case)

    async def go_on(self, persistence: Persistence) -> Any:
        """Start the run or go on with it, to its end."""
        self.seed += 1
        with delays(self.seed):
            return await self._outcome(persistence)

    async def recorded(self, persistence: Persistence) -> Any:
        """Return what is recorded, by both of the calls that a service makes."""
        outcome = await self._outcome(persistence)
        output: Any = await graphkeep.run_or_resume(self._graph(), **self._arguments(persistence))
        async with graphkeep.iter_or_resume(self._graph(), **self._arguments(persistence)) as run:
            builder_run: Any = run
            assert self.case.normalise(output, deepcopy(builder_run.state)) == outcome
        return outcome

    async def _outcome(self, persistence: Persistence) -> Any:
        async with graphkeep.iter_or_resume(self._graph(), **self._arguments(persistence)) as run:
            async for _ in run:
                pass
            builder_run: Any = run
            return self.case.normalise(deepcopy(builder_run.output), deepcopy(builder_run.state))

    def _graph(self) -> Any:
        persistent: Any = getattr(graphkeep, 'PersistentGraph')  # noqa: B009 -- until there is one
        return persistent(self.case.build(), types=self.case.types, tracking=self.tracking)

    def _arguments(self, persistence: Persistence) -> dict[str, Any]:
        case = self.case
        return {
            'state': case.state(),
            'inputs': case.inputs(),
            'deps': case.deps(),
            'persistence': persistence,
        }


# --------------------------------------------------------------------------------------------- the crashing


@dataclass
class Report:
    """What came of crashing."""

    points: int = 0
    """How many crashes there were."""
    differences: list[str] = field(default_factory=list[str])
    """What was other than expected after a crash, in words."""

    def check(self) -> None:
        """Fail if there is a difference."""
        assert not self.differences, '\n'.join([f'of {self.points} crash points:', *self.differences])


async def crash_points(
    runs: Runs, place: Callable[[], Place], *, first: int | None = None, second: int | None = None
) -> Report:
    """Let a run die after each of its commits, and while it is gone on with die again; compare the results.

    Args:
        runs: What is crashed.
        place: Makes a place for each run.
        first: After how many of the commits, chosen by chance, to crash; by default after each one.
        second: For each of these, how often to crash again, while the run is gone on with; by default after
            each commit then made.
    """
    try:
        return await _crash_points(runs, place, first, second)
    finally:
        gc.collect()  # what the dead have left, while it is known whose it was


async def _crash_points(
    runs: Runs, place: Callable[[], Place], first: int | None, second: int | None
) -> Report:
    crashing = _Crashing(runs, place, await runs.expected(), Random(runs.name))  # noqa: S311
    whole = place()
    commits = await crashing.attempt(whole, None, 'without a crash')
    if crashing.report.differences or commits is None:
        return crashing.report
    for k in crashing.chosen(commits, first):
        once = place()
        if await crashing.attempt(once, k, f'before commit {k + 1}') is not None:
            continue  # by chance it took less commits than the first time
        crashing.report.points += 1
        again = await crashing.attempt(once, None, f'after a crash at {k}')
        for j in crashing.chosen(again or 0, second):
            twice = place()
            if await crashing.attempt(twice, k, f'before commit {k + 1}') is not None:
                continue
            if await crashing.attempt(twice, j, f'after a crash at {k}, before commit {j + 1}') is not None:
                continue
            crashing.report.points += 1
            await crashing.attempt(twice, None, f'after crashes at {k} and {j}')
    return crashing.report


@dataclass
class _Crashing:
    runs: Runs
    place: Callable[[], Place]
    expected: Any
    chance: Random
    report: Report = field(default_factory=Report)
    tasks: Counter[Any] | None = None
    """The tasks that succeeded without a crash."""

    def chosen(self, commits: int, most: int | None) -> list[int]:
        """Choose after how many of these commits to crash: never after the last, for that is no crash."""
        if most is None or most >= commits:
            return list(range(commits))
        return sorted(self.chance.sample(range(commits), most))

    async def attempt(self, place: Place, after: int | None, when: str) -> int | None:
        """Start the run or go on with it; return how many commits that took, or `None` if it died."""
        async with place.open() as store:
            persistence = store.run('run')
            backend = dying(persistence, after)
            found = await self._found(persistence, backend, when)
            if not backend.died:
                self._compare(found, when)
        del persistence, store
        if backend.died:
            place.mourn()
            return None
        if found is not _NOTHING:
            async with place.open() as store:
                self._compare(await self._recorded(store.run('run'), when), f'as recorded {when}')
                await self._check_store(store, when)
        return backend.commits

    def _compare(self, found: Any, when: str) -> None:
        if found is not _NOTHING and found != self.expected:
            self._differs(when, f'expected {self.expected}\n      found {found}')

    async def _check_store(self, store: Store, when: str) -> None:
        """Nobody has a run that has ended, and what had succeeded before a crash was not run again."""
        (info,) = await store.runs()
        if (info.status, info.owner) != ('success', None):
            self._differs(when, f'the run is left {info.status}, and its owner is {info.owner}')
        tasks = Counter(
            record.node_id  # its path may tell which item came to a join first
            for record in await store.history('run')
            if (record.kind, record.status) == ('task', 'success')
        )
        if self.tasks is None:
            self.tasks = tasks
        elif self.runs.same_tasks and tasks != self.tasks:
            self._differs(when, f'succeeded too often: {tasks - self.tasks}, or never: {self.tasks - tasks}')

    async def _found(self, persistence: Persistence, backend: Dying, when: str) -> Any:
        try:
            with anyio.fail_after(_SECONDS):
                return await self.runs.go_on(persistence)
        except BaseException as exc:
            if backend.died:
                return _NOTHING  # whatever that has become of its death on its way here
            if not isinstance(exc, Exception):
                raise
            self._differs(when, f'raised {type(exc).__name__}: {exc}')
            return _NOTHING

    async def _recorded(self, persistence: Persistence, when: str) -> Any:
        try:
            with anyio.fail_after(_SECONDS):
                return await self.runs.recorded(persistence)
        except Exception as exc:
            self._differs(f'as recorded {when}', f'raised {type(exc).__name__}: {exc}')
            return _NOTHING

    def _differs(self, when: str, how: str) -> None:
        self.report.differences.append(f'  {self.runs.name} {when}: {how}')


_NOTHING: Final = object()


def rule_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the rule off that a commit waits while a task in flight has changed the state."""

    def always(tracker: Tracker) -> bool:
        return True

    monkeypatch.setattr(Tracker, 'may_store', always)
