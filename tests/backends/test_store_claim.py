"""Claiming: several workers share the runs of a store, and no two get the same one."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any, get_args

import anyio
import anyio.lowlevel
import pytest

from graphkeep import (
    CorruptSnapshotError,
    Graph,
    OwnershipLostError,
    RunInfo,
    RunOwnedError,
    SnapshotStatus,
    StatePersistence,
    Store,
    current_step,
    iter_or_resume,
    run_or_resume,
)
from graphkeep.claims import Commitment
from graphkeep.commit import Commit, Receipt, StatusChange
from graphkeep.runinfo import RunQuery
from graphkeep.status import CLAIM, START, SUCCEED, Transition
from tests.backends.stores import (
    ANSWER,
    STORES,
    Clock,
    Count,
    Persistence,
    Shelf,
    Tally,
    begin,
    count_up,
    finish,
    info,
    statuses,
    with_status,
)

pytestmark = pytest.mark.anyio

STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)
WORKERS, RUNS = 16, 200


async def test_kept_between_steps(shelf: Shelf):
    """A run that was claimed is its owner's from its first step to its last, and nobody's afterwards."""
    store = await shelf.open()
    await begin(store, 'run', steps=1)
    claimed = await store.claim()
    assert claimed is not None
    other = await shelf.open()
    async with iter_or_resume(count_up, persistence=claimed) as run:
        async for _ in run:
            if run.result is None:
                known = await info(other, 'run')
                assert known.owner is not None
                assert not known.resumable
                assert await other.claim() is None
                with pytest.raises(RunOwnedError):
                    await run_or_resume(count_up, persistence=other.run('run'))
    assert (await info(other, 'run')).owner is None


async def test_released_between_steps(shelf: Shelf):
    """A run that was claimed is anybody's again when it is left, or released, between two steps."""
    store = await shelf.open()
    await begin(store, 'run', steps=1)
    for leave in (True, False):
        claimed = await store.claim()
        assert claimed is not None
        async with iter_or_resume(count_up, persistence=claimed) as run:
            await run.next()
            if not leave:
                await claimed.release()
                assert (await info(store, 'run')).owner is None
        assert (await info(store, 'run')).owner is None
    assert (await run_or_resume(count_up, persistence=(await shelf.open()).run('run'))).output == ANSWER


async def fill(store: Store, runs: int) -> list[str]:
    """Store as many runs as there are to be claimed."""
    await begin(store, 'model', steps=1)
    data = await store.export('model')
    await store.delete('model')
    run_ids = [f'{number:03}' for number in range(runs)]
    for run_id in run_ids:
        await store.import_run(data, run_id=run_id)
    return run_ids


# ------------------------------------------------------------------------------------------------ what is got


@pytest.mark.parametrize('status', STATUSES)
async def test_what_can_be_claimed(store: Store, clock: Clock, status: SnapshotStatus):
    """A run that waits is handed out, and so is one whose owner is gone; no other."""
    holder = await with_status(store, 'run', status)
    run = await store.claim()
    assert (run is not None) == (status == 'created')
    del run
    clock.forward(31)
    run = await store.claim()
    assert (run is not None) == (status in ('created', 'pending', 'running'))
    if run is not None:
        assert run.run_id == 'run'
        assert await finish(run) == ANSWER
    assert (holder is not None) == (status in ('pending', 'running'))


async def test_retried(store: Store):
    """A failed run is handed out once somebody has asked for another attempt."""
    await with_status(store, 'run', 'error')
    assert await store.claim() is None
    await store.retry('run')
    run = await store.claim()
    assert run is not None
    assert await finish(run) == ANSWER


async def test_nothing(store: Store):
    """Where there is nothing to do nothing is handed out, and nothing is waited for."""
    assert await store.claim() is None
    await begin(store, 'run', steps=4)
    assert await store.claim() is None


