"""The commits that `sqlstep` makes in one go: they write what any commit of that content writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphkeep import GraphkeepError, SqliteStore, StepRecord, sqlrun, sqlstep
from graphkeep.codec import Body
from graphkeep.commit import Attempt, Commit, Owner, Receipt, Row, StatusChange, Writer
from graphkeep.runinfo import last_change
from graphkeep.sqlview import end_stamp, last_stamp, moment, stamp
from graphkeep.status import CLAIM, FAIL, RELEASE, RETRY, START, SUCCEED, Transition

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
OWNERS = Owner('a' * 32, 'here', 1), Owner('b' * 32, 'there', 2)
OLD = Attempt(BEGAN, 0.5, 'released', 'never mind', None, 'process 1 on here')
"""An attempt that a snapshot had before it was stored."""


@dataclass
class Side:
    """One store, with what makes its commits and how many of them were made in one go."""

    path: Path
    in_one_go: bool
    made: int = 0
    moment: datetime = BEGAN
    runs: dict[str, Any] = field(default_factory=dict[str, Any])

    def commit(self, holder: str, commit: Commit) -> Receipt | str:
        """Make the commit by one of two holders of the run; return its receipt, or the error as text."""
        self.moment += timedelta(milliseconds=7)
        if holder not in self.runs:
            # a store of its own: what this holder has at hand of the run grows old when the other one writes
            self.runs[holder] = SqliteStore(self.path, clock=lambda: self.moment).run('run')._backend
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlrun, 'write_step', self._write_step)
            try:
                return self.runs[holder].commit(commit)
            except GraphkeepError as exc:
                return f'{type(exc).__name__}: {exc}'

    def _write_step(self, *args: Any) -> Receipt | None:
        receipt = sqlstep.write_step(*args) if self.in_one_go else None
        self.made += receipt is not None
        return receipt

    def stored(self) -> list[Any]:
        """Return every row of every table."""
        with closing(sqlite3.connect(self.path)) as db:
            return [
                db.execute(f'SELECT * FROM {table} ORDER BY 1, 2').fetchall()  # noqa: S608 -- of constants
                for table in ('runs', 'steps', 'bodies', 'tags')
            ]

    def told(self, holder: str) -> Any:
        """Return what a holder's next commit would be judged by, where it has that at hand."""
        view = self.runs[holder]._view
        known = ('version', 'last', 'updated', 'ownership', 'in_hand', 'newest', '_known')
        return None if view is None else {name: getattr(view, name) for name in known}

    def close(self) -> None:
        """Close the stores."""
        for run in self.runs.values():
            run._database.close_soon()
            run._database.close()


