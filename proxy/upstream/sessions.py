"""The sessions of one upstream: which endpoint a call must go to, and the id that each side knows.

A session is named by `Mcp-Session-Id` (MCP 2025-03-26 and later, "Session Management"), or by the URI
that the old transport announces (`UpstreamCall.session`). Either the client's id names the endpoint
(`session_ids`), or a table of this process does (`affinity`). An id that names its endpoint is read
whatever the mode is, and a session of the table stays there, so that a reload ends neither.

It knows no connection and no retry. Its methods are synchronous.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import trio
from msgspec.structs import replace

from ..errors import SessionGone
from .affinity import Affinity
from .call import Fields, UpstreamCall, UpstreamResponse
from .endpoints import Endpoint, Endpoints
from .session_ids import SessionIds, has_mark, without_mark

__all__ = ["Session", "UpstreamSessions"]

_HEADER = b"mcp-session-id"
_LENGTH = len(_HEADER)


class Session(NamedTuple):
    """The session of a call."""

    key: bytes | None
    """In the table; None if the session's id names the endpoint."""
    endpoint: Endpoint | None
    """That the call must go to; None for any."""
    call: UpstreamCall
    """As the endpoint gets it: with its own id of the session."""
    is_foreign: bool = False
    """The id is not one of this upstream's; the response decides whether that matters."""


class UpstreamSessions:
    """Belongs to the balancer of one configuration."""

    __slots__ = ("_endpoints", "_ids", "_name", "_table")

    def __init__(
        self,
        name: str,
        endpoints: Endpoints,
        table: Affinity | None = None,
        ids: SessionIds | None = None,
    ) -> None:
        """`name`: the upstream's. `table`: shared with other configurations. `ids`: None for the
        table alone.
        """
        self._name = name
        self._endpoints = endpoints
        self._table = Affinity() if table is None else table
        self._ids = SessionIds(b"", name, (), signs=False) if ids is None else ids

    def of(self, call: UpstreamCall, now: float) -> Session:
        """The session of a call. Raises `SessionGone`."""
        uri, header = call.session, _id_in(call.headers)
        if uri is None and header is None:
            return Session(None, None, call)
        session = self._named_by_id(call, uri, header) or self._in_table(call, uri, header, now)
        endpoint = session.endpoint
        if endpoint is not None and self._endpoints.is_gone(endpoint, now):
            raise SessionGone(
                f"{self._name}: the session's endpoint, {endpoint.origin},"
                " is out of service for too long"
            )
        return session

    def note(self, method: str, session: Session, response: UpstreamResponse) -> None:
        """Note a response, whose `body.on_close` is set: it may open the session, renew or end it.
        Puts the client's id into its headers. Raises `SessionGone`; the response is then closed.
        """
        if session.is_foreign and not _may_be_old_transport(response):
            response.body.close()
            raise self._unknown()
        success, key = 200 <= response.status < 300, session.key
        opened = _id_in(response.headers)
        if opened is not None and not self._seal(session, opened, response) and success:
            self.remember(opened, response.endpoint)
        if key is None:
            return
        if response.status == 404 or (method == "DELETE" and success):
            self.forget(key)
        elif success:
            self._table.renew(key, trio.current_time())
            self._table.hold(key)
            response.body.on_close = partial(self._end, response.body.on_close, key)

    def mark(self, uri: bytes, endpoint: Endpoint) -> bytes | None:
        """What to put after `uri`, which ends with `session_ids.PARAMETER`, so that calls whose
        `session` is the result go only to this endpoint; None if the table is used instead.
        """
        return self._ids.mark(uri, endpoint) if self._ids.signs else None

    # The table

    def remember(self, key: bytes, endpoint: Endpoint) -> None:
        """Tie a session to an endpoint: calls whose `session` is `key` go only there."""
        self._table.remember(key, endpoint.place, trio.current_time())

    def find(self, key: bytes) -> Endpoint | None:
        """The endpoint of a session; None if the session is unknown or expired, or its endpoint is
        no longer configured.
        """
        place = self._table.find(key, trio.current_time())
        return None if place is None else self._endpoints.at(place)

    def hold(self, key: bytes) -> None:
        """Note that a stream of the session is open: it does not expire until `release`."""
        self._table.hold(key)

    def release(self, key: bytes) -> None:
        """Note that the stream has ended."""
        self._table.release(key, trio.current_time())

    def forget(self, key: bytes) -> None:
        """End a session."""
        self._table.forget(key)

    # How a call's session is found

    def _named_by_id(
        self, call: UpstreamCall, uri: bytes | None, header: bytes | None
    ) -> Session | None:
        """The session whose id names its endpoint; None for others."""
        if uri is not None and (named := self._ids.open_uri(uri)) is not None:
            return Session(
                None, named, replace(call, target=without_mark(call.target, uri), is_sound=False)
            )
        opened = self._ids.open(header) if header is not None else None
        if opened is None:
            return None
        endpoint, own = opened
        headers = [(name, own if _is_id(name) else value) for name, value in call.headers]
        return Session(None, endpoint, replace(call, headers=headers, is_sound=False))

    def _in_table(
        self, call: UpstreamCall, uri: bytes | None, header: bytes | None, now: float
    ) -> Session:
        """The session in the table, or one without an endpoint. Raises `SessionGone`."""
        for key in (uri, header):
            place = None if key is None else self._table.find(key, now)
            if place is not None:
                endpoint = self._endpoints.at(place)
                if endpoint is None:
                    raise SessionGone(
                        f"{self._name}: the session's endpoint is no longer configured"
                    )
                return Session(key, endpoint, call)
        if self._ids.signs and (header or (uri is not None and has_mark(uri))):
            return self._foreign(call, header)
        return Session(header, None, call)

    def _foreign(self, call: UpstreamCall, header: bytes | None) -> Session:
        """A session that this upstream has not made. Raises `SessionGone`, except for a GET with an
        id that no proxy has made: clients of the old transport (MCP 2024-11-05), which has no such
        header, may be configured to send one.
        """
        if call.method != "GET" or header is None or self._ids.has_form(header):
            raise self._unknown()
        headers = [item for item in call.headers if not _is_id(item[0])]
        return Session(None, None, replace(call, headers=headers, is_sound=False), is_foreign=True)

    def _unknown(self) -> SessionGone:
        return SessionGone(f"{self._name}: this upstream has no such session")

    # What came of it

    def _seal(self, session: Session, opened: bytes, response: UpstreamResponse) -> bool:
        """Replace the server's id in a response by one that names the endpoint. False where the
        table is used.
        """
        # A session keeps the kind of id that its client has.
        signs = self._ids.signs if session.endpoint is None else session.key is None
        sealed = self._ids.seal(opened, response.endpoint) if signs else None
        if sealed is None:
            return False
        response.headers = [
            (name, sealed if _is_id(name) else value) for name, value in response.headers
        ]
        return True

    def _end(self, on_close: Callable[[], None] | None, key: bytes) -> None:
        if on_close is not None:
            on_close()
        self.release(key)


def _id_in(headers: Fields) -> bytes | None:
    for name, value in headers:
        if len(name) == _LENGTH and name.lower() == _HEADER:
            return value
    return None


def _is_id(name: bytes) -> bool:
    return len(name) == _LENGTH and name.lower() == _HEADER


def _may_be_old_transport(response: UpstreamResponse) -> bool:
    """Whether a response can be the stream of a session of the old transport."""
    headers = {name.lower(): value for name, value in response.headers}
    kind = headers.get(b"content-type", b"").lower()
    return kind.startswith(b"text/event-stream") and _HEADER not in headers
