"""What a `Graph` knows once it is made: its nodes and edges, its types, its name. The same on both hosts."""

from __future__ import annotations

import importlib
import warnings
from asyncio import AbstractEventLoop
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Never, TypeVar

import pytest
from pydantic_graph import BaseNode, Edge, End, GraphRunContext
from pydantic_graph.exceptions import GraphSetupError
from typing_extensions import TypeAliasType

import graphkeep.graph
from graphkeep.graph import Graph
from graphkeep.memory import SimpleStatePersistence

T = TypeVar('T')


@dataclass
class Counter:
    """A state."""

    number: int = 0


@dataclass
class Up(BaseNode[Counter, None, Never]):
    """Adds one."""

    async def run(self, ctx: GraphRunContext[Counter, None]) -> Check:
        ctx.state.number += 1
        return Check()


@dataclass
class Check(BaseNode[Counter, None, int]):
    """Ends at three."""

    async def run(self, ctx: GraphRunContext[Counter, None]) -> Up | End[int]:
        return End(ctx.state.number) if ctx.state.number >= 3 else Up()


in_module = Graph(nodes=(Up, Check))


@dataclass
class Alone(BaseNode[None, None, int]):
    """Returns what an alias says."""

    async def run(self, ctx: GraphRunContext[None, None]) -> Next:
        return End(1)


Next = TypeAliasType('Next', Alone | End[int])


def test_nodes_in_order():
    """`get_nodes` gives the node types in the order in which the graph was given them."""
    assert Graph(nodes=(Check, Up)).get_nodes() == [Check, Up]


def test_node_defs():
    """`node_defs` says of each node what may come next, and whether it may end the run."""
    up, check = Graph(nodes=(Up, Check)).node_defs.values()
    assert (up.node, up.node_id, up.note) == (Up, 'Up', None)
    assert (up.next_node_edges, up.end_edge, up.returns_base_node) == ({'Check': Edge(None)}, None, False)
    assert (check.next_node_edges, check.end_edge) == ({'Up': Edge(None)}, Edge(None))


def test_edge_labels():
    """The `Edge` in an annotation labels the edge to a node, and the edge to the end."""

    @dataclass
    class Ask(BaseNode[None, None, int]):
        async def run(
            self, ctx: GraphRunContext[None, None]
        ) -> Annotated[Ask, Edge(label='again')] | Annotated[End[int], 'other', Edge(label='enough')]:
            return End(1)

    node_def = Graph(nodes=(Ask,)).node_defs['Ask']
    assert node_def.next_node_edges == {'Ask': Edge('again')}
    assert node_def.end_edge == Edge('enough')


def test_any_node_may_follow():
    """A node that is annotated as returning `BaseNode` says so, and refers to no node in particular."""

    @dataclass
    class Jump(BaseNode[None, None, int]):
        async def run(self, ctx: GraphRunContext[None, None]) -> BaseNode[None, None, int]:
            return Jump()

    node_def = Graph(nodes=(Jump,)).node_defs['Jump']
    assert (node_def.returns_base_node, node_def.next_node_edges, node_def.end_edge) == (True, {}, None)


def test_type_alias():
    """The annotation of `run` may be an alias of a union."""
    node_def = Graph(nodes=(Alone,)).node_defs['Alone']
    assert (node_def.next_node_edges, node_def.end_edge) == ({'Alone': Edge(None)}, Edge(None))


def test_generic_node():
    """A parametrised node counts as its class, as a node of the graph and as what another one returns."""

    @dataclass
    class Box(BaseNode[None, None, int], Generic[T]):
        value: T

        async def run(self, ctx: GraphRunContext[None, None]) -> Box[str] | End[int]:
            return End(1)

    graph = Graph(nodes=(Box[int],))
    assert graph.get_nodes() == [Box]
    assert graph.node_defs['Box'].next_node_edges == {'Box': Edge(None)}


