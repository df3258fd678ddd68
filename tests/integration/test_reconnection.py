"""Streams that continue although the upstream's connections end: what the client gets, and what the
upstream is asked.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.client import Answer
from support.event_source import comments, dispatched
from support.interceptors import Feed, Serve, on_event, on_event_async
from support.upstream import Peer, Request

from interceptors import (
    End,
    Event,
    Interceptor,
    Outcome,
    Response,
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
    """An upstream whose first connection for each target breaks after this many bytes."""

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
            if how == b"clean":
                await peer.end()
            elif how == b"garbage":
                await peer.send(b"no chunk\r\n")
                return
            else:
                return


CHAINS: dict[str, Callable[[], list[type[Interceptor]]]] = {
    "no chain": list,
    "chain": lambda: [on_event(lambda event: event)],
    "editing": lambda: [on_event(lambda event: event.replace(data=event.data))],
    "async": lambda: [on_event_async(_same)],
}


async def _same(event: Event) -> Event:
    return event


@pytest.mark.parametrize("chain", CHAINS)
async def test_a_break_at_every_byte_loses_nothing_and_doubles_nothing(
    chain: str, serve: Serve
) -> None:
    """Wherever the first connection ends, cut, clean or in garbage."""
    first, last = len(EVENTS[0]), len(STREAM)
    upstream = Breaking()
    async with serve(upstream.script, *CHAINS[chain](), route=FAST) as rig:
        for cut in range(last + 1):
            how = ("cut", "clean", "garbage")[cut % 3]
            answer = await rig.fetch(f"/{cut}/{how}")
            resumed = first <= cut < last
            if cut < first and how != "clean":
                assert not answer.complete
                assert data_of(answer)[:-1] == []
                continue
            if cut < first:
                assert (answer.complete, data_of(answer)) == (True, [])
                continue
            assert answer.complete is (resumed or how == "clean")
            assert data_of(answer)[: len(WHOLE)] == WHOLE
            assert len(data_of(answer)) == len(WHOLE) + (not answer.complete)  # the error
            assert comments(answer.body) == ([": reconnecting", ": reconnected"] if resumed else [])
            requests = [
                request
                for request in rig.upstream.requests
                if request.target == f"/{cut}/{how}".encode()
            ]
            assert len(requests) == 1 + resumed
            if resumed:
                assert requests[1].all("last-event-id") == [b"%d" % STREAM[:cut].count(b"\n\n")]
                assert requests[1].all("accept-encoding") == [b"identity"]


@pytest.mark.parametrize("begins", ["anew", "one back"])
async def test_what_the_client_has_had_is_not_sent_again(begins: str, serve: Serve) -> None:
    """By an upstream that does not care what it is asked for."""
    upstream = Breaking({"anew": lambda had: 0, "one back": lambda had: had - 1}[begins])
    async with serve(upstream.script, route=FAST) as rig:
        for cut in range(len(EVENTS[0]), len(STREAM) - 1):
            answer = await rig.fetch(f"/{cut}/cut")
            assert (answer.complete, data_of(answer)) == (True, WHOLE)


async def test_it_may_break_again_and_again(serve: Serve) -> None:
    """A connection for each event, far more than `max_attempts`."""

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        await peer.start_stream()
        await peer.chunk(b"id: %d\ndata: %d\n\n" % (had + 1, had + 1))
        if had + 1 == 40:
            await peer.chunk(DONE)
            await peer.end()

    async with serve(script, route=FAST) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert data_of(answer) == [*(str(number) for number in range(1, 41)), "[DONE]"]
        assert await rig.outcomes() == ["completed"]


async def test_interceptors_see_one_stream(serve: Serve) -> None:
    """One head, one start, each event once and one end."""
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

    async with serve(Breaking(lambda had: 0).script, Watch, route=FAST) as rig:
        answer = await rig.fetch("/60/cut", headers=[("Last-Event-ID", "0"), ("X-Own", "1")])
        assert (answer.complete, data_of(answer)) == (True, WHOLE)
        assert await rig.outcomes() == ["completed"]
        assert seen == ["request", 200, "start", *WHOLE, "completed"]
        first, second = rig.upstream.requests
        assert first.all("last-event-id") == [b"0"]
        assert second.all("last-event-id") == [b"2"]
        assert [value for request in (first, second) for value in request.all("x-team")] == [
            b"blue",
            b"blue",
        ]
        assert second.all("x-own") == [b"1"]
        (line,) = rig.lines("exchange")
        assert line["events"] == len(WHOLE)


def then(*answers: bytes | None) -> Callable[[Peer], Awaitable[None]]:
    """Two events and a break."""
    left = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS[0] + EVENTS[1],
        *answers,
    ]

    async def script(peer: Peer) -> None:
        await peer.request()
        answer = left.pop(0)
        if answer is None:
            return
        await peer.send(answer)

    return script


def answered(status: bytes, *headers: bytes) -> bytes:
    return b"HTTP/1.1 " + b"\r\n".join([status, *headers, b"Content-Length: 0", b"", b""])


MORE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS[2] + EVENTS[3] + DONE
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
CUT = EMPTY.removesuffix(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "answers",
    [
        (MORE,),
        (None, None, MORE),
        (answered(b"503 Busy"), answered(b"429 Slow Down", b"Retry-After: 9"), MORE),
        (CUT, EMPTY, MORE),
    ],
    ids=["at once", "hangs up", "busy", "nothing new"],
)
async def test_it_tries_again(answers: tuple[bytes | None, ...], serve: Serve) -> None:
    """Up to `max_attempts`; each is in the log."""
    async with serve(then(*answers), route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE)
        assert await rig.outcomes() == ["completed"]
        assert len(rig.lines("reconnect")) == len(answers)


async def test_204_ends_the_stream_whole(serve: Serve) -> None:
    """So a server tells that there is nothing more (WHATWG HTML, 9.2.1)."""
    async with serve(then(b"HTTP/1.1 204 No Content\r\n\r\n"), route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE[:2])
        assert comments(answer.body) == [": reconnecting"]
        assert await rig.outcomes() == ["completed"]


async def test_what_is_emitted_without_a_connection_leaves_also_when_there_is_no_other(
    serve: Serve,
) -> None:
    """The interceptor emits while the proxy reconnects, and upstream then has no further event: the
    client gets what was emitted.
    """
    asked, emitted = trio.Event(), trio.Event()
    left = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENTS[0] + EVENTS[1]]

    async def script(peer: Peer) -> None:
        await peer.request()
        if left:
            await peer.send(left.pop())
            return
        asked.set()
        await emitted.wait()
        await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    class Speak(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.start_soon(self.speak, context)
            return StreamInterceptor()

        async def speak(self, context: StreamContext) -> None:
            await asked.wait()
            await context.emit(Event("mine"))
            emitted.set()

    async with serve(script, Speak, route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, [*WHOLE[:2], "mine"])
        assert await rig.outcomes() == ["completed"]


async def test_a_server_that_ends_clean_again_and_again_has_ended(serve: Serve) -> None:
    """All attempts get no further event: the stream is complete."""
    async with serve(then(EMPTY, EMPTY, EMPTY), route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE[:2])
        assert len(rig.upstream.requests) == 4


@pytest.mark.parametrize(
    ("answers", "kind", "attempts"),
    [
        ((None, None, None), "upstream_connection_lost", 3),
        ((CUT, CUT, CUT), "upstream_truncated", 3),
        ((answered(b"503 Busy"),) * 3, "upstream_not_resumed", 3),
        ((answered(b"404 Gone"),), "upstream_not_resumed", 1),
        ((answered(b"302 Found", b"Location: /"),), "upstream_not_resumed", 1),
        ((answered(b"200 OK", b"Content-Type: application/json"),), "upstream_not_resumed", 1),
        (
            (answered(b"200 OK", b"Content-Type: text/event-stream", b"Content-Encoding: gzip"),),
            "upstream_not_resumed",
            1,
        ),
    ],
)
async def test_what_cannot_continue_is_an_error(
    answers: tuple[bytes | None, ...], kind: str, attempts: int, serve: Serve
) -> None:
    """An error event, and the stream breaks off; it is not resumed again."""
    async with serve(then(*answers), route=FAST) as rig:
        answer = await rig.fetch()
        assert not answer.complete
        *events, error = dispatched(answer.body)
        assert [event.data for event in events] == WHOLE[:2]
        assert (error.type, json.loads(error.data)["error"]["type"]) == ("error", kind)
        assert await rig.outcomes() == ["upstream_error"]
        assert len(rig.upstream.requests) == 1 + attempts


async def test_an_upstream_that_falls_silent_is_asked_again(serve: Serve) -> None:
    """The idle deadline is a break as any other."""

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        await peer.start_stream()
        if had:
            await peer.chunk(b"".join(EVENTS[had:]) + DONE)
            await peer.end()
        else:
            await peer.chunk(EVENTS[0] + b"id: 2\nda")
            await peer.wait_closed()

    async with serve(script, route=FAST + ", timeouts: {idle: 0.2}") as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE)


async def test_heartbeats_continue_while_it_waits(serve: Serve) -> None:
    """For the backoff, which the server's `retry` sets, and for a head that is slow to come."""

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        if had:
            await trio.sleep(0.4)
        await peer.start_stream()
        if had:
            await peer.chunk(b"".join(EVENTS[had:]) + DONE)
            await peer.end()
        else:
            await peer.chunk(b"retry: 400\n" + EVENTS[0])

    route = "reconnect: {enabled: true, initial_backoff: 0.001, max_backoff: 1}, heartbeat: {interval: 0.1}"
    async with serve(script, route=route) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE)
        said = comments(answer.body)
        assert said[0] == ": reconnecting"
        assert said[-1] == ": reconnected"
        assert said[1:-1] == [": ping"] * (len(said) - 2)
        assert len(said) >= 2 + 2


