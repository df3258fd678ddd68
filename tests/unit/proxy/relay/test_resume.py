"""A stream over several connections: what passes of each, when it continues, and when not."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.event_source import dispatched

from interceptors import EventTooLarge
from proxy.config import Reconnect
from proxy.dialects import DIALECTS
from proxy.relay.resume import MAX_ID_BYTES, WINDOW, Resume


def resume_for(
    dialect: str = "generic", max_event_bytes: int = 1 << 20, roll: float = 0.0, **options: Any
) -> Resume:
    return Resume(
        Reconnect(enabled=True, **options), DIALECTS[dialect], max_event_bytes, lambda: roll
    )


def feed(resume: Resume, data: bytes, sizes: Callable[[], int] = lambda: 1 << 20) -> bytes:
    """What passes of one connection, which brings `data` in pieces."""
    passed, rest, at = b"", b"", 0
    while at < len(data):
        size = sizes()
        buffer = bytearray(rest + data[at : at + size])
        at += size
        first, last, behind = resume.take(buffer, 0, len(buffer))
        assert 0 <= first <= last <= behind <= len(buffer)
        passed += buffer[first:last]
        rest = bytes(buffer[behind:])
        if resume.failure is not None:
            break
    return passed


def event(number: int) -> bytes:
    return b"id: %d\ndata: event %d\n\n" % (number, number)


def events(numbers: Iterable[int]) -> bytes:
    return b"".join(map(event, numbers))


# What passes


def test_an_event_that_is_too_large_ends_the_stream() -> None:
    """Whole or not; what came before it has passed."""
    for big in (b"data: " + b"x" * 100 + b"\n\n", b"data: " + b"x" * 100):
        resume = resume_for(max_event_bytes=64)
        assert feed(resume, event(1) + big + event(2)) == event(1)
        assert isinstance(resume.failure, EventTooLarge)


A, B, HELLO = b"data: no id\n\n", b": hi\n\n", b"data: hello again\n\n"


@pytest.mark.parametrize(
    ("first", "second", "passes"),
    [
        # A server that begins anew, and one that goes back.
        (events(range(1, 6)), events(range(1, 9)), events(range(6, 9))),
        (events(range(1, 6)), events(range(3, 9)), events(range(6, 9))),
        # Events between old ones are old, also without an id; comments pass.
        (event(1) + A + event(2), B + event(1) + A + event(2) + event(3), B + event(3)),
        # An event without an id before any with one is new.
        (event(1), HELLO + event(1) + event(2), HELLO + event(2)),
        # After an event that is new, nothing is dropped.
        (events([1, 2]), events([3, 1, 2]), events([3, 1, 2])),
        # The first event is known after more events than are remembered.
        (events(range(3 * WINDOW)), events(range(3 * WINDOW + 2)),
         events(range(3 * WINDOW, 3 * WINDOW + 2))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_what_the_client_has_had_is_dropped(
    first: bytes, second: bytes, passes: bytes, end: bytes
) -> None:
    """Also an unfinished event."""
    first, second, passes = (part.replace(b"\n", end) for part in (first, second, passes))
    for size in (1, 7, 1000) if len(first) < 1000 else (1000,):
        sizes = itertools.repeat(size).__next__
        resume = resume_for()
        assert feed(resume, first + b"id: 6" + end + b"data: unfin", sizes) == first
        resume.begin()
        assert feed(resume, second, sizes) == passes
        assert len(resume._recent) <= WINDOW


# Whether it continues


@pytest.mark.parametrize(
    ("stream", "wants"),
    [
        (b"", False),
        (b": comment\n\n", False),
        (b"data: no id\n\n", False),
        (b"id: 1\ndata: x\n\n", True),
        (b"id: 1\ndata: x\n\n: comment\n\n\nretry: 5\n\n", True),
        (b"id: 1\ndata: x\n\nid: 2\ndata: unfin", True),
        (b"id: 1\ndata:\n\n", True),
        (b"id: 1\n\n", True),
        (b"id\ndata: x\n\n", False),
        (b"id: 1\ndata: x\n\nid:\ndata: y\n\n", False),
        (b"id: 1\ndata: x\n\ndata: y\n\n", False),
        (b"id: a\0b\ndata: x\n\n", False),
        (b"id: a\x01b\ndata: x\n\n", False),
        (b"id:  a\ndata: x\n\n", False),
        (b"id: \xe2\x82\xac \ndata: x\n\n", False),
        (b"id: \xe2\x82\xac\ndata: x\n\n", True),
        (b"id: a b\ndata: x\n\n", True),
        (b"id: " + b"a" * MAX_ID_BYTES + b"\ndata: x\n\n", True),
        (b"id: " + b"a" * (MAX_ID_BYTES + 1) + b"\ndata: x\n\n", False),
        (b"retry: 60000\nid: 1\ndata: x\n\n", True),
        (b"retry: 60001\nid: 1\ndata: x\n\n", False),
        (b"retry: soon\nid: 1\ndata: x\n\n", True),
    ],
)
def test_a_stream_resumes_after_an_event_with_an_id(stream: bytes, wants: bool) -> None:
    """Not after one without an id, nor after one whose id cannot be sent in a header."""
    resume = resume_for()
    feed(resume, stream)
    assert resume.can_resume(clean=False) is wants
    assert resume.can_resume(clean=True) is wants


@pytest.mark.parametrize(
    ("last", "dialects"),
    [
        (b"id: 9\ndata: [DONE]\n\n", {"openai", "generic", "abort"}),
        (b"id: 9\ndata:[DONE]\n\n", {"openai", "generic", "abort"}),
        (
            b'id: 9\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
            {"anthropic", "generic", "abort"},
        ),
        (b"id: 9\nevent: message_stop\n\n", set()),
        (b"id: 9\ndata: [DONE]\ndata: not\n\n", set()),
        (b'id: 9\ndata: "[DONE]"\n\n', set()),
    ],
)
def test_the_last_event_of_each_dialect_ends_the_stream(last: bytes, dialects: set[str]) -> None:
    for dialect in DIALECTS:
        resume = resume_for(dialect)
        feed(resume, event(1) + last)
        assert resume.done is (dialect in dialects)
        assert resume.can_resume(clean=False) is (dialect not in dialects)


def test_with_mcp_a_clean_end_ends_the_stream() -> None:
    """A server may close after an event with an id, and the client reconnects (MCP 2025-11-25)."""
    resume = resume_for("mcp")
    feed(resume, event(1))
    assert not resume.can_resume(clean=True)
    assert resume.can_resume(clean=False)


# When


@pytest.mark.parametrize(
    ("stream", "roll", "delays"),
    [
        # Between their least and twice that, by chance.
        (b"", 0.0, [1, 2, 4, 8, 10, 10]),
        (b"", 1.0, [2, 4, 8, 16, 20, 20]),
        # The server's `retry` is the first delay, and no later one is shorter; the last one counts.
        (b"retry: 100\n\nretry: 4000\n\n", 0.0, [4, 8, 10, 10, 10, 10]),
        (b"retry: 50\n\n", 0.0, [0.05, 2, 4, 8, 10, 10]),
        (b"retry: 20000\n\n", 0.0, [20] * 6),
        (b"retry: 0\n\n", 0.0, [0, 2, 4, 8, 10, 10]),
    ],
)
def test_delays_grow_up_to_the_most_and_end(
    stream: bytes, roll: float, delays: list[float]
) -> None:
    """After `max_attempts` there is none."""
    resume = resume_for(roll=roll, max_attempts=6, initial_backoff=1, max_backoff=20)
    feed(resume, stream + event(1))
    assert [resume.next_delay_s() for _ in range(8)] == [*delays, None, None]


def test_an_event_that_passes_begins_the_count_anew_and_an_old_one_does_not() -> None:
    resume = resume_for(max_attempts=2)
    feed(resume, event(1))
    assert resume.next_delay_s() is not None
    resume.begin()
    feed(resume, event(1) + b": comment\n\n")
    assert resume.next_delay_s() is not None
    assert resume.next_delay_s() is None
    resume.begin()
    feed(resume, event(1) + event(2))
    assert resume.next_delay_s() is not None


@given(
    retry=st.none() | st.integers(0, 60_000),
    initial=st.floats(0.001, 60),
    attempts=st.integers(1, 3000),
    roll=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=30)
def test_every_delay_is_bounded(
    retry: int | None, initial: float, attempts: int, roll: float
) -> None:
    """By `retry` from below and `max_backoff` from above, after any number of attempts."""
    resume = resume_for(roll=roll, max_attempts=attempts, initial_backoff=initial, max_backoff=60)
    feed(resume, (b"retry: %d\n" % retry if retry is not None else b"") + event(1))
    assert resume.can_resume(clean=False)
    delays = list(iter(resume.next_delay_s, None))
    assert len(delays) == attempts
    assert (retry or 0) / 1000 <= min(delays) <= max(delays) <= 60


# All together

BACK = {"continues": 0, "repeats the last": 1, "goes back three": 3, "begins anew": 1000}


@settings(max_examples=150)
@given(
    count=st.integers(1, 12),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    seed=st.integers(0, 1 << 30),
    back=st.sampled_from(list(BACK)),
)
def test_each_event_passes_exactly_once(count: int, end: bytes, seed: int, back: str) -> None:
    """Whatever the server remembers, wherever each connection breaks, and however the bytes are
    cut: a page gets each event once, in order, with its id.
    """
    dice = random.Random(seed)
    blocks = []
    for number in range(1, count + 1):
        extra = dice.choice([b"", b"event: e\n", b": note\n", b"data: more\n"])
        block = b"id: %d\n" % number + extra + b"data: event %d\n\n" % number
        blocks.append(block.replace(b"\n", end))
    resume = resume_for(max_attempts=1000)
    client = b""
    rounds = 0
    while resume.last_event_id != b"%d" % count:
        if rounds:
            client += b": reconnecting\n" if client else b""
            resume.begin()
        begins = max(0, int(resume.last_event_id or 0) - BACK[back])
        stream = dice.choice([b"", b"\xef\xbb\xbf"]) + b"".join(blocks[begins:])
        broken = stream[: dice.randrange(len(stream) + 1)] if rounds < 50 else stream
        client += feed(resume, broken, lambda: dice.choice((1, 2, 3, 10, 100)))
        rounds += 1
    assert dispatched(client + b"\n") == dispatched(b"".join(blocks) + b"\n")


@settings(max_examples=150)
@given(
    stream=st.binary(max_size=200) | st.text("\n\r:id data\0é", max_size=60).map(str.encode),
    seed=st.integers(0, 1 << 30),
)
def test_any_bytes_pass_unchanged_up_to_the_last_whole_event(stream: bytes, seed: int) -> None:
    """But for a BOM."""
    dice = random.Random(seed)
    resume = resume_for()
    passed = feed(resume, stream, lambda: dice.choice((1, 2, 3, 10, 100)))
    assert stream.removeprefix(b"\xef\xbb\xbf").startswith(passed)
    assert dispatched(passed) == dispatched(stream)


# What is not an event stream


@pytest.mark.parametrize("before", [b"", b"\n\n", b" \n\t", b"\r\n\r\n ", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_json_body_passes_whole_and_does_not_continue(before: bytes, size: int) -> None:
    """As soon as its first byte is there, however it is cut: a BOM alone waits."""
    resume, data = resume_for(), before + b'[1,\n\n"x'
    passed, rest = b"", b""
    for at in range(0, len(data), size):
        buffer = bytearray(rest + data[at : at + size])
        if resume.is_body:
            passed += buffer
            continue
        first, last, behind = resume.take(buffer, 0, len(buffer))
        passed += buffer[first : len(buffer) if resume.is_body else last]
        rest = b"" if resume.is_body else bytes(buffer[behind:])
    assert passed == data.removeprefix(b"\xef\xbb\xbf")
    assert resume.is_body
    assert not resume.can_resume(clean=False)
