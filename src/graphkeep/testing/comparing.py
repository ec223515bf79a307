"""A storage that is used through several stores, and compared with a plain model of it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from hypothesis.stateful import RuleBasedStateMachine, invariant

from ..errors import GraphkeepError
from ..store import Store
from ..stored import StoredStatePersistence
from .graphs import Again, State, graph
from .model import Model, ModelRun
from .stores import StoreClauses, StoreUnderTest, known, owner_of, ownership_of

__all__ = ('RUN_IDS', 'ComparedStore', 'Hold', 'Stop', 'Trouble')

T = TypeVar('T')

RUN_IDS = ('a', 'b', 'c', 'd')
"""The runs there may be."""


class Trouble(Exception):
    """What a node raises."""


class Stop(BaseException):
    """What interrupts a node."""


@dataclass(eq=False)
class Hold:
    """Somebody who has, or had, a node in hand."""

    persistence: StoredStatePersistence[State, int]
    snapshot_id: str
    node: asyncio.Task[None] | None = None
    """The run of the node, once it was started."""
    order: asyncio.Future[str] | None = None
    """How the node is to end."""

    @property
    def run_id(self) -> str:
        """The run."""
        return self.persistence.run_id


class ComparedStore(RuleBasedStateMachine):
    """One storage, several stores on it, and a model.

    After each rule the store is compared with the model, by what it lists and by what the raw reader finds.
    Besides, whatever the model says: a fence never falls, and what succeeded stays so, while a run exists.
    """

    def __init__(self, contract: StoreClauses):
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix='graphkeep-')
        self._place = StoreUnderTest(contract, Path(self._directory.name))
        self._model = Model(self._place.clock)
        self._stores = [self._place.another(), self._place.another()]
        self._loop = asyncio.new_event_loop()
        self._holds: list[Hold] = []
        self._kept: list[object] = []  # an owner that nobody has any more is gone
        self._seen: dict[int, tuple[ModelRun, int, set[int]]] = {}
        self._nodes = 0

    def teardown(self) -> None:
        """Give everything back, and close."""
        for hold in self._holds:
            if hold.node is not None:
                hold.node.cancel()
                with suppress(asyncio.CancelledError, GraphkeepError):
                    self._do(cast('Any', asyncio.wait([hold.node])))
        self._do(self._place.aclose())
        self._loop.close()
        self._directory.cleanup()

    # ------------------------------------------------------------------------------------------------ helpers

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def _store(self, number: int) -> Store:
        return self._stores[number % len(self._stores)]

    def _open(
        self, run_id: str, number: int, tags: tuple[str, ...] = ()
    ) -> StoredStatePersistence[State, int]:
        persistence = known(self._store(number).run(run_id, tags=tags))
        self._kept.append(persistence)
        return persistence

    def _outcome(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T | type[BaseException]:
        """Return what the call returns, or the type of what it raises."""
        try:
            return self._do(call())
        except (GraphkeepError, Trouble, Stop) as exc:
            return type(exc)

    def _hold(self, number: int, *, started: bool) -> Hold:
        holds = [hold for hold in self._holds if (hold.node is not None) is started]
        return holds[number % len(holds)]

    def _mine(self, hold: Hold) -> ModelRun | None:
        """Return the run that somebody has in hand, if nobody else has taken it meanwhile."""
        run = self._model.runs.get(hold.run_id)
        return run if run is not None and run.holder is hold else None

    def _new_node(self) -> Again:
        self._nodes += 1
        return Again(self._nodes)

    # --------------------------------------------------------------------------------------------- invariants

    @invariant()
    def the_storage_is_as_the_model(self) -> None:
        """The raw reader finds the snapshots, the statuses and the owner that the model has."""
        for run_id in RUN_IDS:
            raw, run = self._place.raw(run_id), self._model.runs.get(run_id)
            rows = run.rows if run else []
            assert [tuple(s) for s in raw.snapshots] == [(row.id, row.kind, row.status) for row in rows], (
                run_id
            )
            holder = cast('Hold | None', run and run.holder)
            assert raw.owner == (holder and owner_of(holder.persistence).id), run_id

    @invariant()
    def the_list_is_as_the_model(self) -> None:
        """The store lists the runs that the model has, with all that is told of them."""
        infos = self._do(self._stores[0].runs())
        assert [
            (i.id, i.status, i.steps, i.tags, i.parent, i.created, i.resumable, i.graph) for i in infos
        ] == [
            (
                run_id,
                run.status,
                run.last.seq,
                run.tags,
                run.parent,
                run.created,
                self._model.is_resumable(run),
                graph.name,
            )
            for run_id, run in sorted(self._model.runs.items())
        ]

    @invariant()
    def the_history_is_as_the_model(self) -> None:
        """Each run has the snapshots, attempts and fence that the model has; what succeeded stays so."""
        for run_id, run in self._model.runs.items():
            persistence = self._stores[-1].run(run_id)
            history = self._do(persistence.load_history())
            assert [(r.seq, r.id, r.status, r.attempt, [a.outcome for a in r.attempts]) for r in history] == [
                (r.seq, r.id, r.status, r.attempt, r.outcomes) for r in run.rows
            ], run_id
            ownership = self._do(ownership_of(persistence))
            assert (ownership.fence, ownership.expires) == (run.fence, run.expires), run_id
            _, fence, succeeded = self._seen.get(id(run), (run, 0, set()))
            assert ownership.fence >= fence, f'the fence of run {run_id!r} fell'
            now = {record.seq for record in history if record.status == 'success'}
            assert {seq for seq in succeeded if seq >= history[0].seq} <= now, 'a success was undone'
            self._seen[id(run)] = run, ownership.fence, now
