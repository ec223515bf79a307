"""`python -m graphkeep demo`, run for real: the story it tells, and that it tells no other."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import pytest

from graphkeep import FullStatePersistence, SnapshotStatus, SqliteStore, StepRecord, UnsupportedHostError
from graphkeep.__main__ import main
from graphkeep.commit import Attempt
from graphkeep.demo import telling
from graphkeep.demo.child import Child
from graphkeep.demo.events import Event
from graphkeep.demo.graph import ReadOrders, Report, report_graph, unwatched
from graphkeep.demo.view import WIDTH, PlainView, RichView, View, new_view
from tests.crash.demos import AS_INSTALLED, WITHOUT_RICH, plain, run_demo_in

if TYPE_CHECKING:
    from graphkeep.demo.verdict import Survey

try:
    from graphkeep.demo import story
    from graphkeep.demo.shops import ADD_UP, CITIES, LIST_SHOPS, MONTH, WRITE_REPORT, Books, shops_graph
    from graphkeep.demo.shops import unwatched as unwatched_shops
    from graphkeep.demo.verdict import Evidence, checks, steps_table, surveyed, uninterrupted
except (UnsupportedHostError, ModuleNotFoundError):
    pytest.skip('the installed pydantic-graph has no builder graphs', allow_module_level=True)

pytestmark = pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='the demo needs SIGKILL')

PROMISES: Final = 7
HALF: Final = len(CITIES) // 2


def rich(*, terminal: bool = False) -> tuple[View, io.StringIO]:
    """Return a view that writes through rich, and where."""
    console = pytest.importorskip('rich.console')
    out = io.StringIO()
    return RichView(console.Console(file=out, width=WIDTH, force_terminal=terminal, highlight=False)), out


# -------------------------------------------------------------------------------------------- the real thing


@pytest.mark.parametrize('command', [AS_INSTALLED, WITHOUT_RICH], ids=['as-installed', 'no-rich'])
def test_the_demo_shows_a_run_that_survives_its_process(command: tuple[str, ...], tmp_path: Path):
    """The demo exits with 0, and its text and its store tell the same: what was saved ran once."""
    text = run_demo_in(tmp_path, command)
    assert '\x1b' not in text, 'no colours where there is no terminal'
    assert all(len(line) <= WIDTH for line in text.splitlines() if str(tmp_path) not in line)

    survey = anyio.run(surveyed, tmp_path / 'runs.db')
    assert [step for step, _ in survey.steps] == [LIST_SHOPS, *[ADD_UP] * len(CITIES), WRITE_REPORT]
    assert survey.ended
    assert sorted(survey.counted) == sorted(CITIES)
    once = [city for (_, city), record in survey.steps.items() if city and record.attempt == 1]
    twice = [record for record in survey.steps.values() if record.attempt == 2]
    assert len(once) >= HALF
    assert len(once) + len(twice) == len(CITIES)
    assert {tuple(a.outcome for a in record.attempts) for record in twice} == {('recovered', 'success')}
    first, second = process_of(survey, LIST_SHOPS), process_of(survey, WRITE_REPORT)
    assert first != second

    told = ' '.join(text.split())
    assert f'process {first} KILLED with SIGKILL (kill -9)' in told
    assert f'process {second} {ADD_UP} started, for {len(twice)} shops at the same time' in told
    assert f'NOT run again: {", ".join(once[:-1])} and {once[-1]}.' in told
    assert told.count('finished and saved') == len(CITIES) + 1
    assert f'{len(CITIES)} of {len(CITIES)}' in told
    assert len(re.findall(r'^  yes  ', text, re.MULTILINE)) == PROMISES
    assert not re.search(r'^  NO ', text, re.MULTILINE)
    assert 'docs/how-to/builder-graphs.md' in text

    asked = re.search(r'^    (\S.* \\\n .*)$', text, re.MULTILINE)
    assert asked is not None
    assert output_of(asked[1]).count(f'|{ADD_UP}|success|2\n') == len(twice)


def process_of(survey: Survey, step: str) -> str:
    """Return the process that ran a step which is there once."""
    (attempt,) = survey.steps[step, ''].attempts
    return (attempt.owner or '').split()[1]


def output_of(command: str) -> str:
    """Return what a command prints that the demo has printed."""
    command = re.sub(r'^python ', f'{sys.executable} ', command)
    return subprocess.run(['sh', '-c', command], capture_output=True, encoding='utf-8', check=True).stdout  # noqa: S607


@pytest.mark.anyio
async def test_a_store_can_be_asked_where_there_is_no_sqlite3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without the command sqlite3 a command of Python's is shown that does the same."""
    file = tmp_path / "it's here.db"
    async with SqliteStore(file) as store:
        await shops_graph.run(state=Books(), inputs=MONTH, persistence=store.run('one'), deps=unwatched_shops)

    def nowhere(command: str) -> None:
        return None

    monkeypatch.setattr(telling.shutil, 'which', nowhere)
    view, out = plain()
    story.MappedRun(view, file, ()).verdict([])
    asked = re.search(r'^    (python (?:.|\n)*)\nRead next', out.getvalue(), re.MULTILINE)
    assert asked is not None
    assert LIST_SHOPS in output_of(asked[1])


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path):
    """Interrupted, the demo stops its child, tells where the run is, and exits with 130."""
    demo = subprocess.Popen(
        [sys.executable, '-m', 'graphkeep', 'demo', '--directory', str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding='utf-8',
        # whoever runs the tests in the background may have it ignored, and children inherit that
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert demo.stdout is not None
    child = next(
        int(m[1]) for line in demo.stdout if (m := re.search(r'process (\d+) +list_shops started', line))
    )
    demo.send_signal(signal.SIGINT)
    text, errors = demo.communicate(timeout=60)
    assert (demo.returncode, errors) == (130, '')
    assert 'Interrupted' in text
    assert str(tmp_path / 'runs.db') in text
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# ---------------------------------------------------------------------------------------- when it goes wrong


@pytest.mark.parametrize(
    'program, said',
    [
        ('raise SystemExit("no orders today")', 'ended with exit code 1'),
        ('import os, signal; os.kill(os.getpid(), signal.SIGTERM)', 'was ended by signal 15'),
    ],
)
def test_a_process_that_fails_is_told_and_exits_with_1(program: str, said: str, tmp_path: Path):
    """A first process that ends too early is no success: the demo says how it ended, and what it wrote."""
    view, out = plain()
    code = story.run_demo(tmp_path, view=view, worker=(sys.executable, '-c', program))
    assert code == 1
    assert said in ' '.join(out.getvalue().split())
    assert ('no orders today' in out.getvalue()) == ('no orders' in program)


FAILS_SECOND: Final = """
import sys, pathlib
from graphkeep.demo import worker
file = pathlib.Path(sys.argv[1])
if (file.parent / 'second-process.log').exists():
    raise SystemExit('the second one is broken')
worker.main()
"""


def test_a_second_process_that_fails_exits_with_1(tmp_path: Path):
    """A run that could not be resumed is no success."""
    view, out = plain()
    code = story.run_demo(tmp_path, view=view, worker=(sys.executable, '-c', FAILS_SECOND))
    assert code == 1
    text = ' '.join(out.getvalue().split())
    assert 'KILLED with SIGKILL' in text
    assert 'The second process ended with exit code 1' in text
    assert 'the second one is broken' in text


STARTS_ANEW: Final = """
import sys, pathlib
from graphkeep.demo import worker
file = pathlib.Path(sys.argv[1])
if (file.parent / 'second-process.log').exists():
    for part in file.parent.glob('runs.db*'):
        part.unlink()
worker.main()
"""

FORGETS: Final = """
import sqlite3, sys, pathlib
from graphkeep.demo import worker
file = pathlib.Path(sys.argv[1])
if (file.parent / 'second-process.log').exists():
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("UPDATE steps SET status = 'created', attempts = NULL, attempt = 0 WHERE seq = "
               "(SELECT min(seq) FROM steps WHERE node_id = 'add_up' AND status = 'success')")
    db.close()
worker.main()
"""


def test_a_second_process_that_starts_anew_is_found_out(tmp_path: Path):
    """A second process that ran finished steps again gets the right result, and is found out all the same."""
    view, out = plain()
    code = story.run_demo(tmp_path, view=view, worker=(sys.executable, '-c', STARTS_ANEW))
    assert code == 1
    text = ' '.join(out.getvalue().split())
    assert f'NO None of these {HALF} shops was added up again' in text
    assert 'yes Every step is finished, each shop is in the books once' in text
    assert 'yes The result is the one of a run that nobody interrupts' in text
    assert 'Not all of it held' in text


def test_a_store_that_forgets_a_step_is_found_out(tmp_path: Path):
    """A store that has lost that one step ended has it run again, and its shop counted twice."""
    view, out = plain()
    code = story.run_demo(tmp_path, view=view, worker=(sys.executable, '-c', FORGETS))
    assert code == 1
    text = ' '.join(out.getvalue().split())
    assert f'NO None of these {HALF} shops was added up again' in text
    assert 'NO Every step is finished, each shop is in the books once' in text
    assert 'NO The result is the one of a run that nobody interrupts' in text


@pytest.mark.parametrize('which', ['first', 'second'])
def test_a_damaged_store_is_told(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store that cannot be read after a process has ended is told, with its place, and exits with 1."""
    real, name = story.surveyed, f'{which}-process.log'

    def damage(file: Path) -> None:
        if (file.parent / name).exists():
            for part in file.parent.glob('runs.db-*'):
                part.unlink()
            file.write_bytes(b'{' * 4096)

    async def after_damage(file: Path) -> Survey:
        damage(file)
        return await real(file)

    monkeypatch.setattr(story, 'surveyed', after_damage)
    view, out = plain()
    assert story.run_demo(tmp_path, view=view) == 1
    assert 'The store could not be read' in out.getvalue()
    assert 'is not a database' in ' '.join(out.getvalue().split())


def test_a_process_that_hangs_is_given_up(tmp_path: Path):
    """A process that takes longer than it may is killed."""
    with Child(
        [sys.executable, '-c', 'import time; time.sleep(600)'], log=tmp_path / 'log', patience=0.2
    ) as child:
        assert list(child.events()) == []
        assert child.wait() == -signal.SIGKILL


# ------------------------------------------------------------------------------------------------ beforehand


def test_a_directory_that_has_a_store_is_left_alone(tmp_path: Path):
    """The demo does not go on with somebody else's runs, nor overwrite them."""
    file = tmp_path / 'runs.db'
    file.write_text('mine')
    view, out = plain()
    assert story.run_demo(tmp_path, view=view) == 1
    assert 'There is a store already' in out.getvalue()
    assert file.read_text() == 'mine'


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path):
    """A directory that cannot be made is told in one sentence."""
    (tmp_path / 'file').touch()
    view, out = plain()
    assert story.run_demo(tmp_path / 'file' / 'below', view=view) == 1
    assert 'Give another --directory' in ' '.join(out.getvalue().split())


def test_a_system_without_sigkill_is_told(monkeypatch: pytest.MonkeyPatch):
    """Where there is no SIGKILL, the demo says so and exits with 1."""
    monkeypatch.delattr(signal, 'SIGKILL')
    view, out = plain()
    assert story.run_demo(view=view) == 1
    assert 'Windows' in out.getvalue()


def test_by_default_the_run_is_kept_in_a_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Without `--directory` a new temporary directory is made, and its path printed, whatever happens."""
    monkeypatch.setattr(telling.tempfile, 'tempdir', str(tmp_path))

    def tell(self: story.MappedRun) -> int:
        self.view.show(str(self.file))
        return 0

    monkeypatch.setattr(story.MappedRun, 'tell', tell)
    assert main(['demo']) == 0
    (made,) = tmp_path.iterdir()
    assert made.name.startswith('graphkeep-demo-')
    assert str(made / 'runs.db') in capsys.readouterr().out


def test_the_version_names_both_packages(capsys: pytest.CaptureFixture[str]):
    """`--version` tells which graphkeep and which pydantic-graph these are."""
    with pytest.raises(SystemExit) as exited:
        main(['--version'])
    assert exited.value.code == 0
    assert re.match(r'graphkeep \S+.*, pydantic-graph [12]\.\S+, Python 3\.', capsys.readouterr().out)


def test_no_command_prints_how_to_use_it(capsys: pytest.CaptureFixture[str]):
    """Without a command the usage is printed, and the exit code is argparse's 2."""
    with pytest.raises(SystemExit) as exited:
        main([])
    assert exited.value.code == 2
    assert 'COMMAND' in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the parts of it


@pytest.mark.anyio
async def test_the_graph_gives_the_same_report_each_time():
    """What the demo compares its result with does not change from run to run."""
    first, second = [
        await report_graph.run(
            ReadOrders(), state=Report(), deps=unwatched, persistence=FullStatePersistence()
        )
        for _ in range(2)
    ]
    assert first.output == second.output
    assert first.output.startswith('April 2026: 360 orders, 4 corrected')


def test_what_is_no_event_is_passed_over():
    """A line on standard output that is no event does not end the story."""
    event = Event(kind='saved', pid=1, step='ReadOrders', seq=1)
    assert Event.from_line(event.to_line()) == event
    assert Event.from_line('hello') is Event.from_line('[]') is Event.from_line('{"kind": "saved"}') is None


AT: Final = datetime(2026, 4, 1, 12, 30, 5, 250_000, tzinfo=UTC)


def record(
    node_id: str, status: SnapshotStatus, *attempts: Attempt, path: tuple[tuple[str, int], ...] = ()
) -> StepRecord:
    """Return a task's record."""
    return StepRecord(
        'id', node_id, 'task', status, start_ts=AT, attempt=len(attempts), attempts=attempts, path=path
    )


def test_the_table_has_a_row_for_each_step():
    """Each step is a row, with its shop; those that ran twice are marked; what is not known is a dash."""
    lost = Attempt(None, None, 'recovered', owner='process 7 on host')
    done = Attempt(AT, 0.5, 'success', owner='process 8 on host')
    columns, rows, marked = steps_table(
        [
            record(LIST_SHOPS, 'success', done),
            record(ADD_UP, 'success', lost, done, path=(('map', 2),))._replace(duration=0.5),
            record(ADD_UP, 'created', path=(('map', 0),))._replace(start_ts=None),
        ]
    )
    assert len(columns) == 7
    assert rows == [
        (LIST_SHOPS, '-', 'success', '1', '12:30:05.2', '-', '8'),
        (ADD_UP, 'Cairo', 'success', '2', '12:30:05.2', '0.50 s', '8'),
        (ADD_UP, 'Athens', 'created', '0', '-', '-', '-'),
    ]
    assert marked == {1}


def test_nothing_seen_is_nothing_held():
    """Without evidence no promise counts as kept."""
    assert [check.text for check in checks(Evidence()) if check.held] == []


@pytest.mark.anyio
async def test_the_shops_come_to_the_same_each_time():
    """What the demo compares its result with does not change from run to run."""
    first, second = await uninterrupted(), await uninterrupted()
    assert first == second
    assert first.startswith('April 2026: 20 shops, 7,200 orders, 80 corrected')


@pytest.mark.parametrize('make', [plain, rich])
def test_both_views_show_the_same(make: Callable[[], tuple[View, io.StringIO]]):
    """Everything that is told is in the text of either view, and paths stay in one piece."""
    view, out = make()
    path = '/a/very/long/path/' + 'x' * 90 + '/report.json'
    view.heading('A heading')
    view.say('word ' * 40, indent=2)
    view.show(f'{path}\n[bold] is no markup')
    view.event('process 12', 'Step started', 'quiet')
    view.check('it held', held=True)
    view.check('it did not ' * 10, held=False)
    view.table(('Step', 'Duration'), [('1 A', '0.10 s'), ('2 B', '-')], marked=frozenset({1}))
    text = out.getvalue()
    assert path in text
    assert '[bold] is no markup' in text
    assert all(len(line) <= WIDTH for line in text.splitlines() if path not in line)
    assert re.search(r'^  word( word)+$', text, re.MULTILINE)
    assert re.search(r'^  process 12 +Step started', text, re.MULTILINE)
    assert re.search(r'^  yes  it held', text, re.MULTILINE)
    assert re.search(r'^  NO   it did', text, re.MULTILINE)
    assert re.search(r'^ ?> +2 B +-', text, re.MULTILINE)
    assert re.search(r'^ +1 A +0.10 s', text, re.MULTILINE)


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch):
    """The library rich writes colours to a terminal, and nowhere else."""
    monkeypatch.setenv('TERM', 'xterm')
    for name in ('NO_COLOR', 'FORCE_COLOR'):
        monkeypatch.delenv(name, raising=False)
    for terminal in (True, False):
        view, out = rich(terminal=terminal)
        view.event('process 1', 'Step finished', 'good')
        assert ('\x1b[' in out.getvalue()) is terminal


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch):
    """With NO_COLOR set nothing is coloured, even on a terminal."""
    monkeypatch.setenv('NO_COLOR', '1')
    view, out = rich(terminal=True)
    view.check('it held', held=True)
    assert '\x1b[32m' not in out.getvalue()


