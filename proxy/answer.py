"""Answers of our own: what a client is told of a failure, as a response or as an event inside a stream.

Nothing here names an upstream's address, a header or a body: that is for the log.
"""

from __future__ import annotations

import trio

from interceptors import EventTooLarge, HookError, Outcome, StreamAborted
from interceptors.sse import Fields, encode_event
from pools import encode_json

from .downstream import Send
from .errors import RequestRefused, UpstreamFailure
from .inbound import Inbound

__all__ = ["error_event", "refusal_of", "send_answer"]


def refusal_of(failure: Exception | None, outcome: Outcome) -> RequestRefused:
    """What to tell the client of an exchange that failed."""
    if isinstance(failure, RequestRefused):
        return failure
    if isinstance(failure, UpstreamFailure):
        return RequestRefused(failure.status, failure.kind, failure.public, failure.retry_after_s)
    if isinstance(failure, HookError):
        return RequestRefused(502, "interceptor_failed", f"the interceptor {failure.interceptor!r} failed")
    if isinstance(failure, StreamAborted):
        return RequestRefused(502, "aborted", failure.reason)
    if isinstance(failure, EventTooLarge):
        return RequestRefused(502, "event_too_large", str(failure))
    if outcome is Outcome.DRAINING:
        return RequestRefused(503, "draining", "this server is shutting down", retry_after_s=1)
    return RequestRefused(504, "total_timeout", "the exchange took longer than it may")


def error_event(refusal: RequestRefused) -> bytes:
    """The failure as an event of the generic dialect."""
    return encode_event(Fields("error", _body(refusal).decode(), None, None))


async def send_answer(refusal: RequestRefused, inbound: Inbound, send: Send, *, close: bool) -> bool:
    """Answer such that a client that is still sending can read it; `close` says so to it, where HTTP/1.1 can.

    False when the client sends on and on, or has gone: the connection should then be cut.
    """
    body = _body(refusal) + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
    if close:
        headers.append((b"connection", b"close"))
    try:
        await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if not await inbound.discard():
            return False
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        return False
    return True


def _body(refusal: RequestRefused) -> bytes:
    return encode_json({"error": {"type": refusal.kind, "message": refusal.message}})