async def test_a_client_that_leaves_while_it_waits_ends_it(serve: Serve) -> None:
    """At once, however long the wait is; and the upstream hears no more."""
    route = "reconnect: {enabled: true, initial_backoff: 1000, max_backoff: 2000}"
    async with serve(then(), route=route) as rig:
        client, answer = await rig.start()
        await client.read_until(answer, b": reconnecting\n")
        await client.aclose()
        assert await rig.outcomes() == ["client_disconnected"]
        assert len(rig.upstream.requests) == 1


async def test_an_interceptors_end_is_the_end(serve: Serve) -> None:
    """A later break of the upstream has no effect."""
    stop = on_event(lambda event: End(event) if event.id == "2" else event)
    async with serve(then(), stop, route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, WHOLE[:2])
        assert len(rig.upstream.requests) == 1


async def test_events_of_interceptors_go_out_between(serve: Serve) -> None:
    """What a task emits while there is no connection leaves when the stream continues."""
    broken = trio.Event()

    class Speak(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.start_soon(self.speak, context)
            return StreamInterceptor()

        async def speak(self, context: StreamContext) -> None:
            await broken.wait()
            await context.emit(Event(data="mine"))

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        if had:
            broken.set()
            await trio.sleep(0.05)
        await peer.start_stream()
        await peer.chunk(b"".join(EVENTS[had:]) + DONE if had else EVENTS[0] + b"id: 2\nd")
        if had:
            await peer.end()

    async with serve(script, Speak, route=FAST) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert sorted(data_of(answer)) == sorted([*WHOLE, "mine"])


@pytest.mark.parametrize(
    ("answers", "whole"),
    [
        ((MORE,), True),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), True),
        ((EMPTY, EMPTY, EMPTY), True),
        ((CUT, CUT, CUT), False),
    ],
    ids=["goes on", "204", "nothing more", "cannot"],
)
async def test_on_complete_runs_once_at_the_end(
    answers: tuple[bytes], whole: bool, serve: Serve
) -> None:
    """And not where a connection ends clean, as each of these does first."""

    class Last(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return LastStream()

    class LastStream(StreamInterceptor):
        def on_complete(self) -> Event:
            return Event(event="last", data="")

    async with serve(then(*answers), Last, route=FAST) as rig:
        answer = await rig.fetch()
        assert answer.complete is whole
        kinds = [event.type for event in dispatched(answer.body)]
        assert kinds.count("last") == whole
        assert kinds[-1] == ("last" if whole else "error")


@pytest.mark.parametrize("how", ["clean", "cut"])
async def test_with_mcp_a_clean_end_is_passed_on(how: str, serve: Serve) -> None:
    """A server may close after an event with an id, and it is the client that comes back."""

    async def script(peer: Peer) -> None:
        had = asked_for(await peer.request())
        await peer.start_stream()
        await peer.chunk(b"".join(EVENTS[had:]) if had else EVENTS[0])
        if had or how == "clean":
            await peer.end()

    async with serve(script, route=FAST + ", dialect: mcp") as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert data_of(answer) == (WHOLE[:1] if how == "clean" else WHOLE[:-1])
        assert len(rig.upstream.requests) == (1 if how == "clean" else 2)


# Where nothing is resumed


@pytest.mark.parametrize(
    ("route", "method"),
    [
        ("reconnect: {enabled: false}", "GET"),
        ("", "GET"),
        (FAST, "POST"),
    ],
    ids=["off", "by default", "POST"],
)
async def test_by_default_a_break_is_a_break(route: str, method: str, serve: Serve) -> None:
    """And half an event that has come leaves, as it always did."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(EVENTS[0] + b"id: 2")

    async with serve(script, route=route) as rig:
        answer = await rig.fetch(method=method, body=b"{}" if method == "POST" else None)
        assert not answer.complete
        assert answer.body == EVENTS[0] + b"id: 2"
        assert len(rig.upstream.requests) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Type: application/json",
        b"Content-Type: text/event-stream\r\nContent-Encoding: gzip",
        b"Content-Type: text/event-stream\r\nContent-Length: 1000",
    ],
)
async def test_other_responses_pass_as_ever(head: bytes, serve: Serve) -> None:
    """What is not a plain event stream of unknown length is not resumed."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + EVENTS[0])

    async with serve(script, route=FAST) as rig:
        answer = await rig.fetch()
        assert answer.body == EVENTS[0]
        assert len(rig.upstream.requests) == 1


async def test_an_event_too_large_ends_it(serve: Serve) -> None:
    """Such a route frames events even without interceptors, and so `max_event_bytes` holds."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.chunk(EVENTS[0] + b"data: " + b"x" * 1000)
        await peer.wait_closed()

    async with serve(script, route=FAST + ", limits: {max_event_bytes: 500}") as rig:
        answer = await rig.fetch()
        assert not answer.complete
        assert [
            json.loads(event.data)["error"]["type"] for event in dispatched(answer.body)[1:]
        ] == ["event_too_large"]
        assert data_of(answer)[0] == "event 1"


async def test_an_interceptors_own_answer_is_not_resumed(serve: Serve) -> None:
    class Own(Interceptor):
        async def on_request(self, request: ClientRequest) -> Response:
            return Response(events=[Event(data="one", id="1")])

    async with serve(Feed().script, Own, route=FAST) as rig:
        answer = await rig.fetch()
        assert (answer.complete, data_of(answer)) == (True, ["one"])
        assert rig.upstream.requests == []
