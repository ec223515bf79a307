"""Work that runs where it is awaited."""

from __future__ import annotations

import types
from collections.abc import Generator
from contextvars import ContextVar

import pytest

from graphkeep.inplace import in_place

pytestmark = pytest.mark.anyio

colour: ContextVar[str] = ContextVar('colour', default='none')


async def test_closed():
    """Work whose awaiter is closed is closed, too, in its own context."""
    seen: list[str] = []

    @types.coroutine
    def pause() -> Generator[str]:
        yield 'paused'

    async def work() -> None:
        colour.set('its own')
        try:
            await pause()
        except BaseException as exc:
            seen.append(f'{type(exc).__name__}, {colour.get()}')

    async def wait() -> None:
        await in_place(work())
        seen.append('went on')

    waiting = wait()
    assert waiting.send(None) == 'paused'
    waiting.close()
    assert seen == ['GeneratorExit, its own']
    assert colour.get() == 'none'
