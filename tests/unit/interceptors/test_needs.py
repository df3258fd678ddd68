"""`needs`: an interceptor sees the events that it needs, and the stream is the same as if it had
seen everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.interceptors import interceptor
from unit.interceptors.scripted import BOM, Hook, drop, feed, head, keep, open_chain, upper

from interceptors import End, Event, HookError, Needs
from interceptors.needs import finder_of
from interceptors.testing import run_chain

Act = Callable[[Event], Any]


def holds(needs: Needs, raw: bytes) -> bool:
    """Whether an event of these bytes is needed: the definition, in one event at a time."""
    if isinstance(needs, re.Pattern):
        return bool(needs.search(raw))
    return needs is None or any(string in raw for string in needs)


class Picky(Hook):
    """Acts on events that contain what it needs; without `tells` it does not declare it."""

    def __init__(
        self, needs: Needs, act: Act = keep, on_error: str = "abort", *, tells: bool = True
    ) -> None:
        self.called, self.seen = list[bytes](), list[bytes]()

        def see(event: Event) -> Any:
            raw = event.raw
            self.called.append(raw)
            if not holds(needs, raw):
                return event
            self.seen.append(raw)
            return act(event)

        super().__init__(see, on_error, needs if tells else None)


async def test_an_interceptor_that_needs_nothing_costs_nothing() -> None:
    """With `()` no event is framed, unless another interceptor needs some."""
    heard: list[str] = []
    starts = interceptor(
        "Starts", needs=(), on_event=drop,
        on_start=lambda head: heard.append("start"), on_end=lambda outcome: heard.append("end"),
    )  # fmt: skip
    async with open_chain(("s", starts())) as stream:
        assert not stream.wants_events
    async with open_chain(("s", starts()), ("p", Picky((b"a",), upper))) as stream:
        assert stream.wants_events
        await stream.start(head())
        assert await feed(stream, [b"data: a\n\n"]) == b"data: A\n\n"
    assert heard == ["end", "start", "end"]


@pytest.mark.parametrize(
    "nonsense",
    [
        "data", b"data", bytearray(b"data"), 5, True, {b"data"}, {b"data": 1}, iter([b"data"]),
        (b"data", "data"), (b"data", None), (bytearray(b"data"),), (re.compile(rb"data"),),
        (b"data", b""), re.compile("data"), finder_of,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
async def test_nonsense_is_refused_when_the_stream_opens(nonsense: Any) -> None:
    """A HookError with the expected form; with `skip` the others see what they need."""
    expected = r"^configured\.open_stream: TypeError: .*\bneeds\b.*\bexpected\b.*\bbytes?\b"
    with capture_logs(), pytest.raises(HookError, match=expected):
        async with open_chain(("configured", Hook(keep, needs=nonsense))):
            pytest.fail("the chain opened")
    before, after = Picky((b": a",), upper), Picky((b": b",), upper)
    chain = [("a", before), ("wrong", Hook(keep, "skip", nonsense)), ("b", after)]
    with capture_logs():
        async with open_chain(*chain) as stream:
            assert await feed(stream, [b"data: a\n\ndata: b\n\n"]) == b"data: A\n\ndata: B\n\n"
    assert (before.seen, after.seen) == ([b"data: a\n\n"], [b"data: b\n\n"])


@settings(max_examples=100, deadline=None)
@given(
    st.text("ab\n", max_size=20).map(str.encode),
    st.lists(st.text("ab\n", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=4),
    st.integers(0, 20),
    st.integers(0, 20),
)
@example(b"abb", [b"b", b"abb"], 0, 2)
@example(b"ab", [b"a", b"b"], 0, 2)
def test_the_search_finds_where_the_first_of_several_strings_begins(
    buffer: bytes, strings: list[bytes], start: int, end: int
) -> None:
    """Within its bounds, whatever the strings have in common."""
    end = min(end, len(buffer))
    found = [
        at for at in range(start, end) for string in strings if buffer[at:end].startswith(string)
    ]
    pattern = re.compile(b"|".join(re.escape(string) for string in strings))
    for needs in (tuple(strings), strings, pattern):
        finder = finder_of(needs)
        assert finder is not None
        assert finder(bytearray(buffer), start, end) == min(found, default=-1)


def test_a_string_is_found_that_begins_right_before_another() -> None:
    finder = finder_of((b"b", b"ab"))
    assert finder is not None
    assert finder(bytearray(b"ab"), 0, 2) == 0


# Any needs in any chain

PIECES = [
    *(b"\n", b"\n\n", b"\n\n", b"\n\n\n", b":", b": ", b"data: ", b"data:", b"id: 1", b"event: "),
    *(b"retry: 5", b"data", b"data: a\n\n", b"data: ab\n\n", b"data: x\n\n"),
    *(b"data: x\n\ndata: y\n\n", b": ping\n\n", b": ab\n\n", b"id: 7\ndata: b\n\n"),
    *(b"a", b"b", b"ab", b"<", b">", b"!", b"x" * 20, BOM, b"\xef", b"\xff", b"\0"),
]
LINE_ENDS = [b"\r", b"\r\n", b"\r\n\r\n", b"\r\r", b"data: ab\r\n\r\n", b"data: x\r\r"]
ANY_STREAM = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    st.lists(st.sampled_from(PIECES + LINE_ENDS), max_size=30).map(b"".join),
)
ANY_CUTS = st.one_of(
    st.just([1]), st.just([1 << 20]), st.lists(st.integers(1, 15), min_size=1, max_size=8)
)
"""The chunks' sizes, over and over."""
STRINGS = [
    *(b"a", b"ab", b"b", b": a", b"x", b"\n", b"\n\n", b"a\n\n", b"\n\ndata", b"b\n\nd"),
    *(b"<", b"!", b"\r", BOM, b"zz", b"data: a"),
]
PATTERNS = [
    *(rb"a+", rb"[xy]\n", rb"<[^>]*>", rb"a\s+d", rb"(?s)a.*b", rb"\n\n", rb"", rb"b*", rb"zz"),
    *(rb"id: [0-9]", rb"(?i)AB|x{5}"),
]
ANY_NEEDS: st.SearchStrategy[Needs] = st.one_of(
    st.lists(st.sampled_from(STRINGS), min_size=1, max_size=3).map(tuple),
    st.sampled_from(PATTERNS).map(re.compile),
)


