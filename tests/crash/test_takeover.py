"""A process that is stopped, or killed with the lock held: others go on, and it does no harm later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
import pytest

from graphkeep import FileStatePersistence, LockTimeoutError, RunOwnedError, run_or_resume
from tests.counts import count
from tests.crash.children import (
    ANSWER,
    Trail,
    child,
    finish,
    hang_graph,
    hang_in_lock,
    hang_in_node,
    heard,
    hour_later,
    run_chain,
)
from tests.rawfile import stored


async def _take_over(file: Path, hours: float) -> str:
    """Go on with the run, so many hours from now."""
    persistence: FileStatePersistence[Trail, str] = FileStatePersistence(
        file, clock=partial(hour_later, hours)
    )
    result = await run_or_resume(hang_graph, persistence=persistence)
    return result.output


def _wait_until(seen: Callable[[], bool]) -> None:
    """Look again and again for what a child does; fail rather than wait for ever."""
    patience = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < patience, 'the child did not do it'


async def _recover(file: Path, hours: float) -> int:
    """Set the run back, so many hours from now."""
    return await FileStatePersistence[Trail, str](file, clock=partial(hour_later, hours)).recover()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    'lease, said',
    [
        pytest.param(1.0, ['cancelled', 'OwnershipLostError'], id='the heartbeat notices'),
        pytest.param(1800.0, ['OwnershipLostError'], id='the write is refused'),
    ],
)
def test_stopped_in_a_node(tmp_path: Path, lease: float, said: list[str]):
    """A process that was stopped for longer than its lease is refused, and the run is not harmed."""
    for number in range(count(50) if lease > 1 else count(25)):
        file = tmp_path / f'{number}.json'
        with child(hang_in_node, file, lease) as (process, near):
            assert heard(near) == 'in the node'
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            with pytest.raises(RunOwnedError, match=f'process {process.pid}'):
                anyio.run(_take_over, file, -1)
            assert anyio.run(_take_over, file, 1) == 'taken over'
            finished = file.read_bytes()
            if len(said) == 1:
                near.send('too late')
            os.kill(process.pid, signal.SIGCONT)
            assert [heard(near) for _ in said] == said
            process.join()
        assert file.read_bytes() == finished
        step, end = stored(file)
        assert (step['status'], end['result']['data']) == ('success', 'taken over')
        assert [a['outcome'] for a in step['graphkeep']['attempts']] == ['recovered', 'success']


def test_lives_on(tmp_path: Path):
    """Nobody takes a run over whose owner lives and renews its lease."""
    file = tmp_path / 'run.json'
    with child(hang_in_node, file, 0.3) as (process, near):
        assert heard(near) == 'in the node'
        (first,) = stored(file)
        _wait_until(lambda: stored(file)[0]['graphkeep']['expires'] > first['graphkeep']['expires'])
        before = stored(file)[0]
        for intrude in (_take_over, _recover):
            with pytest.raises(RunOwnedError, match=f'process {process.pid}'):
                anyio.run(intrude, file, 0)
        assert (stored(file)[0]['status'], before['status']) == ('running', 'running')
        near.send('done')
        assert heard(near) == 'done'


@pytest.mark.parametrize('new', [True, False])
def test_killed_in_the_lock(tmp_path: Path, new: bool):
    """A lock goes with the process that held it: whoever comes next does not wait."""
    file, log = tmp_path / 'run.json', tmp_path / 'log'
    if not new:
        with child(finish, file, log, 0) as (process, near):
            assert heard(near) == 'begins'
            _wait_until(file.exists)
            process.kill()
            process.join()
    with child(hang_in_lock, file, log) as (process, near):
        assert heard(near) == 'in the lock'
        process.kill()
        process.join()
        assert anyio.run(partial(run_chain, file, log, 0, lock_timeout=0)) == ANSWER


def test_locked(tmp_path: Path):
    """Who waits for the lock in vain is told for which file, and may try again when it is let go."""
    file, log = tmp_path / 'run.json', tmp_path / 'log'
    with child(hang_in_lock, file, log) as (_, near):
        assert heard(near) == 'in the lock'
        with pytest.raises(LockTimeoutError, match=r'locked by somebody else for 0\.05 s') as caught:
            anyio.run(partial(run_chain, file, log, 0, lock_timeout=0.05))
        assert str(file) in str(caught.value)
        assert caught.value.place == str(file)
        assert isinstance(caught.value, TimeoutError)
        near.send('let go')
        assert heard(near) == ANSWER
        assert anyio.run(run_chain, file, log, 0) == ANSWER
