"""Runs in memory: pydantic-graph 1.x's two persistences of live objects, and a store of encoded runs."""

from __future__ import annotations

import copy
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn, cast
from uuid import uuid4

from . import _host
from ._host import RunEndT, StateT
from .backend import LoggedRun, RunLog, apply
from .codec import Body, Codec
from .commit import NAMELESS, UNOWNED, About, Attempt, Commit, Receipt, Row, StatusChange, StepRecord, Tail
from .copying import copied
from .errors import SnapshotStatusError, UnknownSnapshotError
from .jsonrun import dump_run, parse_run
from .persistence import StatePersistence
from .runinfo import RunInfo, RunQuery, check_clock
from .snapshots import NodeSnapshot, Snapshot, SnapshotStatus, now_utc
from .status import CLAIM, START, SUCCEED
from .store import Store
from .stored import LEASE, StoredStatePersistence

__all__ = ('FullStatePersistence', 'MemoryStore', 'SimpleStatePersistence')


@dataclass
class _Live(StatePersistence[StateT, RunEndT]):
    """What the two persistences of live objects have in common: statuses that change in place.

    Nothing is encoded, so nothing can be lost in encoding; there are no other processes, so there is no
    ownership.
    """

    run_id: str = field(default_factory=lambda: uuid4().hex, init=False, repr=False, compare=False)
    _kept: dict[int, _Kept] = field(
        default_factory=lambda: cast('dict[int, _Kept]', {}), init=False, repr=False, compare=False
    )  # by the snapshot's identity: what a snapshot has no field for, where there is something to keep
    _count: int = field(default=0, init=False, repr=False, compare=False)

    @abstractmethod
    def _find(self, snapshot_id: str) -> Snapshot[StateT, RunEndT] | None:
        """Return the newest snapshot with this id."""

    @abstractmethod
    def _add(self, snapshot: Snapshot[StateT, RunEndT]) -> None: ...

    @abstractmethod
    def _snapshots(self) -> Sequence[Snapshot[StateT, RunEndT]]:
        """Return the snapshots, oldest first."""

    async def _commit(self, commit: Commit) -> Receipt:
        # without an await, so atomic within the event loop
        changes = commit.changes
        attempt = 0
        if len(changes) == 1:
            attempt = self._change(self._changeable(changes[0]), changes[0])
        else:
            for snapshot, change in [(self._changeable(change), change) for change in changes]:
                attempt = self._change(snapshot, change)
        conditional = commit.unless_any or commit.unless_exists is not None
        if commit.rows and not (conditional and self._is_there(commit)):
            for row in commit.rows:
                self._count += 1
                self._add(row.body)
            return _DONE
        return Receipt(0, self._count, attempt)

    def _is_there(self, commit: Commit) -> bool:
        """Whether what the commit brings need not be appended."""
        if commit.unless_any:
            return bool(self._snapshots())
        return self._find(commit.unless_exists or '') is not None

    def _changeable(self, change: StatusChange) -> NodeSnapshot[StateT, RunEndT]:
        snapshot = self._find(change.snapshot_id)
        if snapshot is None:
            raise UnknownSnapshotError(self.run_id, change.snapshot_id)
        if not isinstance(snapshot, NodeSnapshot):
            raise SnapshotStatusError(self.run_id, change.snapshot_id, change.transition, 'success')
        if snapshot.status not in change.transition.sources:
            raise SnapshotStatusError(self.run_id, change.snapshot_id, change.transition, snapshot.status)
        return snapshot

    def _change(self, snapshot: NodeSnapshot[StateT, RunEndT], change: StatusChange) -> int:
        """Change the snapshot in place, and return its attempt number."""
        transition = change.transition
        first = not self._kept or id(snapshot) not in self._kept
        if transition is START:
            if first and snapshot.start_ts is None:
                snapshot.status = 'running'
                snapshot.start_ts = change.at or now_utc()
                return 1
        elif first and (transition is SUCCEED or transition is CLAIM):
            snapshot.status = cast('SnapshotStatus', transition.target)
            snapshot.duration = change.duration
            return 1
        record = self._record(snapshot).changed(self.run_id, change, now=now_utc())
        snapshot.status, snapshot.start_ts, snapshot.duration = (
            cast('SnapshotStatus', record.status),
            record.start_ts,
            record.duration,
        )
        self._kept[id(snapshot)] = _Kept(snapshot, record.attempt, record.attempts)
        return record.attempt

    def _record(self, snapshot: Snapshot[StateT, RunEndT], seq: int = 0) -> StepRecord:
        if not isinstance(snapshot, NodeSnapshot):
            return StepRecord(
                id=snapshot.id, kind='end', node_id='End', status='success', seq=seq, start_ts=snapshot.ts
            )
        kept = self._kept.get(id(snapshot))
        attempt, attempts = (
            (kept.attempt, kept.attempts) if kept else (int(snapshot.start_ts is not None), ())
        )
        if not kept and snapshot.status == 'success':
            attempts = (Attempt(snapshot.start_ts, snapshot.duration, 'success'),)
        return StepRecord(
            id=snapshot.id,
            node_id=snapshot.node.get_node_id(),
            status=snapshot.status,
            seq=seq,
            start_ts=snapshot.start_ts,
            duration=snapshot.duration,
            attempt=attempt,
            attempts=attempts,
        )

    def _row(self, snapshot: Snapshot[StateT, RunEndT]) -> Row:
        return Row(_NO_RECORD, self._freeze(snapshot))

    async def _tail(self) -> Tail:
        rows = await self._rows()
        tail: list[Row] = []
        for row in reversed(rows):
            tail.append(row)
            if row.record.reached:
                break
        return Tail(tail, [row for row in rows if row.record.status in ('pending', 'running')])

    async def _rows(self) -> list[Row]:
        snapshots = self._snapshots()
        first = max(self._count - len(snapshots), 0) + 1
        return [Row(self._record(s, seq), s) for seq, s in enumerate(snapshots, start=first)]

    def _thaw(self, row: Row) -> Snapshot[StateT, RunEndT]:
        return copy.deepcopy(row.body)

    def _thaw_state(self, row: Row) -> StateT:
        return copy.deepcopy(row.body.state)


