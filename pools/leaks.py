"""The leak detector: records where leases are taken, with the levels of netty's detector.

A lease that is garbage-collected before its release is always counted and logged. Recording where
it was taken costs time; the level selects for which leases:

- `none`: for none, so the log line has only the pool;
- `sampled`: for one lease in `SAMPLE_EVERY`;
- `paranoid`: for every lease, for development and tests.
"""

from __future__ import annotations

import itertools
import traceback
from typing import Literal

import structlog

__all__ = ["SAMPLE_EVERY", "LeakDetector", "LeakLevel"]

LeakLevel = Literal["none", "sampled", "paranoid"]

SAMPLE_EVERY = 128
_STACK_DEPTH = 12


class LeakDetector:
    """Records the origin of leases according to its level, and logs leaks."""

    __slots__ = ("_count", "level")

    def __init__(self, level: LeakLevel = "none") -> None:
        self.level: LeakLevel = level
        self._count = itertools.count()

    def origin(self) -> str | None:
        """The caller's stack as text, or None if this lease is not recorded."""
        if self.level == "none" or (self.level == "sampled" and next(self._count) % SAMPLE_EVERY):
            return None
        # Without the last two frames: this one and the pool's.
        return "".join(traceback.format_stack(limit=_STACK_DEPTH)[:-2])

    def report(self, pool: str, origin: str | None) -> None:
        """Log a leak. Called from a finaliser, so it must not raise."""
        try:
            structlog.get_logger("pools").error("buffer_leaked", pool=pool, taken_at=origin)
        except Exception:  # at exit structlog may be gone already; the leak is counted anyway
            return
