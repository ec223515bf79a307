"""What is in hand of a run in a file is kept beside it, and counts only for the file that it is about."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from graphkeep import (
    FileStatePersistence,
    Owner,
    OwnershipLostError,
    RunOwnedError,
    StorageError,
)
from graphkeep.commit import Commit, StatusChange, Writer
from graphkeep.status import SUCCEED
from tests.backends.counting import (
    FIRST_SLOT,
    SECOND_SLOT,
    Count,
    Persistence,
    Tally,
    begun,
    finish,
    graph,
    opened,
    overwrite,
    statuses,
)
from tests.backends.faults import Call, FaultyOs, put_os
from tests.rawfile import in_hand, lock_file, stored

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Be the path of a file that does not exist yet."""
    return tmp_path / 'run.json'


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


async def test_torn(file: Path):
    """An entry that was not written to its end was never made: the one before it counts, if there is one."""
    persistence = await begun(file)  # entry 1, in the second slot
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id):  # entry 2, in the first
        assert await statuses(file) == ['running']
        whole = lock_file(file).read_bytes()
        overwrite(file, FIRST_SLOT + 60, b'#')
        assert await statuses(file) == ['pending']
        assert [row['status'] for row in stored(file)] == ['pending']
        overwrite(file, SECOND_SLOT + 60, b'#')
        assert await statuses(file) == ['created']
        assert [row['status'] for row in stored(file)] == ['created']
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


async def test_added_while_in_hand(file: Path):
    """A snapshot that is added while another is in hand takes nothing from who has that."""
    persistence = await begun(file)
    await persistence.snapshot_node(Tally(), Count(2))
    (row, _) = json.loads(file.read_bytes())
    assert (row['status'], row['graphkeep']['fence'], 'held_by' in row['graphkeep']) == ('pending', 1, True)
    assert in_hand(file) == []
    with pytest.raises(RunOwnedError) as refused:
        await opened(file).load_next()
    assert refused.value.owner is not None
    other = opened(file, hours=1)
    assert await other.load_next()
    with pytest.raises(OwnershipLostError):
        async with persistence.record_run(row['id']):
            pass
    await other.release()


async def test_added_while_gone(file: Path):
    """What a gone owner had in hand is recovered, too, if a snapshot was added meanwhile."""
    persistence = await begun(file)
    await opened(file, hours=1).snapshot_node(Tally(), Count(2))
    assert await statuses(file) == ['pending', 'created']
    del persistence
    assert await finish(file) == [1, 2, 3]


async def test_no_room_for_a_renewal(file: Path):
    """A renewal that has no room in a slot any more renews all the same."""
    persistence = await begun(file)
    backend = persistence._backend
    owner = Owner('longer', 'host' * 1000, 1)
    backend.commit(Commit(writer=Writer(1, owner, 30.0)))
    assert backend.tail().ownership.owner == opened(file)._backend.tail().ownership.owner == owner
    with pytest.raises(RunOwnedError):
        await finish(file)
    assert await finish(file, hours=1) == [1, 2, 3]


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
        put_os(patch, FaultyOs(fail))
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
    put_os(monkeypatch, system)
    snapshot = await persistence.load_next()
    assert snapshot
    async with persistence.record_run(snapshot.id):
        assert 'fsync' not in system.names
    await persistence.snapshot_node(Tally(), Count(2))
    assert system.names.count('fsync') == 2  # the file, and its directory


async def test_where_a_big_file_is_written(file: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that takes long to write is written in another thread, however quick a claim in between is."""
    seconds = [0.0]
    threads: list[bool] = []

    def slow(call: Call) -> Any:
        if call.name == 'replace':
            seconds[0] += 0.002
            threads.append(threading.current_thread() is threading.main_thread())
        return call()

    monkeypatch.setattr('graphkeep.runfile.perf_counter', lambda: seconds[0])
    with monkeypatch.context() as patch:
        put_os(patch, FaultyOs(slow))
        assert await finish(file) == [1, 2, 3]
    assert threads == [False] * 4
    slow_no_more = FaultyOs(lambda call: (threads.append(True) if on_loop(call) else None, call())[1])
    threads.clear()
    put_os(monkeypatch, slow_no_more)
    assert await finish(file.with_name('quick.json')) == [1, 2, 3]
    assert threads == [True] * 3  # of 4: the first is a try


def on_loop(call: Call) -> bool:
    """Whether a file is replaced on the event loop's own thread."""
    return call.name == 'replace' and threading.current_thread() is threading.main_thread()


async def test_read_while_it_ends(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Who reads without the lock sees a step as running or as ended; never as not begun in between."""
    persistence = await begun(file)
    (record,) = await persistence.load_history()
    running = persistence.record_run(record.id)
    await running.__aenter__()
    backend, other = persistence._backend, opened(file)._backend
    commit = Commit([StatusChange(record.id, SUCCEED)], writer=Writer(1, give_up=True))
    ends = [commit]

    def end(call: Call) -> Any:
        if call.name == 'lseek' and ends:  # the file is read, and what is in hand not yet
            backend.commit(ends.pop())
        return call()

    with monkeypatch.context() as patch:
        put_os(patch, FaultyOs(end))
        (row,) = other.rows()
    assert not ends
    assert row.record.status == 'success'
