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
from unit.interceptors.scripted import drop, keep, upper

from interceptors import Event, Interceptor, StreamInterceptor
from interceptors.api import AsyncStreamInterceptor, End, Outcome, StreamContext
from interceptors.chain import Chain, StreamChain
from interceptors.errors import HookError
from interceptors.message import Request, ResponseHead
from interceptors.needs import Needs, finder_of
from interceptors.testing import run_chain
from pools import Pools

Act = Callable[[Event], Any]
BOM = b"\xef\xbb\xbf"
EVERYTHING: Any = None


def holds(needs: Needs, raw: bytes) -> bool:
    """Whether an event of these bytes is needed: the definition, in one event at a time."""
    if needs is None:
        return True
    return (
        bool(needs.search(raw))
        if isinstance(needs, re.Pattern)
        else any(string in raw for string in needs)
    )


class Picky(Interceptor):
    """Acts on the events that contain what it needs and ignores the others; with `tells`, it
    declares it.
    """

    def __init__(
        self,
        needs: Needs,
        act: Act,
        *,
        tells: bool = True,
        is_async: bool = False,
        on_error: Any = "abort",
    ) -> None:
        self.needs, self.act, self.tells, self.is_async, self.on_error = (
            needs,
            act,
            tells,
            is_async,
            on_error,
        )
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
        return Picky(
            self.needs, self.act, tells=tells, is_async=self.is_async, on_error=self.on_error
        )


def run(
    members: Iterable[Member],
    chunks: Iterable[bytes],
    *,
    tells: bool,
    max_event_bytes: int = 1 << 20,
) -> Run:
    chain = [member.make(tells) for member in members]
    with capture_logs():
        result = run_chain(chain, chunks, max_event_bytes=max_event_bytes)
    counts = result.counts
    return Run(
        result.output,
        (counts.passed, counts.changed, counts.dropped, counts.added),
        None if result.failure is None else str(result.failure),
        result.ended,
        [picky.seen for picky in chain],
    )


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
    pools: Pools,
    members: Iterable[Member],
    chunks: list[bytes],
    *,
    tells: bool,
    max_event_bytes: int,
) -> Run:
    """As `run`, for thousands of them: in one Trio run, and without async hooks."""
    chain = [member.make(tells) for member in members]
    async with open_chain(*chain, pools=pools, max_event_bytes=max_event_bytes) as stream:
        output = process_all(stream, chunks)
        counts = stream.counts
        return Run(
            output,
            (counts.passed, counts.changed, counts.dropped, counts.added),
            None if stream.failure is None else str(stream.failure),
            stream.ended,
            [picky.seen for picky in chain],
        )


