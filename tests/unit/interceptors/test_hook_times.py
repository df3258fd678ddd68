"""Who is called takes time: it is counted by interceptor, and a hook that has held the loop is
named. The clock is scripted.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from unit.interceptors.scripted import AsyncHook, Hook, OnEvent, feed, head, keep

from interceptors import (
    AsyncStreamInterceptor,
    End,
    Event,
    HookError,
    Interceptor,
    Outcome,
    Request,
    Response,
    ResponseHead,
    StreamContext,
    StreamInterceptor,
)
from interceptors.chain import Chain
from interceptors.hooks import HOLD_S, WAIT_S, Owner
from pools import Pools


class Clock:
    """`perf_counter`, which moves only when somebody passes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("passage", "hooks", "chain"):
        monkeypatch.setattr(f"interceptors.{module}.perf_counter", clock)
    return clock


def taking(clock: Clock, seconds: float, hook: OnEvent = keep) -> OnEvent:
    def slow(event: Event) -> Any:
        clock.passes(seconds)
        return hook(event)

    return slow


def slow_ones(logs: list[Any]) -> list[tuple[str, str, float, str]]:
    return [
        (log["interceptor"], log["hook"], log["seconds"], log["log_level"])
        for log in logs
        if log["event"] == "interceptor_slow"
    ]


async def run(owners: list[Owner], *chunks: bytes, json: bytes | None = None) -> bytes | None:
    """One whole stream, or one JSON body."""
    pools, request = Pools(), Request()
    async with pools.open_scope() as scope:
        stream = Chain(owners).open_stream(
            request, pools.json, scope, 1 << 20, json=json is not None
        )
        try:
            await stream.start(head())
            return (
                await feed(stream, chunks)
                if json is None
                else await stream.process_body(bytearray(json))
            )
        finally:
            await stream.aclose(Outcome.COMPLETED)


def raises(event: Event) -> Event:
    raise KeyError("in the hook")


# How an event comes to a hook decides which of the stream's ways it goes.
WAYS: dict[str, list[Interceptor]] = {
    "first": [],
    "behind another": [Hook(keep)],
    "behind a list": [Hook(lambda event: [event])],
    "behind an await": [AsyncHook(keep)],
}


@pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
@pytest.mark.parametrize("others", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("hook", "later_calls"),
    [
        (keep, 1),
        (lambda event: event.replace("x"), 1),
        (lambda event: None, 0),
        (lambda event: [event, event], 2),
        (lambda event: End(event), 1),
        (raises, 1),
    ],
    ids=["passes", "changes", "drops", "lists", "ends", "raises"],
)
async def test_each_interceptors_time_is_its_own(
    clock: Clock, kind: Any, others: list[Interceptor], hook: OnEvent, later_calls: int
) -> None:
    """Whatever a hook returns, or raises, wherever it stands."""
    owners = [
        *[Owner("other", other) for other in others],
        Owner("slow", kind(taking(clock, 0.02, hook), on_error="skip")),
        Owner("later", Hook(taking(clock, 0.003))),
    ]
    with capture_logs():
        await run(owners, b"data: a\n\n")
    assert [owner.seconds for owner in owners[:-2]] == [0.0] * len(others)
    assert owners[-2].seconds == pytest.approx(0.02)
    assert owners[-1].seconds == pytest.approx(0.003 * later_calls)


