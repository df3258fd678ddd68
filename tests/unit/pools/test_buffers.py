"""A pool and its leases: what is kept, what is thrown away, and that the counters always add up."""

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


def pool_of(max_pooled: int = 8, size: int = SIZE) -> BufferPool:
    return BufferPool("p", size, max_pooled)


# --- defaults
# ------------------------------------------------------------------------------------------------------------


def test_default_pools_have_the_documented_names_sizes_and_bounds() -> None:
    """`Pools()` is sse_event 4096/1000, http_response 16384/500, json 8192/500, in the order of
    POOL_NAMES.
    """
    pools = Pools()
    assert POOL_NAMES == ("sse_event", "http_response", "json")
    assert [(pool.name, pool.size, pool.max_pooled) for pool in pools] == [
        ("sse_event", 4096, 1000),
        ("http_response", 16384, 500),
        ("json", 8192, 500),
    ]
    assert [pools.sse_event, pools.http_response, pools.json] == list(pools)
    assert all(pool.detector.level == "none" for pool in pools)


def test_pools_take_sizes_and_one_leak_level_for_all() -> None:
    """Sizes given to `Pools` reach their pool, and the leak level reaches each."""
    pools = Pools(
        sse_event=(64, 1), http_response=(128, 2), json=(256, 3), leak_detection="paranoid"
    )
    assert [(stats.pool, stats.size, stats.max_pooled) for stats in pools.statistics()] == [
        ("sse_event", 64, 1),
        ("http_response", 128, 2),
        ("json", 256, 3),
    ]
    assert {pool.detector.level for pool in pools} == {"paranoid"}


@pytest.mark.parametrize(("size", "max_pooled"), [(63, 1), (0, 1), (-1, 1), (64, -1)])
def test_impossible_sizes_are_refused_with_the_pools_name(size: int, max_pooled: int) -> None:
    """A size below 64 bytes or a negative bound is a ValueError that says which pool."""
    with pytest.raises(ValueError, match="'tiny'"):
        BufferPool("tiny", size, max_pooled)


# --- borrowing and giving back
# ------------------------------------------------------------------------------------------


