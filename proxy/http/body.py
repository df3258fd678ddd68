"""Body framing of a response, sans I/O and in place (RFC 9112, sections 6 and 7).

A framing is told which bytes arrived in the caller's buffer and answers which of them are body,
moving bytes only where chunk headers lie between them. It consumes everything it is shown: of a
chunk header or a trailer that is not whole yet it keeps its own copy, bounded. What it cannot read
it refuses with `ProtocolFailure`; an end too early is `Truncated`. Nothing is guessed.

`frame(buffer, start, end)` returns `(first, last)`: the body is `buffer[first:last]`, and bytes
behind `last` are meaningless. `first` is `start`, except that with `start == 0`, when nothing
precedes that must be joined, a body may stay where it lies. `complete` says that the body has
ended; `surplus` that bytes came behind its end, so that the connection is of no more use.

Whoever sends the body on in the same coding need not have it unpacked: `Chunked.split` finds the
chunks that are whole, which may leave with the framing that they came in.
"""

from __future__ import annotations

import re
from typing import Protocol

from ..errors import ProtocolFailure, Truncated
from .head import ResponseHead

__all__ = [
    "MAX_CHUNK_HEADER_BYTES",
    "MAX_TRAILER_BYTES",
    "Chunked",
    "ContentLength",
    "Framing",
    "UntilClose",
    "framing_of",
]

MAX_CHUNK_HEADER_BYTES = 4096
MAX_TRAILER_BYTES = 16384

# RFC 9112, section 7.1: chunk-size [ chunk-ext ] CRLF. Space before the CRLF is tolerated, as h11
# does.
_CHUNK_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*|[ \t]*)\r\n")
_NEXT_HEADER = re.compile(rb"\r\n" + _CHUNK_HEADER.pattern)  # behind the data of a chunk
# A chunk header that means the same to whoever comes next: without the extensions, which belong to
# one hop (RFC 9112, 7.1.1).
_PLAIN_HEADER = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_LEAST_WHOLE = 4  # smaller chunks are unpacked; so the last bytes of the body lie together, for whoever must know them
# RFC 9110, section 5: field-name ":" OWS field-value OWS. A folded line (obs-fold) does not match.
# White space before the colon is removed from a response (RFC 9112, section 5.1).
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[\t ]*:[\t\x20-\x7e\x80-\xff]*\r\n")
_CR, _LF = 0x0D, 0x0A
_NOT_IN_TRAILERS = frozenset([b"content-length", b"transfer-encoding", b"host"])


Split = tuple[int, int, int, int, int, int]
"""`(lead, wire, behind, first, last, size)`: `buffer[:lead]` is data that ends a chunk of before,
`buffer[wire:behind]` whole chunks with their framing, `buffer[first:last]` more data; `size` bytes
of data in all.
"""


class Framing(Protocol):
    """How a body ends; see the module's head."""

    complete: bool
    surplus: bool
    framed: tuple[int, int]
    """When `frame` has raised: the body bytes that came before what it refuses, in the same terms.
    """

    def frame(self, buffer: bytearray, start: int, end: int) -> tuple[int, int]: ...

    def eof(self) -> None:
        """The connection has ended, orderly. Completes the body, or raises `Truncated`."""
        ...