def splits(stream: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and in two at every position."""
    yield [stream]
    yield [stream[i : i + 1] for i in range(len(stream))]
    for i in range(1, len(stream)):
        yield [stream[:i], stream[i:]]


async def check_alike(
    members: list[Member],
    stream: bytes,
    chunkings: Iterable[list[bytes]],
    *,
    max_event_bytes: int = 1 << 20,
) -> Run:
    """However it is cut, the run with `needs` is the run without, in one piece. That run."""
    pools = Pools()
    expected = await feed(pools, members, [stream], tells=False, max_event_bytes=max_event_bytes)
    for chunks in chunkings:
        assert (
            await feed(pools, members, chunks, tells=True, max_event_bytes=max_event_bytes)
            == expected
        ), chunks
    return expected


# --- what may be said
# ---------------------------------------------------------------------------------------------------

A_AND_B = b"data: a\n\ndata: b\n\n: a\n\ndata: ab\n\n"


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("needs", "called"),
    [
        (None, [b"data: a\n\n", b"data: b\n\n", b"data: ab\n\n"]),
        ((), []),
        ([], []),
        ((b"a",), [b"data: a\n\n", b"data: b\n\n", b"data: ab\n\n"]),  # "data" holds it as well
        ((b": a",), [b"data: a\n\n", b"data: ab\n\n"]),
        ([b": a"], [b"data: a\n\n", b"data: ab\n\n"]),
        ((b"x", b"b"), [b"data: b\n\n", b"data: ab\n\n"]),
        ((b"x", b"y"), []),
        (re.compile(rb"[ab]\n"), [b"data: a\n\n", b"data: b\n\n", b"data: ab\n\n"]),
        (re.compile(rb"A(?=B)", re.IGNORECASE), [b"data: ab\n\n"]),
        (re.compile(rb""), [b"data: a\n\n", b"data: b\n\n", b"data: ab\n\n"]),
        (re.compile(rb"x"), []),
    ],
    ids=str,
)
def test_a_hook_is_called_for_what_it_needs_and_for_nothing_else(
    needs: Needs, called: list[bytes], is_async: bool
) -> None:
    """None is everything, no string nothing."""
    for ends in (b"\n", b"\r\n", b"\r"):
        picky = Picky(needs, keep, is_async=is_async)
        stream = A_AND_B.replace(b"\n", ends)
        if ends != b"\n" and isinstance(needs, re.Pattern) and b"\\n" in needs.pattern:
            continue  # the pattern is about line ends
        result = run_chain([picky], [stream])
        assert (result.output, result.counts.passed, result.failure) == (stream, 4, None)
        assert [raw.replace(ends, b"\n") for raw in picky.called] == called


async def test_who_needs_nothing_costs_nothing() -> None:
    """With `()` no event need be framed at all, unless somebody else wants some."""
    heard: list[str] = []

    class Ends(Interceptor):
        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            return _EndsStream()

    class _EndsStream(StreamInterceptor):
        needs = ()

        def on_start(self, head: ResponseHead) -> None:
            heard.append("start")

        def on_event(self, event: Event) -> Event:
            raise AssertionError

        def on_end(self, outcome: Outcome) -> None:
            heard.append("end")

    async with open_chain(Ends()) as stream:
        assert not stream.wants_events
    async with open_chain(Ends(), Picky((b"a",), upper)) as stream:
        assert stream.wants_events
        await stream.start(ResponseHead(200, []))
        assert process_all(stream, [b"data: a\n\n"]) == b"data: A\n\n"
    assert heard == ["end", "start", "end"]


def test_needs_stands_in_the_class_or_is_set_on_the_object() -> None:
    """An object's own goes before its class's."""

    class Classy(Interceptor):
        def __init__(self, own: Needs) -> None:
            self.own, self.called = own, 0

        def open_stream(self, context: StreamContext) -> StreamInterceptor:
            outer = self

            class Stream(StreamInterceptor):
                needs = (b"x",)

                def on_event(self, event: Event) -> Event:
                    outer.called += 1
                    return event

            stream = Stream()
            if self.own != (b"x",):
                stream.needs = self.own
            return stream

    for own, called in (
        ((b"x",), 1),
        ((b"y", b"z"), 2),
        (re.compile(rb"[xyz]"), 3),
        (EVERYTHING, 4),
    ):
        classy = Classy(own)
        run_chain([classy], [b"data: x\n\ndata: y\n\ndata: z\n\ndata: w\n\n"])
        assert classy.called == called


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


class Wrong(Interceptor):
    """Says nonsense; its stream writes down what is called."""

    def __init__(self, needs: Any, on_error: Any = "abort") -> None:
        self.needs, self.on_error = needs, on_error
        self.called: list[str] = []

    def open_stream(self, context: StreamContext) -> StreamInterceptor:
        stream = WrongStream()
        stream.called = self.called
        stream.needs = self.needs
        return stream


class WrongStream(StreamInterceptor):
    called: list[str]

    def on_start(self, head: ResponseHead) -> None:
        self.called.append("on_start")

    def on_event(self, event: Event) -> Event:
        self.called.append("on_event")
        return event

    def on_end(self, outcome: Outcome) -> None:
        self.called.append("on_end")


async def failure_of(needs: Any) -> HookError:
    """The error of a stream whose interceptor, configured as `configured`, has these `needs`."""
    pools = Pools()
    async with pools.open_scope() as scope:
        with capture_logs() as logs:
            chain = Chain([("configured", Wrong(needs)), ("later", Picky(None, keep))])
            stream = chain.open_stream(Request(), pools.json, scope, 100)
        error = stream.failure
        await stream.aclose(Outcome.INTERCEPTED)
    assert [(log["interceptor"], log["hook"]) for log in logs] == [("configured", "open_stream")]
    assert isinstance(error, HookError)
    return error


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_refused_when_the_stream_opens(nonsense: Any) -> None:
    """A HookError of `open_stream`, under the configured name, states what was expected."""
    error = await failure_of(nonsense)
    assert (error.interceptor, error.hook) == ("configured", "open_stream")
    assert re.match(
        r"configured\.open_stream: TypeError: .*\bneeds\b.*\bexpected\b.*\bbytes?\b", str(error)
    )


def test_nonsense_ends_the_exchange_or_is_skipped_as_the_interceptor_says() -> None:
    """With `abort` the stream does not begin."""
    with capture_logs(), pytest.raises(HookError, match=r"^Wrong\.open_stream: TypeError: "):
        run_chain([Picky(None, keep), Wrong("data")], [b"data: a\n\n"])


def test_skipped_nonsense_leaves_the_others_their_own_needs() -> None:
    """Interceptors before and after it see what they need, and no other's share."""
    for tells in (False, True):
        before, behind = Picky((b": a",), upper, tells=tells), Picky((b": b",), upper, tells=tells)
        with capture_logs():
            result = run_chain(
                [before, Wrong("data", "skip"), behind], [b"data: a\n\ndata: b\n\ndata: c\n\n"]
            )
        assert (result.failure, result.output) == (None, b"data: A\n\ndata: B\n\ndata: c\n\n")
        assert (before.seen, behind.seen) == ([b"data: a\n\n"], [b"data: b\n\n"])


# --- the search
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab\n", max_size=20).map(str.encode),
    st.lists(st.text("ab\n", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=4),
    st.integers(0, 20),
    st.integers(0, 20),
)
@example(b"abb", [b"b", b"abb"], 0, 2)
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


# --- the same as without
# ------------------------------------------------------------------------------------------------

AB = Member((b"ab",), mixed)


STREAMS: dict[str, bytes] = {
    "events": b"data: x\n\ndata: ab\n\nid: 1\ndata: y\n\nevent: ab\ndata: z\n\ndata: x\n\n",
    "comments": b": ab\n\n:\n\ndata: ab\n\n: x\n: ab\n\n: ab\ndata: x\n\n: ping\n\ndata: x\n: ab\n\n",
    "blank lines": b"\n\ndata: x\n\n\n\ndata: ab\n\n\ndata: y\n\n\n\n\ndata: z\n\n\n",
    "a BOM": BOM + b"data: x\n\n" + BOM + b"data: ab\n\ndata: y\n\n",
    "a BOM that is not the stream's": b"data: x\n\n" + BOM + b"data: ab\n\ndata: y\n\n",
    "a BOM before what is needed": BOM + b"data: ab\n\ndata: x\n\n",
    "a BOM and a comment": BOM + b": ab\n\ndata: x\n\ndata: ab\n\n",
    "a needed tail": b"data: x\n\ndata: y\n\ndata: ab",
    "a needed tail of a line": b"data: x\n\ndata: ab\n",
    "another tail": b"data: ab\n\ndata: x\n\ndata: y\n",
    "a tail of a comment": b"data: ab\n\n: ab",
    "matches across a border": b"data: a\n\nb: x\n\ndata: xa\n\nb\n\ndata: ab\n\na\n\nb",
    "only what is needed": b"data: ab\n\n" * 3,
    "nothing that is needed": b"data: x\n\n" * 4,
    "what begins where another ends": b"data: aab\n\nab\n\ndata: a\nb\n\nab: a\n\n",
}


# --- limits
# -------------------------------------------------------------------------------------------------------------


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
    """The limit is for each event, and not for how many are passed over; what came before leaves."""
    stream = stream.replace(b"\n", ends)
    members = [Member((b"ab",), act)]
    expected = await check_alike(members, stream, splits(stream), max_event_bytes=13)
    assert (expected.failure is not None) == (b"long" in stream or b"ab3456" in stream)


# --- several interceptors
# -----------------------------------------------------------------------------------------------


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
    """Whatever it contains: it was not in the upstream's bytes."""

    def mark(event: Event) -> Event:
        marked.append(event.raw)
        return Event("DATA")

    marked: list[bytes] = []

    class Later(Interceptor):
        def open_stream(self, context: StreamContext) -> Any:
            return Marks()

    class Marks(StreamInterceptor):
        needs = (b"never there",)

        def on_event(self, event: Event) -> Event:
            return mark(event)

    first = Picky(
        first_needs, lambda event: act(event) if event.data == "a" else event, is_async=is_async
    )
    result = run_chain([first, Later()], [b"data: x\n\ndata: a\n\n"])
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
# --------------------------------------------------------------------------------------------------


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
# -----------------------------------------------------------------------------------------------------------

PIECES = [
    *[
        b"\n",
        b"\n\n",
        b"\n\n",
        b"\n\n\n",
        b":",
        b": ",
        b"data: ",
        b"data:",
        b"id: 1",
        b"event: ",
        b"retry: 5",
        b"data",
    ],
    *[
        b"data: a\n\n",
        b"data: ab\n\n",
        b"data: x\n\n",
        b"data: x\n\ndata: y\n\n",
        b": ping\n\n",
        b": ab\n\n",
        b"id: 7\ndata: b\n\n",
    ],
    *[b"a", b"b", b"ab", b"<", b">", b"!", b"x" * 20, BOM, b"\xef", b"\xff", b"\0"],
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
    b"a",
    b"ab",
    b"b",
    b": a",
    b"x",
    b"\n",
    b"\n\n",
    b"a\n\n",
    b"\n\ndata",
    b"b\n\nd",
    b"<",
    b"!",
    b"\r",
    BOM,
    b"zz",
    b"data: a",
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
    rb"id: [0-9]",
    rb"(?i)AB|x{5}",
]
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
    [AB, Member(None, mixed), Member((b"more",), upper)],
    b"data: ab\n\ndata: x\n\ndata: abab\n\n",
    [7],
    1 << 20,
)
def test_nothing_shows_whether_an_interceptor_told_its_needs(
    members: list[Member], stream: bytes, cuts: list[int], max_event_bytes: int
) -> None:
    """Any chain, stream, cuts and limit."""
    without = run(members, chunked(stream, cuts), tells=False, max_event_bytes=max_event_bytes)
    told = run(members, chunked(stream, cuts), tells=True, max_event_bytes=max_event_bytes)
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
    everything, picky = Picky(None, keep), Picky(needs, keep)
    assert run_chain([everything], chunked(stream, cuts)).output == stream
    assert run_chain([picky], chunked(stream, cuts)).output == stream
    assert picky.called == [raw for raw in everything.called if holds(needs, raw)]
