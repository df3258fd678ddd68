"""Body framing: every case whole, byte by byte and split at every position, at the start of a
buffer and behind a prefix.

`Chunked.split` is compared with `frame` in each of these cases.
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


def feed(framing: Framing, piece: bytes, prefix: bytes = b"") -> bytes:
    """Show one read to a framing, behind `prefix`, as the relay does; the body bytes in it.

    Checks what `frame` promises: nothing outside of `[start, end)` changes, and behind a prefix the
    body joins it.
    """
    behind = b"\xaa<not of this read>\xaa"
    start, end = len(prefix), len(prefix) + len(piece)
    buffer = bytearray(prefix + piece + behind)
    first, last = framing.frame(buffer, start, end)
    assert start <= first <= last <= end
    if start:
        assert first == start
    assert buffer[:start] == prefix
    assert buffer[end:] == behind
    return bytes(buffer[first:last])


def feed_all(framing: Framing, pieces: Sequence[bytes], prefix: bytes = b"") -> bytes:
    """The whole body of several reads."""
    return b"".join([feed(framing, piece, prefix) for piece in pieces])


def splits(wire: bytes) -> Iterator[list[bytes]]:
    """The wire's bytes whole, one by one, and in two at every position."""
    yield [wire]
    yield [wire[i : i + 1] for i in range(len(wire))]
    for i in range(1, len(wire)):
        yield [wire[:i], wire[i:]]


WHOLE_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")


def feed_split(framing: Chunked, piece: bytes) -> tuple[bytes, bytes, ProtocolFailure | None]:
    """Show one read to `split`, as the relay does: all the data in it, the chunks that came whole,
    and why it was refused.

    Checks what `split` promises: those chunks are whole, have no extensions, and hold no less than
    four bytes each, none of them touched; the ranges follow each other; nothing behind the read
    changes.
    """
    behind = b"\r\n4\r\nold!\r\n"  # what the last read left there may look like anything
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
    assert chunks == piece[wire:end_of_wire]
    assert buffer[:lead] == piece[:lead]
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
    buffer.append(0)  # BufferError, if it were exported
    return data, chunks, failure


def feed_frame(framing: Chunked, piece: bytes) -> tuple[bytes, ProtocolFailure | None]:
    """Show one read to `frame`: all the data in it, and why it was refused."""
    buffer = bytearray(piece)
    try:
        first, last = framing.frame(buffer, 0, len(piece))
    except ProtocolFailure as error:
        first, last = framing.framed
        return bytes(buffer[first:last]), error
    return bytes(buffer[first:last]), None


def check_split_of(pieces: Sequence[bytes]) -> None:
    """After each of these reads, `split` has found what `frame` has found: data, completeness,
    surplus, and failure.
    """
    ours, reference = Chunked(), Chunked()
    for piece in pieces:
        data, _, failure = feed_split(ours, piece)
        expected, expected_failure = feed_frame(reference, piece)
        assert data == expected, pieces
        assert (ours.complete, ours.surplus) == (reference.complete, reference.surplus), pieces
        assert (type(failure), str(failure)) == (type(expected_failure), str(expected_failure)), (
            pieces
        )
        if failure is not None:
            return
    for framing in (ours, reference):
        if framing.complete:
            framing.eof()
        else:
            with pytest.raises(Truncated):
                framing.eof()


def check_split(wire: bytes) -> None:
    """However it is cut."""
    for pieces in splits(wire):
        check_split_of(pieces)


def check_reads(
    make: Callable[[], Framing],
    wire: bytes,
    body: bytes,
    *,
    complete: bool = True,
    surplus: bool = False,
) -> None:
    """However it is split, and wherever in the buffer it lies, `wire` is read as `body`."""
    if make is Chunked:
        check_split(wire)
    for prefix in (b"", b"x", PREFIX):
        for pieces in splits(wire):
            framing = make()
            got = feed_all(framing, pieces, prefix)
            assert (got, framing.complete, framing.surplus) == (body, complete, surplus), (
                prefix,
                pieces,
            )


