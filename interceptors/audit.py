"""`audit`: a JSON line for each request, response head, event and end of a stream.

    interceptors:
      - name: audit
        use: audit
        options: {path: /var/log/weirpool/audit.jsonl, events: meta}

Hooks only queue lines (`toolkit.jsonl`). Credentials are never written, queries only with `query`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from secrets import token_hex
from typing import Annotated, Any, Literal

import msgspec

from interceptors import (
    Event,
    EventResult,
    Headers,
    Interceptor,
    Outcome,
    Request,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)

from .errors import refuse_options
from .toolkit.jsonl import LineWriter, RotatingFile, encode_line

__all__ = ["CREDENTIALS", "Audit", "AuditOptions"]

CREDENTIALS = frozenset(
    {
        "api-key",
        "authorization",
        "cookie",
        "proxy-authorization",
        "set-cookie",
        "x-amz-security-token",
        "x-api-key",
        "x-auth-token",
        "x-goog-api-key",
    }
)
"""Headers that are never written."""

_ID = "exchange_id"  # in a request's state, also for other interceptors


class AuditOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to write, and where."""

    path: Annotated[str, msgspec.Meta(min_length=1)]
    """The file. `{pid}` is replaced by the worker's process id."""
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 20
    """The file is rotated before it would be larger."""
    keep: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Number of rotated files to keep."""
    requests: bool = True
    """Write a line for each request and response head."""
    events: Literal["none", "meta", "data"] = "meta"
    """Lines for events: none; type, id and size; or also the data."""
    headers: tuple[str, ...] = ("content-type", "user-agent")
    """Headers of requests and responses to write."""
    body: bool = False
    """Write the request body as text. The body is then collected before the upstream call."""
    query: bool = False
    """Write the query, with its values."""


class Audit(Interceptor):
    """Writes down what passes it. It never changes anything, and what fails in it stops nothing."""

    on_error = "skip"
    sets_state = ()
    wants_json = True  # for `on_end` of such an exchange; the body is not collected

    def __init__(self, options: AuditOptions) -> None:
        """Raises `ValueError` for a header with credentials."""
        refuse_options(
            [
                f"headers[{index}]: {name!r} holds credentials, which are never written"
                for index, name in enumerate(options.headers)
                if name.lower() in CREDENTIALS
            ]
        )
        self.options = options
        self.wants_body = options.body
        self._headers = tuple(name.lower() for name in options.headers)
        self._writer = LineWriter(
            RotatingFile(options.path, max_bytes=options.max_bytes, keep=options.keep)
        )

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        return self._writer.opened()

    async def on_request(self, request: Request) -> None:
        if not self.options.requests:
            return
        details: dict[str, Any] = {"headers": self._chosen(request.headers)}
        if self.options.query:
            details["query"] = request.query.decode("latin-1")
        if self.options.body:
            details["body"] = request.body.decode("utf-8", "replace")
        self.write("request", request, **_about(request), **details)

    async def on_response(self, head: ResponseHead) -> None:
        if self.options.requests:
            self.write(
                "response", head.request, status=head.status, headers=self._chosen(head.headers)
            )

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _AuditStream(self, context)

    def write(self, event: str, request: Request, **details: Any) -> None:
        """Queue one line. Never blocks."""
        exchange = request.state.get(_ID)
        if exchange is None:
            exchange = request.state[_ID] = token_hex(8)
        ids = {"exchange": exchange, "request_id": request.request_id}
        self._writer.put(encode_line({"time": datetime.now(UTC), "event": event, **ids, **details}))

    def _chosen(self, headers: Headers) -> dict[str, str]:
        return {name: headers[name] for name in self._headers if name in headers}


class _AuditStream(StreamInterceptor):
    def __init__(self, audit: Audit, context: StreamContext) -> None:
        self._audit = audit
        self._request = context.request
        self._status: int | None = None
        self._with_data = audit.options.events == "data"
        self._events: int | None = 0
        if audit.options.events == "none" or context.is_body:
            self.needs = ()  # no event is parsed, no JSON body collected
            self._events = None

    def on_start(self, head: ResponseHead) -> None:
        self._status = head.status

    def on_event(self, event: Event) -> EventResult:
        if event.is_body:
            self._events = None
            return event
        assert self._events is not None
        self._events += 1
        details = {"data": event.data} if self._with_data else {}
        self._audit.write(
            "stream_event",
            self._request,
            type=event.event,
            id=event.id,
            bytes=len(event.raw),
            **details,
        )
        return event

    def on_end(self, outcome: Outcome) -> None:
        # Repeats the facts of the request, so that this line is enough by itself.
        self._audit.write(
            "end",
            self._request,
            **_about(self._request),
            status=self._status,
            events=self._events,
            outcome=outcome,
        )


def _about(request: Request) -> dict[str, Any]:
    return {
        "route": request.route,
        "client": request.client_name,
        "method": request.method,
        "path": request.path,
    }