_NO_RECORD = StepRecord(id='', node_id='')
_DONE = Receipt()


@dataclass(slots=True)
class _Kept:
    snapshot: Any  # keeps it alive, so that its identity stays its own
    attempt: int
    attempts: tuple[Attempt, ...]


@dataclass
class SimpleStatePersistence(_Live[StateT, RunEndT]):
    """Keeps the last snapshot of a run, with the live objects. The default of a graph run.

    State and node are the run's own objects, not copies: a node that is interrupted after it changed the
    state runs again on the changed state. Use `FullStatePersistence` or a store where that matters.
    """

    last_snapshot: Snapshot[StateT, RunEndT] | None = None
    """The last snapshot."""

    def _find(self, snapshot_id: str) -> Snapshot[StateT, RunEndT] | None:
        last = self.last_snapshot
        return last if last is not None and last.id == snapshot_id else None

    def _add(self, snapshot: Snapshot[StateT, RunEndT]) -> None:
        self.last_snapshot = snapshot
        if self._kept:
            self._kept.clear()

    def _snapshots(self) -> Sequence[Snapshot[StateT, RunEndT]]:
        return [] if self.last_snapshot is None else [self.last_snapshot]

    def _freeze(self, snapshot: Snapshot[StateT, RunEndT]) -> Snapshot[StateT, RunEndT]:
        return snapshot


