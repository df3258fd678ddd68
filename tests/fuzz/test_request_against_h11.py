"""Our reading of a request's head against h11's: whatever h11 rejects we reject, what both accept
reads alike, and however TCP cuts the bytes the result is the same.

The differences that are meant:

- we refuse a bare LF, a folded line, control characters in a value, HTTP/0.x and HTTP/2 and more,
  and lengths of more than 18 digits, all of which h11 accepts;
- we ignore up to 8 empty lines before a request (RFC 9112, section 2.2), which h11 refuses;
- whether there is one `Host`, and which bytes a target may have, is decided in `target`.
"""

from __future__ import annotations

import re

import h11
from fuzz.mistakes import cut, cuts, edited
from hypothesis import event, given, settings
from hypothesis import strategies as st

from proxy.http.head import MAX_HEAD_BYTES
from proxy.http.request import Http2Assumed, RequestHead, RequestReader

Reading = tuple[RequestHead | str | None, bytes]
"""The head, its fault as a text, or None if it is incomplete; and what follows a head."""


def read_with_ours(pieces: list[bytes]) -> Reading:
    reader = RequestReader()
    for index, piece in enumerate(pieces):
        reader.feed(piece)
        try:
            head = reader.read()
        except Http2Assumed:
            return "HTTP/2", b""
        if head is not None and head.fault is not None:
            return f"{head.fault.status} {head.fault.message}", b""
        if head is not None:
            return head, reader.data + b"".join(pieces[index + 1 :])
    return None, b""


def read_with_h11(pieces: list[bytes]) -> Reading:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        for index, piece in enumerate(pieces):
            connection.receive_data(piece)
            found = connection.next_event()
            if isinstance(found, h11.Request):
                rest = connection.trailing_data[0] + b"".join(pieces[index + 1 :])
                return _head_of(found, connection), rest
    except h11.RemoteProtocolError as error:
        return str(error), b""
    return None, b""


def _head_of(head: h11.Request, connection: h11.Connection) -> RequestHead:
    headers = [(bytes(name), bytes(value)) for name, value in head.headers]
    named = dict(headers)
    chunked = b"transfer-encoding" in named  # h11 refuses everything but "chunked"
    members = b",".join(value for name, value in headers if name == b"connection").split(b",")
    closes = b"close" in [item.strip().lower() for item in members]
    return RequestHead(
        method=head.method.decode().upper(),
        target=bytes(head.target),
        headers=headers,
        version="1.0" if head.http_version == b"1.0" else "1.1",
        length=None if chunked else int(named.get(b"content-length", b"0")),
        # Two readings of the length: `target` refuses the request, but the connection ends anyway.
        keep_alive=not closes
        and head.http_version > b"1.0"
        and not (chunked and b"content-length" in named),
        expects_continue=connection.they_are_waiting_for_100_continue,
    )


LINES = (
    b"x: y|X-Empty:|x:  spaced \t|!#$%&'*+-.^_`~09azAZ: v|text: \x80\xff|a:b:c|Expect: 100-Continue|"
    b"expect: 200-ok|Connection: close|Connection: keep-alive, Close|connection: closed|Content-Lengths: 1"
).split(b"|")
LENGTHS = (
    b"|Content-Length: 5|content-length:0|Content-Length: 5, 5|Content-Length: 00 ,00|"
    b"Content-Length: 7\r\nCONTENT-LENGTH:7\t|Transfer-Encoding: chunked|transfer-encoding:\tChunked |"
    b"Content-Length: 7\r\nTransfer-Encoding: chunked"
).split(b"|")
STARTS = (
    b"GET / HTTP/1.1|POST /a?b=c HTTP/1.1|OPTIONS * HTTP/1.1|M-SEARCH http://h/ HTTP/1.1|HEAD / HTTP/1.0|"
    b"PRI * HTTP/1.1|\r\nGET / HTTP/1.1|\r\n\r\n\r\nGET / HTTP/1.1|\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1"
).split(b"|")
BAD_LINES = (
    b"x y : z|x : y| x: y|\tfold|x|: y||x: \x00|x: \x01|x: a\rb|x: a\nb|x: \x7f|\xe9: x|x(y): z|"
    b"Content-Length: +1|Content-Length: 1, 2|Content-Length:|Content-Length: 1,|Content-Length: 05|"
    b"Content-Length: 1_0|Content-Length: 11111111111111111111|Content-Length: 5\x0b,5|"
    b"Transfer-Encoding: gzip|Transfer-Encoding: gzip, chunked|Transfer-Encoding: \x0bchunked"
).split(b"|")
BAD_STARTS = (
    b"GET  / HTTP/1.1|GET /|GET / HTTP/1.1 |GET / http/1.1| GET / HTTP/1.1|GET / HTTP/2.0|GET / HTTP/11|"
    b"G(T / HTTP/1.1||GET /\xe9 HTTP/1.1|GET /a b HTTP/1.1|GET /\x00 HTTP/1.1|x: y|PRI * HTTP/2.0\r\n\r\nSM|"
    b"\r\nPRI * HTTP/2.0\r\n|\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1"
).split(b"|")
RESTS = [b"", b"x", b"\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff"]
ENDS = [b"\r\n"] * 50 + [b"\n", b"\r", b"", b"\n\r", b"\r\r\n", b"\r\n\r\n"]


