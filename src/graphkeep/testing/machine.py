"""A Hypothesis state machine that uses a store as several owners do, and compares it with a plain model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from functools import partial
from typing import Any, cast

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from pydantic_graph import End

from .._host import ensure_snapshot_id, set_snapshot_id
from ..errors import (
    OwnershipLostError,
    RunExistsError,
    RunFinishedError,
    RunOwnedError,
    SnapshotStatusError,
    UnknownRunError,
)
from ..stored import StoredStatePersistence
from .clock import LEASE
from .comparing import RUN_IDS, ComparedStore, Hold, Stop, Trouble
from .graphs import State
from .model import ModelRow, ModelRun
from .stores import StoreClauses, known

__all__ = ('ModelClauses', 'StoreMachine')

RUNS = st.sampled_from(RUN_IDS)
NUMBERS = st.integers(0, 5)
TAGS = st.sampled_from([(), ('x',), ('x', 'y')])


class StoreMachine(ComparedStore):
    """Uses one storage through several stores, as owners who come, go on, are late, fail and are replaced."""

    # --------------------------------------------------------------------------------------- beginning a step

    @rule(run_id=RUNS, number=NUMBERS, tags=TAGS)
    def begin(self, run_id: str, number: int, tags: tuple[str, ...]) -> None:
        """Store the first node, if the run has none."""
        node = self._new_node()
        self._do(self._open(run_id, number, tags).snapshot_start(State(), node))
        if run_id not in self._model.runs:
            row = ModelRow(ensure_snapshot_id(node), 1)
            self._model.runs[run_id] = ModelRun([row], self._place.clock.now, tags)

    @rule(run_id=RUNS, number=NUMBERS)
    def load_next(self, run_id: str, number: int) -> None:
        """Be handed the next node of a run."""
        persistence = self._open(run_id, number)
        found = self._do(persistence.load_next())
        run = self._model.runs.get(run_id)
        if run is None or not self._model.is_resumable(run):
            assert found is None, f'load_next should hand out nothing of run {run_id!r}'
            return
        assert found is not None, f'load_next should hand out the newest node of run {run_id!r}'
        assert found.id == run.last.id
        self._claimed(run, persistence)

    @rule(number=NUMBERS, tag=st.sampled_from([None, 'x', 'y']))
    def claim(self, number: int, tag: str | None) -> None:
        """Be handed any run that can be gone on with."""
        runs = self._model.runs.items()
        wanted = [i for i, run in runs if self._model.is_resumable(run) and (not tag or tag in run.tags)]
        persistence = self._do(self._store(number).claim(tag=tag))
        if persistence is None:
            assert not wanted, f'one of the runs {wanted} should be handed out'
            return
        self._kept.append(persistence)
        assert persistence.run_id in wanted, f'one of the runs {wanted} may be handed out'
        self._claimed(self._model.runs[persistence.run_id], known(persistence))

    @precondition(lambda self: bool(self._holds))
    @rule(index=st.integers(0, 20), number=NUMBERS)
    def take_over(self, index: int, number: int) -> None:
        """Let the lease of somebody who has, or had, a node run out, and be handed the node."""
        self._place.clock.forward(LEASE)
        self.load_next(self._holds[index % len(self._holds)].run_id, number)

    def _claimed(self, run: ModelRun, persistence: StoredStatePersistence[Any, Any]) -> None:
        hold = Hold(persistence, run.last.id)
        self._model.claim(run, hold)
        self._holds.append(hold)

    @rule(run_id=RUNS, number=NUMBERS)
    def start(self, run_id: str, number: int) -> None:
        """Start the newest snapshot of a run without being handed it."""
        if (run := self._model.runs.get(run_id)) is None:
            return
        hold = Hold(self._open(run_id, number), run.last.id)
        if not self._model.is_free(run):
            expected: object = RunOwnedError
        elif run.is_finished or run.status not in ('created', 'pending'):
            expected = SnapshotStatusError
        else:
            expected = None
            self._model.start(run, hold)
        self._start(hold, expected)

    @precondition(lambda self: any(hold.node is None for hold in self._holds))
    @rule(number=NUMBERS)
    def start_claimed(self, number: int) -> None:
        """Start what was handed out, perhaps to somebody who has lost it since."""
        hold = self._hold(number, started=False)
        run = self._mine(hold)
        if run is not None:
            self._model.start(run, hold)
        self._holds.remove(hold)
        self._start(hold, OwnershipLostError if run is None else None)

    def _start(self, hold: Hold, expected: object) -> None:
        assert self._outcome(partial(self._begin_node, hold)) == expected
        if expected is None:
            self._holds.append(hold)

    async def _begin_node(self, hold: Hold) -> None:
        started: asyncio.Future[None] = self._loop.create_future()
        hold.order = self._loop.create_future()
        hold.node = asyncio.create_task(self._run_node(hold, started, hold.order))
        waiting: list[Awaitable[None]] = [hold.node, started]
        await asyncio.wait(cast('Any', waiting), return_when=asyncio.FIRST_COMPLETED)
        if hold.node.done():
            hold.node.result()

    async def _run_node(self, hold: Hold, started: asyncio.Future[None], order: asyncio.Future[str]) -> None:
        async with hold.persistence.record_run(hold.snapshot_id):
            started.set_result(None)
            how = await order
            if how == 'fail':
                raise Trouble
            if how == 'interrupt':
                raise Stop
        if how == 'end':
            await hold.persistence.snapshot_end(State(), End(1))
        else:
            await hold.persistence.snapshot_node(State(), self._next)

    # ------------------------------------------------------------------------------------------ ending a step

    @precondition(lambda self: any(hold.node is not None for hold in self._holds))
    @rule(number=NUMBERS, how=st.sampled_from(['next', 'again', 'end', 'fail', 'interrupt']))
    def finish(self, number: int, how: str) -> None:
        """Let a node return, raise, or be interrupted, perhaps one whose run was taken over."""
        self._finish(self._hold(number, started=True), how)

    @precondition(
        lambda self: any(hold.node is not None and self._mine(hold) is None for hold in self._holds)
    )
    @rule(how=st.sampled_from(['next', 'end', 'fail', 'interrupt']))
    def finish_late(self, how: str) -> None:
        """Let a node end whose run was taken over."""
        late = [hold for hold in self._holds if hold.node is not None and self._mine(hold) is None]
        self._finish(late[0], how)

    def _finish(self, hold: Hold, how: str) -> None:
        self._holds.remove(hold)
        self._next = self._new_node()
        if how == 'again':  # a node that returns itself keeps its id
            set_snapshot_id(self._next, hold.snapshot_id)
        outcome = self._outcome(partial(self._end_node, hold, how))
        self._do(hold.persistence.release())  # a run that was claimed is kept, also between its steps
        failed: dict[str, type[BaseException]] = {'fail': Trouble, 'interrupt': Stop}
        run = self._mine(hold)
        if run is None:
            assert outcome == failed.get(how, OwnershipLostError), 'a former owner should be refused'
            return
        assert outcome == failed.get(how)
        run.free()
        if how == 'interrupt':
            run.last.give_back('released')
            return
        run.last.status = 'error' if how == 'fail' else 'success'
        run.last.outcomes.append(run.last.status)
        if how == 'end':
            stored = self._place.raw(hold.run_id).snapshots[-1]
            run.append(stored.id, 'end', self._place.clock.now)
        elif how != 'fail':
            run.append(ensure_snapshot_id(self._next))

    async def _end_node(self, hold: Hold, how: str) -> None:
        assert hold.node is not None
        assert hold.order is not None
        hold.order.set_result(how)
        await hold.node

    @precondition(lambda self: any(hold.node is None for hold in self._holds))
    @rule(number=NUMBERS)
    def release(self, number: int) -> None:
        """Give back what was handed out, if it is still there to give."""
        hold = self._hold(number, started=False)
        self._holds.remove(hold)
        self._do(hold.persistence.release())
        if (run := self._mine(hold)) is not None:
            run.last.give_back('released')
            run.free()

    # --------------------------------------------------------------------------------- the verbs of the store

    @rule(run_id=RUNS, number=NUMBERS)
    def recover(self, run_id: str, number: int) -> None:
        """Recover a run."""
        run = self._model.runs.get(run_id)
        outcome = self._outcome(partial(self._store(number).recover, run_id))
        if run is None:
            assert outcome is UnknownRunError
        elif not run.last.is_open:
            assert outcome == 0
        elif not self._model.is_free(run):
            assert outcome is RunOwnedError
        else:
            assert outcome == 1
            self._model.recover(run)

    @rule(number=NUMBERS)
    def recover_all(self, number: int) -> None:
        """Recover all runs."""
        runs = self._model.runs.values()
        abandoned = [run for run in runs if run.last.is_open and self._model.is_free(run)]
        assert self._do(self._store(number).recover_all()) == len(abandoned)
        for run in abandoned:
            self._model.recover(run)

    @rule(run_id=RUNS, number=NUMBERS)
    def retry(self, run_id: str, number: int) -> None:
        """Retry a run."""
        run = self._model.runs.get(run_id)
        outcome = self._outcome(partial(self._store(number).retry, run_id))
        if run is None:
            assert outcome is UnknownRunError
        elif run.is_finished:
            assert outcome is RunFinishedError
        elif not self._model.is_free(run):
            assert outcome is RunOwnedError
        elif run.status != 'error':
            assert outcome is SnapshotStatusError
        else:
            assert outcome is None
            run.last.status = 'created'

    @rule(run_id=RUNS, into=RUNS, number=NUMBERS, at=NUMBERS)
    def fork(self, run_id: str, into: str, number: int, at: int) -> None:
        """Fork a run at one of its snapshots."""
        run = self._model.runs.get(run_id)
        index = at % len(run.rows) if run else 0
        seq = run.rows[index].seq if run else 1
        outcome = self._outcome(partial(self._store(number).fork, run_id, into=into, at=seq))
        if run is None:
            assert outcome is UnknownRunError
        elif into in self._model.runs:
            assert outcome is RunExistsError
        else:
            self._model.fork(run_id, into, index)

    @rule(run_id=RUNS, into=RUNS, number=NUMBERS)
    def move(self, run_id: str, into: str, number: int) -> None:
        """Export a run, and import it under another id."""
        exported = self._outcome(partial(self._store(number).export, run_id))
        if run_id not in self._model.runs:
            assert exported is UnknownRunError
            return
        assert isinstance(exported, bytes)
        outcome = self._outcome(partial(self._store(number + 1).import_run, exported, run_id=into))
        if into in self._model.runs:
            assert outcome is RunExistsError
        else:
            assert outcome is None
            self._model.move(run_id, into)

    @rule(run_id=RUNS, number=NUMBERS)
    def delete(self, run_id: str, number: int) -> None:
        """Delete a run."""
        run = self._model.runs.get(run_id)
        outcome = self._outcome(partial(self._store(number).delete, run_id))
        if run is None:
            assert outcome is False
        elif not self._model.is_free(run):
            assert outcome is RunOwnedError
        else:
            assert outcome is True
            del self._model.runs[run_id]

    @rule(run_id=RUNS, number=NUMBERS)
    def restore(self, run_id: str, number: int) -> None:
        """Delete a run that nobody has in hand, and import what it was exported to."""
        run = self._model.runs.get(run_id)
        if run is not None and self._model.is_free(run):
            exported = self._do(self._store(number).export(run_id))
            self._do(self._store(number).delete(run_id))
            self._do(self._store(number + 1).import_run(exported, run_id=run_id))
            self._model.move(run_id, run_id)

    @rule(
        number=NUMBERS,
        seconds=st.sampled_from([5, 15, LEASE + 5]),
        keep_last=st.integers(0, 2),
        only_finished=st.booleans(),
    )
    def prune(self, number: int, seconds: float, keep_last: int, only_finished: bool) -> None:
        """Prune the store. Ages differ by 10 seconds at least, so that what nodes take in fact is nothing."""
        ends = [run.updated for run in self._model.runs.values() if run.is_finished]
        if len(set(ends)) < len(ends):
            keep_last = 0  # which of two is the newer one is only known to the store
        before = self._place.clock.now - timedelta(seconds=seconds)
        expected = self._model.prune(before, keep_last, only_finished=only_finished)
        prune = self._store(number).prune
        assert (
            self._do(prune(older_than=before, keep_last=keep_last, only_finished=only_finished)) == expected
        )

    @rule(seconds=st.sampled_from([10, LEASE / 2, LEASE]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._place.clock.forward(seconds)

    @rule(number=NUMBERS)
    def reopen(self, number: int) -> None:
        """Go on with a store that is opened now."""
        self._stores[number % len(self._stores)] = self._place.another()


class ModelClauses(StoreClauses):
    """The state machine, as a test."""

    examples: int | None = None
    """How many sequences of rules are tried; by default as many as the Hypothesis profile says."""
    rules: int = 40
    """How many rules each has."""

    def test_as_the_model(self) -> None:
        """Whatever several owners do to a store, it is what a plain model is after the same."""
        chosen: dict[str, Any] = {} if self.examples is None else {'max_examples': self.examples}
        run_state_machine_as_test(  # pyright: ignore[reportUnknownMemberType]
            cast('Any', partial(StoreMachine, self)),
            settings=settings(
                deadline=None,
                stateful_step_count=self.rules,
                suppress_health_check=cast('Any', list(HealthCheck)),
                **chosen,
            ),
        )
