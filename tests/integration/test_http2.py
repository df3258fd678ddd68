"""HTTP/2 clients: streams on one connection that do not disturb each other, windows that stay shut,
resets in both directions.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import h2.errors
import h11
import pytest
import trio
from support.certificates import Certificates
from support.http2_client import Exchanged, Http2Client, open_http2
from support.interceptors import Log, Rig, Way, interceptor, until
from support.proxy import limit_upstream_buffers
from support.upstream import Peer, Script, stream_of

from interceptors import Interceptor, Request, Response
from proxy.downstream import client_connections
from proxy.downstream.http2 import Http2Connection

EVENT = b"data: " + b"x" * 1000 + b"\n\n"
OK = b"HTTP/1.1 200 OK\r\n"
Serve2 = Callable[..., AbstractAsyncContextManager[tuple[Rig, Http2Client]]]


@pytest.fixture
def serve2(certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve2:
    """`async with serve2(script, *interceptors, route=..., window=...) as (rig, client)`."""
    serve = Way(certificates=certificates).serve(log, monkeypatch)

    @asynccontextmanager
    async def serve2(
        script: Script, *given: type[Interceptor], window: int | None = None, **settings: str
    ) -> AsyncIterator[tuple[Rig, Http2Client]]:
        async with serve(script, *given, **settings) as rig:
            with trio.fail_after(30):
                async with open_http2(rig.proxy, certificates, window=window) as client:
                    yield rig, client

    return serve2


async def begin(client: Http2Client, path: str = "/", method: str = "GET") -> Exchanged:
    return client.streams[await client.start(method, path)]


# Requests and streams


async def test_a_stream_arrives_whole(serve2: Serve2) -> None:
    """Two megabytes of events, far more than a window."""
    events = [b"data: %d %s\n\n" % (number, b"x" * (number % 2000)) for number in range(2000)]
    async with serve2(stream_of(*events)) as (rig, client):
        answer = await client.get()
        assert (answer.status, answer.ended, answer.body) == (200, True, b"".join(events))
        assert await rig.outcomes() == ["completed"]


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
    serve2: Serve2,
) -> None:
    """Upstream a body has the client's Content-Length, or is chunked."""
    names = (b"content-length", b"transfer-encoding")
    async with serve2(stream_of(b"data: x\n\n")) as (rig, client):
        for _ in range(3):
            stream_id = await client.start(method, headers=told, end=not body)
            if body:
                await client.send(stream_id, body)
            stream = client.streams[stream_id]
            await until(lambda stream=stream: stream.over)
            assert (stream.status, stream.ended, stream.body) == (200, True, b"data: x\n\n")
        for request in rig.upstream.requests:
            assert (request.method, request.body) == (method, body)
            assert [item for item in request.headers if item[0].lower() in names] == framing
        assert rig.upstream.accepted == 1


async def test_streams_of_one_connection_run_at_once(serve2: Serve2) -> None:
    """They end in another order than they began; when the connection breaks, the rest ends."""
    gates = {b"/%d" % number: trio.Event() for number in range(10)}

    async def script(peer: Peer) -> None:
        target = (await peer.request()).target
        await peer.start_stream()
        await peer.chunk(b"data: first %s\n\n" % target)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.wait_closed)
            await gates[target].wait()
            nursery.cancel_scope.cancel()
        await peer.chunk(b"data: last %s\n\n" % target)
        await peer.end()

    async with serve2(script) as (rig, client):
        streams = {target: await begin(client, target.decode()) for target in gates}
        await until(lambda: all(stream.body.endswith(b"\n\n") for stream in streams.values()))
        for target, stream in list(reversed(streams.items()))[:5]:
            assert stream.body == b"data: first %s\n\n" % target
            gates[target].set()
            await until(lambda stream=stream: stream.ended)
            assert stream.body == b"data: first %s\n\ndata: last %s\n\n" % (target, target)
        client.reset_connection()
        for gate in gates.values():
            gate.set()
        assert await rig.outcomes(10) == ["completed"] * 5 + ["client_disconnected"] * 5
        await until(lambda: rig.upstream.open == 0)


# Windows that stay shut


