"""`TaskFlight`: a task of a builder graph that has begun and not ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from time import perf_counter
from typing import Final, Protocol
from uuid import UUID, uuid5

from .step import Step
from .tracking import Flight

__all__ = ('TaskFlight',)


class RunInFlight(Protocol):
    """What a task has to know of its run."""

    run_id: str
    snapshot_id: str
    """The snapshot that stands for the whole run."""

    def now(self) -> datetime:
        """Return the present moment (UTC)."""
        ...


class TaskFlight(Flight):
    """A task that has begun and not ended."""

    __slots__ = ('_attempt', '_begun', '_run', 'at_rest', 'node_id', 'started', 'task_id')

    def __init__(self, run: RunInFlight, task_id: str, node_id: str, attempt: int):
        super().__init__()
        self.task_id = task_id
        self.node_id = node_id
        self.started = run.now()
        self.at_rest = False
        """Whether none of its code runs or waits now: it streams, and an item of it is being dealt with."""
        self._begun = perf_counter()
        self._attempt = attempt
        self._run = run

    @property
    def duration(self) -> float:
        """How long it has been in flight, in seconds."""
        return perf_counter() - self._begun

    def step(self) -> Step:
        """Return what the step's code may know of this."""
        return _TaskStep(self._run.run_id, self.task_id, 0, self._attempt, self._run.snapshot_id)


@dataclass(frozen=True, slots=True)
class _TaskStep(Step):
    """The run of one task. Its place in the run is not known while its creation waits; its id is its own."""

    of: str = field(repr=False)
    """The snapshot that stands for the run: another run that is stored under this id has another one."""

    @property
    def idempotency_key(self) -> str:
        return str(uuid5(_KEYS, f'{self.run_id}\0{self.of}\0{self.snapshot_id}'))


_KEYS: Final = UUID('0b0d5a0e-3f0e-4c55-a7f5-6a3b1b2d9c10')
