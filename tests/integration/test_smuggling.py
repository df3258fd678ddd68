"""Request smuggling on the way in: the upstream sees the one request that a strict reader sees in a
client's bytes, or none.

Each case holds a second request, `/smuggled`, where a lax reader would find one. A server in front
of us that reads the lengths otherwise than we do would take it for a part of the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest
import trio
from support.interceptors import Log, Rig, Way
from support.upstream import Peer

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /first HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


class Wire:
    """What reached the upstream, byte for byte."""

    def __init__(self) -> None:
        self.connections: list[bytearray] = []

    async def script(self, peer: Peer) -> None:
        received = bytearray()
        self.connections.append(received)
        while data := await peer.stream.receive_some(65536):
            received += data
            if self.whole(bytes(received)):
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    @staticmethod
    def whole(wire: bytes) -> bool:
        return Wire.read(wire)[1]

    @staticmethod
    def read(wire: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
        """The requests (target, body) on one connection, as h11 reads them, and whether they end
        with it.
        """
        requests: list[tuple[bytes, bytes]] = []
        while wire:
            connection = h11.Connection(h11.SERVER)
            connection.receive_data(wire)
            head = connection.next_event()
            if not isinstance(head, h11.Request):
                return requests, False
            body = b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                return requests, False
            requests.append((head.target, body))
            wire = connection.trailing_data[0]
        return requests, True

    @property
    def requests(self) -> list[tuple[bytes, bytes]]:
        return [request for wire in self.connections for request in self.read(bytes(wire))[0]]


@asynccontextmanager
async def served(log: Log, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Rig, Wire]]:
    wire = Wire()
    async with Way().serve(log, monkeypatch)(wire.script) as rig:
        yield rig, wire
        for received in wire.connections:
            assert Wire.whole(bytes(received)) or not received, bytes(received)


async def exchange(rig: Rig, data: bytes) -> bytes:
    """Send these bytes and no more; everything that comes back until the proxy closes, or is
    silent.
    """
    client = await rig.client()
    answer = b""
    with trio.fail_after(10):
        await client.stream.send_all(data)
        try:
            while True:
                with trio.move_on_after(0.3) as scope:
                    received = await client.stream.receive_some(65536)
                    if not received:
                        break
                    answer += received
                if scope.cancelled_caught and answer:
                    break
        except trio.BrokenResourceError:
            pass
    return answer


REFUSED = {
    "TE and CL, the chunked body ends first": POST
    + b"Content-Length: 6\r\n"
    + CHUNKED
    + b"\r\n0\r\n\r\n"
    + SMUGGLED,
    "TE and CL, the length ends later": POST
    + b"Content-Length: %d\r\n" % (5 + len(SMUGGLED))
    + CHUNKED
    + b"\r\n0\r\n\r\n"
    + SMUGGLED,
    "TE before CL": POST + CHUNKED + b"Content-Length: 6\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE and CL for a page": b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
    + CHUNKED
    + b"\r\n0\r\n\r\n"
    + SMUGGLED,
    "TE and CL for a page that refuses": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n"
    + CHUNKED
    + b"\r\n0\r\n\r\n"
    + SMUGGLED,
    "two lengths": POST
    + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
    + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a length with a sign": POST + b"Content-Length: +%d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "a length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n" + SMUGGLED,
    "a length in hexadecimal": POST + b"Content-Length: 0x10\r\n\r\n" + SMUGGLED,
    "a space before the colon": POST + b"Content-Length : %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "TE with a space before the colon": POST
    + b"Content-Length: 0\r\nTransfer-Encoding : chunked\r\n\r\n"
    + SMUGGLED,
    "TE other than chunked": POST + b"Transfer-Encoding: gzip\r\n\r\n" + SMUGGLED,
    "TE with more than chunked": POST
    + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    + SMUGGLED,
    "TE with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "TE twice": POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk size with a sign": POST + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk size with 0x": POST + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED,
    "a chunk size that overflows": POST
    + CHUNKED
    + b"\r\n"
    + b"1" * 25
    + b"\r\nhello\r\n0\r\n\r\n"
    + SMUGGLED,
    "chunk data without its end": POST
    + CHUNKED
    + b"\r\n5\r\nhelloGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n0\r\n\r\n",
    "a NUL in a value": b"GET /first HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n" + SMUGGLED,
    "two Hosts": b"GET /first HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no Host": b"GET /first HTTP/1.1\r\n\r\n",
    "a CR in a value": b"GET /first HTTP/1.1\r\nHost: x\r\nX: a\rGET /smuggled HTTP/1.1\r\n\r\n",
    "a CR in the target": b"GET /first\rX: y HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line before the request line": b"X: y\r\nGET /first HTTP/1.1\r\nHost: x\r\n\r\n",
    "a folded request line": b"GET /first\r\n HTTP/1.1\r\nHost: x\r\n\r\n",
    "a folded line": b"GET /first HTTP/1.1\r\nHost: x\r\nX: a\r\n Content-Length: 9\r\n\r\n",
    "a folded length": POST + b"Content-Length:\r\n %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "TE behind a tab": POST
    + b"Content-Length: 0\r\nX: a\r\n\tTransfer-Encoding: chunked\r\n\r\n"
    + SMUGGLED,
    "bare LF for line ends": b"GET /first HTTP/1.1\nHost: x\n\n",
    "one bare LF": b"GET /first HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "a bare LF for the empty line": b"GET /first HTTP/1.1\r\nHost: x\r\n\n" + SMUGGLED,
    "a bare LF in trailers": POST + CHUNKED + b"\r\n0\r\nX: y\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_could_be_read_in_two_ways_goes_nowhere(
    name: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4xx or 501, or an end without a word; nothing of it is a request upstream; and the connection
    is of no more use: no request that follows on it is answered (RFC 9112, section 6.1).
    """
    async with served(log, monkeypatch) as (rig, wire):
        answer = await exchange(rig, REFUSED[name])
        assert answer.count(b"HTTP/1.1 ") <= 1, answer
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ")), answer
        assert wire.requests == []


