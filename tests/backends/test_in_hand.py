"""What is in hand of a run in a file is kept beside it, and counts only for the file that it is about."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    CorruptSnapshotError,
    FileStatePersistence,
    Graph,
    OwnershipLostError,
    RunOwnedError,
    StorageError,
    run_or_resume,
)
from graphkeep.snapshots import now_utc
from tests.backends.faults import Call, FaultyOs
from tests.rawfile import in_hand, lock_file, stored

pytestmark = pytest.mark.anyio

Persistence = FileStatePersistence[Any, Any]
FIRST_SLOT, SECOND_SLOT = 4096, 8192


@dataclass
class Tally:
    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Count(BaseNode[Tally, list[int] | None, list[int]]):
    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, list[int] | None]) -> Count | End[list[int]]:
        if ctx.deps is not None:
            ctx.deps.append(self.number)
        ctx.state.numbers.append(self.number)
        return End(ctx.state.numbers) if self.number == 3 else Count(self.number + 1)


graph = Graph(nodes=(Count,))


def later(hours: float) -> datetime:
    """Be the clock of somebody for whom it is so much later."""
    return now_utc() + timedelta(hours=hours)


def opened(path: Path, hours: float = 0) -> Persistence:
    """Return a persistence that knows the graph."""
    persistence: Persistence = FileStatePersistence(path, clock=partial(later, hours))
    persistence.set_graph_types(graph)
    return persistence


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Be the path of a file that does not exist yet."""
    return tmp_path / 'run.json'


async def finish(path: Path, ran: list[int] | None = None, hours: float = 0) -> list[int]:
    """Run the graph to its end from wherever it is."""
    run = await run_or_resume(graph, Count(), state=Tally(), deps=ran, persistence=opened(path, hours))
    return run.output


async def statuses(path: Path) -> list[str]:
    """Return what somebody sees who opens the file now."""
    return [record.status for record in await opened(path).load_history()]


async def begun(path: Path) -> Persistence:
    """Begin a run and take its first node in hand."""
    persistence = opened(path)
    await persistence.snapshot_node(Tally(), Count())
    assert await persistence.load_next()
    return persistence


async def test_where_it_is(file: Path):
    """That a node is claimed or running is in the lock file; the run's file changes when it has ended."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    created = file.read_bytes()
    snapshot = await persistence.load_next()
    assert snapshot
    assert file.read_bytes() == created
    assert [row['status'] for row in in_hand(file)] == ['pending']
    async with persistence.record_run(snapshot.id):
        assert file.read_bytes() == created
        assert [row['status'] for row in in_hand(file)] == ['running']
        assert await statuses(file) == ['running']
    await persistence.snapshot_node(Tally(), Count(2))
    assert [row['status'] for row in json.loads(file.read_bytes())] == ['success', 'created']
    assert lock_file(file).stat().st_mode & 0o777 == 0o600


def overwrite(file: Path, at: int, data: bytes) -> None:
    """Write into the lock file."""
    with open(lock_file(file), 'r+b') as lock:
        lock.seek(at)
        lock.write(data)


async def test_torn(file: Path):
    """An entry that was not written to its end was never made: the one before it counts, if there is one."""
    persistence = await begun(file)  # entry 1, in the second slot
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id):  # entry 2, in the first
        assert await statuses(file) == ['running']
        whole = lock_file(file).read_bytes()
        overwrite(file, FIRST_SLOT + 60, b'#')
        assert await statuses(file) == ['pending']
        overwrite(file, SECOND_SLOT + 60, b'#')
        assert await statuses(file) == ['created']
        overwrite(file, 0, whole)
        assert await statuses(file) == ['running']
    await persistence.snapshot_node(Tally(), Count(2))
    assert await statuses(file) == ['success', 'created']


async def test_many_entries(file: Path):
    """Entries take turns in two slots, and the file for them does not grow."""
    persistence = await begun(file)
    sizes: set[int] = set()
    for _ in range(20):
        await persistence.release()
        assert await persistence.load_next()
        assert await statuses(file) == ['pending']
        sizes.add(lock_file(file).stat().st_size)
    assert max(sizes) <= 3 * 4096


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


async def test_no_room(file: Path):
    """What has no room in a slot is written into the file, and goes on from there."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    (record,) = await persistence.load_history()
    for _ in range(4):
        with pytest.raises(ValueError, match=r'x{100}'):
            async with persistence.record_run(record.id):
                raise ValueError('x' * 3000)
        await persistence.retry()
    assert await persistence.load_next()
    assert [row['status'] for row in json.loads(file.read_bytes())] == ['pending']
    assert 'held_by' in file.read_text()
    assert await statuses(file) == ['pending']
    with pytest.raises(RunOwnedError):
        await finish(file)
    assert await finish(file, hours=1) == [1, 2, 3]
    (first, *_) = await opened(file).load_history()
    assert [attempt.outcome for attempt in first.attempts] == ['error'] * 4 + ['success']


async def test_recovered(file: Path):
    """What a gone owner had is recovered in one write with its claim; the file tells of it afterwards."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    (record,) = await persistence.load_history()
    await persistence.record_run(record.id).__aenter__()
    created = file.read_bytes()
    other = opened(file, hours=1)
    assert await other.load_next()
    assert file.read_bytes() == created
    (row,) = stored(file)
    assert [attempt['outcome'] for attempt in row['graphkeep']['attempts']] == ['recovered']
    await other.release()
    (released,) = json.loads(file.read_bytes())
    assert released['graphkeep']['attempts'] == row['graphkeep']['attempts']
    assert (released['status'], released['graphkeep']['fence']) == ('created', 2)
    assert await finish(file) == [1, 2, 3]


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


@pytest.mark.parametrize('name', ['lseek', 'write', 'read'])
async def test_failing_disk(file: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """If the entry cannot be written nothing is in hand, and the next try succeeds."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())

    def fail(call: Call) -> Any:
        if call.name == name:
            if name == 'write':
                os.write(call.args[0], call.args[1][:50])
            raise OSError(errno.ENOSPC, 'No space left on device')
        return call()

    with monkeypatch.context() as patch:
        patch.setattr('graphkeep.runfile.os', FaultyOs(fail))
        with pytest.raises(StorageError):
            await persistence.load_next()
    assert await statuses(file) == ['created']
    assert await finish(file) == [1, 2, 3]


async def test_what_waits_for_the_disk(file: Path, monkeypatch: pytest.MonkeyPatch):
    """With `durability='full'` the end of a step waits for the disk. A claim does not."""
    persistence: Persistence = FileStatePersistence(file, durability='full')
    persistence.set_graph_types(graph)
    await persistence.snapshot_node(Tally(), Count())
    system = FaultyOs(lambda call: call())
    monkeypatch.setattr('graphkeep.runfile.os', system)
    snapshot = await persistence.load_next()
    assert snapshot
    async with persistence.record_run(snapshot.id):
        assert 'fsync' not in system.names
    await persistence.snapshot_node(Tally(), Count(2))
    assert system.names.count('fsync') == 2  # the file, and its directory
