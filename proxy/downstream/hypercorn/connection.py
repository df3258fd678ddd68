"""Hypercorn's connection, but for what we do otherwise."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import Any

import hypercorn.trio.run as hypercorn_run
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio import tcp_server
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import EventWrapper

from .apps import AppTasks, LazyEvent
from .bound import client_connections, watch_accept
from .idle import IdleTimer, ServerConfig
from .late import take_late_data
from .requests import read_requests_plainly
from .strict import be_strict

__all__ = ["RESET", "Connection", "ServerConfig", "contain_connections", "cut_connections"]

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: on, 0 s. Closing the socket then sends a reset."""
_READ_BYTES = 65536


class Connection(TCPServer):
    """Hypercorn's connection, but for six things.

    What goes wrong on it is its own end, not the worker's: Hypercorn lets it pass, out of the
    connection, out of the server, out of the process. Its reading task may close the connection
    while the application's writes, and Trio then raises `BusyResourceError` in one of them; what
    else there may be is nothing that we know of, and is logged.

    And what it sends over HTTP/1.1 leaves at once where the client's socket takes it, with one
    system call and no pass through Trio's loop; a head that is held leaves with the body. Hypercorn
    takes three such passes for a response, one of them to send nothing.

    And a client's head is read strictly.

    And when the client has closed an idle connection it ends at once; Hypercorn keeps its task and
    its descriptor until the time for keep-alive is over.

    And when an HTTP/2 connection ends, so does the wait of whoever still has something to send on
    it; and what a client sends for a stream that has been answered is thrown away.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.protocol: Any = None
        self.send_lock: Any = None  # made for the first who must wait
        self.idle_task: Any = IdleTimer(self)
        self.holds_head = False
        self.timed_out = False
        self.send_timeout_s: (
            float | None
        ) = -1.0  # what the client's socket has; unlike any, until it is set
        self.probes = False  # whether the client is probed while it is silent
        self._held = b""
        self._is_http1 = True
        self._handing_over: trio.CancelScope | None = None
        self._stopped = False

    async def run(self) -> None:
        _connections.add(self)
        client_connections.enter(self)
        try:
            await super().run()
        except* (
            trio.BusyResourceError,
            trio.ClosedResourceError,
        ):  # the latter: cut, in its handshake
            await trio.aclose_forcefully(self.stream)
        except* Exception as error:
            structlog.get_logger("proxy").error("internal_error", exc_info=error)
            await trio.aclose_forcefully(self.stream)
        finally:
            _connections.discard(self)
            client_connections.leave(self)
            # They know this connection; so all of it is freed now, and not when the garbage
            # collector gets to it.
            self.idle_task = self.protocol = None

    async def _close(self) -> None:
        """As Hypercorn does it, but that what fails in Trio's `send_eof` would be left to the
        garbage collector, on Python 3.13.
        """
        stream: Any = self.stream
        if type(stream) is trio.SocketStream:
            with suppress(OSError):  # it is closed already, or the client is gone
                stream.socket.shutdown(socket.SHUT_WR)
        await stream.aclose()

    def cut(self) -> None:
        """Reset it. Whoever waits for its socket is told; what a TLS or HTTP/2 layer holds is lost.
        Synchronous.
        """
        sock = self._socket
        if sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()

    def close_idle(self) -> None:
        """Close its socket. Every task that waits for it ends. Synchronous."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor; negative when it is closed."""
        return int(self._socket.fileno())

    @property
    def _socket(self) -> Any:
        transport: Any = getattr(self.stream, "transport_stream", self.stream)
        return transport.socket

    async def _read_data(self) -> None:
        protocol: Any = self.protocol.protocol
        be_strict(protocol)
        if isinstance(protocol, H11Protocol) and type(protocol.can_read) is EventWrapper:
            protocol.can_read = LazyEvent()
        # Without a deadline for each read, which Hypercorn sets even where there is none. Off the
        # socket itself where that can be, which are three frames less under a task that waits than
        # Trio's stream has.
        stream: Any = self.stream
        sock: Any = stream.socket if type(stream) is trio.SocketStream else None
        data, more = b"", True
        try:
            while more and not self._stopped:
                if self.config.read_timeout:
                    with trio.fail_after(self.config.read_timeout):
                        data = bytes(await stream.receive_some(_READ_BYTES))
                elif sock is None:
                    data = bytes(await stream.receive_some(_READ_BYTES))
                elif sock.fileno() < 0:
                    raise trio.ClosedResourceError
                else:
                    await trio.lowlevel.wait_readable(sock)
                    try:
                        data = sock._sock.recv(_READ_BYTES)
                    except BlockingIOError:
                        continue
                more = bool(data)
                await self._hand_over(data)
                data = b""  # a stream may last for hours, and its request has been handed over
        except (
            trio.ClosedResourceError,
            trio.BrokenResourceError,
            trio.TooSlowError,
            OSError,
        ) as error:
            self._note(error)
        await self.protocol.handle(Closed())
        if isinstance(self.protocol.protocol, H2Protocol):
            # Whoever waits for one to be sent waits for ever, otherwise.
            for buffer in list(self.protocol.protocol.stream_buffers.values()):
                await buffer.close()
        self.idle_task.end()

    async def _hand_over(self, data: bytes) -> None:
        take_late_data(self.protocol.protocol)
        with trio.CancelScope() as self._handing_over:
            await self.protocol.handle(RawData(data))
        self._handing_over = None
        protocol = self.protocol.protocol
        if self._is_http1 and isinstance(protocol, H2Protocol):
            self._is_http1 = False
            # To Hypercorn the preface was a request. The connection is idle until the head of one
            # has come.
            if protocol.idle:
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                client_connections.set_unused(self)

    def stop_reading(self) -> None:
        """The connection is closed or broken. Hypercorn's reading task waits for ever, otherwise,
        when a request was pipelined behind one whose response has ended in the middle, or was the
        last before the server ends.
        """
        self._stopped = True
        if self._handing_over is not None:
            self._handing_over.cancel()

    async def protocol_send(self, event: Event) -> None:
        if type(event) is RawData and isinstance(self.protocol.protocol, H11Protocol):
            data = self._held + event.data
            if self.holds_head:
                self._held = data
                return
            self._held = b""
            data = self._send_now(data)
            if not data:
                return
            event = RawData(data)
        if type(event) is Closed:
            # Quart cancels whoever ends a response, as soon as Hypercorn says that it has ended.
            with trio.CancelScope(shield=True):
                await super().protocol_send(event)
            self.stop_reading()
            return
        if type(event) is not RawData:
            await super().protocol_send(event)
            return
        # As Hypercorn does it, but that what went wrong is looked at.
        if self.send_lock is None:
            self.send_lock = trio.Lock()
        async with self.send_lock:
            try:
                with trio.CancelScope(shield=True):
                    await self.stream.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._note(error)
                await self.protocol.handle(Closed())
                self.stop_reading()

    def _note(self, error: BaseException | None) -> None:
        """The kernel gives up a client that takes nothing with ETIMEDOUT, and tells it once:
        whoever reads or writes first.
        """
        while error is not None:
            if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
                self.timed_out = True
            error = error.__cause__ or error.__context__

    def _send_now(self, data: bytes) -> bytes:
        """What is left to be sent: nothing, as a rule. For the rest Hypercorn's own way waits, or
        tells what is wrong.
        """
        stream: Any = self.stream
        if (
            not data
            or type(stream) is not trio.SocketStream
            or (self.send_lock is not None and self.send_lock.locked())
        ):
            return data
        sock: Any = stream.socket
        try:
            return data[sock._sock.send(data) :]
        except (OSError, AttributeError):
            return data


def contain_connections() -> None:
    """Let Hypercorn's Trio worker use `Connection`, if it is the Hypercorn that we know.
    Process-wide.
    """
    if (
        getattr(hypercorn_run, "TCPServer", None) is TCPServer
        and getattr(tcp_server, "TaskGroup", None) is TaskGroup
    ):
        vars(hypercorn_run)["TCPServer"] = Connection
        watch_accept()
        vars(tcp_server)["TaskGroup"] = AppTasks
        read_requests_plainly()


_connections: set[Connection] = set()


def cut_connections(config: Config) -> int:
    """Reset the connections of the server that runs with `config`; how many there were. Whatever
    they wait for, they end.
    """
    found = [connection for connection in _connections if connection.config is config]
    for connection in found:
        connection.cut()
    return len(found)
