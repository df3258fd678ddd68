"""The inspector's pages: `/inspect`, its script and stylesheet, and `/inspect/stream`.

The page holds no content: its script reads the stream, with the token, and sets texts only as text.
Its looks are the dashboard's.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.datastructures import MultiDict

from ..config import Admin
from ..inspector import Wanted
from .dashboard.routes import add_asset
from .inspecting import MOST_CLIENTS, Inspecting
from .responses import event_stream, plain_text, refuse_without

__all__ = ["add_inspector"]

_FOLDER = Path(__file__).parent / "inspector_assets"
_ASSETS = {
    "/inspect": ("inspect.html", "text/html; charset=utf-8"),
    "/inspect/inspect.css": ("inspect.css", "text/css; charset=utf-8"),
    "/inspect/inspect.js": ("inspect.js", "text/javascript; charset=utf-8"),
}
_BOOLEANS = {"true": True, "false": False}


def add_inspector(app: QuartTrio, inspecting: Inspecting, admin: Admin) -> None:
    """Add the pages to the Quart app. Raises `OSError` if a file of the package is missing."""
    for path, (name, content_type) in _ASSETS.items():
        add_asset(app, admin.prefix + path, _FOLDER / name, content_type)

    @app.get(f"{admin.prefix}/inspect/stream")
    async def inspect_stream() -> Response:
        refused = refuse_without(admin.token)
        if refused is not None:
            return refused
        try:
            wanted = _read(request.args)
        except ValueError as error:
            return plain_text(str(error), 400)
        return event_stream(
            lambda: inspecting.events(wanted), full=inspecting.full, most=MOST_CLIENTS
        )


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
