"""Start a run, or go on with it, or return what it returned: the call that a service makes on every start."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
)
from typing import TYPE_CHECKING, Any, Literal, overload

from typing_extensions import TypeVar

from . import naming
from ._host import BaseNode, End, GraphRuntimeError, RunEndT, StateT
from .errors import GraphkeepError, RunFinishedError, SnapshotStatusError
from .graph import Graph, GraphRun, GraphRunResult
from .leaving import Leaving
from .naming import skip_context_manager
from .persistence import StatePersistence
from .snapshots import EndSnapshot
from .unset import UNSET

if TYPE_CHECKING:
    from .builder import PersistentGraph

__all__ = ('iter_or_resume', 'run_or_resume')

InputT = TypeVar('InputT', default=Any)
OutputT = TypeVar('OutputT', default=Any)


@overload
async def run_or_resume(
    graph: Graph[StateT, Any, RunEndT],
    start_node: BaseNode[StateT, Any, RunEndT] | None = None,
    *,
    state: StateT | None = None,
    deps: Any = None,
    persistence: StatePersistence[StateT, RunEndT],
    on_finished: Literal['return', 'raise'] = 'return',
    infer_name: bool = True,
) -> GraphRunResult[StateT, RunEndT]: ...


@overload
async def run_or_resume(
    graph: PersistentGraph[StateT, Any, InputT, OutputT],
    *,
    state: StateT | None = None,
    inputs: InputT | None = ...,
    deps: Any = None,
    persistence: StatePersistence[Any, Any],
    on_finished: Literal['return', 'raise'] = 'return',
    infer_name: bool = True,
) -> OutputT: ...


async def run_or_resume(
    graph: Graph[Any, Any, Any] | PersistentGraph[Any, Any, Any, Any],
    start_node: BaseNode[Any, Any, Any] | None = None,
    *,
    state: Any = UNSET,
    inputs: Any = UNSET,
    deps: Any = None,
    persistence: StatePersistence[Any, Any],
    on_finished: Literal['return', 'raise'] = 'return',
    infer_name: bool = True,
) -> Any:
    """Run a graph to its end, from wherever the run is.

    A run of which nothing is stored is started; of several processes that start it, one does. An unfinished
    run goes on, with what a gone owner had in hand recovered. Of a finished run the recorded result is
    returned.

    Args:
        graph: The graph; a builder graph as `PersistentGraph(graph)`.
        start_node: The first node of a new run; without it only a stored run goes on. A builder graph has its
            own; with it a run is new if there are `state` or `inputs` for it.
        state: The state of a new run; a stored run has its own.
        inputs: What the first step of a new run of a builder graph gets; a stored run has its own.
        deps: The dependencies of the graph's nodes; never stored.
        persistence: The run.
        on_finished: Whether to return the recorded result of a finished run or to raise `RunFinishedError`.
        infer_name: Whether to name a nameless graph after the caller's variable.

    Returns:
        The result; of a builder graph its output.

    Raises:
        UnknownRunError: if nothing is stored of the run and there is no `start_node`; for a builder graph, no
            `state` and no `inputs` either, though it takes one of them.
        RunFinishedError: if the run has finished and a new one was asked for with `on_finished='raise'`.
        RunFailedError: if the run stopped at a node that raised; `await persistence.retry()` gives it another
            attempt.
        RunOwnedError: if another living owner has the run.
    """
    if not isinstance(graph, Graph):
        _check_builder_graph(graph, start_node)
        if infer_name:
            graph._infer_name(inspect.currentframe())
        async with iter_or_resume(
            graph,
            state=state,
            inputs=inputs,
            deps=deps,
            persistence=persistence,
            on_finished=on_finished,
            infer_name=False,
        ) as run:
            async for _ in run:
                pass
            return run.output
    if infer_name:
        naming.infer_name(graph, inspect.currentframe())
    while True:
        async with iter_or_resume(
            graph,
            start_node,
            state=state,
            deps=deps,
            persistence=persistence,
            on_finished=on_finished,
            infer_name=False,
        ) as run:
            try:
                async for _ in run:
                    pass
            except SnapshotStatusError as exc:
                if exc.run_id != persistence.run_id:
                    raise
                # between two steps the run is free, and somebody else went on with it: see where it is now
                continue
        if (result := run.result) is None:
            raise GraphRuntimeError('The run was left before its end.')
        return result


@overload
def iter_or_resume(
    graph: Graph[StateT, Any, RunEndT],
    start_node: BaseNode[StateT, Any, RunEndT] | None = None,
    *,
    state: StateT | None = None,
    deps: Any = None,
    persistence: StatePersistence[StateT, RunEndT],
    on_finished: Literal['return', 'raise'] = 'return',
    span: AbstractContextManager[Any] | None = None,
    infer_name: bool = True,
) -> AbstractAsyncContextManager[GraphRun[StateT, Any, RunEndT]]: ...


@overload
def iter_or_resume(
    graph: PersistentGraph[StateT, Any, InputT, OutputT],
    *,
    state: StateT | None = None,
    inputs: InputT | None = ...,
    deps: Any = None,
    persistence: StatePersistence[Any, Any],
    on_finished: Literal['return', 'raise'] = 'return',
    span: AbstractContextManager[Any] | None = None,
    infer_name: bool = True,
) -> AbstractAsyncContextManager[Any]: ...


@asynccontextmanager
async def iter_or_resume(
    graph: Graph[Any, Any, Any] | PersistentGraph[Any, Any, Any, Any],
    start_node: BaseNode[Any, Any, Any] | None = None,
    *,
    state: Any = UNSET,
    inputs: Any = UNSET,
    deps: Any = None,
    persistence: StatePersistence[Any, Any],
    on_finished: Literal['return', 'raise'] = 'return',
    span: AbstractContextManager[Any] | None = None,
    infer_name: bool = True,
) -> AsyncGenerator[Any]:
    """Iterate over the nodes of a run, from wherever it is; the context manager behind `run_or_resume`.

    Arguments and errors are those of `run_or_resume`; `span` is the span to use for the run. A finished run
    is yielded at its end. A node that was loaded and not run is given back on leaving.
    """
    if not isinstance(persistence, StatePersistence):
        raise TypeError(
            f'persistence must be a graphkeep.StatePersistence, got {persistence!r}: '
            'give a persistence of graphkeep, or of a store `store.run(run_id)`.'
        )
    if not isinstance(graph, Graph):
        _check_builder_graph(graph, start_node)
        if infer_name:
            graph._infer_name(skip_context_manager(inspect.currentframe()))
        resuming = graph.iter_or_resume(
            persistence, state=state, inputs=inputs, deps=deps, on_finished=on_finished, span=span
        )
        async with resuming as builder_run:
            yield builder_run
        return
    if infer_name:
        naming.infer_name(graph, skip_context_manager(inspect.currentframe()))
    persistence.set_graph_types(graph)
    if persistence._offered is None:
        await persistence.release()
    if start_node is not None:
        await persistence.snapshot_start(None if state is UNSET else state, start_node)
    async with AsyncExitStack() as stack:
        stack.push_async_exit(Leaving(persistence))
        resuming = graph.iter_from_persistence(persistence, deps=deps, span=span, infer_name=False)
        try:
            run = await stack.enter_async_context(resuming)
        except GraphRuntimeError as exc:
            # the 1.x host has one message for all reasons, and no reason of ours can be raised through it
            error = exc if isinstance(exc, GraphkeepError) else await persistence.why_unresumable()
            if not isinstance(error, RunFinishedError) or on_finished == 'raise':
                raise error from None
            run = await _finished(graph, persistence, deps)
        yield run


async def _finished(
    graph: Graph[StateT, Any, RunEndT], persistence: StatePersistence[StateT, RunEndT], deps: Any
) -> GraphRun[StateT, Any, RunEndT]:
    """Return the run as it was when it ended."""
    last = await persistence.load_last()
    if not isinstance(last, EndSnapshot):
        raise await persistence.why_unresumable()  # somebody has gone on with it this very moment
    end: Any = End(last.result.data)
    return GraphRun(
        graph=graph, start_node=end, persistence=persistence, state=last.state, deps=deps, traceparent=None
    )


def _check_builder_graph(graph: object, start_node: object) -> None:
    if not hasattr(type(graph), 'iter_or_resume'):  # its class cannot be had on every host
        raise TypeError(
            f'graph must be a graphkeep.Graph or a graphkeep.PersistentGraph, got {graph!r}: '
            'wrap what `GraphBuilder.build()` returned in a PersistentGraph'
        )
    if start_node is not None:
        raise TypeError('a builder graph begins at its own start: give `inputs`, not `start_node`')
