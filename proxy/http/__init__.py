"""The grammar of HTTP (RFC 9110, RFC 9112), sans I/O: targets, hosts, heads, bodies, header fields
and URL references. It knows no route, no exchange and no connection.
"""

from __future__ import annotations

from .host import DEFAULT_PORTS, Host, HostList, origin_port, parse_host, request_host
from .target import Target, is_target, other_readings, read_target, stays_under

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
