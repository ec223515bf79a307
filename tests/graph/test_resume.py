"""`run_or_resume` and `iter_or_resume`: start a run, go on with it, or hand back how it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError

from graphkeep import (
    FileStatePersistence,
    FullStatePersistence,
    Graph,
    MemoryStore,
    Owner,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    SnapshotStatusError,
    StatePersistence,
    UnknownRunError,
    iter_or_resume,
    run_or_resume,
)
from graphkeep import owner as owners
from graphkeep._host import HAS_RUNNER
from graphkeep.status import START

pytestmark = pytest.mark.anyio


@dataclass
class Trail:
    """A state."""

    steps: list[str] = field(default_factory=list[str])


@dataclass
class Begin(BaseNode[Trail, Any, str]):
    """The first of three steps."""

    async def run(self, ctx: GraphRunContext[Trail, Any]) -> Go:
        ctx.state.steps.append('begin')
        return Go()


@dataclass
class Go(BaseNode[Trail, Any, str]):
    """The second of three steps, which returns what `deps` gives, if it is anything."""

    async def run(self, ctx: GraphRunContext[Trail, Any]) -> Finish:
        ctx.state.steps.append('go')
        return await ctx.deps() if ctx.deps else Finish()


@dataclass
class Finish(BaseNode[Trail, Any, str]):
    """The last of three steps."""

    async def run(self, ctx: GraphRunContext[Trail, Any]) -> End[str]:
        ctx.state.steps.append('finish')
        return End('done')


graph = Graph(nodes=(Begin, Go, Finish), name='three')
ALL = ['begin', 'go', 'finish']

Persistence = StatePersistence[Trail, str]


async def statuses(persistence: Persistence) -> list[str]:
    """Return the stored statuses, oldest first."""
    return [record.status for record in await persistence.load_history()]


@pytest.fixture(params=['full', 'memory', 'file'])
def persistence(request: pytest.FixtureRequest, tmp_path: Path) -> Persistence:
    """A run of which nothing is stored, in live objects, in memory, and in a file."""
    if request.param == 'full':
        return FullStatePersistence()
    return (
        MemoryStore().run('run') if request.param == 'memory' else FileStatePersistence(tmp_path / 'run.json')
    )


async def start(persistence: Persistence, deps: Any = None) -> None:
    """Run from the start."""
    await run_or_resume(graph, Begin(), state=Trail(), deps=deps, persistence=persistence)


# ------------------------------------------------------------------------------------------- where the run is


@pytest.mark.both_backends
async def test_finished(persistence: Persistence):
    """Of a finished run the recorded result is returned and nothing is run, or it is refused if so asked."""
    first = await run_or_resume(graph, Begin(), state=Trail(), persistence=persistence)
    again = await run_or_resume(graph, Begin(), state=Trail(['other']), persistence=persistence)
    assert (first.output, first.state.steps) == (again.output, again.state.steps) == ('done', ALL)
    async with iter_or_resume(graph, persistence=persistence) as run:
        assert run.next_node == End('done')
        assert [node async for node in run] == [End('done')]
        assert run.result is not None
        assert (run.result.output, run.result.state.steps) == ('done', ALL)
    with pytest.raises(RunFinishedError, match='read its result'):
        await run_or_resume(graph, Begin(), state=Trail(), persistence=persistence, on_finished='raise')
    assert await statuses(persistence) == ['success'] * 4


async def test_unknown(persistence: Persistence):
    """Without a first node, a run of which nothing is stored is refused."""
    with pytest.raises(UnknownRunError, match='start it with a first node'):
        await run_or_resume(graph, persistence=persistence)
    assert await persistence.load_history() == []


async def test_failed(persistence: Persistence):
    """A run that failed is refused with what the node raised, whatever is asked, until it is retried."""

    async def fail() -> None:
        raise OverflowError('too much')

    with pytest.raises(OverflowError):
        await start(persistence, fail)
    with pytest.raises(RunFailedError, match=r'OverflowError: too much.*retry\(\)') as failed:
        await start(persistence)
    assert failed.value.error is not None
    await persistence.retry()
    assert (await run_or_resume(graph, persistence=persistence)).output == 'done'


def never(_owner: Owner) -> bool:
    """Be what is known of an owner on another host."""
    return False


@pytest.mark.parametrize('elsewhere', [True, False])
async def test_owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool):
    """A run that somebody has is refused with who it is: by advice to wait, or here, to call `release()`."""
    mine, other = (FileStatePersistence[Trail, str](tmp_path / 'run.json') for _ in range(2))
    mine.set_graph_types(graph)
    await mine.snapshot_node(Trail(), Begin())
    assert await mine.load_next()
    if elsewhere:
        # as the same file is seen by another process, to which the owner's is a living one elsewhere
        monkeypatch.setattr(owners, '_here', {})
        monkeypatch.setattr('graphkeep.commit.is_gone', never)
    with pytest.raises(RunOwnedError, match='wait for it' if elsewhere else r'release\(\)') as owned:
        await start(other)
    assert isinstance(owned.value.owner, Owner)
    assert owned.value.owner.is_here == (not elsewhere)
    assert await statuses(other) == ['pending']


# ---------------------------------------------------------------------------------------- leaving a run early


@pytest.mark.both_backends
@pytest.mark.parametrize('steps', [0, 1, 2])
async def test_left_early(persistence: Persistence, steps: int):
    """A run that is left before its end is nobody's, and goes on with the same instance or another."""
    async with iter_or_resume(graph, Begin(), state=Trail(), persistence=persistence) as run:
        for _ in range(steps):
            await run.next()
    assert run.result is None
    assert await statuses(persistence) == ['success'] * steps + ['created']
    result = await run_or_resume(graph, persistence=persistence)
    assert result.state.steps == ALL