@dataclass
class FullStatePersistence(_Live[StateT, RunEndT]):
    """Keeps every snapshot of a run in memory; for tests and notebooks."""

    deep_copy: bool = True
    """Whether a snapshot holds deep copies of state and node, as they were when it was taken.

    With `False` it refers to the run's own objects.
    """
    history: list[Snapshot[StateT, RunEndT]] = field(
        default_factory=lambda: cast('list[Snapshot[StateT, RunEndT]]', [])
    )
    """The snapshots, oldest first."""
    _types: tuple[Any, ...] | None = field(default=None, init=False, repr=False, compare=False)

    async def load_all(self) -> list[Snapshot[StateT, RunEndT]]:
        """Return `history`: the list itself, as on pydantic-graph 1.x, not a copy of it."""
        await self._flush()
        return self.history

    def should_set_types(self) -> bool:
        """Whether no graph was named before."""
        return self._types is None

    def set_types(self, state_type: type[StateT], run_end_type: type[RunEndT]) -> None:
        """Learn the types that `dump_json` and `load_json` need; anything may be kept in memory."""
        self._types = (_host.current_node_types() or (), state_type, run_end_type)

    def dump_json(self, *, indent: int | None = None, verify: bool = True) -> bytes:
        """Return the history as JSON, in pydantic-graph 1.x's format.

        Args:
            indent: How many spaces to indent by; by default everything is on one line.
            verify: Whether to check that each snapshot would be loaded as it is.

        Raises:
            UnfaithfulSnapshotError: if a snapshot would not be loaded as it is.
            UnsupportedTypeError: if pydantic cannot write or read one of the graph's types.
        """
        codec = self._codec()
        return dump_run(
            [
                Row(self._record(s, seq), codec.encode(s, run_id=self.run_id, verify=verify))
                for seq, s in enumerate(self.history, start=1)
            ],
            indent=indent,
        )

    def load_json(self, json_data: str | bytes | bytearray) -> None:
        """Replace the history by what `dump_json`, or pydantic-graph 1.x's own, has written.

        Raises:
            CorruptSnapshotError: if it is something else, or is not of this graph; the history stays as it
                was.
            UnsupportedTypeError: if pydantic cannot write or read one of the graph's types.
        """
        codec = self._codec()
        rows = parse_run(json_data, place='the JSON given').rows
        history = [codec.decode(row.record, row.body, place='the JSON given') for row in rows]
        self.history = history
        self._kept = {
            id(s): _Kept(s, row.record.attempt, row.record.attempts)
            for s, row in zip(history, rows, strict=True)
            if row.record.attempt > 1 or row.record.error
        }
        self._count = len(history)

    def _codec(self) -> Codec[StateT, RunEndT]:
        if self._types is None:
            raise RuntimeError(
                'The types are not known yet: call `persistence.set_graph_types(graph)` first.'
            )
        return Codec.of(*self._types)

    def _find(self, snapshot_id: str) -> Snapshot[StateT, RunEndT] | None:
        # from the newest on: it is nearly always the one that is meant, so a step's cost does not grow with
        # the run
        return next((s for s in reversed(self.history) if s.id == snapshot_id), None)

    def _add(self, snapshot: Snapshot[StateT, RunEndT]) -> None:
        self.history.append(snapshot)

    def _snapshots(self) -> Sequence[Snapshot[StateT, RunEndT]]:
        return self.history

    def _freeze(self, snapshot: Snapshot[StateT, RunEndT]) -> Snapshot[StateT, RunEndT]:
        if self.deep_copy:
            # the snapshot is fresh and its own; only what it refers to is shared with the run
            if snapshot.state is not None:
                snapshot.state = copied(snapshot.state)
            if isinstance(snapshot, NodeSnapshot):
                snapshot.node = copied(snapshot.node)
            elif snapshot.result.data is not None:
                snapshot.result = copy.deepcopy(snapshot.result)
        return snapshot


