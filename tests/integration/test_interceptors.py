"""Interceptors of event streams as a user meets them, on real sockets: what hooks do, how they
fail, what the client sees of it.

Most tests run three times: with the hub, without it, and with TLS, where the portable writer serves
the client.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio
from prometheus_client import Counter, Metric
from prometheus_client.registry import Collector
from support.certificates import Certificates
from support.interceptors import Feed, Log, Rig, Serve, Way, on_event, on_event_async, until
from support.proxy import limit_upstream_buffers
from support.upstream import Peer, stream_of

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    EventResult,
    Interceptor,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.hooks import Owner
from interceptors.stream import MAX_EMITTED
from pools import Pools
from proxy.errors import ConfigError
from proxy.worker.metrics import Metrics


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["hub", "no hub", "tls"])
def serve(
    request: pytest.FixtureRequest,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    certificates: Certificates,
) -> Serve:
    """A proxy in each of three ways."""
    way = Way(
        hub=request.param != "no hub", certificates=certificates if request.param == "tls" else None
    )
    return way.serve(log, monkeypatch)


@pytest.fixture
def serve_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A proxy in the usual way, for what does not depend on it."""
    return Way().serve(log, monkeypatch)


def error_event(kind: str, message: str) -> bytes:
    return (
        b"event: error\ndata: "
        + json.dumps({"error": {"type": kind, "message": message}})
        .replace('": ', '":')
        .replace(', "', ',"')
        .encode()
        + b"\n\n"
    )


