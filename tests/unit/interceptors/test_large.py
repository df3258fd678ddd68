"""Events and bodies above `max_event_bytes`: what no hook needs passes at any size, and what one
must not miss ends the stream.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.event_source import dispatched
from unit.interceptors.scripted import BOM, open_chain

from interceptors import (
    AsyncStreamInterceptor,
    Event,
    EventTooLarge,
    Interceptor,
    StreamContext,
    StreamInterceptor,
)
from interceptors.needs import PATTERN_OVERLAP, Needs
from interceptors.testing import run_chain, run_json

LIMIT = 16


class Member(Interceptor):
    """Upper-cases each event that it is shown, and adds `last` at the end."""

    wants_json = True
    last: Event | None = None

    def __init__(
        self, needs: Needs = None, passes_unseen: bool = False, is_async: bool = False
    ) -> None:
        self.needs, self.passes_unseen, self.is_async = needs, passes_unseen, is_async
        self.seen: list[bytes] = []

    def open_stream(self, context: StreamContext) -> StreamInterceptor | AsyncStreamInterceptor:
        stream = _AsyncMember(self) if self.is_async else _Member(self)
        stream.needs, stream.passes_unseen = self.needs, self.passes_unseen
        return stream

    def see(self, event: Event) -> Event:
        self.seen.append(event.raw)
        return event.replace(event.data.upper())

    def needs_it(self, raw: bytes) -> bool:
        if self.needs is None:
            return True
        if isinstance(self.needs, re.Pattern):
            return self.needs.search(raw) is not None
        return any(string in raw for string in self.needs)


class _Member(StreamInterceptor):
    def __init__(self, member: Member) -> None:
        self.member = member

    def on_event(self, event: Event) -> Event:
        return self.member.see(event)

    def on_complete(self) -> Event | None:
        return self.member.last


class _AsyncMember(AsyncStreamInterceptor):
    def __init__(self, member: Member) -> None:
        self.member = member

    async def on_event(self, event: Event) -> Event:
        await trio.lowlevel.checkpoint()
        return self.member.see(event)

    async def on_complete(self) -> Event | None:
        return self.member.last


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream in pieces of these sizes, used in turn."""
    pieces, at, index = [], 0, 0
    while at < len(stream):
        size = sizes[index % len(sizes)]
        pieces.append(stream[at : at + size])
        at, index = at + size, index + 1
    return pieces


CUTS = {"whole": ([1 << 20], False), "byte by byte": ([1], True), "unevenly": ([19, 2, 7], False)}
EACH_CUT = pytest.mark.parametrize(("sizes", "is_async"), CUTS.values(), ids=CUTS)
"""How a stream is cut, and whether the hooks are async."""

SMALL, LARGE, NEEDED = (
    b"data: x\n\n",
    b"data: " + b"a" * 50 + b"\n\n",
    b"data: " + b"a" * 50 + b" xyz " + b"a" * 50 + b"\n\n",
)


# --- in a stream


@EACH_CUT
@pytest.mark.parametrize(
    "large",
    [
        b"event: image\ndata: aa\ndata: " + b"a" * 50 + b"\nid: 1\n\n",
        b"data: " + b"a" * 50 + b"\r\r",
        b"id: 1\r\ndata: " + b"a" * 50 + b"\r\n\r\n",
        b": " + b"a" * 50 + b"\n\n",
    ],
)
def test_an_unneeded_large_event_passes(large: bytes, sizes: list[int], is_async: bool) -> None:
    """However it is written. The events around it are shown as ever, and each counts once."""
    member = Member((b"x",), False, is_async)
    sent = SMALL + large + SMALL + large + SMALL
    result = run_chain([member], cut(sent, sizes), max_event_bytes=LIMIT)
    assert (result.failure, result.counts.total) == (None, 5)
    assert result.output == sent.replace(SMALL, b"data: X\n\n")
    assert member.seen == [SMALL] * 3


@EACH_CUT
@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_an_unfinished_large_event_passes(end: bytes, sizes: list[int], is_async: bool) -> None:
    """A reader drops it; nothing may follow it that would finish it."""
    stream = SMALL + LARGE.rstrip(b"\n") + end
    member = Member((b"y",), False, is_async)
    member.last = Event("never")
    result = run_chain([member], cut(stream, sizes), max_event_bytes=LIMIT)
    assert (result.output, result.failure, result.counts.total) == (stream, None, 2)


