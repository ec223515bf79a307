"""What a step costs in a SQLite store, next to LangGraph's and to bare `sqlite3`; run by run.py."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import pytest

from graphkeep import SqliteStore
from graphkeep.sqlschema import MIGRATIONS
from tests.benchmarks.bench_steps import Odd, State, graph

Prepare = Callable[[Path, int, int], AbstractContextManager[Callable[[], int]]]
Synchronous = Literal['NORMAL', 'FULL']


@contextmanager
def ours(path: Path, steps: int, size: int, *, runs: int = 1, **options: Any) -> Generator[Callable[[], int]]:
    """Give a function that runs the graph to its end, once or several times at once, in one store."""
    store = SqliteStore(path, **options)
    with asyncio.Runner() as runner:
        persistences = [store.run(f'run-{number}') for number in range(runs)]
        for persistence in persistences:
            persistence.set_graph_types(graph)
        runner.run(persistences[0].load_history())  # which opens the file

        async def run() -> int:
            starts = [
                graph.run(Odd(steps // runs), state=State(0, 'x' * size), persistence=persistence)
                for persistence in persistences
            ]
            return sum(result.output for result in await asyncio.gather(*starts))

        yield lambda: runner.run(run())
        runner.run(store.aclose())


@contextmanager
def langgraph(path: Path, steps: int, size: int, *, synchronous: Synchronous) -> Generator[Callable[[], int]]:
    """Give a function that runs LangGraph's graph to its end."""
    from tests.benchmarks.langgraph_peer import linear_runner

    with linear_runner(path, steps, size, synchronous) as run:
        yield run


@contextmanager
def bare(
    path: Path, steps: int, size: int, *, synchronous: Synchronous, runs: int = 1, in_a_thread: bool = False
) -> Generator[Callable[[], int]]:
    """Give a function that makes the same two commits a step in the same tables, and does nothing else.

    The first writes who has the run and what is in hand; the second that nobody has, how the step ended, and
    the next one with its state. Several runs take turns of as many steps as one of ours takes before it gives
    way. Where the disk is waited for `in_a_thread`, an event loop awaits that, once a step.
    """
    owner = f'{{"id":"{"0" * 32}","host":"host","pid":12345,"domain":"{"0" * 60}","started":"123456"}}'
    state, node, step_id = b'x' * (size + 30), b'{"until":1000,"node_id":"Odd"}', f'Odd:{"0" * 32}'
    start = (
        'UPDATE runs SET version = version + 1, status = ?, steps = ?, updated = ?, fence = ?, owner = ?, '
        'expires = ?, in_hand = ? WHERE run = ? AND version = ?'
    )
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute('PRAGMA page_size = 2048')
        db.execute('PRAGMA journal_mode = WAL')
        db.execute(f'PRAGMA synchronous = {synchronous}')
        for statement in MIGRATIONS[0]:
            db.execute(statement)
        db.executemany(
            'INSERT INTO runs (id, version, status, finished, steps, created, updated, fence, in_hand) '
            "VALUES (?, 0, 'created', 0, 0, 0, 0, 0, '[]')",
            [(f'run-{number}',) for number in range(runs)],
        )

        def step(n: int, run: int = 1) -> None:
            now = 1_700_000_000_000_000 + n
            in_hand = f'[[{n},"running",{now},null,1,"process 12345 on host",null]]'
            db.execute('BEGIN IMMEDIATE')
            db.execute(start, ('running', n, now, n, owner, now, in_hand, run, 2 * n))
            db.execute('COMMIT')
            db.execute('BEGIN IMMEDIATE')
            db.execute(start, ('created', n, now, n, None, None, '[]', run, 2 * n + 1))
            db.execute(
                'UPDATE steps SET status = ?, start_ts = ?, duration = ?, attempt = ?, owner = ?, '
                'attempts = ? WHERE run = ? AND seq = ?',
                ('success', now, 0.001, 1, 'process 12345 on host', None, run, n - 1),
            )
            body = db.execute('INSERT INTO bodies (state, node) VALUES (?, ?)', (state, node)).lastrowid
            db.execute(
                'INSERT INTO steps (run, seq, id, node_id, kind, status, attempt, body) '
                "VALUES (?, ?, ?, 'Odd', 'node', 'created', 0, ?)",
                (run, n, step_id, body),
            )
            db.execute('COMMIT')

        def in_turns() -> int:
            each = steps // runs
            for begins in range(0, each, TURN):
                for run in range(1, runs + 1):
                    for n in range(begins, min(begins + TURN, each)):
                        step(n, run)
            return steps

        async def run_in_a_loop() -> int:
            for n in range(steps):
                step(n)
                await asyncio.get_running_loop().run_in_executor(None, os.fdatasync, log.fileno())
            return steps

        with open(f'{path}-wal', 'rb+') as log:
            yield (lambda: asyncio.run(run_in_a_loop())) if in_a_thread else in_turns


