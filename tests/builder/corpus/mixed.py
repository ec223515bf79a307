"""Graphs of `BaseNode`s, and of them and steps together.

No `from __future__ import annotations` here: what a node returns names steps and joins that are local. Before
Python 3.12 such an annotation may not stand in a union, for a step and a join have no hash. And a step that
returns one of several nodes and nothing else would get a decision of the host's own, which matches none.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

import anyio
from pydantic_graph import (
    BaseNode,
    End,
    GraphBuilder,
    GraphRunContext,
    JoinNode,
    ReduceFirstValue,
    ReducerContext,
    StepContext,
    StepNode,
    reduce_list_append,
    reduce_sum,
)
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, in_any_order, pause


@dataclass
class Halve(BaseNode[Counts, None, int]):
    """Halve a number as long as that goes."""

    number: int

    async def run(self, ctx: GraphRunContext[Counts, None]) -> 'Halve | Odd':
        ctx.state.add('halved')
        await pause()
        return Odd(self.number) if self.number % 2 else Halve(self.number // 2)


@dataclass
class Odd(BaseNode[Counts, None, int]):
    """End with what could not be halved."""

    number: int

    async def run(self, ctx: GraphRunContext[Counts, None]) -> End[int]:
        await pause()
        ctx.state.add('odd')
        return End(self.number)


@case('BaseNode', 'loop', 'dataclass', 'changes before an await', state=Counts, inputs=Halve(40))
def nodes_only() -> Graph[Counts, None, Halve, int]:
    g = GraphBuilder(state_type=Counts, input_type=Halve, output_type=int)
    g.add(g.edge_from(g.start_node).to(Halve), g.node(Halve), g.node(Odd))
    return g.build()


@case('BaseNode', 'mixed', 'transform', state=Counts, inputs=12)
def step_to_node() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def begin(ctx: StepContext[Counts, None, int]) -> Halve:
        ctx.state.add('begun')
        await pause()
        return Halve(ctx.inputs)

    def doubled(ctx: StepContext[Counts, None, int]) -> int:
        return 2 * ctx.inputs

    g.add(
        g.edge_from(g.start_node).transform(doubled).to(begin),
        g.node(Halve),
        g.node(Odd),
    )
    return g.build()


@case('mixed', 'BaseNode', 'changes after an await', state=Counts, inputs=3)
def node_to_step() -> Graph[Counts, None, int, int]:
    """Nodes of a class that is made anew with the graph, as its steps are."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def finish(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('finished', ctx.inputs)
        return ctx.inputs

    @dataclass
    class Middle(BaseNode[Counts, None, int]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[StepNode[Counts, None], finish]:
            ctx.state.add('middle')
            await pause()
            return finish.as_node(self.number + 1)

    @g.step
    async def begin(ctx: StepContext[Counts, None, int]) -> Middle:
        await pause()
        return Middle(ctx.inputs)

    g.add(
        g.edge_from(g.start_node).to(begin),
        g.node(Middle),
        g.edge_from(finish).to(g.end_node),
    )
    return g.build()


@case('mixed', 'BaseNode', 'JoinNode', 'map', 'join', state=Counts, inputs=[1, 2, 3, 4])
def nodes_in_a_map() -> Graph[Counts, None, list[int], int]:
    """Mapped over, nodes hand their result to the join themselves: there is no task for that."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)
    total = g.join(reduce_sum, initial=0, node_id='total')

    @dataclass
    class Work(BaseNode[Counts, None, int]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[JoinNode[Counts, None], total]:
            ctx.state.add('work', self.number)
            await pause()
            return total.as_node(self.number)

    @g.step
    async def spread(ctx: StepContext[Counts, None, list[int]]) -> list[Work]:
        await pause()
        return [Work(number) for number in ctx.inputs]

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('after')
        return ctx.inputs

    g.add(
        g.edge_from(g.start_node).to(spread),
        g.edge_from(spread).map().to(Work),
        g.node(Work),
        g.edge_from(total).to(after),
        g.edge_from(after).to(g.end_node),
    )
    return g.build()


@case('mixed', 'JoinNode', 'join with state access', 'loop in map', state=Counts, inputs=[2, 1, 3])
def nodes_that_loop_in_a_map() -> Graph[Counts, None, list[int], int]:
    """Nodes that go round until they join, by a reducer that changes the state."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    def reduced(ctx: ReducerContext[Counts, None], current: int, inputs: int) -> int:
        ctx.state.add('reduced')
        return current + inputs

    total = g.join(reduced, initial=0, node_id='total')

    @dataclass
    class Gone(BaseNode[Counts, None, int]):
        rounds: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[JoinNode[Counts, None], total]:
            await pause()
            ctx.state.add('gone')
            return total.as_node(self.rounds)

    @dataclass
    class Round(BaseNode[Counts, None, int]):
        left: int
        gone: int = 0

        async def run(self, ctx: GraphRunContext[Counts, None]) -> 'Round | Gone':
            ctx.state.add('before')
            await pause()
            ctx.state.add('after')
            return Round(self.left - 1, self.gone + 1) if self.left else Gone(self.gone)

    @g.step
    async def begin(ctx: StepContext[Counts, None, int]) -> Round:
        ctx.state.add('begun')
        return Round(ctx.inputs)

    g.add(
        g.edge_from(g.start_node).map().to(begin),
        g.node(Round),
        g.node(Gone),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@dataclass
class Wait(BaseNode[Counts, None, str]):
    """A node that returns itself, changed."""

    until: datetime
    now: datetime = datetime(2024, 1, 1, tzinfo=UTC)
    passed: list[timedelta] = field(default_factory=list[timedelta])

    async def run(self, ctx: GraphRunContext[Counts, None]) -> 'Wait | End[str]':
        if self.now >= self.until:
            return End(f'{len(self.passed)} days')
        self.now += timedelta(days=1)
        await pause()
        self.passed.append(timedelta(days=1))
        ctx.state.add('days')
        return self


@case(
    'BaseNode',
    'loop',
    'changes inputs',
    'datetime',
    'list',
    state=Counts,
    inputs=Wait(datetime(2024, 1, 4, tzinfo=UTC)),
)
def node_that_returns_itself() -> Graph[Counts, None, Wait, str]:
    g = GraphBuilder(state_type=Counts, input_type=Wait, output_type=str)
    g.add(g.edge_from(g.start_node).to(Wait), g.node(Wait))
    return g.build()


@case(
    'mixed', 'BaseNode', 'typed decision', 'union', 'map', state=Counts, inputs=[4, 0], normalise=in_any_order
)
def decision_on_node() -> Graph[Counts, None, list[int], list[int]]:
    """A decision of which one branch is a node and the other is a step."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=list[int])
    joined = g.join(reduce_list_append, initial_factory=list[int], node_id='joined')

    @dataclass
    class Number(BaseNode[Counts, None, list[int]]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[JoinNode[Counts, None], joined]:
            await pause()
            ctx.state.add('numbers')
            return joined.as_node(self.number)

    @g.step
    async def look(ctx: StepContext[Counts, None, int]) -> 'Number | str':
        ctx.state.add('looked')
        await pause()
        return Number(ctx.inputs) if ctx.inputs else 'nothing'

    @g.step
    async def text(ctx: StepContext[Counts, None, str]) -> int:
        await pause()
        return len(ctx.inputs)

    what = g.decision().branch(g.match_node(Number)).branch(g.match(str).to(text))
    g.add(
        g.edge_from(g.start_node).map().to(look),
        g.edge_from(look).to(what),
        g.node(Number),
        g.edge_from(text).to(joined),
        g.edge_from(joined).to(g.end_node),
    )
    return g.build()


@dataclass
class Left(BaseNode[Counts, None, str]):
    """One way."""

    text: str

    async def run(self, ctx: GraphRunContext[Counts, None]) -> 'Right | End[str]':
        ctx.state.add('left')
        await pause()
        return End(self.text) if len(self.text) > 3 else Right(self.text + 'L')


@dataclass
class Right(BaseNode[Counts, None, str]):
    """The other way."""

    text: str | None = None

    async def run(self, ctx: GraphRunContext[Counts, None]) -> Left:
        await pause()
        ctx.state.add('right')
        return Left((self.text or '') + 'R')


@case('mixed', 'BaseNode', 'union', 'optional', 'loop', state=Counts, inputs=True)
def step_to_either_node() -> Graph[Counts, None, bool, str]:
    g = GraphBuilder(state_type=Counts, input_type=bool, output_type=str)

    @g.step
    async def turn(ctx: StepContext[Counts, None, bool]) -> Left | Right | str:
        ctx.state.add('turned')
        await pause()
        return Right() if ctx.inputs else Left('')

    way = (
        g.decision()
        .branch(g.match_node(Left))
        .branch(g.match_node(Right))
        .branch(g.match(str).to(g.end_node))
    )
    g.add(
        g.edge_from(g.start_node).to(turn),
        g.edge_from(turn).to(way),
        g.node(Left),
        g.node(Right),
    )
    return g.build()


@case('mixed', 'several ends', 'race to the end', 'map', state=Counts, inputs=[0, 1, 0])
def node_that_ends_the_run_within_a_map() -> Graph[Counts, None, list[int], str]:
    """The others change the state, and are still there when a node ends the run."""
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=str)
    total = g.join(reduce_sum, initial=0, node_id='total')

    @g.step
    async def summed(ctx: StepContext[Counts, None, int]) -> str:
        return str(ctx.inputs)

    @dataclass
    class Item(BaseNode[Counts, None, str]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> End[str]:
            while ctx.state.of('others') < 2:
                await pause()
            return End('over')

    @dataclass
    class Other(BaseNode[Counts, None, str]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[JoinNode[Counts, None], total]:
            ctx.state.add('others')
            await anyio.sleep_forever()
            return total.as_node(self.number)

    @g.step
    async def item(ctx: StepContext[Counts, None, int]) -> Item | Other | int:
        await pause()
        return Item(ctx.inputs) if ctx.inputs else Other(ctx.inputs)

    which = g.decision().branch(g.match_node(Item)).branch(g.match_node(Other)).branch(g.match(int).to(total))

    g.add(
        g.edge_from(g.start_node).map().to(item),
        g.edge_from(item).to(which),
        g.node(Item),
        g.node(Other),
        g.edge_from(total).to(summed),
        g.edge_from(summed).to(g.end_node),
    )
    return g.build()


@case('mixed', 'JoinNode', 'first value', 'broadcast', 'nested map', state=Counts, inputs=2)
def node_to_step_that_is_mapped() -> Graph[Counts, None, int, int]:
    """From node to step to map to node to join, which stops the rest."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)
    first = g.join(ReduceFirstValue[int](), initial=0, node_id='first')

    @dataclass
    class Try(BaseNode[Counts, None, int]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[JoinNode[Counts, None], first]:
            await pause()
            if self.number != 2:
                await anyio.sleep_forever()
            ctx.state.add('tried')
            return first.as_node(self.number)

    @g.step
    async def spread(ctx: StepContext[Counts, None, int]) -> list[Try]:
        ctx.state.add('spread')
        await pause()
        return [Try(number) for number in range(ctx.inputs + 2)]

    @dataclass
    class Begin(BaseNode[Counts, None, int]):
        number: int

        async def run(self, ctx: GraphRunContext[Counts, None]) -> Annotated[StepNode[Counts, None], spread]:
            await pause()
            ctx.state.add('begun')
            return spread.as_node(self.number)

    @g.step
    async def start(ctx: StepContext[Counts, None, int]) -> Begin:
        return Begin(ctx.inputs)

    @g.step
    async def finish(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('finished')
        await pause()
        return 10 * ctx.inputs

    g.add(
        g.edge_from(g.start_node).to(start),
        g.node(Begin),
        g.edge_from(spread).map().to(Try),
        g.node(Try),
        g.edge_from(first).to(finish),
        g.edge_from(finish).to(g.end_node),
    )
    return g.build()
