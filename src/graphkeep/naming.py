"""Names a nameless graph after the variable that holds it where a method of it is called."""

from __future__ import annotations

from types import FrameType
from typing import Any

__all__ = ('infer_name', 'skip_context_manager')


def infer_name(graph: Any, frame: FrameType | None, *others: object) -> None:
    """Name a nameless graph after the variable that holds it, or another of these, where it is called."""
    caller = frame and frame.f_back
    if graph.name is None and caller:
        meant = {id(graph), *map(id, others)}
        scopes = (caller.f_locals, caller.f_globals)
        names = (name for scope in scopes for name, value in scope.items() if id(value) in meant)
        graph.name = next(names, None)


def skip_context_manager(frame: FrameType | None) -> FrameType | None:
    """Step over the frame that `asynccontextmanager` puts between a generator and its `async with`."""
    return frame and frame.f_back
