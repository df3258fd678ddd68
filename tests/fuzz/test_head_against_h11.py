"""Our heads against h11's: whatever h11 rejects we reject, what both accept reads alike, and what
we write is what h11 reads.

One exception: h11 rejects white space before a colon, which a proxy removes from a response (RFC
9112, section 5.1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import h11
from fuzz.mistakes import edited, overwritten
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from proxy.errors import ProtocolFailure
from proxy.http.head import MAX_HEAD_BYTES, BadRequest, BodyEncoder, HeadReader, encode_head

HeaderList = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Reading:
    """What a reader made of some bytes and the end of the connection."""

    version: bytes
    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    length: int | None
    chunked: bool
    closes: bool
    rest: bytes


def read_with_ours(pieces: list[bytes]) -> Reading | None:
    """None: rejected, or not whole at the end of the connection. Raises whatever else but
    `ProtocolFailure` comes out.
    """
    reader = HeadReader()
    for index, piece in enumerate(pieces):
        try:
            head = reader.receive(piece)
        except ProtocolFailure:
            return None
        if head is not None:
            rest = head.early + b"".join(pieces[index + 1 :])
            return Reading(
                head.version,
                head.status,
                head.reason,
                head.headers,
                head.length,
                head.chunked,
                head.closes,
                rest,
            )
    return None


def read_with_h11(pieces: list[bytes]) -> Reading | None:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "h")]))
    connection.send(h11.EndOfMessage())
    try:
        for index, piece in enumerate([*pieces, b""]):
            connection.receive_data(piece)
            found = connection.next_event()
            while isinstance(found, h11.InformationalResponse):
                found = connection.next_event()
            if isinstance(found, h11.Response):
                return _reading(found, connection.trailing_data[0] + b"".join(pieces[index + 1 :]))
            assert found is h11.NEED_DATA
    except h11.RemoteProtocolError:
        return None
    raise AssertionError("h11 neither read a head nor rejected the end of the connection")


def _reading(head: h11.Response, rest: bytes) -> Reading:
    length = None
    chunked = False
    closes = head.http_version < b"1.1"
    for name, value in head.headers:
        if name == b"transfer-encoding":
            chunked = True  # h11 has refused everything but "chunked"
        elif name == b"content-length":
            length = int(value)
        elif name == b"connection":
            closes = closes or b"close" in [item.strip() for item in value.lower().split(b",")]
    headers = tuple((bytes(name), bytes(value)) for name, value in head.headers.raw_items())
    return Reading(
        bytes(head.http_version),
        head.status_code,
        bytes(head.reason),
        headers,
        length,
        chunked,
        closes,
        rest,
    )


def for_h11(wire: bytes) -> bytes:
    """The wire with white space before a colon moved after it, where it is part of no value."""
    return re.sub(rb"(?<=\r\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]+)([\t ]+):", rb"\1:\2", wire)


def assert_alike(ours: Reading, reference: Reading) -> None:
    """The same head; but we may close a connection that h11 would keep, and h11 writes a coding's
    name in lower case.
    """
    assert ours.closes or not reference.closes
    headers = tuple(
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in ours.headers
    )
    assert replace(ours, headers=headers, closes=reference.closes) == reference


def cut(wire: bytes, positions: list[int]) -> list[bytes]:
    """`wire` in pieces, none of them empty: an empty read is the end of the connection."""
    bounds = sorted({0, len(wire), *(position % (len(wire) + 1) for position in positions)})
    return [wire[a:b] for a, b in pairwise(bounds)]


# --- responses
# --------------------------------------------------------------------------------------------------------------

positions = st.lists(st.integers(0, 10_000), max_size=12)
lines = st.sampled_from(
    [
        *(
            b"x: y",
            b"X-Empty:",
            b"x:  spaced \t",
            b"!#$%&'*+-.^_`|~09azAZ: v",
            b"text: \x80\xff",
            b"set-cookie: a=b; c",
            b"a:b:c",
            b"X \t: y",
        ),
        *(
            b"Connection: close",
            b"connection: keep-alive",
            b"Connection: keep-alive, Close",
            b"connection: closed",
        ),
        *(
            b"Content-Type: text/event-stream",
            b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
            b"Content-Lengths: 1",
        ),
    ]
)
length_lines = st.sampled_from(
    [
        *(
            [], [], [b"Content-Length: 5"], [b"Content-Length : 5"],
            [b"Transfer-Encoding\t: chunked"], [b"content-length:0"], [b"Content-Length: 5, 5"],
            [b"Content-Length: 00 ,00"],
        ),
        *(
            [b"Content-Length: 7", b"CONTENT-LENGTH:7\t"],
            [b"Transfer-Encoding: chunked"],
            [b"transfer-encoding:\tChunked "],
        ),
    ]
)  # fmt: skip
bad_lines = st.sampled_from(
    [
        *(
            b"x y : z", b" x: y", b"\tfold", b" ", b"x", b": y", b"", b"x: \x00", b"x: \x01",
            b"x: a\rb", b"x: a\nb", b"x: \x7f", b"\xe9: x",
        ),
        *(
            b"x: \x0b", b"x: a\x0cb", b"x(y): z", b"x\x00: y", b"Content-Length: +1",
            b"Content-Length: 1, 2", b"Content-Length:",
        ),
        *(
            b"Content-Length: 1,",
            b"Content-Length: \xb2",
            b"Content-Length: 1_0",
            b"Content-Length: " + b"1" * 20,
        ),
        *(
            b"Content-Length: " + b"1" * 21,
            b"Content-Length: 5",
            b"Content-Length: 05",
            b"Content-Length: 5\x0b,5",
        ),
        *(
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Transfer-Encoding:",
            b"Transfer-Encoding: gzip, chunked",
        ),
        *(
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding: \x0bchunked",
        ),
    ]
)  # fmt: skip
status_lines = st.sampled_from(
    (
        b"HTTP/1.1 200 OK|HTTP/1.1 200 OK|HTTP/1.1 200|HTTP/1.1 404 |HTTP/1.0 200 OK|"
        b"HTTP/1.1 500 \xff\t x |HTTP/1.1 204 No Content|HTTP/1.1 304 Not Modified|"
        b"HTTP/1.1 999 x"
    ).split(b"|")
)
bad_status_lines = st.sampled_from(
    (
        b"HTTP/1.1 99 x|HTTP/1.1 099 x|HTTP/1.1 000|HTTP/1.1 1000 x|HTTP/1.1 200OK|"
        b"HTTP/1.1  200 OK|HTTP/1.1|HTTP/2 200|HTTP/2.0 200 OK|HTTP/0.9 200 OK|"
        b"HTTP/1.2 200 OK|http/1.1 200 OK| HTTP/1.1 200 OK||HTTP/1.1 200 a\x00b|"
        b"HTTP/1.1 200 a\x0bb|HTTP/1.1 200 a\x7f|HTTP/1.1 101 Switching|"
        b"\x16HTTP/1.1 200 OK|HTTP/1.1 100 Continue|GET / HTTP/1.1|x: y"
    ).split(b"|")
)
informational = st.sampled_from(
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 x\r\nLink: </>\r\nlink:\r\n\r\n",
        b"HTTP/1.0 199\r\nContent-Length: 3\r\n\r\n",
    ]
)
rests = st.sampled_from(
    [b"", b"", b"x", b"\n", b"\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00\xff" * 9]
)


@st.composite
def heads(draw: st.DrawFn, *, mistakes: bool) -> bytes:
    """A response's head and what follows; with `mistakes`, one that may have wrong lines, line ends
    and bytes.
    """
    if not mistakes:
        before = b"".join(draw(st.lists(informational, max_size=2)))
        fields = draw(st.permutations([*draw(st.lists(lines, max_size=4)), *draw(length_lines)]))
        return before + b"\r\n".join([draw(status_lines), *fields]) + b"\r\n\r\n" + draw(rests)
    ends = st.sampled_from([b"\r\n"] * 50 + [b"\n", b"\r", b"", b"\n\r", b"\r\r\n", b"\r\n\r\n"])
    wire = b"".join(draw(st.lists(informational, max_size=1)))
    wire += draw(
        st.one_of(status_lines, status_lines, status_lines, status_lines, bad_status_lines)
    ) + draw(ends)
    for line in draw(st.lists(st.one_of(lines, lines, lines, lines, lines, bad_lines), max_size=4)):
        wire += line + draw(ends)
    wire += draw(ends) + draw(rests)
    return overwritten(draw, wire, 120, b"\r\n\x00\t\x0b :,05axC\x7f\xff")


anything = st.one_of(
    st.builds(
        edited,
        heads(mistakes=False),
        st.integers(0, 200),
        st.integers(0, 2),
        st.sampled_from(b"|x|0|\n|\r|\r\n| |\x00|:|,|\t|\x0b|\x80|\r\n ".split(b"|")),
    ),
    heads(mistakes=True),
    st.lists(
        st.sampled_from(b"HTTP/1.1 |200| OK|\r\n|\r\n|\n|\r|x|:| |Content-Length|5|,".split(b"|")),
        max_size=12,
    ).map(b"".join),
    st.binary(max_size=30),
)


@given(heads(mistakes=False), positions, positions)
@settings(deadline=None, max_examples=250)
def test_a_valid_head_reads_as_h11_reads_it(
    wire: bytes, ours: list[int], theirs: list[int]
) -> None:
    """Both accept it, with the same status, headers, framing and rest, whatever the cuts on either
    side.
    """
    reading = read_with_ours(cut(wire, ours))
    reference = read_with_h11(cut(for_h11(wire), theirs))
    assert reading is not None
    assert reference is not None
    assert_alike(reading, reference)


@given(anything, positions, positions)
@settings(deadline=None, max_examples=500)
@example(b"\r\nHTTP/1.1 200 OK\r\n\r\n", [], [])
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", [], [])
@example(b"HTTP/1.1 200 OK\n\nHTTP/1.1 200 OK\r\n\r\n", [], [])
@example(b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n", [], [])
def test_what_h11_rejects_is_rejected_and_what_both_accept_reads_alike(
    wire: bytes, ours: list[int], theirs: list[int]
) -> None:
    """We may be stricter, never laxer; and nothing but our protocol error comes out, however broken
    the head is.
    """
    reading = read_with_ours(cut(wire, ours))
    reference = read_with_h11(cut(for_h11(wire), theirs))
    event(
        f"ours {'accepts' if reading else 'rejects'}, h11 {'accepts' if reference else 'rejects'}"
    )
    if reading is not None:
        assert reference is not None
        assert_alike(reading, reference)


@given(anything, positions)
@settings(deadline=None, max_examples=250)
def test_the_cuts_change_nothing(wire: bytes, positions: list[int]) -> None:
    """Whole, byte by byte, or cut at random: the same verdict and the same reading."""
    whole = read_with_ours(cut(wire, []))
    assert read_with_ours(cut(wire, positions)) == whole
    assert read_with_ours(cut(wire, list(range(len(wire))))) == whole


# --- requests
# ---------------------------------------------------------------------------------------------------------------

CHUNKED = (b"Transfer-Encoding", b"chunked")
ODD = "\r\n\x00\t\x0b :,/\x7f\xe9aA0"
methods = st.one_of(
    st.sampled_from(["GET", "POST", "HEAD", "patch", "M-SEARCH"]),
    st.text(ODD, max_size=4),
    st.text(max_size=3),
)
targets = st.one_of(
    st.sampled_from([b"/", b"*", b"/a?b=c", b"http://h/"]),
    st.text(ODD, max_size=5).map(lambda text: text.encode("latin-1")),
    st.sampled_from(
        [b"/ HTTP/1.1\r\nx: y\r\n\r\n", b"/ HTTP/1.1\r\nhost: evil", b"/\r\nx: y", b"/ HTTP/1.0"]
    ),
)
names = st.one_of(
    st.sampled_from(
        [b"x", b"X-Y", b"accept", b"Cookie", b"expect", b"connection", b"x-content-length"]
    ),
    st.sampled_from(
        (
            b"host:evil|x: y\r\nz|a:|content-length | transfer-encoding||"
            b"x\r\n\r\nGET / HTTP/1.1\r\nhost"
        ).split(b"|")
    ),
    st.text(ODD, min_size=1, max_size=4).map(lambda text: text.encode("latin-1")),
)
values = st.one_of(
    st.sampled_from([b"", b"y", b"a b", b"\x80\xff", b"100-continue", b"close", b" spaced\t"]),
    st.sampled_from(
        b"y\r\nz: 1|y\nz: 1|y\r\n z|y\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n|\r|\x00".split(b"|")
    ),
    st.text(ODD, max_size=4).map(lambda text: text.encode("latin-1")),
)
hosts: st.SearchStrategy[HeaderList] = st.sampled_from(
    [[(b"host", b"h")]] * 4 + [[(b"Host", b"")], [], [(b"host", b"a"), (b"HOST", b"b")]]
)
announced: st.SearchStrategy[HeaderList] = st.one_of(
    st.just([]),
    st.integers(0, 12).map(lambda length: [(b"content-length", b"%d" % length)]),
    st.just([(b"Transfer-Encoding", b"Chunked")]),
    st.lists(
        st.tuples(
            st.sampled_from([b"content-length", b"Content-Length", b"transfer-encoding"]),
            st.sampled_from(
                [b"5", b"05", b"+5", b"5, 5", b"0", b"", b"chunked", b"gzip", b"chunked "]
            ),
        ),
        max_size=3,
    ),
)
good_names = st.sampled_from(
    [b"x", b"X-Y", b"!#$%&'*+-.^_`|~09azAZ", b"accept", b"expect", b"connection", b"upgrade"]
)
good_values = st.sampled_from(
    [b"", b"y", b"a \t b", b"\x80\xff", b"100-continue", b"close", b":", b" spaced\t"]
)


@st.composite
def header_lists(draw: st.DrawFn) -> HeaderList:
    """Headers of a request that can be written, in any order."""
    length = draw(st.one_of(st.just([]), st.just([CHUNKED]), st.just([(b"Content-Length", b"5")])))
    return draw(
        st.permutations(
            [
                (b"Host", b"h"),
                *length,
                *draw(st.lists(st.tuples(good_names, good_values), max_size=3)),
            ]
        )
    )


@st.composite
def odd_header_lists(draw: st.DrawFn) -> HeaderList:
    """Headers in any order, some of which cannot be written, or not together."""
    some = draw(st.lists(st.tuples(good_names, good_values), max_size=2))
    odd = st.one_of(
        st.just([]),
        st.tuples(names, good_values).map(lambda item: [item]),
        st.tuples(good_names, values).map(lambda item: [item]),
    )
    if draw(st.booleans()):
        return draw(st.permutations([(b"host", b"h"), *some, *draw(odd)]))
    return draw(st.permutations([*draw(hosts), *draw(announced), *some]))


requests = st.one_of(
    st.tuples(
        st.sampled_from(["GET", "POST", "HEAD"]),
        st.sampled_from([b"/", b"*", b"/a?b=c"]),
        odd_header_lists(),
    ),
    st.tuples(
        st.sampled_from(["GET", "POST", "HEAD"]),
        st.sampled_from([b"/", b"*", b"/a?b=c"]),
        odd_header_lists(),
    ),
    st.tuples(methods, targets, header_lists()),
)


def write_with_ours(
    method: str, target: bytes, headers: HeaderList, pieces: Sequence[bytes]
) -> bytes | None:
    """The whole request, None for one that is refused. Raises whatever else but `BadRequest` comes
    out.
    """
    try:
        wire, length = encode_head(method, target, headers)
        encoder = BodyEncoder(length)
        return wire + b"".join([encoder.data(piece) for piece in pieces]) + encoder.end()
    except BadRequest:
        return None


@dataclass(frozen=True)
class Request:
    """A request as a server reads it; names in lower case, values without the space around them."""

    method: bytes
    target: bytes
    headers: HeaderList
    body: bytes
    rest: bytes


def serve_with_h11(pieces: list[bytes]) -> Request:
    """Raises `RemoteProtocolError` for what h11 takes for no request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    request = None
    body = bytearray()
    for piece in [*pieces, b""]:
        connection.receive_data(piece)
        while True:
            found = connection.next_event()
            if isinstance(found, h11.Request):
                request = found
            elif isinstance(found, h11.Data):
                body += found.data
            elif isinstance(found, h11.EndOfMessage):
                assert request is not None
                assert not found.headers
            else:
                break
    assert request is not None
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    return Request(
        bytes(request.method),
        bytes(request.target),
        headers,
        bytes(body),
        connection.trailing_data[0],
    )


