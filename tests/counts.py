"""How often the tests that try one thing many times do so: fully when asked to, a tenth as often in CI."""

from __future__ import annotations

import os
from typing import Final

__all__ = ('FULL', 'count')

FULL: Final = os.environ.get('GRAPHKEEP_FULL') == '1'
"""Whether the full counts are asked for (`nox -s full`)."""


def count(full: int) -> int:
    """Return `full` where the full counts are asked for, else a tenth of it, and at least 1."""
    return full if FULL else max(1, full // 10)
