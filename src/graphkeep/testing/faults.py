"""Fault clauses: a commit that is refused, or fails, changes nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from ..codec import Body
from ..commit import Commit, Row, StatusChange, StepRecord, Writer
from ..errors import (
    OwnershipLostError,
    RunOwnedError,
    SnapshotStatusError,
    StorageError,
    UnknownSnapshotError,
)
from ..owner import new_owner
from ..resume import run_or_resume
from ..status import RETRY, START, SUCCEED
from .clock import LEASE
from .graphs import Answer, State, graph
from .owning import begun
from .stores import StoreClauses, StoreUnderTest, commit_below, ownership_of

__all__ = ('FailsOnDemand', 'FaultClauses')


async def whole(place: StoreUnderTest, run_id: str = 'run') -> tuple[object, ...]:
    """Return all there is to know of a run."""
    persistence = place.another().run(run_id)
    rows = await persistence.load_history()
    text = await place.store.export(run_id) if rows else b''
    return place.raw(run_id), rows, text, await ownership_of(persistence)


class FaultClauses(StoreClauses):
    """What holds for commits that a store refuses."""

    @pytest.mark.parametrize(
        'reason', ['unknown', 'status', 'fence', 'older fence', 'given up', 'owned', 'end', 'twice']
    )
    async def test_refused_commit(self, place: StoreUnderTest, reason: str):
        """Of a commit that is refused nothing is done: no change before the wrong one, no row, no taking."""
        mine, snapshot_id = await begun(place)
        if reason in ('fence', 'older fence', 'owned'):
            await mine.load_next()
        elif reason == 'end':
            await run_or_resume(graph, persistence=mine)
        before = await whole(place)
        owned = await ownership_of(mine)
        at = place.clock.now
        other = new_owner(place)
        wrong: dict[str, tuple[list[StatusChange], Writer, type[Exception]]] = {
            'unknown': (
                [StatusChange('unknown', START, at)],
                Writer(None, other, LEASE),
                UnknownSnapshotError,
            ),
            'status': ([StatusChange(snapshot_id, RETRY)], Writer(None, other, LEASE), SnapshotStatusError),
            'fence': ([], Writer(owned.fence + 1, other, LEASE), OwnershipLostError),
            'older fence': ([], Writer(owned.fence - 1, give_up=True), OwnershipLostError),
            'given up': ([], Writer(owned.fence, give_up=True), OwnershipLostError),
            'owned': ([], Writer(None, other, LEASE), RunOwnedError),
            'end': ([StatusChange(place.raw().snapshots[-1].id, SUCCEED)], Writer(), SnapshotStatusError),
            'twice': (
                [StatusChange(snapshot_id, START, at)],
                Writer(None, other, LEASE),
                SnapshotStatusError,
            ),
        }
        changes, writer, error = wrong[reason]
        first = [StatusChange(snapshot_id, START, at)] if reason != 'end' else []
        with pytest.raises(error):
            await commit_below(mine, Commit([*first, *changes], [_row()], writer=writer))
        assert await whole(place) == before, 'a commit that was refused should have changed nothing'
        await mine.release()

    async def test_conditional_rows(self, place: StoreUnderTest):
        """Rows that are to be stored unless there are some are not, and the rest of the commit is made."""
        mine, snapshot_id = await begun(place)
        for commit in (
            Commit(rows=[_row()], unless_any=True),
            Commit(rows=[_row()], unless_exists=snapshot_id),
        ):
            before = place.raw()
            await commit_below(mine, commit)
            assert place.raw() == before
        start = StatusChange(snapshot_id, START, place.clock.now)
        await commit_below(mine, Commit([start], [_row()], unless_any=True))
        assert place.statuses() == ['running']
        await commit_below(mine, Commit(rows=[_row()], unless_exists='unknown'))
        assert place.statuses() == ['running', 'created']

    async def test_receipt(self, place: StoreUnderTest):
        """A commit's receipt tells the fence after it, and the number and attempt of what it changed."""
        mine, snapshot_id = await begun(place)
        owner = new_owner(place)
        start = StatusChange(snapshot_id, START, place.clock.now)
        receipt = await commit_below(mine, Commit([start], writer=Writer(None, owner, LEASE)))
        assert (receipt.fence, receipt.seq, receipt.attempt) == (1, 1, 1)
        ended = StatusChange(snapshot_id, SUCCEED, duration=0.5)
        receipt = await commit_below(mine, Commit([ended], [_row()], writer=Writer(1, give_up=True)))
        assert (receipt.fence, receipt.seq, receipt.attempt) == (1, 1, 1)
        assert place.statuses() == ['success', 'created']


def _row() -> Row:
    return Row(StepRecord('Answer:row', 'Answer'), Body(b'{"items":[]}', b'{"value":2,"node_id":"Answer"}'))


class FailsOnDemand(StoreClauses):
    """Mixed in where the author can make the storage fail, as a full disk does."""

    @abstractmethod
    def failing(self, directory: Path) -> AbstractContextManager[object]:
        """Let every write to the storage in this directory fail with an `OSError` until the exit."""

    async def test_failed_write(self, place: StoreUnderTest):
        """A write that fails raises `StorageError`, an `OSError`, and changes nothing; later ones succeed."""
        mine, snapshot_id = await begun(place)
        before = await whole(place)
        attempts: list[Callable[[], Any]] = [
            lambda: mine.snapshot_node(State(), Answer()),
            mine.load_next,
            mine.record_run(snapshot_id).__aenter__,
            lambda: place.store.fork('run', into='fork'),
            lambda: place.store.delete('run'),
        ]
        for attempt in attempts:
            with self.failing(place.directory), pytest.raises(StorageError):
                await attempt()
            assert await whole(place) == before, 'a write that failed should have changed nothing'
        assert place.raw('fork') == ([], None)
        result = await run_or_resume(graph, persistence=mine)
        assert result.output == 2

    async def test_end_of_a_step_that_fails(self, place: StoreUnderTest):
        """A step whose end could not be stored is not lost: it is stored when the storage works again."""
        mine, snapshot_id = await begun(place)
        async with mine.record_run(snapshot_id):
            pass
        with self.failing(place.directory), pytest.raises(StorageError):
            await mine.snapshot_node(State(), Answer(2))
        assert place.statuses() == ['running']
        assert await mine.load_history()
        assert place.statuses() == ['success', 'created']
        result = await run_or_resume(graph, persistence=place.run())
        assert result.output == 2
