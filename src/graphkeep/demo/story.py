"""The story: start a run, kill its process half way, go on in another one, see what held."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio

from ..errors import GraphkeepError
from .events import Event
from .shops import ADD_UP, CITIES
from .telling import Telling, process, run_story
from .verdict import Evidence, checks, result, steps_table, surveyed
from .view import View, new_view

__all__ = ('WORKER', 'MappedRun', 'run_demo')

WORKER: Final = (sys.executable, '-m', 'graphkeep.demo.worker')
"""The command that runs the graph; the store's file is put behind it."""

_KILL_AFTER: Final = len(CITIES) // 2  # shops that are saved


def run_demo(
    directory: Path | None = None, *, view: View | None = None, worker: Sequence[str] = WORKER
) -> int:
    """Tell the story of one run and return the exit code: 0 only if everything that is promised held.

    Args:
        directory: Where to keep the store; by default a new temporary directory.
        view: Where to tell it; by default the standard output.
        worker: The command that runs the graph in the store that is named behind it.
    """
    return run_story(MappedRun, directory, view=view or new_view(), command=worker)


class MappedRun(Telling):
    """Tells of one run of a builder graph."""

    query = "SELECT seq, node_id, status, attempt FROM steps WHERE kind = 'task'"
    read_next = 'docs/how-to/builder-graphs.md, how runs of such graphs are kept.'

    def tell(self) -> int:
        """Tell the story, and return the exit code."""
        self.view.say(
            f'The orders of {len(CITIES)} shops are to be added up, all at the same time: a builder graph '
            'maps a step over the shops, and each step adds its shop to the books, a state that they share. '
            'It runs in a process of its own. That process is killed half way, and a second one goes on.'
        )
        evidence = Evidence()
        try:
            if not (self.first_process(evidence) and self.second_process(evidence)):
                return 1
            return self.ending(evidence)
        except GraphkeepError as exc:
            return self.broken(f'The store could not be read: {exc}')

    def first_process(self, evidence: Evidence) -> bool:
        """Start the run and kill its process; tell whether that could be done."""
        self.view.heading('1. A process starts the run')
        killed = False
        with self.child('first-process') as child:
            for event in child.events():  # those that it said before it was killed are read to the end
                self._report(event, evidence.first)
                if not killed and _saved(evidence.first) == _KILL_AFTER:
                    child.kill()
                    killed = True
            evidence.first_code = code = child.wait()
            if not killed:
                return self.gave_up('the first process', code, child.complaint())
        self.view.event(process(child.pid), 'KILLED with SIGKILL (kill -9)', 'bad')
        evidence.when_killed = held = anyio.run(surveyed, self.file)
        self.view.say(
            f'The process could not tidy up. In the store are {held.finished} finished shops, and books with '
            f'{len(held.counted)} shops in them. It was in the middle of these, so many pieces of work far:'
        )
        self.view.say(', '.join(_how_far(evidence)) + '.', indent=4)
        return True

    def second_process(self, evidence: Evidence) -> bool:
        """Let another process go on; tell whether it came to an end."""
        self.view.heading('2. A second process goes on: the same command again')
        before = evidence.when_killed.finished
        with self.child('second-process') as child:
            for event in child.events():
                self._report(event, evidence.second, before)
            if (code := child.wait()) != 0:
                return self.gave_up('the second process', code, child.complaint())
        evidence.second_code = code
        evidence.at_end = anyio.run(surveyed, self.file)
        return True

    def ending(self, evidence: Evidence) -> int:
        """Show what came of it, and return the exit code."""
        view = self.view
        view.heading('3. What happened')
        columns, rows, marked = steps_table(evidence.at_end.steps.values())
        view.table(columns, rows, marked=marked)
        self._why(evidence)
        view.heading('4. The result')
        evidence.result = anyio.run(result, self.file)
        view.show(evidence.result)
        view.heading('5. What was promised, and whether it held')
        return self.verdict(checks(evidence))

    def _report(self, event: Event, events: list[Event], before: int = 0) -> None:
        """Tell what a process said, where that is worth a line, and put it with what it said before."""
        events.append(event)
        who = process(event.pid)
        if event.kind == 'waiting':
            self.view.event(who, 'waits, for it cannot be seen here that the first process is gone', 'quiet')
        elif event.kind == 'started' and event.step != ADD_UP:
            self.view.event(who, f'{event.step} started')
        elif event.kind == 'progress' and sum(e.kind == 'progress' for e in events) == 1:
            at_once = sum(e.kind == 'started' and e.step == ADD_UP for e in events)
            self.view.event(who, f'{ADD_UP} started, for {at_once} shops at the same time')
        elif event.kind == 'saved':
            number = before + _saved(events)
            text = f'{event.item} finished and saved, {number} of {len(CITIES)}'
            self.view.event(who, f'{ADD_UP} {text}', 'good')
        elif event.kind == 'finished':
            self.view.event(who, 'the run finished and saved', 'good')

    def _why(self, evidence: Evidence) -> None:
        again = {(event.step, event.item) for event in evidence.second if event.kind == 'started'}
        not_again = [city for city in CITIES if (ADD_UP, city) in evidence.when_killed.saved - again]
        self.view.say(
            f'NOT run again: {_listed(not_again)}. They were saved before the kill, and the second process '
            'never started them: it had their results, and the books with them, from the store.'
        )
        twice = [city for city in CITIES if (ADD_UP, city) in again and city not in not_again]
        self.view.say(
            f'Run again: {_listed(twice)}. They had begun and not ended when the first process was killed, '
            'so there was no result to save. They ran again from their beginning.'
        )


def _saved(events: Sequence[Event]) -> int:
    return sum(event.kind == 'saved' for event in events)


def _how_far(evidence: Evidence) -> list[str]:
    """Return how far the steps were that were in flight."""
    done = {(event.step, event.item): event for event in evidence.first if event.total}
    return [
        f'{city} {done[step, city].done} of {done[step, city].total}' for step, city in evidence.in_flight
    ]


def _listed(cities: Sequence[str]) -> str:
    *most, last = cities or ('none',)
    return f'{", ".join(most)} and {last}' if most else last
