"""A process that is forked while its SQLite file is open: neither side harms what the other one stores."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from graphkeep import CorruptSnapshotError, SqliteStore, StorageError, run_or_resume, sqlfork
from graphkeep.sqldb import Database
from tests.backends.counting import Count, Tally, graph

pytestmark = [
    pytest.mark.skipif(not hasattr(os, 'fork'), reason='the platform does not fork'),
    pytest.mark.filterwarnings('ignore:This process:DeprecationWarning'),
]

Durability = Literal['normal', 'full']


async def finish(store: SqliteStore, *run_ids: str) -> None:
    """Run these to their ends, one after the other."""
    for run_id in run_ids:
        result = await run_or_resume(graph, Count(), state=Tally(), deps=None, persistence=store.run(run_id))
        assert result.output == [1, 2, 3]


@contextmanager
def forked(child: Callable[[], str]) -> Generator[Callable[[], str]]:
    """Fork, and have the child call it; give what waits for what that returned, or raised."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            signal.alarm(60)  # one that hangs ends
            os.close(reading)
            try:
                answer = child()
            except BaseException as exc:
                answer = repr(exc)
            os.write(writing, answer.encode())
        finally:
            os._exit(0)
    os.close(writing)

    def told() -> str:
        with os.fdopen(os.dup(reading), 'rb') as pipe:
            return pipe.read().decode()

    try:
        yield told
    finally:
        os.close(reading)
        os.waitpid(pid, 0)


