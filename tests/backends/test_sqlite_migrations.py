"""The way from an older schema to this one: ordered, whole or not at all, and once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from graphkeep import SqliteStore, StorageError, UnusableStoreError, sqlopen
from graphkeep.sqlschema import MIGRATIONS
from tests.backends.sqlfaults import watch
from tests.crash.children import PROCESSES
from tests.rawsqlite import integrity

LATER = (
    *MIGRATIONS,
    ('ALTER TABLE runs ADD COLUMN colour TEXT', "UPDATE runs SET colour = 'blue'"),
    ('ALTER TABLE runs ADD COLUMN shade TEXT', "UPDATE runs SET shade = 'dark ' || colour"),
)
"""What a later graphkeep might have; the last one needs the one before it."""


def schema(path: Path) -> list[tuple[Any, ...]]:
    """Return what there is in the file, and of which version it is."""
    with closing(sqlite3.connect(path)) as db:
        version = db.execute('PRAGMA user_version').fetchone()
        return [version, *db.execute('SELECT type, name, sql FROM sqlite_schema ORDER BY type, name')]


def colours(path: Path) -> list[tuple[Any, ...]]:
    """Return what the migrations have made of the runs."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute('SELECT id, colour, shade FROM runs ORDER BY id').fetchall()


def columns(path: Path, table: str) -> list[tuple[Any, ...]]:
    """Return the columns of a table."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f'PRAGMA table_info({table})').fetchall()


async def filled(path: Path) -> None:
    """Make a store of this version with a run in it."""
    async with SqliteStore(path) as store:
        await store.import_run(
            '[{"state": null, "node": {"node_id": "A"}, "kind": "node", "id": "A:1"}]', run_id='run'
        )


@pytest.mark.anyio
async def test_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each migration finds what those before it have made, and what was stored is still there."""
    path = tmp_path / 'runs.db'
    await filled(path)
    monkeypatch.setattr(sqlopen, 'MIGRATIONS', LATER)
    async with SqliteStore(path) as store:
        assert [info.id for info in await store.runs()] == ['run']
    assert colours(path) == [('run', 'blue', 'dark blue')]
    assert schema(path)[0] == (len(LATER),)


@pytest.mark.anyio
async def test_fresh_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A new file has the schema that an old one comes to."""
    await filled(tmp_path / 'old.db')
    monkeypatch.setattr(sqlopen, 'MIGRATIONS', LATER)
    for name in ('old.db', 'new.db'):
        async with SqliteStore(tmp_path / name) as store:
            await store.runs()
    assert schema(tmp_path / 'old.db') == schema(tmp_path / 'new.db')


@pytest.mark.anyio
async def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If one migration fails, none was made: the store is as it was, and can be used as before."""
    path = tmp_path / 'runs.db'
    await filled(path)
    before = schema(path)
    with monkeypatch.context() as later:
        later.setattr(sqlopen, 'MIGRATIONS', (*LATER, ('UPDATE nothing SET at_all = 1',)))
        with pytest.raises(StorageError, match='nothing'):
            await SqliteStore(path).runs()
    assert schema(path) == before
    assert 'colour' not in [name for _, name, *_ in columns(path, 'runs')]
    async with SqliteStore(path) as store:
        assert [info.id for info in await store.runs()] == ['run']


@pytest.mark.anyio
async def test_from_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A store of a later version is refused, and stays as it is."""
    path = tmp_path / 'runs.db'
    with monkeypatch.context() as later:
        later.setattr(sqlopen, 'MIGRATIONS', LATER)
        await filled(path)
    before = schema(path)
    with pytest.raises(UnusableStoreError, match=f'version {len(LATER)}'):
        await SqliteStore(path).runs()
    assert schema(path) == before


@pytest.mark.anyio
@pytest.mark.parametrize('who', ['another application', 'a later version'])
async def test_somebody_elses_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str):
    """A file that becomes somebody else's just before it would be migrated is refused, and stays theirs."""
    path = tmp_path / 'runs.db'
    statements = watch(monkeypatch)

    def come_first(sql: str) -> None:
        if sql != 'BEGIN IMMEDIATE':
            return
        statements.hook = statements.nothing
        if who == 'a later version':
            with monkeypatch.context() as later:
                later.setattr(sqlopen, 'MIGRATIONS', LATER)
                sqlopen.open_file(path).close()
        else:
            with closing(sqlite3.connect(path)) as db:
                db.execute('CREATE TABLE notes (text)')
        found.extend(schema(path))

    found: list[Any] = []
    statements.hook = come_first
    told = f'has version {len(LATER)}' if who == 'a later version' else 'is a database of another application'
    with pytest.raises(UnusableStoreError, match=rf'runs\.db {told}'):
        await SqliteStore(path).runs()
    assert schema(path) == found
    assert len(found) > 1


def open_later(path: Path, barrier: Any, far: Any) -> None:
    """Open the store as a later graphkeep does, at the same moment as the others."""
    import anyio

    sqlopen.MIGRATIONS = LATER  # type: ignore[misc]

    async def main() -> list[str]:
        async with SqliteStore(path) as store:
            barrier.wait(30)
            return [info.id for info in await store.runs()]

    try:
        far.send(anyio.run(main))
    except BaseException as exc:
        far.send(repr(exc))
        raise


@pytest.mark.anyio
async def test_several_at_once(tmp_path: Path):
    """Of processes that open an old file at once one migrates it, and all can use it."""
    path = tmp_path / 'runs.db'
    await filled(path)
    barrier = PROCESSES.Barrier(4)
    pipes = [PROCESSES.Pipe() for _ in range(4)]
    children = [PROCESSES.Process(target=open_later, args=(path, barrier, far)) for _, far in pipes]
    for child in children:
        child.start()
    assert [near.recv() for near, _ in pipes] == [['run']] * 4
    for child in children:
        child.join()
    assert colours(path) == [('run', 'blue', 'dark blue')]
    assert integrity(path) == 'ok'
