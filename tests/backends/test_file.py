"""The JSON file: what is on the disk, and what happens when the disk or somebody else interferes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
from collections.abc import Callable
from contextlib import suppress
from copy import copy as copy_of
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import (
    CorruptSnapshotError,
    FileStatePersistence,
    FileStore,
    Graph,
    InvalidRunIdError,
    RunOwnedError,
    StorageError,
    UnfaithfulSnapshotError,
    run_or_resume,
)
from tests.backends.faults import Call, FaultyOs, put_os
from tests.crash.children import hour_later
from tests.rawfile import stored

pytestmark = pytest.mark.anyio

Log = list[int]


@dataclass
class Tally:
    """A state."""

    numbers: list[int] = field(default_factory=list[int])


@dataclass
class Count(BaseNode[Tally, Log, list[int]]):
    """Counts to three, and leaves a trace in the dependencies of every time it is run."""

    number: int = 1

    async def run(self, ctx: GraphRunContext[Tally, Log]) -> Count | End[list[int]]:
        ctx.deps.append(self.number)
        ctx.state.numbers.append(self.number)
        return Count(self.number + 1) if self.number < 3 else End(ctx.state.numbers)


graph = Graph(nodes=(Count,), name='count')

Persistence = FileStatePersistence[Tally, list[int]]


def opened(path: Path, **options: Any) -> Persistence:
    """Return a persistence that knows the graph."""
    persistence: Persistence = FileStatePersistence(path, **options)
    persistence.set_graph_types(graph)
    return persistence


async def finish(persistence: Persistence, log: Log) -> list[int]:
    """Run the graph to its end from wherever it is."""
    result = await run_or_resume(graph, Count(), state=Tally(), deps=log, persistence=persistence)
    return result.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Be the path of a file that does not exist yet, alone in its directory."""
    (tmp_path / 'runs').mkdir()
    return tmp_path / 'runs' / 'run.json'


def mode(path: Path) -> int:
    """Return the permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def beside(file: Path) -> set[str]:
    """Return what is in the file's directory."""
    return {path.name for path in file.parent.iterdir()}


# -------------------------------------------------------------------------------------------- what is on disk


@pytest.mark.both_backends
async def test_layout(file: Path):
    """A run is an array of one snapshot a line, readable by its owner only; only the lock stays beside it."""
    await finish(opened(file), [])
    first, *lines, last = file.read_text().splitlines()
    assert (first, last) == ('[', ']')
    assert [json.loads(line.removesuffix(',')) for line in lines] == stored(file)
    assert len(lines) == 4
    assert mode(file) == 0o600
    assert beside(file) == {'run.json', '.run.json.lock'}
    assert mode(file.with_name('.run.json.lock')) == 0o600


async def test_mode_of_existing(file: Path):
    """A file that others could read is no longer readable to them after the first commit."""
    file.write_text('[]')
    file.chmod(0o644)
    await opened(file).snapshot_node(Tally(), Count())
    assert mode(file) == 0o600


async def test_umask(file: Path):
    """The file mode does not depend on the umask being narrow."""
    before = os.umask(0)
    try:
        await finish(opened(file), [])
    finally:
        os.umask(before)
    assert mode(file) == 0o600
    assert mode(file.with_name('.run.json.lock')) == 0o600


@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_parents(tmp_path: Path, durability: Any):
    """Missing parent directories are made with the first commit, and not by reading."""
    file = tmp_path / 'a' / 'b' / 'run.json'
    persistence = opened(file, durability=durability)
    assert await persistence.load_all() == []
    assert not (tmp_path / 'a').exists()
    assert await finish(persistence, []) == [1, 2, 3]
    assert beside(file) == {'run.json', '.run.json.lock'}


async def test_full_durability(file: Path, monkeypatch: pytest.MonkeyPatch):
    """With full durability the new file is on the disk before it takes its place, and that is as well."""
    calls = FaultyOs(lambda call: call())
    put_os(monkeypatch, calls)
    persistence = opened(file, durability='full')
    await persistence.snapshot_node(Tally(), Count())
    calls.names.clear()
    await persistence.snapshot_node(Tally(), Count())
    order = [name for name in calls.names if name in ('write', 'fsync', 'replace')]
    assert order == ['write', 'write', 'fsync', 'replace', 'fsync']


