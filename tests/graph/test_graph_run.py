"""How a run goes, step by step. The same on both hosts, but where a test says that one does better."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Never, cast

import anyio
import anyio.lowlevel
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError

from graphkeep._host import HAS_RUNNER
from graphkeep.errors import RunFailedError, RunFinishedError, UnknownRunError
from graphkeep.graph import Graph, GraphRun
from graphkeep.memory import FullStatePersistence, SimpleStatePersistence

pytestmark = pytest.mark.anyio

better_than_1 = pytest.mark.skipif(HAS_RUNNER, reason="pydantic-graph 1.x's own runner is not so strict")


@dataclass
class Tally:
    """A state."""

    number: int = 0
    names: list[str] = field(default_factory=lambda: [])


@dataclass
class Add(BaseNode[Tally, int, Never]):
    """Adds what the deps say."""

    async def run(self, ctx: GraphRunContext[Tally, int]) -> Judge:
        ctx.state.number += ctx.deps
        ctx.state.names.append('Add')
        return Judge(ctx.state.number)


@dataclass
class Judge(BaseNode[Tally, int, str]):
    """Ends at ten."""

    seen: int

    async def run(self, ctx: GraphRunContext[Tally, int]) -> Add | End[str]:
        ctx.state.names.append('Judge')
        return End(f'reached {self.seen}') if self.seen >= 10 else Add()


graph = Graph(nodes=(Add, Judge), name='tally')


@dataclass
class Stranger(BaseNode[Tally, int, str]):
    """Is in no graph."""

    async def run(self, ctx: GraphRunContext[Tally, int]) -> End[str]:
        return End('hello')


@dataclass
class Anything(BaseNode[Tally, int, str]):
    """Returns whatever it is told to return."""

    returns: Callable[[Anything], Any]

    async def run(self, ctx: GraphRunContext[Tally, int]) -> BaseNode[Tally, int, str] | End[str]:
        ctx.state.number += 1
        return self.returns(self)


free = Graph(nodes=(Anything, Add, Judge), name='free')


def statuses(persistence: FullStatePersistence[Tally, str]) -> list[str]:
    """Return what the history says: the node ids with their statuses."""
    return [f'{s.node.get_node_id()} {s.status}' if s.kind == 'node' else 'end' for s in persistence.history]


@pytest.mark.both_backends
async def test_run():
    """`run` goes from the start node to the end and returns the output, the state and the persistence."""
    state, persistence = Tally(), FullStatePersistence[Tally, str]()
    result = await graph.run(Add(), state=state, deps=5, persistence=persistence)
    assert result.output == 'reached 10'
    assert result.state is state
    assert result.persistence is persistence
    assert state == Tally(10, ['Add', 'Judge', 'Add', 'Judge'])
    assert statuses(persistence) == ['Add success', 'Judge success', 'Add success', 'Judge success', 'end']


async def test_result_repr():
    """A result shows output and state."""
    result = await graph.run(Judge(10), state=Tally(), deps=0)
    assert repr(result) == "GraphRunResult(output='reached 10', state=Tally(number=0, names=['Judge']))"


async def test_default_persistence():
    """Without a persistence a run keeps its last snapshot in memory."""
    result = await graph.run(Add(), state=Tally(), deps=10)
    assert cast(Any, result.persistence).last_snapshot.kind == 'end'


async def test_no_state_and_no_deps():
    """State and deps are `None` unless given."""

    @dataclass
    class Look(BaseNode[None, None, tuple[None, None]]):
        async def run(self, ctx: GraphRunContext[None, None]) -> End[tuple[None, None]]:
            return End((ctx.state, ctx.deps))

    assert (await Graph(nodes=(Look,)).run(Look())).output == (None, None)


async def test_annotation_is_not_the_law():
    """A node may return any node of the graph, whatever its annotation says."""

    @dataclass
    class Liar(BaseNode[Tally, int, str]):
        async def run(self, ctx: GraphRunContext[Tally, int]) -> End[str]:
            return cast('End[str]', Judge(11))

    assert (await Graph(nodes=(Liar, Add, Judge)).run(Liar(), state=Tally(), deps=0)).output == 'reached 11'


class TestRunSync:
    """`run_sync` is for code that is not async."""

    def test_output(self, thread_loop: asyncio.AbstractEventLoop):
        """It returns what `run` does, and runs on the loop of the thread, which stays open."""
        result = graph.run_sync(Add(), state=Tally(), deps=10)
        assert (result.output, result.state.number) == ('reached 10', 10)
        assert not thread_loop.is_closed()
        assert graph.run_sync(Judge(12), state=Tally(), deps=0).output == 'reached 12'

    def test_without_a_loop(self):
        """It makes a loop where the thread has none."""
        asyncio.set_event_loop(None)
        assert graph.run_sync(Add(), state=Tally(), deps=10).output == 'reached 10'
        asyncio.get_event_loop().close()
        asyncio.set_event_loop(None)

    @better_than_1
    def test_after_a_closed_loop(self, thread_loop: asyncio.AbstractEventLoop):
        """It makes a loop where that of the thread is closed."""
        thread_loop.close()
        assert graph.run_sync(Add(), state=Tally(), deps=10).output == 'reached 10'
        asyncio.get_event_loop().close()

    @pytest.mark.filterwarnings('ignore:coroutine .* was never awaited')
    async def test_in_a_loop(self):
        """Within a running loop it raises."""
        with pytest.raises(RuntimeError):
            graph.run_sync(Add(), state=Tally(), deps=10)

    def test_error(self, thread_loop: asyncio.AbstractEventLoop):
        """What a node raises comes out of it."""
        with pytest.raises(ZeroDivisionError):
            free.run_sync(Anything(lambda _: 1 / 0), state=Tally(), deps=0, infer_name=False)

    @better_than_1
    @pytest.mark.parametrize('cleanup', ['quiet', 'raises'])
    def test_interrupted(self, thread_loop: asyncio.AbstractEventLoop, cleanup: str):
        """Interrupted by Ctrl-C, it cancels the node, and records that, before the interruption goes on."""
        persistence = FullStatePersistence[None, None]()

        def interrupt() -> None:
            raise KeyboardInterrupt

        @dataclass
        class Sleep(BaseNode[None, None, None]):
            async def run(self, ctx: GraphRunContext[None, None]) -> End[None]:
                thread_loop.call_soon(interrupt)
                try:
                    await anyio.sleep_forever()
                finally:
                    if cleanup == 'raises':
                        raise ZeroDivisionError
                return End(None)

        with pytest.raises(KeyboardInterrupt) as caught:
            Graph(nodes=(Sleep,)).run_sync(Sleep(), persistence=persistence)
        found = [s.status for s in persistence.history if s.kind == 'node']
        notes = getattr(caught.value, '__notes__', [])
        if cleanup == 'quiet':
            assert (found, notes) == (['created'], [])
        else:
            assert (found, notes) == (['error'], ['Cancelled for this, the run raised ZeroDivisionError().'])
        assert asyncio.all_tasks(thread_loop) == set()


class TestIteration:
    """A run is an async iterator."""

    @pytest.mark.both_backends
    async def test_order(self):
        """It gives the start node, not yet run, then what each node returned, and last the end."""
        async with graph.iter(Add(), state=Tally(), deps=5) as run:
            seen = [(node, deepcopy(run.state.number)) async for node in run]
        assert seen == [(Add(), 0), (Judge(5), 5), (Add(), 5), (Judge(10), 10), (End('reached 10'), 10)]

    async def test_nothing_is_stored_before_the_first_step(self):
        """The start node is stored when it is run, not when it is given."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Add(), state=Tally(), deps=5, persistence=persistence) as run:
            assert run.next_node == Add()
            assert await anext(run) == Add()
            assert persistence.history == []
            assert await anext(run) == Judge(5)
            assert statuses(persistence) == ['Add success', 'Judge created']

    async def test_result(self):
        """`result` is `None` until the end, and `next_node` is what is to be run, at last the end itself."""
        async with graph.iter(Judge(9), state=Tally(), deps=5) as run:
            assert (run.result, run.next_node) == (None, Judge(9))
            async for node in run:
                assert node == run.next_node
                assert (run.result is None) == (not isinstance(node, End))
        assert run.result is not None
        assert run.result.output == 'reached 10'

    async def test_attributes(self):
        """A run knows graph, persistence, state and deps, and shows the graph's name."""
        state, persistence = Tally(), SimpleStatePersistence[Tally, str]()
        async with graph.iter(Add(), state=state, deps=5, persistence=persistence) as run:
            assert run.graph is graph
            assert run.persistence is persistence
            assert run.state is state
            assert run.deps == 5
            assert repr(run) == '<GraphRun graph=tally>'
            run.deps = 10
            assert await run.next() == Judge(10)

    async def test_nameless(self):
        """A run of a graph without a name shows that."""
        nameless = Graph(nodes=(Add, Judge))
        async with nameless.iter(Add(), state=Tally(), deps=5, infer_name=False) as run:
            assert repr(run) == '<GraphRun graph=[unnamed]>'

    async def test_made_by_hand(self):
        """A run can be made without `iter`."""
        persistence = FullStatePersistence[Tally, str]()
        run = GraphRun(
            graph=graph, start_node=Add(), persistence=persistence, state=Tally(), deps=10, traceparent=None
        )
        assert [node async for node in run] == [Add(), Judge(10), End('reached 10')]

    async def test_left_early(self):
        """A run that is left in the middle can be taken up where it was left."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Add(), state=Tally(), deps=5, persistence=persistence) as run:
            await run.next()
        async with graph.iter_from_persistence(persistence, deps=5) as run:
            assert await anext(run) == Judge(5)
            async for _ in run:
                pass
        assert run.state == Tally(10, ['Add', 'Judge', 'Add', 'Judge'])


class TestNext:
    """`next` drives a run by hand."""

    @pytest.mark.both_backends
    async def test_next(self):
        """Without a node it runs the next one; what it returns is what comes then."""
        async with graph.iter(Add(), state=Tally(), deps=10) as run:
            assert await run.next() == Judge(10)
            assert await run.next() == End('reached 10')

    async def test_given_node(self):
        """It runs the node that it is given; handing back what it returned is the same as giving nothing."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Add(), state=Tally(), deps=5, persistence=persistence) as run:
            node = run.next_node
            while not isinstance(node, End):
                node = await run.next(node)
        expected = ['Add success', 'Judge success', 'Add success', 'Judge success', 'end']
        assert statuses(persistence) == expected

    async def test_skipping(self):
        """A node that is passed over stays `created`; the one that is run instead is stored first."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Add(), state=Tally(), deps=5, persistence=persistence) as run:
            assert await run.next() == Judge(5)
            assert await run.next(Judge(12)) == End('reached 12')
        assert statuses(persistence) == ['Add success', 'Judge created', 'Judge success', 'end']

    async def test_changed_between(self):
        """Node and state may be changed between two steps."""
        async with graph.iter(Add(), state=Tally(), deps=5) as run:
            judge = await run.next()
            assert isinstance(judge, Judge)
            judge.seen = 20
            run.state = Tally(100)
            assert await run.next(judge) == End('reached 20')
        assert run.result is not None
        assert run.result.state == Tally(100, ['Judge'])

    @pytest.mark.parametrize('not_a_node', [End('x'), 'Add', Add, 1])
    async def test_not_a_node(self, not_a_node: Any):
        """Something other than a node is refused."""
        async with graph.iter(Add(), state=Tally(), deps=5) as run:
            with pytest.raises((TypeError, AttributeError)):
                await run.next(not_a_node)

    @better_than_1
    @pytest.mark.parametrize('not_a_node', [End('x'), 'Add', Add, 1])
    async def test_not_a_node_is_not_stored(self, not_a_node: Any):
        """What is refused is named, is not stored, and does no harm to the run."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Add(), state=Tally(), deps=5, persistence=persistence) as run:
            with pytest.raises(TypeError, match='`next` must be called with a `BaseNode` instance, got '):
                await run.next(not_a_node)
            assert persistence.history == []
            assert await run.next() == Judge(5)

    async def test_foreign_node(self):
        """A node that is not in the graph is refused."""
        async with graph.iter(Add(), state=Tally(), deps=5) as run:
            with pytest.raises(GraphRuntimeError, match=r'Node `Stranger\(\)` is not in the graph.'):
                await run.next(Stranger())
        with pytest.raises(GraphRuntimeError, match=r'Node `Stranger\(\)` is not in the graph.'):
            await graph.run(Stranger(), state=Tally(), deps=5)

    @better_than_1
    async def test_foreign_node_is_not_stored(self):
        """A node that is not in the graph is refused before anything is stored."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Stranger(), state=Tally(), deps=5, persistence=persistence) as run:
            for stranger in (None, Stranger()):
                with pytest.raises(GraphRuntimeError, match='not in the graph'):
                    await run.next(stranger)
        with pytest.raises(GraphRuntimeError, match='not in the graph'):
            await graph.initialize(Stranger(), persistence, state=Tally())
        assert persistence.history == []

    async def test_after_the_end(self):
        """A finished run has no next node, says so, and stores nothing more."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Judge(10), state=Tally(), deps=5, persistence=persistence) as run:
            await run.next()
            with pytest.raises((GraphRuntimeError, TypeError)) as caught:
                await run.next()
            assert "End(data='reached 10')" in str(caught.value)
            assert run.result is not None
        assert statuses(persistence) == ['Judge success', 'end']

    async def test_given_node_after_the_end(self):
        """A node that is given is run after the end too, and recorded behind it."""
        persistence = FullStatePersistence[Tally, str]()
        async with graph.iter(Judge(10), state=Tally(), deps=5, persistence=persistence) as run:
            await run.next()
            await run.next(Judge(10))
            assert run.result is not None
        assert statuses(persistence) == ['Judge success', 'end', 'Judge success', 'end']


