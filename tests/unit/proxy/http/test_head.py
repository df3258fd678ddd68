"""Heads: what is written for a request, and what is read of a response: whole, byte by byte and cut
at every position.
"""

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

HOST = (b"host", b"h")
TOKEN_BYTES = (
    string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
).encode()  # RFC 9110, section 5.6.2
CONTROLS = [bytes([code]) for code in [*range(32), 127] if code != 9]  # a tab may stand in a value

NOT_ACCEPTABLE = "the response's head is not acceptable HTTP (RFC 9112)"
OTHER_CODING = "the response has a Transfer-Encoding other than chunked"
BOTH_LENGTHS = "the response has both Transfer-Encoding and Content-Length"
TOO_LONG = f"the response's head is longer than {MAX_HEAD_BYTES} bytes"
SWITCHED = "the response switches to another protocol, which was not asked for"
TOO_MANY = "more than 64 informational responses"

OK = ResponseHead(b"1.1", 200, b"OK", (), None, False, False, b"")
"""What `HTTP/1.1 200 OK` with no header says."""


def splits(wire: bytes) -> Iterator[list[bytes]]:
    """The wire's bytes whole, one by one, and in two at every position."""
    yield [wire]
    yield [wire[i : i + 1] for i in range(len(wire))]
    for i in range(1, len(wire)):
        yield [wire[:i], wire[i:]]


def read(pieces: Sequence[bytes]) -> ResponseHead | None:
    """What a reader makes of the pieces; those that come when it has the head are early, too."""
    reader = HeadReader()
    for index, piece in enumerate(pieces):
        head = reader.receive(piece)
        if head is not None:
            return head._replace(early=head.early + b"".join(pieces[index + 1 :]))
    return None


def check_reads(wire: bytes, head: ResponseHead) -> None:
    """However it is cut, `wire` is read as `head`, and not before all of the head is there."""
    for pieces in splits(wire):
        assert read(pieces) == head, pieces
    for end in range(len(wire) - len(head.early)):
        assert read([wire[:end]]) is None


def check_refuses(wire: bytes, message: str = NOT_ACCEPTABLE) -> None:
    """However it is cut, `wire` is refused, in these very words: nothing of the head is in them."""
    for pieces in splits(wire):
        with pytest.raises(ProtocolFailure) as caught:
            read(pieces)
        assert type(caught.value) is ProtocolFailure
        assert str(caught.value) == message, pieces


def response(*lines: bytes) -> bytes:
    """A response's head with these field lines."""
    return b"\r\n".join([b"HTTP/1.1 200 OK", *lines]) + b"\r\n\r\n"


# --- responses: what is read
# ------------------------------------------------------------------------------------------------


def test_a_head_without_a_header_is_read() -> None:
    """The status line and the empty line are a head."""
    check_reads(b"HTTP/1.1 200 OK\r\n\r\n", OK)


def test_headers_come_as_they_were_sent_in_their_order() -> None:
    """Names in their own case, duplicates, empty values, and bytes beyond ASCII; only the space
    around a value goes.
    """
    check_reads(
        response(
            b"X-B: 1",
            b"a:2",
            b"x-b:\t 3 \t",
            b"Empty:",
            b"Spaces:  \t ",
            b"Inner:  a \t b  ",
            b"Text: \x80\xff\xa0",
            b"c: :",
        ),
        OK._replace(
            headers=(
                (b"X-B", b"1"),
                (b"a", b"2"),
                (b"x-b", b"3"),
                (b"Empty", b""),
                (b"Spaces", b""),
                (b"Inner", b"a \t b"),
                (b"Text", b"\x80\xff\xa0"),
                (b"c", b":"),
            ),
        ),
    )


