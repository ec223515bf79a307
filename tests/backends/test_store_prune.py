"""Pruning: what it takes, what it never takes, and that what is left goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, get_args

import pytest

from graphkeep import Pruned, SnapshotStatus, Step, Store, current_step
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
HOUR = timedelta(hours=1)


async def there(store: Store) -> list[str]:
    """Return the ids of all runs."""
    return [run.id for run in await store.runs(limit=10_000)]


@pytest.mark.both_backends
async def test_older_than(store: Store, clock: Clock):
    """Finished runs that ended longer ago are deleted, later ones kept; a moment may be given instead."""
    await begin(store, 'a', steps=4)
    clock.forward(hours=2)
    await begin(store, 'b', steps=4)
    clock.forward(hours=2)
    await begin(store, 'c', steps=4)
    clock.forward(minutes=30)
    assert await store.prune(older_than=3 * HOUR) == Pruned(runs=1, snapshots=0)
    assert await there(store) == ['b', 'c']
    assert await store.prune(older_than=3 * HOUR) == Pruned(0, 0)
    moment = clock() - HOUR
    assert await store.prune(older_than=moment.astimezone(None)) == Pruned(1, 0)
    assert await there(store) == ['c']
    assert await store.prune(older_than=timedelta(0)) == Pruned(1, 0)
    assert await there(store) == []


@pytest.mark.parametrize('only_finished', [True, False])
async def test_only_what_has_ended(store: Store, clock: Clock, only_finished: bool):
    """Whatever has not ended is kept, however long nothing has happened to it."""
    holders = [await with_status(store, status, status) for status in STATUSES]
    infos = {run.id: run for run in await store.runs()}
    clock.forward(seconds=20)  # the leases go on
    pruned = await store.prune(older_than=timedelta(seconds=10), only_finished=only_finished)
    # what comes next and the newest step that was begun are kept: in two of the four these are one
    assert pruned == Pruned(1, 0 if only_finished else 2)
    assert await nowhere(store, 'success')
    for status in ('created', 'pending', 'running', 'error'):
        # how long a step took in truth, the clock that stands still does not know
        assert replace(await info(store, status), updated=None) == replace(infos[status], updated=None)
        begun = status in ('running', 'error')
        assert await statuses(store, status) == ['success', status][begun and not only_finished :]
    assert len(holders) == 5


@pytest.mark.parametrize('keep_last, left', [(0, []), (1, ['c']), (2, ['b', 'c']), (3, None), (10**30, None)])
async def test_keep_last(store: Store, clock: Clock, keep_last: int, left: list[str] | None):
    """So many of the finished runs are kept whatever their age: the ones that ended last."""
    for run_id in ('c', 'a', 'b'):
        await begin(store, run_id, steps=3)
    await begin(store, 'waiting', steps=1)
    for run_id in ('a', 'b', 'c'):
        clock.forward(hours=1)
        await finish(store.run(run_id))
    clock.forward(days=1)
    left = ['a', 'b', 'c'] if left is None else left
    assert await store.prune(older_than=HOUR, keep_last=keep_last) == (3 - len(left), 0)
    assert await there(store) == [*left, 'waiting']


async def test_keep_last_counts_the_young(store: Store, clock: Clock):
    """Runs that are too young to be deleted count among the last ones."""
    await begin(store, 'old', steps=4)
    clock.forward(days=1)
    await begin(store, 'new', steps=4)
    assert await store.prune(older_than=HOUR, keep_last=1) == (1, 0)
    assert await there(store) == ['new']


async def test_many(store: Store, clock: Clock):
    """More runs than one page holds are deleted too."""
    await begin(store, 'model', steps=4)
    ended = await store.export('model')
    for number in range(120):
        await store.import_run(ended, run_id=f'{number:03}')
    clock.forward(days=1)
    assert await store.prune(older_than=HOUR, keep_last=1) == (120, 0)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({'older_than': datetime(2026, 1, 1)}, 'older_than must be an aware time or a timedelta'),
    ({'older_than': date(2026, 1, 1)}, 'older_than must be an aware time or a timedelta'),
    ({'older_than': 5}, 'older_than must be an aware time or a timedelta'),
    ({'older_than': HOUR, 'keep_last': -1}, 'keep_last must be .*-1'),
    ({'older_than': HOUR, 'keep_last': True}, 'keep_last must be .*True'),
    ({'older_than': HOUR, 'keep_last': '5'}, "keep_last must be .*'5'"),
    ({'older_than': HOUR, 'keep_last': None}, 'keep_last must be .*None'),
]


@pytest.mark.parametrize('asked, message', WRONG, ids=lambda value: str(value)[:50])
async def test_wrong_options(store: Store, clock: Clock, asked: dict[str, Any], message: str):
    """What is no age and no number is refused, and nothing is deleted."""
    await begin(store, 'run', steps=4)
    clock.forward(days=1000)
    with pytest.raises(ValueError, match=message):
        await store.prune(**asked)
    assert await there(store) == ['run']


@pytest.mark.parametrize('older_than', [timedelta.max, datetime.min.replace(tzinfo=UTC)])
async def test_endless_age(store: Store, older_than: Any):
    """Nothing is as old as all that."""
    await begin(store, 'run', steps=4)
    assert await store.prune(older_than=older_than, only_finished=False) == (0, 0)


async def test_another_run_by_now(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """A run that took the place of a finished one after that was found is not deleted in its stead."""
    await begin(store, 'run', steps=4)
    clock.forward(days=1)
    deleting = store._delete

    def too_late(run_id: str, ended_before: datetime | None = None) -> bool:
        # the other one was deleted, and its id given to this one, between the look and this moment
        assert deleting(run_id)
        assert store._insert(run_id, *waiting)
        return deleting(run_id, ended_before)

    await begin(store, 'model', steps=1)
    waiting = store._rows('model')
    monkeypatch.setattr(store, '_delete', too_late)
    assert await store.prune(older_than=HOUR) == (0, 0)
    assert await finish(store.run('run')) == ANSWER


# ------------------------------------------------------------------------ what unfinished runs have gone past


@pytest.mark.both_backends
@pytest.mark.parametrize('steps', [0, 1, 2, 3])
async def test_trim(shelf: Shelf, steps: int):
    """An unfinished run loses what it has gone past, and goes on to the same result under the same keys."""
    store = await shelf.open()
    await begin(store, 'run', steps=steps)
    before = await store.history('run')
    shelf.clock.forward(days=1)
    gone = max(steps - 1, 0)  # all but what comes next and the newest step that was begun
    assert await store.prune(older_than=HOUR, only_finished=False) == (0, gone)
    assert await store.history('run') == before[gone:]
    assert await store.prune(older_than=HOUR, only_finished=False) == (0, 0)
    assert (await info(store, 'run')).steps == steps + 1
    store = await shelf.open()
    assert await finish(store.run('run')) == ANSWER
    history = await store.history('run')
    assert [record.seq for record in history] == [1, 2, 3, 4, 5][gone:]
    nodes = [*before[:gone], *history[:-1]]
    assert await keys(store, 'run') == [Step('run', one.id, one.seq, 1).idempotency_key for one in nodes]


async def test_keys_stay(shelf: Shelf):
    """A node has the idempotency key that it had before the pruning, also for who opens the storage anew."""
    store = await shelf.open()
    await begin(store, 'run', steps=2)
    seen: list[str] = []

    async def see(number: int) -> None:
        seen.append(current_step().idempotency_key)
        if len(seen) < 3:
            raise ValueError

    for store_ in (store, store, await shelf.open()):
        try:
            await finish(store_.run('run'), deps=see)
        except ValueError:
            await store_.retry('run')
            shelf.clock.forward(days=1)
            await store_.prune(older_than=HOUR, only_finished=False)
    assert len(await store.history('run')) == 3
    assert len(set(seen[:3])) == 1
    assert len(set(seen)) == 2


async def test_trim_by_age(store: Store, clock: Clock):
    """Of an unfinished run only the oldest are deleted, up to the first that ended too lately."""
    await begin(store, 'run', steps=2)
    clock.forward(hours=2)
    await fail(store, 'run', at=4)  # the third node ended now
    assert await store.prune(older_than=HOUR, only_finished=False) == (0, 2)
    assert [record.seq for record in await store.history('run')] == [3, 4]
    clock.forward(hours=2)
    assert await store.prune(older_than=HOUR, only_finished=False) == (0, 1)
    await store.retry('run')
    assert await finish(store.run('run')) == ANSWER


async def test_trim_under_the_hands_of_an_owner(shelf: Shelf):
    """A run may be trimmed while its node runs: the owner goes on and ends its step as if it had not been."""
    store = await shelf.open()
    await begin(store, 'run', steps=2)
    shelf.clock.forward(seconds=1)

    async def trim(number: int) -> None:
        if number == 3:
            other = await shelf.open()
            assert await other.prune(older_than=timedelta(0), only_finished=False) == (0, 2)
            told = await info(other, 'run')
            assert (told.status, told.steps, told.resumable) == ('running', 3, False)
            assert told.owner is not None

    assert await finish(store.run('run'), deps=trim) == ANSWER
    assert await statuses(store, 'run') == ['success'] * 3
    assert [record.seq for record in await store.history('run')] == [3, 4, 5]


async def test_trim_with_a_recurring_id(store: Store, clock: Clock):
    """Of a node that returns itself only those rounds are deleted that are over."""
    await begin(store, 'run', steps=2, graph=again)
    clock.forward(days=1)
    assert await store.prune(older_than=HOUR, only_finished=False) == (0, 1)
    assert await finish(store.run('run'), graph=again) == [1, 2, 3]


async def test_trim_for_a_gone_owner(store: Store, clock: Clock):
    """What a gone owner had in hand is kept, and can be recovered after the pruning."""
    await begin(store, 'run', steps=2)
    holder = await in_hand(store, 'run')
    clock.forward(days=1)
    assert await store.prune(older_than=HOUR, only_finished=False) == (0, 2)
    assert (await info(store, 'run')).resumable
    assert await finish(store.run('run')) == ANSWER
    assert holder._claims.fence is not None


async def test_export_of_a_trimmed_run(shelf: Shelf):
    """What is left of a trimmed run moves out and in with its numbers."""
    store = await shelf.open()
    await begin(store, 'run', steps=3, tags=['x'])
    before = await info(store, 'run')
    shelf.clock.forward(days=1)
    await store.prune(older_than=HOUR, only_finished=False)
    data = await store.export('run')
    await store.delete('run')
    await store.import_run(data, run_id='run')
    assert await info(await shelf.open(), 'run') == before
    assert [record.seq for record in await store.history('run')] == [3, 4]
    assert await finish(store.run('run')) == ANSWER
