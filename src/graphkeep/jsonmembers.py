"""What a member of the JSON of a run may be: what one store takes every store takes.

Whatever else stands there is refused with `ValueError`, or another one of `WRONG`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final, TypeVar, cast

from .parts import shown
from .runinfo import is_number

__all__ = (
    'MANY',
    'WRONG',
    'as_count',
    'as_list',
    'as_moment',
    'as_name',
    'as_object',
    'as_seconds',
    'as_text',
    'member',
    'number',
    'one_of',
)

T = TypeVar('T')
K = TypeVar('K', bound=str)

MANY: Final = 2**53
"""Beyond it a float is not exact."""
WRONG: Final = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What is raised where something else is there than what is to be."""


def member(values: Mapping[str, Any], name: str, read: Callable[[Any], T]) -> T | None:
    """Return a member as what it is to be, `None` if there is none or it is null.

    Raises:
        ValueError: if it is something else.
    """
    if (value := values.get(name)) is None:
        return None
    try:
        return read(value)
    except WRONG as exc:
        raise ValueError(f'{name}: {exc}') from exc


def as_object(value: Any) -> dict[str, Any]:
    """Return a JSON object."""
    return cast('dict[str, Any]', _of(dict, value, 'an object'))


def as_list(value: Any) -> list[Any]:
    """Return a JSON array."""
    return cast('list[Any]', _of(list, value, 'an array'))


def as_text(value: Any) -> str:
    """Return a text; it may have lone surrogates."""
    return _of(str, value, 'a text')


def _of(kind: type[T], value: Any, expected: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f'{shown(value)} where {expected} was expected')  # noqa: TRY004 -- as all that is wrong here
    return value


def as_name(value: Any) -> str:
    """Return a text that has a UTF-8 form: a database takes no other for who somebody is."""
    as_text(value).encode()
    return value


def one_of(known: frozenset[K], value: Any) -> K:
    """Return one of the texts that are known."""
    if value not in known:
        raise ValueError(f'{shown(value)} where one of {", ".join(sorted(known))} was expected')
    return value


def as_count(value: Any) -> int:
    """Return a number from 0 on."""
    return number(value, 0)


def number(value: Any, least: int, end: int = MANY) -> int:
    """Return a whole number, from `least` on and below `end`; the decoder has read it as a float."""
    if not is_number(value) or not least <= value < end or value != int(value):
        raise ValueError(f'{shown(value)} where a number from {least} on was expected')
    return int(value)


def as_seconds(value: Any) -> float:
    """Return a finite number of seconds."""
    if not is_number(value) or not isfinite(value):
        raise ValueError(f'{shown(value)} where a number of seconds was expected')
    return float(value) + 0.0  # no store has a zero below zero


def as_moment(value: Any) -> datetime:
    """Return a moment (UTC), from a text that may have any time zone or none."""
    moment = datetime.fromisoformat(as_text(value))
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as exc:
        raise ValueError(f'{shown(value)}, which is before the year 1 or after 9999 in UTC') from exc
