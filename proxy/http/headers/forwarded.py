"""What proxies in front of this one report about the client: its address, its URL, and the prefix
that they have stripped.

Only a trusted proxy is believed: `hop.received_request` removes these fields from anyone else.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from interceptors.tokens import TOKEN

from ..target import parse_host
from .fields import find_header, find_headers

__all__ = [
    "TrustedProxies",
    "client_of",
    "client_origin",
    "network_of",
    "one_spelling",
    "outer_prefix",
]

# RFC 7239, section 4: one parameter or none, then the end of an element, of the list, or neither.
_FORWARDED_PAIR = re.compile(
    rb'[ \t]*+(?:(%b)=("(?:[^"\\]|\\.)*"|[^\s;,"]*+)[ \t]*+)?(?:[;,]|\Z)'
    % (TOKEN.encode("ascii") + b"+")
)

_MOST_HOPS = 100
"""To compare an address takes 25 us, and a head has room for thousands."""


class TrustedProxies:
    """Addresses and networks whose reports are believed. Ask for addresses in `one_spelling`."""

    __slots__ = ("networks",)

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Raises `ValueError` for an item that is neither an address nor a network."""
        self.networks = tuple(_network(item) for item in networks)

    def __contains__(self, address: str | None) -> bool:
        if not self.networks or address is None:
            return False
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self.networks)


def one_spelling(address: str) -> str:
    """A peer's address in the form that is compared and logged: an IPv4 client on a dual-stack
    socket has an IPv4 address (RFC 4291, section 2.5.5.2).
    """
    if not address.lower().startswith("::ffff:"):
        return address
    try:
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 /64, which one host has to itself."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False))


def client_of(
    peer: str | None, headers: Sequence[tuple[bytes, bytes]], trusted: TrustedProxies
) -> str | None:
    """The client's address: the peer's, or the one that the outermost trusted proxy has seen.

    Of `X-Forwarded-For`, or else of `Forwarded` (RFC 7239, section 5.2), the last address that is
    not a trusted proxy's counts: the client can have written everything before it. An entry that is
    not an address (`unknown`, a name) counts as the proxy that wrote it. Of a longer list, only the
    last 100 are read.
    """
    if peer not in trusted:
        return peer
    client = peer
    for hop in reversed(_hops(headers)[-_MOST_HOPS:]):
        address = _address(hop)
        if address is None:
            break
        client = address
        if address not in trusted:
            break
    return client


def client_origin(headers: Sequence[tuple[bytes, bytes]], *, scheme: str) -> str | None:
    """Scheme and host of the URL that the client has used, as trusted proxies report it. None
    without a Host header, or with one that no URL can contain.
    """
    proto = _first_item(headers, b"x-forwarded-proto").lower()
    scheme = proto.decode("ascii") if proto in (b"http", b"https") else scheme
    host = _first_item(headers, b"x-forwarded-host") or find_header(headers, b"host")
    if host is None or parse_host(host) is None:
        return None
    return f"{scheme}://{host.decode('ascii')}"


def outer_prefix(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The prefix that trusted proxies have stripped (`X-Forwarded-Prefix`), outermost first,
    without a slash at its end.
    """
    values = b",".join(find_headers(headers, b"x-forwarded-prefix"))
    parts = [item.strip().strip(b"/") for item in values.split(b",")]
    return b"".join([b"/" + part for part in parts if part])


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    network = ipaddress.ip_network(text, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.ip_network((mapped, network.prefixlen - 96))
    return network


def _hops(headers: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """The addresses that proxies have appended, the client's first."""
    listed = find_headers(headers, b"x-forwarded-for")
    if listed:
        return b",".join(listed).split(b",")
    lines = find_headers(headers, b"forwarded")
    return [hop for line in lines for hop in _forwarded_for(line)]


def _forwarded_for(line: bytes) -> list[bytes]:
    """The `for` of each element of a `Forwarded` line (RFC 7239, section 4); of a malformed line,
    one that is not an address.

    A client may choose another parameter, such as `host`, and put any separator in its quotes.
    """
    hops: list[bytes] = []
    at = 0
    while at < len(line):
        pair = _FORWARDED_PAIR.match(line, at)
        if pair is None:
            return [b""]
        if pair[1] is not None and pair[1].lower() == b"for":
            hops.append(pair[2])
        at = pair.end()
    return hops


def _address(hop: bytes) -> str | None:
    """An address in its one spelling, without port, brackets and zone; None for anything else."""
    text = hop.strip().strip(b'"').decode("latin-1")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    if ":" in text:  # RFC 4007, section 11.2: a zone is a name of one host, of any length
        text = text.partition("%")[0]
    try:
        return one_spelling(str(ipaddress.ip_address(text)))
    except ValueError:
        return None


def _first_item(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> bytes:
    """The first item of a list: the outermost proxy's."""
    return (find_header(headers, name) or b"").partition(b",")[0].strip()
