"""`MessageDriver`: runs the hooks of one `MessageStream` on the events of its response.

Each event is read once, its parts are shown to the hooks that are overridden, and what these change
is written back. An event in which nothing changed keeps its bytes, and so does what the reader
does not understand, which is counted and logged once a stream. Events that wait for a held tool
call are in `held`. It knows no dialect but by its reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from ..api import End, EventResult, StreamContext
from ..errors import Misused, NotJson
from ..event import Event
from ..hooks import HOOK_OF
from .held import HeldEvent, HeldEvents, event_of, replace
from .openai_chat import OpenAIChatReader
from .openai_responses import OpenAIResponsesReader
from .parts import Part, TextDelta, TextEnd, ToolCall, ToolCallDelta
from .reader import DONE, Reader
from .unread import Unread

__all__ = ["Handler", "MessageDriver"]

_CONTENT = (TextDelta, TextEnd, ToolCallDelta, ToolCall, Unread)

Handler: TypeAlias = Callable[[Any], object]


class MessageDriver:
    """Between the events of one response and the hooks of its stream."""

    def __init__(
        self,
        handlers: Mapping[type[Part], Handler],
        names: Mapping[type[Part], str],
        owner: str,
        readers: tuple[type[Reader], ...],
        context: StreamContext,
        *,
        holds: bool,
        others: bool,
    ) -> None:
        """`handlers`: the hooks that are overridden. `names`: of every hook. `owner`: the name of
        their class. `holds`, `others`: its `holds_tool_calls` and `sees_other_texts`.
        """
        self._handlers = dict(handlers)
        self._names = names
        self._owner = owner
        self._readers = readers
        self._context = context
        self._holds = holds
        self._others = others
        self._deltas = holds or not self._handlers.keys().isdisjoint(_CONTENT)
        self._sees_unread = Unread in self._handlers
        self.reader = self._make(readers[0]) if len(readers) == 1 else None
        """None until a message shows which of several readers fits."""
        self.held = HeldEvents()
        self._current: Part | None = None
        self._asked: tuple[str | None, str] | None = None

    def watch(self, note: Callable[[str, Handler], Handler]) -> None:
        """Replace each hook by what `note` returns for it. For tests of interceptors."""
        self._handlers = {
            part: note(self._names[part], handler) for part, handler in self._handlers.items()
        }

    def _make(self, reader: type[Reader]) -> Reader:
        return reader(
            deltas=self._deltas,
            whole_calls=ToolCall in self._handlers,
            hold_tool_calls=self._holds,
            others=self._others,
        )

    def needs(self) -> re.Pattern[bytes] | tuple[bytes, ...] | None:
        """The events that must be read at all: without hooks of content, few."""
        if self._deltas:
            return None
        needles = {reader.needles[part] for reader in self._readers for part in self._handlers}
        return re.compile(b"|".join(sorted(needles))) if needles else ()

    def ask_to_finish(self, reason: str | None, text: str) -> None:
        """Remember the request of `MessageStream.finish`. Raises `TypeError` where it is not
        allowed.
        """
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
        """Decode an event, and find the reader for the first."""
        problem, is_lax = None, False
        try:
            message = event.json()
        except NotJson as error:
            data, is_lax = event.data, True
            if data.startswith(DONE) and not event.is_body:  # as the SDK reads it
                return self._on_done(event, data)
            if data or event.unknown:
                problem = str(error)
            elif not self.held or event.id is None:
                return event
            # Else nothing but an id, which must not overtake the events before it.
            message = _decode_lax(data)
        reader = self.reader
        if reader is None:
            reader = self.reader = self._recognise(message, event)
            if reader is None:
                return self._on_unknown(event, message, problem)
        return self._on_message(reader, event, message, problem, is_lax)

    def _on_message(
        self, reader: Reader, event: Event, message: Any, problem: str | None, is_lax: bool
    ) -> EventResult:
        try:
            if event.is_body:
                parts = reader.read_body(message)
            elif message is None:
                parts = reader.read_nothing()
            else:
                parts = reader.read(message, event.event)
        except RecursionError:
            message, problem = None, "the data is nested too deep"
            reader.take_notes()
            parts = reader.read_nothing()
        if problem is not None or reader.problems:
            problems = reader.problems if problem is None else [problem, *reader.problems]
            problem = problems[0]
            self._context.note_unread(problem, event.event, count=len(problems))
        if self._sees_unread:
            parts.insert(0, Unread(event, message, parts, self._handlers, problem))
        in_order = self._holds and (self.held or reader.calls or reader.has_removed)
        if not parts and not in_order:
            return event
        before: list[Event] = []
        last = self._run(reader, parts, before)
        if last is not None:
            return self._finish(reader, event, message, is_lax, parts, last, before)
        for part in parts:
            if part.changed:
                return self._pass_changed(reader, event, message, is_lax, parts, before, in_order)
        if in_order and not reader.keeps_alive(message):
            return self.held.pass_in_order(
                reader, HeldEvent(reader, event, message, before, is_lax=is_lax)
            )
        return [*before, event] if before else event

    def _pass_changed(
        self,
        reader: Reader,
        event: Event,
        message: Any,
        is_lax: bool,
        parts: list[Part],
        before: list[Event],
        in_order: object,
    ) -> EventResult:
        """What is sent instead of an event that a hook has changed."""
        is_silent = False
        for part in parts:  # a loop: `any` takes 5 % of a changed event's time
            if isinstance(part, TextDelta) and part.changed and part.dropped:
                is_silent = not event.is_body and reader.is_empty(message)
                break
        if in_order and not reader.keeps_alive(message):
            held = HeldEvent(
                reader, event, message, before, is_lax=is_lax, changed=True, is_silent=is_silent
            )
            return self.held.pass_in_order(reader, held)
        if is_silent:
            return before or None
        event = replace(event, message, is_lax)
        return [*before, event] if before else event

    def on_complete(self) -> list[Event] | None:
        """The upstream has ended: the texts and calls that it left open end too."""
        if self.reader is None:
            return None
        before: list[Event] = []
        last = self._run(self.reader, self.reader.read_end(), before)
        events = [*self.held.release(self.reader), *before]
        return events if last is None else [*events, *self._ending(self.reader, last)]

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
        before = [*self.held.release(reader), *before]
        if last is not None:
            return End(*before, *self._ending(reader, last))
        return [*before, event] if before else event

    def _recognise(self, message: Any, event: Event) -> Reader | None:
        """The reader for a first message of OpenAI's, which has two formats.

        None if it shows neither: the next message may.
        """
        if not isinstance(message, dict):
            is_errors = event.is_body and isinstance(message, list)
            return self._make(OpenAIChatReader) if is_errors else None
        kind = message.get("type") or event.event
        if message.get("object") == "response" or (
            isinstance(kind, str) and (kind.startswith("response.") or kind == "error")
        ):
            return self._make(OpenAIResponsesReader)
        return self._make(OpenAIChatReader) if "choices" in message or "error" in message else None

    def _on_unknown(self, event: Event, message: Any, problem: str | None) -> EventResult:
        """An event before the first that shows the format of the answer."""
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
        """Run the hooks on the parts of one message. Events that they add go to `before`.

        Returns the part whose hook has asked to finish: later ones were not shown.
        """
        handlers = self._handlers
        for part in parts:
            handler = handlers.get(type(part))
            if handler is not None:
                self._current = part
                try:
                    if (given := handler(part)) is not None:
                        raise Misused(
                            f"{self._owner}.{self._names[type(part)]} returned "
                            f"{type(given).__name__}, expected None: what is to change is set on "
                            "what the hook is given"
                        )
                except Exception as error:
                    with suppress(AttributeError):  # one with slots
                        setattr(error, HOOK_OF, self._names[type(part)])
                    raise
                finally:
                    asked, self._current = self._asked, None
                if asked is not None:
                    return part
            if type(part) is TextEnd and part.added:
                before.append(event_of(reader.make_delta(part.block, part.added)))
            elif type(part) is ToolCall and part.held:
                reader.decide(part.call)
        return None

    def _finish(
        self,
        reader: Reader,
        event: Event,
        message: Any,
        is_lax: bool,
        parts: list[Part],
        last: Part,
        before: list[Event],
    ) -> EventResult:
        """What is sent instead of an event whose hook has asked to finish."""
        assert self._asked is not None
        reason, text = self._asked
        if event.is_body:
            message = message if isinstance(message, dict) else {}  # then an error takes its place
            reader.cut_body(message, last, text, reason)
            reader.settle(message, reader.calls)
            return End(replace(event, message, is_lax))
        left = self.held.release(reader)
        if self.held:  # what waits for a call does not leave, nor does anything after it
            reader.take_notes()
            return End(*left, *self._ending(reader, last))
        at = parts.index(last)
        for index, part in enumerate(parts):
            if isinstance(part, TextDelta) and not part.whole:
                if index < at and part.text:  # of another choice in the same event
                    before.append(event_of(reader.make_delta(part.block, part.text)))
                part.drop()
        if isinstance(last, TextDelta) and reader.opens(message):
            before.append(replace(event, message, is_lax))
            reader.commit()
        else:
            reader.take_notes()
        return End(*left, *before, *self._ending(reader, last))

    def _ending(self, reader: Reader, last: Part) -> list[Event]:
        """The last text, if its block can still take it, and the ending of the dialect."""
        assert self._asked is not None
        reason, text = self._asked
        self.held.clear()
        made = []
        is_whole = isinstance(last, (TextDelta, TextEnd)) and last.whole
        if text and reader.can_add(last.block) and not is_whole:
            made.append(reader.make_delta(last.block, text))
        return [event_of(item) for item in [*made, *reader.make_ending(reason)]]


def _decode_lax(data: str) -> Any:
    """JSON as lax readers take it: lone surrogates, NaN, numbers of any size. None for anything
    else.
    """
    try:
        return json.loads(data, strict=False)
    except (ValueError, RecursionError):
        return None
