"""What the author of a class says about its fields: their annotations, and which of them are not stored."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typing_extensions
from pydantic.fields import FieldInfo

__all__ = (
    'cached_properties',
    'computed_for',
    'dataclass_fields',
    'excluded_fields',
    'hints_of',
    'is_installed',
    'typed_dicts_in',
)


def dataclass_fields(cls: type[Any]) -> tuple[dataclasses.Field[Any], ...]:
    """Return the fields of a dataclass, none for any other class."""
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def hints_of(cls: Any) -> dict[str, Any]:
    """Return the annotations of a class with all that is in them; none if only pydantic can resolve them.

    Those of a model or pydantic dataclass are then what pydantic made of them.
    """
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:
        return {name: _annotation(field) for name, field in _pydantic_fields(cls).items()}


def excluded_fields(cls: type[Any]) -> set[str]:
    """Return the fields of a dataclass or model that its author excluded from what is written."""
    declared = _pydantic_fields(cls)
    declared.update((f.name, f.default) for f in dataclass_fields(cls) if isinstance(f.default, FieldInfo))
    found = {name for name, field in declared.items() if field.exclude}
    for name, hint in hints_of(cls).items():
        if any(isinstance(meta, FieldInfo) and meta.exclude for meta in getattr(hint, '__metadata__', ())):
            found.add(name)
    return found


def computed_for(cls: type[Any]) -> tuple[str, ...]:
    """Return the computed fields that an excluded field is loaded from: in that disguise it is stored."""
    decorators = getattr(cls, '__pydantic_decorators__', None)
    computed: dict[str, Any] = getattr(decorators, 'computed_fields', {})
    aliases = [field.validation_alias for field in _pydantic_fields(cls).values() if field.exclude]
    return tuple(name for name in computed if name in aliases)


def cached_properties(cls: type) -> frozenset[str]:
    """Return the cached properties of a class: computed anew from what is stored."""
    return frozenset(
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if isinstance(value, functools.cached_property)
    )


def is_installed(cls: type) -> bool:
    """Return whether a class is an installed package's, so that its users cannot change its annotations."""
    file = getattr(sys.modules.get(cls.__module__), '__file__', None)
    return not {'site-packages', 'dist-packages'}.isdisjoint(Path(file or '').parts)


def typed_dicts_in(hint: Any) -> Iterator[Any]:
    """Yield the `TypedDict`s that a value of an annotation may be, itself and not in a list or the like."""
    if typing_extensions.is_typeddict(hint):
        yield hint
    elif get_origin(hint) in _AROUND:
        for part in get_args(hint):
            yield from typed_dicts_in(part)


_AROUND = (
    Annotated,
    Union,
    type(int | str),
    typing_extensions.Required,
    typing_extensions.NotRequired,
    typing_extensions.ReadOnly,
)


def _pydantic_fields(cls: Any) -> dict[str, FieldInfo]:
    return dict(getattr(cls, '__pydantic_fields__', {}))


def _annotation(field: FieldInfo) -> Any:
    annotated: Any = Annotated
    return annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
