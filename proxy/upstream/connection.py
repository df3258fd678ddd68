"""One connection to an endpoint: a non-blocking socket, plain or TLS, read into the caller's buffer.

The hub watches it from its first wait on, idle or lent. An event that no task waits for goes to its
pool while it is idle, and ends the watch of a lent one until the next wait: a slow client must not
cost a turn of the hub after another. It knows no HTTP and no pool.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import trio
from trio.lowlevel import wait_readable, wait_writable

from ..errors import ReadFailed, Truncated, WriteTimedOut
from ..hub import Hub, Wait, current_hub
from .failures import failure_of
from .origin import Origin

__all__ = ["Connection"]

_NOT_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """One connection, on loan or idle. Its borrower closes it through the pool."""

    __slots__ = (
        "_hub",
        "_news",
        "_probe",
        "_recv_into",
        "idle_since",
        "on_event",
        "origin",
        "sock",
        "tls",
        "used",
        "written",
    )

    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.sock = sock
        self._recv_into = sock.recv_into
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.used = False
        """Whether it has carried a request before: the server may have closed it since."""
        self.written = 0
        """Bytes of the current request that have been written."""
        self.idle_since = 0.0
        self.on_event: Callable[[Connection], None] | None = None
        """Called for an event of an idle connection; None while it is lent."""
        self._hub: Hub | None = None  # since the first wait, if there is one
        self._news: Wait | None = None
        self._probe: select.poll | None = None  # since it was idle first

    def receive_into(self, buffer: bytearray, at: int) -> int | None:
        """Read once into `buffer[at:]`; return the count, 0 at an orderly end, None if nothing is
        there yet. Never blocks.

        Raises `ReadFailed` for a broken connection, `OutOfResources`, and `Truncated` when TLS ends
        without close_notify (RFC 8446, section 6.1): a cut connection must not end a body.
        """
        try:
            if not at:
                return self._recv_into(buffer)
            with memoryview(buffer) as view, view[at:] as room:
                return self._recv_into(room)
        except OSError as error:
            self._nothing_read(error)
            return None

    def receive(self, max_bytes: int) -> bytes | None:
        """As `receive_into`, but return the bytes: `b""` at an orderly end."""
        try:
            return self.sock.recv(max_bytes)
        except OSError as error:
            self._nothing_read(error)
            return None

    def _nothing_read(self, error: OSError) -> None:
        """Return if there is nothing to read yet; raise what else a read has failed with."""
        if isinstance(error, _NOT_YET):
            return
        if isinstance(error, ssl.SSLEOFError):
            raise Truncated(f"{self.origin}: TLS ended without close_notify") from None
        raise failure_of(self.origin, error, ReadFailed) from error

    @property
    def pending(self) -> bool:
        """Whether TLS holds decrypted bytes, which do not make the socket readable."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def wait_readable(self, timeout_s: float = inf) -> Awaitable[bool]:
        """Wait until a read may return something. Returns False if `timeout_s` has passed instead.
        Raises `ReadFailed`, also if the connection is closed while waiting.
        """
        if self.tls and self.pending:
            return _at_once()
        fd = self.sock.fileno()
        if fd < 0:
            raise self._closed()
        if self._news is None:
            self._hub = current_hub()
            if self._hub is None:
                return self._wait_in_trio(timeout_s)
            self._news = Wait(self._hub)
        assert self._hub is not None
        try:
            self._hub.watch(fd, self)
        except OSError as error:  # epoll_ctl(2)
            raise failure_of(self.origin, error, ReadFailed) from error
        return self._news.wait(timeout_s)

    async def _wait_in_trio(self, timeout_s: float) -> bool:
        try:
            if timeout_s == inf:
                await wait_readable(self.sock)
                return True
            with trio.move_on_after(timeout_s) as scope:
                await wait_readable(self.sock)
        except trio.ClosedResourceError:
            raise self._closed() from None
        except OSError as error:  # epoll_ctl(2)
            raise failure_of(self.origin, error, ReadFailed) from error
        return not scope.cancelled_caught

    def on_ready(self, events: int, now: float) -> None:
        """As `Watcher.on_ready`."""
        assert self._hub is not None
        assert self._news is not None
        if self._news.wake():
            return
        if self.on_event is not None:
            self.on_event(self)
        else:
            self._hub.forget(self.sock.fileno())  # it would be called again and again

    def send(self, data: bytes | memoryview) -> bytes | memoryview:
        """Write what the socket accepts at once; return the rest. Never blocks. Raises `ReadFailed`
        for a broken connection, and with TLS `ssl.SSLWantReadError`.
        """
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
            return data
        except ssl.SSLWantReadError:
            raise
        except OSError as error:
            raise failure_of(self.origin, error, ReadFailed) from error
        self.written += sent
        return b"" if sent == len(data) else memoryview(data)[sent:]

    async def send_all(self, data: bytes | memoryview, timeout_s: float) -> None:
        """Write everything; `timeout_s` bounds each wait until the socket is writable. Raises
        `ReadFailed` for a broken connection, and `WriteTimedOut`.

        When cancelled, `written` counts what has been written.
        """
        while data:
            waiting_for = wait_writable
            try:
                rest = self.send(data)
            except ssl.SSLWantReadError:
                waiting_for = wait_readable
            else:
                if rest is not data:
                    data = rest
                    continue
            try:
                with trio.fail_after(timeout_s):
                    await waiting_for(self.sock)
            except trio.TooSlowError:
                raise WriteTimedOut(f"{self.origin}: took nothing for {timeout_s} s") from None
            except trio.ClosedResourceError:
                raise self._closed() from None
            except OSError as error:  # epoll_ctl(2)
                raise failure_of(self.origin, error, ReadFailed) from error

    def is_alive(self) -> bool:
        """Whether an idle connection can carry a request: it is open, and the server has sent
        nothing.
        """
        if self._probe is None:
            self._probe = select.poll()
            self._probe.register(self.sock, select.POLLIN)
        if not self._probe.poll(0):  # an event of the hub may be a turn late
            return True
        try:
            if isinstance(self.sock, ssl.SSLSocket):
                self.sock.recv(1)  # processes session tickets; no data is expected
            else:
                self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def shut_down(self) -> None:
        """End both directions so that the reading task sees the end; the descriptor stays open."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close at once, without close_notify. Never blocks; safe to call again."""
        if self.sock.fileno() < 0:
            return
        if self._hub is not None:
            self._hub.forget(self.sock.fileno())
        trio.lowlevel.notify_closing(self.sock)
        self.sock.close()
        if self._news is not None and self._news.waiting:
            self._news.fail(self._closed())

    def _closed(self) -> ReadFailed:
        return ReadFailed(f"{self.origin}: closed")


async def _at_once() -> bool:
    await trio.lowlevel.checkpoint()
    return True
