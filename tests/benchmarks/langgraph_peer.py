"""LangGraph with its `AsyncSqliteSaver`, on the same linear graph: two nodes that take turns and count.

Its saver stores the whole state each step, whatever the nodes return, so what is compared is the same. It
waits for the disk twice a step (`synchronous=FULL`, as SQLite comes), unless told otherwise.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

# nothing here is to be reported to anybody
os.environ.update(LANGSMITH_TRACING='false', LANGSMITH_TRACING_V2='false')

import aiosqlite
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph  # pyright: ignore[reportMissingTypeStubs]
from langgraph.types import Command

__all__ = ('LinearState', 'linear_runner')


class LinearState(TypedDict):
    """What the run has: a number and a text."""

    number: int
    text: str


def linear_graph(steps: int, saver: Any) -> Any:
    """Compile the graph that counts up to `steps`; nodes route with `Command`, the cheapest way."""

    async def count(state: LinearState) -> Command[Any]:
        number = state['number'] + 1
        goto = END if number >= steps else ('odd' if number % 2 else 'even')
        return Command(update={'number': number}, goto=goto)

    builder: Any = StateGraph(LinearState)
    builder.add_node('even', count, destinations=('odd', END))
    builder.add_node('odd', count, destinations=('even', END))
    builder.add_edge(START, 'even')
    return builder.compile(checkpointer=saver)


@asynccontextmanager
async def _prepared(
    path: Path, steps: int, size: int, synchronous: Literal['NORMAL', 'FULL']
) -> AsyncGenerator[Any]:
    async with aiosqlite.connect(path) as connection:
        saver = AsyncSqliteSaver(connection)
        await saver.setup()
        await connection.execute(f'PRAGMA synchronous = {synchronous}')
        graph = linear_graph(steps, saver)
        start: LinearState = {'number': 0, 'text': 'x' * size}
        config = {'recursion_limit': steps + 1, 'configurable': {'thread_id': 'run'}}

        async def run() -> int:
            return (await graph.ainvoke(start, config, durability='sync'))['number']

        yield run


@contextmanager
def linear_runner(
    path: Path, steps: int, size: int, synchronous: Literal['NORMAL', 'FULL']
) -> Generator[Any]:
    """Give a function that runs the graph once, on a database that does not exist yet."""
    with asyncio.Runner() as runner:
        prepared: AbstractAsyncContextManager[Any] = _prepared(path, steps, size, synchronous)
        run = runner.run(_entered(prepared))
        try:
            yield lambda: runner.run(run())
        finally:
            runner.run(_left(prepared))


async def _entered(prepared: AbstractAsyncContextManager[Any]) -> Any:
    return await prepared.__aenter__()


async def _left(prepared: AbstractAsyncContextManager[Any]) -> None:
    await prepared.__aexit__(None, None, None)
