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
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from interceptors import Event, Interceptor, StreamContext, StreamInterceptor
from interceptors.testing import ChainResult, run_chain

# --- the reference
# ------------------------------------------------------------------------------------------------------


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
        if ":" in line:
            name, value = line[: line.index(":")], line[line.index(":") + 1 :]
            if value.startswith(" "):
                value = value[1:]
        else:
            name, value = line, ""
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
    assert [event[1] for event in read(b"data:test\n\ndata: test\n\n").dispatched] == [
        "test",
        "test",
    ]


# --- streams and chunks
# -------------------------------------------------------------------------------------------------

PIECES = [
    *[b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b" ", b": "],
    *[
        b"data",
        b"id",
        b"event",
        b"retry",
        b"data: ",
        b"data:",
        b"id: ",
        b"event: ",
        b"retry: 15",
        b"retry: x",
        b"Data: a",
    ],
    *[
        b"\0",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\x0b",
        b"\x0c",
        b"\x1e",
        "é".encode(),
        "\U0001f511".encode(),
    ],
    *[b"\xe2", b"\x80", b"\xff", b"\xef\xbb", b"\t", b"a", b"b", b"{}", b"x" * 50],
    *[
        b"data: a\n\n",
        b"data: b\r\n\r\n",
        b"data: c\r\r",
        b": ping\n\n",
        b":\r\n\r\n",
        b"id: 7\ndata: x\n\n",
        b"id: 8\n\n",
    ],
    *[b"event: e\ndata: 1\ndata: 2\n\n", b"foo: bar\n\n", b"data\n\n"],
]


def looks_like_json(stream: bytes) -> bool:
    """Whether the chain may take it for a JSON body, which is not an event stream."""
    return stream.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1] in (b"{", b"[")


STREAMS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join),
    st.lists(st.sampled_from(PIECES), max_size=30).map(
        lambda pieces: b"\xef\xbb\xbf" + b"".join(pieces)
    ),
    st.lists(st.one_of(st.sampled_from(PIECES[:9]), st.binary(max_size=6)), max_size=40).map(
        b"".join
    ),
).filter(lambda stream: not looks_like_json(stream))
CUTS = st.one_of(st.just([1]), st.lists(st.integers(1, 12), min_size=1, max_size=20))
"""The chunks' sizes, over and over; [1] is byte by byte."""

FEW = settings(max_examples=250, deadline=None)

HARD = [
    b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n",
    b"\xef\xbb\xbf\r\n\r\ndata: a\r\r\n\ndata: b\r\n\r",
    b"data: a\r\n\r\n\r\n\rdata: b\n\r\n\r\r\n",
    b"id: 7\n\ndata: a\r\n\r\nretry: 15\r\rdata\n\n: c\n\ndata: tail\r",
]


