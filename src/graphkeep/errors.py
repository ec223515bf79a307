"""Every error that graphkeep raises of its own.

```
GraphkeepError
├── SnapshotStatusError     (GraphNodeStatusError)       a status change that the table does not permit
├── UnknownSnapshotError    (LookupError)                no snapshot with this id in the run
├── UnknownRunError         (LookupError, GraphRuntimeError)   the store knows no such run
├── RunFinishedError        (GraphRuntimeError)          the run has ended
├── RunFailedError          (GraphRuntimeError)          the run's last node raised
├── RunOwnedError           (GraphRuntimeError)          another owner, which lives, has the run
├── OwnershipLostError      (GraphRuntimeError)          another owner took the run over
├── RunExistsError          (GraphRuntimeError)          a run with this id is there already
├── InvalidRunIdError       (ValueError)                 a run id that no store accepts
├── UnusableStoreError      (ValueError)                 a file that is no store, or one of a later version
├── UnsupportedTypeError    (TypeError)                  a type that pydantic cannot write or read
├── UnsupportedHostError    (ImportError)                a pydantic-graph without such a graph builder
├── UnfaithfulSnapshotError (ValueError)                 a value that would not be loaded as it was given
├── CorruptSnapshotError    (ValueError)                 something stored that cannot be read
├── StorageError            (OSError)                    the storage refused a read or a write
├── LockTimeoutError        (TimeoutError)               somebody else held the storage for too long
└── NoCurrentStepError      (LookupError)                `current_step()` was called outside of a node
```

The names in brackets are the standard and host classes that each also is, so that code which catches those
goes on working. Every message says what was asked, what was found and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from ._host import GraphNodeStatusError, GraphRuntimeError
from .status import SnapshotStatus, TaskStatus, Transition

if TYPE_CHECKING:
    from .commit import Receipt, StepError
    from .owner import Owner

__all__ = (
    'CorruptSnapshotError',
    'GraphNodeRunningError',
    'GraphNodeStatusError',
    'GraphkeepError',
    'InvalidRunIdError',
    'LockTimeoutError',
    'NoCurrentStepError',
    'OwnershipLostError',
    'RunExistsError',
    'RunFailedError',
    'RunFinishedError',
    'RunOwnedError',
    'SnapshotStatusError',
    'StorageError',
    'UnfaithfulSnapshotError',
    'UnknownRunError',
    'UnknownSnapshotError',
    'UnsupportedHostError',
    'UnsupportedTypeError',
    'UnusableStoreError',
)

E = TypeVar('E', bound=BaseException)


class GraphkeepError(Exception):
    """Base of every error of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        # what it was made of is not kept, only what was made of that
        return _remade, (type(self), self.args), vars(self)


class SnapshotStatusError(GraphkeepError, GraphNodeStatusError):
    """Refuse a change of status that the status machine does not permit.

    It is what the loser of two starters gets.
    """

    run_id: str
    """The run."""
    snapshot_id: str
    """The snapshot whose status was to change."""
    expected: frozenset[TaskStatus]
    """The statuses from which the change is permitted."""
    found: TaskStatus
    """The status that the snapshot has."""

    def __init__(self, run_id: str, snapshot_id: str, transition: Transition, found: TaskStatus):
        self.run_id = run_id
        self.snapshot_id = snapshot_id
        self.expected = transition.sources
        self.found = found
        GraphNodeStatusError.__init__(self, found)
        GraphRuntimeError.__init__(  # the host's own message knows of no other change than a start
            self,
            f'Cannot {transition.name} snapshot {snapshot_id!r} of run {run_id!r}: '
            f'Incorrect snapshot status {found!r}, must be {_either(transition.sources)}.',
        )


GraphNodeRunningError = SnapshotStatusError
"""The name that pydantic-graph's published contract of `record_run` gives to this error."""


class UnknownSnapshotError(GraphkeepError, LookupError):
    """Refuse to change a snapshot that the run does not have."""

    run_id: str
    """The run."""
    snapshot_id: str
    """The id that was asked for."""

    def __init__(self, run_id: str, snapshot_id: str):
        self.run_id = run_id
        self.snapshot_id = snapshot_id
        super().__init__(f'No snapshot found with id={snapshot_id!r} in run {run_id!r}')


