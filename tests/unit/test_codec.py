from __future__ import annotations

import dataclasses
import json
import math
import re
import uuid
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, NoReturn, TypeVar, cast

import pydantic
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic.alias_generators import to_camel
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_graph import BaseNode, Edge, End, GraphRunContext

from graphkeep import _host
from graphkeep.codec import Body, Codec
from graphkeep.commit import StepRecord
from graphkeep.errors import CorruptSnapshotError, UnfaithfulSnapshotError, UnsupportedTypeError
from graphkeep.snapshots import EndSnapshot, NodeSnapshot, build_snapshot_list_type_adapter

T = TypeVar('T')
INF = math.inf
NAN = math.nan
STARTED = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)


class Colour(Enum):
    RED = 'red'


@dataclass
class Animal:
    name: str


@dataclass
class Dog(Animal):
    breed: str = 'mutt'


class Model(pydantic.BaseModel):
    x: float | None = 1.0
    y: float = 1.0
    more: list[float] = []


class Constants(pydantic.BaseModel, ser_json_inf_nan='constants'):
    x: float


@pydantic.dataclasses.dataclass
class PydanticData:
    x: float


@dataclass
class Base64:
    __pydantic_config__ = pydantic.ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')
    content: bytes


class Pair(NamedTuple):
    left: int
    right: str


class Options(typing_extensions.TypedDict):
    a: int


@dataclass
class State:
    """Every kind of field a state may have; each has a default."""

    n: int = 0
    text: str = ''
    ratio: float = 0.0
    flag: bool = False
    data: bytes = b''
    anything: Any = None
    animal: Animal | None = None
    pet: Animal | Dog | None = None
    model: Model | None = None
    constants: Constants | None = None
    pydantic_data: PydanticData | None = None
    base64: Base64 | None = None
    pair: Pair | None = None
    options: Options | None = None
    colour: Colour | None = None
    amount: Decimal | None = None
    when: datetime | None = None
    day: date | None = None
    wait: timedelta | None = None
    id: uuid.UUID | None = None
    path: Path | None = None
    pattern: re.Pattern[str] | None = None
    password: pydantic.SecretStr | None = None
    numbers: list[float] = field(default_factory=list[float])
    scores: dict[int, float] = field(default_factory=dict[int, float])
    tags: set[str] = field(default_factory=set[str])
    spot: tuple[int, str] | None = None
    animals: list[Animal] = field(default_factory=list[Animal])
    computed: int = field(init=False, default=1)


@dataclass
class Start(BaseNode[State, None, Any]):
    async def run(self, ctx: GraphRunContext[State, None]) -> Ask | End[Any]:
        raise NotImplementedError


@dataclass
class Ask(BaseNode[State, None, Any]):
    question: str = ''
    answer: Any = None
    state: State | None = None

    async def run(self, ctx: GraphRunContext[State, None]) -> End[Any]:
        raise NotImplementedError


@dataclass
class Other(BaseNode[State, None]):
    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


NODES: tuple[type[BaseNode[Any, Any, Any]], ...] = (Start, Ask)


def codec(state_type: Any = State, run_end_type: Any = int, nodes: Any = NODES) -> Codec[Any, Any]:
    """Return the codec of a small graph."""
    return Codec[Any, Any].of(nodes, state_type, run_end_type)


def node_snapshot(state: Any, node: Any = None, **more: Any) -> NodeSnapshot[Any, Any]:
    """Return a snapshot of some node."""
    return NodeSnapshot(state=state, node=node or Start(), **more)


def end_snapshot(data: Any, state: Any = None) -> EndSnapshot[Any, Any]:
    """Return a snapshot of the end of a run."""
    return EndSnapshot(state=state or State(), result=End(data), ts=STARTED)


def record_of(snapshot: Any) -> StepRecord:
    """Make the record that a backend keeps beside the body."""
    if isinstance(snapshot, EndSnapshot):
        return StepRecord(id=snapshot.id, kind='end', node_id='End', status='success', start_ts=snapshot.ts)
    return StepRecord(
        id=snapshot.id,
        node_id=snapshot.node.get_node_id(),
        status=snapshot.status,
        start_ts=snapshot.start_ts,
        duration=snapshot.duration,
    )


def round_trip(snapshot: Any, with_: Codec[Any, Any] | None = None) -> Any:
    """Write a snapshot and load it."""
    with_ = with_ or codec()
    return with_.decode(record_of(snapshot), with_.encode(snapshot, run_id='run'), place='here')


