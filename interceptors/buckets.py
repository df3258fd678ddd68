"""Token buckets in memory, with bounded memory for any number of keys.

A bucket is the time when it will be full again; a full bucket is forgotten. If `max_keys` buckets
are not full, the one that will be full first is evicted, and until its time every unknown key
starts with that bucket. So no key gets a full bucket from an eviction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heappop, heappush, heapreplace

from .store import Bucket

__all__ = ["Buckets"]


class Buckets:
    """Buckets of one table. Times are of one monotonic clock, in seconds. Nothing here waits."""

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}
        # A heap with each bucket once, at its time or at an earlier one: times only grow, and a
        # wrong one is corrected when it reaches the top.
        self._queue: list[tuple[float, str]] = []
        self._unknown_full_at = -math.inf

    def __len__(self) -> int:
        return len(self._full_at)

    def items(self) -> Iterable[tuple[str, float]]:
        """The key of each bucket that is not full, and when it is."""
        return self._full_at.items()

    def take(
        self, key: str, rate_per_s: float, burst: int, cost: int, max_keys: int, now: float
    ) -> Bucket:
        """Take `cost` tokens (1 to `burst`) if they are there."""
        self._forget_full(now)
        full_at = max(now, self.full_at(key))
        # Both times are rounded to 1 us: a client that waits exactly `Retry-After` is not rejected
        # by a rounding error, and a bucket that takes 60 s to fill is never reported with 61 s.
        wait_s = max(0.0, round(full_at - now - (burst - cost) / rate_per_s, 6))
        if not wait_s:
            full_at += cost / rate_per_s
            self.note(key, full_at, max_keys)
        missing = (full_at - now) * rate_per_s
        remaining = max(0, math.floor(burst - missing + 1e-6))
        return Bucket(not wait_s, remaining, wait_s, round(full_at - now, 6))

    def full_at(self, key: str) -> float:
        """When a bucket will be full; minus infinity for an unknown one."""
        return self._full_at.get(key, self._unknown_full_at)

    def note(self, key: str, full_at: float, max_keys: int) -> None:
        """Set when a bucket will be full: never earlier than it was."""
        if key not in self._full_at:
            while len(self._full_at) >= max_keys:
                self._evict_fullest()
            heappush(self._queue, (full_at, key))
        self._full_at[key] = max(full_at, self._full_at.get(key, full_at))

    def see(self, key: str, full_at: float, max_keys: int, now: float) -> None:
        """Note a bucket of a shared store."""
        self._forget_full(now)
        self.note(key, full_at, max_keys)

    def _forget_full(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            key = self._queue[0][1]
            if self._full_at[key] > now:
                heapreplace(self._queue, (self._full_at[key], key))
            else:
                heappop(self._queue)
                del self._full_at[key]

    def _evict_fullest(self) -> None:
        while self._queue[0][0] < (full_at := self._full_at[self._queue[0][1]]):
            heapreplace(self._queue, (full_at, self._queue[0][1]))
        del self._full_at[heappop(self._queue)[1]]
        self._unknown_full_at = max(self._unknown_full_at, full_at)