@EACH_CUT
@pytest.mark.parametrize(
    ("large", "chain"),
    [
        (NEEDED, [(None, False)]),
        (LARGE, [((b"b",), True), (None, False)]),
        (b"data: xyz" + LARGE, [((b"xyz",), False)]),
        (b"data: xyz" + LARGE, [(re.compile(rb"x.z"), False), (None, True)]),
        (NEEDED, [((b"xyz", b"never"), False)]),
        (NEEDED, [(re.compile(rb"x[a-y]*z"), False)]),
    ],
    ids=["all", "all, and another", "its beginning", "a pattern", "beyond the limit", "pattern beyond"],
)  # fmt: skip
def test_nothing_of_a_large_event_leaves_that_a_hook_must_see(
    large: bytes, chain: list[tuple[Needs, bool]], sizes: list[int], is_async: bool
) -> None:
    """If what shows that it is needed is within the limit. Beyond it, what came before has left if it
    came in an earlier read.
    """
    members = [Member(needs, passes, is_async) for needs, passes in chain]
    before = b"data: first\n\n"
    result = run_chain(members, cut(before + large + SMALL, sizes), max_event_bytes=LIMIT)
    assert isinstance(result.failure, EventTooLarge)
    left = result.output.lower()
    assert left.startswith(before)
    assert b"x" not in left
    if chain[0][0] is None or large is not NEEDED:
        assert left == before


def test_a_pattern_is_found_across_reads_up_to_its_bound() -> None:
    """The documented bound, byte by byte: a match of so many bytes is found, wherever it is cut."""
    match = b"<" + b"." * (PATTERN_OVERLAP - 2) + b">"
    stream = b"data: " + b"a" * 3000 + match + b"a" * 3000 + b"\n\n"
    for size in (1, 7, 1000):
        result = run_chain(
            [Member(re.compile(rb"<.*>"))], cut(stream, [size]), max_event_bytes=LIMIT
        )
        assert isinstance(result.failure, EventTooLarge)
        assert b"<" not in result.output


def expected(stream: list[bytes], members: list[Member], limit: int) -> tuple[bytes, bytes | None]:
    """The definition."""
    output = b""
    for raw in stream:
        if len(raw) > limit:
            if any(member.needs_it(raw) and not member.passes_unseen for member in members):
                return output, raw
            output += raw
            continue
        shown = any(member.needs_it(raw) for member in members)
        output += b"data: " + raw[6:].upper() if shown else raw
    return output, None


BLOCKS = st.lists(
    st.text("axyz", max_size=24).map(lambda text: b"data: %b\n\n" % text.encode()), max_size=6
)
NEEDS = st.sampled_from(
    [None, (b"x",), (b"xyz", b"aa"), (b": y",), re.compile(rb"xa*z"), re.compile(rb"z\n\n")]
)
MEMBERS = st.lists(st.builds(Member, NEEDS, st.booleans(), st.booleans()), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(BLOCKS, MEMBERS, st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(8, 30))
@example([b"data: aaaaaaaaaaxyz\n\n"], [Member((b"xyz", b"aa"))], [1], 12)
def test_any_stream_any_chain_any_cuts(
    blocks: list[bytes], members: list[Member], sizes: list[int], limit: int
) -> None:
    """The same result as by the definition, one event at a time."""
    output, refused = expected(blocks, members, limit)
    result = run_chain(members, cut(b"".join(blocks), sizes), max_event_bytes=limit)
    if refused is None:
        assert (result.output, result.failure, result.counts.total) == (output, None, len(blocks))
    else:
        assert isinstance(result.failure, EventTooLarge)
        assert result.output.startswith(output)
        assert refused.startswith(result.output[len(output) :])
        assert result.output[len(output) :] != refused


async def test_memory_stays_bounded() -> None:
    """Of a large event, no more waits than the limit and what a search across reads needs."""
    async with open_chain(("member", Member((b"x" * 100,))), max_event_bytes=4096) as stream:
        window, left, most = bytearray(), 0, 0
        for piece in [b"data: ", *[b"a" * 1000] * 2000, b"\n\n"]:
            window += piece
            parts, at = stream.process(window, 0, len(window))
            left += sum(map(len, parts))
            parts.clear()
            del window[:at]
            most = max(most, len(window))
        assert (left, stream.failure, most) == (2_000_008, None, 4006)
        assert len(window) == 0


# --- bodies

BODY = b'{"data":["' + b"a" * 50 + b'","xyz"]}'


@EACH_CUT
@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("needs", "passes_unseen", "passes"),
    [
        (None, True, True),
        (None, False, False),
        ((b"xyz",), True, True),
        ((b"never",), False, True),
        ((b"data",), False, False),
    ],
)
def test_a_large_body(
    needs: Needs, passes_unseen: bool, passes: bool, as_json: bool, sizes: list[int], is_async: bool
) -> None:
    """It passes unchanged and unseen, or nothing of it is sent, whatever its content type."""
    member = Member(needs, passes_unseen, is_async)
    failure: Exception | None = None
    output = b""
    if as_json:
        try:
            output = run_json([member], BODY, max_event_bytes=LIMIT)
        except EventTooLarge as error:
            failure = error
    else:
        result = run_chain([member], cut(BODY, sizes), max_event_bytes=LIMIT)
        output, failure = result.output, result.failure
    assert (output, failure is None, member.seen) == (BODY if passes else b"", passes, [])


# --- JSON in an event stream


