"""The limit of open client connections: when it is reached, an idle connection is closed for a new
one.

A connection is idle while no complete request head has arrived since its last response. Connections
without any request so far are closed first, then those idle longest. A connection with a request is
never closed for another; if all have one, the new connection is closed. The registry is per
process, like open files. It knows no protocol and no request.
"""

from __future__ import annotations

import logging
import resource
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

__all__ = ["ClientConnections", "client_connections", "connections_by_open_files", "watch_accept"]

_OWN_FILES = 64
_SPARE_FILES = 16
_AT_ONCE = 4


def connections_by_open_files() -> int:
    """Return how many client connections the limit of open files allows: half, less a reserve for
    the process's own files. The other half is for upstream connections.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        max(1, (soft - min(_OWN_FILES, soft // 2)) // 2)
        if soft != resource.RLIM_INFINITY
        else 1 << 30
    )


class Closable(Protocol):
    """An open connection."""

    def fileno(self) -> int:
        """Return its file descriptor; negative if closed."""

    def close_idle(self) -> None:
        """Close its socket. Synchronous; raises nothing."""


class ClientConnections:
    """The open connections of a process, in the order in which they became idle."""

    def __init__(self) -> None:
        self._open: set[Closable] = set()
        self._unused: OrderedDict[Closable, None] = OrderedDict()
        self._idle: OrderedDict[Closable, None] = OrderedDict()
        self.limit = 1 << 30
        self.closed_idle = 0
        """Connections closed for others."""
        self.closed_new = 0
        """New connections closed because no other was idle."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Closable]:
        return iter(self._open)

    @property
    def has_unused(self) -> bool:
        """Whether a connection has had no request yet."""
        return bool(self._unused)

    def enter(self, connection: Closable) -> None:
        """Register a new connection. Closes another one, or this one, if there are too many."""
        while len(self._open) >= self.limit and self._close_one():
            pass
        if len(self._open) >= self.limit:
            self.closed_new += 1
            connection.close_idle()
            return
        if not self.has_room(connection.fileno()):
            self.make_room()
        self._open.add(connection)
        self._unused[connection] = None

    def has_room(self, fd: int, ahead: int = 0) -> bool:
        """Whether no idle connection must be closed for one with this descriptor; `ahead` more are
        accepted, and not registered yet.
        """
        # A new descriptor is the lowest free one: all below it are in use.
        return fd < _most_files() - _SPARE_FILES and len(self._open) + ahead < self.limit

    def set_busy(self, connection: Closable) -> None:
        """Note that the head of a request has arrived."""
        self._unused.pop(connection, None)
        self._idle.pop(connection, None)

    def set_idle(self, connection: Closable) -> None:
        """Note that its last response has ended. No effect before its first request."""
        if connection in self._open and connection not in self._unused:
            self._idle[connection] = None
            self._idle.move_to_end(connection)

    def set_unused(self, connection: Closable) -> None:
        """Note that it is idle: what arrived was not a request."""
        if connection in self._open:
            self.set_busy(connection)
            self._unused[connection] = None

    def leave(self, connection: Closable) -> None:
        """Note that it is closed."""
        self._open.discard(connection)
        self.set_busy(connection)

    def make_room(self) -> None:
        """Close some idle connections, because no file can be opened."""
        for _ in range(_AT_ONCE):
            if not self._close_one():
                return

    def _close_one(self) -> bool:
        for idle in (self._unused, self._idle):
            if idle:
                connection, _ = idle.popitem(last=False)
                self._open.discard(connection)
                self.closed_idle += 1
                connection.close_idle()
                return True
        return False


def _most_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30


client_connections = ClientConnections()
"""The registry of this process."""


class _AcceptFailed(logging.Filter):
    """Detects failed `accept`s: Trio only logs them and tries again 0.1 s later."""

    def filter(self, record: logging.LogRecord) -> bool:
        client_connections.make_room()
        return True


_listener_log = logging.getLogger("trio.serve_listeners")


def watch_accept() -> None:
    """Close idle connections when no connection can be accepted. Process-wide."""
    if not any(isinstance(item, _AcceptFailed) for item in _listener_log.filters):
        _listener_log.addFilter(_AcceptFailed())
