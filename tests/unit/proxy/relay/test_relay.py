"""The relay between a real socket and a scripted writer, moved by a hub and, with the same results,
by its own task.

Deadlines are tested on Trio's mock clock. What a socket pair holds is readable at once, so that the
clock jumps only when there is nothing to move.
"""

from __future__ import annotations

import itertools
import math
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from inspect import iscoroutinefunction
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trustme
from hypercorn.config import Config
from support.chunks import read_chunked, unchunked
from support.writers import flush_of
from trio.testing import MockClock, wait_all_tasks_blocked

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    EventResult,
    EventTooLarge,
    HookError,
    Interceptor,
    Request,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain, Part
from pools import BufferScope, Pools
from proxy.downstream import ClientConnection
from proxy.downstream.direct import DirectWriter
from proxy.errors import ClientGone, ProtocolFailure, ReadTimedOut, SendStalled, Truncated
from proxy.http.body import Chunked, ContentLength, Framing, UntilClose
from proxy.relay import Mover, Need, Relay, open_relay
from proxy.relay.hub import Hub
from proxy.upstream import UpstreamBody
from proxy.upstream.connections import Connection, Origin

WAYS = ["hub", "own task"] if Hub.available() else ["own task"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Who waits."""
    return str(request.param)


# Upstream, client, interceptors


class WatchedConnection(Connection):
    """Notes each read: what the writer held back at that moment, and how much came."""

    __slots__ = ("reads", "writer")

    def __init__(self, sock: socket.socket, writer: Any) -> None:
        super().__init__(Origin("http", "up.test", 80), sock)
        self.writer = writer
        self.reads: list[tuple[bool, int | None]] = []

    def receive_into(self, buffer: bytearray, at: int) -> int | None:
        count = super().receive_into(buffer, at)
        self.reads.append((self.writer.stalled, count))
        return count


class NoPool:
    """Takes a connection back, and closes it."""

    def release(self, connection: Connection, *, reusable: bool) -> None:
        connection.close()


class Client:
    """A writer that records."""

    name = "recording"
    synchronous = True
    started = True

    def __init__(
        self,
        refuses: Callable[[], bool] = lambda: False,
        takes: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        pieces: int = 1,
        leaves_after: float = float("inf"),
    ) -> None:
        self.writes: list[list[bytes]] = []
        self.received = b""
        self.wire = bytearray()
        """The body as a synchronous writer frames it, but for its end; what has not left yet
        included.
        """
        self.bytes_sent = 0
        self._unsent: list[bytes] = []
        self._refuses = refuses
        self._takes = takes
        self._pieces = pieces
        self._leaves_after = leaves_after

    @property
    def stalled(self) -> bool:
        return bool(self._unsent)

    async def start(self, status: int, headers: Any) -> None: ...
    async def finish(self) -> None: ...
    async def abort(self) -> None: ...

    def write(self, parts: Sequence[Part]) -> bool:
        assert not self._unsent, "written to before everything has left"
        assert parts
        if len(self.received) >= self._leaves_after:
            raise ClientGone
        self.writes.append([bytes(part) for part in parts])
        data = b"".join(parts)
        if data:
            self.wire += b"%x\r\n%b\r\n" % (len(data), data)
        return self._take(data)

    def write_chunks(self, message: Sequence[Part], size: int) -> bool:
        assert not self._unsent, "written to before everything has left"
        if len(self.received) >= self._leaves_after:
            raise ClientGone
        wire = b"".join(message)
        chunks = unchunked(wire)
        assert chunks
        assert sum(map(len, chunks)) == size
        self.writes.append(chunks)
        self.wire += wire
        return self._take(b"".join(chunks))

    def _take(self, data: bytes) -> bool:
        self.bytes_sent += len(data)
        if self._refuses():
            size = max(1, -(-len(data) // self._pieces))
            self._unsent = [data[at : at + size] for at in range(0, len(data), size)]
            return False
        self.received += data
        return True

    async def drain(self) -> bool:
        await self._takes()
        self.received += self._unsent.pop(0)
        return not self._unsent


class Hook(Interceptor):
    """Any function as an interceptor."""

    def __init__(self, on_event: Callable[[Event], Any]) -> None:
        self._on_event = on_event

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        is_async = iscoroutinefunction(self._on_event)
        return (_AsyncHookStream if is_async else _HookStream)(self._on_event)


class _HookStream(StreamInterceptor):
    def __init__(self, on_event: Callable[[Event], EventResult]) -> None:
        self._on_event = on_event

    def on_event(self, event: Event) -> EventResult:
        return self._on_event(event)


class _AsyncHookStream(AsyncStreamInterceptor):
    def __init__(self, on_event: Callable[[Event], Awaitable[EventResult]]) -> None:
        self._on_event = on_event

    async def on_event(self, event: Event) -> EventResult:
        return await self._on_event(event)


def edit(event: Event) -> EventResult:
    """By the first letter: change, drop, double, or let pass."""
    match event.data[:1]:
        case "c":
            return event.replace(data=event.data.upper())
        case "d":
            return None
        case "2":
            return [event, Event(data="again")]
        case _:
            return event


def edited(text: bytes, block: bytes) -> bytes:
    """What leaves `edit`, written down without the chain."""
    return {
        b"c": b"data: %s\n\n" % text.upper(),
        b"d": b"",
        b"2": block + b"data: again\n\n",
    }.get(text[:1], block)


# The rig


SMALL = {"sse_event": (1024, 4), "http_response": (2048, 4), "json": (512, 4)}
ROOMY = {"sse_event": (65536, 4), "http_response": (65536, 4)}


class Rig:
    """One relay with both its ends in the test's hands."""

    def __init__(
        self, pools: Pools, scope: BufferScope, hub: Hub | None, far: socket.socket, relay: Relay
    ) -> None:
        self.pools = pools
        self.scope = scope
        self.hub = hub
        self.far = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        self.relay = relay
        self.idle_s = math.inf
        self.send_s = math.inf
        self.error: Exception | None = None
        self.over = trio.Event()
        self.ended_at = 0.0

    async def run(self) -> None:
        """Move the body to its end, and note how that was."""
        try:
            await Mover(
                self.relay,
                self.hub,
                idle_s=self.idle_s,
                flush=flush_of(self.relay.writer, self.send_s),
            ).run()
        except Exception as error:
            self.error = error
        self.ended_at = trio.current_time()
        self.over.set()

    async def run_fed(
        self, data: bytes, cuts: Callable[[], int] = lambda: 1 << 20, *, close: bool = False
    ) -> None:
        """Run to the end while `data` comes in pieces of the sizes that `cuts` gives."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            at = 0
            while at < len(data):
                size = cuts()
                try:
                    await self.far.send_all(data[at : at + size])
                except trio.BrokenResourceError:
                    break
                at += size
            if close:
                await self.far.aclose()
            await self.over.wait()

    def in_use(self) -> dict[str, int]:
        return {item.pool: item.in_use for item in self.pools.statistics() if item.in_use}


@asynccontextmanager
async def open_rig(
    way: str,
    writer: Any,
    framing: Framing | None = None,
    *,
    hook: Callable[[Event], Any] | None = None,
    sizes: dict[str, Any] = SMALL,
    early: bytes = b"",
    sse: bool = True,
    max_event_bytes: int = 1 << 20,
    sockets: tuple[socket.socket, socket.socket] | None = None,
) -> AsyncIterator[Rig]:
    """A relay with a framing (chunked unless given), and a hub that runs if that is the way."""
    pools = Pools(**sizes, leak_detection="paranoid")
    near, far = sockets or socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    body = UpstreamBody(
        NoPool(),
        WatchedConnection(near, writer),
        framing or Chunked(),
        early,
        keep_alive=True,
    )  # type: ignore[arg-type]
    hub = Hub(pools) if way == "hub" else None
    async with trio.open_nursery() as nursery:
        if hub is not None:
            nursery.start_soon(hub.run)
        async with pools.open_scope() as scope:
            chain = None
            if hook is not None:
                chain = Chain([("hook", Hook(hook))]).open_stream(
                    Request(), pools.json, scope, max_event_bytes
                )
            rig = Rig(
                pools, scope, hub, far, open_relay(body, writer, chain, pools, scope, sse=sse)
            )
            try:
                yield rig
            finally:
                body.close()
                await trio.aclose_forcefully(rig.far)
        assert hub is None or len(hub) == 0
        nursery.cancel_scope.cancel()
    assert rig.in_use() == {}


@asynccontextmanager
async def running_rig(*args: Any, **kwargs: Any) -> AsyncIterator[Rig]:
    """The same, while it runs. Leaving it waits for the relay's end."""
    async with open_rig(*args, **kwargs) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.run)
        yield rig


