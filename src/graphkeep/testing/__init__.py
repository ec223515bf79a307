"""What a store has to keep to, as tests: for whoever writes one to import into their own tests.

Derive a test class from `StoreContract`, and from what the store can do besides, and give the methods that
they ask for. It needs the extra `testing`; how to write a store is in the documentation.
"""

from __future__ import annotations

import pkgutil

import pytest

# so that a clause that fails shows what it found, as any other test does
pytest.register_assert_rewrite(*(f'{__name__}.{module.name}' for module in pkgutil.iter_modules(__path__)))

from .clock import LEASE, Clock  # noqa: E402
from .contract import StoreContract  # noqa: E402
from .corrupting import Corruptible  # noqa: E402
from .crashing import Durable  # noqa: E402
from .faults import FailsOnDemand  # noqa: E402
from .kept import KeepsCopies, KeepsHistory, KeptInStore, PersistenceContract  # noqa: E402
from .machine import StoreMachine  # noqa: E402
from .processes import ManyProcesses  # noqa: E402
from .runs import RawSnapshot, RunUnderTest  # noqa: E402
from .stores import RawRun, StoreUnderTest  # noqa: E402

__all__ = (
    'LEASE',
    'Clock',
    'Corruptible',
    'Durable',
    'FailsOnDemand',
    'KeepsCopies',
    'KeepsHistory',
    'KeptInStore',
    'ManyProcesses',
    'PersistenceContract',
    'RawRun',
    'RawSnapshot',
    'RunUnderTest',
    'StoreContract',
    'StoreMachine',
    'StoreUnderTest',
)
