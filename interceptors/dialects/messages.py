"""Hooks on what LLM answers mean: one class serves every dialect, streamed and not.

`MessageInterceptor` finds out which dialect a response has and gives its `MessageStream` a reader. Each event is read once, the
hooks that are overridden are run on its parts, and what they have changed is written back. An event in which nothing was changed
leaves as it came.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..api import End, EventResult, Interceptor, StreamContext, StreamInterceptor
from ..errors import NotJson
from ..event import Event
from .answers import readers_for
from .errors import DialectError
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .parts import Finish, Part, ProviderError, TextDelta, TextEnd, ToolCall, ToolCallDelta, Usage
from .reader import DONE, Made, Reader

__all__ = ["MessageInterceptor", "MessageStream"]

_HOOKS: dict[type[Part], str] = {
    TextDelta: "on_text_delta",
    TextEnd: "on_text_end",
    ToolCallDelta: "on_tool_call_delta",
    ToolCall: "on_tool_call",
    Finish: "on_finish",
    Usage: "on_usage",
    ProviderError: "on_provider_error",
}
_CONTENT = (TextDelta, TextEnd, ToolCallDelta, ToolCall)


class MessageStream(StreamInterceptor):
    """One answer of an LLM. Override what you need; a hook that is not overridden costs nothing.

    Each hook is given a part of the answer and returns nothing: what it sets on the part is what the client gets. Any hook may
    raise `Abort`; those of texts and tool calls may call `finish`. Parts are valid during their hook. `on_start` and `on_end` are
    as ever; `on_event` and `on_complete` are what calls these hooks, so a subclass has none of its own.
    """

    holds_tool_calls: bool = False
    """Whether tool calls are held back until they are complete, so that `on_tool_call` can change them."""

    _dialect_side: _DialectSide | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("on_event", "on_complete"):
            if name in vars(cls):
                raise TypeError(
                    f"{cls.__qualname__}.{name}: a MessageStream has none of its own, for it calls the other hooks"
                )

    def on_text_delta(self, delta: TextDelta) -> None:
        """Some text. Set `delta.text`, or `delta.drop()` it."""

    def on_text_end(self, end: TextEnd) -> None:
        """A block's text is complete. `end.add(text)` puts more behind it: what was held back, say."""

    def on_tool_call_delta(self, delta: ToolCallDelta) -> None:
        """Some of a tool call's arguments, to be looked at."""

    def on_tool_call(self, call: ToolCall) -> None:
        """A whole tool call; once for each, and again only for a repetition that says another. Set `call.arguments`, on a class
        that says `holds_tool_calls`.
        """

    def on_finish(self, finish: Finish) -> None:
        """An answer, or one of several choices, has ended, and why."""

    def on_usage(self, usage: Usage) -> None:
        """Tokens used so far. It may be called several times; what is told later replaces what was told earlier."""

    def on_provider_error(self, error: ProviderError) -> None:
        """The provider reports an error. Set `error.message`."""

    @property
    def model(self) -> str | None:
        """The model that answers, as the provider names it; None until an event that the hooks are shown has named it."""
        side = self._dialect_side
        reader = side.reader if side is not None else None
        return reader.model if reader is not None else None

    def finish(self, reason: str | None = None, text: str = "") -> None:
        """End the answer here as its dialect ends answers, so that the client sees a whole one. Upstream is left unread.

        What the hook was given does not leave, nor does anything behind it; `text` leaves in its place. `reason` is in the
        dialect's own words (a `finish_reason`, a `stop_reason`; in OpenAI responses the reason of an incomplete one, or
        `completed`); None: that a filter has ended it. Takes effect when the hook returns. Raises `TypeError` outside of hooks of
        texts and tool calls.
        """
        if self._dialect_side is None:
            raise TypeError("finish() was called outside of a hook")
        self._dialect_side.ask_to_finish(reason, text)

    def on_event(self, event: Event) -> EventResult:
        return event if self._dialect_side is None else self._dialect_side.on_event(event)

    def on_complete(self) -> Event | Sequence[Event] | None:
        return None if self._dialect_side is None else self._dialect_side.on_complete()


class MessageInterceptor(Interceptor):
    """An interceptor of LLM answers, streamed or not: override `open_messages`.

    A response is an answer when its route says `dialect: openai` or `anthropic`, or when its request's path ends with
    `/chat/completions`, `/responses` or `/messages`. Of others it stays out.
    """

    wants_json = True

    def open_messages(self, context: StreamContext) -> MessageStream | None:
        """An object for one answer, or None to stay out of it."""
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        readers = readers_for(context.dialect, context.path)
        stream = self.open_messages(context) if readers else None
        if stream is None:
            return None
        if not isinstance(stream, MessageStream):
            raise TypeError(f"open_messages returned {type(stream).__name__}, expected a MessageStream or None")
        side = _DialectSide(stream, readers)
        stream._dialect_side = side
        stream.needs = side.needs()
        return stream


def _recognise(message: Any) -> type[Reader] | None:
    """Which of OpenAI's two a first message is of; None: neither, and the next may tell."""
    if not isinstance(message, dict):
        return None
    kind = message.get("type")
    if message.get("object") == "response" or (isinstance(kind, str) and (kind.startswith("response.") or kind == "error")):
        return OpenAIResponsesReader
    return OpenAIChatReader if "choices" in message or "error" in message else None