async def test_filters(store: Store):
    """Only runs of that graph, or with that tag, are handed out."""
    await begin(store, 'a', tags=['x'])
    await begin(store, 'b', tags=['y'])
    await begin(store, 'c', tags=['x'], graph=Graph[Any, Any, Any](nodes=(Count,), name='other'))
    assert await store.claim(tag='z') is None
    assert await store.claim(graph='Count') is None
    runs = [
        await store.claim(tag='y'),
        await store.claim(graph='other', tag='x'),
        await store.claim(graph='other'),
        await store.claim(graph='count', tag='x'),
    ]
    assert [run and run.run_id for run in runs] == ['b', 'c', None, 'a']


@pytest.mark.parametrize('asked', [{'tag': ''}, {'tag': 5}, {'graph': 5}], ids=str)
async def test_wrong_filters(store: Store, asked: dict[str, Any]):
    """A filter that is none is refused."""
    with pytest.raises(ValueError, match='must be a text'):
        await store.claim(**asked)


async def test_longest_unchanged_first(store: Store, clock: Clock):
    """Runs that were unchanged the longest are handed out first, roughly: none waits for ever."""
    for number in range(40):
        await begin(store, f'{(number * 7) % 40:02}', tags=[str(number)])
        clock.forward(1)
    got: list[int] = []
    while (run := await store.claim()) is not None:
        (tag,) = (await info(store, run.run_id)).tags
        got.append(int(tag))
        await finish(run)
    assert sorted(got) == list(range(40))
    assert all(place >= number - 16 for place, number in enumerate(got))


@pytest.mark.parametrize('how', ['given back', 'left to its lease'])
async def test_what_nobody_can_run(shelf: Shelf, how: str):
    """However many runs cannot be gone on with, the others are handed out before long, whoever asks."""
    store = await shelf.open()
    (first, *_) = await fill(store, 1)
    gone = (await store.export(first)).replace(b'"node_id":"Count"', b'"node_id":"Gone"')
    await store.delete(first)
    for number in range(40):
        await store.import_run(gone, run_id=f'gone {number}')
    for number in range(5):
        shelf.clock.forward(1)
        await begin(store, f'good {number}')
    good = {f'good {number}' for number in range(5)}
    for _ in range(600):  # some hundred, but which of the oldest ones is chosen is left to chance
        shelf.clock.forward(1)
        run = await (await shelf.open()).claim()
        assert run is not None
        if run.run_id in good:
            assert await finish(run) == ANSWER
            good.remove(run.run_id)
            if not good:
                break
        elif how == 'given back':
            with pytest.raises(CorruptSnapshotError, match='Gone'):
                await finish(run)
        else:
            shelf.clock.forward(31)
    assert not good


# -------------------------------------------------------------------------------------------------- once each


async def test_many_tasks(store: Store):
    """However many tasks claim at once, each run is handed out once."""
    run_ids = await fill(store, RUNS)
    claimed: list[Persistence] = []

    async def work() -> None:
        while (run := await store.claim()) is not None:
            claimed.append(run)

    async with anyio.create_task_group() as tasks:
        for _ in range(WORKERS):
            tasks.start_soon(work)
    assert sorted(run.run_id for run in claimed) == run_ids
    assert await store.runs(status='created') == []


@pytest.mark.parametrize('name', list(STORES))
def test_many_threads(tmp_path: Path, name: str):
    """However many threads share the work, every run comes to its end and every node is run once."""
    store = STORES[name](tmp_path, Clock())
    run_ids = anyio.run(fill, store, RUNS // 4)
    ran: list[tuple[str, int]] = []
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(partial(anyio.run, finish_all), [store] * WORKERS, [ran] * WORKERS))
    assert Counter(ran) == Counter((run_id, number) for run_id in run_ids for number in ANSWER[1:])
    assert {run.status for run in anyio.run(partial(store.runs, limit=RUNS))} == {'success'}
    anyio.run(store.aclose)


async def finish_all(store: Store, ran: list[tuple[str, int]]) -> None:
    """Claim runs and finish them until there is none left."""

    async def note(number: int) -> None:
        ran.append((current_step().run_id, number))

    while (run := await store.claim()) is not None:
        with suppress(RunOwnedError):  # between two steps a run is anybody's: somebody else claimed it
            assert await finish(run, deps=note) == ANSWER


