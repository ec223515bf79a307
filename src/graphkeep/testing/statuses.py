"""Clauses of the status machine, and of what a run leaves behind."""

from __future__ import annotations

from datetime import timedelta
from json import JSONDecodeError
from time import perf_counter

import anyio
import pytest
from pydantic_graph import End

from ..commit import Commit, StatusChange, StepError
from ..errors import GraphNodeRunningError, GraphNodeStatusError, SnapshotStatusError, UnknownSnapshotError
from ..snapshots import NodeSnapshot
from ..status import CLAIM, FAIL, RECOVER, RETRY, START, SUCCEED, TRANSITIONS, SnapshotStatus, Transition
from ..step import current_step
from .graphs import Answer, State
from .runs import PAIRS, STATUSES, RunClauses, RunUnderTest, fail, opened, with_status

__all__ = ('StatusClauses',)


class StatusClauses(RunClauses):
    """What holds for the statuses of every persistence."""

    # ------------------------------------------------------------------------------------ the status machine

    @pytest.mark.parametrize('transition, status', PAIRS, ids=lambda v: v if isinstance(v, str) else v.name)
    async def test_table(self, run: RunUnderTest, transition: Transition, status: SnapshotStatus):
        """What the table permits is done; anything else is refused and changes nothing."""
        _, snapshot_id = await with_status(run, status)
        if status in transition.sources:
            await run.change(snapshot_id, transition)
            assert run.statuses() == [transition.target]
        else:
            with pytest.raises(SnapshotStatusError) as refused:
                await run.change(snapshot_id, transition)
            assert (refused.value.snapshot_id, refused.value.found) == (snapshot_id, status)
            assert refused.value.expected == transition.sources
            assert run.statuses() == [status]

    @pytest.mark.parametrize('transition', TRANSITIONS, ids=lambda t: t.name)
    async def test_end_never_changes(self, run: RunUnderTest, transition: Transition):
        """The end of a run is final: no change is permitted."""
        await opened(run).snapshot_end(State(), End(1))
        (end,) = run.raw()
        with pytest.raises(SnapshotStatusError):
            await run.change(end.id, transition)

    async def test_commit_is_whole(self, run: RunUnderTest):
        """Of a commit whose last change is refused, nothing is done."""
        _, snapshot_id = await with_status(run, 'created')
        changes = [StatusChange(i, START, run.now()) for i in (snapshot_id, 'unknown')]
        with pytest.raises(UnknownSnapshotError):
            await run.commit(Commit(changes=changes))
        assert run.statuses() == ['created']

    @pytest.mark.parametrize('status', STATUSES)
    async def test_record_run(self, run: RunUnderTest, status: SnapshotStatus):
        """A node starts if the table permits it; else the host's error is raised and nothing changes."""
        persistence, snapshot_id = await with_status(run, status)
        if status in START.sources:
            async with persistence.record_run(snapshot_id):
                assert run.statuses() == ['running']
            return
        with pytest.raises(GraphNodeStatusError) as refused:
            async with persistence.record_run(snapshot_id):
                pytest.fail('it was started')
        assert isinstance(refused.value, GraphNodeRunningError)
        assert refused.value.actual_status == status
        assert run.statuses() == [status]

    @pytest.mark.parametrize('status', STATUSES)
    async def test_retry(self, run: RunUnderTest, status: SnapshotStatus):
        """`retry` sets a snapshot back to `created` if the table permits it, else it is refused."""
        persistence, _ = await with_status(run, status)
        if status in RETRY.sources:
            await persistence.retry()
            assert run.statuses() == [RETRY.target]
        else:
            with pytest.raises(SnapshotStatusError):
                await persistence.retry()
            assert run.statuses() == [status]

    @pytest.mark.parametrize('status', STATUSES)
    async def test_recover(self, run: RunUnderTest, status: SnapshotStatus):
        """`recover` sets back what is pending or running, says how many, and does nothing the second time."""
        persistence, _ = await with_status(run, status)
        recoverable = status in RECOVER.sources
        assert await persistence.recover() == recoverable
        assert run.statuses() == [RECOVER.target if recoverable else status]
        assert await persistence.recover() == 0

    @pytest.mark.parametrize('status', STATUSES)
    async def test_load_next_by_status(self, run: RunUnderTest, status: SnapshotStatus):
        """`load_next` hands out what the table permits to claim; without an owner on record, nothing else."""
        persistence, snapshot_id = await with_status(run, status)
        snapshot = await persistence.load_next()
        if status in CLAIM.sources:
            assert snapshot is not None
            assert (snapshot.id, snapshot.status, run.statuses()) == (snapshot_id, 'pending', ['pending'])
            await persistence.release()
        else:
            assert snapshot is None
            assert run.statuses() == [status]

    async def test_unknown_snapshot(self, run: RunUnderTest):
        """To run a snapshot that the run does not have raises a `LookupError` that names both."""
        persistence, _ = await with_status(run, 'created')
        with pytest.raises(LookupError) as refused:
            async with persistence.record_run('Ask:missing'):
                pytest.fail('it was started')
        assert isinstance(refused.value, UnknownSnapshotError)
        assert (refused.value.run_id, refused.value.snapshot_id) == (persistence.run_id, 'Ask:missing')
        assert run.statuses() == ['created']

    # ------------------------------------------------------------------------------- what a run leaves behind

    async def test_times(self, run: RunUnderTest):
        """A step's start is a moment in UTC and its duration is in seconds; before, there is neither."""
        persistence, snapshot_id = await with_status(run, 'created')
        (record,) = await persistence.load_history()
        assert (record.start_ts, record.duration, record.attempt, record.attempts) == (None, None, 0, ())
        before, begun = run.now(), perf_counter()
        async with persistence.record_run(snapshot_id):
            await anyio.sleep(0.02)
        after, took = run.now(), perf_counter() - begun
        (record,) = await persistence.load_history()
        assert record.start_ts is not None
        assert record.start_ts.utcoffset() == timedelta(0)
        assert before <= record.start_ts <= after
        assert record.duration is not None
        assert 0.02 <= record.duration <= took
        (snapshot,) = await persistence.load_all()
        assert isinstance(snapshot, NodeSnapshot)
        assert (snapshot.start_ts, snapshot.duration) == (record.start_ts, record.duration)

    async def test_times_are_exact(self, run: RunUnderTest):
        """When each attempt at a node began is kept to the microsecond, and how long it took exactly."""
        persistence, snapshot_id = await with_status(run, 'created')
        first = run.now().replace(microsecond=123_457)
        second = first.replace(microsecond=999_999)
        for change in (
            StatusChange(snapshot_id, START, first),
            StatusChange(snapshot_id, FAIL, duration=0.1234567, error=StepError.of(ValueError('bad luck'))),
            StatusChange(snapshot_id, RETRY),
            StatusChange(snapshot_id, START, second),
            StatusChange(snapshot_id, SUCCEED, duration=2e-6),
        ):
            await run.commit(Commit(changes=[change]))
        (record,) = await persistence.load_history()
        assert (record.start_ts, record.duration) == (second, 2e-6)
        assert [(a.outcome, a.start_ts, a.duration) for a in record.attempts] == [
            ('error', first, 0.1234567),
            ('success', second, 2e-6),
        ]

    async def test_error_is_kept(self, run: RunUnderTest):
        """What a node raised is passed on, and kept: type, message and traceback."""
        persistence, snapshot_id = await with_status(run, 'created')
        with pytest.raises(JSONDecodeError) as raised:
            async with persistence.record_run(snapshot_id):
                raise JSONDecodeError('no luck', 'doc', 0)
        assert run.statuses() == ['error']
        (record,) = await persistence.load_history()
        assert record.error is not None
        assert record.error.type == 'json.decoder.JSONDecodeError'
        assert record.error.message == str(raised.value)
        assert 'test_error_is_kept' in record.error.traceback
        assert record.error.traceback.endswith(f'json.decoder.JSONDecodeError: {raised.value}\n')

    async def test_builtin_error_is_named_plainly(self, run: RunUnderTest):
        """The type of a builtin exception is kept without a module."""
        persistence, snapshot_id = await with_status(run, 'created')
        await fail(persistence, snapshot_id)
        (record,) = await persistence.load_history()
        assert record.error is not None
        assert (record.error.type, record.error.message) == ('ValueError', 'bad luck')

    async def test_attempts(self, run: RunUnderTest):
        """Attempts are counted, and what ended the earlier ones is kept."""
        persistence, snapshot_id = await with_status(run, 'created')
        for attempt in (1, 2):
            await fail(persistence, snapshot_id, KeyError(attempt))
            await persistence.retry()
        async with persistence.record_run(snapshot_id):
            assert current_step().attempt == 3
        await persistence.snapshot_node(State(), Answer())
        record = next(
            r for r in await persistence.load_history() if r.id == snapshot_id or r.node_id == 'Answer'
        )
        if record.id == snapshot_id:  # where a persistence keeps the last snapshot only, this one is gone
            assert (record.status, record.attempt, record.error) == ('success', 3, None)
            ended = [(a.outcome, a.error and a.error.message) for a in record.attempts]
            assert ended == [('error', '1'), ('error', '2'), ('success', None)]

    async def test_recovered_attempt_is_kept(self, run: RunUnderTest):
        """An attempt that was recovered says so, and nobody claims to know how long it took."""
        persistence, _ = await with_status(run, 'running')
        await persistence.recover()
        (record,) = await persistence.load_history()
        (attempt,) = record.attempts
        assert (attempt.outcome, attempt.duration, record.duration) == ('recovered', None, None)
        assert 'gone' in (attempt.reason or '')

    async def test_interrupted_attempt_is_kept(self, run: RunUnderTest):
        """A node that is interrupted is given back, and its attempt says by what."""
        persistence, snapshot_id = await with_status(run, 'created')
        with pytest.raises(KeyboardInterrupt):
            async with persistence.record_run(snapshot_id):
                raise KeyboardInterrupt
        assert run.statuses() == ['created']
        (record,) = await persistence.load_history()
        (attempt,) = record.attempts
        assert (attempt.outcome, attempt.reason) == ('released', 'interrupted by KeyboardInterrupt')
