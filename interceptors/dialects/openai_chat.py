"""OpenAI chat completions: `chat.completion.chunk` events up to `[DONE]`, and the `chat.completion`
of an unstreamed response.

Source: the types of OpenAI's Python SDK, `openai.types.chat`. In addition: `reasoning_content` and
`reasoning` (DeepSeek, vLLM and others), `reasoning_details` (OpenRouter), a `content` that is a
list with thinking in it (Mistral), a cumulative `message` beside the `delta` (Perplexity), `text`
in the choice (completions, Together), and `function_call`, which came before tool calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .errors import AnswerError
from .parts import (
    Block,
    Finish,
    Kind,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCall,
    Unread,
    Usage,
    arguments_text,
)
from .reader import (
    DONE,
    STOPPED,
    Call,
    Made,
    Origin,
    Reader,
    Touch,
    bare,
    error_of,
    finish_of,
    note,
    own_error_of,
)

__all__ = ["OpenAIChatReader"]

# In the order in which a message that is not streamed is read.
_FIELDS: dict[str, Kind] = {
    "reasoning_content": "thinking",
    "reasoning": "thinking",
    "reasoning_details": "thinking",
    "content": "text",
    "refusal": "refusal",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
}
# Where a content is a list of parts: the kind of text of each type of part, and the field that
# holds it.
_PARTS: dict[str, tuple[Kind, str]] = {
    "text": ("text", "text"),
    "output_text": ("text", "text"),
    "refusal": ("refusal", "refusal"),
    "thinking": ("thinking", "thinking"),
}
# What chunks of one answer have in common. Other types are not the protocol's, and may hold
# anything.
_OF_CHUNK: dict[str, tuple[type, ...]] = {
    "id": (str, int),
    "object": (str,),
    "created": (int, float),
    **dict.fromkeys(("model", "system_fingerprint", "service_tier", "provider"), (str, type(None))),
}
_DETAILS = {"reasoning.text": "text", "reasoning.summary": "summary"}


class OpenAIChatReader(Reader):
    """A choice's texts end with its `finish_reason`, whatever comes between their deltas, and so do
    its tool calls.
    """

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"finish_reason"\s*:\s*"',
        Usage: rb'"usage"\s*:\s*[^\sn]',  # anything but null
        ProviderError: rb'"error"|"message"\s*:\s*"',
    }
    names_events: ClassVar[bool] = False
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
        self._choices: dict[int, Origin] = {}  # unfinished ones, each with its last chunk
        self._has_choices = False
        # By choice, so that the end of one looks at no other: its texts, by field, and its calls
        # that are not complete.
        self._texts: dict[int, dict[str, Block]] = {}
        self._begun: dict[int, dict[Block, Call]] = {}
        self._free: dict[int, int] = {}
        self._last_call: dict[tuple[int, Any], Call] = {}  # by choice and place in it
        self._by_id: dict[tuple[int, Any, str], Call] = {}
        self._templates: dict[
            Block, dict[str, Any]
        ] = {}  # of `reasoning_details`: the item that a delta of it needs
        self._removed_in: dict[int, int] = {}  # by choice, how many of its calls were removed
        self._left: dict[
            int, set[int]
        ] = {}  # by choice, the numbers of calls that have left, if calls are held
        # Of choices whose calls were removed: the new number of each call that is left.
        self._kept: dict[int, dict[int, int]] = {}

    def _read(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None:
        get = message.get
        model = get("model")
        if model is not self.model:
            self.model = self._str(message, "model") or self.model
        choices = get("choices")
        if type(choices) is list:
            origin = event_type, message
            for position, choice in enumerate(choices):
                if not isinstance(choice, dict):
                    self._odd("choices[]", choice, "an object")
                    continue
                self._has_choices = True
                field = choice.get
                index = field("index")
                if type(index) is not int:
                    index = self._index(choice, position)
                if self.deltas:
                    delta = field("delta")
                    if isinstance(delta, dict):
                        self._choices[index] = origin
                        self._read_delta(parts, index, delta, choice, origin)
                    elif delta is not None:
                        self._odd("choices[].delta", delta, "an object")
                    if field("text") or field("message") is not None:
                        self._read_beside(parts, index, choice, origin, delta)
                if field("finish_reason") or "usage" in choice or "error" in choice:
                    self._read_end_of_choice(parts, index, choice)
        elif choices is not None:
            self._odd("choices", choices, "a list")
        if (
            choices is None
            or get("usage") is not None
            or get("error") is not None
            or "x_groq" in message
        ):
            self._read_rest(parts, message, event_type)

    def _read_beside(
        self, parts: list[Part], index: int, choice: dict[str, Any], origin: Origin, delta: Any
    ) -> None:
        """What a choice has beside a delta, or in its place: a text, a whole message."""
        if isinstance(choice.get("text"), str) and choice["text"]:
            self._choices[index] = origin
            # Beside a delta, it is the same text once more.
            self._text(
                parts, self._block(index, "text", "text"), choice, "text", origin, choice
            ).repeated = bool(delta)
        whole = self._dict(choice, "message", "choices[].")
        if whole is not None:
            self._choices.setdefault(index, origin)
            self._read_whole(parts, index, whole, choice, grows=isinstance(delta, dict))

    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None:
        self.model = self._str(message, "model") or self.model
        for position, choice in self._items(message, "choices"):
            index = self._index(choice, position)
            if self.deltas:
                whole = self._dict(choice, "message", "choices[].")
                if whole is not None:
                    self._read_whole(parts, index, whole, choice)
                delta = self._dict(
                    choice, "delta", "choices[]."
                )  # of a chunk that is not sent as an event
                if delta is not None:
                    self._read_whole(parts, index, delta, choice)
                if isinstance(choice.get("text"), str):
                    self._whole(parts, Block("text", index, 0, "text"), choice, "text", choice)
            self._read_end_of_choice(parts, index, choice)
        self._read_rest(parts, message, None)

    def _index(self, choice: dict[str, Any], position: int) -> int:
        index = self._number(choice, "index", "choices[].")
        return position if index is None else index

    def _read_end_of_choice(self, parts: list[Part], index: int, choice: dict[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if reason:
            if isinstance(reason, str):
                self._finish(parts, index)
                parts.append(finish_of(index, reason))
            else:
                self._odd("choices[].finish_reason", reason, "a string")
        if choice.get("usage") is not None:
            self._usage(parts, choice, "choices[].")
        if choice.get("error") is not None:
            parts.append(error_of(choice, "error"))

    def _read_rest(
        self, parts: list[Part], message: dict[str, Any], event_type: str | None
    ) -> None:
        self._usage(parts, message)
        groq = message.get("x_groq")
        if isinstance(groq, dict):
            self._usage(parts, groq, "x_groq.")
            if groq.get("error") is not None:
                parts.append(error_of(groq, "error"))
        if message.get("error") is not None:
            parts.append(error_of(message, "error"))
        elif (
            message.get("object") == "error"
            or event_type == "error"
            or message.get("type") == "error"
        ):
            parts.append(own_error_of(message))

    def _read_delta(
        self,
        parts: list[Part],
        index: int,
        delta: dict[str, Any],
        choice: dict[str, Any],
        origin: Origin,
    ) -> None:
        for name, value in delta.items():
            kind = _FIELDS.get(name)
            if kind is None or not value:
                if (
                    self.others
                    and name == "audio"
                    and isinstance(value, dict)
                    and isinstance(value.get("transcript"), str)
                ):
                    self._text(
                        parts,
                        self._block(index, "other", name),
                        value,
                        "transcript",
                        origin,
                        choice,
                    )
                continue
            if isinstance(value, str) and kind != "tool_call" and name != "reasoning_details":
                texts = self._texts.get(index)
                block = texts.get(name) if texts is not None else None
                if block is None:  # made once: every event would pay for it
                    block = self._block(index, kind, name)
                self._text(parts, block, delta, name, origin, choice)
            elif name == "tool_calls":
                self._read_tool_calls(parts, index, delta, choice)
            elif name == "function_call":
                if isinstance(value, dict):
                    call = self._find_call(parts, index, name, None, None, "function_call")
                    self._name_call(
                        call, self._str(value, "name", "choices[].delta.function_call.")
                    )
                    self._touch(call, delta, value, choice)
                    self._arguments(parts, call, value, "arguments")
                else:
                    self._odd("choices[].delta.function_call", value, "an object")
            elif name == "reasoning_details":
                self._read_details(
                    parts, index, delta, origin, repeated=isinstance(delta.get("reasoning"), str)
                )
            elif name == "content" and isinstance(value, list):
                for of, holder, key in self._texts_in(value, "choices[].delta.content[]"):
                    self._text(parts, self._block(index, of, name), holder, key, origin, choice)
            else:
                self._odd(f"choices[].delta.{name}", value, "a string")

    def _block(self, index: int, kind: Kind, field: str) -> Block:
        """The block of a choice's text. A list in `content` may have several kinds of text; that of
        `content` itself is first.
        """
        texts = self._texts.setdefault(index, {})
        key = field if _FIELDS.get(field) == kind else f"{field}/{kind}"
        block = texts.get(key)
        if block is None:
            block = texts[key] = Block(kind, index, 0, field)
        return block

    def _texts_in(self, content: list[Any], where: str) -> list[tuple[Kind, dict[str, Any], str]]:
        """The texts in a content that is a list: the kind of each, and where it is. Thinking may be
        a list of texts itself.
        """
        found: list[tuple[Kind, dict[str, Any], str]] = []
        for item in content:
            if not isinstance(item, dict):
                self._odd(where, item, "an object")
                continue
            of = item.get("type")
            if not isinstance(of, str) or of not in _PARTS:
                continue
            kind, key = _PARTS[of]
            value = item.get(key)
            if isinstance(value, str):
                if value:
                    found.append((kind, item, key))
            elif kind == "thinking" and isinstance(value, list):
                for inner in value:
                    if (
                        isinstance(inner, dict)
                        and isinstance(inner.get("text"), str)
                        and inner["text"]
                    ):
                        found.append((kind, inner, "text"))
            elif value is not None:
                self._odd(f"{where}.{key}", value, "a string")
        return found

    def _read_details(
        self,
        parts: list[Part],
        index: int,
        delta: dict[str, Any],
        origin: Origin,
        *,
        repeated: bool,
    ) -> None:
        """OpenRouter's `reasoning_details`. Where `reasoning` has the same text, they repeat it."""
        for position, item in self._items(delta, "reasoning_details", "choices[].delta."):
            key = _DETAILS.get(item["type"]) if isinstance(item.get("type"), str) else None
            if key is None or not self._str(item, key, "choices[].delta.reasoning_details[]."):
                continue
            number = self._number(item, "index", "choices[].delta.reasoning_details[].")
            number = position if number is None else number
            texts = self._texts.setdefault(index, {})
            block = texts.setdefault(
                f"reasoning_details/{number}/{key}",
                Block("thinking", index, number, "reasoning_details"),
            )
            self._templates[block] = item
            self._text(parts, block, item, key, origin).repeated = repeated

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
        """The call that an item belongs to. Another id at a place begins another call, and
        completes the one before it.

        `goes_on`: the item has arguments and no name, so that it begins no call: some servers make
        up an id for each piece.
        """
        last = self._last_call.get((index, place))
        if id is None or (last is not None and (last.id is None or last.id == id)):
            if (
                last is not None and last.kind != kind and (last.name or last.size)
            ):  # SDKs keep the two apart
                place = place, kind
                last = self._last_call.get((index, place))
            call = last
        else:
            call = self._by_id.get((index, place, id))
            if call is None and goes_on and last is not None and last.name:
                call = last
            if last is not None and call is not last:
                self._complete(parts, last)
        if call is None:
            begun = self._begun.setdefault(index, {})
            part = len(begun) if number is None else number
            if Block("tool_call", index, part, "tool_calls") in begun:
                part = max(self._free.get(index, 0), len(begun))
                while Block("tool_call", index, part, "tool_calls") in begun:
                    part += 1
                self._free[index] = (
                    part + 1
                )  # so that many calls at one place are numbered in linear time
            call = self._begin_call(
                Call(Block("tool_call", index, part, "tool_calls"), id, number, kind)
            )
            begun[call.block] = call
        if call.id is None:
            call.id = id
        if id is not None:
            self._by_id[index, place, id] = call
        self._last_call[index, place] = call
        return call

    def _read_tool_calls(
        self, parts: list[Part], index: int, delta: dict[str, Any], choice: dict[str, Any]
    ) -> None:
        where = "choices[].delta.tool_calls[]."
        items = delta["tool_calls"]
        if isinstance(items, dict):  # as TGI had it
            items = [items]
        elif not isinstance(items, list):
            self._odd("choices[].delta.tool_calls", items, "a list")
            return
        for position, item in enumerate(items):
            if not isinstance(item, dict):
                self._odd("choices[].delta.tool_calls[]", item, "an object")
                continue
            number = self._number(item, "index", where)
            kind, key = _kind_of(item)
            holder = self._dict(item, kind, where)
            if holder is None:
                holder = {}
                if self.hold_tool_calls and item.get(kind) is None:
                    item[kind] = holder  # also where it is null
            call_id, name = (
                self._id(item, "id", where),
                self._str(holder, "name", f"{where}{kind}."),
            )
            place = position if number is None else number
            if call_id is None:
                call = self._find_call(parts, index, place, number, None, kind)
            else:
                goes_on = not name and bool(holder.get(key))
                call = self._find_call(parts, index, place, number, call_id, kind, goes_on=goes_on)
                if name and call.name and name != call.name and call_id != call.id:
                    raise AnswerError(
                        "a tool call has its name after its arguments, at the index of another call: clients assign it differently"
                    )
            self._name_call(call, name)
            self._touch(call, delta, item, choice)
            self._arguments(parts, call, holder, key)

    def _read_whole(
        self,
        parts: list[Part],
        index: int,
        message: dict[str, Any],
        choice: dict[str, Any],
        *,
        grows: bool = False,
    ) -> None:
        """A whole message. `grows`: it stands beside a delta, and has what all deltas so far had."""
        for name, kind in _FIELDS.items():
            value = message.get(name)
            if not value:
                continue
            if kind == "tool_call":
                self._read_whole_calls(parts, index, message, name, choice, grows=grows)
            elif name == "reasoning_details":
                repeats = isinstance(message.get("reasoning"), str)
                for position, item in self._items(message, name, "choices[].message."):
                    key = _DETAILS.get(item["type"]) if isinstance(item.get("type"), str) else None
                    if key is not None and self._str(
                        item, key, "choices[].message.reasoning_details[]."
                    ):
                        self._show_whole(
                            parts,
                            Block(kind, index, position, name),
                            item,
                            key,
                            choice,
                            grows=grows,
                            repeats=repeats,
                        )
            elif isinstance(value, str):
                self._show_whole(
                    parts, Block(kind, index, 0, name), message, name, choice, grows=grows
                )
            elif name == "content" and isinstance(value, list):
                for position, (of, holder, key) in enumerate(
                    self._texts_in(value, "choices[].message.content[]")
                ):
                    self._show_whole(
                        parts, Block(of, index, position, name), holder, key, choice, grows=grows
                    )
            else:
                self._odd(f"choices[].message.{name}", value, "a string")

    def _show_whole(
        self,
        parts: list[Part],
        block: Block,
        holder: dict[str, Any],
        key: str,
        choice: dict[str, Any],
        *,
        grows: bool,
        repeats: bool = False,
    ) -> None:
        if not grows and not repeats:
            self._whole(parts, block, holder, key, choice)
            return
        repeated = repeats or block in self._open or block in self._over
        delta = TextDelta(block, holder, key, whole=True, repeated=repeated, tokens=choice)
        parts += delta, TextEnd(block, delta, whole=True, repeated=repeated)

    def _read_whole_calls(
        self,
        parts: list[Part],
        index: int,
        message: dict[str, Any],
        field: str,
        choice: dict[str, Any],
        *,
        grows: bool,
    ) -> None:
        if field == "function_call":
            value = self._dict(message, field, "choices[].message.")
            if value is not None:
                call = self._find_call(parts, index, field, None, None, field)
                name = self._str(value, "name", "choices[].message.function_call.")
                self._touch(
                    self._whole_call(parts, call, name, value, "arguments", grows=grows),
                    message,
                    value,
                    choice,
                )
            return
        where = "choices[].message.tool_calls[]."
        for position, item in self._items(message, field, "choices[].message."):
            kind, key = _kind_of(item)
            holder = self._dict(item, kind, where) or {}
            number = self._number(item, "index", where)
            place: Any = position if number is None else number
            call_id, name = (
                self._id(item, "id", where),
                self._str(holder, "name", f"{where}{kind}."),
            )
            last = self._last_call.get((index, place))
            known = self._by_id.get((index, place, call_id)) if call_id is not None else None
            found = known or (
                last if last is not None and (call_id is None or last.id is None) else None
            )
            if found is not None and (
                not grows or found.repeats_in(name, arguments_text(holder.get(key)))
            ):
                call = self._whole_call(parts, found, name, holder, key, grows=grows)
            else:  # deltas must not go on with it: most clients do not read it
                call = self._find_call(parts, index, ("message", place), number, call_id, kind)
                call = self._whole_call(parts, call, name, holder, key)
            self._touch(call, message, item, choice)

    def _end_mark(self, block: Block) -> Any:
        return block.output

    def _finish(self, parts: list[Part], index: int) -> None:
        if index in self._endless:
            return
        for block in self._texts.get(index, {}).values():
            self._end(parts, block)
        for call in list(self._open_calls.get(index, {}).values()):
            self._complete(parts, call)
        self._leaving.append(note(self._choices.pop, index, None))

    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
        changed = False
        gone = {id(item) for call, _, item in touches if call.removed}
        cleaned: set[int] = set()
        for call, holder, item in touches:
            index = call.block.output
            if not call.removed:
                if index in self._kept and item.get("index") is not None:
                    changed = changed or item["index"] != self._number_of(call)
                    item["index"] = self._number_of(call)
                continue
            changed = True
            if index not in self._kept:
                self._kept[index] = {number: number for number in self._left.get(index, ())}
            assert call.part is not None
            if call.kind == "function_call":
                holder.pop("function_call", None)
            elif id(holder) not in cleaned:  # once for each list: it may have thousands of calls
                cleaned.add(id(holder))
                items = holder.pop("tool_calls", None)
                if isinstance(items, list) and (
                    left := [other for other in items if id(other) not in gone]
                ):
                    holder["tool_calls"] = left
            text, call.part.refusal = call.part.refusal, None
            if text:
                content = holder.get("content")
                if isinstance(content, list):
                    content.append({"type": "text", "text": text})
                else:
                    holder["content"] = (content or "") + text
        for position, choice in enumerate(message.get("choices") or ()):
            if isinstance(choice, dict) and choice.get("finish_reason") in (
                "tool_calls",
                "function_call",
            ):
                index = self._index(choice, position)
                if self._begun.get(index) and self._removed_in.get(index, 0) >= len(
                    self._begun[index]
                ):
                    changed = True
                    choice["finish_reason"] = "stop"
        if not changed:
            return None
        return [] if touches and not self.is_body and self.says_nothing(message) else [message]

    def _number_of(self, call: Call) -> int | None:
        """The number of a call where others of its choice were removed: without gaps, because SDKs
        count on it.
        """
        kept = self._kept[call.block.output]
        if call.index is not None and call.index not in kept:
            kept[call.index] = max(kept.values(), default=-1) + 1
        return None if call.index is None else kept[call.index]

    def _touch(
        self, call: Call, holder: Any, item: Any, choice: dict[str, Any] | None = None
    ) -> None:
        super()._touch(call, holder, item)
        if not self.hold_tool_calls:
            return
        if call.index is not None:
            self._leaving.append(note(self._note_number, call))
        if choice is not None and choice.get("logprobs"):
            if call.left is None or not call.complete:
                call.tokens.append(choice)
            elif call.edited:
                choice["logprobs"] = None

    def _note_removed(self, call: Call) -> None:
        super()._note_removed(call)
        self._removed_in[call.block.output] = self._removed_in.get(call.block.output, 0) + 1

    def _note_number(self, call: Call) -> None:
        if call.index is not None and not call.removed:
            self._left.setdefault(call.block.output, set()).add(call.index)

    def says_nothing(self, message: dict[str, Any]) -> bool:
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

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        delta: dict[str, Any] = {block.field: text}
        if block.field == "reasoning_details":
            template = self._templates[block]
            key = _DETAILS[template["type"]]
            delta = {"reasoning_details": [{**template, key: text}]}
        elif block.field == "content" and block.kind == "thinking":
            delta = {
                "content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]
            }
        elif block.field == "text":
            return _chunk_like(
                message, {"index": block.output, "text": text, "finish_reason": None}
            )
        elif block.kind == "other":
            delta = {"audio": {"transcript": text}}
        elif block.field == "content" and block.kind == "refusal":
            delta = {"refusal": text}
        return _chunk_like(message, {"index": block.output, "delta": delta, "finish_reason": None})

    def make_ending(self, reason: str | None = None) -> list[Made]:
        made = [
            Made(
                event_type,
                _chunk_like(
                    message,
                    {"index": index, "delta": {}, "finish_reason": reason or self.default_reason},
                ),
            )
            for index, (event_type, message) in sorted(self._choices.items())
        ]
        if not self._has_choices:  # the first event does not leave: an answer with nothing in it
            empty = {
                "id": "",
                "object": "chat.completion.chunk",
                "created": 0,
                "model": self.model or "",
            }
            choice = {"index": 0, "delta": {}, "finish_reason": reason or self.default_reason}
            made.append(Made(None, {**empty, "choices": [choice]}))
        self._choices.clear()
        return [*made, Made(None, DONE)]

    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        everything = isinstance(part, Unread)
        after = everything
        for position, choice in self._items(message, "choices"):
            here = not everything and part.block.output == self._index(choice, position)
            if not here and not after:
                continue  # all of it was shown before
            after = True
            for name in ("message", "delta"):
                said = choice.get(name)
                if not isinstance(said, dict):
                    continue
                if everything:
                    bare(said, ("role",))
                    said["content"] = None
                else:
                    _cut_message(said, part if here else None, text)
            if everything:
                choice["logprobs"] = None
                said = {
                    name: choice[name]
                    for name in ("message", "delta")
                    if isinstance(choice.get(name), dict)
                }
                bare(choice, ("index", "logprobs"))
                choice.update(said)
            elif choice.get("text"):
                choice["text"] = text if here and part.block.field == "text" else ""
            if choice.get("logprobs"):
                choice["logprobs"] = None
            choice["finish_reason"] = reason or self.default_reason
        if everything:
            choices = message.pop("choices", None)
            if isinstance(choices, list):
                bare(message, ("id", "object", "created", "model", "usage"))
                message["choices"] = [choice for choice in choices if isinstance(choice, dict)]
            else:
                message.clear()
                message["error"] = {
                    "message": STOPPED,
                    "type": "content_filter",
                    "param": None,
                    "code": None,
                }