def check_refuses(wire: bytes, kind: type[ProtocolFailure] = ProtocolFailure) -> None:
    """However it is split, and wherever in the buffer it lies, a chunked body of these bytes is
    refused.
    """
    check_split(wire)
    for prefix in (b"", PREFIX):
        for pieces in splits(wire):
            framing = Chunked()
            with pytest.raises(kind):
                feed_all(framing, pieces, prefix)
            assert not framing.complete


@pytest.mark.parametrize("body", [b"h", b"hello", b"0\r\n\r\nhello\n", bytes(range(256))])
def test_a_content_length_body_is_exactly_that_long(body: bytes) -> None:
    """All bytes are body, whatever they look like, and the last one completes it."""
    check_reads(lambda: ContentLength(len(body)), body, body)


def test_a_content_length_body_is_incomplete_before_its_last_byte() -> None:
    check_reads(lambda: ContentLength(6), b"hello", b"hello", complete=False)


@pytest.mark.parametrize("extra", [b"!", b"HTTP/1.1 200 OK\r\n"])
def test_bytes_behind_a_content_length_body_are_no_body_and_flagged(extra: bytes) -> None:
    check_reads(lambda: ContentLength(5), b"hello" + extra, b"hello", surplus=True)


def test_a_body_of_length_0_is_complete_before_anything_came() -> None:
    framing = ContentLength(0)
    assert framing.complete
    framing.eof()
    check_reads(lambda: ContentLength(0), b"?", b"", surplus=True)


def test_surplus_stays_flagged() -> None:
    """A later read that brings nothing does not unflag it."""
    framing = ContentLength(1)
    feed(framing, b"ab")
    feed(framing, b"")
    assert framing.surplus


def test_the_end_of_the_connection_truncates_a_content_length_body() -> None:
    for length in range(5):
        framing = ContentLength(5)
        feed(framing, b"hello"[:length])
        with pytest.raises(Truncated, match=f"{5 - length} bytes before the end"):
            framing.eof()
        assert not framing.complete


def test_the_end_of_the_connection_behind_a_content_length_body_is_fine() -> None:
    framing = ContentLength(5)
    feed(framing, b"hello")
    framing.eof()
    assert framing.complete


