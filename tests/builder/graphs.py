"""The corpus: graphs of every kind, each of which comes to one result however its tasks are scheduled."""

from __future__ import annotations

from .corpus import (
    broadcasts,
    decisions,
    empty,
    ends,
    inside,
    joins,
    linear,
    looping,
    maps,
    mixed,
    states,
    stopping,
    streaming,
    values,
    waiting,
)
from .corpus.cases import CASES, EXTRA, KINDS, Case, delays, plain

__all__ = ('CASES', 'EXTRA', 'KINDS', 'MODULES', 'Case', 'delays', 'plain')

MODULES = (
    linear,
    values,
    waiting,
    decisions,
    broadcasts,
    maps,
    empty,
    joins,
    inside,
    stopping,
    ends,
    looping,
    mixed,
    streaming,
    states,
)
"""Where the graphs are; importing them has registered them."""
