"""What a case of the corpus is: a graph, what it is run with, and how its results are compared."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from random import Random
from typing import Any, Final, Literal, get_args

import anyio
import anyio.lowlevel
from pydantic_graph.graph_builder import Graph

__all__ = (
    'CASES',
    'EXTRA',
    'HOST',
    'KINDS',
    'Case',
    'Counts',
    'Kind',
    'case',
    'delays',
    'in_any_order',
    'pause',
    'plain',
)

_Demanded = Literal[
    'step',
    'typed decision',
    'literal decision',
    'custom match',
    'broadcast',
    'map',
    'async map',
    'transform',
    'label',
    'nested map',
    'join',
    'join with state access',
    'cancel siblings',
    'first value',
    'several joins under one fork',
    'join inside join',
    'parent fork id',
    'preferred parent fork',
    'empty map',
    'nested empty map',
    'one of several maps empty',
    'loop',
    'loop in map',
    'BaseNode',
    'mixed',
    'several ends',
    'streaming',
    'stateless',
    'immutable state',
    'pydantic state',
    'dict state',
    'list state',
    'deps',
    'changes before an await',
    'changes between awaits',
    'changes after an await',
    'changes inputs',
    'None',
    'dataclass',
    'pydantic model',
    'union',
    'optional',
    'list',
    'tuple',
    'enum',
    'datetime',
    'bytes',
]
_Extra = Literal[
    'types',
    'thread',
    'child task',
    'cancel scope',
    'awaitable',
    'no await',
    'join in loop',
    'JoinNode',
    'race to the end',
    'wide',
    'reads state',
]
Kind = Literal[_Demanded, _Extra]

KINDS: Final[frozenset[str]] = frozenset(get_args(_Demanded))
"""Every kind of graph, step, state and value that has to be covered."""
EXTRA: Final[frozenset[str]] = frozenset(get_args(_Extra))
"""Kinds that are covered as well."""


def _as_they_are(output: Any, state: Any) -> Any:
    return output, state


def _nothing() -> None:
    return None


HOST: Final = tuple(int(part) for part in version('pydantic-graph').split('.')[:3])
"""The version of pydantic-graph."""


@dataclass(frozen=True)
class Case:
    """A graph of the corpus. However its tasks are scheduled, its normalised result is the same."""

    name: str
    """The name of the function that builds it."""
    build: Callable[[], Graph[Any, Any, Any, Any]]
    """Build the graph; a new one each time."""
    kinds: frozenset[str]
    """What it covers."""
    state: Callable[[], Any] = _nothing
    """Make the state that it begins with."""
    given: Any = None
    """The inputs; see `inputs`."""
    deps: Callable[[], Any] = _nothing
    """Make the deps, which no process leaves to another."""
    normalise: Callable[[Any, Any], Any] = _as_they_are
    """Turn output and final state into what is compared."""
    types: tuple[Any, ...] = ()
    """The types of values that the graph does not name itself."""
    since: tuple[int, ...] = (0,)
    """The first version of the host that runs it right."""
    resumes_since: tuple[int, ...] = (0,)
    """The first version of the host that goes on with it right: before 2.50 the host itself may close a join
    within a fork too early, if much of what leads to it is done already."""

    def inputs(self) -> Any:
        """Return inputs that nobody else has, for there are steps that change theirs."""
        return deepcopy(self.given)

    @property
    def runs_here(self) -> bool:
        """Whether the installed host runs it right."""
        return self.since <= HOST

    @property
    def resumes_here(self) -> bool:
        """Whether the installed host goes on with it right."""
        return self.runs_here and self.resumes_since <= HOST

    def __repr__(self) -> str:
        return f'<{self.name}>'


CASES: Final[dict[str, Case]] = {}
"""Every case, by its name; `tests.builder.graphs` fills it."""


def case(
    *kinds: Kind,
    state: Callable[[], Any] = _nothing,
    inputs: Any = None,
    deps: Callable[[], Any] = _nothing,
    normalise: Callable[[Any, Any], Any] = _as_they_are,
    types: tuple[Any, ...] = (),
    since: tuple[int, ...] = (0,),
    resumes_since: tuple[int, ...] = (0,),
) -> Callable[
    [Callable[[], Graph[Any, Any, Any, Any]]],
    Callable[[], Graph[Any, Any, Any, Any]],
]:
    """Register the graph that the decorated function builds."""

    def register(build: Callable[[], Graph[Any, Any, Any, Any]]) -> Callable[[], Graph[Any, Any, Any, Any]]:
        name = build.__name__
        if name in CASES:
            raise ValueError(f'there are two cases named {name}')
        CASES[name] = Case(
            name, build, frozenset(kinds), state, inputs, deps, normalise, types, since, resumes_since
        )
        return build

    return register


def in_any_order(output: Any, state: Any) -> Any:
    """Compare a list that parallel tasks filled whatever its order."""
    return sorted(output), state


@dataclass
class Counts:
    """A state that parallel steps change in ways whose order does not matter."""

    counter: dict[str, int] = field(default_factory=dict[str, int])
    """What the steps count."""

    def add(self, key: str, n: int = 1) -> None:
        """Count."""
        self.counter[key] = self.counter.get(key, 0) + n

    def of(self, key: str) -> int:
        """Return a count."""
        return self.counter.get(key, 0)


_chance: ContextVar[Random | None] = ContextVar('chance', default=None)


async def pause() -> None:
    """Let others run: once, or within `delays` a random number of times."""
    chance = _chance.get()
    for _ in range(1 if chance is None else chance.choice((1, 1, 2, 3, 5))):
        await anyio.lowlevel.checkpoint()


@contextmanager
def delays(seed: int) -> Generator[None]:
    """Let every `pause` of a step take a random number of turns."""
    token = _chance.set(Random(seed))  # noqa: S311
    try:
        yield
    finally:
        _chance.reset(token)


async def plain(case: Case, seed: int = 0) -> Any:
    """Run the graph on the plain host, with the delays that the seed makes; return the normalised result."""
    state = case.state()
    with delays(seed), anyio.fail_after(10):
        output = await case.build().run(state=state, inputs=case.inputs(), deps=case.deps())
    return case.normalise(output, state)
