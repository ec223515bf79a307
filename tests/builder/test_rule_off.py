"""That the crash proof can fail: without the rule that makes commits consistent, it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builder.crashing import UNCLOSED, BuilderRuns, crash_points, places, rule_off
from tests.builder.graphs import CASES

pytestmark = [
    pytest.mark.anyio,
    UNCLOSED,
]

# graphs in which a step changes the state, and then waits while others beside it end
TORN = (
    'map_of_every_change',
    'map_then_steps',
    'wide_map',
    'broadcast_of_paths',
    'dict_as_state',
    'loop_in_a_map',
    'join_that_changes_the_state',
)


@pytest.mark.both_backends
async def test_torn(tmp_path: Path, anyio_backend: str, monkeypatch: pytest.MonkeyPatch):
    """With the rule, none of these graphs differs after a crash; with the rule switched off, some do."""
    for name in TORN:
        report = await crash_points(BuilderRuns(CASES[name]), places('memory', tmp_path / name), second=0)
        report.check()
    rule_off(monkeypatch)
    differing = {
        name
        for name in TORN
        if (
            await crash_points(BuilderRuns(CASES[name]), places('memory', tmp_path / f'{name} off'), second=0)
        ).differences
    }
    assert 2 * len(differing) >= len(TORN), 'a state that is torn should show in at least half of them'
