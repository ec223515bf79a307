from __future__ import annotations

import functools
import math
import re
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast
from zoneinfo import ZoneInfo

import pydantic
import pytest
from pydantic_core import TzInfo

from graphkeep.faithful import difference
from graphkeep.parts import parts_of, shown

if TYPE_CHECKING:
    from nowhere import Unresolved  # pyright: ignore

NAN = float('nan')
BERLIN = ZoneInfo('Europe/Berlin')


class Colour(Enum):
    RED = 1
    BLUE = 2


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    A = 'a'


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Point:
    x: Any
    y: Any = field(default=0, compare=False)


@dataclass
class Point3(Point):
    z: Any = 0


@dataclass
class Empty:
    pass


@dataclass(slots=True)
class Slotted:
    a: Any
    b: Any = 0


@dataclass(frozen=True)
class Frozen:
    a: Any


@dataclass(frozen=True, eq=False)
class ById:
    a: Any


@dataclass
class Lazy:
    a: int
    _note: str = 'field'
    seed: InitVar[int] = 0

    @functools.cached_property
    def double(self) -> int:
        return self.a * 2


@dataclass
class Late:
    a: int = field(init=False, default=1)
    b: int = field(init=False, default=1)


@dataclass
class PartlyExcluded:
    kept: int = 1
    annotated: Annotated[int, pydantic.Field(exclude=True)] = 2
    marked: Annotated[int, pydantic.Field(description='kept')] = 3
    default: int = pydantic.Field(default=4, exclude=True)


@pydantic.dataclasses.dataclass
class PartlyExcludedPydantic:
    kept: int = 1
    annotated: Annotated[int, pydantic.Field(exclude=True)] = 2
    default: int = pydantic.Field(default=4, exclude=True)


@dataclass
class Unresolvable:
    a: Unresolved  # pyright: ignore
    b: Annotated[int, pydantic.Field(exclude=True)] = 1


class Animal(pydantic.BaseModel):
    name: Any
    secret: int = pydantic.Field(default=0, exclude=True)
    _private: int = pydantic.PrivateAttr(default=0)

    @functools.cached_property
    def shout(self) -> str:
        return self.name.upper()


class Dog(Animal):
    breed: str = ''


class Open(pydantic.BaseModel, extra='allow'):
    a: int = 1


class Plain:
    __slots__ = ('__dict__', '__hidden', 'slot')

    def __init__(self, *, hidden: Any = 0, **attributes: Any):
        self.__hidden = hidden
        for name, value in attributes.items():
            setattr(self, name, value)

    @functools.cached_property
    def cached(self) -> int:
        return 1


class Tagged(list[Any]):
    tag: Any = None


@dataclass
class Headed(dict[str, Any]):
    head: Any = None


class Always:
    def __init__(self, answer: Any):
        self.answer = answer

    def __eq__(self, other: object) -> bool:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Elements:
    """Stands for what `==` of two arrays returns."""

    def __init__(self, *same: bool):
        self.same = same

    def all(self) -> bool:
        return all(self.same)

    def __bool__(self) -> bool:
        raise ValueError('the truth value of an array is ambiguous')


def headed(head: Any, **entries: Any) -> Headed:
    """Make a dataclass that has entries besides its fields."""
    made = Headed(head)
    made.update(entries)
    return made


def local_class(name: str) -> type[Any]:
    """Make another class of the same name."""
    return type(name, (), {})


def test_a_value_is_no_different_from_itself() -> None:
    """The same object is faithful, whatever its class makes of `==`."""
    value = Always(answer=False)
    assert difference(value, value) is None
    assert difference(math.nan, math.nan) is None


