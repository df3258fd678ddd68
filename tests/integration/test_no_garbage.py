"""What an exchange used is freed when it ends: nothing of Weirpool or Hypercorn waits for the
garbage collector.

A proxy with thousands of streams can afford to collect rarely only because of that (`weirpool
serve` does).
"""

from __future__ import annotations

import gc
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing
from support.certificates import Certificates
from support.client import Client, open_client
from support.http2_client import open_http2
from support.interceptors import config_with, interceptor, on_event, on_event_async, until
from support.proxy import Proxy, open_proxy
from support.upstream import Peer, open_stream_of, open_upstream

from interceptors import Event, EventResult, Interceptor, Request, Response, StreamContext
from proxy.downstream import client_connections
from proxy.inspector import Inspector, Wanted

OURS = ("proxy.", "interceptors.", "pools.", "hypercorn.")
STREAM = b"data: 1\n\ndata: 2\n\n"
TIMES = 3


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Nothing is collected but where the test does."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.enable()


def garbage() -> Counter[str]:
    """What waits for the collector."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
        return Counter(name for name in names if name.startswith(OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()


async def script(peer: Peer) -> None:
    """An event stream; its target selects how it ends."""
    while True:
        request = await peer.request()
        if request.target == b"/json":
            await peer.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            continue
        await peer.start_stream()
        await peer.chunk(STREAM)
        if request.target == b"/broken":
            return
        if request.target == b"/endless":
            await peer.wait_closed()
            return
        await peer.end()


async def whole(client: Client) -> None:
    await client.send("GET", "/")
    assert b"data: 2\n\n" in (await client.answer()).body


async def kept_alive(client: Client) -> None:
    for _ in range(3):
        await whole(client)
        client.next_cycle()


async def left(client: Client) -> None:
    await client.send("GET", "/endless")
    await client.read_until(await client.head(), b"data: 2\n\n")


async def broken(client: Client) -> None:
    await client.send("GET", "/broken")
    with suppress(Exception):
        await client.answer()


async def upload(client: Client) -> None:
    await client.send("POST", "/", None, bytes(300_000))
    await client.answer()


async def json_body(client: Client) -> None:
    await client.send("POST", "/json", None, b"{}")
    assert (await client.answer()).body == b"{}"


async def refused(client: Client) -> None:
    await client.send("GET", "/", [("Host", "elsewhere.test")])
    assert (await client.answer()).status == 403


def change(event: Event) -> EventResult:
    return event.replace(data=event.data + "!") if event.data == "1" else event


async def change_later(event: Event) -> EventResult:
    await trio.sleep(0)
    return change(event)


async def emit(context: StreamContext) -> None:
    await context.emit(Event("said"))


async def answer(request: Request) -> Response:
    return Response(events=[Event("1"), Event("2")])


CHAINS: dict[str, tuple[type[Interceptor], ...]] = {
    "no chain": (),
    "changed": (on_event(change),),
    "awaited": (on_event_async(change_later),),
    "task": (interceptor(opened=lambda context: context.start_soon(emit, context)),),
    "answered": (interceptor(on_request=answer),),
}
EXCHANGES: dict[str, Callable[[Client], Awaitable[None]]] = {
    "whole": whole,
    "kept alive": kept_alive,
    "left": left,
    "broken": broken,
    "upload": upload,
    "json": json_body,
    "refused": refused,
}
RUNS = [
    *((kind, chain) for kind in ("whole", "left") for chain in ("changed", "awaited", "task")),
    *((kind, "no chain") for kind in EXCHANGES),
    ("broken", "awaited"),
    ("json", "changed"),
    ("whole", "answered"),
    ("upload", "answered"),
]


@pytest.mark.parametrize("told", [b"event: endpoint\ndata: /m?s=1\n\n", b"data: {}\n\n"])
async def test_a_listening_stream_leaves_no_garbage(told: bytes) -> None:
    """Of either transport, also when it has seen a reload."""

    server = open_stream_of(told)

    async def listen(proxy: Proxy) -> None:
        client = Client(await trio.open_tcp_stream("127.0.0.1", proxy.port))
        await client.send("GET", "/sse")
        await client.read_until(await client.head(), told)
        await proxy.worker.reload(proxy.worker.config)
        await client.aclose()
        await until(lambda: not proxy.worker.live)
        await trio.testing.wait_all_tasks_blocked(0.02)

    async with open_upstream(server) as upstream:
        async with open_proxy(config_with(upstream.url, route="dialect: mcp")) as proxy:
            await listen(proxy)
            garbage()
            for _ in range(TIMES):
                await listen(proxy)
            left = garbage()  # a configuration may be left
            assert not [
                name
                for name in left
                if name.rpartition(".")[2] in ("Request", "StreamChain", "LiveSession")
            ], left


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(("kind", "chain"), RUNS)
async def test_an_exchange_leaves_nothing_to_the_garbage_collector(
    kind: str, chain: str, watched: bool
) -> None:
    """Several of each kind: no object of Weirpool is left for the collector. Nor if it is watched."""

    async def exchange(proxy: Proxy) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
        client = Client(stream)
        await EXCHANGES[kind](client)
        await client.aclose()
        await until(lambda: not proxy.worker.live)
        await trio.testing.wait_all_tasks_blocked(0.02)
        if watched:
            messages = b"".join(view.take())
            assert messages.startswith(b"event: begin")
            assert b"event: end" in messages
            assert not view.feeds

    async with open_upstream(script) as upstream:
        async with open_proxy(
            config_with(upstream.url, *CHAINS[chain], route="allowed_hosts: [proxy.test]")
        ) as proxy:
            worker = proxy.worker
            if watched:
                worker.inspector = Inspector(0, lambda: worker.live)
                view = worker.inspector.open(Wanted())
            await exchange(proxy)  # what is made once is made
            garbage()
            for _ in range(TIMES):
                await exchange(proxy)
            assert not garbage()


async def test_an_http2_connection_leaves_nothing_to_the_garbage_collector() -> None:
    """Nor its streams, however they end: whole, broken, refused, reset, and with the connection."""

    async def exchanges(proxy: Proxy) -> None:
        async with open_http2(proxy, None) as client:
            for path in ("/", "/json", "/broken", "/a b"):
                await client.get(path)
            await client.send(await client.start("POST", "/json", end=False), bytes(300_000))
            ids = [await client.start("GET", "/endless") for _ in range(2)]
            await until(lambda: all(client.streams[item].body for item in ids))
            await client.reset(ids[0])
        await until(lambda: not proxy.worker.live)
        await trio.testing.wait_all_tasks_blocked(0.02)

    async with open_upstream(script) as upstream, open_proxy(config_with(upstream.url)) as proxy:
        await exchanges(proxy)
        garbage()
        for _ in range(TIMES):
            await exchanges(proxy)
        assert not garbage()


async def test_the_handshake_that_trio_has_prepared_is_freed(certificates: Certificates) -> None:
    """The proxy does its own on the socket; OpenSSL's state of the other would take 1 kB or more."""
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_with(upstream.url), tls=certificates.files) as proxy,
    ):
        for _ in range(TIMES):  # Trio's listener references the last one
            client = await open_client(proxy.port, certificates.client())
            await client.send("GET", "/json")
            assert (await client.answer()).status == 200
            await client.aclose()
        await until(lambda: not client_connections)
        await trio.testing.wait_all_tasks_blocked()  # Trio's handler has ended, too
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [one for one in gc.garbage if isinstance(one, ssl.SSLObject) and one.server_side]
        gc.garbage.clear()
        assert left == []


@pytest.mark.parametrize("answer", [b'{"id":"1","model":"m"}', b'data: {"choices":[]}\n\n'])
async def test_a_recorded_call_leaves_no_garbage(answer: bytes) -> None:
    """With `telemetry.genai`, streamed and not."""
    kind = b"text/event-stream" if answer.startswith(b"data") else b"application/json"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"

    async def llm(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(head % (kind, len(answer)) + answer)

    async def call(proxy: Proxy) -> None:
        client = Client(await trio.open_tcp_stream("127.0.0.1", proxy.port))
        await client.send("POST", "/v1/chat/completions", body=b'{"model":"m"}')
        assert (await client.answer()).body == answer
        await client.aclose()
        await until(lambda: not proxy.worker.live)
        await trio.testing.wait_all_tasks_blocked(0.02)

    async with open_upstream(llm) as upstream:
        config = config_with(
            upstream.url, route="dialect: openai", proxy="telemetry: {genai: true}"
        )
        async with open_proxy(config) as proxy:
            await call(proxy)
            garbage()
            for _ in range(TIMES):
                await call(proxy)
            assert not garbage()
