"""RateLimit: no client exceeds burst and rate, a client that waits for Retry-After is let in, and
memory is bounded.
"""

from __future__ import annotations

import math
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

from interceptors import HookError, Request, Response
from interceptors.buckets import Buckets
from interceptors.rate_limit import RateLimit
from interceptors.testing import run_request


@asynccontextmanager
async def serving(requests_per_minute: float = 60, **options: Any) -> AsyncIterator[RateLimit]:
    """A limit as it is while the process serves."""
    limit = RateLimit(requests_per_minute, **options)
    async with limit.lifespan():
        yield limit


async def ask(limit: RateLimit, client: str | None, key: str | None = None) -> Response | None:
    request = Request(client=client)
    if key is not None:
        request.state["client_key"] = key
    return await limit.on_request(request)


async def allowed(
    limit: RateLimit, times: int, client: str | None = "192.0.2.1", key: str | None = None
) -> int:
    """How many of so many requests at once come in."""
    return sum([await ask(limit, client, key) is None for _ in range(times)])


def test_a_client_beyond_its_limit_gets_429() -> None:
    """The status, Retry-After in whole seconds and a JSON error."""
    limit = RateLimit(7, burst=1)
    request = Request(headers=[(b"accept", b"*/*")])
    answer = run_request([limit, limit], request)  # which counts it twice
    assert answer is not None
    assert answer.status == 429
    fields = [
        ("retry-after", "9"),
        ("ratelimit-policy", '"RateLimit";q=1;w=9'),
        ("ratelimit", '"RateLimit";r=0;t=9'),
        ("content-type", "application/json"),
    ]
    assert answer.headers.multi_items() == fields
    error = b'{"error":{"type":"rate_limited","message":"too many requests; try again in 9 s"}}'
    assert answer.body == error
    assert request.headers.multi_items() == [("accept", "*/*")]
    assert run_request([limit], Request()) is None


async def test_the_burst_comes_at_once_and_then_the_rate(autojump_clock: MockClock) -> None:
    """A full bucket of `burst`, then one request for each token that has come back, and never more
    than `burst` saved up. What is refused costs nothing.
    """
    async with serving(burst=3) as limit:
        for wait_s, count in ((0, 3), (2, 2), (0.9, 0), (0.2, 1), (86400, 3)):
            await trio.sleep(wait_s)
            assert await allowed(limit, 100) == count


@pytest.mark.parametrize("requests_per_minute", [0.001, 0.7, 7, 13, 59, 61, 9999, 1_000_000])
async def test_a_client_that_waits_for_retry_after_is_let_in(
    requests_per_minute: float, autojump_clock: MockClock
) -> None:
    """At any rate and late in a process's life; each time anew."""
    await trio.sleep(1_000_000.1)
    async with serving(requests_per_minute, burst=2) as limit:
        assert await allowed(limit, 2) == 2
        for _ in range(20):
            answer = await ask(limit, "192.0.2.1")
            assert answer is not None
            wait_s = int(answer.headers["retry-after"])
            assert 1 <= wait_s <= max(1, math.ceil(60 / requests_per_minute))
            await trio.sleep(wait_s)
            assert await ask(limit, "192.0.2.1") is None
            while await ask(limit, "192.0.2.1") is None:
                pass  # what the second that was rounded up has brought besides


async def test_the_burst_is_ten_seconds_worth_unless_given() -> None:
    """A sixth of a minute's requests, rounded up, so at least one."""
    for rate, burst in ((0.5, 1), (6, 1), (7, 2), (60, 10), (90.5, 16), (600, 100)):
        async with serving(rate) as limit:
            assert await allowed(limit, burst + 1) == burst


Asks = list[tuple[str | None, str | None, int]]
CLIENTS: dict[str, tuple[str, Asks]] = {  # for each two requests: address, key, how many come in
    "addresses": ("auto", [("192.0.2.1", None, 2), ("192.0.2.2", None, 2), ("192.0.2.1", None, 0)]),
    "keys": ("client_key", [("192.0.2.1", "ann", 2), ("192.0.2.1", "bob", 2), ("192.0.2.2", "ann", 0)]),
    "a key before an address": ("auto", [("192.0.2.1", "ann", 2), ("192.0.2.2", "ann", 0), ("192.0.2.1", None, 2)]),
    "a key like an address": ("auto", [("192.0.2.3", "192.0.2.9", 2), ("192.0.2.9", None, 2)]),
    "by address": ("address", [("192.0.2.1", "ann", 2), ("192.0.2.1", "bob", 0)]),
    **{f"{one} and {other}": ("auto", [(one, None, 2), (other, None, left)]) for one, other, left in (
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", 0), ("2001:DB8:1:2::1", "2001:db8:1:2::2", 0),
        ("::ffff:192.0.2.1", "192.0.2.1", 0), ("fe80::1%eth0", "fe80::2%eth1", 0), (None, None, 0),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", 2), ("::ffff:192.0.2.1", "::ffff:192.0.2.2", 2),
        ("not:an:address", "not:an:address:either", 2),
    )},
}  # fmt: skip


