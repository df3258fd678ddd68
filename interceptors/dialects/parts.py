"""The parts that a reader finds in a message: typed views into the decoded JSON.

Setting a part writes into the JSON and marks the part as `changed`: the message is then encoded
again.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pools import decode_json, encode_any_json

from ..errors import Misused

__all__ = [
    "Block",
    "Finish",
    "Kind",
    "Part",
    "ProviderError",
    "TextDelta",
    "TextEnd",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
]

Kind = Literal["text", "thinking", "refusal", "other", "tool_call", "message"]
"""`other`: text that clients are shown besides these: the input of a tool that the provider runs, a
transcript.
"""


class Block(NamedTuple):
    """The place of a part in the answer: one value for all deltas of one text. Usable as a key."""

    kind: Kind
    output: int
    """OpenAI chat: the choice. OpenAI responses: the output item. Anthropic: the content block."""
    part: int = 0
    """OpenAI chat: which of the choice's tool calls, or which part of a content that is a list.
    OpenAI responses: which part of the item's content or summary. Anthropic: 0, or how many blocks
    began at this index before.
    """
    field: str = "content"
    """OpenAI: the field of the text, such as `content`, `reasoning_content` or `summary`."""


_MESSAGE = Block("message", 0)


class Part:
    """A part of one message."""

    __slots__ = ("block", "changed")

    def __init__(self, block: Block) -> None:
        self.block: Block = block
        self.changed: bool = False
        """A hook has changed it."""

    def __repr__(self) -> str:
        # No text, which may be secret: this appears in logs.
        return f"<{type(self).__name__} {tuple(self.block)}>"


class TextDelta(Part):
    """Some text of a block, not empty when it is read: a delta, or, if `whole`, all of it.

    `holder` and `key` belong to the reader: the place of the text.
    """

    __slots__ = ("_tokens", "dropped", "grows", "holder", "key", "repeated", "whole")

    def __init__(
        self,
        block: Block,
        holder: dict[str, Any],
        key: str,
        *,
        whole: bool = False,
        repeated: bool = False,
        grows: bool = False,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        """`holder[key]` is the text. `tokens["logprobs"]` are its tokens, removed if it changes."""
        self.block = block
        self.changed = False
        self.dropped: bool = False
        self.whole: bool = whole
        """The whole text of the block: of an unstreamed answer, or repeated at the end of a stream.
        """
        self.repeated: bool = repeated
        """The client has had this text before, as deltas: change it like those, do not count it."""
        self.grows: bool = grows
        """The `whole` text is only what has come so far: a later message repeats it with more."""
        self.holder = holder
        self.key = key
        self._tokens = tokens

    @property
    def kind(self) -> Kind:
        """`text`, `thinking` (reasoning or its summary) or `refusal`; with `sees_other_texts` also
        `other`.
        """
        return self.block.kind

    @property
    def text(self) -> str:
        text: str = self.holder[self.key]
        return text

    @text.setter
    def text(self, text: str) -> None:
        if not isinstance(text, str):
            raise Misused(f"the text of a delta is a string, not {type(text).__name__}")
        if text != self.holder[self.key]:
            self.holder[self.key] = text
            self.changed = True
            if self._tokens is not None and self._tokens.get("logprobs"):
                self._tokens["logprobs"] = (
                    [] if isinstance(self._tokens["logprobs"], list) else None
                )
        self.dropped = False

    def drop(self) -> None:
        """Remove the text. An event that has nothing else does not leave at all."""
        self.text = ""
        self.dropped = True


class TextEnd(Part):
    """The text of a block is complete, after its last delta or its `whole` text."""

    __slots__ = ("added", "delta", "repeated", "whole")

    def __init__(
        self,
        block: Block,
        delta: TextDelta | None = None,
        *,
        whole: bool = False,
        repeated: bool = False,
    ) -> None:
        """`delta`: the text of the block in the same message, which can take more text."""
        super().__init__(block)
        self.whole: bool = whole
        self.repeated: bool = repeated
        self.added: str = ""
        """Added text without a place in this message: it leaves as an event before this one."""
        self.delta = delta

    @property
    def kind(self) -> Kind:
        return self.block.kind

    def add(self, text: str) -> None:
        """Append text to the block."""
        if self.delta is not None:
            self.delta.text += text
        else:
            self.added += text


class ToolCallDelta(Part):
    """Some of the arguments of a tool call, or its beginning. Read only: change `ToolCall`."""

    __slots__ = ("arguments", "holder", "id", "key", "name")

    def __init__(
        self,
        block: Block,
        id: str | None,
        name: str | None,
        arguments: str,
        holder: dict[str, Any],
        key: str,
    ) -> None:
        """`holder[key]` is the piece, as text or decoded; it may be absent."""
        self.block = block
        self.changed = False
        self.holder = holder
        self.key = key
        self.id: str | None = id
        """The id and name of the call, as far as known."""
        self.name: str | None = name
        self.arguments: str = arguments
        """A piece of JSON text; "" in a delta that only begins a call."""


class ToolCall(Part):
    """A tool call that the client is to run, complete.

    On a class with `holds_tool_calls`, set `arguments`, or call `drop()` or `refuse(text)`: nothing
    of the call has left yet.
    """

    __slots__ = ("_arguments", "_id", "_name", "call", "dropped", "held", "refusal")

    def __init__(
        self,
        block: Block,
        id: str | None,
        name: str | None,
        arguments: str,
        *,
        held: bool = False,
        call: Any = None,
    ) -> None:
        super().__init__(block)
        self.call: Any = call
        """For the reader."""
        self._id = id
        self._name = name
        self.held: bool = held
        """Nothing of it leaves before the hook returns: it can be changed, dropped and refused."""
        self.dropped: bool = False
        """`drop()` or `refuse()` was called."""
        self.refusal: str | None = None
        """The text in place of the call."""
        self._arguments = arguments

    @property
    def id(self) -> str | None:
        """Read only, like the name: clients send both back to the provider."""
        return self._id

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def arguments(self) -> str:
        """JSON text of the model, which may be invalid; for a `custom` tool the text of its input."""
        return self._arguments

    @arguments.setter
    def arguments(self, arguments: str) -> None:
        if not isinstance(arguments, str):
            raise Misused(
                f"the arguments of a tool call are JSON text, not {type(arguments).__name__}"
            )
        if arguments != self._arguments:
            self._must_be_held("its arguments can be changed")
            self._arguments = arguments
            self.changed = True

    def json(self) -> Any:
        """The arguments, decoded. Raises `ValueError` if they are not JSON."""
        return decode_json(self._arguments or "{}")

    def drop(self) -> None:
        """Remove the call: the client gets an answer without it. Raises `TypeError` unless the
        class has `holds_tool_calls`.
        """
        self._must_be_held("it can be dropped")
        self.dropped = self.changed = True

    def refuse(self, text: str) -> None:
        """Replace the call by a text. Raises `TypeError` unless the class has `holds_tool_calls`."""
        if not isinstance(text, str):
            raise Misused(
                f"the text in the place of a tool call is a string, not {type(text).__name__}"
            )
        self._must_be_held("it can be refused")
        self.refusal = text
        self.dropped = self.changed = True

    def _must_be_held(self, what: str) -> None:
        if not self.held:
            raise Misused(
                f"this tool call was already sent, so {what} no longer: "
                "set holds_tool_calls = True on the class"
            )


def arguments_text(value: Any) -> str:
    """The arguments of a call as JSON text: encoded if they are decoded JSON, "" if there are none."""
    if isinstance(value, str):
        return value
    return "" if value is None else encode_any_json(value).decode()


class Finish(Part):
    """Why a choice (OpenAI chat) or the message ended, in the dialect's own words: `stop`,
    `end_turn`, `completed`, ...
    """

    __slots__ = ("reason",)

    def __init__(self, block: Block, reason: str) -> None:
        super().__init__(block)
        self.reason: str = reason


Tokens = int | float
"""A number of tokens. Some providers report fractions."""


class Usage(Part):
    """Token counts so far. Later reports replace earlier ones, but 0 never replaces a count. None:
    not reported.

    `input` includes cached tokens in OpenAI's dialects and not in Anthropic's; `output` includes
    reasoning in all.
    """

    __slots__ = ("cache_written", "cached", "input", "json", "model", "output", "reasoning")

    def __init__(
        self,
        block: Block,
        model: str | None,
        json: dict[str, Any],
        input: Tokens | None,
        output: Tokens | None,
        cached: Tokens | None,
        cache_written: Tokens | None,
        reasoning: Tokens | None,
    ) -> None:
        super().__init__(block)
        self.model: str | None = model
        """The model, as the provider names it."""
        self.json: dict[str, Any] = json
        """The whole report of the provider."""
        self.input: Tokens | None = input
        self.output: Tokens | None = output
        self.cached: Tokens | None = cached
        """Input tokens that were read from a cache."""
        self.cache_written: Tokens | None = cache_written
        """Input tokens that were written to a cache."""
        self.reasoning: Tokens | None = reasoning


class ProviderError(Part):
    """An error of the provider, in a stream or instead of an answer."""

    __slots__ = ("code", "holder", "key", "type")

    def __init__(
        self, block: Block, type: str | None, code: str | None, holder: dict[str, Any], key: str
    ) -> None:
        """`holder[key]` is the message if it is text."""
        super().__init__(block)
        self.type: str | None = type
        self.code: str | None = code
        self.holder = holder
        self.key = key

    @property
    def message(self) -> str:
        """The message for people; "" if there is none."""
        text = self.holder.get(self.key)
        return text if isinstance(text, str) else ""

    @message.setter
    def message(self, message: str) -> None:
        if message != self.holder.get(self.key):
            self.holder[self.key] = message
            self.changed = True