def chunked(data: bytes, cuts: Callable[[], int] = lambda: 1 << 20) -> bytes:
    """`data` in chunks of the sizes that `cuts` gives, with the last chunk."""
    out, at = b"", 0
    while at < len(data):
        piece = data[at : at + cuts()]
        out += b"%x\r\n%s\r\n" % (len(piece), piece)
        at += len(piece)
    return out + b"0\r\n\r\n"


def framed(kind: str, data: bytes, cuts: Callable[[], int]) -> tuple[Framing, bytes]:
    """A body on the wire, and how it is read."""
    if kind == "chunked":
        return Chunked(), chunked(data, cuts)
    return (ContentLength(len(data)) if kind == "content-length" else UntilClose()), data


# Bytes


@pytest.mark.parametrize("framing", ["chunked", "content-length", "until close"])
async def test_pass_through_is_exact(way: str, framing: str) -> None:
    """Random bytes in random chunks and random segments, through windows of 1 and 2 kB, to a client
    that often is full.
    """
    for seed in range(6):
        dice = random.Random(seed)
        data = dice.randbytes(60_000)
        kind, wire = framed(framing, data, partial(dice.choice, (1, 2, 30, 900, 5000)))
        client = Client(refuses=partial(dice.choice, (True, False, False)), pieces=3)
        async with open_rig(way, client, kind, sse=seed % 2 == 0) as rig:
            cuts = partial(dice.choice, (1, 3, 50, 1000, 1024, 2048, 9000))
            await rig.run_fed(wire, cuts, close=framing == "until close")
            assert rig.error is None
            assert client.received == data
            assert read_chunked(client.wire + b"0\r\n\r\n") == data
            assert client.bytes_sent == len(data)
            assert rig.in_use() == {}


