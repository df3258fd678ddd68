"""The report: one line per pool and interval, with the documented fields and no others."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from pools import POOL_NAMES, Pools, report, run_reports

FIELDS = {
    "pool",
    "reuse_rate",
    "allocations",
    "reuses",
    "discards",
    "in_use",
    "current_size",
    "high_water",
}
STRUCTLOGS_OWN = {"event", "log_level"}


async def reports_of(pools: Pools, interval_s: float, watched_s: float) -> list[Any]:
    with capture_logs() as logs, trio.move_on_after(watched_s):
        await run_reports(pools, interval_s)
    return logs


async def test_each_interval_logs_one_line_per_pool(autojump_clock: trio.testing.MockClock) -> None:
    """In 3.5 intervals every pool reports three times, in the pools' order, at level info."""
    logs = await reports_of(Pools(), 60, 210)
    assert [entry["pool"] for entry in logs] == list(POOL_NAMES) * 3
    assert {(entry["event"], entry["log_level"]) for entry in logs} == {
        ("buffer_pool_report", "info")
    }


async def test_nothing_is_reported_before_the_first_interval_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A start is not worth a report: until the first interval has passed there is none."""
    assert await reports_of(Pools(), 60, 59) == []
    assert len(await reports_of(Pools(), 60, 61)) == 3


async def test_a_report_has_exactly_the_documented_fields(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A line's keys are the documented ones; an operator's dashboard is built on them."""
    for entry in await reports_of(Pools(), 1, 1.5):
        assert set(entry) == FIELDS | STRUCTLOGS_OWN


def test_a_report_tells_the_pools_counters() -> None:
    """The values are those of the statistics, the rate rounded to four digits, discards summed over
    their reasons.
    """
    pools = Pools(sse_event=(64, 1))
    pool = pools.sse_event
    for _ in range(3):
        pool.acquire().release()
    full = [pool.acquire(), pool.acquire()]
    for lease in full:
        lease.release()
    grown = pool.acquire()
    grown.buffer.extend(bytes(1000))
    grown.release()
    on_loan = pool.acquire()
    with capture_logs() as logs:
        report(pools)
    on_loan.release()
    assert [entry["pool"] for entry in logs] == list(POOL_NAMES)
    assert {key: logs[0][key] for key in FIELDS} == {
        "pool": "sse_event",
        "reuse_rate": 0.5714,  # 4 of 7
        "allocations": 3,
        "reuses": 4,
        "discards": 2,
        "in_use": 1,
        "current_size": 0,
        "high_water": 2,
    }


async def test_reports_follow_the_pool(autojump_clock: trio.testing.MockClock) -> None:
    """Each line shows its own moment: a lease taken and returned between two reports moves in_use
    and reuses.
    """
    pools = Pools()
    pools.json.acquire().release()
    seen = []
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_reports, pools, 10)
            await trio.sleep(15)
            lease = pools.json.acquire()
            await trio.sleep(10)
            lease.release()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        seen = [(entry["in_use"], entry["reuses"]) for entry in logs if entry["pool"] == "json"]
    assert seen == [(0, 0), (1, 1), (0, 1)]


async def test_cancelling_the_reports_makes_no_last_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The report at shutdown is the caller's to make: a cancelled `run_reports` says nothing more."""
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_reports, Pools(), 10)
            await trio.sleep(15)
            before = len(logs)
            nursery.cancel_scope.cancel()
    assert len(logs) == before == 3


@pytest.mark.parametrize("leases", [0, 1])
def test_the_reuse_rate_is_zero_until_something_was_reused(leases: int) -> None:
    """No lease, and a first one, both report 0.0 and no division by zero."""
    pools = Pools()
    for _ in range(leases):
        pools.json.acquire().release()
    with capture_logs() as logs:
        report(pools)
    assert [entry["reuse_rate"] for entry in logs] == [0.0, 0.0, 0.0]
