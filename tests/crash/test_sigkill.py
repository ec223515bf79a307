"""A process that runs a graph is killed: what was committed stays, and the run goes on."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import anyio
import pytest

from graphkeep import FileStatePersistence
from tests.counts import FULL, count
from tests.crash.children import (
    ANSWER,
    LENGTH,
    Trail,
    chain,
    child,
    finish,
    finish_dying,
    heard,
    logged,
    run_chain,
)
from tests.rawfile import stored

KILLS = count(300)
STRIDE = 1 if FULL else 7
"""From one call at which a child dies to the next; no multiple of the calls that a commit makes."""


@dataclass
class Witness:
    """Looks at a run from outside after every kill, and remembers what may not change any more."""

    file: Path
    log: Path
    ids: list[str] = field(default_factory=list[str])
    runs: dict[str, int] = field(default_factory=dict[str, int])
    """How often each node that is recorded as success was run."""

    def look(self) -> str:
        """Check the promises so far, and return where the run is."""
        rows = stored(self.file)
        ids = [row['id'] for row in rows]
        assert ids[: len(self.ids)] == self.ids, 'a committed snapshot is gone'
        self.ids = ids
        done = {row['id']: row for row in rows if row.get('status') == 'success'}
        assert self.runs.keys() <= done.keys(), 'a committed step is lost'
        counted = logged(self.log)
        for snapshot_id, row in done.items():
            times = counted[row['node']['number']]
            assert times >= 1
            assert self.runs.setdefault(snapshot_id, times) == times, 'a committed step was run again'
        assert len(anyio.run(self._load)) == len(rows)
        if rows and rows[-1]['kind'] == 'end':
            return 'after the end'
        return 'in a run' if rows else 'before the first commit'

    async def _load(self) -> list[Any]:
        persistence: FileStatePersistence[Trail, list[int]] = FileStatePersistence(self.file)
        persistence.set_graph_types(chain)
        return await persistence.load_all()

    def finish(self, weight: int) -> None:
        """Finish the run in this process and check what it came to."""
        assert anyio.run(run_chain, self.file, self.log, weight) == ANSWER
        assert self.look() == 'after the end'
        *steps, end = stored(self.file)
        assert [row['node']['number'] for row in steps] == ANSWER
        assert {row['status'] for row in steps} == {'success'}
        assert [len(row['state']['numbers']) for row in steps] == list(range(LENGTH))
        assert end['state'] == {'numbers': ANSWER, 'weight': 'x' * weight}
        assert end['result']['data'] == ANSWER
        assert not self.file.with_name(f'.{self.file.name}.tmp').exists()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize('weight', [0, 50_000])
def test_killed_at_random(tmp_path: Path, weight: int):
    """Killed at any moment, again and again, a run loses nothing and repeats nothing that was committed."""
    step = _uninterrupted(tmp_path, weight) / LENGTH
    chance = random.Random(weight)  # noqa: S311
    seen: Counter[str] = Counter()
    wanted = KILLS // 2
    for number in range(4 * wanted):
        witness = Witness(tmp_path / f'{number}.json', tmp_path / f'{number}.log')
        for _ in range(chance.randint(1, 4)):
            if len(witness.runs) == LENGTH:
                break
            nodes = chance.randint(0, LENGTH - 1 - len(witness.runs))
            _kill_after(nodes, chance.uniform(0, step), witness, weight)
            seen[witness.look()] += 1
            seen['with a new file half made'] += witness.file.with_name(f'.{number}.json.tmp').exists()
        witness.finish(weight)
        if seen['in a run'] >= wanted:
            break
    print(f'{weight} bytes of state, kills:', dict(seen))
    assert seen['in a run'] >= wanted, 'too many of the kills missed the run; the test is of no use like this'


def _uninterrupted(tmp_path: Path, weight: int) -> float:
    """Return how many seconds a run takes in a child."""
    with child(finish, tmp_path / 'whole.json', tmp_path / 'whole.log', weight) as (_, near):
        assert heard(near) == 'begins'
        return heard(near)


def _kill_after(nodes: int, seconds: float, witness: Witness, weight: int) -> None:
    """Let a child go on with the run, and kill it so many seconds after it began that many nodes."""
    wanted = logged(witness.log).total() + nodes
    with child(finish, witness.file, witness.log, weight) as (process, near):
        assert heard(near) == 'begins'
        while nodes and logged(witness.log).total() < wanted and process.is_alive():
            time.sleep(0.0002)
        time.sleep(seconds)
        process.kill()
        process.join()
        assert process.exitcode in (-SIGKILL, 0)


@pytest.mark.parametrize('how', ['before', 'within', 'after'])
def test_killed_at_each_call(tmp_path: Path, how: str):
    """Killed before, in or after any call into the operating system, a run loses and repeats nothing."""
    at, died = 0, 1
    while died:
        witness = Witness(tmp_path / f'{at}.json', tmp_path / f'{at}.log')
        with child(finish_dying, witness.file, witness.log, at, how) as (process, near):
            process.join(30)
            died = process.exitcode
            assert died in (-SIGKILL, 0)
            assert died or heard(near) == 'survived'
        witness.look()
        witness.finish(0)
        at += STRIDE
    assert at > 4 * LENGTH, 'too few calls: does the file backend still go through `os`?'
