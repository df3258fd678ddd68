"""`audit`: who asked what, and what came: JSON Lines of requests, response heads, events and ends.

    interceptors:
      - name: audit
        use: interceptors.audit:Audit
        options: {path: /var/log/weirpool/audit.jsonl, events: meta}

Credentials are never written: not the headers that hold them, and the query only where it is asked for. See docs/builtins/audit.md.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from .api import EventResult, Interceptor, Outcome, StreamContext, StreamInterceptor
from .errors import LoadError
from .event import Event
from .jsonl import LineWriter, expand_path, now_utc
from .message import Request, Response, ResponseHead
from .needs import Needs

__all__ = ["Audit", "Options"]

_CREDENTIALS = frozenset(
    [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "mcp-session-id",
    ]
)
_STATE = "audit_exchange"


@dataclass(frozen=True)
class Options:
    path: str
    """The file; `{pid}` in it is the worker's process number."""
    max_bytes: int = 64 * 1024 * 1024
    """A file that would grow beyond this is renamed first."""
    keep: int = 5
    """Old files that are kept."""
    events: Literal["none", "meta", "data"] = "meta"
    """Of each event: nothing, its type, id and size, or its data, too."""
    headers: list[str] = field(default_factory=list)
    """Request headers to write; one that holds credentials is refused."""
    query: bool = False
    """Whether to write the query, which may hold credentials."""
    body: bool = False
    """Whether to write the request's body, as text; it is then collected first."""


class Audit(Interceptor):
    """One line for each request, each response's head, each event (`events`) and each stream's end, tied together by `exchange`."""

    def __init__(self, options: Options) -> None:
        if options.max_bytes < 4096 or options.keep < 0:
            raise LoadError("max_bytes is at least 4096, and keep at least 0", "max_bytes" if options.keep >= 0 else "keep")
        for index, name in enumerate(options.headers):
            if name.lower() in _CREDENTIALS:
                raise LoadError(f"{name!r} holds credentials, which are never written", f"headers[{index}]")
        self._options = options
        self._path = expand_path(options.path)
        self._writer = LineWriter(max_bytes=options.max_bytes, keep=options.keep)
        self.wants_body = options.body

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        # Made anew here: with several workers this is after the fork, and each has its own `{pid}`.
        self._path = expand_path(self._options.path)
        async with self._writer.open(self._path):
            yield

    async def on_request(self, request: Request) -> Response | None:
        options = self._options
        exchange = request.state[_STATE] = secrets.token_hex(8)
        line: dict[str, Any] = {
            "route": request.route,
            "client": request.client,
            "client_key": request.state.get("client_key"),
            "method": request.method,
            "path": request.path,
        }
        if options.query:
            line["query"] = request.query.decode("latin-1")
        if options.headers:
            line["headers"] = {name: request.headers[name] for name in options.headers if name in request.headers}
        if options.body:
            line["body"] = request.body.decode("utf-8", "replace")
        self.write("request", exchange, line)
        return None

    async def on_response(self, head: ResponseHead) -> Response | None:
        self.write("response", self.exchange_of(head.request), {"status": head.status, "media_type": head.media_type})
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        stream = _CountingStream if self._options.events == "none" else _EventsStream
        return stream(self, self.exchange_of(context.request), data=self._options.events == "data")

    @staticmethod
    def exchange_of(request: Request) -> str | None:
        """What ties the lines of one exchange together; None when an interceptor before this one failed and was skipped."""
        exchange: str | None = request.state.get(_STATE)
        return exchange

    def write(self, event: str, exchange: str | None, line: dict[str, Any]) -> None:
        self._writer.write(self._path, {"time": now_utc(), "event": event, "exchange": exchange, **line})


class _CountingStream(StreamInterceptor):
    """Sees no event, so that bytes pass unparsed."""

    needs: Needs = ()

    def __init__(self, audit: Audit, exchange: str | None, *, data: bool) -> None:
        self._audit = audit
        self._exchange = exchange
        self._data = data
        self._events: int | None = None

    def on_end(self, outcome: Outcome) -> None:
        self._audit.write("end", self._exchange, {"outcome": outcome.value, "events": self._events})


class _EventsStream(_CountingStream):
    needs: Needs = None

    def on_event(self, event: Event) -> EventResult:
        self._events = (self._events or 0) + 1
        line: dict[str, Any] = {"type": event.event, "id": event.id, "bytes": len(event.raw)}
        if self._data:
            line["data"] = event.data
        self._audit.write("event", self._exchange, line)
        return event
