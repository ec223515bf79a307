"""A run that is cancelled at any moment: nothing is left in hand, and it goes on to the right result.

The moments are found by counting. A first series stops wherever the run can be interrupted: before and after
each use of the storage, and at each await of a node. A second one lets the event loop turn k times.
"""

from __future__ import annotations

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import anyio
import anyio.lowlevel
import pytest
import trio
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    FileStatePersistence,
    FullStatePersistence,
    Graph,
    LockTimeoutError,
    MemoryStore,
    SimpleStatePersistence,
    StatePersistence,
    StorageError,
    iter_or_resume,
    run_or_resume,
)
from graphkeep.backend import LockBusy, RunBackend
from graphkeep.commit import Commit, Receipt, Row, Tail
from graphkeep.testing.cancelling import ByScope, ByTask, Canceller, cancelled_after
from tests.rawfile import stored

pytestmark = pytest.mark.anyio

Persistence = StatePersistence[Any, Any]
Moment = Literal['before', 'after', 'node']


# ------------------------------------------------------------------------------------------------- the graph


@dataclass
class State:
    """What the nodes do, and how often."""

    done: list[str] = field(default_factory=list[str])
    total: int = 0


@dataclass
class Deps:
    """Watches the nodes from outside of the run."""

    started: list[str] = field(default_factory=list[str])
    reach: Callable[[Moment], None] = lambda _: None


async def work(name: str, ctx: GraphRunContext[State, Deps], total: int) -> None:
    """Change the state, with an await before, in between and afterwards."""
    ctx.deps.started.append(name)
    for change in (
        lambda: ctx.state.done.append(name),
        lambda: setattr(ctx.state, 'total', total),
        lambda: None,
    ):
        ctx.deps.reach('node')
        await anyio.lowlevel.checkpoint()
        change()


@dataclass
class One(BaseNode[State, Deps, int]):
    async def run(self, ctx: GraphRunContext[State, Deps]) -> Two:
        await work('One', ctx, 1)
        return Two(1)


@dataclass
class Two(BaseNode[State, Deps, int]):
    value: int

    async def run(self, ctx: GraphRunContext[State, Deps]) -> Three:
        await work('Two', ctx, self.value + 1)
        return Three(self.value + 1)


@dataclass
class Three(BaseNode[State, Deps, int]):
    value: int

    async def run(self, ctx: GraphRunContext[State, Deps]) -> Four:
        await work('Three', ctx, self.value + 1)
        return Four(self.value + 1)


@dataclass
class Four(BaseNode[State, Deps, int]):
    value: int

    async def run(self, ctx: GraphRunContext[State, Deps]) -> End[int]:
        await work('Four', ctx, self.value + 1)
        return End(self.value + 1)


@dataclass
class Failing(BaseNode[State, Deps, int]):
    async def run(self, ctx: GraphRunContext[State, Deps]) -> End[int]:
        raise ValueError('bad luck')


graph = Graph(nodes=(One, Two, Three, Four, Failing), auto_instrument=False)


# --------------------------------------------------------------------------------------- storages under watch


class Watched(RunBackend):
    """Tells before and after each use of the storage below, on the event loop's thread or in a worker's."""

    def __init__(self, below: RunBackend, reach: Callable[[Moment], None], *, prompt: bool):
        self.below = below
        self.run_id = below.run_id
        self.clock = below.clock
        self.prompt = prompt
        self._reach = reach

    def commit(self, commit: Commit) -> Receipt:
        with self._watched():
            return self.below.commit(commit)

    def tail(self) -> Tail:
        with self._watched():
            return self.below.tail()

    def rows(self) -> Any:
        with self._watched():
            return self.below.rows()

    @contextmanager
    def _watched(self) -> Generator[None]:
        self._reach('before')
        yield
        self._reach('after')


class Storage(ABC):
    """One run in a storage that can be opened again, watched, and read without the persistence."""

    live = False
    """Whether the stored state is the run's own object."""

    @abstractmethod
    def open(self) -> Persistence: ...

    @abstractmethod
    def watch(self, reach: Callable[[Moment], None]) -> Persistence: ...

    @abstractmethod
    def nodes(self) -> list[tuple[str, str]]:
        """Return node id and status of every node that is stored."""

    @abstractmethod
    def is_free(self) -> bool:
        """Whether nobody has the run, and nobody has it locked."""