def mixed(event: Event) -> Any:
    """Something of everything, decided by the event's own content and by nothing else."""
    if "!" in event.data:
        return End(event, Event("end")) if "a" in event.data else [][1]
    return [event, None, upper(event), [event, Event("more")], [], [upper(event), event.detach()]][
        len(event.raw) % 6
    ]


ANY_MEMBER = st.tuples(
    st.one_of(ANY_NEEDS, ANY_NEEDS, ANY_NEEDS, ANY_NEEDS, st.none()),
    st.sampled_from([keep, drop, upper, mixed, mixed]),
    st.sampled_from(["abort", "skip"]),
)


def chunked(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        for size in cuts:
            yield stream[at : at + size]
            at += size


@settings(max_examples=150, deadline=None)
@given(
    st.lists(ANY_MEMBER, min_size=1, max_size=3),
    ANY_STREAM,
    ANY_CUTS,
    st.sampled_from([1 << 20, 1 << 20, 1 << 20, 12, 30]),
)
@example(
    [((b"\n\ndata", b"b"), drop, "abort")], b"data: a\n\ndata: b\n\n\ndata: b", [1 << 20], 1 << 20
)
@example(
    [((b"a",), keep, "abort"), (re.compile(rb"(?s)x.*b"), drop, "abort")],
    b"x\n\ndata: b\n\nxb\n\n",
    [1 << 20],
    1 << 20,
)
@example(
    [((b"ab",), mixed, "skip"), (None, mixed, "skip"), ((b"more",), upper, "skip")],
    b"data: ab\n\ndata: x\n\ndata: abab\n\n",
    [7],
    1 << 20,
)
def test_nothing_shows_whether_an_interceptor_has_needs(
    members: list[tuple[Needs, Act, str]], stream: bytes, cuts: list[int], max_event_bytes: int
) -> None:
    """Any chain, stream, cuts and limit. Calls are for events that contain what is needed."""
    runs: list[Any] = []
    for tells in (False, True):
        chain = [Picky(*member, tells=tells) for member in members]
        with capture_logs():
            result = run_chain(chain, chunked(stream, cuts), max_event_bytes=max_event_bytes)
        failure = None if result.failure is None else str(result.failure)
        runs.append(
            (failure, result.output, result.counts, result.ended, [it.seen for it in chain])
        )
    without, told = runs
    if "max_event_bytes" in (without[0] or ""):
        assert told[1].startswith(without[1])
    else:
        assert told == without
        assert chain[0].called == chain[0].seen
