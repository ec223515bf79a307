"""What a store takes as the JSON of a run: every store takes the same, and makes the same of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from graphkeep import CorruptSnapshotError, Store
from tests.backends.stores import STORES, Clock, info, nowhere

pytestmark = pytest.mark.anyio

THEN = '2025-11-05T10:00:00.123456+00:00'
OWNER = {'id': '5e', 'host': 'here', 'pid': 5, 'domain': 'boot/pid', 'started': '77'}
ERROR = {'type': 'ValueError', 'message': 'bad luck', 'traceback': 'Traceback: bad luck'}


def attempt(outcome: str, **more: Any) -> dict[str, Any]:
    """Return an attempt, as it is exported."""
    told = {'reason': None, 'error': None, 'owner': 'process 5 on here', **more}
    return {'start_ts': THEN, 'duration': 0.25, 'outcome': outcome, **told}


def step(number: int, status: str, ours: dict[str, Any]) -> dict[str, Any]:
    """Return the snapshot of a node, as it is exported."""
    return {
        'state': {'numbers': []},
        'node': {'number': number, 'node_id': 'Count'},
        'start_ts': None if status == 'created' else THEN,
        'duration': 0.25 if status in ('success', 'error') else None,
        'status': status,
        'kind': 'node',
        'id': f'Count:{number}',
        'graphkeep': ours,
    }


ABOUT = {'graph': 'count', 'tags': ['paid'], 'created': THEN, 'parent': ['old', 3], 'seq': 7}
RUN: list[dict[str, Any]] = [
    step(1, 'success', {'owner': 'process 5 on here', **ABOUT}),
    step(2, 'error', {'attempt': 2, 'attempts': [attempt('recovered'), attempt('error', error=ERROR)]}),
    step(3, 'success', {'attempt': 1, 'attempts': [attempt('success')]}),
    step(4, 'running', {'owner': 'process 5 on here', 'fence': 4, 'held_by': OWNER, 'expires': THEN}),
    step(5, 'created', {'attempt': 1, 'attempts': [attempt('released', reason='not now')], 'since': THEN}),
    {'state': {'numbers': []}, 'result': {'data': []}, 'ts': THEN, 'kind': 'end', 'id': 'end:1'},
]
"""A run in which everything is on record that there is a member for."""

FIELDS = {
    # of every snapshot
    '0.start_ts': 'text',
    '0.duration': 'number',
    '0.status': 'text',
    '0.kind': 'text',
    '0.id': 'text',
    '0.node.node_id': 'text',
    '1.duration': 'number',
    '1.status': 'text',
    '3.duration': 'number',
    '4.status': 'text',
    '5.ts': 'text',
    '5.id': 'text',
    # of the run
    '0.graphkeep': 'object',
    '0.graphkeep.graph': 'text',
    '0.graphkeep.tags': 'array',
    '0.graphkeep.tags.0': 'text',
    '0.graphkeep.created': 'text',
    '0.graphkeep.parent': 'array',
    '0.graphkeep.parent.0': 'text',
    '0.graphkeep.parent.1': 'number',
    '0.graphkeep.seq': 'number',
    # of attempts
    '0.graphkeep.owner': 'text',
    '3.graphkeep.owner': 'text',
    '1.graphkeep': 'object',
    '1.graphkeep.attempt': 'number',
    '1.graphkeep.attempts': 'array',
    '1.graphkeep.attempts.0': 'object',
    '1.graphkeep.attempts.0.start_ts': 'text',
    '1.graphkeep.attempts.0.duration': 'number',
    '1.graphkeep.attempts.0.outcome': 'text',
    '1.graphkeep.attempts.0.owner': 'text',
    '1.graphkeep.attempts.0.error': 'object',
    '1.graphkeep.attempts.1.outcome': 'text',
    '1.graphkeep.attempts.1.error': 'object',
    '1.graphkeep.attempts.1.error.type': 'text',
    '1.graphkeep.attempts.1.error.message': 'text',
    '1.graphkeep.attempts.1.error.traceback': 'text',
    '2.graphkeep.attempts.0.start_ts': 'text',
    '2.graphkeep.attempts.0.outcome': 'text',
    '2.graphkeep.attempts.0.owner': 'text',
    '4.graphkeep.attempts.0.reason': 'text',
    # of whoever has it
    '3.graphkeep.fence': 'number',
    '3.graphkeep.held_by': 'object',
    '3.graphkeep.held_by.id': 'text',
    '3.graphkeep.held_by.host': 'text',
    '3.graphkeep.held_by.pid': 'number',
    '3.graphkeep.held_by.domain': 'text',
    '3.graphkeep.held_by.started': 'text',
    '3.graphkeep.expires': 'text',
}
"""Where what is read of a run stands, and what it is in JSON, unless it is null."""

HOSTILE: dict[str, list[Any]] = {
    'nothing': [None],
    'flag': [True, False],
    'number': [
        *(0, 1, -1, 5, -0.0, 1.5, 1e300, 2**31, 2**52, 2**53, 2**63, 2**64, -(2**63), 10**400),
        *(float('nan'), float('inf'), -float('inf')),
    ],
    'text': [
        *('', 'x', '5', '\0', 'a\nb', '\ud800', 'é' * 200, '../x'),
        *('success', 'error', 'running', 'cancelled', 'released', 'task', 'image'),
        *('2025-11-05', '2025-11-05T10:00:00+14:00', '0001-01-01', '0001-01-01T00:00:00+14:00'),
        *('9999-12-31T23:59:59.9999999Z', '9999-12-31T23:59:59-14:00'),
    ],
    'array': [[], [1], ['x'], ['x', 1], ['x', True], [None], [[]], [{}], [attempt('success')] * 30],
    'object': [
        {},
        {'x': 1},
        {'x': 'y'},
        OWNER,
        ERROR,
        {**ERROR, 'message': 5},
        attempt('error', error=ERROR),
    ],
}
"""Values by what they are in JSON."""


@pytest.fixture
async def stores(tmp_path: Path, clock: Clock) -> AsyncIterator[list[Store]]:
    """All stores, empty, side by side."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(make(tmp_path, clock)) for make in STORES.values()]


