"""Heads: what is written for a request, and what is read of a response, however it is cut."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence

import pytest

from proxy.errors import ProtocolFailure
from proxy.http.head import (
    MAX_HEAD_BYTES,
    BadRequest,
    BodyEncoder,
    HeadReader,
    ResponseHead,
    encode_head,
)

Headers = list[tuple[bytes, bytes]]

HOST = (b"host", b"h")
TOKEN_BYTES = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
CONTROLS = [bytes([code]) for code in [*range(32), 127] if code != 9]  # a tab may be in a value

MALFORMED = "the response's head is not acceptable HTTP (RFC 9112)"
OTHER_CODING = "the response has a Transfer-Encoding other than chunked"
BOTH_LENGTHS = "the response has both Transfer-Encoding and Content-Length"
TOO_LONG = f"the response's head is longer than {MAX_HEAD_BYTES} bytes"
SWITCHED = "the response switches to another protocol, which was not asked for"
TOO_MANY = "more than 64 informational responses"

OK = ResponseHead(b"1.1", 200, b"OK", (), None, False, False, b"")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def splits(wire: bytes) -> Iterator[list[bytes]]:
    """The bytes whole, one by one, and in two at every position."""
    yield [wire]
    yield [wire[i : i + 1] for i in range(len(wire))]
    for i in range(1, len(wire)):
        yield [wire[:i], wire[i:]]


def read(pieces: Sequence[bytes]) -> ResponseHead | None:
    """The head in the pieces; what follows it is early."""
    reader = HeadReader()
    for index, piece in enumerate(pieces):
        head = reader.receive(piece)
        if head is not None:
            return head._replace(early=head.early + b"".join(pieces[index + 1 :]))
    return None


def check_reads(wire: bytes, head: ResponseHead) -> None:
    """However `wire` is cut, it is read as `head`, and not before the head is complete."""
    for pieces in splits(wire):
        assert read(pieces) == head, pieces
    for end in range(len(wire) - len(head.early)):
        assert read([wire[:end]]) is None


def check_refuses(wire: bytes, message: str = MALFORMED) -> None:
    """However `wire` is cut, it is refused with this message, which quotes nothing of the head."""
    for pieces in splits(wire):
        with pytest.raises(ProtocolFailure) as caught:
            read(pieces)
        assert type(caught.value) is ProtocolFailure
        assert str(caught.value) == message, pieces


def response(*lines: bytes) -> bytes:
    """A response's head with these field lines."""
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines]) + b"\r\n\r\n"


# Responses: what is read

ANY_VALUE = bytes(range(0x21, 0x7F)) + b" \t" + bytes(range(0x80, 0x100))


@pytest.mark.parametrize(
    ("lines", "headers"),
    [
        ([], []),
        ([b"X-B: 1", b"a:2", b"x-b:\t 3 \t"], [(b"X-B", b"1"), (b"a", b"2"), (b"x-b", b"3")]),
        ([b"Empty:", b"Spaces:  \t "], [(b"Empty", b""), (b"Spaces", b"")]),
        ([b"Inner:  a \t b  ", b"c: :"], [(b"Inner", b"a \t b"), (b"c", b":")]),
        ([b"X \t: 1", b"empty :"], [(b"X", b"1"), (b"empty", b"")]),  # RFC 9112, section 5.1
        ([TOKEN_BYTES + b":" + ANY_VALUE], [(TOKEN_BYTES, ANY_VALUE)]),
        ([b"X-Content-Length: x", b"Content_Length: 5"], None),
        ([b"Content-Length-X: 5", b"Transfer-Encodin: gzip"], None),
    ],
)
def test_fields_are_read_as_they_were_sent(lines: list[bytes], headers: Headers | None) -> None:
    """Order, case, duplicates and bytes beyond ASCII; only white space around name and value goes.
    Names that resemble the length headers mean nothing.
    """
    if headers is None:
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    check_reads(response(*lines), OK._replace(headers=tuple(headers)))


