"""Clauses of a store's verbs for going on with runs: recover, retry and claim."""

from __future__ import annotations

import pytest

from ..errors import RunFinishedError, RunOwnedError, SnapshotStatusError, UnknownRunError
from ..resume import iter_or_resume, run_or_resume
from .clock import LEASE
from .copies import finished
from .graphs import Again, Ask, State, graph
from .listing import one_of_each
from .owning import begun
from .runs import fail
from .stores import StoreClauses, StoreUnderTest, known

__all__ = ('GoingOnClauses',)


class GoingOnClauses(StoreClauses):
    """What holds for going on with the runs of every store."""

    async def test_store_recover(self, place: StoreUnderTest):
        """`recover` sets back what an owner had whose lease has run out, once, and leaves the run free."""
        mine, _ = await begun(place)
        await mine.load_next()
        with pytest.raises(RunOwnedError):
            await place.store.recover('run')
        place.clock.forward(LEASE)
        assert await place.store.recover('run') == 1
        assert (place.statuses(), place.raw().owner) == (['created'], None)
        assert await place.store.recover('run') == 0
        with pytest.raises(UnknownRunError):
            await place.store.recover('unknown')

    async def test_recover_all(self, place: StoreUnderTest):
        """`recover_all` recovers each run whose owner is gone, no other, and says how many."""
        await one_of_each(place)
        assert await place.store.recover_all() == 0
        place.clock.forward(LEASE)
        mine, _ = await begun(place, 'in hand')
        await mine.load_next()
        assert await place.store.recover_all() == 2
        statuses = {info.id: info.status for info in await place.store.runs()}
        assert statuses == {
            'created': 'created',
            'error': 'error',
            'in hand': 'pending',
            'pending': 'created',
            'running': 'created',
            'success': 'success',
        }
        assert await place.store.recover_all() == 0
        await mine.release()

    async def test_store_retry(self, place: StoreUnderTest):
        """`retry` gives a failed node another attempt, for anybody, and is refused for any other run."""
        await one_of_each(place)
        await place.store.retry('error')
        assert place.statuses('error') == ['created']
        result = await run_or_resume(graph, persistence=place.another().run('error'))
        assert (result.output, result.state.items) == (2, ['ask 1', 'answer 2'])
        for run_id, error in {
            'created': SnapshotStatusError,
            'error': RunFinishedError,
            'success': RunFinishedError,
            'unknown': UnknownRunError,
        }.items():
            with pytest.raises(error):
                await place.store.retry(run_id)

    async def test_taking_turns(self, place: StoreUnderTest):
        """Two who take turns at a run each go on from where the other has left it, with recurring ids too."""
        await graph.initialize(Again(6), place.run(), state=State())
        both = place.run(), place.another().run('run')
        for turn in range(6):
            async with iter_or_resume(graph, persistence=both[turn % 2]) as run:
                await run.next()
        assert place.statuses() == ['success'] * 7
        result = await run_or_resume(graph, persistence=both[0])
        assert (result.output, len(set(result.state.items))) == (6, 6)

    async def test_claim(self, place: StoreUnderTest):
        """`claim` hands out each resumable run once, and the runs that cannot be gone on with never."""
        await one_of_each(place)
        await begun(place, 'waits')
        claimed = [await place.store.claim() for _ in range(3)]
        assert sorted(p.run_id for p in claimed if p is not None) == ['created', 'waits']
        for persistence in claimed:
            if persistence is not None:
                assert place.statuses(persistence.run_id) == ['pending']
                assert place.raw(persistence.run_id).owner is not None
                result = await run_or_resume(graph, persistence=persistence)
                assert result.output == 2
        assert await place.store.claim() is None

    async def test_claim_after_release(self, place: StoreUnderTest):
        """A run that was claimed and given back is handed out again, to be run with its first state."""
        await begun(place)
        claimed = await place.store.claim()
        assert claimed is not None
        assert await place.another().claim() is None
        await claimed.release()
        assert (place.statuses(), place.raw().owner) == (['created'], None)
        again = await place.another().claim()
        assert again is not None
        snapshot = await known(again).load_next()
        assert snapshot is not None
        assert snapshot.state == State()
        await again.release()

    async def test_claim_of_an_abandoned_run(self, place: StoreUnderTest):
        """A run whose owner's lease has run out is handed out, and a failed one after `retry`."""
        await one_of_each(place)
        await place.store.delete('created')
        assert await place.store.claim() is None
        place.clock.forward(LEASE)
        found = [await place.store.claim() for _ in range(3)]
        assert sorted(p.run_id for p in found if p is not None) == ['pending', 'running']
        await place.store.retry('error')
        retried = await place.store.claim()
        assert retried is not None
        assert retried.run_id == 'error'
        for persistence in (*found, retried):
            if persistence is not None:
                await persistence.release()

    async def test_claim_of_some(self, place: StoreUnderTest):
        """A claimer that works for a graph or a tag is handed no other runs."""
        await place.run('plain').snapshot_start(State(), Ask(1))
        await place.run('tagged', tags=('mine',)).snapshot_start(State(), Ask(1))
        assert await place.store.claim(graph='another') is None
        assert await place.store.claim(tag='yours') is None
        claimed = await place.store.claim(tag='mine', graph=graph.name)
        assert claimed is not None
        assert claimed.run_id == 'tagged'
        assert await place.store.claim(tag='mine') is None
        await claimed.release()

    async def test_claim_longest_waiting(self, place: StoreUnderTest):
        """Of very many runs those are handed out first that were unchanged the longest, roughly."""
        for number in range(40):
            await begun(place, f'{99 - number}')
            place.clock.forward(1)
        claimed = [await place.store.claim() for _ in range(8)]
        ages = [99 - int(p.run_id) for p in claimed if p is not None]
        assert len(ages) == 8
        assert max(ages) < 30, f'the oldest runs should come first; their ranks by age were {ages}'
        for persistence in claimed:
            if persistence is not None:
                await persistence.release()

    async def test_claim_passes_over(self, place: StoreUnderTest):
        """However many runs are given back each time, the others are handed out before long."""
        for number in range(20):
            await begun(place, f'given back {number}')
        place.clock.forward(1)
        await begun(place, 'wanted')
        for _ in range(200):
            place.clock.forward(1)
            claimed = await place.another().claim()
            assert claimed is not None
            await claimed.release()
            if claimed.run_id == 'wanted':
                return
        pytest.fail('200 claims were handed nothing but runs that had been given back before')

    async def test_failed_in_between(self, place: StoreUnderTest):
        """A claimed run that fails is free, and not handed out again before somebody asks for a retry."""
        _, snapshot_id = await begun(place)
        claimed = await place.store.claim()
        assert claimed is not None
        await fail(known(claimed), snapshot_id)
        assert (place.statuses(), place.raw().owner) == (['error'], None)
        assert await place.store.claim() is None

    async def test_claim_begun_again(self, place: StoreUnderTest):
        """A run that has ended and was begun again under its id is handed out like any other."""
        await finished(place)
        assert await place.store.claim() is None
        await begun(place)
        claimed = await place.another().claim()
        assert claimed is not None
        assert claimed.run_id == 'run'
        await run_or_resume(graph, persistence=claimed)
        assert (await place.info()).status == 'success'
        assert await place.store.claim() is None
