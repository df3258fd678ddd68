"""One stream: the lives of its hooks, what it borrows, and the deadlines and cancellation of async
hooks. What becomes of events is in `test_any_chain`.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import awaiting, interceptor
from unit.interceptors.scripted import (
    AsyncHook,
    Hook,
    OnEvent,
    counted,
    errors,
    feed,
    head,
    keep,
    open_chain,
    send,
    upper,
)

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    EventTooLarge,
    HookError,
    Interceptor,
    InterceptorError,
    Outcome,
    StaleEvent,
    StreamAborted,
    StreamInterceptor,
)
from interceptors.hooks import Owner
from interceptors.testing import run_chain
from pools import Pools

ABC = b"data: a\n\ndata: b\n\ndata: c\n\n"
KINDS = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])

# The life of a stream


def life(
    name: str,
    calls: list[Any],
    fails_in: str = "",
    on_error: str = "abort",
    *,
    is_async: bool = False,
    error: Exception | None = None,
) -> Interceptor:
    """Records every call, and raises in one hook."""

    def note(hook: str) -> Any:
        def run(given: Any) -> Any:
            calls.append((name, hook, given) if hook == "on_end" else (name, hook))
            if fails_in == hook:
                raise error or KeyError(hook)
            return given if hook == "on_event" else None

        return awaiting(run) if is_async and hook != "open_stream" else run

    hooks = {hook: note(hook) for hook in ("on_start", "on_event", "on_end")}
    return interceptor(
        "Life", is_async=is_async, on_error=on_error, opened=note("open_stream"), **hooks
    )()


@KINDS
@pytest.mark.parametrize(
    ("fails_in", "on_error", "opened", "started", "shown", "ended"),
    [
        ("", "abort", "abc", "abc", "abc", "abc"),
        ("open_stream", "abort", "ab", "", "", "a"),
        ("open_stream", "skip", "abc", "ac", "ac", "ac"),
        ("on_start", "abort", "abc", "ab", "", "abc"),
        ("on_start", "skip", "abc", "abc", "abc", "abc"),
        ("on_event", "abort", "abc", "abc", "ab", "abc"),
        ("on_event", "skip", "abc", "abc", "abc", "abc"),
        ("on_end", "abort", "abc", "abc", "abc", "abc"),
        ("on_end", "skip", "abc", "abc", "abc", "abc"),
    ],
)
async def test_each_hook_is_called_in_order_and_on_end_once(
    fails_in: str, on_error: str, opened: str, started: str, shown: str, ended: str, is_async: bool
) -> None:
    """Whatever fails in the middle one, and whatever its `on_error`; an `Abort` ends in any case."""
    expected = {"open_stream": opened, "on_start": started, "on_event": shown}
    for error in (None, Abort("as asked")):
        calls: list[Any] = []
        options: Any = {"is_async": is_async, "error": error}
        chain = [life("a", calls), life("b", calls, fails_in, on_error, **options)]
        failure: InterceptorError | None = None
        with capture_logs() as logs:
            try:
                async with open_chain(
                    *zip("abc", [*chain, life("c", calls)], strict=True)
                ) as stream:
                    try:
                        await stream.start(head())
                        await feed(stream, [b"data: x\n\n"])
                        failure = stream.failure
                    finally:
                        await stream.aclose(Outcome.INTERCEPTED)
                        await stream.aclose(Outcome.COMPLETED)
            except InterceptorError as raised:
                failure = raised
        if error is None or on_error == "abort" or fails_in == "on_end":
            assert [call[:2] for call in calls if call[1] != "on_end"] == [
                (name, hook) for hook, names in expected.items() for name in names
            ]
            assert calls[-len(ended) :] == [(name, "on_end", Outcome.INTERCEPTED) for name in ended]
        if fails_in in ("", "on_end"):
            assert failure is None
        elif error is not None:
            assert isinstance(failure, StreamAborted)
            assert (failure.interceptor, failure.reason) == ("b", "as asked")
            assert isinstance(failure.__cause__, Abort)
        elif on_error == "abort":
            assert isinstance(failure, HookError)
            assert str(failure) == f"b.{fails_in}: KeyError: '{fails_in}'"
            assert (failure.interceptor, failure.hook) == ("b", fails_in)
            assert isinstance(failure.__cause__, KeyError)
        is_logged = fails_in and error is None
        assert errors(logs) == ([("b", fails_in, on_error)] if is_logged else [])


async def test_a_wrong_open_stream_is_refused_with_what_was_expected() -> None:
    """When the stream opens, not at its first event."""
    for nonsense in ("text", 1, StreamInterceptor, Interceptor()):
        wrong = interceptor(open_stream=lambda context, wrong=nonsense: wrong)()
        expected = r"^wrong\.open_stream: .*expected a StreamInterceptor, an AsyncStreamInterceptor or None$"
        with capture_logs(), pytest.raises(HookError, match=expected):
            async with open_chain(("wrong", wrong)):
                pytest.fail("the chain opened")


def test_an_abort_is_not_an_interceptor_error() -> None:
    """`except InterceptorError` in a hook does not catch it. A subclass is an `Abort`, too."""
    assert not issubclass(Abort, InterceptorError)
    failure = Owner("name", Interceptor()).failed("on_event", type("Own", (Abort,), {})("mine"))
    assert isinstance(failure, StreamAborted)
    assert (failure.interceptor, failure.reason, str(failure)) == ("name", "mine", "mine")
    one, two = Event("1"), Event("2")
    assert (End().events, End(one, two).events) == ((), (one, two))


# Bytes


def test_unchanged_hooks_share_one_event_and_its_decoding() -> None:
    seen: list[Event] = []

    def look(event: Event) -> Event:
        seen.append(event)
        return event

    run_chain([Hook(look), Hook(look)], [b'data: {"n":1}\n\n'])
    assert seen[0] is seen[1]


@pytest.mark.parametrize("needs", [None, (b"ab",)])
async def test_unchanged_events_leave_as_one_view_of_the_window(needs: Any) -> None:
    """No copy and no lease, however many events pass or are passed over."""
    pools = Pools()
    async with open_chain(("keep", Hook(keep, needs=needs)), pools=pools) as stream:
        window = bytearray(b"stale" + b"data: x\n\n: c\n\ndata: ab\n\n" * 50 + b"data: unfin")
        parts, at = stream.process(window, 5, len(window))
        (part,) = parts
        assert isinstance(part, memoryview)
        assert part.obj is window
        assert bytes(part) == bytes(window[5:at])
        assert bytes(window[at:]) == b"data: unfin"
        part.release()
        assert counted(stream.counts) == (150, 0, 0, 0)
        assert pools.json.statistics().allocations == 0


async def test_a_lease_is_borrowed_for_what_is_written_only() -> None:
    """Events that pass or are dropped, also after an await, cost none."""
    pools, hook = Pools(json=(64, 100)), {"p": keep, "d": lambda event: None, "c": upper}
    chain = [("mixed", Hook(lambda event: hook[event.data](event))), ("last", AsyncHook(keep))]
    async with open_chain(*chain, pools=pools) as stream:
        assert await feed(stream, [b"data: p\n\ndata: d\n\n"]) == b"data: p\n\n"
        assert pools.json.statistics().allocations == 0
    async with open_chain(*chain[:1], pools=pools) as stream:
        parts, _ = stream.process(bytearray(b"data: c\n\n" * 30), 0, 270)
        assert 1 < len(parts) < 10  # several buffers, and not a part for each event
        assert b"".join(parts) == b"data: C\n\n" * 30
        parts.clear()
        assert pools.json.statistics().in_use > 1
        await stream.aclose(Outcome.CLIENT_DISCONNECTED)
        assert pools.json.statistics().in_use == 0


def test_an_event_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    """`max_event_bytes` counts the empty line; what came before is delivered."""
    event = b"data: 12345\n\n"
    good = run_chain([Hook(keep)], [event * 2], max_event_bytes=len(event))
    assert (good.failure, good.output) == (None, event * 2)
    bad = run_chain([Hook(keep)], [event + b"data: 123456\n\n" + event], max_event_bytes=len(event))
    assert isinstance(bad.failure, EventTooLarge)
    assert bad.failure.max_event_bytes == len(event)
    assert (bad.output, bad.counts.total) == (event, 1)


# Async hooks


async def test_what_is_ready_leaves_before_an_await_and_nothing_else() -> None:
    """Each `process` returns what is before the next await."""
    chain = [("b", Hook(upper, needs=(b"b",))), ("a", AsyncHook(lambda event: [event, Event("+")]))]
    async with open_chain(*chain) as stream:
        window, left, at = bytearray(b": c\n\ndata: a\n\n: c\n\ndata: b\n\n: d\n\n"), [], 0
        while True:
            parts, at = stream.process(window, at, len(window))
            left.append(b"".join(parts))
            parts.clear()
            stream.release_parts()
            if not stream.awaiting:
                break
            await stream.run_async()
    plus = b"data: +\n\n"
    assert left == [
        b": c\n\n", b"data: a\n\n" + plus + b": c\n\n", b"data: B\n\n" + plus + b": d\n\n",
    ]  # fmt: skip


async def test_an_event_is_stale_when_its_stream_was_closed_during_the_await() -> None:
    """The window goes back to its pool then."""
    kept: list[Event] = []

    async def hold(event: Event) -> Event:
        kept.append(event)
        await trio.sleep_forever()
        return event

    async with open_chain(("a", AsyncHook(hold))) as stream:
        send(stream, bytearray(b"data: secret\n\n"))
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.run_async()
        assert scope.cancelled_caught
    with pytest.raises(StaleEvent):
        _ = kept[0].raw


async def test_an_event_is_stale_when_its_hook_has_raised() -> None:
    """Also for a BaseException, which is the caller's; on the first event and on later ones."""
    for number in (1, 2):
        kept: list[Event] = []

        def hook(event: Event, kept: list[Event] = kept, number: int = number) -> Event:
            kept.append(event)
            if len(kept) == number:
                raise KeyboardInterrupt
            return event

        async with open_chain(("i", Hook(hook))) as stream:
            with pytest.raises(KeyboardInterrupt):
                stream.process(bytearray(ABC), 0, len(ABC))
        assert len(kept) == number
        for event in kept:
            with pytest.raises(StaleEvent):
                _ = event.raw


