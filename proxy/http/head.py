"""Heads of requests and responses, and the framing of a request body, sans I/O (RFC 9112).

`encode_head` and `BodyEncoder` write requests; `HeadReader` reads responses. What they accept is
compared with h11 by `tests/fuzz/test_head_against_h11.py`: a head that h11 rejects is rejected, and
so is a line that ends with a bare LF, a folded line, and a control character, because two readers
could read those differently. One exception: white space between a field's name and the colon is
removed from a response (RFC 9112, section 5.1).

How a response's body is framed is decided in `body`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from interceptors.tokens import FIELD_VALUE, TOKEN

from ..errors import ProtocolFailure

__all__ = [
    "MAX_HEAD_BYTES",
    "BadRequest",
    "BodyEncoder",
    "HeadReader",
    "ResponseHead",
    "encode_head",
    "join_head",
]

MAX_HEAD_BYTES = 65536
_MAX_INFORMATIONAL = 64
_MAX_LENGTH_DIGITS = 18
_START = b"HTTP/1."

# Possessive (`++`, `*+`) inside a repetition, so that nothing backtracks into it.
_TOKEN, _VALUE = TOKEN.encode("ascii"), FIELD_VALUE.encode("latin-1")
_REQUEST_HEAD = re.compile(
    rb"%b [\x21-\x7e]+ HTTP/1\.1\r\n(?:%b+:%b+\r\n)+\r\n" % (_TOKEN, _TOKEN, _VALUE)
)
# RFC 9112, section 4. Some servers omit the space before an empty reason.
_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([0-9]{3})(?: (%b))?\r\n" % _VALUE)
# A line that does not match is not found, so that there are fewer than line feeds.
_FIELD_LINE = re.compile(rb"^(%b)[\t ]*:[\t ]*+(%b)\r\n" % (_TOKEN, _VALUE), re.MULTILINE)
_READ_HERE = frozenset((b"content-length", b"transfer-encoding", b"connection"))
_BARE_LF = re.compile(rb"(?<!\r)\n")


class BadRequest(ValueError):
    """A request that cannot be written as one HTTP/1.1 request with the meaning it has."""


def encode_head(
    method: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    *,
    host: bytes | None = None,
) -> tuple[bytes, int | None]:
    """The head of a request with its empty line, and the length of the body that it announces: None
    for a chunked one. `host` replaces the value of `Host`.

    Raises `BadRequest`, for example for a value with a line end.
    """
    names = [name.lower() for name, _ in headers]
    if names.count(b"host") != 1:
        raise BadRequest("a request has one Host header")  # RFC 9112, section 3.2
    length = _announced(names, headers)
    lines = list(map(b": ".join, headers))
    if host is not None:
        at = names.index(b"host")
        lines[at] = b"%b: %b" % (headers[at][0], host)
    lines.insert(0, b"%b %b HTTP/1.1" % (method.encode("ascii", "replace"), target))
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if (
        b":" in b"".join(names)  # it would end the name early
        or head.count(b"\n") != len(lines) + 1
        or _REQUEST_HEAD.fullmatch(head) is None
    ):
        raise BadRequest(
            "the method, the target or a header of the request cannot be written as HTTP/1.1"
        )
    return head, length


def join_head(
    method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], host: bytes | None
) -> bytes:
    """As `encode_head`, for what is known to be acceptable: nothing is checked a second time. `Host`
    must be the first field.
    """
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), target), *map(b": ".join, headers)]
    if host is not None:
        lines[1] = b"host: " + host
    lines += (b"", b"")
    return b"\r\n".join(lines)


def _announced(names: list[bytes], headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """The length of the body that a request announces; None for a chunked one."""
    lengths, codings = names.count(b"content-length"), names.count(b"transfer-encoding")
    if lengths + codings > 1:
        raise BadRequest("the request announces its length more than once")
    if codings:
        if headers[names.index(b"transfer-encoding")][1].lower() != b"chunked":
            raise BadRequest("Transfer-Encoding can only be chunked")
        return None
    if not lengths:
        return 0
    value = headers[names.index(b"content-length")][1]
    if not _is_length(value):
        raise BadRequest("Content-Length is not a number")
    return int(value)


class BodyEncoder:
    """Encodes the body of a request: chunked, or with the length that the head announces."""

    __slots__ = ("left",)

    def __init__(self, length: int | None) -> None:
        """`length`: from `encode_head`."""
        self.left = length
        """How many bytes are still to come; None for a chunked body."""

    def data(self, data: bytes) -> bytes:
        """A piece of the body as it is sent. Raises `BadRequest` if it exceeds the announced
        length.
        """
        if self.left is None:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        self.left -= len(data)
        if self.left < 0:
            raise BadRequest("the body of the request is longer than its Content-Length")
        return data

    def end(self) -> bytes:
        """The end of the body. Raises `BadRequest` if less than the announced length was given."""
        if self.left:
            raise BadRequest("the body of the request is shorter than its Content-Length")
        return b"0\r\n\r\n" if self.left is None else b""


class ResponseHead(msgspec.Struct, frozen=True):
    """The head of a response."""

    version: bytes
    """`1.0` or `1.1`."""
    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    """In the order and case received, without white space around names and values.
    `Content-Length` occurs once, with one number.
    """
    length: int | None
    """Content-Length."""
    chunked: bool
    """Transfer-Encoding: chunked; no other coding is accepted."""
    closes: bool
    """The connection must not be used again (RFC 9112, section 9.3)."""
    early: bytes
    """The bytes received after the head."""


class HeadReader(msgspec.Struct, eq=False):
    """Reads one response head from bytes as they arrive, and the informational heads before it."""

    interim: list[ResponseHead] = []  # msgspec makes one for each reader
    """Informational heads in order; the caller empties it."""
    _data: bytes = b""
    _informational: int = 0

    def receive(self, data: bytes) -> ResponseHead | None:
        """Take what has arrived; return the head once it is complete. Raises `ProtocolFailure`,
        whose message quotes nothing of the head.
        """
        seen = max(0, len(self._data) - 3)  # the empty line may have begun there
        data = self._data + data if self._data else data
        while True:
            if not data.startswith(_START) and not _START.startswith(data):
                # At once: a server of another protocol, such as TLS, would wait for more from us.
                raise _malformed()
            end = data.find(b"\r\n\r\n", seen) + 4
            if end < 4 or end > MAX_HEAD_BYTES:
                self._keep(data, seen)
                return None
            head = _parse(data, end)
            if head.status >= 200:
                return head
            self._note_interim(head)
            data = data[end:]
            seen = 0

    def _keep(self, data: bytes, seen: int) -> None:
        """Keep a head that is not complete yet."""
        if len(data) > MAX_HEAD_BYTES:
            raise ProtocolFailure(f"the response's head is longer than {MAX_HEAD_BYTES} bytes")
        if _BARE_LF.search(data, seen):
            raise _malformed()
        self._data = data

    def _note_interim(self, head: ResponseHead) -> None:
        if head.status == 101:
            raise ProtocolFailure(
                "the response switches to another protocol, which was not asked for"
            )
        self._informational += 1
        if self._informational > _MAX_INFORMATIONAL:
            raise ProtocolFailure(f"more than {_MAX_INFORMATIONAL} informational responses")
        self.interim.append(head)


def _parse(data: bytes, end: int) -> ResponseHead:
    status_line = _STATUS_LINE.match(data)
    if status_line is None or status_line[2] < b"100":
        raise _malformed()
    at = status_line.end()
    fields = _FIELD_LINE.findall(data, at, end - 2)
    if len(fields) != data.count(b"\n", at, end - 2):
        raise _malformed()
    headers: list[tuple[bytes, bytes]] = []
    length: bytes | None = None
    chunked = closes = False
    for name, value in fields:
        key = name.lower()
        value = value.rstrip(b"\t ")
        if key not in _READ_HERE:
            pass
        elif key == b"content-length":
            value = _one_length(value, length)
            if length is not None:
                continue
            length = value
        elif key == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise ProtocolFailure("the response has a Transfer-Encoding other than chunked")
            chunked = True
        else:
            closes = closes or b"close" in value.lower()
        headers.append((name, value))
    if chunked and length is not None:
        # RFC 9112, section 6.3, item 3: an attempt at response splitting, or a broken server.
        raise ProtocolFailure("the response has both Transfer-Encoding and Content-Length")
    return ResponseHead(
        version=status_line[1],
        status=int(status_line[2]),
        reason=status_line[3] or b"",
        headers=tuple(headers),
        length=None if length is None else int(length),
        chunked=chunked,
        closes=closes or status_line[1] != b"1.1",
        early=data[end:],
    )


def _one_length(value: bytes, before: bytes | None) -> bytes:
    """The one number of a Content-Length and any before it (RFC 9112, section 6.3, item 5)."""
    if before is None and _is_length(value):
        return value
    values = {item.strip() for item in value.split(b",")}
    if before is not None:
        values.add(before)
    first = values.pop()
    if values or not _is_length(first):
        raise _malformed()
    return first


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS


def _malformed() -> ProtocolFailure:
    # Quote nothing: the head may contain a secret.
    return ProtocolFailure("the response's head is not acceptable HTTP (RFC 9112)")
