"""HTTP/2 from the client's side with random frames, and with random mistakes in a valid
conversation: `ConnectionBroken` is the only error, memory is bounded, however the bytes are cut the
result is the same, and a stream that no frame names is untouched. Field blocks are compared with
`hpack`, heads with `h2`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import hpack
import hyperframe.frame
import trio
from fuzz.mistakes import cut, cuts, edited
from h2.exceptions import ProtocolError
from h2.utilities import HeaderValidationFlags, validate_headers
from hypothesis import event, given, settings
from hypothesis import strategies as st

from proxy.downstream.http2.input import Input
from proxy.downstream.http2.output import Output
from proxy.downstream.http2.stream import Http2Stream
from proxy.errors import RequestRefused
from proxy.http import frames
from proxy.http.blocks import EMPTY_TABLE, BlockReader, encode_block
from proxy.http.fields import read_request_head
from proxy.http.frames import ConnectionBroken

LINE = [(":method", "POST"), (":scheme", "http"), (":authority", "h"), (":path", "/")]
MAX_STREAMS = 5
WINDOW = 65535


class Connection:
    """A connection without a socket, a hub and tasks. It is its own transport; `full`: the socket
    takes nothing.
    """

    secure, peer, hub = False, None, None

    def __init__(self) -> None:
        self.transport: Any = self
        self.sent = b""
        self.full = False
        self.streams: dict[int, Http2Stream] = {}
        self.output = Output(self.transport, 1.0, lambda: None)
        self.input = Input(self, MAX_STREAMS)

    def send(self, message: Sequence[bytes | memoryview]) -> memoryview | None:
        data = b"".join(message)
        if self.full:
            return memoryview(data)
        self.sent += data
        return None

    async def send_rest(self, rest: memoryview) -> memoryview | None:
        await trio.lowlevel.checkpoint()
        return self.send([rest])

    def new_stream(self, stream_id: int, head: Any, window: int, *, ended: bool) -> Http2Stream:
        self.streams[stream_id] = Http2Stream(self, stream_id, head, window, ended=ended)  # type: ignore[arg-type]
        return self.streams[stream_id]

    def forget(self, stream: Http2Stream) -> None:
        del self.streams[stream.id]

    def open_window(self, stream: Http2Stream, size: int) -> None:
        self.output.add(frames.window_update(stream.id, size))

    def reset(self, stream: Http2Stream, code: int) -> None:
        stream.closed = True
        stream.drop()

    def limit_send(self, timeout_s: float) -> None: ...


def begin() -> Connection:
    """Stream 1 has a response that goes on."""
    connection = Connection()
    block = hpack.Encoder().encode([*LINE[:3], (":path", "/stream")])
    given = frames.PREFACE + frames.settings([(4, WINDOW)]) + frames.header_frames(1, block)
    (stream,) = connection.input.handle(given)
    assert stream.start(200, [])
    assert stream.write([b"data"])
    return connection


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return frames.frame_head(len(payload), kind, flags, stream) + payload


BLOCKS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([LINE, LINE[:3], [*LINE, ("content-length", "3")], [("x", "y")]]).map(
        hpack.Encoder().encode
    ),
)
FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 3, 5, 7, 9, 11, 13, 2, 2**31 - 1]),
    st.one_of(
        BLOCKS, st.sampled_from([bytes(4), bytes(5), b"\0\0\xff\xff", bytes(8), b"\0\x04\0\0\0\0"])
    ),
)


@given(st.lists(FRAMES, max_size=30), st.booleans())
@settings(max_examples=400)
async def test_random_frames(sent: list[bytes], full: bool) -> None:
    """Each is a read of its own; requests that begin are served or not."""
    connection = begin()
    beside, taken = connection.streams[1], itertools.cycle([True, False])
    connection.full = full
    try:
        for piece in sent:
            for stream in connection.input.handle(piece):
                if stream.head.fault is None and next(taken):
                    stream.start(200, [(b"x", b"y")])
            connection.output.flush()
            for stream in connection.streams.values():
                try:
                    stream.receive_nowait()
                except RequestRefused:
                    event("a body of a wrong length")
            for stream in [item for item in connection.streams.values() if item.closed]:
                connection.forget(stream)
        event("survived")
    except ConnectionBroken as broken:
        event(f"code {broken.code}")
        return
    check(connection)
    assert [beside.closed, beside.gone, beside.at_hand] == [False] * 3
    connection.full = False
    connection.output._rest = None
    connection.output.flush()
    beside.write([b"more"])
    assert connection.output.window < 4 or connection.sent.endswith(b"more")


def check(connection: Connection) -> None:
    assert len(connection.streams) <= MAX_STREAMS + 1
    assert all(len(stream._data) <= WINDOW for stream in connection.streams.values())
    assert len(connection.output._control) <= 65536 + 100


@given(st.lists(st.tuples(st.integers(1, 90_000), st.integers(0, 90_000)), min_size=1, max_size=4))
@settings(max_examples=100)
async def test_turns(given_streams: list[tuple[int, int]]) -> None:
    """Each stream has so much to send, and such a window, when the socket takes nothing. Then it
    takes everything: control frames go first, streams in turns of a frame, within all windows; and
    the rest when the windows open.
    """
    connection = begin()
    output, sent = connection.output, []
    for number, (size, _) in enumerate(given_streams):
        block = hpack.Encoder().encode(LINE)
        (stream,) = connection.input.handle(frames.header_frames(2 * number + 3, block))
        stream.start(200, [(b"content-length", b"%d" % size)])
        sent.append(stream)
    async with trio.open_nursery() as output.nursery:
        connection.full, connection.sent = True, b""
        connection.streams[1].write([b"first"])
        for stream, (size, window) in zip(sent, given_streams, strict=True):
            stream.window = window
            assert not stream.write([b"y" * size])
        connection.input.handle(frame(6, 0, 0, b"12345678"))
        output.flush()
        connection.full = False
    first, ping, *data = read_frames(connection.sent)
    assert (first.stream_id, ping.opaque_data) == (1, b"12345678")
    check_turns(list(data), [min(item) for item in given_streams])
    connection.sent = b""
    opened = b"".join([frames.window_update(stream.id, 200_000) for stream in sent])
    connection.input.handle(frames.window_update(0, 2_000_000) + opened)
    output.flush()
    data += read_frames(connection.sent)
    for stream, (size, _) in zip(sent, given_streams, strict=True):
        own = [item for item in data if item.stream_id == stream.id]
        assert sum(len(item.data) for item in own) == size
        assert ["END_STREAM" in item.flags for item in own] == [False] * (len(own) - 1) + [True]
        assert stream.finish()


def read_frames(data: bytes) -> list[Any]:
    found, at = [], 0
    while at < len(data):
        item, size = hyperframe.frame.Frame.parse_frame_header(memoryview(data[at : at + 9]))
        item.parse_body(memoryview(data[at + 9 : at + 9 + size]))
        found.append(item)
        at += 9 + size
    return found


def check_turns(data: list[Any], sizes: list[int]) -> None:
    """`sizes`: what each stream's window allows."""
    left = {2 * number + 3: size for number, size in enumerate(sizes) if size}
    window, turns = WINDOW - len(b"data") - len(b"first"), list(left)
    while window and turns:
        item, at = data.pop(0), turns.pop(0)
        assert (item.stream_id, len(item.data)) == (at, min(left[at], window, 16384))
        window -= len(item.data)
        left[at] -= len(item.data)
        turns += [at] * (left[at] > 0)
    assert data == []


