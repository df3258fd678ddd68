"""The three named pools of a worker."""

from __future__ import annotations

from collections.abc import Iterator

from .buffers import BufferPool, PoolStatistics
from .leaks import LeakDetector, LeakLevel
from .scope import BufferScope

__all__ = ["POOL_NAMES", "Pools"]

POOL_NAMES = ("sse_event", "http_response", "json")
"""The names of the pools in configuration, metrics and reports."""


class Pools:
    """The pools of one worker.

    - `sse_event`, 4 KiB: windows in which SSE streams are read and framed;
    - `http_response`, 16 KiB: other bodies, and SSE windows that need more space;
    - `json`, 8 KiB: JSON that interceptors encode.
    """

    __slots__ = ("http_response", "json", "sse_event")

    def __init__(
        self,
        *,
        sse_event: tuple[int, int] = (4096, 1000),
        http_response: tuple[int, int] = (16384, 500),
        json: tuple[int, int] = (8192, 500),
        leak_detection: LeakLevel = "none",
    ) -> None:
        """Each pool: (size in bytes, maximum number of idle buffers)."""
        detector = LeakDetector(leak_detection)
        self.sse_event = BufferPool("sse_event", *sse_event, detector)
        self.http_response = BufferPool("http_response", *http_response, detector)
        self.json = BufferPool("json", *json, detector)

    def __iter__(self) -> Iterator[BufferPool]:
        return iter((self.sse_event, self.http_response, self.json))

    def open_scope(self) -> BufferScope:
        """Create a buffer scope for one exchange. Enter it with `async with`."""
        return BufferScope()

    def statistics(self) -> tuple[PoolStatistics, ...]:
        """A snapshot of each pool, in the order of `POOL_NAMES`."""
        return tuple(pool.statistics() for pool in self)
