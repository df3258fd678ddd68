"""One origin's connections: reading, writing and closing one, and the pool that lends, keeps and
bounds them.
"""

from __future__ import annotations

import functools
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
import trio
from support.certificates import Certificates
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.errors import (
    ConnectFailed,
    ConnectTimedOut,
    PoolTimedOut,
    ReadFailed,
    Truncated,
    WriteTimedOut,
)
from proxy.upstream import Resolver, dial
from proxy.upstream.connection import Connection
from proxy.upstream.connections import KEEPALIVE_EXPIRY_S, ConnectionPool, ConnectTime, Slots
from proxy.upstream.origin import Origin

ORIGIN = Origin("http", "upstream.test", 80)
Pair = tuple[Connection, socket.socket]


@pytest.fixture(autouse=True)
async def never_hang(nursery: trio.Nursery) -> None:
    async def watch() -> None:
        await trio.sleep(10)
        raise trio.TooSlowError

    nursery.start_soon(watch)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A connection and the server's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield Connection(ORIGIN, ours), theirs


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_pair(pair: Pair, certificates: Certificates) -> Iterator[Pair]:
    """The same over TLS, after the handshake."""
    server = certificates.server.wrap_socket(
        pair[1], server_side=True, do_handshake_on_connect=False
    )
    client = certificates.client().wrap_socket(
        pair[0].sock,
        server_hostname="localhost",
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,
    )
    with client, server:
        for side in (client, server, client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
        yield Connection(ORIGIN, client), server


def change(server: socket.socket, how: str) -> None:
    """Do something at the server's end."""
    if how == "sends":
        server.send(b"x")
    elif how == "closes":
        server.close()
    elif how == "cuts":  # TCP's end without that of TLS
        socket.socket.shutdown(server, socket.SHUT_WR)
    else:
        assert isinstance(server, ssl.SSLSocket)
        with pytest.raises(ssl.SSLWantReadError):
            server.unwrap()  # sends its close_notify, and waits for ours


# One connection


async def test_reading_fills_the_buffer_from_the_given_place(pair: Pair) -> None:
    """In place and without blocking. An orderly end is 0, nothing yet is None."""
    connection, server = pair
    assert connection.receive_into(bytearray(8), 3) is None
    server.send(b"0123456789")
    buffer = bytearray(b"carried.")
    assert connection.receive_into(buffer, 5) == 3
    assert buffer == b"carri012"
    assert connection.receive_into(buffer, 0) == 7
    assert buffer == b"34567892"
    buffer.append(0)  # BufferError, if a memoryview of it were left
    assert connection.receive_into(buffer, 0) is None
    server.close()
    assert [connection.receive_into(buffer, at) for at in (0, 3)] == [0, 0]


async def test_a_broken_connection_is_a_read_failure_that_names_the_origin(pair: Pair) -> None:
    """Also when writing, because the answer may have arrived."""
    connection, server = pair
    connection.sock.send(b"unread")
    server.close()  # with bytes unread: a reset
    assert not connection.is_alive()
    with pytest.raises(ReadFailed, match=r"http://upstream\.test:80: Broken pipe"):
        await connection.send_all(b"x", math.inf)
    assert connection.written == 0


async def test_over_tls_the_rest_of_a_record_is_pending(tls_pair: Pair) -> None:
    """The socket's readiness does not show it, so that waiting returns at once."""
    connection, server = tls_pair
    assert not connection.pending
    assert connection.receive_into(bytearray(8), 0) is None
    server.send(b"0123456789")
    await connection.wait_readable()
    buffer = bytearray(8)
    assert connection.receive_into(buffer, 4) == 4
    assert buffer == b"\0\0\0\x000123"
    assert connection.pending
    await connection.wait_readable()
    assert connection.receive_into(buffer, 0) == 6
    assert not connection.pending


async def test_over_tls_only_close_notify_is_an_end(
    tls_pair: Pair, certificates: Certificates
) -> None:
    connection, server = tls_pair
    change(server, "sends")
    change(server, "ends")
    assert [connection.receive_into(bytearray(8), 0) for _ in range(2)] == [1, 0]
    change(server, "cuts")


async def test_over_tls_an_end_without_close_notify_is_a_truncation(tls_pair: Pair) -> None:
    connection, server = tls_pair
    change(server, "sends")
    change(server, "cuts")
    assert connection.receive_into(bytearray(8), 0) == 1
    with pytest.raises(Truncated, match="close_notify"):
        connection.receive_into(bytearray(8), 0)


async def test_closing_wakes_every_waiter(pair: Pair) -> None:
    """A reader and a writer in other tasks; closing again does nothing."""
    connection, _ = pair
    failed = 0

    async def fail(waiting: Callable[[], Awaitable[None]]) -> None:
        nonlocal failed
        with pytest.raises(ReadFailed):
            await waiting()
        failed += 1

    async with trio.open_nursery() as waiters:
        waiters.start_soon(fail, connection.wait_readable)
        waiters.start_soon(
            fail, functools.partial(connection.send_all, b"x" * 10_000_000, math.inf)
        )
        await wait_all_tasks_blocked()
        connection.close()
        connection.close()
    assert failed == 2


async def test_writing_sends_everything_and_counts_it(pair: Pair) -> None:
    """Through many waits for room."""
    connection, server = pair
    data, received = bytes(range(256)) * 8000, bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.send_all, data, 5)
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(server)
            received += server.recv(60_000)
    assert received == data
    assert connection.written == len(data)