async def test_a_window_that_never_opens_bounds_memory_and_stalls(
    serve2: Serve2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads its socket and opens no window."""
    limit_upstream_buffers(monkeypatch, socket.SO_RCVBUF, 16384)
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        peer.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)  # type: ignore[attr-defined]
        request = await peer.request()
        await peer.start_stream()
        for _ in range(1 if request.target == b"/other" else 50_000):
            await peer.chunk(EVENT)
            sent += len(EVENT)
        await peer.end()

    async with serve2(script, route="timeouts: {send: 0.5}", window=20_000) as (rig, client):
        stream = await begin(client)
        await until(lambda: len(stream.body) == 20_000)
        assert (await client.get("/other")).body == EVENT
        await until(lambda: stream.over and not rig.upstream.open)
        assert stream.reset is not None
        assert sent < 1_000_000  # of 50 MB
        assert rig.proxy.worker.metrics.routes["/"].bytes("downstream") < 100_000
        assert await rig.outcomes(2) == ["completed", "send_stalled"]
        assert (await client.get("/other")).ended


async def test_an_end_that_the_window_holds_back_stalls(serve2: Serve2) -> None:
    """Upstream is done, but the last bytes have no window to leave through."""
    script = stream_of(b"data: 1\n\n", b"data: 2\n\n")
    async with serve2(script, route="timeouts: {send: 0.1}", window=10) as (rig, client):
        stream = await begin(client)
        assert await rig.outcomes() == ["send_stalled"]
        assert (stream.body, stream.ended) == (b"data: 1\n\nd", False)
        await until(lambda: stream.reset is not None)


# Uploads that do not arrive whole


@dataclass
class Seen:
    """What an upstream has seen of an upload."""

    data: int = 0
    whole: bool = False
    """It came to its end, as h11 reads it."""
    closed: trio.Event = field(default_factory=trio.Event)

    async def script(self, peer: Peer) -> None:
        try:
            await peer.request(body=False)
            while isinstance(event := await peer._next(), h11.Data):
                self.data += len(event.data)
            self.whole = isinstance(event, h11.EndOfMessage)
        finally:
            self.closed.set()


@pytest.mark.parametrize(
    ("route", "length", "rest", "status", "kind"),
    [
        ("limits: {max_request_body_bytes: 1000}", "", 200_000, 413, "request_too_large"),
        ("timeouts: {idle: 0.1}", "", 0, 408, "request_timeout"),
        ("", "700", 0, 400, "bad_request"),
    ],
    ids=["too large", "silent", "shorter than announced"],
)
async def test_an_upload_that_is_refused_is_never_whole(
    route: str, length: str, rest: int, status: int, kind: str, serve2: Serve2
) -> None:
    seen = Seen()
    async with serve2(seen.script, route=route) as (rig, client):
        headers = [("content-length", length)] if length else []
        stream_id = await client.start("POST", headers=headers, end=False)
        stream = client.streams[stream_id]
        await client.send(stream_id, bytes(600), end=False)
        await until(lambda: seen.data == 600)
        if status == 408:
            await until(lambda: stream.body)
        # the proxy lingers for the rest, and then ends the answer
        await client.send(stream_id, bytes(rest))
        await until(lambda: stream.over)
        assert (stream.status, stream.error_type()) == (status, kind)
        await seen.closed.wait()
        assert (seen.data, seen.whole) == (600, False)
        assert await rig.outcomes() == ["refused"]


async def test_a_client_that_uploads_on_gets_an_early_answer_whole(serve2: Serve2) -> None:
    """The upstream answers 401 and reads nothing."""

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        head = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 200000\r\n\r\n"
        await peer.send(head + b"n" * 200_000)
        await peer.wait_closed()

    async with serve2(script) as (rig, client):
        stream_id = await client.start("POST", end=False)
        client.nursery.start_soon(client.send, stream_id, bytes(2_000_000))
        stream = client.streams[stream_id]
        await until(lambda: stream.over)
        assert (stream.status, stream.ended, len(stream.body)) == (401, True, 200_000)
        assert await rig.outcomes() == ["completed"]


async def test_an_upload_that_is_not_read_blocks_no_other_stream(
    serve2: Serve2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own window stays shut."""
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 8192)
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        request = await peer.request(body=False)
        if request.target == b"/stalled":
            await closed.wait()
            return
        await peer.take_body(request)
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % len(request.body) + request.body)

    async with serve2(script) as (rig, client):
        stalled = await client.start("POST", "/stalled", end=False)
        client.nursery.start_soon(client.send, stalled, bytes(2_000_000))
        await until(lambda: client.h2.local_flow_control_window(stalled) == 0)
        body = bytes(index % 251 for index in range(400_000))
        other = await client.start("POST", "/other", end=False)
        await client.send(other, body)
        await until(lambda: client.streams[other].ended)
        assert client.streams[other].body == body
        await client.reset(stalled)
        await until(lambda: not rig.proxy.worker.live)
        closed.set()
        assert sorted(await rig.outcomes(2)) == ["client_disconnected", "completed"]


