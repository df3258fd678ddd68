"""What a worker knows of an exchange under way: enough to count, list and stop it.

The exchange implements this; the worker, its generations and its metrics never import it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from interceptors.chain import EventCounts

from ..inspector import Inspected

__all__ = ["LiveExchange", "describe_live"]

MOST_LISTED = 1000


class LiveExchange(Inspected, Protocol):
    """One exchange between `Worker.enter` and `Worker.leave`."""

    number: int
    """Unique in its worker; `Worker.enter` sets it."""
    route_name: str
    """The route's label in logs and metrics."""
    is_counted: bool
    """It counts against the limits of streams; a refused one does not."""
    client_place: tuple[str, str] | None
    """Where the client's streams are counted; None where they are not limited."""

    @property
    def counts(self) -> EventCounts | None:
        """Events by what happened to them; None when no interceptor sees events."""
        ...

    @property
    def bytes_downstream(self) -> int:
        """Body bytes handed to the client's connection."""
        ...

    @property
    def bytes_upstream(self) -> int:
        """Body bytes taken from the client."""
        ...

    def stop(self) -> None:
        """End the exchange because the worker drains. Synchronous."""
        ...


def describe_live(exchanges: Collection[LiveExchange]) -> dict[str, Any]:
    """The exchanges in `/status`: how many there are, and the oldest 1,000, oldest first."""
    oldest = sorted(exchanges, key=lambda item: item.started_at)[:MOST_LISTED]
    return {"total": len(exchanges), "oldest": [item.describe() for item in oldest]}
