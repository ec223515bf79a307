"""Reads the runs of a SQLite store with nothing but SQL."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

__all__ = ('integrity', 'owner', 'stored')

_ROWS = """
SELECT steps.id, kind, coalesce(json_extract(held.value, '$[1]'), steps.status), node
FROM steps JOIN runs USING (run) JOIN bodies USING (body)
LEFT JOIN json_each(runs.in_hand) held ON json_extract(held.value, '$[0]') = seq
WHERE runs.id = ? ORDER BY seq
"""


def stored(path: Path, run_id: str) -> list[dict[str, Any]]:
    """Return the snapshots of the run: id, kind, status, and node or result."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as db:
        if not db.execute('PRAGMA user_version').fetchone()[0]:
            return []
        return [
            {'id': id_, 'kind': kind, 'status': status, 'node': json.loads(node)}
            for id_, kind, status, node in db.execute(_ROWS, (run_id,))
        ]


def owner(path: Path, run_id: str) -> str | None:
    """Return the id of the owner who has the run in hand, `None` if nobody has."""
    if not stored(path, run_id):
        return None
    with closing(sqlite3.connect(path)) as db:
        (found,) = db.execute('SELECT owner FROM runs WHERE id = ?', (run_id,)).fetchone()
        return None if found is None else json.loads(found)['id']


def integrity(path: Path) -> str:
    """Return what SQLite says of the file's integrity."""
    with closing(sqlite3.connect(path)) as db:
        return ' '.join(text for (text,) in db.execute('PRAGMA integrity_check'))