def conversation() -> bytes:
    encoder = hpack.Encoder()
    blocks = [encoder.encode([*LINE, ("x-y", "z" * size)]) for size in (3, 40_000)]
    return b"".join(
        [
            frames.PREFACE,
            frames.settings([(3, 100), (4, 100_000), (5, 16384)]),
            frames.header_frames(1, blocks[0]),
            frame(0, 8, 1, b"\x03body\0\0\0"),
            frames.header_frames(3, blocks[1], frames.END_STREAM),
            frame(2, 0, 5, bytes(5)),
            frames.window_update(1, 1000),
            frame(6, 0, 0, b"12345678"),
            frame(0, 1, 1, b"end"),
            frames.rst_stream(3, 8),
        ]
    )


VALID = conversation()


@given(st.integers(0, len(VALID)), st.integers(0, 9), st.binary(max_size=9), cuts)
@settings(max_examples=300)
async def test_mistakes_in_a_conversation(
    at: int, removed: int, added: bytes, positions: list[int]
) -> None:
    results, data = [], edited(VALID, at % 300 if at % 2 else at, removed, added)
    for pieces in ([data], cut(data, positions)):
        connection = Connection()
        try:
            for piece in pieces:
                connection.input.handle(piece)
            result: object = "survived"
        except ConnectionBroken as broken:
            result = broken.code
        check(connection)
        bodies = {number: bytes(item._data) for number, item in connection.streams.items()}
        results.append((result, bodies if result == "survived" else None))
    event(str(results[0][0]))
    assert results[0] == results[1]


FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"date", b"x", b"content-type", b"set-cookie", b":status"]),
        st.binary(max_size=300),
    ),
    max_size=8,
)


@given(st.lists(st.one_of(st.binary(max_size=60), FIELDS), max_size=5))
@settings(max_examples=500)
def test_field_blocks_as_hpack_reads_them(given_blocks: list[bytes | list[Any]]) -> None:
    """The same fields, or an error of both; and what we encode is what `hpack` decodes."""
    encoder, theirs, ours = hpack.Encoder(), hpack.Decoder(1 << 18), BlockReader(1 << 18)
    for item in given_blocks:
        block = item if isinstance(item, bytes) else encoder.encode(item)
        try:
            expected = [tuple(field) for field in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            try:
                ours.read(block)
            except ConnectionBroken:
                return
            raise AssertionError("hpack refuses it") from None
        assert ours.read(block) == expected
        if isinstance(item, list):
            decoded = hpack.Decoder().decode(EMPTY_TABLE + encode_block(404, item), raw=True)
            assert [tuple(field) for field in decoded] == [(b":status", b"404"), *item]


PSEUDO = [":method", ":scheme", ":authority", ":path", ":protocol", ":status"]
NAMES = st.sampled_from([*PSEUDO, "host", "content-length", "te", "connection", "x", "X"])
VALUES = st.sampled_from(
    ["", "GET", "CONNECT", "http", "/", "h", "1", "trailers", " a", "a\n", "é"]
)
FLAGS = HeaderValidationFlags(
    is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=3), st.permutations(range(4)), st.integers(0, 4))
@settings(max_examples=500)
def test_heads_that_h2_refuses_have_a_fault(
    more: list[tuple[str, str]], order: list[int], count: int
) -> None:
    line = [LINE[at] for at in order[:count]]
    fields = [(name.encode(), value.encode()) for name, value in [*line, *more]]
    head = read_request_head(fields, ended=False)
    try:
        list(validate_headers(fields, FLAGS))
    except ProtocolError:
        assert head.fault is not None or head.method == "CONNECT"
    event("fault" if head.fault else "good")
