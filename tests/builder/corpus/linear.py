"""Steps one after another, decisions, transforms and labels; and the kinds of values that go between them."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Any, Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict
from pydantic_graph import GraphBuilder, StepContext, TypeExpression, reduce_sum
from pydantic_graph.graph_builder import Graph

from .cases import Counts, case, pause


@case('step', 'no await', state=Counts, inputs=3)
def one_step() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def double(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('doubled')
        return 2 * ctx.inputs

    g.add(g.edge_from(g.start_node).to(double), g.edge_from(double).to(g.end_node))
    return g.build()


@case('step', 'changes before an await', 'changes between awaits', 'changes after an await', state=Counts)
def chain_of_steps() -> Graph[Counts, None, None, int]:
    g = GraphBuilder(state_type=Counts, output_type=int)

    @g.step
    async def before(ctx: StepContext[Counts, None, None]) -> int:
        ctx.state.add('before')
        await pause()
        return 1

    @g.step
    async def between(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('between', ctx.inputs)
        await pause()
        return ctx.inputs + ctx.state.of('before')

    @g.step
    async def after(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('after', ctx.inputs)
        return ctx.inputs + ctx.state.of('between')

    @g.step
    async def throughout(ctx: StepContext[Counts, None, int]) -> int:
        for _ in range(3):
            ctx.state.add('throughout', ctx.inputs)
            await pause()
        return ctx.state.of('throughout')

    g.add(
        g.edge_from(g.start_node).to(before),
        g.edge_from(before).to(between),
        g.edge_from(between).to(after),
        g.edge_from(after).to(throughout),
        g.edge_from(throughout).to(g.end_node),
    )
    return g.build()


@case('step', 'stateless', inputs='graph')
def stateless_steps() -> Graph[None, None, str, list[str]]:
    g = GraphBuilder(input_type=str, output_type=list[str])

    @g.step
    async def split(ctx: StepContext[None, None, str]) -> list[str]:
        await pause()
        return list(ctx.inputs)

    @g.step
    async def turn(ctx: StepContext[None, None, list[str]]) -> list[str]:
        return ctx.inputs[::-1]

    g.add(
        g.edge_from(g.start_node).to(split),
        g.edge_from(split).to(turn),
        g.edge_from(turn).to(g.end_node),
    )
    return g.build()


@case('None', 'step', state=Counts)
def nothing_from_anything() -> Graph[Counts, None, None, None]:
    g = GraphBuilder(state_type=Counts)

    @g.step
    async def first(ctx: StepContext[Counts, None, None]) -> None:
        await pause()
        ctx.state.add('first')

    @g.step
    async def second(ctx: StepContext[Counts, None, None]) -> None:
        ctx.state.add('second', ctx.state.of('first') + 1)
        await pause()

    g.add(
        g.edge_from(g.start_node).to(first),
        g.edge_from(first).to(second),
        g.edge_from(second).to(g.end_node),
    )
    return g.build()


@case('deps', state=Counts, inputs=5, deps=lambda: {'factor': 7})
def steps_with_deps() -> Graph[Counts, dict[str, int], int, int]:
    g = GraphBuilder(state_type=Counts, deps_type=dict[str, int], input_type=int, output_type=int)

    @g.step
    async def times(ctx: StepContext[Counts, dict[str, int], int]) -> int:
        await pause()
        ctx.state.add('times')
        return ctx.inputs * ctx.deps['factor']

    @g.step
    async def plus(ctx: StepContext[Counts, dict[str, int], int]) -> int:
        ctx.state.add('plus', ctx.deps['factor'])
        return ctx.inputs + ctx.deps['factor']

    g.add(
        g.edge_from(g.start_node).to(times),
        g.edge_from(times).to(plus),
        g.edge_from(plus).to(g.end_node),
    )
    return g.build()


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


class Card(BaseModel):
    """A pydantic model."""

    model_config = ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')

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


@case('typed decision', 'union', 'map', 'join', state=Counts, inputs=[1, 2, 3, 4])
def decision_on_type() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    @g.step
    async def text_of_even(ctx: StepContext[Counts, None, int]) -> int | str:
        await pause()
        return ctx.inputs if ctx.inputs % 2 else 'x' * ctx.inputs

    @g.step
    async def number(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('numbers')
        await pause()
        return ctx.inputs

    @g.step
    async def text(ctx: StepContext[Counts, None, str]) -> int:
        await pause()
        ctx.state.add('texts')
        return 10 * len(ctx.inputs)

    total = g.join(reduce_sum, initial=0, node_id='total')
    kind = g.decision(node_id='kind').branch(g.match(int).to(number)).branch(g.match(str).to(text))
    g.add(
        g.edge_from(g.start_node).map().to(text_of_even),
        g.edge_from(text_of_even).to(kind),
        g.edge_from(number, text).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('typed decision', 'dataclass', 'pydantic model', 'union', inputs=2)
def decision_on_class() -> Graph[None, None, int, str]:
    g = GraphBuilder(input_type=int, output_type=str)

    @g.step
    async def make(ctx: StepContext[None, None, int]) -> Order | Card:
        return Order(ctx.inputs, [])

    @g.step
    async def ordered(ctx: StepContext[None, None, Order]) -> str:
        await pause()
        return f'order {ctx.inputs.number}'

    @g.step
    async def carded(ctx: StepContext[None, None, Card]) -> str:
        return f'card {ctx.inputs.colour}'

    what = g.decision(note='what is it?').branch(g.match(Card).to(carded)).branch(g.match(Order).to(ordered))
    g.add(
        g.edge_from(g.start_node).to(make),
        g.edge_from(make).to(what),
        g.edge_from(ordered, carded).to(g.end_node),
    )
    return g.build()


@case('literal decision', 'several ends', state=Counts, inputs=12)
def decision_on_literal() -> Graph[Counts, None, int, str]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=str)

    @g.step
    async def size(ctx: StepContext[Counts, None, int]) -> Literal['small', 'large']:
        ctx.state.add('sized')
        await pause()
        return 'large' if ctx.inputs > 10 else 'small'

    @g.step
    async def small(ctx: StepContext[Counts, None, object]) -> str:
        return 'it is small'

    @g.step
    async def large(ctx: StepContext[Counts, None, object]) -> str:
        await pause()
        ctx.state.add('large')
        return 'it is large'

    sized = (
        g.decision(node_id='sized')
        .branch(g.match(TypeExpression[Literal['small']]).label('small').to(small))
        .branch(g.match(TypeExpression[Literal['large']]).label('large').to(large))
    )
    g.add(
        g.edge_from(g.start_node).to(size),
        g.edge_from(size).to(sized),
        g.edge_from(small).to(g.end_node),
        g.edge_from(large).to(g.end_node),
    )
    return g.build()


@case('custom match', 'transform', 'several ends', state=Counts, inputs=[2, 9])
def decision_by_function() -> Graph[Counts, None, list[int], int]:
    g = GraphBuilder(state_type=Counts, input_type=list[int], output_type=int)

    def is_long(value: Any) -> bool:
        return len(value) > 2

    def length(ctx: StepContext[Counts, None, list[int]]) -> int:
        return len(ctx.inputs)

    @g.step
    async def whole(ctx: StepContext[Counts, None, list[int]]) -> list[int]:
        await pause()
        ctx.state.add('whole')
        return ctx.inputs

    @g.step
    async def counted(ctx: StepContext[Counts, None, int]) -> int:
        ctx.state.add('counted', ctx.inputs)
        await pause()
        return ctx.inputs

    how = (
        g.decision(node_id='how')
        .branch(g.match(TypeExpression[list[int]], matches=is_long).transform(length).to(g.end_node))
        .branch(g.match(TypeExpression[list[int]], matches=lambda _: True).transform(length).to(counted))
    )
    g.add(
        g.edge_from(g.start_node).to(whole),
        g.edge_from(whole).to(how),
        g.edge_from(counted).to(g.end_node),
    )
    return g.build()


@case('custom match', 'typed decision', inputs=4)
def decision_after_decision() -> Graph[None, None, int, str]:
    g = GraphBuilder(input_type=int, output_type=str)

    @g.step
    async def step_to(ctx: StepContext[None, None, int]) -> int | str:
        await pause()
        return ctx.inputs + 1

    @g.step
    async def odd(ctx: StepContext[None, None, int]) -> str:
        await pause()
        return f'odd {ctx.inputs}'

    @g.step
    async def even(ctx: StepContext[None, None, int]) -> str:
        return f'even {ctx.inputs}'

    parity = (
        g.decision(node_id='parity')
        .branch(g.match(int, matches=lambda value: value % 2 == 0).to(even))
        .branch(g.match(int).to(odd))
    )
    kind = g.decision(node_id='kind').branch(g.match(str).to(g.end_node)).branch(g.match(int).to(parity))
    g.add(
        g.edge_from(g.start_node).to(step_to),
        g.edge_from(step_to).to(kind),
        g.edge_from(odd, even).to(g.end_node),
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


@case('awaitable', 'step', state=Counts, inputs=3)
def step_that_is_no_coroutine_function() -> Graph[Counts, None, int, int]:
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    async def slow(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('slow')
        return ctx.inputs + 1

    @g.step
    def later(ctx: StepContext[Counts, None, int]) -> Awaitable[int]:
        ctx.state.add('later')
        return slow(ctx)

    g.add(g.edge_from(g.start_node).to(later), g.edge_from(later).to(g.end_node))
    return g.build()


@dataclass
class Log:
    """What steps found, in the order of their number."""

    found: dict[int, str] = field(default_factory=dict[int, str])


@case('cancel scope', 'broadcast', 'join', state=Log, inputs=2)
def steps_with_cancel_scopes() -> Graph[Log, None, int, int]:
    """Steps that cancel and time out within, which is seen from outside as more slices and nothing else."""
    g = GraphBuilder(state_type=Log, input_type=int, output_type=int)

    @g.step
    async def cancelled(ctx: StepContext[Log, None, int]) -> int:
        ctx.state.found[1] = 'begun'
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep_forever()
        ctx.state.found[1] = 'cancelled within' if scope.cancelled_caught else 'not cancelled'
        await pause()
        return ctx.inputs

    @g.step
    async def timed_out(ctx: StepContext[Log, None, int]) -> int:
        try:
            with anyio.fail_after(0.001):
                await anyio.sleep_forever()
        except TimeoutError:
            ctx.state.found[2] = 'timed out within'
        await pause()
        return ctx.inputs

    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(cancelled, timed_out),
        g.edge_from(cancelled, timed_out).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()


@case('child task', 'thread', 'broadcast', 'join', state=Counts, inputs=2)
def steps_with_children_and_threads() -> Graph[Counts, None, int, int]:
    """The state is changed outside of the steps' own slices."""
    g = GraphBuilder(state_type=Counts, input_type=int, output_type=int)

    @g.step
    async def children(ctx: StepContext[Counts, None, int]) -> int:
        async def child(number: int) -> None:
            await pause()
            ctx.state.add('child', number)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(child, number)
        await pause()
        return ctx.inputs

    @g.step
    async def thread(ctx: StepContext[Counts, None, int]) -> int:
        await anyio.to_thread.run_sync(ctx.state.add, 'thread', 1)
        await pause()
        return ctx.inputs

    @g.step
    async def quick(ctx: StepContext[Counts, None, int]) -> int:
        await pause()
        ctx.state.add('quick')
        return ctx.inputs

    total = g.join(reduce_sum, initial=0, node_id='total')
    g.add(
        g.edge_from(g.start_node).to(children, thread, quick),
        g.edge_from(children, thread, quick).to(total),
        g.edge_from(total).to(g.end_node),
    )
    return g.build()