def stored(path: Path) -> list[str]:
    """Return the runs that have ended, as another process sees them, if the file is sound."""
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
((verdict,),) = db.execute('PRAGMA integrity_check')
assert verdict == 'ok', verdict
print(*(run_id for run_id, in db.execute('SELECT id FROM runs WHERE finished = 1 ORDER BY id')))
"""
    return asyncio.run(_output(script, str(path))).split()


def wait_for(path: Path, run_id: str) -> None:
    """Wait until another process sees that a run has ended."""
    deadline = time.monotonic() + 20
    while run_id not in (found := stored(path)):
        assert time.monotonic() < deadline, found


async def _output(script: str, *args: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, '-c', script, *args, stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert process.returncode == 0
    return told.decode()


@contextmanager
def steps() -> Generator[tuple[Callable[[], object], Callable[[], object]]]:
    """Give what the parent calls to let the child go on, and what the child waits with for that."""
    reading, writing = os.pipe()
    try:
        yield (lambda: os.write(writing, b'.')), (lambda: os.read(reading, 1))
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize('durability', ['normal', 'full'])
@pytest.mark.parametrize('new', [False, True])
def test_parent_that_closes(tmp_path: Path, durability: Durability, new: bool):
    """What a child stores is there, also when the parent has closed the file, and others go on in it."""
    path = tmp_path / 'runs.db'
    store = SqliteStore(path, durability=durability)
    asyncio.run(finish(store, 'parent-1'))

    with steps() as (go_on, wait):

        def child() -> str:
            own = SqliteStore(path, durability=durability) if new else store
            asyncio.run(finish(own, 'child-1'))
            wait()
            asyncio.run(finish(own, 'child-2'))
            wait()
            asyncio.run(finish(own, 'child-3'))
            return 'done'

        with forked(child) as told:
            asyncio.run(finish(store, 'parent-2'))
            wait_for(path, 'child-1')
            asyncio.run(store.aclose())
            go_on()
            wait_for(path, 'child-2')
            third = SqliteStore(path)
            asyncio.run(finish(third, 'third'))
            asyncio.run(third.aclose())
            go_on()
            assert told() == 'done'
    assert stored(path) == ['child-1', 'child-2', 'child-3', 'parent-1', 'parent-2', 'third']


@pytest.mark.parametrize('durability', ['normal', 'full'])
def test_busy_threads(tmp_path: Path, durability: Durability):
    """Whatever other threads of the parent are at when it forks, both sides go on, and lose nothing."""
    path = tmp_path / 'runs.db'
    store = SqliteStore(path, durability=durability)
    ended, ran, failed = threading.Event(), list[str](), list[BaseException]()

    async def run_many(thread: int) -> None:
        number = 0
        while not ended.is_set():
            run_id = f'thread-{thread}-{number}'
            await finish(store, run_id)
            ran.append(run_id)
            # one that has not gone through all that there is
            assert len(await store.runs(limit=2)) == min(2, len(ran)) or len(ran) < 4
            number += 1

    def run_thread(thread: int) -> None:
        try:
            asyncio.run(run_many(thread))
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run_thread, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):

            def child(run_id: str = f'child-{number}') -> str:
                asyncio.run(finish(store, run_id))
                return run_id

            with forked(child) as told:
                ran.append(told())
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failed
    asyncio.run(store.aclose())
    assert stored(path) == sorted(ran)
    assert {f'child-{number}' for number in range(20)} <= {*ran}


def begin_to_use(store: SqliteStore) -> list[threading.Thread]:
    """Write and read, each in a thread of its own."""
    threads = [
        threading.Thread(target=lambda: asyncio.run(finish(store, 'four')), daemon=True),
        threading.Thread(target=lambda: asyncio.run(store.runs()), daemon=True),
    ]
    for thread in threads:
        thread.start()
    return threads


def test_all_is_closed(tmp_path: Path):
    """Before a fork the file is closed, whatever was read and written; nobody opens it until that is over."""
    path = tmp_path / 'runs.db'
    log = tmp_path / 'runs.db-wal'  # the last connection that is closed deletes it
    store = SqliteStore(path)
    database = cast(Database, cast(Any, store)._database)
    asyncio.run(finish(store, 'one', 'two', 'three'))
    assert len(asyncio.run(store.runs(limit=1))) == 1
    assert len(asyncio.run(store.history('one'))) == 4
    assert log.exists()
    assert database.pause(time.monotonic() + 5)
    try:
        assert not log.exists()
        threads = begin_to_use(store)
        time.sleep(0.1)
        assert all(thread.is_alive() for thread in threads)
        assert not log.exists()
    finally:
        database.resume()
    for thread in threads:
        thread.join()
    assert len(asyncio.run(store.runs())) == 4
    asyncio.run(store.aclose())


@pytest.mark.parametrize('busy', ['reading', 'writing'])
def test_file_that_cannot_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: str):
    """A child of a process that could not close the file in time is refused, and its parent goes on."""
    monkeypatch.setattr(sqlfork, '_PATIENCE', 0.05)
    path = tmp_path / 'runs.db'
    store = SqliteStore(path)
    database = cast(Database, cast(Any, store)._database)
    asyncio.run(finish(store, 'one'))
    at_it, over = threading.Event(), threading.Event()

    def stay(*_: object) -> None:
        at_it.set()
        assert over.wait(20)

    def read() -> None:
        with database.readers.reading():
            stay()

    thread = threading.Thread(target=read if busy == 'reading' else lambda: database.write(stay), daemon=True)
    thread.start()
    assert at_it.wait(20)

    def child() -> str:
        refused = list[str]()
        for one in store, SqliteStore(path):
            try:
                asyncio.run(finish(one, 'two'))
            except StorageError as exc:
                refused.append(str(exc))
        assert len(refused) == 2
        asyncio.run(finish(SqliteStore(tmp_path / 'other.db'), 'two'))
        return refused[1]

    with forked(child) as told:
        assert (
            'in use while this process was forked: fork before the store is used, or start processes with '
            "'spawn' or 'forkserver'" in told()
        )
    over.set()
    thread.join()
    asyncio.run(finish(store, 'three'))
    # a fork in which all can be closed does not undo an earlier one, but this process has none behind it
    with forked(lambda: asyncio.run(finish(store, 'four')) or 'done') as told:
        assert told() == 'done'
    asyncio.run(store.aclose())
    assert stored(path) == ['four', 'one', 'three']
    assert stored(tmp_path / 'other.db') == ['two']


@pytest.mark.parametrize('fails', [False, True])
def test_what_is_not_yet_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool):
    """Before the file is closed for a fork the disk has what was committed; else it is not closed."""
    store = SqliteStore(tmp_path / 'runs.db', durability='full')
    database = cast(Database, cast(Any, store)._database)
    asyncio.run(finish(store, 'one'))
    asked, real = list[bool](), os.fsync

    def fdatasync(fd: int) -> None:
        asked.append((tmp_path / 'runs.db-wal').exists())
        if fails:
            raise OSError(errno.EIO, 'broken')
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr('graphkeep.sqllog.os.fdatasync', fdatasync)
        assert database.pause(time.monotonic() + 5) is not fails
    assert asked == [True]
    if not fails:
        database.resume()
        asyncio.run(finish(store, 'two'))
    assert len(asyncio.run(store.runs())) == 2 - fails
    asyncio.run(store.aclose())


@pytest.mark.parametrize('durability', ['normal', 'full'])
def test_log_that_was_deleted(tmp_path: Path, durability: Durability):
    """Who deletes the log takes with it what was committed; that is told, and no more is accepted."""
    path = tmp_path / 'runs.db'
    store = SqliteStore(path, durability=durability)
    asyncio.run(finish(store, 'one'))
    path.with_name('runs.db-wal').unlink()
    for number in range(3):
        with pytest.raises(CorruptSnapshotError, match='log was deleted while it was in use'):
            asyncio.run(finish(store, *(f'more-{number}-{count}' for count in range(30))))
    with pytest.raises(CorruptSnapshotError, match='may be lost'):
        asyncio.run(store.aclose())
    asyncio.run(finish(store, 'anew'))
    asyncio.run(store.aclose())
    assert 'anew' in stored(path)


def test_interrupted_fork(tmp_path: Path):
    """Who interrupts a fork that waits for a reader gets the interrupt, and the store goes on."""
    store = SqliteStore(tmp_path / 'runs.db')
    database = cast(Database, cast(Any, store)._database)
    asyncio.run(finish(store, 'one'))
    at_it, over = threading.Event(), threading.Event()

    def read() -> None:
        with database.readers.reading():
            at_it.set()
            assert over.wait(20)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert at_it.wait(20)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    began = time.monotonic()

    def child() -> str:
        return 'forked'

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 -- it comes at any time after the fork
            timer.start()
            with forked(child) as told:
                told()
            time.sleep(5)
    finally:
        over.set()
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 5
    thread.join()
    asyncio.run(finish(store, 'two'))
    assert len(asyncio.run(store.runs())) == 2
    asyncio.run(store.aclose())


def test_busy_reader_and_a_writer(tmp_path: Path):
    """A fork that waits for a reader keeps nobody from writing, however short a time they would wait."""
    store = SqliteStore(tmp_path / 'runs.db', busy_timeout=0)
    database = cast(Database, cast(Any, store)._database)
    asyncio.run(finish(store, 'one'))
    at_it, over = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def read() -> None:
        with database.readers.reading():
            at_it.set()
            assert over.wait(20)

    def write() -> None:
        number = 0
        try:
            while not over.is_set():
                database.write(lambda db: None)
                number += 1
                time.sleep(0.01)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=target, daemon=True) for target in (read, write)]
    for thread in threads:
        thread.start()
    assert at_it.wait(20)
    threading.Timer(0.5, over.set).start()
    with forked(lambda: asyncio.run(finish(store, 'two')) or 'done') as told:
        assert told() == 'done'
    for thread in threads:
        thread.join()
    assert not failed
    asyncio.run(store.aclose())
    assert stored(tmp_path / 'runs.db') == ['one', 'two']


def test_deleted_log_and_others(tmp_path: Path):
    """What is left of a log that was deleted is not written over what others have committed since."""
    path = tmp_path / 'runs.db'
    store = SqliteStore(path)
    asyncio.run(finish(store, 'one'))
    for end in '-wal', '-shm':
        path.with_name(f'runs.db{end}').unlink()
    script = f"""
