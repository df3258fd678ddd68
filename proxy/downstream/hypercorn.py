"""What we know of Hypercorn's insides, all in one place, and checked hop by hop.

ASGI gives no access to the client's socket, no way to reset an HTTP/2 stream, and no word on which headers the server adds. Under
Hypercorn's Trio worker all of that can be reached from `send`:

    HTTPStream.app_send -> H11Protocol.stream_send (or H2Protocol) -> TCPServer.protocol_send -> TCPServer.stream

That path is private. `inspect_server` checks every hop's type and answers None when one differs, and then everything works
through plain ASGI. `tests/integration/test_hypercorn.py` fails when an installed Hypercorn closes the path.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import h11
import hypercorn.trio.run as hypercorn_run
import trio
from h11._receivebuffer import ReceiveBuffer
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer

__all__ = ["ClientConnection", "ServerConfig", "contain_connections", "cut_connections", "inspect_server", "path_is_known"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends a reset
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # RFC 5482; Linux has it
_INTERNAL_ERROR = 0x2  # RFC 9113, section 7
_LAST_BYTES_S = 1.0
_LOOK_S = 0.05
_READ_BYTES = 65536
_SHORT_REQUEST_S = 1.0


class ServerConfig(Config):
    """Hypercorn's configuration, for a server that drains."""

    def __init__(self) -> None:
        super().__init__()
        self.drained = trio.Event()
        """Idle connections stay until this is set, so that a request on one gets an answer while the server drains."""


class _IdleTimer:
    """Closes a connection that stays idle, or that is idle when the server ends: what Hypercorn has a task for, between requests.

    There the task is made and cancelled for each request. Here it lasts through short ones, and is gone from under a stream.
    """

    def __init__(self, server: _Connection) -> None:
        self._server = server
        self._scope: trio.CancelScope | None = None  # of the task, while there is one
        self._idle = False
        self._over = False

    async def restart(self, task_group: TaskGroup, action: Callable[[], Awaitable[None]]) -> None:
        """The connection is idle from now on."""
        if self._over:
            return
        self._idle = True
        if self._scope is None:
            self._scope = trio.CancelScope()
            task_group.spawn(self._run, self._scope)
        self._scope.deadline = trio.current_time() + self._server.config.keep_alive_timeout

    async def stop(self) -> None:
        """A request has come."""
        self._idle = False
        if self._scope is not None:
            self._scope.deadline = trio.current_time() + _SHORT_REQUEST_S

    def end(self) -> None:
        """The client has closed its side, and nothing more can come: whoever still has to write ends the connection."""
        self._over = True
        self._idle = False
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self, scope: trio.CancelScope) -> None:
        config = self._server.config
        with scope:
            await (config.drained if isinstance(config, ServerConfig) else self._server.context.terminated).wait()
        self._scope = None
        if self._idle:
            with trio.CancelScope(shield=True):
                await self._server._initiate_server_close()


_LAX = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]")


class _StrictBuffer(ReceiveBuffer):
    """What h11 reads a client's heads and trailers from, without its leniency: a line ends with CRLF and is not folded.

    RFC 9112, sections 2.2 and 5.2, let a server take a bare LF, and a folded line; where two servers read a head in two ways, a
    request can be smuggled past one of them.
    """

    def maybe_extract_lines(self) -> list[bytearray] | None:
        data = self._data
        if data.startswith(b"\r\n"):
            return super().maybe_extract_lines()
        searched = max(0, self._multiple_lines_search - 3)
        end = data.find(b"\r\n\r\n", searched)
        if _LAX.search(data, searched, len(data) - data.endswith(b"\r") if end < 0 else end + 4):
            raise h11.RemoteProtocolError("a line does not end with CRLF, or is folded", error_status_hint=400)
        if end < 0:
            self._multiple_lines_search = len(data)
            return None
        return self._extract(end + 4)[:-4].split(b"\r\n")


def _be_strict(protocol: Any) -> None:
    """Let an HTTP/1.1 connection that has read nothing read strictly, if its h11 is the one that we know."""
    connection: Any = getattr(protocol, "connection", None)
    if type(getattr(connection, "_receive_buffer", None)) is ReceiveBuffer and not connection._receive_buffer:
        connection._receive_buffer = _StrictBuffer()


