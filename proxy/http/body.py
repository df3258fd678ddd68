"""Body framing of a response, sans I/O and in place (RFC 9112, sections 6 and 7).

`frame(buffer, start, end)` takes the bytes that have arrived in `buffer[start:end]` and returns
`(first, last)`: the body is `buffer[first:last]`, and bytes after `last` have no meaning. It moves
bytes only to close the gaps that chunk headers leave. `first` is `start`, except with `start == 0`,
where no earlier bytes must be joined and the body may stay where it is.

Invariants:

- a framing consumes everything it is given; it keeps a copy only of an incomplete chunk header or
  trailer line, which is bounded;
- malformed framing raises `ProtocolFailure`, and an early end raises `Truncated`.

`Chunked.split` finds whole chunks that can be forwarded with the framing they came in.
"""

from __future__ import annotations

import re
from typing import Protocol

from interceptors.tokens import FIELD_VALUE, TOKEN

from ..errors import ProtocolFailure, Truncated
from .head import ResponseHead

__all__ = [
    "LAST_CHUNK",
    "MAX_CHUNK_HEADER_BYTES",
    "MAX_TRAILER_BYTES",
    "Chunked",
    "ContentLength",
    "Framing",
    "UntilClose",
    "framing_of",
    "has_no_body",
]

LAST_CHUNK = b"0\r\n\r\n"
"""The end of a chunked body without trailers."""
MAX_CHUNK_HEADER_BYTES = 4096
MAX_TRAILER_BYTES = 16384

_TOKEN, _VALUE = TOKEN.encode("ascii"), FIELD_VALUE.encode("latin-1")
# RFC 9112, section 7.1: chunk-size [ chunk-ext ] CRLF. Like h11, accept white space before CRLF.
_CHUNK_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;%b|[ \t]*)\r\n" % _VALUE)
_NEXT_HEADER = re.compile(rb"\r\n" + _CHUNK_HEADER.pattern)  # after the data of a chunk
# A chunk header that can be forwarded: extensions belong to one hop (RFC 9112, section 7.1.1).
_PLAIN_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
# `split` unpacks smaller chunks, so that the last 3 bytes of a body always lie together.
_MIN_WHOLE_BYTES = 4
# RFC 9110, section 5. A folded line does not match. White space before the colon is accepted in a
# response (RFC 9112, section 5.1).
_TRAILER_LINE = re.compile(rb"(%b)[\t ]*:%b\r\n" % (_TOKEN, _VALUE))
_CR, _LF = 0x0D, 0x0A
_NO_NAMES = frozenset[bytes]()
_NOT_IN_TRAILERS = frozenset([b"content-length", b"transfer-encoding", b"host"])

Split = tuple[int, int, int, int, int, int]
"""`(lead, wire, after, first, last, size)`: `buffer[:lead]` is data that ends an earlier chunk,
`buffer[wire:after]` are whole chunks with their framing, `buffer[first:last]` is more data; `size`
counts all data bytes.
"""


class Framing(Protocol):
    """How a body ends; see the module's docstring."""

    complete: bool
    """The body has ended."""
    surplus: bool
    """Bytes arrived after its end: the connection must not be reused."""
    framed: tuple[int, int]
    """After `frame` has raised: the body bytes before the malformed ones, as `frame` returns them.
    """

    def frame(self, buffer: bytearray, start: int, end: int) -> tuple[int, int]: ...

    def eof(self) -> None:
        """The connection has ended in order: complete the body, or raise `Truncated`."""
        ...


class ContentLength:
    """A body of a known length; 0 for a response that has none (HEAD, 204, 304)."""

    __slots__ = ("complete", "framed", "left", "surplus")

    def __init__(self, length: int) -> None:
        self.left = length
        """Bytes still to come."""
        self.complete = length == 0
        self.surplus = False
        self.framed = (0, 0)

    def frame(self, buffer: bytearray, start: int, end: int) -> tuple[int, int]:
        last = min(end, start + self.left)
        self.left -= last - start
        self.complete = self.left == 0
        self.surplus = self.surplus or last < end
        return start, last

    def eof(self) -> None:
        if not self.complete:
            raise Truncated(
                f"the connection ended {self.left} bytes before the end of the body"
                " (Content-Length)"
            )


