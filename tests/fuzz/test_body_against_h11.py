"""Our body framing against h11's: whatever h11 rejects we reject, and what both accept reads alike,
however it is cut. `split`, which forwards whole chunks, is compared with `frame` in each read.

And whole responses: which framing a body has, for which method and status (RFC 9112, section 6.3).
"""

from __future__ import annotations

import re
from typing import NamedTuple

import h11
import pytest
from fuzz.mistakes import cut, cuts, edited, h11_client
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.chunks import frame_steps, split_steps, unchunked

from proxy.errors import ProtocolFailure
from proxy.http.body import Chunked, framing_of
from proxy.http.head import HeadReader


def read_with_h11(pieces: list[bytes]) -> tuple[bytes, bool] | None:
    """The body, and whether anything follows it; None: refused, or not whole at the end."""
    connection = h11_client()
    connection.receive_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Response)
    body = b""
    try:
        for number, piece in enumerate([*pieces, b""], 1):
            connection.receive_data(piece)
            while isinstance(event := connection.next_event(), h11.Data):
                body += event.data
            if isinstance(event, h11.EndOfMessage):
                return body, bool(connection.trailing_data[0] + b"".join(pieces[number:]))
    except h11.RemoteProtocolError:
        return None
    raise AssertionError(f"h11 neither read a body nor rejected the end of the connection: {event}")


def chunk(form: str, size: int, data: bytes, end: bytes = b"\r\n") -> bytes:
    return form.format(size).encode("latin-1") + end + data + end


