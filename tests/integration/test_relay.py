"""Bytes and events through the whole proxy, on real sockets: what arrives is what was sent."""

from __future__ import annotations

import hashlib
import random

import h11
import pytest
import trio
from support.client import fetch, open_client
from support.interceptors import Serve, interceptor
from support.upstream import Peer, answering, stream_of

from interceptors import Event

OK = b"HTTP/1.1 200 OK\r\n"
SSE = b"Content-Type: text/event-stream\r\n"


def look(event: Event) -> Event:
    assert isinstance(event.data, str)
    return event


EVENTS = [
    b'id: %d\ndata: {"n": %d, "text": "\xc3\xa9\xe2\x80\xa8%s"}\n\n' % (n, n, b"x" * (n % 700))
    for n in range(10_000)
]
BYTES = random.Random(1).randbytes(4 << 20)


@pytest.mark.parametrize("framing", ["chunked", "content-length", "until-close"])
@pytest.mark.parametrize("kind", ["bytes", "events", "events, seen"])
async def test_megabytes_arrive_byte_for_byte(kind: str, framing: str, serve_once: Serve) -> None:
    """In each framing, chunks cut at random, with the end of the framing; also through an
    interceptor that looks at every event and changes none.
    """
    whole = BYTES if kind == "bytes" else b"".join(EVENTS)
    cuts = random.Random(7)

    async def script(peer: Peer) -> None:
        await peer.request()
        head = OK + (SSE if kind != "bytes" else b"Content-Type: application/octet-stream\r\n")
        if framing == "content-length":
            await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(whole) + whole)
        elif framing == "until-close":
            await peer.send(head + b"\r\n" + whole)
        else:
            await peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            at = 0
            while at < len(whole):
                size = cuts.choice((1, 7, 300, 5_000, 40_000, 100_000))
                await peer.chunk(whole[at : at + size])
                at += size
            await peer.end()

    seen = kind == "events, seen"
    given = [interceptor(on_event=look)] if seen else []
    async with serve_once(script, *given) as rig:
        answer = await fetch(rig.proxy.port)
        assert (answer.status, answer.complete) == (200, True)
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(whole).digest()
        length = [b"%d" % len(whole)] if framing == "content-length" and not seen else []
        assert answer.all("content-length") == length
        assert answer.all("x-accel-buffering") == ([] if kind == "bytes" else [b"no"])
        tally = rig.proxy.worker.metrics.routes["/"]
        assert tally.events("passed") == (len(EVENTS) if seen else 0)