def test_a_name_may_hold_every_token_character_and_a_value_every_visible_one() -> None:
    """RFC 9110, sections 5.1 and 5.5: nothing that may be sent is refused."""
    value = bytes(range(0x21, 0x7F)) + b" \t" + bytes(range(0x80, 0x100))
    check_reads(response(TOKEN_BYTES + b":" + value), OK._replace(headers=((TOKEN_BYTES, value),)))


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t  "])
def test_white_space_before_a_colon_is_removed(space: bytes) -> None:
    """RFC 9112, section 5.1: from a response's field lines, also from those that frame the body."""
    lines = (
        b"X-XSS-Protection%b: 1",
        b"a%b:b",
        b"Content-Length%b: 2",
        b"Connection%b:close",
        b"empty%b:",
    )
    head = read([response(*(line % space for line in lines))])
    assert head is not None
    assert head.headers == (
        (b"X-XSS-Protection", b"1"),
        (b"a", b"b"),
        (b"Content-Length", b"2"),
        (b"Connection", b"close"),
        (b"empty", b""),
    )
    assert (head.length, head.closes) == (2, True)
    check_reads(response(*(line % space for line in lines)), head)
    chunked = read([response(b"Transfer-Encoding%b: chunked" % space)])
    assert chunked is not None
    assert chunked.chunked
    check_refuses(response(b"Content-Length%b: 2" % space, b"Content-Length: 3"))
    check_refuses(
        response(b"Content-Length: 2", b"Transfer-Encoding%b: chunked" % space), BOTH_LENGTHS
    )
    check_refuses(response(b"Transfer-Encoding%b: gzip" % space), OTHER_CODING)


@pytest.mark.parametrize(
    ("rest_of_line", "reason"),
    [
        (b" OK", b"OK"),
        (b" Not what it seems", b"Not what it seems"),
        (b" ", b""),
        (b"", b""),
        (b"  two spaces ", b" two spaces "),
        (b" \ta\xe9\xff", b"\ta\xe9\xff"),
    ],
)
def test_the_reason_is_what_stands_behind_the_status(rest_of_line: bytes, reason: bytes) -> None:
    """It may be empty, and the space before an empty one may be missing."""
    check_reads(
        b"HTTP/1.1 200" + rest_of_line + b"\r\nx: y\r\n\r\n",
        OK._replace(reason=reason, headers=((b"x", b"y"),)),
    )


@pytest.mark.parametrize("status", [200, 204, 299, 304, 404, 500, 599, 600, 999])
def test_a_status_from_200_on_is_final(status: int) -> None:
    """Also one that no RFC names."""
    check_reads(b"HTTP/1.1 %d OK\r\n\r\n" % status, OK._replace(status=status))


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize(
    ("lines", "closes"),
    [
        ([], False),
        ([b"Connection: keep-alive"], False),
        ([b"Connection:"], False),
        ([b"Connection: close"], True),
        ([b"CONNECTION: Close"], True),
        ([b"connection: keep-alive,close"], True),
        ([b"Connection: close", b"Connection: keep-alive"], True),
        ([b"Connection: x", b"a: b", b"Connection: close"], True),
        ([b"X-Connection: close"], False),
    ],
)
def test_a_connection_is_used_again_only_under_http_1_1_without_close(
    version: bytes, lines: list[bytes], closes: bool
) -> None:
    """RFC 9112, section 9.3; a server of HTTP/1.0 is not believed that it keeps a connection."""
    wire = response(*lines).replace(b"HTTP/1.1", b"HTTP/" + version)
    head = read([wire])
    assert head is not None
    assert (head.version, head.closes) == (version, closes or version == b"1.0")
    check_reads(wire, head)


@pytest.mark.parametrize(
    "early",
    [b"x", b"\n", b"\r\n\r\n", b"\x00\xff", b"HTTP/1.1 500 No\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"],
)
def test_what_comes_behind_the_head_is_kept_whatever_it_looks_like(early: bytes) -> None:
    """The body's first bytes may come with the head: none of them is lost, or read as a head."""
    check_reads(response(b"x: y") + early, OK._replace(headers=((b"x", b"y"),), early=early))


# --- responses: how long the body is
# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([b"Content-Length: 0"], b"0"),
        ([b"content-length:5"], b"5"),
        ([b"CONTENT-LENGTH: \t 42 \t"], b"42"),
        ([b"Content-Length: 007"], b"007"),
        ([b"Content-Length: " + b"9" * 18], b"9" * 18),
        ([b"Content-Length: 5, 5"], b"5"),
        ([b"Content-Length: 5 ,\t5,5"], b"5"),
        ([b"Content-Length: 5", b"x: y", b"content-length: 5"], b"5"),
        ([b"Content-Length: 5, 5", b"Content-Length: 5", b"Content-Length: 5,5"], b"5"),
    ],
)
def test_content_length_is_one_number_however_often_it_is_said(
    lines: list[bytes], number: bytes
) -> None:
    """Repeated or listed, it leaves once and with one number, where it stood first (RFC 9112,
    section 6.3, item 5).
    """
    name = lines[0].partition(b":")[0]
    others = tuple((b"x", b"y") for line in lines if line == b"x: y")
    check_reads(
        response(*lines), OK._replace(headers=((name, number), *others), length=int(number))
    )


