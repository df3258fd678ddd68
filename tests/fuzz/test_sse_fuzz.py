"""Any bytes in any chunks: the chain reads a stream as WHATWG HTML 9.2.6 defines, and unchanged
events keep their bytes.

`read` is a second, deliberately naive reading of that section, which shares no code and no idea
with the chain: it decodes the whole stream and goes through it character by character.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.interceptors.scripted import BOM, Hook

from interceptors import Event
from interceptors.testing import run_chain

# The reference


@dataclass
class Block:
    """The lines up to an empty one, read by the rules of "interpreting an event stream"."""

    fields: int = 0
    """Lines that are neither empty nor a comment."""
    data_buffer: str = ""
    event: str | None = None
    id: str | None = None
    retry: int | None = None

    def line(self, line: str) -> None:
        if line.startswith(":"):
            return
        self.fields += 1
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "event":
            self.event = value
        elif name == "data":
            self.data_buffer += value + "\n"
        elif name == "id":
            if "\0" not in value:
                self.id = value
        elif name == "retry" and value and all(char in "0123456789" for char in value):
            self.retry = int(value)

    @property
    def seen(self) -> tuple[str | None, str, str | None, int | None]:
        """What a hook should see of it."""
        return self.event, self.data_buffer[:-1], self.id, self.retry


@dataclass
class Reading:
    blocks: list[Block] = field(default_factory=list)
    """Those that an empty line ended."""
    tail: Block = field(default_factory=Block)
    """What was unfinished at the end; a browser discards it, a hook sees it."""
    dispatched: list[tuple[str, str, str, int | None]] = field(default_factory=list)
    """What a browser hands to its page, (type, data, last event id), and the retry of the same
    block.
    """

    @property
    def seen(self) -> list[Any]:
        """What the hooks should see: every block with a field, the tail's included."""
        return [block.seen for block in [*self.blocks, self.tail] if block.fields]


def read(stream: bytes) -> Reading:
    text = stream.decode("utf-8", "replace")
    if text.startswith("\ufeff"):
        text = text[1:]
    reading = Reading()
    last_event_id = line = ""
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char not in "\r\n":
            line += char
            continue
        if char == "\r" and text[position : position + 1] == "\n":
            position += 1
        if line:
            reading.tail.line(line)
            line = ""
            continue
        block, reading.tail = reading.tail, Block()
        reading.blocks.append(block)
        if block.id is not None:
            last_event_id = block.id
        if block.data_buffer:
            reading.dispatched.append(
                (block.event or "message", block.data_buffer[:-1], last_event_id, block.retry)
            )
    if line:
        reading.tail.line(line)
    return reading


def test_the_reference_reads_the_specifications_examples() -> None:
    """The reference itself, on the examples of the specification's section 9.2.6."""
    stocks = b"data: YHOO\ndata: +2\ndata: 10\n\n"
    assert read(stocks).dispatched == [("message", "YHOO\n+2\n10", "", None)]
    four = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"
    assert read(four).dispatched == [
        ("message", "first event", "1", None),
        ("message", "second event", "", None),
    ]
    assert read(four).tail.seen == (None, " third event", None, None)
    assert [event[1] for event in read(b"data\n\ndata\ndata\n\ndata:").dispatched] == ["", "\n"]
    assert [event[1] for event in read(b"data:test\n\ndata: test\n\n").dispatched] == ["test"] * 2


# Streams and chunks

PIECES = [
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b" ", b": "),
    *(b"data", b"id", b"event", b"retry", b"data: ", b"data:", b"id: ", b"event: ", b"retry: 15"),
    *(b"retry: x", b"Data: a", b"\0", BOM, b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b"\x0c", b"\x1e"),
    *(
        "é".encode(),
        "\U0001f511".encode(),
        b"\xe2",
        b"\x80",
        b"\xff",
        b"\xef\xbb",
        b"\t",
        b"a",
        b"b",
    ),
    *(b"{}", b"x" * 50, b"data: a\n\n", b"data: b\r\n\r\n", b"data: c\r\r", b": ping\n\n"),
    *(b":\r\n\r\n", b"id: 7\ndata: x\n\n", b"id: 8\n\n", b"event: e\ndata: 1\ndata: 2\n\n"),
    *(b"foo: bar\n\n", b"data\n\n"),
]


def looks_like_json(stream: bytes) -> bool:
    """Whether the chain may take it for a JSON body, which is not an event stream."""
    return stream.removeprefix(BOM).lstrip(b" \t\r\n")[:1] in (b"{", b"[")


STREAMS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join),
    st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: BOM + b"".join(pieces)),
    st.lists(st.sampled_from(PIECES[:9]) | st.binary(max_size=6), max_size=40).map(b"".join),
).filter(lambda stream: not looks_like_json(stream))
CUTS = st.one_of(st.just([1]), st.lists(st.integers(1, 12), min_size=1, max_size=20))
"""The chunks' sizes, over and over; [1] is byte by byte."""


def chunked(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        for size in cuts:
            yield stream[at : at + size]
            at += size


def run(hook: Callable[[Event], Any], stream: bytes, cuts: list[int] | None) -> bytes:
    result = run_chain([Hook(hook)], [stream] if cuts is None else chunked(stream, cuts))
    assert result.failure is None
    return result.output


@settings(max_examples=200, deadline=None)
@given(STREAMS, CUTS)
@example(BOM + b"data: a\n\n" + BOM + b"data: b\n\n", [1])
@example(BOM + b"\r\n\r\ndata: a\r\r\n\ndata: b\r\n\r", [1])
@example(b"data: a\r\n\r\n\r\n\rdata: b\n\r\n\r\r\n", [1])
@example(b"id: 7\n\ndata: a\r\n\r\nretry: 15\r\rdata\n\n: c\n\ndata: tail\r", [1])
def test_hooks_see_the_events_that_the_specification_reads(stream: bytes, cuts: list[int]) -> None:
    """However the stream is cut. Unchanged it is byte-identical, with each event written anew a
    browser dispatches the same, and with each event dropped nothing.
    """
    expected = read(stream)
    for chunks in (None, cuts):
        seen: list[Any] = []

        def look(event: Event, seen: list[Any] = seen) -> Event:
            seen.append((event.event, event.data, event.id, event.retry))
            return event

        assert run(look, stream, chunks) == stream
        assert seen == expected.seen

    def rewrite(event: Event) -> Event:
        return event.replace(data=event.data) if event.data else event.replace()

    assert read(run(rewrite, stream, cuts)).dispatched == expected.dispatched
    if BOM not in stream[1:]:  # it would be the stream's if everything before was dropped
        left = read(run(lambda event: None, stream, cuts))
        assert left.dispatched == left.seen == []


TEXTS = st.text(st.sampled_from("ab\r\n: \0\u2028\ufeffé\U0001f511"), max_size=20)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, event=TEXTS, event_id=TEXTS, retry=st.integers(-2, 10**15))
def test_a_written_event_is_read_back(text: str, event: str, event_id: str, retry: int) -> None:
    """Data with its line ends as LF; type, id and retry as given, or refused when the event is made."""
    data = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read(Event(text).raw).dispatched == [("message", data, "", None)]
    if retry < 0 or any(char in event + event_id for char in "\r\n") or "\0" in event_id:
        with pytest.raises(ValueError, match="event's"):
            Event("x", event=event, id=event_id, retry=retry)
        return
    made = Event(text, event=event, id=event_id, retry=retry)
    assert read(made.raw).dispatched == [(event or "message", data, event_id, retry)]
