"""A client's connection under Hypercorn: it always ends, and takes nothing with it; the app is
called as its author wants.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve
from support.certificates import Certificates
from support.client import fetch, open_client
from support.http2_client import open_http2
from support.interceptors import Log, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from proxy.downstream.hypercorn.connection import Connection, _connections
from proxy.exchange.request_body import RequestBody
from proxy.server.app import Weirpool, create_app

NO_UPSTREAM = "http://127.0.0.1:9"
REQUEST = b"GET / HTTP/1.1\r\nHost: proxy.test\r\n\r\n"


@asynccontextmanager
async def serve_plainly(
    app: Any, shutdown: trio.Event | None = None, **settings: Any
) -> AsyncIterator[int]:
    """The port at which Hypercorn itself serves an app, with its own `settings`."""
    server = HypercornConfig()
    server.bind = ["127.0.0.1:0"]
    server.errorlog = None
    for name, value in settings.items():
        setattr(server, name, value)
    trigger = trio.sleep_forever if shutdown is None else shutdown.wait
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(
            lambda task_status: hypercorn_serve(
                app, server, shutdown_trigger=trigger, mode="asgi", task_status=task_status
            )
        )
        yield int(bound.rsplit(":", 1)[1])
        nursery.cancel_scope.cancel()


async def all_ended() -> None:
    await until(lambda: not _connections)


# It always ends


async def test_a_page_that_wants_no_body_ends_its_connection() -> None:
    """A body in so many pieces that the server waits to hand them over: the answer comes, and then
    the end of the connection.
    """
    async with open_proxy(config_for(NO_UPSTREAM)) as proxy:
        client = await open_client(proxy.port)
        head = b"POST /healthz HTTP/1.1\r\nHost: proxy.test\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.stream.send_all(head + b"1\r\nx\r\n" * 5000)
        assert (await client.stream.receive_some(12)) == b"HTTP/1.1 405"
        await all_ended()
        await client.aclose()


@pytest.mark.parametrize("read_timeout", [None, 60], ids=["no read_timeout", "read_timeout"])
async def test_a_request_after_a_broken_response_keeps_no_connection(
    read_timeout: int | None,
) -> None:
    """The response is cut in the middle, and the task that would read the next request, pipelined
    after it, ends as well.
    """
    broken = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: x\n\n")
        await broken.wait()

    async with open_upstream(script) as upstream:
        async with serve_plainly(
            create_app(config_for(upstream.url)), read_timeout=read_timeout
        ) as port:
            client = await open_client(port)
            await client.send("GET", "/")
            answer = await client.head()
            await client.read_until(answer, b"\n\n")
            await client.stream.send_all(REQUEST)
            await until(
                lambda: next(iter(_connections)).protocol.protocol.connection.trailing_data[0]
            )
            broken.set()
            assert not (await client.rest(answer)).complete
            await all_ended()
            await client.aclose()


async def test_a_request_after_the_last_response_does_not_hold_the_server() -> None:
    """A stream comes to its end while the server ends: its connection closes, although a request is
    pipelined after it.
    """
    go_on, shutdown = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: x\n\n")
        await go_on.wait()
        await peer.end()

    async with open_upstream(script) as upstream:
        async with serve_plainly(
            create_app(config_for(upstream.url)), shutdown, graceful_timeout=60
        ) as port:
            client = await open_client(port)
            await client.send("GET", "/")
            answer = await client.head()
            await client.read_until(answer, b"\n\n")
            (connection,) = _connections
            await client.stream.send_all(REQUEST)
            await until(lambda: connection.protocol.protocol.connection.trailing_data[0])
            shutdown.set()
            await until(lambda: connection.context.terminated.is_set())
            go_on.set()
            assert (await client.rest(answer)).complete
            await all_ended()
            await client.aclose()


async def test_a_client_that_vanishes_behind_a_middleware_keeps_no_connection() -> None:
    """A middleware that wraps `send` hides the connection from the proxy; the client resets it with
    a request pipelined.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        while True:
            await peer.chunk(b"data: x\n\n")
            await trio.sleep(0.01)

    async with open_upstream(script) as upstream:
        app = create_app(config_for(upstream.url))

        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def send_on(message: Any) -> None:
                await send(message)

            await app(scope, receive, send_on)

        async with serve_plainly(middleware) as port:
            client = await open_client(port)
            await client.send("GET", "/")
            await client.read_until(await client.head(), b"\n\n")
            await client.stream.send_all(REQUEST)
            await until(
                lambda: next(iter(_connections)).protocol.protocol.connection.trailing_data[0]
            )
            client.reset()
            await all_ended()
            await until(lambda: not upstream.open)


