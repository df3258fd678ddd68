"""What a worker does with a real server that it cannot reach, beyond what a limit's client sees."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from support.store_server import StoreServer, engine_on
from trio.testing import wait_all_tasks_blocked

from interceptors.memory import Aging
from interceptors.store import Share, Store, StoreUnavailable, Window
from proxy.store import ValkeyEngine, address_problem

HOUR = Window("hour", 100, 3600.0)


@asynccontextmanager
async def shared(
    timeout_s: float = 0.25, share: Share | None = None
) -> AsyncIterator[tuple[StoreServer, ValkeyEngine, Store]]:
    server = StoreServer()
    with capture_logs():
        async with server.running():
            async with engine_on(server.url, timeout_s=timeout_s, share=share) as engine:
                yield server, engine, Store(engine, "own")


async def up(engine: ValkeyEngine) -> None:
    with trio.fail_after(5):
        while not engine.link.is_up:
            await trio.sleep(0.01)


async def used(store: Store, expected: int) -> None:
    """Wait until so much has been counted. It must not become more."""
    with trio.fail_after(5):
        while (found := (await store.spend(0, [HOUR])).states[0].used) < expected:
            await trio.sleep(0.01)
    assert found == expected


async def test_a_cancelled_call_shifts_no_answer_and_loses_no_connection() -> None:
    async with shared(timeout_s=5) as (server, engine, store):
        for number in range(20):
            await store.put(str(number), b"%d" % number, keep_s=60)
        got: dict[int, bytes | None] = {}

        async def get(number: int) -> None:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                got[number] = await store.get(str(number))

        scopes: list[trio.CancelScope] = []
        server.pause()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(get, number)
            await wait_all_tasks_blocked(0.01)
            for scope in scopes[::2]:
                scope.cancel()
            server.resume()
        assert len(got) == 10
        assert got == {number: b"%d" % number for number in got}
        assert set(engine.link.failures.values()) == {0}
        assert (await server.ask("CLIENT LIST")).count(b"name=weirpool") == 1


async def test_what_is_settled_without_the_server_counts_once_when_it_is_back() -> None:
    """A reservation from before, one counted locally, and what was spent."""
    async with shared() as (server, engine, store):
        held = await store.reserve(10, [HOUR])
        server.pause()
        assert await store.settle(held, 7)  # times out, and yet the server will have got it
        assert not await store.settle(held, 7)
        local = await store.reserve(5, [HOUR])
        assert local.is_local
        assert await store.settle(local, 3)
        assert not await store.settle(local, 3)
        assert (await store.spend(2, [HOUR])).allowed
        server.resume()
        await up(engine)
        await used(store, 12)


async def test_a_worker_alone_has_its_share_of_what_was_left() -> None:
    async with shared(share=Share(1, 4)) as (server, _, store):
        assert (await store.spend(40, [HOUR])).states[0].remaining == 60
        server.stop()
        counted = [(await store.spend(5, [HOUR])).allowed for _ in range(5)]
        assert counted == [True] * 3 + [False] * 2  # 25 of 100, of which 10 are spent
        assert (await store.spend(1, [HOUR], on_error="open")).allowed
        for call in (store.get("k"), store.spend(1, [HOUR], on_error="closed"), store.now()):
            with pytest.raises(StoreUnavailable, match="the store is away"):
                await call


async def test_a_server_that_lost_its_data_gets_back_what_workers_have_seen() -> None:
    async with shared() as (server, engine, store):
        await store.spend(40, [HOUR])
        await store.take("ann", rate_per_s=0.001, burst=10, cost=4)
        async with store.subscribe("log") as wakes:
            server.stop()
            server.start()
            await server.ready()
            with trio.fail_after(5):
                assert await wakes.receive() == b""  # look again
            await up(engine)
            await used(store, 40)
            assert (await store.take("ann", rate_per_s=0.001, burst=10)).remaining == 5
            await store.append("log", 1, 1, [b"a"], keep_s=60)
            with trio.fail_after(5):
                assert await wakes.receive() == b"1-1"


async def test_a_server_that_lost_its_data_gets_back_what_is_reserved() -> None:
    """What is settled meanwhile, and afterwards, counts."""
    async with shared() as (server, engine, store):
        held, other = await store.reserve(10, [HOUR]), await store.reserve(20, [HOUR])
        local = await store.reserve(30, [HOUR])
        server.stop()
        assert await store.settle(held, 7)
        server.start()
        await server.ready()
        await up(engine)
        await used(store, 7)
        assert (await store.spend(0, [HOUR])).states[0].reserved == 50
        assert await store.settle(other, 9)
        assert not await store.settle(other, 9)
        server.pause()
        assert await store.settle(local, 3)  # times out, and yet the server will have got it
        server.resume()
        await up(engine)
        await used(store, 19)


async def test_reservations_end_with_their_worker() -> None:
    async with shared(timeout_s=5) as (server, _, store):
        async with engine_on(server.url, timeout_s=5) as other_engine:
            other = Store(other_engine, "own")
            held, own = await other.reserve(60, [HOUR]), await store.reserve(10, [HOUR])
            assert (await store.reserve(40, [HOUR])).refused == 0
            await server.ask("DEL test:o")  # as 30 s after the last sign of every worker
            state = (await store.reserve(20, [HOUR])).states[0]
            assert (state.used, state.reserved) == (0, 30)
            assert await other.settle(held, 50)  # it lives after all: what was used counts
            assert await store.settle(own, 1)
            assert (await store.spend(0, [HOUR])).states[0].used == 51


def test_a_settled_reservation_takes_no_memory_until_its_window_ends() -> None:
    kept: Aging[bytes] = Aging()
    kept.put("other", b"", 9.0)
    for number in range(10_000):
        kept.put(str(number), b"x" * 1000, 7e6)
        kept.pop(str(number), 0.0)
    assert sys.getsizeof(kept._queue) < 10_000
    assert kept.get("other", 8.0) == b""
    assert kept.get("other", 9.0) is None


async def test_a_key_of_another_kind_fails_only_its_calls() -> None:
    async with shared(timeout_s=5) as (server, _, store):
        await server.ask("LPUSH test:m:own:k x")
        with pytest.raises(StoreUnavailable, match="wrong kind") as raised:
            await store.get("k")
        assert raised.value.kind == "reply"
        assert await store.get("other") is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("valkey://h", None), ("valkeys://u:p@[::1]:7/3", None), ("unix:///run/a.sock?db=2", None),
        ("h:6379", "must be valkey://"), ("http://h", "must be valkey://"), ("redis://h:x", "must be valkey://"),
        ("redis://", "has no host"), ("redis://h/x", "the database must be"), ("redis://h?db=1", "must have no query"),
        ("unix://run/a.sock", "must have an absolute path"),
    ],
)  # fmt: skip
def test_the_form_of_a_url(url: str, problem: str | None) -> None:
    found = address_problem(url)
    assert found is problem or (found is not None and problem is not None and problem in found)
