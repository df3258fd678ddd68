"""A client's socket: its limit for sending, and how it ends."""

from __future__ import annotations

import math
import select
import socket
import struct
from contextlib import suppress

import trio

__all__ = [
    "LAST_BYTES_S",
    "let_last_bytes_leave",
    "limit_unacknowledged",
    "reset_on_close",
]

LAST_BYTES_S = 1.0
"""How long bytes that are sent may take to arrive before a reset discards them."""
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s
_LOOK_S = 0.02
_MAX_MS = 2**31 - 1
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)


def reset_on_close(sock: socket.socket) -> None:
    """Let closing this socket send a reset. Never raises."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def limit_unacknowledged(sock: socket.socket, timeout_s: float) -> None:
    """Let the kernel end a connection whose peer acknowledges nothing for `timeout_s` (RFC 5482,
    Linux); infinity: never. Never raises.
    """
    if _USER_TIMEOUT is not None:
        timeout_ms = 0 if timeout_s == math.inf else max(1, min(int(timeout_s * 1000), _MAX_MS))
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, timeout_ms)


async def let_last_bytes_leave(sock: socket.socket) -> None:
    """Wait until the peer has acknowledged all bytes: a reset discards unsent ones. The caller sets
    a deadline.
    """
    try:
        from fcntl import ioctl
        from termios import TIOCOUTQ
    except ImportError:
        return
    if sock.fileno() < 0:
        return
    unsent = bytearray(4)
    broken = select.poll()
    broken.register(sock.fileno(), 0)  # POLLHUP and POLLERR are always reported
    while sock.fileno() >= 0 and not broken.poll(0):  # after a reset unacknowledged bytes stay so
        try:
            ioctl(sock.fileno(), TIOCOUTQ, unsent)
        except OSError:
            return
        if not any(unsent):
            return
        await trio.sleep(_LOOK_S)