class _DialectSide:
    """Between the events of one stream and the hooks of its `MessageStream`."""

    def __init__(self, stream: MessageStream, readers: tuple[type[Reader], ...]) -> None:
        own, base = type(stream), MessageStream
        self._handlers: dict[type[Part], Callable[[Any], None]] = {
            part: getattr(stream, name) for part, name in _HOOKS.items() if getattr(own, name) is not getattr(base, name)
        }
        self._readers = readers
        self._holds = stream.holds_tool_calls
        self._deltas = self._holds or not self._handlers.keys().isdisjoint(_CONTENT)
        self.reader = self._make(readers[0]) if len(readers) == 1 else None
        self._current: Part | None = None
        self._asked: tuple[str | None, str] | None = None

    def _make(self, reader: type[Reader]) -> Reader:
        return reader(deltas=self._deltas, hold_tool_calls=self._holds)

    def needs(self) -> re.Pattern[bytes] | tuple[bytes, ...] | None:
        """Which events must be read at all: what tells how an answer ended, and usage, is in few."""
        if self._deltas:
            return None
        needles = {reader.needles[part] for reader in self._readers for part in self._handlers}
        return re.compile(b"|".join(sorted(needles))) if needles else ()

    def ask_to_finish(self, reason: str | None, text: str) -> None:
        part = self._current
        if not isinstance(part, _CONTENT):
            raise TypeError("finish() was called outside of the hooks of texts and tool calls")
        if text and not isinstance(part, (TextDelta, TextEnd)):
            raise TypeError("finish() was given text in a hook of tool calls, where no text can stand")
        self._asked = reason, text

    def on_event(self, event: Event) -> EventResult:
        try:
            message = event.json()
        except NotJson as error:
            return self._on_other(event, error)
        reader = self.reader
        if reader is None:
            recognised = _recognise(message)
            if recognised is None:
                return event
            reader = self.reader = self._make(recognised)
        parts = reader.read(message, event.event if reader.names_events else None)
        if not parts:
            return event
        before: list[Event] = []
        last = self._run(reader, parts, before)
        if last is not None:
            return self._finish(reader, event, message, parts, last, before)
        changed = dropped = False
        for part in parts:
            if part.changed:
                changed = True
                dropped = dropped or isinstance(part, ToolCallDelta) or (isinstance(part, TextDelta) and part.dropped)
        if changed and not (dropped and reader.says_nothing(message)):
            event = event.replace(json=message)
        elif changed:
            return before or None
        return [*before, event] if before else event

    def on_complete(self) -> Sequence[Event] | None:
        """Upstream has ended: the texts that it left open end with it."""
        if self.reader is None:
            return None
        before: list[Event] = []
        if (last := self._run(self.reader, self.reader.read_end(), before)) is not None:
            before += self._ending(self.reader, last)
        return before

    def _on_other(self, event: Event, error: NotJson) -> EventResult:
        """An event whose data is no JSON: `[DONE]`, none, or of a type that is not the dialect's."""
        data, reader = event.data, self.reader
        if not data or reader is None:
            return event
        if data.startswith(DONE):  # as the SDK reads it
            before: list[Event] = []
            if (last := self._run(reader, reader.read_end(), before)) is not None:
                return End(*before, *self._ending(reader, last))
            return [*before, event] if before else event
        if event.event is not None and not reader.knows(event.event):
            return event
        raise DialectError(str(error)) from None

    def _run(self, reader: Reader, parts: list[Part], before: list[Event]) -> Part | None:
        """Run the hooks on the parts of one message. The part whose hook has asked to finish; those behind it were not shown."""
        handlers = self._handlers
        for part in parts:
            handler = handlers.get(type(part))
            if handler is not None and not (type(part) is ToolCall and part.repeated):
                self._current = part
                try:
                    handler(part)
                finally:
                    asked, self._current = self._asked, None
                if asked is not None:
                    return part
            if type(part) is TextEnd and part.added:
                before.append(_event(reader.make_delta(part.block, part.added)))
            elif type(part) is ToolCall and part.withheld and part.arguments:
                before.append(_event(reader.make_delta(part.block, part.arguments)))
        return None

    def _finish(
        self, reader: Reader, event: Event, message: dict[str, Any], parts: list[Part], last: Part, before: list[Event]
    ) -> EventResult:
        """What leaves instead of an event whose hook has asked to finish."""
        assert self._asked is not None
        reason, text = self._asked
        if reader.is_body(message):
            reader.cut_body(message, last.block, text, reason)
            return End(event.replace(json=message))
        at = parts.index(last)
        for index, part in enumerate(parts):
            if isinstance(part, TextDelta) and not part.whole:
                if index < at and part.text:  # another choice's, in the same event
                    before.append(_event(reader.make_delta(part.block, part.text)))
                part.drop()
        if reader.opens(message) and isinstance(last, TextDelta):
            before.append(event.replace(json=message))
            reader.commit()
        return End(*before, *self._ending(reader, last))

    def _ending(self, reader: Reader, last: Part) -> list[Event]:
        """The last words, where the block can still take them, and the dialect's ending."""
        assert self._asked is not None
        reason, text = self._asked
        made = []
        if text and reader.can_add(last.block) and not (isinstance(last, (TextDelta, TextEnd)) and last.whole):
            made.append(reader.make_delta(last.block, text))
        return [_event(item) for item in [*made, *reader.make_ending(reason)]]


def _event(made: Made) -> Event:
    if isinstance(made.data, str):
        return Event(made.data, event=made.event)
    return Event(json=made.data, event=made.event)
