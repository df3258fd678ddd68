"""Headers on their way through: what belongs to one hop stays on it, everything else passes in its
order, duplicates included.

Sans I/O. Names are lower-case bytes, as ASGI has them. Rules: RFC 9110, section 7.6 (message
forwarding), RFC 7239 (Forwarded).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from secrets import token_hex

from ..errors import RequestRefused, interceptor_failed
from . import parse_host

__all__ = [
    "HeaderList",
    "HeaderSettings",
    "TrustedProxies",
    "Via",
    "are_fields",
    "check_response_headers",
    "client_of",
    "client_origin",
    "end_to_end",
    "find_header",
    "forwards_left",
    "network_of",
    "new_pseudonym",
    "one_spelling",
    "outer_prefix",
    "received_request",
    "refuse_trace",
    "refuse_two_lengths",
    "request_headers",
    "response_headers",
    "with_length_of",
    "without_doubles",
    "without_stale",
]

HeaderList = list[tuple[bytes, bytes]]


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


# RFC 9110, section 7.6.1, and its predecessors' names. Proxy-Authorization is for this proxy, not
# for the upstream.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authentication-info proxy-authorization te trailer "
    b"transfer-encoding upgrade http2-settings".split()
)
# `Connection` may name fields of the hop, but must not take away what the message means, or where
# it has been (RFC 9110, section 7.6.1: it must not name a field that is for all recipients).
# `_is_claim` is its other half.
_NEVER_NAMED = frozenset(
    b"host origin content-length transfer-encoding content-type content-encoding cache-control authorization cookie via "
    b"max-forwards".split()
)
_READ_HERE = frozenset(
    b"expect accept-encoding last-event-id content-range if-range access-control-request-method".split()
)
# What a message states about its content, true of no other (RFC 9110, sections 8.8 and 14.3; RFC
# 9530; RFC 1864).
_ABOUT_CONTENT = frozenset(
    b"etag last-modified content-md5 digest content-digest repr-digest accept-ranges".split()
)

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")


def end_to_end(headers: Iterable[tuple[bytes, bytes]], *, framing: bool = False) -> HeaderList:
    """The fields of a received message that are not its hop's, names in lower case (RFC 9110,
    section 7.6.1). `framing`: and `Transfer-Encoding`, for a request whose body is still to be
    read.

    For a message as it arrives, once: the peer's `Connection` must not remove what interceptors and
    the configuration add later.
    """
    result: HeaderList = []
    named: list[bytes] = []
    for name, value in headers:
        name = name.lower()
        if name not in _HOP_BY_HOP or (framing and name == b"transfer-encoding"):
            result.append((name, value))
        elif name == b"connection":
            named += [item.strip().lower() for item in value.split(b",")]
    removed = {name for name in named if name not in _NEVER_NAMED and not _is_claim(name)}
    return [field for field in result if field[0] not in removed] if removed else result


def received_request(headers: Iterable[tuple[bytes, bytes]], *, trusted: bool) -> HeaderList:
    """The fields of a request as it arrives, for everything that reads it: `end_to_end` with its
    framing, without what a client that is not `trusted` reports about itself or others.

    `X_Forwarded_For`, `Content_Type` and the like are removed from everyone: CGI and its successors
    take them for `X-Forwarded-For` and `Content-Type` (RFC 3875, section 4.1.18), and what was
    checked here would not be what they read.
    """
    result = [
        field
        for field in end_to_end(headers, framing=True)
        if not field[0].startswith(_CLAIM_INITIALS)
        or not _is_claim(field[0])
        or (trusted and b"_" not in field[0])
    ]
    if any(b"_" in name for name, _ in result):
        return [
            field
            for field in result
            if b"_" not in field[0] or not _is_read_here(field[0].replace(b"_", b"-"))
        ]
    return result


def _is_read_here(name: bytes) -> bool:
    """Whether the proxy itself reads or writes a field, so that there must not be a second spelling
    of its name.
    """
    return (
        name in _HOP_BY_HOP
        or name in _NEVER_NAMED
        or name in _READ_HERE
        or name.startswith(b"mcp-")
    )


def without_doubles(
    headers: HeaderList, received: HeaderList, removed: frozenset[bytes]
) -> HeaderList:
    """The fields of a request less those that CGI and its successors take for one that an
    interceptor has set or removed, or that `removed` names, as `X_User_Id` for `X-User-Id` (RFC
    3875, section 4.1.18). `received`: before the interceptors.
    """
    if not any(b"_" in name for name, _ in received):
        return headers
    ours = removed.union([name for name, _ in set(headers).symmetric_difference(received)])
    ours = frozenset(name.replace(b"_", b"-") for name in ours if b"_" not in name)
    doubles = {
        field for field in received if b"_" in field[0] and field[0].replace(b"_", b"-") in ours
    }
    return [field for field in headers if field not in doubles] if doubles else headers


_CLAIM_INITIALS = (b"x", b"f")


def _is_claim(name: bytes) -> bool:
    """Whether a field says something about the client that only a proxy in front of this one can
    know.
    """
    name = name.replace(b"_", b"-")
    return name.startswith(b"x-forwarded-") or name in (b"forwarded", b"x-real-ip")


def one_spelling(address: str) -> str:
    """A peer's address as it is written and compared everywhere: that of an IPv4 client on a socket
    of both families is IPv4 (RFC 4291, section 2.5.5.2).
    """
    if not address.lower().startswith("::ffff:"):
        return address
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


class TrustedProxies:
    """Addresses and networks whose `Forwarded` and `X-Forwarded-*` are believed. They are asked for
    addresses in `one_spelling`.
    """

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(_network(item) for item in networks)

    def __contains__(self, address: str | None) -> bool:
        if not self._networks or address is None:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


class Via:
    """One instance of the proxy in `Via` (RFC 9110, section 7.6.3): what it appends, and whether a
    request has passed it before.

    All workers of one `weirpool serve` have the same pseudonym, so that a loop over several workers
    is one. Responses get no entry, which a gateway may leave out.
    """

    __slots__ = ("_entries", "_pseudonym")

    def __init__(self, pseudonym: str) -> None:
        """`pseudonym`: a token; see `new_pseudonym`."""
        self._pseudonym = pseudonym.encode("ascii")
        self._entries: dict[str, bytes] = {}

    def append_to(self, headers: Iterable[tuple[bytes, bytes]], http_version: str) -> bytes:
        """The value of `Via` for the upstream: what is there, then this instance. `http_version`:
        of the client's request.
        """
        entry = self._entries.get(http_version)
        if entry is None:
            entry = self._entries[http_version] = b"%b %b" % (
                http_version.encode("ascii"),
                self._pseudonym,
            )
        before = [value for name, value in headers if name == b"via"]
        return b", ".join([*before, entry]) if before else entry

    def lists(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request has passed this instance."""
        return any(
            self._pseudonym in item.split()[1:2]
            for name, value in headers
            if name == b"via" and self._pseudonym in value
            for item in value.split(b",")
        )


