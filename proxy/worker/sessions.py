"""What a worker knows of sessions and what must outlive a reload: which endpoint holds a session,
the open streams of MCP's old transport, and which response answers which request.

It belongs to the worker, not to a generation: each generation's balancers and interceptors look
things up here and add to it, those of an old one until their last exchange ends.
"""

from __future__ import annotations

from interceptors.dialects.mcp_sessions import McpSessions, SessionBook

from ..upstream.affinity import Affinity

__all__ = ["Sessions"]


class Sessions:
    """One per worker."""

    def __init__(self) -> None:
        self.mcp = McpSessions()
        self._ties: dict[str, Affinity] = {}

    def ties_of(self, upstream: str) -> Affinity:
        """Which endpoints the sessions of an upstream are tied to, by its name."""
        return self._ties.setdefault(upstream, Affinity())

    def book_of(self, upstream: str) -> SessionBook:
        """What MCP interceptors know of the sessions of an upstream."""
        return self.mcp.of(upstream)
