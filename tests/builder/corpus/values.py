"""The kinds of values that go from step to step, and what changes and transforms them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic_graph import GraphBuilder, StepContext, reduce_sum
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause


@dataclass
class Order:
    """A value with others inside."""

    number: int
    lines: list[tuple[str, int]]
    paid: bool = False


@dataclass
class Receipt:
    """What comes of an order."""

    order: Order
    total: int


@case('dataclass', 'list', 'tuple', inputs=Order(7, [('nut', 2), ('bolt', 3)]))
def dataclass_values() -> Graph[None, None, Order, Receipt]:
    g = GraphBuilder(input_type=Order, output_type=Receipt)

    @g.step
    async def pay(ctx: StepContext[None, None, Order]) -> Order:
        await pause()
        return Order(ctx.inputs.number, ctx.inputs.lines, paid=True)

    @g.step
    async def sum_up(ctx: StepContext[None, None, Order]) -> Receipt:
        return Receipt(ctx.inputs, sum(n for _, n in ctx.inputs.lines))

    g.add(
        g.edge_from(g.start_node).to(pay),
        g.edge_from(pay).to(sum_up),
        g.edge_from(sum_up).to(g.end_node),
    )
    return g.build()


@case('changes inputs', 'dataclass', state=Counts, inputs=Order(1, [('nut', 2)]))
def inputs_that_steps_change() -> Graph[Counts, None, Order, Order]:
    """Each step appends to what it was given, so one that is given twice what it changed shows."""
    g = GraphBuilder(state_type=Counts, input_type=Order, output_type=Order)

    @g.step
    async def early(ctx: StepContext[Counts, None, Order]) -> Order:
        ctx.inputs.lines.append(('early', len(ctx.inputs.lines)))
        await pause()
        return ctx.inputs

    @g.step
    async def late(ctx: StepContext[Counts, None, Order]) -> Order:
        await pause()
        ctx.inputs.lines.append(('late', len(ctx.inputs.lines)))
        ctx.state.add('lines', len(ctx.inputs.lines))
        return ctx.inputs

    @g.step
    async def other(ctx: StepContext[Counts, None, Order]) -> Order:
        lines = list(ctx.inputs.lines)
        ctx.inputs.lines.clear()
        await pause()
        return Order(len(lines), lines, paid=True)

    g.add(
        g.edge_from(g.start_node).to(early),
        g.edge_from(early).to(late),
        g.edge_from(late).to(other),
        g.edge_from(other).to(g.end_node),
    )
    return g.build()


class Colour(Enum):
    """An enum."""

    RED = 'red'
    GREEN = 'green'


class Card(BaseModel, ser_json_bytes='base64', val_json_bytes='base64'):
    """A pydantic model."""

    colour: Colour
    due: datetime
    data: bytes
    tags: set[str]
    span: timedelta = timedelta(days=1)


@case('pydantic model', 'enum', 'datetime', 'bytes', inputs=Colour.RED)
def model_values() -> Graph[None, None, Colour, Card]:
    g = GraphBuilder(input_type=Colour, output_type=Card)

    @g.step
    async def make(ctx: StepContext[None, None, Colour]) -> Card:
        await pause()
        return Card(
            colour=ctx.inputs, due=datetime(2024, 2, 29, tzinfo=UTC), data=b'\x00\xff', tags={'a', 'b'}
        )

    @g.step
    async def postpone(ctx: StepContext[None, None, Card]) -> Card:
        return ctx.inputs.model_copy(update={'due': ctx.inputs.due + ctx.inputs.span, 'colour': Colour.GREEN})

    g.add(
        g.edge_from(g.start_node).to(make),
        g.edge_from(make).to(postpone),
        g.edge_from(postpone).to(g.end_node),
    )
    return g.build()


@case('enum', 'datetime', 'bytes', 'tuple', inputs=b'\x00\x80')
def library_values() -> Graph[None, None, bytes, tuple[bytes, datetime, Colour, date]]:
    g = GraphBuilder(input_type=bytes, output_type=tuple[bytes, datetime, Colour, date])

    @g.step
    async def dated(ctx: StepContext[None, None, bytes]) -> tuple[bytes, datetime]:
        await pause()
        return ctx.inputs[::-1], datetime(1999, 12, 31, 23, 59, 59, 999_999, UTC)

    @g.step
    async def coloured(ctx: StepContext[None, None, tuple[bytes, datetime]]) -> dict[Colour, datetime]:
        return {
            Colour.RED: ctx.inputs[1],
            Colour.GREEN: ctx.inputs[1] + timedelta(seconds=len(ctx.inputs[0])),
        }

    @g.step
    async def latest(
        ctx: StepContext[None, None, dict[Colour, datetime]],
    ) -> tuple[bytes, datetime, Colour, date]:
        colour, when = max(ctx.inputs.items(), key=lambda item: item[1])
        return colour.value.encode(), when, colour, when.date()

    g.add(
        g.edge_from(g.start_node).to(dated),
        g.edge_from(dated).to(coloured),
        g.edge_from(coloured).to(latest),
        g.edge_from(latest).to(g.end_node),
    )
    return g.build()


@case('optional', 'None', 'map', 'join', inputs=[3, 0, 4])
def optional_values() -> Graph[None, None, list[int], int]:
    g = GraphBuilder(input_type=list[int], output_type=int)

    @g.step
    async def none_of_zero(ctx: StepContext[None, None, int]) -> int | None:
        await pause()
        return ctx.inputs or None

    @g.step
    async def worth(ctx: StepContext[None, None, int | None]) -> int:
        await pause()
        return 100 if ctx.inputs is None else ctx.inputs

    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).map().to(none_of_zero),
        g.edge_from(none_of_zero).to(worth),
        g.edge_from(worth).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('transform', 'label', 'deps', state=Counts, inputs=3, deps=lambda: 100)
def transforms_and_labels() -> Graph[Counts, int, int, Order]:
    """The last transform makes a value of a type that the transform and the output name."""
    g = GraphBuilder(state_type=Counts, deps_type=int, input_type=int, output_type=Order)

    def plus_deps(ctx: StepContext[Counts, int, int]) -> int:
        return ctx.inputs + ctx.deps

    def plus_counted(ctx: StepContext[Counts, int, int]) -> int:
        return ctx.inputs + ctx.state.of('first')

    def ordered(ctx: StepContext[Counts, int, int]) -> Order:
        return Order(ctx.inputs, [('counted', ctx.state.of('second'))])

    @g.step(node_id='first-step', label='the first')
    async def first(ctx: StepContext[Counts, int, int]) -> int:
        ctx.state.add('first', ctx.inputs)
        await pause()
        return ctx.inputs

    @g.step
    async def second(ctx: StepContext[Counts, int, int]) -> int:
        await pause()
        ctx.state.add('second', ctx.inputs)
        return ctx.inputs

    g.add(
        g.edge_from(g.start_node).label('in').transform(plus_deps).label('raised').to(first),
        g.edge_from(first).transform(plus_counted).transform(plus_deps).to(second),
        g.edge_from(second).label('out').transform(ordered).to(g.end_node),
    )
    return g.build()


@case('types', 'dataclass', inputs=3, types=(Order,))
def values_that_only_types_name() -> Graph[None, None, int, int]:
    g = GraphBuilder(input_type=int, output_type=int)

    @g.step
    async def made(ctx: StepContext[None, None, int]) -> Any:
        return Order(ctx.inputs, [('nut', 1)])

    @g.step
    async def read(ctx: StepContext[None, None, Any]) -> int:
        await pause()
        assert isinstance(ctx.inputs, Order)
        return ctx.inputs.number + len(ctx.inputs.lines)

    g.add(
        g.edge_from(g.start_node).to(made),
        g.edge_from(made).to(read),
        g.edge_from(read).to(g.end_node),
    )
    return g.build()
