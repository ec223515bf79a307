"""Clauses of the step commit, of what is stored, and of the current step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import pytest

from .._host import ensure_snapshot_id
from ..commit import Commit
from ..errors import NoCurrentStepError, SnapshotStatusError
from ..graph import Graph
from ..snapshots import NodeSnapshot
from ..status import START, SUCCEED
from ..step import Step, current_step
from .graphs import Again, Answer, Ask, Other, State, graph
from .runs import (
    Persistence,
    RawSnapshot,
    RunClauses,
    RunUnderTest,
    in_20_tasks,
    observed,
    opened,
    with_status,
)

__all__ = ('StepClauses',)


_OTHER_USES: Final[dict[str, Callable[[Persistence], Awaitable[Any]]]] = {
    'snapshot_node_if_new': lambda p: p.snapshot_node_if_new('new', State(), Answer()),
    'snapshot_start': lambda p: p.snapshot_start(State(), Answer()),
    'record_run': lambda p: p.record_run('unknown').__aenter__(),
    'load_next': lambda p: p.load_next(),
    'load_all': lambda p: p.load_all(),
    'load_history': lambda p: p.load_history(),
    'last_state': lambda p: p.last_state(),
    'load_last': lambda p: p.load_last(),
    'recover': lambda p: p.recover(),
    'retry': lambda p: p.retry(),
    'release': lambda p: p.release(),
    'why_unresumable': lambda p: p.why_unresumable(),
}
"""Whatever can be asked of an instance, but for what makes the second half of a step."""


class StepClauses(RunClauses):
    """What holds for the steps of every persistence."""

    # ---------------------------------------------------------------------------------------- the step commit

    async def test_step_commit(self, run: RunUnderTest):
        """That a node succeeded is stored together with what comes next, not before."""
        persistence, snapshot_id = await with_status(run, 'created')
        async with persistence.record_run(snapshot_id):
            pass
        assert run.statuses() == ['running']
        await persistence.snapshot_node(State(), Answer())
        assert run.statuses()[-2:] in (['success', 'created'], ['created'])

    async def test_step_costs_two_commits(self, run: RunUnderTest):
        """A step is two commits, its start and its end with what comes next; a run's start is one."""
        persistence = opened(run)
        last: list[RawSnapshot] = []
        commits: list[list[str]] = []

        def observe(commit: Commit) -> None:
            commits.append([change.transition.name for change in commit.changes])
            last.append(run.raw()[-1])

        with observed(persistence, observe):
            await graph.run(Ask(), state=State(), persistence=persistence)
        assert commits == [[], *[[START.name], [SUCCEED.name]] * 2]
        assert [(raw.kind, raw.status) for raw in last if raw.status == 'success'] == [('end', 'success')]

    @pytest.mark.parametrize('use', _OTHER_USES)
    async def test_other_use_writes_what_is_held(self, run: RunUnderTest, use: str):
        """Whatever else is asked of the instance after a node succeeded, that it did is stored first."""
        persistence, snapshot_id = await with_status(run, 'created')
        async with persistence.record_run(snapshot_id):
            pass
        first: list[str] = []

        def observe(commit: Commit) -> None:
            first.append(''.join(change.transition.name for change in commit.changes))

        with observed(persistence, observe), suppress(LookupError, SnapshotStatusError):
            await _OTHER_USES[use](persistence)
        assert first[0] == SUCCEED.name
        assert run.raw()[0] != RawSnapshot(snapshot_id, 'node', 'running')

    # ---------------------------------------------------------------------------------------------- snapshots

    async def test_snapshot_node_if_new(self, run: RunUnderTest):
        """A snapshot whose id is there already is not stored again."""
        persistence = opened(run)
        await persistence.snapshot_node(State(), Ask())
        (stored,) = run.raw()
        await persistence.snapshot_node_if_new(stored.id, State(), Ask(2))
        assert run.raw() == [stored]
        await persistence.snapshot_node_if_new('another', State(), Answer())
        assert run.raw()[-1].id.startswith('Answer:')

    async def test_snapshot_node_if_new_is_atomic(self, run: RunUnderTest):
        """Of 20 callers who store one snapshot at once, one does."""
        persistence = opened(run)
        node, later = Ask(1), Ask(2)
        await persistence.snapshot_node(State(), node)
        (stored,) = run.raw()
        await in_20_tasks(lambda: opened(run).snapshot_node_if_new(stored.id, State(), node))
        assert run.raw() == [stored]
        await in_20_tasks(lambda: opened(run).snapshot_node_if_new(ensure_snapshot_id(later), State(), later))
        assert len([raw for raw in run.raw() if raw != stored]) == 1

    async def test_snapshot_start(self, run: RunUnderTest):
        """Of 20 callers who start a run at once one stores its first node, and later ones none."""
        persistence = opened(run)
        await in_20_tasks(lambda: persistence.snapshot_start(State(), Ask()))
        assert run.statuses() == ['created']
        (stored,) = run.raw()
        await persistence.snapshot_start(State(), Ask())
        assert run.raw() == [stored]

    async def test_recurring_id(self, run: RunUnderTest):
        """A node that returns itself keeps its id; each time the newest snapshot is meant."""
        persistence = opened(run)
        result = await graph.run(Again(3), state=State(), persistence=persistence)
        assert result.output == 3
        assert set(run.statuses()) == {'success'}
        assert run.raw()[-1].kind == 'end'

    async def test_two_graphs(self, run: RunUnderTest):
        """Naming another graph makes its nodes known, and leaves what was stored as it is."""
        persistence = opened(run)
        await persistence.snapshot_node(State(), Ask(1))
        other = Graph(nodes=(Ask, Answer, Again, Other))
        persistence.set_graph_types(other)
        snapshot = await persistence.load_next()
        assert snapshot is not None
        assert snapshot.node == Ask(1)
        await persistence.release()
        await persistence.snapshot_node(State(), Other('x'))
        last = await persistence.load_last()
        assert isinstance(last, NodeSnapshot)
        assert last.node == Other('x')

    # --------------------------------------------------------------------------------------- the current step

    async def test_current_step(self, run: RunUnderTest, other_run: RunUnderTest):
        """A node can ask which step it is; within another run's node it is that."""
        persistence, snapshot_id = await with_status(run, 'created')
        other, other_id = await with_status(other_run, 'created')
        async with persistence.record_run(snapshot_id):
            outer = current_step()
            assert outer == Step(persistence.run_id, snapshot_id, 1, 1)
            async with other.record_run(other_id):
                assert current_step() == Step(other.run_id, other_id, 1, 1)
            assert current_step() == outer
        with pytest.raises(NoCurrentStepError):
            current_step()

    async def test_idempotency_key(self, run: RunUnderTest):
        """The key of a step stays the same over its attempts, and over a recovery by another instance."""
        persistence, snapshot_id = await with_status(run, 'created')
        keys: list[str] = []
        with suppress(ValueError):
            async with persistence.record_run(snapshot_id):
                keys.append(current_step().idempotency_key)
                raise ValueError('again')
        await persistence.retry()
        persistence = opened(run)
        async with persistence.record_run(snapshot_id):
            keys.append(current_step().idempotency_key)
        assert keys[0] == keys[1]

    async def test_idempotency_key_of_each_step(self, run: RunUnderTest):
        """Each step has a key of its own, also where a snapshot id recurs."""
        result = await graph.run(Again(4), state=State(), persistence=opened(run))
        assert len(set(result.state.items)) == 4
