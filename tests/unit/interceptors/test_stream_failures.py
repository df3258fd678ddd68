"""What a failing hook does to its stream, what becomes of kept events, and that each stream begins
and ends once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from unit.interceptors.scripted import (
    AsyncHook,
    AsyncLife,
    Hook,
    Life,
    OnEvent,
    counted,
    drop,
    errors,
    fail,
    head,
    keep,
    open_chain,
    send,
    upper,
)

from interceptors import (
    End,
    Event,
    HookError,
    Interceptor,
    Outcome,
    StaleEvent,
    StreamContext,
    StreamInterceptor,
)
from interceptors.testing import run_chain
from pools import Pools

# --- failures
# -----------------------------------------------------------------------------------------------------------


class Guard(Hook):
    """Its class's name is the name that `run_chain` gives it."""


AsyncGuard = type("Guard", (AsyncHook,), {})
GUARDS = pytest.mark.parametrize("guard_of", [Guard, AsyncGuard], ids=["sync", "async"])
LIVES = pytest.mark.parametrize("life", [Life, AsyncLife], ids=["sync", "async"])


NONSENSE: dict[str, tuple[Any, str]] = {
    "text": ("data", "str"),
    "bytes": (b"data: x\n\n", "bytes"),
    "a dict": ({"data": "x"}, "dict"),
    "True": (True, "bool"),
    "0": (0, "int"),
    "a list of text": (["x"], "a list of str"),
    "a list with None": ([None], "a list of NoneType"),
    "an iterator": (iter([Event("x")]), "list_iterator"),
    "an end with text": (End("x"), "End"),  # type: ignore[arg-type]
    "End itself": (End, "the class End"),
}


@pytest.mark.parametrize(("nonsense", "kind"), NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("place", ["first", "second", "behind a list"])
@GUARDS
def test_a_wrong_result_aborts_and_the_error_names_its_hook(
    guard_of: type[Guard], nonsense: Any, kind: str, place: str
) -> None:
    """A HookError names interceptor, class, hook, what came and what is expected, wherever in the
    chain.
    """
    guard = guard_of(lambda event: nonsense if event.data == "b" else event)
    before = {"first": [], "second": [Hook(keep)], "behind a list": [Hook(lambda event: [event])]}[
        place
    ]
    with capture_logs() as logs:
        result = run_chain([*before, guard, Hook(keep)], [b"data: a\n\ndata: b\n\ndata: c\n\n"])
    error = result.failure
    assert isinstance(error, HookError)
    assert (error.interceptor, error.hook) == ("Guard", "on_event")
    expected = "an Event, a list of Events, End(...) or None"
    assert (
        str(error)
        == f"Guard.on_event: Misused: Guard's on_event returned {kind}, expected {expected}"
    )
    assert result.output == b"data: a\n\n"
    assert errors(logs) == [("Guard", "on_event", "abort")]


@pytest.mark.parametrize(
    "before", [[], [Hook(lambda event: [event, Event("x")])]], ids=["first", "behind a list"]
)
@pytest.mark.parametrize("wrong", [fail, lambda event: "nonsense"], ids=["raises", "nonsense"])
@GUARDS
def test_skip_logs_and_lets_the_event_pass_as_it_was(
    guard_of: type[Guard], wrong: OnEvent, before: list[Hook]
) -> None:
    """With `on_error = "skip"` the event passes the failed hook unchanged, and the hooks after it
    still run.
    """
    stream = b"data: a\n\ndata: b\n\n"
    with capture_logs() as logs:
        result = run_chain([*before, guard_of(wrong, on_error="skip"), Hook(upper)], [stream])
    assert result.failure is None
    assert result.output == (
        b"data: A\n\ndata: X\n\ndata: B\n\ndata: X\n\n" if before else b"data: A\n\ndata: B\n\n"
    )
    assert set(errors(logs)) == {("Guard", "on_event", "skip")}
    assert len(errors(logs)) == (4 if before else 2)


@GUARDS
def test_skip_leaves_the_very_bytes(guard_of: type[Guard]) -> None:
    """A failed hook that is skipped does not rewrite the event."""
    stream = b"data:a\r\n:c\r\n\r\n"
    with capture_logs():
        result = run_chain([guard_of(fail, on_error="skip")], [stream])
    assert result.output == stream
    assert counted(result.counts) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    "earlier", [keep, upper, lambda event: [event, event]], ids=["passed", "changed", "listed"]
)
async def test_what_came_before_a_failing_event_is_still_delivered(earlier: OnEvent) -> None:
    """`failure` is set, the parts before it are valid, and neither the failing event nor a later
    one leaves.
    """

    def bomb(event: Event) -> Any:
        return fail(event) if event.data == "bomb" else earlier(event)

    async with open_chain(("bomb", Hook(bomb))) as stream:
        with capture_logs():
            sent, rest = send(
                stream, bytearray(b"data: a\n\n: c\n\ndata: b\n\ndata: bomb\n\ndata: d\n\n")
            )
        a, b = {
            keep: (b"data: a\n\n", b"data: b\n\n"),
            upper: (b"data: A\n\n", b"data: B\n\n"),
        }.get(earlier, (b"data: a\n\n" * 2, b"data: b\n\n" * 2))
        assert b"".join(sent) == a + b": c\n\n" + b
        assert rest.startswith(b"data: bomb")
        assert isinstance(stream.failure, HookError)
        assert isinstance(stream.failure.__cause__, KeyError)
        assert str(stream.failure) == "bomb.on_event: KeyError: 'in the hook'"