SAME: list[Callable[[], Any]] = [
    lambda: None,
    lambda: 10**400,
    lambda: 'text' * 3,
    lambda: b'\xff',
    lambda: 1.5,
    lambda: -0.0,
    lambda: float('nan'),
    lambda: float('inf'),
    lambda: complex(0.0, -0.0),
    lambda: Decimal('1.50'),
    lambda: Decimal('NaN'),
    lambda: Fraction(1, 3),
    lambda: Colour.RED,
    lambda: Level.LOW,
    lambda: Path('/a/b'),
    lambda: uuid.UUID(int=1),
    lambda: re.compile('a+', re.IGNORECASE),
    lambda: date(2024, 1, 1),
    lambda: datetime(2024, 1, 1),
    lambda: datetime(2024, 1, 1, tzinfo=UTC),
    lambda: datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
    lambda: time(1, 2, tzinfo=timezone(timedelta(hours=1))),
    lambda: timedelta(days=-1, microseconds=1),
    lambda: [1, 'a', [float('nan'), -0.0, 0.0, '']],
    lambda: (1, (2, 3)),
    lambda: Pair(1, [2]),
    lambda: {'a': 1, 'b': {'c': [1.5, '']}},
    lambda: {1: 'a', (1, 2): 'b', None: 'c'},
    lambda: {float('nan'): 1},
    lambda: {1, 'a', (2, frozenset({3}))},
    lambda: {float('nan')},
    lambda: frozenset({Frozen(1), Frozen('a')}),
    lambda: {ById(1), ById(2)},
    lambda: deque([1, 2], maxlen=3),
    lambda: defaultdict(list, {'a': [1]}),
    lambda: OrderedDict[str, int](a=1, b=2),
    lambda: Counter('aab'),
    lambda: Counter[str]('aab'),
    lambda: Headed(1),
    lambda: Point([1], {'a': Point(1)}),
    lambda: Point3(1, 2, 3),
    lambda: Empty(),
    lambda: Slotted(1, [2]),
    lambda: PartlyExcluded(default=1),
    lambda: Animal(name='a'),
    lambda: Dog(name='a', breed='b'),
    lambda: Open.model_validate({'a': 1, 'b': 2}),
    lambda: Plain(hidden=1, slot=2, other=[3]),
    lambda: Tagged([1]),
    lambda: pydantic.SecretStr('x'),
    lambda: Always(answer=True),
    lambda: Always(answer=Elements(True, True)),
]


@pytest.mark.parametrize('make', SAME, ids=range(len(SAME)))
def test_equal_values_of_one_class_are_the_same(make: Callable[[], Any]) -> None:
    """Two equal values of one class do not differ, also where Python's `==` says otherwise of NaN."""
    assert difference(make(), make()) is None
    assert difference([make()], [make()]) is None
    assert difference(Point(make()), Point(make())) is None


DIFFERENT: list[tuple[Any, Any, str, str]] = [
    # given, loaded, path, a part of the problem
    (1, True, '', 'is of type int, and would be loaded as bool'),
    (True, 1, '', 'is of type bool, and would be loaded as int'),
    (1, 1.5, '', 'int'),
    (2**53 + 1, float(2**53), '', 'int'),
    (1.0, 1, '', 'float'),
    (1, '1', '', 'annotate the field with int'),
    ('a', 'b', '', "is 'a', and would be loaded as 'b'"),
    (0.0, -0.0, '', 'is 0.0'),
    (0.1, 0.2, '', 'is 0.1'),
    (NAN, 1.0, '', 'is nan'),
    (math.inf, None, '', "ser_json_inf_nan='constants'"),
    (NAN, None, '', 'is nan, and would be loaded as None'),
    (Decimal(1), Decimal('1.0'), '', 'Decimal'),
    (complex(0.0), complex(0.0, -0.0), '', '0j'),
    (Colour.RED, Colour.BLUE, '', 'RED'),
    (Level.LOW, 1, '', 'is of type Level, and would be loaded as int'),
    ('a', Word.A, '', 'because the field turns it into that: store it as Word yourself'),
    (Path('a'), PurePosixPath('a'), '', 'PosixPath'),
    (uuid.UUID(int=1), uuid.UUID(int=2), '', 'UUID'),
    (re.compile('a', re.IGNORECASE), re.compile('a'), '', 're.compile'),
    ((1,), [1], '', 'is of type tuple, and would be loaded as list'),
    ([1, 2], [1], '', 'holds 2 items, and would be loaded with 1'),
    ([1, [2, 3]], [1, [2, 4]], '[1][1]', 'is 3'),
    ((1, 2), (1, 3), '[1]', 'is 2'),
    (Pair(1, 2), Pair(1, 3), '.right', 'is 2'),
    (deque([1], maxlen=2), deque([1]), '', 'maxlen=2'),
    (deque([1]), deque([2]), '[0]', 'is 1'),
    ({'a': 1}, {'a': 2}, "['a']", 'is 1'),
    ({'a': [1]}, {'a': [2]}, "['a'][0]", 'is 1'),
    ({1: 'a'}, {'1': 'a'}, '', "has the key 1 (int), and would be loaded with '1' (str) instead"),
    ({1: 'a'}, {True: 'a'}, '', 'with True (bool) instead'),
    ({'a': 1}, {Word.A: 1}, '', '(Word)'),
    ({'a': 1, 'b': 2}, {'a': 1}, '', "has the key 'b' (str), and would be loaded without it"),
    ({'a': 1}, {'a': 1, 'b': 2}, '', 'holds 1 items'),
    ({1: 'a'}, {1: 'b'}, '[1]', "is 'a'"),
    (defaultdict(list), defaultdict(set), '', 'makes missing values with'),
    (defaultdict(list, a=[1]), defaultdict(list, a=[2]), "['a'][0]", 'is 1'),
    ({1}, {True}, '', 'holds 1 (int), and would be loaded with True (bool) instead'),
    ({1}, {1, 2}, '', 'holds 1 items'),
    ({Frozen(1)}, {Frozen(True)}, '', 'Frozen(a=1)'),
    ({ById(1)}, {ById(2)}, '', 'ById'),
    (Point(1), Point(2), '.x', 'is 1'),
    (Point(1, 2), Point(1, 3), '.y', 'is 2'),
    (Point([{'a': 1.5}]), Point([{'a': 2.5}]), ".x[0]['a']", 'is 1.5'),
    (
        Point3(1),
        Point(1),
        '',
        'is of type Point3, and would be loaded as Point, without what the subclass adds',
    ),
    (Slotted(1), Slotted(2), '.a', 'is 1'),
    (Headed(1), Headed(2), '.head', 'is 1'),
    (headed(1, a=1), Headed(1), '', "has the key 'a'"),
    (Lazy(1, _note='x'), Lazy(1), '._note', "is 'x'"),
    (PartlyExcluded(kept=5), PartlyExcluded(), '.kept', 'is 5'),
    (PartlyExcluded(marked=5), PartlyExcluded(), '.marked', 'is 5'),
    (Unresolvable(1, b=2), Unresolvable(1), '.b', 'is 2'),
    (Animal(name='a'), Animal(name='b'), '.name', "is 'a'"),
    (Dog(name='a'), Animal(name='a'), '', 'annotate the field with Dog, or with a union'),
    (Open.model_validate({'b': 1}), Open.model_validate({'b': '1'}), "['b']", 'int'),
    (Plain(a=1), Plain(a=2), '.a', 'is 1'),
    (Plain(slot=1), Plain(slot=2), '.slot', 'is 1'),
    (Plain(hidden=1), Plain(hidden=2), '._Plain__hidden', 'is 1'),
    (Plain(a=1), Plain(), '.a', 'would be lost'),
    (pydantic.SecretStr('x'), pydantic.SecretStr('**********'), '', 'masks when it is written'),
    (pydantic.SecretBytes(b'x'), pydantic.SecretBytes(b'y'), '', 'SecretBytes'),
    (Always(answer=False), Always(answer=False), '', 'would be loaded as'),
    (Always(answer=Elements(True, False)), Always(answer=True), '', 'would be loaded as'),
]