@pytest.mark.parametrize('installed', [True, False])
def test_rich_is_used_where_it_is_installed(installed: bool, monkeypatch: pytest.MonkeyPatch):
    """The view is rich's if rich can be imported, and plain text otherwise."""
    if installed:
        pytest.importorskip('rich')
    else:
        monkeypatch.setitem(sys.modules, 'rich.console', None)
    assert isinstance(new_view(), RichView if installed else PlainView)


WAITS: Final = """
import sys, anyio
from graphkeep import SqliteStore
from graphkeep.demo.shops import MONTH, Books, shops_graph
from graphkeep.demo.worker import RUN
async def main():
    persistence = SqliteStore(sys.argv[1], lease=1.0).run(RUN)
    async with shops_graph.iter(state=Books(), inputs=MONTH, persistence=persistence):
        print('claimed', flush=True)
        await anyio.sleep(600)
anyio.run(main)
"""


def test_a_worker_waits_while_another_process_has_the_run(tmp_path: Path):
    """Where the run is owned, the worker says that it waits, and goes on when the owner is gone."""
    file = tmp_path / 'runs.db'
    with subprocess.Popen([sys.executable, '-c', WAITS, str(file)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b'claimed\n'
        with Child([*story.WORKER, str(file)], log=tmp_path / 'log', patience=60) as child:
            events = child.events()
            assert next(events).kind == 'waiting'
            owner.kill()
            assert {event.kind for event in events} >= {'started', 'saved'}
            assert child.wait() == 0, child.complaint()
