"""HTTP/2 connections of clients, frame by frame, under `weirpool serve` with prior knowledge, and
under plain Hypercorn with TLS:
what ends a stream, what ends the connection, and what is bounded. Another stream lives beside each.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import groupby
from typing import Any

import hpack
import pytest
import trio
from support.certificates import Certificates
from support.interceptors import Log, config_with, outcomes_of, until
from support.proxy import Proxy, limit_send_buffers, open_proxy, serve_plainly
from support.upstream import Peer, Upstream, open_upstream

from proxy.downstream import client_connections
from proxy.downstream.transport import TlsTransport, Transport
from proxy.server.app import create_app

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, CONTINUATION = range(10)
END, END_HEADERS, PADDED, ACK = 1, 4, 8, 1
Fields = list[tuple[str, str | bytes]]
Open = Callable[..., AbstractAsyncContextManager[tuple[Proxy, Upstream]]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def settings(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, key.to_bytes(2, "big") + value.to_bytes(4, "big"))


def update(stream: int, size: int) -> bytes:
    return frame(UPDATE, 0, stream, size.to_bytes(4, "big"))


def block(*fields: tuple[str, str | bytes]) -> bytes:
    """Literals that are not indexed: no state."""

    def string(text: str | bytes) -> bytes:
        text = text.encode() if isinstance(text, str) else text
        return bytes(hpack.hpack.encode_integer(len(text), 7)) + text

    return b"".join(b"\0" + string(name) + string(value) for name, value in fields)


def request(
    *more: tuple[str, str | bytes], without: str = "", path: str | bytes = "/bad", **pseudo: str
) -> bytes:
    """The block of a request: `method="POST"` sets `:method`; `without` names what is missing."""
    line: dict[str, str | bytes] = {"method": "GET", "scheme": "http", "authority": "h"}
    line |= {"path": path, **pseudo}
    return block(*((f":{key}", line[key]) for key in line if key not in without.split()), *more)


def head(payload: bytes, flags: int = END, stream: int = 3) -> bytes:
    return frame(HEADERS, flags | END_HEADERS, stream, payload)


def many(payload: bytes, stream: int = 3) -> bytes:
    """A request's block in frames of 16,384 bytes."""
    pieces = [payload[at : at + 16384] for at in range(0, len(payload), 16384)]
    kinds = [HEADERS] + [CONTINUATION] * (len(pieces) - 1)
    flags = [END * (kind == HEADERS) for kind in kinds]
    flags[-1] |= END_HEADERS
    return b"".join(map(frame, kinds, flags, [stream] * len(pieces), pieces))


