"""Clauses of ownership: one owner at a time, for as long as its lease lasts, under a fence that grows."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from ..commit import Commit, Ownership, StatusChange, Writer
from ..errors import OwnershipLostError, RunOwnedError
from ..snapshots import NodeSnapshot
from ..status import START
from ..stored import StoredStatePersistence
from .clock import LEASE
from .graphs import Answer, Ask, State
from .stores import StoreClauses, StoreUnderTest, commit_below, owner_of, ownership_of

__all__ = ('OwningClauses', 'begun', 'start_for_good')


async def begun(place: StoreUnderTest, run_id: str = 'run') -> tuple[StoredStatePersistence[Any, Any], str]:
    """Store the first node of a run, and return an instance with the snapshot's id."""
    persistence = place.run(run_id)
    await persistence.snapshot_node(State(), Ask(1))
    return persistence, place.raw(run_id).snapshots[-1].id


async def start_for_good(
    place: StoreUnderTest, persistence: StoredStatePersistence[Any, Any], snapshot_id: str
) -> None:
    """Start a node that nobody ends: what is left when its process stops for good."""
    change = StatusChange(snapshot_id, START, place.clock.now)
    writer = Writer(None, owner_of(persistence), LEASE)
    await commit_below(persistence, Commit(changes=[change], writer=writer))


def _renewal(owned: Ownership) -> Writer:
    """Return the writer that the heartbeat of this owner is."""
    return Writer(owned.fence, owned.owner, LEASE, holder=owned.owner and owned.owner.id)


