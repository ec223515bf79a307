"""What the scheduler of a persisted run is given: what to go on with, numbers, and the stream of results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

__all__ = ('Begun', 'Ids', 'Results', 'Resumed')


class Begun(NamedTuple):
    """A join that has begun."""

    row_id: str
    """The id under which it is stored."""
    join_id: str
    fork_run: str
    stack: tuple[Any, ...]
    value: tuple[Any] | None
    stopped: bool


class Resumed(NamedTuple):
    """What a run is to go on with."""

    tasks: Sequence[Any]
    """The tasks to run, in order."""
    joins: Sequence[Begun]
    """The joins that have begun."""
    streams: dict[tuple[str, str], tuple[str, int]]
    """Of each task that streams, and fork that it streams into: the id of the fork's run, and how many items
    were recorded."""


class Ids:
    """Numbers tasks, or runs of forks, not like those of an earlier opening of the run."""

    def __init__(self, opening: int):
        self._prefix = 'task:' if opening == 1 else f'task:{opening}.'
        self._count = 1
        self.pinned: str | None = None

    def __call__(self) -> Any:
        if (pinned := self.pinned) is not None:
            self.pinned = None
            return pinned
        self._count += 1
        return f'{self._prefix}{self._count - 1}'


class Results:
    """The stream of results, of which each is had from `take`, and told to `receive`."""

    def __init__(self, stream: Any, take: Callable[[], Awaitable[Any]], receive: Callable[[Any], bool]):
        self._stream = stream
        self._take = take
        self._receive = receive
        self.closed = False

    def __aiter__(self) -> Results:
        return self

    async def __anext__(self) -> Any:
        while True:
            result = await self._take()
            if self._receive(result):
                return result

    async def __aenter__(self) -> Any:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> Any:
        self.closed = True
        return await self._stream.__aexit__(*exc)

    def close(self) -> None:
        self.closed = True
        self._stream.close()
