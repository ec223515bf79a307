"""Fixtures of the graph tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture
def thread_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Be the thread's event loop, for code that is not async, and close it afterwards."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()
