"""`on_complete`: what an interceptor adds when upstream has ended its stream, whole; and when it is
not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs
from unit.interceptors.scripted import Hook, drop, upper

from interceptors import (
    Abort,
    AsyncStreamInterceptor,
    End,
    Event,
    HookError,
    Interceptor,
    StreamAborted,
    StreamContext,
    StreamInterceptor,
)
from interceptors.testing import run_chain


class Last(Interceptor):
    """Its one hook is `on_complete`; with `held`, it also drops every event and keeps its data."""

    def __init__(
        self, on_complete: Callable[[], Any], *, asynchronous: bool = False, on_error: Any = "abort"
    ) -> None:
        self.hook = on_complete
        self.asynchronous = asynchronous
        self.on_error = on_error

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        return _AsyncLastStream(self.hook) if self.asynchronous else _LastStream(self.hook)


class _LastStream(StreamInterceptor):
    def __init__(self, hook: Callable[[], Any]) -> None:
        self.hook = hook

    def on_complete(self) -> Any:
        return self.hook()


class _AsyncLastStream(AsyncStreamInterceptor):
    def __init__(self, hook: Callable[[], Any]) -> None:
        self.hook = hook

    async def on_complete(self) -> Any:
        return self.hook()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_it_returns_leaves_as_last(asynchronous: bool) -> None:
    """None, one event, several; each is counted as added."""
    for answer, output in (
        (None, b""),
        (Event("bye"), b"data: bye\n\n"),
        ([Event("a"), Event("b")], b"data: a\n\ndata: b\n\n"),
    ):
        result = run_chain(
            [Last(lambda answer=answer: answer, asynchronous=asynchronous)], [b"data: 1\n\n"]
        )  # type: ignore[misc]
        assert result.output == b"data: 1\n\n" + output
        assert (result.failure, result.counts.added) == (None, output.count(b"data"))


def test_later_interceptors_see_it_and_are_asked_after_it() -> None:
    """The first's events pass the second's `on_event` before the second's own leave, which pass
    only what is behind the second.
    """
    result = run_chain(
        [Last(lambda: Event("one")), Hook(upper), Last(lambda: Event("two"))],
        [b"data: x\n\n"],
    )
    assert result.output == b"data: X\n\ndata: ONE\n\ndata: two\n\n"


def test_a_later_interceptor_may_drop_it_or_end_the_stream() -> None:
    """`on_event` handles it like any event; after `End` no other hook is called."""
    assert run_chain([Last(lambda: Event("one")), Hook(drop)], [b"data: x\n\n"]).output == b""

    def end(event: Event) -> Any:
        return End(event) if event.data == "one" else event

    result = run_chain(
        [Last(lambda: Event("one")), Hook(end), Last(lambda: Event("never"))], [b"data: x\n\n"]
    )
    assert (result.output, result.ended) == (b"data: x\n\ndata: one\n\n", True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_its_failure_is_a_hooks(asynchronous: bool) -> None:
    """`abort` ends the stream with an error that names the hook, `skip` logs it."""

    def fail() -> Any:
        raise KeyError("x")

    def abort() -> Any:
        raise Abort("enough")

    with capture_logs() as log:
        result = run_chain([Last(fail, asynchronous=asynchronous)], [b"data: 1\n\n"])
        assert isinstance(result.failure, HookError)
        assert result.failure.hook == "on_complete"
        skipped = run_chain(
            [Last(fail, asynchronous=asynchronous, on_error="skip"), Last(lambda: Event("z"))],
            [b"data: 1\n\n"],
        )
        assert (skipped.failure, skipped.output) == (None, b"data: 1\n\ndata: z\n\n")
        wrong = run_chain([Last(lambda: "text", asynchronous=asynchronous)], [b"data: 1\n\n"])
        assert "'s on_complete returned str, expected an Event, a list of Events or None" in str(
            wrong.failure
        )
    assert [line["hook"] for line in log] == ["on_complete"] * 3
    assert isinstance(
        run_chain([Last(abort, asynchronous=asynchronous)], []).failure, StreamAborted
    )


def test_it_is_not_asked_in_the_middle_of_an_event_or_after_an_end() -> None:
    """Behind an event without its empty line nothing may follow, and a stream that a hook has ended
    is over.
    """
    never = Last(lambda: Event("never"))
    assert (
        run_chain([Hook(lambda event: event), never], [b"data: 1\n\ndata: 2"]).output
        == b"data: 1\n\ndata: 2"
    )
    assert run_chain([Hook(End), never], [b"data: 1\n\n"]).output == b"data: 1\n\n"
