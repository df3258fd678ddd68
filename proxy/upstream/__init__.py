"""The upstream side: which endpoint a request goes to, and how it gets there.

`Balancer.call` takes an `UpstreamCall` and returns an `UpstreamResponse`. Below it, each module
imports only those that follow:

- `balancer`: endpoints and retries of one upstream; `sessions`: its sessions;
- `http1`: one attempt over HTTP/1.1; `upload` and `body`: its request and response bodies;
- `call`: call and response as values; `endpoints`, `retry`, `affinity`, `session_ids`: sans-I/O
  decisions;
- `connections`, `dial`, `resolver`, `origin`, `failures`: sockets.

`httpx_transport` adapts all of it to an `httpx.AsyncClient`; nothing in the proxy imports that.
"""

from .balancer import Balancer, Checks
from .body import UpstreamBody
from .call import AskForBody, CallTimeouts, Fields, OnInterim, UpstreamCall, UpstreamResponse
from .connections import PoolState
from .endpoints import Endpoint, Endpoints, EndpointState
from .http1 import Http1Transport
from .resolver import Resolver
from .retry import RetryPolicy
from .sessions import UpstreamSessions

__all__ = [
    "AskForBody",
    "Balancer",
    "CallTimeouts",
    "Checks",
    "Endpoint",
    "EndpointState",
    "Endpoints",
    "Fields",
    "Http1Transport",
    "OnInterim",
    "PoolState",
    "Resolver",
    "RetryPolicy",
    "UpstreamBody",
    "UpstreamCall",
    "UpstreamResponse",
    "UpstreamSessions",
]