@pytest.mark.parametrize(
    "value",
    [
        *(
            b"",
            b"+5",
            b"-5",
            b"-0",
            b"5.0",
            b"5e1",
            b"0x5",
            b"1_0",
            b"5 5",
            b"5;",
            b"five",
            b"\xb2",
            "٥".encode(),
        ),
        *(
            b"9" * 19,
            b"0" * 19,
            b"9" * 5000,
            b"5, 6",
            b"5,",
            b",5",
            b",",
            b"5,,5",
            b"5, 05",
            b"5, x",
            b"5,5,6",
        ),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_content_length_that_is_not_one_number_is_refused(value: bytes) -> None:
    """Not digits, too many of them, or a list with anything else in it: two readers could take
    different lengths.
    """
    if len(value) < 100:
        check_refuses(response(b"Content-Length: " + value))
    with pytest.raises(ProtocolFailure, match=f"^{re.escape(NOT_ACCEPTABLE)}$"):
        read([response(b"x: y", b"content-length:" + value)])


@pytest.mark.parametrize(
    ("first", "second"),
    [(b"5", b"6"), (b"5", b"05"), (b"5", b"5, 6"), (b"5, 5", b"6"), (b"5", b""), (b"", b"5")],
)
def test_two_content_lengths_that_differ_are_refused(first: bytes, second: bytes) -> None:
    """Also when they are the same number in other digits: compared is what was said, as h11 does."""
    check_refuses(response(b"Content-Length: " + first, b"x: y", b"Content-Length: " + second))


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"transfer-encoding:CHUNKED",
        b"TRANSFER-ENCODING: \tChunked \t",
    ],
)
def test_a_chunked_response_says_so_in_any_case(line: bytes) -> None:
    """The header stays as it came."""
    name, _, value = line.partition(b":")
    check_reads(response(line), OK._replace(headers=((name, value.strip()),), chunked=True))


@pytest.mark.parametrize(
    "lines",
    [
        [b"Transfer-Encoding: gzip"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding:"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: chunked, gzip"],
        [b"Transfer-Encoding: chunked, chunked"],
        [b"Transfer-Encoding: chunked,"],
        [b"Transfer-Encoding: ,chunked"],
        [b"Transfer-Encoding: chunked;q=1"],
        [b'Transfer-Encoding: "chunked"'],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding: chunked\xa0"],
        [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: chunked", b"x: y", b"transfer-encoding: gzip"],
        [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
    ],
)
def test_a_transfer_encoding_that_is_not_chunked_once_is_refused(lines: list[bytes]) -> None:
    """Whoever does not know a coding does not know where the body ends."""
    check_refuses(response(*lines), OTHER_CODING)


@pytest.mark.parametrize("status", [b"200", b"204", b"304", b"500", b"103"])
@pytest.mark.parametrize("turn", [1, -1], ids=["length last", "length first"])
def test_both_length_headers_are_refused_in_either_order(status: bytes, turn: int) -> None:
    """RFC 9112, section 6.3, item 3: an attempt at response splitting, or a broken server; under
    any status.
    """
    lines = [b"Transfer-Encoding: chunked", b"x: y", b"Content-Length: 5"][::turn]
    check_refuses(response(*lines).replace(b"200", status), BOTH_LENGTHS)


def test_headers_that_only_resemble_the_length_headers_say_nothing() -> None:
    """Their names are compared whole."""
    headers = (
        (b"X-Content-Length", b"x"),
        (b"Content-Length-X", b"5"),
        (b"Content_Length", b"5"),
        (b"Transfer-Encodin", b"gzip"),
    )
    check_reads(response(*(b"%b: %b" % header for header in headers)), OK._replace(headers=headers))


# --- responses: what is refused
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"HTTP/2 200 OK",
            b"HTTP/2.0 200 OK",
            b"HTTP/1.2 200 OK",
            b"HTTP/0.9 200 OK",
            b"HTTP/1 200 OK",
            b"HTTP/1.10 200 OK",
        ),
        *(
            b"HTTP/11.1 200 OK",
            b"HTTP/1x1 200 OK",
            b"http/1.1 200 OK",
            b"HTTPS/1.1 200 OK",
            b"ICY 200 OK",
            b"200 OK",
            b"hello",
        ),
        *(
            b" HTTP/1.1 200 OK",
            b"HTTP/1.1  200 OK",
            b"HTTP/1.1\t200 OK",
            b"HTTP/1.1 200\tOK",
            b"HTTP /1.1 200 OK",
            b"HTTP/1.1",
        ),
        *(
            b"HTTP/1.1 ",
            b"HTTP/1.1 20 OK",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 200OK",
            b"HTTP/1.1 2x0 OK",
            b"HTTP/1.1 +20 OK",
        ),
        *(
            b"HTTP/1.1 -20 OK",
            b"HTTP/1.1 OK 200",
            b"HTTP/1.1 000 OK",
            b"HTTP/1.1 099 OK",
            b"HTTP/1.1 2\xb20 OK",
            b"\xefHTTP/1.1 200",
        ),
        *(
            b"GET / HTTP/1.1",
            b"x: y",
            b"HTTP/1.1 200 OK\r",
            b"HTTP/1.1 200\r OK",
            b"SSH-2.0-OpenSSH_9.6",
            b"\x15\x03\x01\x00\x02\x02",
        ),
    ],
)
def test_a_status_line_that_is_none_is_refused(line: bytes) -> None:
    """Other versions, other protocols, and whatever lies beside the grammar of RFC 9112, section 4."""
    check_refuses(line + b"\r\n\r\n")
    check_refuses(line + b"\r\nx: y\r\n\r\n")


