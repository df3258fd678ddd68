"""The framer: the frames of a stream, in any reads, are those of a naive reading of WHATWG HTML."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from copy import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interceptors.framing import EventFramer, FrameKind, StreamTail, one_by_one
from interceptors.needs import finder_of
from interceptors.sse import first_of_body

BOM = b"\xef\xbb\xbf"
Framed = list[tuple[str, bytes]]

# --- the reference


def reference(stream: bytes) -> tuple[Framed, int]:
    """The events of a stream, and how many silent blocks are between them."""
    frames: Framed = []
    silent, block, has_field = 0, b"", False
    for line in re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", stream.removeprefix(BOM)):
        block += line
        content = line.rstrip(b"\r\n")
        has_field = has_field or (content != b"" and not content.startswith(b":"))
        if content == b"":
            if has_field:
                frames.append(("EVENT", block))
            silent, block, has_field = silent + (not has_field), b"", False
    if has_field:
        frames.append(("UNFINISHED", block))
    return frames, silent + (block != b"" and not has_field)


# --- the framer


def framed(
    stream: bytes,
    sizes: Iterable[int],
    *,
    limit: int = 1 << 20,
    needs: tuple[bytes, ...] | None = None,
    final: bool = True,
) -> tuple[Framed, int]:
    """What the framer makes of a stream that comes in reads of these sizes, over and over. An LF
    that comes later is put back to its CR, and the BOM left out.
    """
    framer, frames, rest, at = EventFramer(limit), [], b"", 0
    event_end = -1  # in the stream
    find = None if needs is None else finder_of(needs)

    def find_needed(buffer: bytes | bytearray, start: int, end: int) -> int:
        assert find is not None
        found = find(buffer, start, end)
        return end if found < 0 else found

    for size in itertools.chain(itertools.cycle(sizes)):
        is_last = at >= len(stream)
        window = bytearray(b"#\n\n" + rest + stream[at : at + size] + b"\n\ndata: old\n\n")
        end = len(window) - len(b"\n\ndata: old\n\n")
        begin = min(at, len(stream)) - len(rest) - 3
        at += size
        found = framer.frames(window, 3, end, is_last and final, find and find_needed)
        for kind, first, last, prefix in one_by_one(found):
            data = bytes(window[first:last])
            if kind in (FrameKind.BODY, FrameKind.LARGE_BODY):
                assert not data[:prefix].strip(b" \t\r\n")
                data = data[prefix:]
            else:
                assert not prefix or data.startswith(b"data: ")
            if kind is FrameKind.LINE_FEED:
                assert data == b"\n"
                if begin + first == event_end:
                    frames[-1] = ("EVENT", frames[-1][1] + data)
            elif kind is FrameKind.BOM:
                assert data == BOM
            else:
                frames.append((kind.name, data))
                event_end = begin + last
                if kind in (FrameKind.OVERLONG, FrameKind.LARGE_BODY):
                    return frames, framer.silent
        assert 3 <= framer.at <= end
        rest = bytes(window[framer.at : end])
        if is_last:
            break
    assert not (final and rest)
    return frames, framer.silent


def check(stream: bytes, sizes: Iterable[int]) -> None:
    assert framed(stream, sizes) == reference(stream), stream


@pytest.mark.parametrize("length", range(7))
def test_every_short_stream(length: int) -> None:
    """All strings of a letter, a colon, CR and LF: whole and byte by byte."""
    for letters in itertools.product((b"a", b":", b"\r", b"\n"), repeat=length):
        stream = b"".join(letters)
        check(stream, [1 << 20])
        check(stream, [1])


PIECES = [
    "\u2028\x85\x0b".encode(),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b": ping\n", b": ping\n\n"),
    *(
        b"data: a\n\n",
        b"data: b\r\n\r\n",
        b"data: c\r\r",
        b"id: 7\ndata: x\n\n",
        b"data: 1\ndata: 2\n\n",
    ),
    *(
        b"event: e\ndata: 1\n\n",
        b"foo\n\n",
        b"data",
        b"data: ",
        b"a",
        b" ",
        BOM,
        b"\xef\xbb",
        b"\0",
    ),
    *(b"data: " + b"x" * 5000 + b"\n\n", b"y" * 5000, b"\n" * 200, b":\n" * 200),
]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=9) | st.lists(
    st.integers(1, 9000), min_size=1, max_size=4
)


def is_json(stream: bytes) -> bool:
    return stream.removeprefix(BOM).lstrip(b" \r\n")[:1] in (b"{", b"[")


@settings(max_examples=600, deadline=None)
@given(STREAMS | STREAMS.map(lambda stream: BOM + stream), SIZES)
def test_any_stream_in_any_reads(stream: bytes, sizes: list[int]) -> None:
    check(stream, [1 << 20])
    check(stream, sizes)


@settings(max_examples=300, deadline=None)
@given(
    STREAMS, SIZES, st.sampled_from([(b"x",), (b"data: 1", b"foo"), (b"never there",), (b"\n",)])
)
def test_only_events_without_a_need_are_passed_over(
    stream: bytes, sizes: list[int], needs: tuple[bytes, ...]
) -> None:
    """Each event that holds a need is framed, and every event is framed or counted."""
    expected, silent = reference(stream)
    frames, passed = framed(stream, sizes, needs=needs)
    needed = [frame for frame in expected if any(need in frame[1] for need in needs)]
    assert [frame for frame in frames if frame in needed] == needed
    assert len(frames) + passed == len(expected) + silent


@pytest.mark.parametrize("sizes", [[1 << 20], [1], [3], [7]])
@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: 12\n\nx", [("EVENT", b"data: 12\n\n"), ("UNFINISHED", b"x")]),
        (b"data: 123\n\nx", [("LARGE", b"data: 123\n\n"), ("UNFINISHED", b"x")]),
        (b"data: 1\n\ndata: 123456", [("EVENT", b"data: 1\n\n"), ("OVERLONG", b"data: 123456")]),
        (b": 34567\n\n", []),
        (b": 3456789\n\n", [("LARGE", b": 3456789\n\n")]),
        (b"\n" * 30, []),
        (b"data: \r\r", [("EVENT", b"data: \r\r")]),
    ],
)
def test_the_limit_counts_the_whole_block(
    stream: bytes, expected: Framed, sizes: list[int]
) -> None:
    """Ten bytes with the empty line. An event that grows beyond it is framed before its end."""
    frames, _ = framed(stream, sizes, limit=10)
    for (kind, data), (expected_kind, expected_data) in itertools.zip_longest(frames, expected):
        if kind == "OVERLONG":
            assert expected_data.startswith(data)
            assert 11 <= len(data) < 11 + sizes[0]
            assert expected_kind in ("LARGE", "OVERLONG")
            return
        assert (kind, data) == (expected_kind, expected_data)


@pytest.mark.parametrize("sizes", [[1 << 20], [1], [2], [5]])
@pytest.mark.parametrize("lead", [b"", BOM, b"\n\n", b" \t", b"\r\n \n", BOM + b"\n "])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":\n\n1}', [("BODY", b'{"a":\n\n1}')]),
        (b"[1]\n", [("BODY", b"[1]\n")]),
        (b"[", [("BODY", b"[")]),
        (b"{\ndata: x\n\n", [("EVENT", b"{\ndata: x\n\n")]),
        (b"{\n\nid:1\n\n", [("EVENT", b"{\n\n"), ("EVENT", b"id:1\n\n")]),
        (b'{"' + b"x" * 70, [("LARGE_BODY", b'{"' + b"x" * 70)]),
    ],
)
def test_a_json_body_is_one_frame(
    body: bytes, expected: Framed, lead: bytes, sizes: list[int]
) -> None:
    """After a BOM and white space, unless a field line shows that it is an event stream."""
    frames, _ = framed(lead + body, sizes, limit=64)
    if expected[0][0] == "LARGE_BODY":
        ((kind, data),) = frames
        assert kind == "LARGE_BODY"
        assert body.startswith(data)
        assert len(data) > 64
    elif expected[0][0] == "EVENT":
        assert [data.lstrip(b" \t\r\n") for _, data in frames] == [data for _, data in expected]
    else:
        assert frames == expected


def test_white_space_byte_by_byte_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces that come one by one cost no more than their number."""
    searched: list[int] = []

    def search(buffer: bytes | bytearray, start: int, end: int) -> tuple[int, bool]:
        searched.append(end - start)
        return first_of_body(buffer, start, end)

    monkeypatch.setattr("interceptors.framing.first_of_body", search)
    assert framed(b" " * 1000 + b"[1]", [1])[0] == [("BODY", b"[1]")]
    assert sum(searched) <= 1100


