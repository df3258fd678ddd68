"""`MemoryEngine`: the store of one process, and what a worker counts in while the store is away.

With a `Share` of several workers each limit is this worker's part of it. Times are Trio's clock,
shown as seconds since 1970. Memory is bounded by `max_keys` for buckets, and by time otherwise.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

import trio

from .buckets import Buckets
from .store import (
    Bucket,
    LogEntry,
    OnStoreError,
    Reservation,
    Share,
    Window,
    WindowState,
)

__all__ = ["Aging", "MemoryEngine", "Subscribers"]

T = TypeVar("T")

_SPARE = 64
_WAKE_UPS = 64
"""Messages that a subscriber may leave unread; further ones are dropped."""


class Aging(Generic[T]):
    """A dict whose entries have an end; ended and removed entries take no memory."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[T, float]] = {}
        self._queue: list[tuple[float, str]] = []  # at least one entry for each key, never later

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def get(self, key: str, now: float) -> T | None:
        """The value of a key that has not ended."""
        self._forget(now)
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: str, value: T, ends_at: float) -> None:
        """Set a key until `ends_at`."""
        if key not in self._entries or ends_at < self._entries[key][1]:
            heappush(self._queue, (ends_at, key))
        self._entries[key] = value, ends_at

    def pop(self, key: str, now: float) -> T | None:
        """Remove a key and return its value."""
        self._forget(now)
        entry = self._entries.pop(key, None)
        if len(self._queue) > 2 * len(self._entries) + _SPARE:  # of removed keys, for months maybe
            self._queue = [(ends_at, key) for key, (_, ends_at) in self._entries.items()]
            heapify(self._queue)
        return None if entry is None else entry[0]

    def _forget(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            key = heappop(self._queue)[1]
            entry = self._entries.get(key)
            if entry is not None and entry[1] <= now:
                del self._entries[key]
            elif entry is not None:
                heappush(self._queue, (entry[1], key))


class Subscribers:
    """The subscribers of this process, by channel."""

    def __init__(self) -> None:
        self._channels: dict[str, set[trio.MemorySendChannel[bytes]]] = {}

    @property
    def channels(self) -> list[str]:
        """The channels that have a subscriber."""
        return list(self._channels)

    def add(
        self, channel: str
    ) -> tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes], bool]:
        """Add a subscriber. Returns both ends, and whether it is the channel's first."""
        sending, receiving = trio.open_memory_channel[bytes](_WAKE_UPS)
        is_first = channel not in self._channels
        self._channels.setdefault(channel, set()).add(sending)
        return sending, receiving, is_first

    def discard(self, channel: str, sending: trio.MemorySendChannel[bytes]) -> bool:
        """Remove a subscriber. Returns whether it was the channel's last."""
        sending.close()
        self._channels[channel].discard(sending)
        if not self._channels[channel]:
            del self._channels[channel]
            return True
        return False

    def send(self, channel: str, message: bytes) -> None:
        """Send to the channel's subscribers. Never waits."""
        for sending in self._channels.get(channel, ()):
            try:
                sending.send_nowait(message)
            except (trio.WouldBlock, trio.BrokenResourceError):
                continue


class _Counted:
    """A window's counts. `used` and `previous` are totals."""

    __slots__ = ("number", "previous", "reserved", "used")

    def __init__(self) -> None:
        self.number, self.used, self.previous = -1, 0, 0
        self.reserved: dict[str, int] = {}

    def roll(self, number: int) -> None:
        """Begin a later window."""
        if number > self.number:
            self.previous = self.used if number == self.number + 1 else 0
            self.number, self.used = number, 0
            self.reserved.clear()


class _Log:
    """A log: entries with their ids as pairs, oldest first."""

    __slots__ = ("entries", "last")

    def __init__(self) -> None:
        self.entries: list[tuple[tuple[int, int], bytes]] = []
        self.last = (0, 0)


