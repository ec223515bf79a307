"""Bad input and faults: what is refused, with which words, and that nothing which was stored is lost."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from pydantic_graph import GraphBuilder, StepContext, reduce_sum
from pydantic_graph.graph_builder import Graph

from graphkeep import (
    CorruptSnapshotError,
    MemoryStore,
    PersistentGraph,
    UnfaithfulSnapshotError,
    UnsupportedHostError,
    run_or_resume,
)
from graphkeep.codec import Body
from tests.builder.trails import (
    Trail,
    chain,
    crashed,
    looping,
    mapped,
    memory,
    resumed,
)

pytestmark = pytest.mark.anyio


class Odd(str):
    """A string of another class."""

    __slots__ = ()


def renamed(*names: str) -> Graph[Trail, object, int, str]:
    """Return `chain` with these names of its steps."""
    g = GraphBuilder(name='chain', state_type=Trail, deps_type=object, input_type=int, output_type=str)

    async def go_on(ctx: StepContext[Trail, object, int]) -> int:
        ctx.state.steps.append('new')
        return ctx.inputs + 1

    async def end(ctx: StepContext[Trail, object, int]) -> str:
        return f'came to {ctx.inputs}'

    *steps, last = [
        *(g.step(go_on, node_id=name) for name in names[:-1]),
        g.step(end, node_id=names[-1]),
    ]
    before: Any = g.start_node
    for step in [*steps, last]:
        g.add(g.edge_from(before).to(cast('Any', step)))
        before = step
    g.add(g.edge_from(before).to(g.end_node))
    return g.build()


# ---------------------------------------------------------------------------------------------- another graph


async def test_renamed():
    """A run at a node that the graph does not have is refused, with its name and how to give the new one."""
    store, clock = memory()
    await crashed(PersistentGraph(chain()), store.run('r'), 4, state=Trail(), inputs=1)
    clock.forward(100)
    before = await store.export('r')
    with pytest.raises(CorruptSnapshotError) as caught:
        await run_or_resume(PersistentGraph(renamed('first', 'second', 'third')), persistence=store.run('r'))
    assert "node 'one' is not in the graph" in str(caught.value)
    assert "nodes={'one': 'its new id'}" in str(caught.value)
    (info,) = await store.runs()
    assert (info.status, info.owner, info.resumable) == ('created', None, True)
    assert [r['node'] for r in json.loads(await store.export('r'))] == [r['node'] for r in json.loads(before)]


async def test_renamed_and_told():
    """With the new ids, the run goes on."""
    store, clock = memory()
    await crashed(PersistentGraph(chain()), store.run('r'), 5, state=Trail(), inputs=1)
    graph = PersistentGraph(
        renamed('first', 'second', 'third'), nodes={'one': 'first', 'two': 'second', 'three': 'third'}
    )
    assert await resumed(graph, store, clock) == 'came to 3'


async def test_renamed_and_told_wrongly():
    """A new id that the graph does not have is refused at once; a stored one that is not told is named."""
    plain = renamed('first', 'second', 'third')
    with pytest.raises(ValueError, match=r"got 'one': 'frist'; it has '__start__', 'first', 'second',"):
        PersistentGraph(plain, nodes={'two': 'second', 'one': 'frist'})
    store, clock = memory()
    await crashed(PersistentGraph(chain()), store.run('r'), 4, state=Trail(), inputs=1)
    with pytest.raises(CorruptSnapshotError, match=r"node 'one' is not .*nodes=\{'one': 'its new id'\}"):
        await resumed(PersistentGraph(plain, nodes={'eins': 'first', 'two': 'second'}), store, clock)


async def test_renamed_forks_and_joins():
    """So it does if a fork, or a join that holds something, was renamed."""

    def other() -> Graph[Trail, object, list[int], int]:
        g = GraphBuilder(state_type=Trail, deps_type=object, input_type=list[int], output_type=int)

        @g.step(node_id='thing')
        async def thing(ctx: StepContext[Trail, object, int]) -> int:
            return ctx.inputs

        added = g.join(reduce_sum, initial=0, node_id='summed')
        g.add(
            g.edge_from(g.start_node).map(fork_id='every').to(thing),
            g.edge_from(thing).to(added),
            g.edge_from(added).to(g.end_node),
        )
        return g.build()

    for commits in range(3, 8):
        store, clock = memory()
        await crashed(PersistentGraph(mapped()), store.run('r'), commits, state=Trail(), inputs=[1, 2])
        nodes = {'each': 'every', 'item': 'thing', 'added': 'summed', 'total': '__end__'}
        if commits > 3:
            with pytest.raises(CorruptSnapshotError):
                await resumed(PersistentGraph(other()), store, clock)
        assert await resumed(PersistentGraph(other(), nodes=nodes), store, clock) == 3


async def test_removed_and_past():
    """A node that was removed is no matter once the run is past it."""
    store, clock = memory()
    run_id = ''
    for commits in range(4, 9):
        run_id = f'r{commits}'
        await crashed(PersistentGraph(chain()), store.run(run_id), commits, state=Trail(), inputs=1)
        if any(r.node_id == 'three' for r in await store.history(run_id)):
            break
    graph = PersistentGraph(renamed('three'))
    assert await resumed(graph, store, clock, run_id) == 'came to 3'


async def test_base_node_run_of_another_graph():
    """A run of quite another graph is refused, and which nodes there are is told."""
    store, clock = memory()
    await crashed(PersistentGraph(mapped()), store.run('r'), 5, state=Trail(), inputs=[1, 2])
    with pytest.raises(CorruptSnapshotError, match=r"'item' is not in the graph, which has .*'one', 'two'"):
        await resumed(PersistentGraph(chain()), store, clock)


async def test_other_state():
    """A state that no longer fits is refused, as anywhere."""
    store, clock = memory()
    g = GraphBuilder(state_type=int, input_type=int, output_type=str)

    @g.step
    async def one(ctx: StepContext[int, None, int]) -> str:
        return ''

    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(g.end_node))
    plain: Graph[int, None, int, str] = g.build()
    await crashed(PersistentGraph(chain()), store.run('r'), 4, state=Trail(), inputs=1)
    with pytest.raises(CorruptSnapshotError, match='state'):
        await resumed(PersistentGraph(plain), store, clock)
    assert await resumed(PersistentGraph(chain()), store, clock) == 'came to 3'


# ------------------------------------------------------------------------------------------------- corruption


@pytest.mark.parametrize(
    'node',
    [
        b'{',
        b'[]',
        b'null',
        b'{}',
        b'{"node_id":"item"}',
        b'{"node_id":"item","inputs":1}',
        b'{"node_id":"item","inputs":1,"stack":1}',
        b'{"node_id":"item","inputs":1,"stack":[[1]]}',
        b'{"node_id":"item","inputs":1,"stack":[["each","task:1","first"]]}',
        b'{"node_id":"item","inputs":1,"stack":[["gone","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"unknown.module:Type","is":1},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"tuple"},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":[],"is":1},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"float","is":"much"},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"bytes","is":"!"},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"dict","is":[1]},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"date","is":"never"},"stack":[["each","task:1",0]]}',
        b'{"node_id":"item","inputs":{"$":"deque","is":[]},"stack":[["each","task:1",0]]}',
    ],
)
async def test_corrupt_task(node: bytes):
    """A task that cannot be read stops going on, with an error of ours; what is stored stays as it was."""
    store, graph = MemoryStore(), PersistentGraph(mapped())
    async with graph.iter(state=Trail(), inputs=[1, 2], persistence=store.run('r')) as run:
        await run.next()
    rows, about = store._rows('r')
    broken = next(row for row in rows if row.record.node_id == 'item')
    whole, broken.body = broken.body, Body(b'', node)
    assert await store.delete('r')
    store._insert('r', rows, about)
    with pytest.raises(CorruptSnapshotError, match=r"run 'r'") as caught:
        await run_or_resume(graph, persistence=store.run('r'))
    assert caught.value.snapshot_id == broken.record.id
    found = store._rows('r')[0]
    assert [(row.record.id, row.body) for row in found] == [(row.record.id, row.body) for row in rows]
    assert [info.owner for info in await store.runs()] == [None]
    broken.body = whole
    await store.delete('r')
    store._insert('r', rows, about)
    assert await run_or_resume(graph, persistence=store.run('r')) == 3


@pytest.mark.parametrize(
    'body', [Body(b'{}', b'{"node_id":"__start__"}'), Body(b'1', b'{"node_id":"__start__","inputs":1}')]
)
async def test_corrupt_start(body: Body):
    """A start that cannot be read is told of as such."""
    store, graph = MemoryStore(), PersistentGraph(chain())
    await graph.initialize(state=Trail(), inputs=1, persistence=store.run('r'))
    rows, about = store._rows('r')
    rows[0].body = body
    await store.delete('r')
    store._insert('r', rows, about)
    with pytest.raises(CorruptSnapshotError):
        await run_or_resume(graph, persistence=store.run('r'))
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('created', None)


# --------------------------------------------------------------------------------------------------- the host


@pytest.mark.parametrize('missing', ['_run_task', '_finish_task', '_handle_execution_request'])
def test_unsupported_host(monkeypatch: pytest.MonkeyPatch, missing: str):
    """A host whose scheduler is another one is refused when it is found out, with the versions that work."""
    from pydantic_graph import graph_builder

    monkeypatch.delattr(graph_builder._GraphIterator, missing)
    monkeypatch.delitem(sys.modules, 'graphkeep._scheduler')
    with pytest.raises(UnsupportedHostError, match=rf"needs the graph builder .* no '{missing}'") as caught:
        importlib.import_module('graphkeep._scheduler')
    assert caught.value.version
    assert isinstance(caught.value, ImportError)


def test_host_without_a_builder(monkeypatch: pytest.MonkeyPatch):
    """So is one without a builder at all."""
    monkeypatch.setitem(sys.modules, 'pydantic_graph.graph_builder', None)
    monkeypatch.delitem(sys.modules, 'graphkeep._scheduler')
    with pytest.raises(UnsupportedHostError, match='graph builder of pydantic-graph 1'):
        importlib.import_module('graphkeep._scheduler')


# ------------------------------------------------------------------------------------------ inputs, the state


@dataclass
class Box:
    """Something that a step may change."""

    items: list[int] = field(default_factory=list[int])


@dataclass
class Total:
    """A state that is added up."""

    number: int = 0
    more: Any = None


Hook = Callable[[StepContext[Total, Any, Box]], Any]


def boxes(hook: Hook) -> Graph[Total, Any, list[Box], int]:
    """Return a graph that does this in a step for each box, and adds up what the state is by then."""
    g = GraphBuilder(state_type=Total, deps_type=object, input_type=list[Box], output_type=int)

    @g.step
    async def work(ctx: StepContext[Total, object, Box]) -> int:
        await hook(cast('Any', ctx))
        return len(ctx.inputs.items)

    @g.step
    async def result(ctx: StepContext[Total, object, int]) -> int:
        return 100 * ctx.state.number + ctx.inputs

    added = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(added),
        g.edge_from(added).to(result),
        g.edge_from(result).to(g.end_node),
    )
    return cast('Graph[Total, Any, list[Box], int]', g.build())


async def everywhere(graph: PersistentGraph[Any, Any, Any, Any], result: object, **how: Any) -> int:
    """Crash a run after each commit, and go on; the result has to be the same. Return how many there were."""
    commits = 0
    while True:
        store, clock = memory()
        given = {name: make() for name, make in how.items()}
        if not await crashed(graph, store.run('r'), commits, **given):
            return commits
        again = {name: make() for name, make in how.items()}
        assert await resumed(graph, store, clock, **again) == result, f'crashed after {commits} commits'
        commits += 1
        assert commits < 60


@pytest.mark.both_backends
async def test_inputs_changed():
    """A step that changes its inputs, and is interrupted, has the original ones when it is run again."""

    async def change(ctx: StepContext[Total, Any, Box]) -> None:
        ctx.inputs.items.append(1)
        await anyio.lowlevel.checkpoint()
        ctx.inputs.items.append(2)

    graph = PersistentGraph(boxes(change))
    assert await everywhere(graph, 5, state=Total, inputs=lambda: [Box([0]), Box()]) > 3


@pytest.mark.both_backends
async def test_changed_by_a_thread():
    """What a thread does to the state while tasks are in flight is never stored without what waits for it."""

    async def change(ctx: StepContext[Total, Any, Box]) -> None:
        def add() -> None:
            ctx.state.number += 1

        await anyio.to_thread.run_sync(add)
        await anyio.lowlevel.checkpoint()

    await everywhere(PersistentGraph(boxes(change)), 300, state=Total, inputs=lambda: [Box(), Box(), Box()])


@pytest.mark.both_backends
async def test_changed_by_a_child():
    """So it is with what a step's child tasks do."""

    async def change(ctx: StepContext[Total, Any, Box]) -> None:
        async def add() -> None:
            await anyio.lowlevel.checkpoint()
            ctx.state.number += 1
            await anyio.lowlevel.checkpoint()
            ctx.state.number += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(add)
            tasks.start_soon(add)

    await everywhere(PersistentGraph(boxes(change)), 800, state=Total, inputs=lambda: [Box(), Box()])


