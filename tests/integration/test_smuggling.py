"""Request smuggling on the way in: the upstream sees the one request that a strict reader sees in a
client's bytes, or none.

Most cases hold a second request, `/smuggled`, where a lax reader would find one. A server in front
that reads the lengths otherwise than the proxy would take it for a part of the first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import pytest
import trio
from support.interceptors import Rig, Serve
from support.upstream import Peer

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SIZE = b"%d" % len(SMUGGLED)
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)


def read(wire: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """The requests (target, body) on one connection, as h11 reads them, and whether they end with
    it.
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


class Served:
    """A proxy, and what reached its upstream, byte for byte."""

    def __init__(self) -> None:
        self.rig: Rig
        self.wires: list[bytearray] = []

    async def script(self, peer: Peer) -> None:
        self.wires.append(received := bytearray())
        while data := await peer.stream.receive_some(65536):
            received += data
            if read(bytes(received))[1]:
                await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    @property
    def requests(self) -> list[tuple[bytes, bytes]]:
        return [request for wire in self.wires for request in read(bytes(wire))[0]]

    async def exchange(self, data: bytes, *, bytewise: bool = False) -> bytes:
        """Send these bytes and no more; what comes back until the proxy closes, or is silent."""
        stream, answer = (await self.rig.client()).stream, b""
        with trio.fail_after(10):
            try:
                for at in range(len(data)) if bytewise else ():
                    await stream.send_all(data[at : at + 1])
                    await trio.sleep(0)
                await stream.send_all(b"" if bytewise else data)
                while True:
                    with trio.move_on_after(0.1) as scope:
                        if not (received := await stream.receive_some(65536)):
                            break
                        answer += received
                    if scope.cancelled_caught and answer:
                        break
            except trio.BrokenResourceError:
                pass
        return answer


@pytest.fixture
async def served(serve_once: Serve) -> AsyncIterator[Served]:
    served = Served()
    async with serve_once(served.script) as served.rig:
        yield served


def post(*lines: bytes, body: bytes = SMUGGLED) -> bytes:
    """`TE` and `CL` are the usual fields."""
    named = {b"TE": b"Transfer-Encoding: chunked", b"CL": b"Content-Length: 6"}
    lines = (b"POST /first HTTP/1.1", b"Host: x", *(named.get(line, line) for line in lines))
    return b"\r\n".join([*lines, b"", body])


END = b"0\r\n\r\n" + SMUGGLED
GET = b"GET /first HTTP/1.1\r\nHost: x\r\n"

REFUSED = {
    "TE and CL, the chunked body ends first": post(b"CL", b"TE", body=END),
    "TE and CL, the length ends later": post(b"Content-Length: 41", b"TE", body=END),
    "TE before CL": post(b"TE", b"CL", body=END),
    "TE and CL for a page": post(b"CL", b"TE", body=END).replace(b"POST /first", b"GET /metrics"),
    "TE and CL for a page that refuses": post(b"CL", b"TE", body=END).replace(b"/first", b"/healthz"),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: " + SIZE),
    "a list of lengths": post(b"Content-Length: 0, " + SIZE),
    "a length with a sign": post(b"Content-Length: +" + SIZE),
    "a negative length": post(b"Content-Length: -1"),
    "a length with an underscore": post(b"Content-Length: 1_0"),
    "a length in hexadecimal": post(b"Content-Length: 0x10"),
    "a space before the colon": post(b"Content-Length : " + SIZE),
    "TE with a space before the colon": post(b"Content-Length: 0", b"Transfer-Encoding : chunked"),
    "TE other than chunked": post(b"Transfer-Encoding: gzip"),
    "TE with more than chunked": post(b"Transfer-Encoding: gzip, chunked", body=END),
    "TE with a vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=END),
    "TE twice": post(b"TE", b"Transfer-Encoding: identity", body=END),
    "a chunk size with a sign": post(b"TE", body=b"+5\r\nhello\r\n" + END),
    "a chunk size with 0x": post(b"TE", body=b"0x5\r\nhello\r\n" + END),
    "a chunk size that overflows": post(b"TE", body=b"1" * 25 + b"\r\nhello\r\n" + END),
    "chunk data without its end": post(b"TE", body=b"5\r\nhello" + SMUGGLED + b"0\r\n\r\n"),
    "a NUL in a value": GET + b"X: a\x00b\r\n\r\n" + SMUGGLED,
    "two Hosts": GET + b"Host: y\r\n\r\n",
    "no Host": b"GET /first HTTP/1.1\r\n\r\n",
    "a CR in a value": GET + b"X: a\rGET /smuggled HTTP/1.1\r\n\r\n",
    "a CR in the target": b"GET /first\rX: y HTTP/1.1\r\nHost: x\r\n\r\n",
    "a line before the request line": b"X: y\r\n" + GET + b"\r\n",
    "a folded request line": b"GET /first\r\n HTTP/1.1\r\nHost: x\r\n\r\n",
    "a folded line": GET + b"X: a\r\n Content-Length: 9\r\n\r\n",
    "a folded length": post(b"Content-Length:", b" " + SIZE),
    "TE behind a tab": post(b"Content-Length: 0", b"X: a", b"\tTransfer-Encoding: chunked"),
    "bare LF for line ends": b"GET /first HTTP/1.1\nHost: x\n\n",
    "one bare LF": b"GET /first HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "a bare LF for the empty line": GET + b"\n" + SMUGGLED,
    "a bare LF in trailers": post(b"TE", body=b"0\r\nX: y\n\r\n" + SMUGGLED),
}  # fmt: skip
BYTEWISE = ("bare LF for line ends", "one bare LF", "a folded line", "a CR in a value")


