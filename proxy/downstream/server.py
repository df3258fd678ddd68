"""The one substitution in Hypercorn: what serves a client's connection.

Hypercorn's Trio worker accepts connections and calls `TCPServer(app, config, context, state,
stream)` for each. `contain_connections` puts `serve_connection` there, for `weirpool serve` and for
plain Hypercorn alike. Without a hub, Hypercorn's own class serves the app over ASGI.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

import hypercorn.trio.run as hypercorn_run
import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer

from ..hub import Hub, current_hub
from .bound import client_connections, watch_accept
from .http1 import Http1Connection
from .http2 import Http2Connection
from .to_asgi import OwnStream, answer_fault, scope_of, serve_asgi
from .transport import TlsTransport, Transport

__all__ = [
    "ServerConfig",
    "announce_end",
    "contain_connections",
    "cut_connections",
    "end_idle_connections",
    "serves_connections",
]


_AT_ONCE = 64


class ServerConfig(Config):
    """Hypercorn's configuration, for a server that drains."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[socket.socket] = []
        """Duplicates of the listening sockets, if their connections may be accepted here, too."""
        self.draining = False
        """The server ends soon, and accepts no new connections."""
        self.drained = trio.Event()
        """Idle connections stay open until this is set, so that a request on one is answered during
        the drain.
        """

    def accept_more(self) -> Iterator[socket.socket]:
        """Accept the connections that wait, a bounded number of them. Never blocks. Trio accepts
        one a pass of its loop, which costs three times as much.
        """
        for listener in self.listeners:
            for taken in range(1, _AT_ONCE):
                try:
                    sock, _ = listener.accept()
                except OSError:  # none waits, or no descriptor is free: Trio handles that
                    break
                with suppress(OSError):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                yield sock
                if not client_connections.has_room(sock.fileno(), taken + 1):
                    return

    def close_listeners(self) -> None:
        """Accept no more connections here. Safe to call again."""
        while self.listeners:
            self.listeners.pop().close()


class Cuttable(Protocol):
    """An open connection."""

    def announce_end(self) -> None:
        """Ask the client for no more requests, if the protocol can and no request is served."""

    def end_if_idle(self) -> None:
        """Close the connection if no request is served."""

    def cut(self) -> None:
        """Reset the connection, whatever it waits for. Synchronous."""


class _Server:
    """What a connection asks of its server."""

    def __init__(self, config: Any, context: Any, ssl_context: Any, serve: Any) -> None:
        self.config = config
        self.ssl_context: ssl.SSLContext | None = ssl_context
        self.serve = serve
        self.keep_alive_s: float = config.keep_alive_timeout
        self.max_streams: int = config.h2_max_concurrent_streams
        self._context = context
        self.counts = context.max_requests is not None
        """Whether Hypercorn wants to know of each request."""
        self._ended: Any = (
            config.drained if isinstance(config, ServerConfig) else context.terminated
        )

    async def count_request(self) -> None:
        """For Hypercorn's `max_requests`."""
        if self.counts:
            await self._context.mark_request()

    @property
    def drains(self) -> bool:
        return self.ends or getattr(self.config, "draining", False)

    @property
    def ends(self) -> bool:
        return bool(self._ended.is_set())


async def serve_connection(app: Any, config: Any, context: Any, state: Any, stream: Any) -> None:
    """Serve one connection to its end, in place of `TCPServer`. Raises only what cancels it.

    Takes the socket from Trio, and accepts the next waiting ones in the same nursery.
    """
    hub = current_hub()
    if hub is None:
        await TCPServer(app, config, context, state, stream)
        return
    tls = isinstance(stream, trio.SSLStream)
    accepted: Any = stream.transport_stream if tls else stream
    inner = getattr(app, "app", app)  # Hypercorn wraps the app
    _watch_server(inner, config, context)
    ssl_context: Any = stream.context if tls else None
    # Trio's unused handshake references its stream: without it both are freed now, with OpenSSL's
    # state, and not by the collector, which runs rarely.
    vars(stream).pop("_handshook", None)
    server = _Server(config, context, ssl_context, _how_to_serve(inner, config, state))
    sock = socket.socket(fileno=accepted.socket.detach())
    nursery = trio.lowlevel.current_task().parent_nursery
    if isinstance(config, ServerConfig) and nursery is not None:
        for other in config.accept_more():
            nursery.start_soon(_serve_socket, other, hub, server)
    await _serve_socket(sock, hub, server)


async def _serve_socket(sock: socket.socket, hub: Hub, server: _Server) -> None:
    """Serve HTTP/1.1, or HTTP/2 where TLS has agreed on it (RFC 9113, section 3.2) or the client
    begins with it (section 3.3).
    """
    sock.setblocking(False)
    try:
        name = sock.getpeername()
    except OSError:  # the client has left already
        sock.close()
        return
    transport = await _open(sock, hub, server)
    if transport is None:
        return
    peer = name[0] if isinstance(name, tuple) else None  # of a Unix socket
    began = trio.current_time()
    early: bytes | None = b""
    try:
        if not transport.speaks_http2:
            first = Http1Connection(transport, hub, peer, server)
            with _registered(first, server.config):
                early = await first.run(server.serve)
        if early is not None:
            second = Http2Connection(transport, hub, peer, server, began)
            with _registered(second, server.config):
                await second.run(server.serve, early)
    except* Exception as error:
        structlog.get_logger("proxy").error("internal_error", exc_info=error)


async def _open(sock: socket.socket, hub: Hub, server: _Server) -> Transport | None:
    """Do a TLS handshake where Hypercorn expects one. None: the client has left, or the handshake
    has failed.
    """
    if server.ssl_context is None:
        return Transport(sock, hub)
    try:
        transport = TlsTransport(sock, hub, server.ssl_context)
    except OSError:
        sock.close()
        return None
    handshake, done = _Handshake(transport), False
    client_connections.enter(handshake)
    try:
        with _registered(handshake, server.config):
            done = await transport.shake_hands(server.config.ssl_handshake_timeout)
    finally:
        client_connections.leave(handshake)
        if not done:
            transport.close()
    return transport if done else None


class _Handshake:
    """A connection before its first request: idle, and bounded like any other."""

    def __init__(self, transport: TlsTransport) -> None:
        self.fileno = transport.fileno
        self.announce_end = lambda: None
        self.end_if_idle = self.close_idle = transport.close
        self.cut = transport.reset


@contextmanager
def _registered(connection: Cuttable, config: Any) -> Iterator[None]:
    """Let the server end this connection while it runs."""
    _connections[connection] = config
    try:
        yield
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
    if getattr(hypercorn_run, "TCPServer", None) is TCPServer:
        vars(hypercorn_run)["TCPServer"] = serve_connection
        watch_accept()


def serves_connections() -> bool:
    """Whether `contain_connections` has found a known Hypercorn, and clients' connections are the
    proxy's own.
    """
    return getattr(hypercorn_run, "TCPServer", None) is serve_connection and Hub.available()


_connections: dict[Cuttable, Any] = {}
_watched: WeakSet[Any] = WeakSet()


def announce_end(config: ServerConfig) -> None:
    """The server with `config` drains: tell its clients, as far as that ends no stream."""
    config.draining = True
    config.close_listeners()
    for connection, own in tuple(_connections.items()):
        if own is config:
            connection.announce_end()


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
    return len(found)