def with_task(
    task: Callable[[StreamContext], Awaitable[object]], *, looks: bool = False, name: str = "Task"
) -> Any:
    """An interceptor that starts one task for each stream. `looks`: it sees all events; else bytes
    pass unparsed.
    """

    class Looking(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            return event

    class Task(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.start_soon(task, context)
            return Looking() if looks else StreamInterceptor()

    return type(name, (Task,), {})


# Actions


async def test_events_are_passed_changed_dropped_and_multiplied(serve: Serve) -> None:
    """One hook does all of it in one stream: what it passed leaves as the very bytes, and every
    event is counted once.
    """

    def hook(event: Event) -> EventResult:
        number = int(event.data)
        if number == 2:
            return None
        if number == 3:
            return event.replace(json={"was": 3}, id="three")
        if number == 4:
            return [Event("before"), event, Event("after", event="extra")]
        return event

    sent = (
        b": hello\n\nid:1\r\ndata:  1\r\n\r\ndata: 2\n\nevent: e\ndata: 3\n\ndata:4\n\ndata: 5\n\n"
    )
    expected = (
        b": hello\n\nid:1\r\ndata:  1\r\n\r\n"
        b'event: e\nid: three\ndata: {"was":3}\n\n'
        b"data: before\n\ndata:4\n\nevent: extra\ndata: after\n\n"
        b"data: 5\n\n"
    )
    async with serve(stream_of(sent), on_event(hook)) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert sorted(answer.body.splitlines()) == sorted(expected.splitlines())
        assert answer.body.replace(b"id: three\nevent: e\n", b"event: e\nid: three\n") == expected
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] == 6
        counted = {
            action: rig.metric("weirpool_events_total", route="/", action=action)
            for action in ("passed", "changed")
        }
        assert counted == {"passed": 4, "changed": 1}
        assert rig.metric("weirpool_events_total", route="/", action="dropped") == 1
        assert rig.metric("weirpool_events_total", route="/", action="added") == 2


async def test_events_pass_the_interceptors_in_the_order_of_the_list(serve: Serve) -> None:
    """The second sees what the first returned, each event of it, and not what the first dropped."""
    seen: list[str] = []

    def first(event: Event) -> EventResult:
        return None if event.data == "b" else [event.replace(data=event.data + "1"), Event("more")]

    def second(event: Event) -> EventResult:
        seen.append(event.data)
        return event.replace(data=event.data + "2")

    given = on_event(first, "First"), on_event(second, "Second")
    async with serve(stream_of(b"data: a\n\n", b"data: b\n\n", b"data: c\n\n"), *given) as rig:
        answer = await rig.fetch()
        assert answer.body == b"data: a12\n\ndata: more2\n\ndata: c12\n\ndata: more2\n\n"
        assert seen == ["a1", "more", "c1", "more"]


async def test_end_is_the_end_of_a_whole_stream(serve: Serve) -> None:
    """What `End` holds is the last that the client gets of a whole response, and its connection
    goes on; upstream's, which is left in the middle of a stream, is closed.
    """
    closed = 0

    async def script(peer: Peer) -> None:
        nonlocal closed
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
        await peer.wait_closed()
        closed += 1

    def hook(event: Event) -> EventResult:
        return End(event, Event("bye")) if event.data == "2" else event

    async with serve(script, on_event(hook)) as rig:
        client = await rig.client()
        for times in (1, 2, 3):
            with trio.fail_after(10):
                await client.send("GET", "/")
                answer = await client.answer()
                assert (answer.body, answer.complete) == (
                    b"data: 1\n\ndata: 2\n\ndata: bye\n\n",
                    True,
                )
                client.next_cycle()
                await until(lambda times=times: closed == times)
        assert await rig.outcomes(3) == ["intercepted"] * 3
        assert rig.metric("weirpool_exchanges_total", route="/", outcome="intercepted") == 3
        assert rig.upstream.accepted == 3
        assert rig.failures() == []


async def test_end_of_nothing_and_end_of_an_emitted_event(serve: Serve) -> None:
    """`End()` ends the stream without a word, and also an event that a task has emitted may end it,
    while upstream is silent.
    """
    feed = Feed()

    async def task(context: StreamContext) -> None:
        await context.emit(Event("one"))
        await context.emit(Event("stop"))

    ends = on_event(lambda event: End() if event.data == "stop" else event, "Ends")
    async with serve(feed.script, with_task(task), ends) as rig:
        answer = await rig.fetch()
        assert (answer.body, answer.complete) == (b"data: one\n\n", True)
        with trio.fail_after(10):
            await feed.closed.wait()
        assert await rig.outcomes() == ["intercepted"]


async def test_abort_tells_the_client_the_reason_and_breaks_the_stream(serve: Serve) -> None:
    """What came before has arrived, then an error event with the reason, and the end is visibly
    none. Upstream is closed.
    """
    feed = Feed()

    def hook(event: Event) -> EventResult:
        if event.data == "2":
            raise Abort("the model has failed")
        return event

    async with serve(feed.script, on_event(hook, on_error="skip")) as rig:
        feed.send(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
        answer = await rig.fetch()
        assert answer.body == b"data: 1\n\n" + error_event("aborted", "the model has failed")
        assert not answer.complete
        with trio.fail_after(10):
            await feed.closed.wait()
        assert await rig.outcomes() == ["intercepted"]
        assert rig.lines("exchange")[0]["error"] == "the model has failed"
        assert rig.failures() == []  # it was meant so


@pytest.mark.parametrize("looks", [False, True])
async def test_abort_from_a_task(looks: bool, serve: Serve) -> None:
    """A task may abort the stream while upstream is silent."""
    feed, go = Feed(), trio.Event()

    async def task(context: StreamContext) -> None:
        await go.wait()
        raise Abort("enough")

    async with serve(feed.script, with_task(task, looks=looks)) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.body == b"data: 1\n\n" + error_event("aborted", "enough")
        assert not answer.complete
        assert await rig.outcomes() == ["intercepted"]


async def test_an_abort_in_the_middle_of_an_event_says_nothing_into_it(serve: Serve) -> None:
    """Bytes pass unparsed and the client has half an event: an error event would become part of it.
    The stream only breaks.
    """
    feed, go = Feed(), trio.Event()

    async def task(context: StreamContext) -> None:
        await go.wait()
        raise Abort("enough")

    async with serve(feed.script, with_task(task)) as rig:
        feed.send(b"data: ha")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: ha")
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert (answer.body, answer.complete) == (b"data: ha", False)


# Events of one's own


@pytest.mark.parametrize("looks", [False, True])
async def test_a_task_emits_while_upstream_is_silent(looks: bool, serve: Serve) -> None:
    """Before upstream's first event, between two of them, and after one: each leaves at once, and
    the stream goes on and ends.
    """
    feed = Feed()
    say, said = trio.open_memory_channel[str](10)

    async def task(context: StreamContext) -> None:
        await context.emit(Event("at once", event="tick"))
        async for text in said:
            await context.emit(Event(text, event="tick"))

    async with serve(feed.script, with_task(task, looks=looks)) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"event: tick\ndata: at once\n\n")
            for number in range(3):
                feed.send(b"data: %d\n\n" % number)
                await client.read_until(answer, b"data: %d\n\n" % number)
                say.send_nowait(f"tock {number}")
                await client.read_until(answer, b"event: tick\ndata: tock %d\n\n" % number)
                assert set(rig.proxy.in_use().values()) == {0}
            feed.end()
            await client.rest(answer)
        assert answer.complete
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] == (3 if looks else None)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_what_is_emitted_never_stands_inside_of_an_event(
    end: bytes, looks: bool, serve: Serve
) -> None:
    """Upstream has sent half an event when the task speaks: an interceptor that looks at events
    holds that back, so that the task comes first; where bytes pass unparsed, the half is with the
    client already, and the task waits for the rest of it.
    """
    feed, go, queued = Feed(), trio.Event(), trio.Event()

    async def task(context: StreamContext) -> None:
        await go.wait()
        await context.emit(Event("mine"))
        queued.set()

    whole = b"data: first half," + end + b"data: second half" + end + end
    half = whole[:17] + end
    async with serve(feed.script, with_task(task, looks=looks)) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            feed.send(half)
            if looks:
                await until(lambda: sum(rig.proxy.in_use().values()) == 1)
            else:
                await client.read_until(answer, half)
            go.set()
            await queued.wait()
            if looks:
                await client.read_until(answer, b"data: mine\n\n")
            feed.send(whole[len(half) : -1])
            feed.send(whole[-1:])
            feed.send(b"data: last" + end + end)
            feed.end()
            await client.rest(answer)
        assert answer.complete
        mine, last = b"data: mine\n\n", b"data: last" + end + end
        # After the last CR another LF might come, so that the next event may be on its way before
        # the task has its turn.
        orders = [mine + whole + last] if looks else [whole + mine + last, whole + last + mine]
        assert answer.body in orders


