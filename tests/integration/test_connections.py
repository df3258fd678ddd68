"""A client's connection: it always ends, and takes nothing with it; the app is
called as its author wants.
"""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any, cast

import hyperframe.frame
import pytest
import trio
from support.certificates import Certificates
from support.client import fetch, open_client
from support.http2_client import open_http2
from support.interceptors import Log, Serve, until
from support.proxy import Proxy, config_for, open_proxy, serve_plainly
from support.upstream import Peer, open_upstream, stream_of

from proxy.downstream import client_connections
from proxy.downstream.http1 import Http1Connection
from proxy.exchange.request_body import RequestBody
from proxy.server.app import Weirpool, create_app

NO_UPSTREAM = "http://127.0.0.1:9"
REQUEST = b"GET / HTTP/1.1\r\nHost: proxy.test\r\n\r\n"


async def all_ended() -> None:
    await until(lambda: not client_connections)


async def one_event(peer: Peer) -> None:
    """A stream that sends one event, and then nothing."""
    await peer.request()
    await peer.start_stream()
    await peer.chunk(b"data: x\n\n")
    await peer.wait_closed()


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


@pytest.mark.parametrize(
    ("how", "settings"),
    [
        ("breaks", {}),
        ("ends while the server ends", {"graceful_timeout": 60}),
        ("the client resets it", {}),
    ],
)
async def test_a_request_pipelined_after_a_response_keeps_no_connection(
    how: str, settings: dict[str, Any]
) -> None:
    """However the response ends, the task that would read the next request ends as well; also where
    a middleware that wraps `send` hides the connection from the proxy.
    """
    end, shutdown = trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: x\n\n")
        while not end.is_set():
            await peer.chunk(b"data: x\n\n" if how == "the client resets it" else b":\n")
            await trio.sleep(0.01)
        if "ends" in how:
            await peer.end()

    async with open_upstream(script) as upstream:
        app = create_app(config_for(upstream.url))

        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def send_on(message: Any) -> None:
                await send(message)

            await app(scope, receive, send_on)

        served: Any = middleware if how == "the client resets it" else app
        async with serve_plainly(served, shutdown, **settings) as port:
            client = await open_client(port)
            await client.send("GET", "/")
            answer = await client.head()
            await client.read_until(answer, b"\n")
            (connection,) = cast("list[Any]", list(client_connections))
            await client.stream.send_all(REQUEST)
            await until(lambda: connection.reader.data)
            if how == "the client resets it":
                client.reset()
            else:
                if "server" in how:
                    shutdown.set()
                    await until(lambda: connection.server.ends)
                end.set()
                assert (await client.rest(answer)).complete is ("ends" in how)
            await all_ended()
            await until(lambda: not upstream.open)
            await client.aclose()


# It takes nothing with it


