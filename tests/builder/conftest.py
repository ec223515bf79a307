"""Leave the tests of builder graphs alone where the host has no builder as they need it."""

from __future__ import annotations

from importlib.util import find_spec

# `pydantic_graph.graph_builder` holds builder, graph and runner in late 1.x and in 2.x; before that the
# builder was a preview, `pydantic_graph.beta`, whose modules and names differ.
collect_ignore_glob = [] if find_spec('pydantic_graph.graph_builder') else ['test_*.py']
