"""`python -m graphkeep demo --workers N`, run for real: several processes share runs, and one is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import date
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import pytest

from graphkeep import SqliteStore
from graphkeep.__main__ import main
from graphkeep.commit import Attempt, StepRecord
from graphkeep.demo import crew, sharer
from graphkeep.demo.crewverdict import CrewEvidence, crew_checks, runs_table, store_runs, surveyed
from graphkeep.demo.events import Event
from graphkeep.demo.view import WIDTH
from tests.crash.demos import AS_INSTALLED, WITHOUT_BUILDER, WITHOUT_RICH, plain, run_demo_in

pytestmark = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='the demo needs SIGKILL')

PROMISES: Final = 6


# -------------------------------------------------------------------------------------------- the real thing


@pytest.mark.parametrize(
    'workers, command',
    [(3, AS_INSTALLED), (2, WITHOUT_RICH), (1, AS_INSTALLED)],
    ids=['three', 'two-without-rich', 'one'],
)
def test_workers_share_runs_and_finish_those_of_a_killed_one(
    workers: int, command: tuple[str, ...], tmp_path: Path
):
    """The demo exits with 0, and its text and its store tell the same: one step of one run ran twice."""
    text = run_demo_in(tmp_path, command, '--workers', str(workers))
    assert '\x1b' not in text, 'no colours where there is no terminal'
    assert all(len(line) <= WIDTH for line in text.splitlines() if str(tmp_path) not in line)

    survey = anyio.run(surveyed, tmp_path / 'runs.db')
    assert len(survey) == workers + 3
    assert {steps[-1].kind for steps in survey.values()} == {'end'}
    (twice,) = [(run, record) for run, steps in survey.items() for record in steps if record.attempt > 1]
    run, record = twice
    assert [attempt.outcome for attempt in record.attempts] == ['recovered', 'success']
    first, second = (re.search(r'process (\d+)', str(attempt.owner)) for attempt in record.attempts)
    assert first is not None
    assert second is not None
    assert first[1] != second[1]

    told = ' '.join(text.split())
    worker = re.search(rf'worker (\d+) started, as process {first[1]}\b', told)
    assert worker is not None
    assert f'worker {worker[1]} KILLED with SIGKILL (kill -9), in PredictSales of {run}' in told
    assert f'takes over {run}, at PredictSales' in told
    assert f'PredictSales, step 6 of {run}, ran twice: worker {worker[1]} was killed' in told
    assert len(re.findall(r'\d{4}-\d\d finished and saved', told)) == workers + 3
    assert len(re.findall(r'^  yes  ', text, re.MULTILINE)) == PROMISES
    assert 'NO ' not in text
    assert str(tmp_path / 'runs.db') in text


def test_an_old_host_shows_one_worker(tmp_path: Path):
    """Where pydantic-graph has no builder graphs, the demo is the one of a single worker."""
    text = run_demo_in(tmp_path, WITHOUT_BUILDER)
    assert 'A process works on them, and is killed' in ' '.join(text.split())
    assert len(re.findall(r'^  yes  ', text, re.MULTILINE)) == PROMISES


def test_ctrl_c_leaves_no_worker_behind(tmp_path: Path):
    """Interrupted, the demo stops its workers, tells where the runs are, and exits with 130."""
    demo = subprocess.Popen(
        [sys.executable, '-m', 'graphkeep', 'demo', '--workers', '2', '--directory', str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding='utf-8',
        # whoever runs the tests in the background may have it ignored, and children inherit that
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert demo.stdout is not None
    workers: list[int] = []
    for line in demo.stdout:
        workers += [int(pid) for pid in re.findall(r'started, as process (\d+)', line)]
        if 'begins' in line:
            break
    demo.send_signal(signal.SIGINT)
    text, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (130, '')
    assert 'Interrupted' in text
    assert str(tmp_path / 'runs.db') in text
    assert len(workers) == 2
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize('number', ['0', '17', '-1', '3.0', 'three', '', '²'])
def test_a_number_of_workers_that_makes_no_sense_is_refused(number: str, capsys: pytest.CaptureFixture[str]):
    """What is not a number from 1 to 16 is a usage error that says so."""
    with pytest.raises(SystemExit) as exited:
        main(['demo', f'--workers={number}'])
    assert exited.value.code == 2
    assert f'must be a number from 1 to 16, not {number!r}' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- when it goes wrong


def test_workers_that_fail_are_told_and_exit_with_1(tmp_path: Path):
    """Workers that end too early are no success: the demo says how the first one ended, and what it wrote."""
    view, out = plain()
    program = 'raise SystemExit("no work today")'
    assert crew.run_crew_demo(2, tmp_path, view=view, worker=(sys.executable, '-c', program)) == 1
    text = ' '.join(out.getvalue().split())
    assert 'Worker 1 ended with exit code 1' in text
    assert 'no work today' in text


FORGETS: Final = """
import sqlite3, sys, pathlib
from graphkeep.demo import sharer
file = pathlib.Path(sys.argv[1])
if (file.parent / 'worker-2.log').exists():
    db = sqlite3.connect(file, isolation_level=None)
    ((run,),) = db.execute("SELECT run FROM runs WHERE status = 'running'")
    db.execute("DELETE FROM steps WHERE run = ? AND seq > 1", (run,))
    db.execute("UPDATE steps SET status = 'created', attempt = 0 WHERE run = ?", (run,))
    db.execute("UPDATE runs SET status = 'created', steps = 1, owner = NULL, expires = NULL, in_hand = '[]' "
               "WHERE run = ?", (run,))
    db.close()
