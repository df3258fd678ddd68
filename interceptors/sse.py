"""Server-Sent Events on bytes, sans I/O: where an event ends, what its fields say, and how one is written.

Rules: WHATWG HTML, section 9.2.6 "Interpreting an event stream". A line ends with LF, CR or CRLF and with nothing else;
a CR ends its line at once, and an LF that follows belongs to it. A *block* is everything up to and including an empty line;
a block of comments, or of nothing, is passed on but is no event that a hook would want to see.

This module knows neither buffers on loan nor hooks. Positions are indices into the caller's buffer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = [
    "BOM",
    "Fields",
    "encode_data",
    "encode_event",
    "encode_head",
    "find_block_end",
    "is_silent",
    "parse_fields",
    "unknown_lines",
]

BOM = b"\xef\xbb\xbf"

_LF = 0x0A
_CR = 0x0D
_FIELDS = frozenset((b"data", b"event", b"id", b"retry"))

# A line's end followed by an empty line. An LF after the last CR belongs to it, but may not have arrived yet.
_EMPTY_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_DATA_LINE_END = re.compile(r"\r\n|\r|\n")
_DIGITS = re.compile(rb"[0-9]+")
_MOST_DIGITS = 18  # of a retry; longer than any stream, and what would take time to read


def find_block_end(buffer: bytes | bytearray, start: int, end: int, scan_from: int) -> int:
    """The index behind the block that starts at `start`, or -1 when `buffer[start:end]` does not hold its end.

    `scan_from` (at least `start`) says how far an earlier call has looked in vain. When the block ends with a CR at `end - 1`,
    an LF that comes next still belongs to the block.
    """
    first = buffer[start] if start < end else 0
    if first == _LF:
        return start + 1
    if first == _CR:
        return start + 2 if start + 1 < end and buffer[start + 1] == _LF else start + 1
    # The empty line may have begun up to three bytes before.
    match = _EMPTY_LINE.search(buffer, max(start, scan_from - 3), end)
    return match.end() if match is not None else -1


def is_silent(buffer: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a block, without the BOM of its stream, holds only comments and empty lines: heartbeats, stray line ends."""
    if start < end and buffer[start] not in b":\r\n":
        return False  # some field begins here, which is the usual case
    return all(not line or line.startswith(b":") for line in _LINE_END.split(bytes(buffer[start:end])))


class Fields(NamedTuple):
    """The fields of one block; None where a field does not occur."""

    event: str | None
    data: str | None
    """All `data` lines, joined with LF."""
    id: str | None
    retry: int | None
    """Milliseconds."""


def parse_fields(block: bytes) -> Fields:
    """Read the fields of one block, without the BOM that a stream may begin with. Bytes that are not UTF-8 become U+FFFD."""
    event: str | None = None
    event_id: str | None = None
    retry: int | None = None
    data: list[bytes] = []
    for line in _LINE_END.split(block):
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                event_id = value.decode("utf-8", "replace")
        elif name == b"retry" and _DIGITS.fullmatch(value) and len(value.lstrip(b"0")) <= _MOST_DIGITS:
            retry = int(value)
    text = b"\n".join(data).decode("utf-8", "replace") if data else None
    return Fields(event, text, event_id, retry)


def unknown_lines(block: bytes) -> str:
    """The lines of a block that are neither fields of an event nor comments. Readers by the rules ignore them; others do not."""
    lines = _LINE_END.split(block)
    unknown = [line for line in lines if line and line[:1] != b":" and line.partition(b":")[0] not in _FIELDS]
    return b"\n".join(unknown).decode("utf-8", "replace")


def encode_head(event: str | None, event_id: str | None, retry: int | None) -> bytes:
    """The lines before `data`: `event`, `id`, `retry`, those that are given. Raises `ValueError` for a value with a line end."""
    head = b""
    for name, value in ((b"event", event), (b"id", event_id)):
        if value is None:
            continue
        if _DATA_LINE_END.search(value) or (name == b"id" and "\0" in value):
            raise ValueError(f"an event's {name.decode()} cannot hold a line end" + (" or NUL" if name == b"id" else ""))
        head += b"%s: %s\n" % (name, value.encode("utf-8", "replace"))
    if retry is not None:
        if retry < 0:
            raise ValueError("an event's retry is a number of milliseconds, not negative")
        head += b"retry: %d\n" % retry
    return head


def encode_data(data: str) -> bytes:
    """`data` lines for a text; each of its line ends (LF, CR, CRLF) begins a new line."""
    if "\n" not in data and "\r" not in data:
        return b"data: %s\n" % data.encode("utf-8", "replace")
    return b"".join(b"data: %s\n" % line.encode("utf-8", "replace") for line in _DATA_LINE_END.split(data))


def encode_event(fields: Fields) -> bytes:
    """A whole block with its empty line. Errors as `encode_head`."""
    block = encode_head(fields.event, fields.id, fields.retry)
    if fields.data is not None:
        block += encode_data(fields.data)
    return block + b"\n"
