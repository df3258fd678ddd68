"""Prometheus metrics of one worker: every name and label is there from the start, at 0.

What is counted per event is counted in plain integers by whoever sees it and read when Prometheus asks; what is counted per
exchange uses prometheus-client's own types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from interceptors import Outcome
from interceptors.chain import EventCounts
from interceptors.hooks import Owner
from pools import Pools

from .downstream import WRITERS
from .errors import ConfigError

__all__ = ["ACTIONS", "LiveExchange", "Metrics", "RouteTally"]

ACTIONS = ("passed", "changed", "dropped", "added")
_TTFB_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

disable_created_metrics()  # type: ignore[no-untyped-call]


class LiveExchange(Protocol):
    """What an exchange under way shows to the metrics."""

    @property
    def counts(self) -> EventCounts | None:
        """None when no interceptor sees its events."""
        ...

    @property
    def bytes_downstream(self) -> int: ...

    @property
    def bytes_upstream(self) -> int: ...


@dataclass(slots=True)
class RouteTally:
    """What a route has moved: sums of the exchanges that have ended, and the exchanges that are live."""

    ended: EventCounts = field(default_factory=EventCounts)
    bytes_downstream: int = 0
    bytes_upstream: int = 0
    live: set[LiveExchange] = field(default_factory=set)
    admitted: int = 0
    """How many of the live ones are streams, and not answers of ours."""

    def events(self, action: str) -> int:
        """Events of the route so far, live streams included."""
        counts = [self.ended, *(item.counts for item in self.live if item.counts is not None)]
        return sum(int(getattr(item, action)) for item in counts)

    def end(self, exchange: LiveExchange) -> None:
        """Add an exchange that has ended to the sums."""
        self.live.discard(exchange)
        self.bytes_downstream += exchange.bytes_downstream
        self.bytes_upstream += exchange.bytes_upstream
        if exchange.counts is not None:
            for action in ACTIONS:
                setattr(self.ended, action, getattr(self.ended, action) + getattr(exchange.counts, action))

    def bytes(self, direction: str) -> int:
        """Body bytes so far, live streams included: `downstream` (to clients) or `upstream` (to upstreams)."""
        if direction == "downstream":
            return self.bytes_downstream + sum(item.bytes_downstream for item in self.live)
        return self.bytes_upstream + sum(item.bytes_upstream for item in self.live)


class Metrics:
    """The registry of one worker."""

    def __init__(self, pools: Pools, routes: Sequence[str], owners: Sequence[Owner] = ()) -> None:
        """Raises `ConfigError` when an interceptor has a metric under a name of the proxy's."""
        self.registry = CollectorRegistry(auto_describe=False)
        self.routes = {route: RouteTally() for route in routes}
        exchanges = Counter(
            "weirpool_exchanges", "Exchanges that have ended, by outcome.", ["route", "outcome"], registry=self.registry
        )
        time_to_first_byte = Histogram(
            "weirpool_time_to_first_byte_seconds",
            "From the request's head to the first byte of the response's body.",
            ["route"],
            buckets=_TTFB_BUCKETS,
            registry=self.registry,
        )
        writers = Counter(
            "weirpool_writer", "Responses sent, by the writer that sent them.", ["writer"], registry=self.registry
        )
        # Made once, so that they are there from the start, and an exchange need not look them up by their labels.
        self.exchanges = {
            (route, outcome): exchanges.labels(route, outcome.value) for route in routes for outcome in Outcome
        }
        self.time_to_first_byte = {route: time_to_first_byte.labels(route) for route in routes}
        self.writers = {writer: writers.labels(writer) for writer in WRITERS}
        self.registry.register(_PoolCollector(pools))
        self.registry.register(_RouteCollector(self.routes))
        self.registry.register(_InterceptorCollector(owners))
        authors = _AuthorsCollector(owners)
        ours = {metric.name for metric in self.registry.collect()}
        for owner, metric in authors.metrics():
            if metric.name in ours:
                raise ConfigError(f"interceptors: {owner.name!r} has a metric called {metric.name!r}, and so has the proxy")
        self.registry.register(authors)

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


class _PoolCollector(Collector):
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
            "buffer_pool_discards", "Buffers that came back and were not kept.", labels=["pool", "reason"]
        )
        for stats in all_stats:
            for reason in ("oversize", "full", "exported"):
                discards.add_metric([stats.pool, reason], getattr(stats, f"discards_{reason}"))
        yield discards


class _InterceptorCollector(Collector):
    def __init__(self, owners: Sequence[Owner]) -> None:
        self._owners = owners

    def collect(self) -> Iterator[Metric]:
        spent = CounterMetricFamily("weirpool_interceptor_seconds", "Time spent in hooks.", labels=["interceptor"])
        for owner in self._owners:
            spent.add_metric([owner.name], owner.seconds)
        yield spent


class _AuthorsCollector(Collector):
    """The metrics of interceptors, with the label `interceptor`: one family, whichever of them have it."""

    def __init__(self, owners: Sequence[Owner]) -> None:
        self._collectors = [(owner, collector) for owner in owners for collector in owner.interceptor.collectors()]

    def metrics(self) -> Iterator[tuple[Owner, Metric]]:
        """Each as its interceptor has it. One that fails is logged, and the others are shown."""
        for owner, collector in self._collectors:
            try:
                for metric in collector.collect():
                    yield owner, metric
            except Exception as error:
                owner.failed("collectors", error)

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for owner, metric in self.metrics():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit))
            for sample in metric.samples:
                family.samples.append(sample._replace(labels={"interceptor": owner.name, **sample.labels}))
        return families.values()


class _RouteCollector(Collector):
    def __init__(self, routes: dict[str, RouteTally]) -> None:
        self._routes = routes

    def collect(self) -> Iterable[Metric]:
        active = GaugeMetricFamily("weirpool_streams_active", "Exchanges under way.", labels=["route"])
        events = CounterMetricFamily(
            "weirpool_events", "Events of streams that interceptors see, by what became of them.", labels=["route", "action"]
        )
        moved = CounterMetricFamily("weirpool_bytes", "Bytes of bodies.", labels=["route", "direction"])
        for route, tally in self._routes.items():
            active.add_metric([route], len(tally.live))
            for action in ACTIONS:
                events.add_metric([route, action], tally.events(action))
            for direction in ("downstream", "upstream"):
                moved.add_metric([route, direction], tally.bytes(direction))
        return (active, events, moved)
