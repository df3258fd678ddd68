"""`ValkeyEngine`: the store on a server of Valkey or Redis, and what limits do while it is away.

Every call is one script or command. A limit's answer is also noted in the worker's memory, so a
worker that must count alone goes on from what it last saw. When the server is back, it first gets
what the worker has seen and reserved, in case it has lost that, and then what was spent meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import trio

from interceptors.memory import Aging, MemoryEngine, Subscribers
from interceptors.store import (
    Bucket,
    LogEntry,
    OnStoreError,
    Reservation,
    StoreUnavailable,
    Window,
    WindowState,
)

from .address import Address
from .link import Link
from .restore import places_of, restore_buckets, restore_reserved, restore_windows
from .scripts import (
    ADD,
    APPEND,
    COUNT,
    PROBE,
    RESERVE,
    SETTLE,
    TAKE,
    Call,
)

__all__ = ["ValkeyEngine"]

_LEASE_MS = 30_000
_RENEW_S = 10.0
_AGAIN_S = 0.5
_MOST_UNSETTLED = 100_000
_MOST_US = 2.0**52


class ValkeyEngine:
    """An `Engine` on a server. `run` must run meanwhile."""

    def __init__(
        self,
        address: Address,
        local: MemoryEngine,
        *,
        prefix: str,
        timeout_s: float,
        on_error: OnStoreError,
        ca_file: str | None = None,
    ) -> None:
        """`local`: what this worker counts in while the server is away."""
        self.link = Link(address, timeout_s, ca_file=ca_file, first_calls=self._first_calls)
        self.link.on_up = self._resume
        self.link.on_message = self._deliver
        self._local = local
        self._prefix = prefix
        self._on_error = on_error
        self._owner = token_hex(8)
        self._subscribers = Subscribers()
        self._unsettled: dict[str, tuple[Reservation, int]] = {}
        self._settling = trio.Event()
        self._restored: dict[str, float] = {}  # while the link goes up: when each bucket is full
        # Not settled on the server, as far as this worker knows.
        self._held: Aging[Reservation] = Aging()
        self._seen: Aging[tuple[int, int, int]] = Aging()  # number, length in ms, use

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection and the leases of reservations, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.link.run)
            nursery.start_soon(self._renew)
            nursery.start_soon(self._settle_later)
            task_status.started()

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
        buckets, began = self._local.buckets(table), trio.current_time()
        interval = max(0.25, round(4e6 / rate_per_s) / 4)
        args = (f"{interval:.2f}", burst, cost)
        try:
            answer = await self.link.call(TAKE, [f"{self._prefix}b:{table}:{key}"], args)
            allowed, wait_us, full_us = self._whole(answer, 3)
        except StoreUnavailable:
            policy = on_error or self._on_error
            if policy == "closed":
                raise
            if policy == "open":
                return Bucket(True, burst, 0.0, 0.0)
            return await self._local.take(table, key, rate_per_s, burst, cost, max_keys, on_error)
        # By the time of the question: it must not be later than the server's.
        if full_us > 0:
            buckets.see(key, began + full_us / 1e6, max_keys, trio.current_time())
        remaining = max(0, math.floor(burst - full_us / interval + 1e-6))
        return Bucket(bool(allowed), remaining, wait_us / 1e6, full_us / 1e6)

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
        keys = [*self._owner_keys(), *(self._window(item) for item in windows)]
        args: list[Any] = [self._owner, id, amount, int(spend), int(force), _LEASE_MS]
        for item in windows:
            number = -1 if item.number is None else item.number
            args += [item.limit, round(item.length_s * 1000), int(item.sliding), number]
        try:
            answer = await self.link.call(RESERVE, keys, args)
            refused, *states = self._whole(answer, 1 + 4 * len(windows))
        except BaseException as error:
            # Without an answer the server may have reserved it all the same.
            if not spend and getattr(error, "kind", None) != "away":
                self._keep(Reservation(id, amount, windows, (), None), 0)
            if not isinstance(error, StoreUnavailable):
                raise
            policy = on_error or self._on_error
            if policy == "closed":
                raise
            if policy == "open":
                return Reservation(id, amount, windows, (), None, is_local=True)
            own_id = f"{id}:local"
            return await self._reserve_here(own_id, amount, windows, spend=spend, force=force)
        found = [
            WindowState(
                number, used, reserved, max(0, item.limit - used - reserved), left_ms / 1000
            )
            for item, (number, used, reserved, left_ms) in zip(
                windows, zip(*[iter(states)] * 4, strict=True), strict=True
            )
        ]
        reservation = Reservation(
            id, amount, windows, tuple(found), refused - 1 if refused else None
        )
        self._local.see(reservation)
        if not spend and amount and (force or reservation.allowed):
            ends_at = self._local.clock() + max(item.length_s for item in windows)
            self._held.put(id, reservation, ends_at)
        for item, state in zip(windows, found, strict=True):
            if not item.sliding:
                ends_at = self._local.clock() + item.length_s
                seen = (state.number, round(item.length_s * 1000), state.used)
                self._seen.put(item.key, seen, ends_at)
        return reservation

    async def _reserve_here(
        self, id: str, amount: int, windows: tuple[Window, ...], *, spend: bool, force: bool
    ) -> Reservation:
        made = await self._local.reserve(
            id, amount, windows, spend=spend, force=force, on_error=None
        )
        reservation = Reservation(
            made.id, amount, windows, made.states, made.refused, is_local=True
        )
        if spend and amount and (force or reservation.allowed):
            self._keep(reservation, amount)
        return reservation

    async def settle(self, reservation: Reservation, amount: int) -> bool:
        if reservation.is_local:
            settled = bool(reservation.states) and await self._local.settle(reservation, amount)
            if settled:
                self._keep(reservation, amount)
            return settled
        if reservation.id in self._unsettled:
            return False
        try:
            return await self._settle(reservation, amount)
        except StoreUnavailable:
            self._keep(reservation, amount)  # counted once, also if only the answer was lost
            return True
        except trio.Cancelled:
            self._keep(reservation, amount)
            raise

    async def _settle(self, reservation: Reservation, amount: int) -> bool:
        """Count on the server. Raises `StoreUnavailable`."""
        keys = [self._window(item) for item in reservation.windows]
        if reservation.is_local:
            mark = f"{self._prefix}a:{reservation.id}"
            places = places_of(reservation)
            answer = await self.link.call(ADD, [mark, *keys], [amount, *places])
        else:
            lengths = [round(item.length_s * 1000) for item in reservation.windows]
            args = [self._owner, reservation.id, amount, *lengths]
            answer = await self.link.call(SETTLE, [self._owner_keys()[1], *keys], args)
            self._held.pop(reservation.id, self._local.clock())
        return bool(self._whole([answer], 1)[0])

    def _keep(self, reservation: Reservation, amount: int) -> None:
        """Settle later. The oldest are lost when there are too many."""
        while len(self._unsettled) >= _MOST_UNSETTLED:
            del self._unsettled[next(iter(self._unsettled))]
        self._unsettled[reservation.id] = reservation, amount
        self._settling.set()

    async def _settle_later(self) -> None:
        while True:
            await self._settling.wait()
            self._settling = trio.Event()
            while self._unsettled and self.link.is_up:
                reservation, amount = next(iter(self._unsettled.values()))
                try:
                    await self._settle(reservation, amount)
                except StoreUnavailable as error:
                    if error.kind != "reply" or not self.link.is_up:
                        await trio.sleep(_AGAIN_S)
                        continue
                self._unsettled.pop(reservation.id, None)

    async def _renew(self) -> None:
        while True:
            await trio.sleep(_RENEW_S)
            if self.link.is_up:
                try:
                    await self.link.call(*self._probe)
                except StoreUnavailable:
                    continue

    async def count(self, key: str, id: str, amounts: Mapping[str, int], keep_s: float) -> bool:
        keys = [f"{self._prefix}a:{id}", f"{self._prefix}n:{key}"]
        pairs = [part for pair in amounts.items() for part in pair]
        answer = await self.link.call(COUNT, keys, [max(1, round(keep_s * 1000)), *pairs])
        return bool(self._whole([answer], 1)[0])

    async def counts(self, key: str) -> dict[str, int]:
        answer = await self.link.command(b"HGETALL", f"{self._prefix}n:{key}")
        try:
            pairs = (
                answer.items()
                if isinstance(answer, dict)
                else zip(*[iter(answer)] * 2, strict=True)
            )
            return {name.decode("utf-8", "surrogatepass"): int(number) for name, number in pairs}
        except (TypeError, ValueError, AttributeError):
            raise self.link.broken("the store's answer makes no sense") from None

    async def get(self, key: str) -> bytes | None:
        return self._bytes(await self.link.command(b"GET", f"{self._prefix}m:{key}"))

    async def put(self, key: str, value: bytes, keep_s: float, only_new: bool) -> bool:
        command = [b"SET", f"{self._prefix}m:{key}", value, b"PX", max(1, round(keep_s * 1000))]
        return await self.link.command(*command, *([b"NX"] if only_new else [])) is not None

    async def remove(self, key: str) -> bool:
        keys = (f"{self._prefix}m:{key}", f"{self._prefix}l:{key}")
        return bool(self._whole([await self.link.command(b"DEL", *keys)], 1)[0])

    async def append(
        self,
        key: str,
        epoch: int,
        seq: int,
        entries: Sequence[bytes],
        keep_s: float,
        max_entries: int,
    ) -> bool:
        args = [self._channel(key), epoch, seq, max(1, round(keep_s * 1000)), max_entries]
        answer = await self.link.call(APPEND, [f"{self._prefix}l:{key}"], [*args, *entries])
        return bool(self._whole([answer], 1)[0])

    async def read(self, key: str, after: str, limit: int) -> list[LogEntry]:
        log = f"{self._prefix}l:{key}"
        answer = await self.link.command(b"XRANGE", log, f"({after}", b"+", b"COUNT", limit)
        return self._entries(answer)

    async def last_id(self, key: str) -> str | None:
        log = f"{self._prefix}l:{key}"
        answer = await self.link.command(b"XREVRANGE", log, b"+", b"-", b"COUNT", 1)
        found = self._entries(answer)
        return found[0].id if found else None

    async def publish(self, channel: str, message: bytes) -> None:
        await self.link.command(b"PUBLISH", self._channel(channel), message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        name = self._channel(channel)
        sending, receiving, is_first = self._subscribers.add(name)
        try:
            if is_first:
                self.link.send(b"SUBSCRIBE", name)
            # Commands are answered in order: after this answer the subscription is there.
            await self._ping()
            yield receiving
        finally:
            receiving.close()
            if self._subscribers.discard(name, sending):
                self.link.send(b"UNSUBSCRIBE", name)

    async def _ping(self) -> None:
        try:
            await self.link.command(b"PING")
        except StoreUnavailable:
            return

    async def now(self) -> float:
        seconds, microseconds = self._whole(await self.link.command(b"TIME"), 2)
        return seconds + microseconds / 1e6

    def _resume(self) -> None:
        """Give back what was taken while the link went up, subscribe again, wake every subscriber,
        and settle what is left.
        """
        for call in restore_buckets(self._buckets_left()):
            self.link.post(*call)
        self._restored.clear()
        for channel in self._subscribers.channels:
            self.link.send(b"SUBSCRIBE", channel)
            self._subscribers.send(channel, b"")
        self._settling.set()

    def _deliver(self, channel: str, message: bytes) -> None:
        self._subscribers.send(channel, message)

    @property
    def _probe(self) -> Call:
        return PROBE, [f"{self._prefix}p", *self._owner_keys()], [self._owner, _LEASE_MS]

    def _first_calls(self) -> Iterator[Call]:
        """The probe, then what the server may have lost, or not seen since it was away."""
        yield self._probe
        self._restored.clear()
        yield from restore_buckets(self._buckets_left())
        now = self._local.clock()
        windows = [
            (f"{self._prefix}w:{key}", seen)
            for key in list(self._seen)
            if (seen := self._seen.get(key, now)) is not None
        ]
        yield from restore_windows(windows)
        held = [item for key in list(self._held) if (item := self._held.get(key, now)) is not None]
        owner_key = self._owner_keys()[1]
        yield restore_reserved(self._owner, owner_key, f"{self._prefix}w:", held)

    def _buckets_left(self) -> list[tuple[str, float]]:
        """The buckets that were not restored yet as they are now, as `restore_buckets` takes them."""
        # Less the time that a call may take: never more than the server's own state.
        began, restored, left = trio.current_time() + self.link.timeout_s, self._restored, []
        for table, key, full_at in self._local.all_buckets():
            name = f"{self._prefix}b:{table}:{key}"
            if full_at > began and restored.get(name) != full_at:
                restored[name] = full_at
                left.append((name, min((full_at - began) * 1e6, _MOST_US)))
        return left

    def _owner_keys(self) -> tuple[str, str]:
        return f"{self._prefix}o", f"{self._prefix}r:{self._owner}"

    def _window(self, window: Window) -> str:
        return f"{self._prefix}w:{window.key}"

    def _channel(self, channel: str) -> str:
        return f"{self._prefix}c:{channel}"

    def _whole(self, answer: Any, count: int) -> list[int]:
        """Check that an answer is so many whole numbers."""
        is_right = isinstance(answer, list | tuple) and len(answer) == count
        if not is_right:
            raise self.link.broken("the store's answer makes no sense")
        try:
            return [int(item) for item in answer]
        except (TypeError, ValueError):
            raise self.link.broken("the store's answer makes no sense") from None

    def _bytes(self, answer: Any) -> bytes | None:
        if answer is None or isinstance(answer, bytes):
            return answer
        raise self.link.broken("the store's answer makes no sense")

    def _entries(self, answer: Any) -> list[LogEntry]:
        try:
            return [LogEntry(item[0].decode(), item[1][1]) for item in answer]
        except (TypeError, ValueError, AttributeError, IndexError):
            raise self.link.broken("the store's answer makes no sense") from None
