"""The Python blocks of the documents: each page is run from top to bottom, as a reader would.

A page's blocks share one module, so what one defines the next may use; `await` is allowed at the top level,
as in a notebook. The page runs in a process of its own, in an empty directory. What stands behind the block's
language says more:

- `host=1` or `host=2`: the block is run on that major version of pydantic-graph only. `host=builder`: it is
  run where pydantic-graph has the builder of graphs that `PersistentGraph` needs.
- `file=NAME`: the block is saved as `NAME` there, for the commands of the page, and not run by itself.
- `run=no`: the block is compiled, not run.

A block `console run=yes` has commands after `$ ` with what they print, where `...` stands for anything;
`exit=N` is the exit code of the last one. Such blocks run after the Python blocks of their page.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
HOSTS: Final = [
    version('pydantic-graph').partition('.')[0],
    *(['builder'] if find_spec('pydantic_graph.graph_builder') else []),
]
FENCE: Final = re.compile(r'^```(python|console)([^\n`]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
OPTIONS: Final = frozenset({'host', 'file', 'run', 'exit'})


class Block(NamedTuple):
    """A block of a page."""

    language: str
    options: dict[str, str]
    code: str
    line: int

    @property
    def here(self) -> bool:
        """Whether it is meant for the host that is installed."""
        return self.options.get('host', HOSTS[0]) in HOSTS

    @property
    def is_script(self) -> bool:
        """Whether it is Python to be run here."""
        return self.language == 'python' and self.here and not self.options.keys() & {'file', 'run'}


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = page.read_text(encoding='utf-8')
    for match in FENCE.finditer(text):
        options = dict(word.split('=', 1) for word in match[2].split())
        yield Block(match[1], options, match[3], text.count('\n', 0, match.start()) + 2)


PAGES: Final = [
    page for page in sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]) if any(blocks(page))
]

RUNNER: Final = """
import ast, asyncio, inspect, linecache, sys, types
from pathlib import Path

page, *rest = sys.argv[1:]
module = types.ModuleType('page')
sys.modules['page'] = module  # so that annotations are resolved there
module.__dict__['__name__'] = 'page'


with asyncio.Runner() as runner:
    for line, name in zip(rest[::2], rest[1::2]):
        source = Path(name).read_text(encoding='utf-8')
        padded = '\\n' * (int(line) - 1) + source
        linecache.cache[page] = len(padded), None, padded.splitlines(True), page
        code = compile(padded, page, 'exec', flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        # a block that awaits runs in the loop of the page, as in a notebook; any other as a script does
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(eval(code, module.__dict__))
        else:
            exec(code, module.__dict__)
"""


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page: Path, tmp_path: Path):
    """Every block of the page does what a reader expects: it runs, and prints what is shown."""
    work = tmp_path / 'work'
    work.mkdir()
    found = list(blocks(page))
    for block in found:
        assert block.options.keys() <= OPTIONS, f'{page}:{block.line}: unknown options {block.options}'
        if 'file' in block.options and block.here:
            (work / block.options['file']).write_text(block.code, encoding='utf-8')
    run_python(page, [block for block in found if block.is_script], tmp_path, work)
    for block in found:
        if block.language == 'console' and block.here and block.options.get('run') == 'yes':
            run_console(page, block, work)


def test_a_block_that_fails_is_found(tmp_path: Path):
    """A page fails with the place of the block where something is not as it says."""
    page = tmp_path / 'page.md'
    (tmp_path / 'work').mkdir()
    page.write_text('text\n```python\nx = 1\n```\n```python\nassert x == 2\n```\n', encoding='utf-8')
    with pytest.raises(AssertionError, match=r'page\.md", line 6(.|\n)*assert x == 2'):
        run_python(page, list(blocks(page)), tmp_path, tmp_path / 'work')
    page.write_text('```console run=yes\n$ python -c "print(1)"\n2\n```\n', encoding='utf-8')
    with pytest.raises(AssertionError, match=r'ended with 0 and printed:\s+1\s'):
        run_console(page, next(blocks(page)), tmp_path)


def test_blocks_for_the_other_host_are_python():
    """What is not run here is Python all the same."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == 'python':
                compile(
                    block.code,
                    f'{page}:{block.line}',
                    'exec',
                    flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                    dont_inherit=True,
                )


def run_python(page: Path, pieces: list[Block], scratch: Path, work: Path) -> None:
    """Run the Python blocks of a page, one after the other, in one process."""
    command = [sys.executable, '-W', 'error', '-c', RUNNER, str(page)]
    for number, block in enumerate(pieces):
        source = scratch / f'{number}.py'
        source.write_text(block.code, encoding='utf-8')
        command += [str(block.line), str(source)]
    done = subprocess.run(command, cwd=work, capture_output=True, encoding='utf-8', timeout=100, check=False)
    assert done.returncode == 0, f'{page}:\n{done.stderr}'


def run_console(page: Path, block: Block, work: Path) -> None:
    """Run the commands of a console block, and compare what they print with what is shown."""
    commands = re.findall(r'^\$ (.*)\n((?:(?!\$ ).*\n)*)', block.code, re.MULTILINE)
    code = 0
    for command, shown in commands:
        words = shlex.split(command)
        if words[0] == 'python':
            words[0] = sys.executable
        done = subprocess.run(
            words, cwd=work, capture_output=True, encoding='utf-8', timeout=100, check=False
        )
        wanted = '.*?'.join(re.escape(part) for part in shown.split('...'))
        code = done.returncode
        told = f'{page}:{block.line}: `{command}` ended with {code} and printed:\n{done.stdout}{done.stderr}'
        assert re.fullmatch(wanted, done.stdout, re.DOTALL), told
        assert code == (int(block.options.get('exit', 0)) if command == commands[-1][0] else 0), told
