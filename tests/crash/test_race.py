"""Eight processes want the same thing at the same moment: one gets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import anyio
import pytest

from graphkeep import FileStatePersistence, RunOwnedError, SnapshotStatusError
from tests.counts import count
from tests.crash.children import ANSWER, PROCESSES, Step, Trail, chain, child, heard, logged, run_chain
from tests.rawfile import stored

RACERS = 8


def _starter(files: list[Path], snapshot_id: str, barrier: Barrier, parent: Connection) -> None:
    """Start the same snapshot as the others in one file after the other."""

    async def start(file: Path) -> str:
        persistence: FileStatePersistence[Trail, list[int]] = FileStatePersistence(file)
        persistence.set_graph_types(chain)
        barrier.wait(60)
        try:
            async with persistence.record_run(snapshot_id):
                await anyio.sleep(0.001)
            await persistence.snapshot_node(Trail(), Step(2))
        except (SnapshotStatusError, RunOwnedError) as exc:
            return type(exc).__name__
        return 'won'

    parent.send([anyio.run(start, file) for file in files])


def _runner(files: list[Path], barrier: Barrier, parent: Connection) -> None:
    """Run the same new run as the others in one file after the other."""

    async def run(file: Path) -> object:
        barrier.wait(60)
        try:
            return await run_chain(file, file.with_suffix('.log'), 0)
        except (SnapshotStatusError, RunOwnedError) as exc:
            return type(exc).__name__

    parent.send([anyio.run(run, file) for file in files])


def _race(target: Callable[..., None], *args: object) -> list[tuple[Any, ...]]:
    """Return what each round came to for each of the racers."""
    barrier = PROCESSES.Barrier(RACERS)
    with ExitStack() as stack:
        racers = [stack.enter_context(child(target, *args, barrier)) for _ in range(RACERS)]
        return list(zip(*(heard(near, patience=600) for _, near in racers), strict=True))


@pytest.mark.timeout(1800)
def test_start(tmp_path: Path):
    """Of eight processes that start one snapshot exactly one does, and the others are told so."""
    snapshot_id, first = anyio.run(_stored, tmp_path / 'first.json')
    files = [tmp_path / f'{number}.json' for number in range(count(200))]
    for file in files:
        file.write_bytes(first)
    outcomes = _race(_starter, files, snapshot_id)
    assert len(outcomes) == len(files)
    for file, outcome in zip(files, outcomes, strict=True):
        assert Counter(outcome)['won'] == 1, outcome
        assert [row['status'] for row in stored(file)] == ['success', 'created']


async def _stored(file: Path) -> tuple[str, bytes]:
    """Return the id of a run's first snapshot, and the file with it."""
    persistence: FileStatePersistence[Trail, list[int]] = FileStatePersistence(file)
    persistence.set_graph_types(chain)
    await persistence.snapshot_node(Trail(), Step())
    (snapshot,) = await persistence.load_all()
    return snapshot.id, file.read_bytes()


@pytest.mark.timeout(1800)
def test_run_or_resume(tmp_path: Path):
    """Eight processes that begin one new run make one run of it, in which every node runs once."""
    files = [tmp_path / f'{number}.json' for number in range(count(100))]
    for file, outcome in zip(files, _race(_runner, files), strict=True):
        assert ANSWER in outcome
        assert all(one in (ANSWER, 'RunOwnedError', 'SnapshotStatusError') for one in outcome), outcome
        assert logged(file.with_suffix('.log')) == Counter(ANSWER)
        *steps, end = stored(file)
        assert [row['node']['number'] for row in steps] == ANSWER
        assert {row['status'] for row in steps} == {'success'}
        assert end['result']['data'] == ANSWER
