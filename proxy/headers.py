"""Headers on their way through: what belongs to one hop stays on it, everything else passes in its order, duplicates included.

Sans I/O. Names are lower-case bytes, as ASGI has them. Rules: RFC 9110, section 7.6 (message forwarding), RFC 7239 (Forwarded).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from interceptors import Outcome

from .errors import RequestRefused

__all__ = [
    "HeaderList",
    "HeaderSettings",
    "TrustedProxies",
    "check_response_headers",
    "client_of",
    "client_origin",
    "end_to_end",
    "find_header",
    "network_of",
    "outer_prefix",
    "request_headers",
    "response_headers",
    "split_target",
]

HeaderList = list[tuple[bytes, bytes]]


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


# RFC 9110, section 7.6.1, and its predecessors' names. Proxy-Authorization is for us, not for the upstream.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
# Said about the client by proxies in front of this one: believed from trusted ones only.
_FORWARDING = frozenset(
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix x-forwarded-proto x-forwarded-server "
    b"x-real-ip".split()
)
# `Connection` may name fields of the hop, but must not take away what the message means, or where it has been (RFC 9110, section
# 7.6.1: it must not name a field that is for all recipients).
_NEVER_NAMED = _FORWARDING | frozenset(
    b"host content-length content-type content-encoding cache-control authorization cookie via max-forwards".split()
)

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~%-]+)(?::[0-9]*)?")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> HeaderList:
    """The fields of a received message that are not its hop's, names in lower case (RFC 9110, section 7.6.1).

    For a message as it arrives, once: what interceptors and the configuration add later is not the peer's `Connection`'s to remove.
    """
    listed = [(name.lower(), value) for name, value in headers]
    hop = _HOP_BY_HOP | _connection_names(listed)
    return [field for field in listed if field[0] not in hop]


class TrustedProxies:
    """Addresses and networks whose `Forwarded` and `X-Forwarded-*` are believed."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(item, strict=False) for item in networks)

    def __contains__(self, address: str | None) -> bool:
        if not self._networks or address is None:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped  # a client by IPv4 on a socket that speaks both
        return any(ip in network for network in self._networks)


def client_of(peer: str | None, headers: Sequence[tuple[bytes, bytes]], trusted: TrustedProxies) -> str | None:
    """The client's address: the peer's, or, behind trusted proxies, the one that the outermost of them has seen.

    Of `X-Forwarded-For`, or else of `Forwarded` (RFC 7239, section 5.2), the last address that is no trusted proxy's counts: what
    stands before it is the client's own word. An entry that is no address (`unknown`, a name) counts as the proxy that wrote it.
    """
    if peer not in trusted:
        return peer
    listed = [value for name, value in headers if name == b"x-forwarded-for"]
    if listed:
        hops = b",".join(listed).split(b",")
    else:
        hops = [match[1] for name, value in headers if name == b"forwarded" for match in _FORWARDED_FOR.finditer(value)]
    client = peer
    for hop in reversed(hops):
        address = _address(hop)
        if address is None:
            break
        client = address
        if address not in trusted:
            break
    return client


def network_of(address: str) -> str:
    """What counts as one client's: an IPv4 address, of IPv6 the /64, for a host may send from any address of that."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))


# The value as a token or a quoted string; in elements that are joined by commas, parameters by semicolons.
_FORWARDED_FOR = re.compile(rb'(?:^|[;,])[ \t]*for=("[^"\\]*"|[^\s;,"]*)', re.IGNORECASE)


def _address(hop: bytes) -> str | None:
    """An address in its one spelling, without the port and the brackets it may come with; None for anything else."""
    text = hop.strip().strip(b'"').decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None else ip)


@dataclass(frozen=True, slots=True)
class HeaderSettings:
    """What a route does to request headers; prepared once."""

    host: bytes | None
    """The Host header; None: the client's."""
    set: tuple[tuple[bytes, bytes], ...]
    removed: frozenset[bytes]
    """Names that do not pass: those to be removed, and those to be set."""
    prefix: bytes = b""
    """What the route strips from paths, without a slash at its end."""


def split_target(raw_path: bytes, query: bytes) -> tuple[bytes, bytes]:
    """The path and the target (path and query) of a request, byte for byte; an absolute-form target loses its origin.

    Raises `RequestRefused` for a target that is no path (`*`, an authority).
    """
    path = raw_path
    if not path.startswith(b"/"):
        match = _ABSOLUTE_FORM.match(path)
        if match is None:
            raise RequestRefused(400, "bad_request", "the request target must be a path")
        path = path[match.end() :] or b"/"
    return path, path + b"?" + query if query else path


