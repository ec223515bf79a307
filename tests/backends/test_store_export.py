"""Runs as JSON: out of a store, into another, from pydantic-graph 1.x and back."""

from __future__ import annotations

import json
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import anyio
import pytest

from graphkeep import (
    CorruptSnapshotError,
    FileStatePersistence,
    FullStatePersistence,
    RunExistsError,
    RunFailedError,
    SnapshotStatus,
    SnapshotStatusError,
    Store,
)
from graphkeep._host import HAS_RUNNER
from tests.backends.stores import (
    ANSWER,
    STORES,
    Clock,
    Shelf,
    Tally,
    begin,
    count_up,
    fail,
    finish,
    in_hand,
    info,
    keys,
    statuses,
    with_status,
)

pytestmark = pytest.mark.anyio

STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)


# ---------------------------------------------------------------------------------------------- ours to ours


@pytest.mark.both_backends
@pytest.mark.parametrize('target', list(STORES))
async def test_out_and_in(store: Store, clock: Clock, tmp_path: Path, target: str):
    """A run moves from one store to another with all that is known of it, and goes on there."""
    await begin(store, 'run', steps=1, tags=['x', 'y'])
    await fail(store, 'run', at=2)
    await store.retry('run')
    await finish_two(store)
    data = await store.export('run')
    (tmp_path / 'target').mkdir()
    async with STORES[target](tmp_path / 'target', clock) as other:
        clock.forward(days=1)
        await other.import_run(data, run_id='moved')
        assert await other.history('moved') == await store.history('run')
        before, after = await info(store, 'run'), await info(other, 'moved')
        assert (after.created, after.updated, after.tags) == (before.created, before.updated, before.tags)
        assert (after.graph, after.status, after.steps) == ('count', 'created', 3)
        assert await other.export('moved') == data
        assert await finish(other.run('moved')) == await finish(store.run('run')) == ANSWER
        assert (await keys(other, 'moved'))[:2] == (await keys(store, 'run'))[:2]


async def finish_two(store: Store) -> None:
    """Go on with a run until its third node fails, and retry that."""
    await fail(store, 'run', at=3)
    await store.retry('run')


@pytest.mark.parametrize('status', STATUSES)
async def test_whoever_has_it(store: Store, status: SnapshotStatus):
    """A run is exported wherever it is, unharmed; the copy is in nobody's hands."""
    holder = await with_status(store, 'run', status)
    before = await store.history('run')
    data = await store.export('run')
    assert await store.history('run') == before
    await store.import_run(data, run_id='copy')
    told = await info(store, 'copy')
    assert told.status == ('created' if status in ('pending', 'running') else status)
    assert told.owner is None
    if status == 'error':
        assert told.error is not None
        assert told.error.message == 'bad luck'
        await store.retry('copy')
    if status == 'running':
        (attempt,) = (await store.history('copy'))[1].attempts
        assert (attempt.outcome, attempt.reason) == ('recovered', 'imported while in hand')
    assert await finish(store.run('copy')) == ANSWER
    assert (holder is not None) == (status in ('pending', 'running'))


async def test_forms(store: Store):
    """The JSON may be text or bytes, on one line or indented: it is the same run."""
    await begin(store, 'run', steps=2, tags=['größer', '😀'])
    data, indented = await store.export('run'), await store.export('run', indent=2)
    assert b'\n' not in data
    assert indented.count(b'\n  ') > 3
    assert json.loads(data) == json.loads(indented)
    forms: list[Any] = [
        data,
        data.decode(),
        bytearray(data),
        indented,
        indented.decode(),
        b' \n' + data + b'\n ',
    ]
    for number, form in enumerate(forms):
        await store.import_run(form, run_id=str(number))
        assert await store.history(str(number)) == await store.history('run')
        assert await finish(store.run(str(number))) == ANSWER


ODD: dict[str, list[Any]] = {
    'empty': [{}, [], '', [[]], {'': {}}],
    'numbers': [1e5, 1e-7, -0.0, 10**30, 0.1, True, None],
    'texts': ['größer', '😀', '\ud800', '\0', '"\\/', '\u2028', '],\n  ['],
}
"""What there is several ways to write of in JSON."""


