"""The rules by which every backend decides: who may write, and what a change makes of a record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from graphkeep import Owner, Ownership, OwnershipLostError, RunOwnedError, StepError, StepRecord
from graphkeep.commit import KEPT_ATTEMPTS, UNOWNED, Commit, StatusChange, Writer, admit
from graphkeep.status import CLAIM, FAIL, RECOVER, RELEASE, RETRY, START, SUCCEED, Transition

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
# of another host, so that nothing but the lease says whether it lives
ME = Owner('me', 'host', 1)
OTHER = Owner('other', 'host', 2)


def admitted(ownership: Ownership, writer: Writer, now: datetime = NOW) -> Ownership:
    """Return the ownership after a commit by this writer."""
    return admit('run', ownership, Commit(writer=writer), now)


def test_taking_a_free_run():
    """Who takes a free run has it for its lease, under the next fence."""
    assert admitted(UNOWNED, Writer(take=ME, lease=30)) == Ownership(1, ME, LATER)
    assert admitted(Ownership(7), Writer(take=ME, lease=30)) == Ownership(8, ME, LATER)


def test_taking_an_owned_run():
    """A run that somebody has is not taken, and the error says who has it and until when."""
    with pytest.raises(RunOwnedError) as refused:
        admitted(Ownership(3, OTHER, LATER), Writer(take=ME, lease=30))
    assert (refused.value.owner, refused.value.until) == (OTHER, LATER)


def test_taking_an_expired_run():
    """When the lease ends, anybody may take the run; not a moment earlier."""
    owned = Ownership(3, OTHER, LATER)
    with pytest.raises(RunOwnedError):
        admitted(owned, Writer(take=ME, lease=30), LATER - timedelta(microseconds=1))
    assert admitted(owned, Writer(take=ME, lease=30), LATER).fence == 4


def test_going_on_having_a_run():
    """Who has the run writes under its fence and renews its lease; the fence stays."""
    owned = Ownership(3, ME, LATER)
    assert admitted(owned, Writer(3, ME, 30), LATER) == Ownership(3, ME, LATER + timedelta(seconds=30))
    assert admitted(owned, Writer(3)) == owned


@pytest.mark.parametrize('fence', [0, 2, 4])
def test_a_stale_fence(fence: int):
    """A writer with another fence than the run's has lost it, whoever has it now."""
    with pytest.raises(OwnershipLostError) as refused:
        admitted(Ownership(3, OTHER, LATER), Writer(fence, ME, 30))
    assert refused.value.owner == OTHER


def test_a_fence_of_a_run_that_was_given_up():
    """A fence is no good once the run was given up."""
    with pytest.raises(OwnershipLostError):
        admitted(Ownership(3), Writer(3, ME, 30))


def test_giving_up():
    """Who gives the run up leaves its fence behind, so that the next owner gets another one."""
    assert admitted(Ownership(3, ME, LATER), Writer(3, give_up=True)) == Ownership(3)
    assert admitted(Ownership(3), Writer(take=ME, give_up=True)) == Ownership(4)


def test_writing_without_taking():
    """Who only writes to a free run does not change who has it; to an owned run it may not."""
    assert admitted(Ownership(3), Writer()) == Ownership(3)
    with pytest.raises(RunOwnedError):
        admitted(Ownership(3, OTHER, LATER), Writer())


def after(record: StepRecord, *transitions: Transition) -> StepRecord:
    """Return the record after these changes."""
    for transition in transitions:
        record = record.changed('run', StatusChange(record.id, transition, NOW, 1.5), 'process 1')
    return record


NODE = StepRecord(id='A:1', node_id='A', seq=4)


def test_a_claim_is_no_attempt():
    """To be handed out, and given back, is no attempt."""
    claimed = after(NODE, CLAIM)
    assert (claimed.status, claimed.attempt, claimed.start_ts, claimed.owner) == (
        'pending',
        0,
        None,
        'process 1',
    )
    assert after(NODE, CLAIM, RELEASE) == NODE
    assert after(NODE, CLAIM, RECOVER) == NODE


def test_a_start_is_an_attempt():
    """A start is counted, and begins with a time and without a duration."""
    again = after(NODE, START, FAIL, RETRY, START)
    assert (again.status, again.attempt, again.start_ts, again.duration) == ('running', 2, NOW, None)
    assert again.owner == 'process 1'


@pytest.mark.parametrize(
    'transition, outcome',
    [(SUCCEED, 'success'), (FAIL, 'error'), (RELEASE, 'released'), (RECOVER, 'recovered')],
)
def test_an_ended_attempt(transition: Transition, outcome: str):
    """An attempt that ended is kept with its start, its duration, its outcome and who ran it."""
    ended = after(NODE, START, transition)
    (attempt,) = ended.attempts
    assert (attempt.start_ts, attempt.duration, attempt.outcome, attempt.owner) == (
        NOW,
        1.5,
        outcome,
        'process 1',
    )
    assert (ended.owner, ended.seq, ended.id) == (None, 4, 'A:1')


def test_error_of_the_latest_attempt():
    """`error` is there while the snapshot is failed, not before and not after a retry."""
    error = StepError('ValueError', 'bad luck', '...')
    running = after(NODE, START)
    failed = running.changed('run', StatusChange('A:1', FAIL, NOW, 1.5, error))
    assert (running.error, failed.error, after(failed, RETRY).error) == (None, error, None)
    assert after(failed, RETRY).attempts[0].error == error


def test_very_many_attempts():
    """Only the last attempts are described, and all are counted."""
    record = NODE
    for _ in range(KEPT_ATTEMPTS + 5):
        record = after(record, START, FAIL, RETRY)
    assert (record.attempt, len(record.attempts)) == (KEPT_ATTEMPTS + 5, KEPT_ATTEMPTS)


def test_reached():
    """The run got as far as a snapshot once its node was started, however that ended."""
    for way in ([], [CLAIM], [CLAIM, RELEASE], [CLAIM, RECOVER]):
        assert not after(NODE, *way).reached
    for way in ([START], [START, SUCCEED], [START, FAIL], [START, RELEASE], [START, FAIL, RETRY]):
        assert after(NODE, *way).reached


def test_end_is_reached():
    """The run got as far as its end once there is one."""
    assert StepRecord(id='end:1', kind='end', node_id='End', status='success').reached


@pytest.mark.parametrize('length', [20_000, 20_001, 10_000_000])
def test_endless_message(length: int):
    """Of a message, and of a traceback, of more than 20,000 characters beginning and end are kept."""
    text = f'begin{"x" * (length - 8)}end'
    error = StepError.of(ValueError(text))
    if length == 20_000:
        assert error.message == text
    else:
        assert len(error.message) < 20_100
        assert (error.message[:5], error.message[-3:]) == ('begin', 'end')
        assert '\n...\n' in error.message
    assert len(error.traceback) < 20_100
    assert error.traceback.endswith('end\n')
