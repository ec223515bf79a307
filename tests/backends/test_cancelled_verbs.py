"""A verb of a store that is cancelled at whatever await was made, and its caller is told when it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from graphkeep import FileStatePersistence, Store
from tests.backends.stores import STORES, Clock, Tally, begin, count_up, fail, in_hand, nowhere, statuses
from tests.backends.stores import Count as CountNode

pytestmark = pytest.mark.anyio

TURNS = [*range(20), *range(20, 200, 20)]


async def exported(store: Store, directory: Path) -> bytes:
    """Return a run as JSON."""
    file = directory / 'other.json'
    await count_up.initialize(CountNode(), FileStatePersistence[Any, Any](file), state=Tally())
    return file.read_bytes()


class Verb:
    """A verb, what it needs, and what is there once it was made."""

    def __init__(self, store: Store, clock: Clock, directory: Path):
        self.store, self.clock, self.directory = store, clock, directory
        self.kept: list[object] = []

    async def prepare(self) -> None:
        await begin(self.store, 'run', steps=1)

    async def call(self) -> None:
        raise NotImplementedError

    async def made(self) -> bool:
        raise NotImplementedError


class Fork(Verb):
    async def call(self) -> None:
        await self.store.fork('run', into='fork')

    async def made(self) -> bool:
        return not await nowhere(self.store, 'fork')


class Import(Verb):
    async def prepare(self) -> None:
        self.data = await exported(self.store, self.directory)

    async def call(self) -> None:
        await self.store.import_run(self.data, run_id='imported')

    async def made(self) -> bool:
        return not await nowhere(self.store, 'imported')


class Delete(Verb):
    async def call(self) -> None:
        await self.store.delete('run')

    async def made(self) -> bool:
        return await nowhere(self.store, 'run')


class Retry(Verb):
    async def prepare(self) -> None:
        await begin(self.store, 'run')
        await fail(self.store, 'run', at=1)

    async def call(self) -> None:
        await self.store.retry('run')

    async def made(self) -> bool:
        return await statuses(self.store, 'run') == ['created']


class Recover(Verb):
    async def prepare(self) -> None:
        await begin(self.store, 'run')
        self.kept.append(await in_hand(self.store, 'run'))
        self.clock.forward(60)

    async def call(self) -> None:
        await self.store.recover('run')

    async def made(self) -> bool:
        return await statuses(self.store, 'run') == ['created']


async def in_task(verb: Verb, turns: int) -> bool:
    """Cancel with `Task.cancel()`; return whether the caller was told."""
    task = asyncio.create_task(verb.call())
    await asyncio.sleep(0)  # into the verb: what was never called is not made
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


async def in_scope(verb: Verb, turns: int) -> bool:
    """Cancel with a scope."""
    called, done = anyio.Event(), anyio.Event()
    scope = anyio.CancelScope()

    async def call() -> None:
        with scope:
            called.set()
            if not turns:
                scope.cancel()  # before it begins
            await verb.call()
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await called.wait()
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        await done.wait()
    return scope.cancelled_caught


WAYS: list[tuple[str, Callable[[Verb, int], Awaitable[bool]]]] = [
    ('asyncio', in_task),
    ('asyncio', in_scope),
    ('trio', in_scope),
]


@pytest.mark.parametrize('anyio_backend, way', WAYS, ids=lambda v: getattr(v, '__name__', v))
@pytest.mark.parametrize('verb_type', [Fork, Import, Delete, Retry, Recover])
@pytest.mark.parametrize('name', STORES)
async def test_cancelled(
    tmp_path: Path,
    name: str,
    verb_type: type[Verb],
    way: Callable[[Verb, int], Awaitable[bool]],
):
    """Whenever it is cancelled, a verb that was called was made when its caller goes on."""
    caught = 0
    for turns in TURNS:
        directory = tmp_path / str(turns)
        directory.mkdir()
        clock = Clock()
        async with STORES[name](directory, clock) as store:
            verb = verb_type(store, clock, directory)
            await verb.prepare()
            told = await way(verb, turns)
            assert await verb.made(), f'cancelled after {turns} turns it was not made'
            caught += told
            if not told and turns > 3:
                break
    assert caught, 'no cancellation came while it was made'


@pytest.mark.both_backends
async def test_error_comes_first(tmp_path: Path):
    """A verb that cannot be made says so, and the cancellation comes at the next await."""
    async with STORES['sqlite'](tmp_path, Clock()) as store:
        errors: list[Exception] = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await store.fork('unknown', into='fork')
            except LookupError as exc:
                errors.append(exc)
            await anyio.lowlevel.checkpoint()
            pytest.fail('the cancellation was swallowed')
        assert scope.cancelled_caught
        assert len(errors) == 1


@pytest.mark.both_backends
@pytest.mark.parametrize('name', STORES)
async def test_prune_stops_between_two_runs(tmp_path: Path, name: str):
    """A cancelled `prune` leaves whole runs, and when it is called again it does the rest."""
    clock = Clock()
    async with STORES[name](tmp_path, clock) as store:
        for number in range(6):
            await begin(store, f'{number}', steps=4)
        clock.forward(60)
        before = clock()
        for turns in (1, 3, 6):

            async def prune() -> None:
                await store.prune(older_than=before)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prune)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            for info in await store.runs():
                assert await statuses(store, info.id) == ['success'] * 5
        left = len(await store.runs())
        assert (await store.prune(older_than=before)).runs == left
        assert await store.runs() == []
