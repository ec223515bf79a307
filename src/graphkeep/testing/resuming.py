"""Clauses of going on with a run."""

from __future__ import annotations

import anyio
import pytest
from pydantic_graph import End

from ..errors import (
    GraphNodeRunningError,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    UnknownRunError,
)
from ..resume import iter_or_resume, run_or_resume
from ..snapshots import EndSnapshot, NodeSnapshot
from ..status import SnapshotStatus
from .graphs import Answer, Ask, State, Unspeakable, graph
from .runs import RunClauses, RunUnderTest, fail, in_20_tasks, opened, with_status

__all__ = ('ResumingClauses',)


class ResumingClauses(RunClauses):
    """What holds for going on with a run in every persistence."""

    # --------------------------------------------------------------------------------- going on with a run

    async def test_nothing_is_stored(self, run: RunUnderTest):
        """Of an unknown run there is nothing to load, and every error says which run it is."""
        persistence = opened(run)
        assert await persistence.load_next() is None
        assert await persistence.load_all() == []
        assert await persistence.load_history() == []
        assert await persistence.recover() == 0
        for ask in (persistence.last_state, persistence.load_last, persistence.retry):
            with pytest.raises(UnknownRunError) as unknown:
                await ask()
            assert unknown.value.run_id == persistence.run_id

    async def test_one_claim_among_20(self, run: RunUnderTest):
        """Of 20 callers of `load_next` one is handed the snapshot, the others nothing."""
        persistence, snapshot_id = await with_status(run, 'created')
        found = [snapshot for snapshot in await in_20_tasks(persistence.load_next) if snapshot is not None]
        assert [snapshot.id for snapshot in found] == [snapshot_id]
        await persistence.release()

    async def test_one_start_among_20(self, run: RunUnderTest):
        """Of 20 starters of one snapshot one runs it, and the others get `GraphNodeRunningError`."""
        persistence, snapshot_id = await with_status(run, 'created')
        done = anyio.Event()
        refused = 0

        async def start() -> bool:
            nonlocal refused
            try:
                async with persistence.record_run(snapshot_id):
                    await done.wait()
                    return True
            except GraphNodeRunningError:
                refused += 1
                if refused == 19:
                    done.set()
                return False

        with anyio.fail_after(10):
            assert sum(await in_20_tasks(start)) == 1

    async def test_release(self, run: RunUnderTest):
        """What was claimed and never run is given back, once, and may be claimed again."""
        persistence, _ = await with_status(run, 'created')
        assert await persistence.load_next() is not None
        await persistence.release()
        assert run.statuses() == ['created']
        await persistence.release()
        assert await opened(run).load_next() is not None

    async def test_release_leaves_what_was_run(self, run: RunUnderTest):
        """What was claimed and then run is not given back."""
        persistence, snapshot_id = await with_status(run, 'created')
        await persistence.load_next()
        async with persistence.record_run(snapshot_id):
            await persistence.release()
            assert run.statuses() == ['running']

    async def test_skipped_claim(self, run: RunUnderTest):
        """A node that was claimed and then gone past is not resumed later, and is not left pending."""
        await opened(run).snapshot_node(State(), Ask(1))
        async with iter_or_resume(graph, persistence=opened(run)) as graph_run:
            assert await graph_run.next(Ask(10)) == Answer(11)
        assert run.statuses() in (['created', 'success', 'created'], ['created'])
        result = await run_or_resume(graph, persistence=opened(run))
        assert result.output == 11

    async def test_retry_of_a_finished_run(self, run: RunUnderTest):
        """A run that has ended is not retried."""
        persistence = opened(run)
        await graph.run(Ask(), state=State(), persistence=persistence)
        with pytest.raises(RunFinishedError):
            await persistence.retry()

    async def test_retry_goes_on(self, run: RunUnderTest):
        """A run that failed says at what; after a retry it goes on there."""
        persistence = opened(run)
        with pytest.raises(ValueError, match='bad luck'):
            await graph.run(Ask(1), state=State(), deps=[ValueError('bad luck')], persistence=persistence)
        with pytest.raises(RunFailedError, match=r'Answer.*ValueError: bad luck') as failed:
            await run_or_resume(graph, persistence=persistence)
        assert failed.value.error is not None
        await persistence.retry()
        result = await run_or_resume(graph, persistence=persistence)
        assert (result.output, result.state.items) == (2, ['ask 1', 'answer 2'])

    async def test_last(self, run: RunUnderTest):
        """`last_state` and `load_last` tell where a run is, and how it ended."""
        persistence = opened(run)
        await persistence.snapshot_node(State(['here']), Ask(7))
        assert await persistence.last_state() == State(['here'])
        node = await persistence.load_last()
        assert isinstance(node, NodeSnapshot)
        assert (node.node, node.state) == (Ask(7), State(['here']))
        await persistence.snapshot_end(State(['done']), End(3))
        assert await persistence.last_state() == State(['done'])
        end = await persistence.load_last()
        assert isinstance(end, EndSnapshot)
        assert end.result == End(3)

    @pytest.mark.parametrize('host_runs', [True, False], ids=['run', 'record_run'])
    async def test_exception_that_cannot_be_told(self, run: RunUnderTest, host_runs: bool):
        """An exception whose `__str__` raises is recorded as any other, and itself reaches the caller."""
        persistence, snapshot_id = await with_status(run, 'created')
        exc = Unspeakable()

        async def raise_it() -> None:
            if host_runs:
                await run_or_resume(graph, persistence=persistence, deps=[exc])
            async with persistence.record_run(snapshot_id):
                raise exc

        with pytest.raises(Unspeakable) as raised:
            await raise_it()
        assert raised.value is exc
        record = (await persistence.load_history())[-1]
        assert record.status == run.statuses()[-1] == 'error'
        assert record.error is not None
        assert record.error.type.endswith('Unspeakable')
        assert 'ZeroDivisionError' in record.error.message

    async def test_why_unknown(self, run: RunUnderTest):
        """Nothing is stored: the run is unknown."""
        assert type(await opened(run).why_unresumable()) is UnknownRunError

    async def test_why_finished(self, run: RunUnderTest):
        """The run has ended: it says when."""
        persistence = opened(run)
        await persistence.snapshot_end(State(), End(1))
        why = await persistence.why_unresumable()
        assert isinstance(why, RunFinishedError)
        assert why.ended is not None

    async def test_why_failed(self, run: RunUnderTest):
        """The run failed: it says where and with what."""
        persistence, snapshot_id = await with_status(run, 'created')
        await fail(persistence, snapshot_id)
        why = await persistence.why_unresumable()
        assert isinstance(why, RunFailedError)
        assert why.snapshot_id == snapshot_id
        assert why.error is not None
        assert why.error.message == 'bad luck'

    async def test_why_without_next(self, run: RunUnderTest):
        """A run whose next node was lost, as others leave it behind, is told from one that failed."""
        persistence, snapshot_id = await with_status(run, 'success')
        why = await persistence.why_unresumable()
        assert isinstance(why, RunFailedError)
        assert (why.snapshot_id, why.error) == (snapshot_id, None)
        assert 'before its next node was recorded' in str(why)

    @pytest.mark.parametrize('status', ['pending', 'running'])
    async def test_why_nobody_is_named(self, run: RunUnderTest, status: SnapshotStatus):
        """A snapshot in unknown hands is told from one with an owner: `recover` is the way out."""
        persistence, _ = await with_status(run, status)
        why = await persistence.why_unresumable()
        assert isinstance(why, RunOwnedError)
        assert why.owner is None
        assert 'recover()' in str(why)
