"""One owner at a time: who has a run, for how long, and what happens to those who lose it.

Time is an injected clock: nothing here waits for a lease, but for the one test of the heartbeat's own thread.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    CorruptSnapshotError,
    FileStatePersistence,
    FileStore,
    Graph,
    MemoryStore,
    NodeSnapshot,
    OwnershipLostError,
    RunFailedError,
    RunOwnedError,
    SnapshotStatusError,
    SqliteStore,
    Store,
    StoredStatePersistence,
    heartbeat,
    iter_or_resume,
    run_or_resume,
)
from graphkeep.backend import RunBackend
from graphkeep.commit import Ownership
from graphkeep.heartbeat import Hold, Keeper
from tests.rawfile import stored

pytestmark = [pytest.mark.anyio, pytest.mark.both_backends]

Persistence = StoredStatePersistence[Any, Any]
LEASE = 30.0


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class State:
    done: list[str] = field(default_factory=list[str])


@dataclass
class First(BaseNode[State, Any, str]):
    async def run(self, ctx: GraphRunContext[State, Any]) -> Second:
        ctx.state.done.append('first')
        if ctx.deps:
            await ctx.deps()
        return Second()


@dataclass
class Second(BaseNode[State, Any, str]):
    async def run(self, ctx: GraphRunContext[State, Any]) -> End[str]:
        ctx.state.done.append('second')
        return End('done')


graph = Graph(nodes=(First, Second))


@dataclass
class Shared:
    """A run in a storage that several instances open."""

    clock: Clock
    make: Callable[[], Persistence]

    def open(self) -> Persistence:
        """Open the run as one more owner, who knows the graph."""
        persistence = self.make()
        persistence.set_graph_types(graph)
        return persistence

    @property
    def ownership(self) -> Ownership:
        """Who has the run."""
        return backend_of(self.make()).tail().ownership


def backend_of(persistence: Persistence) -> RunBackend:
    """Return the storage below a persistence."""
    return cast('Any', persistence)._backend


def hold_of(persistence: Persistence) -> Hold | None:
    """Return what the heartbeat renews for an instance."""
    return cast('Any', persistence)._claims._hold


@pytest.fixture(params=['memory', 'file', 'file in threads'])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Shared:
    """A run in each storage that has owners."""
    clock = Clock()
    if request.param == 'memory':
        store = MemoryStore(lease=LEASE, clock=clock)
        return Shared(clock, lambda: store.run('run'))
    durability: Any = 'full' if request.param == 'file in threads' else 'normal'
    path = tmp_path / 'run.json'
    return Shared(clock, lambda: FileStatePersistence(path, lease=LEASE, clock=clock, durability=durability))


async def started(shared: Shared) -> tuple[Persistence, str]:
    """Store a first node and return an instance with its snapshot's id."""
    persistence = shared.open()
    await persistence.snapshot_node(State(), First())
    (record,) = await persistence.load_history()
    return persistence, record.id


async def statuses(persistence: Persistence) -> list[str]:
    """Return the stored statuses, oldest first."""
    return [record.status for record in await persistence.load_history()]


# ------------------------------------------------------------------------------------------------ who has it


async def test_owned_by_whom_until_when(shared: Shared):
    """While a node runs, whoever else would touch the run is told by whom and until when it is owned."""
    mine, snapshot_id = await started(shared)
    other = shared.open()
    async with mine.record_run(snapshot_id):
        attempts: list[Callable[[], Any]] = [
            other.record_run(snapshot_id).__aenter__,
            other.recover,
            lambda: other.snapshot_node(State(), Second()),
            lambda: other.snapshot_node_if_new('new', State(), Second()),
        ]
        for attempt in attempts:
            with pytest.raises(RunOwnedError) as refused:
                await attempt()
            assert refused.value.owner is not None
            assert refused.value.owner.pid == os.getpid()
            assert refused.value.until == shared.clock.now + timedelta(seconds=LEASE)
            assert f'process {os.getpid()} on' in str(refused.value)
        assert await other.load_next() is None
        why = await other.why_unresumable()
        assert isinstance(why, RunOwnedError)
        assert why.owner is not None
        assert await statuses(other) == ['running']
    await mine.snapshot_node(State(), Second())
    assert await statuses(other) == ['success', 'created']


