"""OpenAI chat completions: `chat.completion.chunk` events up to `[DONE]`, and the `chat.completion` of an unstreamed response.

Source: the types of OpenAI's Python SDK, `openai.types.chat`. Besides, `reasoning_content` and `reasoning`, where DeepSeek, vLLM,
OpenRouter and others put their thinking. Out of scope: `function_call` (deprecated before streams had tool calls), audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from .errors import dict_in, int_in, list_in, str_in
from .parts import Block, Finish, Kind, Part, ProviderError, Usage
from .reader import DONE, Made, Origin, Reader, error_of, finish_of, usage_of

__all__ = ["OpenAIChatReader"]

# In the order in which a message that is not streamed is read. Thoughts are no fields of OpenAI's own: any other value passes.
_FIELDS: dict[str, Kind] = {
    "reasoning_content": "thinking",
    "reasoning": "thinking",
    "content": "text",
    "refusal": "refusal",
    "tool_calls": "tool_call",
}
# Where a content is a list of parts: of each type of part the kind of its text, which stands in a field of that name.
_PARTS: dict[str, Kind] = {"text": "text", "refusal": "refusal"}
_DETAILS = (
    ("prompt_tokens_details", "cached_tokens"),
    ("prompt_tokens_details", "cache_write_tokens"),
    ("completion_tokens_details", "reasoning_tokens"),
)


class OpenAIChatReader(Reader):
    """A choice's texts end with its `finish_reason`, whatever comes between their deltas, and so do its tool calls."""

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"finish_reason"\s*:\s*"',
        Usage: rb'"usage"\s*:\s*\{',
        ProviderError: rb'"error"',
    }
    names_events: ClassVar[bool] = False
    default_reason: ClassVar[str] = "content_filter"

    def __init__(self, *, deltas: bool = True, hold_tool_calls: bool = False) -> None:
        super().__init__(deltas=deltas, hold_tool_calls=hold_tool_calls)
        self._choices: dict[int, Origin] = {}  # unfinished ones, each with its last chunk
        # By choice, so that the end of one looks at no other: its texts, by field, and its calls that are not complete.
        self._texts: dict[int, dict[str, Block]] = {}
        self._begun: dict[int, list[Block]] = {}

    def read(self, message: Any, event_type: str | None = None) -> list[Part]:
        if not isinstance(message, dict):
            return []
        self.commit()
        parts: list[Part] = []
        self.model = str_in(message, "model") or self.model
        origin = event_type, message
        for position, choice in enumerate(list_in(message, "choices")):
            index = int_in(choice, "index", "choices[].")
            if index is None:
                index = position
            if self.deltas:
                delta = dict_in(choice, "delta", "choices[].")
                if delta is not None:
                    self._choices[index] = origin
                    self._read_delta(parts, index, delta, choice, origin)
                whole = dict_in(choice, "message", "choices[].")
                if whole is not None:
                    self._read_whole(parts, index, whole, choice)
            reason = str_in(choice, "finish_reason", "choices[].")
            if reason is not None:
                self._finish(parts, index, message)
                parts.append(finish_of(index, reason))
        usage = dict_in(message, "usage")
        if usage is not None:
            parts.append(usage_of(usage, self.model, ("prompt_tokens", "completion_tokens"), _DETAILS))
        if message.get("error") is not None:
            parts.append(error_of(message, "error"))
        return parts

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
            if kind is None or not value or (kind == "thinking" and not isinstance(value, str)):
                continue
            if kind == "tool_call":
                self._read_tool_calls(parts, index, delta, origin)
                continue
            str_in(delta, name, "choices[].delta.")
            texts = self._texts.get(index)
            if texts is None:
                texts = self._texts[index] = {}
            block = texts.get(name)
            if block is None:  # made once: every event would pay for it
                block = texts[name] = Block(kind, index, 0, name)
            self._text(parts, block, delta, name, origin, choice)

    def _read_tool_calls(self, parts: list[Part], index: int, delta: dict[str, Any], origin: Origin) -> None:
        where = "choices[].delta.tool_calls[]."
        for position, item in enumerate(list_in(delta, "tool_calls", "choices[].delta.")):
            part = int_in(item, "index", where)
            block = Block("tool_call", index, position if part is None else part, "tool_calls")
            kind, key = ("custom", "input") if item.get("custom") is not None else ("function", "arguments")
            holder = dict_in(item, kind, where) or {}
            str_in(holder, key, f"{where}{kind}.")
            if block not in self._calls:
                self._begun.setdefault(index, []).append(block)
            call = self._begin_call(block, str_in(item, "id", where), str_in(holder, "name", f"{where}{kind}."))
            self._arguments(parts, block, call, holder, key, origin)

    def _read_whole(self, parts: list[Part], index: int, message: dict[str, Any], choice: dict[str, Any]) -> None:
        for name, kind in _FIELDS.items():
            if kind == "tool_call" or (kind == "thinking" and not isinstance(message.get(name), str)):
                continue
            if name == "content" and isinstance(message.get(name), list):
                self._read_parts(parts, index, message, choice)
                continue
            str_in(message, name, "choices[].message.")
            self._whole(parts, Block(kind, index, 0, name), message, name, choice)
        where = "choices[].message.tool_calls[]."
        for position, item in enumerate(list_in(message, "tool_calls", "choices[].message.")):
            block = Block("tool_call", index, position, "tool_calls")
            for holder_name, key in (("function", "arguments"), ("custom", "input")):
                holder = dict_in(item, holder_name, where)
                if holder is not None:
                    arguments = str_in(holder, key, f"{where}{holder_name}.") or ""
                    name_of_tool = str_in(holder, "name", f"{where}{holder_name}.")
                    self._whole_call(
                        parts, block, str_in(item, "id", where), name_of_tool, arguments, holder, key, whole=True
                    )
                    break

    def _read_parts(self, parts: list[Part], index: int, message: dict[str, Any], choice: dict[str, Any]) -> None:
        """A content that is a list, as a request may have it and some servers answer; parts of other types pass."""
        where = "choices[].message.content[]."
        for position, part in enumerate(list_in(message, "content", "choices[].message.")):
            of = str_in(part, "type", where)
            if of in _PARTS:
                kind = _PARTS[of]
                str_in(part, kind, where)
                self._whole(parts, Block(kind, index, position, "content"), part, kind, choice)

    def _finish(self, parts: list[Part], index: int, message: dict[str, Any]) -> None:
        for block in self._texts.get(index, {}).values():
            self._end(parts, block)
        for block in self._begun.pop(index, ()):
            self._complete(parts, block, message)
        self._leaving.append(partial(self._choices.pop, index, None))

    def knows(self, event_type: str) -> bool:
        return event_type == "message"  # what an event without a type is

    def says_nothing(self, message: dict[str, Any]) -> bool:
        if message.get("usage") is not None or message.get("error") is not None:
            return False
        return all(
            not value or (name == "delta" and _is_empty(value))
            for choice in message["choices"]
            for name, value in choice.items()
            if name not in ("index", "logprobs")
        )

    def is_body(self, message: dict[str, Any]) -> bool:
        return any("message" in choice for choice in message.get("choices") or ())

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        delta: dict[str, Any] = {block.field: text}
        if block.kind == "tool_call":
            key = self._calls[block].key  # where its last piece stood
            call = {"custom": {"input": text}} if key == "input" else {"function": {"arguments": text}}
            delta = {"tool_calls": [{"index": block.part, **call}]}
        return _chunk_like(message, {"index": block.output, "delta": delta, "finish_reason": None})

    def make_ending(self, reason: str | None = None) -> list[Made]:
        made = [
            Made(
                event_type,
                _chunk_like(message, {"index": index, "delta": {}, "finish_reason": reason or self.default_reason}),
            )
            for index, (event_type, message) in sorted(self._choices.items())
        ]
        self._choices.clear()
        return [*made, Made(None, DONE)]

    def cut_body(self, message: dict[str, Any], block: Block, text: str, reason: str | None = None) -> None:
        behind = False
        for position, choice in enumerate(message["choices"]):
            index = choice.get("index")
            here = block.output == (position if index is None else index)
            if not here and not behind:
                continue  # it was seen whole before
            said: dict[str, Any] = choice.get("message") or {}
            names = list(_FIELDS)
            for name in names[names.index(block.field) :] if here else names:
                if name == "tool_calls":
                    kept = said.get(name) or []
                    said.pop(name, None)
                    if here and block.kind == "tool_call" and block.part:
                        said[name] = kept[: block.part]
                elif here and name == block.field and isinstance(said.get(name), list):
                    del said[name][block.part + 1 :]
                    for part in said[name][block.part :]:  # it, unless a choice before had the same index
                        part[block.kind] = text
                elif said.get(name):
                    said[name] = text if here and name == block.field else None
            if choice.get("logprobs"):
                choice["logprobs"] = None
            choice["finish_reason"] = reason or self.default_reason
            behind = True


def _chunk_like(message: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """A chunk with the ids of another, and one choice: no usage, and nothing that told of the other's content."""
    kept = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "provider")
    return {**{name: message[name] for name in kept if name in message}, "choices": [choice]}


def _is_empty(delta: Any) -> bool:
    """Whether a delta says nothing: no text, and of tool calls at most where they would go on."""
    return isinstance(delta, dict) and all(
        not value
        or (
            name == "tool_calls"
            and not any(item.get("id") or _holder(item).get("name") for item in value)
            and not any(_holder(item).get("arguments") or _holder(item).get("input") for item in value)
        )
        for name, value in delta.items()
    )


def _holder(item: dict[str, Any]) -> dict[str, Any]:
    """Where a tool call has its name and its arguments."""
    return item.get("custom") or item.get("function") or {}
