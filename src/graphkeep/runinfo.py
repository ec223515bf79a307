"""What is known of a whole run, and how runs are asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, get_args

from .commit import About, Ownership, StepError, StepRecord
from .errors import GraphkeepError
from .names import check_tags
from .owner import Owner
from .status import SnapshotStatus

__all__ = (
    'Pruned',
    'RunInfo',
    'RunQuery',
    'check_moment',
    'check_statuses',
    'damaged',
    'describe',
    'is_count',
    'is_number',
    'is_resumable',
    'last_change',
    'latest_steps',
    'newest_step',
    'run_status',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One run, as a store lists it."""

    id: str
    """The run's id."""
    graph: str | None
    """The name of its graph, if that had one when the run began."""
    status: SnapshotStatus
    """Where the run is: `'created'`, it waits for anybody; `'pending'` or `'running'`, somebody has its node;
    `'error'`, its node raised; `'success'`, it has ended."""
    steps: int
    """How many snapshots it has, those that were pruned included."""
    created: datetime | None
    """When its first snapshot was stored (UTC); `None` for a file that pydantic-graph 1.x wrote."""
    updated: datetime | None
    """When a step of it last began or ended (UTC), or it was created, claimed or given back."""
    owner: Owner | None
    """Who has it in hand."""
    expires: datetime | None
    """Until when, unless it is renewed (UTC)."""
    error: StepError | None
    """What the node raised at which the run stopped."""
    tags: tuple[str, ...]
    """What it is found by, sorted."""
    parent: tuple[str, int] | None
    """The run that it was forked from, and the number of the snapshot that it begins at."""
    resumable: bool
    """Whether anybody may go on with it now: it waits, or whoever had it in hand is gone."""

    def at(self, now: datetime) -> RunInfo:
        """Return what is known of the run if nothing was written to it up to now."""
        if self.status == 'success' or self.owner is None:
            return self
        resumable = is_resumable(self.status, Ownership(0, self.owner, self.expires), now)
        return self if resumable == self.resumable else replace(self, resumable=resumable)

    def ended_before(self, moment: datetime) -> bool:
        """Whether the run has ended, before this moment."""
        return self.status == 'success' and self.updated is not None and self.updated < moment


class Pruned(NamedTuple):
    """What `Store.prune` has deleted."""

    runs: int
    """How many runs, whole."""
    snapshots: int
    """How many snapshots of runs that are still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """Which runs to list; every condition must hold."""

    statuses: frozenset[SnapshotStatus] | None = None
    """One of these, or any."""
    graph: str | None = None
    """The graph's name."""
    tag: str | None = None
    """A tag that it has."""
    updated_before: datetime | None = None
    """When it was last changed (UTC)."""
    resumable: bool = False
    """Only those that anybody may go on with now."""
    after: str = ''
    """Only ids that come after this one."""
    limit: int | None = None
    """At most so many: the first ones by id, compared by code points; of resumable ones, those that were
    unchanged the longest."""

    def __post_init__(self) -> None:
        if self.limit is not None and not is_count(self.limit):
            raise ValueError(f'limit must be a number from 0 on, got {self.limit!r}')
        for name in ('graph', 'tag', 'after'):
            if not isinstance(text := getattr(self, name), str | None):
                raise ValueError(f'{name} must be a text, got {text!r}')  # noqa: TRY004 -- as the others
        if self.tag is not None:
            check_tags([self.tag])
        if self.updated_before is not None:
            check_moment('updated_before', self.updated_before)

    def admits(self, info: RunInfo) -> bool:
        """Whether the run is one of those, the limit aside."""
        return (
            (self.statuses is None or info.status in self.statuses)
            and (self.graph is None or info.graph == self.graph)
            and (self.tag is None or self.tag in info.tags)
            and (
                self.updated_before is None
                or (info.updated is not None and info.updated < self.updated_before)
            )
            and (not self.resumable or info.resumable)
            and info.id > self.after
        )

    def select(self, infos: Iterable[RunInfo]) -> list[RunInfo]:
        """Return those of the runs, in order."""
        key: Callable[[RunInfo], object] = _unchanged_for_longest if self.resumable else _by_id
        return sorted(filter(self.admits, infos), key=key)[: self.limit]  # type: ignore[arg-type]


