"""The way over: a run of `BaseNode`s, as 1.x or a store here has it, goes on in a builder graph."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic_graph import BaseNode, End, GraphBuilder, GraphRunContext, StepContext
from pydantic_graph.graph_builder import Graph as BuilderGraph

from graphkeep import (
    CorruptSnapshotError,
    FileStatePersistence,
    Graph,
    MemoryStore,
    PersistentGraph,
    RunFailedError,
    RunOwnedError,
    iter_or_resume,
    run_or_resume,
)
from tests.builder.trails import STORES, crashed, memory, nowhere

pytestmark = pytest.mark.anyio


@dataclass
class Trail:
    """Which nodes ended, in order."""

    steps: list[str] = field(default_factory=list[str])


@dataclass
class First(BaseNode[Trail, object, str]):
    async def run(self, ctx: GraphRunContext[Trail, object]) -> Second:
        ctx.state.steps.append('first')
        return Second(7)


@dataclass
class Second(BaseNode[Trail, object, str]):
    number: int

    async def run(self, ctx: GraphRunContext[Trail, object]) -> Third:
        if ctx.deps == 'fail':
            raise OverflowError('too much')
        ctx.state.steps.append(f'second {self.number}')
        return Third(self.number + 1)


@dataclass
class Third(BaseNode[Trail, object, str]):
    number: int

    async def run(self, ctx: GraphRunContext[Trail, object]) -> End[str]:
        ctx.state.steps.append(f'third {self.number}')
        return End('done')


old = Graph(nodes=(First, Second, Third), name='old', state_type=Trail, run_end_type=str)
WHOLE = ['first', 'second 7', 'third 8']


def new(*nodes: type[BaseNode[Any, Any, Any]]) -> PersistentGraph[Trail, object, None, str]:
    """Return a builder graph of the same nodes."""
    g = GraphBuilder(name='new', state_type=Trail, deps_type=object, output_type=str)

    @g.step
    async def begin(ctx: StepContext[Trail, object, None]) -> First:
        return First()

    g.add(g.edge_from(g.start_node).to(begin), *(g.node(node) for node in nodes or (First, Second, Third)))
    graph: BuilderGraph[Trail, object, None, str] = g.build()
    return PersistentGraph(graph)


def snapshot(node: str, status: str = 'created', number: int | None = None, *steps: str) -> dict[str, Any]:
    """Return a snapshot of a node as pydantic-graph 1.x writes it."""
    started = status != 'created'
    return {
        'state': {'steps': list(steps)},
        'node': {**({} if number is None else {'number': number}), 'node_id': node},
        'start_ts': '2026-01-02T03:04:05.678901Z' if started else None,
        'duration': 0.25 if status in ('success', 'error') else None,
        'status': status,
        'kind': 'node',
        'id': f'{node}:0123456789abcdef',
    }


def end(*steps: str) -> dict[str, Any]:
    """Return the end of a run as pydantic-graph 1.x writes it."""
    return {
        'state': {'steps': list(steps)},
        'result': {'data': 'done'},
        'ts': '2026-01-02T03:04:06Z',
        'kind': 'end',
        'id': 'end:0123456789abcdef',
    }


WAITING = [snapshot('First', 'success'), snapshot('Second', 'created', 7, 'first')]
FAILED = [snapshot('First', 'success'), snapshot('Second', 'error', 7, 'first')]
INTERRUPTED = [snapshot('First', 'success'), snapshot('Second', 'running', 7, 'first')]
FINISHED = [*WAITING[:1], snapshot('Third', 'success', 8, *WHOLE[:2]), end(*WHOLE)]


def file(directory: Path, snapshots: list[dict[str, Any]]) -> FileStatePersistence[Any, Any]:
    """Write a file as pydantic-graph 1.x does."""
    path = directory / 'run.json'
    path.write_text(json.dumps(snapshots, indent=2))
    return FileStatePersistence(path)


async def test_file_goes_on(tmp_path: Path):
    """A file of 1.x goes on at its next node, with its state; what has succeeded is not run again."""
    persistence = file(tmp_path, WAITING)
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE
    again = FileStatePersistence[Any, Any](tmp_path / 'run.json')
    assert await run_or_resume(new(), persistence=again) == 'done'


async def test_file_by_iteration(tmp_path: Path):
    """So it does by `iter_from_persistence`; it may be left and gone on with again and again."""
    events = 0
    while True:
        persistence = file(tmp_path, WAITING) if not events else FileStatePersistence(tmp_path / 'run.json')
        async with iter_or_resume(new(), persistence=persistence) as run:
            if run.output is not None:
                break
            await anext(run)
        events += 1
        assert events < 10
    assert (await persistence.last_state()).steps == WHOLE
    assert events > 1


async def test_finished_file(tmp_path: Path):
    """A finished file of 1.x gives its result."""
    persistence = file(tmp_path, FINISHED)
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    async with iter_or_resume(new(), persistence=persistence) as run:
        assert (run.output, run.state.steps) == ('done', WHOLE)


async def test_failed_file(tmp_path: Path):
    """A file of 1.x whose node failed goes on from that node after a retry."""
    persistence = file(tmp_path, FAILED)
    with pytest.raises(RunFailedError):
        await run_or_resume(new(), persistence=persistence)
    await persistence.retry()
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


async def test_interrupted_file(tmp_path: Path):
    """A file whose node was interrupted goes on from it once somebody says that nobody is at it any more."""
    persistence = file(tmp_path, INTERRUPTED)
    with pytest.raises(RunOwnedError, match='recover'):
        await run_or_resume(new(), persistence=persistence)
    assert await persistence.recover() == 1
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


@pytest.mark.parametrize('name', STORES)
@pytest.mark.parametrize('steps', [0, 1, 2, 3])
async def test_store_goes_on(tmp_path: Path, name: str, steps: int):
    """A run of `BaseNode`s in a store goes on in a builder graph, from wherever it was left."""
    store, _ = await nowhere(tmp_path, name)
    async with iter_or_resume(old, First(), state=Trail(), persistence=store.run('r')) as old_run:
        for _ in range(steps):
            await old_run.next()
    persistence = store.run('r')
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE
    await store.aclose()


async def test_store_failed():
    """One whose node failed goes on after a retry of the store."""
    store = MemoryStore()
    with pytest.raises(OverflowError):
        await run_or_resume(old, First(), state=Trail(), deps='fail', persistence=store.run('r'))
    with pytest.raises(RunFailedError, match='too much'):
        await run_or_resume(new(), persistence=store.run('r'))
    await store.retry('r')
    persistence = store.run('r')
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


async def test_imported(tmp_path: Path):
    """A file of 1.x may be imported into a store first."""
    store = MemoryStore()
    await store.import_run(json.dumps(WAITING), run_id='r')
    claimed = await store.claim()
    assert claimed is not None
    assert await run_or_resume(new(), persistence=claimed) == 'done'


@pytest.mark.parametrize('commits', range(1, 8))
async def test_crashed_on_the_way(commits: int):
    """A run that crashes on its way over, after any commit, comes to the same."""
    store, clock = memory()
    await store.import_run(json.dumps(WAITING), run_id='r')
    await crashed(new(), store.run('r'), commits)
    clock.forward(100)
    persistence = store.run('r')
    assert await run_or_resume(new(), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


async def test_not_begun_as_a_builder_run(tmp_path: Path):
    """What is given for a new run is not looked at: the run is there."""
    persistence = file(tmp_path, WAITING)
    assert await run_or_resume(new(), state=Trail(['other']), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


async def test_node_that_is_not_there(tmp_path: Path):
    """A run whose next node the builder graph does not have is refused; it stays as it is, and free."""
    wrong = [*WAITING[:1], snapshot('Fourth', 'created', None, 'first')]
    persistence = file(tmp_path, wrong)
    with pytest.raises(CorruptSnapshotError, match="'Fourth' is not in the graph"):
        await run_or_resume(new(), persistence=persistence)
    snapshots = json.loads((tmp_path / 'run.json').read_text())
    assert [one['status'] for one in snapshots] == ['success', 'created']


async def test_first_node_is_gone():
    """A run that has gone past its first node goes on in a builder graph that no longer has that."""
    store = MemoryStore()
    await old.initialize(First(), store.run('r'), state=Trail())
    async with new().iter_from_persistence(store.run('r')) as run:
        (task,) = await anext(run)
        assert task.node_id == 'Second'

    @dataclass
    class Zeroth(BaseNode[Trail, object, str]):
        async def run(self, ctx: GraphRunContext[Trail, object]) -> Second:
            return Second(0)

    g = GraphBuilder(state_type=Trail, deps_type=object, input_type=Zeroth, output_type=str)
    g.add(g.edge_from(g.start_node).to(Zeroth), g.node(Zeroth), g.node(Second), g.node(Third))
    persistence = store.run('r')
    assert await run_or_resume(PersistentGraph(g.build()), persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


@dataclass
class Newer(BaseNode[Trail, object, str]):
    """What `First` is called now."""

    async def run(self, ctx: GraphRunContext[Trail, object]) -> Second:
        ctx.state.steps.append('first')
        return Second(7)


async def test_first_node_is_renamed():
    """A run of nodes goes on with the first one's new name if that is told; without it, it is refused."""
    g = GraphBuilder(state_type=Trail, deps_type=object, input_type=Newer, output_type=str)
    g.add(g.edge_from(g.start_node).to(Newer), g.node(Newer), g.node(Second), g.node(Third))
    plain: BuilderGraph[Trail, object, Newer, str] = g.build()
    store = MemoryStore()
    await old.initialize(First(), store.run('r'), state=Trail())
    with pytest.raises(CorruptSnapshotError, match="'First' is not in the graph"):
        await run_or_resume(PersistentGraph(plain), persistence=store.run('r'))
    persistence = store.run('r')
    graph = PersistentGraph(plain, nodes={'First': 'Newer'})
    assert await run_or_resume(graph, persistence=persistence) == 'done'
    assert (await persistence.last_state()).steps == WHOLE


async def test_history_of_the_way_over(tmp_path: Path):
    """The history has the nodes from before, and the tasks since."""
    store = MemoryStore()
    await store.import_run(json.dumps(WAITING), run_id='r')
    await run_or_resume(new(), persistence=store.run('r'))
    history = await store.history('r')
    assert [(r.kind, r.node_id, r.status) for r in history[:2]] == [
        ('node', 'First', 'success'),
        ('node', 'Second', 'success'),
    ]
    assert [r.node_id for r in history if r.kind == 'task' and r.node_id in ('Second', 'Third')] == ['Third']
    assert history[-1].kind == 'end'


async def test_no_way_back():
    """A run that has gone on in a builder graph is not taken up by the graph of nodes, and stays as it is."""
    store = MemoryStore()
    await old.initialize(First(), store.run('r'), state=Trail())
    async with new().iter_from_persistence(store.run('r')) as run:
        await run.next()
    before = await store.history('r')
    assert any(record.kind == 'task' for record in before)
    with pytest.raises(CorruptSnapshotError, match='go on with its PersistentGraph'):
        await run_or_resume(old, persistence=store.run('r'))
    assert await store.history('r') == before
    assert await run_or_resume(new(), persistence=store.run('r')) == 'done'