@pytest.mark.parametrize('indent', [0, 1, 2, 7])
@pytest.mark.parametrize('snapshots', [1, 2, 3])
async def test_indented(store: Store, snapshots: int, indent: int):
    """What is indented is what Python's own writer makes of the whole, byte for byte."""
    rows = of_one('success', 'success', 'created')[:snapshots]
    ours = {'tags': ['größer'], 'attempt': 0}
    data = json.dumps([{**row, 'state': {**ODD, 'row': number}} for number, row in enumerate(rows)])
    await store.import_run(data.replace('"kind"', f'"graphkeep": {json.dumps(ours)}, "kind"'), run_id='run')
    plain = json.loads(await store.export('run'))
    assert plain[-1]['state'] == {**ODD, 'row': snapshots - 1}
    whole = json.dumps(plain, indent=indent, ensure_ascii=False).encode(errors='backslashreplace')
    assert await store.export('run', indent=indent) == whole


@pytest.mark.parametrize('indent', [None, 2])
def test_nothing_indented(indent: int | None):
    """A history without a snapshot is an empty array."""
    full: Any = FullStatePersistence()
    full.set_graph_types(count_up)
    assert full.dump_json(indent=indent) == b'[]'


@pytest.mark.both_backends
async def test_one_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch):
    """However long a run is, of its snapshots one at a time is taken apart to be indented."""
    await begin(store, 'run', steps=4)
    longest, read = 0, json.loads

    def noting(text: bytes) -> Any:
        nonlocal longest
        longest = max(longest, len(text))
        return read(text)

    exported = await store.export('run')
    monkeypatch.setattr(json, 'loads', noting)
    await store.export('run', indent=2)
    monkeypatch.undo()
    assert 0 < longest < len(exported) / 3


async def test_lone_surrogates(store: Store):
    """What no UTF-8 can hold, in what an exception says, comes out and in all the same."""
    await begin(store, 'run')
    await fail(store, 'run', at=1, message='odd \ud800 text')
    for indent in (None, 1):
        data = await store.export('run', indent=indent)
        await store.import_run(data, run_id=f'copy {indent}')
        told = await info(store, f'copy {indent}')
        assert told.error is not None
        assert told.error.message == 'odd \ud800 text'


async def test_into_an_existing_run(store: Store):
    """An import never writes over a run."""
    await begin(store, 'run', steps=1)
    data = await store.export('run')
    await begin(store, 'other', steps=2)
    before = await store.history('other')
    for run_id in ('run', 'other'):
        with pytest.raises(RunExistsError, match=run_id):
            await store.import_run(data, run_id=run_id)
    assert await store.history('other') == before


@pytest.mark.both_backends
async def test_at_once(store: Store):
    """Of many that import a run under one id one does, and the others are told that it is there."""
    await begin(store, 'run', steps=1)
    data = await store.export('run')
    refused: list[str] = []

    async def import_() -> None:
        try:
            await store.import_run(data, run_id='new')
        except RunExistsError as exc:
            refused.append(exc.run_id)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(import_)
    assert refused == ['new'] * 9
    assert await finish(store.run('new')) == ANSWER


async def test_other_persistences(store: Store, tmp_path: Path):
    """A run moves between a store and the persistences of one run, both ways."""
    await begin(store, 'run', steps=2)
    path = tmp_path / 'one.json'
    path.write_bytes(await store.export('run'))
    one: Any = FileStatePersistence(path)
    assert await finish(one) == ANSWER
    await store.import_run(path.read_bytes(), run_id='back')
    assert await statuses(store, 'back') == ['success'] * 5
    full: Any = FullStatePersistence()
    full.set_graph_types(count_up)
    full.load_json(await store.export('run'))
    assert await finish(full) == ANSWER
    await store.import_run(full.dump_json(), run_id='from memory')
    assert await finish(store.run('from memory')) == ANSWER


