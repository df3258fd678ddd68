"""The Quart-Trio app: its lifespan, and the door to the exchange or to the app's own pages.

Paths that belong to the app itself go on into Quart; everything else becomes an `Exchange` at the
ASGI level, without Quart's request context, which is the larger part of what a request costs there,
and without its frames under a stream that lasts.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import structlog
import trio
from quart_trio import QuartTrio

from pools import report, run_reports

from ..config import Config, check_config, log_warnings
from ..downstream import contain_connections, path_is_known, share_log
from ..errors import ConfigError, Problem
from ..exchange.exchange import Exchange
from ..relay.hub import Hub
from ..worker.generations import LEAVE_S
from ..worker.logs import configure_logging, flush_log, take_over_stderr
from ..worker.worker import Worker
from .admin import add_pages, bind_admin, own_page, page_paths, serve_admin
from .listen import name_of

__all__ = ["Weirpool", "create_app"]


class Weirpool(QuartTrio):
    """The ASGI app of one worker, and the door to the exchange: it decides who serves a request."""

    worker: Worker
    pages: frozenset[bytes]
    """The paths on the main port that are the app's own, byte for byte: none when they have a port
    of their own.
    """
    admin_socket: socket.socket | None = None
    """Where that port listens, if whoever runs the app has opened it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.asgi_entry(scope, receive, send)

    def asgi_entry(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """What serves a request, when awaited: `__call__`, which Hypercorn wants as a coroutine
        function, without its frame.
        """
        if scope["type"] == "http":
            path = scope["raw_path"]
            if path in self.pages or not path.startswith(b"/"):
                page = own_page(scope, self.pages)
                if page is not None and page.refusal is None:
                    return self.serve_page(page.scope, receive, send)
            return Exchange(self.worker, scope)(receive, send)
        if (
            scope["type"] == "websocket"
        ):  # of a server that is not ours; ours makes a plain request of it
            return _refuse_websocket(receive, send)
        return self.serve_page(scope, receive, send)

    async def serve_page(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve what is not an exchange."""
        await super().__call__(scope, receive, send)

    def log_exception(self, exception_info: Any) -> None:
        """Quart's own would print a traceback beside our log."""
        if not isinstance(exception_info[1], ConfigError):  # which has been said, as `start_failed`
            structlog.get_logger("proxy").error("internal_error", exc_info=exception_info)


def create_app(config: Config | None = None) -> Weirpool:
    """Make the app: from `config`, or from the file that `WEIRPOOL_CONFIG` names. Raises
    `ConfigError`.

    Configures logging for the process; without `config` the process is a server's, and its standard
    error is taken over. Blocks on the configuration and on what it imports.
    """
    adopted = config is None
    warnings: Sequence[Problem] = ()
    if config is None:
        path = os.environ.get("WEIRPOOL_CONFIG")
        if not path:
            raise ConfigError("WEIRPOOL_CONFIG is not set; it must name the configuration file")
        checked = check_config(path)
        config, warnings = checked.require(), checked.warnings
    configure_logging(config.log.format, config.log.level)
    if adopted:
        take_over_stderr()
        share_log()
        log_warnings(warnings)
    contain_connections()
    worker = Worker(config)
    app = Weirpool("proxy", static_folder=None)
    app.worker = worker
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = (
        LEAVE_S + 2
    )  # then Quart-Trio cancels what runs in its lifespan
    app.pages = page_paths(config.admin) if config.admin.port is None else frozenset()
    add_pages(app, worker, config.admin.prefix)

    @app.while_serving
    async def lifespan() -> Any:
        # The tasks live in the app's lifespan nursery, which Quart-Trio cancels at shutdown: a
        # nursery of our own must not span the yield of a generator.
        try:
            scopes = await _start(app, config)
        except ConfigError as error:
            structlog.get_logger("proxy").error("start_failed", errors=list(error.errors))
            raise
        worker.ready = worker.begun = True
        structlog.get_logger("proxy").info("started", **_started(worker))
        yield
        worker.ready = False
        await worker.generations.aclose()
        for scope in scopes:
            scope.cancel()
        report(worker.pools)

    return app


async def _refuse_websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.close"})


async def _start(app: Weirpool, config: Config) -> list[trio.CancelScope]:
    """Start what runs beside the exchanges. The scopes end it. Raises `ConfigError`."""
    worker = app.worker
    await worker.generations.start(app.nursery)
    runs: list[Callable[[], Awaitable[None]]] = [
        lambda: run_reports(worker.pools, config.reporting.interval)
    ]
    if Hub.available():
        worker.hub = Hub(worker.pools)
        runs.append(partial(_run_hub, worker, worker.hub))
    if worker.siblings is not None:
        runs.append(worker.siblings.run)
    if config.admin.port is not None:
        if app.admin_socket is None:  # under another server than `weirpool serve`
            (app.admin_socket,) = bind_admin(config.admin, 1)
        worker.start_details["admin"] = name_of(app.admin_socket)
        runs.append(partial(serve_admin, app.serve_page, app.admin_socket, config.admin))
    return [await app.nursery.start(_owned, run) for run in runs]


async def _owned(
    run: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a task of the lifespan in a scope of its own, so that the lifespan ends it."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await run()


async def _run_hub(worker: Worker, hub: Hub) -> None:
    """A worker without its hub would accept streams and never move them: then better no worker."""
    try:
        await hub.run()
    except Exception:
        worker.ready = False
        structlog.get_logger("proxy").critical("hub_died", exc_info=True)
        flush_log()
        os._exit(1)


def _started(worker: Worker) -> dict[str, Any]:
    """What the start-up line says."""
    return {
        "pid": os.getpid(),
        "routes": [route.name for route in worker.routes.routes],
        "upstreams": sorted(worker.routes.transports),
        "writer": "direct"
        if path_is_known()
        else "asgi",  # where the response allows it; asgi serves the rest
        **worker.start_details,
    }
