"""Measure what a step costs, and write the tables of docs/benchmarks.md and README.md.

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
ROOT = HERE.parents[1]
BEGIN, END = '<!-- figures: begin -->', '<!-- figures: end -->'
OURS = 'graphkeep'
FULL = "graphkeep, durability='full'"
PEERS = ('pydantic-graph 1.x', 'LangGraph 1.2')


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
        if code := subprocess.run(command, check=False).returncode:
            return code
        figures = json.loads(file.read_text())['benchmarks']
    groups = grouped(figures)
    told = f'{tables(groups)}\n{others(figures)}'
    print(told)
    if options.write:
        write(ROOT / 'docs' / 'benchmarks.md', told)
        write(ROOT / 'README.md', summary(groups))
    return 0


def write(page: Path, text: str) -> None:
    """Replace the figures of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f'{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}')


def grouped(figures: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the cost of a step in microseconds, by group and subject."""
    groups: dict[str, dict[str, float]] = {}
    for figure in figures:
        info = figure['extra_info']
        if 'figures' in info:
            continue
        cost = figure['stats']['min'] / info['steps'] - info['idle']
        group = groups.setdefault(figure['group'], {})
        group[info['subject']] = min(cost * 1e6, group.get(info['subject'], cost * 1e6))
    return groups


def where() -> str:
    """Return what was measured on."""
    return (
        f'Python {platform.python_version()}, pydantic-graph {version("pydantic-graph")}, '
        f'pydantic {version("pydantic")}, {platform.system()} {platform.machine()}.\n'
    )


def summary(groups: dict[str, dict[str, float]]) -> str:
    """Return one Markdown table of what is compared with the peer."""
    lines = [f'Microseconds a step. {where()}', '| | graphkeep | peer | ratio |', '|---|---:|---:|---:|']
    for group, cost in groups.items():
        peer = next((peer for peer in PEERS if peer in cost), None)
        for subject, figure in cost.items():
            if peer is not None and subject in (OURS, FULL):
                name = group + (f', {subject.partition(", ")[2]}' if subject == FULL else '')
                ratio = cost[peer] / figure
                told = f'{ratio:.1f} times faster' if ratio >= 1 else f'{1 / ratio:.2f} of it'
                lines.append(f'| {name} | {figure:,.0f} | {peer}: {cost[peer]:,.0f} | {told} |')
    return '\n'.join([*lines, ''])


def tables(groups: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table for each kind of persistence, of everything that was measured."""
    lines = [where()]
    for group, cost in groups.items():
        name = next((peer for peer in PEERS if peer in cost), '')
        peer = cost.get(name)
        lines += [f'**{group}**', '', '| | µs a step |' + (f' {name} / this |' if peer else '')]
        lines.append('|---|---:|' + ('---:|' if peer else ''))
        for subject, figure in cost.items():
            lines.append(f'| {subject} | {figure:,.1f} |' + (f' {peer / figure:.2f} |' if peer else ''))
        lines.append('')
    return '\n'.join(lines)


def others(figures: list[dict[str, Any]]) -> str:
    """Return a Markdown table for each measurement that is not of the cost of a step."""
    lines: list[str] = []
    for figure in figures:
        info = figure['extra_info']
        if 'figures' in info:
            lines += [f'**{figure["group"]}**: {info["subject"]}', '', '| | |', '|---|---:|']
            lines += [f'| {name} | {value:,.1f} |' for name, value in info['figures'].items()]
            lines.append('')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(main())
