"""`LargePassage`: an event or a body above the limit, which no hook sees and which leaves as it
comes.

Nothing is collected. A hook that must not miss what it needs is a *watcher*: each read is searched
for it, and the last bytes of a read wait for the next one, so that a cut hides nothing. This module
must not know windows or the rest of the stream.
"""

from __future__ import annotations

from .errors import EventTooLarge
from .event_hooks import EventHook
from .needs import Finder
from .sse import FIELD_LINE_BYTES, find_empty_line, find_field_line

__all__ = ["LargePassage"]

_EMPTY_LINE_BYTES = 3  # bytes of a read to search again, so that no empty line is missed


class LargePassage:
    """One event, or the rest of a body."""

    __slots__ = ("_finders", "_is_body", "_kept", "_max_event_bytes")

    def __init__(
        self,
        watchers: tuple[EventHook, ...],
        max_event_bytes: int,
        *,
        is_body: bool,
        may_be_events: bool,
    ) -> None:
        """`may_be_events`: hooks see events, and a client may find some in this body; a field line
        in it ends the stream.
        """
        self._finders: list[tuple[Finder, str]] = [
            (hook.need, hook.owner.name) for hook in watchers if hook.need is not None
        ]
        self._max_event_bytes = max_event_bytes
        self._is_body = is_body
        self._kept = max(
            [0 if is_body else _EMPTY_LINE_BYTES, *(hook.overlap for hook in watchers)]
        )
        if may_be_events:
            self._finders.append((find_field_line, watchers[0].owner.name if watchers else ""))
            self._kept = max(self._kept, FIELD_LINE_BYTES)

    def take(self, buffer: bytearray, start: int, end: int, *, final: bool) -> tuple[int, bool]:
        """The index up to which `buffer[start:end]` leaves, and whether the event ends there.

        The caller presents the rest again, at the `start` of the next call; `final`: nothing comes
        next. Raises `EventTooLarge` when a watcher needs what has come.
        """
        over = -1 if self._is_body else find_empty_line(buffer, start, end)
        last = over if over >= 0 else end
        for find, interceptor in self._finders:
            if find(buffer, start, last) >= 0:
                raise EventTooLarge(self._max_event_bytes, interceptor or None)
        if over >= 0:
            return over, True
        return end if final else max(start, end - self._kept), False
