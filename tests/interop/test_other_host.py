"""One file, two major versions of pydantic-graph: what one began the other finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphkeep._host import HAS_RUNNER
from tests.rawfile import stored

PROGRAM = Path(__file__).with_name('program.py')

pytestmark = pytest.mark.timeout(1200)


def _call(python: Path | str, who: str, what: str, file: Path, limit: float = 1e300) -> str:
    """Let a Python begin or finish the run in the file, with graphkeep's classes or pydantic-graph's own."""
    source = Path(__file__).parents[2] / 'src'
    done = subprocess.run(
        [python, PROGRAM, who, what, file, str(limit)],
        env={**os.environ, 'PYTHONPATH': str(source)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def one(other_host: Path) -> Path:
    """Be a Python with pydantic-graph 1.x."""
    return Path(sys.executable) if HAS_RUNNER else other_host


@pytest.fixture
def two(other_host: Path) -> Path:
    """Be a Python with pydantic-graph 2.x."""
    return other_host if HAS_RUNNER else Path(sys.executable)


def test_begun_by_peer(one: Path, two: Path, tmp_path: Path):
    """A run that pydantic-graph 1.x's own class began on 1.x is finished by graphkeep's `Graph` on 2.x."""
    file = tmp_path / 'run.json'
    assert _call(one, 'peer', 'begin', file) == 'stopped at Middle\n'
    begun = stored(file)
    assert [row['status'] for row in begun] == ['success', 'created']
    assert _call(two, 'ours', 'finish', file) == 'the state is whole, and the result is 3 nodes\n'
    finished = stored(file)
    assert finished[0] == begun[0]
    assert [row.get('status') for row in finished] == ['success', 'success', 'success', None]
    assert [row['state'] for row in finished][1] == begun[1]['state']


@pytest.mark.parametrize('host', ['one', 'two'])
def test_finished_by_peer(request: pytest.FixtureRequest, one: Path, host: str, tmp_path: Path):
    """A run that graphkeep began on either host is finished by pydantic-graph 1.x's own class on 1.x."""
    file = tmp_path / 'run.json'
    assert _call(request.getfixturevalue(host), 'ours', 'begin', file) == 'stopped at Middle\n'
    begun = stored(file)
    assert [row['status'] for row in begun] == ['success', 'created']
    assert _call(one, 'peer', 'finish', file) == 'the state is whole, and the result is 3 nodes\n'
    finished = stored(file)
    assert [row.get('status') for row in finished] == ['success', 'success', 'success', None]
    # pydantic-graph writes a time in another way and drops what is ours; everything else is as it was
    theirs = {'state', 'node', 'duration', 'status', 'kind', 'id'}
    assert {key: finished[0][key] for key in theirs} == {key: begun[0][key] for key in theirs}


@pytest.mark.parametrize('order', [['one', 'two', 'one'], ['two', 'one', 'two']], ids='-'.join)
def test_ours_on_both(request: pytest.FixtureRequest, order: list[str], tmp_path: Path):
    """A run of graphkeep's may change the host at every step, with values that 1.x itself cannot write."""
    file = tmp_path / 'run.json'
    first, second, third = (request.getfixturevalue(host) for host in order)
    inf = float('inf')
    assert _call(first, 'ours', 'begin', file, inf) == 'stopped at Middle\n'
    assert _call(second, 'ours', 'step', file, inf) == 'stopped at Last\n'
    assert _call(third, 'ours', 'finish', file, inf) == 'the state is whole, and the result is 3 nodes\n'
    assert _call(first, 'ours', 'read', file, inf) == 'the state is whole, and the result is 3 nodes\n'


def test_back_and_forth(one: Path, two: Path, tmp_path: Path):
    """A run may change the class and the host at every step."""
    file = tmp_path / 'run.json'
    assert _call(one, 'peer', 'begin', file) == 'stopped at Middle\n'
    assert _call(two, 'ours', 'step', file) == 'stopped at Last\n'
    assert _call(one, 'peer', 'finish', file) == 'the state is whole, and the result is 3 nodes\n'
    for python in (one, two):
        assert _call(python, 'ours', 'read', file) == 'the state is whole, and the result is 3 nodes\n'
    assert len(json.loads(file.read_bytes())) == 4
