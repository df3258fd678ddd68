"""With the hub and without it: the same requests, the same answers, the same outcomes.

The hub is taken away as on a platform without epoll; then each stream's own task waits.
"""

from __future__ import annotations

import ssl
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import h11
import pytest
import trio
import trustme
from support.client import Client, fetch, open_client
from support.interceptors import until
from support.proxy import Proxy, config_for, open_proxy
from support.upstream import Peer, open_upstream, stream_of

from interceptors import Event, EventResult, Interceptor, StreamContext, StreamInterceptor
from proxy.relay.hub import Hub

EDIT = {"interceptors": '{name: edit, use: "edit_interceptor:Edit"}', "names": "edit"}


class Edit(Interceptor):
    """Decodes every event, changes those with an even number, drops every seventh."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _EditStream()


class _EditStream(StreamInterceptor):
    def on_event(self, event: Event) -> EventResult:
        message = event.json()
        if message["n"] % 7 == 0:
            return None
        if message["n"] % 2:
            return event
        message["edited"] = True
        return event.replace(json=message)


@dataclass(frozen=True)
class Way:
    hub: bool

    def check(self, proxy: Proxy) -> None:
        """The proxy runs as the test wants it to."""
        assert (proxy.worker.hub is not None) is self.hub

    def parked(self, proxy: Proxy) -> int:
        return len(proxy.worker.hub) if proxy.worker.hub is not None else 0


@pytest.fixture(params=["hub", "no hub"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Who waits, for every proxy that the test opens."""
    if request.param == "hub":
        if not Hub.available():
            pytest.skip("no epoll here")
        return Way(True)
    monkeypatch.setattr("proxy.relay.hub.Hub.available", staticmethod(lambda: False))
    return Way(False)


