"""Clauses of what a store tells of its runs: the list, its filters and pages, and a run's history."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ..errors import InvalidRunIdError, UnknownRunError
from ..resume import run_or_resume
from ..snapshots import now_utc
from .clock import LEASE
from .graphs import Again, Ask, State, graph
from .owning import begun, start_for_good
from .runs import fail
from .stores import StoreClauses, StoreUnderTest

__all__ = ('ListingClauses', 'one_of_each')

_IDS = ('A', 'Z', 'a', 'a b', 'a%20b', 'b', "b'; --", 'b*', 'b_', 'con', 'x' * 100, 'ä', '日本', '😀')
"""Ids that are not the same, in their order, though a careless storage may take some for others."""


async def one_of_each(place: StoreUnderTest) -> None:
    """Store a run with each status, named for it; each a second later than the one before."""
    for run_id in ('created', 'error', 'pending', 'running', 'success'):
        persistence, snapshot_id = await begun(place, run_id)
        if run_id == 'error':
            await fail(persistence, snapshot_id)
        elif run_id == 'pending':
            await persistence.load_next()
        elif run_id == 'running':
            await start_for_good(place, persistence, snapshot_id)
        elif run_id == 'success':
            await run_or_resume(graph, persistence=persistence)
        place.kept.append(persistence)
        place.clock.forward(1)


class ListingClauses(StoreClauses):
    """What holds for what every store tells of its runs."""

    async def test_runs_in_the_order_of_their_ids(self, place: StoreUnderTest):
        """Runs are listed once each, by the code points of their ids, whatever characters those have."""
        for run_id in reversed(_IDS):
            await begun(place, run_id)
        assert [info.id for info in await place.store.runs()] == list(_IDS)
        for number, run_id in enumerate(_IDS):
            await place.run(run_id).snapshot_node(State([run_id]), Ask(number))
        assert [(await place.run(run_id).last_state()).items for run_id in _IDS] == [[i] for i in _IDS]

    @pytest.mark.parametrize('run_id', ['', '.', '..', '../x', 'a/b', 'a\\b', 'a\0b', 'a\nb', 'x' * 129])
    async def test_ids_that_are_refused(self, place: StoreUnderTest, run_id: str):
        """An id that could name something else is refused by every verb."""
        store = place.store
        with pytest.raises(InvalidRunIdError):
            store.run(run_id)
        for ask in (store.history, store.recover, store.retry, store.export, store.delete):
            with pytest.raises(InvalidRunIdError):
                await ask(run_id)

    async def test_pages(self, place: StoreUnderTest):
        """Page by page, each run is listed once, whether one goes on after a run or after its id."""
        for run_id in _IDS:
            await begun(place, run_id)
        store = place.store
        listed = page = await store.runs(limit=5)
        while page and len(listed) <= len(_IDS):
            assert len(page) <= 5
            page = await store.runs(limit=5, after=page[-1] if len(listed) > 5 else page[-1].id)
            listed += page
        assert [info.id for info in listed] == list(_IDS)
        assert await store.runs(limit=0) == []
        assert [info.id for info in await store.runs(limit=1, after='a!')] == ['a%20b']

    async def test_what_is_told_of_a_run(self, place: StoreUnderTest):
        """A run is listed with status, steps, times, owner, lease, error, graph and tags, and if it waits."""
        begin = place.clock.now
        await one_of_each(place)
        infos = {info.id: info for info in await place.store.runs()}
        assert {run_id: info.status for run_id, info in infos.items()} == {run_id: run_id for run_id in infos}
        assert [info.steps for info in infos.values()] == [1, 1, 1, 1, 3]
        assert {info.id for info in infos.values() if info.resumable} == {'created'}
        assert {info.id for info in infos.values() if info.owner} == {'pending', 'running'}
        leases = {i.id: i.expires - i.created for i in infos.values() if i.expires and i.created}
        assert leases == dict.fromkeys(('pending', 'running'), timedelta(seconds=LEASE))
        assert {info.graph for info in infos.values()} == {graph.name}
        seconds = [(info.created - begin).total_seconds() for info in infos.values() if info.created]
        assert seconds == [0, 1, 2, 3, 4]
        for info in infos.values():
            assert info.updated is not None
            assert info.created is not None
            assert 0 <= (info.updated - info.created).total_seconds() < 1
        error = infos['error'].error
        assert error is not None
        assert (error.type, error.message) == ('ValueError', 'bad luck')
        assert [info.tags for info in infos.values()] == [()] * 5

    async def test_filters(self, place: StoreUnderTest):
        """Filters by status, one or several, by graph and by time let through what they say, all together."""
        begin = place.clock.now
        await one_of_each(place)
        runs = place.store.runs
        for status in ('created', 'pending', 'running', 'success', 'error'):
            assert [info.id for info in await runs(status=status)] == [status]
        assert [info.id for info in await runs(status=['success', 'error'])] == ['error', 'success']
        assert [info.id for info in await runs(status=[])] == []
        assert len(await runs(graph=graph.name)) == 5
        assert await runs(graph='another') == []
        assert await runs(graph="x' OR '1'='1") == []
        third = begin.replace(second=begin.second + 2)
        assert [info.id for info in await runs(updated_before=third)] == ['created', 'error']
        assert [info.id for info in await runs(updated_before=third, status='error')] == ['error']
        assert [info.id for info in await runs(status=['created', 'error'], limit=1)] == ['created']

    async def test_wrong_filters(self, place: StoreUnderTest):
        """A filter that can let nothing through by mistake is refused."""
        runs = place.store.runs
        with pytest.raises(ValueError, match='status'):
            await runs(status='finished')  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match='limit'):
            await runs(limit=-1)
        with pytest.raises(ValueError, match='aware'):
            await runs(updated_before=now_utc().replace(tzinfo=None))

    async def test_tags(self, place: StoreUnderTest):
        """A run is found by each of the tags it began with, and by nothing else, whoever opens it later."""
        tags = {'one': ('blue', 'red'), 'two': ('red', "x' OR '1'='1"), 'three': ()}
        for run_id, wanted in tags.items():
            await place.run(run_id, tags=tuple(reversed(wanted))).snapshot_node(State(), Ask())
        await run_or_resume(graph, persistence=place.run('one', tags=('green',)))
        assert {info.id: info.tags for info in await place.another().runs()} == tags
        for tag, found in {'red': ['one', 'two'], 'blue': ['one'], 'green': [], 're': [], 'RED': []}.items():
            assert [info.id for info in await place.store.runs(tag=tag)] == found, f'tag {tag!r}'
        assert [info.id for info in await place.store.runs(tag="x' OR '1'='1")] == ['two']

    async def test_a_run_begins_with_its_first_snapshot(self, place: StoreUnderTest):
        """A run that was only asked for is not there."""
        persistence = place.run()
        assert await persistence.load_next() is None
        assert await place.store.runs() == []
        with pytest.raises(UnknownRunError) as unknown:
            await place.store.history('run')
        assert unknown.value.run_id == 'run'
        assert place.raw() == ([], None)

    async def test_history_of_a_run(self, place: StoreUnderTest):
        """The history tells each snapshot with number, status, attempts, errors and who ran it."""
        persistence, snapshot_id = await begun(place)
        await fail(persistence, snapshot_id)
        await place.store.retry('run')
        await run_or_resume(graph, persistence=persistence)
        ask, answer, end = await place.another().history('run')
        assert [(r.seq, r.node_id, r.kind, r.status, r.attempt) for r in (ask, answer, end)] == [
            (1, 'Ask', 'node', 'success', 2),
            (2, 'Answer', 'node', 'success', 1),
            (3, 'End', 'end', 'success', 0),
        ]
        assert [a.outcome for a in ask.attempts] == ['error', 'success']
        assert [a.error and a.error.message for a in ask.attempts] == ['bad luck', None]
        assert all(a.owner for a in (*ask.attempts, *answer.attempts)), 'it should say who ran each attempt'

    async def test_runs_do_not_mix(self, place: StoreUnderTest):
        """Two runs in one store have nothing in common, also where their snapshots have the same ids."""
        node = Again(3)
        for run_id in ('one', 'two'):
            await place.run(run_id).snapshot_node(State([run_id]), node)
        one, two = place.raw('one').snapshots, place.raw('two').snapshots
        assert [snapshot.id for snapshot in one] == [snapshot.id for snapshot in two]
        await run_or_resume(graph, persistence=place.run('one'))
        assert (len(place.statuses('one')), place.statuses('two')) == (4, ['created'])
        assert await place.run('two').last_state() == State(['two'])

    async def test_stores_share_a_storage(self, place: StoreUnderTest):
        """What one store has committed every other one sees at once, and one that is opened later too."""
        first, second = place.store, place.another()
        await begun(place)
        assert [info.id for info in await second.runs()] == ['run']
        result = await run_or_resume(graph, persistence=second.run('run'))
        assert result.output == 2
        assert [record.status for record in await first.history('run')] == ['success'] * 3
        assert [info.status for info in await place.another().runs()] == ['success']
