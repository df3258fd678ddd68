"""What the readers of LLM dialects have in common: which texts and tool calls are open, and the templates of what may be added.

Sans I/O: a reader is given the decoded messages of one response in their order, each once, and answers with the parts of each.
It knows nothing of events' bytes, of hooks, or of what becomes of the parts. What it does not know, it passes: other event types,
other fields, JSON that is no object. What contradicts its dialect is a `DialectError`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from .errors import DialectError, dict_in, int_in
from .parts import Block, Finish, Part, ProviderError, TextDelta, TextEnd, ToolCall, ToolCallDelta, Usage

__all__ = ["DONE", "MAX_ARGUMENTS", "MESSAGE", "Made", "Origin", "Reader"]

DONE = "[DONE]"
MAX_ARGUMENTS = 1 << 20
"""Characters of one tool call's arguments that are joined; more are a `DialectError`."""
MESSAGE = Block("message", 0)

Origin = tuple[str | None, dict[str, Any]]
"""The type of an event, and its message."""


class Made(NamedTuple):
    """An event that a reader has made."""

    event: str | None
    """Its type, as upstream names such an event; None where upstream names none."""
    data: dict[str, Any] | str
    """A message to be encoded, or text."""


class Call:
    """A tool call on its way."""

    __slots__ = ("done", "holder", "id", "key", "message", "name", "pieces", "said", "size")

    def __init__(self, id: str | None, name: str | None) -> None:
        self.id = id
        self.name = name
        self.pieces: list[str] = []
        self.size = 0
        self.message: dict[str, Any] | None = None  # that brought the last piece, and where it stands in it
        self.holder: dict[str, Any] | None = None
        self.key = ""
        self.done: ToolCall | None = None
        self.said = ""  # its arguments as they came, once it is done


