"""The one kind of write there is, as plain data, and the rules that decide whether a backend may apply it.

A backend takes a `Commit` and applies all of it or nothing. The rules are the pure functions at the end of
this module, so that every backend decides alike: `admit` for ownership, `StepRecord.changed` for statuses.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import Any, Final, Literal, NamedTuple, TypeVar, cast

from .errors import OwnershipLostError, RunOwnedError, SnapshotStatusError
from .owner import Owner, is_gone
from .status import CLAIM, RECOVER, RELEASE, START, TaskStatus, Transition

__all__ = (
    'ANYBODY',
    'NAMELESS',
    'START_NODE',
    'UNOWNED',
    'About',
    'Attempt',
    'Commit',
    'Kind',
    'Outcome',
    'Owner',
    'Ownership',
    'Parts',
    'Receipt',
    'Row',
    'StatusChange',
    'StepError',
    'StepRecord',
    'Tail',
    'Writer',
    'admit',
    'quick',
    'span',
)

T = TypeVar('T', bound=tuple[Any, ...])

KEPT_TEXT = 20_000
"""How many characters of an exception's message, and of its traceback, are kept."""
KEPT_ATTEMPTS = 20
"""How many ended attempts of one snapshot are kept; older ones are counted, not described."""


@dataclass(frozen=True, slots=True)
class StepError:
    """What a node raised."""

    type: str
    """The exception's class, with its module unless it is a builtin."""
    message: str
    """What `str` said of the exception."""
    traceback: str
    """The formatted traceback."""

    @classmethod
    def of(cls, exc: BaseException) -> StepError:
        """Return what is kept of an exception; of texts of more than 20,000 characters only a part is."""
        kind = type(exc)
        name = (
            kind.__qualname__ if kind.__module__ == 'builtins' else f'{kind.__module__}.{kind.__qualname__}'
        )
        try:
            message = str(exc)
        except Exception as other:
            message = f'<it cannot be told: {type(other).__name__}>'
        return cls(name, _shortened(message), _shortened(''.join(traceback.format_exception(exc))))


def _shortened(text: str) -> str:
    half = KEPT_TEXT // 2
    return text if len(text) <= KEPT_TEXT else f'{text[:half]}\n...\n{text[-half:]}'


Outcome = Literal['success', 'error', 'released', 'recovered', 'cancelled']
"""How an attempt at a node ended."""


class Attempt(NamedTuple):
    """One ended run of a node."""

    start_ts: datetime | None
    """When it started (UTC)."""
    duration: float | None
    """How long it took, in seconds; `None` where nobody was there to see its end."""
    outcome: Outcome
    """How it ended: the node returned, it raised, its owner gave it back, its owner was gone, or the run went
    on without it."""
    reason: str | None = None
    """Why, for a released or recovered attempt."""
    error: StepError | None = None
    """What the node raised."""
    owner: str | None = None
    """The process that ran it, where it is known."""


Kind = Literal['node', 'end', 'task', 'join', 'image']
"""What a row holds: a node to run, or the end of the run; or a part of a run of a builder graph.

- `'task'`: a task of the graph's scheduler.
- `'join'`: a join that has begun, and what it has come to.
- `'image'`: the state alone.
"""


START_NODE: Final = '__start__'
"""The node id of the row that stands for a run of a builder graph, unless it began as one of `BaseNode`s."""


