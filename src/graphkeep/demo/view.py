"""How the story looks: with the library rich where it is installed, as aligned plain text elsewhere."""

from __future__ import annotations

import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ('WIDTH', 'PlainView', 'RichView', 'Tone', 'View', 'new_view')

WIDTH: Final = 80
"""How wide the text is at most, in characters."""

Tone = Literal['plain', 'quiet', 'good', 'bad']
"""What a line means to the reader: nothing special, less than others, that something went well, or not."""


class View(ABC):
    """Where the story is told."""

    @abstractmethod
    def heading(self, text: str) -> None:
        """Begin a part of the story."""

    @abstractmethod
    def say(self, text: str, *, indent: int = 0, tone: Tone = 'plain') -> None:
        """Say a paragraph, broken into lines between its words."""

    @abstractmethod
    def show(self, text: str) -> None:
        """Show lines exactly as they are, indented: a path, a command, a report."""

    @abstractmethod
    def event(self, who: str, text: str, tone: Tone = 'plain') -> None:
        """Report in one line what somebody does."""

    @abstractmethod
    def check(self, text: str, *, held: bool) -> None:
        """Say whether something that was promised was kept."""

    @abstractmethod
    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, marked: frozenset[int]) -> None:
        """Show a table; the rows at the marked positions stand out."""


def new_view() -> View:
    """Return the view for the standard output."""
    try:
        from rich.console import Console
    except ImportError:
        return PlainView(sys.stdout)
    # rich itself sees whether this is a terminal, and honours NO_COLOR
    console = Console(highlight=False, soft_wrap=False)
    console.width = min(WIDTH, console.width)
    return RichView(console)


class PlainView(View):
    """Writes plain text."""

    def __init__(self, out: TextIO):
        self._out = out

    def heading(self, text: str) -> None:
        """Begin a part of the story."""
        self._write('', text, '-' * len(text))

    def say(self, text: str, *, indent: int = 0, tone: Tone = 'plain') -> None:
        """Say a paragraph, broken into lines between its words."""
        self._write(*_wrapped(text, ' ' * indent, ' ' * indent))

    def show(self, text: str) -> None:
        """Show lines exactly as they are, indented."""
        self._write(textwrap.indent(text, '    '))

    def event(self, who: str, text: str, tone: Tone = 'plain') -> None:
        """Report in one line what somebody does."""
        self._write(f'  {who:<16}{text}')

    def check(self, text: str, *, held: bool) -> None:
        """Say whether something that was promised was kept."""
        mark = 'yes' if held else 'NO '
        self._write(*_wrapped(text, f'  {mark}  ', ' ' * 7))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, marked: frozenset[int]) -> None:
        """Show a table; the rows at the marked positions begin with an arrow."""
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        lines = [columns, ['-' * width for width in widths], *rows]
        for index, cells in enumerate(lines, start=-2):
            mark = '> ' if index in marked else '  '
            self._write((mark + '  '.join(map(str.ljust, cells, widths))).rstrip())

    def _write(self, *lines: str) -> None:
        for line in lines:
            print(line, file=self._out, flush=True)


class RichView(View):
    """Writes to a terminal through rich."""

    def __init__(self, console: Console):
        self._console = console

    def heading(self, text: str) -> None:
        """Begin a part of the story."""
        self._console.print()
        self._console.rule(f'[bold]{text}[/]', align='left', style='dim')

    def say(self, text: str, *, indent: int = 0, tone: Tone = 'plain') -> None:
        """Say a paragraph, broken into lines between its words."""
        self._lines(_wrapped(text, ' ' * indent, ' ' * indent, self._console.width), _STYLES[tone])

    def show(self, text: str) -> None:
        """Show lines exactly as they are, indented."""
        self._lines(textwrap.indent(text, '    ').splitlines(), 'cyan')

    def event(self, who: str, text: str, tone: Tone = 'plain') -> None:
        """Report in one line what somebody does."""
        from rich.text import Text

        self._console.print(Text.assemble((f'  {who:<16}', 'dim'), (text, _STYLES[tone])), soft_wrap=True)

    def check(self, text: str, *, held: bool) -> None:
        """Say whether something that was promised was kept."""
        first, *rest = _wrapped(text, '  yes  ' if held else '  NO   ', ' ' * 7, self._console.width)
        self._lines([first], 'green' if held else 'bold red')
        self._lines(rest, 'green' if held else 'bold red')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, marked: frozenset[int]) -> None:
        """Show a table; the rows at the marked positions are yellow and begin with an arrow."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table('', *columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for index, cells in enumerate(rows):
            style = 'yellow' if index in marked else ''
            mark = '>' if index in marked else ''
            table.add_row(*(Text(cell, no_wrap=True) for cell in (mark, *cells)), style=style)
        self._console.print(table)

    def _lines(self, lines: Sequence[str], style: str) -> None:
        for line in lines:
            # a path that is wider than the terminal must stay one line, to be copied
            self._console.print(line, style=style, soft_wrap=True, markup=False)


_STYLES: Final[dict[Tone, str]] = {'plain': '', 'quiet': 'dim', 'good': 'green', 'bad': 'bold red'}


def _wrapped(text: str, first: str, rest: str, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
