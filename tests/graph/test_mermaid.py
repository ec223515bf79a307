"""The diagram that `mermaid_code` draws: the same text on both hosts."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent
from typing import Annotated, Any, ClassVar, Never

import pytest
from pydantic_graph import BaseNode, Edge, End, GraphRunContext

from graphkeep.graph import Graph


@dataclass
class Ask(BaseNode[None, None, Never]):
    """Ask a question.

    Then wait.


    For an answer.
    """

    docstring_notes: ClassVar[bool] = True

    async def run(self, ctx: GraphRunContext[None, None]) -> Annotated[Answer, Edge(label='ask')]:
        return Answer()


@dataclass
class Answer(BaseNode[None, None, str]):
    async def run(
        self, ctx: GraphRunContext[None, None]
    ) -> Ask | Jump | Annotated[End[str], Edge(label='success')]:
        return End('yes')


@dataclass
class Jump(BaseNode[None, None, Never]):
    docstring_notes: ClassVar[bool] = True  # and no docstring but the one that `dataclass` makes

    @classmethod
    def get_note(cls) -> str | None:
        return 'anywhere'

    async def run(self, ctx: GraphRunContext[None, None]) -> BaseNode[None, None, Any]:
        return Ask()


graph = Graph(nodes=(Ask, Answer, Jump), name='questions')

PLAIN = dedent("""\
    stateDiagram-v2
      Ask --> Answer
      Answer --> Ask
      Answer --> Jump
      Answer --> [*]
      Jump --> Ask
      Jump --> Answer
      Jump --> Jump""")


def test_edges_only():
    """Without title, labels and notes the diagram is the edges, in the order of the nodes."""
    assert graph.mermaid_code(title=False, edge_labels=False, notes=False) == PLAIN


def test_everything():
    """Title, direction, start, labels, notes and highlights each have their place."""
    code = graph.mermaid_code(
        start_node=Ask,
        highlighted_nodes=[Answer, 'Ask', Jump()],
        highlight_css='fill:#fff',
        direction='LR',
    )
    assert code == dedent("""\
        ---
        title: questions
        ---
        stateDiagram-v2
          direction LR
          [*] --> Ask
          Ask --> Answer: ask
          note right of Ask
            Ask a question.
            Then wait.
            For an answer.
          end note
          Answer --> Ask
          Answer --> Jump
          Answer --> [*]: success
          Jump --> Ask
          Jump --> Answer
          Jump --> Jump
          note right of Jump
            anywhere
          end note

        classDef highlighted fill:#fff
        class Answer highlighted
        class Ask highlighted
        class Jump highlighted""")


@pytest.mark.parametrize('start', [Ask, Ask(), 'Ask', [Ask], ('Ask',)])
def test_start_node(start: Any):
    """A start node is named by its class, an instance or its id, alone or in a sequence."""
    assert '\n  [*] --> Ask\n' in graph.mermaid_code(start_node=start)


def test_several_start_nodes():
    """A graph may be entered at several nodes."""
    code = graph.mermaid_code(start_node=(Ask, Jump))
    assert [line for line in code.splitlines() if '[*] -->' in line] == ['  [*] --> Ask', '  [*] --> Jump']


def test_title():
    """The title is the graph's name unless another one is given; without a name there is none."""
    assert graph.mermaid_code(title='mine').startswith('---\ntitle: mine\n---\n')
    assert graph.mermaid_code().startswith('---\ntitle: questions\n---\n')
    nameless = Graph(nodes=(Ask, Answer, Jump))
    assert nameless.mermaid_code(infer_name=False).startswith('stateDiagram-v2\n')


def test_default_highlight():
    """Highlighted nodes are yellow unless told otherwise."""
    code = graph.mermaid_code(highlighted_nodes=Ask)
    assert code.endswith('\n\nclassDef highlighted fill:#fdff32\nclass Ask highlighted')


def test_docstring_of_a_dataclass():
    """The docstring that `dataclass` writes is no note."""

    @dataclass
    class Generated(BaseNode[None, None, int]):
        docstring_notes: ClassVar[bool] = True
        value: int = 0

        async def run(self, ctx: GraphRunContext[None, None]) -> End[int]:
            return End(1)

    assert Graph(nodes=(Generated,)).node_defs['Generated'].note is None


def test_unknown_nodes():
    """A start node or a node to highlight that is not in the graph is named."""
    with pytest.raises(LookupError, match=r'^Start node "Nowhere" is not in the graph.$'):
        graph.mermaid_code(start_node='Nowhere')
    with pytest.raises(LookupError, match=r'^Highlighted node "Nowhere" is not in the graph.$'):
        graph.mermaid_code(highlighted_nodes=('Ask', 'Nowhere'))