def test_an_empty_line_before_the_status_line_is_refused() -> None:
    """A client skips none: it would be the rest of another response."""
    check_refuses(b"\r\n" + response())
    check_refuses(b"\r\n\r\n" + response())


def test_a_name_with_a_character_that_is_none_of_a_token_is_refused() -> None:
    """At its beginning, in it, and at its end; only white space before the colon is removed."""
    for code in range(256):
        if code in TOKEN_BYTES or code in b":\n":
            continue
        for line in (b"%ca: v", b"a%cb: v", b"a%c: v", b"%c: v"):
            if code in b"\t " and line == b"a%c: v":
                continue
            with pytest.raises(ProtocolFailure, match=f"^{re.escape(NOT_ACCEPTABLE)}$"):
                read([response(b"x: y", line % code)])
    check_refuses(response(b"a\x00b: v"))
    check_refuses(response(b"a\xe9b: v"))


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"no colon",
            b": no name",
            b":",
            b" : b",
            b"a\x0b: b",
            b"a\xa0: b",
            b"a b: c",
            b"a b : c",
            b"\x0ba: b",
            b'"a": b',
        ),
        b"a(b): c",
    ],
)
def test_a_field_line_that_is_none_is_refused_wherever_it_stands(line: bytes) -> None:
    """First, between others and last."""
    for lines in ([line], [line, b"x: y"], [b"x: y", line, b"x: y"], [b"x: y", line]):
        check_refuses(response(*lines))


@pytest.mark.parametrize("fold", [b" folded", b"\tfolded", b" ", b"\t", b" a: b", b"  "])
def test_a_folded_line_is_refused(fold: bytes) -> None:
    """obs-fold (RFC 9112, section 5.2): one reader would take it for a part of the value, another
    for a header.
    """
    check_refuses(response(fold))
    check_refuses(response(b"x: y", fold))
    check_refuses(response(b"x: y", fold, b"z: 1"))
    check_refuses(b"HTTP/1.1 100 Continue\r\nx: y\r\n" + fold + b"\r\n\r\n" + response())


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_character_is_refused_wherever_it_stands(control: bytes) -> None:
    """NUL, bare CR, bare LF, DEL and all the others: in the status line, in a value, at its ends,
    and in an empty one.
    """
    check_refuses(response().replace(b"OK", b"O" + control + b"K"))
    for value in (b"a%bb", b"%ba", b"a%b", b"%b", b" %b ", b"a%b b: c"):
        check_refuses(response(b"x: " + value % control, b"y: z"))


def test_lf_alone_ends_no_line_of_a_head() -> None:
    """Each line's end in turn, and all of them: where one reader sees a line, another must not see
    two.
    """
    wire = response(b"a: b", b"c: d")
    ends = [match.start() for match in re.finditer(rb"\r\n", wire)]
    assert len(ends) == 4
    for end in ends:
        check_refuses(wire[:end] + wire[end + 1 :] + b"\r\n\r\n")
        check_refuses(wire[:end] + b"\n" + wire[end:] + b"\r\n\r\n")
    check_refuses(wire.replace(b"\r\n", b"\n"))
    check_refuses(wire.replace(b"\r\n", b"\n\r") + b"\n")