@pytest.mark.parametrize(
    ("rest", "status", "reason"),
    [
        *((b"%d OK" % status, status, b"OK") for status in (200, 204, 304, 404, 599, 600, 999)),
        (b"200 ", 200, b""),
        (b"200", 200, b""),
        (b"200  two spaces ", 200, b" two spaces "),
        (b"200 \ta\xe9\xff", 200, b"\ta\xe9\xff"),
    ],
)
def test_status_and_reason_are_read(rest: bytes, status: int, reason: bytes) -> None:
    """Also a status that no RFC names, and an empty reason without a space before it."""
    check_reads(b"HTTP/1.1 " + rest + b"\r\n\r\n", OK._replace(status=status, reason=reason))


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize(
    ("lines", "closes"),
    [
        ([], False),
        ([b"Connection: keep-alive"], False),
        ([b"X-Connection: close"], False),
        ([b"Connection : close"], True),
        ([b"CONNECTION: Close"], True),
        ([b"connection: keep-alive,close"], True),
        ([b"Connection: close", b"a: b", b"Connection: keep-alive"], True),
    ],
)
def test_a_connection_is_reused_only_under_http_1_1_without_close(
    version: bytes, lines: list[bytes], closes: bool
) -> None:
    """RFC 9112, section 9.3; `keep-alive` of an HTTP/1.0 server does not count."""
    head = read([response(*lines).replace(b"HTTP/1.1", b"HTTP/" + version)])
    assert head is not None
    assert (head.version, head.closes) == (version, closes or version == b"1.0")


@pytest.mark.parametrize(
    "early", [b"x", b"\n", b"\r\n\r\n", b"\x00\xff", response(), b"5\r\nhello\r\n0\r\n\r\n"]
)
def test_bytes_after_the_head_are_kept(early: bytes) -> None:
    check_reads(response(b"x: y") + early, OK._replace(headers=((b"x", b"y"),), early=early))


# Responses: the length of the body


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([b"Content-Length: 0"], b"0"),
        ([b"CONTENT-LENGTH: \t 42 \t"], b"42"),
        ([b"Content-Length : 007"], b"007"),
        ([b"Content-Length: " + b"9" * 18], b"9" * 18),
        ([b"Content-Length: 5 ,\t5,5"], b"5"),
        ([b"Content-Length: 5, 5", b"x: y", b"content-length: 5"], b"5"),
    ],
)
def test_a_repeated_content_length_is_one_number(lines: list[bytes], number: bytes) -> None:
    """It stays once, at its first position (RFC 9112, section 6.3, item 5)."""
    name = lines[0].partition(b":")[0].strip()
    others = tuple((b"x", b"y") for line in lines if line == b"x: y")
    headers = ((name, number), *others)
    check_reads(response(*lines), OK._replace(headers=headers, length=int(number)))


@pytest.mark.parametrize(
    "values",
    [
        *([value] for value in b"|+5|-0|5.0|5e1|0x5|1_0|5 5|5;|five|\xb2|5, 6|5,|,5|,".split(b"|")),
        *([value] for value in (b"5,,5", b"5, 05", b"9" * 19, b"0" * 19, "٥".encode())),
        *([b"5", b"6"], [b"5", b"05"], [b"5", b"5, 6"], [b"5, 5", b"6"], [b"5", b""], [b"", b"5"]),
    ],
    ids=repr,
)
def test_a_content_length_that_is_not_one_number_is_refused(values: list[bytes]) -> None:
    """Two readers could use different lengths."""
    check_refuses(response(b"x: y", *(b"Content-Length: " + value for value in values)))
    check_refuses(response(*(b"content-length : " + value for value in values), b"x: y"))


@pytest.mark.parametrize("line", [b"Transfer-Encoding: chunked", b"transfer-encoding :\tCHUNKED "])
def test_chunked_is_read_in_any_case(line: bytes) -> None:
    name, _, value = line.partition(b":")
    headers = ((name.strip(), value.strip()),)
    check_reads(response(line), OK._replace(headers=headers, chunked=True))