def check_statuses(
    status: SnapshotStatus | Collection[SnapshotStatus] | None,
) -> frozenset[SnapshotStatus] | None:
    """Return the statuses that are asked for, `None` for any.

    Raises:
        ValueError: if one of them is none.
    """
    if status is None:
        return None
    known = get_args(SnapshotStatus)
    given: list[Any] = [status] if isinstance(status, str) or not isinstance(status, Iterable) else [*status]
    if wrong := [one for one in given if one not in known]:
        raise ValueError(f'status must be one or several of {", ".join(known)}, got {wrong[0]!r}')
    return frozenset(given)


def check_moment(name: str, moment: object, *, or_: str = '') -> datetime:
    """Return the moment if it is one.

    Args:
        name: What is said to be none.
        moment: What may be one.
        or_: What else it could have been.

    Raises:
        ValueError: if it is not, or could be one in any time zone.
    """
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ValueError(f'{name} must be an aware time{or_ and f" or {or_}"}, got {moment!r}')
    return moment


def check_clock(clock: Callable[[], datetime]) -> Callable[[], datetime]:
    """Return the clock if it can be asked; what it tells is for `check_moment`.

    Raises:
        TypeError: if it cannot.
    """
    if not callable(clock):
        raise TypeError(f'clock must be a function that returns an aware time, got {clock!r}')
    return clock


def is_count(value: object) -> bool:
    """Whether this is a number of things."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: object) -> bool:
    """Whether this is a number, such as one of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_id(info: RunInfo) -> str:
    return info.id


def _unchanged_for_longest(info: RunInfo) -> tuple[float, str]:
    return (info.updated.timestamp() if info.updated else 0.0, info.id)


def newest_step(records: Sequence[StepRecord]) -> StepRecord:
    """Return the newest record that is no part of another one; of parts alone, the newest."""
    return next((record for record in reversed(records) if not record.is_part), records[-1])


def latest_steps(records: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """Return the records among which is the one that ended last; parts end in any order."""
    return records if any(record.is_part for record in records[-2:]) else records[-2:]


def run_status(newest: StepRecord, open_: Collection[StepRecord]) -> SnapshotStatus:
    """Return the status of a run."""
    if newest.kind == 'end':
        return 'success'
    if open_:
        for record in open_:
            if record.status == 'running':
                return 'running'
        return 'pending'
    # a success without a next: what pydantic-graph 1.x leaves when it dies there
    return 'created' if newest.status == 'created' else 'error'


def describe(
    run_id: str, about: About, records: list[StepRecord], ownership: Ownership, now: datetime
) -> RunInfo:
    """Return what is known of a run of which every record is at hand."""
    newest = newest_step(records)
    open_ = [record for record in records if record.status in ('pending', 'running')]
    status = run_status(newest, open_)
    moments = [about.created, ownership.since, *map(last_change, (*latest_steps(records), *open_))]
    return RunInfo(
        id=run_id,
        graph=about.graph,
        status=status,
        steps=records[-1].seq,
        created=about.created,
        updated=max((moment for moment in moments if moment is not None), default=None),
        owner=ownership.owner,
        expires=ownership.expires,
        error=newest.error,
        tags=about.tags,
        parent=about.parent,
        resumable=is_resumable(status, ownership, now),
    )


def is_resumable(status: SnapshotStatus, ownership: Ownership, now: datetime) -> bool:
    """Whether anybody may go on with a run now."""
    left = status in ('pending', 'running') and ownership.owner is not None
    return (status == 'created' or left) and ownership.is_free(now)


def damaged(run_id: str, exc: GraphkeepError) -> RunInfo:
    """Return what is known of a run that cannot be read."""
    return RunInfo(
        id=run_id,
        graph=None,
        status='error',
        steps=0,
        created=None,
        updated=None,
        owner=None,
        expires=None,
        error=StepError.of(exc),
        tags=(),
        parent=None,
        resumable=False,
    )


def last_change(record: StepRecord) -> datetime | None:
    """Return when the latest attempt at a snapshot began or, if it ended, when that was."""
    if record.start_ts is None or record.duration is None:
        return record.start_ts
    try:
        return record.start_ts + timedelta(0, record.duration)
    except (OverflowError, ValueError):  # a file may say that it took infinitely long, or until after 9999
        return record.start_ts
