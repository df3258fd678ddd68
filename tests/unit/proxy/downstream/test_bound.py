"""The bound of open client connections: which one is closed for a new one."""

from __future__ import annotations

import pytest

from proxy.downstream.hypercorn.bound import ClientConnections, connections_by_open_files


class Client:
    """A connection; the registry's owner decides what happens on it."""

    def __init__(self, name: str, fd: int = 10) -> None:
        self.name = name
        self.open = True
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def close_idle(self) -> None:
        self.open = False


def some(connections: ClientConnections, count: int) -> list[Client]:
    clients = [Client(str(number)) for number in range(count)]
    for client in clients:
        connections.enter(client)
    return clients


def ask(connections: ClientConnections, client: Client) -> None:
    connections.set_busy(client)
    connections.set_idle(client)


def test_the_connection_idle_longest_is_closed() -> None:
    """Idle since the last response, not since it was opened."""
    connections = ClientConnections()
    connections.limit = 3
    first, second, third = some(connections, 3)
    for client in (third, first, second):
        ask(connections, client)
    some(connections, 1)
    assert [client.open for client in (first, second, third)] == [True, True, False]
    assert (len(connections), connections.closed_idle) == (3, 1)


def test_connections_without_a_request_go_first() -> None:
    """A client that opens connections and sends nothing closes its own."""
    connections = ClientConnections()
    connections.limit = 3
    (kept,) = some(connections, 1)
    ask(connections, kept)
    silent = some(connections, 60)
    assert kept.open
    assert [client.open for client in silent] == [False] * 58 + [True] * 2


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
    assert next_one.open
    connections.set_idle(new)  # a task that ends late
    assert len(connections) == 2


def test_the_last_open_files_are_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor near the limit shows that all lower ones are in use."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 256))
    connections = ClientConnections()
    clients = some(connections, 10)
    connections.enter(Client("high", fd=250))
    assert sum(client.open for client in clients) < 10


@pytest.mark.parametrize("files", [16, 64, 256, 1024, 65536, 1 << 20])
def test_the_limit_follows_the_open_files(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    """As many files remain for upstreams, and a reserve for the process."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (files, files))
    assert connections_by_open_files() * 2 + min(64, files // 2) <= files
    assert connections_by_open_files() >= files // 4