class Live(Storage):
    """A run in live objects: one instance, which is its own storage."""

    def __init__(self, persistence: Any):
        self.persistence = persistence
        self.live = not isinstance(persistence, FullStatePersistence)

    def open(self) -> Persistence:
        self.persistence.__dict__.pop('_commit', None)
        return self.persistence

    def watch(self, reach: Callable[[Moment], None]) -> Persistence:
        hidden = self.persistence
        commit = hidden._commit

        async def watched(commit_: Commit) -> Receipt:
            reach('before')
            receipt = await commit(commit_)
            reach('after')
            return receipt

        hidden._commit = watched
        return self.persistence

    def nodes(self) -> list[tuple[str, str]]:
        snapshots: Sequence[Any] = [self.persistence.last_snapshot] if self.live else self.persistence.history
        return [(s.node.get_node_id(), s.status) for s in snapshots if s is not None and s.kind == 'node']

    def is_free(self) -> bool:
        return True


class InMemory(Storage):
    """A run in a `MemoryStore`."""

    def __init__(self, *, prompt: bool):
        self.store = MemoryStore()
        self.store.run('run')
        self.prompt = prompt

    def open(self) -> Persistence:
        return self.store.run('run')

    def watch(self, reach: Callable[[Moment], None]) -> Persistence:
        return watched(self.open(), reach, prompt=self.prompt)

    def _rows(self) -> list[Row]:
        return cast('Any', self.store)._held['run'].rows()

    def nodes(self) -> list[tuple[str, str]]:
        return [(r.record.node_id, r.record.status) for r in self._rows() if r.record.kind == 'node']

    def is_free(self) -> bool:
        return cast('Any', self.store)._held['run'].tail().ownership.owner is None


class InFile(Storage):
    """A run in a JSON file."""

    def __init__(self, path: Path, *, prompt: bool, durability: Literal['normal', 'full'] = 'normal'):
        self.path = path
        self.prompt = prompt
        self.durability: Literal['normal', 'full'] = durability

    def open(self) -> Persistence:
        return FileStatePersistence(self.path, lock_timeout=0, durability=self.durability)

    def watch(self, reach: Callable[[Moment], None]) -> Persistence:
        return watched(self.open(), reach, prompt=self.prompt)

    def _rows(self) -> list[dict[str, Any]]:
        return stored(self.path)

    def nodes(self) -> list[tuple[str, str]]:
        return [(row['node']['node_id'], row['status']) for row in self._rows() if row['kind'] == 'node']

    def is_free(self) -> bool:
        left = {p.name for p in self.path.parent.iterdir()} - {self.path.name, f'.{self.path.name}.lock'}
        return not left and not any('held_by' in row.get('graphkeep', {}) for row in self._rows())


def watched(persistence: Persistence, reach: Callable[[Moment], None], *, prompt: bool) -> Persistence:
    """Put a watch between a persistence and its storage."""
    hidden = cast('Any', persistence)
    hidden._backend = hidden._claims.backend = Watched(hidden._backend, reach, prompt=prompt)
    return persistence


STORAGES: dict[str, Callable[[Path], Storage]] = {
    'simple': lambda _: Live(SimpleStatePersistence()),
    'full': lambda _: Live(FullStatePersistence()),
    'memory': lambda _: InMemory(prompt=True),
    'memory in threads': lambda _: InMemory(prompt=False),
    'file': lambda path: InFile(path, prompt=True),
    'file in threads': lambda path: InFile(path, prompt=False),
    'durable file': lambda path: InFile(path, prompt=False, durability='full'),
}


# --------------------------------------------------------------------------------------------- ways to cancel


class ByTimeout(Canceller):
    """`asyncio.timeout`, which turns its own cancellation into a `TimeoutError`."""

    async def run(self, func: Callable[[], Awaitable[object]]) -> None:
        try:
            async with asyncio.timeout(None) as self.timeout:
                await func()
                for _ in range(3):
                    await asyncio.sleep(0)
        except TimeoutError:
            self.caught = True

    def cancel(self) -> None:
        if not self.timeout.expired():
            self.timeout.reschedule(0)


class ByTrioScope(Canceller):
    """trio's own cancel scope."""

    async def run(self, func: Callable[[], Awaitable[object]]) -> None:
        with trio.CancelScope() as self.scope:
            await func()
            await trio.lowlevel.checkpoint()
        self.caught = self.scope.cancelled_caught

    def cancel(self) -> None:
        self.scope.cancel()