class Unknown:
    """A class that no type of the graph names."""


@pytest.mark.both_backends
async def test_state_that_cannot_be_stored():
    """A state that cannot be stored half way is refused before the commit; what was stored goes on."""
    spoil = True

    async def change(ctx: StepContext[Total, Any, Box]) -> None:
        await anyio.lowlevel.checkpoint()
        ctx.state.number += 1
        if spoil and ctx.state.number == 2:
            ctx.state.more = Unknown()

    graph, store = PersistentGraph(boxes(change)), MemoryStore()
    with pytest.raises(UnfaithfulSnapshotError, match=r'state\.more') as caught:
        await graph.run(state=Total(), inputs=[Box(), Box(), Box()], persistence=store.run('r'))
    assert caught.value.run_id == 'r'
    (info,) = await store.runs()
    assert info.status in ('error', 'created')
    spoil = False
    if info.status == 'error':
        await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 300


@pytest.mark.both_backends
@pytest.mark.parametrize('value', [(1, 2), Odd('a')], ids=repr)
async def test_state_that_would_be_loaded_otherwise(value: Any):
    """A change of the state that its JSON does not show is refused when the step that made it ends."""
    g = GraphBuilder(state_type=dict[str, Any], output_type=int)

    @g.step
    async def change(ctx: StepContext[dict[str, Any], None, None]) -> int:
        ctx.state['value'] = value
        return 1

    g.add(g.edge_from(g.start_node).to(change), g.edge_from(change).to(g.end_node))
    store, graph = MemoryStore(), PersistentGraph(g.build())
    state = {'value': json.loads(json.dumps(value))}
    with pytest.raises(UnfaithfulSnapshotError, match=r"'change'.*`state\['value'\]`") as refused:
        await graph.run(state=state, persistence=store.run('r'))
    assert refused.value.node_id == 'change'
    assert [r.status for r in await store.history('r') if r.node_id == 'change'] == ['error']
    (info,) = await store.runs()
    assert (info.status, info.owner) == ('error', None)


