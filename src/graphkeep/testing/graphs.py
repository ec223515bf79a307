"""The graphs that the clauses run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic_graph import BaseNode, End, GraphRunContext

from ..graph import Graph
from ..step import current_step

__all__ = (
    'Again',
    'Answer',
    'Ask',
    'Half',
    'Other',
    'State',
    'Unspeakable',
    'Wider',
    'graph',
    'half',
    'unstorable',
)


@dataclass
class State:
    """The state of the graph under test."""

    items: list[str] = field(default_factory=list[str])


@dataclass
class Wider(State):
    """What the state may have become in a later version."""

    note: str = ''


@dataclass
class Ask(BaseNode[State, Any, int]):
    """The first of two steps."""

    value: int = 0

    async def run(self, ctx: GraphRunContext[State, Any]) -> Answer:
        """Run the node."""
        ctx.state.items.append(f'ask {self.value}')
        return Answer(self.value + 1)


@dataclass
class Answer(BaseNode[State, Any, int]):
    """The second of two steps; fails once for each failure that `deps` holds."""

    value: int = 0

    async def run(self, ctx: GraphRunContext[State, Any]) -> End[int]:
        """Run the node."""
        if ctx.deps:
            raise ctx.deps.pop()
        ctx.state.items.append(f'answer {self.value}')
        return End(self.value)


@dataclass
class Again(BaseNode[State, Any, int]):
    """Returns itself until nothing is left, so that its snapshot id recurs."""

    left: int = 3

    async def run(self, ctx: GraphRunContext[State, Any]) -> Again | End[int]:
        """Run the node."""
        ctx.state.items.append(current_step().idempotency_key)
        self.left -= 1
        return self if self.left else End(len(ctx.state.items))


class Unspeakable(Exception):
    """An exception of a user's that cannot even be shown."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def unstorable() -> Ask:
    """Return a node that would be loaded as another one: a truth value in a field for numbers."""
    return Ask(True)


@dataclass
class Other(BaseNode[State, Any, int]):
    """A node of another graph."""

    text: str = ''

    async def run(self, ctx: GraphRunContext[State, Any]) -> End[int]:
        """Run the node."""
        return End(0)


@dataclass
class Half(BaseNode[State, Any, int]):
    """Changes the state, then fails once for each failure that `deps` holds."""

    async def run(self, ctx: GraphRunContext[State, Any]) -> End[int]:
        """Run the node."""
        ctx.state.items.append('half')
        if ctx.deps:
            raise ctx.deps.pop()
        return End(1)


graph = Graph(nodes=(Ask, Answer, Again), name='ask and answer')
"""The graph that most clauses run."""

half = Graph(nodes=(Half,), name='half')
"""A graph whose node changes the state before it fails."""