def slow_at_b(hook_timeout_s: float | None, on_error: str = "abort") -> AsyncHook:
    """Takes an hour for an event "b"; its own timeouts and cancellations are its own."""

    async def hook(event: Event) -> Event:
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.5):
            await trio.sleep_forever()
        await trio.sleep(3600 if event.data == "b" else 0)
        return event.replace(event.data * 2)

    return AsyncHook(hook, on_error, hook_timeout_s=hook_timeout_s)


@pytest.mark.parametrize(
    ("hook_timeout_s", "on_error", "output"),
    [
        (None, "abort", b"data: aa\n\ndata: bb\n\ndata: cc\n\n"),
        (2.5, "skip", b"data: aa\n\ndata: b\n\ndata: cc\n\n"),
        (2.5, "abort", b"data: aa\n\n"),
    ],
)
@pytest.mark.parametrize("first", [keep, lambda event: [event]], ids=["", "after a list"])
async def test_a_hook_that_takes_too_long_has_failed(
    first: OnEvent,
    hook_timeout_s: float | None,
    on_error: str,
    output: bytes,
    autojump_clock: object,
) -> None:
    """`hook_timeout_s` bounds each call; None is no limit."""
    began = trio.current_time()
    slow = slow_at_b(hook_timeout_s, on_error)
    with capture_logs() as logs:
        async with open_chain(("first", Hook(first)), ("slow", slow)) as stream:
            assert await feed(stream, [ABC]) == output
    took_s = trio.current_time() - began
    if hook_timeout_s is None:
        assert took_s == pytest.approx(3603)
    else:
        assert took_s == pytest.approx(3.5 if on_error == "abort" else 4.5)
        assert errors(logs) == [("slow", "on_event", on_error)]
    if on_error == "abort" and hook_timeout_s is not None:
        assert str(stream.failure) == (
            "slow.on_event: HookTooSlow: took longer than its hook_timeout_s (2.5 s)"
        )
    else:
        assert stream.failure is None


