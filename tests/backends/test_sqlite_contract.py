"""The contract of a run, kept by `SqliteStore`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from graphkeep import SqliteStore
from graphkeep.commit import Commit, Receipt
from tests.backends.contract import KeptInStore, Raw, RunUnderTest

_RAW = """
SELECT steps.id, kind, coalesce(json_extract(held.value, '$[1]'), steps.status)
FROM steps JOIN runs USING (run)
LEFT JOIN json_each(runs.in_hand) held ON json_extract(held.value, '$[0]') = seq
WHERE runs.id = 'run' ORDER BY seq
"""


def in_sqlite(store: SqliteStore) -> RunUnderTest:
    """Return a run in a SQLite store, which the raw reader reads with SQL."""

    async def commit(commit_: Commit) -> Receipt:
        return store.run('run')._backend.commit(commit_)

    def raw() -> list[Raw]:
        if not store.path.exists():
            return []
        with closing(sqlite3.connect(store.path)) as db:
            if not db.execute('PRAGMA user_version').fetchone()[0]:
                return []
            return [Raw(*row) for row in db.execute(_RAW)]

    return RunUnderTest(lambda: store.run('run'), raw, commit)


class TestSqlite(KeptInStore):
    """`SqliteStore`, which survives the death of its process."""

    def make_run(self, directory: Path) -> RunUnderTest:
        return in_sqlite(SqliteStore(directory / 'runs.db'))


class TestSqliteFull(KeptInStore):
    """`SqliteStore(durability='full')`, which survives a loss of power."""

    def make_run(self, directory: Path) -> RunUnderTest:
        return in_sqlite(SqliteStore(directory / 'runs.db', durability='full'))
