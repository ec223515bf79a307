r"""The status machine of a snapshot: one table, read by every backend and every test.

```
created ──claim──> pending ──start──> running ──succeed──> success
   ^ \────────────────start─────────────^  \ ───fail────> error
   └── release, recover <── pending, running                │
   └────────────────────────── retry <──────────────────────┘

created, running, error ──cancel──> cancelled
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = (
    'CANCEL',
    'CLAIM',
    'FAIL',
    'RECOVER',
    'RELEASE',
    'RETRY',
    'START',
    'SUCCEED',
    'TRANSITIONS',
    'SnapshotStatus',
    'TaskStatus',
    'Transition',
)

SnapshotStatus = Literal['created', 'pending', 'running', 'success', 'error']
"""The status of a snapshot.

- `'created'`: stored, not yet run.
- `'pending'`: handed out by `load_next`, not yet run.
- `'running'`: its node is running.
- `'success'`: its node returned.
- `'error'`: its node raised.
"""

TaskStatus = SnapshotStatus | Literal['cancelled']
"""The status of a task of a builder graph: as of a snapshot, or `'cancelled'`, the run went on without it."""


@dataclass(frozen=True, slots=True, eq=False)
class Transition:
    """A permitted change of status. There is one object of each, in this process and unpickled in others."""

    name: str
    """The verb, as it appears in errors."""
    sources: frozenset[TaskStatus]
    """The statuses that it may start from; a commit that finds another one is refused."""
    target: TaskStatus
    """The status that it leads to."""

    def __reduce__(self) -> str:
        return self.name.upper()  # the constant below


CLAIM: Final = Transition('claim', frozenset({'created'}), 'pending')
"""`load_next` hands the snapshot out."""
START: Final = Transition('start', frozenset({'created', 'pending'}), 'running')
"""`record_run` starts."""
SUCCEED: Final = Transition('succeed', frozenset({'running'}), 'success')
"""The node returned."""
FAIL: Final = Transition('fail', frozenset({'running'}), 'error')
"""The node raised, or what it returned cannot be stored."""
RELEASE: Final = Transition('release', frozenset({'running', 'pending'}), 'created')
"""Its owner gives it back: cancelled, interrupted, or claimed and never run."""
RECOVER: Final = Transition('recover', frozenset({'running', 'pending'}), 'created')
"""Its owner is gone."""
RETRY: Final = Transition('retry', frozenset({'error'}), 'created')
"""Somebody asks for another attempt."""
CANCEL: Final = Transition('cancel', frozenset({'created', 'running', 'error'}), 'cancelled')
"""The run goes on without this task: its join stopped early, the end was reached, `override_next`."""

TRANSITIONS: Final = (CLAIM, START, SUCCEED, FAIL, RELEASE, RECOVER, RETRY, CANCEL)
"""Every permitted change; anything else is refused."""
