"""`needs`: an interceptor sees the events that it needs, and the stream is the same as if it had
seen everything.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from unit.interceptors.scripted import BOM, drop, keep, splits, upper

from interceptors import Event, Interceptor, StreamInterceptor
from interceptors.api import AsyncStreamInterceptor, End, Outcome, StreamContext
from interceptors.chain import Chain, StreamChain
from interceptors.errors import HookError
from interceptors.message import Request, ResponseHead
from interceptors.needs import Needs, finder_of
from interceptors.testing import run_chain
from pools import Pools

Act = Callable[[Event], Any]
EVERYTHING: Any = None


def holds(needs: Needs, raw: bytes) -> bool:
    """Whether an event of these bytes is needed: the definition, in one event at a time."""
    if isinstance(needs, re.Pattern):
        return bool(needs.search(raw))
    return needs is None or any(string in raw for string in needs)


class Picky(Interceptor):
    """Acts on the events that contain what it needs and ignores the others; with `tells`, it
    declares it.
    """

    def __init__(
        self,
        needs: Needs,
        act: Act = keep,
        *,
        tells: bool = True,
        is_async: bool = False,
        on_error: Any = "abort",
    ) -> None:
        self.needs, self.act, self.tells, self.is_async = needs, act, tells, is_async
        self.on_error = on_error
        self.called: list[bytes] = []
        """Every event that its hook was called for."""
        self.seen: list[bytes] = []
        """Those of them that it needs."""

    def open_stream(self, context: StreamContext) -> Any:
        stream = _AsyncPickyStream(self) if self.is_async else _PickyStream(self)
        if self.tells:
            stream.needs = self.needs
        return stream

    def see(self, event: Event) -> Any:
        raw = event.raw
        self.called.append(raw)
        if not holds(self.needs, raw):
            return event
        self.seen.append(raw)
        return self.act(event)


def opening(make: Callable[[], Any]) -> Interceptor:
    """An interceptor whose streams this makes."""
    members = {"open_stream": lambda self, context: make()}
    return type("Opening", (Interceptor,), members)()  # type: ignore[no-any-return]


class _PickyStream(StreamInterceptor):
    def __init__(self, picky: Picky) -> None:
        self.picky = picky

    def on_event(self, event: Event) -> Any:
        return self.picky.see(event)


class _AsyncPickyStream(AsyncStreamInterceptor):
    def __init__(self, picky: Picky) -> None:
        self.picky = picky

    async def on_event(self, event: Event) -> Any:
        return self.picky.see(event)


def mixed(event: Event) -> Any:
    """Something of everything, decided by the event's own content and by nothing else."""
    if "!" in event.data:
        return End(event, Event("end")) if "a" in event.data else [][1]
    return [event, None, upper(event), [event, Event("more")], [], [upper(event), event.detach()]][
        len(event.raw) % 6
    ]


@dataclass(frozen=True)
class Run:
    """Everything that is visible of a run from outside."""

    output: bytes
    counts: tuple[int, int, int, int]
    failure: str | None
    ended: bool
    seen: list[list[bytes]]
    """By each interceptor, of what it needs."""


@dataclass(frozen=True)
class Member:
    """One interceptor of a chain, to be made with or without its `needs`."""

    needs: Needs
    act: Act
    is_async: bool = False
    on_error: str = "abort"

    def make(self, tells: bool) -> Picky:
        options: Any = {"is_async": self.is_async, "on_error": self.on_error}
        return Picky(self.needs, self.act, tells=tells, **options)


def run_of(result: Any, output: bytes, chain: list[Picky]) -> Run:
    counts, failure = result.counts, result.failure
    return Run(
        output,
        (counts.passed, counts.changed, counts.dropped, counts.added),
        None if failure is None else str(failure),
        result.ended,
        [picky.seen for picky in chain],
    )


def run(members: list[Member], chunks: Iterable[bytes], max_bytes: int, *, tells: bool) -> Run:
    chain = [member.make(tells) for member in members]
    with capture_logs():
        result = run_chain(chain, chunks, max_event_bytes=max_bytes)
    return run_of(result, result.output, chain)