async def test_start_and_end_have_their_time(autojump_clock: object) -> None:
    calls: list[str] = []

    async def stuck(given: Any) -> None:
        calls.append("called")
        try:
            await trio.sleep_forever()
        finally:
            calls.append("cut off")

    starts = interceptor(is_async=True, hook_timeout_s=2.0, on_start=stuck)
    ends = interceptor(is_async=True, hook_timeout_s=2.0, on_end=stuck)
    began = trio.current_time()
    with capture_logs() as logs, trio.CancelScope() as scope:
        async with open_chain(("s", starts()), ("a", ends()), ("b", ends())) as stream:
            with pytest.raises(HookError, match=r"^s\.on_start: HookTooSlow: .*\(2\.0 s\)$"):
                await stream.start(head())
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert trio.current_time() - began == pytest.approx(6.0)
    assert calls == ["called", "cut off"] * 3
    assert errors(logs)[1:] == [("a", "on_end", "abort"), ("b", "on_end", "abort")]


@pytest.mark.parametrize("on_error", ["abort", "skip"])
async def test_cancelled_at_any_await_it_ends_once(on_error: str) -> None:
    at, completed = 0, False
    while not completed:
        at += 1
        left, scope, ends, pools = at, trio.CancelScope(), list[Any](), Pools()

        async def checkpoint(given: object = None, scope: trio.CancelScope = scope) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                scope.cancel()
            await trio.lowlevel.checkpoint()

        async def on_event(event: Event) -> Any:
            await checkpoint()
            before = event.raw
            await checkpoint()
            assert event.raw == before
            return [event, event.replace("x")]

        on_end = awaiting(ends.append)
        stops = interceptor(
            is_async=True, on_error=on_error, on_start=checkpoint, on_event=on_event, on_end=on_end
        )
        chain, output = [("a", stops()), ("u", Hook(upper)), ("b", stops())], b""
        with capture_logs() as logs, scope:
            async with open_chain(*chain, pools=pools) as stream:
                await stream.start(head())
                output = await feed(stream, [b"data: a\n\ndata: b\n\n"])
                completed = True
        assert ends == [Outcome.COMPLETED] * 2
        assert completed is not scope.cancelled_caught
        assert errors(logs) == []
        assert pools.json.statistics().in_use == 0
    assert output.count(b"data: ") == 8
    # Two starts; for each event two awaits of the first and, for its two events, of the second.
    assert at == 2 + 2 * (2 + 2 * 2) + 1


async def test_closing_without_async_hooks_does_not_block() -> None:
    """`aclose` is not a checkpoint then."""
    others: list[str] = []

    async def other() -> None:
        others.append("ran")

    opens = interceptor(open_stream=lambda context: AsyncStreamInterceptor())
    async with trio.open_nursery() as nursery:
        async with open_chain(("a", Hook(keep)), ("b", opens())):
            nursery.start_soon(other)
        assert others == []
