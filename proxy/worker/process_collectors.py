"""Prometheus collectors of a worker's process: memory, pools, connections, store, configuration."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pools import Pools

from ..downstream import WRITERS, client_connections
from .counters import FIRST_FREE, CounterMemory
from .logs import dropped_lines
from .reloads import Reloads

__all__ = [
    "DeathCollector",
    "PoolCollector",
    "ProcessCollector",
    "ProcessGauges",
    "ReloadCollector",
    "StoreCollector",
    "WriterCounts",
]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WRITERS = {writer: FIRST_FREE + number for number, writer in enumerate(WRITERS)}


class PoolCollector(Collector):
    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        all_stats = self._pools.statistics()
        gauges = (
            ("buffer_pool_reuse_rate", "Reuses as a share of all leases.", "reuse_rate"),
            ("buffer_pool_current_size", "Idle buffers.", "current_size"),
            ("buffer_pool_in_use", "Buffers on loan.", "in_use"),
            ("buffer_pool_high_water", "The most buffers that were on loan at once.", "high_water"),
        )
        counters = (
            ("buffer_pool_allocations", "Leases that made a new buffer.", "allocations"),
            ("buffer_pool_reuses", "Leases that took an idle buffer.", "reuses"),
            ("buffer_pool_leaks", "Leases that were lost.", "leaks"),
        )
        for name, text, attribute in gauges:
            gauge = GaugeMetricFamily(name, text, labels=["pool"])
            for stats in all_stats:
                gauge.add_metric([stats.pool], getattr(stats, attribute))
            yield gauge
        for name, text, attribute in counters:
            counter = CounterMetricFamily(name, text, labels=["pool"])
            for stats in all_stats:
                counter.add_metric([stats.pool], getattr(stats, attribute))
            yield counter
        discards = CounterMetricFamily(
            "buffer_pool_discards",
            "Buffers that came back and were not kept.",
            labels=["pool", "reason"],
        )
        for stats in all_stats:
            for reason in ("oversize", "full", "exported"):
                discards.add_metric([stats.pool, reason], getattr(stats, f"discards_{reason}"))
        yield discards


class ProcessCollector(Collector):
    def __init__(self, streams_limit: Callable[[], float]) -> None:
        self._streams_limit = streams_limit

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "process_cpu_seconds", "User and system CPU time.", value=time.process_time()
        )
        yield CounterMetricFamily(
            "weirpool_log_lines_dropped",
            "Log lines that could not be written in time.",
            value=dropped_lines(),
        )
        yield GaugeMetricFamily(
            "weirpool_client_connections",
            "Open connections of clients.",
            value=len(client_connections),
        )
        yield GaugeMetricFamily(
            "weirpool_client_connections_limit",
            "As many may be open at once.",
            value=client_connections.limit,
        )
        yield GaugeMetricFamily(
            "weirpool_streams_limit",
            "As many exchanges may be under way at once.",
            value=self._streams_limit(),
        )
        closed = CounterMetricFamily(
            "weirpool_client_connections_closed",
            "Connections closed at the limit: idle ones for others, new ones if none was idle.",
            labels=["which"],
        )
        closed.add_metric(["idle"], client_connections.closed_idle)
        closed.add_metric(["new"], client_connections.closed_new)
        yield closed


class ProcessGauges(Collector):
    """What the kernel knows of the process; only on a scrape, as it costs system calls."""

    def collect(self) -> Iterator[Metric]:
        memory = GaugeMetricFamily("process_resident_memory_bytes", "Resident memory.")
        files = GaugeMetricFamily("process_open_fds", "Open file descriptors.")
        with suppress(OSError):  # no /proc
            with open("/proc/self/statm") as statm:
                memory.add_metric([], int(statm.read().split()[1]) * _PAGE_BYTES)
            files.add_metric([], len(os.listdir("/proc/self/fd")) - 1)
        yield from (memory, files)


class DeathCollector(Collector):
    """The processes of a worker that died, in the memory's header."""

    def __init__(self, memory: CounterMemory) -> None:
        self._memory = memory

    def collect(self) -> Iterable[Metric]:
        died = CounterMetricFamily(
            "weirpool_workers_died",
            "Worker processes that ended without being stopped.",
            value=self._memory.died,
        )
        return [died]


class StoreCollector(Collector):
    def __init__(self, store: Callable[[], tuple[bool, Mapping[str, int]]]) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        is_up, failures = self._store()
        up = GaugeMetricFamily(
            "weirpool_store_up", "1: the store answers, or is this process's memory; 0: it is away."
        )
        up.add_metric([], is_up)
        failed = CounterMetricFamily(
            "weirpool_store_failures", "Calls of the store that failed.", labels=["kind"]
        )
        for kind, count in failures.items():
            failed.add_metric([kind], count)
        return (up, failed)


class ReloadCollector(Collector):
    def __init__(self, reloads: Reloads) -> None:
        self._reloads = reloads

    def collect(self) -> Iterable[Metric]:
        successful = GaugeMetricFamily(
            "weirpool_config_last_reload_successful",
            "1: the last reload has succeeded, or there was none; 0: it has failed.",
        )
        successful.add_metric([], self._reloads.ok)
        at = GaugeMetricFamily(
            "weirpool_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was taken over.",
        )
        at.add_metric([], self._reloads.succeeded_at)
        return (successful, at)


class WriterCounts(Collector):
    """Responses by their writer, in the memory's header."""

    def __init__(self, memory: CounterMemory) -> None:
        self._cells = memory.cells

    def count(self, writer: str) -> None:
        """Count a response."""
        self._cells[_WRITERS[writer]] += 1.0

    def collect(self) -> Iterable[Metric]:
        sent = CounterMetricFamily(
            "weirpool_writer", "Responses sent, by the writer that sent them.", labels=["writer"]
        )
        for writer, at in _WRITERS.items():
            sent.add_metric([writer], self._cells[at])
        return [sent]
