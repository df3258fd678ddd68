"""`Store`: state that the workers of a proxy, and several proxies, share. Part of the API.

    bucket = await self.store.take("ann", rate_per_s=1.0, burst=10)
    if not bucket.allowed: ...

An interceptor's `store` has its own names: keys of two configuration entries never meet. State
survives a reload. Without a configured store it is the memory of one process.

- `take`: token buckets;
- `spend`, `reserve` and `settle`: counts in windows of time, with limits;
- `count`, `counts`: totals by name;
- `get`, `put`, `remove`: a map whose entries expire; `append`, `read`, `last_id`: logs;
- `publish`, `subscribe`: wake-ups.

No call waits longer than `store.timeout`. While the store is away, limits (`take`, `spend`,
`reserve`) follow `on_error`; every other call raises `StoreUnavailable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from secrets import token_hex
from typing import Literal, Protocol

import trio

from .uses import Uses

__all__ = [
    "Bucket",
    "Engine",
    "LogEntry",
    "OnStoreError",
    "Reservation",
    "Share",
    "Store",
    "StoreUnavailable",
    "Window",
    "WindowState",
]

OnStoreError = Literal["local", "open", "closed"]
"""What a limit does while the store is away.

- "local": this worker counts in its memory, with its share of the limit;
- "open": everything is allowed;
- "closed": `StoreUnavailable` is raised.
"""


class StoreUnavailable(Exception):
    """The store is away, did not answer in time, or refused the call.

    The call may have had its effect all the same. `kind`: "timeout", "connection", "reply" (an
    error, or an answer that makes no sense) or "away" (not sent, because the store is away).
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind: str = kind


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of a limit that no store counts: `index` of `count` workers."""

    index: int = 0
    count: int = 1

    def of(self, limit: int) -> int:
        """This worker's whole part of a limit, at least 1 unless the limit is 0."""
        own = limit // self.count + (self.index < limit % self.count)
        return max(own, min(limit, 1))


@dataclass(frozen=True, slots=True)
class Bucket:
    """The state of a token bucket after `take`."""

    allowed: bool
    """Whether the tokens were there. They are then taken; otherwise nothing is."""
    remaining: int
    """Whole tokens left."""
    wait_s: float
    """Seconds until the tokens are there; 0.0 if allowed."""
    full_s: float
    """Seconds until the bucket is full."""


@dataclass(frozen=True, slots=True)
class Window:
    """A limit over a window of time."""

    key: str
    """What is counted, such as "team:blue/day". Windows that differ in anything else need
    different keys.
    """
    limit: int
    """The most that may be spent and reserved. Whole numbers: count money in millionths."""
    length_s: float
    """Seconds. Windows are aligned to multiples of it since 1970 by the store's clock."""
    sliding: bool = False
    """Whether the part of the previous window that `length_s` still covers counts too.

    It is estimated from the previous total (as if spent evenly), so at most twice the memory.
    """
    number: int | None = None
    """The number of a window that the caller counts, such as year * 12 + month for months of a time
    zone. It must grow by 1 a window; `length_s` is then the longest length. None: by the clock.
    """


