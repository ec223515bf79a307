"""Turns: what goes on without waiting lets others go on, and does not ask more often than needed."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from graphkeep import turns
from graphkeep.promise import Promise
from graphkeep.turns import Stint

pytestmark = pytest.mark.anyio


class Clock:
    """Tells how long it took what was worked, and nothing else."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that only work moves."""
    clock = Clock()
    monkeypatch.setattr(turns, 'perf_counter', lambda: clock.now)
    return clock


async def worked(clock: Clock, seconds: float, steps: int) -> None:
    """Go on for so many steps of so many seconds, and give way whenever it is time to."""
    stint = Stint()
    for _ in range(steps):
        if stint.is_over:
            await stint.give_way()
        clock.now += seconds


async def watch(clock: Clock, gaps: list[float]) -> None:
    """Tell how long others in the event loop wait each time that it comes round."""
    while True:
        before = clock.now
        await checkpoint()
        gaps.append(clock.now - before)


@pytest.mark.both_backends
async def test_alone(clock: Clock):
    """Who is alone gives way every 2 ms."""
    stint, asked = Stint(), 0
    for _ in range(1_000):
        if stint.is_over:
            await stint.give_way()
            asked += 1
        clock.now += 0.0001
    assert 40 <= asked <= 50


@pytest.mark.both_backends
@pytest.mark.parametrize('runs', [1, 10, 100])
async def test_others_wait_for_about_one_stint(clock: Clock, runs: int):
    """However many go on, what else runs in the event loop waits for some milliseconds and not for all."""
    gaps: list[float] = []
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as working:
            for _ in range(runs):
                working.start_soon(worked, clock, 0.0001, 200)
            tasks.start_soon(watch, clock, gaps)
        tasks.cancel_scope.cancel()
    assert clock.now == pytest.approx(runs * 0.02)
    assert max(gaps) < 0.01


@pytest.mark.both_backends
async def test_everybody_has_a_turn(clock: Clock):
    """Of those that wait, the one that has waited longest is the next."""
    done: Counter[int] = Counter()

    async def work(number: int) -> None:
        stint = Stint()
        while min(done[n] for n in range(20)) < 100:
            await stint.give_way()
            assert done[number] - min(done[n] for n in range(20)) <= 5
            done[number] += 1
            clock.now += 0.001

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(work, number)


@pytest.mark.both_backends
async def test_many_that_do_little(clock: Clock):
    """Where those that wait take next to no time, many go on in one round."""
    rounds = 0

    async def watch() -> None:
        nonlocal rounds
        while True:
            await checkpoint()
            rounds += 1

    async def work() -> None:
        stint = Stint()
        for _ in range(20):
            await stint.give_way()
            clock.now += 0.00001

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        async with anyio.create_task_group() as working:
            for _ in range(200):
                working.start_soon(work)
        tasks.cancel_scope.cancel()
    assert rounds < 200, 'of 4,000 turns'


@pytest.mark.both_backends
async def test_many_that_do_little_and_then_much(clock: Clock):
    """Where those that took next to no time all go on for long, others do not wait for all of them."""
    gaps: list[float] = []

    async def work() -> None:
        stint = Stint()
        for _ in range(20):
            await stint.give_way()
        for _ in range(100):
            if stint.is_over:
                await stint.give_way()
            clock.now += 0.00001

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, clock, gaps)
        async with anyio.create_task_group() as working:
            for _ in range(200):
                working.start_soon(work)
        tasks.cancel_scope.cancel()
    assert max(gaps) < 0.02, 'of 200 ms in all'


