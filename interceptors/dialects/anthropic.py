"""Anthropic messages: the events from `message_start` to `message_stop`, and the `message` of an
unstreamed response.

Source: the types of Anthropic's Python SDK, `anthropic.types`. The `type` in the data says what an
event is; where there is none, the event's type does. Calls of tools that the provider runs itself
(`server_tool_use`, `mcp_tool_use`) are no `ToolCall`s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .parts import (
    Block,
    Finish,
    Kind,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCallDelta,
    Unread,
    Usage,
    arguments_text,
)
from .reader import (
    STOPPED,
    Call,
    Made,
    Origin,
    Place,
    Reader,
    Touch,
    bare,
    error_of,
    finish_of,
    note,
    own_error_of,
    replace_items,
)

__all__ = ["AnthropicReader"]

_BLOCKS: dict[str, tuple[Kind, str]] = {
    "text": ("text", "text"),
    "thinking": ("thinking", "thinking"),
}
_KINDS: tuple[Kind, ...] = ("text", "thinking", "other")
_DELTAS: dict[str, tuple[Kind, str]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
}
# `input_json_delta`: of a tool that the provider runs itself.
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


class AnthropicReader(Reader):
    """A text ends with its `content_block_stop`, with a block that begins at its index, or with the
    message.
    """

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"stop_reason"\s*:\s*"',
        Usage: rb'"usage"\s*:\s*[^\sn]',  # anything but null
        ProviderError: rb'"error"|"message"\s*:\s*"',
    }
    default_reason: ClassVar[str] = "refusal"

    def __init__(
        self,
        *,
        deltas: bool = True,
        whole_calls: bool = True,
        hold_tool_calls: bool = False,
        others: bool = False,
    ) -> None:
        super().__init__(
            deltas=deltas, whole_calls=whole_calls, hold_tool_calls=hold_tool_calls, others=others
        )
        self._has_started = False  # its `message_start` has left
        self._started: dict[int, None] = {}  # content blocks that have begun and not stopped
        self._begun: dict[int, int] = {}  # how many blocks have begun at each index
        self._call_at: dict[
            int, Call | None
        ] = {}  # the call that the block at an index is, if it is one
        self._order: list[
            int
        ] = []  # the indices of the blocks, in the order in which they have begun
        self._newest = 0  # the index of the block that began last
        self._output_tokens: int | float = 0
        # Where blocks are removed, those that follow move up: the index of each as it leaves, and
        # of the next that begins.
        self._moved: dict[int, int] = {}
        self._next = 0

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
                index = self._begun_at(message)
                self._leaving.append(note(self._note_stop, index))
                self._stop(parts, index)
                call = self._call_at.get(index)
                if call is not None:
                    self._touch(call, None, message)
        elif kind == "message_start":
            self._leaving.append(self._note_message)
            started = self._dict(message, "message") or {}
            self.model = self._str(started, "model", "message.") or self.model
            if self.deltas:
                for index, content in self._items(started, "content", "message."):
                    self._start(
                        parts, index, content, (event_type, message), list_of=started["content"]
                    )
            self._read_usage(parts, started)
        elif kind == "message_delta":
            delta = self._dict(message, "delta") or {}
            reason = self._str(delta, "stop_reason", "delta.")
            if reason:
                parts.append(finish_of(0, reason))
            self._read_usage(parts, message)
        elif kind == "message_stop":
            self._endless.clear()
            self._end_all(parts)
        elif kind == "message":
            self._read_message(parts, message)
        if kind == "error" or message.get("error") is not None:
            parts.append(
                error_of(message, "error")
                if message.get("error") is not None
                else own_error_of(message)
            )

    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None:
        self._read_message(parts, message)
        if message.get("error") is not None:
            parts.append(error_of(message, "error"))
        elif message.get("type") == "error":
            parts.append(own_error_of(message))

    def _index(self, message: dict[str, Any]) -> int:
        index = message.get("index")
        if type(index) is int:
            return index
        index = self._number(message, "index")
        if index is None:
            self._odd("index", message.get("index"), "the number of a content block")
            return self._newest
        return index

    def _begun_at(self, message: dict[str, Any]) -> int:
        """The index of the block that a delta belongs to. The official SDKs take it for the block's
        position in the answer, so that is what it is where no block has begun at that index, and no
        text without a start.
        """
        index = message.get("index")
        if type(index) is not int:
            index = self._index(message)
        if index not in self._begun and -len(self._order) <= index < len(self._order):
            has_text = any(self._block(kind, index) in self._open for kind in _KINDS)
            return index if has_text else self._order[index]
        return index

    def _block(self, kind: Kind, index: int) -> Block:
        return Block(kind, index, max(0, self._begun.get(index, 0) - 1))

    def _start(
        self,
        parts: list[Part],
        index: int,
        content: dict[str, Any],
        origin: Origin,
        list_of: list[Any] | None = None,
    ) -> None:
        """A block begins. If there is one at this index, it ends. `list_of`: the list that has the
        block, if it is in one.
        """
        for of in _KINDS:
            block = self._block(of, index)
            if block in self._open:
                self._endless.discard(block)
                self._end(parts, block)
        before = self._call_at.get(index)
        if before is not None:
            self._endless.discard(before.block)
            self._complete(parts, before)
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
            call = self._begin_call(
                Call(
                    self._block("tool_call", index),
                    self._id(content, "id", "content_block."),
                    index,
                )
            )
            self._call_at[index] = call
            self._name_call(call, self._str(content, "name", "content_block."))
            self._touch(call, list_of, content if list_of is not None else origin[1])
            if not isinstance(content.get("input"), dict):
                if content.get("input") is not None:
                    self._odd("content_block.input", content["input"], "an object")
                content.setdefault("input", {})
            # Not a piece: deltas replace the input that a call begins with.
            call.begins = arguments_text(content["input"]) if content["input"] else ""
            call.begun = Place(content, "input", True)
            parts.append(
                ToolCallDelta(call.block, call.id, call.name, call.begins, content, "input")
            )
        self._leaving.append(
            note(self._note_start, index, self._call_at[index], list_of is not None)
        )

    def _note_message(self) -> None:
        self._has_started = True

    def _note_start(self, index: int, call: Call | None, in_list: bool) -> None:
        """A block has left, in an event of its own or in the list of `message_start`."""
        if call is not None and call.removed:
            return
        if in_list or not self.has_removed:
            self._moved[index] = self._next = max(self._next, index)
            self._next += 1
        if not in_list:
            self._started[self._moved[index]] = None

    def _note_stop(self, index: int) -> None:
        self._started.pop(self._moved.get(index, index), None)

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
        if isinstance(kind, str) and kind in _DELTAS:
            of, key = _DELTAS[kind]
            if self._str(delta, key, "delta."):
                self._text(parts, self._block(of, index), delta, key, (event_type, message))
        elif kind == "input_json_delta" and self._call_at.get(index) is not None:
            call = self._call_at[index]
            assert call is not None
            self._touch(call, None, message)
            self._arguments(parts, call, delta, "partial_json")
        elif (
            self.others
            and isinstance(kind, str)
            and kind in _OTHERS
            and self._str(delta, _OTHERS[kind], "delta.")
        ):
            self._text(
                parts, self._block("other", index), delta, _OTHERS[kind], (event_type, message)
            )

    def _stop(self, parts: list[Part], index: int) -> None:
        for kind in _KINDS:
            self._end(parts, self._block(kind, index))
        call = self._call_at.get(index)
        if call is not None:
            self._complete(parts, call)

    def _read_usage(self, parts: list[Part], holder: dict[str, Any]) -> None:
        usage = self._usage(parts, holder)
        if usage is not None:
            tokens = usage.get("output_tokens")
            self._output_tokens = (
                tokens if isinstance(tokens, (int, float)) and tokens else self._output_tokens
            )

    def _read_message(self, parts: list[Part], message: dict[str, Any]) -> None:
        """A whole message."""
        self.model = self._str(message, "model") or self.model
        if self.deltas:
            for index, content in self._items(message, "content"):
                kind = content.get("type")
                if isinstance(kind, str) and kind in _BLOCKS:
                    of, key = _BLOCKS[kind]
                    self._str(content, key, "content[].")
                    if isinstance(content.get(key), str):
                        self._whole(parts, self._block(of, index), content, key)
                elif kind == "tool_use":
                    call = self._call_at.get(index)
                    if call is None:
                        call_id = self._id(content, "id", "content[].")
                        call = self._begin_call(
                            Call(self._block("tool_call", index), call_id, index)
                        )
                    name = self._str(content, "name", "content[].")
                    call = self._whole_call(parts, call, name, content, "input", decoded=True)
                    self._touch(call, message["content"], content)
        reason = self._str(message, "stop_reason")
        if reason:
            parts.append(finish_of(0, reason))
        self._read_usage(parts, message)

    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
        changed = False
        replacements: dict[int, dict[str, Any] | None] = {}
        lists: dict[int, list[Any]] = {}
        for call, content, item in touches:
            if not call.removed:
                continue
            assert call.part is not None
            text = call.part.refusal
            if content is not None:
                replacements[id(item)] = None if text is None else {"type": "text", "text": text}
                lists[id(content)] = content
                changed = True
            elif text is None:
                return []
            elif message.get("type") == "content_block_start":
                index = self._shift(message)
                return [
                    {**message, "index": index, "content_block": {"type": "text", "text": ""}},
                    {
                        "type": "content_block_delta",
                        "index": index,
                        "delta": {"type": "text_delta", "text": text},
                    },
                    {"type": "content_block_stop", "index": index},
                ]
            else:
                return []
        for items in lists.values():
            replace_items(items, replacements)
        removed_all = bool(self._known_calls) and self._removed_calls >= self._known_calls
        for holder in (message, message.get("delta")):
            if removed_all and isinstance(holder, dict) and holder.get("stop_reason") == "tool_use":
                holder["stop_reason"] = "end_turn"
                changed = True
        if "index" in message and (index := self._shift(message)) != message["index"]:
            message["index"] = index
            changed = True
        return [message] if changed else None

    def _shift(self, message: dict[str, Any]) -> int:
        """The index of a block where others were removed: without gaps, because SDKs count on it."""
        index = self._index(message)
        if "content_block" in message:
            self._moved[index] = self._next
            self._next += 1
        return self._moved.get(index, index)

    def says_nothing(self, message: dict[str, Any]) -> bool:
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
        return Made(
            made.event and "content_block_delta", made.data
        )  # the last one may have been a start

    def make_ending(self, reason: str | None = None) -> list[Made]:
        messages: list[dict[str, Any]] = []
        if not self._has_started:
            empty = {
                "id": "",
                "type": "message",
                "role": "assistant",
                "model": self.model or "",
                "content": [],
            }
            usage = {"input_tokens": 0, "output_tokens": 0}
            message = {**empty, "stop_reason": None, "stop_sequence": None, "usage": usage}
            messages.append({"type": "message_start", "message": message})
        messages += [{"type": "content_block_stop", "index": index} for index in self._started]
        delta = {"stop_reason": reason or self.default_reason, "stop_sequence": None}
        messages += [
            {
                "type": "message_delta",
                "delta": delta,
                "usage": {"output_tokens": self._output_tokens},
            },
            {"type": "message_stop"},
        ]
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
