"""A small shop's monthly report, as a graph: read the orders, check and correct them, add up, predict, write.

The orders are made up, for a month always the same ones; the work on them is real. Each node does its work in
pieces and says so in between, so that somebody can watch, and interrupt it in the middle.
"""

from __future__ import annotations

import random
from calendar import monthrange
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from statistics import quantiles
from typing import Final, Protocol

from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph

__all__ = ('Order', 'PredictSales', 'Progress', 'ReadOrders', 'Report', 'report_graph', 'unwatched')

_PRICES: Final = {
    'tea': Decimal('7.90'),
    'coffee': Decimal('12.50'),
    'cups': Decimal('24.00'),
    'kettle': Decimal('59.00'),
}
_ORDERS: Final = 360
_BATCHES: Final = 20
_MONTHS_A_BATCH: Final = 100


class Progress(Protocol):
    """What the nodes tell how far they are; awaited, so that it may take its time."""

    async def __call__(self, done: int, total: int) -> None:
        """Take note that `done` of `total` pieces of the running node's work are done."""
        ...


async def unwatched(done: int, total: int) -> None:
    """Take no note."""


@dataclass
class Order:
    """One order."""

    number: int
    day: date
    product: str
    quantity: int
    price: Decimal


@dataclass
class Report:
    """The state of the graph."""

    month: date = date(2026, 4, 1)
    orders: list[Order] = field(default_factory=lambda: list[Order]())
    corrected: int = 0
    sales: dict[str, Decimal] = field(default_factory=lambda: dict[str, Decimal]())
    likely: tuple[Decimal, Decimal] | None = None


Context = GraphRunContext[Report, Progress]


@dataclass
class ReadOrders(BaseNode[Report, Progress, str]):
    """Read the month's orders."""

    async def run(self, ctx: Context) -> CheckOrders:
        """Read them in six batches."""
        size = _ORDERS // 6
        lines = _exported(ctx.state.month)
        for piece in range(6):
            await ctx.deps(piece, 6)
            ctx.state.orders += lines[piece * size : (piece + 1) * size if piece < 5 else None]
        return CheckOrders()


@dataclass
class CheckOrders(BaseNode[Report, Progress, str]):
    """Look for orders that cannot be right."""

    async def run(self, ctx: Context) -> CorrectOrders | AddUpSales:
        """Look for what was entered twice, and for prices in cents."""
        await ctx.deps(0, 3)
        numbers = [order.number for order in ctx.state.orders]
        twice = sorted({n for n in numbers if numbers.count(n) > 1})
        await ctx.deps(1, 3)
        too_dear = [order.number for order in ctx.state.orders if order.price > 10 * _PRICES[order.product]]
        await ctx.deps(2, 3)
        return CorrectOrders(twice, too_dear) if twice or too_dear else AddUpSales()


@dataclass
class CorrectOrders(BaseNode[Report, Progress, str]):
    """Put right what the check has found, and check again."""

    twice: list[int]
    too_dear: list[int]

    async def run(self, ctx: Context) -> CheckOrders:
        """Drop the second entry, and turn cents into euros."""
        await ctx.deps(0, 3)
        ctx.state.orders = list({order.number: order for order in ctx.state.orders}.values())
        await ctx.deps(1, 3)
        for order in ctx.state.orders:
            if order.number in self.too_dear:
                order.price /= 100
        await ctx.deps(2, 3)
        ctx.state.corrected += len({*self.twice, *self.too_dear})
        return CheckOrders()


@dataclass
class AddUpSales(BaseNode[Report, Progress, str]):
    """Add up the sales of each product."""

    async def run(self, ctx: Context) -> PredictSales:
        """Add up product by product."""
        for done, product in enumerate(_PRICES):
            await ctx.deps(done, len(_PRICES))
            ctx.state.sales[product] = sum(
                (_worth(o) for o in ctx.state.orders if o.product == product), Decimal()
            )
        return PredictSales()


@dataclass
class PredictSales(BaseNode[Report, Progress, str]):
    """Predict next month's sales; the longest step."""

    async def run(self, ctx: Context) -> WriteReport:
        """Put together thousands of possible months from the days of this one."""
        days = [Decimal()] * _days(ctx.state.month)
        for order in ctx.state.orders:
            days[order.day.day - 1] += _worth(order)
        months: list[Decimal] = []
        for batch in range(_BATCHES):
            await ctx.deps(batch, _BATCHES)
            dice = random.Random(batch)  # noqa: S311 - the same dice each time, for the same result each time
            months += [sum(dice.choices(days, k=len(days)), Decimal()) for _ in range(_MONTHS_A_BATCH)]
        tenths = quantiles(months, n=10)
        ctx.state.likely = round(tenths[0], -1), round(tenths[-1], -1)
        return WriteReport()


@dataclass
class WriteReport(BaseNode[Report, Progress, str]):
    """Write the report."""

    async def run(self, ctx: Context) -> End[str]:
        """Write it as a few lines of text."""
        await ctx.deps(0, 2)
        state = ctx.state
        low, high = state.likely or (Decimal(), Decimal())
        lines = [
            f'{state.month:%B %Y}: {len(state.orders)} orders, {state.corrected} corrected',
            *(f'{product:<8}{amount:>11,.2f} EUR' for product, amount in state.sales.items()),
            f'{"total":<8}{sum(state.sales.values(), Decimal()):>11,.2f} EUR',
            f'next month likely between {low:,.0f} and {high:,.0f} EUR',
        ]
        await ctx.deps(1, 2)
        return End('\n'.join(lines))


report_graph = Graph(
    nodes=(ReadOrders, CheckOrders, CorrectOrders, AddUpSales, PredictSales, WriteReport),
    name='report_graph',
    auto_instrument=False,
)
"""The graph; its result is the report's text."""


def _worth(order: Order) -> Decimal:
    return order.quantity * order.price


def _days(month: date) -> int:
    return monthrange(month.year, month.month)[1]


def _exported(month: date) -> list[Order]:
    """Return the orders as the shop's system has them: some entered twice, some priced in cents."""
    dice = random.Random(12 * (month.year - 2026) + month.month)  # noqa: S311 - made-up data, always the same
    orders: list[Order] = []
    for number in range(1, _ORDERS + 1):
        product = dice.choice(list(_PRICES))
        day = month.replace(day=dice.randrange(_days(month)) + 1)
        orders.append(Order(number, day, product, dice.randint(1, 4), _PRICES[product]))
    for number in (17, 170):
        orders[number - 1].price *= 100
    return [
        *orders,
        *(Order(o.number, o.day, o.product, o.quantity, o.price) for o in (orders[41], orders[230])),
    ]
