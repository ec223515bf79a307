"""Looking into a run, recovering, retrying and deleting it."""

from __future__ import annotations

import gc
from typing import get_args

import anyio
import pytest

from graphkeep import (
    OwnershipLostError,
    RunFinishedError,
    RunOwnedError,
    SnapshotStatus,
    SnapshotStatusError,
    Store,
    UnknownRunError,
    run_or_resume,
)
from graphkeep.commit import Commit, StatusChange
from graphkeep.status import RETRY, SUCCEED
from tests.backends.stores import (
    ANSWER,
    Clock,
    Count,
    Persistence,
    Shelf,
    Tally,
    begin,
    count_up,
    fail,
    finish,
    in_hand,
    info,
    nowhere,
    statuses,
    with_status,
)

pytestmark = pytest.mark.anyio

STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)


async def abandoned(store: Store, clock: Clock, run_id: str, status: SnapshotStatus = 'running') -> None:
    """Leave a run in the hands of somebody who is gone: in this process, and its lease has run out too."""
    await begin(store, run_id, steps=1)
    persistence = await in_hand(store, run_id, status)
    clock.forward(31)
    del persistence
    gc.collect()


# -------------------------------------------------------------------------------------------------- history


async def test_history(shelf: Shelf):
    """The history has every snapshot with its attempts, their errors and owners, whoever asks."""
    store = await shelf.open()
    await begin(store, 'run', steps=1)
    for message in ('first', 'second'):
        await fail(store, 'run', at=2, message=message)
        await store.retry('run')
    await abandoned_attempt(store, shelf.clock)
    await finish(store.run('run'))
    history = await (await shelf.open()).history('run')
    assert [record.seq for record in history] == [1, 2, 3, 4, 5]
    assert [record.status for record in history] == ['success'] * 5
    second = history[1]
    assert second.attempt == 4
    assert [attempt.outcome for attempt in second.attempts] == ['error', 'error', 'recovered', 'success']
    assert [attempt.error and attempt.error.message for attempt in second.attempts[:2]] == ['first', 'second']
    assert all(attempt.owner and attempt.owner.startswith('process ') for attempt in second.attempts)
    assert second.attempts[2].reason is not None
    assert second.attempts[2].reason.endswith('is gone')
    assert (history[4].kind, history[4].attempts) == ('end', ())


async def abandoned_attempt(store: Store, clock: Clock) -> None:
    """Begin an attempt at the next node and vanish."""
    persistence = await in_hand(store, 'run')
    clock.forward(31)
    del persistence
    gc.collect()


async def test_history_of_a_running_run(store: Store):
    """What is in hand is in the history, with who has it."""
    holder = await with_status(store, 'run', 'running')
    *_, last = await store.history('run')
    assert (last.status, last.attempt) == ('running', 1)
    assert last.owner == str((await info(store, 'run')).owner)
    assert holder is not None


# -------------------------------------------------------------------------------------------------- recover


@pytest.mark.both_backends
@pytest.mark.parametrize('status', ['pending', 'running'])
async def test_recover(store: Store, clock: Clock, status: SnapshotStatus):
    """What a gone owner had in hand is given back, once; the run then goes on to its right result."""
    await abandoned(store, clock, 'run', status)
    assert await store.recover('run') == 1
    told = await info(store, 'run')
    assert (told.status, told.owner, told.resumable) == ('created', None, True)
    assert await store.recover('run') == 0
    assert await finish(store.run('run')) == ANSWER


@pytest.mark.parametrize('status', ['pending', 'running'])
async def test_recover_of_a_living_owner(store: Store, status: SnapshotStatus):
    """What a living owner has in hand is not taken from it."""
    holder = await with_status(store, 'run', status)
    with pytest.raises(RunOwnedError):
        await store.recover('run')
    assert await statuses(store, 'run') == ['success', status]
    assert holder is not None


@pytest.mark.parametrize('status', ['created', 'error', 'success'])
async def test_recover_with_nothing_in_hand(store: Store, status: SnapshotStatus):
    """Where nobody has anything in hand there is nothing to recover."""
    await with_status(store, 'run', status)
    before = await store.history('run')
    assert await store.recover('run') == 0
    assert await store.history('run') == before


@pytest.mark.both_backends
async def test_recover_at_once(store: Store, clock: Clock):
    """Of many that recover a run at once one does, and the others find nothing left to do."""
    await abandoned(store, clock, 'run')
    recovered: list[int] = []

    async def recover() -> None:
        recovered.append(await store.recover('run'))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(recover)
    assert sorted(recovered) == [0] * 9 + [1]


@pytest.mark.both_backends
async def test_recover_all(store: Store, clock: Clock):
    """Every run whose owner is gone is recovered, and nothing else is touched."""
    for number in range(5):
        await abandoned(store, clock, f'gone {number}', 'pending' if number % 2 else 'running')
    holders = [await with_status(store, status, status) for status in STATUSES]
    before = [await store.history(status) for status in STATUSES]
    assert await store.recover_all() == 5
    assert await store.recover_all() == 0
    assert [await statuses(store, f'gone {number}') for number in range(5)] == [['success', 'created']] * 5
    assert [await store.history(status) for status in STATUSES] == before
    assert len(holders) == 5


