"""What every persistence promises, as one abstract test class and the parts that not all of them have.

`PersistenceContract` holds for each; `KeepsHistory`, `KeepsCopies` and `KeptInStore` are mixed in where they
apply. A storage takes part by saying how to make a run, how to open it again, and how to read it raw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from json import JSONDecodeError
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    EndSnapshot,
    Graph,
    GraphNodeRunningError,
    GraphNodeStatusError,
    NodeSnapshot,
    OwnershipLostError,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    SnapshotStatus,
    SnapshotStatusError,
    StatePersistence,
    Step,
    UnfaithfulSnapshotError,
    UnknownRunError,
    UnknownSnapshotError,
    current_step,
    iter_or_resume,
    run_or_resume,
)
from graphkeep._host import ensure_snapshot_id
from graphkeep.commit import Commit, Receipt, StatusChange
from graphkeep.errors import NoCurrentStepError
from graphkeep.status import CLAIM, FAIL, RECOVER, RETRY, START, SUCCEED, TRANSITIONS, Transition

STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)
PAIRS = [(transition, status) for transition in TRANSITIONS for status in STATUSES]
"""Every change that can be asked for, permitted or not."""


class Raw(NamedTuple):
    """One stored snapshot as the storage shows it, read without the persistence."""

    id: str
    kind: str
    status: str


Persistence = StatePersistence[Any, Any]


@dataclass
class RunUnderTest:
    """One run in one storage."""

    open: Callable[[], Persistence]
    """Opens the run: again from the storage where that is possible, else the one instance there is."""
    raw: Callable[[], list[Raw]]
    """Reads what is stored, without the persistence."""
    commit: Callable[[Commit], Awaitable[Receipt]]
    """Commits below the persistence, where the table of transitions is applied."""

    async def change(self, snapshot_id: str, *transitions: Transition) -> None:
        """Commit these changes one after another, as somebody who leaves no name."""
        for transition in transitions:
            await self.commit(Commit(changes=[StatusChange(snapshot_id, transition, datetime.now(UTC))]))

    def statuses(self) -> list[str]:
        """Return the stored statuses, oldest first."""
        return [raw.status for raw in self.raw()]


@dataclass
class State:
    """The state of the graph under test."""

    items: list[str] = field(default_factory=list[str])


@dataclass
class Wider(State):
    """What the state may have become in a later version."""

    note: str = ''


@dataclass
class Ask(BaseNode[State, Any, int]):
    """The first of two steps."""

    value: int = 0

    async def run(self, ctx: GraphRunContext[State, Any]) -> Answer:
        ctx.state.items.append(f'ask {self.value}')
        return Answer(self.value + 1)


@dataclass
class Answer(BaseNode[State, Any, int]):
    """The second of two steps; fails once for each failure that `deps` holds."""

    value: int = 0

    async def run(self, ctx: GraphRunContext[State, Any]) -> End[int]:
        if ctx.deps:
            raise ctx.deps.pop()
        ctx.state.items.append(f'answer {self.value}')
        return End(self.value)


@dataclass
class Again(BaseNode[State, Any, int]):
    """Returns itself until nothing is left, so that its snapshot id recurs."""

    left: int = 3

    async def run(self, ctx: GraphRunContext[State, Any]) -> Again | End[int]:
        ctx.state.items.append(current_step().idempotency_key)
        self.left -= 1
        return self if self.left else End(len(ctx.state.items))


class Unspeakable(Exception):
    """An exception of a user's that cannot even be shown."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def unstorable() -> Ask:
    """Return a node that would be loaded as another one: a truth value in a field for numbers."""
    return Ask(True)


graph = Graph(nodes=(Ask, Answer, Again))


def way_to(status: SnapshotStatus) -> list[Transition]:
    """Return the shortest way to a status, as the table has it."""
    ways: dict[SnapshotStatus, list[Transition]] = {'created': []}
    while status not in ways:
        for source, way in tuple(ways.items()):
            for transition in TRANSITIONS:
                if source in transition.sources:
                    ways.setdefault(transition.target, [*way, transition])
    return ways[status]


async def with_status(run: RunUnderTest, status: SnapshotStatus) -> tuple[Persistence, str]:
    """Store a snapshot, and bring it to this status below the persistence."""
    persistence = opened(run)
    await persistence.snapshot_node(State(), Ask())
    (stored,) = run.raw()
    await run.change(stored.id, *way_to(status))
    return persistence, stored.id


def opened(run: RunUnderTest) -> Persistence:
    """Open the run and tell it the graph."""
    persistence = run.open()
    persistence.set_graph_types(graph)
    return persistence


