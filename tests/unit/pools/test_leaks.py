"""A lost lease is counted and logged; the level decides whether the log names where it was taken."""

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
    """The log must name this place."""
    return pool.acquire()


def lose(pool: BufferPool, count: int = 1) -> list[Any]:
    """Lose leases; returns the log."""
    with capture_logs() as logs:
        for _ in range(count):
            take_one(pool)
        gc.collect()
    return logs


def pool_with(level: LeakLevel) -> BufferPool:
    return BufferPool("json", 64, 8, LeakDetector(level))


@pytest.mark.leaks
@pytest.mark.parametrize(
    ("level", "count", "recorded"),
    [
        ("none", 3, []),
        ("sampled", 2 * SAMPLE_EVERY + 1, [0, SAMPLE_EVERY, 2 * SAMPLE_EVERY]),
        ("paranoid", 3, [0, 1, 2]),
    ],
)
def test_a_lost_lease_is_counted_and_logged(
    level: LeakLevel, count: int, recorded: list[int]
) -> None:
    """At every level; the origin ends at the line that called `acquire`."""
    pool = pool_with(level)
    entries = lose(pool, count)
    assert len(entries) == count
    for entry in entries:
        assert (entry["event"], entry["log_level"], entry["pool"]) == (
            "buffer_leaked",
            "error",
            "json",
        )
    assert [at for at, entry in enumerate(entries) if entry["taken_at"] is not None] == recorded
    for at in recorded:
        frame, line = entries[at]["taken_at"].rstrip().splitlines()[-2:]
        assert "in take_one" in frame
        assert "return pool.acquire()" in line
    stats = pool.statistics()
    assert (stats.leaks, stats.in_use, stats.current_size, stats.discards) == (count, 0, 0, 0)


@pytest.mark.leaks
def test_a_lost_buffer_is_never_lent_again() -> None:
    """Somebody may still hold it."""
    pool = pool_with("none")
    lease = take_one(pool)
    kept = lease.buffer
    del lease
    gc.collect()
    with pool.acquire() as other:
        assert other.buffer is not kept


@pytest.mark.leaks
def test_a_lease_lost_in_a_reference_cycle_is_found_by_the_collector() -> None:
    pool = pool_with("paranoid")
    with capture_logs() as logs:
        cycle: list[Any] = [take_one(pool)]
        cycle.append(cycle)
        del cycle
        gc.collect()
    assert (pool.statistics().leaks, len(logs)) == (1, 1)


def test_a_returned_lease_is_not_a_leak() -> None:
    pool = pool_with("paranoid")
    with capture_logs() as logs:
        take_one(pool).release()
        gc.collect()
    assert (logs, pool.statistics().leaks) == ([], 0)


def test_the_pools_of_a_worker_share_one_detector() -> None:
    """One lease in `SAMPLE_EVERY` of all pools is recorded, and not of each."""
    pools = Pools(leak_detection="sampled")
    assert pools.sse_event.detector is pools.http_response.detector is pools.json.detector
    assert pools.json.detector.level == "sampled"


@pytest.mark.leaks
def test_a_log_that_fails_does_not_escape_the_finaliser(monkeypatch: pytest.MonkeyPatch) -> None:
    """At interpreter exit structlog may be half gone."""

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


def test_tests_run_paranoid() -> None:
    """`tests/conftest.py` chooses it where a test does not."""
    assert BufferPool("json", 64, 8).detector.level == "paranoid"