async def test_state_that_cannot_be_stored_at_the_start():
    """At the start it is refused, and there is no run."""
    store = MemoryStore()

    async def nothing(ctx: StepContext[Total, Any, Box]) -> None:
        pass

    graph = PersistentGraph(boxes(nothing))
    for state, inputs, what in (
        (Total(0, Unknown()), [Box()], r'state\.more'),
        (Total(), [Unknown()], r'inputs\[0\]'),
    ):
        with pytest.raises(UnfaithfulSnapshotError, match=what):
            await graph.run(state=state, inputs=cast('Any', inputs), persistence=store.run('r'))
    assert await store.runs() == []


async def test_result_of_an_unknown_type():
    """A result of a type that the graph does not name is refused before the commit: the step has failed."""
    g = GraphBuilder(state_type=Trail, deps_type=object, output_type=int)

    @g.step
    async def make(ctx: StepContext[Trail, object, None]) -> Any:
        ctx.state.steps.append('made')
        return Unknown() if ctx.deps else 5

    @g.step
    async def use(ctx: StepContext[Trail, object, Any]) -> int:
        return 1

    g.add(
        g.edge_from(g.start_node).to(make),
        g.edge_from(make).to(use),
        g.edge_from(use).to(g.end_node),
    )
    plain: Graph[Trail, object, None, int] = g.build()
    graph, store = PersistentGraph(plain), MemoryStore()
    with pytest.raises(UnfaithfulSnapshotError, match=r"node 'make' .*`its result`.*types=\(Unknown,\)"):
        await graph.run(state=Trail(), deps='bad', persistence=store.run('r'))
    history = await store.history('r')
    (made,) = (r for r in history if r.node_id == 'make')
    assert made.status == 'error'
    assert not any(r.node_id == 'use' for r in history)
    await store.retry('r')
    persistence = store.run('r')
    assert await run_or_resume(graph, persistence=persistence) == 1
    assert (await persistence.last_state()).steps == ['made']