@pytest.mark.parametrize("control", [b"\r", b"\r\r", b"\x0b", b"\x85\r"])
def test_cr_alone_ends_no_line_of_a_head(control: bytes) -> None:
    """Nor anything else that some call a line's end."""
    check_refuses(b"HTTP/1.1 200 OK" + control + b"a: b\r\n\r\n")
    check_refuses(response(b"a: b" + control + b"c: d"))


@pytest.mark.parametrize(
    "beginning",
    [b"\n", b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\r\na: b\n", b"HTTP/1.1 200 OK\r\na: b\r\n\n"],
)
def test_a_bare_lf_is_refused_as_soon_as_it_is_seen(beginning: bytes) -> None:
    """A server that ends its lines so would never send the empty line that is waited for."""
    check_refuses(beginning)


# --- responses: limits and informational ones
# -------------------------------------------------------------------------------


def long_head(size: int) -> bytes:
    """A head of so many bytes, its empty line included."""
    line = b"x: " + b"y" * 1000
    count = (size - 100) // (len(line) + 2)
    head = response(*[line] * count, b"z: ")
    return head[:-4] + b"z" * (size - len(head)) + head[-4:]


@pytest.mark.parametrize("step", [1_000_000, 65536, 65535, 16384, 1009])
def test_a_head_of_exactly_the_limit_is_read_and_one_byte_more_is_not(step: int) -> None:
    """However large the reads are, and whatever comes behind: the body does not count."""
    for early in (b"", b"x" * 200_000):
        wire = long_head(MAX_HEAD_BYTES) + early
        head = read([wire[at : at + step] for at in range(0, len(wire), step)])
        assert head is not None
        assert (head.headers[-1][0], head.early) == (b"z", early)
        wire = long_head(MAX_HEAD_BYTES + 1) + early
        with pytest.raises(ProtocolFailure, match=f"^{TOO_LONG}$"):
            read([wire[at : at + step] for at in range(0, len(wire), step)])


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\nx: ",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nx: ",
    ],
)
def test_a_head_without_an_end_is_refused_when_it_passes_the_limit(beginning: bytes) -> None:
    """Not earlier, and with the very byte that is too many: what is kept of it is bounded."""
    reader = HeadReader()
    line = beginning.rpartition(b"\r\n\r\n")[2]
    assert reader.receive(beginning + b"x" * (MAX_HEAD_BYTES - len(line))) is None
    with pytest.raises(ProtocolFailure, match=f"^{TOO_LONG}$"):
        reader.receive(b"x")


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 100\r\n\r\n",
        b"HTTP/1.0 102 Processing\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 199 x\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_informational_responses_are_skipped(before: bytes) -> None:
    """None of their headers is the final response's, and no body is looked for behind them."""
    check_reads(
        before + response(b"a: b") + b"body", OK._replace(headers=((b"a", b"b"),), early=b"body")
    )


def test_an_informational_response_alone_is_no_head() -> None:
    """The final one is still to come."""
    for pieces in splits(b"HTTP/1.1 100 Continue\r\n\r\n" * 2):
        assert read(pieces) is None


@pytest.mark.parametrize("step", [1, 25, 1000, 1_000_000])
def test_64_informational_responses_are_skipped_and_no_more(step: int) -> None:
    """A server must not keep us busy for ever, in one read or in many."""
    for count in (64, 65):
        wire = b"HTTP/1.1 100 Continue\r\n\r\n" * count + response() + b"body"
        pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
        if count == 64:
            assert read(pieces) == OK._replace(early=b"body")
        else:
            with pytest.raises(ProtocolFailure, match=f"^{TOO_MANY}$"):
                read(pieces)


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize("behind", [b"", response(), b"\x81\x05hello"])
def test_a_switch_of_protocols_is_refused(before: bytes, behind: bytes) -> None:
    """101 was not asked for, and what comes behind it is not HTTP."""
    check_refuses(
        before
        + b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"
        + behind,
        SWITCHED,
    )


