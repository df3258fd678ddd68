"""Body framing: every case whole, byte by byte and cut in two at every position, at the start of a
buffer and after a prefix. In each of these reads `Chunked.split` must find what `frame` finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from support.chunks import Step, frame_steps, split_steps

from proxy.errors import Truncated
from proxy.http.body import Chunked, ContentLength, Framing, Split, UntilClose

LAST = b"0\r\n\r\n"


def cuts(wire: bytes) -> Iterator[list[bytes]]:
    """The bytes whole, one by one, and in two at every position."""
    yield [wire]
    yield [wire[i : i + 1] for i in range(len(wire))]
    for i in range(1, len(wire)):
        yield [wire[:i], wire[i:]]


def data_of(steps: Sequence[Step]) -> bytes:
    return b"".join([step.data for step in steps])


def read_chunked(pieces: Sequence[bytes], prefix: bytes = b"") -> tuple[Chunked, list[Step]]:
    """By `frame` and by `split`, which must agree about each read."""
    framing = Chunked()
    steps = frame_steps(framing, pieces, prefix)
    assert split_steps(Chunked(), pieces)[0] == steps, pieces
    return framing, steps


def check_reads(
    make: Callable[[], Framing], wire: bytes, body: bytes, *, whole: bool = True, extra: bytes = b""
) -> None:
    """`whole`: the wire completes the body. `extra`: bytes after its end, which are surplus."""
    for pieces in cuts(wire + extra):
        for prefix in (b"", b"x", b"carried over: "):
            if make is Chunked:
                framing: Framing
                framing, steps = read_chunked(pieces, prefix)
            else:
                framing = make()
                steps = frame_steps(framing, pieces, prefix)
            assert (data_of(steps), steps[-1][1:]) == (body, (whole, bool(extra), "")), pieces
            if whole or isinstance(framing, UntilClose):
                framing.eof()
            else:
                with pytest.raises(Truncated):
                    framing.eof()


def check_refused(wire: bytes) -> None:
    for pieces in cuts(wire):
        for prefix in (b"", b"carried over: "):
            framing, steps = read_chunked(pieces, prefix)
            assert steps[-1].refusal, pieces
            assert not framing.complete


@pytest.mark.parametrize("extra", [b"", b"!", b"HTTP/1.1 200 OK\r\n"])
@pytest.mark.parametrize("body", [b"h", b"0\r\n\r\nhello\n", bytes(range(256))])
def test_a_content_length_body_has_that_length(body: bytes, extra: bytes) -> None:
    check_reads(lambda: ContentLength(len(body)), body, body, extra=extra)
    check_reads(lambda: ContentLength(len(body) + 1), body, body, whole=False)


def test_a_body_of_length_0_is_complete_and_surplus_stays_flagged() -> None:
    framing = ContentLength(0)
    assert framing.complete
    assert [step.surplus for step in frame_steps(framing, [b"", b"x", b""])] == [False, True, True]


def test_until_close_is_completed_by_the_end_alone() -> None:
    for wire in (b"x", b"5\r\nhello\r\n" + LAST):
        check_reads(UntilClose, wire, wire, whole=False)
    framing = UntilClose()
    framing.eof()
    assert framing.complete


READ = [
    (LAST, b""),
    (b"5\r\nhello\r\n1\r\n,\r\n6\r\n world\r\n0\r\n\r\n", b"hello, world"),
    (b"1\r\na\r\n" * 20 + LAST, b"a" * 20),
    (b"2\r\n\r\n\r\n2\r\n0\r\r\n0\r\n\r\n", b"\r\n0\r"),  # data that looks like framing
    (b"a\r\n0123456789\r\n00A\r\n0123456789\r\n" + LAST, b"0123456789" * 2),
    (b"1c\r\n%b\r\n1C\r\n%b\r\n0\r\n\r\n" % (b"x" * 28, b"y" * 28), b"x" * 28 + b"y" * 28),
    (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
    (b'5;q="x;y";\xff\t\r\nhello\r\n0;\r\n\r\n', b"hello"),
    (b"5 \t\r\nhello\r\n0 \r\n\r\n", b"hello"),
    (b"5\r\nhello\r\n0\r\nA:\r\nb: \xff, c\t\r\n!#$: x\r\nd \t: e\r\n\r\n", b"hello"),
]


@pytest.mark.parametrize(("wire", "body"), READ)
def test_a_chunked_body_is_read(wire: bytes, body: bytes) -> None:
    """Sizes in any case, with leading zeros; extensions and trailers are not body."""
    check_reads(Chunked, wire, body)
    check_reads(Chunked, wire, body, extra=b"!")
    check_reads(Chunked, wire[:-1], body, whole=False)


def test_the_largest_size_is_accepted() -> None:
    check_reads(Chunked, b"FFFFFFFFFFFFFFFF\r\nhello", b"hello", whole=False)


# After the first eight, `int(x, 16)` accepts the size.
BAD_SIZES = (
    b"|;x|g|5g|5.|5,5|5 5|\xb25|+5|-5|0x5|0X5|1_0| 5|\t5|5 ;x|\x005|5;\x00|5;a\rb|5\r|5;\x7f|5\n|"
    b"5;x\n|\n5|\r\n5|00000000000000005|10000000000000000"
).split(b"|")
BAD_ENDS = b"|\n|\r|xx\r\n|\r\r|!\n| \r\n".split(b"|")
BAD_TRAILERS = (
    b"x\r\n|: y\r\n|x\xff: y\r\n|x: \x00\r\n|x: a\rb\r\n|x: y\n\r\n|\n|x: y\r\n\n| x: y\r\n|"
    b"x: y\r\n z\r\n|x: y\r\n\tz\r\n|\r\r\n|content-length: 5\r\n|Content-Length: 5\r\n|"
    b"Host : y\r\n|HOST: x\r\n|x: y\r\ntransfer-encoding: chunked\r\n"
).split(b"|")


@pytest.mark.parametrize(
    "wire",
    [
        *(size + b"\r\nhello\r\n" for size in BAD_SIZES),
        *(b"1\r\na\r\n" + size + b"\r\nhello\r\n" for size in BAD_SIZES),
        *(b"5\r\nhello" + end + LAST for end in BAD_ENDS),
        *(b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n" for trailers in BAD_TRAILERS),
        *(b"5\nhello\r\n", b"5\rhello\r\n", b"0\n\n"),
    ],
)
def test_a_malformed_chunked_body_is_refused(wire: bytes) -> None:
    """Sizes, line ends, and trailers, also those that would change the framing."""
    check_refused(wire)


LONG_HEADER = b"5;" + b"x" * 4092 + b"\r\n"
LONG_TRAILERS = (b"x: " + b"y" * 1019 + b"\r\n") * 16


@pytest.mark.parametrize("step", [100_000, 61])
@pytest.mark.parametrize(
    ("wire", "limit"),
    [
        (LONG_HEADER + b"hello\r\n" + LAST, None),
        (b"5;x" + LONG_HEADER[2:] + b"hello\r\n", 4096),
        (b"1\r\na\r\n5;x" + LONG_HEADER[2:] + b"hello\r\n" + LAST, 4096),
        (b"5;x" + LONG_HEADER[2:] + b"hel", 4096),
        (b"5;" + b"x" * 4095, 4096),
        (b"0" * 4097, 4096),
        (b"0\r\n" + LONG_TRAILERS + b"\r\n", None),
        (b"0\r\n" + LONG_TRAILERS + b"x:\r\n", 16384),
        (b"0\r\nx:" + b"y" * 16384, 16384),
        (b"0\r\nx:" + b"y" * 16384 + b"\r\n", 16384),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_chunk_headers_and_trailers_have_a_limit(wire: bytes, limit: int | None, step: int) -> None:
    """4,096 and 16,384 bytes with all CRLFs; an endless line is refused before its end."""
    framing, steps = read_chunked([wire[at : at + step] for at in range(0, len(wire), step)])
    assert framing.complete is (limit is None)
    assert limit is None or f"longer than {limit}" in steps[-1].refusal


MIXED = (
    b"4\r\nabcd\r\n05\r\n\r\n0\r\n\r\n6;x=1\r\nfghijk\r\n3\r\nlmn\r\n0A\r\nopqrstuvwx\r\n"
    b"4 \r\nyz12\r\n4\r\n3456\r\n0;y\r\nt: 1\r\n\r\n"
)
MIXED_BODY = b"abcd\r\n0\r\nfghijklmnopqrstuvwxyz123456"


def test_a_chunked_body_in_three_reads_cut_anywhere() -> None:
    """Two cuts at once, of a body with every kind of chunk."""
    for one in range(len(MIXED)):
        for two in range(one, len(MIXED)):
            framing, steps = read_chunked([MIXED[:one], MIXED[one:two], MIXED[two:]])
            assert (data_of(steps), framing.complete) == (MIXED_BODY, True)


def test_many_chunks_of_one_read_are_joined_after_the_carried_bytes() -> None:
    data = [bytes([65 + i % 26]) * (i % 17 + 1) for i in range(200)]
    wire = b"".join(b"%x;n=%d\r\n%b\r\n" % (len(item), i, item) for i, item in enumerate(data))
    (step,) = frame_steps(Chunked(), [wire], b"carried over: ")
    assert step.data == b"".join(data)


@pytest.mark.parametrize(
    ("before", "piece", "expected"),
    [
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
        (b"4\r\na", b"bcd\r\n4\r\nefgh\r\n", (3, 5, 14, 14, 14, 7)),
        (b"4\r\na", b"bcd\r\n", (3, 5, 5, 5, 5, 3)),
        (b"4\r\na", b"bcd\r\n7\r\nef", (3, 5, 5, 5, 7, 5)),
        (b"4\r\na", b"bcd\r", (0, 0, 0, 0, 3, 3)),
        (b"4\r\na", b"bc", (0, 0, 0, 0, 2, 2)),
    ],
)
def test_split_leaves_whole_chunks_in_place(before: bytes, piece: bytes, expected: Split) -> None:
    """From the first chunk to the last before anything else; all after that is unpacked."""
    framing = Chunked()
    split_steps(framing, [before])
    assert framing.split(bytearray(piece), len(piece)) == expected


@pytest.mark.parametrize(
    "bad", [b"x\r\n", b"4\r\nabcdef", b"4\nabcd\r\n", b"0\r\nx\r\n", b"0\r\n\n", b"\r\n", b"0" * 17]
)
def test_what_precedes_a_failure_is_reported(bad: bytes) -> None:
    """The rest of a chunk, whole chunks, and unpacked ones."""
    good = b"cdef\r\n4\r\nghij\r\n5\r\nklmno\r\n2\r\npq\r\n3;x\r\nrst\r\n"
    for pieces in cuts(good + bad + b"\r\n"):
        _, steps = read_chunked([b"6\r\nab", *pieces])
        assert data_of(steps).startswith(b"abcdefghijklmnopqrst")
        assert steps[-1].refusal


@pytest.mark.parametrize("turn", [0, 1])
def test_split_and_frame_share_one_state(turn: int) -> None:
    for size in range(1, 12):
        framing, steps = Chunked(), []
        for number, at in enumerate(range(0, len(MIXED), size)):
            piece = [MIXED[at : at + size]]
            split = number % 2 == turn
            steps += split_steps(framing, piece)[0] if split else frame_steps(framing, piece)
        assert (data_of(steps), framing.complete) == (MIXED_BODY, True)