# ---------------------------------------------------------------------------------------- while it is claimed


@pytest.mark.both_backends
async def test_refused_to_others(shelf: Shelf):
    """A claimed run is refused to everybody else until it is released, with who has it and until when."""
    store, other = await shelf.open(), await shelf.open()
    await begin(store, 'run', steps=1)
    mine = await store.claim()
    assert mine is not None
    assert await other.claim() is None
    for attempt in (
        partial(finish, other.run('run')),
        partial(other.recover, 'run'),
        partial(other.retry, 'run'),
        partial(other.delete, 'run'),
    ):
        with pytest.raises(RunOwnedError) as refused:
            await attempt()
        assert refused.value.owner == (await info(other, 'run')).owner
        assert refused.value.until == shelf.clock() + timedelta(seconds=30)
    assert await statuses(store, 'run') == ['success', 'pending']
    await mine.release()
    its = await other.claim()
    assert its is not None
    with pytest.raises(RunOwnedError):
        await finish(mine)
    assert await finish(its) == ANSWER
    assert await finish(mine) == ANSWER  # what was recorded


@pytest.mark.both_backends
async def test_goes_on_with_that_very_claim(store: Store):
    """What goes on with a claimed run takes nothing anew: the node is started by who claimed it."""
    await begin(store, 'run', steps=3)
    run = await store.claim()
    assert run is not None
    fence = run._claims.fence

    async def look(number: int) -> None:
        assert run is not None
        assert run._claims.fence == fence
        assert (await info(store, 'run')).owner == run._claims.owner

    assert await finish(run, deps=look) == ANSWER
    (step,) = [record for record in await store.history('run') if record.seq == 4]
    assert (step.attempt, [attempt.outcome for attempt in step.attempts]) == (1, ['success'])


@pytest.mark.parametrize('how', ['iter_or_resume', 'iter_from_persistence', 'with a first node'])
async def test_other_ways_to_go_on(store: Store, how: str):
    """Whichever call goes on with a claimed run begins at the claimed node."""
    await begin(store, 'run', steps=2)
    run = await store.claim()
    assert run is not None
    if how == 'with a first node':
        result = await run_or_resume(count_up, Count(), state=Tally(), persistence=run)
        assert result.output == ANSWER
        return
    opening = iter_or_resume if how == 'iter_or_resume' else type(count_up).iter_from_persistence
    async with opening(count_up, persistence=run) as running:
        assert running.next_node == Count(3)
        async for _ in running:
            pass
    assert await statuses(store, 'run') == ['success'] * 5


async def test_left_before_its_node_ran(store: Store):
    """A claimed run that is opened and left gives its node back."""
    await begin(store, 'run', steps=1)
    run = await store.claim()
    assert run is not None
    async with iter_or_resume(count_up, persistence=run):
        assert await statuses(store, 'run') == ['success', 'pending']
    assert await statuses(store, 'run') == ['success', 'created']


async def test_its_node_raises(store: Store):
    """A claimed run whose node raises has failed, and is nobody's."""
    await begin(store, 'run', steps=1)
    run = await store.claim()
    assert run is not None

    async def bad_luck(number: int) -> None:
        raise ValueError('bad luck')

    with pytest.raises(ValueError, match='bad luck'):
        await finish(run, deps=bad_luck)
    told = await info(store, 'run')
    assert (told.status, told.owner, told.resumable) == ('error', None, False)


async def test_dropped(store: Store):
    """A claim ends with the object that has it, and the run is handed out again."""
    await begin(store, 'run', steps=1)
    run = await store.claim()
    owner = (await info(store, 'run')).owner
    assert run is not None
    assert owner is not None
    if not owner.domain:
        pytest.skip('this platform does not tell which processes there are')
    assert await store.claim() is None
    del run
    gc.collect()
    run = await store.claim()
    assert run is not None
    assert await finish(run) == ANSWER


