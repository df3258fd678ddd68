"""Tool calls of an answer: how a reader assembles them, and writes what a hook has decided.

Sans I/O; it knows no dialect. A call grows by pieces and is shown to hooks once it is complete, and
again if it continues after its end. A message may repeat a whole call: if it contradicts what is
known, hooks see both, because a client may take either. With `hold_tool_calls`, no message of a
call leaves before `decide`, so the call remembers every place where its arguments stand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from pools import decode_json

from .errors import AnswerError, DialectError
from .fields import FieldReader
from .parts import Block, Part, ToolCall, ToolCallDelta, arguments_text

__all__ = [
    "HELD_EVENT",
    "MAX_ARGUMENTS",
    "MAX_HELD",
    "MAX_NAME",
    "Call",
    "CallReader",
    "Place",
    "Touch",
    "place_text",
]

MAX_ARGUMENTS = 1 << 20
"""Characters of one tool call's arguments; more are a `DialectError`."""
MAX_HELD = 1 << 25
"""Of the events that wait for a tool call, bytes, with `HELD_EVENT` added for each; of the
arguments of all calls of an answer, characters. More are a `DialectError`.
"""
HELD_EVENT = 1 << 10
MAX_NAME = 1 << 14
"""Characters of one tool call's name; more are a `DialectError`."""


class Place(NamedTuple):
    """Where arguments, or a piece of them, stand: `holder[key]`."""

    holder: dict[str, Any]
    key: str
    decoded: bool
    """The value is an object, not JSON text."""

    def write(self, arguments: str) -> None:
        if self.decoded:
            self.holder[self.key] = _decoded(arguments) if arguments else {}
        else:
            self.holder[self.key] = arguments


def place_text(place: Place) -> str:
    """What stands at a place now, as JSON text."""
    return arguments_text(place.holder.get(place.key))


def _decoded(arguments: str) -> Any:
    try:
        return decode_json(arguments)
    except ValueError:
        return json.loads(arguments, strict=False)  # half of a surrogate pair


class Call:
    """A tool call, complete or not."""

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
        """The name came in several messages."""
        self.index = index
        """Its number in the upstream's messages, if the dialect has one."""
        self.kind = kind
        """The dialect's name for this kind of call."""
        self.pieces: list[str] = []
        self.size = 0
        self.complete = False
        self.part: ToolCall | None = None
        """What hooks were shown last."""
        self.begins = ""
        """The arguments of its first message, which deltas replace."""
        self.begun: Place | None = None
        """The place for arguments if no piece has come."""
        self.places: list[Place] = []
        """Where its pieces stand in messages that are held."""
        self.repeats: list[Place] = []
        """Where held messages repeat the complete arguments."""
        self.echoes: list[Place] = []
        """Where held messages repeat pieces from which nothing is assembled."""
        self.tokens: list[dict[str, Any]] = []
        """Holders of `logprobs` in held messages: these show the tokens of the call."""
        self.left: str | None = None
        """The arguments that were sent; None before `decide`."""
        self.of: Call | None = None
        """The call that this one contradicts."""

    def repeats_in(self, name: str | None, arguments: str) -> bool:
        """Whether a cumulative message repeats this call, or its beginning."""
        same_name = not name or (self.name or "").startswith(name)
        return same_name and "".join(self.pieces).startswith(arguments)

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
    """The object or list that has the item; None if the whole message belongs to the call."""
    item: Any