def refused(snapshot: Any, with_: Codec[Any, Any] | None = None) -> UnfaithfulSnapshotError:
    """Return the error with which a snapshot is refused; whatever warns fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(UnfaithfulSnapshotError) as info:
            (with_ or codec()).encode(snapshot, run_id='run-7')
    assert info.value.run_id == 'run-7'
    assert f"in run 'run-7' refused at `{info.value.field}`" in str(info.value)
    return info.value


def strictly_equal(a: Any, b: Any) -> bool:
    """Compare as naively as can be: by class, then by content."""
    if type(a) is int and type(b) is float:
        return float(a) == b and int(b) == a
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(strictly_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, pydantic.BaseModel):
        return strictly_equal(dict(a), dict(b))
    if isinstance(a, dict):
        ours, theirs = cast('dict[Any, Any]', a), cast('dict[Any, Any]', b)
        return strictly_equal(list(ours.items()), list(theirs.items()))
    if isinstance(a, list | tuple):
        ours, theirs = list(cast('list[Any]', a)), list(cast('list[Any]', b))
        return len(ours) == len(theirs) and all(map(strictly_equal, ours, theirs))
    if isinstance(a, set | frozenset):
        ours, theirs = cast('set[Any]', a), cast('set[Any]', b)
        return sorted(map(repr, ours)) == sorted(map(repr, theirs))
    if isinstance(a, datetime):
        return a.isoformat() == b.isoformat()
    return repr(a) == repr(b)


# -- what is carried

CARRIED: list[State] = [
    State(),
    State(n=10**400, text='ü\u2028"\\\n\x00', ratio=0.1, flag=True, data='ü'.encode()),
    State(ratio=INF, numbers=[NAN, -INF, -0.0, 0.0, 5e-324], scores={-1: INF, 2: NAN}, anything=INF),
    State(anything={'a': [1, None, True, 'x', {'b': [1.5, NAN]}]}),
    State(animal=Animal('a'), pet=Dog('b', breed='c'), animals=[Animal('d')]),
    State(pet=Animal('b')),
    State(model=Model(x=None, more=[1.0]), constants=Constants(x=NAN), pydantic_data=PydanticData(x=1.0)),
    State(base64=Base64(b'\x00\xff\xfe')),
    State(pair=Pair(1, 'a'), options={'a': 1}, colour=Colour.RED, spot=(1, 'a'), tags={'a', 'b'}),
    State(
        amount=Decimal('1.10'), when=STARTED, day=date(2024, 1, 1), wait=timedelta(days=-1, microseconds=1)
    ),
    State(id=uuid.UUID(int=5), path=Path('/a b'), pattern=re.compile('a+')),
    State(ratio=3, numbers=[1, 2]),
    State(password=pydantic.SecretStr('')),
]


@pytest.mark.parametrize('state', CARRIED, ids=range(len(CARRIED)))
def test_what_pydantic_can_carry_is_carried(state: State) -> None:
    """A state and a node come back as they were given, infinity, NaN and configured bytes included."""
    snapshot = node_snapshot(
        state, Ask('why?', state=state), start_ts=STARTED, duration=1.5, status='success'
    )
    loaded = round_trip(snapshot)
    assert strictly_equal(state, loaded.state)
    assert strictly_equal(snapshot.node, loaded.node)
    end = round_trip(EndSnapshot(state=state, result=End(state), ts=STARTED), codec(run_end_type=State))
    assert strictly_equal(state, end.result.data)


def test_a_loaded_snapshot_has_what_the_record_says() -> None:
    """Id, status, start and duration come from the record, and the node carries the id."""
    snapshot = node_snapshot(
        State(), Ask('why?'), start_ts=STARTED, duration=1.5, status='error', id='some id'
    )
    loaded = round_trip(snapshot)
    assert type(loaded) is NodeSnapshot
    assert loaded == snapshot
    assert _host.ensure_snapshot_id(loaded.node) == 'some id'


def test_a_loaded_end_has_what_the_record_says() -> None:
    """Id and time come from the record, and the end carries the id."""
    snapshot = end_snapshot(5)
    loaded = round_trip(snapshot)
    assert type(loaded) is EndSnapshot
    assert loaded == snapshot
    assert loaded.ts == STARTED
    assert _host.ensure_snapshot_id(loaded.result) == snapshot.id


def test_a_body_is_two_json_texts() -> None:
    """The node's text has its fields and its id, the end's has its data."""
    body = codec().encode(node_snapshot(State(), Ask('why?')), run_id='run')
    assert json.loads(body.state) == json.loads(pydantic.TypeAdapter(State).dump_json(State()))
    assert body.node == b'{"question":"why?","answer":null,"state":null,"node_id":"Ask"}'
    assert codec().encode(node_snapshot(State()), run_id='run').node == b'{"node_id":"Start"}'
    assert codec().encode(end_snapshot(5), run_id='run').node == b'{"data":5}'


def test_the_state_can_be_read_without_its_node() -> None:
    """A node that is no longer in the graph does not keep the state from being read."""
    body = codec().encode(node_snapshot(State(n=3)), run_id='run')
    record = StepRecord(id='gone', node_id='Gone')
    assert codec().decode_state(record, body, place='here') == State(n=3)


def test_no_state_is_no_difficulty() -> None:
    """A graph without a state stores null."""
    snapshot = node_snapshot(None)
    assert codec(None).encode(snapshot, run_id='run').state == b'null'
    assert round_trip(snapshot, codec(None)).state is None
    assert round_trip(snapshot, codec(type(None))).state is None


def test_without_the_check_what_is_lost_is_lost() -> None:
    """`verify=False` writes what JSON makes of a value, and nothing warns."""
    state = State(animal=Dog('a'), text=cast(Any, 5), anything=(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        body = codec().encode(node_snapshot(state), run_id='run', verify=False)
    assert json.loads(body.state)['animal'] == {'name': 'a'}


class Aliased(pydantic.BaseModel):
    a: int = pydantic.Field(alias='b')


class AliasedAsWritten(pydantic.BaseModel, serialize_by_alias=True):
    a: int = pydantic.Field(alias='b')


class AliasedEitherWay(pydantic.BaseModel, validate_by_name=True):
    a: int = pydantic.Field(alias='b')


class AliasedStrictly(pydantic.BaseModel, extra='forbid'):
    a: int = pydantic.Field(alias='b')


class AliasedOpenly(pydantic.BaseModel, extra='allow'):
    a: int = pydantic.Field(alias='b')


class Camel(pydantic.BaseModel, alias_generator=to_camel):
    user_name: str
    inner: list[Aliased]


class ReadAs(pydantic.BaseModel):
    a: int = pydantic.Field(validation_alias='b')
    path: int = pydantic.Field(validation_alias=pydantic.AliasPath('c', 0))
    either: int = pydantic.Field(validation_alias=pydantic.AliasChoices('d', 'e'))


class WrittenAs(pydantic.BaseModel, serialize_by_alias=True):
    a: int = pydantic.Field(default=1, serialization_alias='b')


@pydantic.dataclasses.dataclass
class AliasedData:
    a: int = pydantic.Field(alias='b')


@dataclass
class AliasedPlainly:
    a: Annotated[int, pydantic.Field(alias='b')]


class Computing(pydantic.BaseModel):
    a: int = 1

    @pydantic.computed_field
    @property
    def twice(self) -> int:
        return self.a * 2


class ComputingStrictly(Computing, extra='forbid'):
    pass


class ComputingOpenly(Computing, extra='allow'):
    pass


class HoldsJson(pydantic.BaseModel):
    numbers: pydantic.Json[list[float]]
    anything: pydantic.Json[Any] = None


@dataclass
class Counts:
    words: Counter[str]
    order: OrderedDict[str, int]


AWKWARD: list[Any] = [
    Aliased(b=1),
    AliasedAsWritten(b=1),
    AliasedEitherWay(b=1),
    AliasedStrictly(b=1),
    AliasedOpenly.model_validate({'b': 1, 'c': 2}),
    Camel.model_validate({'userName': 'x', 'inner': [{'b': 1}]}),
    ReadAs.model_validate({'b': 1, 'c': [2], 'e': 3}),
    AliasedData(b=1),
    AliasedPlainly(1),
    Computing(a=2),
    ComputingStrictly(a=2),
    ComputingOpenly.model_validate({'a': 2, 'b': 3}),
    HoldsJson.model_validate({'numbers': '[1.5]', 'anything': '"[1]"'}),
    Counts(Counter[str]('aab'), OrderedDict[str, int](a=1)),
    WrittenAs(a=2),
]


@pytest.mark.parametrize('state', AWKWARD, ids=lambda state: type(state).__name__)
def test_models_that_are_made_for_other_formats_are_carried(state: Any) -> None:
    """Aliases, computed fields and JSON within JSON are carried, in a state, a node and a result."""
    cls: Any = state.__class__
    with_ = codec(cls, cls, (GenericNode[cls],))
    loaded = round_trip(node_snapshot(state, GenericNode(state)), with_)
    assert loaded.state == state
    assert loaded.node.value == state
    assert round_trip(end_snapshot(state, state), with_).result.data == state


@pytest.mark.parametrize('state', AWKWARD, ids=lambda state: type(state).__name__)
def test_what_the_host_could_load_of_its_own_it_can_load_of_ours(state: Any) -> None:
    """Where 1.x can load what it wrote, it can load what is written here, and we can load its."""
    host = host_adapter(NODES, type(state), int)
    snapshot = node_snapshot(state)
    theirs = host.dump_json([snapshot])
    try:
        assert host.validate_json(theirs)[0].state == state
    except (AssertionError, pydantic.ValidationError):
        return
    with_ = codec(type(state))
    assert host.validate_json(assembled([snapshot], with_))[0].state == state
    (entry,) = json.loads(theirs)
    body = Body(json.dumps(entry['state']).encode(), json.dumps(entry['node']).encode())
    assert with_.decode(record_of(snapshot), body, place='file').state == state


def test_computed_fields_are_written_where_they_can_be() -> None:
    """Computed fields are left out only of what could not be loaded with them."""
    assert codec(Computing).encode(node_snapshot(Computing()), run_id='run').state == b'{"a":1,"twice":2}'
    state = ComputingStrictly()
    assert codec(ComputingStrictly).encode(node_snapshot(state), run_id='run').state == b'{"a":1}'


def test_the_name_of_a_content_is_carried() -> None:
    """pydantic-ai writes the identifier of a content as a computed field: it is not lost."""
    pdf = BinaryContent(data=b'\xff', media_type='application/pdf', identifier='mine')
    history: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart([pdf])])]
    (request,) = round_trip(node_snapshot(Conversation(history)), codec(Conversation)).state.history
    assert request.parts[0].content[0].identifier == 'mine'


def test_message_histories_are_carried() -> None:
    """The messages of pydantic-ai, binary content included, come back as they were."""
    pdf = BinaryContent(data=b'\xff', media_type='application/pdf')
    history: list[ModelMessage] = [
        ModelRequest(
            parts=[
                SystemPromptPart('be nice'),
                UserPromptPart(['look', pdf]),
            ]
        ),
        ModelResponse(
            parts=[TextPart('fine'), ToolCallPart('tool', {'a': [1, 2.5, None]}, tool_call_id='1')]
        ),
        ModelRequest(parts=[ToolReturnPart('tool', {'b': 1}, tool_call_id='1')]),
    ]
    loaded = round_trip(node_snapshot(Conversation(history)), codec(Conversation))
    assert loaded.state.history == history


@dataclass
class Conversation:
    # newer versions of pydantic-ai have this on `BinaryContent` itself
    __pydantic_config__ = pydantic.ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')
    history: list[ModelMessage]


# -- what is refused

REFUSED: list[tuple[State, str, str]] = [
    (State(animal=Dog('a')), 'state.animal', 'is of type Dog, and would be loaded as Animal'),
    (State(animals=[Animal('a'), Dog('b')]), 'state.animals[1]', 'annotate the field with Dog'),
    (State(anything=(1, 2)), 'state.anything', 'is of type tuple, and would be loaded as list'),
    (State(anything={1: 2}), 'state.anything', 'has the key 1 (int)'),
    (State(anything=STARTED), 'state.anything', 'is of type datetime, and would be loaded as str'),
    (State(anything=[Animal('a')]), 'state.anything[0]', 'is of type Animal, and would be loaded as dict'),
    (State(anything=b'abc'), 'state.anything', 'is of type bytes, and would be loaded as str'),
    (State(anything=Decimal('1.0')), 'state.anything', 'Decimal'),
    (State(anything=Colour.RED), 'state.anything', 'Colour'),
    (State(anything={1}), 'state.anything', 'set'),
    (State(data=b'\xff\xfe'), 'state.data', "ser_json_bytes='base64', val_json_bytes='base64'"),
    (State(anything=[1, {'a': b'\xff'}]), "state.anything[1]['a']", 'is not UTF-8'),
    (State(model=Model(x=INF)), 'state.model.x', "ser_json_inf_nan='constants'"),
    (State(model=Model(y=NAN)), 'state.model.y', "ser_json_inf_nan='constants'"),
    (State(model=Model(more=[1.0, -INF])), 'state.model.more[1]', "ser_json_inf_nan='constants'"),
    (State(pydantic_data=PydanticData(x=INF)), 'state.pydantic_data.x', "ser_json_inf_nan='constants'"),
    (State(amount=Decimal('Infinity')), 'state.amount', 'finite number'),
    (State(n=cast(Any, True)), 'state.n', 'is of type bool, and would be loaded as int'),
    (State(n=cast(Any, 'many')), 'state.n', 'Input should be a valid integer'),
    (State(n=cast(Any, '5')), 'state.n', 'is of type str, and would be loaded as int'),
    (State(ratio=cast(Any, True)), 'state.ratio', 'is of type bool, and would be loaded as float'),
    (State(ratio=2**53 + 1), 'state.ratio', 'is of type int, and would be loaded as float'),
    (State(text=cast(Any, Colour.RED)), 'state.text', 'is of type Colour, and would be loaded as str'),
    (State(animal=cast(Any, 'cat')), 'state.animal', 'cannot be loaded'),
    (State(options=cast(Any, {'a': 1, 'b': 2})), 'state.options', "has the key 'b' (str)"),
    (State(spot=cast(Any, [1, 'a'])), 'state.spot', 'is of type list, and would be loaded as tuple'),
    (State(tags=cast(Any, {'a', 5})), 'state.tags', 'cannot be loaded'),
    (State(scores={1: 2.0, cast(Any, True): 3.0, cast(Any, 'x'): 1.0}), "state.scores['x']", 'valid integer'),
    (State(pattern=re.compile('a', re.IGNORECASE)), 'state.pattern', 're.compile'),
    (State(password=pydantic.SecretStr('x')), 'state.password', 'masks when it is written'),
    (State(text='\ud800'), 'state.text', 'surrogates'),
    (State(anything=object()), 'state.anything', 'keep what is not data (clients, locks, callables) in deps'),
    (State(anything=[0] * 100 + [print] + [0] * 30), 'state.anything[100]', 'cannot be written as JSON'),
]


@pytest.mark.parametrize('state, place, problem', REFUSED, ids=range(len(REFUSED)))
def test_what_would_change_is_refused(state: State, place: str, problem: str) -> None:
    """A value that would be loaded as another one is refused, with its place in state, node or result."""
    error = refused(node_snapshot(state))
    assert (error.node_id, error.field) == ('Start', place)
    assert problem in str(error)
    in_node = refused(node_snapshot(State(), Ask('why?', state=state)))
    assert (in_node.node_id, in_node.field) == ('Ask', f'node.{place}')
    in_result = refused(end_snapshot(state), codec(run_end_type=State))
    assert (in_result.node_id, in_result.field) == ('End', f'result.data{place.removeprefix("state")}')


def test_a_field_that_is_not_loaded_is_refused_when_it_changed() -> None:
    """A field with `init=False` is written but not loaded, so it may only have the value it gets anyway."""
    state = State()
    state.computed = 2
    error = refused(node_snapshot(state))
    assert error.field == 'state.computed'
    assert '`init=False`' in str(error)


def test_an_undeclared_attribute_is_refused() -> None:
    """What an instance has and its class does not declare would be lost."""
    node = Ask('why?')
    node.extra = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert refused(node_snapshot(State(), node)).field == 'node.extra'


def test_a_value_that_holds_itself_is_refused() -> None:
    """JSON holds trees: what refers to itself is refused where it does."""
    state = State()
    state.anything = {'a': [state]}
    error = refused(node_snapshot(state))
    assert error.field == "state.anything['a'][0]"
    assert 'Circular reference' in str(error)


@pytest.mark.parametrize('depth', [220, 5000])
def test_a_value_that_is_too_deep_is_refused(depth: int) -> None:
    """What is too deep for pydantic is refused, and the place stays readable."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    error = refused(node_snapshot(State(anything=value)))
    assert error.field.startswith('state')
    assert len(str(error)) < 1000