def test_own_node_id():
    """A node may choose its id; it is the name under which the graph knows it."""

    @dataclass
    class Named(BaseNode[None, None, int]):
        @classmethod
        def get_node_id(cls) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
            return 'other-name'

        async def run(self, ctx: GraphRunContext[None, None]) -> Named | End[int]:
            return End(1)

    assert list(Graph(nodes=(Named,)).node_defs) == ['other-name']


def test_local_names_are_found():
    """Annotations may name classes that are local to the function in which the graph is made."""

    @dataclass
    class First(BaseNode[Counter, None, Never]):
        async def run(self, ctx: GraphRunContext[Counter, None]) -> Second:
            return Second()

    @dataclass
    class Second(BaseNode[Counter, None, int]):
        async def run(self, ctx: GraphRunContext[Counter, None]) -> End[int]:
            return End(1)

    assert Graph(nodes=(First, Second)).node_defs['First'].next_node_edges == {'Second': Edge(None)}
    parametrised = Graph[Counter, None, int](nodes=(First, Second))
    assert parametrised.node_defs['First'].next_node_edges == {'Second': Edge(None)}


def test_equal_ids_are_refused():
    """Two node types with one id are refused, and so is one given twice."""
    with pytest.raises(GraphSetupError, match=r'Node ID `Up` is not unique — found on .*Up.* and .*Up'):
        Graph(nodes=(Up, Check, Up))


def test_missing_node_is_refused():
    """A node that is referred to and not in the graph is named, with the node that refers to it."""
    with pytest.raises(GraphSetupError) as caught:
        Graph(nodes=(Up,))
    assert caught.value.message == '`Check` is referenced by `Up` but not included in the graph.'


def test_missing_nodes_are_refused():
    """Several missing nodes are all named, each with every node that refers to it."""

    @dataclass
    class Also(BaseNode[Counter, None, int]):
        async def run(self, ctx: GraphRunContext[Counter, None]) -> Up | Check | End[int]:
            return End(1)

    @dataclass
    class More(BaseNode[Counter, None, Never]):
        async def run(self, ctx: GraphRunContext[Counter, None]) -> Check:
            return Check()

    with pytest.raises(GraphSetupError) as caught:
        Graph(nodes=(Also, More))
    assert caught.value.message == (
        'Nodes are referenced in the graph but not included in the graph:\n'
        ' `Up` is referenced by `Also`\n'
        ' `Check` is referenced by `Also`, and `More`'
    )


def test_missing_annotation_is_refused():
    """A node whose `run` does not say what it returns is refused."""

    @dataclass
    class Silent(BaseNode[None, None, int]):
        async def run(self, ctx: GraphRunContext[None, None]):
            return End(1)

    with pytest.raises(GraphSetupError, match=r'Silent.*missing a return type hint on its `run` method'):
        Graph(nodes=(Silent,))


@pytest.mark.parametrize('returned', [int, 'Up | int', Annotated[str, Edge(label='x')], None])
def test_wrong_annotation_is_refused(returned: Any):
    """A node whose `run` says that it returns something other than a node or an `End` is refused."""

    @dataclass
    class Wrong(BaseNode[Counter, None, int]):
        async def run(self, ctx: GraphRunContext[Counter, None]) -> End[int]:
            return End(1)

    Wrong.run.__annotations__['return'] = returned
    with pytest.raises(GraphSetupError, match='Invalid return type: '):
        Graph(nodes=(Wrong, Up, Check))


def test_inferred_types():
    """State and result types are those with which the nodes parametrise `BaseNode`."""
    assert Graph(nodes=(Up, Check)).inferred_types == (Counter, int)


def test_given_types():
    """Types that are given go before those of the nodes, each for itself."""
    given: Any = {'nodes': (Up, Check)}
    assert Graph(**given, state_type=bytes).inferred_types == (bytes, int)
    assert Graph(**given, run_end_type=float).inferred_types == (Counter, float)
    assert Graph(**given, state_type=bytes, run_end_type=float).inferred_types == (bytes, float)


