"""The request bodies that a worker holds for interceptors: one budget for all of them.

It counts what has arrived, not what a client has announced: a client that announces much and sends
nothing takes nothing.
"""

from __future__ import annotations

from ..errors import RequestRefused
from ..exchange.request_body import too_large

__all__ = ["BodyBudget", "CollectedBody"]


class BodyBudget:
    """The bytes that the bodies of one worker hold together."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


class CollectedBody:
    """The share of one body in the budget. `release` it when the body has gone upstream, or the
    exchange is over.
    """

    __slots__ = ("_budget", "_max_bytes", "_size")

    def __init__(self, budget: BodyBudget, max_bytes: int) -> None:
        """`max_bytes`: of all bodies together."""
        self._budget = budget
        self._max_bytes = max_bytes
        self._size = 0

    def hold(self, count: int) -> None:
        """More of the body has arrived.

        Raises `RequestRefused`: 503 when it does not fit beside the others, 413 when it would not
        fit alone.
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
        """Give the share back. Safe to call again."""
        self._budget.held -= self._size
        self._size = 0
