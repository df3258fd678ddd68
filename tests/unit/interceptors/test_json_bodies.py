"""JSON responses: the hook that sees a stream's events sees a whole body as one, and may pass or
replace it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from support.interceptors import interceptor
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
    StaleEvent,
    StreamAborted,
)
from interceptors.event import BodyEvent
from interceptors.testing import run_chain, run_json
from pools import Pools

KINDS = pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
BODY = b' {"text": "caf\\u00e9", "n": 1.50}\r\n'


def among(it: Interceptor) -> Iterator[list[tuple[str, Interceptor]]]:
    """The interceptor alone and at each place among others."""
    for before, after in (
        ([], []),
        ([], [Hook(keep)]),
        ([Hook(keep)], []),
        ([Hook(keep)], [AsyncHook(keep)]),
    ):
        yield [
            *(("other", other) for other in before),
            ("it", it),
            *(("other", other) for other in after),
        ]


# What leaves

LEFT: dict[str, tuple[OnEvent, bytes]] = {
    "itself": (keep, BODY),
    "in a list": (lambda event: [event], BODY),
    "in a tuple": (lambda event: (event,), BODY),
    "looked at": (lambda event: event.json() and event, BODY),
    "detached": (lambda event: event.detach(), BODY),
    "as an end": (lambda event: End(event), BODY),
    "json": (lambda event: event.replace(json={"n": event.json()["n"]}), b'{"n":1.5}'),
    "null": (lambda event: event.replace(json=None), b"null"),
    "data": (lambda event: event.replace(data='{"é": 1}'), '{"é": 1}'.encode()),
    "data with line ends": (lambda event: event.replace(data="{\r\n\n}"), b"{\r\n\n}"),
    "a new event with json": (lambda event: Event(json=[1]), b"[1]"),
    "a new event with data": (lambda event: Event("[1, 2]"), b"[1, 2]"),
    "another in a list": (lambda event: [Event(json=[1])], b"[1]"),
    "another as an end": (lambda event: End(Event(json=[1])), b"[1]"),
}


@KINDS
@pytest.mark.parametrize(("hook", "left"), LEFT.values(), ids=LEFT)
async def test_a_body_passes_or_is_replaced(kind: Any, hook: OnEvent, left: bytes) -> None:
    """Byte for byte, or by a value or text without `data:`; counted once, and no lease is taken."""
    pools = Pools()
    for chain in among(kind(hook)):
        async with open_chain(*chain, json=True, pools=pools) as stream:
            replaced = await stream.process_body(memoryview(bytearray(BODY)))
            assert (BODY if replaced is None else replaced) == left
            passed = replaced is None
            assert counted(stream.counts) == ((1, 0, 0, 0) if passed else (0, 1, 0, 0))
            assert passed or hook is not keep
    assert pools.json.statistics().allocations == 0


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"data: x\n\ndata: y\n\n", b"\xef\xbb\xbf{}", b"[" * 5000, b"\r\n\n"]
)
def test_a_body_that_is_not_json_passes_as_well(body: bytes) -> None:
    seen: list[bytes] = []

    def see(event: Event) -> Event:
        seen.append(event.raw)
        assert isinstance(event.data, str)
        return event

    assert run_json([Hook(see), AsyncHook(keep)], body) == body
    assert seen == [body]


@KINDS
def test_later_hooks_see_what_an_earlier_one_made_of_it(kind: Any) -> None:
    def add(word: str) -> OnEvent:
        return lambda event: event.replace(json=[*event.json(), word]) if event.is_body else None

    skipped = [
        kind(hook, on_error="skip") for hook in (drop, fail, lambda event: event.replace(id="7"))
    ]
    chain = [kind(add("a")), *skipped, Hook(add("b")), kind(add("c"))]
    with capture_logs():
        assert run_json(chain, b'\xef\xbb\xbf["first"]') == b'["first","a","b","c"]'


def test_one_hook_serves_streamed_and_unstreamed_answers() -> None:
    """Its life is a stream's: started with the head, shown one event of data alone, ended once."""
    calls: list[Any] = []

    def see(event: Event) -> Event:
        calls.append((event.event, event.id, event.retry, event.json()))
        return event

    sees = interceptor(
        wants_json=True,
        opened=lambda context: calls.append(context.path),
        on_start=lambda head: calls.append(head.media_type),
        on_event=see,
        on_end=lambda outcome: calls.append(outcome),
    )
    assert run_json([sees()], b"[1]", request=Request(path="/p")) == b"[1]"
    assert calls == ["/p", "application/json", (None, None, None, [1]), Outcome.COMPLETED]