def test_a_value_that_only_python_finds_too_deep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `RecursionError` of the comparison is a refusal too."""

    def too_deep(*_: object) -> NoReturn:
        raise RecursionError('maximum recursion depth exceeded')

    monkeypatch.setattr(codec()._state, '_compare', too_deep)
    error = refused(node_snapshot(State()))
    assert error.field == 'state'
    assert isinstance(error.__cause__, RecursionError)


def test_a_state_without_a_state_type_is_refused() -> None:
    """Who forgot to declare the state is told how to."""
    error = refused(node_snapshot(State()), codec(None))
    assert error.field == 'state'
    assert 'pass `state_type=State` to the graph' in str(error)
    with pytest.raises(UnfaithfulSnapshotError):
        codec(None).encode(node_snapshot(State()), run_id='run', verify=False)


def test_a_missing_or_wrong_state_is_refused() -> None:
    """A state of another type than the graph's is refused as a whole."""
    assert refused(node_snapshot(None)).field == 'state'
    assert refused(node_snapshot(Animal('a'))).field == 'state'


@pytest.mark.parametrize('verify', [True, False])
def test_a_node_that_is_not_in_the_graph_is_refused(verify: bool) -> None:
    """The error names the node, and those that the graph has."""
    with pytest.raises(
        UnfaithfulSnapshotError, match=r"Other, which is not in the graph.*'Start', 'Ask'"
    ) as info:
        codec().encode(node_snapshot(State(), Other()), run_id='run', verify=verify)
    assert (info.value.node_id, info.value.field) == ('Other', 'node')


