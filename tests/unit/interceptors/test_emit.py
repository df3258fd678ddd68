"""Events that interceptors emit, and their tasks: order, bounds, who sees them, and when a stream
takes no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from support.logs import without_times
from trio.testing import wait_all_tasks_blocked
from unit.interceptors.scripted import (
    BOM,
    AsyncHook,
    Hook,
    OnEvent,
    counted,
    drop,
    errors,
    open_chain,
    say,
    send,
    upper,
)

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    HookError,
    Interceptor,
    Outcome,
    Request,
    Response,
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

    def __init__(self, on_event: OnEvent | None = None, on_error: Any = "abort") -> None:
        self.hook = on_event
        self.on_error = on_error

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        self.context = context
        return StreamInterceptor() if self.hook is None else Hook(self.hook).open_stream(context)


class Talker(Interceptor):
    """Runs a task for its stream."""

    def __init__(self, task: Callable[[StreamContext], Any], on_error: Any = "abort") -> None:
        self.task = task
        self.on_error = on_error

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        context.start_soon(self.task, context)
        return StreamInterceptor()


# --- what leaves
# --------------------------------------------------------------------------------------------------------


async def test_an_emitted_event_leaves_between_two_of_upstreams() -> None:
    """One for each `take_emitted`, in order; counted as added and not as upstream's."""
    speaker = Speaker()
    async with open_chain(("s", speaker), ("upper", Hook(upper))) as stream:
        assert not stream.emitted
        sent, _ = send(stream, bytearray(b"data: a\n\n"))
        await speaker.context.emit(Event("x"))
        await speaker.context.emit(Event("y", event="e", id="7"))
        assert stream.emitted
        sent += [await say(stream), await say(stream)]
        assert not stream.emitted
        sent += send(stream, bytearray(b"data: b\n\n"))[0]
        assert sent == [
            b"data: A\n\n",
            b"data: X\n\n",
            b"event: e\nid: 7\ndata: Y\n\n",
            b"data: B\n\n",
        ]
        assert counted(stream.counts) == (0, 2, 0, 2)
        assert stream.counts.total == 2


async def test_an_emitted_event_does_not_break_an_unfinished_one() -> None:
    """What has come of an event waits in the window."""
    speaker = Speaker()
    async with open_chain(("s", speaker), ("keep", Hook(lambda event: event))) as stream:
        window = bytearray(b"data: a\n\ndata: b\nda")
        sent, rest = send(stream, window)
        await speaker.context.emit(Event("x"))
        sent.append(await say(stream))
        sent += send(stream, bytearray(rest) + b"ta: c\n\n")[0]
    assert b"".join(sent) == b"data: a\n\ndata: x\n\ndata: b\ndata: c\n\n"


@pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
async def test_later_hooks_see_it_and_earlier_ones_do_not(kind: Any) -> None:
    """As if the emitter had returned it."""
    seen: list[tuple[int, str]] = []

    def see(number: int) -> OnEvent:
        def hook(event: Event) -> Event:
            seen.append((number, event.data))
            return event.replace(f"{event.data}{number}")

        return hook

    speakers = [Speaker(), Speaker(see(1)), Speaker(), Speaker()]
    members = [speakers[0], kind(see(0)), speakers[1], speakers[2], kind(see(2)), speakers[3]]
    async with open_chain(*[(str(at), member) for at, member in enumerate(members)]) as stream:
        sent = []
        for number, speaker in enumerate(speakers):
            await speaker.context.emit(Event(f"e{number}:"))
            sent.append(await say(stream))
    assert sent == [b"data: e0:012\n\n", b"data: e1:2\n\n", b"data: e2:2\n\n", b"data: e3:\n\n"]
    assert seen == [(0, "e0:"), (1, "e0:0"), (2, "e0:01"), (2, "e1:"), (2, "e2:")]


@pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
async def test_a_later_hook_does_with_it_what_it_does_with_any(kind: Any) -> None:
    """Dropped, split, ended at, aborted at, failed at and skipped."""

    def answer(event: Event) -> Any:
        if event.data == "fail":
            raise KeyError
        return {"drop": None, "split": [event, Event("more")], "end": End(event, Event("bye"))}.get(
            event.data, event
        )

    speaker = Speaker()
    async with open_chain(("s", speaker), ("k", kind(answer, on_error="skip"))) as stream:
        with capture_logs() as logs:
            for data, left in {
                "drop": b"",
                "split": b"data: split\n\ndata: more\n\n",
                "fail": b"data: fail\n\n",
                "end": b"data: end\n\ndata: bye\n\n",
            }.items():
                assert not stream.ended
                await speaker.context.emit(Event(data))
                assert await say(stream) == left
        assert errors(logs) == [("k", "on_event", "skip")]
        assert (stream.ended, stream.failure) == (True, None)
        assert stream.counts.added == 5


