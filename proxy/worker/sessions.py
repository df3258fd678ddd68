"""The sessions of a worker, which outlive a reload: the endpoint of each session, the open streams
of MCP's old transport, and which response answers which request.

The worker owns it, not a generation: the balancers and interceptors of every generation use it,
those of an old one until their last exchange ends.
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
        """The endpoints of the sessions of an upstream."""
        return self._ties.setdefault(upstream, Affinity())

    def book_of(self, upstream: str) -> SessionBook:
        """The sessions of an upstream for MCP interceptors."""
        return self.mcp.of(upstream)
