"""The head of a client's HTTP/1.1 request, read in place and sans I/O (RFC 9112, sections 2 to 7).

`RequestReader` takes the bytes of one connection, in any pieces, and returns the head of the next
request when all of it has arrived. It is strict where two readers could read a head differently: a
line ends with CRLF, no line is folded, no white space precedes a colon, no control character occurs
(RFC 9112, sections 2.2 and 5). `tests/fuzz/test_request_against_h11.py` compares it with h11.

What it cannot read is the head's `fault`, which states the answer. Such a head has no method and no
target, and the connection must be closed after the answer. What a target or a host means is decided
in `target`.
"""

from __future__ import annotations

import re

import msgspec

from interceptors.tokens import FIELD_VALUE, TOKEN

from ..errors import RequestRefused
from .head import MAX_HEAD_BYTES

__all__ = ["Http2Assumed", "RequestHead", "RequestReader", "one_length"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"  # the part that looks like a head (RFC 9113, section 3.4)
_MAX_EMPTY_LINES = 8
_MAX_LENGTH_DIGITS = 18
_TOKEN, _VALUE = TOKEN.encode("ascii"), FIELD_VALUE.encode("latin-1")
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])\r\n" % _TOKEN)
# A line that does not match is not found, so that there are fewer than line feeds.
_FIELD_LINE = re.compile(rb"^(%b):[\t ]*+(%b)\r\n" % (_TOKEN, _VALUE), re.MULTILINE)
_READ_HERE = frozenset((b"content-length", b"transfer-encoding", b"connection", b"expect"))
# Wrong in every head, however it goes on: the answer need not wait for its end.
_LAX = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[\t ]")
_BEGINNING = re.compile(rb"%b(?: |\Z)|[\r\n]" % _TOKEN)


class Http2Assumed(Exception):
    """The client speaks HTTP/2 from its first byte. All of it is still in `RequestReader.data`."""


class RequestHead(msgspec.Struct, frozen=True):
    """The head of one request, as it arrived."""

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    """In the order received, names in lower case, values without white space around them.
    `Content-Length` occurs at most once.
    """
    version: str
    """`1.0`, `1.1` or `2`."""
    length: int | None
    """The length of the body; None for a chunked one, and over HTTP/2 for an unknown one."""
    keep_alive: bool
    """The connection may be used for another request (RFC 9112, section 9.3)."""
    expects_continue: bool
    """The client waits for 100 before it sends the body (RFC 9110, section 10.1.1)."""
    fault: RequestRefused | None = None
    """Why the head cannot be read."""
    unchecked: bool = False
    """Another server has read it: its fields may break the grammar of HTTP."""


class RequestReader:
    """Reads the heads of one connection. `data` holds what has arrived after the last head."""

    __slots__ = ("_empty_lines", "_first", "_seen", "data")

    def __init__(self) -> None:
        self.data = b""
        self._first = True
        self._seen = 0  # of `data`: no empty line begins before it
        self._empty_lines = 0

    @property
    def has_begun(self) -> bool:
        """Whether a part of a head has arrived."""
        return bool(self.data)

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self.data = self.data + data if self.data else data

    def take(self, max_bytes: int) -> bytes:
        """Remove and return at most that many bytes: a part of the request's body."""
        data = self.data
        if len(data) <= max_bytes:
            self.data = b""
            return data
        self.data = data[max_bytes:]
        return data[:max_bytes]

    def read(self) -> RequestHead | None:
        """Return the next head and remove it from `data`; None while it is incomplete. Raises
        `Http2Assumed` instead of the first head.
        """
        data = self.data
        if self._first and data.startswith(_PREFACE):
            raise Http2Assumed
        if data.startswith(b"\r\n") and not self._skip_empty_lines():
            return None if self._empty_lines <= _MAX_EMPTY_LINES else _refused("empty lines")
        data = self.data
        end = data.find(b"\r\n\r\n", self._seen) + 4
        if end < 4 or end > MAX_HEAD_BYTES:
            return self._incomplete(data)
        head = _parse(data, end)
        self.data = data[end:]
        self._seen = self._empty_lines = 0
        self._first = False
        return head

    def _skip_empty_lines(self) -> bool:
        """Ignore empty lines before a request (RFC 9112, section 2.2). Returns whether something
        else follows.
        """
        while self.data.startswith(b"\r\n"):
            self.data = self.data[2:]
            self._seen = 0
            self._first = False
            self._empty_lines += 1
            if self._empty_lines > _MAX_EMPTY_LINES:
                return False
        return bool(self.data)

    def _incomplete(self, data: bytes) -> RequestHead | None:
        if not data:
            return None
        # Only what is within the limit, so that the answer does not depend on how the head is cut.
        last = min(len(data), MAX_HEAD_BYTES)
        last -= data[last - 1] == 0x0D  # a CR, whose LF may follow
        if _LAX.search(data, self._seen, last) or _BEGINNING.match(data) is None:
            return _refused("line")
        if len(data) > MAX_HEAD_BYTES:
            return _fault(
                RequestRefused(
                    431,
                    "head_too_large",
                    f"the request's head is longer than {MAX_HEAD_BYTES} bytes",
                )
            )
        self._seen = max(0, len(data) - 3)
        return None


