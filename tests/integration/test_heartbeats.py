"""Heartbeats as a client sees them: through both writers, with and without the hub, plain and TLS,
with interceptors and without.

Intervals are short and limits generous: a test waits for heartbeats to come, and for a time only
where none may.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest
import trio
from support.certificates import Certificates
from support.client import Answer, Client
from support.event_source import comments, dispatched
from support.interceptors import Feed, Log, Rig, Serve, Way, on_event, until
from support.upstream import Peer

from interceptors import (
    Event,
    Interceptor,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)

FAST = "heartbeat: {interval: 0.05}"
EARLY = "heartbeat: {interval: 0.05, early: true}"
EVENT_SOURCE = [("Accept", "text/event-stream")]


@pytest.fixture(params=["hub", "no hub", "TLS", "TLS, no hub"])
def serve(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> Serve:
    """TLS is served by the portable writer."""
    way = Way(
        hub="no hub" not in request.param,
        certificates=certificates if "TLS" in request.param else None,
    )
    return way.serve(log, monkeypatch)


def chain(chained: bool) -> list[type[Interceptor]]:
    return [on_event(lambda event: event)] if chained else []


async def pings(client: Client, answer: Answer, count: int) -> None:
    """Read until so many more have come."""
    with trio.fail_after(10):
        for _ in range(count):
            answer.body += await client.read_some()
            await client.read_until(answer, b": ping\n")


async def ask(
    rig: Rig,
    method: str = "GET",
    headers: list[tuple[str, str]] | None = None,
    body: bytes | None = None,
) -> Client:
    client = await rig.client()
    await client.send(method, "/", headers if headers is not None else EVENT_SOURCE, body)
    return client


@pytest.mark.parametrize("chained", [False, True])
async def test_a_quiet_stream_is_kept_alive(chained: bool, serve: Serve) -> None:
    """Before its first event and between two."""
    feed = Feed()
    async with serve(feed.script, *chain(chained), route=FAST) as rig:
        client, answer = await rig.start()
        await pings(client, answer, 2)
        feed.send(b"id: 1\ndata: one\n\n")
        await client.read_until(answer, b"one\n\n")
        await pings(client, answer, 2)
        feed.send(b"data: two\n\n")
        feed.end()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.complete
        assert [(event.data, event.last_event_id) for event in dispatched(answer.body)] == [
            ("one", "1"),
            ("two", "1"),
        ]
        assert answer.body.replace(b": ping\n", b"") == b"id: 1\ndata: one\n\ndata: two\n\n"
        assert await rig.outcomes() == ["completed"]
        (line,) = rig.lines("exchange")
        assert line["bytes"] == len(answer.body)
        assert line["events"] == (2 if chained else None)


async def test_a_route_may_have_its_own(serve: Serve) -> None:
    """The common setting applies unless a route overrides it."""
    feed = Feed()
    async with serve(feed.script, proxy="  heartbeat: {interval: 0.05}") as rig:
        client, answer = await rig.start()
        await pings(client, answer, 1)
    async with serve(
        Feed().script, proxy="  heartbeat: {interval: 0.05}", route="heartbeat: {interval: null}"
    ) as rig:
        client, answer = await rig.start()
        with trio.move_on_after(0.3):
            await client.rest(answer)
        assert answer.body == b""


async def silent_after(rig: Rig, seconds: float = 0.4) -> Answer:
    """What a client has got of a stream that is silent for some time."""
    client, answer = await rig.start()
    with trio.move_on_after(seconds):
        await client.rest(answer)
    return answer


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Type: application/json\r\nTransfer-Encoding: chunked", b"7\r\n[1,2,3,\r\n"),
        (b"Content-Type: text/plain\r\nTransfer-Encoding: chunked", b"2\r\n\n\n\r\n"),
        (
            b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked",
            b"3\r\nxyz\r\n",
        ),
        (b"Content-Type: text/event-stream\r\nContent-Length: 100", b"data: 1\n\n"),
        (b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked", b"8\r\ndata: 1\n\r\n"),
    ],
    ids=["json", "text", "encoded", "of known length", "mid-event"],
)
async def test_where_none_may_go(head: bytes, body: bytes, serve: Serve) -> None:
    """No byte is added to what is not an event stream, is encoded, has a length, or is in the middle of
    an event.
    """

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
        await peer.wait_closed()

    async with serve(script, route=FAST) as rig:
        answer = await silent_after(rig)
        assert b"ping" not in answer.body
        assert answer.body


async def test_a_client_that_vanished_is_noticed(serve: Serve) -> None:
    """It has sent a byte too many, so that Hypercorn does not read on, and then left."""
    feed = Feed()
    async with serve(feed.script, route=FAST) as rig:
        client, answer = await rig.start()
        await pings(client, answer, 1)
        await client.stream.send_all(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(0.05)
        client.reset()
        with trio.fail_after(10):
            await feed.closed.wait()
        assert await rig.outcomes() == ["client_disconnected"]


async def test_a_client_that_takes_nothing_is_cut(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats alone fill its socket in the end, and then the send deadline holds."""
    accept = socket.socket.accept

    def accept_small(self: socket.socket) -> object:
        sock, address = accept(self)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        return sock, address

    monkeypatch.setattr(socket.socket, "accept", accept_small)
    feed = Feed()
    serve = Way().serve(log, monkeypatch)
    async with serve(
        feed.script, route="heartbeat: {interval: 0.001}, timeouts: {send: 0.3}"
    ) as rig:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            sock.connect(("127.0.0.1", rig.proxy.port))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(60):
                assert await rig.outcomes() == ["send_stalled"]


