"""Heartbeats as a client sees them. When one is sent: `tests/unit/proxy/relay/test_relay_heartbeats.py`.

Intervals are short and limits generous: a test waits for heartbeats to come, and for a time only
where none may.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
from support.client import Answer, Client
from support.event_source import comments, dispatched
from support.interceptors import Feed, Rig, Serve, interceptor, limited, on_event
from support.upstream import Peer, open_stream_of

from interceptors import Event, Interceptor, Request, Response, ResponseHead

FAST = "heartbeat: {interval: 0.05}"
EARLY = "heartbeat: {interval: 0.05, early: true}"
EVENT_SOURCE = [("Accept", "text/event-stream")]
PIPELINED = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def serve(serve: Serve) -> Serve:
    return limited(serve)


@pytest.fixture
def serve_once(serve_once: Serve) -> Serve:
    return limited(serve_once)


async def pings(client: Client, answer: Answer, count: int) -> None:
    """Read until so many more have come."""
    for _ in range(count):
        answer.body += await client.read_some()
        await client.read_until(answer, b": ping\n")


async def ask(
    rig: Rig, method: str = "GET", headers: Any = EVENT_SOURCE, body: bytes | None = None
) -> Client:
    client = await rig.client()
    await client.send(method, "/", headers, body)
    return client


def without_pings(answer: Answer) -> bytes:
    return answer.body.replace(b": ping\n", b"")


@pytest.mark.parametrize("chained", [False, True])
async def test_a_quiet_stream_is_kept_alive(chained: bool, serve: Serve) -> None:
    """Before its first event and between two. It notices a client that vanished after a byte too
    many.
    """
    feed, chain = Feed(), [on_event(lambda event: event)] if chained else []
    async with serve(feed.script, *chain, route=FAST) as rig:
        client, answer = await rig.start()
        await pings(client, answer, 2)
        feed.send(b"id: 1\ndata: one\n\n")
        await client.read_until(answer, b"one\n\n")
        await pings(client, answer, 2)
        feed.send(b"data: two\n\n")
        feed.end()
        assert (await client.rest(answer)).complete
        assert without_pings(answer) == b"id: 1\ndata: one\n\ndata: two\n\n"
        assert [event.last_event_id for event in dispatched(answer.body)] == ["1", "1"]
        assert await rig.outcomes() == ["completed"]
        (line,) = rig.lines("exchange")
        assert (line["bytes"], line["events"]) == (len(answer.body), 2 if chained else None)
    if rig.proxy.worker.hub is None:
        return  # Hypercorn serves the client: it keeps such a connection until the server ends
    feed = Feed()
    async with serve(feed.script, *chain, route=FAST) as rig:
        client, answer = await rig.start()
        await pings(client, answer, 1)
        await client.stream.send_all(PIPELINED)
        await trio.sleep(0.05)
        client.reset()
        await feed.closed.wait()
        assert (await rig.outcomes(2))[-1] == "client_disconnected"


def sends(head: bytes, body: bytes) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body)
        await peer.wait_closed()

    return script


CHUNKED = b"\r\nTransfer-Encoding: chunked"
SSE = b"Content-Type: text/event-stream"
WITHOUT = {
    "JSON": (sends(b"Content-Type: application/json" + CHUNKED, b"7\r\n[1,2,3,\r\n"), FAST, ""),
    "text": (sends(b"Content-Type: text/plain" + CHUNKED, b"2\r\n\n\n\r\n"), FAST, ""),
    "encoded": (sends(SSE + b"\r\nContent-Encoding: gzip" + CHUNKED, b"1\r\nx\r\n"), FAST, ""),
    "of known length": (sends(SSE + b"\r\nContent-Length: 100", b"data: 1\n\n"), FAST, ""),
    "within an event": (sends(SSE + CHUNKED, b"8\r\ndata: 1\n\r\n"), FAST, ""),
    "overridden": (sends(SSE + CHUNKED, b""), "heartbeat: {interval: null}", "  " + FAST),
}


@pytest.mark.parametrize("kind", WITHOUT)
async def test_where_none_may_go(kind: str, serve_once: Serve) -> None:
    """Also on a route that overrides the common setting."""
    script, route, proxy = WITHOUT[kind]
    async with serve_once(script, route=route, proxy=proxy) as rig:
        client, answer = await rig.start()
        with trio.move_on_after(0.4):
            await client.rest(answer)
        assert b"ping" not in answer.body
        assert answer.body or kind == "overridden"


async def test_the_common_setting_counts_for_a_route_without_its_own(serve_once: Serve) -> None:
    async with serve_once(Feed().script, proxy="  " + FAST) as rig:
        await pings(*await rig.start(), 1)


async def test_a_client_that_takes_nothing_is_cut(
    serve_once: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats alone fill its socket in the end, and then the send deadline holds."""
    accept = socket.socket.accept

    def accept_small(self: socket.socket) -> object:
        sock, address = accept(self)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        return sock, address

    monkeypatch.setattr(socket.socket, "accept", accept_small)
    route = "heartbeat: {interval: 0.001}, timeouts: {send: 0.3}"
    async with serve_once(Feed().script, route=route) as rig:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            sock.connect(("127.0.0.1", rig.proxy.port))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await rig.outcomes() == ["send_stalled"]


