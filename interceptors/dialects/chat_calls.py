"""Tool calls of OpenAI chat completions: `tool_calls`, and `function_call`, which came before them.

A call belongs to a choice and a place in it: the `index` of its item, or the item's position. Some
servers use one index for several calls, or send another id with every piece, so the id decides only
where it must. Where calls are removed, the others are numbered without gaps, as SDKs expect.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .calls import Call, Touch
from .errors import AnswerError
from .parts import Block, Part, arguments_text
from .reader import Reader

__all__ = ["ChatCallReader"]


class _Missing(dict[str, Any]):
    """The object that an item lacks. The item gets it when arguments are written."""

    __slots__ = ("_item", "_kind")

    def __init__(self, item: dict[str, Any], kind: str) -> None:
        super().__init__()
        self._item = item
        self._kind = kind

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._item[self._kind] = dict(self)


class ChatCallReader(Reader):
    """The part of the chat reader that is about tool calls."""

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
        self._begun: dict[int, dict[Block, Call]] = {}  # the calls of each choice
        self._free: dict[int, int] = {}  # by choice, a number that no call has
        self._last_call: dict[tuple[int, Any], Call] = {}  # by choice and place
        self._by_id: dict[tuple[int, Any, str], Call] = {}
        self._removed_in: dict[int, int] = {}  # by choice, how many calls were removed
        # By choice, if calls are held: the numbers of those that have left.
        self._left: dict[int, set[int]] = {}
        # By choice with removed calls: the new number of each call that is left.
        self._kept: dict[int, dict[int, int]] = {}

    def _index(self, choice: dict[str, Any], position: int) -> int:
        index = self._number(choice, "index", "choices[].")
        return position if index is None else index

    def _holder(self, item: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
        """The object that has a call's name and arguments."""
        holder = self._dict(item, kind, where)
        if holder is not None:
            return holder
        return _Missing(item, kind) if item.get(kind) is None else {}

    def _find_call(
        self,
        parts: list[Part],
        index: int,
        place: Any,
        number: int | None,
        id: str | None,
        kind: str,
        *,
        goes_on: bool = False,
    ) -> Call:
        """The call of an item. Another id at a place begins a call, and completes the one before.

        `goes_on`: the item has arguments and no name, so it begins no call, whatever its id.
        """
        last = self._last_call.get((index, place))
        if id is None or (last is not None and (last.id is None or last.id == id)):
            if last is not None and last.kind != kind and (last.name or last.size):
                place = place, kind  # SDKs keep the two kinds apart
                last = self._last_call.get((index, place))
            call = last
        else:
            call = self._by_id.get((index, place, id))
            if call is None and goes_on and last is not None and last.name:
                call = last
            if last is not None and call is not last:
                self._complete(parts, last)
        if call is None:
            call = self._new_call(index, number, id, kind)
        if call.id is None:
            call.id = id
        if id is not None:
            self._by_id[index, place, id] = call
        self._last_call[index, place] = call
        return call

    def _new_call(self, index: int, number: int | None, id: str | None, kind: str) -> Call:
        begun = self._begun.setdefault(index, {})
        block = Block("tool_call", index, len(begun) if number is None else number, "tool_calls")
        if block in begun:
            part = max(self._free.get(index, 0), len(begun))
            while (block := Block("tool_call", index, part, "tool_calls")) in begun:
                part += 1
            self._free[index] = part + 1  # keeps the search linear for many calls at one place
        call = begun[block] = self._begin_call(Call(block, id, number, kind))
        return call

    def _read_tool_calls(
        self, parts: list[Part], index: int, delta: dict[str, Any], choice: dict[str, Any]
    ) -> None:
        """The `tool_calls` of a delta: a list, or an object (TGI)."""
        where = "choices[].delta.tool_calls[]."
        items = delta["tool_calls"]
        if isinstance(items, dict):
            items = [items]
        elif not isinstance(items, list):
            self._odd("choices[].delta.tool_calls", items, "a list")
            return
        for position, item in enumerate(items):
            if not isinstance(item, dict):
                self._odd("choices[].delta.tool_calls[]", item, "an object")
                continue
            number = self._number(item, "index", where)
            kind, key = kind_of(item)
            holder = self._holder(item, kind, where)
            call_id = self._id(item, "id", where)
            name = self._str(holder, "name", f"{where}{kind}.")
            place = position if number is None else number
            goes_on = call_id is not None and not name and bool(holder.get(key))
            call = self._find_call(parts, index, place, number, call_id, kind, goes_on=goes_on)
            if call_id not in (None, call.id) and name and call.name and name != call.name:
                raise AnswerError(
                    "a tool call has its name after its arguments, at the index of another call: "
                    "clients assign it differently"
                )
            self._name_call(call, name)
            self._touch(call, delta, item, choice)
            self._arguments(parts, call, holder, key)

    def _read_function_call(
        self, parts: list[Part], index: int, delta: dict[str, Any], choice: dict[str, Any]
    ) -> None:
        value = self._dict(delta, "function_call", "choices[].delta.")
        if value is not None:
            call = self._find_call(parts, index, "function_call", None, None, "function_call")
            self._name_call(call, self._str(value, "name", "choices[].delta.function_call."))
            self._touch(call, delta, value, choice)
            self._arguments(parts, call, value, "arguments")

    def _read_whole_function_call(
        self,
        parts: list[Part],
        index: int,
        message: dict[str, Any],
        choice: dict[str, Any],
        *,
        grows: bool,
    ) -> None:
        value = self._dict(message, "function_call", "choices[].message.")
        if value is not None:
            call = self._find_call(parts, index, "function_call", None, None, "function_call")
            name = self._str(value, "name", "choices[].message.function_call.")
            call = self._whole_call(parts, call, name, value, "arguments", grows=grows)
            self._touch(call, message, value, choice)

    def _read_whole_calls(
        self,
        parts: list[Part],
        index: int,
        message: dict[str, Any],
        choice: dict[str, Any],
        *,
        grows: bool,
    ) -> None:
        """The `tool_calls` of a whole message. `grows`: it may have only the beginning of a call."""
        where = "choices[].message.tool_calls[]."
        for position, item in self._items(message, "tool_calls", "choices[].message."):
            kind, key = kind_of(item)
            holder = self._holder(item, kind, where)
            number = self._number(item, "index", where)
            place: Any = position if number is None else number
            call_id = self._id(item, "id", where)
            name = self._str(holder, "name", f"{where}{kind}.")
            last = self._last_call.get((index, place))
            found = self._by_id.get((index, place, call_id)) if call_id is not None else None
            if found is None and last is not None and (call_id is None or last.id is None):
                found = last
            if found is not None and (
                not grows or found.repeats_in(name, arguments_text(holder.get(key)))
            ):
                call = self._whole_call(parts, found, name, holder, key, grows=grows)
            else:  # deltas must not extend it: most clients do not read it
                call = self._find_call(parts, index, ("message", place), number, call_id, kind)
                call = self._whole_call(parts, call, name, holder, key)
            self._touch(call, message, item, choice)

    def _touch(
        self, call: Call, holder: Any, item: Any, choice: dict[str, Any] | None = None
    ) -> None:
        super()._touch(call, holder, item)
        if not self.hold_tool_calls:
            return
        if call.index is not None:
            self._leaving.append(partial(self._note_number, call))
        if choice is not None and choice.get("logprobs"):
            if call.left is None or not call.complete:
                call.tokens.append(choice)
            elif call.edited:
                choice["logprobs"] = None

    # After calls were removed.

    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
        changed = False
        gone = {id(item) for call, _, item in touches if call.removed}
        cleaned: set[int] = set()
        for touch in touches:
            if touch.call.removed:
                changed = True
                self._take_out(touch, gone, cleaned)
            else:
                changed = self._renumber(touch) or changed
        changed = self._correct_reasons(message) or changed
        if not changed:
            return None
        return [] if touches and not self.is_body and self.is_empty(message) else [message]

    def _take_out(self, touch: Touch, gone: set[int], cleaned: set[int]) -> None:
        """Remove a call from a message, and put its refusal there. `gone`: all removed items."""
        call, holder, _ = touch
        index = call.block.output
        if index not in self._kept:
            self._kept[index] = {number: number for number in self._left.get(index, ())}
        assert call.part is not None
        if call.kind == "function_call":
            holder.pop("function_call", None)
        elif id(holder) not in cleaned:  # once for each list: it may have thousands of calls
            cleaned.add(id(holder))
            items = holder.pop("tool_calls", None)
            if isinstance(items, list):
                left = [other for other in items if id(other) not in gone]
                if left:
                    holder["tool_calls"] = left
        text, call.part.refusal = call.part.refusal, None
        if text:
            content = holder.get("content")
            if isinstance(content, list):
                content.append({"type": "text", "text": text})
            else:
                holder["content"] = (content or "") + text

    def _renumber(self, touch: Touch) -> bool:
        call, _, item = touch
        if call.block.output not in self._kept or item.get("index") is None:
            return False
        before, item["index"] = item["index"], self._number_of(call)
        return bool(before != item["index"])

    def _number_of(self, call: Call) -> int | None:
        """The number of a call without the removed ones."""
        kept = self._kept[call.block.output]
        if call.index is not None and call.index not in kept:
            kept[call.index] = max(kept.values(), default=-1) + 1
        return None if call.index is None else kept[call.index]

    def _correct_reasons(self, message: dict[str, Any]) -> bool:
        """A choice whose calls were all removed did not stop for calls."""
        changed = False
        for position, choice in enumerate(message.get("choices") or ()):
            if not isinstance(choice, dict):
                continue
            if choice.get("finish_reason") in ("tool_calls", "function_call"):
                index = self._index(choice, position)
                begun = self._begun.get(index)
                if begun and self._removed_in.get(index, 0) >= len(begun):
                    changed = True
                    choice["finish_reason"] = "stop"
        return changed

    def _note_removed(self, call: Call) -> None:
        super()._note_removed(call)
        self._removed_in[call.block.output] = self._removed_in.get(call.block.output, 0) + 1

    def _note_number(self, call: Call) -> None:
        if call.index is not None and not call.removed:
            self._left.setdefault(call.block.output, set()).add(call.index)

    def is_empty(self, message: dict[str, Any]) -> bool:
        choices = message.get("choices")
        if (
            message.get("usage") is not None
            or message.get("error") is not None
            or not isinstance(choices, list)
        ):
            return False
        return all(
            isinstance(choice, dict)
            and all(
                not value or (name == "delta" and _is_empty(value))
                for name, value in choice.items()
                if name not in ("index", "logprobs")
            )
            for choice in choices
        )


def kind_of(item: dict[str, Any]) -> tuple[str, str]:
    """The field that has the name of a call, and the name of the field of its arguments.

    Some servers send an empty `custom` beside `function`.
    """
    custom = item.get("custom") is not None and (item["custom"] != {} or not item.get("function"))
    return ("custom", "input") if custom else ("function", "arguments")


def _is_empty(delta: Any) -> bool:
    """Whether a delta has no text, and of tool calls at most their places."""
    return isinstance(delta, dict) and all(
        not value
        or (name == "tool_calls" and isinstance(value, list) and all(map(_is_empty_call, value)))
        for name, value in delta.items()
    )


def _is_empty_call(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    holder = item.get("custom") or item.get("function") or {}
    return isinstance(holder, dict) and not (
        item.get("id") or holder.get("name") or holder.get("arguments") or holder.get("input")
    )
