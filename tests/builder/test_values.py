"""Values between steps: what may be one, and that it comes back exactly as it was."""

from __future__ import annotations

import datetime
import decimal
import fractions
import ipaddress
import math
import pathlib
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, Flag, IntEnum, StrEnum
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypeAlias, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, create_model
from pydantic_core import from_json
from pydantic_graph import BaseNode, End, GraphBuilder, GraphRunContext, StepContext
from pydantic_graph.graph_builder import Graph
from typing_extensions import TypedDict

from graphkeep import MemoryStore, PersistentGraph, UnfaithfulSnapshotError, UnsupportedTypeError
from graphkeep.codec import Refusal
from graphkeep.namedtypes import named_in, signature_hints
from graphkeep.values import ValueCodec

T = TypeVar('T')


class Colour(Enum):
    RED = 'red'
    BLUE = ('b', 1)


class Level(IntEnum):
    LOW = 1


class Name(StrEnum):
    ADA = 'ada'


class Bits(Flag):
    ONE = 1
    TWO = 2


@dataclass
class Item:
    name: str
    price: decimal.Decimal = decimal.Decimal('1.10')
    tags: set[str] = field(default_factory=set[str])


@dataclass
class Special(Item):
    more: int = 1


@dataclass
class Holder(Generic[T]):
    held: T


class Model(BaseModel):
    items: list[Item] = []
    limit: float = 1.0

    model_config = ConfigDict(ser_json_inf_nan='constants')


class Point(NamedTuple):
    x: int
    y: Colour = Colour.RED


class Options(TypedDict, total=False):
    depth: int
    item: Item


@dataclass
class Node(BaseNode[None, None, int]):
    number: int

    async def run(self, ctx: GraphRunContext[None, None]) -> End[int]:
        return End(self.number)


class Opaque:
    """What pydantic cannot write."""


UserId = NewType('UserId', int)
Tree: TypeAlias = 'dict[str, list[Item]]'

TYPES = [Colour, Level, Name, Bits, Item, Holder[int], Model, Point, Options, Node]
codec = ValueCodec(named_in(TYPES))


def written(value: Any, codec: ValueCodec = codec) -> Any:
    """Return the value as it comes back."""
    return codec.read(from_json(codec.write(value, root='value', verify=True)))


def same(one: object, two: object) -> bool:
    """Whether two values are the same in type, sign, order and all."""
    return type(one) is type(two) and _same(one, two)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, float):
        return one.hex() == two.hex()
    if isinstance(one, dict):
        return same([*cast('Any', one).items()], [*two.items()])
    if isinstance(one, deque):
        return two.maxlen == cast('Any', one).maxlen and same([*cast('Any', one)], [*two])
    if isinstance(one, list | tuple):
        return len(cast('list[Any]', one)) == len(two) and all(map(same, cast('list[Any]', one), two))
    return bool(one == two)


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 2**63, -(10**40), 1.0, -0.0, 5e-324, 1.7976931348623157e308, math.inf),
    *(-math.inf, math.nan, '', 'a', 'ü\u2028😀\0\x7f"\\', 'x' * 10_000),
    *([], [1, 'a', None], [[[]]], [math.nan, -0.0], [1.0, 1, True]),
    *({}, {'a': 1}, {'a': {'b': [1.5]}}, {'$': 1}, {'$': 'tuple', 'is': [1]}, {'$a': {'$b': 1}}, {'is': 1}),
    *({1: 'a'}, {None: 1, (1, 2): [2], 'a': 3}, {1: 1, '1': 2}, {True: 1}, {'': 0}),
    *((), (1,), (1, (2, [3])), ('tuple',), {'a': (1, 2)}),
    *(set[int](), {1, 2}, {(1, 2), 'a'}, frozenset({1}), {frozenset({1})}, [set[int](), {1}]),
    *(b'', b'\x00\xff', bytearray(b'\xff'), [b'a'], {'a': b'a'}, {b'a': 1}),
    *(deque([1, 2]), deque([1], maxlen=3), deque[int](maxlen=0), deque([(1,), deque([2])])),
    *(1j, complex(-0.0, math.inf), range(0), range(1, 10, 2), fractions.Fraction(1, 3)),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
    *(datetime.date(1, 1, 1), datetime.time(1, 2, 3, 4), datetime.timedelta(days=-1, microseconds=1)),
    *(
        decimal.Decimal('1.10'),
        decimal.Decimal('-0'),
        decimal.Decimal('1E+50'),
        decimal.Decimal('-Infinity'),
        uuid.UUID(int=5),
    ),
    *(ipaddress.ip_address('127.0.0.1'), ipaddress.ip_network('::/64'), pathlib.Path('a/b')),
    *(Colour.RED, Level.LOW, Name.ADA, Bits.ONE | Bits.TWO, [Level.LOW], {Name.ADA: 1}),
    *(
        Item('a'),
        Item('b', decimal.Decimal('2.00'), {'x'}),
        [Item('a')],
        {'a': (Item('a'),)},
        {'$': Item('a')},
    ),
    *(Holder(1), Model(items=[Item('a')], limit=math.inf), Point(1), Node(3)),
    *({'depth': 1, 'item': Item('a')}, [Node(1), Item('a'), None]),
]