def test_a_subclass_of_a_node_is_not_in_the_graph() -> None:
    """A subclass that borrows the id of its base is another node all the same."""
    imposter = type('Ask', (Ask,), {})()
    assert refused(node_snapshot(State(), imposter)).field == 'node'


@dataclass
class NamesItself(BaseNode[State, None]):
    node_id: str = 'x'

    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


@pydantic.dataclasses.dataclass
class ComputesNodeId(BaseNode[State, None]):
    @pydantic.computed_field
    @property
    def node_id(self) -> str:
        return 'x'

    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


@dataclass
class HoldsNodeId(BaseNode[State, None]):
    inner: dict[str, str]

    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('cls', [NamesItself, ComputesNodeId])
def test_a_field_called_node_id_is_refused(cls: Any, verify: bool) -> None:
    """The format keeps the node's id under that name, in a graph of one node as well."""
    with pytest.raises(UnfaithfulSnapshotError, match='rename the field or its alias') as info:
        codec(nodes=(cls,)).encode(node_snapshot(State(), cls()), run_id='run', verify=verify)
    assert (info.value.node_id, info.value.field) == (cls.__name__, 'node.node_id')


def test_a_key_called_node_id_further_in_is_no_difficulty() -> None:
    """Only a node's own fields can get in the way of its id."""
    node = HoldsNodeId({'node_id': 'x'})
    assert round_trip(node_snapshot(State(), node), codec(nodes=(HoldsNodeId,))).node == node


