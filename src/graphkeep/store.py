"""`Store`: many runs, each under its id."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from typing import Any, Final

from .errors import InvalidRunIdError
from .stored import StoredStatePersistence

__all__ = ('MAX_RUN_ID', 'Store', 'check_run_id')

MAX_RUN_ID: Final = 128
"""How many characters a run id may have."""


class Store(ABC):
    """A place that keeps many runs."""

    def run(self, run_id: str) -> StoredStatePersistence[Any, Any]:
        """Return the persistence of one run; the run begins to exist with its first snapshot.

        Args:
            run_id: Any text of 1 to 128 characters that has no control characters and no slashes, and begins
                neither with a dot nor with a space.

        Raises:
            InvalidRunIdError: if the id is not of that form.
        """
        return self._open(check_run_id(run_id))

    @abstractmethod
    def _open(self, run_id: str) -> StoredStatePersistence[Any, Any]:
        """Return the persistence of the run with this id, which has been checked."""


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
