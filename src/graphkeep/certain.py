"""Tells of most values, without loading them, that JSON brings them back as they are.

Pydantic says how it reads and writes a type: its core schema. Where that holds nothing but fields of plain
types, without validators, serializers, aliases or settings, a value whose classes are those of the schema
comes back as it is. Of what this does not know it is not certain: such a value is loaded and compared.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

__all__ = ('certainty_of',)

_Schema = Mapping[str, Any]
_Test = Callable[[Any], bool]


class _Certain(NamedTuple):
    one: _Test
    """Whether it is certain of a value."""
    each: _Test
    """The same of all values of an iterable."""


class _UnknownError(Exception):
    """There is something in the schema of which it is not known what it does."""


def certainty_of(schema: Any) -> _Test:
    """Return what tells of an item of a list whether it is certain that it would be loaded as it is.

    Args:
        schema: The core schema of the list.
    """
    definitions: list[_Schema] = []
    if schema['type'] == 'definitions':
        schema, definitions = schema['schema'], schema['definitions']
    try:
        return _Reader(definitions).read(schema['items_schema'], 0).one
    except Exception:  # whatever a schema of somebody's own may hold: its values are loaded and compared
        return _never


def _never(value: Any) -> bool:
    return False


# -- values


def _by_one(one: _Test) -> _Certain:
    def each(values: Iterable[Any]) -> bool:
        return all(map(one, values))

    return _Certain(one, each)


def _of_class(cls: type[Any]) -> _Certain:
    only = frozenset({cls})

    def one(value: Any) -> bool:
        return type(value) is cls

    def each(values: Iterable[Any]) -> bool:
        return only.issuperset(map(type, values))

    return _Certain(one, each)


def _is_int(value: Any) -> bool:
    return type(value) is int and -_MOST <= value <= _MOST


def _is_float(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


_MOST: Final = 2**63 - 1  # an int that every reader of JSON can hold
_SINGLE: Final = {
    'str': _of_class(str),
    'bool': _of_class(bool),
    'none': _of_class(type(None)),
    'int': _by_one(_is_int),
    'float': _by_one(_is_float),
}


def _items(cls: type[Any], each: _Test) -> _Certain:
    def holds(value: Any) -> bool:
        return type(value) is cls and each(value)

    return _by_one(holds)


def _entries(each: _Test) -> _Certain:
    def holds(value: Any) -> bool:
        return type(value) is dict and _are_keys(value) and each(value.values())

    return _by_one(holds)


def _are_keys(keys: Any) -> bool:
    # a lone surrogate in a text raises when it is written, but in a key something else is written for it
    return _SINGLE['str'].each(keys) and all(map(str.isascii, keys))


def _fields(cls: type[Any], parts: Mapping[str, _Test]) -> _Test:
    size, tests = len(parts), tuple(parts.items())

    def holds(value: Any) -> bool:
        if type(value) is not cls:
            return False
        held = value.__dict__
        for name, one in tests:
            if name not in held or not one(held[name]):
                return False
        if len(held) != size:
            for name in held:
                # what its class does not declare is not written, and need not be if its name says so
                if name not in parts and not (type(name) is str and name.startswith('_')):
                    return False
        return True

    return holds


# -- schemas

_ANYWHERE: Final = {'type', 'ref', 'metadata'}  # metadata is for JSON schemas
_CLASS: Final = {'cls', 'generic_origin', 'schema', 'config', 'frozen'}
_FIELD: Final = {'name', 'schema', 'init', 'kw_only', 'frozen'}
_KNOWN: Final[dict[str, set[str]]] = {
    **{kind: set() for kind in _SINGLE},
    'default': {'schema', 'default', 'default_factory', 'default_factory_takes_data'},
    'nullable': {'schema'},
    'list': {'items_schema'},
    'tuple': {'items_schema', 'variadic_item_index'},
    'dict': {'keys_schema', 'values_schema'},
    'definition-ref': {'schema_ref'},
    'dataclass': _CLASS | {'fields', 'slots', 'post_init'},
    'dataclass-args': {'dataclass_name', 'fields', 'computed_fields', 'collect_init_only'},
    'dataclass-field': _FIELD,
    'model': _CLASS | {'custom_init', 'root_model'},
    'model-fields': {'model_name', 'fields', 'computed_fields'},
    'model-field': _FIELD,
}
"""The kinds of schemas that are known, and what they may hold."""
_OFF: Final = ('post_init', 'custom_init', 'root_model', 'computed_fields', 'collect_init_only')
"""What changes how a value is loaded or written, unless it is empty or false."""
_SETTINGS: Final = {'title', 'ser_json_inf_nan'}
"""The settings of a class that are no matter to what is certain."""
_LEVELS: Final = 100  # of JSON, which can be read with about 200 in any case


def _check(schema: _Schema) -> None:
    """Refuse what is not known to be without effect."""
    known = _KNOWN.get(schema['type'])
    if (
        known is None
        or not schema.keys() <= known | _ANYWHERE
        or any(schema.get(name) for name in _OFF)
        or not schema.get('init', True)
        or not schema.get('config', {}).keys() <= _SETTINGS
    ):
        raise _UnknownError


class _Reader:
    """Reads schemas, each definition once."""

    def __init__(self, definitions: Iterable[_Schema]):
        self._definitions = {one['ref']: one for one in definitions}
        self._known: dict[str, tuple[_Certain, int]] = {}
        self._deepest = 0

    def read(self, schema: _Schema, depth: int) -> _Certain:
        """Return what is certain of the values of a schema, which are so many levels deep in others.

        Raises:
            _UnknownError: if there is anything unknown in it.
        """
        _check(schema)
        self._reach(depth)
        below = depth + 1
        match schema:
            case {'type': 'definition-ref', 'schema_ref': ref}:
                return self._defined(ref, depth)
            case {'type': 'default', 'schema': inner}:
                return self.read(inner, depth)
            case {'type': 'nullable', 'schema': inner}:
                one = self.read(inner, depth).one
                return _by_one(lambda value: value is None or one(value))
            case {'type': 'list', 'items_schema': items}:
                return _items(list, self.read(items, below).each)
            case {'type': 'tuple', 'items_schema': [items], 'variadic_item_index': 0}:
                return _items(tuple, self.read(items, below).each)
            case {'type': 'dict', 'keys_schema': {'type': 'str'} as keys, 'values_schema': values}:
                _check(keys)
                return _entries(self.read(values, below).each)
            case {'type': 'dataclass', 'cls': cls, 'schema': {'type': 'dataclass-args'} as args}:
                _check(args)
                fields = {field['name']: field for field in args['fields']}
                if fields.keys() != set(schema['fields']):
                    raise _UnknownError
                return _by_one(_fields(cls, self._parts(cls, fields, cls.__dataclass_fields__, below)))
            case {'type': 'model', 'cls': cls, 'schema': {'type': 'model-fields', 'fields': fields} as args}:
                _check(args)
                holds = _fields(cls, self._parts(cls, fields, cls.model_fields, below))
                return _by_one(lambda value: holds(value) and _has_no_extra(value))
            case {'type': kind} if kind in _SINGLE:
                return _SINGLE[kind]
            case _:
                raise _UnknownError

    def _reach(self, depth: int) -> None:
        self._deepest = max(self._deepest, depth)
        if self._deepest > _LEVELS:
            raise _UnknownError

    def _defined(self, ref: str, depth: int) -> _Certain:
        if ref not in self._known:
            # gone while it is read: a type that holds itself may be nested too deeply to be loaded
            definition, before, self._deepest = self._definitions.pop(ref), self._deepest, depth
            certain = self.read(definition, depth)
            self._known[ref] = certain, self._deepest - depth
            self._deepest = max(self._deepest, before)
        certain, levels = self._known[ref]
        self._reach(depth + levels)
        return certain

    def _parts(
        self, cls: Any, fields: Mapping[str, _Schema], declared: Mapping[str, Any], depth: int
    ) -> dict[str, _Test]:
        """Return what is certain of the fields of a class, all that it declares."""
        bases: tuple[type[Any], ...] = cls.__mro__
        if (
            fields.keys() != declared.keys()
            or cls.__dictoffset__ == 0
            or cls.__new__ is not object.__new__
            or cls.__getattribute__ is not object.__getattribute__  # which subclasses of builtins do not have
            or any(inspect.isdatadescriptor(inspect.getattr_static(cls, name, None)) for name in fields)
            or any(isinstance(vars(base).get('__dict__'), property) for base in bases)
        ):
            raise _UnknownError
        for field in fields.values():
            _check(field)
        return {name: self.read(field['schema'], depth).one for name, field in fields.items()}


def _has_no_extra(value: Any) -> bool:
    return getattr(value, '__pydantic_extra__', 0) is None