class TestReturned:
    """What a node may return."""

    async def test_itself(self):
        """A node may return itself: it is run again, and each time is recorded."""

        def three_times(node: Anything) -> Any:
            return End('enough') if state.number == 3 else node

        state, persistence = Tally(), FullStatePersistence[Tally, str]()
        result = await free.run(Anything(three_times), state=state, deps=0, persistence=persistence)
        assert (result.output, state.number) == ('enough', 3)
        assert statuses(persistence) == ['Anything success', 'Anything success', 'Anything success', 'end']

    async def test_any_node(self):
        """A node that is annotated as returning `BaseNode` may return each node of the graph."""
        result = await free.run(Anything(lambda _: Judge(10)), state=Tally(), deps=0)
        assert result.output == 'reached 10'

    @pytest.mark.parametrize('returned', [None, 'Judge', Judge, 10])
    async def test_wrong_type(self, returned: Any):
        """Something other than a node or an end is an error that names its type."""
        with pytest.raises(GraphRuntimeError) as caught:
            await free.run(Anything(lambda _: returned), state=Tally(), deps=0)
        assert str(caught.value) == (
            f'Invalid node return type: `{type(returned).__name__}`. Expected `BaseNode` or `End`.'
        )

    async def test_foreign_node(self):
        """A node that is not in the graph is an error."""
        with pytest.raises(GraphRuntimeError, match=r'Node `Stranger\(\)` is not in the graph.'):
            await free.run(Anything(lambda _: Stranger()), state=Tally(), deps=0)

    @better_than_1
    @pytest.mark.parametrize('returned', [None, 'Judge', Stranger()])
    async def test_is_the_error_of_the_node(self, returned: Any):
        """A wrong return is recorded as the error of the node that made it, which is still the next one."""
        persistence = FullStatePersistence[Tally, str]()
        start = Anything(lambda _: returned)
        async with free.iter(start, state=Tally(), deps=0, persistence=persistence) as run:
            with pytest.raises(GraphRuntimeError):
                await run.next()
            assert run.next_node is start
        assert statuses(persistence) == ['Anything error']

    async def test_after_an_error(self):
        """A node that raised is not run again by the same run."""

        def fail(_: Anything) -> Any:
            raise ZeroDivisionError

        persistence = FullStatePersistence[Tally, str]()
        async with free.iter(Anything(fail), state=Tally(), deps=0, persistence=persistence) as run:
            with pytest.raises(ZeroDivisionError):
                await run.next()
            with pytest.raises(GraphRuntimeError, match=r"status 'error'"):
                await run.next()
        assert (run.result, run.state.number) == (None, 1)
        assert statuses(persistence) == ['Anything error']