class StepRecord(NamedTuple):
    """What is known of one stored snapshot without decoding it."""

    id: str
    """The snapshot's id. It may recur in a run: a node that returns itself keeps its id."""
    node_id: str
    """The node's id in the graph, `'End'` for the end."""
    kind: Kind = 'node'
    """Whether it is a node to run, the end of the run, or a part of a run of a builder graph."""
    status: TaskStatus = 'created'
    """Where it is in the status machine; an end is `'success'` from the start."""
    seq: int = 0
    """Its place in the run, from 1 on, in the order of writing."""
    start_ts: datetime | None = None
    """When its latest attempt started; for an end, when the run ended (UTC)."""
    duration: float | None = None
    """How long its latest attempt took, in seconds."""
    attempt: int = 0
    """How many times it was started."""
    attempts: tuple[Attempt, ...] = ()
    """The ended attempts, oldest first; the last ones where there were very many."""
    owner: str | None = None
    """The process that has it pending or running, where it is known."""
    path: tuple[tuple[str, int], ...] = ()
    """Of a task of a builder graph: the forks that it is under, each with the number of its branch or item,
    outermost first. Only there where a history was loaded."""

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a run of a builder graph; such a run is one node, which is run once."""
        return self.kind not in ('node', 'end')

    @property
    def error(self) -> StepError | None:
        """What the node raised, if its latest attempt ended in that."""
        return self.attempts[-1].error if self.status == 'error' and self.attempts else None

    @property
    def reached(self) -> bool:
        """Whether the run got as far as this snapshot: its node was started, or it is the end."""
        return self.attempt > 0 or self.kind == 'end'

    def numbered(self, seq: int) -> StepRecord:
        """Return the record with its place in the run."""
        id_, node_id, kind, status, _, start_ts, duration, attempt, attempts, owner, path = self
        return _step_record(
            (id_, node_id, kind, status, seq, start_ts, duration, attempt, attempts, owner, path)
        )

    def changed(
        self, run_id: str, change: StatusChange, owner: object = None, now: datetime | None = None
    ) -> StepRecord:
        """Return the record after `change`, which is made now and by this owner.

        Raises:
            SnapshotStatusError: if its status is not one from which the change is permitted.
        """
        transition = change.transition
        id_, node_id, kind, status, seq, start_ts, _, attempt, attempts, holder, path = self
        if kind == 'end' or status not in transition.sources:
            raise SnapshotStatusError(run_id, id_, transition, status)
        if transition is START:
            started, holder = change.at or now, None if owner is None else str(owner)
            return _step_record(
                (id_, node_id, kind, 'running', seq, started, None, attempt + 1, attempts, holder, path)
            )
        target = transition.target
        if (outcome := _OUTCOMES.get(transition.name)) is None or status != 'running':
            holder = None if owner is None or target != 'pending' else str(owner)
            return self._replace(status=target, owner=holder)
        duration = change.duration
        ended = _attempt((start_ts, duration, outcome, change.reason, change.error, holder))
        attempts = (*attempts, ended)[-KEPT_ATTEMPTS:] if attempts else (ended,)
        return _step_record(
            (id_, node_id, kind, target, seq, start_ts, duration, attempt, attempts, None, path)
        )


def quick(kind: type[T]) -> Callable[[tuple[Any, ...]], T]:
    """Return what makes a named tuple of its values, as its class does, but quicker: a step makes many."""
    return cast('Callable[[tuple[Any, ...]], T]', partial(tuple.__new__, kind))  # pyright: ignore[reportUnknownMemberType, reportArgumentType]


_step_record: Final = quick(StepRecord)
_attempt: Final = quick(Attempt)


_PASSED_ON: Final = frozenset({CLAIM, RELEASE, RECOVER})
# what changes hands without being run
_OUTCOMES: Final[dict[str, Outcome]] = {
    'succeed': 'success',
    'fail': 'error',
    'release': 'released',
    'recover': 'recovered',
    'cancel': 'cancelled',
}


@dataclass(slots=True)
class Row:
    """One stored snapshot."""

    record: StepRecord
    """What every backend knows of it."""
    body: Any
    """State and node in the form that the persistence gave them; opaque to the backend."""


@dataclass(slots=True)
class StatusChange:
    """One change of status within a commit; it means the newest snapshot with this id.

    Plain data, like `Row`, `Commit` and `Receipt`. None of them is changed once made, but that a commit is
    told who makes it. They are not frozen because that would double what it costs to make them, and every
    step makes several.
    """

    snapshot_id: str
    transition: Transition
    at: datetime | None = None
    """When a node started (UTC); `None` if it is about to, once this is written."""
    duration: float | None = None
    """How long the attempt took, in seconds."""
    error: StepError | None = None
    """What the node raised."""
    reason: str | None = None
    """Why it is released or recovered."""
    seq: int | None = None
    """The number of the snapshot that is meant, where it is known. If it is not the newest one with this id,
    the run has gone past it, and the change is refused."""


class Ownership(NamedTuple):
    """Who has a run."""

    fence: int = 0
    """How many times the run was taken; a commit made under an older number is refused."""
    owner: Owner | None = None
    """Who has it now, `None` while it waits for anybody."""
    expires: datetime | None = None
    """When the owner's lease runs out (UTC)."""
    since: datetime | None = None
    """When it was last claimed or given back (UTC); `None` once something else became of the run."""

    def is_free(self, now: datetime) -> bool:
        """Whether anybody may take the run: nobody has it, its lease has run out, or its process is gone."""
        return self.owner is None or (self.expires is not None and self.expires <= now) or is_gone(self.owner)


_ownership: Final = quick(Ownership)

UNOWNED: Final = Ownership()
"""The ownership of a run that nobody has taken yet."""


