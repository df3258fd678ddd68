"""What needs only a request's head is decided before anything of its body is waited for, and the
bodies that a worker collects stay within a bound.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio
from support.certificates import Certificates
from support.client import Client, open_client
from support.http2_client import open_http2
from support.interceptors import Log, Rig, Serve, Way, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from interceptors import Event, Interceptor, Request, Response, StreamContext, StreamInterceptor
from interceptors.api_keys import hash_key
from proxy.config import parse_config

KEY = "sk-known"
KEYED = f'{{name: keys, use: "interceptors.api_keys:ApiKeys", options: {{keys: {{ann: "{hash_key(KEY)}"}}}}}}'
EVENTS = stream_of(b"data: 1\n\n")
STREAMED = ("content-length", "chunked")


async def begin(client: Client, framing: str, *headers: str) -> None:
    """The head of a POST, and the first bytes of a large body that never comes."""
    length = (
        "Content-Length: 3000000" if framing == "content-length" else "Transfer-Encoding: chunked"
    )
    lines = [
        "POST / HTTP/1.1",
        "Host: proxy.test",
        "Content-Type: application/json",
        length,
        *headers,
    ]
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    await client.stream.send_all(
        head + (b"[{}," if framing == "content-length" else b"4\r\n[{},\r\n")
    )


async def answer_of(client: Client) -> bytes:
    """The head, and the body up to its Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < int(
        data.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
    ):
        data += await client.stream.receive_some()
    return data


@pytest.mark.parametrize("dialect", ["generic", "mcp"])
@pytest.mark.parametrize("framing", STREAMED)
async def test_a_client_without_a_key_is_refused_before_its_body(
    dialect: str, framing: str, log: Log
) -> None:
    """401 as soon as the head has come, over HTTP/1.1."""
    async with open_upstream(EVENTS) as upstream:
        config = config_for(
            upstream.url, interceptors=KEYED, names="keys", route=f"dialect: {dialect}"
        )
        async with open_proxy(config) as proxy:
            client = await open_client(proxy.port)
            await begin(client, framing)
            with trio.fail_after(5):
                answer = await answer_of(client)
            assert answer.startswith(b"HTTP/1.1 401 ")
            await client.aclose()
            await until(
                lambda: (
                    [line["outcome"] for line in log if line["event"] == "exchange"]
                    == ["intercepted"]
                )
            )
            assert proxy.worker.bodies.held == 0
        assert upstream.accepted == 0


@pytest.mark.parametrize("announced", [True, False])
async def test_over_http2_as_well(announced: bool, certificates: Certificates, log: Log) -> None:
    """The whole 401 comes although the body does not, with a Content-Length and without."""
    async with open_upstream(EVENTS) as upstream:
        config = config_for(upstream.url, interceptors=KEYED, names="keys", route="dialect: mcp")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            headers = [
                ("content-type", "application/json"),
                *([("content-length", "3000000")] if announced else []),
            ]
            stream_id = await client.start("POST", headers=headers, end=False)
            await client.send(stream_id, b"[{},", end=False)
            stream = client.streams[stream_id]
            with trio.fail_after(5):
                await until(lambda: stream.ended)
            assert stream.status == 401
            await client.send(stream_id, bytes(10_000), end=False)  # on its way, and thrown away
            good = await client.get(
                headers=[("authorization", f"Bearer {KEY}"), ("accept", "text/event-stream")]
            )
            assert (good.status, good.body) == (200, b"data: 1\n\n")


@pytest.mark.parametrize("dialect", ["generic", "mcp"])
async def test_a_client_without_a_key_gets_401_for_a_body_above_the_limit(
    dialect: str, log: Log
) -> None:
    """413 is only for a client with a key."""
    async with open_upstream(EVENTS) as upstream:
        route = f"dialect: {dialect}, limits: {{max_request_body_bytes: 1000}}"
        config = config_for(upstream.url, interceptors=KEYED, names="keys", route=route)
        async with open_proxy(config) as proxy:
            for headers, status in (([], b"401"), ([f"Authorization: Bearer {KEY}"], b"413")):
                client = await open_client(proxy.port)
                await begin(client, "content-length", *headers)
                with trio.fail_after(5):
                    assert (await answer_of(client)).split(b" ")[1] == status
                await client.aclose()
        assert upstream.accepted == 0


async def test_a_keyed_connection_continues_after_a_refusal(log: Log) -> None:
    """The rest of a refused body is read and thrown away, and the next request of the connection is
    answered.
    """
    async with open_upstream(EVENTS) as upstream:
        async with open_proxy(config_for(upstream.url, interceptors=KEYED, names="keys")) as proxy:
            client = await open_client(proxy.port)
            await client.stream.send_all(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000)
            )
            with trio.fail_after(5):
                assert (await answer_of(client)).startswith(b"HTTP/1.1 401 ")
                await client.stream.send_all(bytes(50_000))
                await client.send("GET", "/", [("Authorization", f"Bearer {KEY}")])
                assert (await client.answer()).body == b"data: 1\n\n"
            await client.aclose()