def test_a_bom_leads_until_something_leaves() -> None:
    """A dropped first frame leaves the next BOM at the client's beginning; a passed one does not."""
    for drops in (True, False):
        framer, kinds = EventFramer(100), []
        window = bytearray(b"data: 1\n\n" + BOM + b"data: 2\n\n")
        for kind, *_ in framer.frames(window, 0, len(window)):
            kinds.append(kind.name)
            if drops:
                framer.first_was_dropped()
        assert kinds == ["EVENT", "BOM", "EVENT"] if drops else ["EVENT", "EVENT"]


def test_a_bom_after_a_dropped_second_event_belongs_to_a_line() -> None:
    framer, first = EventFramer(100), bytearray(b"data: 1\n\n")
    for _ in range(2):
        assert [kind for kind, *_ in framer.frames(first, 0, len(first))] == [FrameKind.EVENT]
    framer.first_was_dropped()
    assert framed_kinds(framer, BOM + b"data: 3\n\n") == ["EVENT"]


def framed_kinds(framer: EventFramer, data: bytes) -> list[str]:
    return [kind.name for kind, *_ in framer.frames(bytearray(data), 0, len(data))]


def test_restart_forgets_what_was_unfinished() -> None:
    """An unfinished event, a CR, part of a BOM: the next connection begins a line, with a BOM."""
    for end in (b"data: unfin", b"data: 1\r\n\r", b"data: 1\n", b"\xef"):
        framer = EventFramer(100)
        list(framer.frames(bytearray(end), 0, len(end)))
        framer.restart()
        for lead, expected in ((BOM + b"\n", ["BOM", "EVENT"]), (b"", ["EVENT"])):
            again = copy(framer)
            window = bytearray(lead + b"data: 2\n\n")
            kinds = [kind.name for kind, *_ in again.frames(window, 0, len(window))]
            assert kinds == expected


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"xyz\n"]), max_size=12), SIZES)
def test_the_tail_of_unframed_bytes(pieces: list[bytes], sizes: list[int]) -> None:
    """`is_whole` after an empty line, and `between_events` unless a CR may be half a CRLF."""
    stream, tail, at = b"".join(pieces), StreamTail(), 0
    assert tail.between_events
    for size in itertools.cycle(sizes):
        if at >= len(stream):
            break
        tail.remember(b"##" + stream, at + 2, min(at + size, len(stream)) + 2)
        at += size
    lines = re.split(rb"\r\n|\r|\n", b"\n" + stream)
    assert tail.is_whole is (lines[-1] == b"" and (stream == b"" or lines[-2] == b""))
    assert tail.between_events is (tail.is_whole and not (b"\n\n" + stream).endswith(b"\n\r"))
