"""Clauses of commits with several rows, and of runs that have parts, as those of builder graphs do.

The parts are stored below the graph, so that nothing here needs a host with a graph builder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..codec import Body
from ..commit import Commit, Row, StatusChange, StepRecord, Writer
from ..owner import new_owner
from ..status import CANCEL, START, SUCCEED
from ..taskrows import join_body, task_body
from .clock import LEASE
from .owning import begun
from .stores import StoreClauses, StoreUnderTest, commit_below, rows_of, tail_of

__all__ = ('PartClauses',)

_MANY = 1000


def _task(number: int) -> Row:
    stack = [('__start__', 'run', 0), ('map', 'fork', number)]
    return Row(StepRecord(f'work:{number}', 'work', 'task'), task_body('work', b'"\xc3\xa4"', stack, None))


def _join() -> Row:
    body = join_body('total', 'fork', [('__start__', 'run', 0)], b'0', stopped=False)
    return Row(StepRecord('total:fork', 'total', 'join'), body)


def _image() -> Row:
    return Row(StepRecord('image', '', 'image', 'success'), Body(b'{"items":["x"]}', b'{"node_id":""}'))


def _end() -> Row:
    return Row(
        StepRecord('end:1', 'End', 'end', 'success'), Body(b'{"items":["x"]}', b'{"data":3,"node_id":"End"}')
    )


def _told(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """Return what has to be kept of rows, in a form that can be compared."""
    return [
        (
            row.record.id,
            row.record.node_id,
            row.record.kind,
            row.record.status,
            row.body.state and json.loads(row.body.state),
            json.loads(row.body.node),
        )
        for row in rows
    ]


class PartClauses(StoreClauses):
    """What holds for commits with several rows in every store."""

    async def test_rows_of_a_commit(self, place: StoreUnderTest):
        """Of a commit each row is stored, in order, with kind and body, and each change is made."""
        mine, snapshot_id = await begun(place)
        start = StatusChange(snapshot_id, START, place.clock.now)
        rows = [_task(1), _task(2), _join(), _image()]
        writer = Writer(None, new_owner(place), LEASE)
        receipt = await commit_below(mine, Commit([start], rows, writer=writer))
        assert (receipt.seq, receipt.last) == (1, 5)
        first, *stored = await rows_of(place.another().run('run'))
        assert (first.record.id, first.record.status) == (snapshot_id, 'running')
        assert [row.record.seq for row in stored] == [2, 3, 4, 5]
        assert _told(stored) == _told(rows)
        assert [(raw.id, raw.kind) for raw in place.raw().snapshots[1:]] == [
            ('work:1', 'task'),
            ('work:2', 'task'),
            ('total:fork', 'join'),
            ('image', 'image'),
        ]
        assert [r.path for r in await place.store.history('run')][1:3] == [(('map', 1),), (('map', 2),)]

    async def test_tail_of_a_run_with_parts(self, place: StoreUnderTest):
        """The tail of a run is made of its nodes, and numbers its parts: by that a builder's run is known."""
        mine, snapshot_id = await begun(place)
        assert not (await tail_of(mine)).has_parts
        start = StatusChange(snapshot_id, START, place.clock.now)
        await commit_below(mine, Commit([start], [_task(1), _task(2)]))
        for persistence in (mine, place.another().run('run')):
            tail = await tail_of(persistence)
            assert [row.record.id for row in tail.rows] == [snapshot_id]
            assert [row.record.id for row in tail.open] == [snapshot_id]
            assert (tail.last, tail.has_parts) == (3, True)
        assert ((await place.info()).steps, (await place.info()).status) == (3, 'running')
        ends = [StatusChange(i, t) for i in ('work:1', 'work:2') for t in (START, SUCCEED)]
        await commit_below(mine, Commit([*ends, StatusChange(snapshot_id, SUCCEED)], [_end()]))
        assert place.statuses() == ['success'] * 4
        tail = await tail_of(place.another().run('run'))
        assert ([row.record.id for row in tail.rows], tail.open) == (['end:1'], [])
        assert (tail.last, tail.has_parts) == (4, False)
        assert ((await place.info()).steps, (await place.info()).status) == (4, 'success')

    async def test_very_many_rows(self, place: StoreUnderTest):
        """A commit may have very many rows, and one very many changes: all are made, and all can be read."""
        mine, snapshot_id = await begun(place)
        tasks = [_task(number) for number in range(_MANY)]
        start = StatusChange(snapshot_id, START, place.clock.now)
        await commit_below(mine, Commit([start], tasks))
        ends = [SUCCEED if number % 2 else CANCEL for number in range(_MANY)]
        changes = [StatusChange(f'work:{n}', t) for n, end in enumerate(ends) for t in (START, end)]
        await commit_below(mine, Commit(changes, [_task(_MANY)]))
        expected = ['running', *(end.target for end in ends), 'created']
        assert place.statuses() == expected
        history = await place.another().history('run')
        assert [record.status for record in history] == expected
        assert [record.seq for record in history] == list(range(1, _MANY + 3))
        assert [record.path for record in history[1:]] == [(('map', n),) for n in range(_MANY + 1)]
        await place.store.fork('run', into='fork')
        await place.store.import_run(await place.store.export('run'), run_id='copy')
        for run_id in ('fork', 'copy'):
            assert place.statuses(run_id) == ['created', *expected[1:]], f'the {run_id} should have every row'
            rows = await rows_of(place.another().run(run_id))
            assert [row.body.node for row in rows] == [row.body.node for row in await rows_of(mine)]
