"""The output items of one response: which item an event belongs to, and what of it has left.

Items are identified by their ids, or by `output_index` where an event has no id: servers use one
index for several items. So that an ending can repeat the texts, as clients expect, an item keeps
its texts until it is done. Where calls are removed, the other items move up, as SDKs expect.
"""

from __future__ import annotations

from typing import Any

from .calls import Call, Touch
from .cutting import replace_items
from .parts import Block, Kind, Part, TextDelta, ToolCallDelta
from .reader import Made, Reader
from .responses_events import ACTIONS, CALLS, PART_EVENTS, TEXT_DELTAS

__all__ = ["Item", "ItemReader"]


class Item:
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
        "sent",
        "shown",
        "texts",
    )

    def __init__(self, output: int, index: int) -> None:
        self.output = output
        """Its number in the reader, which no other item has."""
        self.index = index
        self.kind: str | None = None
        self.has_ids = False
        self.call: Call | None = None
        self.done = False
        self.shown: dict[str, Any] | None = None
        """The item as it left last; None before it was added."""
        self.leaves_at: int | None = None
        """Its index as it leaves, which is smaller than `index` after removed items."""
        self.sent: dict[Block, list[str]] = {}
        """What was sent of each text, and of the arguments of the call."""
        self.texts: dict[Block, None] = {}
        """The texts that have begun. They may have ended."""
        self.ended: set[tuple[str, Block]] = set()
        """The done events that have left: "text" or "part", and the block."""