async def test_an_emitted_wire_event_keeps_its_bytes() -> None:
    """An event of upstream's may be emitted while its hook runs, or detached later."""
    kept: list[Event] = []
    speaker = Speaker(lambda event: kept.append(event.detach()))
    async with open_chain(("s", speaker)) as stream:
        assert send(stream, bytearray(b"data:a\n:c\nid:1\n\n"))[0] == []
        await speaker.context.emit(kept[0])
        assert await say(stream) == b"data:a\n:c\nid:1\n\n"


async def test_an_async_hook_may_emit_the_event_that_it_holds() -> None:
    """It leaves after the hook has answered, when its window has moved on."""

    class Stream(AsyncStreamInterceptor):
        def __init__(self, context: StreamContext) -> None:
            self.context = context

        async def on_event(self, event: Event) -> Event:
            await self.context.emit(event)
            return event

    class Repeats(Interceptor):
        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return Stream(context)

    async with open_chain(("r", Repeats())) as stream:
        window = bytearray(b"data: a\n\n")
        send(stream, window)
        await stream.run_async()
        assert send(stream, window)[0] == [b"data: a\n\n"]
        window[:] = b"SECRET!!!"
        assert await say(stream) == b"data: a\n\n"


async def test_a_kept_event_of_upstreams_cannot_be_emitted(autojump_clock: object) -> None:
    """StaleEvent in the task that tries; the stream is unaffected."""
    kept: list[Event] = []
    speaker = Speaker(lambda event: kept.append(event) or event)  # type: ignore[func-returns-value]
    async with open_chain(("s", speaker)) as stream:
        send(stream, bytearray(b"data: a\n\n"))
        for _ in range(MAX_EMITTED + 1):
            with trio.fail_after(5), pytest.raises(StaleEvent):
                await speaker.context.emit(kept[0])
        assert not stream.emitted
        with trio.fail_after(5):
            await speaker.context.emit(Event("x"))
        assert await say(stream) == b"data: x\n\n"


@pytest.mark.parametrize("nonsense", [None, "data", b"data: x\n\n", [Event("x")], End()])
async def test_only_an_event_can_be_emitted(nonsense: Any) -> None:
    """The mistake raises where it is made."""
    speaker = Speaker()
    async with open_chain(("s", speaker)) as stream:
        with pytest.raises(
            TypeError, match=rf"^emit\(\) takes an Event, not {type(nonsense).__name__}$"
        ):
            await speaker.context.emit(nonsense)
        assert not stream.emitted


@pytest.mark.parametrize(
    "others", [[], [Hook(lambda event: event)]], ids=["alone", "before another hook"]
)
@pytest.mark.parametrize("hook", [None, lambda event: event], ids=["without a hook", "with a hook"])
@pytest.mark.parametrize("on_error", ["abort", "skip"])
async def test_an_emitted_event_that_cannot_be_written_is_its_emitters_failure(
    hook: Any, others: list[Interceptor], on_error: str
) -> None:
    """Named so, with and without other hooks in the chain."""
    speaker = Speaker(hook, on_error)
    members = [
        ("before", Hook(lambda event: event)),
        ("s", speaker),
        *[("other", other) for other in others],
    ]
    for chain in (members, members[1:]):
        async with open_chain(*chain) as stream:
            await speaker.context.emit(Event(json=object()))
            with capture_logs() as logs:
                assert await say(stream) == b""
            assert [(name, policy) for name, _, policy in errors(logs)] == [("s", on_error)]
            if on_error == "abort":
                assert isinstance(stream.failure, HookError)
                assert stream.failure.interceptor == "s"
            else:
                assert stream.failure is None
                await speaker.context.emit(Event("x"))
                assert await say(stream) == b"data: x\n\n"


# --- the BOM
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(len(BOM) + 2))
async def test_a_bom_after_an_emitted_event_is_not_sent(cut: int) -> None:
    """It would no longer be the stream's first bytes, and so part of a field's name."""
    data = BOM + b"data: a\n\n"
    seen: list[str] = []
    speaker = Speaker()
    async with open_chain(
        ("s", speaker), ("see", Hook(lambda event: seen.append(event.data) or event))
    ) as stream:  # type: ignore[func-returns-value]
        sent, rest = send(stream, bytearray(data[:cut]))
        await speaker.context.emit(Event("x"))
        sent.append(await say(stream))
        sent += send(stream, bytearray(rest) + data[cut:])[0]
    whole = b"".join(sent)
    assert whole == (
        b"data: x\n\ndata: a\n\n" if cut < len(BOM) else BOM + b"data: x\n\ndata: a\n\n"
    )
    assert seen == ["x", "a"]


