"""`Observer`: fills in the `Operation` of one exchange, from copies of what its upstream sends.

It stands beside the interceptors, not among them: it changes nothing and stops nothing. What it
cannot read is counted, never logged: an interceptor that needs it logs it. An answer is read until
its first token, and from then on only where it has usage, an error or an end: all other events are
only searched. `operation_bodies` reads requests and usual answers. Sans I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Any

import trio

from . import dialects
from .api import Interceptor
from .dialects import Finish, Part, ProviderError, TextDelta, ToolCallDelta
from .dialects.answers import Readers, has_messages, readers_for
from .dialects.message_driver import Handler, MessageDriver
from .errors import NotJson
from .event import BodyEvent, Event
from .hooks import Owner
from .metering import CallStream, cut_name
from .operation import Operation
from .operation_bodies import read_mcp_answer
from .sse import BOM, parse_fields

__all__ = ["NoteEvents", "Observer", "owner_of"]

NoteEvents = Callable[[int, float], None]
"""Is called with the number of events that one read has ended, and Trio's time."""
_Search = Callable[[bytes | bytearray, int, int], re.Match[bytes] | None]

_READ = (TextDelta, ToolCallDelta, Finish, dialects.Usage, ProviderError)
_MCP_NEEDS = re.compile(rb'"(?:error|result)"').search
_NAMES: dict[type[Part], str] = dict.fromkeys(_READ, "read")
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_MOST_OF_END = 3  # bytes of an end that is not whole


def owner_of(dialect: str) -> Owner:
    """Counts the time and the unread parts of observers."""
    return Owner(f"telemetry ({dialect})", Interceptor())


# The answer


class Observer:
    """Reads one answer. `feed` its bytes, or give it whole to `read_body`, then call `end`."""

    __slots__ = ("_carry", "_context", "_is_events", "_max_bytes", "_note", "_reading", "_search")

    def __init__(
        self,
        operation: Operation,
        owner: Owner,
        path: str,
        *,
        max_bytes: int,
        note_events: NoteEvents,
    ) -> None:
        """`max_bytes`: of an event or a JSON body; larger ones are not read."""
        self._context = _Context(owner, operation.dialect, path)
        self._reading: _Reading | _McpReading | None
        if has_messages(operation.dialect):
            self._reading = _McpReading(operation)
        else:
            readers = readers_for(operation.dialect, path)
            self._reading = _Reading(self._context, operation, readers) if readers else None
        self._max_bytes = max_bytes
        self._note = note_events
        self._is_events: bool | None = None  # None: the first bytes decide
        self._carry = bytearray()  # an unfinished event, or a JSON body
        self._search: _Search | None = None

    def feed(self, buffer: bytes | bytearray, first: int, last: int, now: float) -> None:
        """The next bytes of a body, `buffer[first:last]`. `now`: Trio's time. Raises nothing."""
        search = self._search
        if (  # most reads: one event, of which nothing is needed
            search is not None
            and 0 <= buffer.find(b"\n\n", first, last) == last - 2
            and not self._carry
            and search(buffer, first, last) is None
        ):
            self._note(1, now)
            return
        if self._reading is None:
            return
        try:
            if self._is_events:
                self._feed_events(buffer, first, last, now)
            else:
                self._begin(buffer, first, last, now)
        except Exception as error:
            self._give_up(f"the observer failed: {type(error).__name__}")

    def read_body(self, body: bytes, now: float) -> None:
        """A whole body. Raises nothing."""
        self.feed(body, 0, len(body), now)
        self.end(complete=True)

    def end(self, *, complete: bool) -> None:
        """The body has ended, or was cut. Raises nothing; safe to call again."""
        reading = self._reading
        if reading is None:
            return
        try:
            carry = bytes(self._carry)
            if complete and carry:
                if self._is_events:
                    self._read_events(carry, 0, len(carry))  # without its empty line
                elif self._is_events is False:
                    reading.read(BodyEvent(carry))
        except Exception as error:
            self._give_up(f"the observer failed: {type(error).__name__}")
        self._reading = self._search = None
        reading.close()

    def _give_up(self, reason: str) -> None:
        if self._reading is not None:
            self._reading.close()
        self._reading = self._search = None
        self._carry.clear()
        self._context.note_unread(reason)

    def _begin(self, buffer: bytes | bytearray, first: int, last: int, now: float) -> None:
        """Decide by the first bytes, and read on."""
        carry = self._carry
        carry += memoryview(buffer)[first:last]
        if len(carry) > self._max_bytes:
            self._give_up("the answer is larger than max_event_bytes")
        elif self._is_events is None:
            text = carry.removeprefix(BOM).lstrip()
            if text:
                assert self._reading is not None
                self._is_events = text[0] not in b"{["
                self._reading.begin(is_events=self._is_events)
                self._search = self._reading.search if self._is_events else None
            if self._is_events:
                self._carry = bytearray()
                text = carry.removeprefix(BOM)
                self._feed_events(text, 0, len(text), now)

    def _feed_events(self, buffer: bytes | bytearray, first: int, last: int, now: float) -> None:
        carry, at = self._carry, first
        if carry:
            at = max(len(carry) - _MOST_OF_END, 0)  # before it, no event ends
            carry += memoryview(buffer)[first:last]
            buffer, first, last = carry, 0, len(carry)
        end, separator = _last_end(buffer, at, last)
        if end > at:
            self._note(buffer.count(separator, first, end), now)
            self._read_events(buffer, first, end)
            self._carry = carry = bytearray(memoryview(buffer)[end:last])
        elif buffer is not carry:
            carry += memoryview(buffer)[first:last]
        if len(carry) > self._max_bytes:
            self._give_up("an event is larger than max_event_bytes")

    def _read_events(self, buffer: bytes | bytearray, at: int, end: int) -> None:
        """Read those of some whole events that matter, `buffer[at:end]`."""
        reading = self._reading
        assert reading is not None
        while at < end:
            needed = at
            if self._search is not None:
                found = self._search(buffer, at, end)
                if found is None:
                    return
                needed = found.start()
            stop = _end_of_event(buffer, at, end)
            while stop <= needed:
                at, stop = stop, _end_of_event(buffer, stop, end)
            fields = parse_fields(bytes(memoryview(buffer)[at:stop]))
            if fields.data is not None:
                reading.read(Event(fields.data, event=fields.event))
                self._search = reading.search
            at = stop


