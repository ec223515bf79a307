"""A marker for what is kept as data only: there a value may come back as another type with the same data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Final, cast, final, get_args

import pydantic
from pydantic_core import from_json

__all__ = ('AsJson', 'is_marked', 'same_data')


@final
class AsJson:
    """Permit the values of a field to change their type on the way through JSON, but not their data.

    For what a field types as `Any` and is data all the same, such as what the tools of an agent returned:

    ```python
    @dataclass
    class State:
        messages: Annotated[list[ModelMessage], AsJson] = field(default_factory=list)
    ```

    Anywhere in the annotation of a field it is meant for the whole field, and for all that is in it: in a
    dataclass, pydantic model, `NamedTuple` or `TypedDict`, and around the type of a state or a result.
    A model, a tuple or a date in an `Any` is then loaded as a dict, a list or text. What loses data is
    refused as ever: the fields of a subclass, infinity written as null, a masked secret.

    pydantic ignores the mark, and what is stored is the same without it.
    """


def is_marked(hint: Any) -> bool:
    """Return whether `AsJson` is anywhere in an annotation; the fields of classes in it are their own."""
    seen: list[Any] = []  # an alias may refer to itself
    todo = [hint]
    while todo:
        part = todo.pop()
        if part is AsJson or isinstance(part, AsJson):
            return True
        todo += get_args(part)
        if hasattr(part, '__value__') and not any(part is alias for alias in seen):  # `type X = ...`
            seen.append(part)
            todo.append(part.__value__)
    return False


def same_data(given: Any, loaded: Any) -> bool:
    """Return whether two values are the same JSON, each written as what it is, and nothing of it is lost."""
    try:
        if all(isinstance(value, Set) for value in (given, loaded)):  # their order means nothing
            given, loaded = sorted(given, key=_written), sorted(loaded, key=_written)
        text = _written(given)
        return text == _written(loaded) and not _loses(given, text)
    except Exception:  # it cannot be written: bytes that are not UTF-8, what a serializer of the user raises
        return False


_ANYTHING: Final = pydantic.TypeAdapter[Any](Any, config=pydantic.ConfigDict(ser_json_inf_nan='constants'))
_SECRETS: Final = (pydantic.SecretStr, pydantic.SecretBytes, pydantic.Secret)
_MASK: Final = '**********'  # what pydantic writes for a secret


def _written(value: object) -> str:
    return json.dumps(from_json(_ANYTHING.dump_json(value, warnings=False)), sort_keys=True)


def _loses(given: object, text: str) -> bool:
    """Return whether a value holds a secret or an infinity that its own class writes as something else."""
    held = list(_leaves(_ANYTHING.dump_python(given, warnings=False)))
    written = list(_leaves(json.loads(text)))
    masked = any(isinstance(leaf, _SECRETS) for leaf in held) and _MASK in written
    return masked or _count_infinite(held) > _count_infinite(written)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        parts: Iterable[Any] = cast('Mapping[Any, Any]', value).values()
    elif isinstance(value, list | tuple | Set):
        parts = cast('Iterable[Any]', value)
    else:
        yield value
        return
    for part in parts:
        yield from _leaves(part)


def _count_infinite(leaves: Iterable[Any]) -> int:
    return sum(isinstance(leaf, float) and not math.isfinite(leaf) for leaf in leaves)
