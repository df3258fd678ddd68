"""Streams that continue although the upstream's connections end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.client import Answer
from support.event_source import comments, dispatched
from support.interceptors import Serve, on_event, on_event_async
from support.upstream import Peer, Request, open_stream_of

from interceptors import (
    End,
    Event,
    Interceptor,
    Outcome,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors import Request as ClientRequest

FAST = "reconnect: {enabled: true, max_attempts: 3, initial_backoff: 0.001, max_backoff: 0.05}"
DONE = b"data: [DONE]\n\n"
COUNT = 4
EVENTS = [b"id: %d\ndata: event %d\n\n" % (number, number) for number in range(1, COUNT + 1)]
STREAM = b"".join(EVENTS) + DONE


def asked_for(request: Request) -> int:
    """The number of the event after which to continue."""
    ids = request.all("last-event-id")
    assert len(ids) <= 1
    return int(ids[0]) if ids else 0


def data_of(answer: Answer) -> list[str]:
    return [event.data for event in dispatched(answer.body)]


WHOLE = [*(f"event {number}" for number in range(1, COUNT + 1)), "[DONE]"]


class Breaking:
    """An upstream whose first connection for each target `/CUT/HOW` breaks after that many bytes."""

    def __init__(self, begins: Callable[[int], int] = lambda had: had) -> None:
        self._begins = begins
        self._seen: set[bytes] = set()

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            _, cut, how = request.target.split(b"/")
            await peer.start_stream()
            if request.target in self._seen:
                await peer.chunk(b"".join(EVENTS[self._begins(asked_for(request)) :]) + DONE)
                await peer.end()
                continue
            self._seen.add(request.target)
            if int(cut):
                await peer.chunk(STREAM[: int(cut)])
            if how == b"garbage":
                await peer.send(b"no chunk\r\n")
            if how != b"clean":
                return
            await peer.end()


async def break_at_every_byte(serve: Serve, *chain: type[Interceptor]) -> None:
    """Wherever the first connection ends, cut, clean or in garbage, nothing is lost or doubled."""
    first, last = len(EVENTS[0]), len(STREAM)
    async with serve(Breaking().script, *chain, route=FAST) as rig:
        for cut in range(last + 1):
            how = ("cut", "clean", "garbage")[cut % 3]
            before = len(rig.upstream.requests)
            answer = await rig.fetch(f"/{cut}/{how}")
            resumed = first <= cut < last
            assert answer.complete is (resumed or how == "clean")
            requests = rig.upstream.requests[before:]
            assert len(requests) == 1 + resumed
            expected = [] if cut < first else WHOLE
            assert data_of(answer)[: len(expected)] == expected
            assert len(data_of(answer)) == len(expected) + (not answer.complete)  # the error
            assert comments(answer.body) == ([": reconnecting", ": reconnected"] if resumed else [])
            if resumed:
                assert requests[1].all("last-event-id") == [b"%d" % STREAM[:cut].count(b"\n\n")]
                assert requests[1].all("accept-encoding") == [b"identity"]


async def test_a_break_at_every_byte_in_each_way_of_serving(serve: Serve) -> None:
    await break_at_every_byte(serve)


async def _same(event: Event) -> Event:
    return event


@pytest.mark.parametrize(
    "hook",
    [
        on_event(lambda event: event),
        on_event(lambda event: event.replace(data=event.data)),
        on_event_async(_same),
    ],
    ids=["reading", "editing", "async"],
)
async def test_every_break_after_an_interceptor(hook: type[Interceptor], serve_once: Serve) -> None:
    await break_at_every_byte(serve_once, hook)


async def test_it_may_break_again_and_again(serve: Serve) -> None:
    """A connection for each event, far more than `max_attempts`."""

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        await peer.start_stream()
        await peer.chunk(b"id: %d\ndata: %d\n\n" % (had + 1, had + 1))
        if had + 1 == 20:
            await peer.chunk(DONE)
            await peer.end()

    async with serve(script, route=FAST) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert data_of(answer) == [*(str(number) for number in range(1, 21)), "[DONE]"]
        assert await rig.outcomes() == ["completed"]


async def test_interceptors_see_one_stream(serve_once: Serve) -> None:
    """One head, one start, each event once and one end, though the upstream begins anew."""
    seen: list[object] = []

    class Watch(Interceptor):
        async def on_request(self, request: ClientRequest) -> None:
            seen.append("request")
            request.headers["x-team"] = "blue"

        async def on_response(self, head: ResponseHead) -> None:
            seen.append(head.status)

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return WatchStream()

    class WatchStream(StreamInterceptor):
        def on_start(self, head: ResponseHead) -> None:
            seen.append("start")

        def on_event(self, event: Event) -> Event:
            seen.append(event.data)
            return event

        def on_end(self, outcome: Outcome) -> None:
            seen.append(outcome.value)

    async with serve_once(Breaking(lambda had: 0).script, Watch, route=FAST) as rig:
        answer = await rig.fetch("/60/cut", headers=[("Last-Event-ID", "0"), ("X-Own", "1")])
        assert (answer.complete, data_of(answer)) == (True, WHOLE)
        assert await rig.outcomes() == ["completed"]
        assert seen == ["request", 200, "start", *WHOLE, "completed"]
        first, second = rig.upstream.requests
        assert (first.all("last-event-id"), second.all("last-event-id")) == ([b"0"], [b"2"])
        for request in (first, second):
            assert (request.all("x-team"), request.all("x-own")) == ([b"blue"], [b"1"])
        (line,) = rig.lines("exchange")
        assert line["events"] == len(WHOLE)


# What the next connections answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def then(*answers: bytes | None) -> Callable[[Peer], Awaitable[None]]:
    """Two events and a break; then these answers, one a connection. None: no answer."""
    left = [HEAD + EVENTS[0] + EVENTS[1], *answers]

    async def script(peer: Peer) -> None:
        await peer.request()
        answer = left.pop(0)
        if answer is not None:
            await peer.send(answer)

    return script


def answered(status: bytes, *headers: bytes) -> bytes:
    return b"HTTP/1.1 " + b"\r\n".join([status, *headers, b"Content-Length: 0", b"", b""])


class Last(Interceptor):
    """Adds an event to a stream that is complete."""

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return LastStream()


class LastStream(StreamInterceptor):
    def on_complete(self) -> Event:
        return Event(event="last", data="")


MORE = HEAD + EVENTS[2] + EVENTS[3] + DONE
CUT = HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
EMPTY = CUT + b"0\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"  # there is nothing more (WHATWG HTML, 9.2.1)
BUSY, SLOW_DOWN = answered(b"503 Busy"), answered(b"429 Slow Down", b"Retry-After: 9")
GZIP = answered(b"200 OK", b"Content-Type: text/event-stream", b"Content-Encoding: gzip")
LOST, NOT_RESUMED = "upstream_connection_lost", "upstream_not_resumed"


@pytest.mark.parametrize(
    ("answers", "events", "reconnected", "error"),
    [
        ([MORE], 5, 1, None),
        ([None, None, MORE], 5, 1, None),
        ([BUSY, SLOW_DOWN, MORE], 5, 1, None),
        ([CUT, EMPTY, MORE], 5, 3, None),
        ([NO_CONTENT], 2, 0, None),
        ([EMPTY, EMPTY, EMPTY], 2, 3, None),  # a server that ends clean again and again has ended
        ([None, None, None], 2, 0, LOST),
        ([CUT, CUT, CUT], 2, 3, "upstream_truncated"),
        ([BUSY, BUSY, BUSY], 2, 0, NOT_RESUMED),
        ([answered(b"404 Gone")], 2, 0, NOT_RESUMED),
        ([answered(b"302 Found", b"Location: /")], 2, 0, NOT_RESUMED),
        ([answered(b"200 OK", b"Content-Type: application/json")], 2, 0, NOT_RESUMED),
        ([GZIP], 2, 0, NOT_RESUMED),
    ],
)
async def test_the_next_connections_decide_how_the_stream_ends(
    answers: list[bytes | None], events: int, reconnected: int, error: str | None, serve_once: Serve
) -> None:
    """`on_complete` runs once, at the end of a stream that is whole."""
    async with serve_once(then(*answers), Last, route=FAST) as rig:
        answer = await rig.fetch()
        assert answer.complete is (error is None)
        *came, end = dispatched(answer.body)
        if error is None:
            assert end.type == "last"
        else:
            assert (end.type, json.loads(end.data)["error"]["type"]) == ("error", error)
        assert [event.data for event in came] == WHOLE[:events]
        assert comments(answer.body).count(": reconnected") == reconnected
        assert await rig.outcomes() == ["completed" if error is None else "upstream_error"]
        assert len(rig.lines("reconnect")) == len(rig.upstream.requests) - 1 == len(answers)


@pytest.mark.parametrize("answer", [MORE, NO_CONTENT])
async def test_emitted_while_reconnecting_is_sent(answer: bytes, serve_once: Serve) -> None:
    """Whether the stream continues or has ended."""
    asked, emitted = trio.Event(), trio.Event()
    left = [HEAD + EVENTS[0] + EVENTS[1], answer]

    async def script(peer: Peer) -> None:
        await peer.request()
        if len(left) == 1:
            asked.set()
            await emitted.wait()
        await peer.send(left.pop(0))

    class Speak(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.start_soon(self.speak, context)
            return StreamInterceptor()

        async def speak(self, context: StreamContext) -> None:
            await asked.wait()
            emitted.set()
            await context.emit(Event("mine"))

    async with serve_once(script, Speak, route=FAST) as rig:
        response = await rig.fetch()
        assert response.complete
        expected = WHOLE if answer == MORE else WHOLE[:2]
        assert sorted(data_of(response)) == sorted([*expected, "mine"])
        assert await rig.outcomes() == ["completed"]


async def test_heartbeats_continue_while_it_waits(serve_once: Serve) -> None:
    """For the idle deadline, the backoff, which the server's `retry` sets, and a slow head."""

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        if had:
            await trio.sleep(0.3)
        await peer.start_stream()
        if had:
            await peer.chunk(b"".join(EVENTS[had:]) + DONE)
            await peer.end()
        else:
            await peer.chunk(b"retry: 300\n" + EVENTS[0] + b"id: 2\nda")
            await peer.wait_closed()

    reconnect = "reconnect: {enabled: true, initial_backoff: 0.001, max_backoff: 1}"
    route = f"{reconnect}, heartbeat: {{interval: 0.1}}, timeouts: {{idle: 0.2}}"
    async with serve_once(script, route=route) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE)
        said = comments(answer.body)
        begin, end = said.index(": reconnecting"), said.index(": reconnected")
        assert said[begin + 1 : end] == [": ping"] * (end - begin - 1)
        assert end - begin > 4