class Pair:
    """Two stores that are to be the same after every commit, of which one makes none in one go."""

    def __init__(self, directory: Path):
        self.sides = Side(directory / 'one.db', True), Side(directory / 'two.db', False)
        self.names = 0
        self.fence: int | None = 0
        self.commit('first', lambda: Commit(rows=(self.row(),)))

    def row(self, **known: Any) -> Row:
        """Return the row of the next snapshot."""
        record = StepRecord(f'node{self.names}', 'Node', **known)
        return Row(record, Body(b'{"n":%d}' % self.names, b'{"node_id":"Node"}'))

    def commit(self, holder: str, make: Callable[[], Commit]) -> Receipt | None:
        """Make a commit on both sides, and compare all there is to compare."""
        outcomes = [side.commit(holder, make()) for side in self.sides]
        assert outcomes[0] == outcomes[1]
        one, two = self.sides
        assert one.stored() == two.stored()
        for known in one.runs:
            assert one.told(known) == two.told(known)
        outcome = outcomes[0]
        if not isinstance(outcome, Receipt):
            return None
        self.fence = outcome.fence
        return outcome


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Return two stores."""
    return Pair(tmp_path)


def start(pair: Pair, owner: Owner = OWNERS[0], *, give_up: bool = False, **known: Any) -> Commit:
    """Return the commit by which a node is started."""
    change = StatusChange(f'node{pair.names}', START, **known)
    return Commit((change,), writer=Writer(None, owner, 30.0, give_up, owner.id))


def kept(pair: Pair, owner: Owner = OWNERS[0]) -> Commit:
    """Return the commit by which a node is started of a run that its owner has kept."""
    return Commit(
        (StatusChange(f'node{pair.names}', START),), writer=Writer(pair.fence, owner, 30.0, False, owner.id)
    )


def end(pair: Pair, owner: Owner = OWNERS[0], *, give_up: bool = True, **known: Any) -> Commit:
    """Return the commit by which it ends and another one comes."""
    change = StatusChange(f'node{pair.names}', SUCCEED, None, 0.001)
    pair.names += 1
    row = pair.row(**known)
    pair.names -= 1
    return Commit((change,), (row,), writer=Writer(pair.fence, None, 30.0, give_up, owner.id))


@pytest.mark.parametrize('give_up', [True, False])
def test_a_run(pair: Pair, give_up: bool):
    """Starts and ends are made in one go, also of a run that is kept between its steps."""
    for _ in range(20):
        begins = start(pair) if give_up or not pair.names else kept(pair)
        assert pair.commit('first', lambda begins=begins: begins) is not None
        assert pair.commit('first', lambda: end(pair, give_up=give_up)) is not None
        pair.names += 1
    assert [side.made for side in pair.sides] == [40, 0]


def test_claimed_before(pair: Pair):
    """A node that was claimed before it is started is dated by its own start, and not by one before."""
    for _ in range(3):
        claim = StatusChange(f'node{pair.names}', CLAIM)
        taken = Commit((claim,), writer=Writer(None, OWNERS[0], 30.0, False, OWNERS[0].id))
        assert pair.commit('first', lambda taken=taken: taken) is not None
        begins = kept(pair)
        assert pair.commit('first', lambda begins=begins: begins) is not None
        assert pair.commit('first', lambda: end(pair)) is not None
        pair.names += 1
        assert pair.commit('first', lambda: start(pair)) is not None
        assert pair.commit('first', lambda: end(pair)) is not None
        pair.names += 1
    assert [side.made for side in pair.sides] == [9, 0]


def test_written_by_another(pair: Pair):
    """What another store has written since is noticed, and the commit judged by it."""
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair)) is not None
    pair.names += 1
    assert pair.commit('second', lambda: start(pair, OWNERS[1])) is not None
    assert pair.commit('first', lambda: start(pair)) is None, 'two have started it'
    assert pair.commit('second', lambda: end(pair, OWNERS[1])) is not None
    pair.names += 1
    assert pair.commit('first', lambda: start(pair)) is not None


def test_attempts_before(pair: Pair):
    """A snapshot that was attempted before it is stored keeps its attempts."""
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair, attempt=1, attempts=(OLD,))) is not None
    for side in pair.sides:
        assert side.runs['first'].rows()[-1].record.attempts == (OLD,)


def test_two_in_hand(pair: Pair):
    """While another node is in hand as well, the row of the run holds both."""
    assert pair.commit('first', lambda: start(pair)) is not None
    holding = Writer(pair.fence, OWNERS[0], 30.0, False, OWNERS[0].id)
    pair.names = 1
    assert pair.commit('first', lambda: Commit(rows=(pair.row(),), writer=holding)) is not None
    begins = Commit((StatusChange('node1', START),), writer=holding)
    assert pair.commit('first', lambda: begins) is not None
    assert pair.commit('first', lambda: end(pair, give_up=False)) is not None
    for side in pair.sides:
        assert [row.record.id for row in side.runs['first'].tail().open] == ['node0']


def test_older_snapshot(pair: Pair):
    """A snapshot that is not the newest one may be run as well; the newest one stays what it is."""
    pair.names = 1
    assert pair.commit('first', lambda: Commit(rows=(pair.row(),))) is not None
    pair.names = 0
    assert pair.commit('first', lambda: start(pair)) is not None


def test_gone_past(pair: Pair):
    """A node that returned itself is not started under the number of the snapshot before."""
    assert pair.commit('first', lambda: start(pair)) is not None
    ended = Commit((StatusChange('node0', SUCCEED, None, 0.001),), (pair.row(),))
    ended.writer = Writer(pair.fence, None, 30.0, True, OWNERS[0].id)
    assert pair.commit('first', lambda: ended) is not None
    assert pair.commit('first', lambda: start(pair, seq=1)) is None
    assert pair.commit('first', lambda: start(pair, seq=2)) is not None


def test_start_that_is_not_known(pair: Pair):
    """A step that somebody has stored as running without a start, and ends, does not set the run back."""
    assert pair.commit('first', lambda: start(pair)) is not None
    for side in pair.sides:
        with closing(sqlite3.connect(side.path)) as db, db:
            db.execute("UPDATE runs SET in_hand = json_set(in_hand, '$[0][2]', NULL), version = version + 1")
    renewal = Commit(writer=Writer(pair.fence, OWNERS[0], 30.0, False, OWNERS[0].id))
    assert pair.commit('second', lambda: renewal) is not None, 'which looks at the run'
    assert pair.commit('second', lambda: end(pair)) is not None
    for side in pair.sides:
        assert side.stored()[0][0][8] > 0


TRANSITIONS: tuple[Transition, ...] = START, SUCCEED, FAIL, RELEASE, CLAIM, RETRY
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {'kind': 'end', 'status': 'success', 'start_ts': BEGAN},
    {'attempt': 1, 'attempts': (OLD,)},
    {'kind': 'task'},
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_commits(data: st.DataObject):
    """Whatever two holders try, it has the same outcome and leaves the same rows."""
    with TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        try:
            for _ in range(data.draw(st.integers(1, 25))):
                _anything(pair, data)
        finally:
            for side in pair.sides:
                side.close()


def _anything(pair: Pair, data: st.DataObject) -> None:
    holder, owner = data.draw(st.sampled_from([('first', OWNERS[0]), ('second', OWNERS[1])]))
    what = data.draw(st.sampled_from(['start', 'end', 'start', 'end', 'other']))
    if what == 'start':
        seq = data.draw(st.sampled_from([None, None, 1, 99]))
        at = data.draw(st.sampled_from([None, BEGAN, BEGAN + timedelta(days=1)]))
        give_up = data.draw(st.sampled_from([False, False, False, True]))
        pair.commit(holder, lambda: start(pair, owner, give_up=give_up, seq=seq, at=at))
        return
    if what == 'end':
        give_up, kind = data.draw(st.booleans()), data.draw(st.sampled_from(KINDS))
        if pair.commit(holder, lambda: end(pair, owner, give_up=give_up, **kind)) is not None:
            pair.names += 1
        return
    changes = data.draw(
        st.lists(
            st.builds(
                StatusChange,
                st.sampled_from([f'node{pair.names}', f'node{max(0, pair.names - 1)}', 'none']),
                st.sampled_from(TRANSITIONS),
                duration=st.sampled_from([None, 0.5]),
            ),
            max_size=2,
        )
    )
    fence = data.draw(st.sampled_from([None, pair.fence, 0]))
    writer = Writer(
        fence, data.draw(st.sampled_from([None, owner])), 30.0, data.draw(st.booleans()), owner.id
    )
    rows = [pair.row()] * data.draw(st.integers(0, 1))
    pair.commit(holder, lambda: Commit(changes, rows, writer=writer))


@example(datetime.max.replace(tzinfo=UTC), 0.5)
@given(
    st.datetimes(timezones=st.just(UTC)),
    st.none() | st.floats() | st.floats(0, 2) | st.integers(0, 4_000_000).map(lambda n: n / 2e6),
)
def test_end(began: datetime, duration: float | None):
    """When a step ended is the same moment, whether it is told as a number or as a date."""
    record = StepRecord('id', 'Node', start_ts=began, duration=duration)
    number = stamp(began)
    assert number is not None
    assert moment(end_stamp(number, duration)) == last_change(record)
    assert moment(last_stamp(record)) == last_change(record)
