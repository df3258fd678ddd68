"""The routes of the dashboard: its HTML, and the files of this folder that it loads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from quart import Response, render_template
from quart_trio import QuartTrio

from .view import dashboard_view

__all__ = ["SECURITY", "TEMPLATES", "add_asset", "add_dashboard"]

TEMPLATES = "server/dashboard"
"""The folder of the templates, in the package `proxy`."""

_FOLDER = Path(__file__).parent
_ASSETS = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Relative to the page: a proxy in front may serve it below a prefix.
_PATHS = {
    "style": "dashboard/dashboard.css",
    "script": "dashboard/dashboard.js",
    "icon": "dashboard/icon.svg",
    "status": "status",
    "stream": "status/stream",
}
SECURITY = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Header fields of every page and of its files: nothing is loaded from elsewhere, nothing inline
runs, and no other site can embed or read it.
"""


def add_dashboard(
    app: QuartTrio,
    prefix: str,
    status: Callable[[], Awaitable[dict[str, Any]]],
    configuration: Callable[[], Any],
    *,
    needs_token: bool,
    has_inspector: bool,
) -> None:
    """Add `/dashboard`. `needs_token`: its HTML is served without data, and its script asks for the
    token. `has_inspector`: it links to `/inspect`.
    """
    paths = {**_PATHS, "inspect": "inspect"} if has_inspector else _PATHS

    @app.get(f"{prefix}/dashboard")
    async def dashboard() -> Response:
        state = None if needs_token else await status()
        view = dashboard_view(state, None if needs_token else configuration(), paths)
        return Response(
            await render_template("dashboard.html", **view),
            content_type="text/html; charset=utf-8",
            headers={"cache-control": "no-store", **SECURITY},
        )

    for name, kind in _ASSETS.items():
        add_asset(app, f"{prefix}/dashboard/{name}", _FOLDER / name, kind)


def add_asset(app: QuartTrio, path: str, file: Path, kind: str) -> None:
    """Serve a file of the package, which is read once."""
    data = file.read_bytes()

    async def asset() -> Response:
        headers = {"cache-control": "no-cache", **SECURITY}
        return Response(data, content_type=kind, headers=headers)

    app.add_url_rule(path, endpoint=path.replace(".", "_"), view_func=asset, methods=["GET"])