async def test_many_quiet_streams_all_get_theirs(serve_once: Serve) -> None:
    script = open_stream_of()

    async def one() -> None:
        client, answer = await rig.start()
        await pings(client, answer, 2)
        await client.aclose()

    async with serve_once(script, route="heartbeat: {interval: 0.2}") as rig:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(one)


async def test_an_interceptors_own_stream_beats_too(serve_once: Serve) -> None:
    go = trio.Event()

    async def events() -> AsyncIterator[Event]:
        yield Event(data="one")
        await go.wait()
        yield Event(data="two")

    async def answers(request: Request) -> Response:
        return Response(events=events())

    async with serve_once(Feed().script, interceptor(on_request=answers), route=FAST) as rig:
        client, answer = await rig.start()
        await client.read_until(answer, b"one\n\n")
        await pings(client, answer, 2)
        go.set()
        assert (await client.rest(answer)).complete
        assert [event.data for event in dispatched(answer.body)] == ["one", "two"]


# Before the upstream has answered


class Held:
    """An upstream that sends `answer` when the test lets it; an empty one: it closes."""

    def __init__(self, answer: bytes = b"") -> None:
        self.go = trio.Event()
        self.closed = trio.Event()
        self._answer = answer

    async def script(self, peer: Peer) -> None:
        await peer.request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, peer)
            await self.go.wait()
            if self._answer:
                await peer.send(self._answer)
            nursery.cancel_scope.cancel()

    async def _watch(self, peer: Peer) -> None:
        await peer.wait_closed()
        self.closed.set()


OK = b"HTTP/1.1 200 OK\r\n"
STREAM = (
    OK + SSE + b"\r\nX-Request-Id: 7\r\nX-Accel-Buffering: yes" + CHUNKED + b"\r\n\r\n"
    b"15\r\n\xef\xbb\xbfdata: 1\n\ndata: 2\n\n\r\n0\r\n\r\n"
)
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\n" + SSE + b"\r\nContent-Length: 0\r\n\r\n"
JSON = OK + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
ENCODED = OK + SSE + b"\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nxyz"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_early_heartbeats_precede_the_answer(method: str, serve: Serve) -> None:
    """Upstream's own headers come too late, and interceptors see its head and its events as ever."""
    heads: list[tuple[int, str | None]] = []

    async def on_response(head: ResponseHead) -> None:
        heads.append((head.status, head.headers.get("x-request-id")))

    watch = interceptor(
        on_response=on_response,
        on_start=lambda head: heads.append((head.status, head.headers.get("x-request-id"))),
        on_event=lambda event: event.replace(data="seen " + event.data),
    )
    held = Held(STREAM)
    async with serve(held.script, watch, route=EARLY) as rig:
        client = await ask(rig, method, body=b"{}" if method == "POST" else None)
        answer = await client.head()
        assert answer.status == 200
        names = ("content-type", "x-accel-buffering", "cache-control")
        values = [[b"text/event-stream"], [b"no"], [b"no-cache"]]
        assert [answer.all(name) for name in names] == values
        await pings(client, answer, 3)
        assert heads == []
        held.go.set()
        assert (await client.rest(answer)).complete
        assert heads == [(200, "7")] * 2
        assert [event.data for event in dispatched(answer.body)] == ["seen 1", "seen 2"]
        assert set(comments(answer.body)) == {": ping"}
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["status"] == 200


async def test_without_interceptors_an_early_stream_passes(serve_once: Serve) -> None:
    """But for the BOM, which would not be the first any more; and heartbeats continue in the stream."""
    held, feed = Held(STREAM), Feed()
    async with serve_once(held.script, route=EARLY) as rig:
        client = await ask(rig, headers=[*EVENT_SOURCE, ("Accept-Encoding", "gzip")])
        answer = await client.head()
        await pings(client, answer, 1)
        held.go.set()
        assert (await client.rest(answer)).complete
        assert without_pings(answer) == b"data: 1\n\ndata: 2\n\n"
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
    async with serve_once(feed.script, route=EARLY) as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 3)
        feed.send(b"data: 1\n\n")
        await client.read_until(answer, b"1\n\n")
        await pings(client, answer, 2)