@pytest.mark.parametrize('value', VALUES, ids=lambda value: repr(value)[:30])
def test_round_trip(value: Any):
    """A value of a permitted kind comes back as it was, by itself and within others."""
    for whole in (value, [value], {'a': value}, (value, [value]), {'$': value}):
        if value == value:
            assert same(written(whole), whole)
        else:
            assert repr(written(whole)) == repr(whole)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
hashables = st.recursive(scalars, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5)
things: st.SearchStrategy[Any] = st.recursive(
    scalars
    | hashables
    | st.datetimes().map(lambda moment: moment.replace(fold=0))
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.fractions()
    | st.sampled_from([Colour.RED, *Level, *Name])
    | st.builds(Item, st.text(), st.just(decimal.Decimal(1)), st.sets(st.text())),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(hashables, inner)
        | st.dictionaries(st.sampled_from(['$', '$is', 'is', 'a']), inner)
        | st.tuples(inner)
        | st.builds(deque, st.lists(inner), st.none() | st.integers(0, 9))
    ),
    max_leaves=10,
)


@given(things)
def test_any_value(value: Any):
    """So does anything that is made up of such."""
    assert same(written(value), value)


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    'value, field, problem',
    [
        (Opaque(), 'value', 'which the graph does not name'),
        ([1, Opaque()], 'value[1]', 'Opaque'),
        ({'a': {'b': Opaque()}}, "value['a']['b']", r'types=(Opaque,)'),
        ({Opaque(): 1}, 'value[0]', 'Opaque'),
        (deque([Opaque()]), 'value[1]', 'Opaque'),
        (Colour.BLUE, 'value', 'cannot be loaded'),
        (Special('a'), 'value', 'Special'),
        (Model(items=[Special('a')]), 'value.items[0]', 'Special'),
        (Exception('a'), 'value', 'Exception'),
        (Item, 'value', 'type'),
        (len, 'value', 'builtin_function_or_method'),
        ((number for number in ()), 'value', 'generator'),
        ('\ud800', 'value', 'cannot be written as JSON'),
        (['\ud800'], 'value', 'cannot be written as JSON'),
        ({'\ud800': 1}, 'value', 'cannot be written as JSON'),
        (Item('\ud800'), 'value', ''),
        (pathlib.Path('\udcff'), 'value', ''),
        (Holder('not an int'), 'value.held', ''),
        (Item(cast('Any', 5)), 'value.name', ''),
    ],
)
def test_refused(value: Any, field: str, problem: str):
    """Anything else is refused, with the place and what to do."""
    with pytest.raises(Refusal) as caught:
        codec.write(value, root='value', verify=True)
    assert caught.value.field.startswith(field)
    assert problem in caught.value.problem


