"""The clock of a test, which goes when it is told to."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

__all__ = ('LEASE', 'Clock')

LEASE = 3600.0
"""The lease of the stores under test, in seconds: so long that none is renewed while a test runs."""


@dataclass(eq=False)
class Clock:
    """A clock that stands still until it is moved forward; what stores under test are given."""

    now: datetime = field(default_factory=lambda: datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC))
    """The time it shows (UTC)."""

    def __call__(self) -> datetime:
        """Return the time it shows."""
        return self.now

    def forward(self, seconds: float) -> None:
        """Move it."""
        self.now += timedelta(seconds=seconds)