# It takes nothing with it


@pytest.mark.parametrize("who", ["a page", "the upstream"])
async def test_data_for_an_http2_stream_that_was_answered_harms_no_other_stream(
    who: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes before the body: what of that is on its way is thrown away, and the
    connection continues.
    """
    monkeypatch.setattr("proxy.exchange.request_body.LINGER_S", 0.05)
    certificates = Certificates(tmp_path)

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        await peer.wait_closed()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url), tls=certificates.files) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        stream_id = await client.start(
            "POST", "/healthz" if who == "a page" else "/", [("content-length", "20000")], end=False
        )
        await until(lambda: client.streams[stream_id].ended)
        for end in (False, True):
            client.h2.send_data(stream_id, bytes(10000), end_stream=end)
            await client.flush()
        assert (await client.get("/healthz")).body == b"ok\n"


async def test_what_goes_wrong_in_a_connection_does_not_end_the_server(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the code of one connection closes that one, and is logged."""

    async def fail(self: Connection) -> None:
        raise KeyError("unforeseen")

    async with open_proxy(config_for(NO_UPSTREAM)) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "_read_data", fail)
            client = await open_client(proxy.port)
            assert await client.stream.receive_some() == b""
            await client.aclose()
        assert (await fetch(proxy.port, "/healthz")).status == 200
    assert [line["event"] for line in log if line.get("exc_info")] == ["internal_error"]


# The app is called


async def test_an_app_derived_from_ours_is_called_by_its_own_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hypercorn's frame around the app is saved only where nothing is lost by that."""
    seen: list[str] = []

    class Derived(Weirpool):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])
            await super().__call__(scope, receive, send)

    monkeypatch.setattr("proxy.server.app.Weirpool", Derived)
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        assert (await fetch(proxy.port)).complete
    assert seen == ["lifespan", "http"]


@pytest.mark.parametrize(
    "body", [None, b"", b'{"stream": true}'], ids=["GET", "POST without body", "POST"]
)
async def test_a_request_that_is_whole_needs_no_inbound_task(
    body: bytes | None, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server calls when the client leaves, also for a small body that has come with its head."""

    async def run(self: RequestBody) -> None:
        raise AssertionError("a task waits for the client")

    monkeypatch.setattr(RequestBody, "run", run)
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: x\n\n")
        await peer.wait_closed()
        closed.set()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET" if body is None else "POST", "/", body=body)
        await client.read_until(await client.head(), b"\n\n")
        assert upstream.requests[0].body == (body or b"")
        await client.aclose()
        with trio.fail_after(5):
            await closed.wait()
        await until(lambda: not proxy.worker.live)
    assert [line["outcome"] for line in log if line["event"] == "exchange"] == [
        "client_disconnected"
    ]


async def test_a_stream_does_not_keep_its_request() -> None:
    """While a response lasts, a request's large body is nowhere in memory any more: neither ours
    nor Hypercorn's.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: x\n\n")
        await peer.wait_closed()

    size, streams = 50_000, 20
    clients = []

    async def memory_of_streams(count: int) -> int:
        """How much `count` streams take."""
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            client = await open_client(proxy.port)
            clients.append(client)
            await client.send("POST", "/", body=bytes(size))
            await client.read_until(await client.head(), b"\n\n")
        upstream.requests.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        tracemalloc.start()
        try:
            await memory_of_streams(1)  # and what is made once
            # Each takes some 35 kB, both clients' and upstream's side of the test included.
            assert await memory_of_streams(streams) < streams * (size + 10_000)
        finally:
            tracemalloc.stop()
            for client in clients:
                await client.aclose()


@pytest.mark.parametrize("body", [None, b'{"stream": true}'], ids=["GET", "POST"])
async def test_a_client_that_left_before_the_app_began_is_counted_once(
    body: bytes | None, log: Log
) -> None:
    """Its request and its end come in one read: the exchange ends at once, and nothing stays open."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.wait_closed()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        for _ in range(10):
            client = await open_client(proxy.port)
            await client.send("GET" if body is None else "POST", "/", body=body)
            await client.aclose()
        await until(lambda: len([line for line in log if line["event"] == "exchange"]) == 10)
        await until(lambda: not upstream.open)
        assert proxy.lent() == 0
        await all_ended()
    assert {line["outcome"] for line in log if line["event"] == "exchange"} == {
        "client_disconnected"
    }
