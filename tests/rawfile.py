"""Reads a run's file, and what is in hand beside it, with nothing but JSON."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

__all__ = ('in_hand', 'lock_file', 'stored')


def lock_file(file: Path) -> Path:
    """Return the path of the lock file."""
    return file.with_name(f'.{file.name}.lock')


def in_hand(file: Path) -> list[dict[str, Any]]:
    """Return what the newest entry in the lock file says, of whatever file it was about."""
    slots = lock_file(file).read_bytes()[4096:] if lock_file(file).exists() else b''
    entries: list[Any] = [
        json.loads(line[9:])
        for line in (slots[:4096].partition(b'\n')[0], slots[4096:].partition(b'\n')[0])
        if line[:8] == b'%08x' % zlib.crc32(line[9:])  # else it was not written to its end
    ]
    return max(entries, key=lambda entry: entry['number'])['rows'] if entries else []


def stored(file: Path) -> list[dict[str, Any]]:
    """Return the snapshots of the run: those in the file, and on top of them what is in hand."""
    rows: list[dict[str, Any]] = json.loads(file.read_bytes()) if file.exists() else []
    fence = max((row.get('graphkeep', {}).get('fence', 0) for row in rows), default=0)
    held = in_hand(file)
    for row in held:
        filed = rows[int(row['seq']) - 1] if int(row['seq']) <= len(rows) else {}
        attempt = filed.get('graphkeep', {}).get('attempt', int(filed.get('start_ts') is not None))
        if [filed.get('id'), filed.get('status'), attempt] != [row['id'], *row['was']]:
            return rows
        if row['graphkeep']['fence'] <= fence:
            return rows
    for row in held:
        rows[int(row['seq']) - 1] |= {key: value for key, value in row.items() if key not in ('seq', 'was')}
    return rows