@pytest.mark.parametrize("line", [b"bad", b" folded: x", b"x: \x00", b"Content-Length: x"])
def test_an_informational_response_must_be_as_well_formed_as_any(line: bytes) -> None:
    """What is skipped is read all the same: else one could hide a response in it."""
    check_refuses(b"HTTP/1.1 100 Continue\r\n" + line + b"\r\n\r\n" + response())


# --- requests: heads
# --------------------------------------------------------------------------------------------------------


def check_not_written(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """The request is refused, in words that hold nothing of it."""
    with pytest.raises(BadRequest) as caught:
        encode_head(method, target, headers)
    assert str(caught.value) in (
        "the method, the target or a header of the request cannot be written as HTTP/1.1",
        "a request has one Host header",
    )


def test_a_request_is_written_as_given() -> None:
    """Method, target and headers byte for byte, in their order, duplicates and the names' case
    included.
    """
    headers = [
        (b"X-B", b"1"),
        (b"Host", b"h:80"),
        (b"x-b", b"2"),
        (b"empty", b""),
        (b"t", b"a\tb \x80\xff"),
        (b"X-B", b"1"),
    ]
    assert encode_head("PATCH", b"/a?b=%20&c=[]|~", headers) == (
        b"PATCH /a?b=%20&c=[]|~ HTTP/1.1\r\nX-B: 1\r\nHost: h:80\r\nx-b: 2\r\nempty: \r\nt: a\tb \x80\xff\r\nX-B: 1\r\n\r\n"
    )


@pytest.mark.parametrize("method", ["GET", "get", "M-SEARCH", "!#$%&'*+-.^_`|~09azAZ"])
@pytest.mark.parametrize(
    "target", [b"/", b"*", b"http://h/", b"h:80", b"//", bytes(range(0x21, 0x7F))]
)
def test_every_method_and_target_that_may_be_written_is(method: str, target: bytes) -> None:
    """A token, and visible characters."""
    assert (
        encode_head(method, target, [HOST])
        == method.encode() + b" " + target + b" HTTP/1.1\r\nhost: h\r\n\r\n"
    )


@pytest.mark.parametrize(
    "method",
    [
        *(
            "",
            " ",
            "GET ",
            " GET",
            "GET /",
            "G T",
            "GET\r\n",
            "GET\n",
            "\r\nGET",
            "GET / HTTP/1.1\r\nx: y\r\n\r\nGET",
            "G\x00T",
        ),
        *("G\tT", "GET:", "G/T", "GÉT", "\u2028", "\ud800", "GET\x7f", "(GET)"),
    ],
)
def test_a_method_that_is_no_token_is_refused(method: str) -> None:
    """It could begin another request, or be a target."""
    check_not_written(method, b"/", [HOST])


@pytest.mark.parametrize(
    "target",
    [
        *(
            b"",
            b" ",
            b"/a b",
            b"/ ",
            b" /",
            b"/\r\n",
            b"/\n",
            b"/\r",
            b"/\t",
            b"/\x00",
            b"/\x7f",
            b"/\x80",
            "/é".encode(),
        ),
        *(
            b"/ HTTP/1.1",
            b"/ HTTP/1.1\r\nhost: evil\r\n\r\nGET /",
            b"/ HTTP/1.1\r\nx: y",
            b"/ HTTP/1.1\nx: y",
        ),
    ],
)
def test_a_target_that_is_not_visible_characters_is_refused(target: bytes) -> None:
    """It could end its line, or seem to end with another version."""
    check_not_written("GET", target, [HOST])


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"",
            b" ",
            b"a ",
            b" a",
            b"a b",
            b"\ta",
            b"a:",
            b":a",
            b"a:b",
            b"a: b",
            b"host:evil",
            b"transfer-encoding:chunked,",
        ),
        *(
            b"a\r\n",
            b"\r\na",
            b"a\nb",
            b"a\rb",
            b"a: b\r\nc",
            b"a\r\n\r\nGET / HTTP/1.1\r\nhost",
            b"a\x00",
            b"\xe9",
            b"a\x7f",
        ),
    ],
)
def test_a_header_cannot_be_smuggled_in_a_name(name: bytes) -> None:
    """What would be read as another name, as two lines, or as another request is not written."""
    for headers in ([HOST, (name, b"v")], [(name, b"v"), HOST], [(b"x", b"y"), (name, b""), HOST]):
        check_not_written("GET", b"/", headers)