@pytest.mark.parametrize("others", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("hook", [keep, raises], ids=["passes", "raises"])
async def test_a_synchronous_hook_that_holds_the_loop_is_named(
    clock: Clock, others: list[Interceptor], hook: OnEvent
) -> None:
    """More than 50 ms, while every other stream stands still."""
    owners = [
        *[Owner("other", other) for other in others],
        Owner("slow", Hook(taking(clock, 0.0512, hook), "skip")),
    ]
    with capture_logs() as logs:
        await run(owners, b"data: a\n\ndata: b\n\n")
    assert slow_ones(logs) == [("slow", "on_event", 0.051, "warning")] * 2


async def test_a_hook_that_takes_no_longer_is_not_named(clock: Clock) -> None:
    """Nor one of many that take long only together."""
    owners = [Owner(str(at), Hook(taking(clock, HOLD_S / 2))) for at in range(5)]
    with capture_logs() as logs:
        await run(owners, b"data: a\n\n" * 10)
    assert slow_ones(logs) == []
    assert [owner.seconds for owner in owners] == pytest.approx([HOLD_S * 5] * 5)


def waits_of(logs: list[Any]) -> list[tuple[str, str, float, str]]:
    return [
        (log["interceptor"], log["hook"], log["seconds"], log["log_level"])
        for log in logs
        if log["event"] == "interceptor_waited"
    ]


@pytest.mark.parametrize("wraps", [False, True], ids=["a coroutine", "an awaitable"])
@pytest.mark.parametrize("waits", [0.9, 7.0])
async def test_an_async_hook_that_waits_holds_nothing(
    clock: Clock, waits: float, wraps: bool
) -> None:
    """While it waits the others run."""

    class Other:
        def __init__(self, running: Any) -> None:
            self.running = running

        def __await__(self) -> Any:
            return self.running.__await__()

    async def wait() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(elsewhere)
        clock.passes(0.01)
        await trio.lowlevel.checkpoint()
        clock.passes(0.02)

    async def elsewhere() -> None:
        clock.passes(waits)

    owner = Owner("waits", AsyncHook(keep, before=wait))
    with capture_logs() as logs:
        if wraps:
            await owner.call("on_event", Other(wait()))
        else:
            await run([owner], b"data: a\n\n")
    assert (owner.seconds, owner.waited) == (pytest.approx(0.03), pytest.approx(waits))
    assert slow_ones(logs) == []
    assert waits_of(logs) == ([("waits", "on_event", waits, "warning")] if waits > WAIT_S else [])


async def test_an_async_hook_that_computes_between_two_awaits_holds_the_loop(clock: Clock) -> None:
    """The longest step counts: two of 40 ms are not one of 80."""

    async def compute(*steps: float) -> None:
        for step in steps:
            clock.passes(step)
            await trio.lowlevel.checkpoint()

    owner = Owner("computes", Interceptor())
    with capture_logs() as logs:
        await owner.call("on_request", compute(0.04, 0.04))
        await owner.call("on_request", compute(0.04, 0.06, 0.01))
    assert (owner.seconds, owner.waited) == (pytest.approx(0.19), 0.0)
    assert slow_ones(logs) == [("computes", "on_request", 0.06, "warning")]


async def test_a_task_holds_the_loop_and_may_wait(clock: Clock) -> None:
    """What `start_soon` was given runs for as long as its stream: only its steps count."""

    async def task() -> None:
        clock.passes(0.07)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(elsewhere)

    async def elsewhere() -> None:
        clock.passes(7.0)

    owner = Owner("starts", Interceptor())
    with capture_logs() as logs:
        assert await owner.run_task(task, ()) is None
    assert (owner.seconds, owner.waited) == (pytest.approx(0.07), 0.0)
    assert slow_ones(logs) == [("starts", "start_soon", 0.07, "warning")]
    assert waits_of(logs) == []


async def test_what_an_async_hook_raises_and_catches_is_its_own(autojump_clock: object) -> None:
    """Stepped or awaited."""
    seen: list[Any] = []

    async def hook() -> str:
        with trio.move_on_after(1) as scope:
            await trio.sleep_forever()
        seen.append(scope.cancelled_caught)
        try:
            with trio.fail_after(1):
                await trio.sleep(5)
        except trio.TooSlowError as error:
            seen.append(type(error))
        send, receive = trio.open_memory_channel[int](1)
        await send.send(3)
        seen.append(await receive.receive())
        return "done"

    owner = Owner("hook", Interceptor())
    assert await owner.call("on_request", hook()) == "done"
    assert seen == [True, trio.TooSlowError, 3]

    async def fails() -> None:
        await trio.sleep(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await owner.call("on_request", fails())
    with trio.move_on_after(1) as scope:
        await owner.call("on_request", trio.sleep_forever())
    assert scope.cancelled_caught
    with pytest.raises(TypeError, match="returned int, expected something to await"):
        await owner.call("on_request", 3)  # type: ignore[arg-type]


async def test_a_hook_that_is_skipped_over_costs_nothing(clock: Clock) -> None:
    """Comments, and hooks that are not overridden."""

    class Opens(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return StreamInterceptor()

    owners = [Owner("a", Hook(taking(clock, 1.0))), Owner("b", Opens())]
    await run(owners, b": c\n\n" * 10)
    assert [owner.seconds for owner in owners] == [0.0, 0.0]


class Takes(Interceptor):
    """Takes time in one of its hooks, and optionally fails there."""

    def __init__(
        self, clock: Clock, where: str, *, is_async: bool = False, fails: bool = False
    ) -> None:
        self.clock, self.where, self.is_async, self.fails = clock, where, is_async, fails
        self.on_error = "skip"

    def take(self, where: str) -> None:
        if where == self.where:
            self.clock.passes(0.25)
            if self.fails:
                raise KeyError(where)

    async def on_request(self, request: Request) -> Response | None:
        self.take("on_request")
        return None

    async def on_response(self, head: ResponseHead) -> Response | None:
        self.take("on_response")
        return None

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        self.take("open_stream")
        return _AsyncTakesStream(self) if self.is_async else _TakesStream(self)


class _TakesStream(StreamInterceptor):
    def __init__(self, takes: Takes) -> None:
        self.takes = takes

    def on_start(self, head: ResponseHead) -> None:
        self.takes.take("on_start")

    def on_end(self, outcome: Outcome) -> None:
        self.takes.take("on_end")


class _AsyncTakesStream(AsyncStreamInterceptor):
    def __init__(self, takes: Takes) -> None:
        self.takes = takes

    async def on_start(self, head: ResponseHead) -> None:
        self.takes.take("on_start")

    async def on_end(self, outcome: Outcome) -> None:
        self.takes.take("on_end")


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize(
    ("where", "is_async"),
    [
        ("open_stream", False), ("on_start", False), ("on_end", False), ("on_start", True), ("on_end", True),
        ("on_request", True), ("on_response", True),
    ],
)  # fmt: skip
async def test_the_time_of_every_hook_is_counted(
    clock: Clock, where: str, is_async: bool, fails: bool
) -> None:
    """Also where it fails; one that has held the loop is named."""
    takes = Takes(clock, where, is_async=is_async, fails=fails)
    owners = [Owner("slow", takes), Owner("other", Hook(keep))]
    with capture_logs() as logs:
        chain = Chain(owners)
        await chain.on_request(Request())
        await chain.on_response(ResponseHead(200, []))
        await run(owners, b"data: a\n\n")
    assert [owner.seconds for owner in owners] == pytest.approx([0.25, 0.0])
    assert slow_ones(logs) == [("slow", where, 0.25, "warning")]


async def test_the_time_for_a_json_body_is_counted_too(clock: Clock) -> None:
    """As for an event."""
    owners = [
        Owner("slow", Hook(taking(clock, 0.1))),
        Owner("async", AsyncHook(taking(clock, 0.2))),
    ]
    with capture_logs() as logs:
        await run(owners, json=b"1")
    assert [owner.seconds for owner in owners] == pytest.approx([0.1, 0.2])
    assert slow_ones(logs) == [
        ("slow", "on_event", 0.1, "warning"),
        ("async", "on_event", 0.2, "warning"),
    ]


async def test_time_adds_up_over_streams_and_chains(clock: Clock) -> None:
    """An owner lives as long as the process, and may be in several routes."""
    owner = Owner("shared", Hook(taking(clock, 0.01)))
    for _ in range(3):
        await run([owner], b"data: a\n\ndata: b\n\n")
    assert owner.seconds == pytest.approx(0.06)


async def test_a_hook_that_was_cut_off_has_taken_its_time(
    clock: Clock, autojump_clock: object
) -> None:
    """What timed out is counted."""

    async def forever() -> None:
        clock.passes(2.0)
        await trio.sleep_forever()

    owner = Owner("slow", AsyncHook(keep, before=forever, hook_timeout_s=2.0))
    with capture_logs():
        await run([owner], b"data: a\n\n")
    assert owner.seconds == 2.0


def test_a_failure_is_the_exchanges_or_a_line_in_the_log(clock: Clock) -> None:
    """One place decides."""
    interceptor = Interceptor()
    error = KeyError("in the hook")
    for on_error in ("abort", "skip"):
        interceptor.on_error = on_error  # type: ignore[assignment]
        with capture_logs() as logs:
            problem = Owner("name", interceptor).failed("on_event", error)
        (line,) = logs
        assert (line["event"], line["log_level"], line["interceptor"], line["hook"]) == (
            "interceptor_failed", "error", "name", "on_event",
        )  # fmt: skip
        assert (line["on_error"], line["exc_info"]) == (on_error, error)
        if on_error == "skip":
            assert problem is None
        else:
            assert isinstance(problem, HookError)
            assert str(problem) == "name.on_event: KeyError: 'in the hook'"
