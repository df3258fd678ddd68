"""The Quart-Trio app: its lifespan, and the dispatch of requests to the exchange or to Quart.

Quart serves the admin pages. Everything else becomes an `Exchange`, on one of the proxy's own
connections (`serve_stream`) or at the ASGI level: this avoids Quart's request context, the largest
part of its cost, and its frames on long-lived streams.
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
from ..downstream import (
    AsgiStream,
    ClientStream,
    OwnStream,
    contain_connections,
    scope_of,
    serve_asgi,
    serves_connections,
    share_log,
    stream_of,
)
from ..errors import ConfigError, Problem
from ..exchange.exchange import Exchange
from ..hub import Hub
from ..telemetry import FLUSH_S, open_tracing
from ..worker.generations import LEAVE_S
from ..worker.logs import configure_logging, flush_log
from ..worker.secret import log_random_secret
from ..worker.siblings import Group
from ..worker.stderr import take_over_stderr
from ..worker.worker import Worker
from .admin import add_pages, bind_admin, own_page, page_paths, serve_admin
from .dashboard import TEMPLATES
from .inspector_pages import add_inspector
from .level_page import add_level_page
from .listen import name_of
from .pages import Pages

__all__ = ["Weirpool", "create_app"]


class Weirpool(QuartTrio):
    """The ASGI app of a worker."""

    worker: Worker
    pages: frozenset[bytes]
    """Paths of the admin pages on the main port, byte for byte; empty with `admin.port`."""
    admin_socket: socket.socket | None = None
    """The socket of the admin port, if the runner has opened it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.asgi_entry(scope, receive, send)

    def asgi_entry(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """Return the awaitable that serves a request. Unlike `__call__` it adds no frame."""
        if scope["type"] == "http":
            path = scope["raw_path"]
            if path in self.pages or not path.startswith(b"/"):
                page = own_page(scope, self.pages)
                if page is not None and page.refusal is None:
                    return self.serve_page(page.scope, receive, send)
            stream: ClientStream = stream_of(receive, send) or AsgiStream(scope, receive, send)
            return Exchange(self.worker, stream).run()
        if scope["type"] == "websocket":  # from another server; ours turns it into a plain request
            return _refuse_websocket(receive, send)
        return self.serve_page(scope, receive, send)

    def serve_stream(self, stream: OwnStream) -> Awaitable[None]:
        """Return the awaitable that serves a request of one of the proxy's own connections."""
        if type(self).__call__ is not _CALL and stream.head.fault is None:
            return serve_asgi(self, stream, scope_of(stream))  # a derived app
        target, pages = stream.head.target, self.pages
        if pages and (not target.startswith(b"/") or target.partition(b"?")[0] in pages):
            page = own_page(scope_of(stream), pages)
            if page is not None and page.refusal is None:
                return serve_asgi(self.serve_page, stream, page.scope, asks=False)
        return Exchange(self.worker, stream).run()

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that ends with the lifespan."""
        self.nursery.start_soon(async_fn, *args)

    async def serve_page(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve anything but an exchange."""
        await super().__call__(scope, receive, send)

    def log_exception(self, exception_info: Any) -> None:
        """Suppress Quart's traceback, which would bypass the log."""
        if not isinstance(exception_info[1], ConfigError):  # logged as `start_failed`
            structlog.get_logger("proxy").error("internal_error", exc_info=exception_info)


_CALL = Weirpool.__call__


def create_app(
    config: Config | None = None, group: Group | None = None, index: int = 0
) -> Weirpool:
    """Make the app from `config`, or from the file named by `WEIRPOOL_CONFIG`. `group`, `index`:
    see `Worker`. Raises `ConfigError`.

    Configures logging for the process. Without `config` the process belongs to a server, and its
    standard error is taken over. Blocks on the configuration and on imports.
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
        log_random_secret(config, 1)
    contain_connections()
    worker = Worker(config, group, index)
    app = Weirpool("proxy", static_folder=None, template_folder=TEMPLATES)
    app.worker = worker
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = (
        LEAVE_S + FLUSH_S + 2
    )  # Quart-Trio then cancels the lifespan's tasks
    app.pages = page_paths(config.admin) if config.admin.port is None else frozenset()
    pages = Pages(worker)
    add_pages(app, pages, config.admin)
    add_level_page(app, worker.log_level, config.admin)
    if pages.inspecting is not None:
        add_inspector(app, pages.inspecting, config.admin)

    @app.while_serving
    async def lifespan() -> Any:
        # The tasks run in Quart-Trio's lifespan nursery, which it cancels at shutdown: our own
        # nursery must not span the yield of a generator.
        try:
            scopes = await _start(app, config, pages)
        except ConfigError as error:
            structlog.get_logger("proxy").error("start_failed", errors=list(error.errors))
            raise
        worker.ready = worker.begun = True
        structlog.get_logger("proxy").info("started", **_started(worker))
        yield
        await _stop(worker, pages, scopes)

    return app


async def _refuse_websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.close"})


async def _start(app: Weirpool, config: Config, pages: Pages) -> list[trio.CancelScope]:
    """Start the worker's tasks. The scopes end them. Raises `ConfigError`."""
    worker = app.worker
    store = await app.nursery.start(worker.stores.run)
    worker.start_details["store"] = worker.stores.describe()
    worker.tracing = open_tracing()  # after the fork: it starts a thread
    await worker.generations.start(app.nursery)
    runs: list[Callable[[], Awaitable[None]]] = [
        lambda: run_reports(worker.pools, config.reporting.interval),
        worker.history.run,
        pages.stream.run,
    ]
    if pages.inspecting is not None:
        runs.append(pages.inspecting.run)
    if Hub.available():
        worker.hub = Hub(worker.pools)
        runs.append(partial(_run_hub, worker, worker.hub))
    if worker.siblings is not None:
        runs += [worker.siblings.run, worker.keep_counters]
    # Under a server other than `weirpool serve` the app opens it.
    admin_socket = app.admin_socket or bind_admin(config.admin)
    if admin_socket is not None:
        worker.start_details["admin"] = name_of(admin_socket)
        runs.append(partial(serve_admin, app.serve_page, admin_socket, config.admin))
    return [*[await app.nursery.start(_owned, run) for run in runs], store]


async def _stop(worker: Worker, pages: Pages, scopes: list[trio.CancelScope]) -> None:
    """End the tasks that `_start` started, and close what they used."""
    worker.ready = False
    await worker.generations.aclose()
    await pages.stream.aclose()
    if pages.inspecting is not None:
        await pages.inspecting.aclose()
    worker.metrics.publish()
    if worker.tracing is not None:
        await worker.tracing.aclose()
    for scope in scopes:
        scope.cancel()
    report(worker.pools)


async def _owned(
    run: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a lifespan task in its own scope, so that the lifespan can end it."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await run()


async def _run_hub(worker: Worker, hub: Hub) -> None:
    """Run the hub. End the process if it fails: without a hub, streams would be accepted and never
    move.
    """
    try:
        await hub.run()
    except Exception:
        worker.ready = False
        structlog.get_logger("proxy").critical("hub_died", exc_info=True)
        flush_log()
        os._exit(1)


def _started(worker: Worker) -> dict[str, Any]:
    """The fields of the `started` line."""
    return {
        "pid": os.getpid(),
        "routes": [route.name for route in worker.routes.routes],
        "upstreams": sorted(worker.routes.transports),
        "writer": "direct" if serves_connections() else "asgi",
        **worker.start_details,
    }
