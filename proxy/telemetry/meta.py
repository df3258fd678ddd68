"""The trace context inside MCP messages: `params._meta` of a request or a notification.

MCP SEP-414. SDKs put it there because not every transport of MCP has headers. All other values
of a message keep their bytes. A batch (2025-03-26) stays as it is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .context import TraceContext, read_context
from .span import ExchangeSpan

__all__ = ["context_in_message", "message_with_context"]

_MARK = b"traceparent"
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text = msgspec.json.Decoder(str)


def context_in_message(body: bytes | bytearray | memoryview) -> TraceContext | None:
    """The context in a message; None if there is none, or if it cannot be read. Never raises."""
    if _MARK not in bytes(body):
        return None
    try:
        meta = _members.decode(_members.decode(_members.decode(body)["params"])["_meta"])
        parent = _text.decode(meta["traceparent"]).encode("ascii")
        state = _text.decode(meta["tracestate"]).encode("ascii") if "tracestate" in meta else b""
    except (KeyError, ValueError, RecursionError):
        return None
    return read_context([parent], [state])


def message_with_context(body: bytes, span: ExchangeSpan) -> bytes | None:
    """A message with the span's context in place of the client's; None if it is neither a request
    nor a notification. Never raises.
    """
    try:
        message = _members.decode(body)
        if "method" not in message:
            return None
        params = _members.decode(message["params"]) if "params" in message else {}
        given = _members.decode(params["_meta"]) if "_meta" in params else {}
    except (ValueError, RecursionError):
        return None
    meta: dict[str, Any] = {**given, "traceparent": span.traceparent}
    meta.pop("tracestate", None)
    if span.tracestate:
        meta["tracestate"] = span.tracestate.decode("ascii")
    return msgspec.json.encode({**message, "params": {**params, "_meta": meta}})