sharer.main()
"""


def test_steps_that_run_again_are_found_out(tmp_path: Path):
    """A worker that ran finished steps again gets the right results, and is found out all the same."""
    view, out = plain()
    assert crew.run_crew_demo(1, tmp_path, view=view, worker=(sys.executable, '-c', FORGETS)) == 1
    text = ' '.join(out.getvalue().split())
    assert 'NO None of the 5 steps finished before that was run again' in text
    assert 'NO Exactly one step ran twice' in text
    assert 'yes Every result is the one of a run that nobody interrupts' in text
    assert 'Not all of it held' in text


def test_a_damaged_store_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store that cannot be read in the end is told, with its place, and exits with 1."""
    real = crew.results

    async def after_damage(file: Path) -> object:
        for part in file.parent.glob('runs.db-*'):
            part.unlink()
        file.write_bytes(b'{' * 4096)
        return await real(file)

    monkeypatch.setattr(crew, 'results', after_damage)
    view, out = plain()
    assert crew.run_crew_demo(2, tmp_path, view=view) == 1
    text = ' '.join(out.getvalue().split())
    assert 'The store could not be used' in text
    assert 'is not a database' in text


# ------------------------------------------------------------------------------------------- the parts of it


def test_nothing_seen_is_nothing_held():
    """Without evidence no promise counts as kept."""
    held = [check.text for check in crew_checks(CrewEvidence({'2026-01': date(2026, 1, 1)})) if check.held]
    assert held == []


def test_the_table_has_a_row_for_each_worker_at_a_run():
    """Each worker at a run has a row of its own; the rows of a run with a step that ran twice are marked."""
    one, two = 'process 1 on host', 'process 2 on host'

    def step(seq: int, *attempts: Attempt) -> StepRecord:
        return StepRecord(
            f'{seq}', 'Step', seq=seq, status='success', attempt=len(attempts), attempts=attempts
        )

    def success(owner: str) -> Attempt:
        return Attempt(None, None, 'success', owner=owner)

    end = StepRecord('end', 'End', 'end', 'success', 4)
    waiting = StepRecord('1', 'Step', seq=1)
    evidence = CrewEvidence(
        {},
        workers={1: 7, 2: 8},
        at_end={
            'a': [
                step(1, success(one)),
                step(2, Attempt(None, None, 'recovered', owner=one), success(two)),
                step(3, success(one)),
                end,
            ],
            'b': [step(1, success(one)), step(2, success(one)), end],
            'c': [waiting],
        },
    )
    _, rows, marked = runs_table(evidence)
    assert rows == [
        ('a', 'finished', '3', '7', '1', '1 to 2, killed in 2'),
        ('', '', '', '8', '2', '2, 2 again'),
        ('', '', '', '7', '1', '3'),
        ('b', 'finished', '2', '7', '1', '1 to 2'),
        ('c', 'created', '1', '-', '-', '1'),
    ]
    assert marked == {0, 1, 2}


@pytest.mark.anyio
async def test_a_worker_leaves_a_run_that_another_was_faster_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Between two steps a run is anybody's: the worker that was slower says so, and runs nothing of it."""
    file = tmp_path / 'runs.db'
    await store_runs(file, {'2026-01': date(2026, 1, 1)})
    async with SqliteStore(file) as store:
        faster, slower = store.run('2026-01'), store.run('2026-01')
        assert await faster.claim() is not None
        await sharer._go_on(slower, 0)
        (event,) = [Event.from_line(line) for line in capsys.readouterr().out.splitlines()]
        assert event is not None
        assert (event.kind, event.run) == ('left', '2026-01')

        await faster.release()
        await sharer.share(file, pause=0)
        assert [run.id for run in await store.runs(status='success')] == ['2026-01']
