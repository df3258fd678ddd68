"""Our heads against h11's: whatever h11 rejects we reject, what both accept reads alike, and what
we write is what h11 reads.

One exception: h11 rejects white space before a colon, which a proxy removes from a response (RFC
9112, section 5.1).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import h11
import pytest
from fuzz.mistakes import cut, cuts, edited, h11_client
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from proxy.errors import ProtocolFailure
from proxy.http.head import BadRequest, BodyEncoder, HeadReader, ResponseHead, encode_head

HeaderList = list[tuple[bytes, bytes]]


# Responses


def read_with_ours(pieces: list[bytes]) -> ResponseHead | None:
    """None: rejected, or not whole at the end of the connection."""
    reader = HeadReader()
    for index, piece in enumerate(pieces):
        try:
            head = reader.receive(piece)
        except ProtocolFailure:
            return None
        if head is not None:
            return replace(head, early=head.early + b"".join(pieces[index + 1 :]))
    return None


def read_with_h11(pieces: list[bytes]) -> ResponseHead | None:
    connection = h11_client()
    try:
        for index, piece in enumerate([*pieces, b""]):
            connection.receive_data(piece)
            found = connection.next_event()
            while isinstance(found, h11.InformationalResponse):
                found = connection.next_event()
            if isinstance(found, h11.Response):
                return _head_of(found, connection.trailing_data[0] + b"".join(pieces[index + 1 :]))
            assert found is h11.NEED_DATA
    except h11.RemoteProtocolError:
        return None
    raise AssertionError("h11 neither read a head nor rejected the end of the connection")


def _head_of(head: h11.Response, rest: bytes) -> ResponseHead:
    named = dict(head.headers)
    length = named.get(b"content-length")
    connection = b",".join(value for name, value in head.headers if name == b"connection")
    closes = b"close" in [item.strip() for item in connection.lower().split(b",")]
    return ResponseHead(
        version=bytes(head.http_version),
        status=head.status_code,
        reason=bytes(head.reason),
        headers=tuple((bytes(name), bytes(value)) for name, value in head.headers.raw_items()),
        length=None if length is None else int(length),
        chunked=b"transfer-encoding" in named,  # h11 refuses everything but "chunked"
        closes=closes or head.http_version < b"1.1",
        early=rest,
    )


def assert_alike(ours: ResponseHead, reference: ResponseHead) -> None:
    """The same head; but we may close a connection that h11 would keep, and h11 writes a coding's
    name in lower case.
    """
    assert ours.closes or not reference.closes
    assert len(ours.early) == len(reference.early)
    rest: dict[str, Any] = {"headers": (), "closes": False, "early": b""}
    assert replace(ours, **rest) == replace(reference, **rest)
    assert [
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in ours.headers
    ] == list(reference.headers)


LINES = (
    b"x: y|X-Empty:|x:  spaced \t|!#$%&'*+-.^_`~09azAZ: v|text: \x80\xff|a:b:c|X \t: y|"
    b"Connection: close|Connection: keep-alive, Close|connection: closed|Content-Lengths: 1"
).split(b"|")
LENGTHS = (
    b"|Content-Length: 5|Content-Length : 5|content-length:0|Content-Length: 5, 5|"
    b"Content-Length: 00 ,00|Content-Length: 7\r\nCONTENT-LENGTH:7\t|Transfer-Encoding: chunked|"
    b"Transfer-Encoding\t: chunked|transfer-encoding:\tChunked "
).split(b"|")
STARTS = (
    b"HTTP/1.1 200 OK|HTTP/1.1 200|HTTP/1.1 404 |HTTP/1.0 200 OK|HTTP/1.1 500 \xff\t x |"
    b"HTTP/1.1 204 No Content|HTTP/1.1 304 x|HTTP/1.1 999 x|HTTP/1.1 103 x\r\nLink: </>\r\nlink:\r\n\r\n"
    b"HTTP/1.1 200 OK|HTTP/1.0 199\r\nContent-Length: 3\r\n\r\nHTTP/1.1 100\r\n\r\nHTTP/1.1 200 OK"
).split(b"|")
BAD_LINES = (
    b"x y : z| x: y|\tfold|x|: y||x: \x00|x: a\rb|x: a\nb|x: \x7f|\xe9: x|x(y): z|"
    b"Content-Length: +1|Content-Length: 1, 2|Content-Length:|Content-Length: 1,|Content-Length: 05|"
    b"Content-Length: 1_0|Content-Length: 11111111111111111111|Content-Length: 5\x0b,5|"
    b"Transfer-Encoding: gzip|Transfer-Encoding: gzip, chunked|Transfer-Encoding: \x0bchunked"
).split(b"|")
BAD_STARTS = (
    b"HTTP/1.1 99 x|HTTP/1.1 099 x|HTTP/1.1 1000 x|HTTP/1.1 200OK|HTTP/1.1  200 OK|HTTP/1.1|HTTP/2 200|"
    b"HTTP/1.2 200 OK|http/1.1 200 OK| HTTP/1.1 200 OK||HTTP/1.1 200 a\x00b|HTTP/1.1 101 x|x: y"
).split(b"|")
RESTS = [b"", b"x", b"\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\xff"]
ENDS = [b"\r\n"] * 50 + [b"\n", b"\r", b"", b"\n\r", b"\r\r\n", b"\r\n\r\n"]


@st.composite
def heads(draw: st.DrawFn, *, valid: bool) -> bytes:
    """Informational heads, a response's head, and what follows."""
    lines = st.sampled_from(LINES if valid else LINES * 4 + LENGTHS + BAD_LINES)
    start = draw(st.sampled_from(STARTS if valid else STARTS * 4 + BAD_STARTS))
    fields = [*draw(st.lists(lines, max_size=4)), draw(st.sampled_from(LENGTHS))]
    wire = b""
    for line in [start, *draw(st.permutations([item for item in fields if item])), b""]:
        wire += line + (b"\r\n" if valid else draw(st.sampled_from(ENDS)))
    return wire + draw(st.sampled_from(RESTS))


