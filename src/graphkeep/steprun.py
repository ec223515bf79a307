"""`StepRun`: the run of one node, from its start to what is known of its end."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .commit import Commit, StatusChange, StepError
from .errors import GraphkeepError, LockTimeoutError, OwnershipLostError, StorageError
from .status import FAIL, RELEASE, START, SUCCEED, Transition
from .step import Step, running

if TYPE_CHECKING:
    from .persistence import StatePersistence

__all__ = ('StepRun', 'breaking', 'broken', 'undone')


class StepRun(AbstractAsyncContextManager[None]):
    """The run of one node; what `record_run` returns."""

    __slots__ = ('_begun', '_guard', '_outer', '_persistence', '_receipt', '_snapshot_id')

    def __init__(self, persistence: StatePersistence[Any, Any], snapshot_id: str):
        self._persistence = persistence
        self._snapshot_id = snapshot_id

    async def __aenter__(self) -> None:
        persistence = self._persistence
        if persistence._ended is not None or persistence._failed is not None:
            await persistence._flush()
        start = StatusChange(self._snapshot_id, START)
        if (latest := persistence._latest) is not None and latest[0] == self._snapshot_id and latest[1]:
            start.seq = latest[1]
        self._begun = perf_counter()
        # before the write: what is being started is no longer there for `release` to give back
        if claimed := persistence._claimed:
            persistence._claimed = claimed - {self._snapshot_id}
        try:
            self._receipt = receipt = await persistence._commit(Commit((start,)))
        except BaseException as exc:
            if isinstance(exc, StorageError) and not undone(exc):
                await self._end(RELEASE, exc)
            elif self._snapshot_id in claimed:
                persistence._claimed |= {self._snapshot_id}
            raise
        self._begun = perf_counter()  # before that it may have waited for its turn
        if receipt.interrupted is not None:
            await self._end(RELEASE, receipt.interrupted)
            raise receipt.interrupted
        self._outer = running.get()
        running.set(self)
        if (guard := persistence._guard()) is not None:
            guard.__enter__()
        self._guard = guard

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        running.set(self._outer)
        if self._guard is not None and self._guard.__exit__(kind, exc, tb):
            raise self._guard.lost or OwnershipLostError(self._persistence.run_id, None) from exc
        if exc is None:
            duration = perf_counter() - self._begun
            self._persistence._ended = StatusChange(self._snapshot_id, SUCCEED, None, duration)
        else:
            interrupted = await self._end(breaking(exc), exc)
            if interrupted is not None and isinstance(exc, Exception):
                raise interrupted
        return False

    async def _end(self, transition: Transition, exc: BaseException) -> BaseException | None:
        """Write how it ended; return a cancellation that came meanwhile. `exc` goes on to the caller."""
        change = broken(self._snapshot_id, perf_counter() - self._begun, transition, exc)
        persistence = self._persistence
        commit = Commit(changes=(change,), must_land=True)
        try:
            return (await persistence._commit(commit)).interrupted
        except (StorageError, LockTimeoutError) as other:
            if undone(other):
                persistence._failed = commit  # the next use of this instance tries again
            exc.add_note(f'This could not be recorded yet: {other}')
        except GraphkeepError as other:
            exc.add_note(f'This could not be recorded: {other}')
        return None

    def step(self) -> Step:
        """Return what the node's code may know of this step."""
        return Step(self._persistence.run_id, self._snapshot_id, self._receipt.seq, self._receipt.attempt)


def breaking(exc: BaseException) -> Transition:
    """Return what becomes of a node that `exc` ended: it failed, unless it was interrupted."""
    return FAIL if isinstance(exc, Exception) else RELEASE


def broken(
    snapshot_id: str, duration: float | None, transition: Transition, exc: BaseException
) -> StatusChange:
    """Return how a node ended because of `exc`: it failed, or was interrupted."""
    if transition is FAIL:
        return StatusChange(snapshot_id, FAIL, None, duration, StepError.of(exc))
    return StatusChange(snapshot_id, RELEASE, None, duration, reason=f'interrupted by {type(exc).__name__}')


def undone(exc: StorageError | LockTimeoutError) -> bool:
    """Whether a commit that raised this has written nothing."""
    return isinstance(exc, LockTimeoutError) or exc.receipt is None