@pytest.mark.parametrize('make', [list[Any], dict[str, Any], deque[Any]])
def test_holds_itself(make: Callable[[], Any]):
    """A value that holds itself is refused, and so is one that is nested too deeply."""
    value = make()
    if isinstance(value, dict):
        value['a'] = value
    else:
        value.append(value)
    with pytest.raises(Refusal, match='holds itself'):
        codec.write(value, root='value', verify=True)


def test_nested_deeply():
    """A value that is nested too deeply is refused, or comes back wherever it is stored."""
    for depth in (100, 190, 210, 250, 400, 5000):
        value: Any = 0
        for _ in range(depth):
            value = [value]
        try:
            text = codec.write(value, root='value', verify=True)
        except Refusal:
            continue
        assert codec.read(from_json(b'[[[[[%b]]]]]' % text)[0][0][0][0][0]) == value


def test_very_long_number():
    """A number of more digits than can be read is refused, too."""
    assert written([10**4000]) == [10**4000]
    with pytest.raises(Refusal, match='could not be read again'):
        codec.write([10**4400], root='value', verify=True)


def test_unwritable_type():
    """A class that the graph names, and pydantic cannot write, is refused at the place where a value is."""
    with pytest.raises(Refusal, match='Opaque'):
        ValueCodec(named_in([Opaque])).write([Opaque()], root='value', verify=True)


def test_subclass_of_builtin():
    """A subclass of a built-in class is not taken for that class."""

    class Text(str):
        pass

    class Items(list[int]):
        pass

    values: list[Any] = [Text('a'), Items([1]), OrderedDict(a=1)]
    for value in values:
        with pytest.raises(Refusal, match='does not name'):
            codec.write(value, root='value', verify=True)


# ---------------------------------------------------------------------------------------------------- reading


def test_unknown_when_read():
    """A stored value of a type that is no longer named is refused, and what to do is told."""
    text = from_json(codec.write(Item('a'), root='value', verify=True))
    with pytest.raises(ValueError, match=r'does not name.*types='):
        ValueCodec([]).read(text)


def test_moved():
    """A type that was moved to another module is found by its name, if only one has that."""
    text: Any = {'$': 'old.place:Item', 'is': {'name': 'a', 'price': '1', 'tags': []}}
    assert codec.read(text) == Item('a', decimal.Decimal(1))


def test_not_imported():
    """A type's name in what is stored is never imported."""
    for name in ('os:system', 'builtins:eval', 'subprocess:Popen'):
        with pytest.raises(ValueError, match='does not name'):
            codec.read({'$': name, 'is': 'true'})


# --------------------------------------------------------------------------------------- the types of a graph


def names_in(*hints: Any) -> set[str]:
    """Return the names of the classes that annotations name."""
    return {getattr(hint, '__name__', str(hint)) for hint in named_in(hints)}


@pytest.mark.parametrize(
    'hint, found',
    [
        (int, set[str]()),
        (list[Item] | None, {'Item'}),
        (dict[str, tuple[Item, ...]], {'Item'}),
        (Annotated[Item, Model], {'Item'}),
        (Literal['Item'], set[str]()),
        (Literal[Colour.RED], {'Colour'}),
        (UserId, set[str]()),
        (NewType('Other', Item), {'Item'}),
        (Model, {'Model', 'Item'}),
        (Point, {'Point', 'Colour'}),
        (Options, {'Options', 'Item'}),
        (Callable[[Item], Point], {'Item', 'Point', 'Colour'}),
        (Iterable[Item], {'Item'}),
        (type[Item], {'Item'}),
        (Any, set[str]()),
        (T, set[str]()),
        (Holder[Item], {'Holder', 'Item'}),
    ],
)
def test_named(hint: Any, found: set[str]):
    """Classes of users are found anywhere in annotations, also in the fields of others."""
    assert names_in(hint) - {'Iterable', 'Callable'} >= found
    assert {name for name in names_in(hint) if name[0].isupper()} - {'Iterable', 'Callable'} == found


