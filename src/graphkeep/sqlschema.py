"""The tables of a SQLite store, and the way to them from every older version."""

from __future__ import annotations

from typing import Final

__all__ = ('APPLICATION_ID', 'MIGRATIONS')

APPLICATION_ID: Final = 0x67726B70
"""Tells a store from other applications' databases (`grkp`)."""

_VERSION_1: Final = (
    # One row a run. `version` counts the writes, so that a writer knows whether it still sees the newest one.
    # What is in hand is here and not with the steps: it changes with every start, and ends with its process.
    """
    CREATE TABLE runs (
        run        INTEGER PRIMARY KEY AUTOINCREMENT,
        id         TEXT    NOT NULL UNIQUE,
        graph      TEXT,
        version    INTEGER NOT NULL DEFAULT 1,
        status     TEXT    NOT NULL,
        finished   INTEGER NOT NULL,
        steps      INTEGER NOT NULL,
        created    INTEGER,
        updated    INTEGER NOT NULL,
        fence      INTEGER NOT NULL,
        owner      TEXT,
        expires    INTEGER,
        in_hand    TEXT    NOT NULL,
        parent     TEXT,
        parent_seq INTEGER
    ) STRICT
    """,
    # Finding a run to go on with does not go through those that have ended.
    'CREATE INDEX unfinished ON runs (id) WHERE finished = 0',
    # One row a snapshot, as it is when nobody has it in hand. Times are microseconds since 1970, UTC.
    # `attempts` is only there where the other columns do not tell all of them.
    """
    CREATE TABLE steps (
        run      INTEGER NOT NULL,
        seq      INTEGER NOT NULL,
        id       TEXT    NOT NULL,
        node_id  TEXT    NOT NULL,
        kind     TEXT    NOT NULL,
        status   TEXT    NOT NULL,
        start_ts INTEGER,
        duration REAL,
        attempt  INTEGER NOT NULL,
        owner    TEXT,
        attempts TEXT,
        body     INTEGER NOT NULL,
        PRIMARY KEY (run, seq)
    ) STRICT, WITHOUT ROWID
    """,
    # State and node, or result: JSON. Written once, so that a change of status does not write them again.
    """
    CREATE TABLE bodies (
        body  INTEGER PRIMARY KEY,
        state BLOB NOT NULL,
        node  BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE tags (
        run INTEGER NOT NULL,
        tag TEXT    NOT NULL,
        PRIMARY KEY (run, tag)
    ) STRICT, WITHOUT ROWID
    """,
    'CREATE INDEX tagged ON tags (tag, run)',
)

MIGRATIONS: Final = (_VERSION_1,)
"""The statements that lead from each version to the next; `user_version` is how many were made."""
