"""What the stories have in common: how they start, go wrong, and end."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from .child import Child
from .evidence import Check
from .view import View

__all__ = ('PATIENCE', 'Telling', 'process', 'run_story')

PATIENCE: Final = 60.0
"""How long one process may take, in seconds; it needs about five."""

_READER: Final = (
    'import sqlite3, sys; [print(*row, sep="|") for row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2])]'
)


@dataclass
class Telling(ABC):
    """Tells one story, part by part."""

    view: View
    """Where to tell it."""
    file: Path
    """The store that it is about."""
    command: Sequence[str]
    """What runs the graph: the file is the last of its arguments."""

    query: ClassVar[str]
    """What a reader may ask the store."""
    read_next: ClassVar[str] = 'docs/tutorial.md, from a first graph to a resumed run.'
    """What to read next."""

    @abstractmethod
    def tell(self) -> int:
        """Tell it, and return the exit code: 0 only if everything that is promised held."""

    def child(self, name: str) -> Child:
        """Start a process that runs the graph."""
        return Child(self.command, log=self.file.with_name(f'{name}.log'), patience=PATIENCE)

    def verdict(self, checks: Sequence[Check]) -> int:
        """Say of every promise whether it held and where to look, and return the exit code."""
        for check in checks:
            self.view.check(check.text, held=check.held)
        self._where_to_look()
        return 0 if all(check.held for check in checks) else self.broken('Not all of it held: see NO above.')

    def gave_up(self, who: str, code: int, complaint: str) -> bool:
        """Say that a process ended as it should not have; `False`."""
        ended = f'ended with exit code {code}' if code >= 0 else f'was ended by signal {-code}'
        self.broken(f'{who.capitalize()} {ended}, before the run was where it should be. What it wrote:')
        self.view.show(complaint or '(nothing)')
        return False

    def broken(self, text: str) -> int:
        """Say what went wrong, and return the exit code."""
        self.view.say(text, tone='bad')
        self.view.say('What is stored so far is in')
        self.view.show(str(self.file))
        return 1

    def _where_to_look(self) -> None:
        view = self.view
        view.heading('6. Look for yourself')
        view.say('The store is one SQLite file:')
        view.show(str(self.file))
        view.say('Ask it with any SQLite client:')
        view.show(f'{_client()} {shlex.quote(str(self.file))} \\\n  "{self.query}"')
        view.say(f'Read next: {self.read_next}')


def _client() -> str:
    """Return a command that asks a database and is to be had here."""
    if shutil.which('sqlite3'):
        return 'sqlite3'
    if sys.version_info >= (3, 12):
        return 'python -m sqlite3'
    return f"python -c '{_READER}'"


def run_story(
    story: Callable[[View, Path, Sequence[str]], Telling],
    directory: Path | None,
    *,
    view: View,
    command: Sequence[str],
) -> int:
    """Make the place for a story, tell it, and return the exit code.

    Args:
        story: The story.
        directory: Where to keep the store; by default a new temporary directory.
        view: Where to tell it.
        command: The command that runs the graph in the store that is named behind it.
    """
    if not hasattr(signal, 'SIGKILL'):
        view.say(
            'This demo kills a process with SIGKILL, which Windows does not have: run it on Linux or macOS.'
        )
        return 1
    try:
        place = (directory or Path(tempfile.mkdtemp(prefix='graphkeep-demo-'))).absolute()
        place.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        view.say(f'Cannot keep a store in {directory}: {exc.strerror}. Give another --directory.', tone='bad')
        return 1
    file = place / 'runs.db'
    if file.exists():
        view.say(f'There is a store already, {file}. Give another --directory, or delete it.', tone='bad')
        return 1
    try:
        return story(view, file, [*command, str(file)]).tell()
    except KeyboardInterrupt:
        view.say('Interrupted: what ran the graph was stopped. What is stored so far is in', tone='bad')
        view.show(str(file))
        return 130


def process(pid: int) -> str:
    """Return what a process is called in the stories."""
    return f'process {pid}'
