"""The story: start a run, kill its process in the middle of a step, go on in another one, see what held."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from ..commit import StepRecord
from ..errors import GraphkeepError
from .child import Child
from .events import Event
from .graph import PredictSales
from .verdict import Evidence, checks, recorded, steps_table, text_of_result
from .view import Tone, View, new_view

__all__ = ('WORKER', 'Telling', 'run_demo', 'tell')

WORKER: Final = (sys.executable, '-m', 'graphkeep.demo.worker')
"""The command that runs the graph; the file is put behind it."""

_KILL_AFTER: Final = PredictSales.get_node_id(), 5  # the step, and how many pieces of it are done by then
_LONG: Final = 10  # pieces from which on a step is worth a line on how far it is
_PATIENCE: Final = 60.0  # seconds that one process may take; it needs about five


def run_demo(
    directory: Path | None = None, *, view: View | None = None, worker: Sequence[str] = WORKER
) -> int:
    """Tell the story and return the exit code: 0 only if everything that is promised held.

    Args:
        directory: Where to keep the run; by default a new temporary directory.
        view: Where to tell it; by default the standard output.
        worker: The command that runs the graph in the file that is named behind it.
    """
    view = view or new_view()
    if not hasattr(signal, 'SIGKILL'):
        view.say(
            'This demo kills a process with SIGKILL, which Windows does not have: run it on Linux or macOS.'
        )
        return 1
    try:
        place = (directory or Path(tempfile.mkdtemp(prefix='graphkeep-demo-'))).absolute()
        place.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        view.say(f'Cannot keep a run in {directory}: {exc.strerror}. Give another --directory.', tone='bad')
        return 1
    file = place / 'report.json'
    if file.exists():
        view.say(f'There is a run already, in {file}. Give another --directory, or delete it.', tone='bad')
        return 1
    try:
        return tell(file, view, worker)
    except KeyboardInterrupt:
        view.say('Interrupted: the process that ran the graph was stopped. The run so far is in', tone='bad')
        view.show(str(file))
        return 130


def tell(file: Path, view: View, worker: Sequence[str]) -> int:
    """Tell the story of the run that is to be in `file`, and return the exit code."""
    view.say(
        "A graph with six kinds of steps makes a small shop's monthly report. It runs in a process of its "
        'own. That process is killed in the middle of a step, and a second one goes on.'
    )
    evidence = Evidence(file)
    story = Telling(view, file, [*worker, str(file)])
    if not (story.first_process(evidence) and story.second_process(evidence)):
        return 1
    return story.ending(evidence)


@dataclass
class Telling:
    """Tells one run, part by part."""

    view: View
    file: Path
    command: Sequence[str]

    def first_process(self, evidence: Evidence) -> bool:
        """Start the run and kill its process; tell whether that could be done."""
        self.view.heading('1. A process starts the run')
        with self._child('first') as child:
            for event in child.events():
                evidence.first.append(event)
                self._report(event)
                if (event.step, event.done) == _KILL_AFTER:
                    child.kill()
                    evidence.killed = event
                    break
            code = child.wait()
            if evidence.killed is None:
                return self._gave_up('the first process', code, child.complaint())
        evidence.first_code = code
        step = evidence.killed.step
        self.view.event(_process(child.pid), f'KILLED with SIGKILL (kill -9), in the middle of {step}', 'bad')
        if (records := self._load()) is None:
            return False
        evidence.when_killed = records
        saved = sum(record.status == 'success' for record in records)
        self.view.say(
            f'The process could not tidy up. Its file holds {saved} finished steps, and {step}, still marked '
            'as running.'
        )
        return True

    def second_process(self, evidence: Evidence) -> bool:
        """Let another process go on; tell whether it came to an end."""
        self.view.heading('2. A second process goes on: the same command again')
        with self._child('second') as child:
            for event in child.events():
                evidence.second.append(event)
                self._report(event)
            if (code := child.wait()) != 0:
                return self._gave_up('the second process', code, child.complaint())
        evidence.second_code = code
        if (records := self._load()) is None:
            return False
        evidence.at_end = records
        return True

    def ending(self, evidence: Evidence) -> int:
        """Show what came of it, and return the exit code."""
        view = self.view
        view.heading('3. What happened')
        columns, rows, marked = steps_table(evidence.at_end)
        view.table(columns, rows, marked=marked)
        if evidence.killed is not None:
            view.say(_why_twice(evidence.killed, evidence.when_killed))
        view.heading('4. The result')
        try:
            evidence.result = anyio.run(text_of_result, self.file)
        except GraphkeepError as exc:
            return self._broken(f'The result could not be read: {exc}')
        view.show(evidence.result)
        view.heading('5. What was promised, and whether it held')
        verdicts = checks(evidence)
        for check in verdicts:
            view.check(check.text, held=check.held)
        self._where_to_look()
        return (
            0 if all(check.held for check in verdicts) else self._broken('Not all of it held: see NO above.')
        )

    def _child(self, which: str) -> Child:
        return Child(self.command, log=self.file.with_name(f'{which}-process.log'), patience=_PATIENCE)

    def _report(self, event: Event) -> None:
        texts: dict[str, tuple[str, Tone]] = {
            'started': (f'{event.step} started', 'plain'),
            'progress': (f'{event.step} {event.done} of {event.total} done', 'quiet'),
            'saved': (f'{event.step} finished and saved', 'good'),
            'waiting': ('waits, for it cannot be seen here that the first process is gone', 'quiet'),
        }
        if event.kind != 'progress' or (event.total >= _LONG and event.done % 5 == 0):
            self.view.event(_process(event.pid), *texts[event.kind])

    def _load(self) -> list[StepRecord] | None:
        try:
            return anyio.run(recorded, self.file)
        except GraphkeepError as exc:
            self._broken(f'The file could not be read: {exc}')
            return None

    def _gave_up(self, who: str, code: int, complaint: str) -> bool:
        ended = f'ended with exit code {code}' if code >= 0 else f'was ended by signal {-code}'
        self._broken(f'{who.capitalize()} {ended}, before the run was where it should be. What it wrote:')
        self.view.show(complaint or '(nothing)')
        return False

    def _broken(self, text: str) -> int:
        self.view.say(text, tone='bad')
        self.view.say('The run so far is in')
        self.view.show(str(self.file))
        return 1

    def _where_to_look(self) -> None:
        view = self.view
        view.heading('6. Look for yourself')
        view.say('The run is one JSON file, a step a line:')
        view.show(str(self.file))
        view.say('Print it nicely:')
        view.show(f'python -m json.tool {self.file}')
        view.say('Read next: docs/tutorial.md, from a first graph to a resumed run.')


def _why_twice(killed: Event, when_killed: Sequence[StepRecord]) -> str:
    before = sum(record.status == 'success' for record in when_killed)
    return (
        f'{killed.step} ran twice: process {killed.pid} was killed while it ran, so it had no result to '
        'save. The second process ran it again from its beginning, with the data from before it. '
        f'The {before} steps that were finished by then were not run again: their results came from the file.'
    )


def _process(pid: int) -> str:
    return f'process {pid}'
