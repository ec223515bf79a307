"""Begins, goes on with or finishes a run: `program.py (ours|peer) (begin|step|finish|read) FILE LIMIT`.

With `ours` by graphkeep, on either host; with `peer` by pydantic-graph 1.x's own classes, without graphkeep.
LIMIT is a number in the state; `inf` is one that pydantic-graph 1.x cannot write.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from pydantic_graph import BaseNode, End, GraphRunContext


class Mood(Enum):
    """How somebody feels."""

    GOOD = 'good'
    BAD = 'bad'


@dataclass
class Request:
    """One kind of message."""

    text: str
    at: datetime
    kind: Literal['request'] = 'request'


@dataclass
class Response:
    """Another kind of message, with parts of its own."""

    parts: list[Request | str]
    cost: Decimal
    took: timedelta
    kind: Literal['response'] = 'response'


class Settings(BaseModel):
    """A model within the dataclasses."""

    model_config = ConfigDict(ser_json_inf_nan='constants')

    limit: float
    tags: set[str]
    raw: bytes


@dataclass
class Talk:
    """What was said so far, and everything that JSON has no word for."""

    messages: list[Request | Response] = field(default_factory=list[Request | Response])
    mood: Mood | None = None
    by_day: dict[date, int] = field(default_factory=dict[date, int])
    settings: Settings | None = None
    pair: tuple[int, str] | None = None
    number: UUID | None = None
    big: int = 0
    text: str = ''


LIMIT = float(sys.argv[4])


def whole(nodes: int) -> Talk:
    """Return what the state is after so many nodes."""
    east = timezone(timedelta(hours=5, minutes=30))
    question = Request('wie gehts, “Ada”? \u2028 😀 \0', datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC))
    answer = Response(
        ['gut', Request('', datetime(2026, 1, 2, tzinfo=east))],
        Decimal('1.10'),
        timedelta(days=1, microseconds=1),
    )
    return Talk(
        messages=[question, answer] * nodes,
        mood=Mood.GOOD,
        by_day={date(2026, 1, 2): nodes},
        settings=Settings(limit=LIMIT, tags={'a', 'b'}, raw='süß'.encode()),
        pair=(nodes, 'x'),
        number=UUID(int=nodes),
        big=10**30,
        text='\\ " / \x7f',
    )


def _go_on(state: Talk, node: int) -> None:
    """Check that the state arrived as it left, and change it."""
    if state != (whole(node - 1) if node > 1 else Talk()):
        raise SystemExit(f'the state before node {node} is {state}')
    state.__dict__.update(whole(node).__dict__)


@dataclass
class First(BaseNode[Talk, None, str]):
    """Says something."""

    async def run(self, ctx: GraphRunContext[Talk, None]) -> Middle:
        _go_on(ctx.state, 1)
        return Middle(Request('from first', datetime(2026, 1, 2, tzinfo=UTC)), float('1e300'))


@dataclass
class Middle(BaseNode[Talk, None, str]):
    """Says something too."""

    request: Request
    number: float

    async def run(self, ctx: GraphRunContext[Talk, None]) -> Last:
        _go_on(ctx.state, 2)
        if self != Middle(Request('from first', datetime(2026, 1, 2, tzinfo=UTC)), float('1e300')):
            raise SystemExit(f'the node is {self}')
        return Last(Mood.BAD)


@dataclass
class Last(BaseNode[Talk, None, str]):
    """Ends it."""

    mood: Mood

    async def run(self, ctx: GraphRunContext[Talk, None]) -> End[str]:
        _go_on(ctx.state, 3)
        return End(f'{ctx.state.pair and ctx.state.pair[0]} nodes, {self.mood}')


async def main(who: str, what: str, file: Path) -> None:
    """Do it, and print where the run is."""
    classes: Any
    if who == 'ours':
        import graphkeep as classes
    else:
        classes = SimpleNamespace(
            Graph=import_module('pydantic_graph.graph').Graph,
            FileStatePersistence=import_module('pydantic_graph.persistence.file').FileStatePersistence,
        )
    graph = classes.Graph(nodes=(First, Middle, Last), name='talk', state_type=Talk, run_end_type=str)
    persistence = classes.FileStatePersistence(file)
    persistence.set_graph_types(graph)
    if what == 'begin':
        await graph.initialize(First(), persistence, state=Talk())
    if what in ('begin', 'step'):
        async with graph.iter_from_persistence(persistence) as run:
            print('stopped at', type(await run.next()).__name__)
        return
    if what == 'finish':
        async with graph.iter_from_persistence(persistence) as run:
            async for _ in run:
                pass
    *_, end = await persistence.load_all()
    if end.state != whole(3):
        raise SystemExit(f'the state at the end is {end.state}')
    print('the state is whole, and the result is', end.result.data.removesuffix(', Mood.BAD'))


if __name__ == '__main__':
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
