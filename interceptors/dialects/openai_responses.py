"""OpenAI responses: the `response.*` events, and the `response` of an unstreamed request.

Source: the types of OpenAI's Python SDK, `openai.types.responses`. A text is shown as deltas, and then again, whole, in up to four
events (`response.output_text.done`, `response.content_part.done`, `response.output_item.done`, `response.completed`). Calls of
tools that the provider runs itself (`mcp_call`, `web_search_call`, ...) pass unread.

So that an ending can repeat what was said, as clients expect, the reader keeps an answer's text until its item is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from .errors import DialectError, dict_in, int_in, list_in, str_in
from .parts import Block, Finish, Kind, Part, ProviderError, TextDelta, ToolCallDelta, Usage
from .reader import MESSAGE, Made, Origin, Reader, error_of, finish_of, usage_of

__all__ = ["OpenAIResponsesReader"]

# Of each text's events: the kind, the field of its item that it belongs to, and where the whole text stands when it is done.
_TEXTS: dict[str, tuple[Kind, str, str]] = {
    "response.output_text": ("text", "content", "text"),
    "response.refusal": ("refusal", "content", "refusal"),
    "response.reasoning_text": ("thinking", "content", "text"),
    "response.reasoning_summary_text": ("thinking", "summary", "text"),
}
_TEXT_DELTAS = {f"{name}.delta": value for name, value in _TEXTS.items()}
_TEXT_DONES = {f"{name}.done": value for name, value in _TEXTS.items()}
_PARTS: dict[str, tuple[Kind, str]] = {
    "output_text": ("text", "text"),
    "refusal": ("refusal", "refusal"),
    "reasoning_text": ("thinking", "text"),
    "summary_text": ("thinking", "text"),
}
_PART_EVENTS = {
    "response.content_part.added": ("content", False),
    "response.content_part.done": ("content", True),
    "response.reasoning_summary_part.added": ("summary", False),
    "response.reasoning_summary_part.done": ("summary", True),
}
_ITEM_EVENTS = {"response.output_item.added": False, "response.output_item.done": True}
_ARGUMENT_DELTAS = frozenset(("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"))
_ARGUMENT_DONES = {"response.function_call_arguments.done": "arguments", "response.custom_tool_call_input.done": "input"}
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_DETAILS = (
    ("input_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cache_write_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
)
_FINAL = ("completed", "incomplete", "failed", "cancelled")


class OpenAIResponsesReader(Reader):
    """A text ends with the first event that has the whole of it, or with the response."""

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"response\.(?:completed|incomplete|failed|cancelled)"|"object"\s*:\s*"response"',
        Usage: rb'"usage"\s*:\s*\{',
        ProviderError: rb'"error"',
    }
    default_reason: ClassVar[str] = "content_filter"

    def __init__(self, *, deltas: bool = True, hold_tool_calls: bool = False) -> None:
        super().__init__(deltas=deltas, hold_tool_calls=hold_tool_calls)
        self._response: dict[str, Any] = {}  # as it was shown last
        self._items: dict[int, dict[str, Any]] = {}  # as they were added, or, when done, as they are
        self._done: set[int] = set()
        # By output item, so that the end of one looks at no other.
        self._ended: dict[int, set[tuple[str, Block]]] = {}  # which done events have left: of a text, of its part
        self._said: dict[int, dict[Block, list[str]]] = {}  # what has left of each text, and of each call's arguments
        self._previous: list[Part] = []
        self._sequence_number = -1
        self._names_events = False

    def read(self, message: Any, event_type: str | None = None) -> list[Part]:
        if not isinstance(message, dict):
            return []
        kind = str_in(message, "type")
        if kind is None:
            kind = event_type
        elif event_type is not None and kind != event_type and self.knows(event_type):
            raise DialectError("the event's type is not the type in its data")
        self.commit()
        self._sequence_number = int_in(message, "sequence_number") or self._sequence_number
        self._names_events = event_type is not None
        parts: list[Part] = []
        if kind is None:
            if message.get("object") == "response":
                self._read_response(parts, message)
            elif message.get("error") is not None:
                parts.append(error_of(message, "error"))
        elif kind == "error":
            parts.append(self._error(message))
        elif kind.startswith("response."):
            if self.deltas:
                self._read_event(parts, kind, message, (event_type, message))
            response = dict_in(message, "response")
            if response is not None:
                self._read_response(parts, response)
        self._previous = parts
        return parts

    def _read_event(self, parts: list[Part], kind: str, message: dict[str, Any], origin: Origin) -> None:
        if kind in _TEXT_DELTAS:
            of, field, _ = _TEXT_DELTAS[kind]
            if str_in(message, "delta"):
                self._text(parts, _block(message, of, field), message, "delta", origin, message)
        elif kind in _TEXT_DONES:
            of, field, key = _TEXT_DONES[kind]
            str_in(message, key)
            block = _block(message, of, field)
            self._whole(parts, block, message, key, message)
            self._leaving.append(partial(self._note_end, "text", block))
        elif kind in _PART_EVENTS:
            field, done = _PART_EVENTS[kind]
            part = dict_in(message, "part") or {}
            self._read_part(
                parts, part, int_in(message, "output_index") or 0, _part_index(message, field), field, done, origin
            )
        elif kind in _ITEM_EVENTS:
            item = dict_in(message, "item") or {}
            output = int_in(message, "output_index") or 0
            self._leaving.append(partial(self._items.__setitem__, output, item))
            self._read_item(parts, item, output, _ITEM_EVENTS[kind], origin)
        elif kind in _ARGUMENT_DELTAS:
            str_in(message, "delta")
            block = _call_block(message)
            self._arguments(parts, block, self._begin_call(block, None, None), message, "delta", origin)
        elif kind in _ARGUMENT_DONES:
            key = _ARGUMENT_DONES[kind]
            arguments = str_in(message, key) or ""
            self._whole_call(parts, _call_block(message), None, str_in(message, "name"), arguments, message, key)

    def _read_part(
        self,
        parts: list[Part],
        part: dict[str, Any],
        output: int,
        index: int,
        field: str,
        done: bool,
        origin: Origin,
    ) -> None:
        """One part of an item's content or summary: with its whole text, or as it begins, which is without any as a rule."""
        kind = str_in(part, "type", "part.")
        if kind not in _PARTS:
            return
        of, key = _PARTS[kind]
        block = Block(of, output, index, field)
        str_in(part, key, "part.")
        if done:
            self._whole(parts, block, part, key, part)
            self._leaving.append(partial(self._note_end, "part", block))
        elif part.get(key):
            self._text(parts, block, part, key, origin, part)

    def _read_item(
        self,
        parts: list[Part],
        item: dict[str, Any],
        output: int,
        done: bool,
        origin: Origin,
        whole: bool = False,
    ) -> None:
        """One item of the output."""
        kind = str_in(item, "type", "item.")
        if kind in ("message", "reasoning"):
            for field in ("summary", "content"):
                for index, part in enumerate(list_in(item, field, "item.")):
                    self._read_part(parts, part, output, index, field, done, origin)
        elif kind in _CALLS:
            key = _CALLS[kind]
            block = Block("tool_call", output)
            call_id, name = str_in(item, "call_id", "item."), str_in(item, "name", "item.")
            arguments = str_in(item, key, "item.") or ""
            if done:
                self._whole_call(parts, block, call_id, name, arguments, item, key, whole=whole)
            else:
                self._arguments(parts, block, self._begin_call(block, call_id, name), item, key, origin)
        if done:
            self._leaving.append(partial(self._forget, output))

    def _read_response(self, parts: list[Part], response: dict[str, Any]) -> None:
        """The response itself, with all of its output as it is by now."""
        self._response = response
        self.model = str_in(response, "model", "response.") or self.model
        if self.deltas:
            for output, item in enumerate(list_in(response, "output", "response.")):
                self._read_item(parts, item, output, True, (None, response), whole=True)
        status = str_in(response, "status", "response.")
        if status in _FINAL:
            self._end_all(parts)
            reason = status
            if status == "incomplete":
                details = dict_in(response, "incomplete_details", "response.") or {}
                reason = str_in(details, "reason", "response.incomplete_details.") or status
            parts.append(finish_of(0, reason))
        usage = dict_in(response, "usage", "response.")
        if usage is not None:
            parts.append(usage_of(usage, self.model, ("input_tokens", "output_tokens"), _DETAILS))
        if response.get("error") is not None:
            parts.append(error_of(response, "error"))

    def _error(self, message: dict[str, Any]) -> ProviderError:
        if message.get("error") is not None:
            return error_of(message, "error")
        code = message.get("code")
        return ProviderError(MESSAGE, None, code if isinstance(code, str) else None, message, "message")

    def commit(self) -> None:
        super().commit()
        for part in self._previous:
            if isinstance(part, TextDelta) and not part.whole:
                self._said_of(part.block).append(part.text)
            elif isinstance(part, ToolCallDelta) and not self.hold_tool_calls:
                self._said_of(part.block).append(part.arguments)
        self._previous = []

    def _said_of(self, block: Block) -> list[str]:
        return self._said.setdefault(block.output, {}).setdefault(block, [])

    def _note_end(self, what: str, block: Block) -> None:
        self._ended.setdefault(block.output, set()).add((what, block))

    def _forget(self, output: int) -> None:
        """An item is done: it has its texts by itself."""
        self._done.add(output)
        self._said.pop(output, None)
        self._ended.pop(output, None)

    def knows(self, event_type: str) -> bool:
        return event_type.startswith("response.") or event_type == "error"

    def says_nothing(self, message: dict[str, Any]) -> bool:
        return message.get("delta") == ""

    def is_body(self, message: dict[str, Any]) -> bool:
        return message.get("object") == "response"

    def opens(self, message: dict[str, Any]) -> bool:
        return message.get("type") in (
            "response.output_item.added",
            *(name for name in _PART_EVENTS if name.endswith("added")),
        )

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        made: dict[str, Any] = {
            name: message[name]
            for name in ("type", "item_id", "output_index", "content_index", "summary_index")
            if name in message
        }
        if "delta" not in message:  # the text began with its part or item: name them as a delta does
            made["type"] = next(
                (name for name, (kind, field, _) in _TEXT_DELTAS.items() if (kind, field) == (block.kind, block.field))
            )
            made["item_id"] = message.get("item_id") or self._items.get(block.output, {}).get("id")
            made["content_index" if block.field == "content" else "summary_index"] = block.part
        if "logprobs" in message:
            made["logprobs"] = []
        return {**made, "delta": text, "sequence_number": message.get("sequence_number", self._sequence_number)}

    def make_delta(self, block: Block, text: str) -> Made:
        made = super().make_delta(block, text)
        assert isinstance(made.data, dict)
        self._said_of(block).append(text)
        return Made(made.event and made.data["type"], made.data)

    def make_ending(self, reason: str | None = None) -> list[Made]:
        """Done events for what has begun, and `response.completed` if that is the reason, else `response.incomplete`."""
        for part in self._previous:
            if isinstance(part, TextDelta) and not part.whole:
                self._said_of(part.block)  # its part may have begun, although nothing of it has left
        messages: list[dict[str, Any]] = []
        for output in sorted(self._items.keys() - self._done):
            item = {**self._items[output], "status": "incomplete"}
            if item.get("type") == "message":
                item["content"] = self._end_content(messages, item, output)
            elif item.get("type") in _CALLS:
                item[_CALLS[item["type"]]] = "".join(self._said_of(Block("tool_call", output)))
            self._items[output] = item
            messages.append({"type": "response.output_item.done", "output_index": output, "item": item})
        completed = reason == "completed"
        response = {
            **self._response,
            "status": "completed" if completed else "incomplete",
            "incomplete_details": None if completed else {"reason": reason or self.default_reason},
            "output": [item for _, item in sorted(self._items.items())],
        }
        messages.append({"type": "response.completed" if completed else "response.incomplete", "response": response})
        made = []
        for message in messages:
            self._sequence_number += 1
            message["sequence_number"] = self._sequence_number
            made.append(Made(message["type"] if self._names_events else None, message))
        return made

    def _end_content(self, messages: list[dict[str, Any]], item: dict[str, Any], output: int) -> list[dict[str, Any]]:
        """The parts that an unfinished item has had, with the done events that have not left."""
        content = []
        said, ended = self._said.get(output, {}), self._ended.get(output, ())
        for block in sorted((block for block in said if block.field == "content"), key=lambda block: block.part):
            text = "".join(said[block])
            part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
            done: dict[str, Any] = {"type": "response.output_text.done", "text": text, "logprobs": []}
            if block.kind == "refusal":
                part = {"type": "refusal", "refusal": text}
                done = {"type": "response.refusal.done", "refusal": text}
            content.append(part)
            where = {"item_id": item.get("id"), "output_index": output, "content_index": block.part}
            if ("text", block) not in ended:
                messages.append({**done, **where})
            if ("part", block) not in ended:
                messages.append({"type": "response.content_part.done", **where, "part": part})
        return content

    def cut_body(self, message: dict[str, Any], block: Block, text: str, reason: str | None = None) -> None:
        output = message["output"]
        del output[block.output + (block.kind != "tool_call") :]
        if block.kind != "tool_call":
            item = output[-1]
            parts = item[block.field]
            del parts[block.part + 1 :]
            parts[-1][_PARTS[parts[-1]["type"]][1]] = text
            if block.field == "summary":
                item.pop("content", None)
            item["status"] = "incomplete"
        message["status"] = "incomplete"
        message["incomplete_details"] = {"reason": reason or self.default_reason}


def _part_index(message: dict[str, Any], field: str) -> int:
    return int_in(message, "content_index" if field == "content" else "summary_index") or 0


def _block(message: dict[str, Any], kind: Kind, field: str) -> Block:
    return Block(kind, int_in(message, "output_index") or 0, _part_index(message, field), field)


def _call_block(message: dict[str, Any]) -> Block:
    return Block("tool_call", int_in(message, "output_index") or 0)
