"""Body framing: every case whole, byte by byte and split at every position, at the start of a
buffer and after a prefix. `Chunked.split` is compared with `frame` in each of these cases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import pytest

from proxy.errors import ProtocolFailure, Truncated
from proxy.http.body import (
    MAX_CHUNK_HEADER_BYTES,
    MAX_TRAILER_BYTES,
    Chunked,
    ContentLength,
    Framing,
    Split,
    UntilClose,
)

PREFIX = b"carried over: "
WHOLE_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")


def feed(framing: Framing, piece: bytes, prefix: bytes = b"") -> bytes:
    """Frame one read after `prefix`; return its body bytes.

    Nothing outside `[start, end)` changes, and after a prefix the body joins it.
    """
    behind = b"\xaa<not of this read>\xaa"
    start, end = len(prefix), len(prefix) + len(piece)
    buffer = bytearray(prefix + piece + behind)
    first, last = framing.frame(buffer, start, end)
    assert start <= first <= last <= end
    assert not start or first == start
    assert (buffer[:start], buffer[end:]) == (prefix, behind)
    buffer.append(0)  # raises BufferError if a view is left
    return bytes(buffer[first:last])


def feed_all(framing: Framing, pieces: Sequence[bytes], prefix: bytes = b"") -> bytes:
    return b"".join([feed(framing, piece, prefix) for piece in pieces])


def splits(wire: bytes) -> Iterator[list[bytes]]:
    """The bytes whole, one by one, and in two at every position."""
    yield [wire]
    yield [wire[i : i + 1] for i in range(len(wire))]
    for i in range(1, len(wire)):
        yield [wire[:i], wire[i:]]


def feed_split(framing: Chunked, piece: bytes) -> tuple[bytes, bytes, ProtocolFailure | None]:
    """Split one read; return all data in it, the chunks that stayed whole, and the failure.

    Those chunks are whole, without extensions, of four bytes at least and unchanged; the ranges
    follow each other; nothing after the read changes.
    """
    behind = b"\r\n4\r\nold!\r\n"  # the previous read may have left anything there
    buffer = bytearray(piece + behind)
    failure = None
    try:
        split = framing.split(buffer, len(piece))
    except ProtocolFailure as error:
        split, failure = framing.was_split, error
    lead, wire, end_of_wire, first, last, size = split
    assert buffer[len(piece) :] == behind
    assert 0 <= lead <= wire <= end_of_wire <= first <= last <= len(piece)
    assert wire == (lead + 2 if lead else 0)
    chunks = bytes(buffer[wire:end_of_wire])
    assert (chunks, buffer[:lead]) == (piece[wire:end_of_wire], piece[:lead])
    data = bytes(buffer[:lead])
    at = 0
    while at < len(chunks):
        header = WHOLE_CHUNK.match(chunks, at)
        assert header is not None
        at = header.end() + int(header[1], 16) + 2
        assert chunks[at - 2 : at] == b"\r\n"
        assert at - 2 - header.end() >= 4
        data += chunks[header.end() : at - 2]
    assert at == len(chunks)
    data += buffer[first:last]
    assert len(data) == size
    buffer.append(0)
    return data, chunks, failure


def feed_frame(framing: Chunked, piece: bytes) -> tuple[bytes, ProtocolFailure | None]:
    buffer = bytearray(piece)
    try:
        first, last = framing.frame(buffer, 0, len(piece))
    except ProtocolFailure as error:
        first, last = framing.framed
        return bytes(buffer[first:last]), error
    return bytes(buffer[first:last]), None


def check_split_of(pieces: Sequence[bytes]) -> None:
    """After each read, `split` has found what `frame` finds: data, state and failure."""
    ours, reference = Chunked(), Chunked()
    for piece in pieces:
        data, _, failure = feed_split(ours, piece)
        expected, expected_failure = feed_frame(reference, piece)
        assert data == expected, pieces
        assert (ours.complete, ours.surplus) == (reference.complete, reference.surplus), pieces
        assert repr(failure) == repr(expected_failure), pieces
        if failure is not None:
            return
    if ours.complete:
        ours.eof()
    else:
        with pytest.raises(Truncated):
            ours.eof()


def check_reads(
    make: Callable[[], Framing],
    wire: bytes,
    body: bytes,
    *,
    complete: bool = True,
    surplus: bool = False,
) -> None:
    """However it is cut, and wherever in the buffer it is, `wire` is read as `body`."""
    for pieces in splits(wire):
        if make is Chunked:
            check_split_of(pieces)
        for prefix in (b"", b"x", PREFIX):
            framing = make()
            got = feed_all(framing, pieces, prefix)
            assert (got, framing.complete, framing.surplus) == (body, complete, surplus), pieces


def check_refuses(wire: bytes) -> None:
    """However it is cut, and wherever in the buffer it is, a chunked body is refused."""
    for pieces in splits(wire):
        check_split_of(pieces)
        for prefix in (b"", PREFIX):
            framing = Chunked()
            with pytest.raises(ProtocolFailure):
                feed_all(framing, pieces, prefix)
            assert not framing.complete


# Content-Length, and until close


@pytest.mark.parametrize("body", [b"", b"h", b"0\r\n\r\nhello\n", bytes(range(256))])
@pytest.mark.parametrize("extra", [b"", b"!", b"HTTP/1.1 200 OK\r\n"])
def test_a_content_length_body_has_that_length(body: bytes, extra: bytes) -> None:
    """All its bytes are body, the last one completes it, and what follows is surplus."""
    check_reads(lambda: ContentLength(len(body)), body + extra, body, surplus=bool(extra))
    check_reads(lambda: ContentLength(len(body) + 1), body, body, complete=False)


@pytest.mark.parametrize("length", range(6))
def test_only_a_whole_content_length_body_survives_the_end_of_the_connection(length: int) -> None:
    framing = ContentLength(5)
    feed(framing, b"hello"[:length])
    if length < 5:
        with pytest.raises(Truncated, match=f"{5 - length} bytes before the end"):
            framing.eof()
    else:
        framing.eof()
    assert framing.complete is (length == 5)


def test_surplus_stays_flagged() -> None:
    framing = ContentLength(1)
    feed(framing, b"ab")
    feed(framing, b"")
    assert framing.surplus


@pytest.mark.parametrize("wire", [b"", b"5\r\nhello\r\n0\r\n\r\n"])
def test_until_close_is_completed_by_the_end_alone(wire: bytes) -> None:
    check_reads(UntilClose, wire, wire, complete=False)
    framing = UntilClose()
    feed(framing, wire)
    framing.eof()
    assert (framing.complete, framing.surplus) == (True, False)


# Chunked


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n1\r\n,\r\n6\r\n world\r\n0\r\n\r\n", b"hello, world"),
        (b"1\r\na\r\n" * 20 + b"0\r\n\r\n", b"a" * 20),
        (b"2\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r"),  # data that looks like framing
        (b"a\r\n0123456789\r\n00A\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (
            b"1c\r\n" + b"x" * 28 + b"\r\n1C\r\n" + b"y" * 28 + b"\r\n0\r\n\r\n",
            b"x" * 28 + b"y" * 28,
        ),
        (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
        (b"5;a\r\nhello\r\n0;b=c\r\n\r\n", b"hello"),
        (b'5;q="x;y";\xff\t\r\nhello\r\n0;\r\n\r\n', b"hello"),
        (b"5 \t\r\nhello\r\n0 \r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n0\r\nA:\r\nb: \xff, c\t\r\n!#$: x\r\nd \t: e\r\n\r\n", b"hello"),
    ],
)
def test_a_chunked_body_is_read(wire: bytes, body: bytes) -> None:
    """Sizes in any case with leading zeros; extensions and trailers are not body."""
    check_reads(Chunked, wire, body)


@pytest.mark.parametrize("extra", [b"!", b"HTTP/1.1 200 OK\r\n\r\n", b"0\r\n\r\n"])
def test_bytes_after_a_chunked_body_are_surplus(extra: bytes) -> None:
    check_reads(Chunked, b"5\r\nhello\r\n0\r\n\r\n" + extra, b"hello", surplus=True)
    check_reads(Chunked, b"0\r\nx: y\r\n\r\n" + extra, b"", surplus=True)


def test_the_largest_size_is_accepted() -> None:
    check_reads(Chunked, b"FFFFFFFFFFFFFFFF\r\nhello", b"hello", complete=False)


MIXED = (
    b"4\r\nabcd\r\n05\r\n\r\n0\r\n\r\n6;x=1\r\nfghijk\r\n3\r\nlmn\r\n0A\r\nopqrstuvwx\r\n"
    b"4 \r\nyz12\r\n4\r\n3456\r\n0;y\r\nt: 1\r\n\r\n"
)
MIXED_BODY = b"abcd\r\n0\r\nfghijklmnopqrstuvwxyz123456"


def test_a_chunked_body_in_three_reads_cut_anywhere() -> None:
    """Two cuts at once, of a body with every kind of chunk."""
    for one in range(len(MIXED)):
        for two in range(one, len(MIXED)):
            pieces = [MIXED[:one], MIXED[one:two], MIXED[two:]]
            framing = Chunked()
            assert feed_all(framing, pieces, b"p") == MIXED_BODY
            assert framing.complete
            check_split_of(pieces)


def test_many_chunks_of_one_read_are_joined_after_the_carried_bytes() -> None:
    data = [bytes([65 + i % 26]) * (i % 17 + 1) for i in range(200)]
    wire = b"".join(b"%x;n=%d\r\n%b\r\n" % (len(item), i, item) for i, item in enumerate(data))
    assert feed(Chunked(), wire, PREFIX) == b"".join(data)


@pytest.mark.parametrize("length", range(21))
def test_the_end_of_the_connection_truncates_a_chunked_body(length: int) -> None:
    """Up to the very last LF."""
    wire = b"5\r\nhello\r\n0\r\nx: y\r\n\r\n"
    framing = Chunked()
    feed(framing, wire[:length])
    with pytest.raises(Truncated):
        framing.eof()
    feed(framing, wire[length:])
    framing.eof()
    assert framing.complete


@pytest.mark.parametrize(
    "size",
    [
        *b"+5|-5|0x5|0X5|1_0| 5|\t5||;x|g|5g|5.|5,5|5 5|5 ;x|\xb25|\x005|5;\x00|5;a\rb|5\r".split(
            b"|"
        ),
        *(
            b"00000000000000005",
            b"10000000000000000",
            b"5;\x7f",
            b"5\n",
            b"5;x\n",
            b"\n5",
            b"\r\n5",
        ),
    ],
)
def test_a_malformed_chunk_header_is_refused(size: bytes) -> None:
    """1 to 16 hexadecimal digits, perhaps extensions, and CRLF; `int(x, 16)` accepts more."""
    check_refuses(size + b"\r\nhello\r\n")
    check_refuses(b"1\r\na\r\n" + size + b"\r\nhello\r\n")


@pytest.mark.parametrize("wire", [b"5\nhello\r\n", b"5\rhello\r\n", b"0\n\n"])
def test_a_line_end_that_is_not_crlf_is_refused(wire: bytes) -> None:
    check_refuses(wire)


@pytest.mark.parametrize(
    "behind", [b"0\r\n\r\n", b"\n0\r\n\r\n", b"\r0\r\n\r\n", b"xx\r\n", b"\r\r", b"!\n", b" \r\n"]
)
def test_data_without_crlf_after_it_is_refused(behind: bytes) -> None:
    check_refuses(b"5\r\nhello" + behind)


@pytest.mark.parametrize(
    "trailers",
    (
        b"x\r\n|: y\r\n|x\xff: y\r\n|x: \x00\r\n|x: a\rb\r\n|x: y\n\r\n|\n|x: y\r\n\n|"
        b" x: y\r\n|x: y\r\n z\r\n|x: y\r\n\tz\r\n|\r\r\n|content-length: 5\r\n|"
        b"Content-Length: 5\r\n|Host : y\r\n|HOST: x\r\n|"
        b"x: y\r\ntransfer-encoding: chunked\r\n"
    ).split(b"|"),
)
def test_malformed_trailers_are_refused(trailers: bytes) -> None:
    """Also those that would change the framing."""
    check_refuses(b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")


LONG_HEADER = b"5;" + b"x" * (MAX_CHUNK_HEADER_BYTES - 4) + b"\r\n"
LONG_TRAILERS = (b"x: " + b"y" * 1019 + b"\r\n") * 16


@pytest.mark.parametrize("step", [100_000, 61, 1])
@pytest.mark.parametrize(
    ("wire", "limit"),
    [
        (LONG_HEADER + b"hello\r\n0\r\n\r\n", None),
        (b"5;x" + LONG_HEADER[2:] + b"hello\r\n", MAX_CHUNK_HEADER_BYTES),
        (b"5;" + b"x" * 4095, MAX_CHUNK_HEADER_BYTES),
        (b"0" * 4097, MAX_CHUNK_HEADER_BYTES),
        (b"0\r\n" + LONG_TRAILERS + b"\r\n", None),
        (b"0\r\n" + LONG_TRAILERS + b"x:\r\n", MAX_TRAILER_BYTES),
        (b"0\r\nx:" + b"y" * MAX_TRAILER_BYTES, MAX_TRAILER_BYTES),
        (b"0\r\nx:" + b"y" * MAX_TRAILER_BYTES + b"\r\n", MAX_TRAILER_BYTES),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_headers_and_trailers_may_have_their_limit_and_not_a_byte_more(
    wire: bytes, limit: int | None, step: int
) -> None:
    """4,096 and 16,384 bytes with all CRLFs; an endless line is refused before its end."""
    assert (len(LONG_HEADER), len(LONG_TRAILERS)) == (4096, 16384)
    pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
    check_split_of(pieces)
    framing = Chunked()
    if limit is None:
        feed_all(framing, pieces)
        assert framing.complete
    else:
        with pytest.raises(ProtocolFailure, match=f"longer than {limit}"):
            feed_all(framing, pieces)


# Split: whole chunks with their framing


@pytest.mark.parametrize(
    ("before", "piece", "expected"),
    [
        (b"", b"4\r\nabcd\r\n", (0, 0, 9, 9, 9, 4)),
        (b"", b"4\r\nabcd\r\n05\r\nefghi\r\n", (0, 0, 20, 20, 20, 9)),
        (b"", b"4\r\nabcd\r\n7\r\nef", (0, 0, 9, 9, 11, 6)),
        (b"", b"4\r\nabcd\r\n7", (0, 0, 9, 9, 9, 4)),
        (b"", b"4\r\nabcd\r", (0, 0, 0, 3, 7, 4)),
        (b"", b"3\r\nabc\r\n", (0, 0, 0, 3, 6, 3)),
        (b"", b"4\r\nabcd\r\n3\r\nabc\r\n4\r\nefgh\r\n", (0, 0, 9, 9, 16, 11)),
        (b"", b"4;x\r\nabcd\r\n4\r\nabcd\r\n", (0, 0, 0, 5, 13, 8)),
        (b"", b"4\r\nabcd\r\n4;x\r\nabcd\r\n", (0, 0, 9, 9, 13, 8)),
        (b"", b"4 \r\nabcd\r\n", (0, 0, 0, 4, 8, 4)),
        (b"", b"4\r\nabcd\r\n0\r\n\r\n", (0, 0, 9, 9, 9, 4)),
        (b"", b"0\r\n\r\n", (0, 0, 0, 0, 0, 0)),
        (b"4\r\na", b"bcd\r\n4\r\nefgh\r\n", (3, 5, 14, 14, 14, 7)),
        (b"4\r\na", b"bcd\r\n", (3, 5, 5, 5, 5, 3)),
        (b"4\r\na", b"bcd\r\n7\r\nef", (3, 5, 5, 5, 7, 5)),
        (b"4\r\na", b"bcd\r\n3\r\nefg\r\n", (3, 5, 5, 5, 8, 6)),
        (b"4\r\na", b"bcd\r", (0, 0, 0, 0, 3, 3)),
        (b"4\r\na", b"bc", (0, 0, 0, 0, 2, 2)),
    ],
)
def test_split_leaves_whole_chunks_in_place(before: bytes, piece: bytes, expected: Split) -> None:
    """From the first chunk to the last before anything else; all after that is unpacked, so that a
    read leaves in three parts at most.
    """
    framing = Chunked()
    feed_split(framing, before)
    assert framing.split(bytearray(piece), len(piece)) == expected


@pytest.mark.parametrize(
    "before", b"4\r\nabcd|4\r\nabcd\r|4|4\r|4;x=|0\r\n|0\r\nx:|0\r\nx: y\r\n\r".split(b"|")
)
def test_split_unpacks_what_begins_within_framing(before: bytes) -> None:
    for rest in (b"\r\nabcd\r\n4\r\nabcd\r\n", b"\n4\r\nabcd\r\n", b"\n\r\n", b" y\r\n\r\n", b"\n"):
        check_split_of([before, rest])
        check_split_of([before, rest[:1], rest[1:]])


@pytest.mark.parametrize(
    "bad", [b"x\r\n", b"4\r\nabcdef", b"4\nabcd\r\n", b"0\r\nx\r\n", b"0\r\n\n", b"\r\n", b"0" * 17]
)
def test_split_reports_what_precedes_a_failure(bad: bytes) -> None:
    """In `was_split`: the rest of a chunk, whole chunks, unpacked ones."""
    good = b"4\r\nabcd\r\n5\r\nefghi\r\n2\r\njk\r\n3;x\r\nlmn\r\n"
    for cut in range(len(good + bad)):
        check_split_of([(good + bad)[:cut], (good + bad)[cut:]])
    framing = Chunked()
    feed_split(framing, b"6\r\nab")
    data, chunks, failure = feed_split(framing, b"cdef\r\n4\r\nghij\r\n2\r\nkl\r\n" + bad + b"\r\n")
    assert data.startswith(b"cdefghijkl")
    assert chunks == b"4\r\nghij\r\n"
    assert failure is not None


@pytest.mark.parametrize("step", range(1, 12))
@pytest.mark.parametrize("turn", [0, 1])
def test_split_and_frame_share_one_state(step: int, turn: int) -> None:
    framing, data = Chunked(), b""
    for number, at in enumerate(range(0, len(MIXED), step)):
        piece = MIXED[at : at + step]
        data += feed_split(framing, piece)[0] if number % 2 == turn else feed(framing, piece)
    assert (data, framing.complete) == (MIXED_BODY, True)


def test_whole_chunks_are_not_copied() -> None:
    wire = b"".join(b"%x\r\n%b\r\n" % (size, bytes(size)) for size in range(4, 300))
    buffer, end = bytearray(wire), len(wire)
    assert Chunked().split(buffer, end) == (0, 0, end, end, end, sum(range(4, 300)))
    assert buffer == wire
