"""The grammar of Server-Sent Events (WHATWG HTML, section 9.2): lines, blocks and fields, read and
written.

A line ends with LF, CR or CRLF, and an LF after the last CR of a buffer still belongs to it. A
*block* is everything up to and including an empty line; a block of comments only, or an empty one,
is not an event. `framing` keeps the state between reads. This module must not know leases or hooks.
Positions are indices into the caller's buffer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = [
    "BOM",
    "FIELD_LINE_BYTES",
    "MAX_BLANK_BYTES",
    "Fields",
    "encode_data",
    "encode_event",
    "encode_head",
    "ends_of_one_form",
    "find_block_end",
    "find_empty_line",
    "find_field_line",
    "find_silence",
    "first_of_body",
    "is_silent",
    "looks_like_sse",
    "parse_fields",
    "parse_retry",
    "split_fields",
    "unknown_lines",
]

BOM = b"\xef\xbb\xbf"

_LF, _CR, _COLON = 0x0A, 0x0D, 0x3A  # fields begin with letters: all of them are above the colon
_PREFIX = len(b"data: ")

# The end of a line and an empty line.
_EMPTY_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_LINE_END = re.compile(rb"\r\n|\r|\n")
_LINE_ENDS = re.compile(rb"[\r\n]*")
_SILENCE = re.compile(rb"(?:[\r\n]++|:[^\r\n]*+[\r\n])*")  # empty lines, and whole comments
# Lines of a block with the line end before them. One search finds all: there may be thousands.
_FIELDS = re.compile(rb"[\r\n](data|event|id|retry)(?![^:\r\n]):? ?([^\r\n]*)")
_UNKNOWN_LINES = re.compile(rb"[\r\n](?!:|(?:data|event|id|retry)(?![^:\r\n]))([^\r\n]+)")
_DATA_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*")
_FIRST_LINES = (b":", b"data:", b"event:", b"id:", b"retry:")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")  # JSON's white space (RFC 8259, section 2)
_FIELD_LINE = re.compile(rb"[\r\n](?:data|event|id|retry)[:\r\n]")
FIELD_LINE_BYTES = len(b"\nevent:")
"""The most bytes that identify a field line."""
_LONGEST_FIRST = max(map(len, _FIRST_LINES))
_DIGITS = re.compile(rb"[0-9]+")
_MOST_DIGITS = 18  # of a retry: more would take long to convert

MAX_BLANK_BYTES = 4096
"""A body that begins with this many bytes of empty lines counts as an event stream, which bounds
the wait for its first line.
"""


def looks_like_sse(beginning: bytes | bytearray, *, whole: bool) -> bool | None:
    """Whether a body that begins with these bytes is an event stream; None: more bytes decide.

    It is if its first line, after a BOM and empty lines, is a comment or begins with `data:`,
    `event:`, `id:` or `retry:`. `whole`: no more bytes come. The answer does not depend on how the
    body is cut into reads.
    """
    if not whole and len(beginning) < len(BOM) and BOM.startswith(beginning):
        return None
    match = _BLANK.match(beginning, 0, MAX_BLANK_BYTES)
    assert match is not None
    at = match.end()
    if at == MAX_BLANK_BYTES:
        return True
    line = bytes(beginning[at : at + _LONGEST_FIRST])
    if line.startswith(_FIRST_LINES):
        return True
    return None if not whole and any(first.startswith(line) for first in _FIRST_LINES) else False


def first_of_body(buffer: bytes | bytearray, start: int, end: int) -> tuple[int, bool]:
    """The index of the first byte that is not white space, or -1, and whether a JSON body begins
    with it: no event stream does.
    """
    match = _NOT_SPACE.search(buffer, start, end)
    return (-1, False) if match is None else (match.start(), buffer[match.start()] in b"{[")


def find_field_line(buffer: bytes | bytearray, start: int, end: int) -> int:
    """Where a field line begins, with the line end before it, or -1. No JSON text contains one: a
    client that finds one reads events, even after a line that looks like JSON.
    """
    match = _FIELD_LINE.search(buffer, start, end)
    return -1 if match is None else match.start()


def find_block_end(buffer: bytes | bytearray, start: int, end: int, scan_from: int) -> int:
    """The index after the block that starts at `start`, or -1 if its end is not in
    `buffer[start:end]`. Earlier calls have searched up to `scan_from` (at least `start`).
    """
    first = buffer[start] if start < end else 0
    if first == _LF:
        return start + 1
    if first == _CR:
        return start + 2 if start + 1 < end and buffer[start + 1] == _LF else start + 1
    # The empty line may have begun up to three bytes before.
    return find_empty_line(buffer, max(start, scan_from - 3), end)


def find_empty_line(buffer: bytes | bytearray, start: int, end: int) -> int:
    """The index after the first empty line that follows a line end, or -1. `start` may be inside a
    block.
    """
    match = _EMPTY_LINE.search(buffer, start, end)
    return match.end() if match is not None else -1


def ends_of_one_form(
    buffer: bytes | bytearray, at: int, until: int, end: int, limit: int
) -> tuple[list[int], int]:
    """Where adjacent events from `at` on end, and after how many bytes the data of each begins:
    events of one line `data: ...`, else events that begin with another field (0). Only for bytes
    without CR. The last event begins before `until` and ends before `end`.
    """
    find, startswith = buffer.find, buffer.startswith
    ends: list[int] = []
    # One search for one byte finds the end of an event of one line, the usual one.
    while at < until and startswith(b"data: ", at):
        line_end = find(b"\n", at, end - 1)
        if line_end < 0 or buffer[line_end + 1] != _LF or line_end + 2 - at > limit:
            break
        at = line_end + 2
        ends.append(at)
    if ends:
        return ends, _PREFIX
    while at < until and buffer[at] > _COLON:
        after = find(b"\n\n", at, end) + 2
        if not 1 < after - at <= limit:
            break
        at = after
        ends.append(at)
        if startswith(b"data: ", at):
            break
    return ends, 0


def find_silence(buffer: bytes | bytearray, start: int, end: int, most: int) -> tuple[int, int]:
    """The index after the blocks from `start` on that contain only comments and empty lines, and
    how many blocks these are. One search covers the first `most` bytes.
    """
    until = min(end, start + most)
    empty, lines = _LINE_ENDS.match(buffer, start, until), _SILENCE.match(buffer, start, until)
    assert empty is not None
    assert lines is not None
    # A comment ends with the first empty line after it.
    found = [buffer.rfind(ends, start, lines.end()) for ends in (b"\n\n", b"\n\r", b"\r\r")]
    after = max(empty.end(), *(at + 2 if at >= 0 else -1 for at in found))
    if start < after < end and buffer[after - 1] == _CR and buffer[after] == _LF:
        after += 1
    if buffer.find(b":", start, after) >= 0:
        # `bytes.splitlines` splits at LF, CR and CRLF only.
        return after, bytes(buffer[start:after]).splitlines().count(b"")
    line_ends = buffer.count(b"\n", start, after) + buffer.count(b"\r", start, after)
    return after, line_ends - buffer.count(b"\r\n", start, after)


def is_silent(buffer: bytes | bytearray, start: int, end: int) -> bool:
    """Whether a block, without its stream's BOM, contains only comments and empty lines."""
    if start < end and buffer[start] not in b":\r\n":
        return False  # a field: the usual case
    return all(
        not line or line.startswith(b":") for line in _LINE_END.split(bytes(buffer[start:end]))
    )


