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
def test_a_lost_lease_is_counted(level: LeakLevel, count: int, recorded: list[int]) -> None:
    """Also in a reference cycle; the origin ends at the line that called `acquire`. A returned lease
    is no leak, and a lost buffer is not lent again.
    """
    pool = pool_with(level)
    with capture_logs() as entries:
        for _ in range(count - 1):
            take_one(pool)
        cycle: list[Any] = [take_one(pool)]
        cycle.append(cycle)
        del cycle
        take_one(pool).release()
        gc.collect()
    fields = {(entry["event"], entry["log_level"], entry["pool"]) for entry in entries}
    assert (fields, len(entries)) == ({("buffer_leaked", "error", "json")}, count)
    assert [at for at, entry in enumerate(entries) if entry["taken_at"] is not None] == recorded
    for at in recorded:
        frame, line = entries[at]["taken_at"].rstrip().splitlines()[-2:]
        assert "in take_one" in frame
        assert "return pool.acquire()" in line
    stats = pool.statistics()
    assert (stats.leaks, stats.in_use, stats.reuses, stats.discards) == (count, 0, 0, 0)


def test_the_pools_of_a_worker_share_one_detector() -> None:
    """One lease in `SAMPLE_EVERY` of all pools is recorded, and not of each."""
    pools = Pools(leak_detection="sampled")
    assert pools.sse_event.detector is pools.http_response.detector is pools.json.detector
    assert pools.json.detector.level == "sampled"


@pytest.mark.leaks
def test_a_log_that_fails_does_not_escape_the_finaliser(monkeypatch: pytest.MonkeyPatch) -> None:
    """At interpreter exit structlog may be half gone."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(structlog, "get_logger", None)
    pool = pool_with("paranoid")
    take_one(pool)
    gc.collect()
    assert (pool.statistics().leaks, unraisable) == (1, [])


def test_tests_run_paranoid() -> None:
    """`tests/conftest.py` chooses it where a test does not."""
    assert BufferPool("json", 64, 8).detector.level == "paranoid"
