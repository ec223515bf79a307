"""Stands for an argument that was not given, where `None` means something."""

from __future__ import annotations

from typing import Any, Final

__all__ = ('UNSET', 'Unset')


class Unset:
    """The type of an argument that was not given."""


UNSET: Final[Any] = Unset()