async def test_a_client_that_leaves_while_it_waits_ends_it(serve_once: Serve) -> None:
    """At once, however long the wait is; the upstream gets no further request."""
    route = "reconnect: {enabled: true, initial_backoff: 1000, max_backoff: 2000}"
    async with serve_once(then(), route=route) as rig:
        client, answer = await rig.start()
        await client.read_until(answer, b": reconnecting\n")
        await client.aclose()
        assert await rig.outcomes() == ["client_disconnected"]
        assert len(rig.upstream.requests) == 1


async def test_an_interceptors_end_is_the_end(serve_once: Serve) -> None:
    """A later break of the upstream has no effect."""
    stop = on_event(lambda event: End(event) if event.id == "2" else event)
    async with serve_once(then(), stop, route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE[:2])
        assert len(rig.upstream.requests) == 1


# Where nothing is resumed

PLAIN = b"Content-Type: text/event-stream"


@pytest.mark.parametrize(
    ("route", "method", "head"),
    [
        ("reconnect: {enabled: false}", "GET", PLAIN),
        ("", "GET", PLAIN),
        (FAST, "POST", PLAIN),
        (FAST, "GET", b"Content-Type: application/json"),
        (FAST, "GET", PLAIN + b"\r\nContent-Encoding: gzip"),
        (FAST, "GET", PLAIN + b"\r\nContent-Length: 1000"),
    ],
)
async def test_other_streams_are_not_resumed(
    route: str, method: str, head: bytes, serve_once: Serve
) -> None:
    """Half an event that has come is sent."""
    if head == PLAIN:
        head += b"\r\nTransfer-Encoding: chunked"

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        body = EVENTS[0] + b"id: 2"
        await (peer.chunk(body) if b"chunked" in head else peer.send(body))

    async with serve_once(script, route=route) as rig:
        answer = await rig.fetch(method=method, body=b"{}" if method == "POST" else None)
        assert answer.body == EVENTS[0] + b"id: 2"
        assert answer.complete is (b"chunked" not in head and b"Length" not in head)
        assert len(rig.upstream.requests) == 1


async def test_an_event_too_large_ends_it(serve_once: Serve) -> None:
    """Such a route frames events even without interceptors, and so `max_event_bytes` holds."""

    script = open_stream_of(EVENTS[0] + b"data: " + b"x" * 1000)

    async with serve_once(script, route=FAST + ", limits: {max_event_bytes: 500}") as rig:
        answer = await rig.fetch()
        assert not answer.complete
        event, error = dispatched(answer.body)
        assert (event.data, json.loads(error.data)["error"]["type"]) == (
            "event 1",
            "event_too_large",
        )
