"""Takes values apart, one level at a time, and shows them in messages."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import pydantic

from .declared import dataclass_fields

__all__ = ('Part', 'parts_of', 'shown')


class Part(NamedTuple):
    """A value within another one."""

    key: Any
    """The field name, key or index, as pydantic's `include` takes it."""
    path: str
    """From the outer value to this one."""
    value: Any
    """The value."""


def parts_of(value: object) -> Iterator[Part]:
    """Yield the fields, items or entries of a value, one level deep; nothing for any other value."""
    if isinstance(value, pydantic.BaseModel):
        for name, part in value:
            yield Part(name, f'.{name}', part)
    elif fields := dataclass_fields(type(value)):
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


_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = 60
