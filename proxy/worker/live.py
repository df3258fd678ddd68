"""What a worker knows of an exchange under way: enough to count, list and stop it.

The exchange implements this; the worker, its generations and its metrics never import it.
"""

from __future__ import annotations

from typing import Any, Protocol

from interceptors.chain import EventCounts

__all__ = ["LiveExchange"]


class LiveExchange(Protocol):
    """One exchange between `Worker.enter` and `Worker.leave`."""

    @property
    def route_name(self) -> str:
        """The route's label in logs and metrics."""
        ...

    @property
    def is_counted(self) -> bool:
        """Whether it counts against the limits of streams; a refused one does not."""
        ...

    @property
    def client_place(self) -> tuple[str, str] | None:
        """Where the client's streams are counted; None where they are not limited."""
        ...

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

    def describe(self) -> dict[str, Any]:
        """The exchange in `/status`: route, client, phase, age, bytes and events."""
        ...
