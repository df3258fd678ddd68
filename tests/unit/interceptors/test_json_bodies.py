"""JSON responses: the hook that sees a stream's events sees a whole body as one, and may pass or
replace it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.logs import without_times
from unit.interceptors.scripted import (
    AsyncHook,
    Hook,
    OnEvent,
    counted,
    drop,
    errors,
    fail,
    keep,
    open_chain,
)

from interceptors import (
    Abort,
    End,
    Event,
    HookError,
    Interceptor,
    NotJson,
    Outcome,
    Request,
    ResponseHead,
    StaleEvent,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
)
from interceptors.event import BodyEvent
from interceptors.testing import run_json
from pools import Pools, encode_json

KINDS = pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
BODY = b' {"text": "caf\\u00e9", "n": 1.50}\r\n'


class Guard(Hook):
    """Its class's name is to be found in errors."""


AsyncGuard = type("Guard", (AsyncHook,), {})
GUARDS = pytest.mark.parametrize("guard", [Guard, AsyncGuard], ids=["sync", "async"])


# --- what leaves
# --------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    "hook",
    [
        keep,
        lambda event: [event],
        lambda event: (event,),
        lambda event: event.json() and event,
        lambda event: event.detach(),
    ],
    ids=["itself", "in a list", "in a tuple", "looked at", "detached"],
)
def test_an_unchanged_body_leaves_byte_for_byte(kind: Any, hook: OnEvent) -> None:
    """Its spaces, escapes and line ends are its own business."""
    assert run_json([kind(hook), Hook(keep)], BODY) == BODY


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"data: x\n\ndata: y\n\n", b"\xef\xbb\xbf{}", b"[" * 5000, b"\r\n\n"]
)
def test_a_body_that_is_not_json_passes_as_well(body: bytes) -> None:
    """A hook that only reads it as bytes or text, or does not read it, changes nothing."""
    seen: list[bytes] = []

    def see(event: Event) -> Event:
        seen.append(event.raw)
        assert isinstance(event.data, str)
        return event

    assert run_json([Hook(see), AsyncHook(keep)], body) == body
    assert seen == [body]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(JSON, JSON)
def test_any_value_can_be_seen_and_given(value: Any, other: Any) -> None:
    """The hook decodes what the body contains, and the client decodes what the hook returned."""
    seen: list[Any] = []

    def change(event: Event) -> Event:
        seen.append(event.json())
        return event.replace(json=other)

    assert run_json([Hook(change)], encode_json(value)) == encode_json(other)
    assert seen == [value]


CHANGES: dict[str, tuple[OnEvent, bytes]] = {
    "json": (lambda event: event.replace(json={"n": event.json()["n"]}), b'{"n":1.5}'),
    "null": (lambda event: event.replace(json=None), b"null"),
    "data": (lambda event: event.replace(data='{"é": 1}'), '{"é": 1}'.encode()),
    "data with line ends": (lambda event: event.replace(data="{\r\n\n}"), b"{\r\n\n}"),
    "a new event with json": (lambda event: Event(json=[1]), b"[1]"),
    "a new event with data": (lambda event: Event("[1, 2]"), b"[1, 2]"),
    "in a list": (lambda event: [Event(json=[1])], b"[1]"),
    "as an end": (lambda event: End(Event(json=[1])), b"[1]"),
    "the body as an end": (lambda event: End(event), BODY),
}


@KINDS
@pytest.mark.parametrize(("hook", "left"), CHANGES.values(), ids=CHANGES)
def test_a_body_may_be_replaced(kind: Any, hook: OnEvent, left: bytes) -> None:
    """By a value or by text, with no `data:` around it."""
    assert run_json([kind(hook)], BODY) == left
    assert run_json([Hook(keep), kind(hook), AsyncHook(keep)], BODY) == left


@KINDS
def test_later_hooks_see_what_an_earlier_one_made_of_it(kind: Any) -> None:
    """In the list's order, through the very hooks that see events."""

    def add(word: str) -> OnEvent:
        return lambda event: event.replace(json=[*event.json(), word]) if event.is_body else None

    assert (
        run_json([kind(add("a")), Hook(add("b")), kind(add("c"))], b'["first"]')
        == b'["first","a","b","c"]'
    )


