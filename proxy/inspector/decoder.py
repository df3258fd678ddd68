"""`Decoder`: what the events of an answer contain, by the dialect of its route: texts, tool calls,
usage, errors, and the messages of MCP.

It reads copies, and ignores what it cannot read. The readers are those of the interceptors.
"""

from __future__ import annotations

from typing import Any

import msgspec

from interceptors import Request, StreamContext
from interceptors.dialects import (
    Finish,
    MessageInterceptor,
    MessageStream,
    ProviderError,
    TextDelta,
    ToolCall,
    Usage,
)
from interceptors.dialects.answers import has_messages
from interceptors.dialects.tokens import COUNTS
from interceptors.event import BodyEvent, Event
from interceptors.wire_event import WireEvent

__all__ = ["Decoder"]

_MAX_NAME = 256


class _Context(StreamContext):
    """Notes nothing: an interceptor that reads the same answer does."""

    __slots__ = ()

    def note_unread(self, reason: str, event_type: str | None = None, *, count: int = 1) -> None:
        """Ignore it."""


class _Parts(MessageStream):
    """Collects the parts of one answer."""

    sees_other_texts = True

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []

    def on_text_delta(self, delta: TextDelta) -> None:
        if not delta.repeated:
            self.parts.append({"kind": delta.kind, "text": delta.text})

    def on_tool_call(self, call: ToolCall) -> None:
        self.parts.append(
            {"kind": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}
        )

    def on_finish(self, finish: Finish) -> None:
        self.parts.append({"kind": "finish", "reason": finish.reason})

    def on_usage(self, usage: Usage) -> None:
        counts = {name: getattr(usage, name) for name in COUNTS}
        self.parts.append(
            {
                "kind": "usage",
                **{name: count for name, count in counts.items() if count is not None},
            }
        )

    def on_provider_error(self, error: ProviderError) -> None:
        self.parts.append(
            {"kind": "error", "type": error.type, "code": error.code, "text": error.message}
        )


class _Opens(MessageInterceptor):
    def open_messages(self, context: StreamContext) -> MessageStream:
        return _Parts()


class Decoder:
    """Reads one answer, event by event."""

    def __init__(self, dialect: str, path: str) -> None:
        context = _Context(Request(dialect=dialect, path=path))
        self._stream = _Opens().open_stream(context)
        self._is_mcp = has_messages(dialect)
        self._model: str | None = None

    @property
    def model(self) -> str | None:
        """The model that answers, once it was named."""
        stream = self._stream
        return stream.model if isinstance(stream, _Parts) else None

    @property
    def reads(self) -> bool:
        """Whether it can read anything."""
        return self._is_mcp or self._stream is not None

    def read(self, text: bytes, *, is_body: bool) -> list[dict[str, Any]]:
        """The parts of an event, or of a body, each with its `kind`. Raises nothing."""
        event: Event = BodyEvent(text) if is_body else WireEvent(text, 0, len(text))
        try:
            if self._is_mcp:
                return _messages_in(event.json())
            if not isinstance(self._stream, _Parts):
                return []
            self._stream.on_event(event)
        except Exception:  # content is the upstream's; what cannot be read is shown as text
            return []
        parts, self._stream.parts = self._stream.parts, []
        model = self.model
        if model is not None and model != self._model:
            self._model = model
            parts.insert(0, {"kind": "model", "model": model[:_MAX_NAME]})
        return parts


def _messages_in(payload: Any) -> list[dict[str, Any]]:
    """JSON-RPC messages, alone or in a batch (MCP 2025-03-26)."""
    parts = []
    for message in payload if isinstance(payload, list) else [payload]:
        if not isinstance(message, dict):
            continue
        method, error = message.get("method"), message.get("error")
        part: dict[str, Any] = {"kind": "message", "id": message.get("id")}
        if isinstance(method, str):
            part["method"] = method[:_MAX_NAME]
        elif error is not None:
            code = error.get("code") if isinstance(error, dict) else None
            part |= {"kind": "error", "code": None if code is None else str(code)}
            text = error.get("message") if isinstance(error, dict) else None
            part["text"] = text if isinstance(text, str) else ""
        else:
            result = message.get("result")
            part["text"] = msgspec.json.encode(result).decode()
        parts.append(part)
    return parts
