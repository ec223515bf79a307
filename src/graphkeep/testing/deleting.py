"""Clauses of deleting: one run, old ones, and what a long run has gone past."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ..commit import Commit, Writer
from ..errors import OwnershipLostError, RunOwnedError, UnknownRunError
from ..resume import run_or_resume
from .clock import LEASE
from .copies import finished
from .graphs import Again, Ask, State, graph
from .listing import one_of_each
from .owning import begun
from .stores import StoreClauses, StoreUnderTest, commit_below, delete_below, ownership_of

__all__ = ('DeletingClauses',)


class DeletingClauses(StoreClauses):
    """What holds for what every store deletes."""

    async def test_delete(self, place: StoreUnderTest):
        """Nothing is left of a run that was deleted, once, and its id can be used again."""
        await finished(place, tags=('old',))
        await finished(place, 'other')
        assert await place.store.delete('run') is True
        assert place.raw() == ([], None)
        with pytest.raises(UnknownRunError):
            await place.store.history('run')
        assert [info.id for info in await place.another().runs()] == ['other']
        assert await place.store.delete('run') is False
        await place.run(tags=('new',)).snapshot_node(State(['new']), Ask(5))
        info = await place.info()
        assert (info.steps, info.status, info.tags, info.parent) == (1, 'created', ('new',), None)
        assert await place.run().last_state() == State(['new'])
        assert [record.seq for record in await place.store.history('run')] == [1]

    async def test_delete_what_is_in_hand(self, place: StoreUnderTest):
        """A run that a living owner has is not deleted; once the lease has run out it is."""
        await one_of_each(place)
        for run_id in ('pending', 'running'):
            before = place.raw(run_id)
            with pytest.raises(RunOwnedError):
                await place.store.delete(run_id)
            assert place.raw(run_id) == before
        place.clock.forward(LEASE)
        for run_id in ('created', 'error', 'pending', 'running', 'success'):
            assert await place.store.delete(run_id)
        assert await place.store.runs() == []

    async def test_delete_what_has_ended(self, place: StoreUnderTest):
        """A run is pruned if it has ended by then, before the moment; not one that has its id meanwhile."""
        await one_of_each(place)
        before = {info.id: place.raw(info.id) for info in await place.store.runs()}
        ended = (await place.info('success')).updated
        assert ended is not None
        place.clock.forward(LEASE)
        for run_id in before:
            moment = ended if run_id == 'success' else place.clock.now
            assert not await delete_below(place.store, run_id, moment), f'{run_id!r} had not ended by then'
        assert not await delete_below(place.store, 'unknown', place.clock.now)
        assert {info.id: place.raw(info.id) for info in await place.store.runs()} == before
        assert await delete_below(place.store, 'success', ended + timedelta(microseconds=1))
        assert place.raw('success') == ([], None)

    async def test_prune(self, place: StoreUnderTest):
        """Runs that ended before a moment are pruned, and neither younger nor unfinished ones."""
        await one_of_each(place)
        for run_id in ('young', 'younger'):
            place.clock.forward(100)
            await finished(place, run_id)
        place.clock.forward(50)
        kept = {info.id: place.raw(info.id) for info in await place.store.runs() if info.id != 'success'}
        assert await place.store.prune(older_than=timedelta(seconds=200)) == (1, 0)
        assert {info.id: place.raw(info.id) for info in await place.store.runs()} == kept
        assert await place.store.prune(older_than=timedelta(seconds=200)) == (0, 0)
        moment = place.clock.now - timedelta(seconds=100)
        assert await place.store.prune(older_than=moment) == (1, 0)
        assert {info.id for info in await place.store.runs()} == kept.keys() - {'young'}

    async def test_prune_keeps_the_last(self, place: StoreUnderTest):
        """So many of the finished runs as were asked for stay, the newest ones, whatever their age."""
        for run_id in ('c', 'b', 'a', 'd'):
            await finished(place, run_id)
            place.clock.forward(10)
        assert await place.store.prune(older_than=timedelta(0), keep_last=2) == (2, 0)
        assert {info.id for info in await place.store.runs()} == {'a', 'd'}

    async def test_prune_many(self, place: StoreUnderTest):
        """However many runs there are, all are listed if so many are asked for, and pruned."""
        await finished(place)
        text = await place.store.export('run')
        for number in range(250):
            await place.store.import_run(text, run_id=f'{number}')
        await begun(place, 'unfinished')
        place.clock.forward(10)
        assert len(await place.store.runs(limit=1000)) == 252
        assert await place.store.prune(older_than=timedelta(seconds=5)) == (251, 0)
        assert [info.id for info in await place.store.runs()] == ['unfinished']

    async def test_trim(self, place: StoreUnderTest):
        """Asked to, pruning takes from an unfinished run what it has gone past; the run goes on as before."""
        async with graph.iter(Again(5), state=State(), persistence=place.run(tags=('tag',))) as run:
            for _ in range(3):
                await run.next()
                place.clock.forward(10)
        assert place.statuses() == ['success'] * 3 + ['created']
        assert await place.store.prune(older_than=timedelta(seconds=15)) == (0, 0)
        assert len(place.statuses()) == 4
        assert await place.store.prune(older_than=timedelta(seconds=15), only_finished=False) == (0, 2)
        assert place.statuses() == ['success', 'created']
        assert [record.seq for record in await place.store.history('run')] == [3, 4]
        info = await place.info()
        assert (info.steps, info.status, info.tags, info.resumable) == (4, 'created', ('tag',), True)
        assert await place.store.prune(older_than=timedelta(0), only_finished=False) == (0, 0)
        result = await run_or_resume(graph, persistence=place.another().run('run'))
        assert (result.output, len(result.state.items)) == (5, 5)
        assert [record.seq for record in await place.store.history('run')] == [3, 4, 5, 6]

    async def test_trim_what_is_in_hand(self, place: StoreUnderTest):
        """Pruning takes nothing that an unfinished run needs, whoever has it; its owner goes on."""
        mine = place.run()
        async with graph.iter(Again(4), state=State(), persistence=mine) as run:
            await run.next()
            await run.next()
        claimed = await place.store.claim()
        assert claimed is not None
        before = place.raw()
        place.clock.forward(10)
        assert await place.store.prune(older_than=timedelta(0), only_finished=False) == (0, 1)
        assert place.raw() == (before.snapshots[1:], before.owner)
        result = await run_or_resume(graph, persistence=claimed)
        assert (result.output, len(result.state.items)) == (4, 4)

    async def test_trim_leaves_the_fence(self, place: StoreUnderTest):
        """Pruning leaves a run its fence, so that no number under which it was taken ever counts again."""
        mine = place.run()
        async with graph.iter(Again(5), state=State(), persistence=mine) as run:
            for _ in range(3):
                await run.next()
        before = await ownership_of(mine)
        place.clock.forward(10)
        assert await place.store.prune(older_than=timedelta(0), only_finished=False) == (0, 2)
        assert await ownership_of(place.another().run('run')) == before
        other = place.run()
        await other.load_next()
        assert (await ownership_of(other)).fence == before.fence + 1
        for fence in range(before.fence + 1):
            with pytest.raises(OwnershipLostError):
                await commit_below(mine, Commit(writer=Writer(fence, give_up=True)))
        await other.release()

    async def test_trim_between_steps(self, place: StoreUnderTest):
        """A run goes on though everything that it has gone past is pruned after each of its steps."""
        async with graph.iter(Again(5), state=State(), persistence=place.run()) as run:
            for step in range(1, 5):
                await run.next()
                place.clock.forward(10)
                pruned = await place.another().prune(older_than=timedelta(0), only_finished=False)
                assert pruned == (0, min(step - 1, 1))
                assert [record.seq for record in await place.store.history('run')] == [step, step + 1]
            await run.next()
        assert run.result is not None
        assert (run.result.output, len(set(run.result.state.items))) == (5, 5)
        assert [record.seq for record in await place.store.history('run')] == [4, 5, 6]

    async def test_trim_after_a_failure(self, place: StoreUnderTest):
        """The snapshot at which a run failed is never pruned: after a retry the run goes on there."""
        await one_of_each(place)
        place.clock.forward(1000)
        before = {info.id: place.raw(info.id) for info in await place.store.runs(status=['created', 'error'])}
        await place.store.prune(older_than=timedelta(0), only_finished=False)
        assert {
            info.id: place.raw(info.id) for info in await place.store.runs() if info.id in before
        } == before
        await place.store.retry('error')
        result = await run_or_resume(graph, persistence=place.run('error'))
        assert result.output == 2
