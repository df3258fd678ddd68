"""The memory for request bodies that interceptors see: one budget for a whole worker.

The budget counts bytes that have arrived, not bytes that a client has announced.
"""

from __future__ import annotations

from ..errors import RequestRefused

__all__ = ["BodyBudget", "CollectedBody", "too_large"]


class BodyBudget:
    """The bytes of all collected bodies of one worker."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class CollectedBody:
    """The share of one body in the budget. Call `release` when the body is no longer needed."""

    __slots__ = ("_budget", "_max_bytes", "_size")

    def __init__(self, budget: BodyBudget, max_bytes: int) -> None:
        """`max_bytes` limits all bodies of the worker together."""
        self._budget = budget
        self._max_bytes = max_bytes
        self._size = 0

    def hold(self, count: int) -> None:
        """Count more bytes of the body.

        Raises `RequestRefused`: 413 when the body alone exceeds the limit, 503 when it does not
        fit beside the others.
        """
        if self._size + count > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._budget.held + count > self._max_bytes:
            raise RequestRefused(
                503,
                "too_many_bodies",
                "this server is at its limit of request bodies",
                retry_after_s=1,
            )
        self._budget.held += count
        self._size += count

    def release(self) -> None:
        """Return the share. Safe to call again."""
        self._budget.held -= self._size
        self._size = 0


def too_large(max_bytes: int) -> RequestRefused:
    """The refusal (413) of a request body above a limit."""
    return RequestRefused(
        413, "request_too_large", f"the request body is larger than {max_bytes} bytes"
    )