async def test_a_write_that_finds_no_room_in_time_fails(pair: Pair) -> None:
    """`written` counts what was sent, also when a write is cancelled."""
    connection, server = pair
    with pytest.raises(WriteTimedOut, match=r"took nothing for 0\.03 s"):
        await connection.send_all(b"x" * 10_000_000, 0.03)
    arrived = len(server.recv(10_000_000))
    with trio.move_on_after(0.03) as scope:
        await connection.send_all(b"x" * 10_000_000, math.inf)
    assert scope.cancelled_caught
    with suppress(BlockingIOError):
        while True:
            arrived += len(server.recv(1_000_000))
    assert connection.written == arrived > 0


@pytest.mark.parametrize(
    ("tls", "how"),
    [
        *((False, "sends"), (False, "closes")),
        *((True, "sends"), (True, "cuts"), (True, "ends")),
    ],
)
async def test_a_connection_is_alive_until_its_server_ends_it_or_sends(
    request: pytest.FixtureRequest, tls: bool, how: str
) -> None:
    """Session tickets of TLS that wait to be read do not count."""
    connection, server = request.getfixturevalue("tls_pair" if tls else "pair")
    assert connection.is_alive()
    assert connection.is_alive()
    change(server, how)
    assert not connection.is_alive()


# The pool


MakePool = Callable[[int], ConnectionPool]


