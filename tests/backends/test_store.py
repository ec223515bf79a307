"""Listing runs: what is told of each, every filter, and paging."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Coroutine
from datetime import date, datetime, timedelta, timezone, tzinfo
from itertools import product
from typing import Any, get_args

import pytest

from graphkeep import (
    Graph,
    InvalidRunIdError,
    RunInfo,
    SnapshotStatus,
    Store,
    UnknownRunError,
    iter_or_resume,
    run_or_resume,
)
from tests.backends.stores import (
    Clock,
    Count,
    Shelf,
    Tally,
    again,
    begin,
    count_up,
    fail,
    finish,
    in_hand,
    info,
    nowhere,
    with_status,
)

pytestmark = pytest.mark.anyio

other = Graph(nodes=(Count,), name='other')
nameless: Any = Graph(nodes=(Count,))
STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)


def ids(runs: list[RunInfo]) -> list[str]:
    """Return the ids, in order."""
    return [run.id for run in runs]


# ------------------------------------------------------------------------------------------------ one run


async def test_nothing(store: Store):
    """An empty store has no runs, and asking for some does not make any."""
    assert await store.runs() == []
    store.run('asked for')
    assert await store.runs() == []


TAKING: dict[str, Callable[[Any], Awaitable[object]]] = {
    'run': lambda store: count_up.run(Count(), state=Tally(), persistence=store),
    'iter': lambda store: count_up.iter(Count(), state=Tally(), persistence=store).__aenter__(),
    'iter_from_persistence': lambda store: count_up.iter_from_persistence(store).__aenter__(),
    'initialize': lambda store: count_up.initialize(Count(), store, state=Tally()),
    'run_or_resume': lambda store: run_or_resume(count_up, Count(), state=Tally(), persistence=store),
}


@pytest.mark.parametrize('verb', TAKING)
async def test_taken_for_one_run(store: Store, verb: str):
    """A store in the place of a run's persistence is refused, and it is said what to give."""
    with pytest.raises(TypeError, match=r'store\.run\(run_id\)'):
        await TAKING[verb](store)


async def test_told(store: Store, clock: Clock):
    """A run is listed with all that is known of it: graph, tags, steps, times; and nothing that is not."""
    created = clock()
    await begin(store, 'run', tags=['b', 'a', 'b'])
    clock.forward(10)
    async with iter_or_resume(count_up, persistence=store.run('run')) as run:
        await run.next()
    told = await info(store, 'run')
    assert told.updated is not None
    assert timedelta(0) < told.updated - clock() < timedelta(seconds=5)  # how long the step took in truth
    assert told == RunInfo(
        id='run',
        graph='count',
        status='created',
        steps=2,
        created=created,
        updated=told.updated,
        owner=None,
        expires=None,
        error=None,
        tags=('a', 'b'),
        parent=None,
        resumable=True,
    )


@pytest.mark.both_backends
@pytest.mark.parametrize('status', STATUSES)
async def test_status(store: Store, clock: Clock, status: SnapshotStatus):
    """A run has the status of where it is; only one that waits is resumable while everybody lives."""
    holder = await with_status(store, 'run', status)
    told = await info(store, 'run')
    assert told.status == status
    assert told.resumable == (status == 'created')
    assert told.steps == (5 if status == 'success' else 2)
    assert (told.error and told.error.message) == ('bad luck' if status == 'error' else None)
    if holder is None:
        assert (told.owner, told.expires) == (None, None)
    else:
        assert told.owner is not None
        assert told.owner.is_here
        assert told.expires == clock() + timedelta(seconds=30)


@pytest.mark.parametrize('status', ['pending', 'running'])
async def test_status_of_abandoned(store: Store, clock: Clock, status: SnapshotStatus):
    """A run whose owner is gone keeps the status that it had, names the owner, and is resumable."""
    holder = await with_status(store, 'run', status)
    assert holder is not None
    clock.forward(29.9)
    assert not (await info(store, 'run')).resumable
    clock.forward(0.1)
    told = await info(store, 'run')
    assert (told.status, told.resumable) == (status, True)
    assert told.owner is not None


async def test_status_of_dropped(store: Store):
    """A run whose holder was dropped within this process is resumable at once."""
    holder = await with_status(store, 'run', 'running')
    assert holder is not None
    owner = (await info(store, 'run')).owner
    if owner is None or not owner.domain:
        pytest.skip('this platform does not tell which processes there are')
    del holder
    gc.collect()
    told = await info(store, 'run')
    assert (told.status, told.resumable) == ('running', True)


