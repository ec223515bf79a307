"""What pydantic-graph 1.x's own persistence gets wrong: each flaw is a test that fails there and passes here.

On pydantic-graph 1.x every test runs on its classes too, and has to fail there in the way that `both` names.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from json import JSONDecodeError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Never

import anyio
import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError

import graphkeep
import graphkeep.runfile
from graphkeep import Graph, GraphNodeStatusError
from graphkeep._host import HAS_RUNNER
from tests.backends.faults import Call, FaultyOs, put_os
from tests.crash.children import child

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Library:
    """Whose persistence is under test."""

    name: str
    file: Callable[..., Any]
    full: Callable[..., Any]
    simple: Callable[..., Any]
    resume: Callable[[Graph[Any, Any, Any], Any], AbstractAsyncContextManager[Any]]


def _peer(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f'pydantic_graph.persistence.{module}'), name)


LIBRARIES = {
    'ours': Library(
        'ours',
        graphkeep.FileStatePersistence,
        graphkeep.FullStatePersistence,
        graphkeep.SimpleStatePersistence,
        lambda graph, run: graphkeep.iter_or_resume(graph, persistence=run, on_finished='raise'),
    )
}
if HAS_RUNNER:
    LIBRARIES['peer'] = Library(
        'peer',
        _peer('file', 'FileStatePersistence'),
        _peer('in_mem', 'FullStatePersistence'),
        _peer('in_mem', 'SimpleStatePersistence'),
        lambda graph, persistence: graph.iter_from_persistence(persistence),
    )


def both(*how: type[BaseException]) -> pytest.MarkDecorator:
    """Run a test on our classes, which pass, and on pydantic-graph 1.x's if there, which fail like this."""
    fails = pytest.mark.xfail(strict=True, raises=how, reason="pydantic-graph 1.x's own class has this flaw")
    params = [pytest.param(lib, id=name, marks=[fails] * (name == 'peer')) for name, lib in LIBRARIES.items()]
    return pytest.mark.parametrize('library', params)


@dataclass
class Note:
    """A state."""

    text: str = ''


@dataclass
class Go(BaseNode[Note, Any, int]):
    """Goes on for so many steps."""

    steps: int = 1

    async def run(self, ctx: GraphRunContext[Note, Any]) -> Go | End[int]:
        return Go(self.steps - 1) if self.steps > 1 else End(0)


going = Graph(nodes=(Go,))


