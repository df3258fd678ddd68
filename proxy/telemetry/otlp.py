"""Spans as OTLP messages: the same that the SDK's encoder makes, in a third of the time.

Most attributes of a span are those of many others. Each is encoded once, and then joined: encoded
protobuf messages that are joined are one message with the fields of all. It encodes the spans of
`otel` only: they have one resource, one scope and no links.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import StatusCode

__all__ = ["encode", "encode_faster"]

_KEPT = 1024
"""Encoded attributes that are kept: 1 MB with the longest values."""
_NO_ID = b""
_CODES = {
    StatusCode.UNSET: Status.StatusCode.STATUS_CODE_UNSET,
    StatusCode.OK: Status.StatusCode.STATUS_CODE_OK,
    StatusCode.ERROR: Status.StatusCode.STATUS_CODE_ERROR,
}


def encode_faster(exporter: type[SpanExporter]) -> None:
    """Let an exporter of the SDK use `encode`: the exporters for OTLP find the encoder as a global
    of their module. Other exporters stay as they are.
    """
    module: Any = sys.modules[exporter.__module__]
    if getattr(module, "encode_spans", None) is encode_spans:
        module.encode_spans = encode


def encode(spans: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
    """The message of a batch, which has at least one span."""
    message = encode_spans(spans[:1])
    encoded = message.resource_spans[0].scope_spans[0].spans
    for span in spans[1:]:
        try:
            encoded.add().MergeFromString(_encode_span(span))
        except (TypeError, ValueError):  # the SDK leaves out the attribute that has no encoding
            encoded[-1].CopyFrom(encode_spans([span]).resource_spans[0].scope_spans[0].spans[0])
    return message


def _encode_span(span: ReadableSpan) -> bytes:
    context, parent = span.context, span.parent
    assert context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    own = Span(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_span_id=_NO_ID if parent is None else parent.span_id.to_bytes(8, "big"),
        trace_state=context.trace_state.to_header() if context.trace_state else "",
        start_time_unix_nano=span.start_time,
        end_time_unix_nano=span.end_time,
        events=[
            Span.Event(
                name=event.name,
                time_unix_nano=event.timestamp,
                attributes=[_key_value(*item) for item in (event.attributes or {}).items()],
            )
            for event in span.events
        ],
    )
    status = span.status
    about = _encode_name(
        span.name,
        _CODES[status.status_code],
        status.description or "",
        is_remote=parent is not None and parent.is_remote,
    )
    return b"".join((own.SerializeToString(), about, *_attributes(span.attributes or {})))


def _attributes(attributes: Mapping[str, Any]) -> list[bytes]:
    return [
        _encode_attribute(name, tuple(value) if isinstance(value, list) else value)
        for name, value in attributes.items()
    ]


@lru_cache(_KEPT)
def _encode_name(
    name: str, code: Status.StatusCode.ValueType, description: str, *, is_remote: bool
) -> bytes:
    """A span with only the name, the status, and what all spans have."""
    flags = int(SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK)
    if is_remote:
        flags |= SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
    status = Status(code=code, message=description)
    kind = Span.SpanKind.SPAN_KIND_CLIENT
    alone = Span(name=name, kind=kind, status=status, flags=flags)
    encoded: bytes = alone.SerializeToString()
    return encoded


@lru_cache(_KEPT, typed=True)
def _encode_attribute(name: str, value: Any) -> bytes:
    """A span with only this attribute."""
    encoded: bytes = Span(attributes=[_key_value(name, value)]).SerializeToString()
    return encoded


def _key_value(name: str, value: Any) -> KeyValue:
    return KeyValue(key=name, value=_any_value(value))


def _any_value(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=map(_any_value, value)))
