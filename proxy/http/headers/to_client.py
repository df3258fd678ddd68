"""The header fields of the response that goes to the client: what is removed, what is added, and
which fields of the upstream do not fit a changed body.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import interceptor_failed
from .fields import HeaderList, are_fields
from .hop import HOP_BY_HOP

__all__ = ["check_response_headers", "response_headers", "with_length_of", "without_stale"]

# True of one content only (RFC 9110, sections 8.8 and 14.3; RFC 9530; RFC 1864).
_ABOUT_CONTENT = frozenset(
    b"etag last-modified content-md5 digest content-digest repr-digest accept-ranges".split()
)
_NO_NAMES: frozenset[bytes] = frozenset()
_FOR_STREAMS = HOP_BY_HOP | {b"x-accel-buffering"}


def response_headers(
    headers: Iterable[tuple[bytes, bytes]], *, sse: bool, dropped: frozenset[bytes] = _NO_NAMES
) -> HeaderList:
    """The fields that go to the client, names in lower case. `dropped`: names that the server adds
    itself, or whose values do not fit a changed body. `sse` asks proxies in front not to buffer.
    """
    # An interceptor may have set a field of the hop; framing is the server's.
    never = _FOR_STREAMS if sse else HOP_BY_HOP
    result: HeaderList = []
    for name, value in headers:
        name = name.lower()
        if name not in never and name not in dropped:
            result.append((name, value))
    if sse:
        result.append((b"x-accel-buffering", b"no"))
    return result


def without_stale(
    headers: Iterable[tuple[bytes, bytes]],
    received: Iterable[tuple[bytes, bytes]],
    *,
    length: bool = False,
) -> HeaderList:
    """The fields of a message whose content may differ from what `received` describes: without its
    validators, digests and `Accept-Ranges`, and with `length` without its `Content-Length`. A value
    that an interceptor has changed stays.
    """
    stale = {
        field
        for field in received
        if field[0] in _ABOUT_CONTENT or (length and field[0] == b"content-length")
    }
    return [field for field in headers if (field[0].lower(), field[1]) not in stale]


def with_length_of(headers: HeaderList, received: HeaderList) -> HeaderList:
    """A response's fields with the `Content-Length` that was received, or without one: interceptors
    do not decide the framing.
    """
    length = [field for field in received if field[0] == b"content-length"]
    own = [field for field in headers if field[0].lower() == b"content-length"]
    if own == length:
        return headers
    return [*(field for field in headers if field not in own), *length]


def check_response_headers(headers: HeaderList) -> None:
    """Raise `RequestRefused` (502) for a field of an interceptor that no header can contain (RFC
    9110, section 5.5). The server would fail only while it writes the head.
    """
    if not are_fields(headers) or any(
        name == b"content-length" and not value.isdigit() for name, value in headers
    ):
        raise interceptor_failed(
            "an interceptor has set a response header that holds what a header cannot hold"
        )
