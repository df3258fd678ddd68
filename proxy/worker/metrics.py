"""Prometheus metrics of one worker. Every name and label exists from the start, at 0.

Exchanges are counted in the cells of a `CounterMemory` (see `tally.py`). Everything else is counted
in plain integers by its owner and read when Prometheus asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.exposition import generate_latest

from pools import Pools

from ..errors import ConfigError
from ..upstream import Balancer
from .collectors import (
    AuthorsCollector,
    Collectors,
    EndpointCollector,
    InterceptorCollector,
    InterceptorTotals,
    PoolCollector,
    ProcessCollector,
    RouteCollector,
    WriterCounts,
    collected,
)
from .counters import CounterMemory
from .tally import RouteTally, new_memory

__all__ = [
    "Collectors",
    "InterceptorTotals",
    "Metrics",
    "RouteTally",
]

disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client has no types here


class Metrics:
    """The metrics registry of one worker."""

    def __init__(
        self,
        pools: Pools,
        routes: Sequence[str],
        *,
        interceptor_totals: Callable[[], Mapping[str, InterceptorTotals]] = dict,
        collectors: Callable[[], Collectors] = tuple,
        upstreams: Callable[[], Mapping[str, Balancer]] = dict,
        memory: CounterMemory | None = None,
    ) -> None:
        """`interceptor_totals`, `collectors` and `upstreams` are called on each scrape. `memory`
        has the counters of the worker's predecessors, if any. Raises `ConfigError` as `check` does.
        """
        self.memory = memory or new_memory()
        self.registry = CollectorRegistry(auto_describe=False)
        self.routes: dict[str, RouteTally] = {}
        self.writers = WriterCounts(self.memory)
        self.registry.register(self.writers)
        self.registry.register(PoolCollector(pools))
        self.registry.register(RouteCollector(self.routes))
        self.registry.register(InterceptorCollector(interceptor_totals))
        self.registry.register(EndpointCollector(upstreams))
        self.registry.register(ProcessCollector())
        self.add_routes(routes)
        self._own_names = {metric.name for metric in self.registry.collect()}
        self.check(collectors())
        self._authors = AuthorsCollector(collectors)
        self.registry.register(self._authors)

    def check(self, collectors: Collectors) -> None:
        """Check the names of interceptors' metrics. Raises `ConfigError` for a name that the proxy
        uses.
        """
        for owner, metric in collected(collectors):
            if metric.name in self._own_names:
                raise ConfigError(
                    f"interceptors: the metric {metric.name!r} of {owner.name!r} has the name"
                    " of one of the proxy's"
                )

    def keep(self, collectors: Collectors) -> None:
        """Keep the counts of interceptors that are gone."""
        self._authors.keep(collectors)

    def add_routes(self, routes: Sequence[str]) -> None:
        """Add routes, counted from 0; a known name keeps its counts."""
        for route in routes:
            if route in self.routes:
                continue
            self.routes[route] = RouteTally(self.memory, route)

    def render(self) -> bytes:
        """Return the Prometheus text format."""
        return generate_latest(self.registry)