@pytest.mark.parametrize('given, loaded, path, problem', DIFFERENT, ids=range(len(DIFFERENT)))
def test_what_differs_is_found_where_it_is(given: Any, loaded: Any, path: str, problem: str) -> None:
    """A difference is told with its place in the value and with what was found there."""
    found = difference(given, loaded)
    assert found is not None
    assert found.path == path
    assert problem in found.problem


def test_an_int_may_be_loaded_as_the_equal_float() -> None:
    """`total: float = 0` is no loss: type checkers take an int for a float."""
    assert difference(Point([0, {1: 2}]), Point([0.0, {1.0: 2.0}])) is None


def test_what_was_in_brackets_when_it_was_made_does_not_matter() -> None:
    """`Counter[str]()` is a `Counter()` like any other, whatever it remembers of how it was made."""
    assert difference(Counter[str]('aab'), Counter('aab')) is None
    assert difference(OrderedDict[str, int](a=1), cast(Any, OrderedDict(a=1))) is None


def test_the_order_of_a_dict_does_not_matter() -> None:
    """A store may order keys anew, so their order is no part of a dict."""
    assert difference({'a': 1, 'b': [2]}, {'b': [2], 'a': 1}) is None


@pytest.mark.parametrize(
    'given, loaded',
    [
        (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=TzInfo(0))),
        (datetime(2024, 7, 1, tzinfo=BERLIN), datetime(2024, 7, 1, tzinfo=timezone(timedelta(hours=2)))),
        # of two instants in a repeated hour, Python's `==` says that they differ
        (
            datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1),
            datetime(2024, 10, 27, 2, 30, tzinfo=timezone(timedelta(hours=1))),
        ),
        (time(1, tzinfo=UTC), time(1, tzinfo=TzInfo(0))),
    ],
)
def test_the_same_instant_with_the_same_offset_is_the_same(given: Any, loaded: Any) -> None:
    """Which class tells the offset from UTC does not matter."""
    assert difference(given, loaded) is None


@pytest.mark.parametrize(
    'given, loaded',
    [
        (datetime(2024, 1, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=1)))),
        (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1)),
        (datetime(2024, 1, 1, fold=1), datetime(2024, 1, 1)),
        (time(1, tzinfo=BERLIN), time(1)),
        (time(1), time(2)),
    ],
)
def test_another_offset_or_fold_is_a_difference(given: Any, loaded: Any) -> None:
    """The offset is a part of a time, and so is the fold where nothing else tells the two hours apart."""
    assert difference(given, loaded) is not None


