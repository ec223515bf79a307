"""Typed JSON in and out: states, nodes and results, through pydantic, in pydantic-graph 1.x's own format.

Much of what Python holds is lost on the way through JSON, and silently. So each value that is not certain to
come back is loaded before it is written, unless the caller asks otherwise, and compared with the one given; a
difference refuses it.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Final, Generic, NamedTuple, cast, get_origin

import pydantic
from pydantic_core import from_json, to_json

from ._host import BaseNode, End, RunEndT, StateT, set_snapshot_id
from .certain import certainty_of
from .commit import START_NODE, StepRecord
from .errors import CorruptSnapshotError, UnfaithfulSnapshotError, UnsupportedTypeError
from .faithful import CONFIG_PLACE, INF_NAN_HINT, Difference, comparer_of, difference
from .parts import Part, parts_of, shown
from .results import NodeType, result_type_of
from .snapshots import EndSnapshot, NodeSnapshot, SnapshotStatus

__all__ = ('Body', 'Codec', 'Refusal', 'Shape')

_Compare = Callable[[Any, Any], Difference | None]


class Body(NamedTuple):
    """What a stored row holds of a snapshot: two JSON texts, in UTF-8, without line breaks."""

    state: bytes
    """The state."""
    node: bytes
    """An object: a node's fields and its `node_id`, or an end's `data`."""


class Codec(Generic[StateT, RunEndT]):
    """Turns the snapshots of one graph into JSON and back; to be had from `Codec.of`.

    Nothing in it changes, so threads may share it.
    """

    nodes: tuple[NodeType, ...]
    """The node types of the graph."""
    state_type: Any
    """The type of the graph's state."""
    run_end_type: Any
    """The declared type of the graph's result; other types that its nodes declare are carried too."""

    def __init__(self, nodes: Sequence[NodeType], state_type: Any, run_end_type: Any):
        self.nodes = tuple(nodes)
        self.state_type = state_type
        self.run_end_type = run_end_type
        result_type = result_type_of(self.nodes, run_end_type)
        self._state = Shape('state type', state_type, state_type, comparer_of(state_type))
        # `End[...]` may return an alias made before for an equal type, see `of`
        ends = types.GenericAlias(End, (result_type,))
        self._result = Shape('result type', result_type, ends, _of_ends(comparer_of(result_type)))
        shapes = [_NodeShape(node) for node in self.nodes]
        self._by_id = {shape.node_id: shape for shape in shapes}
        self._by_class = {shape.node_class: shape for shape in shapes}

    @classmethod
    def of(
        cls, nodes: Sequence[NodeType], state_type: type[StateT] | None, run_end_type: type[RunEndT] | None
    ) -> Codec[StateT, RunEndT]:
        """Return the codec of a graph with these types; building one takes milliseconds, so they are kept.

        Raises:
            UnsupportedTypeError: if pydantic cannot write and read one of the types.
        """
        # equal types need not mean the same: `int | str == str | int`, but their texts tell them apart
        key = (tuple(nodes), state_type, run_end_type, repr(state_type), repr(run_end_type))
        try:
            hash(key)
        except TypeError:
            return cls(nodes, state_type, run_end_type)
        return cast('Codec[StateT, RunEndT]', _kept(*key))

    def encode(
        self,
        snapshot: NodeSnapshot[StateT, RunEndT] | EndSnapshot[StateT, RunEndT],
        *,
        run_id: str,
        verify: bool = True,
    ) -> Body:
        """Return the snapshot's state and node as JSON.

        Args:
            snapshot: The snapshot.
            run_id: The run, for the error.
            verify: Load what would be written, and refuse it unless it is exactly what was given; what is
                certain to be is not loaded. Without this, what JSON or the declared types do not hold is
                lost silently.

        Raises:
            UnfaithfulSnapshotError: if what would be loaded is not what was given, or it cannot be written.
        """
        end = isinstance(snapshot, EndSnapshot)
        try:
            return Body(
                state=self.write_state(snapshot.state, verify),
                node=self._result.write('result', snapshot.result, verify)
                if end
                else self._write_node(snapshot.node, verify),
            )
        except Refusal as refusal:
            node_id = 'End' if end else snapshot.node.get_node_id()
            cause = refusal.__cause__
            raise UnfaithfulSnapshotError(run_id, node_id, refusal.field, refusal.problem) from cause

    def decode(
        self, record: StepRecord, body: Body, *, place: str
    ) -> NodeSnapshot[StateT, RunEndT] | EndSnapshot[StateT, RunEndT]:
        """Return the snapshot that was stored; it and its node or result carry the stored id.

        Args:
            record: What else is known of the snapshot.
            body: What `encode`, or pydantic-graph 1.x, wrote.
            place: Where it is stored, for the error.

        Raises:
            CorruptSnapshotError: if it does not fit the types of the graph, or its node is not in the graph.
        """
        shape = self._result if record.kind == 'end' else self._by_id.get(record.node_id)
        if record.node_id == START_NODE:
            raise CorruptSnapshotError(
                place,
                'is the start of a run of a builder graph, which has tasks and no nodes: `last_state` is its '
                'state, `load_history` its tasks, and `load_last` its result once it has ended',
                snapshot_id=record.id,
            )
        if shape is None:
            raise CorruptSnapshotError(
                place,
                f'node {record.node_id!r} is not in the graph, which has {_listed(self._by_id)}: resume with '
                'the graph that the run was started with, or let a renamed node keep its id (`get_node_id`)',
                snapshot_id=record.id,
            )
        state = self.decode_state(record, body, place=place)
        node = _read(shape, 'result' if record.kind == 'end' else 'node', body.node, record, place)
        set_snapshot_id(node, record.id)
        if record.kind == 'end':
            return EndSnapshot(state=state, result=node, ts=cast(datetime, record.start_ts), id=record.id)
        return NodeSnapshot(
            state=state,
            node=node,
            start_ts=record.start_ts,
            duration=record.duration,
            status=cast('SnapshotStatus', record.status),
            id=record.id,
        )

    def decode_state(self, record: StepRecord, body: Body, *, place: str) -> StateT:
        """Return the state alone; what has become of the node's class since does not matter.

        Raises:
            CorruptSnapshotError: if it does not fit the state type of the graph.
        """
        return _read(self._state, 'state', body.state, record, place)

    def write_result(self, output: Any, verify: bool) -> bytes:
        """Return the end of a run with this result as JSON.

        Raises:
            Refusal: if it would not be loaded as it was given.
        """
        return self._result.write('result', End(output), verify)

    def dump_state(self, state: StateT) -> bytes:
        """Return the state as JSON, unchecked; errors are those of pydantic and of the state's own code."""
        return self._state.dump(state)

    def write_state(self, state: StateT, verify: bool, dumped: bytes | None = None) -> bytes:
        """Return the state as JSON; `dumped` is what `dump_state` returns, if that is known.

        Raises:
            Refusal: if it would not be loaded as it was given.
        """
        if state is not None and self.state_type in (None, types.NoneType):
            name = type(state).__qualname__
            raise Refusal(
                'state',
                f'is of type {name}, but the state type of the graph is None: '
                f'pass `state_type={name}` to the graph, or declare its nodes as `BaseNode[{name}, ...]`',
            )
        return self._state.write('state', state, verify, dumped)

    def _write_node(self, node: BaseNode[StateT, Any, RunEndT], verify: bool) -> bytes:
        cls = type(node)
        if (shape := self._by_class.get(cls)) is None:
            raise Refusal(
                'node',
                f'is of type {cls.__module__}.{cls.__qualname__}, which is not in the graph; '
                f'that has {_listed(self._by_id)}: add the class to the nodes of the graph',
            )
        return shape.write('node', node, verify)


