"""OpenAI responses: the `response.*` events, and the `response` of an unstreamed request.

Source: the types of OpenAI's Python SDK, `openai.types.responses`. A text is shown as deltas, and
then again, whole, in up to four events (`response.output_text.done`, `response.content_part.done`,
`response.output_item.done`, `response.completed`). Calls of tools that the provider runs itself
(`mcp_call`, `web_search_call`, ...) pass unread. A call of a shell, a patch or a computer is a tool
call with its action as the arguments, because the client runs it.

Items are identified by their ids, or by `output_index` where an event has no id: servers use one
index for several items. So that an ending can repeat what was said, as clients expect, the reader
keeps an answer's text until its item is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .parts import Block, Finish, Kind, Part, ProviderError, TextDelta, ToolCallDelta, Unread, Usage
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
    place_text,
    replace_items,
)

__all__ = ["OpenAIResponsesReader"]

# Of each text's events: the kind, the field of its item that it belongs to, and where the whole
# text stands when it is done.
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
    "text": ("text", "text"),
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
_ARGUMENT_DELTAS = frozenset(
    ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta")
)
_ARGUMENT_DONES = {
    "response.function_call_arguments.done": "arguments",
    "response.custom_tool_call_input.done": "input",
}
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
# Tools of OpenAI that the client runs: the call's name, and the field that says what to do,
# decoded.
_ACTIONS = {
    "local_shell_call": ("local_shell", "action"),
    "shell_call": ("shell", "action"),
    "apply_patch_call": ("apply_patch", "operation"),
    "computer_call": ("computer", "action"),
}
# Of each of their events that repeat a piece of such a call: the field that has it.
_ECHOES = {
    "response.shell_call_command.added": "command",
    "response.shell_call_command.delta": "delta",
    "response.shell_call_command.done": "command",
    "response.apply_patch_call_operation_diff.delta": "delta",
    "response.apply_patch_call_operation_diff.done": "diff",
}
_FINAL = ("completed", "incomplete", "failed", "cancelled")


class _Item:
    """One item of the output."""

    __slots__ = (
        "call",
        "done",
        "ended",
        "has_ids",
        "index",
        "kind",
        "leaves_at",
        "output",
        "said",
        "shown",
        "texts",
    )

    def __init__(self, output: int, index: int) -> None:
        self.output = output
        """Its number in this reader, which no other item has."""
        self.index = index
        self.kind: str | None = None
        self.has_ids = False
        self.call: Call | None = None
        self.done = False
        self.shown: dict[str, Any] | None = None
        """As it left last; None before it was added."""
        self.leaves_at: int | None = None
        """Its index as it leaves: smaller than `index` where items before it were removed."""
        self.said: dict[Block, list[str]] = {}
        """What has left of each text, and of the call's arguments."""
        self.texts: dict[Block, None] = {}
        """Its texts that have begun, and may have ended."""
        self.ended: set[tuple[str, Block]] = set()
        """Which done events have left: of a text, of its part."""