async def test_a_file_in_the_hands_of_somebody(store: Store, tmp_path: Path):
    """The file of a run that is running elsewhere is imported as it stands there, free for anybody."""
    path = tmp_path / 'one.json'
    await begin(store, 'model', steps=1)
    path.write_bytes(await store.export('model'))
    one: Any = FileStatePersistence(path)
    assert await one.claim() is not None
    await store.import_run(path.read_bytes(), run_id='run')
    assert await finish(store.run('run')) == ANSWER
    assert [record.status for record in await one.load_history()] == ['success', 'pending']


# ------------------------------------------------------------------------- pydantic-graph 1.x's own files


def of_one(*statuses_: str, end: bool = False) -> list[dict[str, Any]]:
    """Return a file of pydantic-graph 1.x's own, as its `FileStatePersistence` writes it."""
    rows: list[dict[str, Any]] = [
        {
            'state': {'numbers': ANSWER[: number - 1], 'keys': []},
            'node': {'number': number, 'node_id': 'Count'},
            'start_ts': None if status in ('created', 'pending') else '2025-11-05T10:00:00.123456Z',
            'duration': 0.25 if status in ('success', 'error') else None,
            'status': status,
            'kind': 'node',
            'id': f'Count:{number:032x}',
        }
        for number, status in enumerate(statuses_, start=1)
    ]
    if end:
        rows.append(
            {
                'state': {'numbers': ANSWER, 'keys': []},
                'result': {'data': ANSWER},
                'ts': '2025-11-05T10:00:01Z',
                'kind': 'end',
                'id': 'end:0',
            }
        )
    return rows


@pytest.mark.both_backends
@pytest.mark.parametrize(
    'last, status',
    [('created', 'created'), ('pending', 'created'), ('running', 'created'), ('error', 'error')],
)
async def test_from_one(store: Store, clock: Clock, last: str, status: str):
    """A file of pydantic-graph 1.x's own is imported wherever it was left, and goes on from there."""
    await store.import_run(json.dumps(of_one('success', 'success', last), indent=2), run_id='run')
    told = await info(store, 'run')
    assert (told.status, told.steps, told.graph, told.tags) == (status, 3, None, ())
    assert told.created == clock()
    if status == 'error':
        await store.retry('run')
    assert await finish(store.run('run')) == ANSWER
    assert [record.seq for record in await store.history('run')] == [1, 2, 3, 4, 5]


async def test_finished_by_one(store: Store):
    """A finished run of pydantic-graph 1.x's keeps its result and when it ended."""
    await store.import_run(json.dumps(of_one('success', 'success', end=True)), run_id='run')
    assert await finish(store.run('run')) == ANSWER
    end = (await store.history('run'))[-1]
    assert end.start_ts is not None
    assert end.start_ts.isoformat() == '2025-11-05T10:00:01+00:00'


async def test_lost_by_one(store: Store):
    """A run whose next node pydantic-graph 1.x lost is imported for what it is; its last state is there."""
    await store.import_run(json.dumps(of_one('success', 'success')), run_id='run')
    told = await info(store, 'run')
    assert (told.status, told.error, told.resumable) == ('error', None, False)
    run = store.run('run')
    with pytest.raises(RunFailedError, match='before its next node was recorded'):
        await finish(run)
    assert await run.last_state() == Tally([1])


@pytest.mark.skipif(not HAS_RUNNER, reason='pydantic-graph 2.x has no persistence')
@pytest.mark.parametrize('indent', [None, 2])
async def test_to_one(store: Store, tmp_path: Path, indent: int | None):
    """What is exported is loaded, and gone on with, by pydantic-graph 1.x's own class."""
    await begin(store, 'run', steps=1, tags=['x'])
    await fail(store, 'run', at=2)
    await store.retry('run')
    path = tmp_path / 'theirs.json'
    path.write_bytes(await store.export('run', indent=indent))
    theirs = import_module('pydantic_graph.persistence.file').FileStatePersistence(path)
    theirs.set_graph_types(count_up)
    assert [snapshot.status for snapshot in await theirs.load_all()] == ['success', 'created']
    next_ = await theirs.load_next()
    assert (next_.node.number, next_.state.numbers) == (2, [1])
    async with theirs.record_run(next_.id):
        pass
    await store.import_run(path.read_bytes(), run_id='back')
    assert await statuses(store, 'back') == ['success', 'success']


