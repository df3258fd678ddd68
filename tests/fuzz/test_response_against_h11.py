"""Whole responses against h11: which framing a body has, for which method and status, and where it
ends.

Heads and bodies on their own are held against h11 next door; here it is what chooses between them
(RFC 9112, section 6.3): bodies that may not be, informational responses before, HTTP/1.0, lengths
that are given twice, and what lies after the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.errors import ProtocolFailure
from proxy.http.body import framing_of
from proxy.http.head import HeadReader


@dataclass(frozen=True)
class Reading:
    status: int
    body: bytes
    rest: bytes | None
    """What lies after the body, on a connection that could be used again; None: that ends with it.
    """


def read_with_ours(method: str, wire: bytes) -> Reading | None:
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
        body = bytes(buffer[first:last])
        ended = framing.complete
        framing.eof()
    except ProtocolFailure:
        return None
    # Where it ends with bytes after it, our connection is closed, and they are not read.
    return Reading(
        head.status, body, b"" if ended and not head.closes and not framing.surplus else None
    )


def read_with_h11(method: str, wire: bytes) -> Reading | None:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
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


def compare(method: str, wire: bytes) -> Reading | None:
    """What both make of it; ours may be stricter, never laxer."""
    ours, reference = read_with_ours(method, wire), read_with_h11(method, wire)
    if ours is not None:
        assert reference is not None, "h11 refuses it, or waits for more"
        assert (ours.status, ours.body) == (reference.status, reference.body)
        if (
            ours.rest is not None
        ):  # we may close what could be kept; what we keep must be what h11 keeps
            assert ours.rest == reference.rest
    return ours


OK = b"HTTP/1.1 200 OK\r\n"
LENGTH, CHUNKED = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
EARLY = b"HTTP/1.1 103 x\r\nLink: </>\r\n\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
READ = {
    "length": (OK + LENGTH + b"\r\nhello", b"hello"),
    "chunked": (OK + CHUNKED + b"\r\n" + CHUNKS, b"hello"),
    "until close": (OK + b"\r\nhello", b"hello"),
    "chunk extensions": (OK + CHUNKED + b'\r\n5;a="b c";d\r\nhello\r\n0;e\r\n\r\n', b"hello"),
    "trailers": (OK + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nX: y\r\nZ:\r\n\r\n", b"hello"),
    "the same length twice": (OK + LENGTH + LENGTH + b"\r\nhello", b"hello"),
    "a list of the same length": (OK + b"Content-Length: 5, 5\r\n\r\nhello", b"hello"),
    "informational before": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY + OK + LENGTH + b"\r\nhello",
        b"hello",
    ),
    "informational with a length": (
        b"HTTP/1.1 103 x\r\nContent-Length: 99\r\n\r\n" + OK + LENGTH + b"\r\nhello",
        b"hello",
    ),
    "204 has no body": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\n" + LENGTH + b"\r\nhello", b""),
    "204 chunked": (b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n" + CHUNKS, b""),
    "304 with a length": (b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + b"\r\n", b""),
    "HTTP/1.0 with a length": (b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\nhello", b"hello"),
    "HTTP/1.0 until close": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "HTTP/1.0 keep-alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\nhello",
        b"hello",
    ),
    "more than the length": (OK + LENGTH + b"\r\nhelloHTTP/1.1 200 OK\r\n\r\n", b"hello"),
    "more than the last chunk": (
        OK + CHUNKED + b"\r\n" + CHUNKS + b"HTTP/1.1 200 OK\r\n\r\n",
        b"hello",
    ),
}
REFUSED = {
    "both lengths": OK + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "both lengths, the other way round": OK + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
    "two lengths": OK + LENGTH + b"Content-Length: 6\r\n\r\nhello!",
    "a list of lengths": OK + b"Content-Length: 5, 6\r\n\r\nhello!",
    "a folded line": OK + b"X: a\r\n b\r\n" + LENGTH + b"\r\nhello",
    "a folded length": OK + b"Content-Length:\r\n 5\r\n\r\nhello",
    "a bare LF in the head": OK + b"X: a\n" + LENGTH + b"\r\nhello",
    "a bare LF behind the head": OK + LENGTH + b"\nhello",
    "a bare CR in the head": OK + b"X: a\rY: b\r\n" + LENGTH + b"\r\nhello",
    "a bare LF behind a chunk size": OK + CHUNKED + b"\r\n5\nhello\r\n0\r\n\r\n",
    "a bare LF behind a chunk": OK + CHUNKED + b"\r\n5\r\nhello\n0\r\n\r\n",
    "a space before the colon, and another length": OK
    + LENGTH
    + b"Content-Length : 6\r\n\r\nhello!",
    "chunked twice": OK + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "identity": OK + b"Transfer-Encoding: identity\r\n\r\nhello",
    "a chunk size with a sign": OK + CHUNKED + b"\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with 0x": OK + CHUNKED + b"\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "an empty chunk size": OK + CHUNKED + b"\r\n\r\nhello\r\n0\r\n\r\n",
    "a folded trailer": OK + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n",
    "less than the length": OK + LENGTH + b"\r\nhell",
    "no last chunk": OK + CHUNKED + b"\r\n5\r\nhello\r\n",
    "no end of the trailers": OK + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "only an informational response": b"HTTP/1.1 103 x\r\n\r\n",
    "HTTP/0.9": b"hello",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n" + LENGTH + b"\r\nhello",
}


@pytest.mark.parametrize("name", READ)
def test_what_has_one_reading_is_read_so(name: str) -> None:
    """As h11 reads it; and to a HEAD, as no body at all."""
    wire, body = READ[name]
    ours = compare("GET", wire)
    assert ours is not None
    assert ours.body == body
    if b"100" not in wire[:12] and b"103" not in wire[:12]:
        head, _, _ = wire.partition(b"\r\n\r\n")
        to_head = compare("HEAD", head + b"\r\n\r\n")
        assert to_head is not None
        assert to_head.body == b""


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_two_readings_is_refused(name: str) -> None:
    """Also where h11 is laxer: a folded line, a bare LF."""
    assert compare("GET", REFUSED[name]) is None


HEADS = st.sampled_from(
    (
        b"HTTP/1.1 200 OK|HTTP/1.1 204 x|HTTP/1.1 304 x|HTTP/1.0 200 OK|HTTP/1.1 404|"
        b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 x"
    ).split(b"|")
)
FIELDS = st.lists(
    st.sampled_from(
        [
            b"Content-Length: 5",
            b"Content-Length: 0",
            b"Transfer-Encoding: chunked",
            b"Connection: close",
            b"X: y",
        ]
    ),
    max_size=3,
)
BODIES = st.sampled_from(
    [b"", b"hello", CHUNKS, CHUNKS[:-2], b"hello" + OK, b"0\r\n\r\n", b"5\r\nhello\r\n"]
)


@given(st.sampled_from(["GET", "POST", "HEAD"]), HEADS, FIELDS, BODIES)
@example("HEAD", b"HTTP/1.1 200 OK", [b"Content-Length: 5"], b"hello")
@settings(deadline=None, max_examples=400)
def test_any_head_with_any_body_reads_as_h11_reads_it(
    method: str, head: bytes, fields: list[bytes], body: bytes
) -> None:
    """Whatever the method, the status and the lengths are: the same body and the same end, or our
    refusal.
    """
    compare(method, b"\r\n".join([head, *fields]) + b"\r\n\r\n" + body)