async def test_a_bom_stays_when_what_was_emitted_before_it_was_dropped() -> None:
    """Nothing has left yet, so it is still the stream's."""
    speaker = Speaker()
    drop_x = Hook(lambda event: None if event.data == "x" else event)
    async with open_chain(("s", speaker), ("d", drop_x)) as stream:
        await speaker.context.emit(Event("x"))
        assert await say(stream) == b""
        assert send(stream, bytearray(BOM + b"data: a\n\n"))[0] == [BOM + b"data: a\n\n"]


# --- bounds and the end
# -------------------------------------------------------------------------------------------------


async def test_emit_waits_while_many_are_on_their_way() -> None:
    """`MAX_EMITTED` are kept; the next one waits until one has left, and all leave in order."""
    speaker = Speaker()
    done: list[int] = []

    async def talk() -> None:
        for number in range(MAX_EMITTED + 3):
            await speaker.context.emit(Event(str(number)))
            done.append(number)

    async with open_chain(("s", speaker)) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        await wait_all_tasks_blocked()
        assert len(done) == MAX_EMITTED
        sent = []
        for taken in range(1, MAX_EMITTED + 4):
            sent.append(await say(stream))
            await wait_all_tasks_blocked()
            assert len(done) == min(MAX_EMITTED + taken, MAX_EMITTED + 3)
    assert sent == [b"data: %d\n\n" % number for number in range(MAX_EMITTED + 3)]


async def test_all_emitters_of_a_stream_share_the_bound() -> None:
    """A slow client keeps no more emitted events than that."""
    speakers = [Speaker(), Speaker()]
    async with (
        open_chain(("a", speakers[0]), ("b", speakers[1])) as stream,
        trio.open_nursery() as nursery,
    ):
        for number in range(MAX_EMITTED * 2):
            nursery.start_soon(speakers[number % 2].context.emit, Event("x"))
        await wait_all_tasks_blocked()
        kept = 0
        while stream.emitted:
            await say(
                stream
            )  # without a checkpoint between, so that no other emitter takes the room
            kept += 1
        assert kept == MAX_EMITTED
        await wait_all_tasks_blocked()
        assert stream.emitted
        nursery.cancel_scope.cancel()


async def test_a_cancelled_emit_takes_no_room() -> None:
    """A deadline around a waiting `emit` has no side effect, and nothing of it is sent."""
    speaker = Speaker()
    async with open_chain(("s", speaker)) as stream:
        for number in range(MAX_EMITTED):
            await speaker.context.emit(Event(str(number)))
        with trio.move_on_after(0) as scope:
            await speaker.context.emit(Event("late"))
        assert scope.cancelled_caught
        sent = [await say(stream) for _ in range(MAX_EMITTED)]
        assert b"data: late\n\n" not in sent
        assert not stream.emitted
        with trio.fail_after(5):
            for _ in range(MAX_EMITTED):
                await speaker.context.emit(Event("x"))


async def test_the_sender_is_notified_of_each_emission() -> None:
    """`on_emit` runs at once, in the emitting task, when the event is there to be taken."""
    speaker = Speaker()
    async with open_chain(("s", speaker)) as stream:
        told: list[bool] = []
        stream.queue.on_emit = lambda: told.append(stream.emitted)
        await speaker.context.emit(Event("x"))
        assert told == [True]


async def test_a_stream_that_is_over_takes_no_events() -> None:
    """StreamOver after `aclose`, at once and every time; waiting callers get it, too."""
    speaker = Speaker()
    over: list[int] = []

    async def talk(number: int) -> None:
        try:
            await speaker.context.emit(Event(str(number)))
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
                await speaker.context.emit(Event("x"))


async def test_emit_fails_where_nothing_can_be_sent() -> None:
    """For a body that is not a stream of events, or one that is encoded, and for a context without a
    stream.
    """
    speaker = Speaker()
    async with open_chain(("s", speaker)) as stream:
        stream.queue.accepts = False
        with pytest.raises(StreamOver):
            await speaker.context.emit(Event("x"))
        assert not stream.emitted
    with pytest.raises(StreamOver):
        await StreamContext(Request()).emit(Event("x"))


# --- tasks
# --------------------------------------------------------------------------------------------------------------


def test_a_tasks_events_leave_in_a_scripted_stream() -> None:
    """`run_chain` runs tasks as the proxy does."""

    async def talk(context: StreamContext) -> None:
        for word in ("x", "y"):
            await context.emit(Event(word))

    result = run_chain([Talker(talk), Hook(upper)], [b"data: a\n\n", b"data: b\n\n"])
    assert (result.output, result.counts.added) == (
        b"data: A\n\ndata: X\n\ndata: Y\n\ndata: B\n\n",
        2,
    )