async def test_lost(store: Store, clock: Clock):
    """Who lets the lease of a claim run out is refused, and whoever claimed the run then is not hurt."""
    await begin(store, 'run', steps=1)
    late = await store.claim()
    assert late is not None
    clock.forward(31)
    its = await store.claim()
    assert its is not None
    with pytest.raises((OwnershipLostError, RunOwnedError)):
        await finish(late)
    await late.release()
    assert await statuses(store, 'run') == ['success', 'pending']
    assert await finish(its) == ANSWER


@pytest.mark.both_backends
async def test_cancelled(store: Store):
    """A worker that is cancelled wherever it is leaves nothing in hand."""
    await fill(store, 5)
    for checkpoint in range(30):
        with anyio.CancelScope() as scope:
            left = checkpoint

            async def count_down(number: int) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    scope.cancel()
                await anyio.lowlevel.checkpoint()

            run = await store.claim()
            if run is not None:
                await finish(run, deps=count_down)
        assert await store.runs(status=['pending', 'running']) == []
    assert {run.status for run in await store.runs()} <= {'created', 'success'}


@pytest.mark.both_backends
async def test_cancelled_while_it_claims(store: Store):
    """Who is cancelled while it claims has the run or does not; no run is in the hands of nobody."""
    await fill(store, 3)
    for patience in range(25):
        got: list[Persistence] = []

        async def claim(got: list[Persistence] = got) -> None:
            run = await store.claim()
            assert run is not None
            got.append(run)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(claim)
            for _ in range(patience):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert [run.id for run in await store.runs(status='pending')] == [run.run_id for run in got]
        for run in got:
            await run.release()


# ------------------------------------------------------------------------------------- what stands in the way


