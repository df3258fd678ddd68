"""Events that wait for a held tool call, so that the order stays. Sans I/O.

A waiting event is detached from its buffer, and bounded by `MAX_HELD`. What its reader noted of it
counts when it leaves, not when it was read.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from ..api import EventResult
from ..event import Event
from .calls import HELD_EVENT, MAX_HELD, Call, Touch
from .errors import AnswerError
from .reader import Made, Reader

__all__ = ["HeldEvent", "HeldEvents", "event_of", "replace"]


class HeldEvent:
    """An event that may have to wait for tool calls."""

    __slots__ = (
        "_blocked_by",
        "before",
        "changed",
        "event",
        "is_lax",
        "is_silent",
        "message",
        "notes",
        "size",
        "touches",
    )

    def __init__(
        self,
        reader: Reader,
        event: Event,
        message: Any,
        before: list[Event],
        *,
        is_lax: bool,
        changed: bool = False,
        is_silent: bool = False,
    ) -> None:
        """`reader` has just read the event."""
        self.event = event
        self.message = message
        self.is_lax = is_lax
        """Only a lax reader takes its data for JSON."""
        self.changed = changed
        self.is_silent = is_silent
        """It need not leave: its texts were dropped."""
        self.before = before
        """Made events that leave before it."""
        self.touches: list[Touch] = reader.calls[:]
        self.notes = reader.take_notes()
        self.size = 0
        self._blocked_by: Call | None = None

    def is_blocked(self) -> bool:
        """Whether one of its calls is not decided. There may be thousands, so the last one that
        blocked it is asked first.
        """
        call = self._blocked_by
        if call is None or not _is_open(call):
            calls = (touch.call for touch in self.touches)
            call = self._blocked_by = next((call for call in calls if _is_open(call)), None)
        return call is not None

    def leave(self, reader: Reader) -> list[Event]:
        """The events that are sent in its place, and those before it."""
        made = None
        if reader.has_removed and isinstance(self.message, dict):
            made = reader.settle(self.message, self.touches)
        if made is None:
            edited = any(touch.call.edited for touch in self.touches)
            if edited or self.changed:
                is_silent = self.is_silent or (
                    edited and not self.event.is_body and reader.is_empty(self.message)
                )
                made = [] if is_silent else [self.message]
        for note in self.notes:
            note()
        if made is None:
            return [*self.before, self.event]
        left = list(self.before)
        for number, message in enumerate(made):
            if number == 0:
                left.append(replace(self.event, message, self.is_lax))
            else:
                name = message.get("type") if self.event.event is not None else None
                left.append(Event(json=message, event=name))
        return left


class HeldEvents:
    """The queue of one stream. False when it is empty."""

    def __init__(self) -> None:
        self._waiting: deque[HeldEvent] = deque()
        self._size = 0  # bytes

    def __len__(self) -> int:
        return len(self._waiting)

    def pass_in_order(self, reader: Reader, held: HeldEvent) -> EventResult:
        """Send an event after those that wait; it waits too if its calls are not decided."""
        alone = not self._waiting
        self._waiting.append(held)
        left = self.release(reader)
        if self._waiting and self._waiting[-1] is held:
            held.event = held.event.detach()
            held.size = HELD_EVENT + len(held.event.raw)
            self._size += held.size
            if self._size > MAX_HELD:
                raise AnswerError(
                    f"more than {MAX_HELD} bytes of events wait for a tool call that is incomplete"
                )
        elif alone and left == [held.event]:
            return held.event
        return left or None

    def release(self, reader: Reader) -> list[Event]:
        """The events that need not wait any longer."""
        left: list[Event] = []
        while self._waiting and not self._waiting[0].is_blocked():
            first = self._waiting.popleft()
            self._size -= first.size
            left += first.leave(reader)
        return left

    def clear(self) -> None:
        """Drop all waiting events."""
        self._waiting.clear()


def _is_open(call: Call) -> bool:
    return call.left is None or not call.complete


def event_of(made: Made) -> Event:
    """The event that a reader has made."""
    if isinstance(made.data, str):
        return Event(made.data, event=made.event)
    return Event(json=made.data, event=made.event)


def replace(event: Event, message: Any, is_lax: bool) -> Event:
    """The event with another message, written for a lax reader if only such a one took it."""
    return event.replace(json.dumps(message)) if is_lax else event.replace(json=message)