def _parse(data: bytes, end: int) -> RequestHead:
    line = _REQUEST_LINE.match(data, 0, end)
    if line is None:
        return _refused("line")
    at = line.end()
    fields = _FIELD_LINE.findall(data, at, end - 2)
    if len(fields) != data.count(b"\n", at, end - 2):
        return _refused("line")
    if line[3] != b"1":
        return _fault(
            RequestRefused(505, "version_not_supported", "this server supports HTTP/1.1 and HTTP/2")
        )
    version = "1.0" if line[4] == b"0" else "1.1"
    headers = [(name.lower(), value.rstrip(b"\t ")) for name, value in fields]
    read = dict(headers)
    if len(read) != len(headers):
        read = _joined(headers)
    given, coding = read.get(b"content-length"), read.get(b"transfer-encoding")
    length = b"0" if given is None else one_length([given])
    if length is None:
        return _refused("length")
    if coding is not None and coding.lower() != b"chunked":
        return _fault(
            RequestRefused(501, "not_supported", "the only transfer coding of a request is chunked")
        )
    if coding is not None or given not in (None, length):
        headers = _normalized(headers, length)
    is_last = version == "1.0" or (
        b"connection" in read and b"close" in _members(read[b"connection"])
    )
    return RequestHead(
        method=line[1]
        .decode("ascii")
        .upper(),  # as documented: policies and upstream read it alike
        target=line[2],
        headers=headers,
        version=version,
        length=None if coding is not None else int(length),
        keep_alive=not is_last and (coding is None or given is None),
        expects_continue=b"expect" in read
        and version == "1.1"
        and b"100-continue" in _members(read[b"expect"]),
    )


def _normalized(headers: list[tuple[bytes, bytes]], length: bytes) -> list[tuple[bytes, bytes]]:
    """The fields with one Content-Length, and the transfer coding in lower case."""
    first = next((at for at, (name, _) in enumerate(headers) if name == b"content-length"), None)
    given = {b"content-length": length, b"transfer-encoding": b"chunked"}
    return [
        (name, given.get(name, value))
        for at, (name, value) in enumerate(headers)
        if name != b"content-length" or at == first
    ]


def _joined(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The values of each field that is read here, as one list (RFC 9110, section 5.3)."""
    read: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ_HERE:
            read[name] = read[name] + b"," + value if name in read else value
    return read


def _members(value: bytes) -> list[bytes]:
    return [item.strip(b"\t ") for item in value.lower().split(b",")]


def one_length(values: list[bytes]) -> bytes | None:
    """The one number of all Content-Lengths (RFC 9112, section 6.3, item 5); None if there is none."""
    if len(values) == 1 and values[0].isdigit() and len(values[0]) <= _MAX_LENGTH_DIGITS:
        return values[0]
    numbers = {item.strip(b"\t ") for value in values for item in value.split(b",")}
    first = numbers.pop()
    if numbers or not first.isdigit() or len(first) > _MAX_LENGTH_DIGITS:
        return None
    return first


_MALFORMED = {
    "line": "the request's head is not acceptable HTTP (RFC 9112)",
    "length": "the request's Content-Length is not one number",
    "empty lines": "the connection sends empty lines instead of a request",
}


def _refused(what: str) -> RequestHead:
    # Quote nothing: the head may contain a secret.
    return _fault(RequestRefused(400, "bad_request", _MALFORMED[what]))


def _fault(fault: RequestRefused) -> RequestHead:
    return RequestHead("", b"", [], "1.1", 0, False, False, fault)
