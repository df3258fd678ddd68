"""The app's own pages, and the port of their own that they may have (`admin.port`).

On that port nothing but the pages is served; the main port then forwards their paths like any other. It stays open until the worker
ends, so that a drain can be watched. With several workers each has a port: the configured one, the next, and so on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.trio import serve as hypercorn_serve
from quart import Response
from quart_trio import QuartTrio

from .config import Admin
from .errors import ConfigError
from .listen import bind_socket, hypercorn_config
from .worker import Worker

__all__ = ["PAGES", "add_pages", "bind_admin", "serve_admin"]

PAGES = ("/metrics", "/healthz", "/readyz", "/status")
_TEXT = "text/plain; charset=utf-8"
_SEND_S = 10.0

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]


def bind_admin(admin: Admin, workers: int) -> list[socket.socket]:
    """A listening socket for each worker; none when the pages have no port of their own. Raises `ConfigError`."""
    if admin.port is None:
        return []
    if admin.port + workers - 1 > 65535:
        raise ConfigError(f"admin.port: {workers} workers need as many ports, from {admin.port} on")
    host = f"[{admin.host}]" if ":" in admin.host else admin.host
    return [bind_socket(f"{host}:{admin.port + index}", _SEND_S, "admin.port") for index in range(workers)]


async def serve_admin(
    pages: AsgiApp, sock: socket.socket, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the pages until cancelled. Takes the socket over."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
        else:
            await pages(scope, receive, send)

    await hypercorn_serve(
        app, hypercorn_config([sock]), shutdown_trigger=trio.sleep_forever, mode="asgi", task_status=task_status
    )


async def _no_lifespan(receive: Any, send: Any) -> None:
    """The app's lifespan is that of the main port's server; here there is nothing to begin or to end."""
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


def add_pages(app: QuartTrio, worker: Worker, prefix: str) -> None:
    """Add the routes of the pages to the Quart app."""

    @app.get(f"{prefix}/healthz")
    async def healthz() -> Response:
        return Response("ok\n", content_type=_TEXT)

    @app.get(f"{prefix}/readyz")
    async def readyz() -> Response:
        if worker.ready:
            return Response("ready\n", content_type=_TEXT)
        return Response("not ready\n", status=503, content_type=_TEXT)

    @app.get(f"{prefix}/metrics")
    async def metrics() -> Response:
        return Response(worker.metrics.render(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get(f"{prefix}/status")
    async def status() -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "draining": worker.draining,
            "streams": len(worker.live),
            "generations": len(worker.generations),
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
