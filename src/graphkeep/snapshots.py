"""The snapshots of a run: pydantic-graph 1.x's own classes where installed, the same shapes elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Union, cast

import pydantic
from pydantic_core import core_schema

from . import _host
from ._host import BaseNode, End, RunEndT, StateT
from .status import SnapshotStatus

__all__ = (
    'EndSnapshot',
    'NodeSnapshot',
    'Snapshot',
    'SnapshotStatus',
    'build_snapshot_list_type_adapter',
    'now_utc',
)

_UNSET_ID = '__unset__'


def now_utc() -> datetime:
    """Return the present moment, aware, in UTC."""
    return datetime.now(UTC)


class _NodeSchema:
    """Tells pydantic to read a node by its `node_id`, and to write that beside the node's own fields."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        nodes = _host.current_node_types()
        if nodes is None:
            raise RuntimeError(
                'the node types of the graph are not known here: build this type adapter in `set_types`, '
                'which `set_graph_types(graph)` calls with them in place'
            )
        choices = tuple(Annotated[node, pydantic.Tag(node.get_node_id())] for node in nodes)
        schema = handler(Annotated[Union[choices], pydantic.Discriminator(_node_id_of)])  # noqa: UP007
        schema['serialization'] = core_schema.wrap_serializer_function_ser_schema(
            _dump_node,
            return_schema=core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()),
        )
        return schema


def _node_id_of(data: Any) -> str | None:
    return cast('dict[str, Any]', data).get('node_id') if isinstance(data, dict) else data.get_node_id()


def _dump_node(node: Any, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
    return {**handler(node), 'node_id': node.get_node_id()}


if not TYPE_CHECKING and _host.HAS_RUNNER:
    from pydantic_graph.persistence import (
        EndSnapshot,
        NodeSnapshot,
        Snapshot,
        build_snapshot_list_type_adapter,
    )
else:

    @dataclass(kw_only=True)
    class NodeSnapshot(Generic[StateT, RunEndT]):
        """A node that is to be run, is running or has been run, with the state from before it."""

        state: StateT
        """The state of the graph before the node runs."""
        node: Annotated[BaseNode[StateT, Any, RunEndT], _NodeSchema()]
        """The node."""
        start_ts: datetime | None = None
        """When its latest attempt started (UTC), `None` before the first."""
        duration: float | None = None
        """How long its latest attempt took, in seconds; `None` until one ends."""
        status: SnapshotStatus = 'created'
        """Where it is in the status machine."""
        kind: Literal['node'] = 'node'
        """Tells the two kinds of snapshot apart."""
        id: str = _UNSET_ID
        """The snapshot's id; by default the one that the node carries."""

        def __post_init__(self) -> None:
            if self.id == _UNSET_ID:
                self.id = _host.ensure_snapshot_id(self.node)

    @dataclass(kw_only=True)
    class EndSnapshot(Generic[StateT, RunEndT]):
        """The end of a run, with its result and the state as it was then."""

        state: StateT
        """The state of the graph at the end."""
        result: End[RunEndT]
        """What the last node returned."""
        ts: datetime = field(default_factory=now_utc)
        """When the run ended (UTC)."""
        kind: Literal['end'] = 'end'
        """Tells the two kinds of snapshot apart."""
        id: str = _UNSET_ID
        """The snapshot's id; by default the one that the end carries."""

        def __post_init__(self) -> None:
            if self.id == _UNSET_ID:
                self.id = _host.ensure_snapshot_id(self.result)

        @property
        def node(self) -> End[RunEndT]:
            """The result, so that `[s.node for s in history]` works on both kinds."""
            return self.result

    Snapshot = NodeSnapshot[StateT, RunEndT] | EndSnapshot[StateT, RunEndT]
    """One stored step of a run."""

    def build_snapshot_list_type_adapter(
        state_t: type[StateT], run_end_t: type[RunEndT]
    ) -> pydantic.TypeAdapter[list[Snapshot[StateT, RunEndT]]]:
        """Build a type adapter for a list of snapshots; to be called within `set_types`."""
        snapshot = Annotated[Snapshot[state_t, run_end_t], pydantic.Discriminator('kind')]
        return cast(
            'pydantic.TypeAdapter[list[Snapshot[StateT, RunEndT]]]',
            pydantic.TypeAdapter(list[snapshot]),  # pyright: ignore[reportInvalidTypeForm]
        )
