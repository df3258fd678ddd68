"""HTTP/2 clients: streams on one connection that do not disturb each other, windows that stay shut,
resets in both directions.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h2.errors
import h11
import pytest
import trio
from support.certificates import Certificates
from support.http2_client import open_http2
from support.interceptors import Log, Way, outcomes_of, until
from support.proxy import Proxy, config_for, limit_upstream_buffers, open_proxy
from support.upstream import Peer, Script, open_upstream, stream_of

from interceptors import Interceptor, Request, Response
from proxy.downstream.hypercorn.connection import _connections
from proxy.exchange import exchange

EVENT = b"data: " + b"x" * 1000 + b"\n\n"


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel holds little between the upstream and the proxy."""
    limit_upstream_buffers(monkeypatch, socket.SO_RCVBUF, 16384)


@asynccontextmanager
async def proxy_for(url: str, certificates: Certificates, route: str = "") -> AsyncIterator[Proxy]:
    """A proxy with TLS that has nothing on loan when its exchanges are over."""
    async with open_proxy(config_for(url, route=route), tls=certificates.files) as proxy:
        yield proxy
        await until(lambda: not proxy.worker.live)
        assert set(proxy.in_use().values()) == {0}
        assert proxy.lent() == 0


# Requests and streams


async def test_heartbeats_go_out_early_and_between_events(certificates: Certificates) -> None:
    """On one stream of several."""
    go = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    route = "heartbeat: {interval: 0.05, early: true}"
    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates, route) as proxy,
    ):
        async with open_http2(proxy, certificates) as client:
            early = client.streams[await client.start(headers=[("accept", "text/event-stream")])]
            other = client.streams[await client.start(headers=[("accept", "*/*")])]
            await until(lambda: early.body.count(b": ping\n") >= 2)
            assert early.status == 200
            assert other.status == 0
            go.set()
            for stream in (early, other):
                await until(lambda stream=stream: b"data: 1\n\n: ping\n: ping\n" in stream.body)
            assert not other.body.startswith(b":")