CANCELLERS: list[tuple[str, type[Canceller]]] = [
    ('asyncio', ByTask),
    ('asyncio', ByTimeout),
    ('asyncio', ByScope),
    ('trio', ByScope),
    ('trio', ByTrioScope),
]


class Reaper:
    """Counts the moments at which a run can be interrupted; cancels at one, or at all from it on."""

    def __init__(self, canceller: Canceller, at: int, *, storm: bool = False):
        self.canceller = canceller
        self.at = at
        self.storm = storm
        self.reached = 0
        self._home = threading.get_ident()
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
            self._token = trio.lowlevel.current_trio_token()

    @property
    def struck(self) -> bool:
        """Whether the moment came."""
        return self.reached >= self.at

    def reach(self, moment: Moment) -> None:
        """Count; in a worker thread, wait until the cancellation has reached the task."""
        self.reached += 1
        if self.reached != self.at and not (self.storm and self.reached > self.at):
            return
        if threading.get_ident() == self._home:
            self.canceller.cancel()
        elif self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result()
        else:
            trio.from_thread.run(self._cancel, trio_token=self._token)

    async def _cancel(self) -> None:
        self.canceller.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(6):
                await anyio.lowlevel.checkpoint()


# -------------------------------------------------------------------------------------------------- the tests


async def run_graph(persistence: Persistence, deps: Deps) -> object:
    """Run by the host's own verb."""
    return await graph.run(One(), state=State(), deps=deps, persistence=persistence)


async def run_stored(persistence: Persistence, deps: Deps) -> object:
    """Start or go on."""
    return await run_or_resume(graph, One(), state=State(), deps=deps, persistence=persistence)


async def drive(persistence: Persistence, deps: Deps) -> None:
    """Run node by node."""
    async with graph.iter(One(), state=State(), deps=deps, persistence=persistence) as run:
        while not isinstance(await run.next(), End):
            await anyio.lowlevel.checkpoint()


async def check_what_is_left(storage: Storage, deps: Deps) -> None:
    """Nobody has the run in hand, and it goes on to the right result; what had succeeded is not run again."""
    nodes = storage.nodes()
    assert {status for _, status in nodes} <= {'created', 'success'}
    assert storage.is_free()
    succeeded = {node for node, status in nodes if status == 'success'}
    runs = {node: deps.started.count(node) for node in succeeded}
    result = await run_or_resume(graph, One(), state=State(), deps=deps, persistence=storage.open())
    assert (result.output, result.state.total) == (4, 4)
    assert runs == {node: deps.started.count(node) for node in succeeded}
    if not storage.live:
        assert result.state.done == ['One', 'Two', 'Three', 'Four']
    assert {deps.started.count(node) for node in ('One', 'Two', 'Three', 'Four')} <= {1, 2}


async def left_in_the_middle(persistence: Persistence, deps: Deps) -> None:
    """Leave a run after a step, and go on with it."""
    async with iter_or_resume(graph, One(), state=State(), deps=deps, persistence=persistence) as run:
        await run.next()
    await run_stored(persistence, deps)


MOMENTS = [
    *((where, run_stored, storm) for where in STORAGES for storm in (False, True) if where != 'durable file'),
    *((where, run_graph, False) for where in STORAGES if where != 'durable file'),
    *((where, way, False) for where in ('full', 'file in threads') for way in (drive, left_in_the_middle)),
]


@pytest.mark.parametrize('where, way, storm', MOMENTS, ids=lambda v: getattr(v, '__name__', str(v)))
@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
async def test_every_moment(
    tmp_path: Path,
    where: str,
    canceller_type: type[Canceller],
    way: Callable[[Persistence, Deps], Awaitable[object]],
    storm: bool,
):
    """Cancelled before, in or after any use of the storage, or within a node: nothing is left in hand."""
    at = 0
    while True:
        at += 1
        storage = STORAGES[where](tmp_path / str(at) / 'run.json')
        (tmp_path / str(at)).mkdir()
        canceller = canceller_type()
        reaper = Reaper(canceller, at, storm=storm)
        deps = Deps(reach=reaper.reach)
        persistence = storage.watch(reaper.reach)
        await canceller.run(lambda p=persistence, d=deps: way(p, d))
        assert canceller.caught == reaper.struck, 'a cancellation was swallowed, or came from nowhere'
        await check_what_is_left(storage, Deps(deps.started))
        if not reaper.struck:
            break
    assert at > 20, 'the moments were not found'


