"""One origin's connections: reading, writing and closing one, and the pool that lends, keeps,
bounds and loses none.
"""

from __future__ import annotations

import functools
import math
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock

from proxy.errors import (
    ConnectFailed,
    ConnectTimedOut,
    PoolTimedOut,
    ReadFailed,
    Truncated,
    WriteTimedOut,
)
from proxy.upstream import Resolver, dial
from proxy.upstream.connections import (
    KEEPALIVE_EXPIRY_S,
    Connection,
    ConnectionPool,
    ConnectTime,
    Origin,
    Slots,
)

ORIGIN = Origin("http", "upstream.test", 80)


def bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """No test hangs."""

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(10):
            await test(*args, **kwargs)

    return run


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection and the server's end of it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield Connection(ORIGIN, ours), theirs
    ours.close()
    theirs.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_pair(authority: trustme.CA) -> Iterator[tuple[Connection, ssl.SSLSocket]]:
    """The same over TLS, after the handshake."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(ORIGIN.host).configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    server = server_context.wrap_socket(theirs, server_side=True, do_handshake_on_connect=False)
    client = client_context.wrap_socket(
        ours, server_hostname=ORIGIN.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    waiting: list[ssl.SSLSocket] = [client, server]
    for _ in range(20):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting
    yield Connection(ORIGIN, client), server
    client.close()
    server.close()


@pytest.fixture
async def listener() -> AsyncIterator[trio.SocketListener]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    yield listener
    await listener.aclose()


@pytest.fixture
async def make_pool(
    listener: trio.SocketListener,
) -> AsyncIterator[Callable[[int], ConnectionPool]]:
    """Pools for a server that accepts (in its backlog) and sends nothing."""
    made: list[ConnectionPool] = []

    def make(max_connections: int) -> ConnectionPool:
        port = listener.socket.getsockname()[1]
        made.append(
            ConnectionPool(
                Origin("http", "127.0.0.1", port), Slots(max_connections), Resolver(), None
            )
        )
        return made[-1]

    yield make
    for pool in made:
        pool.close()


async def acquire(pool: ConnectionPool, **kwargs: Any) -> Connection:
    return await pool.acquire(ConnectTime(math.inf), **kwargs)


def numbers(pool: ConnectionPool) -> dict[str, int]:
    state = pool.state()
    return {
        "lent": state.lent,
        "idle": state.idle,
        "waiting": state.waiting,
        "opened": state.opened,
        "reused": state.reused,
    }


# One connection


def test_reading_fills_the_buffer_from_the_given_place(
    pair: tuple[Connection, socket.socket],
) -> None:
    """In place, no further than the buffer goes, and the bytes before stay."""
    connection, server = pair
    server.send(b"0123456789")
    buffer = bytearray(b"carried.")
    assert connection.receive_into(buffer, 5) == 3
    assert buffer == b"carri012"
    assert connection.receive_into(buffer, 0) == 7
    assert buffer == b"34567892"
    buffer.append(0)  # BufferError, if a memoryview of it were left


def test_reading_never_blocks_and_tells_nothing_yet_from_the_end(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, server = pair
    for at in (0, 3):
        assert connection.receive_into(bytearray(8), at) is None
    server.close()
    for at in (0, 3):
        assert connection.receive_into(bytearray(8), at) == 0


def test_a_broken_connection_is_a_read_failure_that_names_the_origin(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, server = pair
    connection.sock.send(b"unread")
    server.close()  # with bytes unread: a reset
    with pytest.raises(ReadFailed, match=r"http://upstream\.test:80: Connection reset"):
        connection.receive_into(bytearray(8), 0)


def test_over_tls_the_rest_of_a_record_is_pending(
    tls_pair: tuple[Connection, ssl.SSLSocket],
) -> None:
    """The socket's readiness does not show them."""
    connection, server = tls_pair
    assert not connection.pending
    assert connection.receive_into(bytearray(8), 0) is None
    server.send(b"0123456789")
    buffer = bytearray(8)
    assert connection.receive_into(buffer, 4) == 4
    assert buffer == b"\0\0\0\x000123"
    assert connection.pending
    assert connection.receive_into(buffer, 0) == 6
    assert not connection.pending


@bounded
async def test_waiting_returns_at_once_while_tls_holds_bytes(
    tls_pair: tuple[Connection, ssl.SSLSocket],
) -> None:
    connection, server = tls_pair
    server.send(b"0123456789")
    await connection.wait_readable()
    assert connection.receive_into(bytearray(8), 0) == 8
    await connection.wait_readable()
    assert connection.receive_into(bytearray(8), 0) == 2