@pydantic.dataclasses.dataclass(config=pydantic.ConfigDict(extra='forbid'))
class ForbidsExtra(BaseNode[State, None]):
    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


@dataclass
class WrittenAsText(BaseNode[State, None]):
    a: int = 1

    @pydantic.model_serializer
    def as_text(self) -> str:
        return 'text'

    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


@dataclass
class Hooked:
    """Has a hook that fails where it is told to."""

    fail: str
    needed: InitVar[int] = 0

    def __post_init__(self, needed: int) -> None:
        if self.fail == 'load' and not STARTING:
            raise KeyError('no such thing')

    @pydantic.field_serializer('fail')
    def write(self, value: str) -> str:
        if value == 'write':
            raise RuntimeError('cannot write')
        return 'x' if value == 'change' else value


STARTING: list[bool] = []


def hooked(fail: str) -> Hooked:
    """Make one, which works; only making it from JSON may fail."""
    STARTING.append(True)
    try:
        return Hooked(fail)
    finally:
        STARTING.clear()


@dataclass
class NeedsMore:
    excluded: Annotated[int, pydantic.Field(exclude=True)]


@dataclass
class NeedsInit:
    a: InitVar[int]


def test_a_node_that_forbids_extra_keys_is_refused() -> None:
    """Such a node could not be loaded, here or by pydantic-graph 1.x."""
    error = refused(node_snapshot(State(), ForbidsExtra()), codec(nodes=(ForbidsExtra,)))
    assert error.field == 'node'
    assert 'let the config of this node ignore extra keys' in str(error)


def test_a_node_that_is_not_written_as_an_object_is_refused() -> None:
    """There would be no place for its id."""
    error = refused(node_snapshot(State(), WrittenAsText()), codec(nodes=(WrittenAsText,)))
    assert error.field == 'node'
    assert 'let it be written as a JSON object' in str(error)


@pytest.mark.parametrize(
    'fail, place, cause, problem',
    [
        ('write', 'state.fail', ValueError, 'RuntimeError: cannot write'),
        ('load', 'state', KeyError, "KeyError: 'no such thing'"),
        ('change', 'state.fail', type(None), "is 'change', and would be loaded as 'x'"),
    ],
)
def test_what_a_hook_of_the_user_raises_is_a_refusal(
    fail: str, place: str, cause: type, problem: str
) -> None:
    """An exception in a serializer or while loading back is the cause of a refusal."""
    error = refused(node_snapshot(hooked(fail)), codec(Hooked))
    assert error.field == place
    assert problem in str(error)
    assert isinstance(error.__cause__, cause)


@pytest.mark.parametrize(
    'state, place',
    [(NeedsMore(1), 'state.excluded'), (NeedsInit(1), 'state')],
    ids=['excluded', 'InitVar'],
)
def test_what_is_not_written_but_needed_is_refused(state: Any, place: str) -> None:
    """A value that cannot be made again from what is written is refused, with what to do about it."""
    error = refused(node_snapshot(state), codec(type(state)))
    assert error.field == place
    assert isinstance(error.__cause__, pydantic.ValidationError)
    assert 'give what is not stored (excluded fields, `InitVar`) a default' in str(error)


def test_excluded_fields_may_be_lost() -> None:
    """A field that its author excluded is not stored and not missed."""
    state = Forgetful(kept=1, dropped=2)
    assert round_trip(node_snapshot(state), codec(Forgetful)).state == Forgetful(kept=1)


@dataclass
class Forgetful:
    kept: int
    dropped: Annotated[int, pydantic.Field(exclude=True)] = 0


# -- what a graph returns


@dataclass
class ReturnsText(BaseNode[State, None, str]):
    async def run(self, ctx: GraphRunContext[State, None]) -> End[str]:
        raise NotImplementedError


