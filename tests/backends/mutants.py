"""What mutants are made of: stores that each break one promise, under the kit, which has to reject them.

`test_mutants` runs them. They are not collected by themselves: their files' names are not those of tests.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import pytest

from graphkeep import MemoryStore, Store
from graphkeep.memory import _MemoryRun
from tests.backends import test_contract

__all__ = ('MUTANTS', 'Mutant', 'TestUnbroken')

MUTANTS: dict[type[object], str] = {}
"""The clause that has to reject each of the test classes, among others that may."""


class Mutant(test_contract.TestMemoryStore):
    """The contract on a store in memory with runs of a class of its own."""

    __test__ = False
    run_type: ClassVar[type[_MemoryRun]] = _MemoryRun
    store_type: ClassVar[type[MemoryStore]] = MemoryStore
    rejected_by: ClassVar[str] = ''

    def __init_subclass__(cls) -> None:
        """Put the class on the list."""
        cls.__test__ = True
        cls.stores = {}
        if cls.rejected_by:
            MUTANTS[cls] = cls.rejected_by

    @pytest.fixture
    def anyio_backend(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One event loop is enough."""
        return 'asyncio'

    def make_store(self, clock: Callable[[], datetime], lease: float) -> MemoryStore:
        run_type = self.run_type

        class Store_(self.store_type):
            def _run(self, run_id: str) -> _MemoryRun:
                return self._held.get(run_id) or self._held.setdefault(run_id, run_type(run_id, self.clock))

        return Store_(clock=clock, lease=lease)

    def open_store(self, directory: Path, clock: Callable[[], datetime], lease: float) -> Store:
        if directory not in self.stores:
            self.stores[directory] = self.make_store(clock, lease)
        return self.stores[directory]


class TestUnbroken(Mutant):
    """Nothing is wrong with this one."""
