"""The bound of open client connections: when it is reached, an idle connection is closed for a new
one.

A connection is idle while no complete request head has arrived on it since its last response.
Connections that have never had a request are closed first, then those that have been idle longest.
One with a request under way is never closed for another; if all are such, the new one is closed.
The registry is of the process, as its open files are. It knows no protocol and no request.
"""

from __future__ import annotations

import logging
import resource
from collections import OrderedDict
from typing import Protocol

__all__ = ["ClientConnections", "client_connections", "connections_by_open_files", "watch_accept"]

_OWN_FILES = 64
_SPARE_FILES = 16
_AT_ONCE = 4


def connections_by_open_files() -> int:
    """How many client connections the limit of open files allows: half of it, less a reserve for
    files of the process itself.

    The other half is for connections to upstreams.
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
        """Its file descriptor; negative when it is closed."""

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
        """How many connections were closed for others."""
        self.closed_new = 0
        """How many new connections were closed because no other was idle."""

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: Closable) -> None:
        """A client has connected. Closes another connection, or this one, when there are too many."""
        while len(self._open) >= self.limit and self._close_one():
            pass
        if len(self._open) >= self.limit:
            self.closed_new += 1
            connection.close_idle()
            return
        if (
            connection.fileno() >= _most_files() - _SPARE_FILES
        ):  # the lowest free one: the others are all in use
            self.make_room()
        self._open.add(connection)
        self._unused[connection] = None

    def set_busy(self, connection: Closable) -> None:
        """The head of a request has arrived."""
        self._unused.pop(connection, None)
        self._idle.pop(connection, None)

    def set_idle(self, connection: Closable) -> None:
        """Its last response has ended. No effect before its first request."""
        if connection in self._open and connection not in self._unused:
            self._idle[connection] = None
            self._idle.move_to_end(connection)

    def set_unused(self, connection: Closable) -> None:
        """It is idle, and what arrived was not a request after all."""
        if connection in self._open:
            self.set_busy(connection)
            self._unused[connection] = None

    def leave(self, connection: Closable) -> None:
        """It is closed."""
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
"""Of this process."""


class _AcceptFailed(logging.Filter):
    """Trio reports in its log only that no connection could be accepted; it tries again 0.1 s
    later.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        client_connections.make_room()
        return True


_listener_log = logging.getLogger("trio.serve_listeners")


def watch_accept() -> None:
    """Close idle connections when no connection can be accepted. Process-wide."""
    if not any(isinstance(item, _AcceptFailed) for item in _listener_log.filters):
        _listener_log.addFilter(_AcceptFailed())
