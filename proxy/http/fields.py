"""The head of a client's HTTP/2 request, from its decoded fields, sans I/O (RFC 9113, section 8).

A malformed request is a matter of its stream (section 8.1.1): what is wrong becomes the head's
`fault`, which states the answer, as in HTTP/1.1. Such a head has no method and no target. What a
target or a host means is decided in `target`.
"""

from __future__ import annotations

import re

from interceptors.tokens import FIELD_VALUE, TOKEN

from ..errors import RequestRefused
from .head import MAX_HEAD_BYTES
from .request import RequestHead, one_length
from .target import Host, origin_port, parse_host

__all__ = ["are_trailers", "read_request_head"]

Fields = list[tuple[bytes, bytes]]

_TOKEN, _VALUE = TOKEN.encode("ascii"), FIELD_VALUE.encode("latin-1")
_LOWER = _TOKEN.replace(b"A-Z", b"")
# Sections 8.2.1 and 8.2.2. A value without white space at its ends. Possessive, so that nothing
# backtracks; the group is not, because of gh-106052.
_FIELD = rb"%b+:(?![\t ])%b+(?<![\t ])\n" % (_LOWER, _VALUE)
_FIELDS = re.compile(rb"(?:%b)*" % _FIELD)
_METHOD = re.compile(_TOKEN)
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*")
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_OF_CONNECTION = frozenset(
    b"connection proxy-connection keep-alive transfer-encoding upgrade".split()
)
_WRITTEN_ANEW = frozenset((b"host", b"content-length", b"cookie"))
_READ_HERE = _OF_CONNECTION | _WRITTEN_ANEW | {b"te", b"expect"}
_LINE_BYTES = 4  # what a field's line in HTTP/1.1 has besides its name and its value


def read_request_head(fields: Fields, *, ended: bool) -> RequestHead:
    """The head that these fields make; `:authority` is its `Host`. `ended`: no body follows."""
    try:
        return _read(fields, ended)
    except RequestRefused as fault:
        fault = fault.with_traceback(None)
        return RequestHead("", b"", [], "2", 0 if ended else None, True, False, fault)


def are_trailers(fields: Fields) -> bool:
    """Whether these fields may follow a request's body (RFC 9113, section 8.1)."""
    return _are_valid(fields) and not any(map(_is_of_connection, fields))


def _split(fields: Fields) -> tuple[dict[bytes, bytes], Fields]:
    """The pseudo-fields, and the others. Raises `RequestRefused`."""
    if sum([len(name) + len(value) + _LINE_BYTES for name, value in fields]) > MAX_HEAD_BYTES:
        raise RequestRefused(
            431, "head_too_large", f"the request's head is longer than {MAX_HEAD_BYTES} bytes"
        )
    count = 0
    while count < len(fields) and fields[count][0].startswith(b":"):
        count += 1
    pseudo = dict(fields[:count])
    headers = fields[count:]
    if len(pseudo) != count or not pseudo.keys() <= _PSEUDO:
        raise _malformed("a pseudo-header field twice, or an unknown one")
    return pseudo, headers


def _read(fields: Fields, ended: bool) -> RequestHead:
    pseudo, headers = _split(fields)
    read = [field for field in headers if field[0] in _READ_HERE]
    if not _are_valid(headers) or any(map(_is_of_connection, read)):
        raise _malformed("a header field that HTTP/2 does not allow")
    method, target = _line(pseudo)
    host, lengths = _host(pseudo, _values(read, b"host")), _values(read, b"content-length")
    length = b"0" if ended else None
    if lengths:
        length = one_length(lengths)
        if length is None or (ended and int(length)):
            raise _malformed("a Content-Length that is not one number, or not the body's")
    headers = [field for field in headers if field[0] not in _WRITTEN_ANEW]
    headers.insert(0, (b"host", host))
    if lengths and length is not None:
        headers.append((b"content-length", length))
    if crumbs := _values(read, b"cookie"):
        headers.append((b"cookie", b"; ".join(crumbs)))  # RFC 9113, section 8.2.3
    return RequestHead(
        method=method,
        target=target,
        headers=headers,
        version="2",
        length=None if length is None else int(length),
        keep_alive=True,
        expects_continue=not ended
        and any(value.lower() == b"100-continue" for value in _values(read, b"expect")),
    )


def _line(pseudo: dict[bytes, bytes]) -> tuple[str, bytes]:
    """The method and the target (RFC 9113, sections 8.3.1 and 8.5; RFC 8441, section 4)."""
    method, scheme = pseudo.get(b":method", b""), pseudo.get(b":scheme")
    path, authority = pseudo.get(b":path"), pseudo.get(b":authority")
    if _METHOD.fullmatch(method) is None:
        raise _malformed("no :method, or one that is not a token")
    name = method.decode("ascii").upper()
    if (path is not None and _TARGET.fullmatch(path) is None) or (
        authority is not None and _TARGET.fullmatch(authority) is None
    ):
        raise _malformed("an empty :authority or :path, or one that no URL can have")
    tunnels = name == "CONNECT" and b":protocol" not in pseudo
    if b":protocol" in pseudo and name != "CONNECT":
        raise _malformed(":protocol without CONNECT")
    if tunnels:
        if scheme is not None or path is not None or authority is None:
            raise _malformed("CONNECT with :scheme or :path, or without :authority")
        return name, authority
    if path is None or scheme is None or _SCHEME.fullmatch(scheme) is None:
        raise _malformed("no :path, or no valid :scheme")
    return name, path


def _are_valid(fields: Fields) -> bool:
    lines = b"".join([b"%b:%b\n" % field for field in fields])
    return _FIELDS.fullmatch(lines) is not None and lines.count(b"\n") == len(fields)


def _is_of_connection(field: tuple[bytes, bytes]) -> bool:
    name, value = field
    return name in _OF_CONNECTION or (name == b"te" and value.lower() != b"trailers")


def _host(pseudo: dict[bytes, bytes], values: list[bytes]) -> bytes:
    """`:authority`, or else Host; where there are both, they must name the same (RFC 9113, section
    8.3.1).
    """
    authority = pseudo.get(b":authority")
    if len(values) > 1 or (authority is None and not values):
        raise _malformed("neither :authority nor one Host, or more than one Host")
    if authority is None:
        return values[0]
    for value in values:
        own, other = parse_host(value), parse_host(authority)
        if value != authority and (
            own is None or other is None or _origin(pseudo, own) != _origin(pseudo, other)
        ):
            raise _malformed("a Host that differs from :authority")
    return authority


def _origin(pseudo: dict[bytes, bytes], host: Host) -> tuple[str, int | None]:
    scheme = pseudo.get(b":scheme", b"").decode("ascii").lower()
    return host.name, origin_port(scheme, host.port)


def _values(fields: Fields, wanted: bytes) -> list[bytes]:
    return [value for name, value in fields if name == wanted]


def _malformed(what: str) -> RequestRefused:
    # Quote nothing: the head may contain a secret.
    return RequestRefused(400, "bad_request", f"the request has {what} (RFC 9113)")
