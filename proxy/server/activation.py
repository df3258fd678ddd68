"""Listening sockets: opened here, or passed by systemd (sd_listen_fds(3)).

systemd keeps a socket that it passes open while the service restarts, so clients wait in its queue
instead of being refused. A socket named `admin` (`FileDescriptorName=`) serves the admin pages, any
other one the main port.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping, Sequence
from typing import NamedTuple

from ..config import Config
from ..downstream import limit_unacknowledged
from ..errors import ConfigError
from .admin import ADMIN_SEND_S, bind_admin
from .listen import bind_sockets, name_of

__all__ = ["BY_SYSTEMD", "DEFAULT_BIND", "Sockets", "open_sockets", "take_passed"]

BY_SYSTEMD = "systemd"
"""The value of `--bind` that stands for the sockets of systemd."""
DEFAULT_BIND = "127.0.0.1:8000"
_FIRST_FD = 3
_ADMIN = "admin"


class Sockets(NamedTuple):
    """What a server listens on."""

    main: list[socket.socket]
    admin: socket.socket | None
    """None without `admin.port`."""


def open_sockets(
    binds: Sequence[str] | None,
    config: Config,
    environ: MutableMapping[str, str] = os.environ,
) -> Sockets:
    """Open the sockets of `--bind`, with those that systemd passed. Raises `ConfigError`, and
    `StartError` if one cannot listen.

    Without `--bind`: those of systemd, otherwise `DEFAULT_BIND`. `--bind systemd` requires them,
    and can be combined with addresses.
    """
    passed = take_passed(environ)
    _check(passed, binds, config)
    send_s = config.reverse_proxy.timeouts.send
    main = [sock for name, sock in passed if name != _ADMIN]
    for sock in main:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_s is not None:
            limit_unacknowledged(sock, send_s)
    if not main or binds:
        addresses = [bind for bind in binds or [DEFAULT_BIND] if bind != BY_SYSTEMD]
        main += bind_sockets(addresses, send_s)
    for name, sock in passed:
        if name == _ADMIN:
            limit_unacknowledged(sock, ADMIN_SEND_S)
            return Sockets(main, sock)
    return Sockets(main, bind_admin(config.admin))


def take_passed(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """Return the sockets that systemd passed to this process, with their names.

    Removes them from the environment: they are not for the programs that this process starts.
    Raises `ConfigError` for a socket that cannot be used.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    passed, mistakes = [], []
    for number in range(int(count)):
        fd = _FIRST_FD + number
        name = names[number] if number < len(names) else ""
        problem = _problem_of(fd)
        if problem:
            mistakes.append(f"systemd passed file descriptor {fd} ({name or 'no name'}), {problem}")
            continue
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        sock.setblocking(False)
        passed.append((name, sock))
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return passed


def _problem_of(fd: int) -> str:
    """Why Weirpool cannot listen on a file descriptor; empty if it can."""
    try:
        # The duplicate is closed here, and the descriptor stays open.
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or (
                sock.type != socket.SOCK_STREAM
            ):
                return "which is not a TCP socket: use ListenStream=HOST:PORT"
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return "which does not listen: use Accept=no"
    except OSError:
        return "which is not a socket: use ListenStream=HOST:PORT"
    return ""


def _check(
    passed: Sequence[tuple[str, socket.socket]], binds: Sequence[str] | None, config: Config
) -> None:
    """Raise `ConfigError` if a socket would not be served, or is missing."""
    admin = [sock for name, sock in passed if name == _ADMIN]
    main = [sock for name, sock in passed if name != _ADMIN]
    if binds and BY_SYSTEMD in binds and not main:
        raise ConfigError(
            "--bind systemd: systemd passed no socket: start the service through a socket unit"
            " (Sockets=weirpool.socket), or use --bind HOST:PORT"
        )
    if binds and main and BY_SYSTEMD not in binds:
        names = ", ".join(name_of(sock) for sock in main)
        raise ConfigError(
            f"systemd passed a socket ({names}) that --bind does not name:"
            " remove --bind, or add --bind systemd"
        )
    if len(admin) > 1:
        raise ConfigError("systemd passed more than one socket with the name admin")
    ports = [sock.getsockname()[1] for sock in admin]
    if ports and ports[0] != config.admin.port:
        raise ConfigError(
            f"systemd passed a socket with the name admin: set admin.port to its port, {ports[0]}"
            f" (it is {'null' if config.admin.port is None else config.admin.port})"
        )