def new_pseudonym() -> str:
    """A random name for an instance. It reveals no host and no version."""
    return f"weirpool-{token_hex(8)}"


def forwards_left(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """`Max-Forwards` (RFC 9110, section 7.6.2); None without one. Raises `RequestRefused` for what
    is not one number.

    Read it for the methods that it is about. A number that is too large counts as the largest one.
    """
    values = [value.strip() for name, value in headers if name == b"max-forwards"]
    if not values:
        return None
    if len(values) > 1 or not values[0].isdigit():
        raise RequestRefused(400, "bad_request", "Max-Forwards must be one number")
    digits = values[0].lstrip(b"0")
    return (
        _MOST_FORWARDS
        if len(digits) > len(str(_MOST_FORWARDS))
        else min(int(digits or b"0"), _MOST_FORWARDS)
    )


_MOST_FORWARDS = 2**31 - 1


def refuse_trace(method: str) -> None:
    """Raise `RequestRefused` for TRACE: its answer shows the client all of the request that went
    upstream, also what was added to it, such as a credential (RFC 9110, section 9.3.8).
    """
    if method.upper() == "TRACE":
        raise RequestRefused(501, "not_supported", "TRACE is not supported")


def refuse_two_lengths(headers: Sequence[tuple[bytes, bytes]], http_version: str) -> None:
    """Raise `RequestRefused` (400) for a request whose end two servers could find in two places
    (RFC 9112, sections 6.1 and 6.3).

    Before anything else is answered: the answer closes the connection, and nothing behind such a
    request is read as a request.
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


def client_of(
    peer: str | None, headers: Sequence[tuple[bytes, bytes]], trusted: TrustedProxies
) -> str | None:
    """The client's address: the peer's, or, behind trusted proxies, the one that the outermost of
    them has seen.

    Of `X-Forwarded-For`, or else of `Forwarded` (RFC 7239, section 5.2), the last address that is
    no trusted proxy's counts: what stands before it is the client's own word. An entry that is no
    address (`unknown`, a name) counts as the proxy that wrote it.
    """
    if peer not in trusted:
        return peer
    listed = [value for name, value in headers if name == b"x-forwarded-for"]
    if listed:
        hops = b",".join(listed).split(b",")
    else:
        hops = [
            hop for name, value in headers if name == b"forwarded" for hop in _forwarded_for(value)
        ]
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
    """What counts as one client's: an IPv4 address, of IPv6 the /64, for a host may send from any
    address of that.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False))


