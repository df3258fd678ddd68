"""Interceptors of event streams on real sockets: what hooks do, how they fail, what clients see.

Tests with `serve` run with the hub, without it, and with TLS, where the portable writer serves the
client. What a chain does with events in detail is in the unit tests of `interceptors`.
"""

from __future__ import annotations

import json
import socket
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

Task = Callable[[StreamContext], Awaitable[object]]
FAILED = "the interceptor 'Fails' failed"
EVERY_WAY = pytest.mark.parametrize("looks", [False, True])
"""Whether the interceptor sees all events; else bytes pass unparsed."""


def error_event(kind: str, message: str) -> bytes:
    error = json.dumps({"error": {"type": kind, "message": message}}, separators=(",", ":"))
    return b"event: error\ndata: " + error.encode() + b"\n\n"


def passing(event: Event) -> EventResult:
    return event


def raising(error: Exception) -> Any:
    raise error


def with_task(task: Task, *, looks: bool = False, name: str = "Task") -> Any:
    """Starts one task per stream."""
    more = {"on_event": passing} if looks else {}
    return interceptor(name, opened=lambda context: context.start_soon(task, context), **more)


def emitting(*texts: str) -> Task:
    async def task(context: StreamContext) -> None:
        for text in texts:
            await context.emit(Event(text))

    return task


# What a hook does