class Sees(Member):
    """Replaces the body by its JSON and one item more."""

    def see(self, event: Event) -> Event:
        self.seen.append(event.raw)
        assert event.is_body
        return event.replace(json=[*event.json(), 2])


class NoJson(Member):
    wants_json = False


@EACH_CUT
@pytest.mark.parametrize("before", [b"", BOM, b"\n\n", b"\r\n\r", BOM + b"\n \t\r\n  ", b"  "])
def test_json_as_events_is_one_body(before: bytes, sizes: list[int], is_async: bool) -> None:
    """After a BOM and white space, which stay. Members without `wants_json` are not asked."""
    sees, blind = Sees(is_async=is_async), NoJson(is_async=is_async)
    result = run_chain([blind, sees], cut(before + b"[1,\n\n 0]\r\n", sizes))
    assert (result.output, result.failure) == (before + b"[1,0,2]", None)
    assert (sees.seen, blind.seen) == ([b"[1,\n\n 0]\r\n"], [])
    assert (result.counts.changed, result.counts.added) == (1, 0)


@EACH_CUT
@pytest.mark.parametrize(
    "chain",
    [[NoJson()], [Member(needs=())], [Member((b"never",))]],
    ids=["blind", "no needs", "needs"],
)
@pytest.mark.parametrize("body", [b'{"a":\n\n1}', b"{broken\n\nda: x\n\n", b"[" + b" " * 100])
def test_json_in_an_event_stream_that_no_hook_wants_passes(
    chain: list[Interceptor], body: bytes, sizes: list[int], is_async: bool
) -> None:
    """As it came, at any size."""
    limit = 1 << 20 if isinstance(chain[0], Member) and chain[0].needs == (b"never",) else 4
    for member in chain:
        member.see = lambda event: event  # type: ignore[attr-defined]
    result = run_chain(chain, cut(body, sizes), max_event_bytes=limit)
    assert (result.output, result.failure) == (body, None)


@EACH_CUT
@pytest.mark.parametrize(
    "stream",
    [
        b"data: {}\n\n",
        b": {\n\ndata: x\n\n",
        BOM + b"\n\ndata: []\n\n",
        b"id\n\n{\n\n",
        b"  data: x\n\n",
        b"\n\n\n",
        b" \n \n",
        b"\x0b{}",
    ],
)
def test_what_is_not_json_is_a_stream(stream: bytes, sizes: list[int], is_async: bool) -> None:
    """The first byte after white space decides, and nothing after it. White space alone is not a body."""

    class Keeps(Member):
        def see(self, event: Event) -> Event:
            assert not event.is_body
            return event

    result = run_chain([Keeps(is_async=is_async)], cut(stream, sizes))
    assert (result.output, result.failure) == (stream, None)


FIELDS = [
    b"data: ab\n\n",
    b"id\r\ndata:ab\r\n\r\n",
    b"event: e\rdata: ab\r\r",
    b"retry: 1\ndata: ab\n\n",
]


@EACH_CUT
@pytest.mark.parametrize("wants_json", [False, True], ids=["blind", "sees json"])
@pytest.mark.parametrize(
    ("before", "fields"),
    list(
        zip([b"{}\n\n", b'{"status":\n"queued"}\n', b" [\r\r", BOM + b"{\n"], FIELDS, strict=True)
    ),
)
def test_events_after_what_begins_like_json_are_events(
    before: bytes, fields: bytes, wants_json: bool, sizes: list[int], is_async: bool
) -> None:
    """A client of an event stream reads them, so the hooks see them, and `on_complete` is called."""

    class Sees(Member):
        last = Event("last")

        def see(self, event: Event) -> Event:
            assert not event.is_body
            return event.replace(event.data.upper()) if event.data else event

    sees = Sees(is_async=is_async)
    sees.wants_json = wants_json
    result = run_chain([sees], cut(before + fields, sizes))
    assert result.failure is None
    assert [event.data for event in dispatched(result.output)][-2:] == ["AB", "last"]


@EACH_CUT
@pytest.mark.parametrize("fields", FIELDS)
def test_events_after_a_large_body(fields: bytes, sizes: list[int], is_async: bool) -> None:
    """What a hook was to see of them has not been shown, so that they do not pass."""
    result = run_chain(
        [NoJson()], cut(b"{" + b" " * 50 + b"\n" + fields, sizes), max_event_bytes=LIMIT
    )
    assert isinstance(result.failure, EventTooLarge)
    assert b"ab" not in result.output


def test_nothing_is_added_to_a_json_body() -> None:
    """No event of a task, and nothing from `on_complete`."""

    class Speaks(Sees):
        last = Event("never")

        def open_stream(self, context: StreamContext) -> Any:
            async def speak() -> None:
                for _ in range(3):
                    await trio.testing.wait_all_tasks_blocked()
                await context.emit(Event("never"))

            context.start_soon(speak)
            return super().open_stream(context)

    result = run_chain([Speaks()], [b"[", b"1", b"]", b""])
    assert result.output == b"[1,2]"
