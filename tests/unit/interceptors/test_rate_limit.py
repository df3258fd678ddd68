"""RateLimit: no client exceeds burst and rate, a client that waits for Retry-After is let in, and
memory is bounded.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock

from interceptors import HookError, LoadError, Request, Response
from interceptors.loader import load_interceptor
from interceptors.rate_limit import BucketStore, MemoryStore, RateLimit
from interceptors.testing import run_request

USE = "interceptors.rate_limit:RateLimit"


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[RateLimit]:
    """A limit as it is while the process serves."""
    limit = load_interceptor(USE, options)
    assert isinstance(limit, RateLimit)
    async with limit.lifespan():
        yield limit


async def ask(
    limit: RateLimit, client: str | None = "192.0.2.1", client_key: str | None = None
) -> Response | None:
    request = Request(client=client)
    if client_key is not None:
        request.state["client_key"] = client_key
    return await limit.on_request(request)


async def allowed(
    limit: RateLimit, times: int, client: str | None = "192.0.2.1", client_key: str | None = None
) -> int:
    """How many of so many requests at once come in."""
    return sum([await ask(limit, client, client_key) is None for _ in range(times)])


def test_a_client_beyond_its_limit_gets_429() -> None:
    """The status, Retry-After in whole seconds and a JSON error."""
    limit = load_interceptor(USE, {"requests_per_minute": 7, "burst": 1})
    request = Request(headers=[(b"accept", b"*/*")])
    answer = run_request([limit, limit], request)  # which counts it twice
    assert answer is not None
    assert answer.status == 429
    assert answer.headers.multi_items() == [
        ("retry-after", "9"),
        ("content-type", "application/json"),
    ]
    assert (
        answer.body
        == b'{"error":{"type":"rate_limited","message":"too many requests; try again in 9 s"}}'
    )
    assert request.headers.multi_items() == [("accept", "*/*")]
    assert run_request([limit], Request()) is None


async def test_the_burst_comes_at_once_and_then_the_rate(autojump_clock: MockClock) -> None:
    """A full bucket of `burst`, then one request for each token that has come back, and never more
    than `burst` saved up.
    """
    async with serving(requests_per_minute=60, burst=3) as limit:
        assert await allowed(limit, 10) == 3
        await trio.sleep(2)
        assert await allowed(limit, 10) == 2
        await trio.sleep(0.9)
        assert await allowed(limit, 10) == 0
        await trio.sleep(0.2)
        assert await allowed(limit, 10) == 1
        await trio.sleep(86400)
        assert await allowed(limit, 10) == 3


async def test_what_is_refused_costs_nothing(autojump_clock: MockClock) -> None:
    """A client that continues asking while it is limited waits no longer for that."""
    async with serving(requests_per_minute=60, burst=1) as limit:
        assert await allowed(limit, 1000) == 1
        await trio.sleep(1)
        assert await allowed(limit, 1000) == 1


@pytest.mark.parametrize(
    "requests_per_minute", [0.001, 0.7, 1, 6, 7, 13, 59, 60, 61, 600, 9999, 1_000_000]
)
async def test_a_client_that_waits_for_retry_after_is_let_in(
    requests_per_minute: float, autojump_clock: MockClock
) -> None:
    """After Retry-After seconds, at any rate and late in a process's life, the next request is
    allowed; each time anew.
    """
    await trio.sleep(1_000_000.1)
    async with serving(requests_per_minute=requests_per_minute, burst=2) as limit:
        assert await allowed(limit, 2) == 2
        for _ in range(50):
            answer = await ask(limit)
            assert answer is not None
            wait_s = int(answer.headers["retry-after"])
            assert 1 <= wait_s <= max(1, math.ceil(60 / requests_per_minute))
            await trio.sleep(wait_s)
            assert await ask(limit) is None
            while (
                await ask(limit) is None
            ):  # what the second that was rounded up has brought besides
                pass


@pytest.mark.parametrize(
    ("requests_per_minute", "burst"),
    [(0.5, 1), (1, 1), (6, 1), (7, 2), (10, 2), (60, 10), (90.5, 16), (600, 100)],
)
async def test_the_burst_is_ten_seconds_worth_unless_given(
    requests_per_minute: float, burst: int
) -> None:
    """A sixth of a minute's requests, rounded up, so at least one."""
    async with serving(requests_per_minute=requests_per_minute) as limit:
        assert await allowed(limit, burst + 1) == burst