@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
@pytest.mark.parametrize('where', [where for where in STORAGES if where != 'durable file'])
async def test_every_turn_of_the_loop(tmp_path: Path, where: str, canceller_type: type[Canceller]):
    """Cancelled after k turns of the event loop, for every k: nothing is left in hand, ever."""
    done = False
    turns = 0
    while not done:
        storage = STORAGES[where](tmp_path / str(turns) / 'run.json')
        (tmp_path / str(turns)).mkdir()
        canceller = canceller_type()
        deps = Deps()
        run = partial(run_stored, storage.watch(lambda _: None), deps)
        await cancelled_after(turns, canceller, run)
        await check_what_is_left(storage, deps)
        done = not canceller.caught
        turns += 1 if turns < 40 else 1 + turns // 10
    assert turns > 10, 'it was over too soon'


@pytest.mark.parametrize('where', STORAGES)
@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
async def test_failing_node(tmp_path: Path, where: str, canceller_type: type[Canceller]):
    """Cancelled while the failure of a node is written: it is written, and the cancellation goes on."""
    moments = 0
    at = 0
    while True:
        at += 1
        storage = STORAGES[where](tmp_path / str(at) / 'run.json')
        (tmp_path / str(at)).mkdir()
        canceller = canceller_type()
        reaper = Reaper(canceller, at)
        persistence = storage.watch(reaper.reach)

        async def fail(persistence: Persistence = persistence) -> None:
            try:
                await graph.run(Failing(), state=State(), deps=Deps(), persistence=persistence)
            except ValueError:
                await anyio.lowlevel.checkpoint()

        await canceller.run(fail)
        assert canceller.caught == reaper.struck
        assert storage.is_free()
        assert {status for _, status in storage.nodes()} <= {'created', 'error'}
        moments += ('Failing', 'error') in storage.nodes() and reaper.struck
        if not reaper.struck:
            break
    assert moments >= 2, 'no cancellation came while the failure was written'


@pytest.mark.parametrize('where', STORAGES)
@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
async def test_every_moment_of_a_claim(tmp_path: Path, where: str, canceller_type: type[Canceller]):
    """A `load_next` that is cancelled and hands out nothing leaves nothing pending."""
    at = 0
    while True:
        at += 1
        storage = STORAGES[where](tmp_path / str(at) / 'run.json')
        (tmp_path / str(at)).mkdir()
        await graph.initialize(One(), storage.open(), state=State())
        canceller = canceller_type()
        reaper = Reaper(canceller, at)
        persistence = storage.watch(reaper.reach)
        handed_out: list[object] = []

        async def claim(
            persistence: Persistence = persistence, handed_out: list[object] = handed_out
        ) -> None:
            persistence.set_graph_types(graph)
            handed_out.append(await persistence.load_next())
            await anyio.lowlevel.checkpoint()

        await canceller.run(claim)
        struck = reaper.struck
        assert canceller.caught == struck
        if handed_out:
            reaper.at = -1  # it has struck, or never will
            assert storage.nodes() == [('One', 'pending')]
            await persistence.release()
        await check_what_is_left(storage, Deps())
        if not struck:
            break
    assert at > 2, 'the moments were not found'


@pytest.mark.both_backends
@pytest.mark.parametrize('where', ['simple', 'full', 'memory', 'file', 'file in threads'])
async def test_claimed_and_cancelled(tmp_path: Path, where: str):
    """A run that is resumed and cancelled before its node begins is given back."""
    storage = STORAGES[where](tmp_path / 'run.json')
    await graph.initialize(One(), storage.open(), state=State())
    with anyio.CancelScope() as scope:
        async with iter_or_resume(graph, deps=Deps(), persistence=storage.open()):
            assert storage.nodes() == [('One', 'pending')]
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    await check_what_is_left(storage, Deps())


class Busy(Watched):
    """Finds the storage locked, as long as it is told to."""

    busy = True
    tries = 0

    def commit(self, commit: Commit) -> Receipt:
        self.tries += 1
        self._reach('before')
        if self.busy:
            raise LockBusy
        return self.below.commit(commit)


def make_busy(persistence: Persistence, reach: Callable[[Moment], None], *, prompt: bool) -> Busy:
    """Put a lock that somebody else holds between a persistence and its storage."""
    hidden = cast('Any', persistence)
    hidden._backend = hidden._claims.backend = busy = Busy(hidden._backend, reach, prompt=prompt)
    return busy


