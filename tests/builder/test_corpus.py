"""The corpus itself: it covers what it has to, and each graph has one result on the plain host."""

from __future__ import annotations

from inspect import getmembers

import pytest

from tests.builder.graphs import CASES, EXTRA, KINDS, MODULES, Case, plain
from tests.counts import count

HERE = [case for case in CASES.values() if case.runs_here]

pytestmark = pytest.mark.both_backends


@pytest.mark.anyio
@pytest.mark.parametrize('case', HERE, ids=repr)
async def test_one_result(case: Case, anyio_backend: str):
    """A graph of the corpus comes to the same result in whatever order its tasks are run."""
    expected = await plain(case, 0)
    for seed in range(1, count(100)):
        assert await plain(case, seed) == expected, f'with the delays of {seed} it should be the same'


@pytest.mark.parametrize('case', HERE, ids=repr)
def test_drawn(case: Case, anyio_backend: str):
    """A graph is built anew with the same node ids."""
    first, second = case.build(), case.build()
    assert first is not second
    assert (first.nodes.keys(), first.render()) == (second.nodes.keys(), second.render())


def test_kinds(anyio_backend: str):
    """Every kind of graph, step, state and value is covered, on the oldest host as on the newest."""
    covered = frozenset[str]().union(*(case.kinds for case in HERE))
    assert KINDS - covered == set()
    assert covered - KINDS - EXTRA == set()
    assert len(HERE) >= 70


def test_registered(anyio_backend: str):
    """Every graph that a module of the corpus makes is a case, and no two have a name in common."""
    made = [
        name
        for module in MODULES
        for name, value in getmembers(module, callable)
        if value.__module__ == module.__name__ and getattr(value, '__annotations__', {}).keys() == {'return'}
    ]
    made = [name for name in made if not name.startswith('_')]
    assert sorted(made) == sorted(CASES)