@asynccontextmanager
async def open_chain(
    *interceptors: Interceptor, pools: Pools | None = None, max_event_bytes: int = 1 << 20
) -> AsyncIterator[StreamChain]:
    pools = pools or Pools()
    async with pools.open_scope() as scope:
        chain = Chain([(type(item).__name__, item) for item in interceptors])
        stream = chain.open_stream(Request(), pools.json, scope, max_event_bytes)
        try:
            yield stream
        finally:
            await stream.aclose(Outcome.COMPLETED)


def process_all(stream: StreamChain, chunks: list[bytes]) -> bytes:
    """What leaves of a stream without async hooks, until it ends or fails."""
    output = b""
    window = bytearray()
    for index, chunk in enumerate([*chunks, b""]):
        window += chunk
        parts, at = stream.process(window, 0, len(window), final=index == len(chunks))
        output += b"".join(parts)
        parts.clear()
        stream.release_parts()
        if stream.failure is not None or stream.ended:
            break
        del window[:at]
    return output


async def feed(
    pools: Pools, members: list[Member], chunks: list[bytes], max_bytes: int, *, tells: bool
) -> Run:
    """As `run`, for thousands of them: in one Trio run, and without async hooks."""
    chain = [member.make(tells) for member in members]
    async with open_chain(*chain, pools=pools, max_event_bytes=max_bytes) as stream:
        return run_of(stream, process_all(stream, chunks), chain)


A_AND_B = b"data: a\n\ndata: b\n\n: a\n\ndata: ab\n\n"


# --- Accepted needs


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("needs", "called"),
    [
        (None, "a b ab"),
        *(((), ""), ([], ""), ((b"x", b"y"), ""), (re.compile(rb"x"), "")),
        ((b"a",), "a b ab"),  # "data" holds it as well
        *(((b": a",), "a ab"), ([b": a"], "a ab"), ((b"x", b"b"), "b ab")),
        *((re.compile(rb"[ab]\n"), "a b ab"), (re.compile(rb"A(?=B)", re.IGNORECASE), "ab")),
        (re.compile(rb""), "a b ab"),
    ],
    ids=str,
)
def test_a_hook_is_called_for_what_it_needs_and_for_nothing_else(
    needs: Needs, called: str, is_async: bool
) -> None:
    """None is everything, no string nothing."""
    for ends in (b"\n", b"\r\n", b"\r"):
        picky = Picky(needs, keep, is_async=is_async)
        stream = A_AND_B.replace(b"\n", ends)
        if ends != b"\n" and isinstance(needs, re.Pattern) and b"\\n" in needs.pattern:
            continue  # the pattern is about line ends
        result = run_chain([picky], [stream])
        assert (result.output, result.counts.passed, result.failure) == (stream, 4, None)
        expected = [b"data: %b" % data.encode() + ends * 2 for data in called.split()]
        assert picky.called == expected


async def test_an_interceptor_that_needs_nothing_costs_nothing() -> None:
    """With `()` no event is framed, unless another interceptor needs some."""
    heard: list[str] = []

    class Ends(StreamInterceptor):
        needs = ()

        def on_start(self, head: ResponseHead) -> None:
            heard.append("start")

        def on_event(self, event: Event) -> Event:
            raise AssertionError

        def on_end(self, outcome: Outcome) -> None:
            heard.append("end")

    async with open_chain(opening(Ends)) as stream:
        assert not stream.wants_events
    async with open_chain(opening(Ends), Picky((b"a",), upper)) as stream:
        assert stream.wants_events
        await stream.start(ResponseHead(200, []))
        assert process_all(stream, [b"data: a\n\n"]) == b"data: A\n\n"
    assert heard == ["end", "start", "end"]


