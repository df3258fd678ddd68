"""The content blocks of one Anthropic message: which block an event belongs to, and where each
stands as it leaves.

Where blocks are removed, the others move up, as SDKs expect.
"""

from __future__ import annotations

from typing import Any

from .calls import Call, Touch
from .cutting import replace_items
from .parts import Block, Kind
from .reader import Reader

__all__ = ["KINDS", "BlockReader"]

KINDS: tuple[Kind, ...] = ("text", "thinking", "other")
"""The kinds of the texts of blocks."""


class BlockReader(Reader):
    """The part of the Anthropic reader that is about content blocks."""

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
        self._call_at: dict[int, Call | None] = {}  # by index: the call, if the block is one
        self._order: list[int] = []  # the indices of the blocks as they began
        self._newest = 0  # the index of the block that began last
        self._output_tokens: int | float = 0
        # After removed blocks: the index of each block as it leaves, and of the next one.
        self._moved: dict[int, int] = {}
        self._next = 0

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
        """The index of the block that a delta belongs to.

        The official SDKs take it for the position of the block in the answer. So does this, if no
        block has begun at the index, and no text without a start is open there.
        """
        index = message.get("index")
        if type(index) is not int:
            index = self._index(message)
        if index not in self._begun and -len(self._order) <= index < len(self._order):
            has_text = any(self._block(kind, index) in self._open for kind in KINDS)
            return index if has_text else self._order[index]
        return index

    def _block(self, kind: Kind, index: int) -> Block:
        return Block(kind, index, max(0, self._begun.get(index, 0) - 1))

    # What has left.

    def _note_message(self) -> None:
        self._has_started = True

    def _note_start(self, index: int, call: Call | None, in_list: bool) -> None:
        """A block has left, in its own event or in the list of `message_start`."""
        if call is not None and call.removed:
            return
        if in_list or not self.has_removed:
            self._moved[index] = self._next = max(self._next, index)
            self._next += 1
        if not in_list:
            self._started[self._moved[index]] = None

    def _note_stop(self, index: int) -> None:
        self._started.pop(self._moved.get(index, index), None)

    # What leaves instead.

    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
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
            elif text is None or message.get("type") != "content_block_start":
                return []
            else:
                return self._refuse(message, text)
        for items in lists.values():
            replace_items(items, replacements)
        changed = bool(lists)
        if self._known_calls and self._removed_calls >= self._known_calls:
            for holder in (message, message.get("delta")):
                if isinstance(holder, dict) and holder.get("stop_reason") == "tool_use":
                    holder["stop_reason"] = "end_turn"
                    changed = True
        if "index" in message:
            index = self._shift(message)
            changed = changed or index != message["index"]
            message["index"] = index
        return [message] if changed else None

    def _refuse(self, message: dict[str, Any], text: str) -> list[dict[str, Any]]:
        """The events of a text in place of a call."""
        index = self._shift(message)
        delta = {"type": "text_delta", "text": text}
        return [
            {**message, "index": index, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]

    def _shift(self, message: dict[str, Any]) -> int:
        """The index of a block without the removed ones."""
        index = self._index(message)
        if "content_block" in message:
            self._moved[index] = self._next
            self._next += 1
        return self._moved.get(index, index)