@dataclass(frozen=True, slots=True)
class WindowState:
    """The state of a window after `spend` or `reserve`."""

    number: int
    """The window's number."""
    used: int
    """Spent in it, with `sliding` also what still counts of the previous one."""
    reserved: int
    """Reserved and not settled."""
    remaining: int
    """What is left of the limit, at least 0. `on_error: local`: of this worker's share."""
    reset_s: float
    """Seconds until the window ends. For a window with a `number` of the caller, `length_s`."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The result of `reserve` and `spend`."""

    id: str
    amount: int
    windows: tuple[Window, ...]
    states: tuple[WindowState, ...]
    """The state of each window. Empty if `on_error: open` let it pass."""
    refused: int | None
    """Index of the first window without room; None if there was room in all."""
    is_local: bool = False
    """Whether it was counted in this worker's memory because the store was away."""

    @property
    def allowed(self) -> bool:
        """Whether there was room in all windows. Otherwise nothing is counted."""
        return self.refused is None


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry of a log."""

    id: str
    """`<epoch>-<seq>`."""
    data: bytes


class Engine(Protocol):
    """What a store is made of: `memory.MemoryEngine`, and the proxy's for Valkey and Redis.

    Keys are whole. `on_error` is a policy or None, the configured one.
    """

    async def take(
        self,
        table: str,
        key: str,
        rate_per_s: float,
        burst: int,
        cost: int,
        max_keys: int,
        on_error: OnStoreError | None,
    ) -> Bucket: ...

    async def reserve(
        self,
        id: str,
        amount: int,
        windows: tuple[Window, ...],
        *,
        spend: bool,
        force: bool,
        on_error: OnStoreError | None,
    ) -> Reservation: ...

    async def settle(self, reservation: Reservation, amount: int) -> bool: ...

    async def count(self, key: str, id: str, amounts: Mapping[str, int], keep_s: float) -> bool: ...

    async def counts(self, key: str) -> dict[str, int]: ...

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes, keep_s: float, only_new: bool) -> bool: ...

    async def remove(self, key: str) -> bool: ...

    async def append(
        self,
        key: str,
        epoch: int,
        seq: int,
        entries: Sequence[bytes],
        keep_s: float,
        max_entries: int,
    ) -> bool: ...

    async def read(self, key: str, after: str, limit: int) -> list[LogEntry]: ...

    async def last_id(self, key: str) -> str | None: ...

    async def publish(self, channel: str, message: bytes) -> None: ...

    def subscribe(
        self, channel: str
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[bytes]]: ...

    async def now(self) -> float: ...


class Store:
    """One interceptor's part of the store. Every call is a checkpoint and can be cancelled.

    A cancelled call may have had its effect, and never disturbs another call.
    """

    __slots__ = ("_engine", "_uses", "name")

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._uses = Uses()
        self.name: str = name
        """The prefix of its keys: the interceptor's name in the configuration."""

    async def take(
        self,
        key: str,
        *,
        rate_per_s: float,
        burst: int,
        cost: int = 1,
        max_keys: int = 10_000,
        on_error: OnStoreError | None = None,
    ) -> Bucket:
        """Take `cost` tokens from a bucket of `burst` tokens, refilled at `rate_per_s`.

        A new bucket is full. `max_keys` bounds the buckets in memory. Raises `StoreUnavailable`
        with `on_error: closed`, `ValueError` if `cost` is not from 1 to `burst`.
        """
        if not 1 <= cost <= burst:
            raise ValueError("cost: expected a whole number from 1 to burst")
        bucket = await self._engine.take(
            self.name, key, rate_per_s, burst, cost, max_keys, on_error
        )
        self._uses.note(key, burst, bucket)
        return bucket

    async def spend(
        self,
        amount: int,
        windows: Sequence[Window],
        *,
        force: bool = False,
        on_error: OnStoreError | None = None,
    ) -> Reservation:
        """Count `amount` in all windows, or in none if one has no room. 0 reads their state.

        `force` counts it in any case; `Reservation.refused` still shows the full window. Raises as
        `take`.
        """
        return await self._reserve(amount, windows, spend=True, force=force, on_error=on_error)

    async def reserve(
        self,
        amount: int,
        windows: Sequence[Window],
        *,
        force: bool = False,
        on_error: OnStoreError | None = None,
    ) -> Reservation:
        """Reserve `amount` in all windows, or in none if one has no room. End it with `settle`.

        Check and reservation are one atomic step. A reservation ends with its window, and at most
        30 seconds after the worker that holds it. Raises as `take`. A call that is cancelled, or
        that the store did not answer, leaves no reservation.
        """
        return await self._reserve(amount, windows, spend=False, force=force, on_error=on_error)

    async def _reserve(
        self,
        amount: int,
        windows: Sequence[Window],
        *,
        spend: bool,
        force: bool,
        on_error: OnStoreError | None,
    ) -> Reservation:
        if amount < 0:
            raise ValueError("amount: expected a whole number, 0 or more")
        made = await self._engine.reserve(
            token_hex(8),
            amount,
            tuple(
                Window(self._key(item.key), item.limit, item.length_s, item.sliding, item.number)
                for item in windows
            ),
            spend=spend,
            force=force,
            on_error=on_error,
        )
        self._uses.note_windows(windows, made.states)
        return made

    async def settle(self, reservation: Reservation, amount: int) -> bool:
        """Replace a reservation by what was really used, in the windows of the reservation.

        Counts once, however often it is called: returns False if it was settled before. While the
        store is away the amount is kept and counted when it is back; it raises nothing then.
        """
        return await self._engine.settle(reservation, amount)

    async def count(
        self, key: str, amounts: Mapping[str, int], *, keep_s: float, id: str | None = None
    ) -> bool:
        """Add to the counters of a key, which are kept for `keep_s` after the last call.

        To repeat a call that raised, give both the same `id`: they count once within an hour, and
        the second returns False.
        """
        if not amounts:
            raise ValueError("amounts: expected at least one")
        return await self._engine.count(self._key(key), id or token_hex(8), amounts, keep_s)

    async def counts(self, key: str) -> dict[str, int]:
        """The counters of a key; none if nothing was counted."""
        return await self._engine.counts(self._key(key))

    async def get(self, key: str) -> bytes | None:
        """The value of a key; None if there is none or it has expired."""
        return await self._engine.get(self._key(key))

    async def put(self, key: str, value: bytes, *, keep_s: float, only_new: bool = False) -> bool:
        """Set a key for `keep_s` seconds. `only_new`: unless it is set; returns whether it was."""
        return await self._engine.put(self._key(key), value, keep_s, only_new)

    async def remove(self, key: str) -> bool:
        """Remove a key or a log. Returns whether it was there."""
        return await self._engine.remove(self._key(key))

    async def append(
        self,
        log: str,
        epoch: int,
        seq: int,
        entries: Sequence[bytes],
        *,
        keep_s: float,
        max_entries: int = 10_000,
    ) -> bool:
        """Append entries with the ids `<epoch>-<seq>`, `<epoch>-<seq + 1>` and so on.

        Returns False, and appends nothing, if the log has `<epoch>-<seq>` or a later id: a repeated
        batch, or a producer that another one has replaced. The log is kept for `keep_s` after the
        last append, and keeps about `max_entries`. Wakes subscribers of `log` with the last id.
        """
        if not entries:
            raise ValueError("entries: expected at least one")
        return await self._engine.append(self._key(log), epoch, seq, entries, keep_s, max_entries)

    async def read(self, log: str, *, after: str = "0-0", limit: int = 1000) -> list[LogEntry]:
        """The entries after an id, oldest first, at most `limit`."""
        return await self._engine.read(self._key(log), after, limit)

    async def last_id(self, log: str) -> str | None:
        """The id of the last entry; None if the log is not there."""
        return await self._engine.last_id(self._key(log))

    async def publish(self, channel: str, message: bytes) -> None:
        """Send a message to all present subscribers. It is not kept."""
        await self._engine.publish(self._key(channel), message)

    def subscribe(
        self, channel: str
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[bytes]]:
        """Receive messages: `async with store.subscribe(log) as messages: ...`.

        Messages are wake-ups: they can be lost while the store is away and for a subscriber that
        does not receive. After the store is back each subscriber gets b"" and must look itself.
        Entering waits at most `store.timeout` for the subscription and raises nothing.
        """
        return self._engine.subscribe(self._key(channel))

    async def now(self) -> float:
        """The store's clock: seconds since 1970. For windows that the caller counts."""
        return await self._engine.now()

    def _key(self, key: str) -> str:
        return f"{self.name}:{key}"