async def test_claim_owns(shared: Shared):
    """Who was handed a node by `load_next` has the run, until it is given back."""
    mine, snapshot_id = await started(shared)
    await mine.load_next()
    assert shared.ownership.owner is not None
    with pytest.raises(RunOwnedError):
        await shared.open().record_run(snapshot_id).__aenter__()
    await mine.release()
    assert shared.ownership.owner is None
    async with shared.open().record_run(snapshot_id):
        pass


async def test_free_between_steps(shared: Shared):
    """Between two steps nobody has the run: another instance goes on with it."""
    mine = shared.open()
    async with graph.iter(First(), state=State(), persistence=mine) as run:
        await run.next()
        assert shared.ownership.owner is None
        result = await run_or_resume(graph, persistence=shared.open())
        assert result.output == 'done'
        with pytest.raises(SnapshotStatusError):
            await run.next()


async def test_fence_grows(shared: Shared):
    """Each time the run is taken its fence grows by one; giving it up leaves the fence."""
    mine, snapshot_id = await started(shared)
    fences = [shared.ownership.fence]
    async with mine.record_run(snapshot_id):
        fences.append(shared.ownership.fence)
    await mine.snapshot_node(State(), Second())
    fences.append(shared.ownership.fence)
    await shared.open().load_next()
    fences.append(shared.ownership.fence)
    assert fences == [0, 1, 1, 2]


async def test_free_after_a_failure(shared: Shared):
    """A run whose node raised is nobody's."""
    mine, snapshot_id = await started(shared)
    with pytest.raises(ValueError, match='bad luck'):
        async with mine.record_run(snapshot_id):
            raise ValueError('bad luck')
    assert shared.ownership.owner is None
    assert isinstance(await shared.open().why_unresumable(), RunFailedError)


async def test_nested_claims(shared: Shared):
    """An instance with two nodes in hand has the run until the last of them is given back."""
    mine, snapshot_id = await started(shared)
    await mine.snapshot_node(State(), First())
    await mine.load_next()
    await mine.load_next()
    async with mine.record_run(snapshot_id):
        pass
    await mine.load_history()
    assert shared.ownership.owner is not None
    await mine.release()
    assert shared.ownership.owner is None


# ------------------------------------------------------------------------------------------------- the lease


async def test_lease_is_kept_until_it_ends(shared: Shared):
    """A lease holds to its last moment, and not beyond."""
    mine, _ = await started(shared)
    await mine.load_next()
    shared.clock.forward(LEASE - 0.001)
    assert await shared.open().load_next() is None
    with pytest.raises(RunOwnedError):
        await shared.open().recover()
    shared.clock.forward(0.001)
    assert isinstance(await shared.open().load_next(), NodeSnapshot)


async def test_takeover(shared: Shared):
    """When the lease has run out, `load_next` hands out what its owner had, whose step is refused."""
    mine, snapshot_id = await started(shared)
    other = shared.open()
    async with mine.record_run(snapshot_id):
        shared.clock.forward(LEASE)
        snapshot = await other.load_next()
        assert snapshot is not None
        assert snapshot.id == snapshot_id
    before = await other.load_history()
    with pytest.raises(OwnershipLostError) as lost:
        await mine.snapshot_node(State(['stale']), Second())
    assert lost.value.run_id == mine.run_id
    assert lost.value.owner is not None
    assert await other.load_history() == before
    (record,) = before
    assert [attempt.outcome for attempt in record.attempts] == ['recovered']
    assert str(os.getpid()) in (record.attempts[0].reason or '')
    async with other.record_run(snapshot_id):
        pass
    await other.snapshot_node(State(['fresh']), Second())
    assert await statuses(other) == ['success', 'created']
    assert await shared.open().last_state() == State(['fresh'])


async def test_stale_failure_is_refused(shared: Shared):
    """The failure of a node whose run was taken over is passed on and not written; a note says so."""
    mine, snapshot_id = await started(shared)
    other = shared.open()
    failure = ValueError('late')
    with suppress(ValueError):
        async with mine.record_run(snapshot_id):
            shared.clock.forward(LEASE)
            await other.load_next()
            raise failure
    assert 'could not be recorded' in failure.__notes__[0]
    assert 'taken over' in failure.__notes__[0]
    assert await statuses(other) == ['pending']