class UntilClose:
    """A body that ends with the connection."""

    __slots__ = ("complete", "framed", "surplus")

    def __init__(self) -> None:
        self.complete = False
        self.surplus = False
        self.framed = (0, 0)

    def frame(self, buffer: bytearray, start: int, end: int) -> tuple[int, int]:
        return start, end

    def eof(self) -> None:
        self.complete = True


class Chunked:
    """The chunked transfer coding. Extensions are ignored, trailers are checked and dropped.

    Of a request, any trailer is dropped; of a response, one that could change its framing is refused.
    """

    __slots__ = (
        "_in_trailers",
        "_left",
        "_line",
        "_refused_trailers",
        "_trailer_bytes",
        "complete",
        "framed",
        "surplus",
        "surplus_at",
        "was_split",
    )

    def __init__(self, *, of_request: bool = False) -> None:
        self._refused_trailers = _NO_NAMES if of_request else _NOT_IN_TRAILERS
        self._left = 0  # bytes of the current chunk with its CRLF; 0: a chunk header comes next
        self._line = b""  # the beginning of an incomplete chunk header or trailer line
        self._in_trailers = False
        self._trailer_bytes = 0
        self.complete = False
        self.surplus = False
        self.surplus_at = 0
        """With `surplus`, after `frame`: the index of the first byte after the body."""
        self.framed = (0, 0)
        self.was_split: Split = (0, 0, 0, 0, 0, 0)
        """After `split` has raised: what came before the malformed bytes, as `split` returns it."""

    def frame(self, buffer: bytearray, start: int, end: int) -> tuple[int, int]:
        first = last = at = start
        try:
            while at < end:
                if not self._left and not self._line and not self._in_trailers:
                    # The usual case, without a call for each chunk: whole chunks in a row.
                    match = _CHUNK_HEADER.match(buffer, at, end)
                    while match is not None:
                        data = match.end()
                        size = int(match[1], 16)
                        after = data + size
                        if not size or after + 2 > end:
                            break
                        match = _NEXT_HEADER.match(buffer, after, end)
                        if match is None and (buffer[after] != _CR or buffer[after + 1] != _LF):
                            break
                        if data - at > MAX_CHUNK_HEADER_BYTES:
                            raise _too_long("a chunk header", MAX_CHUNK_HEADER_BYTES)
                        if last:
                            buffer[last : last + size] = buffer[data:after]
                            last += size
                        else:  # nothing to join: the first chunk stays where it is
                            first, last = data, after
                        at = after + 2
                    if at == end:
                        break
                if self._left > 2:
                    first, last, at = self._part(buffer, at, end, first, last)
                elif self.complete:
                    self.surplus, self.surplus_at = True, at
                    break
                else:
                    at = self._between(buffer, at, end)
        except ProtocolFailure:
            self.framed = (first, last)
            raise
        return first, last

    def split(self, buffer: bytearray, end: int) -> Split:
        """As `frame(buffer, 0, end)`, but whole chunks without extensions keep their framing."""
        left = self._left
        lead = at = size = 0
        if left and 2 < left <= end and buffer[left - 2] == _CR and buffer[left - 1] == _LF:
            size = lead = left - 2
            at = left
            self._left = 0
        wire = at
        if not self._left and not self._line and not self._in_trailers:
            while at < end:
                match = _PLAIN_HEADER.match(buffer, at, end)
                if match is None:
                    break
                count = int(match[1], 16)
                after = match.end() + count
                if (
                    count < _MIN_WHOLE_BYTES
                    or after + 2 > end
                    or buffer[after] != _CR
                    or buffer[after + 1] != _LF
                ):
                    break
                size += count
                at = after + 2
            if at == end:
                return lead, wire, at, at, at, size
        try:
            first, last = self.frame(buffer, at, end)
        except ProtocolFailure:
            first, last = self.framed
            self.was_split = lead, wire, at, first, last, size + last - first
            raise
        return lead, wire, at, first, last, size + last - first

    def eof(self) -> None:
        if not self.complete:
            raise Truncated("the connection ended before the end of the body (chunked)")

    def _part(
        self, buffer: bytearray, at: int, end: int, first: int, last: int
    ) -> tuple[int, int, int]:
        """Take a part of a chunk's data; return the new `first`, `last` and `at`."""
        left, room = self._left - 2, end - at
        take = left if left < room else room
        if last == at:
            last += take
        elif last == 0:  # nothing to join: the first part stays where it is
            first, last = at, at + take
        else:
            with memoryview(buffer) as view:
                view[last : last + take] = view[at : at + take]
            last += take
        self._left -= take
        return first, last, at + take

    def _between(self, buffer: bytearray, at: int, end: int) -> int:
        """Read what is not data: a CRLF, a chunk header, a trailer. Return the index after it."""
        if self._left:
            if buffer[at] != (_CR if self._left == 2 else _LF):
                raise ProtocolFailure("a chunk is not followed by CRLF")
            self._left -= 1
            return at + 1
        if self._in_trailers:
            return self._trailer(buffer, at, end)
        return self._header(buffer, at, end)

    def _header(self, buffer: bytearray, at: int, end: int) -> int:
        match = None if self._line else _CHUNK_HEADER.match(buffer, at, end)
        if match is not None and match.end() - at <= MAX_CHUNK_HEADER_BYTES:
            at = match.end()
        else:
            line, at = self._whole_line(buffer, at, end, MAX_CHUNK_HEADER_BYTES, "a chunk header")
            if line is None:
                return at
            match = _CHUNK_HEADER.fullmatch(line)
            if match is None:
                raise ProtocolFailure("a chunk header is malformed")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True
        return at

    def _trailer(self, buffer: bytearray, at: int, end: int) -> int:
        line, at = self._whole_line(buffer, at, end, MAX_TRAILER_BYTES, "a trailer")
        if line is None:
            return at
        self._trailer_bytes += len(line)
        if line == b"\r\n":
            self.complete = True
        elif self._trailer_bytes > MAX_TRAILER_BYTES:
            raise ProtocolFailure(f"the trailers are longer than {MAX_TRAILER_BYTES} bytes")
        else:
            match = _TRAILER_LINE.fullmatch(line)
            if match is None or match[1].lower() in self._refused_trailers:
                raise ProtocolFailure("a trailer is malformed")
        return at

    def _whole_line(
        self, buffer: bytearray, at: int, end: int, limit: int, what: str
    ) -> tuple[bytes | None, int]:
        """The next line with its LF, and the index after it; None, and a copy kept, while the line
        is incomplete.
        """
        newline = buffer.find(b"\n", at, end)
        after = newline + 1 if newline >= 0 else end
        if len(self._line) + after - at > limit:
            raise _too_long(what, limit)
        line = self._line + buffer[at:after]
        if newline < 0:
            self._line = bytes(line)
            return None, end
        self._line = b""
        return bytes(line), after


def _too_long(what: str, limit: int) -> ProtocolFailure:
    return ProtocolFailure(f"{what} is longer than {limit} bytes")


def has_no_body(method: str, status: int) -> bool:
    """Whether a response has no body: to HEAD, 1xx, 204, 304 (RFC 9110, section 6.4.1)."""
    return method == "HEAD" or status < 200 or status in (204, 304)


def framing_of(method: str, head: ResponseHead) -> Framing:
    """How the body of a response ends (RFC 9112, section 6.3)."""
    if has_no_body(method, head.status):
        return ContentLength(0)
    if head.chunked:
        return Chunked()
    return UntilClose() if head.length is None else ContentLength(head.length)