class _Connection(TCPServer):
    """Hypercorn's connection, but for four things.

    What goes wrong on it is its own end, not the worker's: its reading task may close the connection while the application's
    writes, and Trio then raises `BusyResourceError` in one of them, which Hypercorn lets pass: out of the connection, out of the
    server, out of the process.

    And what it sends over HTTP/1.1 leaves at once where the client's socket takes it, with one system call and no pass through
    Trio's loop; a head that is held leaves with the body. Hypercorn takes three such passes for a response, one of them to send
    nothing.

    And a client's head is read strictly.

    And when the client has closed an idle connection it ends at once; Hypercorn keeps its task and its descriptor until the time
    for keep-alive is over.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.idle_task: Any = _IdleTimer(self)
        self.holds_head = False
        self.timed_out = False
        self.send_timeout_s: float | None = -1.0  # what the client's socket has; unlike any, until it is set
        self._held = b""
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        _connections.add(self)
        try:
            await super().run()
        except* (trio.BusyResourceError, trio.ClosedResourceError):  # the latter: cut, in its handshake
            await trio.aclose_forcefully(self.stream)
        finally:
            _connections.discard(self)

    def cut(self) -> None:
        """Reset it. Whoever waits for its socket is told; what a TLS or HTTP/2 layer holds is lost. Synchronous."""
        transport: Any = getattr(self.stream, "transport_stream", self.stream)
        if transport.socket.fileno() >= 0:
            transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.socket.close()

    async def _read_data(self) -> None:
        _be_strict(self.protocol.protocol)
        if self.config.read_timeout is not None:
            await super()._read_data()
            return
        # Without a deadline for each read, which Hypercorn sets even where there is none.
        with self._reading:
            try:
                while data := await self.stream.receive_some(_READ_BYTES):
                    await self.protocol.handle(RawData(bytes(data)))
                await self.protocol.handle(RawData(b""))
            except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
                self._note(error)
        await self.protocol.handle(Closed())
        self.idle_task.end()

    def stop_reading(self) -> None:
        """The connection was aborted. Hypercorn's reading task waits for ever, otherwise, when a request was pipelined behind one
        whose response has ended in the middle.
        """
        self._reading.cancel()

    async def protocol_send(self, event: Event) -> None:
        if type(event) is RawData and type(self.protocol.protocol) is H11Protocol:
            data = self._held + event.data
            if self.holds_head:
                self._held = data
                return
            self._held = b""
            data = self._send_now(data)
            if not data:
                return
            event = RawData(data)
        if type(event) is not RawData:
            await super().protocol_send(event)
            return
        # As Hypercorn does it, but that what went wrong is looked at.
        async with self.send_lock:
            try:
                with trio.CancelScope(shield=True):
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._note(error)
                await self.protocol.handle(Closed())

    def _note(self, error: BaseException | None) -> None:
        """The kernel gives up a client that takes nothing with ETIMEDOUT, and tells it once: whoever reads or writes first."""
        while error is not None:
            if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
                self.timed_out = True
            error = error.__cause__ or error.__context__

    def _send_now(self, data: bytes) -> bytes:
        """What is left to be sent: nothing, as a rule. For the rest Hypercorn's own way waits, or tells what is wrong."""
        stream: Any = self.stream
        if not data or type(stream) is not trio.SocketStream or self.send_lock.locked():
            return data
        sock: Any = stream.socket
        try:
            return data[sock._sock.send(data) :]
        except (OSError, AttributeError):
            return data


def contain_connections() -> None:
    """Let Hypercorn's Trio worker use `_Connection`, if it is the Hypercorn that we know. Process-wide."""
    if getattr(hypercorn_run, "TCPServer", None) is TCPServer:
        vars(hypercorn_run)["TCPServer"] = _Connection


_connections: set[_Connection] = set()


def cut_connections(config: Config) -> int:
    """Reset the connections of the server that runs with `config`; how many there were. Whatever they wait for, they end."""
    found = [connection for connection in _connections if connection.config is config]
    for connection in found:
        connection.cut()
    return len(found)


def path_is_known() -> bool:
    """Whether the installed Hypercorn looks like one whose path we know; each connection is checked on its own as well."""
    hops = ((HTTPStream, "app_send"), (H11Protocol, "stream_send"), (TCPServer, "protocol_send"))
    return all(callable(getattr(owner, name, None)) for owner, name in hops)


