"""The command line: `python -m graphkeep demo` shows a run that survives the death of its process."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import _host

__all__ = ('main',)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(argv)
    from .demo.story import run_demo  # the demo is not needed to tell a version, nor to print the help

    return run_demo(options.directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m graphkeep', description='Durable state persistence for pydantic-graph.'
    )
    parser.add_argument('--version', action='version', version=_version())
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    text = 'Run a graph in a process of its own, kill that in the middle of a step, and go on in another one.'
    demo = commands.add_parser('demo', help='show a run that survives kill -9', description=text)
    demo.add_argument(
        '--directory',
        type=Path,
        metavar='DIR',
        help='where to keep the run; by default a new temporary directory, which stays',
    )
    return parser


def _version() -> str:
    try:
        own = version('graphkeep')
    except PackageNotFoundError:  # imported from a source tree
        own = '(not installed)'
    return f'graphkeep {own}, pydantic-graph {_host.HOST_VERSION}, Python {platform.python_version()}'


if __name__ == '__main__':
    sys.exit(main())