class ContentLength:
    """A body of a known length; 0 for a response that has none (HEAD, 204, 304)."""

    __slots__ = ("complete", "framed", "left", "surplus")

    def __init__(self, length: int) -> None:
        self.left = length
        """Bytes that are still to come."""
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
                f"the connection ended {self.left} bytes before the end of the body (Content-Length)"
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
    """The chunked transfer coding. Extensions are ignored, trailers are checked and dropped."""

    __slots__ = (
        "_in_trailers",
        "_left",
        "_line",
        "_trailer_bytes",
        "complete",
        "framed",
        "surplus",
        "was_split",
    )

    def __init__(self) -> None:
        self._left = (
            0  # bytes left of the current chunk, its CRLF included; 0: a chunk header comes next
        )
        self._line = b""  # the beginning of a chunk header or trailer line that is not whole yet
        self._in_trailers = False
        self._trailer_bytes = 0
        self.complete = False
        self.surplus = False
        self.framed = (0, 0)
        self.was_split: Split = (0, 0, 0, 0, 0, 0)
        """When `split` has raised: what came before it, as `framed`."""

    def frame(self, buffer: bytearray, start: int, end: int) -> tuple[int, int]:
        first = last = at = start
        try:
            while at < end:
                if not self._left and not self._line and not self._in_trailers:
                    # The usual case: chunks that are whole, one behind the other.
                    match = _CHUNK_HEADER.match(buffer, at, end)
                    while match is not None:
                        data = match.end()
                        size = int(match[1], 16)
                        behind = data + size
                        if not size or behind + 2 > end:
                            break
                        match = _NEXT_HEADER.match(buffer, behind, end)
                        if match is None and (buffer[behind] != _CR or buffer[behind + 1] != _LF):
                            break
                        if data - at > MAX_CHUNK_HEADER_BYTES:
                            raise ProtocolFailure(
                                f"a chunk header is longer than {MAX_CHUNK_HEADER_BYTES} bytes"
                            )
                        if last:
                            buffer[last : last + size] = buffer[data:behind]
                            last += size
                        else:  # nothing precedes: the first run may stay where it is
                            first, last = data, behind
                        at = behind + 2
                    if at == end:
                        break
                left = self._left
                if left > 2:
                    take = left - 2 if left - 2 < end - at else end - at
                    if last == at:
                        last += take
                    elif last == 0:  # nothing precedes: the first run may stay where it is
                        first, last = at, at + take
                    else:
                        with memoryview(buffer) as view:
                            view[last : last + take] = view[at : at + take]
                        last += take
                    at += take
                    self._left = left - take
                elif left:
                    # The CRLF behind the data; anything else means that the sizes are wrong.
                    if buffer[at] != (_CR if left == 2 else _LF):
                        raise ProtocolFailure("a chunk is not followed by CRLF")
                    at += 1
                    self._left = left - 1
                elif self.complete:
                    self.surplus = True
                    break
                elif self._in_trailers:
                    at = self._trailer(buffer, at, end)
                else:
                    at = self._header(buffer, at, end)
        except ProtocolFailure:
            self.framed = (first, last)
            raise
        return first, last

    def split(self, buffer: bytearray, end: int) -> Split:
        """As `frame(buffer, 0, end)`, but chunks that are whole and plain stay as they are, framing
        included.
        """
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
                behind = match.end() + count
                if (
                    count < _LEAST_WHOLE
                    or behind + 2 > end
                    or buffer[behind] != _CR
                    or buffer[behind + 1] != _LF
                ):
                    break
                size += count
                at = behind + 2
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

    def _header(self, buffer: bytearray, at: int, end: int) -> int:
        """Read a chunk header; the index behind what was consumed."""
        if not self._line:
            match = _CHUNK_HEADER.match(buffer, at, end)
            if match is not None and match.end() - at <= MAX_CHUNK_HEADER_BYTES:
                self._begin(int(match[1], 16))
                return match.end()
        line, at = self._whole_line(buffer, at, end, MAX_CHUNK_HEADER_BYTES, "a chunk header")
        if line is not None:
            match = _CHUNK_HEADER.fullmatch(line)
            if match is None:
                raise ProtocolFailure("a chunk header is malformed")
            self._begin(int(match[1], 16))
        return at

    def _begin(self, size: int) -> None:
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _trailer(self, buffer: bytearray, at: int, end: int) -> int:
        """Read one line of the trailer section; the index behind what was consumed."""
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
            if match is None or match[1].lower() in _NOT_IN_TRAILERS:
                raise ProtocolFailure("a trailer is malformed")
        return at

    def _whole_line(
        self, buffer: bytearray, at: int, end: int, limit: int, what: str
    ) -> tuple[bytes | None, int]:
        """The next line with its LF and the index behind it; None when it is not whole, and then it
        is kept.
        """
        newline = buffer.find(b"\n", at, end)
        behind = newline + 1 if newline >= 0 else end
        if len(self._line) + behind - at > limit:
            raise ProtocolFailure(f"{what} is longer than {limit} bytes")
        line = self._line + buffer[at:behind]
        if newline < 0:
            self._line = bytes(line)
            return None, end
        self._line = b""
        return bytes(line), behind


def framing_of(method: str, head: ResponseHead) -> Framing:
    """How the body of a response ends (RFC 9112, section 6.3)."""
    if method == "HEAD" or head.status in (204, 304):
        return ContentLength(0)
    if head.chunked:
        return Chunked()
    return UntilClose() if head.length is None else ContentLength(head.length)