async def test_times(store: Store, clock: Clock):
    """`created` stays; `updated` moves with each claim, and each step that begins or ends, the last one too.

    A renewal of the lease does not move it.
    """
    created = clock()
    await begin(store, 'run')
    assert (await info(store, 'run')).updated == created
    claimed = clock.forward(hours=1)
    holder = await in_hand(store, 'run', 'pending')
    clock.forward(seconds=1)
    holder._claims._renew()
    assert (await info(store, 'run')).updated == claimed
    given_back = clock.forward(hours=1)
    await holder.release()
    assert (await info(store, 'run')).updated == given_back
    started = clock.forward(hours=1)
    holder = await in_hand(store, 'run')
    assert (await info(store, 'run')).updated == started
    del holder
    ended = clock.forward(hours=1)
    await finish(store.run('run'))
    told = await info(store, 'run')
    assert told.created == created
    assert told.updated is not None
    assert ended <= told.updated < ended + timedelta(seconds=5)


async def test_last_error(store: Store):
    """The error is that of the node at which the run stopped, and gone when the node is retried."""
    await begin(store, 'run')
    await fail(store, 'run', at=1, message='first')
    await store.retry('run')
    told = await info(store, 'run')
    assert (told.status, told.error) == ('created', None)
    await fail(store, 'run', at=1, message='second')
    error = (await info(store, 'run')).error
    assert error is not None
    assert (error.type, error.message) == ('ValueError', 'second')
    assert 'bad_luck' in error.traceback


async def test_tags_are_those_of_the_beginning(store: Store):
    """Who opens a run later does not change its tags."""
    await begin(store, 'run', tags=['first'])
    await finish(store.run('run', tags=['second']))
    assert (await info(store, 'run')).tags == ('first',)


async def test_known_after_opening_again(shelf: Shelf):
    """Whoever opens the storage anew is told the same."""
    store = await shelf.open()
    await begin(store, 'a', steps=2, tags=['x'])
    await begin(store, 'b', graph=again)
    await fail(store, 'a', at=3)
    await store.fork('a', into='c', at=1)
    assert await (await shelf.open()).runs() == await store.runs()


# ------------------------------------------------------------------------------------------------- filters


async def populate(store: Store, clock: Clock) -> list[Any]:
    """Store runs of two graphs, two days, with and without tags, in every status; return what holds them."""
    holders: list[Any] = []
    for day, graph in product((1, 2), (count_up, other)):
        for number, status in enumerate(STATUSES):
            tags = ['x', 'y'][: number % 3]
            run_id = f'{graph.name} {status} {day}'
            holders.append(await with_status(store, run_id, status, graph=graph, tags=tags))
        if graph is other:
            clock.forward(days=1)
    return holders


async def test_filters(store: Store, clock: Clock):
    """Every filter, alone and with each other one, gives the runs that it says, in the order of their ids."""
    noon = clock() + timedelta(hours=12)
    holders = await populate(store, clock)
    everything = await store.runs()
    assert len(everything) == len(holders) == 20
    assert ids(everything) == sorted(ids(everything))
    choices: dict[str, list[Any]] = {
        'status': [None, 'created', ['created', 'error'], ('success',), {'running', 'pending'}, []],
        'graph': [None, 'count', 'Count'],
        'tag': [None, 'x', 'X'],
        'updated_before': [None, noon, noon - timedelta(days=1)],
    }
    for values in product(*choices.values()):
        asked = dict(zip(choices, values, strict=True))
        assert await store.runs(**asked) == [run for run in everything if admits(run, **asked)], asked


def admits(run: RunInfo, *, status: Any, graph: str | None, tag: str | None, updated_before: Any) -> bool:
    """Whether the run is asked for, in plain words."""
    wanted = [status] if isinstance(status, str) else status
    return (
        (wanted is None or run.status in wanted)
        and (graph is None or run.graph == graph)
        and (tag is None or tag in run.tags)
        and (updated_before is None or (run.updated is not None and run.updated < updated_before))
    )


async def test_updated_before_is_a_moment(store: Store, clock: Clock):
    """A bound in another time zone means the same moment; what was changed then is not before it."""
    await begin(store, 'run')
    east = clock().astimezone(timezone(timedelta(hours=9)))
    assert await store.runs(updated_before=east) == []
    assert ids(await store.runs(updated_before=east + timedelta(microseconds=1))) == ['run']


async def test_nameless_graph(store: Store):
    """A graph without a name is found by no name."""
    await nameless.initialize(Count(), store.run('run'), state=Tally(), infer_name=False)
    assert (await info(store, 'run')).graph is None
    assert await store.runs(graph='') == []


class Nowhere(tzinfo):
    """A time zone that tells no offset, so that what is in it is naive."""

    def utcoffset(self, dt: datetime | None) -> None:
        return None


