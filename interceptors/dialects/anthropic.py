"""Anthropic messages: the events from `message_start` to `message_stop`, and the `message` of an unstreamed response.

Source: the types of Anthropic's Python SDK, `anthropic.types`. A message's `type` says what it is; an event type that says
otherwise is a contradiction. The blocks of tools that the provider runs itself (`server_tool_use` and their results) pass unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from .errors import DialectError, dict_in, int_in, list_in, str_in
from .parts import Block, Finish, Kind, Part, ProviderError, Usage, input_text
from .reader import Made, Reader, error_of, finish_of, usage_of

__all__ = ["AnthropicReader"]

_TYPES = frozenset(
    (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    )
)
_BLOCKS: dict[str, tuple[Kind, str]] = {"text": ("text", "text"), "thinking": ("thinking", "thinking")}
_DELTAS: dict[str, tuple[Kind, str]] = {"text_delta": ("text", "text"), "thinking_delta": ("thinking", "thinking")}
_DETAILS = (
    ("", "cache_read_input_tokens"),
    ("", "cache_creation_input_tokens"),
    ("output_tokens_details", "thinking_tokens"),
)


class AnthropicReader(Reader):
    """A text ends with its `content_block_stop`, or with the message."""

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"stop_reason"\s*:\s*"',
        Usage: rb'"usage"\s*:\s*\{',
        ProviderError: rb'"error"',
    }
    default_reason: ClassVar[str] = "refusal"

    def __init__(self, *, deltas: bool = True, hold_tool_calls: bool = False) -> None:
        super().__init__(deltas=deltas, hold_tool_calls=hold_tool_calls)
        self._started: dict[int, None] = {}  # content blocks that have begun and not stopped
        self._output_tokens = 0

    def read(self, message: Any, event_type: str | None = None) -> list[Part]:
        if not isinstance(message, dict):
            return []
        kind = str_in(message, "type")
        if kind is None:
            kind = event_type
        elif event_type is not None and kind != event_type and (kind in _TYPES or event_type in _TYPES):
            raise DialectError("the event's type is not the type in its data")
        self.commit()
        parts: list[Part] = []
        if kind == "content_block_delta":
            if self.deltas:
                self._read_delta(parts, message, event_type)
        elif kind == "content_block_start":
            if self.deltas:
                self._read_start(parts, message, event_type)
        elif kind == "content_block_stop":
            if self.deltas:
                index = _index(message)
                self._leaving.append(partial(self._started.pop, index, None))
                self._stop(parts, index, message)
        elif kind == "message_start":
            started = dict_in(message, "message") or {}
            self.model = str_in(started, "model", "message.") or self.model
            self._read_usage(parts, started)
        elif kind == "message_delta":
            delta = dict_in(message, "delta") or {}
            reason = str_in(delta, "stop_reason", "delta.")
            if reason is not None:
                parts.append(finish_of(0, reason))
            self._read_usage(parts, message)
        elif kind == "message_stop":
            self._end_all(parts)
        elif kind == "message":
            self._read_whole(parts, message)
        elif kind == "error" and message.get("error") is not None:
            parts.append(error_of(message, "error"))
        return parts

    def _read_start(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None:
        index = _index(message)
        if index in self._started:
            raise DialectError("content_block_start: this index has begun before")
        content = dict_in(message, "content_block") or {}
        self._leaving.append(partial(self._started.setdefault, index))
        kind = str_in(content, "type", "content_block.")
        if kind in _BLOCKS:
            of, key = _BLOCKS[kind]
            if str_in(content, key, "content_block."):
                self._text(parts, Block(of, index), content, key, (event_type, message))
        elif kind == "tool_use":
            block = Block("tool_call", index)
            begun = block in self._calls
            call_id, name = str_in(content, "id", "content_block."), str_in(content, "name", "content_block.")
            call = self._begin_call(block, call_id, name)
            if content.get("input") and not begun:  # all of it at once: deltas, if there were any, would replace it
                self._whole_call(parts, block, call_id, name, input_text(content["input"]), content, "input")
            else:
                self._arguments(parts, block, call, {}, "partial_json", (event_type, message))

    def _read_delta(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None:
        index = _index(message)
        delta = dict_in(message, "delta") or {}
        kind = str_in(delta, "type", "delta.")
        if kind in _DELTAS:
            of, key = _DELTAS[kind]
            if str_in(delta, key, "delta."):
                self._text(parts, Block(of, index), delta, key, (event_type, message))
        elif kind == "input_json_delta":
            block = Block("tool_call", index)
            str_in(delta, "partial_json", "delta.")
            call = self._calls.get(block)
            if call is not None:  # else a tool's that the provider runs itself
                self._arguments(parts, block, call, delta, "partial_json", (event_type, message))

    def _stop(self, parts: list[Part], index: int, message: dict[str, Any]) -> None:
        for kind, _ in _BLOCKS.values():
            self._end(parts, Block(kind, index))
        block = Block("tool_call", index)
        if block in self._calls:
            self._complete(parts, block, message)

    def _read_usage(self, parts: list[Part], holder: dict[str, Any]) -> None:
        usage = dict_in(holder, "usage")
        if usage is not None:
            part = usage_of(usage, self.model, ("input_tokens", "output_tokens"), _DETAILS)
            self._output_tokens = part.output or self._output_tokens
            parts.append(part)

    def _read_whole(self, parts: list[Part], message: dict[str, Any]) -> None:
        self.model = str_in(message, "model") or self.model
        if self.deltas:
            for index, content in enumerate(list_in(message, "content")):
                kind = str_in(content, "type", "content[].")
                if kind in _BLOCKS:
                    of, key = _BLOCKS[kind]
                    str_in(content, key, "content[].")
                    self._whole(parts, Block(of, index), content, key)
                elif kind == "tool_use":
                    call_id, name = str_in(content, "id", "content[]."), str_in(content, "name", "content[].")
                    arguments = input_text(content.get("input"))
                    self._whole_call(
                        parts, Block("tool_call", index), call_id, name, arguments, content, "input", whole=True
                    )
        reason = str_in(message, "stop_reason")
        if reason is not None:
            parts.append(finish_of(0, reason))
        self._read_usage(parts, message)

    def knows(self, event_type: str) -> bool:
        return event_type in _TYPES

    def says_nothing(self, message: dict[str, Any]) -> bool:
        delta = message.get("delta")
        return (
            isinstance(delta, dict)
            and not any(value for name, value in delta.items() if name != "type")
            and "index" in message
        )

    def is_body(self, message: dict[str, Any]) -> bool:
        return message.get("type") == "message"

    def opens(self, message: dict[str, Any]) -> bool:
        return "content_block" in message

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        delta = {
            "text": {"type": "text_delta", "text": text},
            "thinking": {"type": "thinking_delta", "thinking": text},
            "tool_call": {"type": "input_json_delta", "partial_json": text},
        }[block.kind]
        return {"type": "content_block_delta", "index": block.output, "delta": delta}

    def make_delta(self, block: Block, text: str) -> Made:
        made = super().make_delta(block, text)
        return Made(made.event and "content_block_delta", made.data)  # the last one may have been a start

    def make_ending(self, reason: str | None = None) -> list[Made]:
        messages: list[dict[str, Any]] = [{"type": "content_block_stop", "index": index} for index in self._started]
        delta = {"stop_reason": reason or self.default_reason, "stop_sequence": None}
        messages += [
            {"type": "message_delta", "delta": delta, "usage": {"output_tokens": self._output_tokens}},
            {"type": "message_stop"},
        ]
        self._started.clear()
        return [Made(message["type"], message) for message in messages]

    def cut_body(self, message: dict[str, Any], block: Block, text: str, reason: str | None = None) -> None:
        content = message["content"]
        del content[block.output + (block.kind != "tool_call") :]
        if block.kind != "tool_call":
            content[-1][block.kind] = text
        message["stop_reason"] = reason or self.default_reason
        message["stop_sequence"] = None


def _index(message: dict[str, Any]) -> int:
    index = int_in(message, "index")
    if index is None:
        raise DialectError("index is absent, expected the number of a content block")
    return index