good_forms = st.sampled_from(
    ["{:x}", "{:x}", "{:X}", "0{:x}", "{:016x}", "{:x};a=b", "{:x} ", "{:x};\t"]
)
bad_forms = st.sampled_from(
    ["+{:x}", "0x{:x}", "0_{:x}", " {:x}", "{:017x}", "{:x}\r", "{:x} ;a", "", "{:x};\r"]
)
# Data that looks like framing, and chunks that are large enough to pass whole or not.
data = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.sampled_from([b"\r\n", b"0\r\n\r\n", b"4\r\n", b"data: \n\n", b"x" * 30]),
)
good_chunks = st.builds(lambda form, data: chunk(form, len(data), data), good_forms, data)
bad_chunks = st.builds(
    lambda form, data, more, end: chunk(form, len(data) + more, data, end),
    st.one_of(good_forms, bad_forms),
    data,
    st.sampled_from([0, 0, 0, 1, -1]),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\n\r", b"\rx"]),
)
last_chunks = st.sampled_from([b"0\r\n", b"00\r\n", b"0;x\r\n", b"0 \r\n"])
good_trailers = st.sampled_from([b"", b"x: y\r\n", b"x-a:\r\nx-b: c\r\n"])
bad_trailers = st.sampled_from(
    (
        b"x : y\r\n| x: y\r\n|x\r\n|: y\r\n|x: \x01\r\n|x: \x00\r\n|x: y\n|content-length: 1\r\n|"
        b"transfer-encoding: gzip\r\n|host: h\r\n|x: \x7f\r\n"
    ).split(b"|")
)
ends = st.sampled_from([b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\nHTTP/1.1 200 OK\r\n", b"\r\n\n"])
good_bodies = st.builds(
    lambda chunks, last, trailers: b"".join([*chunks, last, trailers, b"\r\n"]),
    st.lists(good_chunks, max_size=6),
    last_chunks,
    good_trailers,
)
bad_bodies = st.one_of(
    st.builds(
        edited,
        good_bodies,
        st.integers(0, 300),
        st.integers(0, 2),
        st.sampled_from(b"|x|0|\n|\r| |\x00|;|:|\t|\xff|-|+|_|F".split(b"|")),
    ),
    st.builds(
        lambda chunks, last, trailers, end: b"".join([*chunks, last, trailers, end]),
        st.lists(st.one_of(good_chunks, bad_chunks), max_size=4),
        last_chunks,
        st.one_of(good_trailers, bad_trailers),
        ends,
    ),
    st.text(alphabet="0123aF;x: \r\n", max_size=40).map(str.encode),
)


@given(st.booleans(), st.data(), cuts, cuts, st.integers(0, 3))
@settings(max_examples=400)
def test_a_chunked_body_reads_as_h11_reads_it(
    valid: bool, given: st.DataObject, ours: list[int], theirs: list[int], start: int
) -> None:
    """A valid body is accepted. We may be stricter than h11, never laxer; nothing but our refusal
    comes out; and the cuts change nothing.
    """
    wire = given.draw(good_bodies if valid else bad_bodies)
    # h11 rejects white space before a trailer's colon, which is removed from a response (RFC 9112,
    # section 5.1).
    for_h11 = re.sub(rb"(?<=\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+)([\t ]+):", rb"\1:\2", wire)
    reference = read_with_h11(cut(for_h11, theirs))
    bodies = []
    for pieces in (cut(wire, ours), [wire], cut(wire, list(range(len(wire))))):
        framing = Chunked()
        steps = frame_steps(framing, pieces, b"#" * start)
        bodies.append((b"".join([step.data for step in steps]), framing.complete, framing.surplus))
        body, complete, surplus = bodies[-1]
        refused = bool(steps and steps[-1].refusal)
        assert not (complete and refused)
        assert not (refused and valid)
        if complete:
            assert (body, surplus) == reference
        else:
            assert not valid
        split, sent = split_steps(Chunked(), pieces)
        assert split == frame_steps(Chunked(), pieces)
        assert b"".join(unchunked(sent)) == body
        if valid:
            assert read_with_h11(cut(sent + b"0\r\n\r\n", theirs)) == (body, False)
    (cut_body, *ours_cut), (whole, *ours_whole), (single, *ours_single) = bodies
    assert ours_cut == ours_whole == ours_single
    # What precedes a mistake has been passed on where it came in a read of its own.
    assert single.startswith(cut_body)
    assert single.startswith(whole)


def test_the_comparison_sees_both_verdicts() -> None:
    """h11, as it is used here, takes one body and rejects another, and flags what follows."""
    assert read_with_h11([b"1\r\na\r\n0\r\n\r\n"]) == (b"a", False)
    assert read_with_h11([b"+1\r\na\r\n0\r\n\r\n"]) is None
    assert read_with_h11([b"1\r\na\r\n0\r\n"]) is None
    assert read_with_h11([b"0\r\n\r\n", b"x"]) == (b"", True)


# Whole responses


class Reading(NamedTuple):
    status: int
    body: bytes
    rest: bytes | None
    """What follows the body on a connection that can be used again; None: it cannot."""


def response_with_ours(method: str, wire: bytes) -> Reading | None:
    """None: refused, or not whole at the end of the connection."""
    try:
        head = HeadReader().receive(wire)
        if head is None:
            return None
        framing = framing_of(method, head)
        buffer = bytearray(head.early)
        if framing.complete:
            return Reading(head.status, b"", None if head.closes else head.early)
        first, last = framing.frame(buffer, 0, len(buffer))
        again = framing.complete and not head.closes and not framing.surplus
        framing.eof()
    except ProtocolFailure:
        return None
    return Reading(head.status, bytes(buffer[first:last]), b"" if again else None)


def response_with_h11(method: str, wire: bytes) -> Reading | None:
    connection = h11_client(method)
    body, status = b"", 0
    try:
        connection.receive_data(wire)
        connection.receive_data(b"")
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                again = connection.their_state is h11.DONE
                return Reading(status, body, connection.trailing_data[0] if again else None)
            elif isinstance(event, h11.ConnectionClosed) or event in (h11.NEED_DATA, h11.PAUSED):
                return None
    except h11.RemoteProtocolError:
        return None


def compare(method: str, wire: bytes) -> bytes | None:
    """The body as both read it; None: refused. We may be stricter than h11, never laxer."""
    ours, reference = response_with_ours(method, wire), response_with_h11(method, wire)
    if ours is None:
        return None
    assert reference is not None, "h11 refuses it, or waits for more"
    assert ours[:2] == reference[:2]
    # We may close what could be kept; what we keep must be what h11 keeps.
    assert ours.rest in (None, reference.rest)
    return ours.body


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH, CHUNKED = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (OK + LENGTH + b"\r\nhello", b"hello"),
        (OK + CHUNKED + b"\r\n" + CHUNKS, b"hello"),
        (OK + b"\r\nhello", b"hello"),
        (OK + b"Content-Length: 0\r\n\r\nhello", b""),
        (b"HTTP/1.1 103 x\r\nContent-Length: 99\r\n\r\n" + OK + LENGTH + b"\r\nhello", b"hello"),
        (b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n" + CHUNKS, b""),
        (b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + b"\r\n", b""),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (OK + LENGTH + b"\r\nhello" + OK + b"\r\n", b"hello"),
        (OK + LENGTH + CHUNKED + b"\r\n" + CHUNKS, None),
        (OK + LENGTH + b"\r\nhell", None),
        (OK + CHUNKED + b"\r\n" + CHUNKS[:-2], None),
        (b"HTTP/1.1 103 x\r\n\r\n", None),
    ],
)
def test_the_framing_of_a_response(wire: bytes, body: bytes | None) -> None:
    """None: refused."""
    assert compare("GET", wire) == body


heads = st.sampled_from(
    b"HTTP/1.1 200 OK|HTTP/1.1 204 x|HTTP/1.1 304 x|HTTP/1.0 200 OK|HTTP/1.1 404|"
    b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 x".split(b"|")
)
lengths = st.sampled_from(
    b"Content-Length: 5|Content-Length: 0|Transfer-Encoding: chunked|Connection: close|X: y".split(
        b"|"
    )
)
contents = st.sampled_from([b"", b"hello", CHUNKS, CHUNKS[:-2], b"hello" + OK, b"0\r\n\r\n"])


@given(st.sampled_from(["GET", "POST", "HEAD"]), heads, st.lists(lengths, max_size=3), contents)
@example("HEAD", b"HTTP/1.1 200 OK", [b"Content-Length: 5"], b"hello")
@settings(max_examples=150)
def test_any_head_with_any_body_reads_as_h11_reads_it(
    method: str, start: bytes, lines: list[bytes], body: bytes
) -> None:
    compare(method, b"\r\n".join([start, *lines]) + b"\r\n\r\n" + body)
