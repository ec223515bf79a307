"""The types that a builder graph names: what the values that flow through it may be."""

from __future__ import annotations

import builtins
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FrameType
from typing import Any, get_args, get_origin, get_type_hints

import pydantic
from typing_inspection import typing_objects

from .declared import hints_of
from .errors import UnsupportedTypeError
from .values import NATIVE

__all__ = ('named_in', 'signature_hints')


def named_in(hints: Iterable[Any]) -> list[Any]:
    """Return the classes, or parametrised classes, of users and packages that are anywhere in annotations.

    What the fields of a dataclass, model, `NamedTuple` or `TypedDict` name is named, too. Classes whose
    values go by themselves are left out.
    """
    found: list[Any] = []
    seen: list[Any] = []
    todo = list(hints)
    while todo:
        hint = todo.pop(0)
        if any(hint is other for other in seen):
            continue
        seen.append(hint)
        origin = get_origin(hint)
        cls = origin or hint
        if isinstance(cls, type) and not _goes_by_itself(cls):
            if not any(type(hint) is type(other) and hint == other for other in found):
                found.append(hint)
            todo += _held_by(cls)
        if typing_objects.is_annotated(origin):
            todo.append(get_args(hint)[0])
        elif typing_objects.is_typealiastype(cls):
            todo.append(cls.__value__)
            todo += get_args(hint)
        elif typing_objects.is_literal(origin):
            todo += map(type, get_args(hint))
        else:
            todo += _arguments(hint)
        supertype = getattr(hint, '__supertype__', None)  # of a `NewType`
        if supertype is not None:
            todo.append(supertype)
    return found


def signature_hints(
    role: str, function: Callable[..., Any], names: Mapping[str, Any], caller: FrameType | None = None
) -> dict[str, Any]:
    """Return the annotations of a function, each name in them as the function itself would see it.

    Args:
        role: What it is, for the error.
        function: The function, or an object that can be called.
        names: What else there is, for names that the function does not see.
        caller: Who asks. Its variables are seen by functions that are defined in it; to others they are the
            last resort.

    Raises:
        UnsupportedTypeError: if one of them cannot be resolved.
    """
    target: Any = function
    if not (inspect.isfunction(target) or inspect.ismethod(target)):
        target = getattr(type(function), '__call__', function)  # noqa: B004 -- what is called, not whether it can
    target = inspect.unwrap(target)
    try:
        if not getattr(target, '__annotations__', None):  # such as a built-in one
            return {}
        return get_type_hints(target, localns=_seen_by(target, names, caller), include_extras=True)
    except NameError as exc:
        raise UnsupportedTypeError(
            role,
            function,
            f'its annotation {exc.name!r} cannot be resolved: define it in the module, and not only under '
            '`TYPE_CHECKING`, or make the PersistentGraph where it is defined',
        ) from exc
    except Exception as exc:  # whatever an annotation does that is written as text
        raise UnsupportedTypeError(
            role,
            function,
            f'its annotations cannot be resolved ({type(exc).__name__}: {exc}): each must be a type where '
            'the function is defined',
        ) from exc


def _seen_by(function: Any, names: Mapping[str, Any], caller: FrameType | None) -> dict[str, Any]:
    """Return what the names in a function's annotations stand for: the innermost scope that has one tells."""
    variables = dict(caller.f_locals) if caller else {}
    try:
        enclosing = dict(inspect.getclosurevars(function).nonlocals)
    except (TypeError, ValueError):  # not written in Python, or a variable of it has no value yet
        enclosing = {}
    # a closure has only what the body of the function needs, not what its annotations do
    if caller is not None and _encloses(caller.f_code, getattr(function, '__code__', None)):
        enclosing = {**variables, **enclosing}
    own = getattr(function, '__globals__', {})
    return {**variables, **names, **vars(builtins), **own, **enclosing}


def _encloses(outer: CodeType, code: CodeType | None) -> bool:
    inner = [const for const in outer.co_consts if isinstance(const, CodeType)]
    return any(const is code or _encloses(const, code) for const in inner)


def _arguments(hint: Any) -> Iterator[Any]:
    for argument in get_args(hint):
        if isinstance(argument, list):  # of a `Callable`
            yield from argument
        else:
            yield argument


def _held_by(cls: type[Any]) -> list[Any]:
    if dataclasses.is_dataclass(cls) or issubclass(cls, pydantic.BaseModel):
        return list(hints_of(cls).values())
    if hasattr(cls, '_fields') or hasattr(cls, '__total__'):
        return list(hints_of(cls).values())
    return []


def _goes_by_itself(cls: type) -> bool:
    """Whether a class needs not be named, or its values are no data."""
    return cls in NATIVE or cls.__module__.partition('.')[0] in (
        *('builtins', 'typing', 'typing_extensions', 'pydantic_graph', 'types'),
    )
