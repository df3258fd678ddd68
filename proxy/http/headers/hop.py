"""What belongs to one connection, and is removed from a message as it arrives.

It also removes second spellings: CGI and its successors read `X_User_Id` as `X-User-Id` (RFC 3875,
section 4.1.18), so a field that the proxy has checked could be replaced by one that it has not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...errors import RequestRefused
from .fields import HeaderList, find_header

__all__ = [
    "HOP_BY_HOP",
    "end_to_end",
    "received_request",
    "refuse_two_lengths",
    "without_doubles",
]

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info "
    b"proxy-authorization te trailer transfer-encoding upgrade http2-settings".split()
)
"""RFC 9110, section 7.6.1, and older names. Proxy-Authorization is for this proxy."""

# `Connection` must not remove what the message means or where it has been (RFC 9110, section 7.6.1:
# it must not name a field that is for all recipients), nor a report about the client.
_NEVER_NAMED = frozenset(
    b"host origin content-length transfer-encoding content-type content-encoding cache-control "
    b"authorization cookie via max-forwards".split()
)
_READ_HERE = frozenset(
    b"expect accept-encoding last-event-id content-range if-range "
    b"access-control-request-method".split()
)
_REPORT_INITIALS = (b"x", b"f")
_MAY_BE_REMOVED = re.compile(rb"[A-Z_]|forwarded|x-real-ip")


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> HeaderList:
    """The fields of a received message that are not hop-by-hop, names in lower case (RFC 9110,
    section 7.6.1).

    Call it once, when the message arrives: the peer's `Connection` must not remove what
    interceptors and the configuration add later.
    """
    result: HeaderList = []
    connection: list[bytes] = []
    for name, value in headers:
        name = name.lower()
        if name not in HOP_BY_HOP:
            result.append((name, value))
        elif name == b"connection":
            connection.append(value)
    return _without_named(result, connection) if connection else result


def received_request(
    headers: HeaderList, *, trusted: bool, request_id: bytes | None = None
) -> HeaderList:
    """The fields of a request as everything in the proxy reads them: as `end_to_end`, but with
    `Transfer-Encoding`, and without reports about the client unless the peer is `trusted`.

    Second spellings of reports and of fields that the proxy reads, such as `request_id`, are removed,
    trusted or not.
    """
    names = [name for name, _ in headers]
    if HOP_BY_HOP.isdisjoint(names) and _MAY_BE_REMOVED.search(b"\n".join(names)) is None:
        return headers  # as most are
    result: HeaderList = []
    connection: list[bytes] = []
    for name, value in headers:
        name = name.lower()
        if name in HOP_BY_HOP:
            if name == b"connection":
                connection.append(value)
            elif name == b"transfer-encoding":
                result.append((name, value))
        elif name.startswith(_REPORT_INITIALS) and _is_report(name):
            if trusted and b"_" not in name:
                result.append((name, value))
        elif b"_" not in name or not _is_read_here(name.replace(b"_", b"-"), request_id):
            result.append((name, value))
    return _without_named(result, connection) if connection else result


def without_doubles(
    headers: HeaderList, received: HeaderList, removed: frozenset[bytes]
) -> HeaderList:
    """A request's fields without second spellings of what an interceptor has set or removed, or of
    what the configuration removes (`removed`). `received`: before the interceptors.
    """
    if not any(b"_" in name for name, _ in received):
        return headers
    changed = removed.union([name for name, _ in set(headers).symmetric_difference(received)])
    owned = frozenset(name.replace(b"_", b"-") for name in changed if b"_" not in name)
    doubles = {
        field for field in received if b"_" in field[0] and field[0].replace(b"_", b"-") in owned
    }
    return [field for field in headers if field not in doubles] if doubles else headers


def refuse_two_lengths(headers: Sequence[tuple[bytes, bytes]], http_version: str) -> None:
    """Raise `RequestRefused` (400) for a request whose end two servers could find at two places
    (RFC 9112, sections 6.1 and 6.3).

    Call it before anything else is answered: this answer closes the connection, so that nothing
    after such a request is read as another request.
    """
    if find_header(headers, b"transfer-encoding") is None:
        return
    if http_version == "1.0":
        raise RequestRefused(
            400, "bad_request", "an HTTP/1.0 request cannot have Transfer-Encoding"
        )
    if find_header(headers, b"content-length") is not None:
        raise RequestRefused(
            400, "bad_request", "the request has both Content-Length and Transfer-Encoding"
        )


def _without_named(headers: HeaderList, connection: list[bytes]) -> HeaderList:
    """The fields without those that `Connection` names."""
    named = {item.strip().lower() for item in b",".join(connection).split(b",")}
    removed = {name for name in named if name not in _NEVER_NAMED and not _is_report(name)}
    return [field for field in headers if field[0] not in removed] if removed else headers


def _is_report(name: bytes) -> bool:
    """Whether a field is a report about the client that only a proxy in front can make."""
    name = name.replace(b"_", b"-")
    return name.startswith(b"x-forwarded-") or name in (b"forwarded", b"x-real-ip")


def _is_read_here(name: bytes, request_id: bytes | None) -> bool:
    """Whether the proxy itself reads or writes a field."""
    return (
        name in HOP_BY_HOP
        or name in _NEVER_NAMED
        or name in _READ_HERE
        or name == request_id
        or name.startswith(b"mcp-")
    )
