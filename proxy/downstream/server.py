"""The one substitution in Hypercorn: what serves a client's connection.

Hypercorn's Trio worker accepts connections and calls `TCPServer(app, config, context, state,
stream)` for each. `contain_connections` puts `serve_connection` there, for `weirpool serve` and for
plain Hypercorn alike. Connections without TLS are the proxy's own wherever a hub runs, over HTTP/1.1
and, with prior knowledge, over HTTP/2; all others stay Hypercorn's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import hypercorn.trio.run as hypercorn_run
import structlog
import trio
from hypercorn.trio.tcp_server import TCPServer

from ..hub import current_hub
from .http1 import Http1Connection
from .http2 import Http2Connection
from .hypercorn import Connection, ServerConfig, contain_parts
from .to_asgi import OwnStream, answer_fault, scope_of, serve_asgi
from .transport import Transport

__all__ = ["contain_connections", "cut_connections", "end_idle_connections"]


class _Server:
    """What a connection asks of its server."""

    def __init__(self, config: Any, context: Any) -> None:
        self.config = config
        self.keep_alive_s: float = config.keep_alive_timeout
        self.max_streams: int = config.h2_max_concurrent_streams
        self._context = context

    async def count_request(self) -> None:
        """For Hypercorn's `max_requests`."""
        if self._context.max_requests is not None:
            await self._context.mark_request()

    @property
    def ends(self) -> bool:
        if isinstance(self.config, ServerConfig):
            return self.config.drained.is_set()
        return bool(self._context.terminated.is_set())


async def serve_connection(app: Any, config: Any, context: Any, state: Any, stream: Any) -> None:
    """Serve one connection to its end, in place of `TCPServer`. Raises only what cancels it."""
    hub = current_hub()
    if hub is None or type(stream) is not trio.SocketStream or config.read_timeout:
        await Connection(app, config, context, state, stream)
        return
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    transport = Transport(sock, hub)
    try:
        name = transport.sock.getpeername()
    except OSError:  # the client has left already
        transport.close()
        return
    peer = name[0] if isinstance(name, tuple) else None  # of a Unix socket
    inner = getattr(app, "app", app)  # Hypercorn wraps the app
    _watch_server(inner, config, context)
    server, serve = _Server(config, context), _how_to_serve(inner, config, state)
    first = Http1Connection(transport, hub, peer, server)
    early: bytes | None = None
    with _registered(first, config):
        early = await first.run(serve)
    if early is not None:
        second = Http2Connection(transport, hub, peer, server)
        with _registered(second, config):
            await second.run(serve, early)


@contextmanager
def _registered(connection: Http1Connection | Http2Connection, config: Any) -> Iterator[None]:
    """Let the server end this connection while it runs, and log what it raises."""
    _connections[connection] = config
    try:
        yield
    except* Exception as error:
        structlog.get_logger("proxy").error("internal_error", exc_info=error)
    finally:
        del _connections[connection]


def _how_to_serve(app: Any, config: Any, state: Any) -> Any:
    """By our app itself, or by any other through ASGI."""
    return getattr(app, "serve_stream", None) or partial(_serve_asgi, app, config, state)


def _watch_server(app: Any, config: Any, context: Any) -> None:
    """Let idle connections end when plain Hypercorn ends; `weirpool serve` calls
    `end_idle_connections`. The app's nursery owns the task.
    """
    if isinstance(config, ServerConfig) or config in _watched:
        return
    start = getattr(app, "start_soon", None)
    if start is not None:
        _watched.add(config)
        start(_end_with, config, context)


async def _end_with(config: Any, context: Any) -> None:
    await context.terminated.wait()
    end_idle_connections(config)


async def _serve_asgi(app: Any, config: Any, state: Any, stream: OwnStream) -> None:
    fault = stream.head.fault
    if fault is not None:
        await answer_fault(stream, fault)
    else:
        given = {"state": state.copy(), "root_path": config.root_path}
        await serve_asgi(app, stream, {**scope_of(stream), **given})


def contain_connections() -> None:
    """Let Hypercorn's Trio worker use `serve_connection`, if it is a known Hypercorn.
    Process-wide.
    """
    if getattr(hypercorn_run, "TCPServer", None) is TCPServer and contain_parts():
        vars(hypercorn_run)["TCPServer"] = serve_connection


_connections: dict[Http1Connection | Http2Connection, Any] = {}
_watched: WeakSet[Any] = WeakSet()


def end_idle_connections(config: Any) -> None:
    """Close the idle connections of the server with `config`, which has ended."""
    for connection, own in tuple(_connections.items()):
        if own is config:
            connection.end_if_idle()


def cut_connections(config: Any) -> int:
    """Reset the connections of the server with `config`, whatever they wait for. Returns their
    number.
    """
    found = [item for item, own in _connections.items() if own is config]
    for connection in found:
        connection.cut()
    return len(found) + Connection.cut_all(config)