FORWARDED = {
    "CL": (
        POST + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        [(b"/first", SMUGGLED)],
    ),
    "the same length twice": (
        POST + b"Content-Length: %d\r\n" % len(SMUGGLED) * 2 + b"\r\n" + SMUGGLED,
        [(b"/first", SMUGGLED)],
    ),
    "TE": (
        POST + CHUNKED + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        [(b"/first", SMUGGLED)],
    ),
    "TE in capitals": (
        POST
        + b"TRANSFER-ENCODING: Chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        [(b"/first", SMUGGLED)],
    ),
    "chunk extensions stay behind": (
        POST + CHUNKED + b'\r\n5;a="\\r\\nGET /smuggled"\r\nhello\r\n0;x\r\n\r\n',
        [(b"/first", b"hello")],
    ),
    "trailers stay behind": (
        POST + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nContent-Length: 99\r\nX-Admin: yes\r\n\r\n",
        [(b"/first", b"hello")],
    ),
    "a Connection that names the length": (
        POST
        + b"Connection: content-length\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED)
        + SMUGGLED,
        [(b"/first", SMUGGLED)],
    ),
    "absolute form": (
        b"GET http://evil.test/first HTTP/1.1\r\nHost: x\r\n\r\n",
        [(b"/first", b"")],
    ),
    "HTTP/1.0": (b"GET /first HTTP/1.0\r\nHost: x\r\n\r\n", [(b"/first", b"")]),
}


@pytest.mark.parametrize("name", FORWARDED)
async def test_what_has_one_reading_goes_upstream_as_that(
    name: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request upstream, written anew: without extensions and trailers."""
    data, requests = FORWARDED[name]
    async with served(log, monkeypatch) as (rig, wire):
        answer = await exchange(rig, data)
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        assert answer.count(b"HTTP/1.1 ") == 1, answer
        assert wire.requests == requests
        (sent,) = wire.connections
        head = bytes(sent).partition(b"\r\n\r\n")[0]
        assert all(
            b"\r" not in line and b"\n" not in line and not line.startswith((b" ", b"\t"))
            for line in head.split(b"\r\n")
        )
        assert b"X-Admin" not in sent
        assert b"smuggled" not in head


@pytest.mark.parametrize(
    "name", ["bare LF for line ends", "one bare LF", "a folded line", "a CR in a value"]
)
async def test_a_lax_head_is_refused_however_it_comes(
    name: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte as in one piece; and a strict one that comes so is served."""
    async with served(log, monkeypatch) as (rig, wire):
        client = await rig.client()
        with trio.fail_after(10):
            try:
                for byte in REFUSED[name]:
                    await client.stream.send_all(bytes([byte]))
                    await trio.sleep(0)
                answer = await client.stream.receive_some(65536)
                assert answer.startswith(b"HTTP/1.1 400 ")
            except trio.BrokenResourceError:
                pass  # it was refused before it was whole
            assert wire.requests == []
            client = await rig.client()
            for byte in b"GET /first HTTP/1.1\r\nHost: x\r\nX: a\r\n\r\n":
                await client.stream.send_all(bytes([byte]))
                await trio.sleep(0)
            assert (await client.stream.receive_some(65536)).startswith(b"HTTP/1.1 200 ")
        assert wire.requests == [(b"/first", b"")]


async def test_two_requests_on_one_connection_are_two(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipelined requests are answered in order: this is what `/smuggled` would look like, so the
    cases above can fail.
    """
    async with served(log, monkeypatch) as (rig, wire):
        answer = await exchange(rig, b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED)
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert sorted(wire.requests) == [(b"/first", b""), (b"/smuggled", b"")]
