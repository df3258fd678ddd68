"""Connections to the origins of one upstream: opened, kept alive, checked before reuse and bounded.

A `Connection` is a non-blocking socket, plain or TLS, read into the caller's buffer. A
`ConnectionPool` lends those of one origin; all pools of an upstream share its `Slots`, which bound
the open connections, idle ones included. Invariants, also under cancellation:

- slots in use == connections lent, and each comes back through `release`, which never blocks;
- a connection is opened only if its origin has no idle one, or if a new one is requested; an idle
  connection is closed to make room, so that lent + idle never exceeds `max_connections`;
- at most `Slots.max_waiting` requests wait for a slot, and none longer than its connect deadline;
- only the task that has a connection on loan reads, writes or closes it.

It knows no HTTP, and no name resolution: `dial` opens the sockets.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from math import inf

import trio
from trio.lowlevel import wait_readable, wait_writable

from ..errors import ConnectTimedOut, PoolFull, PoolTimedOut, ReadFailed, Truncated, WriteTimedOut
from ..hub import current_hub
from ..keepalive import send_probes
from . import dial
from .failures import failure_of
from .origin import Origin, server_name
from .resolver import Resolver

__all__ = [
    "KEEPALIVE_EXPIRY_S",
    "ConnectTime",
    "Connection",
    "ConnectionPool",
    "Origin",
    "PoolState",
    "Slots",
]

KEEPALIVE_EXPIRY_S = 60.0
"""An idle connection is closed after this time; most servers keep theirs for 60 to 75 s."""

_NOT_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_MIN_WAITING = 64  # for an upstream with few connections, such as a model that serves two at a time


class ConnectTime:
    """The deadline, from now, for a usable connection: queue, look-up, TCP and TLS together."""

    __slots__ = ("deadline", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline = trio.current_time() + self.timeout_s


class Connection:
    """One connection, on loan or idle. Its borrower closes it through the pool."""

    __slots__ = ("_recv_into", "idle_since", "origin", "sock", "tls", "used", "written")

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

    async def wait_readable(self, timeout_s: float = inf) -> bool:
        """Wait until a read may return something. Returns False if `timeout_s` has passed instead.
        Raises `ReadFailed` if the connection is closed while waiting.
        """
        if self.tls and self.pending:
            await trio.lowlevel.checkpoint()
            return True
        fd = self.sock.fileno()
        if fd < 0:
            raise ReadFailed(f"{self.origin}: closed")
        try:
            hub = current_hub()
            if hub is not None:
                return await hub.wait_readable(fd, timeout_s)
            if timeout_s == inf:
                await wait_readable(self.sock)
                return True
            with trio.move_on_after(timeout_s) as scope:
                await wait_readable(self.sock)
            return not scope.cancelled_caught
        except trio.ClosedResourceError:
            raise ReadFailed(f"{self.origin}: closed") from None
        except OSError as error:  # epoll_ctl(2)
            raise failure_of(self.origin, error, ReadFailed) from error

    async def send_all(self, data: bytes, timeout_s: float) -> None:
        """Write everything; `timeout_s` bounds each wait until the socket is writable. Raises
        `ReadFailed` for a broken connection, and `WriteTimedOut`.

        When cancelled, `written` counts what has been written.
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
                raise failure_of(self.origin, error, ReadFailed) from error
            else:
                self.written += sent
                view = view[sent:]
                continue
            try:
                with trio.fail_after(timeout_s):
                    await waiting_for(self.sock)
            except trio.TooSlowError:
                raise WriteTimedOut(f"{self.origin}: took nothing for {timeout_s} s") from None
            except trio.ClosedResourceError:
                raise ReadFailed(f"{self.origin}: closed") from None
            except OSError as error:  # epoll_ctl(2)
                raise failure_of(self.origin, error, ReadFailed) from error

    def is_alive(self) -> bool:
        """Whether an idle connection can carry a request: it is open, and the server has sent
        nothing.
        """
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
        fd = self.sock.fileno()
        if fd >= 0:
            hub = current_hub()
            if hub is not None:
                hub.notify_closing(fd)
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
    """The bound on the connections of an upstream over all its origins, and the queue for them."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.max_waiting = max(_MIN_WAITING, max_connections)
        self.pools: list[ConnectionPool] = []
        self._free = trio.Semaphore(max_connections, max_value=max_connections)

    async def acquire(self, origin: Origin, deadline: float) -> None:
        """Take a slot in order of arrival. Raises `PoolFull` at once if too many wait already, and
        `PoolTimedOut` at the deadline.
        """
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            if self._free.statistics().tasks_waiting >= self.max_waiting:
                raise PoolFull(
                    f"{origin}: {self.max_waiting} requests wait for a connection already"
                ) from None
            try:
                with trio.fail_at(deadline):
                    await self._free.acquire()
            except trio.TooSlowError:
                raise self.timed_out(origin) from None

    def timed_out(self, origin: Origin) -> PoolTimedOut:
        return PoolTimedOut(
            f"{origin}: all {self.max_connections} connections are in use (max_connections)"
        )

    def release(self) -> None:
        self._free.release()

    def make_room(self) -> None:
        """Close the oldest idle connection if one more would exceed the bound. Call it with a slot
        taken, before opening a connection.
        """
        lent = self.max_connections - self._free.value
        if lent + sum(len(pool.idle) for pool in self.pools) > self.max_connections:
            oldest = min(
                (pool for pool in self.pools if pool.idle), key=lambda pool: pool.idle[0].idle_since
            )
            oldest.idle.popleft().close()


class ConnectionPool:
    """The connections of one origin."""

    def __init__(
        self,
        origin: Origin,
        slots: Slots,
        resolver: Resolver,
        ssl_context: ssl.SSLContext | None,
        tls_server_name: str | None = None,
    ) -> None:
        """`slots`: shared with the pools of the same upstream's other origins. `tls_server_name`:
        as `server_name` returns it; None: the origin's host.
        """
        self._origin = origin
        self._resolver = resolver
        self._ssl_context = ssl_context
        self._tls_server_name = (
            server_name(origin.host) if tls_server_name is None else tls_server_name
        )
        self._slots = slots
        slots.pools.append(self)
        self.idle: deque[Connection] = deque()
        """Connections that are kept, the one that has idled longest first."""
        self._lent = 0
        self._waiting = 0
        self._opened = 0
        self._reused = 0
        self._closed = False

    async def acquire(self, time: ConnectTime, *, fresh: bool = False) -> Connection:
        """Lend a kept or a new connection until `release`; with `fresh`, a new one.

        Raises `PoolFull`, `PoolTimedOut`, `DnsFailed`, `ConnectFailed`, `TlsFailed`,
        `ConnectTimedOut`, `OutOfResources`. When cancelled, it returns the slot.
        """
        self._waiting += 1
        try:
            await self._slots.acquire(self._origin, time.deadline)
        finally:
            self._waiting -= 1
        self._lent += 1
        try:
            connection = None if fresh else self._take_idle()
            if connection is None:
                self._slots.make_room()
                connection = await self._open(time)
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
        """Take a connection back, and keep it if `reusable`. Never blocks. Call it exactly once for
        each `acquire`.
        """
        self._lent -= 1
        self._slots.release()
        if reusable and not self._closed:
            connection.used = True
            connection.idle_since = trio.current_time()
            self.idle.append(connection)
        else:
            connection.close()

    def expire(self) -> None:
        """Close connections that have been idle for too long, or that the server has closed."""
        oldest = trio.current_time() - KEEPALIVE_EXPIRY_S
        kept = [item for item in self.idle if item.idle_since > oldest and item.is_alive()]
        for connection in set(self.idle).difference(kept):
            connection.close()
        self.idle = deque(kept)

    def close(self) -> None:
        """Close idle connections and keep none from now on. Those on loan stay open."""
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
        """The most recently used idle connection that is still usable."""
        oldest = trio.current_time() - KEEPALIVE_EXPIRY_S
        while self.idle:
            connection = self.idle.pop()
            if connection.idle_since > oldest and connection.is_alive():
                return connection
            connection.close()
        return None

    async def _open(self, time: ConnectTime) -> Connection:
        origin = self._origin
        left_s = time.deadline - trio.current_time()
        with trio.CancelScope(deadline=time.deadline):
            sock = await dial.connect(origin, self._resolver)
            send_probes(sock)  # the only limit of a listening stream
            if self._ssl_context is None:
                return Connection(origin, sock)
            return Connection(
                origin, await dial.start_tls(origin, sock, self._ssl_context, self._tls_server_name)
            )
        if left_s < time.timeout_s / 2:
            # Most of the time was spent in the queue, which is not the endpoint's fault.
            raise self._slots.timed_out(origin)
        raise ConnectTimedOut(f"{origin}: no connection within {time.timeout_s} s")
