"""Listening sockets, TLS, and Hypercorn's settings; `deploy/hypercorn.toml` has the reason of each.

It does not know what is served.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from hypercorn.config import Config as HypercornConfig
from hypercorn.logging import Logger

from ..downstream import ServerConfig, limit_unacknowledged
from ..errors import ConfigError, StartError

__all__ = ["Tls", "bind_socket", "bind_sockets", "hypercorn_config", "name_of"]

_BACKLOG = 4096
_KEEP_ALIVE_S = 75.0
_STARTUP_S = 90.0  # longer than the deadline of interceptors' lifespans, whose error names them
_MAX_STREAMS_OF_CONNECTION = 1000


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of the certificate, with its chain, and of its key."""

    certificate: str
    key: str

    def check(self) -> None:
        """Check that they can be used. Raises `ConfigError`. Blocks on the files."""
        for option, file, label in (
            ("--certfile", self.certificate, "CERTIFICATE"),
            ("--keyfile", self.key, "PRIVATE KEY"),
        ):
            try:
                text = Path(file).read_bytes()
            except OSError as error:
                raise ConfigError(f"{option} {file}: {error.strerror}") from error
            if not re.search(rb"-----BEGIN [A-Z ]*" + label.encode() + b"-----", text):
                raise ConfigError(
                    f"{option} {file}: there is no {label.lower()} in PEM in this file"
                )

        def refuse_encrypted() -> str:  # otherwise OpenSSL prompts for the pass phrase
            raise ConfigError(
                f"--keyfile {self.key}: the private key is encrypted:"
                " decrypt it (openssl pkey -in FILE -out FILE)"
            )

        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, refuse_encrypted
            )
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                why = "the key is not that of the certificate, which must be the first in its file"
            else:
                why = f"they cannot be used: {error.reason or error}"
            raise ConfigError(
                f"--certfile {self.certificate}, --keyfile {self.key}: {why}"
            ) from error


def bind_sockets(binds: Sequence[str], send_timeout_s: float | None) -> list[socket.socket]:
    """Open listening sockets for the `HOST:PORT`s of `--bind`. Raises as `bind_socket`."""
    return [bind_socket(bind, send_timeout_s) for bind in binds]


def bind_socket(bind: str, send_timeout_s: float | None, option: str = "--bind") -> socket.socket:
    """Open a listening socket at `HOST:PORT`, the value of `option`. Raises `ConfigError`, and
    `StartError` if it cannot listen.
    """
    host, colon, port_text = bind.rpartition(":")
    if not colon or not port_text.isdigit() or int(port_text) > 65535:
        raise ConfigError(
            f"{option}: {bind!r} is not HOST:PORT, such as 127.0.0.1:8000 or [::]:8000"
        )
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_timeout_s is not None:  # accepted sockets inherit it
            limit_unacknowledged(sock, send_timeout_s)
        sock.bind((host, int(port_text)))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise StartError(f"{option}: cannot listen on {bind}: {error.strerror or error}") from error
    return sock


def name_of(sock: socket.socket) -> str:
    """Return a socket's address as HOST:PORT."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def hypercorn_config(sockets: Sequence[socket.socket], tls: Tls | None = None) -> ServerConfig:
    """Return Hypercorn's settings, as in `deploy/hypercorn.toml`. Takes over the sockets."""
    result = ServerConfig()
    result.bind = [f"fd://{sock.detach()}" for sock in sockets]
    result.backlog = _BACKLOG
    result.logger_class = _Log
    result.include_date_header = False
    result.include_server_header = False
    result.keep_alive_timeout = _KEEP_ALIVE_S
    result.startup_timeout = _STARTUP_S
    result.keep_alive_max_requests = 2**31
    result.h2_max_concurrent_streams = _MAX_STREAMS_OF_CONNECTION
    if tls is not None:
        result.certfile, result.keyfile = tls.certificate, tls.key
    return result


class _Log(Logger):
    """Sends Hypercorn's log through structlog."""

    def __init__(self, config: HypercornConfig) -> None:
        self._log = structlog.get_logger("hypercorn")

    async def access(self, *_: Any) -> None:
        return  # the exchange line has the details

    async def debug(self, message: str, *args: Any, **_: Any) -> None:
        self._log.debug("server", message=message % args if args else message)

    async def info(self, message: str, *args: Any, **_: Any) -> None:
        self._log.debug("server", message=message % args if args else message)

    async def warning(self, message: str, *args: Any, **_: Any) -> None:
        self._log.warning("server", message=message % args if args else message)

    async def error(self, message: str, *args: Any, **_: Any) -> None:
        self._log.error("server", message=message % args if args else message)

    async def critical(self, message: str, *args: Any, **_: Any) -> None:
        self._log.critical("server", message=message % args if args else message)

    async def exception(self, message: str, *args: Any, **_: Any) -> None:
        self._log.exception("server", message=message % args if args else message)

    async def log(self, level: int, message: str, *args: Any, **_: Any) -> None:
        self._log.log(level, "server", message=message % args if args else message)