@dataclass
class ReturnsAnimal(BaseNode[State, None, Animal]):
    async def run(
        self, ctx: GraphRunContext[State, None]
    ) -> ReturnsText | Annotated[End[Animal], Edge(label='found')]:
        raise NotImplementedError


@dataclass
class ReturnsByAnnotation(BaseNode[State, None, Any]):
    async def run(self, ctx: GraphRunContext[State, None]) -> Returned:
        raise NotImplementedError


@dataclass
class Unresolvable(BaseNode[State, None, bytes]):
    async def run(self, ctx: GraphRunContext[State, None]) -> Nowhere:  # pyright: ignore # noqa: F821
        raise NotImplementedError


@dataclass
class GenericNode(BaseNode[State, None, T], Generic[T]):
    value: T

    async def run(self, ctx: GraphRunContext[State, None]) -> End[T]:
        raise NotImplementedError


Returned = typing_extensions.TypeAliasType('Returned', 'ReturnsText | End[Decimal]')


@pytest.mark.parametrize('result', [5, 'text', Animal('a'), [1.5], None], ids=str)
def test_every_result_type_that_a_node_declares_is_carried(result: Any) -> None:
    """The graph's type and those of its nodes' bases and return annotations are all stored and loaded."""

    @dataclass
    class Local(BaseNode[State, None, Any]):
        async def run(self, ctx: GraphRunContext[State, None]) -> Local | End[list[float]] | End[None]:
            raise NotImplementedError

    graph = codec(nodes=(ReturnsText, ReturnsAnimal, Unresolvable, Local))
    snapshot = end_snapshot(result)
    assert strictly_equal(result, round_trip(snapshot, graph).result.data)


def test_result_types_that_are_one_in_json_are_told_apart() -> None:
    """Text and a time are both strings in JSON; where text comes first, a time is refused."""
    graph = codec(run_end_type=datetime | str)
    assert round_trip(end_snapshot(STARTED), graph).result.data == STARTED
    assert round_trip(end_snapshot('text'), graph).result.data == 'text'
    error = refused(end_snapshot(STARTED), codec(run_end_type=str | datetime))
    assert 'is of type datetime, and would be loaded as str' in str(error)


def test_a_result_type_of_any_is_no_member_of_a_union() -> None:
    """`End[Any]` of one node does not turn the typed result of another one into a dict."""
    graph = codec(run_end_type=State, nodes=NODES)
    state = State(tags={'a'}, ratio=1.0)
    assert strictly_equal(state, round_trip(end_snapshot(state), graph).result.data)


def test_a_result_type_may_be_named_by_an_alias() -> None:
    """A return annotation is followed through `type X = ...`."""
    graph = codec(nodes=(ReturnsByAnnotation, ReturnsText))
    assert strictly_equal(round_trip(end_snapshot('text'), graph).result.data, 'text')


def test_an_undeclared_result_is_refused() -> None:
    """What no node says it returns is refused."""
    error = refused(end_snapshot(Animal('a')), codec(nodes=(ReturnsText,)))
    assert error.field.startswith('result')


def test_a_result_that_would_be_another_ones_is_refused() -> None:
    """Where two result types look alike in JSON, the wrong one is not taken silently."""
    error = refused(end_snapshot(Twin('a')), codec(run_end_type=Animal | Twin))
    assert error.field == 'result.data'


def test_an_end_of_another_class_is_refused() -> None:
    """An end is loaded as pydantic-graph's own class, so it has to be one."""

    class OwnEnd(End[int]):
        pass

    error = refused(EndSnapshot(state=State(), result=OwnEnd(5), ts=STARTED))
    assert error.field == 'result'


@dataclass
class Twin:
    name: str


def test_a_parametrized_node_is_known_by_its_class() -> None:
    """A graph may have `Node[int]` among its nodes."""
    graph = codec(nodes=(GenericNode[int],))
    snapshot = node_snapshot(State(), GenericNode(5))
    assert round_trip(snapshot, graph).node == GenericNode(5)
    assert refused(node_snapshot(State(), GenericNode('x')), graph).field == 'node.value'


class ModelNode(pydantic.BaseModel, BaseNode[State, None]):
    a: int

    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


def test_a_node_may_be_a_model() -> None:
    """A node that is a pydantic model is carried like a dataclass."""
    assert round_trip(node_snapshot(State(), ModelNode(a=1)), codec(nodes=(ModelNode,))).node.a == 1


# -- what cannot be loaded


def corrupt(record: StepRecord, body: Body, with_: Codec[Any, Any] | None = None) -> CorruptSnapshotError:
    """Return the error with which a body cannot be read."""
    with pytest.raises(CorruptSnapshotError) as info:
        (with_ or codec()).decode(record, body, place='runs/a.json')
    assert info.value.place == 'runs/a.json'
    assert info.value.snapshot_id == record.id == 'some id'
    return info.value


def test_an_unknown_node_cannot_be_loaded() -> None:
    """The error names the stored node and those of the graph, of which there may be one."""
    error = corrupt(
        StepRecord(id='some id', node_id='Gone'), Body(b'{}', b'{"node_id":"Gone"}'), codec(nodes=(Start,))
    )
    assert "node 'Gone' is not in the graph, which has 'Start'" in str(error)
    assert 'no nodes' in str(
        corrupt(StepRecord(id='some id', node_id='Gone'), Body(b'', b''), codec(nodes=()))
    )


