"""Heads of requests and responses, and the framing of a request body, sans I/O (RFC 9112).

Written and read here with one regular expression each: h11's state machines cost a short exchange
more than everything else we do for it. What is read is held against h11 by
`tests/fuzz/test_head_against_h11.py`: whatever h11 rejects is rejected, and so are a line that ends
with a bare LF, a folded line, and a control character, which two readers could read differently.
One exception: a proxy removes white space between a field's name and the colon from a response (RFC
9112, section 5.1).

It does not know how a response's body is framed: `body` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ProtocolFailure

__all__ = [
    "MAX_HEAD_BYTES",
    "BadRequest",
    "BodyEncoder",
    "HeadReader",
    "ResponseHead",
    "encode_head",
]

MAX_HEAD_BYTES = 65536
_MAX_INFORMATIONAL = 64
_MAX_LENGTH_DIGITS = 18

# Possessive (`++`, `*+`) where they repeat within a repetition: nothing goes back into them.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"
_NAME = re.compile(_TOKEN)
_REQUEST_HEAD = re.compile(
    rb"%b [\x21-\x7e]+ HTTP/1\.1\r\n(?:%b+:%b+\r\n)+\r\n" % (_TOKEN, _TOKEN, _VALUE)
)
# RFC 9112, section 4. The space before an empty reason is left out by some.
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3})(?: (%b))?\r\n" % _VALUE)
_FIELD_LINE = re.compile(rb"(%b)[\t ]*:[\t ]*+(%b)\r\n" % (_TOKEN, _VALUE))
_FIELD_LINES = re.compile(rb"(?:%b+[\t ]*+:%b+\r\n)*" % (_TOKEN, _VALUE))
_BARE_LF = re.compile(rb"(?<!\r)\n")


class BadRequest(ValueError):
    """A request that cannot be written: it would not be one request, or not the one that was meant."""


def encode_head(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The head of a request, with its empty line. Raises `BadRequest`, also for a value that would
    begin a line of its own.
    """
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii", "replace"), target)]
    lines += [b"%b: %b" % header for header in headers]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if (
        _REQUEST_HEAD.fullmatch(head) is None
        or head.count(b"\n") != len(lines) + 1
        or not all(
            _NAME.fullmatch(name) for name, _ in headers
        )  # a colon in one would end it early
    ):
        raise BadRequest(
            "the method, the target or a header of the request cannot be written as HTTP/1.1"
        )
    if sum(name.lower() == b"host" for name, _ in headers) != 1:
        raise BadRequest("a request has one Host header")  # RFC 9112, section 3.2
    return head


class BodyEncoder:
    """The body of a request on its way up: chunked, or of the length that the head has announced."""

    __slots__ = ("_left",)

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raises `BadRequest` when the headers announce no body that this could be."""
        self._left: int | None = 0
        told = 0
        for name, value in headers:
            name = name.lower()
            if name == b"transfer-encoding":
                told += 1
                if value.lower() != b"chunked":
                    raise BadRequest("Transfer-Encoding can only be chunked")
                self._left = None
            elif name == b"content-length":
                told += 1
                if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
                    raise BadRequest("Content-Length is not a number")
                self._left = int(value)
        if told > 1:
            raise BadRequest("the request announces its length more than once")

    @property
    def left(self) -> int | None:
        """How many bytes are missing; None when that is not announced."""
        return self._left

    def data(self, data: bytes) -> bytes:
        """A piece of the body, as it goes out. Raises `BadRequest` when it is more than was
        announced.
        """
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self._left -= len(data)
        if self._left < 0:
            raise BadRequest("the body of the request is longer than its Content-Length")
        return data

    def end(self) -> bytes:
        """The end of the body. Raises `BadRequest` when some of what was announced is missing."""
        if self._left:
            raise BadRequest("the body of the request is shorter than its Content-Length")
        return b"0\r\n\r\n" if self._left is None else b""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response."""

    version: bytes
    """`1.0` or `1.1`."""
    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """As they came, in their order, without white space around names and values; `Content-Length`
    once, with one number.
    """
    length: int | None
    """Content-Length."""
    chunked: bool
    """Transfer-Encoding: chunked; no other coding is accepted."""
    closes: bool
    """The connection is not to be used again (RFC 9112, section 9.3)."""
    early: bytes
    """What came behind the head."""


