"""Random graphs: each has one result on the plain host, whatever the delays."""

from __future__ import annotations

from importlib.metadata import version

import anyio
import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.builder.corpus.cases import plain
from tests.builder.random_graphs import Block, case_of, descriptions, steps
from tests.counts import count

# before 2.2 the host does not run nested maps right of which some are empty
EMPTY_MAPS = tuple(map(int, version('pydantic-graph').split('.')[:2])) >= (2, 2)

pytestmark = pytest.mark.both_backends


@settings(max_examples=count(1000), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(description=descriptions(most_steps=60, empty_maps=EMPTY_MAPS))
def test_one_result(anyio_backend: str, description: Block):
    """A random graph comes to the same result in whatever order its tasks are run."""
    event(f'{steps(description) // 10}0 steps and more')
    case = case_of(description)

    async def several() -> None:
        expected = await plain(case)
        for seed in (1, 2, 3):
            assert await plain(case, seed) == expected

    anyio.run(several, backend=anyio_backend)