def test_types_that_nothing_tells():
    """Without a state in the nodes the state type is `None`, and without an end the result type is."""

    @dataclass
    class Bare(BaseNode):  # pyright: ignore[reportMissingTypeArgument]
        async def run(self, ctx: Any) -> Bare:
            return Bare()

    assert Graph(nodes=(Bare,)).inferred_types == (None, None)
    mixed: Any = (Bare, Up, Check)
    assert Graph(nodes=mixed).inferred_types == (Counter, int)


def test_repr_and_equality():
    """A graph shows its name and nodes, and equals another with the same."""
    graph, same = Graph(nodes=(Up, Check), name='g'), Graph(nodes=(Up, Check), name='g')
    assert repr(graph).startswith("Graph(name='g', node_defs={'Up': NodeDef(node=")
    assert graph == same
    assert graph != Graph(nodes=(Up, Check), name='h')


class TestName:
    """A graph without a name takes that of the variable that holds it where it is first used."""

    @pytest.mark.anyio
    async def test_run(self):
        """By `run`."""
        local = Graph(nodes=(Up, Check))
        assert local.name is None
        await local.run(Up(), state=Counter())
        assert local.name == 'local'

    def test_run_sync(self, thread_loop: AbstractEventLoop):
        """By `run_sync`."""
        local = Graph(nodes=(Up, Check))
        local.run_sync(Up(), state=Counter())
        assert local.name == 'local'

    @pytest.mark.anyio
    async def test_iter(self):
        """By `iter`."""
        local = Graph(nodes=(Up, Check))
        async with local.iter(Up(), state=Counter()):
            assert local.name == 'local'

    @pytest.mark.anyio
    async def test_initialize_and_iter_from_persistence(self):
        """By `initialize` and by `iter_from_persistence`."""
        begun, resumed = Graph(nodes=(Up, Check)), Graph(nodes=(Up, Check))
        persistence = SimpleStatePersistence[Counter, int]()
        await begun.initialize(Up(), persistence, state=Counter())
        assert begun.name == 'begun'
        async with resumed.iter_from_persistence(persistence):
            assert resumed.name == 'resumed'

    def test_mermaid_code(self):
        """By `mermaid_code`."""
        local = Graph(nodes=(Up, Check))
        local.mermaid_code()
        assert local.name == 'local'

    @pytest.mark.anyio
    async def test_global(self):
        """A global variable counts where no local one holds the graph."""
        in_module.name = None
        await in_module.run(Up(), state=Counter())
        assert in_module.name == 'in_module'

    @pytest.mark.anyio
    async def test_no_variable(self):
        """A graph that no variable of the caller holds keeps having no name."""
        holder = [Graph(nodes=(Up, Check))]
        await holder[0].run(Up(), state=Counter())
        assert holder[0].name is None

    @pytest.mark.anyio
    async def test_not_wanted(self):
        """`infer_name=False` leaves it alone in every method."""
        local = Graph(nodes=(Up, Check))
        persistence = SimpleStatePersistence[Counter, int]()
        await local.run(Up(), state=Counter(), infer_name=False)
        async with local.iter(Up(), state=Counter(), infer_name=False):
            pass
        await local.initialize(Up(), persistence, state=Counter(), infer_name=False)
        async with local.iter_from_persistence(persistence, infer_name=False):
            pass
        local.mermaid_code(infer_name=False)
        assert local.name is None

    @pytest.mark.anyio
    async def test_given(self):
        """A name that is given stays."""
        local = Graph(nodes=(Up, Check), name='given')
        await local.run(Up(), state=Counter())
        assert local.name == 'given'


def test_import_does_not_warn():
    """Importing and making a graph does not warn of the host's deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        importlib.reload(graphkeep.graph)
        Graph(nodes=(Up, Check))