@pytest.mark.parametrize(
    "values",
    [
        *([value] for value in (b"gzip", b"identity", b"", b"gzip, chunked", b"chunked, gzip")),
        *([value] for value in (b"chunked, chunked", b"chunked,", b",chunked", b"chunked;q=1")),
        *([value] for value in (b'"chunked"', b"xchunked", b"chunked\xa0")),
        *([b"chunked", b"chunked"], [b"chunked", b"gzip"], [b"gzip", b"chunked"]),
    ],
)
def test_any_other_transfer_encoding_is_refused(values: list[bytes]) -> None:
    check_refuses(response(*(b"Transfer-Encoding: " + value for value in values)), OTHER_CODING)


@pytest.mark.parametrize("status", [b"200", b"204", b"304", b"500", b"103"])
@pytest.mark.parametrize("turn", [1, -1], ids=["length last", "length first"])
def test_both_length_headers_are_refused(status: bytes, turn: int) -> None:
    """RFC 9112, section 6.3, item 3: response splitting, or a broken server."""
    lines = [b"Transfer-Encoding: chunked", b"x: y", b"Content-Length: 5"][::turn]
    check_refuses(response(*lines).replace(b"200", status), BOTH_LENGTHS)


# Responses: what is refused

BAD_STATUS_LINES = (
    b"HTTP/2 200 OK|HTTP/2.0 200 OK|HTTP/1.2 200 OK|HTTP/0.9 200 OK|HTTP/1 200 OK|HTTP/1.10 200 OK|"
    b"HTTP/11.1 200 OK|HTTP/1x1 200 OK|http/1.1 200 OK|HTTPS/1.1 200 OK|ICY 200 OK|200 OK|hello|"
    b" HTTP/1.1 200 OK|HTTP/1.1  200 OK|HTTP/1.1\t200 OK|HTTP/1.1 200\tOK|HTTP /1.1 200 OK|"
    b"HTTP/1.1|HTTP/1.1 |HTTP/1.1 20 OK|HTTP/1.1 2000 OK|HTTP/1.1 200OK|HTTP/1.1 2x0 OK|"
    b"HTTP/1.1 +20 OK|HTTP/1.1 OK 200|HTTP/1.1 000 OK|HTTP/1.1 099 OK|HTTP/1.1 2\xb20 OK|"
    b"\xefHTTP/1.1 200|GET / HTTP/1.1|x: y|HTTP/1.1 200 OK\r|HTTP/1.1 200\r OK|SSH-2.0-OpenSSH_9.6|"
    b"\x15\x03\x01\x00\x02\x02||\r\nHTTP/1.1 200 OK"
).split(b"|")


@pytest.mark.parametrize("line", BAD_STATUS_LINES)
def test_a_malformed_status_line_is_refused(line: bytes) -> None:
    """Other versions, other protocols, and an empty line before it (RFC 9112, section 4)."""
    check_refuses(line + b"\r\n\r\n")
    check_refuses(line + b"\r\nx: y\r\n\r\n")


@pytest.mark.parametrize(
    "wire", [b"\x15\x03\x01", b"SSH", b"HTTP/2", b"\r\n", b"\n", b"HTTP/1.1 200 OK\n", b"x"]
)
def test_what_cannot_become_a_head_is_refused_at_once(wire: bytes) -> None:
    """A server of another protocol may wait for more, and one with bare LFs sends no empty line."""
    check_refuses(wire)


def test_a_name_is_a_token() -> None:
    """All 256 bytes at its beginning, in it, at its end, and alone."""
    for code in set(range(256)) - set(TOKEN_BYTES) - set(b":\n"):
        for line in (b"%ca: v", b"a%cb: v", b"a%c: v", b"%c: v"):
            if line == b"a%c: v" and code in b"\t ":
                continue
            with pytest.raises(ProtocolFailure, match=f"^{re.escape(MALFORMED)}$"):
                read([response(b"x: y", line % code)])


