"""HTTP/1.1 connections of clients, under `weirpool serve` and under plain Hypercorn: idle times,
heads, half-closes, pipelining and 100 Continue.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from support.interceptors import Log, awaiting, config_with, interceptor, outcomes_of, until
from support.proxy import Proxy, limit_upstream_buffers, open_proxy, serve_plainly
from support.upstream import Peer, Upstream, open_upstream

from interceptors import Request, Response
from proxy.downstream import client_connections
from proxy.downstream.http1 import Http1Connection
from proxy.server.app import create_app

GET, POST = b"GET /x HTTP/1.1\r\nHost: a\r\n", b"POST /x HTTP/1.1\r\nHost: a\r\n"
CLOSE = b"Connection: close\r\n"
EXPECT, CONTINUE = b"Expect: 100-continue\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
LENGTH, CHUNKED = b"Content-Length: 2\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
BODIES = {LENGTH: b"hi", CHUNKED: b"2\r\nhi\r\n0\r\n\r\n"}
Served = tuple[Proxy, Upstream]
Open = Callable[..., AbstractAsyncContextManager[Served]]


async def script(peer: Peer) -> None:
    """Answers `method target length-of-body`; a target is a way to answer."""
    while True:
        request = await peer.request()
        body = b"%b %b %d" % (request.method.encode(), request.target, len(request.body))
        if request.target == b"/stream":
            await peer.start_stream()
            await peer.chunk(b"data: x\n\n")
            await peer.wait_closed()
        elif request.target == b"/chunked":
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        elif request.target in (b"/204", b"/304"):
            await peer.send(b"HTTP/1.1 %b x\r\nDate: theirs\r\n\r\n" % request.target[1:])
        else:
            await trio.sleep(0.1 if request.target == b"/slow" else 0)
            body = b"" if request.method == "HEAD" else body
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.fixture(params=["serve", "hypercorn"])
def serving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Open:
    @asynccontextmanager
    async def serve(*given: Any, keep_alive: float = 75, **more: Any) -> AsyncIterator[Served]:
        monkeypatch.setattr("proxy.server.listen._KEEP_ALIVE_S", keep_alive)
        async with open_upstream(more.pop("script", script)) as upstream:
            config = config_with(upstream.url, *given, **more)
            if request.param == "serve":
                async with open_proxy(config) as proxy:
                    yield proxy, upstream
                    await at_rest(proxy)
            else:
                app = create_app(config)
                async with serve_plainly(app, keep_alive_timeout=keep_alive) as port:
                    yield Proxy(app, port), upstream
                    await at_rest(Proxy(app, port))

    return serve


async def at_rest(proxy: Proxy) -> None:
    await until(lambda: not proxy.worker.live and not client_connections)
    assert set(proxy.in_use().values()) == {0}
    assert proxy.lent() == 0


async def talk(proxy: Proxy, *pieces: bytes, fin: bool = False, last: bytes = b"") -> bytes:
    """What arrives until the end of the connection, or until it ends with `last`."""
    data = b""
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        async with stream:
            for piece in pieces:
                await stream.send_all(piece)
                await trio.sleep(0.01 if len(pieces) > 1 else 0)
            if fin:
                await stream.send_eof()
            while not last or not data.endswith(last):
                try:
                    more = await stream.receive_some()
                except trio.BrokenResourceError:
                    return data + b"RESET"
                if not more:
                    break
                data += more
    return data


def statuses(data: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", data)]


async def test_heads_and_bodies(serving: Open) -> None:
    """Upgrades (c03), empty lines (c19), versions, and bodies that are none."""
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    )
    async with serving() as (proxy, upstream):
        data = await talk(
            proxy, GET + upgrade + b"\r\n" + GET + b"upgrade: x, H2C\r\n" + CLOSE + b"\r\n"
        )
        assert statuses(data) == [200, 200]
        assert not [r for r in upstream.requests if r.all("upgrade") + r.all("http2-settings")]
        wire = b"\r\n\r\n" + POST + b"Content-Length: 2\r\n\r\nhi\r\n" + GET + CLOSE + b"\r\n"
        for pieces in ([wire], [wire[at : at + 1] for at in range(len(wire))]):
            data = await talk(proxy, *pieces)
            assert statuses(data) == [200, 200]
            assert b"POST /x 2" in data
        assert statuses(await talk(proxy, b"\r\n" * 5000)) == [400]
        chunks = b"2\r\nhi\r\n3;x=y\r\nyou\r\n0\r\nX-Trailer: t\r\n\r\n"
        data = await talk(
            proxy, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + GET + CLOSE + b"\r\n"
        )
        assert re.findall(rb"(?:GET|POST) /x \d", data) == [b"POST /x 5", b"GET /x 0"]
        old = await talk(proxy, b"GET /chunked HTTP/1.0\r\n\r\n")
        assert old.endswith(b"\r\n\r\nGET /chunked 0")
        assert b"chunked\r\n" not in old
        chunked = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        assert statuses(await talk(proxy, chunked)) == [400]
        wire = b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n" + GET.replace(b"x", b"204", 1) + b"\r\n"
        data = await talk(proxy, wire + GET.replace(b"x", b"304", 1) + CLOSE + b"\r\n")
        assert statuses(data) == [200, 204, 304]
        assert len(data.split(b"\r\n\r\n")) == 4
        assert data.count(b"date: theirs") == 2
        assert statuses(await talk(proxy, POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")) == [
            400
        ]
        for wire in (
            b"POST /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        ):
            assert statuses(await talk(proxy, wire)) in ([405], [400])


async def test_an_idle_connection_and_half_a_head_end_in_time(serving: Open, log: Log) -> None:
    """c07. Half a head gets 408, and more of it no more time."""
    half = GET + b"X: "
    async with serving(keep_alive=1) as (proxy, _):
        for wire, found in ((b"", []), (b"\r\n\r\n", []), (GET + b"\r\n", [200]), (half, [408])):
            began = time.monotonic()
            assert statuses(await talk(proxy, wire)) == found
            assert 0.5 < time.monotonic() - began < 4
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(half)
            with trio.fail_after(10), suppress(trio.BrokenResourceError):
                while True:  # it sends on until the answer comes
                    await stream.send_all(b"x")
                    with trio.move_on_after(0.1):
                        assert statuses(await stream.receive_some()) == [408]
                        break
    assert [line["status"] for line in log if line["event"] == "exchange"] == [200, 408, 408]


@pytest.mark.parametrize("size", [60_000, 65_600, 300_000])
async def test_a_large_head_is_the_same_however_it_is_cut(
    size: int, serving: Open, log: Log
) -> None:
    """c09: 431 beyond the limit, with a log line."""
    wire = GET + CLOSE + b"Cookie: " + b"x" * size + b"\r\n\r\n"
    async with serving() as (proxy, _):
        for cut in (len(wire), len(wire) - 2, 65_536, 1):
            data = await talk(proxy, wire[:cut], wire[cut:])
            assert statuses(data) == [200 if size < 65_000 else 431]
    found = [line["status"] for line in log if line["event"] == "exchange"]
    assert found == [200 if size < 65_000 else 431] * 4


async def test_every_answer_has_one_date(serving: Open) -> None:
    """c15: of the upstream, the proxy, the parser, the pages and an interceptor."""

    async def on_request(request: Request) -> Response | None:
        return Response(body=b"mine") if request.path == "/mine" else None

    async with serving(interceptor(on_request=on_request)) as (proxy, _):
        for wire, status in (
            (GET, 200),
            (GET.replace(b"/x", b"/mine"), 200),
            (b"GET /x HTTP/1.1\r\n", 400),
            (b"G(T /x HTTP/1.1\r\n", 400),
            (b"TRACE /x HTTP/1.1\r\nHost: a\r\n", 501),
            (b"GET /healthz HTTP/1.1\r\nHost: a\r\n", 200),
            (b"POST /healthz HTTP/1.1\r\nHost: a\r\n", 405),
        ):
            data = await talk(proxy, wire + CLOSE + b"\r\n")
            assert statuses(data) == [status]
            assert len(re.findall(rb"(?i)\r\ndate: \w{3}, .* GMT\r\n", data)) == 1
            assert data.count(b"connection: close\r\n") == 1


@pytest.mark.parametrize("slow", [False, True], ids=["", "slow hook"])
async def test_a_half_close_after_the_last_request_is_no_disconnect(
    slow: bool, serving: Open, log: Log
) -> None:
    """c21. After any other request the client has left, and so it has inside of a request."""

    async def on_request(request: Request) -> None:
        await trio.sleep(0.05)

    post = POST.replace(b"/x", b"/slow")
    body, chunks = (
        b"Content-Length: 2\r\n\r\nhi",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    )
    given = [interceptor(on_request=on_request)] if slow else []
    async with serving(*given) as (proxy, _):
        for wire in (
            post + CLOSE + body,
            post + CLOSE + chunks,
            post.replace(b"1.1", b"1.0") + body,
        ):
            data = await talk(proxy, wire, fin=True)
            assert statuses(data) == [200]
            assert data.endswith(b"POST /slow 2")
        page = b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n"
        assert (await talk(proxy, page, fin=True)).endswith(b"ok\n")
        assert await outcomes_of(log, 3) == ["completed"] * 3
        for wire in (post + body, post + CLOSE + body[:-1], post + CLOSE + chunks[:-5]):
            assert statuses(await talk(proxy, wire, fin=True)) == []
        assert await outcomes_of(log, 6) == ["completed"] * 3 + ["client_disconnected"] * 3


async def test_a_half_close_while_the_body_waits(
    serving: Open, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream reads slowly, so that neither the body nor the end of the input is read: the hub
    does not spin, and the rest of the body goes up.
    """
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, 4096)
    calls, begin = 0, trio.Event()
    original = Http1Connection.on_ready

    def on_ready(self: Http1Connection, events: int, now: float) -> None:
        nonlocal calls
        calls += 1
        original(self, events, now)

    async def slow(peer: Peer) -> None:
        await begin.wait()
        await script(peer)

    monkeypatch.setattr(Http1Connection, "on_ready", on_ready)
    size = 4_000_000
    async with serving(script=slow) as (proxy, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _() -> None:
            wire = POST + CLOSE + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
            assert (await talk(proxy, wire, fin=True)).endswith(b"POST /x %d" % size)

        await trio.sleep(0.5)
        assert calls < 500
        begin.set()
    assert await outcomes_of(log) == ["completed"]


@pytest.mark.parametrize("ahead", [0, 50, 150_000])
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_pipelined_request_does_not_hide_a_client_that_left(
    how: str, ahead: int, serving: Open, log: Log
) -> None:
    async with serving() as (proxy, upstream):
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        await stream.send_all(GET.replace(b"/x", b"/stream") + b"\r\n")
        data = b""
        with trio.fail_after(10):
            while b"data: x" not in data:
                data += await stream.receive_some()
        await stream.send_all(
            (POST + b"Content-Length: 300000\r\n\r\n" + bytes(ahead)) if ahead else b""
        )
        await trio.sleep(0.05)
        if how == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        assert await outcomes_of(log) == ["client_disconnected"]
        await until(lambda: not upstream.open)


async def test_pipelined_requests_are_answered_in_their_order(serving: Open) -> None:
    """And others are served between them."""
    targets = [b"/slow", b"/healthz", b"/chunked", b"/x"] * 10 + [b"/healthz"] * 200
    wire = b"".join([GET.replace(b"/x", target) + b"\r\n" for target in targets])
    async with serving() as (proxy, _):
        data = await talk(proxy, wire + GET + CLOSE + b"\r\n")
        found = re.findall(rb"GET (/\w+) 0|(ok)\n", data)
        assert [target or b"/healthz" for target, _ in found] == [*targets, b"/x"]


async def asks(proxy: Proxy, head: bytes, framing: bytes = LENGTH) -> bytes:
    """What arrives on a connection whose client sends its body after a 100 only."""
    data = b""
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
            await stream.send_all(head + CLOSE + EXPECT + framing)
            while more := await stream.receive_some():
                if CONTINUE in more:
                    await stream.send_all(BODIES[framing])
                data += more
    return data


def silence(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr("proxy.upstream.http1.CONTINUE_S", seconds)


@pytest.mark.parametrize("framing", BODIES)
@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (CONTINUE, [100, 200]),
        (EARLY + CONTINUE, [103, 100, 200]),
        (b"", [100, 200]),
        (EARLY, [103, 100, 200]),
        (b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n", [401]),
        (EARLY + b"HTTP/1.1 417 x\r\nContent-Length: 0\r\n\r\n", [103, 417]),
        (b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [200]),
        (b"HTTP/1.0 401 x\r\nContent-Length: 0\r\n\r\n", [401]),
        (b"close", [502]),
        (b"reset", [502]),
    ],
)
async def test_the_upstream_decides_on_a_body_that_waits(
    says: bytes, expected: list[int], framing: bytes, serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c13: its 100 or its response; the proxy asks only if it is silent. A connection whose request
    is not whole is not used again.
    """

    async def decide(peer: Peer) -> None:
        while (request := await peer.request(body=False)).target != b"/x":
            await peer.take_body(request)
            await peer.send(b"HTTP/1.1 204 x\r\n\r\n")
        if says == b"reset":
            peer.reset()
        elif says != b"close":
            await peer.send(says)
            if 100 not in expected:
                await peer.wait_closed()
            await peer.take_body(request)
            late = b"" if CONTINUE in says else CONTINUE
            await peer.send(late + b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\n" + request.body)

    silence(monkeypatch, 30 if CONTINUE in says or 100 not in expected else 0.05)
    async with serving(script=decide) as (proxy, upstream):
        assert statuses(await talk(proxy, GET.replace(b"/x", b"/") + CLOSE + b"\r\n")) == [204]
        data = await asks(proxy, POST, framing)
        assert statuses(data) == expected
        assert upstream.requests[1].all("expect") == [b"100-continue"]
        assert upstream.requests[1].body == (b"hi" if 100 in expected else b"")
        assert upstream.accepted == 1
        if 100 not in expected:
            await until(lambda: not upstream.open)


async def remove_expect(request: Request) -> None:
    del request.headers["expect"]


async def replace_body(request: Request) -> None:
    request.replace_body(b"mine")


async def answer(request: Request) -> Response | None:
    return Response(status=403)


@pytest.mark.parametrize(
    ("parts", "more", "head", "expected"),
    [
        ({"on_event": lambda event: None}, {}, POST, [401]),
        ({"on_request": awaiting(lambda request: None)}, {}, POST, [401]),
        ({"wants_body": True, "on_request": awaiting(lambda request: None)}, {}, POST, [100, 200]),
        ({"on_request": remove_expect}, {}, POST, [100, 200]),
        ({}, {"upstream": "headers: {remove: [expect]}"}, POST, [100, 200]),
        ({"on_request": replace_body}, {}, POST, [200]),
        ({"on_request": answer, "wants_body": False}, {}, POST, [403]),
        ({"wants_body": True}, {"route": "limits: {max_request_body_bytes: 1}"}, POST, [413]),
        ({"wants_body": True}, {"proxy": "  limits: {max_collected_bytes: 1}"}, POST, [413]),
        ({}, {}, b"TRACE /x HTTP/1.1\r\nHost: a\r\n", [501]),
        ({}, {}, POST.replace(b"/x", b"/healthz"), [405]),
    ],
)
async def test_the_proxy_asks_where_an_interceptor_reads_the_body(
    parts: dict[str, Any],
    more: dict[str, str],
    head: bytes,
    expected: list[int],
    serving: Open,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without waiting for the upstream, and not if the head decides."""

    async def refuse(peer: Peer) -> None:
        request = await peer.request(body=False)
        if request.all("expect"):
            await peer.send(b"HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n")
        else:
            await peer.take_body(request)
            await peer.send(b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n")

    silence(monkeypatch, 30)
    async with serving(interceptor(**parts), script=refuse, **more) as (proxy, _):
        data = await asks(proxy, head)
        assert statuses(data) == expected
        assert data.count(b"connection: close\r\n") == 1


@pytest.mark.parametrize(("method", "status"), [(b"PUT", 200), (b"DELETE", 200), (b"POST", 502)])
@pytest.mark.parametrize("says", [b"", CONTINUE])
async def test_a_request_whose_body_has_not_begun_is_retried(
    says: bytes, method: bytes, status: int, serving: Open
) -> None:
    """Also after the 100, of which the client gets one."""
    fails = trio.Event()

    async def fail_first(peer: Peer) -> None:
        request = await peer.request(body=False)
        if peer.upstream.accepted == 1:
            await peer.send(says)
            await fails.wait()
            peer.reset()
        else:
            await peer.send(CONTINUE)
            await peer.take_body(request)
            await peer.send(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\n" + request.body)

    async with serving(script=fail_first) as (proxy, upstream):
        with trio.fail_after(10):
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                await stream.send_all(POST.replace(b"POST", method) + CLOSE + EXPECT + LENGTH)
                data = await stream.receive_some() if says else b""
                fails.set()
                if status == 200:
                    await until(lambda: upstream.accepted == 2)
                while True:
                    if data.endswith(CONTINUE):
                        await stream.send_all(b"hi")
                    if not (more := await stream.receive_some()):
                        break
                    data += more
        assert statuses(data) == [100] * (says != b"" or status == 200) + [status]
        assert upstream.accepted == (2 if status == 200 else 1)


@pytest.mark.parametrize(
    ("head", "body", "sees"),
    [
        (POST + EXPECT + LENGTH, b"hi", [b"100-continue"]),
        (POST + EXPECT + CHUNKED, BODIES[CHUNKED], [b"100-continue"]),
        (POST + EXPECT + LENGTH + b"hi", b"", []),
        (POST + EXPECT + LENGTH + b"h", b"i", []),
        (POST.replace(b"1.1", b"1.0") + EXPECT + LENGTH, b"hi", []),
        (POST + b"Expect: x\r\n" + LENGTH, b"hi", []),
        (POST + EXPECT + b"Content-Length: 0\r\n\r\n", b"", []),
    ],
)
async def test_a_body_that_does_not_wait_goes_up_at_once(
    head: bytes, body: bytes, sees: list[bytes], serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence(monkeypatch, 30)
    async with serving() as (proxy, upstream):
        with trio.fail_after(10):
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                await stream.send_all(head)
                if sees:
                    await until(lambda: upstream.requests)
                await stream.send_all(body)
                data = await stream.receive_some()
        assert statuses(data) == [200]
        (request,) = upstream.requests
        assert request.all("expect") == sees


@pytest.mark.parametrize("framing", BODIES)
@pytest.mark.parametrize("answer", [b"", b"401", b"200"])
async def test_a_client_that_waits_leaves_or_sends_after_the_answer(
    answer: bytes, framing: bytes, serving: Open, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after an answer is read, so that no reset overtakes it. While the answer lasts, it
    goes up; that connection is not used again, either.
    """

    async def script(peer: Peer) -> None:
        request = await peer.request(body=False)
        if answer:
            await peer.send(b"HTTP/1.1 %b x\r\nTransfer-Encoding: chunked\r\n\r\n" % answer)
            if answer == b"200":
                await peer.take_body(request)
            await peer.end()
        await peer.wait_closed()

    silence(monkeypatch, 30)
    async with serving(script=script) as (proxy, upstream):
        with trio.fail_after(10):
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                await stream.send_all(POST + EXPECT + framing)
                await until(lambda: upstream.requests)
                if answer:
                    data = await stream.receive_some()
                    await stream.send_all(BODIES[framing] * 1000)
                    while more := await stream.receive_some():
                        data += more
                    assert statuses(data) == [int(answer)]
                    assert data.endswith(b"0\r\n\r\n")
        assert await outcomes_of(log) == ["completed" if answer else "client_disconnected"]
        await until(lambda: not upstream.open)
        assert upstream.requests[0].body == (b"hi" if answer == b"200" else b"")


async def test_a_client_that_is_silent_after_the_100_gets_408(
    serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`timeouts.idle` begins with the 100, not with the head."""
    silence(monkeypatch, 0.2)
    async with serving(route="timeouts: {idle: 0.1}") as (proxy, _):
        assert statuses(await talk(proxy, POST + EXPECT + LENGTH, last=b"}}\n")) == [100, 408]


async def test_a_connection_beyond_the_limit_is_closed_without_an_error(
    serving: Open, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as (proxy, _):
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        await stream.send_all(GET.replace(b"/x", b"/stream") + b"\r\n")
        assert await stream.receive_some()
        monkeypatch.setattr(client_connections, "limit", 1)
        assert statuses(await talk(proxy, GET + b"\r\n")) == []
        await stream.aclose()
    assert not [line for line in log if line["event"] == "internal_error"]


async def test_a_unix_socket_is_served(tmp_path: Path) -> None:
    """Under Hypercorn; such a peer has no address."""
    async with open_upstream(script) as upstream:
        path = str(tmp_path / "socket")
        async with serve_plainly(create_app(config_with(upstream.url)), bind=[f"unix:{path}"]):
            for target in (b"/x", b"/healthz"):
                with trio.fail_after(10):
                    async with await trio.open_unix_socket(path) as stream:
                        await stream.send_all(GET.replace(b"/x", target) + CLOSE + b"\r\n")
                        assert statuses(await stream.receive_some()) == [200]