@pytest.mark.parametrize("framing", ["chunked", "content-length", "until close"])
async def test_events_through_a_chain_are_exact(way: str, framing: str) -> None:
    """Events of many sizes, some larger than any window, with every line end, changed, dropped,
    doubled and passed: what leaves is what each should become, in order, however it was cut.
    """
    for seed in range(10):
        dice = random.Random(seed)
        data = expected = b""
        for _ in range(100):
            text = dice.choice((b"c", b"d", b"2", b"p")) + b"x" * dice.choice(
                (0, 10, 100, 500, 1100, 2100, 5000)
            )
            # Of a CRLF that is cut, the LF comes too late for an event that leaves with others; a
            # reader does not miss it.
            end = dice.choice((b"\n", b"\r\n", b"\r")) if text[:1] != b"2" else b"\n"
            block = b"data: " + text + end + end
            data += block
            expected += edited(text, block)
            if dice.random() < 0.1:
                data += b": comment\n\n"
                expected += b": comment\n\n"
        kind, wire = framed(framing, data, partial(dice.choice, (1, 2, 30, 900, 5000)))
        client = Client(refuses=partial(dice.choice, (True, False, False)), pieces=2)
        async with open_rig(way, client, kind, hook=edit) as rig:
            cuts = partial(dice.choice, (1, 3, 50, 1000, 1024, 2048, 9000))
            await rig.run_fed(wire, cuts, close=framing == "until close")
            assert rig.error is None
            assert client.received == expected
            assert rig.in_use() == {}


async def test_what_one_read_brought_leaves_in_one_write(way: str) -> None:
    """Ten events that came together leave together, changed or not."""
    events = b"".join(b"data: %s%d\n\n" % (b"cp"[n % 2 : n % 2 + 1], n) for n in range(10))
    client = Client()
    async with running_rig(way, client, ContentLength(2 * len(events)), hook=edit) as rig:
        await rig.far.send_all(events)
        await wait_all_tasks_blocked()
        assert [b"".join(parts) for parts in client.writes] == [events.replace(b"c", b"C")]
        await rig.far.send_all(events)
    assert [b"".join(parts) for parts in client.writes] == [events.replace(b"c", b"C")] * 2


async def test_a_last_event_without_its_empty_line_is_shown_to_the_chain(way: str) -> None:
    """It came unfinished and leaves unfinished, changed."""
    for framing, close in ((ContentLength(12), False), (UntilClose(), True)):
        client = Client()
        async with open_rig(way, client, framing, hook=edit) as rig:
            await rig.run_fed(b"data: change", lambda: 5, close=close)
            assert (rig.error, client.received) == (None, b"data: CHANGE\n")


# Buffers


@pytest.mark.parametrize("text", [b"change", b"pass", b"drop"])
async def test_an_event_larger_than_every_window(text: bytes, way: str) -> None:
    """It grows its own buffer, which is not kept afterwards."""
    block = b"data: " + text + b"y" * 30_000 + b"\n\n"
    expected = edited(text + b"y" * 30_000, block)
    dice = random.Random(1)
    client = Client()
    async with open_rig(way, client, hook=edit) as rig:
        wire = chunked(
            b"data: p\n\n" + block + b"data: pass too\n\n", lambda: dice.choice((1, 700, 4000))
        )
        await rig.run_fed(wire, lambda: dice.choice((1, 700, 1024)))
        assert (rig.error, client.received) == (
            None,
            b"data: p\n\n" + expected + b"data: pass too\n\n",
        )
        stats = rig.pools.http_response.statistics()
        assert stats.discards_oversize == 1
        assert rig.in_use() == {}
        assert rig.pools.sse_event.statistics().discards == 0


async def test_a_large_event_is_read_in_few_reads(way: str) -> None:
    """Its buffer doubles as it fills, so that 300 kB that are there cost tens of reads, not
    hundreds.
    """
    block = b"data: c" + b"y" * 300_000 + b"\n\n"
    client = Client()
    async with open_rig(way, client, ContentLength(len(block)), hook=edit) as rig:
        connection = rig.relay.body.connection
        await rig.run_fed(block)
        assert (rig.error, client.received) == (None, block[:6] + block[6:].upper())
        assert len(connection.reads) < 60


@pytest.mark.parametrize(
    ("size", "pool"),
    [(1, "sse_event"), (500, "sse_event"), (600, "http_response"), (5000, "http_response")],
)
async def test_a_partial_event_keeps_one_lease_and_an_idle_stream_none(
    size: int, pool: str, way: str
) -> None:
    """Whenever the relay waits."""
    client = Client()
    async with running_rig(way, client, UntilClose(), hook=edit) as rig:
        for _ in range(3):
            await wait_all_tasks_blocked()
            assert (rig.in_use(), rig.scope.leases) == ({}, 0)
            await rig.far.send_all(b"data: whole\n\n" + b"d" * size)
            await wait_all_tasks_blocked()
            assert (rig.in_use(), rig.scope.leases) == ({pool: 1}, 1)
            await rig.far.send_all(b"d" * size)
            await wait_all_tasks_blocked()
            assert sum(rig.in_use().values()) == rig.scope.leases == 1
            await rig.far.send_all(b": x\n\n")
            await wait_all_tasks_blocked()
            assert (rig.in_use(), rig.scope.leases) == ({}, 0)
        await rig.far.aclose()
    assert rig.error is None
    assert client.received.count(b"data: whole\n\n" + b"d" * (2 * size) + b": x\n\n") == 3


