"""The contract of one run, and the parts of it that not every persistence has."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pydantic_graph import End

from ..commit import Commit, StatusChange
from ..errors import GraphNodeRunningError, OwnershipLostError, RunOwnedError, UnfaithfulSnapshotError
from ..graph import Graph
from ..resume import run_or_resume
from ..snapshots import EndSnapshot, NodeSnapshot
from ..status import FAIL, START, SUCCEED, Transition
from .graphs import Again, Answer, Ask, Half, Other, State, Wider, graph, half, unstorable
from .resuming import ResumingClauses
from .runs import RunUnderTest, in_20_tasks, observed, opened, with_status
from .statuses import StatusClauses
from .steps import StepClauses

__all__ = ('KeepsCopies', 'KeepsHistory', 'KeptInStore', 'PersistenceContract')


class PersistenceContract(StatusClauses, StepClauses, ResumingClauses):
    """What holds for every persistence. Abstract: without `make_run` no subclass can be collected."""


class KeepsHistory(PersistenceContract):
    """What holds where every snapshot is kept."""

    async def test_load_all(self, run: RunUnderTest):
        """Every snapshot is loaded, in the order of writing, with the types and the states it was given."""
        persistence = opened(run)
        await graph.run(Ask(1), state=State(), persistence=persistence)
        asked, answered, ended = await persistence.load_all()
        assert isinstance(asked, NodeSnapshot)
        assert isinstance(answered, NodeSnapshot)
        assert isinstance(ended, EndSnapshot)
        assert (asked.node, answered.node, ended.result) == (Ask(1), Answer(2), End(2))
        assert [type(s.state) for s in (asked, answered, ended)] == [State] * 3
        history = await persistence.load_history()
        assert [(r.seq, r.node_id, r.status, r.attempt) for r in history] == [
            (1, 'Ask', 'success', 1),
            (2, 'Answer', 'success', 1),
            (3, 'End', 'success', 0),
        ]

    async def test_load_next_in_order(self, run: RunUnderTest):
        """What was created first is handed out first."""
        persistence = opened(run)
        for value in (1, 2, 3):
            await persistence.snapshot_node(State(), Ask(value))
        handed_out = [cast('Any', await persistence.load_next()).node.value for _ in range(3)]
        assert handed_out == [1, 2, 3]
        assert await persistence.load_next() is None
        await persistence.release()
        assert run.statuses() == ['created'] * 3

    @pytest.mark.parametrize('way', [[START, SUCCEED], [START, FAIL]], ids=['success', 'error'])
    async def test_load_next_after_settled(self, run: RunUnderTest, way: list[Transition]):
        """What was created before the newest node that ran is over: it is not handed out."""
        persistence = opened(run)
        for value in (1, 2, 3):
            await persistence.snapshot_node(State(), Ask(value))
        await run.change(run.raw()[1].id, *way)
        snapshot = cast('Any', await persistence.load_next())
        assert snapshot.node.value == 3
        assert await persistence.load_next() is None
        await persistence.release()

    async def test_skipped_node(self, run: RunUnderTest):
        """A node that `run.next(other)` went past is not resumed later."""
        persistence = opened(run)
        async with graph.iter(Ask(1), state=State(), persistence=persistence) as graph_run:
            assert await graph_run.next() == Answer(2)
            assert await graph_run.next(Ask(10)) == Answer(11)
        result = await run_or_resume(graph, persistence=opened(run))
        assert result.output == 11
        skipped = [r.node_id for r in await persistence.load_history() if r.status == 'created']
        assert skipped == ['Answer']

    async def test_recurring_ids_are_rows(self, run: RunUnderTest):
        """A snapshot id that recurs is a step each time."""
        persistence = opened(run)
        await graph.run(Again(3), state=State(), persistence=persistence)
        *steps, _ = await persistence.load_history()
        assert len({step.id for step in steps}) == 1
        assert [(step.seq, step.status, step.attempt) for step in steps] == [
            (1, 'success', 1),
            (2, 'success', 1),
            (3, 'success', 1),
        ]

    async def test_success_never_without_next(self, run: RunUnderTest):
        """At no moment does storage show a run whose last node succeeded and whose next is missing."""
        persistence = opened(run)
        seen: list[list[str]] = []
        with observed(persistence, lambda _: seen.append(run.statuses())):
            await graph.run(Ask(), state=State(), persistence=persistence)
        assert seen == [
            ['created'],
            ['running'],
            ['success', 'created'],
            ['success', 'running'],
            ['success', 'success', 'success'],
        ]

    async def test_duplicates_are_refused_once(self, run: RunUnderTest):
        """`snapshot_node_if_new` looks at every snapshot, not at the newest only."""
        persistence = opened(run)
        await persistence.snapshot_node(State(), Ask())
        first = run.raw()[0]
        await persistence.snapshot_node(State(), Answer())
        await persistence.snapshot_node_if_new(first.id, State(), Ask())
        assert len(run.raw()) == 2


class KeepsCopies(PersistenceContract):
    """What holds where a snapshot does not refer to the run's own objects."""

    async def test_snapshot_is_independent(self, run: RunUnderTest):
        """What happens to state and node after a snapshot does not change it."""
        persistence, state, node = opened(run), State(['before']), Ask(1)
        await persistence.snapshot_node(state, node)
        state.items.append('after')
        node.value = 99
        last = await persistence.load_last()
        assert isinstance(last, NodeSnapshot)
        assert (last.state, last.node) == (State(['before']), Ask(1))

    async def test_loaded_is_independent(self, run: RunUnderTest):
        """What happens to a snapshot that was handed out does not change what is stored."""
        persistence = opened(run)
        await persistence.snapshot_node(State(['before']), Ask(1))
        snapshot = cast('Any', await persistence.load_next())
        snapshot.state.items.append('after')
        snapshot.node.value = 99
        await persistence.release()
        again = cast('Any', await persistence.load_next())
        assert (again.state, again.node) == (State(['before']), Ask(1))
        await persistence.release()

    async def test_interrupted_node_runs_on_the_state_before(self, run: RunUnderTest):
        """A node that failed half-way runs again with the state from before it."""
        persistence = opened(run)
        with pytest.raises(ValueError, match='bad luck'):
            await half.run(Half(), state=State(), deps=[ValueError('bad luck')], persistence=persistence)
        await persistence.retry()
        result = await run_or_resume(half, deps=[], persistence=persistence)
        assert result.state.items == ['half']


