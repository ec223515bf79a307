"""The process that runs the graph: started once, killed, and started again with the same command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

import anyio

from graphkeep import RunOwnedError, SqliteStore, iter_or_resume

from ..snapshots import now_utc
from .events import Event, Kind
from .shops import ADD_UP, CITIES, COLLECT, MONTH, Books, shops_graph
from .watcher import LEASE, say

__all__ = ('RUN', 'ShopWatcher', 'main', 'work')

RUN: Final = 'report'
"""The id of the run."""

_PAUSE: Final = 0.11  # seconds a piece of work


class ShopWatcher:
    """Says what the steps do; what the graph has as its dependencies.

    Args:
        pause: How long to wait at each piece of work, in seconds, so that a person can follow.
    """

    def __init__(self, pause: float):
        self._pause = pause
        self._begun: set[str] = set()
        self._blank = Event(kind='started', pid=os.getpid(), run=RUN)

    async def __call__(self, step: str, city: str, done: int, total: int) -> None:
        """Say that a step begins, or how far it is."""
        self._begun.add(city)
        self.say('progress' if done else 'started', step, city, done=done, total=total)
        await anyio.sleep(self._pause)

    def look(self, event: Any) -> None:
        """Say which shop is saved now: a run that is iterated over shows a result once it is recorded."""
        for task in cast('Sequence[Any]', event) if isinstance(event, Sequence) else ():
            if task.node_id == COLLECT:
                city = CITIES[int(task.fork_stack[-1].thread_index)]
                if city in self._begun:  # else it was saved by an earlier process
                    self.say('saved', ADD_UP, city)

    def say(self, kind: Kind, step: str = '', city: str = '', *, done: int = 0, total: int = 0) -> None:
        """Say something of the run."""
        say(replace(self._blank, kind=kind, step=step, item=city, done=done, total=total))


async def work(file: Path, *, pause: float = _PAUSE) -> None:
    """Run the graph to its end, from wherever the run in this store is."""
    watcher = ShopWatcher(pause)
    async with SqliteStore(file, lease=LEASE) as store:
        resuming = iter_or_resume(
            shops_graph, state=Books(), inputs=MONTH, deps=watcher, persistence=store.run(RUN)
        )
        async with resuming as run:
            async for event in run:
                watcher.look(event)
    watcher.say('finished')


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
    """Run the graph in the store that the command line names."""
    anyio.run(work_when_free, Path(sys.argv[1]))


if __name__ == '__main__':
    main()
