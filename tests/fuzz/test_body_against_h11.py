"""Our body framing against h11's: whatever h11 rejects we reject, and what both accept reads alike,
however it is cut.

And `split`, which lets whole chunks be, against `frame`, which unpacks all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import h11
from fuzz.mistakes import edited, overwritten
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunks import unchunked

from proxy.errors import ProtocolFailure
from proxy.http.body import Chunked, ContentLength, Framing

OLD = b"\r\n4\r\nold!\r\n"  # after a read lies older data, which may look like anything
HEAD = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n"


@dataclass(frozen=True)
class Reading:
    """What a reader made of some bytes and the end of the connection."""

    body: bytes
    complete: bool
    surplus: bool
    rejected: bool


def read_with_ours(framing: Framing, pieces: list[bytes], start: int = 0) -> Reading:
    """Raises whatever else but `ProtocolFailure` comes out."""
    body = b""
    try:
        for piece in pieces:
            buffer = bytearray(b"#" * start + piece)
            first, last = framing.frame(buffer, start, len(buffer))
            assert buffer[:start] == b"#" * start
            assert start <= first <= last <= len(buffer)
            body += buffer[first:last]
        was_complete = framing.complete
        framing.eof()
        assert was_complete
    except ProtocolFailure:
        return Reading(body, framing.complete, framing.surplus, True)
    return Reading(body, framing.complete, framing.surplus, False)


def steps_of_frame(pieces: list[bytes]) -> list[tuple[bytes, bool, bool, str]]:
    """What `frame` makes of each read: data, completeness, surplus, refusal. It ends with the read
    that is refused.
    """
    framing, steps = Chunked(), []
    for piece in pieces:
        buffer = bytearray(piece)
        refusal = ""
        try:
            first, last = framing.frame(buffer, 0, len(buffer))
        except ProtocolFailure as error:
            (first, last), refusal = framing.framed, str(error)
        steps.append((bytes(buffer[first:last]), framing.complete, framing.surplus, refusal))
        if refusal:
            break
    return steps


def steps_of_split(pieces: list[bytes]) -> tuple[list[tuple[bytes, bool, bool, str]], bytes]:
    """The same of `split`, and what a relay would send on: chunks that came whole as they are, and
    the rest framed anew.
    """
    framing, steps, sent = Chunked(), [], b""
    for piece in pieces:
        buffer = bytearray(piece + OLD)
        refusal = ""
        try:
            split = framing.split(buffer, len(piece))
        except ProtocolFailure as error:
            split, refusal = framing.was_split, str(error)
        lead, wire, behind, first, last, size = split
        assert 0 <= lead <= wire <= behind <= first <= last <= len(piece)
        assert buffer[len(piece) :] == OLD
        whole = bytes(buffer[wire:behind])
        assert whole == piece[wire:behind]
        chunks = unchunked(whole)
        assert all(len(chunk) >= 4 for chunk in chunks)
        before, after = bytes(buffer[:lead]), bytes(buffer[first:last])
        data = b"".join([before, *chunks, after])
        assert len(data) == size
        sent += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (before,) if part)
        sent += whole
        sent += b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (after,) if part)
        steps.append((data, framing.complete, framing.surplus, refusal))
        if refusal:
            break
    return steps, sent


def read_with_h11(header: bytes, pieces: list[bytes]) -> Reading:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(HEAD % header)
    assert isinstance(connection.next_event(), h11.Response)
    body = bytearray()
    complete = False
    try:
        for piece in [*pieces, b""]:
            if complete:
                if piece:
                    connection.receive_data(piece)
                continue
            connection.receive_data(piece)
            while not complete:
                event = connection.next_event()
                if isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    complete = True
                else:
                    assert event is h11.NEED_DATA
                    break
    except h11.RemoteProtocolError:
        return Reading(bytes(body), complete, False, True)
    return Reading(bytes(body), complete, bool(connection.trailing_data[0]), False)


def cut(wire: bytes, positions: list[int]) -> list[bytes]:
    """`wire` in pieces, none of them empty: an empty read is the end of the connection."""
    bounds = sorted({0, len(wire), *(position % (len(wire) + 1) for position in positions)})
    return [wire[a:b] for a, b in pairwise(bounds)]


positions = st.lists(st.integers(0, 10_000), max_size=12)
sizes = st.sampled_from(["{:x}", "{:X}", "0{:x}", "{:016x}", "{:x};a=b", "{:x} ", "{:x};\t"])
bad_sizes = st.sampled_from(
    [
        "+{:x}", "-{:x}", "0x{:x}", "0_{:x}", " {:x}", "{:017x}", "{:021x}", "{:x}\r", "{:x} ;a",
        "", "{:x};\r", "{:x}\x00",
    ]
)  # fmt: skip
trailer_lines = st.sampled_from(
    (
        b"x: y\r\n|A:\r\n|x : y\r\n| x: y\r\n|x\r\n|: y\r\n|x: \x01\r\n|x: \x00\r\n|"
        b"x: y\n|content-length: 1\r\n|content-length: x\r\n|transfer-encoding: gzip\r\n|"
        b"host: h\r\n|x: \x7f\r\n"
    ).split(b"|")
)


@st.composite
def chunked_bodies(draw: st.DrawFn, *, mistakes: bool) -> bytes:
    """A chunked body; with `mistakes`, one that may have wrong sizes, line ends and trailers, and
    bytes changed at random.
    """
    wire = b""
    for data in draw(st.lists(st.binary(min_size=1, max_size=20), max_size=5)):
        form = draw(st.one_of(sizes, sizes, bad_sizes)) if mistakes else draw(sizes)
        length = len(data) + (draw(st.sampled_from([0, 0, 0, 0, 1, -1])) if mistakes else 0)
        ends = (
            st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"", b"\n\r", b"\rx"])
            if mistakes
            else st.just(b"\r\n")
        )
        wire += form.format(length).encode("latin-1") + draw(ends) + data + draw(ends)
    wire += draw(st.sampled_from([b"0", b"00", b"0;x", b"0 "])) + b"\r\n"
    if mistakes:
        wire += b"".join(draw(st.lists(trailer_lines, max_size=3)))
        wire += draw(st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b""]))
        wire += draw(st.sampled_from([b"", b"", b"HTTP/1.1 200 OK\r\n", b"\n"]))
    else:
        wire += draw(st.sampled_from([b"", b"x: y\r\n", b"x-a:\r\nx-b: c\r\n"])) + b"\r\n"
        return wire
    return overwritten(draw, wire, 200, b"\r\n\x00\t 09afAFx;:+-_\xff")


anything = st.one_of(
    st.builds(
        edited,
        chunked_bodies(mistakes=False),
        st.integers(0, 200),
        st.integers(0, 2),
        st.sampled_from([b"", b"x", b"0", b"\n", b"\r", b" ", b"\x00", b";", b":"]),
    ),
    chunked_bodies(mistakes=True),
    st.text(alphabet="0123aF;x: \r\n", max_size=40).map(str.encode),
    st.lists(
        st.sampled_from(
            [b"\r\n", b"\n", b"\r", b"1", b"0", b"a", b"2\r\n", b"ab\r\n", b"0\r\n", b"x: y"]
        ),
        max_size=12,
    ).map(b"".join),
)
CHUNKED = b"Transfer-Encoding: chunked"


@given(chunked_bodies(mistakes=False), positions, positions, st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_a_valid_chunked_body_reads_as_h11_reads_it(
    wire: bytes, ours: list[int], theirs: list[int], start: int
) -> None:
    """Both accept it, completely, with the same bytes, whatever the cuts on either side."""
    reading = read_with_ours(Chunked(), cut(wire, ours), start)
    assert reading == read_with_h11(CHUNKED, cut(wire, theirs))
    assert not reading.rejected
    assert reading.complete


@given(anything, positions, positions, st.integers(0, 3))
@settings(deadline=None, max_examples=1000)
def test_what_h11_rejects_is_rejected_and_what_both_accept_reads_alike(
    wire: bytes, ours: list[int], theirs: list[int], start: int
) -> None:
    """We may be stricter, never laxer; and nothing but our protocol error comes out, however broken
    the body is.
    """
    reading = read_with_ours(Chunked(), cut(wire, ours), start)
    # h11 rejects white space before a trailer's colon, which is removed from a response (RFC 9112,
    # section 5.1).
    reference = read_with_h11(
        CHUNKED,
        cut(re.sub(rb"(?<=\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+)([\t ]+):", rb"\1:\2", wire), theirs),
    )
    if reference.rejected:
        assert reading.rejected
    if not reading.rejected:
        assert reading == reference
    if not reading.complete:
        assert reading.rejected


@given(anything, positions, st.integers(0, 3))
@settings(deadline=None, max_examples=500)
def test_the_cuts_change_nothing(wire: bytes, positions: list[int], start: int) -> None:
    """Whole, byte by byte, or cut at random, at the buffer's start or after a prefix: the same
    verdict and the same bytes.
    """
    whole = read_with_ours(Chunked(), cut(wire, []))
    random = read_with_ours(Chunked(), cut(wire, positions), start)
    single = read_with_ours(Chunked(), cut(wire, list(range(len(wire)))), start)
    assert random.rejected == single.rejected == whole.rejected
    if not whole.rejected:
        assert random == single == whole
    else:
        # A mistake is reported when it is seen; the bytes before it may have been passed on by then,
        # and only those.
        assert single.body.startswith(random.body)
        assert random.body.startswith(whole.body)


@given(st.binary(max_size=40), st.integers(0, 45), positions, positions, st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_a_content_length_body_reads_as_h11_reads_it(
    wire: bytes, length: int, ours: list[int], theirs: list[int], start: int
) -> None:
    """Too short, exact or too long, for both."""
    reading = read_with_ours(ContentLength(length), cut(wire, ours), start)
    assert reading == read_with_h11(b"Content-Length: %d" % length, cut(wire, theirs))


@st.composite
def rechunked(draw: st.DrawFn) -> bytes:
    """A valid body in chunks of any sizes, most of them plain and large enough to pass whole; its
    data may look like framing.
    """
    data = draw(
        st.lists(
            st.sampled_from([b"\r\n", b"0\r\n\r\n", b"4\r\n", b"data: ", b"\n\n", b"x" * 30]),
            max_size=30,
        ).map(b"".join)
    )
    wire, at = b"", 0
    while at < len(data):
        piece = data[at : at + draw(st.integers(1, 40))]
        form = draw(st.one_of(st.sampled_from(["{:x}", "{:X}", "00{:x}"]), st.just("{:x}"), sizes))
        wire += form.format(len(piece)).encode() + b"\r\n" + piece + b"\r\n"
        at += len(piece)
    return wire + draw(st.sampled_from([b"0\r\n\r\n", b"000;x\r\n\r\n", b"0\r\nx: y\r\n\r\n"]))


@given(st.one_of(rechunked(), chunked_bodies(mistakes=False)), positions, positions)
@settings(deadline=None, max_examples=200)
def test_what_split_sends_on_reads_as_h11_reads_what_came(
    wire: bytes, ours: list[int], theirs: list[int]
) -> None:
    """A valid body, however it is cut: chunks that pass whole and those that are framed anew make
    the same body, and no more.
    """
    for pieces in (cut(wire, ours), cut(wire, []), cut(wire, list(range(len(wire))))):
        steps, sent = steps_of_split(pieces)
        body = b"".join(data for data, *_ in steps)
        assert steps[-1][1:] == (True, False, "")
        assert read_with_h11(CHUNKED, cut(wire, theirs)) == Reading(body, True, False, False)
        assert b"".join(unchunked(sent)) == body
        assert read_with_h11(CHUNKED, cut(sent + b"0\r\n\r\n", theirs)) == Reading(
            body, True, False, False
        )


@given(
    st.one_of(
        anything,
        st.builds(
            edited,
            rechunked(),
            st.integers(0, 500),
            st.integers(0, 2),
            st.sampled_from([b"", b"x", b"0", b"\n", b"\r"]),
        ),
    ),
    positions,
)
@settings(deadline=None, max_examples=400)
def test_split_finds_what_frame_finds(wire: bytes, positions: list[int]) -> None:
    """Whole, byte by byte, or cut at random, and however broken: after each read the same data, the
    same completeness, the same surplus, and the same refusal at the same place.
    """
    for pieces in (cut(wire, positions), cut(wire, []), cut(wire, list(range(len(wire))))):
        steps, sent = steps_of_split(pieces)
        assert steps == steps_of_frame(pieces)
        assert b"".join(unchunked(sent)) == b"".join(data for data, *_ in steps)


def test_the_comparison_sees_both_verdicts() -> None:
    """The reference is not a constant: h11, as it is used here, takes one body and rejects another,
    and flags what comes behind.
    """
    assert read_with_h11(CHUNKED, [b"1\r\na\r\n0\r\n\r\n"]) == Reading(b"a", True, False, False)
    assert read_with_h11(CHUNKED, [b"+1\r\na\r\n0\r\n\r\n"]).rejected
    assert read_with_h11(CHUNKED, [b"1\r\na\r\n0\r\n"]).rejected
    assert read_with_h11(CHUNKED, [b"0\r\n\r\n", b"x"]).surplus
