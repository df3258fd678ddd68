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
from support.client import Client
from support.http2_client import open_http2
from support.interceptors import Log, Rig, Serve, Way, interceptor, until
from support.proxy import config_for, open_proxy
from support.upstream import Peer, answering, open_upstream, stream_of

from interceptors import Event, Interceptor, Request, StreamContext
from interceptors.api_keys import hash_key
from proxy.config import parse_config

KEY = "sk-known"
BEARER = f"Authorization: Bearer {KEY}"
KEYED = f'{{name: keys, use: "interceptors.api_keys:ApiKeys", options: {{keys: {{ann: "{hash_key(KEY)}"}}}}}}'
EVENTS = stream_of(b"data: 1\n\n")
DIALECTS = pytest.mark.parametrize("dialect", ["generic", "mcp"])
PART = {"Content-Length: 3000000": b"[{},", "Transfer-Encoding: chunked": b"4\r\n[{},\r\n"}


async def begin(rig: Rig, body: bytes, *lines: str) -> Client:
    """The head of a POST with these lines, and a body, or the first bytes of one."""
    client = await rig.client()
    head = "\r\n".join(["POST / HTTP/1.1", "Host: a", "Content-Type: application/json", *lines])
    await client.stream.send_all(head.encode() + b"\r\n\r\n" + body)
    return client


async def send_part(rig: Rig, size: int, length: int = 60_000) -> Client:
    return await begin(rig, bytes(size), f"Content-Length: {length}")


async def answer_of(client: Client) -> bytes:
    """The head, and the body up to its Content-Length."""
    data, size = b"", 0
    with trio.fail_after(5):
        while not size or len(data.partition(b"\r\n\r\n")[2]) < size:
            data += await client.stream.receive_some()
            if b"\r\n\r\n" in data:
                size = int(data.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return data


async def status_of(client: Client) -> int:
    return int((await answer_of(client)).split(b" ")[1])


@asynccontextmanager
async def keyed(
    log: Log, route: str, certificates: Certificates | None = None
) -> AsyncIterator[Rig]:
    """A proxy whose clients need a key."""
    async with open_upstream(EVENTS) as upstream:
        config = config_for(upstream.url, interceptors=KEYED, names="keys", route=route)
        tls = certificates.files if certificates is not None else None
        async with open_proxy(config, tls=tls) as proxy:
            rig = Rig(upstream, proxy, log)
            yield rig
            for client in rig.clients:
                await client.aclose()
            await rig.everything_is_back()
            assert proxy.worker.bodies.held == 0


@DIALECTS
async def test_a_client_without_a_key_is_refused_before_its_body(dialect: str, log: Log) -> None:
    """As soon as the head has come. 413 is only for a client with a key."""
    route = f"dialect: {dialect}, limits: {{max_request_body_bytes: 1000}}"
    async with keyed(log, route) as rig:
        for length, part in PART.items():
            client = await begin(rig, part, length)
            assert await status_of(client) == 401
            await client.aclose()
        assert await rig.outcomes(2) == ["intercepted"] * 2
        assert await status_of(await begin(rig, b"[", "Content-Length: 1001", BEARER)) == 413
        assert rig.upstream.accepted == 0


@pytest.mark.parametrize("announced", [True, False])
async def test_over_http2_as_well(announced: bool, certificates: Certificates, log: Log) -> None:
    """The whole 401 comes although the body does not, with a Content-Length and without."""
    async with (
        keyed(log, "dialect: mcp", certificates) as rig,
        open_http2(rig.proxy, certificates) as client,
    ):
        length = [("content-length", "3000000")] if announced else []
        headers = [("content-type", "application/json"), *length]
        stream_id = await client.start("POST", headers=headers, end=False)
        await client.send(stream_id, b"[{},", end=False)
        stream = client.streams[stream_id]
        await until(lambda: stream.ended)
        assert stream.status == 401
        await client.send(stream_id, bytes(10_000), end=False)  # on its way, and thrown away
        accept = ("accept", "text/event-stream")
        good = await client.get(headers=[("authorization", f"Bearer {KEY}"), accept])
        assert (good.status, good.body) == (200, b"data: 1\n\n")
        await client.reset(stream_id)


async def test_a_connection_continues_after_a_refusal(log: Log) -> None:
    """The rest of a refused body is read and thrown away."""
    async with keyed(log, "dialect: generic") as rig:
        client = await send_part(rig, 50_000, 100_000)
        assert await status_of(client) == 401
        await client.stream.send_all(bytes(50_000))
        await client.send("GET", "/", [("Authorization", f"Bearer {KEY}")])
        assert (await client.answer()).body == b"data: 1\n\n"


@pytest.mark.parametrize("framing", ["Content-Length: 40", "Transfer-Encoding: chunked"])
async def test_a_refusal_on_an_mcp_route_has_the_id_of_a_small_body(framing: str, log: Log) -> None:
    """Otherwise the id is null: a body that is large, or does not arrive at once."""
    whole = b'{"jsonrpc":"2.0","id":7,"method":"ping"}'
    cases = [(whole, b"7"), (whole[:17], b"null")]
    if framing.endswith("chunked"):
        large = whole[:-1] + b" " * 20_000 + b"}"
        cases = [
            (
                b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if len(body) >= 40 else b""),
                ident,
            )
            for body, ident in (*cases, (large, b"null"))
        ]
    async with keyed(log, "dialect: mcp") as rig:
        for body, ident in cases:
            client = await begin(rig, body, framing)
            assert b'{"jsonrpc":"2.0","id":%b,"error"' % ident in await answer_of(client)


