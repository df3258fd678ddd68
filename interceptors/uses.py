"""`Uses`: how full the limits of one interceptor were when it last asked its store, for `/status`.

It remembers what the store has answered, for the keys that were asked last, and asks for nothing
itself. It does not know what is limited.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

__all__ = ["MOST_KEYS", "Use", "Uses"]

MOST_KEYS = 50


class Use(NamedTuple):
    """One limit of one key."""

    key: str
    used: int
    """Spent and reserved; of a token bucket: tokens that are not back yet."""
    limit: int
    at: float
    """When the store answered, in seconds since 1970."""
    until: float | None
    """When the window ends, or the bucket is full again; None for a window that its interceptor
    counts, such as a month.
    """


class Uses:
    """The newest answers for the keys of one interceptor."""

    __slots__ = ("_notes",)

    def __init__(self) -> None:
        self._notes: dict[str, tuple[float, Any, Any]] = {}

    def note(self, key: str, limit: Any, state: Any) -> None:
        """Remember an answer: a burst with its `Bucket`, or a `Window` with its `WindowState`."""
        notes = self._notes
        notes.pop(key, None)
        notes[key] = time.time(), limit, state
        if len(notes) > MOST_KEYS:
            del notes[next(iter(notes))]

    def note_windows(self, windows: Sequence[Any], states: Sequence[Any]) -> None:
        """As `note`, for several windows. There are no states if the store did not count."""
        for window, state in zip(windows, states, strict=False):
            self.note(window.key, window, state)

    def read(self) -> Iterator[Use]:
        """The limits whose window is not over."""
        now = time.time()
        for key, (at, limit, state) in self._notes.items():
            if isinstance(limit, int):
                use = Use(key, limit - state.remaining, limit, at, at + state.full_s)
            else:
                until = at + state.reset_s if limit.number is None else None
                use = Use(key, state.used + state.reserved, limit.limit, at, until)
            if (at + limit.length_s if use.until is None else use.until) > now:
                yield use
