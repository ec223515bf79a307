"""What somebody does to a run's file or its lock file: deletes, copies, puts back, rewrites."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from graphkeep import (
    CorruptSnapshotError,
    FileStore,
    OwnershipLostError,
    RunOwnedError,
    StorageError,
)
from tests.backends.counting import (
    FIRST_SLOT,
    Count,
    Tally,
    begun,
    ended,
    finish,
    opened,
    overwrite,
    statuses,
)
from tests.backends.faults import Call, FaultyOs, put_os
from tests.rawfile import in_hand, lock_file

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Be the path of a file that does not exist yet."""
    return tmp_path / 'run.json'


async def test_touched(file: Path):
    """A file that was only touched, or replaced by an equal one, is the same run in the same hands."""
    persistence = await begun(file)
    os.utime(file)
    assert await statuses(file) == ['pending']
    shutil.copy(file, file.with_suffix('.copy'))
    file.with_suffix('.copy').replace(file)
    assert await statuses(file) == ['pending']
    with pytest.raises(RunOwnedError):
        await finish(file)
    del persistence
    assert await finish(file) == [1, 2, 3]


async def test_written_by_somebody_else(file: Path):
    """What pydantic-graph 1.x has made of the run is not undone by what was in hand before."""
    persistence = await begun(file)
    rows = json.loads(file.read_bytes())
    rows[0]['status'] = 'success'
    rows.append(rows[0] | {'id': 'Count:2', 'status': 'created', 'node': {'number': 2, 'node_id': 'Count'}})
    rows[1]['state'] = {'numbers': [1]}
    file.write_text(json.dumps(rows))
    assert await statuses(file) == ['success', 'created']
    ran: list[int] = []
    assert await finish(file, ran) == [1, 2, 3]
    assert ran == [2, 3]
    await persistence.release()  # has no effect on a run that goes on elsewhere
    assert await statuses(file) == ['success'] * 4


@pytest.mark.parametrize('moment', ['before', 'after the step'])
async def test_deleted(file: Path, moment: str):
    """A new run in the place of one that was deleted is in nobody's hands."""
    persistence = await begun(file)
    if moment != 'before':
        (record,) = await persistence.load_history()
        async with persistence.record_run(record.id):
            pass
        await persistence.snapshot_node(Tally(), Count(2))
    file.unlink()
    assert await statuses(file) == []
    assert await finish(file) == [1, 2, 3]


async def test_older_file(file: Path):
    """An older file put in the place of the newer is the run as it was then, free for anybody."""
    older = file.with_name('older.json')
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    shutil.copy(file, older)
    assert await finish(file) == [1, 2, 3]
    older.replace(file)
    assert await statuses(file) == ['created']
    ran: list[int] = []
    assert await finish(file, ran) == [1, 2, 3]
    assert ran == [1, 2, 3]


