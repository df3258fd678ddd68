"""The OpenTelemetry SDK: sampler, resource, exporters, as the `OTEL_*` variables set them.

The only module that imports OpenTelemetry. A span becomes one of the SDK's when it has ended: the
SDK's own spans cost 40 us each, because they can be changed by any thread.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from ..version import installed_version
from .context import TraceContext
from .settings import TracingUnavailable
from .span import ExchangeSpan, FinishedSpan

__all__ = ["OtelSdk"]

_PACKAGES = {
    "otlp_proto_http": "install weirpool[otel]",
    "otlp_proto_grpc": "install opentelemetry-exporter-otlp-proto-grpc, "
    "or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
}
_REPORT_S = 10.0
_QUOTES_CREDENTIALS = "opentelemetry.util.re"
"""A logger that is given the values of `OTEL_EXPORTER_OTLP_HEADERS`."""
_QUOTES_CLIENTS = "opentelemetry.trace.span"
"""A logger that quotes members of a client's `tracestate` that the SDK does not accept."""
_NO_CONTEXT = Context()


class OtelSdk:
    """The SDK of one process. Its threads end with `close`."""

    def __init__(self, exporters: Sequence[str]) -> None:
        """`exporters`: names of entry points. Raises `TracingUnavailable`."""
        _Reports.install()
        classes = [_load(name) for name in exporters]
        try:
            provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            self._longest = SpanLimits().max_span_attribute_length
            self._processors = [BatchSpanProcessor(make()) for make in classes]
        except (
            Exception
        ) as error:  # a certificate that is not there, a compression that is not known
            raise TracingUnavailable(f"an OTEL_* variable is not accepted: {error}") from None
        self._resource = provider.resource
        self._sampler = provider.sampler
        self._follows_parent = isinstance(self._sampler, ParentBased)
        self._bound = _bound_of(self._sampler)
        self._scope = InstrumentationScope("weirpool", installed_version())

    def samples(self, trace_id: str, parent: TraceContext | None) -> bool:
        """Whether a trace is exported.

        The SDK's samplers decide by the trace id alone, or follow the client's span.
        """
        if parent is not None and self._follows_parent:
            return parent.sampled
        if self._bound is not None:  # a third of the time that the SDK takes
            return int(trace_id[16:], 16) < self._bound
        decided = self._sampler.should_sample(_NO_CONTEXT, int(trace_id, 16), "", SpanKind.CLIENT)
        return decided.decision is Decision.RECORD_AND_SAMPLE

    def export(self, finished: FinishedSpan) -> None:
        """Queue a span for the exporters' threads. Never blocks."""
        span = finished.span
        state, parent = None, None
        if span.parent is not None:
            state = TraceState.from_header([span.tracestate.decode("ascii")])
            parent = _context_of(span.parent.span_id, span, span.parent.flags, state, remote=True)
        status = Status(StatusCode.UNSET)
        if finished.error is not None:
            status = Status(StatusCode.ERROR, _encodable(finished.error) or None)
        exported = ReadableSpan(
            _encodable(finished.name),
            _context_of(span.span_id, span, span.flags, state, remote=False),
            parent=parent,
            resource=self._resource,
            attributes=self._texts(finished.attributes),
            events=[
                Event(event.name, event.attributes, span.nanoseconds(event.at))
                for event in sorted(span.events, key=lambda event: event.at)
            ],
            kind=SpanKind.CLIENT,
            status=status,
            start_time=span.nanoseconds(span.started_at),
            end_time=span.nanoseconds(finished.ended_at),
            instrumentation_scope=self._scope,
        )
        for processor in self._processors:
            processor.on_end(exported)

    def close(self) -> None:
        """Send what is queued. Blocks for at most half a minute an exporter."""
        for processor in self._processors:
            processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK has no types here

    def _texts(self, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Attributes with their texts as they can be sent."""
        return {
            name: _encodable(value)[: self._longest] if isinstance(value, str) else value
            for name, value in attributes.items()
        }


def _encodable(text: str) -> str:
    """Text without halves of surrogates, with which a whole batch could not be encoded."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _bound_of(sampler: Sampler) -> int | None:
    """The lowest 64 bits of a trace id below which the SDK's ratio samplers take a new trace; None
    for another sampler.
    """
    found = re.fullmatch(
        r"(?:ParentBased\{root:)?TraceIdRatioBased\{([0-9.e-]+)\}.*", sampler.get_description()
    )
    return None if found is None else TraceIdRatioBased.get_bound_for_rate(float(found[1]))


def _context_of(
    span_id: str, span: ExchangeSpan, flags: int, state: TraceState | None, *, remote: bool
) -> SpanContext:
    ids = int(span.trace_id, 16), int(span_id, 16)
    return SpanContext(*ids, is_remote=remote, trace_flags=TraceFlags(flags), trace_state=state)


def _load(name: str) -> type[SpanExporter]:
    """An exporter's class, by its entry point. Raises `TracingUnavailable`."""
    points = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    remedy = _PACKAGES.get(
        name, "set OTEL_TRACES_EXPORTER to otlp, console or none, or install its package"
    )
    if not points:
        raise TracingUnavailable(f"the exporter {name} is not installed: {remedy}")
    try:
        found: type[SpanExporter] = points[0].load()
    except Exception as error:
        raise TracingUnavailable(f"the exporter {name} cannot be imported: {error}") from None
    return found


def _resource() -> Resource:
    resource = Resource.create()
    ours: dict[str, str] = {}
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        ours[SERVICE_NAME] = "weirpool"
    if SERVICE_VERSION not in resource.attributes and (version := installed_version()):
        ours[SERVICE_VERSION] = version
    return resource.merge(Resource(ours))


class _Reports(logging.Handler):
    """Logs what the SDK reports, such as a collector that is away: at most a line every 10 seconds,
    with the number of reports since the last one.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lock = threading.Lock()  # the exporters are threads
        self._count = 0
        self._reported_at = float("-inf")

    @classmethod
    def install(cls) -> None:
        """Handle all loggers of OpenTelemetry. Process-wide; once."""
        logger = logging.getLogger("opentelemetry")
        if not any(isinstance(handler, cls) for handler in logger.handlers):
            logger.addHandler(cls())
            logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _QUOTES_CLIENTS:
            return
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if now < self._reported_at + _REPORT_S:
                return
            self._reported_at = now
            count, self._count = self._count, 0
        if record.name == _QUOTES_CREDENTIALS:
            message = (
                "OTEL_EXPORTER_OTLP_HEADERS must be name=value pairs with commas between them, "
                "and values must be percent-encoded"
            )
        else:
            message = record.getMessage()
        structlog.get_logger("proxy").warning("tracing_failed", error=message, count=count)
