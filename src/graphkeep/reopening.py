"""What a run of a builder graph is to go on with, read from what is stored of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, cast

from pydantic_core import from_json

from ._scheduler import Graph, GraphTask, NodeID, Step, TaskID, stack_of
from ._scheduling import Begun, Resumed
from .codec import Body, Codec
from .commit import START_NODE, Parts, Row, StatusChange, StepRecord
from .errors import CorruptSnapshotError
from .snapshots import NodeSnapshot
from .status import RECOVER, START
from .taskrows import Branch, read_join, read_task
from .values import ValueCodec

__all__ = ('Opening', 'Reader', 'start_body')


class Opening(NamedTuple):
    """What is known of a run that is to be opened."""

    snapshot_id: str
    """The snapshot that stands for the run."""
    state: Any
    """The state to begin or go on with."""
    first: tuple[str, Any]
    """The node that the run begins with, and its inputs."""
    changes: Sequence[StatusChange]
    """What opening it changes."""
    number: int = 1
    """How many times the run was opened, this time included."""
    resumed: Resumed | None = None
    """What to go on with; `None` to begin."""
    stored: Sequence[StepRecord] = ()
    """The tasks and joins that have not ended."""


def start_body(state: bytes, inputs: bytes) -> Body:
    """Return what is stored of a run that begins."""
    return Body(state, b'{"node_id":"__start__","inputs":%b}' % inputs)


@dataclass(frozen=True)
class Reader:
    """Reads what is stored of the runs of one graph."""

    graph: Graph[Any, Any, Any, Any]
    codec: Codec[Any, Any]
    values: ValueCodec
    renamed: Mapping[str, str]
    """The new ids of nodes that were renamed, by the stored ones."""

    def opening(self, row: Row, rows: Sequence[Row], *, now: datetime, place: str) -> Opening:
        """Return what is known of a run.

        Args:
            row: The row that stands for the run.
            rows: All its rows.
            now: When it is opened (UTC).
            place: Where it is stored, for the error.

        Raises:
            CorruptSnapshotError: if something of it cannot be read, or is not of this graph.
        """
        record, parts = row.record, Parts.of(rows)
        image = parts.image or row
        state = self.codec.decode_state(image.record, image.body, place=place)
        try:
            first = self._first(row, place)
        except CorruptSnapshotError:
            if parts.newest is None:
                raise
            first = START_NODE, None  # the run has gone past it
        recoveries = self._recoveries(record, parts)
        recovered = {change.snapshot_id for change in recoveries}
        return Opening(
            record.id,
            state,
            first,
            [StatusChange(record.id, START, now), *recoveries],
            record.attempt + 1,
            self._resumed(parts, rows, place) if parts.newest is not None else None,
            [
                part.record._replace(attempt=part.record.attempt + (part.record.id in recovered))
                for part in parts.open
            ],
        )

    def _first(self, row: Row, place: str) -> tuple[str, Any]:
        """Return what the run began with: the first node, and what that was given."""
        record = row.record
        if record.node_id == START_NODE:
            return START_NODE, self._value(record, _inputs(row, place), place)
        # a run of `BaseNode`s, which goes on here
        record = record._replace(node_id=self.renamed.get(record.node_id, record.node_id))
        snapshot = cast('NodeSnapshot[Any, Any]', self.codec.decode(record, row.body, place=place))
        return record.node_id, snapshot.node

    def _recoveries(self, record: StepRecord, parts: Parts) -> list[StatusChange]:
        """Return what becomes of the steps that were in flight when whoever had the run was gone."""
        if not record.attempts or (last := record.attempts[-1]).outcome != 'recovered':
            return []
        changes: list[StatusChange] = []
        nodes = cast('dict[str, Any]', self.graph.nodes)
        for task in (row.record for row in parts.open if row.record.kind == 'task'):
            if isinstance(nodes.get(self.renamed.get(task.node_id, task.node_id)), Step):
                changes.append(StatusChange(task.id, START))
                changes.append(StatusChange(task.id, RECOVER, reason=last.reason))
        return changes

    def _resumed(self, parts: Parts, rows: Sequence[Row], place: str) -> Resumed:
        tasks = [self._task(row, place) for row in parts.open if row.record.kind == 'task']
        joins = [self._join(row, place) for row in parts.open if row.record.kind == 'join']
        depths = {task.task_id: len(task.fork_stack) for task in tasks}
        streams: dict[tuple[str, str], tuple[str, int]] = {}
        for row in rows:
            if row.record.kind == 'task' and b'"from":' in row.body.node:
                item = read_task(row, self.renamed, place=place)
                if item.origin is not None and (depth := depths.get(TaskID(item.origin))) is not None:
                    fork, run, index = item.stack[depth]
                    streams[item.origin, fork] = run, index + 1
        return Resumed(tasks, joins, streams)

    def _task(self, row: Row, place: str) -> GraphTask:
        task = read_task(row, self.renamed, place=place)
        self._check(task.record, task.stack, place)
        inputs = self._value(row.record, task.inputs, place)
        return GraphTask(NodeID(task.record.node_id), inputs, stack_of(task.stack), TaskID(task.record.id))

    def _join(self, row: Row, place: str) -> Begun:
        join = read_join(row, self.renamed, place=place)
        self._check(join.record, join.stack, place)
        value = None if join.value is None else (self._value(row.record, join.value[0], place),)
        return Begun(
            row.record.id, join.record.node_id, join.fork_run, stack_of(join.stack), value, join.stopped
        )

    def _check(self, record: StepRecord, stack: Iterable[Branch], place: str) -> None:
        nodes = cast('dict[str, Any]', self.graph.nodes)
        for node_id in (record.node_id, *(fork for fork, _, _ in stack)):
            if node_id not in nodes:
                raise CorruptSnapshotError(
                    place,
                    f'node {node_id!r} is not in the graph, which has {", ".join(map(repr, nodes))}: resume '
                    'with the graph that the run was started with, or tell the new id of a renamed node, '
                    f"`PersistentGraph(..., nodes={{{node_id!r}: 'its new id'}})`",
                    snapshot_id=record.id,
                )

    def _value(self, record: StepRecord, found: Any, place: str) -> Any:
        try:
            return self.values.read(found)
        except Exception as exc:  # pydantic's, or one of the user's own from a validator
            raise CorruptSnapshotError(
                place,
                f'does not fit the types of the graph: {type(exc).__name__}: {exc}. '
                'Mend what is stored, or let the types accept it',
                snapshot_id=record.id,
            ) from exc


def _inputs(row: Row, place: str) -> Any:
    """Return the JSON of the inputs of a run, from the row that stands for it."""
    try:
        return from_json(row.body.node)['inputs']
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptSnapshotError(
            place, f'is no start of a builder graph: {exc!r}. It is left as it is', snapshot_id=row.record.id
        ) from exc
