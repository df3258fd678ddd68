"""The target and the host of a request, parsed once for routes, interceptors, endpoints and the
proxy's pages.

A target is in origin-form or absolute-form (RFC 9112, section 3.2). Path and query are forwarded
byte for byte; only the path's normal form (`interceptors.paths.normal_path`) is compared. Octets
that cannot occur in a target are refused: `#`, controls, spaces, bytes beyond ASCII, and in the
path a backslash, which WHATWG URL parsers read as a slash. Characters that RFC 3986 excludes but
clients send (`"<>^{|}`, the backtick, and in a query the backslash) are accepted.

The host of a request is `uri-host [":" port]` (RFC 9110, section 7.2; RFC 3986, section 3.2.2): a
name of unreserved characters, sub-delims and percent-escapes, an IPv4 address, or an IPv6 address
in brackets. A port is empty or a number up to 65535 of at most five digits. User information, zone
ids and `IPvFuture` are not accepted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from interceptors.paths import is_special, normal_path, unescape

from ..errors import RequestRefused

__all__ = [
    "DEFAULT_PORTS",
    "Host",
    "HostList",
    "Target",
    "is_target",
    "origin_port",
    "other_readings",
    "parse_host",
    "read_target",
    "request_host",
    "stays_under",
]

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}

_AUTHORITY = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|((?:[0-9A-Za-z!$&'()*+,\-.;=_~]|%[0-9A-Fa-f]{2})+))"
    rb"(?::([0-9]{0,5}))?"
)
_ORIGIN_FORM = re.compile(rb"/[!\"$->@-\[\]-~]*(?:\?[!\"$-~]*)?")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?#\\]*)", re.IGNORECASE)
_ESCAPED_SLASH = re.compile(rb"%2f", re.IGNORECASE)
_SEPARATORS = tuple(
    re.compile(escapes, re.IGNORECASE) for escapes in (rb"%2f", rb"%5c", rb"%2f|%5c")
)
_PARAMETERS = re.compile(rb";[^/]*")


class Target(msgspec.Struct, frozen=True):
    """A parsed target."""

    raw: bytes
    """Path and query as received, without the origin of an absolute-form target."""
    path: bytes
    """The path as received."""
    query: bytes
    """Without the question mark."""
    normal: str
    """The path's normal form in ASCII; only for comparisons."""
    authority: bytes | None
    """Of an absolute-form target, unchecked; None for origin-form."""


def read_target(raw: bytes) -> Target:
    """Parse the target of a request line, or a `:path`. Raises `RequestRefused` (400) for anything
    but an origin-form target and an absolute-form target with the scheme http or https.
    """
    authority: bytes | None = None
    if not raw.startswith(b"/"):
        match = _ABSOLUTE_FORM.match(raw)
        if match is None:
            raise RequestRefused(400, "bad_request", "the request target must be a path")
        authority, raw = match[1], raw[match.end() :]
        if not raw.startswith(b"/"):
            raw = b"/" + raw
    if _ORIGIN_FORM.fullmatch(raw) is None:
        raise RequestRefused(
            400, "bad_request", "the request target holds an octet that must be percent-encoded"
        )
    path, _, query = raw.partition(b"?")
    normal = normal_path(path) if is_special(path) else path
    return Target(raw, path, query, normal.decode("ascii"), authority)


def is_target(raw: bytes) -> bool:
    """Whether these bytes are an origin-form target."""
    return _ORIGIN_FORM.fullmatch(raw) is not None


def stays_under(base: bytes, path: bytes) -> bool:
    """Whether every reading of `base` + `path` lies under `base`, an endpoint's own path without a
    slash at its end.

    Servers differ in what they decode before they resolve dot segments: some read `%2f` and `%5c`
    as separators, and some drop the parameters of a segment (`..;x`).
    """
    if b".." not in path and (b"%" not in path or b".." not in unescape(path)):
        return True
    for own, whole in zip(_readings(base), _readings(base + path), strict=True):
        if whole != own and not whole.startswith(own.rstrip(b"/") + b"/"):
            return False
    return True


