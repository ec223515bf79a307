"""What every test shares: the backends of anyio, the counts, and the other host."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.counts import FULL
from tests.hosts import PIP_SECONDS, other_host

__all__ = ('anyio_backend', 'other_host')

# What CI says of a change must not depend on luck; that is for the nightly run. And nothing here is timed.
settings.register_profile('ci', derandomize=True, deadline=None)
settings.register_profile('nightly', max_examples=2000, deadline=None, print_blob=True)
settings.load_profile('nightly' if FULL else 'ci')


@pytest.fixture(scope='session')
def anyio_backend() -> str:
    """Run a test on asyncio unless it asks for more; see the mark `both_backends`."""
    return 'asyncio'


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `both_backends` on asyncio and on trio."""
    if metafunc.definition.get_closest_marker('both_backends'):
        metafunc.parametrize('anyio_backend', ['asyncio', 'trio'], scope='session')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that need the other host the time to install it."""
    for item in items:
        if 'other_host' in getattr(item, 'fixturenames', ()) and not item.get_closest_marker('timeout'):
            item.add_marker(pytest.mark.timeout(2 * PIP_SECONDS))
