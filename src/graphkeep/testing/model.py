"""What a store is, as plain as can be: a dict of runs, against which stores are compared."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from .clock import LEASE, Clock

__all__ = ('Model', 'ModelRow', 'ModelRun')


@dataclass
class ModelRow:
    """One snapshot."""

    id: str
    seq: int
    kind: str = 'node'
    status: str = 'created'
    attempt: int = 0
    outcomes: list[str] = field(default_factory=list[str])
    changed: datetime | None = None
    """When it was started last; for an end, when that was."""

    @property
    def is_open(self) -> bool:
        """Whether it is in somebody's hands."""
        return self.status in ('pending', 'running')

    def give_back(self, outcome: str) -> None:
        """Be as before the claim or the start, but for the attempt that ended."""
        if self.status == 'running':
            self.outcomes.append(outcome)
        self.status = 'created'

    def copy(self) -> ModelRow:
        """Return one that changes by itself."""
        return replace(self, outcomes=self.outcomes.copy())


@dataclass
class ModelRun:
    """One run. Only its newest snapshot may be anything but a success."""

    rows: list[ModelRow]
    created: datetime
    tags: tuple[str, ...] = ()
    parent: tuple[str, int] | None = None
    fence: int = 0
    holder: object | None = None
    """Who has it in hand."""
    expires: datetime | None = None

    @property
    def last(self) -> ModelRow:
        """The newest snapshot."""
        return self.rows[-1]

    @property
    def status(self) -> str:
        """The status of the run."""
        return self.last.status

    @property
    def updated(self) -> datetime:
        """When it was changed last, but for how long its nodes took in fact."""
        return max([self.created, *(row.changed for row in self.rows[-2:] if row.changed)])

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.last.kind == 'end'

    def append(self, id_: str, kind: str = 'node', changed: datetime | None = None) -> None:
        """Add a snapshot."""
        status = 'success' if kind == 'end' else 'created'
        self.rows.append(ModelRow(id_, self.last.seq + 1, kind, status, changed=changed))

    def free(self) -> None:
        """Be nobody's."""
        self.holder = self.expires = None

    def passed(self, before: datetime) -> int:
        """Return how many snapshots pruning takes: those that it has gone past, and that ended before."""
        reached = [i for i, row in enumerate(self.rows) if row.attempt or row.kind == 'end']
        for count, row in enumerate(self.rows[: reached[-1] if reached else 0]):
            if row.changed is not None and row.changed >= before:
                return count
        return reached[-1] if reached else 0


class Model:
    """A store."""

    def __init__(self, clock: Clock):
        self.clock = clock
        self.runs: dict[str, ModelRun] = {}

    def is_free(self, run: ModelRun) -> bool:
        """Whether anybody may take the run."""
        return run.holder is None or (run.expires is not None and run.expires <= self.clock.now)

    def is_resumable(self, run: ModelRun) -> bool:
        """Whether anybody may go on with the run."""
        return run.status == 'created' or (run.last.is_open and self.is_free(run))

    def take(self, run: ModelRun, holder: object) -> None:
        """Have the run in hand."""
        run.fence += 1
        run.holder = holder
        run.expires = self.clock.now + timedelta(seconds=LEASE)

    def claim(self, run: ModelRun, holder: object) -> None:
        """Be handed the newest snapshot, which was recovered first if somebody had it."""
        if run.last.is_open:
            run.last.give_back('recovered')
        run.last.status = 'pending'
        self.take(run, holder)

    def start(self, run: ModelRun, holder: object) -> None:
        """Start the newest snapshot; who has it in hand already renews the lease."""
        run.last.status = 'running'
        run.last.attempt += 1
        run.last.changed = self.clock.now
        if run.holder is holder:
            run.expires = self.clock.now + timedelta(seconds=LEASE)
        else:
            self.take(run, holder)

    def recover(self, run: ModelRun) -> None:
        """Set the newest snapshot back; the one who does it takes the run and gives it up."""
        run.last.give_back('recovered')
        run.fence += 1
        run.free()

    def fork(self, run_id: str, into: str, at: int) -> None:
        """Copy the first snapshots of a run, up to the one at a position, which is to be run again."""
        source = self.runs[run_id]
        rows = [row.copy() for row in source.rows[: at + 1]]
        if rows[-1].kind == 'node':
            rows[-1] = ModelRow(rows[-1].id, rows[-1].seq)
        parent = (run_id, rows[-1].seq)
        self.runs[into] = ModelRun(rows, self.clock.now, source.tags, parent)

    def move(self, run_id: str, into: str) -> None:
        """Copy a run, in nobody's hands."""
        source = self.runs[run_id]
        rows = [row.copy() for row in source.rows]
        if rows[-1].is_open:
            rows[-1].give_back('recovered')
        self.runs[into] = ModelRun(rows, source.created, source.tags, source.parent)

    def prune(self, before: datetime, keep_last: int, *, only_finished: bool) -> tuple[int, int]:
        """Delete old finished runs, and what others have gone past; return how many of each."""
        finished = sorted(
            ((r.updated, run_id) for run_id, r in self.runs.items() if r.is_finished), reverse=True
        )
        old = [run_id for updated, run_id in finished[keep_last:] if updated < before]
        for run_id in old:
            del self.runs[run_id]
        snapshots = 0
        if not only_finished:
            for run in self.runs.values():
                if not run.is_finished:
                    passed = run.passed(before)
                    del run.rows[:passed]
                    snapshots += passed
        return len(old), snapshots
