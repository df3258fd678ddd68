"""`rate_limit`: limit each client's requests per minute, and answer 429 beyond that.

    interceptors:
      - name: limit
        use: rate_limit
        options: {requests_per_minute: 60, burst: 10}

Each client has a token bucket of `burst` tokens. A request takes one, and they return at the rate:
in any T seconds a client can make at most `burst` + rate * T requests. A client is the key that
`api_keys` found, otherwise the address.

`BucketStore` is the interface of the store. `MemoryStore` keeps buckets in this process: each
worker counts separately, and its counts end with it.
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
    """Interface of a store for buckets, for example one that several workers share."""

    async def take(self, key: str, rate_per_s: float, burst: int) -> float:
        """Take a token from the bucket `key` of `burst` tokens, refilled at `rate_per_s`.

        A new bucket is full. Returns 0.0 if a token was taken, otherwise the seconds until one is
        there. An exception ends the request with 502.
        """
        ...


class MemoryStore:
    """At most `max_clients` buckets in memory, by the clock of one `trio.run`. `take` never waits.

    A bucket is the time when it will be full again; a full bucket is forgotten. If `max_clients`
    buckets are not full, the one that will be full first is evicted, and until its time every
    unknown client starts with that bucket. This bounds memory for any number of addresses, and no
    client gets a full bucket from an eviction.
    """

    def __init__(self, max_clients: int = 10_000) -> None:
        if max_clients < 1:
            raise ValueError("max_clients: expected 1 or more")
        self._max_clients = max_clients
        self._full_at: dict[str, float] = {}
        # A heap with each bucket once, at its time or at an earlier one: times only grow, and a
        # wrong one is corrected when it reaches the top.
        self._queue: list[tuple[float, str]] = []
        self._unknown_full_at = -math.inf

    def __len__(self) -> int:
        return len(self._full_at)

    async def take(self, key: str, rate_per_s: float, burst: int) -> float:
        """As `BucketStore.take`; not a checkpoint."""
        now = trio.current_time()
        self._forget_full(now)
        full_at = max(now, self._full_at.get(key, self._unknown_full_at))
        # The bucket has a token if at most burst - 1 are missing. Rounded to 1 us, so that a client
        # that waits exactly `Retry-After` is not rejected by a rounding error.
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
    """Options: `requests_per_minute`; `burst`, requests at once, by default those of ten seconds;
    `by`, what identifies a client: `client_key`, `address`, or `auto` (the key if there is one);
    `max_clients`, buckets kept in memory.

    Raises `ValueError` for options out of range. A subclass with another store sets `store` in its
    `lifespan`.
    """

    on_error: OnError = "abort"  # fail closed

    sets_state = ()

    store: BucketStore
    """The buckets, set when `lifespan` is entered."""

    def __init__(
        self,
        requests_per_minute: float,
        burst: int | None = None,
        by: Literal["auto", "client_key", "address"] = "auto",
        max_clients: int = 10_000,
    ) -> None:
        mistakes = []
        if not 0.001 <= requests_per_minute <= 1_000_000:  # also refuses NaN
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
        """Keep the buckets as long as Trio's clock runs."""
        return self._keep_store()

    @asynccontextmanager
    async def _keep_store(self) -> AsyncIterator[None]:
        self.store = MemoryStore(self._max_clients)
        yield

    async def on_request(self, request: Request) -> Response | None:
        """Answer 429 if the client's bucket is empty. A CORS preflight takes no token."""
        if request.is_preflight:
            return None
        wait_s = await self.store.take(self._key_of(request), self._rate_per_s, self._burst)
        if wait_s <= 0:
            return None
        # RFC 6585, section 4; whole seconds, rounded up: RFC 9110, section 10.2.3.
        retry_after_s = max(1, math.ceil(wait_s))
        return request.refuse(
            429,
            "rate_limited",
            f"too many requests; try again in {retry_after_s} s",
            headers={"retry-after": str(retry_after_s)},
        )

    def _key_of(self, request: Request) -> str:
        """The bucket's key. The prefix separates a client name from an equal address."""
        client_key = request.state.get("client_key") if self._by != "address" else None
        if client_key is not None:
            return f"client_key:{client_key}"
        if self._by == "client_key":
            raise RuntimeError(
                '"by: client_key" needs an interceptor before this one that sets '
                'state["client_key"], such as api_keys'
            )
        return f"address:{_network_of(request.client)}"


def _network_of(address: str | None) -> str:
    """The address, or the /64 of IPv6: a host chooses the rest itself (RFC 8981)."""
    if address is None or ":" not in address:
        return str(address)  # IPv4; None for all clients of a Unix socket
    try:
        ip = IPv6Address(address)
    except ValueError:
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)  # an IPv4 client on a dual-stack socket
    return f"{IPv6Address(int(ip) >> 64 << 64)}/64"
