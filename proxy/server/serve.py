"""`weirpool serve`: one server process, its signals, its drain.

Hypercorn serves. This module adds what Hypercorn does not report to an app: on SIGTERM or SIGINT
the worker reports that it is not ready, waits `drain.delay`, closes its listeners, gives live
streams `drain.timeout`, and ends regardless of its clients. A second signal, at least a second
later, ends it at once. SIGHUP reloads the configuration, SIGUSR1 switches the log to debug and back.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio
from hypercorn.trio import serve as hypercorn_serve
from hypercorn.utils import LifespanFailureError

from ..config import Config
from ..downstream import (
    ServerConfig,
    announce_end,
    client_connections,
    connections_by_open_files,
    cut_connections,
    end_idle_connections,
)
from ..http.headers import Via, new_pseudonym
from ..worker.generations import LEAVE_S
from ..worker.logs import flush_log
from ..worker.siblings import Group
from ..worker.worker import Worker
from .app import Weirpool, create_app
from .listen import Tls, bind_sockets, hypercorn_config, name_of
from .notify import Notifier, Reports, keep_reporting
from .reload import reload_worker

__all__ = [
    "FIRST_REQUEST_S",
    "HELD",
    "LAST_WORDS_S",
    "SAME_SIGNAL_S",
    "START_FAILED",
    "Serving",
    "bind_sockets",
    "hold_signals",
    "run_server",
    "serve_app",
    "time_to_end_s",
]

LAST_WORDS_S = 2.0
"""Time for a stream's error event and its end after `drain.timeout`; then its connection is reset.
"""

FIRST_REQUEST_S = 1.0
"""Time for the first request on a connection that was accepted just before the listeners close."""

START_FAILED = 3
"""Exit status of a process that could not start to serve; its `start_failed` line has the reason.
"""

HELD = (signal.SIGHUP, signal.SIGUSR1)
"""Signals that must not end a process before it handles them."""
_ENDING = (signal.SIGTERM, signal.SIGINT)
SAME_SIGNAL_S = 1.0
_POLL_S = 0.01
_PASSES = 20
"""Passes of Trio's loop that its tasks need to react: about four, and a reserve."""
_COLLECT_AFTER = (5000, 10, 10)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server process needs besides its configuration."""

    sockets: Sequence[socket.socket]
    """The sockets of the main port."""
    admin_socket: socket.socket | None = None
    """The socket of the admin pages, with `admin.port`."""
    tls: Tls | None = None
    file: str | None = None
    """The configuration file, which SIGHUP reads again."""
    group: Group | None = None
    """The workers, if there are several."""
    pseudonym: str = field(default_factory=new_pseudonym)
    """The name of all workers in `Via`."""
    notifier: Notifier | None = None
    """The service manager, if this process reports to it."""


def time_to_end_s(config: Config) -> float:
    """The longest time from SIGTERM to the end of a process, in seconds."""
    drain = config.drain
    return drain.delay + FIRST_REQUEST_S + drain.timeout + 2 * LAST_WORDS_S + LEAVE_S


def hold_signals() -> None:
    """Block SIGHUP and SIGUSR1 until `run_server` handles them: by default they end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def run_server(
    config: Config, serving: Serving, index: int = 0, parent_alive_fd: int | None = None
) -> int:
    """Serve until a signal, or until `parent_alive_fd` reaches its end. Returns the exit status."""
    details: dict[str, Any] = {
        "bind": [name_of(sock) for sock in serving.sockets],
        "tls": serving.tls is not None,
        "max_streams_by_open_files": _raise_file_limit(),
    }
    app = create_app(config, serving.group, index)
    app.worker.start_details = details
    app.worker.via = Via(serving.pseudonym)
    app.admin_socket = serving.admin_socket
    status = 0
    _calm_collector()
    try:
        trio.run(_serve_until_signal, app, serving, parent_alive_fd)
    except* LifespanFailureError:  # the app has logged the cause
        status = START_FAILED
    finally:
        flush_log()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)  # see `_watch_signals`
    return status