class HeadReader:
    """Reads one response head from bytes as they come, after any informational ones, which it keeps
    apart.
    """

    __slots__ = ("_data", "_informational", "interim")

    def __init__(self) -> None:
        self._data = b""
        self._informational = 0
        self.interim: list[ResponseHead] = []
        """Informational responses that have come, in their order; the caller empties it."""

    def receive(self, data: bytes) -> ResponseHead | None:
        """Take in what has arrived; the head when it is whole. Raises `ProtocolFailure`, which
        quotes nothing of the head.
        """
        seen = max(0, len(self._data) - 3)  # the empty line may have begun before
        data = self._data + data if self._data else data
        while True:
            if not data.startswith(b"HTTP/1.") and not b"HTTP/1.".startswith(data):
                raise _not_acceptable()  # at once: somebody who speaks TLS, say, would wait for us to go on
            end = data.find(b"\r\n\r\n", seen) + 4
            if end < 4 or end > MAX_HEAD_BYTES:
                if len(data) > MAX_HEAD_BYTES:
                    raise ProtocolFailure(
                        f"the response's head is longer than {MAX_HEAD_BYTES} bytes"
                    )
                if _BARE_LF.search(data, seen):
                    raise _not_acceptable()
                self._data = data
                return None
            head = _parse(data, end)
            if head.status >= 200:
                return head
            if head.status == 101:
                raise ProtocolFailure("switched to a protocol that nobody here speaks")
            self._informational += 1
            if self._informational > _MAX_INFORMATIONAL:
                raise ProtocolFailure(f"more than {_MAX_INFORMATIONAL} informational responses")
            self.interim.append(head)
            data = data[end:]
            seen = 0


def _parse(data: bytes, end: int) -> ResponseHead:
    status_line = _STATUS_LINE.match(data)
    if status_line is None:
        raise _not_acceptable()
    at = status_line.end()
    if _FIELD_LINES.fullmatch(data, at, end - 2) is None:
        raise _not_acceptable()
    status = int(status_line[2])
    if status < 100:
        raise _not_acceptable()
    headers: list[tuple[bytes, bytes]] = []
    length: bytes | None = None
    chunked = closes = False
    for name, value in _FIELD_LINE.findall(data, at, end - 2):
        key = name.lower()
        value = value.rstrip(b"\t ")
        if key == b"content-length":
            values = {item.strip() for item in value.split(b",")}
            if length is not None:
                values.add(length)
            first = values.pop()
            if values or not first.isdigit() or len(first) > _MAX_LENGTH_DIGITS:
                raise _not_acceptable()  # RFC 9112, section 6.3, item 5
            if length is not None:
                continue
            length = value = first
        elif key == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise ProtocolFailure("the response has a Transfer-Encoding other than chunked")
            chunked = True
        elif key == b"connection":
            closes = closes or b"close" in value.lower()
        headers.append((name, value))
    if chunked and length is not None:
        # Section 6.3, item 3: an attempt at response splitting, or a broken server.
        raise ProtocolFailure("the response has both Transfer-Encoding and Content-Length")
    version = status_line[1]
    return ResponseHead(
        version,
        status,
        status_line[3] or b"",
        tuple(headers),
        None if length is None else int(length),
        chunked,
        closes or version != b"1.1",
        data[end:],
    )


def _not_acceptable() -> ProtocolFailure:
    # Without the head's own words: they may hold a secret.
    return ProtocolFailure("the response's head is not acceptable HTTP (RFC 9112)")
