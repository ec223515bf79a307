"""The crash proof: whatever commit it dies at, once or twice, a run comes to the same result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builder.crashing import UNCLOSED, BuilderRuns, crash_points, places
from tests.builder.graphs import CASES, Case
from tests.counts import FULL

pytestmark = [
    pytest.mark.anyio,
    UNCLOSED,
]

HERE = [case for case in CASES.values() if case.resumes_here]
# in CI every case in memory, with some crashes again; on disk one case in so many
ON_DISK = HERE if FULL else HERE[::8]
AGAIN = None if FULL else 1


@pytest.mark.both_backends
@pytest.mark.parametrize('case', HERE, ids=repr)
async def test_in_memory(case: Case, tmp_path: Path, anyio_backend: str):
    """After a crash at each commit, and a second one, output and state are those of the plain host."""
    report = await crash_points(BuilderRuns(case), places('memory', tmp_path), second=AGAIN)
    report.check()


@pytest.mark.both_backends
@pytest.mark.parametrize('name', ['file', 'sqlite'])
@pytest.mark.parametrize('case', ON_DISK, ids=repr)
async def test_on_disk(case: Case, name: str, tmp_path: Path, anyio_backend: str):
    """The same on a disk, where each crash leaves the stores to be opened anew."""
    some = None if FULL else 6
    report = await crash_points(BuilderRuns(case), places(name, tmp_path), first=some, second=1)
    report.check()


@pytest.mark.parametrize('case', HERE if FULL else HERE[::4], ids=repr)
async def test_barrier(case: Case, tmp_path: Path):
    """Committing only when nothing is in flight comes to the same result too."""
    runs = BuilderRuns(case, tracking='barrier')
    report = await crash_points(runs, places('memory', tmp_path), second=AGAIN)
    report.check()
