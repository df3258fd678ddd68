"""The header fields of the request that goes upstream: what is removed, and what the proxy adds.

It starts from `hop.received_request` as interceptors have left it. It knows no connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from secrets import token_hex

from ...errors import RequestRefused
from .fields import HeaderList, find_header, find_headers
from .forwarded import outer_prefix
from .hop import HOP_BY_HOP

__all__ = [
    "HeaderSettings",
    "Via",
    "forwards_left",
    "new_pseudonym",
    "one_forward_less",
    "refuse_trace",
    "request_headers",
]

_MAX_FORWARDS = 2**31 - 1
_REPORTS = frozenset(b"x-forwarded-for x-forwarded-proto x-forwarded-host via".split())
# An interceptor may have set a hop-by-hop field, but not for this connection; the rest is written
# anew.
_WRITTEN_ANEW = HOP_BY_HOP | frozenset(
    b"host content-length expect x-forwarded-for x-forwarded-proto x-forwarded-host via".split()
)
_ENCODING = b"accept-encoding"


class HeaderSettings:
    """What a route changes in request headers, prepared once."""

    __slots__ = ("host", "plain", "prefix", "removed", "unencoded")

    def __init__(
        self,
        host: bytes | None,
        set: Sequence[tuple[bytes, bytes]],
        removed: frozenset[bytes],
        prefix: bytes = b"",
    ) -> None:
        """`host`: the Host header, None for the client's. `set`: fields to add. `removed`: names
        that do not pass, those of `set` included. `prefix`: what the route strips from paths,
        without a slash at its end.
        """
        self.host = host
        self.removed = removed
        self.prefix = prefix
        dropped = _WRITTEN_ANEW | removed
        if prefix:
            dropped |= {b"x-forwarded-prefix"}
        self.plain = dropped, tuple(set)
        """Names that do not pass, and fields that are added."""
        others = (field for field in set if field[0] != _ENCODING)
        self.unencoded = dropped | {_ENCODING}, ((_ENCODING, b"identity"), *others)
        """The same for a request that asks for an unencoded body."""


def request_headers(
    headers: Sequence[tuple[bytes, bytes]],
    settings: HeaderSettings,
    *,
    client: str | None,
    scheme: str,
    identity: bool,
    body: bytes | None,
    via: bytes,
    expects_continue: bool = False,
) -> HeaderList:
    """The fields that go upstream.

    `identity`: ask for an unencoded body. `body`: the Content-Length, b"" for a body of unknown
    length, None for no body. `via`: the entry of this instance. `expects_continue`: the body is
    sent after a 100. Raises `RequestRefused` (400) for several Host headers, of which two servers
    could read different ones (RFC 9112, section 3.2).

    X-Forwarded-Proto and -Host of a trusted proxy or an interceptor stay; the client's address is
    appended to -For.
    """
    dropped, added = settings.unencoded if identity else settings.plain
    fields = dict(headers)
    if len(fields) != len(headers) and len(find_headers(headers, b"host")) > 1:
        raise RequestRefused(400, "bad_request", "the request has more than one Host header")
    host = fields.get(b"host", b"")
    result = [(b"host", host if settings.host is None else settings.host)]
    result += [field for field in headers if field[0] not in dropped]
    if body is not None:
        result.append((b"content-length", body) if body else (b"transfer-encoding", b"chunked"))
    if expects_continue:
        result.append((b"expect", b"100-continue"))
    addresses = b"" if client is None else client.encode("ascii", "replace")
    proto = scheme.encode("ascii")
    if not _REPORTS.isdisjoint(fields):
        addresses, proto, host, via = _continued(headers, addresses, proto, host, via)
    reports = [
        (b"x-forwarded-for", addresses),
        (b"x-forwarded-proto", proto),
        (b"x-forwarded-host", host),
        (b"via", via),
    ]
    if settings.prefix:
        reports.insert(-1, (b"x-forwarded-prefix", outer_prefix(headers) + settings.prefix))
    if settings.removed or not addresses or not host:
        removed = settings.removed
        reports = [field for field in reports if field[1] and field[0] not in removed]
    result += reports
    result += added
    return result


def _continued(
    headers: Sequence[tuple[bytes, bytes]], address: bytes, proto: bytes, host: bytes, via: bytes
) -> tuple[bytes, bytes, bytes, bytes]:
    """The values of X-Forwarded-For, -Proto and -Host, and Via, after those that a request has."""
    addresses = find_headers(headers, b"x-forwarded-for")
    if address:
        addresses.append(address)
    return (
        b", ".join(addresses),
        find_header(headers, b"x-forwarded-proto") or proto,
        find_header(headers, b"x-forwarded-host") or host,
        b", ".join([*find_headers(headers, b"via"), via]),
    )


class Via:
    """One instance of the proxy in `Via` (RFC 9110, section 7.6.3): it appends itself, and detects
    a request that has passed it before.

    All workers of one `weirpool serve` share the pseudonym, so that a loop over several workers is
    found. Responses get no entry; a gateway may leave it out.
    """

    __slots__ = ("_entries", "_pseudonym")

    def __init__(self, pseudonym: str) -> None:
        """`pseudonym`: a token; see `new_pseudonym`."""
        self._pseudonym = pseudonym.encode("ascii")
        self._entries: dict[str, bytes] = {}

    def entry(self, http_version: str) -> bytes:
        """The entry of this instance. `http_version`: of the client's request."""
        entry = self._entries.get(http_version)
        if entry is None:
            entry = b"%b %b" % (http_version.encode("ascii"), self._pseudonym)
            self._entries[http_version] = entry
        return entry

    def lists(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request has passed this instance."""
        return any(
            self._pseudonym in item.split()[1:2]
            for value in find_headers(headers, b"via")
            if self._pseudonym in value
            for item in value.split(b",")
        )


def new_pseudonym() -> str:
    """A random name for an instance. It reveals no host and no version."""
    return f"weirpool-{token_hex(8)}"


def forwards_left(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """`Max-Forwards` (RFC 9110, section 7.6.2); None without one. It applies to OPTIONS and TRACE.

    A number that is too large counts as the largest one. Raises `RequestRefused` (400) for anything
    but one number.
    """
    values = [value.strip() for value in find_headers(headers, b"max-forwards")]
    if not values:
        return None
    if len(values) > 1 or not values[0].isdigit():
        raise RequestRefused(400, "bad_request", "Max-Forwards must be one number")
    digits = values[0].lstrip(b"0")
    if len(digits) > len(str(_MAX_FORWARDS)):
        return _MAX_FORWARDS
    return min(int(digits or b"0"), _MAX_FORWARDS)


def one_forward_less(headers: HeaderList) -> HeaderList:
    """The fields of an OPTIONS request with `Max-Forwards` decreased, if there is one."""
    left = forwards_left(headers)
    if left is None:
        return headers
    fewer = (b"max-forwards", b"%d" % max(0, left - 1))
    return [fewer if field[0] == b"max-forwards" else field for field in headers]


def refuse_trace(method: str) -> None:
    """Raise `RequestRefused` (501) for TRACE: its response repeats the request that went upstream,
    including credentials that were added to it (RFC 9110, section 9.3.8).
    """
    if method.upper() == "TRACE":
        raise RequestRefused(501, "not_supported", "TRACE is not supported")