@pytest.mark.both_backends
@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt])
async def test_left_by_an_exception(persistence: Persistence, kind: type[BaseException]):
    """An exception of the caller's between two steps is no node's: the step before it counts."""
    with suppress(kind):
        async with iter_or_resume(graph, Begin(), state=Trail(), persistence=persistence) as run:
            await run.next()
            raise kind
    assert await statuses(persistence) == ['success', 'created']
    assert (await run_or_resume(graph, persistence=persistence)).state.steps == ALL


async def test_left_by_the_host_s_own(persistence: Persistence):
    """What `iter_from_persistence` was left with, `run_or_resume` on the same instance goes on with."""
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(Trail(), Begin())
    async with graph.iter_from_persistence(persistence) as run:
        assert run.next_node == Begin()
    assert (await run_or_resume(graph, persistence=persistence)).state.steps == ALL


@pytest.mark.parametrize('by_steps', [True, False])
async def test_node_that_returns_no_node(persistence: Persistence, by_steps: bool):
    """A node that returns neither a node nor an end failed, on both hosts, and can be retried."""

    async def nothing() -> int:
        return 5

    async def step_by_step() -> None:
        async with iter_or_resume(
            graph, Begin(), state=Trail(), deps=nothing, persistence=persistence
        ) as run:
            await run.next()
            await run.next()

    with pytest.raises(GraphRuntimeError, match='`int`'):
        await (step_by_step() if by_steps else start(persistence, nothing))
    assert await statuses(persistence) == ['success', 'error']
    record = (await persistence.load_history())[-1]
    assert record.error is not None
    assert 'GraphRuntimeError' in record.error.type
    await persistence.retry()
    assert (await run_or_resume(graph, persistence=persistence)).output == 'done'


@pytest.mark.skipif(not HAS_RUNNER, reason="2.x's runner, which is ours, finds it within the step")
async def test_node_that_returns_no_node_under_the_host_s_own_run():
    """Under the 1.x host's own `run`, a node that returns no node is found to be followed by nothing."""

    async def nothing() -> int:
        return 5

    persistence = FullStatePersistence[Trail, str]()
    with pytest.raises(GraphRuntimeError):
        await graph.run(Begin(), state=Trail(), deps=nothing, persistence=persistence)
    assert [cast('Any', snapshot).status for snapshot in persistence.history] == ['success', 'running']
    with pytest.raises(RunFailedError, match='before its next node was recorded'):
        await run_or_resume(graph, persistence=persistence)