class KeptInStore(KeepsHistory, KeepsCopies):
    """What holds where snapshots are encoded and any number of instances share a run."""

    async def test_types_not_set(self, run: RunUnderTest):
        """Without a graph a snapshot can be neither written nor read, and the error says what to do."""
        persistence = run.open()
        assert persistence.should_set_types()
        with pytest.raises(RuntimeError, match=r'set_graph_types\(graph\)') as refused:
            await persistence.snapshot_node(State(), Ask())
        assert persistence.run_id in str(refused.value)
        await opened(run).snapshot_node(State(), Ask())
        for ask in (
            persistence.load_next,
            persistence.load_all,
            persistence.load_last,
            persistence.last_state,
        ):
            with pytest.raises(RuntimeError, match=r'set_graph_types\(graph\)'):
                await ask()
        assert [record.node_id for record in await persistence.load_history()] == ['Ask']
        assert run.statuses() == ['created']

    async def test_big_snapshots(self, run: RunUnderTest):
        """State and node are kept whole, however big they are."""
        big, longer = 'ä"😀 ' * 250_000, Graph(nodes=(Ask, Answer, Again, Other))
        await graph.initialize(Ask(1), run.open(), state=State([big]))
        result = await run_or_resume(graph, persistence=run.open())
        persistence = run.open()
        persistence.set_graph_types(longer)
        await persistence.snapshot_node(State([big]), Other(big))
        again = run.open()
        again.set_graph_types(longer)
        *_, last = loaded = await again.load_all()
        assert isinstance(last, NodeSnapshot)
        assert isinstance(last.node, Other)
        texts = [result.state.items[0], last.node.text, *(snapshot.state.items[0] for snapshot in loaded)]
        # not the texts themselves: to show where they differ would take very long
        assert [text == big for text in texts] == [True] * 6, 'each text should be as it was given'

    async def test_refused_next(self, run: RunUnderTest):
        """What cannot be stored fails the step that made it, and after a retry that step runs again."""
        persistence, snapshot_id = await with_status(run, 'created')
        async with persistence.record_run(snapshot_id):
            pass
        with pytest.raises(UnfaithfulSnapshotError) as refused:
            await persistence.snapshot_node(State(), unstorable())
        assert run.statuses() == ['error']
        (record,) = await persistence.load_history()
        assert record.error is not None
        assert record.error.type.endswith('UnfaithfulSnapshotError')
        assert record.error.message == str(refused.value)
        await persistence.retry()
        result = await run_or_resume(graph, persistence=opened(run))
        assert result.output == 1
        assert run.statuses() == ['success'] * 3

    async def test_refused_end(self, run: RunUnderTest):
        """A result that cannot be stored fails the step that made it."""
        persistence, snapshot_id = await with_status(run, 'created')
        async with persistence.record_run(snapshot_id):
            pass
        with pytest.raises(UnfaithfulSnapshotError):
            await persistence.snapshot_end(State(), End(cast('Any', object())))
        assert run.statuses() == ['error']

    async def test_refused_first(self, run: RunUnderTest):
        """What cannot be stored and belongs to no step is refused, and nothing is stored."""
        persistence = opened(run)
        with pytest.raises(UnfaithfulSnapshotError):
            await persistence.snapshot_node(State(), unstorable())
        with pytest.raises(UnfaithfulSnapshotError):
            await persistence.snapshot_node_if_new('new', State(), unstorable())
        with pytest.raises(UnfaithfulSnapshotError):
            await persistence.snapshot_start(State(), unstorable())
        assert run.raw() == []

    async def test_instances_share_a_run(self, run: RunUnderTest):
        """What one instance stores another one sees, and goes on with."""
        first, second = opened(run), opened(run)
        await first.snapshot_node(State(), Ask(1))
        assert len(await second.load_all()) == 1
        result = await run_or_resume(graph, persistence=second)
        assert result.output == 2
        assert isinstance(await first.load_last(), EndSnapshot)

    async def test_one_claim_among_20_instances(self, run: RunUnderTest):
        """Of 20 instances that resume one run one is handed the snapshot, the others nothing."""
        await with_status(run, 'created')
        instances = [opened(run) for _ in range(20)]
        waiting = iter(instances)

        async def claim() -> object:
            try:
                return await next(waiting).load_next()
            except RunOwnedError as exc:
                return exc

        results = await in_20_tasks(claim)
        assert sum(isinstance(result, NodeSnapshot) for result in results) == 1
        assert all(result is None or isinstance(result, (NodeSnapshot, RunOwnedError)) for result in results)

    async def test_one_start_among_20_instances(self, run: RunUnderTest):
        """Of 20 instances that start one run one stores its first node, and one runs it."""
        instances = [opened(run) for _ in range(20)]
        waiting = iter(instances)

        async def start() -> object:
            try:
                return await run_or_resume(graph, Ask(1), state=State(), persistence=next(waiting))
            except (RunOwnedError, GraphNodeRunningError):
                return None  # somebody else was faster: at the start, or between two steps

        results = await in_20_tasks(start)
        assert run.statuses() == ['success'] * 3
        assert any(results)
        assert [record.attempt for record in await opened(run).load_history()] == [1, 1, 0]

    async def test_recover_by_the_owner_itself(self, run: RunUnderTest):
        """An instance does not take from itself what it is running: it lives."""
        persistence, snapshot_id = await with_status(run, 'created')
        async with persistence.record_run(snapshot_id):
            with pytest.raises(RunOwnedError, match=r'release\(\)'):
                await persistence.recover()
            assert run.statuses() == ['running']

    async def test_another_state_type(self, run: RunUnderTest):
        """Naming the same nodes with another state type is another graph: states are read as of that type."""
        await opened(run).snapshot_node(State(['x']), Ask(1))
        persistence = run.open()
        for type_ in (State, Wider, State):
            persistence.set_graph_types(Graph(nodes=(Ask, Answer, Again), state_type=type_))
            state = await persistence.last_state()
            assert (type(state), state.items) == (type_, ['x'])

    async def test_a_second_end_of_a_step_is_refused(self, run: RunUnderTest):
        """A step that this instance does not have in hand cannot be ended by it."""
        persistence, snapshot_id = await with_status(run, 'running')
        change = StatusChange(snapshot_id, SUCCEED, run.now())
        with pytest.raises(OwnershipLostError):
            await cast('Any', persistence)._commit(Commit(changes=[change]))
        assert run.statuses() == ['running']