@pytest.fixture
async def listener() -> AsyncIterator[trio.SocketListener]:
    """A server that accepts (in its backlog) and sends nothing."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener


@pytest.fixture
def make_pool(listener: trio.SocketListener) -> Iterator[MakePool]:
    made: list[ConnectionPool] = []

    def make(max_connections: int) -> ConnectionPool:
        origin = Origin("http", "127.0.0.1", listener.socket.getsockname()[1])
        made.append(ConnectionPool(origin, Slots(max_connections), Resolver(), None))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


async def acquire(
    pool: ConnectionPool, seconds: float = math.inf, *, fresh: bool = False
) -> Connection:
    return await pool.acquire(ConnectTime(seconds), fresh=fresh)


def counts(pool: ConnectionPool) -> tuple[int, int, int, int, int]:
    """Connections on loan, idle, waited for, opened, reused."""
    state = pool.state()
    return state.lent, state.idle, state.waiting, state.opened, state.reused


async def test_a_released_connection_is_lent_again(make_pool: MakePool) -> None:
    """The most recently used first. One that is not reusable is closed, and so is one that comes
    back to a closed pool.
    """
    pool = make_pool(10)
    first, second, third = [await acquire(pool) for _ in range(3)]
    assert not first.used
    await first.send_all(b"hello", math.inf)
    assert first.written == 5
    for connection in (first, second):
        pool.release(connection, reusable=True)
    assert counts(pool) == (1, 2, 0, 3, 0)
    assert await acquire(pool) is second
    assert await acquire(pool) is first
    assert (first.used, first.written) == (True, 0)
    pool.release(first, reusable=False)
    assert first.sock.fileno() == -1
    pool.release(second, reusable=True)
    pool.close()
    pool.release(third, reusable=True)
    assert (second.sock.fileno(), third.sock.fileno()) == (-1, -1)
    assert counts(pool) == (0, 0, 0, 3, 2)


async def test_lent_and_idle_together_stay_within_the_bound(make_pool: MakePool) -> None:
    """A fresh connection takes the place of the one that has idled the longest."""
    pool = make_pool(2)
    first, second = await acquire(pool), await acquire(pool)
    pool.release(first, reusable=True)
    pool.release(second, reusable=True)
    fresh = await acquire(pool, fresh=True)
    assert first.sock.fileno() == -1
    assert counts(pool)[:2] == (1, 1)
    assert await acquire(pool) is second
    with pytest.raises(PoolTimedOut, match="max_connections"):
        await acquire(pool, 0.02)
    pool.release(second, reusable=False)
    last = await acquire(pool, 1)
    assert counts(pool) == (2, 0, 0, 4, 1)
    for connection in (fresh, last):
        pool.release(connection, reusable=False)


@pytest.mark.parametrize("reusable", [True, False])
async def test_waiters_are_served_in_their_order_and_one_for_each_release(
    make_pool: MakePool, reusable: bool
) -> None:
    pool = make_pool(1)
    held = await acquire(pool)
    served: list[int] = []

    async def wait(number: int) -> None:
        connection = await acquire(pool)
        served.append(number)
        assert pool.state().lent == 1
        pool.release(connection, reusable=reusable)

    async with trio.open_nursery() as waiters:
        for number in range(5):
            waiters.start_soon(wait, number)
            await wait_all_tasks_blocked()
        assert (pool.state().waiting, served) == (5, [])
        pool.release(held, reusable=reusable)
    assert served == [0, 1, 2, 3, 4]
    assert counts(pool)[:4] == (0, int(reusable), 0, 1 if reusable else 6)


@pytest.mark.parametrize("released", ["before", "after", "later"])
async def test_a_cancelled_waiter_takes_no_slot(make_pool: MakePool, released: str) -> None:
    """Nor when a connection comes back in the same moment as the cancellation."""
    pool = make_pool(1)
    held = await acquire(pool)
    async with trio.open_nursery() as waiters:

        async def wait() -> None:
            pool.release(await acquire(pool), reusable=True)

        waiters.start_soon(wait)
        await wait_all_tasks_blocked()
        if released == "before":
            pool.release(held, reusable=True)
        waiters.cancel_scope.cancel()
        if released == "after":
            pool.release(held, reusable=True)
    if released == "later":
        pool.release(held, reusable=True)
    assert counts(pool)[:3] == (0, 1, 0)


async def test_a_failed_attempt_gives_its_slot_back() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        origin = Origin("http", "127.0.0.1", bound.getsockname()[1])
        pool = ConnectionPool(origin, Slots(1), Resolver(), None)
        for _ in range(3):
            with pytest.raises(ConnectFailed, match="Connection refused"):
                await acquire(pool, 1)
        assert counts(pool) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("how", ["expire", "acquire"])
async def test_what_idled_too_long_or_ended_is_closed_and_the_rest_kept(
    make_pool: MakePool, listener: trio.SocketListener, how: str
) -> None:
    """Servers close theirs after about the same time: a request would race that."""
    pool = make_pool(5)
    good, old, ended, lent = [await acquire(pool) for _ in range(4)]
    streams = [await listener.accept() for _ in range(4)]
    for connection in (good, old, ended):
        pool.release(connection, reusable=True)
    old.idle_since -= KEEPALIVE_EXPIRY_S + 1
    for stream in streams:
        if stream.socket.getpeername() == ended.sock.getsockname():
            await stream.aclose()
    await trio.lowlevel.wait_readable(ended.sock)
    if how == "expire":
        pool.expire()
        assert counts(pool)[:2] == (1, 1)
    assert await acquire(pool) is good
    assert [item.sock.fileno() >= 0 for item in (good, old, ended, lent)] == [
        *(True, False, False, True)
    ]
    assert counts(pool) == (2, 0, 0, 4, 1)
    for closing in (good, lent, *(stream.socket for stream in streams)):
        closing.close()


# One deadline


@pytest.fixture
def pool() -> ConnectionPool:
    return ConnectionPool(ORIGIN, Slots(1), Resolver(), None)


def connecting_takes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """In Trio's time."""

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        await trio.sleep(seconds)
        return socket.socket()

    monkeypatch.setattr(dial, "connect", connect)


@pytest.mark.parametrize(
    ("busy_s", "kind"),
    [(0.9, PoolTimedOut), (0.1, ConnectTimedOut), (0.0, ConnectTimedOut), (5.0, PoolTimedOut)],
)
async def test_waiting_and_connecting_have_one_deadline(
    pool: ConnectionPool,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    busy_s: float,
    kind: type[Exception],
) -> None:
    """If most of the time was spent in the queue, it is not the endpoint's fault."""
    connecting_takes(monkeypatch, 0)
    held = await acquire(pool)
    connecting_takes(monkeypatch, math.inf)
    began = trio.current_time()

    async def give_back() -> None:
        await trio.sleep(busy_s)
        pool.release(held, reusable=False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_back)
        await wait_all_tasks_blocked()
        with pytest.raises(kind):
            await acquire(pool, 1)
        assert trio.current_time() - began == pytest.approx(1)
    assert counts(pool)[:3] == (0, 0, 0)


async def test_a_second_connection_has_what_is_left_of_the_time(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """When a kept connection was dead."""
    connecting_takes(monkeypatch, 0.6)
    began = trio.current_time()
    time = ConnectTime(1)
    pool.release(await pool.acquire(time), reusable=False)
    with pytest.raises(PoolTimedOut):
        await pool.acquire(time, fresh=True)
    assert trio.current_time() - began == pytest.approx(1)
