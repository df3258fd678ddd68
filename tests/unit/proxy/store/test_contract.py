"""The store's contract, over memory, a real Redis and a real Valkey: one set of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.store_server import StoreServer, engine_on

from interceptors.memory import MemoryEngine
from interceptors.store import Bucket, LogEntry, Store, Window
from interceptors.store import Reservation as Reserved

pytestmark = pytest.mark.parametrize("kind", ["memory", "redis", "valkey"])
HOUR = 3600.0


@pytest.fixture(scope="module")
def servers() -> Any:
    started: dict[str, StoreServer] = {}
    yield started
    for server in started.values():
        server.stop()


@asynccontextmanager
async def workers(
    kind: str, servers: dict[str, StoreServer], count: int = 1
) -> AsyncIterator[list[Store]]:
    """The stores of several workers; those in memory are one worker."""
    if kind == "memory":
        yield [Store(MemoryEngine(), "limit")] * count
        return
    if kind not in servers:
        servers[kind] = StoreServer(kind)
        servers[kind].start()
    await servers[kind].ready()
    await servers[kind].ask("FLUSHALL")
    if count == 1:
        async with engine_on(servers[kind].url, timeout_s=5) as engine:
            yield [Store(engine, "limit")]
    else:
        async with (
            engine_on(servers[kind].url, timeout_s=5) as one,
            engine_on(servers[kind].url, timeout_s=5) as other,
        ):
            yield [Store(one, "limit"), Store(other, "limit")]


async def at_once(stores: list[Store], took: list[Bucket], key: str, rate_per_s: float) -> None:
    """Take 700 tokens at once of a bucket of 500."""

    async def take(store: Store) -> None:
        took.append(await store.take(key, rate_per_s=rate_per_s, burst=500))

    async with trio.open_nursery() as nursery:
        for number in range(700):
            nursery.start_soon(take, stores[number % 2])


async def test_buckets(kind: str, servers: dict[str, StoreServer]) -> None:
    """Exactly the burst is allowed, at any rate and over workers; the rest is told when."""
    async with workers(kind, servers, 2) as stores:
        for rate_per_s in (0.001, 7 / 60, 0.9999, 1.3):
            key, took = f"ann/{rate_per_s}", list[Bucket]()

            await at_once(stores, took, key, rate_per_s)
            came = [bucket for bucket in took if bucket.allowed]
            assert 500 <= len(came) <= 500 + rate_per_s * 3
            assert max(bucket.remaining for bucket in took) == 499
            last = await stores[0].take(key, rate_per_s=rate_per_s, burst=500)
            assert last.allowed or 0 < last.wait_s <= 1 / rate_per_s
            assert last.full_s == pytest.approx(500 / rate_per_s, rel=0.02)
        several = [await stores[0].take("bob", rate_per_s=0.01, burst=10, cost=4) for _ in range(3)]
        assert [(item.allowed, item.remaining) for item in several] == [
            (True, 6),
            (True, 2),
            (False, 2),
        ]
        assert several[2].wait_s == pytest.approx(200, abs=2)
        with pytest.raises(ValueError, match="cost"):
            await stores[0].take("bob", rate_per_s=1, burst=10, cost=11)


async def test_a_bucket_refills(kind: str, servers: dict[str, StoreServer]) -> None:
    async with workers(kind, servers) as (store,):
        assert (await store.take("ann", rate_per_s=20, burst=1)).allowed
        refused = await store.take("ann", rate_per_s=20, burst=1)
        assert not refused.allowed
        await trio.sleep(refused.wait_s + 0.002)
        assert (await store.take("ann", rate_per_s=20, burst=1)).allowed


def left(reserved: Reserved) -> list[tuple[int, int, int]]:
    return [(state.used, state.reserved, state.remaining) for state in reserved.states]


async def test_windows(kind: str, servers: dict[str, StoreServer]) -> None:
    """All windows count, or none; what is settled counts once."""
    day, hour = Window("ann/day", 100, 24 * HOUR), Window("ann/hour", 60, HOUR, number=7)
    async with workers(kind, servers, 2) as (one, other):
        first = await one.reserve(50, [day, hour])
        assert first.allowed
        assert left(first) == [(0, 50, 50), (0, 50, 10)]
        refused = await other.reserve(20, [day, hour])
        assert refused.refused == 1
        assert left(refused) == [(0, 50, 50), (0, 50, 10)]
        assert await one.settle(first, 30)
        assert not await one.settle(first, 30)
        assert left(await other.spend(0, [day, hour])) == [(30, 0, 70), (30, 0, 30)]
        spent = await other.spend(30, [day, hour])
        assert spent.allowed
        assert left(spent) == [(60, 0, 40), (60, 0, 0)]
        soft = await one.spend(5, [day, hour], force=True)
        assert soft.refused == 1
        assert left(soft) == [(65, 0, 35), (65, 0, 0)]
        assert [state.number for state in soft.states][1] == 7
        assert 0 < soft.states[0].reset_s <= 24 * HOUR
        with pytest.raises(ValueError, match="amount"):
            await one.spend(-1, [day])


async def test_a_cancelled_reservation_is_released(
    kind: str, servers: dict[str, StoreServer]
) -> None:
    async with workers(kind, servers) as (store,):
        server = servers.get(kind)
        if server is not None:
            server.pause()  # it reserves later what it has received
        with trio.move_on_after(0 if server is None else 0.05):
            await store.reserve(50, [Window("ann/hour", 60, HOUR)])
        if server is not None:
            server.resume()
        with trio.fail_after(5):
            while (await store.spend(0, [Window("ann/hour", 60, HOUR)])).states[0].reserved:
                await trio.sleep(0.01)


async def test_counters(kind: str, servers: dict[str, StoreServer]) -> None:
    async with workers(kind, servers, 2) as (one, other):
        assert await one.counts("hour") == {}
        assert await one.count("hour", {"a": 2, "b b": 5}, keep_s=60, id="batch")
        assert not await one.count("hour", {"a": 2, "b b": 5}, keep_s=60, id="batch")
        assert await other.count("hour", {"a": 3}, keep_s=60)
        assert await other.counts("hour") == {"a": 5, "b b": 5}


async def test_the_next_window(kind: str, servers: dict[str, StoreServer]) -> None:
    """It begins at 0; a reservation counts where it was made; a sliding window counts the last one too."""

    def month(number: int, *, sliding: bool = False) -> Window:
        return Window(f"ann/{sliding}", 100, HOUR, sliding=sliding, number=number)

    async with workers(kind, servers) as (store,):
        for sliding in (False, True):
            reserved = await store.reserve(40, [month(1, sliding=sliding)])
            assert left(await store.spend(10, [month(1, sliding=sliding)])) == [(10, 40, 50)]
            before = 10 if sliding else 0
            assert left(await store.spend(0, [month(2, sliding=sliding)])) == [
                (before, 0, 100 - before)
            ]
            assert left(await store.spend(1, [month(2, sliding=sliding)])) == [
                (before + 1, 0, 99 - before)
            ]
            assert await store.settle(reserved, 20)
            before = 30 if sliding else 0
            assert left(await store.spend(0, [month(2, sliding=sliding)])) == [
                (before + 1, 0, 99 - before)
            ]
            assert left(await store.spend(0, [month(4, sliding=sliding)])) == [(0, 0, 100)]
        ended = Window("short", 1, 0.05)
        assert (await store.spend(1, [ended])).allowed
        await trio.sleep(0.06)
        assert (await store.spend(1, [ended])).allowed


async def test_a_map(kind: str, servers: dict[str, StoreServer]) -> None:
    async with workers(kind, servers, 2) as (one, other):
        assert await one.get("k") is None
        assert await one.put("k", b"\x00\xff", keep_s=HOUR)
        assert not await other.put("k", b"new", keep_s=HOUR, only_new=True)
        assert await other.get("k") == b"\x00\xff"
        assert await other.remove("k")
        assert not await one.remove("k")
        assert await one.put("k", b"new", keep_s=0.03, only_new=True)
        await trio.sleep(0.05)
        assert await one.get("k") is None
        assert abs(await one.now() - await other.now()) < 1


async def test_a_log(kind: str, servers: dict[str, StoreServer]) -> None:
    """Ids only grow: a repeated batch and an earlier epoch are refused. It ends with its time."""
    async with workers(kind, servers, 2) as (one, other):
        assert await one.last_id("log") is None
        async with other.subscribe("log") as wakes, other.subscribe("log") as same:
            assert await one.append("log", 1, 1, [b"a", b"b"], keep_s=HOUR)
            with trio.fail_after(5):
                assert await wakes.receive() == b"1-2"
                assert await same.receive() == b"1-2"
        assert not await one.append("log", 1, 1, [b"a", b"b"], keep_s=HOUR)
        assert not await one.append("log", 1, 2, [b"b", b"c"], keep_s=HOUR)
        assert await other.append("log", 3, 1, [b"c"], keep_s=HOUR)
        assert not await one.append("log", 1, 3, [b"d"], keep_s=HOUR)
        whole = [LogEntry("1-1", b"a"), LogEntry("1-2", b"b"), LogEntry("3-1", b"c")]
        assert await one.read("log") == whole
        assert await other.read("log", after="1-1", limit=1) == whole[1:2]
        assert await one.last_id("log") == "3-1"
        assert await one.read("log", after="3-1") == []
        assert await one.remove("log")
        assert await one.last_id("log") is None
        for seq in range(1, 400, 100):
            assert await one.append("long", 1, seq, [b"x"] * 100, keep_s=0.05, max_entries=100)
        kept = await one.read("long")
        assert 100 <= len(kept) < 400
        assert kept[-1].id == "1-400"
        await trio.sleep(0.08)
        assert await one.last_id("long") is None
        with pytest.raises(ValueError, match="entries"):
            await one.append("log", 1, 1, [], keep_s=1)


async def test_messages(kind: str, servers: dict[str, StoreServer]) -> None:
    """A message reaches every subscriber of its channel, of each worker, and no other."""
    async with workers(kind, servers, 2) as (one, other):
        async with one.subscribe("a") as a, other.subscribe("a") as also, other.subscribe("b") as b:
            await one.publish("a", b"stop")
            await other.publish("b", b"go")
            with trio.fail_after(5):
                assert [await item.receive() for item in (a, also, b)] == [b"stop", b"stop", b"go"]
        async with one.subscribe("a") as a:
            await other.publish("a", b"again")
            with trio.fail_after(5):
                assert await a.receive() == b"again"
