"""Every error: what raises it, what else it is, and what it tells."""

from __future__ import annotations

import errno
import os
import pickle
import sys
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from pydantic_graph import BaseNode, End, GraphRunContext
from pydantic_graph.exceptions import GraphRuntimeError

from graphkeep import (
    FileStatePersistence,
    Graph,
    GraphNodeStatusError,
    MemoryStore,
    SqliteStore,
    current_step,
    errors,
    iter_or_resume,
    run_or_resume,
)
from graphkeep._host import HOST_VERSION
from graphkeep.backend import LockBusy
from graphkeep.errors import GraphkeepError, GraphNodeRunningError, SnapshotStatusError, StorageError

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


class Socket:
    """A type that pydantic knows nothing of."""


@dataclass
class Unstorable(BaseNode[None, Any, float]):
    socket: Socket

    async def run(self, ctx: GraphRunContext[None, Any]) -> End[float]:
        return End(1.0)


graph = Graph(nodes=(Flip, Flop))


def _new_run() -> Any:
    persistence = MemoryStore().run('r1')
    persistence.set_graph_types(graph)
    return persistence


async def _twice(_: Path) -> None:
    persistence = _new_run()
    await graph.initialize(Flip(), persistence, state=None)
    (record,) = await persistence.load_history()
    async with persistence.record_run(record.id), persistence.record_run(record.id):
        pass


async def _unknown_snapshot(_: Path) -> None:
    async with _new_run().record_run('Flip:0'):
        pass


async def _unknown_run(_: Path) -> None:
    await run_or_resume(graph, persistence=_new_run())


async def _finished(_: Path) -> None:
    persistence = _new_run()
    await graph.run(Flip(), persistence=persistence)
    await run_or_resume(graph, Flip(), persistence=persistence, on_finished='raise')


async def _failed(_: Path) -> None:
    persistence = _new_run()
    with pytest.raises(OverflowError):
        await graph.run(Flip(), deps=[OverflowError('too much')], persistence=persistence)
    await run_or_resume(graph, persistence=persistence)


async def _owned(_: Path) -> None:
    store = MemoryStore()
    async with iter_or_resume(graph, Flip(), persistence=store.run('r1')):
        await run_or_resume(graph, persistence=store.run('r1'))


async def _exists(_: Path) -> None:
    store = MemoryStore()
    await graph.run(Flip(), persistence=store.run('r1'))
    await store.fork('r1', into='r1')


async def _no_store(path: Path) -> None:
    (path / 'text.db').write_text('not a database, but long enough to be told from one. ' * 20)
    await SqliteStore(path / 'text.db').runs()


async def _lost(_: Path) -> None:
    from tests.backends.test_ownership import LEASE, Clock

    clock = Clock()
    store = MemoryStore(clock=clock, lease=LEASE)
    async with iter_or_resume(graph, Flip(), persistence=store.run('r1')) as run:
        clock.forward(LEASE)
        async with iter_or_resume(graph, persistence=store.run('r1')):
            await run.next()


async def _bad_id(_: Path) -> None:
    MemoryStore().run('../x')


async def _bad_type(_: Path) -> None:
    _new_run().set_graph_types(Graph(nodes=(Unstorable,)))


async def _unfaithful(_: Path) -> None:
    await graph.initialize(Flip(True), _new_run(), state=None)


async def _corrupt(path: Path) -> None:
    (path / 'r1.json').write_text('[{"kind": "node"}]')
    await run_or_resume(graph, persistence=FileStatePersistence[Any, Any](path / 'r1.json'))


async def _no_directory(path: Path) -> None:
    (path / 'file').write_text('')
    await run_or_resume(graph, Flip(), persistence=FileStatePersistence[Any, Any](path / 'file' / 'r1.json'))


async def _locked(path: Path) -> None:
    persistence: Any = FileStatePersistence(path / 'r1.json', lock_timeout=0)

    def refuse() -> None:
        raise LockBusy

    persistence._backend.tail = refuse
    await run_or_resume(graph, Flip(), persistence=persistence)


