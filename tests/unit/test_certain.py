"""What is certain of a value without loading it is never wrong, and it is certain of what is plain."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeVar

import pydantic
import pydantic_core
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import core_schema, from_json

from graphkeep.codec import Shape
from graphkeep.faithful import difference

T = TypeVar('T')


def shape_of(type_: Any) -> Any:
    """Return what writes and reads values of this type."""
    return Shape('state type', type_, type_, difference)


def is_certain(type_: Any, value: Any) -> bool:
    """Return whether it is certain that this value would be loaded as it is."""
    return shape_of(type_)._is_certain(value)


@dataclass
class Item:
    name: str
    price: float = 0.0


@dataclass
class Basket:
    items: list[Item]
    by_name: dict[str, Item] = field(default_factory=lambda: {})
    first: Item | None = None
    counts: tuple[int, ...] = ()
    open: bool = True
    nothing: None = None


@dataclass
class Private:
    _number: int = 0


@dataclass
class Twice:
    one: Item
    more: list[Item]


class Model(pydantic.BaseModel):
    number: int
    basket: Basket | None = None


@dataclass
class Box(Generic[T]):
    value: T


@pytest.mark.parametrize(
    'type_,value',
    [
        (int, 2**63 - 1),
        (float, -0.0),
        (float, 5e-324),
        (str, 'tab\t, \0, \u2028, 😀'),
        (Item, Item('a', 1.5)),
        (Basket, Basket([Item('a')], {'b': Item('b')}, Item('c'), (1, 2))),
        (Basket, Basket([])),
        (Model, Model(number=1, basket=Basket([Item('a')]))),
        (Box[int], Box(1)),
        (dict[str, list[int]], {'a': [1, 2], '': []}),
        (type(None), None),
        (Private, Private(1)),
        (Twice, Twice(Item('a'), [Item('b')])),
    ],
    ids=repr,
)
def test_certain_of_what_is_plain(type_: Any, value: Any) -> None:
    """Such a value is not loaded; and it would be loaded as it is."""
    shape = shape_of(type_)
    assert shape._is_certain(value)
    shape._verify('state', value, shape.dump(value))


@dataclass
class Child(Item):
    more: str = ''


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    'type_,value',
    [
        (int, True),
        (int, 2**63),
        (float, 1),
        (float, math.inf),
        (float, math.nan),
        (str, Text('a')),
        (bool, 1),
        (Item, Child('a')),
        (Item, Item('a', 1)),
        (Item, Item(Text('a'))),
        (Item, 'a'),
        (list[int], (1, 2)),
        (list[int], [1, True]),
        (tuple[int, ...], [1]),
        (dict[str, int], {1: 1}),
        (dict[str, int], {'a': True}),
        (dict[str, int], {'\ud800': 1}),
        (dict[str, Any], {}),
        (Basket, Basket([Child('a')])),
        (Model, Model.model_construct(number='1')),
        (Box[int], Box('1')),
    ],
    ids=repr,
)
def test_not_certain_of_other_classes(type_: Any, value: Any) -> None:
    """What has another class than the schema says is loaded and compared."""
    assert not is_certain(type_, value)


def test_not_certain_of_what_is_not_declared() -> None:
    """An attribute that is no field would be lost; one that need not be stored is no matter."""
    item: Any = Item('a')
    item.extra = 1
    assert not is_certain(Item, item)
    del item.extra
    item._extra = 1
    assert is_certain(Item, item)
    del item.price
    assert not is_certain(Item, item)
    model: Any = Model(number=1)
    object.__setattr__(model, '__pydantic_extra__', {'extra': 1})
    assert not is_certain(Model, model)


# -- types of which pydantic does more than carry them


@dataclass
class PostInit:
    number: int

    def __post_init__(self) -> None:
        self.number += 1


@dataclass
class NoInit:
    number: int = field(init=False, default=0)


@dataclass
class NeedsInit:
    number: int
    more: InitVar[int] = 0


@dataclass
class Excluded:
    number: Annotated[int, pydantic.Field(exclude=True)] = 0


@dataclass
class Aliased:
    number: Annotated[int, pydantic.Field(alias='n')] = 0


@dataclass
class Stripped:
    __pydantic_config__ = pydantic.ConfigDict(str_strip_whitespace=True)
    text: str = ''


@dataclass(slots=True)
class Slotted:
    number: int = 0


class Hidden:
    """A field kept elsewhere than in `__dict__`, and not as it is given."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return 0 if instance is None else instance.__dict__['number']

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__['number'] = int(value) * 2


