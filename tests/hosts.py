"""A Python that has the other major version of pydantic-graph, so that both hosts can work on one file."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

import pytest
from filelock import FileLock

__all__ = ('OTHER_HOST_VERSION', 'HostUnavailableError', 'host_python', 'other_host')

ROOT: Final = Path(__file__).resolve().parents[1]
CACHE: Final = ROOT / '.cache' / 'hosts'

NEWEST_ONE: Final = '1.107.10'
NEWEST_TWO: Final = '2.68.0'
OTHER_HOST_VERSION: Final = NEWEST_TWO if installed_version('pydantic-graph').startswith('1.') else NEWEST_ONE
"""The version of pydantic-graph that `other_host` has."""

PIP_SECONDS: Final = 600


class HostUnavailableError(Exception):
    """Say that no environment with the wanted version of pydantic-graph could be made."""


@pytest.fixture(scope='session')
def other_host() -> Path:
    """Path of a Python with the other major version of pydantic-graph and this source tree's graphkeep.

    Its environment is made once and kept under `.cache/hosts`. With `GRAPHKEEP_OFFLINE=1` nothing is
    installed: the tests that need it are skipped unless it is there already.
    """
    offline = os.environ.get('GRAPHKEEP_OFFLINE') == '1'
    try:
        return host_python(OTHER_HOST_VERSION, make=not offline)
    except HostUnavailableError as exc:
        problem = str(exc)
    if offline:
        pytest.skip(f'{problem}, and GRAPHKEEP_OFFLINE=1 forbids to make one')
    pytest.fail(problem, pytrace=False)


def host_python(version: str, *, make: bool = True) -> Path:
    """Return a Python with this version of pydantic-graph, from the cache or, if `make`, newly made.

    An environment appears in the cache when it is complete: what an interrupted run leaves does not count.

    Raises:
        HostUnavailableError: if it is not cached and may not, or could not, be made.
    """
    environment = CACHE / _cache_key(version)
    python = environment / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    if python.exists():
        return python
    if not make:
        raise HostUnavailableError(f'no environment with pydantic-graph {version} is cached under {CACHE}')
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / 'lock', timeout=PIP_SECONDS):
        if not python.exists():
            _make(environment, version)
    return python


def _cache_key(version: str) -> str:
    """Name what an environment depends on: both versions and what graphkeep asks for. Source is linked."""
    with (ROOT / 'pyproject.toml').open('rb') as file:
        project = tomllib.load(file)['project']
    dependencies = hashlib.sha256('\n'.join(project['dependencies']).encode()).hexdigest()[:8]
    return f'pydantic-graph-{version}-py{sys.version_info.major}.{sys.version_info.minor}-{dependencies}'


def _make(environment: Path, version: str) -> None:
    # whoever holds the lock is the only one who makes anything here: the rest is what interrupted runs left
    for left in CACHE.glob('making-*'):
        shutil.rmtree(left, ignore_errors=True)
    # a name of its own, for the pip of an interrupted run may still be at work
    making = Path(tempfile.mkdtemp(prefix='making-', dir=CACHE))
    python = making / ('Scripts/python.exe' if os.name == 'nt' else 'bin/python')
    install = [str(python), '-m', 'pip', 'install', '--quiet', '--no-input', '--disable-pip-version-check']
    _call([sys.executable, '-m', 'venv', str(making)], version)
    _call([*install, '--editable', str(ROOT), f'pydantic-graph=={version}'], version)
    making.rename(environment)


def _call(command: list[str], version: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PYTHONHOME')}
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise HostUnavailableError(_told(command, version, f'took longer than {PIP_SECONDS} s')) from exc
    if done.returncode:
        raise HostUnavailableError(
            _told(command, version, f'ended with {done.returncode}:\n{(done.stderr or done.stdout).strip()}')
        )


def _told(command: list[str], version: str, what: str) -> str:
    return (
        f'Could not make an environment with pydantic-graph {version}; without a network, set '
        f'GRAPHKEEP_OFFLINE=1 to skip the tests that need it.\n`{" ".join(command)}` {what}'
    )
