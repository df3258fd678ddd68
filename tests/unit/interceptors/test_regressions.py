"""Mistakes that were made once: each test failed before its mending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interceptors import Event, Interceptor, LoadError, NotJson, StreamInterceptor, loader
from interceptors.redact import Redact
from interceptors.sse import parse_fields
from interceptors.testing import run_chain

BOM = b"\xef\xbb\xbf"


def hook(
    function: Callable[[Event], Any], on_error: str = "abort", name: str = "Hook"
) -> Interceptor:
    """An interceptor of one function."""

    class Stream(StreamInterceptor):
        def on_event(self, event: Event) -> Any:
            return function(event)

    cls = type(
        name, (Interceptor,), {"on_error": on_error, "open_stream": lambda self, context: Stream()}
    )
    made: Interceptor = cls()
    return made


@pytest.mark.parametrize("data", [
    r'{"x":"\ud800","k":"\u0073ecret"}', r'["\ud800\u0073ecret"]',
    r'["secret \ud800 \u0073ecret"]',
])  # fmt: skip
def test_a_lone_surrogate_hides_nothing(data: str) -> None:
    """JavaScript reads such a string, so it must be redacted although a strict decoder refuses it."""
    assert "ecret" not in Redact(["secret"]).redact(data)


@pytest.mark.parametrize("data", ['{"k":"sk-abc"}', '{"k":"sk-abc","x":"\\n"}'])
def test_an_anchored_pattern_means_the_string(data: str) -> None:
    """`^` and `$` stand for the ends of a JSON string, whatever else is in the data."""
    assert "sk-abc" not in Redact(["^sk-[a-z]+$"]).redact(data)


def test_a_string_without_an_end_takes_linear_time() -> None:
    """200,000 escaped quotes: quadratic time would not end in this test's life."""
    data = '["secret' + '\\"' * 200_000
    assert "secret" not in Redact(["secret"]).redact(data)


def test_a_match_is_replaced_once() -> None:
    """A replacement that matches again is not replaced again."""
    assert Redact(["user"], "[user]").redact('{"a":"user"}') == '{"a":"[user]"}'


def test_an_unknown_group_in_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patterns\[0\]"):
        Redact(["a"], r"\g<nope>")


def test_deep_nesting_is_redacted() -> None:
    data = "[" * 3000 + '"secret\\n"' + "]" * 3000
    assert "secret" not in Redact(["secret"]).redact(data)


@pytest.mark.parametrize(
    "function", [lambda e: [e], lambda e: [Event("x"), e], lambda e: e.detach()]
)
def test_an_unfinished_event_keeps_its_bytes(function: Callable[[Event], Any]) -> None:
    """Passed on in a list or detached, it loses nothing."""
    assert run_chain([hook(function)], [b"data: 12345"]).output.endswith(b"data: 12345")


def test_what_follows_an_unfinished_event_is_not_glued_to_it() -> None:
    assert (
        run_chain([hook(lambda e: [e, Event("x")])], [b"data: 12345"]).output
        == b"data: 12345\n\ndata: x\n"
    )


def test_the_bom_stays_at_the_beginning() -> None:
    """An event put before the first does not push the BOM into the middle, where it would spoil a
    field's name.
    """
    output = run_chain([hook(lambda e: [Event("x"), e])], [BOM + b"data: a\n\n"]).output
    assert output == BOM + b"data: x\n\ndata: a\n\n"


def test_a_second_bom_is_one_when_everything_before_was_dropped() -> None:
    """The client then reads it as the stream's, so the hooks see what stands after it."""
    seen: list[str] = []

    def drop_a(event: Event) -> Event | None:
        seen.append(event.data)
        return None if event.data == "a" else event

    run_chain([hook(drop_a)], [b"data: a\n\n" + BOM + b"data: hidden\n\n"])
    assert seen == ["a", "hidden"]


@pytest.mark.parametrize("result", [[1, 1], [0, 1], [1, 0]])
def test_skip_lets_the_event_pass_once(result: list[int]) -> None:
    """Of a list with an event that cannot be written nothing leaves, and the original leaves once,
    counted as passed.
    """
    events = [Event("good"), Event(json=object())]
    done = run_chain(
        [hook(lambda e: [events[index] for index in result], "skip")], [b"data: a\n\n"]
    )
    assert done.output == b"data: a\n\n"
    assert (done.counts.passed, done.counts.changed, done.counts.added) == (1, 0, 0)


def test_an_event_that_cannot_be_written_names_its_maker() -> None:
    guilty, innocent = (
        hook(lambda e: Event(json=object()), name="Guilty"),
        hook(lambda e: e, name="Innocent"),
    )
    failure = run_chain([guilty, innocent], [b"data: a\n\n"]).failure
    assert failure is not None
    assert failure.interceptor == "Guilty"  # type: ignore[attr-defined]


def test_leading_zeros_of_a_retry_do_not_count() -> None:
    assert parse_fields(b"retry: 00000000000000000005\n\n").retry == 5
    assert parse_fields(b"retry: 1" + b"0" * 30 + b"\n\n").retry is None


@pytest.mark.parametrize("block", [b'data: "\xff"\n\n', b'event: e\ndata: "\xff"\n\n'])
def test_json_of_what_is_not_utf8_is_not_json(block: bytes) -> None:
    """However the block is laid out."""
    failed: list[type[Exception]] = []

    def look(event: Event) -> Event:
        try:
            event.json()
        except NotJson as error:
            failed.append(type(error))
        return event

    run_chain([hook(look)], [block])
    assert failed == [NotJson]


def test_json_that_is_nested_too_deep_is_not_json() -> None:
    with pytest.raises(NotJson):
        Event("[" * 5000).json()


def test_no_data_stays_no_data() -> None:
    """`replace(data=event.data)` of an event without data does not make it a message."""
    assert (
        run_chain([hook(lambda e: e.replace(data=e.data))], [b"id: 5\n\n"]).output == b"id: 5\n\n"
    )


def test_stream_classes_behind_an_entry_point_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "behind_an_entry_point.py").write_text(
        "from interceptors import *\nclass S(StreamInterceptor):\n    def on_evnet(self, e): return e\nclass I(Interceptor): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Point:
        name = "x"

        def load(self) -> object:
            import behind_an_entry_point

            return behind_an_entry_point.I

    monkeypatch.setattr(loader, "entry_points", lambda group: [Point()])
    with pytest.raises(LoadError, match="on_evnet"):
        loader.load_interceptor("x", {})


def test_an_async_open_stream_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "with_async_open.py").write_text(
        "from interceptors import *\nclass I(Interceptor):\n    async def open_stream(self, context): return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LoadError, match="async"):
        loader.load_interceptor("with_async_open:I", {})
