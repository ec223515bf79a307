"""`Leaving`: what becomes of what is in hand when a run is left."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from anyio import CancelScope

from .persistence import StatePersistence

__all__ = ('Leaving',)


class Leaving(AbstractAsyncContextManager[None]):
    """Leaves nothing in hand when a run is left, whichever host's runner it was."""

    def __init__(self, persistence: StatePersistence[Any, Any]):
        self._persistence = persistence

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with CancelScope(shield=True):
            if exc is not None:
                # a node has returned, and its next is not recorded: an interrupt came in between, or the 1.x
                # host found only then that it is no node
                await self._persistence.fail_held(exc)
            await self._persistence.release()  # of what was run nothing is left to give back
