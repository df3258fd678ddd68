"""An OpenTelemetry collector in this process: OTLP over HTTP, spans as a test reads them."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.upstream import Peer, Request, open_upstream

__all__ = ["Collector", "Span", "open_collector"]


@dataclass
class Span:
    """One span, its values as Python has them."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    """"" without one."""
    state: str
    kind: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    error: str | None
    """The text of an error status, "" without a text; None without an error."""
    resource: dict[str, Any]

    @property
    def event_names(self) -> list[str]:
        return [name for name, _, _ in self.events]


@dataclass
class Collector:
    endpoint: str = ""
    """For `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    spans: list[Span] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that exports each span at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"}

    async def find(self, wanted: Callable[[Span], bool]) -> Span:
        """The first span that fits, when it is there."""
        with trio.fail_after(20):
            while not (found := [span for span in self.spans if wanted(span)]):
                await self._news.wait()
        return found[0]

    def take(self, request: Request) -> None:
        body = request.body
        if request.all("content-encoding") == [b"gzip"]:
            body = zlib.decompress(body, wbits=31)
        message = ExportTraceServiceRequest.FromString(body)
        self.requests.append(request)
        for group in message.resource_spans:
            resource = _values(group.resource.attributes)
            self.spans += [
                _span(span, resource) for part in group.scope_spans for span in part.spans
            ]
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def open_collector() -> AsyncIterator[Collector]:
    """Serve on a free loopback port."""
    collector = Collector()

    async def script(peer: Peer) -> None:
        while True:
            collector.take(await peer.request())
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with open_upstream(script) as upstream:
        collector.endpoint = upstream.url
        yield collector


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        state=span.trace_state,
        kind=span.SpanKind.Name(span.kind),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        events=[
            (event.name, event.time_unix_nano, _values(event.attributes)) for event in span.events
        ],
        error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
        resource=resource,
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)
