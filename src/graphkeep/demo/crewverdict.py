"""What was seen of several processes and what their store holds, and whether that is what was promised."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from ..commit import StepRecord
from ..resume import run_or_resume
from ..sqlite import SqliteStore
from .events import Event
from .evidence import Check, attempts_at, process_of
from .graph import ReadOrders, Report, report_graph, unwatched

__all__ = (
    'CrewEvidence',
    'Survey',
    'crew_checks',
    'in_short',
    'results',
    'runs_table',
    'store_runs',
    'surveyed',
    'why_twice',
)

Survey = Mapping[str, Sequence[StepRecord]]
"""What a store holds of each step of each of its runs."""

_MOST: Final = 100  # runs that are listed


@dataclass
class CrewEvidence:
    """What the processes said, and what the store held."""

    months: Mapping[str, date]
    """The month that each run is to report on."""
    workers: dict[int, int] = field(default_factory=lambda: dict[int, int]())
    """The number of the worker that each process was."""
    codes: dict[int, int] = field(default_factory=lambda: dict[int, int]())
    """How each process ended."""
    events: list[Event] = field(default_factory=lambda: list[Event]())
    """What the processes said."""
    killed: Event | None = None
    """The last that was heard of one process before it was killed."""
    when_killed: Survey = field(default_factory=lambda: dict[str, list[StepRecord]]())
    """What the store held after the kill, while the others went on."""
    at_end: Survey = field(default_factory=lambda: dict[str, list[StepRecord]]())
    """What the store held in the end."""
    results: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    """The results in the store."""

    def is_at(self, event: Event) -> bool:
        """Whether the process that said this was at the same run before."""
        before = (e.run for e in reversed(self.events) if e.pid == event.pid)
        return next(before, None) == event.run


async def store_runs(file: Path, months: Mapping[str, date]) -> None:
    """Store a run for each month, for anybody to go on with."""
    async with SqliteStore(file) as store:
        for run_id, month in months.items():
            await report_graph.initialize(ReadOrders(), store.run(run_id), state=Report(month))


async def surveyed(file: Path) -> Survey:
    """Return what the store holds of each step of each run."""
    async with SqliteStore(file) as store:
        return {info.id: await store.history(info.id) for info in await store.runs(limit=_MOST)}


async def results(file: Path) -> tuple[Survey, Mapping[str, str]]:
    """Return that, and the results of the runs that have ended."""
    survey = await surveyed(file)
    async with SqliteStore(file) as store:
        ended = await store.runs(status='success', limit=_MOST)
        return survey, {info.id: await _result(store, info.id) for info in ended}


async def _result(store: SqliteStore, run_id: str) -> str:
    """Return the result of a run that has ended."""
    result = await run_or_resume(report_graph, persistence=store.run(run_id))
    return result.output


async def _uninterrupted(month: date) -> str:
    """Return the result of a run that nothing interrupts."""
    result = await report_graph.run(ReadOrders(), state=Report(month), deps=unwatched)
    return result.output


async def _expected(months: Mapping[str, date]) -> Mapping[str, str]:
    return {run_id: await _uninterrupted(month) for run_id, month in months.items()}


def crew_checks(evidence: CrewEvidence) -> list[Check]:
    """Return every promise with whether it held, as the processes said and as the store has it."""
    killed = evidence.killed or Event(kind='started', pid=0, step='a step', run='a run')
    interrupted = (killed.run, killed.seq)
    then, now = _by_step(evidence.when_killed), _by_step(evidence.at_end)
    saved = {key: record for key, record in then.items() if record.status == 'success'}
    in_hand = [k for k, r in then.items() if r.status == 'running' and process_of(r) == str(killed.pid)]
    ran = Counter((event.run, event.seq) for event in evidence.events if event.kind == 'started')
    left = [r for r in evidence.at_end.get(killed.run, ()) if r.kind == 'node' and r.seq >= killed.seq]
    finishers = {process_of(attempts_at(record)[-1]) for record in left}
    return [
        Check(
            evidence.codes.get(killed.pid) == -signal.SIGKILL and in_hand == [interrupted],
            f'A worker was killed while it had {killed.step} of {killed.run} in hand',
        ),
        Check(
            evidence.at_end.keys() == evidence.months.keys()
            and all(steps[-1].kind == 'end' for steps in evidence.at_end.values())
            and all(record.status == 'success' for record in now.values()),
            f'Each of the {len(evidence.months)} runs is finished',
        ),
        Check(
            bool(left) and finishers <= {str(pid) for pid in evidence.workers if pid != killed.pid},
            f'What the killed worker left of {killed.run} was finished by others',
        ),
        Check(
            bool(saved) and all(ran[key] == 1 and now.get(key) == record for key, record in saved.items()),
            f'None of the {len(saved)} steps finished before that was run again',
        ),
        Check(
            [key for key, times in ran.items() if times != 1] == [interrupted]
            and [key for key, record in now.items() if record.attempt > 1] == [interrupted]
            and now[interrupted].attempt == 2 == ran[interrupted],
            f'Exactly one step ran twice: {killed.step} of {killed.run}',
        ),
        Check(
            bool(evidence.results) and evidence.results == anyio.run(_expected, evidence.months),
            'Every result is the one of a run that nobody interrupts',
        ),
    ]


def runs_table(
    evidence: CrewEvidence,
) -> tuple[Sequence[str], Sequence[Sequence[str]], frozenset[int]]:
    """Return columns, rows (one for each process at each run), and the positions of those to be marked."""
    columns = ('Run', 'Status', 'Steps', 'Worker', 'Process', 'Ran steps')
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for run_id, records in evidence.at_end.items():
        steps = [record for record in records if record.kind == 'node']
        status = 'finished' if len(steps) < len(records) else records[-1].status
        first = run_id, status, str(len(steps))
        for pid, stretch in groupby(_turns(steps), key=lambda turn: turn.pid):
            if any(record.attempt > 1 for record in steps):
                marked.add(len(rows))
            worker = evidence.workers.get(int(pid or 0), '-')
            rows.append((*first, str(worker), pid or '-', _described(list(stretch))))
            first = '', '', ''
    return columns, rows, frozenset(marked)


def why_twice(evidence: CrewEvidence) -> str:
    """Return the reason for which one step ran twice."""
    if (killed := evidence.killed) is None:
        return ''
    record = evidence.at_end[killed.run][killed.seq - 1]
    next_ = evidence.workers.get(int(process_of(attempts_at(record)[-1]) or 0), '-')
    return (
        f'{killed.step}, step {killed.seq} of {killed.run}, ran twice: worker {evidence.workers[killed.pid]} '
        f'was killed while it ran, so it had no result to save. Worker {next_} claimed the run and ran the '
        'step again from its beginning, with the data from before it.'
    )


def in_short(report: str) -> str:
    """Return the month, the orders and the total of a report as one line."""
    lines = report.splitlines()
    total = next((line.split(maxsplit=1)[1] for line in lines if line.startswith('total')), '')
    month, _, orders = lines[0].partition(': ')
    return f'{month + ":":<16}{orders}, total {total}'


class _Turn(NamedTuple):
    """One attempt at one step."""

    seq: int
    number: int
    pid: str
    outcome: str


def _turns(steps: Sequence[StepRecord]) -> Iterator[_Turn]:
    for record in steps:
        for number, attempt in enumerate(attempts_at(record), start=1):
            outcome = attempt.status if isinstance(attempt, StepRecord) else attempt.outcome
            yield _Turn(record.seq, number, process_of(attempt), outcome)


def _described(turns: Sequence[_Turn]) -> str:
    first, last = turns[0], turns[-1]
    text = f'{first.seq} to {last.seq}' if first.seq < last.seq else f'{first.seq}'
    again = [f', {turn.seq} again' for turn in turns if turn.number > 1]
    killed = [f', killed in {turn.seq}' for turn in turns if turn.outcome == 'recovered']
    return ''.join([text, *again, *killed])


def _by_step(survey: Survey) -> dict[tuple[str, int], StepRecord]:
    return {(run_id, record.seq): record for run_id, records in survey.items() for record in records}
