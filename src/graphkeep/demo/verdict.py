"""What was seen of one run and what is stored of it, and whether the two are what was promised."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from ..commit import Attempt, StepRecord
from ..errors import UnknownRunError
from ..snapshots import EndSnapshot
from ..sqlite import SqliteStore
from .events import Event
from .graph import ReadOrders, Report, report_graph, unwatched
from .worker import RUN

__all__ = (
    'Check',
    'Evidence',
    'attempts_at',
    'checks',
    'process_of',
    'recorded',
    'result_of',
    'steps_table',
    'text_of_result',
    'uninterrupted',
)


@dataclass
class Evidence:
    """What the processes said, and what the store held."""

    file: Path
    """The store."""
    first: list[Event] = field(default_factory=lambda: list[Event]())
    """What the first process said."""
    second: list[Event] = field(default_factory=lambda: list[Event]())
    """What the second process said."""
    killed: Event | None = None
    """The last that was heard of the first process before it was killed."""
    first_code: int | None = None
    """How the first process ended."""
    second_code: int | None = None
    """How the second process ended."""
    when_killed: list[StepRecord] = field(default_factory=lambda: list[StepRecord]())
    """What the store held of the run after the kill."""
    at_end: list[StepRecord] = field(default_factory=lambda: list[StepRecord]())
    """What the store held of it in the end."""
    result: str | None = None
    """The result in the store."""


class Check(NamedTuple):
    """One promise, and whether it held."""

    held: bool
    text: str


async def recorded(file: Path) -> list[StepRecord]:
    """Return what the store holds of each step of the run; nothing if it does not know the run."""
    async with SqliteStore(file) as store:
        try:
            return await store.history(RUN)
        except UnknownRunError:
            return []


async def text_of_result(file: Path) -> str:
    """Return the result that the store holds; empty if the run has not ended."""
    async with SqliteStore(file) as store:
        return await result_of(store, RUN)


async def result_of(store: SqliteStore, run_id: str) -> str:
    """Return the result of a run; empty if it has not ended."""
    persistence = store.run(run_id)
    persistence.set_graph_types(report_graph)
    last = await persistence.load_last()
    return last.result.data if isinstance(last, EndSnapshot) else ''


async def uninterrupted(state: Report) -> str:
    """Return the result of a run that begins with this state and that nothing interrupts."""
    result = await report_graph.run(ReadOrders(), state=state, deps=unwatched)
    return result.output


def checks(evidence: Evidence) -> list[Check]:
    """Return every promise with whether it held, as the processes said and as the store has it."""
    step = evidence.killed.step if evidence.killed else 'a step'
    saved = {r.seq: r for r in evidence.when_killed if r.status == 'success'}
    ran = Counter(event.seq for event in (*evidence.first, *evidence.second) if event.kind == 'started')
    twice = [seq for seq, times in ran.items() if times != 1]
    interrupted = [r.seq for r in evidence.when_killed if r.status == 'running']
    running = [r.node_id for r in evidence.when_killed if r.status == 'running']
    at_end = {record.seq: record for record in evidence.at_end}
    return [
        Check(
            evidence.first_code == -signal.SIGKILL and running == [step],
            f'The first process was killed while {step} ran',
        ),
        Check(
            bool(saved)
            and not any(event.seq in saved for event in evidence.second)
            and all(at_end.get(seq) == record for seq, record in saved.items()),
            f'None of the {len(saved)} steps finished before that was run again',
        ),
        Check(
            twice == interrupted
            and [seq for seq, record in at_end.items() if record.attempt > 1] == interrupted
            and all(at_end[seq].attempt == 2 == ran[seq] for seq in interrupted),
            f'Exactly one step ran twice: {step}',
        ),
        Check(
            evidence.second_code == 0
            and bool(evidence.at_end)
            and evidence.at_end[-1].kind == 'end'
            and all(record.status == 'success' for record in evidence.at_end),
            'Every step is finished, and so is the run',
        ),
        Check(
            bool(evidence.result) and evidence.result == anyio.run(uninterrupted, Report()),
            'The result is the one of a run that nobody interrupts',
        ),
    ]


def steps_table(
    records: Sequence[StepRecord],
) -> tuple[Sequence[str], Sequence[Sequence[str]], frozenset[int]]:
    """Return columns, rows (one for each attempt at a step), and the positions of those that ran twice."""
    columns = ('Step', 'Status', 'Attempt', 'Start (UTC)', 'Duration', 'Process')
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for record in (record for record in records if record.kind == 'node'):
        for number, attempt in enumerate(attempts_at(record), start=1):
            if record.attempt > 1:
                marked.add(len(rows))
            rows.append((f'{record.seq} {record.node_id}', *_cells(attempt, f'{number} of {record.attempt}')))
    return columns, rows, frozenset(marked)


_STATUS: Final = {'recovered': 'interrupted', 'released': 'interrupted'}


def attempts_at(record: StepRecord) -> Sequence[Attempt | StepRecord]:
    """Return the ended attempts, and the record itself for one that has not ended or not begun."""
    return record.attempts if record.status in ('success', 'error') else (*record.attempts, record)


def _cells(attempt: Attempt | StepRecord, number: str) -> Sequence[str]:
    outcome = attempt.status if isinstance(attempt, StepRecord) else attempt.outcome
    times = _clock(attempt.start_ts), _seconds(attempt.duration)
    return _STATUS.get(outcome, outcome), number, *times, process_of(attempt) or '-'


def process_of(attempt: Attempt | StepRecord) -> str:
    """Return the id of the process that an attempt was run by; empty if that is not known."""
    return (attempt.owner or '').partition(' on ')[0].removeprefix('process ')


def _clock(moment: datetime | None) -> str:
    return f'{moment:%H:%M:%S}.{moment.microsecond // 100_000}' if moment else '-'


def _seconds(duration: float | None) -> str:
    return '-' if duration is None else f'{duration:.2f} s'
