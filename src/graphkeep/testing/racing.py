"""Racing clauses: threads with event loops of their own want the same thing at once, and one gets it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from ..errors import OwnershipLostError, RunExistsError, RunOwnedError, SnapshotStatusError
from ..resume import run_or_resume
from ..store import Store
from .clock import LEASE
from .graphs import Again, Answer, Ask, State, graph
from .owning import begun, start_for_good
from .stores import StoreClauses, StoreUnderTest, known, ownership_of

__all__ = ('RacingClauses', 'attempted')

RACERS = 6
ROUNDS = 5

LOST = (RunOwnedError, SnapshotStatusError, OwnershipLostError, RunExistsError)
"""What losers are told."""


async def attempted(call: Callable[[], Awaitable[object]]) -> object:
    """Return what the call returns, or the error that tells its caller that somebody else was faster."""
    try:
        return await call()
    except LOST as exc:
        return exc


async def race(
    place: StoreUnderTest, loop: str, racer: Callable[[Store, int], Awaitable[object]]
) -> list[object]:
    """Let racers begin at once, each in a thread with a loop and a store of its own; return what each got."""
    together = threading.Barrier(RACERS)
    stores = [place.another() for _ in range(RACERS)]
    results: list[object] = [None] * RACERS

    def run(number: int) -> None:
        async def main() -> object:
            together.wait(60)
            return await attempted(partial(racer, stores[number], number))

        results[number] = anyio.run(main, backend=loop)

    async with anyio.create_task_group() as tasks:
        for number in range(RACERS):
            tasks.start_soon(anyio.to_thread.run_sync, run, number)
    return results


def won(results: list[object]) -> int:
    """Return how many got what they wanted."""
    return sum(not isinstance(result, LOST) and result is not None for result in results)


class RacingClauses(StoreClauses):
    """What holds where several threads and event loops use one storage."""

    async def test_race_for_a_start(self, place: StoreUnderTest, anyio_backend_name: str):
        """Of several threads that start one node exactly one does; the others are told so."""
        for number in range(ROUNDS):
            run_id = f'{number}'
            _, snapshot_id = await begun(place, run_id)

            async def start(
                store: Store, _: int, run_id: str = run_id, snapshot_id: str = snapshot_id
            ) -> str:
                persistence = known(store.run(run_id))
                async with persistence.record_run(snapshot_id):
                    pass
                await persistence.snapshot_node(State(), Answer())
                return 'won'

            results = await race(place, anyio_backend_name, start)
            assert won(results) == 1, f'exactly one should start the node; they got {results}'
            assert place.statuses(run_id) == ['success', 'created']
            first, _ = await place.store.history(run_id)
            assert first.attempt == 1

    async def test_race_for_a_run(self, place: StoreUnderTest, anyio_backend_name: str):
        """Several threads that begin one run make one run of it, each of whose nodes runs once."""
        for number in range(ROUNDS):
            run_id = f'{number}'

            async def run(store: Store, _: int, run_id: str = run_id) -> object:
                return await run_or_resume(graph, Ask(1), state=State(), persistence=store.run(run_id))

            results = await race(place, anyio_backend_name, run)
            assert won(results) >= 1
            result = await run_or_resume(graph, persistence=place.run(run_id))
            assert result.state.items == ['ask 1', 'answer 2']
            assert [(r.status, r.attempt) for r in await place.store.history(run_id)] == [
                ('success', 1),
                ('success', 1),
                ('success', 0),
            ]

    async def test_race_of_writers(self, place: StoreUnderTest, anyio_backend_name: str):
        """What several threads append to one run is all there, in one order, the same for every reader."""
        await begun(place)

        async def append(store: Store, number: int) -> str:
            persistence = known(store.run('run'))
            for turn in range(ROUNDS):
                await persistence.snapshot_node(State([f'{number} {turn}']), Again())
            return 'written'

        assert won(await race(place, anyio_backend_name, append)) == RACERS
        history = await place.store.history('run')
        assert [record.seq for record in history] == list(range(1, RACERS * ROUNDS + 2))
        written = [snapshot.state.items[0] for snapshot in (await place.run().load_all())[1:]]
        for number in range(RACERS):
            mine = [text for text in written if text.split()[0] == f'{number}']
            assert mine == [f'{number} {turn}' for turn in range(ROUNDS)]
        assert [snapshot.id for snapshot in place.raw().snapshots] == [record.id for record in history]

    async def test_race_of_claimers(self, place: StoreUnderTest, anyio_backend_name: str):
        """Of many claimers exactly one gets each run, and every run is had by somebody."""
        for number in range(3 * RACERS):
            await begun(place, f'{number}')

        async def claim(store: Store, _: int) -> list[str]:
            found: list[str] = []
            while len(found) < 4 * RACERS and (persistence := await store.claim()) is not None:
                place.kept.append(persistence)
                found.append(persistence.run_id)
            return found

        results: Any = await race(place, anyio_backend_name, claim)
        counts = Counter(run_id for result in results for run_id in result)
        assert counts == Counter(f'{number}' for number in range(3 * RACERS))
        fences = [(await ownership_of(place.run(run_id))).fence for run_id in counts]
        assert set(fences) == {1}, 'each run should be taken once'

    async def test_race_for_what_was_abandoned(self, place: StoreUnderTest, anyio_backend_name: str):
        """Of several threads that take over one abandoned run exactly one gets it."""
        for number in range(ROUNDS):
            run_id = f'{number}'
            mine, snapshot_id = await begun(place, run_id)
            await start_for_good(place, mine, snapshot_id)
            place.kept.append(mine)
            place.clock.forward(LEASE)

            async def take_over(store: Store, _: int, run_id: str = run_id) -> object:
                persistence = known(store.run(run_id))
                place.kept.append(persistence)
                return await persistence.load_next()

            results = await race(place, anyio_backend_name, take_over)
            assert won(results) == 1, f'exactly one should take the run over; they got {results}'
            assert place.statuses(run_id) == ['pending']

    async def test_race_for_an_id(self, place: StoreUnderTest, anyio_backend_name: str):
        """Of several threads that fork or import into one id exactly one does; the run is whole."""
        mine, _ = await begun(place)
        await run_or_resume(graph, persistence=mine)
        text = await place.store.export('run')
        for number in range(ROUNDS):
            run_id = f'{number}'

            async def copy(store: Store, number: int, run_id: str = run_id) -> str:
                if number % 2:
                    await store.fork('run', into=run_id, at=3)
                else:
                    await store.import_run(text, run_id=run_id)
                return 'won'

            results = await race(place, anyio_backend_name, copy)
            assert won(results) == 1, f'exactly one should get the id; they got {results}'
            assert place.statuses(run_id) == ['success'] * 3

    async def test_race_of_deleting_and_starting(self, place: StoreUnderTest, anyio_backend_name: str):
        """A run that is deleted while others start it is either gone or theirs, and never half of each."""
        for number in range(ROUNDS):
            run_id = f'{number}'
            await begun(place, run_id)

            async def use(store: Store, number: int, run_id: str = run_id) -> object:
                if number == 0:
                    return await store.delete(run_id) or None
                persistence = known(store.run(run_id))
                place.kept.append(persistence)
                return await persistence.load_next()

            results = await race(place, anyio_backend_name, use)
            assert won(results) <= 1, f'the run is either deleted or taken; they got {results}'
            assert place.statuses(run_id) == ([] if results[0] is True else ['pending'])