# The order of interceptors


def notes(
    name: str, seen: list[tuple[str, object]], *, wants_body: bool = False
) -> type[Interceptor]:
    """It writes down what it saw, and that it was called."""

    async def on_request(request: Request) -> None:
        seen.append((name, request.body if wants_body else "unread"))
        request.headers["x-order"] = request.headers.get("x-order", "") + name

    return interceptor(name, on_request=on_request, wants_body=wants_body)


@DIALECTS
async def test_those_that_want_no_body_come_first(dialect: str, serve_once: Serve) -> None:
    """In the order of the list among themselves, then those that want the body in theirs."""
    seen: list[tuple[str, object]] = []
    given = [notes(name, seen, wants_body=name in "BD") for name in "ABCD"]
    async with serve_once(EVENTS, *given, route=f"dialect: {dialect}") as rig:
        for body in (b"{}", b"", None):
            seen.clear()
            await rig.fetch(method="POST", body=body)
            got = body or b""
            assert seen == [("A", "unread"), ("C", "unread"), ("B", got), ("D", got)]
        assert [request.all("x-order") for request in rig.upstream.requests] == [[b"ACBD"]] * 3


async def test_an_uncollected_body_cannot_be_read(serve_once: Serve) -> None:
    """An interceptor without `wants_body` runs before, although another one wants it."""

    async def asks(request: Request) -> None:
        request.body  # noqa: B018

    wants = notes("B", [], wants_body=True)
    async with serve_once(EVENTS, interceptor("Asks", on_request=asks), wants) as rig:
        assert (await rig.fetch(method="POST", body=b"{}")).status == 502
        assert rig.failures() == [("Asks", "on_request")]


async def test_a_body_replaced_by_the_head_alone_is_not_waited_for(serve_once: Serve) -> None:
    """The client's body is discarded; hooks and the upstream see the new one."""
    seen: list[tuple[str, object]] = []

    async def replaces(request: Request) -> None:
        request.replace_body(b"mine")

    given = [interceptor("Replaces", on_request=replaces), notes("B", seen, wants_body=True)]
    async with serve_once(EVENTS, *given) as rig:
        await begin(rig, b"[{},", "Content-Length: 3000000")
        await until(lambda: rig.upstream.requests and rig.upstream.requests[0].body == b"mine")
        assert seen == [("B", b"mine")]