# --------------------------------------------------------------------------------------------- somebody else


@pytest.mark.both_backends
async def test_somebody_else_goes_on(tmp_path: Path):
    """Who finds that somebody else went on between two of its steps goes on from where the run is then."""
    path = tmp_path / 'run.json'
    mine, other = (FileStatePersistence[Trail, str](path) for _ in range(2))
    snapshot = mine.snapshot_node
    ran: list[str] = []

    async def snapshot_and_wait(state: Trail, next_node: BaseNode[Trail, Any, str]) -> None:
        await snapshot(state, next_node)
        if isinstance(next_node, Go):  # between the first step and the second
            ran.extend((await run_or_resume(graph, persistence=other)).state.steps)

    cast('Any', mine).snapshot_node = snapshot_and_wait
    result = await run_or_resume(graph, Begin(), state=Trail(), persistence=mine)
    assert result.state.steps == ran == ALL
    assert [record.attempt for record in await mine.load_history()] == [1, 1, 1, 0]


async def test_somebody_else_fails(tmp_path: Path):
    """Who finds that somebody else went on and failed is told of that failure, and tries no further."""
    mine, other = (FileStatePersistence[Trail, str](tmp_path / 'run.json') for _ in range(2))
    snapshot = mine.snapshot_node

    async def fail() -> None:
        raise OverflowError('too much')

    async def snapshot_and_wait(state: Trail, next_node: BaseNode[Trail, Any, str]) -> None:
        await snapshot(state, next_node)
        with suppress(OverflowError):
            await run_or_resume(graph, deps=fail, persistence=other)

    cast('Any', mine).snapshot_node = snapshot_and_wait
    with pytest.raises(RunFailedError, match='too much'):
        await run_or_resume(graph, Begin(), state=Trail(), persistence=mine)


async def test_status_of_another_run(persistence: Persistence):
    """That a node could not start a step of another run is that node's failure, and no reason to go on."""

    async def start_another() -> None:
        raise SnapshotStatusError('another run', 'Begin:1', START, 'running')

    with pytest.raises(SnapshotStatusError, match='another run'):
        await start(persistence, start_another)
    assert await statuses(persistence) == ['success', 'error']


async def test_begun_anew_meanwhile(tmp_path: Path):
    """A finished run in whose place another one is begun that very moment is not taken for its end."""
    path = tmp_path / 'run.json'
    mine, other = (FileStatePersistence[Trail, str](path) for _ in range(2))
    await start(mine)
    other.set_graph_types(graph)
    why = mine.why_unresumable

    async def begin_anew() -> Any:
        found = await why()
        if isinstance(found, RunFinishedError):
            path.unlink()
            await other.snapshot_node(Trail(), Begin())
            assert await other.load_next()
        return found

    if HAS_RUNNER:  # which has no reason of ours, so that it is asked for
        cast('Any', mine).why_unresumable = begin_anew
    else:
        load = mine.load_last

        async def load_anew() -> Any:
            await begin_anew()
            return await load()

        cast('Any', mine).load_last = load_anew
    with pytest.raises(RunOwnedError):
        await run_or_resume(graph, persistence=mine)


@pytest.mark.both_backends
async def test_many_start(persistence: Persistence):
    """Of tasks that start one run with one instance one at least has the result; no step is run twice."""
    outcomes: list[object] = []

    async def call() -> None:
        try:
            result = await run_or_resume(graph, Begin(), state=Trail(), persistence=persistence)
            outcomes.append(result.output)
        except RunOwnedError as exc:
            outcomes.append(type(exc))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(call)
    assert 'done' in outcomes
    assert set(outcomes) <= {'done', RunOwnedError}
    assert [record.attempt for record in await persistence.load_history()] == [1, 1, 1, 0]


