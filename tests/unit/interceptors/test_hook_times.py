"""The time of hooks: it is counted by interceptor, and a hook that holds the loop or waits long is
named. The clock is scripted.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import awaiting, interceptor
from unit.interceptors.scripted import AsyncHook, Hook, OnEvent, fail, feed, head, keep

from interceptors import End, Interceptor, Outcome, Request, ResponseHead
from interceptors.chain import Chain
from interceptors.hooks import HOLD_S, WAIT_S, Owner
from pools import Pools


class Clock:
    """`perf_counter`, which moves only when a hook takes time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def taking(self, seconds: float, hook: OnEvent = keep) -> OnEvent:
        def slow(event: Any) -> Any:
            self.passes(seconds)
            return hook(event)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("passage", "event_hooks", "hooks", "chain"):
        monkeypatch.setattr(f"interceptors.{module}.perf_counter", clock)
    return clock


async def run(owners: list[Owner], *chunks: bytes, json: bytes | None = None) -> list[Any]:
    """One exchange, with a stream or a JSON body; the warnings."""
    pools, request, chain = Pools(), Request(), Chain(owners)
    with capture_logs() as logs:
        await chain.on_request(request)
        await chain.on_response(ResponseHead(200, []))
        async with pools.open_scope() as scope:
            stream = chain.open_stream(request, pools.json, scope, 1 << 20, json=json is not None)
            await stream.start(head())
            if json is None:
                await feed(stream, chunks)
            else:
                await stream.process_body(bytearray(json))
            await stream.aclose(Outcome.COMPLETED)
    return warnings_of(logs)


def warnings_of(logs: list[Any]) -> list[tuple[str, str, str, float]]:
    return [
        (log["event"].removeprefix("interceptor_"), log["interceptor"], log["hook"], log["seconds"])
        for log in logs
        if log["log_level"] == "warning"
    ]


WAYS: dict[str, list[Interceptor]] = {
    "first": [],
    "after another": [Hook(keep)],
    "after a list": [Hook(lambda event: [event])],
    "after an await": [AsyncHook(keep)],
}
"""How an event comes to a hook decides which code calls it."""


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
        (fail, 1),
    ],
    ids=["passes", "changes", "drops", "lists", "ends", "raises"],
)
async def test_each_interceptors_time_is_its_own(
    clock: Clock, kind: Any, others: list[Interceptor], hook: OnEvent, later_calls: int
) -> None:
    """Whatever a hook returns, or raises, wherever it stands. More than 50 ms is a warning."""
    owners = [
        *[Owner("other", other) for other in others],
        Owner("slow", kind(clock.taking(0.0512, hook), on_error="skip")),
        Owner("later", Hook(clock.taking(0.003))),
    ]
    assert await run(owners, b": c\n\ndata: a\n\n") == [("slow", "slow", "on_event", 0.051)]
    assert [owner.seconds for owner in owners] == pytest.approx(
        [*[0.0] * len(others), 0.0512, 0.003 * later_calls]
    )


async def test_a_hook_that_takes_no_longer_is_not_named(clock: Clock) -> None:
    """Nor many that take long together. Time adds up over events, streams and chains."""
    owners = [Owner(str(at), Hook(clock.taking(HOLD_S / 2))) for at in range(5)]
    for _ in range(2):
        assert await run(owners, b"data: a\n\n" * 5) == []
    assert [owner.seconds for owner in owners] == pytest.approx([HOLD_S * 5] * 5)


class Other:
    """An awaitable that is not a coroutine."""

    def __init__(self, running: Any) -> None:
        self.running = running

    def __await__(self) -> Any:
        return self.running.__await__()


@pytest.mark.parametrize("wraps", [lambda running: running, Other], ids=["coroutine", "awaitable"])
@pytest.mark.parametrize("waits", [0.9, 7.0])
async def test_a_waiting_hook_holds_nothing(clock: Clock, waits: float, wraps: Any) -> None:
    """Steps count as held, the longest alone for the warning; of a task the waiting does not count."""

    async def steps(*held: float) -> None:
        for seconds in held:
            clock.passes(seconds)
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(elsewhere)

    async def elsewhere() -> None:
        clock.passes(waits)

    owner = Owner("waits", Interceptor())
    with capture_logs() as logs:
        await owner.call("on_event", wraps(steps(0.04, 0.04)))
    waited = [("waited", "waits", "on_event", waits)] if waits > WAIT_S else []
    assert (owner.seconds, owner.waited) == (pytest.approx(0.08), pytest.approx(waits))
    assert warnings_of(logs) == waited
    with capture_logs() as logs:
        assert await owner.run_task(lambda: wraps(steps(0.04, 0.06, 0.01)), ()) is None
    assert (owner.seconds, owner.waited) == (pytest.approx(0.19), pytest.approx(waits))
    assert warnings_of(logs) == [("slow", "waits", "start_soon", 0.06)]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    "where", ["on_request", "on_response", "open_stream", "on_start", "on_complete", "on_end"]
)
async def test_the_time_of_every_hook_is_counted(
    clock: Clock, where: str, is_async: bool, fails: bool
) -> None:
    """Also where it fails."""

    def hook(name: str) -> Any:
        def take(*given: Any) -> None:
            if name == where:
                clock.passes(0.25)
                if fails:
                    raise KeyError(where)

        is_awaited = name in ("on_request", "on_response") or (is_async and name != "open_stream")
        return awaiting(take) if is_awaited else take

    names = ("on_request", "on_response", "on_start", "on_complete", "on_end")
    hooks = {name: hook(name) for name in names}
    slow = interceptor(is_async=is_async, on_error="skip", opened=hook("open_stream"), **hooks)
    owners = [Owner("slow", slow()), Owner("other", Hook(keep))]
    assert await run(owners, b"data: a\n\n") == [("slow", "slow", where, 0.25)]
    assert [owner.seconds for owner in owners] == pytest.approx([0.25, 0.0])


async def test_the_time_for_a_json_body_is_counted_too(clock: Clock) -> None:
    owners = [Owner("sync", Hook(clock.taking(0.1))), Owner("async", AsyncHook(clock.taking(0.2)))]
    assert await run(owners, json=b"1") == [
        ("slow", "sync", "on_event", 0.1),
        ("slow", "async", "on_event", 0.2),
    ]
    assert [owner.seconds for owner in owners] == pytest.approx([0.1, 0.2])


async def test_a_hook_that_is_cut_off_is_timed(clock: Clock, autojump_clock: object) -> None:
    async def forever() -> None:
        clock.passes(2.0)
        await trio.sleep_forever()

    owner = Owner("slow", AsyncHook(keep, before=forever, hook_timeout_s=2.0))
    await run([owner], b"data: a\n\n")
    assert owner.seconds == 2.0
    with pytest.raises(TypeError, match="returned int, expected something to await"):
        await owner.call("on_request", 3)  # type: ignore[arg-type]