@pytest.fixture(autouse=True)
def edit_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration loads interceptors by module name; this is the module."""
    module = types.ModuleType("edit_interceptor")
    module.Edit = Edit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "edit_interceptor", module)


async def ended(proxy: Proxy, log: list[dict[str, object]], *outcomes: str) -> None:
    """Exchanges have ended, with these outcomes, and everything is back; no stream is left in the
    hub.
    """
    await until(lambda: not proxy.worker.live)
    assert [line["outcome"] for line in log if line["event"] == "exchange"] == list(outcomes)
    assert set(proxy.in_use().values()) == {0}
    assert proxy.lent() == 0
    assert proxy.worker.hub is None or len(proxy.worker.hub) == 0


EVENTS = [
    b'data: {"n":%d,"text":"%s"}\n\n' % (n, b"x" * (n * 37 % 9000 if n % 10 == 0 else n % 50))
    for n in range(1, 500)
]
EDITED = b"".join(
    event if n % 2 else event.replace(b'"}\n', b'","edited":true}\n')
    for n, event in enumerate(EVENTS, 1)
    if n % 7
)


@pytest.mark.parametrize("chained", [False, True])
async def test_a_stream_arrives(chained: bool, way: Way, log: list[dict[str, object]]) -> None:
    """Events of many sizes, three requests one after the other on one upstream connection: as they
    came, or as edited.
    """
    async with (
        open_upstream(stream_of(*EVENTS)) as upstream,
        open_proxy(config_for(upstream.url, **(EDIT if chained else {}))) as proxy,
    ):
        way.check(proxy)
        for _ in range(3):
            answer = await fetch(proxy.port)
            assert (answer.status, answer.complete) == (200, True)
            assert answer.body == (EDITED if chained else b"".join(EVENTS))
        assert upstream.accepted == 1
        await ended(proxy, log, *["completed"] * 3)


async def test_each_event_arrives_before_the_next_is_sent(
    way: Way, log: list[dict[str, object]]
) -> None:
    """The stream's waiting is where it should be, in the hub or in its own task, and an idle stream
    holds no buffer.
    """
    numbers, more = trio.open_memory_channel[int](0)[::-1]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        async for number in numbers:
            await peer.chunk(EVENTS[number - 1])
        await peer.end()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **EDIT)) as proxy,
    ):
        way.check(proxy)
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        answer = await client.head()
        with trio.fail_after(10):
            for number in (1, 3, 5):
                await more.send(number)
                await client.read_until(answer, EVENTS[number - 1])
                assert set(proxy.in_use().values()) == {0}
                await until(lambda: way.parked(proxy) == way.hub)
            await more.aclose()
            await client.rest(answer)
        assert answer.complete
        await client.aclose()
        await ended(proxy, log, "completed")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("when", ["idle", "streaming", "in half an event"])
async def test_a_client_that_leaves(
    how: str, when: str, way: Way, log: list[dict[str, object]]
) -> None:
    """The upstream's connection is closed, whether it is silent at that moment, sends, or stands
    inside of an event.
    """
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(EVENTS[0] + (b"data: {" if when == "in half an event" else b""))
        try:
            while when == "streaming":
                await peer.chunk(EVENTS[1])
                await trio.sleep(0.001)
            await peer.wait_closed()
        except trio.BrokenResourceError:
            pass
        closed.set()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **EDIT)) as proxy,
    ):
        way.check(proxy)
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        answer = await client.head()
        await client.read_until(answer, b"\n\n")
        if how == "reset":
            client.reset()
        else:
            await client.aclose()
        with trio.fail_after(10):
            await closed.wait()
        await ended(proxy, log, "client_disconnected")


@pytest.mark.parametrize("chained", [False, True])
async def test_a_slow_client(chained: bool, way: Way, log: list[dict[str, object]]) -> None:
    """While it reads nothing, upstream can send only what the kernel's buffers hold, and the stream
    waits outside of the hub; when it reads, all of it arrives.
    """
    event = b'data: {"n":1,"text":"%s"}\n\n' % (b"x" * 16_000)
    count = 1000  # 16 MB
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.start_stream()
        for _ in range(count):
            await peer.chunk(event)
            sent += 1
        await peer.end()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, **(EDIT if chained else {}))) as proxy,
    ):
        way.check(proxy)
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        await client.head()
        (exchange,) = proxy.worker.live
        await until(
            lambda: (
                (writer := exchange._response.writer) is not None  # type: ignore[attr-defined]
                and writer.stalled
            )
        )
        before = -1
        while before != sent:  # until upstream is blocked, too
            before = sent
            await trio.sleep(0.2)
        assert sent < count
        assert way.parked(proxy) == 0
        body = bytearray()
        with trio.fail_after(20):
            while isinstance(piece := await client._next(), h11.Data):
                body += piece.data
        assert isinstance(piece, h11.EndOfMessage)
        assert body == event * count
        await client.aclose()
        await ended(proxy, log, "completed")


async def test_a_client_that_takes_nothing_has_stalled(
    way: Way, log: list[dict[str, object]]
) -> None:
    """It is given up after the send deadline, and upstream is closed."""
    closed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        try:
            while True:
                await peer.chunk(b"data: " + b"x" * 60_000 + b"\n\n")
        except trio.BrokenResourceError:
            closed.set()

    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, route="timeouts: {send: 0.3}")) as proxy,
    ):
        way.check(proxy)
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        with trio.fail_after(10):
            await closed.wait()
        await ended(proxy, log, "send_stalled")
        await client.aclose()


@pytest.mark.parametrize(
    ("how", "chained"),
    [
        ("ends early", False),
        ("ends early", True),
        ("is reset", True),
        ("breaks the framing", False),
        ("breaks the framing", True),
        ("goes silent", False),
    ],
)
async def test_a_broken_upstream(
    how: str, chained: bool, way: Way, log: list[dict[str, object]]
) -> None:
    """What came before has arrived, the failure is said between two events, and the end is visibly
    none.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(EVENTS[0])
        if how == "is reset":
            await told.wait()  # a reset would overtake what has not been read
            Client(peer.stream).reset()
        elif how == "breaks the framing":
            await peer.send(b"no size\r\n")
        if how in ("breaks the framing", "goes silent"):
            await peer.wait_closed()

    told = trio.Event()
    kind, outcome = {
        "ends early": (b"upstream_truncated", "upstream_error"),
        "is reset": (b"upstream_connection_lost", "upstream_error"),
        "breaks the framing": (b"upstream_protocol_error", "upstream_error"),
        "goes silent": (b"upstream_read_timeout", "upstream_timeout"),
    }[how]
    route = "timeouts: {idle: 0.2}" if how == "goes silent" else ""
    async with (
        open_upstream(script) as upstream,
        open_proxy(config_for(upstream.url, route=route, **(EDIT if chained else {}))) as proxy,
    ):
        way.check(proxy)
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        answer = await client.head()
        await client.read_until(answer, b"\n\n")
        told.set()
        with trio.fail_after(10):
            await client.rest(answer)
        await client.aclose()
        assert answer.body.startswith(
            EVENTS[0] + b'event: error\ndata: {"error":{"type":"' + kind + b'"'
        )
        assert not answer.complete
        await ended(proxy, log, outcome)


