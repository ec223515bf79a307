"""The commits that `sqlstep` makes in one go: they write what any commit of that content writes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphkeep import GraphkeepError, SqliteStore, StepRecord, sqlrun
from graphkeep.backend import LockBusy
from graphkeep.claims import Commitment
from graphkeep.codec import Body
from graphkeep.commit import Attempt, Commit, Owner, Receipt, Row, StatusChange
from graphkeep.offload import finished
from graphkeep.runinfo import last_change
from graphkeep.sqlstep import write_step
from graphkeep.sqlview import end_stamp, last_stamp, moment, stamp
from graphkeep.status import CLAIM, FAIL, RECOVER, RELEASE, RETRY, START, SUCCEED, Transition

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
OWNERS = {'first': Owner('a' * 32, 'here', 1), 'second': Owner('b' * 32, 'there', 2)}
OLD = Attempt(BEGAN, 0.5, 'released', 'never mind', None, 'process 1 on here')
"""An attempt that a snapshot had before it was stored."""


class Side:
    """One store, with the holders of its run, and how many commits were made in one go."""

    def __init__(self, path: Path, *, in_one_go: bool):
        self.path = path
        self.in_one_go = in_one_go
        self.made = 0
        self.moment = BEGAN
        self.runs: dict[str, Any] = {}
        """By holder. Each in a store of its own: what it has at hand grows old when the other one writes."""

    def run(self, holder: str) -> Any:
        """Return a holder's persistence of the run."""
        if holder not in self.runs:
            run: Any = SqliteStore(self.path, clock=lambda: self.moment).run('run')
            run._claims.owner = OWNERS[holder]
            run._backend.rows()  # which opens the file
            self.runs[holder] = run
        return self.runs[holder]

    def commit(self, holder: str, commit: Commit) -> Receipt | str:
        """Make the commit by one of two holders of the run; return its receipt, or the error as text."""
        self.moment += timedelta(milliseconds=7)
        run = self.run(holder)
        turn = Commitment(run._claims, commit)
        with patch.object(sqlrun, 'write_step', self._step):
            try:
                try:
                    return run._backend.write(turn)
                except LockBusy:  # the file is not open to stay
                    done = run._backend.queue(turn)
                    asyncio.run(finished(done))
                    return done.result()
            except GraphkeepError as exc:
                return f'{type(exc).__name__}: {exc}'

    def _step(self, *args: Any) -> Receipt | None:
        receipt = write_step(*args) if self.in_one_go else None
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
        """Return what a holder's next commit would be judged by, as far as that is at hand."""
        claims, view = self.runs[holder]._claims, self.runs[holder]._backend._view
        known = ('version', 'last', 'updated', 'ownership', 'in_hand', 'newest', 'known')
        return [
            (claims.in_hand, claims.fence, claims.keeping, claims._hold is None),
            None if view is None else {name: getattr(view, name) for name in known},
        ]

    def close(self) -> None:
        """Close the stores."""
        for run in self.runs.values():
            run._claims.forget()
            run._backend._database.close_soon()
            run._backend._database.close()