class _RunError(GraphkeepError, GraphRuntimeError):
    """Base of the errors about a whole run."""

    run_id: str
    """The run."""

    def __init__(self, run_id: str, message: str):
        self.run_id = run_id
        GraphRuntimeError.__init__(self, message)


class UnknownRunError(_RunError, LookupError):
    """Refuse to go on with a run of which nothing is stored."""

    def __init__(self, run_id: str):
        super().__init__(
            run_id,
            f'Nothing is stored of run {run_id!r}: start it with a first node, a builder graph with its '
            'state and inputs, or look elsewhere.',
        )


class RunFinishedError(_RunError):
    """Refuse to start, go on with or retry a run that has ended."""

    ended: datetime | None
    """When it ended (UTC)."""

    def __init__(self, run_id: str, ended: datetime | None = None):
        self.ended = ended
        when = f' at {ended:%Y-%m-%d %H:%M:%S} UTC' if ended else ''
        super().__init__(run_id, f'Run {run_id!r} finished{when}: read its result, or start another run.')


class RunFailedError(_RunError):
    """Refuse to go on with a run whose last node raised, or whose next node was never recorded."""

    snapshot_id: str
    """The snapshot at which it stopped."""
    error: StepError | None
    """What the node raised, if that is known."""

    def __init__(
        self, run_id: str, snapshot_id: str, error: StepError | None, *, status: SnapshotStatus = 'error'
    ):
        self.snapshot_id = snapshot_id
        self.error = error
        if status == 'success':
            message = (
                f'Run {run_id!r} stopped after {snapshot_id!r} succeeded, before its next node was recorded. '
                'Either the node returned no node and no End, or whatever wrote it lost the next one. '
                'Start a new run from `await persistence.last_state()`.'
            )
        else:
            cause = f' with {error.type}: {error.message.rstrip(".")}' if error else ''
            message = (
                f'Run {run_id!r} failed at {snapshot_id!r}{cause}. '
                'Mend the cause, call `await persistence.retry()`, and resume.'
            )
        super().__init__(run_id, message)


class RunOwnedError(_RunError):
    """Refuse to touch a run that another owner has, as far as can be known a living one."""

    owner: Owner | None
    """Who has it; `None` if a snapshot is pending or running and whoever wrote that left no name."""
    until: datetime | None
    """When its lease runs out unless it is renewed (UTC)."""

    def __init__(self, run_id: str, owner: Owner | None, until: datetime | None):
        self.owner = owner
        self.until = until
        if owner is None:
            message = (
                f'Run {run_id!r} has a snapshot that is pending or running, and no owner is recorded: '
                'if nobody is at it any more, call `await persistence.recover()` and resume.'
            )
        else:
            lease = f' until {until:%Y-%m-%d %H:%M:%S} UTC or longer' if until else ''
            advice = 'wait for it, or stop that process and try again'
            if owner.is_here:
                advice = (
                    'that is this process: wait for it, or call `await persistence.release()` on what has it'
                )
            message = f'Run {run_id!r} is owned by {owner}{lease}: {advice}.'
        super().__init__(run_id, message)


class OwnershipLostError(_RunError):
    """Tell a former owner that its write was refused, because the run was taken over meanwhile."""

    owner: Owner | None
    """Who has the run now, if anybody."""

    def __init__(self, run_id: str, owner: Owner | None):
        self.owner = owner
        now = f' ({owner} has it now)' if owner else ''
        super().__init__(
            run_id,
            f'Run {run_id!r} was taken over from this process{now}: what was to be written is refused. '
            'This happens when the owner does not renew its lease in time; drop this run here.',
        )


class RunExistsError(_RunError):
    """Refuse to put a run where there is one already. That one is left as it is."""

    def __init__(self, run_id: str):
        super().__init__(
            run_id, f'There already is a run {run_id!r}: choose another id, or delete that run first.'
        )


class UnusableStoreError(GraphkeepError, ValueError):
    """Refuse a file that is no store which this version can use. It is left as it is."""

    place: str
    """The file."""

    def __init__(self, place: str, problem: str):
        self.place = place
        super().__init__(f'{place} {problem}')


class InvalidRunIdError(GraphkeepError, ValueError):
    """Refuse a run id that is empty, too long, or could name something other than a run."""

    run_id: object
    """What was given."""

    def __init__(self, run_id: object, problem: str):
        self.run_id = run_id
        shown = repr(run_id)
        super().__init__(f'{shown if len(shown) <= 80 else shown[:77] + "..."} is not a run id: {problem}')