async def test_stale_release_is_harmless(shared: Shared):
    """Giving back what somebody else has taken over does nothing."""
    mine, _ = await started(shared)
    await mine.load_next()
    shared.clock.forward(LEASE)
    other = shared.open()
    await other.load_next()
    await mine.release()
    assert await statuses(other) == ['pending']
    assert shared.ownership.owner is not None


async def test_recover_takes_over(shared: Shared):
    """`recover` sets back what an owner whose lease has run out had, and leaves the run to anybody."""
    mine, _ = await started(shared)
    await mine.load_next()
    shared.clock.forward(LEASE)
    other = shared.open()
    assert await other.recover() == 1
    assert await statuses(other) == ['created']
    assert shared.ownership.owner is None
    assert isinstance(await shared.open().load_next(), NodeSnapshot)


async def test_skipped_claim_of_a_gone_owner(shared: Shared):
    """What a gone owner had claimed and gone past is not resumed: the run goes on behind it."""
    mine, _ = await started(shared)
    async with iter_or_resume(graph, persistence=mine) as run:
        await run.next(First())  # another one than that which was claimed
        shared.clock.forward(LEASE)
        snapshot = await shared.open().load_next()
        assert snapshot is not None
        assert isinstance(snapshot.node, Second)


@pytest.mark.parametrize('lease', [0, -1.0, float('nan'), float('inf'), 1e13, '5', None, True])
@pytest.mark.parametrize('make', [MemoryStore, partial(FileStore, 'runs'), partial(SqliteStore, 'runs.db')])
async def test_wrong_lease(make: Callable[..., Store], lease: Any):
    """A lease that has run out when it begins, or that never does, is refused where it is given."""
    with pytest.raises(ValueError, match='lease must be more than 0 and at most 1000000000 seconds, got'):
        make(lease=lease)


@pytest.mark.parametrize('make', [MemoryStore, partial(FileStore, 'runs'), partial(SqliteStore, 'runs.db')])
async def test_wrong_clock(make: Callable[..., Store]):
    """A clock that does not tell of which time zone it is is refused where it is given."""
    with pytest.raises(ValueError, match='what `clock` returns must be an aware time, got datetime'):
        make(clock=datetime.now)


# --------------------------------------------------------------------------------------------- the heartbeat


async def test_heartbeat_renews(shared: Shared):
    """Renewed in time, a lease never ends; the renewals stop when one is due and nothing is in hand."""
    mine, snapshot_id = await started(shared)
    keeper = Keeper(clock=lambda: 0.0)
    async with mine.record_run(snapshot_id):
        hold = hold_of(mine)
        assert hold is not None
        assert hold.interval == LEASE / 3
        for _ in range(5):
            shared.clock.forward(LEASE - 1)
            keeper.beat(hold)
            assert shared.ownership.expires == shared.clock.now + timedelta(seconds=LEASE)
            with pytest.raises(RunOwnedError):
                await shared.open().recover()
    await mine.snapshot_node(State(), Second())
    keeper.beat(hold)
    assert hold_of(mine) is None
    assert shared.ownership.owner is None


async def test_heartbeat_across_steps(shared: Shared, monkeypatch: pytest.MonkeyPatch):
    """What was taken again when a renewal is due is renewed; so is what is taken after a pause."""
    keeper = Keeper(clock=lambda: 0.0)  # whose own thread finds nothing due
    monkeypatch.setattr(heartbeat, 'keeper', keeper)
    mine, snapshot_id = await started(shared)
    holds: list[Hold] = []
    for pause in (False, True, False):
        async with mine.record_run(snapshot_id):
            hold = hold_of(mine)
            assert hold is not None
            holds.append(hold)
            shared.clock.forward(LEASE - 1)
            keeper.beat(hold)
            assert shared.ownership.expires == shared.clock.now + timedelta(seconds=LEASE)
        await mine.snapshot_node(State(), Second())
        snapshot_id = (await mine.load_history())[-1].id
        if pause:
            keeper.beat(hold)
    assert holds[0] is holds[1]
    assert holds[2] is not holds[1]
    keeper.drop(holds[2])