async def serve_app(
    app: Weirpool,
    sockets: Sequence[socket.socket],
    shutdown: trio.Event,
    tls: Tls | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set, then drain. Takes ownership of the sockets."""
    # Of several workers, one would take all connections of a burst.
    listeners = [sock.dup() for sock in sockets] if app.worker.siblings is None else []
    server = hypercorn_config(sockets, tls)
    server.listeners = listeners
    async with trio.open_nursery() as nursery:
        listeners_close = trio.Event()
        nursery.start_soon(_drain, app.worker, server, shutdown, listeners_close)
        try:
            await hypercorn_serve(
                app,
                server,
                shutdown_trigger=listeners_close.wait,
                mode="asgi",
                task_status=task_status,
            )
        finally:
            server.close_listeners()
        nursery.cancel_scope.cancel()


async def _drain(
    worker: Worker, server: ServerConfig, shutdown: trio.Event, listeners_close: trio.Event
) -> None:
    await shutdown.wait()
    drain = worker.config.drain
    structlog.get_logger("proxy").info(
        "drain", streams=len(worker.live), timeout=drain.timeout, delay=drain.delay
    )
    worker.ready = False  # load balancers have `delay` to notice while everything still works
    await trio.sleep(drain.delay)
    server.graceful_timeout = (
        FIRST_REQUEST_S + drain.timeout + 2 * LAST_WORDS_S
    )  # a little longer than the streams' own end
    server.close_listeners()
    listeners_close.set()
    await _serve_accepted()
    worker.start_draining()
    announce_end(server)
    with trio.move_on_after(drain.timeout):
        await worker.none_left.wait()
    worker.stop_live()
    server.drained.set()
    end_idle_connections(server)
    # A client that reads nothing, or that is still in its handshake, would block the process: a
    # send that Hypercorn has started cannot be cancelled. Regular ends have closed their
    # connections by now.
    await trio.sleep(LAST_WORDS_S)
    cut = cut_connections(server)
    if cut:
        structlog.get_logger("proxy").warning("drain_cut", connections=cut)


async def _serve_accepted() -> None:
    """Wait until the connections that were accepted last have sent their first requests, at most
    `FIRST_REQUEST_S`. If another process listens on the socket, their clients could not know that
    this one ends.
    """
    for _ in range(_PASSES):  # the listeners close, and what they have accepted is registered
        await trio.lowlevel.checkpoint()
    for _ in range(round(FIRST_REQUEST_S / _POLL_S)):
        if not client_connections.has_unused:
            return
        await trio.sleep(_POLL_S)


async def _serve_until_signal(app: Weirpool, serving: Serving, parent_alive_fd: int | None) -> None:
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_app(app, serving.sockets, shutdown, serving.tls, task_status)
            nursery.cancel_scope.cancel()

        reloads = _Reloads()
        if serving.notifier is not None:
            reports = reloads.reports = Reports(
                serving.notifier, [app.worker.memory], time_to_end_s(app.worker.config)
            )
            nursery.start_soon(keep_reporting, reports, app.worker.memory)
            nursery.start_soon(_report_stop, reports, shutdown)
        await nursery.start(_watch_signals, shutdown, reloads, app.worker)
        if parent_alive_fd is not None:
            nursery.start_soon(_watch_parent, parent_alive_fd, shutdown)
        async with trio.open_nursery() as starting:
            starting.start_soon(_end_start, shutdown, app.worker, nursery.cancel_scope)
            await nursery.start(serve)
            starting.cancel_scope.cancel()
        nursery.start_soon(
            reloads.run, app.worker, serving.file
        )  # an earlier SIGHUP waits until there is a configuration to replace


async def _end_start(shutdown: trio.Event, worker: Worker, scope: trio.CancelScope) -> None:
    """End a process that is still starting: it has nothing to drain."""
    await shutdown.wait()
    if not worker.begun:
        scope.cancel()


class _Reloads:
    """Requests to reload. Any number of them during a reload cause one more reload."""

    def __init__(self) -> None:
        self._wanted = trio.Event()
        self.reports: Reports | None = None

    def want(self) -> None:
        self._wanted.set()

    async def run(self, worker: Worker, file: str | None) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self.reports is not None:
                self.reports.reloading()
            began_at = time.monotonic()
            await reload_worker(worker, file)
            worker.memory.reloaded_at = began_at
            if self.reports is not None:
                self.reports.stop_s = time_to_end_s(worker.config)


async def _watch_signals(
    shutdown: trio.Event,
    reloads: _Reloads,
    worker: Worker,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    first_at = float("-inf")
    with trio.open_signal_receiver(*_ENDING, *HELD) as signals:
        task_status.started()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)  # see `hold_signals`
        try:
            async for number in signals:
                if number == signal.SIGHUP:
                    reloads.want()
                elif number == signal.SIGUSR1:
                    if worker.siblings is None:  # otherwise the supervisor does it for all
                        worker.log_level.switch()
                elif not shutdown.is_set():
                    first_at = trio.current_time()
                    shutdown.set()
                elif trio.current_time() > first_at + SAME_SIGNAL_S:
                    # The same signal can arrive twice at once: from the supervisor, and from a
                    # sender that signals the whole group.
                    flush_log()
                    os._exit(1)
        finally:
            # Trio restores the default action, and a second signal would end the process before it
            # has written its last log lines.
            signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, *HELD))


async def _report_stop(reports: Reports, shutdown: trio.Event) -> None:
    await shutdown.wait()
    reports.stopping()


async def _watch_parent(fd: int, shutdown: trio.Event) -> None:
    """Shut down when the supervisor is gone: it holds the other end of this pipe."""
    await trio.lowlevel.wait_readable(fd)
    shutdown.set()


def _calm_collector() -> None:
    """Run the garbage collector rarely, and never over objects from before the first request.

    An exchange creates no garbage. Yet each open stream has some 70 objects to traverse: with 2,000
    streams a collection stops the process for 100 ms, some eight times while they open.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def _raise_file_limit() -> int:
    """Raise the limit of open files to its maximum. Returns the number of streams that it allows,
    at two files each.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems refuse "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return connections_by_open_files()
