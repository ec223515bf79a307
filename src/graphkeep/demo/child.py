"""A child process that runs the graph: what it says is read, and it never outlives its parent's interest."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread, Timer
from types import TracebackType

from .events import Event

__all__ = ('Child',)


class Child:
    """A process that says events on its standard output; within a `with`, at whose end it is gone.

    Args:
        command: What to run.
        log: Where its standard error goes.
        patience: How long it may take, in seconds; then it is killed.
    """

    def __init__(self, command: Sequence[str], *, log: Path, patience: float):
        self._log = log
        with log.open('wb') as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, encoding='utf-8'
            )
        self._reader: Thread | None = None
        self._timer = Timer(patience, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def events(self) -> Iterator[Event]:
        """Yield what it says until it ends; lines that are no events are passed over."""
        for line in self._process.stdout or ():
            if (event := Event.from_line(line)) is not None:
                yield event

    def report_to(self, told: Callable[[Event | None], None]) -> None:
        """Pass on what it says from a thread, and `None` at its end."""

        def read() -> None:
            try:
                for event in self.events():
                    told(event)
            finally:
                told(None)

        self._reader = Thread(target=read, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait for its end, and return the exit code, or the signal that ended it as a negative number."""
        return self._process.wait()

    def complaint(self) -> str:
        """Return the last lines that it wrote to its standard error."""
        lines = self._log.read_text(encoding='utf-8', errors='replace').splitlines()
        return '\n'.join(lines[-8:])

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self.kill()
        if self._reader is not None:
            self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
