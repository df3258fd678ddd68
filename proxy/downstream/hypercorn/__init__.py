"""Everything that depends on Hypercorn's private parts; each use checks them.

`client` finds a client's connection from ASGI's `send`. `connection` replaces Hypercorn's
connection; `idle` (time between requests), `strict` (reading of heads), `requests`, `late` (data
for answered streams) and `apps` (calling the app) are parts of it. `bound` limits the open
connections. `tests/integration/test_hypercorn.py` fails for an unknown Hypercorn.
"""

from __future__ import annotations

from .apps import RAW_TARGET, Messages
from .bound import client_connections, connections_by_open_files
from .client import ClientConnection, inspect_server, path_is_known
from .connection import ServerConfig, contain_connections, cut_connections
from .server_log import share_log

__all__ = [
    "RAW_TARGET",
    "ClientConnection",
    "Messages",
    "ServerConfig",
    "client_connections",
    "connections_by_open_files",
    "contain_connections",
    "cut_connections",
    "inspect_server",
    "path_is_known",
    "share_log",
]
