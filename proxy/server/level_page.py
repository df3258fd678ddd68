"""`/log-level`: the level of the log, and its change in all workers.

At the level debug lines may have content. So a change needs `admin.token`, or the private port; and
a page of another origin, which an operator's browser shows, cannot make one.
"""

from __future__ import annotations

from quart import Response, request
from quart_trio import QuartTrio

from ..config import Admin
from ..worker.log_level import LEVELS, CurrentLevel
from .responses import plain_text, refuse_without

__all__ = ["add_level_page"]


def add_level_page(app: QuartTrio, level: CurrentLevel, admin: Admin) -> None:
    """Add the page to the Quart app."""

    async def page() -> Response | dict[str, str]:
        refused = refuse_without(admin.token)
        if refused is not None:
            return refused
        if request.method == "POST":
            if admin.token is None and admin.port is None:
                return plain_text("set admin.port or admin.token to change the level", 403)
            origin = request.headers.get("origin")
            if origin is not None and origin.partition("://")[2] != request.host:
                return plain_text("a page of another origin cannot change the level", 403)
            wanted = request.args.get("level") or (await request.form).get("level")
            chosen = [name for name in LEVELS if name == wanted]
            if not chosen:
                return plain_text(f"send level=LEVEL, one of {', '.join(LEVELS)}", 400)
            level.change(chosen[0])
        return {"level": level.name, "configured": level.configured}

    app.add_url_rule(f"{admin.prefix}/log-level", "log_level", page, methods=["GET", "POST"])
