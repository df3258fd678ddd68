"""The bound of open client connections: which one is closed for a new one. What a client sees of it:
`tests/integration/test_client_bound.py`.
"""

from __future__ import annotations

import pytest

from proxy.downstream.bound import ClientConnections, connections_by_open_files


class Client:
    """A connection."""

    def __init__(self, fd: int = 10) -> None:
        self.open = True
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def close_idle(self) -> None:
        self.open = False


def some(connections: ClientConnections, count: int, fd: int = 10) -> list[Client]:
    clients = [Client(fd) for _ in range(count)]
    for client in clients:
        connections.enter(client)
    return clients


def test_the_connection_idle_longest_is_closed_and_those_without_a_request_first() -> None:
    """Idle since the last response, not since it was opened."""
    connections = ClientConnections()
    connections.limit = 3
    first, second, third = some(connections, 3)
    for client in (third, first, second):
        connections.set_busy(client)
        connections.set_idle(client)
    silent = some(connections, 60)
    assert [client.open for client in (first, second, third)] == [True, True, False]
    assert [client.open for client in silent] == [False] * 59 + [True]
    assert (len(connections), connections.closed_idle) == (3, 60)


def test_a_request_under_way_is_never_closed() -> None:
    """When every connection has one, the new one is closed. One that ends makes room."""
    connections = ClientConnections()
    connections.limit = 2
    live = some(connections, 2)
    for client in live:
        connections.set_busy(client)
    (new,) = some(connections, 1)
    assert [client.open for client in (*live, new)] == [True, True, False]
    assert (len(connections), connections.closed_new) == (2, 1)
    connections.leave(new)
    connections.leave(live[0])
    (next_one,) = some(connections, 1)
    connections.set_idle(new)  # a task that ends late
    assert (next_one.open, len(connections), len(connections._idle)) == (True, 2, 0)


@pytest.mark.parametrize("files", [16, 64, 256, 1024, 65536, 1 << 20])
def test_the_limit_follows_the_open_files(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """As many files remain for upstreams, and a reserve for the process. A descriptor near the limit
    shows that all lower ones are in use.
    """
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert connections_by_open_files() * 2 + min(64, files // 2) <= files
    assert connections_by_open_files() >= files // 4
    connections = ClientConnections()
    clients = some(connections, 10, fd=-1)
    some(connections, 1, fd=files - 6)
    assert sum(client.open for client in clients) < 10
