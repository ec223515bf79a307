"""Values of any permitted type as JSON that says what they are; never an import named by data.

What flows between the steps of a builder graph has no declared type at the place where it arrives: a value
may have gone through decisions, maps and transforms. So each value is written with its type's name, unless
JSON itself tells it. The name is looked up among the types that the graph names, and nowhere else.

```
1, "text", true, null, 1.5, [...]         themselves
{"a": 1}                                  a dict of texts, unless it has a key that begins with `$`
{"$": "tuple", "is": [1, 2]}              any other built-in or standard-library value
{"$": "shop.orders:Item", "is": {...}}    a value of a type of the graph's, as pydantic writes it
{"$": "shop:Box", "of": "int", "is": ...} the same, where the type was parametrised: `Box[int]`
```
"""

from __future__ import annotations

import base64
import datetime
import decimal
import fractions
import ipaddress
import math
import pathlib
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from types import UnionType
from typing import Any, Final, Union, cast, get_args, get_origin

from pydantic_core import from_json, to_json
from typing_extensions import is_typeddict
from typing_inspection import typing_objects

from .codec import Refusal, Shape
from .declared import hints_of
from .errors import UnsupportedTypeError
from .faithful import difference
from .parts import shown

__all__ = ('NATIVE', 'ValueCodec')

_TYPE: Final = '$'
_OF: Final = 'of'
_IS: Final = 'is'
_AROUND: Final = 10  # levels that there may be around a value where it is stored
_SURE: Final = 150  # levels that JSON can be read with in any case; pydantic stops at about 200
_LONG: Final = re.compile(rb'\d{4300}')  # more digits than Python makes a number of
_PLAIN: Final = frozenset({str, int, bool, type(None)})