@pytest.mark.both_backends
async def test_cancelled_while_waiting(clock: Clock):
    """Who is cancelled while it waits for its turn is told, and keeps nobody else from having one."""
    done: list[int] = []

    async def work(number: int) -> None:
        await Stint().give_way()
        done.append(number)
        clock.now += 1

    scopes = [anyio.CancelScope() for _ in range(10)]

    async def scoped(number: int) -> None:
        with scopes[number]:
            await work(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(scoped, number)
            await checkpoint()
            for scope in scopes[3:9]:
                scope.cancel()
    assert {9} <= set(done) <= {0, 1, 2, 9}
    assert all(scope.cancelled_caught for scope in scopes[3:9])


def test_two_loops():
    """Each event loop has turns of its own."""
    ended: list[None] = []

    async def work() -> None:
        stint = Stint()
        for _ in range(100):
            await stint.give_way()
        ended.append(None)

    async def run() -> None:
        await asyncio.gather(*(work() for _ in range(10)))

    threads = [threading.Thread(target=lambda: asyncio.run(run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 20


async def _crowd() -> None:
    """Have many wait for turns."""

    async def work() -> None:
        stint = Stint()
        while True:
            await stint.give_way()

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(work)


@pytest.mark.parametrize('backend', ['asyncio', 'trio'])
def test_loop_that_ends_while_many_wait(backend: str):
    """An event loop ends as it would without turns, with whatever it was cancelled by."""

    async def main() -> None:
        with anyio.move_on_after(0.05):
            await _crowd()

    for _ in range(5):
        anyio.run(main, backend=backend)


@pytest.mark.parametrize('backend', ['asyncio', 'trio'])
def test_loops_are_not_kept(backend: str):
    """Nothing keeps an event loop that has ended, also while many waited."""
    loops: list[weakref.ref[object]] = []

    async def wait(promise: Promise[None]) -> None:
        stint = Stint()
        stint.turns.gather(Basket(), promise)
        while True:
            await stint.ended(promise, stint.turns)
            await checkpoint()
            promise = Promise[None]()
            stint.turns.gather(Basket(), promise)

    async def crowd() -> None:
        with anyio.move_on_after(0.02):
            async with anyio.create_task_group() as tasks:
                for _ in range(50):
                    tasks.start_soon(wait, Promise[None]())

    async def main() -> None:
        loop = asyncio.get_running_loop if backend == 'asyncio' else trio.lowlevel.current_trio_token
        loops.append(weakref.ref(loop()))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(worked, Clock(), 0.1, 3)
                tasks.start_soon(gather, Basket(), Stint())
        await crowd()

    for _ in range(3):
        anyio.run(main, backend=backend)
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3


class Basket:
    """Has things done together, and tells how many at a time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.elsewhere = False
        """Whether another thread tells that they are done."""

    def make_gathered(self, gathered: list[Any], in_loop: Any) -> None:
        self.sizes.append(len(gathered))

        def tell() -> None:
            for promise in gathered:
                promise.resolve(None)

        if self.elsewhere:
            threading.Thread(target=in_loop, args=(tell,)).start()
        else:
            tell()


async def gather(basket: Basket, stint: Stint) -> BaseException | None:
    """Have one thing done together with others; return a cancellation that came meanwhile."""
    promise = Promise[None]()
    stint.turns.gather(basket, promise)
    return await stint.ended(promise, stint.turns)


@pytest.mark.both_backends
@pytest.mark.parametrize('elsewhere', [False, True])
async def test_done_together(clock: Clock, elsewhere: bool):
    """What is gathered in a round is done together, and those who waited go on in about 2 ms a round."""
    basket, gaps, done = Basket(), list[float](), Counter[int]()
    basket.elsewhere = elsewhere

    async def work(number: int) -> None:
        stint = Stint()
        for _ in range(50):
            if stint.is_over and not stint.turns.crowded:
                await stint.give_way()
            clock.now += 0.0001
            await gather(basket, stint)
            done[number] += 1

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, clock, gaps)
            async with anyio.create_task_group() as working:
                for number in range(100):
                    working.start_soon(work, number)
            tasks.cancel_scope.cancel()
    assert done == dict.fromkeys(range(100), 50)
    assert sum(basket.sizes) == 5_000
    assert len(basket.sizes) < 1_000
    assert max(gaps) < 0.01


@pytest.mark.both_backends
async def test_cancelled_while_it_is_done(clock: Clock):
    """Who is cancelled while something is done for it goes on when that is known, and not before."""
    promise, told = Promise[None](), list[bool]()

    async def wait() -> None:
        stint = Stint()
        await stint.ended(promise, stint.turns)
        told.append(promise.done())
        await checkpoint()
        told.append(False)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
                assert told == []
                promise.resolve(None)
    assert told == [True]


async def test_cancelled_by_asyncio_while_it_is_done():
    """A cancellation that comes once is handed to who waited."""
    promise, stint = Promise[None](), Stint()

    async def wait() -> BaseException | None:
        return await stint.ended(promise, stint.turns)

    task = asyncio.create_task(wait())
    await checkpoint()
    task.cancel('enough')
    await anyio.sleep(0.01)
    assert not task.done()
    promise.resolve(None)
    interrupted = await task
    assert isinstance(interrupted, asyncio.CancelledError)
    assert interrupted.args == ('enough',)


@pytest.mark.both_backends
async def test_always_cancellable(clock: Clock):
    """Who only ever waits for what is done at the end of each round can be cancelled from outside."""
    basket = Basket()

    async def work() -> None:
        stint = Stint()
        while True:
            interrupted = await gather(basket, stint)
            if interrupted is not None:
                raise interrupted
            if stint.turns.on_trio:  # which leaves that to whoever waits
                await checkpoint_if_cancelled()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(work)
            await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
    assert basket.sizes


async def test_others_gather_though_one_raises(clock: Clock):
    """What goes wrong in one place does not keep the others from being done, nor the turns from going on."""
    good, done = Basket(), list[int]()

    class Bad(Basket):
        def make_gathered(self, gathered: list[Any], in_loop: Any) -> None:
            super().make_gathered(gathered, in_loop)
            raise ValueError('bad')

    bad = Bad()

    async def work(number: int) -> None:
        await gather((good, bad)[number % 2], Stint())
        done.append(number)

    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context['exception']))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(work, number)
    assert sorted(done) == list(range(20))
    assert [str(exc) for exc in raised] == ['bad']


async def test_interrupted_between_two_rounds(clock: Clock):
    """What interrupts the handing on of turns is raised there, and the turns go on."""
    mine: Any = turns._of_loop
    await Stint().give_way()
    waiting = mine.get()._waiting

    def interrupt() -> None:
        raise ValueError('now')

    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context['exception']))
    first, second = (asyncio.create_task(Stint().give_way()) for _ in range(2))
    await asyncio.sleep(0)
    waiting.appendleft(interrupt)
    with anyio.fail_after(5):
        await first
        await second
    assert [str(exc) for exc in raised] == ['now']
