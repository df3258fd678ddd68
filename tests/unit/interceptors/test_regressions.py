"""Mistakes that were made once: each test failed before its mending."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unit.interceptors.scripted import BOM, Hook

from interceptors import Event, LoadError, NotJson, loader
from interceptors.redact import Redact
from interceptors.sse import parse_fields
from interceptors.testing import run_chain


@pytest.mark.parametrize(
    ("pattern", "data"),
    [
        ("secret", r'{"x":"\ud800","k":"\u0073ecret"}'),  # which only a strict decoder refuses
        ("secret", r'["\ud800\u0073ecret"]'),
        ("secret", r'["secret \ud800 \u0073ecret"]'),
        ("^secret$", '{"k":"secret"}'),  # the ends of a JSON string, whatever else is there
        ("^secret$", '{"k":"secret","x":"\\n"}'),
        ("secret", "[" * 3000 + '"secret\\n"' + "]" * 3000),
        ("secret", '["secret' + '\\"' * 200_000),  # quadratic time would not end
    ],
    ids=range(7),
)
def test_nothing_hides_a_match(pattern: str, data: str) -> None:
    assert "ecret" not in Redact([pattern]).redact(data)


def test_a_match_is_replaced_once() -> None:
    """A replacement that matches again is not replaced again."""
    assert Redact(["user"], "[user]").redact('{"a":"user"}') == '{"a":"[user]"}'


def test_an_unknown_group_in_a_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"patterns\[0\]"):
        Redact(["a"], r"\g<nope>")


@pytest.mark.parametrize(
    ("function", "sent", "left"),
    [
        (lambda e: [e], b"data: 12345", b"data: 12345"),
        (lambda e: [Event("x"), e], b"data: 12345", b"data: x\n\ndata: 12345"),
        (lambda e: e.detach(), b"data: 12345", b"data: 12345"),
        (lambda e: [e, Event("x")], b"data: 12345", b"data: 12345\n\ndata: x\n"),
        (lambda e: [Event("x"), e], BOM + b"data: a\n\n", BOM + b"data: x\n\ndata: a\n\n"),
        (lambda e: e.replace(data=e.data), b"id: 5\n\n", b"id: 5\n\n"),
    ],
    ids=[
        "unfinished, in a list",
        "unfinished, after another",
        "unfinished, detached",
        "before another: not glued",
        "the BOM stays at the beginning",
        "no data stays no data",
    ],
)
def test_what_a_hook_returns_leaves_as_it_should(function: Any, sent: bytes, left: bytes) -> None:
    assert run_chain([Hook(function)], [sent]).output == left


def test_a_second_bom_is_one_when_everything_before_was_dropped() -> None:
    """The client then reads it as the stream's, so the hooks see what stands after it."""
    seen: list[str] = []

    def drop_a(event: Event) -> Event | None:
        seen.append(event.data)
        return None if event.data == "a" else event

    run_chain([Hook(drop_a)], [b"data: a\n\n" + BOM + b"data: hidden\n\n"])
    assert seen == ["a", "hidden"]


@pytest.mark.parametrize("result", [[1, 1], [0, 1], [1, 0]])
def test_skip_lets_the_event_pass_once(result: list[int]) -> None:
    """Of a list with an event that cannot be written nothing leaves, and the original leaves once,
    counted as passed.
    """
    events = [Event("good"), Event(json=object())]
    made = Hook(lambda e: [events[index] for index in result], "skip")
    done = run_chain([made], [b"data: a\n\n"])
    assert done.output == b"data: a\n\n"
    assert (done.counts.passed, done.counts.changed, done.counts.added) == (1, 0, 0)


def test_an_event_that_cannot_be_written_names_its_maker() -> None:
    guilty = type("Guilty", (Hook,), {})(lambda e: Event(json=object()))
    failure: Any = run_chain([guilty, Hook(lambda e: e)], [b"data: a\n\n"]).failure
    assert failure.interceptor == "Guilty"


def test_leading_zeros_of_a_retry_do_not_count() -> None:
    assert parse_fields(b"retry: 00000000000000000005\n\n").retry == 5
    assert parse_fields(b"retry: 1" + b"0" * 30 + b"\n\n").retry is None


@pytest.mark.parametrize(
    "block", [b'data: "\xff"\n\n', b'event: e\ndata: "\xff"\n\n', b"data: " + b"[" * 5000 + b"\n\n"]
)
def test_what_is_not_utf8_or_nested_too_deep_is_not_json(block: bytes) -> None:
    seen: list[Event] = []

    def look(event: Event) -> Event:
        seen.append(event)
        with pytest.raises(NotJson):
            event.json()
        return event

    assert run_chain([Hook(look)], [block]).failure is None
    assert len(seen) == 1


def test_streams_of_entry_points_are_checked(
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
