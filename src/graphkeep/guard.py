"""`Guard`: what cancels a node when its run was taken over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

from .errors import OwnershipLostError

__all__ = ('Guard',)


class Guard(ABC):
    """Cancels a node when its run was taken over."""

    lost: OwnershipLostError | None = None
    """Why it cancelled the node."""

    @abstractmethod
    def __enter__(self) -> None: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        """Return whether the exception is the cancellation that this guard itself caused."""

    @abstractmethod
    def cancel(self, exc: OwnershipLostError) -> None:
        """Cancel the node because of this; from any thread, without waiting."""