@pytest.mark.parametrize(
    'state, node, problem',
    [
        (b'{"n":"x"}', b'{"node_id":"Ask"}', 'state.n: Input should be a valid integer'),
        (b'{"numbers":[1,"x"]}', b'{"node_id":"Ask"}', 'state.numbers[1]: Input should be a valid number'),
        (b'{"n":"a","ratio":"b","flag":"c","day":"d","when":"e"}', b'{}', '; and 2 more'),
        (b'{"n":', b'{"node_id":"Ask"}', 'state: Invalid JSON'),
        (b'', b'{"node_id":"Ask"}', 'state: ValueError: 0 JSON values'),
        (b'{}', b'{"question":5}', 'node.question: Input should be a valid string'),
        (b'{},{}', b'{}', 'ValueError: 2 JSON values'),
    ],
)
def test_what_does_not_fit_the_types_cannot_be_loaded(state: bytes, node: bytes, problem: str) -> None:
    """The error has the place, the snapshot and pydantic's message."""
    error = corrupt(StepRecord(id='some id', node_id='Ask'), Body(state, node))
    assert problem in str(error)
    assert isinstance(error.__cause__, ValueError)


def test_an_end_that_does_not_fit_cannot_be_loaded() -> None:
    """A result of another type is told by its place."""
    record = StepRecord(id='some id', kind='end', node_id='End', start_ts=STARTED)
    assert 'result.data: Input should be' in str(
        corrupt(record, Body(b'{}', b'{"data":"x"}'), codec(nodes=(Other, Ask), run_end_type=Animal))
    )


def test_what_a_hook_raises_while_loading_is_an_error_of_ours() -> None:
    """An exception of the user's code is the cause of a corrupt snapshot."""
    error = corrupt(StepRecord(id='some id', node_id='Ask'), Body(b'{"fail":"load"}', b'{}'), codec(Hooked))
    assert isinstance(error.__cause__, KeyError)


# -- what pydantic cannot handle


class Opaque:
    pass


@dataclass
class HoldsOpaque:
    it: Opaque


@dataclass
class HoldsNowhere:
    it: Nowhere  # pyright: ignore # noqa: F821


class ModelOfNowhere(pydantic.BaseModel):
    it: Nowhere  # pyright: ignore # noqa: F821


class OpaqueNode(BaseNode[State, None]):
    async def run(self, ctx: GraphRunContext[State, None]) -> Ask:
        raise NotImplementedError


@pytest.mark.parametrize(
    'make, problem',
    [
        (
            lambda: codec(Opaque),
            'state type Opaque cannot be stored: .*Unable to generate pydantic-core schema',
        ),
        (lambda: codec(HoldsOpaque), 'state type HoldsOpaque cannot be stored: .*Opaque'),
        (lambda: codec(HoldsNowhere), "state type HoldsNowhere cannot be stored: the annotation 'Nowhere'"),
        (
            lambda: codec(ModelOfNowhere),
            "state type ModelOfNowhere cannot be stored: the annotation 'Nowhere'",
        ),
        (lambda: codec(run_end_type=Opaque, nodes=(Other,)), 'result type Opaque cannot be stored'),
        (lambda: codec(nodes=(OpaqueNode,)), 'node OpaqueNode cannot be stored'),
    ],
)
def test_a_type_that_pydantic_cannot_handle_is_refused_at_once(
    make: Callable[[], object], problem: str
) -> None:
    """The error comes before a run, names the type and says what pydantic says."""
    with pytest.raises(UnsupportedTypeError, match=problem) as info:
        make()
    assert isinstance(info.value.__cause__, pydantic.errors.PydanticErrorMixin)


# -- one codec for one graph


def test_the_same_types_give_the_same_codec() -> None:
    """Building is expensive, so a graph that is run often is built once."""
    assert codec() is codec()
    assert codec() is not codec(run_end_type=str)
    assert (codec().nodes, codec().state_type, codec().run_end_type) == (NODES, State, int)


def test_types_that_are_only_equal_are_told_apart() -> None:
    """`int | str` equals `str | int`, but they need not load alike."""
    assert codec(int | str) is not codec(str | int)


def test_types_that_cannot_be_hashed_are_built_anew() -> None:
    """An annotation may hold anything; then the codec is not kept."""
    annotated = Annotated[State, {'not': 'hashable'}]
    assert codec(annotated) is not codec(annotated)


# -- the format of pydantic-graph 1.x

FORMAT_STATES = [state for state in CARRIED if state.constants is None and state.base64 is None]


def assembled(snapshots: list[Any], with_: Codec[Any, Any]) -> bytes:
    """Write a file as pydantic-graph 1.x knows it."""
    entries: list[bytes] = []
    for snapshot in snapshots:
        body = with_.encode(snapshot, run_id='run')
        if isinstance(snapshot, EndSnapshot):
            rest = {'ts': snapshot.ts.isoformat(), 'kind': 'end', 'id': snapshot.id}
            entries.append(
                b'{"state":%b,"result":%b,%b' % (body.state, body.node, json.dumps(rest).encode()[1:])
            )
        else:
            started = snapshot.start_ts.isoformat() if snapshot.start_ts else None
            rest = {'start_ts': started, 'duration': snapshot.duration, 'status': snapshot.status}
            rest |= {'kind': 'node', 'id': snapshot.id}
            entries.append(
                b'{"state":%b,"node":%b,%b' % (body.state, body.node, json.dumps(rest).encode()[1:])
            )
    return b'[%b]' % b','.join(entries)


def host_adapter(nodes: Any, state_type: Any, run_end_type: Any) -> pydantic.TypeAdapter[Any]:
    """Build the adapter of pydantic-graph 1.x, or ours of the same kind where the host has none."""
    with _host.node_types(nodes):
        return build_snapshot_list_type_adapter(state_type, run_end_type)


