"""Heads: what is written for a request, and what is read of a response, however it is cut."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.errors import ProtocolFailure
from proxy.http.head import (
    MAX_HEAD_BYTES,
    BadRequest,
    BodyEncoder,
    HeadReader,
    ResponseHead,
    encode_head,
    join_head,
)

Headers = list[tuple[bytes, bytes]]

HOST = (b"host", b"h")
TOKEN_BYTES = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
VISIBLE = bytes(range(0x21, 0x7F))
ANY_VALUE = VISIBLE + b" \t" + bytes(range(0x80, 0x100))

MALFORMED = "the response's head is not acceptable HTTP (RFC 9112)"
OTHER_CODING = "the response has a Transfer-Encoding other than chunked"
BOTH_LENGTHS = "the response has both Transfer-Encoding and Content-Length"
TOO_LONG = f"the response's head is longer than {MAX_HEAD_BYTES} bytes"
SWITCHED = "the response switches to another protocol, which was not asked for"
TOO_MANY = "more than 64 informational responses"

OK = ResponseHead(b"1.1", 200, b"OK", (), None, False, False, b"")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TE, CL = b"Transfer-Encoding: ", b"Content-Length: "


def splits(wire: bytes) -> Iterator[list[bytes]]:
    """The bytes whole, one by one, and in two at every position."""
    yield [wire]
    yield in_steps(wire, 1)
    for i in range(1, len(wire)):
        yield [wire[:i], wire[i:]]


def in_steps(wire: bytes, step: int) -> list[bytes]:
    return [wire[at : at + step] for at in range(0, len(wire), step)]


def read(pieces: Sequence[bytes]) -> ResponseHead | None:
    """The head in the pieces; what follows it is early."""
    reader = HeadReader()
    for index, piece in enumerate(pieces):
        head = reader.receive(piece)
        if head is not None:
            return replace(head, early=head.early + b"".join(pieces[index + 1 :]))
    return None


def response(*lines: bytes) -> bytes:
    """A response's head with these field lines."""
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines]) + b"\r\n\r\n"


# Responses: what is read


