"""What becomes of SQLite files that are open when the process is forked.

Nothing that SQLite has open may be carried over a fork: the locks of a process are not its child's, but
SQLite believes so, for it remembers them in memory; see "Carrying an open database file across a fork" in
https://sqlite.org/howtocorrupt.html. So every file is closed before, and opened again on either side when it
is used next.
"""

from __future__ import annotations

import errno
import os
import signal
import weakref
from pathlib import Path
from threading import RLock, Timer, get_ident
from time import monotonic
from typing import Final, Protocol

from .errors import StorageError

__all__ = ('Forkable', 'refuse_carried', 'remaining', 'watch')

_PATIENCE: Final = 1.0  # seconds to wait, at a fork, for what is under way in other threads
_SOON: Final = 0.01  # seconds after which this is not the one that is interrupted any more


class Forkable(Protocol):
    """What has a SQLite file open."""

    path: Path

    def pause(self, until: float) -> bool:
        """Close the file, and keep everybody from opening it until `resume`.

        Returns:
            Whether that was so by the given moment (of `monotonic`); if not, nothing has changed.
        """
        ...

    def resume(self) -> None:
        """Let it be opened again."""
        ...

    def forked(self, *, closed: bool) -> None:
        """Begin anew in a child; unless it was closed before, what was open is the parent's."""
        ...


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_mutex = RLock()  # who may look at these
_paused: dict[int, list[Forkable]] = {}  # by threads that are about to fork
_interrupted: set[int] = set()  # threads that were interrupted meanwhile
_carried: set[tuple[int, int]] = set()  # files that this process must not open: device and number


def watch(forkable: Forkable) -> None:
    """Have it closed before each fork, for as long as it is there."""
    with _mutex:
        _watched.add(forkable)


def remaining(until: float) -> float:
    """Return for how many seconds to wait for something, until that moment."""
    return max(0.0, until - monotonic())


def refuse_carried(path: Path) -> None:
    """Refuse a file that could not be closed before this process was forked.

    Raises:
        StorageError: if it is one.
    """
    if _carried and _identity(path) in _carried:
        problem = (
            'it was in use while this process was forked: fork before the store is used, or start '
            "processes with 'spawn' or 'forkserver'"
        )
        raise StorageError(str(path), 'open', OSError(errno.EBUSY, problem))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:  # so it is not there either for whoever opens it
        return None
    return status.st_dev, status.st_ino


def _before() -> None:
    until = monotonic() + _PATIENCE
    paused = _paused[get_ident()] = []
    try:
        with _mutex:
            watched = sorted(_watched, key=id)  # in one order, for another thread may fork as well
        for forkable in watched:
            if forkable.pause(until):
                paused.append(forkable)
    except KeyboardInterrupt:  # which would be lost here: nothing that is raised here reaches anybody
        _interrupted.add(get_ident())


def _after_in_parent() -> None:
    paused = _paused.get(get_ident(), [])
    while paused:
        paused[-1].resume()
        paused.pop()
    _paused.pop(get_ident(), None)
    if get_ident() in _interrupted:
        _interrupted.discard(get_ident())
        Timer(_SOON, signal.pthread_kill, (get_ident(), signal.SIGINT)).start()


def _after_in_child() -> None:
    global _mutex
    _mutex = RLock()  # another thread of the parent may have had it
    _interrupted.clear()
    paused = _paused.pop(get_ident(), ())
    _paused.clear()
    for forkable in tuple(_watched):
        closed = forkable in paused
        if not closed and (identity := _identity(forkable.path)) is not None:
            _carried.add(identity)
        forkable.forked(closed=closed)


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
    # once more, for what the first call has not come to: an interrupt that came while the process was forked
    # is raised at its beginning, or in it, and lost
    os.register_at_fork(after_in_parent=_after_in_parent)