async def test_every_event_leaves_at_once(serve_once: Serve) -> None:
    """An event arrives at the client before the upstream sends the next one."""
    sender, receiver = trio.open_memory_channel[None](0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for number in range(3):
            await peer.chunk(b"data: %d\n\n" % number)
            await receiver.receive()
        await peer.end()

    async with serve_once(script) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            for number in range(3):
                await client.read_until(answer, b"data: %d\n\n" % number)
                assert set(rig.proxy.in_use().values()) == {0}  # an idle stream holds no buffer
                await sender.send(None)
            assert (await client.rest(answer)).complete


async def test_target_and_headers_arrive_as_they_were_sent(serve_once: Serve) -> None:
    """Method, path and query byte for byte."""
    headers = [
        ("Host", "client.test"),
        ("X-Two", "1"),
        ("Accept", "text/event-stream, application/json"),
        ("x-two", "2"),
        ("Connection", "keep-alive, X-Hop"),
        ("X-Hop", "no"),
        ("X-Forwarded-For", "6.6.6.6"),
        ("Accept-Encoding", "gzip"),
    ]
    async with serve_once(stream_of(b"data: x\n\n")) as rig:
        await rig.fetch('/a/../b%2Fc?q="{&x=%zz', headers=headers)
        (request,) = rig.upstream.requests
        assert request.target == b'/a/../b%2Fc?q="{&x=%zz'
        assert request.all("x-two") == [b"1", b"2"]
        assert request.all("accept") == [b"text/event-stream, application/json"]
        assert request.all("accept-encoding") == [b"gzip"]
        assert request.all("host") == [rig.upstream.url.removeprefix("http://").encode()]
        assert request.all("x-forwarded-for") == [b"127.0.0.1"]
        assert request.all("x-forwarded-host") == [b"client.test"]
        assert not request.all("x-hop")
        assert not request.all("connection")


async def test_response_headers_come_back_in_order(serve_once: Serve) -> None:
    """With duplicates and the upstream's Date, without hop-by-hop headers."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 418 Teapot\r\nSet-Cookie: a=1\r\nX-Hop: 1\r\nConnection: X-Hop\r\nKeep-Alive: timeout=5\r\n"
            b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: b=2\r\nX-Request-Id: its\r\nContent-Length: 2\r\n\r\nhi"
        )

    async with serve_once(script) as rig:
        answer = await rig.fetch()
        assert (answer.status, answer.body) == (418, b"hi")
        assert answer.headers == [
            (b"set-cookie", b"a=1"),
            (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
            (b"set-cookie", b"b=2"),
            (b"x-request-id", b"its"),
            (b"content-length", b"2"),
        ]


async def test_a_cookie_stays_with_its_client(serve_once: Serve) -> None:
    cookie = b"Set-Cookie: session=first; Path=/\r\n"
    async with serve_once(answering(OK + cookie + b"Content-Length: 0\r\n\r\n")) as rig:
        assert (await rig.fetch()).all("set-cookie") == [b"session=first; Path=/"]
        await rig.fetch()
        await rig.fetch(headers=[("Cookie", "own=1")])
        assert [item.all("cookie") for item in rig.upstream.requests] == [[], [], [b"own=1"]]


HEAD = OK + SSE + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = OK + b"Content-Type: application/json\r\nContent-Length: 7\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "head", "body", "status"),
    [
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n", b"", 200),
        ("HEAD", HEAD, b"", 200),
        ("HEAD", OK + b"\r\n", b"", 200),
        ("GET", b"HTTP/1.1 205 x\r\nContent-Length: 0\r\n\r\n", b"", 205),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b"", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", 304),
        ("DELETE", b"HTTP/1.1 405 Not Allowed\r\nContent-Length: 0\r\n\r\n", b"", 405),
        ("POST", WHOLE, b'{"a":1}', 200),
        ("GET", HEAD + b"3\r\n:x\n\r\n0\r\n\r\n", b":x\n", 200),  # chunks that go around h11
    ],
)
async def test_both_connections_stay_in_use_after_a_response(
    method: str, head: bytes, body: bytes, status: int, serve_once: Serve
) -> None:
    """One without a body ends at once."""
    async with serve_once(answering(head + (body if head is WHOLE else b""))) as rig:
        client = await rig.client()
        for _ in range(3):
            await client.send(method, "/", body=b"{}" if method == "POST" else None)
            answer = await client.answer()
            assert (answer.status, answer.body, answer.complete) == (status, body, True)
            client.next_cycle()
        assert rig.upstream.accepted == 1


async def test_the_connection_outlives_the_proxys_answer(serve_once: Serve) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    async with serve_once(script) as rig:
        client = await rig.client()
        for _ in range(3):
            await client.send("POST", "/", body=b"{}")
            answer = await client.answer()
            assert (answer.status, answer.complete) == (502, True)
            client.next_cycle()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (WHOLE + b'{"a":1}', b'{"a":1}'),
        (HEAD + b"6\r\ndata: \r\n3;x\r\n1\n\n\r\n0\r\n\r\n", b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"),
        (HEAD + b"0\r\n\r\n", b"0\r\n\r\n"),
    ],
    ids=["length", "chunks", "no chunk"],
)
async def test_a_whole_answer_leaves_in_one_piece(
    answer: bytes, body: bytes, serve_once: Serve
) -> None:
    """When the upstream's body has come with its head, the client gets both at once."""
    async with serve_once(answering(answer)) as rig:
        stream = (await rig.client()).stream
        for _ in range(3):
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
            piece = await stream.receive_some(65536)
            assert piece.startswith(b"HTTP/1.1 200")
            assert piece.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("headers", [[], [("Transfer-Encoding", "chunked")]])
async def test_request_bodies_arrive_as_they_were_sent(
    headers: list[tuple[str, str]], serve_once: Serve
) -> None:
    """With a Content-Length or chunked."""
    body = BYTES[: 2 << 20]

    async def script(peer: Peer) -> None:
        assert (await peer.request()).body == body
        await peer.send(OK + b"Content-Length: 0\r\n\r\n")

    async with serve_once(script) as rig:
        answer = await rig.fetch(method="POST", headers=headers, body=body)
        assert (answer.status, answer.complete) == (200, True)
        (request,) = rig.upstream.requests
        assert request.all("content-length") == ([] if headers else [b"%d" % len(body)])


async def test_a_full_duplex_exchange(serve_once: Serve) -> None:
    """The upstream answers while the request body is still coming, and both directions continue."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.start_stream()
        while isinstance(event := await peer._next(), h11.Data):
            await peer.chunk(b"data: " + bytes(event.data) + b"\n\n")
        await peer.end()

    async with serve_once(script) as rig:
        client = await open_client(rig.proxy.port)
        head = [("Host", "x"), ("Transfer-Encoding", "chunked")]
        request = client._h11.send(h11.Request(method="POST", target="/", headers=head)) or b""
        await client.stream.send_all(request + b"3\r\none\r\n")
        with trio.fail_after(5):
            answer = await client.head()
            await client.read_until(answer, b"data: one\n\n")
            await client.stream.send_all(b"3\r\ntwo\r\n")
            await client.read_until(answer, b"data: two\n\n")
            await client.stream.send_all(b"0\r\n\r\n")
            assert (await client.rest(answer)).complete
        await client.aclose()
