"""The proxy says what is so: to clients of a stream that is not whole, to balancers, in its log;
and tells nobody a secret.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import types
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import h11
import msgspec
import pytest
import support.proxy
import trio
from support.certificates import Certificates
from support.client import Answer, fetch, open_client
from support.interceptors import until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, Script, open_upstream, stream_of

from interceptors import Event, Interceptor, StreamContext, StreamInterceptor
from proxy.config import Config, Drain, Route
from proxy.server.app import create_app
from proxy.server.serve import bind_sockets, serve_app

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


async def exchanges_of(log: list[dict[str, object]], count: int = 1) -> list[dict[str, object]]:
    """The log lines of the exchanges, when there are as many as that."""
    await until(lambda: len([line for line in log if line["event"] == "exchange"]) >= count)
    return [line for line in log if line["event"] == "exchange"]


def saying(*pieces: bytes) -> Script:
    """Send these raw bytes, each in a write of its own that arrives by itself, and close."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in pieces:
            await peer.send(piece)
            await trio.sleep(0.01)

    return script


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def answer_of(*pieces: bytes, route: str = "", **config: str) -> Answer:
    """What a client gets of an upstream that says this."""
    async with (
        open_upstream(saying(*pieces)) as upstream,
        open_proxy(config_for(upstream.url, route=route, **config)) as proxy,
    ):
        with trio.fail_after(10):
            return await fetch(proxy.port)


# Error events only where they may be


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"Zstd", b"gzip, identity"])
async def test_no_error_event_in_an_encoded_stream(coding: bytes) -> None:
    """Plain bytes would break the coding. What came ends like an event by chance; the abort is all
    there is to see.
    """
    body = b"\x1f\x8b\x08 compressed \n\n"
    answer = await answer_of(
        HEAD + b"Content-Encoding: %s\r\nTransfer-Encoding: chunked\r\n\r\n" % coding, chunk(body)
    )
    assert answer.all("content-encoding") == [coding]
    assert answer.body == body
    assert not answer.complete


async def test_an_error_event_in_a_stream_that_is_encoded_as_identity() -> None:
    """Identity is no coding: the yardstick of the test above."""
    head = HEAD + b"Content-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await answer_of(head, chunk(b"data: 1\n\n"))
    assert answer.body.startswith(b"data: 1\n\nevent: error\ndata: ")
    assert not answer.complete


@pytest.mark.parametrize("length", [10, 1000])
async def test_no_error_event_in_a_stream_of_a_told_length(length: int) -> None:
    """Its bytes would pass for the missing ones, and complete what is not whole."""
    answer = await answer_of(HEAD + b"Content-Length: %d\r\n\r\n" % length, b"data: 1\n\n")
    assert answer.all("content-length") == [b"%d" % length]
    assert answer.body == b"data: 1\n\n"
    assert not answer.complete


LINES = [
    (b"event: tool\r\n", False),
    (b"event: tool\r", False),
    (b"event: tool\n", False),
    (b"data: 1\n\ndata: 2\r\n", False),
    (b"data: 1\r\n\r\ndata: 2\r\n", False),
    (b"data: 1\n ", False),
    (b"data: 1\r\n\r\n", True),
    (b"data: 1\r\r", True),
    (b"data: 1\n\n", True),
    (b"data: 1\r\n\n", True),
    (b"data: 1\n\r\n", True),
    (b"data: 1\r\r\n", True),
    (b": comment\r\n\r\n", True),
]


@pytest.mark.parametrize(("body", "ended"), LINES)
@pytest.mark.parametrize("split", [False, True])
async def test_an_error_event_only_behind_an_empty_line(
    body: bytes, ended: bool, split: bool
) -> None:
    """CR, LF and CRLF each end one line, also when a read parts CR from LF: only an empty line ends
    an event.
    """
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    pieces = [chunk(bytes([byte])) for byte in body[-4:]]
    answer = await answer_of(head, *([chunk(body[:-4]), *pieces] if split else [chunk(body)]))
    assert answer.body.startswith(body)
    assert answer.body[len(body) :].startswith(b"event: error\ndata: ") == ended
    assert (len(answer.body) > len(body)) == ended
    assert not answer.complete


