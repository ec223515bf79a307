"""Durable state persistence for pydantic-graph: runs that survive crashes, deploys and slow people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .asjson import AsJson
from .commit import Attempt, Ownership, StepError, StepRecord
from .errors import (
    CorruptSnapshotError,
    GraphkeepError,
    GraphNodeRunningError,
    GraphNodeStatusError,
    InvalidRunIdError,
    LockTimeoutError,
    NoCurrentStepError,
    OwnershipLostError,
    RunExistsError,
    RunFailedError,
    RunFinishedError,
    RunOwnedError,
    SnapshotStatusError,
    StorageError,
    UnfaithfulSnapshotError,
    UnknownRunError,
    UnknownSnapshotError,
    UnsupportedHostError,
    UnsupportedTypeError,
    UnusableStoreError,
)
from .file import FileStatePersistence, FileStore
from .graph import Graph, GraphRun, GraphRunResult
from .memory import FullStatePersistence, MemoryStore, SimpleStatePersistence
from .owner import Owner
from .persistence import StatePersistence
from .resume import iter_or_resume, run_or_resume
from .runinfo import Pruned, RunInfo
from .snapshots import EndSnapshot, NodeSnapshot, Snapshot, SnapshotStatus, build_snapshot_list_type_adapter
from .sqlite import SqliteStore
from .step import Step, current_step
from .store import Store
from .stored import StoredStatePersistence

if TYPE_CHECKING:
    from .builder import PersistentGraph

    # where the host has none a type checker would not know it; what a persistence is to it is the same
    from .persistence import StatePersistence as BaseStatePersistence
else:
    from ._host import BaseStatePersistence

__all__ = (
    'AsJson',
    'Attempt',
    'BaseStatePersistence',
    'CorruptSnapshotError',
    'EndSnapshot',
    'FileStatePersistence',
    'FileStore',
    'FullStatePersistence',
    'Graph',
    'GraphNodeRunningError',
    'GraphNodeStatusError',
    'GraphRun',
    'GraphRunResult',
    'GraphkeepError',
    'InvalidRunIdError',
    'LockTimeoutError',
    'MemoryStore',
    'NoCurrentStepError',
    'NodeSnapshot',
    'Owner',
    'Ownership',
    'OwnershipLostError',
    'PersistentGraph',
    'Pruned',
    'RunExistsError',
    'RunFailedError',
    'RunFinishedError',
    'RunInfo',
    'RunOwnedError',
    'SimpleStatePersistence',
    'Snapshot',
    'SnapshotStatus',
    'SnapshotStatusError',
    'SqliteStore',
    'StatePersistence',
    'Step',
    'StepError',
    'StepRecord',
    'StorageError',
    'Store',
    'StoredStatePersistence',
    'UnfaithfulSnapshotError',
    'UnknownRunError',
    'UnknownSnapshotError',
    'UnsupportedHostError',
    'UnsupportedTypeError',
    'UnusableStoreError',
    'build_snapshot_list_type_adapter',
    'current_step',
    'iter_or_resume',
    'run_or_resume',
)


def __getattr__(name: str) -> Any:
    # not at once: an old pydantic-graph has no builder graphs, and all else works there
    if name == 'PersistentGraph':
        from .builder import PersistentGraph

        return PersistentGraph
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
