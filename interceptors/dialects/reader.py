"""`Reader`: what the readers of LLM dialects have in common.

Sans I/O. A reader gets the decoded messages of one response, in order and each once, and returns
the parts of each. It knows nothing of the bytes of events, of hooks, or of when a message leaves.
Fields, types and values that it does not understand pass unchanged, are listed in `problems`, and
never end an answer. `fields` looks at single fields, `calls` assembles tool calls.

With `hold_tool_calls`, a message of a tool call must not leave before the call is complete and
`decide` was called: `calls` names the calls of the last message. `settle` writes what then leaves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

from .calls import CallReader, Touch
from .parts import Block, Part, TextDelta, TextEnd, Usage
from .provider_words import MESSAGE, error_of
from .tokens import COUNTS, read_counts

__all__ = ["DONE", "Made", "Origin", "Reader"]

DONE = "[DONE]"
_MAX_ENDED = 64  # texts that have ended, whose last delta is kept as a template for another

Origin: TypeAlias = tuple[str | None, dict[str, Any]]
"""The type of an event, and its message."""


class Made(NamedTuple):
    """An event that a reader has made."""

    event: str | None
    """Its type, as the upstream names such an event; None if it names none."""
    data: dict[str, Any] | str
    """A message to be encoded, or text."""


class Reader(CallReader, ABC):
    """One response in one dialect."""

    needles: ClassVar[Mapping[type[Part], bytes]]
    """Patterns that occur in the bytes of each event with a `Finish`, `Usage` or `ProviderError`.
    """
    default_reason: ClassVar[str]
    """The default reason of `make_ending`: the dialect's word for an answer that a filter ended."""

    def __init__(
        self,
        *,
        deltas: bool = True,
        whole_calls: bool = True,
        hold_tool_calls: bool = False,
        others: bool = False,
    ) -> None:
        """`deltas`: read texts and tool calls, not only usage, errors and how an answer ended.

        `whole_calls`: join the arguments of each call. `hold_tool_calls`: see the module; implies
        `whole_calls`. `others`: read texts of the kind `other`.
        """
        super().__init__(whole_calls=whole_calls, hold_tool_calls=hold_tool_calls)
        self.deltas = deltas
        self.others = others
        self.model: str | None = None
        """The model that answers, once it was named."""
        self.is_body = False
        # Each block's last delta, as a template for another: of open texts, in their order, and of
        # ended ones.
        self._open: dict[Block, Origin] = {}
        self._last: dict[Block, Origin] = {}
        self._over: set[Block] = set()
        self._here: dict[Block, TextDelta] = {}  # each block's last delta in the current message

    # For the side of the hooks.

    def read(self, message: Any, event_type: str | None = None) -> list[Part]:
        """The parts of an event, from its data and its type. Raises `DialectError`."""
        if self._leaving or self.problems or self.calls:
            self._begin_message()
        elif self._here:
            self._here.clear()
        while len(self._last) > _MAX_ENDED:
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
        """The parts of an event whose data cannot be read: none."""
        self._begin_message()
        return []

    def read_end(self) -> list[Part]:
        """The parts of `[DONE]`, or of the end of the stream: everything open ends here."""
        self._begin_message()
        self._endless.clear()
        parts: list[Part] = []
        self._end_all(parts)
        return parts

    def take_notes(self) -> list[Callable[[], object]]:
        """The functions to call when the last message is sent, for a message that must wait.

        Without this call, the next `read` calls them.
        """
        notes, self._leaving = self._leaving, []
        return notes

    def commit(self) -> None:
        """Note that the last message was sent."""
        for note in self._leaving:
            note()
        self._leaving.clear()

    @abstractmethod
    def settle(self, message: dict[str, Any], touches: list[Touch]) -> list[dict[str, Any]] | None:
        """What is sent in place of a message after calls were removed: the message itself, changed;
        others; or nothing. None if the message stays unchanged.
        """

    @abstractmethod
    def is_empty(self, message: dict[str, Any]) -> bool:
        """Whether an event has nothing to send after its deltas were dropped."""

    def keeps_alive(self, message: Any) -> bool:
        """Whether an event only keeps the connection alive, so it may overtake held events."""
        return False

    def opens(self, message: dict[str, Any]) -> bool:
        """Whether a block begins with this event, so it must leave before the block can end."""
        return False

    def can_add(self, block: Block) -> bool:
        """Whether `make_delta` can extend a text: it has had a delta."""
        return block in self._open or block in self._last

    def make_delta(self, block: Block, text: str) -> Made:
        """Make a further delta of a text that already has one."""
        event_type, message = self._open.get(block) or self._last[block]
        return Made(event_type, self._another(block, message, text))

    @abstractmethod
    def make_ending(self, reason: str | None = None) -> list[Made]:
        """The events that complete what was sent, so that clients see a whole answer.

        Nothing may be read afterwards.
        """

    @abstractmethod
    def cut_body(
        self, message: dict[str, Any], part: Part, text: str, reason: str | None = None
    ) -> None:
        """End an answer that is not streamed at one of its parts.

        `text` remains of the part's block, and nothing after it. For an `Unread` nothing remains.
        """

    # For the dialects.

    @abstractmethod
    def _read(self, parts: list[Part], message: dict[str, Any], event_type: str | None) -> None: ...

    @abstractmethod
    def _read_whole_body(self, parts: list[Part], message: dict[str, Any]) -> None: ...

    @abstractmethod
    def _another(self, block: Block, message: dict[str, Any], text: str) -> dict[str, Any]:
        """A message like `message` with nothing but a delta of this text.

        It must not share a dict with `message` that is written to.
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
        if self._over and block in self._over:  # it continues after its end: ignore further ends
            self._over.discard(block)
            self._endless.add(self._end_mark(block))
        self._open[block] = origin
        delta = self._here[block] = TextDelta(block, holder, key, tokens=tokens)
        parts.append(delta)
        return delta

    def _end(self, parts: list[Part], block: Block) -> None:
        """The text of a block is complete, if it is open."""
        if block in self._open and not (self._endless and self._end_mark(block) in self._endless):
            self._last[block] = self._open.pop(block)
            self._over.add(block)
            parts.append(TextEnd(block, self._here.get(block)))

    def _end_all(self, parts: list[Part]) -> None:
        """Everything open ends."""
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
        """The whole text of a block stands in `holder[key]`; that ends it, if it is open."""
        self._end(parts, block)
        if holder.get(key):
            repeated = block in self._over or block in self._open
            self._over.add(block)
            delta = TextDelta(block, holder, key, whole=True, repeated=repeated, tokens=tokens)
            parts.append(delta)
            parts.append(TextEnd(block, delta, whole=True, repeated=repeated))

    def _usage(
        self, parts: list[Part], holder: dict[str, Any], where: str = ""
    ) -> dict[str, Any] | None:
        """The report in `holder["usage"]`, if there is one."""
        usage = holder.get("usage")
        if usage is None:
            return None
        if not isinstance(usage, dict):
            self._odd(f"{where}usage", usage, "an object")
            return None
        counts = read_counts(usage)
        parts.append(Usage(MESSAGE, self.model, usage, *(counts.get(kind) for kind in COUNTS)))
        return usage
