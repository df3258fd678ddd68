"""What the proxy does on a route with `dialect: mcp`: two interceptors, before and after the
route's.

- Headers that mirror the body (revision 2026-07-28) are verified before an interceptor of the route
sees the body, and follow the body if one changes it. Both want the body, so interceptors that need
only the head run before them. - A batch of more than `MAX_BATCH` messages is refused. - The
JSON-RPC requests of a POST are kept until their responses have passed: an error inside the stream
answers those that are still open. - The `endpoint` event of the old transport (2024-11-05), the
first of a GET's stream, is rewritten to point to this route, and its session is tied to the
endpoint that opened the stream: by a mark in the URI, or in the table of sessions.

Everything else passes unchanged. Uses the plug-in API; knows no exchange and no socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

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
from interceptors.dialects.mcp_sessions import LiveSession, canonical, has_data, session_of
from interceptors.dialects.mcp_streams import through_current
from interceptors.hooks import Owner
from interceptors.needs import Search
from interceptors.refusals import request_ids
from interceptors.sse import find_block_end

from ..errors import ProxyDefect
from ..http.place import Place
from ..upstream import Endpoint, UpstreamSessions
from ..upstream.session_ids import PARAMETER

__all__ = ["McpState", "state_of", "surround"]

_KEY = "proxy.dialects.mcp"
_SESSION_HEADER = "mcp-session-id"
_MAX_ID_CHARS = 1024  # of the id of a request, which is kept for as long as its stream lasts
_MAX_ENDPOINT_BYTES = 8192  # of the event that announces a session


@dataclass(slots=True)
class McpState:
    """One request on an MCP route, in `request.state`."""

    raw_path: bytes
    """The path that the client asked for."""
    open_calls: list[float | str] = field(default_factory=list)
    """The ids, as the client knows them, of requests whose response has not passed.

    Ids longer than `_MAX_ID_CHARS` are left out.
    """
    can_resume: bool = False
    """Events with ids have passed, so the client may come back for the rest."""
    message: Any = None
    """The decoded body as it arrived, until the request goes upstream."""
    session: bytes | None = None
    """Of a POST, the key of its session on the old transport: path and query."""
    endpoint: Endpoint | None = None
    """The endpoint that answered."""
    outer_prefix: bytes = b""
    """The prefix that trusted proxies in front of this one have removed."""
    public_host: str = ""
    """The Host that a trusted proxy has received; "" if unknown."""
    is_encoded: bool = False
    """The answer has a content coding, so its events cannot be read."""


def state_of(request: Request | None) -> McpState | None:
    """The state of a request; None if it has not reached the first of the two interceptors."""
    return None if request is None else request.state.get(_KEY)


def surround(
    owners: Sequence[Owner], places: Mapping[Endpoint, Place], sessions: UpstreamSessions
) -> list[Owner]:
    """A route's interceptors between the proxy's own. `sessions` ties sessions to endpoints."""
    return [
        _ProxyOwner("mcp (first)", _First(places, sessions)),
        *owners,
        _ProxyOwner("mcp (last)", _Last()),
    ]


class _ProxyOwner(Owner):
    """Counts an answer of these interceptors as the proxy's refusal, their failure as its defect."""

    __slots__ = ()

    outcome = Outcome.REFUSED

    def failed(self, hook: str, error: Exception) -> ProxyDefect:
        structlog.get_logger("proxy").error(
            "internal_error", interceptor=self.name, hook=hook, exc_info=error
        )
        return ProxyDefect(f"{self.name}.{hook}: {type(error).__name__}")


class _First(Interceptor):
    wants_body = True

    def __init__(self, places: Mapping[Endpoint, Place], sessions: UpstreamSessions) -> None:
        self._places = places
        self._sessions = sessions

    async def on_request(self, request: Request) -> Response | None:
        state = request.state[_KEY] = McpState(request.target.partition(b"?")[0])
        if request.method != "POST":
            return None
        state.session = canonical(request.target)
        if not request.has_body or not _may_be_json(request):
            return None
        rejection = await self._read_body(request, state)
        return (
            None if rejection is None else Response(status=rejection.status, json=rejection.json())
        )

    async def _read_body(self, request: Request, state: McpState) -> Rejection | None:
        """Verify the body and its headers, and note its requests."""
        # The client's headers do not describe a body that an interceptor has put in place.
        has_mirrored = (
            has_mirrors(revision_of(request.headers))
            and not _is_old(request)
            and not request.body_replaced
        )
        if not is_json_in_utf8(request.headers.raw) and (
            has_mirrored or "content-type" in request.headers
        ):
            return Rejection(INVALID_REQUEST, NOT_JSON_IN_UTF8, status=415)
        try:
            message = request.json()
        except NotJson:
            # An unreadable body cannot be verified; with nothing to verify, the server judges it.
            return Rejection(PARSE_ERROR, "the body is not JSON") if has_mirrored else None
        if is_too_long(message):
            return Rejection(INVALID_REQUEST, str(BatchTooLong()))
        rejection = check(request.headers, message) if has_mirrored else None
        if rejection is not None:
            if request.sessions is None or not await request.sessions.find_elsewhere(request):
                return rejection
            has_mirrored = False  # the old transport has no such headers, whatever the revision
        state.open_calls = [
            ident
            for ident in request_ids(message)
            if not isinstance(ident, str) or len(ident) <= _MAX_ID_CHARS
        ]
        if has_mirrored:
            state.message = message
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        state = state_of(context.request)
        if context.method != "GET" or state is None or state.endpoint is None:
            return None
        if state.is_encoded and _SESSION_HEADER in context.headers:
            return None  # Streamable HTTP: the proxy needs nothing of this stream
        return _ListeningStream(
            self._places[state.endpoint], state, state.endpoint, context, self._sessions
        )


