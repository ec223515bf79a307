"""The story: start a run, kill its process in the middle of a step, go on in another one, see what held."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio

from ..commit import StepRecord
from ..errors import GraphkeepError
from .events import Event
from .graph import PredictSales
from .telling import Telling, process, run_story
from .verdict import Evidence, checks, recorded, steps_table, text_of_result
from .view import Tone, View, new_view

__all__ = ('WORKER', 'OneRun', 'run_demo')

WORKER: Final = (sys.executable, '-m', 'graphkeep.demo.worker')
"""The command that runs the graph; the store's file is put behind it."""

_KILL_AFTER: Final = PredictSales.get_node_id(), 5  # the step, and how many pieces of it are done by then
_LONG: Final = 10  # pieces from which on a step is worth a line on how far it is


def run_demo(
    directory: Path | None = None, *, view: View | None = None, worker: Sequence[str] = WORKER
) -> int:
    """Tell the story of one run and return the exit code: 0 only if everything that is promised held.

    Args:
        directory: Where to keep the store; by default a new temporary directory.
        view: Where to tell it; by default the standard output.
        worker: The command that runs the graph in the store that is named behind it.
    """
    return run_story(OneRun, directory, view=view or new_view(), command=worker)


class OneRun(Telling):
    """Tells of one run."""

    query = 'SELECT seq, node_id, status, attempt FROM steps'

    def tell(self) -> int:
        """Tell the story, and return the exit code."""
        self.view.say(
            "A graph with six kinds of steps makes a small shop's monthly report. It runs in a process of "
            'its own. That process is killed in the middle of a step, and a second one goes on.'
        )
        evidence = Evidence(self.file)
        if not (self.first_process(evidence) and self.second_process(evidence)):
            return 1
        return self.ending(evidence)

    def first_process(self, evidence: Evidence) -> bool:
        """Start the run and kill its process; tell whether that could be done."""
        self.view.heading('1. A process starts the run')
        with self.child('first-process') as child:
            for event in child.events():
                evidence.first.append(event)
                self._report(event)
                if (event.step, event.done) == _KILL_AFTER:
                    child.kill()
                    evidence.killed = event
                    break
            code = child.wait()
            if evidence.killed is None:
                return self.gave_up('the first process', code, child.complaint())
        evidence.first_code = code
        step = evidence.killed.step
        self.view.event(process(child.pid), f'KILLED with SIGKILL (kill -9), in the middle of {step}', 'bad')
        if (records := self._load()) is None:
            return False
        evidence.when_killed = records
        saved = sum(record.status == 'success' for record in records)
        self.view.say(
            f'The process could not tidy up. The store holds {saved} finished steps, and {step}, still '
            'marked as running.'
        )
        return True

    def second_process(self, evidence: Evidence) -> bool:
        """Let another process go on; tell whether it came to an end."""
        self.view.heading('2. A second process goes on: the same command again')
        with self.child('second-process') as child:
            for event in child.events():
                evidence.second.append(event)
                self._report(event)
            if (code := child.wait()) != 0:
                return self.gave_up('the second process', code, child.complaint())
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
            return self.broken(f'The result could not be read: {exc}')
        view.show(evidence.result)
        view.heading('5. What was promised, and whether it held')
        return self.verdict(checks(evidence))

    def _report(self, event: Event) -> None:
        texts: dict[str, tuple[str, Tone]] = {
            'started': (f'{event.step} started', 'plain'),
            'progress': (f'{event.step} {event.done} of {event.total} done', 'quiet'),
            'saved': (f'{event.step} finished and saved', 'good'),
            'waiting': ('waits, for it cannot be seen here that the first process is gone', 'quiet'),
        }
        if event.kind != 'progress' or (event.total >= _LONG and event.done % 5 == 0):
            self.view.event(process(event.pid), *texts[event.kind])

    def _load(self) -> list[StepRecord] | None:
        try:
            return anyio.run(recorded, self.file)
        except GraphkeepError as exc:
            self.broken(f'The store could not be read: {exc}')
            return None


def _why_twice(killed: Event, when_killed: Sequence[StepRecord]) -> str:
    before = sum(record.status == 'success' for record in when_killed)
    return (
        f'{killed.step} ran twice: process {killed.pid} was killed while it ran, so it had no result to '
        'save. The second process ran it again from its beginning, with the data from before it. '
        f'The {before} steps that were finished by then were not run again: their results came from the '
        'store.'
    )
