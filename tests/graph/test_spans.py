"""The spans of a run: the same names and attributes on both hosts, and none where none are wanted."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import logfire_api
import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from pydantic_graph import BaseNode, End, GraphRunContext, _utils
from pydantic_graph.exceptions import GraphRuntimeError

from graphkeep._host import HAS_RUNNER
from graphkeep.graph import Graph
from graphkeep.memory import FullStatePersistence, SimpleStatePersistence
from graphkeep.resume import iter_or_resume

SPAN_CONTEXT = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
TRACEPARENT = f'00-{0xABC:032x}-{0xDEF:016x}-01'
NotConfiguredWarning = cast('type[Warning]', vars(_utils)['LogfireNotConfiguredWarning'])


@dataclass
class Down(BaseNode[None, None, str]):
    """Counts down."""

    number: int

    async def run(self, ctx: GraphRunContext[None, None]) -> Down | End[str]:
        return Down(self.number - 1) if self.number > 1 else End('done')


@dataclass
class Recorder:
    """Stands in for logfire and writes down what is opened and closed."""

    events: list[str] = field(default_factory=lambda: [])
    attributes: list[dict[str, Any]] = field(default_factory=lambda: [])
    _span: NonRecordingSpan = field(default_factory=lambda: NonRecordingSpan(SPAN_CONTEXT))

    @contextmanager
    def span(self, template: str, **attributes: Any) -> Generator[Any]:
        """Stand in for `Logfire.span`."""
        name = template.format(**attributes)  # some versions of the host leave the formatting to logfire
        self.attributes.append(attributes)
        self.events.append(f'+ {name}')
        yield self
        self.events.append(f'- {name}')


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Put a recorder in logfire's place."""
    recorder = Recorder()

    def span(_: Any, template: str, **attributes: Any) -> Any:
        return recorder.span(template, **attributes)

    monkeypatch.setattr(logfire_api.Logfire, 'span', span)
    return recorder


graph = Graph(nodes=(Down,), name='countdown')
RUN = ['+ run graph countdown', '+ run node Down', '- run node Down', '- run graph countdown']


@pytest.mark.anyio
async def test_run(recorder: Recorder):
    """A run has a span with its graph, and within it each node has one with its id and the node."""
    await graph.run(Down(2))
    assert recorder.events == [*RUN[:3], *RUN[1:]]
    assert recorder.attributes == [
        {'graph': graph},
        {'node_id': 'Down', 'node': Down(2)},
        {'node_id': 'Down', 'node': Down(1)},
    ]


@pytest.mark.anyio
async def test_resumed_run(recorder: Recorder):
    """A run that goes on from persistence has the same spans."""
    persistence = SimpleStatePersistence[None, str]()
    await graph.initialize(Down(1), persistence)
    assert recorder.events == []
    async with graph.iter_from_persistence(persistence) as run:
        await run.next()
    assert recorder.events == RUN


@pytest.mark.anyio
async def test_no_spans(recorder: Recorder):
    """A graph with `auto_instrument=False` makes no span."""
    await Graph(nodes=(Down,), auto_instrument=False).run(Down(2))
    assert recorder.events == []


@pytest.mark.anyio
@pytest.mark.parametrize('auto_instrument', [True, False])
async def test_span_given(recorder: Recorder, *, auto_instrument: bool):
    """A span that is handed in takes the place of the run's, also where none would be made."""
    mine = Graph(nodes=(Down,), name='mine', auto_instrument=auto_instrument)
    persistence = SimpleStatePersistence[None, str]()
    async with mine.iter(Down(2), persistence=persistence, span=recorder.span('given')) as run:
        await run.next()
        assert run._traceparent() == TRACEPARENT
    async with mine.iter_from_persistence(persistence, span=recorder.span('given again')) as run:
        await run.next()
        assert run._traceparent() == TRACEPARENT
    assert [e for e in recorder.events if 'node' not in e] == [
        '+ given',
        '- given',
        '+ given again',
        '- given again',
    ]


@pytest.mark.anyio
async def test_span_given_to_iter_or_resume(recorder: Recorder):
    """`iter_or_resume` uses the span that it is given, whether the run is begun or goes on."""
    persistence = FullStatePersistence[None, str]()
    for name in ('first', 'second'):
        async with iter_or_resume(graph, Down(2), persistence=persistence, span=recorder.span(name)) as run:
            await run.next()
            assert run._traceparent() == TRACEPARENT
    assert [e for e in recorder.events if 'node' not in e] == ['+ first', '- first', '+ second', '- second']


@pytest.mark.anyio
async def test_traceparent(recorder: Recorder):
    """A run and its result know the trace context of the run's span."""
    async with graph.iter(Down(1)) as run:
        assert run._traceparent() == TRACEPARENT
        await run.next()
    assert run.result is not None
    assert run.result._traceparent() == TRACEPARENT
    assert (await graph.run(Down(1)))._traceparent() == TRACEPARENT


@pytest.mark.anyio
async def test_no_traceparent():
    """Without a span there is no trace context: an error for who requires it, `None` for who does not."""
    async with Graph(nodes=(Down,), auto_instrument=False).iter(Down(1)) as run:
        await run.next()
    assert run.result is not None
    for traced in (run, run.result):
        assert traced._traceparent(required=False) is None
        with pytest.raises(GraphRuntimeError, match='No span was created for this graph run'):
            traced._traceparent()


@pytest.mark.anyio
async def test_error_passes_through_the_spans(recorder: Recorder):
    """What a node raises is seen by the node's span and the run's."""

    class Broken(Down):
        async def run(self, ctx: GraphRunContext[None, None]) -> Down | End[str]:
            raise ZeroDivisionError

    broken = Graph(nodes=(Broken, Down), name='broken')
    with pytest.raises(ZeroDivisionError):
        await broken.run(Broken(1))
    # neither was left as if all were well
    assert recorder.events == ['+ run graph broken', '+ run node Broken']


@pytest.mark.anyio
async def test_logfire_not_configured(monkeypatch: pytest.MonkeyPatch, recorder: Recorder):
    """A logfire that is installed and not configured does not make a run warn."""

    def span(_: Any, name: str, **attributes: Any) -> Any:
        warnings.warn(
            'No logs or spans will be created until `logfire.configure()` has been called.',
            NotConfiguredWarning,
            stacklevel=2,
        )
        return recorder.span(name, **attributes)

    monkeypatch.setattr(logfire_api.Logfire, 'span', span)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        await graph.run(Down(1))
    assert recorder.events == RUN


@pytest.mark.anyio
@pytest.mark.skipif(HAS_RUNNER, reason="pydantic-graph 1.x's runner keeps its filter while a span is open")
async def test_warnings_of_a_node(recorder: Recorder):
    """The process's warning filters are as ever while a node runs."""
    seen: list[Any] = []

    class Looks(Down):
        async def run(self, ctx: GraphRunContext[None, None]) -> Down | End[str]:
            seen.extend(warnings.filters)
            return End('')

    before = list(warnings.filters)
    await Graph(nodes=(Looks, Down)).run(Looks(1))
    assert seen == before
