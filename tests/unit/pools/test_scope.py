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
    """Entering and leaving are no checkpoints, so that nothing in between can be cancelled."""
    pools = Pools()
    with trio.CancelScope() as cancelled:
        cancelled.cancel()
        with trio.testing.assert_no_checkpoints():
            async with pools.open_scope() as scope:
                leases = [scope.acquire(pool) for pool in pools for _ in range(3)]
                assert scope.leases == 9
    assert not cancelled.cancelled_caught
    assert scope.leases == 0
    assert all(lease.returned for lease in leases)
    assert [books(pool) for pool in pools] == [(0, 3)] * 3


async def test_an_exception_passes_and_a_nested_scope_keeps_its_own_leases() -> None:
    """One buffer has a live view, and is discarded."""
    pool, error = BufferPool("p", 64, 8), KeyError("from the body")
    async with BufferScope() as outer:
        mine = outer.acquire(pool)
        with pytest.raises(KeyError) as caught:
            async with BufferScope() as inner:
                inner.acquire(pool)
                kept = memoryview(inner.acquire(pool).buffer)
                raise error
        assert (caught.value, mine.returned, books(pool)) == (error, False, (1, 1))
    assert books(pool) == (0, 2)
    kept.release()


async def test_borrowing_outside_of_the_scope_is_refused() -> None:
    pool, scope = BufferPool("p", 64, 8), BufferScope()
    for _ in range(2):
        with pytest.raises(ScopeClosed) as caught:
            scope.acquire(pool)
        assert isinstance(caught.value, PoolError)
        async with scope:
            pass
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
        assert books(pool) == (1, 1)
    assert (pool.statistics().allocations, books(pool)) == (2, (0, 2))
