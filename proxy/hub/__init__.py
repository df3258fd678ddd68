"""One epoll for the sockets of a worker, clients' and upstreams'.

`hub` waits and decides what runs next; `stream` defines what it pumps and calls, `waits` how a task
waits in it, with timeouts; `loop` contains what depends on Trio's internals. It knows no protocol,
no relay and no exchange.
"""

from __future__ import annotations

from .hub import Hub, current_hub
from .loop import current_time
from .stream import BROKEN, LISTEN, LISTEN_FOR_HANGUP, READABLE, Need, Stream, Watcher
from .waits import Wait

__all__ = [
    "BROKEN",
    "LISTEN",
    "LISTEN_FOR_HANGUP",
    "READABLE",
    "Hub",
    "Need",
    "Stream",
    "Wait",
    "Watcher",
    "current_hub",
    "current_time",
]
