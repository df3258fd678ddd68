"""The periodic report: one structured log line per pool and interval."""

from __future__ import annotations

import structlog
from trio_util import periodic

from .family import Pools

__all__ = ["report", "run_reports"]


def report(pools: Pools) -> None:
    """Log one `buffer_pool_report` line per pool."""
    log = structlog.get_logger("pools")
    for stats in pools.statistics():
        log.info(
            "buffer_pool_report",
            pool=stats.pool,
            reuse_rate=round(stats.reuse_rate, 4),
            allocations=stats.allocations,
            reuses=stats.reuses,
            discards=stats.discards,
            in_use=stats.in_use,
            current_size=stats.current_size,
            high_water=stats.high_water,
        )


async def run_reports(pools: Pools, interval_s: float) -> None:
    """Report every `interval_s` seconds until cancelled. The caller makes the last report."""
    async for elapsed, _ in periodic(interval_s):
        if elapsed > 0:  # `periodic` yields at once, when there is nothing to report yet
            report(pools)
