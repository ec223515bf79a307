"""Random parallel graphs: a description, which prints as what makes it again, and the graph it describes.

Each step runs a small script: it waits, counts in the state, changes its inputs. All that is counted is added
up, so the result is the same in whatever order the tasks run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any, Literal, TypeAlias, cast

from hypothesis import strategies as st
from pydantic_graph import (
    GraphBuilder,
    ReducerContext,
    StepContext,
    reduce_dict_update,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph
from pydantic_graph.id_types import ForkID

from .corpus.cases import Case, Counts, pause

__all__ = ('Block', 'Choose', 'Every', 'Loop', 'Map', 'Run', 'Then', 'case_of', 'descriptions', 'steps')

JoinKind = Literal['append', 'sum', 'dict', 'context']
JOINS: tuple[JoinKind, ...] = ('append', 'sum', 'dict', 'context')
SCRIPT = '.ab+'


@dataclass
class Item:
    """What goes through the graph."""

    number: int
    rounds: list[int] = field(default_factory=list[int])
    """How often each of the loops that it is in still goes round."""

    def __add__(self, other: Item) -> Item:
        return Item(self.number + other.number, other.rounds or self.rounds)


@dataclass(frozen=True, repr=False)
class Run:
    """A step. Of its script, `.` waits, `a` and `b` count in the state, and `+` changes the inputs."""

    script: str = ''

    def __repr__(self) -> str:
        return f'Run({self.script!r})'


@dataclass(frozen=True, repr=False)
class Then:
    """One after another."""

    first: Block
    second: Block

    def __repr__(self) -> str:
        return f'Then({self.first}, {self.second})'


@dataclass(frozen=True, repr=False)
class Choose:
    """A decision: one block for even numbers, one for odd ones."""

    even: Block
    odd: Block

    def __repr__(self) -> str:
        return f'Choose({self.even}, {self.odd})'


@dataclass(frozen=True, repr=False)
class Loop:
    """A block that is gone through several times."""

    times: int
    body: Block

    def __repr__(self) -> str:
        return f'Loop({self.times}, {self.body})'


@dataclass(frozen=True, repr=False)
class Map:
    """A step that makes so many items, or streams them, a block for each, and a join."""

    size: int
    body: Block
    join: JoinKind = 'sum'
    stream: bool = False
    script: str = ''

    def __repr__(self) -> str:
        more = ', stream=True' if self.stream else ''
        more += f', script={self.script!r}' if self.script else ''
        return f'Map({self.size}, {self.body}, {self.join!r}{more})'


@dataclass(frozen=True, repr=False)
class Every:
    """A broadcast to several blocks, and a join."""

    bodies: tuple[Block, ...]
    join: JoinKind = 'sum'

    def __repr__(self) -> str:
        return f'Every({self.bodies}, {self.join!r})'


Block: TypeAlias = Run | Then | Choose | Loop | Map | Every


# ------------------------------------------------------------------------------------------- the strategy


def steps(block: Block) -> int:
    """Return about how many steps a run of the graph takes."""
    match block:
        case Run():
            return 1
        case Then(first, second):
            return steps(first) + steps(second)
        case Choose(even, odd):
            return 2 + max(steps(even), steps(odd))
        case Loop(times, body):
            return 2 + times * (steps(body) + 1)
        case Map(size, body, join):
            return 1 + size * steps(body) + (join in ('append', 'dict'))
        case Every(bodies, join):
            return 1 + sum(steps(body) for body in bodies) + (join in ('append', 'dict'))


def descriptions(
    *,
    depth: int = 2,
    most_steps: float = inf,
    empty_maps: bool = True,
    nested_forks: bool = True,
    streams: bool = True,
) -> st.SearchStrategy[Block]:
    """Return the strategy for descriptions of graphs; the simplest is a map over nothing, or one item.

    Args:
        depth: How many blocks are inside one another, at most, within the outermost one.
        most_steps: How many steps a run may take, about.
        empty_maps: Whether there may be maps over nothing.
        nested_forks: Whether there may be forks within forks. Hosts before 2.50 close some of their joins too
            early.
        streams: Whether there may be maps over streams. Early hosts close some of their joins too early,
            as soon as no item is under way.
    """
    scripts = st.text(SCRIPT, max_size=5)
    joins = st.sampled_from(JOINS)
    smallest = 0 if empty_maps else 1

    def extend(blocks: st.SearchStrategy[Block]) -> st.SearchStrategy[Block]:
        return st.one_of(
            st.builds(
                Map,
                st.integers(smallest, 3),
                blocks,
                joins,
                st.booleans() if streams else st.just(False),
                scripts,
            ),
            st.builds(Every, st.lists(blocks, min_size=2, max_size=3).map(tuple), joins),
            st.builds(Then, blocks, blocks),
            st.builds(Choose, blocks, blocks),
            st.builds(Loop, st.integers(1, 2), blocks),
        )

    runs: st.SearchStrategy[Block] = st.builds(Run, scripts)
    blocks = runs
    for _ in range(depth):
        blocks = runs | extend(blocks)
    return extend(blocks).filter(
        lambda block: steps(block) <= most_steps and (nested_forks or not _has_nested(block))
    )


def _has_nested(block: Block, *, within: bool = False) -> bool:
    """Whether a fork is within another one."""
    if isinstance(block, Map | Every):
        inner = (block.body,) if isinstance(block, Map) else block.bodies
        return within or any(_has_nested(body, within=True) for body in inner)
    if isinstance(block, Loop):
        return _has_nested(block.body, within=within)
    if isinstance(block, Run):
        return False
    parts = (block.first, block.second) if isinstance(block, Then) else (block.even, block.odd)
    return any(_has_nested(part, within=within) for part in parts)


# ---------------------------------------------------------------------------------------------- the graph


def case_of(description: Block) -> Case:
    """Return the case that the description describes."""
    return Case(
        repr(description),
        lambda: _Making().graph(description),
        frozenset({'random'}),
        state=Counts,
        given=Item(1),
    )


def _is_even(value: object) -> bool:
    return isinstance(value, Item) and value.number % 2 == 0


def _goes_round(value: object) -> bool:
    # of nothing that was mapped over, nothing is left that says how often to go round
    return isinstance(value, Item) and bool(value.rounds) and value.rounds[-1] > 0


def _keyed(ctx: StepContext[Counts, None, Item]) -> dict[int, Item]:
    return {ctx.inputs.number: ctx.inputs}


def _counting(ctx: ReducerContext[Counts, None], current: Item, inputs: Item) -> Item:
    ctx.state.add('reduced', inputs.number)
    return current + inputs


def _branch(index: int) -> Callable[[StepContext[Counts, None, Item]], Item]:
    def branch(ctx: StepContext[Counts, None, Item]) -> Item:
        # of its own to each branch, for steps change what they are given
        return Item(ctx.inputs.number + index, list(ctx.inputs.rounds))

    return branch


def _nothing() -> Item:
    return Item(0)


async def _follow(script: str, ctx: StepContext[Counts, None, Item]) -> None:
    for letter in script:
        if letter == '.':
            await pause()
        elif letter == '+':
            ctx.inputs.number += 1
        else:
            ctx.state.add(letter, ctx.inputs.number)


class _Making:
    """One graph in the making. Every block begins with a step, and ends with a step or a join."""

    def __init__(self) -> None:
        self.g: Any = GraphBuilder(state_type=Counts, input_type=Item, output_type=int)
        self.numbers = count(1)

    def graph(self, block: Block) -> Graph[Counts, None, Item, int]:
        entry, leaving = self.block(block)

        async def end(ctx: StepContext[Counts, None, Item]) -> int:
            return ctx.inputs.number

        self.edge(self.g.start_node, entry)
        last = self.g.step(end, node_id='end')
        self.edge(leaving, last)
        self.edge(last, self.g.end_node)
        return cast('Graph[Counts, None, Item, int]', self.g.build())

    def block(self, block: Block) -> tuple[Any, Any]:
        match block:
            case Run():
                step = self.step('run', block.script)
                return step, step
            case Then():
                (entry, first), (second, leaving) = self.block(block.first), self.block(block.second)
                self.edge(first, second)
                return entry, leaving
            case Choose():
                return self.choose(block)
            case Loop():
                return self.loop(block)
            case Map():
                return self.map(block)
            case Every():
                return self.every(block)

    def choose(self, block: Choose) -> tuple[Any, Any]:
        (even, of_even), (odd, of_odd) = self.block(block.even), self.block(block.odd)
        entry, leaving = self.step('choose'), self.step('chosen')
        decision = (
            self.g.decision(node_id=self.name('even'))
            .branch(self.g.match(Item, matches=_is_even).to(even))
            .branch(self.g.match(Item).to(odd))
        )
        self.edge(entry, decision)
        self.edge(of_even, leaving)
        self.edge(of_odd, leaving)
        return entry, leaving

    def loop(self, block: Loop) -> tuple[Any, Any]:
        body, of_body = self.block(block.body)

        async def enter(ctx: StepContext[Counts, None, Item]) -> Item:
            return Item(ctx.inputs.number, [*ctx.inputs.rounds, block.times])

        async def around(ctx: StepContext[Counts, None, Item]) -> Item:
            *outer, left = ctx.inputs.rounds or [0]
            return Item(ctx.inputs.number, [*outer, left - 1])

        async def leave(ctx: StepContext[Counts, None, Item]) -> Item:
            return Item(ctx.inputs.number, ctx.inputs.rounds[:-1])

        entry, turn, leaving = (
            self.g.step(step, node_id=self.name(step.__name__)) for step in (enter, around, leave)
        )
        again = (
            self.g.decision(node_id=self.name('again'))
            .branch(self.g.match(Item, matches=_goes_round).to(body))
            .branch(self.g.match(Item).to(leaving))
        )
        self.edge(entry, body)
        self.edge(of_body, turn)
        self.edge(turn, again)
        return entry, leaving

    def map(self, block: Map) -> tuple[Any, Any]:
        body, of_body = self.block(block.body)

        async def spread(ctx: StepContext[Counts, None, Item]) -> list[Item]:
            await _follow(block.script, ctx)
            return [Item(ctx.inputs.number + index, list(ctx.inputs.rounds)) for index in range(block.size)]

        async def stream(ctx: StepContext[Counts, None, Item]) -> Any:
            for index in range(block.size):
                await pause()
                yield Item(ctx.inputs.number + index, list(ctx.inputs.rounds))
            # its prefix is to be the same if it runs again, so what it does to its inputs comes last
            await _follow(block.script, ctx)

        entry = (
            self.g.stream(stream, node_id=self.name('stream'))
            if block.stream
            else self.g.step(spread, node_id=self.name('spread'))
        )
        fork_id = ForkID(self.name('map'))
        join, leaving = self.join(block.join, fork_id)
        each = self.g.edge_from(entry).map(fork_id=fork_id, downstream_join_id=join.id)
        self.g.add(each.to(body))
        self.to_join(of_body, join, block.join)
        return entry, leaving

    def every(self, block: Every) -> tuple[Any, Any]:
        blocks = [self.block(body) for body in block.bodies]
        entry, fork_id = self.step('every'), self.name('broadcast')

        def paths(edge: Any) -> list[Any]:
            return [edge.transform(_branch(index)).to(body) for index, (body, _) in enumerate(blocks)]

        join, leaving = self.join(block.join, fork_id)
        self.g.add(self.g.edge_from(entry).broadcast(paths, fork_id=fork_id))
        for _, of_body in blocks:
            self.to_join(of_body, join, block.join)
        return entry, leaving

    def join(self, kind: JoinKind, fork_id: str) -> tuple[Any, Any]:
        names = {'node_id': self.name(kind), 'parent_fork_id': fork_id}
        if kind == 'sum':
            join = self.g.join(reduce_sum, initial_factory=_nothing, **names)
            return join, join
        if kind == 'context':
            join = self.g.join(_counting, initial_factory=_nothing, **names)
            return join, join

        async def fold(ctx: StepContext[Counts, None, list[Item]]) -> Item:
            return sum(ctx.inputs, Item(0))

        async def fold_dict(ctx: StepContext[Counts, None, dict[int, Item]]) -> Item:
            return sum(ctx.inputs.values(), Item(0))

        if kind == 'append':
            join = self.g.join(reduce_list_append, initial_factory=list[Item], **names)
        else:
            join = self.g.join(reduce_dict_update, initial_factory=dict[int, Item], **names)
        step = self.g.step(fold if kind == 'append' else fold_dict, node_id=self.name('fold'))
        self.edge(join, step)
        return join, step

    def to_join(self, source: Any, join: Any, kind: JoinKind) -> None:
        edge = self.g.edge_from(source)
        self.g.add((edge.transform(_keyed) if kind == 'dict' else edge).to(join))

    def step(self, name: str, script: str = '') -> Any:
        async def step(ctx: StepContext[Counts, None, Item]) -> Item:
            await _follow(script, ctx)
            return Item(ctx.inputs.number, ctx.inputs.rounds)

        return self.g.step(step, node_id=self.name(name))

    def edge(self, source: Any, destination: Any) -> None:
        self.g.add(self.g.edge_from(source).to(destination))

    def name(self, name: str) -> str:
        return f'{name}{next(self.numbers)}'
