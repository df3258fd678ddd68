"""The client's side: what the exchange needs of a server (`port`), and what implements it.

- `http1`, with `http1_stream`: HTTP/1.1, and `http2`: HTTP/2, both over a `transport`, which is a
  socket with or without TLS;
- `asgi`: any ASGI server;
- `server`: the one substitution in Hypercorn, which serves each connection by one of them;
- `to_asgi`: the other direction, for pages and for apps around the proxy;
- `bound`: the limit of open connections; `sockets`: how a connection ends; `server_log`:
  Hypercorn's log.

It knows no route and no exchange.
"""

from __future__ import annotations

from .asgi import AsgiStream, raw_target
from .bound import client_connections, connections_by_open_files
from .port import ClientStream, Message, Receive, Scope, Send, Writer
from .server import (
    ServerConfig,
    announce_end,
    contain_connections,
    cut_connections,
    end_idle_connections,
    serves_connections,
)
from .server_log import share_log
from .sockets import limit_unacknowledged
from .to_asgi import OwnStream, scope_of, serve_asgi, stream_of

__all__ = [
    "WRITERS",
    "AsgiStream",
    "ClientStream",
    "Message",
    "OwnStream",
    "Receive",
    "Scope",
    "Send",
    "ServerConfig",
    "Writer",
    "announce_end",
    "client_connections",
    "connections_by_open_files",
    "contain_connections",
    "cut_connections",
    "end_idle_connections",
    "limit_unacknowledged",
    "raw_target",
    "scope_of",
    "serve_asgi",
    "serves_connections",
    "share_log",
    "stream_of",
]

WRITERS = ("asgi", "direct")
