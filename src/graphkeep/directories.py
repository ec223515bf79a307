"""Directories that are made, and that last."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ('make_directory', 'sync_directory')


def make_directory(path: Path, *, durable: bool) -> None:
    """Make a directory, with those above it, if there is none; where it is to be durable, each of them lasts.

    Raises:
        NotADirectoryError: if there is a file in its place.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (
        FileExistsError
    ) as exc:  # it is a file, and "File exists" would be said of the one to be made in it
        raise NotADirectoryError(errno.ENOTDIR, f'Not a directory: {path}') from exc
    if durable:
        for made in missing:
            sync_directory(made.parent)


def sync_directory(path: Path | str) -> None:
    """Wait until the names in a directory are on the disk."""
    if os.name == 'nt':
        return  # there is no such thing there; a rename is as durable as the file system makes it
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
