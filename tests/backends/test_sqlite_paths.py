"""A SQLite store where no store can be: each says what is wrong and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphkeep import FileStatePersistence, FileStore, SqliteStore, StorageError, run_or_resume, sqlopen
from graphkeep.demo.graph import report_graph


async def opening(path: Path) -> StorageError:
    """Return the error that opening a store raises."""
    with pytest.raises(StorageError) as caught:
        await SqliteStore(path).runs()
    return caught.value


@pytest.mark.anyio
async def test_a_directory_is_told_with_what_to_give(tmp_path: Path):
    """Who gives a directory is told to give a file."""
    error = await opening(tmp_path)
    assert error.errno == errno.EISDIR
    assert f'could not open {tmp_path}: Is a directory: give the path of a file' in str(error)


@pytest.mark.anyio
async def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path):
    """Where the store's directory is a file, that file is named, and left as it is."""
    file = tmp_path / 'notes.txt'
    file.write_text('mine')
    error = await opening(file / 'runs.db')
    assert error.errno == errno.ENOTDIR
    assert f'Not a directory: {file}' in str(error)
    assert file.read_text() == 'mine'


@pytest.mark.anyio
async def test_a_sqlite_that_is_too_old_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Python whose SQLite cannot make the tables says so, and makes nothing."""
    monkeypatch.setattr(sqlopen.sqlite3, 'sqlite_version_info', (3, 34, 1))
    error = await opening(tmp_path / 'runs.db')
    assert 'a store needs 3.37 or newer' in str(error)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_no_file():
    """SQLite's own name for a database in memory is refused; a file of that name would surprise."""
    with pytest.raises(ValueError, match=r'take MemoryStore\(\)'):
        SqliteStore(':memory:')


MAKERS: dict[str, Callable[[str], object]] = {
    'path': SqliteStore,
    'directory': FileStore,
    'json_file': FileStatePersistence,
}


@pytest.mark.parametrize('name', MAKERS)
@pytest.mark.parametrize(
    'path',
    [
        'runs\0.db',
        pytest.param('runs\ud800.db', marks=pytest.mark.skipif(os.name == 'nt', reason='a name there')),
    ],
    ids=ascii,
)
def test_a_name_that_no_file_can_have(name: str, path: str):
    """A path that no file can have is refused where it is given, with what is wrong in it."""
    told = f'{name} must be a path, and no path has .*, got {path!r}'.replace('\\', r'\\')
    with pytest.raises(ValueError, match=told):
        MAKERS[name](path)


@pytest.mark.parametrize('name', ['path', 'json_file'])
def test_no_name(name: str):
    """An empty path, as of a setting that is not there, is not taken for the current directory."""
    with pytest.raises(ValueError, match=f"{name} must name a file, got ''"):
        MAKERS[name]('')


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != 'linux', reason='names are text there')
async def test_a_name_that_is_no_text(tmp_path: Path):
    """A name of any bytes, as `os.listdir` shows it, is one like others."""
    async with SqliteStore(tmp_path / 'runs\udcff.db') as store:
        assert await store.runs() == []
    assert os.listdir(os.fsencode(tmp_path)) == [b'runs\xff.db']


@pytest.mark.anyio
async def test_a_store_is_no_persistence(tmp_path: Path):
    """Who gives a store where a run is meant is told how to get the run."""
    store: Any = SqliteStore(tmp_path / 'runs.db')
    with pytest.raises(TypeError, match=r'got SqliteStore\(.*\): give .* `store\.run\(run_id\)`'):
        await run_or_resume(report_graph, persistence=store)