def test_a_new_pool_has_borrowed_and_kept_nothing() -> None:
    """Every counter begins at 0, and the reuse rate of no lease at all is 0.0."""
    stats = pool_of().statistics()
    assert stats == PoolStatistics("p", SIZE, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert stats.reuse_rate == 0.0
    assert stats.discards == 0


def test_a_first_lease_allocates_and_a_second_reuses_the_same_buffer() -> None:
    """Given back, a buffer is the next lease's; `reuse_rate` is reuses / (reuses + allocations)."""
    pool = pool_of()
    lease = pool.acquire()
    buffer = lease.buffer
    assert len(buffer) == SIZE
    assert (
        pool.statistics().allocations,
        pool.statistics().in_use,
        pool.statistics().current_size,
    ) == (1, 1, 0)
    lease.release()
    assert (pool.statistics().in_use, pool.statistics().current_size) == (0, 1)
    for _ in range(3):
        with pool.acquire() as again:
            assert again.buffer is buffer
    stats = pool.statistics()
    assert (stats.allocations, stats.reuses, stats.in_use, stats.current_size) == (1, 3, 0, 1)
    assert stats.reuse_rate == 0.75


def test_the_buffer_that_came_back_last_is_lent_first() -> None:
    """The warmest buffer is reused first, as it is the likeliest to be in a cache."""
    pool = pool_of()
    leases = [pool.acquire() for _ in range(3)]
    buffers = [lease.buffer for lease in leases]
    for lease in leases:
        lease.release()
    again = [pool.acquire() for _ in range(3)]
    assert [id(lease.buffer) for lease in again] == [id(buffer) for buffer in reversed(buffers)]
    for lease in again:
        lease.release()


def test_two_leases_never_share_a_buffer() -> None:
    """Leases on loan at the same time hold different buffers, new or reused."""
    pool = pool_of()
    for _ in range(2):
        leases = [pool.acquire() for _ in range(10)]
        assert len({id(lease.buffer) for lease in leases}) == 10
        for lease in leases:
            lease.release()


def test_a_pool_without_idle_buffers_lends_all_the_same() -> None:
    """`max_pooled` bounds what is kept and not what is lent; the high-water mark remembers the most
    at once.
    """
    pool = pool_of(max_pooled=1)
    leases = [pool.acquire() for _ in range(5)]
    assert pool.statistics().in_use == 5
    for lease in leases:
        lease.release()
    pool.acquire().release()
    stats = pool.statistics()
    assert (stats.high_water, stats.in_use, stats.current_size, stats.discards_full) == (5, 0, 1, 4)


# --- what is not kept
# ---------------------------------------------------------------------------------------------------


def test_a_buffer_that_comes_back_to_a_full_pool_is_discarded_as_full() -> None:
    """With `max_pooled` idle buffers the next one goes, and is counted under `full` only."""
    pool = pool_of(max_pooled=0)
    pool.acquire().release()
    stats = pool.statistics()
    assert (stats.discards_full, stats.discards_oversize, stats.discards_exported) == (1, 0, 0)
    assert (stats.discards, stats.current_size) == (1, 0)


@pytest.mark.parametrize(
    ("grown_to", "kept"),
    [(SIZE + 1, True), (2 * SIZE, True), (2 * SIZE + 1, False), (50 * SIZE, False)],
)
def test_a_grown_buffer_is_kept_up_to_twice_its_size(grown_to: int, kept: bool) -> None:
    """At most twice the size goes back into the pool, with its length restored; one byte more is
    `oversize`.
    """
    pool = pool_of()
    lease = pool.acquire()
    buffer = lease.buffer
    buffer[:] = bytes(grown_to)
    lease.release()
    stats = pool.statistics()
    assert (stats.current_size, stats.discards_oversize, stats.discards) == (
        (1, 0, 0) if kept else (0, 1, 1)
    )
    with pool.acquire() as again:
        assert (again.buffer is buffer) is kept
        assert len(again.buffer) == SIZE


def test_oversize_is_judged_by_allocation_and_not_by_length() -> None:
    """`encode_into` grows a buffer and cuts its length again: a megabyte behind a `len` of a few
    bytes is not kept.
    """
    pool = pool_of()
    lease = pool.acquire()
    encoder = msgspec.json.Encoder()
    encoder.encode_into("x" * 1_000_000, lease.buffer)
    encoder.encode_into([1, 2], lease.buffer)
    assert len(lease.buffer) == 5
    assert sys.getsizeof(lease.buffer) > 1_000_000
    lease.release()
    stats = pool.statistics()
    assert (stats.discards_oversize, stats.current_size) == (1, 0)


def test_a_shortened_buffer_gets_its_length_back() -> None:
    """What `encode_into` or a borrower cut off is there again for the next one."""
    pool = pool_of()
    lease = pool.acquire()
    buffer = lease.buffer
    msgspec.json.Encoder().encode_into([1], buffer)
    assert len(buffer) == 3
    lease.release()
    with pool.acquire() as again:
        assert again.buffer is buffer
        assert len(buffer) == SIZE
        again.buffer.clear()
    with pool.acquire() as again:
        assert again.buffer is buffer
        assert len(buffer) == SIZE


def test_a_buffer_that_somebody_still_sees_is_never_lent_again() -> None:
    """A `memoryview` kept beyond the release costs the buffer, and never shows what a later
    borrower writes.
    """
    pool = pool_of()
    lease = pool.acquire()
    lease.buffer[:6] = b"first!"
    kept = memoryview(lease.buffer)[:6]
    lease.release()
    stats = pool.statistics()
    assert (stats.discards_exported, stats.discards, stats.current_size) == (1, 1, 0)
    for _ in range(3):
        with pool.acquire() as other:
            other.buffer[:6] = b"SECRET"
            assert bytes(kept) == b"first!"
    kept.release()
    assert pool.statistics().allocations == 2


def test_what_msgspec_raw_cut_from_a_buffer_counts_as_seen() -> None:
    """A `msgspec.Raw` that was decoded out of a buffer exports it, just as a memoryview does."""
    pool = pool_of()
    lease = pool.acquire()
    lease.buffer[:] = b'["ab"]'
    (raw,) = msgspec.json.decode(lease.buffer, type=list[msgspec.Raw])
    lease.release()
    assert pool.statistics().discards_exported == 1
    assert bytes(raw) == b'"ab"'


def test_a_view_released_in_time_costs_nothing() -> None:
    """A view that is gone at the release leaves the buffer in the pool."""
    pool = pool_of()
    with pool.acquire() as lease, memoryview(lease.buffer) as view:
        view[:2] = b"ok"
    assert (pool.statistics().discards, pool.statistics().current_size) == (0, 1)


def test_is_exported_tells_and_changes_nothing() -> None:
    """True exactly while a view lives; content and length stay."""
    buffer = bytearray(b"abc")
    assert not is_exported(buffer)
    with memoryview(buffer):
        assert is_exported(buffer)
    assert not is_exported(buffer)
    assert buffer == b"abc"


# --- misuse
# -------------------------------------------------------------------------------------------------------------


def test_giving_back_twice_is_an_error_and_changes_no_counter() -> None:
    """The second `release` raises `LeaseReturned` naming the pool; else one buffer would be lent to
    two.
    """
    pool = pool_of()
    lease = pool.acquire()
    lease.release()
    before = pool.statistics()
    with pytest.raises(LeaseReturned, match="'p'") as caught:
        lease.release()
    assert isinstance(caught.value, PoolError)
    assert pool.statistics() == before


def test_the_buffer_is_out_of_reach_after_the_release() -> None:
    """`buffer` raises `LeaseReturned` as soon as the lease is back, and `returned` says so."""
    lease = pool_of().acquire()
    assert not lease.returned
    lease.release()
    assert lease.returned
    with pytest.raises(LeaseReturned):
        _ = lease.buffer


def test_a_lease_is_a_context_manager_that_also_returns_after_an_error() -> None:
    """Leaving the `with` block gives back, by an exception too, and once more is no error when it
    was done inside.
    """
    pool = pool_of()
    with pytest.raises(KeyError), pool.acquire():
        raise KeyError
    assert pool.statistics().in_use == 0
    with pool.acquire() as lease:
        lease.release()
    stats = pool.statistics()
    assert (stats.in_use, stats.current_size) == (0, 1)


def test_reprs_show_the_state_and_no_content() -> None:
    """A lease and a pool can be logged: name and state, and not the bytes, which are somebody's."""
    pool = pool_of()
    lease = pool.acquire()
    lease.buffer[:6] = b"SECRET"
    assert repr(lease) == "<Lease of 'p', on loan>"
    assert repr(pool) == "<BufferPool 'p': 1 in use, 0 idle>"
    lease.release()
    assert repr(lease) == "<Lease of 'p', returned>"


# --- statistics
# ---------------------------------------------------------------------------------------------------------


def test_statistics_are_frozen() -> None:
    """A snapshot can neither be changed nor does it follow the pool."""
    pool = pool_of()
    stats = pool.statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.allocations = 7  # type: ignore[misc]
    pool.acquire().release()
    assert stats.allocations == 0
    assert pool.statistics().allocations == 1


def test_discards_are_the_sum_of_their_reasons() -> None:
    """`discards` adds up the three reasons."""
    stats = PoolStatistics("p", SIZE, 1, 0, 0, discards_oversize=1, discards_full=20, discards_exported=300, leaks=5,
                           in_use=0, current_size=0, high_water=0)  # fmt: skip
    assert stats.discards == 321


# --- any sequence
# -------------------------------------------------------------------------------------------------------


class AnyUse(RuleBasedStateMachine):
    """Borrow, resize, keep views, give back and lose, in any order: the books always balance."""

    def __init__(self) -> None:
        super().__init__()
        self.max_pooled = 3
        self.pool = BufferPool("p", SIZE, self.max_pooled)
        self.leases: list[Lease] = []
        self.views: list[tuple[memoryview, bytes]] = []
        self.serial = 0
        self.acquired = self.returned = self.lost = self.most = 0

    @rule()
    def acquire(self) -> None:
        lease = self.pool.acquire()
        assert len(lease.buffer) == SIZE
        assert not is_exported(lease.buffer)
        assert all(lease.buffer is not other.buffer for other in self.leases)
        self.serial += 1
        lease.buffer[:8] = self.serial.to_bytes(8)  # every borrower leaves its mark
        self.leases.append(lease)
        self.acquired += 1
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
    def the_books_balance(self) -> None:
        stats = self.pool.statistics()
        assert stats.allocations + stats.reuses == self.acquired
        assert stats.in_use == len(self.leases) == self.acquired - self.returned - self.lost
        assert stats.leaks == self.lost
        assert stats.high_water == self.most
        assert 0 <= stats.current_size <= self.max_pooled
        # Every buffer ever made is idle, on loan, discarded or lost.
        assert stats.allocations == stats.current_size + stats.in_use + stats.discards + stats.leaks

    @invariant()
    def what_is_idle_is_fit_to_be_lent(self) -> None:
        for buffer in self.pool._idle:
            assert len(buffer) == SIZE
            assert sys.getsizeof(buffer) <= sys.getsizeof(bytearray(2 * SIZE))
            assert all(view.obj is not buffer for view, _ in self.views)

    @invariant()
    def a_kept_view_shows_only_its_own_borrowers_bytes(self) -> None:
        assert all(bytes(view) == mark for view, mark in self.views)

    def teardown(self) -> None:
        for view, _ in self.views:
            view.release()
        while self.leases:
            self.leases.pop().release()


AnyUse.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_any_sequence_of_use_keeps_the_books = pytest.mark.leaks(AnyUse.TestCase)