class Pair:
    """Two stores that are to be the same after every commit, of which one makes none in one go."""

    def __init__(self, directory: Path):
        self.sides = (
            Side(directory / 'one.db', in_one_go=True),
            Side(directory / 'two.db', in_one_go=False),
        )
        self.names = 0
        self.commit('first', lambda: Commit(rows=(self.row(),)))

    def row(self, **known: Any) -> Row:
        """Return the row of the next snapshot."""
        record = StepRecord(f'node{self.names}', 'Node', **known)
        return Row(record, Body(b'{"n":%d}' % self.names, b'{"node_id":"Node"}'))

    def commit(self, holder: str, make: Callable[[], Commit]) -> Receipt | None:
        """Make a commit on both sides, and compare all there is to compare."""
        outcomes = [side.commit(holder, make()) for side in self.sides]
        assert outcomes[0] == outcomes[1]
        self.compare()
        outcome = outcomes[0]
        return outcome if isinstance(outcome, Receipt) else None

    def compare(self) -> None:
        """Compare all there is to compare."""
        one, two = self.sides
        assert one.stored() == two.stored()
        for holder in one.runs:
            assert one.told(holder) == two.told(holder)

    def alter(self, columns: str) -> None:
        """Have somebody else change the row of the run on both sides."""
        for side in self.sides:
            with closing(sqlite3.connect(side.path)) as db, db:
                db.execute(f'UPDATE runs SET {columns}, version = version + 1')  # noqa: S608 -- of constants

    def claims(self, holder: str) -> list[Any]:
        """Return what a holder has in hand, on both sides, to be changed alike."""
        return [side.run(holder)._claims for side in self.sides]

    def keep(self, holder: str, *, keeping: bool = True) -> None:
        """Have a holder keep the run between its steps."""
        for claims in self.claims(holder):
            claims.keeping = keeping


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Return two stores."""
    pair = Pair(tmp_path)
    yield pair
    for side in pair.sides:
        side.close()


def start(pair: Pair, **known: Any) -> Commit:
    """Return the commit by which a node is started."""
    return Commit((StatusChange(f'node{pair.names}', START, **known),))


def end(pair: Pair, **known: Any) -> Commit:
    """Return the commit by which it ends and another one comes."""
    change = StatusChange(f'node{pair.names}', SUCCEED, None, 0.001)
    pair.names += 1
    row = pair.row(**known)
    pair.names -= 1
    return Commit((change,), (row,))


@pytest.mark.parametrize('keeping', [False, True])
def test_a_run(pair: Pair, keeping: bool):
    """Starts and ends are made in one go, also of a run that is kept between its steps."""
    for _ in range(20):
        pair.keep('first', keeping=keeping)
        assert pair.commit('first', lambda: start(pair)) is not None
        assert pair.commit('first', lambda: end(pair)) is not None
        pair.names += 1
    assert [side.made for side in pair.sides] == [40, 0]


def test_claimed_before(pair: Pair):
    """A node that was claimed before it is started is dated by its own start, and not by one before."""
    for _ in range(3):
        claim = StatusChange(f'node{pair.names}', CLAIM)
        assert pair.commit('first', lambda claim=claim: Commit((claim,))) is not None
        assert pair.commit('first', lambda: start(pair)) is not None
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
    assert pair.commit('second', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: start(pair)) is None, 'two have started it'
    assert pair.commit('second', lambda: end(pair)) is not None
    pair.names += 1
    assert pair.commit('first', lambda: start(pair)) is not None


def test_taken_over(pair: Pair):
    """Who has lost its run to somebody else is told so, whatever its own view shows."""
    assert pair.commit('first', lambda: start(pair)) is not None
    for side in pair.sides:
        side.moment += timedelta(hours=1)
    recovers = StatusChange('node0', RECOVER), StatusChange('node0', START)
    assert pair.commit('second', lambda: Commit(recovers)) is not None
    assert pair.commit('first', lambda: end(pair)) is None
    assert pair.commit('first', lambda: start(pair)) is None
    assert pair.commit('second', lambda: end(pair)) is not None


def test_attempted_before(pair: Pair):
    """A node that is tried again keeps what is known of its attempts."""
    for transition in (FAIL, RELEASE):
        assert pair.commit('first', lambda: start(pair)) is not None
        ends = StatusChange('node0', transition, None, 0.1)
        assert pair.commit('first', lambda ends=ends: Commit((ends,))) is not None
        if transition is FAIL:
            assert pair.commit('first', lambda: Commit((StatusChange('node0', RETRY),))) is not None
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair)) is not None
    for side in pair.sides:
        outcomes = [attempt.outcome for attempt in side.runs['first']._backend.rows()[0].record.attempts]
        assert outcomes == ['error', 'released', 'success']


def test_attempts_before(pair: Pair):
    """A snapshot that was attempted before it is stored keeps its attempts."""
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair, attempt=1, attempts=(OLD,))) is not None
    for side in pair.sides:
        assert side.runs['first']._backend.rows()[-1].record.attempts == (OLD,)


def test_two_in_hand(pair: Pair):
    """While another node is in hand as well, the row of the run holds both."""
    assert pair.commit('first', lambda: start(pair)) is not None
    pair.names = 1
    assert pair.commit('first', lambda: Commit(rows=(pair.row(),))) is not None
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair)) is not None
    for side in pair.sides:
        assert [row.record.id for row in side.runs['first']._backend.tail().open] == ['node0']


def test_older_snapshot(pair: Pair):
    """A snapshot that is not the newest one may be run as well; the newest one stays what it is."""
    pair.names = 1
    assert pair.commit('first', lambda: Commit(rows=(pair.row(),))) is not None
    pair.names = 0
    assert pair.commit('first', lambda: start(pair)) is not None


def test_gone_past(pair: Pair):
    """A node that returned itself is not started under the number of the snapshot before."""
    assert pair.commit('first', lambda: start(pair)) is not None
    ends = StatusChange('node0', SUCCEED, None, 0.001)
    assert pair.commit('first', lambda: Commit((ends,), (pair.row(),))) is not None
    assert pair.commit('first', lambda: start(pair, seq=1)) is None
    assert pair.commit('first', lambda: start(pair, seq=2)) is not None


def test_start_that_is_not_known(pair: Pair):
    """A step that somebody has stored as running without a start, and ends, does not set the run back."""
    assert pair.commit('first', lambda: start(pair)) is not None
    pair.alter("in_hand = json_set(in_hand, '$[0][2]', NULL)")
    assert pair.commit('first', lambda: end(pair)) is not None
    for side in pair.sides:
        assert side.stored()[0][0][8] > 0


def test_more_than_a_step(pair: Pair):
    """A commit that starts a node and stores something is made like any other."""
    names = pair.names
    pair.names += 1
    row = pair.row()
    begins = StatusChange(f'node{names}', START)
    assert pair.commit('first', lambda: Commit((begins,), (row,))) is not None


def test_start_of_what_has_ended(pair: Pair):
    """A node that is stored as one that has succeeded is not started."""
    pair.names = 1
    assert pair.commit('first', lambda: Commit(rows=(pair.row(status='success', attempt=1),))) is not None
    assert pair.commit('first', lambda: start(pair)) is None


def test_beside_what_nobody_has(pair: Pair):
    """A node that is stored as running, and is nobody's, stays so while another one is run."""
    assert pair.commit('first', lambda: start(pair)) is not None
    pair.alter('owner = NULL, expires = NULL')
    for claims in pair.claims('first'):
        claims.forget()
    pair.names = 1
    assert pair.commit('first', lambda: Commit(rows=(pair.row(),))) is not None
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair)) is not None
    for side in pair.sides:
        assert [row.record.id for row in side.runs['first']._backend.tail().open] == ['node0']