def test_over_tls_only_close_notify_is_an_end(tls_pair: tuple[Connection, ssl.SSLSocket]) -> None:
    connection, server = tls_pair
    with pytest.raises(ssl.SSLWantReadError):
        server.unwrap()  # sends its own, and wants ours
    assert connection.receive_into(bytearray(8), 0) == 0


def test_over_tls_an_end_without_close_notify_is_a_truncation(
    tls_pair: tuple[Connection, ssl.SSLSocket],
) -> None:
    connection, server = tls_pair
    server.send(b"hello")
    socket.socket.shutdown(server, socket.SHUT_WR)  # TCP's end, and not TLS's
    assert connection.receive_into(bytearray(8), 0) == 5
    with pytest.raises(Truncated, match="close_notify"):
        connection.receive_into(bytearray(8), 0)


@bounded
async def test_waiting_wakes_when_there_is_something(
    pair: tuple[Connection, socket.socket], nursery: trio.Nursery
) -> None:
    connection, server = pair

    async def speak() -> None:
        await trio.testing.wait_all_tasks_blocked()
        server.send(b"x")

    nursery.start_soon(speak)
    await connection.wait_readable()
    assert connection.receive_into(bytearray(8), 0) == 1


@bounded
async def test_closing_wakes_every_waiter(
    pair: tuple[Connection, socket.socket], nursery: trio.Nursery
) -> None:
    """A reader and a writer in other tasks get an `UpstreamFailure`; closing again does nothing."""
    connection, _ = pair
    failures: list[Exception] = []

    async def wait(waiting: Callable[[], Awaitable[None]]) -> None:
        with pytest.raises(ReadFailed) as caught:
            await waiting()
        failures.append(caught.value)

    async with trio.open_nursery() as waiters:
        waiters.start_soon(wait, connection.wait_readable)
        waiters.start_soon(
            wait, functools.partial(connection.send_all, b"x" * 10_000_000, math.inf)
        )
        await trio.testing.wait_all_tasks_blocked()
        connection.close()
        connection.close()
    assert len(failures) == 2


@bounded
async def test_writing_sends_everything_and_counts_it(
    pair: tuple[Connection, socket.socket], nursery: trio.Nursery
) -> None:
    """Through many waits for room."""
    connection, server = pair
    data = bytes(range(256)) * 8000
    received = bytearray()

    async def take() -> None:
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(server)
            received.extend(server.recv(60_000))

    nursery.start_soon(take)
    await connection.send_all(data, 5)
    assert connection.written == len(data)
    while len(received) < len(data):
        await trio.sleep(0.001)
    assert received == data


@bounded
async def test_a_write_that_finds_no_room_in_time_fails(
    pair: tuple[Connection, socket.socket],
) -> None:
    """`written` counts what was sent, also when a write is cancelled."""
    connection, server = pair
    with pytest.raises(WriteTimedOut, match=r"took nothing for 0\.03 s"):
        await connection.send_all(b"x" * 10_000_000, 0.03)
    with trio.move_on_after(0.03) as scope:
        await connection.send_all(b"x" * 10_000_000, math.inf)
    assert scope.cancelled_caught
    arrived = 0
    with suppress(BlockingIOError):
        while True:
            arrived += len(server.recv(1_000_000))
    assert connection.written == arrived > 0


@bounded
async def test_writing_to_a_broken_connection_is_a_read_failure(
    pair: tuple[Connection, socket.socket],
) -> None:
    """The answer may have arrived all the same, so it is not a separate failure."""
    connection, server = pair
    server.close()
    with pytest.raises(ReadFailed, match="Broken pipe"):
        await connection.send_all(b"x", math.inf)
    assert connection.written == 0


def test_a_quiet_open_connection_is_alive(
    pair: tuple[Connection, socket.socket], tls_pair: tuple[Connection, ssl.SSLSocket]
) -> None:
    """Over TLS, session tickets that wait to be read do not count as speech."""
    for connection in (pair[0], tls_pair[0]):
        assert connection.is_alive()
        assert connection.is_alive()


@pytest.mark.parametrize("change", ["closed", "spoken", "reset"])
def test_a_connection_that_ended_or_spoke_is_not_alive(
    pair: tuple[Connection, socket.socket], change: str
) -> None:
    connection, server = pair
    if change == "spoken":
        server.send(b"x")
    else:
        if change == "reset":
            connection.sock.send(b"unread")
        server.close()
    assert not connection.is_alive()


@pytest.mark.parametrize("change", ["close_notify", "cut", "spoken"])
def test_a_tls_connection_that_ended_or_spoke_is_not_alive(
    tls_pair: tuple[Connection, ssl.SSLSocket], change: str
) -> None:
    connection, server = tls_pair
    if change == "spoken":
        server.send(b"x")
    elif change == "cut":
        socket.socket.shutdown(server, socket.SHUT_WR)
    else:
        with pytest.raises(ssl.SSLWantReadError):
            server.unwrap()
    assert not connection.is_alive()


