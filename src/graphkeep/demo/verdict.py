"""What was seen of the run and what is stored of it, and whether the two are what was promised."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

import anyio

from graphkeep import SqliteStore, StepRecord, UnknownRunError, run_or_resume

from .events import Event
from .evidence import Check, attempts_at, process_of
from .shops import ADD_UP, CITIES, LIST_SHOPS, MONTH, WRITE_REPORT, Books, shops_graph, unwatched
from .worker import RUN

__all__ = ('Evidence', 'Survey', 'checks', 'result', 'steps_table', 'surveyed', 'uninterrupted')

_STEPS: Final = (LIST_SHOPS, ADD_UP, WRITE_REPORT)

Unit = tuple[str, str]
"""A step, and the city of the shop that it is run for, if any."""


class Survey(NamedTuple):
    """What a store holds of the run."""

    steps: Mapping[Unit, StepRecord] = {}
    """Each step, in the order of writing."""
    counted: Sequence[str] = ()
    """The shops that are in the stored books."""
    ended: bool = False
    """Whether the run has ended."""

    @property
    def saved(self) -> set[Unit]:
        """The steps that have succeeded."""
        return {unit for unit, record in self.steps.items() if record.status == 'success'}

    @property
    def finished(self) -> int:
        """How many shops have been added up."""
        return len(_cities(self.saved))


@dataclass
class Evidence:
    """What the processes said, and what the store held."""

    first: list[Event] = field(default_factory=lambda: list[Event]())
    """What the first process said."""
    second: list[Event] = field(default_factory=lambda: list[Event]())
    """What the second process said."""
    first_code: int | None = None
    """How the first process ended."""
    second_code: int | None = None
    """How the second process ended."""
    when_killed: Survey = field(default_factory=lambda: Survey())
    """What the store held after the kill."""
    at_end: Survey = field(default_factory=lambda: Survey())
    """What it held in the end."""
    result: str | None = None
    """The result in the store."""

    @property
    def in_flight(self) -> list[Unit]:
        """The steps that the first process had begun, and whose end was not on record when it was killed."""
        return [unit for unit in _units(self.first, 'started') if unit not in self.when_killed.saved]


async def surveyed(file: Path) -> Survey:
    """Return what a store holds of the run; nothing if it does not know it."""
    async with SqliteStore(file) as store:
        persistence = store.run(RUN)
        persistence.set_graph_types(shops_graph)
        try:
            records = await store.history(RUN)
            books: Books = await persistence.last_state()
        except UnknownRunError:
            return Survey()
    steps = {_unit(record): record for record in records if record.node_id in _STEPS}
    return Survey(steps, books.shops, records[-1].kind == 'end')


async def result(file: Path) -> str:
    """Return the result that the store holds of a run that has ended."""
    async with SqliteStore(file) as store:
        # nothing is run: a finished run has its result returned
        return await run_or_resume(shops_graph, deps=unwatched, persistence=store.run(RUN))


async def uninterrupted() -> str:
    """Return the result of a run that nothing interrupts."""
    return await shops_graph.run(state=Books(), inputs=MONTH, deps=unwatched)


def checks(evidence: Evidence) -> list[Check]:
    """Return every promise with whether it held, as the processes said and as the store has it."""
    then, now = evidence.when_killed, evidence.at_end
    in_flight, before = set(evidence.in_flight), _cities(then.saved)
    again = Counter(_units(evidence.second, 'started'))
    told = set(_units(evidence.first, 'saved'))
    return [
        Check(
            evidence.first_code == -signal.SIGKILL and bool(before) and bool(in_flight),
            f'The first process was killed while it ran the steps of {len(in_flight)} shops',
        ),
        Check(
            bool(told) and told <= then.saved,
            'What it had said to be saved was in the store',
        ),
        Check(
            bool(before) and sorted(then.counted) == sorted(before),
            f'The books in the store had the {len(before)} shops saved by then in them, and no other',
        ),
        Check(
            bool(before)
            and not then.saved & again.keys()
            and all(now.steps.get(unit) == then.steps[unit] for unit in then.saved),
            f'None of these {len(before)} shops was added up again',
        ),
        Check(
            bool(in_flight)
            and all(again[unit] == 1 for unit in in_flight)
            and {unit for unit, record in now.steps.items() if record.attempt > 1} == in_flight,
            f'Each of the {len(in_flight)} shops in flight was, once',
        ),
        Check(
            evidence.second_code == 0
            and now.ended
            and len(now.steps) == len(CITIES) + 2
            and now.saved == set(now.steps)
            and sorted(now.counted) == sorted(CITIES),
            'Every step is finished, each shop is in the books once, and the run has ended',
        ),
        Check(
            bool(evidence.result) and evidence.result == anyio.run(uninterrupted),
            'The result is the one of a run that nobody interrupts',
        ),
    ]


def steps_table(
    records: Iterable[StepRecord],
) -> tuple[Sequence[str], Sequence[Sequence[str]], frozenset[int]]:
    """Return columns, rows (one for each step), and the positions of those that ran more than once."""
    columns = ('Step', 'Shop', 'Status', 'Attempts', 'Start (UTC)', 'Duration', 'Process')
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for record in records:
        if record.attempt > 1:
            marked.add(len(rows))
        times = _clock(record.start_ts), _seconds(record.duration)
        process = process_of(attempts_at(record)[-1]) or '-'
        step, city = _unit(record)
        rows.append((step, city or '-', record.status, f'{record.attempt}', *times, process))
    return columns, rows, frozenset(marked)


def _units(events: Iterable[Event], kind: str) -> list[Unit]:
    return [(event.step, event.item) for event in events if event.kind == kind]


def _unit(record: StepRecord) -> Unit:
    return record.node_id, CITIES[record.path[-1][1]] if record.path else ''


def _cities(units: Iterable[Unit]) -> list[str]:
    return [city for step, city in units if step == ADD_UP]


def _clock(moment: datetime | None) -> str:
    return f'{moment:%H:%M:%S}.{moment.microsecond // 100_000}' if moment else '-'


def _seconds(duration: float | None) -> str:
    return '-' if duration is None else f'{duration:.2f} s'
