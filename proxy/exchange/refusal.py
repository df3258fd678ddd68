"""The status, type and message of the proxy's answer to a failed exchange.

The route's `Dialect` makes the body. An answer contains no address, header or body of an upstream:
these are only logged.
"""

from __future__ import annotations

from interceptors import EventTooLarge, HookError, Outcome, StreamAborted

from ..errors import ProxyDefect, RequestRefused, UpstreamFailure

__all__ = ["refusal_of"]


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
    return RequestRefused(504, "total_timeout", "the exchange exceeded its time limit")
