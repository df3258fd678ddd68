"""What waits in the hub, as the hub sees it: streams that are pumped, and watchers that are called."""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

__all__ = ["BROKEN", "LISTEN", "LISTEN_FOR_HANGUP", "READABLE", "Need", "Stream", "Watcher"]

# As numbers: `select` has the names on Linux only, and this module is imported everywhere.
READABLE = 0x001
"""EPOLLIN."""
BROKEN = 0x008 | 0x010
"""EPOLLERR and EPOLLHUP. Both are always reported."""
LISTEN_FOR_HANGUP = 0x2000
"""EPOLLRDHUP: for a watcher that does not read at the moment."""
LISTEN = READABLE | LISTEN_FOR_HANGUP
"""For a watcher that reads."""


class Need(Enum):
    """What a stream needs before its next step."""

    READ = auto()
    """Upstream has nothing more for now."""
    TURN = auto()
    """More may be buffered already, without the socket being readable; let other streams run."""
    HOOK = auto()
    """An interceptor must be awaited."""
    EMIT = auto()
    """An interceptor has emitted an event, and it can be sent now."""
    WRITE = auto()
    """The client has not taken everything: flush the writer first."""
    END = auto()
    """The response is over; with `failure` set it is not whole."""


class Stream(Protocol):
    """A stream as the hub sees it."""

    wants_large: bool
    """Whether the next pump wants the large window."""

    @property
    def runs_hooks(self) -> bool:
        """Whether a pump runs user code, which needs the context variables of its task."""
        ...

    def fileno(self) -> int: ...

    def pump(self, window: bytearray, now: float) -> Need: ...


class Watcher(Protocol):
    """What is called for the events of one descriptor."""

    def on_ready(self, events: int, now: float) -> None:
        """Handle these epoll events. Never blocks and raises nothing. `now`: Trio's time."""
