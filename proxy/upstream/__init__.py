"""Upstream, the server's side: endpoints, retries and sessions, on an httpx transport on pooled
buffers, with its connections.
"""

from .balancer import Balancer, Checks
from .connections import PoolState
from .endpoints import Endpoint, Endpoints, EndpointState
from .resolver import Resolver
from .response import UpstreamBody
from .retry import RetryPolicy
from .roundtrip import OnInterim
from .transport import UpstreamTransport

__all__ = [
    "Balancer",
    "Checks",
    "Endpoint",
    "EndpointState",
    "Endpoints",
    "OnInterim",
    "PoolState",
    "Resolver",
    "RetryPolicy",
    "UpstreamBody",
    "UpstreamTransport",
]
