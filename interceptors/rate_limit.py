"""`rate_limit`: limit each client's requests per minute, and answer 429 beyond that.

    interceptors:
      - name: limit
        use: rate_limit
        options: {requests_per_minute: 60, burst: 10}

Each client has a token bucket of `burst` tokens. A request takes one, and they return at the rate:
in any T seconds a client can make at most `burst` + rate * T requests, over all workers and machines
that share the store. A client is the key that `api_keys` found, otherwise the address.
"""

from __future__ import annotations

import math
from ipaddress import IPv6Address
from typing import Literal

from interceptors import (
    Bucket,
    Interceptor,
    OnError,
    OnStoreError,
    Request,
    Response,
    ResponseHead,
    StoreUnavailable,
)

from .errors import refuse_options

__all__ = ["RateLimit", "add_fields", "limit_fields"]


class RateLimit(Interceptor):
    """Options: `requests_per_minute`; `burst`, requests at once, by default those of ten seconds;
    `by`, what identifies a client: `client_key`, `address`, or `auto` (the key if there is one);
    `max_clients`, buckets kept in memory; `on_store_error`, what to do while the store is away, by
    default `store.on_error` of the configuration.

    Raises `ValueError` for options out of range.
    """

    on_error: OnError = "abort"  # fail closed

    sets_state = ()

    def __init__(
        self,
        requests_per_minute: float,
        burst: int | None = None,
        by: Literal["auto", "client_key", "address"] = "auto",
        max_clients: int = 10_000,
        on_store_error: OnStoreError | None = None,
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
        self._on_store_error: OnStoreError | None = on_store_error
        window_s = max(1, math.ceil(self._burst / self._rate_per_s))
        self._policy = f"q={self._burst};w={window_s}"

    async def on_request(self, request: Request) -> Response | None:
        """Answer 429 if the client's bucket is empty. A CORS preflight takes no token.

        Answers 503 if the store is away and `closed` is set.
        """
        if request.is_preflight:
            return None
        try:
            bucket = await self.store.take(
                self._key_of(request),
                rate_per_s=self._rate_per_s,
                burst=self._burst,
                max_keys=self._max_clients,
                on_error=self._on_store_error,
            )
        except StoreUnavailable:
            return request.refuse(
                503,
                "store_unavailable",
                "the request limit cannot be checked now; try again in 1 s",
                headers={"retry-after": "1"},
            )
        if bucket.allowed:
            request.state[self._state_key] = bucket
            return None
        # RFC 6585, section 4; whole seconds, rounded up: RFC 9110, section 10.2.3.
        retry_after_s = max(1, math.ceil(bucket.wait_s))
        return request.refuse(
            429,
            "rate_limited",
            f"too many requests; try again in {retry_after_s} s",
            headers={"retry-after": str(retry_after_s), **self._fields(bucket, retry_after_s)},
        )

    async def on_response(self, head: ResponseHead) -> None:
        """Add `RateLimit` and `RateLimit-Policy` after those of the upstream and of other limits."""
        bucket = head.request.state.pop(self._state_key, None)
        if bucket is not None:
            add_fields(head, self._fields(bucket, math.ceil(bucket.full_s)))

    @property
    def _state_key(self) -> str:
        return f"rate_limit/{self.store.name}"

    def _fields(self, bucket: Bucket, reset_s: int) -> dict[str, str]:
        """`q` is the burst and `w` the time in which it comes back; `t` agrees with Retry-After."""
        return limit_fields(self.store.name, self._policy, bucket.remaining, reset_s)

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


def limit_fields(name: str, policy: str, remaining: int, reset_s: int) -> dict[str, str]:
    """The fields of draft-ietf-httpapi-ratelimit-headers-11: a list of named policies."""
    name = "".join(item for item in name if " " <= item <= "~" and item not in '"\\')
    return {
        "ratelimit-policy": f'"{name}";{policy}',
        "ratelimit": f'"{name}";r={remaining};t={reset_s}',
    }


def add_fields(head: ResponseHead, fields: dict[str, str]) -> None:
    """Add them after those of the upstream and of other limits."""
    for name, value in fields.items():
        before = head.headers.get(name)
        head.headers[name] = f"{before}, {value}" if before else value


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
