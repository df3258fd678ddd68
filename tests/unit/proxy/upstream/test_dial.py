"""From an origin to a socket: several addresses as in RFC 8305, no socket left open, and the right
failure.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from proxy.errors import ConnectFailed, OutOfResources, ReadFailed, TlsFailed
from proxy.upstream import Resolver, dial
from proxy.upstream import failures as failures_module
from proxy.upstream.dial import ATTEMPT_DELAY_S, connect
from proxy.upstream.failures import failure_of
from proxy.upstream.origin import Origin
from proxy.upstream.resolver import Address

NAMED = Origin("http", "up.test", 80)
DELAY = ATTEMPT_DELAY_S
LATE = 0.2
"""An attempt that takes this long is connected although it is cancelled."""


class Known(Resolver):
    """Every name has these addresses."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self.addresses = tuple(
            Address(socket.AF_INET6 if ":" in host else socket.AF_INET, host) for host in hosts
        )

    async def resolve(self, origin: Origin) -> tuple[Address, ...]:
        return self.addresses


class Attempts:
    """Scripted attempts in Trio's time: seconds until an address is connected, or an errno."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[tuple[float, str]] = []
        self.sockets: list[socket.socket] = []
        self.script: dict[str, float | int] = {}
        monkeypatch.setattr(dial, "_attempt", self._attempt)

    async def connect(self, script: dict[str, float | int]) -> socket.socket:
        self.script = script
        self.began = trio.current_time()
        return await connect(NAMED, Known(*script))

    async def _attempt(self, address: Address, port: int) -> Any:
        self.begun.append((round(trio.current_time() - self.began, 6), address.host))
        how = self.script[address.host]
        if isinstance(how, int):
            return dial._failed(how, address, port)
        with trio.CancelScope(shield=how == LATE):
            await trio.sleep(how)
        self.sockets.append(socket.socket(address.family))
        return self.sockets[-1]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    return Attempts(monkeypatch)


@pytest.mark.parametrize(
    ("hosts", "order"),
    [
        ("::1 ::2 ::3 1.1.1.1 2.2.2.2", "::1 1.1.1.1 ::2 2.2.2.2 ::3"),
        ("1.1.1.1 ::1 2.2.2.2 3.3.3.3", "1.1.1.1 ::1 2.2.2.2 3.3.3.3"),
        ("::1", "::1"),
    ],
)
def test_the_families_alternate(hosts: str, order: str) -> None:
    """RFC 8305, section 4; the system's first address decides which is first."""
    assert [item.host for item in dial._in_turn(Known(*hosts.split()).addresses)] == order.split()


@pytest.mark.parametrize(
    ("script", "begun", "took"),
    [
        # A dead address costs a quarter of a second, a refused one nothing.
        ({"::1": math.inf, "::2": math.inf, "1.1": 0.1}, [(0, "::1"), (DELAY, "1.1")], DELAY + 0.1),
        ({"::1": errno.ECONNREFUSED, "1.1": 0.0}, [(0, "::1"), (0, "1.1")], 0),
        # The first one continues while the second is tried.
        ({"::1": DELAY + 0.1, "1.1": 5.0}, [(0, "::1"), (DELAY, "1.1")], DELAY + 0.1),
        # Both are connected: the second one is closed.
        ({"::1": DELAY + 0.1, "1.1": LATE}, [(0, "::1"), (DELAY, "1.1")], DELAY + LATE),
    ],
)
async def test_the_first_connection_wins(
    attempts: Attempts,
    autojump_clock: MockClock,
    script: dict[str, float | int],
    begun: list[tuple[float, str]],
    took: float,
) -> None:
    sock = await attempts.connect(script)
    assert attempts.begun == begun
    assert trio.current_time() - attempts.began == pytest.approx(took)
    assert [item for item in attempts.sockets if item.fileno() >= 0] == [sock]
    sock.close()


