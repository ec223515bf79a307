"""What a node can ask about itself while it runs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID, uuid5

from .errors import NoCurrentStepError

__all__ = ('Step', 'current_step')

_KEYS: Final = UUID('6f3d3c52-0d5b-4b4e-9d0a-7c1f5b8e2a41')


@dataclass(frozen=True, slots=True)
class Step:
    """The run of one node."""

    run_id: str
    """The run that the node belongs to."""
    snapshot_id: str
    """The snapshot that is being run."""
    seq: int
    """The snapshot's place in the run, from 1 on."""
    attempt: int
    """How many times this snapshot was started, this time included."""

    @property
    def idempotency_key(self) -> str:
        """A key that is the same for every attempt at this step and differs from every other step's.

        A node that was interrupted runs again. Give this key to the outside services that it calls, and what
        they did for the first attempt they do not do twice.
        """
        return str(uuid5(_KEYS, f'{self.run_id}\0{self.seq}\0{self.snapshot_id}'))


class _Running(Protocol):
    def step(self) -> Step: ...


running: Final[ContextVar[_Running | None]] = ContextVar('graphkeep_running', default=None)
"""The innermost run of a node in this context."""


def current_step() -> Step:
    """Return the step that the calling code is part of.

    Raises:
        NoCurrentStepError: if no node runs here under a graphkeep persistence.
    """
    if (here := running.get()) is None:
        raise NoCurrentStepError
    return here.step()
