"""What the proxy itself does on a route with `dialect: mcp`, as two interceptors around the route's own: one first, one last.

- Headers that mirror the body (revision 2026-07-28) are verified before any other interceptor sees the request, and made to fit
  again when one has changed the body.
- The JSON-RPC requests of a POST are remembered until their responses have passed, so that an error inside the stream can answer
  those that are still open.
- The old transport's (2024-11-05) `endpoint` event is rewritten such that the client's POSTs come to this route, and go on to
  the endpoint whose stream it was.

Everything else passes as it is. Uses the public plug-in API only; knows no exchange and no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from interceptors import Event, Interceptor, NotJson, Request, Response, StreamContext, StreamInterceptor
from interceptors.dialects.mcp_headers import PROTOCOL_VERSION, Rejection, check, has_mirrors, mirror, revision_of
from interceptors.hooks import Owner
from interceptors.refusals import request_ids

from .place import Place, resolved
from .upstream import Endpoint

__all__ = ["Calls", "calls_of", "surround"]

_KEY = "proxy.mcp"
_SESSION = "mcp-session-id"
_PARSE_ERROR = -32700


@dataclass(slots=True)
class Calls:
    """The JSON-RPC requests of one POST."""

    raw_path: bytes
    """The path that the client has asked for."""
    open: list[float | str] = field(default_factory=list)
    """Their ids, as the client knows them, until the response has passed."""
    resumable: bool = False
    """Events with ids have passed: a client whose stream breaks off may come back for the rest (2025-03-26 to 2025-11-25)."""
    message: Any = None
    """The body as it came, until the request goes upstream."""
    session: bytes | None = None
    """What names the session that the request belongs to, on the old transport: the target that an `endpoint` event told."""
    endpoint: Endpoint | None = None
    """Which endpoint has answered."""


def calls_of(request: Request | None) -> Calls | None:
    """What is known of the requests in a request; None where it never came to the first of the two interceptors."""
    return None if request is None else request.state.get(_KEY)


def surround(
    owners: Sequence[Owner], places: Mapping[Endpoint, Place], remember: Callable[[bytes, Endpoint], None]
) -> list[Owner]:
    """A route's interceptors, with the proxy's own around them. `remember` ties a session to an endpoint."""
    return [Owner("mcp (first)", _First(places, remember)), *owners, Owner("mcp (last)", _Last())]


class _First(Interceptor):
    wants_body = True

    def __init__(self, places: Mapping[Endpoint, Place], remember: Callable[[bytes, Endpoint], None]) -> None:
        self._places = places
        self._remember = remember

    async def on_request(self, request: Request) -> Response | None:
        calls = request.state[_KEY] = Calls(request.raw_path)
        if request.method == "POST" and request.query and _SESSION not in request.headers:
            calls.session = request.raw_path + b"?" + request.query
        if request.method != "POST" or not _is_json(request):
            return None
        mirrored = has_mirrors(revision_of(request.headers))
        try:
            message = request.json()
        except NotJson:
            # What cannot be read cannot be verified. Where there is nothing to verify, the server says what it thinks of it.
            return _refuse(Rejection(_PARSE_ERROR, "the body is not JSON")) if mirrored else None
        rejection = check(request.headers, message)
        if rejection is not None:
            return _refuse(rejection)
        calls.open = request_ids(message)
        if mirrored:
            calls.message = message
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        headers = context.headers
        if context.method != "GET" or any(name in headers for name in (PROTOCOL_VERSION, _SESSION, "last-event-id")):
            return None  # a GET of Streamable HTTP
        calls = calls_of(context.request)
        if calls is None or calls.endpoint is None:
            return None
        return _EndpointStream(self._places[calls.endpoint], calls, headers.get("host", ""), self._remember)


class _Last(Interceptor):
    async def on_request(self, request: Request) -> Response | None:
        calls, before = calls_of(request), None
        if calls is not None:
            before, calls.message = calls.message, None
        if request.method == "POST" and request.body_replaced and has_mirrors(revision_of(request.headers)):
            with suppress(NotJson):  # the interceptor's doing, and the server's to refuse
                mirror(request.headers, request.json(), before)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        calls = calls_of(context.request)
        if calls is None or not calls.open:
            return None
        return _AnswerStream(calls, resumable=not has_mirrors(revision_of(context.headers)))


class _EndpointStream(StreamInterceptor):
    """The first `endpoint` event of a GET's stream."""

    needs = (b"endpoint",)

    def __init__(self, place: Place, calls: Calls, host: str, remember: Callable[[bytes, Endpoint], None]) -> None:
        self._place: Place | None = place
        self._calls = calls
        self._host = host
        self._remember = remember

    def on_event(self, event: Event) -> Event:
        if self._place is None or event.event != "endpoint":
            return event
        place, self._place = self._place, None
        path = self._calls.raw_path.decode("latin-1")
        rewritten = place.client_view(event.data, path=path, host=self._host)
        if self._calls.endpoint is not None:
            self._remember(resolved(path, rewritten).encode("utf-8", "replace"), self._calls.endpoint)
        return event if rewritten == event.data else event.replace(data=rewritten)


class _AnswerStream(StreamInterceptor):
    """The responses in a POST's stream, as they leave for the client."""

    needs = (b"id:", b'"result"', b'"error"')  # a key in another spelling is missed: then an answered request counts as open

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
                    self._calls.open = [ident for ident in self._calls.open if ident != message.get("id")]
        return event


def _refuse(rejection: Rejection) -> Response:
    return Response(status=rejection.status, json=rejection.json())


def _is_json(request: Request) -> bool:
    """Whether a body calls itself JSON, or nothing at all."""
    media_type: str = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type in ("", "application/json") or media_type.endswith("+json")