@pytest.mark.parametrize(
    ("own", "called"),
    [("its class's", 1), ((b"y", b"z"), 2), (re.compile(rb"[xyz]"), 3), (EVERYTHING, 4)],
)
def test_needs_of_an_object_override_those_of_its_class(own: Any, called: int) -> None:
    events: list[Event] = []

    class Stream(StreamInterceptor):
        needs = (b"x",)

        def on_event(self, event: Event) -> Event:
            events.append(event)
            return event

    def make() -> StreamInterceptor:
        stream = Stream()
        if own != "its class's":
            stream.needs = own
        return stream

    run_chain([opening(make)], [b"data: x\n\ndata: y\n\ndata: z\n\ndata: w\n\n"])
    assert len(events) == called


NONSENSE: dict[str, Any] = {
    "text": "data",
    "bytes": b"data",
    "a bytearray": bytearray(b"data"),
    "a number": 5,
    "True": True,
    "a set": {b"data"},
    "a dict": {b"data": 1},
    "an iterator": iter([b"data"]),
    "a tuple of text": (b"data", "data"),
    "a tuple with None": (b"data", None),
    "a tuple with a bytearray": (bytearray(b"data"),),
    "a tuple with a pattern": (re.compile(rb"data"),),
    "a tuple with an empty string": (b"data", b""),
    "a pattern of text": re.compile("data"),
    "a function": finder_of,
}


def wrong(needs: Any, on_error: str = "abort") -> Interceptor:
    def make() -> StreamInterceptor:
        stream = type("Wrong", (StreamInterceptor,), {"on_event": lambda self, event: event})()
        stream.needs = needs
        return stream  # type: ignore[no-any-return]

    interceptor = opening(make)
    interceptor.on_error = on_error  # type: ignore[assignment]
    return interceptor


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_refused_when_the_stream_opens(nonsense: Any) -> None:
    """A HookError of `open_stream`, with the configured name and the expected form."""
    pools = Pools()
    async with pools.open_scope() as scope:
        with capture_logs() as logs:
            chain = Chain([("configured", wrong(nonsense)), ("later", Picky(None))])
            stream = chain.open_stream(Request(), pools.json, scope, 100)
        error = stream.failure
        await stream.aclose(Outcome.INTERCEPTED)
    assert [(log["interceptor"], log["hook"]) for log in logs] == [("configured", "open_stream")]
    assert isinstance(error, HookError)
    assert (error.interceptor, error.hook) == ("configured", "open_stream")
    expected = r"configured\.open_stream: TypeError: .*\bneeds\b.*\bexpected\b.*\bbytes?\b"
    assert re.match(expected, str(error))


def test_nonsense_ends_the_exchange_or_is_skipped() -> None:
    """With `skip`, the interceptors before and after it see what they need."""
    with capture_logs(), pytest.raises(HookError, match=r"^Opening\.open_stream: TypeError: "):
        run_chain([Picky(None), wrong("data")], [b"data: a\n\n"])
    before, after = Picky((b": a",), upper), Picky((b": b",), upper)
    with capture_logs():
        stream = b"data: a\n\ndata: b\n\ndata: c\n\n"
        result = run_chain([before, wrong("data", "skip"), after], [stream])
    assert (result.failure, result.output) == (None, b"data: A\n\ndata: B\n\ndata: c\n\n")
    assert (before.seen, after.seen) == ([b"data: a\n\n"], [b"data: b\n\n"])


# --- the search


@settings(max_examples=200, deadline=None)
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
    expected = min(found, default=-1)
    pattern = re.compile(b"|".join(re.escape(string) for string in strings))
    for needs in (tuple(strings), strings, pattern):
        finder = finder_of(needs)
        assert finder is not None
        assert finder(bytearray(buffer), start, end) == finder(buffer, start, end) == expected


# --- Limits


