"""Answers of our own: what a client is told of a failure, as a response or as events inside a
stream.

Both look as the route's dialect has its own errors look, so that the official SDKs raise their own
exceptions for them. Nothing here names an upstream's address, a header or a body: that is for the
log.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import trio

from interceptors import EventTooLarge, HookError, Outcome, StreamAborted
from interceptors.dialects.answers import is_responses
from interceptors.refusals import error_json, only_id
from interceptors.sse import Fields, encode_event
from pools import encode_json

from ..downstream import Send, in_time
from ..errors import ProxyDefect, RequestRefused, SendStalled, UpstreamFailure
from .cors import Cors
from .request_body import RequestBody

__all__ = ["error_body", "error_events", "refusal_of", "send_answer"]


def refusal_of(failure: Exception | None, outcome: Outcome) -> RequestRefused:
    """What to tell the client of an exchange that failed."""
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


def error_body(
    refusal: RequestRefused, dialect: str, open_calls: Sequence[float | str] = ()
) -> bytes:
    """The failure as the JSON body of a response. `open_calls`: the ids of the JSON-RPC requests
    that it answers.
    """
    return encode_json(_body(refusal, dialect, only_id(open_calls))) + b"\n"


def error_events(
    refusal: RequestRefused, dialect: str, path: str = "", open_calls: Sequence[float | str] = ()
) -> tuple[bytes, ...]:
    """The failure as events, to be sent between two others. `path`: the client's, in normal form.

    openai: an event without a name, whose data has `error`; where the path is that of the Responses
    API, its own `error` event, which holds the same. anthropic: its `error` event. mcp: a JSON-RPC
    error response for each open request; none where there is none. generic: `error`.
    """
    if dialect == "mcp":
        return tuple(_event("message", _body(refusal, dialect, ident)) for ident in open_calls)
    body = _body(refusal, dialect)
    if dialect != "openai":
        return (_event("error", body),)
    if not is_responses(path):
        return (_event(None, body),)
    # That API's events are numbered; how many there were is not known here. Its SDK raises for what
    # holds `error`.
    own = {
        "type": "error",
        "code": refusal.kind,
        "message": refusal.message,
        "param": None,
        "sequence_number": 0,
    }
    return (_event("error", own | body),)


def _event(name: str | None, body: dict[str, Any]) -> bytes:
    return encode_event(Fields(name, encode_json(body).decode(), None, None))


def _body(
    refusal: RequestRefused, dialect: str, ident: float | str | None = None
) -> dict[str, Any]:
    return error_json(dialect, refusal.status, refusal.kind, refusal.message, ident)


async def send_answer(
    refusal: RequestRefused,
    body: bytes,
    inbound: RequestBody,
    send: Send,
    *,
    close: bool,
    send_s: float | None,
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
