"""`weirpool serve`: one server process, its sockets, its limits, and how it drains.

Hypercorn serves; this sets what matters to streams (`deploy/hypercorn.toml` says why, setting by setting) and does what Hypercorn
gives an app no notice of: on SIGTERM or SIGINT the worker says that it is not ready, waits `drain.delay`, closes its listeners,
lets live streams go on for `drain.timeout`, and ends. A second signal, a second later at the earliest, ends it at once.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Sequence
from typing import Any

import structlog
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.logging import Logger
from hypercorn.trio import serve as hypercorn_serve

from .app import Weirpool, create_app
from .config import Config
from .errors import ConfigError
from .worker import Worker

__all__ = ["bind_sockets", "run_server", "serve_app"]

_BACKLOG = 4096
_KEEP_ALIVE_S = 75.0
_SAME_SIGNAL_S = 1.0
_FILES_BESIDE_STREAMS = 64


def bind_sockets(binds: Sequence[str], send_timeout_s: float | None) -> list[socket.socket]:
    """Listening sockets for `HOST:PORT`s. Raises `ConfigError`."""
    return [_bind(bind, send_timeout_s) for bind in binds]


def run_server(config: Config, sockets: Sequence[socket.socket], parent_alive_fd: int | None = None) -> int:
    """Serve until a signal, or until `parent_alive_fd` reads an end of file. Returns the process's exit status."""
    details: dict[str, Any] = {
        "bind": [_name(sock) for sock in sockets],
        "max_streams_by_open_files": _raise_file_limit(),
    }
    app = create_app(config)
    app.worker.start_details = details
    trio.run(_serve_until_signal, app, config, sockets, parent_alive_fd)
    return 0


async def serve_app(
    app: Weirpool,
    config: Config,
    sockets: Sequence[socket.socket],
    shutdown: trio.Event,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set, then drain. Takes the sockets over."""
    worker = app.worker
    async with trio.open_nursery() as nursery:
        listeners_close = trio.Event()
        nursery.start_soon(_drain, worker, config, shutdown, listeners_close)
        await hypercorn_serve(
            app,
            _hypercorn_config(config, sockets),
            shutdown_trigger=listeners_close.wait,
            mode="asgi",
            task_status=task_status,
        )
        nursery.cancel_scope.cancel()


async def _drain(worker: Worker, config: Config, shutdown: trio.Event, listeners_close: trio.Event) -> None:
    await shutdown.wait()
    structlog.get_logger("proxy").info(
        "drain", streams=len(worker.live), timeout=config.drain.timeout, delay=config.drain.delay
    )
    worker.ready = False  # balancers see that, and have `delay` to look elsewhere while everything still works
    await trio.sleep(config.drain.delay)
    worker.start_draining()
    listeners_close.set()
    with trio.move_on_after(config.drain.timeout):
        await worker.none_left.wait()
    worker.stop_live()


async def _serve_until_signal(
    app: Weirpool, config: Config, sockets: Sequence[socket.socket], parent_alive_fd: int | None
) -> None:
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_watch_signals, shutdown)
        if parent_alive_fd is not None:
            nursery.start_soon(_watch_parent, parent_alive_fd, shutdown)
        await serve_app(app, config, sockets, shutdown)
        nursery.cancel_scope.cancel()


async def _watch_signals(shutdown: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    first_at = float("-inf")
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if not shutdown.is_set():
                first_at = trio.current_time()
                shutdown.set()
            elif trio.current_time() > first_at + _SAME_SIGNAL_S:
                # The same signal may come twice at once, from a supervisor and from who signals the whole group.
                os._exit(1)


async def _watch_parent(fd: int, shutdown: trio.Event) -> None:
    """The supervisor holds the other end of this pipe; when that closes, nobody will tell us to stop any more."""
    await trio.lowlevel.wait_readable(fd)
    shutdown.set()


class _Log(Logger):
    """Hypercorn's own log, through structlog."""

    def __init__(self, config: HypercornConfig) -> None:
        self._log = structlog.get_logger("hypercorn")

    async def access(self, *_: Any) -> None:
        return  # the exchange line says more

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


def _hypercorn_config(config: Config, sockets: Sequence[socket.socket]) -> HypercornConfig:
    """As `deploy/hypercorn.toml`, which gives the reasons."""
    result = HypercornConfig()
    result.bind = [f"fd://{sock.detach()}" for sock in sockets]
    result.backlog = _BACKLOG
    result.logger_class = _Log
    result.include_date_header = False
    result.include_server_header = False
    result.keep_alive_timeout = _KEEP_ALIVE_S
    result.keep_alive_max_requests = 2**31
    result.graceful_timeout = config.drain.timeout + 20  # a little longer than what ends by itself may take
    return result


def _bind(bind: str, send_timeout_s: float | None) -> socket.socket:
    host, colon, port_text = bind.rpartition(":")
    if not colon or not port_text.isdigit() or int(port_text) > 65535:
        raise ConfigError(f"--bind: {bind!r} is not HOST:PORT")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_timeout_s is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Hypercorn shields its sends from cancellation; accepted sockets inherit this, and the kernel ends the wait.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
        sock.bind((host, int(port_text)))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(f"--bind: cannot listen on {bind}: {error.strerror or error}") from error
    return sock


def _name(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _raise_file_limit() -> int:
    """Allow this process as many open files as it may have. Returns how many streams that is enough for, at two each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass  # some systems refuse "unlimited"; what we have is then what we say
    return max(0, (soft - _FILES_BESIDE_STREAMS) // 2)
