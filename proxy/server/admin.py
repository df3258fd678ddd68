"""The admin pages (`Admin.pages`) and their separate port.

A page has exactly one path, byte for byte; any other spelling is an ordinary path. With
`admin.port` only that port serves the pages, and the main port forwards their paths. The port stays
open until the worker ends, so that a drain can be observed. All workers listen on it, and each
answers for all: see `pages.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import trio
from hypercorn.trio import serve as hypercorn_serve
from quart import Response, request
from quart_trio import QuartTrio

from ..config import Admin
from ..downstream import Scope, raw_target
from ..errors import RequestRefused
from ..http import Host, HostList, read_target, request_host
from ..http.headers import refuse_two_lengths
from .dashboard import add_dashboard
from .listen import bind_socket, hypercorn_config
from .pages import Pages
from .responses import FRESH, event_stream, plain_text, refuse_without
from .watching import MOST_WATCHERS

__all__ = [
    "ADMIN_SEND_S",
    "Page",
    "add_pages",
    "bind_admin",
    "own_page",
    "page_paths",
    "serve_admin",
]

_PROBES = (b"/healthz", b"/readyz")
ADMIN_SEND_S = 10.0

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]


def bind_admin(admin: Admin) -> socket.socket | None:
    """Open the listening socket of the pages; None without `admin.port`. Raises `ConfigError`."""
    if admin.port is None:
        return None
    host = f"[{admin.host}]" if ":" in admin.host else admin.host
    return bind_socket(f"{host}:{admin.port}", ADMIN_SEND_S, "admin.port")


def page_paths(admin: Admin) -> frozenset[bytes]:
    """The paths of the pages, byte for byte."""
    return frozenset((admin.prefix + page).encode() for page in admin.pages)


class Page(NamedTuple):
    """A request for an admin page."""

    path: bytes
    scope: Scope
    """The page's path, also where the target is in absolute-form."""
    host: Host | None
    refusal: RequestRefused | None
    """Why the request's host, or its end, cannot be determined."""


def own_page(scope: Scope, paths: frozenset[bytes]) -> Page | None:
    """Return the request if it is for one of the pages."""
    try:
        target = read_target(raw_target(scope))
    except RequestRefused:
        return None
    if target.path not in paths:
        return None
    host = refusal = None
    try:
        _, host = request_host(scope["headers"], target.authority, scope["http_version"])
        refuse_two_lengths(scope["headers"], scope["http_version"])
    except RequestRefused as error:
        refusal = error.with_traceback(None)
    scope = {
        **scope,
        "path": target.path.decode(),
        "raw_path": target.path,
        "query_string": target.query,
    }
    return Page(target.path, scope, host, refusal)


async def serve_admin(
    pages: AsgiApp,
    sock: socket.socket,
    admin: Admin,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the pages until cancelled. Takes ownership of the socket.

    All pages but the probes require a Host that is an address, `localhost` or one of `admin.hosts`:
    with any other name a web page could reach the port through an operator's browser (DNS
    rebinding).
    """
    paths, hosts = page_paths(admin), HostList(["localhost", *admin.hosts])
    probes = frozenset(admin.prefix.encode() + page for page in _PROBES)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            refuse_two_lengths(scope["headers"], scope["http_version"])
        except RequestRefused as refusal:
            await _answer(send, refusal.status, refusal.message.encode() + b"\n", close=True)
            return
        page = own_page(scope, paths)
        if page is None:
            await _answer(send, 404, b"not found\n")
        elif page.path in probes or (
            page.host is not None and (page.host.is_address or page.host in hosts)
        ):
            await pages(page.scope, receive, send)
        else:
            await _answer(
                send,
                421,
                b"this Host is not served here: use an address, or list the name in admin.hosts\n",
            )

    await hypercorn_serve(
        app,
        hypercorn_config([sock]),
        shutdown_trigger=trio.sleep_forever,
        mode="asgi",
        task_status=task_status,
    )


async def _answer(send: Any, status: int, body: bytes, *, close: bool = False) -> None:
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _no_lifespan(receive: Any, send: Any) -> None:
    """Skip the app's lifespan: the server of the main port runs it."""
    for step in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{step}.complete"})


def add_pages(app: QuartTrio, pages: Pages, admin: Admin) -> None:
    """Add the pages to the Quart app."""
    prefix = admin.prefix

    @app.get(f"{prefix}/healthz")
    async def healthz() -> Response:
        return plain_text(pages.health())

    @app.get(f"{prefix}/readyz")
    async def readyz() -> Response:
        if pages.ready():
            return plain_text("ready")
        return plain_text("not ready", 503)

    @app.get(f"{prefix}/metrics")
    async def metrics() -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        by_worker = request.args.get("by") == "worker"
        text, content_type = await pages.metrics(accept, by_worker=by_worker)
        return Response(text, content_type=content_type)

    @app.get(f"{prefix}/status")
    async def status() -> Response:
        refused = refuse_without(admin.token)
        if refused is not None:
            return refused
        state = {**await pages.status(), "configuration": pages.configuration()}
        text = msgspec.json.encode(state)
        return Response(text, content_type="application/json", headers=FRESH)

    add_dashboard(
        app,
        prefix,
        pages.status,
        pages.configuration,
        needs_token=admin.token is not None,
        has_inspector=admin.inspect,
    )

    @app.get(f"{prefix}/status/stream")
    async def status_stream() -> Response:
        refused = refuse_without(admin.token)
        if refused is not None:
            return refused
        stream = pages.stream
        return event_stream(stream.events, full=stream.full, most=MOST_WATCHERS)