@pytest.mark.parametrize(
    "line", b"no colon|: no name|:| : b|a b: c|a b : c| folded|\tfolded| |\t| a: b".split(b"|")
)
def test_a_line_without_a_name_is_refused(line: bytes) -> None:
    """First, between others, last, and in an informational response; also a folded line (RFC 9112,
    section 5.2), which one reader would take for a value and another for a field.
    """
    for lines in ([line], [line, b"x: y"], [b"x: y", line, b"x: y"], [b"x: y", line]):
        check_refuses(response(*lines))
    check_refuses(b"HTTP/1.1 100 Continue\r\nx: y\r\n" + line + b"\r\n\r\n" + response())


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_character_is_refused(control: bytes) -> None:
    """In the status line, in a value, at its ends, and alone."""
    check_refuses(response().replace(b"OK", b"O" + control + b"K"))
    for value in (b"a%bb", b"%ba", b"a%b", b"%b", b"a%b b: c"):
        check_refuses(response(b"x: " + value % control, b"y: z"))


def test_only_crlf_ends_a_line() -> None:
    """LF alone at each line in turn and at all, LF before CRLF, and CR alone."""
    wire = response(b"a: b", b"c: d")
    for match in re.finditer(rb"\r\n", wire):
        end = match.start()
        check_refuses(wire[:end] + wire[end + 1 :] + b"\r\n\r\n")
        check_refuses(wire[:end] + b"\n" + wire[end:] + b"\r\n\r\n")
        check_refuses(wire[: end + 1] + b"a: b\r\n\r\n")
    check_refuses(wire.replace(b"\r\n", b"\n"))
    check_refuses(wire.replace(b"\r\n", b"\n\r") + b"\n")


# Responses: limits and informational ones


def in_steps(wire: bytes, step: int) -> list[bytes]:
    return [wire[at : at + step] for at in range(0, len(wire), step)]


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


@pytest.mark.parametrize("before", [b"", CONTINUE])
def test_an_endless_head_is_refused_at_the_limit(before: bytes) -> None:
    reader = HeadReader()
    start = b"HTTP/1.1 200 OK\r\nx: "
    assert reader.receive(before + start + b"x" * (MAX_HEAD_BYTES - len(start))) is None
    with pytest.raises(ProtocolFailure, match=f"^{TOO_LONG}$"):
        reader.receive(b"x")


@pytest.mark.parametrize(
    "before",
    [
        CONTINUE,
        b"HTTP/1.1 100\r\n\r\n",
        b"HTTP/1.0 102 Processing\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 199 x\r\nTransfer-Encoding: chunked\r\n\r\n" + CONTINUE,
    ],
)
def test_informational_responses_have_no_part_in_the_final_one(before: bytes) -> None:
    check_reads(
        before + response(b"a: b") + b"body", OK._replace(headers=((b"a", b"b"),), early=b"body")
    )
    for pieces in splits(before):
        assert read(pieces) is None


@pytest.mark.parametrize("step", [1, 25, 1000, 1_000_000])
def test_more_than_64_informational_responses_are_refused(step: int) -> None:
    assert read(in_steps(CONTINUE * 64 + response(), step)) == OK
    with pytest.raises(ProtocolFailure, match=f"^{TOO_MANY}$"):
        read(in_steps(CONTINUE * 65 + response(), step))


