"""From an origin to a socket: several addresses as in RFC 8305, no socket left open, and the right
failure.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator, Sequence
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

V4, V6 = socket.AF_INET, socket.AF_INET6
NAMED = Origin("http", "up.test", 80)


class Known(Resolver):
    """Every name has these addresses."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self.addresses = tuple(Address(V6 if ":" in host else V4, host) for host in hosts)

    async def resolve(self, origin: Origin) -> tuple[Address, ...]:
        return self.addresses


class Attempts:
    """Scripted attempts, in Trio's time: seconds until one is connected, or an errno at once, by
    address; `inf` for never.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **script: float | int) -> None:
        self.script = {
            name.replace("_", ":").replace("o", "."): value for name, value in script.items()
        }
        self.begun: list[tuple[float, str]] = []
        self.sockets: dict[str, socket.socket] = {}
        monkeypatch.setattr(dial, "_attempt", self.attempt)

    async def attempt(self, address: Address, port: int) -> Any:
        self.begun.append((round(trio.current_time(), 6), address.host))
        how = self.script[address.host]
        if isinstance(how, int):
            return dial._failed(how, address, port)
        await trio.sleep(how)
        self.sockets[address.host] = sock = socket.socket(address.family)
        return sock


def test_the_families_alternate() -> None:
    """RFC 8305, section 4; the first family is the one that the system put first."""

    def order(hosts: Sequence[str]) -> list[str]:
        return [item.host for item in dial._in_turn(Known(*hosts).addresses)]

    assert order(["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"]) == [
        "::1",
        "1.1.1.1",
        "::2",
        "2.2.2.2",
        "::3",
    ]
    assert order(["1.1.1.1", "::1", "2.2.2.2", "3.3.3.3"]) == [
        "1.1.1.1",
        "::1",
        "2.2.2.2",
        "3.3.3.3",
    ]
    assert order(["::1"]) == ["::1"]


async def test_a_dead_address_costs_a_fraction_of_a_second(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Two addresses that never answer, then one that does: each attempt begins a quarter of a
    second after the one before.
    """
    attempts = Attempts(monkeypatch, __1=float("inf"), __2=float("inf"), **{"1o1o1o1": 0.1})
    began = trio.current_time()
    sock = await connect(NAMED, Known("::1", "1.1.1.1", "::2"))
    assert sock is attempts.sockets["1.1.1.1"]
    sock.close()
    assert attempts.begun == [
        (round(began, 6), "::1"),
        (round(began + ATTEMPT_DELAY_S, 6), "1.1.1.1"),
    ]
    assert round(trio.current_time() - began, 6) == ATTEMPT_DELAY_S + 0.1


async def test_a_refused_address_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    Attempts(monkeypatch, __1=errno.ECONNREFUSED, **{"1o1o1o1": 0.0})
    began = trio.current_time()
    (await connect(NAMED, Known("::1", "1.1.1.1"))).close()
    assert trio.current_time() == began


