"""Connections to the origins of one upstream: opened, kept alive, checked before reuse and bounded.

A `ConnectionPool` lends those of one origin; all pools of an upstream share its `Slots`, which bound
the open connections, idle ones included. Invariants, also under cancellation:

- slots in use == connections lent, and each comes back through `release`, which never blocks;
- a connection is opened only if its origin has no idle one, or if a new one is requested; an idle
  connection is closed to make room, so that lent + idle never exceeds `max_connections`;
- at most `Slots.max_waiting` requests wait for a slot, and none longer than its connect deadline;
- only the task that has a connection on loan reads, writes or closes it;
- an idle connection is closed at once when its server closes it, or sends something.

It knows no HTTP, and no name resolution: `dial` opens the sockets.
"""

from __future__ import annotations

import ssl
from collections import deque
from dataclasses import dataclass

import trio

from ..errors import ConnectTimedOut, PoolFull, PoolTimedOut
from ..hub import current_time
from ..keepalive import send_probes
from . import dial
from .connection import Connection
from .origin import Origin, server_name
from .resolver import Resolver

__all__ = [
    "KEEPALIVE_EXPIRY_S",
    "ConnectTime",
    "ConnectionPool",
    "PoolState",
    "Slots",
]

KEEPALIVE_EXPIRY_S = 60.0
"""An idle connection is closed after this time; most servers keep theirs for 60 to 75 s."""

_MIN_WAITING = 64  # for an upstream with few connections, such as a model that serves two at a time


class ConnectTime:
    """The deadline, from now, for a usable connection: queue, look-up, TCP and TLS together."""

    __slots__ = ("deadline", "timeout_s")

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.deadline = current_time() + self.timeout_s


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
        self.free = trio.Semaphore(max_connections, max_value=max_connections)

    async def acquire(self, origin: Origin, deadline: float) -> None:
        """Take a slot in order of arrival. Raises `PoolFull` at once if too many wait already, and
        `PoolTimedOut` at the deadline.
        """
        try:
            self.free.acquire_nowait()
        except trio.WouldBlock:
            await self._wait(origin, deadline)

    async def _wait(self, origin: Origin, deadline: float) -> None:
        if self.free.statistics().tasks_waiting >= self.max_waiting:
            raise PoolFull(f"{origin}: {self.max_waiting} requests wait for a connection already")
        try:
            with trio.fail_at(deadline):
                await self.free.acquire()
        except trio.TooSlowError:
            raise self.timed_out(origin) from None

    def timed_out(self, origin: Origin) -> PoolTimedOut:
        return PoolTimedOut(
            f"{origin}: all {self.max_connections} connections are in use (max_connections)"
        )

    def release(self) -> None:
        self.free.release()

    def make_room(self) -> None:
        """Close the oldest idle connection if one more would exceed the bound. Call it with a slot
        taken, before opening a connection.
        """
        lent = self.max_connections - self.free.value
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

    def lend_kept(self) -> Connection | None:
        """Lend a kept connection until `release`, if there is one and a slot is free."""
        if not self.idle:
            return None
        try:
            self._slots.free.acquire_nowait()
        except trio.WouldBlock:
            return None
        connection = self._take_idle()
        if connection is None:
            self._slots.release()
            return None
        self._lent += 1
        self._reused += 1
        return connection

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
            connection.idle_since = current_time()
            connection.on_event = self._check
            self.idle.append(connection)
        else:
            connection.close()

    def _check(self, connection: Connection) -> None:
        if not connection.is_alive():
            self.idle.remove(connection)
            connection.close()

    def expire(self) -> None:
        """Close connections that have been idle for too long, or that the server has closed."""
        oldest = current_time() - KEEPALIVE_EXPIRY_S
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
        oldest = current_time() - KEEPALIVE_EXPIRY_S
        while self.idle:
            connection = self.idle.pop()
            connection.on_event = None
            if connection.idle_since > oldest and connection.is_alive():
                connection.written = 0
                return connection
            connection.close()
        return None

    async def _open(self, time: ConnectTime) -> Connection:
        origin = self._origin
        left_s = time.deadline - current_time()
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
