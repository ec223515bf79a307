"""Clauses for stores of which one run is damaged: whoever needs that one is told so, and nobody else."""

from __future__ import annotations

from abc import abstractmethod
from datetime import timedelta
from pathlib import Path

import pytest

from ..errors import CorruptSnapshotError
from ..resume import run_or_resume
from .clock import LEASE
from .copies import finished
from .graphs import graph
from .listing import one_of_each
from .owning import begun
from .stores import StoreClauses, StoreUnderTest, known

__all__ = ('Corruptible',)

_STATUSES = ('created', 'pending', 'running', 'error', 'success')


class Corruptible(StoreClauses):
    """Mixed in where the author can damage what is stored of one run, as a stray hand or a bad disk does."""

    @abstractmethod
    def corrupt(self, directory: Path, run_id: str) -> None:
        """Damage what is stored of this run, and only of this one, so that where it is cannot be read.

        Args:
            directory: As given to `open_store`; stores that are open there go on.
            run_id: The run, which is stored.
        """

    @pytest.mark.parametrize('status', _STATUSES)
    async def test_corrupt_run(self, place: StoreUnderTest, status: str):
        """A run that cannot be read is listed as failed, and each verb on it says so; it can be deleted."""
        await one_of_each(place)
        place.clock.forward(LEASE)
        self.corrupt(place.directory, status)
        for store in (place.store, place.another()):
            (info,) = [info for info in await store.runs() if info.id == status]
            assert (info.status, info.owner, info.resumable) == ('error', None, False)
            assert info.error is not None, 'it should be told what is wrong with the run'
            for verb in (store.history, store.export, store.recover, store.retry):
                with pytest.raises(CorruptSnapshotError):
                    await verb(status)
            with pytest.raises(CorruptSnapshotError):
                await store.fork(status, into='fork')
            with pytest.raises(CorruptSnapshotError):
                await run_or_resume(graph, persistence=known(store.run(status)))
        assert await place.store.delete(status)
        assert status not in [info.id for info in await place.another().runs()]
        await finished(place, status)
        assert place.statuses(status) == ['success'] * 3

    @pytest.mark.parametrize('status', _STATUSES)
    async def test_corrupt_run_harms_no_other(self, place: StoreUnderTest, status: str):
        """What is asked of all runs is done with each of the others, and the damaged one is left as it is."""
        await one_of_each(place)
        others = [run_id for run_id in _STATUSES if run_id != status]
        before = {info.id: info for info in await place.store.runs()}
        self.corrupt(place.directory, status)
        listed = {info.id: info for info in await place.another().runs()}
        assert [listed[run_id] for run_id in others] == [before[run_id] for run_id in others]
        for run_id in others:
            found = [info.id for info in await place.store.runs(status=before[run_id].status)]
            assert [i for i in found if i != status] == [run_id]
        place.clock.forward(LEASE)
        left = {'pending', 'running'} - {status}
        assert await place.store.recover_all() == len(left)
        waiting = left | ({'created'} - {status})
        while (claimed := await place.another().claim()) is not None:
            waiting.remove(claimed.run_id)
            assert (await run_or_resume(graph, persistence=known(claimed))).output == 2
        assert not waiting, f'the runs {waiting} should be handed out'
        await begun(place, 'new')
        place.clock.forward(60)
        ended = [run_id for run_id in others if run_id != 'error']
        assert await place.store.prune(older_than=timedelta(0), only_finished=False) == (len(ended), 0)
        assert {info.id for info in await place.store.runs()} == {'error', 'new', status}
        with pytest.raises(CorruptSnapshotError):
            await place.store.history(status)
