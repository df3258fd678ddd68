"""Hypercorn's connection class, with Weirpool's changes: for TLS, for HTTP/2, and without a hub."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any

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

from ..bound import client_connections, watch_accept
from ..sockets import reset_on_close
from .apps import AppTasks, LazyEvent
from .idle import IdleTimer, ServerConfig
from .late import take_late_data
from .requests import read_requests_plainly
from .strict import be_strict

__all__ = ["Connection", "ServerConfig", "contain_parts"]

_READ_BYTES = 65536


class Connection(TCPServer):
    """Hypercorn's connection with these changes:

    - An error ends this connection only. In Hypercorn it would end the process. `BusyResourceError`
      is expected: the reading task may close the connection during a write of the app.
    - HTTP/1.1 data leaves at once with one system call where the socket accepts it; a held head
      leaves with the body. Hypercorn passes Trio's loop three times for a response.
    - A client's head is read strictly.
    - An idle connection that the client has closed ends at once. Hypercorn keeps it until the
      keep-alive timeout.
    - The end of an HTTP/2 connection ends the waits of its senders, and data for an answered stream
      is discarded.
    """

    def __init__(self, *args: Any, early: bytes = b"") -> None:
        """`early`: what has arrived already."""
        super().__init__(*args)
        self._early = early
        self.protocol: Any = None
        self.send_lock: Any = None  # created by the first task that must wait
        self.idle_task: Any = IdleTimer(self)
        self.holds_head = False
        self.timed_out = False
        self.send_timeout_s: float | None = -1.0  # the client socket's setting; -1 until it is set
        self.probes = False  # whether a silent client is probed
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
        ):  # the latter: cut during the handshake
            await trio.aclose_forcefully(self.stream)
        except* Exception as error:
            structlog.get_logger("proxy").error("internal_error", exc_info=error)
            await trio.aclose_forcefully(self.stream)
        finally:
            _connections.discard(self)
            client_connections.leave(self)
            # They reference this connection: break the cycle, so that it is freed now and not by
            # the garbage collector.
            self.idle_task = self.protocol = None

    async def _close(self) -> None:
        """As in Hypercorn, but an error in Trio's `send_eof` would be left to the garbage collector
        on Python 3.13.
        """
        stream: Any = self.stream
        if type(stream) is trio.SocketStream:
            with suppress(OSError):  # closed already, or the client is gone
                stream.socket.shutdown(socket.SHUT_WR)
        await stream.aclose()

    def cut(self) -> None:
        """Reset the connection. Waits for its socket end; data in a TLS or HTTP/2 layer is lost.
        Synchronous.
        """
        sock = self._socket
        if sock.fileno() >= 0:
            reset_on_close(sock)
            sock.close()

    @staticmethod
    def cut_all(config: Config) -> int:
        """Cut the connections of the server with `config`. Returns their number."""
        found = [connection for connection in _connections if connection.config is config]
        for connection in found:
            connection.cut()
        return len(found)

    def close_idle(self) -> None:
        """Close the socket. Every wait for it ends. Synchronous."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor; negative if closed."""
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
        # Without Hypercorn's deadline for each read. Where possible read from the socket itself:
        # this saves three frames under a waiting task.
        stream: Any = self.stream
        sock: Any = stream.socket if type(stream) is trio.SocketStream else None
        data, more = b"", True
        try:
            if self._early:
                data, self._early = self._early, b""
                await self._hand_over(data)
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
                data = b""  # the request has been handed over, and a stream may last for hours
        except (
            trio.ClosedResourceError,
            trio.BrokenResourceError,
            trio.TooSlowError,
            OSError,
        ) as error:
            self._note(error)
        await self.protocol.handle(Closed())
        if isinstance(self.protocol.protocol, H2Protocol):
            # Otherwise tasks that wait to send would wait forever.
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
            # To Hypercorn the preface is a request. The connection is idle until a head has
            # arrived.
            if protocol.idle:
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                client_connections.set_unused(self)

    def stop_reading(self) -> None:
        """Stop reading a closed or broken connection. Hypercorn's reading task would wait forever
        if a request was pipelined after a response that ended early, or after the last one before
        shutdown.
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
            # Quart cancels the task that ends a response as soon as Hypercorn reports the end.
            with trio.CancelScope(shield=True):
                await super().protocol_send(event)
            self.stop_reading()
            return
        if type(event) is not RawData:
            await super().protocol_send(event)
            return
        # As in Hypercorn, but errors are examined.
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
        """Note a timeout. The kernel reports ETIMEDOUT once, to the first read or write."""
        while error is not None:
            if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
                self.timed_out = True
            error = error.__cause__ or error.__context__

    def _send_now(self, data: bytes) -> bytes:
        """Send what the socket accepts. Returns the rest, usually nothing; Hypercorn's own code
        waits for it and reports errors.
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


def contain_parts() -> bool:
    """Let Hypercorn use the parts of `Connection`, if it is a known Hypercorn. Process-wide. Returns
    whether it is.
    """
    if getattr(tcp_server, "TaskGroup", None) is not TaskGroup:
        return False
    watch_accept()
    vars(tcp_server)["TaskGroup"] = AppTasks
    read_requests_plainly()
    return True


_connections: set[Connection] = set()