# Resets


@pytest.mark.parametrize("when", ["before the head", "in the stream", "in the upload"])
async def test_a_stream_that_the_client_resets_closes_its_upstream(
    when: str, serve2: Serve2
) -> None:
    """And only that: another stream continues. The connection keeps nothing of it."""
    ended, seen = trio.Event(), Seen()

    async def script(peer: Peer) -> None:
        if when == "in the upload" and peer.upstream.accepted > 1:
            await seen.script(peer)
            return
        request = await peer.request()
        if when == "in the stream" or request.target == b"/other":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
        if request.target == b"/other":
            await ended.wait()
            await peer.end()
        await peer.wait_closed()

    async with serve2(script) as (rig, client):
        other = await begin(client, "/other")
        await until(lambda: other.body)
        for number in range(1, 4):
            stream_id = await client.start("POST", end=when != "in the upload")
            stream = client.streams[stream_id]
            if when == "in the upload":
                await client.send(stream_id, bytes(1000), end=False)
                await until(lambda number=number: seen.data == 1000 * number)
            await until(lambda number=number: len(rig.upstream.requests) == 1 + number)
            if when == "in the stream":
                await until(lambda stream=stream: stream.body == b"data: 1\n\n")
            await client.reset(stream_id)
            await until(lambda: rig.upstream.open == 1)
        assert await rig.outcomes(3) == ["client_disconnected"] * 3
        assert not seen.whole
        ended.set()
        await until(lambda: other.ended)
        await until(lambda: not rig.proxy.worker.live)
        await nothing_is_kept()


async def nothing_is_kept() -> None:
    """Of streams that are over."""
    (connection,) = client_connections
    assert isinstance(connection, Http2Connection)
    await until(lambda: not connection.streams)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 502),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n", 200),
        (OK + b"Content-Length: 1000\r\n\r\ndata: 1\n\n", 200),
    ],
)
async def test_a_broken_upstream_ends_its_stream_and_no_other(
    sent: bytes, status: int, serve2: Serve2
) -> None:
    """Before the head by an answer, after it by a reset; and the connection serves a stream after
    each.
    """

    async def script(peer: Peer) -> None:
        good = (await peer.request()).target == b"/good"
        await peer.send(OK + b"Content-Length: 2\r\n\r\nok" if good else sent)

    async with serve2(script) as (rig, client):
        for _ in range(3):
            broken = await client.get()
            assert broken.status == status
            if status == 502:
                assert broken.error_type() == "upstream_connection_lost"
                assert "connection" not in dict(broken.headers)  # RFC 9113, section 8.2.2
            else:
                assert broken.body.startswith(b"data: 1\n\n")
                assert broken.reset == h2.errors.ErrorCodes.INTERNAL_ERROR
            good = await client.get("/good")
            assert (good.status, good.ended, good.body) == (200, True, b"ok")
        assert sorted(await rig.outcomes(6)) == ["completed"] * 3 + ["upstream_error"] * 3
        await nothing_is_kept()


async def answer_much(request: Request) -> Response:
    return Response(body=b"x" * 1000)


@pytest.mark.parametrize("handed_over", [True, False])
async def test_an_exchange_lets_go_of_a_connection_that_breaks(
    handed_over: bool, serve2: Serve2
) -> None:
    """At once: nothing waits for last bytes, whether the whole answer waits for a window or nothing
    was sent.
    """
    arrived = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.wait_closed()

    given = (interceptor(on_request=answer_much),) if handed_over else ()
    settings = {"proxy": "  timeouts: {send: null}"}
    async with serve2(script, *given, window=10, **settings) as (rig, client):
        stream = await begin(client)
        if handed_over:
            await until(lambda: len(stream.body) == 10)
        else:
            await arrived.wait()
        client.reset_connection()
        with trio.fail_after(5):
            (outcome,) = await rig.outcomes()
        assert handed_over or outcome == "client_disconnected"


async def test_a_header_that_cannot_be_forwarded_is_400_and_stays_unsaid(serve2: Serve2) -> None:
    """HTTP/2 carries values that HTTP/1.1 cannot."""
    async with serve2(stream_of(b"data: x\n\n")) as (rig, client):
        answer = await client.get(headers=[("authorization", "Bearer hush\x0bhush")])
        assert (answer.status, answer.error_type()) == (400, "bad_request")
        assert b"hush" not in answer.body
        assert await rig.outcomes() == ["refused"]
        assert "hush" not in repr(rig.log)
        assert rig.upstream.requests == []
        assert (await client.get()).ended
