"""Turns of runs that go on for long without having to wait for anything, on the thread of an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from time import perf_counter
from typing import Final

import anyio
import anyio.lowlevel
from anyio.lowlevel import RunVar

from .offload import asyncio_task

__all__ = ('Stint',)

_ROUND: Final = 0.002
# seconds after which others are to have their turn: to ask for the next one takes as long as a part of a step


class Stint:
    """What goes on for long without having to wait for anything, and then waits for its next turn.

    Of all that wait in an event loop, as many go on in each round of it as take about 2 ms together. So that
    is how long others in that loop wait each time that it comes round, however many there are.
    """

    __slots__ = ('_began', '_lasts')

    def __init__(self) -> None:
        self._began = self._lasts = 0.0  # over, for many may begin at once

    @property
    def is_over(self) -> bool:
        """Whether it is time to give way."""
        return perf_counter() - self._began > self._lasts

    async def give_way(self) -> None:
        """Let all others have their turn, and a cancellation be raised."""
        self._lasts = await _next_turn()
        self._began = perf_counter()


class _Turns:
    """Who waits for a turn in one event loop, which it must not keep."""

    def __init__(self, *, on_asyncio: bool):
        self.lasts = _ROUND
        """How long each turn of this round lasts, in seconds."""
        self._on_asyncio = on_asyncio
        self._waiting: deque[Callable[[], object]] = deque()
        self._at_once = 1  # how many go on in a round
        self._begun = False  # whether a round has, and so is to end
        self._began = 0.0

    def is_free(self) -> bool:
        """Whether the next turn is whoever's who asks; if so, it is another one's until the round ends."""
        if self._begun:
            return False
        self._begin()
        return True

    def append(self, go_on: Callable[[], object]) -> None:
        """Have it called when its turn comes."""
        self._waiting.append(go_on)

    def remove(self, go_on: Callable[[], object]) -> None:
        """Have it called no more."""
        with suppress(ValueError):
            self._waiting.remove(go_on)

    def _begin(self) -> None:
        self._began = perf_counter()
        with suppress(RuntimeError):  # the event loop has ended, but for what it calls last
            if self._on_asyncio:
                asyncio.get_running_loop().call_soon(self._end, context=Context())
            else:
                import trio  # the library that is running, so it is there

                trio.lowlevel.current_trio_token().run_sync_soon(self._end)
            self._begun = True

    def _end(self) -> None:
        """End a round; if somebody waits, let as many go on in the next as that one has shown to do."""
        self._begun = False
        took = perf_counter() - self._began
        if took > _ROUND or not self._waiting:
            self._at_once = max(1, self._at_once // 2)
        elif took < _ROUND / 2:
            self._at_once = min(2 * self._at_once, len(self._waiting))
        self.lasts = _ROUND / self._at_once
        try:
            for _ in range(min(self._at_once, len(self._waiting))):
                self._waiting.popleft()()
        finally:
            if self._waiting:
                self._begin()


_of_loop: Final = RunVar[_Turns]('graphkeep turns')


async def _next_turn() -> float:
    """Wait for the next turn in this event loop; return how long it lasts, in seconds."""
    on_asyncio = asyncio_task() is not None
    try:
        turns = _of_loop.get()
    except LookupError:
        _of_loop.set(turns := _Turns(on_asyncio=on_asyncio))
    if turns.is_free():
        await (asyncio.sleep(0) if on_asyncio else anyio.lowlevel.checkpoint())
        return turns.lasts
    if on_asyncio:
        turn = asyncio.get_running_loop().create_future()
        go_on, waiting = lambda: turn.done() or turn.set_result(None), turn
    else:
        event = anyio.Event()
        go_on, waiting = event.set, event.wait()
    turns.append(go_on)
    try:
        await waiting
    except BaseException:
        turns.remove(go_on)
        raise
    return turns.lasts
