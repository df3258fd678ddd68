"""The inspector's pages: `/inspect`, its script and stylesheet, and `/inspect/stream`.

The page holds no content: its script reads the stream, with the token, and sets texts only as text.
"""

from __future__ import annotations

from importlib.resources import files

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.datastructures import MultiDict

from ..config import Admin
from ..inspector import Wanted
from .admin import refuse_without
from .inspecting import MOST_CLIENTS, Inspecting

__all__ = ["add_inspector"]

_TEXT = "text/plain; charset=utf-8"
_FRESH = {"cache-control": "no-store", "x-accel-buffering": "no"}
_PAGE = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
}
_ASSETS = {
    "/inspect": ("inspect.html", "text/html; charset=utf-8"),
    "/inspect/inspect.css": ("inspect.css", "text/css; charset=utf-8"),
    "/inspect/inspect.js": ("inspect.js", "text/javascript; charset=utf-8"),
}
_BOOLEANS = {"true": True, "false": False}


def add_inspector(app: QuartTrio, inspecting: Inspecting, admin: Admin) -> None:
    """Add the pages to the Quart app. Raises `OSError` if a file of the package is missing."""
    for path, (name, content_type) in _ASSETS.items():
        body = files(__package__).joinpath("inspector_assets", name).read_bytes()
        _add_asset(app, admin.prefix + path, body, content_type)

    @app.get(f"{admin.prefix}/inspect/stream")
    async def inspect_stream() -> Response:
        refused = refuse_without(admin.token)
        if refused is not None:
            return refused
        try:
            wanted = _read(request.args)
        except ValueError as error:
            return Response(f"{error}\n", status=400, content_type=_TEXT)
        if inspecting.full:
            text = f"{MOST_CLIENTS} clients watch already: try again later\n"
            return Response(text, status=503, content_type=_TEXT, headers={"retry-after": "5"})
        messages = b"" if request.method == "HEAD" else inspecting.events(wanted)
        response = Response(messages, content_type="text/event-stream", headers=_FRESH)
        response.timeout = None
        return response


def _add_asset(app: QuartTrio, path: str, body: bytes, content_type: str) -> None:
    async def asset() -> Response:
        return Response(body, content_type=content_type, headers=_PAGE)

    app.add_url_rule(path, path, asset, methods=["GET"])


def _read(query: MultiDict[str, str]) -> Wanted:
    """The query of `/inspect/stream`. Raises `ValueError`."""
    fields = {field.name: field.type for field in msgspec.structs.fields(Wanted)}
    given: dict[str, str | bool] = {}
    for name, value in query.items():
        if name not in fields:
            known = ", ".join(fields)
            raise ValueError(f"unknown parameter {name!r}: expected {known}")
        if fields[name] is bool:
            if value not in _BOOLEANS:
                raise ValueError(f"{name}: must be true or false")
            given[name] = _BOOLEANS[value]
        elif value:
            given[name] = value
    return msgspec.convert(given, Wanted)