async def test_a_stream_arrives_whole(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """Two megabytes of events, far more than a window, arrive byte for byte and end clean."""
    events = [b"data: %d %s\n\n" % (number, b"x" * (number % 2000)) for number in range(2000)]
    async with (
        open_upstream(stream_of(*events)) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        answer = await client.get()
        assert (answer.status, answer.ended, answer.body) == (200, True, b"".join(events))
        assert await outcomes_of(log) == ["completed"]


@pytest.mark.parametrize(
    ("method", "body", "told", "framing"),
    [
        ("GET", b"", [], []),
        ("POST", b"", [], [(b"content-length", b"0")]),
        ("POST", b"hello", [("content-length", "5")], [(b"content-length", b"5")]),
        ("POST", b"p" * 500_000, [], [(b"transfer-encoding", b"chunked")]),
        ("DELETE", b"", [], []),
    ],
)
async def test_request_bodies_with_and_without_length(
    method: str,
    body: bytes,
    told: list[tuple[str, str]],
    framing: list[tuple[bytes, bytes]],
    certificates: Certificates,
) -> None:
    """Upstream a body has the client's Content-Length, or is chunked."""
    names = (b"content-length", b"transfer-encoding")
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        for _ in range(3):
            stream_id = await client.start(method, headers=told, end=not body)
            if body:
                await client.send(stream_id, body)
            stream = client.streams[stream_id]
            await until(lambda stream=stream: stream.over)
            assert (stream.status, stream.ended, stream.body) == (200, True, b"data: x\n\n")
        for request in upstream.requests:
            assert (request.method, request.body) == (method, body)
            assert [item for item in request.headers if item[0].lower() in names] == framing
        assert upstream.accepted == 1


async def test_streams_of_one_connection_run_at_once(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """Ten streams: each has its first event before any gets its second, and they end in another
    order than they began.
    """
    gates = {b"/%d" % number: trio.Event() for number in range(10)}

    async def script(peer: Peer) -> None:
        target = (await peer.request()).target
        await peer.start_stream()
        await peer.chunk(b"data: first %s\n\n" % target)
        await gates[target].wait()
        await peer.chunk(b"data: last %s\n\n" % target)
        await peer.end()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        streams = {
            target: client.streams[await client.start(path=target.decode())] for target in gates
        }
        for target, stream in streams.items():
            await until(
                lambda stream=stream, end=b"data: first %s\n\n" % target: stream.body == end
            )
        for target, stream in reversed(streams.items()):
            assert not stream.over
            gates[target].set()
            await until(lambda stream=stream: stream.ended)
            assert stream.body == b"data: first %s\n\ndata: last %s\n\n" % (target, target)
        assert await outcomes_of(log, 10) == ["completed"] * 10


# Windows that stay shut


@pytest.mark.usefixtures("small_buffers")
async def test_a_window_that_never_opens_bounds_memory_and_stalls(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """The client reads its socket and opens no window."""
    sent = 0
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        nonlocal sent
        peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # type: ignore[attr-defined]
        request = await peer.request()
        await peer.start_stream()
        if request.target == b"/other":
            await peer.chunk(b"data: x\n\n")
            await peer.end()
            return
        try:
            for _ in range(50_000):
                await peer.chunk(EVENT)
                sent += len(EVENT)
        except trio.BrokenResourceError:
            closed.set()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates, "timeouts: {send: 0.5}") as proxy,
        open_http2(proxy, certificates, window=20_000) as client,
    ):
        stream = client.streams[await client.start()]
        await until(lambda: len(stream.body) == 20_000)
        assert (await client.get("/other")).body == b"data: x\n\n"
        await until(lambda: stream.over)
        with trio.fail_after(10):
            await closed.wait()
        assert stream.reset is not None
        assert sent < 1_000_000  # of 50 MB
        assert proxy.worker.metrics.routes["/"].bytes("downstream") < 100_000
        assert await outcomes_of(log, 2) == ["completed", "send_stalled"]
        assert (await client.get("/other")).ended


@pytest.mark.parametrize("server", ["known", "unknown"])
async def test_an_end_that_the_window_holds_back_stalls(
    server: str,
    certificates: Certificates,
    log: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Upstream is done, but the last bytes have no window to leave through."""
    if server == "unknown":
        monkeypatch.setattr(exchange, "inspect_server", lambda _: None)
    async with (
        open_upstream(stream_of(b"data: 1\n\n", b"data: 2\n\n")) as upstream,
        proxy_for(upstream.url, certificates, "timeouts: {send: 0.1}") as proxy,
        open_http2(proxy, certificates, window=10) as client,
    ):
        stream = client.streams[await client.start()]
        assert await outcomes_of(log) == ["send_stalled"]
        assert stream.body == b"data: 1\n\nd"
        assert not stream.ended
        if server == "known":
            await until(lambda: stream.reset is not None)


# Uploads that do not arrive whole


@dataclass
class Seen:
    """What an upstream has seen of an upload."""

    data: int = 0
    whole: bool = False
    """It came to its end, as h11 reads it."""
    closed: trio.Event = field(default_factory=trio.Event)


def taking(seen: Seen) -> Script:
    async def script(peer: Peer) -> None:
        try:
            await peer.request(body=False)
            while isinstance(event := await peer._next(), h11.Data):
                seen.data += len(event.data)
            seen.whole = isinstance(event, h11.EndOfMessage)
        finally:
            seen.closed.set()

    return script


@pytest.mark.parametrize(
    ("route", "status", "kind"),
    [
        ("limits: {max_request_body_bytes: 1000}", 413, "request_too_large"),
        ("timeouts: {idle: 0.1}", 408, "request_timeout"),
    ],
)
async def test_an_upload_that_is_refused_is_never_whole(
    route: str, status: int, kind: str, certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """Too large, or silent in its middle."""
    seen = Seen()
    async with (
        open_upstream(taking(seen)) as upstream,
        proxy_for(upstream.url, certificates, route) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        stream_id = await client.start("POST", end=False)
        stream = client.streams[stream_id]
        await client.send(stream_id, bytes(600), end=False)
        await until(lambda: seen.data == 600)
        if status == 413:
            await client.send(stream_id, bytes(200_000))
        await until(lambda: stream.body)
        assert stream.status == status
        if status == 408:
            await client.send(
                stream_id, b""
            )  # the proxy lingers for the rest, and then ends the answer
        await until(lambda: stream.over)
        assert stream.error_type() == kind
        with trio.fail_after(10):
            await seen.closed.wait()
        assert (seen.data, seen.whole) == (600, False)
        assert await outcomes_of(log) == ["refused"]


async def test_an_upload_shorter_than_announced_is_never_whole(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """The client ends its stream before its Content-Length."""
    seen = Seen()
    async with (
        open_upstream(taking(seen)) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        stream_id = await client.start("POST", headers=[("content-length", "10")], end=False)
        await client.send(stream_id, b"hello", end=False)
        await until(lambda: seen.data == 5)
        await client.send(stream_id, b"")
        with trio.fail_after(10):
            await seen.closed.wait()
        assert not seen.whole
        assert await outcomes_of(log) == ["client_disconnected"]


async def test_a_client_that_uploads_on_gets_an_early_answer_whole(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """The upstream answers 401 and reads nothing."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.send(
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 200000\r\n\r\n" + b"n" * 200_000
        )
        await peer.wait_closed()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
        trio.open_nursery() as nursery,
    ):
        stream_id = await client.start("POST", end=False)
        nursery.start_soon(client.send, stream_id, bytes(2_000_000))
        stream = client.streams[stream_id]
        await until(lambda: stream.over)
        assert (stream.status, stream.ended, len(stream.body)) == (401, True, 200_000)
        assert await outcomes_of(log) == ["completed"]


@pytest.mark.parametrize("when", ["before the head", "in the stream", "by the proxy"])
async def test_a_connection_keeps_nothing_of_streams_that_were_reset(
    when: str, certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """One that lasts would fail otherwise."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if when != "before the head":
            await peer.start_stream()
            await peer.chunk(EVENT)
        if when != "by the proxy":
            await peer.wait_closed()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        for _ in range(3):
            stream_id = await client.start()
            stream = client.streams[stream_id]
            await until(lambda: stream.body or when == "before the head")  # noqa: B023
            await until(lambda: proxy.worker.live or stream.over)  # noqa: B023
            if when == "by the proxy":
                await until(lambda: stream.reset is not None)  # noqa: B023
            else:
                await client.reset(stream_id)
            await until(lambda: not proxy.worker.live)
        (connection,) = _connections
        protocol = connection.protocol.protocol
        await until(lambda: not protocol.streams and not protocol.stream_buffers)
        assert list(protocol.priority._streams) == [0]  # the root


async def test_priorities_are_ignored(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """Also of more streams than Hypercorn remembers."""
    async with (
        open_upstream(stream_of(EVENT)) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        for stream_id in range(101, 3101, 2):
            client.h2.prioritize(stream_id, weight=200, depends_on=3)
        await client.flush()
        assert (await client.get()).body == EVENT
    assert [line["event"] for line in log if line["event"] == "internal_error"] == []


# Ends that are none


async def test_an_upload_that_is_not_read_blocks_no_other_stream(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, object]]
) -> None:
    """Its own window stays shut."""
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 8192)
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        request = await peer.request(body=False)
        if request.target == b"/stalled":
            await trio.sleep(0.2)
            with trio.fail_after(10):
                await closed.wait()
            return
        await peer.take_body(request)
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(request.body) + request.body
        )

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
        trio.open_nursery() as nursery,
    ):
        stalled = await client.start("POST", "/stalled", end=False)
        nursery.start_soon(client.send, stalled, bytes(2_000_000))
        await until(lambda: client.h2.local_flow_control_window(stalled) == 0)
        body = bytes(index % 251 for index in range(400_000))
        with trio.fail_after(20):
            other = await client.start("POST", "/other", end=False)
            await client.send(other, body)
            await until(lambda: client.streams[other].ended)
        assert client.streams[other].body == body
        await client.reset(stalled)
        await until(lambda: len(proxy.worker.live) == 0)
        closed.set()
    assert sorted(map(str, await outcomes_of(log, 2))) == ["client_disconnected", "completed"]


@pytest.mark.parametrize("when", ["before the head", "in the stream", "in the upload"])
async def test_a_stream_that_the_client_resets_closes_its_upstream(
    when: str, certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """And only that: another stream of the same connection continues."""
    arrived = trio.Event()
    closed = trio.Event()
    ended = trio.Event()
    whole = 0

    async def script(peer: Peer) -> None:
        nonlocal whole
        request = await peer.request(body=when != "in the upload")
        if request.target == b"/other":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
            await ended.wait()
            await peer.chunk(b"data: 2\n\n")
            await peer.end()
            return
        if when == "in the stream":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
        arrived.set()
        if when == "in the upload":
            try:
                while isinstance(event := await peer._next(), h11.Data):
                    pass
                whole += isinstance(event, h11.EndOfMessage)
            finally:
                closed.set()
        await peer.wait_closed()
        closed.set()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        other = client.streams[await client.start(path="/other")]
        stream_id = await client.start("POST", end=when != "in the upload")
        if when == "in the upload":
            await client.send(stream_id, bytes(1000), end=False)
        with trio.fail_after(10):
            await arrived.wait()
            if when == "in the stream":
                await until(lambda: client.streams[stream_id].body == b"data: 1\n\n")
            await client.reset(stream_id)
            await closed.wait()
        assert await outcomes_of(log) == ["client_disconnected"]
        assert whole == 0
        ended.set()
        await until(lambda: other.ended)
        assert other.body == b"data: 1\n\ndata: 2\n\n"


async def test_a_connection_that_breaks_ends_all_of_its_streams(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """Five streams, and the client is gone: five upstreams are closed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    async with open_upstream(script) as upstream, proxy_for(upstream.url, certificates) as proxy:
        async with open_http2(proxy, certificates) as client:
            streams = [client.streams[await client.start()] for _ in range(5)]
            await until(lambda: all(stream.body for stream in streams))
        assert await outcomes_of(log, 5) == ["client_disconnected"] * 5
        await until(lambda: upstream.open == 0)


class Answering(Interceptor):
    """Answers what does not fit into a shut window."""

    async def on_request(self, request: Request) -> Response:
        return Response(body=b"x" * 1000)


async def test_an_answer_lets_go_of_a_connection_that_breaks(
    certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole answer was handed over."""
    serve = Way(certificates=certificates).serve(log, monkeypatch)
    async with serve(stream_of(), Answering, proxy="  timeouts: {send: null}") as rig:
        async with open_http2(rig.proxy, certificates, window=10) as client:
            stream = client.streams[await client.start()]
            await until(lambda: len(stream.body) == 10)
            client.reset_connection()
            with trio.fail_after(3):
                await until(lambda: rig.lines("exchange"))


async def test_a_connection_that_breaks_before_anything_was_sent_is_let_go_at_once(
    certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No last bytes are left to send, and nothing waits for them."""
    monkeypatch.setattr("proxy.downstream.hypercorn.client._LAST_BYTES_S", 60.0)
    arrived = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.wait_closed()

    serve = Way(certificates=certificates).serve(log, monkeypatch)
    async with serve(script) as rig, open_http2(rig.proxy, certificates) as client:
        await client.start()
        await arrived.wait()
        client.reset_connection()
        assert await rig.outcomes() == ["client_disconnected"]
        await rig.everything_is_back()


async def test_an_upstream_that_fails_before_its_head_gives_a_json_answer(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """502, whole, and the connection continues."""

    async def script(peer: Peer) -> None:
        await peer.request()

    async with (
        open_upstream(script) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.error_type()) == (502, "upstream_connection_lost")
            assert "connection" not in dict(answer.headers)  # RFC 9113, section 8.2.2
        assert await outcomes_of(log, 2) == ["upstream_error"] * 2
        assert not client.closed


def break_unless_good(framing: bytes) -> Script:
    async def script(peer: Peer) -> None:
        request = await peer.request()
        if request.target == b"/good":
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing)

    return script


@pytest.mark.parametrize(
    "framing",
    [
        b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        b"Content-Length: 1000\r\n\r\ndata: 1\n\n",
    ],
)
async def test_a_broken_upstream_resets_its_stream_and_no_other(
    framing: bytes, certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """What came is delivered, the end is a reset; and the connection serves a stream after each."""
    async with (
        open_upstream(break_unless_good(framing)) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        for _ in range(3):
            broken = await client.get()
            assert broken.body.startswith(b"data: 1\n\n")
            assert not broken.ended
            assert broken.reset == h2.errors.ErrorCodes.INTERNAL_ERROR
            good = await client.get("/good")
            assert (good.status, good.ended, good.body) == (200, True, b"ok")
        assert (
            sorted(map(str, await outcomes_of(log, 6)))
            == ["completed"] * 3 + ["upstream_error"] * 3
        )


async def test_a_header_that_cannot_be_forwarded_is_400_and_stays_unsaid(
    certificates: Certificates, log: list[dict[str, object]]
) -> None:
    """HTTP/2 carries values that HTTP/1.1 cannot."""
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        proxy_for(upstream.url, certificates) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        answer = await client.get(headers=[("authorization", "Bearer hush\x0bhush")])
        assert (answer.status, answer.error_type()) == (400, "bad_request")
        assert b"hush" not in answer.body
        assert await outcomes_of(log) == ["refused"]
        assert "hush" not in repr(log)
        assert upstream.requests == []
        assert (await client.get()).ended
