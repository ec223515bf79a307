"""States of every kind, changed or read by steps that run side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from pydantic import BaseModel, Field
from pydantic_graph import GraphBuilder, ReducerContext, StepContext, reduce_list_append, reduce_sum
from pydantic_graph.graph_builder import Graph

from .cases import case, pause


@dataclass(frozen=True)
class Settings:
    """A state that cannot change."""

    factor: int
    names: tuple[str, ...]


@case('immutable state', 'map', state=lambda: Settings(3, ('a', 'b')), inputs=[1, 2, 3])
def frozen_state() -> Graph[Settings, None, list[int], int]:
    g = GraphBuilder(state_type=Settings, input_type=list[int], output_type=int)

    @g.step
    async def work(ctx: StepContext[Settings, None, int]) -> int:
        await pause()
        return ctx.inputs * ctx.state.factor

    @g.step
    async def more(ctx: StepContext[Settings, None, int]) -> int:
        await pause()
        return ctx.inputs + len(ctx.state.names)

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(more),
        g.edge_from(more).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('immutable state', 'broadcast', state=lambda: 5, inputs=2)
def number_as_state() -> Graph[int, None, int, int]:
    g = GraphBuilder(state_type=int, input_type=int, output_type=int)

    @g.step
    async def times(ctx: StepContext[int, None, int]) -> int:
        await pause()
        return ctx.inputs * ctx.state

    @g.step
    async def plus(ctx: StepContext[int, None, int]) -> int:
        return ctx.inputs + ctx.state

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).to(times, plus),
        g.edge_from(times, plus).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


class Level(Enum):
    """An enum in a state."""

    LOW = 1
    HIGH = 2


class Entry(BaseModel):
    """A model in a model."""

    key: str
    at: datetime
    data: bytes = b''


class Book(BaseModel):
    """A pydantic model as state."""

    level: Level = Level.LOW
    entries: dict[str, Entry] = Field(default_factory=dict[str, Entry])
    total: int = 0


@case(
    'pydantic state',
    'pydantic model',
    'datetime',
    'enum',
    'bytes',
    'map',
    'changes before an await',
    state=Book,
    inputs=['x', 'y', 'z'],
)
def model_as_state() -> Graph[Book, None, list[str], int]:
    g = GraphBuilder(state_type=Book, input_type=list[str], output_type=int)

    @g.step
    async def enter(ctx: StepContext[Book, None, str]) -> Entry:
        entry = Entry(key=ctx.inputs, at=datetime(2020, 1, 1, tzinfo=UTC))
        ctx.state.entries[ctx.inputs] = entry.model_copy()
        await pause()
        ctx.state.total += 1
        return entry

    @g.step
    async def fill(ctx: StepContext[Book, None, Entry]) -> int:
        await pause()
        ctx.state.entries[ctx.inputs.key].data += ctx.inputs.key.encode()
        await pause()
        return len(ctx.state.entries[ctx.inputs.key].data)

    @g.step
    async def close(ctx: StepContext[Book, None, int]) -> int:
        ctx.state.level = Level.HIGH
        await pause()
        return ctx.inputs + ctx.state.total

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(enter),
        g.edge_from(enter).to(fill),
        g.edge_from(fill).to(total),
        g.edge_from(total).to(close),
        g.edge_from(close).to(g.end_node),
    )
    return g.build()


@case('dict state', 'map', 'changes between awaits', state=lambda: {'begun': 0}, inputs=['a', 'b', 'c'])
def dict_as_state() -> Graph[dict[str, int], None, list[str], list[str]]:
    g = GraphBuilder(state_type=dict[str, int], input_type=list[str], output_type=list[str])

    @g.step
    async def work(ctx: StepContext[dict[str, int], None, str]) -> str:
        ctx.state['begun'] += 1
        await pause()
        ctx.state[ctx.inputs] = 1
        await pause()
        ctx.state[ctx.inputs] += 1
        return ctx.inputs

    @g.step
    async def ordered(ctx: StepContext[dict[str, int], None, list[str]]) -> list[str]:
        await pause()
        del ctx.state['begun']
        return sorted(ctx.inputs)

    joined = g.join(reduce_list_append, initial_factory=list[str])
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(joined),
        g.edge_from(joined).to(ordered),
        g.edge_from(ordered).to(g.end_node),
    )
    return g.build()


def _in_any_order(output: Any, state: Any) -> Any:
    return output, sorted(state)


@case(
    'list state', 'map', 'changes after an await', state=list[int], inputs=[3, 1, 2], normalise=_in_any_order
)
def list_as_state() -> Graph[list[int], None, list[int], int]:
    g = GraphBuilder(state_type=list[int], input_type=list[int], output_type=int)

    @g.step
    async def work(ctx: StepContext[list[int], None, int]) -> int:
        ctx.state.append(ctx.inputs)
        await pause()
        ctx.state.append(10 * ctx.inputs)
        return ctx.inputs

    @g.step
    async def more(ctx: StepContext[list[int], None, int]) -> int:
        await pause()
        ctx.state.append(100 * ctx.inputs)
        return ctx.inputs

    total = g.join(reduce_sum, initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(work),
        g.edge_from(work).to(more),
        g.edge_from(more).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@dataclass
class Part:
    """A part of a state, that others change."""

    values: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


@dataclass
class Whole:
    """A state whose parts are nested, and changed deep inside."""

    parts: list[Part] = field(default_factory=lambda: [Part(), Part()])
    best: tuple[int, str] | None = None


def _deep(output: Any, state: Whole) -> Any:
    return output, state.best, [{k: sorted(v) for k, v in p.values.items()} for p in state.parts]


@case(
    'broadcast',
    'map',
    'join with state access',
    'tuple',
    'optional',
    'changes between awaits',
    state=Whole,
    inputs=[5, 8, 2],
    normalise=_deep,
)
def deep_state() -> Graph[Whole, None, list[int], int]:
    """Changes deep inside of the state, and a maximum, for which the order does not matter either."""
    g = GraphBuilder(state_type=Whole, input_type=list[int], output_type=int)

    @g.step
    async def left(ctx: StepContext[Whole, None, int]) -> int:
        await pause()
        ctx.state.parts[0].values.setdefault('left', []).append(ctx.inputs)
        await pause()
        ctx.state.best = max(ctx.state.best or (0, ''), (ctx.inputs, 'left'))
        await pause()
        return ctx.inputs

    @g.step
    async def right(ctx: StepContext[Whole, None, int]) -> int:
        ctx.state.parts[1].values.setdefault(f'right {ctx.inputs}', []).extend([ctx.inputs] * 2)
        await pause()
        return -ctx.inputs

    def best(ctx: ReducerContext[Whole, None], current: int, inputs: int) -> int:
        ctx.state.parts[0].values.setdefault('reduced', []).append(inputs)
        return max(current, inputs)

    joined = g.join(best, initial=0)
    g.add(
        g.edge_from(g.start_node).map().to(left, right),
        g.edge_from(left, right).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()
