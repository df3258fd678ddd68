"""How a hook ends its stream: whole, with `End` and what it holds, or broken off, with `Abort` and
its reason.
"""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs
from support.logs import without_times
from unit.interceptors.scripted import (
    AsyncHook,
    AsyncLife,
    Hook,
    Life,
    OnEvent,
    counted,
    drop,
    errors,
    feed,
    head,
    keep,
    open_chain,
    splits,
    upper,
)

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    HookError,
    Interceptor,
    InterceptorError,
    Outcome,
    ResponseHead,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
)
from interceptors.hooks import Owner
from interceptors.testing import run_chain
from pools import Pools

KINDS = pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
OTHERS = pytest.mark.parametrize("other", [Hook, AsyncHook], ids=["among sync", "among async"])
PLACES = pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])

STREAM = b": c\n\ndata: a\n\ndata: b\n\ndata: c\n\n: c\n\ndata: d"


def at_b(answer: OnEvent) -> OnEvent:
    """What a hook does with the event "b"."""
    return lambda event: answer(event) if event.data == "b" else event


def among(kind: Any, hook: OnEvent, place: int, other: Any, **options: Any) -> list[Interceptor]:
    """The hook with two others that let everything pass."""
    chain = [other(keep), other(keep)]
    chain.insert(place, kind(hook, **options))
    return chain


# --- End
# ----------------------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[OnEvent, bytes, tuple[int, int, int, int]]] = {
    "nothing": (lambda event: End(), b"", (0, 0, 1, 0)),
    "the event": (lambda event: End(event), b"data: b\n\n", (1, 0, 0, 0)),
    "another": (lambda event: End(Event("x")), b"data: x\n\n", (0, 1, 0, 0)),
    "a replacement": (lambda event: End(event.replace("x")), b"data: x\n\n", (0, 1, 0, 0)),
    "the event and a last one": (
        lambda event: End(event, Event("x")),
        b"data: b\n\ndata: x\n\n",
        (1, 0, 0, 1),
    ),
    "three": (
        lambda event: End(Event("x"), event, Event("y")),
        b"data: x\n\ndata: b\n\ndata: y\n\n",
        (1, 0, 0, 2),
    ),
}


@KINDS
@OTHERS
@PLACES
@pytest.mark.parametrize(("answer", "left", "counts"), ENDS.values(), ids=ENDS)
async def test_an_end_is_the_last_that_leaves(
    kind: Any,
    other: Any,
    place: int,
    answer: OnEvent,
    left: bytes,
    counts: tuple[int, int, int, int],
) -> None:
    """Its events are sent after everything before them, later ones are not sent, and no later event
    is shown to a hook: however the stream is cut, also when all of it lies in one window.
    """
    seen: list[str] = []

    def see(event: Event) -> Event:
        seen.append(event.data)
        return event

    expected = tuple(a + b for a, b in zip((2, 0, 0, 0), counts, strict=True))
    pools = Pools()
    for chunks in splits(STREAM):
        seen.clear()
        members = [
            ("see", Hook(see)),
            *((str(at), item) for at, item in enumerate(among(kind, at_b(answer), place, other))),
        ]
        async with open_chain(*members, pools=pools) as stream:
            assert await feed(stream, chunks) == b": c\n\ndata: a\n\n" + left
            assert (stream.ended, stream.failure, counted(stream.counts)) == (True, None, expected)
            assert seen == ["a", "b"]
    assert pools.json.statistics().in_use == 0


@KINDS
def test_a_later_hook_sees_the_events_of_an_end(kind: Any) -> None:
    """It may change or drop those events, too: the stream ends all the same."""
    for later, output in ((upper, b"data: B\n\ndata: X\n\n"), (drop, b"")):
        result = run_chain(
            [Hook(lambda event: End(event, Event("x"))), kind(later)], [b"data: b\n\ndata: c\n\n"]
        )
        assert (result.output, result.ended, result.failure) == (output, True, None)


