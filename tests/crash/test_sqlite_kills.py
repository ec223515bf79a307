"""Processes that share one SQLite store are killed and stopped: it stays whole, and every run goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from graphkeep import RunOwnedError, SqliteStore, run_or_resume
from tests.counts import count
from tests.crash.children import (
    ANSWER,
    child,
    finish,
    finish_crowd,
    hang_graph,
    hang_in_node,
    heard,
    hour_later,
    logged,
    run_chain,
    run_quick,
)
from tests.rawsqlite import integrity, stored

KILLS = count(500)
PROCESSES = 4
CROWD = 20


@dataclass
class Witness:
    """Looks at one run of the store from outside after every kill, and remembers what may not change."""

    path: Path
    run_id: str
    ids: list[str] = field(default_factory=list[str])
    runs: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def place(self) -> Path:
        """The run, as the children name it."""
        return self.path / self.run_id

    @property
    def log(self) -> Path:
        """Where its nodes leave a line each time they are run."""
        return self.path.with_name(f'{self.run_id}.log')

    def look(self) -> str:
        """Check the promises so far, and return where the run is."""
        rows = stored(self.path, self.run_id)
        ids = [row['id'] for row in rows]
        assert ids[: len(self.ids)] == self.ids, 'a committed snapshot is gone'
        self.ids = ids
        done = {row['id']: row for row in rows if row['status'] == 'success' and row['kind'] == 'node'}
        assert self.runs.keys() <= done.keys(), 'a committed step is lost'
        counted = logged(self.log)
        for snapshot_id, row in done.items():
            times = counted[row['node']['number']]
            assert times >= 1
            assert self.runs.setdefault(snapshot_id, times) == times, 'a committed step was run again'
        if rows and rows[-1]['kind'] == 'end':
            return 'after the end'
        return 'in a run' if rows else 'before the first commit'

    def finish(self, weight: int) -> None:
        """Finish the run in this process and check what it came to."""
        assert anyio.run(run_chain, self.place, self.log, weight) == ANSWER
        assert self.look() == 'after the end'
        *steps, end = stored(self.path, self.run_id)
        assert [row['node']['number'] for row in steps] == ANSWER
        assert {row['status'] for row in steps} == {'success'}
        assert end['node']['data'] == ANSWER


@pytest.mark.timeout(1800)
@pytest.mark.parametrize('weight', [0, 20_000])
def test_killed_at_random(tmp_path: Path, weight: int):
    """Four processes on one file, killed at any moment again and again, lose and repeat nothing committed."""
    chance = random.Random(weight)  # noqa: S311
    seen: Counter[str] = Counter()
    wanted = KILLS // 2
    path = tmp_path / 'runs.db'
    whole = _uninterrupted(tmp_path, weight)  # alone; four at once take longer
    for number in range(4 * wanted):
        witnesses = [Witness(path, f'run-{number}-{n}') for n in range(PROCESSES)]
        for _ in range(chance.randint(1, 3)):
            _kill_all(witnesses, weight, [chance.uniform(0, 3 * whole) for _ in witnesses])
            assert integrity(path) == 'ok' if path.exists() else True
            seen.update(witness.look() for witness in witnesses)
        for witness in witnesses:
            witness.finish(weight)
        if seen['in a run'] >= wanted:
            break
    print(f'{weight} bytes of state, kills:', dict(seen))
    assert seen['in a run'] >= wanted, 'too many of the kills missed the run; the test is of no use like this'


def _uninterrupted(tmp_path: Path, weight: int) -> float:
    """Return how many seconds a run takes in a child."""
    with child(finish, tmp_path / 'whole.db' / 'whole', tmp_path / 'whole.log', weight) as (_, near):
        assert heard(near) == 'begins'
        return heard(near)


def _kill_all(witnesses: list[Witness], weight: int, moments: list[float]) -> None:
    """Let a child go on with each run, and kill each so many seconds after they began."""
    with ExitStack() as stack:
        children = [
            stack.enter_context(child(finish, witness.place, witness.log, weight)) for witness in witnesses
        ]
        for _, near in children:
            assert heard(near) == 'begins'
        begun = time.perf_counter()
        for moment, (process, _) in sorted(zip(moments, children, strict=True), key=lambda pair: pair[0]):
            time.sleep(max(0.0, moment - (time.perf_counter() - begun)))
            process.kill()
        for process, _ in children:
            process.join()
            assert process.exitcode in (-signal.SIGKILL, 0)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize('durability', ['normal', 'full'])
def test_crowd_killed_at_random(tmp_path: Path, durability: str):
    """A process in which many runs commit together is killed at any moment: no step is lost or repeated."""
    chance = random.Random(durability)  # noqa: S311
    path = tmp_path / 'runs.db'
    whole = _crowd(path, [Witness(path, f'whole-{n}') for n in range(CROWD)], durability, None)
    cut = 0
    for number in range(count(100)):
        witnesses = [Witness(path, f'run-{number}-{n}') for n in range(CROWD)]
        for _ in range(chance.randint(1, 3)):
            _crowd(path, witnesses, durability, chance.uniform(0, whole))
            assert integrity(path) == 'ok'
            where = Counter(witness.look() for witness in witnesses)
            cut += where['in a run'] > 0
        anyio.run(_finish_crowd, path, witnesses)
        assert {witness.look() for witness in witnesses} == {'after the end'}
    assert cut >= count(100) // 2, 'too many of the kills missed the runs; the test is of no use like this'


def _crowd(path: Path, witnesses: list[Witness], durability: str, moment: float | None) -> float:
    """Let a child go on with the runs; kill it after so many seconds, or return how many it takes."""
    logs = {witness.run_id: witness.log for witness in witnesses}
    with child(finish_crowd, path, logs, durability) as (process, near):
        assert heard(near) == 'begins'
        if moment is None:
            return heard(near)
        time.sleep(moment)
        process.kill()
        process.join()
        return moment


async def _finish_crowd(path: Path, witnesses: list[Witness]) -> None:
    """Finish the runs in this process and check what they came to."""
    async with SqliteStore(path) as store, anyio.create_task_group() as tasks:

        async def finish_one(witness: Witness) -> None:
            assert await run_quick(store, witness.run_id, witness.log) == ANSWER

        for witness in witnesses:
            tasks.start_soon(finish_one, witness)


async def _take_over(path: Path, hours: float) -> str:
    """Go on with the run, so many hours from now."""
    async with SqliteStore(path, clock=partial(hour_later, hours)) as store:
        result: Any = await run_or_resume(hang_graph, persistence=store.run('run'))
        return result.output


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    'lease, said',
    [
        pytest.param(1.0, ['cancelled', 'OwnershipLostError'], id='the heartbeat notices'),
        pytest.param(1800.0, ['OwnershipLostError'], id='the write is refused'),
    ],
)
def test_stopped_in_a_node(tmp_path: Path, lease: float, said: list[str]):
    """A process that was stopped for longer than its lease is refused, and the run is not harmed."""
    for number in range(count(50) if lease > 1 else count(25)):
        path = tmp_path / f'{number}.db'
        with child(hang_in_node, path / 'run', lease) as (process, near):
            assert heard(near) == 'in the node'
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(RunOwnedError, match=f'process {process.pid}'):
                anyio.run(_take_over, path, -1)
            assert anyio.run(_take_over, path, 1) == 'taken over'
            finished = stored(path, 'run')
            if len(said) == 1:
                near.send('too late')
            os.kill(process.pid, signal.SIGCONT)
            assert [heard(near) for _ in said] == said
            process.join()
        assert stored(path, 'run') == finished
        step, end = finished
        assert (step['status'], end['node']['data']) == ('success', 'taken over')
        (record, _) = anyio.run(SqliteStore(path).history, 'run')
        assert [attempt.outcome for attempt in record.attempts] == ['recovered', 'success']