def with_value(path: str, value: Any) -> str:
    """Return the run with another value there."""
    run: Any = deepcopy(RUN)
    *way, last = [int(key) if key.isdigit() else key for key in path.split('.')]
    at = run
    for key in way:
        at = at[key]
    at[last] = value
    return json.dumps(run)


async def outcome(store: Store, data: str, run_id: str) -> Any:
    """Import a run, and return all that the store tells of it; or `None` if it is refused as it is to be."""
    try:
        await store.import_run(data, run_id=run_id)
    except CorruptSnapshotError:
        assert await nowhere(store, run_id)
        return None
    exported = await store.export(run_id)
    await store.import_run(exported, run_id=f'{run_id} again')
    assert await store.export(f'{run_id} again') == exported
    indented = json.loads(await store.export(run_id, indent=1))
    return exported, repr(indented), repr(await store.history(run_id)), await info(store, run_id)


async def test_the_run_itself(stores: list[Store]):
    """The run that the other tests change is taken, and told by every store as it is by the others."""
    told = [await outcome(store, json.dumps(RUN), 'run') for store in stores]
    assert told[0] is not None
    assert told == told[:1] * len(stores)
    exported = json.loads(told[0][0])
    assert exported[1]['graphkeep'] == RUN[1]['graphkeep']
    assert exported[5] == RUN[5]


@pytest.mark.parametrize('path', FIELDS)
async def test_alike(stores: list[Store], path: str):
    """Whatever stands there, all stores take it and tell the same, or all refuse it and store nothing.

    What is of another type than is to be there is refused.
    """
    wrong: list[str] = []
    for type_, values in HOSTILE.items():
        for number, value in enumerate(values):
            data = with_value(path, value)
            told = [await outcome(store, data, f'{type_} {number}') for store in stores]
            if told != told[:1] * len(stores):
                wrong.append(f'{value!r:.60} is not told alike: {told!r:.400}')
            elif told[0] is not None and type_ not in (FIELDS[path], 'nothing'):
                wrong.append(f'{value!r:.60} is taken for a {FIELDS[path]}')
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('ours', [True, False, 0, 5, '', 'x', [], [1]])
async def test_what_is_no_object(stores: list[Store], ours: Any):
    """What stands under our key and is no object is refused, also where it is nothing but empty."""
    for store in stores:
        for number in range(len(RUN)):
            assert await outcome(store, with_value(f'{number}.graphkeep', ours), 'run') is None