def history(states: list[State]) -> list[Any]:
    """Make a history of some nodes and an end."""
    nodes = [
        NodeSnapshot(
            state=state, node=Ask(state.text, state=state), start_ts=STARTED, duration=0.25, status='success'
        )
        for state in states
    ]
    return [NodeSnapshot(state=State(), node=Start()), *nodes, end_snapshot(5)]


@pytest.mark.parametrize('nodes', [NODES, (Ask,)], ids=['several nodes', 'one node'])
def test_what_is_written_here_loads_there(nodes: Any) -> None:
    """The array that is assembled from bodies is what the host's adapter loads."""
    snapshots: list[Any] = [
        s for s in history(FORMAT_STATES) if isinstance(s, EndSnapshot) or type(s.node) in nodes
    ]
    loaded = host_adapter(nodes, State, int).validate_json(assembled(snapshots, codec(nodes=nodes)))
    assert strictly_equal(snapshots, loaded)


@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('nodes', [NODES, (Ask,)], ids=['several nodes', 'one node'])
def test_what_is_written_there_loads_here(nodes: Any, indent: int | None) -> None:
    """What the host's adapter dumps is decoded to the values that were given."""
    finite = [state for state in FORMAT_STATES if state.ratio != INF and not isinstance(state.anything, dict)]
    snapshots: list[Any] = [s for s in history(finite) if isinstance(s, EndSnapshot) or type(s.node) in nodes]
    with_ = codec(nodes=nodes)
    text = host_adapter(nodes, State, int).dump_json(snapshots, indent=indent)
    for snapshot, entry in zip(snapshots, json.loads(text), strict=True):
        node = entry['node'] if entry['kind'] == 'node' else entry['result']
        body = Body(
            json.dumps(entry['state'], indent=indent).encode(), json.dumps(node, indent=indent).encode()
        )
        assert strictly_equal(snapshot, with_.decode(record_of(snapshot), body, place='file'))


# -- whatever it is, it is carried or refused

texts = st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=4)
odd = (
    scalars
    | st.decimals()
    | st.datetimes()
    | st.dates()
    | st.uuids()
    | st.builds(Dog, texts)
    | st.just(Colour.RED)
)
anything = st.recursive(
    odd,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(scalars, max_size=3)
        | st.dictionaries(scalars, inner, max_size=3)
        | st.builds(Model, more=st.lists(st.floats(), max_size=2))
    ),
    max_leaves=8,
)
typed = {
    'n': st.integers(),
    'text': texts,
    'ratio': st.floats() | st.integers(),
    'data': st.binary(max_size=4),
    'animal': st.builds(Animal, texts) | st.builds(Dog, texts),
    'pet': st.none() | st.builds(Animal, texts) | st.builds(Dog, texts, texts),
    'model': st.builds(Model, x=st.none() | st.floats(), y=st.floats()),
    'base64': st.builds(Base64, st.binary(max_size=4)),
    'pair': st.builds(Pair, st.integers(), texts),
    'amount': st.decimals(),
    'when': st.datetimes() | st.datetimes(timezones=st.timezones()),
    'day': st.dates(),
    'wait': st.timedeltas(),
    'id': st.uuids(),
    'numbers': st.lists(st.floats(), max_size=3),
    'scores': st.dictionaries(st.integers(), st.floats(), max_size=3),
    'tags': st.sets(texts, max_size=3),
    'spot': st.tuples(st.integers(), texts),
}


def state_of(fields: dict[str, Any]) -> State:
    """Make a state, whether the values are of the declared types or not."""
    return State(**fields)


typed_states = st.fixed_dictionaries({}, optional=typed).map(state_of)
wild_states = st.dictionaries(st.sampled_from(['anything', *sorted(typed)]), anything, max_size=3).map(
    state_of
)


@given(typed_states | wild_states)
def test_nothing_is_lost_silently(state: State) -> None:
    """Whatever a state holds, either it is refused or it is loaded exactly as it was given."""
    snapshot = node_snapshot(state, Ask(answer=state.anything))
    try:
        body = codec().encode(snapshot, run_id='run')
    except UnfaithfulSnapshotError:
        return
    loaded = codec().decode(record_of(snapshot), body, place='here')
    assert strictly_equal(snapshot.state, loaded.state)
    assert strictly_equal(snapshot.node, loaded.node)


@given(typed_states)
def test_what_is_of_its_declared_type_is_refused_for_a_reason(state: State) -> None:
    """Of values of their declared types only those are refused that JSON or the config cannot hold."""
    refusals: list[str] = []
    try:
        codec().encode(node_snapshot(state), run_id='run')
    except UnfaithfulSnapshotError as error:
        refusals.append(error.field)
    assert not set(refusals) - {field for field, reason in reasons(state).items() if reason}


def reasons(state: State) -> dict[str, bool]:
    """Say for each field that may be refused whether this one may."""
    return {
        'state.animal': type(state.animal) is Dog,
        'state.ratio': isinstance(state.ratio, int) and float_or_nan(state.ratio) != state.ratio,
        'state.model.x': state.model is not None and not math.isfinite(state.model.x or 0),
        'state.model.y': state.model is not None and not math.isfinite(state.model.y),
        'state.amount': state.amount is not None and not state.amount.is_finite(),
        'state.data': not is_text(state.data),
        # the second of two equal hours, which only a zone tells apart; an offset with seconds
        'state.when': state.when is not None and (state.when.fold == 1 or odd_offset(state.when)),
    }


def float_or_nan(number: int) -> float:
    """Convert as far as a float reaches."""
    try:
        return float(number)
    except OverflowError:
        return NAN


def is_text(data: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def odd_offset(when: datetime) -> bool:
    """Whether a time is off from UTC by more than whole minutes."""
    return bool((when.utcoffset() or timedelta()) % timedelta(minutes=1))
