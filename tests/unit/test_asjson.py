from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, Optional, TypeVar

import pydantic
import pytest
import typing_extensions
from pydantic_ai import Agent
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import AsJson, FileStatePersistence, Graph, UnfaithfulSnapshotError, run_or_resume
from graphkeep.asjson import is_marked, same_data
from graphkeep.codec import Body, Codec
from graphkeep.faithful import comparer_of, difference
from graphkeep.snapshots import EndSnapshot, NodeSnapshot

T = TypeVar('T')
AT: Final = datetime(2024, 5, 6, tzinfo=UTC)


class Colour(Enum):
    RED = 'red'


class Weather(pydantic.BaseModel):
    at: datetime
    degrees: float = 1.5


@dataclass
class Spot:
    x: int = 1


@dataclass
class MarkedSpot(Spot):
    name: str = 'here'


class Secretive(pydantic.BaseModel):
    password: pydantic.SecretStr


class Revealing(pydantic.BaseModel):
    password: pydantic.SecretStr

    @pydantic.field_serializer('password', when_used='json')
    def reveal(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


class Aliased(pydantic.BaseModel):
    a: int = pydantic.Field(alias='b')


class Options(typing_extensions.TypedDict, total=False):
    marked: typing_extensions.Required[Annotated[Any, AsJson]]
    plain: Any
    inner: Options


class Pair(NamedTuple):
    marked: Annotated[Any, AsJson]
    plain: Any = None


class Model(pydantic.BaseModel):
    marked: Annotated[Any, AsJson]
    plain: Any = None
    maybe: Annotated[list[Any], AsJson] | None = None


@pydantic.dataclasses.dataclass
class Data:
    marked: Annotated[Any, pydantic.Field(description='it'), AsJson()]
    plain: Any = None


@dataclass
class State:
    marked: Annotated[Any, AsJson] = None
    plain: Any = None
    spot: Annotated[Spot | None, AsJson] = None
    ratios: Annotated[list[float], AsJson] = field(default_factory=list[float])
    tags: Annotated[set[Any], AsJson] = field(default_factory=set[Any])
    model: Model | None = None
    data: Data | None = None
    pair: Pair | None = None
    options: Options | None = None
    late: int = field(init=False, default=1)


@dataclass
class Step(BaseNode[State, None, Any]):
    marked: Annotated[Any, AsJson] = None
    plain: Any = None

    async def run(self, ctx: GraphRunContext[State, None]) -> End[Any]:
        raise NotImplementedError


def codec(state_type: Any = State, run_end_type: Any = Any) -> Codec[Any, Any]:
    """Return the codec of a small graph."""
    return Codec[Any, Any].of((Step,), state_type, run_end_type)


def encode(state: Any, with_: Codec[Any, Any] | None = None, node: Step | None = None) -> Body:
    """Write a snapshot."""
    return (with_ or codec()).encode(NodeSnapshot(state=state, node=node or Step()), run_id='run')


def refused(state: Any, with_: Codec[Any, Any] | None = None, node: Step | None = None) -> tuple[str, str]:
    """Return the place of a refusal, and what is said of it."""
    with pytest.raises(UnfaithfulSnapshotError) as info:
        encode(state, with_, node)
    return info.value.field, str(info.value)


# -- what it permits

CHANGED: Final[list[Any]] = [
    (1, (2,)),
    AT,
    Decimal('1.10'),
    Colour.RED,
    b'text',
    {1, 2},
    {1: 'a', AT: [Spot()]},
    Spot(),
    Weather(at=AT),
    [{'deep': (Weather(at=AT), None)}],
    Aliased(b=1),
    Revealing(password=pydantic.SecretStr('x')),
    Secretive(password=pydantic.SecretStr('')),
    [math.inf, (math.nan,)],
]


MAKERS: Final[list[Callable[[Any], State]]] = [
    lambda value: State(marked=value),
    lambda value: State(marked=[value]),
    lambda value: State(model=Model(marked=value)),
    lambda value: State(model=Model(marked=1, maybe=[value])),
    lambda value: State(data=Data(marked=value)),
    lambda value: State(pair=Pair(marked=value)),
    lambda value: State(options={'marked': value}),
    lambda value: State(options={'marked': 1, 'inner': {'marked': value, 'plain': 1}}),
]


@pytest.mark.parametrize('value', CHANGED, ids=range(len(CHANGED)))
@pytest.mark.parametrize('make', MAKERS)
def test_a_marked_value_may_change_its_type(make: Callable[[Any], State], value: Any) -> None:
    """Within what is marked a value is kept as data, and is written just as without the mark."""
    assert (
        encode(make(value)).state
        == codec().encode(NodeSnapshot(state=make(value), node=Step()), run_id='run', verify=False).state
    )


@pytest.mark.parametrize('value', CHANGED[:3])
def test_nodes_states_and_results_may_be_marked(value: Any) -> None:
    """The mark may stand at a field of a node, and around the type of a state or a result."""
    encode(State(), node=Step(marked=value))
    assert refused(State(), node=Step(plain=value))[0] == 'node.plain'
    encode(State(plain=value), codec(Annotated[State, AsJson]))
    assert refused(State(plain=value))[0] == 'state.plain'
    end = EndSnapshot[Any, Any](state=State(), result=End(value))
    codec(run_end_type=Annotated[Any, AsJson]).encode(end, run_id='run')
    with pytest.raises(UnfaithfulSnapshotError, match=r'`result\.data`.*annotate the field with'):
        codec().encode(end, run_id='run')


def test_a_typed_dict_may_be_a_state() -> None:
    """The keys of a state that is a `TypedDict` are marked one by one."""
    with_ = codec(Options)
    encode({'marked': (1,), 'plain': 1}, with_)
    assert refused({'marked': (1,), 'plain': (1,)}, with_)[0] == "state['plain']"
    assert (
        refused({'marked': 1, 'inner': {'marked': [Secretive(password=pydantic.SecretStr('x'))]}}, with_)[0]
        == "state['inner']['marked'][0]"
    )
    assert refused(None, with_)[0] == 'state'


def test_items_of_a_set_may_change_their_type() -> None:
    """Items are compared without an order, for a set has none."""
    days = {date(2024, 1, day) for day in range(1, 20)}
    encode(State(tags={*days, 'text', 5}))
    assert refused(State(tags={pydantic.SecretStr('x')}))[0] == 'state.tags'


# -- what it does not permit


@pytest.mark.parametrize(
    'state, place',
    [
        (State(spot=MarkedSpot()), 'state.spot'),
        (State(marked=Secretive(password=pydantic.SecretStr('x'))), 'state.marked'),
        (State(marked=pydantic.SecretStr('x')), 'state.marked'),
        (State(marked=[Weather(at=AT, degrees=math.inf)]), 'state.marked[0]'),
        (State(marked=b'\xff'), 'state.marked'),
        (State(ratios=[True]), 'state.ratios[0]'),
        (State(marked='\ud800'), 'state.marked'),
        (State(plain=(1,)), 'state.plain'),
        (State(model=Model(marked=1, plain=(1,))), 'state.model.plain'),
        (State(data=Data(marked=1, plain=(1,))), 'state.data.plain'),
        (State(pair=Pair(1, plain=(1,))), 'state.pair.plain'),
        (State(options={'marked': (1,), 'plain': (1,)}), "state.options['plain']"),
    ],
)
def test_lost_data_is_refused_all_the_same(state: State, place: str) -> None:
    """The mark excuses no subclass' fields, masks, nulls and bools, and nothing beside the field."""
    assert refused(state)[0] == place


def test_what_is_lost_beside_a_type_is_refused() -> None:
    """Within what is marked, values that keep their type are compared as ever."""
    state = State()
    state.late = 2
    assert refused(state, codec(Annotated[State, AsJson]))[0] == 'state.late'


# -- where it stands

Alias = typing_extensions.TypeAliasType('Alias', list[Annotated[Any, AsJson]])
Endless = typing_extensions.TypeAliasType('Endless', 'list[Endless] | None')
Box = typing_extensions.TypeAliasType('Box', list[T], type_params=(T,))


class Holder(Generic[T]):
    pass


MARKED: Final[list[Any]] = [
    Annotated[int, AsJson],
    Annotated[int, 'other', AsJson()],
    Optional[Annotated[int, AsJson]],  # noqa: UP045 - type checkers know no `|` of it
    dict[str, list[Annotated[Any, AsJson]]],
    Alias,
    Alias | None,
    Box[Annotated[int, AsJson]],
    Holder[Annotated[int, AsJson]],
]


@pytest.mark.parametrize('hint', MARKED)
def test_the_mark_is_found_anywhere_in_an_annotation(hint: Any) -> None:
    """In a union, a list or an alias it is for the whole."""
    assert is_marked(hint)
    assert comparer_of(hint)((1,), [1]) is None


@pytest.mark.parametrize('hint', [int, None, 'text', State, Options, Endless, Literal['AsJson'], Any])
def test_what_is_not_marked_is_strict(hint: Any) -> None:
    """Fields that are marked further in do not mark what is around them."""
    assert not is_marked(hint)
    assert comparer_of(hint)((1,), [1]) is not None


def test_of_several_typed_dicts_none_is_meant() -> None:
    """Which of a union's `TypedDict`s a dict is cannot be told, so it is compared strictly."""
    assert comparer_of(Options | typing_extensions.TypedDict('Other', {'a': int})) is difference


def test_where_only_pydantic_resolves_annotations_the_mark_is_found() -> None:
    """The mark in a model of a local scope is found by what pydantic made of it."""

    class Inner(pydantic.BaseModel):
        x: int = 1

    class Local(pydantic.BaseModel):
        inner: Inner
        marked: Annotated[Any, AsJson]

    assert difference(Local(inner=Inner(), marked=(1,)), Local(inner=Inner(), marked=[1])) is None


def test_same_data_is_never_an_error() -> None:
    """What cannot be written is not the same."""
    assert same_data({'b': 1, 'a': (2,)}, {'a': [2], 'b': 1})
    assert not same_data(object(), object())


# -- what a refusal says of it


def test_a_refusal_names_the_mark_where_it_helps() -> None:
    """A change of type that loses no data may be excused; who declared the field decides what else to do."""
    own = refused(State(plain=Spot()))[1]
    assert 'annotate the field with Spot' in own
    assert 'or mark the field with `Annotated[..., AsJson]`' in own
    assert 'AsJson' in refused(State(plain={1: 'a'}))[1]
    assert 'AsJson' not in refused(State(plain=pydantic.SecretStr('x')))[1]


def test_a_refusal_does_not_tell_to_change_somebody_elses_class() -> None:
    """The annotations of an installed package are not its user's to change."""

    @dataclass
    class Talk:
        messages: list[ModelMessage]
        other: Any = None

    history: list[ModelMessage] = [ModelRequest(parts=[ToolReturnPart('tool', Spot(), tool_call_id='1')])]
    place, said = refused(Talk(history), codec(Talk))
    assert place == 'state.messages[0].parts[0].content'
    assert 'annotate' not in said
    assert 'or mark the field of your own that holds all this with `Annotated[..., AsJson]`' in said
    history = [ModelRequest(parts=[ToolReturnPart('tool', pydantic.SecretStr('x'), tool_call_id='1')])]
    said = refused(Talk(history), codec(Talk))[1]
    assert 'annotate' not in said
    assert 'AsJson' not in said


# -- agents


@dataclass
class Chat:
    # newer versions of pydantic-ai have this on `BinaryContent` itself
    __pydantic_config__ = pydantic.ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')
    messages: Annotated[list[ModelMessage], AsJson] = field(default_factory=list[ModelMessage])


def tools() -> list[Callable[[], Any]]:
    """Return tools that return all kinds of values."""

    def model() -> Weather:
        return Weather(at=AT)

    def data() -> Spot:
        return Spot()

    def moment() -> datetime:
        return AT

    def several() -> tuple[int, Spot]:
        return 1, Spot(2)

    def numbered() -> dict[int, str]:
        return {1: 'a'}

    def plain() -> str:
        return 'text'

    return [model, data, moment, several, numbered, plain]


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Stand in for a model that tells how much it knows."""
    return ModelResponse(parts=[TextPart(f'I know {len(messages)} messages')])


@dataclass
class Work(BaseNode[Chat, None, str]):
    async def run(self, ctx: GraphRunContext[Chat, None]) -> Pause:
        agent = Agent(TestModel(), tools=tools())
        image = BinaryContent(b'\xff\xd8', media_type='image/jpeg', identifier='mine')
        ctx.state.messages = (await agent.run(['look', image])).all_messages()
        return Pause()


@dataclass
class Pause(BaseNode[Chat, None, str]):
    ready: bool = False

    async def run(self, ctx: GraphRunContext[Chat, None]) -> End[str]:
        agent = Agent(FunctionModel(answer))
        result = await agent.run('Go on.', message_history=ctx.state.messages)
        ctx.state.messages = result.all_messages()
        return End(result.output)


chat_graph = Graph(nodes=(Work, Pause))


@pytest.mark.anyio
async def test_what_an_agents_tools_return_is_carried(tmp_path: Path) -> None:
    """A run with an agent's history is loaded from its file, and the agent goes on with that history."""
    state = Chat()
    path = tmp_path / 'chat.json'
    async with chat_graph.iter(Work(), state=state, persistence=FileStatePersistence(path)) as run:
        async for node in run:
            if isinstance(node, Pause):
                break
    resumed = FileStatePersistence(path)
    resumed.set_graph_types(chat_graph)
    messages = (await resumed.last_state()).messages
    assert [returned(message) for message in messages] == [
        [],
        [],
        [
            {'at': '2024-05-06T00:00:00Z', 'degrees': 1.5},
            {'x': 1},
            '2024-05-06T00:00:00Z',
            [1, {'x': 2}],
            {'1': 'a'},
            'text',
        ],
        [],
    ]
    (prompt,) = messages[0].parts
    assert isinstance(prompt, UserPromptPart)
    assert isinstance(image := prompt.content[1], BinaryContent)
    assert (image.data, image.media_type, image.identifier) == (b'\xff\xd8', 'image/jpeg', 'mine')
    result = await run_or_resume(chat_graph, persistence=resumed)
    assert result.output == 'I know 5 messages'
    assert len((await resumed.last_state()).messages) == 6


@pytest.mark.anyio
async def test_the_types_of_a_graph_may_be_marked(tmp_path: Path) -> None:
    """A graph takes a marked state type and result type, and a run with them is resumed."""
    marked: Any = Annotated[State, AsJson]
    result_type: Any = Annotated[Any, AsJson]
    graph = Graph[State, None, Any](nodes=(Give,), state_type=marked, run_end_type=result_type)
    path = tmp_path / 'run.json'
    await graph.initialize(Give(), FileStatePersistence(path), state=State(plain=(1, 2)))
    result = await run_or_resume(graph, persistence=FileStatePersistence(path))
    assert result.output == ([1, 2], AT)
    again = await run_or_resume(graph, persistence=FileStatePersistence(path))
    assert again.output == [[1, 2], '2024-05-06T00:00:00Z']


@dataclass
class Give(BaseNode[State, None, Any]):
    async def run(self, ctx: GraphRunContext[State, None]) -> End[Any]:
        return End((ctx.state.plain, AT))


def returned(message: ModelMessage) -> list[Any]:
    """Return what the tools of a message returned."""
    return [part.content for part in message.parts if isinstance(part, ToolReturnPart)]