additions = st.sampled_from(b"|x|0|\n|\r|\r\n| |\x00|:|,|\t|\x0b|\x80|\r\n ".split(b"|"))
mistakes = st.one_of(
    heads(valid=False),
    st.builds(edited, heads(valid=True), st.integers(0, 200), st.integers(0, 2), additions),
    st.binary(max_size=30),
)


@given(st.booleans(), st.data(), cuts, cuts)
@settings(max_examples=400)
def test_a_response_reads_as_h11_reads_it(
    valid: bool, given: st.DataObject, ours: list[int], theirs: list[int]
) -> None:
    """A valid head is accepted. We may be stricter than h11, never laxer; nothing but our refusal
    comes out; and the cuts change nothing.
    """
    wire = given.draw(heads(valid=True) if valid else mistakes)
    reading = read_with_ours(cut(wire, ours))
    assert read_with_ours([wire]) == reading
    assert read_with_ours(cut(wire, list(range(len(wire))))) == reading
    # White space before a colon is moved after it, also in what follows the head.
    for_h11 = re.sub(rb"(?<=\r\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+)([\t ]+):", rb"\1:\2", wire)
    reference = read_with_h11(cut(for_h11, theirs))
    event(
        f"ours {'accepts' if reading else 'rejects'}, h11 {'accepts' if reference else 'rejects'}"
    )
    assert reading is not None or not valid
    if reading is not None:
        assert wire.endswith(reading.early)
        assert reference is not None
        assert_alike(reading, reference)


# Requests


class Request(NamedTuple):
    """A request as a server reads it; names in lower case, values without the space around them."""

    method: bytes
    target: bytes
    headers: HeaderList
    body: bytes
    rest: bytes


def serve_with_h11(pieces: list[bytes]) -> Request:
    """Raises `RemoteProtocolError` for what h11 takes for no request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    request, body = None, b""
    for piece in [*pieces, b""]:
        connection.receive_data(piece)
        while isinstance(
            found := connection.next_event(), h11.Request | h11.Data | h11.EndOfMessage
        ):
            if isinstance(found, h11.Request):
                request = found
            elif isinstance(found, h11.Data):
                body += found.data
    assert request is not None
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    target = bytes(request.target)
    return Request(bytes(request.method), target, headers, body, connection.trailing_data[0])


CHUNKED, LENGTH = (b"transfer-encoding", b"chunked"), (b"content-length", b"5")
NAMES = b"x|x-y|!#$%&'*+-.^_`~09az|accept|expect|connection|upgrade".split(b"|")
VALUES = b"|y|a \t b|\x80\xff|100-continue|close|:".split(b"|")
fields = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=3)
bodies = st.lists(st.sampled_from([b"", b"a", b"0\r\n\r\n", b"\x00\r\n", b"x" * 300]), max_size=4)


@given(
    st.sampled_from(["GET", "POST", "HEAD", "M-SEARCH"]),
    st.sampled_from([b"/", b"*", b"/a?b=c"]),
    st.sampled_from([[], [CHUNKED], [LENGTH]]).flatmap(
        lambda length: fields.flatmap(
            lambda more: st.permutations([(b"host", b"h"), *length, *more])
        )
    ),
    bodies,
    cuts,
)
@settings(max_examples=200)
def test_a_request_is_what_a_server_reads(
    method: str, target: bytes, headers: HeaderList, pieces: list[bytes], positions: list[int]
) -> None:
    """Head and body, as one request; a body of another length is refused.
    `tests/unit/proxy/http/test_head.py` has what is not written.
    """
    wire, length = encode_head(method, target, headers)
    encoder = BodyEncoder(length)
    if length is not None:
        pieces = cut((b"".join(pieces) + b"#" * length)[:length], positions)
    wire += b"".join([encoder.data(piece) for piece in pieces]) + encoder.end()
    read = Request(method.encode(), target, headers, b"".join(pieces), b"")
    assert serve_with_h11(cut(wire, positions)) == read
    if length is not None:
        with pytest.raises(BadRequest):
            encoder.data(b"x")


def test_the_comparison_sees_both_verdicts() -> None:
    """h11, as it is used here, takes one head and rejects others, and reads framing and rest."""
    wire = b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nConnection: x, Close\r\n\r\nhello"
    headers = ((b"Content-Length", b"5"), (b"Connection", b"x, Close"))
    head = ResponseHead(b"1.1", 200, b"OK", headers, 5, False, True, b"hello")
    assert read_with_h11([wire]) == read_with_h11([wire[:70], wire[70:]]) == head
    assert read_with_h11([wire.replace(b"5, 5", b"5, 6")]) is None
    assert read_with_h11([wire[:60]]) is None
    chunked = read_with_h11([b"HTTP/1.0 404\r\nTransfer-Encoding: Chunked\r\n\r\n"])
    assert chunked is not None
    assert (chunked.chunked, chunked.length, chunked.closes) == (True, None, True)
    request = serve_with_h11([b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET"])
    assert (request.body, request.rest) == (b"hi", b"GET")
