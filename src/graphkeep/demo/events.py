"""What the process that runs the graph says of it: one JSON object a line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ('Event', 'Kind')

Kind = Literal['started', 'progress', 'saved', 'waiting', 'finished', 'left']
"""A step began, a piece of it is done, its result is saved, the run is another process's still, it has come
to its end here, or another process went on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a process."""

    kind: Kind
    """What happened."""
    pid: int
    """The process."""
    run: str = ''
    """The run."""
    step: str = ''
    """The step's name."""
    item: str = ''
    """The item that it is run for, if it is one of a map."""
    seq: int = 0
    """The step's place in the run, from 1 on."""
    done: int = 0
    """How many pieces of the step are done."""
    total: int = 0
    """How many pieces it has."""

    def to_line(self) -> str:
        """Return it as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Event | None:
        """Return the event that a line holds, `None` if it holds something else."""
        try:
            return cls(**json.loads(line))
        except (TypeError, ValueError):
            return None
