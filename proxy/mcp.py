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
from urllib.parse import urljoin, urlsplit

from interceptors import Event, Interceptor, NotJson, Request, Response, StreamContext, StreamInterceptor
from interceptors.dialects.mcp_headers import PROTOCOL_VERSION, Rejection, check, has_mirrors, mirror, revision_of
from interceptors.hooks import Owner
from interceptors.paths import normal_path

from .upstream import Endpoint

__all__ = ["Calls", "Place", "calls_of", "surround"]

_KEY = "proxy.mcp"
_SESSION = "mcp-session-id"
_PARSE_ERROR = -32700


@dataclass(slots=True)
class Calls:
    """The JSON-RPC requests of one POST."""

    raw_path: bytes
    """The path that the client has asked for."""
    open: list[int | str] = field(default_factory=list)
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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a route stands between its clients and its upstream: what turns the upstream's references into the client's."""

    prefix: str
    """The route's, without a slash at its end."""
    strip_prefix: bool
    base: str
    """The endpoint's own path, without a slash at its end."""
    authorities: frozenset[str]
    """How the upstream may call itself, in lower case: its URL's host and port, and the Host header that it gets."""

    def client_view(self, reference: str, *, path: str, host: str) -> str:
        """A URL reference of the upstream's, such that a client that resolves it comes to this route and so to the same resource.

        `path`: what the client asked for; `host`: its Host header, for an upstream that has been told it. What resolves rightly
        already, another origin, and what no request on this route can reach stay as they are.
        """
        try:
            parts = urlsplit(reference)
            authority = parts.netloc.lower()
        except ValueError:
            return reference
        absolute = bool(parts.scheme or parts.netloc)
        if absolute and (parts.scheme not in ("", "http", "https") or authority not in self.authorities | {host.lower()}):
            return reference
        upstream_path = self.base + (path[len(self.prefix) :] or "/" if self.strip_prefix else path)
        path_of_it = parts.path or ("/" if absolute else "")
        target = _resolved(upstream_path, parts._replace(scheme="", netloc="", path=path_of_it).geturl())
        if not target.startswith(self.base + "/"):
            return reference
        target = target[len(self.base) :]
        if self.strip_prefix:
            target = self.prefix + target
        if target.startswith("//") or not _under(self.prefix, target):  # another host's, for a client; another route's
            return reference
        return reference if not absolute and _resolved(path, reference) == target else target


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
        calls.open = _requests_in(message)
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
    passes_large = True

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
            self._remember(_resolved(path, rewritten).encode("utf-8", "replace"), self._calls.endpoint)
        return event if rewritten == event.data else event.replace(data=rewritten)


class _AnswerStream(StreamInterceptor):
    """The responses in a POST's stream, as they leave for the client."""

    needs = (b"id:", b'"result"', b'"error"')  # a key in another spelling is missed: then an answered request counts as open
    passes_large = True

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
                if isinstance(message, dict) and "method" not in message:
                    self._calls.open = [ident for ident in self._calls.open if ident != message.get("id")]
        return event


def _refuse(rejection: Rejection) -> Response:
    return Response(status=rejection.status, json=rejection.json())


def _requests_in(message: Any) -> list[int | str]:
    """The ids of the JSON-RPC requests in a decoded body, which may be a batch (2025-03-26)."""
    found = []
    for item in message if isinstance(message, list) else [message]:
        ident = item.get("id") if isinstance(item, dict) and "method" in item else None
        if isinstance(ident, (int, str)) and not isinstance(ident, bool):
            found.append(ident)
    return found


def _is_json(request: Request) -> bool:
    """Whether a body calls itself JSON, or nothing at all."""
    media_type: str = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type in ("", "application/json") or media_type.endswith("+json")


def _resolved(path: str, reference: str) -> str:
    """What a reference without an origin means in a document at that path (RFC 3986, section 5.2)."""
    origin = "http://h"
    return urljoin(origin + path, reference).removeprefix(origin)


def _under(prefix: str, target: str) -> bool:
    path = normal_path(target.partition("?")[0].encode("utf-8", "replace"))
    return path.startswith(prefix.encode()) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")
