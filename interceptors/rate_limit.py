"""`rate_limit`: so many requests a minute for each client, and 429 for those beyond.

    interceptors:
      - name: limit
        use: rate_limit
        options: {requests_per_minute: 60, burst: 10}

Each client has a token bucket: it holds up to `burst` tokens, a request takes one, and they come
back at the rate. So in any T seconds a client has at most `burst` + rate * T requests. A client is
whoever's key `api_keys` has found, or else an address.

Buckets lie behind `BucketStore`. `MemoryStore` keeps them in this process: each worker counts for
itself, and forgets when it ends.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from heapq import heappop, heappush, heapreplace
from ipaddress import IPv6Address
from typing import Literal, Protocol

import trio

from interceptors import Interceptor, OnError, Request, Response

from .errors import refuse_options

__all__ = ["BucketStore", "MemoryStore", "RateLimit"]


class BucketStore(Protocol):
    """Where the buckets are: the seam for a store that several workers share."""

    async def take(self, key: str, rate_per_s: float, burst: int) -> float:
        """Take a token of the bucket `key`, which holds up to `burst` and gets `rate_per_s` back; a
        new one is full.

        0.0 when it had one; else the seconds until it will, and nothing was taken. An exception
        ends the request with 502.
        """
        ...


class MemoryStore:
    """Buckets in memory, at most `max_clients` of them, by the clock of one `trio.run`. `take`
    never waits.

    A bucket is one number: when it will be full again. A full one equals none, and is forgotten.
    When `max_clients` are not full, the one that will be full first makes room, and from then until
    its time every unknown client counts as having that bucket. So memory has a bound, however many
    addresses come, and none of them gives another client, or itself, a fresh start.
    """

    def __init__(self, max_clients: int = 10_000) -> None:
        if max_clients < 1:
            raise ValueError("max_clients: expected 1 or more")
        self._max_clients = max_clients
        self._full_at: dict[str, float] = {}
        # A heap with each bucket once, at its time or, as times only grow, at an earlier one, which
        # is put right on the way out.
        self._queue: list[tuple[float, str]] = []
        self._unknown_full_at = -math.inf

    def __len__(self) -> int:
        return len(self._full_at)

    async def take(self, key: str, rate_per_s: float, burst: int) -> float:
        """As `BucketStore.take`; not a checkpoint."""
        now = trio.current_time()
        self._forget_full(now)
        full_at = max(now, self._full_at.get(key, self._unknown_full_at))
        # A token is there when the bucket lacks no more than burst - 1. Rounded, so that who waits
        # as told is not a float's last digit too early; that shifts a request by less than a
        # microsecond, and what it took still counts.
        wait_s = round(full_at - now - (burst - 1) / rate_per_s, 6)
        if wait_s > 0:
            return wait_s
        full_at += 1 / rate_per_s
        if key not in self._full_at:
            if len(self._full_at) >= self._max_clients:
                self._evict_fullest()
            heappush(self._queue, (full_at, key))
        self._full_at[key] = full_at
        return 0.0

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


class RateLimit(Interceptor):
    """Options: `requests_per_minute`; `burst`, requests at once, ten seconds' worth unless given;
    `by`, who counts as one client: its `client_key`, its `address`, or `auto`, the key where there
    is one; `max_clients`, buckets kept in memory.

    Raises `ValueError` for options out of range. A subclass with another store sets `store` in its
    `lifespan`.
    """

    on_error: OnError = "abort"  # a request that could not be counted goes nowhere

    sets_state = ()

    store: BucketStore
    """The buckets; there from when `lifespan` is entered."""

    def __init__(
        self,
        requests_per_minute: float,
        burst: int | None = None,
        by: Literal["auto", "client_key", "address"] = "auto",
        max_clients: int = 10_000,
    ) -> None:
        mistakes = []
        if not 0.001 <= requests_per_minute <= 1_000_000:  # nor is NaN
            mistakes.append("requests_per_minute: expected a number from 0.001 to 1000000")
        if burst is not None and not 1 <= burst <= 1_000_000:
            mistakes.append("burst: expected a whole number from 1 to 1000000")
        if not 1 <= max_clients <= 1_000_000:
            mistakes.append("max_clients: expected a whole number from 1 to 1000000")
        refuse_options(mistakes)
        self.needs_state = ("client_key",) if by == "client_key" else ()
        self.uses_state = ("client_key",) if by == "auto" else ()
        self._rate_per_s = requests_per_minute / 60
        self._burst = math.ceil(requests_per_minute / 6) if burst is None else burst
        self._by = by
        self._max_clients = max_clients

    def lifespan(self) -> AbstractAsyncContextManager[object]:
        """The buckets live as long as the process serves, for so long does Trio's clock."""
        return self._keep_store()

    @asynccontextmanager
    async def _keep_store(self) -> AsyncIterator[None]:
        self.store = MemoryStore(self._max_clients)
        yield

    async def on_request(self, request: Request) -> Response | None:
        """429 when the client's bucket is empty. A CORS preflight takes no token."""
        if request.is_preflight:
            return None
        wait_s = await self.store.take(self._key_of(request), self._rate_per_s, self._burst)
        if wait_s <= 0:
            return None
        # RFC 6585, section 4; whole seconds: RFC 9110, section 10.2.3. Rounded up, for earlier
        # would be too early.
        retry_after_s = max(1, math.ceil(wait_s))
        return request.refuse(
            429,
            "rate_limited",
            f"too many requests; try again in {retry_after_s} s",
            headers={"retry-after": str(retry_after_s)},
        )

    def _key_of(self, request: Request) -> str:
        """Whose bucket. The prefix keeps a client who is called like an address apart from that
        address.
        """
        client_key = request.state.get("client_key") if self._by != "address" else None
        if client_key is not None:
            return f"client_key:{client_key}"
        if self._by == "client_key":
            raise RuntimeError(
                '"by: client_key" needs api_keys, or what else sets state["client_key"], before this interceptor'
            )
        return f"address:{_network_of(request.client)}"


def _network_of(address: str | None) -> str:
    """The address, or of IPv6 its /64: the other half a host chooses itself, anew for each request
    if it likes (RFC 8981).
    """
    if address is None or ":" not in address:
        return str(address)  # IPv4; None where clients come over a Unix socket: all of them are one
    try:
        ip = IPv6Address(address)
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)  # a client by IPv4 on a socket that speaks both
    return f"{IPv6Address(int(ip) >> 64 << 64)}/64"
