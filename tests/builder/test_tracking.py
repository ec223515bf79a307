"""What `Tracker` knows: whether the state holds something that a task in flight has done."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from types import coroutine
from typing import Any

import pytest

from graphkeep.tracking import Flight, Tracker, Tracking, is_immutable


@coroutine
def pause() -> Generator[str, Any, Any]:
    """End a slice; return what the next one is begun with."""
    return (yield 'pause')


class Run:
    """A state, a tracker of it, and tasks that are driven slice by slice."""

    def __init__(self, tracking: Tracking = 'exact'):
        self.state: list[str] = []
        self.dumps = 0
        self.tracker = Tracker(self.dump, tracking, b'[]')
        self.work: dict[Flight, Generator[Any, Any, Any]] = {}
        self.coroutines: list[Coroutine[Any, Any, Any]] = []

    def dump(self) -> bytes:
        """Return what the state would be stored as."""
        self.dumps += 1
        return repr(self.state).encode()

    def begin(self, *slices: str | None, ends: bool = True) -> Flight:
        """Begin a task that in each of its slices appends this to the state, or does not change it."""

        async def work() -> str:
            for number, mark in enumerate(slices):
                if number:
                    await pause()
                if mark is not None:
                    self.state.append(mark)
            return 'done'

        return self.drive(work, ends=ends)

    def drive(self, work: Callable[[], Coroutine[Any, Any, Any]], *, ends: bool = True) -> Flight:
        """Begin a task that does this."""
        flight = Flight()
        self.tracker.enter(flight)
        self.coroutines.append(work())
        driven: Any = self.tracker.drive(flight, self.coroutines[-1], ends=ends)
        self.work[flight] = driven  # a generator, until it is awaited
        return flight

    def go_on(self, flight: Flight) -> bool:
        """Run the next slice of a task; return whether it has ended."""
        ended = next(self.work[flight], 'ended')
        if ended == 'ended':
            self.tracker.leave(flight)
        return ended == 'ended'


@pytest.fixture
def run() -> Iterator[Run]:
    """Return a run whose slices are compared."""
    yield (run := Run())
    for work in run.coroutines:
        work.close()


@pytest.fixture
def barrier() -> Iterator[Run]:
    """Return a run that is stored while no task is in flight."""
    yield (run := Run('barrier'))
    for work in run.coroutines:
        work.close()


def test_nothing_done(run: Run):
    """A state that nobody has changed may be stored."""
    run.begin(None, None)
    two = run.begin(None, None)
    assert not run.go_on(two)
    assert run.tracker.may_store()


def test_changed_and_goes_on(run: Run):
    """A task that has changed the state and goes on keeps it from being stored, until it has ended."""
    one, _ = run.begin('a', None, None), run.begin(None)
    run.go_on(one)
    assert one.dirty
    assert not run.tracker.may_store()
    run.go_on(one)
    assert not run.tracker.may_store()
    assert run.go_on(one)
    assert run.tracker.may_store()


def test_changed_at_its_end(run: Run):
    """A task that changes the state only in its last slice keeps nobody waiting, but has changed it."""
    one, _ = run.begin(None, 'a'), run.begin(None)
    run.go_on(one)
    assert run.go_on(one)
    assert (one.dirty, one.changed) == (False, True)
    assert run.tracker.may_store()


def test_part_of_a_task(run: Run):
    """Work with which the task does not end, such as one item of a stream, leaves it dirty."""
    one, _ = run.begin('a', ends=False), run.begin(None)
    with pytest.raises(StopIteration):
        run.work[one].send(None)
    assert one.dirty
    assert not run.tracker.may_store()


def test_who_has_changed_it(run: Run):
    """Of two tasks the one that has changed the state is dirty, and the other is not."""
    one, two = run.begin('a', None), run.begin(None, None)
    run.go_on(one)
    run.go_on(two)
    assert (one.dirty, two.dirty) == (True, False)
    assert run.go_on(two)
    assert not run.tracker.may_store()


def test_changed_back(run: Run):
    """A change that is taken back within the slice is none."""

    async def work() -> str:
        run.state.append('a')
        run.state.remove('a')
        await pause()
        return 'done'

    one, _ = run.drive(work), run.begin(None)
    run.go_on(one)
    assert not one.dirty


def test_changed_between_slices(run: Run):
    """A change between two slices, as by a thread, marks every task in flight."""
    one, two = run.begin(None, None), run.begin(None, None)
    run.go_on(one)
    run.go_on(two)
    run.state.append('by a thread')
    assert not run.tracker.may_store()
    assert (one.dirty, two.dirty) == (True, True)
    assert run.go_on(one)
    assert not run.tracker.may_store()
    assert run.go_on(two)
    assert run.tracker.may_store()


def test_changed_between_slices_and_seen_by_the_next(run: Run):
    """So it does if another task's slice comes next: the change is not taken for that one's alone."""
    one, two = run.begin(None, None), run.begin(None, None)
    run.go_on(one)
    run.state.append('by a child of one')
    run.go_on(two)
    assert (one.dirty, two.dirty) == (True, True)


def test_changed_before_it_was_seen(run: Run):
    """`check` sees such a change before somebody else changes the state and settles."""
    one, two = run.begin(None, None), run.begin(None, None)
    run.go_on(one)
    run.state.append('by a thread')
    run.tracker.check()
    run.state.append('by a reducer')
    run.tracker.settle()
    assert one.dirty
    assert two.dirty


def test_settled(run: Run):
    """What nobody in flight has changed, such as a reducer, marks no task."""
    one, two = run.begin(None, None), run.begin(None, None)
    run.go_on(one)
    run.state.append('by a reducer')
    run.tracker.settle()
    assert run.tracker.may_store()
    assert (one.dirty, two.dirty) == (False, False)


def test_alone(run: Run):
    """While a task is alone nothing is compared."""
    one = run.begin('a', 'b', 'c')
    while not run.go_on(one):
        pass
    assert run.dumps == 0
    assert run.tracker.may_store()
    assert run.dumps == 0
    assert run.tracker.has_changed()


def test_alone_until_now(run: Run):
    """A task that was alone is compared with what was stored last as soon as there is another one."""
    one = run.begin('a', None, None)
    run.go_on(one)
    two = run.begin(None, None)
    assert (one.dirty, two.dirty) == (True, False)


def test_alone_and_unchanged_until_now(run: Run):
    """If it has changed nothing, it is as clean as the other one."""
    one = run.begin(None, None)
    run.go_on(one)
    two = run.begin(None, None)
    assert (one.dirty, two.dirty) == (False, False)


def test_commit_while_alone(run: Run):
    """A task that has changed the state alone keeps a commit from being made while it goes on."""
    one = run.begin('a', None)
    run.go_on(one)
    assert not run.tracker.may_store()
    assert one.dirty


def test_relaxed(run: Run):
    """Once all is stored and one task is left, nothing is compared any more."""
    one, two = run.begin('a'), run.begin(None, 'b', None)
    run.go_on(two)
    assert run.go_on(one)
    assert run.tracker.may_store()
    run.tracker.stored = run.dump()
    run.tracker.relax()
    dumps = run.dumps
    run.go_on(two)
    assert run.dumps == dumps
    assert not run.tracker.may_store(), 'it has changed the state since, and goes on'


def test_not_relaxed(run: Run):
    """With two left it is."""
    for _ in range(2):
        run.begin(None)
    run.tracker.relax()
    assert run.tracker.watching


def test_raised(run: Run):
    """A task that raises has ended; that it has changed the state is known."""

    async def work() -> None:
        run.state.append('a')
        raise OverflowError

    one, _ = run.drive(work), run.begin(None)
    with pytest.raises(OverflowError):
        run.work[one].send(None)
    assert (one.dirty, one.changed) == (False, True)


def test_thrown_into(run: Run):
    """What is thrown into a task reaches its code, and it may go on."""

    async def work() -> str:
        try:
            await pause()
        except OverflowError:
            run.state.append('caught')
            await pause()
        return 'done'

    one, _ = run.drive(work), run.begin(None)
    run.go_on(one)
    assert run.work[one].throw(OverflowError()) == 'pause'
    assert one.dirty


def test_sent(run: Run):
    """What is sent reaches the task's code."""
    got: list[object] = []

    async def work() -> str:
        got.append(await pause())
        return 'done'

    one, _ = run.drive(work), run.begin(None)
    run.go_on(one)
    with pytest.raises(StopIteration):
        run.work[one].send('value')
    assert got == ['value']


