"""`Observer`: fills in the `Operation` of one exchange, from copies of what its upstream sends.

It stands beside the interceptors, not among them: it changes nothing and stops nothing. What it
cannot read is counted, and logged once a stream. An answer is read until its first token, and from
then on only where it has usage, an error or an end: all other events are only searched.
`read_request` reads the request. Sans I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Any

import msgspec
import trio

from . import dialects
from .api import Interceptor
from .dialects import Finish, Part, ProviderError, TextDelta, ToolCallDelta
from .dialects.answers import Readers, has_messages, readers_for
from .dialects.message_driver import Handler, MessageDriver
from .errors import NotJson
from .event import BodyEvent, Event
from .hooks import Owner
from .message import Request
from .metering import CallStream, cut_name, read_asked
from .needs import Finder, finder_of
from .operation import Operation, operation_name
from .sse import BOM, parse_fields

__all__ = ["NoteEvents", "Observer", "owner_of", "read_request"]


NoteEvents = Callable[[int, float], None]
"""Is called with the number of events that one read has ended, and Trio's time."""

_TOOL_ERROR = "tool_error"
_MCP_NEEDS = (b'"error"', b'"isError"')
_READ = (TextDelta, ToolCallDelta, Finish, dialects.Usage, ProviderError)
_NAMES: dict[type[Part], str] = dict.fromkeys(_READ, "read")
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def owner_of(dialect: str) -> Owner:
    """Whom the time and the unread parts of observers are counted for."""
    return Owner(f"telemetry ({dialect})", Interceptor())


# The request


class _McpCall(msgspec.Struct):
    id: Any = None
    method: Any = None
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _McpParams(msgspec.Struct):
    name: Any = None
    protocol_version: Any = msgspec.field(default=None, name="protocolVersion")


def read_request(
    operation: Operation, path: str, request: Request | None, body: bytes | None
) -> None:
    """Read a POST as it goes upstream. `path`: in normal form. `request`: as interceptors left it,
    on MCP routes never None. `body` None: it is not at hand. Raises nothing.
    """
    if not has_messages(operation.dialect):
        operation.name = operation_name(path)
        model = read_asked(body).model if body else None
        operation.request_model = cut_name(model) if isinstance(model, str) else None
        return
    assert request is not None
    operation.mcp_session = _header(request, "mcp-session-id")
    operation.protocol_version = _header(request, "mcp-protocol-version")
    try:
        call = msgspec.json.decode(body or b"", type=_McpCall)
        params = msgspec.json.decode(call.params, type=_McpParams | None) or _McpParams()
    except (msgspec.DecodeError, RecursionError):
        return  # a batch, or nothing that an MCP server would accept
    if not isinstance(call.method, str):
        return
    operation.mcp_method = cut_name(call.method)
    if call.id is not None:
        operation.jsonrpc_id = cut_name(str(call.id))
    if call.method == "initialize" and isinstance(params.protocol_version, str):
        operation.protocol_version = cut_name(params.protocol_version)
    elif call.method == "tools/call" and isinstance(params.name, str):
        operation.tool, operation.name = cut_name(params.name), "execute_tool"
    elif call.method == "prompts/get" and isinstance(params.name, str):
        operation.prompt = cut_name(params.name)


def _header(request: Request, name: str) -> str | None:
    value: str | None = request.headers.get(name)
    return None if value is None else cut_name(value)


# The answer