# The pool


@bounded
async def test_a_released_connection_is_lent_again(
    make_pool: Callable[[int], ConnectionPool],
) -> None:
    """The most recently used first; and one that is not reusable is closed instead."""
    pool = make_pool(10)
    first, second = await acquire(pool), await acquire(pool)
    assert not first.used
    assert numbers(pool) == {"lent": 2, "idle": 0, "waiting": 0, "opened": 2, "reused": 0}
    pool.release(first, reusable=True)
    pool.release(second, reusable=True)
    assert numbers(pool)["idle"] == 2
    assert await acquire(pool) is second
    assert await acquire(pool) is first
    assert first.used
    pool.release(first, reusable=False)
    assert first.sock.fileno() == -1
    assert numbers(pool) == {"lent": 1, "idle": 0, "waiting": 0, "opened": 2, "reused": 2}
    pool.release(second, reusable=True)
    pool.close()
    assert second.sock.fileno() == -1
    assert numbers(pool)["idle"] == 0


@bounded
async def test_a_connection_on_loan_again_counts_its_bytes_anew(
    make_pool: Callable[[int], ConnectionPool],
) -> None:
    pool = make_pool(1)
    connection = await acquire(pool)
    await connection.send_all(b"hello", math.inf)
    assert connection.written == 5
    pool.release(connection, reusable=True)
    assert (await acquire(pool)).written == 0
    pool.release(connection, reusable=False)


@bounded
async def test_lent_and_idle_together_stay_within_the_bound(
    make_pool: Callable[[int], ConnectionPool],
) -> None:
    """Also when a fresh one is asked for: an idle one is closed for it, the one that has idled the
    longest.
    """
    pool = make_pool(2)
    first, second = await acquire(pool), await acquire(pool)
    pool.release(first, reusable=True)
    pool.release(second, reusable=True)
    fresh = await acquire(pool, fresh=True)
    assert fresh not in (first, second)
    assert first.sock.fileno() == -1
    assert (numbers(pool)["lent"], numbers(pool)["idle"]) == (1, 1)
    assert await acquire(pool) is second
    pool.release(second, reusable=False)
    pool.release(fresh, reusable=False)
    assert numbers(pool)["lent"] == 0


@bounded
async def test_when_all_are_lent_one_waits_and_then_times_out(
    make_pool: Callable[[int], ConnectionPool],
) -> None:
    pool = make_pool(1)
    held = await acquire(pool)
    with pytest.raises(PoolTimedOut, match="max_connections"):
        await pool.acquire(ConnectTime(0.02))
    assert numbers(pool) == {"lent": 1, "idle": 0, "waiting": 0, "opened": 1, "reused": 0}
    pool.release(held, reusable=True)
    assert await pool.acquire(ConnectTime(0.02)) is held
    pool.release(held, reusable=False)


@bounded
@pytest.mark.parametrize("reusable", [True, False])
async def test_waiters_are_served_in_their_order_and_one_for_each_release(
    make_pool: Callable[[int], ConnectionPool], reusable: bool
) -> None:
    pool = make_pool(1)
    held = await acquire(pool)
    served: list[int] = []

    async def wait(number: int) -> None:
        connection = await acquire(pool)
        served.append(number)
        assert numbers(pool)["lent"] == 1
        pool.release(connection, reusable=reusable)

    async with trio.open_nursery() as waiters:
        for number in range(5):
            waiters.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
        assert numbers(pool)["waiting"] == 5
        assert served == []
        pool.release(held, reusable=reusable)
    assert served == [0, 1, 2, 3, 4]
    assert (numbers(pool)["lent"], numbers(pool)["opened"]) == (0, 1 if reusable else 6)


@bounded
async def test_a_cancelled_waiter_takes_no_slot(make_pool: Callable[[int], ConnectionPool]) -> None:
    """Nor when the slot comes in the same moment as the cancellation, in either order."""
    pool = make_pool(1)
    for release_first in (None, True, False):
        held = await acquire(pool)
        async with trio.open_nursery() as waiters:

            async def wait() -> None:
                pool.release(await acquire(pool), reusable=True)

            waiters.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            if release_first is True:
                pool.release(held, reusable=True)
            waiters.cancel_scope.cancel()
            if release_first is False:
                pool.release(held, reusable=True)
        if release_first is None:
            pool.release(held, reusable=True)
        assert (numbers(pool)["lent"], numbers(pool)["waiting"]) == (0, 0)