@pytest.mark.parametrize("before", [b"", CONTINUE])
@pytest.mark.parametrize("after", [b"", response(), b"\x81\x05hello"])
def test_a_switch_of_protocols_is_refused(before: bytes, after: bytes) -> None:
    check_refuses(before + b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n" + after, SWITCHED)


# Requests: heads


def check_not_written(method: str, target: bytes, headers: Headers) -> None:
    """The request is refused with a message that quotes nothing of it."""
    with pytest.raises(BadRequest) as caught:
        encode_head(method, target, headers)
    assert str(caught.value) in (
        "the method, the target or a header of the request cannot be written as HTTP/1.1",
        "a request has one Host header",
    )


@pytest.mark.parametrize("method", ["GET", "get", "M-SEARCH", "!#$%&'*+-.^_`|~09azAZ"])
@pytest.mark.parametrize(
    "target", [b"/a?b=%20&c=[]|~", b"*", b"http://h/", b"h:80", b"//", bytes(range(0x21, 0x7F))]
)
@pytest.mark.parametrize(
    "headers",
    [
        [(b"X-B", b"1"), (b"Host", b"h:80"), (b"x-b", b"2"), (b"X-B", b"1")],
        [(b"HOST", b""), (b"empty", b""), (b"t", b"a\tb \x80\xff")],
    ],
)
def test_a_request_is_written_as_given(method: str, target: bytes, headers: Headers) -> None:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    head, _ = encode_head(method, target, headers)
    assert head == b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), target, lines)


@pytest.mark.parametrize(
    "method",
    [
        *("", " ", "GET ", " GET", "GET /", "G T", "GET\r\n", "GET\n", "\r\nGET", "G\x00T", "G\tT"),
        *("GET:", "G/T", "G\xc9T", "\u2028", "\ud800", "GET\x7f", "(GET)"),
        "GET / HTTP/1.1\r\nx: y\r\n\r\nGET",
    ],
)
def test_a_method_that_is_not_a_token_is_refused(method: str) -> None:
    check_not_written(method, b"/", [HOST])


@pytest.mark.parametrize(
    "target",
    b"| |/a b|/ | /|/\r\n|/\n|/\r|/\t|/\x00|/\x7f|/\x80|/\xc3\xa9|/ HTTP/1.1|/ HTTP/1.1\nx: y|"
    b"/ HTTP/1.1\r\nx: y|/ HTTP/1.1\r\nhost: evil\r\n\r\nGET /".split(b"|"),
)
def test_a_target_that_is_not_visible_ascii_is_refused(target: bytes) -> None:
    check_not_written("GET", target, [HOST])


@pytest.mark.parametrize(
    "field",
    [
        *(
            (b"%b" % name, b"v")
            for name in b"| |a | a|\ta|:a|a:|a: b|host:evil|a\r\n|a\nb".split(b"|")
        ),
        (b"transfer-encoding:chunked,", b""),
        (b"a\r\n\r\nGET / HTTP/1.1\r\nhost", b"v"),
        *(
            (b"a", value)
            for value in (b"v\r\nx: y", b"v\nx: y", b"v\r\n folded", b"\r\n", b"v\r\n")
        ),
        (b"a", b"v\r\n\r\nGET /evil HTTP/1.1\r\nhost: h"),
        *((b"a", value % control) for control in CONTROLS for value in (b"a%bb", b"%ba", b"a%b")),
    ],
)
def test_nothing_is_smuggled_in_a_field(field: tuple[bytes, bytes]) -> None:
    """Neither another name, nor a line, nor another request, wherever the field is."""
    for headers in ([HOST, field], [field, HOST], [(b"host", field[1]), field]):
        check_not_written("GET", b"/", headers)


def test_the_host_can_be_replaced() -> None:
    headers = [(b"a", b"1"), (b"HOST", b"client.test"), (b"b", b"2")]
    head, _ = encode_head("GET", b"/", headers, host=b"up.test:8000")
    assert head == b"GET / HTTP/1.1\r\na: 1\r\nHOST: up.test:8000\r\nb: 2\r\n\r\n"
    with pytest.raises(BadRequest):
        encode_head("GET", b"/", headers, host=b"up.test\r\nx: y")


def test_each_character_of_a_written_name_is_one_of_a_token() -> None:
    written = []
    for code in range(256):
        try:
            encode_head("GET", b"/", [HOST, (b"a%cb" % code, b"v")])
        except BadRequest:
            continue
        written.append(code)
    assert bytes(written) == bytes(sorted(TOKEN_BYTES))


