"""What a reader finds in a message: small typed parts, views into the decoded JSON. Setting one writes into that, and marks it
`changed`; whoever read the message then knows that it must be written anew.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pools import decode_json, encode_json

__all__ = ["Block", "Finish", "Kind", "Part", "ProviderError", "TextDelta", "TextEnd", "ToolCall", "ToolCallDelta", "Usage"]

Kind = Literal["text", "thinking", "refusal", "tool_call", "message"]


class Block(NamedTuple):
    """Where in the answer something belongs; the same value for all deltas of one text. A key for dicts."""

    kind: Kind
    output: int
    """OpenAI chat: the choice. OpenAI responses: the output item. Anthropic: the content block."""
    part: int = 0
    """OpenAI chat: which of the choice's tool calls, or which part of a content that is a list. OpenAI responses: which part of the
    item's content or summary.
    """
    field: str = "content"
    """OpenAI: the field in which the text stands, where there may be several: `reasoning_content`, `summary`."""


class Part:
    """Something in one message."""

    __slots__ = ("block", "changed")

    def __init__(self, block: Block) -> None:
        self.block: Block = block
        self.changed: bool = False
        """Whether it was set, so that the message is no longer what came."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {tuple(self.block)}>"  # no text: it may be secret, and this ends up in logs


class TextDelta(Part):
    """Some text of a block, never empty when it is read: one delta of many, or, when `whole`, all of it."""

    __slots__ = ("_holder", "_key", "_tokens", "dropped", "repeated", "whole")

    def __init__(
        self,
        block: Block,
        holder: dict[str, Any],
        key: str,
        *,
        whole: bool = False,
        repeated: bool = False,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        """`holder[key]` is the text. `tokens["logprobs"]` shows its tokens, which go when the text is another."""
        self.block = block
        self.changed = False
        self.dropped: bool = False
        self.whole: bool = whole
        """The block's whole text: of an answer that is not streamed, or repeated at the end of one that is."""
        self.repeated: bool = repeated
        """The client has been shown this text before, as deltas: change it as those, and do not count it."""
        self._holder = holder
        self._key = key
        self._tokens = tokens

    @property
    def kind(self) -> Kind:
        """`text`, `thinking` (a reasoning or its summary) or `refusal`."""
        return self.block.kind

    @property
    def text(self) -> str:
        text: str = self._holder[self._key]
        return text

    @text.setter
    def text(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"the text of a delta is a string, not {type(text).__name__}")
        if text != self._holder[self._key]:
            self._holder[self._key] = text
            self.changed = True
            if self._tokens is not None and self._tokens.get("logprobs"):
                self._tokens["logprobs"] = [] if isinstance(self._tokens["logprobs"], list) else None
        self.dropped = False

    def drop(self) -> None:
        """Let the client see nothing of it. An event that carries nothing else does not leave at all."""
        self.text = ""
        self.dropped = True


class TextEnd(Part):
    """A block's text is complete: after its last delta, or after a `whole` text."""

    __slots__ = ("_delta", "added", "repeated", "whole")

    def __init__(self, block: Block, delta: TextDelta | None = None, *, whole: bool = False, repeated: bool = False) -> None:
        """`delta`: the block's text in the same message, behind which more can be written."""
        super().__init__(block)
        self.whole: bool = whole
        self.repeated: bool = repeated
        self.added: str = ""
        """What was added and has no place in this message: an event of its own, before this one."""
        self._delta = delta

    @property
    def kind(self) -> Kind:
        return self.block.kind

    def add(self, text: str) -> None:
        """Put text at the block's end."""
        if self._delta is not None:
            self._delta.text += text
        else:
            self.added += text


class ToolCallDelta(Part):
    """Some of a tool call's arguments, or its beginning. Read only: `ToolCall` is there to change a call."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self, block: Block, id: str | None, name: str | None, arguments: str) -> None:
        super().__init__(block)
        self.id: str | None = id
        """The call's id and name, as known so far."""
        self.name: str | None = name
        self.arguments: str = arguments
        """A piece of JSON text; "" in a delta that only begins a call."""


class ToolCall(Part):
    """A tool call that the client is to run, complete."""

    __slots__ = ("_arguments", "_holder", "_key", "held", "id", "name", "repeated", "whole", "withheld")

    def __init__(
        self,
        block: Block,
        id: str | None,
        name: str | None,
        arguments: str,
        holder: dict[str, Any] | None = None,
        key: str = "arguments",
        *,
        held: bool = False,
        whole: bool = False,
        repeated: bool = False,
    ) -> None:
        """`holder[key]`: the arguments in this message, if they are there; as text, or decoded if `key` is `input` (Anthropic)."""
        super().__init__(block)
        self.id: str | None = id
        self.name: str | None = name
        self.whole: bool = whole
        self.repeated: bool = repeated
        """Shown before, the same; the reader has written into it what the call was changed to."""
        self.held: bool = held
        """Its deltas were held back, so that it can be changed."""
        self.withheld: bool = False
        """None of its arguments have left yet: they need an event of their own, before this one."""
        self._arguments = arguments
        self._holder = holder
        self._key = key

    @property
    def arguments(self) -> str:
        """JSON text, as the model wrote it: it may be no JSON. For a `custom` tool the text of its input."""
        return self._arguments

    @arguments.setter
    def arguments(self, arguments: str) -> None:
        if not self.held:
            raise TypeError(
                "a tool call can be changed only where its deltas are held back: set holds_tool_calls = True on the class"
            )
        if not isinstance(arguments, str):
            raise TypeError(f"the arguments of a tool call are JSON text, not {type(arguments).__name__}")
        if arguments != self._arguments:
            self.write(arguments)

    def json(self) -> Any:
        """The arguments decoded, anew at each call. Raises `ValueError` when they are no JSON."""
        return decode_json(self._arguments or "{}")

    def write(self, arguments: str) -> None:
        """Set the arguments, here and in the message. For readers; an interceptor sets `arguments`."""
        if self._holder is not None:
            self._holder[self._key] = decode_json(arguments) if isinstance(self._holder.get(self._key), dict) else arguments
        self._arguments = arguments
        self.changed = True


def input_text(value: Any) -> str:
    """Decoded arguments (Anthropic's `input`) as JSON text."""
    return "" if value is None else encode_json(value).decode()


class Finish(Part):
    """Why a choice (OpenAI chat) or the message ended, in the dialect's own words: `stop`, `end_turn`, `completed`, ..."""

    __slots__ = ("reason",)

    def __init__(self, block: Block, reason: str) -> None:
        super().__init__(block)
        self.reason: str = reason


class Usage(Part):
    """Tokens, as told so far: what a later one tells replaces what an earlier one told. None is not told; 0 is none.

    `input` includes cached tokens in OpenAI's dialects and not in Anthropic's; `output` includes reasoning in all.
    """

    __slots__ = ("cache_written", "cached", "input", "json", "model", "output", "reasoning")

    def __init__(
        self,
        block: Block,
        model: str | None,
        json: dict[str, Any],
        input: int | None,
        output: int | None,
        cached: int | None,
        cache_written: int | None,
        reasoning: int | None,
    ) -> None:
        super().__init__(block)
        self.model: str | None = model
        """The model that has answered, as the provider names it."""
        self.json: dict[str, Any] = json
        """All that was told, in the dialect's own words."""
        self.input: int | None = input
        self.output: int | None = output
        self.cached: int | None = cached
        """Input tokens that were read from a cache."""
        self.cache_written: int | None = cache_written
        """Input tokens that were written to a cache."""
        self.reasoning: int | None = reasoning


class ProviderError(Part):
    """The provider says what went wrong: in a stream, or instead of an answer."""

    __slots__ = ("_holder", "_key", "code", "type")

    def __init__(self, block: Block, type: str | None, code: str | None, holder: dict[str, Any], key: str) -> None:
        """`holder[key]` is the message, if it is text."""
        super().__init__(block)
        self.type: str | None = type
        self.code: str | None = code
        self._holder = holder
        self._key = key

    @property
    def message(self) -> str:
        """What it says to people, "" when nothing."""
        text = self._holder.get(self._key)
        return text if isinstance(text, str) else ""

    @message.setter
    def message(self, message: str) -> None:
        if message != self._holder.get(self._key):
            self._holder[self._key] = message
            self.changed = True
