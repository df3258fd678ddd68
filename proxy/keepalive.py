"""TCP keepalive: it finds peers that are gone without a word, on connections where silence is
normal.

The kernel's own default sends the first probe after two hours. It knows no HTTP.
"""

from __future__ import annotations

import socket
from contextlib import suppress

__all__ = ["PROBES", "PROBE_AFTER_S", "PROBE_EVERY_S", "send_probes"]

PROBE_AFTER_S = 60
"""Seconds of silence before the first probe: NATs and load balancers forget a silent connection
after 4 minutes or more.
"""
PROBE_EVERY_S = 15
PROBES = 4
"""So many without an answer end the connection, 2 minutes after its last packet."""

_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)
_PROBE_AFTER: int | None = getattr(
    socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)
)  # the latter: macOS


def send_probes(sock: socket.socket) -> None:
    """Let the kernel probe the peer of this connection while it is silent. Never raises: a socket
    may be closed already.

    Where the socket has a TCP_USER_TIMEOUT, Linux ends the connection when that is over and a
    single probe is unanswered. Probes then begin at half of it, so that several must be lost.
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
