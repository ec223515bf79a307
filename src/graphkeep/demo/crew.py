"""The story of several processes that share the runs of one store, and of which one is killed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import anyio

from ..errors import GraphkeepError
from .child import Child
from .crewverdict import (
    CrewEvidence,
    crew_checks,
    in_short,
    results,
    runs_table,
    store_runs,
    surveyed,
    why_twice,
)
from .events import Event
from .graph import PredictSales
from .telling import Telling, run_story
from .view import Tone, View, new_view

__all__ = ('SHARER', 'Crew', 'run_crew_demo')

SHARER: Final = (sys.executable, '-m', 'graphkeep.demo.sharer')
"""The command that claims runs and goes on with them; the store's file is put behind it."""

_KILL_AFTER: Final = PredictSales.get_node_id(), 3  # the step, and how many pieces of it are done by then
_YEAR: Final = 2026


def run_crew_demo(
    workers: int,
    directory: Path | None = None,
    *,
    view: View | None = None,
    worker: Sequence[str] = SHARER,
) -> int:
    """Tell the story of several processes and return the exit code: 0 only if all that is promised held.

    Args:
        workers: How many processes share the runs.
        directory: Where to keep the store; by default a new temporary directory.
        view: Where to tell it; by default the standard output.
        worker: The command that claims runs in the store that is named behind it.
    """
    story = partial(Crew, workers=workers)
    return run_story(story, directory, view=view or new_view(), command=worker)


@dataclass
class Crew(Telling):
    """Tells of several processes."""

    workers: int = 3
    """How many there are."""

    query = 'SELECT id, status, steps FROM runs'
    _children: list[Child] = field(default_factory=lambda: list[Child](), init=False)
    _news: SimpleQueue[tuple[Child, Event | None]] = field(
        default_factory=lambda: SimpleQueue[tuple[Child, Event | None]](), init=False
    )

    def tell(self) -> int:
        """Tell the story, and return the exit code."""
        months = self.workers + 3
        workers = f'{self.workers} processes work on them, and one is killed'
        if self.workers == 1:
            workers = 'A process works on them, and is killed'
        self.view.say(
            f"A small shop's reports of {months} months are to be made. Each is a run of one graph, and one "
            f'SQLite file has them all. {workers} in the middle of a step.'
        )
        firsts = [date(_YEAR + month // 12, month % 12 + 1, 1) for month in range(months)]
        evidence = CrewEvidence({f'{first:%Y-%m}': first for first in firsts})
        try:
            anyio.run(store_runs, self.file, evidence.months)
            if not self.processes(evidence):
                return 1
            evidence.at_end, evidence.results = anyio.run(results, self.file)
        except GraphkeepError as exc:
            return self.broken(f'The store could not be used: {exc}')
        return self.ending(evidence)

    def processes(self, evidence: CrewEvidence) -> bool:
        """Let the processes work, and kill one; tell whether the others came to their ends."""
        self.view.heading('1. The runs are stored, and wait')
        self.view.say(', '.join(evidence.months))
        self.view.heading('2. Each process claims a run, takes it to its end, and claims the next')
        with ExitStack() as stack:
            self._start(stack, self.workers)
            self._watch(stack, evidence)
            for number, child in enumerate(self._children, start=1):
                evidence.workers[child.pid] = number
                evidence.codes[child.pid] = code = child.wait()
                killed = evidence.killed is not None and evidence.killed.pid == child.pid
                if evidence.killed is None or (code != 0 and not killed):
                    return self.gave_up(f'worker {number}', code, child.complaint())
        return True

    def ending(self, evidence: CrewEvidence) -> int:
        """Show what came of it, and return the exit code."""
        view = self.view
        view.heading('3. What happened')
        columns, rows, marked = runs_table(evidence)
        view.table(columns, rows, marked=marked)
        view.say(why_twice(evidence))
        view.heading('4. The results')
        view.show('\n'.join(in_short(result) for result in evidence.results.values()))
        view.heading('5. What was promised, and whether it held')
        return self.verdict(crew_checks(evidence))

    def _start(self, stack: ExitStack, workers: int) -> None:
        for _ in range(workers):
            child = stack.enter_context(self.child(f'worker-{len(self._children) + 1}'))
            self._children.append(child)
            self._say(child, f'started, as process {child.pid}', 'quiet')
            child.report_to(partial(self._hear, child))

    def _hear(self, child: Child, event: Event | None) -> None:
        self._news.put((child, event))

    def _watch(self, stack: ExitStack, evidence: CrewEvidence) -> None:
        """Tell what the processes do until all have ended, and kill the first that is where it is to be."""
        ended = 0
        while ended < len(self._children):
            child, event = self._news.get()
            if event is None:
                ended += 1
                continue
            self._report(child, event, evidence)
            evidence.events.append(event)
            if (event.step, event.done) == _KILL_AFTER and evidence.killed is None:
                child.kill()
                evidence.killed = event
                self._say(child, f'KILLED with SIGKILL (kill -9), in {event.step} of {event.run}', 'bad')
                evidence.when_killed = anyio.run(surveyed, self.file)
                if self.workers == 1:
                    self.view.say('There is no other worker, so another one is started.')
                    self._start(stack, 1)

    def _report(self, child: Child, event: Event, evidence: CrewEvidence) -> None:
        if event.kind == 'started' and not evidence.is_at(event):
            text = f'goes on with {event.run}, at {event.step}' if event.seq > 1 else f'begins {event.run}'
            if (killed := evidence.killed) is not None and (killed.run, killed.seq) == (event.run, event.seq):
                text = f'takes over {event.run}, at {event.step}'
            self._say(child, text)
        elif event.kind == 'finished':
            self._say(child, f'{event.run} finished and saved', 'good')
        elif event.kind == 'left':
            self._say(child, f'leaves {event.run} to a worker who has taken it over', 'quiet')

    def _say(self, child: Child, text: str, tone: Tone = 'plain') -> None:
        self.view.event(f'worker {self._children.index(child) + 1}', text, tone)
