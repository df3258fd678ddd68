"""The page `/dashboard`: what its tables and figures show, how numbers are written, and its HTML.

`layout` describes the page once. `view` and the template render it with the numbers of the moment,
and `dashboard.js` updates them from `/status/stream`. Everything
that comes from clients and upstreams is text: the template escapes it, and the script only sets
`textContent`. It reads nothing but the JSON of `/status`.
"""

from __future__ import annotations

from .routes import TEMPLATES, add_dashboard

__all__ = ["TEMPLATES", "add_dashboard"]