@contextmanager
def unnoted(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Let the disk fail between a write of the file and the note that it ended something."""
    replaced: list[bool] = []

    def fail(call: Call) -> Any:
        if call.name == 'lseek' and replaced:
            raise OSError(errno.EIO, 'Input/output error')
        replaced.extend([True] if call.name == 'replace' else [])
        return call()

    with monkeypatch.context() as patch:
        put_os(patch, FaultyOs(fail))
        yield


async def test_given_back_unnoted(file: Path, monkeypatch: pytest.MonkeyPatch):
    """What was given back is free, even if only the file says so."""
    persistence = await begun(file)
    with unnoted(monkeypatch):
        await persistence.release()
    assert in_hand(file)
    assert await statuses(file) == ['created']
    assert opened(file)._backend.tail().ownership.owner is None
    assert await finish(file) == [1, 2, 3]


@pytest.mark.parametrize('disk', ['works', 'fails'])
async def test_as_it_was_before_the_claim(file: Path, monkeypatch: pytest.MonkeyPatch, disk: str):
    """What has ended is not in hand again when the file is put back that it was claimed in.

    If that it ended could not be noted, the next that stores something notes it.
    """
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    older = shutil.copy(file, file.with_name('older.json'))
    assert await persistence.load_next()
    if disk == 'works':
        await ended(persistence)
    else:
        with unnoted(monkeypatch):
            await ended(persistence)
        assert in_hand(file)
        await opened(file).snapshot_node(Tally(), Count(3))
    assert in_hand(file) == []
    Path(older).replace(file)
    assert await statuses(file) == ['created']
    ran: list[int] = []
    assert await finish(file, ran) == [1, 2, 3]
    assert ran == [1, 2, 3]
    await persistence.release()


@pytest.mark.parametrize('moment', ['given back', 'in hand'])
async def test_rewritten_by_pydantic_graph(file: Path, moment: str):
    """What pydantic-graph 1.x has rewritten without our keys, and added to, is in nobody's hands."""
    persistence = await begun(file)
    if moment == 'given back':
        await persistence.release()
    (row,) = json.loads(file.read_bytes())
    del row['graphkeep']
    file.write_text(json.dumps([row] if moment == 'given back' else [row, row | {'id': 'Count:2'}]))
    assert set(await statuses(file)) == {'created'}
    assert await opened(file).load_next()
    await persistence.release()


async def test_imported_in_its_place(file: Path):
    """A run that is imported in the place of a file that was deleted is in nobody's hands."""
    store = FileStore(file.parent)
    await opened(file).snapshot_node(Tally(), Count())
    exported = await store.export('run')
    persistence = opened(file)
    assert await persistence.load_next()
    file.unlink()
    await store.import_run(exported, run_id='run')
    assert in_hand(file) == []
    assert await statuses(file) == ['created']
    assert await finish(file) == [1, 2, 3]
    await persistence.release()


async def test_copied_alone(file: Path):
    """A copy of the file alone is in nobody's hands, whatever the run is doing."""
    persistence = await begun(file)
    copy = file.with_name('copy.json')
    shutil.copy(file, copy)
    assert await statuses(copy) == ['created']
    assert await finish(copy) == [1, 2, 3]
    assert await statuses(file) == ['pending']
    del persistence


async def test_lock_file_deleted(file: Path):
    """Without its lock file a run is in nobody's hands, and what a former owner writes is refused."""
    persistence = await begun(file)
    (record,) = await persistence.load_history()
    lock_file(file).unlink()
    assert await statuses(file) == ['created']
    with pytest.raises(OwnershipLostError):
        async with persistence.record_run(record.id):
            pass
    assert await finish(file) == [1, 2, 3]


async def test_lock_file_deleted_and_taken(file: Path):
    """Where the number of the taking begins anew without a lock file, only one of two has the run."""
    persistence, other = await begun(file), opened(file)
    (record,) = await persistence.load_history()
    running = persistence.record_run(record.id)
    await running.__aenter__()
    lock_file(file).unlink()
    assert await other.load_next()
    assert [row['graphkeep']['fence'] for row in in_hand(file)] == [1]
    with pytest.raises(OwnershipLostError):
        persistence._claims._renew()
    await ended(other)
    with pytest.raises(OwnershipLostError):  # noqa: PT012 -- the one or the other
        await running.__aexit__(None, None, None)
        await persistence.snapshot_node(Tally(), Count(7))
    assert await statuses(file) == ['success', 'created']
    assert await finish(file) == [2, 3]


async def test_unreadable_lock_file(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Who may read the run's file but not its lock file is told what the file says."""
    persistence = await begun(file)

    def refuse(call: Call) -> Any:
        if call.name == 'open' and call.args[0] == str(lock_file(file)):
            raise PermissionError(errno.EACCES, 'Permission denied')
        return call()

    with monkeypatch.context() as patch:
        put_os(patch, FaultyOs(refuse))
        assert await statuses(file) == ['created']
        with pytest.raises(StorageError):
            await opened(file).load_next()
    await persistence.release()


async def test_foreign_entry(file: Path):
    """An entry that is whole, but of another make, is reported and left alone."""
    persistence = await begun(file)
    entry = b'{"number":9,"rows":[{"seq":1,"was":"new"}]}'
    overwrite(file, FIRST_SLOT, b'%08x %b\n' % (zlib.crc32(entry), entry))
    for use in (persistence.load_history, opened(file).load_all, opened(file).load_next):
        for _ in range(2):
            with pytest.raises(
                CorruptSnapshotError, match=r'\.run\.json\.lock.*no lock file of this version'
            ):
                await use()
    lock_file(file).unlink()
    assert await statuses(file) == ['created']


@pytest.mark.parametrize('entry', [b'{"version":2}', b'{"number":9,"rows":[]}', b'[1]', b'new'])
async def test_foreign_entry_without_a_run(file: Path, entry: bytes):
    """An entry of another make is reported where no run is stored yet as well, as often as it is found."""
    lock_file(file).write_bytes(b'\0' * FIRST_SLOT + b'%08x %b\n' % (zlib.crc32(entry), entry))
    persistence = opened(file)
    for _ in range(2):
        with pytest.raises(CorruptSnapshotError):
            await persistence.snapshot_node(Tally(), Count())
        with pytest.raises(CorruptSnapshotError):
            await opened(file).load_next()
    assert not file.exists()
    lock_file(file).unlink()
    assert await finish(file) == [1, 2, 3]


async def test_deleted_with_a_foreign_entry(file: Path):
    """A run that was deleted is gone for who last found its lock file to be of another make, too."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    overwrite(file, FIRST_SLOT, b'%08x %b\n' % (zlib.crc32(b'{}'), b'{}'))
    with pytest.raises(CorruptSnapshotError):
        await persistence.load_history()
    file.unlink()
    lock_file(file).unlink()
    assert await persistence.load_history() == []
    await persistence.snapshot_node(Tally(), Count(3))
    assert await statuses(file) == ['created']
