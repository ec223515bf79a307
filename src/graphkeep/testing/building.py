"""Clauses of runs of builder graphs; passed over where the host has no graph builder."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from ..errors import UnsupportedHostError
from ..resume import iter_or_resume, run_or_resume
from .graphs import State
from .stores import StoreClauses, StoreUnderTest

__all__ = ('BuildingClauses',)


class BuildingClauses(StoreClauses):
    """What holds for the runs of builder graphs in every store."""

    @pytest.fixture
    def mapped(self) -> Any:
        """The module of the graph."""
        try:
            from . import mapped
        except UnsupportedHostError as exc:
            pytest.skip(str(exc))
        return mapped

    async def _leave_half_way(self, place: StoreUnderTest, mapped: Any) -> None:
        """Begin a run, and leave it when the steps of the even numbers are on record as done."""
        odd = mapped.Work(frozenset(range(1, mapped.NUMBERS, 2)))
        begun = place.store.run('run', tags=('tag',))
        running = iter_or_resume(
            mapped.squares, state=State(), inputs=mapped.NUMBERS, deps=odd, persistence=begun
        )
        with anyio.fail_after(30):
            async with running as run:
                while await _done(place) < mapped.NUMBERS // 2:
                    await run.next()
                assert place.raw().owner is not None, 'whoever opened the run should have it'

    async def test_mapped_run_goes_on(self, place: StoreUnderTest, mapped: Any):
        """A run that is left half way goes on in another store; what is on record as done stays done."""
        await self._leave_half_way(place, mapped)
        info = await place.info()
        assert (info.status, info.owner, info.resumable) == ('created', None, True)
        assert (info.steps, info.graph, info.tags) == (len(place.statuses()), 'squares', ('tag',))
        claimed = await place.another().claim(graph='squares')
        assert claimed is not None
        rest = mapped.Work()
        output = await run_or_resume(mapped.squares, deps=rest, persistence=claimed)
        assert (output, sorted(rest.begun)) == (sum(n**2 for n in range(mapped.NUMBERS)), [1, 3, 5])
        assert set(place.statuses()) == {'success'}
        assert place.raw().owner is None
        state = await claimed.last_state()
        assert sorted(state.items) == [f'square of {n}' for n in range(mapped.NUMBERS)]
        again = await run_or_resume(mapped.squares, deps=rest, persistence=place.another().run('run'))
        assert (again, len(rest.begun)) == (output, 3)

    async def test_copies_of_a_mapped_run(self, place: StoreUnderTest, mapped: Any):
        """A fork and an imported copy of a run that was left half way each go on by themselves."""
        await self._leave_half_way(place, mapped)
        before = place.raw()
        await place.store.fork('run', into='fork')
        await place.another().import_run(await place.store.export('run'), run_id='copy')
        for run_id in ('fork', 'copy'):
            assert len(place.raw(run_id).snapshots) == len(before.snapshots)
            rest = mapped.Work()
            output = await run_or_resume(mapped.squares, deps=rest, persistence=place.store.run(run_id))
            assert (output, sorted(rest.begun)) == (sum(n**2 for n in range(mapped.NUMBERS)), [1, 3, 5])
        assert place.raw() == before, 'a copy should leave its source as it is'


async def _done(place: StoreUnderTest) -> int:
    """Return how many squares are on record."""
    history = await place.store.run('run').load_history()
    return sum(record.node_id == 'square' and record.status == 'success' for record in history)