async def test_a_pass_through_never_keeps_a_lease(way: str) -> None:
    """Half of an event that no hook needs has already been sent."""
    client = Client(refuses=lambda: True, takes=trio.sleep_forever)
    async with open_rig(way, client, UntilClose()) as rig:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await rig.far.send_all(b"data: ha")
            await wait_all_tasks_blocked()
            assert client.stalled
            assert (rig.in_use(), rig.scope.leases) == ({}, 0)
            nursery.cancel_scope.cancel()


async def test_windows_grow_while_they_come_back_full_and_shrink_again() -> None:
    """Step by step."""
    for sse in (True, False):
        async with open_rig("own task", Client(), UntilClose(), sse=sse) as rig:
            small, large = bytearray(1024), bytearray(2048)
            assert rig.relay.wants_large is not sse
            for window, size, wants_large in (
                (small, 512, False),
                (small, 513, True),
                (large, 2048, True),
                (large, 512, False),
                (small, 1024, True),
                (large, 1, False),
            ):
                await rig.far.send_all(bytes(size))
                assert rig.relay.pump(window, 0.0) is Need.READ
                assert rig.relay.wants_large is (wants_large or not sse)


# Bytes that readiness does not show


@pytest.mark.parametrize("hook", [None, edit])
async def test_early_bytes_larger_than_every_window(hook: Any, way: str) -> None:
    """Bytes that came with the head are moved without a word from the socket, whole and before what
    the socket holds.
    """
    events = b"".join(b"data: p%d %s\n\n" % (n, b"z" * (7 * n % 300)) for n in range(100))
    wire = chunked(events, lambda: 777)
    for early in (len(wire), 9_000, 1):
        client = Client()
        async with running_rig(way, client, hook=hook, early=wire[:early]) as rig:
            await wait_all_tasks_blocked()
            assert len(client.received) > early - 2_000
            await rig.far.send_all(wire[early:])
        assert (rig.error, client.received) == (None, events)


def tls_pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a TLS connection over a socket pair, non-blocking, after the handshake."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("up.test").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    ends = (
        client_context.wrap_socket(
            near,
            server_hostname="up.test",
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        ),
        server_context.wrap_socket(far, server_side=True, do_handshake_on_connect=False),
    )
    todo = list(ends)
    for end in itertools.cycle(ends):
        if end in todo:
            try:
                end.do_handshake()
                todo.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not todo:
            break
    return ends


@pytest.mark.parametrize("hook", [None, edit])
async def test_bytes_inside_tls_are_not_waited_for(hook: Any, way: str) -> None:
    """A record of 16 kB is decrypted at once and read in windows of 1 and 2 kB."""
    near, far = tls_pair()
    record = b"".join(b"data: p%05d%s\n\n" % (n, b"z" * 100) for n in range(135))
    assert 15_000 < len(record) < 16_384
    full = itertools.cycle([False, True, False])
    client = Client(refuses=lambda: next(full))
    async with running_rig(
        way, client, UntilClose(), hook=hook, sockets=(near, socket.socket())
    ) as rig:
        for _ in range(3):
            client.received = b""
            assert far.send(record) == len(record)
            await wait_all_tasks_blocked()
            assert client.received == record
        far.close()  # without close_notify
        await rig.over.wait()
    assert isinstance(rig.error, Truncated)


# Deadlines


async def test_silence_is_timed_from_the_last_byte(way: str, autojump_clock: MockClock) -> None:
    """Bytes come every 0.9 of the deadline, ten times, and it is not reached."""
    client = Client()
    async with open_rig(way, client, UntilClose()) as rig:
        rig.idle_s = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            for _ in range(10):
                await trio.sleep(9.0)
                await rig.far.send_all(b"data: x\n\n")
            last = trio.current_time()
            assert not rig.over.is_set()
        assert isinstance(rig.error, ReadTimedOut)
        # The hub adds the time that really passes in its wait, of which this clock knows nothing.
        assert rig.ended_at == pytest.approx(last + 10.0, abs=1.0 if way == "hub" else 0.001)
        assert client.received == b"data: x\n\n" * 10
        assert rig.relay.last_read == pytest.approx(last, abs=1.0 if way == "hub" else 0.001)


async def test_silence_from_the_start_times_out(way: str, autojump_clock: MockClock) -> None:
    """Nothing at all: the deadline counts from when the relay began."""
    for first in (b"", b"data: unfin"):
        async with open_rig(way, Client(), UntilClose(), hook=edit) as rig:
            rig.idle_s = 10.0
            await rig.far.send_all(first) if first else None
            began = trio.current_time()
            await rig.run()
            assert isinstance(rig.error, ReadTimedOut)
            assert trio.current_time() - began == pytest.approx(10.0, abs=0.001)


async def test_without_a_deadline_silence_may_last(way: str, autojump_clock: MockClock) -> None:
    client = Client()
    async with running_rig(way, client, ContentLength(4)) as rig:
        await trio.sleep(1e6)
        await rig.far.send_all(b"late")
    assert (rig.error, client.received) == (None, b"late")


