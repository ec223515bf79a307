"""LangGraph with its `AsyncSqliteSaver`, on the same linear graph: two nodes that take turns and count.

Its saver stores the whole state each step, whatever the nodes return, so what is compared is the same. It
waits for the disk twice a step (`synchronous=FULL`, as SQLite comes), unless told otherwise.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from operator import add
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, TypedDict

# nothing here is to be reported to anybody
os.environ.update(LANGSMITH_TRACING='false', LANGSMITH_TRACING_V2='false')

import aiosqlite
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph  # pyright: ignore[reportMissingTypeStubs]
from langgraph.types import Command, Send

__all__ = ('FanoutState', 'LinearState', 'fanned_out', 'linear_runner')


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


class FanoutState(TypedDict):
    """What a run that fans out has: how many tasks there are to be, and what they came to."""

    count: int
    results: Annotated[list[int], add]


class FanoutTask(TypedDict):
    """What one task gets."""

    item: int


def fanout_graph(saver: Any) -> Any:
    """Compile the graph that sends each number below `count` to a task that doubles it."""

    async def fan(state: FanoutState) -> list[Send]:
        return [Send('double', {'item': item}) for item in range(state['count'])]

    async def double(state: FanoutTask) -> dict[str, list[int]]:
        return {'results': [state['item'] * 2]}

    builder: Any = StateGraph(FanoutState)
    builder.add_node('double', double, input_schema=FanoutTask)
    builder.add_conditional_edges(START, fan, ['double'])
    builder.add_edge('double', END)
    return builder.compile(checkpointer=saver)


def fanned_out(tasks: int) -> Callable[[Path | None], Awaitable[float]]:
    """Return what runs the fan-out once, saved in a file or not at all, and tells how long it took (s)."""

    async def run(saver: Any) -> float:
        graph = fanout_graph(saver)
        start: FanoutState = {'count': tasks, 'results': []}
        options: dict[str, Any] = {'durability': 'sync'} if saver else {}
        begun = perf_counter()
        state = await graph.ainvoke(start, {'configurable': {'thread_id': 'run'}}, **options)
        took = perf_counter() - begun
        assert len(state['results']) == tasks
        return took

    async def timed(path: Path | None) -> float:
        if path is None:
            return await run(None)
        async with aiosqlite.connect(path) as connection:
            saver = AsyncSqliteSaver(connection)
            await saver.setup()
            return await run(saver)

    return timed