@pytest.mark.parametrize(("by", "asks"), CLIENTS.values(), ids=CLIENTS)
async def test_which_requests_are_of_one_client(
    by: Any, asks: Asks, autojump_clock: MockClock
) -> None:
    """IPv6 counts by its /64, IPv4 however it is written; without an address all are one."""
    async with serving(burst=2, by=by) as limit:
        for client, key, count in asks:
            assert await allowed(limit, 2, client, key) == count


def test_by_client_key_without_a_key_fails_closed_with_the_reason() -> None:
    """Nothing goes upstream uncounted if no earlier interceptor has named the client."""
    message = r'needs an interceptor before this one that sets state\["client_key"\]'
    with capture_logs(), pytest.raises(HookError, match=message):
        run_request([RateLimit(60, by="client_key")], Request(client="192.0.2.1"))


GAPS = st.one_of(st.just(0.0), st.floats(0, 3), st.sampled_from([0.25, 1.0, 60.0]))


@given(
    arrivals=st.lists(st.tuples(GAPS, st.integers(0, 5)), max_size=120),
    rate_per_s=st.floats(0.01, 20),
    burst=st.integers(1, 6),
    max_clients=st.integers(1, 6),
)
def test_no_window_holds_more_than_the_burst_and_the_rate(
    arrivals: list[tuple[float, int]], rate_per_s: float, burst: int, max_clients: int
) -> None:
    """For any arrivals: in any T seconds each client has at most burst + rate * T requests, also
    with more clients than buckets. With buckets for all, nobody waits longer than necessary.
    """
    times: defaultdict[int, list[float]] = defaultdict(list)
    tokens: dict[int, tuple[float, float]] = {}  # with buckets for all: how many, and when

    async def main() -> None:
        store = Buckets()
        for gap_s, client in arrivals:
            clock.jump(gap_s)
            now = trio.current_time()
            had, at = tokens.get(client, (float(burst), now))
            has = min(burst, had + rate_per_s * (now - at))
            wait_s = store.take(str(client), rate_per_s, burst, 1, max_clients, now).wait_s
            assert len(store) <= max_clients
            if not wait_s:
                times[client].append(now)
                tokens[client] = has - 1, now
            if max_clients == 6 and wait_s:
                assert has < 1
                assert wait_s == pytest.approx((1 - has) / rate_per_s, rel=1e-6, abs=2e-6)
            elif max_clients == 6:
                assert has > 1 - 2e-6 * rate_per_s - 1e-9

    clock = MockClock()
    trio.run(main, clock=clock)
    for allowed_at in times.values():
        for first, begin in enumerate(allowed_at):
            for last, end in enumerate(allowed_at[first:], first):
                assert last - first + 1 <= burst + rate_per_s * (end - begin + 2e-6)


def test_full_buckets_are_forgotten() -> None:
    """A client that has been away long enough for a full bucket takes no memory, without another
    request of it.
    """
    store = Buckets()
    for number in range(100):
        for _ in range(1 + number % 3):
            store.take(f"c{number}", 1.0, 5, 1, 1000, 0.0)
    for now, left in ((0, 100), (1.5, 66), (6.5, 0)):
        store.take("other", 1.0, 5, 1, 1000, now)
        assert len(store) == 1 + left


def test_the_fullest_bucket_makes_room() -> None:
    """At the cap a newcomer comes in, in place of who is nearest to a full bucket."""
    store = Buckets()

    def waits(client: str, times: int = 1) -> list[float]:
        return [store.take(client, 1.0, 5, 1, 2, 0.0).wait_s for _ in range(times)]

    assert waits("drained", 5) + waits("light") + waits("newcomer") == [0.0] * 7
    assert len(store) == 2
    assert waits("drained") == [1.0]
    # It has lost its place, and yet only what it had left is left: four of five.
    assert waits("light", 5) == [0.0] * 4 + [1.0]
    # Who is new now counts as it did, and not as the drained one, who came first and so lies first.
    assert waits("another", 5) == [0.0] * 4 + [1.0]


@given(now=st.floats(0, 1e7))
def test_an_empty_bucket_is_full_after_its_window(now: float) -> None:
    """At any time of the clock, also where `now + 60000 - now` is above 60000."""
    bucket = Buckets().take("a", 1 / 60_000, burst=1, cost=1, max_keys=1, now=now)
    assert bucket.allowed
    assert math.ceil(bucket.full_s) == 60_000
