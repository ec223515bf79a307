"""The idempotency keys of the steps of a builder graph."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_graph import GraphBuilder, StepContext, reduce_list_append

from graphkeep import MemoryStore, PersistentGraph, current_step, run_or_resume

pytestmark = pytest.mark.anyio


def keyed() -> PersistentGraph[Any, Any, Any, Any]:
    """Return a graph that maps a step, which tells its key and then fails if its dependency says so."""
    g = GraphBuilder(deps_type=object, input_type=list[int], output_type=list[str])

    @g.step
    async def tell(ctx: StepContext[None, Any, int]) -> str:
        key = current_step().idempotency_key
        ctx.deps.append(key)
        if len(ctx.deps) == 1:
            raise ConnectionError
        return key

    told = g.join(reduce_list_append, initial_factory=list[str])
    g.add(
        g.edge_from(g.start_node).map().to(tell),
        g.edge_from(tell).to(told),
        g.edge_from(told).to(g.end_node),
    )
    return PersistentGraph(g.build())


async def test_a_key_is_the_same_for_each_attempt():
    """Another attempt has the key of the first; another item has another one."""
    store, keys = MemoryStore(), list[str]()
    with pytest.raises(ConnectionError):
        await keyed().run(inputs=[1], deps=keys, persistence=store.run('r'))
    await store.retry('r')
    assert await run_or_resume(keyed(), deps=keys, persistence=store.run('r')) == [keys[0]]
    assert keys == [keys[0]] * 2

    output = await keyed().run(inputs=[1, 2], deps=[''], persistence=store.run('s'))
    assert len({*keys, *output}) == 3


async def test_a_run_that_was_deleted_and_begun_anew_has_other_keys():
    """A run that is stored under the id of a deleted one is another run, whose steps have other keys."""
    store = MemoryStore()
    (before,) = await keyed().run(inputs=[1], deps=[''], persistence=store.run('r'))
    await store.delete('r')
    (after,) = await keyed().run(inputs=[1], deps=[''], persistence=store.run('r'))
    assert before != after