class Reader(ABC):
    """One response in one dialect."""

    needles: ClassVar[Mapping[type[Part], bytes]]
    """Patterns, found in the bytes of each event that has a `Finish`, `Usage` or `ProviderError`."""
    names_events: ClassVar[bool] = True
    """Whether events of this dialect have a type besides the one in their data."""
    default_reason: ClassVar[str]
    """What `make_ending` gives as the reason when it is not told one: the dialect's word for an answer that a filter has ended."""

    def __init__(self, *, deltas: bool = True, hold_tool_calls: bool = False) -> None:
        """`deltas`: read texts and tool calls, too, and not only how an answer ended, usage and errors.

        `hold_tool_calls`: take the arguments out of their deltas, so that a whole call can still be changed.
        """
        self.deltas = deltas
        self.hold_tool_calls = hold_tool_calls
        self.model: str | None = None
        """The model that answers, once it was named."""
        # Each block's last delta, of which another can be made: of texts that have begun and not ended, in their order; of others.
        self._open: dict[Block, Origin] = {}
        self._last: dict[Block, Origin] = {}
        self._over: set[Block] = set()
        self._here: dict[Block, TextDelta] = {}  # each block's last delta in the message that is being read
        self._calls: dict[Block, Call] = {}
        self._leaving: list[Callable[[], object]] = []  # what is to be noted when the message that was read last has left

    # --- what the hooks' side asks ----------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, message: Any, event_type: str | None = None) -> list[Part]:
        """The parts of one message: an event's data, or the body of a response that is not streamed. Raises `DialectError`."""

    def read_end(self) -> list[Part]:
        """`[DONE]`, or upstream's stream is over: the last message has left, and whatever is still open ends here."""
        self.commit()
        parts: list[Part] = []
        self._end_all(parts)
        return parts

    @abstractmethod
    def knows(self, event_type: str) -> bool:
        """Whether the dialect has events of this type, whose data must be JSON."""

    @abstractmethod
    def says_nothing(self, message: dict[str, Any]) -> bool:
        """Whether an event whose deltas were dropped need not leave at all."""

    @abstractmethod
    def is_body(self, message: dict[str, Any]) -> bool:
        """Whether a message is a whole response, which is not streamed."""

    def opens(self, message: dict[str, Any]) -> bool:
        """Whether a block begins with this event, so that it must leave before the block can end."""
        return False

    def commit(self) -> None:
        """The message that was read last leaves, whatever was made of it. `read` does this when it is given the next."""
        for note in self._leaving:
            note()
        self._leaving.clear()
        self._here.clear()

    def can_add(self, block: Block) -> bool:
        """Whether `make_delta` can be asked for more of a block: it has had a delta."""
        return block in self._open or block in self._last

    def make_delta(self, block: Block, text: str) -> Made:
        """Another delta of a block that has had one: more text, or more of a tool call's arguments."""
        event_type, message = self._open.get(block) or self._last[block]
        return Made(event_type, self._another(block, message, text))

    @abstractmethod
    def make_ending(self, reason: str | None = None) -> list[Made]:
        """What must follow so that clients see a whole answer, when the message that was read last does not leave, unless it was
        committed. Nothing may be read afterwards.
        """

    @abstractmethod
    def cut_body(self, message: dict[str, Any], block: Block, text: str, reason: str | None = None) -> None:
        """End an answer that is not streamed in one of its blocks, of which `text` is left, and nothing of what is behind it."""

    # --- for the dialects -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        """A message like `message`, with nothing but a delta of this block. It shares no dict with `message` that is written to."""

    def _text(
        self,
        parts: list[Part],
        block: Block,
        holder: dict[str, Any],
        key: str,
        origin: Origin,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        """A delta with text in `holder[key]`."""
        if self._over and block in self._over:
            raise DialectError(f"there is more text of a block that was over: {tuple(block)}")
        self._open[block] = origin
        delta = self._here[block] = TextDelta(block, holder, key, tokens=tokens)
        parts.append(delta)

    def _end(self, parts: list[Part], block: Block) -> None:
        """The text of a block is complete, if it is open."""
        if block in self._open:
            self._last[block] = self._open.pop(block)
            self._over.add(block)
            parts.append(TextEnd(block, self._here.get(block)))

    def _end_all(self, parts: list[Part]) -> None:
        """Whatever is open ends."""
        for block in list(self._open):
            self._end(parts, block)
        for block in list(self._calls):
            self._complete(parts, block, None)

    def _whole(
        self, parts: list[Part], block: Block, holder: dict[str, Any], key: str, tokens: dict[str, Any] | None = None
    ) -> None:
        """All the text of a block stands in `holder[key]`; where it was open, that ends it."""
        self._end(parts, block)
        if holder.get(key):
            repeated = block in self._over
            self._over.add(block)
            delta = TextDelta(block, holder, key, whole=True, repeated=repeated, tokens=tokens)
            parts.append(delta)
            parts.append(TextEnd(block, delta, whole=True, repeated=repeated))

    def _begin_call(self, block: Block, id: str | None, name: str | None) -> Call:
        """The call of a block; what is told later completes what was told before."""
        call = self._calls.get(block)
        if call is None:
            call = self._calls[block] = Call(id, name)
        call.id = call.id or id
        call.name = call.name or name
        return call

    def _arguments(
        self,
        parts: list[Part],
        block: Block,
        call: Call,
        holder: dict[str, Any],
        key: str,
        origin: Origin,
    ) -> None:
        """A delta of a call, its arguments in `holder[key]`, which may be absent."""
        piece: str = holder.get(key) or ""
        if piece and call.done is not None:
            raise DialectError(f"there are more arguments of a tool call that was complete: {tuple(block)}")
        part = ToolCallDelta(block, call.id, call.name, piece)
        parts.append(part)
        if not piece:
            return
        call.size += len(piece)
        if call.size > MAX_ARGUMENTS:
            raise DialectError(f"the arguments of a tool call are longer than {MAX_ARGUMENTS} characters")
        call.pieces.append(piece)
        call.message, call.holder, call.key = origin[1], holder, key
        self._last[block] = origin
        if self.hold_tool_calls:
            holder[key] = ""
            part.changed = True

    def _complete(self, parts: list[Part], block: Block, message: dict[str, Any] | None) -> None:
        """A call whose arguments came as deltas is complete, with `message`, unless it was before."""
        call = self._calls[block]
        if call.done is not None:
            return
        arguments = call.said = "".join(call.pieces)
        call.pieces.clear()
        held = self.hold_tool_calls
        here = call.holder if held and call.message is message else None
        call.done = ToolCall(block, call.id, call.name, arguments, here, call.key, held=held)
        if here is not None:
            here[call.key] = arguments
        elif held:
            call.done.withheld = bool(arguments)
        call.holder = call.message = None
        parts.append(call.done)

    def _whole_call(
        self,
        parts: list[Part],
        block: Block,
        id: str | None,
        name: str | None,
        arguments: str,
        holder: dict[str, Any],
        key: str,
        *,
        whole: bool = False,
    ) -> None:
        """All arguments of a call stand in `holder[key]`. What repeats a call and says another is one that nobody was shown."""
        call = self._begin_call(block, id, name)
        if call.done is None:
            if call.pieces and "".join(call.pieces) != arguments:
                raise DialectError(f"the arguments of a tool call are not what its deltas were: {tuple(block)}")
            withheld = self.hold_tool_calls and bool(call.pieces)
            call.pieces.clear()
            call.holder = call.message = None
            call.said = arguments
            call.done = ToolCall(block, call.id, call.name, arguments, holder, key, held=self.hold_tool_calls, whole=whole)
            call.done.withheld = withheld
            parts.append(call.done)
            return
        same = (not arguments or arguments == call.said) and (not name or name == call.name)
        again = ToolCall(
            block,
            id or call.id,
            name or call.name,
            arguments,
            holder,
            key,
            held=self.hold_tool_calls,
            whole=True,
            repeated=same,
        )
        if same and call.done.changed:
            again.write(call.done.arguments)
        parts.append(again)


def usage_of(
    usage: dict[str, Any], model: str | None, names: tuple[str, str], details: tuple[tuple[str, str], ...]
) -> Usage:
    """Usage by its names: input and output, and for cached, cache-written and reasoning tokens an object and a name in it."""
    found: list[int | None] = [int_in(usage, name, "usage.") for name in names]
    for holder, name in details:
        inner = dict_in(usage, holder, "usage.") if holder else usage
        found.append(None if inner is None else int_in(inner, name, f"usage.{holder}."))
    return Usage(MESSAGE, model, usage, *found)


def error_of(holder: dict[str, Any], key: str) -> ProviderError:
    """The provider's error in `holder[key]`: an object, or, from servers that are less strict, text or anything."""
    error = holder[key]
    if not isinstance(error, dict):
        return ProviderError(MESSAGE, None, None, holder, key)
    return ProviderError(MESSAGE, _word(error.get("type")), _word(error.get("code")), error, "message")


def _word(value: Any) -> str | None:
    """A code: some servers say a number."""
    return str(value) if isinstance(value, (str, int)) else None


def finish_of(output: int, reason: str) -> Finish:
    """Why a choice, or, with 0, a message has ended."""
    return Finish(Block("message", output), reason)