async def test_a_slow_first_address_may_still_win(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """It continues while the second is tried; and of two that are connected at once, one is closed."""
    attempts = Attempts(monkeypatch, __1=ATTEMPT_DELAY_S + 0.1, **{"1o1o1o1": 5.0})
    (await connect(NAMED, Known("::1", "1.1.1.1"))).close()
    assert list(attempts.sockets) == ["::1"]
    attempts = Attempts(monkeypatch, __1=ATTEMPT_DELAY_S, **{"1o1o1o1": 0.0})
    sock = await connect(NAMED, Known("::1", "1.1.1.1"))
    assert [item.fileno() for item in attempts.sockets.values() if item is not sock] in ([], [-1])
    sock.close()


async def test_cancelled_it_leaves_no_socket_open(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Before any is connected, and in the moment when one is."""
    for deadline in (0.1, 1.0):
        attempts = Attempts(monkeypatch, __1=1.0, **{"1o1o1o1": float("inf")})
        with trio.move_on_after(deadline):
            (await connect(NAMED, Known("::1", "1.1.1.1"))).close()
        assert all(item.fileno() == -1 for item in attempts.sockets.values())


async def test_when_all_fail_each_reason_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Attempts(
        monkeypatch,
        __1=errno.ENETUNREACH,
        **{"1o1o1o1": errno.ECONNREFUSED, "2o2o2o2": errno.ECONNREFUSED},
    )
    with pytest.raises(
        ConnectFailed, match=r"^http://up\.test:80: Network is unreachable; Connection refused$"
    ):
        await connect(NAMED, Known("::1", "1.1.1.1", "2.2.2.2"))


async def test_when_one_fails_for_want_of_resources_it_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It might have been connected."""
    Attempts(monkeypatch, __1=errno.EMFILE, **{"1o1o1o1": errno.ECONNREFUSED})
    with pytest.raises(OutOfResources, match="Too many open files; Connection refused"):
        await connect(NAMED, Known("::1", "1.1.1.1"))


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


async def test_a_real_name_with_a_refused_address_is_connected_to(listener: int) -> None:
    """`localhost` is ::1 and 127.0.0.1 on most machines, and many servers listen on one of them."""
    sock = await connect(Origin("http", "localhost", listener), Known("::1", "127.0.0.1"))
    assert sock.getpeername() == ("127.0.0.1", listener)
    assert not sock.getblocking()
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    sock.close()


@pytest.mark.parametrize("named", [False, True], ids=["address", "name"])
@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]
)
async def test_a_limit_of_the_proxy_is_distinguished_from_a_fault_of_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, listener: int, number: int, named: bool
) -> None:
    """From socket() and from connect(), for an address and for a name."""
    origin = Origin("http", "up.test" if named else "127.0.0.1", listener)

    class Socket(socket.socket):
        def __init__(self, family: int = -1, kind: int = -1, *rest: Any, **kwargs: Any) -> None:
            if kind == socket.SOCK_STREAM and number in (errno.EMFILE, errno.ENFILE):
                raise OSError(number, os.strerror(number))
            super().__init__(family, kind, *rest, **kwargs)

        def connect_ex(self, address: Any) -> int:
            return number

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(OutOfResources, match=os.strerror(number)) as caught:
        await connect(origin, Known("127.0.0.1"))
    assert (caught.value.status, caught.value.kind, caught.value.retry_after_s) == (
        503,
        "out_of_resources",
        1,
    )


async def test_an_address_of_a_family_that_this_machine_lacks_is_the_endpoints(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without IPv6, ::1 fails with the error of a machine without a free port: a UDP socket
    distinguishes the two.
    """

    class Socket(socket.socket):
        def connect_ex(self, address: Any) -> int:
            return errno.EADDRNOTAVAIL

        def connect(self, address: Any) -> None:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(ConnectFailed):
        await connect(Origin("http", "127.0.0.1", 9), Resolver())


def test_a_broken_connection_is_the_endpoints_and_missing_memory_is_ours() -> None:
    origin = Origin("https", "127.0.0.1", 9)
    assert type(failure_of(origin, OSError(errno.ECONNRESET, "x"), ReadFailed)) is ReadFailed
    for number in (errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC):
        assert type(failure_of(origin, OSError(number, "x"), ReadFailed)) is OutOfResources
    eof = ssl.SSLEOFError(8, "x")
    eof.reason = "UNEXPECTED_EOF"
    assert type(failure_of(origin, eof, TlsFailed)) is TlsFailed


def test_a_certificate_that_could_not_be_verified_without_a_descriptor_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenSSL reads the system's authorities from files, during the handshake."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "unable to get local issuer certificate"
    assert type(failure_of(NAMED, error, TlsFailed)) is TlsFailed
    monkeypatch.setattr(failures_module, "has_spare_descriptors", lambda: False)
    assert type(failure_of(NAMED, error, TlsFailed)) is OutOfResources
