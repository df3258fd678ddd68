"""A whole proxy in this process: the app, served by Hypercorn on a real loopback socket."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve as hypercorn_serve

from proxy.config import Config, parse_config
from proxy.server.app import Weirpool, create_app
from proxy.server.serve import bind_sockets, serve_app
from proxy.upstream import Resolver, dial
from proxy.upstream.origin import Origin
from proxy.worker.worker import Worker

__all__ = [
    "Proxy",
    "config_for",
    "limit_send_buffers",
    "limit_upstream_buffers",
    "open_proxy",
    "serve_plainly",
]


@dataclass
class Proxy:
    app: Weirpool
    port: int
    scheme: str = "http"

    @property
    def worker(self) -> Worker:
        return self.app.worker

    @property
    def url(self) -> str:
        return (
            f"{self.scheme}://{'localhost' if self.scheme == 'https' else '127.0.0.1'}:{self.port}"
        )

    def in_use(self) -> dict[str, int]:
        return {stats.pool: stats.in_use for stats in self.worker.pools.statistics()}

    def lent(self) -> int:
        return sum(
            state.lent
            for transport in self.worker.routes.transports.values()
            for state in transport.statistics()
        )


def config_for(
    url: str | list[str],
    *,
    route: str = "",
    proxy: str = "",
    upstream: str = "",
    interceptors: str = "",
    names: str = "",
    log: str = "level: error",
) -> Config:
    """A configuration with one route to `url`, or to an upstream with these."""
    urls = json.dumps([url] if isinstance(url, str) else url)
    return parse_config(
        f"""
reverse_proxy:
  upstreams: [{{name: up, endpoints: {urls}{", " + upstream if upstream else ""}}}]
  routes: [{{path: /, upstream: up, interceptors: [{names}]{", " + route if route else ""}}}]
  leak_detection: paranoid
{proxy}
interceptors: [{interceptors}]
drain: {{timeout: 1}}
log: {{{log}}}
"""
    )


@asynccontextmanager
async def open_proxy(
    config: Config, *, tls: tuple[str, str] | None = None, bind: str = "127.0.0.1:0"
) -> AsyncIterator[Proxy]:
    """Serve the app on a free port."""
    app = create_app(config)
    (sock,) = bind_sockets([bind], config.reverse_proxy.timeouts.send)
    proxy = Proxy(app, sock.getsockname()[1], "https" if tls else "http")
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        if tls is None:
            await nursery.start(
                lambda task_status: serve_app(app, [sock], shutdown, task_status=task_status)
            )
        else:
            server = HypercornConfig()
            server.bind = [f"fd://{sock.detach()}"]
            server.certfile, server.keyfile = tls
            server.graceful_timeout = 1
            server.errorlog = None
            await nursery.start(
                lambda task_status: hypercorn_serve(
                    app,
                    server,
                    shutdown_trigger=shutdown.wait,
                    mode="asgi",
                    task_status=task_status,
                )
            )
        yield proxy
        shutdown.set()
        with trio.move_on_after(5) as scope:
            await _wait_for_end(nursery)
        nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught, "the server did not end"


@asynccontextmanager
async def serve_plainly(
    app: Any, shutdown: trio.Event | None = None, **settings: Any
) -> AsyncIterator[int]:
    """The port at which Hypercorn itself serves an app, with its own `settings`."""
    server = HypercornConfig()
    server.bind = ["127.0.0.1:0"]
    server.errorlog = None
    for name, value in settings.items():
        setattr(server, name, value)
    trigger = trio.sleep_forever if shutdown is None else shutdown.wait
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(
            lambda task_status: hypercorn_serve(
                app, server, shutdown_trigger=trigger, mode="asgi", task_status=task_status
            )
        )
        yield 0 if "unix" in bound else int(bound.rsplit(":", 1)[1])
        nursery.cancel_scope.cancel()


async def _wait_for_end(nursery: trio.Nursery) -> None:
    while nursery.child_tasks:
        await trio.sleep(0.01)


def limit_upstream_buffers(monkeypatch: pytest.MonkeyPatch, option: int, size: int) -> None:
    """Let connections to upstreams from now on hold about `size` bytes."""

    async def connect(origin: Origin, resolver: Resolver) -> socket.socket:
        sock = await original(origin, resolver)
        sock.setsockopt(socket.SOL_SOCKET, option, size)
        return sock

    original = dial.connect
    monkeypatch.setattr(dial, "connect", connect)


def limit_send_buffers(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the sockets of proxies that are opened from now on take about `size` bytes before they
    have to wait.
    """

    def bind(addresses: list[str], send_timeout_s: float | None) -> list[socket.socket]:
        sockets = original_bind(addresses, send_timeout_s)
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)  # accepted ones inherit it
        return sockets

    original_bind = bind_sockets
    limit_upstream_buffers(monkeypatch, socket.SO_SNDBUF, size)
    monkeypatch.setattr(f"{__name__}.bind_sockets", bind)