def test_one_hook_serves_streamed_and_unstreamed_answers() -> None:
    """Its life is a stream's: started with the head, shown one event of data alone, ended once."""
    calls: list[Any] = []

    class Stream(StreamInterceptor):
        def on_start(self, head: ResponseHead) -> None:
            calls.append(head.media_type)

        def on_event(self, event: Event) -> Event:
            calls.append((event.event, event.id, event.retry, event.json()))
            return event

        def on_end(self, outcome: Outcome) -> None:
            calls.append(outcome)

    class Sees(Interceptor):
        wants_json = True

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            calls.append(context.path)
            return Stream()

    assert run_json([Sees()], b"[1]", request=Request(path="/p")) == b"[1]"
    assert calls == ["/p", "application/json", (None, None, None, [1]), Outcome.COMPLETED]


def test_who_does_not_want_json_is_not_asked() -> None:
    """`open_stream` alone is for event streams: a body passes unseen."""

    class Fails(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            raise KeyError

    assert run_json([Fails()], BODY) == BODY


@KINDS
async def test_a_body_is_counted_once(kind: Any) -> None:
    """As passed or as changed."""
    for hook, counts, left in (
        (keep, (1, 0, 0, 0), None),
        (lambda event: Event(json=1), (0, 1, 0, 0), b"1"),
    ):
        async with open_chain(("a", kind(hook)), json=True) as stream:
            assert await stream.process_body(bytearray(BODY)) == left
            assert counted(stream.counts) == counts


# --- what has no meaning for a body
# -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[OnEvent, str]] = {
    "None": (drop, "returned 0 events, expected one"),
    "an empty list": (lambda event: [], "returned 0 events, expected one"),
    "an empty end": (lambda event: End(), "returned 0 events, expected one"),
    "itself and another": (lambda event: [event, Event("x")], "returned 2 events, expected one"),
    "two others": (lambda event: [Event("x"), Event("y")], "returned 2 events, expected one"),
    "an event with an id": (
        lambda event: event.replace(id="7"),
        "returned an event with a type, an id or a retry",
    ),
    "an event with a type": (
        lambda event: event.replace(event="e"),
        "expected one with json or data",
    ),
    "an event with a retry": (
        lambda event: Event("x", retry=5),
        "returned an event with a type, an id or a retry",
    ),
    "text": (
        lambda event: "text",
        "returned str, expected an Event, a list of Events, End(...) or None",
    ),
    "what cannot be encoded": (lambda event: event.replace(json=object()), "object"),
    "a failure": (fail, "KeyError: 'in the hook'"),
}
OTHERS: dict[str, Callable[[Interceptor], list[Interceptor]]] = {
    "alone": lambda it: [it],
    "first": lambda it: [it, Hook(keep)],
    "last": lambda it: [Hook(keep), it],
    "between": lambda it: [Hook(keep), it, AsyncHook(keep)],
}


@GUARDS
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize(("hook", "problem"), REFUSED.values(), ids=REFUSED)
async def test_what_only_a_stream_could_carry_is_refused(
    guard: Any, hook: OnEvent, problem: str, others: Any
) -> None:
    """A HookError names the interceptor whose hook it was, wherever it stands, and what was
    expected.
    """
    it = guard(hook)
    chain = [("guard" if item is it else "other", item) for item in others(it)]
    with capture_logs() as logs:
        async with open_chain(*chain, json=True) as stream:
            with pytest.raises(HookError) as caught:
                await stream.process_body(bytearray(BODY))
    assert (caught.value.interceptor, caught.value.hook) == ("guard", "on_event")
    assert problem in str(caught.value)
    assert errors(logs) == [("guard", "on_event", "abort")]


@pytest.mark.parametrize("result", ["None", "two others", "an event with an id", "text"])
async def test_a_refused_result_names_the_class_and_the_hook(result: str) -> None:
    """Named as in the configuration, which identifies one of several; the class has the mistake."""
    with capture_logs():
        async with open_chain(("configured", Guard(REFUSED[result][0])), json=True) as stream:
            with pytest.raises(
                HookError,
                match=r"^configured\.on_event: Misused: Guard's on_event returned .*, expected",
            ):
                await stream.process_body(bytearray(BODY))


@GUARDS
@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("hook", [hook for hook, _ in REFUSED.values()], ids=REFUSED)
def test_skipped_it_is_as_if_the_hook_had_done_nothing(
    guard: Any, hook: OnEvent, others: Any
) -> None:
    """The body keeps its bytes, whatever the others report about their own errors."""
    with capture_logs() as logs:
        assert run_json(others(guard(hook, on_error="skip")), BODY) == BODY
    assert errors(logs) == [("Guard", "on_event", "skip")]


@GUARDS
def test_skipped_it_leaves_what_the_others_made_of_it(guard: Any) -> None:
    """What an earlier hook changed stays changed, and what a later one changes is changed."""
    for hook in (drop, fail, lambda event: event.replace(id="7")):
        chain = [
            Hook(lambda event: event.replace(json=["first"])),
            guard(hook, on_error="skip"),
            Hook(lambda event: event.replace(json=[*event.json(), "last"])),
        ]
        with capture_logs():
            assert run_json(chain, b"1") == b'["first","last"]'


