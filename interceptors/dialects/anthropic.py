"""Anthropic messages: the events from `message_start` to `message_stop`, and the unstreamed
`message`.

Source: the types of Anthropic's Python SDK, `anthropic.types`. The `type` in the data
determines the event; without one, the event's type does. Calls of tools that the provider runs
itself (`server_tool_use`, `mcp_tool_use`) are not `ToolCall`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from .anthropic_blocks import KINDS, BlockReader
from .calls import Call, Place
from .cutting import STOPPED, bare
from .parts import (
    Block,
    Finish,
    Kind,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCallDelta,
    Usage,
    arguments_text,
)
from .provider_words import error_in, finish_of
from .reader import Made, Origin
from .unread import Unread

__all__ = ["AnthropicReader"]

_BLOCKS: dict[str, tuple[Kind, str]] = {
    "text": ("text", "text"),
    "thinking": ("thinking", "thinking"),
}
_DELTAS: dict[str, tuple[Kind, str]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
}
# Of the kind `other`. `input_json_delta` is the input of a tool that the provider runs.
_OTHERS = {"input_json_delta": "partial_json", "compaction_delta": "content"}
_TYPES = frozenset(
    (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "message",
    )
)


class AnthropicReader(BlockReader):
    """A text ends with its `content_block_stop`, with a block that begins at its index, or with the
    message.
    """

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"stop_reason"\s*:\s*"',
        Usage: rb'"usage"\s*:\s*[^\sn]',  # anything but null
        ProviderError: rb'"error"|"message"\s*:\s*"',
    }
    default_reason: ClassVar[str] = "refusal"

    def _read(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None:
        kind = message.get("type")
        if not isinstance(kind, str):
            kind = self._str(message, "type") or event_type
        if event_type == "error" and kind not in _TYPES:
            kind = event_type
        if kind == "content_block_delta":
            if self.deltas:
                self._read_delta(parts, message, event_type)
        elif kind == "content_block_start":
            if self.deltas:
                content = self._dict(message, "content_block") or {}
                self._start(parts, self._index(message), content, (event_type, message))
        elif kind == "content_block_stop":
            if self.deltas:
                self._read_stop(parts, message)
        elif kind == "message_start":
            self._read_message_start(parts, message, event_type)
        elif kind == "message_delta":
            self._read_message_delta(parts, message)
        elif kind == "message_stop":
            self._endless.clear()
            self._end_all(parts)
        elif kind == "message":
            self._read_message(parts, message)
        if kind == "error" or "error" in message:
            error = error_in(message, is_error=kind == "error")
            if error is not None:
                parts.append(error)

    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None:
        self._read_message(parts, message)
        error = error_in(message, is_error=message.get("type") == "error")
        if error is not None:
            parts.append(error)

    def _read_message_start(
        self, parts: list[Part], message: dict[str, Any], event_type: str | None
    ) -> None:
        self._leaving.append(self._note_message)
        started = self._dict(message, "message") or {}
        self.model = self._str(started, "model", "message.") or self.model
        if self.deltas:
            origin = event_type, message
            for index, content in self._items(started, "content", "message."):
                self._start(parts, index, content, origin, list_of=started["content"])
        self._read_usage(parts, started)

    def _start(
        self,
        parts: list[Part],
        index: int,
        content: dict[str, Any],
        origin: Origin,
        list_of: list[Any] | None = None,
    ) -> None:
        """A block begins; another one at its index ends. `list_of`: the list that has the block."""
        self._end_for_another(parts, index)
        self._begun[index] = self._begun.get(index, 0) + 1
        self._order.append(index)
        self._newest = index
        self._call_at[index] = None
        kind = content.get("type")
        if isinstance(kind, str) and kind in _BLOCKS:
            of, key = _BLOCKS[kind]
            if self._str(content, key, "content_block."):
                self._text(parts, self._block(of, index), content, key, origin)
        elif kind == "tool_use":
            self._start_call(parts, index, content, origin[1], list_of)
        self._leaving.append(
            partial(self._note_start, index, self._call_at[index], list_of is not None)
        )

    def _end_for_another(self, parts: list[Part], index: int) -> None:
        for of in KINDS:
            block = self._block(of, index)
            if block in self._open:
                self._endless.discard(block)
                self._end(parts, block)
        before = self._call_at.get(index)
        if before is not None:
            self._endless.discard(before.block)
            self._complete(parts, before)

    def _start_call(
        self,
        parts: list[Part],
        index: int,
        content: dict[str, Any],
        message: dict[str, Any],
        list_of: list[Any] | None,
    ) -> None:
        call_id = self._id(content, "id", "content_block.")
        call = self._begin_call(Call(self._block("tool_call", index), call_id, index))
        self._call_at[index] = call
        self._name_call(call, self._str(content, "name", "content_block."))
        self._touch(call, list_of, message if list_of is None else content)
        if not isinstance(content.get("input"), dict):
            if content.get("input") is not None:
                self._odd("content_block.input", content["input"], "an object")
            content.setdefault("input", {})
        # Not a piece: deltas replace the input that a call begins with.
        call.begins = arguments_text(content["input"]) if content["input"] else ""
        call.begun = Place(content, "input", True)
        parts.append(ToolCallDelta(call.block, call.id, call.name, call.begins, content, "input"))

    def _read_delta(
        self, parts: list[Part], message: dict[str, Any], event_type: str | None
    ) -> None:
        index = self._begun_at(message)
        delta = message.get("delta")
        if not isinstance(delta, dict):
            if delta is not None:
                self._odd("delta", delta, "an object")
            return
        kind = delta.get("type")
        if not isinstance(kind, str):
            return
        if kind in _DELTAS:
            of, key = _DELTAS[kind]
            if self._str(delta, key, "delta."):
                self._text(parts, self._block(of, index), delta, key, (event_type, message))
        elif kind == "input_json_delta" and (call := self._call_at.get(index)) is not None:
            self._touch(call, None, message)
            self._arguments(parts, call, delta, "partial_json")
        elif self.others and kind in _OTHERS and self._str(delta, _OTHERS[kind], "delta."):
            block = self._block("other", index)
            self._text(parts, block, delta, _OTHERS[kind], (event_type, message))

    def _read_stop(self, parts: list[Part], message: dict[str, Any]) -> None:
        index = self._begun_at(message)
        self._leaving.append(partial(self._note_stop, index))
        for kind in KINDS:
            self._end(parts, self._block(kind, index))
        call = self._call_at.get(index)
        if call is not None:
            self._complete(parts, call)
            self._touch(call, None, message)

    def _read_message_delta(self, parts: list[Part], message: dict[str, Any]) -> None:
        delta = self._dict(message, "delta") or {}
        reason = self._str(delta, "stop_reason", "delta.")
        if reason:
            parts.append(finish_of(0, reason))
        self._read_usage(parts, message)

    def _read_usage(self, parts: list[Part], holder: dict[str, Any]) -> None:
        usage = self._usage(parts, holder)
        tokens = usage.get("output_tokens") if usage is not None else None
        if isinstance(tokens, (int, float)) and tokens:
            self._output_tokens = tokens

    def _read_message(self, parts: list[Part], message: dict[str, Any]) -> None:
        """A whole message."""
        self.model = self._str(message, "model") or self.model
        if self.deltas:
            for index, content in self._items(message, "content"):
                kind = content.get("type")
                if isinstance(kind, str) and kind in _BLOCKS:
                    of, key = _BLOCKS[kind]
                    if self._str(content, key, "content[].") is not None:
                        self._whole(parts, self._block(of, index), content, key)
                elif kind == "tool_use":
                    self._read_whole_call(parts, index, content, message["content"])
        reason = self._str(message, "stop_reason")
        if reason:
            parts.append(finish_of(0, reason))
        self._read_usage(parts, message)

    def _read_whole_call(
        self, parts: list[Part], index: int, content: dict[str, Any], list_of: list[Any]
    ) -> None:
        call = self._call_at.get(index)
        if call is None:
            call_id = self._id(content, "id", "content[].")
            call = self._begin_call(Call(self._block("tool_call", index), call_id, index))
        name = self._str(content, "name", "content[].")
        call = self._whole_call(parts, call, name, content, "input", decoded=True)
        self._touch(call, list_of, content)

    def is_empty(self, message: dict[str, Any]) -> bool:
        delta = message.get("delta")
        return (
            isinstance(delta, dict)
            and not any(value for name, value in delta.items() if name != "type")
            and "index" in message
        )

    def keeps_alive(self, message: Any) -> bool:
        return isinstance(message, dict) and message.get("type") == "ping" and not self.calls

    def opens(self, message: dict[str, Any]) -> bool:
        return "content_block" in message

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        delta = {"type": "text_delta", "text": text}
        if block.kind == "thinking":
            delta = {"type": "thinking_delta", "thinking": text}
        elif block.kind == "other":
            kind = message["delta"]["type"]
            delta = {"type": kind, _OTHERS[kind]: text}
        return {"type": "content_block_delta", "index": block.output, "delta": delta}

    def make_delta(self, block: Block, text: str) -> Made:
        made = super().make_delta(block, text)
        # The template may be a start, with the event type of that.
        return Made(made.event and "content_block_delta", made.data)

    def make_ending(self, reason: str | None = None) -> list[Made]:
        messages: list[dict[str, Any]] = []
        if not self._has_started:
            empty = {"id": "", "type": "message", "role": "assistant", "model": self.model or ""}
            usage = {"input_tokens": 0, "output_tokens": 0}
            end: dict[str, Any] = {
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage,
            }
            messages.append({"type": "message_start", "message": {**empty, **end}})
        messages += [{"type": "content_block_stop", "index": index} for index in self._started]
        delta = {"stop_reason": reason or self.default_reason, "stop_sequence": None}
        tokens = {"output_tokens": self._output_tokens}
        messages.append({"type": "message_delta", "delta": delta, "usage": tokens})
        messages.append({"type": "message_stop"})
        self._started.clear()
        return [Made(message["type"], message) for message in messages]

    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        content = message.get("content")
        if not isinstance(content, list):
            message.clear()
            message.update({"type": "error", "error": {"type": "api_error", "message": STOPPED}})
            return
        if isinstance(part, Unread):
            bare(message, ("id", "type", "role", "model", "usage"))
            message["content"] = []
        else:
            del content[part.block.output + (part.block.kind != "tool_call") :]
            if isinstance(part, (TextDelta, TextEnd)):
                content[-1][part.block.kind] = text
        message["stop_reason"] = reason or self.default_reason
        message["stop_sequence"] = None
