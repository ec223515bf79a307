"""The command line: `python -m graphkeep demo` shows a run that survives the death of its process."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from . import _host
from .errors import UnsupportedHostError

__all__ = ('main',)

_MOST_WORKERS: Final = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parser().parse_args(argv)
    # the demo is not needed to tell a version, nor to print the help
    from .demo.crew import run_crew_demo

    if options.workers is None and _has_builder():
        from .demo.story import run_demo

        return run_demo(options.directory)
    return run_crew_demo(options.workers or 1, options.directory)


def _has_builder() -> bool:
    """Whether the installed pydantic-graph has builder graphs; an old one has none."""
    try:
        import_module('graphkeep.builder')
    except UnsupportedHostError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m graphkeep', description='Durable state persistence for pydantic-graph.'
    )
    parser.add_argument('--version', action='version', version=_version())
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    text = (
        'Run 20 slow steps at once in a process of its own, kill that half way, and go on in another one. '
        'With --workers, several processes share several runs, and one of them is killed.'
    )
    demo = commands.add_parser('demo', help='show a run that survives kill -9', description=text)
    demo.add_argument(
        '--directory',
        type=Path,
        metavar='DIR',
        help='where to keep the store; by default a new temporary directory, which stays',
    )
    demo.add_argument(
        '--workers',
        type=_workers,
        metavar='N',
        help=f'how many processes share the runs, from 1 to {_MOST_WORKERS}',
    )
    return parser


def _workers(text: str) -> int:
    """Return the number of workers that is asked for."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST_WORKERS):
        raise argparse.ArgumentTypeError(f'must be a number from 1 to {_MOST_WORKERS}, not {text!r}')
    return int(text)


def _version() -> str:
    try:
        own = version('graphkeep')
    except PackageNotFoundError:  # imported from a source tree
        own = '(not installed)'
    return f'graphkeep {own}, pydantic-graph {_host.HOST_VERSION}, Python {platform.python_version()}'


if __name__ == '__main__':
    sys.exit(main())
