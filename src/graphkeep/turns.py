"""Turns of runs that go on for long without having to wait for anything, on the thread of an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

import anyio
from anyio.lowlevel import RunVar

from .offload import asyncio_task

__all__ = ('Stint',)

_ROUND: Final = 0.002
# seconds after which others are to have their turn: to ask for the next one takes as long as a part of a step


class Stint:
    """What goes on for long without having to wait for anything, and then waits for its next turn.

    Of all that wait in an event loop, as many go on in each round of it as take about 2 ms together. So that
    is how long others in that loop wait, however many there are.
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
    """Who waits for a turn in one event loop."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]):
        self.lasts = _ROUND
        """How long each turn of this round lasts, in seconds."""
        self._call_soon = call_soon
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

    def _begin(self) -> None:
        self._begun = True
        self._began = perf_counter()
        self._call_soon(self._end)

    def _end(self) -> None:
        """End a round; if somebody waits, let as many go on in the next as that one has shown to do."""
        took = perf_counter() - self._began
        if took > _ROUND or not self._waiting:
            self._at_once = max(1, self._at_once // 2)
        elif took < _ROUND / 2:
            self._at_once = min(2 * self._at_once, len(self._waiting))
        self.lasts = _ROUND / self._at_once
        for _ in range(min(self._at_once, len(self._waiting))):
            self._waiting.popleft()()
        self._begun = False
        if self._waiting:
            self._begin()


_of_loop: Final = RunVar[_Turns]('graphkeep turns')


async def _next_turn() -> float:
    """Wait for the next turn in this event loop; return how long it lasts, in seconds."""
    if asyncio_task() is not None:
        loop = asyncio.get_running_loop()
        turns = _turns(loop.call_soon)
        if turns.is_free():
            await asyncio.sleep(0)  # what anyio does there, too, once it has found out where it is
        else:
            turn = loop.create_future()
            turns.append(lambda: turn.done() or turn.set_result(None))
            await turn
    else:
        import trio  # the library that is running, so it is there

        turns = _turns(trio.lowlevel.current_trio_token().run_sync_soon)
        if turns.is_free():
            await trio.lowlevel.checkpoint()
        else:
            event = anyio.Event()
            turns.append(event.set)
            await event.wait()
    return turns.lasts


def _turns(call_soon: Callable[[Callable[[], None]], object]) -> _Turns:
    try:
        return _of_loop.get()
    except LookupError:
        _of_loop.set(turns := _Turns(call_soon))
        return turns