@st.composite
def heads(draw: st.DrawFn, *, valid: bool) -> bytes:
    """The head of a request, and what follows."""
    lines = st.sampled_from(LINES if valid else LINES * 4 + LENGTHS + BAD_LINES)
    start = draw(st.sampled_from(STARTS if valid else STARTS * 4 + BAD_STARTS))
    fields = [b"Host: h", *draw(st.lists(lines, max_size=4)), draw(st.sampled_from(LENGTHS))]
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
def test_a_request_reads_as_h11_reads_it(
    valid: bool, given: st.DataObject, ours: list[int], theirs: list[int]
) -> None:
    wire = given.draw(heads(valid=True) if valid else mistakes)
    read, rest = read_with_ours([wire])
    assert read_with_ours(cut(wire, ours)) == (read, rest)
    assert read_with_ours([wire[at : at + 1] for at in range(len(wire))]) == (read, rest)
    reference, after = read_with_h11(cut(re.sub(rb"\A(\r\n){1,8}(?!\r\n)", b"", wire), theirs))
    event(f"ours {type(read).__name__}, h11 {type(reference).__name__}")
    assert isinstance(read, RequestHead) or not valid
    if isinstance(read, RequestHead) and isinstance(reference, RequestHead):
        assert (read, rest) == (reference, after)
    elif isinstance(read, RequestHead):
        # Decided later: the host, and a target with other octets than ASCII.
        is_odd = not read.target.isascii() and "illegal request line" in str(reference)
        assert is_odd or "Host: header" in str(reference), reference


STRAY = st.sampled_from([b"", b"", b"\nx", b"\r\n\tx", b"\x00"])
HEAD_ENDS = st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"\n", b"\rx"])


@given(st.integers(-2, 2), STRAY, HEAD_ENDS, cuts)
@settings(max_examples=100)
def test_the_limit_does_not_depend_on_the_cuts(
    over: int, stray: bytes, end: bytes, positions: list[int]
) -> None:
    """One byte more than the limit is 431, unless a line before it ends wrong."""
    wire = b"GET / HTTP/1.1\r\nHost: h\r\nx: " + stray
    wire = wire.ljust(MAX_HEAD_BYTES + over - len(end), b"x") + end
    edges = [MAX_HEAD_BYTES + at for at in range(-3, 4)]
    whole = read_with_ours([wire, b"x"])
    assert read_with_ours([*cut(wire, [*positions, *edges]), b"x"]) == whole
    assert isinstance(whole[0], RequestHead) is (over <= 0 and end == b"\r\n\r\n" and not stray)


def test_the_comparison_sees_both_verdicts() -> None:
    wire = (
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\nExpect: 100-continue\r\n\r\nhello"
    )
    headers = [(b"host", b"h"), (b"content-length", b"5"), (b"expect", b"100-continue")]
    head = RequestHead("POST", b"/", headers, "1.1", 5, True, True)
    assert read_with_h11([wire]) == read_with_ours([wire]) == (head, b"hello")
    assert isinstance(read_with_h11([wire.replace(b"5, 5", b"5, 6")])[0], str)
    assert read_with_h11([wire[:40]]) == read_with_ours([wire[:40]]) == (None, b"")