def test_run_that_somebody_keeps(pair: Pair):
    """A run that its owner keeps between two steps is not started by who does not have it."""
    pair.keep('first')
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair)) is not None
    pair.names += 1
    assert pair.commit('second', lambda: start(pair)) is None
    for claims in pair.claims('first'):
        claims.forget()
    assert pair.commit('first', lambda: start(pair)) is None, 'nor by who has lost it'


@pytest.mark.parametrize('fence', [0, 2])
def test_kept_under_another_fence(pair: Pair, fence: int):
    """Who had the run under another number has it no more."""
    pair.keep('first')
    assert pair.commit('first', lambda: start(pair)) is not None
    assert pair.commit('first', lambda: end(pair)) is not None
    pair.names += 1
    for claims in pair.claims('first'):
        claims.fence = fence
    assert pair.commit('first', lambda: start(pair)) is None


@pytest.mark.parametrize('in_hand', [(), ('node1',), ('node0', 'node1')])
def test_end_of_what_is_not_in_hand(pair: Pair, in_hand: tuple[str, ...]):
    """Only what an instance has in hand is ended by it; what else it has in hand, it keeps."""
    assert pair.commit('first', lambda: start(pair)) is not None
    for claims in pair.claims('first'):
        claims.in_hand = set(in_hand)
    made = pair.commit('first', lambda: end(pair))
    assert (made is not None) == ('node0' in in_hand)


def test_end_of_what_was_not_started(pair: Pair):
    """A node that is stored as handed out does not succeed, though it is known when it began."""
    assert pair.commit('first', lambda: start(pair)) is not None
    pair.alter("in_hand = json_set(in_hand, '$[0][1]', 'pending')")
    assert pair.commit('first', Commit) is not None, 'which looks at the run'
    assert pair.commit('first', lambda: end(pair)) is None


TRANSITIONS: tuple[Transition, ...] = START, SUCCEED, FAIL, RELEASE, CLAIM, RETRY, RECOVER
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {'kind': 'end', 'status': 'success', 'start_ts': BEGAN},
    {'attempt': 1, 'attempts': (OLD,)},
    {'kind': 'task'},
)


@settings(max_examples=80, deadline=None)
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
    holder = data.draw(st.sampled_from(['first', 'first', 'first', 'second']))
    what = data.draw(st.sampled_from(['start', 'end', 'start', 'end', 'start', 'end', 'other', 'claims']))
    if what == 'start':
        seq = data.draw(st.sampled_from([None, None, 1, 99]))
        at = data.draw(st.sampled_from([None, None, BEGAN, BEGAN + timedelta(days=1)]))
        pair.commit(holder, lambda: start(pair, seq=seq, at=at))
        return
    if what == 'end':
        kind, unless = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from([False, False, True]))

        def ends() -> Commit:
            commit = end(pair, **kind)
            commit.unless_any = unless
            return commit

        if pair.commit(holder, ends) is not None and not unless:
            pair.names += 1
        return
    if what == 'claims':
        _other_claims(pair, holder, data)
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
    rows = [pair.row()] * data.draw(st.integers(0, 1))
    pair.commit(holder, lambda: Commit(changes, rows))


def _other_claims(pair: Pair, holder: str, data: st.DataObject) -> None:
    """Have a holder keep the run or not, believe to have what it has not, or come an hour later."""
    what = data.draw(st.sampled_from(['keep', 'keep', 'fence', 'in hand', 'later']))
    chosen = data.draw(st.booleans())
    if what == 'later':
        for side in pair.sides:
            side.moment += timedelta(hours=1)
    for claims in pair.claims(holder):
        if what == 'keep':
            claims.keeping = chosen
        elif what == 'fence':
            claims.fence = claims.fence + 1 if chosen and claims.fence is not None else None
        elif what == 'in hand':
            claims.in_hand = {'none'} if chosen else set()


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
