"""Connections to the origins of one upstream: made, kept alive, checked before reuse, bounded, and never lost.

A `Connection` is a non-blocking socket, plain or TLS, read straight into the caller's buffer. A `ConnectionPool` hands out those of
one origin; all pools of an upstream share its `Slots`: at most `max_connections` are open, idle ones included. The invariants,
whatever is cancelled and wherever:

- `slots in use == connections lent`, and each comes back through `release`, which never blocks;
- a new connection is opened only when its origin has none idle, or a fresh one is asked for, and then one that is idle makes room
  if it must, so that lent + idle never exceeds the bound;
- no more wait for a slot than `Slots.max_waiting`, and none longer than its connect deadline;
- only the task that has a connection on loan reads, writes or closes it.

It knows no HTTP. Foreign exceptions of sockets and TLS become ours here, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import trio
from trio.lowlevel import wait_readable, wait_writable

from ..errors import (
    ConnectFailed,
    ConnectTimedOut,
    DnsFailed,
    PoolFull,
    PoolTimedOut,
    ReadFailed,
    TlsFailed,
    Truncated,
    WriteTimedOut,
)
from ..keepalive import send_probes

__all__ = ["KEEPALIVE_EXPIRY_S", "Connection", "ConnectionPool", "Origin", "PoolState", "Slots"]

KEEPALIVE_EXPIRY_S = 60.0
"""An idle connection is closed after this; servers keep theirs for 60 to 75 s as a rule."""

_MIN_WAITING = 64  # of an upstream with few connections, such as a model that answers two at a time


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Connection:
    """One connection on loan, or idle. The socket is non-blocking; who has it on loan closes it through its pool."""

    __slots__ = ("_recv_into", "idle_since", "origin", "sock", "tls", "used", "written")

    def __init__(self, origin: Origin, sock: socket.socket) -> None:
        self.origin = origin
        self.sock = sock
        self._recv_into = sock.recv_into
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.used = False
        """It has carried an exchange before, so that the other side may have closed it meanwhile."""
        self.written = 0
        """Bytes of the current request that left."""
        self.idle_since = 0.0

    def receive_into(self, buffer: bytearray, at: int) -> int | None:
        """Read what is there into `buffer[at:]`. The count, 0 at an orderly end, None when there is nothing yet.

        Raises `ReadFailed` when the connection broke and `Truncated` when TLS ended without close_notify (RFC 8446,
        section 6.1): whoever cuts the connection must not be able to pass that off as the end. Never blocks.
        """
        try:
            if not at:
                return self._recv_into(buffer)
            with memoryview(buffer) as view, view[at:] as room:
                return self._recv_into(room)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except ssl.SSLEOFError:
            raise Truncated(f"{self.origin}: TLS ended without close_notify") from None
        except OSError as error:
            raise ReadFailed(f"{self.origin}: {_reason(error)}") from error

    @property
    def pending(self) -> bool:
        """Whether TLS holds decrypted bytes, of which no readiness of the socket will tell."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    async def wait_readable(self) -> None:
        """Wait until reading may find something. Raises `ReadFailed` when the connection is closed meanwhile."""
        if self.pending:
            await trio.lowlevel.checkpoint()
            return
        if self.sock.fileno() < 0:
            raise ReadFailed(f"{self.origin}: closed")
        try:
            await wait_readable(self.sock)
        except trio.ClosedResourceError:
            raise ReadFailed(f"{self.origin}: closed") from None

    async def send_all(self, data: bytes, timeout_s: float | None) -> None:
        """Write everything; `timeout_s` bounds each wait for room. Raises `ReadFailed` (broken) and `WriteTimedOut`.

        When cancelled, `written` says how much has left.
        """
        view = memoryview(data)
        while view:
            waiting_for = wait_writable
            try:
                sent = self.sock.send(view)
            except (BlockingIOError, InterruptedError, ssl.SSLWantWriteError):
                pass
            except ssl.SSLWantReadError:
                waiting_for = wait_readable
            except OSError as error:
                raise ReadFailed(f"{self.origin}: {_reason(error)}") from error
            else:
                self.written += sent
                view = view[sent:]
                continue
            try:
                with trio.fail_after(timeout_s if timeout_s is not None else float("inf")):
                    await waiting_for(self.sock)
            except trio.TooSlowError:
                raise WriteTimedOut(f"{self.origin}: took nothing for {timeout_s} s") from None
            except trio.ClosedResourceError:
                raise ReadFailed(f"{self.origin}: closed") from None

    def is_alive(self) -> bool:
        """Whether an idle connection can carry a request: still open, and nobody has spoken out of turn."""
        try:
            if isinstance(self.sock, ssl.SSLSocket):
                self.sock.recv(1)  # handles session tickets; there is nothing else to say now
            else:
                self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def shut_down(self) -> None:
        """End both directions, so that whoever reads finds the end; the descriptor stays. For another task than the reader's."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close at once, without a TLS goodbye. Never blocks; safe to call again."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


@dataclass(frozen=True, slots=True)
class PoolState:
    """A snapshot of one origin's connections."""

    origin: str
    lent: int
    idle: int
    waiting: int
    opened: int
    reused: int


