"""Turns of runs that go on for long without having to wait for anything, on the thread of an event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from threading import get_ident
from time import perf_counter
from typing import Any, Final, Protocol, TypeAlias

import anyio
import anyio.lowlevel
from anyio.lowlevel import RunVar

from .offload import asked, asyncio_task, caught, finished, later
from .promise import Work

__all__ = ('Gatherer', 'Stint', 'Turns')

_ROUND: Final = 0.002
# seconds after which others are to have their turn: to ask for the next one takes as long as a part of a step
_CROWD: Final = 8
# that wait at once; with so many, to wait for each other costs less than what is spared by it
_TOGETHER: Final = 200
# things that are done together in one round, so that it does not last for long

_Soon: TypeAlias = Callable[[Callable[[], object]], object]


class Gatherer(Protocol):
    """Where several things are done together at a lower price than one after another."""

    def make_gathered(self, gathered: list[Any], in_loop: _Soon) -> None:
        """Do what was gathered in a round, here and now; it must not wait.

        Args:
            gathered: What was given to `Turns.gather`, in that order.
            in_loop: Has a function called in the event loop, from any thread: what tells those who wait
                together that they need not any more.
        """
        ...


class Stint:
    """What goes on for long without having to wait for anything, and then waits for its next turn.

    Of all that wait in an event loop, as many go on in each round of it as take about 2 ms together. So that
    is how long others in that loop wait each time that it comes round, however many there are.
    """

    __slots__ = ('_began', '_lasts', '_turns')

    def __init__(self) -> None:
        self._began = self._lasts = 0.0  # over, for many may begin at once
        self._turns: Turns | None = None  # of the event loop that it was in last

    @property
    def is_over(self) -> bool:
        """Whether it is time to give way."""
        return perf_counter() - self._began > self._lasts

    @property
    def turns(self) -> Turns:
        """The turns of the running event loop."""
        if (turns := self._turns) is None or not turns.are_here:
            try:
                turns = _of_loop.get()
            except LookupError:
                _of_loop.set(turns := Turns())
            self._turns = turns
        return turns

    async def give_way(self) -> None:
        """Let all others have their turn, and a cancellation be raised."""
        turns = self.turns
        await turns.next()
        # anyio cancels no task whose wait has ended, and with others beside it that may be so each time
        await anyio.lowlevel.checkpoint_if_cancelled()
        self._lasts = turns.lasts
        self._began = perf_counter()

    async def ended(self, work: Work[Any], turns: Turns) -> BaseException | None:
        """Wait until the work is done, whatever is cancelled, and for the next turn.

        Returns:
            A cancellation that came meanwhile, see `finished`.
        """
        if work.done():
            return None
        interrupted: BaseException | None = None
        before = asked()
        try:
            await turns.after(work)
        except asyncio.CancelledError as exc:
            interrupted = later(caught(exc, before), await finished(work))
        # in a crowd a turn ends with the next thing that is done together; and on trio it has not given way,
        # for no cancellation was raised
        if not turns.crowded and not turns.on_trio:
            self._lasts = turns.lasts
            self._began = perf_counter()
        return interrupted


class Turns:
    """Who waits for a turn in one event loop, which it must not keep, and what ends a round."""

    def __init__(self) -> None:
        self.lasts = _ROUND
        """How long each turn of this round lasts, in seconds."""
        self.crowded = False
        """Whether many waited when this round began."""
        self.on_trio = asyncio_task() is None
        """Where a cancellation is not raised while a write is under way, but left for later."""
        self._loop = None if self.on_trio else weakref.ref(asyncio.get_running_loop())
        self._waiting: deque[Callable[[], bool]] = deque()  # those who were cancelled as well
        self._at_once = 1  # how many go on in a round
        self._begun = False  # whether a round has, and so is to end
        self._began = 0.0
        self._gathered: dict[Gatherer, list[Any]] = {}
        self._calls: deque[Callable[[], object]] = deque()  # from other threads
        self._called = False  # whether the event loop is to look at them
        self._thread: int | None = None  # the one that is at it here

    @property
    def are_here(self) -> bool:
        """Whether they are those of the running event loop, as far as that is quickly known."""
        task = asyncio_task()
        return task is not None and self._loop is not None and self._loop() is task.get_loop()

    async def next(self) -> None:
        """Wait for the next turn, or a cancellation."""
        if not self._begun:  # so it is whoever's who asks; and another one's until the round ends
            self._begin()
            await (anyio.lowlevel.checkpoint() if self.on_trio else asyncio.sleep(0))
            return
        go_on, waiting = self._waiter()
        self._waiting.append(go_on)
        try:
            await waiting
        finally:
            go_on()  # no more, if it was cancelled

    def after(self, work: Work[Any]) -> Awaitable[object]:
        """Return what waits until the work is done, and then for the next turn.

        It is shielded from cancellations where that comes at no price: on trio.
        """
        go_on, waiting = self._waiter(shielded=True)
        soon = self._soon()

        def append(_: object) -> None:
            if self._thread == get_ident():
                self._waiting.append(go_on)
            else:
                self._call(soon, lambda: self._waiting.append(go_on))

        work.add_done_callback(append)
        return waiting

    def _waiter(self, *, shielded: bool = False) -> tuple[Callable[[], bool], Awaitable[object]]:
        """Return what lets somebody go on, and tells whether it waited for that; and what waits for it."""
        if self.on_trio:
            event = anyio.Event()

            def set_event() -> bool:
                waits = not event.is_set()
                event.set()
                return waits

            return set_event, _shielded(event) if shielded else event.wait()
        turn = asyncio.get_running_loop().create_future()

        def set_turn() -> bool:
            if turn.done():
                return False
            turn.set_result(None)
            return True

        return set_turn, turn

    def gather(self, gatherer: Gatherer, one: object) -> None:
        """Have it done at the end of this round, together with what else is gathered for that."""
        self._gathered.setdefault(gatherer, []).append(one)
        if not self._begun:
            self._begin()

    def _call(self, soon: _Soon, func: Callable[[], object]) -> None:
        """Have it called in the event loop, from any thread."""
        self._calls.append(func)
        if not self._called:
            self._called = True
            try:
                soon(self._arrive)
            except RuntimeError:  # the event loop has ended, and whoever waited in it
                self._calls.clear()

    def _arrive(self) -> None:
        """Do what other threads have asked for."""
        self._called = False  # before it is looked at, so that nothing is left
        self._thread = get_ident()
        try:
            while self._calls:
                self._calls.popleft()()
        finally:
            self._thread = None
            if not self._begun:
                self._let_go_on()

    def _begin(self) -> None:
        self._began = perf_counter()
        with suppress(RuntimeError):  # the event loop has ended, but for what it calls last
            if self.on_trio:
                self._soon()(self._end)
            else:
                asyncio.get_running_loop().call_soon(self._end, context=Context())
            self._begun = True

    def _soon(self) -> _Soon:
        """Return what has a function called in the running event loop, from any thread."""
        if not self.on_trio:
            return asyncio.get_running_loop().call_soon_threadsafe
        import trio  # the library that is running, so it is there

        return trio.lowlevel.current_trio_token().run_sync_soon

    def _end(self) -> None:
        """End a round; let as many go on in the next as that one has shown to do."""
        try:
            self._begun = False
            self._make_gathered()
            came = len(self._waiting)
            took = perf_counter() - self._began
            if took > _ROUND or not came:
                self._at_once = max(1, self._at_once // 2)
            elif took < _ROUND / 2:
                self._at_once = min(2 * self._at_once, came)
            self.lasts = _ROUND / self._at_once
        finally:
            self._let_go_on()

    def _make_gathered(self) -> None:
        if self._gathered:
            in_loop = partial(self._call, self._soon())
            self._thread = get_ident()
            try:
                for gatherer in tuple(self._gathered):
                    gathered = self._gathered.pop(gatherer)
                    if rest := gathered[_TOGETHER:]:
                        self._gathered[gatherer] = rest
                    gatherer.make_gathered(gathered[:_TOGETHER], in_loop)
            finally:
                self._thread = None

    def _let_go_on(self) -> None:
        """Begin a round of some of those who wait, if there are any."""
        self.crowded = len(self._waiting) >= _CROWD
        try:
            went_on = 0
            while self._waiting and went_on < self._at_once:
                went_on += self._waiting.popleft()()
        finally:
            # else it begins with the first one of those who go on that waits again: so they wait until the
            # loop has come round, and can be cancelled
            if self._waiting or self._gathered:
                self._begin()


async def _shielded(event: anyio.Event) -> None:
    with anyio.CancelScope(shield=True):
        await event.wait()


_of_loop: Final = RunVar[Turns]('graphkeep turns')
