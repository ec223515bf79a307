"""Random graphs: each has one result on the plain host, whatever the delays, and after whatever crash."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

import anyio
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.builder.corpus.cases import HOST, plain
from tests.builder.crashing import UNCLOSED, BuilderRuns, crash_points, places
from tests.builder.random_graphs import Block, case_of, descriptions, steps
from tests.counts import FULL, count

# what a host itself does not run right does not show anything: see `descriptions`
KINDS = {'empty_maps': HOST >= (2, 2), 'nested_forks': HOST >= (2, 50), 'streams': HOST >= (2, 50)}
CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much)

pytestmark = [pytest.mark.both_backends, UNCLOSED]


@settings(max_examples=count(1000), suppress_health_check=CHECKS)
@given(description=descriptions(most_steps=60, **KINDS))
def test_one_result(anyio_backend: str, description: Block):
    """A random graph comes to the same result in whatever order its tasks are run."""
    event(f'{steps(description) // 10}0 steps and more')
    case = case_of(description)

    async def several() -> None:
        expected = await plain(case)
        for seed in (1, 2, 3):
            assert await plain(case, seed) == expected

    anyio.run(several, backend=anyio_backend)


class TestCrashes:
    """Crashes of random graphs, of which there have to be so many."""

    wanted: ClassVar = 5000 if FULL else 200
    points: ClassVar[dict[str, int]] = {}

    @pytest.mark.timeout(3600 if FULL else 120)
    def test_crashes(self, anyio_backend: str):
        """After a crash at any commit of a random graph, and a second one, nothing differs."""
        self.points[anyio_backend] = 0

        # most examples have four commits and more, each of which is a crash, and then another one
        @settings(max_examples=self.wanted // 4, suppress_health_check=CHECKS)
        @given(description=descriptions(most_steps=30, **KINDS), seed=st.integers(0, 2**16))
        def crashes(description: Block, seed: int) -> None:
            self.points[anyio_backend] += _crash(description, seed, anyio_backend)

        crashes()
        assert self.points[anyio_backend] >= self.wanted


def _crash(description: Block, seed: int, backend: str) -> int:
    runs = BuilderRuns(case_of(description), seed=seed)

    async def crash(directory: Path) -> int:
        report = await crash_points(runs, places('memory', directory), first=4, second=1)
        report.check()
        return report.points

    with tempfile.TemporaryDirectory() as directory:
        return anyio.run(crash, Path(directory), backend=backend)
