"""Hooks that await: the same bytes as from hooks that do not, nothing held back meanwhile, and a
clean end at every await.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from unit.interceptors.scripted import (
    BOM,
    AsyncHook,
    Hook,
    OnEvent,
    counted,
    drop,
    errors,
    fail,
    feed,
    head,
    keep,
    open_chain,
    send,
    splits,
    upper,
)

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    HookError,
    Interceptor,
    Outcome,
    ResponseHead,
    StaleEvent,
    StreamContext,
)
from interceptors.testing import run_chain
from pools import Pools


def twice(event: Event) -> list[Event]:
    return [event, event.replace(event.data + "2")]


def some(event: Event) -> Any:
    """Something of everything, decided by the event's own content."""
    return [event, None, event.replace(event.data + "!"), [Event("more"), event], []][
        len(event.data) % 5
    ]


def awaits(
    before: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint,
) -> Callable[[OnEvent], AsyncHook]:
    return lambda function: AsyncHook(function, before=before)


# --- the same bytes
# -----------------------------------------------------------------------------------------------------

STREAMS = [
    b"data: a\n\n: c\n\nid: 1\ndata: bb\n\n\ndata: ccc\n\ndata: tail",
    BOM + b"data: a\r\n\r\n:c\r\n\r\ndata: bb\r\n\r\n",
    b"data: a\r\rdata: bb\r\r\rdata: ccc\r",
]


@pytest.mark.parametrize("stream", STREAMS, ids=["LF", "CRLF with a BOM", "CR"])
@pytest.mark.parametrize(
    "functions",
    [(keep,), (upper,), (drop,), (keep, keep, keep), (twice, upper, some), (some, some, twice)],
)
async def test_hooks_that_await_give_the_same_bytes_in_every_order(
    functions: tuple[OnEvent, ...], stream: bytes
) -> None:
    """Each hook of a chain sync or async, in every combination, and the stream cut anywhere."""
    pools = Pools()
    for chunks in splits(stream):
        results = set()
        for kinds in product([Hook, awaits()], repeat=len(functions)):
            members = [
                (f"{at}", kind(function))
                for at, (kind, function) in enumerate(zip(kinds, functions, strict=True))
            ]
            async with open_chain(*members, pools=pools) as chain:
                results.add((await feed(chain, chunks), counted(chain.counts), chain.failure))
        assert len(results) == 1, chunks
    assert pools.json.statistics().in_use == 0


async def test_unchanged_events_leave_as_the_windows_own_bytes() -> None:
    """An event that an async hook returns costs no copy and no lease."""
    pools = Pools()
    async with open_chain(("a", AsyncHook(keep)), pools=pools) as chain:
        assert await feed(chain, [b"data: a\n\ndata: b\n\n"]) == b"data: a\n\ndata: b\n\n"
    assert pools.json.statistics().allocations == 0


def test_every_hook_is_called_once_for_each_event_in_order() -> None:
    """Continuing after an await repeats none of the hooks before it."""
    calls: list[Any] = []

    def mark(name: str) -> OnEvent:
        def hook(event: Event) -> Event:
            calls.append((name, event.data))
            return event

        return hook

    run_chain(
        [Hook(mark("a")), AsyncHook(mark("b")), Hook(mark("c")), AsyncHook(mark("d"))],
        [b"data: 1\n\nda", b"ta: 2\n\ndata: 3"],
    )
    assert calls == [(name, str(number)) for number in (1, 2, 3) for name in "abcd"]


def test_comments_are_not_awaited() -> None:
    """They pass by without a call, as ever."""
    assert run_chain([AsyncHook(fail)], [b": ping\n\n\n:\n\n"]).output == b": ping\n\n\n:\n\n"


def test_one_await_at_a_time() -> None:
    """No hook of a stream begins before the one before it has ended."""
    running = 0

    async def alone() -> None:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        running -= 1

    result = run_chain(
        [AsyncHook(twice, before=alone), AsyncHook(twice, before=alone)],
        [b"data: a\n\ndata: b\n\n"],
    )
    assert (result.failure, result.counts.added) == (None, 6)


