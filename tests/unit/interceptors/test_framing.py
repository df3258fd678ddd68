"""The framer: the frames of a stream, in any reads, are those of a naive reading of WHATWG HTML, and
cost no more than their bytes.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit.interceptors.scripted import BOM, Hook, is_comment, keep, next_block, open_chain

from interceptors.framing import EventFramer, FrameKind, StreamTail, one_by_one
from interceptors.needs import finder_of
from interceptors.sse import first_of_body, parse_fields, unknown_lines

Framed = list[tuple[str, bytes]]


def reference(stream: bytes) -> tuple[Framed, int]:
    """The events of a stream, and how many silent blocks are between them."""
    frames: Framed = []
    silent, rest = 0, stream.removeprefix(BOM)
    while rest:
        block, is_whole = next_block(rest)
        rest = rest[len(block) :]
        if is_comment(block):
            silent += 1
        else:
            frames.append(("EVENT" if is_whole else "UNFINISHED", block))
    return frames, silent


def framed(
    stream: bytes,
    sizes: Iterable[int],
    *,
    limit: int = 1 << 20,
    needs: tuple[bytes, ...] | None = None,
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

    for size in itertools.cycle(sizes):
        is_last = at >= len(stream)
        window = bytearray(b"#\n\n" + rest + stream[at : at + size] + b"\n\ndata: old\n\n")
        end = len(window) - len(b"\n\ndata: old\n\n")
        begin = min(at, len(stream)) - len(rest) - 3
        at += size
        found = framer.frames(window, 3, end, is_last, find and find_needed)
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
    assert not rest
    return frames, framer.silent


def kinds_of(framer: EventFramer, data: bytes) -> list[str]:
    return [kind.name for kind, *_ in framer.frames(bytearray(data), 0, len(data))]


def test_every_short_stream() -> None:
    """All strings of up to six letters, colons, CR and LF: whole and byte by byte."""
    for length in range(7):
        for letters in itertools.product((b"a", b":", b"\r", b"\n"), repeat=length):
            stream = b"".join(letters)
            expected = reference(stream)
            assert framed(stream, [1 << 20]) == expected, stream
            assert framed(stream, [1]) == expected, stream


PIECES = [
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b":", b": ping\n", b": ping\n\n"),
    *(b"data: a\n\n", b"data: b\r\n\r\n", b"data: c\r\r", b"id: 7\ndata: x\n\n"),
    *(
        b"data: 1\ndata: 2\n\n",
        b"event: e\ndata: 1\n\n",
        b"foo\n\n",
        b"data",
        b"data: ",
        b"a",
        b" ",
    ),
    *(BOM, b"\xef\xbb", b"\0", "\u2028\x85\x0b".encode(), b"data: " + b"x" * 5000 + b"\n\n"),
    *(b"y" * 5000, b"\n" * 200, b":\n" * 200),
]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=9) | st.lists(
    st.integers(1, 9000), min_size=1, max_size=4
)


@settings(max_examples=200, deadline=None)
@given(STREAMS | STREAMS.map(lambda stream: BOM + stream), SIZES)
def test_any_stream_in_any_reads(stream: bytes, sizes: list[int]) -> None:
    assert framed(stream, [1 << 20]) == framed(stream, sizes) == reference(stream)


@settings(max_examples=100, deadline=None)
@given(
    STREAMS, SIZES, st.sampled_from([(b"x",), (b"data: 1", b"foo"), (b"never there",), (b"\n",)])
)
@example(b"data: a\n\n" + b"y" * 9000 + b"\n\ndata: x\n\n", [1500], (b"x",))
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
def test_the_limit_counts_the_block(stream: bytes, expected: Framed, sizes: list[int]) -> None:
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
    ("body", "kind", "frames"),
    [
        (b'{"a":\n\n1}', "BODY", [b'{"a":\n\n1}']),
        (b"[1]\n", "BODY", [b"[1]\n"]),
        (b"[", "BODY", [b"["]),
        (b"{\ndata: x\n\n", "EVENT", [b"{\ndata: x\n\n"]),
        (b"{\n\nid:1\n\n", "EVENT", [b"{\n\n", b"id:1\n\n"]),
        (b'{"' + b"x" * 70, "LARGE_BODY", []),
    ],
)
def test_a_json_body_is_one_frame(
    body: bytes, kind: str, frames: list[bytes], lead: bytes, sizes: list[int]
) -> None:
    """After a BOM and white space, unless a field line shows that it is an event stream."""
    found, _ = framed(lead + body, sizes, limit=64)
    assert {name for name, _ in found} == {kind}
    if kind == "LARGE_BODY":
        ((_, data),) = found
        assert body.startswith(data)
        assert len(data) > 64
    else:
        blank = b" \t\r\n" if kind == "EVENT" else b""
        assert [data.lstrip(blank) for _, data in found] == frames


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
    framer = EventFramer(100)
    assert kinds_of(framer, b"data: 1\n\n") == kinds_of(framer, b"data: 2\n\n") == ["EVENT"]
    framer.first_was_dropped()  # the second one
    assert kinds_of(framer, BOM + b"data: 3\n\n") == ["EVENT"]


def test_restart_forgets_what_was_unfinished() -> None:
    """An unfinished event, a CR, part of a BOM: the next connection begins a line, with a BOM."""
    for end in (b"data: unfin", b"data: 1\r\n\r", b"data: 1\n", b"\xef"):
        framer = EventFramer(100)
        kinds_of(framer, end)
        framer.restart()
        assert kinds_of(copy(framer), BOM + b"\ndata: 2\n\n") == ["BOM", "EVENT"]
        assert kinds_of(copy(framer), b"data: 2\n\n") == ["EVENT"]


@settings(max_examples=150, deadline=None)
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


# What it costs


def count_calls(function: Callable[..., Any], *args: Any) -> int:
    """How many calls, of Python and of C, a function makes: a cost that no other process disturbs."""
    calls = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return calls


LINE_ENDS = [b"\n", b"\r", b"\r\n", b"\n\r", b"\r\r\n"]
COMMENTS = [b":\n\n", b":\r\r", b": ping\r\n\r\n", b":a\n:b\r\n\n\r"]


@pytest.mark.parametrize("fill", [*LINE_ENDS, *COMMENTS])
@pytest.mark.parametrize("needs", [None, (b"needle",)])
async def test_a_window_of_line_ends_is_a_few_calls(needs: Any, fill: bytes) -> None:
    """64 KiB of line ends or comments are not looked at one by one."""
    for before in (b"", b"data: x\n\n"):
        buffer = bytearray(before + fill * ((1 << 16) // len(fill)))
        async with open_chain(("hook", Hook(keep, needs=needs))) as stream:
            assert count_calls(stream.process, buffer, 0, len(buffer)) < 200
            stream.release_parts()
            assert stream.failure is None


@pytest.mark.parametrize("line", [b"x\n", b"x\r", b"x: y\r\n", b":\n"])
def test_lines_inside_an_event_are_read_together(line: bytes) -> None:
    block = b"data: a\n" + line * 20000 + b"\n"
    assert count_calls(parse_fields, block) < 20
    assert count_calls(unknown_lines, block) < 20


def test_white_space_byte_by_byte_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def search(buffer: bytes | bytearray, start: int, end: int) -> tuple[int, bool]:
        searched.append(end - start)
        return first_of_body(buffer, start, end)

    monkeypatch.setattr("interceptors.framing.first_of_body", search)
    assert framed(b" " * 1000 + b"[1]", [1])[0] == [("BODY", b"[1]")]
    assert sum(searched) <= 1100
