"""Whole responses against h11: which framing a body has, for which method and status, and where it
ends (RFC 9112, section 6.3). Heads and bodies on their own are compared in modules of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import h11
import pytest
from fuzz.mistakes import h11_client
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.errors import ProtocolFailure
from proxy.http.body import framing_of
from proxy.http.head import HeadReader


class Reading(NamedTuple):
    status: int
    body: bytes
    rest: bytes | None
    """What follows the body on a connection that can be used again; None: it cannot."""


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
        again = framing.complete and not head.closes and not framing.surplus
        framing.eof()
    except ProtocolFailure:
        return None
    return Reading(head.status, bytes(buffer[first:last]), b"" if again else None)


def read_with_h11(method: str, wire: bytes) -> Reading | None:
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
    ours, reference = read_with_ours(method, wire), read_with_h11(method, wire)
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


starts = st.sampled_from(
    b"HTTP/1.1 200 OK|HTTP/1.1 204 x|HTTP/1.1 304 x|HTTP/1.0 200 OK|HTTP/1.1 404|"
    b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 x".split(b"|")
)
fields = st.sampled_from(
    b"Content-Length: 5|Content-Length: 0|Transfer-Encoding: chunked|Connection: close|X: y".split(
        b"|"
    )
)
bodies = st.sampled_from([b"", b"hello", CHUNKS, CHUNKS[:-2], b"hello" + OK, b"0\r\n\r\n"])


@given(st.sampled_from(["GET", "POST", "HEAD"]), starts, st.lists(fields, max_size=3), bodies)
@example("HEAD", b"HTTP/1.1 200 OK", [b"Content-Length: 5"], b"hello")
@settings(max_examples=150)
def test_any_head_with_any_body_reads_as_h11_reads_it(
    method: str, start: bytes, lines: list[bytes], body: bytes
) -> None:
    compare(method, b"\r\n".join([start, *lines]) + b"\r\n\r\n" + body)
