"""The report: one line per pool and interval, with the documented fields and no others."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from pools import POOL_NAMES, Pools, report, run_reports


@pytest.mark.parametrize(("watched_s", "reports"), [(59, 0), (61, 1), (210, 3)])
async def test_each_interval_logs_one_line_per_pool(
    watched_s: float, reports: int, autojump_clock: trio.testing.MockClock
) -> None:
    """None at the start and none after the cancellation: the caller makes the last report."""
    with capture_logs() as logs, trio.move_on_after(watched_s):
        await run_reports(Pools(), 60)
    assert [entry["pool"] for entry in logs] == list(POOL_NAMES) * reports
    expected = {("buffer_pool_report", "info")} if reports else set()
    assert {(entry["event"], entry["log_level"]) for entry in logs} == expected


def test_a_report_has_the_pools_counters_and_no_other_fields() -> None:
    """The rate is rounded to four digits, the discards are summed."""
    pools = Pools(sse_event=(64, 1))
    pool = pools.sse_event
    for _ in range(3):
        pool.acquire().release()
    for lease in [pool.acquire(), pool.acquire()]:
        lease.release()
    with pool.acquire() as grown:
        grown.buffer.extend(bytes(1000))
    pools.json.acquire().release()
    with pool.acquire(), capture_logs() as logs:
        report(pools)
    assert [entry["pool"] for entry in logs] == list(POOL_NAMES)
    assert [entry["reuse_rate"] for entry in logs[1:]] == [0.0, 0.0]
    assert logs[0] == {
        "event": "buffer_pool_report",
        "log_level": "info",
        "pool": "sse_event",
        "reuse_rate": 0.5714,  # 4 of 7
        "allocations": 3,
        "reuses": 4,
        "discards": 2,
        "in_use": 1,
        "current_size": 0,
        "high_water": 2,
    }
