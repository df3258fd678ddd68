"""OpenAI responses: the `response.*` events, and the unstreamed `response`.

Source: the types of OpenAI's Python SDK, `openai.types.responses`. A text comes as deltas, and
then again, whole, in up to four events (`response.output_text.done`, `response.content_part.done`,
`response.output_item.done`, `response.completed`). Calls of tools that the provider runs itself
(`mcp_call`, `web_search_call`, ...) pass unread. A call of a shell, a patch or a computer is a tool
call with its action as the arguments, because the client runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from .calls import Call, Place, place_text
from .parts import Block, Finish, Part, ProviderError, TextDelta, ToolCallDelta, Usage
from .provider_words import error_in, error_of, finish_of
from .reader import Made, Origin
from .responses_ending import cut_everything, cut_output, end_items
from .responses_events import (
    ACTIONS,
    ARGUMENT_DELTAS,
    ARGUMENT_DONES,
    CALLS,
    ECHOES,
    FINAL,
    ITEM_EVENTS,
    PART_EVENTS,
    PARTS,
    TEXT_DELTAS,
    TEXT_DONES,
)
from .responses_items import Item, ItemReader
from .unread import Unread

__all__ = ["OpenAIResponsesReader"]


class OpenAIResponsesReader(ItemReader):
    """A text ends with the first event that has the whole of it, or with the response."""

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"response\.(?:completed|incomplete|failed|cancelled)"|"object"\s*:\s*"response"',
        Usage: rb'"usage"\s*:\s*[^\sn]',  # anything but null
        ProviderError: rb'"error"|"message"\s*:\s*"',
    }
    default_reason: ClassVar[str] = "content_filter"

    def _read(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None:
        kind = message.get("type")
        if not isinstance(kind, str):
            kind = self._str(message, "type") or event_type
        number = message.get("sequence_number")
        if number is not None:
            number = self._number(message, "sequence_number")
            self._sequence_number = self._sequence_number if number is None else number
        self._names_events = event_type is not None
        self._parts = parts
        if kind is not None and kind.startswith("response."):
            if self.deltas:
                self._read_event(parts, kind, message, (event_type, message))
            if "response" in message:
                response = self._dict(message, "response")
                if response is not None:
                    self._read_response(parts, response)
            if message.get("error") is not None:
                parts.append(error_of(message, "error"))
        elif (error := error_in(message, is_error=kind == "error")) is not None:
            parts.append(error)
        elif message.get("object") == "response":
            self._read_response(parts, message)

    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None:
        if message.get("object") == "response" or isinstance(message.get("output"), list):
            self._read_response(parts, message)
            return
        is_error = "error" in (message.get("type"), message.get("object"))
        error = error_in(message, is_error=is_error)
        if error is not None:
            parts.append(error)

    def _read_event(
        self, parts: list[Part], kind: str, message: dict[str, Any], origin: Origin
    ) -> None:
        if kind in TEXT_DELTAS:
            of, field, _ = TEXT_DELTAS[kind]
            if self._str(message, "delta"):
                output, index = self._find(message).output, self._part_index(message, field)
                block = self._note_text(Block(of, output, index, field))
                self._text(parts, block, message, "delta", origin, message)
                self._leaving.append(partial(self._note_said, parts))
        elif kind in TEXT_DONES:
            of, field, key = TEXT_DONES[kind]
            item = self._find(message)
            block = Block(of, item.output, self._part_index(message, field), field)
            if self._str(message, key) is not None:
                self._whole(parts, block, message, key, message)
            else:
                self._end(parts, block)
            self._leaving.append(partial(item.ended.add, ("text", block)))
        elif kind in PART_EVENTS:
            field, is_done = PART_EVENTS[kind]
            part = self._dict(message, "part") or {}
            item, index = self._find(message), self._part_index(message, field)
            self._read_part(parts, part, item, index, field, is_done, origin)
        elif kind in ITEM_EVENTS:
            self._read_item_event(parts, message, ITEM_EVENTS[kind], origin)
        elif kind in ARGUMENT_DELTAS:
            call = self._call_of(self._find(message))
            self._touch(call, None, message)
            self._arguments(parts, call, message, "delta")
            self._leaving.append(partial(self._note_said, parts))
        elif kind in ARGUMENT_DONES:
            call, name = self._call_of(self._find(message)), self._str(message, "name")
            call = self._whole_call(parts, call, name, message, ARGUMENT_DONES[kind])
            self._touch(call, None, message)
        else:
            if kind in ECHOES and self.hold_tool_calls:
                self._read_echo(message, ECHOES[kind])
            if self.others:
                self._read_other(parts, kind, message, origin)

    def _read_item_event(
        self, parts: list[Part], message: dict[str, Any], is_done: bool, origin: Origin
    ) -> None:
        content = self._dict(message, "item") or {}
        index = self._number(message, "output_index")
        item = self._find_item(parts, content, index, begins=not is_done)
        self._leaving.append(partial(self._note_item, item, content, is_done))
        self._read_item(parts, content, item, is_done, origin, None)
        if is_done and self.others:
            self._end_item(parts, item, calls=False, kind="other")

    def _read_echo(self, message: dict[str, Any], key: str) -> None:
        """A piece of a call that only its item has whole: it leaves with the call, or empty."""
        call = self._find(message).call
        if call is None:
            return
        self._touch(call, None, message)
        if call.left is None:
            call.echoes.append(Place(message, key, False))
        elif call.edited:
            message[key] = ""

    def _read_other(
        self, parts: list[Part], kind: str, message: dict[str, Any], origin: Origin
    ) -> None:
        """A text of the kind `other`: what a tool of the provider gets or does."""
        is_done = kind.endswith(".done")
        delta = message.get("delta")
        if not is_done and not (kind.endswith(".delta") and isinstance(delta, str) and delta):
            return
        field = f"{kind[:-5]}.delta" if is_done else kind
        output, index = self._find(message).output, self._part_index(message, "content")
        block = Block("other", output, index, field)
        if is_done:
            self._end(parts, block)
        else:
            self._text(parts, self._note_text(block), message, "delta", origin)

    def _read_part(
        self,
        parts: list[Part],
        part: dict[str, Any],
        item: Item,
        index: int,
        field: str,
        is_done: bool,
        origin: Origin,
    ) -> None:
        """A part of an item's content or summary: whole, or as it begins, usually without text."""
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in PARTS:
            return
        of, key = PARTS[kind]
        block = Block(of, item.output, index, field)
        if self._str(part, key, "part.") is None:
            return
        if is_done:
            self._whole(parts, block, part, key, part)
            self._leaving.append(partial(item.ended.add, ("part", block)))
        elif part.get(key):
            self._text(parts, self._note_text(block), part, key, origin, part)
            self._leaving.append(partial(self._note_said, parts))

    def _read_item(
        self,
        parts: list[Part],
        content: dict[str, Any],
        item: Item,
        is_done: bool,
        origin: Origin,
        output: list[Any] | None,
    ) -> None:
        """An item of the output. `output`: the list that has it, unless it has its own event."""
        kind = self._str(content, "type", "item.")
        item.kind = kind or item.kind
        if kind in ("message", "reasoning"):
            self._read_texts(parts, content, item, is_done, origin)
        elif kind in CALLS:
            key = CALLS[kind]
            call = self._identify(item, content, kind)
            name = self._str(content, "name", "item.")
            if is_done:
                call = self._whole_call(parts, call, name, content, key)
            else:
                self._name_call(call, name)
                self._arguments(parts, call, content, key)
            self._touch(call, output, content)
        elif kind in ACTIONS and not _is_hosted(content):
            name, key = ACTIONS[kind]
            if content.get(key) is None and content.get(f"{key}s") is not None:
                key += "s"
            call = self._identify(item, content, kind)
            if is_done:
                call = self._whole_call(parts, call, name, content, key)
            else:  # not a piece: the done item replaces what the call begins with
                call.name = name
                call.begun = place = Place(content, key, True)
                text = place_text(place)
                parts.append(ToolCallDelta(call.block, call.id, name, text, content, key))
            self._touch(call, output, content)

    def _read_texts(
        self,
        parts: list[Part],
        content: dict[str, Any],
        item: Item,
        is_done: bool,
        origin: Origin,
    ) -> None:
        for field in ("summary", "content"):
            if not isinstance(content.get(field), str):
                for index, part in self._items(content, field, "item."):
                    self._read_part(parts, part, item, index, field, is_done, origin)
                continue
            is_text = content.get("type") == "message"
            block = Block("text" if is_text else "thinking", item.output, 0, field)
            if is_done:
                self._whole(parts, block, content, field)
            elif content[field]:
                self._text(parts, self._note_text(block), content, field, origin)

    def _identify(self, item: Item, content: dict[str, Any], kind: str) -> Call:
        call = self._call_of(item)
        call.id = call.id or self._id(content, "call_id", "item.")
        call.kind = kind
        return call

    def _read_response(self, parts: list[Part], response: dict[str, Any]) -> None:
        """The response itself, with all of its output so far."""
        self._leaving.append(partial(self._note_response, response))
        self.model = self._str(response, "model", "response.") or self.model
        status = self._str(response, "status", "response.")
        if self.deltas:
            known: set[Item] = set()
            for index, content in self._items(response, "output", "response."):
                item = self._find_item(parts, content, index, begins=False)
                if item in known:  # an id that occurs twice
                    item = self._add(index)
                known.add(item)
                self._read_item(parts, content, item, True, (None, response), response["output"])
                self._leaving.append(partial(self._note_item, item, content, True))
        if status in FINAL:
            self._endless.clear()
            self._end_all(parts)
            reason = status
            if status == "incomplete":
                details = self._dict(response, "incomplete_details", "response.") or {}
                reason = self._str(details, "reason", "response.incomplete_details.") or status
            parts.append(finish_of(0, reason))
        self._usage(parts, response, "response.")
        if response.get("error") is not None:
            parts.append(error_of(response, "error"))

    def make_ending(self, reason: str | None = None) -> list[Made]:
        """Done events for what has begun, and `response.completed` if that is the reason, else
        `response.incomplete`.
        """
        for part in self._parts:
            if isinstance(part, TextDelta) and not part.whole:
                # Its part may have begun, although nothing of its text has left.
                self._outputs[part.block.output].sent.setdefault(part.block, [])
        messages, output = end_items(self._outputs.values())
        is_completed = reason == "completed"
        status = "completed" if is_completed else "incomplete"
        empty = {"id": "", "object": "response", "created_at": 0, "model": self.model or ""}
        details = None if is_completed else {"reason": reason or self.default_reason}
        response = {
            **(self._response or empty),
            "status": status,
            "incomplete_details": details,
            "output": output,
        }
        messages.append({"type": f"response.{status}", "response": response})
        made = []
        for message in messages:
            self._sequence_number += 1
            message["sequence_number"] = self._sequence_number
            made.append(Made(message["type"] if self._names_events else None, message))
        return made

    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        reason = reason or self.default_reason
        if isinstance(part, Unread) or not isinstance(message.get("output"), list):
            cut_everything(message, reason)
        else:
            index = self._outputs[part.block.output].index
            cut_output(message, index, part.block, text, reason)


def _is_hosted(item: dict[str, Any]) -> bool:
    """Whether the provider runs a call of a shell, in its own container."""
    environment = item.get("environment")
    kind = environment.get("type") if isinstance(environment, dict) else None
    return isinstance(kind, str) and kind.startswith("container")