def request_headers(
    headers: Sequence[tuple[bytes, bytes]],
    settings: HeaderSettings,
    *,
    client: str | None,
    scheme: str,
    trusted: bool,
    identity: bool,
    body: bytes | None,
) -> HeaderList:
    """The headers that go upstream.

    `trusted`: the client is a proxy whose forwarding headers are believed. `identity`: ask for an unencoded body. `body`: the
    Content-Length, b"" for a body of unknown length, None for no body. Raises `RequestRefused` for a request that two servers
    could read differently (RFC 9112, section 6.3).
    """
    named = _connection_names(headers)
    result: HeaderList = []
    host = settings.host
    own_host = find_header(headers, b"host") or b""
    result.append((b"host", own_host if host is None else host))
    seen_host = False
    for name, value in headers:
        if name == b"host":
            if seen_host:
                raise RequestRefused(400, "bad_request", "the request has more than one Host header")
            seen_host = True
        elif name in _HOP_BY_HOP or name in named or name in settings.removed:
            continue
        elif name in (b"content-length", b"expect"):
            continue  # framing is told by `body`; Hypercorn has answered "100-continue" already
        elif (name in _FORWARDING and not trusted) or (name == b"accept-encoding" and identity):
            continue
        elif name in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"):
            continue  # written below, with ours
        elif name == b"x-forwarded-prefix" and settings.prefix:
            continue
        else:
            result.append((name, value))
    if identity:
        result.append((b"accept-encoding", b"identity"))
    if body is not None:
        result.append((b"content-length", body) if body else (b"transfer-encoding", b"chunked"))
    forwarding = _forwarding(headers, client=client, scheme=scheme, host=own_host, trusted=trusted)
    if settings.prefix:
        outer = outer_prefix(headers) if trusted else b""
        forwarding.append((b"x-forwarded-prefix", outer + settings.prefix))
    result += [header for header in forwarding if header[0] not in settings.removed]
    result += [header for header in settings.set if not (identity and header[0] == b"accept-encoding")]
    return result


def outer_prefix(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The prefix that trusted proxies have stripped: their `X-Forwarded-Prefix`, outermost first, without a slash at its end."""
    values = b",".join([value for name, value in headers if name == b"x-forwarded-prefix"])
    parts = [item.strip().strip(b"/") for item in values.split(b",")]
    return b"".join([b"/" + part for part in parts if part])


def client_origin(headers: Sequence[tuple[bytes, bytes]], *, scheme: str, trusted: bool) -> str | None:
    """Scheme and host of the URL that the client has used. Trusted proxies in front of this one report them in headers.

    None when there is no Host header, or one that no URL can hold.
    """
    host = find_header(headers, b"host")
    if trusted:
        proto = _first_item(headers, b"x-forwarded-proto").lower()
        scheme = proto.decode("ascii") if proto in (b"http", b"https") else scheme
        host = _first_item(headers, b"x-forwarded-host") or host
    if host is None or not _HOST.fullmatch(host):
        return None
    return f"{scheme}://{host.decode('ascii')}"


def _first_item(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first item of a list: the word of the outermost proxy."""
    return (find_header(headers, name) or b"").partition(b",")[0].strip()


def response_headers(headers: Iterable[tuple[bytes, bytes]], *, dropped: frozenset[bytes], sse: bool) -> HeaderList:
    """The headers that go to the client. `dropped`: names that the server adds itself, or that are true no more."""
    listed = [(name.lower(), value) for name, value in headers]
    result = [
        (name, value)
        for name, value in listed
        if name not in _HOP_BY_HOP  # set by an interceptor: framing is the server's
        and name not in dropped
        and not (sse and name == b"x-accel-buffering")
    ]
    if sse:
        result.append((b"x-accel-buffering", b"no"))
    return result


def check_response_headers(headers: HeaderList) -> None:
    """Raise `RequestRefused` for headers that an interceptor has made and that would not be the lines they are meant to be
    (RFC 9110, section 5.5); a server would find out when the head is under way.
    """
    for name, value in headers:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise RequestRefused(
                502,
                "interceptor_failed",
                "an interceptor has set a response header that holds what a header cannot hold",
                outcome=Outcome.INTERCEPTED,
            )


def _connection_names(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The names that `Connection` lists."""
    names: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            names.update(item.strip().lower() for item in value.split(b","))
    return frozenset(names - _NEVER_NAMED)


def _forwarding(
    headers: Sequence[tuple[bytes, bytes]], *, client: str | None, scheme: str, host: bytes, trusted: bool
) -> HeaderList:
    """X-Forwarded-For, -Proto and -Host; a trusted proxy's word is kept and ours appended."""
    before = [value for name, value in headers if name == b"x-forwarded-for"] if trusted else []
    result: HeaderList = []
    if client is not None:
        before = [*before, client.encode("ascii", "replace")]
    if before:
        result.append((b"x-forwarded-for", b", ".join(before)))
    proto = find_header(headers, b"x-forwarded-proto") if trusted else None
    result.append((b"x-forwarded-proto", proto or scheme.encode("ascii")))
    forwarded_host = find_header(headers, b"x-forwarded-host") if trusted else None
    if forwarded_host or host:
        result.append((b"x-forwarded-host", forwarded_host or host))
    return result
