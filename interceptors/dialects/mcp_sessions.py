"""The MCP sessions that one process knows: the open streams of the old transport, and which
response answers which request.

This state outlives a reload: a process has one `McpSessions`, and each request carries the part of
its upstream, a `SessionBook`. An interceptor without a proxy makes its own.

The old transport is HTTP with SSE (MCP 2024-11-05): the first event of a GET's stream, `endpoint`,
has the URI for the client's POSTs. That URI, resolved as the client resolves it, is the session,
byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from urllib.parse import urlsplit

import trio

from ..api import Outcome, StreamContext, StreamInterceptor
from ..errors import StreamOver
from ..event import Event
from ..hooks import Owner
from ..message import Request
from ..paths import without_dots
from .mcp_calls import Call, Calls, RequestId

__all__ = [
    "LiveSession",
    "McpSessions",
    "SessionBook",
    "canonical",
    "has_data",
    "live_of",
    "resolve",
    "session_of",
]

AskOthers = Callable[[str, bytes, list[str]], Awaitable[bool]]
"""Ask the other processes to send messages (JSON) on the stream of a session: its upstream, its
URI, the messages. Returns whether one has the session.
"""

EMIT_S = 30.0
"""A client that reads nothing for this long does not get its message."""

_MOST_WAITING = 64
_MOST_CHARACTERS = 1 << 18
"""Of the messages that one caller sends on a stream. The client controls their length: an answer
repeats the id of its request.
"""

_LIVE = "mcp.live"
_ELSEWHERE = "mcp.elsewhere"
_DIGIT = re.compile(rb"[0-9]")
# Bytes that a URI cannot hold (RFC 3986), and the quote that browsers encode in queries: not every
# client encodes them.
_UNSAFE = re.compile(rb"[^!#$%&()*+,\-./0-9:;=?@A-Z\[\]_a-z~]")
_DATA_LINE = re.compile(rb"(?:^|[\r\n])data(?=[:\r\n])")


class LiveSession:
    """A session of the old transport whose stream is open in this process."""

    __slots__ = (
        "_book",
        "_opened_at",
        "_parts",
        "_resolved_at",
        "_waiting",
        "context",
        "leader",
        "uri",
    )

    def __init__(
        self, book: SessionBook, uri: bytes, context: StreamContext, leader: object
    ) -> None:
        self._book = book
        self._opened_at = self._resolved_at = book.since
        self.uri = uri
        self.context: StreamContext = context
        """Of the last MCP interceptor on the stream: no MCP interceptor sees what it emits."""
        self.leader = leader
        """The first interceptor on the stream. After a reload, its part of the stream runs the
        interceptors of the new configuration.
        """
        self._parts: Sequence[tuple[Owner, StreamInterceptor]] | None = None
        self._waiting = 0

    @property
    def superseded(self) -> bool:
        """Whether the configuration was reloaded after the stream began."""
        return self._opened_at != self._book.shared.reloads

    def refresh(
        self, open_part: Callable[[LiveSession, Owner], StreamInterceptor]
    ) -> Sequence[tuple[Owner, StreamInterceptor]]:
        """The MCP interceptors of the current configuration for this stream, each with its part."""
        if self._parts is None or self._resolved_at != self._book.shared.reloads:
            self._resolved_at = self._book.shared.reloads
            self._end_parts(Outcome.COMPLETED)
            owners = self._book.shared.owners_of(self.context.request)
            self._parts = [(owner, open_part(self, owner)) for owner in owners]
        return self._parts

    def close(self, outcome: Outcome) -> None:
        """The stream is over. Breaks the reference cycles."""
        self._end_parts(outcome)
        self.leader = None
        self.context.state.pop(_LIVE, None)

    def _end_parts(self, outcome: Outcome) -> None:
        for owner, part in self._parts or ():
            try:
                part.on_end(outcome)
            except Exception as error:
                owner.failed("on_end", error)
        self._parts = None

    async def emit(self, messages: Sequence[str]) -> None:
        """Send messages on the stream. Waits for a slow client for at most `EMIT_S`.

        Raises `StreamOver` when the stream has ended, when that time is over, and when too much
        waits for the client already.
        """
        if not self.has_room(messages):
            raise StreamOver
        self._waiting += 1
        try:
            with trio.move_on_after(EMIT_S):
                for message in messages:
                    await self.context.emit(Event(message, event="message"))
                return
        finally:
            self._waiting -= 1
        raise StreamOver

    def has_room(self, messages: Sequence[str]) -> bool:
        """Whether these messages may wait for the client besides those that wait already."""
        return not messages or (
            self._waiting < _MOST_WAITING and sum(map(len, messages)) <= _MOST_CHARACTERS
        )


class McpSessions:
    """The sessions of all upstreams of one process."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.live: dict[tuple[str, bytes], LiveSession] = {}
        self.reloads = 0
        """How often the configuration was reloaded."""
        self.owners_of: Callable[[Request], Sequence[Owner]] = lambda request: ()
        """The interceptors of the current configuration on the route of a request."""
        self.ask_others: AskOthers | None = None

    def of(self, upstream: str) -> SessionBook:
        """The part of one upstream, by its name."""
        return SessionBook(self, upstream)

    async def deliver(self, upstream: str, uri: bytes, messages: Sequence[str]) -> bool:
        """Send messages on the stream of a session. Returns whether this process has it."""
        live = self.live.get((upstream, uri))
        if live is None:
            return False
        try:
            await live.emit(messages)
        except StreamOver:
            return False
        return True


