"""What runs may be called, ids and tags that every store accepts, and where they may be kept."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .errors import InvalidRunIdError

__all__ = ('MAX_RUN_ID', 'check_path', 'check_run_id', 'check_tags')

MAX_RUN_ID: Final = 128
"""How many characters a run id may have."""
MAX_TAG: Final = 128
"""How many characters a tag may have."""


def check_run_id(run_id: object) -> str:
    """Return the run id if it is one that every store accepts.

    Raises:
        InvalidRunIdError: if it is not.
    """
    if not isinstance(run_id, str):
        raise InvalidRunIdError(run_id, f'it is of type {type(run_id).__name__}; give a string.')
    if not run_id:
        raise InvalidRunIdError(run_id, 'it is empty; give at least one character.')
    if len(run_id) > MAX_RUN_ID:
        raise InvalidRunIdError(run_id, f'it has {len(run_id)} characters; give at most {MAX_RUN_ID}.')
    if run_id[0] in '. ':
        raise InvalidRunIdError(run_id, 'it begins with a dot or a space; begin with another character.')
    bad = next((c for c in run_id if c in '/\\' or unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp')), None)
    if bad is not None:
        raise InvalidRunIdError(
            run_id, f'it contains {bad!r}; give no slashes, control characters or surrogates.'
        )
    return run_id


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags, sorted, each once, if they are ones that every store accepts.

    Raises:
        ValueError: if one of them is no text, is empty, too long or has control characters or surrogates.
        TypeError: if they are not several at all.
    """
    if not isinstance(tags, Iterable):
        raise TypeError(f'tags must be several texts, got {tags!r}')
    if isinstance(tags, str):
        raise ValueError(f'tags must be several texts, got the one text {tags!r}: write [{tags!r}]')  # noqa: TRY004
    for tag in (found := list(tags)):
        if not isinstance(tag, str) or not 0 < len(tag) <= MAX_TAG:
            raise ValueError(f'a tag must be a text of 1 to {MAX_TAG} characters, got {tag!r}')
        if any(unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') for c in tag):
            raise ValueError(f'a tag must have no control characters or surrogates, got {tag!r}')
    return tuple(sorted(set(found)))


def check_path(name: str, path: Path | str) -> Path:
    """Return the path if there can be a file with it.

    Raises:
        ValueError: if it is empty, or has a NUL or what cannot be encoded.
    """
    text = os.fspath(path)
    found = Path(path)
    if not text:
        raise ValueError(f"{name} must name a file, got ''")
    try:
        bad = '\0' in text and 'a NUL'
        os.fsencode(text)
    except UnicodeEncodeError as exc:
        bad = repr(text[exc.start])
    if bad:
        raise ValueError(f'{name} must be a path, and no path has {bad}, got {text!r}')
    return found
