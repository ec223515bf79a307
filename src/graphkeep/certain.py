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
        return _read(schema['items_schema'], {one['ref']: one for one in definitions}).one
    except (_UnknownError, KeyError):
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


def _entries(keys: _Test, each: _Test) -> _Certain:
    def holds(value: Any) -> bool:
        return type(value) is dict and keys(value) and each(value.values())

    return _by_one(holds)


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
                if name not in parts and not name.startswith('_'):
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


def _read(schema: _Schema, definitions: Mapping[str, _Schema]) -> _Certain:
    """Return what is certain of the values of a schema.

    Raises:
        _UnknownError: if there is anything unknown in it.
    """
    _check(schema)
    match schema:
        case {'type': 'definition-ref', 'schema_ref': ref} if ref in definitions:
            # without itself: a type that holds itself may be nested too deeply to be read
            return _read(definitions[ref], {name: one for name, one in definitions.items() if name != ref})
        case {'type': 'default', 'schema': inner}:
            return _read(inner, definitions)
        case {'type': 'nullable', 'schema': inner}:
            one = _read(inner, definitions).one
            return _by_one(lambda value: value is None or one(value))
        case {'type': 'list', 'items_schema': items}:
            return _items(list, _read(items, definitions).each)
        case {'type': 'tuple', 'items_schema': [items], 'variadic_item_index': 0}:
            return _items(tuple, _read(items, definitions).each)
        case {'type': 'dict', 'keys_schema': {'type': 'str'} as keys, 'values_schema': values}:
            return _entries(_read(keys, definitions).each, _read(values, definitions).each)
        case {'type': 'dataclass', 'cls': cls, 'schema': {'type': 'dataclass-args'} as args}:
            _check(args)
            fields = {field['name']: field for field in args['fields']}
            return _by_one(_fields(cls, _parts(cls, fields, cls.__dataclass_fields__, definitions)))
        case {'type': 'model', 'cls': cls, 'schema': {'type': 'model-fields', 'fields': fields} as args}:
            _check(args)
            holds = _fields(cls, _parts(cls, fields, cls.model_fields, definitions))
            return _by_one(lambda value: holds(value) and value.__pydantic_extra__ is None)
        case {'type': kind} if kind in _SINGLE:
            return _SINGLE[kind]
        case _:
            raise _UnknownError


def _parts(
    cls: Any, fields: Mapping[str, _Schema], declared: Mapping[str, Any], definitions: Mapping[str, _Schema]
) -> dict[str, _Test]:
    """Return what is certain of the fields of a class, all that it declares."""
    if (
        fields.keys() != declared.keys()
        or cls.__dictoffset__ == 0
        or cls.__getattribute__ is not object.__getattribute__
        or any(inspect.isdatadescriptor(inspect.getattr_static(cls, name, None)) for name in fields)
    ):
        raise _UnknownError
    for field in fields.values():
        _check(field)
    return {name: _read(field['schema'], definitions).one for name, field in fields.items()}
