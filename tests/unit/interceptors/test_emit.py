"""Events that interceptors emit, and their tasks: where events go, bounds, and when a stream takes
no more. What later hooks do with them is in `test_any_chain`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import awaiting, interceptor
from support.logs import without_times
from trio.testing import wait_all_tasks_blocked
from unit.interceptors.scripted import BOM, Hook, emitted, errors, open_chain, send, upper

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    HookError,
    Interceptor,
    Outcome,
    Request,
    ResponseHead,
    StaleEvent,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
    StreamOver,
)
from interceptors.emitting import MAX_EMITTED
from interceptors.testing import run_chain, run_request, run_response


class Speaker(Interceptor):
    """Keeps the context of its stream, so that a test can emit."""

    def __init__(self, stream: StreamInterceptor | AsyncStreamInterceptor | None = None) -> None:
        self.stream = stream or StreamInterceptor()

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        self.emit = context.emit
        return self.stream


def talker(task: Callable[[StreamContext], Any], on_error: str = "abort") -> Interceptor:
    """Runs a task for its stream."""
    return interceptor(
        "Talker", on_error=on_error, opened=lambda context: context.start_soon(task, context)
    )()


# Where they go


async def test_an_emitted_event_does_not_break_an_unfinished_one() -> None:
    """What has come of an event waits in the window."""
    speaker = Speaker()
    async with open_chain(("s", speaker), ("keep", Hook(lambda event: event))) as stream:
        sent, rest = send(stream, bytearray(b"data: a\n\ndata: b\nda"))
        assert not stream.emitted
        await speaker.emit(Event("x"))
        assert stream.emitted
        sent.append(await emitted(stream))
        sent += send(stream, bytearray(rest) + b"ta: c\n\n")[0]
    assert b"".join(sent) == b"data: a\n\ndata: x\n\ndata: b\ndata: c\n\n"


@pytest.mark.parametrize("cut", range(len(BOM) + 2))
@pytest.mark.parametrize("is_dropped", [False, True])
async def test_a_bom_after_an_emitted_event_is_not_sent(cut: int, is_dropped: bool) -> None:
    """It would be part of a field's name; where the event was dropped it is still the stream's."""
    data, seen, speaker = BOM + b"data: a\n\n", list[str](), Speaker()

    def see(event: Event) -> Event | None:
        seen.append(event.data)
        return None if is_dropped and event.data == "x" else event

    async with open_chain(("s", speaker), ("see", Hook(see))) as stream:
        sent, rest = send(stream, bytearray(data[:cut]))
        await speaker.emit(Event("x"))
        sent.append(await emitted(stream))
        sent += send(stream, bytearray(rest) + data[cut:])[0]
    mine = b"" if is_dropped else b"data: x\n\n"
    bom_first = BOM + mine if is_dropped or cut >= len(BOM) else mine
    assert b"".join(sent) == bom_first + b"data: a\n\n"
    assert seen == ["x", "a"]


async def test_an_async_hook_may_emit_the_event_that_it_holds() -> None:
    """It leaves with its bytes after the hook has answered, when its window has moved on."""

    class Repeats(AsyncStreamInterceptor):
        async def on_event(self, event: Event) -> Event:
            await speaker.emit(event)
            return event

    speaker = Speaker(Repeats())
    async with open_chain(("r", speaker)) as stream:
        window = bytearray(b"data:a\n:c\n\n")
        send(stream, window)
        await stream.run_async()
        assert send(stream, window)[0] == [b"data:a\n:c\n\n"]
        window[:] = b"SECRET!!!!!"
        assert await emitted(stream) == b"data:a\n:c\n\n"


@pytest.mark.parametrize("nonsense", [None, "data", b"data: x\n\n", [Event("x")], End(), "stale"])
async def test_what_cannot_be_emitted_takes_no_room(nonsense: Any, autojump_clock: object) -> None:
    """The mistake raises where it is made; a kept event of upstream's is stale."""
    kept: list[Event] = []
    problem: Any = TypeError
    expected = rf"^emit\(\) takes an Event, not {type(nonsense).__name__}$"
    speaker = Speaker()
    async with open_chain(("s", speaker), ("keeps", Hook(kept.append))) as stream:
        if nonsense == "stale":
            send(stream, bytearray(b"data: a\n\n"))
            nonsense, problem, expected = kept[0], StaleEvent, "detach"
        for _ in range(MAX_EMITTED + 1):
            with trio.fail_after(5), pytest.raises(problem, match=expected):
                await speaker.emit(nonsense)
        assert not stream.emitted
        with trio.fail_after(5):
            await speaker.emit(Event("x"))


# Bounds and the end


