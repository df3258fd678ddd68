"""Everything that depends on Hypercorn's private parts; each use checks them.

`client` finds a client's connection from ASGI's `send`. `connection` replaces Hypercorn's
connection; `idle` (time between requests), `strict` (reading of heads), `requests`, `late` (data
for answered streams) and `apps` (calling the app) are parts of it.
`tests/integration/test_hypercorn.py` fails for an unknown Hypercorn.
"""

from __future__ import annotations

from .apps import RAW_TARGET, Messages
from .client import ClientConnection, inspect_server, path_is_known
from .connection import Connection, ServerConfig, contain_parts
from .server_log import share_log

__all__ = [
    "RAW_TARGET",
    "ClientConnection",
    "Connection",
    "Messages",
    "ServerConfig",
    "contain_parts",
    "inspect_server",
    "path_is_known",
    "share_log",
]
