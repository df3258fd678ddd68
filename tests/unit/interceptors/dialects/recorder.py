"""Interceptors of messages that note what they see, and that change it, for the tests in this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interceptors import Interceptor, StreamContext
from interceptors.dialects import (
    Finish,
    MessageInterceptor,
    MessageStream,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCall,
    ToolCallDelta,
    Usage,
)


class Recorder(MessageInterceptor):
    """Notes every part as a line like `text 0 Hi`. `seen` is of the last stream."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def open_messages(self, context: StreamContext) -> MessageStream:
        self.seen = []
        return RecorderStream(self.seen)


def _how(part: TextDelta | TextEnd) -> str:
    return "(again)" if part.repeated else "(whole)" if part.whole else ""


class RecorderStream(MessageStream):
    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def _note(self, *parts: object) -> None:
        self._seen.append(" ".join(str(part) for part in parts if part != ""))

    def on_text_delta(self, delta: TextDelta) -> None:
        self._note(delta.kind, delta.block.output, delta.text, _how(delta))

    def on_text_end(self, end: TextEnd) -> None:
        self._note(end.kind, "ends", end.block.output, _how(end))

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        self._note("arguments", delta.block.output, delta.block.part, delta.arguments)

    def on_tool_call(self, call: ToolCall) -> None:
        where = call.block.output, call.block.part
        self._note("call", *where, call.id, call.name, call.arguments)

    def on_finish(self, finish: Finish) -> None:
        self._note("finish", finish.block.output, finish.reason)

    def on_usage(self, usage: Usage) -> None:
        self._note("usage", *usage_fields(usage))

    def on_provider_error(self, error: ProviderError) -> None:
        self._note("error", error.type, error.code, error.message)


def usage_fields(usage: Usage) -> tuple[Any, ...]:
    return usage.model, usage.input, usage.output, usage.cached, usage.reasoning


class Made(MessageInterceptor):
    """Hooks that are functions of the stream and the part: `Made(on_text_delta=...)`."""

    def __init__(
        self, *, holds_tool_calls: bool = False, **hooks: Callable[[MessageStream, Any], object]
    ) -> None:
        def method(hook: Callable[[MessageStream, Any], object]) -> Any:
            return lambda self, part: (hook(self, part), None)[1]

        members: dict[str, Any] = {name: method(hook) for name, hook in hooks.items()}
        self.stream = type(
            "MadeStream", (MessageStream,), {**members, "holds_tool_calls": holds_tool_calls}
        )

    def open_messages(self, context: StreamContext) -> MessageStream:
        return self.stream()


def _keep(stream: Any, delta: Any) -> None:
    stream.kept = getattr(stream, "kept", {})
    stream.kept[delta.block] = stream.kept.get(delta.block, "") + delta.text
    delta.drop()


def _release(stream: Any, end: Any) -> None:
    end.add(getattr(stream, "kept", {}).pop(end.block, ""))


CHANGES: dict[str, Callable[[], Interceptor]] = {
    "upper": lambda: Made(
        on_text_delta=lambda _, delta: setattr(delta, "text", delta.text.upper())
    ),
    "drop": lambda: Made(on_text_delta=lambda _, delta: delta.drop()),
    "late": lambda: Made(on_text_delta=_keep, on_text_end=_release),
    "calls": lambda: Made(
        on_tool_call=lambda _, call: setattr(call, "arguments", '{"b":2}'), holds_tool_calls=True
    ),
    "finish": lambda: Made(on_text_delta=lambda stream, _: stream.finish(text="!")),
    "finish at the end": lambda: Made(on_text_end=lambda stream, _: stream.finish(text="!")),
    "finish at a call": lambda: Made(
        on_tool_call=lambda stream, _: stream.finish(), holds_tool_calls=True
    ),
    "finish at arguments": lambda: Made(on_tool_call_delta=lambda stream, _: stream.finish()),
}
"""An interceptor for each kind of change."""