async def test_a_slow_clients_time_is_not_the_upstreams(
    way: str, autojump_clock: MockClock
) -> None:
    """While the client takes nothing, upstream is not read, so this does not count as its silence."""

    async def slowly() -> None:
        await trio.sleep(25.0)

    client = Client(refuses=lambda: len(client.writes) == 1, takes=slowly)
    async with open_rig(way, client, ContentLength(6)) as rig:
        rig.idle_s = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await rig.far.send_all(b"one")
            await trio.sleep(25.0 + 9.0)
            await rig.far.send_all(b"two")
        assert (rig.error, client.received) == (None, b"onetwo")


async def test_a_hooks_time_is_not_the_upstreams(way: str, autojump_clock: MockClock) -> None:
    """Upstream is not read while a hook awaits."""

    async def slowly(event: Event) -> EventResult:
        await trio.sleep(25.0)
        return event

    client = Client()
    async with open_rig(way, client, ContentLength(18), hook=slowly) as rig:
        rig.idle_s = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await rig.far.send_all(b"data: 1\n\n")
            await trio.sleep(25.0 + 9.0)
            await rig.far.send_all(b"data: 2\n\n")
        assert (rig.error, client.received) == (None, b"data: 1\n\ndata: 2\n\n")


async def test_what_came_in_time_is_read_after_the_deadline(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A process that stood still has not been told yet that it can read."""
    monkeypatch.setattr(UpstreamBody, "wait_readable", lambda body: trio.sleep_forever())
    client = Client()
    async with open_rig("own task", client, ContentLength(6)) as rig:
        rig.idle_s = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            for data in (b"one", b"two"):
                await rig.far.send_all(data)
                await trio.sleep(11.0)
        assert (rig.error, client.received) == (None, b"onetwo")


async def test_the_send_deadline_is_for_each_wait(way: str, autojump_clock: MockClock) -> None:
    """A client that takes a little every 9 of 10 s is slow, and gets all of it."""
    patience = [9.0] * 8 + [float("inf")]

    async def wait() -> None:
        await trio.sleep(patience.pop(0))

    client = Client(refuses=lambda: True, takes=wait, pieces=4)
    async with open_rig(way, client, UntilClose()) as rig:
        rig.send_s = 10.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            for _ in range(3):
                await rig.far.send_all(b"12345678")
                await trio.sleep(40)
        assert isinstance(rig.error, SendStalled)
        assert client.received == b"12345678" * 2
        assert client.stalled
        assert rig.ended_at == pytest.approx(80.0 + 10.0, abs=0.001)


# Slow and absent clients


@pytest.mark.parametrize("hook", [None, edit])
async def test_upstream_is_not_read_while_bytes_are_unsent(hook: Any, way: str) -> None:
    """Much is readable, and nothing of it is read until the client has taken everything."""
    may_take = trio.Event()

    async def wait() -> None:
        await may_take.wait()

    event = b"data: " + b"x" * 100 + b"\n\n"
    client = Client(refuses=lambda: True, takes=wait, pieces=3)
    async with running_rig(way, client, ContentLength(100 * len(event)), hook=hook) as rig:
        await rig.far.send_all(event * 50)
        await wait_all_tasks_blocked()
        reads = rig.relay.body.connection.reads
        assert len(reads) == 1
        assert client.stalled
        assert rig.hub is None or len(rig.hub) == 0
        await rig.far.send_all(event * 50)
        await wait_all_tasks_blocked()
        assert len(reads) == 1
        may_take.set()
    assert (rig.error, client.received) == (None, event * 100)
    assert len(reads) > 5
    assert not any(stalled for stalled, _ in reads)


@pytest.mark.parametrize("hook", [None, edit])
async def test_a_client_that_has_gone_ends_the_relay(hook: Any, way: str) -> None:
    """`ClientGone` out of a write is raised where the relay runs, and half an event's lease comes
    back with the scope.
    """
    client = Client(leaves_after=9)
    async with running_rig(way, client, UntilClose(), hook=hook) as rig:
        await rig.far.send_all(b"data: p\n\n")
        await wait_all_tasks_blocked()
        assert not rig.over.is_set()
        await rig.far.send_all(b"data: p\n\ndata: unfin")
    assert isinstance(rig.error, ClientGone)
    assert client.received == b"data: p\n\n"


async def test_a_client_that_goes_while_it_is_waited_for_ends_the_relay(way: str) -> None:
    """The same out of a drain."""

    async def leave() -> None:
        raise ClientGone

    async with open_rig(way, Client(refuses=lambda: True, takes=leave), UntilClose()) as rig:
        await rig.run_fed(b"data: p\n\n")
        assert isinstance(rig.error, ClientGone)


# Failures


@pytest.mark.parametrize("full", [False, True])
async def test_a_failed_hook_ends_the_stream_after_what_was_before_it(full: bool, way: str) -> None:
    """What the events before became is written, drained if it must be, and then the failure is
    raised; nothing comes after it.
    """

    def fail(event: Event) -> EventResult:
        if event.data == "bad":
            raise ValueError("told to")
        return edit(event)

    client = Client(refuses=lambda: full, pieces=2)
    async with open_rig(way, client, UntilClose(), hook=fail) as rig:
        await rig.run_fed(b"data: p1\n\ndata: c2\n\ndata: bad\n\ndata: p3\n\ndata: unfin")
        assert isinstance(rig.error, HookError)
        assert client.received == b"data: p1\n\ndata: C2\n\n"
        assert rig.in_use() == {}
        assert rig.relay.at_boundary


@pytest.mark.parametrize("whole", [False, True])
async def test_an_event_over_the_limit_ends_the_stream(whole: bool, way: str) -> None:
    """As soon as more than the limit has come of it, also when its end never comes."""
    client = Client()
    async with open_rig(way, client, UntilClose(), hook=edit, max_event_bytes=5000) as rig:
        data = b"data: p\n\ndata: " + b"x" * 5000 + (b"\n\n" if whole else b"")
        await rig.run_fed(data, lambda: 900)
        assert isinstance(rig.error, EventTooLarge)
        assert client.received == b"data: p\n\n"
        assert rig.in_use() == {}


@pytest.mark.parametrize("hook", [None, edit])
async def test_a_body_that_is_cut_fails_after_what_came(hook: Any, way: str) -> None:
    """Whole events have been sent; half of one only where no hook reads events."""
    client = Client()
    async with open_rig(way, client, ContentLength(1000), hook=hook) as rig:
        await rig.run_fed(b"data: p\n\ndata: unfin", close=True)
        assert isinstance(rig.error, Truncated)
        assert client.received == b"data: p\n\n" + (b"" if hook else b"data: unfin")


# The real direct writer


class CountingSocket:
    """A socket, as the direct writer uses it, that notes how many parts each message had."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.parts: list[int] = []

    def sendmsg(self, parts: Sequence[Part]) -> int:
        self.parts.append(len(parts))
        return self._sock.sendmsg(parts)

    def send(self, data: Part) -> int:
        self.parts.append(1)
        return self._sock.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@asynccontextmanager
async def open_far_end(
    narrow: bool,
) -> AsyncIterator[tuple[DirectWriter, CountingSocket, bytearray]]:
    """A direct writer on a socket, and what has come out of its other end, all of it when this is
    left. Ten seconds for it.
    """
    near, far = socket.socketpair()
    if narrow:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    near.setblocking(False)
    far.setblocking(False)
    counting = CountingSocket(near)
    received = bytearray()

    async def send(message: Any) -> None:
        raise AssertionError("nothing goes through ASGI here")

    async def receive() -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(far))
        async with stream:
            async for piece in stream:
                received.extend(piece)

    app: Any = SimpleNamespace(config=Config())
    connection = ClientConnection(app, None, None, None, near, False)  # type: ignore[arg-type]
    connection.sock = counting  # type: ignore[assignment]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            yield DirectWriter(send, connection), counting, received
            near.close()