class Observer:
    """Reads one answer. `feed` its bytes, or give it whole to `read_body`, then call `end`."""

    __slots__ = (
        "_body",
        "_carry",
        "_context",
        "_find",
        "_is_events",
        "_max_bytes",
        "_note",
        "_reading",
    )

    def __init__(
        self,
        operation: Operation,
        owner: Owner,
        route: str,
        path: str,
        *,
        max_bytes: int,
        note_events: NoteEvents,
    ) -> None:
        """`max_bytes`: of an event or a JSON body; larger ones are not read."""
        self._context = _Context(owner, route, operation.dialect, path)
        self._reading: _Reading | _McpReading | None
        if has_messages(operation.dialect):
            self._reading = _McpReading(operation)
        else:
            readers = readers_for(operation.dialect, path)
            self._reading = _Reading(self._context, operation, readers) if readers else None
        self._max_bytes = max_bytes
        self._note = note_events
        self._is_events: bool | None = None  # None: the first bytes decide
        self._body = b""  # a JSON body, if it came whole
        self._carry = bytearray()  # an unfinished event, or a JSON body
        self._find: Finder | None = None if self._reading is None else self._reading.find

    def feed(self, buffer: bytes | bytearray, first: int, last: int) -> None:
        """The next bytes of a body, `buffer[first:last]`. Raises nothing."""
        if self._reading is None:
            return
        try:
            if self._is_events:
                self._feed_events(buffer, first, last)
            else:
                self._begin(buffer, first, last)
        except Exception as error:
            self._give_up(f"the observer failed: {type(error).__name__}")

    def read_body(self, body: bytes) -> None:
        """A whole body. Raises nothing."""
        if self._is_events is None and body[:1] in (b"{", b"["):
            self._is_events, self._body = False, body
            if self._reading is not None:
                self._reading.begin(is_events=False)
        else:
            self.feed(body, 0, len(body))
        self.end(complete=True)

    def end(self, *, complete: bool) -> None:
        """The body has ended, or was cut. Raises nothing; safe to call again."""
        reading = self._reading
        if reading is None:
            return
        try:
            carry = self._body or bytes(self._carry)
            if complete and carry:
                if self._is_events:
                    self._read_events(carry)  # without its empty line
                elif self._is_events is False:
                    reading.read(BodyEvent(carry))
        except Exception as error:
            self._give_up(f"the observer failed: {type(error).__name__}")
        self._reading = None
        reading.close()

    def _give_up(self, reason: str) -> None:
        self._reading = None
        self._carry.clear()
        self._context.note_unread(reason)

    def _begin(self, buffer: bytes | bytearray, first: int, last: int) -> None:
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
            if self._is_events:
                self._carry = bytearray()
                text = carry.removeprefix(BOM)
                self._feed_events(text, 0, len(text))

    def _feed_events(self, buffer: bytes | bytearray, first: int, last: int) -> None:
        if self._carry:
            self._carry += memoryview(buffer)[first:last]
            buffer, first, last = bytes(self._carry), 0, len(self._carry)
            self._carry.clear()
        end, count = last, 1
        if last - first < 2 or buffer.find(b"\n\n", first, last) != last - 2:  # not one event
            end, separator = _last_end(buffer, first, last)
            if end < last:
                self._carry += memoryview(buffer)[end:last]
                if len(self._carry) > self._max_bytes:
                    self._give_up("an event is larger than max_event_bytes")
            if end == first:
                return
            count = buffer.count(separator, first, end)
        self._note(count, trio.current_time())
        if self._find is None or self._find(buffer, first, end) >= 0:
            self._read_events(bytes(memoryview(buffer)[first:end]))

    def _read_events(self, data: bytes) -> None:
        """Read those of some whole events that matter."""
        at, reading = 0, self._reading
        assert reading is not None
        while at < len(data):
            match = _END.search(data, at)
            end = len(data) if match is None else match.end()
            if self._find is None or self._find(data, at, end) >= 0:
                fields = parse_fields(data[at:end])
                if fields.data is not None:
                    reading.read(Event(fields.data, event=fields.event))
                    self._find = reading.find
            at = end


