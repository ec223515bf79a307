"""Who owns a run: a process on a host, and whether it still exists.

Process ids are reused, so a process is known by its id and the moment it started; hosts and containers share
names, so a host is known by its boot and its process namespace. Where the platform does not tell these
(outside Linux), an owner is judged by its lease alone.
"""

from __future__ import annotations

import os
import socket
import sys
import weakref
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

__all__ = ('Owner', 'is_gone', 'new_owner')


@dataclass(frozen=True, slots=True)
class Owner:
    """One holder of runs: an instance of a persistence in a process."""

    id: str
    """Tells apart the holders within one process."""
    host: str
    """The host's name, for people."""
    pid: int
    """The process id."""
    domain: str = ''
    """Within which process ids mean the same processes (boot and namespace); empty if not known."""
    started: str = ''
    """When the process started, in the platform's own terms; empty where that is not known."""

    @property
    def is_here(self) -> bool:
        """Whether it is a holder in this process."""
        return self.id in _here

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host}'


_here: weakref.WeakValueDictionary[str, object] = weakref.WeakValueDictionary()


def new_owner(holder: object) -> Owner:
    """Make an owner in this process; it is gone when `holder` is, at the latest with the process."""
    pid = os.getpid()
    owner = Owner(uuid4().hex, socket.gethostname(), pid, _domain(), _started(pid) or '')
    _here[owner.id] = holder
    return owner


def is_gone(owner: Owner) -> bool:
    """Whether it is certain that the owner no longer exists; `False` where that cannot be known from here."""
    if not owner.domain or owner.domain != _domain():
        return False
    try:
        os.kill(owner.pid, 0)  # asks whether there is such a process, and does nothing to it
    except ProcessLookupError:
        return True
    except OSError:
        pass  # there is one, and it is somebody else's
    started = _started(owner.pid)
    if started is None:
        return False
    if owner.pid == os.getpid() and owner.started == started:
        return owner.id not in _here
    return owner.started != started


@cache
def _domain() -> str:
    if not sys.platform.startswith('linux'):
        return ''
    try:
        boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot}/{os.readlink("/proc/self/ns/pid")}' if _started(os.getpid()) else ''
    except OSError:
        return ''


def _started(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; empty for a zombie, `None` if not known."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_bytes()
    except OSError:
        return None
    # the command's name, in brackets, may be anything, and end within a character: count from behind it
    fields = stat[stat.rindex(b')') + 2 :].decode('ascii').split()
    return '' if fields[0] in 'ZX' else fields[19]
