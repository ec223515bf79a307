"""The process that runs the graph: started once, killed, and started again with the same command."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio
from pydantic_graph import BaseNode, End

from graphkeep import FileStatePersistence, RunOwnedError, current_step, iter_or_resume

from ..snapshots import now_utc
from .events import Event, Kind
from .graph import Progress, ReadOrders, Report, report_graph

__all__ = ('main', 'work')

_LEASE: Final = 3.0  # seconds; outside Linux it cannot be seen that a process is gone, so this is waited for
_PAUSE: Final = 0.11  # seconds between two pieces of work, so that a person can follow


async def work(file: Path, *, pause: float = _PAUSE) -> None:
    """Run the report to its end, from wherever the run in this file is."""
    watcher = _Watcher(pause)
    persistence = FileStatePersistence(file, lease=_LEASE)
    async with iter_or_resume(
        report_graph, ReadOrders(), state=Report(), deps=watcher, persistence=persistence
    ) as run:
        async for node in run:
            watcher.reached(node)


async def work_when_free(file: Path) -> None:
    """Do that, once no other process has the run."""
    while True:
        try:
            return await work(file)
        except RunOwnedError as exc:
            if exc.until is None:
                raise
            _say(Event(kind='waiting', pid=os.getpid()))
            await anyio.sleep(max(0.1, (exc.until - now_utc()) / timedelta(seconds=1)))


class _Watcher:
    """Says what the nodes do."""

    def __init__(self, pause: float):
        self._pause = pause
        self._step = ''
        self._seq = 0

    async def __call__(self, done: int, total: int) -> None:
        self._seq = current_step().seq
        _say(self._event('progress' if done else 'started', done, total))
        await anyio.sleep(self._pause)

    def reached(self, node: BaseNode[Report, Progress, str] | End[str]) -> None:
        """Say that the step before this node is saved, if one was run here."""
        if self._seq:
            _say(self._event('saved'))
        self._step = node.get_node_id() if isinstance(node, BaseNode) else 'End'

    def _event(self, kind: Kind, done: int = 0, total: int = 0) -> Event:
        return Event(kind=kind, pid=os.getpid(), step=self._step, seq=self._seq, done=done, total=total)


def _say(event: Event) -> None:
    print(event.to_line(), flush=True)


def main() -> None:
    """Run the report in the file that the command line names."""
    anyio.run(work_when_free, Path(sys.argv[1]))


if __name__ == '__main__':
    main()
