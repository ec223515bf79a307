"""One of several processes that share the runs of a store: it claims one, goes on with it, and so on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import anyio

from graphkeep import (
    OwnershipLostError,
    RunFinishedError,
    RunOwnedError,
    SqliteStore,
    StatePersistence,
    run_or_resume,
)

from .graph import report_graph
from .watcher import LEASE, Watcher

__all__ = ('main', 'share')

_PAUSE: Final = 0.03  # seconds a piece of work
_POLL: Final = 0.1  # seconds until the store is asked again, where it had nothing to claim


async def share(file: Path, *, pause: float = _PAUSE) -> None:
    """Claim runs and go on with them, until every run of the store has ended."""
    async with SqliteStore(file, lease=LEASE) as store:
        while True:
            if (run := await store.claim(graph=report_graph.name)) is not None:
                await _go_on(run, pause)
            elif await store.runs(status=('created', 'pending', 'running'), limit=1):
                await anyio.sleep(_POLL)  # others have what is left; should one of them die, it is to be had
            else:
                return


async def _go_on(run: StatePersistence[Any, Any], pause: float) -> None:
    """Take a run to its end, unless somebody else does."""
    watcher = Watcher(run.run_id, pause)
    try:
        await run_or_resume(report_graph, deps=watcher, persistence=run, on_finished='raise')
    except (OwnershipLostError, RunFinishedError, RunOwnedError):
        # this process was stopped for longer than its lease, and another one goes on with the run
        watcher.say('left')
    else:
        watcher.saved()
        watcher.say('finished')


def main() -> None:
    """Share the runs of the store that the command line names."""
    anyio.run(share, Path(sys.argv[1]))


if __name__ == '__main__':
    main()