# Draining


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[tuple[int, Callable[[], bool], trio.Event]]:
    """As `weirpool serve` does it: the port, whether the worker drains, and the event that shuts
    down.
    """
    app = create_app(config)
    (sock,) = bind_sockets(["127.0.0.1:0"], None)
    port = sock.getsockname()[1]
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_app(app, [sock], shutdown, task_status=task_status)
        )
        yield port, lambda: app.worker.draining, shutdown
        with trio.fail_after(10):
            shutdown.set()


async def test_while_the_delay_runs_new_requests_are_served(log: list[dict[str, object]]) -> None:
    """From the signal on /readyz is 503, and everything works; after the delay nothing new comes
    in, and what lives goes on.
    """
    go_on = trio.Event()

    async def script(peer: Peer) -> None:
        if (await peer.request()).target == b"/live":
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n")
            await go_on.wait()
            await peer.end()
        else:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    async with open_upstream(script) as upstream:
        config = msgspec.structs.replace(
            config_for(upstream.url), drain=Drain(timeout=10, delay=0.7)
        )
        async with served(config) as (port, is_draining, shutdown):
            assert (await fetch(port, "/readyz")).status == 200
            live = await open_client(port)
            await live.send("GET", "/live")
            answer = await live.head()
            shutdown.set()
            await until(lambda: [line for line in log if line["event"] == "drain"])
            assert (await fetch(port, "/readyz")).status == 503
            assert (await fetch(port, "/healthz")).status == 200
            assert (await fetch(port)).body == b"ok"
            assert not is_draining()
            await until(is_draining)
            await until(lambda: not listens(port))
            go_on.set()
            assert (await live.rest(answer)).complete
            await live.aclose()
        assert {line["outcome"] for line in await exchanges_of(log, 2)} == {"completed"}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_after_the_delay_a_request_is_503(log: list[dict[str, object]]) -> None:
    """A request on a connection that came in before, of which the server learns when it drains
    already.
    """
    async with (
        open_upstream(stream_of(b"data: x\n\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        client = await open_client(proxy.port)
        proxy.worker.start_draining()
        await client.send("GET", "/")
        answer = await client.answer()
        assert (answer.status, answer.all("connection")) == (503, [b"close"])
        assert json.loads(answer.body)["error"]["type"] == "draining"
        await client.aclose()
        assert [line["outcome"] for line in await exchanges_of(log)] == ["draining"]
        assert upstream.requests == []


async def test_cancelled_at_the_graceful_timeout_an_exchange_was_draining(
    tmp_path_factory: pytest.TempPathFactory, log: list[dict[str, object]]
) -> None:
    """Under plain Hypercorn nobody tells the app that it must end; the outcome is that all the
    same, and the client sees it.
    """
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    answer = None
    async with open_upstream(script) as upstream, trio.open_nursery() as nursery:

        async def read(context: ssl.SSLContext) -> None:
            nonlocal answer
            client = await open_client(proxy.port, context)
            await client.send("GET", "/")
            answer = await client.head()
            await client.rest(answer)
            await client.aclose()

        async with open_proxy(config_for(upstream.url), tls=certificates.files) as proxy:
            nursery.start_soon(read, certificates.client())
            await until(lambda: answer is not None and proxy.worker.live)
        (line,) = await exchanges_of(log)
        assert line["outcome"] == "draining"
        await until(lambda: upstream.open == 0)
    assert answer is not None
    assert answer.body.startswith(b"data: 1\n\n")
    assert not answer.complete


# Limits


def with_routes(config: Config, *routes: Route) -> Config:
    return msgspec.structs.replace(
        config, reverse_proxy=msgspec.structs.replace(config.reverse_proxy, routes=[*routes])
    )


async def test_a_routes_own_limit_counts_its_own_streams_only() -> None:
    """Streams of other routes take no place of a route's own; what the route refuses takes none
    either.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.wait_closed()

    async with open_upstream(script) as upstream:
        config = with_routes(
            config_for(upstream.url),
            Route(path="/", upstream="up"),
            Route(path="/small", upstream="up", limits={"max_streams": 2}),
        )
        async with open_proxy(config) as proxy:
            clients = []

            async def begin(target: str) -> int:
                clients.append(client := await open_client(proxy.port))
                await client.send("GET", target)
                return (await client.head()).status

            assert [await begin("/large") for _ in range(4)] == [200] * 4
            assert [await begin("/small") for _ in range(4)] == [200, 200, 503, 503]
            assert [await begin("/large") for _ in range(2)] == [200] * 2
            clients[4].reset()  # one of the two
            await until(lambda: proxy.worker.metrics.routes["/small"].admitted == 1)
            assert [await begin("/small") for _ in range(2)] == [200, 503]
            for client in clients:
                await client.aclose()


async def test_the_send_deadline_bounds_each_wait_not_the_whole(
    monkeypatch: pytest.MonkeyPatch, log: list[dict[str, object]]
) -> None:
    """A client that takes a little all the time is not cut, although the whole takes several times
    the deadline.
    """
    send_s = 0.3

    def bind_small(binds: Sequence[str], send_timeout_s: float | None) -> list[socket.socket]:
        sockets = bind_sockets(binds, send_timeout_s)
        for (
            sock
        ) in sockets:  # those that are accepted inherit it: the kernel takes little for the client
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sockets

    monkeypatch.setattr(support.proxy, "bind_sockets", bind_small)
    event = b"data: " + b"x" * 1000 + b"\n\n"
    async with (
        open_upstream(stream_of(*[event] * 400)) as upstream,
        open_proxy(config_for(upstream.url, route=f"timeouts: {{send: {send_s}}}")) as proxy,
    ):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", proxy.port))
            sock.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.setblocking(False)
            started_at = trio.current_time()
            received = b""
            with trio.fail_after(10):
                while not received.endswith(b"\r\n0\r\n\r\n"):
                    await trio.lowlevel.wait_readable(sock)
                    data = sock.recv(4096)
                    assert data, "the stream was cut"
                    received += data
                    await trio.sleep(0.008)
            assert trio.current_time() - started_at > 2 * send_s  # or this would prove nothing
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        parser.receive_data(received)
        parts = list(iter(parser.next_event, h11.NEED_DATA))
        assert (
            b"".join(bytes(part.data) for part in parts if isinstance(part, h11.Data))
            == event * 400
        )
        (line,) = await exchanges_of(log)
        assert (line["outcome"], line["bytes"]) == ("completed", 400 * len(event))
        assert float(str(line["duration"])) > 2 * send_s


# Checks that hold however a path is spelt


@pytest.mark.parametrize(
    "target",
    [
        "/small",
        "/small/",
        "/small/more?x=1",
        "/%73mall",
        "/%73%6D%61%6c%6C/more",
        "/x/../small",
        "/x/%2e%2E/small",
        "/x/.%2e/small/more",
        "/./small",
        "/%2e/small",
        "//small",
        "///small//more",
        "/../small",
        "http://proxy.test/small",
        "http://proxy.test//small",
    ],
)
async def test_no_spelling_of_a_path_goes_around_its_routes_checks(
    target: str, log: list[dict[str, object]]
) -> None:
    """What an upstream may take for /small is under the checks of /small; without an Origin it goes
    up as it was spelt.
    """
    async with open_upstream(stream_of(b"data: x\n\n")) as upstream:
        config = with_routes(
            config_for(upstream.url),
            Route(path="/", upstream="up"),
            Route(path="/small", upstream="up", allowed_origins=["https://app.test"]),
        )
        async with open_proxy(config) as proxy:
            evil = await fetch(proxy.port, target, headers=[("Origin", "https://evil.test")])
            assert (evil.status, json.loads(evil.body)["error"]["type"]) == (
                403,
                "origin_not_allowed",
            )
            assert upstream.requests == []
            good = await fetch(proxy.port, target, headers=[("Origin", "https://app.test")])
            assert good.status == 200
            assert upstream.requests[0].target == target.removeprefix("http://proxy.test").encode()
            assert (
                await fetch(proxy.port, "/smaller", headers=[("Origin", "https://evil.test")])
            ).status == 200
            assert {line["route"] for line in (await exchanges_of(log, 3))[:2]} == {"/small"}


# Secrets


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\nBad Header: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie\x0b: session=hush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\nContent-Length: hush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\nTransfer-Encoding: hush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/2 hush hush\r\nSet-Cookie: session=hush\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=" + b"hush" * 30_000,
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=hush\r\n",
        b"HTTP/1.1 101 Switching\r\nSet-Cookie: session=hush\r\nUpgrade: hush\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_a_502_tells_no_secret(head: bytes, log: list[dict[str, object]]) -> None:
    """Neither the answer nor the log quotes the head that could not be read; the answer does not
    name the upstream either.
    """
    async with (
        open_upstream(saying(head)) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert answer.complete
        assert answer.status == 502
        (line,) = await exchanges_of(log)
        assert line["outcome"] == "upstream_error"
        assert line["error"]
    said = repr((answer.headers, answer.body))
    assert "hush" not in said
    assert "hush" not in repr(log)
    assert str(upstream.port) not in said
    assert upstream.host not in said


async def test_a_refused_connection_does_not_name_the_upstream() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with open_proxy(config_for(f"http://127.0.0.1:{port}")) as proxy:
            answer = await fetch(proxy.port)
    assert answer.status == 502
    assert str(port).encode() not in answer.body
    assert b"127.0.0.1" not in answer.body


async def test_an_error_event_tells_no_secret(log: list[dict[str, object]]) -> None:
    """The same in the middle of a stream, whose framing breaks on a secret."""
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    async with (
        open_upstream(saying(head, chunk(b"data: 1\n\n"), b"hush\r\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        answer = await fetch(proxy.port)
        assert b"upstream_protocol_error" in answer.body
        assert not answer.complete
        assert b"hush" not in answer.body
        assert str(upstream.port).encode() not in answer.body
        await exchanges_of(log)
        assert "hush" not in repr(log)


# What came, and when


class _ShoutStream(StreamInterceptor):
    def on_event(self, event: Event) -> object:
        return event.replace(data=event.data.upper())


class Shout(Interceptor):
    """Changes every event."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _ShoutStream()


@pytest.fixture
def shout(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The configuration loads interceptors by module name; this makes the module."""
    module = types.ModuleType("shout_interceptor")
    module.Shout = Shout  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shout_interceptor", module)
    return {"interceptors": '{name: shout, use: "shout_interceptor:Shout"}', "names": "shout"}


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("framing", ["chunked", "content-length", "until-close"])
async def test_a_changed_block_without_its_end_stays_without(
    end: bytes, framing: str, shout: dict[str, str]
) -> None:
    """A client does not dispatch a last block without an empty line behind it; no hook may make an
    event out of it.
    """
    body = b"data: one\n\ndata: two" + end
    told = {
        "chunked": b"Transfer-Encoding: chunked\r\n",
        "content-length": b"Content-Length: %d\r\n" % len(body),
    }
    head = HEAD + told.get(framing, b"") + b"\r\n"
    answer = await answer_of(
        head, chunk(body) + b"0\r\n\r\n" if framing == "chunked" else body, **shout
    )
    assert answer.complete
    assert answer.body.startswith(b"data: ONE\n\n")
    assert answer.body.removeprefix(b"data: ONE\n\n").replace(b"\r\n", b"\n") in (
        b"data: TWO",
        b"data: TWO\n",
    )


async def test_the_time_to_first_byte_is_that_of_the_body(log: list[dict[str, object]]) -> None:
    """The head is there at once, the first byte of the body 60 ms later: the log and the metric
    tell of the latter.
    """
    head_seen = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await head_seen.wait()
        await trio.sleep(0.06)
        await peer.chunk(b"data: 1\n\n")
        await trio.sleep(0.06)
        await peer.chunk(b"data: 2\n\n")
        await peer.end()

    async with open_upstream(script) as upstream, open_proxy(config_for(upstream.url)) as proxy:
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        answer = await client.head()
        head_seen.set()
        assert (await client.rest(answer)).complete
        await client.aclose()
        (line,) = await exchanges_of(log)
        first, whole = float(str(line["time_to_first_byte"])), float(str(line["duration"]))
        assert first >= 0.05
        assert whole - first >= 0.05
        value = proxy.worker.metrics.registry.get_sample_value
        assert value("weirpool_time_to_first_byte_seconds_sum", {"route": "/"}) == pytest.approx(
            first, abs=1e-5
        )


async def test_without_a_body_there_is_no_first_byte(log: list[dict[str, object]]) -> None:
    async with (
        open_upstream(saying(b"HTTP/1.1 204 No Content\r\n\r\n")) as upstream,
        open_proxy(config_for(upstream.url)) as proxy,
    ):
        assert (await fetch(proxy.port)).status == 204
        (line,) = await exchanges_of(log)
        assert line["time_to_first_byte"] is None