import asyncio, sys
sys.path[:] = {sys.path!r}
from pathlib import Path
from graphkeep import SqliteStore
from tests.backends.test_sqlite_forks import finish
async def main():
    async with SqliteStore(sys.argv[1]) as store:
        await finish(store, *(f'other-{{number}}' for number in range(30)))
asyncio.run(main())
"""
    asyncio.run(_output(script, str(path)))
    there = stored(path)
    assert len(there) >= 30
    asyncio.run(finish(store, 'two'))
    with forked(lambda: asyncio.run(finish(SqliteStore(path), 'three')) or 'done') as told:
        assert 'in use while this process was forked' in told()
    with pytest.raises(CorruptSnapshotError, match='may be lost'):
        asyncio.run(store.aclose())
    assert stored(path) == there
    asyncio.run(finish(store, 'anew'))
    asyncio.run(store.aclose())
    assert stored(path) == sorted([*there, 'anew'])


def test_opened_again_twice(tmp_path: Path):
    """To open a file again that is open already does nothing."""
    store = SqliteStore(tmp_path / 'runs.db')
    database = cast(Database, cast(Any, store)._database)
    asyncio.run(finish(store, 'one'))
    assert database.pause(time.monotonic() + 5)
    database.readers.resume()
    database.resume()
    database.resume()
    asyncio.run(finish(store, 'two'))
    assert len(asyncio.run(store.runs())) == 2
    asyncio.run(store.aclose())


INTERRUPTED = """
import _thread, asyncio, logging, os, signal, sys
import anyio, filelock, pydantic_graph  # whose hooks come before that one

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where interrupts are ignored
os.register_at_fork(after_in_parent=_thread.interrupt_main)  # raised as the next hook begins: ours

from graphkeep import SqliteStore, run_or_resume
from tests.backends.counting import Count, Tally, graph

async def finish(run_id):
    await asyncio.wait_for(
        run_or_resume(graph, Count(), state=Tally(), deps=None, persistence=store.run(run_id)), 20
    )

store = SqliteStore(sys.argv[1])
asyncio.run(finish('one'))
if (pid := os.fork()) == 0:
    os._exit(0)
os.waitpid(pid, 0)
asyncio.run(finish('two'))
print('went on')
"""


def test_interrupt_that_is_lost(tmp_path: Path):
    """An interrupt during the fork, which Python can only print, does not keep the file from being opened."""
    path = tmp_path / 'runs.db'
    done = subprocess.run(
        [sys.executable, '-c', INTERRUPTED, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 'Exception ignored' in done.stderr
    assert '_after_in_parent' in done.stderr
    assert done.stdout == 'went on\n', done.stderr
    assert stored(path) == ['one', 'two']
