"""A buffer scope releases everything, however it is left."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pools import BufferPool, BufferScope, LeaseReturned, PoolError, Pools, ScopeClosed


def books(pool: BufferPool) -> tuple[int, int]:
    stats = pool.statistics()
    return stats.in_use, stats.current_size


async def test_leaving_a_scope_releases_every_lease() -> None:
    pools = Pools()
    async with pools.open_scope() as scope:
        leases = [scope.acquire(pool) for pool in pools for _ in range(3)]
        assert scope.leases == 9
    assert scope.leases == 0
    assert all(lease.returned for lease in leases)
    assert [books(pool) for pool in pools] == [(0, 3)] * 3


async def test_an_exception_passes_and_a_nested_scope_keeps_its_own_leases() -> None:
    pool, error = BufferPool("p", 64, 8), KeyError("from the body")
    async with BufferScope() as outer:
        mine = outer.acquire(pool)
        with pytest.raises(KeyError) as caught:
            async with BufferScope() as inner:
                inner.acquire(pool)
                raise error
        assert caught.value is error
        assert not mine.returned
        assert books(pool) == (1, 1)
    assert books(pool) == (0, 2)


async def test_cancellation_releases_every_lease() -> None:
    pool = BufferPool("p", 64, 8)
    async with trio.open_nursery() as nursery:

        async def exchange() -> None:
            async with BufferScope() as scope:
                scope.acquire(pool)
                scope.acquire(pool)
                await trio.sleep_forever()

        nursery.start_soon(exchange)
        await trio.testing.wait_all_tasks_blocked()
        assert books(pool) == (2, 0)
        nursery.cancel_scope.cancel()
    assert books(pool) == (0, 2)


async def test_neither_entering_nor_leaving_is_a_checkpoint() -> None:
    """So nothing in between can be cancelled."""
    pool = BufferPool("p", 64, 8)
    with trio.CancelScope() as cancelled:
        cancelled.cancel()
        with trio.testing.assert_no_checkpoints():
            async with BufferScope() as scope:
                lease = scope.acquire(pool)
        assert lease.returned
    assert not cancelled.cancelled_caught


@pytest.mark.parametrize("when", ["before", "after"])
async def test_borrowing_outside_of_the_scope_is_refused(when: str) -> None:
    pool, scope = BufferPool("p", 64, 8), BufferScope()
    if when == "after":
        async with scope:
            pass
    with pytest.raises(ScopeClosed) as caught:
        scope.acquire(pool)
    assert isinstance(caught.value, PoolError)
    assert pool.statistics().allocations == 0


async def test_a_lease_can_be_released_early() -> None:
    """Through the scope or by itself; never twice."""
    pool = BufferPool("p", 64, 8)
    async with BufferScope() as scope:
        early = scope.acquire(pool)
        scope.release(early)
        assert (scope.leases, books(pool)) == (0, (0, 1))
        scope.acquire(pool)
        with pytest.raises(LeaseReturned):
            scope.release(early)
        scope.acquire(pool).release()
        with scope.acquire(pool):
            pass
        assert books(pool) == (1, 1)
    stats = pool.statistics()
    assert (stats.allocations, stats.in_use, stats.current_size) == (2, 0, 2)


async def test_a_buffer_with_a_live_view_is_discarded_and_the_others_are_kept() -> None:
    pool = BufferPool("p", 64, 8)
    async with BufferScope() as scope:
        leases = [scope.acquire(pool) for _ in range(3)]
        kept = memoryview(leases[1].buffer)
    assert books(pool) == (0, 2)
    assert pool.statistics().discards_exported == 1
    kept.release()