WRONG: list[tuple[dict[str, Any], str]] = [
    ({'status': 'failed'}, 'status must be .* created, .*failed'),
    ({'status': ['created', 'failed']}, 'status must be .*failed'),
    ({'status': ['created', 5]}, 'status must be .*5'),
    ({'status': [['created']]}, 'status must be'),
    ({'status': 5}, 'status must be .*5'),
    ({'graph': 5}, 'graph must be a text, got 5'),
    ({'graph': b'count'}, 'graph must be a text'),
    ({'tag': 5}, 'tag must be a text, got 5'),
    ({'tag': ''}, 'tag must be a text of 1 to 128'),
    ({'tag': 'x' * 129}, 'tag must be a text of 1 to 128'),
    ({'tag': ['x']}, 'tag must be a text'),
    ({'updated_before': datetime(2026, 1, 1)}, 'updated_before must be an aware time'),
    ({'updated_before': date(2026, 1, 1)}, 'updated_before must be an aware time'),
    ({'updated_before': '2026-01-01'}, 'updated_before must be an aware time'),
    ({'updated_before': 5}, 'updated_before must be an aware time'),
    ({'updated_before': datetime(2026, 1, 1, tzinfo=Nowhere())}, 'updated_before must be an aware time'),
    ({'limit': -1}, 'limit must be .*-1'),
    ({'limit': True}, 'limit must be .*True'),
    ({'limit': '5'}, "limit must be .*'5'"),
    ({'limit': 1.5}, r'limit must be .*1\.5'),
    ({'after': 5}, 'after must be a text'),
    ({'after': 0}, 'after must be a text'),
]


@pytest.mark.parametrize('asked, message', WRONG, ids=lambda value: str(value)[:40])
async def test_wrong_filters(store: Store, asked: dict[str, Any], message: str):
    """A filter that no run could match because it is no filter is refused, and told what would be one."""
    with pytest.raises(ValueError, match=message):
        await store.runs(**asked)


# --------------------------------------------------------------------------------------------------- paging


async def test_pages(store: Store):
    """Pages of any size give every run once, in order, whether the last run or its id is given."""
    wanted = sorted(f'run {number}' for number in range(7))
    for run_id in reversed(wanted):
        await begin(store, run_id)
    for limit in range(1, 9):
        seen: list[str] = []
        last: RunInfo | str | None = None
        while page := await store.runs(limit=limit, after=last):
            assert len(page) <= limit
            seen += ids(page)
            last = page[-1].id if limit % 2 else page[-1]
        assert seen == wanted
    assert await store.runs(limit=0) == []
    assert await store.runs(limit=2**70) == await store.runs(limit=1_000)
    assert ids(await store.runs(after='run 41')) == ['run 5', 'run 6']
    assert ids(await store.runs(after='run 5\ud800')) == ['run 6']


@pytest.mark.both_backends
async def test_pages_while_runs_come_and_go(store: Store):
    """What is there all the while is listed once, whatever is added and deleted between two pages."""
    lasting = [f'{number:02}' for number in range(0, 40, 2)]
    for run_id in lasting:
        await begin(store, run_id)
    seen: list[str] = []
    last = ''
    while page := await store.runs(limit=3, after=last):
        last = page[-1].id
        seen += [run_id for run_id in ids(page) if run_id in lasting]
        await begin(store, f'{int(last) - 1:03}')  # behind
        await begin(store, f'{last}-new')  # ahead
        await store.delete(f'{last}-new')
        if int(last) < 38:
            await begin(store, f'{int(last) + 1:02}')
        if len(seen) % 2:
            assert await store.delete(page[0].id)  # listed already
    assert seen == lasting


async def test_default_page(store: Store):
    """Without a limit at most 100 runs are listed at once."""
    for number in range(101):
        await begin(store, f'{number:03}')
    assert ids(await store.runs()) == [f'{number:03}' for number in range(100)]
    assert ids(await store.runs(after='099')) == ['100']


# ---------------------------------------------------------------------------------------------------- names

HOSTILE = [
    "Robert'); DROP TABLE runs;--",
    '" OR ""="',
    "' OR 1=1 --",
    '%',
    '_',
    'a%b',
    'a_b',
    'axb',
    '*',
    '?',
    '[a-z]',
    '%41',
    '%2Fetc',
    'A',
    'a',
    'ä',
    'a\u0308',
    'Ä',
    'ß',
    'SS',
    'i',
    'İ',
    'ı',  # noqa: RUF001
    '😀',
    '\U0010ffff',
    '\uffff',
    '\ue000',
    '日本語',
    'مرحبا',
    '\u202egnp.exe',
    '{0}',
    '$1',
    ':id',
    '?1',
    'NULL',
    '0',
    '-1',
    '1e5',
    'true',
    'a b',
    'a ',
    '~',
    'x.json',
    'con',
    'x' * 128,
]


