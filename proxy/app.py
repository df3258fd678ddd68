"""The Quart-Trio app: its lifespan, its own pages, and the door to the exchange.

Paths that belong to the app itself go on into Quart; everything else becomes an `Exchange` at the ASGI level, without Quart's
request context, which is the larger part of what a request costs there, and without its frames under a stream that lasts.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
import trio
from quart import Response
from quart_trio import QuartTrio

from interceptors.chain import enter_lifespans
from interceptors.hooks import Owner
from pools import report, run_reports

from .config import Config, load_config
from .downstream import contain_connections, path_is_known
from .errors import ConfigError
from .exchange import Exchange
from .hub import Hub
from .logs import configure_logging
from .worker import Worker

__all__ = ["Weirpool", "create_app"]

_LEAVE_S = 10.0
PAGES = ("/metrics", "/healthz", "/readyz", "/status")


class Weirpool(QuartTrio):
    """The ASGI app of one worker, and the door to the exchange: it decides who serves a request."""

    worker: Worker
    pages: frozenset[str]
    """The paths that are the app's own."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in self.pages:
            await Exchange(self.worker, scope)(receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(config: Config | None = None) -> Weirpool:
    """Make the app: from `config`, or from the file that `WEIRPOOL_CONFIG` names. Raises `ConfigError`.

    Configures logging for the process. Blocks on the configuration and on what it imports.
    """
    if config is None:
        path = os.environ.get("WEIRPOOL_CONFIG")
        if not path:
            raise ConfigError("WEIRPOOL_CONFIG is not set; it must name the configuration file")
        config = load_config(path)
    configure_logging(config.log.format, config.log.level)
    contain_connections()
    worker = Worker(config)
    app = Weirpool("proxy", static_folder=None)
    app.worker = worker
    app.pages = frozenset(config.admin.prefix + page for page in PAGES)
    _add_pages(app, config.admin.prefix)

    @app.while_serving
    async def lifespan() -> Any:
        # The tasks live in the app's lifespan nursery, which Quart-Trio cancels at shutdown: a nursery of our own must not
        # span the yield of a generator.
        owners = tuple(worker.routes.owners.values())
        interceptors = await app.nursery.start(_keep_lifespans, owners)
        scopes = []
        if Hub.available():
            worker.hub = Hub(worker.pools)
            scopes.append(await app.nursery.start(_owned, partial(_run_hub, worker, worker.hub)))
        for maintain in (
            *(transport.maintain for transport in worker.routes.transports.values()),
            lambda: run_reports(worker.pools, config.reporting.interval),
        ):
            scopes.append(await app.nursery.start(_owned, maintain))
        worker.ready = True
        structlog.get_logger("proxy").info("started", **_started(worker))
        yield
        worker.ready = False
        for scope in scopes:
            scope.cancel()
        for transport in worker.routes.transports.values():
            await transport.aclose()
        await interceptors.leave()
        report(worker.pools)

    return app


async def _owned(
    run: Callable[[], Awaitable[None]], task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a task of the lifespan in a scope of its own, so that the lifespan ends it."""
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await run()


class _Lifespans:
    """The interceptors' own set-ups, entered and left in one task, as nurseries and cancel scopes in them must be."""

    def __init__(self) -> None:
        self.wanted = trio.Event()
        self.left = trio.Event()

    async def leave(self) -> None:
        """Let them all be left, and wait for that, for a bounded time."""
        self.wanted.set()
        with trio.move_on_after(_LEAVE_S):
            await self.left.wait()


async def _keep_lifespans(
    owners: tuple[Owner, ...], task_status: trio.TaskStatus[_Lifespans] = trio.TASK_STATUS_IGNORED
) -> None:
    lifespans = _Lifespans()
    async with AsyncExitStack() as stack:
        await enter_lifespans(owners, stack)
        task_status.started(lifespans)
        await lifespans.wanted.wait()
    lifespans.left.set()


async def _run_hub(worker: Worker, hub: Hub) -> None:
    """A worker without its hub would accept streams and never move them: then better no worker."""
    try:
        await hub.run()
    except Exception:
        worker.ready = False
        structlog.get_logger("proxy").critical("hub_died", exc_info=True)
        os._exit(1)


def _started(worker: Worker) -> dict[str, Any]:
    """What the start-up line says."""
    return {
        "pid": os.getpid(),
        "routes": [route.name for route in worker.routes.routes],
        "upstreams": sorted(worker.routes.transports),
        "writer": "direct" if path_is_known() else "asgi",  # where the response allows it; asgi serves the rest
        **worker.start_details,
    }


def _add_pages(app: Weirpool, prefix: str) -> None:
    worker = app.worker

    @app.get(f"{prefix}/healthz")
    async def healthz() -> Response:
        return Response("ok\n", content_type="text/plain; charset=utf-8")

    @app.get(f"{prefix}/readyz")
    async def readyz() -> Response:
        if worker.ready:
            return Response("ready\n", content_type="text/plain; charset=utf-8")
        return Response("not ready\n", status=503, content_type="text/plain; charset=utf-8")

    @app.get(f"{prefix}/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get(f"{prefix}/status")
    async def status() -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "draining": worker.draining,
            "streams": len(worker.live),
            "pools": [
                {"pool": item.pool, "in_use": item.in_use, "current_size": item.current_size, "reuse_rate": item.reuse_rate}
                for item in worker.pools.statistics()
            ],
            "upstreams": {
                name: {
                    "endpoints": [
                        {"endpoint": item.endpoint, "state": item.state, "outstanding": item.outstanding}
                        for item in transport.endpoint_states()
                    ],
                    "connections": [
                        {"origin": item.origin, "lent": item.lent, "idle": item.idle, "waiting": item.waiting}
                        for item in transport.statistics()
                    ],
                }
                for name, transport in worker.routes.transports.items()
            },
        }
