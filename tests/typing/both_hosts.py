"""What a user's type checker makes of the public API, whichever host is installed. Checked, never run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, assert_type

from pydantic import TypeAdapter
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    CorruptSnapshotError,
    EndSnapshot,
    FileStatePersistence,
    FileStore,
    FullStatePersistence,
    Graph,
    GraphkeepError,
    GraphNodeRunningError,
    GraphNodeStatusError,
    GraphRun,
    GraphRunResult,
    InvalidRunIdError,
    LockTimeoutError,
    MemoryStore,
    NodeSnapshot,
    Owner,
    OwnershipLostError,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    SimpleStatePersistence,
    Snapshot,
    SnapshotStatus,
    SnapshotStatusError,
    StatePersistence,
    StorageError,
    UnfaithfulSnapshotError,
    UnknownRunError,
    UnknownSnapshotError,
    UnsupportedTypeError,
    build_snapshot_list_type_adapter,
    current_step,
    iter_or_resume,
    run_or_resume,
)


@dataclass
class Counter:
    value: int = 0


@dataclass
class Deps:
    limit: int


@dataclass
class Count(BaseNode[Counter, Deps, str]):
    async def run(self, ctx: GraphRunContext[Counter, Deps]) -> Count | End[str]:
        assert_type(current_step().run_id, str)
        assert_type(current_step().attempt, int)
        assert_type(current_step().idempotency_key, str)
        ctx.state.value += 1
        return Count() if ctx.state.value < ctx.deps.limit else End('done')


graph = Graph(nodes=[Count])
assert_type(graph, Graph[Counter, Deps, str])


async def the_runner_keeps_the_types(persistence: StatePersistence[Counter, str]) -> None:
    result = await graph.run(Count(), state=Counter(), deps=Deps(3), persistence=persistence)
    assert_type(result, GraphRunResult[Counter, str])
    assert_type(result.output, str)
    assert_type(result.state, Counter)
    assert_type(graph.run_sync(Count(), state=Counter(), deps=Deps(3)), GraphRunResult[Counter, str])

    await graph.initialize(Count(), persistence, state=Counter())
    async with graph.iter(Count(), state=Counter(), deps=Deps(3), persistence=persistence) as run:
        assert_type(run, GraphRun[Counter, Deps, str])
        assert_type(run.next_node, BaseNode[Counter, Deps, str] | End[str])
        assert_type(run.state, Counter)
        assert_type(run.deps, Deps)
        assert_type(run.result, GraphRunResult[Counter, str] | None)
        assert_type(await run.next(), BaseNode[Counter, Deps, str] | End[str])
        async for node in run:
            assert_type(node, BaseNode[Counter, Deps, str] | End[str])
    async with graph.iter_from_persistence(persistence, deps=Deps(3)) as run:
        assert_type(run, GraphRun[Counter, Deps, str])


async def resuming_keeps_the_types(persistence: StatePersistence[Counter, str]) -> None:
    result = await run_or_resume(graph, Count(), state=Counter(), deps=Deps(3), persistence=persistence)
    assert_type(result, GraphRunResult[Counter, str])
    assert_type(await run_or_resume(graph, persistence=persistence), GraphRunResult[Counter, str])
    async with iter_or_resume(graph, Count(), state=Counter(), persistence=persistence) as run:
        assert_type(run.state, Counter)
        assert_type(run.result, GraphRunResult[Counter, str] | None)


async def a_store_gives_persistences_of_any_graph(tmp: Path) -> None:
    for store in (MemoryStore(), FileStore(tmp), FileStore(str(tmp), durability='full')):
        await graph.run(Count(), state=Counter(), deps=Deps(3), persistence=store.run('order-17'))
        await the_runner_keeps_the_types(store.run('order-18'))


async def the_contract_keeps_the_types(persistence: StatePersistence[Counter, str]) -> None:
    await persistence.snapshot_node(Counter(), Count())
    await persistence.snapshot_node_if_new('Count:1', Counter(), Count())
    await persistence.snapshot_end(Counter(), End('done'))
    entered: AbstractAsyncContextManager[None] = persistence.record_run('Count:1')
    async with entered:
        pass
    assert_type(await persistence.load_next(), NodeSnapshot[Counter, str] | None)
    assert_type(await persistence.load_all(), list[NodeSnapshot[Counter, str] | EndSnapshot[Counter, str]])
    assert_type(await persistence.last_state(), Counter)
    assert_type(await persistence.recover(), int)
    await persistence.retry()
    persistence.set_graph_types(graph)
    persistence.set_types(Counter, str)
    assert_type(persistence.should_set_types(), bool)


async def the_persistences_keep_their_attributes() -> None:
    file = FileStatePersistence[Counter, str]('run.json', durability='full', lock_timeout=1.5)
    assert_type(file, FileStatePersistence[Counter, str])
    assert_type(file.json_file, Path)
    assert_type(await file.load_next(), NodeSnapshot[Counter, str] | None)

    simple = SimpleStatePersistence[Counter, str]()
    assert_type(simple.last_snapshot, NodeSnapshot[Counter, str] | EndSnapshot[Counter, str] | None)

    full = FullStatePersistence[Counter, str](deep_copy=False)
    assert_type(full.history, list[NodeSnapshot[Counter, str] | EndSnapshot[Counter, str]])
    assert_type(full.deep_copy, bool)
    assert_type(full.dump_json(indent=2), bytes)
    full.load_json(b'[]')

    await graph.run(
        Count(), state=Counter(), deps=Deps(3), persistence=FileStatePersistence(Path('run.json'))
    )
    everywhere: Sequence[StatePersistence[Counter, str]] = [file, simple, full]
    for persistence in everywhere:
        await graph.run(Count(), state=Counter(), deps=Deps(3), persistence=persistence)


def snapshots_have_their_fields(snapshot: Snapshot[Counter, str]) -> None:
    assert_type(snapshot.state, Counter)
    assert_type(snapshot.id, str)
    if isinstance(snapshot, NodeSnapshot):
        assert_type(snapshot.node, BaseNode[Counter, Any, str])
        assert_type(snapshot.start_ts, datetime | None)
        assert_type(snapshot.duration, float | None)
        status: SnapshotStatus = snapshot.status
        assert_type(status, Literal['created', 'pending', 'running', 'success', 'error'])
        assert_type(snapshot.kind, Literal['node'])
    else:
        assert_type(snapshot.result, End[str])
        assert_type(snapshot.ts, datetime)
        assert_type(snapshot.kind, Literal['end'])
    adapter = build_snapshot_list_type_adapter(Counter, str)
    assert_type(adapter, TypeAdapter[list[NodeSnapshot[Counter, str] | EndSnapshot[Counter, str]]])


async def errors_can_be_told_apart(persistence: StatePersistence[Counter, str]) -> None:
    try:
        await run_or_resume(graph, persistence=persistence, on_finished='raise')
    except (UnknownRunError, RunFinishedError, RunFailedError) as exc:
        assert_type(exc.run_id, str)
    except RunOwnedError as exc:
        assert_type(exc.owner, Owner | None)
        assert_type(exc.until, datetime | None)
    except OwnershipLostError as exc:
        assert_type(exc.owner, Owner | None)
    except UnfaithfulSnapshotError as exc:
        assert_type((exc.run_id, exc.node_id, exc.field), tuple[str, str, str])
    except CorruptSnapshotError as exc:
        assert_type(exc.place, str)
        assert_type(exc.snapshot_id, str | None)
    except SnapshotStatusError as exc:
        assert_type(exc.actual_status, str)
        assert_type(exc.snapshot_id, str)
        status_error: GraphNodeStatusError = exc
        running_error: GraphNodeRunningError = exc
        print(status_error, running_error)


def errors_are_also_what_the_standard_library_calls_them(
    unknown_run: UnknownRunError,
    unknown_snapshot: UnknownSnapshotError,
    locked: LockTimeoutError,
    storage: StorageError,
    run_id: InvalidRunIdError,
    type_: UnsupportedTypeError,
) -> None:
    ours: list[GraphkeepError] = [unknown_run, unknown_snapshot, locked, storage, run_id, type_]
    lookups: list[LookupError] = [unknown_run, unknown_snapshot]
    timeout: TimeoutError = locked
    os_error: OSError = storage
    value: ValueError = run_id
    wrong_type: TypeError = type_
    print(ours, lookups, timeout, os_error, value, wrong_type)