def as_read(headers: HeaderList) -> HeaderList:
    """What a reader makes of headers that were written: h11 has names, and a coding's name, in
    lower case.
    """
    stripped = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    return [
        (name, value.lower() if name == b"transfer-encoding" else value) for name, value in stripped
    ]


bodies = st.lists(
    st.one_of(st.binary(max_size=6), st.sampled_from([b"", b"0\r\n\r\n", b"hello", b"x" * 300])),
    max_size=4,
)


@given(st.sampled_from(["GET", "POST", "HEAD", "M-SEARCH"]), header_lists(), bodies, positions)
@settings(deadline=None, max_examples=250)
def test_a_request_is_what_a_server_reads(
    method: str, headers: HeaderList, pieces: list[bytes], positions: list[int]
) -> None:
    """What can be written reaches h11 as it was given, head and body, as one request; a body of
    wrong length is refused.
    """
    announced = {name.lower(): value for name, value in headers}
    body = b"".join(pieces)
    if b"transfer-encoding" not in announced:
        length = int(announced.get(b"content-length", b"0"))
        pieces = cut((body + b"#" * length)[:length], positions)
        body = b"".join(pieces)
        assert write_with_ours(method, b"/a?b", headers, [*pieces, b"x"]) is None
        assert not length or write_with_ours(method, b"/a?b", headers, pieces[:-1]) is None
    wire = write_with_ours(method, b"/a?b", headers, pieces)
    assert wire is not None
    assert serve_with_h11(cut(wire, positions)) == Request(
        method.encode(), b"/a?b", as_read(headers), body, b""
    )


