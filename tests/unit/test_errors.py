"""Every error: what raises it, what else it is, and what it tells."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError

from graphkeep import (
    FileStatePersistence,
    Graph,
    GraphNodeStatusError,
    MemoryStore,
    current_step,
    errors,
    iter_or_resume,
    run_or_resume,
)
from graphkeep.backend import LockBusy
from graphkeep.errors import GraphkeepError, GraphNodeRunningError, SnapshotStatusError

pytestmark = pytest.mark.anyio


@dataclass
class Flip(BaseNode[None, Any, float]):
    result: float = 0.0

    async def run(self, ctx: GraphRunContext[None, Any]) -> Flop | End[float]:
        if ctx.deps:
            raise ctx.deps.pop()
        return Flop()


@dataclass
class Flop(BaseNode[None, Any, float]):
    async def run(self, ctx: GraphRunContext[None, Any]) -> End[float]:
        return End(1.0)


@dataclass
class Subflop(Flop):
    @classmethod
    def get_node_id(cls) -> str:
        return 'Flop'


class Socket:
    """A type that pydantic knows nothing of."""


@dataclass
class Unstorable(BaseNode[None, Any, float]):
    socket: Socket

    async def run(self, ctx: GraphRunContext[None, Any]) -> End[float]:
        return End(1.0)


graph = Graph(nodes=(Flip, Flop))


def new_run() -> Any:
    persistence = MemoryStore().run('r1')
    persistence.set_graph_types(graph)
    return persistence


async def twice(_: Path) -> None:
    persistence = new_run()
    await graph.initialize(Flip(), persistence, state=None)
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id), persistence.record_run(record.id):
        pass


async def unknown_snapshot(_: Path) -> None:
    async with new_run().record_run('Flip:0'):
        pass


async def unknown_run(_: Path) -> None:
    await run_or_resume(graph, persistence=new_run())


async def finished(_: Path) -> None:
    persistence = new_run()
    await graph.run(Flip(), persistence=persistence)
    await run_or_resume(graph, Flip(), persistence=persistence, on_finished='raise')


async def failed(_: Path) -> None:
    persistence = new_run()
    with pytest.raises(OverflowError):
        await graph.run(Flip(), deps=[OverflowError('too much')], persistence=persistence)
    await run_or_resume(graph, persistence=persistence)


async def owned(_: Path) -> None:
    store = MemoryStore()
    async with iter_or_resume(graph, Flip(), persistence=store.run('r1')):
        await run_or_resume(graph, persistence=store.run('r1'))


async def lost(_: Path) -> None:
    from tests.backends.test_ownership import LEASE, Clock

    clock = Clock()
    store = MemoryStore(clock=clock, lease=LEASE)
    async with iter_or_resume(graph, Flip(), persistence=store.run('r1')) as run:
        clock.forward(LEASE)
        async with iter_or_resume(graph, persistence=store.run('r1')):
            await run.next()


async def bad_id(_: Path) -> None:
    MemoryStore().run('../x')


async def bad_type(_: Path) -> None:
    new_run().set_graph_types(Graph(nodes=(Unstorable,)))


async def unfaithful(_: Path) -> None:
    await graph.initialize(Subflop(), new_run(), state=None)


async def corrupt(path: Path) -> None:
    (path / 'r1.json').write_text('[{"kind": "node"}]')
    await run_or_resume(graph, persistence=FileStatePersistence[Any, Any](path / 'r1.json'))


async def no_directory(path: Path) -> None:
    (path / 'file').write_text('')
    await run_or_resume(graph, Flip(), persistence=FileStatePersistence[Any, Any](path / 'file' / 'r1.json'))


async def locked(path: Path) -> None:
    persistence: Any = FileStatePersistence(path / 'r1.json', lock_timeout=0)

    def refuse() -> None:
        raise LockBusy

    persistence._backend.tail = refuse
    await run_or_resume(graph, Flip(), persistence=persistence)


async def no_step(_: Path) -> None:
    current_step()


class Case(NamedTuple):
    name: str
    provoke: Callable[[Path], Awaitable[None]]
    bases: tuple[type[Exception], ...]
    attributes: dict[str, Callable[[Any], bool]]
    told: tuple[str, ...]


def is_(value: object) -> Callable[[Any], bool]:
    return lambda found: found == value


CASES = [
    Case(
        'SnapshotStatusError',
        twice,
        (GraphNodeStatusError, GraphRuntimeError),
        {
            'run_id': is_('r1'),
            'snapshot_id': lambda i: i.startswith('Flip:'),
            'expected': is_({'created', 'pending'}),
            'found': is_('running'),
            'actual_status': is_('running'),
        },
        ('start', "'Flip:", "'r1'", "'running'", "'created' or 'pending'"),
    ),
    Case(
        'UnknownSnapshotError',
        unknown_snapshot,
        (LookupError,),
        {'run_id': is_('r1'), 'snapshot_id': is_('Flip:0')},
        ("'Flip:0'", "'r1'"),
    ),
    Case(
        'UnknownRunError',
        unknown_run,
        (LookupError, GraphRuntimeError),
        {'run_id': is_('r1')},
        ("'r1'", 'start it'),
    ),
    Case(
        'RunFinishedError',
        finished,
        (GraphRuntimeError,),
        {
            'run_id': is_('r1'),
            'ended': lambda at: at.tzinfo is not None and at.utcoffset() == UTC.utcoffset(None),
        },
        ("'r1'", 'finished', 'UTC', 'read its result'),
    ),
    Case(
        'RunFailedError',
        failed,
        (GraphRuntimeError,),
        {
            'run_id': is_('r1'),
            'snapshot_id': lambda i: i.startswith('Flip:'),
            'error': lambda e: (e.type, e.message) == ('OverflowError', 'too much'),
        },
        ("'r1'", 'OverflowError: too much', 'retry()'),
    ),
    Case(
        'RunOwnedError',
        owned,
        (GraphRuntimeError,),
        {
            'run_id': is_('r1'),
            'owner': lambda o: o.pid == os.getpid(),
            'until': lambda at: at.tzinfo is not None,
        },
        ("'r1'", f'process {os.getpid()} on', 'UTC', 'wait for it'),
    ),
    Case(
        'OwnershipLostError',
        lost,
        (GraphRuntimeError,),
        {'run_id': is_('r1'), 'owner': lambda o: o.pid == os.getpid()},
        ("'r1'", 'taken over', f'process {os.getpid()} on', 'refused'),
    ),
    Case(
        'InvalidRunIdError', bad_id, (ValueError,), {'run_id': is_('../x')}, ("'../x'", 'begin with another')
    ),
    Case(
        'UnsupportedTypeError',
        bad_type,
        (TypeError,),
        {'type_': is_(Unstorable)},
        ('Unstorable', 'cannot be stored'),
    ),
    Case(
        'UnfaithfulSnapshotError',
        unfaithful,
        (ValueError,),
        {'run_id': is_('r1'), 'node_id': is_('Flop'), 'field': is_('node')},
        ("'Flop'", "'r1'", '`node`', 'Subflop'),
    ),
    Case(
        'CorruptSnapshotError',
        corrupt,
        (ValueError,),
        {'place': lambda p: 'r1.json' in p and 'number 1' in p, 'snapshot_id': is_(None)},
        ('r1.json', 'number 1', 'left as it is'),
    ),
    Case(
        'StorageError',
        no_directory,
        (OSError,),
        {'place': lambda p: p.endswith('r1.json'), 'errno': lambda n: n > 0, 'receipt': is_(None)},
        ('r1.json', 'could not', 'intact'),
    ),
    Case(
        'LockTimeoutError',
        locked,
        (TimeoutError,),
        {'place': lambda p: p.endswith('r1.json'), 'waited': is_(0)},
        ('r1.json', 'locked by somebody else', 'try again'),
    ),
    Case('NoCurrentStepError', no_step, (LookupError,), {}, ('current_step()', 'within a node')),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
async def test_error(case: Case, tmp_path: Path):
    """Each error is raised by what it is for, is also the classes named, and tells what was asked and found."""
    with pytest.raises(GraphkeepError) as raised:
        await case.provoke(tmp_path)
    assert type(raised.value) is getattr(errors, case.name)
    assert all(isinstance(raised.value, base) for base in case.bases)
    for name, holds in case.attributes.items():
        assert holds(getattr(raised.value, name)), f'{name} is {getattr(raised.value, name)!r}'
    for part in case.told:
        assert part in str(raised.value)


def test_every_error_is_provoked():
    """No error class is without a case here, and each is a `GraphkeepError`."""
    ours = {name for name in errors.__all__ if issubclass(getattr(errors, name), GraphkeepError)}
    assert {case.name for case in CASES} == ours - {'GraphkeepError', 'GraphNodeRunningError'}
    assert set(errors.__all__) - ours == {'GraphNodeStatusError'}
    assert GraphNodeRunningError is SnapshotStatusError


def test_every_error_is_drawn():
    """The tree in the module's docstring names every error with the classes that it also is."""
    for case in CASES:
        line = next(line for line in (errors.__doc__ or '').splitlines() if f' {case.name} ' in line)
        named = line.partition('(')[2].partition(')')[0].split(', ')
        assert {base.__name__ for base in case.bases} >= set(named)
        assert all(issubclass(getattr(errors, case.name), base) for base in case.bases)
