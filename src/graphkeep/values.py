"""Values of any permitted type as JSON that says what they are; never an import named by data.

What flows between the steps of a builder graph has no declared type at the place where it arrives: a value
may have gone through decisions, maps and transforms. So each value is written with its type's name, unless
JSON itself tells it. The name is looked up among the types that the graph names, and nowhere else.

```
1, "text", true, null, 1.5, [...]         themselves
{"a": 1}                                  a dict of texts, unless it has a key that begins with `$`
{"$": "tuple", "is": [1, 2]}              any other built-in or standard-library value
{"$": "shop.orders:Item", "is": {...}}    a value of a type of the graph's, as pydantic writes it
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
from typing import Any, Final, cast, get_origin

from pydantic_core import from_json, to_json

from .codec import Refusal, Shape
from .errors import UnsupportedTypeError
from .faithful import difference
from .parts import shown

__all__ = ('NATIVE', 'ValueCodec')

_TYPE: Final = '$'
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
        """Make the codec of these types, classes or parametrised ones."""
        self._aliases: dict[type, list[Any]] = {}
        for type_ in types_:
            self._aliases.setdefault(get_origin(type_) or type_, []).append(type_)
        self._by_name = {_name(cls): cls for cls in self._aliases}
        self._shapes: dict[type, Shape] = {}

    def knows(self, cls: type) -> bool:
        """Whether values of this class can be written because the graph names it."""
        return cls in self._aliases

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
        if cls in self._aliases:
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
        try:
            shape = self._shape(cls)
        except UnsupportedTypeError as exc:
            raise Refusal(root, f'is of a type that cannot be stored: {exc}') from exc
        return _tagged(_name(cls), shape.write(root, value, verify))

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

    def _shape(self, cls: type) -> Shape:
        if (shape := self._shapes.get(cls)) is None:
            aliases = self._aliases[cls]
            type_ = aliases[0] if len(aliases) == 1 else cls
            shape = self._shapes[cls] = Shape('type', type_, type_, difference)
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
            return self._shape(cls).read(to_json(inner, inf_nan_mode='constants'))
        if (makes := _MADE.get(name)) is not None:
            return makes(inner if isinstance(inner, str) else self.read(inner))
        if (shape := _BY_NAME.get(name)) is not None:
            return shape.read(to_json(inner, inf_nan_mode='constants'))
        return self._shape(self._moved(name)).read(to_json(inner, inf_nan_mode='constants'))

    def _moved(self, name: str) -> type:
        """Return the one class of this name in another module: a script's, or one that was moved."""
        found = [
            cls for full, cls in self._by_name.items() if full.partition(':')[2] == name.partition(':')[2]
        ]
        if len(found) != 1:
            raise ValueError(
                f'it is of type {name!r}, which the graph does not name: give the type in `types=`'
            )
        return found[0]


def _name(cls: type) -> str:
    return f'{cls.__module__}:{cls.__qualname__}'


def _plain(value: Any, root: str) -> bytes:
    try:
        return to_json(value)
    except Exception as exc:  # a lone surrogate in a text
        raise Refusal(root, f'is {shown(value)}, which cannot be written as JSON ({exc})') from exc


def _quoted(text: str) -> bytes:
    return to_json(text)


def _tagged(name: str, text: bytes) -> bytes:
    return b'{"$":%b,"is":%b}' % (to_json(name), text)


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
_BY_NAME: Final = {cls.__name__: shape for cls, shape in _STANDARD.items()}
NATIVE: Final = frozenset({*_PLAIN, float, list, dict, deque, *_ITERABLES, *_WRITTEN, *_STANDARD})
"""Classes whose values go by themselves."""
