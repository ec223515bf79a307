"""A builder graph that maps over numbers; it cannot be imported where the host has no graph builder."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio

from ..builder import PersistentGraph  # first: it tells which hosts have no builder
from .graphs import State

# isort: split
from pydantic_graph.graph_builder import GraphBuilder
from pydantic_graph.join import reduce_sum
from pydantic_graph.step import StepContext

__all__ = ('NUMBERS', 'Work', 'squares')

NUMBERS = 6
"""How many numbers are mapped over."""


@dataclass
class Work:
    """What the steps of one process are to do, and have done."""

    stuck: frozenset[int] = frozenset()
    """The numbers whose steps never end."""
    begun: list[int] = field(default_factory=list[int])
    """The numbers whose steps were begun."""


def _squares() -> PersistentGraph[State, Work, int, int]:
    g = GraphBuilder(
        name='squares',
        state_type=State,
        deps_type=Work,
        input_type=int,
        output_type=int,
        auto_instrument=False,
    )

    @g.step
    async def numbers(ctx: StepContext[State, Work, int]) -> list[int]:
        return list(range(ctx.inputs))

    @g.step
    async def square(ctx: StepContext[State, Work, int]) -> int:
        ctx.deps.begun.append(ctx.inputs)
        if ctx.inputs in ctx.deps.stuck:
            await anyio.sleep_forever()
        ctx.state.items.append(f'square of {ctx.inputs}')
        return ctx.inputs**2

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(numbers),
        g.edge_from(numbers).map().to(square),
        g.edge_from(square).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return PersistentGraph(g.build())


squares = _squares()
"""Adds up the squares of so many numbers."""