@GUARDS
@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_an_abort_ends_the_response(guard: Any, on_error: str) -> None:
    """Whatever `on_error`, and with its reason."""

    def abort(event: Event) -> Event:
        raise Abort("too expensive")

    with capture_logs() as logs, pytest.raises(StreamAborted, match=r"^too expensive$"):
        run_json([guard(abort, on_error=on_error)], BODY)
    assert without_times(logs) == []


async def test_an_async_hook_has_its_time_for_a_body(autojump_clock: object) -> None:
    """As for an event: a HookError, or with skip the body unchanged."""
    for on_error in ("abort", "skip"):
        slow = AsyncHook(keep, on_error, before=trio.sleep_forever, hook_timeout_s=1.5)
        with capture_logs():
            async with open_chain(("slow", slow), json=True) as stream:
                if on_error == "skip":
                    assert await stream.process_body(bytearray(BODY)) is None
                else:
                    with pytest.raises(HookError, match=r"^slow\.on_event: HookTooSlow: .*1\.5 s"):
                        await stream.process_body(bytearray(BODY))


# --- the event itself
# ---------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(
    "answer", [keep, lambda event: Event(json=1), fail], ids=["passed", "changed", "failed"]
)
async def test_a_kept_body_is_stale_when_its_hooks_have_run(kind: Any, answer: OnEvent) -> None:
    """Its buffer goes back to a pool."""
    kept: list[Event] = []

    def hold(event: Event) -> Any:
        kept.extend([event, event.detach()])
        event.json()
        return answer(event)

    body = bytearray(BODY)
    with capture_logs():
        async with open_chain(("hold", kind(hold, on_error="skip")), json=True) as stream:
            await stream.process_body(body)
    body[:] = b"another stream's"
    body.extend(b"x")  # BufferError if something still saw it
    for touch in (
        lambda e: e.raw,
        lambda e: e.data,
        lambda e: e.json(),
        lambda e: e.detach(),
        lambda e: e.replace(id="1"),
    ):
        with pytest.raises(StaleEvent):
            touch(kept[0])
    assert (kept[1].raw, kept[1].json()["n"]) == (BODY, 1.5)


async def test_a_body_is_stale_when_its_exchange_was_cancelled() -> None:
    """Also where the hook never answered."""
    kept: list[Event] = []

    async def hold(event: Event) -> Event:
        kept.append(event)
        await trio.sleep_forever()
        return event

    with trio.CancelScope() as scope:
        async with open_chain(("a", AsyncHook(hold)), json=True) as stream:
            scope.cancel()
            await stream.process_body(bytearray(BODY))
    assert scope.cancelled_caught
    with pytest.raises(StaleEvent):
        _ = kept[0].raw


@pytest.mark.parametrize(
    "body", [b"", b"hunter2", b'{"password": hunter2}', b'"hunter2', b'"hunter2\xff"', b"[" * 5000]
)
def test_the_error_for_a_body_that_is_not_json_does_not_contain_it(body: bytes) -> None:
    """NotJson in the hook; unhandled it is the hook's failure."""
    with pytest.raises(NotJson, match="this response's body is n") as caught:
        BodyEvent(body).json()
    assert "hunter2" not in str(caught.value)
    with capture_logs() as logs, pytest.raises(HookError) as failed:
        run_json([Hook(lambda event: event.json() and event)], body)
    assert "hunter2" not in str(failed.value)
    assert len(errors(logs)) == 1


def test_a_body_is_decoded_once() -> None:
    """All hooks that look at an unchanged body share one decoding."""
    seen: list[Any] = []

    def look(event: Event) -> Event:
        seen.append(event.json())
        return event

    run_json([Hook(look), AsyncHook(look), Hook(look)], BODY)
    assert seen[0] is seen[1] is seen[2]


def test_a_body_in_a_log_shows_nothing() -> None:
    """Its text may be secret."""
    assert repr(BodyEvent(b'"hunter2"')) == "<BodyEvent>"


async def test_nothing_is_borrowed_for_a_body() -> None:
    """The replacement has its own bytes."""
    pools = Pools()
    async with open_chain(
        ("a", Hook(lambda event: event.replace(json=1))), json=True, pools=pools
    ) as stream:
        assert await stream.process_body(memoryview(bytearray(BODY))) == b"1"
    assert pools.json.statistics().allocations == 0