class Wire:
    """A client that sends bytes and reads frames; its windows are wide."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.status: dict[int, int] = {}
        self.data: dict[int, bytes] = {}
        self.ends: dict[int, str | int] = {}
        """How each stream ended: "end", or the code of its reset."""
        self.settings: dict[int, int] = {}
        self.goaway: list[int] = []
        self.closed = False
        self._decoder = hpack.Decoder()

    async def run(self) -> None:
        data = b""
        try:
            while received := await self.stream.receive_some(65536):
                data += received
                while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3], "big")):
                    stream = int.from_bytes(data[5:9], "big")
                    self._take(data[3], data[4], stream, data[9:end])
                    data = data[end:]
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed = True

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.frames.append((kind, flags, stream, payload))
        if kind == HEADERS:
            fields = dict(self._decoder.decode(payload))
            self.status[stream] = int(fields[":status"])
        elif kind == DATA:
            self.data[stream] = self.data.get(stream, b"") + payload
        elif kind == RST:
            self.ends.setdefault(stream, int.from_bytes(payload, "big"))
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                key = int.from_bytes(payload[at : at + 2], "big")
                self.settings[key] = int.from_bytes(payload[at + 2 : at + 6], "big")
        elif kind == GOAWAY:
            self.goaway.append(int.from_bytes(payload[4:8], "big"))
        if kind in (HEADERS, DATA) and flags & END:
            self.ends[stream] = "end"

    def result(self, stream: int) -> str | int | None:
        """The status of a response, or `reset CODE`, once the stream has ended."""
        end = self.ends.get(stream)
        if end is None:
            return None
        return self.status[stream] if end == "end" else f"reset {end}"

    async def ask(self, stream: int, path: str = "/x") -> str | int | None:
        await self.stream.send_all(head(request(path=path), stream=stream))
        await until(lambda: self.result(stream))
        return self.result(stream)

    async def lives(self, stream: int = 1) -> None:
        """An event stream goes on."""
        before = len(self.data.get(stream, b""))
        await until(lambda: len(self.data.get(stream, b"")) > before)


@asynccontextmanager
async def open_wire(proxy: Proxy, *first: bytes, live: bool = True) -> AsyncIterator[Wire]:
    """A connection, on which stream 1 is an endless event stream."""
    transport = await trio.open_tcp_stream("127.0.0.1", proxy.port)
    stream: Any = transport
    if proxy.port in CONTEXTS:
        given: dict[str, Any] = {"server_hostname": "localhost", "https_compatible": True}
        stream = trio.SSLStream(transport, CONTEXTS[proxy.port], **given)
    async with transport, trio.open_nursery() as nursery:
        wire = Wire(stream)
        nursery.start_soon(wire.run)
        wide = settings(4, 2**31 - 1) + update(0, 2**31 - 1 - 65535)
        sent = first or (PREFACE, wide)
        await stream.send_all(b"".join(sent))
        if live:
            await stream.send_all(head(request(path="/stream"), stream=1))
            await wire.lives()
        yield wire
        nursery.cancel_scope.cancel()


async def script(peer: Peer) -> None:
    while True:
        asked = await peer.request(body=False)
        if asked.target.startswith(b"/stream"):
            await peer.start_stream()
            while True:
                await peer.chunk(b"data: x\n\n")
                await trio.sleep(0.01)
        await peer.take_body(asked)
        body = b"%b %b %d" % (asked.method.encode(), asked.target, len(asked.body))
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


CONTEXTS: dict[int, ssl.SSLContext] = {}
"""For the clients of servers with TLS, by port."""


@pytest.fixture(params=["serve", "hypercorn, TLS"])
def serving(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, certificates: Certificates
) -> Open:
    @asynccontextmanager
    async def serve(
        *, keep_alive: float = 75, streams: int = 1000, **more: Any
    ) -> AsyncIterator[tuple[Proxy, Upstream]]:
        monkeypatch.setattr("proxy.server.listen._KEEP_ALIVE_S", keep_alive)
        monkeypatch.setattr("proxy.server.listen._MAX_STREAMS_OF_CONNECTION", streams)
        plain: dict[str, Any] = {
            "keep_alive_timeout": keep_alive,
            "h2_max_concurrent_streams": streams,
        }
        async with open_upstream(more.pop("script", script)) as upstream:
            config = config_with(upstream.url, **more)
            if request.param == "serve":
                async with open_proxy(config) as proxy:
                    yield proxy, upstream
                    await at_rest(proxy)
            else:
                app = create_app(config)
                plain |= dict(zip(("certfile", "keyfile"), certificates.files, strict=True))
                async with serve_plainly(app, **plain) as port:
                    CONTEXTS[port] = certificates.client("h2")
                    yield Proxy(app, port), upstream
                    await at_rest(Proxy(app, port))
                    del CONTEXTS[port]

    return serve


async def at_rest(proxy: Proxy) -> None:
    await until(lambda: not proxy.worker.live and not client_connections)
    assert set(proxy.in_use().values()) == {0}
    assert proxy.lent() == 0


X = ("x", "y")
OF_CONNECTION = (
    "connection",
    "proxy-connection",
    "keep-alive",
    "transfer-encoding",
    "upgrade",
    "te",
)
OPEN = head(request(path="/stream3", method="POST"), 0)
STREAM_ERRORS: dict[str, tuple[bytes, object]] = {
    # 8.1.1, 8.3: malformed heads
    "no method": (head(request(without="method")), 400),
    "no scheme": (head(request(without="scheme")), 400),
    "no path": (head(request(without="path")), 400),
    "an empty path": (head(request(path="")), 400),
    "an empty authority": (head(request(authority="")), 400),
    "two paths": (head(request((":path", "/y"))), 400),
    "a late pseudo-field": (head(request(X, (":authority", "h"), without="authority")), 400),
    "a pseudo-field of a response": (head(request((":status", "200"))), 400),
    "an unknown pseudo-field": (head(request((":x", "y"))), 400),
    "a method that is no token": (head(request(method="G T")), 400),
    "a scheme that is none": (head(request(scheme="1:")), 400),
    "a path beyond ASCII": (head(request(path=b"/caf\xc3\xa9")), 400),
    "a path with a space": (head(request(path="/a b")), 400),
    "an absolute path": (head(request(path="http://h/x")), 400),
    # 8.2.1, 8.2.2: fields
    "upper case": (head(request(("X-Y", "z"))), 400),
    "a name with a space": (head(request(("x y", "z"))), 400),
    "an empty name": (head(request(("", "z"))), 400),
    "NUL": (head(request(("x", "a\0b"))), 400),
    "LF": (head(request(("x", "a\nx:y"))), 400),
    "a value that begins with a space": (head(request(("x", " y"))), 400),
    "a value that ends with a tab": (head(request(("x", "y\t"))), 400),
    **{name: (head(request((name, "close"))), 400) for name in OF_CONNECTION},
    # 8.3.1, 8.5: hosts and CONNECT
    "no host": (head(request(without="authority")), 400),
    "another host": (head(request(("host", "other"))), 400),
    "CONNECT": (head(request(method="CONNECT", without="scheme path")), 501),
    "CONNECT with a path": (head(request(method="CONNECT", without="scheme")), 400),
    "extended CONNECT": (head(request((":protocol", "websocket"), method="CONNECT")), 501),
    ":protocol alone": (head(request((":protocol", "websocket"))), 400),
    # 8.1.1, 10.5.1: sizes
    "two lengths": (head(request(*[("content-length", n) for n in "12"], method="POST"), 0), 400),
    "a length without a body": (head(request(("content-length", "1"))), 400),
    "too short": (
        head(request(("content-length", "10"), method="POST"), 0) + frame(DATA, END, 3, b"abc"),
        400,
    ),
    "too long": (
        head(request(("content-length", "1"), method="POST"), 0) + frame(DATA, 0, 3, b"abc"),
        400,
    ),
    "70 kB": (many(request(*[(f"x{n}", "v" * 1400) for n in range(50)])), 431),
    "250 kB": (many(request(*[(f"x{n}", "v" * 5000) for n in range(50)])), 431),
    # 8.1: trailers; 5.1, 6.3, 6.9: states and windows
    "trailers that do not end": (OPEN + head(block(X), 0), "reset 1"),
    "trailers with a pseudo-field": (OPEN + head(block((":path", "/"))), "reset 1"),
    "DATA after the end": (head(request(path="/stream3")) + frame(DATA, 0, 3, b"x"), "reset 5"),
    "HEADERS after the end": (head(request(path="/stream3")) + head(block(X)), "reset 5"),
    "a window update of 0": (OPEN + update(3, 0), "reset 1"),
    "a window beyond 2^31 - 1": (OPEN + update(3, 2**31 - 1), "reset 3"),
    "PRIORITY of a wrong size": (OPEN + frame(PRIORITY, 0, 3, b"1234"), "reset 6"),
}


async def test_a_fault_of_a_stream_ends_that_stream(serving: Open, log: Log) -> None:
    """RFC 9113, sections 5.4.2 and 8.1.1; c04."""
    async with serving() as (proxy, upstream):
        async with trio.open_nursery() as nursery:
            for name, (sent, expected) in STREAM_ERRORS.items():
                nursery.start_soon(fault, proxy, name, sent, expected)
        assert not [item for item in upstream.requests if item.target == b"/bad"]
    assert not [line for line in log if line["event"] == "internal_error"]
    lines = [line for line in log if line["event"] == "exchange"]
    assert {line["outcome"] for line in lines} == {"completed", "refused", "client_disconnected"}
    refused = sorted(item for _, item in STREAM_ERRORS.values() if isinstance(item, int))
    assert sorted(line["status"] for line in lines if line["outcome"] == "refused") == refused


async def fault(proxy: Proxy, name: str, sent: bytes, expected: object) -> None:
    async with open_wire(proxy) as wire:
        await wire.stream.send_all(sent)
        await until(lambda: wire.result(3) or wire.closed)
        assert (name, wire.result(3), wire.goaway) == (name, expected, [])
        await wire.lives()
        assert await wire.ask(5) == 200, name


FILLER = "v" * 8000
CONNECTION_ERRORS: dict[str, tuple[bytes, int]] = {
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), 1),
    "HEADERS on stream 0": (head(request(), stream=0), 1),
    "an even stream": (head(request(), stream=2), 1),
    "DATA on an idle stream": (frame(DATA, 0, 3, b"x"), 1),
    "RST_STREAM on an idle stream": (frame(RST, 0, 3, bytes(4)), 1),
    "WINDOW_UPDATE on an idle stream": (update(3, 1), 1),
    "WINDOW_UPDATE of 0": (update(0, 0), 1),
    "a window beyond 2^31 - 1": (update(0, 2**31 - 1), 3),
    "a frame that is too large": (frame(DATA, 0, 1, bytes(16385)), 6),
    "SETTINGS of a wrong size": (frame(SETTINGS, 0, 0, bytes(5)), 6),
    "SETTINGS that acknowledge and set": (frame(SETTINGS, ACK, 0, bytes(6)), 6),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), 1),
    "ENABLE_PUSH of 2": (settings(2, 2), 1),
    "INITIAL_WINDOW_SIZE of 2^31": (settings(4, 2**31), 3),
    "an INITIAL_WINDOW_SIZE too large for a stream": (
        settings(4, 0) + OPEN + update(3, 2**31 - 1) + settings(4, 1),
        3,
    ),
    "MAX_FRAME_SIZE of 1": (settings(5, 1), 1),
    "PING of a wrong size": (frame(PING, 0, 0, bytes(7)), 6),
    "PING on a stream": (frame(PING, 0, 1, bytes(8)), 1),
    "PUSH_PROMISE": (frame(PUSH, END_HEADERS, 1, bytes(4) + request()), 1),
    "RST_STREAM of a wrong size": (frame(RST, 0, 1, bytes(3)), 6),
    "padding longer than the frame": (frame(DATA, PADDED, 1, b"\x09x"), 1),
    "padding without room": (frame(HEADERS, PADDED, 3), 6),
    "priority without room": (frame(HEADERS, 0x20, 3, bytes(4)), 6),
    "CONTINUATION alone": (frame(CONTINUATION, END_HEADERS, 3, b""), 1),
    "a block with DATA inside": (frame(HEADERS, 0, 3, request()) + frame(DATA, 0, 1, b""), 1),
    "a block of two streams": (frame(HEADERS, 0, 3, b"") + frame(CONTINUATION, 4, 5, b""), 1),
    "HEADERS on a closed stream": (head(request(), stream=7) + head(request(), stream=3), 5),
    "an index that is none": (head(b"\xff\xff\x03"), 9),
    "an integer without an end": (head(b"\x7f" + b"\xff" * 9), 9),
    "a string that is cut": (head(b"\x00\x05ab"), 9),
    "Huffman code that is none": (head(b"\x00\x84\xff\xff\xff\xff\x01x"), 9),
    "a table size that is not allowed": (head(b"\x3f\xe2\x1f"), 9),
    # 10.5: floods
    "a list of fields beyond all bounds": (many(request(*[("x", FILLER)] * 40)), 11),
    "heads beyond the limit": (
        b"".join(many(request(*[("x", FILLER)] * 9), n) for n in range(3, 27, 2)),
        11,
    ),
    "CONTINUATION": (frame(HEADERS, END, 3, b"") + frame(CONTINUATION, 0, 3, b"") * 100, 11),
    "PING": (frame(PING, 0, 0, bytes(8)) * 3000, 11),
    "SETTINGS": (settings(4, 100) * 3000, 11),
    "empty DATA": (OPEN + frame(DATA, 0, 3, b"") * 3000, 11),
    "RST_STREAM": (head(request()) + frame(RST, 0, 3, bytes(4)) * 3000, 11),
    "WINDOW_UPDATE of 0 on closed streams": (
        head(request()) + frame(RST, 0, 3, bytes(4)) + update(3, 0) * 3000,
        11,
    ),
    "malformed requests that are reset": (
        b"".join(head(request(method="POST"), 0, n) + update(n, 0) for n in range(3, 1803, 2)),
        11,
    ),
    "rapid resets": (
        b"".join(
            head(request(), END, n) + frame(RST, 0, n, b"\0\0\0\x08") for n in range(3, 1803, 2)
        ),
        11,
    ),
}


async def test_what_breaks_the_connection_ends_it(
    serving: Open, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """RFC 9113, sections 5.4.1 and 10.5; c04, c06. Another connection lives on, and nothing of a
    flood of resets goes up.
    """
    monkeypatch.setattr("proxy.downstream.http2.connection._LINGER_S", 20)
    async with serving() as (proxy, upstream):
        async with open_wire(proxy) as beside, trio.open_nursery() as nursery:
            for name, (sent, code) in CONNECTION_ERRORS.items():
                nursery.start_soon(broken, proxy, name, sent, code)
            for first in (PREFACE[:-1] + b"x", PREFACE + frame(PING, 0, 0, bytes(8))):
                nursery.start_soon(broken_preface, proxy, first)
            await beside.lives()
            assert await beside.ask(3) == 200
        assert not [item for item in upstream.requests if item.target == b"/bad"]
    assert not [line for line in log if line["event"] == "internal_error"]
    assert set(await outcomes_of(log)) == {"completed", "client_disconnected", "refused"}


async def broken(proxy: Proxy, name: str, sent: bytes, code: int) -> None:
    async with open_wire(proxy) as wire:
        await wire.stream.send_all(sent)
        await until(lambda: wire.closed)
        assert (name, wire.goaway) == (name, [code])


async def broken_preface(proxy: Proxy, first: bytes) -> None:
    async with open_wire(proxy, first, bytes(1 << 20), live=False) as wire:  # not a reset
        await until(lambda: wire.closed)
        assert wire.goaway == [1]
        await wire.stream.send_all(bytes(1 << 20))


async def test_what_is_no_fault(serving: Open) -> None:
    """Priorities (5.3.2, 6.3), unknown frames (5.5), padding, CONTINUATION, trailers, cookie crumbs
    (8.2.3), one Content-Length in two fields, a Host beside `:authority`.
    """
    crumbs = [("cookie", "a=1"), ("cookie", "b=2")]
    twice = [("content-length", "300")] * 2
    good = request(*crumbs, *twice, ("te", "trailers"), ("host", "H:80"), method="POST", path="/x")
    async with serving() as (proxy, upstream), open_wire(proxy) as wire:
        for stream in range(3, 7003, 2):
            await wire.stream.send_all(frame(PRIORITY, 0, stream, stream.to_bytes(4, "big") + b"x"))
        pieces = [good[at : at + 9] for at in range(0, len(good), 9)]
        await wire.stream.send_all(
            frame(0xBB, 0xFF, 7, b"x" * 99)
            + frame(GOAWAY, 0, 0, bytes(8))
            + frame(HEADERS, PADDED | 0x20, 3, b"\x03" + bytes(5) + pieces[0] + b"pad")
            + b"".join(frame(CONTINUATION, 0, 3, piece) for piece in pieces[1:])
            + frame(CONTINUATION, END_HEADERS, 3)
            + frame(DATA, PADDED, 3, b"\xffh" + bytes(255)) * 300  # more padding than a window
            + head(block(("x-trailer", "t")), END)
            + frame(PING, 0, 0, b"12345678")
        )
        await until(lambda: wire.result(3))
        assert (wire.result(3), wire.data[3]) == (200, b"POST /x 300")
        assert (PING, ACK, 0, b"12345678") in wire.frames
        (asked,) = [item for item in upstream.requests if item.target == b"/x"]
        assert (asked.all("cookie"), asked.all("content-length")) == ([b"a=1; b=2"], [b"300"])
        assert asked.all("x-forwarded-host") == [b"h"]
        await wire.lives()


def opened(wire: Wire) -> int:
    """By how much the window of stream 7 has opened."""
    updates = [item[3] for item in wire.frames if item[0] == UPDATE and item[2] == 7]
    return sum(int.from_bytes(item, "big") for item in updates)


async def test_responses_without_a_body_and_before_the_request(
    serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """END_STREAM is on HEADERS where no body follows, and on the last DATA of a known length. After
    a response before the end of the request the rest is taken and dropped, up to a limit, and then
    the stream is reset with NO_ERROR (8.1). There is always a Date (c15).
    """
    monkeypatch.setattr("proxy.downstream.http2.input._MAX_LATE_BYTES", 100_000)

    async def answer(peer: Peer) -> None:
        while True:
            asked = await peer.request(body=False)
            status = {b"/204": b"204 x", b"/304": b"304 x"}.get(asked.target, b"200 x")
            await peer.send(b"HTTP/1.1 %b\r\n" % status)
            await peer.send(b"Content-Length: 2\r\n\r\n" if status == b"200 x" else b"\r\n")
            if asked.method == "POST":
                await peer.send(b"ok")
                await peer.wait_closed()
            await peer.take_body(asked)

    async with serving(script=answer) as (proxy, _), open_wire(proxy, live=False) as wire:
        for stream, (method, path) in enumerate([("HEAD", "/"), ("GET", "/204"), ("GET", "/304")]):
            sent = head(request(method=method, path=path), stream=2 * stream + 1)
            await wire.stream.send_all(sent)
            await until(lambda stream=stream: wire.result(2 * stream + 1))
        assert [wire.result(stream) for stream in (1, 3, 5)] == [200, 204, 304]
        assert wire.data == {}
        post = head(request(("content-length", "900000"), method="POST"), 0, 7)
        piece = frame(DATA, 0, 7, bytes(16383))
        await wire.stream.send_all(post + piece * 4)  # the whole window
        await until(lambda: wire.result(7) and opened(wire) > 49_000)
        assert (wire.result(7), wire.data[7]) == (200, b"ok")
        assert not [item for item in wire.frames if item[0] == RST]
        reset = RST, 0, 7, bytes(4)
        for sent in range(4, 30):  # as far as the windows allow
            room = (sent + 1) * 16383 - 65535
            await until(lambda room=room: opened(wire) >= room or reset in wire.frames)
            if reset not in wire.frames:
                await wire.stream.send_all(piece)
        await until(lambda: reset in wire.frames)
        assert opened(wire) < 300_000
        await wire.stream.send_all(frame(DATA, 0, 7, bytes(9)) + head(block(X), END, 7))
        assert await wire.ask(9, "/204") == 204
        assert wire.goaway == []


async def test_announced_limits_are_true(serving: Open, log: Log) -> None:
    """As many streams as announced, and each beyond is refused alone (5.1.2; c05). A stream that
    ends makes room when its exchange has ended.
    """
    async with serving(streams=20) as (proxy, _), open_wire(proxy) as wire:
        assert wire.settings == {3: 20, 6: 65536}
        live = range(3, 41, 2)
        stream = head(request(path="/stream"), stream=41)
        sent = [head(request(path="/stream"), stream=number) for number in live]
        await wire.stream.send_all(b"".join(sent) + stream + stream.replace(b"\0\0\0)", b"\0\0\0+"))
        await until(lambda: len(wire.data) == 20 and len(wire.ends) == 2)
        assert wire.ends == {41: 7, 43: 7}
        await wire.stream.send_all(frame(RST, 0, 3, b"\0\0\0\x08"))
        await until(lambda: len(proxy.worker.live) == 19)
        assert await wire.ask(45) == 200
        await wire.lives()
        assert set(await outcomes_of(log, 2)) == {"client_disconnected", "completed"}


@pytest.mark.parametrize(
    "sent",
    [
        PREFACE[:18],
        PREFACE + frame(SETTINGS, 0, 0),
        PREFACE + settings(4, 1) + frame(HEADERS, END, 1, b"\x82"),
    ],
)
async def test_a_connection_without_a_request_is_idle(sent: bytes, serving: Open) -> None:
    """Whatever else arrives (c07). A stream that is quiet is not."""

    async def quiet(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.wait_closed()

    async with serving(keep_alive=0.3, script=quiet) as (proxy, _):
        async with open_wire(proxy, live=False) as live, open_wire(proxy, sent, live=False) as idle:
            await live.stream.send_all(head(request(path="/stream"), stream=1))
            began = trio.current_time()
            with trio.move_on_after(5):
                while not idle.closed:
                    await trio.sleep(0.05)
                    if sent.endswith(frame(SETTINGS, 0, 0)):
                        await idle.stream.send_all(frame(PING, 0, 0, bytes(8)))
            assert idle.goaway == [0]
            assert trio.current_time() - began > 0.2
            await trio.sleep(0.3)
            assert not live.closed
            await live.stream.send_all(frame(RST, 0, 1, bytes(4)))
            await until(lambda: live.closed)
            assert live.goaway == [0]


async def test_the_time_of_an_idle_connection_begins_with_it(serving: Open) -> None:
    """And not with its preface (c07)."""
    async with serving(keep_alive=1) as (proxy, _), open_wire(proxy, b"", live=False) as wire:
        await trio.sleep(0.4)
        async with open_wire(proxy, b"", live=False) as later:
            await trio.sleep(0.4)
            await wire.stream.send_all(PREFACE)
            await until(lambda: later.closed)
            assert wire.closed


async def test_a_full_socket_holds_streams_in_turns(
    serving: Open, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """Streams share a slow connection frame by frame, and control frames do not wait for them. A
    client whose window for one stream stays shut loses that stream only.
    """
    limit_send_buffers(monkeypatch, 20_000)
    body = b"x" * 2_000_000

    async def large(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        await peer.send(body)
        await peer.wait_closed()

    async with serving(script=large, route="timeouts: {send: 1}") as (proxy, _):
        async with open_wire(proxy, PREFACE, settings(4, 10), live=False) as wire:
            await wire.stream.send_all(head(request(path="/shut"), stream=1))
            sent = [head(request(), stream=number) + update(number, 2**30) for number in (3, 5)]
            await wire.stream.send_all(b"".join(sent) + update(0, 2**30))
            await until(lambda: len(wire.data.get(5, b"")) > 100_000)
            await wire.stream.send_all(frame(PING, 0, 0, bytes(8)))
            await until(lambda: wire.result(3) and wire.result(5))
            assert wire.data[3] == wire.data[5] == body
            sent_data = [item for item in wire.frames if item[0] == DATA and item[2] > 1]
            first_end = next(at for at, item in enumerate(sent_data) if item[1] & END)
            order = [item[2] for item in sent_data[:first_end]]
            runs = [len(list(run)) for _, run in groupby(order[order.index(5) :])]
            assert max(runs) < 20
            assert len(order) > 150
            kinds = [item[0] for item in wire.frames]
            assert DATA in kinds[kinds.index(PING) :]
            await until(lambda: wire.ends.get(1))
            assert wire.ends[1] == 2


async def test_a_client_that_vanishes_between_read_and_write_harms_no_other(
    serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to its PING shows that it has left, and its request is in the same read."""
    async with serving() as (proxy, _), open_wire(proxy) as wire:
        async with open_wire(proxy, PREFACE, settings(4, 9), live=False) as other:
            await until(lambda: (SETTINGS, ACK, 0, b"") in other.frames)
            kind = TlsTransport if proxy.port in CONTEXTS else Transport
            receive = kind.receive

            def lose(transport: Transport, max_bytes: int) -> bytes | None:
                data = receive(transport, max_bytes)
                if data and b"/lost" in data:
                    sock = getattr(other.stream, "transport_stream", other.stream).socket
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                return data

            monkeypatch.setattr(kind, "receive", lose)
            ping = frame(PING, 0, 0, bytes(8))
            await other.stream.send_all(ping + head(request(path="/lost"), stream=1))
            await until(lambda: len(client_connections) == 1)
        await wire.lives()
        assert await wire.ask(3) == 200