@lru_cache(maxsize=128)
def _kept(nodes: tuple[NodeType, ...], state_type: Any, run_end_type: Any, *_: str) -> Codec[Any, Any]:
    return Codec(nodes, state_type, run_end_type)


def _read(shape: Shape, root: str, text: bytes, record: StepRecord, place: str) -> Any:
    try:
        return shape.read(text)
    except Exception as exc:  # pydantic's, or one of the user's own from a validator or a `__post_init__`
        raise CorruptSnapshotError(
            place,
            f'does not fit the types of the graph: {_reason(exc, root)}. '
            'Mend what is stored, or let the types accept it',
            snapshot_id=record.id,
        ) from exc


class Refusal(Exception):
    """Carries what is wrong with a value up to where the run and the node are known."""

    def __init__(self, field: str, problem: str):
        self.field = field
        self.problem = problem
        super().__init__(field, problem)


# -- one type


class Shape:
    """Writes and reads the values of one type.

    The type is wrapped in a list: `TypeAdapter` takes a config only for what can have none of its own, and
    classes without a config inherit that of the list, so infinity and NaN are carried where pydantic permits.
    """

    def __init__(self, role: str, type_: Any, written_as: Any, compare: _Compare):
        self._compare = compare
        config = pydantic.ConfigDict(ser_json_inf_nan='constants')
        try:
            listed: Any = list[written_as]
            adapter = pydantic.TypeAdapter[Any](listed, config=config)
            if not adapter.pydantic_complete:
                adapter.rebuild(raise_errors=True)
        except Exception as exc:  # whatever the hooks of a type may raise while its schema is made
            raise UnsupportedTypeError(role, type_, _unsupported(type_, exc)) from exc
        self._is_certain = certainty_of(adapter.core_schema)
        # what the serializer makes of aliases by default varies with its version, so as the adapter calls it
        self._dump_json = partial(adapter.serializer.to_json, by_alias=None, warnings=False)
        # an alias is for the outside: pydantic writes a field by its name unless told otherwise
        self._validate_json = partial(adapter.validator.validate_json, by_name=True, by_alias=True)

    def dump(self, value: Any) -> bytes:
        """Return the value as JSON, unchecked."""
        return self._dump_json([value])[1:-1]

    def write(self, root: str, value: Any, verify: bool, dumped: bytes | None = None) -> bytes:
        """Return the value as JSON; `root` is what it is called in a refusal."""
        try:
            text = self.dump(value) if dumped is None else dumped
        except Exception as exc:
            part = self._culprit(value)
            raise Refusal(root + part.path, _unwritable(part.value, exc)) from exc
        text = self._finish(root, text)
        if not verify or self._is_certain(value):
            return text
        try:
            self._verify(root, value, text)
        except Refusal:
            if (text := self._round_trip(root, value)) is None:
                raise
        return text

    def read(self, text: bytes) -> Any:
        """Return the value that was written."""
        values = self._validate_json(b'[%b]' % text)
        if len(values) != 1:
            raise ValueError(f'{len(values)} JSON values where there should be one')
        return values[0]

    def _finish(self, root: str, text: bytes) -> bytes:
        return text

    def _round_trip(self, root: str, value: Any) -> bytes | None:
        """Return the value without computed fields and aliases, and JSON in it as text, if that carries it.

        Not written at first: some types are loaded from their computed fields, and pydantic-graph 1.x writes
        them, so its files and ours are the same where they can be.
        """
        try:
            dumped = self._dump_json([value], round_trip=True, by_alias=False)
            text = self._finish(root, dumped[1:-1])
            self._verify(root, value, text)
        except Exception:  # the first refusal stands
            return None
        return text

    def _verify(self, root: str, value: Any, text: bytes) -> None:
        try:
            found = self._compare(value, self.read(text))
        except pydantic.ValidationError as exc:
            part = _part_at(value, _errors(exc)[0]['loc'][1:])
            raise Refusal(root + part.path, _unloadable(root, part.value, exc)) from exc
        except Exception as exc:
            problem = f'cannot be loaded and compared ({_reason(exc)}): mend its validators or its `__eq__`'
            raise Refusal(root, problem) from exc
        if found:
            raise Refusal(root + found.path, found.problem)

    def _culprit(self, value: Any) -> Part:
        """Find the innermost part of a value that cannot be written, by writing ever smaller parts of it."""
        keys: list[Any] = []
        here = Part(None, '', value)
        around = {id(value)}
        while len(keys) < _MAX_DEPTH:
            parts = list(parts_of(here.value))
            # what fails without any of its parts fails by itself
            if not parts or self._fails(value, keys, ()) or not self._fails(value, keys, parts):
                break
            while len(parts) > 1:
                half = parts[: len(parts) // 2]
                parts = half if self._fails(value, keys, half) else parts[len(half) :]
            (found,) = parts
            keys.append(found.key)
            here = Part(found.key, here.path + found.path, found.value)
            if id(found.value) in around:  # it holds itself
                break
            around.add(id(found.value))
        return here

    def _fails(self, value: Any, keys: Sequence[Any], parts: Iterable[Part]) -> bool:
        include: Any = {part.key for part in parts}
        for key in reversed(keys):
            include = {key: include}
        try:
            self._dump_json([value], include={0: include})
        except Exception:
            return True
        return False


class _NodeShape(Shape):
    """Writes and reads the nodes of one type; what is written has the node's id beside its fields."""

    def __init__(self, node: NodeType):
        super().__init__('node', node, node, difference)
        self.node_id = node.get_node_id()
        self.node_class: type = get_origin(node) or node
        self._tail = b'"node_id":%b}' % to_json(self.node_id)

    def _finish(self, root: str, text: bytes) -> bytes:
        if not text.startswith(b'{'):
            raise Refusal(root, f'is written as {shown(text.decode())}: let it be written as a JSON object')
        if b'"node_id"' in text and 'node_id' in from_json(text):
            raise Refusal(
                f'{root}.node_id',
                "a field must not be written as `node_id`, because the node's own id is stored under that "
                'name: rename the field or its alias',
            )
        return text[:-1] + (b',' if len(text) > 2 else b'') + self._tail


def _of_ends(compare: _Compare) -> _Compare:
    """Compare ends by what they hold."""

    def compare_ends(given: Any, loaded: Any) -> Difference | None:
        if type(given) is not type(loaded):
            return difference(given, loaded)
        found = compare(given.data, loaded.data)
        return found and found._replace(path=f'.data{found.path}')

    return compare_ends


_MAX_DEPTH: Final = 20  # how deep a culprit is looked for; a longer path helps nobody


# -- what is said


def _unsupported(type_: Any, exc: Exception) -> str:
    if isinstance(exc, pydantic.errors.PydanticUndefinedAnnotation):
        return (
            f'the annotation {exc.name!r} cannot be resolved ({exc.message}): '
            'define it in the module of the class, and not only under `TYPE_CHECKING`'
        )
    if isinstance(type_, type) and type_.__module__ != 'builtins' and not is_dataclass(type_):
        return f'decorate the class with `@dataclass`, or make it a pydantic model ({_reason(exc)})'
    return _reason(exc)


def _unwritable(value: Any, exc: Exception) -> str:
    if isinstance(value, bytes | bytearray):
        return (
            f'is {shown(value)}, which is not UTF-8: to carry any bytes, set '
            f"`ser_json_bytes='base64', val_json_bytes='base64'` in {CONFIG_PLACE}"
        )
    return (
        f'is of type {type(value).__qualname__}, and cannot be written as JSON ({_reason(exc)}): '
        'store a value of the declared type, keep what is not data (clients, locks, callables) in deps, '
        'give its type a serializer and a validator, and refer to what is above it by an id'
    )


def _unloadable(root: str, value: Any, exc: pydantic.ValidationError) -> str:
    error = _errors(exc)[0]
    if isinstance(value, float) and not math.isfinite(value):
        hint = INF_NAN_HINT
    elif root == 'node' and error['loc'][-1:] == ('node_id',):
        hint = 'let the config of this node ignore extra keys, because its id is stored beside its fields'
    elif error['type'].startswith('missing'):
        hint = 'give what is not stored (excluded fields, `InitVar`) a default'
    else:
        hint = 'give it a value of the type that is declared for it, or declare the type of the value'
    return f'is {shown(value)}, and what is written for it cannot be loaded ({_reason(exc, root)}): {hint}'


def _reason(exc: Exception, root: str = '') -> str:
    if not isinstance(exc, pydantic.ValidationError):
        return f'{root}{": " if root else ""}{type(exc).__name__}: {" ".join(str(exc).split())}'
    errors = _errors(exc)
    told = [f'{root}{_path(error["loc"][1:])}: {error["msg"]}' for error in errors[:3]]
    return '; '.join([*told, f'and {len(errors) - 3} more'] if len(errors) > 3 else told)


def _errors(exc: pydantic.ValidationError) -> Any:
    return exc.errors(include_url=False, include_context=False, include_input=False)


def _path(loc: Iterable[int | str]) -> str:
    return ''.join(f'[{key}]' if isinstance(key, int) else f'.{key}' for key in loc)


def _part_at(value: Any, loc: Iterable[int | str]) -> Part:
    """Follow a place that pydantic names; what in it names a union's member and the like is skipped."""
    here = Part(None, '', value)
    for key in loc:
        for part in parts_of(here.value):
            if part.key == key or str(part.key) == key:
                here = Part(key, here.path + part.path, part.value)
                break
    return here


def _listed(names: Iterable[str]) -> str:
    return ', '.join(repr(name) for name in names) or 'no nodes'
