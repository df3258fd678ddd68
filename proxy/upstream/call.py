"""One request to an upstream and its response, as typed values.

`UpstreamCall` goes in, `UpstreamResponse` comes out. This module owns their fields and nothing
else: `Balancer` chooses the endpoint and retries, `http1` sends and receives.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from ..errors import UpstreamFailure
from .body import UpstreamBody
from .endpoints import Endpoint
from .retry import RetryPolicy

__all__ = [
    "AskForBody",
    "CallTimeouts",
    "Fields",
    "OnInterim",
    "OnRetry",
    "UpstreamCall",
    "UpstreamResponse",
]

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields in their order."""


@dataclass(frozen=True, slots=True)
class CallTimeouts:
    """The deadlines of one attempt, in seconds; infinity for none."""

    connect_s: float = math.inf
    """Free connection, name resolution, TCP and TLS together."""
    write_s: float = math.inf
    """Each wait until the upstream accepts more of the request."""
    first_byte_s: float = math.inf
    """From the end of the request to the end of the response's head."""


class UpstreamCall(msgspec.Struct, eq=False):
    """One request to an upstream."""

    method: str
    target: bytes
    """Path and query; `Balancer` puts the endpoint's own path before it."""
    headers: Fields
    """Sent in this order and case, `Host` included. They announce the length of `body`."""
    body: bytes | AsyncIterable[bytes] = b""
    """Bytes can be sent again, and so can an iterable of which nothing has been taken. A generator
    is closed after an attempt.
    """
    timeouts: CallTimeouts = CallTimeouts()
    retry: RetryPolicy | None = None
    """None: one attempt."""
    session: bytes | None = None
    """A session's key. Without a known one, `Mcp-Session-Id` in `headers` names the session."""
    on_interim: OnInterim | None = None
    """Awaited for each informational response (1xx, except 101) in order; None skips them."""
    ask_for_body: AskForBody | None = None
    """Awaited for a request with `Expect: 100-continue` if the response has not come within
    `http1.CONTINUE_S` after the head; must not fail if the body has been asked for already.
    """
    is_sound: bool = False
    """Method, target and headers are known to be acceptable HTTP, `Host` is the first header, and
    the headers announce the length of `body`, which is bytes.
    """
    nursery: trio.Nursery | None = None
    """Continues the upload after the response's head; without it, an early response ends the
    upload.
    """
    on_retry: OnRetry | None = None
    """Called before each retry. Must not raise."""
    endpoint: Endpoint | None = None
    """The endpoint that was asked last, also when the call fails; None before the first attempt."""


OnInterim = Callable[[UpstreamCall, int, Fields], Awaitable[None]]
"""Receives the call, the status and the header fields of an informational response."""


OnRetry = Callable[[Endpoint, UpstreamFailure], None]
"""Receives the endpoint that failed, and its failure."""


AskForBody = Callable[[], Awaitable[None]]
"""Lets the body come that the source withholds."""


class UpstreamResponse(msgspec.Struct, eq=False):
    """A response whose head has arrived. Its `body` must be closed."""

    status: int
    headers: Fields
    """As received: order, case and duplicates. `Content-Length` occurs once at most."""
    body: UpstreamBody
    endpoint: Endpoint
    """The endpoint that answered."""
    version: bytes
    """`1.0` or `1.1`."""
    reason: bytes
