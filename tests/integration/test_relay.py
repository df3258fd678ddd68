"""Bytes and events through the whole proxy, on real sockets: what arrives is what was sent."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio
from support.client import fetch, open_client
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from interceptors import Event, Interceptor, StreamContext, StreamInterceptor

IDLE = '{name: idle, use: "idle_interceptor:Idle"}'


class Idle(Interceptor):
    """An interceptor that looks at every event and changes none."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _IdleStream()


class _IdleStream(StreamInterceptor):
    def on_event(self, event: Event) -> Event:
        assert isinstance(event.data, str)
        return event


@pytest.fixture(autouse=True)
def idle_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration loads interceptors by module name; this is the module."""
    import sys
    import types

    module = types.ModuleType("idle_interceptor")
    module.Idle = Idle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "idle_interceptor", module)


def chain(kind: str) -> dict[str, str]:
    return {} if kind == "pass-through" else {"interceptors": IDLE, "names": "idle"}


EVENTS = [
    b'id: %d\ndata: {"n": %d, "text": "\xc3\xa9\xe2\x80\xa8%s"}\n\n' % (n, n, b"x" * (n % 700))
    for n in range(10_000)
]


@pytest.mark.parametrize("kind", ["pass-through", "idle chain"])
async def test_ten_thousand_events_arrive_byte_for_byte(kind: str) -> None:
    """10,000 events of many sizes, in chunks cut at random, arrive as the very bytes that were
    sent.
    """
    whole = b"".join(EVENTS)
    cuts = random.Random(7)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        at = 0
        while at < len(whole):
            size = cuts.choice((1, 7, 300, 5_000, 40_000))
            await peer.chunk(whole[at : at + size])
            at += size
        await peer.end()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **chain(kind))) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert answer.status == 200
        assert answer.complete
        assert answer.body == whole
        assert answer.all("x-accel-buffering") == [b"no"]
        tally = proxy.worker.metrics.routes["/"]
        assert tally.events("passed") == (10_000 if kind == "idle chain" else 0)


@pytest.mark.parametrize("framing", ["chunked", "content-length", "until-close"])
@pytest.mark.parametrize("content_type", [b"application/octet-stream", b"text/event-stream"])
async def test_ten_megabytes_arrive_byte_for_byte(framing: str, content_type: bytes) -> None:
    """A 10 MB body in each framing arrives whole, with the end of its framing."""
    body = random.Random(1).randbytes(10 * 1024 * 1024)

    async def script(peer: Peer) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: " + content_type + b"\r\n"
        if framing == "content-length":
            await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        elif framing == "chunked":
            await peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 100_000):
                await peer.chunk(body[at : at + 100_000])
            await peer.end()
        else:
            await peer.send(head + b"\r\n" + body)

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        answer = await fetch(proxy.port)
        assert answer.complete
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        assert answer.all("content-length") == (
            [b"%d" % len(body)] if framing == "content-length" else []
        )


@pytest.mark.parametrize("framing", ["chunked", "content-length", "until-close"])
async def test_ten_megabytes_of_events_pass_an_idle_chain_byte_for_byte(framing: str) -> None:
    """Each framing through an interceptor that looks at every event and changes none."""
    body = b"".join(EVENTS) * 3
    assert len(body) > 10 * 1024 * 1024

    async def script(peer: Peer) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if framing == "content-length":
            await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        elif framing == "chunked":
            await peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 100_000):
                await peer.chunk(body[at : at + 100_000])
            await peer.end()
        else:
            await peer.send(head + b"\r\n" + body)

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **chain("idle chain"))) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert answer.complete
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        assert proxy.worker.metrics.routes["/"].events("passed") == 30_000


async def test_every_event_leaves_at_once() -> None:
    """An event arrives at the client before the upstream sends the next one."""
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for number in range(3):
            nonlocal go_on
            await peer.chunk(b"data: %d\n\n" % number)
            await go_on.wait()
            go_on = trio.Event()
        await peer.end()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        answer = await client.head()
        for number in range(3):
            with trio.fail_after(5):
                await client.read_until(answer, b"data: %d\n\n" % number)
            assert set(proxy.in_use().values()) == {0}  # an idle stream holds no buffer
            go_on.set()
        assert (await client.rest(answer)).complete
        await client.aclose()


async def test_target_and_headers_arrive_as_they_were_sent() -> None:
    """Method, path and query byte for byte."""
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        await fetch(
            proxy.port,
            '/a/../b%2Fc?q="{&x=%zz',
            headers=[
                ("Host", "client.test"),
                ("X-Two", "1"),
                ("Accept", "text/event-stream, application/json"),
                ("x-two", "2"),
                ("Connection", "keep-alive, X-Hop"),
                ("X-Hop", "no"),
                ("X-Forwarded-For", "6.6.6.6"),
                ("Accept-Encoding", "gzip"),
            ],
        )
        (request,) = upstream.requests
        assert request.target == b'/a/../b%2Fc?q="{&x=%zz'
        assert request.all("x-two") == [b"1", b"2"]
        assert request.all("accept") == [b"text/event-stream, application/json"]
        assert request.all("accept-encoding") == [b"gzip"]
        assert request.all("host") == [upstream.url.removeprefix("http://").encode()]
        assert request.all("x-forwarded-for") == [b"127.0.0.1"]
        assert request.all("x-forwarded-host") == [b"client.test"]
        assert not request.all("x-hop")
        assert not request.all("connection")


async def test_response_headers_come_back_in_order() -> None:
    """Status and headers come back with duplicates in order, without hop-by-hop headers, and with
    the upstream's Date.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 418 Teapot\r\nSet-Cookie: a=1\r\nX-Hop: 1\r\nConnection: X-Hop\r\nKeep-Alive: timeout=5\r\n"
            b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nhi"
        )

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        answer = await fetch(proxy.port)
        assert (answer.status, answer.body) == (418, b"hi")
        assert answer.headers == [
            (b"set-cookie", b"a=1"),
            (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
            (b"set-cookie", b"b=2"),
            (b"content-length", b"2"),
        ]


async def test_a_cookie_stays_with_its_client() -> None:
    """Two clients, one gets a cookie from the upstream."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(
                b"HTTP/1.1 200 OK\r\nSet-Cookie: session=first; Path=/\r\nContent-Length: 0\r\n\r\n"
            )

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        first = await fetch(proxy.port)
        assert first.all("set-cookie") == [b"session=first; Path=/"]
        await fetch(proxy.port)
        await fetch(proxy.port, headers=[("Cookie", "own=1")])
        assert [request.all("cookie") for request in upstream.requests] == [[], [], [b"own=1"]]


@pytest.mark.parametrize(
    ("method", "head", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304),
        ("DELETE", b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n", 405),
    ],
)  # fmt: skip
async def test_responses_without_a_body(method: str, head: bytes, status: int) -> None:
    """HEAD, 204, 304 and empty bodies end at once, and both connections stay in use."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(head)

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        for _ in range(3):
            await client.send(method, "/")
            answer = await client.answer()
            assert (answer.status, answer.body, answer.complete) == (status, b"", True)
            client.next_cycle()
        assert upstream.accepted == 1
        await client.aclose()


async def test_keep_alive_continues_after_a_direct_stream() -> None:
    """After chunks that went around h11, the client's connection carries the next request."""
    async with (
        open_upstream(stream_of(b"data: 1\n\n", b"data: 2\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        client = await open_client(proxy.port)
        for _ in range(5):
            await client.send("GET", "/")
            answer = await client.answer()
            assert answer.complete
            assert answer.body == b"data: 1\n\ndata: 2\n\n"
            client.next_cycle()
        await client.aclose()
        assert upstream.accepted == 1
        assert (
            proxy.worker.metrics.registry.get_sample_value(
                "weirpool_writer_total", {"writer": "direct"}
            )
            == 5
        )


async def test_keep_alive_continues_after_an_answer_of_the_proxy() -> None:
    """The proxy's own answer (here: the upstream broke) ends the exchange, not the client's
    connection.
    """

    async def script(peer: Peer) -> None:
        await peer.request()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        for _ in range(3):
            await client.send("POST", "/", body=b"{}")
            answer = await client.answer()
            assert (answer.status, answer.complete) == (502, True)
            client.next_cycle()
        await client.aclose()


async def test_a_whole_answer_leaves_in_one_piece() -> None:
    """When the upstream's body has come with its head, the client gets both at once, and the
    connection continues.
    """

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(
                b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
            )

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        async with stream:
            for _ in range(3):
                await stream.send_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
                piece = await stream.receive_some(65536)
                assert piece.startswith(b"HTTP/1.1 200")
                assert piece.endswith(b'\r\n\r\n{"a":1}')


@pytest.mark.parametrize("chunked", [False, True])
async def test_request_bodies_arrive_as_they_were_sent(chunked: bool) -> None:
    """A 3 MB request body arrives whole, with a length or chunked."""
    body = random.Random(3).randbytes(3 * 1024 * 1024)
    headers = [("Transfer-Encoding", "chunked")] if chunked else []

    async def script(peer: Peer) -> None:
        request = await peer.request()
        digest = hashlib.sha256(request.body).hexdigest().encode()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(digest), digest))

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        answer = await fetch(proxy.port, "/", method="POST", headers=headers, body=body)
        assert answer.body == hashlib.sha256(body).hexdigest().encode()
        assert upstream.requests[0].all("content-length") == (
            [] if chunked else [b"%d" % len(body)]
        )


async def test_a_full_duplex_exchange() -> None:
    """The upstream answers while the request body is still coming, and both directions continue."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.start_stream()
        while True:
            event = await peer._next()
            data = getattr(event, "data", None)
            if data is None:
                break
            await peer.chunk(b"data: " + bytes(data) + b"\n\n")
        await peer.end()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.stream.send_all(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        client._h11.send(_request_head())
        await client.stream.send_all(b"3\r\none\r\n")
        with trio.fail_after(5):
            answer = await client.head()
            await client.read_until(answer, b"data: one\n\n")
            await client.stream.send_all(b"3\r\ntwo\r\n")
            await client.read_until(answer, b"data: two\n\n")
            await client.stream.send_all(b"0\r\n\r\n")
            await client.rest(answer)
        assert answer.complete
        await client.aclose()


def _request_head() -> object:
    import h11

    return h11.Request(
        method="POST", target="/", headers=[("Host", "x"), ("Transfer-Encoding", "chunked")]
    )


async def test_redact_through_the_proxy() -> None:
    """The built-in redacts what streams through, also across JSON escapes."""
    redact = '{name: r, use: "interceptors.redact:Redact", options: {patterns: ["sk-[a-z]+"]}}'
    events = (b'data: {"a": "sk-\\u0061bc", "n": 1.50}\n\n', b": ping\n\n", b"data: plain\r\n\r\n")
    async with (
        open_upstream(stream_of(*events)) as upstream,
        open_proxy(config_for(upstream.url, interceptors=redact, names="r")) as proxy,
    ):
        answer = await fetch(proxy.port, headers=[("Accept-Encoding", "gzip")])
        assert (
            answer.body == b'data: {"a": "[redacted]", "n": 1.50}\n\n: ping\n\ndata: plain\r\n\r\n'
        )
        assert upstream.requests[0].all("accept-encoding") == [b"identity"]


async def test_under_load_buffers_are_reused() -> None:
    """20 streams of 500 events each: more than 99 of 100 leases take a pooled buffer."""
    events = [b"data: %d\n\n" % number for number in range(500)]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for event in events:
            await peer.chunk(event)
            await trio.lowlevel.checkpoint()
        await peer.end()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        bodies: list[bytes] = []

        async def one() -> None:
            bodies.append((await fetch(proxy.port)).body)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert bodies == [b"".join(events)] * 20
        stats = proxy.worker.pools.sse_event.statistics()
        assert stats.reuse_rate > 0.99
        assert stats.in_use == 0
