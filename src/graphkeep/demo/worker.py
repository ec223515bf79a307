"""The process that runs the graph: started once, killed, and started again with the same command."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

import anyio

from graphkeep import RunOwnedError, SqliteStore, run_or_resume

from ..snapshots import now_utc
from .events import Event
from .graph import ReadOrders, Report, report_graph
from .watcher import LEASE, Watcher, say

__all__ = ('RUN', 'main', 'work')

RUN: Final = 'report'
"""The id of the run."""

_PAUSE: Final = 0.11  # seconds a piece of work


async def work(file: Path, *, pause: float = _PAUSE) -> None:
    """Run the report to its end, from wherever the run in this store is."""
    watcher = Watcher(RUN, pause)
    async with SqliteStore(file, lease=LEASE) as store:
        await run_or_resume(
            report_graph, ReadOrders(), state=Report(), deps=watcher, persistence=store.run(RUN)
        )
    watcher.saved()


async def work_when_free(file: Path) -> None:
    """Do that, once no other process has the run."""
    while True:
        try:
            return await work(file)
        except RunOwnedError as exc:
            if exc.until is None:
                raise
            say(Event(kind='waiting', pid=os.getpid(), run=RUN))
            await anyio.sleep(max(0.1, (exc.until - now_utc()) / timedelta(seconds=1)))


def main() -> None:
    """Run the report in the store that the command line names."""
    anyio.run(work_when_free, Path(sys.argv[1]))


if __name__ == '__main__':
    main()
