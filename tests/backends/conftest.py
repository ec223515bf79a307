"""Fixtures of the store tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from graphkeep import Store
from tests.backends.stores import STORES, Clock, Shelf


@pytest.fixture
def clock() -> Clock:
    """A clock that goes when it is told to."""
    return Clock()


@pytest.fixture(params=list(STORES))
async def shelf(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Shelf]:
    """Each storage, empty; what was opened on it is closed afterwards."""
    async with AsyncExitStack() as stack:
        yield Shelf(request.param, clock, tmp_path, stack)


@pytest.fixture
async def store(shelf: Shelf) -> Store:
    """Each store, empty."""
    return await shelf.open()
