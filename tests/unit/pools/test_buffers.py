"""A pool and its leases: what is kept, what is discarded, and that the counters add up."""

from __future__ import annotations

import contextlib
import gc
import random
import sys

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from pools import POOL_NAMES, BufferPool, Lease, LeaseReturned, PoolError, Pools, is_exported

SIZE = 64


def pool_of(max_pooled: int = 8) -> BufferPool:
    return BufferPool("p", SIZE, max_pooled)


def counters(pool: BufferPool, *names: str) -> tuple[int, ...]:
    return tuple(getattr(pool.statistics(), name) for name in names)


def test_pools_have_the_documented_names_sizes_and_bounds() -> None:
    pools = Pools()
    assert [(pool.name, pool.size, pool.max_pooled) for pool in pools] == [
        ("sse_event", 4096, 1000),
        ("http_response", 16384, 500),
        ("json", 8192, 500),
    ]
    assert tuple(pool.name for pool in pools) == POOL_NAMES
    assert [pools.sse_event, pools.http_response, pools.json] == list(pools)
    given = {"sse_event": (64, 1), "http_response": (128, 2), "json": (256, 3)}
    stats = Pools(**given).statistics()  # type: ignore[arg-type]
    assert {item.pool: (item.size, item.max_pooled) for item in stats} == given


@pytest.mark.parametrize(("size", "max_pooled"), [(63, 1), (-1, 1), (64, -1)])
def test_impossible_sizes_are_refused_with_the_pools_name(size: int, max_pooled: int) -> None:
    with pytest.raises(ValueError, match="'tiny'"):
        BufferPool("tiny", size, max_pooled)


def test_the_buffer_that_was_released_last_is_lent_first() -> None:
    """`reuse_rate` is reuses / (reuses + allocations), 0.0 before the first lease; a lease has a
    buffer of its own, and `max_pooled` bounds what is kept, not what is lent.
    """
    pool = pool_of(max_pooled=2)
    assert pool.statistics().reuse_rate == 0.0
    leases = [pool.acquire() for _ in range(3)]
    buffers = [id(lease.buffer) for lease in leases]
    assert len(set(buffers)) == 3
    for lease in leases:
        assert len(lease.buffer) == SIZE
        lease.release()
    assert counters(pool, "high_water", "in_use", "current_size", "discards_full") == (3, 0, 2, 1)
    again = [pool.acquire() for _ in range(2)]
    assert [id(lease.buffer) for lease in again] == [buffers[1], buffers[0]]
    for lease in again:
        lease.release()
    stats = pool.statistics()
    assert (stats.allocations, stats.reuses, stats.discards, stats.reuse_rate) == (3, 2, 1, 0.4)


# What is not kept


@pytest.mark.parametrize(
    ("grown_to", "kept"), [(3, True), (SIZE + 1, True), (2 * SIZE, True), (2 * SIZE + 1, False)]
)
def test_a_resized_buffer_is_kept_up_to_twice_its_size(grown_to: int, kept: bool) -> None:
    """With its length restored; one byte more is `oversize`."""
    pool = pool_of()
    with pool.acquire() as lease:
        buffer = lease.buffer
        buffer[:] = bytes(grown_to)
    assert counters(pool, "current_size", "discards_oversize") == ((1, 0) if kept else (0, 1))
    with pool.acquire() as again:
        assert (again.buffer is buffer) is kept
        assert len(again.buffer) == SIZE


def test_oversize_is_judged_by_allocation_and_not_by_length() -> None:
    """`encode_into` grows a buffer and truncates it again."""
    pool = pool_of()
    encoder = msgspec.json.Encoder()
    with pool.acquire() as lease:
        encoder.encode_into("x" * 1_000_000, lease.buffer)
        encoder.encode_into([1, 2], lease.buffer)
        assert (len(lease.buffer), sys.getsizeof(lease.buffer) > 1_000_000) == (5, True)
    assert counters(pool, "discards_oversize", "current_size") == (1, 0)


def test_a_buffer_with_a_live_view_is_never_lent_again() -> None:
    """A `msgspec.Raw` is a view, too. A view that was released in time costs nothing."""
    pool = pool_of()
    with pool.acquire() as lease:
        lease.buffer[:] = b'["ab"]'
        (raw,) = msgspec.json.decode(lease.buffer, type=list[msgspec.Raw])
    assert counters(pool, "discards_exported", "discards", "current_size") == (1, 1, 0)
    with pool.acquire() as other, memoryview(other.buffer) as view:
        view[:6] = b"SECRET"
        assert bytes(raw) == b'"ab"'
    assert counters(pool, "allocations", "discards", "current_size") == (2, 1, 1)


