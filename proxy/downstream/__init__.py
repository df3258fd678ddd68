"""The client's side: two writers with one interface, and the choice between them."""

from __future__ import annotations

from .asgi import AsgiWriter
from .direct import DirectWriter
from .hypercorn import (
    RAW_TARGET,
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
from .writer import Message, Receive, Scope, Send, Writer, has_no_body

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
    "has_no_body",
    "inspect_server",
    "path_is_known",
    "raw_target",
    "share_log",
]

WRITERS = ("asgi", "direct")


def raw_target(scope: Scope) -> bytes:
    """Return the request's target as received. Without Weirpool's extension a `?` before an empty
    query is lost.
    """
    target: bytes | None = scope["extensions"].get(RAW_TARGET) if scope.get("extensions") else None
    if target is None:
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + b"?" + query if query else scope["raw_path"]
    return target


def choose_writer(
    http_version: str, send: Send, connection: ClientConnection | None, *, chunked: bool
) -> Writer:
    """Choose the direct writer where possible, else the portable one. `chunked`: the body has
    unknown length.
    """
    if (
        connection is None
        or connection.tls
        or connection.http2
        or not chunked
        or http_version != "1.1"
    ):
        return AsgiWriter(send, connection)
    return DirectWriter(send, connection)
