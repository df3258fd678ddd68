"""A pool of equal buffers, and the lease of one buffer.

A `BufferPool` keeps idle `bytearray`s and lends them as `Lease`s. Invariants:

- a buffer is idle in the pool, on exactly one lease, or gone;
- an idle buffer has `len == size`, at most twice that allocated, and no live export;
- `allocations + reuses == returns + discards + in_use + leaks` at all times.

The number of leases is unbounded: `max_pooled` limits idle buffers only, and nothing here blocks. A
pool belongs to one thread. It knows neither the content nor the borrower.
"""

from __future__ import annotations

from dataclasses import dataclass
from sys import getsizeof

from .errors import LeaseReturned
from .leaks import LeakDetector

__all__ = ["BufferPool", "Lease", "PoolStatistics"]

# The object, and the NUL byte that CPython keeps after the content.
_BYTEARRAY_OVERHEAD = getsizeof(bytearray(64)) - 64


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A snapshot of one pool. Counters start when the pool is created."""

    pool: str
    size: int
    """Size of one buffer in bytes."""
    max_pooled: int
    allocations: int
    """Leases that allocated a buffer."""
    reuses: int
    """Leases that reused an idle buffer."""
    discards_oversize: int
    discards_full: int
    discards_exported: int
    leaks: int
    """Leases that were garbage-collected before they were released."""
    in_use: int
    """Leases on loan now."""
    current_size: int
    """Idle buffers now."""
    high_water: int
    """The largest number of leases on loan at once."""

    @property
    def discards(self) -> int:
        """Buffers that were returned and not kept, for any reason."""
        return self.discards_oversize + self.discards_full + self.discards_exported

    @property
    def reuse_rate(self) -> float:
        """Reuses as a share of all leases; 0.0 before the first."""
        leases = self.reuses + self.allocations
        return self.reuses / leases if leases else 0.0


class Lease:
    """One buffer on loan. Call `release()` exactly once, or use it as a context manager.

    The borrower may resize the buffer; the pool restores the length, or discards the buffer. A
    lease that is garbage-collected on loan is counted and logged as a leak; its buffer is not
    reused.
    """

    __slots__ = ("_buffer", "_origin", "pool")

    def __init__(self, pool: BufferPool, buffer: bytearray, origin: str | None) -> None:
        self.pool = pool
        self._buffer: bytearray | None = buffer
        self._origin = origin

    @property
    def buffer(self) -> bytearray:
        """The borrowed bytes, with stale content. `len` is `pool.size` at first.

        Raises `LeaseReturned` after `release`.
        """
        buffer = self._buffer
        if buffer is None:
            raise LeaseReturned(self.pool.name)
        return buffer

    @property
    def returned(self) -> bool:
        """Whether the buffer was given back."""
        return self._buffer is None

    def release(self) -> None:
        """Give the buffer back. Never blocks. Raises `LeaseReturned` if called twice.

        Release every `memoryview` of it first: with a live one the pool must discard the buffer.
        """
        buffer = self._buffer
        if buffer is None:
            raise LeaseReturned(self.pool.name)
        self._buffer = None
        self.pool._take_back(buffer)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        if self._buffer is not None:
            self.release()

    def __del__(self) -> None:
        if getattr(self, "_buffer", None) is not None:
            self.pool._lose(self._origin)

    def __repr__(self) -> str:
        state = "returned" if self._buffer is None else "on loan"
        return f"<Lease of {self.pool.name!r}, {state}>"


class BufferPool:
    """A pool of `bytearray`s of `size` bytes that keeps at most `max_pooled` of them idle."""

    __slots__ = (
        "_allocations",
        "_discards_exported",
        "_discards_full",
        "_discards_oversize",
        "_high_water",
        "_idle",
        "_in_use",
        "_largest",
        "_leaks",
        "_reuses",
        "detector",
        "max_pooled",
        "name",
        "size",
    )

    def __init__(
        self, name: str, size: int, max_pooled: int, detector: LeakDetector | None = None
    ) -> None:
        if size < 64 or max_pooled < 0:
            raise ValueError(f"pool {name!r}: size must be at least 64 and max_pooled at least 0")
        self.name = name
        self.size = size
        self.max_pooled = max_pooled
        self.detector = detector or LeakDetector()
        self._largest = 2 * size + _BYTEARRAY_OVERHEAD
        self._idle: list[bytearray] = []
        self._in_use = 0
        self._high_water = 0
        self._allocations = 0
        self._reuses = 0
        self._discards_oversize = 0
        self._discards_full = 0
        self._discards_exported = 0
        self._leaks = 0

    def acquire(self) -> Lease:
        """Borrow the idle buffer that was returned last, or a new one. Never blocks."""
        if self._idle:
            buffer = self._idle.pop()
            self._reuses += 1
        else:
            buffer = bytearray(self.size)
            self._allocations += 1
        self._in_use += 1
        if self._in_use > self._high_water:
            self._high_water = self._in_use
        return Lease(
            self, buffer, self.detector.origin() if self.detector.level != "none" else None
        )

    def statistics(self) -> PoolStatistics:
        """A snapshot of the counters."""
        return PoolStatistics(
            pool=self.name,
            size=self.size,
            max_pooled=self.max_pooled,
            allocations=self._allocations,
            reuses=self._reuses,
            discards_oversize=self._discards_oversize,
            discards_full=self._discards_full,
            discards_exported=self._discards_exported,
            leaks=self._leaks,
            in_use=self._in_use,
            current_size=len(self._idle),
            high_water=self._high_water,
        )

    def _take_back(self, buffer: bytearray) -> None:
        """Keep or discard a buffer. Called once by its lease."""
        self._in_use -= 1
        # The allocated size counts, not the length: CPython does not always shrink a bytearray.
        if getsizeof(buffer) > self._largest:
            self._discards_oversize += 1
            return
        if len(self._idle) >= self.max_pooled:
            self._discards_full += 1
            return
        if is_exported(buffer):
            self._discards_exported += 1
            return
        missing = self.size - len(buffer)
        if missing > 0:
            buffer += bytes(missing)
        elif missing:
            del buffer[self.size :]
        self._idle.append(buffer)

    def _lose(self, origin: str | None) -> None:
        self._in_use -= 1
        self._leaks += 1
        self.detector.report(self.name, origin)

    def __repr__(self) -> str:
        return f"<BufferPool {self.name!r}: {self._in_use} in use, {len(self._idle)} idle>"


def is_exported(buffer: bytearray) -> bool:
    """Whether a `memoryview`, or another user of the buffer protocol, still references the bytes.

    Cheap: CPython refuses to resize a `bytearray` with live exports. The buffer is unchanged.
    """
    try:
        buffer.append(0)
    except BufferError:
        return True
    buffer.pop()
    return False