async def test_emit_waits_while_many_are_on_their_way() -> None:
    """All emitters of a stream share `MAX_EMITTED`. A cancelled one takes no room."""
    speakers, done, sent = [Speaker(), Speaker()], list[int](), list[bytes]()

    async def talk() -> None:
        for number in range(MAX_EMITTED + 3):
            await speakers[number % 2].emit(Event(str(number)))
            done.append(number)

    async with (
        open_chain(("a", speakers[0]), ("b", speakers[1])) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(talk)
        await wait_all_tasks_blocked()
        assert len(done) == MAX_EMITTED
        with trio.move_on_after(0) as scope:
            await speakers[0].emit(Event("late"))
        assert scope.cancelled_caught
        for taken in range(1, MAX_EMITTED + 4):
            sent.append(await emitted(stream))
            await wait_all_tasks_blocked()
            assert len(done) == min(MAX_EMITTED + taken, MAX_EMITTED + 3)
        assert not stream.emitted
    assert sent == [b"data: %d\n\n" % number for number in range(MAX_EMITTED + 3)]


async def test_the_sender_is_notified_of_each_emission() -> None:
    """`on_emit` runs at once, in the emitting task, when the event is there to be taken."""
    speaker, told = Speaker(), list[bool]()
    async with open_chain(("s", speaker)) as stream:
        stream.queue.on_emit = lambda: told.append(stream.emitted)
        await speaker.emit(Event("x"))
        assert told == [True]


async def test_a_stream_that_is_over_takes_no_events() -> None:
    """StreamOver at once and every time, also for callers that wait, and where nothing can be sent."""
    speaker, over = Speaker(), list[int]()

    async def talk(number: int) -> None:
        try:
            await speaker.emit(Event(str(number)))
        except StreamOver:
            over.append(number)

    async with open_chain(("s", speaker)) as stream, trio.open_nursery() as nursery:
        for number in range(MAX_EMITTED + 3):
            nursery.start_soon(talk, number)
        await wait_all_tasks_blocked()
        await stream.aclose(Outcome.CLIENT_DISCONNECTED)
        with trio.fail_after(5):
            await wait_all_tasks_blocked()
        assert len(over) == 3
        for _ in range(MAX_EMITTED + 1):
            with trio.fail_after(5), pytest.raises(StreamOver, match="has ended"):
                await speaker.emit(Event("x"))
    async with open_chain(("s", speaker)) as stream:
        stream.queue.accepts = False
        with pytest.raises(StreamOver):
            await speaker.emit(Event("x"))
        assert not stream.emitted
    with pytest.raises(StreamOver):
        await StreamContext(Request()).emit(Event("x"))


# Tasks


def test_a_tasks_events_leave_in_a_scripted_stream() -> None:
    """`run_chain` runs tasks as the proxy does. Nothing follows an unfinished event."""
    seen = trio.Event()

    async def talk(context: StreamContext) -> None:
        for word in ("x", "y"):
            await context.emit(Event(word))
        await seen.wait()
        await context.emit(Event("late"))

    def see(event: Event) -> Event:
        if event.data == "tail":
            seen.set()
        return upper(event)

    result = run_chain([talker(talk), Hook(see)], [b"data: a\n\n", b"data: b\n\ndata: tail"])
    assert result.output == b"data: A\n\ndata: X\n\ndata: Y\n\ndata: B\n\ndata: TAIL\n"
    assert result.counts.added == 2


def test_a_task_ends_with_its_stream() -> None:
    calls: list[str] = []

    async def forever(context: StreamContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            calls.append("cancelled")

    assert run_chain([talker(forever), talker(forever)], [b"data: a\n\n"]).output == b"data: a\n\n"
    assert calls == ["cancelled"] * 2


@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_a_task_that_fails_is_as_a_hook_that_fails(on_error: str) -> None:
    """Named in the log, and the end of the exchange unless skipped; `Abort` always ends it."""

    async def fails(context: StreamContext) -> None:
        raise KeyError("in the task")

    async def aborts(context: StreamContext) -> None:
        raise Abort("enough")

    with capture_logs() as logs:
        chain = [Hook(upper), talker(fails, on_error)]
        if on_error == "skip":
            assert run_chain(chain, [b"data: a\n\n"]).output == b"data: A\n\n"
        else:
            expected = r"^Talker\.start_soon: KeyError: 'in the task'$"
            with pytest.raises(HookError, match=expected):
                run_chain(chain, [b"data: a\n\n"])
    assert errors(logs) == [("Talker", "start_soon", on_error)]
    with capture_logs() as logs, pytest.raises(StreamAborted, match=r"^enough$"):
        run_chain([talker(aborts, on_error)], [b"data: a\n\n"])
    assert without_times(logs) == []


@pytest.mark.parametrize(
    "where", ["on_request", "on_response", "open_stream", "open_stream, by its request"]
)
def test_a_task_is_its_interceptors_wherever_it_was_started(where: str) -> None:
    """Also when others, which skip failures, have been asked before and after it."""

    async def fails() -> None:
        raise KeyError("in the task")

    def hooks(starts: str) -> dict[str, Any]:
        def starting(hook: str, starter: Callable[[Any], Any]) -> Callable[[Any], None]:
            return lambda given: starter(given).start_soon(fails) if hook == starts else None

        opened = starting("open_stream", lambda context: context)
        by_request = starting("open_stream, by its request", lambda context: context.request)
        return {
            "on_request": awaiting(starting("on_request", lambda request: request)),
            "on_response": awaiting(starting("on_response", lambda head: head.request)),
            "opened": lambda context: (opened(context), by_request(context)),
        }

    skips = interceptor("Skips", on_error="skip", **hooks(""))
    chain, request = [skips(), interceptor("Starts", **hooks(where))(), skips()], Request()
    run_request([skips()], request)
    with (
        capture_logs(),
        pytest.raises(HookError, match=r"^Starts\.start_soon: KeyError: 'in the task'$"),
    ):
        if where == "on_request":
            run_request(chain, request)
        elif where == "on_response":
            run_response(chain, ResponseHead(200, [], request))
        else:
            run_chain(chain, [b"data: a\n\n"], request=request)


def test_a_task_needs_an_exchange() -> None:
    for start in (Request().start_soon, StreamContext(Request()).start_soon):
        with pytest.raises(RuntimeError, match="belongs to no exchange"):
            start(trio.sleep, 1)
