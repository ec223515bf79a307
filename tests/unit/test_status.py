"""The table of transitions: what it must and must not permit, whoever changes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import pytest

from graphkeep import SnapshotStatus, SnapshotStatusError, StepRecord, status
from graphkeep.commit import StatusChange
from graphkeep.status import RECOVER, RELEASE, RETRY, START, TRANSITIONS, TaskStatus, Transition

STATUSES: tuple[SnapshotStatus, ...] = get_args(SnapshotStatus)


def leading_to(target: SnapshotStatus) -> set[TaskStatus]:
    """Return the statuses from which `target` is reached in one change."""
    return {
        source for transition in TRANSITIONS if transition.target == target for source in transition.sources
    }


def test_every_transition_is_in_the_table():
    """What the module defines and what the table holds are the same, each under a name of its own."""
    assert {value for value in vars(status).values() if isinstance(value, Transition)} == set(TRANSITIONS)
    assert len({transition.name for transition in TRANSITIONS}) == len(TRANSITIONS)


def test_success_is_final():
    """A node that succeeded is never run again: nothing leads out of `success`."""
    assert not [transition for transition in TRANSITIONS if 'success' in transition.sources]


def test_only_retry_leaves_error():
    """Only who asks for a retry sets a failed node back."""
    assert [transition for transition in TRANSITIONS if 'error' in transition.sources] == [RETRY]
    assert RETRY.sources == {'error'}


def test_a_running_node_is_not_started_again():
    """Of two starters one wins: what is running or claimed by another way than `created` cannot be begun."""
    assert leading_to('running') == START.sources == {'created', 'pending'}
    assert leading_to('pending') == {'created'}


def test_only_a_running_node_ends():
    """Success and error are the ends of a node that ran."""
    assert leading_to('success') == leading_to('error') == {'running'}


def test_what_is_in_hand_can_be_given_back():
    """Whatever an owner has in hand it can give back, and others can recover."""
    assert RELEASE.sources == RECOVER.sources == {'pending', 'running'}
    assert RELEASE.target == RECOVER.target == RETRY.target == 'created'


def test_every_status_is_reached():
    """Each status but the first is the target of a change."""
    assert {transition.target for transition in TRANSITIONS} == set(STATUSES)


@pytest.mark.parametrize('found', STATUSES)
@pytest.mark.parametrize('transition', TRANSITIONS, ids=lambda t: t.name)
def test_record_follows_the_table(transition: Transition, found: SnapshotStatus):
    """A record changes as the table has it; any other change is refused with what was found."""
    record = StepRecord(id='A:1', node_id='A', status=found)
    change = StatusChange('A:1', transition, datetime.now(UTC))
    if found in transition.sources:
        assert record.changed('run', change).status == transition.target
    else:
        with pytest.raises(SnapshotStatusError) as refused:
            record.changed('run', change)
        assert (refused.value.expected, refused.value.found) == (transition.sources, found)
