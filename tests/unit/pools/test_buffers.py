"""A pool and its leases: what is kept, what is discarded, and that the counters add up."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import random
import sys

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from pools import (
    POOL_NAMES,
    BufferPool,
    Lease,
    LeaseReturned,
    PoolError,
    Pools,
    PoolStatistics,
    is_exported,
)

SIZE = 64


def pool_of(max_pooled: int = 8) -> BufferPool:
    return BufferPool("p", SIZE, max_pooled)


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


@pytest.mark.parametrize(("size", "max_pooled"), [(63, 1), (0, 1), (-1, 1), (64, -1)])
def test_impossible_sizes_are_refused_with_the_pools_name(size: int, max_pooled: int) -> None:
    with pytest.raises(ValueError, match="'tiny'"):
        BufferPool("tiny", size, max_pooled)


# Borrowing and releasing


def test_a_released_buffer_is_the_next_leases() -> None:
    """`reuse_rate` is reuses / (reuses + allocations), 0.0 before the first lease."""
    pool = pool_of()
    assert pool.statistics() == PoolStatistics("p", SIZE, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert pool.statistics().reuse_rate == 0.0
    lease = pool.acquire()
    buffer, stats = lease.buffer, pool.statistics()
    assert len(buffer) == SIZE
    assert (stats.allocations, stats.in_use, stats.current_size) == (1, 1, 0)
    lease.release()
    for _ in range(3):
        with pool.acquire() as again:
            assert again.buffer is buffer
    stats = pool.statistics()
    assert (stats.allocations, stats.reuses, stats.in_use, stats.current_size) == (1, 3, 0, 1)
    assert stats.reuse_rate == 0.75


def test_leases_have_buffers_of_their_own_and_the_last_released_is_lent_first() -> None:
    pool = pool_of()
    leases = [pool.acquire() for _ in range(3)]
    buffers = [id(lease.buffer) for lease in leases]
    assert len(set(buffers)) == 3
    for lease in leases:
        lease.release()
    again = [pool.acquire() for _ in range(3)]
    assert [id(lease.buffer) for lease in again] == buffers[::-1]
    for lease in again:
        lease.release()


def test_max_pooled_bounds_what_is_kept_and_not_what_is_lent() -> None:
    pool = pool_of(max_pooled=1)
    leases = [pool.acquire() for _ in range(5)]
    assert pool.statistics().in_use == 5
    for lease in leases:
        lease.release()
    stats = pool.statistics()
    assert (stats.high_water, stats.in_use, stats.current_size) == (5, 0, 1)
    assert (stats.discards_full, stats.discards_oversize, stats.discards_exported) == (4, 0, 0)


# What is not kept


@pytest.mark.parametrize(
    ("grown_to", "kept"),
    [(3, True), (SIZE + 1, True), (2 * SIZE, True), (2 * SIZE + 1, False), (50 * SIZE, False)],
)
def test_a_resized_buffer_is_kept_up_to_twice_its_size(grown_to: int, kept: bool) -> None:
    """With its length restored; one byte more is `oversize`."""
    pool = pool_of()
    with pool.acquire() as lease:
        buffer = lease.buffer
        buffer[:] = bytes(grown_to)
    stats = pool.statistics()
    found = (stats.current_size, stats.discards_oversize, stats.discards)
    assert found == ((1, 0, 0) if kept else (0, 1, 1))
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
        assert len(lease.buffer) == 5
        assert sys.getsizeof(lease.buffer) > 1_000_000
    stats = pool.statistics()
    assert (stats.discards_oversize, stats.current_size) == (1, 0)


def test_a_buffer_with_a_live_view_is_never_lent_again() -> None:
    """The view never shows what a later borrower writes. One released in time costs nothing."""
    pool = pool_of()
    with pool.acquire() as lease:
        lease.buffer[:6] = b"first!"
        kept = memoryview(lease.buffer)[:6]
    stats = pool.statistics()
    assert (stats.discards_exported, stats.discards, stats.current_size) == (1, 1, 0)
    for _ in range(3):
        with pool.acquire() as other, memoryview(other.buffer) as view:
            view[:6] = b"SECRET"
            assert bytes(kept) == b"first!"
    kept.release()
    stats = pool.statistics()
    assert (stats.allocations, stats.discards, stats.current_size) == (2, 1, 1)


def test_a_msgspec_raw_of_a_buffer_counts_as_a_view() -> None:
    pool = pool_of()
    lease = pool.acquire()
    lease.buffer[:] = b'["ab"]'
    (raw,) = msgspec.json.decode(lease.buffer, type=list[msgspec.Raw])
    lease.release()
    assert pool.statistics().discards_exported == 1
    assert bytes(raw) == b'"ab"'


def test_is_exported_changes_nothing() -> None:
    buffer = bytearray(b"abc")
    assert not is_exported(buffer)
    with memoryview(buffer):
        assert is_exported(buffer)
    assert not is_exported(buffer)
    assert buffer == b"abc"


# Misuse


def test_a_returned_lease_can_be_neither_used_nor_released() -> None:
    """Else one buffer would be lent twice. No counter changes."""
    pool = pool_of()
    lease = pool.acquire()
    assert not lease.returned
    lease.release()
    assert lease.returned
    before = pool.statistics()
    for use in (lease.release, lambda: lease.buffer):
        with pytest.raises(LeaseReturned, match="'p'") as caught:
            use()
        assert isinstance(caught.value, PoolError)
    assert pool.statistics() == before


def test_a_lease_is_a_context_manager() -> None:
    """It releases after an exception, too; a release inside is not an error."""
    pool = pool_of()
    with pytest.raises(KeyError), pool.acquire():
        raise KeyError
    with pool.acquire() as lease:
        lease.release()
    assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 1)


def test_reprs_show_the_state_and_no_content() -> None:
    pool = pool_of()
    with pool.acquire() as lease:
        lease.buffer[:6] = b"SECRET"
        assert repr(lease) == "<Lease of 'p', on loan>"
        assert repr(pool) == "<BufferPool 'p': 1 in use, 0 idle>"
    assert repr(lease) == "<Lease of 'p', returned>"


def test_statistics_are_a_frozen_snapshot() -> None:
    stats = pool_of().statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.allocations = 7  # type: ignore[misc]
    reasons = {"discards_oversize": 1, "discards_full": 20, "discards_exported": 300}
    assert dataclasses.replace(stats, leaks=5, **reasons).discards == 321  # type: ignore[arg-type]


# Any sequence


class AnyUse(RuleBasedStateMachine):
    """Borrow, resize, keep views, release and lose, in any order: the counters always add up."""

    def __init__(self) -> None:
        super().__init__()
        self.max_pooled = 3
        self.pool = BufferPool("p", SIZE, self.max_pooled)
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
        assert stats.leaks == self.lost
        assert stats.high_water == self.most
        assert 0 <= stats.current_size <= self.max_pooled
        assert stats.allocations == stats.current_size + stats.in_use + stats.discards + stats.leaks

    @invariant()
    def idle_buffers_can_be_lent(self) -> None:
        for buffer in self.pool._idle:
            assert len(buffer) == SIZE
            assert sys.getsizeof(buffer) <= sys.getsizeof(bytearray(2 * SIZE))
            assert all(view.obj is not buffer for view, _ in self.views)

    @invariant()
    def a_view_shows_only_its_own_borrowers_bytes(self) -> None:
        assert all(bytes(view) == mark for view, mark in self.views)

    def teardown(self) -> None:
        for view, _ in self.views:
            view.release()
        while self.leases:
            self.leases.pop().release()


AnyUse.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_any_sequence_of_use = pytest.mark.leaks(AnyUse.TestCase)