class Notes(Interceptor):
    """Writes down what it saw, in the order of the calls."""

    seen: list[tuple[str, object]] = []  # noqa: RUF012

    async def on_request(self, request: Request) -> Response | None:
        body: object = request.body if self.wants_body else "unread"
        self.seen.append((type(self).__name__, body))
        request.headers["x-order"] = request.headers.get("x-order", "") + type(self).__name__
        return None


class A(Notes):
    pass


class B(Notes):
    wants_body = True


class C(Notes):
    pass


class D(Notes):
    wants_body = True


@pytest.mark.parametrize("dialect", ["generic", "mcp"])
async def test_those_that_want_no_body_come_first(dialect: str, serve_once: Serve) -> None:
    """In the order of the list among themselves, then those that want the body in theirs."""
    async with serve_once(EVENTS, A, B, C, D, route=f"dialect: {dialect}") as rig:
        for body in (b"{}", b"", None):
            Notes.seen = A.seen = B.seen = C.seen = D.seen = []
            await rig.fetch(method="POST", body=body)
            assert [name for name, _ in Notes.seen] == ["A", "C", "B", "D"]
            assert [got for _, got in Notes.seen] == ["unread", "unread", body or b"", body or b""]
        assert [request.all("x-order") for request in rig.upstream.requests] == [[b"ACBD"]] * 3


@pytest.mark.parametrize("framing", ["Content-Length: 40", "Transfer-Encoding: chunked"])
async def test_a_refusal_on_an_mcp_route_has_the_id_of_a_small_body(framing: str, log: Log) -> None:
    """Otherwise the id is null: a body that is large, or does not arrive at once."""
    whole, chunked = b'{"jsonrpc":"2.0","id":7,"method":"ping"}', framing.endswith("chunked")
    cases = [
        (whole, b"7"),
        (whole[:17], b"null"),
        *([(whole[:-1] + b" " * 20_000 + b"}", b"null")] if chunked else []),
    ]
    async with open_upstream(EVENTS) as upstream:
        config = config_for(upstream.url, interceptors=KEYED, names="keys", route="dialect: mcp")
        async with open_proxy(config) as proxy:
            for body, ident in cases:
                client = await open_client(proxy.port)
                if chunked:
                    body = b"%x\r\n%b\r\n" % (len(body), body) + (
                        b"0\r\n\r\n" if len(body) >= 40 else b""
                    )
                head = (
                    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n%b\r\n\r\n"
                    % framing.encode()
                )
                await client.stream.send_all(head + body)
                with trio.fail_after(5):
                    assert b'{"jsonrpc":"2.0","id":%b,"error"' % ident in await answer_of(client)
                await client.aclose()


class Asks(Interceptor):
    async def on_request(self, request: Request) -> None:
        request.body  # noqa: B018


async def test_a_body_that_has_not_been_collected_yet_cannot_be_asked_for(
    serve_once: Serve,
) -> None:
    """One without `wants_body` runs before there is a body, although another one
    wants it.
    """
    async with serve_once(EVENTS, Asks, B) as rig:
        assert (await rig.fetch(method="POST", body=b"{}")).status == 502
        assert rig.failures() == [("Asks", "on_request")]


class Replaces(Interceptor):
    async def on_request(self, request: Request) -> None:
        request.replace_body(b"mine")


async def test_a_body_replaced_by_the_head_alone_is_not_waited_for(serve_once: Serve) -> None:
    """The client's body is discarded; hooks and the upstream see the new one."""
    Notes.seen = B.seen = []
    async with serve_once(EVENTS, Replaces, B) as rig:
        client = await rig.client()
        await begin(client, "content-length")
        with trio.fail_after(5):
            await until(lambda: rig.upstream.requests)
        assert Notes.seen == [("B", b"mine")]
        await until(lambda: rig.upstream.requests[0].body == b"mine")


class Waits(Interceptor):
    hook_timeout_s = None

    async def on_request(self, request: Request) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("framing", STREAMED)
