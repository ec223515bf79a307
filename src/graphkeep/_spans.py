"""Spans around runs and nodes through `logfire_api`, which does nothing where logfire is not installed."""

from __future__ import annotations

import warnings
from typing import Any, Final

from logfire_api import Logfire, LogfireSpan

__all__ = ('new_span', 'traceparent_of')

# the scope under which pydantic-graph 1.x reports the same spans: queries and dashboards go on finding them
_logfire: Final = Logfire(otel_scope='pydantic-graph')


def new_span(name: str, **attributes: Any) -> LogfireSpan:
    """Make a span, to be entered; without the warning of a logfire that is installed and not configured."""
    # the filters are the whole process's: not to be kept changed while the span is open and other tasks run
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='No logs or spans will be created', category=UserWarning)
        return _logfire.span(name, **attributes)


try:
    from opentelemetry.trace import Span, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:  # pragma: no cover

    def traceparent_of(span: Any) -> str | None:
        """Return `None`: without OpenTelemetry there are no trace contexts."""
        return None

else:

    def traceparent_of(span: Any) -> str | None:
        """Return the W3C `traceparent` of an OpenTelemetry or logfire span, empty if it is in no trace."""
        carrier: dict[str, str] = {}
        inner = span if isinstance(span, Span) else getattr(span, '_span', None)
        if isinstance(inner, Span):
            TraceContextTextMapPropagator().inject(carrier, set_span_in_context(inner))
        return carrier.get('traceparent', '')
