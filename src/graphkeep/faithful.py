"""Tells whether a loaded value is the one that was given, and if not, where it differs and what to do.

Strict: the same class and an equal value, all the way down, because `1 == True == 1.0` and a model that lost
the fields of its subclass are what a plain `==` lets through. What is never stored is not compared: fields
that their author excluded, pydantic's private attributes, cached properties, and names with a leading
underscore that are no fields.

One class may become another: an `int` in a field declared `float` may be loaded as the equal `float`, which
is what type checkers permit and what `total: float = 0` means. Within what is marked `AsJson` any class may,
as long as the data is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence, Set
from contextvars import ContextVar
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import Any, Final, NamedTuple, cast

import pydantic

from .asjson import is_marked, same_data
from .declared import (
    cached_properties,
    computed_for,
    dataclass_fields,
    excluded_fields,
    hints_of,
    is_installed,
    typed_dicts_in,
)
from .parts import shown

__all__ = (
    'CONFIG_PLACE',
    'INF_NAN_HINT',
    'Difference',
    'comparer_of',
    'difference',
)

CONFIG_PLACE: Final = (
    'the config of the type that holds it (`model_config` of a model, `config=` of a pydantic dataclass, '
    '`__pydantic_config__` of any other class), or of a class around it that hands its config down'
)
"""Where to set what changes how pydantic writes a type."""

INF_NAN_HINT: Final = f"set `ser_json_inf_nan='constants'` in {CONFIG_PLACE}"
"""What to do where the config of a type makes pydantic write infinity and NaN as null."""


class Difference(NamedTuple):
    """Where a loaded value differs from the given one, and how."""

    path: str
    """From the value to the place, to be put behind its name: `.items[3].price`; empty for itself."""
    problem: str
    """What was found and what to do, to be put behind the place."""
    elsewhere: str = ''
    """The problem, if the innermost field around it is an installed package's; empty if that is no matter."""


_Compare = Callable[[Any, Any], Difference | None]

_PLAIN: Final = frozenset({str, int, bool, bytes, type(None)})  # the classes of which `==` tells all
_QUICK: Final = _PLAIN | {float}  # and with it all floats but the zeros, which have a sign


def difference(given: object, loaded: object) -> Difference | None:
    """Return the first difference between what was given and what was loaded, `None` if there is none.

    What the `__eq__` of a class raises is passed on, so is `RecursionError`.
    """
    if given is loaded:
        return None
    cls = type(given)
    if cls is not type(loaded):
        return _other_class(given, loaded)
    if cls in _PLAIN:
        return None if given == loaded else _other_value(given, loaded)
    return _comparer(cls)(given, loaded)


def comparer_of(hint: Any) -> Callable[[Any, Any], Difference | None]:
    """Return `difference`, or what takes its place for the values of an annotation with `AsJson` in it."""
    if is_marked(hint):
        return _as_data
    # the class of a value tells all of its annotations, but a TypedDict's values are mere dicts
    keyed = list(typed_dicts_in(hint))
    return _keyed(keyed[0]) if len(keyed) == 1 else difference


def _typed(value: Any) -> str:
    return f'{shown(value)} ({type(value).__name__})'


def _below(path: str, found: Difference) -> Difference:
    return found._replace(path=path + found.path)


_data_suffices: Final = ContextVar('_data_suffices', default=False)  # within what is marked `AsJson`


def _as_data(given: object, loaded: object) -> Difference | None:
    token = _data_suffices.set(True)
    try:
        return difference(given, loaded)
    finally:
        _data_suffices.reset(token)


def _excused(given: object, loaded: object) -> bool:
    return _data_suffices.get() and same_data(given, loaded)


# -- what is said


def _other_class(given: object, loaded: object) -> Difference | None:
    ours, theirs = type(given), type(loaded)
    if (ours is int and theirs is float and given == loaded) or _excused(given, loaded):
        return None
    if isinstance(given, float) and not math.isfinite(given) and loaded is None:
        return Difference('', f'is {given}, and would be loaded as None: {INF_NAN_HINT}')
    name, other = ours.__qualname__, theirs.__qualname__
    if name == other:
        name, other = _full_name(ours), _full_name(theirs)
    problem = f'is of type {name}, and would be loaded as {other}'
    hint = f'annotate the field with {name}, or store a value of that other type'
    if issubclass(ours, theirs) and theirs.__module__ != 'builtins':
        problem = f'{problem}, without what the subclass adds'
        hint = f'annotate the field with {name}, or with a union of the classes that it may hold'
    elif issubclass(theirs, ours):
        problem = f'{problem}, because the field turns it into that'
        hint = f'store it as {other} yourself'
    return _changed(given, loaded, problem, hint)