# ---------------------------------------------------------------------------------------------------- garbage


def part(kind: str) -> dict[str, Any]:
    """Return a part of a run of a builder graph."""
    return {'kind': kind, 'id': f'{kind}:1', 'node': {'node_id': 'step', 'inputs': None, 'stack': []}}


GOOD = json.dumps(of_one('success', 'created'))
ENDED = json.dumps(of_one('success', end=True))
GARBAGE: dict[str, Any] = {
    'empty': b'',
    'blank': ' \n ',
    'no snapshot': '[]',
    'an object': '{}',
    'null': 'null',
    'a number': '5',
    'text': 'a run',
    'cut off': GOOD[:-1],
    'cut in a snapshot': GOOD[: len(GOOD) // 2],
    'two arrays': GOOD + GOOD,
    'a comma too many': GOOD[:-1] + ',]',
    'numbers in the array': '[1, 2]',
    'no kind': GOOD.replace('"kind"', '"sort"'),
    'another kind': GOOD.replace('"node",', '"edge",'),
    'a kind that is an object': GOOD.replace('"kind": "node"', '"kind": {}'),
    'a kind that is a list': GOOD.replace('"kind": "node"', '"kind": ["node"]'),
    'another status': GOOD.replace('"created"', '"paused"'),
    'no id': GOOD.replace('"id"', '"di"'),
    'an id that is no text': GOOD.replace('"id": "Count', '"id": 5, "_": "Count'),
    'no state': GOOD.replace('"state"', '"estate"'),
    'no node': GOOD.replace('"node": {', '"edge": {'),
    'a time that is none': GOOD.replace('2025-11-05T10', 'yesterday'),
    'a time before all times': GOOD.replace('2025-11-05T10:00:00.123456Z', '0001-01-01T00:00:00+14:00'),
    'a duration that is no number': GOOD.replace('0.25', 'NaN'),
    'an endless duration': GOOD.replace('0.25', 'Infinity'),
    'a duration beyond all numbers': GOOD.replace('0.25', '1e999'),
    'an end after all times': ENDED.replace('2025-11-05T10:00:01Z', '9999-12-31T23:59:59-14:00'),
    'only parts': json.dumps([part('task'), part('join'), part('image')]),
    'not UTF-8': GOOD.encode().replace(b'success', b'succ\xff\xff'),
    'UTF-16': GOOD.encode('utf-16'),
    'a lone surrogate': GOOD.replace('"numbers": []', '"numbers": ["\ud800"]'),
    'NUL': GOOD.replace(' ', '\0'),
    'very deep': '[' * 100_000,
    'a deep state': GOOD.replace('"numbers": []', '"numbers": ' + '[' * 100_000),
}
OURS: dict[str, Any] = {
    'tags that are text': {'tags': 'paid'},
    'a wrong tag': {'tags': ['a\nb']},
    'a tag that is no text': {'tags': [5]},
    'a graph that is no text': {'graph': 5},
    'a parent that is none': {'parent': 'run'},
    'a parent of no run id': {'parent': ['../x', 1]},
    'a parent without number': {'parent': ['x']},
    'a parent at half a number': {'parent': ['x', 1.5]},
    'a first number 0': {'seq': 0},
    'a first number beyond all': {'seq': 10**30},
    'a first number that is text': {'seq': '1'},
    'a negative attempt': {'attempt': -1},
    'an endless attempt': {'attempt': 10**400},
    'a first number after which there is no room': {'seq': 2**53 - 2},
    'a created that is none': {'created': 'now'},
    'a created before all times': {'created': '0001-01-01T00:00:00+14:00'},
    'a list': [1],
    'text': 'graphkeep',
}


def with_ours(ours: Any) -> str:
    """Return a file with this under our own key in its first snapshot."""
    first, *rest = of_one('success', 'created')
    return json.dumps([{**first, 'graphkeep': ours}, *rest])


@pytest.mark.parametrize('data', [*GARBAGE.values(), *map(with_ours, OURS.values())], ids=[*GARBAGE, *OURS])
async def test_garbage(store: Store, data: Any):
    """What is not the JSON of a run is refused with what is wrong with it, and nothing is stored."""
    await begin(store, 'other')
    with pytest.raises(CorruptSnapshotError, match='the JSON given') as caught:
        await store.import_run(data, run_id='run')
    assert caught.value.place.startswith('the JSON given')
    assert [run.id for run in await store.runs()] == ['other']
    assert await finish(store.run('other')) == ANSWER


async def test_what_is_refused(store: Store):
    """It is said which snapshot has what in it that cannot be."""
    wrong = {
        'an end after all times': "snapshot number 2, .*9999-12-31T23:59:59-14:00', which is before",
        'only parts': 'has only parts of a run of a builder graph, and not the run itself',
    }
    for what, match in wrong.items():
        with pytest.raises(CorruptSnapshotError, match=match):
            await store.import_run(GARBAGE[what], run_id='run')


async def test_the_first_and_the_last_moment(store: Store):
    """A run may be of any time that there is, in any time zone; it is told in UTC."""
    data = ENDED.replace('2025-11-05T10:00:00.123456Z', '0001-01-01T14:00:00+14:00')
    await store.import_run(data.replace('2025-11-05T10:00:01Z', '9999-12-31T09:59:59-14:00'), run_id='run')
    node, end = await store.history('run')
    assert [record.start_ts and record.start_ts.isoformat() for record in (node, end)] == [
        '0001-01-01T00:00:00+00:00',
        '9999-12-31T23:59:59+00:00',
    ]
    assert (await info(store, 'run')).updated == end.start_ts
    assert await store.prune(older_than=timedelta(0), keep_last=1, only_finished=False) == (0, 0)
    assert await finish(store.run('run')) == ANSWER


@pytest.mark.parametrize('duration', ['1e300', '-1e300', '1e12'])
async def test_endless_durations(store: Store, duration: str):
    """How long a step took may be told wrongly: the run is listed all the same."""
    data = json.dumps(of_one('success', 'created')).replace('0.25', duration)
    await store.import_run(data, run_id='run')
    assert (await info(store, 'run')).updated is not None
    assert (await store.prune(older_than=timedelta(0), only_finished=False)).runs == 0
    assert await finish(store.run('run')) == ANSWER


async def test_a_run_of_another_graph(shelf: Shelf):
    """A run is imported without its graph; who goes on with another is told, and the run is as it was."""
    store = await shelf.open()
    data = json.dumps(of_one('success', 'created')).replace('"node_id": "Count"', '"node_id": "Gone"')
    await store.import_run(data, run_id='run')
    for claim in (False, True):
        run = await store.claim() if claim else store.run('run')
        assert run is not None
        with pytest.raises(CorruptSnapshotError, match='Gone'):
            await finish(run)
        assert await statuses(store, 'run') == ['success', 'created']
        assert (await info(store, 'run')).resumable
    holder = await in_hand(store, 'run', 'pending')
    holder.set_graph_types(count_up)
    with pytest.raises(CorruptSnapshotError):
        await holder.load_next()
    assert (await info(store, 'run')).resumable


async def test_a_running_node_whose_id_recurs(store: Store, tmp_path: Path):
    """A file in which a node left running has the id of a newer one is not recovered, but can be imported."""
    running, waiting = of_one('running', 'created')
    data = json.dumps([running, {**waiting, 'id': running['id']}])
    path = tmp_path / 'theirs.json'
    path.write_text(data)
    one: Any = FileStatePersistence(path)
    with pytest.raises(SnapshotStatusError):
        await one.recover()
    await store.import_run(data, run_id='run')
    assert await statuses(store, 'run') == ['created', 'created']
    assert await store.recover('run') == 0