async def test_a_client_that_leaves_while_its_head_is_looked_at_ends_the_exchange(
    framing: str, serve_once: Serve
) -> None:
    async with serve_once(EVENTS, Waits, B) as rig:
        client = await rig.client()
        await begin(client, framing)
        await until(lambda: rig.proxy.worker.live)
        await trio.sleep(0.02)
        await client.aclose()
        assert await rig.outcomes() == ["client_disconnected"]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_http2_announces_with_the_head_whether_there_is_a_body(
    announced: bool,
    method: str,
    certificates: Certificates,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`has_body` is right for interceptors that see the head alone, and the upstream gets the
    request's length as before.
    """
    found: list[bool] = []

    class Sees(Interceptor):
        async def on_request(self, request: Request) -> None:
            found.append(request.has_body)

    async with (
        Way(certificates=certificates).serve(log, monkeypatch)(EVENTS, Sees) as rig,
        open_http2(rig.proxy, certificates) as client,
    ):
        stream_id = await client.start(method, end=not announced)
        if announced:
            await client.send(stream_id, b"abc")
        await until(lambda: client.streams[stream_id].ended)
        assert found == [announced]
        (request,) = rig.upstream.requests
        assert request.body == (b"abc" if announced else b"")
        assert request.all("content-length") == (
            [b"0"] if method == "POST" and not announced else []
        )


async def test_a_small_http2_body_without_a_length_is_bounded(
    certificates: Certificates, log: Log
) -> None:
    """One that comes with its head and is larger than it may be is refused as any."""
    async with open_upstream(EVENTS) as upstream:
        config = config_for(upstream.url, route="limits: {max_request_body_bytes: 10}")
        async with (
            open_proxy(config, tls=certificates.files) as proxy,
            open_http2(proxy, certificates) as client,
        ):
            stream_id = await client.start("POST", end=False)
            await client.send(stream_id, bytes(20))
            stream = client.streams[stream_id]
            await until(lambda: stream.over)
            assert stream.status == 413
        assert upstream.requests == []


# Batches


BATCHES = """
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{url}"]}}]
  routes:
    - {{path: /, upstream: up, dialect: mcp}}
    - {{path: /policy, upstream: up, interceptors: [policy]}}
interceptors: [{{name: policy, use: "interceptors.mcp_policy:McpPolicy", options: {{methods: {{allow: ["*"]}}}}}}]
drain: {{timeout: 1}}
log: {{level: error}}
"""


@asynccontextmanager
async def batches(log: Log, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    async with (
        open_upstream(answering_json) as upstream,
        open_proxy(parse_config(BATCHES.format(url=upstream.url))) as proxy,
    ):
        yield Rig(upstream, proxy, log)


async def answering_json(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/policy"])
async def test_a_batch_has_at_most_100_messages(
    path: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is a JSON-RPC error with 400."""
    message = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
    headers = [("content-type", "application/json")]
    async with batches(log, monkeypatch) as rig:
        for count, status in ((100, 202), (101, 400)):
            answer = await rig.fetch(
                path, method="POST", headers=headers, body=json.dumps([message] * count).encode()
            )
            assert answer.status == status, answer.body
        error = json.loads(answer.body)
        assert error["error"] == {
            "code": -32600,
            "message": "a batch must have at most 100 messages",
        }
        assert len(rig.upstream.requests) == 1


@pytest.mark.parametrize("path", ["/", "/policy"])
async def test_the_time_to_refuse_a_batch_is_that_of_decoding_it(
    path: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not slower than decoding the batch."""
    body = b"[" + b"0," * 1_000_000 + b"0]"
    headers = [("content-type", "application/json")]
    async with batches(log, monkeypatch) as rig:
        began = time.process_time()
        answer = await rig.fetch(path, method="POST", headers=headers, body=body)
        took = time.process_time() - began
        assert answer.status == 400
        began = time.process_time()
        for _ in range(10):
            json.loads(body)
        assert took < time.process_time() - began


async def test_the_default_limit_of_mcp_bodies_is_4_mib(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """413 by the Content-Length alone; a route of another dialect keeps 16 MiB."""
    async with batches(log, monkeypatch) as rig:
        limits = {
            route.name: route.limits.max_request_body_bytes
            for route in rig.proxy.worker.routes.routes
        }
        assert limits == {"/": 4 << 20, "/policy": 16 << 20}
        client = await open_client(rig.proxy.port)
        await client.stream.send_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4194305\r\n\r\n"
        )
        with trio.fail_after(5):
            assert (await answer_of(client)).startswith(b"HTTP/1.1 413 ")
        await client.aclose()


# The bound on what a worker collects


class Collects(Interceptor):
    wants_body = True


COLLECTED = "limits: {max_collected_bytes: 100000}"


async def send_part(rig: Rig, size: int, length: int = 60_000) -> Client:
    client = await rig.client()
    await client.stream.send_all(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length + bytes(size)
    )
    return client


async def test_bodies_of_slow_clients_hold_no_more_than_the_bound(serve_once: Serve) -> None:
    """503 with Retry-After for the body that does not fit."""
    async with serve_once(EVENTS, Collects, proxy=f"  {COLLECTED}") as rig:
        slow = await send_part(rig, 50_000)
        await until(lambda: rig.proxy.worker.bodies.held == 50_000)
        quiet = await send_part(rig, 0)  # announces much, and takes nothing
        late = await send_part(rig, 60_000)
        with trio.fail_after(5):
            answer = await answer_of(late)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer.lower()
        assert b'"type":"too_many_bodies"' in answer
        assert rig.proxy.worker.bodies.held == 50_000
        assert rig.metric("weirpool_refused_total", route="/", reason="too_many_bodies") == 1
        for client in (slow, quiet, late):
            await client.aclose()
        await until(lambda: rig.proxy.worker.bodies.held == 0)
        assert sorted(await rig.outcomes(3)) == ["client_disconnected"] * 2 + ["refused"]
        with trio.fail_after(5):
            assert (await rig.fetch(method="POST", body=bytes(60_000))).status == 200


async def test_a_body_counts_until_the_head_of_the_response(serve_once: Serve) -> None:
    """While it is on its way up; a stream that continues for hours holds nothing of the budget."""
    go = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    async with serve_once(script, Collects, proxy=f"  {COLLECTED}") as rig:
        client = await send_part(rig, 60_000)
        await until(lambda: rig.upstream.requests)
        assert rig.proxy.worker.bodies.held == 60_000
        assert (await rig.fetch(method="POST", body=bytes(60_000))).status == 503
        go.set()
        with trio.fail_after(5):
            while b"data: 1" not in await client.stream.receive_some():
                pass
        assert rig.proxy.worker.bodies.held == 0
        await client.aclose()


@contextmanager
def allocations() -> Iterator[Callable[[], int]]:
    """How many bytes Python's objects hold, compared with the beginning."""
    tracemalloc.start()
    began = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - began
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dialect", ["generic", "mcp"])
async def test_a_stream_holds_no_body_of_its_request(dialect: str, serve_once: Serve) -> None:
    """What the bound does not count any more is not there any more."""

    async def script(peer: Peer) -> None:
        (await peer.request()).body = b""
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.wait_closed()

    async with serve_once(
        script, Collects, route=f"dialect: {dialect}, limits: {{max_request_body_bytes: 3000000}}"
    ) as rig:
        client = await rig.client()
        body = b'{"jsonrpc":"2.0","method":"m","params":{"a":"' + b"a" * 2_000_000 + b'"}}'
        with allocations() as held:
            headers = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            await client.stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\n" + headers + body)
            with trio.fail_after(5):
                while b"data: 1" not in await client.stream.receive_some():
                    pass
            assert rig.proxy.worker.bodies.held == 0
            assert held() < 1_000_000
        await client.aclose()


class AsksLate(Interceptor):
    wants_body = True

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        stream = AsksInStream()
        stream.request = context.request
        assert context.request.body == b"{}"
        return stream


class AsksInStream(StreamInterceptor):
    request: Request

    def on_event(self, event: Event) -> Event:
        self.request.json()
        return event


async def test_a_hook_that_reads_a_freed_body_gets_an_error(serve_once: Serve) -> None:
    """`on_response` and `open_stream` have it."""
    async with serve_once(EVENTS, AsksLate) as rig:
        await rig.fetch(method="POST", body=b"{}")
        assert rig.failures() == [("AsksLate", "on_event")]


async def test_a_refused_body_is_let_go_before_its_client_has_read_the_answer(
    serve_once: Serve,
) -> None:
    """A client may continue sending for ten seconds."""
    async with serve_once(
        EVENTS, Collects, proxy="  limits: {max_collected_bytes: 2000000}"
    ) as rig:
        with allocations() as held:
            client = await send_part(rig, 2_000_001, 5_000_000)
            with trio.fail_after(5):
                assert (await answer_of(client)).startswith(b"HTTP/1.1 413 ")
            assert held() < 1_000_000
        await client.aclose()


async def test_a_body_of_single_bytes_takes_little_more_than_its_size(serve_once: Serve) -> None:
    """Chunked, each in its own chunk; it goes upstream byte for byte."""
    async with serve_once(EVENTS, Collects) as rig:
        client = await rig.client()
        body = bytes(index % 251 for index in range(40_000))
        await client.stream.send_all(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await client.stream.send_all(
            b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body)))
        )
        await client.stream.send_all(b"0\r\n\r\n")
        with trio.fail_after(10):
            await until(lambda: rig.upstream.requests and rig.upstream.requests[0].body == body)
        await client.aclose()


async def test_a_body_that_never_fits_is_413(serve_once: Serve) -> None:
    """It would be refused however often it came."""
    async with serve_once(EVENTS, Collects, proxy=f"  {COLLECTED}") as rig:
        client = await send_part(rig, 100_001, 200_000)
        with trio.fail_after(5):
            assert (await answer_of(client)).startswith(b"HTTP/1.1 413 ")
        await client.aclose()
