"""OpenAI chat completions: `chat.completion.chunk` events up to `[DONE]`, and the unstreamed
`chat.completion`.

Source: the types of OpenAI's Python SDK, `openai.types.chat`. In addition: `reasoning_content` and
`reasoning` (DeepSeek, vLLM and others), `reasoning_details` (OpenRouter), a `content` that is a
list with thinking in it (Mistral), a cumulative `message` beside the `delta` (Perplexity), and
`text` in the choice (completions, Together). Tool calls are in `chat_calls`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from .chat_calls import ChatCallReader
from .chat_chunk import chunk_like
from .chat_cut import cut_choice, cut_everything
from .chat_fields import DETAILS, FIELDS, PARTS
from .parts import Block, Finish, Kind, Part, ProviderError, TextDelta, TextEnd, Usage
from .provider_words import error_in, error_of, finish_of
from .reader import DONE, Made, Origin
from .unread import Unread

__all__ = ["OpenAIChatReader"]


class OpenAIChatReader(ChatCallReader):
    """The texts and tool calls of a choice end with its `finish_reason`, in any order of deltas."""

    needles: ClassVar[Mapping[type[Part], bytes]] = {
        Finish: rb'"finish_reason"\s*:\s*"',
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
        self._choices: dict[int, Origin] = {}  # unfinished ones, each with its last chunk
        self._has_choices = False
        # The texts of each choice, by field: the end of one must not search the others.
        self._texts: dict[int, dict[str, Block]] = {}
        self._templates: dict[Block, dict[str, Any]] = {}  # an item of each `reasoning_details`

    def _read(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None:
        get = message.get
        model = get("model")
        if model is not self.model:
            self.model = self._str(message, "model") or self.model
        choices = get("choices")
        if type(choices) is list:
            origin = None, message
            for position, choice in enumerate(choices):
                if isinstance(choice, dict):
                    self._read_choice(parts, position, choice, origin)
                else:
                    self._odd("choices[]", choice, "an object")
        elif choices is not None:
            self._odd("choices", choices, "a list")
        is_rest = choices is None or "x_groq" in message
        if is_rest or get("usage") is not None or get("error") is not None:
            # Some servers name the events of chunks: that is not the type of an error.
            self._read_rest(parts, message, None if "choices" in message else event_type)

    def _read_choice(
        self, parts: list[Part], position: int, choice: dict[str, Any], origin: Origin
    ) -> None:
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

    def _read_beside(
        self, parts: list[Part], index: int, choice: dict[str, Any], origin: Origin, delta: Any
    ) -> None:
        """What a choice has beside a delta, or instead of one: a text, a whole message."""
        if isinstance(choice.get("text"), str) and choice["text"]:
            self._choices[index] = origin
            block = self._block(index, "text", "text")
            # Beside a delta, it is the same text again.
            self._text(parts, block, choice, "text", origin, choice).repeated = bool(delta)
        whole = self._dict(choice, "message", "choices[].")
        if whole is not None:
            self._choices.setdefault(index, origin)
            self._read_whole(parts, index, whole, choice, grows=isinstance(delta, dict))

    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None:
        self.model = self._str(message, "model") or self.model
        for position, choice in self._items(message, "choices"):
            index = self._index(choice, position)
            if self.deltas:
                for name in ("message", "delta"):  # "delta": a chunk, sent as a body
                    whole = self._dict(choice, name, "choices[].")
                    if whole is not None:
                        self._read_whole(parts, index, whole, choice)
                if isinstance(choice.get("text"), str):
                    self._whole(parts, Block("text", index, 0, "text"), choice, "text", choice)
            self._read_end_of_choice(parts, index, choice)
        self._read_rest(parts, message, None)

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
        is_error = "error" in (message.get("object"), event_type, message.get("type"))
        error = error_in(message, is_error=is_error)
        if error is not None:
            parts.append(error)

    def _read_delta(
        self,
        parts: list[Part],
        index: int,
        delta: dict[str, Any],
        choice: dict[str, Any],
        origin: Origin,
    ) -> None:
        for name, value in delta.items():
            kind = FIELDS.get(name)
            if kind is None or not value:
                if self.others and name == "audio" and value:
                    self._read_audio(parts, index, value, choice, origin)
            elif type(value) is str and kind != "tool_call" and name != "reasoning_details":
                texts = self._texts.get(index)
                block = texts.get(name) if texts is not None else None
                if block is None:  # made once: every event would pay for it
                    block = self._block(index, kind, name)
                self._text(parts, block, delta, name, origin, choice)
            elif name == "tool_calls":
                self._read_tool_calls(parts, index, delta, choice)
            elif name == "function_call":
                self._read_function_call(parts, index, delta, choice)
            elif name == "reasoning_details":
                self._read_details(
                    parts, index, delta, origin, repeated=isinstance(delta.get("reasoning"), str)
                )
            elif name == "content" and isinstance(value, list):
                for of, holder, key in self._texts_in(value, "choices[].delta.content[]"):
                    self._text(parts, self._block(index, of, name), holder, key, origin, choice)
            else:
                self._odd(f"choices[].delta.{name}", value, "a string")

    def _read_audio(
        self, parts: list[Part], index: int, audio: Any, choice: dict[str, Any], origin: Origin
    ) -> None:
        if isinstance(audio, dict) and isinstance(audio.get("transcript"), str):
            block = self._block(index, "other", "audio")
            self._text(parts, block, audio, "transcript", origin, choice)

    def _block(self, index: int, kind: Kind, field: str) -> Block:
        """The block of a text of a choice. A list in `content` may have several kinds of text."""
        texts = self._texts.setdefault(index, {})
        key = field if FIELDS.get(field) == kind else f"{field}/{kind}"
        block = texts.get(key)
        if block is None:
            block = texts[key] = Block(kind, index, 0, field)
        return block

    def _texts_in(self, content: list[Any], where: str) -> list[tuple[Kind, dict[str, Any], str]]:
        """The texts in a content that is a list: the kind, holder and key of each.

        Thinking may be a list of texts itself.
        """
        found: list[tuple[Kind, dict[str, Any], str]] = []
        for item in content:
            if not isinstance(item, dict):
                self._odd(where, item, "an object")
                continue
            of = item.get("type")
            if not isinstance(of, str) or of not in PARTS:
                continue
            kind, key = PARTS[of]
            value = item.get(key)
            if isinstance(value, str):
                if value:
                    found.append((kind, item, key))
            elif kind == "thinking" and isinstance(value, list):
                found += [(kind, inner, "text") for inner in value if _has_text(inner)]
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
        """OpenRouter's `reasoning_details`. If `reasoning` is there, they repeat its text."""
        where = "choices[].delta.reasoning_details[]."
        for position, item in self._items(delta, "reasoning_details", "choices[].delta."):
            key = self._detail_key(item, where)
            if key is None:
                continue
            number = self._number(item, "index", where)
            number = position if number is None else number
            texts = self._texts.setdefault(index, {})
            block = texts.setdefault(
                f"reasoning_details/{number}/{key}",
                Block("thinking", index, number, "reasoning_details"),
            )
            self._templates[block] = item
            self._text(parts, block, item, key, origin).repeated = repeated

    def _detail_key(self, item: dict[str, Any], where: str) -> str | None:
        """The field of an item of `reasoning_details` that has text; None if there is no text."""
        of = item.get("type")
        key = DETAILS.get(of) if isinstance(of, str) else None
        return key if key is not None and self._str(item, key, where) else None

    def _read_whole(
        self,
        parts: list[Part],
        index: int,
        message: dict[str, Any],
        choice: dict[str, Any],
        *,
        grows: bool = False,
    ) -> None:
        """A whole message. `grows`: it stands beside a delta, and has what all deltas had so far."""
        for name, kind in FIELDS.items():
            value = message.get(name)
            if not value:
                continue
            texts: list[tuple[Kind, int, dict[str, Any], str]] = []
            if name == "tool_calls":
                self._read_whole_calls(parts, index, message, choice, grows=grows)
            elif name == "function_call":
                self._read_whole_function_call(parts, index, message, choice, grows=grows)
            elif name == "reasoning_details":
                self._read_whole_details(parts, index, message, choice, grows=grows)
            elif isinstance(value, str):
                texts = [(kind, 0, message, name)]
            elif name == "content" and isinstance(value, list):
                found = self._texts_in(value, "choices[].message.content[]")
                texts = [(of, at, holder, key) for at, (of, holder, key) in enumerate(found)]
            else:
                self._odd(f"choices[].message.{name}", value, "a string")
            for of, at, holder, key in texts:
                block = Block(of, index, at, name)
                if grows:
                    self._show_again(parts, block, holder, key, choice, grows=True, repeats=False)
                else:
                    self._whole(parts, block, holder, key, choice)

    def _read_whole_details(
        self,
        parts: list[Part],
        index: int,
        message: dict[str, Any],
        choice: dict[str, Any],
        *,
        grows: bool,
    ) -> None:
        repeats = isinstance(message.get("reasoning"), str)
        where = "choices[].message.reasoning_details[]."
        for position, item in self._items(message, "reasoning_details", "choices[].message."):
            key = self._detail_key(item, where)
            if key is None:
                continue
            block = Block("thinking", index, position, "reasoning_details")
            if grows or repeats:
                self._show_again(parts, block, item, key, choice, grows=grows, repeats=repeats)
            else:
                self._whole(parts, block, item, key, choice)

    def _show_again(
        self,
        parts: list[Part],
        block: Block,
        holder: dict[str, Any],
        key: str,
        choice: dict[str, Any],
        *,
        grows: bool,
        repeats: bool,
    ) -> None:
        """A whole text that does not end its block. `grows`: as in `_read_whole`. `repeats`: it stands
        elsewhere in the message.
        """
        is_over = block in self._over
        repeated = repeats or block in self._open or is_over
        reason = choice.get("finish_reason")
        if is_over or (isinstance(reason, str) and reason and block.output not in self._endless):
            grows = False  # the text has ended, or ends in this chunk
        delta = TextDelta(
            block, holder, key, whole=True, repeated=repeated, grows=grows, tokens=choice
        )
        parts += delta, TextEnd(block, delta, whole=True, repeated=repeated)

    def _end_mark(self, block: Block) -> Any:
        return block.output  # for all blocks of a choice: they end together

    def _finish(self, parts: list[Part], index: int) -> None:
        if index in self._endless:
            return
        for block in self._texts.get(index, {}).values():
            self._end(parts, block)
        for call in list(self._open_calls.get(index, {}).values()):
            self._complete(parts, call)
        self._leaving.append(partial(self._choices.pop, index, None))

    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        delta: dict[str, Any] = {block.field: text}
        if block.field == "reasoning_details":
            template = self._templates[block]
            delta = {"reasoning_details": [{**template, DETAILS[template["type"]]: text}]}
        elif block.field == "content" and block.kind == "thinking":
            inner = [{"type": "text", "text": text}]
            delta = {"content": [{"type": "thinking", "thinking": inner}]}
        elif block.field == "text":
            choice = {"index": block.output, "text": text, "finish_reason": None}
            return chunk_like(message, choice)
        elif block.kind == "other":
            delta = {"audio": {"transcript": text}}
        elif block.field == "content" and block.kind == "refusal":
            delta = {"refusal": text}
        return chunk_like(message, {"index": block.output, "delta": delta, "finish_reason": None})

    def make_ending(self, reason: str | None = None) -> list[Made]:
        reason = reason or self.default_reason
        made = []
        for index, (event_type, message) in sorted(self._choices.items()):
            choice = {"index": index, "delta": {}, "finish_reason": reason}
            made.append(Made(event_type, chunk_like(message, choice)))
        if not self._has_choices:  # the first event does not leave: an answer with nothing in it
            empty = {"id": "", "object": "chat.completion.chunk", "created": 0}
            choice = {"index": 0, "delta": {}, "finish_reason": reason}
            made.append(Made(None, {**empty, "model": self.model or "", "choices": [choice]}))
        self._choices.clear()
        return [*made, Made(None, DONE)]

    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        reason = reason or self.default_reason
        choices = list(self._items(message, "choices"))
        if isinstance(part, Unread):
            cut_everything(message, [choice for _, choice in choices], reason)
            return
        is_after = False
        for position, choice in choices:
            is_here = part.block.output == self._index(choice, position)
            is_after = is_after or is_here
            if is_after:  # hooks have seen all of the choices before
                cut_choice(choice, part if is_here else None, text, reason)


def _has_text(item: Any) -> bool:
    return isinstance(item, dict) and isinstance(item.get("text"), str) and bool(item["text"])