@GUARDS
@pytest.mark.parametrize("body", [b'{"a": 1}', b'{"' + b"x" * 70])
@pytest.mark.parametrize("size", [1, 100])
def test_no_white_space_leaves_before_a_json_body_that_fails(
    guard_of: type[Guard], body: bytes, size: int
) -> None:
    """An error event follows: a space before it would become part of its first line."""
    guard, stream = guard_of(fail), b"\n \t" + body
    guard.wants_json = True
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    result = run_chain([guard], chunks, max_event_bytes=64)
    assert result.failure is not None
    assert result.output in (b"", b"\n")


@GUARDS
def test_an_event_that_cannot_be_json_aborts_after_what_was_written(
    guard_of: type[Guard],
) -> None:
    """A value that cannot be encoded ends the stream cleanly."""

    def unspeakable(event: Event) -> Any:
        return (
            event.replace(json={"a": ["x" * 9000, object()]})
            if event.data == "b"
            else event.replace(json=event.data)
        )

    result = run_chain([guard_of(unspeakable)], [b"data: a\n\ndata: b\n\n"])
    assert isinstance(result.failure, HookError)
    assert (result.failure.interceptor, result.failure.hook) == ("Guard", "on_event")
    assert result.output == b'data: "a"\n\n'


@GUARDS
def test_skip_also_covers_an_event_that_cannot_be_written(guard_of: type[Guard]) -> None:
    """`on_error = "skip"` holds for what shows only when the event is written."""
    stream = b"data:a\r\n:c\r\n\r\ndata: b\n\n"
    with capture_logs() as logs:
        result = run_chain(
            [guard_of(lambda event: event.replace(json=object()), on_error="skip")], [stream]
        )
    assert (result.failure, result.output) == (None, stream)
    assert errors(logs) == [("Guard", "on_event", "skip")] * 2


@GUARDS
def test_an_event_list_with_one_bad_event_leaves_as_a_whole_or_not_at_all(
    guard_of: type[Guard],
) -> None:
    """When the second of a list cannot be written, the first does not leave either."""
    result = run_chain(
        [guard_of(lambda event: [Event("good"), Event(json=object())])], [b"data: a\n\n"]
    )
    assert isinstance(result.failure, HookError)
    assert result.output == b""


# --- kept events
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [keep, drop, upper, lambda event: [event]],
    ids=["passed", "dropped", "changed", "listed"],
)
@GUARDS
def test_an_event_that_a_hook_kept_is_stale_when_its_hook_has_returned(
    guard_of: type[Guard], first: OnEvent
) -> None:
    """Whatever became of it: touched during a later event, a kept event raises and shows no bytes."""
    kept: list[Event] = []
    caught: list[StaleEvent] = []

    def hold(event: Event) -> Any:
        for old in kept:
            with pytest.raises(StaleEvent) as stale:
                _ = old.data
            caught.append(stale.value)
        kept.append(event)
        return first(event)

    run_chain([guard_of(hold)], [b"data: secret\n\ndata: b\n\n"])
    assert len(caught) == 1
    with pytest.raises(StaleEvent):
        _ = kept[1].raw


@pytest.mark.parametrize(
    "wrap", [lambda event: event, lambda event: [event]], ids=["alone", "in a list"]
)
@GUARDS
def test_a_kept_event_returned_later_fails_and_leaks_nothing(
    guard_of: type[Guard], wrap: Callable[[Event], Any]
) -> None:
    """Returning an earlier event is a HookError, and not somebody's bytes on the wire."""
    kept: list[Event] = []

    def late(event: Event) -> Any:
        kept.append(event)
        return wrap(kept[0])

    result = run_chain([guard_of(late)], [b"data: first\n\n", b"data: other\n\n"])
    assert result.output == b"data: first\n\n"
    assert isinstance(result.failure, HookError)
    assert isinstance(result.failure.__cause__, StaleEvent)
    assert "Guard.on_event" in str(result.failure)


