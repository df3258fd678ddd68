"""Traces: the context that requests carry, one span for each exchange, and its export.

- `context`: W3C Trace Context, without OpenTelemetry;
- `span`: the span of an exchange while it runs;
- `meta`: the context inside MCP messages;
- `settings`: what the environment asks for;
- `tracing`: what a worker needs for traces;
- `otel`: the OpenTelemetry SDK. Only `tracing` imports it, and only if traces are on;
"""

from .context import TRACE_FIELDS, TraceContext, read_context
from .meta import context_in_message, message_with_context
from .span import Attributes, ExchangeSpan, FinishedSpan, SpanEvent
from .tracing import FLUSH_S, Tracing, open_tracing

__all__ = [
    "FLUSH_S",
    "TRACE_FIELDS",
    "Attributes",
    "ExchangeSpan",
    "FinishedSpan",
    "SpanEvent",
    "TraceContext",
    "Tracing",
    "context_in_message",
    "message_with_context",
    "open_tracing",
    "read_context",
]
