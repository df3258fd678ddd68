"""The responses of MCP servers: event streams, and JSON bodies as one event.

After a reload, the stream of an old-transport session passes through the interceptors of the new
configuration (`through_current`): that transport has one stream for as long as the client stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from pools import encode_json

from ..api import (
    AsyncStreamInterceptor,
    End,
    EventResult,
    Outcome,
    StreamContext,
    StreamInterceptor,
)
from ..errors import Abort, NotJson
from ..event import Event
from ..hooks import Owner
from ..message import Request, ResponseHead
from .mcp import Payload, parse
from .mcp_answers import events_of
from .mcp_exchange import SESSION_ID, McpExchange
from .mcp_sessions import LiveSession, has_data, live_of, session_of

__all__ = ["McpStream", "ReplaceableStream", "through_current"]


class StreamOwner(Protocol):
    """What a stream needs of its `McpInterceptor`."""

    strict: bool

    def _exchange(self, request: Request, name: str | None = None) -> McpExchange: ...

    def _from_server(self, exchange: McpExchange, payload: Payload) -> None: ...

    def open_stream(
        self, context: StreamContext
    ) -> StreamInterceptor | AsyncStreamInterceptor | None: ...


class McpStream(StreamInterceptor):
    """One response."""

    def __init__(
        self, interceptor: StreamOwner, exchange: McpExchange, context: StreamContext
    ) -> None:
        self._interceptor = interceptor
        self._exchange = exchange
        self._context = context
        self._succeeds = True
        self._live: LiveSession | None = None
        self._has_begun = False
        # False for a part that `through_current` has opened, in place of those from the beginning.
        self._is_first_choice = context.method == "GET" and live_of(context) is None

    def on_start(self, head: ResponseHead) -> None:
        self._succeeds = head.status < 300
        exchange = self._exchange
        session: str | None = head.headers.get(SESSION_ID)
        if session is not None and exchange.session is None:  # the answer to `initialize`
            exchange.session = session
            for call in exchange.calls.values():
                exchange.remember(call)

    def on_event(self, event: Event) -> EventResult:
        if event.is_body:
            return self._on_body(event)
        if self._is_first_choice:
            self._find_session(event)
            live = self._live
            if live is not None and live.superseded:
                return through_current(live, event) if live.leader is self._interceptor else event
        data = event.data
        if event.event not in (None, "", "message") or not data:  # not MCP's, or a priming event
            return event
        payload = self._read(data)
        if payload is None:
            return event
        left = payload.encode()
        changed: Event | None = event
        if left is not payload.data:
            changed = None if left is None else event.replace(left.decode())
        # The responses to the rest of a batch (2025-03-26) go first, once the server answers.
        if self._exchange.pending:
            return [*self.on_complete(), *([changed] if changed is not None else [])]
        return changed

    def _on_body(self, event: Event) -> EventResult:
        pending = self._exchange.take_pending()
        data = event.data
        try:
            payload = self._read(data) if data else None
        except Exception as error:
            if pending:  # with `on_error = "skip"` the body would pass without them
                raise Abort(
                    "a hook has failed, and the answers to others of the batch would be lost"
                ) from error
            raise
        if pending:
            if data and payload is None:
                raise Abort("the server answered a batch with something that is not JSON")
            rest = payload.encode_each() if payload is not None else []
            whole = b",".join([*rest, *map(encode_json, pending)])
            return event.replace((b"[" + whole + b"]").decode())
        left = payload.encode() if payload is not None else None
        if payload is None or left is payload.data:
            return event
        return event.replace((left or b"").decode())  # a body cannot be dropped, only be empty

    def _read(self, data: str) -> Payload | None:
        """A message of the server, shown to the hooks; None if it is not JSON.

        Raises what the hooks raise, and `Abort`.
        """
        try:
            payload = parse(data, from_client=False)
        except NotJson as error:
            if self._interceptor.strict and self._succeeds:
                raise Abort(str(error)) from None
            return None
        self._interceptor._from_server(self._exchange, payload)
        return payload

    def on_complete(self) -> Sequence[Event]:
        return events_of(self._exchange.take_pending())

    def on_end(self, outcome: Outcome) -> None:
        live, self._live = self._live, None
        if live is not None and live.leader is self._interceptor:
            self._exchange.book.close(live, outcome)

    def _find_session(self, event: Event) -> None:
        """2024-11-05, "HTTP with SSE": the first event is the URI for POSTs: the session."""
        if self._has_begun or not has_data(event):
            return
        self._has_begun = True
        live = live_of(self._context)
        if live is None and event.event == "endpoint":
            uri = session_of(self._context.request.target, event.data)
            live = self._exchange.book.open(uri, self._context, self._interceptor)
        if live is not None:
            live.context = self._context
            self._live = live
            self._exchange.join(live)


class ReplaceableStream(StreamInterceptor):
    """The stream of a GET from a subclass that overrides `open_stream`: after a reload, the new
    interceptors replace it.
    """

    def __init__(
        self, interceptor: StreamOwner, stream: StreamInterceptor, context: StreamContext
    ) -> None:
        self._interceptor = interceptor
        self._stream = stream
        self._context = context
        self.needs = stream.needs
        self.passes_unseen = stream.passes_unseen

    def on_start(self, head: ResponseHead) -> None:
        self._stream.on_start(head)

    def on_event(self, event: Event) -> EventResult:
        live = live_of(self._context)
        if live is not None and live.superseded:
            return through_current(live, event) if live.leader is self._interceptor else event
        return self._stream.on_event(event)

    def on_complete(self) -> Event | Sequence[Event] | None:
        return self._stream.on_complete()

    def on_end(self, outcome: Outcome) -> None:
        self._stream.on_end(outcome)


def through_current(live: LiveSession, event: Event) -> EventResult:
    """Pass an event of an older stream through the MCP interceptors of the current configuration."""
    events: list[Event] = [event]
    for owner, part in live.refresh(_open_part):
        following: list[Event] = []
        for item in events:
            result = _run(owner, part, item)
            if isinstance(result, End):
                return End(*following, *result.events)
            following += [] if result is None else [result] if isinstance(result, Event) else result
        events = following
    return events[0] if len(events) == 1 else events


def _run(owner: Owner, part: StreamInterceptor, event: Event) -> EventResult:
    """What one interceptor makes of an event. Raises `Abort`."""
    try:
        with owner.timed("on_event"):
            return part.on_event(event)
    except Abort:
        raise
    except Exception as error:
        if owner.failed("on_event", error) is not None:
            # `Abort` ends the stream even if the leader's `on_error` is skip.
            raise Abort(f"the interceptor {owner.name!r} failed") from error
        return event


def _open_part(live: LiveSession, owner: Owner) -> StreamInterceptor:
    """The part of one interceptor in a stream that is older than the interceptor."""
    interceptor, request = cast(StreamOwner, owner.interceptor), live.context.request
    exchange = interceptor._exchange(request, owner.name)
    exchange.join(live)
    context = StreamContext(request, live.context.emit, owner)
    part = interceptor.open_stream(context)
    if not isinstance(part, StreamInterceptor):  # of an override, to be awaited
        part = McpStream(interceptor, exchange, context)
    part.on_start(ResponseHead(200, [(b"content-type", b"text/event-stream")], request))
    return part