async def test_each_client_has_its_own_bucket(autojump_clock: MockClock) -> None:
    """One client's requests take nothing from another's."""
    async with serving(requests_per_minute=60, burst=2) as limit:
        assert await allowed(limit, 5, "192.0.2.1") == 2
        assert await allowed(limit, 5, "192.0.2.2") == 2
        assert await allowed(limit, 5, "192.0.2.1", client_key="ann") == 2
        assert await allowed(limit, 5, "192.0.2.1", client_key="bob") == 2


async def test_auto_prefers_the_key_to_the_address(autojump_clock: MockClock) -> None:
    """One key from many addresses is one client."""
    async with serving(requests_per_minute=60, burst=2, by="auto") as limit:
        assert await allowed(limit, 2, "192.0.2.1", client_key="ann") == 2
        assert await allowed(limit, 2, "192.0.2.2", client_key="ann") == 0
        assert await allowed(limit, 2, "192.0.2.3", client_key="192.0.2.9") == 2
        assert await allowed(limit, 2, "192.0.2.9") == 2


async def test_by_address_many_keys_of_one_address_are_one_client(
    autojump_clock: MockClock,
) -> None:
    """`by: address` looks at no key."""
    async with serving(requests_per_minute=60, burst=2, by="address") as limit:
        assert await allowed(limit, 2, client_key="ann") == 2
        assert await allowed(limit, 2, client_key="bob") == 0


@pytest.mark.parametrize(("one", "other", "shared"), [
    ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
    ("2001:DB8:1:2::1", "2001:db8:1:2::2", True), ("::ffff:192.0.2.1", "192.0.2.1", True),
    ("fe80::1%eth0", "fe80::2%eth1", True), (None, None, True),
    ("2001:db8:1:2::1", "2001:db8:1:3::1", False), ("192.0.2.1", "192.0.2.2", False),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False), ("not:an:address", "not:an:address:either", False),
])  # fmt: skip
async def test_which_addresses_are_one_client(
    one: str | None, other: str | None, shared: bool, autojump_clock: MockClock
) -> None:
    """IPv6 counts by its /64, IPv4 however it is written; without an address all are one."""
    async with serving(requests_per_minute=60, burst=2) as limit:
        assert await allowed(limit, 2, one) == 2
        assert await allowed(limit, 2, other) == (0 if shared else 2)


def test_by_client_key_without_a_key_fails_closed_with_the_reason() -> None:
    """Nothing goes upstream uncounted if no earlier interceptor has named the client."""
    limit = load_interceptor(USE, {"requests_per_minute": 60, "by": "client_key"})
    with (
        capture_logs(),
        pytest.raises(
            HookError, match=r'needs an interceptor before this one that sets state\["client_key"\]'
        ),
    ):
        run_request([limit], Request(client="192.0.2.1"))


def test_a_store_of_ones_own() -> None:
    """A subclass opens it in its `lifespan`."""
    asked: list[tuple[str, float, int]] = []

    class Shared:
        async def take(self, key: str, rate_per_s: float, burst: int) -> float:
            await trio.lowlevel.checkpoint()
            asked.append((key, rate_per_s, burst))
            return 41.2

    class SharedLimit(RateLimit):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            self.store: BucketStore = Shared()
            yield

    answer = run_request([SharedLimit(30, burst=4)], Request(client="192.0.2.1"))
    assert answer is not None
    assert answer.headers["retry-after"] == "42"
    assert asked == [("address:192.0.2.1", 0.5, 4)]


def test_a_store_that_fails_refuses_every_client() -> None:
    """An exception of the store ends the request: fail closed."""

    class Broken(MemoryStore):
        async def take(self, key: str, rate_per_s: float, burst: int) -> float:
            raise OSError("the store is down")

    class BrokenLimit(RateLimit):
        @asynccontextmanager
        async def lifespan(self) -> AsyncIterator[None]:
            self.store = Broken()
            yield

    with capture_logs(), pytest.raises(HookError, match="the store is down"):
        run_request([BrokenLimit(30)], Request())


ARRIVALS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.floats(0, 3), st.sampled_from([0.25, 1.0, 60.0])),
        st.integers(0, 5),
    ),
    max_size=120,
)


@given(
    arrivals=ARRIVALS,
    rate_per_s=st.floats(0.01, 20),
    burst=st.integers(1, 6),
    max_clients=st.integers(1, 6),
)
def test_no_window_holds_more_than_the_burst_and_the_rate(
    arrivals: list[tuple[float, int]], rate_per_s: float, burst: int, max_clients: int
) -> None:
    """For any arrivals: in any T seconds each client has at most burst + rate * T requests, also
    with more clients than buckets, and the number of buckets is bounded.
    """
    times: defaultdict[int, list[float]] = defaultdict(list)

    async def main() -> None:
        store = MemoryStore(max_clients)
        for gap_s, client in arrivals:
            clock.jump(gap_s)
            if await store.take(str(client), rate_per_s, burst) == 0.0:
                times[client].append(trio.current_time())
            assert len(store) <= max_clients

    clock = MockClock()
    trio.run(main, clock=clock)
    for allowed_at in times.values():
        for first, begin in enumerate(allowed_at):
            for last, end in enumerate(allowed_at[first:], first):
                assert last - first + 1 <= burst + rate_per_s * (end - begin + 2e-6)


