"""Several processes share the runs of a store: one at a time is at a run, and every run comes to its end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import FileStore, Graph, SqliteStore, Store, current_step, run_or_resume
from tests.counts import FULL, count
from tests.crash.children import child, heard

STORES: dict[str, tuple[Callable[[Path], Store], int]] = {
    'file': (lambda directory: FileStore(directory / 'runs'), count(100)),
    'sqlite': (lambda directory: SqliteStore(directory / 'runs.db'), count(1000)),
}
"""Every store that processes share, and how many runs there are; a directory is listed for each claim."""
WORKERS = 16 if FULL else 4
NODES = 6
ANSWER = list(range(1, NODES + 1))

pytestmark = pytest.mark.timeout(1800)


@dataclass
class Workshop:
    """What the nodes of one process are given."""

    log: Path
    parent: Connection
    hang_at: int | None
    """How many nodes it runs before it hangs in one, if it is to do so."""
    ran: int = 0

    def note(self, what: str) -> None:
        """Leave a line in the log that all processes have."""
        step = current_step()
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, f'{what} {step.run_id} {step.seq} {os.getpid()}\n'.encode())
        finally:
            os.close(fd)


@dataclass
class Numbers:
    """Which nodes made this state."""

    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Work(BaseNode[Numbers, Workshop, list[int]]):
    """Says in the log that it begins and ends, and lets others have a go in between."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Numbers, Workshop]) -> Work | End[list[int]]:
        ctx.deps.note('begin')
        if ctx.deps.ran in (0, ctx.deps.hang_at):
            ctx.deps.parent.send(f'node {ctx.deps.ran}')
        if ctx.deps.ran == ctx.deps.hang_at:
            await anyio.sleep_forever()
        ctx.deps.ran += 1
        await anyio.sleep(0.001)
        ctx.state.numbers.append(self.number)
        ctx.deps.note('end')
        return Work(self.number + 1) if self.number < NODES else End(ctx.state.numbers)


work_graph = Graph(nodes=(Work,), name='work')


def _work(name: str, directory: Path, hang_at: int | None, parent: Connection) -> None:
    """Be a worker: claim runs and go on with them until all have ended."""

    async def main() -> None:
        workshop = Workshop(directory / 'log', parent, hang_at)
        async with STORES[name][0](directory) as store:
            while True:
                if (run := await store.claim(graph='work')) is not None:
                    await run_or_resume(work_graph, deps=workshop, persistence=run)
                elif await store.runs(status=['created', 'pending', 'running'], limit=1):
                    await anyio.sleep(0.01)  # the rest is in the hands of others, who may be killed yet
                else:
                    return

    anyio.run(main)
    parent.send('done')


async def _fill(name: str, directory: Path) -> list[str]:
    """Store runs that wait for their first node, and return their ids."""
    make, runs = STORES[name]
    run_ids = [f'{number:04}' for number in range(runs)]
    async with make(directory) as store:
        for run_id in run_ids:
            await work_graph.initialize(Work(), store.run(run_id), state=Numbers())
    return run_ids


async def _check(name: str, directory: Path, run_ids: list[str], killed: int | None = None) -> Counter[str]:
    """Check that every run has its right result, and one was at it at a time; return how attempts ended."""
    began: Counter[tuple[str, int]] = Counter()
    at_it: dict[str, str] = {}
    whose: dict[str, set[str]] = {run_id: set() for run_id in run_ids}
    for line in (directory / 'log').read_text().splitlines():
        what, run_id, seq, pid = line.split()
        if pid != str(killed):
            whose[run_id].add(pid)
        if what == 'begin':
            began[run_id, int(seq)] += 1
            assert at_it.get(run_id) in (None, str(killed)), f'two processes were at run {run_id} at once'
            at_it[run_id] = pid
        else:
            assert at_it.pop(run_id) == pid, f'two processes were at run {run_id} at once'
    assert {len(pids) for pids in whose.values()} == {1}, 'a run went from one living process to another'
    outcomes: Counter[str] = Counter()
    async with STORES[name][0](directory) as store:
        assert [run.id for run in await store.runs(status='success', limit=len(run_ids) + 1)] == run_ids
        for run_id in run_ids:
            run = store.run(run_id)
            assert (await run_or_resume(work_graph, persistence=run)).output == ANSWER
            *steps, _ = await store.history(run_id)
            assert [step.seq for step in steps] == ANSWER
            for step in steps:
                assert began[run_id, step.seq] == step.attempt == len(step.attempts)
                outcomes.update(attempt.outcome for attempt in step.attempts)
    return outcomes


def _share(name: str, directory: Path, workers: int, stack: ExitStack) -> list[Connection]:
    """Start so many workers."""
    return [stack.enter_context(child(_work, name, directory, None))[1] for _ in range(workers)]


def _wait_for(near: Connection) -> None:
    """Wait until a worker has nothing left to do."""
    while heard(near, patience=600) != 'done':
        pass


@pytest.mark.parametrize('name', list(STORES))
def test_shared_work(tmp_path: Path, name: str):
    """Processes that claim from one store finish all its runs, and run every node once."""
    run_ids = anyio.run(_fill, name, tmp_path)
    with ExitStack() as stack:
        for near in _share(name, tmp_path, WORKERS, stack):
            _wait_for(near)
    assert anyio.run(_check, name, tmp_path, run_ids) == {'success': NODES * len(run_ids)}


@pytest.mark.parametrize('name', list(STORES))
def test_a_worker_is_killed(tmp_path: Path, name: str):
    """What a worker had begun that is killed in the middle of it the others finish."""
    run_ids = anyio.run(_fill, name, tmp_path)
    with ExitStack() as stack:
        process, near = stack.enter_context(child(_work, name, tmp_path, NODES // 2))
        assert heard(near) == 'node 0'
        assert heard(near) == f'node {NODES // 2}'
        others = _share(name, tmp_path, WORKERS - 1, stack)
        assert heard(others[0]) == 'node 0'
        killed = process.pid
        process.kill()
        process.join()
        for other in others:
            _wait_for(other)
    outcomes = anyio.run(_check, name, tmp_path, run_ids, killed)
    assert outcomes == {'success': NODES * len(run_ids), 'recovered': 1}