def _cut_message(said: dict[str, Any], part: Part | None, text: str) -> None:
    """Leave of a message what comes before a part, and `text` in its place; nothing without a part."""
    field = "" if part is None else part.block.field
    if field == "text":
        return  # it is before the text of its choice
    if isinstance(part, ToolCall) and part.call is not None and part.call.kind == "function_call":
        field = "function_call"
    names = list(_FIELDS)
    for name in names[names.index(field) if field else 0 :]:
        value = said.get(name)
        if not value:
            continue
        if name != field or part is None:
            if _FIELDS[name] == "tool_call":
                del said[name]
            else:
                said[name] = None
        elif _FIELDS[name] == "tool_call":
            del said[name]
            at = _position_of(part, value) if isinstance(value, list) else 0
            if at:
                said[name] = value[:at]
        elif isinstance(value, list):
            said[name] = _cut_list(value, part, text)
        else:
            said[name] = text


def _position_of(part: Part, items: list[Any]) -> int:
    """Where a list has a call; 0 if it has it no longer."""
    call = part.call if isinstance(part, ToolCall) else None
    places = (
        []
        if call is None
        else [
            place.holder for place in (*call.places, *call.repeats, call.begun) if place is not None
        ]
    )
    for position, item in enumerate(items):
        if isinstance(item, dict) and any(
            inner is holder for inner in item.values() for holder in places
        ):
            return position
    return 0


