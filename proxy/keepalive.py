"""TCP keepalive: detects dead peers on connections where silence is normal.

The kernel's default sends the first probe after two hours. This module knows no HTTP.
"""

from __future__ import annotations

import socket
from contextlib import suppress

__all__ = ["PROBES", "PROBE_AFTER_S", "PROBE_EVERY_S", "send_probes"]

PROBE_AFTER_S = 60
"""Seconds of silence before the first probe. NATs and load balancers drop silent connections after
4 minutes or more.
"""
PROBE_EVERY_S = 15
PROBES = 4
"""Unanswered probes that end the connection, 2 minutes after its last packet."""

_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_PROBE_AFTER: int | None = getattr(
    socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)
)  # macOS has TCP_KEEPALIVE


def send_probes(sock: socket.socket) -> None:
    """Let the kernel probe a silent peer. Never raises: the socket may be closed.

    With TCP_USER_TIMEOUT, Linux ends the connection after that time if a single probe is
    unanswered. Probes then start at half of it, so that several must be lost.
    """
    after_s, every_s = PROBE_AFTER_S, PROBE_EVERY_S
    with suppress(OSError):
        user_timeout_s = (
            sock.getsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT) / 1000
            if _USER_TIMEOUT is not None
            else 0
        )
        if user_timeout_s:
            after_s = max(1, min(after_s, int(user_timeout_s / 2)))
            every_s = max(1, min(every_s, int(user_timeout_s / 8)))
        if _PROBE_AFTER is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _PROBE_AFTER, after_s)
        if hasattr(socket, "TCP_KEEPINTVL"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