class TestFromPersistence:
    """A recorded run goes on where it stopped."""

    @pytest.mark.both_backends
    async def test_initialized(self):
        """A run that was only initialized starts at the node and with the state that were recorded."""
        persistence = FullStatePersistence[Tally, str]()
        await graph.initialize(Judge(3), persistence, state=Tally(1))
        assert statuses(persistence) == ['Judge created']
        async with graph.iter_from_persistence(persistence, deps=10) as run:
            assert (run.next_node, run.state, run.deps, run.result) == (Judge(3), Tally(1), 10, None)
            assert statuses(persistence) == ['Judge pending']
            nodes = [node async for node in run]
        assert nodes == [Judge(3), Add(), Judge(11), End('reached 11')]
        assert statuses(persistence) == ['Judge success', 'Add success', 'Judge success', 'end']

    async def test_initialized_without_a_state(self):
        """The state is `None` unless given."""
        persistence = SimpleStatePersistence[Any, Any]()
        await cast(Any, graph).initialize(Judge(10), persistence)
        assert persistence.last_snapshot is not None
        assert persistence.last_snapshot.state is None

    async def test_step_by_step(self):
        """A run may be taken up anew for each of its steps."""
        persistence = FullStatePersistence[Tally, str]()
        await graph.initialize(Add(), persistence, state=Tally())
        for following in (Judge(5), Add(), Judge(10), End('reached 10')):
            async with graph.iter_from_persistence(persistence, deps=5) as run:
                assert await run.next() == following

    async def test_nothing_to_run(self):
        """An unknown, a failed and a finished run are refused; our own runner tells them apart."""

        async def resume(persistence: FullStatePersistence[Tally, str]) -> None:
            async with free.iter_from_persistence(persistence, deps=0):
                pytest.fail('it should have nothing to run')

        unknown, failed, finished = (FullStatePersistence[Tally, str]() for _ in range(3))
        with pytest.raises(ZeroDivisionError):
            await free.run(Anything(lambda _: 1 / 0), state=Tally(), deps=0, persistence=failed)
        await free.run(Judge(10), state=Tally(), deps=0, persistence=finished)
        expected = ((unknown, UnknownRunError), (failed, RunFailedError), (finished, RunFinishedError))
        for persistence, error in expected:
            with pytest.raises(GraphRuntimeError if HAS_RUNNER else error):
                await resume(persistence)

    @better_than_1
    @pytest.mark.both_backends
    async def test_left_unrun(self):
        """A run that is left before anything was run, even by a cancellation, is free for the next one."""
        persistence = FullStatePersistence[Tally, str]()
        await graph.initialize(Judge(10), persistence, state=Tally())
        async with graph.iter_from_persistence(persistence, deps=5):
            assert statuses(persistence) == ['Judge pending']
        assert statuses(persistence) == ['Judge created']
        with anyio.CancelScope() as scope:
            async with graph.iter_from_persistence(persistence, deps=5):
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        assert statuses(persistence) == ['Judge created']
        async with graph.iter_from_persistence(persistence, deps=5) as run:
            assert await run.next() == End('reached 10')

    @better_than_1
    async def test_passed_over(self):
        """A claimed node that another one is run in place of is given back, and is not what comes next."""
        persistence = FullStatePersistence[Tally, str]()
        await graph.initialize(Judge(10), persistence, state=Tally())
        async with graph.iter_from_persistence(persistence, deps=5) as run:
            assert await run.next(Add()) == Judge(5)
        assert statuses(persistence) == ['Judge created', 'Add success', 'Judge created']
        async with graph.iter_from_persistence(persistence, deps=5) as run:
            assert run.next_node == Judge(5)

    @better_than_1
    async def test_span_that_does_not_open(self):
        """Where the span cannot be opened the claimed node is given back too."""

        class Broken:
            def __enter__(self) -> Never:
                raise OSError

            def __exit__(self, *_: object) -> None: ...

        persistence = FullStatePersistence[Tally, str]()
        await graph.initialize(Judge(10), persistence, state=Tally())
        with pytest.raises(OSError):  # noqa: PT011
            async with graph.iter_from_persistence(persistence, deps=5, span=cast(Any, Broken())):
                pytest.fail('it should not get here')
        assert statuses(persistence) == ['Judge created']