class ItemReader(Reader):
    """The part of the responses reader that is about items."""

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
        self._outputs: dict[int, Item] = {}  # every item, by its own number
        self._at: dict[int, Item] = {}  # the newest item at each index
        self._by_id: dict[str, Item] = {}
        self._newest: Item | None = None
        self._parts: list[Part] = []  # of the last message
        self._sequence_number = -1
        self._names_events = False
        self._free = 0  # a number that no item has
        self._next_index = 0  # of the next item that leaves, where items were removed

    # Which item.

    def _find(self, message: dict[str, Any]) -> Item:
        """The item of an event: by `item_id`, or else by `output_index`."""
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
    ) -> Item:
        """The item that an event shows: by its `id` or `call_id`, or else by its index."""
        named = (self._id(content, "id", "item."), self._id(content, "call_id", "item."))
        ids = [name for name in named if name is not None]
        item = next((self._by_id[name] for name in ids if name in self._by_id), None)
        if item is None:
            item = self._item_at(parts, content, index, begins=begins, has_ids=bool(ids))
        for name in ids:
            self._by_id[name] = item
        item.has_ids = item.has_ids or bool(ids)
        return item

    def _item_at(
        self,
        parts: list[Part],
        content: dict[str, Any],
        index: int | None,
        *,
        begins: bool,
        has_ids: bool,
    ) -> Item:
        """The newest item at an index, unless that is another one; else a new item."""
        at = self._newest if index is None else self._at.get(index)
        if at is not None:
            kind = content.get("type")
            is_call = isinstance(kind, str) and (kind in CALLS or kind in ACTIONS)
            is_known = at.kind is not None or at.has_ids  # otherwise its deltas came first
            is_other_call = is_call and has_ids and (at.call is None or at.has_ids)
            if not (is_known and (begins or is_other_call)):
                return at
            if begins:
                self._end_item(parts, at, calls=not (at.has_ids and has_ids))
        return self._add(0 if index is None else index)

    def _add(self, index: int) -> Item:
        output = index
        if output in self._outputs:
            output = max(self._free, len(self._outputs))
            while output in self._outputs:
                output += 1
            self._free = output + 1  # keeps the search linear for many items at one index
        item = self._outputs[output] = self._at[index] = self._newest = Item(output, index)
        return item

    def _end_item(
        self, parts: list[Part], item: Item, *, calls: bool, kind: Kind | None = None
    ) -> None:
        """End the texts of an item, or those of one kind; with `calls`, its call as well."""
        texts, item.texts = item.texts, {}
        for block in texts:
            if kind in (None, block.kind):
                self._end(parts, block)
            if block in self._open:
                item.texts[block] = None
        if calls and item.call is not None:
            self._complete(parts, item.call)

    def _call_of(self, item: Item) -> Call:
        if item.call is None:
            item.call = self._begin_call(Call(Block("tool_call", item.output), None, item.index))
        return item.call

    def _part_index(self, message: dict[str, Any], field: str) -> int:
        name = "content_index" if field == "content" else "summary_index"
        index = message.get(name)
        return index if type(index) is int else self._number(message, name) or 0

    def _note_text(self, block: Block) -> Block:
        """Note a text that begins: the end of its item must not search other items."""
        if block not in self._open:
            self._outputs[block.output].texts[block] = None
        return block

    # What has left.

    def _note_said(self, parts: list[Part]) -> None:
        for part in parts:
            if isinstance(part, TextDelta) and not part.whole:
                self._note_sent(part.block, part.text)
            elif isinstance(part, ToolCallDelta):
                self._note_sent(part.block, part.arguments)

    def _note_sent(self, block: Block, text: str) -> None:
        self._outputs[block.output].sent.setdefault(block, []).append(text)

    def _note_response(self, response: dict[str, Any]) -> None:
        self._response = response

    def _note_item(self, item: Item, content: dict[str, Any], done: bool) -> None:
        if item.call is not None and item.call.removed:
            return
        self._place(item)
        item.shown = content
        if done:  # it has its texts itself
            item.done = True
            item.sent.clear()
            item.ended.clear()

    def _place(self, item: Item) -> int:
        """The index of an item as it leaves."""
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
        if "output_index" in message:
            index = self._place(self._find_shown(message))
            changed = changed or index != message["output_index"]
            message["output_index"] = index
        return [message] if changed else None

    def _find_shown(self, message: dict[str, Any]) -> Item:
        content = message.get("item")
        if isinstance(content, dict):
            for name in (content.get("id"), content.get("call_id")):
                if isinstance(name, str) and name in self._by_id:
                    return self._by_id[name]
        return self._find(message)

    def _refuse(self, message: dict[str, Any], call: Call, text: str) -> list[dict[str, Any]]:
        """The events of a message of the model in place of a call."""
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

    def is_empty(self, message: dict[str, Any]) -> bool:
        return message.get("delta") == ""

    def opens(self, message: dict[str, Any]) -> bool:
        kind = message.get("type")
        return kind == "response.output_item.added" or (
            isinstance(kind, str) and kind in PART_EVENTS and kind.endswith("added")
        )

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        names = ("type", "item_id", "output_index", "content_index", "summary_index")
        made: dict[str, Any] = {name: message[name] for name in names if name in message}
        if "delta" not in message:  # the text began with its part or item: name them as a delta
            made["type"] = _delta_type(block)
            shown = self._outputs[block.output].shown or message.get("item") or {}
            made["item_id"] = message.get("item_id") or shown.get("id")
            made["content_index" if block.field == "content" else "summary_index"] = block.part
        if "logprobs" in message:
            made["logprobs"] = []
        number = message.get("sequence_number", self._sequence_number)
        return {**made, "delta": text, "sequence_number": number}

    def make_delta(self, block: Block, text: str) -> Made:
        made = super().make_delta(block, text)
        assert isinstance(made.data, dict)
        self._note_sent(block, text)
        return Made(made.event and made.data["type"], made.data)


def _delta_type(block: Block) -> str:
    for name, (kind, field, _) in TEXT_DELTAS.items():
        if (kind, field) == (block.kind, block.field):
            return name
    return "response.output_text.delta"


def _refusal(call: Call, text: str) -> dict[str, Any]:
    """The item in place of a refused call."""
    return {
        "id": f"msg_{call.id or call.block.output}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }
