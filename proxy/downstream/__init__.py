"""The client's side: two writers with one interface, and the choice between them."""

from __future__ import annotations

from .asgi import raw_target
from .direct import choose_writer
from .hypercorn import (
    ClientConnection,
    Messages,
    ServerConfig,
    client_connections,
    connections_by_open_files,
    contain_connections,
    cut_connections,
    inspect_server,
    path_is_known,
    share_log,
)
from .writer import Message, Receive, Scope, Send, Writer

__all__ = [
    "WRITERS",
    "ClientConnection",
    "Message",
    "Messages",
    "Receive",
    "Scope",
    "Send",
    "ServerConfig",
    "Writer",
    "choose_writer",
    "client_connections",
    "connections_by_open_files",
    "contain_connections",
    "cut_connections",
    "inspect_server",
    "path_is_known",
    "raw_target",
    "share_log",
]

WRITERS = ("asgi", "direct")