@pytest.mark.parametrize(
    ("deadline", "script"),
    [
        (0.1, {"::1": 1.0, "1.1": math.inf}),
        (1.0, {"::1": 1.0, "1.1": math.inf}),
        (0.4, {"::1": 0.3, "1.1": LATE}),  # the first is connected, and the second is awaited
    ],
)
async def test_cancelled_it_leaves_no_socket_open(
    attempts: Attempts, autojump_clock: MockClock, deadline: float, script: dict[str, float | int]
) -> None:
    with trio.move_on_after(deadline):
        (await attempts.connect(script)).close()
    assert all(item.fileno() == -1 for item in attempts.sockets)


@pytest.mark.parametrize(
    ("number", "failure", "text"),
    [
        (errno.ENETUNREACH, ConnectFailed, "Network is unreachable; Connection refused"),
        (errno.EMFILE, OutOfResources, "Too many open files; Connection refused"),
    ],
)
async def test_when_all_fail_each_reason_is_reported_once(
    attempts: Attempts, number: int, failure: type[Exception], text: str
) -> None:
    """If this machine lacked resources for one, it might have been connected."""
    refused = errno.ECONNREFUSED
    with pytest.raises(failure, match=rf"^http://up\.test:80: {text}$"):
        await attempts.connect({"::1": number, "1.1": refused, "2.2": refused})


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock.getsockname()[1]


async def test_a_name_with_a_refused_address_is_connected_to(listener: int) -> None:
    """`localhost` is ::1 and 127.0.0.1 on most machines, and many servers listen on one of them."""
    with await connect(Origin("http", "localhost", listener), Known("::1", "127.0.0.1")) as sock:
        assert sock.getpeername() == ("127.0.0.1", listener)
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["127.0.0.1", "up.test"])
@pytest.mark.parametrize(
    ("number", "has_address", "failure"),
    [
        (errno.EMFILE, True, OutOfResources),
        (errno.ENFILE, True, OutOfResources),
        (errno.ENOBUFS, True, OutOfResources),
        (errno.ENOMEM, True, OutOfResources),
        (errno.EADDRNOTAVAIL, True, OutOfResources),
        # Without IPv6, ::1 fails as on a machine without a free port.
        (errno.EADDRNOTAVAIL, False, ConnectFailed),
    ],
)
async def test_a_limit_of_the_proxy_is_distinguished_from_a_fault_of_the_endpoint(
    monkeypatch: pytest.MonkeyPatch,
    listener: int,
    host: str,
    number: int,
    has_address: bool,
    failure: type[Exception],
) -> None:
    """From socket() and from connect(), for an address and for a name."""

    class Socket(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, *rest: Any, **kwargs: Any) -> None:
            if kind == socket.SOCK_STREAM and number in (errno.EMFILE, errno.ENFILE):
                raise OSError(number, os.strerror(number))
            super().__init__(family, kind, *rest, **kwargs)

        def connect_ex(self, address: Any) -> int:
            return number

        def connect(self, address: Any) -> None:
            if not has_address:
                raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(failure, match=os.strerror(number)):
        await connect(Origin("http", host, listener), Known("127.0.0.1"))


def test_a_broken_connection_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL reads the system's authorities from files during the handshake."""
    assert type(failure_of(NAMED, OSError(errno.ECONNRESET, "x"), ReadFailed)) is ReadFailed
    for number in (errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC):
        assert type(failure_of(NAMED, OSError(number, "x"), ReadFailed)) is OutOfResources
    eof = ssl.SSLEOFError(8, "x")
    eof.reason = "UNEXPECTED_EOF"
    unverified = ssl.SSLCertVerificationError(1, "certificate verify failed")
    unverified.verify_message = "unable to get local issuer certificate"
    for error in (eof, unverified):
        assert type(failure_of(NAMED, error, TlsFailed)) is TlsFailed
    monkeypatch.setattr(failures_module, "has_spare_descriptors", lambda: False)
    assert type(failure_of(NAMED, unverified, TlsFailed)) is OutOfResources
