"""The links of the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENTS: Final = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')])

_FENCED: Final = re.compile(r'^(```+|~~~+).*?^\1', re.MULTILINE | re.DOTALL)
_CODE: Final = re.compile(r'`[^`\n]*`')
_LINK: Final = re.compile(r'\]\((?!\w+:)([^()\s]+)\)')
_HEADING: Final = re.compile(r'^#+\s+(.*?)\s*$', re.MULTILINE)


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path):
    """A link within the project names a file, and a heading in it, that is there."""
    broken = [link for link in _links(document) if not _leads_somewhere(document, link)]
    assert broken == []


def _links(document: Path) -> Iterator[str]:
    prose = _CODE.sub('', _FENCED.sub('', document.read_text(encoding='utf-8')))
    return (unquote(match[1]) for match in _LINK.finditer(prose))


def _leads_somewhere(document: Path, link: str) -> bool:
    path, _, anchor = link.partition('#')
    target = (document.parent / path).resolve() if path else document
    if not target.is_relative_to(ROOT) or not target.exists():
        return False
    return not anchor or (target.suffix == '.md' and anchor in _anchors(target))


def _anchors(document: Path) -> set[str]:
    """Return what the headings of a document are called in links, as the common forges make it of them."""
    headings = _HEADING.findall(_FENCED.sub('', document.read_text(encoding='utf-8')))
    return {re.sub(r'[^\w\- ]', '', heading).strip().lower().replace(' ', '-') for heading in headings}
