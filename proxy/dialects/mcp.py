"""What the proxy itself does on a route with `dialect: mcp`, as two interceptors around the route's
own: one first, one last.

- Headers that mirror the body (revision 2026-07-28) are verified before any interceptor of the
  route sees the body, and made to fit again when one has changed it. Both want the body:
  interceptors that do not come before them.
- A batch of more than `MAX_BATCH` messages is refused.
- The JSON-RPC requests of a POST are remembered until their responses have passed, so that an error
  inside the stream can answer those that are still open.
- The old transport's (2024-11-05) `endpoint` event, the first of a GET's stream, is rewritten: the
  client's POSTs come to this route, and go on to the endpoint whose stream it was.

Everything else passes as it is. Uses the public plug-in API only; knows no exchange and no socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from interceptors import (
    Event,
    EventResult,
    Interceptor,
    NotJson,
    Outcome,
    Request,
    Response,
    StreamContext,
    StreamInterceptor,
)
from interceptors.content import is_json_in_utf8
from interceptors.dialects.mcp import PARSE_ERROR, BatchTooLong, is_too_long
from interceptors.dialects.mcp_answers import NOT_JSON_IN_UTF8
from interceptors.dialects.mcp_headers import (
    INVALID_REQUEST,
    Rejection,
    check,
    has_mirrors,
    mirror,
    revision_of,
)
from interceptors.dialects.mcp_hooks import through_current
from interceptors.dialects.mcp_sessions import LiveSession, canonical, has_data, session_of
from interceptors.hooks import Owner
from interceptors.needs import Search
from interceptors.refusals import request_ids
from interceptors.sse import find_block_end

from ..errors import ProxyDefect
from ..http.place import Place
from ..upstream import Balancer, Endpoint

__all__ = ["Calls", "calls_of", "surround"]

_KEY = "proxy.dialects.mcp"
_SESSION = "mcp-session-id"
_MOST_ID = 1024  # characters of a request's id that is kept for as long as its stream lasts
_MOST_ENDPOINT = 8192  # bytes of the event that announces a session


@dataclass(slots=True)
class Calls:
    """The JSON-RPC requests of one POST."""

    raw_path: bytes
    """The path that the client has asked for."""
    open: list[float | str] = field(default_factory=list)
    """Their ids, as the client knows them, until the response has passed; none longer than
    `_MOST_ID`.
    """
    resumable: bool = False
    """Events with ids have passed: a client whose stream breaks off may come back for the rest
    (2025-03-26 to 2025-11-25).
    """
    message: Any = None
    """The body as it came, until the request goes upstream."""
    uri: bytes | None = None
    """Of a POST, as sessions of the old transport are named: path and query."""
    endpoint: Endpoint | None = None
    """Which endpoint has answered."""
    outer: bytes = b""
    """The prefix that trusted proxies in front of this one have stripped."""
    encoded: bool = False
    """The answer is encoded, so that its events cannot be seen."""


def calls_of(request: Request | None) -> Calls | None:
    """What is known of the requests in a request; None where it never came to the first of the two
    interceptors.
    """
    return None if request is None else request.state.get(_KEY)


def surround(
    owners: Sequence[Owner], places: Mapping[Endpoint, Place], transport: Balancer
) -> list[Owner]:
    """A route's interceptors, with the proxy's own around them. `transport` ties sessions to
    endpoints.
    """
    return [
        _ProxyOwner("mcp (first)", _First(places, transport)),
        *owners,
        _ProxyOwner("mcp (last)", _Last()),
    ]


class _ProxyOwner(Owner):
    """What it answers, the proxy refuses; what it fails in, the proxy fails in."""

    __slots__ = ()

    outcome = Outcome.REFUSED

    def failed(self, hook: str, error: Exception) -> ProxyDefect:
        structlog.get_logger("proxy").error(
            "internal_error", interceptor=self.name, hook=hook, exc_info=error
        )
        return ProxyDefect(f"{self.name}.{hook}: {type(error).__name__}")


class _First(Interceptor):
    wants_body = True

    def __init__(self, places: Mapping[Endpoint, Place], transport: Balancer) -> None:
        self._places = places
        self._transport = transport

    async def on_request(self, request: Request) -> Response | None:
        calls = request.state[_KEY] = Calls(request.target.partition(b"?")[0])
        if request.method == "POST":
            calls.uri = canonical(request.target)
        if request.method != "POST" or not request.has_body or not _may_be_json(request):
            return None
        # A body that an interceptor has put there is no longer what the client's headers are about.
        mirrored = (
            has_mirrors(revision_of(request.headers))
            and not _is_old(request)
            and not request.body_replaced
        )
        if not is_json_in_utf8(request.headers.raw) and (
            mirrored or "content-type" in request.headers
        ):
            return _refuse(Rejection(INVALID_REQUEST, NOT_JSON_IN_UTF8, status=415))
        try:
            message = request.json()
        except NotJson:
            # What cannot be read cannot be verified. Where there is nothing to verify, the server
            # says what it thinks of it.
            return _refuse(Rejection(PARSE_ERROR, "the body is not JSON")) if mirrored else None
        if is_too_long(message):
            return _refuse(Rejection(INVALID_REQUEST, str(BatchTooLong())))
        rejection = check(request.headers, message) if mirrored else None
        if rejection is not None:
            if request.sessions is None or not await request.sessions.find_elsewhere(request):
                return _refuse(rejection)
            mirrored = (
                False  # the old transport has no such headers, whichever revision a client names
            )
        calls.open = [
            ident
            for ident in request_ids(message)
            if not isinstance(ident, str) or len(ident) <= _MOST_ID
        ]
        if mirrored:
            calls.message = message
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        calls = calls_of(context.request)
        if context.method != "GET" or calls is None or calls.endpoint is None:
            return None
        if calls.encoded and _SESSION in context.headers:
            return None  # Streamable HTTP: nothing in its stream is for the proxy
        return _ListeningStream(
            self._places[calls.endpoint], calls, calls.endpoint, context, self._transport
        )


class _Last(Interceptor):
    wants_body = True

    async def on_request(self, request: Request) -> Response | None:
        calls, before = calls_of(request), None
        if calls is not None:
            before, calls.message = calls.message, None
        mirrored = request.body_replaced and has_mirrors(revision_of(request.headers))
        if request.method == "POST" and mirrored and not _is_old(request):
            with suppress(NotJson):  # the interceptor's doing, and the server's to refuse
                mirror(request.headers, request.json(), before)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        calls = calls_of(context.request)
        if calls is None or not calls.open:
            return None
        stream = _AnswerStream(calls, resumable=not has_mirrors(revision_of(context.headers)))
        stream.passes_unseen = not calls.encoded
        return stream


class _ListeningStream(StreamInterceptor):
    """A GET's stream. Its first event decides: `endpoint` announces a session of the old transport,
    and is rewritten.
    """

    def __init__(
        self,
        place: Place,
        calls: Calls,
        endpoint: Endpoint,
        context: StreamContext,
        transport: Balancer,
    ) -> None:
        self._place = place
        self._calls = calls
        self._endpoint = endpoint
        self._context = context
        self._transport = transport
        self._begun = False
        self._live: LiveSession | None = None
        self.needs = Search(self._find)  # type: ignore[assignment]  # no part of the plug-in API

    def _find(self, buffer: bytes | bytearray, start: int, end: int) -> int:
        """Every event up to the first, and after a reload every event of a session of the old
        transport.
        """
        if self._begun:
            return start if self._live is not None and self._live.superseded else -1
        if (
            end - start > _MOST_ENDPOINT
            and find_block_end(buffer, start, start + _MOST_ENDPOINT, start) < 0
        ):
            self._begun = True  # so large an event announces no session, and may pass at any size
            return -1
        return start

    def on_event(self, event: Event) -> EventResult:
        if self._begun:
            live = self._live
            return through_current(live, event) if live is not None and live.superseded else event
        if not has_data(event):
            return event
        self._begun = True
        return self._open_session(event) if event.event == "endpoint" else event

    def on_end(self, outcome: Outcome) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._context.request.sessions.close(live, outcome)
            self._transport.release(live.uri)
        del self._context, self.needs  # they refer to this

    def _open_session(self, event: Event) -> Event:
        request, told, outer = self._context.request, event.data, self._calls.outer
        rewritten = told
        # A server that honours X-Forwarded-Prefix writes what the client must send, and proxies in
        # front remove their part of it.
        if not outer or not told.startswith(outer.decode("latin-1") + self._place.prefix + "/"):
            path, outer = self._calls.raw_path.decode("latin-1"), b""
            rewritten = self._place.client_view(
                told, path=path, host=request.headers.get("host", "")
            )
        uri = session_of(request.target, rewritten)[len(outer) :]
        self._live = request.sessions.open(uri, self._context, self)
        self._transport.remember(uri, self._endpoint)
        self._transport.hold(uri)
        return event if rewritten == told else event.replace(data=rewritten)


class _AnswerStream(StreamInterceptor):
    """The responses in a POST's stream, as they leave for the client."""

    needs = (
        b"id:",
        b'"result"',
        b'"error"',
    )  # a key in another spelling is missed: then an answered request counts as open
    passes_unseen = True

    def __init__(self, calls: Calls, *, resumable: bool) -> None:
        self._calls = calls
        self._resumable = resumable  # the newest revision has no resumption

    def on_event(self, event: Event) -> Event:
        if self._resumable and event.id:
            self._calls.resumable = True
        text = event.data
        if '"result"' in text or '"error"' in text:
            try:
                messages = event.json()
            except NotJson:
                return event
            for message in messages if isinstance(messages, list) else [messages]:
                if isinstance(message, dict) and message.get("method") is None:
                    self._calls.open = [
                        ident for ident in self._calls.open if ident != message.get("id")
                    ]
        return event


def _refuse(rejection: Rejection) -> Response:
    return Response(status=rejection.status, json=rejection.json())


def _is_old(request: Request) -> bool:
    """Whether a request belongs to a session of the old transport, as far as this worker knows."""
    return request.sessions is not None and request.sessions.owns(request)


def _may_be_json(request: Request) -> bool:
    """Whether a server may read a body as JSON. Official ones look for `application/json` anywhere
    in the header.
    """
    value: str = request.headers.get("content-type", "").lower()
    return not value.strip() or "application/json" in value or "+json" in value