async def test_recover_all_of_many(store: Store, clock: Clock):
    """More runs than one page holds are recovered too."""
    holders: list[Persistence] = []
    for number in range(102):
        await begin(store, f'{number:03}')
        holders.append(await in_hand(store, f'{number:03}', 'pending'))
    assert await store.recover_all() == 0
    clock.forward(31)
    assert await store.recover_all() == 102
    with pytest.raises(OwnershipLostError):
        await holders[0]._commit(Commit(changes=[StatusChange((await first(store, '000')), SUCCEED)]))


async def first(store: Store, run_id: str) -> str:
    """Return the id of the run's first snapshot."""
    return (await store.history(run_id))[0].id


# ---------------------------------------------------------------------------------------------------- retry

REFUSED: dict[str, type[Exception]] = {
    'created': SnapshotStatusError,
    'pending': RunOwnedError,
    'running': RunOwnedError,
    'success': RunFinishedError,
}


@pytest.mark.parametrize('status', STATUSES)
async def test_retry(store: Store, status: SnapshotStatus):
    """A failed run gets another attempt; any other is refused one, with the reason, and left as it is."""
    holder = await with_status(store, 'run', status)
    before = await store.history('run')
    if status == 'error':
        await store.retry('run')
        assert await statuses(store, 'run') == ['success', 'created']
        assert await finish(store.run('run')) == ANSWER
    else:
        with pytest.raises(REFUSED[status], match="'run'"):
            await store.retry('run')
        assert await store.history('run') == before
    assert (holder is not None) == (status in ('pending', 'running'))


async def test_retry_at_once(store: Store):
    """Of many that ask for another attempt at once one gets it, and the others are told that it is there."""
    await with_status(store, 'run', 'error')
    outcomes: list[object] = []

    async def retry() -> None:
        try:
            outcomes.append(await store.retry('run'))
        except SnapshotStatusError as exc:
            outcomes.append((exc.found, exc.expected == RETRY.sources))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(retry)
    assert sorted(outcomes, key=str) == [('created', True)] * 9 + [None]


# --------------------------------------------------------------------------------------------------- delete


@pytest.mark.parametrize('status', ['created', 'error', 'success'])
async def test_delete(shelf: Shelf, status: SnapshotStatus):
    """A run that nobody has in hand is deleted whole; its id is as good as new, and others are untouched."""
    store = await shelf.open()
    await with_status(store, 'other', 'created')
    await with_status(store, 'run', status)
    assert await store.delete('run') is True
    assert await store.delete('run') is False
    assert await nowhere(store, 'run')
    with pytest.raises(UnknownRunError):
        await (await shelf.open()).history('run')
    await begin(store, 'run', tags=['new'])
    told = await info(store, 'run')
    assert (told.steps, told.tags, told.error) == (1, ('new',), None)
    assert await finish(store.run('run')) == ANSWER
    assert await finish(store.run('other')) == ANSWER


@pytest.mark.both_backends
@pytest.mark.parametrize('status', ['pending', 'running'])
async def test_delete_an_owned_run(store: Store, clock: Clock, status: SnapshotStatus):
    """A run is not deleted while a living owner has it in hand, but is once that is gone."""
    holder = await with_status(store, 'run', status)
    with pytest.raises(RunOwnedError):
        await store.delete('run')
    assert await statuses(store, 'run') == ['success', status]
    clock.forward(31)
    assert await store.delete('run')
    assert await nowhere(store, 'run')
    assert holder is not None


async def test_delete_nothing(store: Store):
    """Deleting what is not there says so and leaves no trace."""
    assert await store.delete('run') is False
    assert await store.runs() == []


async def test_deleted_while_somebody_waits(store: Store):
    """Whoever has a run open that was deleted is told that there is none; it does not come back by itself."""
    await begin(store, 'run', steps=1)
    waiting = store.run('run')
    assert len(await waiting.load_history()) == 2
    await store.delete('run')
    with pytest.raises(UnknownRunError):
        await finish(waiting)
    assert await waiting.load_history() == []
    assert await store.runs() == []
    started = await run_or_resume(count_up, Count(), state=Tally(), persistence=waiting)
    assert started.output == ANSWER


@pytest.mark.both_backends
async def test_deleted_under_a_stale_owner(store: Store, clock: Clock):
    """An owner whose run was deleted after its lease ran out is refused what it writes then."""
    stale = await with_status(store, 'run', 'running')
    assert stale is not None
    stale.set_graph_types(count_up)
    clock.forward(31)
    await store.delete('run')
    with pytest.raises(OwnershipLostError):
        await stale.snapshot_node(Tally(), Count())
    assert await nowhere(store, 'run')


@pytest.mark.both_backends
async def test_a_fence_of_another_life(store: Store, clock: Clock):
    """The owner of a run that was deleted is not taken for the one of its copy, though all numbers agree."""
    await begin(store, 'run', steps=1)
    copy = await store.export('run')
    stale = await in_hand(store, 'run')
    clock.forward(31)
    await store.delete('run')
    await store.import_run(copy, run_id='run')
    owner = await in_hand(store, 'run')
    while owner._claims.fence != stale._claims.fence:
        await owner.release()
        owner = await in_hand(store, 'run')
    _, record = await store.history('run')
    with pytest.raises(OwnershipLostError):
        await stale._commit(Commit(changes=[StatusChange(record.id, SUCCEED)]))
    assert await statuses(store, 'run') == ['success', 'running']
    assert (await info(store, 'run')).owner == owner._claims.owner
