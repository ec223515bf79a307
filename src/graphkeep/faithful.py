"""Tells whether a loaded value is the one that was given, and if not, where it differs and what to do.

Strict: the same class and an equal value, all the way down, because `1 == True == 1.0` and a model that lost
the fields of its subclass are what a plain `==` lets through. What is never stored is not compared: fields
that their author excluded, pydantic's private attributes, cached properties, and names with a leading
underscore that are no fields.

One class may become another: an `int` in a field declared `float` may be loaded as the equal `float`, which
is what type checkers permit and what `total: float = 0` means.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import Any, Final, NamedTuple, cast, get_type_hints

import pydantic
from pydantic.fields import FieldInfo

__all__ = ('CONFIG_PLACE', 'INF_NAN_HINT', 'Difference', 'Part', 'difference', 'parts_of', 'shown')

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


class Part(NamedTuple):
    """A value within another one."""

    key: Any
    """The field name, key or index, as pydantic's `include` takes it."""
    path: str
    """From the outer value to this one."""
    value: Any
    """The value."""


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


def parts_of(value: object) -> Iterator[Part]:
    """Yield the fields, items or entries of a value, one level deep; nothing for any other value."""
    if isinstance(value, pydantic.BaseModel):
        for name, part in value:
            yield Part(name, f'.{name}', part)
    elif fields := _dataclass_fields(type(value)):
        for field in fields:
            yield Part(field.name, f'.{field.name}', getattr(value, field.name, None))
    elif isinstance(value, Mapping):
        for key, part in cast('Mapping[Any, Any]', value).items():
            yield Part(key, f'[{shown(key)}]', part)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(cast('Sequence[Any]', value)):
            yield Part(index, f'[{index}]', part)


def shown(value: Any) -> str:
    """Return a short `repr`, fit for a message."""
    try:
        return _short.repr(value)
    except Exception:  # a `__repr__` of the user's, or an int with too many digits
        return f'<{type(value).__qualname__}>'


def _typed(value: Any) -> str:
    return f'{shown(value)} ({type(value).__name__})'


_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def _below(path: str, found: Difference) -> Difference:
    return Difference(path + found.path, found.problem)


# -- what is said


def _other_class(given: object, loaded: object) -> Difference | None:
    ours, theirs = type(given), type(loaded)
    if ours is int and theirs is float and given == loaded:
        return None
    if isinstance(given, float) and not math.isfinite(given) and loaded is None:
        return Difference('', f'is {given}, and would be loaded as None: {INF_NAN_HINT}')
    name, other = ours.__qualname__, theirs.__qualname__
    if name == other:
        name, other = _full_name(ours), _full_name(theirs)
    problem = f'is of type {name}, and would be loaded as {other}'
    if issubclass(ours, theirs) and theirs.__module__ != 'builtins':
        hint = f'annotate the field with {name}, or with a union of the classes that it may hold'
        return Difference('', f'{problem}, without what the subclass adds: {hint}')
    if issubclass(theirs, ours):
        return Difference(
            '', f'{problem}, because the field turns it into that: store it as {other} yourself'
        )
    return Difference('', f'{problem}: annotate the field with {name}, or store a value of that other type')


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
    if dataclasses.is_dataclass(cls):
        return _Fields(cls, tuple(field.name for field in dataclasses.fields(cls)))
    if issubclass(cls, pydantic.SecretStr | pydantic.SecretBytes | pydantic.Secret):
        return _secret
    for base, compare in _BUILTIN.items():
        if issubclass(cls, base):
            return compare if cls is base or not _has_dict(cls) else _both(compare, _Attributes(cls))
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
        and (given.tzinfo is not None or given.fold == loaded.fold)
    )
    return None if same else _other_value(given, loaded)


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
    for name, a, b in zip(names, given, loaded, strict=True):
        if found := difference(a, b):
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
            return Difference('', f'has the key {_typed(key)}, and would be loaded {keys.left()}')
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
            return Difference('', f'holds {_typed(item)}, and would be loaded {pool.left()}')
    return None


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
            if not difference(given, item):
                return _Taken(self._loaded.pop(item))
        return None

    def left(self) -> str:
        found = next((f'with {_typed(item)} instead' for item in self._loaded), 'without it')
        return f'{found}: annotate what it holds with the type that is stored in it'


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
        excluded = _excluded(cls)
        self._names = tuple(name for name in names if name not in excluded)
        self._get = _getter(self._names)
        self._not_init = frozenset(f.name for f in _dataclass_fields(cls) if not f.init)
        # the rest of an instance's `__dict__` that is not compared, besides names with a leading underscore
        self._known = frozenset(names) | _derived(cls)
        self._has_dict = _has_dict(cls)

    def __call__(self, given: Any, loaded: Any) -> Difference | None:
        ours, theirs = self._get(given), self._get(loaded)
        for name, a, b in zip(self._names, ours, theirs):  # noqa: B905 - of one length, and `strict` costs a tenth
            if type(a) is type(b) and type(a) in _QUICK and a == b and (a or type(a) is not float):
                continue
            if found := difference(a, b):
                return _below(f'.{name}', found) if name not in self._not_init else _not_init(name, a, b)
        if self._has_dict and not self._known.issuperset(given.__dict__):
            return self._undeclared(given.__dict__, loaded.__dict__)
        return None

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


def _dataclass_fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


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
        self._derived = _derived(cls)

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
        return {name: part for name, part in found.items() if name not in self._derived}


def _has_dict(cls: type) -> bool:
    return cls.__dictoffset__ != 0


def _derived(cls: type) -> frozenset[str]:
    """The cached properties of a class: computed anew from what is stored."""
    return frozenset(
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    )


def _excluded(cls: type[Any]) -> set[str]:
    """The fields of a dataclass or model that its author excluded from what is written."""
    declared: dict[str, FieldInfo] = dict(getattr(cls, '__pydantic_fields__', {}))
    declared.update((f.name, f.default) for f in _dataclass_fields(cls) if isinstance(f.default, FieldInfo))
    found = {name for name, field in declared.items() if field.exclude}
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception:  # what only pydantic resolves: an exclusion there is refused, so nothing is lost
        return found
    for name, hint in hints.items():
        if any(isinstance(meta, FieldInfo) and meta.exclude for meta in getattr(hint, '__metadata__', ())):
            found.add(name)
    return found