@pytest.mark.parametrize("bytewise", [False, True])
async def test_what_could_be_read_in_two_ways_goes_nowhere(bytewise: bool, served: Served) -> None:
    """4xx or 501, or the connection's end. Nothing of it is a request upstream, and no request
    after it on its connection is answered (RFC 9112, section 6.1).
    """
    for name in BYTEWISE if bytewise else REFUSED:
        answer = await served.exchange(REFUSED[name], bytewise=bytewise)
        assert answer.count(b"HTTP/1.1 ") <= 1, (name, answer)
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ")), (name, answer)
        assert served.requests == [], name
        # A chunked request may be on its way before its body turns out to be malformed.
        assert b"smuggled" not in b"".join(served.wires), name


FORWARDED = {
    "CL": (post(b"Content-Length: " + SIZE), SMUGGLED),
    "the same length twice": (post(*[b"Content-Length: " + SIZE] * 2), SMUGGLED),
    "TE": (post(b"TE", body=CHUNK), SMUGGLED),
    "TE in capitals": (post(b"TRANSFER-ENCODING: Chunked", body=CHUNK), SMUGGLED),
    "chunk extensions stay": (
        post(b"TE", body=b'5;a="\\r\\nGET /smuggled"\r\nhello\r\n0;x\r\n\r\n'), b"hello"),
    "trailers stay": (
        post(b"TE", body=b"5\r\nhello\r\n0\r\nContent-Length: 99\r\nX-Admin: yes\r\n\r\n"), b"hello"),
    "a Connection that names the length": (
        post(b"Connection: content-length", b"Content-Length: " + SIZE), SMUGGLED),
    "absolute form": (b"GET http://evil.test/first HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    "HTTP/1.0": (b"GET /first HTTP/1.0\r\nHost: x\r\n\r\n", b""),
}  # fmt: skip


async def test_what_has_one_reading_goes_upstream_as_that(served: Served) -> None:
    """One request upstream, written anew: without extensions and trailers. Also byte by byte."""
    for name, (data, body) in FORWARDED.items():
        for bytewise in (False, True):
            for wire in served.wires:
                wire.clear()
            answer = await served.exchange(data, bytewise=bytewise)
            assert answer.startswith(b"HTTP/1.1 200 "), (name, answer)
            assert answer.count(b"HTTP/1.1 ") == 1, (name, answer)
            assert served.requests == [(b"/first", body)], name
            sent = b"".join(served.wires)
            assert read(sent)[1], sent
            head = sent.partition(b"\r\n\r\n")[0]
            for line in head.split(b"\r\n"):
                assert b"\r" not in line, name
                assert b"\n" not in line, name
                assert not line.startswith((b" ", b"\t")), name
            assert b"X-Admin" not in sent
            assert b"smuggled" not in head


async def test_two_requests_on_one_connection_are_two(served: Served) -> None:
    """Pipelined requests are answered in order: this is what `/smuggled` would look like, so the
    cases above can fail.
    """
    answer = await served.exchange(GET + b"\r\n" + SMUGGLED)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert sorted(served.requests) == [(b"/first", b""), (b"/smuggled", b"")]