@pytest.mark.parametrize("narrow", [False, True])
async def test_thousands_of_parts_in_one_write_arrive_intact(narrow: bool, way: str) -> None:
    """Every other event is changed, so that no two parts join: more of them than IOV_MAX."""
    texts = [b"%s%d" % (b"cp"[n % 2 : n % 2 + 1], n) for n in range(9_000)]
    data = b"".join(b"data: %s\n\n" % text for text in texts)
    expected = data.replace(b"c", b"C")
    largest = 0
    async with open_far_end(narrow) as (writer, sock, received):
        original = writer.write

        def write(parts: Sequence[Part]) -> bool:
            nonlocal largest
            largest = max(largest, len(parts))
            return original(parts)

        writer.write = write  # type: ignore[method-assign]
        async with open_rig(way, writer, ContentLength(len(data)), hook=edit, sizes=ROOMY) as rig:
            await rig.run_fed(data)
            assert rig.error is None
    assert largest > 1024
    assert max(sock.parts) <= 1024
    assert b"".join(unchunked(bytes(received))) == expected
    assert writer.bytes_sent == len(expected)


# Between events


def is_boundary(data: bytes) -> bool:
    """Whether `data` ends with a whole block: WHATWG HTML, section 9.2.6, one byte after the other."""
    boundary, line_is_empty, before = True, True, 0
    for byte in data:
        if byte == 0x0A and before == 0x0D:
            pass  # it belongs to the CR, which has ended the line
        elif byte in b"\r\n":
            boundary, line_is_empty = line_is_empty, True
        else:
            boundary = line_is_empty = False
        before = byte
    return boundary


@pytest.mark.parametrize("framing", ["chunked", "content-length", "until close"])
@pytest.mark.parametrize("looked_at", [1, 5, 700, 3000])
@pytest.mark.parametrize("slow", [False, True], ids=["quick", "slow"])
@pytest.mark.parametrize("hook", [None, edit], ids=["passing", "seen"])
async def test_what_was_only_looked_at_is_received_once_more(
    way: str, framing: str, looked_at: int, slow: bool, hook: Any
) -> None:
    """The first bytes of a body, or all of it, and then the rest."""
    data = b"".join(b"data: p%d\n\n" % number for number in range(200))
    kind, wire = framed(framing, data, lambda: 100)
    writer = Client(refuses=lambda: slow)
    async with open_rig(way, writer, kind, hook=hook) as rig:
        await rig.far.send_all(wire)
        if framing == "until close":
            await rig.far.aclose()
        body, buffer, size = rig.relay.body, bytearray(4096), 0
        while size < looked_at and not body.complete:
            span = body.receive(buffer, size)
            assert span is not None
            buffer[size : size + span[1] - span[0]] = buffer[span[0] : span[1]]
            size += span[1] - span[0]
        body.unread(bytes(buffer[:size]))
        assert (body.complete, body.pending) == (False, True)
        await rig.run()
        assert body.complete
        assert writer.received == data