async def test_heartbeat_for_real(tmp_path: Path):
    """A node that blocks the event loop for many leases keeps its run: the heartbeat has its thread."""
    lease = 0.3
    shared = Shared(Clock(), lambda: FileStatePersistence(tmp_path / 'run.json', lease=lease))
    mine, snapshot_id = await started(shared)
    async with mine.record_run(snapshot_id):
        expires = {shared.ownership.expires}
        blocked = threading.Event()
        for _ in range(12):
            blocked.wait(lease / 4)  # on the loop's own thread, on purpose
            ownership = shared.ownership
            assert ownership.owner is not None
            assert ownership.expires is not None
            assert ownership.expires > datetime.now(UTC)
            expires.add(ownership.expires)
        assert len(expires) >= 4
    await mine.snapshot_node(State(), Second())
    assert await statuses(mine) == ['success', 'created']


async def test_lost_node_is_cancelled(shared: Shared):
    """A node whose run was taken over is cancelled, and the caller told that the run is lost."""
    mine = shared.open()
    other = shared.open()
    reached: list[str] = []

    async def lose() -> None:
        hold = hold_of(mine)
        assert hold is not None
        shared.clock.forward(LEASE)
        await other.load_next()
        threading.Thread(target=beat, args=(hold,)).start()
        with anyio.fail_after(5):
            await anyio.sleep(5)
        reached.append('behind the await')

    with pytest.raises(OwnershipLostError) as lost:
        await graph.run(First(), state=State(), deps=lose, persistence=mine)
    assert lost.value.run_id == mine.run_id
    assert lost.value.owner is not None
    assert not reached
    assert await statuses(other) == ['pending']
    await other.release()
    result = await run_or_resume(graph, persistence=other)
    assert (result.output, result.state.done) == ('done', ['first', 'second'])


def beat(hold: Hold) -> None:
    """Renew a hold as the heartbeat's thread does."""
    keeper = Keeper()
    cast('Any', keeper)._holds.add(hold)
    keeper.beat(hold)


async def test_lost_after_the_loop_ended(shared: Shared):
    """A loss that is noticed when the event loop has gone, with the node, disturbs nobody."""
    caught: list[Hold] = []

    def run() -> None:
        async def main() -> None:
            mine, snapshot_id = await started(shared)
            await mine.record_run(snapshot_id).__aenter__()
            caught.append(cast('Hold', hold_of(mine)))
            kept.append(mine)

        anyio.run(main)

    kept: list[Persistence] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    caught[0].lost(OwnershipLostError('run', None))
    assert hold_of(kept[0]) is None


async def test_lost_while_the_loop_is_busy(shared: Shared, anyio_backend: str):
    """A node that computes without awaiting delays nobody who notices its loss; what it writes is refused."""
    mine, other = shared.open(), shared.open()
    computing, told = threading.Event(), threading.Event()
    refused: list[OwnershipLostError] = []

    async def compute() -> None:
        computing.set()
        told.wait(10)

    def run() -> None:
        async def main() -> None:
            try:
                await graph.run(First(), state=State(), deps=compute, persistence=mine)
            except OwnershipLostError as exc:
                refused.append(exc)

        anyio.run(main, backend=anyio_backend)

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    assert computing.wait(10)
    hold = hold_of(mine)
    assert hold is not None
    shared.clock.forward(LEASE)
    assert await other.load_next()
    teller = threading.Thread(target=beat, args=(hold,), daemon=True)
    teller.start()
    teller.join(5)
    waited = teller.is_alive()
    told.set()
    runner.join(10)
    assert not waited, 'the heartbeat waits for the event loop of a run that is lost, and renews no other'
    assert [exc.run_id for exc in refused] == [mine.run_id]
    assert await statuses(other) == ['pending']


# --------------------------------------------------------------------------------------- owners that are gone