def fields(*items: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Headers written as `name: value`."""
    return tuple((name, value) for name, _, value in (item.partition(b": ") for item in items))


READ: list[tuple[bytes, dict[str, Any]]] = [
    (response(), {}),
    # Order, case and duplicates stay; only white space around name and value goes.
    (response(b"X-B: 1", b"a:2", b"x-b:\t 3 \t"), {"headers": fields(b"X-B: 1", b"a: 2", b"x-b: 3")}),
    (response(b"Empty:", b"Spaces:  \t "), {"headers": fields(b"Empty: ", b"Spaces: ")}),
    (response(b"Inner:  a \t b  ", b"c: :"), {"headers": fields(b"Inner: a \t b", b"c: :")}),
    (response(b"X \t: 1", b"e :"), {"headers": fields(b"X: 1", b"e: ")}),  # RFC 9112, section 5.1
    (response(TOKEN_BYTES + b":" + ANY_VALUE), {"headers": ((TOKEN_BYTES, ANY_VALUE),)}),
    (response(b"X-Content-Length: x"), {"headers": fields(b"X-Content-Length: x")}),
    (response(b"Transfer-Encodin: gzip"), {"headers": fields(b"Transfer-Encodin: gzip")}),
    # A status that no RFC names, and an empty reason without a space before it.
    (b"HTTP/1.1 999 OK\r\n\r\n", {"status": 999}),
    (b"HTTP/1.1 200 \r\n\r\n", {"reason": b""}),
    (b"HTTP/1.1 304\r\n\r\n", {"status": 304, "reason": b""}),
    (b"HTTP/1.1 200 \ta  \xe9\xff \r\n\r\n", {"reason": b"\ta  \xe9\xff "}),
    # A repeated Content-Length stays once, at its first position (RFC 9112, section 6.3, item 5).
    (response(CL + b"0"), {"headers": fields(CL + b"0"), "length": 0}),
    (response(b"CL: 1", b"a : b", CL + b"\t 42 \t"), {"headers": fields(b"CL: 1", b"a: b", CL + b"42"), "length": 42}),
    (response(b"content-length : 007"), {"headers": fields(b"content-length: 007"), "length": 7}),
    (response(CL + b"9" * 18), {"headers": fields(CL + b"9" * 18), "length": 10**18 - 1}),
    (response(CL + b"5 ,\t5,5"), {"headers": fields(CL + b"5"), "length": 5}),
    (response(CL + b"5", b"a: b", b"content-length: 5"), {"headers": fields(CL + b"5", b"a: b"), "length": 5}),
    (response(b"te: 1", TE + b"\tCHUNKED "), {"headers": fields(b"te: 1", TE + b"CHUNKED"), "chunked": True}),
    *(
        (response(b"x: y") + early, {"headers": fields(b"x: y"), "early": early})
        for early in (b"x", b"\n", b"\r\n\r\n", b"\x00\xff", response())
    ),
    # Informational responses have no part in the final one.
    *(
        (before + response(b"a: b") + b"body", {"headers": fields(b"a: b"), "early": b"body"})
        for before in (
            CONTINUE,
            b"HTTP/1.1 100\r\n\r\n",
            b"HTTP/1.0 102 Processing\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n",
            b"HTTP/1.1 199 x\r\nTransfer-Encoding: chunked\r\n\r\n" + CONTINUE,
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("wire", "expected"), READ)
def test_what_is_read(wire: bytes, expected: dict[str, Any]) -> None:
    """However it is cut, and not before the head is complete."""
    head = replace(OK, **expected)
    for pieces in splits(wire):
        assert read(pieces) == head, pieces
    for end in range(len(wire) - len(head.early)):
        assert read([wire[:end]]) is None


@pytest.mark.parametrize(
    ("lines", "closes"),
    [
        ([], False),
        ([b"Connection: keep-alive", b"X-Connection: close"], False),
        ([b"Connection : close"], True),
        ([b"CONNECTION: Close"], True),
        ([b"connection: keep-alive,close"], True),
        ([b"Connection: close", b"a: b", b"Connection: keep-alive"], True),
    ],
)
def test_only_http_1_1_without_close_is_reused(lines: list[bytes], closes: bool) -> None:
    """RFC 9112, section 9.3; `keep-alive` of an HTTP/1.0 server does not count."""
    for version, closes_then in ((b"1.1", closes), (b"1.0", True)):
        head = read([response(*lines).replace(b"HTTP/1.1", b"HTTP/" + version)])
        assert head is not None
        assert (head.version, head.closes) == (version, closes_then)


# Responses: what is refused

LENGTHS = b"|+5|-0|5.0|5e1|0x5|1_0|5 5|5;|five|\xb2|5, 6|5,|,5|,|5,,5|5, 05".split(b"|")
LENGTH_PAIRS = [(b"5", b"6"), (b"5", b"05"), (b"5", b"5, 6"), (b"5, 5", b"6"), (b"5", b"")]
CODINGS = (
    b"gzip|identity||gzip, chunked|chunked, gzip|chunked, chunked|chunked,|,chunked|chunked;q=1|"
    b'"chunked"|xchunked|chunked\xa0'
).split(b"|")
STATUS_LINES = (
    b"HTTP/2 200 OK|HTTP/2.0 200 OK|HTTP/1.2 200 OK|HTTP/0.9 200 OK|HTTP/1 200 OK|HTTP/1.10 200 OK|"
    b"HTTP/11.1 200 OK|HTTP/1x1 200 OK|http/1.1 200 OK|HTTPS/1.1 200 OK|ICY 200 OK|200 OK|hello|"
    b" HTTP/1.1 200 OK|HTTP/1.1  200 OK|HTTP/1.1\t200 OK|HTTP/1.1 200\tOK|HTTP /1.1 200 OK|"
    b"HTTP/1.1|HTTP/1.1 |HTTP/1.1 20 OK|HTTP/1.1 2000 OK|HTTP/1.1 200OK|HTTP/1.1 2x0 OK|"
    b"HTTP/1.1 +20 OK|HTTP/1.1 OK 200|HTTP/1.1 000 OK|HTTP/1.1 099 OK|HTTP/1.1 2\xb20 OK|"
    b"\xefHTTP/1.1 200|GET / HTTP/1.1|x: y|HTTP/1.1 200 OK\r|HTTP/1.1 200\r OK|SSH-2.0-OpenSSH_9.6|"
    b"\x15\x03\x01\x00\x02\x02||\r\nHTTP/1.1 200 OK"
).split(b"|")
NO_FIELDS = (
    b"no colon|: no name|:| : b|a b: c|a b : c| folded|\tfolded| |\t| a: b|a: \x00|a: b\rc: d"
)
BOTH = [[TE + b"chunked", b"x: y", CL + b"5"], [CL + b"5", TE + b"chunked"]]
REFUSED: dict[str, tuple[str, list[bytes]]] = {
    "lengths": (MALFORMED, [response(b"x: y", CL + value) for value in LENGTHS]),
    "lengths, spaced": (MALFORMED, [response(b"content-length : " + value) for value in LENGTHS]),
    "two lengths": (MALFORMED, [response(CL + a, b"x: y", CL + b) for a, b in LENGTH_PAIRS]),
    "long lengths": (MALFORMED, [response(CL + digit * 19) for digit in (b"9", b"0")]),
    "codings": (OTHER_CODING, [response(TE + value) for value in CODINGS]),
    "two codings": (OTHER_CODING, [response(TE + b"chunked", TE + b) for b in (b"chunked", b"x")]),
    # RFC 9112, section 6.3, item 3: response splitting, or a broken server.
    "both lengths": (BOTH_LENGTHS, [response(*lines) for lines in BOTH]),
    "both lengths, 304": (BOTH_LENGTHS, [response(*BOTH[0]).replace(b"200", b"304")]),
    "both lengths, 103": (BOTH_LENGTHS, [response(*BOTH[1]).replace(b"200", b"103")]),
    # Other versions, other protocols, and an empty line before it (RFC 9112, section 4).
    "status lines": (MALFORMED, [line + b"\r\nx: y\r\n\r\n" for line in STATUS_LINES]),
    "status lines alone": (MALFORMED, [line + b"\r\n\r\n" for line in STATUS_LINES]),
    # A server of another protocol may wait for more, and one with bare LFs sends no empty line.
    "at once": (MALFORMED, [b"\x15\x03", b"SSH", b"HTTP/2", b"\r\n", b"\n", b"HTTP/1.1 200 OK\n"]),
    # Also a folded line (RFC 9112, section 5.2).
    "first line": (MALFORMED, [response(line, b"x: y") for line in NO_FIELDS.split(b"|")]),
    "last line": (MALFORMED, [response(b"x: y", line) for line in NO_FIELDS.split(b"|")]),
    "interim": (MALFORMED, [CONTINUE[:-2] + b"no colon\r\n\r\n" + response()]),
    "switch": (SWITCHED, [b"HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 101\r\n\r\nx"]),
    "later switch": (SWITCHED, [CONTINUE + b"HTTP/1.1 101 x\r\n\r\n" + response()]),
}


@pytest.mark.parametrize("group", REFUSED)
def test_what_is_refused(group: str) -> None:
    """However it is cut, with a message that quotes nothing of it."""
    message, wires = REFUSED[group]
    for wire in wires:
        for pieces in splits(wire):
            with pytest.raises(ProtocolFailure) as caught:
                read(pieces)
            assert (type(caught.value), str(caught.value)) == (ProtocolFailure, message), pieces


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        *((line, TOKEN_BYTES) for line in (b"%c: v", b"%ca: v", b"a%cb: v")),
        (b"a%c: v", TOKEN_BYTES + b" \t"),
        *((line, ANY_VALUE) for line in (b"a: %c", b"a: %cb", b"a: b%cc", b"a: b%c")),
    ],
)
def test_each_octet_of_a_field(line: bytes, allowed: bytes) -> None:
    for code in set(range(256)) - set(b":\n"):
        wire = [response(b"x: y", line % code)]
        if code in allowed:
            assert read(wire) is not None, code
        else:
            with pytest.raises(ProtocolFailure, match=f"^{re.escape(MALFORMED)}$"):
                read(wire)


def test_only_crlf_ends_a_line() -> None:
    """LF alone at each line in turn and at all, LF before CRLF, and CR alone."""
    wire = response(b"a: b", b"c: d")
    broken = [wire.replace(b"\r\n", b"\n"), wire.replace(b"\r\n", b"\n\r") + b"\n"]
    for match in re.finditer(rb"\r\n", wire):
        end = match.start()
        broken.append(wire[:end] + wire[end + 1 :] + b"\r\n\r\n")
        broken.append(wire[:end] + b"\n" + wire[end:] + b"\r\n\r\n")
        broken.append(wire[: end + 1] + b"a: b\r\n\r\n")
    for item in broken:
        for pieces in splits(item):
            with pytest.raises(ProtocolFailure, match=f"^{re.escape(MALFORMED)}$"):
                read(pieces)


# Responses: limits and informational ones


@pytest.mark.parametrize("step", [1_000_000, 65536, 65535, 1009])
@pytest.mark.parametrize("early", [b"", b"x" * 200_000])
def test_a_head_may_have_the_limit_and_not_a_byte_more(step: int, early: bytes) -> None:
    """The body does not count."""
    lines = [b"x: " + b"y" * 1000] * 60
    room = MAX_HEAD_BYTES - len(response(*lines, b"z: "))
    head = read(in_steps(response(*lines, b"z: " + b"z" * room) + early, step))
    assert head is not None
    assert (head.headers[-1][0], head.early) == (b"z", early)
    with pytest.raises(ProtocolFailure, match=f"^{TOO_LONG}$"):
        read(in_steps(response(*lines, b"z: " + b"z" * (room + 1)) + early, step))


def test_an_endless_head_is_refused_at_the_limit() -> None:
    for before in (b"", CONTINUE):
        reader = HeadReader()
        start = b"HTTP/1.1 200 OK\r\nx: "
        assert reader.receive(before + start + b"x" * (MAX_HEAD_BYTES - len(start))) is None
        with pytest.raises(ProtocolFailure, match=f"^{TOO_LONG}$"):
            reader.receive(b"x")


@pytest.mark.parametrize("step", [1, 25, 1_000_000])
def test_more_than_64_informational_responses_are_refused(step: int) -> None:
    assert read(in_steps(CONTINUE * 64 + response(), step)) == OK
    with pytest.raises(ProtocolFailure, match=f"^{TOO_MANY}$"):
        read(in_steps(CONTINUE * 65 + response(), step))


# Requests


def test_the_host_can_be_replaced() -> None:
    headers = [(b"a", b"1"), (b"HOST", b"client.test"), (b"b", b"2")]
    head, _ = encode_head("GET", b"/", headers, host=b"up.test:8000")
    assert head == b"GET / HTTP/1.1\r\na: 1\r\nHOST: up.test:8000\r\nb: 2\r\n\r\n"
    with pytest.raises(BadRequest):
        encode_head("GET", b"/", headers, host=b"up.test\r\nx: y")


@pytest.mark.parametrize("host", [None, b"up.test:8000"])
@pytest.mark.parametrize("rest", [[], [(b"content-length", b"5")], [(b"x", b""), (b"x", b"1 2")]])
def test_a_sound_head_is_written_alike(host: bytes | None, rest: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"host", b"client.test"), *rest]
    checked, _ = encode_head("POST", b"/a?b", headers, host=host)
    assert join_head("POST", b"/a?b", headers, host) == checked


UNWRITABLE = "the method, the target or a header of the request cannot be written as HTTP/1.1"
ONE_HOST = "a request has one Host header"
ONE_LENGTH = "the request announces its length more than once"
OTHER_TE, NO_NUMBER = "Transfer-Encoding can only be chunked", "Content-Length is not a number"
CHUNKED, LENGTH = (b"Transfer-Encoding", b"chunked"), (b"content-length", b"5")
METHODS = ["", "GET /", "GET\r\n", "\u2028", "\ud800", "GET / HTTP/1.1\r\nx: y\r\n\r\nGET"]
TARGETS = [
    *(b"", b"/a b", b"/ HTTP/1.1", b"/ HTTP/1.1\nx: y", b"/ HTTP/1.1\r\nx: y"),
    b"/ HTTP/1.1\r\nhost: evil\r\n\r\nGET /",
]
NAMES = b"| |a | a|:a|a:|a: b|host:evil|a\r\n|a\nb|a\r\n\r\nGET / HTTP/1.1\r\nhost".split(b"|")
VALUES = b"v\r\nx: y|v\nx: y|v\r\n folded|\r\n|v\r\n|v\r\n\r\nGET /evil HTTP/1.1\r\nhost: h".split(
    b"|"
)
FIELDS = [*((name, b"v") for name in NAMES), *((b"a", value) for value in VALUES)]
CODED = b"|gzip|identity|gzip, chunked|chunked, chunked|chunked | chunked".split(b"|")
COUNTED = b"|+5|-5| 5|5 |5, 5|0x5|1_0|5\r\n|\xb2|x|9999999999999999999".split(b"|")
TWO_LENGTHS = [[LENGTH, HOST, CHUNKED], [CHUNKED, LENGTH, HOST], [HOST, *[LENGTH] * 2]]
UNWRITTEN: dict[str, tuple[str, list[tuple[str, bytes, Headers]]]] = {
    "method": (UNWRITABLE, [(method, b"/", [HOST]) for method in METHODS]),
    "target": (UNWRITABLE, [("GET", target, [HOST]) for target in TARGETS]),
    "last field": (UNWRITABLE, [("GET", b"/", [HOST, field]) for field in FIELDS]),
    "first field": (UNWRITABLE, [("GET", b"/", [field, HOST]) for field in FIELDS]),
    "coding as a name": (UNWRITABLE, [("GET", b"/", [HOST, (b"transfer-encoding:x,", b"")])]),
    "the host": (UNWRITABLE, [("GET", b"/", [(b"host", value)]) for value in VALUES]),
    "no host": (ONE_HOST, [("GET", b"/", [(b"x-host", b"h")])]),
    "two hosts": (ONE_HOST, [("GET", b"/", [HOST, (b"x", b"y"), (b"HoSt", b"")])]),
    # RFC 9112, section 6.3: two servers could read these differently.
    "coding": (OTHER_TE, [("GET", b"/", [HOST, (b"Transfer-Encoding", v)]) for v in CODED]),
    "length": (NO_NUMBER, [("GET", b"/", [HOST, (b"Content-Length", v)]) for v in COUNTED]),
    "two lengths": (ONE_LENGTH, [("GET", b"/", headers) for headers in TWO_LENGTHS]),
    "two codings": (ONE_LENGTH, [("GET", b"/", [HOST, CHUNKED, CHUNKED])]),
}


@pytest.mark.parametrize("group", UNWRITTEN)
def test_a_request_that_two_servers_could_read_differently_is_not_written(group: str) -> None:
    message, requests = UNWRITTEN[group]
    for method, target, headers in requests:
        with pytest.raises(BadRequest, match=f"^{re.escape(message)}$"):
            encode_head(method, target, headers)


@pytest.mark.parametrize(
    ("method", "target", "name", "value", "allowed"),
    [
        ("G%cT", b"/", b"a", b"v", TOKEN_BYTES),
        ("GET", b"/%c", b"a", b"v", VISIBLE),
        *(("GET", b"/", name, b"v", TOKEN_BYTES) for name in (b"a%cb", b"%cb", b"a%c")),
        *(("GET", b"/", b"a", value, ANY_VALUE) for value in (b"v%cw", b"%cw", b"v%c")),
    ],
)
def test_each_octet_of_a_written_head(
    method: str, target: bytes, name: bytes, value: bytes, allowed: bytes
) -> None:
    written = []
    for code in range(256):
        method_now = method % code if "%" in method else method
        target_now, name_now, value_now = (
            part % code if b"%" in part else part for part in (target, name, value)
        )
        with suppress(BadRequest):
            encode_head(method_now, target_now, [HOST, (name_now, value_now)])
            written.append(code)
    assert bytes(written) == bytes(sorted(allowed))


LONGER = "the body of the request is longer than its Content-Length"
SHORTER = "the body of the request is shorter than its Content-Length"


@pytest.mark.parametrize(
    ("field", "pieces", "expected"),
    [
        ((b"x-content-length", b"5"), [b""], b""),
        ((b"x-content-length", b"5"), [b"x"], LONGER),
        ((b"content-length", b"0"), [], b""),
        ((b"Content-Length", b"11"), [b"hello", b"", b" world"], b"hello world"),
        # The upstream would read the difference as another request.
        (LENGTH, [b"hello!"], LONGER),
        (LENGTH, [b"hello", b"!"], LONGER),
        (LENGTH, [], SHORTER),
        (LENGTH, [b"he", b"", b"ll"], SHORTER),
        # An empty piece is not written: it would be the end.
        (CHUNKED, [b"hello", b"", b"0\r\n\r\n"], b"5\r\nhello\r\n5\r\n0\r\n\r\n\r\n0\r\n\r\n"),
        (CHUNKED, [b"x" * 0xABC], b"abc\r\n%b\r\n0\r\n\r\n" % (b"x" * 0xABC)),
        ((b"transfer-encoding", b"Chunked"), [], b"0\r\n\r\n"),
    ],
)
def test_a_body_has_the_announced_length(
    field: tuple[bytes, bytes], pieces: list[bytes], expected: Any
) -> None:
    """What is sent of it, or why it is refused."""
    encoder = BodyEncoder(encode_head("POST", b"/", [HOST, field])[1])
    if isinstance(expected, bytes):
        assert b"".join([*map(encoder.data, pieces), encoder.end()]) == expected
        return
    with pytest.raises(BadRequest, match=f"^{expected}$"):
        for piece in pieces:
            assert encoder.data(piece) == piece
        encoder.end()
    with pytest.raises(BadRequest):
        encoder.end()