class CallReader(FieldReader):
    """The part of a reader that assembles tool calls."""

    def __init__(self, *, whole_calls: bool, hold_tool_calls: bool) -> None:
        super().__init__()
        self.whole_calls = whole_calls or hold_tool_calls
        self.hold_tool_calls = hold_tool_calls
        self.calls: list[Touch] = []
        """Where the last message belongs to tool calls. Only with `hold_tool_calls`."""
        self.has_removed = False
        """A call was dropped or refused: every later message must pass through `settle`."""
        # Blocks that continued after their end: further ends are ignored. See `_end_mark`.
        self._endless: set[Any] = set()
        # Calls that are not complete, by output: the end of one must not search the others.
        self._open_calls: dict[int, dict[int, Call]] = {}
        self._arguments_size = 0  # characters, of all calls
        self._known_calls = 0
        self._removed_calls = 0
        self._leaving: list[Callable[[], object]] = []  # to call when the last message has left

    def decide(self, call: Call) -> None:
        """Write the arguments of a held call as its hook left them: it may now leave.

        Raises `DialectError` if that takes back what was sent.
        """
        if not call.complete:  # it continues in the same message, and is shown again
            return
        part = call.part
        assert part is not None
        if part.dropped:
            self._remove(call)
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

    def _remove(self, call: Call) -> None:
        self.has_removed = True
        if call.of is None:
            self._note_removed(call)
        other = call.of
        if call.left is not None or (
            other is not None and other.left is not None and not other.removed
        ):
            raise DialectError("a tool call was already sent and cannot be removed")

    def _write(self, call: Call, arguments: str) -> None:
        """Put arguments at the first place of a call, and nothing at the others."""
        places = call.places or ([call.begun] if call.begun is not None else [])
        if not places:
            raise DialectError("the arguments of a tool call cannot be changed: it has none")
        first, *others = places
        for place in others:
            place.write("")
        begun = call.begun
        if call.places and begun is not None and begun.decoded and begun is not first:
            begun.write("")  # deltas replace what the call began with
        first.write(arguments)

    def _end_mark(self, block: Block) -> Any:
        """What `_endless` holds for a block whose ends are ignored."""
        return block

    def _begin_call(self, call: Call) -> Call:
        self._known_calls += 1
        self._note_open(call)
        return call

    def _note_removed(self, call: Call) -> None:
        self._removed_calls += 1

    def _reopen(self, call: Call) -> None:
        """A call continues after its end: it is complete at the end of the stream, and shown again."""
        call.complete = False
        self._note_open(call)
        self._endless.add(self._end_mark(call.block))

    def _note_open(self, call: Call) -> None:
        if self.whole_calls:
            self._open_calls.setdefault(call.block.output, {})[id(call)] = call

    def _name_call(self, call: Call, name: str | None) -> None:
        """A name, or a piece of one. Some servers repeat it, or "null", in every delta."""
        if name and name != call.name and name != "null":
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
        """A delta of a call, with a piece of its arguments in `holder[key]`, which may be absent.

        Raises `DialectError`.
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
        """Count the characters of arguments. Raises `DialectError` above the limits."""
        call.size += len(piece)
        self._arguments_size += len(piece)
        if call.size > MAX_ARGUMENTS:
            raise AnswerError(
                f"the arguments of a tool call are longer than {MAX_ARGUMENTS} characters"
            )
        if self._arguments_size > MAX_HELD:
            raise AnswerError(
                f"the arguments of all tool calls are longer than {MAX_HELD} characters"
            )

    def _complete(self, parts: list[Part], call: Call) -> None:
        """A call is complete, unless it was before."""
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
            # All of its arguments came with its beginning: no delta has replaced them.
            call.pieces.append(call.begins)
            call.places.append(call.begun)
        arguments = "".join(call.pieces)
        call.pieces = [arguments] if arguments else []
        self._show(parts, call, arguments)

    def _show(self, parts: list[Part], call: Call, arguments: str) -> None:
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
        """A message has a whole call, its arguments in `holder[key]`. Returns `call`, or a new one
        if the message contradicts it.

        `grows`: the message is cumulative, and may have only the beginning of the call.
        """
        value = holder.get(key)
        arguments = arguments_text(value)
        place = Place(holder, key, decoded or not isinstance(value, str))
        if not call.complete and not call.pieces and not (grows and call.name):
            self._fill(call, name, arguments, place)
            if not grows:
                self._complete(parts, call)
            return call
        if grows:
            repeats = call.repeats_in(name, arguments)
        else:
            known = "".join(call.pieces)
            self._complete(parts, call)
            repeats = (not name or name == call.name) and (not arguments or arguments == known)
        if repeats:
            if arguments and self.hold_tool_calls:
                self._note_repeat(call, place)
            return call
        return self._contradict(parts, call, name, arguments, place) if self.whole_calls else call

    def _fill(self, call: Call, name: str | None, arguments: str, place: Place) -> None:
        """Fill in a call of which only the position was known."""
        if name:
            call.name = name
        if arguments:
            self._count(call, arguments)
            call.pieces.append(arguments)
            call.places.append(place)
        elif call.begun is None:
            call.begun = place

    def _note_repeat(self, call: Call, place: Place) -> None:
        """A place repeats a call: it must show what a hook has made of the call."""
        call.repeats.append(place)
        if call.left is not None and call.edited and call.part is not None and not call.removed:
            place.write(call.part.arguments)

    def _contradict(
        self, parts: list[Part], call: Call, name: str | None, arguments: str, place: Place
    ) -> Call:
        """Another call at the place of a known one: hooks see both."""
        other = Call(call.block, call.id, call.index, call.kind)
        other.name = name or call.name
        other.complete = True
        other.begun = place
        if arguments:
            other.places.append(place)
        other.pieces = [arguments] if arguments else []
        self._count(other, arguments)
        other.of = call
        self._show(parts, other, arguments)
        return other