class Fields(NamedTuple):
    """The fields of one block; None where a field does not occur."""

    event: str | None
    data: str | None
    """All `data` lines, joined with LF."""
    id: str | None
    retry: int | None
    """Milliseconds."""


def split_fields(block: bytes) -> list[tuple[bytes, bytes]]:
    """The name and value of every field line in a block, in order, without the stream's BOM."""
    return _FIELDS.findall(b"\n" + block)


def parse_retry(value: bytes) -> int | None:
    """The milliseconds of a `retry` field; None if it is to be ignored."""
    is_valid = _DIGITS.fullmatch(value) and len(value.lstrip(b"0")) <= _MOST_DIGITS
    return int(value) if is_valid else None


def parse_fields(block: bytes) -> Fields:
    """Read the fields of one block, without the stream's BOM. Invalid UTF-8 becomes U+FFFD."""
    event: str | None = None
    event_id: str | None = None
    retry: int | None = None
    data: list[bytes] = []
    for name, value in split_fields(block):
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value.decode("utf-8", "replace")
        elif name == b"retry":
            retry = retry if (milliseconds := parse_retry(value)) is None else milliseconds
        elif b"\0" not in value:
            event_id = value.decode("utf-8", "replace")
    text = b"\n".join(data).decode("utf-8", "replace") if data else None
    return Fields(event, text, event_id, retry)


def unknown_lines(block: bytes) -> str:
    """The lines of a block that are neither fields nor comments. Conforming readers ignore them."""
    return b"\n".join(_UNKNOWN_LINES.findall(b"\n" + block)).decode("utf-8", "replace")


def encode_head(event: str | None, event_id: str | None, retry: int | None) -> bytes:
    """The lines before `data`: `event`, `id`, `retry`, those that are given. Raises `ValueError`
    for a value with a line end.
    """
    head = b""
    for name, value in ((b"event", event), (b"id", event_id)):
        if value is None:
            continue
        if _DATA_LINE_END.search(value) or (name == b"id" and "\0" in value):
            raise ValueError(
                f"an event's {name.decode()} cannot hold a line end"
                + (" or NUL" if name == b"id" else "")
            )
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
    return b"".join(
        b"data: %s\n" % line.encode("utf-8", "replace") for line in _DATA_LINE_END.split(data)
    )


def encode_event(fields: Fields) -> bytes:
    """A whole block with its empty line. Errors as `encode_head`."""
    block = encode_head(fields.event, fields.id, fields.retry)
    if fields.data is not None:
        block += encode_data(fields.data)
    return block + b"\n"
