"""`Emitted`: the events that an interceptor's tasks add to a stream with `emit`.

The queue keeps at most `MAX_EMITTED` events for a client that reads slowly; then `emit` waits. This
module must not know where in the stream an event may be added.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from .api import Emit
from .errors import StreamOver
from .event import Event
from .hooks import Owner

__all__ = ["MAX_EMITTED", "Emitted"]

MAX_EMITTED = 16
"""Emitted events that a stream keeps for a slow client; then `emit` waits."""


class Emitted:
    """The queue of emitted events of one stream."""

    __slots__ = ("_room", "accepts", "events", "on_emit")

    def __init__(self) -> None:
        self.events: deque[tuple[int, Event]] = deque()
        """Each with the ordinal of the member that emitted it."""
        self._room: trio.Semaphore | None = None
        self.accepts = True
        """Cleared with `refuse`: `emit` then raises `StreamOver`."""
        self.on_emit: Callable[[], None] | None = None
        """Called, synchronously, when an event is added."""

    def emitter(self, owner: Owner, ordinal: int) -> Emit:
        """`emit` for one member. It raises `StreamOver` and blocks while the queue is full."""

        async def emit(event: Event) -> None:
            if not isinstance(event, Event):
                raise TypeError(f"emit() takes an Event, not {type(event).__name__}")
            own = event.detach()
            own.made_by = owner
            if self._room is None:
                self._room = trio.Semaphore(MAX_EMITTED)
            if self.accepts:
                await self._room.acquire()
            if not self.accepts:
                raise StreamOver
            self.events.append((ordinal, own))
            if self.on_emit is not None:
                self.on_emit()

        return emit

    def take(self) -> tuple[int, Event]:
        """The oldest event, with the ordinal of the member that emitted it."""
        taken = self.events.popleft()
        if self._room is not None:
            self._room.release()
        return taken

    def refuse(self) -> None:
        """Accept no more events, and end every `emit` that waits."""
        self.accepts = False
        if self._room is not None:
            for _ in range(self._room.statistics().tasks_waiting):
                self._room.release()
