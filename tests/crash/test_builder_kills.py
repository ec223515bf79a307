"""Processes that run a mapped builder graph are killed: no state is torn, nothing is lost or repeated."""

from __future__ import annotations

import random
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import anyio
import pytest

from tests.counts import count
from tests.crash.children import child, heard
from tests.rawsqlite import integrity, stored

if find_spec('pydantic_graph.graph_builder') is None:
    pytest.skip('this pydantic-graph has no builder graphs', allow_module_level=True)

from tests.crash.mapped import ITEMS, Tally, finish_map, run_map, runs_of

KILLS = count(200)


def _done(path: Path, run_id: str) -> dict[int, str]:
    """Return the items whose step is on record as succeeded."""
    rows = stored(path, run_id)
    return {
        row['node']['inputs']: row['id']
        for row in rows
        if row['kind'] == 'task' and row['node']['node_id'] == 'work' and row['status'] == 'success'
    }


@pytest.mark.timeout(1800)
def test_killed_at_random(tmp_path: Path):
    """A run that is killed again and again comes to the right result, and no step on record is run again."""
    chance = random.Random(4)  # noqa: S311
    path = tmp_path / 'runs.db'
    with child(finish_map, tmp_path / 'whole.db', 'whole', tmp_path / 'whole.log') as (_, near):
        assert heard(near) == 'begins'
        whole = heard(near)
    in_a_run = repeated = number = 0
    while in_a_run < KILLS:
        number += 1
        assert number < 10 * KILLS, 'too many of the kills missed the run'
        run_id, log = f'run-{number}', tmp_path / f'run-{number}.log'
        counted: dict[int, int] = {}
        for _ in range(chance.randint(1, 3)):
            with child(finish_map, path, run_id, log) as (process, near):
                assert heard(near) == 'begins'
                time.sleep(chance.uniform(0, 1.5 * whole))
                process.kill()
                process.join()
            assert integrity(path) == 'ok' if path.exists() else True
            rows = stored(path, run_id)
            in_a_run += bool(rows) and rows[-1]['kind'] != 'end'
            times, _ = runs_of(log)
            for item in _done(path, run_id):
                assert counted.setdefault(item, times[item]) == times[item], 'a step on record was run again'
        output, state = anyio.run(run_map, path, run_id, log)
        assert output == sum(2 * item for item in range(ITEMS))
        once = Counter(dict.fromkeys(range(ITEMS), 1))
        assert state == Tally(once, once, ITEMS), 'the state holds what each step did exactly once'
        times, keys = runs_of(log)
        assert all(times[item] == n for item, n in counted.items()), 'a step on record was run again'
        assert all(len(found) == 1 for found in keys.values()), (
            'the key of a step is the same at each attempt'
        )
        repeated += sum(times.values()) - ITEMS
    print(f'{in_a_run} kills in {number} runs; {repeated} steps were run again')
    assert repeated, 'no kill met a step that was under way'