def test_closed(run: Run):
    """A task that is closed cleans up."""
    cleaned: list[str] = []

    async def work() -> None:
        try:
            await pause()
        finally:
            cleaned.append('up')

    one, _ = run.drive(work), run.begin(None)
    run.go_on(one)
    run.work[one].close()
    assert cleaned == ['up']


def test_barrier(barrier: Run):
    """With `barrier` the state is stored only while no task is in flight, and nothing is compared."""
    run = barrier
    one, two = run.begin(None, None), run.begin('a')
    assert not run.tracker.may_store()
    assert run.go_on(two)
    assert not run.tracker.may_store()
    run.go_on(one)
    assert run.go_on(one)
    assert run.tracker.may_store()
    assert run.dumps == 0


def test_unchangeable():
    """A state that nothing can change may always be stored, and is never looked at."""
    tracker = Tracker(None, 'exact', b'')
    assert not tracker.matters
    for _ in range(2):
        tracker.enter(Flight())
    assert tracker.in_flight == 2
    assert tracker.may_store()
    assert not tracker.has_changed()
    assert not tracker.watching


def test_unknown():
    """A state that cannot be dumped counts as changed: nothing is stored in ignorance."""

    def fail() -> bytes:
        raise OverflowError

    tracker = Tracker(fail, 'exact', b'')
    one, two = Flight(), Flight()
    tracker.enter(one)
    tracker.enter(two)
    assert not tracker.may_store()
    assert tracker.has_changed()


class Colour(Enum):
    RED = 'red'


@dataclass(frozen=True)
class Frozen:
    number: int
    more: tuple[Any, ...] = ()


@dataclass(frozen=True)
class FrozenHolder:
    items: list[int] = field(default_factory=list[int])


@dataclass
class Loose:
    number: int = 0


@pytest.mark.parametrize(
    'value',
    [
        *(None, 1, 1.5, 'a', b'a', True, (1, ('a',)), frozenset({1}), Colour.RED, Decimal(1), Frozen(1)),
        *(datetime(2026, 1, 1, tzinfo=UTC), Frozen(1, (Frozen(2),)), range(3)),
    ],
)
def test_immutable(value: object):
    """Numbers, texts, and frozen things that hold nothing else are immutable."""
    assert is_immutable(value)


@pytest.mark.parametrize(
    'value',
    [[], {}, set[int](), bytearray(), Loose(), FrozenHolder(), (1, []), Frozen(1, ([],)), object()],
    ids=lambda value: type(value).__name__,
)
def test_mutable(value: object):
    """Anything else may change, and so may what holds it."""
    assert not is_immutable(value)
