"""When a request that failed may be sent once more: what the method and the failure allow, and what
the budget leaves. Sans I/O.

A request is sent again when no byte of it had left, or when its method is idempotent (RFC 9110,
section 9.2.2) and its body is in memory. Anything else might be done twice, and may cost money: it
never is.
"""

from __future__ import annotations

from collections.abc import AsyncIterable

from ..errors import Sent, UpstreamFailure

__all__ = ["INITIAL_RETRIES", "MAX_SAVED_RETRIES", "RetryBudget", "RetryPolicy", "may_resend"]

INITIAL_RETRIES = 10
"""What a budget holds before any request has come, unless its share is 0."""
MAX_SAVED_RETRIES = 100
"""What it holds at most, however many requests went well."""

_IDEMPOTENT = frozenset(["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])


class RetryBudget:
    """A token bucket: a request puts in `share`, a retry takes 1. So retries never exceed the
    initial 10 + share * requests.
    """

    __slots__ = ("_share", "_tokens")

    def __init__(self, share: float) -> None:
        """`share`: 0 (never) to 1."""
        self._share = share
        self._tokens = float(INITIAL_RETRIES) if share else 0.0

    def deposit(self) -> None:
        """A request has come."""
        self._tokens = min(self._tokens + self._share, MAX_SAVED_RETRIES)

    def withdraw(self) -> bool:
        """Take one retry, if there is one."""
        # Sums of a fraction fall short of the whole number by rounding: ten times 0.1 is less than
        # 1.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True


class RetryPolicy:
    """What a route says about retries, and its budget."""

    __slots__ = ("budget", "max_attempts")

    def __init__(self, max_attempts: int, budget: float) -> None:
        self.max_attempts = max_attempts
        self.budget = RetryBudget(budget)


def may_resend(method: str, body: bytes | AsyncIterable[bytes], failure: UpstreamFailure) -> bool:
    """Whether a request that failed before the response's head can be sent again without any risk
    of carrying it out twice.
    """
    if failure.ours:
        return False
    if failure.sent is Sent.NOTHING:
        return True
    return method in _IDEMPOTENT and isinstance(body, bytes)
