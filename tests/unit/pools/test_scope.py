"""A buffer scope gives everything back, however it is left."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from pools import BufferPool, BufferScope, LeaseReturned, PoolError, Pools, ScopeClosed


async def test_leaving_a_scope_gives_every_lease_back() -> None:
    """On a normal exit no lease of any pool is left on loan, and the buffers are reused."""
    pools = Pools()
    async with pools.open_scope() as scope:
        leases = [scope.acquire(pool) for pool in pools for _ in range(3)]
        assert scope.leases == 9
        assert [stats.in_use for stats in pools.statistics()] == [3, 3, 3]
    assert scope.leases == 0
    assert all(lease.returned for lease in leases)
    assert [(stats.in_use, stats.current_size) for stats in pools.statistics()] == [(0, 3)] * 3


async def test_an_exception_gives_every_lease_back_and_goes_on() -> None:
    """The exception leaves the scope as it was raised, and the leases are back."""
    pool = BufferPool("p", 64, 8)
    error = KeyError("from the body")
    with pytest.raises(KeyError) as caught:
        async with BufferScope() as scope:
            scope.acquire(pool)
            scope.acquire(pool)
            raise error
    assert caught.value is error
    assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 2)


async def test_cancellation_gives_every_lease_back() -> None:
    """A client that vanishes cancels the exchange: what it had borrowed is back when its task has
    ended.
    """
    pool = BufferPool("p", 64, 8)
    on_loan = trio.Event()

    async def exchange() -> None:
        async with BufferScope() as scope:
            scope.acquire(pool)
            scope.acquire(pool)
            on_loan.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange)
        await on_loan.wait()
        assert pool.statistics().in_use == 2
        nursery.cancel_scope.cancel()
    assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 2)


async def test_neither_entering_nor_leaving_is_a_checkpoint() -> None:
    """Under a cancelled scope the block still runs and its leases come back: nothing in between can
    be cancelled.
    """
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
    """`ScopeClosed` before the `async with` and after it, and nothing is borrowed: it could never
    be given back.
    """
    pool = BufferPool("p", 64, 8)
    scope = BufferScope()
    if when == "after":
        async with scope:
            pass
    with pytest.raises(ScopeClosed) as caught:
        scope.acquire(pool)
    assert isinstance(caught.value, PoolError)
    assert pool.statistics().allocations == 0


async def test_a_lease_can_go_back_early() -> None:
    """`scope.release` returns it at once, its buffer serves the next lease, and leaving the scope
    minds only the rest.
    """
    pool = BufferPool("p", 64, 8)
    async with BufferScope() as scope:
        early = scope.acquire(pool)
        scope.release(early)
        assert scope.leases == 0
        assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 1)
        scope.acquire(pool)
        with pytest.raises(LeaseReturned):
            scope.release(early)
        assert pool.statistics().in_use == 1
    stats = pool.statistics()
    assert (stats.allocations, stats.reuses, stats.in_use, stats.current_size) == (1, 1, 0, 1)


async def test_a_lease_released_by_itself_does_not_disturb_the_scopes_end() -> None:
    """A lease that its borrower released without the scope is not given back twice."""
    pool = BufferPool("p", 64, 8)
    async with BufferScope() as scope:
        scope.acquire(pool).release()
        with scope.acquire(pool):
            pass
    assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 1)


async def test_a_buffer_still_seen_at_the_scopes_end_is_discarded_and_the_others_are_kept() -> None:
    """One kept view costs one buffer; it does not stop the rest from coming back."""
    pool = BufferPool("p", 64, 8)
    async with BufferScope() as scope:
        leases = [scope.acquire(pool) for _ in range(3)]
        kept = memoryview(leases[1].buffer)
    stats = pool.statistics()
    assert (stats.in_use, stats.current_size, stats.discards_exported) == (0, 2, 1)
    kept.release()


async def test_scopes_do_not_touch_each_others_leases() -> None:
    """When one exchange ends, the buffers of another stay on loan."""
    pool = BufferPool("p", 64, 8)
    async with BufferScope() as outer:
        mine = outer.acquire(pool)
        async with BufferScope() as inner:
            inner.acquire(pool)
        assert not mine.returned
        assert pool.statistics().in_use == 1