async def test_a_large_event_that_no_hook_needs_passes_in_pieces(way: str) -> None:
    """Through windows of 1 and 2 kB."""
    client = Client()
    large = b"data: " + b"x" * 100_000 + b"\n\n"
    async with open_rig(way, client, UntilClose(), hook=edit, max_event_bytes=3000) as rig:
        chain = rig.relay.chain
        assert chain is not None
        (hook,) = chain._hooks.hooks
        hook.passes_unseen = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await rig.far.send_all(b"data: p\n\n" + large[:-1])
            await wait_all_tasks_blocked()
            assert len(client.received) >= 100_000
            assert not rig.relay.at_boundary
            assert not rig.relay.between_events
            await rig.far.send_all(large[-1:])
            await wait_all_tasks_blocked()
            assert client.received == b"data: p\n\n" + large
            assert rig.relay.at_boundary
            assert rig.relay.between_events
            await rig.far.aclose()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_at_boundary_in_a_stream(end: bytes, way: str) -> None:
    """Byte by byte through a running relay, chunk headers between them."""
    lines = [b"event: e", b"data: 1", b"", b": ping", b"", b"data: 2", b"", b""]
    data = end.join(lines)
    async with running_rig(way, Client()) as rig:
        for at in range(len(data)):
            await rig.far.send_all(b"1\r\n" + data[at : at + 1] + b"\r\n")
            await wait_all_tasks_blocked()
            assert rig.relay.at_boundary is is_boundary(data[: at + 1]), data[: at + 1]
        await rig.far.send_all(b"0\r\n\r\n")
    assert rig.relay.at_boundary


# Chunks that no hook needs


class ScriptedConnection:
    """An upstream's connection that brings one piece for each read, and then nothing more."""

    tls = False
    pending = False
    origin = Origin("http", "up.test", 80)

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def receive_into(self, buffer: bytearray, at: int) -> int | None:
        if not self.pieces:
            return None
        piece = self.pieces.pop(0)
        buffer[at : at + len(piece)] = piece
        return len(piece)


class Passing:
    """A relay without a chain, with a chunked body and a synchronous writer, pumped by hand."""

    def __init__(self, pools: Pools, scope: BufferScope) -> None:
        self.connection = ScriptedConnection()
        self.client = Client()
        self.body = UpstreamBody(NoPool(), self.connection, Chunked(), b"", True)  # type: ignore[arg-type]
        self.relay = open_relay(self.body, self.client, None, pools, scope, sse=True)
        # What the last stream left in a window may look like anything.
        self.window = bytearray(b"\r\n4\r\nold!\r\n" * 200)

    def feed(self, piece: bytes) -> Need:
        """One read of upstream's, and all the pumps that it takes."""
        self.connection.pieces.append(piece)
        need = self.relay.pump(self.window, 0.0)
        while need is Need.TURN:
            need = self.relay.pump(self.window, 0.0)
        return need


# Chunks large and small, with every line end at their ends, sizes written in every way, extensions,
# and trailers.
DATA = (
    b"data: one\n\n",
    b":",
    b"\r\n\r",
    b"\n",
    b"d: 2\r",
    b"\r\n\n\nid",
    b"\r\n",
    b"data: the end\r\r",
)
FORMS = ("{:x}", "{:X}", "00{:x}", '{:x};secret="4"', "{:x}", "{:016X}", "{:x} ", "{:x};secret")
WIRE = (
    b"".join(
        form.format(len(data)).encode() + b"\r\n" + data + b"\r\n"
        for form, data in zip(FORMS, DATA, strict=True)
    )
    + b"0;secret\r\nx-secret: 4\r\n\r\n"
)


def data_in(wire: bytes) -> bytes:
    """The data in the beginning of `WIRE`, a byte as soon as it is there."""
    out, at = b"", 0
    for data in DATA:
        at = WIRE.index(b"\r\n", at) + 2
        out += data[: max(0, len(wire) - at)]
        at += len(data) + 2
    return out


def every_cut() -> Iterator[tuple[bytes, ...]]:
    """`WIRE` whole, byte by byte, and in two and in three pieces at every position."""
    yield (WIRE,)
    yield tuple(WIRE[at : at + 1] for at in range(len(WIRE)))
    for one in range(1, len(WIRE)):
        yield WIRE[:one], WIRE[one:]
        for two in range(one + 1, len(WIRE)):
            yield WIRE[:one], WIRE[one:two], WIRE[two:]


async def test_chunks_pass_exactly_however_they_are_cut() -> None:
    """After each read the client has the data that has come, byte for byte, in whole chunks,
    without any extension or trailer; and whether an event has ended is known. In the end h11 reads
    the same.
    """
    pools = Pools()
    readings: set[bytes] = set()
    async with pools.open_scope() as scope:
        for pieces in every_cut():
            passing = Passing(pools, scope)
            at = 0
            for piece in pieces:
                assert not passing.body.complete
                need = passing.feed(piece)
                at += len(piece)
                expected = data_in(WIRE[:at])
                assert passing.client.received == expected, pieces
                assert passing.relay.at_boundary is is_boundary(expected), pieces
                assert need is (Need.END if at == len(WIRE) else Need.READ)
            assert passing.client.bytes_sent == len(expected)
            readings.add(bytes(passing.client.wire))
    assert len(readings) > 100, "the cuts made no difference to what left"
    for wire in readings:
        assert b"secret" not in wire
        assert read_chunked(wire + b"0\r\n\r\n") == b"".join(DATA)