def typed(graph: Graph[Any, Any, Any], persistence: Any) -> Any:
    """Return the persistence, which knows the graph's types now."""
    persistence.set_graph_types(graph)
    return persistence


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Be the path of a file that does not exist yet."""
    return tmp_path / 'run.json'


# ----------------------------------------------------------------------------------- cancellation and crashes


@dataclass
class Wait(BaseNode[Note, anyio.CancelScope, int]):
    """Is cancelled while it runs."""

    async def run(self, ctx: GraphRunContext[Note, anyio.CancelScope]) -> End[int]:
        ctx.deps.cancel()
        await anyio.sleep_forever()
        return End(0)


@pytest.mark.parametrize('kind', ['file', 'full'])
@both(AssertionError)
async def test_cancelled(library: Library, kind: str, file: Path):
    """Cancelling a run leaves no node `running` for ever."""
    graph = Graph(nodes=(Wait,))
    persistence = typed(graph, library.file(file) if kind == 'file' else library.full())
    with anyio.CancelScope() as scope:
        await graph.run(Wait(), state=Note(), deps=scope, persistence=persistence)
    assert [snapshot.status for snapshot in await persistence.load_all()] == ['created']


@both(AssertionError)
async def test_crash_after_node(library: Library, file: Path):
    """A process that dies after a node returned and before the next is stored leaves a run that goes on."""
    persistence = typed(going, library.file(file))
    await persistence.snapshot_node(Note(), Go(2))
    (snapshot,) = await persistence.load_all()
    async with persistence.record_run(snapshot.id):
        pass
    del persistence
    gc.collect()
    assert await typed(going, library.file(file)).load_next() is not None


@pytest.fixture
def half_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every write of a file end in the middle."""

    def half(call: Call) -> Any:
        if call.name != 'write':
            return call()
        os.write(call.args[0], call.args[1][: len(call.args[1]) // 2])
        raise OSError(28, 'No space left on device')

    def write_half(path: Path, data: bytes) -> Never:
        with path.open('wb') as opened:
            opened.write(data[: len(data) // 2])
        raise OSError(28, 'No space left on device')

    put_os(monkeypatch, FaultyOs(half))
    monkeypatch.setattr(Path, 'write_bytes', write_half)


@both(JSONDecodeError)
async def test_torn(library: Library, file: Path, request: pytest.FixtureRequest):
    """A write that ends in the middle leaves the file as it was."""
    persistence = typed(going, library.file(file))
    await persistence.snapshot_node(Note(), Go())
    before = json.loads(file.read_bytes())
    request.getfixturevalue('half_written')
    with pytest.raises(OSError, match='No space left'):
        await persistence.snapshot_node(Note('x' * 1000), Go())
    assert json.loads(file.read_bytes()) == before


# --------------------------------------------------------------------------------------------------- the lock


def _die_writing(name: str, file: Path, _: Connection) -> None:
    """Die in the middle of a write."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def main() -> None:
        await typed(going, LIBRARIES[name].file(file)).snapshot_node(Note(), Go())

    graphkeep.runfile.os = FaultyOs(lambda call: die() if call.name == 'write' else call())
    setattr(Path, 'write_bytes', die)  # noqa: B010 - only the peer writes like this
    anyio.run(main)


@both(TimeoutError)
async def test_lock_of_the_dead(library: Library, file: Path):
    """The lock of a process that died goes with it."""
    with child(_die_writing, library.name, file) as (process, _):
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    await typed(going, library.file(file)).snapshot_node(Note(), Go())


@both(TypeError)
async def test_wait_can_be_set(library: Library, file: Path):
    """How long to wait for a lock can be said."""
    await typed(going, library.file(file, lock_timeout=60)).snapshot_node(Note(), Go())


@both(ExceptionGroup)
async def test_concurrent_tasks(library: Library, file: Path):
    """Two hundred tasks may use one file at a time."""
    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(typed(going, library.file(file)).snapshot_node, Note(), Go(number))
    assert len(json.loads(file.read_bytes())) == 200


@pytest.fixture
def collected() -> Iterator[None]:
    """Let what a test left behind be found within it: the peer leaves open files behind too."""
    yield
    gc.collect()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.usefixtures('collected')
@both(TimeoutError)
async def test_cancelling_lets_go(library: Library, file: Path):
    """Cancelling a call, at whatever moment, does not leave the lock behind."""
    for number in range(100):
        persistence = typed(going, library.file(file))
        task = asyncio.create_task(persistence.snapshot_node(Note(), Go()))
        await asyncio.sleep(number / 10_000)
        task.cancel()
        await asyncio.wait([task])
        await typed(going, library.file(file)).snapshot_node_if_new('x', Note(), Go())
        file.unlink()


# --------------------------------------------------------------------------------------------------- the cost


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the sizes of all JSON that is read from the file or given to pydantic."""
    sizes: list[int] = []
    read_bytes, validate_json = Path.read_bytes, TypeAdapter[Any].validate_json
    parse_body = graphkeep.runfile.parse_body

    def reading(path: Path) -> bytes:
        sizes.append(path.stat().st_size)
        return read_bytes(path)

    def opening(path: str, how: Literal['rb']) -> object:
        sizes.append(os.stat(path).st_size)
        return open(path, how)

    def validating(adapter: TypeAdapter[Any], data: str | bytes, **options: Any) -> Any:
        sizes.append(len(data))
        return validate_json(adapter, data, **options)

    def parsing(text: bytes) -> Any:
        sizes.append(len(text))
        return parse_body(text)

    monkeypatch.setattr('graphkeep.runfile.parse_body', parsing)
    monkeypatch.setattr(Path, 'read_bytes', reading)
    monkeypatch.setattr('graphkeep.runfile.open', opening, raising=False)
    monkeypatch.setattr(TypeAdapter, 'validate_json', validating)
    return sizes


@both(AssertionError)
async def test_cost_of_a_step(library: Library, tmp_path: Path, parsed: list[int]):
    """A step parses as much late in a run as it does early."""
    cost: dict[int, float] = {}
    for steps in (10, 100):
        parsed.clear()
        persistence = library.file(tmp_path / f'{steps}.json')
        await going.run(Go(steps), state=Note('x' * 100), persistence=persistence)
        cost[steps] = sum(parsed) / steps
    assert cost[100] <= 1.5 * cost[10]


# ----------------------------------------------------------------------------------------------- the messages


@dataclass
class Fail(BaseNode[Note, Any, int]):
    """Raises."""

    async def run(self, ctx: GraphRunContext[Note, Any]) -> End[int]:
        raise ZeroDivisionError


@both(AssertionError)
async def test_messages(library: Library, tmp_path: Path):
    """Finished, failed and unknown runs can be told apart by what is said of them."""
    failing = Graph(nodes=(Fail,))
    finished, failed, unknown = (library.file(tmp_path / name) for name in ('finished', 'failed', 'unknown'))
    await going.run(Go(), state=Note(), persistence=finished)
    with pytest.raises(ZeroDivisionError):
        await failing.run(Fail(), state=Note(), persistence=failed)
    messages: list[str] = []
    for graph, persistence in ((going, finished), (failing, failed), (going, unknown)):
        with pytest.raises(GraphRuntimeError) as caught:
            async with library.resume(graph, persistence):
                pass
        messages.append(str(caught.value))
    assert len(set(messages)) == 3


# -------------------------------------------------------------------------------------- what does not survive


@dataclass
class Animal:
    """A base."""

    name: str = ''


@dataclass
class Dog(Animal):
    """Has more than its base."""

    breed: str = ''


@dataclass
class Zoo:
    """Holds values that are more than their types say, or than JSON can hold."""

    animal: Animal = field(default_factory=Animal)
    number: float = 0


@dataclass
class Visit(BaseNode[Zoo, None, int]):
    """A node of the zoo."""

    async def run(self, ctx: GraphRunContext[Zoo, None]) -> End[int]:
        return End(0)


@dataclass
class Leave(BaseNode[Zoo, None, int]):
    """Another node of the zoo."""

    async def run(self, ctx: GraphRunContext[Zoo, None]) -> End[int]:
        return End(0)


@dataclass
class Named(BaseNode[Zoo, None, int]):
    """Has a field with a name that the format needs."""

    node_id: str = ''

    async def run(self, ctx: GraphRunContext[Zoo, None]) -> End[int]:
        return End(0)


@pytest.mark.parametrize(
    'state, node',
    [
        pytest.param(Zoo(animal=Dog('Rex', 'Boxer')), Visit(), id='a subclass'),
        pytest.param(Zoo(number=float('inf')), Visit(), id='inf'),
        pytest.param(Zoo(), Named('mine'), id='a field called node_id'),
    ],
)
@both(AssertionError, ValidationError)
async def test_unfaithful(library: Library, file: Path, state: Zoo, node: BaseNode[Zoo, None, int]):
    """A snapshot is loaded as it was given, or refused."""
    persistence = typed(Graph(nodes=(Visit, Named)), library.file(file))
    try:
        await persistence.snapshot_node(state, node)
    except graphkeep.UnfaithfulSnapshotError:
        return
    (loaded,) = await persistence.load_all()
    assert (loaded.state, loaded.node) == (state, node)


@both(pytest.fail.Exception)
async def test_foreign_node(library: Library, file: Path):
    """A graph of one node does not take another node's data for its own."""
    await typed(Graph(nodes=(Visit, Leave)), library.file(file)).snapshot_node(Zoo(), Leave())
    with pytest.raises(ValueError, match='Leave'):
        await typed(Graph(nodes=(Visit,)), library.file(file)).load_next()


@dataclass
class Ask(BaseNode[Note, Any, int]):
    """May end with a number."""

    async def run(self, ctx: GraphRunContext[Note, Any]) -> Say | End[int]:
        return Say()


@dataclass
class Say(BaseNode[Note, Any, str]):
    """Ends with a text."""

    async def run(self, ctx: GraphRunContext[Note, Any]) -> End[str]:
        return End('text')


@pytest.mark.filterwarnings('ignore:Pydantic serializer warnings')
@both(ValidationError)
async def test_second_end_type(library: Library, file: Path):
    """What a run that ended with a second type of result has stored can be loaded, or it was refused."""
    graph: Graph[Note, Any, Any] = Graph(nodes=(Ask, Say))
    persistence = library.file(file)
    try:
        await graph.run(Ask(), state=Note(), persistence=persistence)
    except graphkeep.UnfaithfulSnapshotError:
        assert len(await persistence.load_all()) == 2
    else:
        assert (await persistence.load_all())[-1].result.data == 'text'


@both(ValidationError)
async def test_renamed_node(library: Library, file: Path):
    """A finished node that is not in the graph any more does not stop the run."""
    graph: Graph[Note, Any, Any] = Graph(nodes=(Ask, Say))
    persistence = library.file(file)
    await graph.initialize(Ask(), persistence, state=Note())
    async with graph.iter_from_persistence(persistence) as run:
        await run.next()
    del persistence, run
    renamed: Graph[Note, Any, Any] = Graph(nodes=(Say, Go))
    async with library.resume(renamed, library.file(file)) as run:
        assert await run.next() == End('text')


@dataclass
class Again(BaseNode[Note, Any, int]):
    """Returns itself."""

    left: int = 2

    async def run(self, ctx: GraphRunContext[Note, Any]) -> Again | End[int]:
        self.left -= 1
        return self if self.left else End(7)


@pytest.mark.parametrize('kind', ['file', 'full'])
@both(GraphNodeStatusError)
async def test_node_returns_itself(library: Library, kind: str, file: Path):
    """A node that returns itself runs again, whatever keeps the run."""
    persistence = library.file(file) if kind == 'file' else library.full()
    result = await Graph(nodes=(Again,)).run(Again(), state=Note(), persistence=persistence)
    assert result.output == 7


# --------------------------------------------------------------------------------------------------- the rest


@both(AssertionError)
async def test_private(library: Library, file: Path):
    """Nobody else can read the file, whatever the umask is."""
    before = os.umask(0o022)
    try:
        await typed(going, library.file(file)).snapshot_node(Note(), Go())
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o077 == 0


@both(FileNotFoundError)
async def test_missing_parent(library: Library, tmp_path: Path):
    """A directory that is missing is made."""
    await typed(going, library.file(tmp_path / 'a' / 'b' / 'run.json')).snapshot_node(Note(), Go())


@both(NotImplementedError)
async def test_simple_loads(library: Library):
    """`SimpleStatePersistence` loads what it has."""
    persistence = library.simple()
    await going.run(Go(), state=Note(), persistence=persistence)
    assert [snapshot.kind for snapshot in await persistence.load_all()] == ['end']