def other_readings(path: bytes) -> list[str]:
    """The normal forms of a path that differ from `normal_path`, for servers that decode `%2f` or
    drop `;parameters` before they resolve dot segments. Usually empty.

    `%5C` is not decoded: few servers read it as a slash.
    """
    readings = [path]
    if b"%" in path and (decoded := _ESCAPED_SLASH.sub(b"/", path)) != path:
        readings.append(decoded)
    if b";" in path:
        readings += [_PARAMETERS.sub(b"", item) for item in readings]
    usual, *others = [normal_path(item).decode("ascii") for item in readings]
    return [item for item in others if item != usual]


def _readings(path: bytes) -> list[bytes]:
    """The normal forms of a path, one for each way to decode it."""
    decoded = [path, *(escapes.sub(b"/", path) for escapes in _SEPARATORS)]
    return [
        normal_path(item) for item in [*decoded, *(_PARAMETERS.sub(b"", item) for item in decoded)]
    ]


class Host(NamedTuple):
    """A host in the form in which hosts are compared."""

    name: str
    """Lower case; an IPv6 address is in brackets, in its canonical form (RFC 5952)."""
    port: int | None
    """None for no port or an empty one."""

    @property
    def is_address(self) -> bool:
        if self.name.startswith("["):
            return True
        try:
            ipaddress.IPv4Address(self.name)
        except ValueError:
            return False
        return True


@lru_cache(maxsize=64)  # most requests have the same few
def parse_host(value: bytes | str) -> Host | None:
    """A host with or without a port; None for a malformed one."""
    match = _AUTHORITY.fullmatch(
        value.encode("utf-8", "replace") if isinstance(value, str) else value
    )
    if match is None:
        return None
    port = int(match[3]) if match[3] else None
    if port is not None and port > 65535:
        return None
    if match[1] is None:
        return Host(match[2].decode("ascii").lower(), port)
    try:
        return Host(f"[{ipaddress.IPv6Address(match[1].decode('ascii'))}]", port)
    except ValueError:
        return None


def request_host(
    headers: Sequence[tuple[bytes, bytes]], authority: bytes | None, http_version: str
) -> tuple[bytes, Host | None]:
    """The host of a request, as received and parsed: the authority of its absolute-form target, or
    else its Host header.

    The parsed host is None for an empty Host, and in HTTP/1.0 for a missing one. Raises
    `RequestRefused` (400) for several Host headers, for a missing one since HTTP/1.1, and for a
    malformed host, even if an authority replaces it (RFC 9112, sections 3.2 and 3.2.2).
    """
    value, count = b"", 0
    for name, item in headers:
        if name == b"host":
            value = item
            count += 1
    if not count and http_version not in ("1.0", "2"):  # 1.2 is read as 1.1: RFC 9110, section 2.5
        raise RequestRefused(400, "bad_request", "the request has no Host header")
    if count > 1:
        raise RequestRefused(400, "bad_request", "the request has more than one Host header")
    host = parse_host(value) if value else None
    if (value and host is None) or (
        authority is not None and (host := parse_host(authority)) is None
    ):
        raise RequestRefused(
            400,
            "bad_request",
            "the request's host must be a name or an address, with or without a port",
        )
    return (value if authority is None else authority), host


def origin_port(scheme: str, port: int | None) -> int | None:
    """The port of an origin: its own, or its scheme's; None for an unknown scheme."""
    return port or DEFAULT_PORTS.get(scheme)


class HostList:
    """Allowed hosts. A host without a port allows all its ports."""

    __slots__ = ("_hosts",)

    def __init__(self, items: Iterable[str]) -> None:
        """Raises `ValueError` for an item that is not a host."""
        self._hosts: set[Host] = set()
        for item in items:
            host = parse_host(item)
            if host is None:
                raise ValueError(f"{item!r} is not a host with or without a port")
            self._hosts.add(host)

    def __contains__(self, host: Host | None) -> bool:
        return host is not None and (
            host in self._hosts or (host.port is not None and Host(host.name, None) in self._hosts)
        )