def inspect_server(send: Any) -> ClientConnection | None:
    """The client's connection behind an ASGI `send`, or None when the server is not a Hypercorn that we know."""
    stream = getattr(send, "__self__", None)
    if type(stream) is not HTTPStream or getattr(send, "__func__", None) is not HTTPStream.app_send:
        return None
    stream_send = getattr(stream, "send", None)
    protocol: Any = getattr(stream_send, "__self__", None)
    if type(protocol) not in (H11Protocol, H2Protocol):
        return None
    protocol_send = getattr(protocol, "send", None)
    server: Any = getattr(protocol_send, "__self__", None)
    if (
        type(server) not in (TCPServer, _Connection)
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

    __slots__ = ("_protocol", "_server", "_stream", "_transport", "sock", "tls")

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
        """The socket itself, non-blocking. Hypercorn owns it: it may be closed at any await."""
        self.tls = tls

    @property
    def http2(self) -> bool:
        return type(self._protocol) is H2Protocol

    @property
    def shields_send(self) -> bool:
        """Whether ASGI's `send` cannot be cancelled while the client takes nothing: so it is with HTTP/1.1."""
        return not self.http2

    @property
    def added_headers(self) -> frozenset[bytes]:
        """The headers that Hypercorn adds to every response."""
        config = self._stream.config
        added = {b"date"} if config.include_date_header else set()
        if config.include_server_header:
            added.add(b"server")
        return frozenset(added)

    @property
    def timed_out(self) -> bool:
        """Whether the kernel has given the client up because it took nothing."""
        return type(self._server) is _Connection and self._server.timed_out

    def limit_send(self, timeout_s: float | None) -> None:
        """Let the kernel give a client up that takes nothing for so long; None: never. For what cannot be cancelled.

        Not under HTTP/2, whose streams share the connection: there the listening socket's limit stays.
        """
        server = self._server
        if type(server) is not _Connection or self.http2 or server.send_timeout_s == timeout_s or _USER_TIMEOUT is None:
            return
        server.send_timeout_s = timeout_s
        with suppress(OSError):
            self.sock.setsockopt(
                socket.IPPROTO_TCP, _USER_TIMEOUT, 0 if timeout_s is None else max(1, int(timeout_s * 1000))
            )

    def hold_head(self, hold: bool) -> None:
        """Whether what is sent next is kept, to leave with what comes behind it; without effect under HTTP/2."""
        if type(self._server) is _Connection:
            self._server.holds_head = hold

    async def wait_hangup(self) -> None:
        """Return when the client has closed or reset its connection, although nobody reads what it still sends.

        Where the platform cannot tell (no epoll), this waits for ever.
        """
        if self.sock.fileno() < 0:
            return
        if not hasattr(select, "epoll"):
            await trio.sleep_forever()
        with select.epoll() as poll:
            poll.register(self.sock.fileno(), select.EPOLLRDHUP)  # and EPOLLHUP, EPOLLERR, which always tell
            await trio.lowlevel.wait_readable(poll.fileno())

    async def wait_sent(self) -> bool:
        """Under HTTP/2, wait until some of what was handed over has left, as the client's windows let it. True when all has.

        Hypercorn's own limit does not hold when the window is shut: it then takes in whatever it is given.
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
        """End the response such that the client sees that it is not whole: a reset, of the connection or the HTTP/2 stream.

        What was sent before has a second to leave. Not cancelled by what surrounds it.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(_LAST_BYTES_S):
            if isinstance(self._protocol, H2Protocol):
                if await self._reset_stream(self._protocol):
                    return
            else:
                await self._let_last_bytes_leave()
        if self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.socket.close()
        if type(self._server) is _Connection:
            self._server.stop_reading()

    async def _reset_stream(self, protocol: H2Protocol) -> bool:
        """RFC 9113, section 5.4.2. False when the protocol object is not as we know it."""
        stream_id = self._stream.stream_id
        try:
            buffer = protocol.stream_buffers.get(stream_id)
            if buffer is not None and buffer.buffer:  # one that has never held anything is never said to be empty
                with trio.move_on_after(_LAST_BYTES_S / 2):
                    await buffer.drain()
            protocol.connection.reset_stream(stream_id, _INTERNAL_ERROR)
            await protocol._flush()
            await protocol._window_updated(stream_id)  # as Hypercorn does on a client's reset: frees the buffer
        except AttributeError:
            return False
        except Exception:  # h2 refuses to reset what is closed already, and then there is nothing to tell
            return self.sock.fileno() < 0 or stream_id not in protocol.streams
        return True

    async def _let_last_bytes_leave(self) -> None:
        """A reset discards what the kernel has not sent; wait until the client's side has acknowledged it."""
        try:
            from fcntl import ioctl
            from termios import TIOCOUTQ
        except ImportError:
            return
        if self.sock.fileno() < 0:
            return
        unsent = bytearray(4)
        broken = select.poll()
        broken.register(self.sock.fileno(), 0)  # POLLHUP and POLLERR always tell
        while self.sock.fileno() >= 0 and not broken.poll(0):  # after a reset, what was not acknowledged never will be
            try:
                ioctl(self.sock.fileno(), TIOCOUTQ, unsent)
            except OSError:
                return
            if not any(unsent):
                return
            await trio.sleep(0.02)
