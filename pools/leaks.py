"""Where a lost lease was taken: the leak detector's levels, after netty's.

A lease that is garbage-collected without having been given back is always counted and logged. What
costs time is to know *where* it was taken; the level says for how many leases that is recorded:

- `none`: for no lease (the log line says that a lease was lost, and of which pool);
- `sampled`: for one lease in `SAMPLE_EVERY`;
- `paranoid`: for every lease; for development and for tests.
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
    """Records the origin of leases as its level says, and reports the lost ones."""

    __slots__ = ("_count", "level")

    def __init__(self, level: LeakLevel = "none") -> None:
        self.level: LeakLevel = level
        self._count = itertools.count()

    def origin(self) -> str | None:
        """Where the caller stands, as text, or None when this lease is not one of those recorded."""
        if self.level == "none" or (self.level == "sampled" and next(self._count) % SAMPLE_EVERY):
            return None
        # Two frames are ours: this one, and the pool's.
        return "".join(traceback.format_stack(limit=_STACK_DEPTH)[:-2])

    def report(self, pool: str, origin: str | None) -> None:
        """Log a lost lease. Called from a finaliser: it must not raise, and structlog may be half
        torn down at exit.
        """
        try:
            structlog.get_logger("pools").error("buffer_leaked", pool=pool, taken_at=origin)
        except (
            Exception
        ):  # an exception in a finaliser goes nowhere; the leak is counted all the same
            return
