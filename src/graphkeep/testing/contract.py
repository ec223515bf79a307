"""The contract of a whole store."""

from __future__ import annotations

from pathlib import Path

from .building import BuildingClauses
from .cancelling import CancellingClauses
from .copies import CopyingClauses
from .deleting import DeletingClauses
from .faults import FaultClauses
from .going_on import GoingOnClauses
from .kept import KeptInStore
from .listing import ListingClauses
from .machine import ModelClauses
from .owning import OwningClauses
from .parts import PartClauses
from .racing import RacingClauses
from .runs import RunUnderTest
from .stores import StoreUnderTest

__all__ = ('StoreContract',)


class StoreContract(
    KeptInStore,
    OwningClauses,
    PartClauses,
    ListingClauses,
    GoingOnClauses,
    CopyingClauses,
    DeletingClauses,
    RacingClauses,
    FaultClauses,
    CancellingClauses,
    BuildingClauses,
    ModelClauses,
):
    """What holds for every store. Abstract: without its two methods no subclass can be collected.

    ```python
    class TestMyStore(StoreContract):
        def open_store(self, directory, clock, lease):
            return MyStore(directory / 'runs', clock=clock, lease=lease)

        def read_raw(self, directory, run_id):
            return RawRun([RawSnapshot(...) for ... in ...], owner)
    ```

    What not every store can do is mixed in: `Durable`, `ManyProcesses`, `FailsOnDemand`, `Corruptible`.
    """

    def make_run(self, directory: Path) -> RunUnderTest:
        """Make a run in a store of its own."""
        return StoreUnderTest(self, directory).under_test('run')