class Slots:
    """How many connections an upstream may have, over all its origins, and how many may wait for one."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.max_waiting = max(_MIN_WAITING, max_connections)
        self.pools: list[ConnectionPool] = []
        self._free = trio.Semaphore(max_connections, max_value=max_connections)

    async def acquire(self, origin: Origin, timeout_s: float) -> None:
        """Take a slot, first come, first served. Raises `PoolFull` at once when too many wait already, and `PoolTimedOut`."""
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            if self._free.statistics().tasks_waiting >= self.max_waiting:
                raise PoolFull(f"{origin}: {self.max_waiting} requests wait for a connection already") from None
            try:
                with trio.fail_after(timeout_s):
                    await self._free.acquire()
            except trio.TooSlowError:
                raise PoolTimedOut(
                    f"{origin}: all {self.max_connections} connections are in use (max_connections)"
                ) from None

    def release(self) -> None:
        self._free.release()

    def make_room(self) -> None:
        """Before a connection is opened, on a slot that has been taken: close the idle one that would be too many."""
        lent = self.max_connections - self._free.value
        if lent + sum(len(pool.idle) for pool in self.pools) > self.max_connections:
            oldest = min((pool for pool in self.pools if pool.idle), key=lambda pool: pool.idle[0].idle_since)
            oldest.idle.popleft().close()


class ConnectionPool:
    """The connections of one origin."""

    def __init__(self, origin: Origin, slots: Slots, ssl_context: ssl.SSLContext | None) -> None:
        """`slots`: shared with the pools of the same upstream's other origins."""
        self._origin = origin
        self._ssl_context = ssl_context
        self._slots = slots
        slots.pools.append(self)
        self.idle: deque[Connection] = deque()
        """Connections that are kept, the one that has idled longest first."""
        self._lent = 0
        self._waiting = 0
        self._opened = 0
        self._reused = 0
        self._closed = False

    async def acquire(self, *, connect_timeout_s: float | None, fresh: bool = False) -> Connection:
        """A connection, kept or new, on loan until `release`. `fresh` asks for a new one.

        Raises `PoolFull`, `PoolTimedOut`, `DnsFailed`, `ConnectFailed`, `TlsFailed`, `ConnectTimedOut`. Cancelled at any point it
        leaves nothing behind.
        """
        timeout_s = connect_timeout_s if connect_timeout_s is not None else float("inf")
        self._waiting += 1
        try:
            await self._slots.acquire(self._origin, timeout_s)
        finally:
            self._waiting -= 1
        self._lent += 1
        try:
            connection = None if fresh else self._take_idle()
            if connection is None:
                self._slots.make_room()
                connection = await self._open(timeout_s)
                self._opened += 1
            else:
                self._reused += 1
            connection.written = 0
            return connection
        except BaseException:
            self._lent -= 1
            self._slots.release()
            raise

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Take a connection back, to keep it or to close it. Never blocks. Call exactly once for each `acquire`."""
        self._lent -= 1
        self._slots.release()
        if reusable and not self._closed:
            connection.used = True
            connection.idle_since = trio.current_time()
            self.idle.append(connection)
        else:
            connection.close()

    def expire(self) -> None:
        """Close the connections that have idled too long, or that the other side has ended."""
        oldest = trio.current_time() - KEEPALIVE_EXPIRY_S
        kept = [item for item in self.idle if item.idle_since > oldest and item.is_alive()]
        for connection in set(self.idle).difference(kept):
            connection.close()
        self.idle = deque(kept)

    def close(self) -> None:
        """Close what is idle, and keep nothing from now on. Connections on loan belong to who has them."""
        self._closed = True
        while self.idle:
            self.idle.pop().close()

    def state(self) -> PoolState:
        """A snapshot."""
        return PoolState(
            origin=str(self._origin),
            lent=self._lent,
            idle=len(self.idle),
            waiting=self._waiting,
            opened=self._opened,
            reused=self._reused,
        )

    def _take_idle(self) -> Connection | None:
        """The most recently used idle connection that is still good."""
        oldest = trio.current_time() - KEEPALIVE_EXPIRY_S
        while self.idle:
            connection = self.idle.pop()
            if connection.idle_since > oldest and connection.is_alive():
                return connection
            connection.close()
        return None

    async def _open(self, timeout_s: float) -> Connection:
        origin = self._origin
        with trio.CancelScope(deadline=trio.current_time() + timeout_s):
            sock = await _connect(origin)
            send_probes(sock)  # a listening stream has no other limit
            if self._ssl_context is None:
                return Connection(origin, sock)
            return Connection(origin, await _start_tls(origin, sock, self._ssl_context))
        raise ConnectTimedOut(f"{origin}: no connection within {timeout_s} s")


async def _connect(origin: Origin) -> socket.socket:
    """A connected, non-blocking socket. Of a name, the addresses are tried as RFC 8305 says; an address needs none of that."""
    family = _address_family(origin.host)
    if family is not None:
        return await _connect_address(origin, family)
    try:
        stream = await trio.open_tcp_stream(origin.host, origin.port)
    except socket.gaierror as error:
        raise DnsFailed(f"{origin}: cannot resolve the name: {error.strerror}") from error
    except UnicodeError as error:  # what the idna codec makes of an impossible name
        raise DnsFailed(f"{origin}: not a name that can be resolved") from error
    except OSError as error:
        raise ConnectFailed(f"{origin}: {_reason(error)}") from error
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    return sock


def _address_family(host: str) -> socket.AddressFamily | None:
    """The family of an address, None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return family
    return None


