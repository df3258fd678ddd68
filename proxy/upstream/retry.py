"""Whether a failed request may be sent again, and the budget for retries. Sans I/O.

A request is sent again if no byte of it was written, or if its method is idempotent (RFC 9110,
section 9.2.2) and its body is in memory or has not begun. Any other request could be carried out
twice, which may cost money, and is never sent again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable

from ..errors import Sent, UpstreamFailure

__all__ = ["INITIAL_RETRIES", "MAX_SAVED_RETRIES", "RetryBudget", "RetryPolicy", "may_resend"]

INITIAL_RETRIES = 10
"""Retries in a new budget, unless its share is 0."""
MAX_SAVED_RETRIES = 100
"""Retries in a budget at most."""

_IDEMPOTENT = frozenset(["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])


class RetryBudget:
    """A token bucket: each request adds `share`, each retry takes 1. Retries never exceed
    `INITIAL_RETRIES` + share * requests.
    """

    __slots__ = ("_share", "_tokens")

    def __init__(self, share: float) -> None:
        """`share`: 0 (never) to 1."""
        self._share = share
        self._tokens = float(INITIAL_RETRIES) if share else 0.0

    def deposit(self) -> None:
        """Add the share of one request."""
        if self._tokens < MAX_SAVED_RETRIES:
            self._tokens = min(self._tokens + self._share, MAX_SAVED_RETRIES)

    def withdraw(self) -> bool:
        """Take one retry; return whether there was one."""
        # Tolerate rounding: ten times 0.1 is less than 1.
        if self._tokens < 1 - 1e-9:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True


class RetryPolicy:
    """A route's retry settings and its budget."""

    __slots__ = ("budget", "max_attempts")

    def __init__(self, max_attempts: int, budget: float) -> None:
        self.max_attempts = max_attempts
        self.budget = RetryBudget(budget)


def may_resend(method: str, body: bytes | AsyncIterable[bytes], failure: UpstreamFailure) -> bool:
    """Whether a request that failed before the response's head can be sent again without any risk
    of carrying it out twice.
    """
    if failure.own_limit:
        return False
    if failure.sent is Sent.NOTHING:
        return True
    return method in _IDEMPOTENT and (isinstance(body, bytes) or failure.sent is Sent.HEAD)
