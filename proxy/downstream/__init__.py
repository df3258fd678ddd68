"""The client's side: what the exchange needs of a server (`port`), and who implements it.

- `http1`, with `http1_stream`: HTTP/1.1 connections without TLS, which the proxy reads and writes
  itself;
- `http2`: the same for HTTP/2 with prior knowledge;
- `asgi`, with `asgi_writers`: any ASGI server, and Hypercorn's own classes for TLS;
- `server`: the one substitution in Hypercorn, which gives each connection to one of them;
- `to_asgi`: the other direction, for pages and for apps around the proxy;
- `bound`: the limit of open connections; `sockets`: how a connection ends.

It knows no route and no exchange.
"""

from __future__ import annotations

from .asgi import AsgiStream, raw_target
from .bound import client_connections, connections_by_open_files
from .hypercorn import ServerConfig, path_is_known, share_log
from .port import ClientStream, Message, Receive, Scope, Send, Writer
from .server import contain_connections, cut_connections, end_idle_connections
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
    "client_connections",
    "connections_by_open_files",
    "contain_connections",
    "cut_connections",
    "end_idle_connections",
    "path_is_known",
    "raw_target",
    "scope_of",
    "serve_asgi",
    "share_log",
    "stream_of",
]

WRITERS = ("asgi", "direct")
