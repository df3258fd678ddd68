"""Hosts and authorities: `uri-host [":" port]` (RFC 9110, section 7.2; RFC 3986, section 3.2.2).

A host is a name of unreserved characters, sub-delims and percent-escapes, an IPv4 address, or an
IPv6 address in brackets. A port is empty or a number up to 65535 of at most five digits. User
information, zone ids and `IPvFuture` are not accepted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..errors import RequestRefused

__all__ = ["DEFAULT_PORTS", "Host", "HostList", "origin_port", "parse_host", "request_host"]

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}

_AUTHORITY = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+)\]|((?:[0-9A-Za-z!$&'()*+,\-.;=_~]|%[0-9A-Fa-f]{2})+))"
    rb"(?::([0-9]{0,5}))?"
)


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
