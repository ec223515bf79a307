"""How the tests run the demo, and where they have its stories told."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Final

from graphkeep.demo.view import PlainView, View

__all__ = ('AS_INSTALLED', 'WITHOUT_BUILDER', 'WITHOUT_RICH', 'plain', 'run_demo_in')

AS_INSTALLED: Final = ('-m', 'graphkeep')
WITHOUT_RICH: Final = (
    '-c',
    'import sys; sys.modules["rich"] = None; sys.modules["rich.console"] = None\n'
    'from graphkeep.__main__ import main; sys.exit(main(sys.argv[1:]))',
)
WITHOUT_BUILDER: Final = (
    '-c',
    'import pydantic_graph, sys; sys.modules["pydantic_graph.graph_builder"] = None\n'
    'from graphkeep.__main__ import main; sys.exit(main(sys.argv[1:]))',
)


def plain() -> tuple[View, io.StringIO]:
    """Return a view that writes plain text, and where."""
    out = io.StringIO()
    return PlainView(out), out


def run_demo_in(directory: Path, command: tuple[str, ...], *options: str) -> str:
    """Run the demo as a user does, and return what it prints; it succeeds, and nothing else is printed."""
    done = subprocess.run(
        [sys.executable, *command, 'demo', '--directory', str(directory), *options],
        capture_output=True,
        encoding='utf-8',
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout
