"""Access to the client's connection from ASGI's `send`.

ASGI gives no access to the client's socket, to resets of HTTP/2 streams, or to the headers that the
server adds. Under Hypercorn's Trio worker all of that can be reached from `send`:

HTTPStream.app_send -> H11Protocol.stream_send (or H2Protocol) -> TCPServer.protocol_send ->
TCPServer.stream

This path is private. `inspect_server` checks the type of every hop and returns None if one differs;
then everything works through plain ASGI.
"""

from __future__ import annotations

import select
import socket
from typing import Any

import h2.exceptions
import h11
import trio
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.tcp_server import TCPServer

from ...keepalive import send_probes
from ..sockets import (
    LAST_BYTES_S,
    let_last_bytes_leave,
    limit_unacknowledged,
    reset_on_close,
)
from .connection import Connection
from .requests import ClientStream, Http1, Http2

__all__ = ["ClientConnection", "inspect_server", "path_is_known"]

_INTERNAL_ERROR = 0x2  # RFC 9113, section 7
_ADDED_HEADERS = {
    (False, False): frozenset[bytes](),
    (False, True): frozenset([b"server"]),
    (True, False): frozenset([b"date"]),
    (True, True): frozenset([b"date", b"server"]),
}
"""By `include_date_header` and `include_server_header`."""
_LOOK_S = 0.05


def path_is_known() -> bool:
    """Whether the installed Hypercorn looks like a known one; each connection is checked too."""
    hops = ((HTTPStream, "app_send"), (H11Protocol, "stream_send"), (TCPServer, "protocol_send"))
    return all(callable(getattr(owner, name, None)) for owner, name in hops)


def inspect_server(send: Any) -> ClientConnection | None:
    """Return the client's connection of an ASGI `send`, or None for an unknown server."""
    stream: Any = getattr(send, "__self__", None)
    if (
        type(stream) not in (HTTPStream, ClientStream)
        or getattr(send, "__func__", None) is not HTTPStream.app_send
    ):
        return None
    stream_send = getattr(stream, "send", None)
    protocol: Any = getattr(stream_send, "__self__", None)
    if type(protocol) not in (H11Protocol, H2Protocol, Http1, Http2):
        return None
    protocol_send = getattr(protocol, "send", None)
    server: Any = getattr(protocol_send, "__self__", None)
    if (
        type(server) not in (TCPServer, Connection)
        or getattr(protocol_send, "__func__", None) is not type(server).protocol_send
    ):
        return None
    transport: Any = server.stream
    tls = type(transport) is trio.SSLStream
    if tls:
        transport = transport.transport_stream
    if type(transport) is not trio.SocketStream:
        return None
    sock = getattr(transport.socket, "_sock", None)
    if type(sock) is not socket.socket:
        return None
    return ClientConnection(stream, protocol, server, transport, sock, tls)


class ClientConnection:
    """The connection of one client under Hypercorn."""

    __slots__ = (
        "_protocol",
        "_server",
        "_stream",
        "_transport",
        "added_headers",
        "http2",
        "sock",
        "tls",
    )

    def __init__(
        self,
        stream: HTTPStream,
        protocol: H11Protocol | H2Protocol,
        server: TCPServer,
        transport: trio.SocketStream,
        sock: socket.socket,
        tls: bool,
    ) -> None:
        self._stream = stream
        self._protocol = protocol
        self._server = server
        self._transport = transport
        self.sock = sock
        """The socket, non-blocking. Hypercorn owns it and may close it at any await."""
        self.tls = tls
        self.http2 = isinstance(protocol, H2Protocol)
        """Otherwise ASGI's `send` cannot be cancelled while the client accepts nothing."""
        config = stream.config
        self.added_headers = _ADDED_HEADERS[
            bool(config.include_date_header), bool(config.include_server_header)
        ]
        """Headers that Hypercorn adds to every response."""

    @property
    def timed_out(self) -> bool:
        """Whether the kernel has given up the client because it accepted nothing."""
        return type(self._server) is Connection and self._server.timed_out

    def limit_send(self, timeout_s: float) -> None:
        """Let the kernel give up a client that accepts nothing for `timeout_s`; infinity: never.
        For sends that cannot be cancelled.

        No effect under HTTP/2, whose streams share the connection: the listening socket's limit
        applies.
        """
        server = self._server
        if type(server) is not Connection or self.http2 or server.send_timeout_s == timeout_s:
            return
        server.send_timeout_s = timeout_s
        limit_unacknowledged(self.sock, timeout_s)
        if server.probes:
            send_probes(self.sock)  # the probes depend on it

    def send_probes(self) -> None:
        """Detect a client that is gone while nothing is sent to it."""
        if type(self._server) is Connection:
            if self._server.probes:
                return
            self._server.probes = True
        send_probes(self.sock)

    async def send_interim(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send an informational response before the head. Omitted if the server refuses to write
        it.
        """
        protocol: Any = self._protocol
        try:
            if self.http2:
                protocol.connection.send_headers(
                    self._stream.stream_id, [(b":status", b"%d" % status), *headers]
                )
                await protocol._flush()
            else:
                await protocol._send_h11_event(
                    h11.InformationalResponse(status_code=status, headers=headers)
                )
        except (AttributeError, h11.LocalProtocolError, h2.exceptions.ProtocolError):
            return

    def hold_head(self, hold: bool) -> None:
        """Whether the next bytes are held until those after them. No effect under HTTP/2."""
        if type(self._server) is Connection:
            self._server.holds_head = hold

    async def wait_hangup(self) -> None:
        """Return when the client has closed or reset its connection, even if unread data remains.

        Waits forever on a platform without epoll, which cannot report it.
        """
        if self.sock.fileno() < 0:
            return
        if not hasattr(select, "epoll"):
            await trio.sleep_forever()
        with select.epoll() as poll:
            poll.register(
                self.sock.fileno(), select.EPOLLRDHUP
            )  # EPOLLHUP and EPOLLERR are always reported
            await trio.lowlevel.wait_readable(poll.fileno())

    async def wait_sent(self) -> bool:
        """Under HTTP/2, wait until some of the data has left, as the client's windows allow.
        Returns True when all has.

        Hypercorn does not limit its buffer when the window is shut.
        """
        if not isinstance(self._protocol, H2Protocol):
            return True
        buffer = self._protocol.stream_buffers.get(self._stream.stream_id)
        if buffer is None:
            return True
        while waiting := len(buffer.buffer):
            with trio.move_on_after(_LOOK_S):
                await buffer.drain()
            if 0 < len(buffer.buffer) < waiting:
                return False
        return True

    async def abort(self) -> None:
        """End the response so that the client sees that it is incomplete: reset the connection or
        the HTTP/2 stream.

        Earlier bytes get a second to leave. Not cancelled by surrounding scopes.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(LAST_BYTES_S):
            if isinstance(self._protocol, H2Protocol):
                if await self._reset_stream(self._protocol):
                    return
            else:
                await let_last_bytes_leave(self.sock)
        if self.sock.fileno() >= 0:
            reset_on_close(self.sock)
            self._transport.socket.close()
        if type(self._server) is Connection:
            self._server.stop_reading()

    async def _reset_stream(self, protocol: H2Protocol) -> bool:
        """Reset a stream (RFC 9113, 5.4.2). Returns False for an unknown protocol object."""
        stream_id = self._stream.stream_id
        try:
            buffer = protocol.stream_buffers.get(stream_id)
            if (
                buffer is not None and buffer.buffer
            ):  # one that never held data never reports that it is empty
                with trio.move_on_after(LAST_BYTES_S / 2):
                    await buffer.drain()
            protocol.connection.reset_stream(stream_id, _INTERNAL_ERROR)
            await protocol._flush()
            if isinstance(protocol, Http2):
                await protocol.forget(stream_id)
            else:
                await protocol._window_updated(stream_id)  # as Hypercorn does on a client's reset
        except AttributeError:
            return False
        except Exception:  # h2 refuses to reset a closed stream
            return self.sock.fileno() < 0 or stream_id not in protocol.streams
        return True
