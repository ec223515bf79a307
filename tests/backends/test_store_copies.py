"""A store as an object: what it is made of, and what becomes of it in a copy or in another process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import pytest

from graphkeep import FileStatePersistence, FileStore, MemoryStore, SqliteStore
from tests.backends.stores import begin

pytestmark = pytest.mark.anyio


def memory_store(_: Path, **options: Any) -> MemoryStore:
    """Make a store that is nowhere."""
    return MemoryStore(**options)


MAKERS: dict[str, Callable[..., object]] = {
    'memory': memory_store,
    'file': FileStore,
    'one file': FileStatePersistence,
    'sqlite': SqliteStore,
}


@pytest.mark.parametrize('kind', MAKERS)
def test_no_clock(tmp_path: Path, kind: str):
    """What tells no time because it cannot be asked is refused by name where it is given."""
    with pytest.raises(TypeError, match='clock must be a function that returns an aware time, got None'):
        MAKERS[kind](tmp_path / 'runs', clock=None)


async def test_copy_of_a_file_store(tmp_path: Path):
    """A `FileStore` can be sent to another process, and copied, also when it has been used."""
    store = FileStore(tmp_path)
    await begin(store, 'run', steps=1)
    await store.fork('run', into='fork')
    for copied in (pickle.loads(pickle.dumps(store)), deepcopy(store), copy(store)):  # noqa: S301 -- made here
        assert [run.id for run in await copied.runs()] == ['fork', 'run']
        assert await copied.delete('fork')
        await copied.fork('run', into='fork')


@pytest.mark.parametrize('used', [False, True])
@pytest.mark.parametrize('copied', [pickle.dumps, deepcopy])
async def test_copy_of_a_sqlite_store(tmp_path: Path, copied: Callable[[object], object], used: bool):
    """A `SqliteStore` cannot be sent to another process: who tries is told to make one there."""
    async with SqliteStore(tmp_path / 'runs.db') as store:
        if used:
            await begin(store, 'run', steps=1)
        with pytest.raises(TypeError, match=r'SqliteStore\(.*a store in each process, from the same path'):
            copied(store)


@pytest.mark.parametrize('copied', [pickle.dumps, deepcopy])
async def test_copy_of_a_memory_store(copied: Callable[[object], object]):
    """The runs of a `MemoryStore` cannot be sent to another process: who tries is told what to take."""
    store = MemoryStore()
    assert copied(store)
    await begin(store, 'run', steps=1)
    with pytest.raises(
        TypeError, match=r'runs of a MemoryStore .* memory of this process: take another store'
    ):
        copied(store)
