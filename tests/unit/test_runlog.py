"""`RunLog`: what a commit makes of a run, computed before it is stored."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from graphkeep import Owner, SnapshotStatusError, StepRecord, UnknownSnapshotError
from graphkeep.backend import RunLog, apply
from graphkeep.commit import UNOWNED, Commit, Receipt, Row, StatusChange, Writer
from graphkeep.status import CLAIM, FAIL, START, SUCCEED, Transition

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def row(snapshot_id: str) -> Row:
    """Return a new row."""
    return Row(StepRecord(id=snapshot_id, node_id='A'), None)


def commit(log: RunLog, commit_: Commit) -> Receipt:
    """Compute and accept."""
    applied = apply(log, commit_, NOW)
    log.accept(applied)
    return applied.receipt


def change(snapshot_id: str, *transitions: Transition) -> Commit:
    """Return a commit with these changes of one snapshot."""
    return Commit(changes=[StatusChange(snapshot_id, transition, NOW) for transition in transitions])


def log_of(*ids: str) -> RunLog:
    """Return a log with these created snapshots."""
    log = RunLog('run')
    commit(log, Commit(rows=[row(i) for i in ids]))
    return log


def test_apply_changes_nothing():
    """What a commit makes of a run is computed without touching it: a failed write changes nothing."""
    log = log_of('a')
    before = (list(log.records), log.ownership, log.tail_positions(), log.open_positions())
    writer = Writer(take=Owner('me', 'host', 1), lease=30)
    apply(log, Commit(changes=[StatusChange('a', START, NOW)], rows=[row('b')], writer=writer), NOW)
    assert (list(log.records), log.ownership, log.tail_positions(), log.open_positions()) == before


def test_numbers():
    """Snapshots are numbered from 1 on in the order of writing, within a commit and over many."""
    log = log_of('a', 'b')
    commit(log, Commit(rows=[row('c')]))
    assert [(record.id, record.seq) for record in log.records] == [('a', 1), ('b', 2), ('c', 3)]


def test_receipt():
    """A receipt tells the place and the attempt of what was changed last."""
    log = log_of('a', 'b')
    receipt = commit(log, change('b', START))
    assert (receipt.seq, receipt.attempt) == (2, 1)


def test_newest_is_meant():
    """Of snapshots with one id the newest is changed, also once the run was loaded anew."""
    log = log_of('a')
    commit(log, change('a', START, SUCCEED))
    commit(log, Commit(rows=[row('a')]))
    log.load(list(log.records), UNOWNED)
    commit(log, change('a', START))
    assert [record.status for record in log.records] == ['success', 'running']


def test_changes_build_on_each_other():
    """Several changes of one snapshot in one commit see each other."""
    log = log_of('a')
    assert commit(log, change('a', CLAIM, START, FAIL)).attempt == 1
    assert [record.status for record in log.records] == ['error']


def test_refused_whole():
    """If the last of many changes is refused, none is computed."""
    log = log_of('a', 'b')
    for last, error in (('b', SnapshotStatusError), ('c', UnknownSnapshotError)):
        changes = [StatusChange('a', START, NOW), StatusChange(last, SUCCEED, NOW)]
        with pytest.raises(error):
            apply(log, Commit(changes=changes, rows=[row('d')]), NOW)
    assert [record.status for record in log.records] == ['created', 'created']


def test_unless():
    """`unless_exists` and `unless_any` keep rows out, and changes in."""
    log = log_of('a')
    commit(log, Commit(rows=[row('a')], unless_exists='a'))
    commit(log, Commit(rows=[row('b')], unless_any=True))
    assert [record.id for record in log.records] == ['a']
    commit(log, Commit(rows=[row('b')], unless_exists='b'))
    assert [record.id for record in log.records] == ['a', 'b']
    empty = RunLog('run')
    commit(empty, Commit(rows=[row('b')], unless_any=True))
    assert [record.id for record in empty.records] == ['b']


def test_tail():
    """The tail reaches back from the newest record to the newest that was started."""
    log = log_of('a', 'b', 'c')
    assert log.tail_positions() == [2, 1, 0]
    commit(log, change('b', START, SUCCEED))
    assert log.tail_positions() == [2, 1]
    commit(log, change('c', CLAIM))
    assert log.tail_positions() == [2, 1]
    assert RunLog('run').tail_positions() == []


def test_open():
    """What is pending or running is found wherever it is, oldest first, until it ends."""
    log = log_of('a', 'b', 'c')
    commit(log, change('c', CLAIM))
    commit(log, change('a', START))
    assert log.open_positions() == [0, 2]
    loaded = RunLog('run')
    loaded.load(log.records, UNOWNED)
    assert loaded.open_positions() == [0, 2]
    commit(log, change('a', SUCCEED))
    assert log.open_positions() == [2]
