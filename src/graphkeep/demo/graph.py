"""A small shop's monthly report, as a graph: read the orders, check and correct them, add up, predict, write.

The orders are made up, for a month always the same ones; the work on them is real. Each node does its work in
pieces and says so in between, so that somebody can watch, and interrupt it in the middle.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from statistics import quantiles
from typing import Final, Protocol

from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph

from .orders import PRICES, Order, days_of, entered_twice, exported, too_dear, worth

__all__ = ('PredictSales', 'Progress', 'ReadOrders', 'Report', 'report_graph', 'unwatched')

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
        lines = exported(ctx.state.month)
        size = len(lines) // 6
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
        twice = entered_twice(ctx.state.orders)
        await ctx.deps(1, 3)
        dear = too_dear(ctx.state.orders)
        await ctx.deps(2, 3)
        return CorrectOrders(twice, dear) if twice or dear else AddUpSales()


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
        for done, product in enumerate(PRICES):
            await ctx.deps(done, len(PRICES))
            ctx.state.sales[product] = sum(
                (worth(o) for o in ctx.state.orders if o.product == product), Decimal()
            )
        return PredictSales()


@dataclass
class PredictSales(BaseNode[Report, Progress, str]):
    """Predict next month's sales; the longest step."""

    async def run(self, ctx: Context) -> WriteReport:
        """Put together thousands of possible months from the days of this one."""
        days = [Decimal()] * days_of(ctx.state.month)
        for order in ctx.state.orders:
            days[order.day.day - 1] += worth(order)
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
