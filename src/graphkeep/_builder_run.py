"""Runs of builder graphs that are recorded as they go, as whoever drives them sees them."""

from __future__ import annotations

from typing import Any, Final, cast

from ._scheduler import (
    EndMarker,
    ErrorMarker,
    ForkStackItem,
    Graph,
    GraphRun,
    GraphTask,
    NodeRunID,
    Scheduler,
    StartNode,
    TaskID,
)
from ._scheduling import Ids, Resumed
from .taskrun import TaskRun

__all__ = ('PersistentGraphRun', 'ended_run')

_FIRST: Final = 'task:0'  # the task that the run begins with, and the run of it


class PersistentGraphRun(GraphRun[Any, Any, Any]):
    """A run of a builder graph that is recorded as it goes; it can do all that `GraphRun` can."""

    def __init__(
        self,
        graph: Graph[Any, Any, Any, Any],
        task_run: TaskRun,
        *,
        state: Any,
        deps: Any,
        inputs: Any,
        traceparent: str | None,
        opening: int,
        first: Any = StartNode.id,
        resumed: Resumed | None = None,
    ):
        super().__init__(graph, state=state, deps=deps, inputs=inputs, traceparent=traceparent)
        self._task_run = task_run
        self._resumed = resumed
        self._get_next_task_id: Any = Ids(opening)
        self._get_next_node_run_id: Any = Ids(opening)
        if resumed is None:
            start = ForkStackItem(StartNode.id, NodeRunID(_FIRST), 0)
            self._first_task = GraphTask(first, inputs, (start,), TaskID(_FIRST))
        elif resumed.tasks:
            self._first_task = resumed.tasks[0]
        _close(self._iterator_instance)
        self._iterator_instance = self._scheduler = Scheduler(
            self.graph,
            self.state,
            self.deps,
            self._iterator_task_group,
            self._get_next_node_run_id,
            self._get_next_task_id,
        )
        self._scheduler.attach(task_run, resumed)
        self._iterator = self._iterator_instance.iter_graph(self._first_task)

    async def __anext__(self) -> Any:
        await self.finish()
        if not isinstance(self._next, ErrorMarker):
            self._task_run.recovered()
        try:
            event: Any = await super().__anext__()
            self._scheduler.begin()  # what a join leads to, while another one is closed
            if not isinstance(event, EndMarker):
                await self._scheduler.see(event)
        except StopAsyncIteration as exc:
            if self._is_told(exc):
                raise RuntimeError('a step raised StopAsyncIteration') from exc  # this is not the end
            raise
        except Exception as exc:
            if not self._is_told(exc):
                self._task_run.fault(exc)
            raise
        return cast(Any, event)

    def _is_told(self, exc: Exception) -> bool:
        """Whether this is what a task has raised, as whoever drives the run is told."""
        return isinstance(self._next, ErrorMarker) and self._next.error is exc

    async def __aexit__(self, *exc: Any) -> Any:
        # the host would wait for its tasks if it was cancelled while it waited for one of them
        self._iterator_task_group.cancel_scope.cancel()
        return await super().__aexit__(*exc)

    async def finish(self) -> None:
        """Record the end if the run has come to it."""
        if isinstance(self._next, EndMarker):
            await self._task_run.finish(self._next.value)

    @property
    def next_task(self) -> Any:
        """The next task or tasks to be run; at first those that the run goes on with."""
        if self._next is None and self._resumed is not None:
            return list(self._resumed.tasks)
        return super().next_task


def ended_run(
    graph: Graph[Any, Any, Any, Any], state: Any, deps: Any, output: Any
) -> GraphRun[Any, Any, Any]:
    """Return a run as it was when it ended."""
    run = _EndedGraphRun(graph, state=state, deps=deps, inputs=None, traceparent=None)
    _close(run._iterator_instance)
    run.override_next(EndMarker(output))
    return run


def _close(iterator: Any) -> None:
    """Close the streams of a scheduler that is not used."""
    iterator.iter_stream_sender.close()
    iterator.iter_stream_receiver.close()


class _EndedGraphRun(GraphRun[Any, Any, Any]):
    """A run that has ended."""

    async def __anext__(self) -> Any:
        raise StopAsyncIteration