async def test_somebody_is_always_faster(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Who finds every run taken by the time looks again, and gets one that is left."""
    for number in range(20):
        await begin(store, f'{number:02}')
    listing: Callable[[RunQuery], list[RunInfo]] = store._list
    taken: list[Persistence] = []

    def slow(query: RunQuery) -> list[RunInfo]:
        found = listing(query)
        for one in found if not taken else ():
            run = store.run(one.id)
            (row,) = run._backend.tail().rows
            run._backend.write(Commitment(run._claims, Commit([StatusChange(row.record.id, CLAIM)])))
            taken.append(run)
        return found

    monkeypatch.setattr(store, '_list', slow)
    run = await store.claim()
    assert run is not None
    assert run.run_id not in {other.run_id for other in taken}
    assert len(taken) == 16


async def test_what_only_looks_resumable(store: Store, monkeypatch: pytest.MonkeyPatch):
    """A run that is listed as resumable and has no node to go on with is not asked for ever and ever."""
    await begin(store, 'run', steps=4)
    told = await info(store, 'run')

    def listing(query: RunQuery) -> list[RunInfo]:
        return [replace(told, resumable=True)]

    monkeypatch.setattr(store, '_list', listing)
    assert await store.claim() is None


async def test_deleted_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch):
    """A run that is deleted between the look and the claim is no run any more, and no error."""
    await begin(store, 'run')
    told = await info(store, 'run')
    await store.delete('run')

    def listing(query: RunQuery) -> list[RunInfo]:
        return [told]

    monkeypatch.setattr(store, '_list', listing)
    assert await store.claim() is None


async def test_begun_again(store: Store):
    """A run that has ended, and was begun again under its id, is to be had like any other, until it ends."""
    await begin(store, 'run')
    assert await finish(store.run('run')) == ANSWER
    assert await store.claim() is None
    await begin(store, 'run')
    assert (await info(store, 'run')).resumable
    claimed = await store.claim()
    assert claimed is not None
    assert await store.claim() is None
    assert await finish(claimed) == ANSWER
    assert await store.claim() is None
    assert await statuses(store, 'run') == ['success'] * 10


@pytest.mark.parametrize('claims', [True, False])
@pytest.mark.parametrize('number', [1, 2, 3])
@pytest.mark.parametrize('transition', [START, SUCCEED], ids=lambda transition: transition.name)
async def test_interrupted_unawares(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, claims: bool, number: int, transition: Transition
):
    """An interrupt after a start or an end is stored, and before that is known, leaves nothing in hand."""
    store = await shelf.open()
    await begin(store, 'run')
    persistence = await store.claim() if claims else store.run('run')
    assert persistence is not None
    settle, starts = Commitment.settle, list[Commitment]()

    def interrupt(turn: Commitment, receipt: Receipt) -> None:
        if any(change.transition is transition for change in turn.commit.changes):
            starts.append(turn)
            if len(starts) == number:
                raise KeyboardInterrupt
        settle(turn, receipt)

    monkeypatch.setattr(Commitment, 'settle', interrupt)
    with pytest.raises(KeyboardInterrupt):
        await finish(persistence)
    monkeypatch.undo()
    # it was released, whatever its instance knows of it, and that goes on as well as any other
    assert (await info(store, 'run')).status == 'created'
    other = await store.claim()
    assert other is not None
    await other.release()
    assert await finish(persistence) == ANSWER


async def test_interrupted_between_the_two(store: Store, monkeypatch: pytest.MonkeyPatch):
    """An interrupt after a node has returned, and before its next is recorded, has the node run again."""
    await begin(store, 'run')
    append, calls = StatePersistence._append, list[object]()

    async def interrupted(persistence: StatePersistence[Any, Any], snapshot: Any) -> None:
        calls.append(snapshot)
        if len(calls) == 2:
            raise KeyboardInterrupt
        await append(persistence, snapshot)

    monkeypatch.setattr(StatePersistence, '_append', interrupted)
    with pytest.raises(KeyboardInterrupt):
        await finish(store.run('run'))
    monkeypatch.undo()
    assert await statuses(store, 'run') == ['success', 'created']
    *_, record = await store.history('run')
    assert [(one.outcome, one.reason) for one in record.attempts] == [
        ('released', 'interrupted by KeyboardInterrupt')
    ]
    assert await finish(store.run('run')) == ANSWER


@pytest.mark.parametrize('way', ['Store.claim', 'claim', 'load_next'])
async def test_interrupted_while_claiming(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, way: str):
    """An interrupt after a claim is stored, and before that is known, leaves nothing in hand."""
    store = await shelf.open()
    await begin(store, 'run')
    persistence = store.run('run')
    persistence.set_graph_types(count_up)

    def interrupt(turn: Commitment, receipt: Receipt) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Commitment, 'settle', interrupt)
    calls = {'Store.claim': store.claim, 'claim': persistence.claim, 'load_next': persistence.load_next}
    with pytest.raises(KeyboardInterrupt):
        await calls[way]()
    found = await info(store, 'run')
    assert (found.status, found.owner) == ('created', None)
    assert await finish(persistence) == ANSWER


async def test_left_while_renewed(store: Store):
    """A run that is released while its lease is renewed, or by who is cancelled, is given up all the same."""
    for cancelled in (False, True):
        await begin(store, f'{cancelled}')
        persistence = await store.claim()
        assert persistence is not None
        persistence.set_graph_types(count_up)
        async with persistence.record_run((await persistence.load_history())[0].id):
            pass
        await persistence.snapshot_node(Tally(), Count())
        persistence._claims.mutex.acquire()
        Timer(0.1, persistence._claims.mutex.release).start()
        with anyio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            await persistence.release()
        found = await info(store, f'{cancelled}')
        assert (found.status, found.owner) == ('created', None)
        assert await store.delete(f'{cancelled}')


async def test_closed_late(shelf: Shelf):
    """A generator that is closed while another task goes on with the run takes nothing from that."""
    store = await shelf.open()
    await begin(store, 'run')
    persistence = store.run('run')
    persistence.set_graph_types(count_up)
    snapshot = await persistence.load_next()
    assert snapshot is not None
    async with persistence.record_run(snapshot.id):
        await persistence.make_certain(GeneratorExit())
        await persistence.make_certain(ValueError())
        assert (await info(store, 'run')).status == 'running'
    await persistence.snapshot_node(Tally(), Count())
    assert await statuses(store, 'run') == ['success', 'created']
