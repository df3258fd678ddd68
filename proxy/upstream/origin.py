"""Where a connection goes: scheme, host and port. Sans I/O.

A host is an address, or a name as A-labels by IDNA 2008 (RFC 5891): this form is resolved, sent as
SNI, verified and written in Host. `httpx.URL.raw_host` converts names with the same package.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from typing import NamedTuple

import httpx
import idna

from ..http import DEFAULT_PORTS, origin_port

__all__ = ["Origin", "address_family", "place_of", "server_name", "server_of", "to_a_labels"]

_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_MAX_NAME = 253  # RFC 1035, section 2.3.4, as text without the dot at the end


class Origin(NamedTuple):
    """`host`: an address without brackets, or a name as A-labels."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def place_of(url: httpx.URL) -> str:
    """The normalized URL of an endpoint, for comparisons (RFC 3986, sections 6.2.2.1 and 6.2.3),
    without credentials.
    """
    host = url.raw_host.decode("ascii").lower()
    with suppress(ValueError):  # a name
        host = str(ipaddress.ip_address(host))
    path = url.raw_path.rstrip(b"/").decode("ascii")
    return f"{url.scheme}://{host} {url.port or DEFAULT_PORTS.get(url.scheme)}{path}"


def server_of(url: httpx.URL) -> Origin:
    """Where a connection to this URL goes. Raises `ValueError` for an unknown scheme."""
    port = origin_port(url.scheme, url.port)
    if port is None:
        raise ValueError(f"{url.scheme!r} is neither http nor https")
    return Origin(url.scheme, url.raw_host.decode("ascii"), port)


def to_a_labels(name: str) -> str:
    """A host name as lower-case A-labels (RFC 5891, section 4); a dot at the end stays. Raises
    `ValueError`.

    `_` is accepted in an ASCII name: names of container services contain it.
    """
    text = name.lower()
    if not text.isascii():
        text = idna.encode(text).decode("ascii")  # idna.IDNAError is a ValueError
    labels = text.removesuffix(".")
    if len(labels) > _MAX_NAME or not all(_LABEL.fullmatch(label) for label in labels.split(".")):
        raise ValueError("not a host name")
    return text


def server_name(host: str) -> str:
    """The name for TLS: A-labels without a dot at the end (RFC 6066, section 3), or an address,
    which is verified but not sent. Raises `ValueError`.
    """
    if address_family(host) is not None:
        return host
    return to_a_labels(host).removesuffix(".")


def address_family(host: str) -> socket.AddressFamily | None:
    """The family of an address; None for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):  # UnicodeError and a NUL are ValueErrors
            continue
        return family
    return None