def test_each_character_of_a_name_is_one_of_a_token() -> None:
    """All 256 of them: those of a token are written, and no other."""
    written = set()
    for code in range(256):
        name = b"a%cb" % code
        try:
            head = encode_head("GET", b"/", [HOST, (name, b"v")])
        except BadRequest:
            continue
        written.add(code)
        assert head == b"GET / HTTP/1.1\r\nhost: h\r\n" + name + b": v\r\n\r\n"
    assert bytes(sorted(written)) == bytes(sorted(TOKEN_BYTES))


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_character_in_a_value_is_refused(control: bytes) -> None:
    """In it, before it, behind it, and alone; a Host's as well."""
    for value in (b"a%bb", b"%ba", b"a%b", b"%b"):
        check_not_written("GET", b"/", [HOST, (b"x", value % control)])
        check_not_written("GET", b"/", [(b"host", value % control)])


@pytest.mark.parametrize(
    "value",
    [
        b"v\r\nx: y",
        b"v\nx: y",
        b"v\r\n folded",
        b"\r\n",
        b"v\r\n",
        b"v\r\n\r\nGET /evil HTTP/1.1\r\nhost: h",
        b"v\r\n\r\n",
        b"\r\nx: y",
    ],
)
def test_a_header_cannot_be_smuggled_in_a_value(value: bytes) -> None:
    """A value that would begin a line of its own is refused, although each of its lines is good in
    itself.
    """
    for headers in (
        [HOST, (b"a", value)],
        [(b"a", value), HOST],
        [(b"host", value)],
        [(b"a", value)],
    ):
        check_not_written("GET", b"/", headers)


@pytest.mark.parametrize("name", [b"host", b"Host", b"HOST"])
@pytest.mark.parametrize("value", [b"h", b"", b"[::1]:8080"])
def test_one_host_is_written_in_any_case_also_an_empty_one(name: bytes, value: bytes) -> None:
    """RFC 9112, section 3.2: a target without an authority has an empty Host."""
    assert encode_head(
        "GET", b"/", [(b"x", b"y"), (name, value)]
    ) == b"GET / HTTP/1.1\r\nx: y\r\n%b: %b\r\n\r\n" % (
        name,
        value,
    )


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x", b"y")],
        [(b"x-host", b"h")],
        [HOST, HOST],
        [HOST, (b"x", b"y"), (b"HoSt", b"evil")],
        [HOST] * 3,
    ],
)
def test_no_host_or_more_than_one_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """Which of two is meant, others might see otherwise."""
    check_not_written("GET", b"/", headers)


# --- requests: bodies
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [[], [HOST, (b"x-content-length", b"5")], [(b"content-length", b"0")]]
)
def test_a_request_that_announces_nothing_has_no_body(headers: list[tuple[bytes, bytes]]) -> None:
    """Nothing is written, not even for an end, and a body would be the next request."""
    encoder = BodyEncoder(headers)
    assert (encoder.left, encoder.data(b""), encoder.end()) == (0, b"", b"")
    with pytest.raises(
        BadRequest, match=r"^the body of the request is longer than its Content-Length$"
    ):
        encoder.data(b"x")


@pytest.mark.parametrize("name", [b"content-length", b"Content-Length", b"CONTENT-LENGTH"])
def test_a_body_of_announced_length_goes_out_as_it_is(name: bytes) -> None:
    """Piece by piece; `left` says what is missing."""
    encoder = BodyEncoder([HOST, (name, b"11")])
    assert encoder.left == 11
    assert (encoder.data(b"hello"), encoder.left) == (b"hello", 6)
    assert (encoder.data(b""), encoder.left) == (b"", 6)
    assert (encoder.data(b" world"), encoder.left) == (b" world", 0)
    assert (encoder.data(b""), encoder.end()) == (b"", b"")


@pytest.mark.parametrize(
    ("length", "pieces"), [(5, [b"hello!"]), (5, [b"hello", b"!"]), (0, [b"x"]), (1, [b"", b"ab"])]
)
def test_a_body_longer_than_announced_is_refused_before_it_leaves(
    length: int, pieces: list[bytes]
) -> None:
    """The piece that is too long is not cut; and there is no end that would make it good."""
    encoder = BodyEncoder([(b"content-length", b"%d" % length)])
    for piece in pieces[:-1]:
        assert encoder.data(piece) == piece
    with pytest.raises(
        BadRequest, match=r"^the body of the request is longer than its Content-Length$"
    ):
        encoder.data(pieces[-1])
    with pytest.raises(BadRequest):
        encoder.end()