async def test_many_quiet_streams_all_get_theirs(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred at once, all moved by the hub."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.wait_closed()

    async with Way().serve(log, monkeypatch)(script, route="heartbeat: {interval: 0.2}") as rig:
        got: list[int] = []

        async def one() -> None:
            client, answer = await rig.start()
            await pings(client, answer, 3)
            got.append(1)
            await client.aclose()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(one)
        assert len(got) == 200


async def test_an_interceptors_own_stream_beats_too(serve: Serve) -> None:
    """An answer whose events come slowly is an event stream as any other."""

    class Slow(Interceptor):
        async def on_request(self, request: Request) -> Response:
            async def events() -> object:
                yield Event(data="one")
                await until(lambda: go.is_set())
                yield Event(data="two")

            return Response(events=events())  # type: ignore[arg-type]

    go = trio.Event()
    async with serve(Feed().script, Slow, route=FAST) as rig:
        client, answer = await rig.start()
        await client.read_until(answer, b"one\n\n")
        await pings(client, answer, 2)
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.complete
        assert [event.data for event in dispatched(answer.body)] == ["one", "two"]


# Before the upstream has answered


class Held:
    """An upstream that answers when the test lets it."""

    def __init__(self, answer: Callable[[Peer], object] | None = None) -> None:
        self.go = trio.Event()
        self.closed = trio.Event()
        self._answer = answer

    async def script(self, peer: Peer) -> None:
        await peer.request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, peer)
            await self.go.wait()
            if self._answer is not None:
                await self._answer(peer)  # type: ignore[misc]
            nursery.cancel_scope.cancel()

    async def _watch(self, peer: Peer) -> None:
        await peer.wait_closed()
        self.closed.set()


async def stream(peer: Peer) -> None:
    await peer.start_stream(b"X-Request-Id: 7", b"X-Accel-Buffering: yes")
    await peer.chunk(b"\xef\xbb\xbfdata: 1\n\ndata: 2\n\n")
    await peer.end()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_early_heartbeats_begin_before_the_upstream_answers(
    method: str, serve: Serve
) -> None:
    """The head is ours, upstream's own headers come too late, and interceptors see its head and its
    events as ever.
    """
    heads: list[tuple[str, int, str | None]] = []

    class Watch(Interceptor):
        async def on_response(self, head: ResponseHead) -> None:
            heads.append(("on_response", head.status, head.headers.get("x-request-id")))

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return WatchStream()

    class WatchStream(StreamInterceptor):
        def on_start(self, head: ResponseHead) -> None:
            heads.append(("on_start", head.status, head.headers.get("x-request-id")))

        def on_event(self, event: Event) -> Event:
            return event.replace(data="seen " + event.data)

    held = Held(stream)
    async with serve(held.script, Watch, route=EARLY) as rig:
        client = await ask(rig, method, body=b"{}" if method == "POST" else None)
        with trio.fail_after(10):
            answer = await client.head()
        assert answer.status == 200
        assert answer.all("content-type") == [b"text/event-stream"]
        assert answer.all("x-accel-buffering") == [b"no"]
        assert answer.all("cache-control") == [b"no-cache"]
        await pings(client, answer, 3)
        assert heads == []
        held.go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.complete
        assert heads == [("on_response", 200, "7"), ("on_start", 200, "7")]
        assert [event.data for event in dispatched(answer.body)] == ["seen 1", "seen 2"]
        assert set(comments(answer.body)) == {": ping"}
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["status"] == 200


async def test_without_interceptors_an_early_stream_passes(serve: Serve) -> None:
    """But for the BOM, which would not be the first any more; and heartbeats continue in the stream."""
    feed = Feed()
    held = Held(stream)
    async with serve(held.script, route=EARLY) as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 1)
        held.go.set()
        await client.rest(answer)
        assert answer.complete
        assert answer.body.replace(b": ping\n", b"") == b"data: 1\n\ndata: 2\n\n"
    async with serve(feed.script, route=EARLY) as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 3)
        feed.send(b"data: 1\n\n")
        await client.read_until(answer, b"1\n\n")
        await pings(client, answer, 2)