def test_standard_library():
    """Classes of the standard library that pydantic can write go, too, if they are named."""
    codec = ValueCodec(
        named_in([HTTPStatus, Counter[str], defaultdict[str, list[int]], OrderedDict[str, int]])
    )
    lists = defaultdict[str, list[int]](list)
    lists['a'].append(1)
    values: list[Any] = [HTTPStatus.OK, Counter('aab'), lists, OrderedDict(b=1, a=2)]
    for value in values:
        assert same(written(value, codec), value)


@pytest.mark.parametrize('verify', [True, False])
def test_several_of_a_generic(verify: bool):
    """A generic class of several parametrisations comes back with any of them, in whatever order they are."""
    types: list[Any] = [
        Holder[int],
        Holder[str],
        Holder[datetime.date],
        Holder[Item],
        Holder[list[Item] | None],
    ]
    values: list[Any] = [
        *(Holder(1), Holder('2026-01-02'), Holder(datetime.date(2026, 1, 2)), Holder(Item('a'))),
        *(Holder([Item('a')]), Holder(None)),
    ]
    for order in (types, types[::-1]):
        codec = ValueCodec(order)
        for value in values:
            text = codec.write(value, root='value', verify=verify)
            assert same(codec.read(from_json(text)), value)


def test_several_of_a_generic_refused():
    """What fits none of them is refused, and for each is told why."""
    codec = ValueCodec([Holder[int], Holder[Item], Holder[Opaque]])
    with pytest.raises(Refusal) as caught:
        codec.write(Holder('text'), root='value', verify=True)
    told = caught.value.problem
    assert 'as Holder[int], `value.held` is ' in told
    assert 'as Holder[tests.builder.test_values:Item], `value.held` is ' in told
    assert 'Opaque' in told
    unchecked = from_json(codec.write(Holder('text'), root='value', verify=False))
    assert unchecked['is'] == {'held': 'text'}


def test_of_a_generic_when_read():
    """Which one was stored is found if its argument was moved; the only one may have become another."""
    text: Any = {'$': 'old.place:Holder', 'of': 'old.place:Item', 'is': {'held': {'name': 'a'}}}
    for types in ([Holder[int], Holder[Item]], [Holder[Item]], [Holder[Item | None]]):
        assert ValueCodec(types).read(text) == Holder(Item('a'))
    with pytest.raises(ValueError, match=r'Holder\[old.place:Item\].*not name, but Holder\[int\], Holder:'):
        ValueCodec([Holder[int], Holder]).read(text)


def test_one_name():
    """Two classes of one name are refused, for a value of one would come back as the other."""

    def local() -> type:
        @dataclass
        class Local:
            number: int

        return Local

    with pytest.raises(UnsupportedTypeError, match=r'two classes .*Local, one with number, one with number,'):
        ValueCodec([local(), local()])
    smaller, greater = create_model('Made', v=(int, ...)), create_model('Made', v=(int, ...), w=(int, 0))
    with pytest.raises(UnsupportedTypeError, match=r'two classes .*:Made, one with v, one with v, w,'):
        PersistentGraph(passing(lambda: smaller(v=1), smaller | greater))
    with pytest.raises(UnsupportedTypeError, match='two classes'):
        PersistentGraph(passing(lambda: smaller(v=1), smaller), types=[greater])


def test_one_name_of_dicts():
    """`TypedDict`s may have one name, for their values are dicts."""
    codec = ValueCodec([TypedDict('Made', {'a': int}), TypedDict('Made', {'b': int})])
    assert written({'a': 1}, codec) == {'a': 1}


@pytest.mark.parametrize('cls', [datetime.datetime, datetime.time])
def test_fold(cls: Any):
    """A naive time of the second of two equal hours is refused, and what to do is told."""
    moment = datetime.datetime(2026, 10, 25, 2, 30, fold=1)
    value = moment if cls is datetime.datetime else moment.time()
    with pytest.raises(Refusal, match=r'JSON does not hold its fold.*store an aware datetime'):
        codec.write(value, root='value', verify=True)
    assert written(value.replace(fold=0)) == value.replace(fold=0)