@dataclass
class Described:
    number: int = Hidden()  # type: ignore[assignment]


@dataclass
class Reads:
    number: int = 0

    def __getattribute__(self, name: str) -> Any:
        return 7 if name == 'number' else super().__getattribute__(name)


@dataclass
class New:
    number: int

    def __new__(cls, number: int = 1) -> New:
        return object.__new__(NewChild)


class NewChild(New):
    pass


@dataclass
class Elsewhere:
    number: int = 0

    @property
    def __dict__(self) -> dict[str, int]:  # type: ignore[override]
        return {'number': 1}


@dataclass
class Written:
    number: int = 0
    other: int = 0

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        schema = handler(source)
        schema['fields'] = ['number']
        return schema


class Bare:
    """A class for which a schema is made by hand, as for a model."""

    __pydantic_fields_set__ = frozenset[str]()
    number = 1

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        fields = {'number': core_schema.model_field(core_schema.int_schema())}
        return core_schema.model_schema(cls, core_schema.model_fields_schema(fields))


@dataclass
class Listed(list[int]):
    number: int = 0


class Validated(pydantic.BaseModel):
    number: int

    @pydantic.field_validator('number')
    @classmethod
    def _double(cls, value: int) -> int:
        return value * 2


class Serialized(pydantic.BaseModel):
    number: int

    @pydantic.field_serializer('number')
    def _double(self, value: int) -> int:
        return value * 2


class Computed(pydantic.BaseModel):
    number: int = 1

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.number * 2


class Root(pydantic.RootModel[int]):
    pass


class Made(pydantic.BaseModel):
    number: int

    def __init__(self, **data: Any):
        super().__init__(**{**data, 'number': 9})


class Begins(pydantic.BaseModel):
    number: int

    def model_post_init(self, context: Any) -> None:
        self.number += 1


class Open(pydantic.BaseModel, extra='allow'):
    number: int = 1


class Strict(pydantic.BaseModel, extra='forbid'):
    number: int = 1


@dataclass
class Tree:
    children: list[Tree] = field(default_factory=lambda: [])


@dataclass
class Lazy:
    number: int = 1

    @cached_property
    def double(self) -> int:
        return self.number * 2


def lazy() -> Lazy:
    """Return a value that has computed something."""
    value = Lazy()
    assert value.double == 2
    return value