async def test_normal_durability(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Without it no commit waits for the disk."""
    calls = FaultyOs(lambda call: call())
    put_os(monkeypatch, calls)
    await finish(opened(file), [])
    assert 'fsync' not in calls.names


async def test_symlink(tmp_path: Path, file: Path):
    """A link to the file stays a link: the commit goes to where it leads."""
    link = tmp_path / 'link.json'
    link.symlink_to(file)
    await finish(opened(link), [])
    assert link.is_symlink()
    assert beside(file) == {'run.json', '.run.json.lock'}
    assert await finish(opened(file), []) == [1, 2, 3]


async def test_leftover(file: Path):
    """What a killed process left of a new file is no obstacle."""
    file.with_name('.run.json.tmp').write_text('[half of')
    assert await finish(opened(file), []) == [1, 2, 3]
    assert beside(file) == {'run.json', '.run.json.lock'}


async def test_planted_links(tmp_path: Path, file: Path):
    """A link in the place of the new file or of the lock is not followed."""
    victim = tmp_path / 'victim'
    victim.write_text('precious')
    file.with_name('.run.json.tmp').symlink_to(victim)
    assert await finish(opened(file), []) == [1, 2, 3]
    file.with_name('.run.json.lock').unlink()
    file.with_name('.run.json.lock').symlink_to(victim)
    with pytest.raises(StorageError, match=r'run\.json'):
        await opened(file).snapshot_node(Tally(), Count())
    assert victim.read_text() == 'precious'


FOREIGN = """[
  {
    "state": {"numbers": [ 1e0 , 2.0]},
    "node": {"number": 2, "node_id": "Count", "note": "\\u00e9\\ud83d\\ude00é"},
    "start_ts": null, "duration": null, "status": "created", "kind": "node", "id": "Count:\\u0061",
    "big": 123456789012345678901234567890, "float": 1.10, "endless": -1e400, "tiny": 1E-999, "zero": -0.0,
    "text": "\\u0041\\/\\ud800 日本", "deep": {"b": [ 1,  2 ], "a": {"graphkeep": null}}, "": null
  }
]
"""
KEPT = [
    '"big":123456789012345678901234567890',
    '"float":1.10',
    '"endless":-1e400',
    '"tiny":1E-999',
    '"zero":-0.0',
    '"text":"\\u0041\\/\\ud800 日本"',
    '"deep":{"b": [ 1,  2 ], "a": {"graphkeep": null}}',
    '"":null',
]


ENDLESS = ['9' * 5_000, '-' + '8' * 5_000, '1e400', '7' * 400 + '.5']


@pytest.mark.parametrize('place', ['state', 'node', 'member', 'member of the next'])
async def test_numbers_beyond_python(file: Path, place: str):
    """Integers of more digits than Python reads, and numbers beyond floats, are no damage and are kept."""
    foreign = f'"foreign":[{",".join(ENDLESS)}]'

    def in_place(here: str, end: str) -> str:
        return f',{foreign}{end}' if here == place else end

    file.write_text(
        '[{"state":{"numbers":[1,2]' + in_place('state', '},')
        + '"node":{"number":1,"node_id":"Count"' + in_place('node', '},')
        + '"status":"success","kind":"node","id":"Count:1"' + in_place('member', '},')
        + '{"state":{"numbers":[1,2]},"node":{"number":3,"node_id":"Count"},'
        + '"status":"created","kind":"node","id":"Count:3"' + in_place('member of the next', '}]')
    )  # fmt: skip
    statuses = [record.status for record in await opened(file).load_history()]
    assert statuses == ['success', 'created']
    assert await finish(opened(file), []) == [1, 2, 3]
    assert foreign in file.read_text()


@pytest.mark.parametrize('again', [True, False], ids=['one instance', 'an instance for each step'])
async def test_foreign_members(file: Path, again: bool):
    """What somebody else put into a snapshot survives every later commit as it was written."""
    file.write_text(FOREIGN)
    persistence = opened(file)
    assert await persistence.load_next()
    assert file.read_text() == FOREIGN
    await persistence.release()
    for member in KEPT:
        assert member in file.read_text()
    del persistence
    if not again:
        assert await opened(file).recover() == 0
    assert await finish(opened(file), []) == [1, 2, 2, 3]
    text = file.read_text()
    for member in [*KEPT, '{"numbers": [ 1e0 , 2.0]}', '"note": "\\u00e9\\ud83d\\ude00é"']:
        assert text.count(member) == 1, member
    assert [row['status'] for row in stored(file)[:2]] == ['success', 'success']


# ------------------------------------------------------------------------------------ with others on one file


async def test_two_instances(file: Path):
    """Two instances on one file each see what the other has committed."""
    one, other = opened(file), opened(file)
    for number in range(1, 6):
        await one.snapshot_node(Tally(), Count(number))
        one, other = other, one
        assert [step.seq for step in await one.load_history()] == list(range(1, number + 1))
        assert await one.load_all() == await other.load_all()


@pytest.mark.parametrize('later', [1, 0], ids=['fine', 'the clock stands still'])
async def test_clock_tick(file: Path, monkeypatch: pytest.MonkeyPatch, later: int):
    """Each commit is told from the one before it, even by a clock that does not move and at the same size."""
    moments = [10**18]

    def stamped(call: Call) -> Any:
        result = call()
        if call.name == 'write':
            moments.append(moments[-1] + later)
            os.utime(call.args[0], ns=(moments[-1], moments[-1]))
        return result

    put_os(monkeypatch, FaultyOs(stamped))
    one, other = opened(file), opened(file)
    await one.snapshot_node(Tally(), Count())
    times: list[int] = []
    for _ in range(10):
        assert await one.load_next()
        assert [step.status for step in await other.load_history()] == ['pending']
        await one.release()
        assert [step.status for step in await other.load_history()] == ['created']
        times.append(file.stat().st_mtime_ns)
        one, other = other, one
    assert times == sorted(set(times)), 'two contents of the file have the same time'


async def test_file_system_of_whole_seconds(file: Path, monkeypatch: pytest.MonkeyPatch):
    """On a file system that keeps whole seconds, too, each commit gives the file a later time."""

    def rounded(call: Call) -> Any:
        if call.name == 'utime':
            _, modified = call.kwargs['ns']
            return os.utime(*call.args, ns=(modified // 10**9 * 10**9,) * 2)
        result = call()
        if call.name == 'write':
            os.utime(call.args[0], ns=(10**18, 10**18))  # all within one second
        return result

    put_os(monkeypatch, FaultyOs(rounded))
    one, other = opened(file), opened(file)
    times: list[int] = []
    await one.snapshot_node(Tally(), Count())
    for _ in range(5):
        times.append(file.stat().st_mtime_ns)
        assert await one.load_next()
        assert [step.status for step in await other.load_history()] == ['pending']
        await one.release()
        one, other = other, one
    assert times == sorted(set(times))
    assert all(time % 10**9 == 0 for time in times)


async def test_file_system_that_keeps_its_own_times(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the time of a file cannot be moved the commits are made all the same, and seen by their size."""

    def fixed(call: Call) -> Any:
        result = None if call.name == 'utime' else call()
        if call.name == 'write':
            os.utime(call.args[0], ns=(10**18, 10**18))
        return result

    put_os(monkeypatch, FaultyOs(fixed))
    one, other = opened(file), opened(file)
    for number in range(1, 4):
        await one.snapshot_node(Tally(), Count(number))
        assert len(await other.load_history()) == number


async def test_without_syncing_directories(file: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a directory cannot be opened, as on Windows, the file alone waits for the disk."""
    synced: list[bool] = []

    def watched(call: Call) -> Any:
        if call.name == 'fsync':
            synced.append(stat.S_ISDIR(os.fstat(call.args[0]).st_mode))
        return call()

    windows = FaultyOs(watched)
    windows.name = 'nt'
    put_os(monkeypatch, windows)
    assert await finish(opened(file, durability='full'), []) == [1, 2, 3]
    assert synced
    assert not any(synced)


async def test_lock_and_fork(file: Path, monkeypatch: pytest.MonkeyPatch):
    """A child that was forked while the lock was held has its descriptor too, and does not keep the lock."""
    locks: list[int] = []
    inherited: list[int] = []

    def forked(call: Call) -> Any:
        result = call()
        if call.name == 'open' and str(call.args[0]).endswith('.lock'):
            locks.append(result)
        elif call.name == 'replace':
            inherited.append(os.dup(locks[-1]))
        return result

    with monkeypatch.context() as patch:
        put_os(patch, FaultyOs(forked))
        await opened(file).snapshot_node(Tally(), Count())
    try:
        await opened(file, lock_timeout=0).snapshot_node(Tally(), Count())
    finally:
        for fd in inherited:
            os.close(fd)
    assert len(inherited) == 1


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='the platform does not list open files')
async def test_open_files(file: Path, monkeypatch: pytest.MonkeyPatch):
    """No file is left open, whether commits are made or fail."""
    await finish(opened(file), [])  # what opens with the first use of threads is open now
    before = len(os.listdir('/proc/self/fd'))
    await finish(opened(file.with_name('other.json')), [])
    for at in range(12):
        put_os(monkeypatch, FaultyOs(Disk(file, at, lasting=True)))
        with suppress(StorageError):
            await opened(file).snapshot_node(Tally(), Count())
    put_os(monkeypatch, os)
    assert len(os.listdir('/proc/self/fd')) == before


async def test_deleted(file: Path):
    """A file that somebody deletes takes the run with it, and the next commit begins a new one."""
    persistence = opened(file)
    await finish(persistence, [])
    file.unlink()
    assert await persistence.load_all() == []
    assert await finish(persistence, []) == [1, 2, 3]
    assert len(stored(file)) == 4


async def test_rewritten_in_place(file: Path):
    """What another program wrote into the file itself, without replacing it, is what goes on."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    rows = stored(file)
    rows[0]['state']['numbers'] = [7]
    file.write_text(json.dumps(rows, indent=2))
    assert await persistence.last_state() == Tally([7])
    assert await finish(persistence, []) == [7, 1, 2, 3]


async def test_copies_at_each_commit(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a copy of the file after any commit the run goes on to the same result and repeats no success."""
    copies: list[Path] = []

    def copied(call: Call) -> Any:
        result = call()
        if call.name == 'replace':
            copies.append(tmp_path / f'{len(copies)}.json')
            copies[-1].write_bytes(file.read_bytes())
        return result

    with monkeypatch.context() as patch:
        put_os(patch, FaultyOs(copied))
        await finish(opened(file), [])
    assert len(copies) == 1 + 3, 'one for the first node, and one for each step'
    for copy in copies:
        done = [row['node']['number'] for row in stored(copy) if row.get('status') == 'success']
        log: Log = []
        assert await finish(opened(copy, clock=hour_later), log) == [1, 2, 3]
        assert log == [n for n in (1, 2, 3) if n not in done and (len(stored(copy)) == 4)]
        assert [row.get('status') for row in stored(copy)] == ['success', 'success', 'success', None]


@pytest.mark.parametrize('durability', ['full', 'normal'])
async def test_tasks_that_resume_one_instance(tmp_path: Path, durability: Any):
    """Of tasks that resume one instance at once one at least has the result; each step is run once."""
    for number in range(20):
        persistence = opened(tmp_path / f'{number}.json', durability=durability)
        ran: Log = []
        outcomes: list[object] = []

        async def resume(persistence: Persistence = persistence, ran: Log = ran) -> None:
            try:
                outcomes.append(await finish(persistence, ran))  # noqa: B023 -- ends within this turn
            except RunOwnedError as exc:
                outcomes.append(exc)  # noqa: B023

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(resume)
        results = [outcome for outcome in outcomes if not isinstance(outcome, RunOwnedError)]
        assert results
        assert results == [[1, 2, 3]] * len(results)
        assert ran == [1, 2, 3], 'a step was run more than once'
        *nodes, end = await persistence.load_history()
        assert end.kind == 'end'
        assert [[attempt.outcome for attempt in node.attempts] for node in nodes] == [['success']] * 3
        assert not any(attempt.reason for node in nodes for attempt in node.attempts)


@pytest.mark.parametrize('instances', [1, 200])
@pytest.mark.both_backends
async def test_many_tasks(file: Path, instances: int):
    """Two hundred tasks that write to one file at a time all do, with one instance or with one each."""
    several = [opened(file) for _ in range(instances)]
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(several[number % instances].snapshot_node, Tally(), Count(number))
    assert sorted(row['node']['number'] for row in stored(file)) == list(range(200))


# ------------------------------------------------------------------------------------------ what is not a run

NODE = '{"state":{},"node":{"node_id":"Count"},"start_ts":null,"status":"created","kind":"node","id":"x"}'
DAMAGED = {
    'empty': b'',
    'blank': b' \n ',
    'no JSON': b'hello',
    'an object': b'{"a": 1}',
    'null': b'null',
    'a number': b'12',
    'numbers': b'[1, 2]',
    'nulls': b'[null]',
    'arrays': b'[[]]',
    'other objects': b'[{"name": "Ada"}]',
    'another kind': NODE.replace('"kind":"node"', '"kind":"edge"').join('[]').encode(),
    'no kind': NODE.replace('"kind":"node",', '').join('[]').encode(),
    'no id': NODE.replace('"id":"x"', '"id":1').join('[]').encode(),
    'no state': NODE.replace('"state":{},', '').join('[]').encode(),
    'no node': NODE.replace('"node":', '"result":').join('[]').encode(),
    'no such status': NODE.replace('created', 'paused').join('[]').encode(),
    'no such moment': NODE.replace('null', '"noon"').join('[]').encode(),
    'a comma too many': f'[{NODE},]'.encode(),
    'no comma': f'[{NODE}{NODE}]'.encode(),
    'something behind it': f'[{NODE}] x'.encode(),
    'not UTF-8': f'[{NODE}]'.encode().replace(b'"x"', b'"\xff"'),
    'UTF-16': f'[{NODE}]'.encode('utf-16'),
    'zero bytes': b'\0' * 100,
    'nested too deep': NODE.replace('"state":{}', '"state":' + '[' * 100_000 + ']' * 100_000)
    .join('[]')
    .encode(),
    'a second row damaged': f'[{NODE},{{"state":1}}]'.encode(),
    'ours not an object': NODE.replace('"id"', '"graphkeep":[1],"id"').join('[]').encode(),
    'ours damaged': NODE.replace('"id"', '"graphkeep":{"attempts":[[]]},"id"').join('[]').encode(),
    'an endless fence': NODE.replace('"id"', '"graphkeep":{"fence":1e400},"id"').join('[]').encode(),
}
USES: dict[str, Callable[[Persistence], Any]] = {
    'load_all': lambda p: p.load_all(),
    'load_next': lambda p: p.load_next(),
    'load_history': lambda p: p.load_history(),
    'last_state': lambda p: p.last_state(),
    'snapshot_node': lambda p: p.snapshot_node(Tally(), Count()),
    'recover': lambda p: p.recover(),
    'run': lambda p: finish(p, []),
}


@pytest.mark.parametrize('use', USES)
@pytest.mark.parametrize('damage', DAMAGED)
async def test_damaged(file: Path, damage: str, use: str):
    """Whatever is asked of a file that holds no run: an error names the file, which stays as it is."""
    file.write_bytes(DAMAGED[damage])
    persistence = opened(file)
    for _ in range(2):
        with pytest.raises(CorruptSnapshotError, match=r'restore it from a copy') as caught:
            await USES[use](persistence)
        assert str(file) in str(caught.value)
        assert caught.value.place.startswith(str(file))
    assert file.read_bytes() == DAMAGED[damage]
    assert beside(file) <= {'run.json', '.run.json.lock'}


@pytest.mark.parametrize(
    'content, place',
    [
        ('[\n{"state": {},\n "node" 1}]', 'line 3, column 9'),
        ('[\n1]', 'line 2, column 1'),
        (f'[{NODE},\n{NODE},\n{{"kind": "end"}}]', 'snapshot number 3'),
        (f'[{NODE.replace("created", "paused")}]', "snapshot number 1, snapshot 'x'"),
    ],
)
async def test_place_of_damage(file: Path, content: str, place: str):
    """The error says where in the file the damage is."""
    file.write_text(content)
    with pytest.raises(CorruptSnapshotError) as caught:
        await opened(file).load_all()
    assert f'{file}, {place}' in str(caught.value)


async def test_truncated_anywhere(file: Path):
    """A file that ends anywhere before its end is refused and left as it is."""
    await opened(file).snapshot_node(Tally([1]), Count())
    whole = file.read_bytes()
    persistence = opened(file)
    for length in range(len(whole.rstrip())):
        file.write_bytes(whole[:length])
        with pytest.raises(CorruptSnapshotError):
            await persistence.snapshot_node(Tally(), Count())
        assert file.read_bytes() == whole[:length]
    file.write_bytes(whole)
    assert await finish(persistence, []) == [1, 1, 2, 3]


@pytest.mark.parametrize('use', USES)
async def test_directory_in_its_place(file: Path, use: str):
    """A directory where the file should be is reported, and left alone."""
    file.mkdir()
    with pytest.raises(StorageError) as caught:
        await USES[use](opened(file))
    assert caught.value.errno == errno.EISDIR
    assert str(file) in str(caught.value)
    assert list(file.iterdir()) == []


@pytest.mark.parametrize('use', USES)
async def test_file_in_place_of_directory(file: Path, use: str):
    """A file where a parent directory should be is reported."""
    file.write_text('not a directory')
    with pytest.raises(StorageError) as caught:
        await USES[use](opened(file / 'run.json'))
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert str(file / 'run.json') in str(caught.value)


# ------------------------------------------------------------------------------------------ a disk that fails


class Disk:
    """A disk that begins to fail at one call, until it is mended."""

    def __init__(self, file: Path, at: int, *, lasting: bool):
        self._temporary = os.fspath(file.with_name(f'.{file.name}.tmp'))
        self._new: set[int] = set()
        self._file = file
        self._at = at
        self.lasting = lasting
        self.failing = ''
        self.before: bytes | None = None
        """The file at the moment of the first failure."""

    def __call__(self, call: Call) -> Any:
        if self._fails(call):
            if not self.failing:
                self.failing = call.name
                self.before = self.now()
                self._part_of(call)
            raise OSError(errno.ENOSPC, 'No space left on device')
        result = call()
        if call.name == 'open' and call.args[0] == self._temporary:
            self._new = {result}
        return result

    def _fails(self, call: Call) -> bool:
        if call.name == 'unlink' or (call.name == 'close' and call.args[0] not in self._new):
            return False  # neither needs room, and both are how a failure is cleaned up
        return call.index == self._at or (self.lasting and call.name == self.failing)

    def _part_of(self, call: Call) -> None:
        """Do a part of it before it fails, where that can be."""
        if call.name == 'write':
            os.write(call.args[0], call.args[1][: len(call.args[1]) // 2])
        elif call.name == 'close':
            call()

    def now(self) -> bytes | None:
        """Return what is in the file."""
        return self._file.read_bytes() if self._file.exists() else None

    def mend(self) -> None:
        """Let it work again."""
        self._at, self.lasting = -1, False


@pytest.mark.parametrize('lasting', [True, False], ids=['for long', 'once'])
@pytest.mark.parametrize('durability', ['normal', 'full'])
async def test_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Any, lasting: bool):
    """Wherever a disk fails: an error says so, the file stays as it was, and later the run goes on."""
    whole = FaultyOs(lambda call: call())
    put_os(monkeypatch, whole)
    await finish(opened(tmp_path / 'whole' / 'run.json', durability=durability), [])
    failed: list[str] = []
    for at in range(len(whole.names)):
        file = tmp_path / str(at) / 'run.json'
        disk = Disk(file, at, lasting=lasting)
        put_os(monkeypatch, FaultyOs(disk))
        persistence, log = opened(file, durability=durability), Log()
        await _fail(persistence, log, disk)
        failed.append(disk.failing)
        disk.mend()
        assert await finish(persistence, log) == [1, 2, 3], (at, disk.failing)
        assert log == [1, 2, 3], (at, disk.failing)
        assert [row.get('status') for row in stored(file)] == ['success', 'success', 'success', None]
        assert beside(file) == {'run.json', '.run.json.lock'}
    assert {'open', 'write', 'close', 'stat', 'fstat', 'replace'} <= set(failed)
    assert ('fsync' in failed) == (durability == 'full')


async def _fail(persistence: Persistence, log: Log, disk: Disk) -> None:
    """Run the graph on the disk, and check how it failed if it did."""
    try:
        await finish(persistence, log)
    except StorageError as exc:
        caught = exc
    else:
        # that an entry in the lock file has ended is also told by the file: what follows finds a wrong one
        assert disk.failing in ('', 'lseek', 'write'), 'the failure was swallowed'
        return
    assert (caught.errno, caught.place) == (errno.ENOSPC, str(persistence.json_file))
    assert str(persistence.json_file) in str(caught)
    if caught.receipt is None and disk.lasting:
        assert disk.now() == disk.before
    assert not list(persistence.json_file.parent.parent.rglob('*.tmp'))


async def test_failing_node_on_failing_disk(file: Path, monkeypatch: pytest.MonkeyPatch):
    """A node's error reaches its caller when the disk fails as well, and is recorded later."""

    @dataclass
    class Fail(BaseNode[Tally, None, int]):
        async def run(self, ctx: GraphRunContext[Tally, None]) -> End[int]:
            put_os(monkeypatch, FaultyOs(Disk(file, 0, lasting=True)))
            raise ZeroDivisionError('by zero')

    persistence: FileStatePersistence[Tally, int] = FileStatePersistence(file)
    persistence.set_graph_types(Graph(nodes=(Fail,)))
    await persistence.snapshot_node(Tally(), Fail())
    snapshot = await persistence.load_next()
    assert snapshot
    with pytest.raises(ZeroDivisionError) as caught:
        async with persistence.record_run(snapshot.id):
            await snapshot.node.run(GraphRunContext(state=Tally(), deps=None))
    assert any('could not be recorded yet' in note for note in caught.value.__notes__)
    assert stored(file)[0]['status'] == 'running'
    put_os(monkeypatch, os)
    (step,) = await persistence.load_history()
    assert step.status == 'error'
    assert step.error
    assert step.error.type == 'ZeroDivisionError'


async def test_next_after_a_failure_on_failing_disk(file: Path, monkeypatch: pytest.MonkeyPatch):
    """A failure that the disk did not take is recorded before whatever is stored next."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count(1))
    (record,) = await persistence.load_history()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the disk fails once the node runs
        async with persistence.record_run(record.id):
            put_os(monkeypatch, FaultyOs(Disk(file, 0, lasting=True)))
            raise ZeroDivisionError
    put_os(monkeypatch, os)
    await persistence.snapshot_node(Tally(), Count(2))
    assert [row['status'] for row in stored(file)] == ['error', 'created']


async def test_refused_outcome_on_failing_disk(file: Path, monkeypatch: pytest.MonkeyPatch):
    """If the disk fails as well when an outcome is refused, the refusal says so and is recorded later."""
    persistence = opened(file)
    await persistence.snapshot_node(Tally(), Count())
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id):
        pass
    put_os(monkeypatch, FaultyOs(Disk(file, 0, lasting=True)))
    with pytest.raises(UnfaithfulSnapshotError) as refused:
        await persistence.snapshot_node(Tally(), Count(True))
    assert any('could not be recorded' in note for note in refused.value.__notes__)
    put_os(monkeypatch, os)
    assert [step.status for step in await persistence.load_history()] == ['error']


async def test_failure_that_may_not_last(file: Path, monkeypatch: pytest.MonkeyPatch):
    """A failure that is written, of which it is only not certain that it lasts, is not written again."""
    persistence = opened(file, durability='full')
    await persistence.snapshot_node(Tally(), Count())
    (record,) = await persistence.load_history()

    def unsynced(call: Call) -> Any:
        if call.name == 'fsync' and stat.S_ISDIR(os.fstat(call.args[0]).st_mode):
            raise OSError(errno.EIO, 'Input/output error')
        return call()

    with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 -- the disk fails once the node runs
        async with persistence.record_run(record.id):
            put_os(monkeypatch, FaultyOs(unsynced))
            raise ZeroDivisionError
    assert any('may not survive a loss of power' in note for note in caught.value.__notes__)
    assert [row['status'] for row in stored(file)] == ['error']
    written = file.stat()
    assert [step.status for step in await persistence.load_history()] == ['error']
    assert file.stat() == written


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='this user may write everywhere')
async def test_read_only_directory(file: Path):
    """A directory that may not be written to is reported, and what is in it can still be read."""
    await finish(opened(file), [])
    file.parent.chmod(0o500)
    file.with_name('.run.json.lock').unlink(missing_ok=True)
    try:
        with pytest.raises(StorageError) as caught:
            await opened(file).snapshot_node(Tally(), Count())
        assert caught.value.errno == errno.EACCES
        assert len(await opened(file).load_all()) == 4
    finally:
        file.parent.chmod(0o700)


# -------------------------------------------------------------------------------------------------- many runs

REFUSED: dict[str, object] = {
    'empty': '',
    'endless': 'x' * 129,
    'endless once encoded': '日' * 128,
    'here': '.',
    'above': '..',
    'a path above': '../x',
    'hidden': '.x',
    'a path': 'a/b',
    'absolute': '/etc/passwd',
    'a path of Windows': 'a\\b',
    'NUL': 'a\0b',
    'a line feed': 'a\nb',
    'a surrogate': 'a\ud800b',
    'a space first': ' x',
    'bytes': b'x',
    'a number': 5,
    'nothing': None,
    'a path object': Path('x'),
}


@pytest.mark.parametrize('run_id', REFUSED.values(), ids=list(REFUSED))
async def test_refused_run_id(tmp_path: Path, run_id: Any):
    """A run id that could be taken for a path, or is no sensible name, is refused; nothing is written."""
    store = FileStore(tmp_path / 'runs')
    with pytest.raises(InvalidRunIdError, match=r'; give |; begin |bytes, more than') as caught:
        store.run(run_id)
    assert caught.value.run_id == run_id
    assert isinstance(caught.value, ValueError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'run_id', ['x', 'ä', 'run 7', 'a%2Fb', '100%', '日本', '😀', 'x' * 128, 'a..b', '~', 'x.json', '-']
)
async def test_accepted_run_id(tmp_path: Path, run_id: str):
    """A run goes into a file of its own, directly in the directory, and is found there under its id."""
    store = FileStore(tmp_path / 'runs')
    persistence = store.run(run_id)
    assert persistence.run_id == run_id
    assert await finish(persistence, []) == [1, 2, 3]  # pyright: ignore[reportArgumentType]
    assert {path.name[:1] for path in (tmp_path / 'runs').iterdir()} == {store.path(run_id).name[:1], '.'}
    assert len(stored(store.path(run_id))) == 4
    again = FileStore(tmp_path / 'runs').run(run_id)
    again.set_graph_types(graph)
    assert len(await again.load_all()) == 4


@given(st.lists(st.text(max_size=20) | st.text('aA.%2Ff/ \\é', max_size=6), min_size=2, max_size=10))
def test_paths(run_ids: list[str]):
    """Every accepted id has a file of its own in the directory, which is no other's lock or new file."""
    store = FileStore('directory')
    paths: dict[str, str] = {}
    for run_id in run_ids:
        try:
            store.run(run_id)
        except InvalidRunIdError:
            continue
        path = store.path(run_id)
        assert path.parent == Path(os.path.normpath(path)).parent == Path('directory').absolute()
        assert path.suffix == '.json'
        assert not path.name.startswith('.')
        assert len(os.fsencode(f'.{path.name}.lock')) <= 255
        assert paths.setdefault(path.name, run_id) == run_id


def test_wrong_options(tmp_path: Path):
    """A wrong option is refused where it is given."""
    wrong: list[dict[str, Any]] = [{'durability': 'some'}, {'lease': 0}, {'lease': -1}, {'lock_timeout': -1}]
    for options in wrong:
        (name,) = options
        with pytest.raises(ValueError, match=name):
            FileStore(tmp_path, **options)
        with pytest.raises(ValueError, match=name):
            FileStatePersistence(tmp_path / 'x.json', **options)


def test_shown(tmp_path: Path):
    """A persistence shows its file, and takes the file's name for the run's unless it is told another."""
    persistence: Persistence = FileStatePersistence(tmp_path / 'x.json')
    assert repr(persistence) == f'FileStatePersistence(json_file={tmp_path / "x.json"!r})'
    assert persistence.run_id == 'x'
    named: Persistence = FileStatePersistence(str(tmp_path / 'x.json'), run_id='y')
    assert (named.run_id, named.json_file) == ('y', tmp_path / 'x.json')


def by_pickle(persistence: Persistence) -> Persistence:
    """Return what another process gets."""
    return pickle.loads(pickle.dumps(persistence))  # noqa: S301 -- made here


@pytest.mark.both_backends
@pytest.mark.parametrize('copied', [deepcopy, copy_of, by_pickle])
async def test_copies_of_an_instance(file: Path, copied: Callable[[Persistence], Persistence]):
    """A copy of an instance is one more on the same file, with the same options and nothing in hand."""
    options: dict[str, Any] = {'run_id': 'mine', 'durability': 'full', 'lease': 7, 'lock_timeout': 0.5}
    persistence = opened(file, **options, verify=False, clock=hour_later)
    await persistence.snapshot_node(Tally(), Count())
    assert await persistence.load_next()
    twin = copied(persistence)
    assert {name: getattr(twin, name) for name in options} == options
    assert (type(twin), twin.json_file, twin.verify) == (FileStatePersistence, file, False)
    twin.set_graph_types(graph)
    await twin.release()
    with pytest.raises(RunOwnedError):
        await finish(twin, [])
    await persistence.release()
    assert await finish(twin, []) == [1, 2, 3]
    assert await persistence.load_all() == await twin.load_all()


def test_file_of_an_instance_stays(file: Path):
    """The file of an instance cannot be exchanged under the run that it has in hand."""
    persistence: Any = opened(file)
    for name in ('json_file', 'durability'):
        with pytest.raises(AttributeError):
            setattr(persistence, name, 'other')
    assert persistence.json_file == file


class MyFile(FileStatePersistence[Tally, list[int]]):
    """A subclass that does not say what a copy is made of."""


@pytest.mark.parametrize('copied', [deepcopy, pickle.dumps])
def test_copies_of_a_subclass(file: Path, copied: Callable[[object], object]):
    """A subclass of which nobody knows how it is made says that it must define that itself."""
    with pytest.raises(TypeError, match='subclass of FileStatePersistence has to say'):
        copied(MyFile(file))


@pytest.mark.parametrize('run_id', ['../x', '', '.x', 'a/b', 'x' * 129, 'ä' * 120, None])
def test_path_of_no_run_id(tmp_path: Path, run_id: Any):
    """`FileStore.path` gives no path outside of the directory, or that no run can have."""
    with pytest.raises(InvalidRunIdError):
        FileStore(tmp_path).path(run_id)
    assert FileStore(tmp_path).path('order 1') == tmp_path / 'order%201.json'
