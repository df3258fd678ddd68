"""Error responses of the proxy: what a client learns of a failure, and how the response is sent.

The route's `Dialect` gives the body. A response names no address, header or body of an upstream:
these go to the log only.
"""

from __future__ import annotations

from functools import partial

import trio

from interceptors import EventTooLarge, HookError, Outcome, StreamAborted

from ..downstream import Send, in_time
from ..errors import ProxyDefect, RequestRefused, SendStalled, UpstreamFailure
from .cors import Cors
from .request_body import RequestBody

__all__ = ["refusal_of", "send_answer"]


def refusal_of(failure: Exception | None, outcome: Outcome) -> RequestRefused:
    """The error that the client of a failed exchange gets."""
    if isinstance(failure, RequestRefused):
        return failure
    if isinstance(failure, UpstreamFailure):
        return RequestRefused(failure.status, failure.kind, failure.public, failure.retry_after_s)
    if isinstance(failure, ProxyDefect):
        return RequestRefused(500, "internal_error", "the proxy failed")
    if isinstance(failure, HookError):
        return RequestRefused(
            502, "interceptor_failed", f"the interceptor {failure.interceptor!r} failed"
        )
    if isinstance(failure, StreamAborted):
        return RequestRefused(502, "aborted", failure.reason)
    if isinstance(failure, EventTooLarge):
        return RequestRefused(502, "event_too_large", str(failure))
    if outcome is Outcome.DRAINING:
        return RequestRefused(
            503, "draining", "this server is shutting down", retry_after_s=1, outcome=outcome
        )
    return RequestRefused(504, "total_timeout", "the exchange took longer than it may")


async def send_answer(
    refusal: RequestRefused,
    body: bytes,
    inbound: RequestBody,
    send: Send,
    *,
    close: bool,
    send_s: float,
    cors: Cors | None = None,
) -> bool:
    """Answer with a JSON body, which also a client that is still sending can read. `close`:
    announce the connection's end.

    `send_s` bounds each wait for the client. False when the client sends on and on, takes nothing,
    or has gone: the connection should then be cut.
    """
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    if close:
        headers.append((b"connection", b"close"))
    if cors is not None:
        headers = cors.grant(headers)
    try:
        for message in (
            {"type": "http.response.start", "status": refusal.status, "headers": headers},
            {"type": "http.response.body", "body": body, "more_body": True},
        ):
            await in_time(partial(send, message), send_s)
        if inbound.holds_connection and not await inbound.discard():
            return False
        await in_time(
            partial(send, {"type": "http.response.body", "body": b"", "more_body": False}), send_s
        )
    except (
        SendStalled,
        OSError,
        trio.BrokenResourceError,
        trio.ClosedResourceError,
        trio.BusyResourceError,
    ):
        return False
    return True
