"""Responses that several admin pages give: plain text, event streams, and the refusal of a request
without the token.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from hmac import compare_digest

from quart import Response, request

__all__ = ["FRESH", "event_stream", "plain_text", "refuse_without"]

FRESH = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",
    # Another site must not observe that `/inspect/stream` ends because it has found a text.
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def plain_text(text: str, status: int = 200, **headers: str) -> Response:
    """A line of text. `headers`: with underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(
        f"{text}\n", status=status, content_type="text/plain; charset=utf-8", headers=named
    )


def event_stream(events: Callable[[], AsyncIterable[bytes]], *, full: bool, most: int) -> Response:
    """A stream of events without a deadline. `full`: `most` clients have one already (503)."""
    if full:
        return plain_text(f"{most} clients watch already: try again later", 503, retry_after="5")
    # HEAD must not start a stream.
    body = b"" if request.method == "HEAD" else events()
    response = Response(body, content_type="text/event-stream", headers=FRESH)
    response.timeout = None
    return response


def refuse_without(token: str | None) -> Response | None:
    """The answer to the current request if it lacks the bearer token (RFC 6750, section 2.1); None
    if it may be served, or `token` is None.
    """
    if token is None:
        return None
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and compare_digest(given.strip().encode(), token.encode()):
        return None
    return plain_text(
        "this page requires the token of admin.token: send it as Authorization: Bearer TOKEN",
        401,
        www_authenticate='Bearer realm="weirpool"',
    )
