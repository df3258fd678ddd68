"""A client's connection as bytes: a non-blocking socket, plain or with TLS.

What cannot be sent at once is copied and returned, so that the caller's buffers are free again. The
hub watches the socket; only `send_rest` waits, until it is writable. It knows no HTTP.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import trio

from interceptors.chain import Part

from ..errors import ClientGone, SendStalled
from ..hub import Hub
from ..keepalive import send_probes
from .sockets import LAST_BYTES_S, let_last_bytes_leave, limit_unacknowledged, reset_on_close

__all__ = ["TlsTransport", "Transport"]

_IOV_MAX = 1024  # on Linux
_NOT_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Transport:
    """A TCP or Unix connection without TLS."""

    __slots__ = ("_probes", "_send_s", "hub", "sock")

    secure = False
    """Whether the connection has TLS."""

    def __init__(self, sock: socket.socket, hub: Hub) -> None:
        """`sock`: non-blocking; the transport closes it."""
        self.sock = sock
        self.hub = hub
        self._send_s = -1.0  # the socket's limit; -1 until it is set
        self._probes = False

    def fileno(self) -> int:
        """The socket's descriptor; negative if closed."""
        return self.sock.fileno()

    @property
    def names(self) -> tuple[Any, Any]:
        """The addresses of both ends, host and port; None for one that is not known."""
        names: list[Any] = []
        for name in (self.sock.getpeername, self.sock.getsockname):
            try:
                found = name()
            except OSError:
                found = None
            names.append(found[:2] if isinstance(found, tuple) else None)
        return names[0], names[1]

    def limit_send(self, timeout_s: float) -> None:
        """As `ClientStream.limit_send`. The listening socket's limit applies before."""
        if timeout_s != self._send_s:
            self._send_s = timeout_s
            limit_unacknowledged(self.sock, timeout_s)
            if self._probes:
                send_probes(self.sock)  # the probes depend on it

    def send_probes(self) -> None:
        """As `ClientStream.send_probes`."""
        if not self._probes:
            self._probes = True
            send_probes(self.sock)

    @property
    def speaks_http2(self) -> bool:
        """Whether TLS has agreed on HTTP/2 (RFC 7301)."""
        return False

    def take_error(self) -> int:
        """The socket's pending error number; 0 if there is none."""
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def receive(self, max_bytes: int) -> bytes | None:
        """Return what has arrived, `b""` at its end, or None if nothing has. Never blocks. Raises
        `OSError` for a broken connection.
        """
        try:
            return self.sock.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, message: Sequence[Part]) -> memoryview | None:
        """Send what the socket accepts at once. Returns a copy of the rest; None if everything has
        left. Never blocks. Raises `ClientGone` and `SendStalled`.
        """
        try:
            if len(message) == 1:
                sent = self.sock.send(message[0])
            elif len(message) <= _IOV_MAX:
                sent = self.sock.sendmsg(message)
            else:
                message = (b"".join(message),)
                sent = self.sock.send(message[0])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise _lost(error) from error
        if sent == (len(message[0]) if len(message) == 1 else sum(map(len, message))):
            return None
        return memoryview(b"".join(message))[sent:]

    async def send_rest(self, rest: memoryview) -> memoryview | None:
        """Wait once until the socket accepts more, and send it. Returns the new rest; None if
        everything has left. Without a deadline: the caller sets it. Raises as `send`.
        """
        try:
            if self.sock.fileno() < 0:
                raise ClientGone
            await trio.lowlevel.wait_writable(self.sock)
            return rest[self.sock.send(rest) :] or None
        except _NOT_YET:
            return rest
        except (OSError, trio.ClosedResourceError) as error:
            raise _lost(error) from error

    def shut_down_sending(self) -> None:
        """Tell the client that nothing more follows. What it still sends can be received and
        dropped. Never raises.
        """
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)  # not that of `SSLSocket`

    async def let_last_bytes_leave(self) -> None:
        """Wait until the client has acknowledged all bytes, or a second has passed: a reset
        discards unsent ones. Not cancelled by surrounding scopes.
        """
        with trio.CancelScope(shield=True), trio.move_on_after(LAST_BYTES_S):
            await let_last_bytes_leave(self.sock)

    def close(self) -> None:
        """Close the connection in an orderly way, without waiting. Safe to call again."""
        fd = self.sock.fileno()
        if fd >= 0:
            self.hub.forget(fd)
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()

    def reset(self) -> None:
        """Close the connection so that the client sees that it was cut. Safe to call again."""
        reset_on_close(self.sock)
        Transport.close(self)


class TlsTransport(Transport):
    """The server's side of a connection with TLS. `shake_hands` comes first."""

    __slots__ = ("_sends",)

    sock: ssl.SSLSocket
    secure = True

    def __init__(self, sock: socket.socket, hub: Hub, context: ssl.SSLContext) -> None:
        tls = context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        super().__init__(tls, hub)
        self._sends = True  # until close_notify

    async def shake_hands(self, timeout_s: float) -> bool:
        """Do the handshake. Returns False if it fails, takes longer than `timeout_s`, or the
        transport is closed meanwhile.
        """
        with trio.move_on_after(timeout_s):
            while True:
                try:
                    self.sock.do_handshake()
                    return True
                except ssl.SSLWantReadError:
                    wait = trio.lowlevel.wait_readable
                except ssl.SSLWantWriteError:
                    wait = trio.lowlevel.wait_writable
                except (OSError, ValueError):  # ValueError: the socket was closed
                    return False
                try:
                    await wait(self.sock)
                except (OSError, trio.ClosedResourceError):
                    return False
        return False

    @property
    def speaks_http2(self) -> bool:
        return self.sock.selected_alpn_protocol() == "h2"

    def receive(self, max_bytes: int) -> bytes | None:
        """As without TLS; an end without close_notify is an `OSError` (RFC 8446, section 6.1).

        `max_bytes` must be at least 16,384, the size of a record: the rest of a larger one would
        not make the socket readable. After `shut_down_sending`: the bytes as they arrived, for a
        caller that drops them.
        """
        try:
            if not self._sends:  # OpenSSL has looked for a close_notify and found data
                return socket.socket.recv(self.sock, max_bytes)
            return self.sock.recv(max_bytes)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return None

    def send(self, message: Sequence[Part]) -> memoryview | None:
        data = message[0] if len(message) == 1 else b"".join(message)
        if not data:
            return None
        try:
            sent = self.sock.send(data)
        except _NOT_YET:
            sent = 0
        except OSError as error:
            raise _lost(error) from error
        # OpenSSL requires that what was refused comes again before anything else.
        return None if sent == len(data) else memoryview(bytes(data))[sent:]

    def shut_down_sending(self) -> None:
        self._notify_close()
        self._sends = False
        super().shut_down_sending()

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self._notify_close()
        super().close()

    def _notify_close(self) -> None:
        with suppress(OSError, ValueError):  # the client's own is not waited for
            self.sock.unwrap()


def _lost(error: Exception) -> ClientGone | SendStalled:
    """The kernel may be the first to give up a stalled client."""
    if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
        return SendStalled()
    return ClientGone()
