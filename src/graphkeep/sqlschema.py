"""The tables of a SQLite store, and the way to them from every older version."""

from __future__ import annotations

from typing import Final

__all__ = ('APPLICATION_ID', 'CHANGED', 'END_STEP', 'MIGRATIONS', 'STEP_ENDS', 'TABLES')

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

TABLES: Final = ('runs', 'steps', 'bodies', 'tags')
"""The tables that a store has, in every version."""

CHANGED: Final = 'graphkeep: somebody else has written'

STEP_ENDS: Final = (
    # What ends a step, in one statement: six calls of SQLite cost as much as what is done in them. This is
    # each connection's own, and not in the file.
    """
    CREATE TEMP VIEW step_ends AS SELECT
        NULL AS status, NULL AS steps, NULL AS updated, NULL AS fence, NULL AS owner, NULL AS expires,
        NULL AS in_hand, NULL AS run, NULL AS version,
        NULL AS ended_status, NULL AS start_ts, NULL AS duration, NULL AS attempt, NULL AS ended_owner,
        NULL AS attempts, NULL AS ended,
        NULL AS id, NULL AS node_id, NULL AS kind, NULL AS state, NULL AS node
    """,
    f"""
    CREATE TEMP TRIGGER end_step INSTEAD OF INSERT ON step_ends BEGIN
        UPDATE runs SET
            version = version + 1, status = NEW.status, steps = NEW.steps, updated = NEW.updated,
            fence = NEW.fence, owner = NEW.owner, expires = NEW.expires, in_hand = NEW.in_hand
        WHERE run = NEW.run AND version = NEW.version;
        SELECT RAISE(ABORT, '{CHANGED}') WHERE changes() = 0;
        UPDATE steps SET
            status = NEW.ended_status, start_ts = NEW.start_ts, duration = NEW.duration,
            attempt = NEW.attempt, owner = NEW.ended_owner, attempts = NEW.attempts
        WHERE run = NEW.run AND seq = NEW.ended;
        INSERT INTO bodies (state, node) VALUES (NEW.state, NEW.node);
        INSERT INTO steps (run, seq, id, node_id, kind, status, attempt, body)
        VALUES (
            NEW.run, NEW.steps, CAST(NEW.id AS TEXT), CAST(NEW.node_id AS TEXT), NEW.kind, 'created', 0,
            last_insert_rowid()
        );
    END
    """,  # noqa: S608 -- of constants
)
"""The statements that make `END_STEP` possible in a connection."""

END_STEP: Final = (
    'INSERT INTO step_ends VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)'
)
"""What ends a step: the row of the run, the step that ended and its number, and what comes next.

Raises `IntegrityError` with the message `CHANGED` if the row of the run has another version.
"""
