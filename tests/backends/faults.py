"""Lets the calls of the file backend into the operating system fail, one by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

__all__ = ('Call', 'FaultyOs', 'put_os')

_TOUCHING = frozenset(
    {
        'open',
        'read',
        'lseek',
        'write',
        'close',
        'stat',
        'fstat',
        'fsync',
        'utime',
        'replace',
        'unlink',
    }
)


@dataclass
class Call:
    """One call into the operating system."""

    index: int
    """How many came before it."""
    name: str
    """The function in `os`."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        """Make it."""
        return getattr(os, self.name)(*self.args, **self.kwargs)


class FaultyOs:
    """Stands where the file backend has the module `os`: what touches the disk goes through a hook."""

    def __init__(self, hook: Callable[[Call], Any]):
        self.hook = hook
        self.name = os.name
        self.names: list[str] = []  # and not their arguments, which are views of a buffer that has to grow

    def __getattr__(self, name: str) -> Any:
        return self._recorded(name) if name in _TOUCHING else getattr(os, name)

    def _recorded(self, name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            return self.hook(Call(len(self.names) - 1, name, args, kwargs))

        return called


def put_os(monkeypatch: pytest.MonkeyPatch, system: Any) -> None:
    """Put this where the file backend has the module `os`."""
    for module in ('runfile', 'directories'):
        monkeypatch.setattr(f'graphkeep.{module}.os', system)