# A parameter, with a token or a quoted string for its value, or none; then the end of an element,
# of the list, or neither.
_FORWARDED_PAIR = re.compile(
    rb'[ \t]*+(?:([!#$%&\'*+\-.^_`|~0-9A-Za-z]++)=("(?:[^"\\]|\\.)*"|[^\s;,"]*+)[ \t]*+)?(?:[;,]|\Z)'
)


def _forwarded_for(value: bytes) -> list[bytes]:
    """The `for` of each element of a `Forwarded` line (RFC 7239, section 4). Of a line that cannot
    be read: no address.

    Another parameter may hold what a client chooses, such as `host`, and in quotes all that
    separates elements.
    """
    hops: list[bytes] = []
    at = 0
    while at < len(value):
        pair = _FORWARDED_PAIR.match(value, at)
        if pair is None:
            return [b""]
        if pair[1] is not None and pair[1].lower() == b"for":
            hops.append(pair[2])
        at = pair.end()
    return hops


def _address(hop: bytes) -> str | None:
    """An address in its one spelling, without the port and the brackets it may come with; None for
    anything else.
    """
    text = hop.strip().strip(b'"').decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return one_spelling(str(ipaddress.ip_address(text)))
    except ValueError:
        return None


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


def request_headers(
    headers: Sequence[tuple[bytes, bytes]],
    settings: HeaderSettings,
    *,
    client: str | None,
    scheme: str,
    identity: bool,
    body: bytes | None,
    via: bytes,
) -> HeaderList:
    """The headers that go upstream: of `received_request`, as interceptors have left them.

    `identity`: ask for an unencoded body. `body`: the Content-Length, b"" for a body of unknown
    length, None for no body. `via`: all of `Via`. Raises `RequestRefused` for a request that two
    servers could read differently (RFC 9112, section 6.3).
    """
    result: HeaderList = []
    host = settings.host
    own_host = find_header(headers, b"host") or b""
    result.append((b"host", own_host if host is None else host))
    seen_host = False
    for name, value in headers:
        if name == b"host":
            if seen_host:
                raise RequestRefused(
                    400, "bad_request", "the request has more than one Host header"
                )
            seen_host = True
        elif name in _HOP_BY_HOP or name in settings.removed:
            continue  # of the hop: set by an interceptor, whose connection this is not
        elif name in (b"content-length", b"expect"):
            continue  # framing is told by `body`; Hypercorn has answered "100-continue" already
        elif name == b"accept-encoding" and identity:
            continue
        elif name in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via"):
            continue  # written below, with ours
        elif name == b"x-forwarded-prefix" and settings.prefix:
            continue
        else:
            result.append((name, value))
    if identity:
        result.append((b"accept-encoding", b"identity"))
    if body is not None:
        result.append((b"content-length", body) if body else (b"transfer-encoding", b"chunked"))
    forwarding = _forwarding(headers, client=client, scheme=scheme, host=own_host)
    if settings.prefix:
        forwarding.append((b"x-forwarded-prefix", outer_prefix(headers) + settings.prefix))
    forwarding.append((b"via", via))
    result += [header for header in forwarding if header[0] not in settings.removed]
    result += [
        header for header in settings.set if not (identity and header[0] == b"accept-encoding")
    ]
    return result