class OpenAIResponsesReader(Reader):
    """A text ends with the first event that has the whole of it, or with the response."""

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"response\.(?:completed|incomplete|failed|cancelled)"|"object"\s*:\s*"response"',
        Usage: rb'"usage"\s*:\s*[^\sn]',  # anything but null
        ProviderError: rb'"error"|"message"\s*:\s*"',
    }
    default_reason: ClassVar[str] = "content_filter"

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
        self._response: dict[str, Any] = {}  # as it left last
        self._outputs: dict[int, _Item] = {}  # every item, by its own number
        self._at: dict[int, _Item] = {}  # the newest item at each index
        self._by_id: dict[str, _Item] = {}
        self._newest: _Item | None = None
        self._parts: list[Part] = []  # of the message that was read last
        self._sequence_number = -1
        self._names_events = False
        self._free = 0
        self._next_index = 0  # of the next item that leaves, where items were removed

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
            response = self._dict(message, "response")
            if response is not None:
                self._read_response(parts, response)
            if message.get("error") is not None:
                parts.append(error_of(message, "error"))
        elif kind == "error" or message.get("error") is not None:
            parts.append(
                error_of(message, "error")
                if message.get("error") is not None
                else own_error_of(message)
            )
        elif message.get("object") == "response":
            self._read_response(parts, message)

    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None:
        if message.get("object") == "response" or isinstance(message.get("output"), list):
            self._read_response(parts, message)
        elif message.get("error") is not None:
            parts.append(error_of(message, "error"))
        elif message.get("type") == "error" or message.get("object") == "error":
            parts.append(own_error_of(message))

    def _read_event(
        self, parts: list[Part], kind: str, message: dict[str, Any], origin: Origin
    ) -> None:
        if kind in _TEXT_DELTAS:
            of, field, _ = _TEXT_DELTAS[kind]
            if self._str(message, "delta"):
                self._text(
                    parts,
                    self._note_text(self._block(message, of, field)),
                    message,
                    "delta",
                    origin,
                    message,
                )
                self._leaving.append(note(self._note_said, parts))
        elif kind in _TEXT_DONES:
            of, field, key = _TEXT_DONES[kind]
            item = self._find(message)
            block = Block(of, item.output, self._part_index(message, field), field)
            if self._str(message, key) is not None:
                self._whole(parts, block, message, key, message)
            else:
                self._end(parts, block)
            self._leaving.append(note(item.ended.add, ("text", block)))
        elif kind in _PART_EVENTS:
            field, done = _PART_EVENTS[kind]
            part = self._dict(message, "part") or {}
            self._read_part(
                parts,
                part,
                self._find(message),
                self._part_index(message, field),
                field,
                done,
                origin,
            )
        elif kind in _ITEM_EVENTS:
            content = self._dict(message, "item") or {}
            index = self._number(message, "output_index")
            done = _ITEM_EVENTS[kind]
            item = self._find_item(parts, content, index, begins=not done)
            self._leaving.append(note(self._note_item, item, content, done))
            self._read_item(parts, content, item, done, origin, None)
            if done and self.others:
                self._end_item(parts, item, calls=False, kind="other")
        elif kind in _ARGUMENT_DELTAS:
            call = self._call_of(self._find(message))
            self._touch(call, None, message)
            self._arguments(parts, call, message, "delta")
            self._leaving.append(note(self._note_said, parts))
        elif kind in _ARGUMENT_DONES:
            key = _ARGUMENT_DONES[kind]
            call = self._whole_call(
                parts, self._call_of(self._find(message)), self._str(message, "name"), message, key
            )
            self._touch(call, None, message)
        else:
            if kind in _ECHOES and self.hold_tool_calls:
                self._read_echo(message, _ECHOES[kind])
            self._read_other(parts, kind, message, origin)

    def _read_echo(self, message: dict[str, Any], key: str) -> None:
        """A piece of a call that is complete only in its item: it waits for that, and is left out
        if the call is changed.
        """
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
        if (
            self.others
            and kind.endswith(".delta")
            and isinstance(message.get("delta"), str)
            and message["delta"]
        ):
            item = self._find(message)
            block = Block("other", item.output, self._part_index(message, "content"), kind)
            self._text(parts, self._note_text(block), message, "delta", origin)
        elif self.others and kind.endswith(".done"):
            item = self._find(message)
            self._end(
                parts,
                Block(
                    "other", item.output, self._part_index(message, "content"), f"{kind[:-5]}.delta"
                ),
            )

    # Items.

    def _find(self, message: dict[str, Any]) -> _Item:
        """The item that an event belongs to: by `item_id`, or else by `output_index`."""
        item_id = message.get("item_id")
        item = self._by_id.get(item_id) if isinstance(item_id, str) else None
        if item is None:
            index = message.get("output_index")
            if type(index) is not int:
                index = self._number(message, "output_index")
            item = self._newest if index is None else self._at.get(index)
            if item is None:
                item = self._add(0 if index is None else index)
        return item

    def _find_item(
        self, parts: list[Part], content: dict[str, Any], index: int | None, *, begins: bool
    ) -> _Item:
        """The item that an event shows: by its `id` or `call_id`, or else by its index, if that is
        not another item's.
        """
        ids = [
            name
            for name in (self._id(content, "id", "item."), self._id(content, "call_id", "item."))
            if name is not None
        ]
        item = next((self._by_id[name] for name in ids if name in self._by_id), None)
        if item is None:
            at = self._newest if index is None else self._at.get(index)
            kind = content.get("type")
            is_call = isinstance(kind, str) and (kind in _CALLS or kind in _ACTIONS)
            known = at is not None and (
                at.kind is not None or at.has_ids
            )  # else its deltas came first
            if at is not None and not (
                known and (begins or (is_call and ids and (at.call is None or at.has_ids)))
            ):
                item = at
            else:
                if at is not None and begins:
                    self._end_item(parts, at, calls=not (at.has_ids and ids))
                item = self._add(0 if index is None else index)
        for name in ids:
            self._by_id[name] = item
        item.has_ids = item.has_ids or bool(ids)
        return item

    def _add(self, index: int) -> _Item:
        output = index
        if output in self._outputs:
            output = max(self._free, len(self._outputs))
            while output in self._outputs:
                output += 1
            self._free = output + 1  # so that many items at one index are numbered in linear time
        item = self._outputs[output] = self._at[index] = self._newest = _Item(output, index)
        return item

    def _end_item(
        self, parts: list[Part], item: _Item, *, calls: bool, kind: Kind | None = None
    ) -> None:
        """End the texts of an item, or only those of one kind; and its call, unless that has ids,
        and may still go on.
        """
        texts, item.texts = item.texts, {}
        for block in texts:
            if kind in (None, block.kind):
                self._end(parts, block)
            if block in self._open:
                item.texts[block] = None
        if calls and item.call is not None:
            self._complete(parts, item.call)

    def _call_of(self, item: _Item) -> Call:
        if item.call is None:
            item.call = self._begin_call(Call(Block("tool_call", item.output), None, item.index))
        return item.call

    def _part_index(self, message: dict[str, Any], field: str) -> int:
        name = "content_index" if field == "content" else "summary_index"
        index = message.get(name)
        return index if type(index) is int else self._number(message, name) or 0

    def _block(self, message: dict[str, Any], kind: Kind, field: str) -> Block:
        return Block(kind, self._find(message).output, self._part_index(message, field), field)

    def _note_text(self, block: Block) -> Block:
        """Note a text that begins, so that the end of its item looks at no other item's."""
        if block not in self._open:
            self._outputs[block.output].texts[block] = None
        return block

    # What a message has of them.

    def _read_part(
        self,
        parts: list[Part],
        part: dict[str, Any],
        item: _Item,
        index: int,
        field: str,
        done: bool,
        origin: Origin,
    ) -> None:
        """One part of an item's content or summary: with its whole text, or as it begins, which is
        usually without any.
        """
        kind = part.get("type")
        if not isinstance(kind, str) or kind not in _PARTS:
            return
        of, key = _PARTS[kind]
        block = Block(of, item.output, index, field)
        if self._str(part, key, "part.") is None:
            return
        if done:
            self._whole(parts, block, part, key, part)
            self._leaving.append(note(item.ended.add, ("part", block)))
        elif part.get(key):
            self._text(parts, self._note_text(block), part, key, origin, part)
            self._leaving.append(note(self._note_said, parts))

    def _read_item(
        self,
        parts: list[Part],
        content: dict[str, Any],
        item: _Item,
        done: bool,
        origin: Origin,
        output: list[Any] | None,
    ) -> None:
        """One item of the output. `output`: the list that has it, if it is not in an event of its
        own.
        """
        kind = self._str(content, "type", "item.")
        item.kind = kind or item.kind
        if kind in ("message", "reasoning"):
            for field in ("summary", "content"):
                if isinstance(content.get(field), str):
                    block = Block(
                        "text" if kind == "message" else "thinking", item.output, 0, field
                    )
                    if done:
                        self._whole(parts, block, content, field)
                    elif content[field]:
                        self._text(parts, self._note_text(block), content, field, origin)
                    continue
                for index, part in self._items(content, field, "item."):
                    self._read_part(parts, part, item, index, field, done, origin)
        elif kind in _CALLS:
            key = _CALLS[kind]
            call = self._call_of(item)
            call.id = call.id or self._id(content, "call_id", "item.")
            call.kind = kind
            name = self._str(content, "name", "item.")
            holder = None if output is None else output
            if done:
                call = self._whole_call(parts, call, name, content, key)
            else:
                self._name_call(call, name)
                self._arguments(parts, call, content, key)
            self._touch(call, holder, content)
        elif kind in _ACTIONS and not _is_hosted(content):
            name, key = _ACTIONS[kind]
            if content.get(key) is None and content.get(f"{key}s") is not None:
                key += "s"
            call = self._call_of(item)
            call.id = call.id or self._id(content, "call_id", "item.")
            call.kind = kind
            if done:
                call = self._whole_call(parts, call, name, content, key)
            else:
                # Not a piece: the item that is done replaces what it begins with.
                call.name = name
                call.begun = Place(content, key, True)
                parts.append(
                    ToolCallDelta(call.block, call.id, name, place_text(call.begun), content, key)
                )
            self._touch(call, output, content)

    def _read_response(self, parts: list[Part], response: dict[str, Any]) -> None:
        """The response itself, with all of its output as it is by now."""
        self._leaving.append(note(self._note_response, response))
        self.model = self._str(response, "model", "response.") or self.model
        status = self._str(response, "status", "response.")
        if self.deltas:
            known: set[_Item] = set()
            for index, content in self._items(response, "output", "response."):
                item = self._find_item(parts, content, index, begins=False)
                if item in known:  # an id that occurs twice
                    item = self._add(index)
                known.add(item)
                self._read_item(parts, content, item, True, (None, response), response["output"])
                self._leaving.append(note(self._note_item, item, content, True))
        if status in _FINAL:
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

    # What has left.

    def _note_said(self, parts: list[Part]) -> None:
        for part in parts:
            if isinstance(part, TextDelta) and not part.whole:
                self._say(part.block, part.text)
            elif isinstance(part, ToolCallDelta):
                self._say(part.block, part.arguments)

    def _say(self, block: Block, text: str) -> None:
        self._outputs[block.output].said.setdefault(block, []).append(text)

    def _note_response(self, response: dict[str, Any]) -> None:
        self._response = response

    def _note_item(self, item: _Item, content: dict[str, Any], done: bool) -> None:
        if item.call is not None and item.call.removed:
            return
        self._place(item)
        item.shown = content
        if done:  # it has its texts by itself
            item.done = True
            item.said.clear()
            item.ended.clear()

    def _place(self, item: _Item) -> int:
        """The index of an item as it leaves: without gaps, because SDKs count on it."""
        if item.leaves_at is None:
            item.leaves_at = self._next_index if self.has_removed else item.index
            self._next_index = max(self._next_index, item.leaves_at + 1)
        return item.leaves_at

    # What leaves instead.

    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
        changed = False
        replacements: dict[int, dict[str, Any] | None] = {}
        lists: dict[int, list[Any]] = {}
        for call, output, content in touches:
            if not call.removed:
                continue
            assert call.part is not None
            text = call.part.refusal
            if output is not None:
                replacements[id(content)] = None if text is None else _refusal(call, text)
                lists[id(output)] = output
                changed = True
            elif text is None or message.get("type") != "response.output_item.added":
                return []
            else:
                return self._refuse(message, call, text)
        for items in lists.values():
            replace_items(items, replacements)
        if (
            "output_index" in message
            and (index := self._place(self._find_shown(message))) != message["output_index"]
        ):
            message["output_index"] = index
            changed = True
        return [message] if changed else None

    def _find_shown(self, message: dict[str, Any]) -> _Item:
        content = message.get("item")
        for name in (
            (content.get("id"), content.get("call_id")) if isinstance(content, dict) else ()
        ):
            if isinstance(name, str) and name in self._by_id:
                return self._by_id[name]
        return self._find(message)

    def _refuse(self, message: dict[str, Any], call: Call, text: str) -> list[dict[str, Any]]:
        """A message of the model in place of a call, as events."""
        item = self._outputs[call.block.output]
        done = _refusal(call, text)
        index = self._place(item)
        where = {"item_id": done["id"], "output_index": index, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        made: list[dict[str, Any]] = [
            {
                "type": "response.output_item.added",
                "item": {**done, "status": "in_progress", "content": []},
            },
            {"type": "response.content_part.added", **where, "part": empty},
            {"type": "response.output_text.delta", **where, "delta": text, "logprobs": []},
            {"type": "response.output_text.done", **where, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **where, "part": done["content"][0]},
            {"type": "response.output_item.done", "item": done},
        ]
        item.shown, item.done = done, True
        number = message.get("sequence_number", self._sequence_number)
        return [{**event, "output_index": index, "sequence_number": number} for event in made]

    def says_nothing(self, message: dict[str, Any]) -> bool:
        return message.get("delta") == ""

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
        if (
            "delta" not in message
        ):  # the text began with its part or item: name them as a delta does
            made["type"] = next(
                (
                    name
                    for name, (kind, field, _) in _TEXT_DELTAS.items()
                    if (kind, field) == (block.kind, block.field)
                ),
                "response.output_text.delta",
            )
            shown = self._outputs[block.output].shown or message.get("item") or {}
            made["item_id"] = message.get("item_id") or shown.get("id")
            made["content_index" if block.field == "content" else "summary_index"] = block.part
        if "logprobs" in message:
            made["logprobs"] = []
        return {
            **made,
            "delta": text,
            "sequence_number": message.get("sequence_number", self._sequence_number),
        }

    def make_delta(self, block: Block, text: str) -> Made:
        made = super().make_delta(block, text)
        assert isinstance(made.data, dict)
        self._say(block, text)
        return Made(made.event and made.data["type"], made.data)

    def make_ending(self, reason: str | None = None) -> list[Made]:
        """Done events for what has begun, and `response.completed` if that is the reason, else
        `response.incomplete`.
        """
        for part in self._parts:
            if isinstance(part, TextDelta) and not part.whole:
                # Its part may have begun, although nothing of it has left.
                self._outputs[part.block.output].said.setdefault(part.block, [])
        messages: list[dict[str, Any]] = []
        shown = sorted(
            (item for item in self._outputs.values() if item.shown is not None),
            key=lambda item: item.leaves_at or 0,
        )
        output: list[dict[str, Any]] = []
        for item in shown:
            assert item.shown is not None
            content = item.shown
            if not item.done:
                content = {**item.shown, "status": "incomplete"}
                if content.get("type") == "message":
                    content["content"] = self._end_content(messages, content, item)
                elif isinstance(kind := content.get("type"), str) and kind in _CALLS:
                    content[_CALLS[kind]] = "".join(
                        item.said.get(Block("tool_call", item.output), ())
                    )
                messages.append(
                    {
                        "type": "response.output_item.done",
                        "output_index": item.leaves_at,
                        "item": content,
                    }
                )
            output.append(content)
        completed = reason == "completed"
        response = {
            **(
                self._response
                or {"id": "", "object": "response", "created_at": 0, "model": self.model or ""}
            ),
            "status": "completed" if completed else "incomplete",
            "incomplete_details": None if completed else {"reason": reason or self.default_reason},
            "output": output,
        }
        messages.append(
            {
                "type": "response.completed" if completed else "response.incomplete",
                "response": response,
            }
        )
        made = []
        for message in messages:
            self._sequence_number += 1
            message["sequence_number"] = self._sequence_number
            made.append(Made(message["type"] if self._names_events else None, message))
        return made

    def _end_content(
        self, messages: list[dict[str, Any]], content: dict[str, Any], item: _Item
    ) -> list[dict[str, Any]]:
        """The parts that an unfinished item has had, with the done events that have not left."""
        found = []
        for block in sorted(
            (block for block in item.said if block.field == "content"), key=lambda block: block.part
        ):
            text = "".join(item.said[block])
            part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
            done: dict[str, Any] = {
                "type": "response.output_text.done",
                "text": text,
                "logprobs": [],
            }
            if block.kind == "refusal":
                part = {"type": "refusal", "refusal": text}
                done = {"type": "response.refusal.done", "refusal": text}
            found.append(part)
            where = {
                "item_id": content.get("id"),
                "output_index": item.leaves_at,
                "content_index": block.part,
            }
            if ("text", block) not in item.ended:
                messages.append({**done, **where})
            if ("part", block) not in item.ended:
                messages.append({"type": "response.content_part.done", **where, "part": part})
        return found

    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        output = message.get("output")
        if isinstance(part, Unread) or not isinstance(output, list):
            if not isinstance(output, list):
                message.clear()
                message["error"] = {
                    "message": STOPPED,
                    "type": "content_filter",
                    "param": None,
                    "code": None,
                }
                return
            bare(message, ("id", "object", "created_at", "model", "usage"))
            message["output"] = []
            message["error"] = None
        else:
            index = self._outputs[part.block.output].index
            del output[index + (part.block.kind != "tool_call") :]
            if part.block.kind != "tool_call":
                _cut_item(output[-1], part.block, text)
        message["status"] = "incomplete"
        message["incomplete_details"] = {"reason": reason or self.default_reason}


def _cut_item(item: dict[str, Any], block: Block, text: str) -> None:
    """Leave `text` of one of an item's texts, and nothing of what follows it."""
    parts = item[block.field]
    if isinstance(parts, str):
        item[block.field] = text
    else:
        del parts[block.part + 1 :]
        parts[-1][_PARTS[parts[-1]["type"]][1]] = text
    if block.field == "summary":
        item.pop("content", None)
    item["status"] = "incomplete"


def _is_hosted(item: dict[str, Any]) -> bool:
    """Whether the provider runs a call of a shell, in a container of its own."""
    environment = item.get("environment")
    kind = environment.get("type") if isinstance(environment, dict) else None
    return isinstance(kind, str) and kind.startswith("container")


def _refusal(call: Call, text: str) -> dict[str, Any]:
    """The item that takes a refused call's place."""
    return {
        "id": f"msg_{call.id or call.block.output}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }
