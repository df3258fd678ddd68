"""What the readers of LLM dialects have in common: texts and tool calls on their way, and what may
be written in their place.

Sans I/O: a reader is given the decoded messages of one response in order, each once, and returns
the parts of each. It knows nothing of events' bytes, of hooks, or of when a message leaves. Fields,
types and values that it does not understand pass as they came, are listed in `problems`, and never
end an answer.

With `hold_tool_calls`, a message that belongs to a tool call must not leave before the call is
complete and `decide` was called: `calls` names the calls of the message that was read last.
`settle` then writes what leaves in its place.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

from pools import decode_json

from .errors import AnswerError, DialectError
from .parts import (
    Block,
    Finish,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCall,
    ToolCallDelta,
    Usage,
    arguments_text,
)
from .tokens import COUNTS, read_counts

__all__ = [
    "DONE",
    "HELD_EVENT",
    "MAX_ARGUMENTS",
    "MAX_HELD",
    "MAX_NAME",
    "MESSAGE",
    "STOPPED",
    "Call",
    "Made",
    "Origin",
    "Place",
    "Reader",
    "Touch",
]

DONE = "[DONE]"
MAX_ARGUMENTS = 1 << 20
"""Characters of one tool call's arguments that are joined for a hook; more are a `DialectError`."""
MAX_HELD = 1 << 25
"""Bytes of events that wait for a tool call, `HELD_EVENT` more for each; characters of the
arguments of all calls of an answer. More are a `DialectError`.
"""
HELD_EVENT = 1 << 10
MAX_NAME = 1 << 14
"""Characters of one tool call's name; more are a `DialectError`."""
MESSAGE = Block("message", 0)
_MOST_ENDED = 64  # texts that have ended, of which the last delta is kept as a template for another
STOPPED = "this answer was stopped by a filter"
"""What clients are shown in place of a provider's error that must not leave."""

Origin = tuple[str | None, dict[str, Any]]
"""The type of an event, and its message."""

_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
}


class Made(NamedTuple):
    """An event that a reader has made."""

    event: str | None
    """Its type, as upstream names such an event; None where upstream names none."""
    data: dict[str, Any] | str
    """A message to be encoded, or text."""


class Place(NamedTuple):
    """Where arguments, or a piece of them, are written: `holder[key]`."""

    holder: dict[str, Any]
    key: str
    decoded: bool
    """As an object, not as text."""

    def write(self, arguments: str) -> None:
        self.holder[self.key] = (
            (_decoded(arguments) if arguments else {}) if self.decoded else arguments
        )


def _decoded(arguments: str) -> Any:
    try:
        return decode_json(arguments)
    except ValueError:
        return json.loads(arguments, strict=False)  # half of a surrogate pair


class Call:
    """A tool call on its way."""

    __slots__ = (
        "begins",
        "begun",
        "block",
        "complete",
        "echoes",
        "id",
        "index",
        "kind",
        "left",
        "name",
        "name_is_cut",
        "of",
        "part",
        "pieces",
        "places",
        "repeats",
        "size",
        "tokens",
    )

    def __init__(
        self, block: Block, id: str | None, index: int | None = None, kind: str = ""
    ) -> None:
        self.block = block
        self.id = id
        self.name: str | None = None
        self.name_is_cut = False
        """Its name came in several messages."""
        self.index = index
        """Its number in upstream's messages, where the dialect has one."""
        self.kind = kind
        """How the dialect names this kind of call."""
        self.pieces: list[str] = []
        self.size = 0
        self.complete = False
        self.part: ToolCall | None = None
        """As hooks were shown it last."""
        self.begins = ""
        """The arguments that it begins with, if deltas replace them."""
        self.begun: Place | None = None
        self.places: list[Place] = []
        """Where the pieces are that have not left yet, if calls are held; `begun` is where they go
        if there are none.
        """
        self.repeats: list[Place] = []
        """Where the complete arguments are repeated, in messages that have not left yet."""
        self.echoes: list[Place] = []
        """Where pieces of it are repeated that nothing is assembled from, in messages that have not
        left yet.
        """
        self.tokens: list[dict[str, Any]] = []
        """What has `logprobs` that show its tokens, in messages that have not left yet."""
        self.left: str | None = None
        """The arguments that have left, once `decide` was called."""
        self.of: Call | None = None
        """The call that it repeats and contradicts."""

    def repeats_in(self, name: str | None, arguments: str) -> bool:
        """Whether a message that grows with the deltas repeats this call, or the beginning of it."""
        return (not name or (self.name or "").startswith(name)) and "".join(self.pieces).startswith(
            arguments
        )

    @property
    def edited(self) -> bool:
        """Whether a hook has changed, dropped or refused it."""
        return self.part is not None and self.part.changed

    @property
    def removed(self) -> bool:
        """Whether a hook has dropped or refused it."""
        return self.part is not None and self.part.dropped