async def test_a_client_that_leaves_ends_on_request(serve_once: Serve) -> None:
    async def waits(request: Request) -> None:
        await trio.sleep_forever()

    waiting = interceptor("Waits", on_request=waits, hook_timeout_s=None)
    async with serve_once(EVENTS, waiting, notes("B", [], wants_body=True)) as rig:
        for length, part in PART.items():
            client = await begin(rig, part, length)
            await until(lambda: rig.proxy.worker.live)
            await trio.sleep(0.02)
            await client.aclose()
            await until(lambda: not rig.proxy.worker.live)
        assert await rig.outcomes(2) == ["client_disconnected"] * 2


async def test_http2_announces_with_the_head_whether_there_is_a_body(
    certificates: Certificates, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`has_body` is right for interceptors that see the head alone, and the upstream gets the
    request's length. A small body without a length is bounded.
    """
    found: list[bool] = []

    async def sees(request: Request) -> None:
        found.append(request.has_body)

    serve = Way(certificates=certificates).serve(log, monkeypatch)
    limit = "limits: {max_request_body_bytes: 10}"
    async with (
        serve(EVENTS, interceptor(on_request=sees), route=limit) as rig,
        open_http2(rig.proxy, certificates) as client,
    ):
        for method, body, length in (
            ("GET", b"abc", []),
            ("POST", b"abc", []),
            ("GET", b"", []),
            ("POST", b"", [b"0"]),
        ):
            stream_id = await client.start(method, end=not body)
            if body:
                await client.send(stream_id, body)
            await until(lambda stream_id=stream_id: client.streams[stream_id].ended)
            assert found.pop() == bool(body)
            request = rig.upstream.requests[-1]
            assert (request.method, request.body) == (method, body)
            assert request.all("content-length") == length
        await client.send(stream_id := await client.start("POST", end=False), bytes(20))
        await until(lambda: client.streams[stream_id].over)
        assert client.streams[stream_id].status == 413
        assert len(rig.upstream.requests) == 4


# Batches

BATCHES = """
reverse_proxy:
  upstreams: [{{name: up, endpoints: ["{url}"]}}]
  routes:
    - {{path: /, upstream: up, dialect: mcp}}
    - {{path: /policy, upstream: up, interceptors: [policy]}}
interceptors: [{{name: policy, use: mcp_policy, options: {{methods: {{allow: ["*"]}}}}}}]
drain: {{timeout: 1}}
log: {{level: error}}
"""


async def test_batches_and_bodies_of_mcp_are_bounded(log: Log) -> None:
    """A batch has at most 100 messages, and to refuse one takes no longer than to decode it. Bodies
    have at most 4 MiB by default, by their Content-Length alone.
    """

    script = answering(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    message = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}
    bodies = [json.dumps([message] * count).encode() for count in (100, 101)]
    large = b"[" + b"0," * 300_000 + b"0]"
    async with open_upstream(script) as upstream:
        async with open_proxy(parse_config(BATCHES.format(url=upstream.url))) as proxy:
            rig = Rig(upstream, proxy, log)
            for path in ("/", "/policy"):
                answers, took = [], 0.0
                for body in (*bodies, large):
                    began = time.process_time()
                    headers = [("content-type", "application/json")]
                    answers.append(await rig.fetch(path, method="POST", headers=headers, body=body))
                    took = time.process_time() - began
                assert [answer.status for answer in answers] == [202, 400, 400]
                error = {"code": -32600, "message": "a batch must have at most 100 messages"}
                assert json.loads(answers[1].body)["error"] == error
                began = time.process_time()
                for _ in range(10):
                    json.loads(large)
                assert took < time.process_time() - began
            routes = proxy.worker.routes.routes
            limits = {route.name: route.limits.max_request_body_bytes for route in routes}
            assert limits == {"/": 4 << 20, "/policy": 16 << 20}
            client = await begin(rig, b"", "Content-Length: 4194305")
            assert await status_of(client) == 413
            await client.aclose()
            assert len(upstream.requests) == 2


# The bound on what a worker collects

COLLECTS = interceptor("Collects", wants_body=True)
COLLECTED = "  limits: {max_collected_bytes: 100000}"


async def test_bodies_of_slow_clients_hold_no_more_than_the_bound(serve_once: Serve) -> None:
    """503 with Retry-After for the body that does not fit, and 413 for one that never will."""
    async with serve_once(EVENTS, COLLECTS, proxy=COLLECTED) as rig:
        bodies = rig.proxy.worker.bodies
        slow = await send_part(rig, 50_000)
        await until(lambda: bodies.held == 50_000)
        quiet = await send_part(rig, 0)  # announces much, and takes nothing
        late = await send_part(rig, 60_000)
        answer = await answer_of(late)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer.lower()
        assert b'"type":"too_many_bodies"' in answer
        assert bodies.held == 50_000
        assert rig.metric("weirpool_refused_total", route="/", reason="too_many_bodies") == 1
        for client in (slow, quiet, late):
            await client.aclose()
        await until(lambda: bodies.held == 0)
        assert sorted(await rig.outcomes(3)) == ["client_disconnected"] * 2 + ["refused"]
        assert (await rig.fetch(method="POST", body=bytes(60_000))).status == 200
        assert await status_of(await send_part(rig, 100_001, 200_000)) == 413


async def test_a_body_counts_until_the_head_of_the_response(serve_once: Serve) -> None:
    """While it is on its way up; a stream that lasts for hours holds nothing of the budget."""
    go = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.start_stream()
        await peer.wait_closed()

    async with serve_once(script, COLLECTS, proxy=COLLECTED) as rig:
        client = await send_part(rig, 60_000)
        await until(lambda: rig.upstream.requests)
        assert rig.proxy.worker.bodies.held == 60_000
        assert (await rig.fetch(method="POST", body=bytes(60_000))).status == 503
        go.set()
        assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert rig.proxy.worker.bodies.held == 0


@contextmanager
def allocations() -> Iterator[Callable[[], int]]:
    """How many bytes Python's objects hold, compared with the beginning."""
    tracemalloc.start()
    began = tracemalloc.get_traced_memory()[0]
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - began
    finally:
        tracemalloc.stop()


@DIALECTS
async def test_a_stream_holds_no_body_of_its_request(dialect: str, serve_once: Serve) -> None:
    """What the bound does not count any more is not there any more."""

    async def script(peer: Peer) -> None:
        (await peer.request()).body = b""
        await peer.start_stream()
        await peer.wait_closed()

    route = f"dialect: {dialect}, limits: {{max_request_body_bytes: 3000000}}"
    body = b'{"jsonrpc":"2.0","method":"m","params":{"a":"' + b"a" * 2_000_000 + b'"}}'
    async with serve_once(script, COLLECTS, route=route) as rig:
        with allocations() as held:
            client = await begin(rig, body, f"Content-Length: {len(body)}")
            assert (await client.stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            assert rig.proxy.worker.bodies.held == 0
            assert held() < 1_000_000


async def test_a_hook_that_reads_a_freed_body_gets_an_error(serve_once: Serve) -> None:
    """`open_stream` has it."""
    requests: list[Request] = []

    def opened(context: StreamContext) -> None:
        assert context.request.body == b"{}"
        requests.append(context.request)

    def on_event(event: Event) -> Event:
        requests[0].json()
        return event

    late = interceptor("AsksLate", wants_body=True, opened=opened, on_event=on_event)
    async with serve_once(EVENTS, late) as rig:
        await rig.fetch(method="POST", body=b"{}")
        assert rig.failures() == [("AsksLate", "on_event")]


async def test_a_refused_body_is_freed_at_once(serve_once: Serve) -> None:
    """A client may continue sending for ten seconds."""
    limits = "  limits: {max_collected_bytes: 2000000}"
    async with serve_once(EVENTS, COLLECTS, proxy=limits) as rig:
        with allocations() as held:
            assert await status_of(await send_part(rig, 2_000_001, 5_000_000)) == 413
            assert held() < 1_000_000


async def test_a_body_of_single_bytes_goes_upstream_byte_for_byte(serve_once: Serve) -> None:
    async with serve_once(EVENTS, COLLECTS) as rig:
        body = bytes(index % 251 for index in range(20_000))
        chunks = b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body)))
        await begin(rig, chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked")
        await until(lambda: rig.upstream.requests and rig.upstream.requests[0].body == body)