@pytest.mark.parametrize("headers", [[], [(b"x-host", b"h")], [HOST, (b"x", b"y"), (b"HoSt", b"")]])
def test_no_host_or_more_than_one_is_refused(headers: Headers) -> None:
    """RFC 9112, section 3.2."""
    check_not_written("GET", b"/", headers)


# Requests: bodies

LONGER = r"^the body of the request is longer than its Content-Length$"
SHORTER = r"^the body of the request is shorter than its Content-Length$"


def encoder_for(*headers: tuple[bytes, bytes]) -> BodyEncoder:
    hosts = () if HOST in headers else (HOST,)
    return BodyEncoder(encode_head("POST", b"/", [*hosts, *headers])[1])


@pytest.mark.parametrize(
    "headers", [[], [(b"x-content-length", b"5")], [(b"content-length", b"0")]]
)
def test_a_request_that_announces_nothing_has_no_body(headers: Headers) -> None:
    encoder = encoder_for(*headers)
    assert (encoder.left, encoder.data(b""), encoder.end()) == (0, b"", b"")
    with pytest.raises(BadRequest, match=LONGER):
        encoder.data(b"x")


def test_a_body_of_announced_length_is_sent_as_it_is() -> None:
    encoder = encoder_for((b"Content-Length", b"11"))
    for piece, left in ((b"hello", 6), (b"", 6), (b" world", 0)):
        assert (encoder.data(piece), encoder.left) == (piece, left)
    assert encoder.end() == b""


@pytest.mark.parametrize(
    ("length", "pieces", "message"),
    [
        (5, [b"hello!"], LONGER),
        (5, [b"hello", b"!"], LONGER),
        (1, [b"", b"ab"], LONGER),
        (5, [], SHORTER),
        (5, [b"he", b"", b"ll"], SHORTER),
    ],
)
def test_a_body_of_another_length_is_refused(
    length: int, pieces: list[bytes], message: str
) -> None:
    """The upstream would read the difference as another request."""
    encoder = encoder_for((b"content-length", b"%d" % length))
    with pytest.raises(BadRequest, match=message):
        for piece in pieces:
            assert encoder.data(piece) == piece
        encoder.end()
    with pytest.raises(BadRequest):
        encoder.end()


@pytest.mark.parametrize("value", [b"chunked", b"Chunked"])
def test_a_body_of_unknown_length_is_chunked(value: bytes) -> None:
    """An empty piece is not written: it would be the end."""
    encoder = encoder_for((b"Transfer-Encoding", value))
    assert encoder.data(b"hello") == b"5\r\nhello\r\n"
    assert encoder.data(b"") == b""
    assert encoder.data(b"0\r\n\r\n") == b"5\r\n0\r\n\r\n\r\n"
    assert encoder.data(b"x" * 0xABC) == b"abc\r\n" + b"x" * 0xABC + b"\r\n"
    assert (encoder.left, encoder.end()) == (None, b"0\r\n\r\n")


CHUNKED, LENGTH = (b"Transfer-Encoding", b"chunked"), (b"content-length", b"5")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        *(
            ([(b"Transfer-Encoding", value)], "Transfer-Encoding can only be chunked")
            for value in b"|gzip|identity|gzip, chunked|chunked, chunked|chunked | chunked".split(
                b"|"
            )
        ),
        *(
            ([(b"Content-Length", value)], "Content-Length is not a number")
            for value in b"|+5|-5| 5|5 |5, 5|0x5|1_0|5\r\n|\xb2|x|9999999999999999999".split(b"|")
        ),
        *(
            (headers, "the request announces its length more than once")
            for headers in ([LENGTH, CHUNKED], [CHUNKED, HOST, LENGTH], [LENGTH] * 2, [CHUNKED] * 2)
        ),
    ],
)
def test_an_announcement_that_two_servers_could_read_differently_is_refused(
    headers: Headers, message: str
) -> None:
    """RFC 9112, section 6.3."""
    with pytest.raises(BadRequest, match=f"^{message}$"):
        encoder_for(*headers)