def chunked(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        for size in cuts:
            yield stream[at : at + size]
            at += size


class _Hook(Interceptor):
    def __init__(self, hook: Callable[[Event], Any]) -> None:
        self.hook = hook

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        return _Stream(self.hook)


class _Stream(StreamInterceptor):
    def __init__(self, hook: Callable[[Event], Any]) -> None:
        self.hook = hook

    def on_event(self, event: Event) -> Any:
        return self.hook(event)


def run(hook: Callable[[Event], Any], stream: bytes, cuts: list[int] | None) -> ChainResult:
    result = run_chain([_Hook(hook)], [stream] if cuts is None else chunked(stream, cuts))
    assert result.failure is None
    return result


def rewrite(event: Event) -> Event:
    """Every event written anew."""
    return event.replace(data=event.data) if event.data else event.replace()


def mixed(event: Event) -> Any:
    """Something of everything, decided by the event's own content and by nothing else."""
    way = (len(event.data) + len(event.id or "") + (event.retry or 0)) % 5
    return [event, None, rewrite(event), [rewrite(event), Event("more")], []][way]


# --- what must hold
# -----------------------------------------------------------------------------------------------------


@FEW
@given(STREAMS, CUTS)
@example(HARD[0], [1])
@example(HARD[1], [1])
@example(HARD[2], [1])
@example(HARD[3], [1])
def test_a_chain_that_changes_nothing_is_byte_identical(stream: bytes, cuts: list[int]) -> None:
    """Whole, byte by byte and cut at random."""
    for chunks in (None, cuts):
        result = run(lambda event: event, stream, chunks)
        assert result.output == stream
        assert (result.counts.changed, result.counts.dropped, result.counts.added) == (0, 0, 0)


@FEW
@given(STREAMS, CUTS)
@example(HARD[0], [1])
@example(HARD[1], [1])
@example(HARD[2], [1])
@example(HARD[3], [1])
def test_hooks_see_the_events_that_the_specification_reads(stream: bytes, cuts: list[int]) -> None:
    """Type, data, id and retry of every block with a field are the reference's, in order, however
    the stream is cut.
    """
    expected = read(stream)
    for chunks in (None, cuts):
        seen: list[Any] = []

        def look(event: Event, seen: list[Any] = seen) -> Event:
            seen.append((event.event, event.data, event.id, event.retry))
            return event

        run(look, stream, chunks)
        assert seen == expected.seen


@FEW
@given(STREAMS, CUTS)
@example(HARD[0], [1])
@example(HARD[1], [1])
@example(HARD[2], [1])
@example(HARD[3], [1])
def test_chunking_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    """A chain that passes, changes, drops and adds gives the same bytes and counts for the same
    stream, however cut.
    """
    assert run(mixed, stream, cuts) == run(mixed, stream, None)


@FEW
@given(STREAMS, CUTS)
@example(HARD[0], [1])
@example(HARD[1], [1])
@example(HARD[2], [1])
@example(HARD[3], [1])
def test_rewriting_every_event_dispatches_the_same(stream: bytes, cuts: list[int]) -> None:
    """Every event replaced by its own content."""
    assert read(run(rewrite, stream, cuts).output).dispatched == read(stream).dispatched


@FEW
@given(STREAMS, CUTS)
@example(HARD[0], [1])
@example(HARD[1], [1])
@example(HARD[2], [1])
@example(HARD[3], [1])
def test_dropping_every_event_leaves_nothing_that_dispatches(
    stream: bytes, cuts: list[int]
) -> None:
    """Only comments and empty lines are left; each event is counted as dropped."""
    # When everything before it was dropped, a later BOM is the stream's:
    # tests/unit/interceptors/test_regressions.py.
    assume(b"\xef\xbb\xbf" not in stream[1:])
    result = run(lambda event: None, stream, cuts)
    left = read(result.output)
    assert left.dispatched == []
    assert left.seen == []
    assert result.counts.dropped == len(read(stream).seen)


TEXTS = st.text(st.sampled_from("ab\r\n: \0\u2028\ufeffé\U0001f511"), max_size=20)


@FEW
@given(st.lists(TEXTS, max_size=5))
def test_text_that_an_interceptor_writes_is_what_a_reader_gets(texts: list[str]) -> None:
    """Any data reads back as it was, with its line ends as LF."""
    output = run(lambda event: [Event(text) for text in texts], b"data: x\n\n", None).output
    assert [event[1] for event in read(output).dispatched] == [
        text.replace("\r\n", "\n").replace("\r", "\n") for text in texts
    ]


@FEW
@given(event=TEXTS, event_id=TEXTS, retry=st.integers(-2, 10**15))
def test_fields_are_read_back_or_refused(event: str, event_id: str, retry: int) -> None:
    """Type, id and retry arrive as given, or are refused with ValueError when the event is made."""
    bad = retry < 0 or any(char in event + event_id for char in "\r\n") or "\0" in event_id
    if bad:
        with pytest.raises(ValueError, match="event's"):
            Event("x", event=event, id=event_id, retry=retry)
        return
    made = Event("x", event=event, id=event_id, retry=retry)
    assert read(made.raw).dispatched == [(event or "message", "x", event_id, retry)]
