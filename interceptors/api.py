"""What an author of interceptors writes: `Interceptor`, one per process, and `StreamInterceptor`, one per stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import structlog

from .event import Event

__all__ = ["EventResult", "Interceptor", "OnError", "Outcome", "ResponseHead", "StreamContext", "StreamInterceptor"]

OnError = Literal["abort", "skip"]

EventResult = Event | Sequence[Event] | None
"""What `on_event` returns: the event (itself, or a replacement), several, or None to drop it."""


class Outcome(StrEnum):
    """How an exchange ended. Each has exactly one, in its log line, its metric and `on_end`."""

    COMPLETED = "completed"
    CLIENT_DISCONNECTED = "client_disconnected"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    SEND_STALLED = "send_stalled"
    INTERCEPTED = "intercepted"
    DRAINING = "draining"


Headers = Sequence[tuple[bytes, bytes]]
"""Names (lower case) and values, in order, duplicates included."""


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of the response, as the client gets it."""

    status: int
    headers: Headers

    def header(self, name: str) -> str | None:
        """The first value of a header; the name in any case."""
        value = find_header(self.headers, name.lower().encode("latin-1"))
        return None if value is None else value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What a stream's interceptors know of its exchange."""

    route: str
    """The route's path prefix."""
    method: str
    path: str
    """The request's raw path, as it arrived, without the query."""
    headers: Headers
    """The request's headers, as the client sent them. Credentials among them: keep them out of logs."""
    client: str | None
    """The client's address."""
    state: dict[str, Any] = field(default_factory=dict)
    """Shared along the chain of this stream."""

    @property
    def log(self) -> Any:
        """A structlog logger that names the route."""
        return structlog.get_logger("interceptors").bind(route=self.route)


class StreamInterceptor:
    """One stream. Override what you need; a hook that is not overridden costs nothing.

    The hooks are synchronous: they run between two reads of the proxy, so they must not block, and nothing can be cancelled
    half way through one.
    """

    def on_start(self, head: ResponseHead) -> None:
        """The stream begins."""

    def on_event(self, event: Event) -> EventResult:
        """One event: return it, a replacement, several, or None to drop it. Comments pass by without a call."""
        return event

    def on_end(self, outcome: Outcome) -> None:
        """The stream is over. Called exactly once for every stream that `open_stream` was called for, however it ended."""


class Interceptor:
    """One per process. Subclass it, and give `__init__` the options that the configuration may set."""

    on_error: OnError = "abort"
    """What an exception in a hook does: `abort` ends the stream with an error, `skip` logs it and lets the event pass."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor | None:
        """An object for one stream, or None to stay out of it. Called when an event stream's head has arrived."""
        return None
