"""`Store`: many runs, each under its id, and the verbs that every store has."""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

from .calls import Calling, answer, whole
from .commit import About, Row, StatusChange, StepRecord
from .errors import (
    CorruptSnapshotError,
    RunExistsError,
    RunOwnedError,
    SnapshotStatusError,
    UnknownRunError,
    UnknownSnapshotError,
)
from .jsonrun import dump_run, parse_run
from .names import check_run_id, check_tags
from .offload import Threads, submit
from .runinfo import Pruned, RunInfo, RunQuery, check_moment, check_statuses, is_count
from .status import RECOVER, RETRY, SnapshotStatus
from .stored import LOCK_TIMEOUT, StoredStatePersistence

__all__ = ('Store',)

T = TypeVar('T')

_PAGE: Final = 100  # runs that are listed at once where all are gone through
_CHOICE: Final = 16  # runs among which a claimer chooses, so that several do not all go for the same one


class Store(ABC):
    """A place that keeps many runs.

    Safe to use from several threads and event loops at once. Works as an async context manager, which closes
    it; a store that was not closed loses nothing that was committed.

    A verb that changes one run (`fork`, `import_run`, `delete`, `retry`, `recover`) is carried out once it is
    called, whatever is cancelled meanwhile, and the cancellation is raised when that is done: who is
    cancelled knows that it was made. `prune` and `recover_all` stop between two runs: what they have done is
    done, and calling them again does the rest. What only reads changes nothing, and a `claim` that is
    cancelled has nothing in hand.

    Besides what it names itself every verb raises:

    - `InvalidRunIdError` where it is given what can be no run's id,
    - `CorruptSnapshotError` where what it is to read is damaged, and nothing is changed then,
    - `LockTimeoutError` where somebody else is writing for longer than it was told to wait,
    - `StorageError` where the system refuses what is asked of it: the disk is full, the place cannot be
      written. It says whether anything was stored.

    A store is written by giving the abstract methods. They block, may be called from any thread, and are each
    atomic towards everybody else who uses the store.
    """

    clock: Callable[[], datetime]
    """What leases are measured with (UTC)."""

    _lock_timeout: float = LOCK_TIMEOUT
    _inline = False  # whether the methods below are quick enough for the event loop's own thread

    def __getstate__(self) -> dict[str, Any]:
        # for a copy, which another process may have, and which gets threads of its own
        return {name: value for name, value in vars(self).items() if name != '_threads'}

    # ------------------------------------------------------------------------------------------ one run

    def run(self, run_id: str, *, tags: Iterable[str] = ()) -> StoredStatePersistence[Any, Any]:
        """Return the persistence of one run; the run begins to exist with its first snapshot.

        Args:
            run_id: Any text of 1 to 128 characters that has no control characters and no slashes, and begins
                neither with a dot nor with a space.
            tags: What the run is to be found by, recorded when it begins: texts of 1 to 128 characters.

        Raises:
            InvalidRunIdError: if the id is not of that form.
            ValueError: if a tag is not, or `tags` is one text.
            TypeError: if `tags` is not several things at all.
        """
        return self._open(check_run_id(run_id), check_tags(tags))

    def set_graph_types(self, graph: object) -> NoReturn:
        """Refuse to be taken for the persistence of one run: a graph calls this first."""
        raise TypeError(
            f'{self!r} keeps many runs: give one of them, `store.run(run_id)`, as `persistence=`.'
        )

    async def history(self, run_id: str) -> list[StepRecord]:
        """Return what is known of every snapshot of a run, with attempts, errors and owners, oldest first.

        Raises:
            UnknownRunError: if there is no such run.
        """
        if not (records := await self.run(run_id).load_history()):
            raise UnknownRunError(run_id)
        return records

    @whole
    async def recover(self, run_id: str) -> int:
        """Set what an owner that is gone had pending or running back to `created`; idempotent.

        Returns:
            How many snapshots were set back.

        Raises:
            UnknownRunError: if there is no such run.
            RunOwnedError: if the owner lives, as far as can be known.
        """
        persistence = self.run(run_id)
        await persistence._known_tail()
        return await persistence.recover()

    @whole
    async def retry(self, run_id: str) -> None:
        """Give the failed node at which a run stopped another attempt, with the state from before it.

        It is `created` again, for anybody to go on with.

        Raises:
            UnknownRunError: if there is no such run.
            RunFinishedError: if the run has ended.
            SnapshotStatusError: if the run's newest snapshot is not `error`.
            RunOwnedError: if another living owner has the run.
        """
        await self.run(run_id).retry()

    @whole
    async def fork(
        self, run_id: str, *, into: str, at: str | int | None = None
    ) -> StoredStatePersistence[Any, Any]:
        """Make a new run that begins like this one, and goes on by itself from one of its snapshots.

        The new run has its own copy of everything up to that snapshot, which is to be run again there, unless
        it is the end.
        Whatever becomes of the old run does not touch it. The run it came from is on record as its `parent`.

        Args:
            run_id: The run to copy.
            into: The id of the new run.
            at: The snapshot to go on from, by its id (the newest with this id) or its number; by default the
                newest one. A run of a builder graph goes on from where it is: how its tasks stood before is
                not on record. What failed in it is to be run again, as after `retry`.

        Returns:
            The persistence of the new run.

        Raises:
            UnknownRunError: if there is no such run.
            UnknownSnapshotError: if it has no such snapshot.
            ValueError: if `at` is neither an id nor a number, or given for a run of a builder graph.
            RunExistsError: if there is a run `into` already.
        """
        if isinstance(at, bool) or not isinstance(at, str | int | None):
            raise ValueError(f'at must be the id or the number of a snapshot, got {at!r}')  # noqa: TRY004 -- as all that is wrong here
        forked = self.run(into)
        rows, about = await self._call(partial(self._rows, check_run_id(run_id)))
        if not rows:
            raise UnknownRunError(run_id)
        if any(row.record.is_part for row in rows):
            rows = _whole(run_id, rows, at)
            about = About(about.graph, about.tags, self.clock(), (run_id, rows[-1].record.seq))
            await self._insert_rows(into, rows, about)
            return forked
        *before, last = rows[: _position(run_id, rows, at) + 1]
        kept = [Row(_settled(run_id, row.record, 'forked'), row.body) for row in before]
        kept.append(Row(_afresh(last.record), last.body))
        parent = run_id, kept[-1].record.seq
        await self._insert_rows(into, kept, About(about.graph, about.tags, self.clock(), parent))
        return forked

    async def export(self, run_id: str, *, indent: int | None = None) -> bytes:
        """Return a run as JSON, in the format of `FileStatePersistence` and pydantic-graph 1.x.

        Args:
            run_id: The run.
            indent: How many spaces to indent by; by default everything is on one line.

        Raises:
            UnknownRunError: if there is no such run.
        """
        return await self._call(partial(self._dump, check_run_id(run_id), indent))

    @whole
    async def import_run(self, data: str | bytes | bytearray, *, run_id: str) -> None:
        """Store a run that `export`, `FileStatePersistence` or pydantic-graph 1.x has written.

        Nothing is decoded, so the graph need not be known. What is `pending` or `running` in it is `created`
        here, because whoever was at it is not at this copy.

        Args:
            data: The JSON.
            run_id: What to call the run here.

        Raises:
            CorruptSnapshotError: if it is something else, or has no snapshot. Nothing is stored.
            RunExistsError: if there is a run with this id already.
            TypeError: if it is neither text nor bytes.
        """
        check_run_id(run_id)
        if not isinstance(data, str | bytes | bytearray):
            raise TypeError(f'data must be the JSON of a run, as text or bytes, got {data!r}')
        rows, about = await self._call(partial(_given, run_id, data))
        if about.created is None:
            about = about._replace(created=self.clock())
        await self._insert_rows(run_id, rows, about)

    @whole
    async def delete(self, run_id: str) -> bool:
        """Delete a run, with everything that is stored of it.

        Returns:
            Whether there was such a run.

        Raises:
            RunOwnedError: if a living owner has it in hand.
            CorruptSnapshotError: if some of it cannot be deleted, for the storage is damaged.
        """
        return await self._change(partial(self._delete, check_run_id(run_id)))

    # ----------------------------------------------------------------------------------------- many runs

    async def runs(
        self,
        *,
        status: SnapshotStatus | Collection[SnapshotStatus] | None = None,
        graph: str | None = None,
        tag: str | None = None,
        updated_before: datetime | None = None,
        limit: int = 100,
        after: str | RunInfo | None = None,
    ) -> list[RunInfo]:
        """List runs, in the order of their ids; every condition given must hold.

        Args:
            status: Where they are, see `RunInfo.status`; one or several.
            graph: The name of their graph.
            tag: A tag that they have.
            updated_before: Before when they were last changed (aware).
            limit: How many at most.
            after: The last run of the page before, or its id; for the next page.

        Raises:
            ValueError: if a condition is none that a run could meet.
        """
        query = RunQuery(
            statuses=check_statuses(status),
            graph=graph,
            tag=tag,
            updated_before=updated_before,
            after=after.id if isinstance(after, RunInfo) else '' if after is None else after,
            limit=limit,
        )
        return await self._call(partial(self._list, query))

    async def claim(
        self, *, graph: str | None = None, tag: str | None = None
    ) -> StoredStatePersistence[Any, Any] | None:
        """Take one resumable run in hand, so that several processes can share the work.

        A run is resumable if it waits, was asked to be retried, or was left by an owner who is gone. It is
        this owner's from here on, also between its steps: until it has ended, failed, was interrupted or
        released, or what is returned is gone with its process or before. Give that to `run_or_resume`, or
        `release()` it. Runs that were unchanged the longest come first, roughly: one that is given back
        comes last. A run that cannot be read is passed over.

        Args:
            graph: Only runs of a graph with this name.
            tag: Only runs that have this tag.

        Returns:
            The persistence of a run that nobody else gets, or `None` if there is none now.

        Raises:
            ValueError: if `graph` or `tag` is none that a run could have.
        """
        query = RunQuery(graph=graph, tag=tag, resumable=True)
        tried: set[str] = set()
        while True:
            listed = await self._call(partial(self._list, replace(query, limit=_CHOICE + len(tried))))
            found = [info.id for info in listed if info.id not in tried]
            if not found:
                return None
            random.shuffle(found)
            for run_id in found:
                persistence = self.run(run_id)
                with suppress(*_NOT_NOW):
                    if await persistence.claim() is not None:
                        return persistence
            tried.update(found)

    async def recover_all(self) -> int:
        """Recover every run whose owner is gone; idempotent.

        Going on with such a run recovers it too. This is for a list that shows what can be gone on with.
        A run that cannot be read is left as it is.

        Returns:
            How many runs were recovered.
        """
        recovered = 0
        async for info in self._all(RunQuery(statuses=frozenset({'pending', 'running'}), limit=_PAGE)):
            if info.resumable:
                with suppress(*_NOT_NOW):
                    recovered += await self.run(info.id).recover() > 0
        return recovered

    async def prune(
        self,
        *,
        older_than: timedelta | datetime,
        keep_last: int = 0,
        only_finished: bool = True,
    ) -> Pruned:
        """Delete finished runs that nothing has happened to for so long; each in a write of its own.

        What an unfinished run needs to resume is never deleted. Nor is what a fork needs, which has its own.
        What cannot be read, or not be deleted because the storage is damaged, stays, and keeps no other run
        from being deleted.

        Args:
            older_than: How long ago the run ended, or before when (aware).
            keep_last: How many of the finished runs to keep whatever their age: the newest ones.
            only_finished: Otherwise unfinished runs, too, lose those of their snapshots that they have gone
                past and that ended so long ago. What comes next and the newest step that was begun stay.

        Returns:
            How much was deleted.

        Raises:
            ValueError: if `older_than` or `keep_last` is not of that kind. Nothing is deleted.
        """
        before = self._before(older_than)
        if not is_count(keep_last):
            raise ValueError(f'keep_last must be a number from 0 on, got {keep_last!r}')
        finished = RunQuery(statuses=frozenset({'success'}), limit=_PAGE)
        kept: set[str] = set()
        if keep_last:
            ends = [(i.updated or _EVER, i.id) async for i in self._all(finished)]
            kept = {run_id for _, run_id in heapq.nlargest(keep_last, ends)}
        runs = snapshots = 0
        async for info in self._all(replace(finished, updated_before=before)):
            if info.id not in kept:
                with suppress(CorruptSnapshotError, RunOwnedError):
                    # asked again there: by now it may be another run with this id
                    runs += await self._change(partial(self._delete, info.id, before))
        if not only_finished:
            async for info in self._all(RunQuery(statuses=_UNFINISHED, limit=_PAGE)):
                with suppress(CorruptSnapshotError):  # it is left as it is
                    snapshots += await self._change(partial(self._trim, info.id, before))
        return Pruned(runs, snapshots)

    def _before(self, older_than: timedelta | datetime) -> datetime:
        if not isinstance(older_than, timedelta):
            return check_moment('older_than', older_than, or_='a timedelta')
        try:
            return self.clock() - older_than
        except OverflowError:  # longer ago than there are dates
            return _EVER

    async def _all(self, query: RunQuery) -> AsyncIterator[RunInfo]:
        """Yield every run, a page at a time."""
        while page := await self._call(partial(self._list, query)):
            for info in page:
                yield info
            query = replace(query, after=page[-1].id)

    # -------------------------------------------------------------------------------------------- closing

    async def aclose(self) -> None:  # noqa: B027 -- most have nothing to close
        """Close what the store has opened; what was committed is there. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------------------- to be given by a store

    @abstractmethod
    def _open(self, run_id: str, tags: tuple[str, ...]) -> StoredStatePersistence[Any, Any]:
        """Return the persistence of the run with this id, which has been checked."""

    @abstractmethod
    def _list(self, query: RunQuery) -> list[RunInfo]:
        """Return the runs that are asked for, in order."""

    @abstractmethod
    def _rows(self, run_id: str) -> tuple[list[Row], About]:
        """Return every row of a run, oldest first, and what else is known of it; no rows if there is none."""

    @abstractmethod
    def _insert(self, run_id: str, rows: Sequence[Row], about: About) -> bool:
        """Store a whole run, with its rows numbered as they are, unless there is one with this id.

        Returns:
            Whether there was none.
        """

    @abstractmethod
    def _delete(self, run_id: str, ended_before: datetime | None = None) -> bool:
        """Delete a whole run, if it ended before this moment; return whether there was one.

        What could not be read may be deleted, too, unless there is such a condition.

        Raises:
            RunOwnedError: if a living owner has it.
        """

    @abstractmethod
    def _trim(self, run_id: str, before: datetime) -> int:
        """Delete the oldest snapshots that ended before this moment, as far as the run has gone past them.

        Returns:
            How many there were.
        """

    def _dump(self, run_id: str, indent: int | None) -> bytes:
        rows, about = self._rows(run_id)
        if not rows:
            raise UnknownRunError(run_id)
        return dump_run(rows, about, indent=indent)

    async def _insert_rows(self, run_id: str, rows: Sequence[Row], about: About) -> None:
        if not await self._change(partial(self._insert, run_id, rows, about)):
            raise RunExistsError(run_id)

    async def _call(self, func: Callable[[], T]) -> T:
        """Call what only reads."""
        return await self._called(func, submit)

    async def _change(self, func: Callable[[], T]) -> T:
        """Call what writes, and may have to wait for somebody else who does."""
        return await self._called(func, self._threads.submit)

    async def _called(self, func: Callable[[], T], submit: Callable[[Callable[[], T]], Future[T]]) -> T:
        how = Calling(repr(self), self._lock_timeout, self._inline, stubborn=False)
        return await answer(func, submit, how)

    @cached_property
    def _threads(self) -> Threads:
        return Threads('graphkeep-store')


_EVER: Final = datetime.min.replace(tzinfo=UTC)
_NOT_NOW: Final = (CorruptSnapshotError, RunOwnedError, SnapshotStatusError, UnknownSnapshotError)
# why one of many runs cannot be had: it cannot be read, or somebody else goes on with it by now
_UNFINISHED: Final[frozenset[SnapshotStatus]] = frozenset({'created', 'pending', 'running', 'error'})


def _given(run_id: str, data: str | bytes | bytearray) -> tuple[list[Row], About]:
    """Return what is to be imported, in nobody's hands."""
    place = 'the JSON given'
    run = parse_run(data, place=place)
    if not run.elements:
        raise CorruptSnapshotError(place, 'has no snapshot: there is nothing to import.')
    return [Row(_settled(run_id, row.record, 'imported'), row.body) for row in run.rows], run.about