def _end_of_event(buffer: bytes | bytearray, at: int, end: int) -> int:
    match = _END.search(buffer, at, end)
    return end if match is None else match.end()


@lru_cache(maxsize=16)
def _search_of_rest(readers: Readers) -> _Search:
    """Finds events with usage, an error or the end of an answer."""
    needles = {
        reader.needles[part]
        for reader in readers
        for part in (Finish, dialects.Usage, ProviderError)
    }
    return re.compile(b"|".join(sorted(needles))).search


def _last_end(buffer: bytes | bytearray, first: int, last: int) -> tuple[int, bytes]:
    """Where the last whole event ends, or `first`; and what its end looks like."""
    found = [
        (at + len(end), end)
        for end in (b"\n\n", b"\r\n\r\n", b"\r\r")
        if (at := buffer.rfind(end, first, last)) >= 0
    ]
    return max(found, default=(first, b"\n\n"))


class _Context:
    """What a reader of answers needs of a `StreamContext`."""

    __slots__ = ("dialect", "owner", "path")

    def __init__(self, owner: Owner, dialect: str, path: str) -> None:
        self.owner = owner
        self.dialect = dialect
        self.path = path

    def note_unread(self, reason: str, event_type: str | None = None, *, count: int = 1) -> None:
        """Count parts of the answer that cannot be read. An interceptor that needs them logs them."""
        self.owner.unread_parts += count


class _Reading(CallStream):
    """Notes what the parts of an LLM's answer show."""

    def __init__(self, context: Any, operation: Operation, readers: Readers) -> None:
        super().__init__(context)
        self._owner: Owner = context.owner
        self._operation = operation
        self._readers = readers
        self._wants_token = False
        self.search: _Search | None = None
        """Finds the events that matter; None: all do."""

    def begin(self, *, is_events: bool) -> None:
        """The kind of the body is known."""
        self._operation.streams = self._wants_token = is_events

    def read(self, event: Event) -> None:
        """Read an event or a body."""
        began = perf_counter()
        driver = self._driver or self._open_driver()
        driver.on_event(event)
        self._note_names(event, self.model)
        if self._wants_token and self._operation.first_token_at is not None:
            self._wants_token = False
            if driver.reader is not None:
                self._readers = (type(driver.reader),)
            self.search = _search_of_rest(self._readers)
            self.close()  # a stream that only passes holds none; a later event opens another
        self._owner.note("read", perf_counter() - began)

    def close(self) -> None:
        """Break the reference cycle with the driver."""
        self._driver = None

    def _open_driver(self) -> MessageDriver:
        handlers: dict[type[Part], Handler] = {
            Finish: self.on_finish,
            dialects.Usage: self.on_usage,
            ProviderError: self.on_provider_error,
        }
        if self._wants_token:
            handlers[TextDelta] = handlers[ToolCallDelta] = self._note_token
        self._driver = MessageDriver(
            handlers, _NAMES, "_Reading", self._readers, self.context, holds=False, others=False
        )
        return self._driver

    def _note_token(self, part: TextDelta | ToolCallDelta) -> None:
        if self._operation.first_token_at is None:
            self._operation.first_token_at = trio.current_time()

    def on_finish(self, finish: Finish) -> None:
        super().on_finish(finish)
        if self._operation.streams:
            self._operation.last_token_at = trio.current_time()
        self._operation.finish_reasons = tuple(self.reasons)

    def on_usage(self, usage: dialects.Usage) -> None:
        super().on_usage(usage)
        self._operation.set_counts(self.counts, cached_is_apart=self.cached_is_apart)

    def on_provider_error(self, error: ProviderError) -> None:
        super().on_provider_error(error)
        self._operation.error_type = self.error

    def _note_names(self, event: Event, model: str | None) -> None:
        """Note the answer's id and model, which a message has itself or in its only object."""
        operation = self._operation
        if model is not None:
            operation.response_model = cut_name(model)
        if operation.response_id is None:
            try:
                message = event.json()
            except NotJson:
                return
            for holder in _holders(message):
                if isinstance(ident := holder.get("id"), str) and ident:
                    operation.response_id = cut_name(ident)
        if self.is_call and operation.name is None:
            operation.name = "chat"


def _holders(message: Any) -> list[dict[str, Any]]:
    if not isinstance(message, dict):
        return []
    inner = (message, message.get("response"), message.get("message"))
    return [item for item in inner if isinstance(item, dict)]


class _McpReading:
    """Notes how an MCP server answers the call."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self.search: _Search | None = _MCP_NEEDS

    def begin(self, *, is_events: bool) -> None:
        """As of `_Reading`."""
        self._operation.streams = is_events

    def close(self) -> None:
        """As of `_Reading`."""

    def read(self, event: Event) -> None:
        """As of `_Reading`."""
        read_mcp_answer(self._operation, event.data)
