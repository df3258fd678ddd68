"""The relay between a real socket and a recording writer, moved by a hub and, with the same results,
by its own task. Its deadlines and heartbeats: `test_relay_heartbeats.py`.
"""

from __future__ import annotations

import itertools
import random
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trustme
from support.chunks import read_chunked, unchunked
from support.relays import WAYS, NoPool, Recorder, edit, edited, open_rig, running_rig
from trio.testing import wait_all_tasks_blocked

from interceptors import Event, EventResult, EventTooLarge, HookError
from interceptors.chain import Part
from pools import BufferScope, Pools
from proxy.downstream.http1_stream import Http1Stream
from proxy.downstream.transport import Transport
from proxy.errors import ClientGone, ProtocolFailure, Truncated
from proxy.http.body import Chunked, ContentLength, Framing, UntilClose
from proxy.http.request import RequestHead
from proxy.relay import Need, open_relay
from proxy.upstream import UpstreamBody
from proxy.upstream.origin import Origin

HOOKS = pytest.mark.parametrize("hook", [None, edit], ids=["passing", "seen"])
FRAMINGS = pytest.mark.parametrize("framing", ["chunked", "content-length", "until close"])
ROOMY = {"sse_event": (65536, 4), "http_response": (65536, 4)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Who waits."""
    return str(request.param)


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


def events_of(dice: random.Random) -> tuple[bytes, bytes]:
    """Events of many sizes, some larger than any window, with every line end; and what `edit` makes
    of them.
    """
    data = expected = b""
    for _ in range(100):
        size = dice.choice((0, 10, 100, 500, 1100, 2100, 5000))
        text = dice.choice((b"c", b"d", b"2", b"p")) + b"x" * size
        # Of a CRLF that is cut, the LF comes too late for an event that leaves with others; a
        # reader does not miss it.
        end = dice.choice((b"\n", b"\r\n", b"\r")) if text[:1] != b"2" else b"\n"
        block = b"data: " + text + end + end
        comment = b": comment\n\n" if dice.random() < 0.1 else b""
        data += block + comment
        expected += edited(text, block) + comment
    return data, expected


@FRAMINGS
@HOOKS
async def test_what_leaves_is_exact_however_it_came(way: str, framing: str, hook: Any) -> None:
    """Through windows of 1 and 2 kB, to a client that often is full."""
    for seed in range(10 if hook else 4):
        dice = random.Random(seed)
        random_bytes = dice.randbytes(60_000)
        data, expected = events_of(dice) if hook else (random_bytes, random_bytes)
        kind, wire = framed(framing, data, partial(dice.choice, (1, 2, 30, 900, 5000)))
        client = Recorder(refuses=partial(dice.choice, (True, False, False)), pieces=3)
        async with open_rig(way, client, kind, hook=hook, sse=bool(hook) or seed % 2 == 0) as rig:
            cuts = partial(dice.choice, (1, 3, 50, 1000, 1024, 2048, 9000))
            await rig.run_fed(wire, cuts, close=framing == "until close")
            assert rig.error is None
            assert client.received == expected
            assert read_chunked(client.wire + b"0\r\n\r\n") == expected
            assert client.bytes_sent == len(expected)
            assert rig.in_use() == {}


async def test_what_one_read_brought_leaves_in_one_write(way: str) -> None:
    events = b"".join(b"data: %s%d\n\n" % (b"cp"[n % 2 : n % 2 + 1], n) for n in range(10))
    expected, client = events.replace(b"c", b"C"), Recorder()
    async with running_rig(way, client, ContentLength(2 * len(events)), hook=edit) as rig:
        for count in (1, 2):
            await rig.far.send_all(events)
            await wait_all_tasks_blocked()
            assert [data for _, data in client.writes] == [expected] * count


@pytest.mark.parametrize(("framing", "close"), [(ContentLength(12), False), (UntilClose(), True)])
async def test_an_unfinished_last_event_is_shown(framing: Framing, close: bool) -> None:
    """It leaves unfinished, changed."""
    client = Recorder()
    async with open_rig("own task", client, framing, hook=edit) as rig:
        await rig.run_fed(b"data: change", lambda: 5, close=close)
        assert (rig.error, client.received) == (None, b"data: CHANGE\n")


@FRAMINGS
@HOOKS
async def test_what_was_only_looked_at_is_received_once_more(framing: str, hook: Any) -> None:
    """The first bytes of a body, or all of it, and then the rest."""
    data = b"".join(b"data: p%d\n\n" % number for number in range(200))
    for looked_at in (1, 5, 700, 3000):
        kind, wire = framed(framing, data, lambda: 100)
        client = Recorder(refuses=lambda looked_at=looked_at: looked_at % 2 == 0)
        async with open_rig(WAYS[0], client, kind, hook=hook) as rig:
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
            assert (body.complete, client.received) == (True, data)


# Buffers


@pytest.mark.parametrize("text", [b"change", b"pass", b"drop"])
async def test_an_event_larger_than_every_window(text: bytes) -> None:
    """It grows its own buffer, which is not kept afterwards."""
    text += b"y" * 30_000
    block = b"data: %s\n\n" % text
    dice, client = random.Random(1), Recorder()
    async with open_rig("own task", client, hook=edit) as rig:
        cuts = partial(dice.choice, (1, 700, 4000))
        await rig.run_fed(chunked(b"data: p\n\n" + block + b"data: pass too\n\n", cuts), cuts)
        expected = b"data: p\n\n" + edited(text, block) + b"data: pass too\n\n"
        assert (rig.error, client.received) == (None, expected)
        assert rig.pools.http_response.statistics().discards_oversize == 1
        assert (rig.in_use(), rig.pools.sse_event.statistics().discards) == ({}, 0)


async def test_a_large_event_is_read_in_few_reads(way: str) -> None:
    """300 kB that are there cost tens of reads, not hundreds."""
    block = b"data: c" + b"y" * 300_000 + b"\n\n"
    client = Recorder()
    async with open_rig(way, client, ContentLength(len(block)), hook=edit) as rig:
        await rig.run_fed(block)
        assert (rig.error, client.received) == (None, block[:6] + block[6:].upper())
        assert len(rig.relay.body.connection.reads) < 60  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "pool"),
    [(1, "sse_event"), (500, "sse_event"), (600, "http_response"), (5000, "http_response")],
)
async def test_a_partial_event_keeps_one_lease(size: int, pool: str, way: str) -> None:
    client = Recorder()
    async with running_rig(way, client, UntilClose(), hook=edit) as rig:
        for _ in range(3):
            for sent, on_loan in (
                (b"data: whole\n\n" + b"d" * size, {pool: 1}),
                (b"d" * size, None),
                (b": x\n\n", {}),
            ):
                await rig.far.send_all(sent)
                await wait_all_tasks_blocked()
                assert on_loan in (None, rig.in_use())
                assert sum(rig.in_use().values()) == rig.scope.leases == (on_loan != {})
        await rig.far.aclose()
    assert rig.error is None
    assert client.received.count(b"data: whole\n\n" + b"d" * (2 * size) + b": x\n\n") == 3


async def test_a_pass_through_never_keeps_a_lease(way: str) -> None:
    """Half of an event that no hook needs has already been sent."""
    client = Recorder(refuses=lambda: True, takes=trio.sleep_forever)
    async with running_rig(way, client, UntilClose(), stop=True) as rig:
        await rig.far.send_all(b"data: ha")
        await wait_all_tasks_blocked()
        assert client.stalled
        assert (rig.in_use(), rig.scope.leases) == ({}, 0)


async def test_windows_grow_while_they_come_back_full_and_shrink_again() -> None:
    for sse in (True, False):
        async with open_rig("own task", Recorder(), UntilClose(), sse=sse) as rig:
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


@HOOKS
async def test_early_bytes_larger_than_every_window(hook: Any, way: str) -> None:
    """Bytes that came with the head are moved without a word from the socket, and before what the
    socket holds.
    """
    events = b"".join(b"data: p%d %s\n\n" % (n, b"z" * (7 * n % 300)) for n in range(100))
    wire = chunked(events, lambda: 777)
    for early in (len(wire), 9_000, 1):
        client = Recorder()
        async with running_rig(way, client, hook=hook, early=wire[:early]) as rig:
            await wait_all_tasks_blocked()
            assert len(client.received) > early - 2_000
            await rig.far.send_all(wire[early:])
        assert (rig.error, client.received) == (None, events)


def tls_pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a TLS connection over a socket pair, after the handshake."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("up.test").configure_cert(server)
    authority.configure_trust(client)
    near, far = socket.socketpair()
    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(server.wrap_socket, far, server_side=True)
        ours = client.wrap_socket(near, server_hostname="up.test", suppress_ragged_eofs=False)
        return ours, serving.result()


@HOOKS
async def test_bytes_inside_tls_are_not_waited_for(hook: Any, way: str) -> None:
    """A record of 16 kB is decrypted at once and read in windows of 1 and 2 kB."""
    near, far = tls_pair()
    record = b"".join(b"data: p%05d%s\n\n" % (n, b"z" * 100) for n in range(135))
    assert 15_000 < len(record) < 16_384
    full = itertools.cycle([False, True, False])
    client = Recorder(refuses=lambda: next(full))
    sockets = (near, socket.socket())
    async with running_rig(way, client, UntilClose(), hook=hook, sockets=sockets) as rig:
        for _ in range(3):
            client.received = b""
            assert far.send(record) == len(record)
            await wait_all_tasks_blocked()
            assert client.received == record
        far.close()  # without close_notify
        await rig.over.wait()
    assert isinstance(rig.error, Truncated)


# Slow and absent clients


@HOOKS
async def test_upstream_is_not_read_while_bytes_are_unsent(hook: Any, way: str) -> None:
    may_take, event = trio.Event(), b"data: " + b"x" * 100 + b"\n\n"
    client = Recorder(refuses=lambda: True, takes=may_take.wait, pieces=3)
    async with running_rig(way, client, ContentLength(100 * len(event)), hook=hook) as rig:
        reads = rig.relay.body.connection.reads
        for _ in range(2):
            await rig.far.send_all(event * 50)
            await wait_all_tasks_blocked()
            assert (len(reads), client.stalled) == (1, True)
            assert rig.hub is None or len(rig.hub) == 0
        may_take.set()
    assert (rig.error, client.received) == (None, event * 100)
    assert len(reads) > 5
    assert not any(reads)


async def leave() -> None:
    raise ClientGone


@HOOKS
@pytest.mark.parametrize("how", [{"leaves_after": 9}, {"refuses": lambda: True, "takes": leave}])
async def test_a_client_that_has_gone(how: dict[str, Any], hook: Any, way: str) -> None:
    """At a write or while it is waited for. The lease of half an event comes back."""
    client = Recorder(**how)
    async with running_rig(way, client, UntilClose(), hook=hook) as rig:
        await rig.far.send_all(b"data: p\n\n")
        await wait_all_tasks_blocked()
        if not rig.over.is_set():
            await rig.far.send_all(b"data: p\n\ndata: unfin")
    assert isinstance(rig.error, ClientGone)
    assert client.received == (b"data: p\n\n" if "leaves_after" in how else b"")


# Failures


def fail_at_bad(event: Event) -> EventResult:
    if event.data == "bad":
        raise ValueError("told to")
    return edit(event)


LONG = b"data: p\n\ndata: " + b"x" * 5000
BAD = b"data: p1\n\ndata: c2\n\ndata: bad\n\ndata: p3\n\ndata: unfin"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("framing", "hook", "sent", "error", "received"),
    [
        (UntilClose(), fail_at_bad, BAD, HookError, b"data: p1\n\ndata: C2\n\n"),
        (UntilClose(), edit, LONG + b"\n\n", EventTooLarge, b"data: p\n\n"),
        (UntilClose(), edit, LONG, EventTooLarge, b"data: p\n\n"),
        (ContentLength(99), edit, b"data: p\n\ndata: un", Truncated, b"data: p\n\n"),
        (ContentLength(99), None, b"data: p\n\ndata: un", Truncated, b"data: p\n\ndata: un"),
        (Chunked(), None, b"9\r\ndata: 1\n\n\r\nno size\r\n", ProtocolFailure, b"data: 1\n\n"),
        (Chunked(), None, b"8\r\ndata: 1\n\r\nno size\r\n", ProtocolFailure, b"data: 1\n"),
    ],
    ids=["hook", "too large", "too large, no end", "cut, seen", "cut", "broken", "broken inside"],
)
async def test_a_failure_ends_the_stream_after_what_was_before_it(
    framing: Framing, hook: Any, sent: bytes, error: type, received: bytes, full: bool, way: str
) -> None:
    client = Recorder(refuses=lambda: full, pieces=2)
    async with open_rig(way, client, framing, hook=hook, max_event_bytes=5000) as rig:
        await rig.run_fed(sent, lambda: 900, close=error is Truncated)
        assert type(rig.error) is error
        assert client.received == received
        assert rig.relay.at_boundary is received.endswith(b"\n\n")
        assert error is Truncated or rig.in_use() == {}


BROKEN = {
    "no size": b"xyz\r\n",
    "no CRLF behind the data": b"4\r\nlast!!\r\n",
    "a size that lies": b"5\r\nlast\r\n4\r\nmore\r\n",
    "a bare LF": b"4\nlast\r\n",
    "a trailer that is none": b"0\r\nno trailer\r\n\r\n",
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_body_fails_after_what_came_before(broken: str, way: str) -> None:
    """Good chunks, and then bytes that are not a chunk, in one read or cut anywhere."""
    good = b"4;x\r\nabcd\r\n6\r\nefghij\r\n2\r\nkl\r\n"
    wire = good + BROKEN[broken]
    rests = (b"", b"l", b"la", b"las", b"last", b"last!", b"last\r")
    for cut in [len(wire), 1, *range(len(good) - 3, len(wire))]:
        client = Recorder(refuses=lambda cut=cut: cut % 2 == 0, pieces=2)
        async with open_rig(way, client) as rig:
            await rig.run_fed(wire, lambda cut=cut: cut)  # type: ignore[misc]
            assert type(rig.error) is ProtocolFailure
        assert client.received in [b"abcdefghijkl" + rest for rest in rests]
        assert not client.received.endswith(b"\r") or broken == "a size that lies"
        assert read_chunked(client.wire + b"0\r\n\r\n") == client.received


# A real writer


class CountingSocket:
    """Notes how many parts each message had."""

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


class PatchableStream(Http1Stream):
    """Without slots."""


@asynccontextmanager
async def open_far_end(
    narrow: bool,
) -> AsyncIterator[tuple[Http1Stream, CountingSocket, bytearray]]:
    """The writer of a chunked response, and what has come out of the socket's other end after the
    head, all of it when this is left.
    """
    near, far = socket.socketpair()
    if narrow:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    near.setblocking(False)
    far.setblocking(False)
    received = bytearray()

    async def receive() -> None:
        async with trio.SocketStream(trio.socket.from_stdlib_socket(far)) as stream:
            async for piece in stream:
                received.extend(piece)

    counting: Any = CountingSocket(near)
    connection: Any = SimpleNamespace(
        transport=Transport(counting, None),  # type: ignore[arg-type]
        peer=None,
        scope=None,
        server=SimpleNamespace(ends=False),
    )
    writer = PatchableStream(connection, RequestHead("GET", b"/", [], "1.1", 0, True, False))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            assert writer.start(200, [])
            while not received:
                await trio.sleep(0.001)
            received.clear()
            counting.parts.clear()
            yield writer, counting, received
            near.close()


@pytest.mark.parametrize("narrow", [False, True])
async def test_thousands_of_parts_in_one_write_arrive_intact(narrow: bool) -> None:
    """Every other event is changed, so that no two parts join: more of them than IOV_MAX."""
    texts = [b"%s%d" % (b"cp"[n % 2 : n % 2 + 1], n) for n in range(9_000)]
    data = b"".join(b"data: %s\n\n" % text for text in texts)
    sizes: list[int] = []
    async with open_far_end(narrow) as (writer, sock, received):
        original = writer.write

        def write(parts: Sequence[Part]) -> bool:
            sizes.append(len(parts))
            return original(parts)

        writer.write = write  # type: ignore[method-assign]
        framing = ContentLength(len(data))
        async with open_rig(WAYS[0], writer, framing, hook=edit, sizes=ROOMY) as rig:
            await rig.run_fed(data)
            assert rig.error is None
    assert max(sizes) > 1024 >= max(sock.parts)
    assert b"".join(unchunked(bytes(received))) == data.replace(b"c", b"C")
    assert writer.bytes_sent == len(data)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    ("sizes", "cuts"),
    [((4089,), (65536,)), ((1, 3, 4, 900, 5000, 40_000), (1, 700, 65536, 100_000))],
    ids=["4096 bytes with framing", "any"],
)
async def test_chunks_pass_through_the_writer(sizes: Any, cuts: Any, narrow: bool) -> None:
    """Also when the socket takes a message only in parts."""
    dice = random.Random(7)
    data = dice.randbytes(300_000)
    async with open_far_end(narrow) as (writer, sock, received):
        async with open_rig(WAYS[0], writer, sizes=ROOMY, sse=False) as rig:
            wire = chunked(data, partial(dice.choice, sizes))
            await rig.run_fed(wire, partial(dice.choice, cuts))
            assert rig.error is None
        assert not writer.stalled
    assert read_chunked(bytes(received) + b"0\r\n\r\n") == data
    assert writer.bytes_sent == len(data)
    assert sock.parts[0] == 1 if sizes == (4089,) else max(sock.parts) > 3


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


async def test_a_large_event_that_no_hook_needs_passes_in_pieces(way: str) -> None:
    client = Recorder()
    large = b"data: " + b"x" * 100_000 + b"\n\n"
    async with open_rig(way, client, UntilClose(), hook=edit, max_event_bytes=3000) as rig:
        relay = rig.relay
        assert relay.chain is not None
        (hook,) = relay.chain._hooks.hooks
        hook.passes_unseen = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await rig.far.send_all(b"data: p\n\n" + large[:-1])
            await wait_all_tasks_blocked()
            assert len(client.received) >= 100_000
            assert (relay.at_boundary, relay.between_events) == (False, False)
            await rig.far.send_all(large[-1:])
            await wait_all_tasks_blocked()
            assert client.received == b"data: p\n\n" + large
            assert (relay.at_boundary, relay.between_events) == (True, True)
            await rig.far.aclose()


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

    def __init__(self, pools: Pools, scope: BufferScope, client: Recorder) -> None:
        self.connection = ScriptedConnection()
        self.body = UpstreamBody(NoPool(), self.connection, Chunked(), b"", True)  # type: ignore[arg-type]
        self.relay = open_relay(self.body, client, None, pools, scope, sse=True)
        # What the last stream left in a window may look like anything.
        self.window = bytearray(b"\r\n4\r\nold!\r\n" * 200)

    def feed(self, piece: bytes) -> Need:
        """One read of upstream's, and all the pumps that it takes."""
        self.connection.pieces.append(piece)
        need = self.relay.pump(self.window, 0.0)
        while need is Need.TURN:
            need = self.relay.pump(self.window, 0.0)
        return need


# Chunks with every line end at their ends, sizes written in every way, extensions, and trailers.
CHUNKS = [
    (b"d: 1\n\n", "{:x}"),
    (b":", "{:X}"),
    (b"\r\n\r", "00{:x}"),
    (b"\n", '{:x};secret="4"'),
    (b"d: 2\r", "{:016X}"),
    (b"\r\n\n\nid", "{:x} "),
    (b"\r\n", "{:x}"),
    (b"data: last\r\r", "{:x};secret"),
]
WIRE = b"".join(
    form.format(len(data)).encode() + b"\r\n" + data + b"\r\n" for data, form in CHUNKS
) + (b"0;secret\r\nx-secret: 4\r\n\r\n")


def data_in(wire: bytes) -> bytes:
    """The data in the beginning of `WIRE`, a byte as soon as it is there."""
    out, at = b"", 0
    for data, _ in CHUNKS:
        at = WIRE.index(b"\r\n", at) + 2
        out += data[: max(0, len(wire) - at)]
        at += len(data) + 2
    return out


def every_cut() -> Iterator[tuple[bytes, ...]]:
    """`WIRE` whole, byte by byte, in two pieces at every position, and in three."""
    yield (WIRE,)
    yield tuple(WIRE[at : at + 1] for at in range(len(WIRE)))
    for one in range(1, len(WIRE)):
        yield WIRE[:one], WIRE[one:]
        for two in range(one + 1, min(one + 40, len(WIRE))):
            yield WIRE[:one], WIRE[one:two], WIRE[two:]


async def test_chunks_pass_exactly_however_they_are_cut() -> None:
    """After each read the client has the data that has come, in whole chunks, without any extension
    or trailer; and whether an event has ended is known. In the end h11 reads the same.
    """
    pools = Pools()
    readings: set[bytes] = set()
    data_at = [data_in(WIRE[:at]) for at in range(len(WIRE) + 1)]
    boundary_at = [is_boundary(data) for data in data_at]
    async with pools.open_scope() as scope:
        for pieces in every_cut():
            client = Recorder()
            passing = Passing(pools, scope, client)
            at = 0
            for piece in pieces:
                assert not passing.body.complete
                need = passing.feed(piece)
                at += len(piece)
                assert client.received == data_at[at], pieces
                assert passing.relay.at_boundary is boundary_at[at], pieces
                assert need is (Need.END if at == len(WIRE) else Need.READ)
            assert client.bytes_sent == len(data_at[at])
            readings.add(bytes(client.wire))
    assert len(readings) > 100, "the cuts made no difference to what left"
    for wire in readings:
        assert b"secret" not in wire
        assert read_chunked(wire + b"0\r\n\r\n") == data_at[-1]


async def test_chunks_that_came_whole_leave_in_one_piece_and_uncopied() -> None:
    """Framing and all, as one slice of the window."""
    messages: list[list[Part]] = []
    pools, client = Pools(), Recorder()

    def write_chunks(message: Sequence[Part], size: int) -> bool:
        messages.append([bytes(part) for part in message])
        windows = [part for part in message if isinstance(part, memoryview)]
        assert all(part.obj is passing.window for part in windows)
        return True

    client.write_chunks = write_chunks  # type: ignore[method-assign]
    async with pools.open_scope() as scope:
        passing = Passing(pools, scope, client)
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
