"""How a process that runs the graph says what its nodes do."""

from __future__ import annotations

import os
from typing import Final

import anyio

from graphkeep import current_step

from .events import Event, Kind

__all__ = ('LEASE', 'Watcher', 'say')

LEASE: Final = 3.0
"""How long a run stays a process's, in seconds; outside Linux it cannot be seen that one is gone, and this is
waited for."""


class Watcher:
    """Says what the nodes of one run do; what the graph has as its dependencies.

    Args:
        run_id: The run.
        pause: How long to wait at each piece of work, in seconds, so that a person can follow.
    """

    def __init__(self, run_id: str, pause: float):
        self._run_id = run_id
        self._pause = pause
        self._step = ''
        self._seq = 0

    async def __call__(self, done: int, total: int) -> None:
        """Say that the running node begins, or how far it is."""
        if not done:
            self.saved()  # a node begins when the one before it is saved
            step = current_step()
            self._seq, self._step = step.seq, step.snapshot_id.partition(':')[0]
        self.say('progress' if done else 'started', done, total)
        await anyio.sleep(self._pause)

    def saved(self) -> None:
        """Say that the step that was run last is saved, if one was run here."""
        if self._seq:
            self.say('saved')
            self._seq = 0

    def say(self, kind: Kind, done: int = 0, total: int = 0) -> None:
        """Say something of the run."""
        say(
            Event(
                kind=kind,
                pid=os.getpid(),
                run=self._run_id,
                step=self._step,
                seq=self._seq,
                done=done,
                total=total,
            )
        )


def say(event: Event) -> None:
    """Say what has happened, to whoever reads the standard output."""
    print(event.to_line(), flush=True)