@pytest.mark.both_backends
@pytest.mark.parametrize('prompt', [True, False], ids=['on the loop', 'in threads'])
async def test_timeout_while_waiting_for_the_lock(tmp_path: Path, prompt: bool):
    """Who waits for somebody else's lock may be cancelled: nothing was begun."""
    persistence = FileStatePersistence[Any, Any](tmp_path / 'run.json')
    await graph.initialize(One(), persistence, state=State())
    busy = make_busy(persistence, lambda _: None, prompt=prompt)
    with anyio.move_on_after(0.05) as scope:
        await graph.run(One(), state=State(), deps=Deps(), persistence=persistence)
    assert scope.cancelled_caught
    assert busy.tries > 1
    assert [row['status'] for row in json.loads((tmp_path / 'run.json').read_bytes())] == ['created']


@pytest.mark.both_backends
@pytest.mark.parametrize('prompt', [True, False], ids=['on the loop', 'in threads'])
async def test_lock_timeout(tmp_path: Path, prompt: bool):
    """Who has waited for a lock for as long as it was told to gets `LockTimeoutError`, a `TimeoutError`."""
    persistence = FileStatePersistence[Any, Any](tmp_path / 'run.json', lock_timeout=0.05)
    make_busy(persistence, lambda _: None, prompt=prompt)
    with pytest.raises(TimeoutError) as late:
        await graph.run(One(), state=State(), deps=Deps(), persistence=persistence)
    assert isinstance(late.value, LockTimeoutError)
    assert (late.value.place, late.value.waited) == (str(tmp_path / 'run.json'), 0.05)


@pytest.mark.parametrize('prompt', [True, False], ids=['on the loop', 'in threads'])
@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
async def test_cancelled_while_the_lock_is_tried(
    tmp_path: Path, canceller_type: type[Canceller], prompt: bool
):
    """A cancellation that comes in the moment in which the storage turns out to be locked is not lost."""
    persistence = FileStatePersistence[Any, Any](tmp_path / 'run.json', lock_timeout=5)
    canceller = canceller_type()
    make_busy(persistence, Reaper(canceller, 1).reach, prompt=prompt)
    with anyio.fail_after(3):
        await canceller.run(lambda: run_graph(persistence, Deps()))
    assert canceller.caught
    assert not (tmp_path / 'run.json').exists()


@pytest.mark.parametrize('prompt', [True, False], ids=['on the loop', 'in threads'])
@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
async def test_cancelled_while_the_storage_fails(
    tmp_path: Path, canceller_type: type[Canceller], prompt: bool
):
    """A cancellation that comes during a write that fails is not lost to who survives the failure."""
    persistence = FileStatePersistence[Any, Any](tmp_path / 'run.json')
    canceller = canceller_type()
    reaper = Reaper(canceller, 1)

    def fail(moment: Moment) -> None:
        reaper.reach(moment)
        raise StorageError('the disk', 'write', OSError(28, 'No space left on device'))

    watched(persistence, fail, prompt=prompt)

    async def carry_on() -> None:
        with suppress(StorageError):
            await run_graph(persistence, Deps())
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    await canceller.run(carry_on)
    assert canceller.caught


@pytest.mark.parametrize('prompt', [True, False], ids=['on the loop', 'in threads'])
@pytest.mark.parametrize('anyio_backend, canceller_type', CANCELLERS, ids=lambda v: getattr(v, '__name__', v))
async def test_release_waits_for_the_lock(tmp_path: Path, canceller_type: type[Canceller], prompt: bool):
    """A node that is cancelled while somebody else writes is given back as soon as that is over."""
    persistence = FileStatePersistence[Any, Any](tmp_path / 'run.json', lock_timeout=5)
    await graph.initialize(One(), persistence, state=State())
    canceller = canceller_type()
    busy = make_busy(persistence, lambda _: None, prompt=prompt)
    busy.busy = False

    def reach(moment: Moment) -> None:
        if not busy.busy:
            busy.busy = True
            busy.tries = 0
            canceller.cancel()

    async def free() -> None:
        while not busy.busy or busy.tries < 3:  # noqa: ASYNC110 -- what is waited for happens in a thread
            await anyio.sleep(0.001)
        canceller.cancel()
        busy.busy = False

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(free)
        await canceller.run(lambda: run_stored(persistence, Deps(reach=reach)))
    assert canceller.caught
    storage = InFile(tmp_path / 'run.json', prompt=True)
    await check_what_is_left(storage, Deps(['One']))
