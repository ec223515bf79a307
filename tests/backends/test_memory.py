"""What the persistences in memory have that others have not: JSON of live objects, and use from threads."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    CorruptSnapshotError,
    FullStatePersistence,
    Graph,
    MemoryStore,
    RunOwnedError,
    SimpleStatePersistence,
    SnapshotStatusError,
    UnfaithfulSnapshotError,
    run_or_resume,
)

pytestmark = pytest.mark.anyio


@dataclass
class Bag:
    """A state."""

    items: list[Any] = field(default_factory=list[Any])


@dataclass
class Put(BaseNode[Bag, Any, int]):
    """Puts `deps` into the bag, or raises it."""

    async def run(self, ctx: GraphRunContext[Bag, Any]) -> Look:
        if isinstance(ctx.deps, BaseException):
            raise ctx.deps
        ctx.state.items.append(ctx.deps)
        return Look()


@dataclass
class Look(BaseNode[Bag, Any, int]):
    """Counts what is in the bag."""

    async def run(self, ctx: GraphRunContext[Bag, Any]) -> End[int]:
        return End(len(ctx.state.items))


graph = Graph(nodes=(Put, Look), name='bag')
Full = FullStatePersistence[Bag, int]


async def finished(item: Any = 1) -> Full:
    """Return the run of the graph with this item."""
    persistence = Full()
    await graph.run(Put(), state=Bag(), deps=item, persistence=persistence)
    return persistence


def loaded(data: str | bytes | bytearray) -> Full:
    """Return a persistence with this history."""
    persistence = Full()
    persistence.set_graph_types(graph)
    persistence.load_json(data)
    return persistence


@dataclass
class Quiet(BaseNode[None, None, None]):
    """Ends with nothing."""

    async def run(self, ctx: GraphRunContext[None, None]) -> End[None]:
        return End(None)


async def test_end_with_nothing():
    """A run without a state that ends without a result is kept as any other."""
    persistence = FullStatePersistence[None, None]()
    quiet = Graph(nodes=(Quiet,), name='quiet')
    await quiet.run(Quiet(), persistence=persistence)
    assert [snapshot.node for snapshot in persistence.history] == [Quiet(), End(None)]
    again = FullStatePersistence[None, None]()
    again.set_graph_types(quiet)
    again.load_json(persistence.dump_json())
    assert again.history == persistence.history


# ----------------------------------------------------------------------------------------- JSON of a history


@pytest.mark.parametrize('convert', [bytes, bytearray, lambda data: data.decode()])  # pyright: ignore
@pytest.mark.parametrize('indent', [None, 2])
async def test_there_and_back(indent: int | None, convert: Any):
    """What `dump_json` writes `load_json` reads, from bytes and from text, and whether indented or not."""
    persistence = await finished()
    data = persistence.dump_json(indent=indent)
    assert data.startswith(b'[{' if indent is None else b'[\n  {')
    again = loaded(convert(data))
    assert again.history == persistence.history
    assert await again.load_history() == await persistence.load_history()
    assert (await run_or_resume(graph, persistence=again)).output == 1


async def test_dump_of_what_json_cannot_hold():
    """What would be loaded as something else is refused in JSON, or with `verify=False` dumped as it is."""
    persistence = await finished((1, 2))
    with pytest.raises(UnfaithfulSnapshotError, match=r'state\.items\[0\]'):
        persistence.dump_json()
    again = loaded(persistence.dump_json(verify=False))
    assert (await again.last_state()).items == [[1, 2]]
    assert (await persistence.last_state()).items == [(1, 2)]


@pytest.mark.parametrize(
    'data',
    [
        '',
        'nonsense',
        b'\xff',
        '{}',
        '[1]',
        '[{}]',
        '[{"kind":"node","id":"x","state":1,"node":{"node_id":"Put"}}]',
    ],
)
async def test_load_of_something_else(data: Any):
    """What is no run, or not of this graph, is refused, and the history stays as it was."""
    persistence = await finished()
    before, records = persistence.history, await persistence.load_history()
    with pytest.raises(CorruptSnapshotError, match='the JSON given'):
        persistence.load_json(data)
    assert persistence.history is before
    assert await persistence.load_history() == records


async def test_attempts_are_dumped():
    """The JSON keeps attempts and errors, which the snapshots themselves have no fields for."""
    persistence = Full()
    with suppress(ValueError):
        await graph.run(Put(), state=Bag(), deps=ValueError('bad luck'), persistence=persistence)
    again = loaded(persistence.dump_json())
    assert await again.load_history() == await persistence.load_history()
    await again.retry()
    result = await run_or_resume(graph, deps=1, persistence=again)
    assert result.output == 1
    first, *_ = await loaded(again.dump_json()).load_history()
    assert [attempt.outcome for attempt in first.attempts] == ['error', 'success']
    assert json.loads(again.dump_json())[0]['graphkeep']['attempt'] == 2


@pytest.mark.parametrize('call', ['dump_json', 'load_json'])
async def test_json_without_a_graph(call: str):
    """Without a graph the types are not known, and the error says what to do."""
    arguments = ['[]'] if call == 'load_json' else []
    with pytest.raises(RuntimeError, match=r'set_graph_types\(graph\)'):
        getattr(Full(), call)(*arguments)


# ---------------------------------------------------------------------------------- another attempt at a node


@pytest.mark.both_backends
@pytest.mark.parametrize('make', [Full, SimpleStatePersistence[Bag, int]])
async def test_retry(make: Any):
    """A failed run goes on after `retry`; attempts are counted and kept."""
    persistence = make()
    for number in (1, 2):
        with pytest.raises(ValueError, match='bad luck'):
            await run_or_resume(
                graph, Put(), state=Bag(), deps=ValueError('bad luck'), persistence=persistence
            )
        (record,) = await persistence.load_history()
        assert (record.status, record.attempt, len(record.attempts)) == ('error', number, number)
        await persistence.retry()
        with pytest.raises(SnapshotStatusError):
            await persistence.retry()
    result = await run_or_resume(graph, deps='x', persistence=persistence)
    assert (result.output, result.state.items) == (1, ['x'])


@pytest.mark.both_backends
@pytest.mark.parametrize('make', [Full, SimpleStatePersistence[Bag, int]])
async def test_recover(make: Any):
    """What is pending or running is set back by `recover`, for there is no owner who could be gone."""
    persistence = make()
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(Bag(), Put())
    snapshot = await persistence.load_next()
    assert await persistence.load_next() is None
    assert isinstance(await persistence.why_unresumable(), RunOwnedError)
    assert await persistence.recover() == 1
    await persistence.record_run(snapshot.id).__aenter__()  # and is never left
    assert await persistence.recover() == 1
    assert await persistence.recover() == 0
    (record,) = await persistence.load_history()
    assert [attempt.outcome for attempt in record.attempts] == ['recovered']
    assert (await run_or_resume(graph, deps='x', persistence=persistence)).output == 1


# ----------------------------------------------------------------------------------------------- from threads


async def test_store_from_threads(anyio_backend_name: str):
    """Threads with an event loop each may use one store: of many that resume a run, each step is run once."""
    store = MemoryStore()
    ran: list[str] = []
    outcomes: list[Any] = []
    together = threading.Barrier(8)

    @dataclass
    class Slow(BaseNode[Bag, None, int]):
        async def run(self, ctx: GraphRunContext[Bag, None]) -> End[int]:
            ran.append('slow')
            await anyio.sleep(0.001)
            return End(len(ran))

    slow = Graph(nodes=(Slow,), name='slow', state_type=Bag, run_end_type=int, auto_instrument=False)

    def resume() -> None:
        async def main() -> None:
            try:
                result = await run_or_resume(slow, Slow(), state=Bag(), persistence=store.run('shared'))
                outcomes.append(result.output)
            except RunOwnedError as exc:
                outcomes.append(type(exc))

        together.wait(10)
        anyio.run(main, backend=anyio_backend_name)

    threads = [threading.Thread(target=resume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 8
    assert ran == ['slow']
    assert 1 in outcomes
    assert set(outcomes) <= {1, RunOwnedError}
    history = await store.run('shared').load_history()
    assert [(record.kind, record.attempt) for record in history] == [('node', 1), ('end', 0)]


async def test_end_by_the_clock_of_the_store():
    """A run ends when the store's clock says so, so that how old it is can be told by that clock."""
    now = datetime(2100, 1, 1, tzinfo=UTC)
    store = MemoryStore(clock=lambda: now)
    await run_or_resume(graph, Put(), state=Bag(), deps=1, persistence=store.run('run'))
    *_, end = await store.history('run')
    assert end.start_ts == now
    assert (await store.prune(older_than=timedelta(0))).runs == 0
    now += timedelta(seconds=1)
    assert (await store.prune(older_than=timedelta(0))).runs == 1


async def test_deleted_while_it_is_claimed():
    """A run that somebody deletes while `load_next` is at it has nothing to hand out."""
    store = MemoryStore()
    await graph.initialize(Put(), store.run('run'), state=Bag())
    persistence: Any = store.run('run')
    persistence.set_graph_types(graph)
    look = persistence._tail

    async def look_and_delete() -> Any:
        tail = await look()
        await store.delete('run')
        return tail

    persistence._tail = look_and_delete
    assert await persistence.load_next() is None


def test_one_run_from_many_threads():
    """Threads that ask a store for one run at the same moment get the same one."""
    for _ in range(20):
        store = MemoryStore()
        together = threading.Barrier(8)
        found: list[Any] = []

        def ask(store: MemoryStore = store, together: threading.Barrier = together) -> None:
            together.wait(10)
            found.append(cast('Any', store.run('run'))._backend)  # noqa: B023

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(found) == 8
        assert len(set(found)) == 1
