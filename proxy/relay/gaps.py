"""The time between two events of a stream, counted in cells that the caller provides.

Events that one read brought came at the same time: the cost is one of a read, not of an event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import MutableSequence

__all__ = ["GAP_BOUNDS", "EventGaps"]

GAP_BOUNDS = (
    *(0.001, 0.0025, 0.005),
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
"""Upper bounds in seconds. From 10 ms on, those of OpenTelemetry for the time between chunks."""


class EventGaps:
    """The times between the events of one stream."""

    __slots__ = ("_at", "_cells", "_last")

    def __init__(self, cells: MutableSequence[float], at: int) -> None:
        """`cells[at]` is the sum, and `cells[at + 1]` the first bucket of `GAP_BOUNDS`."""
        self._cells = cells
        self._at = at
        self._last: float | None = None

    def note(self, count: int, now: float) -> None:
        """Note that so many events, 1 or more, have come at a time in seconds."""
        last, self._last = self._last, now
        if last is not None:
            gap = now - last
            self._cells[self._at] += gap
            self._cells[self._at + 1 + bisect_left(GAP_BOUNDS, gap)] += 1.0
        if count > 1:
            self._cells[self._at + 1] += count - 1
