"""The orders of twenty shops, as a builder graph: they are added up, all at once, and a report is written.

A map over the shops, a step for each, a join. The step reads its shop's orders, puts right what is wrong with
them, and adds them to the books, which are the state that all of the steps share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Final, Protocol

from pydantic_graph.graph_builder import GraphBuilder
from pydantic_graph.join import reduce_list_append
from pydantic_graph.step import StepContext

from graphkeep import PersistentGraph

from .orders import PRICES, entered_twice, exported, too_dear, worth

__all__ = (
    'ADD_UP',
    'CITIES',
    'COLLECT',
    'LIST_SHOPS',
    'MONTH',
    'WRITE_REPORT',
    'Books',
    'Watch',
    'shops_graph',
    'unwatched',
)

MONTH: Final = date(2026, 4, 1)
"""What the report is of."""
CITIES: Final = (
    *('Athens', 'Berlin', 'Cairo', 'Dublin', 'Essen', 'Fargo', 'Geneva', 'Hanoi', 'Izmir', 'Jakarta'),
    *('Kyoto', 'Lagos', 'Madrid', 'Nairobi', 'Oslo', 'Paris', 'Quito', 'Riga', 'Seoul', 'Turin'),
)
"""Where the shops are."""


class Watch(Protocol):
    """What the steps tell how far they are; awaited, so that it may take its time."""

    async def __call__(self, step: str, city: str, done: int, total: int) -> None:
        """Take note that a step, for the shop in `city` if any, has done `done` of `total` pieces."""
        ...


async def unwatched(step: str, city: str, done: int, total: int) -> None:
    """Take no note."""


@dataclass
class Shop:
    """One shop."""

    number: int
    city: str


@dataclass
class Books:
    """The state of the graph: what has been added up so far."""

    orders: int = 0
    corrected: int = 0
    shops: list[str] = field(default_factory=lambda: list[str]())
    sales: dict[str, Decimal] = field(default_factory=lambda: dict.fromkeys(PRICES, Decimal()))


@dataclass
class Total:
    """What one shop has sold."""

    city: str
    sum: Decimal


LIST_SHOPS: Final = 'list_shops'
"""The first step."""
ADD_UP: Final = 'add_up'
"""The step that each shop has."""
COLLECT: Final = 'collect'
"""The join."""
WRITE_REPORT: Final = 'write_report'
"""The last step."""

_builder: GraphBuilder[Books, Watch, date, str] = GraphBuilder(
    name='shops_graph',
    state_type=Books,
    deps_type=Watch,
    input_type=date,
    output_type=str,
    auto_instrument=False,
)


@_builder.step
async def list_shops(ctx: StepContext[Books, Watch, date]) -> list[Shop]:
    """List the shops."""
    await ctx.deps(LIST_SHOPS, '', 0, 1)
    return [Shop(number, city) for number, city in enumerate(CITIES)]


@_builder.step
async def add_up(ctx: StepContext[Books, Watch, Shop]) -> Total:
    """Read a shop's orders, put them right, and add them to the books; some shops take long."""
    shop = ctx.inputs
    orders = exported(MONTH, shop=shop.number)
    twice, dear = entered_twice(orders), too_dear(orders)
    sales = dict.fromkeys(PRICES, Decimal())
    orders = list({order.number: order for order in orders}.values())
    pieces = 5 + 7 * shop.number % 20
    for piece in range(pieces):
        await ctx.deps(ADD_UP, shop.city, piece, pieces)
        for order in orders[piece::pieces]:
            if order.number in dear:
                order.price /= 100
            sales[order.product] += worth(order)
    books = ctx.state
    books.orders += len(orders)
    books.corrected += len({*twice, *dear})
    books.shops.append(shop.city)
    for product, amount in sales.items():
        books.sales[product] += amount
    return Total(shop.city, sum(sales.values(), Decimal()))


@_builder.step
async def write_report(ctx: StepContext[Books, Watch, list[Total]]) -> str:
    """Write the report, from the books and from what each step has returned."""
    await ctx.deps(WRITE_REPORT, '', 0, 1)
    books, totals = ctx.state, sorted(ctx.inputs, key=lambda total: total.sum)
    everything = sum((total.sum for total in totals), Decimal())
    lines = [
        f'{MONTH:%B %Y}: {len(totals)} shops, {books.orders:,} orders, {books.corrected} corrected',
        *(f'{product:<8}{amount:>12,.2f} EUR' for product, amount in books.sales.items()),
        f'{"total":<8}{sum(books.sales.values(), Decimal()):>12,.2f} EUR in the books',
        f'{"":<8}{everything:>12,.2f} EUR as the shops have it',
        f'most sold in {totals[-1].city}, least in {totals[0].city}',
    ]
    return '\n'.join(lines)


_collect = _builder.join(reduce_list_append, initial_factory=list[Total], node_id=COLLECT)
_builder.add(
    _builder.edge_from(_builder.start_node).to(list_shops),
    _builder.edge_from(list_shops).map().to(add_up),
    _builder.edge_from(add_up).to(_collect),
    _builder.edge_from(_collect).to(write_report),
    _builder.edge_from(write_report).to(_builder.end_node),
)
shops_graph = PersistentGraph(_builder.build())
"""The graph; its input is the month, its result the report's text."""