async def test_chunks_that_came_whole_leave_in_one_piece_and_uncopied() -> None:
    """Framing and all, as one slice of the window."""
    messages: list[list[Part]] = []
    pools = Pools()
    async with pools.open_scope() as scope:
        passing = Passing(pools, scope)

        def write_chunks(message: Sequence[Part], size: int) -> bool:
            messages.append([bytes(part) for part in message])
            windows = [part for part in message if isinstance(part, memoryview)]
            assert all(part.obj is passing.window for part in windows)
            return True

        passing.client.write_chunks = write_chunks  # type: ignore[method-assign]
        passing.relay = open_relay(passing.body, passing.client, None, pools, scope, sse=True)
        passing.feed(b"4\r\nabcd\r\n05\r\nefghi\r\n")
        passing.feed(b"6\r\njkl")
        passing.feed(b"mno\r\n4\r\npqrs\r\n3\r\ntuv\r\n7\r\nwx")
        passing.feed(b"yz123\r\n0\r\n\r\n")
    assert messages == [
        [b"4\r\nabcd\r\n05\r\nefghi\r\n"],
        [b"3\r\n", b"jkl", b"\r\n"],
        [b"3\r\n", b"mno", b"\r\n", b"4\r\npqrs\r\n", b"5\r\n", b"tuvwx", b"\r\n"],
        [b"5\r\n", b"yz123", b"\r\n"],
    ]
    passing.window.append(0)  # BufferError, if a part of it were still exported


BROKEN = {
    "no size": b"xyz\r\n",
    "no CRLF behind the data": b"4\r\nlast!!\r\n",
    "a size that lies": b"5\r\nlast\r\n4\r\nmore\r\n",
    "a bare LF": b"4\nlast\r\n",
    "a trailer that is none": b"0\r\nno trailer\r\n\r\n",
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("full", [False, True])
async def test_a_broken_body_fails_after_what_came_before(
    broken: str, full: bool, way: str
) -> None:
    """Good chunks, and then bytes that are not a chunk, in one read or cut anywhere."""
    good = b"4;x\r\nabcd\r\n6\r\nefghij\r\n2\r\nkl\r\n"
    wire = good + BROKEN[broken]
    cuts = (
        [len(wire), 1, *range(len(good) - 3, len(wire))] if not full else [len(wire), len(good) + 1]
    )
    for cut in cuts:
        client = Client(refuses=lambda: full, pieces=2)
        async with open_rig(way, client) as rig:
            await rig.run_fed(wire, lambda cut=cut: cut)  # type: ignore[misc]
            assert type(rig.error) is ProtocolFailure
        assert client.received.startswith(b"abcdefghijkl")
        assert b"abcdefghijkllast!!".startswith(client.received) or (
            broken == "a size that lies" and client.received == b"abcdefghijkllast\r"
        )
        assert read_chunked(client.wire + b"0\r\n\r\n") == client.received


async def test_a_body_that_is_broken_after_an_event_is_at_a_boundary(way: str) -> None:
    """So that the client can get an error event, which must not be inside another event."""
    for data, at_boundary in ((b"data: 1\n\n", True), (b"data: 1\n", False)):
        async with open_rig(way, Client()) as rig:
            await rig.run_fed(b"%x\r\n%b\r\nno size\r\n" % (len(data), data))
            assert isinstance(rig.error, ProtocolFailure)
            assert rig.relay.at_boundary is at_boundary


async def test_a_writer_that_does_not_frame_gets_no_framing(way: str) -> None:
    """ASGI servers frame bodies by themselves: they are given the data alone."""

    class Framing(Client):
        synchronous = False

        def write_chunks(self, message: Sequence[Part], size: int) -> bool:
            raise AssertionError("it was given framing")

    client = Framing()
    async with open_rig(way, client) as rig:
        await rig.run_fed(WIRE, lambda: 7)
        assert (rig.error, client.received) == (None, b"".join(DATA))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
async def test_chunks_pass_through_the_direct_writer(aligned: bool, narrow: bool, way: str) -> None:
    """On a real socket, also when it takes a message only in parts."""
    dice = random.Random(7)
    data = dice.randbytes(300_000)
    sizes, cuts = (
        ((4089,), (65536,)) if aligned else ((1, 3, 4, 900, 5000, 40_000), (1, 700, 65536, 100_000))
    )
    assert len(b"%x\r\n" % 4089) + 4089 + 2 == 4096
    async with open_far_end(narrow) as (writer, sock, received):
        async with open_rig(way, writer, sizes=ROOMY, sse=False) as rig:
            await rig.run_fed(
                chunked(data, partial(dice.choice, sizes)), partial(dice.choice, cuts)
            )
            assert rig.error is None
        assert not writer.stalled
    assert read_chunked(bytes(received) + b"0\r\n\r\n") == data
    assert writer.bytes_sent == len(data)
    assert sock.parts[0] == 1 if aligned else max(sock.parts) > 3