# Misuse


def test_a_returned_lease_can_be_neither_used_nor_released() -> None:
    """Else one buffer would be lent twice. No counter changes. A context manager releases after an
    exception, too; a release inside is not an error.
    """
    pool = pool_of()
    with pytest.raises(KeyError), pool.acquire() as lease:
        raise KeyError
    assert lease.returned
    before = pool.statistics()
    for use in (lease.release, lambda: lease.buffer):
        with pytest.raises(LeaseReturned, match="'p'") as caught:
            use()
        assert isinstance(caught.value, PoolError)
    assert pool.statistics() == before
    with pool.acquire() as lease:
        lease.release()
    assert counters(pool, "in_use", "current_size") == (0, 1)


def test_reprs_show_the_state_and_no_content() -> None:
    pool = pool_of()
    with pool.acquire() as lease:
        lease.buffer[:6] = b"SECRET"
        assert repr(lease) == "<Lease of 'p', on loan>"
        assert repr(pool) == "<BufferPool 'p': 1 in use, 0 idle>"
    assert repr(lease) == "<Lease of 'p', returned>"


# Any sequence


class AnyUse(RuleBasedStateMachine):
    """Borrow, resize, keep views, release and lose, in any order: the counters always add up."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BufferPool("p", SIZE, 3)
        self.leases: list[Lease] = []
        self.views: list[tuple[memoryview, bytes]] = []
        self.acquired = self.returned = self.lost = self.most = 0

    @rule()
    def acquire(self) -> None:
        lease = self.pool.acquire()
        assert len(lease.buffer) == SIZE
        assert not is_exported(lease.buffer)
        assert all(lease.buffer is not other.buffer for other in self.leases)
        self.acquired += 1
        lease.buffer[:8] = self.acquired.to_bytes(8)  # every borrower leaves its mark
        self.leases.append(lease)
        self.most = max(self.most, len(self.leases))

    @precondition(lambda self: self.leases)
    @rule(pick=st.randoms(use_true_random=False), size=st.integers(8, 4 * SIZE))
    def resize(self, pick: random.Random, size: int) -> None:
        buffer = pick.choice(self.leases).buffer
        with contextlib.suppress(BufferError):  # refused while a view lives
            if len(buffer) > size:
                del buffer[size:]
            else:
                buffer.extend(bytes(size - len(buffer)))

    @precondition(lambda self: self.leases)
    @rule(pick=st.randoms(use_true_random=False))
    def keep_view(self, pick: random.Random) -> None:
        view = memoryview(pick.choice(self.leases).buffer)[:8]
        self.views.append((view, bytes(view)))

    @precondition(lambda self: self.views)
    @rule()
    def drop_view(self) -> None:
        self.views.pop(0)[0].release()

    @precondition(lambda self: self.leases)
    @rule(pick=st.randoms(use_true_random=False))
    def release(self, pick: random.Random) -> None:
        self.leases.pop(pick.randrange(len(self.leases))).release()
        self.returned += 1

    @precondition(lambda self: self.leases)
    @rule()
    def lose(self) -> None:
        with capture_logs() as logs:
            del self.leases[0]
            gc.collect(0)
        assert [entry["event"] for entry in logs] == ["buffer_leaked"]
        self.lost += 1

    @invariant()
    def the_counters_add_up(self) -> None:
        stats = self.pool.statistics()
        assert stats.allocations + stats.reuses == self.acquired
        assert stats.in_use == len(self.leases) == self.acquired - self.returned - self.lost
        assert (stats.leaks, stats.high_water) == (self.lost, self.most)
        assert 0 <= stats.current_size <= 3
        assert stats.allocations == stats.current_size + stats.in_use + stats.discards + stats.leaks

    @invariant()
    def idle_buffers_can_be_lent_and_views_show_their_own_borrowers_bytes(self) -> None:
        for buffer in self.pool._idle:
            assert len(buffer) == SIZE
            assert sys.getsizeof(buffer) <= sys.getsizeof(bytearray(2 * SIZE))
            assert all(view.obj is not buffer for view, _ in self.views)
        assert all(bytes(view) == mark for view, mark in self.views)

    def teardown(self) -> None:
        for view, _ in self.views:
            view.release()
        while self.leases:
            self.leases.pop().release()


AnyUse.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
test_any_sequence_of_use = pytest.mark.leaks(AnyUse.TestCase)
