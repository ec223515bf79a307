"""The orders that the stories are about: made up, always the same ones, and some of them wrong."""

from __future__ import annotations

import random
from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Final

__all__ = ('PRICES', 'Order', 'days_of', 'entered_twice', 'exported', 'too_dear', 'worth')

PRICES: Final = {
    'tea': Decimal('7.90'),
    'coffee': Decimal('12.50'),
    'cups': Decimal('24.00'),
    'kettle': Decimal('59.00'),
}
"""What the products cost."""

_ORDERS: Final = 360


@dataclass
class Order:
    """One order."""

    number: int
    day: date
    product: str
    quantity: int
    price: Decimal


def exported(month: date, *, shop: int = 0) -> list[Order]:
    """Return a shop's orders as its system has them: some entered twice, some priced in cents."""
    seed = 12 * (month.year - 2026) + month.month + 1000 * shop
    dice = random.Random(seed)  # noqa: S311 - made-up data, always the same
    orders: list[Order] = []
    for number in range(1, _ORDERS + 1):
        product = dice.choice(list(PRICES))
        day = month.replace(day=dice.randrange(days_of(month)) + 1)
        orders.append(Order(number, day, product, dice.randint(1, 4), PRICES[product]))
    for number in (17, 170):
        orders[number - 1].price *= 100
    return [*orders, *map(replace, (orders[41], orders[230]))]


def entered_twice(orders: Sequence[Order]) -> list[int]:
    """Return the numbers of the orders that are there more than once."""
    numbers = [order.number for order in orders]
    return sorted({number for number in numbers if numbers.count(number) > 1})


def too_dear(orders: Sequence[Order]) -> list[int]:
    """Return the numbers of the orders that have their price in cents."""
    return [order.number for order in orders if order.price > 10 * PRICES[order.product]]


def worth(order: Order) -> Decimal:
    """Return what an order is worth."""
    return order.quantity * order.price


def days_of(month: date) -> int:
    """Return how many days a month has."""
    return monthrange(month.year, month.month)[1]