class ValueCodec:
    """Writes and reads values of built-in and standard-library types, and of the types given.

    Nothing in it changes but what it has found out of its types, so threads may share it.
    """

    def __init__(self, types_: Iterable[Any]):
        """Make the codec of these types, classes or parametrised ones.

        Raises:
            UnsupportedTypeError: if two classes have one name, by which their values could not be told apart.
        """
        self._types: dict[type, dict[str, Any]] = {}  # of each class its parametrisations by what they are of
        for type_ in types_:
            self._types.setdefault(get_origin(type_) or type_, {}).setdefault(_arguments(type_), type_)
        self._by_name = _by_name(self._types)
        self._shapes: dict[tuple[type, str], Shape] = {}

    def knows(self, cls: type) -> bool:
        """Whether values of this class can be written because the graph names it."""
        return cls in self._types

    def write(self, value: Any, *, root: str, verify: bool) -> bytes:
        """Return the value as JSON.

        Args:
            value: The value.
            root: What it is called in a refusal.
            verify: Whether to load values of the graph's types back, and compare them.

        Raises:
            Refusal: if it holds something of another type, or something that would not be loaded as it is.
        """
        try:
            text = self._write(value, root, verify)
        except RecursionError:
            raise Refusal(root, 'holds itself, or is nested too deeply: store data that is a tree') from None
        if text.count(b'[') + text.count(b'{') > _SURE or _LONG.search(text):
            try:
                from_json(b'%b%b%b' % (b'[' * _AROUND, text, b']' * _AROUND))
            except ValueError as exc:  # nested too deeply, or a number of too many digits
                raise Refusal(root, f'could not be read again ({exc}): store something simpler') from None
        return text

    # --------------------------------------------------------------------------------------------- writing

    def _write(self, value: Any, root: str, verify: bool) -> bytes:
        cls = cast('type[Any]', type(value))
        if cls in _PLAIN:
            return _plain(value, root)
        if cls is float:
            return to_json(value) if math.isfinite(value) else _tagged('float', _quoted(repr(value)))
        if cls in self._types:
            return self._write_named(value, cls, root, verify)
        if cls is list:
            return self._write_items(value, root, verify)
        if cls is dict:
            return self._write_dict(value, root, verify)
        if cls is deque:
            return _tagged('deque', self._write_items([value.maxlen, *value], root, verify))
        if (name := _ITERABLES.get(cls)) is not None:
            return _tagged(name, self._write_items(value, root, verify))
        if (writes := _WRITTEN.get(cls)) is not None:
            try:
                return _tagged(cls.__name__, _quoted(writes(value)))
            except UnicodeEncodeError:
                raise Refusal(root, f'is {shown(value)}, which is not Unicode') from None
        if (shape := _STANDARD.get(cls)) is not None:
            return _tagged(cls.__name__, shape.write(root, value, verify))
        raise Refusal(root, _unknown(cls))

    def _write_named(self, value: Any, cls: type, root: str, verify: bool) -> bytes:
        arguments = list(self._types[cls])
        if len(arguments) == 1:
            return self._write_as(arguments[0], value, cls, root, verify)
        # which of several it is, its class does not tell: the first that it comes back with
        refusals: list[Refusal] = []
        for of in arguments:
            try:
                return self._write_as(of, value, cls, root, True)
            except Refusal as refusal:
                refusals.append(refusal)
        if not verify:
            return self._write_as(arguments[0], value, cls, root, False)
        told = '; '.join(
            f'as {_shown(cls, of)}, `{refusal.field}` {refusal.problem}'
            for of, refusal in zip(arguments, refusals, strict=True)
        )
        raise Refusal(root, f'is none of the types that the graph names: {told}') from refusals[0]

    def _write_as(self, of: str, value: Any, cls: type, root: str, verify: bool) -> bytes:
        try:
            shape = self._shape(cls, of)
        except UnsupportedTypeError as exc:
            raise Refusal(root, f'is of a type that cannot be stored: {exc}') from exc
        return _tagged(_name(cls), shape.write(root, value, verify), of)

    def _write_items(self, items: Iterable[Any], root: str, verify: bool) -> bytes:
        items = list(items)
        if _PLAIN.issuperset(map(type, items)):
            return _plain(items, root)
        return b'[%b]' % b','.join(self._write(item, f'{root}[{i}]', verify) for i, item in enumerate(items))

    def _write_dict(self, value: dict[Any, Any], root: str, verify: bool) -> bytes:
        if any(type(key) is not str or key.startswith(_TYPE) for key in value):
            pairs = [item for pair in value.items() for item in pair]
            return _tagged('dict', self._write_items(pairs, root, verify))
        if _PLAIN.issuperset(map(type, value.values())):
            return _plain(value, root)
        return b'{%b}' % b','.join(
            b'%b:%b' % (_plain(key, root), self._write(item, f'{root}[{shown(key)}]', verify))
            for key, item in value.items()
        )

    def _shape(self, cls: type, of: str) -> Shape:
        if (shape := self._shapes.get((cls, of))) is None:
            type_ = self._types[cls][of]
            shape = self._shapes[cls, of] = Shape('type', type_, type_, difference)
        return shape

    def read(self, found: Any) -> Any:
        """Return the value that was written, from what its JSON says; errors are those of a wrong value."""
        if isinstance(found, list):
            return [self.read(item) for item in cast('list[Any]', found)]
        if not isinstance(found, dict):
            return found
        members = cast('dict[str, Any]', found)
        if _TYPE not in members:
            return {key: self.read(item) for key, item in members.items()}
        name, inner = members[_TYPE], members[_IS]
        if (cls := self._by_name.get(name)) is not None:
            return self._read_named(cls, members)
        if (makes := _MADE.get(name)) is not None:
            return makes(inner if isinstance(inner, str) else self.read(inner))
        if (shape := _STANDARD_BY_NAME.get(name)) is not None:
            return shape.read(to_json(inner, inf_nan_mode='constants'))
        return self._read_named(self._moved(name), members)

    def _read_named(self, cls: type, members: dict[str, Any]) -> Any:
        shape = self._shape(cls, self._stored(cls, members.get(_OF, '')))
        return shape.read(to_json(members[_IS], inf_nan_mode='constants'))

    def _stored(self, cls: type, of: str) -> str:
        """Return which parametrisation of a class was stored; the only one may have another name by now."""
        arguments = list(self._types[cls])
        if of in arguments:
            return of
        if len(arguments) > 1:
            arguments = [found for found in arguments if _bare(found) == _bare(of)]
        if len(arguments) != 1:
            raise ValueError(
                f'it is of type {_shown(cls, of)}, which the graph does not name, but '
                f'{", ".join(_shown(cls, named) for named in self._types[cls])}: give the type in `types=`'
            )
        return arguments[0]

    def _moved(self, name: str) -> type:
        """Return the one class of this name in another module: a script's, or one that was moved."""
        found = [cls for full, cls in self._by_name.items() if _bare(full) == _bare(name)]
        if len(found) != 1:
            raise ValueError(
                f'it is of type {name!r}, which the graph does not name: give the type in `types=`'
            )
        return found[0]