def test_unresolvable():
    """An annotation that cannot be resolved is refused, with what it is of."""

    def step(ctx: Missing) -> int:  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore
        return 1

    with pytest.raises(UnsupportedTypeError, match=r"step 'a'.*'Missing' cannot be resolved"):
        signature_hints("step 'a'", cast('Any', step), {})


@pytest.mark.parametrize(
    'annotation, error',
    [
        ('Item[int]', 'TypeError'),
        ('Item | 5', 'TypeError'),
        ('datetime.Missing', 'AttributeError'),
        ('a local variable', 'SyntaxError'),
    ],
)
def test_broken_annotation(annotation: str, error: str):
    """So is one that cannot be resolved for another reason."""

    async def step(ctx: StepContext[None, None, None]) -> int:
        return 1

    step.__annotations__['return'] = annotation
    with pytest.raises(UnsupportedTypeError, match=rf"step 'a'.* cannot be resolved \({error}: "):
        signature_hints("step 'a'", step, {})


def test_no_annotations():
    """What is not written in Python, or has no annotations, names nothing."""
    for function in (len, list, str.upper, partial(int, base=2), lambda: 1):
        assert signature_hints('transform', cast('Any', function), {}) == {}


# --------------------------------------------------------------------------------------------- within a graph


def passing(make: Callable[[], Any], annotation: Any) -> Graph[None, None, None, str]:
    """Return a graph whose first step returns what is made, so annotated, and whose second one shows it."""
    g = GraphBuilder(output_type=str)

    async def first(ctx: StepContext[None, None, None]) -> Any:
        return make()

    first.__annotations__['return'] = annotation

    async def second(ctx: StepContext[None, None, Any]) -> str:
        return repr(ctx.inputs)

    one, two = g.step(first, node_id='first'), g.step(second, node_id='second')
    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(two), g.edge_from(two).to(g.end_node))
    return g.build()


@pytest.mark.anyio
@pytest.mark.parametrize(
    'make, annotation',
    [
        (lambda: Item('a'), Item),
        (lambda: [Item('a')], 'list[Item]'),
        (lambda: Colour.RED, Colour | None),
        (lambda: Holder(1), Holder[int]),
        (lambda: {'a': [Item('a')]}, Tree),
        (lambda: Point(1), Point | int),
    ],
)
async def test_named_by_a_step(make: Callable[[], Any], annotation: Any):
    """What a step's annotation names goes to the next step, also after the run was left in between."""
    graph, store = PersistentGraph(passing(make, annotation)), MemoryStore()
    async with graph.iter(persistence=store.run('r')) as run:
        await run.next()
    async with graph.iter_from_persistence(store.run('r')) as run:
        async for _ in run:
            pass
        assert run.output == repr(make())


@pytest.mark.anyio
async def test_types():
    """What no annotation names is refused with the step and what to add; `types=` lets it go."""
    plain, store = passing(lambda: [Item('a')], Any), MemoryStore()
    with pytest.raises(UnfaithfulSnapshotError, match=r"'first' .*`its result\[0\]`.*types=\(Item,\)"):
        await PersistentGraph(plain).run(persistence=store.run('r'))
    await store.retry('r')
    graph = PersistentGraph(plain, types=[Item])
    async with graph.iter_from_persistence(store.run('r')) as run:
        async for _ in run:
            pass
        assert run.output == repr([Item('a')])


@pytest.mark.anyio
async def test_types_of_the_standard_library():
    """So it does with a class of the standard library."""
    graph = PersistentGraph(passing(lambda: HTTPStatus.OK, Any), types=[HTTPStatus])
    assert await graph.run(persistence=MemoryStore().run('r')) == repr(HTTPStatus.OK)


@pytest.mark.anyio
async def test_subclass_is_refused():
    """An instance of a subclass of what the step names is refused, for it would come back as less."""
    graph = PersistentGraph(passing(lambda: Special('a'), Item))
    with pytest.raises(UnfaithfulSnapshotError, match='Special'):
        await graph.run(persistence=MemoryStore().run('r'))