@pytest.mark.parametrize(
    'type_,value',
    [
        (PostInit, PostInit(1)),
        (NoInit, NoInit()),
        (NeedsInit, NeedsInit(1)),
        (Excluded, Excluded(1)),
        (Aliased, Aliased(1)),
        (Stripped, Stripped(' a ')),
        (Slotted, Slotted(1)),
        (Described, Described(1)),
        (Reads, Reads(1)),
        (New, NewChild.__new__(NewChild)),
        (Elsewhere, Elsewhere(1)),
        (Written, Written(1, 2)),
        (Bare, Bare()),
        (Listed, Listed()),
        (Validated, Validated.model_construct(number=1)),
        (Serialized, Serialized(number=1)),
        (Computed, Computed()),
        (Root, Root(1)),
        (Made, Made(number=1)),
        (Begins, Begins(number=1)),
        (Open, Open(number=1)),
        (Strict, Strict()),
        (Tree, Tree([Tree()])),
        (Lazy, lazy()),
        (Annotated[int, pydantic.Field(gt=3)], 1),
        (Annotated[str, pydantic.Field(strict=True)], 'a'),
        (Annotated[str, pydantic.BeforeValidator(str.strip)], ' a '),
        (Annotated[str, pydantic.PlainSerializer(str.upper)], 'a'),
        (Literal['a'], 'a'),
        (int | str, 1),
        (tuple[int, str], (1, 'a')),
        (set[int], {1}),
        (dict[int, int], {1: 1}),
        (bytes, b'a'),
        (Any, 1),
        (list, [1]),
        (object, 1),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_not_certain_where_anything_else_is_done(type_: Any, value: Any) -> None:
    """Where pydantic or the class does more than carry the fields, a value is loaded and compared."""
    assert not is_certain(type_, value)


def nested(levels: int) -> Any:
    """Return a type of so many classes, each of which holds the next one twice."""
    hint: Any = int
    for number in range(levels):
        fields: Any = {'a': (hint | None, None), 'b': (hint | None, None)}
        hint = pydantic.create_model(f'Level{number}', **fields)
    return hint


def test_nested_types() -> None:
    """Each class is looked at once, however often it is used; what is too deep to load is not certain."""
    hint = nested(60)
    assert is_certain(hint, hint(a=None))
    hint = nested(120)
    assert not is_certain(hint, hint(a=None))


# -- any types, any values


def _dataclass(hints: Mapping[str, Any]) -> Any:
    return dataclasses.make_dataclass('Made', hints.items())


def _model(hints: Mapping[str, Any]) -> Any:
    fields: Any = {name: (hint, ...) for name, hint in hints.items()}
    return pydantic.create_model('Made', **fields)


_HINTS: Any = st.recursive(
    st.sampled_from([int, str, float, bool, type(None), bytes, Any, Annotated[int, pydantic.Field(le=3)]]),
    lambda inner: st.one_of(
        inner.map(lambda hint: list[hint]),
        inner.map(lambda hint: tuple[hint, ...]),
        inner.map(lambda hint: dict[str, hint]),
        inner.map(lambda hint: hint | None if hint is not type(None) else hint),
        st.dictionaries(st.sampled_from('abc'), inner, min_size=1, max_size=3).map(_dataclass),
        st.dictionaries(st.sampled_from('abc'), inner, min_size=1, max_size=3).map(_model),
    ),
    max_leaves=6,
)


_TEXT: Any = st.text(st.characters(exclude_categories=()))  # lone surrogates, too
_ANY: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), _TEXT, st.binary(max_size=3), st.just(Text('a'))
)


def _values(hint: Any) -> Any:
    """Return values of a type, and now and then of another one."""
    right: Any
    if hint is Any:
        right = _ANY
    elif (fields := getattr(hint, '__dataclass_fields__', None)) is not None:
        parts = {name: _values(field_.type) for name, field_ in fields.items()}
        right = st.fixed_dictionaries(parts).map(lambda members: hint(**members))
    elif (infos := getattr(hint, 'model_fields', None)) is not None:
        parts = {name: _values(info.annotation) for name, info in infos.items()}
        right = st.fixed_dictionaries(parts).map(lambda members: hint.model_construct(**members))
    elif (arguments := getattr(hint, '__args__', None)) is not None:
        right = _holding(hint, arguments)
    else:
        single: dict[Any, Any] = {
            int: st.integers(),
            str: _TEXT,
            float: st.floats(),
            bool: st.booleans(),
            bytes: st.binary(max_size=3),
            type(None): st.none(),
        }
        right = single.get(hint, st.integers())
    return st.one_of(right, right, right, right, right, _ANY)


def _holding(hint: Any, arguments: Any) -> Any:
    origin = getattr(hint, '__origin__', None)
    if origin is list:
        return st.lists(_values(arguments[0]), max_size=3)
    if origin is tuple:
        return st.lists(_values(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(_TEXT, _values(arguments[1]), max_size=3)
    return st.one_of(*(_values(argument) for argument in arguments))


@given(st.data())
def test_never_certain_of_what_would_change(data: st.DataObject) -> None:
    """What is certain of a value, loading and comparing it confirms."""
    hint = data.draw(_HINTS)
    value = data.draw(_values(hint))
    shape = shape_of(hint)
    if not shape._is_certain(value):
        return
    try:
        text = shape.dump(value)
    except pydantic_core.PydanticSerializationError:  # a lone surrogate
        return
    shape._verify('state', value, text)  # which raises if it is refused
    assert json.loads(text) == from_json(text)