# Machines have moments in which everything takes longer, and what is compared should not be measured in
# different ones: each is measured several times, in turns with the others, for some seconds each time.
TURNS = 3
LONG = 3.0
TURN = 20  # steps that a run goes on before it gives way, where others are at it
SUBJECTS: dict[str, Prepare] = {
    'graphkeep': ours,
    'graphkeep, verify=False': partial(ours, verify=False),
    'LangGraph 1.2, synchronous=NORMAL': partial(langgraph, synchronous='NORMAL'),
    'bare sqlite3': partial(bare, synchronous='NORMAL'),
    "graphkeep, durability='full'": partial(ours, durability='full'),
    'LangGraph 1.2': partial(langgraph, synchronous='FULL'),
    'bare sqlite3, synchronous=FULL': partial(bare, synchronous='FULL'),
    'bare sqlite3, waiting in a thread': partial(bare, synchronous='NORMAL', in_a_thread=True),
}
AT_ONCE: dict[str, Prepare] = {
    'graphkeep': partial(ours, runs=100),
    'bare sqlite3': partial(bare, synchronous='NORMAL', runs=100),
    "graphkeep, durability='full'": partial(ours, runs=100, durability='full'),
}


def cases() -> Iterator[Any]:
    """Yield every case, those that are compared one after another."""
    for turn in range(TURNS):
        # one of 1,000 steps, and one that is as long as each of those that are run at once
        for steps, size in ((1_000, 100), (1_000, 10_000), (100, 100)):
            for subject in SUBJECTS if steps == 1_000 else AT_ONCE:
                yield pytest.param('SQLite', steps, size, subject, id=f'{turn}-{steps}-{size}-{subject}')
        for steps in (10_000, 100_000):
            for subject in AT_ONCE if steps == 10_000 else ('graphkeep', 'bare sqlite3'):
                id_ = f'{turn}-at-once-{steps}-{subject}'
                yield pytest.param('SQLite, 100 runs at once', steps, 100, subject, id=id_)


@pytest.mark.parametrize('kind,steps,size,subject', list(cases()))
def test_step(benchmark: Any, tmp_path: Path, kind: str, steps: int, size: int, subject: str) -> None:
    """A linear graph runs to its end."""
    benchmark.group = f'{kind}, {steps:,} steps, state of {size:,} bytes'
    benchmark.extra_info.update(kind=kind, steps=steps, size=size, subject=subject, idle=0.0)
    prepare = (SUBJECTS if kind == 'SQLite' else AT_ONCE)[subject]
    open_: list[AbstractContextManager[Callable[[], int]]] = []

    with TemporaryDirectory(dir=tmp_path) as scratch:

        def set_up() -> tuple[tuple[Any], dict[str, Any]]:
            tear_down()
            open_.append(prepare(Path(scratch) / f'{len(list(Path(scratch).iterdir()))}.db', steps, size))
            return (open_[-1].__enter__(),), {}

        def tear_down() -> None:
            if open_:
                open_.pop().__exit__(None, None, None)

        (run,), _ = set_up()
        begun = perf_counter()
        run()
        took = perf_counter() - begun
        rounds = max(1 if took > LONG else 3, min(50, round(LONG / took)))
        output = benchmark.pedantic(_called, setup=set_up, rounds=rounds)
        tear_down()
    assert output == steps


def _called(run: Callable[[], int]) -> int:
    return run()
