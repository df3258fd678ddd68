"""The faster encoder of spans makes the messages that the SDK's own makes."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from proxy.telemetry import FinishedSpan, TraceContext
from proxy.telemetry.otel import OtelSdk
from proxy.telemetry.otlp import encode
from proxy.telemetry.span import ExchangeSpan, SpanEvent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EVENTS = [
    SpanEvent("retry", 1.5, {"weirpool.endpoint": "http://a", "error.type": "timeout"}),
    SpanEvent("first_byte", 1.75, {}),
]
SPANS: tuple[tuple[TraceContext | None, dict[str, Any], list[SpanEvent], str | None], ...] = (
    (None, {}, [], None),
    (None, {"url.path": "/v1", "server.port": 1, "weirpool.events": 0}, [], ""),
    (None, {"url.path": "/v1", "server.port": True, "weirpool.events": False}, EVENTS, "lost: é"),
    (None, {"url.path": "/v1", "server.port": 1.0, "weirpool.events": 0.0}, EVENTS[1:], None),
    (None, {"gen_ai.response.finish_reasons": ["stop", "length"], "none": []}, [], None),
    (
        None,
        {"url.path": "/v1", "too big": 2**70, "half": ["\ud800"], "server.port": 1},
        EVENTS,
        None,
    ),
    (TraceContext(TRACE, SPAN, 1), {"weirpool.events": -1, "big": 2**62}, [], None),
    (TraceContext(TRACE, SPAN, 3, b"a=1,b=2"), {"path": "\U0001f30a" * 9}, EVENTS, "x"),
)


def test_the_messages_are_those_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    exported: list[ReadableSpan] = []
    monkeypatch.setattr(BatchSpanProcessor, "on_end", lambda _, span: exported.append(span))
    sdk = OtelSdk(["otlp_proto_http"])
    for parent, attributes, events, error in SPANS:
        span = ExchangeSpan(parent, 1.0, lambda *_: True)
        span.events.extend(events)
        sdk.export(FinishedSpan(span, "POST /v1", 2.0, attributes, error))
    assert trace_exporter.encode_spans is encode
    for first in range(len(SPANS)):
        batch = exported[first:] + exported[:first]
        assert encode(batch) == encode_spans(batch)
    sdk.close()
