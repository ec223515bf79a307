"""What the verdicts have in common: a promise that held or did not, and who was at a step, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..commit import Attempt, StepRecord

__all__ = ('Check', 'attempts_at', 'process_of')


class Check(NamedTuple):
    """One promise, and whether it held."""

    held: bool
    text: str


def attempts_at(record: StepRecord) -> Sequence[Attempt | StepRecord]:
    """Return the ended attempts, and the record itself for one that has not ended or not begun."""
    return record.attempts if record.status in ('success', 'error') else (*record.attempts, record)


def process_of(attempt: Attempt | StepRecord) -> str:
    """Return the id of the process that an attempt was run by; empty if that is not known."""
    return (attempt.owner or '').partition(' on ')[0].removeprefix('process ')