@pytest.fixture
def serve_http2(log: Log, monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> Serve:
    return Way(certificates=certificates).serve(log, monkeypatch)


async def read_http2(rig: Rig, certificates: Certificates) -> tuple[bytes, bool]:
    """The body, and whether the stream was whole."""
    async with httpx.AsyncClient(http2=True, verify=certificates.client("h2")) as client:
        body = b""
        try:
            with trio.fail_after(10):
                async with client.stream("GET", rig.proxy.url + "/") as response:
                    assert (response.status_code, response.http_version) == (200, "HTTP/2")
                    async for data in response.aiter_raw():
                        body += data
        except httpx.RemoteProtocolError:
            return body, False
        return body, True


def act(event: Event) -> EventResult:
    if event.data in ("abort", "fail"):
        raise Abort("the model has failed") if event.data == "abort" else ValueError("a secret")
    results: dict[str, EventResult] = {
        "drop": None,
        "change": event.replace(json={"was": "change"}, id="three"),
        "several": [Event("before"), event, Event("after", event="extra")],
        "end": End(event, Event("bye")),
    }
    return results.get(event.data, event)


SENT = (
    b": hello\n\nid:1\r\ndata:  1\r\n\r\ndata: drop\n\nevent: e\ndata: change\n\ndata:several\n\n"
    + b"data: pass\n\n" * 500
)
LEAVES = (
    b": hello\n\nid:1\r\ndata:  1\r\n\r\n"
    b'event: e\nid: three\ndata: {"was":"change"}\n\n'
    b"data: before\n\ndata:several\n\nevent: extra\ndata: after\n\n"
) + b"data: pass\n\n" * 500
LAST: dict[str, tuple[bytes, bool, str, str]] = {
    "pass": (b"data: pass\n\ndata: rest\n\n", True, "completed", ""),
    "end": (b"data: end\n\ndata: bye\n\n", True, "intercepted", ""),
    "abort": (error_event("aborted", "the model has failed"), False, "intercepted", "the model has failed"),
    "fail": (error_event("interceptor_failed", FAILED), False, "intercepted", "Fails.on_event: ValueError at "),
}  # fmt: skip


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("last", LAST)
async def test_what_a_hook_does_is_what_leaves(last: str, is_async: bool, serve: Serve) -> None:
    """What passes leaves as the very bytes, every event is counted once, and a stream that is not
    whole is truncated. After a whole one the client's connection stays usable.
    """
    end, whole, outcome, error = LAST[last]
    acts = on_event_async(awaiting(act), "Fails") if is_async else on_event(act, "Fails")
    sent = SENT + b"data: %s\n\ndata: rest\n\n" % last.encode()
    closed = 0

    async def script(peer: Peer) -> None:
        nonlocal closed
        while True:
            await peer.request()
            await peer.start_stream()
            await peer.chunk(sent)
            if last != "pass":
                await peer.wait_closed()
                closed += 1
                return
            await peer.end()

    async with serve(script, acts) as rig:
        client = await rig.client()
        for times in range(1, 3 if whole else 2):
            with trio.fail_after(10):
                await client.send("GET", "/")
                answer = await client.answer()
                assert (answer.body, answer.complete) == (LEAVES + end, whole)
            if last != "pass":
                await until(lambda times=times: closed == times)
            if whole:
                client.next_cycle()
        assert await rig.outcomes(times) == [outcome] * times
        labels = {"route": "/", "outcome": outcome}
        assert rig.metric("weirpool_exchanges_total", **labels) == times
        line = rig.lines("exchange")[0]
        assert line.get("error", "").startswith(error)
        assert line["events"] == 505 + {"pass": 2, "end": 1}.get(last, 0)
        added = 3 if last == "end" else 2
        for action, count in {"changed": 1, "dropped": 1, "added": added}.items():
            assert rig.metric("weirpool_events_total", route="/", action=action) == count * times


@pytest.mark.parametrize("last", LAST)
async def test_what_a_hook_does_over_http2(
    last: str, serve_http2: Serve, certificates: Certificates
) -> None:
    """A truncated stream is reset."""
    acts = (
        on_event_async(awaiting(act), "Fails")
        if last in ("end", "fail")
        else on_event(act, "Fails")
    )
    sent = SENT + b"data: %s\n\ndata: rest\n\n" % last.encode()
    async with serve_http2(stream_of(sent), acts) as rig:
        body, whole = await read_http2(rig, certificates)
        assert (body, whole) == (LEAVES + LAST[last][0], LAST[last][1])
        assert await rig.outcomes() == [LAST[last][2]]


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


@EVERY_WAY
async def test_a_task_emits_while_upstream_is_silent(looks: bool, serve: Serve) -> None:
    """Before the first event and after each: it leaves at once, through later hooks, no buffer held."""
    feed = Feed()
    send, texts = trio.open_memory_channel[str](10)
    seen: list[str] = []

    async def task(context: StreamContext) -> None:
        await context.emit(Event("at once", event="tick"))
        async for text in texts:
            await context.emit(Event(text, event="tick"))

    def see(event: Event) -> Event:
        seen.append(event.data)
        return event

    later = [on_event_async(awaiting(see))] if looks else []
    async with serve(feed.script, with_task(task, looks=looks), *later) as rig:
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
    assert len(seen) == (7 if looks else 0)


@EVERY_WAY
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_emitted_events_split_no_event(end: bytes, looks: bool, serve: Serve) -> None:
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


@EVERY_WAY
async def test_on_complete_adds_to_whole_streams_only(looks: bool, serve: Serve) -> None:
    """Also to one of known length; not to one that breaks off or stops inside an event."""

    async def script(peer: Peer) -> None:
        while True:
            target = (await peer.request()).target
            if target == b"/length":
                lines = b"HTTP/1.1 200 OK", b"Content-Type: text/event-stream", b"Content-Length: 9"
                await peer.send(b"\r\n".join(lines) + b"\r\n\r\ndata: 1\n\n")
                continue
            await peer.start_stream()
            await peer.chunk(b"data: 1\n\n" + (b"data: 2" if target == b"/inside" else b""))
            if target == b"/broken":
                return
            await peer.end()

    more = {"on_event": passing} if looks else {}
    last = interceptor("Last", on_complete=lambda: [Event("last")], **more)
    async with serve(script, last) as rig:
        for target, body in (
            ("/chunks", b"data: 1\n\ndata: last\n\n"),
            ("/length", b"data: 1\n\ndata: last\n\n"),
            ("/inside", b"data: 1\n\ndata: 2"),
        ):
            answer = await rig.fetch(target)
            assert (answer.body, answer.complete) == (body, True)
        answer = await rig.fetch("/broken")
        assert (b"last" in answer.body, answer.complete) == (False, False)


async def test_tasks_emit_over_http2(serve_http2: Serve, certificates: Certificates) -> None:
    """In order; the upstream is silent until the emitted events have been sent."""
    feed, texts = Feed(), [f"tick {number}" for number in range(30)]

    async def task(context: StreamContext) -> None:
        await emitting(*texts)(context)
        feed.send(b"data: up\n\n")
        feed.end()

    async with serve_http2(feed.script, with_task(task)) as rig:
        body, whole = await read_http2(rig, certificates)
        assert whole
        ticks = [block for block in body.split(b"\n\n") if block.startswith(b"data: tick")]
        assert ticks == [f"data: {text}".encode() for text in texts]
        assert b"data: up\n\n" in body


async def test_emit_waits_for_a_slow_client(serve: Serve) -> None:
    """No more is buffered than the kernel and the queue hold."""
    feed, count, text, emitted = Feed(), 60, "x" * 500_000, 0

    async def task(context: StreamContext) -> None:
        nonlocal emitted
        for _ in range(count):
            await context.emit(Event(text))
            emitted += 1
        feed.end()

    async with serve(feed.script, with_task(task)) as rig:
        client, _ = await rig.start()
        before = -1
        while before != emitted or emitted <= MAX_EMITTED:
            before = emitted
            await trio.sleep(0.1)
        assert emitted < count - 10
        read = 0
        with trio.fail_after(20):
            while data := getattr(await client._next(), "data", None):
                read += len(data)
        assert read == count * (len(text) + len("data: \n\n"))


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


@pytest.mark.parametrize("leaves", [False, True])
async def test_earlier_events_have_left_when_a_hook_awaits(leaves: bool, serve: Serve) -> None:
    """Of three events in one read, the hook awaits at the second; other streams are not delayed. If
    the client leaves, the hook is cancelled, and `on_end` may still await.
    """
    go, waits, told, closed = trio.Event(), trio.Event(), list[str](), trio.Event()

    async def hook(event: Event) -> EventResult:
        if event.data == "wait":
            waits.set()
            try:
                await go.wait()
            except trio.Cancelled:
                told.append("cancelled")
                raise
        return event

    async def on_end(outcome: Outcome) -> None:
        await trio.sleep(0.01)
        told.append(outcome)

    slow, fast = b"data: 1\n\ndata: wait\n\ndata: 3\n\n", b"data: fast\n\n" * 100

    async def script(peer: Peer) -> None:
        is_slow = (await peer.request()).target == b"/slow"
        await peer.start_stream()
        await peer.chunk(slow if is_slow else fast)
        if not (is_slow and leaves):
            await peer.end()
        await peer.wait_closed()
        closed.set()

    hooks = interceptor("Waits", is_async=True, on_event=hook, on_end=on_end)
    async with serve(script, hooks) as rig:
        client, answer = await rig.start("/slow")
        with trio.fail_after(10):
            await client.read_until(answer, b"data: 1\n\n")
            await waits.wait()
            other = await rig.fetch("/fast")
            assert (other.body, other.complete) == (fast, True)
            if leaves:
                await client.aclose()
                await closed.wait()
                await until(lambda: len(told) == 3)
                told.remove("completed")  # of the other stream
                assert told == ["cancelled", "client_disconnected"]
            else:
                go.set()
                await client.rest(answer)
                assert (answer.body, answer.complete) == (slow, True)
        assert sorted(await rig.outcomes(2)) == [
            "client_disconnected" if leaves else "completed",
            "completed",
        ]


async def test_an_awaiting_hook_stops_reading(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can send what the kernel's buffers hold; all of it arrives afterwards."""
    limit_upstream_buffers(monkeypatch, socket.SO_RCVBUF, 16384)
    event = b"data: " + b"x" * 65_000 + b"\n\n"
    count, sent = 100, 0
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
        assert sent < count - 10
        go.set()
        with trio.fail_after(10):
            await client.rest(answer)
        assert answer.complete
        assert answer.body == event * count


# The end

ENDINGS: dict[str, tuple[str, str]] = {
    "upstream ends": ("completed", ""),
    "the client leaves": ("client_disconnected", ""),
    "the client resets": ("client_disconnected", ""),
    "upstream breaks off": ("upstream_error", ""),
    "upstream breaks the framing": ("upstream_error", ""),
    "upstream is silent": ("upstream_timeout", "timeouts: {idle: 0.2}"),
    "the exchange takes too long": ("upstream_timeout", "timeouts: {total: 0.3}"),
    "an event is too large": ("upstream_error", "limits: {max_event_bytes: 100}"),
    "the server drains": ("draining", ""),
    "End": ("intercepted", ""),
    "Abort": ("intercepted", ""),
    "a hook fails": ("intercepted", ""),
    "a task fails": ("intercepted", ""),
}
LEAVING = ("the client leaves", "the client resets", "the server drains")


@pytest.mark.parametrize(
    ("how", "serve"),
    [
        *((how, "hub") for how in ENDINGS),
        *((how, way) for how in LEAVING for way in ("no hub", "TLS")),
    ],
    indirect=["serve"],
)
async def test_tasks_end_and_on_end_is_called_once(how: str, serve: Serve) -> None:
    """Tasks of any hook are cancelled, then a sync and an async `on_end` get the log's outcome."""
    feed, go, told = Feed(), trio.Event(), list[str]()
    outcome, route = ENDINGS[how]

    def act(event: Event) -> EventResult:
        if event.data == "act" and how in ("Abort", "a hook fails"):
            raise Abort("as asked") if how == "Abort" else ValueError("as asked")
        return End() if event.data == "act" else event

    async def task(name: str) -> None:
        try:
            if how == "a task fails" and name == "stream":
                await go.wait()
                raise ValueError("as asked")
            await trio.sleep_forever()
        finally:
            told.append(name)

    hears = interceptor(
        "Hears",
        on_request=awaiting(lambda request: request.start_soon(task, "request")),
        on_response=awaiting(lambda head: head.request.start_soon(task, "response")),
        opened=lambda context: context.start_soon(task, "stream"),
        on_event=act,
        on_end=lambda outcome: told.append(f"sync {outcome}"),
    )
    on_end = awaiting(lambda outcome: told.append(f"async {outcome}"))
    hears_too = interceptor("HearsToo", is_async=True, on_end=on_end)
    drains = how == "the server drains"
    async with serve(feed.script, hears, hears_too, route=route, drains=drains) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        assert told == []
        go.set()
        if how == "the client leaves":
            await client.aclose()
        acts: dict[str, Callable[[], object]] = {
            "upstream ends": feed.end,
            "the client resets": client.reset,
            "upstream breaks off": feed.hang_up,
            "upstream breaks the framing": lambda: feed._told.send_nowait(b"no size\r\n"),
            "an event is too large": lambda: feed.send(b"data: " + b"x" * 100 + b"\n\n"),
            **dict.fromkeys(("End", "Abort", "a hook fails"), lambda: feed.send(b"data: act\n\n")),
        }
        acts.get(how, lambda: None)()
        if not drains:
            assert await rig.outcomes() == [outcome]
            await rig.everything_is_back()
    assert await rig.outcomes() == [outcome]
    assert sorted(told[:3]) == ["request", "response", "stream"]
    assert told[3:] == [f"sync {outcome}", f"async {outcome}"]


# Failure

BEFORE_HEAD = ("on_request", "on_response", "open_stream", "on_start")


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@pytest.mark.parametrize(
    ("hook", "is_async"),
    [
        *((hook, False) for hook in (*BEFORE_HEAD, "on_event", "on_end", "start_soon")),
        *((hook, True) for hook in ("on_start", "on_event", "on_end")),
    ],
)
async def test_a_hook_that_fails(
    hook: str, is_async: bool, on_error: str, serve_once: Serve
) -> None:
    """`abort`: 502 before the head, later an error event and a truncated response. `skip`: as if
    the hook had done nothing. One log line with the traceback; the client sees no detail.
    """
    feed, go, failed = Feed(), trio.Event(), list[str]()

    def fail(name: str) -> None:
        if name == hook and not failed:
            failed.append(name)
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
    async with serve_once(feed.script, fails) as rig:
        feed.send(events)
        client, answer = await rig.start()
        if hook in BEFORE_HEAD and not whole:
            await client.rest(answer)
            assert (answer.status, answer.complete) == (502, True)
            assert answer.all("content-type") == [b"application/json"]
            error = {"type": "interceptor_failed", "message": FAILED}
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
            error_sent = error_event("interceptor_failed", FAILED)
            assert (answer.status, answer.complete) == (200, whole)
            assert answer.body == sent + (b"" if whole else error_sent)
        await rig.everything_is_back()
        assert await rig.outcomes() == ["completed" if whole else "intercepted"]
        assert "secret" not in rig.lines("exchange")[0].get("error", "")
        assert rig.failures() == [("Fails", hook)]
        (line,) = rig.lines("interceptor_failed")
        assert isinstance(line["exc_info"], ValueError)
        assert line["on_error"] == on_error


async def test_a_failure_of_one_stays_with_its_stream(serve: Serve) -> None:
    """Other streams continue, and the next one is not affected."""
    feed = Feed()

    async def script(peer: Peer) -> None:
        await (stream_of(b"data: bad\n\n") if rig.upstream.requests else feed.script)(peer)

    fails = on_event(lambda event: raising(ValueError()) if event.data == "bad" else event, "Fails")
    async with serve(script, fails) as rig:
        feed.send(b"data: 1\n\n")
        client, answer = await rig.start()
        await client.read_until(answer, b"data: 1\n\n")
        for _ in range(2):
            bad = await rig.fetch()
            assert (bad.body, bad.complete) == (error_event("interceptor_failed", FAILED), False)
        feed.send(b"data: 2\n\n")
        feed.end()
        with trio.fail_after(10):
            await client.rest(answer)
        assert (answer.body, answer.complete) == (b"data: 1\n\ndata: 2\n\n", True)
        assert await rig.outcomes(3) == ["intercepted", "intercepted", "completed"]


@pytest.mark.parametrize("path", ["/abort", "/raise", "/nonsense"])
@pytest.mark.parametrize(
    ("on_error", "serve"),
    [("abort", "hub"), ("skip", "no hub"), ("skip", "TLS")],
    indirect=["serve"],
)
async def test_failed_event_responses_are_cut(path: str, on_error: str, serve: Serve) -> None:
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
    fails = interceptor("Fails", on_error=on_error, on_request=on_request)
    async with serve(nobody, fails) as rig:
        answer = await rig.fetch(path)
        assert not answer.complete
        assert answer.body.startswith(b"data: one\n\nevent: error\n")
        assert (b"enough" in answer.body) is (path == "/abort")
        assert await rig.outcomes() == ["intercepted"]
        assert rig.failures() == ([] if path == "/abort" else [("Fails", "events")])


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

    failing = interceptor("Failing", collectors=lambda: [Broken()])
    Twin = type("Twin", (Counting,), {})
    async with serve_once(stream_of(b"data: 1\n\n"), failing, Counting, Twin) as rig:
        assert rig.metric("my_requests_total", kind="GET", interceptor="Counting") == 0
        assert (await rig.fetch()).complete
        text = (await rig.fetch("/metrics")).body
        for name in ("Counting", "Twin"):
            assert f'my_requests_total{{interceptor="{name}",kind="GET"}} 1.0'.encode() in text
        assert text.count(b"# TYPE my_requests_total counter") == 1
        assert rig.failures()[0] == ("Failing", "collectors")


def test_a_metric_named_as_one_of_the_proxys_is_refused_at_start() -> None:
    posing = Owner("Posing", Interceptor()), Counter("weirpool_exchanges", "Mine.", registry=None)
    problem = "the metric 'weirpool_exchanges' of 'Posing' has the name of one of the proxy's"
    with pytest.raises(ConfigError, match=problem):
        Metrics(Pools(), [], collectors=lambda: [posing])