CHILD = """
import asyncio, sys
from tests.backends.test_ownership import *

async def main():
    persistence = FileStatePersistence(sys.argv[1], lease=3600)
    persistence.set_graph_types(graph)
    snapshot = await persistence.load_next()
    async with persistence.record_run(snapshot.id):
        print('running', flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_dead_process(tmp_path: Path):
    """What a killed process had is recovered at once, long before its lease ends."""
    path = tmp_path / 'run.json'
    persistence = FileStatePersistence[Any, Any](path)
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(State(), First())
    child = subprocess.Popen(  # noqa: ASYNC220 -- nothing else runs on this event loop
        [sys.executable, '-c', CHILD, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b'running\n'
        with pytest.raises(RunOwnedError, match=f'process {child.pid} on'):
            await persistence.recover()
        assert await persistence.load_next() is None
    finally:
        child.send_signal(signal.SIGKILL)
        cast('Any', child.stdout).close()
        if sys.platform == 'linux':
            # not yet reaped: a zombie is as dead as one that is
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        else:
            child.wait()
    try:
        snapshot = await persistence.load_next()
        assert snapshot is not None
    finally:
        child.wait()
    (record,) = await persistence.load_history()
    assert (record.status, record.attempts[0].outcome) == ('pending', 'recovered')
    assert record.attempts[0].reason == f'process {child.pid} on {os.uname().nodename} is gone'
    await persistence.release()
    result = await run_or_resume(graph, persistence=persistence)
    assert result.state.done == ['first', 'second']


async def test_dropped_instance(shared: Shared):
    """An instance that nobody has any more has no run: what it had in hand is recovered at once."""
    mine, snapshot_id = await started(shared)
    await mine.load_next()
    assert await shared.open().load_next() is None
    del mine
    gc.collect()
    snapshot = await shared.open().load_next()
    assert snapshot is not None
    assert snapshot.id == snapshot_id


async def test_dropped_instance_is_not_renewed(shared: Shared):
    """The heartbeat does not keep alive an instance that nobody has any more."""
    mine, _ = await started(shared)
    await mine.load_next()
    hold = hold_of(mine)
    assert hold is not None
    expires = shared.ownership.expires
    del mine
    gc.collect()
    shared.clock.forward(LEASE / 2)
    Keeper().beat(hold)
    assert shared.ownership.expires == expires


async def test_no_owner_on_record(tmp_path: Path):
    """What an unknown owner left in hand is not taken by `load_next`: `recover` is the way out."""
    path = tmp_path / 'run.json'
    persistence = FileStatePersistence[Any, Any](path)
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(State(), First())
    path.write_text(path.read_text().replace('"created"', '"running"'))
    assert await persistence.load_next() is None
    why = await persistence.why_unresumable()
    assert isinstance(why, RunOwnedError)
    assert (why.owner, why.until) == (None, None)
    assert await persistence.recover() == 1
    assert (await run_or_resume(graph, persistence=persistence)).output == 'done'


NOBODY = [
    {'pid': 'twelve'},
    {'pid': 0},
    {'pid': -1},
    {'pid': 2**64},
    {'pid': None},
    {'started': 5},
    {'id': None},
]


@pytest.mark.parametrize('wrong', [*NOBODY, 'pid', 'domain', 'everything'], ids=str)
async def test_damaged_owner(tmp_path: Path, wrong: Any):
    """An owner on record that cannot be read is damage of the file, and never taken for one who is gone."""
    path = tmp_path / 'run.json'
    persistence = FileStatePersistence[Any, Any](path)
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(State(), First())
    assert await persistence.load_next()
    rows = stored(path)  # as if it were on record in the file, as it is where the lock file has no room
    ours = rows[0]['graphkeep']
    if wrong == 'everything':
        ours['held_by'] = 'me'
    elif isinstance(wrong, str):
        del ours['held_by'][wrong]
    else:
        ours['held_by'] |= wrong
    path.write_text(damaged := json.dumps(rows))
    for use in (persistence.load_next, persistence.recover, persistence.load_history):
        with pytest.raises(CorruptSnapshotError, match=r'run\.json.*number 1'):
            await use()
    assert path.read_text() == damaged


async def test_nothing_personal_stays_in_the_file(tmp_path: Path):
    """Once given up, the file names no holder of the run any more, only who ran which step."""
    path = tmp_path / 'run.json'
    await graph.run(First(), state=State(), persistence=FileStatePersistence(path))
    rows: list[dict[str, Any]] = json.loads(path.read_bytes())
    assert not any('held_by' in row.get('graphkeep', {}) for row in rows)
