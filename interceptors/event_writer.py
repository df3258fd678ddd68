"""`EventWriter`: writes the events that leave a stream, and counts what became of those that came.

It writes into leases of the `json` pool. This module must not know windows or the order of parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from pools import PooledOutput

from .event import Event
from .event_hooks import EventHooks
from .parts import Piece
from .wire_event import WireEvent

__all__ = ["EventCounts", "EventWriter"]


@dataclass(slots=True)
class EventCounts:
    """What became of a stream's events. A comment counts as passed."""

    passed: int = 0
    changed: int = 0
    dropped: int = 0
    added: int = 0

    @property
    def total(self) -> int:
        """Events that came from upstream."""
        return self.passed + self.changed + self.dropped


class EventWriter:
    """The output of one stream's hooks."""

    __slots__ = ("_hooks", "counts", "output")

    def __init__(self, output: PooledOutput, hooks: EventHooks) -> None:
        self._hooks = hooks
        self.output = output
        self.counts = EventCounts()

    def write(self, event: Event) -> int:
        """Write one event. Returns where it begins in the output; -1 if that failed and `on_error`
        of the interceptor that made it is `skip`. Raises `InterceptorError`.
        """
        try:
            return event.add_to(self.output)
        except Exception as error:
            event.made_by.fail("on_event", error)
            return -1

    def write_instead(self, event: WireEvent, events: list[Event]) -> list[Piece] | None:
        """Write what leaves in place of `event`, and count it. None: it cannot be written, and
        `event` passes unchanged. Raises `InterceptorError`.
        """
        output, hooks, counts = self.output, self._hooks, self.counts
        pieces: list[Piece] = []
        for number, item in enumerate(events, 1):
            start = self.write(item)
            if start < 0:
                if hooks.ending is not None and hooks.hooks[hooks.ending].owner is item.made_by:
                    hooks.ending = None
                counts.passed += 1
                return None
            if isinstance(item, WireEvent):
                if not item.whole and number < len(events):
                    output.extend(b"\n\n")  # another event follows
            elif not event.whole and number == len(events):
                output.cut(output.used - 1)  # as unfinished as the event it replaces
            pieces.append((output.buffer, start, output.used))
        if not events:
            counts.dropped += 1
        elif any(item is event for item in events):
            counts.passed += 1
        else:
            counts.changed += 1
        counts.added += max(0, len(events) - 1)
        return pieces

    def count_body(self) -> None:
        """Count a JSON body that the hooks have seen."""
        if self._hooks.body is None:
            self.counts.passed += 1
        else:
            self.counts.changed += 1
