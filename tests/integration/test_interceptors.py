"""Interceptors of event streams on real sockets: what hooks do, how they fail, what clients see.

Most tests run with the hub, without it, and with TLS, where the portable writer serves the client.
What a chain does with events in detail is in the unit tests of `interceptors`.
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
from support.interceptors import (
    Feed,
    Log,
    Rig,
    Serve,
    Way,
    awaiting,
    interceptor,
    on_event,
    on_event_async,
    until,
)
from support.proxy import limit_upstream_buffers
from support.upstream import Peer, stream_of

from interceptors import (
    Abort,
    End,
    Event,
    EventResult,
    Interceptor,
    Outcome,
    Request,
    Response,
    StreamContext,
)
from interceptors.emitting import MAX_EMITTED
from interceptors.hooks import Owner
from pools import Pools
from proxy.errors import ConfigError
from proxy.worker.metrics import Metrics


@pytest.fixture
def serve_http2(log: Log, monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> Serve:
    return Way(certificates=certificates).serve(log, monkeypatch)


def error_event(kind: str, message: str) -> bytes:
    error = json.dumps({"error": {"type": kind, "message": message}}, separators=(",", ":"))
    return b"event: error\ndata: " + error.encode() + b"\n\n"


def passing(event: Event) -> EventResult:
    return event


Task = Callable[[StreamContext], Awaitable[object]]


def with_task(task: Task, *, looks: bool = False, name: str = "Task") -> Any:
    """Starts one task per stream. `looks`: it sees all events; else bytes pass unparsed."""
    more = {"on_event": passing} if looks else {}
    return interceptor(name, opened=lambda context: context.start_soon(task, context), **more)


def emitting(*texts: str) -> Task:
    async def task(context: StreamContext) -> None:
        for text in texts:
            await context.emit(Event(text))

    return task


def with_length(length: int, *parts: bytes) -> Callable[[Peer], Awaitable[None]]:
    """An upstream with a Content-Length."""

    async def script(peer: Peer) -> None:
        await peer.request()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        await peer.send(head % length + parts[0])
        for part in parts[1:]:
            await trio.sleep(0.05)
            await peer.send(part)
        await peer.wait_closed()

    return script


# Actions


async def test_events_are_passed_changed_dropped_and_multiplied(serve: Serve) -> None:
    """What passes leaves as the very bytes, and every event is counted once."""

    def hook(event: Event) -> EventResult:
        results: dict[int, EventResult] = {
            2: None,
            3: event.replace(json={"was": 3}, id="three"),
            4: [Event("before"), event, Event("after", event="extra")],
        }
        return results.get(int(event.data), event)

    sent = (
        b": hello\n\nid:1\r\ndata:  1\r\n\r\ndata: 2\n\nevent: e\ndata: 3\n\ndata:4\n\ndata: 5\n\n"
    )
    async with serve(stream_of(sent), on_event(hook)) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert answer.body == (
            b": hello\n\nid:1\r\ndata:  1\r\n\r\n"
            b'event: e\nid: three\ndata: {"was":3}\n\n'
            b"data: before\n\ndata:4\n\nevent: extra\ndata: after\n\n"
            b"data: 5\n\n"
        )
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] == 6
        for action, count in {"passed": 4, "changed": 1, "dropped": 1, "added": 2}.items():
            assert rig.metric("weirpool_events_total", route="/", action=action) == count


async def test_end_is_the_end_of_a_whole_stream(serve: Serve) -> None:
    """The client's connection stays usable; the upstream's, left mid-stream, is closed."""
    closed = 0

    async def script(peer: Peer) -> None:
        nonlocal closed
        await peer.request()
        await peer.start_stream()
        await peer.chunk(b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
        await peer.wait_closed()
        closed += 1

    hook = on_event(lambda event: End(event, Event("bye")) if event.data == "2" else event)
    async with serve(script, hook) as rig:
        client = await rig.client()
        for times in (1, 2, 3):
            with trio.fail_after(10):
                await client.send("GET", "/")
                answer = await client.answer()
                assert answer.body == b"data: 1\n\ndata: 2\n\ndata: bye\n\n"
                assert answer.complete
                client.next_cycle()
                await until(lambda times=times: closed == times)
        assert await rig.outcomes(3) == ["intercepted"] * 3
        assert rig.metric("weirpool_exchanges_total", route="/", outcome="intercepted") == 3
        assert rig.upstream.accepted == 3
        assert rig.failures() == []


async def test_an_emitted_event_may_end_the_stream(serve: Serve) -> None:
    """`End()` without events, while the upstream is silent."""
    feed = Feed()
    ends = on_event(lambda event: End() if event.data == "stop" else event, "Ends")
    async with serve(feed.script, with_task(emitting("one", "stop")), ends) as rig:
        answer = await rig.fetch()
        assert (answer.body, answer.complete) == (b"data: one\n\n", True)
        with trio.fail_after(10):
            await feed.closed.wait()
        assert await rig.outcomes() == ["intercepted"]


async def test_abort_tells_the_client_the_reason_and_breaks_the_stream(serve: Serve) -> None:
    """Earlier events arrive, then an error event; the response is truncated, upstream closed."""
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
        assert rig.failures() == []


@pytest.mark.parametrize(
    ("looks", "sent", "error"),
    [(False, b"data: 1\n\n", True), (True, b"data: 1\n\n", True), (False, b"data: ha", False)],
)
async def test_abort_from_a_task(looks: bool, sent: bytes, error: bool, serve: Serve) -> None:
    """While the upstream is silent. Inside an event there is no error event: it would join it."""
    feed, go = Feed(), trio.Event()

    async def task(context: StreamContext) -> None:
        await go.wait()
        raise Abort("enough")

    async with serve(feed.script, with_task(task, looks=looks)) as rig:
        feed.send(sent)
        client, answer = await rig.start()
        await client.read_until(answer, sent)
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.body == sent + (error_event("aborted", "enough") if error else b"")
        assert not answer.complete
        assert await rig.outcomes() == ["intercepted"]


# Emitted events


@pytest.mark.parametrize("looks", [False, True])
async def test_a_task_emits_while_upstream_is_silent(looks: bool, serve: Serve) -> None:
    """Before the first event, between two, after one: each leaves at once, and no buffer is held."""
    feed = Feed()
    send, texts = trio.open_memory_channel[str](10)

    async def task(context: StreamContext) -> None:
        await context.emit(Event("at once", event="tick"))
        async for text in texts:
            await context.emit(Event(text, event="tick"))

    async with serve(feed.script, with_task(task, looks=looks)) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"event: tick\ndata: at once\n\n")
            for number in range(3):
                feed.send(b"data: %d\n\n" % number)
                await client.read_until(answer, b"data: %d\n\n" % number)
                send.send_nowait(f"tock {number}")
                await client.read_until(answer, b"event: tick\ndata: tock %d\n\n" % number)
                assert set(rig.proxy.in_use().values()) == {0}
            feed.end()
            await client.rest(answer)
        assert answer.complete
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] == (3 if looks else None)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_emitted_events_never_stand_inside_an_event(
    end: bytes, looks: bool, serve: Serve
) -> None:
    """Half an event has arrived. A hook holds it back, so the task's event is first; where bytes
    pass unparsed, the half has left, and the task waits for the rest.
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
        # After a last CR an LF may follow, so the next event can leave before the task's.
        orders = [mine + whole + last] if looks else [whole + mine + last, whole + last + mine]
        assert answer.body in orders