def test_what_is_emitted_after_an_unfinished_end_leaves_the_stream_readable() -> None:
    """The last event lacks its empty line, so that a client discards it."""
    said = trio.Event()

    def tail(event: Event) -> Event:
        if event.data == "tail":
            said.set()
        return event

    async def talk(context: StreamContext) -> None:
        await said.wait()
        await context.emit(Event("x"))

    result = run_chain([Talker(talk), Hook(tail)], [b"data: a\n\ndata: tail"])
    assert b"tail" + b"data: x" not in result.output


def test_a_task_ends_with_its_stream() -> None:
    """Cancelled when that is over: it can tidy up, and cannot hold the exchange."""
    calls: list[str] = []

    async def forever(context: StreamContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            calls.append("cancelled")

    assert run_chain([Talker(forever), Talker(forever)], [b"data: a\n\n"]).output == b"data: a\n\n"
    assert calls == ["cancelled"] * 2


async def fails_for(context: StreamContext) -> None:
    raise KeyError("in the task")


def test_a_task_that_fails_ends_the_exchange_by_its_interceptors_name() -> None:
    """As a hook that fails would; the log has its traceback."""
    with (
        capture_logs() as logs,
        pytest.raises(HookError, match=r"^Talker\.start_soon: KeyError: 'in the task'$"),
    ):
        run_chain([Hook(upper), Talker(fails_for)], [b"data: a\n\n"])
    assert errors(logs) == [("Talker", "start_soon", "abort")]


def test_a_task_that_fails_can_be_skipped() -> None:
    """With `on_error = "skip"` it is logged, and the stream continues."""
    with capture_logs() as logs:
        result = run_chain(
            [Talker(fails_for, "skip"), Hook(upper)], [b"data: a\n\n", b"data: b\n\n"]
        )
    assert (result.output, result.failure) == (b"data: A\n\ndata: B\n\n", None)
    assert errors(logs) == [("Talker", "start_soon", "skip")]


@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_a_task_may_abort(on_error: str) -> None:
    """Whatever `on_error`, with its reason."""

    async def aborts(context: StreamContext) -> None:
        raise Abort("enough")

    with capture_logs() as logs, pytest.raises(StreamAborted, match=r"^enough$"):
        run_chain([Talker(aborts, on_error)], [b"data: a\n\n"])
    assert without_times(logs) == []


async def fails() -> None:
    raise KeyError("in the task")


class Starts(Interceptor):
    """Runs a task that fails, from one of its hooks."""

    def __init__(self, where: str = "") -> None:
        self.where = where

    async def on_request(self, request: Request) -> Response | None:
        if self.where == "on_request":
            request.start_soon(fails)
        return None

    async def on_response(self, head: ResponseHead) -> Response | None:
        if self.where == "on_response":
            head.request.start_soon(fails)
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        if self.where == "open_stream":
            context.start_soon(fails)
        if self.where == "open_stream, by its request":
            context.request.start_soon(fails)
        return StreamInterceptor()


class SkipsAll(Starts):
    on_error = "skip"


@pytest.mark.parametrize(
    "where", ["on_request", "on_response", "open_stream", "open_stream, by its request"]
)
def test_a_task_is_its_interceptors_wherever_it_was_started(where: str) -> None:
    """Its failure names, and obeys, the interceptor whose hook it was, also when others have been
    asked before and after it.
    """
    request = Request()
    run_request([SkipsAll()], request)
    chain = [SkipsAll(), Starts(where), SkipsAll()]
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
    """A request that somebody made for themselves has none."""
    for start in (Request().start_soon, StreamContext(Request()).start_soon):
        with pytest.raises(RuntimeError, match="belongs to no exchange"):
            start(trio.sleep, 1)


async def test_a_whole_conversation_stays_in_order() -> None:
    """A hundred events of upstream's and as many of a task's, through an async hook and a dropping one: each in its order,
    and between whole events."""
    speaker = Speaker()
    async with open_chain(
        ("s", speaker),
        ("a", AsyncHook(upper)),
        ("d", Hook(lambda e: drop(e) if e.data == "U7" else e)),
    ) as stream:
        output = b""
        for number in range(100):
            output += await feed_one(stream, b"data: u%d\n\n" % number)
            await speaker.context.emit(Event(f"e{number}"))
            output += await say(stream)
    blocks = output.split(b"\n\n")[:-1]
    assert [block for block in blocks if b"U" in block] == [
        b"data: U%d" % number for number in range(100) if number != 7
    ]
    assert [block for block in blocks if b"E" in block] == [
        b"data: E%d" % number for number in range(100)
    ]


async def feed_one(stream: Any, event: bytes) -> bytes:
    window = bytearray(event)
    sent, rest = send(stream, window)
    assert (sent, bytes(rest), stream.awaiting) == ([], event, True)
    await stream.run_async()
    return b"".join(send(stream, window)[0])