@KINDS
@OTHERS
def test_an_end_drops_the_rest_of_an_earlier_hooks_list(kind: Any, other: Any) -> None:
    """If one event became several, those after the one that was answered with `End` are later
    events: they are neither sent nor shown to the hook that has ended the stream.
    """
    seen: list[str] = []

    def end_at_two(event: Event) -> Any:
        seen.append(event.data)
        return End(event, Event("end")) if event.data == "2" else event

    split: OnEvent = lambda event: [Event(word) for word in event.data.split()]  # noqa: E731
    result = run_chain(
        [other(split), kind(end_at_two), other(keep)], [b"data: 1 2 3\n\ndata: 4\n\n"]
    )
    assert (result.output, result.ended) == (b"data: 1\n\ndata: 2\n\ndata: end\n\n", True)
    assert seen == ["1", "2"]


@KINDS
@pytest.mark.parametrize("later_kind", [Hook, AsyncHook], ids=["then sync", "then async"])
def test_a_later_hooks_skipped_failure_takes_no_end_back(kind: Any, later_kind: Any) -> None:
    """`skip` is as if the failed hook had done nothing, whether it raised or returned nonsense."""

    def raises(event: Event) -> Any:
        raise KeyError

    for wrong in (raises, lambda event: "nonsense"):
        with capture_logs():
            result = run_chain(
                [kind(lambda event: End(event)), later_kind(wrong, on_error="skip")],
                [b"data: a\n\ndata: b\n\n"],
            )
        assert (result.output, result.ended, result.failure) == (b"data: a\n\n", True, None)


@KINDS
def test_an_end_that_is_nonsense_and_skipped_ends_nothing(kind: Any) -> None:
    """It is as if the hook had done nothing: the event passes, and so do those after it."""
    with capture_logs() as logs:
        result = run_chain([kind(at_b(lambda event: End("bye")), on_error="skip")], [STREAM])  # type: ignore[arg-type]
    assert (result.output, result.ended, result.failure) == (STREAM, False, None)
    assert len(errors(logs)) == 1


@KINDS
def test_an_end_that_cannot_be_written_and_is_skipped_ends_nothing(kind: Any) -> None:
    """As any other result that cannot be written: as if the hook had done nothing."""
    with capture_logs() as logs:
        result = run_chain(
            [kind(at_b(lambda event: End(event, Event(json=object()))), on_error="skip")], [STREAM]
        )
    assert (result.output, result.ended, result.failure) == (STREAM, False, None)
    assert len(errors(logs)) == 1


@KINDS
def test_an_end_that_cannot_be_written_is_a_failure(kind: Any) -> None:
    """Nothing of it leaves, and the stream is not taken for whole."""
    with capture_logs():
        result = run_chain([kind(at_b(lambda event: End(event, Event(json=object()))))], [STREAM])
    assert (result.output, result.ended) == (b": c\n\ndata: a\n\n", False)
    assert isinstance(result.failure, HookError)


@KINDS
def test_an_end_at_the_last_event_is_an_end(kind: Any) -> None:
    """Also when nothing comes after it, and when the event that it answers lacks its empty line."""
    assert run_chain([kind(lambda event: End(event))], [b"data: a\n\n"]).ended
    result = run_chain([kind(lambda event: End(event))], [b"data: a"])
    assert (result.output, result.ended) == (b"data: a", True)


@pytest.mark.parametrize("life", [Life, AsyncLife], ids=["sync", "async"])
def test_an_ended_stream_is_intercepted(life: type[Life]) -> None:
    """`on_end` hears `intercepted`, once, in every interceptor."""
    calls: list[Any] = []
    run_chain(
        [life("a", calls), Hook(lambda event: End()), life("b", calls)], [b"data: a\n\ndata: b\n\n"]
    )
    assert [call for call in calls if call[1] in ("on_event", "on_end")] == [
        ("a", "on_event"), *[(name, "on_end", Outcome.INTERCEPTED) for name in "ab"],
    ]  # fmt: skip


def test_an_end_holds_its_events() -> None:
    """As they were given, in order."""
    one, two = Event("1"), Event("2")
    assert (End().events, End(one, two).events) == ((), (one, two))


# --- Abort
# --------------------------------------------------------------------------------------------------------------


def abort(_: Any) -> Any:
    raise Abort("the model has failed: ☠")


ON_ERROR = pytest.mark.parametrize("on_error", ["abort", "skip"])