@GUARDS
def test_a_kept_detached_event_can_be_returned_later(guard_of: type[Guard]) -> None:
    """`detach()` is the way to hold events back: they leave later, byte for byte, in any order."""
    kept: list[Event] = []

    def swap(event: Event) -> Any:
        if not kept:
            kept.append(event.detach())
            return None
        return [event, kept.pop()]

    result = run_chain([guard_of(swap)], [b"data:1\n\n", b"data:2\n\ndata:3\n\n", b"data:4\n\n"])
    assert result.output == b"data:2\n\ndata:1\n\ndata:4\n\ndata:3\n\n"


@GUARDS
def test_a_failing_event_goes_stale_too(guard_of: type[Guard]) -> None:
    """Also an event whose hook raised."""
    kept: list[Event] = []

    def hold_and_fail(event: Event) -> Event:
        kept.append(event)
        raise KeyError

    with capture_logs():
        run_chain([guard_of(hold_and_fail)], [b"data: secret\n\n"])
    with pytest.raises(StaleEvent):
        _ = kept[0].data


# --- the life of a stream
# -----------------------------------------------------------------------------------------------


@LIVES
def test_a_streams_hooks_run_in_order_and_end_once(life: type[Life]) -> None:
    """open_stream, on_start, on_event, on_end: each for every interceptor in the chain's order."""
    calls: list[Any] = []
    run_chain([life("a", calls), life("b", calls)], [b"data: x\n\n"])
    assert calls == [
        *[(name, "open_stream") for name in "ab"],
        *[(name, "on_start") for name in "ab"],
        *[(name, "on_event") for name in "ab"],
        *[(name, "on_end", Outcome.COMPLETED) for name in "ab"],
    ]


@pytest.mark.parametrize("outcome", list(Outcome))
@LIVES
async def test_on_end_hears_the_outcome_exactly_once(life: type[Life], outcome: Outcome) -> None:
    """However it ended, and however often `aclose` is called: the first outcome is the one."""
    calls: list[Any] = []
    async with open_chain(("a", life("a", calls))) as stream:
        await stream.aclose(outcome)
        await stream.aclose(Outcome.COMPLETED)
    assert calls == [("a", "open_stream"), ("a", "on_end", outcome)]


async def test_closing_gives_back_what_was_written() -> None:
    """Parts that were never released are not lost leases."""
    pools = Pools()
    async with open_chain(("upper", Hook(upper)), pools=pools) as stream:
        parts, _ = stream.process(bytearray(b"data: a\n\n"), 0, 9)
        assert pools.json.statistics().in_use == 1
        for part in parts:
            part.release()  # type: ignore[union-attr]
        await stream.aclose(Outcome.CLIENT_DISCONNECTED)
        assert pools.json.statistics().in_use == 0


@LIVES
async def test_a_failing_open_stream_aborts_and_ends_those_before_it(life: type[Life]) -> None:
    """HookError names it; the earlier streams hear on_end once, the later ones were never asked."""
    calls: list[Any] = []
    chain = [
        ("a", life("a", calls)),
        ("b", life("b", calls, "open_stream")),
        ("c", life("c", calls)),
    ]
    with (
        capture_logs() as logs,
        pytest.raises(HookError, match=r"^b\.open_stream: KeyError: 'open_stream'$") as caught,
    ):
        async with open_chain(*chain):
            pytest.fail("the chain opened")
    assert (caught.value.interceptor, caught.value.hook) == ("b", "open_stream")
    assert isinstance(caught.value.__cause__, KeyError)
    assert calls == [
        ("a", "open_stream"),
        ("b", "open_stream"),
        ("a", "on_end", Outcome.INTERCEPTED),
    ]
    assert errors(logs) == [("b", "open_stream", "abort")]


@LIVES
def test_a_skipped_open_stream_leaves_the_others(life: type[Life]) -> None:
    """With skip the stream continues without that interceptor: none of its other hooks is called."""
    calls: list[Any] = []
    with capture_logs() as logs:
        result = run_chain(
            [life("a", calls, "open_stream", "skip"), life("b", calls)], [b"data: x\n\n"]
        )
    assert result.output == b"data: x\n\n"
    assert [call[:2] for call in calls] == [
        ("a", "open_stream"), ("b", "open_stream"), ("b", "on_start"), ("b", "on_event"), ("b", "on_end"),
    ]  # fmt: skip
    assert errors(logs) == [(life.__name__, "open_stream", "skip")]