@pytest.mark.parametrize("ends", [b"\n", b"\r"], ids=["LF", "CR"])
@pytest.mark.parametrize("act", [keep, drop, upper], ids=["keep", "drop", "change"])
@pytest.mark.parametrize(
    "stream",
    [
        b"data: x\n\n" * 8 + b"data: ab\n\n" + b"data: y\n\n" * 8,
        b"data: x\n\ndata: x\n\ndata: ab, and too long\n\ndata: ab\n\n",
        b"data: ab\n\ndata: x\n\ndata: ab, and an end that is too long",
        b"data: 12345\n\n" * 3 + b"data: ab345\n\n" + b"data: 12345\n\n" + b"data: ab3456\n\n",
    ],
)
async def test_a_needed_event_too_large_ends_the_stream_where_it_would_without_needs(
    stream: bytes, act: Act, ends: bytes
) -> None:
    """The limit is for each event, and not for the events passed over; the ones before leave."""
    stream = stream.replace(b"\n", ends)
    members, pools = [Member((b"ab",), act)], Pools()
    expected = await feed(pools, members, [stream], 13, tells=False)
    for chunks in splits(stream):
        assert await feed(pools, members, chunks, 13, tells=True) == expected, chunks
    assert (expected.failure is not None) == (b"long" in stream or b"ab3456" in stream)


# --- Several interceptors


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("act", "shown", "output"),
    [
        (upper, [b"data: A\n\n"], b"DATA"),
        (lambda event: Event("other"), [b"data: other\n\n"], b"DATA"),
        (lambda event: [Event("x"), Event("y")], [b"data: x\n\n", b"data: y\n\n"], b"DATADATA"),
        (lambda event: End(Event("bye")), [b"data: bye\n\n"], b"DATA"),
    ],
    ids=["a replacement", "another", "several", "the last"],
)
@pytest.mark.parametrize("first_needs", [None, (b": a",)], ids=["wants all", "needs some"])
def test_an_event_that_an_earlier_interceptor_made_is_shown_to_a_later_one(
    act: Act, shown: list[bytes], output: bytes, first_needs: Needs, is_async: bool
) -> None:
    """It was not in what came, so no search can find it."""
    marked: list[bytes] = []

    class Marks(StreamInterceptor):
        needs = (b"never there",)

        def on_event(self, event: Event) -> Event:
            marked.append(event.raw)
            return Event("DATA")

    def first_only(event: Event) -> Any:
        return act(event) if event.data == "a" else event

    first = Picky(first_needs, first_only, is_async=is_async)
    result = run_chain([first, opening(Marks)], [b"data: x\n\ndata: a\n\n"])
    assert marked == shown
    assert result.output == b"data: x\n\n" + output.replace(b"DATA", b"data: DATA\n\n")


def test_an_event_of_an_interceptors_own_is_shown_to_a_later_one() -> None:
    """`emit` adds what did not arrive, so no search can find it."""

    class Emits(Interceptor):
        def open_stream(self, context: StreamContext) -> None:
            context.start_soon(context.emit, Event("hello"))

    picky = Picky((b"never there",), keep)
    result = run_chain([Emits(), picky], [b"data: x\n\n"])
    assert picky.called == [b"data: hello\n\n"]
    assert sorted(result.output.split(b"\n\n")) == [b"", b"data: hello", b"data: x"]


# --- bytes and buffers


async def test_what_is_passed_over_leaves_as_one_view_of_the_window() -> None:
    """With what is seen and left alone."""
    pools = Pools()
    async with open_chain(Picky((b"ab",), keep), pools=pools) as stream:
        window = bytearray(
            b"stale ab\n\n" + b"data: x\n\n: c\n\ndata: ab\n\n" * 50 + b"data: unfin"
        )
        parts, at = stream.process(window, 10, len(window))
        (part,) = parts
        assert isinstance(part, memoryview)
        assert part.obj is window
        assert bytes(part) == bytes(window[10:at])
        assert bytes(window[at:]) == b"data: unfin"
        part.release()
        assert stream.counts.passed == 150
        assert pools.json.statistics().allocations == 0


# --- anything