@pytest.mark.parametrize("chained", [False, True])
async def test_a_tls_upstream(
    chained: bool, way: Way, tmp_path: Path, log: list[dict[str, object]]
) -> None:
    """Records larger than a window: what waits inside TLS arrives, although the stream stays open
    and nothing follows.
    """
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    arrived = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.send(b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in EVENTS))
        await arrived.wait()
        await peer.end()
        await peer.wait_closed()

    config = {"upstream": f'ca_file: "{ca_file}"', **(EDIT if chained else {})}
    expected = EDITED if chained else b"".join(EVENTS)
    async with (
        open_upstream(script, ssl_context=server) as upstream,
        open_proxy(config_for(upstream.url, **config)) as proxy,
    ):
        way.check(proxy)
        client = await open_client(proxy.port)
        await client.send("GET", "/")
        with trio.fail_after(10):
            answer = await client.head()
            await client.read_until(answer, expected)
            arrived.set()
            await client.rest(answer)
        assert (answer.body, answer.complete) == (expected, True)
        await client.aclose()
        await ended(proxy, log, "completed")


async def test_saturated_streams_leave_room_for_the_rest(
    way: Way, log: list[dict[str, object]]
) -> None:
    """500 streams, each event edited, as fast as they can: /healthz answers meanwhile, each time
    within seconds, every stream goes on, and a shutdown ends them all (that the server ends,
    `open_proxy` asserts).

    Without the hub there are 100: between two turns of another task each stream then has one of its
    own.
    """
    count = 500 if way.hub else 100
    events = [b'data: {"n":%d,"text":"%s"}\n\n' % (n, b"x" * 1000) for n in range(1, 100)]
    burst = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    received = [0] * count
    go = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await go.wait()
        while True:
            await peer.send(burst)

    async def read(port: int, index: int) -> None:
        client = await open_client(port)
        try:
            await client.send("GET", "/")
            while data := await client.stream.receive_some(65536):
                received[index] += data.count(b'"edited":true')
        except trio.BrokenResourceError:
            pass
        finally:
            await client.aclose()

    async with trio.open_nursery() as readers, open_upstream(script) as upstream:
        async with open_proxy(config_for(upstream.url, **EDIT)) as proxy:
            way.check(proxy)
            for index in range(count):
                readers.start_soon(read, proxy.port, index)
            await until(lambda: upstream.open == count)
            go.set()
            with trio.fail_after(20):
                while not all(received):
                    await trio.sleep(0.05)
            before = list(received)
            for _ in range(5):
                with trio.fail_after(5):
                    answer = await fetch(proxy.port, "/healthz")
                assert (answer.status, answer.body) == (200, b"ok\n")
            assert len(proxy.worker.live) == count
            with trio.fail_after(20):
                while any(now == then for now, then in zip(received, before, strict=True)):
                    await trio.sleep(0.05)
        await ended(proxy, log, *["draining"] * count)