async def _host_without_builder(_: Path) -> None:
    spec = find_spec('graphkeep._scheduler')
    assert spec is not None
    assert spec.loader is not None
    empty = ModuleType('pydantic_graph.graph_builder')
    with patch.dict(sys.modules, {empty.__name__: empty}):
        spec.loader.exec_module(module_from_spec(spec))


async def _no_step(_: Path) -> None:
    current_step()


Test = Callable[[Any], bool]


class Case(NamedTuple):
    name: str
    provoke: Callable[[Path], Awaitable[None]]
    bases: tuple[type[Exception], ...]
    attributes: dict[str, Test]
    told: tuple[str, ...]


def _is_a_flip(found: str) -> bool:
    return found.startswith('Flip:')


def _is_overflow(found: Any) -> bool:
    return (found.type, found.message) == ('OverflowError', 'too much')


def _is_the_file(found: str) -> bool:
    return found.endswith('r1.json')


def _is_the_store(found: str) -> bool:
    return found.endswith('text.db')


def _is_in_first(found: str) -> bool:
    return 'r1.json' in found and 'number 1' in found


def _is_this_process(found: Any) -> bool:
    return found.pid == os.getpid()


def _is_in_utc(found: Any) -> bool:
    return found.utcoffset() == timedelta(0)


def _tells_of(part: str) -> Callable[[Any], bool]:
    return lambda found: part in found


def _is_(value: object) -> Callable[[Any], bool]:
    return lambda found: found == value


CASES = [
    Case(
        'SnapshotStatusError',
        _twice,
        (GraphNodeStatusError, GraphRuntimeError),
        {
            'run_id': _is_('r1'),
            'snapshot_id': _is_a_flip,
            'expected': _is_({'created', 'pending'}),
            'found': _is_('running'),
            'actual_status': _is_('running'),
        },
        ('start', "'Flip:", "'r1'", "'running'", "'created' or 'pending'"),
    ),
    Case(
        'UnknownSnapshotError',
        _unknown_snapshot,
        (LookupError,),
        {'run_id': _is_('r1'), 'snapshot_id': _is_('Flip:0')},
        ("'Flip:0'", "'r1'"),
    ),
    Case(
        'UnknownRunError',
        _unknown_run,
        (LookupError, GraphRuntimeError),
        {'run_id': _is_('r1')},
        ("'r1'", 'start it'),
    ),
    Case(
        'RunFinishedError',
        _finished,
        (GraphRuntimeError,),
        {
            'run_id': _is_('r1'),
            'ended': _is_in_utc,
        },
        ("'r1'", 'finished', 'UTC', 'read its result'),
    ),
    Case(
        'RunFailedError',
        _failed,
        (GraphRuntimeError,),
        {
            'run_id': _is_('r1'),
            'snapshot_id': _is_a_flip,
            'error': _is_overflow,
        },
        ("'r1'", 'OverflowError: too much', 'retry()'),
    ),
    Case(
        'RunOwnedError',
        _owned,
        (GraphRuntimeError,),
        {
            'run_id': _is_('r1'),
            'owner': _is_this_process,
            'until': _is_in_utc,
        },
        ("'r1'", f'process {os.getpid()} on', 'UTC', 'wait for it', 'release()'),
    ),
    Case(
        'OwnershipLostError',
        _lost,
        (GraphRuntimeError,),
        {'run_id': _is_('r1'), 'owner': _is_this_process},
        ("'r1'", 'taken over', f'process {os.getpid()} on', 'refused'),
    ),
    Case(
        'RunExistsError',
        _exists,
        (GraphRuntimeError,),
        {'run_id': _is_('r1')},
        ("'r1'", 'another id'),
    ),
    Case(
        'InvalidRunIdError',
        _bad_id,
        (ValueError,),
        {'run_id': _is_('../x')},
        ("'../x'", 'begin with another'),
    ),
    Case(
        'UnsupportedTypeError',
        _bad_type,
        (TypeError,),
        {'type_': _is_(Unstorable)},
        ('Unstorable', 'cannot be stored'),
    ),
    Case(
        'UnusableStoreError',
        _no_store,
        (ValueError,),
        {'place': _is_the_store},
        ('text.db', 'is not a database', 'another path', 'left as it is'),
    ),
    Case(
        'UnfaithfulSnapshotError',
        _unfaithful,
        (ValueError,),
        {'run_id': _is_('r1'), 'node_id': _is_('Flip'), 'field': _is_('node.result')},
        ("'Flip'", "'r1'", '`node.result`', 'bool'),
    ),
    Case(
        'CorruptSnapshotError',
        _corrupt,
        (ValueError,),
        {'place': _is_in_first, 'snapshot_id': _is_(None)},
        ('r1.json', 'number 1', 'left as it is'),
    ),
    Case(
        'StorageError',
        _no_directory,
        (OSError,),
        {'place': _is_the_file, 'errno': _is_(errno.ENOTDIR), 'receipt': _is_(None)},
        ('r1.json', 'could not', 'intact'),
    ),
    Case(
        'LockTimeoutError',
        _locked,
        (TimeoutError,),
        {'place': _is_the_file, 'waited': _is_(0)},
        ('r1.json', 'locked by somebody else', 'try again'),
    ),
    Case(
        'UnsupportedHostError',
        _host_without_builder,
        (ImportError,),
        {'version': _is_(HOST_VERSION), 'needed': _tells_of('graph builder')},
        ('PersistentGraph needs', 'is installed', 'install another one'),
    ),
    Case('NoCurrentStepError', _no_step, (LookupError,), {}, ('current_step()', 'within a node')),
]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
async def test_error(case: Case, tmp_path: Path):
    """Each error is raised by what it is for, is also the classes named, and tells what was found."""
    with pytest.raises(GraphkeepError) as raised:
        await case.provoke(tmp_path)
    assert type(raised.value) is getattr(errors, case.name)
    assert all(isinstance(raised.value, base) for base in case.bases)
    for name, holds in case.attributes.items():
        assert holds(getattr(raised.value, name)), f'{name} is {getattr(raised.value, name)!r}'
    for part in case.told:
        assert part in str(raised.value)


