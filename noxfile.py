"""All checks, each in an environment of its own. `nox -l` lists them; plain `nox` runs the quick ones."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nox

nox.needs_version = '>=2025.5.1'
nox.options.sessions = ['lint', 'types', 'tests', 'coverage', 'docs', 'wheel']
nox.options.error_on_missing_interpreters = True

HOSTS = {
    # the oldest of everything; pydantic-ai 1.0 needs an opentelemetry of its time
    '1-oldest': [
        'pydantic-graph==1.0.0',
        'pydantic-ai-slim==1.0.0',
        'opentelemetry-api<1.39',
        'pydantic==2.11.0',
        'anyio==4.7.0',
        'filelock==3.30.0',
    ],
    '1-newest': ['pydantic-graph>=1,<2', 'pydantic-ai-slim>=1,<2'],
    '2-oldest': ['pydantic-graph==2.0.0', 'pydantic-ai-slim==2.0.0'],
    '2-newest': ['pydantic-graph>=2,<3', 'pydantic-ai-slim>=2,<3'],
}
MAJORS = {'1': HOSTS['1-newest'], '2': HOSTS['2-newest']}


def _outermost_pythons() -> list[str]:
    """Return the oldest and the newest supported Python here; those between have nothing to add."""
    # a version manager's shim is found for a version that is not switched on, so each has to be asked
    found = [v for v in ('3.11', '3.12', '3.13', '3.14', '3.15') if _runs(f'python{v}')]
    return list(dict.fromkeys([*found[:1], *found[-1:]]))


def _runs(python: str) -> bool:
    path = shutil.which(python)
    return path is not None and subprocess.run([path, '-V'], capture_output=True, check=False).returncode == 0


@nox.session
@nox.parametrize('host', list(HOSTS))
def tests(session: nox.Session, host: str) -> None:
    """Run all tests on one version of pydantic-graph."""
    session.install('-e', '.[test]', *HOSTS[host])
    session.run('pytest', *session.posargs)


@nox.session(python=_outermost_pythons())
@nox.parametrize('host', list(HOSTS))
def tests_python(session: nox.Session, host: str) -> None:
    """Run all tests on the oldest and the newest Python there is."""
    session.install('-e', '.[test]', *HOSTS[host])
    session.run('pytest', *session.posargs)


@nox.session
@nox.parametrize('host', ['1-newest', '2-newest'])
def full(session: nox.Session, host: str) -> None:
    """Run all tests with full counts: ten times CI's crashes and races, and Hypothesis' nightly profile."""
    session.install('-e', '.[test]', *HOSTS[host])
    session.run('pytest', '--timeout=7200', *session.posargs, env={'GRAPHKEEP_FULL': '1'})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install('ruff>=0.14')
    session.run('ruff', 'check', '.')
    session.run('ruff', 'format', '--check', '.')


@nox.session
@nox.parametrize('major', list(MAJORS))
def types(session: nox.Session, major: str) -> None:
    """Check types: source and tests strictly, and the public API from outside, as users' checkers see it."""
    session.install('-e', '.[types]', *MAJORS[major])
    if major == '2':
        session.run('pyright')
    # from there, for pyright's own configuration there: the main one leaves out what only one host has
    with session.chdir('tests/typing'):
        session.run('pyright', 'both_hosts.py', 'builder_graphs.py', f'host_{major}.py')
        session.run('mypy', '--config-file=../../pyproject.toml', 'both_hosts.py', f'host_{major}.py')


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure branch coverage over both hosts together, for each has lines that the other never runs."""
    session.run('python', '-c', 'import pathlib; [p.unlink() for p in pathlib.Path().glob(".coverage*")]')
    for requirements in MAJORS.values():
        session.install('-e', '.[test]', *requirements)
        session.run('coverage', 'run', '-m', 'pytest', *session.posargs)
    session.run('coverage', 'combine')
    session.run('coverage', 'report')


@nox.session
def docs(session: nox.Session) -> None:
    """Run the examples and follow the links."""
    session.install('-e', '.[test]')
    session.run('pytest', 'tests/docs', *session.posargs)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure the cost of a step next to pydantic-graph 1.x's own persistence."""
    session.install('-e', '.[bench]', *MAJORS['1'])
    session.run('python', 'tests/benchmarks/run.py', *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Run all tests against the wheel as it would be published."""
    session.install('build')
    dist = Path(session.create_tmp(), 'dist').resolve()
    shutil.rmtree(dist, ignore_errors=True)
    # the sdist is built first and the wheel from it, so both are complete
    session.run('python', '-m', 'build', '--outdir', str(dist))
    (built,) = dist.glob('*.whl')
    session.install('--force-reinstall', f'graphkeep[test] @ {built.as_uri()}')
    session.run('python', '-c', _IMPORTED_FROM_WHEEL, env={'PYTHONPATH': ''})
    session.run('pytest', *session.posargs, env={'PYTHONPATH': ''})


_IMPORTED_FROM_WHEEL = f"""
import graphkeep, pathlib
source = pathlib.Path({os.fspath(Path.cwd())!r}, 'src')
if source in pathlib.Path(graphkeep.__file__).parents:
    raise SystemExit(f'{{graphkeep.__file__}} is the source tree, not the wheel')
if not pathlib.Path(graphkeep.__file__).with_name('py.typed').exists():
    raise SystemExit('the wheel lacks py.typed')
"""