PIECES = [
    *(b"\n", b"\n\n", b"\n\n", b"\n\n\n", b":", b": ", b"data: ", b"data:", b"id: 1", b"event: "),
    *(b"retry: 5", b"data", b"data: a\n\n", b"data: ab\n\n", b"data: x\n\n"),
    *(b"data: x\n\ndata: y\n\n", b": ping\n\n", b": ab\n\n", b"id: 7\ndata: b\n\n"),
    *(b"a", b"b", b"ab", b"<", b">", b"!", b"x" * 20, BOM, b"\xef", b"\xff", b"\0"),
]
LINE_ENDS = [b"\r", b"\r\n", b"\r\n\r\n", b"\r\r", b"data: ab\r\n\r\n", b"data: x\r\r"]
ANY_STREAM = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join),
    st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: BOM + b"".join(pieces)),
    st.lists(st.sampled_from(PIECES + LINE_ENDS), max_size=30).map(b"".join),
    st.lists(st.sampled_from(PIECES), max_size=20).map(
        lambda pieces: b"".join(pieces).replace(b"\n", b"\r\n")
    ),
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
    rb"a+",
    rb"[xy]\n",
    rb"<[^>]*>",
    rb"a\s+d",
    rb"(?s)a.*b",
    rb"\n\n",
    rb"",
    rb"b*",
    rb"zz",
]
PATTERNS += [rb"id: [0-9]", rb"(?i)AB|x{5}"]
ANY_NEEDS: st.SearchStrategy[Needs] = st.one_of(
    st.lists(st.sampled_from(STRINGS), min_size=1, max_size=3).map(tuple),
    st.sampled_from(PATTERNS).map(re.compile),
)
ANY_MEMBER = st.builds(
    Member,
    st.one_of(ANY_NEEDS, ANY_NEEDS, ANY_NEEDS, ANY_NEEDS, st.none()),
    st.sampled_from([keep, drop, upper, mixed, mixed]),
    is_async=st.sampled_from([False, False, False, True]),
    on_error=st.sampled_from(["abort", "skip"]),
)


def chunked(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        for size in cuts:
            yield stream[at : at + size]
            at += size


@settings(max_examples=300, deadline=None)
@given(
    st.lists(ANY_MEMBER, min_size=1, max_size=3),
    ANY_STREAM,
    ANY_CUTS,
    st.sampled_from([1 << 20, 1 << 20, 1 << 20, 12, 30]),
)
@example(
    [Member((b"\n\ndata", b"b"), drop)], b"data: a\n\ndata: b\n\n\ndata: b", [1 << 20], 1 << 20
)
@example(
    [Member((b"a",), keep), Member(re.compile(rb"(?s)x.*b"), drop)],
    b"x\n\ndata: b\n\nxb\n\n",
    [1 << 20],
    1 << 20,
)
@example(
    [Member((b"ab",), mixed), Member(None, mixed), Member((b"more",), upper)],
    b"data: ab\n\ndata: x\n\ndata: abab\n\n",
    [7],
    1 << 20,
)
def test_nothing_shows_whether_an_interceptor_has_needs(
    members: list[Member], stream: bytes, cuts: list[int], max_event_bytes: int
) -> None:
    """Any chain, stream, cuts and limit."""
    without = run(members, chunked(stream, cuts), max_event_bytes, tells=False)
    told = run(members, chunked(stream, cuts), max_event_bytes, tells=True)
    if isinstance(without.failure, str) and "max_event_bytes" in without.failure:
        assert told.output.startswith(without.output)
    else:
        assert told == without


@settings(max_examples=100, deadline=None)
@given(ANY_NEEDS, ANY_STREAM, ANY_CUTS)
def test_no_event_is_shown_that_is_not_needed(needs: Needs, stream: bytes, cuts: list[int]) -> None:
    """If no interceptor makes events, the hook is called for exactly the events that contain what
    it needs, in order.
    """
    everything, picky = Picky(None), Picky(needs, keep)
    assert run_chain([everything], chunked(stream, cuts)).output == stream
    assert run_chain([picky], chunked(stream, cuts)).output == stream
    assert picky.called == [raw for raw in everything.called if holds(needs, raw)]