async def test_output_that_cannot_be_stored():
    """So is an output that does not fit the graph's own output type."""
    g = GraphBuilder(deps_type=object, output_type=int)

    @g.step
    async def make(ctx: StepContext[None, object, None]) -> int:
        return cast('Any', 1.5) if ctx.deps else 1

    g.add(g.edge_from(g.start_node).to(make), g.edge_from(make).to(g.end_node))
    plain: Graph[None, object, None, int] = g.build()
    graph, store = PersistentGraph(plain), MemoryStore()
    with pytest.raises(UnfaithfulSnapshotError, match="'make'"):
        await graph.run(deps='bad', persistence=store.run('r'))
    await store.retry('r')
    assert await run_or_resume(graph, persistence=store.run('r')) == 1


@pytest.mark.both_backends
async def test_several_runs_of_one_graph():
    """Runs of one graph object beside each other do not get into each other's way, nor do threads'."""
    store, graph = MemoryStore(), PersistentGraph(looping())
    outputs: dict[int, object] = {}

    async def call(number: int) -> None:
        outputs[number] = await graph.run(state=Trail(), inputs=number, persistence=store.run(f'r{number}'))

    async def call_many(first: int) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(first, first + 5):
                tasks.start_soon(call, number)

    threads = [threading.Thread(target=anyio.run, args=(call_many, first)) for first in (1, 6)]
    for thread in threads:
        thread.start()
    await call_many(11)
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert outputs == {number: ['a1', 'b1'] for number in range(1, 16)}