@pytest.mark.parametrize(
    "nonsense",
    ["text", 1, StreamInterceptor, Interceptor()],
    ids=["text", "int", "class", "Interceptor"],
)
async def test_the_error_of_a_wrong_open_stream_has_what_was_expected(nonsense: Any) -> None:
    """For example a class instead of an object: refused when the stream opens, not at its first
    event.
    """

    class Wrong(Interceptor):
        def open_stream(self, context: StreamContext) -> Any:
            return nonsense

    with (
        capture_logs(),
        pytest.raises(
            HookError,
            match=r"^wrong\.open_stream: .*expected a StreamInterceptor, an AsyncStreamInterceptor or None$",
        ),
    ):
        async with open_chain(("wrong", Wrong())):
            pytest.fail("the chain opened")


@LIVES
async def test_a_failing_on_start_aborts_and_every_stream_still_ends(life: type[Life]) -> None:
    """HookError names it, later on_starts do not run, and `aclose` calls each on_end once."""
    calls: list[Any] = []
    chain = [("a", life("a", calls)), ("b", life("b", calls, "on_start")), ("c", life("c", calls))]
    async with open_chain(*chain) as stream:
        with (
            capture_logs() as logs,
            pytest.raises(HookError, match=r"^b\.on_start: KeyError: 'on_start'$"),
        ):
            await stream.start(head())
        await stream.aclose(Outcome.INTERCEPTED)
    assert errors(logs) == [("b", "on_start", "abort")]
    assert calls == [
        *[(name, "open_stream") for name in "abc"],
        *[(name, "on_start") for name in "ab"],
        *[(name, "on_end", Outcome.INTERCEPTED) for name in "abc"],
    ]


@LIVES
def test_a_skipped_on_start_leaves_the_stream_whole(life: type[Life]) -> None:
    """With skip, the interceptor whose on_start failed still sees events and the end."""
    calls: list[Any] = []
    with capture_logs() as logs:
        result = run_chain(
            [life("a", calls, "on_start", "skip"), life("b", calls)], [b"data: x\n\n"]
        )
    assert (result.failure, result.output) == (None, b"data: x\n\n")
    assert [hook for name, hook, *_ in calls if name == "a"] == [
        "open_stream",
        "on_start",
        "on_event",
        "on_end",
    ]
    assert errors(logs) == [(life.__name__, "on_start", "skip")]


@LIVES
def test_a_failing_on_event_ends_every_stream_as_intercepted(life: type[Life]) -> None:
    """After a failure each on_end is called once with `intercepted`, the failing interceptor's own
    included.
    """
    calls: list[Any] = []
    with capture_logs():
        result = run_chain(
            [life("a", calls), life("b", calls, "on_event")], [b"data: x\n\ndata: y\n\n"]
        )
    assert isinstance(result.failure, HookError)
    assert calls[4:] == [
        ("a", "on_event"),
        ("b", "on_event"),
        *[(name, "on_end", Outcome.INTERCEPTED) for name in "ab"],
    ]


@pytest.mark.parametrize("on_error", ["abort", "skip"])
@LIVES
async def test_a_failing_on_end_is_logged_and_stops_no_other(
    life: type[Life], on_error: str
) -> None:
    """The stream is over already, so neither setting raises; the others still hear of it."""
    calls: list[Any] = []
    chain = [(name, life(name, calls, "on_end" if name != "c" else "", on_error)) for name in "abc"]
    with capture_logs() as logs:
        async with open_chain(*chain) as stream:
            await stream.aclose(Outcome.DRAINING)
    assert calls[3:] == [(name, "on_end", Outcome.DRAINING) for name in "abc"]
    assert errors(logs) == [("a", "on_end", on_error), ("b", "on_end", on_error)]


async def test_the_window_is_free_again_once_the_parts_are_released() -> None:
    """No event, decoding or failure keeps a view of the window: it can go back to its pool."""

    def look(event: Event) -> Event:
        event.json()
        return event

    async with open_chain(("look", Hook(look, on_error="skip")), ("upper", Hook(upper))) as stream:
        window = bytearray(b"data: 1\n\ndata: nojson\n\n: c\n\n")
        with capture_logs():
            send(stream, window)
        gc.collect()
        window.extend(b"x")  # BufferError if something still saw it