@pytest.mark.anyio
async def test_pydantic_cannot_write_it():
    """A class that pydantic cannot write is refused with the step that has returned one."""
    graph, store = PersistentGraph(passing(Opaque, Opaque)), MemoryStore()
    with pytest.raises(UnfaithfulSnapshotError, match=r"node 'first'.*Opaque"):
        await graph.run(persistence=store.run('r'))
    assert (await store.runs())[0].status == 'error'


def test_refused_when_made():
    """An annotation that cannot be resolved is refused when the graph is made persistent, with the step."""
    plain = passing(lambda: 1, int)
    first: Any = plain.nodes[cast('Any', 'first')]
    first.call.__annotations__['return'] = 'Missing'
    with pytest.raises(UnsupportedTypeError, match=r"step 'first' .*'Missing' cannot be resolved"):
        PersistentGraph(plain)


def test_local_types():
    """Types that are local to the function that makes the graph are found."""

    @dataclass
    class Local:
        number: int

    g = GraphBuilder(output_type=int)

    @g.step
    async def make(ctx: StepContext[None, None, None]) -> Local:
        return Local(1)

    @g.step
    async def use(ctx: StepContext[None, None, Local]) -> int:
        return ctx.inputs.number

    g.add(g.edge_from(g.start_node).to(make), g.edge_from(make).to(use), g.edge_from(use).to(g.end_node))
    graph: Graph[None, None, None, int] = g.build()
    assert PersistentGraph(graph).run_sync(persistence=MemoryStore().run('r')) == 1


def test_names_where_it_is_made():
    """What a name stands for in the module of a step is not changed by variables of who makes the graph."""
    plain = passing(lambda: Item('a'), 'Item')

    def with_a_class() -> PersistentGraph[None, None, None, str]:
        @dataclass
        class Item:
            other: int

        return PersistentGraph(plain, types=[Item])

    def with_a_text() -> PersistentGraph[None, None, None, str]:
        Item, str = 'a local variable', 'another one'
        return PersistentGraph(plain, tracking='exact' if Item and str else 'barrier')

    for graph in (with_a_class(), with_a_text()):
        assert graph.run_sync(persistence=MemoryStore().run('r')) == repr(Item('a'))


def test_local_type_of_a_global_name():
    """A type that is local to the function that defines the step is meant, not that of its module."""
    made: list[Any] = []

    @dataclass
    class Item:
        number: int

    g = GraphBuilder(output_type=int)

    @g.step
    async def make(ctx: StepContext[None, None, None]) -> Item:
        return made[0]

    @g.step
    async def use(ctx: StepContext[None, None, Any]) -> int:
        return ctx.inputs.number

    made.append(Item(1))
    g.add(g.edge_from(g.start_node).to(make), g.edge_from(make).to(use), g.edge_from(use).to(g.end_node))
    graph: Graph[None, None, None, int] = g.build()
    assert PersistentGraph(graph).run_sync(persistence=MemoryStore().run('r')) == 1


def test_only_where_it_is_made():
    """A name that the module of a step lacks is looked up where the graph is made."""
    plain = passing(lambda: 1, int)
    first: Any = plain.nodes[cast('Any', 'first')]
    first.call.__annotations__['return'] = 'Elsewhere'

    @dataclass
    class Elsewhere:
        number: int

    graph = PersistentGraph(plain)
    assert graph._values.knows(Elsewhere)


def test_state_that_cannot_be_stored():
    """A state type that pydantic cannot write is refused when the graph is made persistent."""
    g = GraphBuilder(state_type=Opaque, output_type=int)

    @g.step
    async def one(ctx: StepContext[Opaque, None, None]) -> int:
        return 1

    g.add(g.edge_from(g.start_node).to(one), g.edge_from(one).to(g.end_node))
    plain: Graph[Opaque, None, None, int] = g.build()
    with pytest.raises(UnsupportedTypeError, match='state'):
        PersistentGraph(plain)