@pytest.mark.parametrize("looks", [False, True])
async def test_on_complete_adds_to_whole_streams_only(looks: bool, serve: Serve) -> None:
    """Also to one of known length; not to one that breaks off or stops inside an event."""

    async def broken(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.send(b"9\r\ndata: 1\n\n\r\n")

    more = {"on_event": passing} if looks else {}
    last = interceptor("Last", on_complete=lambda: [Event("last")], **more)
    added = b"data: 1\n\ndata: last\n\n"
    for script, body in (
        (stream_of(b"data: 1\n\n"), added),
        (with_length(9, b"data: 1\n\n"), added),
        (stream_of(b"data: 1\n\ndata: 2"), b"data: 1\n\ndata: 2"),
        (broken, None),
    ):
        async with serve(script, last) as rig:
            answer = await rig.fetch()
            assert answer.complete is (body is not None)
            assert answer.body == body if body is not None else b"last" not in answer.body


async def test_later_interceptors_see_what_an_earlier_one_emits(serve: Serve) -> None:
    """The emitter itself and the interceptors before it do not."""
    feed, seen = Feed(), list[str]()

    def look(name: str) -> Callable[[Event], EventResult]:
        def hook(event: Event) -> EventResult:
            seen.append(f"{name}:{event.data}")
            return event.replace(data=event.data + name)

        return hook

    def opened(context: StreamContext) -> None:
        context.start_soon(emitting("x"), context)

    given = (
        on_event(look("a"), "A"),
        interceptor("Middle", opened=opened, on_event=look("m")),
        on_event(look("b"), "B"),
        on_event_async(awaiting(look("c")), "C"),
    )
    async with serve(feed.script, *given) as rig:
        client, answer = await rig.start()
        with trio.fail_after(10):
            await client.read_until(answer, b"data: xbc\n\n")
            feed.send(b"data: y\n\n")
            await client.read_until(answer, b"data: yambc\n\n")
        assert seen == ["b:x", "c:xb", "a:y", "m:ya", "b:yam", "c:yamb"]
        assert rig.metric("weirpool_events_total", route="/", action="added") == 1


async def test_emitted_events_keep_their_order_beside_a_busy_upstream(serve: Serve) -> None:
    """Two tasks emit 200 events each while the upstream sends 200: each source stays in order."""
    left, done = 2, trio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        for number in range(200):
            await peer.chunk(b"data: up %d\n\n" % number)
            await trio.lowlevel.checkpoint()
        await done.wait()
        await peer.end()

    def task(name: str) -> Task:
        async def run(context: StreamContext) -> None:
            nonlocal left
            await emitting(*(f"{name} {number}" for number in range(200)))(context)
            left -= 1
            if not left:
                done.set()

        return run

    given = with_task(task("one"), name="One"), with_task(task("two"), looks=True, name="Two")
    async with serve(script, *given) as rig:
        answer = await rig.fetch()
        assert answer.complete
        texts = [block.decode().removeprefix("data: ") for block in answer.body.split(b"\n\n")[:-1]]
        for source in ("up", "one", "two"):
            expected = [f"{source} {number}" for number in range(200)]
            assert [text for text in texts if text.startswith(source)] == expected
        assert len(texts) == 600


async def test_emit_waits_for_a_slow_client(serve: Serve) -> None:
    """No more is buffered than the kernel and the queue hold."""
    feed, count, text, emitted = Feed(), 100, "x" * 1_000_000, 0

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
    """An event that `emit` took while a hook handles the upstream's last one."""
    contexts: list[StreamContext] = []

    async def hook(event: Event) -> EventResult:
        emitted = trio.Event()

        async def emit() -> None:
            await contexts[0].emit(Event("emitted"))
            emitted.set()

        contexts[0].start_soon(emit)
        await emitted.wait()
        return event

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream()
        await peer.send(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")  # the event and the end in one segment
        await peer.wait_closed()

    last = interceptor("Last", is_async=True, opened=contexts.append, on_event=hook)
    async with serve(script, last) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert answer.body == b"data: 1\n\ndata: emitted\n\n"


async def test_a_task_may_emit_into_a_stream_of_known_length(serve: Serve) -> None:
    """The upstream's Content-Length is not sent to the client."""
    script = with_length(18, b"data: 1\n\n", b"data: 2\n\n")
    async with serve(script, with_task(emitting("mine"))) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert sorted(answer.body.split(b"\n\n")) == [b"", b"data: 1", b"data: 2", b"data: mine"]
        assert await rig.outcomes() == ["completed"]


async def test_emitted_events_do_not_delay_the_idle_timeout(serve: Serve) -> None:
    feed = Feed()

    async def task(context: StreamContext) -> None:
        while True:
            await context.emit(Event("tick"))
            await trio.sleep(0.01)

    ticking = with_task(task, looks=True)
    async with serve(feed.script, ticking, route="timeouts: {idle: 0.3}") as rig:
        answer = await rig.fetch()
        assert answer.body.startswith(b"data: tick\n\n")
        assert b'"type":"upstream_read_timeout"' in answer.body
        assert not answer.complete
        assert await rig.outcomes() == ["upstream_timeout"]


# Tasks


@pytest.mark.parametrize("outcome", ["client_disconnected", "completed", "intercepted"])
async def test_tasks_end_with_their_stream(outcome: str, serve: Serve) -> None:
    """Wherever they were started and however the stream ends: cancelled before `on_end`."""
    feed, told = Feed(), list[str]()

    async def task(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            told.append(name)

    starts = interceptor(
        "Starts",
        on_request=awaiting(lambda request: request.start_soon(task, "request")),
        on_response=awaiting(lambda head: head.request.start_soon(task, "response")),
        opened=lambda context: context.start_soon(task, "stream"),
        on_event=lambda event: End() if event.data == "end" else event,
        on_end=lambda outcome: told.append("over"),
    )
    async with serve(feed.script, starts) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        assert told == []
        if outcome == "client_disconnected":
            await client.aclose()
        elif outcome == "completed":
            feed.end()
        else:
            feed.send(b"data: end\n\n")
        await until(lambda: "over" in told)
        assert sorted(told[:3]) == ["request", "response", "stream"]
        assert told[3:] == ["over"]
        assert await rig.outcomes() == [outcome]


async def test_the_request_of_a_context_starts_tasks_too(serve_once: Serve) -> None:
    """In an interceptor without hooks for requests; a failure is that interceptor's."""
    ran: list[str] = []

    async def task(name: str) -> None:
        ran.append(name)
        raise ValueError("a task that fails")

    starts = interceptor(
        "Starts",
        on_error="skip",
        opened=lambda context: context.request.start_soon(task, "opened"),
        on_start=lambda head: head.request.start_soon(task, "started"),
    )
    async with serve_once(stream_of(b"data: 1\n\n"), starts) as rig:
        answer = await rig.fetch()
        assert (answer.status, answer.body, answer.complete) == (200, b"data: 1\n\n", True)
        assert sorted(ran) == ["opened", "started"]
        assert rig.failures() == [("Starts", "start_soon")] * 2


async def test_a_task_that_fails_when_cancelled_spoils_no_whole_response(serve: Serve) -> None:
    """The failure is logged; the response stays whole and the client's connection usable."""

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


# Async hooks


async def test_async_hooks_run_in_their_order_among_the_others(serve: Serve) -> None:
    """500 events in one burst through sync, async and sync hooks: in order, exact, counted."""

    def tag(name: str) -> Callable[[Event], EventResult]:
        return lambda event: event.replace(data=event.data + name)

    async def awaits(event: Event) -> EventResult:
        number = int(event.data.removesuffix("a"))
        if number % 10 == 0:
            await trio.sleep(0.001)
        if number % 7 == 0:
            return None
        return [event, Event(f"more {number}")] if number % 5 == 0 else tag("b")(event)

    expected = b""
    for number in range(1, 501):
        if number % 7 and number % 5:
            expected += b"data: %dabc\n\n" % number
        elif number % 7:
            expected += b"data: %dac\n\ndata: more %dc\n\n" % (number, number)
    events = b"".join(b"data: %d\n\n" % number for number in range(1, 501))
    given = on_event(tag("a"), "A"), on_event_async(awaits, "B"), on_event(tag("c"), "C")
    async with serve(stream_of(events), *given) as rig:
        answer = await rig.fetch()
        assert answer.complete
        assert answer.body == expected
        assert await rig.outcomes() == ["completed"]
        assert rig.lines("exchange")[0]["events"] == 500


async def test_earlier_events_have_left_when_a_hook_awaits(serve: Serve) -> None:
    """Of three events in one read, the hook awaits at the second. Other streams are not delayed."""
    go, waits = trio.Event(), trio.Event()

    async def hook(event: Event) -> EventResult:
        if event.data == "wait":
            waits.set()
            await go.wait()
        return event

    slow, fast = b"data: 1\n\ndata: wait\n\ndata: 3\n\n", b"data: fast\n\n" * 100

    async def script(peer: Peer) -> None:
        request = await peer.request()
        await peer.start_stream()
        await peer.chunk(slow if request.target == b"/slow" else fast)
        await peer.end()

    async with serve(script, on_event_async(hook)) as rig:
        client, answer = await rig.start("/slow")
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
            await waits.wait()
        other = await rig.fetch("/fast")
        assert (other.body, other.complete) == (fast, True)
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert (answer.body, answer.complete) == (slow, True)
        assert await rig.outcomes(2) == ["completed"] * 2


async def test_upstream_is_not_read_while_a_hook_awaits(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can send what the kernel's buffers hold; all of it arrives afterwards."""
    limit_upstream_buffers(monkeypatch, socket.SO_RCVBUF, 16384)
    event = b"data: " + b"x" * 65_000 + b"\n\n"
    count, sent = 200, 0  # 13 MB
    go, waits = trio.Event(), trio.Event()

    async def hook(event: Event) -> EventResult:
        waits.set()
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
            await waits.wait()
        before = -1
        while before != sent:  # until the upstream is blocked
            before = sent
            await trio.sleep(0.1)
        assert sent < count // 2
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.complete
        assert answer.body == event * count


async def test_a_client_that_leaves_while_a_hook_awaits(serve: Serve) -> None:
    """The hook is cancelled, `on_end` may still await, and the upstream is closed."""
    feed, told, waits = Feed(), list[str](), trio.Event()

    async def hook(event: Event) -> EventResult:
        waits.set()
        try:
            await trio.sleep_forever()
        finally:
            told.append("cancelled")

    async def on_end(outcome: Outcome) -> None:
        await trio.sleep(0.01)
        told.append(outcome)

    hooks = interceptor("Waits", is_async=True, on_event=hook, on_end=on_end)
    async with serve(feed.script, hooks) as rig:
        feed.send(b"data: 1\n\n")
        client, _ = await rig.start()
        with trio.fail_after(10):
            await waits.wait()
            await client.aclose()
            await feed.closed.wait()
        await until(lambda: len(told) == 2)
        assert told == ["cancelled", "client_disconnected"]
        assert await rig.outcomes() == ["client_disconnected"]


ASYNC_HOOKS = ("on_request", "on_response", "on_start", "on_event", "on_end")


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize("hook", ASYNC_HOOKS)
async def test_an_async_hook_that_takes_too_long_has_failed(
    hook: str, on_error: str, serve_once: Serve
) -> None:
    """It is cancelled after `hook_timeout_s` and handled as any other failure."""

    def waiting(name: str, result: Any = None) -> Callable[[object], Awaitable[Any]]:
        async def run(given: object) -> Any:
            await (trio.sleep_forever() if name == hook else trio.lowlevel.checkpoint())
            return result

        return run

    hooks = {name: waiting(name) for name in ASYNC_HOOKS}
    hooks["on_event"] = waiting("on_event", Event("changed"))
    slow = interceptor("Slow", is_async=True, hook_timeout_s=0.2, on_error=on_error, **hooks)
    async with serve_once(stream_of(b"data: 1\n\n"), slow) as rig:
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
        problem = str(rig.lines("interceptor_failed")[0]["exc_info"])
        assert problem == "took longer than its hook_timeout_s (0.2 s)"


# The end


@pytest.mark.parametrize(
    ("how", "outcome"),
    [
        ("upstream ends", "completed"), ("the client leaves", "client_disconnected"),
        ("the client resets", "client_disconnected"), ("upstream breaks off", "upstream_error"),
        ("upstream breaks the framing", "upstream_error"),
        ("upstream is silent", "upstream_timeout"),
        ("the exchange takes too long", "upstream_timeout"),
        ("an event is too large", "upstream_error"), ("the server drains", "draining"),
        ("End", "intercepted"), ("Abort", "intercepted"), ("a hook fails", "intercepted"),
        ("a task fails", "intercepted"),
    ],
)  # fmt: skip
async def test_on_end_is_called_once_however_a_stream_ends(
    how: str, outcome: str, serve: Serve
) -> None:
    """A sync and an async stream object both get the outcome of the log, once."""
    feed, go, told = Feed(), trio.Event(), list[tuple[str, str]]()

    def hook(event: Event) -> EventResult:
        if event.data == "act" and how == "Abort":
            raise Abort("as asked")
        if event.data == "act" and how == "a hook fails":
            raise ValueError("as asked")
        return End() if event.data == "act" and how == "End" else event

    async def fail() -> None:
        await go.wait()
        raise ValueError("as asked")

    hears = interceptor(
        "Hears",
        opened=lambda context: context.start_soon(fail) if how == "a task fails" else None,
        on_event=hook,
        on_end=lambda outcome: told.append(("sync", outcome)),
    )
    on_end = awaiting(lambda outcome: told.append(("async", outcome)))
    hears_too = interceptor("HearsToo", is_async=True, on_end=on_end)
    route = {
        "upstream is silent": "timeouts: {idle: 0.2}",
        "the exchange takes too long": "timeouts: {total: 0.3}",
        "an event is too large": "limits: {max_event_bytes: 100}",
    }.get(how, "")
    drains = how == "the server drains"
    async with serve(feed.script, hears, hears_too, route=route, drains=drains) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        assert told == []
        go.set()
        if how == "the client leaves":
            await client.aclose()
        else:
            acts: dict[str, Callable[[], object]] = {
                "upstream ends": feed.end,
                "the client resets": client.reset,
                "upstream breaks off": feed.hang_up,
                "upstream breaks the framing": lambda: feed._told.send_nowait(b"no size\r\n"),
                "an event is too large": lambda: feed.send(b"data: " + b"x" * 100 + b"\n\n"),
                **dict.fromkeys(
                    ("End", "Abort", "a hook fails"), lambda: feed.send(b"data: act\n\n")
                ),
            }
            acts.get(how, lambda: None)()
        if not drains:
            assert await rig.outcomes() == [outcome]
            await rig.everything_is_back()
    assert await rig.outcomes() == [outcome]
    assert sorted(told) == [("async", outcome), ("sync", outcome)]


# Failure

BEFORE_HEAD = ("on_request", "on_response", "open_stream", "on_start")


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("hook", [*BEFORE_HEAD, "on_event", "on_end", "start_soon"])
async def test_a_hook_that_fails(hook: str, is_async: bool, on_error: str, serve: Serve) -> None:
    """`abort`: 502 before the head, later an error event and a truncated response. `skip`: as if
    the hook had done nothing. One log line with the traceback; the client sees no detail.
    """
    feed, go = Feed(), trio.Event()
    failed = False

    def fail(name: str) -> None:
        nonlocal failed
        if name == hook and not failed:
            failed = True
            raise ValueError("a secret")

    async def task() -> None:
        await go.wait()
        fail("start_soon")

    def opened(context: StreamContext) -> None:
        context.start_soon(task)
        fail("open_stream")

    def act(event: Event) -> EventResult:
        if event.data == "2":
            fail("on_event")
        return event

    of_stream: dict[str, Callable[[Any], Any]] = {
        "on_start": lambda head: fail("on_start"),
        "on_event": act,
        "on_end": lambda outcome: fail("on_end"),
    }
    if is_async:
        of_stream = {name: awaiting(function) for name, function in of_stream.items()}
    fails = interceptor(
        "Fails",
        is_async=is_async,
        on_error=on_error,
        on_request=awaiting(lambda request: fail("on_request")),
        on_response=awaiting(lambda head: fail("on_response")),
        opened=opened,
        **of_stream,
    )
    events = b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
    whole = on_error == "skip" or hook == "on_end"
    async with serve(feed.script, fails) as rig:
        feed.send(events)
        client, answer = await rig.start()
        if hook in BEFORE_HEAD and not whole:
            await client.rest(answer)
            assert (answer.status, answer.complete) == (502, True)
            assert answer.all("content-type") == [b"application/json"]
            error = {"type": "interceptor_failed", "message": "the interceptor 'Fails' failed"}
            assert json.loads(answer.body) == {"error": error}
            assert len(rig.upstream.requests) == (hook != "on_request")
        else:
            sent = b"data: 1\n\n" if hook == "on_event" and not whole else events
            await client.read_until(answer, sent)
            go.set()
            if hook == "start_soon":
                await until(lambda: failed)
            if whole:
                feed.end()
            with trio.fail_after(10):
                await client.rest(answer)
            error_sent = error_event("interceptor_failed", "the interceptor 'Fails' failed")
            assert (answer.status, answer.complete) == (200, whole)
            assert answer.body == sent + (b"" if whole else error_sent)
        assert b"secret" not in answer.body
        await rig.everything_is_back()
        assert await rig.outcomes() == ["completed" if whole else "intercepted"]
        assert rig.failures() == [("Fails", hook)]
        (line,) = rig.lines("interceptor_failed")
        assert isinstance(line["exc_info"], ValueError)
        assert line["on_error"] == on_error


async def test_a_failure_of_one_stays_with_its_stream(serve: Serve) -> None:
    """Other streams continue, and the next one is not affected."""
    feed = Feed()

    async def script(peer: Peer) -> None:
        script = stream_of(b"data: bad\n\n") if rig.upstream.requests else feed.script
        await script(peer)

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
    encoding: bytes, serve_once: Serve
) -> None:
    """A stream that a hook cannot see is a 502, and none of its bytes reaches the client."""
    told: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.start_stream(b"Content-Encoding: " + encoding)
        await peer.chunk(b"unseen")
        await peer.wait_closed()

    looks = interceptor("Looks", on_event=passing, on_end=lambda outcome: told.append(outcome))
    async with serve_once(script, looks) as rig:
        answer = await rig.fetch(headers=[("Accept-Encoding", "gzip, br")])
        assert (answer.status, answer.complete) == (502, True)
        error = json.loads(answer.body)["error"]
        assert error["type"] == "upstream_protocol_error"
        assert b"unseen" not in answer.body
        assert rig.upstream.requests[0].all("accept-encoding") == [b"identity"]
        assert await rig.outcomes() == ["upstream_error"]
        assert "an interceptor must read it" in rig.lines("exchange")[0]["error"]
        assert told == ["upstream_error"]


async def test_a_hook_that_holds_the_loop_is_named(serve_once: Serve) -> None:
    """More than 50 ms in a sync hook is a warning; its time is in the metric."""

    def hook(event: Event) -> EventResult:
        time.sleep(0.06)
        return event

    async with serve_once(stream_of(b"data: 1\n\n"), on_event(hook, "Heavy")) as rig:
        assert (await rig.fetch()).complete
        (line,) = rig.lines("interceptor_slow")
        assert (line["interceptor"], line["hook"]) == ("Heavy", "on_event")
        assert line["seconds"] >= 0.06
        assert (rig.metric("weirpool_interceptor_seconds_total", interceptor="Heavy") or 0) >= 0.06


# Metrics


async def test_metrics_of_an_interceptor_are_the_proxys(serve_once: Serve) -> None:
    """On /metrics from the start, labelled with the interceptor; a failing one affects no other."""

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


def test_a_metric_named_as_one_of_the_proxys_is_refused_at_start() -> None:
    class Posing(Interceptor):
        def collectors(self) -> list[Collector]:
            return [Counter("weirpool_exchanges", "Mine.", registry=None)]

    posing = Owner("Posing", Posing()), Posing().collectors()[0]
    with pytest.raises(
        ConfigError,
        match="the metric 'weirpool_exchanges' of 'Posing' has the name of one of the proxy's",
    ):
        Metrics(Pools(), [], collectors=lambda: [posing])


# HTTP/2


async def read_http2(rig: Rig, certificates: Certificates) -> tuple[int, bytes, bool]:
    """Status, body, and whether the stream was whole."""
    async with httpx.AsyncClient(http2=True, verify=certificates.client("h2")) as client:
        body = b""
        try:
            with trio.fail_after(10):
                async with client.stream("GET", rig.proxy.url + "/") as response:
                    assert response.http_version == "HTTP/2"
                    async for data in response.aiter_raw():
                        body += data
        except httpx.RemoteProtocolError:
            return response.status_code, body, False
        return response.status_code, body, True


FAILED = error_event("interceptor_failed", "the interceptor 'Acts' failed")


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("last", "body", "whole", "outcome"),
    [
        ("pass", b"data: pass\n\n", True, "completed"),
        ("end", b"data: bye\n\n", True, "intercepted"),
        ("abort", error_event("aborted", "as asked"), False, "intercepted"),
        ("fail", FAILED, False, "intercepted"),
    ],
)
async def test_actions_over_http2(
    last: str,
    body: bytes,
    whole: bool,
    outcome: str,
    is_async: bool,
    serve_http2: Serve,
    certificates: Certificates,
) -> None:
    """As over HTTP/1.1; a truncated stream is reset."""

    def act(event: Event) -> EventResult:
        if event.data == "abort":
            raise Abort("as asked")
        if event.data == "fail":
            raise ValueError
        results: dict[str, EventResult] = {
            "change": event.replace(data="changed"),
            "drop": None,
            "end": End(Event("bye")),
        }
        return results.get(event.data, event)

    events = b"data: 1\n\ndata: change\n\ndata: drop\n\ndata: %s\n\n" % last.encode()
    acts = on_event_async(awaiting(act), "Acts") if is_async else on_event(act, "Acts")
    async with serve_http2(stream_of(events), acts) as rig:
        expected = b"data: 1\n\ndata: changed\n\n" + body
        assert await read_http2(rig, certificates) == (200, expected, whole)
        assert await rig.outcomes() == [outcome]


async def test_tasks_emit_over_http2(serve_http2: Serve, certificates: Certificates) -> None:
    """The upstream is silent until the emitted events have been sent."""
    feed = Feed()
    texts = [f"tick {number}" for number in range(30)]

    async def task(context: StreamContext) -> None:
        await emitting(*texts)(context)
        feed.send(b"data: up\n\n")
        feed.end()

    async with serve_http2(feed.script, with_task(task)) as rig:
        _, body, whole = await read_http2(rig, certificates)
        assert whole
        ticks = [block for block in body.split(b"\n\n") if block.startswith(b"data: tick")]
        assert ticks == [f"data: {text}".encode() for text in texts]
        assert b"data: up\n\n" in body


# Responses of events


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize("path", ["/abort", "/raise", "/nonsense"])
async def test_a_response_of_events_that_fails_is_truncated(
    path: str, on_error: str, serve: Serve
) -> None:
    """It is its interceptor's failure, named in the log, and never looks whole."""

    async def events() -> Any:
        yield Event("one")
        if path == "/abort":
            raise Abort("enough")
        if path == "/nonsense":
            yield "two"
        raise LookupError("no more")

    async def nobody(peer: Peer) -> None:
        raise AssertionError("the upstream is not asked")

    on_request = awaiting(lambda request: Response(events=events()))
    async with serve(nobody, interceptor("Fails", on_error=on_error, on_request=on_request)) as rig:
        answer = await rig.fetch(path)
        assert not answer.complete
        assert answer.body.startswith(b"data: one\n\nevent: error\n")
        assert (b"enough" in answer.body) is (path == "/abort")
        assert await rig.outcomes() == ["intercepted"]
        assert rig.failures() == ([] if path == "/abort" else [("Fails", "events")])