@given(arrivals=ARRIVALS, rate_per_s=st.floats(0.01, 20), burst=st.integers(1, 6))
def test_the_wait_is_as_long_as_it_must_be(
    arrivals: list[tuple[float, int]], rate_per_s: float, burst: int
) -> None:
    """With buckets for all."""

    async def main() -> None:
        store = MemoryStore()
        tokens: defaultdict[int, tuple[float, float]] = defaultdict(
            lambda: (float(burst), trio.current_time())
        )
        for gap_s, client in arrivals:
            clock.jump(gap_s)
            now = trio.current_time()
            had, at = tokens[client]
            has = min(burst, had + rate_per_s * (now - at))
            wait_s = await store.take(str(client), rate_per_s, burst)
            if wait_s:
                assert has < 1
                assert wait_s == pytest.approx((1 - has) / rate_per_s, rel=1e-6, abs=2e-6)
                tokens[client] = has, now
            else:
                assert has > 1 - 2e-6 * rate_per_s - 1e-9
                tokens[client] = has - 1, now

    clock = MockClock()
    trio.run(main, clock=clock)


async def test_full_buckets_are_forgotten(autojump_clock: MockClock) -> None:
    """A client that has been away long enough for a full bucket takes no memory, without another
    request of it.
    """
    store = MemoryStore()
    for number in range(100):
        for _ in range(1 + number % 3):
            await store.take(f"c{number}", 1.0, 5)
    assert len(store) == 100
    await trio.sleep(1.5)
    await store.take("other", 1.0, 5)
    assert len(store) == 1 + 66
    await trio.sleep(5)
    await store.take("other", 1.0, 5)
    assert len(store) == 1


async def test_the_fullest_bucket_makes_room(autojump_clock: MockClock) -> None:
    """At the cap a newcomer comes in, in place of who is nearest to a full bucket."""
    store = MemoryStore(max_clients=2)
    for _ in range(5):
        assert await store.take("drained", 1.0, 5) == 0.0
    assert await store.take("light", 1.0, 5) == 0.0
    assert await store.take("newcomer", 1.0, 5) == 0.0
    assert len(store) == 2
    assert await store.take("drained", 1.0, 5) == 1.0
    # It has lost its place, and yet only what it had left is left: four of five.
    assert [await store.take("light", 1.0, 5) for _ in range(5)] == [0.0] * 4 + [1.0]
    # Who is new now counts as it did, and not as the drained one, who came first and so lies first.
    assert [await store.take("another", 1.0, 5) for _ in range(5)] == [0.0] * 4 + [1.0]


async def test_many_addresses_do_not_reset_the_bucket_of_a_client(
    autojump_clock: MockClock,
) -> None:
    """A hundred thousand addresses neither grow the store nor bring back what a drained client, of
    theirs or not, has spent.
    """
    store = MemoryStore(max_clients=100)
    for _ in range(5):
        await store.take("drained", 1.0, 5)
    came_in = 0
    for number in range(100_000):
        came_in += await store.take(f"address {number}", 1.0, 5) == 0.0
    assert len(store) == 100
    assert came_in >= 100
    assert await store.take("drained", 1.0, 5) == 1.0
    await trio.sleep(5)
    assert await store.take("a late newcomer", 1.0, 5) == 0.0
    assert len(store) == 1


@pytest.mark.parametrize(("options", "message"), [
    *(({"requests_per_minute": number}, "requests_per_minute: expected a number from 0.001 to 1000000")
      for number in (0, -1, float("nan"), float("inf"))),
    *(({"requests_per_minute": 1, "burst": burst}, "burst: expected a whole number from 1 to 1000000")
      for burst in (0, 10**7)),
    ({"requests_per_minute": 1, "max_clients": 0}, "max_clients: expected a whole number from 1 to"),
])  # fmt: skip
def test_options_out_of_range_are_refused_with_their_path(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError) as caught:
        load_interceptor(USE, options)
    assert re.match(message, f"{caught.value.option}: {caught.value}")


def test_a_store_without_room_is_refused() -> None:
    """A store without a bucket could let no client in."""
    with pytest.raises(ValueError, match="max_clients: expected 1 or more"):
        MemoryStore(0)
