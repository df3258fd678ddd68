"""What one MCP interceptor knows of one HTTP request and its response."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ..message import Request
from .mcp import McpMessage
from .mcp_calls import Call, RequestId
from .mcp_headers import has_mirrors, revision_of
from .mcp_sessions import LiveSession, SessionBook, canonical

__all__ = ["SESSION_ID", "McpExchange", "id_in", "may_be_old", "open_exchange"]

SESSION_ID = "mcp-session-id"


@dataclass
class McpExchange:
    """One HTTP request and its response, for one interceptor."""

    request: Request
    interceptor: str
    """Its name in the configuration."""
    book: SessionBook
    session: str | None
    """Of Streamable HTTP the value of `Mcp-Session-Id`, of the old transport the URI for POSTs."""
    revision: str | None
    old: bool
    """It belongs to a session of the old transport (2024-11-05), whose responses come on another
    stream.
    """
    pending: list[dict[str, Any]]
    """Of a batch whose rest went upstream: the responses that hooks gave, until they are merged.

    All MCP interceptors of the request share it, because another one may answer the rest.
    """
    calls: dict[RequestId, Call] = field(default_factory=dict)
    denied: dict[RequestId, dict[str, Any]] = field(default_factory=dict)
    """Answers to requests that went upstream with a method that no server has."""

    def take_pending(self) -> list[dict[str, Any]]:
        taken = self.pending[:]
        self.pending.clear()
        return taken

    def remember(self, call: Call) -> None:
        """Keep a call for the session, if there is one."""
        if self.session is not None:
            self.book.remember(self.interceptor, self.session, call)

    def find(self, message: McpMessage, *, from_client: bool) -> Call | None:
        """The call of the session that a response answers."""
        if self.session is None or message.id is None:
            return None
        return self.book.find(self.interceptor, self.session, message.id, from_client=from_client)

    def join(self, live: LiveSession) -> None:
        """The stream is that of a session of the old transport."""
        self.session, self.old = live.uri.decode("latin-1"), True

    def describe(self, message: McpMessage) -> None:
        message.session, message.revision, message.http = self.session, self.revision, self.request


def open_exchange(request: Request, name: str, book: SessionBook) -> McpExchange:
    """The exchange of a request, for the interceptor of this name."""
    old = book.owns(request)
    session: str | None = request.headers.get(SESSION_ID)
    if old:
        session = canonical(request.target).decode("latin-1")
    pending = request.state.setdefault("mcp.pending", [])
    return McpExchange(request, name, book, session, revision_of(request.headers), old, pending)


def may_be_old(request: Request) -> bool:
    """Whether a POST may belong to an old-transport session that no process here knows.

    It has no session id and does not accept a stream, which Streamable HTTP demands, but it has a
    query, which may name a session.
    """
    headers = request.headers
    return (
        request.method == "POST"
        and bool(request.query)
        and SESSION_ID not in headers
        and "text/event-stream" not in headers.get("accept", "").lower()
        and not has_mirrors(revision_of(headers))
    )


def id_in(body: bytes) -> RequestId | None:
    """The id of a refused request; None without one, or if readers could choose between several."""
    try:
        members = json.loads(body, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, tuple):
        return None
    ids = [value for name, value in members if name.casefold() == "id"]
    return ids[0] if len(ids) == 1 and (isinstance(ids[0], str) or type(ids[0]) is int) else None