@lru_cache(maxsize=16)
def _finder_of_rest(readers: Readers) -> Finder | None:
    """Finds events with usage, an error or the end of an answer."""
    needles = {
        reader.needles[part]
        for reader in readers
        for part in (Finish, dialects.Usage, ProviderError)
    }
    return finder_of(re.compile(b"|".join(sorted(needles))))


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

    __slots__ = ("dialect", "owner", "path", "route")

    def __init__(self, owner: Owner, route: str, dialect: str, path: str) -> None:
        self.owner = owner
        self.route = route
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
        self.find: Finder | None = None
        """Finds the events that matter; None: all do."""

    def begin(self, *, is_events: bool) -> None:
        """The kind of the body is known."""
        self._operation.streams = is_events
        if is_events or len(self._readers) > 1:
            self._open_driver()
        if not is_events and self._driver is not None:
            self._ignore_content()

    def _open_driver(self) -> None:
        handlers: dict[type[Part], Handler] = {
            TextDelta: self._note_token,
            ToolCallDelta: self._note_token,
            Finish: self.on_finish,
            dialects.Usage: self.on_usage,
            ProviderError: self.on_provider_error,
        }
        self._driver = MessageDriver(
            handlers, _NAMES, "_Reading", self._readers, self.context, holds=False, others=False
        )

    def read(self, event: Event) -> None:
        """Read an event or a body."""
        began = perf_counter()
        if self._driver is None:
            model = self._read_body(event)
        else:
            self.on_event(event)
            model = self.model
        self._note_names(event, model)
        self._owner.note("read", perf_counter() - began)
        if self.find is None and self._operation.first_token_at is not None:
            self._ignore_content()

    def _read_body(self, event: Event) -> str | None:
        """Read a body of a known dialect, which needs no driver. Returns the model."""
        try:
            message = event.json()
        except NotJson:
            self._open_driver()
            self._ignore_content()
            self.on_event(event)
            return self.model
        reader = self._readers[0](deltas=False)
        for part in reader.read_body(message):
            if isinstance(part, Finish):
                self.on_finish(part)
            elif isinstance(part, dialects.Usage):
                self.on_usage(part)
            elif isinstance(part, ProviderError):
                self.on_provider_error(part)
        if reader.problems:
            self.context.note_unread(reader.problems[0], count=len(reader.problems))
        return reader.model

    def close(self) -> None:
        """Break the reference cycle with the driver."""
        self._driver = None

    def _ignore_content(self) -> None:
        assert self._driver is not None
        self._driver.ignore_content()
        self.find = _finder_of_rest(self._readers)

    def _note_token(self, part: TextDelta | ToolCallDelta) -> None:
        if self._operation.first_token_at is None:
            self._operation.first_token_at = trio.current_time()

    def on_finish(self, finish: Finish) -> None:
        super().on_finish(finish)
        self._operation.last_token_at = trio.current_time()
        self._operation.finish_reasons = tuple(self.reasons)

    def on_usage(self, usage: dialects.Usage) -> None:
        super().on_usage(usage)
        operation, counts = self._operation, self.counts
        given, cached, written = map(counts.get, ("input", "cached", "cache_written"))
        if given is not None and self.cached_is_apart:
            given += (cached or 0) + (written or 0)
        operation.input_tokens, operation.output_tokens = given, counts.get("output")
        operation.cache_read_tokens, operation.cache_write_tokens = cached, written
        operation.reasoning_tokens = counts.get("reasoning")

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
        self.find = finder_of(_MCP_NEEDS)

    def begin(self, *, is_events: bool) -> None:
        """As of `_Reading`."""
        self._operation.streams = is_events

    def close(self) -> None:
        """As of `_Reading`."""

    def read(self, event: Event) -> None:
        """As of `_Reading`."""
        operation = self._operation
        try:
            message = event.json()
        except NotJson:
            return
        if not isinstance(message, dict) or message.get("method") is not None:
            return
        ident = message.get("id")
        if ident is not None and str(ident) != operation.jsonrpc_id:
            return  # of another request
        error, result = message.get("error"), message.get("result")
        if isinstance(error, dict):
            operation.error_type = cut_name(str(error.get("code", "error")))
        elif isinstance(result, dict) and result.get("isError") is True:
            operation.error_type = _TOOL_ERROR