def _changed(given: object, loaded: object, problem: str, hint: str) -> Difference:
    """Tell a change of type, and of the escape from it if that would help."""
    elsewhere = f'{problem}: store what would be loaded'
    if same_data(given, loaded):
        mark = '`Annotated[..., AsJson]`, if its data is all that has to be kept'
        hint = f'{hint}, or mark the field with {mark}'
        elsewhere = f'{elsewhere}, or mark the field of your own that holds all this with {mark}'
    return Difference('', f'{problem}: {hint}', elsewhere)


def _full_name(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'


def _other_value(given: Any, loaded: Any) -> Difference:
    return Difference(
        '',
        f'is {shown(given)}, and would be loaded as {shown(loaded)}: '
        'mend the validator or serializer that changes it, or exclude the field with `Field(exclude=True)`',
    )


def _other_size(given: Any, loaded: Any) -> Difference:
    return Difference(
        '',
        f'holds {len(given)} items, and would be loaded with {len(loaded)}: '
        'mend the annotation, validator or serializer that changes it',
    )


# -- how values of one class are compared


@functools.lru_cache(maxsize=1024)  # bounded, so that classes made at run time are not kept for ever
def _comparer(cls: type[Any]) -> _Compare:
    if issubclass(cls, Enum):
        return _equal
    if issubclass(cls, pydantic.BaseModel):
        return _Model(cls, tuple(cls.model_fields))
    items = next((compare for base, compare in _BUILTIN.items() if issubclass(cls, base)), None)
    if dataclasses.is_dataclass(cls):
        fields = _Fields(cls, tuple(field.name for field in dataclasses.fields(cls)))
        return _both(fields, items) if items else fields
    if issubclass(cls, pydantic.SecretStr | pydantic.SecretBytes | pydantic.Secret):
        return _secret
    if items:
        return items if cls in _BUILTIN or not _has_dict(cls) else _both(items, _Attributes(cls))
    return _equal if cls.__eq__ is not object.__eq__ else _Attributes(cls)


def _both(first: _Compare, second: _Compare) -> _Compare:
    return lambda given, loaded: first(given, loaded) or second(given, loaded)


def _equal(given: Any, loaded: Any) -> Difference | None:
    same: Any = given == loaded
    if not isinstance(same, bool) and callable(every := getattr(same, 'all', None)):
        same = every()  # an array compares element by element
    return None if same else _other_value(given, loaded)


def _text(given: Any, loaded: Any) -> Difference | None:
    """Compare by the exact text: NaN is NaN, 0.0 is not -0.0, `Decimal('1')` not `Decimal('1.0')`."""
    return None if repr(given) == repr(loaded) else _other_value(given, loaded)


def _float(given: float, loaded: float) -> Difference | None:
    return None if given == loaded and given else _text(given, loaded)


def _moment(given: datetime | time, loaded: datetime | time) -> Difference | None:
    """Compare wall clock and offset: together they are the instant, whichever class tells the offset."""
    same = (
        given.replace(tzinfo=None) == loaded.replace(tzinfo=None)
        and given.utcoffset() == loaded.utcoffset()
        and (given.tzinfo is None) == (loaded.tzinfo is None)
    )
    if not same:
        return _other_value(given, loaded)
    if given.tzinfo is None and given.fold != loaded.fold:
        return Difference(
            '',
            f'is {shown(given)}, and JSON does not hold its fold, which tells the second of two equal hours: '
            'store an aware datetime, which has its offset, or drop it with `.replace(fold=0)`',
        )
    return None


def _sequence(given: Sequence[Any], loaded: Sequence[Any]) -> Difference | None:
    for index, (a, b) in enumerate(zip(given, loaded, strict=False)):
        if type(a) is type(b) and type(a) in _QUICK and a == b and (a or type(a) is not float):
            continue
        if found := difference(a, b):
            return _below(f'[{index}]', found)
    return None if len(given) == len(loaded) else _other_size(given, loaded)


def _tuple(given: tuple[Any, ...], loaded: tuple[Any, ...]) -> Difference | None:
    if (names := getattr(given, '_fields', None)) is None:
        return _sequence(given, loaded)
    compare = _by_field(type(given))
    for name, a, b in zip(names, given, loaded, strict=True):
        if found := compare.get(name, difference)(a, b):
            return _below(f'.{name}', found)
    return None


def _deque(given: deque[Any], loaded: deque[Any]) -> Difference | None:
    if given.maxlen != loaded.maxlen:
        return Difference(
            '',
            f'is a deque with maxlen={given.maxlen}, and would be loaded with maxlen={loaded.maxlen}: '
            'add a validator that sets it',
        )
    return _sequence(given, loaded)


def _dict(given: dict[Any, Any], loaded: dict[Any, Any]) -> Difference | None:
    if len(given) != len(loaded):
        return _entries(given, loaded)
    for (key, a), (other, b) in zip(given.items(), loaded.items(), strict=True):
        if type(key) is not str or type(other) is not str or key != other:
            return _entries(given, loaded)
        if type(a) is type(b) and type(a) in _QUICK and a == b and (a or type(a) is not float):
            continue
        if found := difference(a, b):
            return _below(f'[{shown(key)}]', found)
    return None


def _entries(given: dict[Any, Any], loaded: dict[Any, Any]) -> Difference | None:
    """Compare dicts whose keys are not the same strings in the same order."""
    keys = _Pool(loaded)
    for key, value in given.items():
        if (other := keys.take(key)) is None:
            problem = f'has the key {_typed(key)}, and would be loaded {keys.left()}'
            return (
                None if _excused(given, loaded) else _changed(given, loaded, problem, _DECLARE_WHAT_IT_HOLDS)
            )
        if found := difference(value, loaded[other.value]):
            return _below(f'[{shown(key)}]', found)
    return _other_size(given, loaded) if len(loaded) != len(given) else None


def _defaultdict(given: defaultdict[Any, Any], loaded: defaultdict[Any, Any]) -> Difference | None:
    if given.default_factory != loaded.default_factory:
        return Difference(
            '',
            f'makes missing values with {shown(given.default_factory)}, and would be loaded with '
            f'{shown(loaded.default_factory)}: annotate the field with a defaultdict of that type',
        )
    return _dict(given, loaded)


def _set(given: Set[Any], loaded: Set[Any]) -> Difference | None:
    if len(given) != len(loaded):
        return _other_size(given, loaded)
    pool = _Pool(loaded)
    for item in given:
        if pool.take(item) is None:
            problem = f'holds {_typed(item)}, and would be loaded {pool.left()}'
            return (
                None if _excused(given, loaded) else _changed(given, loaded, problem, _DECLARE_WHAT_IT_HOLDS)
            )
    return None


_DECLARE_WHAT_IT_HOLDS: Final = 'annotate what it holds with the type that is stored in it'


class _Taken(NamedTuple):
    value: Any


class _Pool:
    """The loaded keys or items that no given one was matched with yet."""

    def __init__(self, loaded: Iterable[Any]):
        self._loaded = {item: item for item in loaded}

    def take(self, given: Any) -> _Taken | None:
        """Return the loaded twin of a given item, if there is one."""
        if given in self._loaded and not difference(given, self._loaded[given]):
            return _Taken(self._loaded.pop(given))
        # equal under our rules but not to Python: NaN, instances of classes without `__eq__`
        for item in self._loaded:
            if type(given) is type(item) and not difference(given, item):
                return _Taken(self._loaded.pop(item))
        return None

    def left(self) -> str:
        return next((f'with {_typed(item)} instead' for item in self._loaded), 'without it')


def _secret(given: Any, loaded: Any) -> Difference | None:
    if given == loaded:
        return None
    return Difference(
        '',
        f'is a {type(given).__name__}, which pydantic masks when it is written: '
        'keep it out of what is stored, in deps, or give the field a serializer that writes its value',
    )


_BUILTIN: Final[dict[type, _Compare]] = {
    float: _float,
    complex: _text,
    Decimal: _text,
    datetime: _moment,
    time: _moment,
    list: _sequence,
    tuple: _tuple,
    deque: _deque,
    defaultdict: _defaultdict,
    dict: _dict,
    set: _set,
    frozenset: _set,
}


class _Fields:
    """Compares the instances of one dataclass, field by field."""

    def __init__(self, cls: type[Any], names: Sequence[str]):
        excluded = excluded_fields(cls)
        self._names = (*(name for name in names if name not in excluded), *computed_for(cls))
        self._get = _getter(self._names)
        self._compare = _by_field(cls)
        self._installed = is_installed(cls)
        self._not_init = frozenset(f.name for f in dataclass_fields(cls) if not f.init)
        # the rest of an instance's `__dict__` that is not compared, besides names with a leading underscore
        self._known = frozenset(names) | cached_properties(cls)
        self._has_dict = _has_dict(cls)

    def __call__(self, given: Any, loaded: Any) -> Difference | None:
        ours, theirs = self._get(given), self._get(loaded)
        for name, a, b in zip(self._names, ours, theirs):  # noqa: B905 - of one length, and `strict` costs a tenth
            if type(a) is type(b) and type(a) in _QUICK and a == b and (a or type(a) is not float):
                continue
            if found := self._compare.get(name, difference)(a, b):
                return self._within(name, found) if name not in self._not_init else _not_init(name, a, b)
        if self._has_dict and not self._known.issuperset(given.__dict__):
            return self._undeclared(given.__dict__, loaded.__dict__)
        return None

    def _within(self, name: str, found: Difference) -> Difference:
        problem = found.elsewhere if self._installed and found.elsewhere else found.problem
        return Difference(f'.{name}{found.path}', problem)

    def _undeclared(self, given: dict[str, Any], loaded: dict[str, Any]) -> Difference | None:
        for name, value in given.items():
            if name.startswith('_') or name in self._known:
                continue
            if name not in loaded:
                return Difference(
                    f'.{name}',
                    'is an attribute that its class does not declare, and would be lost: '
                    'declare it as a field, or begin its name with an underscore if it need not be stored',
                )
            if found := difference(value, loaded[name]):
                return _below(f'.{name}', found)
        return None


def _getter(names: Sequence[str]) -> Callable[[Any], Iterable[Any]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: [getattr(value, name) for name in names]


def _not_init(name: str, given: Any, loaded: Any) -> Difference:
    return Difference(
        f'.{name}',
        f'is {shown(given)}, and would be loaded as {shown(loaded)}, because what has `init=False` is not '
        'loaded: declare it without that, or compute it in `__post_init__`',
    )


class _Model(_Fields):
    """Compares the instances of one pydantic model: fields, extra fields, undeclared attributes."""

    def __call__(self, given: Any, loaded: Any) -> Difference | None:
        if found := super().__call__(given, loaded):
            return found
        return difference(given.__pydantic_extra__, loaded.__pydantic_extra__)


class _Keys:
    """Compares the dicts of one `TypedDict`."""

    def __init__(self, cls: type[Any]):
        self._class = cls

    @functools.cached_property  # only when there is such a dict, for a TypedDict may hold itself
    def _compare(self) -> dict[str, _Compare]:
        return _by_field(self._class)

    def __call__(self, given: Any, loaded: Any) -> Difference | None:
        if not type(given) is type(loaded) is dict:
            return difference(given, loaded)
        ours, theirs = cast('dict[Any, Any]', given), cast('dict[Any, Any]', loaded)
        apart = [name for name in self._compare if name in ours and name in theirs]
        for name in apart:
            if found := self._compare[name](ours[name], theirs[name]):
                return _below(f'[{shown(name)}]', found)
        if apart:
            ours = {key: value for key, value in ours.items() if key not in apart}
            theirs = {key: value for key, value in theirs.items() if key not in apart}
        return difference(ours, theirs)


@functools.lru_cache(maxsize=1024)
def _keyed(cls: type[Any]) -> _Keys:
    return _Keys(cls)


@functools.lru_cache(maxsize=1024)
def _by_field(cls: type[Any]) -> dict[str, _Compare]:
    """Return how the fields of a class are compared that are not compared by `difference` itself."""
    found = ((name, comparer_of(hint)) for name, hint in hints_of(cls).items())
    return {name: compare for name, compare in found if compare is not difference}


class _Attributes:
    """Compares the instances of one class that has no `__eq__`, attribute by attribute.

    Those with a leading underscore as well: in a class that hides its attributes they are all there is.
    """

    def __init__(self, cls: type[Any]):
        self._slots = tuple(
            name
            for base in cls.__mro__
            for name, value in vars(base).items()
            if isinstance(value, types.MemberDescriptorType)
        )
        # `Counter[str]()` leaves behind in the instance what was in the brackets
        self._ignored = cached_properties(cls) | {'__orig_class__'}

    def __call__(self, given: Any, loaded: Any) -> Difference | None:
        ours, theirs = self._of(given), self._of(loaded)
        for name, value in ours.items():
            if name not in theirs:
                return Difference(f'.{name}', 'would be lost: mend the validator or serializer of its class')
            if found := difference(value, theirs[name]):
                return _below(f'.{name}', found)
        return None

    def _of(self, value: Any) -> dict[str, Any]:
        found = {name: getattr(value, name) for name in self._slots if hasattr(value, name)}
        found.update(getattr(value, '__dict__', {}))
        return {name: part for name, part in found.items() if name not in self._ignored}


def _has_dict(cls: type) -> bool:
    return cls.__dictoffset__ != 0