class MemoryStore(Store):
    """Keeps many runs in memory, encoded just as a store on disk keeps them; for tests.

    What a store on disk refuses is refused here, and what is loaded is a fresh object, so code that works
    with this store works with the others. Safe to use from several threads and event loops.
    """

    _inline = True

    def __init__(self, *, lease: float = LEASE, verify: bool = True, clock: Callable[[], datetime] = now_utc):
        """Make an empty store.

        Args:
            lease: How long a run stays its owner's without a renewal, in seconds.
            verify: Whether to check before each write that the snapshot would be loaded as it was given.
            clock: What leases are measured with (UTC).

        Raises:
            ValueError: if `lease` is not of that kind.
            TypeError: if `clock` is no function.
        """
        self.clock = check_clock(clock)
        self._lease = lease
        self._verify = verify
        self._held: dict[str, _MemoryRun] = {}
        # the options are wrong here, not where the first run is asked for
        StoredStatePersistence(_MemoryRun('check', clock), lease=lease)

    def _open(self, run_id: str, tags: tuple[str, ...]) -> StoredStatePersistence[Any, Any]:
        return StoredStatePersistence(self._run(run_id), lease=self._lease, verify=self._verify, tags=tags)

    def _run(self, run_id: str) -> _MemoryRun:
        return self._held.get(run_id) or self._held.setdefault(run_id, _MemoryRun(run_id, self.clock))

    def _list(self, query: RunQuery) -> list[RunInfo]:
        infos = [run.look() for run in tuple(self._held.values())]
        return query.select(info for info in infos if info is not None)

    def _rows(self, run_id: str) -> tuple[list[Row], About]:
        return self._run(run_id).everything()

    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        return self._run(run_id).insert(rows, about)

    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        return self._run(run_id).delete(ended_before)

    def _trim(self, run_id: str, before: datetime) -> int:
        return self._run(run_id).trim(before)


class _MemoryRun(LoggedRun):
    """One run, as rows in memory."""

    prompt = True

    def __init__(self, run_id: str, clock: Callable[[], datetime]):
        self.run_id = run_id
        self.clock = clock
        self.log = RunLog(run_id)
        self._bodies: list[Body] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            'the runs of a MemoryStore cannot be pickled or copied, for they are in the memory of this '
            'process: take another store, and make one in each process, from the same path'
        )

    def body(self, index: int) -> Body:
        """Return the body of the row at this position."""
        return self._bodies[index]

    def commit(self, commit: Commit) -> Receipt:
        """Apply the commit whole, or raise and change nothing."""
        with self._lock:
            applied = apply(self.log, commit, self.clock())
            self.log.accept(applied)
            self._bodies.extend(row.body for row in applied.appended)
            return applied.receipt

    def tail(self) -> Tail:
        """Return the end of the run."""
        with self._lock:
            return self._tail()

    def rows(self) -> list[Row]:
        """Return every row, oldest first."""
        with self._lock:
            return self._rows()

    def everything(self) -> tuple[list[Row], About]:
        """Return every row, oldest first, and what else is known of the run."""
        with self._lock:
            return self._rows(), self.log.about

    def look(self) -> RunInfo | None:
        """Return what is known of the whole run, `None` if nothing is stored of it."""
        with self._lock:
            return self.info()

    def insert(self, rows: Sequence[Row], about: About) -> bool:
        """Store a whole run, unless there is one."""
        with self._lock:
            if self.log.last:
                return False
            self._replace(rows, about)
            return True

    def delete(self, ended_before: datetime | None) -> bool:
        """Delete everything, if it ended before this moment; return whether there was anything."""
        with self._lock:
            if there := self._may_be_deleted(ended_before):
                self._replace((), NAMELESS)
            return there

    def trim(self, before: datetime) -> int:
        """Delete the oldest rows, those that ended before and that the run has gone past."""
        with self._lock:
            passed = self.log.passed(before)
            if passed:
                ownership = self.log.ownership
                self._replace(self._rows()[passed:], self.log.about)
                self.log.ownership = ownership
            return passed

    def _replace(self, rows: Sequence[Row], about: About) -> None:
        self.log.load((row.record for row in rows), UNOWNED, about)
        self._bodies = [row.body for row in rows]