# --- while one awaits
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [keep, upper], ids=["passed", "changed"])
async def test_what_is_ready_leaves_before_an_await(change: OnEvent) -> None:
    """`process` stops before the async hook, and hands out all that came before."""
    async with open_chain(("change", Hook(change)), ("slow", SlowForB())) as chain:
        window = bytearray(b": c\n\ndata: a\n\ndata: b\n\ndata: a\n\n")
        parts, at = chain.process(window, 0, len(window))
        if change is keep:  # the async hook does not need what came as "a"
            assert [bytes(part) for part in parts] == [b": c\n\ndata: a\n\n"]
            assert bytes(window[at:]) == b"data: b\n\ndata: a\n\n"
        else:  # what another interceptor made is shown in any case
            assert [bytes(part) for part in parts] == [b": c\n\n"]
            assert bytes(window[at:]) == b"data: a\n\ndata: b\n\ndata: a\n\n"
        assert chain.awaiting
        parts.clear()
        chain.release_parts()
        await chain.run_async()
        assert not chain.awaiting
        assert chain.failure is None


class SlowForB(Interceptor):
    """Needs only what holds a "b"."""

    def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
        return _SlowForBStream()


class _SlowForBStream(AsyncStreamInterceptor):
    needs = (b"b",)

    async def on_event(self, event: Event) -> Event:
        await trio.lowlevel.checkpoint()
        return event


async def test_nothing_of_an_awaited_event_leaves_before_its_hook_has_answered() -> None:
    """Event by event: what leaves with each `process` is what stands before the next await."""
    async with open_chain(("a", AsyncHook(twice))) as chain:
        window = bytearray(b"data: a\n\n: c\n\ndata: b\n\n: d\n\n")
        left = []
        at = 0
        while True:
            parts, at = chain.process(window, at, len(window))
            left.append(b"".join(parts))
            parts.clear()
            chain.release_parts()
            if not chain.awaiting:
                break
            await chain.run_async()
    assert left == [b"", b"data: a\n\ndata: a2\n\n: c\n\n", b"data: b\n\ndata: b2\n\n: d\n\n"]


def test_an_event_is_valid_while_it_is_awaited_and_stale_afterwards() -> None:
    """However long the hook awaits, before and after other hooks."""
    kept: list[Event] = []

    async def look(event: Event) -> Event:
        for old in kept:
            with pytest.raises(StaleEvent):
                _ = old.data
        assert event.data
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            assert event.raw.startswith(b"data: ")
        assert event.json() == int(event.data)
        kept.append(event)
        return event

    result = run_chain(
        [AsyncHook(look), Hook(keep), AsyncHook(keep)], [b"data: 1\n\ndata: 2\n\n", b"data: 3\n\n"]
    )
    assert (result.failure, result.output) == (None, b"data: 1\n\ndata: 2\n\ndata: 3\n\n")
    for event in kept:
        with pytest.raises(StaleEvent):
            _ = event.raw


