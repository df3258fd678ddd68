"""Interceptors of messages that note what they were shown, and that change it, for the tests beside
this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interceptors import StreamContext
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
    """Notes every part. `seen` is of the last stream."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def open_messages(self, context: StreamContext) -> MessageStream:
        self.seen = []
        return RecorderStream(self.seen)


def _how(part: TextDelta | TextEnd) -> str:
    return "again" if part.repeated else "whole" if part.whole else ""


class RecorderStream(MessageStream):
    def __init__(self, seen: list[tuple[Any, ...]]) -> None:
        self.seen = seen

    def on_text_delta(self, delta: TextDelta) -> None:
        self.seen.append((delta.kind, delta.block.output, delta.text, _how(delta)))

    def on_text_end(self, end: TextEnd) -> None:
        self.seen.append((f"{end.kind} ends", end.block.output, _how(end)))

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        self.seen.append(("arguments", delta.block.output, delta.block.part, delta.arguments))

    def on_tool_call(self, call: ToolCall) -> None:
        self.seen.append(
            ("call", call.block.output, call.block.part, call.id, call.name, call.arguments)
        )

    def on_finish(self, finish: Finish) -> None:
        self.seen.append(("finish", finish.block.output, finish.reason))

    def on_usage(self, usage: Usage) -> None:
        self.seen.append(
            ("usage", usage.model, usage.input, usage.output, usage.cached, usage.reasoning)
        )

    def on_provider_error(self, error: ProviderError) -> None:
        self.seen.append(("error", error.type, error.code, error.message))


class Made(MessageInterceptor):
    """Hooks that are functions of the stream and the part: `Made(on_text_delta=...)`."""

    def __init__(
        self, *, holds_tool_calls: bool = False, **hooks: Callable[[MessageStream, Any], object]
    ) -> None:
        def method(
            hook: Callable[[MessageStream, Any], object],
        ) -> Callable[[MessageStream, Any], None]:
            def call(self: MessageStream, part: Any) -> None:
                hook(self, part)

            return call

        members: dict[str, Any] = {name: method(hook) for name, hook in hooks.items()}
        self.stream = type(
            "MadeStream", (MessageStream,), {**members, "holds_tool_calls": holds_tool_calls}
        )

    def open_messages(self, context: StreamContext) -> MessageStream:
        return self.stream()