def outer_prefix(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The prefix that trusted proxies have stripped: their `X-Forwarded-Prefix`, outermost first,
    without a slash at its end.
    """
    values = b",".join([value for name, value in headers if name == b"x-forwarded-prefix"])
    parts = [item.strip().strip(b"/") for item in values.split(b",")]
    return b"".join([b"/" + part for part in parts if part])


def client_origin(headers: Sequence[tuple[bytes, bytes]], *, scheme: str) -> str | None:
    """Scheme and host of the URL that the client has used. Trusted proxies in front of this one
    report them in headers.

    None when there is no Host header, or one that no URL can hold.
    """
    proto = _first_item(headers, b"x-forwarded-proto").lower()
    scheme = proto.decode("ascii") if proto in (b"http", b"https") else scheme
    host = _first_item(headers, b"x-forwarded-host") or find_header(headers, b"host")
    if host is None or parse_host(host) is None:
        return None
    return f"{scheme}://{host.decode('ascii')}"


def _first_item(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first item of a list: the word of the outermost proxy."""
    return (find_header(headers, name) or b"").partition(b",")[0].strip()


def response_headers(
    headers: Iterable[tuple[bytes, bytes]], *, dropped: frozenset[bytes], sse: bool
) -> HeaderList:
    """The headers that go to the client. `dropped`: names that the server adds itself, or that are
    true no more.
    """
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


def without_stale(
    headers: Iterable[tuple[bytes, bytes]],
    received: Iterable[tuple[bytes, bytes]],
    *,
    length: bool = False,
) -> HeaderList:
    """The headers of a message whose content may be another than `received` describes: without its
    validators, digests and `Accept-Ranges`, and with `length` without its `Content-Length`. What an
    interceptor has set to another value stays.
    """
    stale = {
        field
        for field in received
        if field[0] in _ABOUT_CONTENT or (length and field[0] == b"content-length")
    }
    return [field for field in headers if (field[0].lower(), field[1]) not in stale]


def with_length_of(headers: HeaderList, received: HeaderList) -> HeaderList:
    """The headers of a response with the `Content-Length` that was received, or without one:
    framing is not an interceptor's.
    """
    length = [field for field in received if field[0] == b"content-length"]
    own = [field for field in headers if field[0].lower() == b"content-length"]
    return (
        headers if own == length else [*(field for field in headers if field not in own), *length]
    )


def check_response_headers(headers: HeaderList) -> None:
    """Raise `RequestRefused` for headers that an interceptor has made and that would not be the
    lines they are meant to be (RFC 9110, section 5.5); a server would find out when the head is
    under way.
    """
    if not are_fields(headers) or any(
        name == b"content-length" and not value.isdigit() for name, value in headers
    ):
        raise interceptor_failed(
            "an interceptor has set a response header that holds what a header cannot hold"
        )


def are_fields(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether names and values are what a field may hold (RFC 9110, section 5)."""
    return all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers)


def _forwarding(
    headers: Sequence[tuple[bytes, bytes]], *, client: str | None, scheme: str, host: bytes
) -> HeaderList:
    """X-Forwarded-For, -Proto and -Host: ours, after a trusted proxy's or an interceptor's."""
    before = [value for name, value in headers if name == b"x-forwarded-for"]
    result: HeaderList = []
    if client is not None:
        before.append(client.encode("ascii", "replace"))
    if before:
        result.append((b"x-forwarded-for", b", ".join(before)))
    result.append(
        (b"x-forwarded-proto", find_header(headers, b"x-forwarded-proto") or scheme.encode("ascii"))
    )
    forwarded_host = find_header(headers, b"x-forwarded-host") or host
    if forwarded_host:
        result.append((b"x-forwarded-host", forwarded_host))
    return result
