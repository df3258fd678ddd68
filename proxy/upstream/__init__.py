"""Upstream, the server's side: an httpx transport on pooled buffers, its connections, and body framing."""

from .connections import PoolState
from .response import UpstreamBody
from .transport import UpstreamTransport

__all__ = ["PoolState", "UpstreamBody", "UpstreamTransport"]
