"""Directories that are made last where that is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from graphkeep import SqliteStore
from graphkeep.directories import make_directory
from tests.backends.faults import Call, FaultyOs

RUN = '[{"state": null, "node": {"node_id": "A"}, "kind": "node", "id": "A:1"}]'


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The directories that were synced, in order."""
    synced: list[str] = []
    opened: dict[int, str] = {}

    def watch(call: Call) -> Any:
        result = call()
        if call.name == 'open':
            opened[result] = os.fspath(call.args[0])
        elif call.name == 'fsync':
            synced.append(opened[call.args[0]])
        return result

    monkeypatch.setattr('graphkeep.directories.os', FaultyOs(watch))
    return synced


@pytest.mark.skipif(os.name == 'nt', reason='directories are not synced there')
@pytest.mark.parametrize('durable', [True, False])
def test_parents_are_synced(tmp_path: Path, synced: list[str], durable: bool):
    """The parent of each directory that is made is synced, and of none that was there."""
    make_directory(tmp_path / 'a' / 'b', durable=durable)
    make_directory(tmp_path / 'a' / 'b', durable=durable)
    assert (tmp_path / 'a' / 'b').is_dir()
    assert set(synced) == ({str(tmp_path), str(tmp_path / 'a')} if durable else set())


def test_file_in_the_way(tmp_path: Path):
    """A file in the place of a directory is named."""
    (tmp_path / 'a').write_text('')
    with pytest.raises(NotADirectoryError, match='Not a directory: '):
        make_directory(tmp_path / 'a', durable=False)


@pytest.mark.skipif(os.name == 'nt', reason='directories are not synced there')
@pytest.mark.anyio
@pytest.mark.parametrize('first', ['read', 'write'])
async def test_sqlite_store(tmp_path: Path, synced: list[str], first: str):
    """A durable SQLite store syncs each directory that it makes, whatever it is asked first."""
    async with SqliteStore(tmp_path / 'a' / 'b' / 'runs.db', durability='full') as store:
        await (store.runs() if first == 'read' else store.delete('run'))
    assert {str(tmp_path), str(tmp_path / 'a')} <= set(synced)


@pytest.mark.skipif(os.name == 'nt', reason='directories are not synced there')
@pytest.mark.anyio
@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_log_of_a_sqlite_store(tmp_path: Path, synced: list[str], durability: Any):
    """Before the first commit returns, that there is a log is on the disk; each time that it is a new one."""
    (tmp_path / 'there').mkdir()
    (tmp_path / 'link.db').symlink_to(tmp_path / 'there' / 'runs.db')
    store = SqliteStore(tmp_path / 'link.db', durability=durability)
    for _ in range(2):
        synced.clear()
        await store.import_run(RUN, run_id='run')
        assert (tmp_path / 'there' / 'runs.db-wal').exists()
        assert synced == ([os.path.realpath(tmp_path / 'there')] if durability == 'full' else [])
        await store.delete('run')
        await store.aclose()
        assert not (tmp_path / 'there' / 'runs.db-wal').exists()