class UnsupportedTypeError(GraphkeepError, TypeError):
    """Refuse a graph with a state, node or result type that pydantic cannot write or read."""

    type_: Any
    """The type."""

    def __init__(self, role: str, type_: Any, problem: str):
        self.type_ = type_
        name = getattr(type_, '__qualname__', None) or str(type_)
        super().__init__(f'The {role} {name} cannot be stored: {problem}')


class UnfaithfulSnapshotError(GraphkeepError, ValueError):
    """Refuse to write a snapshot that would not be loaded as it was given. Nothing is written."""

    run_id: str
    """The run."""
    node_id: str
    """The node whose snapshot it is, `'End'` for the end of the run."""
    field: str
    """Where the difference is, such as `state.items[3].price`."""

    def __init__(self, run_id: str, node_id: str, field: str, problem: str):
        self.run_id = run_id
        self.node_id = node_id
        self.field = field
        super().__init__(f'Snapshot of node {node_id!r} in run {run_id!r} refused at `{field}`: {problem}')


class CorruptSnapshotError(GraphkeepError, ValueError):
    """Refuse to read what is damaged, foreign, or no longer fits the graph. It is left as it is."""

    place: str
    """Where it is stored: a file with a place in it, or a run."""
    snapshot_id: str | None
    """The snapshot, where the damage is within one."""

    def __init__(self, place: str, problem: str, *, snapshot_id: str | None = None):
        self.place = place
        self.snapshot_id = snapshot_id
        where = f', snapshot {snapshot_id!r}' if snapshot_id else ''
        super().__init__(f'{place}{where}: {problem}')


class StorageError(GraphkeepError, OSError):
    """Report that the storage below failed, such as a full disk. What was stored before is intact."""

    place: str
    """What was to be read or written."""
    receipt: Receipt | None
    """What a commit did all the same: it was written whole, and only that it lasts is not certain."""

    def __init__(self, place: str, doing: str, cause: OSError, *, receipt: Receipt | None = None):
        self.place = place
        self.receipt = receipt
        OSError.__init__(self, cause.errno, f'could not {doing} {place}: {cause.strerror or cause}')

    def __str__(self) -> str:
        rest = (
            'What was stored before is intact'
            if self.receipt is None
            else 'It may not survive a loss of power'
        )
        return f'[Errno {self.errno}] {self.strerror}. {rest}.'


class LockTimeoutError(GraphkeepError, TimeoutError):
    """Report that somebody else held the storage for longer than this caller was told to wait."""

    place: str
    """What is locked."""
    waited: float
    """How long the caller waited, in seconds."""

    def __init__(self, place: str, waited: float):
        self.place = place
        self.waited = waited
        super().__init__(
            f'{place} was locked by somebody else for {waited:g} s. The lock goes with its process, so one '
            'is still writing there: try again, or raise the wait.'
        )


class NoCurrentStepError(GraphkeepError, LookupError):
    """Refuse to name the current step where there is none."""

    def __init__(self) -> None:
        super().__init__(
            'No node runs here under a graphkeep persistence: call current_step() within a node.'
        )


class UnsupportedHostError(GraphkeepError, ImportError):
    """Refuse to record the runs of builder graphs of a pydantic-graph that this was not written for."""

    version: str
    """The version that is installed."""
    needed: str
    """What is needed."""

    def __init__(self, version: str, needed: str, found: str):
        self.version = version
        self.needed = needed
        ImportError.__init__(
            self,
            f'PersistentGraph needs the {needed}; {version} is installed, and {found}: install another one',
        )


def _either(statuses: Iterable[TaskStatus]) -> str:
    return ' or '.join(repr(s) for s in sorted(statuses))


def another(exc: E) -> E:
    """Return such an error for somebody else to raise: each has a traceback and a context of its own."""
    copied = _remade(type(exc), exc.args)
    vars(copied).update(vars(exc))
    copied.__cause__ = exc.__cause__
    return copied


def _remade(kind: type[E], args: tuple[Any, ...]) -> E:
    """Return an error with these arguments, and without what its own `__init__` would make of them."""
    exc = kind.__new__(kind, *args)
    if isinstance(exc, OSError):  # which keeps them elsewhere, too
        OSError.__init__(exc, *args)
    elif isinstance(exc, ImportError):
        ImportError.__init__(exc, *args)
    return exc
