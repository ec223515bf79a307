"""What is stored of a task of a builder graph, and of a join that has begun: JSON beside their records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from .codec import Body
from .commit import Row, StepRecord
from .errors import CorruptSnapshotError

__all__ = (
    'Branch',
    'StoredJoin',
    'StoredTask',
    'join_body',
    'path_of',
    'read_join',
    'read_task',
    'task_body',
)

Branch = tuple[str, str, int]
"""A fork that a task is under: its node id, the id of its run, and the number of the branch or item."""


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task as it is stored."""

    record: StepRecord
    """What is known of it without decoding it."""
    inputs: Any
    """Its inputs, as the JSON that `ValueCodec` wrote says."""
    stack: tuple[Branch, ...]
    """The forks that it is under, outermost first."""
    origin: str | None
    """The task that it came from, if that streams: until it has ended more may come from it."""


@dataclass(frozen=True, slots=True)
class StoredJoin:
    """A join that has begun, as it is stored."""

    record: StepRecord
    fork_run: str
    """The id of the run of its parent fork."""
    stack: tuple[Branch, ...]
    """The forks that its successor is under."""
    value: tuple[Any] | None
    """What it has come to, as `StoredTask.inputs`; `None` if that is found by reducing again."""
    stopped: bool
    """Whether its reducer has cancelled the other tasks of the fork."""


def task_body(
    node_id: str, inputs: bytes, stack: Iterable[Branch], origin: str | None, state: bytes = b''
) -> Body:
    """Return what is stored of a task."""
    source = b'' if origin is None else b',"from":%b' % to_json(origin)
    return Body(
        state,
        b'{"node_id":%b,"inputs":%b,"stack":%b%b}' % (to_json(node_id), inputs, to_json(list(stack)), source),
    )


def join_body(
    node_id: str, fork_run: str, stack: Iterable[Branch], value: bytes | None, stopped: bool
) -> Body:
    """Return what is stored of a join that has begun."""
    return Body(
        b'',
        b'{"node_id":%b,"run":%b,"stack":%b,"stopped":%b%b}'
        % (
            to_json(node_id),
            to_json(fork_run),
            to_json(list(stack)),
            b'true' if stopped else b'false',
            b'' if value is None else b',"value":%b' % value,
        ),
    )


def read_task(row: Row, renamed: Mapping[str, str], *, place: str) -> StoredTask:
    """Return the task that a row holds; `renamed` are the node ids that have changed since.

    Raises:
        CorruptSnapshotError: if it holds none.
    """
    members = _members(row, place)
    try:
        record, stack = _renamed(row.record, members, renamed)
        origin = members.get('from')
        return StoredTask(record, members['inputs'], stack, None if origin is None else str(origin))
    except (KeyError, TypeError, ValueError) as exc:
        raise _corrupt(row, place, exc) from exc


def read_join(row: Row, renamed: Mapping[str, str], *, place: str) -> StoredJoin:
    """Return the join that a row holds; `renamed` are the node ids that have changed since.

    Raises:
        CorruptSnapshotError: if it holds none.
    """
    members = _members(row, place)
    try:
        record, stack = _renamed(row.record, members, renamed)
        value = (members['value'],) if 'value' in members else None
        return StoredJoin(record, str(members['run']), stack, value, members['stopped'] is True)
    except (KeyError, TypeError, ValueError) as exc:
        raise _corrupt(row, place, exc) from exc


def path_of(row: Row) -> tuple[tuple[str, int], ...]:
    """Return the forks that a task is under, each with the number of its branch or item, outermost first."""
    try:
        # the first one is the start of the graph, which every task is under
        return tuple((str(fork), int(index)) for fork, _, index in json.loads(row.body.node)['stack'][1:])
    except (KeyError, TypeError, ValueError):
        return ()


def _members(row: Row, place: str) -> dict[str, Any]:
    try:
        return dict(from_json(row.body.node))
    except (TypeError, ValueError) as exc:
        raise _corrupt(row, place, exc) from exc


def _renamed(
    record: StepRecord, members: Mapping[str, Any], renamed: Mapping[str, str]
) -> tuple[StepRecord, tuple[Branch, ...]]:
    node_id = renamed.get(record.node_id, record.node_id)
    stack: Sequence[Any] = members['stack']
    return record._replace(node_id=node_id), tuple(
        (renamed.get(fork, fork), str(run), int(index)) for fork, run, index in stack
    )


def _corrupt(row: Row, place: str, exc: Exception) -> CorruptSnapshotError:
    return CorruptSnapshotError(
        place, f'is no task of a builder graph: {exc!r}. It is left as it is', snapshot_id=row.record.id
    )