class Writer(NamedTuple):
    """Who makes a commit, as far as ownership goes."""

    fence: int | None = None
    """The number under which the writer has the run, `None` if it does not have it."""
    take: Owner | None = None
    """Take the run for this owner; adds 1 to the fence unless the writer has the run already."""
    lease: float = 0.0
    """How long the run is taken, or its lease renewed, for; in seconds from now."""
    give_up: bool = False
    """Give the run up, so that it is free for anybody."""
    holder: str | None = None
    """The id of the owner that the writer is. A run of which a part was deleted, or that was stored anew, may
    have had its fence before, so the number alone would not tell one owner from another."""


ANYBODY: Final = Writer()
"""A writer that neither has the run nor takes it."""


class About(NamedTuple):
    """What is known of a run besides its snapshots; recorded when it begins."""

    graph: str | None = None
    """The graph's name."""
    tags: tuple[str, ...] = ()
    """What the run is found by, sorted."""
    created: datetime | None = None
    """When its first snapshot was stored (UTC); `None` where that is not on record."""
    parent: tuple[str, int] | None = None
    """The run that it was forked from, and the number of the snapshot that it begins at."""


NAMELESS: Final = About()
"""What is known of a run of which nothing is on record."""


@dataclass(slots=True)
class Commit:
    """A write: applied whole or not at all."""

    changes: Sequence[StatusChange] = ()
    """Changes of status, in order, each refused unless it finds a status from which it is permitted."""
    rows: Sequence[Row] = ()
    """New snapshots, appended after the changes in this order."""
    unless_exists: str | None = None
    """Append nothing if the run has a snapshot with this id already."""
    unless_any: bool = False
    """Append nothing if the run has any snapshot already."""
    must_land: bool = False
    """It ends what a caller has in hand: while it waits for its turn it may not be cancelled either."""
    writer: Writer = ANYBODY
    """Who makes it; known when its turn comes."""
    about: About = NAMELESS
    """What to record of the run if this begins it."""


@dataclass(slots=True)
class Receipt:
    """What a commit did."""

    fence: int = 0
    """The run's fence after it."""
    seq: int = 0
    """The place of the last snapshot that it changed."""
    attempt: int = 0
    """The attempt number of the last snapshot that it changed."""
    last: int = 0
    """The number of the run's newest snapshot after it."""
    interrupted: BaseException | None = None
    """A cancellation that came while the commit was made; for the caller to raise."""


class Tail(NamedTuple):
    """The end of a run: all that going on with it needs, whatever the length of the run."""

    rows: Sequence[Row]
    """The rows from the newest back to the newest reached one, included; empty if nothing is stored."""
    open: Sequence[Row] = ()
    """The rows that are pending or running, wherever they are, oldest first."""
    ownership: Ownership = UNOWNED
    """Who has the run."""
    last: int = 0
    """The number of the newest row of all, parts included."""

    @property
    def has_parts(self) -> bool:
        """Whether the run is one of a builder graph that has got anywhere."""
        return bool(self.rows) and self.last > self.rows[0].record.seq


class Parts(NamedTuple):
    """What going on with a run of a builder graph needs, besides its tail."""

    open: Sequence[Row] = ()
    """The tasks and joins that have not ended, oldest first; of those with one id, the newest."""
    image: Row | None = None
    """The newest part that holds the state; `None` while it is as it was when the run began."""
    newest: Row | None = None
    """The newest part."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Parts:
        """Return the parts among all rows of a run."""
        parts = [row for row in rows if row.record.is_part]
        newest = {row.record.id: row for row in parts}
        return cls(
            [row for row in newest.values() if row.record.status in ('created', 'error')],
            next((row for row in reversed(parts) if row.body.state), None),
            parts[-1] if parts else None,
        )


def admit(run_id: str, ownership: Ownership, commit: Commit, now: datetime) -> Ownership:
    """Return the run's ownership after `commit`, or refuse it.

    Raises:
        OwnershipLostError: if the writer had the run and has it no more.
        RunOwnedError: if the writer does not have the run and a living owner does.
    """
    writer, fence = commit.writer, ownership.fence
    if writer.fence is not None:
        owner = ownership.owner
        if writer.fence != fence or owner is None or writer.holder not in (None, owner.id):
            raise OwnershipLostError(run_id, owner)
    elif ownership.owner is not None and not ownership.is_free(now):
        raise RunOwnedError(run_id, ownership.owner, ownership.expires)
    elif writer.take is not None:
        fence += 1
    since = None
    if not commit.rows:
        if not commit.changes:  # a renewal
            since = ownership.since
        elif commit.changes[-1].transition in _PASSED_ON:
            since = now
    if writer.give_up:
        return _ownership((fence, None, None, since))
    if writer.take is None:
        return ownership
    return _ownership((fence, writer.take, now + span(writer.lease), since))


@lru_cache(maxsize=16)
def span(seconds: float) -> timedelta:
    """Return so many seconds."""
    return timedelta(seconds=seconds)