def by_pickle(error: GraphkeepError) -> GraphkeepError:
    """Return what another process gets."""
    return pickle.loads(pickle.dumps(error))  # noqa: S301 -- made here


def told_alike(error: GraphkeepError) -> list[object]:
    """Return everything that an error tells."""
    native = [getattr(error, name, None) for name in ('message', 'errno', 'strerror', 'msg')]
    return [type(error), repr(error), str(error), error.args, vars(error), *native]


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
async def test_tells_the_same_everywhere(case: Case, tmp_path: Path):
    """Message, arguments and representation of an error agree, in a copy and in another process as well."""
    with pytest.raises(GraphkeepError) as raised:
        await case.provoke(tmp_path)
    error: Any = raised.value
    message = error.args[-1]
    assert repr(error) == f'{case.name}({", ".join(map(repr, error.args))})'
    if isinstance(error, StorageError):  # with its number before, as of every `OSError`
        assert str(error).startswith(f'[Errno {error.errno}] {message}.')
    else:
        assert error.args == (str(error),)
    assert getattr(error, 'message', message) == message
    for copied in (by_pickle, copy, errors.another):
        assert told_alike(copied(error)) == told_alike(error)


async def test_what_a_retry_needs():
    """Who retries what has not failed is told the status that a retry needs, and not that of a start."""
    persistence = _new_run()
    await graph.initialize(Flip(), persistence, state=None)
    with pytest.raises(SnapshotStatusError) as raised:
        await persistence.retry()
    for told in (str(raised.value), repr(raised.value), raised.value.message, *raised.value.args):
        assert "Cannot retry snapshot 'Flip:" in told
        assert "Incorrect snapshot status 'created', must be 'error'." in told


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