@pytest.mark.parametrize("path", ["/healthz", "/"], ids=["a page", "the upstream"])
async def test_data_for_an_http2_stream_that_was_answered_harms_no_other_stream(
    path: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes before the body, which is thrown away."""
    monkeypatch.setattr("proxy.exchange.request_body.LINGER_S", 0.05)

    async def script(peer: Peer) -> None:
        await peer.request(body=False)
        await peer.send(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
        await peer.wait_closed()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url), tls=certificates.files) as proxy,
        open_http2(proxy, certificates) as client,
    ):
        length = [("content-length", "20000")]
        stream_id = await client.start("POST", path, length, end=False)
        await until(lambda: client.streams[stream_id].ended)
        for end in ((), ("END_STREAM",)):
            data = hyperframe.frame.DataFrame(stream_id, bytes(10000), flags=end)
            await client._stream.send_all(data.serialize())
        assert (await client.get("/healthz")).body == b"ok\n"


async def test_what_goes_wrong_in_a_connection_does_not_end_the_server(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in the code of one connection closes that one, and is logged."""

    async def fail(self: object) -> None:
        raise KeyError("unforeseen")

    async with open_proxy(config_for(NO_UPSTREAM)) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(Http1Connection, "_next_head", fail)
            client = await open_client(proxy.port)
            assert await client.stream.receive_some() == b""
            await client.aclose()
        assert (await fetch(proxy.port, "/healthz")).status == 200
    assert [line["event"] for line in log if line.get("exc_info")] == ["internal_error"]


# The app is called


async def test_an_app_around_the_proxy_gets_the_lifespans_state_and_the_root_path() -> None:
    """As Hypercorn gives them; a change of the state is the request's own."""
    app, seen = create_app(config_for(NO_UPSTREAM)), []

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["model"] = "loaded"
            await app(scope, receive, send)
            return
        seen.append((dict(scope["state"]), scope["root_path"]))
        scope["state"]["mine"] = 1
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serve_plainly(middleware, root_path="/api") as port:
        for _ in range(2):
            assert (await fetch(port, "/x")).status == 204
    assert seen == [({"model": "loaded"}, "/api")] * 2


@pytest.mark.parametrize("http2", [False, True])
async def test_an_app_around_the_proxy_fails_or_names_a_coding(
    http2: bool, certificates: Certificates
) -> None:
    """A failure before the response is 500; the transfer coding is the server's own."""
    ours = create_app(config_for(NO_UPSTREAM))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await ours(scope, receive, send)
        elif scope["path"] == "/fails":
            raise RuntimeError
        else:
            start = {"headers": [(b"Transfer-Encoding", b"chunked")], "status": 200}
            await send({"type": "http.response.start"} | start)
            await send({"type": "http.response.body", "body": b"ok"})

    cert, key = certificates.files if http2 else (None, None)
    async with serve_plainly(app, certfile=cert, keyfile=key) as port:
        for path, expected in (("/fails", (500, b"the app has failed\n")), ("/", (200, b"ok"))):
            if http2:
                async with open_http2(Proxy(ours, port), certificates) as client:
                    got = await client.get(path)
                    assert (got.status, got.body) == expected
            else:
                answer = await fetch(port, path)
                assert (answer.status, answer.body) == expected


async def test_an_app_derived_from_ours_is_called_by_its_own_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hypercorn's frame around the app is saved only where nothing is lost by that."""
    seen: list[str | bytes] = []

    class Derived(Weirpool):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])
            if scope["type"] == "http" and scope["method"] == "POST":
                seen.append((await receive())["body"])
            await super().__call__(scope, receive, send)

    monkeypatch.setattr("proxy.server.app.Weirpool", Derived)
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        assert (await fetch(proxy.port)).complete
        client = await open_client(proxy.port)
        await client.send("POST", "/", [("expect", "100-continue"), ("content-length", "2")])
        assert b" 100 " in await client.stream.receive_some()  # as the app reads the body
        await client.stream.send_all(b"hi")
        await until(lambda: b"hi" in seen)
        await client.aclose()
    assert seen == ["lifespan", "http", "http", b"hi"]


async def test_an_app_that_never_answers_is_cut_at_the_end(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Weirpool):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await trio.sleep_forever()
            await super().__call__(scope, receive, send)

    monkeypatch.setattr("proxy.server.app.Weirpool", Silent)
    monkeypatch.setattr("proxy.server.serve.LAST_WORDS_S", 0.1)
    async with open_proxy(config_for(NO_UPSTREAM)) as proxy:
        client = await open_client(proxy.port)
        await client.stream.send_all(REQUEST)
        await until(lambda: any(item.fileno() >= 0 for item in client_connections))
    assert [line["connections"] for line in log if line["event"] == "drain_cut"] == [1]
    await client.aclose()


@pytest.mark.parametrize("body", [None, b"", b"{}"], ids=["GET", "POST without body", "POST"])
async def test_a_request_that_is_whole_needs_no_inbound_task(
    body: bytes | None, serve_once: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server calls when the client leaves, also for a small body that has come with its head."""
    monkeypatch.setattr(RequestBody, "run", None)
    async with serve_once(one_event) as rig:
        client = await rig.client()
        await client.send("GET" if body is None else "POST", "/", body=body)
        await client.read_until(await client.head(), b"\n\n")
        assert rig.upstream.requests[0].body == (body or b"")
        await client.aclose()
        assert await rig.outcomes() == ["client_disconnected"]
        await until(lambda: not rig.upstream.open)


async def test_a_stream_does_not_keep_its_request() -> None:
    """While a response lasts, a request's large body is nowhere in memory any more: neither ours
    nor Hypercorn's.
    """

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

    async with open_upstream(one_event) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        tracemalloc.start()
        try:
            await memory_of_streams(1)  # and what is made once
            # Each takes some 35 kB, both clients' and upstream's side of the test included.
            assert await memory_of_streams(streams) < streams * (size + 10_000)
        finally:
            tracemalloc.stop()
            for client in clients:
                await client.aclose()


@pytest.mark.parametrize("body", [None, b"{}"], ids=["GET", "POST"])
async def test_a_client_that_left_before_the_app_began_is_counted_once(
    body: bytes | None, serve_once: Serve
) -> None:
    """Its request and its end come in one read: the exchange ends at once, and nothing stays open."""
    async with serve_once(one_event) as rig:
        for _ in range(10):
            client = await rig.client()
            await client.send("GET" if body is None else "POST", "/", body=body)
            await client.aclose()
        assert await rig.outcomes(10) == ["client_disconnected"] * 10
        await until(lambda: not rig.upstream.open)
        await all_ended()
