"""A lost lease is counted and logged, and the level decides whether the log says where it was
taken.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pools import BufferPool, LeakDetector, LeakLevel, Pools
from pools.leaks import SAMPLE_EVERY


def take_one(pool: BufferPool) -> Any:
    """The place where the lost leases of these tests are taken; the log must name it."""
    return pool.acquire()


def lose(pool: BufferPool, count: int = 1) -> list[Any]:
    """The log lines of losing `count` leases."""
    with capture_logs() as logs:
        for _ in range(count):
            take_one(pool)
        gc.collect()
    return logs


def pool_with(level: LeakLevel) -> BufferPool:
    return BufferPool("json", 64, 8, LeakDetector(level))


@pytest.mark.leaks
@pytest.mark.parametrize("level", ["none", "sampled", "paranoid"])
def test_a_lost_lease_is_counted_and_logged_at_every_level(level: LeakLevel) -> None:
    """`leaks` goes up, `in_use` down, and one error line names the pool, whatever the level."""
    pool = pool_with(level)
    (entry,) = lose(pool)
    assert (entry["event"], entry["log_level"], entry["pool"]) == ("buffer_leaked", "error", "json")
    stats = pool.statistics()
    assert (stats.leaks, stats.in_use, stats.current_size, stats.discards) == (1, 0, 0, 0)


@pytest.mark.leaks
def test_a_lost_buffer_is_never_lent_again() -> None:
    """Somebody may still hold it: the next lease gets a new buffer."""
    pool = pool_with("none")
    lease = take_one(pool)
    kept = lease.buffer
    del lease
    gc.collect()
    with pool.acquire() as other:
        assert other.buffer is not kept
    assert pool.statistics().allocations == 2


@pytest.mark.leaks
def test_a_lease_lost_in_a_reference_cycle_is_found_by_the_collector() -> None:
    """A cycle, as an exception's traceback makes one, only delays the count."""
    pool = pool_with("paranoid")
    with capture_logs() as logs:
        cycle: list[Any] = [take_one(pool)]
        cycle.append(cycle)
        del cycle
        gc.collect()
    assert pool.statistics().leaks == 1
    assert len(logs) == 1


def test_a_returned_lease_is_no_leak() -> None:
    """Collecting a lease that was given back counts and logs nothing."""
    pool = pool_with("paranoid")
    with capture_logs() as logs:
        lease = take_one(pool)
        lease.release()
        del lease
        gc.collect()
    assert logs == []
    assert pool.statistics().leaks == 0


@pytest.mark.leaks
def test_paranoid_says_where_each_lease_was_taken() -> None:
    """The origin ends at the line that called `acquire`, with no frame of the pool itself, for
    every lost lease.
    """
    entries = lose(pool_with("paranoid"), count=3)
    assert len(entries) == 3
    for entry in entries:
        last_frame = entry["taken_at"].rstrip().splitlines()[-2:]
        assert "in take_one" in last_frame[0]
        assert "return pool.acquire()" in last_frame[1]


@pytest.mark.leaks
def test_none_records_no_origin() -> None:
    """At level none the line says that a lease was lost, and not where: that would cost time on
    every lease.
    """
    assert [entry["taken_at"] for entry in lose(pool_with("none"), count=3)] == [None, None, None]


@pytest.mark.leaks
def test_sampled_records_the_origin_of_one_lease_in_many() -> None:
    """The first and then every `SAMPLE_EVERY`th lease has an origin; all of them are counted and
    logged.
    """
    pool = pool_with("sampled")
    entries = lose(pool, count=2 * SAMPLE_EVERY + 1)
    with_origin = [index for index, entry in enumerate(entries) if entry["taken_at"] is not None]
    assert with_origin == [0, SAMPLE_EVERY, 2 * SAMPLE_EVERY]
    assert all("in take_one" in entries[index]["taken_at"] for index in with_origin)
    assert pool.statistics().leaks == 2 * SAMPLE_EVERY + 1


def test_the_pools_of_a_worker_are_sampled_together() -> None:
    """`Pools` has one detector, so one lease in `SAMPLE_EVERY` of all pools is recorded, and not of
    each.
    """
    pools = Pools(leak_detection="sampled")
    assert pools.sse_event.detector is pools.http_response.detector is pools.json.detector


@pytest.mark.leaks
def test_a_log_that_fails_does_not_escape_the_finaliser(monkeypatch: pytest.MonkeyPatch) -> None:
    """At interpreter exit structlog may be half gone: the loss is counted, and nothing is raised or
    printed.
    """

    def broken(*_: object) -> None:
        raise RuntimeError("half torn down")

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(structlog, "get_logger", broken)
    pool = pool_with("paranoid")
    take_one(pool)
    gc.collect()
    assert pool.statistics().leaks == 1
    assert unraisable == []


def test_the_tests_themselves_run_paranoid() -> None:
    """Where a test does not choose a level, `tests/conftest.py` does, so that a failure says where
    the lease was taken.
    """
    assert BufferPool("json", 64, 8).detector.level == "paranoid"
    assert LeakDetector().level == "paranoid"
