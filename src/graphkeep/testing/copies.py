"""Clauses of copying runs: fork with its lineage, export and import."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from ..errors import CorruptSnapshotError, RunExistsError, UnknownRunError, UnknownSnapshotError
from ..file import FileStatePersistence
from ..resume import run_or_resume
from ..snapshots import NodeSnapshot
from .graphs import Again, Answer, Ask, State, graph
from .listing import one_of_each
from .owning import begun
from .runs import fail
from .stores import StoreClauses, StoreUnderTest

__all__ = ('CopyingClauses',)


async def finished(place: StoreUnderTest, run_id: str = 'run', *, tags: tuple[str, ...] = ()) -> None:
    """Store a run that has ended."""
    await run_or_resume(graph, Ask(1), state=State(), persistence=place.run(run_id, tags=tags))


class CopyingClauses(StoreClauses):
    """What holds for copies of the runs of every store."""

    @pytest.mark.parametrize('at', [2, 'id'], ids=['number', 'id'])
    async def test_fork(self, place: StoreUnderTest, at: str | int):
        """A fork begins like its source, and goes on by itself from the snapshot that was asked for."""
        await finished(place, tags=('tag',))
        snapshots = place.raw().snapshots
        fork = await place.store.fork('run', into='fork', at=snapshots[1].id if at == 'id' else at)
        assert fork.run_id == 'fork'
        assert place.statuses('fork') == ['success', 'created']
        assert [s.id for s in place.raw('fork').snapshots] == [s.id for s in snapshots[:2]]
        assert place.raw('fork').owner is None
        first, second = await place.store.history('fork')
        assert (first.seq, first.attempt, second.seq, second.attempt, second.attempts) == (1, 1, 2, 0, ())
        result = await run_or_resume(graph, persistence=fork)
        assert (result.output, result.state.items) == (2, ['ask 1', 'answer 2'])
        assert place.raw().snapshots == snapshots, 'a fork should leave its source as it is'

    async def test_fork_by_default(self, place: StoreUnderTest):
        """Without a snapshot to go on from, a fork goes on from the newest one; a failed one is run again."""
        await one_of_each(place)
        for run_id in ('created', 'error', 'pending', 'running'):
            fork = await place.store.fork(run_id, into=f'{run_id} again')
            assert place.raw(fork.run_id).owner is None
            result = await run_or_resume(graph, persistence=fork)
            assert result.output == 2
        assert place.statuses('error') == ['error']
        assert place.raw('running').owner is not None
        await place.store.fork('success', into='success again')
        assert place.statuses('success again') == ['success'] * 3

    async def test_fork_of_a_recurring_id(self, place: StoreUnderTest):
        """Where an id recurs, the id means its newest snapshot and a number each of them."""
        result = await run_or_resume(graph, Again(3), state=State(), persistence=place.run())
        assert result.output == 3
        snapshot_id = place.raw().snapshots[0].id
        await place.store.fork('run', into='newest', at=snapshot_id)
        await place.store.fork('run', into='second', at=2)
        assert (len(place.raw('newest').snapshots), len(place.raw('second').snapshots)) == (3, 2)
        snapshot = await place.run('second').load_next()
        assert snapshot is not None
        assert snapshot.node == Again(2)

    async def test_lineage(self, place: StoreUnderTest):
        """A fork tells the run and the snapshot it was forked at, has graph and tags, and is new."""
        await finished(place, tags=('tag',))
        place.clock.forward(5)
        await place.store.fork('run', into='fork', at=2)
        await place.store.fork('fork', into='fork of fork', at=1)
        info = await place.info('fork')
        assert (info.parent, info.graph, info.tags) == (('run', 2), graph.name, ('tag',))
        assert (info.created, info.status, info.resumable) == (place.clock.now, 'created', True)
        assert (await place.info('fork of fork')).parent == ('fork', 1)
        assert (await place.info('run')).parent is None

    async def test_fork_outlives_its_source(self, place: StoreUnderTest):
        """What becomes of the source does not touch a fork: deleted, pruned, or begun anew."""
        await finished(place)
        fork = await place.store.fork('run', into='fork', at=2)
        assert await place.store.delete('run')
        assert place.statuses('fork') == ['success', 'created']
        await place.run('run').snapshot_node(State(), Again())
        result = await run_or_resume(graph, persistence=fork)
        assert (result.output, result.state.items) == (2, ['ask 1', 'answer 2'])
        assert (await place.info('fork')).parent == ('run', 2)
        place.clock.forward(60)
        await finished(place, 'other')
        await place.store.fork('other', into='other fork', at=1)
        place.clock.forward(60)
        await place.store.prune(older_than=timedelta(seconds=30))
        assert {info.id for info in await place.store.runs()} == {'run', 'other fork'}
        snapshot = await place.run('other fork').load_next()
        assert snapshot is not None
        assert snapshot.node == Ask(1)

    async def test_refused_forks(self, place: StoreUnderTest):
        """A fork of nothing, from nowhere, or into a run that is there is refused, and changes nothing."""
        await finished(place)
        await begun(place, 'there')
        before = place.raw(), place.raw('there')
        for source, at, into, error in (
            ('unknown', None, 'new', UnknownRunError),
            ('run', 'unknown', 'new', UnknownSnapshotError),
            ('run', 4, 'new', UnknownSnapshotError),
            ('run', 0, 'new', UnknownSnapshotError),
            ('run', 1, 'there', RunExistsError),
            ('run', 1, 'run', RunExistsError),
        ):
            with pytest.raises(error):
                await place.store.fork(source, into=into, at=at)
        assert (place.raw(), place.raw('there'), place.raw('new')) == (*before, ([], None))

    async def test_export_and_import(self, place: StoreUnderTest):
        """A run that is exported and imported is the same run: snapshots, attempts, errors, tags, lineage."""
        persistence, snapshot_id = await begun(place)
        await fail(persistence, snapshot_id)
        await place.store.retry('run')
        await run_or_resume(graph, persistence=persistence)
        await place.store.fork('run', into='fork', at=2)
        await run_or_resume(graph, persistence=place.run('fork'))
        for run_id in ('run', 'fork'):
            text = await place.store.export(run_id)
            place.clock.forward(5)
            await place.another().import_run(text, run_id=f'{run_id} 2')
            assert place.raw(f'{run_id} 2') == place.raw(run_id)
            assert await place.store.history(f'{run_id} 2') == await place.store.history(run_id)
            assert await place.run(f'{run_id} 2').load_all() == await place.run(run_id).load_all()
            old, new = await place.info(run_id), await place.info(f'{run_id} 2')
            assert (old.graph, old.tags, old.created, old.parent) == (
                new.graph,
                new.tags,
                new.created,
                new.parent,
            )
            assert json.loads(await place.store.export(f'{run_id} 2')) == json.loads(text)

    async def test_imported_run_goes_on(self, place: StoreUnderTest):
        """Whoever had a run in hand does not have its copy: that is free, and goes on."""
        await one_of_each(place)
        for run_id in ('created', 'pending', 'running'):
            await place.store.import_run(await place.store.export(run_id), run_id='copy')
            assert (place.statuses('copy'), place.raw('copy').owner) == (['created'], None)
            result = await run_or_resume(graph, persistence=place.run('copy'))
            assert result.output == 2
            assert await place.store.delete('copy')

    async def test_files_move_in_and_out(self, place: StoreUnderTest, tmp_path: Any):
        """A file of `FileStatePersistence` is imported as it is, and what is exported is such a file."""
        file: FileStatePersistence[State, int] = FileStatePersistence(tmp_path / 'in.json')
        await graph.initialize(Ask(1), file, state=State(['ä "']))
        await place.store.import_run((tmp_path / 'in.json').read_text(encoding='utf-8'), run_id='moved')
        result = await run_or_resume(graph, persistence=place.run('moved'))
        assert (result.output, result.state.items) == (2, ['ä "', 'ask 1', 'answer 2'])
        (tmp_path / 'out.json').write_bytes(await place.store.export('moved', indent=2))
        out: FileStatePersistence[State, int] = FileStatePersistence(tmp_path / 'out.json')
        result = await run_or_resume(graph, persistence=out)
        assert (result.output, result.state.items) == (2, ['ä "', 'ask 1', 'answer 2'])
        asked, answered, _ = await out.load_all()
        assert isinstance(asked, NodeSnapshot)
        assert isinstance(answered, NodeSnapshot)
        assert (asked.node, answered.node) == (Ask(1), Answer(2))

    async def test_refused_imports(self, place: StoreUnderTest):
        """What is no run, or would replace one, is refused, and changes nothing."""
        await begun(place)
        before, text = place.raw(), await place.store.export('run')
        with pytest.raises(RunExistsError):
            await place.store.import_run(text, run_id='run')
        for wrong in ('', '{}', '[1]', text[:-3], b'\xff', '[{"kind": "node", "id": "x"}]'):
            with pytest.raises(CorruptSnapshotError):
                await place.store.import_run(wrong, run_id='new')
        with pytest.raises(UnknownRunError):
            await place.store.export('new')
        assert (place.raw(), place.raw('new')) == (before, ([], None))
