"""Frames of HTTP/2, read and made sans I/O (RFC 9113, sections 4 and 6).

`FrameReader` takes what a client's connection receives, in any pieces, and returns its frames: with
their sizes and their order checked, without padding, header blocks whole, and without those that
mean nothing here (priorities, acknowledgements, unknown types). What it raises ends the connection:
`ConnectionBroken`. It knows no stream: whether a frame fits its stream's state is decided by
`downstream.http2`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

__all__ = [
    "ACK",
    "COMPRESSION_ERROR",
    "DATA",
    "END_STREAM",
    "ENHANCE_YOUR_CALM",
    "FLOW_CONTROL_ERROR",
    "FRAME_SIZE_ERROR",
    "GOAWAY",
    "HEADERS",
    "INITIAL_WINDOW_SIZE",
    "INTERNAL_ERROR",
    "MAX_CONCURRENT_STREAMS",
    "MAX_FRAME_BYTES",
    "MAX_HEADER_LIST_SIZE",
    "NO_ERROR",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PROTOCOL_ERROR",
    "REFUSED_STREAM",
    "RST_STREAM",
    "SETTINGS",
    "STREAM_CLOSED",
    "WINDOW_UPDATE",
    "ConnectionBroken",
    "Frame",
    "FrameReader",
    "frame_head",
    "goaway",
    "header_frames",
    "ping_ack",
    "read_settings",
    "rst_stream",
    "settings",
    "window_update",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_FRAME_BYTES = 16384
"""Of a payload, in both directions: the least that SETTINGS_MAX_FRAME_SIZE allows."""
MAX_BLOCK_BYTES = 4 * 65536
"""Of a header block; the list of fields that it makes has a limit of its own."""
_MAX_CONTINUATIONS = 64

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, _PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, _CONTINUATION = 8, 9

END_STREAM = ACK = 0x1
_END_HEADERS, _PADDED, _HAS_PRIORITY = 0x4, 0x8, 0x20

# Error codes (RFC 9113, section 7)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM = 5, 6, 7
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

# Settings (RFC 9113, section 6.5.2)
_ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 2, 3, 4
_MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 5, 6

_HEAD = struct.Struct(">IBI")  # length and type, flags, stream
_SETTING = struct.Struct(">HI")
_ID_MASK = 0x7FFFFFFF
_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))
_OF_STREAM = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, _PUSH_PROMISE, _CONTINUATION))


class ConnectionBroken(Exception):
    """A connection error (RFC 9113, section 5.4.1), with the `code` for GOAWAY."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Frame(NamedTuple):
    """A frame as it matters here."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    """Without padding and priority; of HEADERS the whole block."""
    size: int
    """Bytes of the payload as received: what counts for flow control."""


class FrameReader:
    """Reads the frames of one connection, from its preface on (RFC 9113, section 3.4)."""

    __slots__ = ("_at", "_block", "_block_bytes", "_data", "_first", "_head", "_preface")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        self._preface = True  # expected
        self._first = True  # and then SETTINGS
        self._head: Frame | None = None  # of an unfinished header block
        self._block: list[bytes] = []
        self._block_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._data = self._data[self._at :] + data
        self._at = 0

    def next(self) -> Frame | None:
        """Return the next frame; None if more must arrive first. Raises `ConnectionBroken`."""
        data = self._data
        if self._preface and not self._skip_preface(data):
            return None
        while len(data) - self._at >= 9:
            word, flags, stream_id = _HEAD.unpack_from(data, self._at)
            size, kind, stream_id = word >> 8, word & 0xFF, stream_id & _ID_MASK
            if size > MAX_FRAME_BYTES:
                raise ConnectionBroken(FRAME_SIZE_ERROR, "a frame is too large")
            self._check_order(kind, flags, stream_id)
            begin = self._at + 9
            if len(data) - begin < size:
                return None
            self._at = begin + size
            frame = self._read(kind, flags, stream_id, data[begin : begin + size])
            if frame is not None:
                return frame
        return None

    def _skip_preface(self, data: bytes) -> bool:
        """Returns whether all of it has arrived."""
        size = len(PREFACE)
        if data[:size] != PREFACE[: len(data)]:
            raise ConnectionBroken(PROTOCOL_ERROR, "not the preface of HTTP/2")
        self._preface = len(data) < size
        self._at = 0 if self._preface else size
        return not self._preface

    def _check_order(self, kind: int, flags: int, stream_id: int) -> None:
        if self._first and (kind != SETTINGS or flags & ACK):
            raise ConnectionBroken(PROTOCOL_ERROR, "the first frame is not SETTINGS")
        expected = 0 if self._head is None else self._head.stream_id
        if (expected != 0) != (kind == _CONTINUATION) or (expected and stream_id != expected):
            raise ConnectionBroken(PROTOCOL_ERROR, "a header block is interrupted")
        if kind == _PUSH_PROMISE or (kind in _OF_CONNECTION if stream_id else kind in _OF_STREAM):
            raise ConnectionBroken(PROTOCOL_ERROR, f"a frame of type {kind} is out of place")

    def _read(self, kind: int, flags: int, stream_id: int, payload: bytes) -> Frame | None:
        """A whole frame; None if nothing follows from it, or not yet."""
        size = len(payload)
        if kind == DATA:
            return Frame(kind, flags, stream_id, _unpadded(flags, payload), size)
        if kind == HEADERS:
            payload = _unpadded(flags, payload)
            if flags & _HAS_PRIORITY:
                if len(payload) < 5:
                    raise ConnectionBroken(FRAME_SIZE_ERROR, "HEADERS has no room for its priority")
                payload = payload[5:]
            self._head = Frame(kind, flags, stream_id, b"", 0)
            return self._extend_block(flags, payload)
        if kind == _CONTINUATION:
            return self._extend_block(flags, payload)
        if kind == SETTINGS:
            self._first = False
            if size % 6 or (size and flags & ACK):
                raise ConnectionBroken(FRAME_SIZE_ERROR, "SETTINGS has a wrong size")
        elif size != _SIZES.get(kind, size):
            raise ConnectionBroken(FRAME_SIZE_ERROR, f"a frame of type {kind} has a wrong size")
        if kind > WINDOW_UPDATE or (kind in (SETTINGS, PING) and flags & ACK):
            return None
        if kind == PRIORITY and size == 5:
            return None
        return Frame(kind, flags, stream_id, payload, size)

    def _extend_block(self, flags: int, payload: bytes) -> Frame | None:
        self._block.append(payload)
        self._block_bytes += len(payload)
        if self._block_bytes > MAX_BLOCK_BYTES or len(self._block) > _MAX_CONTINUATIONS:
            raise ConnectionBroken(ENHANCE_YOUR_CALM, "a header block is too large")
        if not flags & _END_HEADERS:
            return None
        head, block = self._head, b"".join(self._block)
        assert head is not None
        self._head = None
        self._block.clear()
        self._block_bytes = 0
        return head._replace(payload=block, size=len(block))


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload:
        raise ConnectionBroken(FRAME_SIZE_ERROR, "a frame has no room for its padding")
    end = len(payload) - payload[0]
    if end < 1:
        raise ConnectionBroken(PROTOCOL_ERROR, "a frame's padding is longer than the frame")
    return payload[1:end]


def read_settings(payload: bytes) -> dict[int, int]:
    """The settings of a frame; of one that occurs twice, the last value (RFC 9113, section 6.5.3).
    Raises `ConnectionBroken` for a value that is not allowed.
    """
    found: dict[int, int] = {}
    for key, value in _SETTING.iter_unpack(payload):
        if (key == _ENABLE_PUSH and value > 1) or (
            key == _MAX_FRAME_SIZE and not MAX_FRAME_BYTES <= value < 1 << 24
        ):
            raise ConnectionBroken(PROTOCOL_ERROR, f"setting {key} has a wrong value")
        if key == INITIAL_WINDOW_SIZE and value > _ID_MASK:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, "the initial window is too large")
        found[key] = value
    return found


# Making frames


def frame_head(size: int, kind: int, flags: int, stream_id: int) -> bytes:
    """The head of a frame with `size` bytes of payload."""
    return _HEAD.pack(size << 8 | kind, flags, stream_id)


def header_frames(stream_id: int, block: bytes, flags: int = 0) -> bytes:
    """HEADERS, and CONTINUATION for what does not fit."""
    pieces = [block[at : at + MAX_FRAME_BYTES] for at in range(0, len(block), MAX_FRAME_BYTES)]
    result, kind = b"", HEADERS
    for number, piece in enumerate(pieces, 1):
        if number == len(pieces):
            flags |= _END_HEADERS
        result += frame_head(len(piece), kind, flags, stream_id) + piece
        kind, flags = _CONTINUATION, 0
    return result


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    """SETTINGS; without values its acknowledgement."""
    payload = b"".join([_SETTING.pack(*item) for item in values])
    return frame_head(len(payload), SETTINGS, 0 if payload else ACK, 0) + payload


def ping_ack(payload: bytes) -> bytes:
    return frame_head(8, PING, ACK, 0) + payload


def rst_stream(stream_id: int, code: int) -> bytes:
    return frame_head(4, RST_STREAM, 0, stream_id) + code.to_bytes(4, "big")


def window_update(stream_id: int, size: int) -> bytes:
    return frame_head(4, WINDOW_UPDATE, 0, stream_id) + size.to_bytes(4, "big")


def goaway(last_id: int, code: int, reason: str = "") -> bytes:
    """`reason`: ASCII, for debugging a client."""
    payload = last_id.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode("ascii")
    return frame_head(len(payload), GOAWAY, 0, 0) + payload