def test_until_close_takes_everything_and_only_the_end_completes_it() -> None:
    check_reads(UntilClose, b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", complete=False)
    framing = UntilClose()
    feed(framing, b"hello")
    framing.eof()
    assert framing.complete
    assert not framing.surplus


def test_until_close_may_be_empty() -> None:
    framing = UntilClose()
    framing.eof()
    assert framing.complete


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        pytest.param(b"0\r\n\r\n", b"", id="empty"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one chunk"),
        pytest.param(
            b"5\r\nhello\r\n1\r\n,\r\n6\r\n world\r\n0\r\n\r\n", b"hello, world", id="three chunks"
        ),
        pytest.param(b"1\r\na\r\n" * 20 + b"0\r\n\r\n", b"a" * 20, id="many small chunks"),
        pytest.param(
            b"2\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r", id="data that looks like framing"
        ),
        pytest.param(b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", id="lower case"),
        pytest.param(b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789", id="upper case"),
        pytest.param(
            b"1c\r\n" + b"x" * 28 + b"\r\n1C\r\n" + b"y" * 28 + b"\r\n0\r\n\r\n",
            b"x" * 28 + b"y" * 28,
            id="hex",
        ),
        pytest.param(b"005\r\nhello\r\n000\r\n\r\n", b"hello", id="leading zeros"),
        pytest.param(
            b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello", id="16 digits"
        ),
        pytest.param(b"5;a\r\nhello\r\n0;b=c\r\n\r\n", b"hello", id="extensions"),
        pytest.param(b'5;q="x;y";\xff\t\r\nhello\r\n0;\r\n\r\n', b"hello", id="odd extensions"),
        pytest.param(b"5 \t\r\nhello\r\n0 \r\n\r\n", b"hello", id="space before the CRLF"),
        pytest.param(b"5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", b"hello", id="a trailer"),
        pytest.param(
            b"5\r\nhello\r\n0\r\nA:\r\nb: \xff, c\t\r\n!#$: x\r\n\r\n", b"hello", id="odd trailers"
        ),
        pytest.param(
            b"5\r\nhello\r\n0\r\nA : b\r\nc\t :\r\n\r\n",
            b"hello",
            id="space before a trailer's colon",
        ),
    ],
)
def test_a_chunked_body_is_read(wire: bytes, body: bytes) -> None:
    """Sizes in any case and with leading zeros, extensions and trailers; nothing of them is body."""
    check_reads(Chunked, wire, body)


def test_a_size_of_16_digits_is_taken_at_its_value() -> None:
    """More than any body will have, and still no reason to refuse what has come of it."""
    check_reads(Chunked, b"FFFFFFFFFFFFFFFF\r\nhello", b"hello", complete=False)


@pytest.mark.parametrize("extra", [b"!", b"HTTP/1.1 200 OK\r\n\r\n", b"0\r\n\r\n"])
def test_bytes_behind_a_chunked_body_are_no_body_and_flagged(extra: bytes) -> None:
    check_reads(Chunked, b"5\r\nhello\r\n0\r\n\r\n" + extra, b"hello", surplus=True)
    check_reads(Chunked, b"0\r\nx: y\r\n\r\n" + extra, b"", surplus=True)


def test_a_chunked_body_in_three_reads_split_anywhere() -> None:
    """Two cuts at once, so that a line and its rest can lie in three reads."""
    wire, body = b"0a;e=1\r\n0123456789\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n", b"0123456789abc"
    for one in range(len(wire)):
        for two in range(one, len(wire)):
            framing = Chunked()
            pieces = (wire[:one], wire[one:two], wire[two:])
            assert feed_all(framing, pieces, b"p") == body
            assert framing.complete


def test_many_chunks_of_one_read_are_joined_in_place_behind_the_carried_bytes() -> None:
    """What was carried over and all the data of a read end up as one run of bytes, in the buffer
    they were read into.
    """
    data = [bytes([65 + i % 26]) * (i % 17 + 1) for i in range(200)]
    wire = b"".join(b"%x;n=%d\r\n%b\r\n" % (len(item), i, item) for i, item in enumerate(data))
    buffer = bytearray(PREFIX + wire)
    first, last = Chunked().frame(buffer, len(PREFIX), len(buffer))
    assert first == len(PREFIX)
    assert buffer[:last] == PREFIX + b"".join(data)
    assert len(buffer) == len(PREFIX) + len(wire)


def test_framing_leaves_no_export_behind() -> None:
    """A memoryview that lives on would cost the pool its buffer."""
    for framing in (Chunked(), ContentLength(3), UntilClose()):
        buffer = bytearray(b"..1\r\na\r\n1\r\nb\r\n")
        framing.frame(buffer, 2, len(buffer))
        buffer.append(0)  # BufferError, if it were exported


def test_the_end_of_the_connection_truncates_a_chunked_body_wherever_it_comes() -> None:
    """Up to the very last LF; a last chunk without the empty line behind it is no end."""
    wire = b"5\r\nhello\r\n0\r\nx: y\r\n\r\n"
    for length in range(len(wire)):
        framing = Chunked()
        feed(framing, wire[:length])
        with pytest.raises(Truncated):
            framing.eof()
        assert not framing.complete
    framing = Chunked()
    feed(framing, wire)
    framing.eof()
    assert framing.complete


@pytest.mark.parametrize(
    "size",
    [
        *(
            b"+5",
            b"-5",
            b"0x5",
            b"0X5",
            b"1_0",
            b" 5",
            b"\t5",
            b"",
            b";x",
            b"g",
            b"5g",
            b"5.",
            b"5,5",
            b"5 5",
            b"5 ;x",
        ),
        *(
            b"\xb25",
            b"\x005",
            b"00000000000000005",
            b"10000000000000000",
            b"5;\x00",
            b"5;a\rb",
            b"5\r",
            b"5;\x7f",
        ),
    ],
)
def test_a_chunk_size_that_is_not_1_to_16_hex_digits_is_refused(size: bytes) -> None:
    """`int(x, 16)` would take several of these."""
    check_refuses(size + b"\r\nhello\r\n")
    check_refuses(b"1\r\na\r\n" + size + b"\r\nhello\r\n")


@pytest.mark.parametrize(
    "wire",
    [
        b"5\nhello\r\n",
        b"5;x\nhello\r\n",
        b"\n5\r\nhello\r\n",
        b"\r\n5\r\nhello\r\n",
        b"5\rhello\r\n",
        b"0\n\n",
    ],
)
def test_a_chunk_header_that_ends_with_anything_but_crlf_is_refused(wire: bytes) -> None:
    check_refuses(wire)


@pytest.mark.parametrize(
    "behind", [b"0\r\n\r\n", b"\n0\r\n\r\n", b"\r0\r\n\r\n", b"xx\r\n", b"\r\r", b"!\n", b" \r\n"]
)
def test_data_without_crlf_behind_it_is_refused(behind: bytes) -> None:
    """The sizes are wrong then, and whoever goes on reading reads another message than the sender
    wrote.
    """
    check_refuses(b"5\r\nhello" + behind)


@pytest.mark.parametrize(
    "trailers",
    [
        pytest.param(b"x\r\n", id="no colon"),
        pytest.param(b": y\r\n", id="no name"),
        pytest.param(
            b"Host : y\r\n", id="a name that may not be there, and space before the colon"
        ),
        pytest.param(b"x\xff: y\r\n", id="a name that is no token"),
        pytest.param(b"x: \x00\r\n", id="NUL"),
        pytest.param(b"x: a\rb\r\n", id="bare CR"),
        pytest.param(b"x: y\n\r\n", id="bare LF"),
        pytest.param(b"\n", id="bare LF as the empty line"),
        pytest.param(b"x: y\r\n\n", id="bare LF as the empty line behind a trailer"),
        pytest.param(b" x: y\r\n", id="leading space"),
        pytest.param(b"x: y\r\n z\r\n", id="obs-fold"),
        pytest.param(b"x: y\r\n\tz\r\n", id="obs-fold with a tab"),
        pytest.param(b"content-length: 5\r\n", id="content-length"),
        pytest.param(b"Content-Length: 5\r\n", id="Content-Length"),
        pytest.param(b"x: y\r\ntransfer-encoding: chunked\r\n", id="transfer-encoding"),
        pytest.param(b"HOST: x\r\n", id="host"),
        pytest.param(b"\r\r\n", id="a CR too many"),
    ],
)
def test_malformed_trailers_are_refused(trailers: bytes) -> None:
    """Also those that would say something about the framing, when it is too late."""
    check_refuses(b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n")


def whole_and_trickling(wire: bytes, step: int = 61) -> Iterator[list[bytes]]:
    yield [wire]
    yield [wire[i : i + step] for i in range(0, len(wire), step)]
    yield [wire[i : i + 1] for i in range(len(wire))]


def test_a_chunk_header_may_be_4096_bytes_long_and_no_longer() -> None:
    """Counted with its CRLF, whole and trickling in; an endless one is refused before its end."""
    longest = b"5;" + b"x" * (MAX_CHUNK_HEADER_BYTES - 4) + b"\r\n"
    assert len(longest) == 4096
    for pieces in whole_and_trickling(longest + b"hello\r\n"):
        assert feed_all(Chunked(), pieces) == b"hello"
    for wire in (b"5;x" + longest[2:] + b"hello\r\n", b"5;" + b"x" * 4095, b"0" * 4097):
        for pieces in whole_and_trickling(wire):
            check_split_of(pieces)
            framing = Chunked()
            with pytest.raises(ProtocolFailure, match="longer than 4096"):
                feed_all(framing, pieces)


def test_trailers_may_be_16384_bytes_long_and_no_longer() -> None:
    """Together, whether it is one line or many, whole or trickling in."""
    line = b"x: " + b"y" * 1019 + b"\r\n"
    assert len(line) * 16 == MAX_TRAILER_BYTES
    for pieces in whole_and_trickling(b"0\r\n" + line * 16 + b"\r\n"):
        framing = Chunked()
        feed_all(framing, pieces)
        assert framing.complete
    for trailers in (
        line * 16 + b"x:\r\n",
        b"x:" + b"y" * MAX_TRAILER_BYTES,
        b"x:" + b"y" * MAX_TRAILER_BYTES + b"\r\n",
    ):
        for pieces in whole_and_trickling(b"0\r\n" + trailers):
            check_split_of(pieces)
            framing = Chunked()
            with pytest.raises(ProtocolFailure, match="longer than 16384"):
                feed_all(framing, pieces)


# Split: chunks that came whole, with their framing


MIXED = (
    b"4\r\nabcd\r\n05\r\n\r\n0\r\n\r\n6;x=1\r\nfghijk\r\n3\r\nlmn\r\n0A\r\nopqrstuvwx\r\n4 \r\nyz12\r\n4\r\n3456\r\n"
    b"0;y\r\nt: 1\r\n\r\n"
)


@pytest.mark.parametrize(
    ("before", "piece", "expected"),
    [
        pytest.param(b"", b"4\r\nabcd\r\n", (0, 0, 9, 9, 9, 4), id="one whole chunk"),
        pytest.param(
            b"", b"4\r\nabcd\r\n05\r\nefghi\r\n", (0, 0, 20, 20, 20, 9), id="two whole chunks"
        ),
        pytest.param(
            b"", b"4\r\nabcd\r\n7\r\nef", (0, 0, 9, 9, 11, 6), id="a whole one, and a beginning"
        ),
        pytest.param(
            b"", b"4\r\nabcd\r\n7", (0, 0, 9, 9, 9, 4), id="a whole one, and half a header"
        ),
        pytest.param(b"", b"4\r\nabcd\r", (0, 0, 0, 3, 7, 4), id="a chunk without its last byte"),
        pytest.param(b"", b"3\r\nabc\r\n", (0, 0, 0, 3, 6, 3), id="a small one"),
        pytest.param(
            b"",
            b"4\r\nabcd\r\n3\r\nabc\r\n4\r\nefgh\r\n",
            (0, 0, 9, 9, 16, 11),
            id="a small one between large ones",
        ),
        pytest.param(
            b"", b"4;x\r\nabcd\r\n4\r\nabcd\r\n", (0, 0, 0, 5, 13, 8), id="an extension, and none"
        ),
        pytest.param(
            b"", b"4\r\nabcd\r\n4;x\r\nabcd\r\n", (0, 0, 9, 9, 13, 8), id="no extension, and one"
        ),
        pytest.param(b"", b"4 \r\nabcd\r\n", (0, 0, 0, 4, 8, 4), id="a space before the CRLF"),
        pytest.param(b"", b"4\r\nabcd\r\n0\r\n\r\n", (0, 0, 9, 9, 9, 4), id="the end of the body"),
        pytest.param(b"", b"0\r\n\r\n", (0, 0, 0, 0, 0, 0), id="nothing but the end"),
        pytest.param(
            b"4\r\na",
            b"bcd\r\n4\r\nefgh\r\n",
            (3, 5, 14, 14, 14, 7),
            id="the rest of a chunk, and a whole one",
        ),
        pytest.param(b"4\r\na", b"bcd\r\n", (3, 5, 5, 5, 5, 3), id="the rest of a chunk"),
        pytest.param(
            b"4\r\na",
            b"bcd\r\n7\r\nef",
            (3, 5, 5, 5, 7, 5),
            id="the rest of a chunk, and a beginning",
        ),
        pytest.param(
            b"4\r\na",
            b"bcd\r\n3\r\nefg\r\n",
            (3, 5, 5, 5, 8, 6),
            id="the rest of a chunk, and a small one",
        ),
        pytest.param(b"4\r\na", b"bcd\r", (0, 0, 0, 0, 3, 3), id="not all of a chunk's rest"),
        pytest.param(b"4\r\na", b"bc", (0, 0, 0, 0, 2, 2), id="the middle of a chunk"),
    ],
)
def test_split_leaves_whole_chunks_where_they_are(
    before: bytes, piece: bytes, expected: Split
) -> None:
    """What is whole and plain stays as it came, from the first chunk to the last before anything
    else; the rest is unpacked.

    Once something had to be unpacked, all behind it is, so that a read leaves in three parts at
    most.
    """
    framing = Chunked()
    feed_split(framing, before)
    buffer = bytearray(piece)
    assert framing.split(buffer, len(piece)) == expected


@pytest.mark.parametrize(
    "before",
    [b"4\r\nabcd", b"4\r\nabcd\r", b"4", b"4\r", b"4;x=", b"0\r\n", b"0\r\nx:", b"0\r\nx: y\r\n\r"],
)
def test_split_unpacks_what_begins_within_framing(before: bytes) -> None:
    """A read that begins within a chunk's header, its CRLF or the trailers is read as `frame` reads
    it.
    """
    for rest in (
        b"\r\nabcd\r\n4\r\nabcd\r\n",
        b"\n4\r\nabcd\r\n",
        b"\r\n",
        b"\n\r\n",
        b" y\r\n\r\n",
        b"\n",
        b"\n4\r\nabcd\r\n",
    ):
        check_split_of([before, rest])
        check_split_of([before, rest[:1], rest[1:]])


def test_split_finds_what_frame_finds_in_three_reads_cut_anywhere() -> None:
    """Two cuts at once, of a body that has every kind of chunk."""
    for one in range(len(MIXED)):
        for two in range(one, len(MIXED)):
            check_split_of([MIXED[:one], MIXED[one:two], MIXED[two:]])


@pytest.mark.parametrize(
    "bad",
    [
        b"x\r\n",
        b"4\r\nabcdef",
        b"4\nabcd\r\n",
        b"0\r\nx\r\n",
        b"0\r\n\n",
        b"00000000000000004\r\n",
        b"\r\n",
    ],
)
def test_split_tells_what_came_before_it_refuses(bad: bytes) -> None:
    """As `frame` does, in `was_split`: the rest of a chunk, whole chunks, unpacked ones, and then
    what cannot be read.
    """
    for good in (
        b"4\r\nabcd\r\n",
        b"4;x\r\nabcd\r\n",
        b"3\r\nabc\r\n",
        b"4\r\nabcd\r\n5\r\nefghi\r\n2\r\njk\r\n",
        b"",
    ):
        wire = good + bad
        for cut in range(len(wire)):
            check_split_of([wire[:cut], wire[cut:]])
    framing = Chunked()
    feed_split(framing, b"6\r\nab")
    data, chunks, failure = feed_split(framing, b"cdef\r\n4\r\nghij\r\n2\r\nkl\r\n" + bad)
    assert data.startswith(b"cdefghijkl")
    assert chunks == b"4\r\nghij\r\n"
    assert failure is not None


def test_split_and_frame_may_take_turns() -> None:
    """They share one state: whichever is asked, read by read, the body is the same."""
    for cut in range(1, 12):
        pieces = [MIXED[at : at + cut] for at in range(0, len(MIXED), cut)]
        for first_is_split in (True, False):
            framing = Chunked()
            data = b""
            for number, piece in enumerate(pieces):
                if (number % 2 == 0) is first_is_split:
                    data += feed_split(framing, piece)[0]
                else:
                    data += feed(framing, piece)
            assert framing.complete
            assert data == b"abcd\r\n0\r\nfghijklmnopqrstuvwxyz123456"


def test_whole_chunks_are_not_copied() -> None:
    """Of a read full of whole chunks all stays where it is, however many they are."""
    wire = b"".join(b"%x\r\n%b\r\n" % (size, bytes(size)) for size in range(4, 300))
    buffer = bytearray(wire)
    size = sum(range(4, 300))
    assert Chunked().split(buffer, len(wire)) == (0, 0, len(wire), len(wire), len(wire), size)
    assert buffer == wire
