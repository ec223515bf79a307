"""`Leaving`: what becomes of what is in hand when a run is left."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

from .persistence import StatePersistence

__all__ = ('Leaving',)


class Leaving(AbstractAsyncContextManager[None]):
    """Leaves nothing in hand when a run is left, whichever host's runner it was."""

    def __init__(self, persistence: StatePersistence[Any, Any]):
        self._persistence = persistence

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._persistence.leave(exc)