def _position(run_id: str, rows: Sequence[Row], at: str | int | None) -> int:
    """Return the position of the row that is asked for."""
    if at is None:
        return len(rows) - 1
    positions = range(len(rows) - 1, -1, -1)
    wanted = (i for i in positions if at in (rows[i].record.id, rows[i].record.seq))
    if (position := next(wanted, None)) is None:
        raise UnknownSnapshotError(run_id, str(at))
    return position


def _whole(run_id: str, rows: Sequence[Row], at: str | int | None) -> list[Row]:
    """Return all rows of a run of a builder graph, in nobody's hands, with another attempt at what failed."""
    if at is not None:
        raise ValueError(
            f'run {run_id!r} is of a builder graph, which can be forked only as it is now: leave out `at`, '
            f'got {at!r}'
        )
    return [Row(_retried(run_id, _settled(run_id, row.record, 'forked')), row.body) for row in rows]


def _retried(run_id: str, record: StepRecord) -> StepRecord:
    """Return the record with another attempt asked for, if it failed."""
    return record.changed(run_id, StatusChange(record.id, RETRY)) if record.status == 'error' else record


def _afresh(record: StepRecord) -> StepRecord:
    """Return the record as if its node had never been run; an end stays what it is."""
    if record.kind == 'end':
        return record
    return StepRecord(record.id, record.node_id, seq=record.seq)


def _settled(run_id: str, record: StepRecord, reason: str) -> StepRecord:
    """Return the record in nobody's hands."""
    if record.status not in RECOVER.sources:
        return record
    return record.changed(run_id, StatusChange(record.id, RECOVER, reason=f'{reason} while in hand'))