# ---------------------------------------------------------------------------------------------- what is given


@dataclass
class OneStep:
    """Shows one step of a run, and then says that there is nothing more."""

    run: Any

    async def __aiter__(self) -> AsyncGenerator[Any]:
        yield await self.run.next()

    @property
    def result(self) -> Any:
        return self.run.result


class Impatient(Graph[Trail, Any, str]):
    """A graph of a user's own, whose runs stop after each step."""

    @asynccontextmanager
    async def iter_from_persistence(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        async with super().iter_from_persistence(*args, **kwargs) as run:
            yield OneStep(run)


async def test_graph_that_stops_early(persistence: Persistence):
    """Of a graph of a user's own that stops before its end no result is made up, and what it did is kept."""
    impatient: Any = Impatient(nodes=(Begin, Go, Finish), name='impatient')
    for done in (1, 2):
        with pytest.raises(GraphRuntimeError, match='left before its end'):
            await run_or_resume(impatient, Begin(), state=Trail(), persistence=persistence)
        assert await statuses(persistence) == ['success'] * done + ['created']
    assert (await run_or_resume(impatient, persistence=persistence)).state.steps == ALL


async def test_foreign_persistence(tmp_path: Path):
    """What is no persistence of this library is refused, and told what was expected."""
    foreign: list[Any] = [tmp_path / 'run.json', None]
    if HAS_RUNNER:
        from pydantic_graph.persistence.in_mem import (  # pyright: ignore[reportMissingImports]
            SimpleStatePersistence,  # pyright: ignore[reportUnknownVariableType]
        )

        foreign.append(SimpleStatePersistence())
    for given in foreign:
        for enter in (
            run_or_resume(graph, Begin(), state=Trail(), persistence=given),
            iter_or_resume(graph, Begin(), state=Trail(), persistence=given).__aenter__(),
        ):
            with pytest.raises(TypeError, match=r'must be a graphkeep\.StatePersistence, got'):
                await enter


async def by_run(unnamed: Any, **options: Any) -> None:
    """Run a graph that is held by a variable of this name here."""
    await run_or_resume(unnamed, Begin(), state=Trail(), persistence=FullStatePersistence(), **options)


async def by_iter(unnamed: Any, **options: Any) -> None:
    """Iterate over a graph that is held by a variable of this name here."""
    persistence = FullStatePersistence[Trail, str]()
    async with iter_or_resume(unnamed, Begin(), state=Trail(), persistence=persistence, **options):
        pass


async def held_by_none_by_run(holder: list[Any]) -> None:
    """Run a graph that no variable here holds."""
    await run_or_resume(holder[0], Begin(), state=Trail(), persistence=FullStatePersistence())


async def held_by_none_by_iter(holder: list[Any]) -> None:
    """Iterate over a graph that no variable here holds."""
    persistence = FullStatePersistence[Trail, str]()
    async with iter_or_resume(holder[0], Begin(), state=Trail(), persistence=persistence):
        pass


in_module = Graph(nodes=(Begin, Go, Finish))


@pytest.mark.parametrize('call', [by_run, by_iter])
async def test_named_after_a_local(call: Callable[..., Awaitable[None]]):
    """A graph without a name is named after the caller's variable, unless that is not wanted."""
    first, second, third = (Graph(nodes=(Begin, Go, Finish)) for _ in range(3))
    await call(first)
    assert first.name == 'unnamed'
    await call(second, infer_name=False)
    assert second.name is None
    third.name = 'given'
    await call(third)
    assert third.name == 'given'


@pytest.mark.parametrize('call', [held_by_none_by_run, held_by_none_by_iter])
async def test_named_after_a_global(call: Callable[..., Awaitable[None]]):
    """A global variable counts where no local one holds the graph; without either it has no name."""
    in_module.name = None
    await call([in_module])
    assert in_module.name == 'in_module'
    nowhere = [Graph(nodes=(Begin, Go, Finish))]
    await call(nowhere)
    assert nowhere[0].name is None
