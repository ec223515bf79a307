"""A storage of each kind; and the tests are left alone where the host has no builder as they need it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.backends.stores import STORES, Clock, Shelf

# `pydantic_graph.graph_builder` holds builder, graph and runner in late 1.x and in 2.x; before that the
# builder was a preview, `pydantic_graph.beta`, whose modules and names differ.
collect_ignore_glob = [] if find_spec('pydantic_graph.graph_builder') else ['test_*.py']


@pytest.fixture(params=STORES)
async def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shelf]:
    """Return a storage of each kind."""
    async with AsyncExitStack() as stack:
        yield Shelf(request.param, Clock(), tmp_path, stack)
