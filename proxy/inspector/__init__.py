"""The inspector: live streams, event by event, before and after each interceptor.

`tap` takes copies where events pass, `view` holds them for one client within bounds, `wanted`
selects streams, `decoder` reads answers by their dialect, `messages` is the format, and `inspector`
joins views and exchanges. It knows no exchange, no relay and no socket: `proxy.exchange` connects a
tap, and `proxy.server` sends what a view has.
"""

from __future__ import annotations

from .inspector import Inspected, Inspector, TooManyViews
from .messages import BEGIN, GONE, PING, message
from .tap import BodyKind, Tap
from .view import View
from .wanted import Wanted

__all__ = [
    "BEGIN",
    "GONE",
    "PING",
    "BodyKind",
    "Inspected",
    "Inspector",
    "Tap",
    "TooManyViews",
    "View",
    "Wanted",
    "message",
]