async def test_hostile_names(store: Store):
    """Ids and tags are compared as they are, character by character, and ordered by code points."""
    for name in HOSTILE:
        await begin(store, name, tags=[name, f'also {name}'[:128]])
    assert ids(await store.runs()) == sorted(HOSTILE)
    for number, name in enumerate(sorted(HOSTILE)):
        assert ids(await store.runs(tag=name)) == [name]
        assert ids(await store.runs(after=name)) == sorted(HOSTILE)[number + 1 :]
        assert len(await store.history(name)) == 1
    claimed = [await store.claim(tag=name) for name in HOSTILE]
    assert [run and run.run_id for run in claimed] == HOSTILE
    for name, run in zip(HOSTILE, claimed, strict=True):
        assert run is not None
        await run.release()
        assert await store.delete(name)
        assert await nowhere(store, name)


@pytest.mark.parametrize(
    'name', ["'; DROP TABLE runs;--", '%', '😀', 'Count', 'count ', '\ud800', 'x' * 10_000]
)
async def test_hostile_graph_names(store: Store, name: str):
    """A graph's name is any text; it is found by that text and no other."""
    await begin(store, 'this', graph=Graph[Any, Any, Any](nodes=(Count,), name=name))
    await begin(store, 'that')
    assert ids(await store.runs(graph=name)) == ['this']
    assert ids(await store.runs(graph='count')) == ['that']


TAGS: list[Any] = ['', 'x' * 129, 'a\0', 'a\nb', '\x7f', '\ud800', '\u2028', 5, None, b'x']


@pytest.mark.parametrize('tag', TAGS)
async def test_wrong_tags(store: Store, tag: Any):
    """A tag that not every store could keep is refused where it is given, and nothing is stored."""
    with pytest.raises(ValueError, match='a tag must'):
        store.run('run', tags=['good', tag])
    assert await store.runs() == []


async def test_one_text_is_not_several_tags(store: Store):
    """A text given for several tags would be its letters: it is refused."""
    with pytest.raises(ValueError, match=r"write \['paid'\]"):
        store.run('run', tags='paid')


async def test_no_tags_at_all(store: Store):
    """What is not several of anything is refused by name."""
    tags: Any = None
    with pytest.raises(TypeError, match='tags must be several texts, got None'):
        store.run('run', tags=tags)


async def test_nothing_to_import(store: Store):
    """What is no JSON because it is not even text is refused by name, and nothing is stored."""
    data: Any = None
    with pytest.raises(TypeError, match='data must be the JSON of a run, as text or bytes, got None'):
        await store.import_run(data, run_id='run')
    assert await store.runs() == []


VERBS: dict[str, Callable[[Store, Any], Coroutine[Any, Any, Any]]] = {
    'history': lambda store, run_id: store.history(run_id),
    'recover': lambda store, run_id: store.recover(run_id),
    'retry': lambda store, run_id: store.retry(run_id),
    'export': lambda store, run_id: store.export(run_id),
    'fork': lambda store, run_id: store.fork(run_id, into='new'),
}
"""What can be asked about a run, which has to be there."""
CREATING: dict[str, Callable[[Store, Any], Coroutine[Any, Any, Any]]] = {
    'fork into': lambda store, run_id: store.fork('run', into=run_id),
    'import_run': lambda store, run_id: store.import_run('[]', run_id=run_id),
    'delete': lambda store, run_id: store.delete(run_id),
}


@pytest.mark.parametrize('verb', VERBS.values(), ids=list(VERBS))
async def test_unknown_run(store: Store, verb: Callable[[Store, Any], Coroutine[Any, Any, Any]]):
    """What is asked about a run that is not there says so, and makes none."""
    with pytest.raises(UnknownRunError, match="'run'"):
        await verb(store, 'run')
    assert await store.runs() == []


@pytest.mark.parametrize('verb', [*VERBS.values(), *CREATING.values()], ids=[*VERBS, *CREATING])
@pytest.mark.parametrize('run_id', ['', '..', 'a/b', 'a\0', '\ud800', ' a', 'x' * 129, 5, None])
async def test_wrong_run_ids(
    store: Store, verb: Callable[[Store, Any], Coroutine[Any, Any, Any]], run_id: Any
):
    """Every verb refuses an id that no run can have."""
    await begin(store, 'run')
    with pytest.raises(InvalidRunIdError):
        await verb(store, run_id)
    assert ids(await store.runs()) == ['run']
