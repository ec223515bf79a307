"""Reads a run's file, and what is in hand beside it, with nothing but JSON."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

__all__ = ('in_hand', 'lock_file', 'newest_entry', 'stored')


def lock_file(file: Path) -> Path:
    """Return the path of the lock file."""
    return file.with_name(f'.{file.name}.lock')


def newest_entry(file: Path) -> dict[str, Any]:
    """Return the newest entry in the lock file that was written to its end, of whatever file it is about."""
    slots = lock_file(file).read_bytes()[4096:] if lock_file(file).exists() else b''
    entries: list[dict[str, Any]] = [
        json.loads(line[9:])
        for line in (slots[:4096].partition(b'\n')[0], slots[4096:].partition(b'\n')[0])
        if line[:8] == b'%08x' % zlib.crc32(line[9:]) and line[9:]
    ]
    none: dict[str, Any] = {'number': 0, 'last': 0, 'rows': []}
    return max(entries, key=lambda entry: entry['number'], default=none)


def in_hand(file: Path) -> list[dict[str, Any]]:
    """Return the snapshots that the newest entry in the lock file says are in hand."""
    return newest_entry(file)['rows']


def stored(file: Path) -> list[dict[str, Any]]:
    """Return the snapshots of the run: those in the file, and on top of them what is in hand."""
    rows: list[dict[str, Any]] = json.loads(file.read_bytes()) if file.exists() else []
    fence = max((row.get('graphkeep', {}).get('fence', 0) for row in rows), default=0)
    first = rows[0].get('graphkeep', {}).get('seq', 1) if rows else 1
    entry = newest_entry(file)
    held = {int(row['seq']) - first: row for row in entry['rows']}
    if entry['last'] != first + len(rows) - 1:
        return rows
    for position, row in held.items():
        filed = rows[position]
        attempt = filed.get('graphkeep', {}).get('attempt', int(filed.get('start_ts') is not None))
        if [filed.get('id'), filed.get('status'), attempt] != [row['id'], *row['was']]:
            return rows
        if row['graphkeep']['fence'] <= fence:
            return rows
    for position, row in held.items():
        rows[position] |= {key: value for key, value in row.items() if key not in ('seq', 'was')}
    return rows
