"""The sessions of a worker, which outlive a reload: the endpoint of each session, the open streams
of MCP's old transport, and which response answers which request.

The worker owns it, not a generation: the balancers and interceptors of every generation use it,
those of an old one until their last exchange ends.
"""

from __future__ import annotations

from interceptors.dialects.mcp_sessions import McpSessions, SessionBook

from ..config import Config, Upstream
from ..upstream import Endpoints, UpstreamSessions
from ..upstream.affinity import Affinity
from ..upstream.session_ids import SessionIds
from .secret import secret_of, signs_ids

__all__ = ["Sessions"]


class Sessions:
    """One per worker."""

    def __init__(self, workers: int = 1) -> None:
        """`workers`: processes that share the clients."""
        self.mcp = McpSessions()
        self._workers = workers
        self._ties: dict[str, Affinity] = {}

    def of(self, config: Config, upstream: Upstream, endpoints: Endpoints) -> UpstreamSessions:
        """The sessions of an upstream for the balancer of a configuration. Raises `ConfigError`."""
        secret = secret_of(config)
        signs = signs_ids(upstream, secret, self._workers)
        return UpstreamSessions(
            upstream.name,
            endpoints,
            self._ties.setdefault(upstream.name, Affinity()),
            SessionIds(secret.key, upstream.name, endpoints.all, signs=signs),
        )

    def book_of(self, upstream: str) -> SessionBook:
        """The sessions of an upstream for MCP interceptors."""
        return self.mcp.of(upstream)