async def test_an_event_is_stale_when_its_stream_was_closed_during_the_await() -> None:
    """The window goes back to its pool then."""
    kept: list[Event] = []

    async def hold(event: Event) -> Event:
        kept.append(event)
        await trio.sleep_forever()
        return event

    async with open_chain(("a", AsyncHook(hold))) as chain:
        send(chain, bytearray(b"data: secret\n\n"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await chain.run_async()
        assert scope.cancelled_caught
    with pytest.raises(StaleEvent):
        _ = kept[0].raw


async def test_an_awaited_event_leaves_no_view_of_the_window() -> None:
    """Once its parts are released, the window can go back to its pool."""
    async with open_chain(
        ("a", AsyncHook(lambda event: event.replace(json=event.json())))
    ) as chain:
        window = bytearray(b"data: 1\n\n")
        send(chain, window)
        await chain.run_async()
        assert send(chain, window) == ([b"data: 1\n\n"], b"")
        window.extend(b"x")  # BufferError if something still saw it


# --- failures
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_what_came_before_a_failing_await_is_delivered_and_nothing_else(place: int) -> None:
    """As with a synchronous hook: `failure` has interceptor, hook and cause."""
    chain_of = [("a", Hook(keep)), ("b", AsyncHook(keep)), ("c", Hook(upper))]
    chain_of.insert(
        place,
        ("bomb", AsyncHook(lambda event: fail(event) if event.data.lower() == "b" else event)),
    )
    async with open_chain(*chain_of) as chain:
        with capture_logs() as logs:
            assert (
                await feed(chain, [b"data: a\n\n: c\n\ndata: b\n\ndata: d\n\n"])
                == b"data: A\n\n: c\n\n"
            )
        assert str(chain.failure) == "bomb.on_event: KeyError: 'in the hook'"
        assert isinstance(chain.failure, HookError)
        assert isinstance(chain.failure.__cause__, KeyError)
        assert errors(logs) == [("bomb", "on_event", "abort")]


class Slow(AsyncHook):
    """Takes an hour for an event "b"."""

    def __init__(self, hook_timeout_s: float | None, on_error: Any = "abort") -> None:
        async def hook(event: Event) -> Event:
            if event.data == "b":
                await trio.sleep(3600)
            return event.replace(event.data * 2)

        super().__init__(hook, on_error, hook_timeout_s=hook_timeout_s)


ABC = b"data: a\n\ndata: b\n\ndata: c\n\n"


@pytest.mark.parametrize(
    "others",
    [[], [Hook(keep)], [Hook(lambda event: [event])]],
    ids=["alone", "second", "behind a list"],
)
async def test_a_hook_that_takes_too_long_ends_the_stream_by_name(
    others: list[Interceptor], autojump_clock: object
) -> None:
    """`hook_timeout_s` bounds each call: a HookError names the interceptor, the hook and the limit."""
    members = [*[("other", other) for other in others], ("slow", Slow(2.5))]
    began = trio.current_time()
    async with open_chain(*members) as chain:
        with capture_logs() as logs:
            assert await feed(chain, [ABC]) == b"data: aa\n\n"
        assert (
            str(chain.failure)
            == "slow.on_event: HookTooSlow: took longer than its hook_timeout_s (2.5 s)"
        )
        assert errors(logs) == [("slow", "on_event", "abort")]
    assert trio.current_time() - began == pytest.approx(2.5)


async def test_a_hook_that_takes_too_long_can_be_skipped(autojump_clock: object) -> None:
    """With `on_error = "skip"` the event passes unchanged, and the stream continues."""
    async with open_chain(("slow", Slow(2.5, "skip")), ("upper", Hook(upper))) as chain:
        with capture_logs() as logs:
            assert await feed(chain, [ABC]) == b"data: AA\n\ndata: B\n\ndata: CC\n\n"
        assert chain.failure is None
        assert errors(logs) == [("slow", "on_event", "skip")]


async def test_a_hook_may_take_any_time(autojump_clock: object) -> None:
    """`hook_timeout_s = None` is not a limit."""
    async with open_chain(("slow", Slow(None))) as chain:
        assert await feed(chain, [ABC]) == b"data: aa\n\ndata: bb\n\ndata: cc\n\n"


async def test_a_hooks_own_timeout_is_the_hooks_own() -> None:
    """What a hook cancels inside itself, and its own TooSlowError, are not the limit's doing."""

    async def own(event: Event) -> Event:
        with trio.move_on_after(0):
            await trio.sleep_forever()
        with pytest.raises(trio.TooSlowError), trio.fail_after(0):
            await trio.sleep_forever()
        return event

    async with open_chain(("a", AsyncHook(own))) as chain:
        assert await feed(chain, [ABC]) == ABC


# --- cancellation
# -------------------------------------------------------------------------------------------------------


class Checkpoints:
    """Cancels a scope at the n-th checkpoint."""

    def __init__(self, cancel_at: int) -> None:
        self.left = cancel_at
        self.scope = trio.CancelScope()

    async def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()
        await trio.lowlevel.checkpoint()


class Everywhere(Interceptor):
    """Awaits in each hook, and writes down where it was."""

    def __init__(self, checkpoint: Checkpoints, calls: list[str], on_error: Any) -> None:
        self.checkpoint, self.calls, self.on_error = checkpoint, calls, on_error

    def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
        return _EverywhereStream(self)


class _EverywhereStream(AsyncStreamInterceptor):
    def __init__(self, everywhere: Everywhere) -> None:
        self.everywhere = everywhere

    async def on_start(self, head: ResponseHead) -> None:
        await self.everywhere.checkpoint()

    async def on_event(self, event: Event) -> Any:
        await self.everywhere.checkpoint()
        before = event.raw
        await self.everywhere.checkpoint()
        assert event.raw == before
        return [event, event.replace("x")]

    async def on_end(self, outcome: Outcome) -> None:
        self.everywhere.calls.append("on_end")
        await trio.lowlevel.checkpoint()
        self.everywhere.calls.append(outcome)


@pytest.mark.parametrize("on_error", ["abort", "skip"])
async def test_cancelled_at_any_await_each_stream_still_ends_once_and_nothing_is_lost(
    on_error: str,
) -> None:
    """At the first, second, ..."""
    at, completed = 0, False
    while not completed:
        at += 1
        checkpoint, calls, pools = Checkpoints(at), [], Pools()
        chain_of = [Everywhere(checkpoint, calls, on_error) for _ in range(2)]
        output = b""
        with capture_logs() as logs, checkpoint.scope:
            async with open_chain(
                ("a", chain_of[0]), ("u", Hook(upper)), ("b", chain_of[1]), pools=pools
            ) as chain:
                await chain.start(head())
                output = await feed(chain, [b"data: a\n\ndata: b\n\n"])
                completed = True
        assert calls == ["on_end", Outcome.COMPLETED] * 2
        assert completed is not checkpoint.scope.cancelled_caught
        assert errors(logs) == []
        assert pools.json.statistics().in_use == 0
    assert output.count(b"data: ") == 8
    assert (
        at == 2 + 2 * (2 + 2 * 2) + 1
    )  # two starts, and for each event two awaits of the first and, twice, of the second


async def test_on_end_is_shielded_but_has_its_time(autojump_clock: object) -> None:
    """Cancelled all around, it still runs."""
    calls: list[str] = []

    class Stuck(Interceptor):
        hook_timeout_s = 2.0

        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return _StuckStream(calls)

    began = trio.current_time()
    with capture_logs() as logs, trio.CancelScope() as scope:
        async with open_chain(("a", Stuck()), ("b", Stuck())):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert trio.current_time() - began == pytest.approx(4.0)
    assert calls == ["on_end", "cut off"] * 2
    assert errors(logs) == [("a", "on_end", "abort"), ("b", "on_end", "abort")]


class _StuckStream(AsyncStreamInterceptor):
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    async def on_end(self, outcome: Outcome) -> None:
        self.calls.append("on_end")
        try:
            await trio.sleep_forever()
        finally:
            self.calls.append("cut off")


async def test_on_start_has_its_time_too(autojump_clock: object) -> None:
    """A HookError names it; with skip the stream continues."""

    class Stream(AsyncStreamInterceptor):
        async def on_start(self, head: ResponseHead) -> None:
            await trio.sleep_forever()

    class Stuck(Interceptor):
        def __init__(self, on_error: Any) -> None:
            self.on_error = on_error

        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return Stream()

    with capture_logs():
        async with open_chain(("a", Stuck("abort"))) as chain:
            with pytest.raises(HookError, match=r"^a\.on_start: HookTooSlow: .*\(30\.0 s\)$"):
                await chain.start(head())
        async with open_chain(("a", Stuck("skip"))) as chain:
            await chain.start(head())


async def test_closing_without_async_hooks_does_not_block() -> None:
    """`aclose` is not a checkpoint then."""
    others: list[str] = []

    async def other() -> None:
        others.append("ran")

    class Opens(Interceptor):
        def open_stream(self, context: StreamContext) -> AsyncStreamInterceptor:
            return AsyncStreamInterceptor()

    async with trio.open_nursery() as nursery:
        async with open_chain(("a", Hook(keep)), ("b", Opens())):
            nursery.start_soon(other)
        assert others == []