async def test_an_upstream_that_answers_in_time_has_its_own_head(serve: Serve) -> None:
    """Nothing is early about it: its head arrives unchanged."""
    async with serve(Feed().script, route="heartbeat: {interval: 5, early: true}") as rig:
        _, answer = await rig.start()
        assert answer.all("cache-control") == []
    held = Held(stream)
    held.go.set()
    async with serve(held.script, route="heartbeat: {interval: 5, early: true}") as rig:
        client = await ask(rig)
        answer = await client.answer()
        assert answer.all("x-request-id") == [b"7"]
        assert answer.body.startswith(b"\xef\xbb\xbf")


async def refuse(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n"
    )


async def json_answer(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )


async def encoded(peer: Peer) -> None:
    await peer.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nxyz"
    )


async def hang_up(peer: Peer) -> None:
    """No answer at all."""


@pytest.mark.parametrize(
    ("answers", "kind", "says"),
    [
        (refuse, "upstream_not_a_stream", "429"),
        (json_answer, "upstream_not_a_stream", "200"),
        (encoded, "upstream_not_a_stream", "200"),
        (hang_up, "upstream_connection_lost", "broke"),
    ],
)
@pytest.mark.parametrize("dialect", ["generic", "abort"])
async def test_a_failure_after_an_early_heartbeat_is_an_event(
    answers: Callable[[Peer], object], kind: str, says: str, dialect: str, serve: Serve
) -> None:
    """The head with its status was already sent."""
    held = Held(answers)
    async with serve(held.script, route=f"{EARLY}, dialect: {dialect}") as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 1)
        held.go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert not answer.complete
        assert await rig.outcomes() == ["upstream_error"]
        if dialect == "abort":
            assert dispatched(answer.body) == []
            return
        (event,) = dispatched(answer.body)
        error = json.loads(event.data)["error"]
        assert (event.type, error["type"]) == ("error", kind)
        assert says in error["message"]


async def test_a_late_head_after_early_heartbeats_is_an_event_too(serve: Serve) -> None:
    """`first_byte` counts as ever."""
    held = Held()
    async with serve(held.script, route=EARLY + ", timeouts: {first_byte: 0.3}") as rig:
        client = await ask(rig)
        with trio.fail_after(10):
            answer = await client.answer()
        assert (answer.status, answer.complete) == (200, False)
        assert [json.loads(event.data)["error"]["type"] for event in dispatched(answer.body)] == [
            "upstream_read_timeout"
        ]
        assert await rig.outcomes() == ["upstream_timeout"]


async def test_an_early_heartbeat_notices_a_client_that_vanished(serve: Serve) -> None:
    """Before the upstream has sent anything, although Hypercorn does not read."""
    held = Held()
    async with serve(held.script, route=EARLY) as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 1)
        await client.stream.send_all(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
        await trio.sleep(0.05)
        client.reset()
        with trio.fail_after(10):
            await held.closed.wait()
        assert await rig.outcomes() == ["client_disconnected"]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", [("Accept", "*/*")]),
        ("GET", []),
        ("POST", [("Accept", "application/json, text/event-stream")]),
        ("HEAD", EVENT_SOURCE),
    ],
    ids=["anything", "nothing said", "MCP", "HEAD"],
)
async def test_early_heartbeats_are_for_those_who_take_nothing_else(
    method: str, headers: list[tuple[str, str]], serve: Serve
) -> None:
    """Everybody else gets the upstream's own head, however late."""
    held = Held(refuse)
    async with serve(held.script, route=EARLY) as rig:
        client = await ask(rig, method, headers)
        await trio.sleep(0.3)
        held.go.set()
        with trio.fail_after(10):
            answer = await client.head()
        assert answer.status == 429


async def test_an_upload_is_not_answered_early(serve: Serve) -> None:
    """While the client sends, it does not read: the head goes out when the request is whole."""
    held = Held(stream)
    async with serve(held.script, route=EARLY) as rig:
        client = await rig.client()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nContent-Length: 20000\r\n\r\n"
        await client.stream.send_all(head + bytes(10_000))
        with trio.move_on_after(0.3) as waiting:
            await client.stream.receive_some(1)
        assert waiting.cancelled_caught
        await client.stream.send_all(bytes(10_000))
        with trio.fail_after(10):
            assert (await client.stream.receive_some(12)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", ["events", "json"])
async def test_an_interceptor_may_still_answer_with_events(kind: str, serve: Serve) -> None:
    """Instead of a head that came after an early heartbeat; anything but events is too late."""

    class Replace(Interceptor):
        async def on_response(self, head: ResponseHead) -> Response:
            return (
                Response(events=[Event(data="mine")])
                if kind == "events"
                else Response(status=403, json={})
            )

    held = Held(refuse)
    async with serve(held.script, Replace, route=EARLY) as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 1)
        held.go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert await rig.outcomes() == ["intercepted"]
        (event,) = dispatched(answer.body)
        if kind == "events":
            assert answer.complete
            assert event.data == "mine"
        else:
            assert not answer.complete
            assert json.loads(event.data)["error"]["type"] == "answered_too_late"