class TestCancellation:
    """A run may be cancelled anywhere."""

    @pytest.mark.both_backends
    async def test_in_a_node(self):
        """A node that is cancelled is given back; the same run may run it again."""
        wait = True

        @dataclass
        class Slow(BaseNode[Tally, int, str]):
            async def run(self, ctx: GraphRunContext[Tally, int]) -> End[str]:
                if wait:
                    await anyio.sleep_forever()
                return End('done')

        slow, persistence = Graph(nodes=(Slow,)), FullStatePersistence[Tally, str]()
        async with slow.iter(Slow(), state=Tally(), deps=0, persistence=persistence) as run:
            with anyio.move_on_after(0) as scope:
                await run.next()
            assert scope.cancelled_caught
            assert statuses(persistence) == ['Slow created']
            wait = False
            assert await run.next() == End('done')
        assert statuses(persistence) == ['Slow success', 'end']

    @pytest.mark.both_backends
    async def test_success_and_next_are_not_separated(self):
        """Nobody else has a turn between the end of a node and the call that stores what comes next."""
        turns = [0]

        class Watched(FullStatePersistence[Tally, str]):
            left_at = -1

            @asynccontextmanager
            async def record_run(self, snapshot_id: str) -> AsyncGenerator[None]:
                async with super().record_run(snapshot_id):
                    yield
                await anyio.lowlevel.checkpoint()
                self.left_at = turns[0]

            async def snapshot_node(self, state: Tally, next_node: BaseNode[Tally, Any, str]) -> None:
                assert self.left_at == turns[0]
                await super().snapshot_node(state, next_node)

            async def snapshot_end(self, state: Tally, end: End[str]) -> None:
                assert self.left_at == turns[0]
                await super().snapshot_end(state, end)

        async def take_turns() -> None:
            while True:
                turns[0] += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            await graph.run(Add(), state=Tally(), deps=5, persistence=Watched())
            tasks.cancel_scope.cancel()
        assert turns[0] > 1
