"""Clauses for stores that several processes use at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio

from .children import LENGTH, PROCESSES, Link, Trail, chain, child, claim_all, heard, logged, start_each
from .clock import LEASE, Clock
from .stores import StoreClauses

__all__ = ('ManyProcesses',)


class ManyProcesses(StoreClauses):
    """Mixed in where several processes may use one storage at once.

    The test class must be importable by a child process: at the top level of a module.
    """

    processes = 4
    """How many race."""
    races = 10
    """How often."""

    def test_processes_race_for_a_start(self, tmp_path: Path):
        """Of several processes that start one node exactly one does; the others are told so."""
        clock = Clock()
        runs = anyio.run(self._begin, tmp_path, clock, self.races)
        outcomes = self._race(start_each, tmp_path, clock, runs)
        for run_id, outcome in zip(runs, zip(*outcomes, strict=True), strict=True):
            assert Counter(outcome)['won'] == 1, f'exactly one should start the node; they got {outcome}'
            raw = self.read_raw(tmp_path, run_id)
            assert ([s.status for s in raw.snapshots], raw.owner) == (['success', 'created'], None)

    def test_processes_share_the_work(self, tmp_path: Path):
        """Processes that claim from one store finish every run, and run each node once."""
        clock = Clock()
        runs = anyio.run(self._begin, tmp_path, clock, 2 * self.races)
        outcomes = self._race(claim_all, tmp_path, clock, tmp_path / 'log')
        assert {run_id for found in outcomes for run_id in found} == runs.keys()
        for run_id in runs:
            assert logged(tmp_path / f'{run_id}.log') == Counter(f'ran {n}' for n in range(1, LENGTH + 1))
            raw = self.read_raw(tmp_path, run_id)
            assert ([s.status for s in raw.snapshots], raw.owner) == (['success'] * (LENGTH + 1), None)

    async def _begin(self, directory: Path, clock: Clock, count: int) -> dict[str, str]:
        store = self.open_store(directory, clock, LEASE)
        for number in range(count):
            await chain.initialize(Link(), store.run(f'{number}'), state=Trail())
        await store.aclose()
        return {f'{n}': self.read_raw(directory, f'{n}').snapshots[0].id for n in range(count)}

    def _race(self, target: Callable[..., None], *args: Any) -> list[Any]:
        together = PROCESSES.Barrier(self.processes)
        with ExitStack() as stack:
            racers = [
                stack.enter_context(child(target, type(self), *args, together)) for _ in range(self.processes)
            ]
            return [heard(near, patience=100) for _, near in racers]