async def _connect_address(origin: Origin, family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex((origin.host, origin.port))
        if error == errno.EINPROGRESS:
            await wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise ConnectFailed(f"{origin}: {os.strerror(error)}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _start_tls(origin: Origin, sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """The TLS handshake. Takes the socket over: it is closed when this raises."""
    try:
        tls = context.wrap_socket(
            sock, server_hostname=origin.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
    except OSError as error:
        sock.close()
        raise TlsFailed(f"{origin}: {_reason(error)}") from error
    try:
        while True:
            try:
                tls.do_handshake()
                return tls
            except ssl.SSLWantReadError:
                await wait_readable(tls)
            except ssl.SSLWantWriteError:
                await wait_writable(tls)
    except OSError as error:
        tls.close()
        raise TlsFailed(f"{origin}: {_reason(error)}") from error
    except BaseException:
        tls.close()
        raise


def _reason(error: OSError) -> str:
    """What went wrong, in words, without addresses or numbers that mean nothing to a reader."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error.strerror or error}"
    causes = getattr(error.__cause__, "exceptions", None)  # trio.open_tcp_stream collects one for each address
    if causes:
        return "; ".join(dict.fromkeys(_reason(cause) for cause in causes))
    return os.strerror(error.errno) if error.errno else error.strerror or "failed"