class SessionBook:
    """The sessions of one upstream."""

    __slots__ = ("shared", "since", "upstream")

    def __init__(self, shared: McpSessions, upstream: str) -> None:
        self.shared = shared
        self.upstream = upstream
        self.since = shared.reloads
        """`reloads` when its configuration became current."""

    def open(self, uri: bytes, context: StreamContext, leader: object) -> LiveSession:
        """A stream has announced a session. The newest stream replaces older ones."""
        live = self.shared.live[self.upstream, uri] = LiveSession(self, uri, context, leader)
        context.state[_LIVE] = live
        return live

    def close(self, live: LiveSession, outcome: Outcome) -> None:
        """The stream of a session is over."""
        if self.shared.live.get((self.upstream, live.uri)) is live:
            del self.shared.live[self.upstream, live.uri]
        live.close(outcome)

    def has(self, uri: bytes) -> bool:
        """Whether the session's stream is open in this process."""
        return (self.upstream, uri) in self.shared.live

    def owns(self, request: Request) -> bool:
        """Whether this process knows that a request belongs to a session of the old transport."""
        return request.method == "POST" and (
            _ELSEWHERE in request.state or self.has(canonical(request.target))
        )

    async def find_elsewhere(self, request: Request) -> bool:
        """Whether a POST belongs to such a session of another process; `owns` is then true as well."""
        if not await self.deliver(canonical(request.target), ()):
            return False
        request.state[_ELSEWHERE] = True
        return True

    async def deliver(self, uri: bytes, messages: Sequence[str]) -> bool:
        """Send messages on the stream of a session, here or in another process. Returns whether
        one has it.
        """
        if await self.shared.deliver(self.upstream, uri, messages):
            return True
        if self.shared.ask_others is None or not _may_name_session(uri):
            return False
        return await self.shared.ask_others(self.upstream, uri, list(messages))

    def remember(self, interceptor: str, session: str, call: Call) -> None:
        """Keep a request that passed the interceptor of this name."""
        self.shared.calls.remember(self._key(interceptor, session), call)

    def find(
        self, interceptor: str, session: str, request_id: RequestId, *, from_client: bool
    ) -> Call | None:
        """The request with this id, as it passed the interceptor; None if it is not known."""
        return self.shared.calls.find(
            self._key(interceptor, session), request_id, from_client=from_client
        )

    def _key(self, interceptor: str, session: str) -> str:
        parts = (self.upstream, interceptor, session)
        # A digest: session ids are credentials, and may be long.
        return blake2b(
            "\0".join(parts).encode("utf-8", "surrogateescape"), digest_size=16
        ).hexdigest()


def _may_name_session(uri: bytes) -> bool:
    """Whether a URI can name one of several sessions: by a query, or a digit in its last segment."""
    return b"?" in uri or _DIGIT.search(uri, uri.rfind(b"/") + 1) is not None


def live_of(context: StreamContext) -> LiveSession | None:
    """The session that a stream has announced, if any."""
    live: LiveSession | None = context.state.get(_LIVE)
    return live


def session_of(target: bytes, endpoint: str) -> bytes:
    """The session that an `endpoint` event announces to a client that requested `target`."""
    return canonical(resolve(target, endpoint))


def canonical(target: bytes) -> bytes:
    """A request target in one spelling: without an empty query, which only some clients keep, and
    with everything percent-encoded that only some clients encode.
    """
    path, _, query = target.partition(b"?")
    if not query:
        target = path
    if _UNSAFE.search(target) is None:
        return target
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], target)


def resolve(target: bytes, reference: str) -> bytes:
    """Path and query of a URI reference, resolved against `target` (RFC 3986, section 5.2).

    The origin is left out: a POST that arrives here has passed it already.
    """
    text = re.sub(r"[\t\r\n]", "", reference.strip(" \t\r\n\f\0")).partition("#")[0]
    try:
        parts = urlsplit(text)
    except ValueError:
        return text.encode("utf-8", "replace")
    has_authority = bool(parts.scheme or parts.netloc)
    rest = text[len(parts.scheme) + 1 if parts.scheme else 0 :]
    if rest.startswith("//"):
        rest = rest[2 + len(parts.netloc) :]
    path, mark, query = rest.partition("?")
    base, base_mark, base_query = target.decode("utf-8", "surrogateescape").partition("?")
    if not path and not has_authority:
        path = base
        if not mark:
            mark, query = base_mark, base_query
    elif not path.startswith("/"):
        path = "/" + path if has_authority else base[: base.rfind("/") + 1] + path
    return (without_dots(path) + (mark + query if query else "")).encode("utf-8", "surrogateescape")


def has_data(event: Event) -> bool:
    """Whether a block is an event: clients drop it without a `data` field (WHATWG HTML, 9.2.6)."""
    return bool(event.data) or _DATA_LINE.search(event.raw) is not None
