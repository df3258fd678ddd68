"""Values with a grammar of their own: endpoints, hosts, origins, header names and values.

Each function returns the problem of a value, or None. It knows no path and no other key. A problem
of a value that may hold a credential does not quote it.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

import httpx

from interceptors.tokens import is_token

from ..http import DEFAULT_PORTS, is_target, parse_host
from ..upstream.origin import address_family, server_name, to_a_labels

__all__ = [
    "endpoint_problem",
    "header_name_problem",
    "header_value_problem",
    "host_problem",
    "id_header_problem",
    "is_check_path",
    "network_problem",
    "origin_problem",
    "prefix_problem",
    "server_name_problem",
]

_CHECK_PATH = re.compile(r"/[!\"$-~]*")  # visible ASCII except #
_ORIGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#@\s]*)([/?#]\S*)?")
_HOST_FORM = "a host name or address, with or without a port, such as api.example.com or [::1]:8000"
# Fields that the proxy, clients or upstreams read, or that hold credentials.
_HAS_A_MEANING = re.compile(
    "(accept|access-control-|content-|if-|mcp-|proxy-|retry-|sec-|set-|x-forwarded-|www-).*"
    "|.*(auth|api-key|cookie|token).*"
    "|(cache-control|date|etag|expect|forwarded|http2-settings|last-event-id|last-modified|link"
    "|location|max-forwards|origin|range|server|traceparent|tracestate|user-agent|vary|via"
    "|x-accel-buffering|x-real-ip)$",
    re.IGNORECASE,
)
_FRAMING = frozenset(
    [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
        "keep-alive",
    ]
)


def endpoint_problem(url: str) -> str | None:
    """Check a URL of an upstream: scheme, host, port and path, nothing else."""
    shown = repr(url) if "@" not in url else "this"  # no message quotes a credential
    try:
        parts = urlsplit(url)
        port = re.search(r":([0-9]+)$", parts.netloc)
        if port is not None and not 0 < int(port[1][:9]) < 65536:
            return "the port must be from 1 to 65535"
        host = httpx.URL(url).raw_host.decode("ascii")
        if host and address_family(host) is None:
            to_a_labels(host)
    except (ValueError, httpx.InvalidURL):
        return (
            "not a URL with a host that can be resolved: must be an address, or a name of letters,"
            " digits, - and _ (IDNA 2008)"
        )
    if parts.username is not None or "?" in url or "#" in url:
        return (
            "an endpoint must be a scheme, a host, a port and a path only"
            " (a credential belongs in headers.set)"
        )
    if parts.scheme not in ("http", "https") or not host or url != url.strip():
        lacks_scheme = not re.search("://|@", url) and endpoint_problem(f"http://{url}") is None
        hint = f': did you mean "http://{url}"?' if lacks_scheme else ""
        return f"{shown} is not an http:// or https:// URL{hint}"
    if not re.fullmatch(r"[\x21-\x7e]*", parts.path):
        return f"{shown} has a path that cannot be sent: percent-encode it"
    return None


def prefix_problem(path: str) -> str | None:
    """Check a route's path."""
    if "?" not in path and is_target(path.encode()):
        return None
    return "can match no request: must be ASCII without a space, ?, # or backslash"


def is_check_path(path: str) -> bool:
    """Whether a target can be sent as it is written."""
    return _CHECK_PATH.fullmatch(path) is not None


def host_problem(host: str, others: str = "") -> str | None:
    """Check a Host header. `others`: further words that the key accepts."""
    return None if parse_host(host) is not None else f"must be {others}{_HOST_FORM}"


def network_problem(network: str) -> str | None:
    """Check an IP address or network."""
    try:
        ipaddress.ip_network(network, strict=False)
    except ValueError:
        return "must be an address or a network, such as 10.0.0.1 or 10.0.0.0/8"
    return None


def server_name_problem(name: str) -> str | None:
    """Check a name for TLS to verify."""
    try:
        server_name(name)
    except ValueError:
        return (
            f"{name!r} is neither a host name nor an address: must be one such as backend.example,"
            " without scheme and port"
        )
    return None


def header_name_problem(name: str, done: str) -> str | None:
    """Check the name of a header rule. `done`: what the rule does, "set" or "removed"."""
    if not is_token(name):
        return f"{name!r} is not a header name"
    if name.lower() in _FRAMING:
        return f"{name!r} belongs to the connection and cannot be {done}"
    return None


def id_header_problem(name: str) -> str | None:
    """Check the name of the header for request ids: it must have no other meaning."""
    if not is_token(name) or name.lower() in _FRAMING or _HAS_A_MEANING.match(name):
        return "must be a header without another meaning, such as x-request-id"
    return None


def header_value_problem(value: str) -> str | None:
    """Check a header value (RFC 9110, section 5.5): visible ASCII, spaces and tabs only inside."""
    if value == value.strip() and all(0x20 <= ord(char) < 0x7F or char == "\t" for char in value):
        return None
    return "the value has characters that a header cannot have"


def origin_problem(origin: str) -> str | None:
    """Check that a browser can send this `Origin`: no path, no default port (RFC 6454, 6.2)."""
    if origin.lower() == "null":
        return None
    if "*" in origin:
        return (
            "origins are compared whole, without wildcards: list each,"
            " or leave allowed_origins out to allow all"
        )
    found = _ORIGIN.fullmatch(origin)
    written = None if found is None else _normal_origin(found[1].lower(), found[2].lower())
    if found is None or written is None:
        return (
            "must be an origin as browsers send it,"
            " such as https://app.example.com or http://localhost:3000, or null"
        )
    if found[3] is not None or written != origin.lower():
        return (
            "browsers send an origin without a path and without its scheme's default port,"
            f" and names in ASCII: write {written!r}"
        )
    return None


def _normal_origin(scheme: str, authority: str) -> str | None:
    """The origin as browsers write it; None for one without a valid host."""
    written = f"{scheme}://{authority}"
    if scheme not in DEFAULT_PORTS:
        return written
    try:
        url = httpx.URL(written)
    except (ValueError, httpx.InvalidURL):
        return None
    return f"{scheme}://{url.netloc.decode('ascii')}" if url.host else None
