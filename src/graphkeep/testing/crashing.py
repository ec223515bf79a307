"""Crash clauses, for stores that outlive their process: killed, it loses and repeats nothing committed."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import anyio

from ..snapshots import NodeSnapshot
from .children import LENGTH, Link, Trail, chain, child, finish, heard, logged, run_chain
from .clock import LEASE, Clock
from .stores import StoreClauses, StoreUnderTest

__all__ = ('Durable',)

_ANSWER = list(range(1, LENGTH + 1))


class Durable(StoreClauses):
    """Mixed in where what was committed survives the death of the process at any moment.

    The test class must be importable by a child process: at the top level of a module.
    """

    kills = 12
    """How many children are killed; each at another call into C, chosen by a seed."""

    async def test_reopened(self, place: StoreUnderTest):
        """What was committed is there for a store that is opened later, whether others were closed or not."""
        for close in (True, False):
            run_id = f'{close}'
            await _begin(place, run_id)
            if close:
                await place.aclose()
            store = place.another()
            info = next(info for info in await store.runs() if info.id == run_id)
            assert (info.tags, info.status, info.steps) == (('tag',), 'created', 1)
            again = store.run(run_id)
            again.set_graph_types(chain)
            snapshot = await again.load_last()
            assert isinstance(snapshot, NodeSnapshot)
            assert (snapshot.state, snapshot.node) == (Trail([1]), Link(2))
            assert len(place.raw(run_id).snapshots) == 1

    def test_killed(self, tmp_path: Path):
        """Killed at any moment a run keeps what was committed, goes on, and repeats nothing of that."""
        whole = _Killed(self, tmp_path / 'whole')
        calls = whole.child(None)
        assert calls is not None
        whole.check()
        chance = random.Random(calls)  # noqa: S311
        stopped: Counter[str] = Counter()
        for number in range(self.kills):
            killed = _Killed(self, tmp_path / f'{number}')
            # of so many parts, a moment in each; and once more while the run goes on
            low, high = calls * number // self.kills, calls * (number + 1) // self.kills
            for at in (chance.randint(low + 1, high), chance.randint(1, calls)):
                killed.child(at)
                stopped[killed.check()] += 1
            killed.finish()
        assert stopped['in a run'], f'no kill met a run: {stopped}'


async def _begin(place: StoreUnderTest, run_id: str) -> None:
    persistence = place.store.run(run_id, tags=('tag',))
    persistence.set_graph_types(chain)
    await persistence.snapshot_node(Trail([1]), Link(2))


class _Killed:
    """One run of the chain, whose processes are killed."""

    def __init__(self, contract: StoreClauses, directory: Path):
        self._contract = contract
        self._store = directory / 'store'
        self._store.mkdir(parents=True)
        self._log = directory / 'log'
        self._clock = Clock()
        self._runs: dict[str, int] = {}  # how often each node that is recorded as success was run

    def child(self, at: int | None) -> int | None:
        """Let a child go on with the run and die; return how many calls it made if it did not."""
        with child(finish, type(self._contract), self._store, self._clock, self._log, at) as (process, near):
            process.join(60)
            if process.exitcode:
                assert process.exitcode < 0 or sys.platform == 'win32', 'the child failed; see its traceback'
                return None
            output, calls = heard(near)
            assert output == _ANSWER
            return calls

    def check(self) -> str:
        """Check that what was acknowledged is there and not repeated; return where the run is."""
        snapshots = self._contract.read_raw(self._store, 'run').snapshots
        lines = logged(self._log)
        acknowledged = [line.split()[1] for line in lines if line.startswith('stored ')]
        missing = set(acknowledged) - {snapshot.id for snapshot in snapshots}
        assert not missing, f'these snapshots were acknowledged, and are gone: {missing}'
        done = {s.id: number for number, s in enumerate(snapshots, start=1) if s.status == 'success'}
        undone = {line.split()[1] for line in lines if line.startswith('succeed ')} - done.keys()
        assert not undone, f'these nodes were acknowledged as succeeded, and are not: {undone}'
        for snapshot_id, number in done.items():
            times = lines[f'ran {number}']
            assert self._runs.setdefault(snapshot_id, times) == times, (
                f'node {number} was recorded as success, and run again'
            )
        assert self._runs.keys() <= done.keys(), 'a node that had succeeded has not any more'
        assert [s.status for s in snapshots[:-1]] == ['success'] * len(snapshots[:-1])
        if snapshots and snapshots[-1].status == 'success':
            assert snapshots[-1].kind == 'end', 'a node succeeded, and what comes next is missing'
            return 'after the end'
        return 'in a run' if snapshots else 'before the first commit'

    def finish(self) -> None:
        """Finish the run in this process, which takes it over at once where it can know that it may."""
        if not sys.platform.startswith('linux'):
            self._clock.forward(LEASE)
        assert anyio.run(self._finish) == _ANSWER
        assert self.check() == 'after the end'

    async def _finish(self) -> list[int]:
        store = self._contract.open_store(self._store, self._clock, LEASE)
        try:
            return await run_chain(store, 'run', self._log)
        finally:
            await store.aclose()
