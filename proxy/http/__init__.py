"""The grammar of HTTP (RFC 9110, RFC 9112), sans I/O: targets, hosts, heads, bodies, header fields
and URL references. It knows no route, no exchange and no connection.
"""

from __future__ import annotations

from .target import (
    DEFAULT_PORTS,
    Host,
    HostList,
    Target,
    is_target,
    origin_port,
    other_readings,
    parse_host,
    read_target,
    request_host,
    stays_under,
)

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