async def test_an_upstream_that_answers_in_time_has_its_own_head(serve_once: Serve) -> None:
    held = Held(STREAM)
    held.go.set()
    async with serve_once(held.script, route="heartbeat: {interval: 5, early: true}") as rig:
        answer = await (await ask(rig)).answer()
        assert (answer.all("x-request-id"), answer.all("cache-control")) == ([b"7"], [])
        assert answer.body.startswith(b"\xef\xbb\xbf")


def response(**given: Any) -> type[Interceptor]:
    async def on_response(head: ResponseHead) -> Response:
        return Response(**given)

    return interceptor(on_response=on_response)


@pytest.mark.parametrize("dialect", ["generic", "abort"])
@pytest.mark.parametrize(
    ("answer", "given", "outcome", "kind", "part"),
    [
        (REFUSAL, (), "upstream_error", "upstream_not_a_stream", "429"),
        (JSON, (), "upstream_error", "upstream_not_a_stream", "200"),
        (ENCODED, (), "upstream_error", "upstream_not_a_stream", "200"),
        (b"", (), "upstream_error", "upstream_connection_lost", "broke"),
        (None, (), "upstream_timeout", "upstream_read_timeout", ""),
        (REFUSAL, (response(status=403, json={}),), "intercepted", "answered_too_late", ""),
    ],
    ids=["status", "JSON", "encoded", "no answer", "late", "an interceptor's"],
)
async def test_a_failure_after_an_early_heartbeat_is_an_event(
    answer: bytes | None,
    given: Any,
    outcome: str,
    kind: str,
    part: str,
    dialect: str,
    serve_once: Serve,
) -> None:
    """The head with its status was already sent."""
    held = Held(answer or b"")
    route = f"{EARLY}, dialect: {dialect}, timeouts: {{first_byte: {20 if answer is not None else 0.3}}}"
    async with serve_once(held.script, *given, route=route) as rig:
        client = await ask(rig)
        seen = await client.head()
        await pings(client, seen, 1)
        if answer is not None:
            held.go.set()
        assert not (await client.rest(seen)).complete
        assert await rig.outcomes() == [outcome]
        events = dispatched(seen.body)
        if dialect == "generic":
            error = json.loads(events[0].data)["error"]
            assert (events.pop(0).type, error["type"]) == ("error", kind)
            assert part in error["message"]
        assert events == []


async def test_an_interceptor_may_still_answer_with_events(serve_once: Serve) -> None:
    held = Held(REFUSAL)
    async with serve_once(held.script, response(events=[Event("mine")]), route=EARLY) as rig:
        client = await ask(rig)
        answer = await client.head()
        await pings(client, answer, 1)
        held.go.set()
        assert (await client.rest(answer)).complete
        assert await rig.outcomes() == ["intercepted"]
        assert [event.data for event in dispatched(answer.body)] == ["mine"]


async def test_an_early_heartbeat_notices_a_client_that_vanished(serve_once: Serve) -> None:
    """Before the upstream has sent anything, although Hypercorn does not read."""
    held = Held()
    async with serve_once(held.script, route=EARLY) as rig:
        client = await ask(rig)
        await pings(client, await client.head(), 1)
        await client.stream.send_all(PIPELINED)
        await trio.sleep(0.05)
        client.reset()
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
    ids=["anything", "no header", "MCP", "HEAD"],
)
async def test_early_heartbeats_are_for_those_who_take_nothing_else(
    method: str, headers: list[tuple[str, str]], serve_once: Serve
) -> None:
    """Other clients get the upstream's own head, however late."""
    held = Held(REFUSAL)
    async with serve_once(held.script, route=EARLY) as rig:
        client = await ask(rig, method, headers)
        await trio.sleep(0.3)
        held.go.set()
        assert (await client.head()).status == 429


async def test_an_upload_is_not_answered_early(serve_once: Serve) -> None:
    """While the client sends, it does not read: the head goes out when the request is whole."""
    async with serve_once(Held(STREAM).script, route=EARLY) as rig:
        client = await rig.client()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nContent-Length: 20000\r\n\r\n"
        await client.stream.send_all(head + bytes(10_000))
        with trio.move_on_after(0.3) as waiting:
            await client.stream.receive_some(1)
        assert waiting.cancelled_caught
        await client.stream.send_all(bytes(10_000))
        assert (await client.stream.receive_some(12)).startswith(b"HTTP/1.1 200")
