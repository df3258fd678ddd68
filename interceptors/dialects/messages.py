"""Hooks on what LLM answers mean: one class serves every dialect, streamed and not.

`MessageInterceptor` finds out which dialect a response has and gives its `MessageStream` a reader.
Each event is read once, the hooks that are overridden are run on its parts, and what they have
changed is written back. An event in which nothing was changed leaves as it came. What a reader does
not understand leaves as it came, too; it is counted, and logged once for each stream.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..api import End, EventResult, Interceptor, StreamContext, StreamInterceptor
from ..errors import Misused, NotJson
from ..event import Event
from ..hooks import HOOK_OF
from .answers import readers_for
from .errors import AnswerError
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .parts import (
    Finish,
    Part,
    ProviderError,
    TextDelta,
    TextEnd,
    ToolCall,
    ToolCallDelta,
    Unread,
    Usage,
)
from .reader import DONE, HELD_EVENT, MAX_HELD, Call, Made, Reader, Touch

__all__ = ["MessageInterceptor", "MessageStream"]

_HOOKS: dict[type[Part], str] = {
    Unread: "on_unread",
    TextDelta: "on_text_delta",
    TextEnd: "on_text_end",
    ToolCallDelta: "on_tool_call_delta",
    ToolCall: "on_tool_call",
    Finish: "on_finish",
    Usage: "on_usage",
    ProviderError: "on_provider_error",
}
_CONTENT = (TextDelta, TextEnd, ToolCallDelta, ToolCall, Unread)


class MessageStream(StreamInterceptor):
    """One answer of an LLM. Override what you need; a hook that is not overridden costs nothing.

    Each hook is given a part of the answer and returns nothing: what it sets on the part is what
    the client gets. Any hook may raise `Abort`; those of texts and tool calls may call `finish`.
    Parts are valid during their hook. `on_start` and `on_end` are as ever; `on_event` and
    `on_complete` are what calls these hooks, so a subclass has none of its own.
    """

    holds_tool_calls: bool = False
    """Whether nothing of a tool call leaves before `on_tool_call` returns, so that this hook can
    change, drop and refuse it.

    Events that follow the beginning of a call wait with it, so that the order stays.
    """

    sees_other_texts: bool = False
    """Whether `on_text_delta` and `on_text_end` are also for texts of the kind `other`, which most
    hooks must not change.
    """

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
        """A whole tool call. Once for each; again for a repetition that contradicts it, and when
        more arguments come after its end.

        On a class with `holds_tool_calls`: set `call.arguments`, or `call.drop()`, or
        `call.refuse(text)`.
        """

    def on_finish(self, finish: Finish) -> None:
        """An answer, or one of several choices, has ended, and why."""

    def on_usage(self, usage: Usage) -> None:
        """Tokens used so far. It may be called several times; what is told later replaces what was
        told earlier.
        """

    def on_provider_error(self, error: ProviderError) -> None:
        """The provider reports an error. Set `error.message`."""

    def on_unread(self, unread: Unread) -> None:
        """An event has something that no other hook is shown: unknown fields and types, or what the
        reader does not understand.

        Called first for every event and body, for interceptors that protect: search
        `unread.texts()`.
        """

    @property
    def model(self) -> str | None:
        """The model that answers, as the provider names it; None until an event that the hooks are
        shown has named it.
        """
        side = self._dialect_side
        reader = side.reader if side is not None else None
        return reader.model if reader is not None else None

    @property
    def has_waiting(self) -> bool:
        """Whether events wait for a tool call that is held."""
        return self._dialect_side is not None and bool(self._dialect_side._waiting)

    def finish(self, reason: str | None = None, text: str = "") -> None:
        """End the answer here as its dialect ends answers, so that the client sees a whole one.
        Upstream is left unread.

        What the hook was given does not leave, nor does anything after it; `text` leaves in its
        place. `reason` is in the dialect's own words (a `finish_reason`, a `stop_reason`; in OpenAI
        responses the reason of an incomplete one, or `completed`); None: that a filter has ended
        it. Takes effect when the hook returns. Raises `TypeError` outside of hooks of texts and
        tool calls, and `on_unread`.
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

    A response is an answer when its route says `dialect: openai` or `anthropic`, or when its
    request's path ends with `/chat/completions`, `/responses` or `/messages`. Of others it stays
    out.
    """

    wants_json = True
    wants_dialect = True

    def open_messages(self, context: StreamContext) -> MessageStream | None:
        """An object for one answer, or None to stay out of it."""
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        readers = readers_for(context.dialect, context.path)
        stream = self.open_messages(context) if readers else None
        if stream is None:
            return None
        if not isinstance(stream, MessageStream):
            raise Misused(
                f"open_messages returned {type(stream).__name__}, expected a MessageStream or None"
            )
        side = _DialectSide(stream, readers, context)
        stream._dialect_side = side
        stream.needs = side.needs()
        return stream


class _Waiting:
    """An event that waits for a tool call."""

    __slots__ = (
        "_blocked_by",
        "before",
        "changed",
        "event",
        "lax",
        "message",
        "notes",
        "silent",
        "size",
        "touches",
    )

    def __init__(
        self,
        event: Event,
        message: Any,
        lax: bool,
        changed: bool,
        silent: bool,
        before: list[Event],
        reader: Reader,
    ) -> None:
        self.event = event
        self.message = message
        self.lax = lax
        self.changed = changed
        self.silent = silent
        """It need not leave: its texts were dropped."""
        self.before = before
        """Made events that leave before it."""
        self.touches: list[Touch] = reader.calls[:]  # the reader goes on with an empty list
        self.notes = reader.take_notes()
        self.size = 0
        self._blocked_by: Call | None = None

    def is_blocked(self) -> bool:
        """Whether one of its calls is not decided. Asks first for the one of the last time: there
        may be thousands.
        """
        call = self._blocked_by
        if call is not None and (call.left is None or not call.complete):
            return True
        self._blocked_by = next(
            (
                touch.call
                for touch in self.touches
                if touch.call.left is None or not touch.call.complete
            ),
            None,
        )
        return self._blocked_by is not None


class _DialectSide:
    """Between the events of one stream and the hooks of its `MessageStream`."""

    def __init__(
        self, stream: MessageStream, readers: tuple[type[Reader], ...], context: StreamContext
    ) -> None:
        own, base = type(stream), MessageStream
        self._handlers: dict[type[Part], Callable[[Any], None]] = {
            part: getattr(stream, name)
            for part, name in _HOOKS.items()
            if getattr(own, name) is not getattr(base, name)
        }
        self._name = own.__qualname__
        self._readers = readers
        self._context = context
        self._holds = stream.holds_tool_calls
        self._others = stream.sees_other_texts
        self._deltas = self._holds or not self._handlers.keys().isdisjoint(_CONTENT)
        self._sees_unread = Unread in self._handlers
        self.reader = self._make(readers[0]) if len(readers) == 1 else None
        self._current: Part | None = None
        self._asked: tuple[str | None, str] | None = None
        self._waiting: deque[_Waiting] = deque()
        self._held = 0  # the size of what waits

    def watch(self, note: Callable[[str, Callable[[Any], None]], Callable[[Any], None]]) -> None:
        """Call what `note` makes of each hook instead of it. For tests of interceptors."""
        self._handlers = {
            part: note(_HOOKS[part], handler) for part, handler in self._handlers.items()
        }

    def _make(self, reader: type[Reader]) -> Reader:
        return reader(
            deltas=self._deltas,
            whole_calls=ToolCall in self._handlers,
            hold_tool_calls=self._holds,
            others=self._others,
        )

    def needs(self) -> re.Pattern[bytes] | tuple[bytes, ...] | None:
        """Which events must be read at all: what shows how an answer ended, and usage, is in few."""
        if self._deltas:
            return None
        needles = {reader.needles[part] for reader in self._readers for part in self._handlers}
        return re.compile(b"|".join(sorted(needles))) if needles else ()

    def ask_to_finish(self, reason: str | None, text: str) -> None:
        part = self._current
        if not isinstance(part, _CONTENT):
            raise TypeError(
                "finish() was called outside of the hooks of texts and tool calls, and on_unread"
            )
        if text and not isinstance(part, (TextDelta, TextEnd)):
            raise TypeError(
                "finish() was given text outside of the hooks of texts, where no text can stand"
            )
        self._asked = reason, text

    def on_event(self, event: Event) -> EventResult:
        problem, lax = None, False
        try:
            message = event.json()
        except NotJson as error:
            lax = True
            data, problem = event.data, str(error)
            if data.startswith(DONE) and not event.is_body:  # as the SDK reads it
                return self._on_done(event, data)
            if not data and not event.unknown:
                if not self._waiting or event.id is None:
                    return event
                problem = None  # an id must not overtake what comes before it
            message = _lenient(data)
        reader = self.reader
        if reader is None:
            reader = self.reader = self._recognise(message, event)
            if reader is None:
                return self._on_unknown(event, message, problem)
        try:
            if event.is_body:
                parts = reader.read_body(message)
            elif message is None:
                parts = reader.read_nothing()
            else:
                named = (
                    reader.names_events or not isinstance(message, dict) or "choices" not in message
                )
                parts = reader.read(message, event.event if named else None)
        except RecursionError:
            message, problem = None, "the data is nested too deep"
            reader.take_notes()
            parts = reader.read_nothing()
        if problem is not None or reader.problems:
            problems = reader.problems if problem is None else [problem, *reader.problems]
            self._context.note_unread(problems[0], event.event, count=len(problems))
        if self._sees_unread:
            if problem is None and reader.problems:
                problem = reader.problems[0]
            parts.insert(0, Unread(event, message, parts, self._handlers, problem))
        in_order = self._holds and (self._waiting or reader.calls or reader.has_removed)
        if not parts and not in_order:
            return event
        before: list[Event] = []
        last = self._run(reader, parts, before)
        if last is not None:
            return self._finish(reader, event, message, lax, parts, last, before)
        changed = dropped = False
        for part in parts:
            if part.changed:
                changed = True
                dropped = dropped or (isinstance(part, TextDelta) and part.dropped)
        if not changed and not in_order:
            return [*before, event] if before else event
        silent = dropped and not event.is_body and reader.says_nothing(message)
        if in_order and not reader.keeps_alive(message):
            return self._pass_in_order(
                reader, _Waiting(event, message, lax, changed, silent, before, reader)
            )
        if silent:
            return before or None
        event = _replace(event, message, lax) if changed else event
        return [*before, event] if before else event

    def on_complete(self) -> Sequence[Event] | None:
        """Upstream has ended: the texts and calls that it left open end with it."""
        if self.reader is None:
            return None
        before: list[Event] = []
        if (last := self._run(self.reader, self.reader.read_end(), before)) is not None:
            return [*self._leave(self.reader), *before, *self._ending(self.reader, last)]
        return [*self._leave(self.reader), *before]

    def _on_done(self, event: Event, data: str) -> EventResult:
        """`[DONE]`."""
        reader = self.reader
        if reader is None:
            return self._on_unknown(event, None, None)
        before: list[Event] = []
        parts = reader.read_end()
        if self._sees_unread and (data != DONE or event.unknown):
            parts.insert(0, Unread(event, None, parts, self._handlers, None))
        last = self._run(reader, parts, before)
        before = [*self._leave(reader), *before]
        if last is not None:
            return End(*before, *self._ending(reader, last))
        return [*before, event] if before else event

    def _recognise(self, message: Any, event: Event) -> Reader | None:
        """The reader for a first message: OpenAI has two formats. None: it shows neither, and the
        next message may.
        """
        if not isinstance(message, dict):
            return (
                self._make(OpenAIChatReader)
                if event.is_body and isinstance(message, list)
                else None
            )
        kind = message.get("type") or event.event
        if message.get("object") == "response" or (
            isinstance(kind, str) and (kind.startswith("response.") or kind == "error")
        ):
            return self._make(OpenAIResponsesReader)
        return self._make(OpenAIChatReader) if "choices" in message or "error" in message else None

    def _on_unknown(self, event: Event, message: Any, problem: str | None) -> EventResult:
        """An event before the first one that shows the format of the answer."""
        if problem is not None:
            self._context.note_unread(problem, event.event)
        if not self._sees_unread:
            return event
        reader = self._make(self._readers[0])
        unread = Unread(event, message, [], self._handlers, problem)
        if self._run(reader, [unread], []) is None:
            return event
        return self._finish(reader, event, message, problem is not None, [unread], unread, [])

    def _run(self, reader: Reader, parts: list[Part], before: list[Event]) -> Part | None:
        """Run the hooks on the parts of one message. The part whose hook has asked to finish; later
        ones were not shown.
        """
        handlers = self._handlers
        for part in parts:
            handler = handlers.get(type(part))
            if handler is not None:
                self._current = part
                try:
                    if (given := handler(part)) is not None:
                        raise Misused(
                            f"{self._name}.{_HOOKS[type(part)]} returned {type(given).__name__}, "
                            "expected None: what is to change is set on what the hook is given"
                        )
                except Exception as error:
                    with suppress(AttributeError):  # one with slots
                        setattr(error, HOOK_OF, _HOOKS[type(part)])
                    raise
                finally:
                    asked, self._current = self._asked, None
                if asked is not None:
                    return part
            if type(part) is TextEnd and part.added:
                before.append(_event(reader.make_delta(part.block, part.added)))
            elif type(part) is ToolCall and part.held:
                reader.decide(part.call)
        return None

    def _pass_in_order(self, reader: Reader, waiting: _Waiting) -> EventResult:
        """Let an event leave after those that wait for a tool call; it waits as well if its own
        calls are not decided.
        """
        alone = not self._waiting
        self._waiting.append(waiting)
        left = self._leave(reader)
        if self._waiting and self._waiting[-1] is waiting:
            waiting.event = waiting.event.detach()
            waiting.size = HELD_EVENT + len(waiting.event.raw)
            self._held += waiting.size
            if self._held > MAX_HELD:
                raise AnswerError(
                    f"more than {MAX_HELD} bytes of events wait for a tool call that is not complete"
                )
        elif alone and left == [waiting.event]:
            return waiting.event
        return left or None

    def _leave(self, reader: Reader) -> list[Event]:
        """The events that need not wait any longer."""
        left: list[Event] = []
        while self._waiting:
            first = self._waiting[0]
            if first.is_blocked():
                break
            self._waiting.popleft()
            self._held -= first.size
            left += first.before
            made = None
            if reader.has_removed and isinstance(first.message, dict):
                made = reader.settle(first.message, first.touches)
            if made is None:
                edited = any(touch.call.edited for touch in first.touches)
                if edited or first.changed:
                    silent = first.silent or (
                        edited and not first.event.is_body and reader.says_nothing(first.message)
                    )
                    made = [] if silent else [first.message]
            for note in first.notes:
                note()
            if made is None:
                left.append(first.event)
                continue
            for number, message in enumerate(made):
                if number == 0:
                    left.append(_replace(first.event, message, first.lax))
                else:
                    left.append(
                        Event(
                            json=message,
                            event=message.get("type") if first.event.event is not None else None,
                        )
                    )
        return left

    def _finish(
        self,
        reader: Reader,
        event: Event,
        message: Any,
        lax: bool,
        parts: list[Part],
        last: Part,
        before: list[Event],
    ) -> EventResult:
        """What leaves instead of an event whose hook has asked to finish."""
        assert self._asked is not None
        reason, text = self._asked
        if event.is_body:
            message = message if isinstance(message, dict) else {}  # then an error takes its place
            reader.cut_body(message, last, text, reason)
            reader.settle(message, reader.calls)
            return End(_replace(event, message, lax))
        left = self._leave(reader)
        if self._waiting:  # what waits for a call leaves no more, nor does anything after it
            reader.take_notes()
            return End(*left, *self._ending(reader, last))
        at = parts.index(last)
        for index, part in enumerate(parts):
            if isinstance(part, TextDelta) and not part.whole:
                if index < at and part.text:  # another choice's, in the same event
                    before.append(_event(reader.make_delta(part.block, part.text)))
                part.drop()
        if isinstance(last, TextDelta) and reader.opens(message):
            before.append(_replace(event, message, lax))
            reader.commit()
        else:
            reader.take_notes()
        return End(*left, *before, *self._ending(reader, last))

    def _ending(self, reader: Reader, last: Part) -> list[Event]:
        """The last words, where the block can still take them, and the dialect's ending."""
        assert self._asked is not None
        reason, text = self._asked
        self._waiting.clear()
        made = []
        if (
            text
            and reader.can_add(last.block)
            and not (isinstance(last, (TextDelta, TextEnd)) and last.whole)
        ):
            made.append(reader.make_delta(last.block, text))
        return [_event(item) for item in [*made, *reader.make_ending(reason)]]


def _event(made: Made) -> Event:
    if isinstance(made.data, str):
        return Event(made.data, event=made.event)
    return Event(json=made.data, event=made.event)


def _lenient(data: str) -> Any:
    """What lax readers make of data that is not JSON by RFC 8259: lone surrogates, NaN, numbers of
    any size. None if nothing.
    """
    try:
        return json.loads(data, strict=False)
    except (ValueError, RecursionError):
        return None


def _replace(event: Event, message: Any, lax: bool) -> Event:
    """The event with another message. What only a lax reader takes is written for one."""
    return event.replace(json.dumps(message)) if lax else event.replace(json=message)