# What has no meaning for a body

NONE, FIELDS = (
    "Misused: Guard's on_event returned 0 events, expected one",
    "returned an event with a type, an id or a retry, expected one with json or data",
)
REFUSED: dict[str, tuple[OnEvent, str]] = {
    "None": (drop, NONE),
    "an empty list": (lambda event: [], NONE),
    "an empty end": (lambda event: End(), NONE),
    "itself and another": (lambda event: [event, Event("x")], "returned 2 events, expected one"),
    "two others": (lambda event: [Event("x"), Event("y")], "returned 2 events, expected one"),
    "with an id": (lambda event: event.replace(id="7"), FIELDS),
    "with a type": (lambda event: event.replace(event="e"), FIELDS),
    "with a retry": (lambda event: Event("x", retry=5), FIELDS),
    "text": (lambda event: "text", "returned str, expected an Event, a list of Events, End(...) or None"),
    "what cannot be encoded": (lambda event: event.replace(json=object()), "object"),
    "a failure": (fail, "KeyError: 'in the hook'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [Hook, AsyncHook], ids=["sync", "async"])
@pytest.mark.parametrize(("hook", "problem"), REFUSED.values(), ids=REFUSED)
async def test_a_body_cannot_end_twice(kind: Any, hook: OnEvent, problem: str) -> None:
    """With the interceptor and what was expected; skipped, it is as if the hook had done nothing."""
    guard = type("Guard", (kind,), {})
    for chain in among(guard(hook)):
        with capture_logs() as logs:
            async with open_chain(*chain, json=True) as stream:
                with pytest.raises(HookError) as caught:
                    await stream.process_body(bytearray(BODY))
        assert (caught.value.interceptor, caught.value.hook) == ("it", "on_event")
        assert problem in str(caught.value)
        assert errors(logs) == [("it", "on_event", "abort")]
    for chain in among(guard(hook, on_error="skip")):
        with capture_logs() as logs:
            async with open_chain(*chain, json=True) as stream:
                assert await stream.process_body(bytearray(BODY)) is None
        assert errors(logs) == [("it", "on_event", "skip")]


@KINDS
@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_an_abort_ends_the_response(kind: Any, on_error: str) -> None:
    def abort(event: Event) -> Event:
        raise Abort("too expensive")

    with capture_logs() as logs, pytest.raises(StreamAborted, match=r"^too expensive$"):
        run_json([kind(abort, on_error=on_error)], BODY)
    assert errors(logs) == []


@KINDS
@pytest.mark.parametrize("body", [b'{"a": 1}', b'{"' + b"x" * 70])
@pytest.mark.parametrize("size", [1, 100])
def test_no_white_space_leaves_before_a_body_that_fails(kind: Any, body: bytes, size: int) -> None:
    """In an event stream. An error event follows: a space would become part of its first line."""
    stream = b"\n \t" + body
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    with capture_logs():
        result = run_chain([kind(fail)], chunks, max_event_bytes=64)
    assert result.failure is not None
    assert result.output in (b"", b"\n")


# The event itself


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
    assert_stale(kept[0])
    assert (kept[1].raw, kept[1].json()["n"]) == (BODY, 1.5)


def assert_stale(event: Event) -> None:
    for touch in (
        lambda: event.raw, lambda: event.data, event.json, event.detach, lambda: event.replace(id="1"),
    ):  # fmt: skip
        with pytest.raises(StaleEvent):
            touch()


async def test_a_body_is_stale_when_its_exchange_was_cancelled() -> None:
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
    assert_stale(kept[0])


@pytest.mark.parametrize(
    "body", [b"", b"hunter2", b'{"password": hunter2}', b'"hunter2', b'"hunter2\xff"', b"[" * 5000]
)
def test_the_error_for_a_body_that_is_not_json_does_not_contain_it(body: bytes) -> None:
    """NotJson in the hook; unhandled it is the hook's failure."""
    with pytest.raises(NotJson, match="this response's body is n") as caught:
        BodyEvent(body).json()
    assert "hunter2" not in str(caught.value) + repr(BodyEvent(body))
    with capture_logs() as logs, pytest.raises(HookError) as failed:
        run_json([Hook(lambda event: event.json() and event)], body)
    assert "hunter2" not in str(failed.value)
    assert len(errors(logs)) == 1


def test_a_body_is_decoded_once() -> None:
    seen: list[Any] = []

    def look(event: Event) -> Event:
        seen.append(event.json())
        return event

    run_json([Hook(look), AsyncHook(look), Hook(look)], BODY)
    assert seen[0] is seen[1] is seen[2]