@KINDS
@OTHERS
@PLACES
@ON_ERROR
async def test_an_abort_ends_the_stream_whatever_on_error(
    kind: Any, other: Any, place: int, on_error: str
) -> None:
    """What came before is delivered, nothing else."""
    for chunks in splits(STREAM):
        chain = among(kind, at_b(abort), place, other, on_error=on_error)
        with capture_logs() as logs:
            async with open_chain(*[(f"i{at}", item) for at, item in enumerate(chain)]) as stream:
                assert await feed(stream, chunks) == b": c\n\ndata: a\n\n"
                failure = stream.failure
                assert isinstance(failure, StreamAborted)
                assert (failure.interceptor, failure.reason, str(failure)) == (
                    f"i{place}",
                    *["the model has failed: ☠"] * 2,
                )
                assert isinstance(failure.__cause__, Abort)
                assert not stream.ended
        assert without_times(logs) == []


@KINDS
@ON_ERROR
def test_an_abort_after_a_list_sends_nothing_of_the_list(kind: Any, on_error: str) -> None:
    """The events of one event leave together or not at all."""
    chain = [Hook(lambda event: [Event("x"), event]), kind(at_b(abort), on_error=on_error)]
    result = run_chain(chain, [b"data: a\n\ndata: b\n\n"])
    assert result.output == b"data: x\n\ndata: a\n\n"
    assert isinstance(result.failure, StreamAborted)


@pytest.mark.parametrize("base", [StreamInterceptor, AsyncStreamInterceptor], ids=["sync", "async"])
@ON_ERROR
async def test_an_abort_in_on_start_ends_the_stream_before_it_begins(
    base: Any, on_error: str
) -> None:
    """Later ones are not started; each that was opened is ended."""
    calls: list[Any] = []

    class Starts(Interceptor):
        def open_stream(self, context: StreamContext) -> Any:
            return type(
                "Stream",
                (base,),
                {"on_start": sync_abort if base is StreamInterceptor else async_abort},
            )()

    def sync_abort(self: Any, head: ResponseHead) -> None:
        abort(head)

    async def async_abort(self: Any, head: ResponseHead) -> None:
        abort(head)

    starts = Starts()
    starts.on_error = on_error  # type: ignore[assignment]
    with capture_logs() as logs:
        async with open_chain(
            ("a", Life("a", calls)), ("s", starts), ("b", Life("b", calls))
        ) as stream:
            with pytest.raises(StreamAborted, match="the model has failed"):
                await stream.start(head())
            await stream.aclose(Outcome.INTERCEPTED)
    assert without_times(logs) == []
    assert [call[:2] for call in calls if call[1] != "open_stream"] == [
        ("a", "on_start"),
        ("a", "on_end"),
        ("b", "on_end"),
    ]


@pytest.mark.parametrize("base", [StreamInterceptor, AsyncStreamInterceptor], ids=["sync", "async"])
async def test_an_abort_in_on_end_comes_too_late(base: Any) -> None:
    """The stream is over: it raises nothing, and the others hear of the end as ever."""
    calls: list[Any] = []

    def sync_abort(self: Any, outcome: Outcome) -> None:
        abort(outcome)

    async def async_abort(self: Any, outcome: Outcome) -> None:
        abort(outcome)

    class Ends(Interceptor):
        def open_stream(self, context: StreamContext) -> Any:
            return type(
                "Stream",
                (base,),
                {"on_end": sync_abort if base is StreamInterceptor else async_abort},
            )()

    async with open_chain(("e", Ends()), ("a", Life("a", calls))):
        pass
    assert calls == [("a", "open_stream"), ("a", "on_end", Outcome.COMPLETED)]


def test_an_abort_is_not_an_interceptor_error() -> None:
    """`except InterceptorError` in a hook does not swallow it, and a class of one's own is one,
    too.
    """

    class Own(Abort):
        pass

    assert not issubclass(Abort, InterceptorError)
    assert str(Abort("why")) == Abort("why").reason == "why"
    failure = Owner("name", Interceptor()).failed("on_event", Own("mine"))
    assert isinstance(failure, StreamAborted)
    assert (failure.interceptor, failure.reason) == ("name", "mine")
