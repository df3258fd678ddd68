"""What we know of Hypercorn's insides, all in one place, and checked where it is used.

`client` finds the connection of a client behind ASGI's `send`; `connection` is Hypercorn's, but for
what we do otherwise, and `idle`, `strict`, `requests`, `late` and `apps` are parts of that: the
time between requests, the reading of heads, the requests themselves, what comes for streams that
are over, the calling of the app. `tests/integration/test_hypercorn.py` fails when an installed
Hypercorn is another than the one that we know.
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