class _Last(Interceptor):
    wants_body = True

    async def on_request(self, request: Request) -> Response | None:
        state, before = state_of(request), None
        if state is not None:
            before, state.message = state.message, None
        mirrored = request.body_replaced and has_mirrors(revision_of(request.headers))
        if request.method == "POST" and mirrored and not _is_old(request):
            with suppress(NotJson):  # an interceptor made this body: the server may refuse it
                mirror(request.headers, request.json(), before)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        state = state_of(context.request)
        if state is None or not state.open_calls:
            return None
        stream = _AnswerStream(state, has_resumption=not has_mirrors(revision_of(context.headers)))
        stream.passes_unseen = not state.is_encoded
        return stream


class _ListeningStream(StreamInterceptor):
    """The stream of a GET. If its first event is `endpoint`, it belongs to the old transport."""

    def __init__(
        self,
        place: Place,
        state: McpState,
        endpoint: Endpoint,
        context: StreamContext,
        sessions: UpstreamSessions,
    ) -> None:
        self._place = place
        self._state = state
        self._endpoint = endpoint
        self._context = context
        self._sessions = sessions
        self._has_begun = False
        self._live: LiveSession | None = None
        self._held: bytes | None = None
        """The session in the table."""
        self.needs = Search(self._find)  # type: ignore[assignment]  # no part of the plug-in API

    def _find(self, buffer: bytes | bytearray, start: int, end: int) -> int:
        """Every event up to the first with data; after a reload, all of an old-transport session."""
        if self._has_begun:
            return start if self._live is not None and self._live.superseded else -1
        if (
            end - start > _MAX_ENDPOINT_BYTES
            and find_block_end(buffer, start, start + _MAX_ENDPOINT_BYTES, start) < 0
        ):
            self._has_begun = True  # too large to announce a session: it may pass at any size
            return -1
        return start

    def on_event(self, event: Event) -> EventResult:
        if self._has_begun:
            live = self._live
            return through_current(live, event) if live is not None and live.superseded else event
        if not has_data(event):
            return event
        self._has_begun = True
        return self._open_session(event) if event.event == "endpoint" else event

    def on_end(self, outcome: Outcome) -> None:
        live, self._live = self._live, None
        if live is not None:
            self._context.request.sessions.close(live, outcome)
            if self._held is not None:
                self._sessions.release(self._held)
        del self._context, self.needs  # break the reference cycles

    def _open_session(self, event: Event) -> Event:
        request, announced, outer = self._context.request, event.data, self._state.outer_prefix
        rewritten = announced
        # A server that honours X-Forwarded-Prefix announces what the client must send, and the
        # proxies in front remove their part of it.
        local = _local(announced, self._state.public_host)
        prefix = outer.decode("latin-1") + self._place.prefix + "/"
        if not outer or local is None or not local.startswith(prefix):
            path, outer = self._state.raw_path.decode("latin-1"), b""
            rewritten = self._place.client_view(
                announced, path=path, host=request.headers.get("host", "")
            )
        marked = self._with_mark(request, rewritten, len(outer))
        uri = session_of(request.target, marked or rewritten)[len(outer) :]
        self._live = request.sessions.open(uri, self._context, self)
        if marked is None:
            self._sessions.remember(uri, self._endpoint)
            self._sessions.hold(uri)
            self._held = uri
        rewritten = marked or rewritten
        return event if rewritten == announced else event.replace(data=rewritten)

    def _with_mark(self, request: Request, reference: str, outer_bytes: int) -> str | None:
        """The reference with a mark that names the endpoint; None if the table is used, or if the
        reference leads to another origin.
        """
        if _local(reference, self._state.public_host) is None:
            return None
        text = reference.partition("#")[0]
        if not text:  # the URL of the GET itself
            _, mark, query = canonical(request.target).decode().partition("?")
            text = mark + query
        text += ("&" if "?" in text else "?") + PARAMETER.decode()
        uri = session_of(request.target, text)[outer_bytes:]
        signed = self._sessions.mark(uri, self._endpoint)
        return None if signed is None else text + signed.decode()


class _AnswerStream(StreamInterceptor):
    """The stream of a POST: notes which responses leave for the client."""

    # A key in another spelling is missed: the answered request then counts as open.
    needs = (b"id:", b'"result"', b'"error"')
    passes_unseen = True

    def __init__(self, state: McpState, *, has_resumption: bool) -> None:
        self._state = state
        self._has_resumption = has_resumption  # not in revision 2026-07-28

    def on_event(self, event: Event) -> Event:
        if self._has_resumption and event.id:
            self._state.can_resume = True
        text = event.data
        if '"result"' in text or '"error"' in text:
            with suppress(NotJson):
                self._close_calls(event.json())
        return event

    def _close_calls(self, messages: Any) -> None:
        for message in messages if isinstance(messages, list) else [messages]:
            if isinstance(message, dict) and message.get("method") is None:
                self._state.open_calls = [
                    ident for ident in self._state.open_calls if ident != message.get("id")
                ]


def _local(reference: str, host: str) -> str | None:
    """A reference without its origin; None if that is not `host`."""
    try:
        parts = urlsplit(reference)
    except ValueError:
        return None
    if parts.netloc and parts.netloc.lower() == host:
        return reference.partition(parts.netloc)[2]
    return None if parts.scheme or parts.netloc else reference


def _is_old(request: Request) -> bool:
    """Whether this worker knows that a request belongs to a session of the old transport."""
    return request.sessions is not None and request.sessions.owns(request)


def _may_be_json(request: Request) -> bool:
    """Whether a server may read a body as JSON. The official ones search the header for
    `application/json`.
    """
    value: str = request.headers.get("content-type", "").lower()
    return not value.strip() or "application/json" in value or "+json" in value