@pytest.mark.parametrize('cls', [PartlyExcluded, PartlyExcludedPydantic])
def test_excluded_fields_are_not_compared(cls: Any) -> None:
    """Who excludes a field says that it need not be stored."""
    assert difference(cls(annotated=7, default=8), cls(annotated=9, default=10)) is None
    assert difference(cls(kept=2), cls()) is not None


def test_what_a_model_does_not_store_is_not_compared() -> None:
    """Excluded fields, private attributes and cached properties of a model are not compared."""
    given, loaded = Animal(name='a', secret=1), Animal(name='a')
    given._private = 5  # pyright: ignore[reportPrivateUsage]
    assert given.shout == 'A'
    assert difference(given, loaded) is None


class Disguised(pydantic.BaseModel):
    hidden: str | None = pydantic.Field(default=None, alias='shown', exclude=True)

    @pydantic.computed_field
    @property
    def shown(self) -> str:
        return self.hidden or 'default'

    @pydantic.computed_field
    @property
    def other(self) -> int:
        return id(self)


def test_an_excluded_field_that_a_computed_one_stores_is_compared() -> None:
    """What is written in the disguise of a computed field is stored, so its loss is found."""
    assert difference(Disguised(), Disguised(shown='default')) is None
    found = difference(Disguised(shown='mine'), Disguised())
    assert found is not None
    assert found.path == '.shown'


def test_a_cached_property_is_not_compared() -> None:
    """What a class computes and keeps is computed anew after loading."""
    lazy, plain = Lazy(1), Plain(a=1)
    assert (lazy.double, plain.cached) == (2, 1)
    assert difference(lazy, Lazy(1)) is None
    assert difference(plain, Plain(a=1)) is None


def test_a_lost_attribute_is_a_difference() -> None:
    """A public attribute that the class does not declare would be lost; one with an underscore may be."""
    given = Point(1)
    given.extra = 1  # pyright: ignore[reportAttributeAccessIssue]
    found = difference([given], [Point(1)])
    assert found is not None
    assert found.path == '[0].extra'
    assert 'would be lost' in found.problem
    harmless = Point(1)
    harmless._cache = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert difference(harmless, Point(1)) is None


def test_an_attribute_that_loading_makes_again_is_compared() -> None:
    """An undeclared attribute that is there after loading has to have the same value."""
    given, same, other = Point(1), Point(1), Point(1)
    for point, value in ((given, 1), (same, 1), (other, 2)):
        point.extra = value  # pyright: ignore[reportAttributeAccessIssue]
    assert difference(given, same) is None
    found = difference(given, other)
    assert found is not None
    assert found.path == '.extra'


def test_a_field_that_is_not_loaded_is_told_apart() -> None:
    """The problem of a field with `init=False` is that pydantic does not load it."""
    given = Late()
    given.b = 2
    found = difference(given, Late())
    assert found is not None
    assert found.path == '.b'
    assert '`init=False`' in found.problem


def test_attributes_of_a_builtin_subclass_are_compared() -> None:
    """A list that carries more than its items differs if that differs."""
    given = Tagged([1])
    given.tag = 1
    found = difference(given, Tagged([1]))
    assert found is not None
    assert found.path == '.tag'


def test_two_classes_of_one_name_are_told_apart() -> None:
    """Where the names would not tell the classes apart, their modules are named too."""
    found = difference(local_class('Same')(), local_class('Same')())
    assert found is not None
    assert f'{__name__}.Same' in found.problem


def test_what_eq_raises_is_passed_on() -> None:
    """The comparison hides no exception of the user's code."""
    with pytest.raises(KeyError):
        difference(Always(KeyError('x')), Always(answer=True))


def test_parts_are_the_next_level_of_a_value() -> None:
    """Fields, entries and items are parts, as pydantic's `include` addresses them."""
    assert [part[:2] for part in parts_of(Point(1))] == [('x', '.x'), ('y', '.y')]
    assert [part[:2] for part in parts_of(Open.model_validate({'b': 2}))] == [('a', '.a'), ('b', '.b')]
    assert [part[:2] for part in parts_of({'a': 1, 2: 3})] == [('a', "['a']"), (2, '[2]')]
    assert [part[:2] for part in parts_of([1, 2])] == [(0, '[0]'), (1, '[1]')]
    assert list(parts_of('text')) == []


def test_shown_is_short_and_never_raises() -> None:
    """A message stays readable whatever the value is."""
    assert len(shown('x' * 1000)) < 70
    assert shown(10**5000) != ''
    assert len(shown(list(range(1000)))) < 70