@contextmanager
def observed(persistence: Persistence, observe: Callable[[Commit], None]) -> Generator[None]:
    """Call `observe` after each commit that the instance makes."""
    hidden = cast('Any', persistence)
    commit = hidden._commit

    async def spy(commit_: Commit) -> Receipt:
        receipt = await commit(commit_)
        observe(commit_)
        return receipt

    hidden._commit = spy
    try:
        yield
    finally:
        del hidden._commit


async def fail(persistence: Persistence, snapshot_id: str, exc: Exception | None = None) -> None:
    """Run a node that raises."""
    with suppress(type(exc) if exc else ValueError):
        async with persistence.record_run(snapshot_id):
            raise exc or ValueError('bad luck')


async def in_20_tasks(func: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Call `func` from 20 tasks at once, and return what each got."""
    results: list[Any] = []

    async def call() -> None:
        results.append(await func())

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call)
    return results


OTHER_USES: dict[str, Callable[[Persistence], Awaitable[Any]]] = {
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


@pytest.mark.anyio
@pytest.mark.both_backends
class PersistenceContract(ABC):
    """What holds for every persistence. Abstract: without `make_run` no subclass can be collected."""

    @abstractmethod
    def make_run(self, directory: Path) -> RunUnderTest:
        """Make a run of which nothing is stored yet."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunUnderTest:
        """A run of which nothing is stored yet."""
        return self.make_run(tmp_path)

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
        changes = [StatusChange(i, START, datetime.now(UTC)) for i in (snapshot_id, 'unknown')]
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
        before = datetime.now(UTC)
        async with persistence.record_run(snapshot_id):
            await anyio.sleep(0.02)
        after = datetime.now(UTC)
        (record,) = await persistence.load_history()
        assert record.start_ts is not None
        assert record.start_ts.utcoffset() == timedelta(0)
        assert before <= record.start_ts <= after
        assert record.duration is not None
        assert 0.02 <= record.duration <= (after - before).total_seconds()
        (snapshot,) = await persistence.load_all()
        assert isinstance(snapshot, NodeSnapshot)
        assert (snapshot.start_ts, snapshot.duration) == (record.start_ts, record.duration)

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
        last: list[Raw] = []
        commits: list[list[str]] = []

        def observe(commit: Commit) -> None:
            commits.append([change.transition.name for change in commit.changes])
            last.append(run.raw()[-1])

        with observed(persistence, observe):
            await graph.run(Ask(), state=State(), persistence=persistence)
        assert commits == [[], *[[START.name], [SUCCEED.name]] * 2]
        assert [(raw.kind, raw.status) for raw in last if raw.status == 'success'] == [('end', 'success')]

    @pytest.mark.parametrize('use', OTHER_USES)
    async def test_other_use_writes_what_is_held(self, run: RunUnderTest, use: str):
        """Whatever else is asked of the instance after a node succeeded, that it did is stored first."""
        persistence, snapshot_id = await with_status(run, 'created')
        async with persistence.record_run(snapshot_id):
            pass
        first: list[str] = []

        def observe(commit: Commit) -> None:
            first.append(''.join(change.transition.name for change in commit.changes))

        with observed(persistence, observe), suppress(LookupError, SnapshotStatusError):
            await OTHER_USES[use](persistence)
        assert first[0] == SUCCEED.name
        assert run.raw()[0] != Raw(snapshot_id, 'node', 'running')

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

    # --------------------------------------------------------------------------------------- the current step

    async def test_current_step(self, run: RunUnderTest, tmp_path: Path):
        """A node can ask which step it is; within another run's node it is that."""
        persistence, snapshot_id = await with_status(run, 'created')
        other, other_id = await with_status(self.make_run(tmp_path / 'other'), 'created')
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


@dataclass
class Other(BaseNode[State, Any, int]):
    """A node of another graph."""

    text: str = ''

    async def run(self, ctx: GraphRunContext[State, Any]) -> End[int]:
        return End(0)


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


@dataclass
class Half(BaseNode[State, Any, int]):
    """Changes the state, then fails once for each failure that `deps` holds."""

    async def run(self, ctx: GraphRunContext[State, Any]) -> End[int]:
        ctx.state.items.append('half')
        if ctx.deps:
            raise ctx.deps.pop()
        return End(1)


half = Graph(nodes=(Half,))


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
        change = StatusChange(snapshot_id, SUCCEED, datetime.now(UTC))
        with pytest.raises(OwnershipLostError):
            await cast('Any', persistence)._commit(Commit(changes=[change]))
        assert run.statuses() == ['running']
