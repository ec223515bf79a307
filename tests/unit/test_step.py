"""`current_step`: what code within a node learns of the step it is part of."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pydantic_graph import BaseNode, End, GraphRunContext

from graphkeep import Graph, MemoryStore, Step, current_step
from graphkeep.errors import NoCurrentStepError

pytestmark = pytest.mark.anyio

STEP = Step('run', 'A:1', 3, 1)


def test_outside():
    """Outside of a node there is no step, and the error says so."""
    with pytest.raises(NoCurrentStepError):
        current_step()


def test_key_of_an_attempt():
    """Another attempt has the same key."""
    assert replace(STEP, attempt=2).idempotency_key == STEP.idempotency_key


@pytest.mark.parametrize('other', [{'run_id': 'nur'}, {'snapshot_id': 'A:2'}, {'seq': 4}], ids=str)
def test_key_of_another_step(other: dict[str, Any]):
    """Another run, another snapshot, and the same snapshot at another place in the run have other keys."""
    assert replace(STEP, **other).idempotency_key != STEP.idempotency_key


def test_key_is_pinned():
    """The key is a UUID, and the same from release to release: runs outlive an upgrade."""
    assert uuid.UUID(STEP.idempotency_key).version == 5
    assert STEP.idempotency_key == '88b1939d-a52a-51d7-94f5-1c14b1ea19cb'


@dataclass
class Look(BaseNode[None, Any, list[Step]]):
    async def run(self, ctx: GraphRunContext[None, Any]) -> End[list[Step]]:
        steps = [current_step(), await anyio.to_thread.run_sync(current_step)]

        async def look() -> None:
            steps.append(current_step())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
        return End(steps)


@pytest.mark.both_backends
async def test_everywhere_in_a_node():
    """Helpers, child tasks and worker threads of a node are part of its step."""
    result = await Graph(nodes=(Look,)).run(Look(), persistence=MemoryStore().run('run'))
    assert [(s.run_id, s.seq, s.attempt) for s in result.output] == [('run', 1, 1)] * 3
    with pytest.raises(NoCurrentStepError):
        current_step()
