"""Measure what a step costs and write the tables of docs/benchmarks.md.

    python tests/benchmarks/run.py [--write] [-k EXPRESSION]

Everything that is compared is measured in one run. Figures are the best of their rounds, in microseconds a
step.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / 'docs' / 'benchmarks.md'
BEGIN, END = '<!-- figures: begin -->', '<!-- figures: end -->'
PEER = 'pydantic-graph 1.x'


def main() -> int:
    """Measure, print, and on request write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('--write', action='store_true', help='write the tables into docs/benchmarks.md')
    parser.add_argument('-k', default='', help="measure only what matches this expression of pytest's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / 'figures.json'
        command = [sys.executable, '-m', 'pytest', '-q', '-o', 'python_files=bench_*.py', '-o', 'timeout=0']
        command += ['-W', 'default', '--benchmark-disable-gc', '--benchmark-columns=min,median,rounds']
        command += [f'--benchmark-json={file}', '-k', options.k, str(HERE)]
        # the command is our own
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
        text = tables(json.loads(file.read_text())['benchmarks'])
    print(text)
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f'{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}')
    return 0


def tables(figures: list[dict[str, Any]]) -> str:
    """Return a Markdown table for each kind of persistence."""
    lines = [
        f'Python {platform.python_version()}, pydantic-graph {version("pydantic-graph")}, '
        f'pydantic {version("pydantic")}, {platform.system()} {platform.machine()}.',
        '',
    ]
    groups: dict[str, list[dict[str, Any]]] = {}
    for figure in figures:
        groups.setdefault(figure['group'], []).append(figure)
    for group, members in groups.items():
        cost = {
            m['extra_info']['subject']: m['stats']['min'] / m['extra_info']['steps'] * 1e6 for m in members
        }
        peer = cost.get(PEER)
        lines += [f'**{group}**', '', '| | µs a step |' + (f' {PEER} / this |' if peer else '')]
        lines += ['|---|---:|' + ('---:|' if peer else '')]
        for subject, figure in cost.items():
            lines.append(f'| {subject} | {figure:,.1f} |' + (f' {peer / figure:.2f} |' if peer else ''))
        lines.append('')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