# -- what types are called


def _name(cls: type) -> str:
    return f'{cls.__module__}:{cls.__qualname__}'


def _bare(name: str) -> str:
    """Return a name without its modules."""
    return re.sub(r'[\w.]+:', '', name)


def _by_name(classes: Iterable[type]) -> dict[str, type]:
    found: dict[str, type] = {}
    for cls in classes:
        if is_typeddict(cls):  # its values are dicts
            continue
        name = _name(cls)
        if (other := found.setdefault(name, cls)) is not cls:
            one, two = (', '.join(hints_of(either)) or 'no fields' for either in (other, cls))
            raise UnsupportedTypeError(
                'type',
                cls,
                f'the graph names two classes {name}, one with {one}, one with {two}, and a value is loaded '
                'by the name of its class: make the class once, or give one of them another name',
            )
    return found


def _shown(cls: type, of: str) -> str:
    return f'{cls.__qualname__}[{of}]' if of else cls.__qualname__


def _arguments(type_: Any) -> str:
    """Return what a type is parametrised with, the same in every process; empty if it is not."""
    return ', '.join(map(_text, get_args(type_)))


def _text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if typing_objects.is_annotated(origin):
        return _text(arguments[0])
    if origin in (Union, UnionType):
        return ' | '.join(map(_text, arguments))
    if origin is not None and not typing_objects.is_literal(origin):
        return f'{_text(origin)}[{_arguments(hint)}]'
    if isinstance(hint, type):
        return hint.__qualname__ if hint.__module__ == 'builtins' else _name(hint)
    return repr(hint)


# -- how values are written


def _plain(value: Any, root: str) -> bytes:
    try:
        return to_json(value)
    except Exception as exc:  # a lone surrogate in a text
        raise Refusal(root, f'is {shown(value)}, which cannot be written as JSON ({exc})') from exc


def _quoted(text: str) -> bytes:
    return to_json(text)


def _tagged(name: str, text: bytes, of: str = '') -> bytes:
    return b'{"$":%b%b,"is":%b}' % (to_json(name), b',"of":%b' % to_json(of) if of else b'', text)


def _unknown(cls: type) -> str:
    return (
        f'is of type {cls.__module__}.{cls.__qualname__}, which the graph does not name: annotate the '
        f'step with it, or give `types=({cls.__qualname__},)` to PersistentGraph; what is not data belongs '
        'into deps'
    )


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


_ITERABLES: Final[dict[type, str]] = {
    tuple: 'tuple',
    set: 'set',
    frozenset: 'frozenset',
}
_WRITTEN: Final[dict[type, Callable[[Any], str]]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    bytearray: lambda value: base64.b64encode(value).decode(),
    complex: repr,
    range: lambda value: f'{value.start} {value.stop} {value.step}',
    fractions.Fraction: str,
    decimal.Decimal: str,
}
_MADE: Final[dict[str, Callable[[Any], Any]]] = {
    'float': float,
    'dict': lambda items: dict(_pairs(items)),
    'tuple': tuple,
    'set': set,
    'frozenset': frozenset,
    'deque': lambda items: deque(items[1:], items[0]),
    'bytes': partial(base64.b64decode, validate=True),
    'bytearray': lambda text: bytearray(base64.b64decode(text, validate=True)),
    'complex': complex,
    'range': lambda text: range(*map(int, text.split())),
    'Fraction': fractions.Fraction,
    'Decimal': decimal.Decimal,
}
_STANDARD: Final[dict[type, Shape]] = {
    cls: Shape('type', cls, cls, difference)
    for cls in (
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        uuid.UUID,
        ipaddress.IPv4Address,
        ipaddress.IPv6Address,
        ipaddress.IPv4Network,
        ipaddress.IPv6Network,
    )
} | {type(pathlib.Path()): Shape('type', pathlib.Path, pathlib.Path, difference)}
_STANDARD_BY_NAME: Final = {cls.__name__: shape for cls, shape in _STANDARD.items()}
NATIVE: Final = frozenset({*_PLAIN, float, list, dict, deque, *_ITERABLES, *_WRITTEN, *_STANDARD})
"""Classes whose values go by themselves."""