class OwningClauses(StoreClauses):
    """What holds for who has a run."""

    async def test_raw_owner(self, place: StoreUnderTest):
        """While a node runs the storage tells who has the run; before and after, that nobody has."""
        assert place.raw().owner is None
        mine, snapshot_id = await begun(place)
        assert place.raw().owner is None
        async with mine.record_run(snapshot_id):
            ownership = await ownership_of(mine)
            assert ownership.owner is not None, 'the run should be owned while its node runs'
            assert place.raw().owner == ownership.owner.id
        await mine.snapshot_node(State(), Answer())
        assert place.raw().owner is None, 'the end of a step should free the run'
        assert (await ownership_of(mine)).owner is None

    async def test_fence_grows(self, place: StoreUnderTest):
        """Each taking of a run adds 1 to its fence; giving it up leaves the fence."""
        mine, snapshot_id = await begun(place)
        fences = [(await ownership_of(mine)).fence]
        async with mine.record_run(snapshot_id):
            fences.append((await ownership_of(mine)).fence)
        await mine.snapshot_node(State(), Answer())
        fences.append((await ownership_of(mine)).fence)
        other = place.run()
        await other.load_next()
        fences.append((await ownership_of(other)).fence)
        await other.release()
        fences.append((await ownership_of(place.run())).fence)
        assert fences == [0, 1, 1, 2, 2]

    async def test_owner_is_told_whole(self, place: StoreUnderTest):
        """What is stored of an owner is all of it, so that others can find out whether it still exists."""
        mine, _ = await begun(place)
        await mine.load_next()
        ownership = await ownership_of(place.another().run('run'))
        assert ownership.owner is not None
        assert ownership.owner.is_here
        with pytest.raises(RunOwnedError) as refused:
            await place.run().recover()
        assert refused.value.owner == ownership.owner
        (record,) = await place.run().load_history()
        assert record.owner == str(ownership.owner)
        await mine.release()

    async def test_owned_until_the_lease_ends(self, place: StoreUnderTest):
        """A lease, measured with the clock given, holds to its last moment and not beyond."""
        mine, _ = await begun(place)
        await mine.load_next()
        ownership = await ownership_of(mine)
        assert ownership.expires is not None
        assert (ownership.expires - place.clock.now).total_seconds() == LEASE
        place.clock.forward(LEASE - 0.001)
        assert await place.run().load_next() is None
        with pytest.raises(RunOwnedError):
            await place.run().recover()
        place.clock.forward(0.001)
        assert isinstance(await place.run().load_next(), NodeSnapshot)

    async def test_owned_by_another(self, place: StoreUnderTest):
        """What another living owner has can be neither started, nor changed, nor recovered."""
        mine, snapshot_id = await begun(place)
        async with mine.record_run(snapshot_id):
            before = place.raw()
            other = place.run()
            for attempt in (
                other.record_run(snapshot_id).__aenter__,
                other.recover,
                lambda: other.snapshot_node(State(), Answer()),
                lambda: other.snapshot_node_if_new('new', State(), Answer()),
            ):
                with pytest.raises(RunOwnedError) as refused:
                    await attempt()
                assert refused.value.until == (await ownership_of(mine)).expires
                assert place.raw() == before

    async def test_take_over(self, place: StoreUnderTest):
        """When a lease has run out another owner goes on, and what the former one writes is refused."""
        mine, snapshot_id = await begun(place)
        other = place.run()
        async with mine.record_run(snapshot_id):
            place.clock.forward(LEASE)
            snapshot = await other.load_next()
            assert snapshot is not None
            assert snapshot.id == snapshot_id
        before = place.raw()
        with pytest.raises(OwnershipLostError):
            await mine.snapshot_node(State(['stale']), Answer())
        assert place.raw() == before, 'a write by a former owner should change nothing'
        async with other.record_run(snapshot_id):
            pass
        await other.snapshot_node(State(['fresh']), Answer())
        assert place.statuses() == ['success', 'created']
        assert await place.run().last_state() == State(['fresh'])
        first, _ = await place.run().load_history()
        assert [attempt.outcome for attempt in first.attempts] == ['recovered', 'success']

    async def test_stale_failure(self, place: StoreUnderTest):
        """The failure and the release of a former owner's node are not written."""
        for exc in (ValueError('late'), KeyboardInterrupt()):
            mine, snapshot_id = await begun(place, type(exc).__name__)
            other = place.run(mine.run_id)
            with suppress(ValueError, KeyboardInterrupt):
                async with mine.record_run(snapshot_id):
                    place.clock.forward(LEASE)
                    await other.load_next()
                    raise exc
            assert place.statuses(mine.run_id) == ['pending']
            assert (await ownership_of(other)).owner is not None
            await other.release()

    async def test_stale_start(self, place: StoreUnderTest):
        """Who was handed a node, and lost the run before starting it, cannot start it any more."""
        mine, snapshot_id = await begun(place)
        await mine.load_next()
        place.clock.forward(LEASE)
        assert await place.run().recover() == 1
        with pytest.raises(OwnershipLostError):
            await mine.record_run(snapshot_id).__aenter__()
        assert (place.statuses(), place.raw().owner) == (['created'], None)

    async def test_stale_renewal(self, place: StoreUnderTest):
        """The heartbeat of a former owner does not get the run back, also when nobody has it."""
        mine, _ = await begun(place)
        await mine.load_next()
        owned = await ownership_of(mine)
        place.clock.forward(LEASE)
        other = place.run()
        await other.load_next()
        for holder in (other, None):
            if holder is None:
                await other.release()
            before = await ownership_of(other)
            with pytest.raises(OwnershipLostError):
                await commit_below(mine, Commit(writer=_renewal(owned)))
            assert await ownership_of(other) == before

    async def test_stale_renewal_of_a_run_begun_anew(self, place: StoreUnderTest):
        """The heartbeat of who had a run that was deleted does not get the one that has its id now."""
        mine, _ = await begun(place)
        await mine.load_next()
        owned = await ownership_of(mine)
        place.clock.forward(LEASE)
        await place.store.delete('run')
        other, _ = await begun(place)
        await other.load_next()
        before = await ownership_of(other)
        with pytest.raises(OwnershipLostError):
            await commit_below(mine, Commit(writer=_renewal(owned)))
        assert await ownership_of(other) == before
        await other.release()

    async def test_renewal(self, place: StoreUnderTest):
        """A renewal by who has the run makes its lease last from now on, and changes nothing else."""
        mine, _ = await begun(place)
        await mine.load_next()
        before, owned = place.raw(), await ownership_of(mine)
        place.clock.forward(LEASE - 1)
        await commit_below(mine, Commit(writer=_renewal(owned)))
        after = await ownership_of(mine)
        assert (after.fence, after.owner, place.raw()) == (owned.fence, owned.owner, before)
        assert after.expires is not None
        assert (after.expires - place.clock.now).total_seconds() == LEASE
        await mine.release()

    async def test_start_by_nobody_leaves_it_free(self, place: StoreUnderTest):
        """A change by somebody who leaves no name takes nothing."""
        mine, snapshot_id = await begun(place)
        await commit_below(mine, Commit(changes=[StatusChange(snapshot_id, START, place.clock.now)]))
        assert place.raw().owner is None
        assert (await ownership_of(mine)).fence == 0