def _cut_list(items: list[Any], part: Part, text: str) -> list[Any]:
    """The items of a content up to the one that holds a part's text, of which `text` is left."""
    delta = part.delta if isinstance(part, TextEnd) else part
    holder = delta.holder if isinstance(delta, TextDelta) else None
    kept: list[Any] = []
    for item in items:
        inner = item.get("thinking") if isinstance(item, dict) else None
        if isinstance(delta, TextDelta) and isinstance(item, dict) and item is holder:
            return [*kept, {**item, delta.key: text}]
        if isinstance(inner, list) and any(other is holder for other in inner):
            at = next(position for position, other in enumerate(inner) if other is holder)
            return [*kept, {**item, "thinking": [*inner[:at], {**inner[at], "text": text}]}]
        kept.append(item)
    return kept


def _chunk_like(message: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """A chunk with the ids of another, and one choice: no usage, and nothing that shows the other's
    content.
    """
    kept: dict[str, Any] = {}
    for name, of in _OF_CHUNK.items():
        if name in message and isinstance(message[name], of):
            kept[name] = message[name]
    return {**kept, "choices": [choice]}


def _is_empty(delta: Any) -> bool:
    """Whether a delta says nothing: no text, and of tool calls at most where they would go on."""
    return isinstance(delta, dict) and all(
        not value
        or (name == "tool_calls" and isinstance(value, list) and all(map(_is_empty_call, value)))
        for name, value in delta.items()
    )


def _kind_of(item: dict[str, Any]) -> tuple[str, str]:
    """Where a call has its name, and under which name its arguments. Some servers send an empty
    `custom` beside `function`.
    """
    custom = item.get("custom") is not None and (item["custom"] != {} or not item.get("function"))
    return ("custom", "input") if custom else ("function", "arguments")


def _is_empty_call(item: Any) -> bool:
    holder = (
        (item.get("custom") or item.get("function") or {})
        if isinstance(item, dict)
        else {"name": item}
    )
    return (
        isinstance(item, dict)
        and isinstance(holder, dict)
        and not (
            item.get("id") or holder.get("name") or holder.get("arguments") or holder.get("input")
        )
    )