class MemoryEngine:
    """An `Engine` in memory. Every call is a checkpoint and raises nothing."""

    def __init__(self, share: Share | None = None) -> None:
        self.share = share or Share()
        self._buckets: dict[str, Buckets] = {}
        self._windows: Aging[_Counted] = Aging()
        self._open: Aging[bool] = Aging()  # ids of reservations, as keys
        self._counters: Aging[dict[str, int]] = Aging()
        self._batches: Aging[bool] = Aging()  # ids, as keys
        self._map: Aging[bytes] = Aging()
        self._logs: Aging[_Log] = Aging()
        self._subscribers = Subscribers()
        self._started: float | None = None

    def clock(self) -> float:
        """Seconds since 1970; it only grows."""
        if self._started is None:
            self._started = time.time() - trio.current_time()
        return self._started + trio.current_time()

    def buckets(self, table: str) -> Buckets:
        """The buckets of a table."""
        return self._buckets.setdefault(table, Buckets())

    def all_buckets(self) -> Iterator[tuple[str, str, float]]:
        """The table, the key and the time at which it is full, of every bucket."""
        for table, buckets in self._buckets.items():
            yield from ((table, key, full_at) for key, full_at in buckets.items())

    async def take(
        self,
        table: str,
        key: str,
        rate_per_s: float,
        burst: int,
        cost: int,
        max_keys: int,
        on_error: OnStoreError | None,
    ) -> Bucket:
        await trio.lowlevel.checkpoint()
        burst = self.share.of(burst)
        return self.buckets(table).take(
            key,
            rate_per_s / self.share.count,
            burst,
            min(cost, burst),
            max_keys,
            trio.current_time(),
        )

    async def reserve(
        self,
        id: str,
        amount: int,
        windows: tuple[Window, ...],
        *,
        spend: bool,
        force: bool,
        on_error: OnStoreError | None,
    ) -> Reservation:
        await trio.lowlevel.checkpoint()
        now = self.clock()
        counted = [self._counted(item, now) for item in windows]
        states = [
            self._state(window, item, now) for window, item in zip(windows, counted, strict=True)
        ]
        refused = next(
            (
                at
                for at, (item, state) in enumerate(zip(windows, states, strict=True))
                if state.used + state.reserved + amount > self.share.of(item.limit)
            ),
            None,
        )
        if amount and (force or refused is None):
            for item in counted:
                if spend:
                    item.used += amount
                else:
                    item.reserved[id] = amount
            if not spend:
                self._open.put(id, True, now + 2 * max(item.length_s for item in windows))
            states = [
                self._state(window, item, now)
                for window, item in zip(windows, counted, strict=True)
            ]
        return Reservation(id, amount, windows, tuple(states), refused)

    async def settle(self, reservation: Reservation, amount: int) -> bool:
        await trio.lowlevel.checkpoint()
        now = self.clock()
        if not self._open.pop(reservation.id, now):
            return False
        for window, state in zip(reservation.windows, reservation.states, strict=True):
            item = self._counted(window, now)
            item.reserved.pop(reservation.id, None)
            if item.number == state.number:
                item.used += amount
            elif item.number == state.number + 1:
                item.previous += amount
        return True

    def see(self, reservation: Reservation) -> None:
        """Take over what a shared store has counted: this worker's share of it."""
        now = self.clock()
        for window, state in zip(reservation.windows, reservation.states, strict=True):
            item = self._counted(window, now, state.number)
            item.previous, item.used = 0, -(-state.used // self.share.count)
            item.reserved = {"": state.reserved // self.share.count}

    def _counted(self, window: Window, now: float, number: int | None = None) -> _Counted:
        """The counts of a window, which begins if it is the next one."""
        if number is None:
            number = window.number
        if number is None:
            number = math.floor(now / window.length_s)
        item = self._windows.get(window.key, now)
        if item is None:
            item = _Counted()
        item.roll(number)
        self._windows.put(window.key, item, now + 2 * window.length_s)
        return item

    def _state(self, window: Window, item: _Counted, now: float) -> WindowState:
        into_s = now % window.length_s if window.number is None else 0.0
        used = item.used
        if window.sliding:
            used += math.ceil(item.previous * (1 - into_s / window.length_s))
        reserved = sum(item.reserved.values())
        remaining = max(0, self.share.of(window.limit) - used - reserved)
        return WindowState(item.number, used, reserved, remaining, window.length_s - into_s)

    async def count(self, key: str, id: str, amounts: Mapping[str, int], keep_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        now = self.clock()
        if self._batches.get(id, now):
            return False
        self._batches.put(id, True, now + 3600)
        counters = self._counters.get(key, now) or {}
        for name, amount in amounts.items():
            counters[name] = counters.get(name, 0) + amount
        self._counters.put(key, counters, now + keep_s)
        return True

    async def counts(self, key: str) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return dict(self._counters.get(key, self.clock()) or {})

    async def get(self, key: str) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self._map.get(key, self.clock())

    async def put(self, key: str, value: bytes, keep_s: float, only_new: bool) -> bool:
        await trio.lowlevel.checkpoint()
        now = self.clock()
        if only_new and self._map.get(key, now) is not None:
            return False
        self._map.put(key, value, now + keep_s)
        return True

    async def remove(self, key: str) -> bool:
        await trio.lowlevel.checkpoint()
        now = self.clock()
        was = self._map.pop(key, now) is not None
        return self._logs.pop(key, now) is not None or was

    async def append(
        self,
        key: str,
        epoch: int,
        seq: int,
        entries: Sequence[bytes],
        keep_s: float,
        max_entries: int,
    ) -> bool:
        await trio.lowlevel.checkpoint()
        now = self.clock()
        log = self._logs.get(key, now) or _Log()
        if (epoch, seq) <= log.last:
            return False
        log.entries += [((epoch, seq + at), data) for at, data in enumerate(entries)]
        log.last = log.entries[-1][0]
        del log.entries[:-max_entries]
        self._logs.put(key, log, now + keep_s)
        self._subscribers.send(key, f"{log.last[0]}-{log.last[1]}".encode())
        return True

    async def read(self, key: str, after: str, limit: int) -> list[LogEntry]:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(key, self.clock())
        if log is None:
            return []
        epoch, seq = (int(part) for part in after.split("-"))
        first = bisect_right(log.entries, (epoch, seq), key=lambda item: item[0])
        found = log.entries[first : first + limit]
        return [LogEntry(f"{epoch}-{seq}", data) for (epoch, seq), data in found]

    async def last_id(self, key: str) -> str | None:
        await trio.lowlevel.checkpoint()
        log = self._logs.get(key, self.clock())
        return None if log is None else f"{log.last[0]}-{log.last[1]}"

    async def publish(self, channel: str, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._subscribers.send(channel, message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        sending, receiving, _ = self._subscribers.add(channel)
        try:
            yield receiving
        finally:
            self._subscribers.discard(channel, sending)
            receiving.close()

    async def now(self) -> float:
        await trio.lowlevel.checkpoint()
        return self.clock()