class Touch(NamedTuple):
    """A place in a message that belongs to a tool call."""

    call: Call
    holder: Any
    """The object or list that has the item; None where the whole message is the call's."""
    item: Any


class Reader(ABC):
    """One response in one dialect."""

    needles: ClassVar[Mapping[type[Part], bytes]]
    """Patterns, found in the bytes of each event that has a `Finish`, `Usage` or `ProviderError`.
    """
    names_events: ClassVar[bool] = True
    """Whether events of this dialect have a type besides the one in their data."""
    default_reason: ClassVar[str]
    """The reason `make_ending` gives by default: the dialect's word for an answer that a filter has
    ended.
    """

    def __init__(
        self,
        *,
        deltas: bool = True,
        whole_calls: bool = True,
        hold_tool_calls: bool = False,
        others: bool = False,
    ) -> None:
        """`deltas`: read texts and tool calls, too, and not only how an answer ended, usage and
        errors.

        `whole_calls`: join the arguments of each call. `hold_tool_calls`: as above; implies
        `whole_calls`. `others`: read texts of the kind `other`.
        """
        self.deltas = deltas
        self.others = others
        self.whole_calls = whole_calls or hold_tool_calls
        self.hold_tool_calls = hold_tool_calls
        self.model: str | None = None
        """The model that answers, once it was named."""
        self.problems: list[str] = []
        """What was not understood in the message that was read last. Names of fields, no content.
        """
        self.calls: list[Touch] = []
        """Where the message that was read last belongs to tool calls. Only with `hold_tool_calls`.
        """
        self.has_removed = False
        """A call was dropped or refused: every message that leaves must pass through `settle`."""
        self.is_body = False
        # Each block's last delta, as a template for another: of texts that have begun and not
        # ended, in their order; of others.
        self._open: dict[Block, Origin] = {}
        self._last: dict[Block, Origin] = {}
        self._over: set[Block] = set()
        # Blocks that went on after their end: further ends are ignored. Of chat, a choice stands
        # for all of its blocks.
        self._endless: set[Any] = set()
        self._here: dict[
            Block, TextDelta
        ] = {}  # each block's last delta in the message that is being read
        self._size = 0  # of the arguments of all calls
        self._known_calls = 0
        self._removed_calls = 0
        # By choice, item or content block, so that the end of one looks at no other: calls that are
        # not complete.
        self._open_calls: dict[int, dict[int, Call]] = {}
        self._leaving: list[
            Callable[[], object]
        ] = []  # to be noted when the message that was read last has left

    # --- what the hooks' side asks
    # ----------------------------------------------------------------------------------------

    def read(self, message: Any, event_type: str | None = None) -> list[Part]:
        """The parts of one message of a stream: an event's data, with the event's type. Raises
        `DialectError`.
        """
        if self._leaving or self.problems or self.calls:
            self._begin_message()
        elif self._here:
            self._here.clear()
        while len(self._last) > _MOST_ENDED:
            del self._last[next(iter(self._last))]
        parts: list[Part] = []
        if isinstance(message, dict):
            self._read(parts, message, event_type)
        else:
            self._odd("the data", message, "an object")
        return parts

    def read_body(self, message: Any) -> list[Part]:
        """The parts of a response that is not streamed. Raises `DialectError`."""
        self.is_body = True
        self._begin_message()
        if not isinstance(message, dict):
            self._odd("the body", message, "an object")
            items = message if isinstance(message, list) else []  # Gemini's errors
            return [
                error_of(item, "error")
                for item in items
                if isinstance(item, dict) and item.get("error") is not None
            ]
        parts: list[Part] = []
        self._read_whole_body(parts, message)
        self._end_all(parts)
        return parts

    def read_nothing(self) -> list[Part]:
        """An event whose data cannot be read: the parts of nothing."""
        self._begin_message()
        return []

    def read_end(self) -> list[Part]:
        """`[DONE]`, or upstream's stream is over: whatever is still open ends here."""
        self._begin_message()
        self._endless.clear()
        parts: list[Part] = []
        self._end_all(parts)
        return parts

    def take_notes(self) -> list[Callable[[], object]]:
        """What is to be called when the message that was read last has left, if that is not now:
        `read` calls it otherwise.
        """
        notes, self._leaving = self._leaving, []
        return notes

    def commit(self) -> None:
        """The message that was read last leaves."""
        for note in self._leaving:
            note()
        self._leaving.clear()

    def decide(self, call: Call) -> None:
        """A held call leaves as its hook left it: write its arguments. Raises `DialectError` for
        what cannot be taken back.
        """
        if not call.complete:  # it goes on in the same message, and is shown again
            return
        part = call.part
        assert part is not None
        if part.dropped:
            self.has_removed = True
            if call.of is None:
                self._note_removed(call)
            if call.left is not None or (
                call.of is not None and call.of.left is not None and not call.of.removed
            ):
                raise DialectError("a tool call was already sent and cannot be removed")
        elif call.left is None:
            if part.changed:
                self._write(call, part.arguments)
        elif not part.arguments.startswith(call.left):
            raise DialectError(
                "the arguments of a tool call were already sent and cannot be changed"
            )
        elif (rest := part.arguments[len(call.left) :]) != "".join(map(place_text, call.places)):
            part.changed = True
            self._write(call, rest)
        if part.changed:
            for holder in call.tokens:
                holder["logprobs"] = None
            for place in [] if part.dropped else call.repeats:
                place.write(part.arguments)
            for place in call.echoes:
                place.write("")
        call.left = part.arguments
        call.places = []
        call.repeats = []
        call.tokens = []
        call.echoes = []

    @abstractmethod
    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
        """What leaves in place of a message when calls were removed: the message itself, changed;
        others; or nothing.

        None where the message stays as it is.
        """

    @abstractmethod
    def says_nothing(self, message: dict[str, Any]) -> bool:
        """Whether an event whose deltas were dropped need not leave at all."""

    def keeps_alive(self, message: Any) -> bool:
        """Whether an event only keeps the connection alive, so that it may overtake those that wait
        for a call.
        """
        return False

    def opens(self, message: dict[str, Any]) -> bool:
        """Whether a block begins with this event, so that it must leave before the block can end."""
        return False

    def can_add(self, block: Block) -> bool:
        """Whether `make_delta` can be asked for more of a text: it has had a delta."""
        return block in self._open or block in self._last

    def make_delta(self, block: Block, text: str) -> Made:
        """Another delta of a text that has had one."""
        event_type, message = self._open.get(block) or self._last[block]
        return Made(event_type, self._another(block, message, text))

    @abstractmethod
    def make_ending(self, reason: str | None = None) -> list[Made]:
        """What must follow what has left so that clients see a whole answer. Nothing may be read
        afterwards.
        """

    @abstractmethod
    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        """End an answer that is not streamed at one of its parts: `text` is left of its block, and
        nothing of what follows it.

        For an `Unread`, nothing at all is left.
        """

    # --- for the dialects
    # -------------------------------------------------------------------------------------------------

    @abstractmethod
    def _read(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None: ...

    @abstractmethod
    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None: ...

    @abstractmethod
    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        """A message like `message`, with nothing but a delta of this text. It shares no dict with
        `message` that is written to.
        """

    def _begin_message(self) -> None:
        if self._leaving:
            self.commit()
        if self.problems:
            self.problems = []
        if self.calls:
            self.calls = []
        if self._here:
            self._here = {}

    def _odd(self, where: str, value: Any, expected: str) -> None:
        """Note that something is not as the dialect has it."""
        self.problems.append(f"{where} is {_NAMES.get(type(value), 'null')}, expected {expected}")

    def _str(self, holder: dict[str, Any], name: str, where: str = "") -> str | None:
        """The text in a field, None when there is none. JSON's null means what an absent field
        means.
        """
        value = holder.get(name)
        if value is None or isinstance(value, str):
            return value
        self._odd(where + name, value, "a string")
        return None

    def _id(self, holder: dict[str, Any], name: str, where: str = "") -> str | None:
        """An id: some servers use numbers, and "" for none."""
        value = holder.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        return self._str(holder, name, where) or None

    def _dict(self, holder: dict[str, Any], name: str, where: str = "") -> dict[str, Any] | None:
        value = holder.get(name)
        if value is None or isinstance(value, dict):
            return value
        self._odd(where + name, value, "an object")
        return None

    def _items(
        self, holder: dict[str, Any], name: str, where: str = ""
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects in a list, each with its position."""
        value = holder.get(name)
        if isinstance(value, list):
            for position, item in enumerate(value):
                if isinstance(item, dict):
                    yield position, item
                else:
                    self._odd(f"{where}{name}[]", item, "an object")
        elif value is not None:
            self._odd(where + name, value, "a list")

    def _number(self, holder: dict[str, Any], name: str, where: str = "") -> int | None:
        """The whole number in a field, None when there is none."""
        value = holder.get(name)
        if type(value) is int or value is None:
            return value
        self._odd(where + name, value, "a whole number")
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return (
            int(value)
            if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
            else None
        )

    # Texts.

    def _text(
        self,
        parts: list[Part],
        block: Block,
        holder: dict[str, Any],
        key: str,
        origin: Origin,
        tokens: dict[str, Any] | None = None,
    ) -> TextDelta:
        """A delta with text in `holder[key]`."""
        if self._over and block in self._over:  # it goes on after its end: ignore further ends
            self._over.discard(block)
            self._endless.add(self._end_mark(block))
        self._open[block] = origin
        delta = self._here[block] = TextDelta(block, holder, key, tokens=tokens)
        parts.append(delta)
        return delta

    def _end_mark(self, block: Block) -> Any:
        """What `_endless` has for a block whose ends are not believed."""
        return block

    def _end(self, parts: list[Part], block: Block) -> None:
        """The text of a block is complete, if it is open."""
        if block in self._open and not (self._endless and self._end_mark(block) in self._endless):
            self._last[block] = self._open.pop(block)
            self._over.add(block)
            parts.append(TextEnd(block, self._here.get(block)))

    def _end_all(self, parts: list[Part]) -> None:
        """Whatever is open ends."""
        for block in list(self._open):
            self._end(parts, block)
        for calls in list(self._open_calls.values()):
            for call in list(calls.values()):
                self._complete(parts, call)

    def _whole(
        self,
        parts: list[Part],
        block: Block,
        holder: dict[str, Any],
        key: str,
        tokens: dict[str, Any] | None = None,
    ) -> None:
        """All the text of a block stands in `holder[key]`; where it was open, that ends it."""
        self._end(parts, block)
        if holder.get(key):
            repeated = block in self._over or block in self._open
            self._over.add(block)
            delta = TextDelta(block, holder, key, whole=True, repeated=repeated, tokens=tokens)
            parts.append(delta)
            parts.append(TextEnd(block, delta, whole=True, repeated=repeated))

    # Tool calls.

    def _begin_call(self, call: Call) -> Call:
        self._known_calls += 1
        self._note_open(call)
        return call

    def _note_removed(self, call: Call) -> None:
        self._removed_calls += 1

    def _reopen(self, call: Call) -> None:
        """A call goes on after its end: it is complete, and shown again, at the end of the stream."""
        call.complete = False
        self._note_open(call)
        self._endless.add(self._end_mark(call.block))

    def _note_open(self, call: Call) -> None:
        if self.whole_calls:
            self._open_calls.setdefault(call.block.output, {})[id(call)] = call

    def _name_call(self, call: Call, name: str | None) -> None:
        """A name, or a piece of one: servers send it in pieces, or again with every delta."""
        if (
            name and name != call.name and name != "null"
        ):  # some servers send None as text with each further piece
            call.name_is_cut = call.name is not None
            call.name = (call.name or "") + name
            if len(call.name) > MAX_NAME:
                raise AnswerError(f"the name of a tool call is longer than {MAX_NAME} characters")
            if call.complete:
                self._reopen(call)

    def _touch(self, call: Call, holder: Any, item: Any) -> None:
        if self.hold_tool_calls:
            self.calls.append(Touch(call, holder, item))

    def _arguments(
        self,
        parts: list[Part],
        call: Call,
        holder: dict[str, Any],
        key: str,
        *,
        decoded: bool = False,
    ) -> None:
        """A delta of a call: a piece of its arguments in `holder[key]`, which may be absent. Raises
        `DialectError`.
        """
        value = holder.get(key)
        piece = arguments_text(value)
        parts.append(ToolCallDelta(call.block, call.id, call.name, piece, holder, key))
        if self.hold_tool_calls and call.begun is None:
            call.begun = Place(holder, key, decoded)
        if not piece or not self.whole_calls:
            return
        if call.complete:
            self._reopen(call)
        self._count(call, piece)
        call.pieces.append(piece)
        if self.hold_tool_calls:
            call.places.append(Place(holder, key, decoded or not isinstance(value, str)))

    def _count(self, call: Call, piece: str) -> None:
        """Raises `DialectError` for more than is to be kept."""
        call.size += len(piece)
        self._size += len(piece)
        if call.size > MAX_ARGUMENTS:
            raise AnswerError(
                f"the arguments of a tool call are longer than {MAX_ARGUMENTS} characters"
            )
        if self._size > MAX_HELD:
            raise AnswerError(
                f"the arguments of all tool calls are longer than {MAX_HELD} characters"
            )

    def _complete(self, parts: list[Part], call: Call) -> None:
        """All of a call has come, unless it was complete before."""
        if (
            call.complete
            or not self.whole_calls
            or (self._endless and self._end_mark(call.block) in self._endless)
        ):
            return
        call.complete = True
        here = self._open_calls.get(call.block.output)
        if here is not None and here.pop(id(call), None) is not None and not here:
            del self._open_calls[call.block.output]
        if not call.pieces and call.begins and call.begun is not None:
            call.pieces.append(
                call.begins
            )  # it began with all of its arguments, and no deltas have replaced them
            call.places.append(call.begun)
        arguments = "".join(call.pieces)
        call.pieces = [arguments] if arguments else []
        call.part = ToolCall(
            call.block, call.id, call.name, arguments, held=self.hold_tool_calls, call=call
        )
        parts.append(call.part)

    def _whole_call(
        self,
        parts: list[Part],
        call: Call,
        name: str | None,
        holder: dict[str, Any],
        key: str,
        *,
        decoded: bool = False,
        grows: bool = False,
    ) -> Call:
        """A message has all of a call, its arguments in `holder[key]`. The call that it is: a new
        one if it contradicts the known.

        `grows`: a message that grows with the deltas may repeat a part of the call only.
        """
        arguments = arguments_text(holder.get(key))
        place = Place(holder, key, decoded or not isinstance(holder.get(key), str))
        if not call.complete and not call.pieces and not (grows and call.name):
            if name:
                call.name = name
            if arguments:
                self._count(call, arguments)
                call.pieces.append(arguments)
                call.places.append(place)
            elif call.begun is None:
                call.begun = place
            if not grows:
                self._complete(parts, call)
            return call
        said = "".join(call.pieces)
        if not grows:
            self._complete(parts, call)
        same_name = not name or name == call.name
        if (
            call.repeats_in(name, arguments)
            if grows
            else (same_name and (not arguments or arguments == said))
        ):
            if arguments and self.hold_tool_calls:
                call.repeats.append(place)
                if (
                    call.left is not None
                    and call.edited
                    and call.part is not None
                    and not call.removed
                ):
                    place.write(call.part.arguments)
            return call
        if not self.whole_calls:
            return call
        # A client may take either: hooks are shown both.
        other = Call(call.block, call.id, call.index, call.kind)
        other.name = name or call.name
        other.complete = True
        other.begun = place
        if arguments:
            other.places.append(place)
        other.pieces = [arguments] if arguments else []
        self._count(other, arguments)
        other.of = call
        other.part = ToolCall(
            call.block, call.id, other.name, arguments, held=self.hold_tool_calls, call=other
        )
        parts.append(other.part)
        return other

    def _write(self, call: Call, arguments: str) -> None:
        """Put arguments in the first of the places that have some, or else where the call begins;
        nothing in the others.
        """
        places = call.places or ([call.begun] if call.begun is not None else [])
        if not places:
            raise DialectError("the arguments of a tool call cannot be changed: it has none")
        first, *others = places
        for place in others:
            place.write("")
        if (
            call.places
            and call.begun is not None
            and call.begun.decoded
            and call.begun is not first
        ):
            call.begun.write("")  # deltas replace what the call began with
        first.write(arguments)

    # What ends an answer.

    def _usage(
        self, parts: list[Part], holder: dict[str, Any], where: str = ""
    ) -> dict[str, Any] | None:
        """The usage in a field, if there is any."""
        usage = holder.get("usage")
        if usage is None:
            return None
        if not isinstance(usage, dict):
            self._odd(f"{where}usage", usage, "an object")
            return None
        counts = read_counts(usage)
        parts.append(Usage(MESSAGE, self.model, usage, *(counts.get(kind) for kind in COUNTS)))
        return usage


def place_text(place: Place) -> str:
    """What a place holds now, as JSON text."""
    return arguments_text(place.holder.get(place.key))


def bare(message: dict[str, Any], names: Container[str]) -> None:
    """Leave of an answer, or a part of one, what identifies it, where it is as the dialect has it;
    of usage the numbers.

    Anything else may hold what a filter has found.
    """
    for name, value in list(message.items()):
        if name == "usage" and name in names:
            message[name] = _numbers(value)
        elif (
            name not in names
            or isinstance(value, (dict, list))
            or (name in _TIMES and isinstance(value, str))
        ):
            del message[name]


_TIMES = ("created", "created_at", "index")


def _numbers(value: Any) -> Any:
    """What of a report of usage cannot be text."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items() if name.isidentifier()}
    return value if isinstance(value, (int, float)) else None


def error_of(holder: dict[str, Any], key: str) -> ProviderError:
    """The provider's error in `holder[key]`: an object, or, from servers that are less strict, text
    or anything.
    """
    error = holder[key]
    if not isinstance(error, dict):
        return ProviderError(
            MESSAGE, _word(holder.get("error_type")), _word(holder.get("code")), holder, key
        )
    return ProviderError(
        MESSAGE, _word(error.get("type")), _word(error.get("code")), error, "message"
    )


def own_error_of(message: dict[str, Any]) -> ProviderError:
    """The provider's error, where it is the message itself."""
    kind = _word(message.get("type"))
    return ProviderError(
        MESSAGE, None if kind == "error" else kind, _word(message.get("code")), message, "message"
    )


def _word(value: Any) -> str | None:
    """A code: some servers use a number."""
    return (
        str(value)
        if isinstance(value, (str, int)) and value != "" and not isinstance(value, bool)
        else None
    )


def finish_of(output: int, reason: str) -> Finish:
    """Why a choice, or, with 0, a message has ended."""
    return Finish(Block("message", output), reason)


def note(function: Callable[..., object], *args: Any) -> Callable[[], object]:
    """Something to be noted when a message has left."""
    return partial(function, *args)


def replace_items(items: list[Any], replacements: dict[int, dict[str, Any] | None]) -> None:
    """Replace items of a list, by their `id()`, all at once: there may be thousands. None: the item
    is removed.
    """
    items[:] = [made for item in items if (made := replacements.get(id(item), item)) is not None]
