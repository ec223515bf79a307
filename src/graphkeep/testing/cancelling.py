"""Clauses of cancellation: at whatever await it comes, nothing is left in hand, and the run goes on."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from ..commit import Commit, Receipt
from ..resume import run_or_resume
from ..stored import StoredStatePersistence
from .graphs import Again, State, graph
from .owning import begun
from .stores import StoreClauses, StoreUnderTest, known

__all__ = ('ByScope', 'ByTask', 'Canceller', 'CancellingClauses', 'cancelled_after')

_STEPS = 3


class Canceller(ABC):
    """One way to cancel what `run` runs; `caught` says afterwards whether the cancellation arrived."""

    caught = False

    @abstractmethod
    async def run(self, func: Callable[[], Awaitable[object]]) -> None:
        """Run `func`, to its end or until it is cancelled."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel it."""


class ByTask(Canceller):
    """`asyncio.Task.cancel()`, which comes once."""

    async def run(self, func: Callable[[], Awaitable[object]]) -> None:
        """Run it in a task."""

        async def main() -> None:
            await func()

        self.task = asyncio.create_task(main())
        await asyncio.wait([self.task])
        self.caught = self.task.cancelled()
        if not self.caught:
            self.task.result()

    def cancel(self) -> None:
        """Cancel the task."""
        self.task.cancel()


class ByScope(Canceller):
    """A cancel scope, which cancels whatever is awaited from then on."""

    async def run(self, func: Callable[[], Awaitable[object]]) -> None:
        """Run it in a scope."""
        with anyio.CancelScope() as self.scope:
            await func()
            await anyio.lowlevel.checkpoint()
        self.caught = self.scope.cancelled_caught

    def cancel(self) -> None:
        """Cancel the scope."""
        self.scope.cancel()


async def cancelled_after(turns: int, canceller: Canceller, func: Callable[[], Awaitable[object]]) -> None:
    """Run `func`, and cancel it after so many turns of the event loop if it has not ended by then."""
    finished = anyio.Event()

    async def cancel() -> None:
        for _ in range(turns):
            if finished.is_set():
                return
            await anyio.lowlevel.checkpoint()
        if not finished.is_set():
            canceller.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel)
        await canceller.run(func)
        finished.set()


def _cancellers(loop: str) -> list[type[Canceller]]:
    return [ByTask, ByScope] if loop == 'asyncio' else [ByScope]


def _turns() -> Iterator[int]:
    """Yield after how many turns of the event loop to cancel: each at first, then ever rarer ones."""
    turns = 0
    while True:
        yield turns
        turns += 1 if turns < 30 else 1 + turns // 8


def _cancelling(
    persistence: StoredStatePersistence[Any, Any], at: int, cancel: Callable[[], None]
) -> list[int]:
    """Have `cancel` called at the given use of the storage; return a list that has an entry for each use."""
    hidden, uses = cast('Any', persistence), list[int]()
    commit, tail = hidden._commit, hidden._tail

    def reach() -> None:
        uses.append(len(uses))
        if len(uses) - 1 == at:
            cancel()

    async def commit_(commit_: Commit) -> Receipt:
        reach()
        receipt = await commit(commit_)
        reach()
        return receipt

    async def tail_() -> object:
        reach()
        found = await tail()
        reach()
        return found

    hidden._commit, hidden._tail = commit_, tail_
    return uses


async def _goes_on(place: StoreUnderTest, run_id: str) -> None:
    """Nobody has the run in hand, and it goes on to the right result; no success is run again."""
    assert set(place.statuses(run_id)) <= {'created', 'success'}, 'a cancellation left a node in hand'
    assert place.raw(run_id).owner is None, 'a cancellation left the run owned'
    persistence = place.run(run_id)
    done = [r.seq for r in await persistence.load_history() if r.status == 'success' and r.kind == 'node']
    result = await run_or_resume(graph, Again(_STEPS), state=State(), persistence=persistence)
    assert result.output == _STEPS
    history = await persistence.load_history()
    assert [record.seq for record in history] == list(range(1, _STEPS + 2))
    assert [history[seq - 1].attempts[-1].outcome for seq in done] == ['success'] * len(done)
    assert len(set(result.state.items)) == _STEPS


class CancellingClauses(StoreClauses):
    """What holds for runs that are cancelled."""

    async def test_cancelled_at_each_use(self, place: StoreUnderTest, anyio_backend_name: str):
        """Cancelled before or after any use of the storage, a run leaves nothing in hand, and goes on."""
        for canceller_type in _cancellers(anyio_backend_name):
            for at in range(10_000):
                run_id = f'{canceller_type.__name__} {at}'
                canceller = canceller_type()
                persistence = known(place.store.run(run_id))
                uses = _cancelling(persistence, at, canceller.cancel)
                func = partial(run_or_resume, graph, Again(_STEPS), state=State(), persistence=persistence)
                await canceller.run(func)
                assert canceller.caught == (len(uses) > at), 'a cancellation was swallowed'
                await _goes_on(place, run_id)
                if not canceller.caught:
                    assert at > 4 * _STEPS
                    break

    async def test_cancelled_at_each_turn(self, place: StoreUnderTest, anyio_backend_name: str):
        """Cancelled after k turns of the event loop, for any k, a run leaves nothing in hand, and goes on."""
        for canceller_type in _cancellers(anyio_backend_name):
            for turns in _turns():
                run_id = f'{canceller_type.__name__} {turns}'
                canceller = canceller_type()
                persistence = known(place.store.run(run_id))
                func = partial(run_or_resume, graph, Again(_STEPS), state=State(), persistence=persistence)
                await cancelled_after(turns, canceller, func)
                await _goes_on(place, run_id)
                if not canceller.caught:
                    break

    @pytest.mark.parametrize('verb', ['claim', 'fork', 'delete', 'recover', 'prune'])
    async def test_cancelled_verb(self, place: StoreUnderTest, anyio_backend_name: str, verb: str):
        """A verb of the store that is cancelled has done all of it or nothing, and leaves nothing in hand."""
        for turns in range(12):
            run_id = f'{turns}'
            await begun(place, run_id)
            verbs: dict[str, Callable[[], Awaitable[object]]] = {
                'claim': lambda: place.store.claim(),
                'fork': lambda run_id=run_id: place.store.fork(run_id, into='fork'),
                'delete': lambda run_id=run_id: place.store.delete(run_id),
                'recover': lambda run_id=run_id: place.store.recover(run_id),
                'prune': lambda: place.store.prune(older_than=place.clock.now),
            }
            kept: list[object] = []

            async def call(verb: str = verb, verbs: Any = verbs, kept: list[object] = kept) -> None:
                kept.append(await verbs[verb]())

            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            claimed = kept[0] if kept else None
            if isinstance(claimed, StoredStatePersistence) and verb == 'claim':
                assert place.statuses(run_id) == ['pending']
                await claimed.release()
            if verb == 'fork':
                assert place.statuses('fork') in ([], ['created'])
                await place.store.delete('fork')
            assert place.statuses(run_id) in ([], ['created'])
            assert place.raw(run_id).owner is None, 'a cancelled verb left the run in hand'
            await place.store.delete(run_id)