@bounded
async def test_a_failed_attempt_gives_its_slot_back() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        pool = ConnectionPool(
            Origin("http", "127.0.0.1", unheard.getsockname()[1]), Slots(1), Resolver(), None
        )
        for _ in range(3):
            with pytest.raises(ConnectFailed, match="Connection refused"):
                await acquire(pool)
        assert numbers(pool) == {"lent": 0, "idle": 0, "waiting": 0, "opened": 0, "reused": 0}


@bounded
async def test_a_connection_that_ended_while_it_idled_is_not_lent(
    make_pool: Callable[[int], ConnectionPool], listener: trio.SocketListener
) -> None:
    """However many of them there are; they are closed on the way."""
    pool = make_pool(5)
    connections = [await acquire(pool) for _ in range(3)]
    streams = [await listener.accept() for _ in connections]
    for connection in connections:
        pool.release(connection, reusable=True)
    for stream in streams:
        await stream.aclose()
    for connection in connections:
        await trio.lowlevel.wait_readable(connection.sock)
    fresh = await acquire(pool)
    assert fresh not in connections
    assert [connection.sock.fileno() for connection in connections] == [-1, -1, -1]
    assert numbers(pool) == {"lent": 1, "idle": 0, "waiting": 0, "opened": 4, "reused": 0}
    pool.release(fresh, reusable=False)


@bounded
async def test_expire_closes_what_idled_too_long_or_ended_and_keeps_the_rest(
    make_pool: Callable[[int], ConnectionPool], listener: trio.SocketListener
) -> None:
    pool = make_pool(5)
    connections = [await acquire(pool) for _ in range(4)]
    streams = {}
    for _ in connections:
        stream = await listener.accept()
        streams[stream.socket.getpeername()] = stream
    old, ended, good, lent = connections
    for connection in (old, ended, good):
        pool.release(connection, reusable=True)
    old.idle_since -= KEEPALIVE_EXPIRY_S + 1
    await streams[ended.sock.getsockname()].aclose()
    await trio.lowlevel.wait_readable(ended.sock)
    pool.expire()
    assert (old.sock.fileno(), ended.sock.fileno()) == (-1, -1)
    assert good.sock.fileno() >= 0
    assert lent.sock.fileno() >= 0
    assert (numbers(pool)["lent"], numbers(pool)["idle"]) == (1, 1)
    assert await acquire(pool) is good
    for connection in (good, lent):
        pool.release(connection, reusable=False)
    for stream in streams.values():
        await stream.aclose()


@bounded
async def test_what_idled_too_long_is_not_lent_even_before_it_expires(
    make_pool: Callable[[int], ConnectionPool],
) -> None:
    """Servers close theirs after about the same time: the request would race that."""
    pool = make_pool(2)
    old = await acquire(pool)
    pool.release(old, reusable=True)
    old.idle_since -= KEEPALIVE_EXPIRY_S + 1
    fresh = await acquire(pool)
    assert fresh is not old
    assert old.sock.fileno() == -1
    pool.release(fresh, reusable=False)


# One deadline


def never_accepted(monkeypatch: pytest.MonkeyPatch, after_s: float = math.inf) -> None:
    """New connections take that long, in Trio's time."""

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        await trio.sleep(after_s)
        return socket.socket()

    monkeypatch.setattr(dial, "connect", connect)


@pytest.fixture
def pool() -> ConnectionPool:
    return ConnectionPool(ORIGIN, Slots(1), Resolver(), None)


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
    """The only connection is busy, and the new one is never accepted. Most of the time in the
    queue: not the endpoint's fault.
    """
    never_accepted(monkeypatch, 0)
    held = await acquire(pool)
    never_accepted(monkeypatch)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def give_back() -> None:
            await trio.sleep(busy_s)
            pool.release(held, reusable=False)

        nursery.start_soon(give_back)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(kind):
            await pool.acquire(ConnectTime(1))
        assert trio.current_time() - began == pytest.approx(1)
    assert numbers(pool) | {"opened": 0} == {
        "lent": 0,
        "idle": 0,
        "waiting": 0,
        "opened": 0,
        "reused": 0,
    }


async def test_a_second_connection_has_what_is_left_of_the_time(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """As a request uses it whose kept connection was dead: one time for both."""
    never_accepted(monkeypatch, 0.6)
    began = trio.current_time()
    time = ConnectTime(1)
    first = await pool.acquire(time)
    pool.release(first, reusable=False)
    with pytest.raises(PoolTimedOut):
        await pool.acquire(time, fresh=True)
    assert trio.current_time() - began == pytest.approx(1)


async def test_without_a_limit_it_waits(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    never_accepted(monkeypatch, 100_000)
    pool.release(await pool.acquire(ConnectTime(math.inf)), reusable=False)