@given(requests, bodies)
@settings(deadline=None, max_examples=500)
@example(("GET", b"/", [(b"host", b"h"), (b"host:evil", b"")]), [])
@example(("POST", b"/", [(b"host", b"h"), CHUNKED, (b"content-length", b"5")]), [b"hello"])
@example(("POST", b"/", [(b"host", b"h"), (b"content-length", b"5"), CHUNKED]), [b"hello"])
@example(("POST", b"/", [(b"host", b"h"), CHUNKED, CHUNKED]), [b"hello"])
@example(("CONNECT", b"h:80", [(b"host", b"h")]), [])
def test_what_is_written_is_read_as_it_was_meant_or_is_not_written(
    given_request: tuple[str, bytes, HeaderList], pieces: list[bytes]
) -> None:
    """Whatever is in method, target, names and values: h11 reads those and nothing else, or we
    refuse with `BadRequest`.
    """
    method, target, headers = given_request
    wire = write_with_ours(method, target, headers, pieces)
    event("refused" if wire is None else "written")
    if wire is not None:
        assert serve_with_h11([wire]) == Request(
            method.encode(), target, as_read(headers), b"".join(pieces), b""
        )


# --- the comparison itself
# --------------------------------------------------------------------------------------------------


def test_the_comparison_sees_both_verdicts() -> None:
    """The reference is not a constant: h11, as it is used here, takes one head and rejects others, and
    tells framing and rest.
    """
    wire = b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nA: b\r\nConnection: x, Close\r\n\r\nhello"
    headers = ((b"Content-Length", b"5"), (b"A", b"b"), (b"Connection", b"x, Close"))
    assert read_with_h11([wire]) == Reading(b"1.1", 200, b"OK", headers, 5, False, True, b"hello")
    assert read_with_h11([wire[:70], wire[70:]]) == read_with_h11([wire])
    chunked = read_with_h11([b"HTTP/1.0 404\r\nTransfer-Encoding: Chunked\r\n\r\n"])
    assert chunked == Reading(
        b"1.0", 404, b"", ((b"Transfer-Encoding", b"chunked"),), None, True, True, b""
    )
    for broken in (
        wire.replace(b"5, 5", b"5, 6"),
        wire.replace(b"200", b"20"),
        wire[:60],
        b"HTTP/1.1 101 x\r\n\r\n",
        b"",
    ):
        assert read_with_h11([broken]) is None
    request = serve_with_h11([b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET"])
    assert request == Request(
        b"POST", b"/a", [(b"host", b"h"), (b"content-length", b"2")], b"hi", b"GET"
    )
