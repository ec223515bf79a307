"""Forking: a run that begins like another one and goes on by itself."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, get_args

import anyio
import pytest

from graphkeep import (
    InvalidRunIdError,
    RunExistsError,
    RunFinishedError,
    SnapshotStatus,
    Store,
    UnknownRunError,
    UnknownSnapshotError,
)
from tests.backends.stores import (
    ANSWER,
    Clock,
    Shelf,
    again,
    begin,
    fail,
    finish,
    in_hand,
    info,
    keys,
    nowhere,
    statuses,
    with_status,
)

pytestmark = pytest.mark.anyio

STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)


@pytest.mark.both_backends
@pytest.mark.parametrize('at', [1, 2, 3, 4])
async def test_at_a_number(store: Store, clock: Clock, at: int):
    """A fork has what came before that snapshot, runs it again, and comes to a result of its own."""
    await begin(store, 'run', steps=4, tags=['x'])
    before = await store.history('run')
    clock.forward(60)
    forked = await store.fork('run', into='new', at=at)
    assert forked.run_id == 'new'
    told = await info(store, 'new')
    assert (told.status, told.steps, told.resumable) == ('created', at, True)
    assert (told.parent, told.tags, told.graph) == (('run', at), ('x',), 'count')
    assert told.created == told.updated == clock()
    copied = await store.history('new')
    assert copied[:-1] == before[: at - 1]
    assert (copied[-1].attempt, copied[-1].attempts, copied[-1].start_ts) == (0, (), None)
    assert await finish(forked) == ANSWER
    assert await statuses(store, 'new') == ['success'] * 5
    assert await store.history('run') == before


async def test_at_an_id(store: Store):
    """A fork begins at the snapshot with that id."""
    await begin(store, 'run', steps=4)
    record = (await store.history('run'))[1]
    await store.fork('run', into='new', at=record.id)
    assert (await info(store, 'new')).parent == ('run', 2)


async def test_at_a_recurring_id(store: Store):
    """Of several snapshots with one id the newest is meant; a number tells each of them apart."""
    await begin(store, 'run', steps=3, graph=again)
    (one, two, three, _) = await store.history('run')
    assert one.id == two.id == three.id
    await store.fork('run', into='by id', at=one.id)
    assert (await info(store, 'by id')).parent == ('run', 3)
    await store.fork('run', into='by number', at=2)
    assert await statuses(store, 'by number') == ['success', 'created']
    for run_id in ('by id', 'by number'):
        assert await finish(store.run(run_id), graph=again) == [1, 2, 3]
        assert len(await store.history(run_id)) == 4


@pytest.mark.parametrize('status', STATUSES)
async def test_at_the_newest(store: Store, status: SnapshotStatus):
    """By default a fork begins at the newest snapshot, which is free in it, whoever has it in the source."""
    holder = await with_status(store, 'run', status)
    before = await store.history('run')
    await store.fork('run', into='new')
    told = await info(store, 'new')
    assert told.status == ('success' if status == 'success' else 'created')
    assert (told.owner, told.error) == (None, None)
    assert await finish(store.run('new')) == ANSWER
    assert await store.history('run') == before
    assert (holder is not None) == (status in ('pending', 'running'))


async def test_at_an_end(store: Store):
    """A fork at the end of a run has ended too, with the same result."""
    await begin(store, 'run', steps=4)
    await store.fork('run', into='new', at=5)
    assert await store.history('new') == await store.history('run')
    assert await finish(store.run('new')) == ANSWER
    with pytest.raises(RunFinishedError):
        await store.retry('new')


async def test_at_a_failed_node(store: Store):
    """A fork at a node that raised runs it anew, without the errors of the source."""
    await begin(store, 'run')
    await fail(store, 'run', at=3)
    await store.fork('run', into='new', at=3)
    assert await finish(store.run('new')) == ANSWER
    assert [record.error for record in await store.history('new')] == [None] * 5
    told = await info(store, 'run')
    assert (told.status, told.error and told.error.message) == ('error', 'bad luck')


@pytest.mark.parametrize('at', [0, -1, 6, 10**30, 'unknown', '1', '%', '\ud800'])
async def test_unknown_snapshot(store: Store, at: int | str):
    """A snapshot that the run does not have is refused by name, and nothing is made."""
    await begin(store, 'run', steps=4)
    with pytest.raises(UnknownSnapshotError, match=re.escape(repr(str(at)))):
        await store.fork('run', into='new', at=at)
    assert await nowhere(store, 'new')


@pytest.mark.parametrize('at', [True, 1.0, b'1', [1]])
async def test_what_names_no_snapshot(store: Store, at: Any):
    """What is neither an id nor a number is refused, and nothing is made."""
    await begin(store, 'run', steps=4)
    with pytest.raises(ValueError, match='at must be the id or the number of a snapshot, got'):
        await store.fork('run', into='new', at=at)
    assert await nowhere(store, 'new')


async def test_into_an_existing_run(store: Store):
    """A run is never written over: neither another one nor itself, whatever its status."""
    await begin(store, 'run', steps=2)
    for status in STATUSES:
        holder = await with_status(store, status, status)
        before = await store.history(status), await info(store, status)
        with pytest.raises(RunExistsError, match=f"'{status}'"):
            await store.fork('run', into=status)
        assert (await store.history(status), await info(store, status)) == before
        del holder
    with pytest.raises(RunExistsError):
        await store.fork('run', into='run', at=1)
    assert await finish(store.run('run')) == ANSWER


async def test_unknown_run(store: Store):
    """Neither a run that is not there is forked, nor one into an id that no run can have."""
    with pytest.raises(UnknownRunError):
        await store.fork('run', into='new')
    with pytest.raises(InvalidRunIdError):
        await store.fork('run', into='../new')
    assert await store.runs() == []


@pytest.mark.both_backends
async def test_at_once(store: Store):
    """Of many forks into one run exactly one is made, whole; the others are told that it is there."""
    await begin(store, 'run', steps=4)
    outcomes: list[str] = []

    async def fork(at: int) -> None:
        try:
            await store.fork('run', into='new', at=at)
        except RunExistsError:
            outcomes.append('there')
        else:
            outcomes.append(f'forked at {at}')

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(fork, number % 4 + 1)
    (made,) = set(outcomes) - {'there'}
    assert len(outcomes) == 12
    assert outcomes.count('there') == 11
    assert made == f'forked at {(await info(store, "new")).steps}'
    assert await finish(store.run('new')) == ANSWER


@pytest.mark.both_backends
async def test_both_go_on(shelf: Shelf):
    """Source and fork go on independently, with keys of their own for what their nodes do outside."""
    store = await shelf.open()
    await begin(store, 'run', steps=2)
    forked = await store.fork('run', into='new', at=2)
    source = await in_hand(store, 'run')
    assert await finish(forked) == ANSWER
    await source.release()
    assert await finish(store.run('run')) == ANSWER
    mine, its = await keys(store, 'run'), await keys(store, 'new')
    assert mine[0] == its[0]  # the first node was run before the fork, and not again
    assert not set(mine[1:]) & set(its[1:])
    for number, run_id in enumerate(('new', 'run')):
        assert [record.seq for record in await (await shelf.open()).history(run_id)] == [1, 2, 3, 4, 5], (
            number
        )


@pytest.mark.parametrize('how', ['deleted', 'pruned', 'trimmed', 'made anew'])
async def test_what_becomes_of_the_source(shelf: Shelf, how: str):
    """Whatever becomes of the source, the fork has all it needs, and still says where it came from."""
    store = await shelf.open()
    await begin(store, 'run', steps=4 if how == 'pruned' else 3)
    await store.fork('run', into='new', at=3)
    before = await store.history('new')
    shelf.clock.forward(days=1)
    if how in ('deleted', 'made anew'):
        assert await store.delete('run')
    else:
        pruned = await store.prune(older_than=timedelta(hours=1), only_finished=how == 'pruned')
        # the fork, which waits, loses nothing unless it was asked for
        assert pruned == ((0, 3) if how == 'trimmed' else (1, 0))
    if how == 'made anew':
        await begin(store, 'run', graph=again)
    again_opened = await shelf.open()
    assert await again_opened.history('new') == (before[1:] if how == 'trimmed' else before)
    assert (await info(again_opened, 'new')).parent == ('run', 3)
    assert await finish(again_opened.run('new')) == ANSWER


async def test_fork_of_a_fork(store: Store):
    """A fork is a run like any other: it can be forked, and names the run that it came from."""
    await begin(store, 'a', steps=3)
    await store.fork('a', into='b', at=3)
    await store.fork('b', into='c', at=2)
    await store.delete('a')
    await store.delete('b')
    assert (await info(store, 'c')).parent == ('b', 2)
    assert await finish(store.run('c')) == ANSWER


async def test_fork_of_a_pruned_run(store: Store, clock: Clock):
    """Of a run that was pruned, what is left can be forked, under the numbers that it has."""
    await begin(store, 'run', steps=3)
    clock.forward(days=1)
    assert await store.prune(older_than=timedelta(hours=1), only_finished=False) == (0, 2)
    with pytest.raises(UnknownSnapshotError):
        await store.fork('run', into='new', at=2)
    await store.fork('run', into='new', at=3)
    assert [record.seq for record in await store.history('new')] == [3]
    assert await finish(store.run('new')) == ANSWER
    assert [record.seq for record in await store.history('new')] == [3, 4, 5]
