"""Lets the statements that reach SQLite fail, one by one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

__all__ = ('Statements', 'failing', 'watch')


def failing(code: int, message: str) -> sqlite3.OperationalError:
    """Return what SQLite raises with this code."""
    exc = sqlite3.OperationalError(message)
    exc.sqlite_errorcode = code
    exc.sqlite_errorname = message
    return exc


class Statements:
    """What the statements of the process go through; `hook` may raise, or wait, before one is made.

    `after` may wait when one was made.
    """

    def __init__(self) -> None:
        self.hook: Callable[[str], None] = self.nothing
        self.after: Callable[[str], None] = self.nothing
        self.made: list[str] = []

    def nothing(self, sql: str) -> None:
        """Let a statement pass."""

    def reach(self, sql: str) -> None:
        """Reach this statement."""
        name = ' '.join(sql.split())
        self.hook(name)
        self.made.append(name)


def watch(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """Have every connection that a store opens from here on go through the statements returned."""
    statements = Statements()

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            statements.reach(sql)
            cursor = super().execute(sql, *args)
            statements.after(sql)
            return cursor

    real: Any = sqlite3.connect

    def connect(*args: Any, **options: Any) -> Any:
        return real(*args, factory=Watched, **options)

    shown = {name: getattr(sqlite3, name) for name in dir(sqlite3)} | {'connect': connect}
    monkeypatch.setattr('graphkeep.sqlopen.sqlite3', SimpleNamespace(**shown))
    return statements