def with_last(looks: bool, *events: Event) -> type[Interceptor]:
    """An interceptor that adds these when upstream has ended; `looks`: it also looks at each event."""

    class LastStream(StreamInterceptor):
        def on_complete(self) -> list[Event]:
            return list(events)

    class LookingLastStream(LastStream):
        def on_event(self, event: Event) -> EventResult:
            return event

    class Last(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return LookingLastStream() if looks else LastStream()

    return Last


@pytest.mark.parametrize("looks", [False, True])
async def test_the_last_word_leaves_before_the_end_of_a_whole_stream(
    looks: bool, serve: Serve
) -> None:
    """`on_complete` adds to a stream that upstream has ended whole, also to one that came in one
    piece with its length; not to one that breaks off or stops in the middle of an event.
    """
    last = with_last(looks, Event("last"))
    async with serve(stream_of(b"data: 1\n\n"), last) as rig:
        answer = await rig.fetch()
        assert (answer.body, answer.complete) == (b"data: 1\n\ndata: last\n\n", True)
        assert await rig.outcomes() == ["completed"]
    async with serve(stream_of(b"data: 1\n\ndata: 2"), last) as rig:
        assert (await rig.fetch()).body == b"data: 1\n\ndata: 2"

    async def with_length(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata: 1\n\n"
        )

    async with serve(with_length, last) as rig:
        answer = await rig.fetch()
        assert (answer.body, answer.complete) == (b"data: 1\n\ndata: last\n\n", True)

    async def broken(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.send(b"9\r\ndata: 1\n\n\r\n")

    async with serve(broken, last) as rig:
        answer = await rig.fetch()
        assert b"last" not in answer.body
        assert not answer.complete


async def test_later_interceptors_see_what_an_earlier_one_emits(serve: Serve) -> None:
    """The second changes the first's emitted events like any; the first itself and those before it
    do not see them.
    """
    feed = Feed()
    seen: list[str] = []

    def look(name: str) -> Callable[[Event], EventResult]:
        def hook(event: Event) -> EventResult:
            seen.append(f"{name}:{event.data}")
            return event.replace(data=event.data + name)

        return hook

    async def task(context: StreamContext) -> None:
        await context.emit(Event("x"))

    class Middle(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.start_soon(task, context)
            return Looking()

    class Looking(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            return look("m")(event)

    async def later(event: Event) -> EventResult:
        await trio.lowlevel.checkpoint()
        return look("c")(event)

    given = on_event(look("a"), "A"), Middle, on_event(look("b"), "B"), on_event_async(later, "C")
    async with serve(feed.script, *given) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"data: xbc\n\n")
            feed.send(b"data: y\n\n")
            await client.read_until(answer, b"data: yambc\n\n")
        assert seen == ["b:x", "c:xb", "a:y", "m:ya", "b:yam", "c:yamb"]
        assert rig.metric("weirpool_events_total", route="/", action="added") == 1


async def test_many_emitted_events_keep_their_order_between_those_of_a_busy_upstream(
    serve: Serve,
) -> None:
    """Two tasks emit 200 events each while upstream sends 200: all arrive, each source's in order."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for number in range(200):
            await peer.chunk(b"data: up %d\n\n" % number)
            await trio.lowlevel.checkpoint()
        await done.wait()
        await peer.end()

    left = 2
    done = trio.Event()

    def task(name: str) -> Callable[[StreamContext], Awaitable[None]]:
        async def run(context: StreamContext) -> None:
            nonlocal left
            for number in range(200):
                await context.emit(Event(f"{name} {number}"))
            left -= 1
            if not left:
                done.set()

        return run

    async with serve(
        script, with_task(task("one"), name="One"), with_task(task("two"), looks=True, name="Two")
    ) as rig:
        answer = await rig.fetch()
        assert answer.complete
        texts = [block.decode().removeprefix("data: ") for block in answer.body.split(b"\n\n")[:-1]]
        for source in ("up", "one", "two"):
            assert [text for text in texts if text.startswith(source)] == [
                f"{source} {n}" for n in range(200)
            ]
        assert len(texts) == 600


async def test_emit_waits_for_a_slow_client(serve: Serve) -> None:
    """A client that reads nothing holds up whoever emits: no more is kept for it than the kernel
    and the queue hold.
    """
    feed = Feed()
    count, text = 100, "x" * 1_000_000  # far more than the kernel holds
    emitted = 0

    async def task(context: StreamContext) -> None:
        nonlocal emitted
        for _ in range(count):
            await context.emit(Event(text))
            emitted += 1
        feed.end()

    async with serve(feed.script, with_task(task)) as rig:
        client, answer = await rig.start()
        before = -1
        while before != emitted or emitted <= MAX_EMITTED:
            before = emitted
            await trio.sleep(0.1)
        assert emitted < count - 30
        read = 0
        with trio.fail_after(20):
            while data := getattr(await client._next(), "data", None):
                read += len(data)
        assert read == count * (len(text) + len("data: \n\n"))
        assert answer.status == 200


async def test_what_was_emitted_before_the_end_arrives(serve: Serve) -> None:
    """An event that `emit` has taken while upstream's last ones are looked at leaves before the
    response ends, by either writer.
    """
    context_of_stream: list[StreamContext] = []

    class Last(Interceptor):
        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            context_of_stream.append(context)
            return LastStream()

    class LastStream(AsyncStreamInterceptor):
        async def on_event(self, event: Event) -> EventResult:
            emitted = trio.Event()

            async def emit() -> None:
                await context_of_stream[0].emit(Event("emitted"))
                emitted.set()

            context_of_stream[0].start_soon(emit)
            await emitted.wait()
            return event

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")  # the event and the end in one segment
        await peer.wait_closed()

    async with serve(script, Last) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert answer.body == b"data: 1\n\ndata: emitted\n\n"


async def test_a_task_may_speak_in_a_stream_of_announced_length(serve: Serve) -> None:
    """The upstream says how long its event stream is; with what a task adds that is true no more,
    and is not told the client.
    """
    feed = trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 18\r\n\r\ndata: 1\n\n"
        )
        await feed.wait()
        await peer.send(b"data: 2\n\n")
        await peer.wait_closed()

    async def task(context: StreamContext) -> None:
        await context.emit(Event("mine"))
        feed.set()

    async with serve(script, with_task(task)) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert sorted(answer.body.split(b"\n\n")) == [b"", b"data: 1", b"data: 2", b"data: mine"]
        assert await rig.outcomes() == ["completed"]


async def test_ticks_do_not_hide_that_upstream_is_silent(serve: Serve) -> None:
    """The idle timeout is for upstream: what a task emits every few milliseconds does not put it
    off, by either writer.
    """
    feed = Feed()

    async def task(context: StreamContext) -> None:
        while True:
            await context.emit(Event("tick"))
            await trio.sleep(0.01)

    async with serve(
        feed.script, with_task(task, looks=True), route="timeouts: {idle: 0.3}"
    ) as rig:
        answer = await rig.fetch()
        assert answer.body.startswith(b"data: tick\n\n")
        assert b'"type":"upstream_read_timeout"' in answer.body
        assert not answer.complete
        assert await rig.outcomes() == ["upstream_timeout"]


# Tasks


@pytest.mark.parametrize("how", ["the client leaves", "upstream ends", "a hook ends it"])
async def test_tasks_end_with_their_stream(how: str, serve: Serve) -> None:
    """Started in `on_request`, in `on_response` and in `open_stream`: cancelled, however the stream
    ends, before `on_end`.
    """
    feed = Feed()
    told: list[str] = []

    async def task(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            told.append(name)

    class Starts(Interceptor):
        async def on_request(self, request: Request) -> None:
            request.start_soon(task, "request")

        async def on_response(self, head: ResponseHead) -> None:
            head.request.start_soon(task, "response")

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.start_soon(task, "stream")
            return StartsStream()

    class StartsStream(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            return End() if event.data == "end" else event

        def on_end(self, outcome: Outcome) -> None:
            told.append("over")

    async with serve(feed.script, Starts) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        assert told == []
        if how == "the client leaves":
            await client.aclose()
        elif how == "upstream ends":
            feed.end()
        else:
            feed.send(b"data: end\n\n")
        await until(lambda: "over" in told)
        assert sorted(told[:3]) == ["request", "response", "stream"]
        assert told[3:] == ["over"]
        expected = {
            "the client leaves": "client_disconnected",
            "upstream ends": "completed",
            "a hook ends it": "intercepted",
        }
        assert await rig.outcomes() == [expected[how]]


async def test_the_request_of_a_context_starts_tasks_too(serve_once: Serve) -> None:
    """`context.request.start_soon` in `open_stream`, and `head.request.start_soon` in `on_start`,
    of an interceptor that has no hook for requests: the tasks run, and the failure of one is that
    interceptor's.
    """
    feed, go = Feed(), trio.Event()
    ran: list[str] = []

    async def task(name: str) -> None:
        ran.append(name)
        await go.wait()
        raise ValueError("a task that fails")

    class Starts(Interceptor):
        on_error = "skip"

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            context.request.start_soon(task, "opened")
            return StartsStream()

    class StartsStream(StreamInterceptor):
        def on_start(self, head: ResponseHead) -> None:
            head.request.start_soon(task, "started")

    async with serve_once(feed.script, Starts) as rig:
        feed.send(b"data: 1\n\n")
        feed.end()
        go.set()
        answer = await rig.fetch()
        assert (answer.status, answer.body, answer.complete) == (200, b"data: 1\n\n", True)
        assert sorted(ran) == ["opened", "started"]
        assert rig.failures() == [("Starts", "start_soon")] * 2


async def test_a_task_that_fails_when_it_is_cancelled_spoils_no_whole_response(
    serve: Serve,
) -> None:
    """The stream is over and with the client when its tasks are cancelled: what goes wrong in one
    then is logged, but the response was whole and stays so, and the client's connection goes on.
    """

    async def task(context: StreamContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in the clean-up")

    async with serve(stream_of(b"data: 1\n\n"), with_task(task)) as rig:
        client = await rig.client()
        for _ in range(3):
            with trio.fail_after(10):
                await client.send("GET", "/")
                answer = await client.answer()
            assert (answer.body, answer.complete, answer.error) == (b"data: 1\n\n", True, "")
            client.next_cycle()
        assert rig.failures()[:2] == [("Task", "start_soon")] * 2
        assert await rig.outcomes(3) == ["completed"] * 3


# Hooks that await


async def test_async_hooks_run_in_their_order_among_the_others(serve: Serve) -> None:
    """500 events in one burst through a chain of sync, async and sync: each in order, exact, and
    counted.
    """

    def tag(name: str) -> Callable[[Event], EventResult]:
        return lambda event: event.replace(data=event.data + name)

    async def awaits(event: Event) -> EventResult:
        number = int(event.data.removesuffix("a"))
        if number % 10 == 0:
            await trio.sleep(0.001)
        if number % 7 == 0:
            return None
        if number % 5 == 0:
            return [event, Event(f"more {number}")]
        return tag("b")(event)

    events = [b"data: %d\n\n" % number for number in range(1, 501)]
    expected = b""
    for number in range(1, 501):
        if number % 7 == 0:
            continue
        middle = b"" if number % 5 == 0 else b"b"
        expected += b"data: %da%bc\n\n" % (number, middle)
        if number % 5 == 0:
            expected += b"data: more %dc\n\n" % number
    given = on_event(tag("a"), "A"), on_event_async(awaits, "B"), on_event(tag("c"), "C")
    async with serve(stream_of(b"".join(events)), *given) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert answer.body == expected
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] == 500


async def test_what_came_before_has_left_when_a_hook_awaits_and_other_streams_go_on(
    serve: Serve,
) -> None:
    """Upstream sends three events at once and the hook awaits at the second: the client has the
    first, and nothing of the others, until that ends. Meanwhile another stream runs from its
    beginning to its end.
    """
    go = trio.Event()
    awaiting = trio.Event()

    async def hook(event: Event) -> EventResult:
        if event.data == "wait":
            awaiting.set()
            await go.wait()
        return event

    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.start_stream()
        await peer.chunk(
            b"data: 1\n\ndata: wait\n\ndata: 3\n\n"
            if request.target == b"/slow"
            else b"data: fast\n\n" * 100
        )
        await peer.end()

    async with serve(script, on_event_async(hook)) as rig:
        client, answer = await rig.start("/slow")
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
            await awaiting.wait()
        other = await rig.fetch("/fast")
        assert (other.body, other.complete) == (b"data: fast\n\n" * 100, True)
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert (answer.body, answer.complete) == (b"data: 1\n\ndata: wait\n\ndata: 3\n\n", True)
        assert await rig.outcomes(2) == ["completed"] * 2


async def test_upstream_is_not_read_while_a_hook_awaits(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can send only what the kernel's buffers hold, until the hook is done; then all of it
    arrives.
    """
    limit_upstream_buffers(monkeypatch, socket.SO_RCVBUF, 16384)
    event = b"data: " + b"x" * 65_000 + b"\n\n"
    count, sent = 200, 0  # 13 MB
    go, awaiting = trio.Event(), trio.Event()

    async def hook(event: Event) -> EventResult:
        awaiting.set()
        await go.wait()
        return event

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.start_stream()
        for _ in range(count):
            await peer.chunk(event)
            sent += 1
        await peer.end()

    async with serve(script, on_event_async(hook)) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await awaiting.wait()
        before = -1
        while before != sent:  # until upstream is blocked
            before = sent
            await trio.sleep(0.1)
        assert sent < count // 2
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.complete
        assert answer.body == event * count


async def test_a_client_that_leaves_while_a_hook_awaits(serve: Serve) -> None:
    """The hook is cancelled, `on_end` hears it and may still await something itself, and upstream
    is closed.
    """
    feed = Feed()
    told: list[str] = []
    awaiting = trio.Event()

    class Waits(Interceptor):
        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return WaitsStream()

    class WaitsStream(AsyncStreamInterceptor):
        async def on_event(self, event: Event) -> EventResult:
            awaiting.set()
            try:
                await trio.sleep_forever()
            finally:
                told.append("cancelled")
            return event

        async def on_end(self, outcome: Outcome) -> None:
            await trio.sleep(0.01)
            told.append(outcome)

    async with serve(feed.script, Waits) as rig:
        feed.send(b"data: 1\n\n")
        client, _ = await rig.start()
        with trio.fail_after(10):
            await awaiting.wait()
            await client.aclose()
            await feed.closed.wait()
        await until(lambda: len(told) == 2)
        assert told == ["cancelled", "client_disconnected"]
        assert await rig.outcomes() == ["client_disconnected"]


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize("hook", ["on_request", "on_response", "on_start", "on_event", "on_end"])
async def test_an_async_hook_that_takes_too_long_has_failed(
    hook: str, on_error: str, serve: Serve
) -> None:
    """It is cancelled after its `hook_timeout_s`, and then as with any other failure: the client
    sees an error, or the event as it came. The log says what took too long.
    """
    error = on_error

    class Slow(Interceptor):
        on_error = error  # type: ignore[assignment]
        hook_timeout_s = 0.03

        async def on_request(self, request: Request) -> None:
            await waits("on_request")

        async def on_response(self, head: ResponseHead) -> None:
            await waits("on_response")

        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return SlowStream()

    class SlowStream(AsyncStreamInterceptor):
        async def on_start(self, head: ResponseHead) -> None:
            await waits("on_start")

        async def on_event(self, event: Event) -> EventResult:
            await waits("on_event")
            return Event("changed")

        async def on_end(self, outcome: Outcome) -> None:
            await waits("on_end")

    async def waits(name: str) -> None:
        await (trio.sleep_forever() if name == hook else trio.lowlevel.checkpoint())

    async with serve(stream_of(b"data: 1\n\n"), Slow) as rig:
        answer = await rig.fetch()
        if hook == "on_event":
            error_body = error_event("interceptor_failed", "the interceptor 'Slow' failed")
            assert answer.body == (b"data: 1\n\n" if on_error == "skip" else error_body)
            assert answer.complete is (on_error == "skip")
        elif on_error == "skip" or hook == "on_end":
            assert (answer.body, answer.complete) == (b"data: changed\n\n", True)
        else:
            assert answer.status == 502
            assert json.loads(answer.body)["error"]["type"] == "interceptor_failed"
        await rig.outcomes()
        assert rig.failures() == [("Slow", hook)]
        assert (
            str(rig.lines("interceptor_failed")[0]["exc_info"])
            == "took longer than its hook_timeout_s (0.03 s)"
        )


# The end


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("upstream ends", "completed"),
        ("the client leaves", "client_disconnected"),
        ("the client resets", "client_disconnected"),
        ("upstream breaks off", "upstream_error"),
        ("upstream breaks the framing", "upstream_error"),
        ("upstream is silent", "upstream_timeout"),
        ("the exchange takes too long", "upstream_timeout"),
        ("an event is too large", "upstream_error"),
        ("the server drains", "draining"),
        ("End", "intercepted"),
        ("Abort", "intercepted"),
        ("a hook fails", "intercepted"),
        ("a task fails", "intercepted"),
    ],
)
async def test_on_end_is_called_once_however_a_stream_ends(
    how: str, outcome: str, serve: Serve
) -> None:
    """A sync and an async object of the same stream both hear the outcome that is in the log, once."""
    feed = Feed()
    told: list[tuple[str, str]] = []

    class Hears(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            if how == "a task fails":
                context.start_soon(fail)
            return HearsStream()

    class HearsStream(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            if event.data == "act" and how == "Abort":
                raise Abort("as asked")
            if event.data == "act" and how == "a hook fails":
                raise ValueError("as asked")
            return End() if event.data == "act" and how == "End" else event

        def on_end(self, outcome: Outcome) -> None:
            told.append(("sync", outcome))

    class HearsToo(Interceptor):
        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return HearsTooStream()

    class HearsTooStream(AsyncStreamInterceptor):
        async def on_end(self, outcome: Outcome) -> None:
            await trio.lowlevel.checkpoint()
            told.append(("async", outcome))

    async def fail() -> None:
        await go.wait()
        raise ValueError("as asked")

    go = trio.Event()
    route = {
        "upstream is silent": "timeouts: {idle: 0.2}",
        "the exchange takes too long": "timeouts: {total: 0.3}",
        "an event is too large": "limits: {max_event_bytes: 100}",
    }.get(how, "")
    drains = how == "the server drains"
    async with serve(feed.script, Hears, HearsToo, route=route, drains=drains) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        assert told == []
        if how == "upstream ends":
            feed.end()
        elif how == "the client leaves":
            await client.aclose()
        elif how == "the client resets":
            client.reset()
        elif how == "upstream breaks off":
            feed.hang_up()
        elif how == "upstream breaks the framing":
            feed._told.send_nowait(b"no size\r\n")
        elif how == "an event is too large":
            feed.send(b"data: " + b"x" * 100 + b"\n\n")
        elif how in ("End", "Abort", "a hook fails"):
            feed.send(b"data: act\n\n")
        go.set()
        if not drains:
            assert await rig.outcomes() == [outcome]
            await rig.everything_is_back()
    assert await rig.outcomes() == [outcome]
    assert sorted(told) == [("async", outcome), ("sync", outcome)]


# Failure


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "hook",
    ["on_request", "on_response", "open_stream", "on_start", "on_event", "on_end", "start_soon"],
)
async def test_a_hook_that_fails(hook: str, kind: str, on_error: str, serve: Serve) -> None:
    """`abort`: 502 before the head has left, an error event and a broken stream after it, the
    outcome `intercepted`. `skip`: as if the hook had done nothing. The log has one line for the
    failure, with its traceback, and the client sees nothing of that.
    """
    feed, go = Feed(), trio.Event()
    error = on_error
    failed = False

    def fail(name: str) -> None:
        nonlocal failed
        if name == hook and not failed:
            failed = True
            raise ValueError("a secret")

    async def task() -> None:
        await go.wait()
        fail("start_soon")

    class Fails(Interceptor):
        on_error = error  # type: ignore[assignment]

        async def on_request(self, request: Request) -> None:
            fail("on_request")

        async def on_response(self, head: ResponseHead) -> None:
            fail("on_response")

        def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
            context.start_soon(task)
            fail("open_stream")
            return FailsStream() if kind == "sync" else FailsAsyncStream()

    class FailsStream(StreamInterceptor):
        def on_start(self, head: ResponseHead) -> None:
            fail("on_start")

        def on_event(self, event: Event) -> EventResult:
            if event.data == "2":
                fail("on_event")
            return event

        def on_end(self, outcome: Outcome) -> None:
            fail("on_end")

    class FailsAsyncStream(AsyncStreamInterceptor):
        async def on_start(self, head: ResponseHead) -> None:
            fail("on_start")

        async def on_event(self, event: Event) -> EventResult:
            if event.data == "2":
                fail("on_event")
            return event

        async def on_end(self, outcome: Outcome) -> None:
            fail("on_end")

    async with serve(feed.script, Fails) as rig:
        feed.send(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
        client, answer = await rig.start()
        before_head = (
            hook in ("on_request", "on_response", "open_stream", "on_start") and on_error == "abort"
        )
        if before_head:
            await client.rest(answer)
            assert (answer.status, answer.complete) == (502, True)
            assert answer.all("content-type") == [b"application/json"]
            expected = {
                "error": {"type": "interceptor_failed", "message": "the interceptor 'Fails' failed"}
            }
            assert json.loads(answer.body) == expected
            assert len(rig.upstream.requests) == (hook != "on_request")
        else:
            await client.read_until(
                answer,
                b"data: 1\n\n" if (hook, on_error) == ("on_event", "abort") else b"data: 3\n\n",
            )
            go.set()
            if hook == "start_soon":
                await until(lambda: failed)
            if on_error == "skip" or hook == "on_end":
                feed.end()
            with trio.fail_after(10):
                await client.rest(answer)
            whole = on_error == "skip" or hook == "on_end"
            sent = (
                b"data: 1\n\n"
                if hook == "on_event" and not whole
                else b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
            )
            error_said = (
                b""
                if whole
                else error_event("interceptor_failed", "the interceptor 'Fails' failed")
            )
            assert (answer.status, answer.complete) == (200, whole)
            assert answer.body == sent + error_said
        assert b"secret" not in answer.body
        await rig.everything_is_back()
        assert await rig.outcomes() == [
            "intercepted" if on_error == "abort" and hook != "on_end" else "completed"
        ]
        assert rig.failures() == [("Fails", hook)]
        (line,) = rig.lines("interceptor_failed")
        assert isinstance(line["exc_info"], ValueError)
        assert line["on_error"] == on_error


@pytest.mark.parametrize(
    ("hook", "returned", "expected"),
    [
        ("on_request", {"status": 403}, "returned dict, expected a Response or None"),
        ("on_response", "no", "returned str, expected a Response or None"),
        (
            "open_stream",
            StreamInterceptor,
            "returned the class StreamInterceptor, expected a StreamInterceptor, an AsyncStreamInterceptor or None",
        ),
        (
            "on_event",
            b"data",
            "returned bytes, expected an Event, a list of Events, End(...) or None",
        ),
        (
            "on_event",
            ["data"],
            "returned a list of str, expected an Event, a list of Events, End(...) or None",
        ),
    ],
)
async def test_a_hook_that_returns_nonsense(
    hook: str, returned: object, expected: str, serve_once: Serve
) -> None:
    """It fails, and the error names the class, the hook, and what was expected."""

    class Wrong(Interceptor):
        async def on_request(self, request: Request) -> Any:
            return returned if hook == "on_request" else None

        async def on_response(self, head: ResponseHead) -> Any:
            return returned if hook == "on_response" else None

        def open_stream(self, context: StreamContext) -> Any:
            return returned if hook == "open_stream" else WrongStream()

    class WrongStream(StreamInterceptor):
        def on_event(self, event: Event) -> Any:
            return returned if hook == "on_event" else event

    async with serve_once(stream_of(b"data: 1\n\n"), Wrong) as rig:
        answer = await rig.fetch()
        assert b'"type":"interceptor_failed"' in answer.body
        assert await rig.outcomes() == ["intercepted"]
        (line,) = rig.lines("interceptor_failed")
        assert str(line["exc_info"]) == f"{Wrong.__qualname__}'s {hook} {expected}"


async def test_an_emit_of_nonsense_fails_its_task(serve_once: Serve) -> None:
    """`emit` takes events only, and says so."""
    feed = Feed()

    async def task(context: StreamContext) -> None:
        await context.emit("data")  # type: ignore[arg-type]

    async with serve_once(feed.script, with_task(task)) as rig:
        await rig.fetch()
        (line,) = rig.lines("interceptor_failed")
        assert str(line["exc_info"]) == "emit() takes an Event, not str"


async def test_a_failure_of_one_stays_with_its_stream(serve: Serve) -> None:
    """One of two streams fails in its hook, the other goes on to its end, and the next one begins
    as if nothing had been.
    """
    feed = Feed()

    async def script(peer: Peer) -> None:
        if not rig.upstream.requests:
            await feed.script(peer)
        else:
            await stream_of(b"data: bad\n\n")(peer)

    def hook(event: Event) -> EventResult:
        if event.data == "bad":
            raise ValueError
        return event

    async with serve(script, on_event(hook)) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        for _ in range(2):
            assert not (await rig.fetch()).complete
        feed.send(b"data: 2\n\n")
        feed.end()
        with trio.fail_after(10):
            await client.rest(answer)
        assert (answer.body, answer.complete) == (b"data: 1\n\ndata: 2\n\n", True)
        assert await rig.outcomes(3) == ["intercepted", "intercepted", "completed"]


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"Identity, gzip"])
async def test_a_compressed_stream_is_refused_and_not_passed_unseen(
    encoding: bytes, serve: Serve
) -> None:
    """Identity was asked for. A stream that an interceptor cannot look into is a 502, and none of
    its bytes reaches the client.
    """
    told: list[str] = []

    class Looks(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return LooksStream()

    class LooksStream(StreamInterceptor):
        def on_event(self, event: Event) -> EventResult:
            return event

        def on_end(self, outcome: Outcome) -> None:
            told.append(outcome)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream(b"Content-Encoding: " + encoding)
        await peer.chunk(b"unseen")
        await peer.wait_closed()

    async with serve(script, Looks) as rig:
        answer = await rig.fetch(headers=[("Accept-Encoding", "gzip, br")])
        assert (answer.status, answer.complete) == (502, True)
        error = json.loads(answer.body)["error"]
        assert error["type"] == "upstream_protocol_error"
        assert error["message"].startswith(
            "the upstream's response is compressed, although it was asked for uncompressed"
        )
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        assert await rig.outcomes() == ["upstream_error"]
        assert "an interceptor must see it" in rig.lines("exchange")[0]["error"]
        assert told == ["upstream_error"]


async def test_a_hook_that_holds_the_loop_is_named(serve_once: Serve) -> None:
    """More than 50 ms in a synchronous hook is a warning with the interceptor's and the hook's
    name; its time is in the metric.
    """

    def hook(event: Event) -> EventResult:
        time.sleep(0.06)
        return event

    async with serve_once(stream_of(b"data: 1\n\n"), on_event(hook, "Heavy")) as rig:
        assert (await rig.fetch()).complete
        (line,) = rig.lines("interceptor_slow")
        assert (line["interceptor"], line["hook"]) == ("Heavy", "on_event")
        assert line["seconds"] >= 0.06
        spent = rig.metric("weirpool_interceptor_seconds_total", interceptor="Heavy")
        assert spent is not None
        assert spent >= 0.06


async def test_metrics_of_an_interceptor_are_the_proxys(serve_once: Serve) -> None:
    """`collectors()` are on /metrics from the start, labelled with the interceptor's name; one that
    fails takes no other along.
    """

    class Counting(Interceptor):
        def __init__(self) -> None:
            self.requests = Counter("my_requests", "Requests.", ["kind"], registry=None)
            self.requests.labels("GET")

        def collectors(self) -> list[Collector]:
            return [self.requests]

        async def on_request(self, request: Request) -> None:
            self.requests.labels(request.method).inc()

    class Broken(Collector):
        def collect(self) -> list[Metric]:
            raise RuntimeError

    class Failing(Interceptor):
        def collectors(self) -> list[Collector]:
            return [Broken()]

    Twin = type("Twin", (Counting,), {})
    async with serve_once(stream_of(b"data: 1\n\n"), Failing, Counting, Twin) as rig:
        assert rig.metric("my_requests_total", kind="GET", interceptor="Counting") == 0
        assert (await rig.fetch()).complete
        text = (await rig.fetch("/metrics")).body
        for name in ("Counting", "Twin"):
            assert f'my_requests_total{{interceptor="{name}",kind="GET"}} 1.0'.encode() in text
        assert text.count(b"# TYPE my_requests_total counter") == 1
        assert rig.failures()[0] == ("Failing", "collectors")


def test_a_metric_called_as_one_of_the_proxys_is_refused_at_start() -> None:
    """Its samples would stand among the proxy's own."""

    class Posing(Interceptor):
        def collectors(self) -> list[Collector]:
            return [Counter("weirpool_exchanges", "Mine.", registry=None)]

    with pytest.raises(
        ConfigError, match="'Posing' has a metric called 'weirpool_exchanges', and so has the proxy"
    ):
        Metrics(
            Pools(), [], collectors=lambda: [(Owner("Posing", Posing()), Posing().collectors()[0])]
        )


# HTTP/2


async def read_http2(
    rig: Rig, certificates: Certificates, target: str = "/"
) -> tuple[int, bytes, bool]:
    """Status, body, and whether the stream came whole."""
    context = certificates.client("h2")
    async with httpx.AsyncClient(http2=True, verify=context) as client:
        body = b""
        try:
            with trio.fail_after(10):
                async with client.stream("GET", rig.proxy.url + target) as response:
                    assert response.http_version == "HTTP/2"
                    async for data in response.aiter_raw():
                        body += data
        except httpx.RemoteProtocolError:
            return response.status_code, body, False
        return response.status_code, body, True


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("last", "body", "whole", "outcome"),
    [
        ("pass", b"data: pass\n\n", True, "completed"),
        ("end", b"data: bye\n\n", True, "intercepted"),
        ("abort", error_event("aborted", "as asked"), False, "intercepted"),
        (
            "fail",
            error_event("interceptor_failed", "the interceptor 'Acts' failed"),
            False,
            "intercepted",
        ),
    ],
)
async def test_actions_over_http2(
    last: str, body: bytes, whole: bool, outcome: str, kind: str, log: Log, certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Changed, dropped, ended, aborted, failed: as over HTTP/1.1, and a stream that breaks is
    reset.
    """

    def act(event: Event) -> EventResult:
        if event.data == "change":
            return event.replace(data="changed")
        if event.data == "drop":
            return None
        if event.data == "end":
            return End(Event("bye"))
        if event.data == "abort":
            raise Abort("as asked")
        if event.data == "fail":
            raise ValueError
        return event

    async def act_async(event: Event) -> EventResult:
        await trio.lowlevel.checkpoint()
        return act(event)

    events = b"data: 1\n\ndata: change\n\ndata: drop\n\ndata: %s\n\n" % last.encode()
    given = on_event(act, "Acts") if kind == "sync" else on_event_async(act_async, "Acts")
    async with Way(certificates=certificates).serve(log, monkeypatch)(
        stream_of(events), given
    ) as rig:
        assert await read_http2(rig, certificates) == (
            200,
            b"data: 1\n\ndata: changed\n\n" + body,
            whole,
        )
        assert await rig.outcomes() == [outcome]


async def test_tasks_emit_over_http2(
    log: Log, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream is silent until what a task emits has come through."""
    feed = Feed()

    async def task(context: StreamContext) -> None:
        for number in range(30):
            await context.emit(Event(f"tick {number}"))
        feed.send(b"data: up\n\n")
        feed.end()

    async with Way(certificates=certificates).serve(log, monkeypatch)(
        feed.script, with_task(task)
    ) as rig:
        _, body, whole = await read_http2(rig, certificates)
        assert whole
        ticks = [block for block in body.split(b"\n\n") if block.startswith(b"data: tick")]
        assert ticks == [b"data: tick %d" % number for number in range(30)]
        assert b"data: up\n\n" in body


# Answers of events


class Unlucky(Interceptor):
    """Answers with events, and fails behind the first."""

    async def on_request(self, request: Request) -> Response | None:
        return Response(events=self.events(request.path))

    async def events(self, path: str) -> Any:
        yield Event("one")
        if path == "/abort":
            raise Abort("enough")
        if path == "/nonsense":
            yield "two"
        raise LookupError("no more")


class UnluckyButSkipped(Unlucky):
    on_error = "skip"


@pytest.mark.parametrize("cls", [Unlucky, UnluckyButSkipped])
@pytest.mark.parametrize("path", ["/abort", "/raise", "/nonsense"])
async def test_an_answer_that_fails_half_way_is_seen_to(
    path: str, cls: type[Interceptor], serve: Serve
) -> None:
    """It is its interceptor's failure, named in the log, and never looks whole, whatever `on_error`
    says.
    """

    async def nobody(peer: Peer) -> None:
        raise AssertionError("the upstream is not asked")

    async with serve(nobody, cls) as rig:
        with trio.fail_after(10):
            answer = await rig.fetch(path)
        assert not answer.complete
        assert answer.body.startswith(b"data: one\n\nevent: error\n")
        assert (b"enough" in answer.body) is (path == "/abort")
        assert await rig.outcomes() == ["intercepted"]
        assert rig.failures() == ([] if path == "/abort" else [(cls.__name__, "events")])