@pytest.mark.parametrize("pieces", [[], [b""], [b"hell"], [b"he", b"ll"]])
def test_a_body_shorter_than_announced_cannot_end(pieces: list[bytes]) -> None:
    """The upstream would take the next request for its rest."""
    encoder = BodyEncoder([(b"content-length", b"5")])
    for piece in pieces:
        encoder.data(piece)
    with pytest.raises(
        BadRequest, match=r"^the body of the request is shorter than its Content-Length$"
    ):
        encoder.end()


@pytest.mark.parametrize(
    ("name", "value"), [(b"transfer-encoding", b"chunked"), (b"Transfer-Encoding", b"Chunked")]
)
def test_a_body_of_unknown_length_goes_out_in_chunks(name: bytes, value: bytes) -> None:
    """Each piece is one, its size in hexadecimal digits; an empty piece is none, since it would be
    the end.
    """
    encoder = BodyEncoder([HOST, (name, value)])
    assert encoder.left is None
    assert encoder.data(b"hello") == b"5\r\nhello\r\n"
    assert encoder.data(b"") == b""
    assert encoder.data(b"0\r\n\r\n") == b"5\r\n0\r\n\r\n\r\n"
    assert encoder.data(b"x" * 0xABC) == b"abc\r\n" + b"x" * 0xABC + b"\r\n"
    assert encoder.end() == b"0\r\n\r\n"
    assert encoder.left is None


def test_a_chunked_body_may_be_empty() -> None:
    """The end alone."""
    assert BodyEncoder([(b"transfer-encoding", b"chunked")]).end() == b"0\r\n\r\n"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"gzip",
        b"identity",
        b"gzip, chunked",
        b"chunked, chunked",
        b"chunked ",
        b" chunked",
        b"chunked\r\n",
        b"chunked;a=b",
    ],
)
def test_a_transfer_encoding_other_than_chunked_is_refused(value: bytes) -> None:
    """It would be announced and not done."""
    with pytest.raises(BadRequest, match=r"^Transfer-Encoding can only be chunked$"):
        BodyEncoder([HOST, (b"Transfer-Encoding", value)])


@pytest.mark.parametrize(
    "value",
    [b"", b"+5", b"-5", b" 5", b"5 ", b"5, 5", b"0x5", b"1_0", b"5\r\n", b"\xb2", b"9" * 19, b"x"],
)
def test_a_content_length_that_is_no_number_is_refused(value: bytes) -> None:
    """Digits, and no more of them than a length can have."""
    with pytest.raises(BadRequest, match=r"^Content-Length is not a number$"):
        BodyEncoder([HOST, (b"Content-Length", value)])
    assert BodyEncoder([(b"content-length", b"9" * 18)]).left == 10**18 - 1


CHUNKED, LENGTH = (b"Transfer-Encoding", b"chunked"), (b"content-length", b"5")


@pytest.mark.parametrize(
    "headers",
    [
        *(
            [LENGTH, CHUNKED],
            [CHUNKED, LENGTH],
            [CHUNKED, HOST, LENGTH],
            [LENGTH, LENGTH],
            [CHUNKED, CHUNKED],
        ),
        *(
            [CHUNKED, (b"content-length", b"0")],
            [LENGTH, (b"Content-Length", b"6")],
            [CHUNKED, LENGTH, CHUNKED],
        ),
    ],
    ids=lambda headers: " ".join(name.decode() for name, _ in headers),
)
def test_a_request_that_announces_its_length_twice_is_refused(
    headers: list[tuple[bytes, bytes]],
) -> None:
    """In either order and in any combination: two servers could see two different requests (RFC
    9112, section 6.3).
    """
    with pytest.raises(BadRequest, match=r"^the request announces its length more than once$"):
        BodyEncoder(headers)


@pytest.mark.parametrize(
    "wire",
    [b"\x15\x03\x01\x00\x02\x02\x46", b"SSH-2.0-x\r\n", b"HTTP/2.0 200 OK", b"\r\nHTTP/1.1 200 OK"],
)
def test_what_does_not_begin_like_http_1_is_refused_at_once(wire: bytes) -> None:
    """Who speaks TLS, say, may wait for us to go on: its first byte that cannot be is enough."""
    with pytest.raises(ProtocolFailure):
        read([wire[at : at + 1] for at in range(len(wire))])
    with pytest.raises(ProtocolFailure):
        read([wire])
