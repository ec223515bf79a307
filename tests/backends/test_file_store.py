"""What is peculiar to a directory of files: damaged ones, foreign ones, and what is remembered of them."""

from __future__ import annotations

import copy
import errno
import json
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graphkeep import CorruptSnapshotError, FileStatePersistence, FileStore, SqliteStore, StorageError
from graphkeep.runfile import RunFile
from graphkeep.runinfo import RunInfo
from tests.backends.faults import Call, FaultyOs, put_os
from tests.backends.stores import (
    ANSWER,
    Clock,
    Count,
    Tally,
    begin,
    count_up,
    finish,
    in_hand,
    info,
    nowhere,
    statuses,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the runs are."""
    return tmp_path / 'runs'


@pytest.fixture
def files(directory: Path, clock: Clock) -> FileStore:
    """An empty store."""
    return FileStore(directory, clock=clock)


async def fill(files: FileStore) -> None:
    """Store three runs: one waits, one has ended, and one of which somebody is gone."""
    await begin(files, 'a waits', steps=1)
    await begin(files, 'z ended', steps=4)
    await begin(files, 'm left', steps=1)


DAMAGE: dict[str, bytes] = {
    'empty': b'',
    'torn': b'[\n{"state":{"numb',
    'not JSON': b'\0\1\2',
    'something else': b'{"name": "config"}',
    'of another kind': b'[{"kind": "edge"}]',
    'only parts': b'[{"kind": "join", "id": "join:1", "node": {"node_id": "join"}}]',
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=list(DAMAGE))
async def test_damaged(files: FileStore, clock: Clock, damage: bytes):
    """A file that cannot be read is listed as failed, with the reason, and no verb on others minds it."""
    await fill(files)
    path = files.path('h damaged')
    path.write_bytes(damage)
    left = await in_hand(files, 'm left')
    clock.forward(31)
    told = await info(files, 'h damaged')
    assert (told.status, told.steps, told.resumable, told.updated) == ('error', 0, False, None)
    assert told.error is not None
    assert told.error.type == 'graphkeep.errors.CorruptSnapshotError'
    assert str(path) in told.error.message
    assert [run.id for run in await files.runs(status='error')] == ['h damaged']
    assert len(await files.runs()) == 4
    assert await files.recover_all() == 1
    clock.forward(days=1)
    assert await files.prune(older_than=timedelta(hours=1), keep_last=1, only_finished=False) == (0, 1)
    assert await files.prune(older_than=timedelta(hours=1), only_finished=False) == (1, 0)
    while (run := await files.claim()) is not None:
        assert await finish(run) == ANSWER
    assert [run.id for run in await files.runs(status='success')] == ['a waits', 'm left']
    assert path.read_bytes() == damage
    assert left.run_id == 'm left'


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=list(DAMAGE))
async def test_verbs_on_a_damaged_run(files: FileStore, damage: bytes):
    """Every verb says what is wrong with a damaged run and leaves it as it is; it can be deleted."""
    await fill(files)
    path = files.path('damaged')
    path.write_bytes(damage)
    for verb in (files.history, files.recover, files.retry, files.export):
        with pytest.raises(CorruptSnapshotError, match=r'is not|has only parts'):
            await verb('damaged')
    with pytest.raises(CorruptSnapshotError):
        await files.fork('damaged', into='new')
    with pytest.raises(CorruptSnapshotError):
        await files.fork('a waits', into='damaged')
    assert path.read_bytes() == damage
    assert await files.delete('damaged')
    assert await nowhere(files, 'damaged')
    await files.fork('a waits', into='damaged')
    assert await finish(files.run('damaged')) == ANSWER


async def test_mended(files: FileStore):
    """A damaged run whose file is restored is listed as what it is at once."""
    await begin(files, 'run', steps=2)
    path = files.path('run')
    good = path.read_bytes()
    before = await files.runs()
    path.write_bytes(good[:-10])
    assert (await info(files, 'run')).status == 'error'
    path.write_bytes(good)
    assert await files.runs() == before


async def test_foreign_files(files: FileStore, directory: Path, clock: Clock):
    """Whatever else is in the directory is no run, is not touched, and is no hindrance."""
    await fill(files)
    before = await files.runs()
    names = [
        'README',
        'notes.txt',
        'run.json.bak',
        'run.JSON',
        '.hidden.json',
        'two words.json',
        'ä.json',
        '%c3%a4.json',  # a run's would be in capitals
        '%2E%2E.json',
        '%2Fetc.json',
        '%00.json',
        '.json',
        '.a%20waits.json.tmp',
        f'{"x" * 129}.json',
    ]
    for name in names:
        (directory / name).write_bytes(b'foreign')
    (directory / os.fsdecode(b'\xff\xfe.json')).write_bytes(b'foreign')
    (directory / 'directory.json').mkdir()
    (directory / 'nowhere.json').symlink_to(directory / 'not there')
    if hasattr(os, 'mkfifo'):
        os.mkfifo(directory / 'pipe.json')
    assert await files.runs() == before
    clock.forward(60)
    assert await files.prune(older_than=timedelta(0), only_finished=False) == (1, 0)
    assert all((directory / name).read_bytes() == b'foreign' for name in names)


async def test_empty_array(files: FileStore):
    """A file without a snapshot is a run that has not begun yet."""
    await fill(files)
    files.path('new').write_bytes(b'[]')
    assert await nowhere(files, 'new')
    await begin(files, 'new')
    assert await finish(files.run('new')) == ANSWER


async def test_links(files: FileStore, directory: Path, tmp_path: Path):
    """A link to a run's file is a run; one that leads in a circle is listed as damaged."""
    await begin(files, 'run', steps=1)
    elsewhere = tmp_path / 'elsewhere.json'
    files.path('run').rename(elsewhere)
    files.path('run').symlink_to(elsewhere)
    (directory / 'circle.json').symlink_to(directory / 'circle.json')
    assert [run.id for run in await files.runs(status='created')] == ['run']
    assert [run.id for run in await files.runs(status='error')] == ['circle']
    assert await finish(files.run('run')) == ANSWER
    assert files.path('run').is_symlink()


@pytest.mark.parametrize('number, lists', [(errno.EACCES, True), (errno.EIO, True), (errno.EMFILE, False)])
async def test_one_file_cannot_be_read(
    files: FileStore, monkeypatch: pytest.MonkeyPatch, number: int, lists: bool
):
    """What is wrong with one file is told of that run; what is wrong with the process is no run's fault."""
    await fill(files)

    def refuse(call: Call) -> Any:
        if call.name == 'stat' and 'ended' in str(call.args[0]):
            raise OSError(number, os.strerror(number))
        return call()

    put_os(monkeypatch, FaultyOs(refuse))
    if not lists:
        with pytest.raises(StorageError) as caught:
            await files.runs()
        assert caught.value.errno == number
        return
    told = await info(files, 'z ended')
    assert (told.status, told.error and told.error.type) == ('error', 'graphkeep.errors.StorageError')
    assert len(await files.runs()) == 3


async def test_no_directory(directory: Path):
    """A directory that is not there has no runs, and is not made by looking; a file is no directory."""
    files = FileStore(directory)
    assert await files.runs() == []
    assert await files.claim() is None
    assert await files.delete('run') is False
    assert not directory.exists()
    directory.write_bytes(b'')
    with pytest.raises(StorageError):
        await files.runs()


async def test_deleted_while_listed(files: FileStore, monkeypatch: pytest.MonkeyPatch):
    """A file that is deleted while the directory is read is not listed, and no error."""
    await fill(files)
    look = RunFile.look

    def deleted_before(self: RunFile) -> RunInfo | None:
        with suppress(FileNotFoundError):
            os.unlink(files.path('m left'))
        return look(self)

    monkeypatch.setattr(RunFile, 'look', deleted_before)
    assert [run.id for run in await files.runs()] == ['a waits', 'z ended']


async def test_deleted_between_look_and_read(files: FileStore, monkeypatch: pytest.MonkeyPatch):
    """A file that is deleted after it was looked at and before it was opened is not there."""
    await begin(files, 'run')

    def unlink_after(call: Call) -> Any:
        found = call()
        if call.name == 'stat' and str(call.args[0]).endswith('run.json'):
            os.unlink(call.args[0])
        return found

    put_os(monkeypatch, FaultyOs(unlink_after))
    assert await files.runs() == []


async def test_deleted_whole(files: FileStore, directory: Path):
    """Nothing of a deleted run stays in the directory, not even what a killed process left of a write."""
    await begin(files, 'run', steps=1)
    files.path('run').with_name('.run.json.tmp').write_bytes(b'half of it')
    assert await files.delete('run')
    assert list(directory.iterdir()) == []
    assert await files.prune(older_than=timedelta(0), only_finished=False) == (0, 0)
    assert list(directory.iterdir()) == []


async def test_listed_anew(files: FileStore, directory: Path, clock: Clock):
    """What is remembered of the files never hides what became of them, whoever wrote and however."""
    for number in range(3):
        await begin(files, str(number), steps=1)
    for path in directory.glob('*.json'):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    other = FileStore(directory, clock=clock)

    async def same() -> list[RunInfo]:
        runs = await files.runs()
        assert runs == await FileStore(directory, clock=clock).runs()
        return runs

    await same()
    await same()
    holder = await in_hand(other, '0')  # in the lock file only
    assert (await same())[0].status == 'running'
    clock.forward(31)
    assert (await same())[0].resumable
    assert await other.recover('0') == 1
    await same()
    assert await finish(other.run('0')) == ANSWER
    assert (await same())[0].status == 'success'
    await other.delete('1')
    await same()
    await other.fork('2', into='1')
    assert (await same())[1].parent == ('2', 2)
    rows = json.loads(files.path('2').read_bytes())
    rows[0]['graphkeep']['graph'] = 'other'
    files.path('2').write_text(json.dumps(rows))
    assert (await same())[2].graph == 'other'
    assert holder.run_id == '0'


async def test_only_what_changed_is_read(files: FileStore, monkeypatch: pytest.MonkeyPatch, clock: Clock):
    """A run that has not changed since it was listed is not read again; that its owner is gone is seen."""
    await begin(files, 'run', steps=1)
    await begin(files, 'other', steps=1)
    holder = await in_hand(files, 'run')
    looks: list[str] = []
    look = RunFile.look

    def counted(self: RunFile) -> RunInfo | None:
        looks.append(self.run_id)
        return look(self)

    monkeypatch.setattr(RunFile, 'look', counted)
    monkeypatch.setattr('graphkeep.runfile._TICK', -(10**18))  # as if the writes were long ago
    before = await files.runs()
    looks.clear()
    assert await files.runs() == before
    clock.forward(31)
    assert [run.resumable for run in await files.runs()] == [True, True]
    assert looks == []
    await files.run('other').claim()
    await files.runs()
    assert looks == ['other']
    assert holder.run_id == 'run'


async def test_what_others_have_added_is_kept(files: FileStore, clock: Clock):
    """Members that somebody else has added to a snapshot in a file outlast a pruning."""
    await begin(files, 'run', steps=3)
    path = files.path('run')
    rows = json.loads(path.read_bytes())
    for number, row in enumerate(rows):
        row['note'] = f'kept {number}'
    path.write_text(json.dumps(rows))
    clock.forward(days=1)
    assert await files.prune(older_than=timedelta(hours=1), only_finished=False) == (0, 2)
    assert [row['note'] for row in json.loads(path.read_bytes())] == ['kept 2', 'kept 3']
    assert await finish(files.run('run')) == ANSWER


async def test_one_run_of_a_store(files: FileStore):
    """A run's file may be used by itself: it is the same run."""
    await begin(files, 'run', steps=1)
    one: Any = FileStatePersistence(files.path('run'))
    assert await finish(one) == ANSWER
    assert await statuses(files, 'run') == ['success'] * 5


async def test_relative_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path is one from where the process was when it made the store, for runs to come as well."""
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    store, one = FileStore('runs'), FileStatePersistence('one.json')
    await begin(store, 'before')
    monkeypatch.chdir(tmp_path / 'elsewhere')
    await begin(store, 'after')
    one.set_graph_types(count_up)
    await one.snapshot_node(Tally(), Count())
    assert [info.id for info in await store.runs()] == ['after', 'before']
    assert {path.name for path in tmp_path.glob('**/*.json')} == {'before.json', 'after.json', 'one.json'}
    assert not [*(tmp_path / 'elsewhere').iterdir()]
    again = copy.deepcopy(one)
    again.set_graph_types(count_up)
    assert len(await again.load_all()) == 1


async def test_directory_above_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is above a link is above what it leads to, as the system has it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'real' / 'sub').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'sub')
    await begin(FileStore('link/../runs'), 'run')
    one = FileStatePersistence('link/../one.json')
    one.set_graph_types(count_up)
    await one.snapshot_node(Tally(), Count())
    async with SqliteStore('link/../runs.db') as store:
        await begin(store, 'run')
        assert {'runs', 'one.json', 'runs.db'} <= {path.name for path in (tmp_path / 'real').iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {'link', 'real'}
